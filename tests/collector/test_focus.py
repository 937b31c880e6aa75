"""FOCUS out: rows written by hand, sums equal to the ledger's, and every rule of the checker broken once."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector import billing, focus
from collector.focus.check import Together, faults
from collector.focus.rows import Row
from collector.reports.places import Places
from collector.settings import Settings
from models import ledger, money
from models.charges import ChargeClass, MeterKind
from models.errors import InvalidInput
from models.ledger import CostQuery, Filters
from models.periods import month_period
from models.prices import PriceMeter
from models.store import Store
from tests import factories as make
from tests.collector.focus_files import faults_of

NOW = make.NOW  # 2026-11-20 10:00
NOVEMBER, OCTOBER, MAY = date(2026, 11, 1), date(2026, 10, 1), date(2026, 5, 1)
DATA = Path(__file__).parents[1] / "data" / "focus"
ACCOUNT = "/providers/Microsoft.Billing/billingAccounts/a:b/billingProfiles/P"


def at(day: int) -> datetime:
    return datetime(2026, 11, day, 8, tzinfo=UTC)


def exported(
    store: Store, month: date = NOVEMBER, *, version: focus.Version = "1.2", visible: frozenset[str] | None = None, now: datetime = NOW
) -> list[dict[str, str]]:
    stream = io.BytesIO()
    with store.read() as session:
        about = ledger.focus_month(session, month, now=now)
        written = focus.export(session, about, stream, version=version, form="csv", visible=visible, now=now)
        if visible is None and not about.is_closed:
            query = CostQuery(month_period(month), "none", (), "billed", Filters())
            totals = {one.currency: one.billed_cost for one in ledger.costs(session, query, now=now).totals if one.billed_cost}
            assert {code: total for code, total in written.billed.items() if total} == totals
            best = CostQuery(month_period(month), "none", (), "best", Filters())
            assert {code: total for code, total in written.effective.items() if total} == {
                one.currency: one.cost for one in ledger.costs(session, best, now=now).totals if one.cost and one.currency
            }
    rows = list(csv.DictReader(io.StringIO(stream.getvalue().decode())))
    assert len(rows) == written.rows
    for row in rows:
        assert tuple(row) == focus.columns(version)
    return rows


def some(row: dict[str, str], *names: str) -> tuple[str, ...]:
    return tuple(row[name] for name in names)


def test_a_billed_meter_row(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.serverless(session, offer_id="llama-offer", plan_id="payg")
        make.token_prices(session, "0.80", "0.90")
        part = make.bill_part(session, billing_account=ACCOUNT)
        item = make.charge_item(
            session, offer_id="llama-offer", plan_id="payg", publisher="metagenai", meter_name="offer - payg - paygo-inference-input-tokens"
        )
        make.charge(session, part, item, "0.71", quantity="1000", unit_price=Decimal("0.00071"), invoice_id="G1")
    (row,) = exported(store)
    assert some(row, "BilledCost", "EffectiveCost", "ListCost", "ContractedCost") == ("0.71", "0.71", "0.8", "0.71")
    assert some(row, "ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit") == ("1000000.0", "Tokens", "1000.0", "1000 Tokens")
    assert some(row, "ListUnitPrice", "ContractedUnitPrice", "SkuId", "SkuMeter") == (
        "0.0008",
        "0.00071",
        "metagenai/llama-offer/payg",
        "paygo-inference-input-tokens",
    )
    assert some(row, "ChargePeriodStart", "ChargePeriodEnd", "BillingPeriodEnd") == ("2026-11-10T00:00:00Z", "2026-11-11T00:00:00Z", "2026-12-01T00:00:00Z")
    assert some(row, "BillingAccountId", "BillingAccountType", "InvoiceId", "PublisherName") == (ACCOUNT, "Billing Profile", "G1", "Meta")
    assert some(row, "x_WorkspaceName", "x_DeploymentName", "x_TokenType", "x_CostStatus") == ("ws-east", "llama-chat", "input", "Reconciled")
    assert row["ResourceId"].endswith("/providers/microsoft.saas/resources/llama-offer")


def test_usage_that_no_bill_reaches_is_an_estimate_of_no_billed_cost(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        of = make.series(session, deployment="llama-foundry")
        make.event(session, of, time=at(10), input_tokens=1_000_000, output_tokens=0)
        make.event(session, of, time=at(12), input_tokens=250_000, output_tokens=500_000)
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "1.00", quantity="1", charged_on=date(2026, 11, 10))
    rows = exported(store)
    assert [some(row, "x_CostStatus", "BilledCost", "EffectiveCost", "x_TokenType", "ChargePeriodStart") for row in rows] == [
        ("Metered", "1.0", "1.0", "input", "2026-11-10T00:00:00Z"),
        ("Estimated", "0.0", "0.25", "input", "2026-11-12T00:00:00Z"),
        ("Estimated", "0.0", "1.0", "output", "2026-11-12T00:00:00Z"),
    ]
    assert {row["InvoiceId"] for row in rows} == {""}


def test_a_resource_of_two_deployments_is_split_by_tokens_and_adds_up(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        for name, tokens in (("chat-a", 2_000_000), ("chat-b", 1_000_000)):
            make.serverless(session, name, offer_id="llama-offer", resource_id=f"/subscriptions/s/providers/x/serverlessEndpoints/{name}")
            make.event(session, make.series(session, deployment=name), time=at(10), input_tokens=tokens, output_tokens=0)
        make.token_prices(session)
        make.charge(session, make.bill_part(session), make.charge_item(session, offer_id="llama-offer"), "1.00", quantity="3000")
    a, b = exported(store)
    assert money.plus(Decimal(a["BilledCost"]), Decimal(b["BilledCost"])) == 1
    assert some(a, "x_DeploymentName", "BilledCost", "x_AllocatedRatio", "ConsumedQuantity") == ("chat-a", "0.666666666667", "0.666666666667", "2000000.0")
    assert a["x_OriginChargeId"] == b["x_OriginChargeId"]
    assert a["ResourceId"].endswith("/serverlessendpoints/chat-a")
    a, _ = exported(store, version="1.3")
    assert a["ResourceId"].endswith("/microsoft.saas/resources/llama-offer")
    assert some(a, "AllocatedMethodId", "AllocatedResourceName", "ServiceProviderName") == ("request-tokens-proportional", "chat-a", "Meta")
    assert json.loads(a["AllocatedMethodDetails"])["Elements"][0]["UsageQuantity"] == 2_000_000
    (only,) = [row for row in exported(store, version="1.4") if row["x_DeploymentName"] == "chat-b"]
    assert "ProviderName" not in only


def test_refunds_adjustments_and_other_charges(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.token_prices(session, "1.00", "1.00")
        part = make.bill_part(session)
        item = make.charge_item(session, ChargeClass.FOUNDRY)
        make.charge(session, part, item, "-0.50", quantity="-0.5", unit_price=Decimal("1.00"), charge_type="Refund")
        make.charge(session, part, make.charge_item(session, ChargeClass.ADJUSTMENT), "-0.01", quantity="0", charge_type="RoundingAdjustment")
        make.charge(session, part, make.charge_item(session, ChargeClass.OUT_OF_SCOPE), "99.00")
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, MeterKind.OTHER, unit="?", unit_size=None), "2.00", quantity="7")
    refund, rounding, unknown = exported(store)
    assert some(refund, "ChargeCategory", "ChargeClass", "BilledCost", "ListCost", "PricingQuantity", "ChargeFrequency") == (
        "Usage",
        "",
        "-0.5",
        "-0.5",
        "-0.5",
        "One-Time",
    )
    assert some(rounding, "ChargeCategory", "BilledCost", "ContractedCost", "PricingQuantity", "ServiceName") == (
        "Adjustment",
        "-0.01",
        "-0.01",
        "",
        "Azure billing",
    )
    # What it counts nobody knows: its money stands, and there is no price.
    assert some(unknown, "BilledCost", "SkuPriceId", "PricingQuantity", "ConsumedQuantity") == ("2.0", "", "", "")


RESERVATION = "/providers/Microsoft.Capacity/reservationOrders/o1/reservations/r1"
PLAN = "/providers/Microsoft.BillingBenefits/savingsPlanOrders/o2/savingsPlans/p1"
SIZE = "Standard_NC24ads_A100_v4"


def test_a_reservation_is_bought_used_and_left_unused(store: Store) -> None:
    """As cost details land: the fee as billed, what covers it as rows of no billed cost, each day of a meter put together."""
    with store.write() as session:
        make.workspace_fact(session)
        make.managed(session, valid_to=at(11).replace(hour=0))
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.673", sku=SIZE, model="")
        part = make.bill_part(session, billing_account=ACCOUNT)
        of: dict[str, Any] = {"offer_id": RESERVATION, "plan_id": "NC24 1 year"}
        used = make.charge_item(session, ChargeClass.COMPUTE, **of)
        bought, unused = (
            make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None, meter_kind=MeterKind.COMMITMENT, **of) for _ in range(2)
        )
        make.charge(session, part, used, "0", quantity="24", unit_price=Decimal(0))
        make.charge(session, part, bought, "1748.40", quantity="744", unit_price=Decimal("2.35"), charge_type="Purchase")
        make.charge(session, part, used, "0", quantity="0", effective_cost=Decimal("56.4"))
        make.charge(session, part, bought, "0", quantity="0", effective_cost=Decimal("-1748.40"), charge_type="Purchase")
        make.charge(session, part, unused, "0", quantity="2", effective_cost=Decimal("4.7"), charge_type="UnusedReservation")
    stream = io.BytesIO()
    with store.read() as session:
        about = ledger.focus_month(session, NOVEMBER, now=NOW)
        written = focus.export(session, about, stream, version="1.2", form="csv", visible=None, now=NOW)
    rows = {row["CommitmentDiscountStatus"]: row for row in csv.DictReader(io.StringIO(stream.getvalue().decode())) if row["x_CostStatus"] == "Metered"}
    told = ("ChargeCategory", "BilledCost", "EffectiveCost", "ListCost", "ConsumedQuantity", "CommitmentDiscountQuantity", "PricingCategory", "ServiceName")
    assert {status: some(row, *told) for status, row in rows.items()} == {
        "": ("Purchase", "1748.4", "0.0", "1748.4", "", "744.0", "Standard", "Azure Reservations"),
        "Used": ("Usage", "0.0", "56.4", "88.152", "24.0", "24.0", "Committed", "Azure Machine Learning"),
        "Unused": ("Usage", "0.0", "4.7", "7.346", "", "2.0", "Committed", "Azure Reservations"),
    }
    assert {some(row, "CommitmentDiscountId", "CommitmentDiscountName", "CommitmentDiscountType", "CommitmentDiscountUnit") for row in rows.values()} == {
        (RESERVATION, "NC24 1 year", "Reservation", "Hours")
    }
    assert [rows[status]["ResourceId"] for status in ("", "Unused")] == [RESERVATION, RESERVATION]
    assert rows["Used"]["ResourceId"].endswith("/onlineendpoints/llama-online/deployments/blue")
    about_file = json.loads(focus.meta(about, written, version="1.2", form="csv", now=NOW))
    assert about_file["commitments"] == [{"CommitmentDiscountId": RESERVATION, "currency": "USD", "purchased": "1748.4", "used": "56.4", "unused": "4.7"}]


def test_a_savings_plan_is_counted_in_money(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.managed(session, valid_to=at(11).replace(hour=0))
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.673", sku=SIZE, model="")
        part = make.bill_part(session)
        item = make.charge_item(session, ChargeClass.COMPUTE, offer_id=PLAN)
        make.charge(session, part, item, "0", quantity="5", effective_cost=Decimal("12.00"))
        fee = make.charge_item(session, ChargeClass.COMPUTE, deployment=None, endpoint=None, meter_kind=MeterKind.COMMITMENT, offer_id=PLAN)
        make.charge(session, part, fee, "15.00", quantity=None, effective_cost=Decimal(0), charge_type="Purchase")
    stream = io.BytesIO()
    with store.read() as session:
        focus.export(session, ledger.focus_month(session, NOVEMBER, now=NOW), stream, version="1.4", form="csv", visible=None, now=NOW)
    used, fee_row = csv.DictReader(io.StringIO(stream.getvalue().decode()))
    told = ("CommitmentDiscountCategory", "CommitmentDiscountName", "CommitmentDiscountQuantity", "CommitmentDiscountUnit", "CommitmentDiscountStatus")
    assert some(used, *told) == ("Spend", "p1", "12.0", "USD", "Used")
    assert some(fee_row, *told) == ("Spend", "p1", "15.0", "USD", "")
    assert (fee_row["ServiceName"], fee_row["EffectiveCost"], fee_row["ResourceType"]) == ("Azure Savings Plan for Compute", "0.0", "Savings Plan")


def test_hours_of_managed_compute_are_cut_over_the_deployments_of_a_size(store: Store) -> None:
    """An untagged row of two deployments' instances: each gets the hours it ran, and the parts are what was billed."""
    with store.write() as session:
        make.workspace_fact(session)
        make.managed(session, valid_from=at(1).replace(hour=0))
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.673", sku=SIZE, model="")
        item = make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None)
        make.charge(session, make.bill_part(session), item, "110.19", quantity="30")
    stream = io.BytesIO()
    with store.read() as session:
        focus.export(session, ledger.focus_month(session, NOVEMBER, now=NOW), stream, version="1.3", form="csv", visible=None, now=NOW)
    rows = [row for row in csv.DictReader(io.StringIO(stream.getvalue().decode())) if row["x_CostStatus"] == "Metered"]
    # One instance runs 24 hours a day; the other six of the row belong to no deployment that is known.
    assert [some(row, "x_DeploymentName", "BilledCost", "ConsumedQuantity", "x_AllocatedRatio", "AllocatedMethodId") for row in rows] == [
        ("llama-online/blue", "88.152", "24.0", "0.8", "request-tokens-proportional"),
        ("", "22.038", "6.0", "0.2", "request-tokens-proportional"),
    ]
    assert [json.loads(row["AllocatedMethodDetails"])["Elements"] for row in rows] == [
        [{"AllocatedRatio": 0.8, "UsageQuantity": 24.0, "UsageUnit": "Hours"}],
        [{"AllocatedRatio": 0.2, "UsageQuantity": 6.0, "UsageUnit": "Hours"}],
    ]


