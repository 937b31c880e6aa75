"""How late each route's bill, and each meter of it, usually is, learnt from its own landings, and whether it is later than that now.

A lag never closes a day early: it only says that somebody should look. It is the time from the end of the last day
that a landing reached to that landing, at the 90th percentile of the last ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models.charges import BillPart, ChargeItem, MeterKind
from models.columns import from_microseconds
from models.ledger.meters import ROUTES, meter_mappings
from models.ledger.world import World, read_usage
from models.meters import MeterBook, meter_text
from models.periods import DAY, Period, day_start, utc_day
from models.usage import DAY_SECONDS, Operation, UsageQuarter

_LEARNT_FROM = timedelta(days=90)
_LEAST_LANDINGS = 5
# Documented: cost data shows within 8 to 24 h of the meter, Marketplace usage up to a day later.
UNLEARNT = timedelta(hours=72)
SPARE = DAY
_NONE = timedelta()


# What calls tell of. Hosting and machine hours have no call of their own: they go by their route.
_TOLD = frozenset({MeterKind.INPUT.value, MeterKind.OUTPUT.value, MeterKind.CACHED_INPUT.value, MeterKind.TRAINING.value})
_Key = tuple[str, str, str]  # subscription, route, kind of meter; "" is the whole route


@dataclass(frozen=True, slots=True)
class Lag:
    """A subscription's route, or one meter of it: the last day its bill reaches, its usual lateness, and since when it is overdue (None: it is not)."""

    subscription: str
    route: str
    reaches: date
    usual: timedelta
    landings: int  # how many it was learnt from; fewer than five: a meter goes by its route, a route by the documented bound
    overdue_since: datetime | None
    meter: str | None = None  # a kind of token meter; None is the whole route


def lags(session: Session, *, now: datetime) -> list[Lag]:
    """Every route of every subscription that has a bill, each followed by its meters, in order of name."""
    reached, usual, learnt = _learnt(session, now=now)
    overdue = _overdue(session, reached, usual, now=now)
    return [Lag(key[0], key[1], day, usual[key], learnt[key], overdue.get(key), key[2] or None) for key, day in sorted(reached.items())]


class Lags:
    """How late each route's and meter's bill usually is, ready to answer for any day."""

    def __init__(self, session: Session, *, now: datetime) -> None:
        _, self._usual, _ = _learnt(session, now=now)

    def due(self, day: date, *, subscription: str, route: str, meter: str) -> datetime | None:
        """When the bill of a day should have come at the latest; None where no bill of that subscription and route ever came."""
        lag = self._usual.get((subscription, route, meter), self._usual.get((subscription, route, "")))
        return None if lag is None else _due(day, lag)


def _due(awaited: date, lag: timedelta) -> datetime:
    return day_start(awaited + DAY) + max(lag, _NONE) + SPARE


