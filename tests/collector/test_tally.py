"""The counts of one process: what is bounded, what waits, what is forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import get_args

import pytest
import sqlalchemy as sa

from collector import tally
from collector.capture.event import ErrorClass
from collector.ingest import Rejected, Verdict
from collector.tally import Tally
from models.columns import to_microseconds
from models.errors import Unavailable
from models.intake import FIXES
from models.store import Store
from tests.collector.api.serving import NOW

AT = to_microseconds(NOW)


def test_every_class_of_error_says_what_to_do() -> None:
    assert set(get_args(ErrorClass)) | {"unauthorized", "forbidden"} == set(FIXES)
    assert all(fix.endswith(".") and len(fix) > 20 for fix in FIXES.values())


def refuse(counts: Tally, detail: str, *, at: int = AT, source: str = "s") -> None:
    verdict = Verdict(rejected=[Rejected(0, "malformed", detail)])
    sender = counts.judged(verdict, [], key_id=None, path="/v1/usage", at=at)
    counts.sample((sender[0], source, sender[2]), verdict, b"{}", None, at)


def samples(store: Store) -> list[tuple[str, int, str]]:
    with store.read() as session:
        found = session.execute(sa.text("SELECT source, seen_at, detail FROM intake_sample ORDER BY seen_at, detail"))
        return [(str(source), int(at), str(detail)) for source, at, detail in found]


def test_the_newest_five_samples_that_differ_are_kept(store: Store) -> None:
    counts = Tally(store)
    for number in range(8):
        refuse(counts, f"fault {number}", at=AT + number)
        counts.flush()
    # What says the same again is no new sample; it is only newer.
    refuse(counts, "fault 4", at=AT + 20)
    counts.end()
    assert [(at - AT, detail) for _, at, detail in samples(store)] == [(3, "fault 3"), (5, "fault 5"), (6, "fault 6"), (7, "fault 7"), (20, "fault 4")]


def test_names_that_senders_make_up_are_bounded(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_MOST_SAMPLES", 3)
    monkeypatch.setattr(tally, "_MOST_SENDERS", 2)
    counts = Tally(sqlite_store)
    for number in range(5):
        refuse(counts, "fault", at=AT + number, source=f"source {number}")
    for path in ("/v1/usage", "/v1/usage/openai", "/v1/usage/litellm"):
        counts.judged(Verdict(accepted=1), [], key_id=None, path=path, at=AT)
    counts.end()
    assert [source for source, _, _ in samples(sqlite_store)] == ["source 2", "source 3", "source 4"]
    with sqlite_store.read() as session:
        found = session.execute(sa.text("SELECT source, format, outcome, events FROM intake_hour ORDER BY 2, 3")).all()
    assert [tuple(row) for row in found] == [
        ("(others)", "litellm", "accepted", 1), ("", "native", "accepted", 1), ("", "native", "malformed", 5), ("", "openai", "accepted", 1),
    ]  # fmt: skip


def test_counts_that_cannot_be_stored_wait_for_the_next_time(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Tally(sqlite_store)
    refuse(counts, "fault")
    with monkeypatch.context() as away:

        def fail() -> None:
            raise Unavailable("the disk is full")

        away.setattr(sqlite_store, "write", fail)
        counts.flush()
    counts.judged(Verdict(accepted=2), [], key_id=None, path="/v1/usage", at=AT)
    counts.end()
    with sqlite_store.read() as session:
        found = session.execute(sa.text("SELECT outcome, events FROM intake_hour ORDER BY 1")).all()
    assert [tuple(row) for row in found] == [("accepted", 2), ("malformed", 1)]
    assert len(samples(sqlite_store)) == 1


def test_hours_are_kept_for_four_hundred_days(sqlite_store: Store) -> None:
    counts = Tally(sqlite_store)
    for at in (NOW - timedelta(days=401), NOW - timedelta(days=399), NOW):
        counts.judged(Verdict(accepted=1), [], key_id=None, path="/v1/usage", at=to_microseconds(at))
        counts.flush()
    counts.end()
    with sqlite_store.read() as session:
        assert session.execute(sa.text("SELECT COUNT(*) FROM intake_hour")).scalar_one() == 2