def test_a_reader_of_one_workspace_gets_its_rows(store: Store) -> None:
    with store.write() as session:
        for name in ("ws-east", "ws-west"):
            make.workspace_fact(session, workspace=name)
            make.foundry(session, workspace=name)
            item = make.charge_item(session, ChargeClass.FOUNDRY, workspace=name)
            make.charge(session, make.bill_part(session, subscription_id=name), item, "1.00")
    assert [row["x_WorkspaceName"] for row in exported(store, visible=frozenset({"ws-west"}))] == ["ws-west"]


def test_a_closed_month_stays_and_its_restatement_is_a_correction_of_the_month_it_came_in(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.token_prices(session, "1.00", "1.00")
        item = make.charge_item(session, ChargeClass.FOUNDRY)
        part = make.bill_part(session, period_start=OCTOBER, landed_at=at(7))
        make.charge(session, part, item, "5.00", quantity="5", charged_on=date(2026, 10, 10))
        ledger.close_month(session, OCTOBER, author="ana", software="1", now=at(8))
        make.supersede(session, part, at(15))
        again = make.bill_part(session, period_start=OCTOBER, landed_at=at(15))
        make.charge(session, again, item, "4.25", quantity="5", charged_on=date(2026, 10, 10))
    (closed,) = exported(store, OCTOBER)
    assert closed["BilledCost"] == "5.0"
    stream = io.BytesIO()
    with store.read() as session:
        about = ledger.focus_month(session, NOVEMBER, now=NOW)
        written = focus.export(session, about, stream, version="1.2", form="csv", visible=None, now=NOW)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue().decode())))
    assert faults_of(stream.getvalue().decode(), version="1.2") == []
    names = ("ChargeClass", "ChargeCategory", "BilledCost", "ConsumedQuantity", "PricingQuantity", "ListUnitPrice", "ListCost")
    # The million tokens are listed at 1.00: the reversal has a quantity below nothing at that price.
    assert [some(row, *names) for row in rows] == [
        ("Correction", "Usage", "-5.0", "-5000000.0", "-5000.0", "0.001", "-5.0"),
        ("Correction", "Usage", "4.25", "5000000.0", "5000.0", "0.001", "5.0"),
    ]
    assert {some(row, "ChargePeriodStart", "BillingPeriodStart", "x_DeploymentName") for row in rows} == {
        ("2026-10-10T00:00:00Z", "2026-11-01T00:00:00Z", "llama-foundry")
    }
    assert [row["ChargeDescription"].partition(":")[0] for row in rows] == ["reversal of 2026-10", "restatement of 2026-10"]
    assert written.billed == {"USD": Decimal("-0.75")}