def _learnt(session: Session, *, now: datetime) -> tuple[Mapping[_Key, date], Mapping[_Key, timedelta], Mapping[_Key, int]]:
    """How far each reaches, how late it usually is, and from how many landings that was learnt."""
    row = BillPart
    remapped = _Remapped(session)
    reached: dict[_Key, date] = {}
    learnt: dict[_Key, list[timedelta]] = {}
    for part in session.exec(select(row).where(col(row.landed_at) <= now).order_by(col(row.landed_at), col(row.id))):
        landed = part.landed_at
        if landed is None:
            continue
        for name, text in [*part.reaches.items(), *part.meter_reaches.items()]:
            day = date.fromisoformat(text)
            route, _, meter = name.partition("/")
            if "/" in meter:
                meter = remapped.kind(route, meter.partition("/")[2], day) or meter
            if meter and meter not in _TOLD:
                continue
            key = part.subscription_id, route, meter
            if key not in reached or day > reached[key]:
                reached[key] = day
                late = landed - day_start(day + DAY)
                # A bill of long ago that is brought in says nothing of how late bills come.
                if landed >= now - _LEARNT_FROM and late < timedelta(days=10):
                    learnt.setdefault(key, []).append(late)
    usual: dict[_Key, timedelta] = {}
    for key in sorted(reached):
        samples = sorted(learnt.get(key, []))
        fallback = usual.get((*key[:2], ""), UNLEARNT)
        usual[key] = samples[-(-9 * len(samples) // 10) - 1] if len(samples) >= _LEAST_LANDINGS else fallback
    return reached, usual, {key: len(learnt.get(key, [])) for key in reached}


class _Remapped:
    """What meters count whose own text says nothing, where somebody said it since."""

    def __init__(self, session: Session) -> None:
        mappings = meter_mappings(session)
        self._book = MeterBook(mappings)
        self._items: dict[tuple[str, str], ChargeItem] = {}
        if mappings:
            for item in session.exec(select(ChargeItem).where(col(ChargeItem.meter_kind) == MeterKind.OTHER)):
                if (route := ROUTES.get(item.charge_class)) is not None:
                    self._items[route.value, f"{item.offer_id or ''}/{meter_text(item)}"] = item

    def kind(self, route: str, named: str, day: date) -> str | None:
        """The kind of a meter by its offer and name, as of a day; None where nobody said one."""
        item = self._items.get((route, named))
        return None if item is None or self._book.mapping(item, day_start(day)) is None else self._book.meant(item, day_start(day)).meter_kind.value


def _overdue(session: Session, reached: Mapping[_Key, date], usual: Mapping[_Key, timedelta], *, now: datetime) -> Mapping[_Key, datetime]:
    """Since when they are overdue; those that are not are left out."""
    # The first day that a bill does not reach is due before any later one: mostly nothing is left to look at.
    late = {key: day for key, day in reached.items() if now >= _due(day + DAY, usual[key])}
    if not late:
        return {}
    last_usage = _last_usage(session)
    found = {key: _due(day + DAY, usual[key]) for key, day in late.items() if not key[2] and last_usage is not None and last_usage >= day_start(day + DAY)}
    meters = {key: day for key, day in late.items() if key[2]}
    for key, awaited in _first_called(session, meters, now=now).items():
        if now >= _due(awaited, usual[key]):
            found[key] = _due(awaited, usual[key])
    return found


def _first_called(session: Session, meters: Mapping[_Key, date], *, now: datetime) -> Mapping[_Key, date]:
    """The first day past a meter's reach with a call that it counts: a cache or a model that nobody uses any more is billed no more."""
    if not meters:
        return {}
    world, found = World(session, now), dict[_Key, date]()
    period = Period(max(day_start(min(meters.values()) + DAY), day_start(utc_day(now - _LEARNT_FROM))), now)
    places: dict[int, tuple[str, str] | None] = {}
    for seconds, series_id, _, inputs, outputs, cached, *_ in read_usage(session, period, slot=DAY_SECONDS, as_of=None, series=None):
        series = world.series[series_id]
        if series_id not in places:
            whose = world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=now)
            # Of calls of which nobody knows who bills them, the route's own lag has to do.
            places[series_id] = None if whose.subscription is None or whose.route is None else (whose.subscription, whose.route.value)
        place, day = places[series_id], utc_day(from_microseconds(seconds * 1_000_000))
        if place is None:
            continue
        is_training = series.operation == Operation.FINE_TUNING
        tokens = {MeterKind.TRAINING: inputs + outputs} if is_training else {MeterKind.INPUT: inputs, MeterKind.OUTPUT: outputs, MeterKind.CACHED_INPUT: cached}
        for kind, count in tokens.items():
            key = (*place, kind.value)
            if count > 0 and key in meters and day > meters[key]:
                found[key] = min(day, found.get(key, day))
    return found


def _last_usage(session: Session) -> datetime | None:
    seconds = session.scalar(sa.select(sa.func.max(col(UsageQuarter.starts_at))))
    return None if seconds is None else from_microseconds(int(seconds) * 1_000_000)
