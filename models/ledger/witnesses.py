"""What counters and metrics say of usage, beside what was counted from calls: agreement, or a gap to look into.

A witness is never added to anything, nor to another witness. Its increments are found here: a cumulative counter's are
its differences, and all of it where it began again; where a service sends one fact under an old name and a new one,
the newest name of the day speaks. What lies between two hours is spread evenly, exactly in sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.columns import from_microseconds, to_microseconds
from models.ledger import insight
from models.ledger.values import Filters, Problem
from models.ledger.world import World, read_usage
from models.periods import DAY, Period, floor
from models.prices import model_key
from models.witnesses import WitnessSeries, WitnessTarget

Scope = Literal["deployment", "application", "at_least"]

_HOUR, _DAY = 3_600_000_000, 86_400_000_000
# A counter that was not heard of for longer is not looked for: what it says then is laid over the time since it began.
_LOOK_BACK = DAY
# The newest name of a fact first; names that are not listed stand alone.
_NAMES: Mapping[str, int] = {
    "gen_ai.client.inference.usage.input_tokens": 0,
    "gen_ai.client.inference.usage.output_tokens": 0,
    "gen_ai.client.inference.operation.input_tokens": 1,
    "gen_ai.client.inference.operation.output_tokens": 1,
    "gen_ai.client.token.usage": 2,
}
# Beyond this share of what was counted, somebody should look.
TOLERANCE = Decimal("0.02")
# In the order of what ``_Counted`` counts.
_MEASURES = ("input", "output", "requests")
# Witnesses of whole hours, of which some may be missing; the others' counters run through.
_TELLS_HOURS = frozenset({"azure_monitor"})
_SILENT = timedelta(minutes=10)
_REMEDY = {
    "witness_disagrees": "look for calls that no sender reports (witness above) or that are reported twice (witness below): streams without usage, "
    "a second instrumentation, callers that go past the gateway",
    "witness_unreachable": "check METERBRIDGE_VLLM_TARGETS, and that the deployment's /metrics can be reached from here",
}


@dataclass(frozen=True, slots=True)
class WitnessRow:
    """One witness of one deployment over one hour or day, for input tokens, output tokens or requests.

    ``scope`` says what it is compared with: all of the ``deployment`` (its own counters), the same ``application``'s
    calls, or ``at_least`` (it saw a part of the calls, so only more than was counted is a disagreement).
    ``share`` is the difference over what was counted, None where nothing was.
    """

    period: Period
    workspace: str | None
    deployment: str | None
    model: str | None
    kind: str
    service: str
    measure: str
    scope: Scope
    witnessed: int
    counted: int
    share: Decimal | None
    disagrees: bool
    note: str | None = None

    @property
    def difference(self) -> int:
        """Witnessed less counted."""
        return self.witnessed - self.counted


@dataclass(frozen=True, slots=True)
class Increment:
    """What a witness saw between two instants (microseconds; ``start`` may equal ``end``)."""

    start: int
    end: int
    value: int


def increments(points: Iterable[tuple[int, int, int]], *, is_cumulative: bool) -> Iterator[Increment]:
    """The increments of one series from its points (start or 0, time, value).

    A cumulative series with a start is told by that start: another start is another run, even while the first goes on
    (workers of one process share their names). Without one, a value that falls is a counter that began again.
    """
    ordered = sorted(points)
    if not is_cumulative:
        yield from (Increment(start or time, time, value) for start, time, value in ordered)
        return
    before: tuple[int, int, int] | None = None
    for start, time, value in ordered:
        if before is None or before[0] != start:
            if start:
                yield Increment(start, time, value)
            # Of a run whose beginning is not known, the first value says only where it stands.
        elif value >= before[2]:
            yield Increment(before[1], time, value - before[2])
        else:
            yield Increment(before[1], time, value)
        before = (start, time, value)


def witness_rows(session: Session, period: Period, *, granularity: Literal["hour", "day"], filters: Filters, now: datetime) -> list[WitnessRow]:
    """Every witness beside what was counted, per hour or UTC day of the period (cut to whole ones)."""
    size = _HOUR if granularity == "hour" else _DAY
    first, last = to_microseconds(period.start) // size * size, -(-to_microseconds(period.end) // size) * size
    world = World(session, now)
    found = _witnessed(session, world, (first, min(last, to_microseconds(now))), size, filters)
    if not found:
        return []
    # Whoever tells hours is compared hour by hour: one that it did not tell is unknown, and no reason to disagree.
    fine = _HOUR if any(sums.hours for sums in found.values()) else size
    counted = _Counted(session, world, Period(from_microseconds(first), min(period.end, now)), fine)
    rows = [row for (slot, who), sums in sorted(found.items(), key=lambda one: (one[0][0], str(one[0][1]))) for row in _rows(slot, size, who, sums, counted)]
    visible = filters.visible
    return [row for row in rows if visible is None or row.workspace in visible]


# --- what witnesses saw ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Who:
    """A witness and what it speaks of."""

    kind: str
    service: str
    workspace: str | None
    deployment: str | None
    model: str | None
    application: str | None


@dataclass(slots=True)
class _Sums:
    """What a witness saw in a slot by measure, and of one that tells whole hours the hours that it told."""

    of: dict[str, int] = field(default_factory=dict)
    hours: dict[str, set[int]] = field(default_factory=dict)


def _witnessed(session: Session, world: World, window: tuple[int, int], size: int, filters: Filters) -> dict[tuple[int, _Who], _Sums]:
    first, last = window
    since = max(0, first - int(_LOOK_BACK.total_seconds()) * 1_000_000)
    raw = session.execute(
        sa.text("SELECT series_id, started_at, time, value FROM witness_point WHERE time > :since AND time <= :last"), {"since": since, "last": last}
    ).all()
    points: dict[int, list[tuple[int, int, int]]] = {}
    for series_id, started_at, time, value in raw:
        points.setdefault(int(series_id), []).append((int(started_at), int(time), int(value)))
    if not points:
        return {}
    # (slot, day, who, measure) -> rank of its name -> sum
    by_name: dict[tuple[int, _Who, str], dict[int, int]] = {}
    hours: dict[tuple[int, _Who, str], set[int]] = {}
    for series in session.exec(select(WitnessSeries).where(col(WitnessSeries.id).in_(list(points)))):
        who = _who(world, series)
        if (filters.workspaces and who.workspace not in filters.workspaces) or (filters.deployments and who.deployment not in filters.deployments):
            continue
        rank = _NAMES.get(series.name, 0)
        for one in increments(points[series.id or 0], is_cumulative=series.temporality == "cumulative"):
            for slot, value in _spread(one, first, last, size):
                ranks = by_name.setdefault((slot, who, series.measure), {})
                ranks[rank] = ranks.get(rank, 0) + value
                if series.kind in _TELLS_HOURS:
                    hours.setdefault((slot, who, series.measure), set()).add(one.start // _HOUR * _HOUR)
    chosen = _newest_names(by_name)
    found: dict[tuple[int, _Who], _Sums] = {}
    for (slot, who, measure), ranks in by_name.items():
        value = ranks.get(chosen[who.kind, who.service, measure, slot // _DAY], 0)
        sums = found.setdefault((slot, who), _Sums())
        sums.of[measure] = value
        if told := hours.get((slot, who, measure)):
            sums.hours[measure] = told
    return found


def _newest_names(by_name: Mapping[tuple[int, _Who, str], Mapping[int, int]]) -> dict[tuple[str, str, str, int], int]:
    """Per service, measure and UTC day the newest name that says anything: two names of one fact are never added."""
    chosen: dict[tuple[str, str, str, int], int] = {}
    for (slot, who, measure), ranks in by_name.items():
        key = (who.kind, who.service, measure, slot // _DAY)
        # A name that only ever says 0 (what failures record) is not the one that is in use.
        used = [rank for rank, value in ranks.items() if value] or list(ranks)
        chosen[key] = min(used) if key not in chosen else min(chosen[key], *used)
    return chosen


def _spread(one: Increment, first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of an increment per slot of the window: evenly, the whole told exactly once."""
    if one.end <= one.start:
        if first <= one.end < last or (one.end == last and first < last):
            yield min(one.end, last - 1) // size * size, one.value
        return
    span = one.end - one.start
    slot = max(first, one.start // size * size)
    while slot < min(last, one.end):
        left, right = max(slot, one.start), min(slot + size, one.end)
        part = one.value * (right - one.start) // span - one.value * (left - one.start) // span
        if part or one.value == 0:
            yield slot, part
        slot += size


def _who(world: World, series: WitnessSeries) -> _Who:
    workspace, endpoint, deployment = series.workspace or None, series.endpoint or None, series.deployment or None
    if workspace is None and (endpoint or deployment):
        # The only deployment of that name that is known at all.
        name = (deployment or endpoint or "").casefold()
        places = {place for place, full in world.registry.deployments() if full.casefold() == name or full.rsplit("/", 1)[-1].casefold() == name}
        workspace = places.pop() if len(places) == 1 else None
    if workspace is not None and (endpoint or deployment):
        identity = world.registry.resolve(workspace=workspace, endpoint=endpoint, deployment=deployment, model=series.model or None, at=world.known)
        return _Who(series.kind, series.service, identity.workspace, identity.deployment, None, series.application or None)
    return _Who(series.kind, series.service, workspace, deployment or endpoint, series.model or None, series.application or None)


# --- what was counted --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cell:
    workspace: str | None
    deployment: str | None
    model: str | None
    application: str | None


class _Counted:
    """Counted calls per slot and cell: their input and output tokens and their number."""

    def __init__(self, session: Session, world: World, period: Period, size: int) -> None:
        self.size = size
        self.sums: dict[int, dict[_Cell, tuple[int, int, int]]] = {}
        self.applications: set[str] = set()
        cells: dict[int, _Cell] = {}
        for use in read_usage(session, period, slot=size // 1_000_000, as_of=None, series=None):
            cell = cells.get(use[1])
            if cell is None:
                one = world.series[use[1]]
                identity = world.registry.resolve(workspace=one.workspace, endpoint=one.endpoint, deployment=one.deployment, model=one.model, at=world.known)
                cell = cells[use[1]] = _Cell(identity.workspace, identity.deployment, identity.model, one.application)
            into = self.sums.setdefault(use[0] * 1_000_000, {})
            before = into.get(cell, (0, 0, 0))
            into[cell] = (before[0] + use[3], before[1] + use[4], before[2] + use[2])
            if cell.application is not None:
                self.applications.add(cell.application)

    def of(self, slots: Iterable[int], who: _Who, *, application: str | None) -> tuple[int, int, int]:
        """Input tokens, output tokens and number of the calls that the witness could have seen."""
        fitting = [
            sums
            for slot in slots
            for cell, sums in self.sums.get(slot, {}).items()
            if (who.workspace is None or cell.workspace == who.workspace)
            and (who.deployment is None or (cell.deployment or "").casefold() == who.deployment.casefold())
            and (who.model is None or who.deployment is not None or (cell.model is not None and model_key(cell.model) == model_key(who.model)))
            and (application is None or cell.application == application)
        ]
        return sum(one[0] for one in fitting), sum(one[1] for one in fitting), sum(one[2] for one in fitting)


def _rows(slot: int, size: int, who: _Who, sums: _Sums, counted: _Counted) -> Iterator[WitnessRow]:
    scope: Scope = "at_least"
    application = None
    # A deployment's own counters, or those that Azure keeps for it, saw every call.
    if who.kind in ("vllm", "azure_monitor"):
        scope = "deployment"
    elif who.kind == "otlp" and who.application in counted.applications:
        scope, application = "application", who.application
    begin = from_microseconds(slot)
    period = Period(begin, begin + timedelta(microseconds=size))
    slots = range(slot, slot + size, counted.size)
    told = counted.of(slots, who, application=application)
    again = sums.of.get("preemptions", 0)
    # What others call requests are answers or attempts; only Azure's are what we count.
    for place, measure in enumerate(_MEASURES if who.kind in _TELLS_HOURS else _MEASURES[:2]):
        if measure not in sums.of or not (sums.of[measure] or told[place]):
            continue
        known, note = told[place], f"{again} preemptions: work that was begun again is in these counters" if again else None
        if hours := sums.hours.get(measure):
            known = counted.of(sorted(hours), who, application=application)[place]
            if rest := told[place] - known:
                note = f"{rest:,} more were counted in hours of which it told nothing"
        gap = sums.of[measure] - known
        if scope == "at_least":
            gap = max(gap, 0)
        share = money.ratio(Decimal(gap), Decimal(known)) if known else None
        disagrees = bool(gap) and (share is None or abs(share) > TOLERANCE)
        shown = None if share is None else money.truncated(share, 4)
        yield WitnessRow(
            period, who.workspace, who.deployment, who.model, who.kind, who.service, measure, scope, sums.of[measure], known, shown, disagrees, note
        )


# --- what a person should look at --------------------------------------------------------------------------------


def problems(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
    """What is wrong in the data, with what witnesses say against it."""
    return sorted([*insight.problems(session, visible=visible, now=now), *witness_problems(session, visible=visible, now=now)], key=_order)


def _order(problem: Problem) -> tuple[int, bool, str, str]:
    return (1 if problem.kind == "info" else 0, problem.kind == "out_of_scope", problem.kind, problem.subject)


def witness_problems(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
    """Witnesses of the last seven days (up to the last whole hour) that disagree on a day, and deployments that do not answer."""
    end = floor(now, "hour")
    rows = witness_rows(session, Period(floor(end - 7 * DAY, "day"), end), granularity="day", filters=Filters(visible=visible), now=end)
    worst: dict[tuple[str, str], list[WitnessRow]] = {}
    for row in rows:
        if row.disagrees:
            place = f"{row.workspace or '(no workspace)'} / {row.deployment or row.model or '(no deployment)'}"
            worst.setdefault((place, row.service), []).append(row)
    found = []
    for (place, service), gaps in worst.items():
        most = max(gaps, key=lambda row: (abs(row.difference), row.period.start))
        by = "" if most.share is None else f", {abs(most.share) * 100:.1f} %"
        detail = (
            f"on {most.period.start:%Y-%m-%d} it saw {most.witnessed:,} {most.measure}{'' if most.measure == 'requests' else ' tokens'} and {most.counted:,} were counted "
            f"({'more' if most.difference > 0 else 'fewer'} by {abs(most.difference):,}{by})"
        )
        detail += f"; {len({row.period.start for row in gaps})} days disagree" if len({row.period.start for row in gaps}) > 1 else ""
        detail += f"; {most.note}" if most.note else ""
        found.append(
            Problem(
                "witness_disagrees", f"{place}: {most.kind} {service}", detail, _REMEDY["witness_disagrees"], count=sum(abs(row.difference) for row in gaps)
            )
        )
    return found + _silent(session, visible=visible, now=now)


def _silent(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
    targets: Sequence[WitnessTarget] = session.exec(
        select(WitnessTarget).where(col(WitnessTarget.asked_at) > now - DAY).order_by(col(WitnessTarget.name))
    ).all()
    found = []
    for target in targets:
        if (visible is not None and target.name.partition("/")[0] not in visible) or target.failure is None:
            continue
        if target.answered_at is not None and target.asked_at - target.answered_at < _SILENT:
            continue
        since = "its counters have not answered yet" if target.answered_at is None else f"its counters last answered at {target.answered_at:%Y-%m-%d %H:%M} UTC"
        found.append(Problem("witness_unreachable", target.name, f"{since}: {target.failure}", _REMEDY["witness_unreachable"]))
    return found
