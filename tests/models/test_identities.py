"""The index of identities: it may say too much, never too little, however it is cut and whoever wrote it."""

from __future__ import annotations

import random
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import sqlalchemy as sa

from models import identities
from models.identities import Fingerprinter, Identities, times_of
from models.store import Store


@contextmanager
def committing(store: Store) -> Iterator[sa.Connection]:
    with store.connection() as connection, connection.begin():
        yield connection


def test_a_uuid_and_its_text_have_one_fingerprint_and_the_secret_decides_it() -> None:
    of, other = Fingerprinter("a"), Fingerprinter("b")
    name = str(uuid.UUID(int=0xABC))
    numbers = np.array([3]), np.array([4])
    assert of.one(3, 4, name) == int(of(*numbers, [bytes(14) + b"\x0a\xbc"])[0])
    assert len({of.one(3, 4, name), of.one(4, 3, name), of.one(3, 4, name.upper()), of.one(3, 4, "x"), other.one(3, 4, name)}) == 5


@pytest.mark.walk
def test_nothing_that_stands_is_overlooked_across_segments_runs_and_processes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_SEGMENT_SQLITE", 256)
    monkeypatch.setattr(identities, "_SEGMENT_POSTGRESQL", 256)
    monkeypatch.setattr(identities, "_BLOCK", 16)
    monkeypatch.setattr(identities, "_MOST_RUNS", 5)
    drawn = random.Random(11)
    writers = [Identities(is_sqlite=store.is_sqlite) for _ in range(2)]
    stands: dict[int, set[int]] = defaultdict(set)
    for number in range(60):
        writer = drawn.choice(writers)
        # Few fingerprints, so that equal ones meet within a block, across blocks and across segments.
        fingerprints = np.array([drawn.randrange(400) << 20 for _ in range(drawn.randrange(1, 60))], "<u4")
        times = np.array([drawn.randrange(10**15) for _ in fingerprints], "<i8")
        with committing(store) as connection:
            writer.refresh(connection, [0])
            asked = np.array(range(0, 400 << 20, 1 << 20), "<u4")
            suspects = writer.suspects(0, asked)
            assert all(suspects[place] for place, one in enumerate(asked.tolist()) if one in stands)
            found = writer.times(connection, 0, asked)
            assert {one: set(at) for one, at in found.items()} == stands
            writer.write(connection, 0, fingerprints, times)
        if number % 7 == 3:
            # Told of no commit, as after a failure: it learns it like anybody else's.
            writer.forget()
        else:
            writer.keep()
        for one, at in zip(fingerprints.tolist(), times.tolist(), strict=True):
            stands[one].add(at)
    with store.read() as session:
        assert session.execute(sa.text("SELECT COUNT(*) FROM usage_identity_run")).scalar_one() < 10
        assert session.execute(sa.text("SELECT COUNT(*) FROM usage_identity_block")).scalar_one() > 60


def test_a_filter_rarely_suspects_what_it_never_saw(sqlite_store: Store) -> None:
    index = Identities(is_sqlite=True)
    drawn = np.random.default_rng(5)
    known, others = (drawn.integers(0, 2**32, 50_000, dtype=np.uint32).astype("<u4") for _ in range(2))
    with committing(sqlite_store) as connection:
        index.refresh(connection, [0])
        index.write(connection, 0, known, np.arange(50_000))
    index.keep()
    assert index.suspects(0, known).all()
    assert index.suspects(0, others).sum() < 50


def test_readers_find_the_times_of_an_id_wherever_it_lies(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_SEGMENT_SQLITE", 64)
    monkeypatch.setattr(identities, "_SEGMENT_POSTGRESQL", 64)
    index = Identities(is_sqlite=store.is_sqlite)
    shard = index.shard_count - 1
    for start in range(0, 200, 20):
        with committing(store) as connection:
            of = index.fingerprints(connection)
            index.refresh(connection, [shard])
            names = [of.one(1, 1, f"call-{number}") for number in range(start, start + 20)]
            index.write(connection, shard, np.array(names, "<u4"), np.arange(start, start + 20))
        index.keep()
    with store.read() as session:
        found = times_of(session, [(1, 1, f"call-{number}") for number in (0, 77, 199)] + [(1, 1, "never")])
    assert {one[2]: times for one, times in found.items()} == {"call-0": [0], "call-77": [77], "call-199": [199]}
