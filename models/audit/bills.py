"""Bills, read row by row from the raw charges: what counts at a moment, how far it reaches, its currencies and rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, localcontext
from typing import TypeVar

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.charges import IN_SCOPE, BillPart, Charge, ChargeClass, ChargeItem, MeterKind
from models.closing import MonthClose
from models.money import ZERO
from models.periods import Period, day_start, month_start
from models.resources import Route


@dataclass(slots=True)
class Line:
    """The charges of one item, day, kind and currency of a part, added up from the single rows."""

    rows: int = 0
    quantity: Decimal | None = ZERO
    billed: Decimal = ZERO
    amortized: Decimal = ZERO
    invoiced_rows: int = 0
    invoiced: Decimal = ZERO


LineKey = tuple[date, int, str, str]  # charged_on, item, charge type, currency


def lines_of(session: Session, part_id: int) -> dict[LineKey, Line]:
    """A part's charges, row by row from the raw table, added up in Decimal."""
    found: dict[LineKey, Line] = {}
    query = sa.select(
        col(Charge.charged_on),
        col(Charge.item_id),
        col(Charge.charge_type),
        col(Charge.currency),
        col(Charge.quantity),
        col(Charge.billed_cost),
        col(Charge.effective_cost),
        col(Charge.invoice_id),
    ).where(col(Charge.part_id) == part_id)
    with localcontext(money.EXACT):
        for charged_on, item_id, charge_type, currency, quantity, billed, effective, invoice_id in session.connection().execute(query).yield_per(5000):
            line = found.setdefault((charged_on, item_id, charge_type, currency), Line())
            line.rows += 1
            line.quantity = None if quantity is None or line.quantity is None else line.quantity + quantity
            line.billed += billed
            line.amortized += billed if effective is None else effective
            if invoice_id:
                line.invoiced_rows += 1
                line.invoiced += billed
    return found


@dataclass(slots=True)
class Invoiced:
    """The charges of one invoice and currency (an empty id: on none yet) by what they are; ``spend`` is all that is model spend, refunds and tax too."""

    in_scope: Decimal = ZERO
    out_of_scope: Decimal = ZERO
    credits: Decimal = ZERO
    tax: Decimal = ZERO
    spend: Decimal = ZERO


def add_invoices(session: Session, part_id: int, items: Mapping[int, ChargeItem], found: dict[tuple[str, str], Invoiced], *, of: Period) -> None:
    """Add a part's charges to their invoices, row by row; ``spend`` only of days within a period."""
    query = sa.select(
        col(Charge.invoice_id), col(Charge.currency), col(Charge.item_id), col(Charge.charge_type), col(Charge.charged_on), col(Charge.billed_cost)
    ).where(col(Charge.part_id) == part_id)
    with localcontext(money.EXACT):
        for invoice_id, currency, item_id, charge_type, charged_on, billed in session.connection().execute(query).yield_per(5000):
            into = found.setdefault((invoice_id or "", currency), Invoiced())
            is_spend = item_id in items and items[item_id].charge_class in IN_SCOPE
            match charge_type.casefold():
                case "tax":
                    into.tax += billed
                case "credit" | "refund":
                    into.credits += billed
                case _ if is_spend:
                    into.in_scope += billed
                case _:
                    into.out_of_scope += billed
            if is_spend and day_start(charged_on) in of:
                into.spend += billed


_ROUTE_OF = {ChargeClass.MARKETPLACE: Route.MARKETPLACE, ChargeClass.FOUNDRY: Route.FOUNDRY, ChargeClass.COMPUTE: Route.COMPUTE}


def reaches_of(lines: Mapping[LineKey, Line], items: Mapping[int, ChargeItem]) -> dict[Route, date]:
    """The last UTC day with a usage row, per route."""
    found: dict[Route, date] = {}
    for charged_on, item_id, charge_type, _ in lines:
        route = _ROUTE_OF.get(items[item_id].charge_class) if item_id in items else None
        if route is not None and charge_type.casefold() == "usage":
            found[route] = max(found.get(route, charged_on), charged_on)
    return found


def meter_reaches_of(lines: Mapping[LineKey, Line], items: Mapping[int, ChargeItem]) -> dict[str, date]:
    """The same per route and kind of meter, as the meter's own text says it; where that says nothing also by its offer and name."""
    of_kind: dict[str, dict[LineKey, Line]] = {}
    for key, line in lines.items():
        if (item := items.get(key[1])) is None:
            continue
        of_kind.setdefault(item.meter_kind.value, {})[key] = line
        if item.meter_kind is MeterKind.OTHER:
            named = f"other/{item.offer_id or ''}/{item.meter_name or item.plan_id or item.meter_category}"
            of_kind.setdefault(named, {})[key] = line
    return {f"{route.value}/{kind}": day for kind, mine in of_kind.items() for route, day in reaches_of(mine, items).items()}


