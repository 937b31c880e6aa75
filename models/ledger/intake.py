"""What arrives, from whom, what of it is turned away and what is not right: the figures of the Ingest page; and the reports that are kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from models import money
from models.columns import canonical_json
from models.intake import ACCEPTED, CONFLICT, DUPLICATE, ESTIMATED, FIXES, IGNORED, MISSING, NO_KEY, IntakeHour, IntakeSample
from models.ledger.taken_back import ConflictRecord, DoubleSource, conflicts, double_sources
from models.periods import Period
from models.reports import ReportSnapshot
from models.resources import ApiKey, Workspace
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
class Line:
    """What one key sent in one format under one source, by the hour of its arrival; ``missing`` and ``estimated`` are of the accepted.

    ``key`` is the key's name: None where no key was needed (open mode), or where none that works was sent (``is_unknown``).
    ``rejected`` counts everything that was turned away but conflicts; of a body that was refused as a whole, one.
    """

    key_id: str
    key: str | None
    source: str
    format: str
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    ignored: int
    missing: int
    estimated: int

    @property
    def is_unknown(self) -> bool:
        """Whether the sender had no key that works."""
        return self.key_id == NO_KEY

    @property
    def line(self) -> str:
        """By which key, in which format and under which source it came: how a drawer names it."""
        return f"{self.key_id}|{self.format}|{self.source}"

    @property
    def missing_share(self) -> Decimal | None:
        """The share of the accepted events whose tokens nobody said."""
        return _share(self.missing, self.accepted)


@dataclass(frozen=True, slots=True)
class RefusedSample:
    """One refusal: when, at which index of its body, what was said, and which fields of which kinds it had."""

    seen_at: datetime
    index: int | None
    detail: str
    shape: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """What of a sender and format was turned away for one reason, what to do about it, and the newest samples."""

    key_id: str
    key: str | None
    source: str
    format: str
    error: str
    events: int
    fix: str
    samples: Sequence[RefusedSample]

    @property
    def line(self) -> str:
        """By which key, in which format and under which source it came: how a drawer names it."""
        return f"{self.key_id}|{self.format}|{self.source}"

    @property
    def is_unknown(self) -> bool:
        """Whether the sender had no key that works."""
        return self.key_id == NO_KEY


@dataclass(frozen=True, slots=True)
class DoorHour:
    """What arrived in an hour, by how it came out."""

    starts_at: datetime
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Intake:
    """Arrivals by hour, senders busiest first, conflicts newest first, and sources that look like the same traffic.

    ``arrivals`` is None for a reader of some workspaces: arrivals are counted for all of them together. What came in at the
    door (``hours``, ``lines``, ``refused``) is told to such a reader for keys of no other workspaces.
    """

    period: Period
    arrivals: Sequence[tuple[datetime, int]] | None
    senders: Sequence[Sender]
    conflicts: Sequence[ConflictRecord]
    twins: Sequence[DoubleSource]
    hours: Sequence[DoorHour] = ()
    lines: Sequence[Line] = ()
    refused: Sequence[Refused] = ()

    @property
    def arrived(self) -> int | None:
        """All that was stored of what arrived."""
        return None if self.arrivals is None else sum(events for _, events in self.arrivals)

    @property
    def unknown_share(self) -> Decimal | None:
        """The share of all senders' calls whose tokens nobody said."""
        return _share(sum(one.unknown_requests for one in self.senders), sum(one.requests for one in self.senders))


def intake(session: Session, period: Period, *, visible: frozenset[str] | None, now: datetime) -> Intake:
    """What arrived in a period (by hour) and whose calls fell into it (by sender)."""
    known, _ = conflicts(session, workspaces=(), visible=visible, limit=_MOST_CONFLICTS, before=None)
    twins = [one for one in double_sources(session, now=now) if visible is None or one.workspace in visible]
    arrived = _arrivals(session, period) if visible is None else None
    return Intake(period, arrived, _senders(session, period, visible, known), known, twins, *_door(session, period, visible))


def _door(session: Session, period: Period, visible: frozenset[str] | None) -> tuple[list[DoorHour], list[Line], list[Refused]]:
    asked = sa.select(col(ApiKey.id), col(ApiKey.name), col(ApiKey.workspaces))
    keys = {key_id: (name, frozenset(json.loads(workspaces))) for key_id, name, workspaces in session.execute(asked)}
    seen = None if visible is None else {key_id for key_id, (_, workspaces) in keys.items() if workspaces and workspaces <= visible}
    row = IntakeHour
    found = session.execute(
        sa.select(col(row.starts_at), col(row.key_id), col(row.source), col(row.format), col(row.outcome), col(row.events)).where(
            col(row.starts_at) >= int(period.start.timestamp()), col(row.starts_at) < int(period.end.timestamp())
        )
    )
    of_hour: dict[int, Counter[str]] = {}
    of_sender: dict[tuple[str, str, str], Counter[str]] = {}
    for starts_at, key_id, source, form, outcome, events in found:
        if seen is None or key_id in seen:
            of_hour.setdefault(int(starts_at), Counter())[outcome] += int(events)
            of_sender.setdefault((key_id, source, form), Counter())[outcome] += int(events)
    hours = [
        DoorHour(datetime.fromtimestamp(at, UTC), counts[ACCEPTED], counts[DUPLICATE], counts[CONFLICT], _rejected(counts))
        for at, counts in sorted(of_hour.items())
    ]
    lines = [
        Line(
            key_id, keys[key_id][0] if key_id in keys else None, source, form, counts[ACCEPTED], counts[DUPLICATE], counts[CONFLICT],
            _rejected(counts), counts[IGNORED], counts[MISSING], counts[ESTIMATED],
        )
        for (key_id, source, form), counts in of_sender.items()
    ]  # fmt: skip
    lines.sort(key=lambda one: (-one.accepted - one.duplicates, -one.rejected, one.key_id, one.source, one.format))
    samples = _samples(session)
    refused = [
        Refused(
            *(key_id, keys[key_id][0] if key_id in keys else None, source, form, error, events, FIXES.get(error, "See what each route takes at /docs.")),
            samples.get((key_id, source, form, error), ()),
        )
        for (key_id, source, form), counts in of_sender.items()
        for error, events in counts.items()
        if error not in _NO_REFUSAL
    ]
    refused.sort(key=lambda one: (-one.events, one.key_id, one.source, one.format, one.error))
    return hours, lines, refused


_NO_REFUSAL = frozenset({ACCEPTED, DUPLICATE, IGNORED, MISSING, ESTIMATED})


def _rejected(counts: Counter[str]) -> int:
    return sum(events for outcome, events in counts.items() if outcome not in _NO_REFUSAL and outcome != CONFLICT)


def _samples(session: Session) -> dict[tuple[str, str, str, str], list[RefusedSample]]:
    """The samples that are kept, newest first, by sender, format and class; the table is bounded."""
    found: dict[tuple[str, str, str, str], list[RefusedSample]] = {}
    for one in session.scalars(sa.select(IntakeSample).order_by(col(IntakeSample.seen_at).desc(), col(IntakeSample.slot))):
        found.setdefault((one.key_id, one.source, one.format, one.error), []).append(RefusedSample(one.seen_at, one.place, one.detail, one.shape))
    return found


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


__all__ = ["DoorHour", "Intake", "Line", "Refused", "RefusedSample", "Sender", "SnapshotRecord", "intake", "report_snapshots"]
