"""Which identities stand, at which times: small enough to write at one end, sure enough to refuse by.

Events are keyed by their time, so an id that comes back with another time (restamped, untimed, its clock ahead, or a
conflict) is not met in their key. This index tells the times at which an identity *may* stand; whoever asks looks there
and compares the identity itself, so that a wrong hint costs one look and never a verdict.

A commit adds one run: the 32-bit fingerprints of its identities and their times; small runs are joined now and then, so
that a start does not read millions of them. When runs have grown to a segment they
are sorted into blocks of a page each and never touched again. A process keeps two bytes of filter for each event and
the fingerprints of the open segment; it asks the database only about what a filter has not ruled out. Shards are what
processes lock apart, so that within one the runs are numbered without a gap and nobody's is overlooked.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Column, LargeBinary, SmallInteger
from sqlmodel import Field, Session, SQLModel

from models.columns import BigInt
from models.usage import short_id

SHARDS_SQLITE, SHARDS_POSTGRESQL = 1, 8
_SEGMENT_SQLITE, _SEGMENT_POSTGRESQL = 1 << 20, 1 << 17
# Twelve bytes an entry: a block is just under a page of SQLite, so that none of it overflows.
_BLOCK = 660
# Single events make a run each. What was joined once is left alone: a commit that wrote all of the open segment again
# would keep everyone waiting.
_MOST_RUNS = 2_048
_SHARD_BITS, _NUMBER_BITS = 56, 32
_APPENDED, _REWRITTEN, _FINISHED = 0, 1, 2  # the last is never stored
_SECRET = "usage_identity_secret"  # noqa: S105 - the name of a setting
_UINT = np.uint64
Array = np.ndarray[Any, Any]


class IdentityRun(SQLModel, table=True):
    """The identities of one commit: fingerprints, then times (``id`` is shard and number; ``kind`` 1 stands for runs or segments whose own are deleted)."""

    __tablename__ = "usage_identity_run"

    id: int = Field(sa_column=Column(BigInt, primary_key=True, autoincrement=False))
    kind: int = Field(sa_column=Column(SmallInteger, nullable=False))
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class IdentityBlock(SQLModel, table=True):
    """A page of a finished segment, in the order of its fingerprints (``id`` is shard, segment and the first of them)."""

    __tablename__ = "usage_identity_block"

    id: int = Field(sa_column=Column(BigInt, primary_key=True, autoincrement=False))
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


# -- fingerprints -----------------------------------------------------------------------------------


class Fingerprinter:
    """Fingerprints of identities, by a secret of the database: nobody can choose ids that meet in one."""

    def __init__(self, secret: str) -> None:
        digest = hashlib.blake2b(secret.encode(), digest_size=40).digest()
        self._factors = np.frombuffer(digest, "<u8") | _UINT(1)

    def __call__(self, workspaces: Array, sources: Array, ids: Sequence[str | bytes]) -> Array:
        """Of ids as ``short_id`` gives them, with their workspace's and source's numbers."""
        whole = b"".join([one if type(one) is bytes else hashlib.blake2b(one.encode(), digest_size=16).digest() for one in ids])  # type: ignore[union-attr]
        halves = np.frombuffer(whole, "<u8").reshape(-1, 2)
        first, second, third, fourth, fifth = self._factors
        mixed = halves[:, 0] * first + halves[:, 1] * second + workspaces.astype(_UINT) * third + sources.astype(_UINT) * fourth
        mixed ^= mixed >> _UINT(29)
        found: Array = ((mixed * fifth) >> _UINT(32)).astype("<u4")
        return found

    def one(self, workspace_id: int, source_id: int, event_id: str) -> int:
        """Of a single identity."""
        return int(self(np.array([workspace_id]), np.array([source_id]), [short_id(event_id)])[0])


def fingerprinter(connection: sa.Connection) -> Fingerprinter:
    """The database's own; its secret is drawn the first time somebody asks."""
    query = sa.text("SELECT value FROM setting WHERE name = :name")
    secret = connection.scalar(query, {"name": _SECRET})
    if secret is None:
        connection.execute(
            sa.text("INSERT INTO setting (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING"), {"name": _SECRET, "value": secrets.token_hex(32)}
        )
        secret = connection.scalar(query, {"name": _SECRET})
    return Fingerprinter(str(secret))


