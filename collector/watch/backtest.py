"""A rule or budget over stored history: when it would have fired. Reads only; nobody is told, and no alert is made.

Judged by the functions that judge live (``collector.alerting``). What it may cost is bounded: the length of the past, the
number of firings and lines that are given, and the time that it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlmodel import Session

from collector.alerting import INACTIVE, Episode, Piece, State, follow, is_crossed, steps_crossed
from collector.watch.judge import policy_of
from collector.watch.measures import MEASURES, Place, Reading, Sight, thresholds
from models import money
from models.alerts import COUNTDOWN_KINDS, RATE_KINDS, AlertRule, Budget, Kind
from models.columns import from_microseconds, to_microseconds
from models.errors import InvalidInput
from models.ledger import budgets, rates
from models.ledger.costs import costs
from models.ledger.values import CostQuery
from models.money import ZERO
from models.periods import DAY, Period, day_start, rfc3339, utc_day
from models.trials import Firing, Line, Trial
from models.usage import MINUTE_SECONDS

# Rates are followed second by second, budgets hour by hour or day by day, the others day by day.
_LONGEST_RATES = 31 * DAY
_LONGEST_DAYS = 92 * DAY
_LONGEST_BUDGETS = 366 * DAY
_BY_HOUR = 92 * DAY
_SLICE = timedelta(hours=6)
# Somebody waits for the answer, and others for the database.
_MOST_SECONDS = 25.0
MOST_FIRINGS = 1000
_MOST_LINES = 6
_MOST_POINTS = 360
# These are only known for the present: their history is not kept.
_PRESENT_ONLY = frozenset({Kind.HEARTBEAT, Kind.STALE_SOURCE, Kind.UNREACHED_RECEIVER, Kind.REPORT_DELIVERY})
_UNITS: Mapping[Kind, str] = {
    Kind.TOKENS_PER_MINUTE: "tokens a minute",
    Kind.REQUESTS_PER_MINUTE: "requests a minute",
    Kind.THROTTLED_REQUESTS: "429s a minute",
    Kind.CORE_QUOTA: "vCPUs",
    Kind.SHARED_QUOTA_DELETION: "hours left",
    Kind.MODEL_RETIREMENT: "hours left",
    Kind.SPEND_ANOMALY: "% outside the band",
    Kind.UNPRICED_USAGE: "tokens a day",
    Kind.DOUBLE_SOURCE: "% alike",
}
Clock = Callable[[], float]


def backtest(session: Session, rule: AlertRule, period: Period, *, now: datetime, clock: Clock = time.monotonic) -> Trial:
    """Every time that ``rule`` would have fired in the period, in order; with the deployments and limits of today."""
    if rule.kind in _PRESENT_ONLY:
        raise InvalidInput(f"a {rule.kind.value} rule is about the present; it has no history to test", field="kind")
    span = _past(period, now, _LONGEST_RATES if rule.kind in RATE_KINDS else _LONGEST_DAYS, f"a {rule.kind.value} rule")
    work = _Work(clock)
    trial = _rates(session, rule, span, now, work) if rule.kind in RATE_KINDS else _days(session, rule, span, work)
    return _bounded(trial)


def backtest_budget(session: Session, budget: Budget, period: Period, *, now: datetime) -> Trial:
    """Every step that ``budget`` would have crossed in the period, by what is known of its spend today."""
    span = _past(period, now, _LONGEST_BUDGETS, "a budget")
    is_hourly = budget.basis != "billed" and span.end - span.start <= _BY_HOUR
    basis: Any = budget.basis
    running = budgets.period_of(budget, span.start)
    # A charge belongs to the period that holds the start of its day, as it does live.
    asked = Period(budgets.billed_days(running).start if basis == "billed" else running.start, span.end)
    query = CostQuery(asked, "hour" if is_hourly else "day", (), basis, budgets.scope_filters(budget.scope), budget.currency, time_zone="UTC")
    if basis != "billed":
        query = replace(query, time_zone=budget.time_zone)
    rows = [(row.period, row.figures.cost) for row in costs(session, query, now=now).rows if row.figures.cost is not None]
    found: list[Firing] = []
    points: list[tuple[datetime, Decimal]] = []
    spent, claimed = ZERO, set[int]()
    open_ones: dict[int, Firing] = {}

    def ended(at: datetime | None) -> None:
        found.extend(replace(one, resolved_at=at) for one in open_ones.values())
        open_ones.clear()

    for part, cost in rows:
        own = budgets.period_of(budget, part.start)
        if own != running:
            ended(running.end)
            if running.end > span.start:
                points += [(running.end, spent), (running.end, ZERO)]
            running, spent, claimed = own, ZERO, set()
        spent = money.plus(spent, cost)
        at = min(part.end, span.end)
        if at < span.start:
            # What was crossed before the time that is asked for told then.
            claimed.update(steps_crossed(spent=spent, amount=budget.amount, steps=budget.steps, claimed=claimed).crossed)
            continue
        points.append((at, spent))
        for step, one in list(open_ones.items()):
            if not is_crossed(spent=spent, amount=budget.amount, step=step):
                found.append(replace(open_ones.pop(step), resolved_at=at))
            elif one.peak is None or spent > one.peak:
                open_ones[step] = replace(one, peak=spent)
        crossed = steps_crossed(spent=spent, amount=budget.amount, steps=budget.steps, claimed=claimed)
        claimed.update(crossed.crossed)
        if crossed.telling is not None:
            limit = money.said(budget.amount, budget.currency)
            why = f"{money.said(spent, budget.currency)} spent since {rfc3339(own.start)}, at or above {crossed.telling} % of {limit}"
            open_ones[crossed.telling] = Firing(dict(budget.scope), at, None, spent, why, crossed.telling)
    ended(running.end if running.end <= span.end else None)
    notes = ["the steps of the forecast are not tried: how good it is stands beside each budget"] if budget.forecast_steps else []
    notes.append(f"by the spend as it is known today, {'hour by hour' if is_hourly else 'day by day'}")
    return _bounded(Trial(span, budget.currency, found, [Line(dict(budget.scope), budget.amount, points)], notes))


def _past(period: Period, now: datetime, longest: timedelta, what: str) -> Period:
    end = min(period.end, now)
    if period.start >= end:
        raise InvalidInput("from and to must span some of the past", field="from")
    if end - period.start > longest:
        raise InvalidInput(f"{what} can be tested over {longest.days} days at once, not over {(end - period.start).days}", field="from")
    return Period(period.start, end)


class _Work:
    """How long it may still take."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = clock() + _MOST_SECONDS

    def go_on(self) -> None:
        if self._clock() > self._until:
            raise InvalidInput(f"this takes more than {_MOST_SECONDS:g} seconds; test a shorter time, or a narrower scope", field="from")