class Bills:
    """The bill parts that count at a moment: their lines, how far they reach, their currencies and rates."""

    def __init__(self, session: Session, moment: datetime) -> None:
        self.items = {item.id: item for item in session.exec(select(ChargeItem)) if item.id is not None}
        self.parts = [
            part
            for part in session.exec(select(BillPart).order_by(col(BillPart.id)))
            if part.landed_at is not None and part.landed_at <= moment and (part.superseded_at is None or moment < part.superseded_at)
        ]
        self.lines: list[tuple[BillPart, LineKey, Line]] = []
        self._reach: dict[str, dict[Route, date]] = {}
        self._landed: dict[str, set[date]] = {}
        self._currency: dict[str, dict[date, str]] = {}
        self._rates: dict[str, dict[date, dict[str, str]]] = {}
        for part in self.parts:
            assert part.id is not None
            lines = lines_of(session, part.id)
            self.lines.extend((part, key, lines[key]) for key in sorted(lines))
            subscription = part.subscription_id
            self._landed.setdefault(subscription, set()).add(month_start(part.period_start))
            reach = self._reach.setdefault(subscription, {})
            for route, day in reaches_of(lines, self.items).items():
                reach[route] = max(reach.get(route, day), day)
            currency = self._currency_of(lines)
            if currency is not None:
                self._currency.setdefault(subscription, {})[month_start(part.period_start)] = currency
            self._rates.setdefault(subscription, {})[month_start(part.period_start)] = part.exchange_rates
        closes = session.exec(select(MonthClose)).all()
        self._closed = {one.month for one in closes if one.closed_at <= moment and (one.reopened_at is None or moment < one.reopened_at)}
        self._reached: dict[tuple[str | None, tuple[Route, ...], date], bool] = {}
        self._converted: dict[tuple[str, date, str, str], Decimal | None] = {}

    def _currency_of(self, lines: Mapping[LineKey, Line]) -> str | None:
        """The currency that most of a part's money is in: of its model spend if it has any, then the first by name."""
        spent: dict[bool, dict[str, Decimal]] = {True: {}, False: {}}
        for (_, item_id, _, currency), line in lines.items():
            of_class = spent[item_id in self.items and self.items[item_id].charge_class in IN_SCOPE]
            of_class[currency] = of_class.get(currency, ZERO) + line.billed
        among = spent[True] or spent[False]
        return min(among, key=lambda currency: (-among[currency].copy_abs(), currency)) if among else None

    def is_reached(self, subscription: str | None, routes: tuple[Route, ...], day: date) -> bool:
        """Whether the bill of a subscription (None: of any) speaks for a day on one of the routes."""
        key = (subscription, routes, day)
        if month_start(day) in self._closed:
            return True
        if key not in self._reached:
            bills = [subscription] if subscription is not None else list(self._reach)
            self._reached[key] = any(
                day <= reach and month_start(day) in self._landed[bill]
                for bill in bills
                for route, reach in self._reach.get(bill, {}).items()
                if route in routes
            )
        return self._reached[key]

    def currency(self, subscription: str | None, day: date) -> str | None:
        """The currency that a subscription is billed in."""
        return _of_month(self._currency.get(subscription or "", {}), day) if subscription is not None else None

    def rate(self, subscription: str, day: date, *, source: str, target: str) -> Decimal | None:
        """The bill's own exchange rate of that month, None where no bill names one."""
        if source == target:
            return Decimal(1)
        key = (subscription, month_start(day), source, target)
        if key not in self._converted:
            pair = f"{source}>{target}"
            named = {month: rates[pair] for month, rates in self._rates.get(subscription, {}).items() if pair in rates}
            found = _of_month(named, day)
            self._converted[key] = None if found is None else Decimal(found)
        return self._converted[key]


Value = TypeVar("Value")


def _of_month(by_month: Mapping[date, Value], day: date) -> Value | None:
    """The value of the day's month, else of the latest earlier one, else of the earliest later one."""
    if not by_month:
        return None
    month = month_start(day)
    earlier = [known for known in by_month if known <= month]
    return by_month[max(earlier) if earlier else min(by_month)]
