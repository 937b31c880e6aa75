"""What finance does on the reconciliation's page: sign a line and be told that it moved, tie an invoice out, see what the newest bill changed."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest

from collector.desk import Desk
from dashboard.access import Viewer
from dashboard.app import ledger_over
from dashboard.filters import Selection
from dashboard.pages import reconciliation
from dashboard.shell import View
from models import ledger
from models.charges import ChargeClass
from models.errors import InvalidInput
from models.store import Store
from tests import factories as make
from tests.dashboard.test_pages_money import said

NOW = make.NOW
ADMIN = Viewer("k1", "ana", "admin", None)
MONTH = "?from=2026-11-01&to=2026-12-01"


@pytest.fixture
def shop(sqlite_store: Store) -> Store:
    """Ten days on which 44 are billed for 40 metered; the newest bill came two hours ago and brought the last of them."""
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        item = make.charge_item(session, ChargeClass.FOUNDRY)
        before = make.bill_part(session, landed_at=NOW - timedelta(days=2))
        part = make.bill_part(session, landed_at=NOW - timedelta(hours=2), file_name="newer.csv")
        make.supersede(session, before, NOW - timedelta(hours=2))
        for day in range(1, 11):
            at = datetime(2026, 11, day, 8, tzinfo=NOW.tzinfo)
            make.event(session, make.series(session, deployment="llama-foundry"), time=at, input_tokens=40_000_000, output_tokens=0)
            for bill in [part] if day == 10 else [before, part]:
                make.charge(session, bill, item, "44.00", quantity="44", charged_on=at.date(), invoice_id="G0001")
    return sqlite_store


def page(store: Store, search: str = MONTH, *, may_act: bool = True) -> str:
    with ledger_over(store.read)() as opened:
        view = View(Selection.parse(search), opened, NOW, None, "/dashboard/", reconciliation.PATH, "http://x", is_open=True, may_act=may_act)
        return said(reconciliation.layout(view))


def line(store: Store) -> str:
    with store.read() as session:
        (item,) = ledger.worklist(session, date(2026, 11, 1), now=NOW)
        return item.id


def test_a_signed_line_says_by_how_much_it_moved_since(shop: Store) -> None:
    desk = Desk(shop, now=lambda: NOW)
    assert "llama-foundry ws-east input 40.00 USD 40.00 USD calls past the instruments 40.00 USD" in page(shop)
    desk("say-of-line", {"id": line(shop), "owner": "bo", "note": "the <nightly> job"}, ADMIN)
    desk("sign-line", {"id": line(shop)}, ADMIN)
    assert "bo the <nightly> job ana, 20 Nov 2026" in page(shop)
    with shop.write() as session:
        at = datetime(2026, 11, 5, 9, tzinfo=NOW.tzinfo)
        make.event(session, make.series(session, deployment="llama-foundry"), time=at, input_tokens=3_000_000, output_tokens=0)
    shown = page(shop)
    assert "changed since you signed ana, 20 Nov 2026" in shown
    assert "expected by 3.00 USD" in shown
    assert "Sign again" in shown
    assert "Sign again" not in page(shop, may_act=False)


def test_an_invoice_is_tied_out_or_its_difference_is_shown(shop: Store) -> None:
    desk = Desk(shop, now=lambda: NOW)
    assert "G0001 440.00 USD 0.00 USD 0.00 USD 0.00 USD 440.00 USD unknown unknown" in page(shop)
    desk("say-of-invoice", {"id": "G0001", "currency": "USD", "amount": "528.00", "tax": "88.00"}, ADMIN)
    assert "G0001 440.00 USD 0.00 USD 0.00 USD 88.00 USD 528.00 USD 528.00 USD 0.00 USD" in page(shop)
    desk("say-of-invoice", {"id": "G0001", "currency": "USD", "amount": "530.00", "tax": "88.00"}, ADMIN)
    assert "528.00 USD 530.00 USD 2.00 USD" in page(shop)
    with pytest.raises(InvalidInput, match="an amount and a tax"):
        desk("say-of-invoice", {"id": "G0001", "currency": "dollars", "amount": "1"}, ADMIN)


def test_what_the_newest_bill_changed_is_shown_when_asked_for(shop: Store) -> None:
    assert "Compare with before the newest bill" in page(shop)
    assert "ws-east llama-foundry input 0.00 USD 44.00 USD 0.00 USD" in page(shop, f"{MONTH}&since=bill")
    with shop.read() as session:
        since = ledger.before_last_landing(session, now=NOW)
        assert since == NOW - timedelta(hours=2) - timedelta(microseconds=1)
        (moved,) = ledger.moved_since(session, Selection.parse(MONTH).period(NOW), ledger.Filters(), since=since or NOW, now=NOW)
    assert (moved.expected, moved.billed, moved.unexplained) == (Decimal(0), Decimal("44.00"), Decimal(0))


def test_late_bills_are_told_apart_from_those_on_time(shop: Store) -> None:
    assert "documented; too few landings to learn from" in page(shop)
    assert "(documented; too few landings to learn from) on time" in page(shop)
    with shop.write() as session:
        at = datetime(2026, 11, 11, 9, tzinfo=NOW.tzinfo)
        make.event(session, make.series(session, deployment="llama-foundry"), time=at)
    # Calls of the 11th, and nine days later no bill of them.
    assert "(documented; too few landings to learn from) overdue since" in page(shop)
