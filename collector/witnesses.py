"""Several witnesses of one call: an SDK's span, a gateway's record, a log row. All are kept, one counts.

``link`` is told of every commit's calls in its transaction. Calls meet by workspace and the provider's response id (else
its request id, else the span), within an hour of each other or of another witness between them: ids are not promised to
be unique for ever. Which one counts depends on the witnesses alone, never on their order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

import sqlalchemy as sa

from models.matching import full_name
from models.store import in_few_steps, quick
from models.usage import DAY_SECONDS, MINUTE_SECONDS, QUARTER_SECONDS, STATUS_CODE, Quality, Status, long_id

_HOUR = 3_600_000_000
_SECOND = 1_000_000
# Of equally well-informed witnesses the one nearest to the bill, by its format.
_ORDER = {name: rank for rank, name in enumerate(("apim_llm_log", "litellm", "openai_response", "otlp_span", "otlp_log", "cloudevents"))}
_UNBILLED = frozenset({STATUS_CODE[Status.ERROR], STATUS_CODE[Status.THROTTLED]})
# A call whose witnesses follow each other hour by hour for longer is no call.
_LONGEST_CHAIN = 48
_CHUNK = 2000
_ESTIMATED = int(Quality.ESTIMATED)
_Row = tuple[int, int, int, int]  # hour, key, seq, time
_Place = tuple[int, int, int]  # hour, seq, time


class NamesCall(Protocol):
    """What ``link`` needs to know of a stored event (``collector.ingest.StoredCall``)."""

    @property
    def time(self) -> int: ...
    @property
    def seq(self) -> int: ...
    @property
    def workspace_id(self) -> int: ...
    @property
    def response_id(self) -> str | None: ...
    @property
    def request_id(self) -> str | None: ...
    @property
    def span_id(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as reversals need it; instants in microseconds. ``sum_of_signs`` is 0 while it counts, -1 while it does not."""

    time: int
    seq: int
    series_id: int
    source: str
    event_id: str
    workspace: str
    deployment: str | None
    status: int
    billable: bool
    quality: int
    is_unknown: bool
    counts: tuple[int, int, int, int]  # input, output, cached input, reasoning output
    source_format: str
    sum_of_signs: int = 0
    last_kind: str | None = None

    @property
    def is_counted(self) -> bool:
        return self.sum_of_signs == 0


