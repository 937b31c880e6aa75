"""A rule over stored history: when it would have fired. Reads only; nobody is told, and no alert is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlmodel import Session

from collector.alerting import INACTIVE, Episode, Piece, State, follow
from collector.watch.judge import policy_of
from collector.watch.measures import MEASURES, Reading, Sight
from models.alerts import COUNTDOWN_KINDS, RATE_KINDS, AlertRule, Kind
from models.errors import InvalidInput
from models.periods import DAY, Period, day_start, rfc3339, utc_day

# Rates are followed second by second, the others day by day: so much of the past is an answer in seconds.
_LONGEST_RATES = 31 * DAY
_LONGEST_DAYS = 92 * DAY
_SLICE = timedelta(hours=6)
MOST_FIRINGS = 1000
# These are only known for the present: their history is not kept.
_PRESENT_ONLY = frozenset({Kind.HEARTBEAT, Kind.STALE_SOURCE, Kind.UNREACHED_RECEIVER, Kind.REPORT_DELIVERY})


@dataclass(frozen=True, slots=True)
class Firing:
    """One time that the rule would have fired."""

    scope: dict[str, Any]
    fired_at: datetime
    resolved_at: datetime | None
    peak: Decimal | None
    why: str


def backtest(session: Session, rule: AlertRule, period: Period, *, now: datetime) -> list[Firing]:
    """Every time that ``rule`` would have fired in the period, in order; with the deployments of today."""
    end = min(period.end, now)
    if period.start >= end:
        raise InvalidInput("from and to must span some of the past")
    if rule.kind in _PRESENT_ONLY:
        raise InvalidInput(f"a {rule.kind.value} rule is about the present; it has no history to test")
    longest = _LONGEST_RATES if rule.kind in RATE_KINDS else _LONGEST_DAYS
    if end - period.start > longest:
        raise InvalidInput(f"a {rule.kind.value} rule can be tested over {longest.days} days at once, not over {(end - period.start).days}")
    found = _rates(session, rule, Period(period.start, end), now=now) if rule.kind in RATE_KINDS else _days(session, rule, Period(period.start, end))
    found.sort(key=lambda firing: (firing.fired_at, repr(sorted(firing.scope.items(), key=str))))
    return found[:MOST_FIRINGS]


def _rates(session: Session, rule: AlertRule, period: Period, *, now: datetime) -> list[Firing]:
    """Slice by slice: the memory is that of a slice, the states go on."""
    today = Sight(session, now)
    states: dict[str, tuple[State, Reading, Decimal | None]] = {}
    found: list[Firing] = []
    start = period.start
    while start < period.end:
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
        start = end
    # What the period's end finds firing has no end yet.
    for state, reading, peak in states.values():
        if state.fired_at is not None and state.resolved_at is None:
            found.append(_firing(rule, reading, Episode(state.pending_at or state.fired_at, state.fired_at, None, peak)))
    return found


def _higher(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    return max((one for one in (left, right) if one is not None), default=None)


def _cut(piece: Piece, end: datetime) -> Piece | None:
    return None if piece.start >= end else replace(piece, end=min(piece.end, end))


def _days(session: Session, rule: AlertRule, period: Period) -> list[Firing]:
    """As it would have looked at each UTC midnight, and at the end."""
    instants: list[datetime] = []
    at = day_start(utc_day(period.start)) + DAY
    while at < period.end:
        instants.append(at)
        at += DAY
    instants.append(period.end)
    lines: dict[str, tuple[Reading, list[Piece]]] = {}
    for index, instant in enumerate(instants):
        ends = instants[index + 1] if index + 1 < len(instants) else instant + timedelta(seconds=1)
        for reading in MEASURES[rule.kind](Sight(session, instant), rule):
            lines.setdefault(reading.subject, (reading, []))[1].append(Piece(instant, ends, reading.value))
    found: list[Firing] = []
    for reading, pieces in lines.values():
        _, episodes = follow(policy_of(rule, reading), INACTIVE, pieces)
        found += [_firing(rule, reading, one) for one in episodes]
    return found


def _firing(rule: AlertRule, reading: Reading, one: Episode) -> Firing:
    peak = None if one.peak is None else one.peak if one.peak == one.peak.to_integral_value() else one.peak.quantize(Decimal("0.01"))
    side = "at or below" if rule.kind in COUNTDOWN_KINDS else "at or above"
    lasted = f" for {rule.for_seconds} seconds" if rule.for_seconds else ""
    why = f"{rule.kind.value} {side} {reading.threshold.normalize():f}{lasted} since {rfc3339(one.pending_at)}"
    return Firing(dict(reading.scope), one.fired_at, one.resolved_at, peak, why)
