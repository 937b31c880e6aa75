"""Accepting usage: identity, first sight, group commit and the rollups. The one writer of events.

``Ingest.submit`` queues a batch; one thread takes everything that waits, decides, and commits events and rollups in
one transaction; only then are the answers given. A commit in flight is the window in which the next one gathers, so
that a busy service shares its disk syncs and a quiet one adds no delay.

Holds always: an accepted event is on the disk; the rollups of a commit are the sums of its events; what was decided
for one batch never depends on which others shared its commit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import date, datetime
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
import psycopg
import sqlalchemy as sa
from sqlalchemy import exc

from collector import witnesses
from collector.capture.columns import Array, EventColumns, Said, columns_of, summed
from collector.capture.event import CapturedEvent, ErrorClass, Item, Refusal
from models.columns import canonical_json, from_microseconds, to_microseconds
from models.errors import Unavailable
from models.identities import Identities, shard_of
from models.matching import full_name
from models.store import Store, quick, unavailable_as_such
from models.usage import (
    DAY_SECONDS,
    MINUTE_SECONDS,
    QUARTER_SECONDS,
    STATUS_CODE,
    Flag,
    Operation,
    Quality,
    Split,
    Status,
    flag_names,
    long_id,
    short_id,
    split_details,
)

logger = logging.getLogger(__name__)

_SECOND = 1_000_000
_CLOCK_TOLERANCE = 5 * 60 * _SECOND
_FAR_AHEAD = 30 * DAY_SECONDS * _SECOND
_RESTAMP_WINDOW = 3600 * _SECOND
MAX_QUEUED_EVENTS = 200_000
MAX_COMMIT_EVENTS = 20_000
_MAX_REMEMBERED = 200_000
_HOUR = 3600 * _SECOND
# From here on a batch is decided by columns; below it, row by row is quicker.
_BY_COLUMNS = 100
_LONG_ANSWER = 1_000
# Distinct combinations of tags that a source of a workspace may group by; tags with a value per call would make every call a series.
MAX_TAG_COMBINATIONS = 10_000
# On PostgreSQL a commit takes one number of a sequence, and its events the numbers behind it.
_SEQ_BITS = 20
# As plain numbers: arithmetic on enum members costs as much as the rest of a row.
_TIME_RECEIVED, _CLOCK_SKEW, _SYNTHETIC_ID = int(Flag.TIME_RECEIVED), int(Flag.CLOCK_SKEW), int(Flag.SYNTHETIC_ID)
_LATE, _TAGS_NOT_GROUPED, _RESTAMPED = int(Flag.LATE), int(Flag.TAGS_NOT_GROUPED), int(Flag.RESTAMPED)
_QUALITY_NAMES = [quality.name.lower() for quality in sorted(Quality)]
_MISSING, _ESTIMATED = int(Quality.MISSING), int(Quality.ESTIMATED)
_ERROR, _THROTTLED = STATUS_CODE[Status.ERROR], STATUS_CODE[Status.THROTTLED]
_UNBILLED_STATUS = frozenset({_ERROR, _THROTTLED})
_Identity = tuple[str, str, str]  # workspace, source, the sender's id
_LOCK_CLASS = 0x6D62  # advisory locks of PostgreSQL: a class of our own
# What PostgreSQL says of a transaction that lost a race and may simply be tried again: deadlock, serialization.
_LOST_RACE = frozenset({"40P01", "40001"})
# As long as a service may still commit what waits when it is told to end; what was not answered is sent again.
_STOP_SECONDS = 4


def closed_months(connection: sa.Connection) -> frozenset[date]:
    """The first days of the months that are closed: an event of theirs that arrives now is flagged ``late``."""
    found = quick(connection, "SELECT month FROM month_close WHERE reopened_at IS NULL").fetchall()
    # SQLite keeps a date as its text.
    return frozenset(month if isinstance(month, date) else date.fromisoformat(month) for (month,) in found)


class StoredCall(NamedTuple):
    """A stored event that names its call, for those who look for other witnesses of the same call."""

    time: int
    seq: int
    workspace_id: int
    source_id: int
    series_id: int
    quality: int
    event_id: str
    response_id: str | None
    request_id: str | None
    span_id: str | None  # trace and span together


class Link(Protocol):
    """What is told of every commit's calls, in its transaction and at its end; it must be quick."""

    def __call__(self, connection: sa.Connection, calls: Sequence[StoredCall], *, received: int, is_sqlite: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of one request, in its order; ``allowed`` are the workspaces its key may write (None = all)."""

    items: Sequence[Item]
    allowed: frozenset[str] | None = None
    home: str | None = None  # the workspace of a key that has exactly one


@dataclass(frozen=True, slots=True)
class Rejected:
    """One refused item of a batch."""

    index: int
    error: ErrorClass
    detail: str


@dataclass(frozen=True, slots=True)
class Stored:
    """One accepted or duplicate item of a batch with what it was flagged."""

    index: int
    is_duplicate: bool
    flags: int
    quality: int


@dataclass(slots=True)
class Verdict:
    """What became of a batch, once it is on the disk."""

    accepted: int = 0
    duplicates: int = 0
    ignored: int = 0
    unknown: int = 0  # of the accepted, those whose tokens nobody said
    estimated: int = 0  # of the accepted, those whose tokens are an estimate
    rejected: list[Rejected] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)  # of a long batch, only the remarkable ones

    def body(self) -> dict[str, Any]:
        """The answer of the ingest routes; beyond a thousand items only the remarkable ones are listed."""
        is_short = self.accepted + self.duplicates <= _LONG_ANSWER
        answer: dict[str, Any] = {
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "rejected": [{"index": one.index, "error": one.error, "detail": one.detail} for one in self.rejected],
        }
        if self.ignored:
            answer["ignored"] = self.ignored
        answer["events"] = [
            {"index": one.index, "duplicate": one.is_duplicate, "flags": flag_names(one.flags), "tokens_quality": _QUALITY_NAMES[one.quality]}
            for one in self.stored
            if is_short or one.flags or one.quality
        ]
        return answer


@dataclass(slots=True)
class _Waiting:
    batch: Batch
    future: Future[Verdict]


class _Content(NamedTuple):
    """All that an event says but its times: what a retry must say again."""

    endpoint: str
    deployment: str
    model: str
    operation: str
    fine_tuned: bool
    application: str
    team: str
    tags: str
    status: int
    billable: bool
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    reasoning_output_tokens: int | None
    details: dict[str, Any]


@dataclass(slots=True)
class _Known:
    """What already stands under an identity, in the database or earlier in this commit."""

    seq: int
    time: int  # as sent, in microseconds; the effective time where none was sent
    stands_at: int  # the effective time
    is_untimed: bool
    started_at: int | None
    content: _Content
    flags: int
    quality: int


@dataclass(slots=True)
class _SeriesRef:
    """A series by its names in the table's order (workspace and source by name); ``id`` None until it is needed."""

    named: tuple[Any, ...]
    id: int | None = None
    is_ungrouped: bool = False  # its tags are kept with each event only


@dataclass(slots=True)
class _Row:
    """An event that is decided by itself."""

    verdict: Verdict
    is_long: bool
    order: tuple[int, int]  # batch, place in it
    event: CapturedEvent
    identity: _Identity
    fingerprint: int | None = None


@dataclass(slots=True)
class _Group:
    """The events of a batch that are decided together; ``taken`` marks those that are new without doubt."""

    verdict: Verdict
    is_long: bool
    number: int
    items: Sequence[Item]
    columns: EventColumns
    homes: list[str | None]  # the workspace of each thing said, None where its events are decided one by one
    taken: Array
    fingerprints: Array
    workspace_ids: Array
    source_ids: Array
    series: list[_SeriesRef | None] = field(default_factory=list)


class _Refused(Exception):
    def __init__(self, error: ErrorClass, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(error, detail)


class Ingest:
    """The writer of events of one process. ``now`` is the server's clock."""

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        closed: Callable[[sa.Connection], frozenset[date]] = closed_months,
        link: Link | None = witnesses.link,
    ) -> None:
        self._store = store
        self._link = link
        self._now = now
        self._closed = closed
        self._waiting: deque[_Waiting] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._names = _Names(is_sqlite=store.is_sqlite)
        self._identities = Identities(is_sqlite=store.is_sqlite)
        self._told: list[Callable[[], None]] = []
        self._ending: list[Callable[[], None]] = []
        self.counters: dict[str, int] = {"accepted": 0, "duplicates": 0, "rejected": 0, "commits": 0, "failures": 0}

    # -- the queue ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin committing."""
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Commit what waits, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=_STOP_SECONDS)
        for told in self._ending:
            told()

    def when_stopped(self, told: Callable[[], None]) -> None:
        """Have ``told`` called once the last commit is made."""
        self._ending.append(told)

    def submit(self, batch: Batch) -> Future[Verdict]:
        """Queue a batch; the future is done once its events are on the disk, or fails with ``Unavailable``."""
        size = max(1, len(batch.items))
        waiting = _Waiting(batch, Future())
        with self._changed:
            if self._stopping:
                raise Unavailable("the service is stopping; send the same again in a moment", retry_after_seconds=2)
            if self._queued and self._queued + size > MAX_QUEUED_EVENTS:
                raise Unavailable(f"{self._queued} events wait to be stored; send the same again in a moment", retry_after_seconds=1)
            self._waiting.append(waiting)
            self._queued += size
            self._changed.notify()
        return waiting.future

    def when_answered(self, told: Callable[[], None]) -> None:
        """Have ``told`` called in the writer's thread each time it has answered everything of a commit; it must not fail."""
        self._told.append(told)

    def is_answering(self) -> bool:
        """Whether this is the writer's thread, so that ``when_answered`` follows."""
        return threading.current_thread() is self._thread

    def accept(self, batch: Batch) -> Verdict:
        """Submit and wait: for commands and tests."""
        return self.submit(batch).result()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                taken: list[_Waiting] = []
                events = 0
                while self._waiting and (not taken or events + len(self._waiting[0].batch.items) <= MAX_COMMIT_EVENTS):
                    taken.append(self._waiting.popleft())
                    events += max(1, len(taken[-1].batch.items))
                self._queued -= events
            # From here on a request that is given up can no longer cancel its batch; one that was needs no answer.
            taken = [waiting for waiting in taken if waiting.future.set_running_or_notify_cancel()]
            if taken:
                self._commit_all(taken)
                for told in self._told:
                    told()

    def _commit_all(self, taken: list[_Waiting]) -> None:
        try:
            verdicts = self._commit([waiting.batch for waiting in taken])
        except Exception as fault:
            self._forget()
            self.counters["failures"] += 1
            if len(taken) > 1 and not isinstance(fault, Unavailable):
                # One batch of several may be at fault: the neighbours must not pay for it.
                for waiting in taken:
                    self._commit_all([waiting])
                return
            if not isinstance(fault, Unavailable):
                logger.exception("usage could not be stored")
                fault = Unavailable("the usage could not be stored; the fault is in the service's log")
            for waiting in taken:
                waiting.future.set_exception(fault)
            return
        for waiting, verdict in zip(taken, verdicts, strict=True):
            self.counters["accepted"] += verdict.accepted
            self.counters["duplicates"] += verdict.duplicates
            self.counters["rejected"] += len(verdict.rejected)
            waiting.future.set_result(verdict)
        self.counters["commits"] += 1

    # -- one commit -----------------------------------------------------------------------------

    def _commit(self, batches: Sequence[Batch]) -> list[Verdict]:
        for _ in range(5):
            try:
                return self._attempt(batches)
            except (exc.IntegrityError, sqlite3.IntegrityError, psycopg.IntegrityError):
                pass  # Another process was quicker with one of these events.
            except Unavailable as fault:
                cause = getattr(fault.__cause__, "orig", fault.__cause__)
                if getattr(cause, "sqlstate", None) not in _LOST_RACE:
                    raise
            # Look again.
            self._forget()
        raise Unavailable("other writers kept storing the same events; send them again", retry_after_seconds=1)

    def _attempt(self, batches: Sequence[Batch]) -> list[Verdict]:
        with unavailable_as_such(), self._store.connection() as connection, connection.begin() as transaction:
            received = to_microseconds(self._now())
            commit = _Commit(connection, self._names, self._identities, received=received, closed=self._closed(connection))
            verdicts = commit.judge(batches)
            commit.write()
            if self._link is not None:
                calls = commit.calls()
                if calls:
                    self._link(connection, calls, received=received, is_sqlite=self._store.is_sqlite)
            transaction.commit()
            self._identities.keep()
            return verdicts

    def _forget(self) -> None:
        """A transaction was rolled back: what was learnt in it may not be so."""
        self._names.forget()
        self._identities.forget()