def call_key(call: NamesCall) -> int:
    """A signed 64-bit digest of what the call is named by: the response, else the request, else the span."""
    if call.response_id is not None:
        text = f"{call.workspace_id}\0r\0{call.response_id}"
    elif call.request_id is not None:
        text = f"{call.workspace_id}\0q\0{call.request_id}"
    else:
        text = f"{call.workspace_id}\0s\0{call.span_id}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def link(connection: sa.Connection, calls: Sequence[NamesCall], *, received: int, is_sqlite: bool) -> None:
    """Note which calls these events are of, and let the best-informed witness of each call count alone."""
    # Neighbours in the key beside each other.
    rows = sorted((call.time // _HOUR, call_key(call), call.seq, call.time) for call in calls)
    _note(connection, rows, is_sqlite=is_sqlite)
    met: dict[int, set[_Place]] = {}
    for first in range(0, len(rows), _CHUNK):
        for hour, key, seq, time in _others(connection, rows[first : first + _CHUNK], is_sqlite=is_sqlite):
            met.setdefault(key, set()).add((hour, seq, time))
    if not met:
        return
    for hour, key, seq, time in rows:
        if key in met:
            met[key].add((hour, seq, time))
    for key in sorted(met):
        for chain in _chains(_whole(connection, key, met[key], is_sqlite=is_sqlite)):
            if len(chain) > 1:
                settle(connection, read_events(connection, chain), made_at=received)


def _note(connection: sa.Connection, rows: Sequence[_Row], *, is_sqlite: bool) -> None:
    if is_sqlite:
        in_few_steps(connection, "INSERT INTO usage_call (hour, key, seq, time) VALUES ", "(?, ?, ?, ?)", rows, " ON CONFLICT DO NOTHING")
    else:
        query = (
            "INSERT INTO usage_call (hour, key, seq, time) SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[]) ON CONFLICT DO NOTHING"
        )
        quick(connection, query, [list(column) for column in zip(*rows, strict=True)])


def _others(connection: sa.Connection, rows: Sequence[_Row], *, is_sqlite: bool) -> list[_Row]:
    """What else is noted under the keys of these rows, in their hours and those beside them. Mostly nothing: only what meets is read."""
    if not is_sqlite:
        query = (
            "SELECT c.hour, c.key, c.seq, c.time FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS w(hour, key, seq) "
            "JOIN usage_call c ON c.hour IN (w.hour - 1, w.hour, w.hour + 1) AND c.key = w.key WHERE c.seq <> w.seq"
        )
        return list(quick(connection, query, [list(column) for column in list(zip(*rows, strict=True))[:3]]))
    query = (
        "SELECT c.hour, c.key, c.seq, c.time FROM json_each(?) w CROSS JOIN usage_call c "
        "ON c.hour IN (?, ?, ?) AND c.key = CAST(w.key AS INTEGER) WHERE c.seq <> w.value"
    )
    found: list[_Row] = []
    for hour, alike in groupby(rows, key=itemgetter(0)):
        # Members of one name are all looked at: rows of one key and hour meet each other, too.
        wanted = ",".join([f'"{key}":{seq}' for _, key, seq, _ in alike])
        found += quick(connection, query, (f"{{{wanted}}}", hour - 1, hour, hour + 1)).fetchall()
    return found


def _whole(connection: sa.Connection, key: int, known: set[_Place], *, is_sqlite: bool) -> set[_Place]:
    """All that hangs together under a key, hour by hour."""
    hours = "SELECT value FROM json_each(?)" if is_sqlite else "SELECT unnest(%s::bigint[])"
    query = f"SELECT hour, seq, time FROM usage_call WHERE hour IN ({hours}) AND key = {'?' if is_sqlite else '%s'}"  # noqa: S608 - marks of ours
    found = set(known)
    for _ in range(_LONGEST_CHAIN):
        near = sorted({hour + beside for hour, _, _ in found for beside in (-1, 0, 1)})
        more = set(map(tuple, quick(connection, query, (json.dumps(near) if is_sqlite else near, key)).fetchall())) - found
        if not more:
            break
        found |= more
    return found


def _chains(found: set[_Place]) -> list[list[tuple[int, int]]]:
    """(time, seq) of the witnesses of each call: those of an hour and the next hang together."""
    chains: list[list[tuple[int, int]]] = []
    last = None
    for hour, seq, time in sorted(found):
        if last is None or hour - last > 1:
            chains.append([])
        chains[-1].append((time, seq))
        last = hour
    return chains


def read_events(connection: sa.Connection, places: Iterable[tuple[int, int]]) -> list[StoredEvent]:
    """The events at (time, seq), with whether they count."""
    found: list[StoredEvent] = []
    query = sa.text(
        "SELECT e.time, e.seq, e.series_id, s.name, e.event_id, w.name, u.endpoint, u.deployment, e.status, e.billable, e.quality, e.is_unknown, "
        "e.input_tokens, e.output_tokens, e.cached_input_tokens, e.reasoning_output_tokens, e.details, "
        "(SELECT COALESCE(SUM(p.sign), 0) FROM usage_posting p WHERE p.seq = e.seq), "
        "(SELECT p.kind FROM usage_posting p WHERE p.seq = e.seq ORDER BY p.id DESC LIMIT 1) "
        "FROM usage_event e JOIN usage_series u ON u.id = e.series_id JOIN usage_source s ON s.id = e.source_id JOIN workspace w ON w.id = e.workspace_id "
        "WHERE e.time = :time AND e.seq = :seq"
    )
    for time, seq in places:
        row = connection.execute(query, {"time": time, "seq": seq}).first()
        if row is None:
            continue
        details: dict[str, Any] = json.loads(row[16]) if isinstance(row[16], str) else row[16] or {}
        found.append(
            StoredEvent(
                time=int(row[0]),
                seq=int(row[1]),
                series_id=int(row[2]),
                source=row[3],
                event_id=long_id(row[4]),
                workspace=row[5],
                deployment=full_name(row[6] or None, row[7] or None),
                status=int(row[8]),
                billable=bool(row[9]),
                quality=int(row[10]),
                is_unknown=bool(row[11]),
                counts=(int(row[12] or 0), int(row[13] or 0), int(row[14] or 0), int(row[15] or 0)),
                source_format=str(details.get("source_format") or ""),
                sum_of_signs=int(row[17]),
                last_kind=row[18],
            )
        )
    return found


def settle(connection: sa.Connection, members: Sequence[StoredEvent], *, made_at: int) -> None:
    """Let one of the witnesses of a call count, and no other; post what changes."""
    # A cache hit repeats the id of the call it saved, and an attempt that failed is an attempt of its own.
    billed = [one for one in members if one.billable and one.status not in _UNBILLED]
    for of in _same_deployment(billed):
        standing = [one for one in of if one.is_counted or one.last_kind == "witness"]
        if len(standing) < 2 and not any(not one.is_counted for one in standing):
            continue
        winner = min(standing, key=lambda one: _rank(connection, one))
        if not winner.is_counted:
            post(connection, [winner], sign=1, kind="witness", of=None, made_at=made_at)
        losers = [one for one in standing if one.seq != winner.seq and one.is_counted]
        post(connection, losers, sign=-1, kind="witness", of=winner, made_at=made_at)


def _same_deployment(members: Sequence[StoredEvent]) -> list[list[StoredEvent]]:
    """The members that can be of one call: of one deployment, as far as they say one."""
    named = {(one.deployment or "").rsplit("/", 1)[-1].casefold() for one in members if one.deployment}
    if len(named) < 2:
        return [list(members)]
    return [[one for one in members if one.deployment and one.deployment.rsplit("/", 1)[-1].casefold() == name] for name in sorted(named)]


def _rank(connection: sa.Connection, one: StoredEvent) -> tuple[Any, ...]:
    """The lower the better; nothing in it hangs on the order of arrival."""
    is_authority = False
    if one.deployment is not None:
        said = connection.execute(
            sa.text(
                "SELECT authoritative_source FROM deployment_setting WHERE known_to IS NULL AND authoritative_source IS NOT NULL "
                "AND lower(workspace) = lower(:workspace) AND (lower(name) = lower(:name) OR lower(name) LIKE '%/' || lower(:name)) LIMIT 1"
            ),
            {"workspace": one.workspace, "name": one.deployment},
        ).scalar()
        is_authority = said is not None and said == one.source
    return not is_authority, one.quality, _ORDER.get(one.source_format, len(_ORDER)), one.source, one.event_id, one.time


_POSTING = (
    "time, seq, series_id, outcome, sign, kind, of_time, of_seq, batch, author, reason, made_at, "
    "input_tokens, output_tokens, cached_input_tokens, reasoning_output_tokens, unknown_requests, estimated_requests"
)
_SUMS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens", "unknown_requests", "estimated_requests")


def post(
    connection: sa.Connection,
    events: Sequence[StoredEvent],
    *,
    sign: int,
    kind: str,
    of: StoredEvent | None,
    made_at: int,
    batch: str = "",
    author: str = "",
    reason: str = "",
) -> None:
    """Take events back (-1) or count them again (+1): a signed row each, and signed sums in both rollups on the day it is known."""
    known_on = made_at // _SECOND // DAY_SECONDS
    for one in events:
        outcome = one.status * 2 + one.billable
        sums = [1, *one.counts, int(one.is_unknown), int(one.quality == _ESTIMATED)]
        values = [one.time, one.seq, one.series_id, outcome, sign, kind, None if of is None else of.time, None if of is None else of.seq]
        values += [batch, author, reason, made_at, *sums[1:]]
        names = [name.strip() for name in _POSTING.split(",")]
        marks = ", ".join(f":{name}" for name in names)
        connection.execute(sa.text(f"INSERT INTO usage_posting ({_POSTING}) VALUES ({marks})"), dict(zip(names, values, strict=True)))  # noqa: S608 - names of ours
        seconds = one.time // _SECOND
        for table, width in (("usage_quarter", QUARTER_SECONDS), ("usage_minute", MINUTE_SECONDS)):
            key = {"starts_at": seconds - seconds % width, "series_id": one.series_id, "known_on": known_on, "outcome": outcome}
            row = {**key, **{name: sign * count for name, count in zip(_SUMS, sums, strict=True)}}
            update = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in _SUMS)
            connection.execute(
                sa.text(
                    f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)}) "  # noqa: S608 - names of ours
                    f"ON CONFLICT (starts_at, series_id, known_on, outcome) DO UPDATE SET {update}"
                ),
                row,
            )
