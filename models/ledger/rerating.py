"""What other prices would make of the past, before anybody imports them: per month and team, beside what is so today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from sqlmodel import Session, col, select

from models import money
from models.closing import closes_known
from models.ledger.costs import Answer
from models.ledger.values import CostQuery, Filters
from models.money import ZERO
from models.periods import Period, utc_day
from models.prices import Price, PriceBook, WaitingPrice


@dataclass(frozen=True, slots=True)
class Rerate:
    """One team's metered cost of a month, as it is and as it would be; a closed month keeps its rows and would show the difference as adjustments."""

    month: date
    team: str | None
    currency: str | None
    cost_now: Decimal
    cost_then: Decimal
    unpriced_now: int  # tokens
    unpriced_then: int
    is_closed: bool

    @property
    def difference(self) -> Decimal:
        """What the change adds."""
        return money.minus(self.cost_then, self.cost_now)


def rerated(session: Session, prices: Sequence[Price], period: Period, *, now: datetime) -> list[Rerate]:
    """Every month, team and currency that these prices would change; ``prices`` are all that would be in use."""
    query = CostQuery(period, "month", ("team",), "metered", Filters())
    sides: list[dict[tuple[date, str | None, str | None], tuple[Decimal, int]]] = []
    for book in (None, PriceBook(prices)):
        answer = Answer(session, query, now=now)
        if book is not None:
            answer.world.prices = book
        found = {}
        for row in answer.answer().rows:
            figures = row.figures
            key = (utc_day(row.period.start).replace(day=1), row.groups["team"], figures.currency)
            found[key] = (figures.metered_cost or ZERO, figures.unpriced_tokens)
        sides.append(found)
    closed = {close.month for close in closes_known(session, now)}
    before, after = sides
    rows: list[Rerate] = []
    for key in sorted(before.keys() | after.keys(), key=lambda one: (one[0], one[1] is None, one[1] or "", one[2] or "")):
        month, team, currency = key
        (cost_now, unpriced_now), (cost_then, unpriced_then) = before.get(key, (ZERO, 0)), after.get(key, (ZERO, 0))
        rows.append(Rerate(month, team, currency, cost_now, cost_then, unpriced_now, unpriced_then, month in closed))
    return [row for row in rows if row.difference or row.unpriced_now != row.unpriced_then]


def waiting_prices(session: Session) -> list[WaitingPrice]:
    """The rows of price files that look wrong and wait for somebody to decide, oldest first."""
    return list(session.exec(select(WaitingPrice).where(col(WaitingPrice.decision).is_(None)).order_by(col(WaitingPrice.id))))
