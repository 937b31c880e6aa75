"""A closed month keeps what it said; what changes later is listed by cause, and both add up to what is so today."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import Session

from models import ledger, money
from models.charges import ChargeClass
from models.errors import Conflict, NotFound
from models.ledger import CostQuery
from models.periods import month_period
from models.prices import PriceMeter
from models.store import Store
from tests import factories as make

OCTOBER = date(2026, 10, 1)
SETTLED = datetime(2026, 11, 6, tzinfo=UTC)
CLOSED = datetime(2026, 11, 7, 9, tzinfo=UTC)
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
MILLION = 1_000_000


def at(day: int) -> datetime:
    return datetime(2026, 10, day, 8, tzinfo=UTC)


def world(session: Session, landed_at: datetime = CLOSED - timedelta(hours=3)) -> Any:
    early = datetime(2026, 10, 1, tzinfo=UTC)
    make.foundry(session, known_from=early)
    make.price(session, PriceMeter.INPUT_TOKENS, "1.00", known_from=early)
    make.price(session, PriceMeter.OUTPUT_TOKENS, "2.00", known_from=early)
    of = make.series(session, deployment="llama-foundry")
    for day in (5, 6):
        make.event(session, of, time=at(day), received_at=at(day), input_tokens=MILLION, output_tokens=0)
    part = make.bill_part(session, period_start=OCTOBER, landed_at=landed_at)
    make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "1.00", charged_on=date(2026, 10, 5), invoice_id="G1")
    make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "0.90", charged_on=date(2026, 10, 6))
    return part


def close(session: Session, now: datetime = CLOSED) -> None:
    ledger.close_month(session, OCTOBER, author="finance", software="0.1.0", now=now)


def test_a_month_is_closed_only_when_it_has_settled_and_its_bill_is_whole(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        with pytest.raises(Conflict, match="still moves"):
            close(session, SETTLED - timedelta(seconds=1))
        with pytest.raises(Conflict, match="no bill"):
            close(session)
        world(session, landed_at=SETTLED - timedelta(hours=1))
        with pytest.raises(Conflict, match="landed before"):
            close(session)


def test_a_closed_month_stores_its_rows_and_is_closed_once(store: Store) -> None:
    with store.write() as session:
        world(session)
        close(session)
        with pytest.raises(Conflict, match="closed already"):
            close(session)
    with store.read() as session:
        (closed,) = ledger.closed_months(session, now=NOW)
        total = closed.totals["USD"]
        assert (total.expected, total.billed, total.invoiced, total.not_invoiced) == (
            Decimal(2),
            Decimal("1.9"),
            Decimal("1.00"),
            "some of its charges were on no invoice when it was closed",
        )
        assert closed.close.versions["invoices"] == ["G1"]
        assert ledger.adjustments(session, OCTOBER, now=NOW) == []


def test_what_changes_after_the_close_is_an_adjustment_with_its_cause(store: Store) -> None:
    with store.write() as session:
        part = world(session)
        close(session)
        late = make.series(session, deployment="llama-foundry")
        # Half a million tokens of the 6th arrive after the close; the price of input is corrected; the bill is restated.
        make.event(session, late, time=at(6), received_at=NOW - timedelta(days=2), input_tokens=MILLION // 2, output_tokens=0)
        make.price(session, PriceMeter.INPUT_TOKENS, "1.10", known_from=NOW - timedelta(days=1))
        make.supersede(session, part, NOW - timedelta(days=1))
        again = make.bill_part(session, period_start=OCTOBER, landed_at=NOW - timedelta(days=1))
        make.charge(session, again, make.charge_item(session, ChargeClass.FOUNDRY), "1.00", charged_on=date(2026, 10, 5))
        make.charge(session, again, make.charge_item(session, ChargeClass.FOUNDRY), "1.40", charged_on=date(2026, 10, 6))
    with store.read() as session:
        found = ledger.adjustments(session, OCTOBER, now=NOW)
        (closed,) = ledger.closed_months(session, now=NOW)
        (today,) = ledger.reconciliation(session, month_period(OCTOBER), now=NOW).totals
    assert [(one.day.day, one.side, one.cause, money.text(one.amount)) for one in found] == [
        (5, "expected", "price", "0.1"),
        (6, "expected", "price", "0.1"),
        (6, "expected", "late_usage", "0.55"),
        (6, "billed", "restated_bill", "0.5"),
    ]
    stored = closed.totals["USD"]
    for side in ("expected", "billed"):
        moved = money.add(one.amount for one in found if one.side == side)
        assert money.plus(getattr(stored, side), moved) == getattr(today, side)


def test_in_a_closed_month_best_is_billed_to_its_last_day(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        # The bill's last usage row is of the 6th; this was never billed.
        make.event(session, make.series(session, deployment="llama-foundry"), time=at(20), received_at=at(20), input_tokens=MILLION, output_tokens=0)
        before = ledger.costs(session, CostQuery(month_period(OCTOBER), "none"), now=CLOSED).totals[0].cost
        close(session)
    with sqlite_store.read() as session:
        (after,) = ledger.costs(session, CostQuery(month_period(OCTOBER), "none"), now=NOW).totals
        (then,) = ledger.costs(session, CostQuery(month_period(OCTOBER), "none", as_of=CLOSED - timedelta(minutes=1)), now=NOW).totals
    assert (before, after.cost, after.billed_cost, then.cost) == (Decimal("2.9"), Decimal("1.9"), Decimal("1.9"), Decimal("2.9"))


def test_a_month_that_is_opened_again_moves_and_keeps_the_record(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        close(session)
        done = ledger.reopen_month(session, OCTOBER, author="finance", reason="a credit was missing", now=NOW)
        assert (done.reopened_by, done.reason) == ("finance", "a credit was missing")
        assert ledger.closed_months(session, now=NOW) == []
        with pytest.raises(NotFound, match="not closed"):
            ledger.reopen_month(session, OCTOBER, author="finance", reason="", now=NOW)
        close(session, NOW)