def _bounded(trial: Trial) -> Trial:
    """What an answer can hold: the first firings, and lines of so many points as a chart shows."""
    ordered = sorted(trial.firings, key=lambda firing: (firing.fired_at, repr(sorted(firing.scope.items(), key=str)), firing.step or 0))
    notes = list(trial.notes)
    if len(ordered) > MOST_FIRINGS:
        notes.append(f"the first {MOST_FIRINGS:,} of {len(ordered):,} firings")
    highest = sorted(trial.lines, key=lambda line: -max((value for _, value in line.points), default=ZERO))
    if len(highest) > _MOST_LINES:
        notes.append(f"the chart has the {_MOST_LINES} highest of {len(highest)} lines")
    lines = [replace(line, points=_thinned(line.points, trial.period)) for line in highest[:_MOST_LINES]]
    return replace(trial, firings=ordered[:MOST_FIRINGS], lines=lines, notes=notes)


def _thinned(points: Sequence[tuple[datetime, Decimal]], period: Period) -> Sequence[tuple[datetime, Decimal]]:
    """Of every stretch of the period the highest point."""
    if len(points) <= _MOST_POINTS:
        return points
    width = (period.end - period.start) / _MOST_POINTS
    highest: dict[int, tuple[datetime, Decimal]] = {}
    for at, value in points:
        stretch = int((at - period.start) / width)
        if stretch not in highest or value > highest[stretch][1]:
            highest[stretch] = (at, value)
    return [highest[stretch] for stretch in sorted(highest)]


