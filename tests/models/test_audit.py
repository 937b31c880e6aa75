"""The plain books, figure by figure, in small worlds whose figures were worked out by hand; and that ``verify`` reports what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col

from models import audit
from models.audit import Figures, Question, Row, Table, TableLike, Verification
from models.charges import BillPart, ChargeClass, ChargeDay, MeterKind
from models.periods import Period
from models.prices import PriceMeter
from models.resources import Mode, Route
from models.store import Store
from models.usage import Operation, Status, UsageEvent, UsageMinute, UsageQuarter
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00
WORLD = Period(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC))
MILLION = 1_000_000


def at(day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute, second, tzinfo=UTC)


def costs(
    session: Session, *group_by: str, basis: str = "best", day: int | None = None, as_of: datetime | None = None, now: datetime = NOW
) -> dict[tuple[str | None, ...], Figures]:
    """The figures of the whole world (or one November day) by (groups …, currency)."""
    period = WORLD if day is None else Period(at(day), at(day + 1))
    books = audit.recompute(session, now=now, as_of=as_of, period=period)
    table = books.costs(Question(period, "none", group_by, basis, as_of))
    return {(*row.groups.values(), row.figures.currency): row.figures for row in table.rows}


# -- usage at the price book ----------------------------------------------------------------------


def test_a_price_change_within_a_day_applies_from_its_hour(store: Store) -> None:
    with store.write() as session:
        make.serverless(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "1.00", valid_to=at(10, 12))
        make.price(session, PriceMeter.INPUT_TOKENS, "2.00", valid_from=at(10, 12))
        make.price(session, PriceMeter.OUTPUT_TOKENS, "0.60")
        make.event(session, time=at(10, 11, 59, 59), input_tokens=MILLION, output_tokens=1000)
        make.event(session, time=at(10, 12), input_tokens=300_001, output_tokens=None)
    with store.read() as session:
        found = costs(session, "workspace", "deployment", "model", "mode", basis="metered")
    # 1.00 + 0.600002, and 1000 output tokens at 0.60 a million
    assert found == {
        ("ws-east", "llama-chat", make.MODEL, "serverless", "USD"): Figures(
            currency="USD",
            cost=Decimal("1.600602"),
            metered_cost=Decimal("1.600602"),
            billed_cost=None,
            input_tokens=1_300_001,
            output_tokens=1000,
            requests=2,
            status="provisional",
            unknown_token_requests=1,
        )
    }


def test_cached_input_has_its_own_meter_where_it_has_a_price(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "2.00")
        make.event(session, time=at(1, 8), input_tokens=1000, cached_input_tokens=400, output_tokens=10)
        make.price(session, PriceMeter.CACHED_INPUT_TOKENS, "0.10", valid_from=at(2))
        make.event(session, time=at(2, 8), input_tokens=1000, cached_input_tokens=400, output_tokens=10)
    with sqlite_store.read() as session:
        before = costs(session, "meter", basis="metered", day=1)
        after = costs(session, "meter", basis="metered", day=2)
    assert {key[0]: (each.cost, each.input_tokens, each.output_tokens, each.requests) for key, each in before.items()} == {
        "input": (Decimal("0.001"), 1000, 0, 1),
        "output": (Decimal("0.00002"), 0, 10, 0),
    }
    assert {key[0]: (each.cost, each.input_tokens, each.output_tokens, each.requests) for key, each in after.items()} == {
        "input": (Decimal("0.0006"), 600, 0, 1),
        "cached_input": (Decimal("0.00004"), 400, 0, 0),
        "output": (Decimal("0.00002"), 0, 10, 0),
    }


def test_tokens_without_a_price_are_unpriced_and_their_cost_is_not_zero(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.price(session, PriceMeter.INPUT_TOKENS, "1.00")
        make.event(session, make.series(session), input_tokens=500, output_tokens=70)
        make.event(session, make.series(session, model="phi", deployment="phi"), input_tokens=30, output_tokens=7)
    with sqlite_store.read() as session:
        found = costs(session, "deployment")
    # Without a bill, tokens stand in the currency of their request's prices; without any, in none.
    assert {key: (each.cost, each.metered_cost, each.input_tokens, each.output_tokens, each.requests, each.unpriced_tokens) for key, each in found.items()} == {
        ("llama-chat", "USD"): (Decimal("0.0005"), Decimal("0.0005"), 500, 70, 1, 70),
        ("phi", None): (None, None, 30, 7, 1, 37),
    }


def test_what_is_not_billable_is_a_request_without_tokens(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        make.event(session, input_tokens=100, output_tokens=None)
        make.event(session, make.series(session, operation=Operation.EMBEDDINGS.value), input_tokens=100, output_tokens=None)
        make.event(session, input_tokens=100, output_tokens=100, billable=False)
        make.event(session, input_tokens=None, output_tokens=None, status=Status.THROTTLED)
    with sqlite_store.read() as session:
        found = costs(session)[("USD",)]
    assert (found.requests, found.input_tokens, found.output_tokens, found.unknown_token_requests) == (4, 200, 0, 1)
    assert found.cost == Decimal("0.0002")


def test_fine_tuning_is_priced_by_training_tokens(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "9", "9")
        make.price(session, PriceMeter.TRAINING_TOKENS, "3.00")
        make.event(session, make.series(session, operation=Operation.FINE_TUNING.value), input_tokens=MILLION, output_tokens=500_000)
    with sqlite_store.read() as session:
        found = costs(session, "meter")
    assert found[("training", "USD")].cost == Decimal("4.5")
    assert (found[("training", "USD")].input_tokens, found[("training", "USD")].output_tokens) == (MILLION, 500_000)
    assert found[("training", "USD")].requests == 1


def test_an_imported_price_wins_over_a_bundled_one_and_a_workspace_over_a_region(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "100", origin="bundled", workspace="ws-east")
        make.price(session, PriceMeter.INPUT_TOKENS, "2", region="EastUS")
        make.price(session, PriceMeter.INPUT_TOKENS, "3", workspace="ws-east", model="meta-llama-3.3-70b-instruct")
        make.price(session, PriceMeter.INPUT_TOKENS, "4", known_from=at(19))
        make.price(session, PriceMeter.INPUT_TOKENS, "5", workspace="ws-east", known_from=at(19))
        make.event(session, time=at(10), input_tokens=MILLION, output_tokens=0)
    with sqlite_store.read() as session:
        assert costs(session)[("USD",)].cost == 5
        assert costs(session, as_of=at(18))[("USD",)].cost == 3


# -- names ----------------------------------------------------------------------------------------


def test_names_sent_mean_what_the_registry_says(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.deployment_fact(session, "Online/Blue", mode=Mode.SERVERLESS, route=Route.MARKETPLACE, model="Registered")
        make.deployment_fact(session, "ep2/green")
        make.deployment_fact(session, "ep3/green")
        make.deployment_fact(session, "seen/only", source="usage")
        for endpoint, deployment in (
            ("online", "BLUE"),
            ("", "blue"),
            ("ONLINE", ""),
            ("", "green"),
            ("", "only"),
            ("same", "same"),
            ("", ""),
        ):
            make.event(session, make.series(session, endpoint=endpoint, deployment=deployment))
    with sqlite_store.read() as session:
        found = costs(session, "deployment", "model", "mode")
    assert {key[:3]: each.requests for key, each in found.items()} == {
        ("Online/Blue", "Registered", "serverless"): 3,
        ("green", make.MODEL, "unknown"): 1,
        ("only", make.MODEL, "unknown"): 1,
        ("same", make.MODEL, "unknown"): 1,
        (None, make.MODEL, "unknown"): 1,
    }


def test_outside_every_validity_the_last_that_ended_else_the_first_applies(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session, model="bill-says", source="bill")
        make.serverless(session, model="first", valid_from=at(3), valid_to=at(5))
        make.serverless(session, model="second", valid_from=at(8), valid_to=at(9))
        make.serverless(session, "other", model="o1", valid_from=at(3), valid_to=at(5))
        make.serverless(session, "other", model="o2", valid_from=at(8), valid_to=at(9))
        for day in (1, 4, 6, 8, 10):
            make.event(session, time=at(day))
            make.event(session, make.series(session, deployment="other"), time=at(day))
    with sqlite_store.read() as session:
        models = {day: {key[0]: key[1] for key in costs(session, "deployment", "model", day=day)} for day in (1, 4, 6, 8, 10)}
    assert models == {
        1: {"llama-chat": "bill-says", "other": "o1"},
        4: {"llama-chat": "first", "other": "o1"},
        6: {"llama-chat": "bill-says", "other": "o1"},
        8: {"llama-chat": "second", "other": "o2"},
        10: {"llama-chat": "bill-says", "other": "o2"},
    }


# -- owners ---------------------------------------------------------------------------------------


def test_an_own_team_wins_over_tag_application_deployment_and_workspace(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.owner(session, workspace="ws-east", deployment=None, team="by-workspace", cost_center="cc-workspace")
        make.owner(session, workspace=None, deployment="LLAMA-CHAT", team="by-deployment-anywhere", cost_center=None)
        make.owner(session, deployment="llama-chat", team="by-deployment", cost_center=None, valid_from=at(2))
        make.owner(session, deployment=None, workspace=None, application="app", team="by-application", cost_center="cc-application")
        make.owner(session, deployment=None, workspace=None, tag_key="env", tag_value="prod", team="by-tag", cost_center=None)
        make.owner(session, deployment=None, workspace=None, tag_key="env", tag_value="dev", team="no", cost_center="no")
        make.event(session, make.series(session, team="own", application="app", tags={"env": "prod"}), time=at(3), input_tokens=1)
        make.event(session, make.series(session, application="app", tags={"env": "prod"}), time=at(3), input_tokens=2)
        make.event(session, make.series(session, application="app"), time=at(3), input_tokens=4)
        make.event(session, make.series(session), time=at(3), input_tokens=8)
        make.event(session, make.series(session), time=at(1), input_tokens=16)
        make.event(session, make.series(session, deployment="x"), time=at(3), input_tokens=32)
        make.event(session, make.series(session, deployment="x", workspace_name="ws-west"), time=at(3), input_tokens=64)
    with sqlite_store.read() as session:
        found = costs(session, "team", "cost_center")
    assert {key[:2]: each.input_tokens for key, each in found.items()} == {
        ("own", "cc-application"): 1,
        ("by-tag", "cc-application"): 2,
        ("by-application", "cc-application"): 4,
        ("by-deployment", "cc-workspace"): 8,
        ("by-deployment-anywhere", "cc-workspace"): 16,
        ("by-workspace", "cc-workspace"): 32,
        (None, None): 64,
    }


# -- managed compute ------------------------------------------------------------------------------


def test_managed_compute_costs_its_instance_hours_across_a_scale_change(store: Store) -> None:
    with store.write() as session:
        make.managed(session, valid_from=at(10, 6), valid_to=at(10, 18, 20))
        make.managed(session, instance_count=2, valid_from=at(10, 18, 20), valid_to=at(11))
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.67", sku="standard_nc24ads_a100_v4", region="eastus")
        make.event(session, make.series(session, endpoint="llama-online", deployment="blue", application="app"), time=at(10, 9))
    with store.read() as session:
        day = costs(session, "deployment", "application", "mode", basis="metered", day=10)
    # 12 h 20 min of one (12.333333) and 5 h 40 min of two (5.666667 each) are 23.666667 instance-hours.
    # They are the only application's, as it alone used the deployment that day; its tokens have no price, and are not unpriced for that.
    only = day[("llama-online/blue", "app", "managed_compute", "USD")]
    assert (only.cost, only.core_hours, only.requests) == (Decimal("86.85666789"), Decimal("568.000008"), 1)
    assert (only.input_tokens, only.output_tokens, only.unpriced_tokens) == (1000, 200, 0)


def test_managed_compute_runs_up_to_now_and_without_a_price_its_cost_is_unknown(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, valid_from=at(20, 7, 59, 24))
        make.managed(session, "priced/one", sku="Standard_NC6s_v3", valid_from=at(20, 8))
        make.price(session, PriceMeter.INSTANCE_HOURS, "2", sku="Standard_NC6s_v3")
    with sqlite_store.read() as session:
        found = costs(session, "deployment", basis="metered")
        earlier = costs(session, "deployment", basis="metered", as_of=at(20, 9))
    assert (found[("llama-online/blue", None)].cost, found[("llama-online/blue", None)].core_hours) == (None, Decimal("48.24"))
    assert (found[("priced/one", "USD")].cost, found[("priced/one", "USD")].core_hours) == (Decimal(4), Decimal(12))
    assert earlier[("priced/one", "USD")].cost == 2


def test_an_untagged_vm_row_fills_the_only_deployment_of_its_size(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session, workspace="WS-East")
        make.managed(session, valid_from=at(1))
        make.managed(session, "other/size", sku="Standard_NC6s_v3", valid_from=at(1))
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE), "36.70", quantity="10")
        untagged = make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None)
        make.charge(session, part, untagged, "60.00", quantity="20", effective_cost=Decimal(40))
    with sqlite_store.read() as session:
        found = costs(session, "workspace", "deployment", basis="billed", day=10)
        amortized = costs(session, "workspace", "deployment", basis="amortized", day=10)
    # 24 instance-hours less the 10 tagged ones leave room for 14 of the 20: 42 of 60.
    assert {key[:2]: (each.billed_cost, each.core_hours) for key, each in found.items() if each.billed_cost} == {
        ("WS-East", "llama-online/blue"): (Decimal("78.70"), Decimal(576)),
        ("WS-East", None): (Decimal(18), Decimal(144)),
    }
    assert amortized[("WS-East", "llama-online/blue", "USD")].cost == Decimal("64.70")
    assert amortized[("WS-East", None, "USD")].cost == 12


def test_an_untagged_vm_row_stays_with_the_workspace_where_two_deployments_have_its_size(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, valid_from=at(1))
        make.managed(session, "llama-online/green", valid_from=at(10, 23))
        untagged = make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None)
        part = make.bill_part(session)
        make.charge(session, part, untagged, "6.00", quantity="2", charged_on=date(2026, 11, 9))
        make.charge(session, part, untagged, "9.00", quantity="3", charged_on=date(2026, 11, 10))
    with sqlite_store.read() as session:
        assert costs(session, "deployment", basis="billed", day=9)[("llama-online/blue", "USD")].cost == 6
        assert costs(session, "deployment", basis="billed", day=10)[(None, "USD")].cost == 9


# -- bills ----------------------------------------------------------------------------------------


def test_a_marketplace_charge_is_split_by_tokens_of_its_kind(store: Store) -> None:
    saas = "/subscriptions/S/providers/Microsoft.SaaS/resources/offer"
    with store.write() as session:
        make.workspace_fact(session)
        make.serverless(session, "one", saas_resource_id=saas.upper())
        make.serverless(session, "two", saas_resource_id=saas)
        make.serverless(session, "three", saas_resource_id="another")
        make.event(session, make.series(session, deployment="one", application="a"), time=at(10, 1), input_tokens=1, output_tokens=900)
        make.event(session, make.series(session, deployment="two", application="b"), time=at(10, 2), input_tokens=2, output_tokens=0)
        make.event(session, make.series(session, deployment="three"), time=at(10, 2), input_tokens=5000)
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, resource_id=saas), "0.10")
        make.charge(session, part, make.charge_item(session, meter_kind=MeterKind.OUTPUT, resource_id=saas), "0.70")
        make.charge(session, part, make.charge_item(session, resource_id=saas), "5", charged_on=date(2026, 11, 11))
    with store.read() as session:
        found = costs(session, "deployment", "application", "meter", basis="billed")
        by_workspace = costs(session, "workspace", basis="billed")
    assert {key[:3]: each.cost for key, each in found.items() if each.cost} == {
        ("one", "a", "input"): Decimal("0.033333333333"),
        ("two", "b", "input"): Decimal("0.066666666667"),  # the larger remainder takes the last digit
        ("one", "a", "output"): Decimal("0.70"),
        (None, None, "input"): 5,  # the day after has no tokens: unallocated, within the only workspace
    }
    assert by_workspace[("ws-east", "USD")].cost == Decimal("5.80")


def test_a_marketplace_charge_is_found_by_offer_else_by_model(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.workspace_fact(session, workspace="ws-far", resource_group="rg-other")
        make.serverless(session, "by-offer", offer_id="Meta-Llama", model="x")
        make.serverless(session, "by-model", model="meta-llama-3-3-70B-instruct")
        make.serverless(session, "by-model", workspace="ws-far")
        make.foundry(session, "not-marketplace")
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, offer_id="meta-llama"), "1")
        make.charge(session, part, make.charge_item(session, offer_id="unknown"), "2")
        make.charge(session, part, make.charge_item(session, model="nothing"), "4")
    with sqlite_store.read() as session:
        found = costs(session, "workspace", "deployment", "mode", basis="billed")
    assert {key[:3]: each.cost for key, each in found.items()} == {
        ("ws-east", "by-offer", "serverless"): 1,
        ("ws-east", "by-model", "serverless"): 2,
        (None, None, "serverless"): 4,
    }


def test_a_foundry_charge_names_account_and_deployment_without_case(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session, workspace="AI-Account", kind="foundry_account")
        make.foundry(session, "Llama-33", workspace="AI-Account")
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, workspace="ai-account", deployment="llama-33"), "1.5")
        make.charge(session, part, make.charge_item(session, ChargeClass.OUT_OF_SCOPE), "99")
    with sqlite_store.read() as session:
        found = costs(session, "workspace", "deployment", "subscription", basis="billed")
    assert {key: each.cost for key, each in found.items()} == {("AI-Account", "Llama-33", make.SUBSCRIPTION, "USD"): Decimal("1.5")}


def test_a_rounding_adjustment_counts_unallocated(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.ADJUSTMENT), "-0.000000000000001", charge_type="RoundingAdjustment", quantity=None)
    with sqlite_store.read() as session:
        found = costs(session, "workspace", "deployment", "mode", "application", "team", "meter")
    assert {key: each.cost for key, each in found.items()} == {(None, None, "unknown", None, None, "adjustment", "USD"): Decimal("-0.000000000000001")}


def test_a_billed_amount_is_split_over_the_applications_and_teams_of_its_day(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.foundry(session, "llama-foundry")
        make.owner(session, deployment="llama-foundry", team="owner", cost_center=None)
        for application, tokens in (("a", 1), ("b", 1), ("c", 1)):
            make.event(session, make.series(session, deployment="llama-foundry", application=application), time=at(10, 3), input_tokens=tokens, output_tokens=0)
        part = make.bill_part(session)
        item = make.charge_item(session, ChargeClass.FOUNDRY, cost_center="bill-cc")
        make.charge(session, part, item, "1")
        make.charge(session, part, item, "2", charged_on=date(2026, 11, 11))
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, MeterKind.OUTPUT), "3")
    with sqlite_store.read() as session:
        input_day = costs(session, "application", "meter", basis="billed", day=10)
        next_day = costs(session, "application", "team", "cost_center", basis="billed", day=11)
    assert {key[:2]: each.cost for key, each in input_day.items()} == {
        ("a", "input"): Decimal("0.333333333334"),  # equal remainders: the first series
        ("b", "input"): Decimal("0.333333333333"),
        ("c", "input"): Decimal("0.333333333333"),
        ("a", "output"): 1,  # no output tokens: by requests
        ("b", "output"): 1,
        ("c", "output"): 1,
    }
    assert {key[:3]: each.cost for key, each in next_day.items()} == {(None, "owner", None): 2}


def test_metered_cost_is_in_the_bills_currency_at_the_bills_own_rate(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.serverless(session)
        make.token_prices(session)
        october = make.bill_part(session, period_start=date(2026, 10, 1), exchange_rates={"USD>EUR": "0.90"})
        make.charge(session, october, make.charge_item(session), "1", charged_on=date(2026, 10, 5), currency="EUR")
        november = make.bill_part(session, exchange_rates={"USD>EUR": "0.92"})
        make.charge(session, november, make.charge_item(session), "0.65", currency="EUR")
        make.event(session, time=datetime(2026, 10, 5, 9, tzinfo=UTC), input_tokens=MILLION, output_tokens=0)
        make.event(session, time=at(10, 9), input_tokens=MILLION, output_tokens=0)
    with sqlite_store.read() as session:
        found = costs(session)
    # 0.71 × 0.90 + 0.71 × 0.92
    assert set(found) == {("EUR",)}
    assert found[("EUR",)].metered_cost == Decimal("1.2922")
    assert found[("EUR",)].cost == Decimal("1.65")


def test_a_month_without_a_bill_takes_the_latest_earlier_rate_else_the_earliest_later_one(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "1")
        for first, rate in ((date(2026, 8, 1), "0.8"), (date(2026, 10, 1), "0.5")):
            part = make.bill_part(session, period_start=first, exchange_rates={"USD>EUR": rate})
            make.charge(session, part, make.charge_item(session), "1", charged_on=first, currency="EUR")
        for month in (7, 9, 11):
            make.event(session, time=datetime(2026, month, 2, tzinfo=UTC), input_tokens=MILLION, output_tokens=0)
        period = Period(datetime(2026, 7, 1, tzinfo=UTC), WORLD.end)
    with sqlite_store.read() as session:
        table = audit.recompute(session, now=NOW, period=period).costs(Question(period, "month", (), "metered"))
    assert {row.period.start.month: row.figures.cost for row in table.rows} == {
        7: Decimal("0.8"),
        8: 0,
        9: Decimal("0.8"),
        10: 0,
        11: Decimal("0.5"),
    }


def test_best_is_billed_up_to_the_day_the_bill_reaches_and_metered_after(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        for day in (9, 10, 11):
            make.event(session, time=at(day, 9), input_tokens=MILLION, output_tokens=0)
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session), "0.90")
        make.charge(session, part, make.charge_item(session), "0.05", charged_on=date(2026, 11, 12), charge_type="Refund")
    with store.read() as session:
        table = audit.recompute(session, now=NOW, period=WORLD).costs(Question(WORLD, "day"))
    rows = {row.period.start.day: (row.figures.cost, row.figures.metered_cost, row.figures.billed_cost, row.figures.status) for row in table.rows}
    assert rows == {
        9: (Decimal(0), Decimal(1), Decimal(0), "settling"),  # reached, and nothing billed: zero included
        10: (Decimal("0.90"), Decimal(1), Decimal("0.90"), "settling"),
        11: (Decimal(1), Decimal(1), None, "provisional"),
        12: (Decimal("0.05"), Decimal(0), Decimal("0.05"), "settling"),
    }
    (total,) = table.totals
    assert (total.cost, total.metered_cost, total.billed_cost, total.requests, total.status) == (Decimal("1.95"), Decimal(3), Decimal("0.95"), 3, "provisional")


def test_a_reach_speaks_only_for_its_own_route_and_for_months_that_have_landed(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.serverless(session)
        make.foundry(session)
        make.token_prices(session, "1.00", "1.00")
        for name in ("llama-chat", "llama-foundry", "nobody-knows"):
            for time in (datetime(2026, 10, 30, tzinfo=UTC), at(9)):
                make.event(session, make.series(session, deployment=name), time=time, input_tokens=MILLION, output_tokens=0)
        make.charge(session, make.bill_part(session), make.charge_item(session), "0.90")
    with sqlite_store.read() as session:
        found = costs(session, "deployment")
    assert {key[0]: (each.cost, each.billed_cost) for key, each in found.items()} == {
        "llama-chat": (Decimal("1.90"), Decimal("0.90")),
        "llama-foundry": (2, None),
        "nobody-knows": (1, 0),
    }


def test_a_day_settles_five_days_after_its_months_end(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.event(session, time=datetime(2026, 10, 31, 23, 59, tzinfo=UTC))
    with sqlite_store.read() as session:
        assert costs(session, now=at(5, 23, 59))[(None,)].status == "provisional"
        assert costs(session, now=at(6))[(None,)].status == "settled"
        assert costs(session, now=NOW, as_of=at(5))[(None,)].status == "provisional"


def test_as_of_answers_with_what_was_known(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        make.event(session, time=at(10, 9), input_tokens=MILLION, output_tokens=0)
        make.event(session, time=at(10, 9), input_tokens=MILLION, output_tokens=0, received_at=at(18, 12))
        first = make.bill_part(session, landed_at=at(12))
        make.charge(session, first, make.charge_item(session), "0.90")
        restated = make.bill_part(session, landed_at=at(15))
        make.charge(session, restated, make.charge_item(session), "1.70")
        make.supersede(session, first, at(15))
        make.bill_part(session, landed_at=None, subscription_id="staged")
    with store.read() as session:
        found = {when: costs(session, as_of=when)[("USD",)] for when in (at(11), at(12), at(15) - timedelta(microseconds=1), at(15), at(18, 12))}
    assert {when: (each.cost, each.metered_cost) for when, each in found.items()} == {
        at(11): (Decimal(1), Decimal(1)),
        at(12): (Decimal("0.90"), Decimal(1)),
        at(15) - timedelta(microseconds=1): (Decimal("0.90"), Decimal(1)),
        at(15): (Decimal("1.70"), Decimal(1)),
        at(18, 12): (Decimal("1.70"), Decimal(2)),
    }


# -- verify ---------------------------------------------------------------------------------------


def small_world(session: Session) -> None:
    """A little of everything: two deployments, a split, hours, a restated bill."""
    make.workspace_fact(session)
    make.serverless(session, "one")
    make.serverless(session, "two")
    make.managed(session, valid_from=at(8))
    make.token_prices(session)
    make.price(session, PriceMeter.INSTANCE_HOURS, "3.67")
    make.owner(session, deployment="one")
    for day in (9, 10, 19):
        for name in ("one", "two"):
            make.event(session, make.series(session, deployment=name, application=name), time=at(day, 7, day), input_tokens=day * 1000)
    make.event(session, make.series(session, deployment="one"), time=at(19, 8), input_tokens=None, status=Status.INCOMPLETE)
    old = make.bill_part(session, landed_at=at(11))
    make.charge(session, old, make.charge_item(session), "0.01")
    part = make.bill_part(session, landed_at=at(12))
    make.supersede(session, old, at(12))
    make.charge(session, part, make.charge_item(session), "0.0142")
    make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE), "88.08", quantity="24", effective_cost=Decimal(0))


def verified(session: Session, *, changed: Callable[[Question, Table], TableLike] = lambda _, table: table) -> Verification:
    """``verify`` asking the plain books themselves, their answer changed on the way."""
    books: dict[datetime | None, audit.Books] = {}

    def ask(question: Question) -> TableLike:
        if question.as_of not in books:
            books[question.as_of] = audit.recompute(session, now=NOW, as_of=question.as_of, period=question.period)
        return changed(question, books[question.as_of].costs(question))

    return audit.verify(session, now=NOW, ask=ask)


def test_verify_finds_nothing_where_all_agrees(store: Store) -> None:
    steps: list[str] = []
    asked: list[Question] = []
    with store.write() as session:
        small_world(session)
    with store.read() as session:
        found = verified(session)
        books = audit.recompute(session, now=NOW)

        def ask(question: Question) -> Table:
            asked.append(question)
            return books.costs(question)

        audit.verify(session, now=NOW, ask=ask, progress=steps.append)
    assert found.lines() == []
    assert found.is_sound
    assert found.checked > 1000
    assert steps[:2] == ["usage: events against their rollups", "bills: charges against their sums"]
    assert {(each.basis, each.group_by, each.granularity) for each in asked if each.as_of is None} == {
        (basis, group_by, granularity) for basis in audit.BASES for group_by in audit.GROUPINGS for granularity in ("day", "none")
    }
    assert {each.as_of for each in asked} == {None, at(12) - timedelta(microseconds=1), at(20)}
    # From the deployment's first day to the end of today.
    assert {each.period for each in asked} == {Period(at(8), at(21))}


def test_verify_of_an_empty_database_finds_nothing(store: Store) -> None:
    with store.read() as session:
        assert verified(session) == Verification()


def test_verify_reports_a_changed_rollup_row(store: Store) -> None:
    with store.write() as session:
        small_world(session)
        session.execute(sa.update(UsageMinute).where(col(UsageMinute.input_tokens) == 9000).values(input_tokens=9001))
        session.execute(sa.delete(UsageQuarter).where(col(UsageQuarter.input_tokens) == 10000))
        session.add(UsageQuarter(starts_at=900, series_id=1, known_on=3, outcome=1, **dict.fromkeys(ROLLUP_COUNTS, 1)))
    with store.read() as session:
        found = verified(session)
    minutes = [each for each in found.differences if each.what == "usage_minute.input_tokens"]
    assert [(each.ledger, each.recomputed) for each in minutes] == [("9001", "9000")] * 2
    assert minutes[0].where.startswith("2026-11-09T07:09:00Z series ")
    assert [(each.ledger, each.recomputed) for each in found.differences if each.what == "usage_quarter.input_tokens"] == [
        ("0", "10000"),
        ("0", "10000"),
        ("1", "0"),
    ]


ROLLUP_COUNTS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens", "unknown_requests", "estimated_requests")


def test_verify_reports_an_event_that_is_wrongly_called_unknown(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.event(session, event_id="refused", input_tokens=None, status=Status.FILTERED, details={"http_status": 400}, is_unknown=False)
        make.event(session, event_id="answered", input_tokens=None, status=Status.FILTERED, details={"http_status": 200}, is_unknown=False)
        make.event(session, event_id="complete", is_unknown=True)
    with sqlite_store.read() as session:
        found = verified(session)
    wrong = [(each.where.split(" (")[0], each.ledger, each.recomputed) for each in found.differences if each.what == "is_unknown"]
    assert sorted(wrong) == [("event 'answered'", "False", "True"), ("event 'complete'", "True", "False")]


def test_verify_reports_an_event_without_its_series(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.event(session, event_id="lost")
        session.execute(sa.update(UsageEvent).values(series_id=4711))
    with sqlite_store.read() as session:
        found = verified(session)
    assert ("the series of an event", "missing") in {(each.what, each.ledger) for each in found.differences}


def test_verify_reports_a_changed_charge_day(store: Store) -> None:
    with store.write() as session:
        small_world(session)
        session.execute(sa.update(ChargeDay).where(col(ChargeDay.quantity) == Decimal(24)).values(billed_cost=Decimal("88.080000000001")))
    with store.read() as session:
        found = verified(session)
    assert [(each.what, each.ledger, each.recomputed) for each in found.differences] == [("charge_day.billed_cost", "88.080000000001", "88.08")]


def test_verify_reports_a_part_that_does_not_hold_what_it_says(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session), "1")
        session.execute(sa.update(BillPart).values(totals={"USD": "2"}, rows=3, reaches={"marketplace": "2026-11-11", "compute": "2026-11-01"}))
        make.bill_part(session)
    with sqlite_store.read() as session:
        found = verified(session)
    assert [(each.what, each.ledger, each.recomputed) for each in found.differences] == [
        ("rows of a bill part", "3", "1"),
        ("totals of a bill part", "2", "1"),
        ("reach of a bill part", "2026-11-01", "null"),
        ("reach of a bill part", "2026-11-11", "2026-11-10"),
        ("current bill parts", "2", "1"),
    ]


def test_verify_reports_an_answer_that_is_off_by_the_last_digit(sqlite_store: Store) -> None:
    def off(question: Question, table: Table) -> Table:
        if question.basis != "billed" or question.group_by != ("meter",) or question.granularity != "none":
            return table
        rows = [
            replace(row, figures=replace(row.figures, cost=row.figures.cost + Decimal("1E-12"))) if row.groups["meter"] == "input" and row.figures.cost else row
            for row in table.rows
        ]
        return Table(rows, table.totals)

    with sqlite_store.write() as session:
        small_world(session)
    with sqlite_store.read() as session:
        found = verified(session, changed=off)
    asked = "basis=billed group_by=meter granularity=none"
    assert found.lines() == [
        f"{asked}: row cost, 2026-11-08T00:00:00Z meter='input' USD: stored or answered 0.014200000001, recomputed 0.0142",
        f"cost of the total against the sum of its rows, {asked} USD: stored or answered 88.0942, recomputed 88.094200000001",
    ]


def test_verify_reports_a_missing_row_a_doubled_row_and_a_wrong_total(sqlite_store: Store) -> None:
    def wrong(question: Question, table: Table) -> Table:
        if question.as_of is not None or question.granularity != "none" or question.basis != "metered":
            return table
        match question.group_by:
            case ("application",):
                return Table([row for row in table.rows if row.groups["application"] != "two"], table.totals)
            case ("mode",):
                return Table([*table.rows, table.rows[0]], table.totals)
            case ("workspace",):
                return Table(table.rows, [replace(total, requests=8) for total in table.totals])
            case _:
                return table

    with sqlite_store.write() as session:
        small_world(session)
    with sqlite_store.read() as session:
        found = verified(session, changed=wrong)
    seen = {(each.what, each.ledger, each.recomputed) for each in found.differences}
    prefix = "basis=metered group_by={} granularity=none"
    assert (f"{prefix.format('application')}: row requests", "0", "3") in seen
    assert (f"{prefix.format('mode')}: row", "twice", "once") in seen
    assert (f"{prefix.format('workspace')}: total requests", "8", "7") in seen
    assert ("requests of the total against the sum of its rows", "8", "7") in seen


def test_rows_that_hold_nothing_may_be_there_or_not(sqlite_store: Store) -> None:
    def padded(question: Question, table: Table) -> Table:
        empty = Row(Period(question.period.start, question.period.start), dict.fromkeys(question.group_by, "empty"), Figures(cost=Decimal(0)))
        return Table([*table.rows, empty], table.totals)

    with sqlite_store.write() as session:
        small_world(session)
    with sqlite_store.read() as session:
        assert verified(session, changed=padded).lines() == []


def test_verify_keeps_two_hundred_differences_and_counts_the_rest(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        small_world(session)
    with sqlite_store.read() as session:
        found = verified(session, changed=lambda _, table: Table([], []))
    assert len(found.differences) == 200
    assert found.lines()[-1] == f"and {found.more} more"
    assert found.more > 0


def test_spellings_of_one_model_are_one_group_for_both(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        for number, model in enumerate(("Llama-3.3-70B-Instruct", "llama-3-3-70b-instruct", "Meta-Llama-3.3-70B-Instruct")):
            make.event(session, make.series(session, deployment=f"d{number}", model=model), time=at(10, number))
    with sqlite_store.read() as session:
        (only,) = costs(session, "model").values()
        assert only.requests == 3
        assert verified(session).lines() == []


@pytest.mark.parametrize("has_meter", [False, True])
def test_billed_input_is_cut_by_all_input_unless_the_bill_has_cached_input_apart(sqlite_store: Store, has_meter: bool) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        make.price(session, PriceMeter.CACHED_INPUT_TOKENS, "0.10")
        for application, inputs, cached in (("chat", 3000, 2000), ("batch", 1000, 0)):
            of = make.series(session, deployment="llama-foundry", application=application)
            make.event(session, of, time=at(10, 8), input_tokens=inputs, cached_input_tokens=cached, output_tokens=0)
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "1.00")
        if has_meter:
            make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, MeterKind.CACHED_INPUT), "0.08")
    with sqlite_store.read() as session:
        found = costs(session, "meter", "application", basis="billed")
    shares = ("0.5", "0.5") if has_meter else ("0.75", "0.25")
    assert tuple(found["input", name, "USD"].billed_cost for name in ("chat", "batch")) == tuple(map(Decimal, shares))


def test_calls_of_which_nothing_is_known_cost_an_unknown_amount(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "2.00")
        make.event(session, time=at(10), input_tokens=None, output_tokens=None)
    with sqlite_store.read() as session:
        found = costs(session, "meter")
    assert [(key, figures.cost, figures.unknown_token_requests) for key, figures in found.items()] == [(("input", "USD"), None, 1)]
