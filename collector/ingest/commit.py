"""One commit of the ingest: what becomes of every item, and that it is written.

Most events are new: no filter knows their identity, and none of the same commit shares it. Those are taken by columns.
All others are decided one by one, in the order of their batches, so that sharing a commit changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from collector.capture.columns import STATUS_CODE_OF_WORD, Array, EventColumns, Said, columns_of
from collector.capture.event import CapturedEvent, Item, Refusal
from collector.ingest.batch import LONG_ANSWER, Batch, Refused, Rejected, Stored, Verdict
from collector.ingest.names import Names, SeriesRef
from collector.ingest.rows import Numbers, Rows, StoredCall
from models.columns import canonical_json, from_microseconds
from models.identities import Identities, shard_of
from models.store import quick, together
from models.usage import DAY_SECONDS, STATUS_CODE, Flag, Quality, Split, Status, long_id, short_id

_SECOND = 1_000_000
_CLOCK_TOLERANCE = 5 * 60 * _SECOND
_FAR_AHEAD = 30 * DAY_SECONDS * _SECOND
_RESTAMP_WINDOW = 3600 * _SECOND
# From here on a batch is decided by columns; below it, row by row is quicker.
_BY_COLUMNS = 100
# As plain numbers: arithmetic on enum members costs as much as the rest of a row.
_TIME_RECEIVED, _CLOCK_SKEW, _SYNTHETIC_ID = int(Flag.TIME_RECEIVED), int(Flag.CLOCK_SKEW), int(Flag.SYNTHETIC_ID)
_LATE, _TAGS_NOT_GROUPED, _RESTAMPED = int(Flag.LATE), int(Flag.TAGS_NOT_GROUPED), int(Flag.RESTAMPED)
_MISSING, _ESTIMATED = int(Quality.MISSING), int(Quality.ESTIMATED)
_ERROR, _THROTTLED = STATUS_CODE[Status.ERROR], STATUS_CODE[Status.THROTTLED]
_UNBILLED_STATUS = frozenset({_ERROR, _THROTTLED})
_Identity = tuple[str, str, str]  # workspace, source, the sender's id
_LOCK_CLASS = 0x6D62  # advisory locks of PostgreSQL: a class of our own
_STANDING = (
    "e.seq, e.time, e.sent_time, e.started_at, e.series_id, e.status, e.billable, e.input_tokens, e.output_tokens, e.cached_input_tokens, "
    "e.reasoning_output_tokens, e.flags, e.quality, e.duration_ms, e.response_id, e.request_id, e.details"
)


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
    says: _Content | Callable[[], _Content]  # what came in this commit is rarely met again in it
    flags: int
    quality: int

    @property
    def content(self) -> _Content:
        if callable(self.says):
            self.says = self.says()
        return self.says


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
    series: list[SeriesRef | None] = field(default_factory=list)

    def row(self, at: int) -> _Row:
        """One of the events, to be decided by itself."""
        columns, code = self.columns, self.columns.codes[at]
        identity = self.homes[code] or "", columns.said[code].source, columns.ids[at]
        return _Row(self.verdict, self.is_long, (self.number, int(columns.index[at])), columns.event(at), identity, int(self.fingerprints[at]))


class Commit:
    """The decisions and writes of one transaction."""

    def __init__(
        self, connection: sa.Connection, names: Names, identities: Identities, numbers: Numbers, *, is_sqlite: bool, received: int, closed: frozenset[date]
    ) -> None:
        self._connection = connection
        self._is_sqlite = is_sqlite
        self._names = names
        self._identities = identities
        self._received = received
        self._closed = closed
        self._rows = Rows(connection, numbers, is_sqlite=is_sqlite, received=received)
        # Of what is stored: shards, fingerprints and times, in pieces; of what was decided one by one, the identity where it was too new to have one.
        self._stored: list[tuple[Array, Array, Array]] = []
        self._single: list[tuple[_Row, int]] = []
        self._groups: list[_Group] = []
        self._standing: dict[_Identity, list[_Known]] = defaultdict(list)
        names.begin(connection, received=received)

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
        self._rows.begin()
        for group in self._groups:
            self._accept(group)
        for row in rows:
            try:
                self._decide(row)
            except Refused as refused:
                row.verdict.rejected.append(Rejected(row.order[1], refused.refusal.error, refused.refusal.detail))
        for verdict in verdicts:
            verdict.rejected.sort(key=lambda one: one.index)
            verdict.stored.sort(key=lambda one: one.index)
        return verdicts

    def _opened(self, number: int, batch: Batch, verdict: Verdict) -> list[_Row]:
        """The items of a batch that are decided one by one; the others become a group."""
        items, places = batch.items, range(len(batch.items))
        is_long = len(items) > LONG_ANSWER
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
                except Refused as refused:
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
            (0, 0) if home is None else (self._names.workspace(home), self._names.source(said.source))
            for home, said in zip(group.homes, group.columns.said, strict=True)
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
        for shard in (0,) if self._is_sqlite else np.unique(shard_of_each).tolist():
            here = shard_of_each == shard
            suspects = self._identities.suspects(shard, fingerprints[here])
            known[here] = suspects
            if suspects.any():
                found = self._identities.times(self._connection, shard, fingerprints[here][suspects])
                times.update({(shard, fingerprint): at for fingerprint, at in found.items()})
        candidates: dict[_Identity, list[int]] = {}
        for row in asked:
            found_at = times.get((self._shard(row.identity[0]), row.fingerprint or 0))
            if found_at:
                candidates[row.identity] = found_at
        repeated = _repeated(fingerprints) if self._groups else known
        hints: list[tuple[_Group, int, _Row, bool]] = []
        start = len(asked)
        for group in self._groups:
            end = start + len(group.fingerprints)
            for at in np.nonzero((known | repeated)[start:end] & group.taken)[0].tolist():
                row = group.row(at)
                hints.append((group, at, row, bool(repeated[start + at])))
                found_at = times.get((self._shard(row.identity[0]), row.fingerprint or 0))
                if found_at:
                    candidates[row.identity] = found_at
            start = end
        self._load(candidates)
        new: list[_Row] = []
        for group, at, row, is_repeated in hints:
            # A filter errs once in a few hundred: what stands nowhere after all stays with the others.
            if is_repeated or row.identity in self._standing:
                group.taken[at] = False
                new.append(row)
        return new

    def _fingerprint(self, rows: Sequence[_Row]) -> list[_Row]:
        """Fingerprint rows; those whose workspace or source is new stand nowhere and are left out."""
        found: list[_Row] = []
        numbers: list[tuple[int, int]] = []
        for row in rows:
            workspace, source, _ = row.identity
            workspace_id = self._names.workspaces.get(workspace) or self._names.known_workspace(workspace)
            source_id = self._names.sources.get(source) or self._names.known_source(source)
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
                    series = self._names.series_of((home, said.source, *said[2:10]))
                    if series.id is None:
                        self._names.insert(series)
                    if series.is_ungrouped:
                        ungrouped.append(code)
                group.series.append(series)
            if ungrouped:
                others = np.isin(columns.codes, ungrouped) & group.taken
                back += [group.row(at) for at in np.nonzero(others)[0].tolist()]
                group.taken = group.taken & ~others
        return back

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
        series = np.array([0 if one is None else one.id for one in group.series], np.int64)[columns.codes]
        is_unknown = columns.billable & (columns.quality == _MISSING) & (columns.status != _ERROR) & (columns.status != _THROTTLED)
        group.verdict.unknown += int(is_unknown.sum())
        group.verdict.estimated += int((columns.quality == _ESTIMATED).sum())
        self._rows.add_columns(columns, group.workspace_ids, group.source_ids, series, is_unknown)

    # -- where it belongs -----------------------------------------------------------------------

    def _home(self, event: CapturedEvent, batch: Batch) -> str:
        """The workspace of the event's identity. Nothing is written for an event that is refused."""
        workspace = event.workspace or batch.home
        if workspace is None:
            return self._names.resolved_workspace(event, batch.allowed)
        if batch.allowed is not None and workspace not in batch.allowed:
            raise Refused("forbidden_workspace", f"this key may not write usage of workspace {workspace[:80]!r}")
        return workspace

    def _check_time(self, event: CapturedEvent) -> None:
        if event.time is not None and event.is_native_time and event.time > self._received + _FAR_AHEAD:
            raise Refused("invalid_time", "time is more than 30 days ahead of the server's clock; send the end of the call in UTC")

    # -- identity -------------------------------------------------------------------------------

    def _shard(self, workspace: str) -> int:
        return 0 if self._is_sqlite else shard_of(workspace, is_sqlite=False)

    def _shards(self, group: _Group) -> Array:
        """The shard of each thing that a group's events say."""
        return np.array([0 if home is None else self._shard(home) for home in group.homes], np.int64)

    def _lock(self, workspaces: set[str]) -> None:
        """Wait for other processes that write to these workspaces, then learn what they stored.

        The unique key is led by the time, and a retry with another time (restamped, untimed or from a clock ahead) would
        pass it by. SQLite has one writer anyway; on PostgreSQL a workspace has one at a time.
        """
        shards = sorted({self._shard(workspace) for workspace in workspaces})
        with together(self._connection):
            if not self._is_sqlite:
                # In order: two processes wait for each other instead of deadlocking.
                quick(self._connection, "SELECT pg_advisory_xact_lock(%s, shard) FROM unnest(%s::int[]) AS shard", (_LOCK_CLASS, shards))
                self._names.look_again()
            asked = self._identities.ask(self._connection, shards)
            self._rows.ask()
        self._identities.learn(self._connection, asked)

    def _load(self, candidates: Mapping[_Identity, Sequence[int]]) -> None:
        """What stands under these identities at these times, in the order of arrival."""
        asked = [
            (at, self._names.workspaces[workspace], self._names.sources[source], event_id, (workspace, source, event_id))
            for (workspace, source, event_id), times in candidates.items()
            for at in times
        ]
        found: list[tuple[_Identity, Any]] = []
        if self._is_sqlite:
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
            said = self._names.names_of(series_id)
            duration, response, request, details = split
            kept = Split(duration, None if response is None else long_id(response), None if request is None else long_id(request), details).whole()
            if flags & _TAGS_NOT_GROUPED:
                said = (*said[:7], str(kept.pop("tags", "{}")))
            content = _Content._make((*said, status, bool(billable), inputs, outputs, cached, reasoning, kept))
            standing = self._standing[identity]
            if all(one.seq != seq for one in standing):
                standing.append(_Known(seq, at if sent is None else sent, at, bool(flags & _TIME_RECEIVED), started, content, flags, quality))

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
                self._rows.conflict(known.seq, known.stands_at, event)
                verdict.rejected.append(Rejected(index, "conflict", "an event with this id stands already with other content; the first one counts"))
            return
        deployment = event.deployment
        if event.is_native_time and not event.deployment and not event.endpoint:
            # Only now: what was stored once is a duplicate, whatever the registry says today.
            deployment = self._names.only_deployment(row.identity[0])
        known = self._add_row(row, deployment)
        if twin is not None:
            self._rows.twin(known.seq, known.stands_at, twin.seq, twin.stands_at)
        self._standing[row.identity].append(known)
        verdict.accepted += 1
        if not row.is_long or known.flags or known.quality:
            verdict.stored.append(Stored(index, False, known.flags, known.quality))

    def _add_row(self, row: _Row, deployment: str | None) -> _Known:
        event, (workspace, source, event_id) = row.event, row.identity
        tags = canonical_json(event.tags) if event.tags else "{}"
        series = self._names.series_of(
            (
                workspace, source, event.endpoint or "", deployment or "", event.model or "", event.operation._value_,
                event.fine_tuned, event.application or "", event.team or "", tags,
            )
        )  # fmt: skip
        if series.id is None:
            self._names.insert(series)
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
        quality, status = int(event.quality), STATUS_CODE_OF_WORD[event.status._value_]
        is_unknown = event.billable and quality == _MISSING and status not in _UNBILLED_STATUS
        row.verdict.unknown += is_unknown
        row.verdict.estimated += quality == _ESTIMATED
        seq = self._rows.add(
            event,
            time=time,
            sent=sent,
            workspace_id=self._names.workspaces.get(workspace) or self._names.workspace(workspace),
            source_id=self._names.sources.get(source) or self._names.source(source),
            event_id=event_id,
            series_id=series.id or 0,
            flags=flags,
            details=details,
            status=status,
            quality=quality,
            is_unknown=is_unknown,
        )
        self._single.append((row, time))

        def says() -> _Content:
            counts = event.input_tokens, event.output_tokens, event.cached_input_tokens, event.reasoning_output_tokens
            return _Content._make((*series.named[2:], status, event.billable, *counts, dict(event.details)))

        return _Known(seq, time if sent is None else sent, time, event.time is None, event.started_at, says, flags, quality)

    # -- writing --------------------------------------------------------------------------------

    def write(self) -> None:
        """Insert events, identities, rollups and evidence; ``IntegrityError`` if another process stored one of the events meanwhile."""
        self._rows.write()
        if self._stored or self._single:
            self._write_identities()
        self._names.trim()

    def calls(self) -> list[StoredCall]:
        """What was stored and names its call."""
        return self._rows.calls()

    def _write_identities(self) -> None:
        if self._single:
            self._fingerprint([row for row, _ in self._single if row.fingerprint is None])
            shards = np.array([0 if self._is_sqlite else self._shard(row.identity[0]) for row, _ in self._single], np.int64)
            fingerprints = np.array([row.fingerprint for row, _ in self._single], "<u4")
            self._stored.append((shards, fingerprints, np.array([time for _, time in self._single], np.int64)))
        shards, fingerprints, times = (np.concatenate(pieces) for pieces in zip(*self._stored, strict=True))
        if self._is_sqlite:
            self._identities.write(self._connection, 0, fingerprints, times)
            return
        with together(self._connection):
            for shard in np.unique(shards).tolist():
                here = shards == shard
                self._identities.write(self._connection, shard, fingerprints[here], times[here])


def _columns(items: Sequence[Item]) -> EventColumns | None:
    """A batch as columns: its own, where its format made them."""
    made = getattr(items, "columns", None)
    return made if made is not None else columns_of(items)


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
