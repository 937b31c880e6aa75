"""What arrives, from whom, and what of it is not right: the figures of the Ingest page; and the reports that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session, col

from models import money
from models.columns import canonical_json
from models.ledger.taken_back import ConflictRecord, DoubleSource, conflicts, double_sources
from models.periods import Period
from models.reports import ReportSnapshot
from models.resources import Workspace
from models.usage import UsageArrival, UsageSeries, UsageSource

_MOST_CONFLICTS = 50


def _share(part: int, whole: int) -> Decimal | None:
    return money.QUOTIENT.divide(Decimal(part), Decimal(whole)) if whole > 0 else None


@dataclass(frozen=True, slots=True)
class Sender:
    """What one source sent of a period's calls; ``conflicts`` among the newest that are kept."""

    source: str
    workspaces: int
    requests: int
    unknown_requests: int
    tokens: int
    last_call: datetime
    conflicts: int

    @property
    def unknown_share(self) -> Decimal | None:
        """The share of calls whose tokens nobody said."""
        return _share(self.unknown_requests, self.requests)


@dataclass(frozen=True, slots=True)
class Intake:
    """Arrivals by hour, senders busiest first, conflicts newest first, and sources that look like the same traffic.

    ``arrivals`` is None for a reader of some workspaces: arrivals are counted for all of them together.
    """

    period: Period
    arrivals: Sequence[tuple[datetime, int]] | None
    senders: Sequence[Sender]
    conflicts: Sequence[ConflictRecord]
    twins: Sequence[DoubleSource]

    @property
    def unknown_share(self) -> Decimal | None:
        """The share of all senders' calls whose tokens nobody said."""
        return _share(sum(one.unknown_requests for one in self.senders), sum(one.requests for one in self.senders))


def intake(session: Session, period: Period, *, visible: frozenset[str] | None, now: datetime) -> Intake:
    """What arrived in a period (by hour) and whose calls fell into it (by sender)."""
    known, _ = conflicts(session, workspaces=(), visible=visible, limit=_MOST_CONFLICTS, before=None)
    twins = [one for one in double_sources(session, now=now) if visible is None or one.workspace in visible]
    return Intake(period, _arrivals(session, period) if visible is None else None, _senders(session, period, visible, known), known, twins)


def _arrivals(session: Session, period: Period) -> list[tuple[datetime, int]]:
    row = UsageArrival
    found = session.execute(
        sa.select(col(row.arrived_at), sa.func.sum(col(row.events)))
        .where(col(row.arrived_at) >= int(period.start.timestamp()), col(row.arrived_at) < int(period.end.timestamp()))
        .group_by(col(row.arrived_at))
        .order_by(col(row.arrived_at))
    )
    return [(datetime.fromtimestamp(int(at), UTC), int(events)) for at, events in found]


def _senders(session: Session, period: Period, visible: frozenset[str] | None, known: Sequence[ConflictRecord]) -> list[Sender]:
    series = {
        row.id: (row.workspace_id, source, workspace)
        for row, source, workspace in session.execute(
            sa.select(UsageSeries, col(UsageSource.name), col(Workspace.name))
            .join(UsageSource, col(UsageSource.id) == col(UsageSeries.source_id))
            .join(Workspace, col(Workspace.id) == col(UsageSeries.workspace_id))
        )
        if visible is None or workspace in visible
    }
    rows = session.execute(
        sa.text(
            "SELECT series_id, SUM(requests), SUM(unknown_requests), SUM(input_tokens + output_tokens), MAX(starts_at) FROM usage_quarter "
            "WHERE starts_at >= :start AND starts_at < :end GROUP BY 1"
        ),
        {"start": int(period.start.timestamp()), "end": int(period.end.timestamp())},
    )
    sums: dict[str, list[int]] = {}
    places: dict[str, set[int]] = {}
    for series_id, requests, unknown, tokens, last in rows:
        place = series.get(int(series_id))
        if place is None:
            continue
        workspace_id, source, _ = place
        places.setdefault(source, set()).add(workspace_id)
        of = sums.setdefault(source, [0, 0, 0, 0])
        of[0] += int(requests)
        of[1] += int(unknown)
        of[2] += int(tokens)
        of[3] = max(of[3], int(last))
    contradicted: dict[str, int] = {}
    for one in known:
        contradicted[one.source] = contradicted.get(one.source, 0) + 1
    found = [
        Sender(source, len(places[source]), of[0], of[1], of[2], datetime.fromtimestamp(of[3], UTC), contradicted.get(source, 0)) for source, of in sums.items()
    ]
    return sorted(found, key=lambda one: (-one.requests, one.source))


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A report that is kept: which one it is, not what it says. ``number`` 0 is the first, a later one restates it."""

    id: str
    kind: str
    period: str
    time_zone: str
    number: int
    made_at: datetime
    figures_sha256: str
    is_whole: bool


def report_snapshots(session: Session, *, visible: frozenset[str] | None, limit: int = 100) -> list[SnapshotRecord]:
    """The reports that a reader may see, newest first: those of all workspaces, or those of exactly the reader's own."""
    row = ReportSnapshot
    columns = (row.id, row.kind, row.period, row.time_zone, row.scope, row.number, row.made_at, row.figures_sha256)
    whole = canonical_json({"visible": None if visible is None else sorted(visible), "workspaces": [], "deployments": [], "teams": []})
    query = sa.select(*(col(column) for column in columns)).order_by(col(row.made_at).desc(), col(row.id)).limit(limit)
    if visible is not None:
        query = query.where(col(row.scope) == whole)
    return [SnapshotRecord(one[0], one[1], one[2], one[3], one[5], one[6], one[7], one[4] == whole) for one in session.execute(query)]


__all__ = ["Intake", "Sender", "SnapshotRecord", "intake", "report_snapshots"]
