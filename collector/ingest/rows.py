"""The rows of one commit and the statements that write them: events, both rollups, arrivals, evidence.

Events come as columns or one by one and are written as they came. What is the same in all events of a piece is said
once, and what is nowhere said is left out of the statement: the driver spends more on a None than on a number.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from collector.capture.columns import Array, EventColumns, summed
from collector.capture.event import CapturedEvent
from models.columns import canonical_json
from models.store import quick
from models.usage import DAY_SECONDS, MINUTE_SECONDS, QUARTER_SECONDS, STATUS_CODE, Operation, Quality, long_id, short_id, split_details

_SECOND = 1_000_000
_HOUR = 3600 * _SECOND
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
_ROLLUPS = (("usage_quarter", QUARTER_SECONDS), ("usage_minute", MINUTE_SECONDS))
_TO_ESCAPE = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


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

    def first(self, connection: sa.Connection) -> int:
        """Where a commit begins to count."""
        if not self._is_sqlite:
            return int(quick(connection, "SELECT nextval('usage_commit')").fetchone()[0]) << _SEQ_BITS
        newest = "" if self._last < 0 else " WHERE arrived_at = (SELECT MAX(arrived_at) FROM usage_arrival)"
        last = quick(connection, f"SELECT MAX(last_seq) FROM usage_arrival{newest}").fetchone()[0]  # noqa: S608 - names of ours
        return max(last or 0, self._last) + 1

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
        self._sums: tuple[dict[Any, list[int]], dict[Any, list[int]]] = {}, {}
        self._conflicts: list[tuple[int, int, CapturedEvent]] = []
        self._twins: list[tuple[int, int, int, int]] = []
        self._seq = 0

    def begin(self) -> None:
        """Take this commit's place in the order of arrival."""
        self._seq = self._numbers.first(self._connection)

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
        is_unknown: bool,
    ) -> int:
        """One event; gives its number in the order of arrival."""
        quality, status, billable = int(event.quality), STATUS_CODE[event.status], int(event.billable)
        inputs, outputs, cached, reasoning = event.input_tokens, event.output_tokens, event.cached_input_tokens, event.reasoning_output_tokens
        outcome, seconds = status * 2 + billable, time // _SECOND
        for sums, (_, width) in zip(self._sums, _ROLLUPS, strict=True):
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
        self._singles.append(
            (
                time, workspace_id, source_id, self._id(event_id), seq, series_id, status, billable,
                inputs, outputs, cached, reasoning, quality, int(is_unknown), flags, self._received, sent, event.started_at,
                split.duration_ms, self._id(split.response_id), self._id(split.request_id), split.details,
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
                _Same(self._received),
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

    def _id(self, text: str | None) -> str | bytes | None:
        """An id as this database keeps it."""
        return short_id(text) if self._is_sqlite and text is not None else text

    def _ids(self, texts: Sequence[str | None]) -> _Column:
        said = _said(texts)
        return said if said is _NOTHING or not self._is_sqlite else [None if text is None else short_id(text) for text in texts]

    # -- writing --------------------------------------------------------------------------------

    def write(self) -> None:
        """Insert events, rollups and evidence; ``IntegrityError`` if another process stored one of the events meanwhile."""
        if self._singles or self._pieces:
            self._write_events()
            known_on = self._received // _SECOND // DAY_SECONDS
            for (table, _), sums in zip(_ROLLUPS, self._sums, strict=True):
                # In key order: two processes that meet in the same rows wait for each other instead of deadlocking.
                self._upsert(table, [(starts_at, series_id, known_on, outcome, *counts) for (starts_at, series_id, outcome), counts in sorted(sums.items())])
            self._write_arrivals()
            self._numbers.used(self._seq - 1)
        self._write_conflicts()
        if self._twins:
            marks = ", ".join(["?" if self._is_sqlite else "%s"] * 4)
            self._connection.exec_driver_sql(f"INSERT INTO usage_twin (seq, time, of_seq, of_time) VALUES ({marks})", self._twins)  # noqa: S608 - names of ours

    def _write_events(self) -> None:
        # Events of a minute are neighbours in the key.
        self._singles.sort(key=itemgetter(0))
        if self._is_sqlite:
            driver: Any = self._connection.connection.driver_connection
            if self._singles:
                driver.executemany(_INSERT_EVENT, self._singles)
            for piece in self._pieces:
                driver.executemany(*_insert(piece))
            return
        # Nothing of it can stand already, under the lock: no table between, no ON CONFLICT.
        copied = [_copied([list(column) for column in zip(*self._singles, strict=True)])] if self._singles else []
        copied += [_copied(piece) for piece in self._pieces]
        driver = self._connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY usage_event ({', '.join(_EVENT)}) FROM STDIN") as copy:
            for rows in copied:
                copy.write(rows)

    def _write_arrivals(self) -> None:
        hour = self._received // _HOUR * 3600
        times = np.array([*(row[0] for row in self._singles), *(time for piece in self._pieces for time in _listed(piece[0]))], np.int64)
        of_days = np.unique(times // (DAY_SECONDS * _SECOND), return_counts=True)
        marks = ", ".join(["?" if self._is_sqlite else "%s"] * 6)
        sql = (
            f"INSERT INTO usage_arrival (arrived_at, happened_on, writer, events, last_seq, last_received_at) VALUES ({marks}) "  # noqa: S608 - names of ours
            "ON CONFLICT (arrived_at, happened_on, writer) DO UPDATE SET "
            "events = usage_arrival.events + excluded.events, last_seq = excluded.last_seq, last_received_at = excluded.last_received_at"
        )
        for day, events in zip(*(counts.tolist() for counts in of_days), strict=True):
            quick(self._connection, sql, (hour, day, self._numbers.writer, events, self._seq - 1, self._received))

    def _upsert(self, table: str, rows: Sequence[tuple[int, ...]]) -> None:
        """Add counts to the rows with these keys."""
        update = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in _ROLLUP_SUMS)
        into, on = f"INSERT INTO {table} ({', '.join(_ROLLUP_COLUMNS)})", f"ON CONFLICT ({', '.join(_ROLLUP_COLUMNS[:4])}) DO UPDATE SET {update}"
        driver: Any = self._connection.connection.driver_connection
        if self._is_sqlite:
            driver.executemany(f"{into} VALUES ({', '.join('?' * len(_ROLLUP_COLUMNS))}) {on}", rows)
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
        found = [call for call in map(_call, self._singles) if call is not None]
        for piece in self._pieces:
            # Most name none; those must cost next to nothing.
            details = piece[21]
            has_span = not isinstance(details, _Same) and any(one is not None and '"span_id"' in one for one in set(details))
            if has_span or piece[19] is not _NOTHING or piece[20] is not _NOTHING:
                count = len(_listed(piece[0]))
                rows = zip(*([column.value] * count if isinstance(column, _Same) else column for column in piece), strict=True)
                found += [call for call in map(_call, rows) if call is not None]
        return found


_INSERT_EVENT = f"INSERT INTO usage_event ({', '.join(_EVENT)}) VALUES ({', '.join('?' * len(_EVENT))})"  # noqa: S608 - names of ours


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


def _insert(piece: Sequence[_Column]) -> tuple[str, list[tuple[Any, ...]]]:
    """How SQLite stores a piece: the statement and its rows, neighbours in the key beside each other."""
    names, marks, columns = [], [], []
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
    return f"INSERT INTO usage_event ({', '.join(names)}) VALUES ({', '.join(marks)})", rows  # noqa: S608 - names and numbers of ours


def _bound(stored: str | bytes | None) -> str | bytearray | None:
    return bytearray(stored) if type(stored) is bytes else stored  # type: ignore[return-value]  # no other kind of bytes comes here


def _copied(columns: Iterable[_Column]) -> bytes:
    """Rows in the text form of PostgreSQL's COPY, made a column at a time."""
    columns = list(columns)
    count = len(_listed(columns[0]))
    texts: list[Sequence[str]] = []
    for column in columns:
        if isinstance(column, _Same):
            texts.append(["\\N" if column.value is None else str(column.value)] * count)
        elif isinstance(next((value for value in column if value is not None), None), str):
            texts.append(["\\N" if value is None else str(value).translate(_TO_ESCAPE) for value in column])
        elif None in column:
            texts.append(["\\N" if value is None else str(value) for value in column])
        else:
            texts.append(list(map(str, column)))
    return ("\n".join(map("\t".join, zip(*texts, strict=True))) + "\n").encode()


def _totals(keys: Array, counted: Array) -> tuple[Array, Array]:
    """The keys that differ, in their order, and the sums of each."""
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    begins = np.concatenate(([0], np.nonzero((ordered[1:] != ordered[:-1]).any(axis=1))[0] + 1))
    return ordered[begins], np.add.reduceat(counted[order], begins, axis=0)


def _call(row: Sequence[Any]) -> StoredCall | None:
    response, request, details = row[19:]
    has_span = details is not None and '"span_id"' in details and '"trace_id"' in details
    if response is None and request is None and not has_span:
        return None
    said = json.loads(details) if has_span else {}
    span = f"{said['trace_id']}:{said['span_id']}" if said.get("trace_id") and said.get("span_id") else None
    if span is None and response is None and request is None:
        return None
    texts = [None if text is None else long_id(text) for text in (response, request)]
    return StoredCall(row[0], row[4], row[1], row[2], row[5], row[12], long_id(row[3]), texts[0], texts[1], span)


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