def test_each_month_corrects_what_changed_in_it_also_once_it_is_closed_itself(store: Store) -> None:
    december = datetime(2026, 12, 20, 8, tzinfo=UTC)
    with store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        item = make.charge_item(session, ChargeClass.FOUNDRY)
        part = make.bill_part(session, period_start=OCTOBER, landed_at=at(7))
        make.charge(session, part, item, "5.00", quantity="5", charged_on=date(2026, 10, 10))
        ledger.close_month(session, OCTOBER, author="ana", software="1", now=at(8))
        own = make.bill_part(session, period_start=NOVEMBER, landed_at=datetime(2026, 12, 7, tzinfo=UTC))
        make.charge(session, own, item, "2.00", quantity="2", charged_on=date(2026, 11, 3))
        again = part
        for landed, amount, quantity in ((at(15), "4.25", "5"), (datetime(2026, 12, 3, tzinfo=UTC), "4.50", "6")):
            make.supersede(session, again, landed)
            again = make.bill_part(session, period_start=OCTOBER, landed_at=landed)
            make.charge(session, again, item, amount, quantity=quantity, charged_on=date(2026, 10, 10))

    def told(month: date, now: datetime) -> list[tuple[str, ...]]:
        return [some(row, "ChargeClass", "BilledCost") for row in exported(store, month, now=now)]

    november = [("", "2.0"), ("Correction", "-5.0"), ("Correction", "4.25")]
    later = datetime(2027, 1, 2, tzinfo=UTC)
    assert told(OCTOBER, later) == [("", "5.0")]
    stream = io.BytesIO()
    for now in (december, later):
        with store.read() as session:
            about = ledger.focus_month(session, NOVEMBER, now=now)
            focus.export(session, about, stream, version="1.2", form="csv", visible=None, now=now)
        text = stream.getvalue().decode()
        stream = io.BytesIO()
        assert [some(row, "ChargeClass", "BilledCost") for row in csv.DictReader(io.StringIO(text))] == november
        if now == december:
            with store.write() as session:
                ledger.close_month(session, NOVEMBER, author="ana", software="1", now=december)
    with store.read() as session:
        about = ledger.focus_month(session, date(2026, 12, 1), now=later)
        focus.export(session, about, stream, version="1.2", form="csv", visible=None, now=later)
    rows = csv.DictReader(io.StringIO(stream.getvalue().decode()))
    assert [some(row, "ChargeClass", "BilledCost") for row in rows] == [("Correction", "-4.25"), ("Correction", "4.5")]