# -- filters ----------------------------------------------------------------------------------------


class _Probe:
    """Where a filter of ``words`` words keeps the bits of some fingerprints: three in each of two words."""

    def __init__(self, fingerprints: Array, words: int) -> None:
        shift, six = _UINT(64 - (words.bit_length() - 1)), _UINT(63)
        mixed = fingerprints.astype(_UINT) * _UINT(0x9E3779B97F4A7C15)
        again = (mixed ^ (mixed >> _UINT(31))) * _UINT(0xBF58476D1CE4E5B9)
        one = _UINT(1)
        self.places = (mixed >> shift).astype(np.int64), (again >> shift).astype(np.int64)
        self.bits = (
            one << (mixed >> _UINT(8) & six) | one << (mixed >> _UINT(16) & six) | one << (mixed >> _UINT(24) & six),
            one << (again >> _UINT(8) & six) | one << (again >> _UINT(16) & six) | one << (again >> _UINT(24) & six),
        )


class _Filter:
    """Sixteen bits an entry; about one in five hundred of what it never saw it takes for known."""

    def __init__(self, capacity: int) -> None:
        self.words = np.zeros(max(64, capacity // 4), _UINT)

    def add(self, fingerprints: Array) -> None:
        probe = _Probe(fingerprints, len(self.words))
        for places, bits in zip(probe.places, probe.bits, strict=True):
            np.bitwise_or.at(self.words, places, bits)

    def may_hold(self, probe: _Probe) -> Array:
        (here, there), (these, those) = probe.places, probe.bits
        found: Array = ((self.words[here] & these) == these) & ((self.words[there] & those) == those)
        return found


# -- one process's knowledge --------------------------------------------------------------------------


class _Shard:
    """What this process knows of one shard: the filters of its segments, the entries of the open one."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.segments: dict[int, _Filter] = {}
        self.begin()

    def begin(self) -> None:
        """An empty open segment."""
        self.open = _Filter(self.capacity)
        self.parts: list[tuple[Array, Array]] = []
        self.count = 0
        self.first_loose = 0  # the first run that was not joined with others yet
        self.loose = 0  # how many there are from there on

    def add(self, fingerprints: Array, times: Array) -> None:
        """Take in entries; few sorted parts of growing size keep looking cheap."""
        self.open.add(fingerprints)
        self.count += len(fingerprints)
        order = np.argsort(fingerprints, kind="stable")
        part = fingerprints[order], times[order]
        while self.parts and len(self.parts[-1][0]) <= 2 * len(part[0]):
            last = self.parts.pop()
            part = _sorted(np.concatenate((last[0], part[0])), np.concatenate((last[1], part[1])))
        self.parts.append(part)

    def whole(self) -> tuple[Array, Array]:
        """Every entry of the open segment, sorted."""
        if not self.parts:
            return np.zeros(0, "<u4"), np.zeros(0, "<i8")
        return _sorted(np.concatenate([part[0] for part in self.parts]), np.concatenate([part[1] for part in self.parts]))


def _sorted(fingerprints: Array, times: Array) -> tuple[Array, Array]:
    order = np.argsort(fingerprints, kind="stable")
    return fingerprints[order], times[order]


def _body(fingerprints: Array, times: Array) -> bytes:
    return bytes(fingerprints.astype("<u4").tobytes() + times.astype("<i8").tobytes())


def _entries(body: bytes) -> tuple[Array, Array]:
    count = len(body) // 12
    return np.frombuffer(body, "<u4", count), np.frombuffer(body, "<i8", count, count * 4)


class Identities:
    """The index as one writing process uses it. Within a transaction: ``refresh``, ``suspects``, ``times``, ``write``; then ``keep`` or ``forget``."""

    def __init__(self, *, is_sqlite: bool) -> None:
        self._is_sqlite = is_sqlite
        self._capacity = _SEGMENT_SQLITE if is_sqlite else _SEGMENT_POSTGRESQL
        self.shard_count = SHARDS_SQLITE if is_sqlite else SHARDS_POSTGRESQL
        self._fingerprints: Fingerprinter | None = None
        mark = "?" if is_sqlite else "%s"
        self._newer = f"SELECT id, kind, body FROM usage_identity_run WHERE id >= {mark} AND id < {mark} ORDER BY id"  # noqa: S608 - marks
        self._insert = f"INSERT INTO usage_identity_run (id, kind, body) VALUES ({mark}, {mark}, {mark})"  # noqa: S608 - marks
        self.forget()

    def forget(self) -> None:
        """A transaction failed: what was learnt in it may not be so."""
        self._shards: dict[int, _Shard] = {}
        self._seen: dict[int, int] = {}
        self._staged: list[tuple[int, int, int, Array, Array]] = []

    def fingerprints(self, connection: sa.Connection) -> Fingerprinter:
        """How this database fingerprints identities."""
        if self._fingerprints is None:
            self._fingerprints = fingerprinter(connection)
        return self._fingerprints

    def refresh(self, connection: sa.Connection, shards: Iterable[int]) -> None:
        """Learn what other processes committed since. The shards are locked by the caller."""
        self.learn(connection, self.ask(connection, shards))

    def ask(self, connection: sa.Connection, shards: Iterable[int]) -> list[tuple[int, Any]]:
        """The first half of ``refresh``: ask for what is new, to be learnt once the answers are there."""
        driver: Any = connection.connection.driver_connection
        return [
            (number, driver.execute(self._newer, ((number << _SHARD_BITS) + self._seen.get(number, -1) + 1, (number + 1) << _SHARD_BITS)))
            for number in sorted(shards)
        ]

    def learn(self, connection: sa.Connection, asked: Iterable[tuple[int, Any]]) -> None:
        """The second half of ``refresh``."""
        for number, answer in asked:
            found = answer.fetchall()
            if number not in self._shards or any(kind == _REWRITTEN for _, kind, _ in found):
                self._reload(connection, number)
                continue
            for run_id, _, body in found:
                self._take(number, run_id, _APPENDED, body)

    def _take(self, number: int, run_id: int, kind: int, body: bytes) -> None:
        if body:
            self._shards[number].add(*_entries(bytes(body)))
        self._note_run(number, run_id - (number << _SHARD_BITS), is_loose=kind == _APPENDED)

    def _note_run(self, number: int, run: int, *, is_loose: bool) -> None:
        shard = self._shards[number]
        shard.loose += 1
        if not is_loose:
            shard.first_loose, shard.loose = run + 1, 0
        self._seen[number] = run

    def _reload(self, connection: sa.Connection, number: int) -> None:
        known = self._shards.get(number)
        shard = self._shards[number] = _Shard(self._capacity)
        low, high = number << _SHARD_BITS, (number + 1) << _SHARD_BITS
        if known is not None:
            # A finished segment never changes.
            shard.segments = known.segments
            low = ((number << (_SHARD_BITS - _NUMBER_BITS)) + max(known.segments, default=-1) + 1) << _NUMBER_BITS
        blocks = connection.exec_driver_sql(
            f"SELECT id, body FROM usage_identity_block WHERE id >= {low} AND id < {high} ORDER BY id",  # noqa: S608 - numbers
            execution_options={"yield_per": 1000},
        )
        gathered: dict[int, list[Array]] = {}
        for block_id, body in blocks:
            segment = (block_id >> _NUMBER_BITS) - (number << (_SHARD_BITS - _NUMBER_BITS))
            parts = gathered.setdefault(segment, [])
            parts.append(_entries(bytes(body))[0])
            if len(parts) >= 256:
                self._into(shard, segment, parts)
        for segment, parts in gathered.items():
            self._into(shard, segment, parts)
        self._seen[number] = -1
        runs = connection.exec_driver_sql(
            f"SELECT id, kind, body FROM usage_identity_run WHERE id >= {number << _SHARD_BITS} AND id < {high} ORDER BY id"  # noqa: S608 - numbers
        )
        for run_id, kind, body in runs:
            self._take(number, run_id, kind, body)

    def _into(self, shard: _Shard, segment: int, parts: list[Array]) -> None:
        if segment not in shard.segments:
            shard.segments[segment] = _Filter(self._capacity)
        if parts:
            shard.segments[segment].add(np.concatenate(parts))
            parts.clear()

    def suspects(self, number: int, fingerprints: Array) -> Array:
        """Which of these may stand already; all others certainly do not."""
        shard = self._shards[number]
        probe = _Probe(fingerprints, len(shard.open.words))
        found = shard.open.may_hold(probe) if shard.count else np.zeros(len(fingerprints), bool)
        for segment in shard.segments.values():
            found |= segment.may_hold(probe)
        return found

    def times(self, connection: sa.Connection, number: int, fingerprints: Array) -> dict[int, list[int]]:
        """At which times each of these may stand, oldest entry first."""
        shard = self._shards[number]
        found: dict[int, list[int]] = {}
        fingerprints = np.unique(fingerprints)
        probe = _Probe(fingerprints, len(shard.open.words))
        for segment in sorted(shard.segments):
            for asked in fingerprints[shard.segments[segment].may_hold(probe)].tolist():
                for time in _in_segment(connection, number, segment, asked):
                    found.setdefault(asked, []).append(time)
        for known, times in shard.parts:
            _meet(known, times, fingerprints, found)
        return found

    def write(self, connection: sa.Connection, number: int, fingerprints: Array, times: Array) -> None:
        """Add what a commit stores; known to this process once ``keep`` is called."""
        shard = self._shards[number]
        run = self._seen.get(number, -1) + 1
        if shard.count + len(fingerprints) >= self._capacity:
            self._finish_segment(connection, number, run, fingerprints, times)
            return
        kind, body = _APPENDED, _body(fingerprints, times)
        if shard.loose >= _MOST_RUNS:
            kind, body = _REWRITTEN, self._joined(connection, number, fingerprints, times)
            self._delete_runs(connection, number, shard.first_loose)
        self._insert_run(connection, number, run, kind, body)
        self._staged.append((number, run, kind, fingerprints, times))

    def _joined(self, connection: sa.Connection, number: int, fingerprints: Array, times: Array) -> bytes:
        """The runs that were not joined yet, and what comes now, as one."""
        low, high = (number << _SHARD_BITS) + self._shards[number].first_loose, (number + 1) << _SHARD_BITS
        driver: Any = connection.connection.driver_connection
        found = driver.execute(f"SELECT body FROM usage_identity_run WHERE id >= {low} AND id < {high} ORDER BY id").fetchall()  # noqa: S608 - numbers
        parts = [*(_entries(bytes(body)) for (body,) in found), (fingerprints, times)]
        return _body(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))

    def _finish_segment(self, connection: sa.Connection, number: int, run: int, fingerprints: Array, times: Array) -> None:
        shard = self._shards[number]
        whole = shard.whole()
        fingerprints, times = _sorted(np.concatenate((whole[0], fingerprints)), np.concatenate((whole[1], times)))
        segment = max(shard.segments, default=-1) + 1
        base = ((number << (_SHARD_BITS - _NUMBER_BITS)) + segment) << _NUMBER_BITS
        # Equal fingerprints stay together: a block is found by its first one.
        cuts = [0]
        while cuts[-1] < len(fingerprints):
            end = min(cuts[-1] + _BLOCK, len(fingerprints))
            cuts.append(int(np.searchsorted(fingerprints, fingerprints[end - 1], "right")))
        mark = "?" if self._is_sqlite else "%s"
        blocks = [(base + int(fingerprints[start]), _body(fingerprints[start:end], times[start:end])) for start, end in pairwise(cuts)]
        cursor: Any = connection.connection.cursor()
        cursor.executemany(f"INSERT INTO usage_identity_block (id, body) VALUES ({mark}, {mark})", blocks)  # noqa: S608 - marks
        cursor.close()
        self._delete_runs(connection, number, 0)
        self._insert_run(connection, number, run, _REWRITTEN, b"")
        self._staged.append((number, run, _FINISHED, fingerprints, times))

    def _delete_runs(self, connection: sa.Connection, number: int, first: int) -> None:
        low, high = (number << _SHARD_BITS) + first, (number + 1) << _SHARD_BITS
        driver: Any = connection.connection.driver_connection
        driver.execute(f"DELETE FROM usage_identity_run WHERE id >= {low} AND id < {high}")  # noqa: S608 - numbers

    def _insert_run(self, connection: sa.Connection, number: int, run: int, kind: int, body: bytes) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute(self._insert, ((number << _SHARD_BITS) + run, kind, body))

    def keep(self) -> None:
        """The transaction is on the disk: what it wrote is known."""
        for number, run, what, fingerprints, times in self._staged:
            shard = self._shards[number]
            if what == _FINISHED:
                segment = max(shard.segments, default=-1) + 1
                shard.segments[segment] = shard.open
                shard.open.add(fingerprints)
                shard.begin()
            else:
                shard.add(fingerprints, times)
            self._note_run(number, run, is_loose=what == _APPENDED)
        self._staged.clear()


def _meet(known: Array, times: Array, fingerprints: Array, found: dict[int, list[int]]) -> None:
    left, right = np.searchsorted(known, fingerprints, "left"), np.searchsorted(known, fingerprints, "right")
    for place in np.nonzero(right > left)[0].tolist():
        found.setdefault(int(fingerprints[place]), []).extend(times[left[place] : right[place]].tolist())


def _in_segment(connection: sa.Connection, number: int, segment: int, fingerprint: int) -> list[int]:
    base = ((number << (_SHARD_BITS - _NUMBER_BITS)) + segment) << _NUMBER_BITS
    body = connection.exec_driver_sql(
        f"SELECT body FROM usage_identity_block WHERE id >= {base} AND id <= {base + fingerprint} ORDER BY id DESC LIMIT 1"  # noqa: S608 - numbers
    ).scalar()
    if body is None:
        return []
    known, times = _entries(bytes(body))
    left, right = np.searchsorted(known, fingerprint, "left"), np.searchsorted(known, fingerprint, "right")
    found: list[int] = times[left:right].tolist()
    return found


# -- for readers --------------------------------------------------------------------------------------


def times_of(session: Session, identities: Iterable[tuple[int, int, str]]) -> Mapping[tuple[int, int, str], list[int]]:
    """The times (microseconds) at which events of these (workspace, source, id) may stand; look there and compare the id."""
    connection = session.connection()
    secret = connection.scalar(sa.text("SELECT value FROM setting WHERE name = :name"), {"name": _SECRET})
    asked = list(identities)
    if secret is None or not asked:
        return {}
    of = Fingerprinter(str(secret))(np.array([one[0] for one in asked]), np.array([one[1] for one in asked]), [short_id(one[2]) for one in asked])
    wanted = np.unique(of)
    found: dict[int, list[int]] = {}
    segments = _segments(connection)
    for number, segment in segments:
        for fingerprint in wanted.tolist():
            times = _in_segment(connection, number, segment, fingerprint)
            if times:
                found.setdefault(fingerprint, []).extend(times)
    for (body,) in connection.exec_driver_sql("SELECT body FROM usage_identity_run", execution_options={"yield_per": 100}):
        if body:
            known, times_there = _sorted(*_entries(bytes(body)))
            _meet(known, times_there, wanted, found)
    return {one: sorted(set(found[int(fingerprint)])) for one, fingerprint in zip(asked, of, strict=True) if int(fingerprint) in found}


def _segments(connection: sa.Connection) -> list[tuple[int, int]]:
    """Every finished segment, found by skipping from one to the next."""
    found: list[tuple[int, int]] = []
    low = 0
    while True:
        block = connection.exec_driver_sql(f"SELECT MIN(id) FROM usage_identity_block WHERE id >= {low}").scalar()  # noqa: S608 - a number
        if block is None:
            return found
        place = int(block) >> _NUMBER_BITS
        found.append((place >> (_SHARD_BITS - _NUMBER_BITS), place & ((1 << (_SHARD_BITS - _NUMBER_BITS)) - 1)))
        low = (place + 1) << _NUMBER_BITS


class Rebuilt:
    """The index made anew from stored events: for migrations, while nobody ingests."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._is_sqlite = connection.dialect.name == "sqlite"
        self._index = Identities(is_sqlite=self._is_sqlite)
        self._names = {row.id: row.name for row in connection.execute(sa.text("SELECT id, name FROM workspace"))}
        self._noted: dict[int, list[tuple[int, int, str, int]]] = {}

    def note(self, workspace_id: int, source_id: int, event_id: str, time: int) -> None:
        """One event that stands."""
        shard = shard_of(self._names.get(workspace_id, ""), is_sqlite=self._is_sqlite)
        noted = self._noted.setdefault(shard, [])
        noted.append((workspace_id, source_id, event_id, time))
        if len(noted) >= _SEGMENT_POSTGRESQL:
            self._write(shard)

    def write(self) -> None:
        """Store what was noted."""
        for shard in sorted(self._noted):
            self._write(shard)

    def _write(self, shard: int) -> None:
        noted = self._noted.pop(shard)
        of = self._index.fingerprints(self._connection)
        found = of(np.array([one[0] for one in noted]), np.array([one[1] for one in noted]), [short_id(one[2]) for one in noted])
        self._index.refresh(self._connection, [shard])
        self._index.write(self._connection, shard, found, np.array([one[3] for one in noted], "<i8"))
        self._index.keep()


def shard_of(workspace: str, *, is_sqlite: bool) -> int:
    """The shard of a workspace's identities, by its name."""
    return zlib.crc32(workspace.encode()) % (SHARDS_SQLITE if is_sqlite else SHARDS_POSTGRESQL)


def note(session: Session, workspace_id: int, source_id: int, event_id: str, time: int) -> None:
    """Add one identity by hand: for tests, while nobody ingests."""
    connection = session.connection()
    workspace = connection.scalar(sa.text("SELECT name FROM workspace WHERE id = :id"), {"id": workspace_id})
    shard = shard_of(str(workspace), is_sqlite=connection.dialect.name == "sqlite")
    fingerprint = fingerprinter(connection).one(workspace_id, source_id, event_id)
    low, high = shard << _SHARD_BITS, (shard + 1) << _SHARD_BITS
    last = connection.scalar(sa.text("SELECT MAX(id) FROM usage_identity_run WHERE id >= :low AND id < :high"), {"low": low, "high": high})
    connection.execute(
        sa.text("INSERT INTO usage_identity_run (id, kind, body) VALUES (:id, 0, :body)"),
        {"id": low if last is None else int(last) + 1, "body": _body(np.array([fingerprint], "<u4"), np.array([time], "<i8"))},
    )
