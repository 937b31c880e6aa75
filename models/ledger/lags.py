"""How late each route's bill usually is, learnt from its own landings, and whether it is later than that now.

A lag never closes a day early: it only says that somebody should look. It is the time from the end of the last day
that a landing reached to that landing, at the 90th percentile of the last ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models.charges import BillPart
from models.periods import DAY, Period, day_start
from models.usage import UsageQuarter

_LEARNT_FROM = timedelta(days=90)
_LEAST_LANDINGS = 5
# Documented: cost data shows within 8 to 24 h of the meter, Marketplace usage up to a day later.
UNLEARNT = timedelta(hours=72)
_SPARE = DAY


@dataclass(frozen=True, slots=True)
class Lag:
    """A subscription's route: the last day its bill reaches, its usual lateness, and since when it is overdue (None: it is not)."""

    subscription: str
    route: str
    reaches: date
    usual: timedelta
    landings: int  # how many it was learnt from; fewer than five: the documented bound stands
    overdue_since: datetime | None


def lags(session: Session, *, now: datetime) -> list[Lag]:
    """Every route of every subscription that has a bill, in order of name."""
    row = BillPart
    reached: dict[tuple[str, str], date] = {}
    learnt: dict[tuple[str, str], list[timedelta]] = {}
    for part in session.exec(select(row).where(col(row.landed_at) <= now).order_by(col(row.landed_at), col(row.id))):
        landed = part.landed_at
        if landed is None:
            continue
        for route, text in part.reaches.items():
            key, day = (part.subscription_id, route), date.fromisoformat(text)
            if key not in reached or day > reached[key]:
                reached[key] = day
                late = landed - day_start(day + DAY)
                # A bill of long ago that is brought in says nothing of how late bills come.
                if landed >= now - _LEARNT_FROM and late < timedelta(days=10):
                    learnt.setdefault(key, []).append(late)
    last_usage = _last_usage(session)
    found: list[Lag] = []
    for (subscription, route), day in sorted(reached.items()):
        samples = sorted(learnt.get((subscription, route), []))
        usual = samples[-(-9 * len(samples) // 10) - 1] if len(samples) >= _LEAST_LANDINGS else UNLEARNT
        awaited = Period(day_start(day + DAY), day_start(day + 2 * DAY))
        due = awaited.end + max(usual, timedelta()) + _SPARE
        is_overdue = now >= due and last_usage is not None and last_usage >= awaited.start
        found.append(Lag(subscription, route, day, usual, len(samples), due if is_overdue else None))
    return found


def _last_usage(session: Session) -> datetime | None:
    seconds = session.scalar(sa.select(sa.func.max(col(UsageQuarter.starts_at))))
    return None if seconds is None else datetime.fromtimestamp(int(seconds), tz=day_start(date(2000, 1, 1)).tzinfo)
