"""Invoices tied out: what counts as model spend, other charges, credits and tax add up to the invoice, or the gap is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.charges import IN_SCOPE, BillPart, Charge, ChargeItem
from models.money import ZERO
from models.periods import next_month
from models.worklist import InvoiceStatement

Share = Literal["in_scope", "out_of_scope", "credits", "tax"]
SHARES: tuple[Share, ...] = ("in_scope", "out_of_scope", "credits", "tax")
_CREDITS = ("credit", "refund")


@dataclass(frozen=True, slots=True)
class Invoice:
    """One invoice in one currency. ``invoice_id`` None: charges that no invoice has been made for yet.

    ``stated`` is what the invoice prints, where somebody has said it; ``difference`` is that less the charges and must be 0.
    """

    invoice_id: str | None
    currency: str
    in_scope: Decimal
    out_of_scope: Decimal
    credits: Decimal
    tax: Decimal
    rows: int
    subscriptions: Sequence[str]
    stated: Decimal | None

    @property
    def total(self) -> Decimal:
        """The charges of all kinds, and the tax."""
        return money.add((self.in_scope, self.out_of_scope, self.credits, self.tax))

    @property
    def difference(self) -> Decimal | None:
        """What the invoice says beyond its charges; None where nobody has said what it says."""
        return None if self.stated is None else money.minus(self.stated, self.total)


def invoices_of(session: Session, part_id: int) -> set[str]:
    """The ids of the invoices that the charges of a bill's part name."""
    named = sa.select(col(Charge.invoice_id)).where(col(Charge.part_id) == part_id, col(Charge.invoice_id) != "").distinct()
    return {str(one) for one in session.scalars(named)}


def invoices(session: Session, month: date, *, now: datetime) -> list[Invoice]:
    """The invoices that charges of a billing month name, as the bill stands now."""
    part = BillPart
    current = {
        row.id: row.subscription_id
        for row in session.exec(
            select(part).where(
                # An invoice of other days than a month's is told with the month that they begin in.
                sa.or_(
                    sa.and_(col(part.billed_from).is_(None), col(part.period_start) == month),
                    sa.and_(col(part.billed_from) >= month, col(part.billed_from) < next_month(month)),
                ),
                col(part.landed_at) <= now,
                sa.or_(col(part.superseded_at).is_(None), col(part.superseded_at) > now),
            )
        )
    }
    in_scope = {item_id: charge_class in IN_SCOPE for item_id, charge_class in session.execute(sa.select(col(ChargeItem.id), col(ChargeItem.charge_class)))}
    sums: dict[tuple[str | None, str], dict[Share, Decimal]] = {}
    rows: dict[tuple[str | None, str], int] = {}
    whose: dict[tuple[str | None, str], set[str]] = {}
    charge = Charge
    for part_id, subscription in current.items():
        asked = sa.select(*(col(one) for one in (charge.invoice_id, charge.currency, charge.item_id, charge.charge_type, charge.billed_cost)))
        for invoice_id, currency, item_id, kind, cost in session.execute(asked.where(col(charge.part_id) == part_id).execution_options(yield_per=5000)):
            key = (invoice_id or None, currency)
            name = str(kind).casefold()
            share: Share = "tax" if name == "tax" else "credits" if name in _CREDITS else "in_scope" if in_scope.get(item_id) else "out_of_scope"
            of = sums.setdefault(key, dict.fromkeys(SHARES, ZERO))
            of[share] = money.plus(of[share], cost)
            rows[key] = rows.get(key, 0) + 1
            whose.setdefault(key, set()).add(subscription)
    stated = {
        (row.invoice_id, row.currency): (row.amount, row.tax) for row in session.exec(select(InvoiceStatement).where(col(InvoiceStatement.known_to).is_(None)))
    }
    found: list[Invoice] = []
    for key in sorted(sums, key=lambda one: (one[0] is None, one[0] or "", one[1])):
        invoice_id, currency = key
        amount, tax = stated.get((invoice_id or "", currency), (None, ZERO))
        of = sums[key]
        found.append(
            Invoice(
                invoice_id,
                currency,
                of["in_scope"],
                of["out_of_scope"],
                of["credits"],
                # Cost details leave tax out; where they have none the stated tax counts.
                of["tax"] or tax,
                rows[key],
                sorted(whose[key]),
                amount,
            )
        )
    return found
