"""The Data page asks what a meter counts, with its money, of whoever may say it; and shows what was said."""

from __future__ import annotations

from datetime import timedelta

import pytest

from collector.desk import Desk
from collector.pricing import import_prices, price_rows
from dashboard.access import Viewer
from dashboard.app import ledger_over
from dashboard.filters import Selection
from dashboard.pages import data
from dashboard.shell import View
from models.charges import ChargeClass, MeterKind
from models.errors import Conflict, InvalidInput, NotFound
from models.store import Store
from tests import factories as make
from tests.dashboard.test_pages_money import said

NOW = make.NOW
ADMIN = Viewer("k1", "ana", "admin", None)


@pytest.fixture
def shop(sqlite_store: Store) -> Store:
    """A bill of two meters: one that says nothing, one in a unit that says nothing."""
    with sqlite_store.write() as session:
        part = make.bill_part(session, landed_at=NOW - timedelta(days=2))
        mystery = make.charge_item(session, meter_kind=MeterKind.OTHER, meter_name="Llama <mystery>", offer_id="llama-offer", unit="1M", unit_size=None)
        make.charge(session, part, mystery, "2.50")
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, meter_name="Llama Inp", unit="1 Barrel", unit_size=None), "7")
    return sqlite_store


def page(store: Store, *, may_act: bool = True, visible: frozenset[str] | None = None) -> str:
    with ledger_over(store.read)() as opened:
        view = View(Selection.parse(""), opened, NOW, visible, "/dashboard/", data.PATH, "http://x", is_open=True, may_act=may_act)
        return said(data.layout(view))


def test_each_meter_that_nobody_can_tell_is_asked_about_with_its_money(shop: Store) -> None:
    asked = page(shop)
    assert "Llama Inp foundry unknown unit 1 Barrel 10 Nov 2026 7.00 USD 1 Say" in asked
    assert "Llama <mystery> llama-offer unmapped meter 1M 10 Nov 2026 2.50 USD 1 Say" in asked
    assert "for every meter of llama-offer called Llama <mystery>" in asked
    only_looks = page(shop, may_act=False)
    assert "unmapped meter 1M 10 Nov 2026 2.50 USD" in only_looks
    assert "It counts" not in only_looks
    assert "Llama Inp" not in page(shop, visible=frozenset({"ws-east"}))


def test_what_was_said_is_shown_and_no_longer_asked(shop: Store) -> None:
    desk = Desk(shop, now=lambda: NOW)
    desk("map-meter", {"meter": "Llama <mystery>", "offer": "llama-offer", "kind": "fine_tuned_output", "valid_from": "2026-11-01"}, ADMIN)
    desk("map-meter", {"meter": "Llama Inp", "kind": "input", "unit": "1K tokens", "note": "asked"}, ADMIN)
    shown = page(shop)
    assert "What does this meter count?" not in shown
    assert "Llama <mystery> llama-offer output tokens of a fine-tuned model from 1 Nov 2026 ana, 20 Nov 2026 Take back" in shown
    assert "Llama Inp any offer input tokens, in 1K tokens always ana, 20 Nov 2026 Take back" in shown
    desk("unmap-meter", {"id": "1"}, ADMIN)
    assert "Llama <mystery> llama-offer unmapped meter" in page(shop)


def test_prices_that_wait_are_shown_with_their_doubt_and_decided_on_the_page(sqlite_store: Store) -> None:
    header = "model,meter,unit_price,currency,unit,region,source\n"
    for price in ("0.71", "710"):
        with sqlite_store.write() as session:
            import_prices(session, f"{header}Llama-X,input_tokens,{price},USD,1M tokens,eastus,sheet\n".encode(), name="p.csv", now=NOW, author="ana")
    asked = page(sqlite_store)
    waits = "Llama-X eastus input tokens 710 USD per 1M tokens 710 USD per 1M tokens is about 1,000 times more than the 0.71 USD per 1M tokens in use"
    assert waits in asked
    assert "ana, 20 Nov 2026 sheet Accept Reject" in asked
    assert "Accept" not in page(sqlite_store, may_act=False)
    assert "Prices that wait" not in page(sqlite_store, visible=frozenset({"ws-east"}))
    desk = Desk(sqlite_store, now=lambda: NOW)
    with pytest.raises(InvalidInput):
        desk("decide-price", {"id": "1", "decision": "perhaps"}, ADMIN)
    with pytest.raises(NotFound):
        desk("decide-price", {"id": "one", "decision": "accept"}, ADMIN)
    desk("decide-price", {"id": "1", "decision": "accept"}, ADMIN)
    assert "Prices that wait" not in page(sqlite_store)
    with sqlite_store.read() as session:
        assert [(str(price.unit_price), price.author) for price in price_rows(session)] == [("0.71", "ana"), ("710", "ana")]
    with pytest.raises(Conflict):
        desk("decide-price", {"id": "1", "decision": "reject"}, ADMIN)