class _Names:
    """Ids of sources, workspaces and series, remembered across commits."""

    def __init__(self, *, is_sqlite: bool) -> None:
        self.is_sqlite = is_sqlite
        self.sources: dict[str, int] = {}
        self.workspaces: dict[str, int] = {}
        self.series: dict[tuple[Any, ...], _SeriesRef] = {}
        self.bindings: dict[tuple[str, str, str], str] = {}
        self.said_by: dict[int, tuple[Any, ...]] = {}  # a series' names by its id, from the endpoint on
        self.tagged: dict[tuple[int, int], set[int]] = {}  # hashes of the tags that a workspace's source is grouped by
        self.seq = -1  # the last one given, -1 before the first look
        self.writer = os.getpid() % 2**31

    def forget(self) -> None:
        """A transaction was rolled back: what it named may not exist."""
        self.sources.clear()
        self.workspaces.clear()
        self.series.clear()
        self.bindings.clear()
        self.said_by.clear()
        self.tagged.clear()
        self.seq = -1

    def trim(self) -> None:
        """Keep memory bounded, whatever names are sent."""
        kept: tuple[dict[Any, Any], ...] = (self.sources, self.workspaces, self.series, self.bindings, self.said_by, self.tagged)
        for names in kept:
            if len(names) > _MAX_REMEMBERED:
                names.clear()


