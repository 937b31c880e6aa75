"""The rows of one commit and the statements that write them: events, both rollups, arrivals, evidence.

Events come as columns or one by one and are written as they came. What is the same in all events of a piece is said
once, and what is nowhere said is left out of the statement: the driver spends more on a None than on a number.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from collector.capture.columns import Array, EventColumns, summed
from collector.capture.event import CapturedEvent
from models.columns import canonical_json
from models.store import in_few_steps, quick, together
from models.usage import DAY_SECONDS, MINUTE_SECONDS, QUARTER_SECONDS, Operation, Quality, long_id, short_id, split_details

_SECOND = 1_000_000
_MINUTE = MINUTE_SECONDS * _SECOND
_HOUR = 3600 * _SECOND
_DAY = DAY_SECONDS * _SECOND
# On PostgreSQL a commit takes one number of a sequence, and its events the numbers behind it.
_SEQ_BITS = 20
# As plain numbers: arithmetic on enum members costs as much as the rest of a row.
_ESTIMATED = int(Quality.ESTIMATED)

_EVENT = (
    "time", "workspace_id", "source_id", "event_id", "seq", "series_id", "status", "billable", "input_tokens", "output_tokens", "cached_input_tokens",
    "reasoning_output_tokens", "quality", "is_unknown", "flags", "received_at", "sent_time", "started_at", "duration_ms", "response_id", "request_id",
    "details",
)  # fmt: skip
_ROLLUP_SUMS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens", "unknown_requests", "estimated_requests")
_ROLLUP_COLUMNS = ("starts_at", "series_id", "known_on", "outcome", *_ROLLUP_SUMS)
_TO_ESCAPE = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class StoredCall(NamedTuple):
    """A stored event that names its call, for those who look for other witnesses of the same call."""

    time: int
    seq: int
    workspace_id: int
    response_id: str | None
    request_id: str | None
    span_id: str | None  # trace and span together


_FEW = 200  # as many events are one statement among others on PostgreSQL
_IDS = frozenset({"event_id", "response_id", "request_id"})


class _Same(NamedTuple):
    """A column that says one thing in every row; None, or a number."""

    value: int | None


_Column = Sequence[Any] | _Same
_NOTHING = _Same(None)


class Numbers:
    """The order of arrival, given out commit by commit; of one process."""

    def __init__(self, *, is_sqlite: bool) -> None:
        self._is_sqlite = is_sqlite
        self._last = -1  # -1 before the first look
        self.writer = os.getpid() % 2**31

    def forget(self) -> None:
        """A transaction was rolled back."""
        self._last = -1

    def ask(self, connection: sa.Connection) -> Callable[[], int]:
        """Ask where a commit begins to count; what is given here says it, once the answer is there."""
        if not self._is_sqlite:
            asked = quick(connection, "SELECT nextval('usage_commit')")
            return lambda: int(asked.fetchone()[0]) << _SEQ_BITS
        newest = "" if self._last < 0 else " WHERE arrived_at = (SELECT MAX(arrived_at) FROM usage_arrival)"
        last = quick(connection, f"SELECT MAX(last_seq) FROM usage_arrival{newest}").fetchone()[0]  # noqa: S608 - names of ours
        return lambda: max(last or 0, self._last) + 1

    def used(self, last: int) -> None:
        """How far a commit counted."""
        self._last = last


class Rows:
    """What one commit is about to write. ``received`` is its time, in microseconds."""

    def __init__(self, connection: sa.Connection, numbers: Numbers, *, is_sqlite: bool, received: int) -> None:
        self._connection = connection
        self._numbers = numbers
        self._is_sqlite = is_sqlite
        self._received = received
        self._singles: list[tuple[Any, ...]] = []
        self._pieces: list[list[_Column]] = []
        self._minutes: dict[tuple[int, int, int], list[int]] = {}  # by start, series and outcome
        self._conflicts: list[tuple[int, int, CapturedEvent]] = []
        self._twins: list[tuple[int, int, int, int]] = []
        self._seq = 0

    def ask(self) -> None:
        """Ask for this commit's place in the order of arrival."""
        self._first = self._numbers.ask(self._connection)

    def begin(self) -> None:
        """Take the place that was asked for."""
        self._seq = self._first()

    # -- gathering ------------------------------------------------------------------------------

    def add(
        self,
        event: CapturedEvent,
        *,
        time: int,
        sent: int | None,
        workspace_id: int,
        source_id: int,
        event_id: str,
        series_id: int,
        flags: int,
        details: Mapping[str, Any],
        status: int,
        quality: int,
        is_unknown: bool,
    ) -> int:
        """One event; gives its number in the order of arrival."""
        billable = int(event.billable)
        inputs, outputs, cached, reasoning = event.input_tokens, event.output_tokens, event.cached_input_tokens, event.reasoning_output_tokens
        key = (time // _MINUTE * MINUTE_SECONDS, series_id, status * 2 + billable)
        into = self._minutes.get(key)
        if into is None:
            into = self._minutes[key] = [0, 0, 0, 0, 0, 0, 0]
        into[0] += 1
        into[1] += inputs or 0
        into[2] += outputs or 0
        into[3] += cached or 0
        into[4] += reasoning or 0
        into[5] += is_unknown
        into[6] += quality == _ESTIMATED
        duration, response, request, rest = split_details(details)
        seq = self._seq
        self._seq += 1
        self._singles.append(
            (
                time, workspace_id, source_id, self._id(event_id), seq, series_id, status, billable,
                inputs, outputs, cached, reasoning, quality, int(is_unknown), flags, self._received, sent, event.started_at,
                duration, None if response is None else self._id(response), None if request is None else self._id(request), rest,
            )
        )  # fmt: skip
        return seq

    def add_columns(self, columns: EventColumns, workspace_ids: Array, source_ids: Array, series: Array, is_unknown: Array) -> None:
        """Many events."""
        count = len(columns.times)
        self._pieces.append(
            [
                columns.times.tolist(),
                _numbers(workspace_ids),
                _numbers(source_ids),
                columns.short_ids if self._is_sqlite else columns.ids,
                range(self._seq, self._seq + count),
                _numbers(series),
                _numbers(columns.status),
                _numbers(columns.billable),
                _said(columns.inputs),
                _said(columns.outputs),
                _said(columns.cached),
                _said(columns.reasoning),
                _numbers(columns.quality),
                _numbers(is_unknown),
                _numbers(columns.flags),
                [self._received] * count,  # not a number in the statement, which would be another one each time
                _NOTHING,
                _said(columns.started),
                _said(columns.durations),
                self._ids(columns.response_ids),
                self._ids(columns.request_ids),
                _said(columns.details),
            ]
        )
        self._seq += count
        self._roll_up(columns, series, is_unknown)

    def conflict(self, stands: int, at: int, event: CapturedEvent) -> None:
        """What was sent under the identity of the event with that number and time, saying something else."""
        self._conflicts.append((stands, at, event))

    def twin(self, seq: int, time: int, of_seq: int, of_time: int) -> None:
        """An event that may repeat another."""
        self._twins.append((seq, time, of_seq, of_time))

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
        keys, counted = _totals(np.column_stack((columns.times // _MINUTE * MINUTE_SECONDS, series, columns.status * 2 + columns.billable)), counted)
        for key, total in zip(map(tuple, keys.tolist()), counted.tolist(), strict=True):
            into = self._minutes.get(key)
            self._minutes[key] = total if into is None else [left + right for left, right in zip(into, total, strict=True)]

    def _quarters(self) -> dict[tuple[int, int, int], list[int]]:
        """Quarter hours are sums of the minutes: few rows, where there were thousands."""
        found: dict[tuple[int, int, int], list[int]] = {}
        for (minute, series_id, outcome), counts in self._minutes.items():
            key = minute - minute % QUARTER_SECONDS, series_id, outcome
            into = found.get(key)
            found[key] = counts if into is None else [left + right for left, right in zip(into, counts, strict=True)]
        return found

    def _id(self, text: str) -> str | bytes:
        """An id as this database keeps it."""
        return short_id(text) if self._is_sqlite else text

    def _ids(self, texts: Sequence[str | None]) -> _Column:
        said = _said(texts)
        return said if said is _NOTHING or not self._is_sqlite else [None if text is None else short_id(text) for text in texts]

    # -- writing --------------------------------------------------------------------------------

    def write(self) -> None:
        """Insert events, rollups and evidence; ``IntegrityError`` if another process stored one of the events meanwhile."""
        if self._singles or self._pieces:
            # Events of a minute are neighbours in the key.
            self._singles.sort(key=itemgetter(0))
            if self._pieces or len(self._singles) > _FEW:
                self._write_many()
            with together(self._connection):
                if not self._pieces and len(self._singles) <= _FEW:
                    self._write_few()
                known_on = self._received // _SECOND // DAY_SECONDS
                for table, sums in (("usage_quarter", self._quarters()), ("usage_minute", self._minutes)):
                    # In key order: two processes that meet in the same rows wait for each other instead of deadlocking.
                    rows = [(starts_at, series_id, known_on, outcome, *counts) for (starts_at, series_id, outcome), counts in sorted(sums.items())]
                    self._upsert(table, rows)
                self._write_arrivals()
            self._numbers.used(self._seq - 1)
        self._write_conflicts()
        if self._twins:
            marks = ", ".join(["?" if self._is_sqlite else "%s"] * 4)
            self._connection.exec_driver_sql(f"INSERT INTO usage_twin (seq, time, of_seq, of_time) VALUES ({marks})", self._twins)  # noqa: S608 - names of ours

    def _write_few(self) -> None:
        driver: Any = self._connection.connection.driver_connection
        if self._is_sqlite:
            in_few_steps(self._connection, _INSERT, _ONE, self._singles)
        else:
            driver.execute(_INSERT_EVENTS, [list(column) for column in zip(*self._singles, strict=True)])

    def _write_many(self) -> None:
        driver: Any = self._connection.connection.driver_connection
        if self._is_sqlite:
            in_few_steps(self._connection, _INSERT, _ONE, self._singles)
            for piece in self._pieces:
                _insert(self._connection, piece)
            return
        # Nothing of it can stand already, under the lock: no table between, no ON CONFLICT.
        pieces = list(self._pieces)
        if self._singles:
            pieces.append([list(column) for column in zip(*self._singles, strict=True)])
        with driver.cursor() as cursor:
            for piece in pieces:
                names, text = _copied(piece)
                with cursor.copy(f"COPY usage_event ({', '.join(names)}) FROM STDIN") as copy:
                    copy.write(text)

    def _write_arrivals(self) -> None:
        hour = self._received // _HOUR * 3600
        of_days = Counter(row[0] // _DAY for row in self._singles)
        for piece in self._pieces:
            of_days.update(dict(zip(*(counts.tolist() for counts in np.unique(np.array(_listed(piece[0])) // _DAY, return_counts=True)), strict=True)))
        marks = ", ".join(["?" if self._is_sqlite else "%s"] * 6)
        sql = (
            f"INSERT INTO usage_arrival (arrived_at, happened_on, writer, events, last_seq, last_received_at) VALUES ({marks}) "  # noqa: S608 - names of ours
            "ON CONFLICT (arrived_at, happened_on, writer) DO UPDATE SET "
            "events = usage_arrival.events + excluded.events, last_seq = excluded.last_seq, last_received_at = excluded.last_received_at"
        )
        for day, events in sorted(of_days.items()):
            quick(self._connection, sql, (hour, day, self._numbers.writer, events, self._seq - 1, self._received))

    def _upsert(self, table: str, rows: Sequence[tuple[int, ...]]) -> None:
        """Add counts to the rows with these keys."""
        update = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in _ROLLUP_SUMS)
        into, on = f"INSERT INTO {table} ({', '.join(_ROLLUP_COLUMNS)})", f"ON CONFLICT ({', '.join(_ROLLUP_COLUMNS[:4])}) DO UPDATE SET {update}"
        driver: Any = self._connection.connection.driver_connection
        if self._is_sqlite:
            in_few_steps(self._connection, f"{into} VALUES ", f"({', '.join('?' * len(_ROLLUP_COLUMNS))})", rows, f" {on}")
        else:
            # Whole columns in one statement: a row at a time costs ten times as much.
            arrays = [list(column) for column in zip(*rows, strict=True)]
            driver.execute(f"{into} SELECT * FROM unnest({', '.join(['%s::bigint[]'] * len(_ROLLUP_COLUMNS))}) {on}", arrays)  # noqa: S608 - names of ours

    def _write_conflicts(self) -> None:
        for stands, at, event in self._conflicts:
            evidence = _evidence(event)
            content = hashlib.blake2b(canonical_json({**evidence, "time": None}).encode(), digest_size=16).digest()
            self._connection.execute(
                sa.text(
                    "INSERT INTO usage_conflict (stands_seq, stands_time, content_hash, received_at, sent) VALUES (:seq, :time, :content, :at, :sent) "
                    "ON CONFLICT DO NOTHING"
                ),
                {"seq": stands, "time": at, "content": content, "at": self._received, "sent": canonical_json(evidence)},
            )

    # -- afterwards -----------------------------------------------------------------------------

    def calls(self) -> list[StoredCall]:
        """What was stored and names its call by response, request or span (a trace alone is shared by every retry)."""
        found = [_call(_of_call(row)) for row in self._singles]
        for piece in self._pieces:
            # Most name none; those must cost next to nothing.
            details = piece[21]
            has_span = not isinstance(details, _Same) and any(one is not None and '"span_id"' in one for one in set(details))
            if has_span or piece[19] is not _NOTHING or piece[20] is not _NOTHING:
                columns = _of_call(piece)
                # The numbers of arrival end the rows.
                found += map(_call, zip(*(repeat(column.value) if isinstance(column, _Same) else column for column in columns), strict=False))
        return [call for call in found if call is not None]


# Of a row, what ``StoredCall`` is made of: time, seq, workspace, response, request, details.
_of_call = itemgetter(0, 4, 1, 19, 20, 21)

_INSERT = f"INSERT INTO usage_event ({', '.join(_EVENT)}) VALUES "  # noqa: S608 - names of ours
_ONE = f"({', '.join('?' * len(_EVENT))})"

_KINDS = {"event_id": "text", "response_id": "text", "request_id": "text", "details": "text", "status": "smallint", "quality": "smallint", "flags": "int"}
_INSERT_EVENTS = (
    f"INSERT INTO usage_event ({', '.join(_EVENT)}) SELECT "  # noqa: S608 - names of ours
    + ", ".join(f"{name} <> 0" if name in {"billable", "is_unknown"} else name for name in _EVENT)
    + " FROM unnest("
    + ", ".join(f"%s::{_KINDS.get(name, 'bigint')}[]" for name in _EVENT)
    + f") AS e({', '.join(_EVENT)})"
)


def _listed(column: _Column) -> Sequence[Any]:
    if isinstance(column, _Same):
        raise TypeError("this column differs from row to row")
    return column


def _numbers(values: Array) -> _Column:
    """Numbers of many events, or the one that they all have."""
    first = int(values[0])
    return _Same(first) if (values == first).all() else values.astype(np.int64).tolist()


def _said(values: Sequence[Any]) -> _Column:
    return _NOTHING if values.count(None) == len(values) else values


def _insert(connection: sa.Connection, piece: Sequence[_Column]) -> None:
    """Store a piece in SQLite, neighbours in the key beside each other."""
    names: list[str] = []
    marks: list[str] = []
    columns: list[Sequence[Any]] = []
    for name, column in zip(_EVENT, piece, strict=True):
        if isinstance(column, _Same):
            if column.value is not None:
                names.append(name)
                marks.append(str(column.value))
        else:
            names.append(name)
            marks.append("?")
            # The driver looks for an adapter of anything that is no number, text or bytearray.
            columns.append(list(map(_bound, column)) if name in _IDS else column)
    rows = list(zip(*columns, strict=True))
    if any(left > right for left, right in pairwise(_listed(piece[0]))):
        rows.sort(key=itemgetter(0))
    statement, one = f"INSERT INTO usage_event ({', '.join(names)}) VALUES ", f"({', '.join(marks)})"  # noqa: S608 - names and numbers of ours
    in_few_steps(connection, statement, one, rows)


def _bound(stored: str | bytes | None) -> str | bytearray | None:
    return bytearray(stored) if type(stored) is bytes else stored  # type: ignore[return-value]  # no other kind of bytes comes here


def _copied(piece: Sequence[_Column]) -> tuple[list[str], bytes]:
    """A piece for PostgreSQL's COPY: the names of its columns, and its rows as text, made a column at a time."""
    names: list[str] = []
    texts: list[Iterable[str]] = []
    same: list[tuple[str, str]] = []
    for name, column in zip(_EVENT, piece, strict=True):
        if isinstance(column, _Same):
            if column.value is not None:
                same.append((name, str(column.value)))
            continue
        names.append(name)
        if isinstance(next((value for value in column if value is not None), None), str):
            texts.append(["\\N" if value is None else str(value).translate(_TO_ESCAPE) for value in column])
        elif None in column:
            texts.append(["\\N" if value is None else str(value) for value in column])
        else:
            texts.append(map(str, column))
    # What is the same in every row stands at its end.
    end = "".join(f"\t{text}" for _, text in same) + "\n"
    rows = end.join(map("\t".join, zip(*texts, strict=True))) + end
    return [*names, *(name for name, _ in same)], rows.encode()


def _totals(keys: Array, counted: Array) -> tuple[Array, Array]:
    """The keys that differ, in their order, and the sums of each."""
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    begins = np.concatenate(([0], np.nonzero((ordered[1:] != ordered[:-1]).any(axis=1))[0] + 1))
    return ordered[begins], np.add.reduceat(counted[order], begins, axis=0)


def _call(of: Sequence[Any]) -> StoredCall | None:
    time, seq, workspace_id, response, request, details = of
    span = None
    if details is not None and '"span_id"' in details and '"trace_id"' in details:
        said = json.loads(details)
        span = f"{said['trace_id']}:{said['span_id']}" if said.get("trace_id") and said.get("span_id") else None
    if response is None and request is None and span is None:
        return None
    return StoredCall(time, seq, workspace_id, None if response is None else long_id(response), None if request is None else long_id(request), span)


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
