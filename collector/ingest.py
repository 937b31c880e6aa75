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
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from collector.capture.event import CapturedEvent, ErrorClass, Item, Refusal
from models.columns import canonical_json, to_microseconds
from models.errors import Unavailable
from models.matching import full_name
from models.store import Store, unavailable_as_such
from models.usage import DAY_SECONDS, MINUTE_SECONDS, QUARTER_SECONDS, STATUS_CODE, Flag, Operation, Quality, Status, flag_names, identity_hash

logger = logging.getLogger(__name__)

_SECOND = 1_000_000
_CLOCK_TOLERANCE = 5 * 60 * _SECOND
_FAR_AHEAD = 30 * DAY_SECONDS * _SECOND
_RESTAMP_WINDOW = 3600 * _SECOND
MAX_QUEUED_EVENTS = 200_000
MAX_COMMIT_EVENTS = 20_000
_MAX_REMEMBERED = 200_000
_LOOKUP_CHUNK = 2_000
# As plain numbers: arithmetic on enum members costs as much as the rest of a row.
_TIME_RECEIVED, _CLOCK_SKEW, _SYNTHETIC_ID = int(Flag.TIME_RECEIVED), int(Flag.CLOCK_SKEW), int(Flag.SYNTHETIC_ID)
_MISSING, _ESTIMATED = int(Quality.MISSING), int(Quality.ESTIMATED)
_UNBILLED_STATUS = frozenset({STATUS_CODE[Status.ERROR], STATUS_CODE[Status.THROTTLED]})
_Identity = tuple[str, str, str]  # workspace, source, the sender's id
# Advisory locks of PostgreSQL: a class of our own, and few enough that a commit of many workspaces cannot fill its lock table.
_LOCK_CLASS = 0x6D62
_LOCK_BUCKETS = 64
# What PostgreSQL says of a transaction that lost a race and may simply be tried again: deadlock, serialization.
_LOST_RACE = frozenset({"40P01", "40001"})
# As long as a service may still commit what waits when it is told to end; what was not answered is sent again.
_STOP_SECONDS = 4
_QUERY_SHORT = {"sqlite": "?", "postgresql": "%s"}


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
    rejected: list[Rejected] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        """The answer of the ingest routes; beyond a thousand items only the remarkable ones are listed."""
        is_short = len(self.stored) <= 1_000
        answer: dict[str, Any] = {
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "rejected": [{"index": one.index, "error": one.error, "detail": one.detail} for one in self.rejected],
        }
        if self.ignored:
            answer["ignored"] = self.ignored
        answer["events"] = [
            {"index": one.index, "duplicate": one.is_duplicate, "flags": flag_names(one.flags), "tokens_quality": Quality(one.quality).name.lower()}
            for one in self.stored
            if is_short or one.flags or one.quality
        ]
        return answer


@dataclass(slots=True)
class _Waiting:
    batch: Batch
    future: Future[Verdict]


@dataclass(slots=True)
class _Known:
    """What already stands under an identity, in the database or earlier in this commit."""

    seq: int | None
    time: int  # as sent, in microseconds; the effective time where none was sent
    is_untimed: bool
    started_at: int | None
    content: bytes
    flags: int
    quality: int


@dataclass(slots=True)
class _SeriesRef:
    """A series by its names in the table's order (workspace and source by name); ``id`` None until it is needed."""

    named: tuple[Any, ...]
    said: bytes  # a digest of all but workspace and source, which are the identity's
    id: int | None = None


