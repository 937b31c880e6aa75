"""A rule or budget over stored history: when it would have fired. Reads only; nobody is told, and no alert is made.

Judged by the functions that judge live (``collector.alerting``). What it may cost is bounded: the length of the past, the
number of firings and lines that are given, and the time that it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Literal

from sqlmodel import Session, col, select

from collector.alerting import INACTIVE, Episode, Piece, State, Steps, follow, is_crossed, steps_crossed
from collector.watch.judge import policy_of
from collector.watch.measures import MEASURES, Place, Reading, Sight, thresholds
from models import money
from models.alerts import COUNTDOWN_KINDS, RATE_KINDS, AlertRule, Budget, Kind
from models.charges import BillPart
from models.columns import from_microseconds, to_microseconds
from models.errors import InvalidInput
from models.ledger import budgets, rates
from models.money import ZERO
from models.periods import DAY, HOUR, Period, buckets, day_start, rfc3339, utc_day, zone_from
from models.prices import Price
from models.trials import Firing, Line, Trial
from models.usage import MINUTE_SECONDS

# Rates are followed second by second, budgets hour by hour or day by day, the others day by day.
_LONGEST_RATES = 31 * DAY
_LONGEST_DAYS = 92 * DAY
_LONGEST_BUDGETS = 366 * DAY
_BY_HOUR = 92 * DAY
# Arrivals of bills and prices before which a budget is looked at too; those of one hour are one.
_MOST_ARRIVALS = 180
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
Known = Literal["then", "today"]
_MOMENT = timedelta(microseconds=1)


def backtest(session: Session, rule: AlertRule, period: Period, *, now: datetime, clock: Clock = time.monotonic) -> Trial:
    """Every time that ``rule`` would have fired in the period, in order; with the deployments and limits of today."""
    if rule.kind in _PRESENT_ONLY:
        raise InvalidInput(f"a {rule.kind.value} rule is about the present; it has no history to test", field="kind")
    span = _past(period, now, _LONGEST_RATES if rule.kind in RATE_KINDS else _LONGEST_DAYS, f"a {rule.kind.value} rule")
    work = _Work(clock)
    trial = _rates(session, rule, span, now, work) if rule.kind in RATE_KINDS else _days(session, rule, span, work)
    return _bounded(trial)


def backtest_budget(session: Session, budget: Budget, period: Period, *, now: datetime, known: Known = "then", clock: Clock = time.monotonic) -> Trial:
    """Every step of spend and forecast that ``budget`` would have told in the period.

    ``known`` "then" judges each day by the events, bills and prices that had arrived by its end, as the watch would have;
    "today" by all that is known since, for a history that was imported later.
    """
    span = _past(period, now, _LONGEST_BUDGETS, "a budget")
    return _bounded(_BudgetTrial(session, budget, span, now=now, known=known, work=_Work(clock)).run())


@dataclass(frozen=True, slots=True)
class _Look:
    """What the watch would have seen of a budget just before an instant."""

    period: Period
    spent: Decimal
    forecast: budgets.Outlook | None


_StepKey = tuple[Kind, int]


class _BudgetTrial:
    """A budget's steps, day by day of its own calendar; the hour of a crossing is searched within its day.

    Within a day usage only ever raises what is spent and expected, so that its end shows what the day crossed. A bill or a
    price may lower both: of a day with such an arrival the moment before it is looked at as well.
    """

    def __init__(self, session: Session, budget: Budget, span: Period, *, now: datetime, known: Known, work: _Work) -> None:
        self._session = session
        self._budget = budget
        self._span = span
        self._now = now
        self._is_then = known == "then"
        self._work = work
        self._filters = budgets.scope_filters(budget.scope)
        self._basis: Any = budget.basis
        # A bill knows days only; when it arrived is known to the moment.
        self._is_hourly = (self._is_then or budget.basis != "billed") and span.end - span.start <= _BY_HOUR
        self._arrivals, self._left_out = self._arrived() if self._is_then and self._is_hourly else ([], 0)
        self._found: list[Firing] = []
        self._open: dict[_StepKey, Firing] = {}
        self._claimed: dict[Kind, set[int]] = {Kind.BUDGET: set(), Kind.BUDGET_FORECAST: set()}
        self._forecasts: list[budgets.Outlook] = []

    def run(self) -> Trial:
        """Follow the calendar."""
        points: list[tuple[datetime, Decimal]] = []
        running = budgets.period_of(self._budget, self._span.start)
        if running.start < self._span.start:
            # What was crossed before the time that is asked for told then.
            before = self._look(self._span.start)
            for kind, amount in _amounts(before):
                self._claimed[kind].update(self._crossed(kind, amount).crossed)
        for day in buckets(self._span, "day", zone_from("UTC" if self._basis == "billed" else self._budget.time_zone)):
            for part in self._parts(day):
                self._work.go_on()
                seen = self._look(part.end)
                if seen.period != running:
                    self._end(running.end)
                    points += [(running.end, ZERO)] if points else []
                    running, self._claimed = seen.period, {kind: set() for kind in self._claimed}
                points.append((part.end, seen.spent))
                if part.end == day.end and seen.forecast is not None and seen.forecast.expected is not None:
                    self._forecasts.append(seen.forecast)
                self._step(part, seen)
        self._end(running.end if running.end <= self._span.end else None)
        line = Line(dict(self._budget.scope), self._budget.amount, points)
        return Trial(self._span, self._budget.currency, self._found, [line], self._notes())

    def _arrived(self) -> tuple[list[datetime], int]:
        """When bills and prices arrived in the time, hours apart, and how many of them are left out."""
        moments = (col(BillPart.landed_at), col(Price.known_from), col(Price.known_to))
        found = {at for moment in moments for at in self._session.exec(select(moment).where(moment > self._span.start, moment < self._span.end).distinct())}
        kept: list[datetime] = []
        for at in sorted(at for at in found if at is not None):
            if not kept or at - kept[-1] >= HOUR:
                kept.append(at)
        return kept[:_MOST_ARRIVALS], len(kept[_MOST_ARRIVALS:])

    def _parts(self, day: Period) -> list[Period]:
        """The day, cut where a bill or a price arrived."""
        edges = [day.start, *(at for at in self._arrivals if day.start < at < day.end), day.end]
        return [Period(start, end) for start, end in pairwise(edges)]

    def _look(self, at: datetime, *, forecasts: bool = True) -> _Look:
        """As at the last moment before ``at``."""
        look = at - _MOMENT
        own, budget = budgets.period_of(self._budget, look), self._budget
        asked = own if self._is_then else Period(own.start, min(at, own.end))
        at_or_now = look if self._is_then else self._now
        as_of = look if self._is_then else None
        said = budgets.spend(self._session, filters=self._filters, period=asked, basis=self._basis, currency=budget.currency, now=at_or_now, as_of=as_of)
        seen = None
        # What is known today says nothing of what would have been expected then.
        if forecasts and budget.forecast_steps and self._is_then:
            seen = budgets.outlook(
                self._session,
                filters=self._filters,
                period=own,
                basis=self._basis,
                currency=budget.currency,
                now=look,
                time_zone=budget.time_zone,
                spent=said.amount,
                as_of=as_of,
            )
        return _Look(own, said.amount, seen)

    def _crossed(self, kind: Kind, amount: Decimal) -> Steps:
        steps = self._budget.steps if kind is Kind.BUDGET else self._budget.forecast_steps
        return steps_crossed(spent=amount, amount=self._budget.amount, steps=steps, claimed=self._claimed[kind])

    def _step(self, part: Period, seen: _Look) -> None:
        budget = self._budget
        # It fell with what arrived.
        fell_at = part.start if part.start in self._arrivals else part.end
        amounts = dict(_amounts(seen))
        for (kind, step), one in list(self._open.items()):
            amount = amounts.get(kind)
            if kind is Kind.BUDGET and amount is not None and not is_crossed(spent=amount, amount=budget.amount, step=step):
                self._found.append(replace(self._open.pop((kind, step)), resolved_at=fell_at))
            elif amount is not None and (one.peak is None or amount > one.peak):
                self._open[kind, step] = replace(one, peak=amount)
        for kind, amount in amounts.items():
            crossed = self._crossed(kind, amount)
            hours: dict[datetime, list[int]] = {}
            for step in crossed.crossed:
                at = self._hour_of(kind, step, part) if self._is_hourly else part.end
                hours.setdefault(at, []).append(step)
            for at, steps in sorted(hours.items()):
                highest = max(self._claimed[kind], default=-1)
                self._claimed[kind].update(steps)
                if (step := max(steps)) > highest:
                    what = f"spent since {rfc3339(seen.period.start)}" if kind is Kind.BUDGET else "expected at the period's end"
                    why = f"{money.said(amount, budget.currency)} {what}, at or above {step} % of {money.said(budget.amount, budget.currency)}"
                    self._open[kind, step] = Firing(dict(budget.scope), at, None, amount, why, step)

    def _hour_of(self, kind: Kind, step: int, part: Period) -> datetime:
        """The end of the hour of the day by which the step was crossed."""
        hours = [hour.end for hour in buckets(part, "hour")]
        first, last = 0, len(hours) - 1
        while first < last:
            middle = (first + last) // 2
            self._work.go_on()
            amount = dict(_amounts(self._look(hours[middle], forecasts=kind is Kind.BUDGET_FORECAST))).get(kind)
            if amount is not None and is_crossed(spent=amount, amount=self._budget.amount, step=step):
                last = middle
            else:
                first = middle + 1
        return hours[first]

    def _end(self, at: datetime | None) -> None:
        self._found.extend(replace(one, resolved_at=at) for one in self._open.values())
        self._open.clear()

    def _notes(self) -> list[str]:
        pace = "to the hour" if self._is_hourly else "day by day"
        if not self._is_then:
            notes = [f"by what is known of the spend today, {pace}: much of it may have arrived later, when nobody would have been told"]
            return [*notes, "steps of the forecast are tried by what was known then only"] if self._budget.forecast_steps else notes
        notes = [f"by what was known of the spend at the time, {pace}"]
        if self._came_late():
            notes.append("most of the spend arrived long after its time, as in an import: to try it as if it had not, take what is known until today")
        if self._left_out:
            notes.append(f"the moments before {self._left_out} arrivals of bills and prices were not looked at; test a shorter time to have them all")
        if self._budget.forecast_steps:
            looked = "as the spend is: at each day's end and before a bill or a price arrives, and then to the hour" if self._is_hourly else "at each day's end"
            notes.append(f"steps of the forecast are looked at {looked}{self._accuracy()}")
        return notes

    def _came_late(self) -> bool:
        """Whether less than half of what is known of the spend today was known at any of three days within the time."""
        length = self._span.end - self._span.start
        for at in (self._span.start + length * part / 4 for part in (1, 2, 3)):
            own = budgets.period_of(self._budget, at)
            then, since = (
                budgets.spend(
                    self._session,
                    filters=self._filters,
                    period=Period(own.start, at),
                    basis=self._basis,
                    currency=self._budget.currency,
                    now=at if as_of is not None else self._now,
                    as_of=as_of,
                ).amount
                for as_of in (at, None)
            )
            if money.times(then, 2) < since:
                return True
        return False

    def _accuracy(self) -> str:
        """How the forecasts of periods that are over came out, each made with what was known when it was made."""
        misses: list[Decimal] = []
        inside = 0
        ends: dict[Period, Decimal] = {}
        for one in self._forecasts:
            if one.period.end > self._span.end or one.expected is None or one.low is None or one.high is None:
                continue
            if one.period not in ends:
                ends[one.period] = budgets.spend(
                    self._session, filters=self._filters, period=one.period, basis=self._basis, currency=self._budget.currency, now=self._now
                ).amount
            actual = ends[one.period]
            inside += one.low <= actual <= one.high
            if (miss := money.ratio(money.times(abs(money.minus(one.expected, actual)), 100), actual)) is not None:
                misses.append(miss)
        if not misses:
            return ""
        middle = sorted(misses)[len(misses) // 2].quantize(Decimal("0.1"))
        return f"; half of {len(misses)} forecasts missed the end by at most {middle} %, and the band of {inside} held it"


def _amounts(seen: _Look) -> list[tuple[Kind, Decimal]]:
    expected = None if seen.forecast is None else seen.forecast.expected
    return [(Kind.BUDGET, seen.spent), *([] if expected is None else [(Kind.BUDGET_FORECAST, expected)])]


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
        notes.append(f"listed and marked are the first {MOST_FIRINGS:,} of {len(ordered):,} firings")
    highest = sorted(trial.lines, key=lambda line: -max((value for _, value in line.points), default=ZERO))
    if len(highest) > _MOST_LINES:
        notes.append(f"the chart has the {_MOST_LINES} highest of {len(highest)} lines")
    lines = [replace(line, points=_thinned(line.points, trial.period)) for line in highest[:_MOST_LINES]]
    return replace(trial, firings=ordered[:MOST_FIRINGS], lines=lines, notes=notes, more_firings=max(0, len(ordered) - MOST_FIRINGS))


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