@pytest.mark.parametrize(("again_on", "told"), [("G1-again", {"G2", "G1-again"}), (None, {""})])
def test_a_correction_names_the_invoice_of_the_bill_that_restated_or_no_row_of_the_file_names_any(store: Store, again_on: str | None, told: set[str]) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        item = make.charge_item(session, ChargeClass.FOUNDRY)
        part = make.bill_part(session, period_start=OCTOBER, landed_at=at(7))
        make.charge(session, part, item, "5.00", quantity="5", charged_on=date(2026, 10, 10), invoice_id="G1")
        ledger.close_month(session, OCTOBER, author="ana", software="1", now=at(8))
        make.supersede(session, part, at(15))
        again = make.bill_part(session, period_start=OCTOBER, landed_at=at(15))
        make.charge(session, again, item, "4.25", quantity="5", charged_on=date(2026, 10, 10), invoice_id=again_on)
        make.charge(session, make.bill_part(session, period_start=NOVEMBER), item, "2.00", quantity="2", charged_on=date(2026, 11, 3), invoice_id="G2")
    stream = io.BytesIO()
    with store.read() as session:
        focus.export(session, ledger.focus_month(session, NOVEMBER, now=NOW), stream, version="1.2", form="csv", visible=None, now=NOW)
    assert {row["InvoiceId"] for row in csv.DictReader(io.StringIO(stream.getvalue().decode()))} == told


