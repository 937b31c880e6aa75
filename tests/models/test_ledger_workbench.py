"""The worklist, invoices, how late bills are and the onboarding audit, in small worlds stood up by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import Session

from models import ledger
from models.charges import ChargeClass, MeterKind
from models.errors import NotFound
from models.ledger import Filters
from models.store import Store
from models.worklist import InvoiceStatement, WorklistEntry
from tests import factories as make
from tests.collector.api.serving import serving

NOW = make.NOW  # 2026-11-20 10:00
NOVEMBER = date(2026, 11, 1)
MILLION = 1_000_000


def at(day: int) -> datetime:
    return datetime(2026, 11, day, 8, tzinfo=UTC)


# -- the worklist ---------------------------------------------------------------------------------


def gap(session: Session, *, billed: str, day: int = 10, deployment: str = "llama-foundry") -> None:
    """A million metered tokens at 100.00 on a day, and a bill of another amount at the same price."""
    make.event(session, make.series(session, deployment=deployment), time=at(day), input_tokens=MILLION, output_tokens=0)
    quantity = Decimal(billed) / 100
    part = make.bill_part(session)
    item = make.charge_item(session, ChargeClass.FOUNDRY, deployment=deployment)
    make.charge(session, part, item, billed, quantity=quantity, charged_on=date(2026, 11, day))


def test_only_differences_above_one_percent_and_one_are_on_the_worklist(store: Store) -> None:
    with store.write() as session:
        make.token_prices(session, "100.00", "100.00")
        for number, billed in enumerate(("100.99", "101.00", "130.00")):
            make.foundry(session, f"d{number}")
            gap(session, billed=billed, deployment=f"d{number}")
    with store.read() as session:
        found = ledger.worklist(session, NOVEMBER, now=NOW)
    assert [(item.deployment, item.left, dict(item.causes), item.is_material) for item in found] == [
        ("d2", Decimal(30), {"unmetered_usage": Decimal(30)}, True)
    ]


def test_a_signature_is_of_figures_and_says_what_moved_since(store: Store) -> None:
    with store.write() as session:
        make.token_prices(session, "100.00", "100.00")
        make.foundry(session)
        gap(session, billed="130.00")
        (item,) = ledger.worklist(session, NOVEMBER, now=NOW)
        session.add(
            WorklistEntry(
                month=NOVEMBER,
                workspace=item.workspace,
                deployment=item.deployment,
                meter=item.meter,
                currency=item.currency,
                owner="ana",
                note="a batch job past the gateway",
                signed_by="ana",
                signed_at=NOW,
                signed=item.figures(),
                known_from=NOW,
            )
        )
    with store.read() as session:
        (signed,) = ledger.worklist(session, NOVEMBER, now=NOW)
        assert signed.changed == {}
    with store.write() as session:
        make.event(session, make.series(session, deployment="llama-foundry"), time=at(10), input_tokens=100_000, output_tokens=0)
    with store.read() as session:
        moved = ledger.worklist_item(session, signed.id, visible=None, now=NOW)
        assert moved.changed == {"expected": Decimal(10), "unmetered_usage": Decimal(-10)}
        assert moved.entry is not None
        assert moved.entry.owner == "ana"


def test_a_line_alone_is_as_it_stands_on_the_list(store: Store) -> None:
    with store.write() as session:
        make.token_prices(session, "100.00", "100.00")
        for number, billed in enumerate(("120.00", "130.00", "150.00")):
            make.foundry(session, f"d{number}")
            gap(session, billed=billed, deployment=f"d{number}", day=8 + number)
    with store.read() as session:
        listed = ledger.worklist(session, NOVEMBER, now=NOW)
        assert sorted(item.deployment or "" for item in listed) == ["d0", "d1", "d2"]
        assert [ledger.worklist_item(session, item.id, visible=None, now=NOW) for item in listed] == listed


def test_saying_something_answers_as_the_list_does_then(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "100.00", "100.00")
        make.foundry(session)
        gap(session, billed="130.00")
    with serving(sqlite_store) as service:

        def listed() -> dict[str, Any]:
            (item,) = service.client.get("/v1/worklist?month=2026-11").json()["items"]
            return dict(item)

        place = f"/v1/worklist/{listed()['id']}"
        for said in ({"owner": "ana"}, {"sign": True}, {"note": "a batch job"}, {"sign": False}):
            assert service.client.put(place, json=said).json() == listed()
        service.client.put(place, json={"sign": True})
        with sqlite_store.write() as session:
            make.event(session, make.series(session, deployment="llama-foundry"), time=at(10), input_tokens=100_000, output_tokens=0)
        kept = service.client.put(place, json={"note": "looked at again"}).json()
        assert (kept, kept["changed_since_signed"]) == (listed(), {"expected": "10", "unmetered_usage": "-10"})
        again = service.client.put(place, json={"sign": True}).json()
        assert (again, again["changed_since_signed"]) == (listed(), {})


def test_a_line_of_another_workspace_is_not_there(store: Store) -> None:
    with store.write() as session:
        make.token_prices(session, "100.00", "100.00")
        make.foundry(session)
        gap(session, billed="130.00")
        (item,) = ledger.worklist(session, NOVEMBER, now=NOW)
        assert ledger.worklist(session, NOVEMBER, Filters(visible=frozenset({"other"})), now=NOW) == []
        for name, visible in ((item.id, frozenset({"other"})), ("nonsense", None), ("bnVsbA", None)):
            with pytest.raises(NotFound, match="no such line"):
                ledger.worklist_item(session, name, visible=visible, now=NOW)


# -- invoices -------------------------------------------------------------------------------------


def test_an_invoice_is_its_charges_credits_and_tax(store: Store) -> None:
    with store.write() as session:
        part = make.bill_part(session)
        foundry, other = make.charge_item(session, ChargeClass.FOUNDRY), make.charge_item(session, ChargeClass.OUT_OF_SCOPE)
        make.charge(session, part, foundry, "70.25", invoice_id="G1")
        make.charge(session, part, foundry, "-5.25", invoice_id="G1", charge_type="Refund")
        make.charge(session, part, other, "11.00", invoice_id="G1")
        make.charge(session, part, foundry, "1.00")
        make.charge(session, make.bill_part(session, subscription_id="old", superseded_at=NOW), foundry, "999", invoice_id="G1")
        session.add(InvoiceStatement(invoice_id="G1", currency="USD", amount=Decimal("90.45"), tax=Decimal("14.44"), author="ana", known_from=NOW))
    with store.read() as session:
        first, second = ledger.invoices(session, NOVEMBER, now=NOW)
    assert (first.invoice_id, first.in_scope, first.credits, first.out_of_scope, first.tax, first.total, first.difference) == (
        "G1",
        Decimal("70.25"),
        Decimal("-5.25"),
        Decimal("11.00"),
        Decimal("14.44"),
        Decimal("90.44"),
        Decimal("0.01"),
    )
    assert (second.invoice_id, second.total, second.stated, second.difference) == (None, Decimal("1.00"), None, None)


# -- how late -------------------------------------------------------------------------------------


def test_a_lag_is_learnt_from_landings_and_becomes_overdue(store: Store) -> None:
    with store.write() as session:
        make.event(session, time=at(19))
        # Six landings, each 30 hours after the end of the last day that it reaches.
        for day in range(5, 11):
            landed = datetime(2026, 11, day + 1, tzinfo=UTC) + timedelta(hours=30)
            make.bill_part(session, landed_at=landed, reaches={"foundry": f"2026-11-{day:02d}"})
    with store.read() as session:
        (lag,) = ledger.lags(session, now=NOW)
        # The 11th is due 30 hours and a day to spare after its end.
        due = datetime(2026, 11, 12, tzinfo=UTC) + timedelta(hours=30 + 24)
        assert (lag.reaches, lag.usual, lag.landings, lag.overdue_since) == (date(2026, 11, 10), timedelta(hours=30), 6, due)
        (early,) = ledger.lags(session, now=due - timedelta(seconds=1))
        assert early.overdue_since is None


def test_a_route_of_few_landings_has_the_documented_lag_and_without_usage_nothing_is_overdue(store: Store) -> None:
    with store.write() as session:
        make.bill_part(session, landed_at=at(8), reaches={"marketplace": "2026-11-06"})
    with store.read() as session:
        (lag,) = ledger.lags(session, now=NOW)
    assert (lag.usual, lag.landings, lag.overdue_since) == (timedelta(hours=72), 1, None)


# -- onboarding -----------------------------------------------------------------------------------


def kinds(session: Session, visible: frozenset[str] | None = None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in ledger.onboarding(session, visible=visible, now=NOW):
        assert one.detail
        assert one.remedy
        found.setdefault(one.kind, []).append(one.subject)
    return found


def test_a_world_that_fits_together_has_no_findings(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.serverless(session, offer_id="llama-offer")
        make.token_prices(session)
        make.event(session, time=at(10))
        part = make.bill_part(session)
        for kind in (MeterKind.INPUT, MeterKind.OUTPUT):
            make.charge(session, part, make.charge_item(session, meter_kind=kind, offer_id="llama-offer"), "1.00")
    with store.read() as session:
        assert kinds(session) == {}


def test_every_kind_of_finding(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.workspace_fact(session, workspace="ws-west", resource_group="rg-west")
        make.workspace_fact(session, workspace="ws-twin", resource_group="rg-west")
        make.serverless(session, "chat-a", offer_id="llama-offer", saas_resource_id="/saas/1")
        make.serverless(session, "chat-b", offer_id="llama-offer", saas_resource_id="/saas/2", region="norwayeast")
        make.serverless(session, "west", workspace="ws-west", model="Llama-4-Scout", offer_id="scout")
        make.serverless(session, "twin", workspace="ws-twin", model="Llama-4-Scout", offer_id="scout", retires_at=NOW + timedelta(days=30))
        make.managed(session, state="Failed")
        make.serverless(session, "quiet", workspace="ws-west", model="Llama-3.1-8B", offer_id="small")
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, offer_id="unknown-offer", resource_group="rg-else", resource_id="/saas/lost", model=None), "5.00")
        make.charge(session, part, make.charge_item(session, offer_id="scout", resource_group="rg-west", resource_id="/saas/both", model=None), "7.00")
        make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE), "3.67", charged_on=date(2026, 11, 18))
        make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None), "3.67")
        make.charge(session, part, make.charge_item(session, offer_id="llama-offer", resource_id="/saas/1", model=None), "1.00", charged_on=date(2026, 11, 18))
        make.event(session, make.series(session, workspace_name="ws-west", deployment="quiet", model="Llama-3.1-8B"), time=at(10))
    with store.read() as session:
        found = kinds(session)
        assert found == {
            "saas_without_deployment": ["/saas/lost"],
            "workspaces_billed_together": ["/saas/both"],
            "missing_tags": ["ws-east: Standard_NC24ads_A100_v4"],
            "several_deployments_of_a_model": ["ws-east: llama-3-3-70b-instruct"],
            "several_subscriptions_to_an_offer": ["ws-east: llama-offer"],
            "region_not_offered": ["ws-east/chat-b"],
            "failed_and_billed": ["ws-east/llama-online/blue"],
            "model_retires": ["ws-twin/twin"],
            "meter_without_price": ["ws-west/quiet"],
            "traffic_without_bill": ["ws-west/quiet"],
        }
        assert set(kinds(session, frozenset({"ws-twin"}))) == {"workspaces_billed_together", "model_retires"}


def test_two_deployments_that_one_offer_bills_together_in_a_workspace_are_named(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        for name, model in (("scout-a", "Llama-4-Scout"), ("maverick-b", "Llama-4-Maverick")):
            make.serverless(session, name, model=model, offer_id="llama-4")
        make.charge(session, make.bill_part(session), make.charge_item(session, offer_id="llama-4", resource_id="/saas/four", model=None), "6.00")
    with store.read() as session:
        (one,) = [each for each in ledger.onboarding(session, visible=None, now=NOW) if each.kind == "several_deployments_of_an_offer"]
    assert (one.subject, one.currency, one.amount) == ("/saas/four", "USD", Decimal(6))
    assert "ws-east/maverick-b, ws-east/scout-a" in one.detail