# -- rates ----------------------------------------------------------------------------------------


def _rates(session: Session, rule: AlertRule, period: Period, now: datetime, work: _Work) -> Trial:
    """Slice by slice: the memory is that of a slice, the states go on."""
    # What was imported later was used then all the same.
    today = Sight(session, now, late=None)
    states: dict[str, tuple[State, Reading, Decimal | None]] = {}
    found: list[Firing] = []
    outline = _Outline(today, rule, period)
    start = period.start
    while start < period.end:
        work.go_on()
        end = min(start + _SLICE, period.end)
        open_ones = frozenset(subject for subject, (state, _, _) in states.items() if state.is_open)
        for reading in today.at(end).rate_readings(rule, start=start, keep=open_ones):
            pieces = [piece for piece in (_cut(piece, end) for piece in reading.pieces or ()) if piece is not None]
            before, _, peak = states.get(reading.subject, (INACTIVE, reading, None))
            state, episodes = follow(policy_of(rule, reading), before, pieces)
            if episodes and episodes[0].fired_at == before.fired_at:
                # It began in an earlier slice, and may have been higher there.
                episodes[0] = replace(episodes[0], peak=_higher(peak, episodes[0].peak))
            found += [_firing(rule, reading, one) for one in episodes if one.resolved_at is not None]
            still = episodes[-1].peak if episodes and episodes[-1].resolved_at is None else None
            states[reading.subject] = (state, reading, still)
        outline.add(start, end)
        start = end
    # What the period's end finds firing has no end yet.
    for state, reading, peak in states.values():
        if state.fired_at is not None and state.resolved_at is None:
            found.append(_firing(rule, reading, Episode(state.pending_at or state.fired_at, state.fired_at, None, peak)))
    return Trial(period, _UNITS[rule.kind], found, outline.lines(found), outline.notes())