class _Refused(Exception):
    def __init__(self, error: ErrorClass, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(error, detail)


class Ingest:
    """The writer of events of one process. ``now`` is the server's clock."""

    def __init__(self, store: Store, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now
        self._waiting: deque[_Waiting] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._names = _Names(is_sqlite=store.is_sqlite)
        self._mark = _QUERY_SHORT["sqlite" if store.is_sqlite else "postgresql"]
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

    def _commit_all(self, taken: list[_Waiting]) -> None:
        try:
            verdicts = self._commit([waiting.batch for waiting in taken])
        except Exception as fault:
            self._names.forget()
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
                verdicts = self._attempt(batches)
            except Unavailable as fault:
                if getattr(getattr(fault.__cause__, "orig", None), "sqlstate", None) not in _LOST_RACE:
                    raise
                verdicts = None
            if verdicts is not None:
                return verdicts
            # Another process was quicker with one of these events or names: look again.
            self._names.forget()
        raise Unavailable("other writers kept storing the same events; send them again", retry_after_seconds=1)

    def _attempt(self, batches: Sequence[Batch]) -> list[Verdict] | None:
        """One transaction; None if another process stored one of the events meanwhile."""
        with unavailable_as_such(), self._store.connection() as connection, connection.begin() as transaction:
            commit = _Commit(connection, self._names, mark=self._mark, received=to_microseconds(self._now()))
            verdicts = commit.judge(batches)
            if commit.write():
                transaction.commit()
                return verdicts
            transaction.rollback()
            return None


class _Names:
    """Ids of sources, workspaces and series, remembered across commits."""

    def __init__(self, *, is_sqlite: bool) -> None:
        self.is_sqlite = is_sqlite
        self.sources: dict[str, int] = {}
        self.workspaces: dict[str, int] = {}
        self.series: dict[tuple[Any, ...], _SeriesRef] = {}
        self.bindings: dict[tuple[str, str, str], str] = {}

    def forget(self) -> None:
        """A transaction was rolled back: what it named may not exist."""
        self.sources.clear()
        self.workspaces.clear()
        self.series.clear()
        self.bindings.clear()

    def trim(self) -> None:
        """Keep memory bounded, whatever names are sent."""
        kept: tuple[dict[Any, Any], ...] = (self.sources, self.workspaces, self.series, self.bindings)
        for names in kept:
            if len(names) > _MAX_REMEMBERED:
                names.clear()


_EVENT_COLUMNS = (
    "time, workspace_id, source_id, event_id, series_id, status, billable, input_tokens, output_tokens, cached_input_tokens, reasoning_output_tokens, "
    "quality, is_unknown, flags, received_at, sent_time, started_at, identity_hash, content_hash, details"
)
_ROLLUP_COLUMNS = (
    "starts_at, series_id, known_on, outcome, requests, input_tokens, output_tokens, cached_input_tokens, reasoning_output_tokens, "
    "unknown_requests, estimated_requests"
)
_ROLLUP_SUMS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens", "unknown_requests", "estimated_requests")


class _Commit:
    """The decisions and writes of one transaction."""

    def __init__(self, connection: sa.Connection, names: _Names, *, mark: str, received: int) -> None:
        self._connection = connection
        self._names = names
        self._mark = mark
        self._received = received
        self._rows: list[tuple[Any, ...]] = []
        self._standing: dict[_Identity, list[_Known]] = {}
        self._conflicts: list[tuple[_Identity, _Known, bytes, CapturedEvent]] = []
        self._quarters: dict[tuple[int, int, int], list[int]] = {}
        self._minutes: dict[tuple[int, int, int], list[int]] = {}
        # What was looked for in vain: a thousand events of a new workspace ask once.
        self._nowhere: set[tuple[str, str, str]] = set()
        self._absent: set[tuple[str, str]] = set()

    def judge(self, batches: Sequence[Batch]) -> list[Verdict]:
        """Decide every item of every batch, in their order."""
        verdicts = [Verdict() for _ in batches]
        prepared: list[tuple[Verdict, int, CapturedEvent, _Identity, int | None]] = []
        for batch, verdict in zip(batches, verdicts, strict=True):
            for index, item in enumerate(batch.items):
                if isinstance(item, CapturedEvent):
                    try:
                        self._check_time(item)
                        workspace = self._home(item, batch)
                    except _Refused as refused:
                        verdict.rejected.append(Rejected(index, refused.refusal.error, refused.refusal.detail))
                        continue
                    event_id = item.id or _synthetic_id(item)
                    prepared.append((verdict, index, item, (workspace, item.source, event_id), self._digest(workspace, item.source, event_id)))
                elif isinstance(item, Refusal):
                    verdict.rejected.append(Rejected(index, item.error, item.detail))
                else:
                    verdict.ignored += 1
        self._lock({identity[0] for _, _, _, identity, _ in prepared})
        self._look_up([(identity, digest) for _, _, _, identity, digest in prepared])
        for verdict, index, event, identity, digest in prepared:
            try:
                self._decide(verdict, index, event, identity, digest)
            except _Refused as refused:
                verdict.rejected.append(Rejected(index, refused.refusal.error, refused.refusal.detail))
        for verdict in verdicts:
            verdict.rejected.sort(key=lambda one: one.index)
        return verdicts

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

    def _digest(self, workspace: str, source: str, event_id: str) -> int | None:
        """What to look for the identity by; None where its workspace or source is new, so that nothing can stand under it."""
        # Asked for every event: what is remembered is taken without a call.
        workspace_id = self._names.workspaces.get(workspace) or self._find("workspace", workspace, self._names.workspaces)
        source_id = self._names.sources.get(source) or self._find("usage_source", source, self._names.sources)
        return None if workspace_id is None or source_id is None else identity_hash(workspace_id, source_id, event_id)

    def _lock(self, workspaces: set[str]) -> None:
        """Wait for other processes that write to these workspaces.

        The unique key is led by the time, and a retry with another time (restamped, untimed or from a clock ahead) would
        pass it by. SQLite has one writer anyway; on PostgreSQL a workspace has one at a time.
        """
        if not self._names.is_sqlite:
            # In order: two processes wait for each other instead of deadlocking.
            for bucket in sorted({zlib.crc32(workspace.encode()) % _LOCK_BUCKETS for workspace in workspaces}):
                self._connection.execute(sa.text("SELECT pg_advisory_xact_lock(:class, :bucket)"), {"class": _LOCK_CLASS, "bucket": bucket})
            # Whoever held the lock may have made what was not there a moment ago.
            self._absent.clear()

    def _look_up(self, identities: Sequence[tuple[_Identity, int | None]]) -> None:
        """Load what stands under these identities."""
        hashes: list[int] = []
        by_ids: dict[tuple[int, int, str], _Identity] = {}
        for identity, digest in identities:
            if identity not in self._standing:
                self._standing[identity] = []
                # A name that was new a moment ago may have been made by the process that held the lock.
                known = digest if digest is not None else self._digest(*identity)
                if known is not None:
                    hashes.append(known)
                    by_ids[self._names.workspaces[identity[0]], self._names.sources[identity[1]], identity[2]] = identity
        columns = "seq, workspace_id, source_id, event_id, time, sent_time, started_at, content_hash, flags, quality"
        for first in range(0, len(hashes), _LOOKUP_CHUNK):
            chunk = hashes[first : first + _LOOKUP_CHUNK]
            if self._names.is_sqlite:
                query = f"SELECT {columns} FROM usage_event WHERE identity_hash IN (SELECT value FROM json_each(?)) ORDER BY seq"  # noqa: S608 - names of ours
                found = self._connection.exec_driver_sql(query, (json.dumps(chunk),))
            else:
                query = f"SELECT {columns} FROM usage_event WHERE identity_hash = ANY(%s) ORDER BY seq"  # noqa: S608 - names of ours
                found = self._connection.exec_driver_sql(query, (chunk,))
            for seq, workspace_id, source_id, event_id, time, sent, started, content, flags, quality in found:
                standing = by_ids.get((workspace_id, source_id, event_id))
                if standing is not None:
                    untimed = bool(flags & _TIME_RECEIVED)
                    self._standing[standing].append(_Known(seq, time if sent is None else sent, untimed, started, bytes(content), flags, quality))

    def _decide(self, verdict: Verdict, index: int, event: CapturedEvent, identity: _Identity, digest: int | None) -> None:
        series = self._series_of(event, identity, event.deployment)
        details = canonical_json(event.details) if event.details else None
        content = _content_hash(series.said, event, details)
        standing = self._standing[identity]
        for known in standing:
            restamped = 0
            if known.content != content:
                is_same = False
            elif event.time is None or known.is_untimed:
                is_same = True
            elif event.time == known.time:
                # The start is part of the content of one and the same time; a restamping retry restamps it too.
                is_same = event.started_at == known.started_at
            elif abs(event.time - known.time) <= _RESTAMP_WINDOW:
                is_same, restamped = True, int(Flag.RESTAMPED)
            else:
                continue
            if is_same:
                verdict.duplicates += 1
                verdict.stored.append(Stored(index, True, known.flags | restamped, known.quality))
            else:
                self._conflicts.append((identity, known, content, event))
                verdict.rejected.append(Rejected(index, "conflict", "an event with this id stands already with other content; the first one counts"))
            return
        if event.is_native_time and not event.deployment and not event.endpoint:
            # Only now: what was stored once is a duplicate, whatever the registry says today.
            series = self._series_of(event, identity, self._only_deployment(identity[0]))
        if series.id is None:
            self._insert_series(series)
        known = self._add_row(event, identity, digest, series_id=series.id or 0, content=content, details=details)
        standing.append(known)
        verdict.accepted += 1
        verdict.stored.append(Stored(index, False, known.flags, known.quality))

    # -- the rows -------------------------------------------------------------------------------

    def _series_of(self, event: CapturedEvent, identity: _Identity, deployment: str | None) -> _SeriesRef:
        """The event's series; one that is not stored yet has no id, so that a refused event leaves no trace."""
        tags = canonical_json(event.tags) if event.tags else "{}"
        key = (
            identity[0], identity[1], event.endpoint or "", deployment or "", event.model or "",
            event.operation, event.fine_tuned, event.application or "", event.team or "", tags,
        )  # fmt: skip
        found = self._names.series.get(key)
        if found is None:
            named = (*key[:5], str(event.operation), *key[6:])
            said = hashlib.blake2b(canonical_json(list(named[2:])).encode(), digest_size=16).digest()
            found = self._names.series[key] = _SeriesRef(named, said)
        return found

    def _insert_series(self, series: _SeriesRef) -> None:
        names = ("workspace_id", "source_id", "endpoint", "deployment", "model", "operation", "fine_tuned", "application", "team", "tags")
        row = [self._workspace(series.named[0]), self._source(series.named[1]), *series.named[2:]]
        digest = hashlib.blake2b(canonical_json(row).encode(), digest_size=16).digest()
        series.id = self._id_of("usage_series", {**dict(zip(names, row, strict=True)), "digest": digest}, key="digest")
        self._note_deployment(series.named)

    def _add_row(self, event: CapturedEvent, identity: _Identity, digest: int | None, *, series_id: int, content: bytes, details: str | None) -> _Known:
        workspace, source, event_id = identity
        workspace_id = self._names.workspaces.get(workspace) or self._workspace(workspace)
        source_id = self._names.sources.get(source) or self._source(source)
        if digest is None:
            digest = identity_hash(workspace_id, source_id, event_id)
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
        quality = int(event.quality)
        status = STATUS_CODE[event.status]
        is_unknown = event.billable and quality == _MISSING and status not in _UNBILLED_STATUS
        outcome = status * 2 + event.billable
        inputs, outputs, cached, reasoning = event.input_tokens, event.output_tokens, event.cached_input_tokens, event.reasoning_output_tokens
        seconds = time // _SECOND
        for sums, key in (
            (self._quarters, (seconds - seconds % QUARTER_SECONDS, series_id, outcome)),
            (self._minutes, (seconds - seconds % MINUTE_SECONDS, series_id, outcome)),
        ):
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
        self._rows.append(
            (
                time,
                workspace_id,
                source_id,
                event_id,
                series_id,
                status,
                event.billable,
                inputs,
                outputs,
                cached,
                reasoning,
                quality,
                is_unknown,
                flags,
                received,
                sent,
                event.started_at,
                digest,
                content,
                details,
            )
        )
        return _Known(None, time if sent is None else sent, event.time is None, event.started_at, content, flags, quality)

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

    def write(self) -> bool:
        """Insert events, rollups and evidence; False if another process stored one of the events meanwhile."""
        if self._rows:
            marks = ", ".join([self._mark] * (_EVENT_COLUMNS.count(",") + 1))
            sql = f"INSERT INTO usage_event ({_EVENT_COLUMNS}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608 - names of ours
            done = self._connection.exec_driver_sql(sql, self._rows)
            if done.rowcount != len(self._rows):
                return False
            known_on = self._received // _SECOND // DAY_SECONDS
            for table, sums in (("usage_quarter", self._quarters), ("usage_minute", self._minutes)):
                self._write_rollup(table, sums, known_on)
        self._write_conflicts()
        self._names.trim()
        return True

    def _write_rollup(self, table: str, sums: Mapping[tuple[int, int, int], list[int]], known_on: int) -> None:
        marks = ", ".join([self._mark] * (_ROLLUP_COLUMNS.count(",") + 1))
        update = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in _ROLLUP_SUMS)
        sql = (
            f"INSERT INTO {table} ({_ROLLUP_COLUMNS}) VALUES ({marks}) "  # noqa: S608 - names of ours
            f"ON CONFLICT (starts_at, series_id, known_on, outcome) DO UPDATE SET {update}"
        )
        # In key order: two processes that meet in the same rows wait for each other instead of deadlocking.
        rows = [(starts_at, series_id, known_on, outcome, *counts) for (starts_at, series_id, outcome), counts in sorted(sums.items())]
        self._connection.exec_driver_sql(sql, rows)

    def _write_conflicts(self) -> None:
        for identity, known, content, event in self._conflicts:
            seq = known.seq
            if seq is None:
                seq = self._connection.scalar(
                    sa.text("SELECT MIN(seq) FROM usage_event WHERE identity_hash = :hash AND content_hash = :content"),
                    {"hash": self._digest(*identity), "content": known.content},
                )
            self._connection.execute(
                sa.text("INSERT INTO usage_conflict (stands_seq, content_hash, received_at, sent) VALUES (:seq, :content, :at, :sent) ON CONFLICT DO NOTHING"),
                {"seq": seq, "content": content, "at": self._received, "sent": canonical_json(_evidence(event))},
            )


def _content_hash(said: bytes, event: CapturedEvent, details: str | None) -> bytes:
    """A digest of everything an event says but its times."""
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
