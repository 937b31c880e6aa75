"""Why a number is what it is: the quantities, prices and charges behind the answer to a question, added up to it exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal

from sqlmodel import Session

from models import money
from models.charges import BillPart
from models.ledger.costs import Answer
from models.ledger.evidence import Evidence, Metered, MeteredKey
from models.ledger.insight import data_age
from models.ledger.values import CostQuery, CostRow, DataAge, Figures
from models.money import ZERO


@dataclass(frozen=True, slots=True)
class MeteredLine:
    """Quantity x unit price (x rate) of one price version: what it comes to, and how much of it counts on the basis asked for."""

    workspace: str | None
    deployment: str | None
    meter: str
    quantity: Decimal
    unit_price: Decimal | None
    unit: str | None
    price_currency: str | None
    price_version: str | None
    price_source: str | None
    exchange_rate: Decimal | None
    currency: str | None
    amount: Decimal | None
    counted: Decimal
    reason: str | None


@dataclass(frozen=True, slots=True)
class BilledLine:
    """What one landing of a bill says of a deployment's meter."""

    workspace: str | None
    deployment: str | None
    meter: str
    currency: str | None
    amount: Decimal
    counted: Decimal
    rows: int
    part_id: int
    first_day: date
    last_day: date
    estimate: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """The figures of a question and everything that they were made of; the counted amounts of a currency add up to its cost."""

    query: CostQuery
    rows: Sequence[CostRow]
    totals: Sequence[Figures]
    metered: Sequence[MeteredLine]
    billed: Sequence[BilledLine]
    parts: Sequence[BillPart]
    age: DataAge


FORMULA = {
    "metered": "tokens x the price of their time; of managed compute instance-hours x the hourly price; at the bill's own exchange rate",
    "billed": "the charges of the current bills that belong here",
    "best": "the billed amount of every day that the bill reaches, the metered amount of the others",
    "amortized": "the charges of the current bills, reservations and savings plans spread over what they cover",
}


def explain(session: Session, query: CostQuery, *, now: datetime) -> Explanation:
    """Take a question apart: its totals with the lines behind them. The rows of the question are summed over its period."""
    answer = Answer(session, replace(query, granularity="none"), now=now, evidence=(evidence := Evidence()))
    table = answer.answer()
    metered = [_metered(key, line, query) for key, line in evidence.metered.items()]
    billed: list[BilledLine] = []
    for key, line in evidence.billed.items():
        counted = line.effective if query.basis == "amortized" else ZERO if query.basis == "metered" else line.amount
        billed.append(
            BilledLine(
                workspace=key.workspace,
                deployment=key.deployment,
                meter=key.meter,
                currency=key.currency,
                amount=line.amount,
                counted=counted,
                rows=line.rows,
                part_id=key.part_id,
                first_day=line.first_day,
                last_day=line.last_day,
                estimate=line.estimate,
            )
        )
    used = {line.part_id for line in billed}
    return Explanation(
        query=query,
        rows=table.rows,
        totals=table.totals,
        metered=sorted(metered, key=lambda line: (line.workspace or "", line.deployment or "", line.meter, line.price_version or "")),
        billed=sorted(billed, key=lambda line: (line.workspace or "", line.deployment or "", line.meter, line.part_id)),
        parts=[part for part in answer.world.parts if part.id in used],
        age=data_age(session, visible=query.filters.visible, now=now),
    )


def _metered(key: MeteredKey, line: Metered, query: CostQuery) -> MeteredLine:
    price = line.price
    counts = ZERO
    if query.basis == "metered":
        counts = line.amount or ZERO
    elif query.basis == "best":
        counts = line.counted
    return MeteredLine(
        workspace=key.workspace,
        deployment=key.deployment,
        meter=key.meter,
        quantity=line.units,
        unit_price=None if price is None else price.unit_price,
        unit=None if price is None else price.unit,
        price_currency=None if price is None else price.currency,
        price_version=None if price is None else f"price-{price.id}",
        price_source=None if price is None else f"{price.origin}: {price.source}" if price.source else price.origin,
        exchange_rate=key.rate if price is not None and price.currency != key.currency else None,
        currency=key.currency,
        amount=line.amount,
        counted=counts,
        reason=key.reason,
    )


def counted_in(explanation: Explanation, currency: str | None) -> Decimal:
    """What the lines of a currency count to: the figure itself."""
    metered = money.add(line.counted for line in explanation.metered if line.currency == currency)
    return money.plus(metered, money.add(line.counted for line in explanation.billed if line.currency == currency))
