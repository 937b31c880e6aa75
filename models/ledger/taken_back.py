"""What stands beside counted usage: postings that took events back, conflicts that were refused, sources that look alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.columns import to_microseconds
from models.corrections import UsagePosting
from models.ledger.world import World
from models.resources import Workspace
from models.usage import UsageConflict, UsageEvent, UsageSeries, UsageSource

# Two sources look like the same traffic where their hours agree this well, in at least so many hours of at least so many calls.
_ALIKE = Decimal("0.02")
_HOURS, _CALLS = 3, 20


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether an event counts, and if not why."""

    counted: bool
    reason: str | None
    instead: str | None


def standings(session: Session, seqs: Iterable[int]) -> Mapping[int, Standing]:
    """The events among these that postings speak of."""
    wanted = list(seqs)
    found: dict[int, Standing] = {}
    for first in range(0, len(wanted), 500):
        sums: dict[int, int] = {}
        for row in session.exec(select(UsagePosting).where(col(UsagePosting.seq).in_(wanted[first : first + 500])).order_by(col(UsagePosting.id))):
            sums[row.seq] = sums.get(row.seq, 0) + row.sign
            found[row.seq] = _standing(row, is_counted=sums[row.seq] == 0)
    return found


def _standing(row: UsagePosting, *, is_counted: bool) -> Standing:
    if is_counted:
        return Standing(True, None, None)
    instead = None if row.of_time is None or row.of_seq is None else f"evt_{to_microseconds(row.of_time)}_{row.of_seq}"
    match row.kind:
        case "witness":
            return Standing(False, f"another witness of the same call counts: {instead}", instead)
        case "twin":
            return Standing(False, f"the same id and content was sent before, with another time: {instead}", instead)
        case _:
            who = f" by {row.author}" if row.author else ""
            return Standing(False, f"voided{who}" + (f": {row.reason}" if row.reason else ""), None)


def witnesses_of(session: Session, seq: int) -> list[str]:
    """The handles of the events that an event stands for or gave way to, as witnesses of one call."""
    row = UsagePosting
    found: dict[str, None] = {}
    for one in session.exec(select(row).where(col(row.kind) == "witness", sa.or_(col(row.of_seq) == seq, col(row.seq) == seq)).order_by(col(row.id))):
        for time, other in ((one.time, one.seq), (one.of_time, one.of_seq)):
            if time is not None and other is not None and other != seq:
                found[f"evt_{to_microseconds(time)}_{other}"] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class PostingRecord:
    """One posting as people see it."""

    id: int
    handle: str
    workspace: str
    sign: int
    kind: str
    instead: str | None
    batch: str
    author: str
    reason: str
    made_at: datetime


def postings(
    session: Session, *, workspaces: Sequence[str], visible: frozenset[str] | None, limit: int, before: int | None
) -> tuple[list[PostingRecord], int | None]:
    """A page of postings, newest first, and where the next one begins."""
    row = UsagePosting
    query = (
        sa.select(row, col(Workspace.name))
        .join(UsageSeries, col(UsageSeries.id) == col(row.series_id))
        .join(Workspace, col(Workspace.id) == col(UsageSeries.workspace_id))
    )
    if workspaces:
        query = query.where(col(Workspace.name).in_(workspaces))
    if visible is not None:
        query = query.where(col(Workspace.name).in_(sorted(visible)))
    if before is not None:
        query = query.where(col(row.id) < before)
    found = session.execute(query.order_by(col(row.id).desc()).limit(limit + 1)).all()
    records = [
        PostingRecord(
            one.id or 0,
            f"evt_{to_microseconds(one.time)}_{one.seq}",
            name,
            one.sign,
            one.kind,
            None if one.of_time is None else f"evt_{to_microseconds(one.of_time)}_{one.of_seq}",
            one.batch,
            one.author,
            one.reason,
            one.made_at,
        )
        for one, name in found[:limit]
    ]
    return records, records[-1].id if len(found) > limit else None


@dataclass(frozen=True, slots=True)
class ConflictRecord:
    """What was sent under an id that stands with other content."""

    id: int
    workspace: str
    source: str
    event_id: str
    handle: str
    received_at: datetime
    differs: Sequence[tuple[str, Any, Any]]