class _Outline:
    """The lines of a chart: of each stretch the highest calendar minute (or five), and the peak of each firing.

    The judge follows every second, which is more than a chart can show and more than would be read for deployments that are
    nowhere near their threshold.
    """

    def __init__(self, sight: Sight, rule: AlertRule, period: Period) -> None:
        self._sight = sight
        self._index = rates.MEASURES.index(rule.kind.value)
        self._stretch = max(MINUTE_SECONDS, int((period.end - period.start) / timedelta(seconds=1)) // _MOST_POINTS)
        self._minutes = rule.window_seconds // MINUTE_SECONDS
        self._places: list[tuple[Place, Decimal]] = []
        self._unlimited = 0
        for place in sight.places(rule):
            limit = sight.limit(place, rates.MEASURES[self._index])
            edges = thresholds(rule, None if limit is None else Decimal(limit.value))
            if edges is None:
                self._unlimited += 1
            else:
                self._places.append((place, edges[0]))
        self._points: list[list[tuple[datetime, Decimal]]] = [[] for _ in self._places]

    def add(self, start: datetime, end: datetime) -> None:
        """The minutes of a slice; of each stretch the highest, the lowest being that nothing was called."""
        first, last = to_microseconds(start) // 1_000_000, to_microseconds(end) // 1_000_000
        by_minute = rates.minutes(self._sight.session, start=first - (self._minutes - 1) * MINUTE_SECONDS, end=last)
        for (place, _), points in zip(self._places, self._points, strict=True):
            together: dict[int, int] = {}
            for of in (by_minute[one] for one in place.series if one in by_minute):
                for minute, counts in of.items():
                    for later in range(self._minutes):
                        at = minute + later * MINUTE_SECONDS
                        together[at] = together.get(at, 0) + counts[self._index]
            highest: dict[int, tuple[int, int]] = {}
            for minute, count in together.items():
                # The last minute of a slice holds what lies ahead of it, too: the next slice has it whole.
                if first <= minute < last // MINUTE_SECONDS * MINUTE_SECONDS:
                    stretch = (minute - first) // self._stretch
                    highest[stretch] = max(highest.get(stretch, (0, minute)), (count, minute))
            for stretch in range(-(-(last - first) // self._stretch)):
                count, minute = highest.get(stretch, (0, first + stretch * self._stretch))
                points.append((from_microseconds(minute * 1_000_000), Decimal(count) / self._minutes))

    def lines(self, firings: Iterable[Firing]) -> list[Line]:
        """A line for each deployment; the peaks of its firings are on it."""
        peaks: dict[str, list[tuple[datetime, Decimal]]] = {}
        for firing in firings:
            if firing.peak is not None:
                peaks.setdefault(repr(sorted(firing.scope.items(), key=str)), []).append((firing.fired_at, firing.peak))
        found: list[Line] = []
        for (place, threshold), points in zip(self._places, self._points, strict=True):
            own = peaks.get(repr(sorted(place.scope.items(), key=str)), [])
            if own or any(value for _, value in points):
                found.append(Line(place.scope, threshold, sorted([*points, *own], key=lambda point: point[0])))
        return found

    def notes(self) -> list[str]:
        """What has no limit to take a share of is not judged."""
        return [f"{self._unlimited} deployments have no known limit, and are not judged"] if self._unlimited else []


def _higher(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    return max((one for one in (left, right) if one is not None), default=None)


def _cut(piece: Piece, end: datetime) -> Piece | None:
    return None if piece.start >= end else replace(piece, end=min(piece.end, end))


# -- days -----------------------------------------------------------------------------------------


def _days(session: Session, rule: AlertRule, period: Period, work: _Work) -> Trial:
    """As it would have looked at each UTC midnight, and at the end."""
    instants: list[datetime] = []
    at = day_start(utc_day(period.start)) + DAY
    while at < period.end:
        instants.append(at)
        at += DAY
    instants.append(period.end)
    kept: dict[str, tuple[Reading, list[Piece]]] = {}
    for index, instant in enumerate(instants):
        work.go_on()
        ends = instants[index + 1] if index + 1 < len(instants) else instant + timedelta(seconds=1)
        for reading in MEASURES[rule.kind](Sight(session, instant), rule):
            kept.setdefault(reading.subject, (reading, []))[1].append(Piece(instant, ends, reading.value))
    found: list[Firing] = []
    for reading, pieces in kept.values():
        _, episodes = follow(policy_of(rule, reading), INACTIVE, pieces)
        found += [_firing(rule, reading, one) for one in episodes]
    lines = [
        Line(reading.scope, reading.threshold, [(piece.start, piece.value) for piece in pieces if piece.value is not None]) for reading, pieces in kept.values()
    ]
    return Trial(period, _UNITS.get(rule.kind, "a day"), found, [line for line in lines if line.points], ["looked at once a day, at 00:00 UTC"])


def _firing(rule: AlertRule, reading: Reading, one: Episode) -> Firing:
    peak = None if one.peak is None else one.peak if one.peak == one.peak.to_integral_value() else one.peak.quantize(Decimal("0.01"))
    side = "at or below" if rule.kind in COUNTDOWN_KINDS else "at or above"
    lasted = f" for {rule.for_seconds} seconds" if rule.for_seconds else ""
    why = f"{rule.kind.value} {side} {reading.threshold.normalize():f}{lasted} since {rfc3339(one.pending_at)}"
    return Firing(dict(reading.scope), one.fired_at, one.resolved_at, peak, why)