def test_parquet_holds_the_same_rows(store: Store, tmp_path: Path) -> None:
    with store.write() as session:
        make.workspace_fact(session, workspace="=cmd()")
        make.foundry(session, workspace="=cmd()")
        item = make.charge_item(session, ChargeClass.FOUNDRY, workspace="=cmd()")
        make.charge(session, make.bill_part(session), item, "1.23456789", quantity="1.5", unit_price=Decimal("0.82304526"))
    (row,) = exported(store)
    assert row["x_WorkspaceName"] == "'=cmd()"  # no formula in a spreadsheet
    path = tmp_path / "f.parquet"
    with store.read() as session, path.open("wb") as stream:
        focus.export(session, ledger.focus_month(session, NOVEMBER, now=NOW), stream, version="1.2", form="parquet", visible=None, now=NOW)
    (found,) = pq.read_table(path).to_pylist()
    assert tuple(found) == focus.columns("1.2")
    assert (found["BilledCost"], found["x_WorkspaceName"]) == (Decimal("1.234567890000000000"), "=cmd()")
    assert found["ChargePeriodStart"] == datetime(2026, 11, 10, tzinfo=UTC)


def test_the_command_writes_the_file_and_what_is_in_it(store: Store, tmp_path: Path) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.charge(session, make.bill_part(session), make.charge_item(session, ChargeClass.FOUNDRY), "1.00")
    said: list[str] = []
    out = tmp_path / "focus.csv"
    asked = focus.ExportFocus("2026-11", str(out))
    assert focus.run(store, asked, places=Places.of(Settings()), now=NOW, say=said.append, progress=lambda _done, _of: None) == 0
    about = json.loads((tmp_path / "focus.csv.meta.json").read_text())
    assert (about["control_total"], about["Rows"], about["IsComplete"], about["FocusVersion"]) == ({"USD": "1"}, 1, False, "1.2")
    assert said == ["focus.csv: 1 rows of FOCUS 1.2 for 2026-11, open", "USD: billed 1, effective 1"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".focus", "focus"))) == ["focus.csv", "focus.csv.meta.json"]
    for wrong, words in ((("2027-01",), "has not begun"), (("2026-11", "/nowhere/at/all/f.csv"), "there is no folder")):
        with pytest.raises(InvalidInput, match=words):
            focus.run(
                store,
                focus.ExportFocus(wrong[0], wrong[1] if len(wrong) > 1 else str(out)),
                places=Places.of(Settings()),
                now=NOW,
                say=said.append,
                progress=print,
            )