_COMPARED = ("status", "billable", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens")


def conflicts(
    session: Session, *, workspaces: Sequence[str], visible: frozenset[str] | None, limit: int, before: int | None
) -> tuple[list[ConflictRecord], int | None]:
    """A page of conflicts, newest first, and where the next one begins."""
    row = UsageConflict
    query = select(row)
    if before is not None:
        query = query.where(col(row.id) < before)
    found: list[ConflictRecord] = []
    for one in session.exec(query.order_by(col(row.id).desc()).execution_options(yield_per=200)):
        event = _event_of(session, one)
        if event is None:
            continue
        stands, workspace, source = event
        if (workspaces and workspace not in workspaces) or (visible is not None and workspace not in visible):
            continue
        if len(found) == limit:
            return found, found[-1].id
        handle = f"evt_{to_microseconds(stands.time)}_{stands.seq}"
        found.append(ConflictRecord(one.id or 0, workspace, source, stands.event_id, handle, one.received_at, _differences(stands, one.sent)))
    return found, None


def _event_of(session: Session, conflict: UsageConflict) -> tuple[UsageEvent, str, str] | None:
    query = (
        sa.select(UsageEvent, col(Workspace.name), col(UsageSource.name))
        .join(Workspace, col(Workspace.id) == col(UsageEvent.workspace_id))
        .join(UsageSource, col(UsageSource.id) == col(UsageEvent.source_id))
        .where(col(UsageEvent.seq) == conflict.stands_seq)
    )
    if conflict.stands_time is not None:
        query = query.where(col(UsageEvent.time) == conflict.stands_time)
    row = session.execute(query).first()
    return None if row is None else (row[0], row[1], row[2])


def _differences(stands: UsageEvent, sent: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for name in _COMPARED:
        if name == "status":
            continue  # a code here, a word there; the counts say enough where it matters
        was, now = getattr(stands, name), sent.get(name)
        if was != now:
            found.append((name, was, now))
    return found


@dataclass(frozen=True, slots=True)
class DoubleSource:
    """Two sources of a deployment whose hours look like the same traffic; ``share`` of their hours that agree."""

    workspace: str
    deployment: str
    sources: tuple[str, str]
    hours: int
    share: Decimal


def double_sources(session: Session, *, now: datetime) -> list[DoubleSource]:
    """Deployments that two sources report alike in the last day, without call keys to prove it."""
    world = World(session, now)
    end = to_microseconds(now) // 3_600_000_000 * 3600
    start = end - int(timedelta(days=1).total_seconds())
    source_of = {row.id: row.source_id for row in session.exec(select(UsageSeries))}
    names = {row.id: row.name for row in session.exec(select(UsageSource))}
    by: dict[tuple[str, str], dict[int, dict[int, tuple[int, int]]]] = {}
    rows = session.execute(
        sa.text(
            "SELECT series_id, starts_at / 3600 * 3600, SUM(requests), SUM(input_tokens + output_tokens) FROM usage_quarter "
            "WHERE starts_at >= :start AND starts_at < :end GROUP BY 1, 2"
        ),
        {"start": start, "end": end},
    )
    for series_id, hour, requests, tokens in rows:
        series = world.series.get(int(series_id))
        if series is None:
            continue
        identity = world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=now)
        if identity.workspace is None or identity.deployment is None:
            continue
        of = by.setdefault((identity.workspace, identity.deployment), {}).setdefault(int(source_of.get(int(series_id)) or 0), {})
        before = of.get(int(hour), (0, 0))
        of[int(hour)] = (before[0] + int(requests), before[1] + int(tokens))
    found: list[DoubleSource] = []
    for (workspace, deployment), sources in sorted(by.items()):
        ordered = sorted(sources)
        for index, one in enumerate(ordered):
            for other in ordered[index + 1 :]:
                hours = [hour for hour in sources[one].keys() & sources[other].keys() if min(sources[one][hour][0], sources[other][hour][0]) >= _CALLS]
                alike = [hour for hour in hours if all(_is_alike(a, b) for a, b in zip(sources[one][hour], sources[other][hour], strict=True))]
                if len(alike) >= _HOURS and len(alike) * 2 > len(hours):
                    share = money.QUOTIENT.divide(Decimal(len(alike) * 100), Decimal(len(hours))).quantize(Decimal(1))
                    found.append(DoubleSource(workspace, deployment, (names.get(one, ""), names.get(other, "")), len(alike), share))
    return found


def _is_alike(left: int, right: int) -> bool:
    return abs(left - right) <= _ALIKE * max(left, right)
