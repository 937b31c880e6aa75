"""``verify`` holds reconciliation, closed months and exports against the raw rows, and says where one of them is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace as change
from datetime import date, timedelta
from decimal import Decimal

import pytest
from msgspec.structs import replace
from sqlmodel import Session

from models import audit, ledger, money
from models.audit import Answers, Question, Verification
from models.charges import ChargeClass
from models.errors import Conflict
from models.ledger import Adjustment, CostTable, Invoice, ReconciliationRow
from models.periods import Period
from models.store import Store
from models.variance import Cause
from tests import factories as make
from tests.models.test_audit import small_world

NOW = make.NOW
OCTOBER = date(2026, 10, 1)
_Rows = Callable[[list[ReconciliationRow]], Iterable[ReconciliationRow]]


def exported(session: Session, month: date) -> dict[str, Decimal]:
    sums: dict[str, Decimal] = {}
    for line in ledger.focus_lines(session, ledger.focus_month(session, month, now=NOW), visible=None, now=NOW):
        if line.kind in ("charge", "share"):
            sums[line.currency] = money.plus(sums.get(line.currency, money.ZERO), line.billed)
    return sums


def verified(
    session: Session,
    *,
    rows: _Rows = lambda found: found,
    adjusted: Callable[[list[Adjustment]], Iterable[Adjustment]] = lambda found: found,
    export: Callable[[dict[str, Decimal]], Mapping[str, Decimal]] = lambda found: found,
    tied: Callable[[list[Invoice]], Iterable[Invoice]] = lambda found: found,
) -> Verification:
    """``verify`` of the ledger, some of its answers changed on the way."""

    def ask(question: Question) -> CostTable:
        basis = next(one for one in ledger.BASES if one == question.basis)
        query = ledger.CostQuery(question.period, question.granularity, question.group_by, basis, as_of=question.as_of)
        return ledger.costs(session, query, now=NOW)

    def reconcile(period: Period) -> Iterable[ReconciliationRow]:
        return rows(ledger.reconciliation(session, period, now=NOW).rows)

    answers = Answers(
        reconcile,
        lambda month: adjusted(ledger.adjustments(session, month, now=NOW)),
        lambda month: export(exported(session, month)),
        lambda month: tied(ledger.invoices(session, month, now=NOW)),
    )
    return audit.verify(session, now=NOW, ask=ask, answers=answers)


@pytest.fixture
def world(store: Store) -> Store:
    with store.write() as session:
        small_world(session)
        # A month that was closed and restated since.
        item = make.charge_item(session, ChargeClass.FOUNDRY)
        make.foundry(session)
        closed = make.bill_part(session, period_start=OCTOBER, landed_at=NOW - timedelta(days=10))
        make.charge(session, closed, item, "5.00", quantity="5", charged_on=date(2026, 10, 12))
        ledger.close_month(session, OCTOBER, author="ana", software="1", now=NOW - timedelta(days=9))
        make.supersede(session, closed, NOW - timedelta(days=3))
        again = make.bill_part(session, period_start=OCTOBER, landed_at=NOW - timedelta(days=3))
        make.charge(session, again, item, "4.25", quantity="5", charged_on=date(2026, 10, 12), invoice_id="G1")
        make.charge(session, again, item, "-0.25", quantity="0", charged_on=date(2026, 10, 13), invoice_id="G1", charge_type="Refund")
        make.charge(session, again, make.charge_item(session, ChargeClass.OUT_OF_SCOPE), "9", charged_on=date(2026, 10, 13), invoice_id="G1")
        make.charge(session, again, item, "0.75", quantity="1", charged_on=date(2026, 10, 14))
    return store


def test_all_agrees(world: Store) -> None:
    with world.read() as session:
        assert verified(session).lines() == []
        with pytest.raises(Conflict, match="closed already"):
            ledger.close_month(session, OCTOBER, author="ana", software="1", now=NOW)


def test_a_wrong_cause_is_found(world: Store) -> None:
    def wrong(found: list[ReconciliationRow]) -> list[ReconciliationRow]:
        return [replace(row, causes={**row.causes, Cause.TIMING: Decimal("0.01")}) for row in found]

    with world.read() as session:
        assert any(line.startswith("the causes of a difference") for line in verified(session, rows=wrong).lines())


def test_a_row_that_is_missing_or_billed_otherwise_is_found(world: Store) -> None:
    with world.read() as session:
        assert any("billed of the reconciliation" in line for line in verified(session, rows=lambda found: found[1:]).lines())
        more = verified(session, rows=lambda found: [replace(row, expected=money.plus(row.expected, Decimal(1)), causes={}) for row in found])
        assert any("expected of the reconciliation" in line for line in more.lines())


def test_an_adjustment_that_is_left_out_is_found(world: Store) -> None:
    with world.read() as session:
        (line,) = [one for one in verified(session, adjusted=lambda _found: []).lines() if "stored and adjusted" in one and "2026-10-12" in one]
    assert "billed of 2026-10" in line
    assert "0.75" in line


def test_an_invoiced_amount_that_is_on_no_invoice_is_found(world: Store) -> None:
    def wrong(found: list[ReconciliationRow]) -> list[ReconciliationRow]:
        return [replace(row, invoiced=money.plus(row.invoiced, Decimal("0.01"))) if row.invoiced is not None else row for row in found]

    with world.read() as session:
        lines = verified(session, rows=wrong).lines()
    # 4.25 on the 12th, -0.25 on the 13th: the refund is a credit of the invoice and a part of what the rows are billed.
    assert [line for line in lines if "invoiced" in line and "2026-10-12" in line] == [
        "invoiced of the reconciliation, 2026-10-12 / ws-east / llama-foundry / USD: stored or answered 4.26, recomputed 4.25"
    ]
    assert "invoiced of all rows, USD: stored or answered 4.02, recomputed 4" in lines


def test_an_invoice_that_is_tied_out_otherwise_is_found(world: Store) -> None:
    with world.read() as session:
        found = verified(session, tied=lambda invoices: [change(one, in_scope=money.plus(one.in_scope, Decimal(1))) for one in invoices]).lines()
    assert "in_scope of an invoice, 2026-10 G1 USD: stored or answered 5.25, recomputed 4.25" in found
    assert "in_scope of an invoice, 2026-10 not invoiced USD: stored or answered 1.75, recomputed 0.75" in found


def test_an_export_that_bills_otherwise_is_found(world: Store) -> None:
    with world.read() as session:
        found = verified(session, export=lambda totals: {code: money.plus(total, Decimal("0.01")) for code, total in totals.items()})
    assert ["billed cost of the export, 2026-11 USD" in line for line in found.lines()] == [True]