# -- equal to the ledger ---------------------------------------------------------------------------

_cost = st.decimals(min_value=Decimal(-5), max_value=Decimal(50), places=6)


@settings(max_examples=12, deadline=None)
@given(
    charges=st.lists(st.tuples(st.integers(1, 18), st.sampled_from(["saas", "foundry", "compute", "untagged", "rounding"]), _cost), max_size=8),
    events=st.lists(st.tuples(st.integers(1, 19), st.sampled_from(["chat-a", "chat-b", "llama-foundry"]), st.integers(0, 10**7)), max_size=8),
)
def test_sums_are_the_ledgers_to_the_last_digit(tmp_path_factory: pytest.TempPathFactory, charges: list[Any], events: list[Any]) -> None:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('focus')}/t.db")
    store.migrate()
    with store.write() as session:
        make.workspace_fact(session)
        make.token_prices(session, "1.10", "2.20")
        for name in ("chat-a", "chat-b"):
            make.serverless(session, name, offer_id="llama-offer")
        make.foundry(session)
        make.managed(session)
        part = make.bill_part(session)
        items = {
            "saas": make.charge_item(session, offer_id="llama-offer"),
            "foundry": make.charge_item(session, ChargeClass.FOUNDRY),
            "compute": make.charge_item(session, ChargeClass.COMPUTE),
            "untagged": make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None),
            "rounding": make.charge_item(session, ChargeClass.ADJUSTMENT),
        }
        for day, kind, cost in charges:
            make.charge(session, part, items[kind], cost, quantity="3.5", charged_on=date(2026, 11, day))
        for day, name, tokens in events:
            make.event(session, make.series(session, deployment=name), time=at(day), input_tokens=tokens, output_tokens=tokens // 3)
    exported(store)
    store.close()


# -- there and back --------------------------------------------------------------------------------


def landed(tmp_path: Path, name: str, file: Path) -> tuple[Path, focus.Written]:
    """The file landed as the bill of an empty service, and its May exported again."""
    store = Store(f"sqlite:///{tmp_path / name}.db")
    store.migrate()
    billing.land(store, billing.read_bill(file, name=file.name), now=NOW, author="ana")
    out = tmp_path / f"{name}.csv"
    with store.read() as session, out.open("wb") as stream:
        written = focus.export(session, ledger.focus_month(session, MAY, now=NOW), stream, version="1.2", form="csv", visible=None, now=NOW)
        query = CostQuery(month_period(MAY), "none", (), "billed", Filters())
        totals = {one.currency: one.billed_cost for one in ledger.costs(session, query, now=NOW).totals}
    store.close()
    # What the month's days were billed, and beside it what its invoice corrects of other months.
    assert {code: money.minus(total, written.outside.get(code, money.ZERO)) for code, total in written.billed.items()} == totals
    return out, written


@pytest.mark.parametrize(
    ("file", "rows", "billed", "outside"),
    [
        ("llama_export_focus_1_2_open.csv", 7, {"USD": "99.14"}, {}),
        ("llama_export_focus_1_2_closed.csv", 25, {"EUR": "1.263237832", "USD": "511.3351501945"}, {"USD": "-7.6676"}),
    ],
)
def test_a_file_of_ours_that_is_landed_comes_out_with_the_same_sums(
    tmp_path: Path, file: str, rows: int, billed: dict[str, str], outside: dict[str, str]
) -> None:
    once, first = landed(tmp_path, "once", DATA / file)
    _, second = landed(tmp_path, "twice", once)
    for written in (first, second):
        assert written.rows == rows
        assert {code: money.text(total) for code, total in written.billed.items()} == billed
        assert {code: money.text(total) for code, total in written.outside.items()} == outside
    assert first.effective == second.effective


def test_the_native_export_comes_out_with_its_sums(tmp_path: Path) -> None:
    _, written = landed(tmp_path, "native", DATA / "azure_focus_1_2_preview_export.csv")
    assert (written.rows, written.billed) == (16, {"USD": Decimal("2070.08048488")})


# -- the checker ----------------------------------------------------------------------------------


def good() -> Row:
    return {
        "BilledCost": Decimal("0.71"),
        "BillingAccountId": ACCOUNT,
        "BillingCurrency": "USD",
        "BillingPeriodStart": datetime(2026, 11, 1, tzinfo=UTC),
        "BillingPeriodEnd": datetime(2026, 12, 1, tzinfo=UTC),
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": datetime(2026, 11, 10, tzinfo=UTC),
        "ChargePeriodEnd": datetime(2026, 11, 11, tzinfo=UTC),
        "ConsumedQuantity": Decimal(1_000_000),
        "ConsumedUnit": "Tokens",
        "ContractedCost": Decimal("0.71"),
        "ContractedUnitPrice": Decimal("0.00071"),
        "EffectiveCost": Decimal("0.71"),
        "InvoiceIssuerName": "Microsoft",
        "ListCost": Decimal("0.71"),
        "ListUnitPrice": Decimal("0.00071"),
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "PricingQuantity": Decimal(1000),
        "PricingUnit": "1000 Tokens",
        "ProviderName": "Microsoft",
        "PublisherName": "Meta",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Meta Llama models as a service",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "s",
        "SkuPriceId": "s/m",
        "SubAccountId": "/subscriptions/s",
        "SubAccountType": "Subscription",
        "Tags": "{}",
        "x_CostStatus": "Metered",
    }


def test_a_good_row_has_no_faults() -> None:
    assert faults(good(), version="1.2") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ChargePeriodStart": datetime(2026, 11, 10)}, "is no instant in UTC"),  # noqa: DTZ001 - the fault
        ({"CostCenter": "x"}, "CostCenter is no column of 1.2"),
        ({"AllocatedMethodId": "m"}, "AllocatedMethodId is no column of 1.2"),
        ({"BilledCost": 0.71}, "BilledCost is no decimal"),
        ({"BilledCost": Decimal("NaN")}, "BilledCost is no decimal"),
        ({"ServiceName": Decimal(1)}, "ServiceName is no text"),
        ({"ProviderName": "Microsoft Corporation"}, "BilledCost must be 0 where ProviderName"),
    ],
)
def test_what_breaks_a_rule_is_found(change: dict[str, Any], said: str) -> None:
    row = {name: value for name, value in (good() | change).items() if value is not None}
    assert any(said in fault for fault in faults(row, version="1.2"))


def test_what_only_rows_together_show() -> None:
    together = Together()
    changes: tuple[Row, ...] = (
        {},
        {"x_OriginChargeId": "o", "x_AllocatedRatio": Decimal("0.4")},
        {"InvoiceId": "G1"},
        {"ServiceSubcategory": "Machine Learning"},
        {"SkuId": "other"},
    )
    for change in changes:
        together.see(good() | change)
    assert together.faults(is_whole=True) == [
        "some rows name an invoice and some do not",
        "Meta Llama models as a service is in two categories",
        "s/m is of two SkuIds",
        "the shares of o add up to 0.4, not to 1",
    ]
    assert len(together.faults(is_whole=False)) == 3