_EVENT_COLUMNS = (
    "time, workspace_id, source_id, event_id, seq, series_id, status, billable, input_tokens, output_tokens, cached_input_tokens, "
    "reasoning_output_tokens, quality, is_unknown, flags, received_at, sent_time, started_at, duration_ms, response_id, request_id, details"
)
_ROLLUP_SUMS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens", "unknown_requests", "estimated_requests")
_ROLLUP_COLUMNS = ("starts_at", "series_id", "known_on", "outcome", *_ROLLUP_SUMS)
_STANDING = (
    "e.seq, e.time, e.sent_time, e.started_at, e.series_id, e.status, e.billable, e.input_tokens, e.output_tokens, e.cached_input_tokens, "
    "e.reasoning_output_tokens, e.flags, e.quality, e.duration_ms, e.response_id, e.request_id, e.details"
)


class _Commit:
    """The decisions and writes of one transaction.

    Most events are new: no filter knows their identity, and none of the same commit shares it. Those are taken by
    columns. All others are decided one by one, in the order of their batches, so that sharing a commit changes nothing.
    """

    def __init__(self, connection: sa.Connection, names: _Names, identities: Identities, *, received: int, closed: frozenset[date]) -> None:
        self._connection = connection
        self._names = names
        self._identities = identities
        self._received = received
        self._closed = closed
        self._rows: list[tuple[Any, ...]] = []
        # Of the rows: shards, fingerprints and times, in pieces; of those decided one by one, the identity where it was too new to have one.
        self._stored: list[tuple[Array, Array, Array]] = []
        self._single: list[tuple[_Row, int]] = []
        self._groups: list[_Group] = []
        self._standing: dict[_Identity, list[_Known]] = defaultdict(list)
        self._conflicts: list[tuple[_Known, CapturedEvent]] = []
        self._twins: list[tuple[int, int, int, int]] = []  # seq and time of an event, and of the one it may repeat
        self._sums: tuple[dict[Any, list[int]], dict[Any, list[int]]] = {}, {}
        # What was looked for in vain: a thousand events of a new workspace ask once.
        self._nowhere: set[tuple[str, str, str]] = set()
        self._absent: set[tuple[str, str]] = set()
        self._seq = 0

    def judge(self, batches: Sequence[Batch]) -> list[Verdict]:
        """Decide every item of every batch, in their order."""
        verdicts = [Verdict() for _ in batches]
        rows: list[_Row] = []
        for number, (batch, verdict) in enumerate(zip(batches, verdicts, strict=True)):
            rows += self._opened(number, batch, verdict)
        self._lock({row.identity[0] for row in rows} | {home for group in self._groups for home in group.homes if home is not None})
        for group in self._groups:
            self._place(group)
        rows += self._doubtful(rows)
        rows.sort(key=lambda row: row.order)
        rows += self._name_series()
        self._take_numbers()
        for group in self._groups:
            self._accept(group)
        for row in rows:
            try:
                self._decide(row)
            except _Refused as refused:
                row.verdict.rejected.append(Rejected(row.order[1], refused.refusal.error, refused.refusal.detail))
        for verdict in verdicts:
            verdict.rejected.sort(key=lambda one: one.index)
            verdict.stored.sort(key=lambda one: one.index)
        return verdicts

    def _opened(self, number: int, batch: Batch, verdict: Verdict) -> list[_Row]:
        """The items of a batch that are decided one by one; the others become a group."""
        items, places = batch.items, range(len(batch.items))
        is_long = len(items) > _LONG_ANSWER
        columns = _columns(items) if len(items) >= _BY_COLUMNS else None
        singles: Iterable[int] = places
        if columns is not None:
            homes = [self._plain_home(said, batch) for said in columns.said]
            is_plain = np.array([home is not None for home in homes], bool)[columns.codes] & (columns.times <= self._received + _CLOCK_TOLERANCE)
            if self._closed:
                is_plain &= columns.times >= max(_month_end(month) for month in self._closed)
            empty = np.zeros(0, np.int64)
            self._groups.append(_Group(verdict, is_long, number, items, columns, homes, is_plain, empty, empty, empty))
            singles = sorted([*columns.rest, *columns.index[~is_plain].tolist()])
        rows: list[_Row] = []
        for place in singles:
            item = items[place]
            if isinstance(item, CapturedEvent):
                try:
                    self._check_time(item)
                    workspace = self._home(item, batch)
                except _Refused as refused:
                    verdict.rejected.append(Rejected(place, refused.refusal.error, refused.refusal.detail))
                    continue
                rows.append(_Row(verdict, is_long, (number, place), item, (workspace, item.source, item.id or _synthetic_id(item))))
            elif isinstance(item, Refusal):
                verdict.rejected.append(Rejected(place, item.error, item.detail))
            else:
                verdict.ignored += 1
        return rows

    def _plain_home(self, said: Said, batch: Batch) -> str | None:
        """The workspace of what needs no second thought."""
        workspace = said.workspace or batch.home
        is_placed = said.endpoint or said.deployment or not said.is_native
        return workspace if is_placed and (batch.allowed is None or workspace in batch.allowed) else None

    def _place(self, group: _Group) -> None:
        """Number a group's workspaces and sources, and fingerprint its identities."""
        pairs = [
            (0, 0) if home is None else (self._workspace(home), self._source(said.source)) for home, said in zip(group.homes, group.columns.said, strict=True)
        ]
        numbers = np.array(pairs, np.int64)[group.columns.codes]
        group.workspace_ids, group.source_ids = numbers[:, 0], numbers[:, 1]
        of = self._identities.fingerprints(self._connection)
        group.fingerprints = of(group.workspace_ids, group.source_ids, group.columns.short_ids)

    def _doubtful(self, rows: Sequence[_Row]) -> list[_Row]:
        """Load what stands under the identities that may be known; of the groups, give those that are or that come twice."""
        asked = self._fingerprint(rows)
        shards = [self._shard(row.identity[0]) for row in asked]
        pieces = [np.array([row.fingerprint for row in asked], "<u4"), *(group.fingerprints for group in self._groups)]
        of_shard = [np.array(shards, np.int64), *(self._shards(group)[group.columns.codes] for group in self._groups)]
        fingerprints, shard_of_each = np.concatenate(pieces), np.concatenate(of_shard)
        if not len(fingerprints):
            return []
        known = np.zeros(len(fingerprints), bool)
        times: dict[tuple[int, int], list[int]] = {}
        for shard in np.unique(shard_of_each).tolist():
            here = shard_of_each == shard
            suspects = self._identities.suspects(shard, fingerprints[here])
            known[here] = suspects
            if suspects.any():
                found = self._identities.times(self._connection, shard, fingerprints[here][suspects])
                times.update({(shard, fingerprint): at for fingerprint, at in found.items()})
        met = known | _repeated(fingerprints) if self._groups else known
        new: list[_Row] = []
        start = len(asked)
        for group in self._groups:
            columns = group.columns
            doubtful = met[start : start + len(group.fingerprints)] & group.taken
            start += len(group.fingerprints)
            for at in np.nonzero(doubtful)[0].tolist():
                place, said = int(columns.index[at]), columns.said[columns.codes[at]]
                event = group.items[place]
                if isinstance(event, CapturedEvent):
                    home = group.homes[columns.codes[at]] or ""
                    new.append(
                        _Row(group.verdict, group.is_long, (group.number, place), event, (home, said.source, columns.ids[at]), int(group.fingerprints[at]))
                    )
            group.taken = group.taken & ~doubtful
        candidates: dict[_Identity, list[int]] = {}
        for row in (*asked, *new):
            found_at = times.get((self._shard(row.identity[0]), row.fingerprint or 0))
            if found_at:
                candidates[row.identity] = found_at
        self._load(candidates)
        return new

    def _fingerprint(self, rows: Sequence[_Row]) -> list[_Row]:
        """Fingerprint rows; those whose workspace or source is new stand nowhere and are left out."""
        found: list[_Row] = []
        numbers: list[tuple[int, int]] = []
        for row in rows:
            workspace, source, _ = row.identity
            workspace_id = self._names.workspaces.get(workspace) or self._find("workspace", workspace, self._names.workspaces)
            source_id = self._names.sources.get(source) or self._find("usage_source", source, self._names.sources)
            if workspace_id is not None and source_id is not None:
                found.append(row)
                numbers.append((workspace_id, source_id))
        if found:
            pairs = np.array(numbers, np.int64)
            of = self._identities.fingerprints(self._connection)
            for row, fingerprint in zip(found, of(pairs[:, 0], pairs[:, 1], [short_id(row.identity[2]) for row in found]).tolist(), strict=True):
                row.fingerprint = fingerprint
        return found

    def _name_series(self) -> list[_Row]:
        """The series of what groups take; events whose tags are too many to group by are given back."""
        back: list[_Row] = []
        for group in self._groups:
            columns = group.columns
            used = set(np.unique(columns.codes[group.taken]).tolist())
            ungrouped: list[int] = []
            for code, (said, home) in enumerate(zip(columns.said, group.homes, strict=True)):
                series = None
                if code in used and home is not None:
                    series = self._series((home, said.source, *said[2:10]))
                    if series.id is None:
                        self._insert_series(series)
                    if series.is_ungrouped:
                        ungrouped.append(code)
                group.series.append(series)
            if ungrouped:
                others = np.isin(columns.codes, ungrouped) & group.taken
                for at in np.nonzero(others)[0].tolist():
                    place, said = int(columns.index[at]), columns.said[columns.codes[at]]
                    event = group.items[place]
                    if isinstance(event, CapturedEvent):
                        home = group.homes[columns.codes[at]] or ""
                        identity = home, said.source, columns.ids[at]
                        back.append(_Row(group.verdict, group.is_long, (group.number, place), event, identity, int(group.fingerprints[at])))
                group.taken = group.taken & ~others
        return back

    def _take_numbers(self) -> None:
        """Where this commit's order of arrival begins."""
        if not self._names.is_sqlite:
            self._seq = int(quick(self._connection, "SELECT nextval('usage_commit')").fetchone()[0]) << _SEQ_BITS
            return
        newest = "" if self._names.seq < 0 else " WHERE arrived_at = (SELECT MAX(arrived_at) FROM usage_arrival)"
        last = quick(self._connection, f"SELECT MAX(last_seq) FROM usage_arrival{newest}").fetchone()[0]  # noqa: S608 - names of ours
        self._seq = max(last or 0, self._names.seq) + 1

    def _accept(self, group: _Group) -> None:
        """Everything a group has left is new."""
        columns, taken = group.columns, group.taken
        if not taken.all():
            columns = columns.only(taken)
            group.workspace_ids, group.source_ids, group.fingerprints = group.workspace_ids[taken], group.source_ids[taken], group.fingerprints[taken]
        chosen, count = columns.index, len(columns.index)
        group.verdict.accepted += count
        listed = np.nonzero((columns.flags != 0) | (columns.quality != 0))[0] if group.is_long else np.arange(count)
        places, flags, quality = chosen[listed].tolist(), columns.flags[listed].tolist(), columns.quality[listed].tolist()
        group.verdict.stored += [Stored(place, False, flag, good) for place, flag, good in zip(places, flags, quality, strict=True)]
        if not count:
            return
        shards = self._shards(group)[columns.codes]
        self._stored.append((shards, group.fingerprints, columns.times))
        first = self._seq
        self._seq += count
        series = np.array([0 if one is None else one.id for one in group.series], np.int64)[columns.codes]
        is_unknown = columns.billable & (columns.quality == _MISSING) & (columns.status != _ERROR) & (columns.status != _THROTTLED)
        group.verdict.unknown += int(is_unknown.sum())
        group.verdict.estimated += int((columns.quality == _ESTIMATED).sum())
        self._rows += zip(
            columns.times.tolist(),
            group.workspace_ids.tolist(),
            group.source_ids.tolist(),
            columns.short_ids if self._names.is_sqlite else columns.ids,
            range(first, first + count),
            series.tolist(),
            columns.status.tolist(),
            columns.billable.tolist(),
            columns.inputs,
            columns.outputs,
            columns.cached,
            columns.reasoning,
            columns.quality.tolist(),
            is_unknown.tolist(),
            columns.flags.tolist(),
            [self._received] * count,
            [None] * count,
            columns.started,
            columns.durations,
            self._texts(columns.response_ids),
            self._texts(columns.request_ids),
            columns.details,
            strict=True,
        )
        self._roll_up(columns, series, is_unknown)

    def _roll_up(self, columns: EventColumns, series: Array, is_unknown: Array) -> None:
        counted = np.column_stack(
            (
                np.ones(len(series), np.int64),
                summed(columns.inputs),
                summed(columns.outputs),
                summed(columns.cached),
                summed(columns.reasoning),
                is_unknown,
                columns.quality == _ESTIMATED,
            )
        )
        seconds = columns.times // _SECOND
        outcome = columns.status * 2 + columns.billable
        keys = np.column_stack((seconds, series, outcome))
        quarters, minutes = self._sums
        # Quarter hours are sums of the minutes: few rows, where there were thousands.
        for width, sums in ((MINUTE_SECONDS, minutes), (QUARTER_SECONDS, quarters)):
            keys[:, 0] -= keys[:, 0] % width
            keys, counted = _totals(keys, counted)
            for key, total in zip(map(tuple, keys.tolist()), counted.tolist(), strict=True):
                into = sums.get(key)
                sums[key] = total if into is None else [left + right for left, right in zip(into, total, strict=True)]

    # -- where it belongs -----------------------------------------------------------------------

    def _home(self, event: CapturedEvent, batch: Batch) -> str:
        """The workspace of the event's identity. Nothing is written for an event that is refused."""
        workspace = event.workspace or batch.home
        if workspace is None:
            return self._resolved_workspace(event, batch.allowed)
        if batch.allowed is not None and workspace not in batch.allowed:
            raise _Refused("forbidden_workspace", f"this key may not write usage of workspace {workspace[:80]!r}")
        return workspace

    def _resolved_workspace(self, event: CapturedEvent, allowed: frozenset[str] | None) -> str:
        """The workspace this (source, endpoint, deployment) was first resolved to, else the only one the registry knows it in."""
        key = (event.source, event.endpoint or "", event.deployment or "")
        found = self._names.bindings.get(key)
        if found is None and (key[1] or key[2]) and key not in self._nowhere:
            found = self._bound(key)
            if found is None:
                place = self._only_place(key)
                if place is not None:
                    found = self._bind(key, place) if allowed is None or place in allowed else place
        if found is None:
            self._nowhere.add(key)
            raise _Refused(
                "schema_invalid",
                "workspace is missing, and the inventory names no single one for this deployment; send the field workspace, "
                "or the header x-meterbridge-workspace",
            )
        if allowed is not None and found not in allowed:
            # Not named: it was not the sender who said it.
            raise _Refused("forbidden_workspace", "workspace is missing, and the one that the inventory names for this deployment is not this key's")
        return found

    def _bound(self, key: tuple[str, str, str]) -> str | None:
        source_id = self._find("usage_source", key[0], self._names.sources)
        if source_id is None:
            return None
        query = (
            "SELECT w.name FROM shard_binding b JOIN workspace w ON w.id = b.workspace_id "
            "WHERE b.source_id = :source AND b.endpoint = :endpoint AND b.deployment = :deployment"
        )
        found = self._connection.scalar(sa.text(query), {"source": source_id, "endpoint": key[1], "deployment": key[2]})
        if found is None:
            return None
        self._names.bindings[key] = str(found)
        return str(found)

    def _only_place(self, key: tuple[str, str, str]) -> str | None:
        places = self._connection.scalars(
            sa.text(
                "SELECT DISTINCT workspace FROM deployment_fact WHERE known_to IS NULL AND source <> 'usage' "
                "AND (lower(name) = lower(:name) OR lower(deployment) = lower(:name) OR lower(endpoint) = lower(:name)) LIMIT 2"
            ),
            {"name": full_name(key[1], key[2]) or ""},
        ).all()
        return str(places[0]) if len(places) == 1 else None

    def _bind(self, key: tuple[str, str, str], workspace: str) -> str:
        """Keep for ever where it was first resolved to; another process may have been first."""
        self._connection.execute(
            sa.text(
                "INSERT INTO shard_binding (source_id, endpoint, deployment, workspace_id, bound_at) "
                "VALUES (:source, :endpoint, :deployment, :workspace, :at) ON CONFLICT DO NOTHING"
            ),
            {"source": self._source(key[0]), "endpoint": key[1], "deployment": key[2], "workspace": self._workspace(workspace), "at": self._received},
        )
        return self._bound(key) or workspace

    def _only_deployment(self, workspace: str) -> str:
        """Which deployment a native event means that names none: the registry's only one of the workspace."""
        names = self._connection.scalars(
            sa.text("SELECT DISTINCT name FROM deployment_fact WHERE known_to IS NULL AND source <> 'usage' AND workspace = :workspace LIMIT 2"),
            {"workspace": workspace},
        ).all()
        if len(names) != 1:
            raise _Refused("schema_invalid", "deployment is missing; send the field deployment or endpoint (or the header x-meterbridge-deployment)")
        return str(names[0])

    def _find(self, table: str, name: str, known: dict[str, int]) -> int | None:
        """The id of a source or workspace, None where there is none yet."""
        found = known.get(name)
        if found is None and (table, name) not in self._absent:
            found = self._connection.scalar(sa.text(f"SELECT id FROM {table} WHERE name = :name"), {"name": name})  # noqa: S608 - names of ours
            if found is None:
                self._absent.add((table, name))
            else:
                known[name] = found
        return found

    def _source(self, name: str) -> int:
        found = self._find("usage_source", name, self._names.sources)
        if found is None:
            found = self._names.sources[name] = self._id_of("usage_source", {"name": name}, key="name")
        return found

    def _workspace(self, name: str) -> int:
        found = self._find("workspace", name, self._names.workspaces)
        if found is None:
            found = self._names.workspaces[name] = self._id_of("workspace", {"name": name, "first_seen_at": self._received}, key="name")
            self._note_workspace(name)
        return found

    def _id_of(self, table: str, values: Mapping[str, Any], *, key: str) -> int:
        """The id of the row with that key, inserted if it is new; two processes may race for it."""
        select = sa.text(f"SELECT id FROM {table} WHERE {key} = :key")  # noqa: S608 - names of ours
        found = self._connection.scalar(select, {"key": values[key]})
        if found is None:
            columns = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            self._connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"), dict(values))  # noqa: S608 - names of ours
            found = self._connection.scalar(select, {"key": values[key]})
        return int(found)

    def _check_time(self, event: CapturedEvent) -> None:
        if event.time is not None and event.is_native_time and event.time > self._received + _FAR_AHEAD:
            raise _Refused("invalid_time", "time is more than 30 days ahead of the server's clock; send the end of the call in UTC")

    # -- identity -------------------------------------------------------------------------------

    def _shard(self, workspace: str) -> int:
        return shard_of(workspace, is_sqlite=self._names.is_sqlite)

    def _shards(self, group: _Group) -> Array:
        """The shard of each thing that a group's events say."""
        return np.array([0 if home is None else self._shard(home) for home in group.homes], np.int64)

    def _lock(self, workspaces: set[str]) -> None:
        """Wait for other processes that write to these workspaces, then learn what they stored.

        The unique key is led by the time, and a retry with another time (restamped, untimed or from a clock ahead) would
        pass it by. SQLite has one writer anyway; on PostgreSQL a workspace has one at a time.
        """
        shards = {self._shard(workspace) for workspace in workspaces}
        if not self._names.is_sqlite:
            # In order: two processes wait for each other instead of deadlocking.
            for shard in sorted(shards):
                quick(self._connection, "SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK_CLASS, shard))
            # Whoever held the lock may have made what was not there a moment ago.
            self._absent.clear()
        self._identities.refresh(self._connection, shards)

    def _load(self, candidates: Mapping[_Identity, Sequence[int]]) -> None:
        """What stands under these identities at these times, in the order of arrival."""
        asked = [
            (at, self._names.workspaces[workspace], self._names.sources[source], event_id, (workspace, source, event_id))
            for (workspace, source, event_id), times in candidates.items()
            for at in times
        ]
        found: list[tuple[_Identity, Any]] = []
        if self._names.is_sqlite:
            cursor = self._connection.connection.cursor()
            query = f"SELECT {_STANDING} FROM usage_event e WHERE e.time = ? AND e.workspace_id = ? AND e.source_id = ? AND e.event_id = ?"  # noqa: S608 - names of ours
            for at, workspace_id, source_id, event_id, identity in asked:
                row = cursor.execute(query, (at, workspace_id, source_id, short_id(event_id))).fetchone()
                if row is not None:
                    found.append((identity, row))
            cursor.close()
        elif asked:
            query = (
                f"SELECT q.n, {_STANDING} FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::int[]) AS q(t, w, s, i, n) "  # noqa: S608 - names of ours
                "JOIN usage_event e ON e.time = q.t AND e.workspace_id = q.w AND e.source_id = q.s AND e.event_id = q.i"
            )
            columns = [[one[place] for one in asked] for place in range(4)]
            for number, *row in self._connection.exec_driver_sql(query, (*columns, list(range(len(asked))))):
                found.append((asked[number][4], row))
        for identity, row in sorted(found, key=lambda one: one[1][0]):
            seq, at, sent, started, series_id, status, billable, inputs, outputs, cached, reasoning, flags, quality, *split = row
            said = self._said_by(series_id)
            duration, response, request, details = split
            kept = Split(duration, None if response is None else long_id(response), None if request is None else long_id(request), details).whole()
            if flags & _TAGS_NOT_GROUPED:
                said = (*said[:7], str(kept.pop("tags", "{}")))
            content = _Content._make((*said, status, bool(billable), inputs, outputs, cached, reasoning, kept))
            standing = self._standing[identity]
            if all(one.seq != seq for one in standing):
                standing.append(_Known(seq, at if sent is None else sent, at, bool(flags & _TIME_RECEIVED), started, content, flags, quality))

    def _said_by(self, series_id: int) -> tuple[Any, ...]:
        """The names of a series, from its endpoint to its tags."""
        found = self._names.said_by.get(series_id)
        if found is None:
            row = self._connection.execute(
                sa.text("SELECT endpoint, deployment, model, operation, fine_tuned, application, team, tags FROM usage_series WHERE id = :id"),
                {"id": series_id},
            ).one()
            found = self._names.said_by[series_id] = (*row[:4], bool(row[4]), *row[5:])
        return found

    def _decide(self, row: _Row) -> None:
        event, verdict, index = row.event, row.verdict, row.order[1]
        standing = self._standing.get(row.identity)
        twin: _Known | None = None
        for known in standing or ():
            restamped = 0
            if not _says_the_same(event, known.content):
                is_same = False
            elif event.time is None or known.is_untimed:
                is_same = True
            elif event.time == known.time:
                # The start is part of the content of one and the same time; a restamping retry restamps it too.
                is_same = event.started_at == known.started_at
            elif abs(event.time - known.time) <= _RESTAMP_WINDOW:
                is_same, restamped = True, _RESTAMPED
            else:
                # Another time by more than an hour: stored, and looked at in the night.
                twin = twin or known
                continue
            if is_same:
                verdict.duplicates += 1
                flags = known.flags | restamped
                if not row.is_long or flags or known.quality:
                    verdict.stored.append(Stored(index, True, flags, known.quality))
            else:
                self._conflicts.append((known, event))
                verdict.rejected.append(Rejected(index, "conflict", "an event with this id stands already with other content; the first one counts"))
            return
        deployment = event.deployment
        if event.is_native_time and not event.deployment and not event.endpoint:
            # Only now: what was stored once is a duplicate, whatever the registry says today.
            deployment = self._only_deployment(row.identity[0])
        known = self._add_row(row, deployment)
        if twin is not None:
            self._twins.append((known.seq, known.stands_at, twin.seq, twin.stands_at))
        self._standing[row.identity].append(known)
        verdict.accepted += 1
        if not row.is_long or known.flags or known.quality:
            verdict.stored.append(Stored(index, False, known.flags, known.quality))

    # -- the rows -------------------------------------------------------------------------------

    def _series(self, key: tuple[Any, ...]) -> _SeriesRef:
        """A series by its names; one that is not stored yet has no id, so that a refused event leaves no trace."""
        found = self._names.series.get(key)
        if found is None:
            found = self._names.series[key] = _SeriesRef(key)
        return found

    def _insert_series(self, series: _SeriesRef) -> None:
        names = ("workspace_id", "source_id", "endpoint", "deployment", "model", "operation", "fine_tuned", "application", "team", "tags")
        row = [self._workspace(series.named[0]), self._source(series.named[1]), *series.named[2:]]
        if row[-1] != "{}" and not self._may_group(row[0], row[1], row[-1]):
            row[-1], series.is_ungrouped = "{}", True
        digest = hashlib.blake2b(canonical_json(row).encode(), digest_size=16).digest()
        series.id = self._id_of("usage_series", {**dict(zip(names, row, strict=True)), "digest": digest}, key="digest")
        self._note_deployment(series.named)

    def _may_group(self, workspace_id: int, source_id: int, tags: str) -> bool:
        """Whether these tags are among those that this sender of this workspace is grouped by, or there is room for them."""
        known = self._names.tagged.get((workspace_id, source_id))
        if known is None:
            query = sa.text("SELECT DISTINCT tags FROM usage_series WHERE workspace_id = :workspace AND source_id = :source AND tags <> '{}'")
            found = self._connection.scalars(query, {"workspace": workspace_id, "source": source_id})
            known = self._names.tagged[workspace_id, source_id] = {hash(one) for one in found}
        if len(known) >= MAX_TAG_COMBINATIONS:
            return hash(tags) in known
        known.add(hash(tags))
        return True

    def _add_row(self, row: _Row, deployment: str | None) -> _Known:
        event, (workspace, source, event_id) = row.event, row.identity
        tags = canonical_json(event.tags) if event.tags else "{}"
        series = self._series(
            (
                workspace, source, event.endpoint or "", deployment or "", event.model or "", event.operation.value,
                event.fine_tuned, event.application or "", event.team or "", tags,
            )
        )  # fmt: skip
        if series.id is None:
            self._insert_series(series)
        series_id = series.id or 0
        workspace_id = self._names.workspaces.get(workspace) or self._workspace(workspace)
        source_id = self._names.sources.get(source) or self._source(source)
        received = self._received
        flags, sent = int(event.flags), None
        if event.time is None:
            time, flags = received, flags | _TIME_RECEIVED
        elif event.time > received + _CLOCK_TOLERANCE:
            time, sent, flags = received, event.time, flags | _CLOCK_SKEW
        else:
            time = event.time
        if event.id is None:
            flags |= _SYNTHETIC_ID
        if self._closed and from_microseconds(time).date().replace(day=1) in self._closed:
            flags |= _LATE
        details: Mapping[str, Any] = event.details
        if series.is_ungrouped:
            flags |= _TAGS_NOT_GROUPED
            details = {**details, "tags": tags}
        quality = int(event.quality)
        status = STATUS_CODE[event.status]
        is_unknown = event.billable and quality == _MISSING and status not in _UNBILLED_STATUS
        row.verdict.unknown += is_unknown
        row.verdict.estimated += quality == _ESTIMATED
        outcome = status * 2 + event.billable
        inputs, outputs, cached, reasoning = event.input_tokens, event.output_tokens, event.cached_input_tokens, event.reasoning_output_tokens
        seconds = time // _SECOND
        for sums, width in zip(self._sums, (QUARTER_SECONDS, MINUTE_SECONDS), strict=True):
            key = (seconds - seconds % width, series_id, outcome)
            into = sums.get(key)
            if into is None:
                into = sums[key] = [0, 0, 0, 0, 0, 0, 0]
            into[0] += 1
            into[1] += inputs or 0
            into[2] += outputs or 0
            into[3] += cached or 0
            into[4] += reasoning or 0
            into[5] += is_unknown
            into[6] += quality == _ESTIMATED
        split = split_details(details)
        seq = self._seq
        self._seq += 1
        self._single.append((row, time))
        self._rows.append(
            (
                time, workspace_id, source_id, short_id(event_id) if self._names.is_sqlite else event_id, seq, series_id, status, event.billable,
                inputs, outputs, cached, reasoning, quality, is_unknown, flags, received, sent, event.started_at,
                split.duration_ms, *self._texts((split.response_id, split.request_id)), split.details,
            )
        )  # fmt: skip
        content = _Content._make((*series.named[2:], status, event.billable, inputs, outputs, cached, reasoning, dict(event.details)))
        return _Known(seq, time if sent is None else sent, time, event.time is None, event.started_at, content, flags, quality)

    def _texts(self, texts: Sequence[str | None]) -> Sequence[str | bytes | None]:
        """Ids as this database keeps them."""
        if not self._names.is_sqlite or texts.count(None) == len(texts):
            return texts
        return [None if text is None else short_id(text) for text in texts]

    # -- first sight ----------------------------------------------------------------------------

    def _note_workspace(self, name: str) -> None:
        known = self._connection.scalar(sa.text("SELECT 1 FROM workspace_fact WHERE workspace = :name AND known_to IS NULL LIMIT 1"), {"name": name})
        if known is None:
            self._connection.execute(
                sa.text("INSERT INTO workspace_fact (workspace, kind, source, author, known_from) VALUES (:name, 'workspace', 'usage', '', :at)"),
                {"name": name, "at": self._received},
            )

    def _note_deployment(self, named: Sequence[Any]) -> None:
        """List a deployment that usage shows for the first time, unconfirmed."""
        workspace, endpoint, deployment, model = named[0], named[2], named[3], named[4]
        name = full_name(endpoint, deployment)
        if name is None:
            return
        known = self._connection.scalar(
            sa.text("SELECT 1 FROM deployment_fact WHERE workspace = :workspace AND name = :name AND known_to IS NULL LIMIT 1"),
            {"workspace": workspace, "name": name},
        )
        if known is None:
            self._connection.execute(
                sa.text(
                    "INSERT INTO deployment_fact (workspace, name, endpoint, deployment, mode, model, source, author, known_from) "
                    "VALUES (:workspace, :name, :endpoint, :deployment, 'unknown', :model, 'usage', '', :at)"
                ),
                {
                    "workspace": workspace,
                    "name": name,
                    "endpoint": endpoint or deployment,
                    "deployment": deployment or endpoint,
                    "model": model or None,
                    "at": self._received,
                },
            )

    # -- writing --------------------------------------------------------------------------------

    def write(self) -> None:
        """Insert events, identities, rollups and evidence; ``IntegrityError`` if another process stored one of the events meanwhile."""
        if self._rows:
            # Events of a minute are neighbours in the key.
            self._rows.sort(key=itemgetter(0))
            self._write_events()
            self._write_identities()
            known_on = self._received // _SECOND // DAY_SECONDS
            for table, sums in zip(("usage_quarter", "usage_minute"), self._sums, strict=True):
                # In key order: two processes that meet in the same rows wait for each other instead of deadlocking.
                rows = [(starts_at, series_id, known_on, outcome, *counts) for (starts_at, series_id, outcome), counts in sorted(sums.items())]
                self._upsert(table, _ROLLUP_COLUMNS, 4, rows)
            self._write_arrivals()
            self._names.seq = self._seq - 1
        self._write_conflicts()
        if self._twins:
            marks = ", ".join(["?" if self._names.is_sqlite else "%s"] * 4)
            self._connection.exec_driver_sql(f"INSERT INTO usage_twin (seq, time, of_seq, of_time) VALUES ({marks})", self._twins)  # noqa: S608 - names of ours
        self._names.trim()

    def calls(self) -> list[StoredCall]:
        """What was stored and names its call by response, request or span (a trace alone is shared by every retry)."""
        found: list[StoredCall] = []
        # Most name none; those must cost next to nothing.
        for row in [row for row in self._rows if row[19] is not None or row[20] is not None or (row[21] is not None and '"span_id"' in row[21])]:
            response, request, details = row[19:]
            has_span = details is not None and '"span_id"' in details and '"trace_id"' in details
            said = json.loads(details) if has_span else {}
            span = f"{said['trace_id']}:{said['span_id']}" if said.get("trace_id") and said.get("span_id") else None
            texts = [None if text is None else long_id(text) for text in (response, request)]
            if span is not None or texts[0] is not None or texts[1] is not None:
                found.append(StoredCall(row[0], row[4], row[1], row[2], row[5], row[12], long_id(row[3]), texts[0], texts[1], span))
        return found

    def _write_events(self) -> None:
        if self._names.is_sqlite:
            marks = ", ".join("?" * (_EVENT_COLUMNS.count(",") + 1))
            self._connection.connection.cursor().executemany(f"INSERT INTO usage_event ({_EVENT_COLUMNS}) VALUES ({marks})", self._rows)  # noqa: S608 - names of ours
            return
        # Nothing of it can stand already, under the lock: no table between, no ON CONFLICT.
        driver: Any = self._connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY usage_event ({_EVENT_COLUMNS}) FROM STDIN") as copy:
            copy.write(_copied(self._rows))

    def _write_identities(self) -> None:
        if self._single:
            self._fingerprint([row for row, _ in self._single if row.fingerprint is None])
            shards = np.array([self._shard(row.identity[0]) for row, _ in self._single], np.int64)
            fingerprints = np.array([row.fingerprint for row, _ in self._single], "<u4")
            self._stored.append((shards, fingerprints, np.array([time for _, time in self._single], np.int64)))
        shards, fingerprints, times = (np.concatenate(pieces) for pieces in zip(*self._stored, strict=True))
        if self._names.is_sqlite:
            self._identities.write(self._connection, 0, fingerprints, times)
            return
        for shard in np.unique(shards).tolist():
            here = shards == shard
            self._identities.write(self._connection, shard, fingerprints[here], times[here])

    def _write_arrivals(self) -> None:
        hour = self._received // _HOUR * 3600
        of_days = np.unique(np.concatenate([times for _, _, times in self._stored]) // (DAY_SECONDS * _SECOND), return_counts=True)
        marks = ", ".join(["?" if self._names.is_sqlite else "%s"] * 6)
        sql = (
            f"INSERT INTO usage_arrival (arrived_at, happened_on, writer, events, last_seq, last_received_at) VALUES ({marks}) "  # noqa: S608 - names of ours
            "ON CONFLICT (arrived_at, happened_on, writer) DO UPDATE SET "
            "events = usage_arrival.events + excluded.events, last_seq = excluded.last_seq, last_received_at = excluded.last_received_at"
        )
        for day, events in zip(*(counts.tolist() for counts in of_days), strict=True):
            quick(self._connection, sql, (hour, day, self._names.writer, events, self._seq - 1, self._received))

    def _upsert(self, table: str, columns: Sequence[str], keys: int, rows: Sequence[tuple[int, ...]]) -> None:
        """Add counts to the rows with these keys."""
        update = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in columns[keys:])
        into, on = f"INSERT INTO {table} ({', '.join(columns)})", f"ON CONFLICT ({', '.join(columns[:keys])}) DO UPDATE SET {update}"
        if self._names.is_sqlite:
            self._connection.connection.cursor().executemany(f"{into} VALUES ({', '.join('?' * len(columns))}) {on}", rows)
        else:
            # Whole columns in one statement: a row at a time costs ten times as much.
            arrays = [list(column) for column in zip(*rows, strict=True)]
            quick(self._connection, f"{into} SELECT * FROM unnest({', '.join(['%s::bigint[]'] * len(columns))}) {on}", arrays)  # noqa: S608 - names of ours

    def _write_conflicts(self) -> None:
        for known, event in self._conflicts:
            evidence = _evidence(event)
            content = hashlib.blake2b(canonical_json({**evidence, "time": None}).encode(), digest_size=16).digest()
            self._connection.execute(
                sa.text(
                    "INSERT INTO usage_conflict (stands_seq, stands_time, content_hash, received_at, sent) VALUES (:seq, :time, :content, :at, :sent) "
                    "ON CONFLICT DO NOTHING"
                ),
                {"seq": known.seq, "time": known.stands_at, "content": content, "at": self._received, "sent": canonical_json(evidence)},
            )


_TO_ESCAPE = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _copied(rows: Sequence[tuple[Any, ...]]) -> bytes:
    """Rows in the text form of PostgreSQL's COPY, made a column at a time."""
    columns: list[list[str]] = []
    for values in zip(*rows, strict=True):
        kind = next((type(value) for value in values if value is not None), None)
        if kind is bytes:
            columns.append(["\\N" if value is None else f"\\\\x{value.hex()}" for value in values])
        elif kind is str:
            columns.append(["\\N" if value is None else value.translate(_TO_ESCAPE) for value in values])
        elif None in values:
            columns.append(["\\N" if value is None else str(value) for value in values])
        else:
            columns.append(list(map(str, values)))
    return ("\n".join(map("\t".join, zip(*columns, strict=True))) + "\n").encode()


def _columns(items: Sequence[Item]) -> EventColumns | None:
    """A batch as columns: its own, where its format made them."""
    made = getattr(items, "columns", None)
    return made if made is not None else columns_of(items)


def _totals(keys: Array, counted: Array) -> tuple[Array, Array]:
    """The keys that differ, in their order, and the sums of each."""
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    begins = np.concatenate(([0], np.nonzero((ordered[1:] != ordered[:-1]).any(axis=1))[0] + 1))
    return ordered[begins], np.add.reduceat(counted[order], begins, axis=0)


def _repeated(fingerprints: Array) -> Array:
    """Which of these come more than once."""
    order = np.argsort(fingerprints, kind="stable")
    same = fingerprints[order][1:] == fingerprints[order][:-1]
    found = np.zeros(len(fingerprints), bool)
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return found


def _month_end(month: date) -> int:
    following = date(month.year + month.month // 12, month.month % 12 + 1, 1)
    return (following - date(1970, 1, 1)).days * DAY_SECONDS * _SECOND


def _says_the_same(event: CapturedEvent, known: _Content) -> bool:
    """Whether an event says what stands, its times apart."""
    is_placed = event.deployment or event.endpoint or not event.is_native_time
    return (
        # Whoever left the deployment to the registry meant the one that it named then.
        (not is_placed or (known.endpoint, known.deployment) == (event.endpoint or "", event.deployment or ""))
        and known.input_tokens == event.input_tokens
        and known.output_tokens == event.output_tokens
        and known.cached_input_tokens == event.cached_input_tokens
        and known.reasoning_output_tokens == event.reasoning_output_tokens
        and known.status == STATUS_CODE[event.status]
        and known.billable == event.billable
        and known.model == (event.model or "")
        and known.operation == event.operation.value
        and known.fine_tuned == event.fine_tuned
        and known.application == (event.application or "")
        and known.team == (event.team or "")
        and known.tags == (canonical_json(event.tags) if event.tags else "{}")
        and known.details == event.details
    )


def _content_hash(said: bytes, event: CapturedEvent, details: str | None) -> bytes:
    """A digest of what an event counts: part of the ids that are made for events without one."""
    counted = (
        f"{event.status}|{event.billable}|{event.input_tokens}|{event.output_tokens}|{event.cached_input_tokens}|{event.reasoning_output_tokens}|{details}"
    )
    return hashlib.blake2b(said + counted.encode(), digest_size=16).digest()


def _synthetic_id(event: CapturedEvent) -> str:
    """An id for an event that has none: of its content and time, so that a redelivery is met again."""
    series = (
        event.source,
        event.workspace,
        event.endpoint,
        event.deployment,
        event.model,
        event.operation.value,
        event.application,
        event.team,
        event.fine_tuned,
        sorted(event.tags.items()),
    )
    return (
        "sha256:"
        + hashlib.sha256(repr((series, event.time, event.started_at, _content_hash(b"", event, canonical_json(event.details)).hex())).encode()).hexdigest()
    )


def _evidence(event: CapturedEvent) -> dict[str, Any]:
    return {
        "time": event.time,
        "model": event.model,
        "endpoint": event.endpoint,
        "deployment": event.deployment,
        "operation": Operation(event.operation).value,
        "status": event.status.value,
        "billable": event.billable,
        "input_tokens": event.input_tokens,
        "output_tokens": event.output_tokens,
        "cached_input_tokens": event.cached_input_tokens,
        "reasoning_output_tokens": event.reasoning_output_tokens,
        "application": event.application,
        "team": event.team,
        "tags": dict(event.tags),
        "details": dict(event.details),
    }
