"""Costs figure by figure, in small worlds whose figures were worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from collector.billing import land, read_bill
from collector.capture import native
from collector.capture.event import Defaults
from collector.ingest import Batch, Ingest
from collector.pricing import import_prices
from collector.registry import import_inventory, import_owners
from models import ledger, money
from models.charges import ChargeClass, MeterKind
from models.errors import InvalidInput
from models.ledger import CostQuery, Figures, Filters
from models.periods import Period
from models.prices import PriceMeter
from models.resources import Mode, Route
from models.store import Store
from models.usage import Operation, Status
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00
MILLION = 1_000_000
NOVEMBER = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC))
SAAS = f"/subscriptions/{make.SUBSCRIPTION}/resourceGroups/rg-ai/providers/Microsoft.SaaS/resources/llama-offer"
Found = dict[Any, Any]  # figures by (groups …, currency): compared with plain numbers


def at(day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute, second, tzinfo=UTC)


def day(number: int) -> Period:
    return Period(at(number), at(number + 1))


def table(session: Session, period: Period = NOVEMBER, granularity: Any = "none", *group_by: str, now: datetime = NOW, **asked: Any) -> Any:
    return ledger.costs(session, CostQuery(period, granularity, group_by, **asked), now=now)


def costs(session: Session, *group_by: str, period: Period = NOVEMBER, now: datetime = NOW, **asked: Any) -> Found:
    """The figures by (groups …, currency)."""
    return {(*row.groups.values(), row.figures.currency): row.figures for row in table(session, period, "none", *group_by, now=now, **asked).rows}


def by_period(session: Session, granularity: str, period: Period = NOVEMBER, **asked: Any) -> dict[datetime, Any]:
    return {row.period.start: row.figures.cost for row in table(session, period, granularity, **asked).rows}


def dec(text: str) -> Decimal:
    return Decimal(text)


# -- usage at the price book ----------------------------------------------------------------------


def test_a_price_change_in_the_middle_of_a_day_and_of_a_bucket_splits_both(store: Store) -> None:
    with store.write() as session:
        make.serverless(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "1.00", valid_to=at(10, 12))
        make.price(session, PriceMeter.INPUT_TOKENS, "2.00", valid_from=at(10, 12))
        make.price(session, PriceMeter.OUTPUT_TOKENS, "0.60")
        make.event(session, time=at(10, 11, 59, 59), input_tokens=MILLION, output_tokens=1000)
        make.event(session, time=at(10, 12), input_tokens=300_001, output_tokens=None)
    with store.read() as session:
        whole = costs(session, "workspace", "deployment", "model", "mode", basis="metered")
        halves = by_period(session, "hour", day(10), basis="metered")
        # Midnight of New York is 05:00 UTC: the day holds the change in its middle.
        local = by_period(session, "day", time_zone="America/New_York", basis="metered")
    figures = whole["ws-east", "llama-chat", make.MODEL, "serverless", "USD"]
    # 1.00 + 1000 x 0.60 / 1M + 300,001 x 2.00 / 1M
    assert (figures.cost, figures.input_tokens, figures.output_tokens, figures.requests) == (dec("1.600602"), 1_300_001, 1000, 2)
    assert (figures.billed_cost, figures.unknown_token_requests, figures.status, figures.estimate) == (None, 1, "provisional", False)
    assert figures.reasons == {"billed_cost": "no bill reaches this period yet"}
    assert halves == {at(10, 11): dec("1.0006"), at(10, 12): dec("0.600002")}
    assert local == {at(10, 5): dec("1.600602")}


def test_cached_input_has_its_own_price_where_there_is_one(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "2.00")
        make.event(session, time=at(1, 8), input_tokens=1000, cached_input_tokens=400, output_tokens=10)
        make.price(session, PriceMeter.CACHED_INPUT_TOKENS, "0.10", valid_from=at(2))
        make.event(session, time=at(2, 8), input_tokens=1000, cached_input_tokens=400, output_tokens=10)
    with sqlite_store.read() as session:
        before, after = (costs(session, "meter", basis="metered", period=day(number)) for number in (1, 2))
    assert {key[0]: (each.cost, each.input_tokens, each.cached_input_tokens, each.requests) for key, each in before.items()} == {
        "input": (dec("0.001"), 1000, 400, 1),
        "output": (dec("0.00002"), 0, 0, 0),
    }
    assert {key[0]: (each.cost, each.input_tokens, each.cached_input_tokens, each.requests) for key, each in after.items()} == {
        "input": (dec("0.0006"), 600, 0, 1),
        "cached_input": (dec("0.00004"), 400, 400, 0),
        "output": (dec("0.00002"), 0, 0, 0),
    }


def test_more_cached_than_input_tokens_are_the_input_and_no_more(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "2.00")
        make.price(session, PriceMeter.CACHED_INPUT_TOKENS, "0.10")
        make.event(session, input_tokens=100, cached_input_tokens=500, output_tokens=0)
    with sqlite_store.read() as session:
        (figures,) = costs(session).values()
    assert (figures.cost, figures.input_tokens, figures.cached_input_tokens) == (dec("0.00001"), 100, 100)


def test_unpriced_is_not_zero_and_stands_beside_what_is_priced(store: Store) -> None:
    with store.write() as session:
        make.price(session, PriceMeter.INPUT_TOKENS, "1.00")
        make.event(session, input_tokens=500, output_tokens=70)
        make.event(session, make.series(session, model="phi", deployment="phi"), input_tokens=30, output_tokens=7)
    with store.read() as session:
        found = costs(session, "deployment")
    assert {key: (each.cost, each.metered_cost, each.input_tokens, each.unpriced_tokens, each.requests) for key, each in found.items()} == {
        ("llama-chat", "USD"): (dec("0.0005"), dec("0.0005"), 500, 70, 1),
        ("phi", None): (None, None, 30, 37, 1),
    }
    assert "phi" in found["phi", None].reasons["metered_cost"]
    assert "output_tokens" in found["llama-chat", "USD"].reasons["unpriced_tokens"]


def test_prices_of_one_call_in_two_currencies_stand_in_two_rows(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.price(session, PriceMeter.INPUT_TOKENS, "1.00")
        make.price(session, PriceMeter.OUTPUT_TOKENS, "3.00", currency="EUR")
        make.event(session, input_tokens=MILLION, output_tokens=MILLION)
    with sqlite_store.read() as session:
        found = table(session)
        euro = table(session, currency="EUR")
    assert [(each.currency, each.cost, each.input_tokens, each.output_tokens, each.requests) for each in found.totals] == [
        ("EUR", 3, 0, MILLION, 0),
        ("USD", 1, MILLION, 0, 1),
    ]
    assert ([row.figures.currency for row in euro.rows], [each.currency for each in euro.totals]) == (["EUR"], ["EUR"])


def test_what_is_not_billable_or_not_known_is_a_request_all_the_same(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        make.event(session, input_tokens=100, output_tokens=None)
        make.event(session, make.series(session, operation=Operation.EMBEDDINGS.value), input_tokens=100, output_tokens=None)
        make.event(session, input_tokens=100, output_tokens=100, billable=False)
        make.event(session, input_tokens=None, output_tokens=None, status=Status.THROTTLED)
    with sqlite_store.read() as session:
        (figures,) = costs(session).values()
    assert (figures.requests, figures.input_tokens, figures.output_tokens, figures.unknown_token_requests) == (4, 200, 0, 1)
    assert figures.cost == dec("0.0002")


def test_fine_tuning_is_priced_by_training_tokens(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "9", "9")
        make.price(session, PriceMeter.TRAINING_TOKENS, "3.00")
        make.event(session, make.series(session, operation=Operation.FINE_TUNING.value), input_tokens=MILLION, output_tokens=500_000)
    with sqlite_store.read() as session:
        found = costs(session, "meter")
    assert {key: (each.cost, each.input_tokens, each.output_tokens, each.requests) for key, each in found.items()} == {
        ("training", "USD"): (dec("4.5"), MILLION, 500_000, 1)
    }


def test_the_registrys_model_wins_and_spellings_are_one_group(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session, "registered", model="Llama-3.3-70B-Instruct")
        make.token_prices(session, "1.00", "1.00", model="meta-llama/Llama-3.3-70B-Instruct")
        for name, model in (("registered", "gpt-4"), ("other", "META-LLAMA-3-3-70b-instruct"), ("other", "llama_3.3_70b_instruct")):
            make.event(session, make.series(session, deployment=name, model=model), input_tokens=MILLION, output_tokens=0)
    with sqlite_store.read() as session:
        found = costs(session, "model")
        asked = costs(session, filters=Filters(models=("LLAMA-3.3-70b-instruct",)))
    assert {key: each.cost for key, each in found.items()} == {("Llama-3.3-70B-Instruct", "USD"): 3}
    assert asked["USD",].cost == 3


def test_short_names_and_other_case_mean_the_registered_deployment(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.deployment_fact(session, "Online/Blue", mode=Mode.SERVERLESS, route=Route.MARKETPLACE)
        for endpoint, deployment in (("online", "BLUE"), ("", "blue"), ("ONLINE", ""), ("", "nobody"), ("Same", "same")):
            make.event(session, make.series(session, endpoint=endpoint, deployment=deployment))
    with sqlite_store.read() as session:
        found = costs(session, "deployment", "mode")
        short = costs(session, filters=Filters(deployments=("Blue",)))
    assert {key[:2]: each.requests for key, each in found.items()} == {("Online/Blue", "serverless"): 3, ("nobody", "unknown"): 1, ("same", "unknown"): 1}
    assert [each.requests for each in short.values()] == [3]


# -- managed compute ------------------------------------------------------------------------------


def test_managed_compute_is_hours_times_price_across_a_scale_change(store: Store) -> None:
    with store.write() as session:
        make.managed(session, valid_from=at(10, 6), valid_to=at(10, 18, 20))
        make.managed(session, instance_count=2, valid_from=at(10, 18, 20), valid_to=at(11))
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.67", sku="standard_nc24ads_a100_v4", region="eastus")
        make.event(session, make.series(session, endpoint="llama-online", deployment="blue"), time=at(10, 9))
    with store.read() as session:
        found = costs(session, "deployment", "mode", "meter", basis="metered", period=day(10))
        hours = by_period(session, "hour", Period(at(10, 18), at(10, 20)), basis="metered")
    # 12 h 20 min of one (12.333333) and 5 h 40 min of two (5.666667 each) are 23.666667 instance-hours of 24 cores.
    compute = found["llama-online/blue", "managed_compute", "compute", "USD"]
    assert (compute.cost, compute.core_hours, compute.requests) == (dec("86.85666789"), dec("568.000008"), 0)
    tokens = found["llama-online/blue", "managed_compute", "input", "USD"]
    assert (tokens.cost, tokens.input_tokens, tokens.unpriced_tokens, tokens.requests) == (0, 1000, 0, 1)
    # 20 min of one and 40 of two: (0.333333 + 1.333334) x 3.67
    assert hours == {at(10, 18): dec("6.11666789"), at(10, 19): dec("7.34")}


def test_hours_count_up_to_now_and_without_a_price_their_cost_is_unknown(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, valid_from=at(20, 7, 59, 24))
        make.managed(session, "priced/one", sku="Standard_NC6s_v3", valid_from=at(20, 8))
        make.price(session, PriceMeter.INSTANCE_HOURS, "2", sku="Standard_NC6s_v3")
    with sqlite_store.read() as session:
        found = costs(session, "deployment")
        earlier = costs(session, "deployment", as_of=at(20, 9))
    unpriced = found["llama-online/blue", None]
    # 36 s (0.01 h) and two whole hours.
    assert (unpriced.cost, unpriced.core_hours) == (None, dec("48.24"))
    assert "Standard_NC24ads_A100_v4" in unpriced.reasons["cost"] or make.MODEL in unpriced.reasons["cost"]
    assert (found["priced/one", "USD"].cost, found["priced/one", "USD"].core_hours) == (4, 12)
    assert earlier["priced/one", "USD"].cost == 2


def test_a_deployment_that_inventory_later_calls_serverless_runs_no_instances(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, "moved", valid_from=at(10))
        make.serverless(session, "moved", valid_from=at(11), known_from=at(12))
        make.price(session, PriceMeter.INSTANCE_HOURS, "1")
    with sqlite_store.read() as session:
        assert costs(session, "deployment")["moved", "USD"].cost == 24
        assert costs(session, "deployment", as_of=at(11, 12))["moved", "USD"].cost == 36


# -- the bill -------------------------------------------------------------------------------------


def test_a_marketplace_charge_finds_its_deployment_by_saas_id_else_offer_else_model(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.serverless(session, "by-saas", saas_resource_id=SAAS.upper(), offer_id="meta-llama")
        make.serverless(session, "by-offer", offer_id="Meta-Llama", model="x")
        make.serverless(session, "by-model", model="meta-llama-3-3-70B-instruct", offer_id="third")
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, resource_id=SAAS, offer_id="meta-llama"), "1")
        make.charge(session, part, make.charge_item(session, resource_id="another", plan_id="third"), "2")
        make.charge(session, part, make.charge_item(session, resource_id="another", model="x"), "4")
        make.charge(session, part, make.charge_item(session, resource_id="another", model="nothing"), "8")
        make.charge(session, part, make.charge_item(session, ChargeClass.OUT_OF_SCOPE), "99")
    with store.read() as session:
        found = costs(session, "workspace", "deployment", "mode", basis="billed")
    assert {key[:3]: each.cost for key, each in found.items()} == {
        ("ws-east", "by-saas", "serverless"): 1,
        ("ws-east", "by-model", "serverless"): 2,
        ("ws-east", "by-offer", "serverless"): 4,
        (None, None, "serverless"): 8,
    }


def two_candidates(session: Session) -> None:
    make.workspace_fact(session)
    for name in ("one", "two"):
        make.serverless(session, name)
    part = make.bill_part(session)
    make.charge(session, part, make.charge_item(session), "0.10")
    make.charge(session, part, make.charge_item(session, meter_kind=MeterKind.OUTPUT), "0.70")
    make.charge(session, part, make.charge_item(session), "5", charged_on=date(2026, 11, 11))
    make.event(session, make.series(session, deployment="one", application="a"), time=at(10, 1), input_tokens=1, output_tokens=900)
    make.event(session, make.series(session, deployment="two", application="b"), time=at(10, 2), input_tokens=2, output_tokens=0)


def test_a_charge_of_two_deployments_is_split_by_their_tokens_of_its_kind(store: Store) -> None:
    with store.write() as session:
        two_candidates(session)
    with store.read() as session:
        found = costs(session, "deployment", "meter", basis="billed")
        workspace = costs(session, "workspace", basis="billed")
        one = costs(session, basis="billed", filters=Filters(deployments=("one",)))
    assert {key[:2]: (each.cost, each.estimate) for key, each in found.items() if each.cost} == {
        ("one", "input"): (dec("0.033333333333"), True),
        ("two", "input"): (dec("0.066666666667"), True),  # the larger remainder takes the last digit
        ("one", "output"): (dec("0.70"), False),  # the other had none: all of it goes to one row
        (None, "input"): (5, False),  # the day after had no calls: unallocated in the workspace
    }
    assert (workspace["ws-east", "USD"].cost, workspace["ws-east", "USD"].estimate) == (dec("5.80"), False)
    assert (one["USD",].cost, one["USD",].estimate) == (dec("0.733333333333"), True)


def test_an_untagged_vm_row_goes_to_the_only_deployment_of_its_size_up_to_its_hours(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session, workspace="WS-East")
        make.managed(session, valid_from=at(1))
        make.managed(session, "other/size", sku="Standard_NC6s_v3", valid_from=at(1))
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE), "36.70", quantity="10")
        untagged = make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None)
        make.charge(session, part, untagged, "60.00", quantity="20", effective_cost=Decimal(40))
        make.managed(session, "llama-online/green", valid_from=at(11, 23))
        make.charge(session, part, untagged, "9.00", quantity="3", charged_on=date(2026, 11, 11))
    with store.read() as session:
        found = costs(session, "workspace", "deployment", basis="billed", period=day(10))
        amortized = costs(session, "deployment", basis="amortized", period=day(10))
        two_of_the_size = costs(session, "deployment", basis="billed", period=day(11))
    # 24 instance-hours less the 10 tagged ones leave room for 14 of the 20: 42 of 60.
    assert {key[:2]: (each.cost, each.core_hours, each.estimate) for key, each in found.items() if each.cost} == {
        ("WS-East", "llama-online/blue"): (dec("78.70"), 576, True),
        ("WS-East", None): (18, 144, False),
    }
    assert {key[0]: each.cost for key, each in amortized.items() if each.cost} == {"llama-online/blue": dec("64.70"), None: 12}
    assert two_of_the_size[None, "USD"].cost == 9


def test_a_foundry_charge_is_its_tags_whatever_their_case_and_a_rounding_is_nobodys(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session, workspace="AI-Account", kind="foundry_account")
        make.foundry(session, "Llama-33", workspace="AI-Account")
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, workspace="ai-account", deployment="llama-33"), "1.5")
        make.charge(session, part, make.charge_item(session, ChargeClass.ADJUSTMENT), "-0.000000000000001", charge_type="RoundingAdjustment", quantity=None)
    with store.read() as session:
        found = costs(session, "workspace", "deployment", "mode", "meter", "subscription", basis="billed")
        visible = table(session, basis="billed", filters=Filters(visible=frozenset({"AI-Account"})))
    assert {key: each.cost for key, each in found.items()} == {
        ("AI-Account", "Llama-33", "serverless", "input", make.SUBSCRIPTION, "USD"): dec("1.5"),
        (None, None, "unknown", "adjustment", make.SUBSCRIPTION, "USD"): dec("-0.000000000000001"),
    }
    # Who may see one workspace sees no money that is nobody's.
    assert [each.cost for each in visible.totals] == [dec("1.5")]


def test_metered_cost_is_in_the_bills_currency_at_the_bills_own_rate(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.serverless(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "1")
        for first, rate in ((date(2026, 8, 1), "0.8"), (date(2026, 10, 1), "0.5")):
            part = make.bill_part(session, period_start=first, exchange_rates={"USD>EUR": rate})
            make.charge(session, part, make.charge_item(session), "1", charged_on=first, currency="EUR")
        for month in (7, 8, 9, 11):
            make.event(session, time=datetime(2026, month, 2, tzinfo=UTC), input_tokens=MILLION, output_tokens=0)
        make.bill_part(session, subscription_id="other", exchange_rates={"USD>EUR": "7"})
        # Of another subscription, billed in dollars.
        make.workspace_fact(session, workspace="ws-us", subscription_id="us")
        us = make.bill_part(session, subscription_id="us")
        make.charge(session, us, make.charge_item(session, subscription_id="us"), "0.25")
        make.event(session, make.series(session, workspace_name="ws-us"), time=at(2), input_tokens=MILLION, output_tokens=0)
    with store.read() as session:
        months = table(session, Period(datetime(2026, 7, 1, tzinfo=UTC), NOVEMBER.end), "month", basis="metered")
    assert {(row.period.start.month, row.figures.currency): row.figures.cost for row in months.rows if row.figures.cost} == {
        (7, "EUR"): dec("0.8"),  # the earliest later month's
        (8, "EUR"): dec("0.8"),
        (9, "EUR"): dec("0.8"),  # the latest earlier month's
        (11, "EUR"): dec("0.5"),
        (11, "USD"): 1,
    }
    assert [(each.currency, each.cost) for each in months.totals] == [("EUR", dec("2.9")), ("USD", 1)]


def test_without_a_rate_the_tokens_are_unpriced_and_say_so(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "1")
        make.charge(session, make.bill_part(session), make.charge_item(session), "1", currency="EUR")
        make.event(session, time=at(19), input_tokens=5, output_tokens=0)
    with sqlite_store.read() as session:
        figures = costs(session, period=day(19))["EUR",]
    assert (figures.cost, figures.unpriced_tokens) == (None, 5)
    assert figures.reasons["cost"] == "no exchange rate from USD to EUR is known from the bill"


def test_a_currency_of_its_own_each_month(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "1")
        october = make.bill_part(session, period_start=date(2026, 10, 1), exchange_rates={"USD>EUR": "0.5"})
        make.charge(session, october, make.charge_item(session), "1", charged_on=date(2026, 10, 5), currency="EUR")
        make.charge(session, make.bill_part(session), make.charge_item(session), "1", charged_on=date(2026, 11, 5))
        for time in (datetime(2026, 10, 5, 9, tzinfo=UTC), at(5, 9)):
            make.event(session, time=time, input_tokens=MILLION, output_tokens=0)
    with sqlite_store.read() as session:
        found = costs(session, basis="metered", period=Period(datetime(2026, 10, 1, tzinfo=UTC), NOVEMBER.end))
    assert {key: each.cost for key, each in found.items()} == {("EUR",): dec("0.5"), ("USD",): 1}


# -- best, standing, coverage ---------------------------------------------------------------------


def test_best_is_billed_up_to_the_day_the_bill_reaches_per_route_and_metered_after(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.serverless(session)
        make.foundry(session)
        make.token_prices(session, "1.00", "1.00")
        for name in ("llama-chat", "llama-foundry"):
            for number in (9, 10, 11):
                make.event(session, make.series(session, deployment=name), time=at(number, 9), input_tokens=MILLION, output_tokens=0)
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session), "0.90")
        make.charge(session, part, make.charge_item(session), "0.05", charged_on=date(2026, 11, 12), charge_type="Refund")
    with store.read() as session:
        found = {
            (row.period.start.day, row.groups["deployment"]): (row.figures.cost, row.figures.metered_cost, row.figures.billed_cost, row.figures.status)
            for row in table(session, NOVEMBER, "day", "deployment").rows
        }
        billed = costs(session, "deployment", basis="billed")
    assert found == {
        (9, "llama-chat"): (0, 1, 0, "settling"),  # reached, and nothing billed: zero included
        (9, "llama-foundry"): (1, 1, None, "provisional"),
        (10, "llama-chat"): (dec("0.90"), 1, dec("0.90"), "settling"),
        (10, "llama-foundry"): (1, 1, None, "provisional"),
        (11, "llama-chat"): (1, 1, None, "provisional"),
        (11, "llama-foundry"): (1, 1, None, "provisional"),
        (12, "llama-chat"): (dec("0.05"), 0, dec("0.05"), "settling"),
    }
    assert billed["llama-foundry", "USD"].cost is None
    assert billed["llama-foundry", "USD"].reasons["cost"] == "no bill reaches this period yet"


def test_a_workspace_of_unknown_subscription_is_covered_by_any_bill(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        for number in (10, 11):
            make.event(session, time=at(number), input_tokens=MILLION, output_tokens=0)
        make.event(session, time=datetime(2026, 10, 30, tzinfo=UTC), input_tokens=MILLION, output_tokens=0)
        make.charge(session, make.bill_part(session), make.charge_item(session), "0.90")
    with sqlite_store.read() as session:
        found = table(session, Period(datetime(2026, 10, 1, tzinfo=UTC), NOVEMBER.end), "day", "deployment")
    assert {(row.period.start.day, row.groups["deployment"]): row.figures.cost for row in found.rows} == {
        (30, "llama-chat"): 1,  # October never landed
        (10, "llama-chat"): 0,
        (10, None): dec("0.90"),
        (11, "llama-chat"): 1,
    }
    assert [each.cost for each in found.totals] == [dec("2.90")]


def test_a_day_settles_five_days_after_its_months_end(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.event(session, time=datetime(2026, 10, 31, 23, 59, tzinfo=UTC))
        part = make.bill_part(session, period_start=date(2026, 10, 1), landed_at=at(3))
        make.charge(session, part, make.charge_item(session), "1", charged_on=date(2026, 10, 31))
        october = Period(datetime(2026, 10, 1, tzinfo=UTC), at(1))
    with sqlite_store.read() as session:
        seen = {now: {each.status for each in table(session, october, now=now).totals} for now in (at(2), at(4), at(5, 23, 59), at(6))}
        assert {each.status for each in table(session, october, as_of=at(4)).totals} == {"settling"}
    assert seen == {at(2): {"provisional"}, at(4): {"settling"}, at(5, 23, 59): {"settling"}, at(6): {"settled"}}


def test_coverage_is_the_share_of_the_bill_that_instruments_saw(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        part = make.bill_part(session)
        # Day 10: all of 0.5 seen (and more). Day 11: a third of 1.5. Day 12: nothing billed. And 1 that is nobody's.
        for number, billed in ((10, "0.5"), (11, "1.5"), (12, "0")):
            make.charge(session, part, make.charge_item(session), billed, charged_on=date(2026, 11, number))
        make.charge(session, part, make.charge_item(session, ChargeClass.ADJUSTMENT), "1", charge_type="RoundingAdjustment", quantity=None)
        for number, tokens in ((10, 700_000), (11, 500_000), (12, 9 * MILLION)):
            make.event(session, time=at(number), input_tokens=tokens, output_tokens=0)
    with sqlite_store.read() as session:
        assert costs(session)["USD",].coverage == dec("0.3333")
        assert costs(session, "deployment")["llama-chat", "USD"].coverage == dec("0.5")
        assert costs(session, period=day(12))["USD",].coverage is None


# -- finer than the bill --------------------------------------------------------------------------


def shared_day(session: Session) -> None:
    """A Foundry deployment billed 1.00 on the 10th, used by three applications at three times."""
    make.workspace_fact(session)
    make.foundry(session)
    make.owner(session, deployment="llama-foundry", team="owner", cost_center="cc")
    for application, team, time in (("a", "own", at(10, 3)), ("b", "", at(10, 18, 45)), ("c", "", at(10, 23, 59, 59))):
        series = make.series(session, deployment="llama-foundry", application=application, team=team, tags={"env": application})
        make.event(session, series, time=time, input_tokens=1, output_tokens=0)
    part = make.bill_part(session)
    item = make.charge_item(session, ChargeClass.FOUNDRY)
    make.charge(session, part, item, "1")
    make.charge(session, part, item, "2", charged_on=date(2026, 11, 11))
    make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, MeterKind.OUTPUT), "3")


def test_a_billed_amount_is_shared_by_application_team_and_tag(store: Store) -> None:
    with store.write() as session:
        shared_day(session)
    with store.read() as session:
        applications = costs(session, "application", "meter", basis="billed", period=day(10))
        teams = costs(session, "team", "cost_center", basis="billed")
        tag = costs(session, "tag:env", basis="billed", filters=Filters(tags=(("env", "b"),)))
        unsplit = costs(session, "deployment", basis="billed")
    assert {key[:2]: (each.cost, each.estimate) for key, each in applications.items() if each.cost} == {
        ("a", "input"): (dec("0.333333333334"), True),  # equal remainders: the first series
        ("b", "input"): (dec("0.333333333333"), True),
        ("c", "input"): (dec("0.333333333333"), True),
        ("a", "output"): (1, True),  # no output tokens: by requests
        ("b", "output"): (1, True),
        ("c", "output"): (1, True),
    }
    # Day 11 had no calls: its 2 stay with the deployment's owner.
    assert {key[:2]: each.cost for key, each in teams.items()} == {("own", "cc"): dec("1.333333333334"), ("owner", "cc"): dec("4.666666666666")}
    assert {key[0]: (each.cost, each.estimate) for key, each in tag.items()} == {"b": (dec("1.333333333333"), True)}
    assert (unsplit["llama-foundry", "USD"].cost, unsplit["llama-foundry", "USD"].estimate) == (6, False)


def test_a_billed_day_by_hour_and_by_days_of_other_zones_adds_up_to_it(store: Store) -> None:
    with store.write() as session:
        shared_day(session)
    inputs: dict[str, Any] = {"basis": "billed"}
    with store.read() as session:
        hours = {row.period.start: row.figures for row in table(session, day(10), "hour", "meter", **inputs).rows if row.groups["meter"] == "input"}
        # The day of Asia/Kolkata begins at 18:30 UTC.
        kolkata = {
            (row.period.start, row.groups["meter"]): row.figures.cost
            for row in table(session, NOVEMBER, "day", "meter", time_zone="Asia/Kolkata", **inputs).rows
            if row.figures.cost
        }
        cut = costs(session, "meter", period=Period(at(10, 3, 0, 1), at(10, 23, 59, 59)), **inputs)
    assert {start: (each.cost, each.estimate) for start, each in hours.items() if each.cost} == {
        at(10, 3): (dec("0.333333333334"), True),
        at(10, 18): (dec("0.333333333333"), True),
        at(10, 23): (dec("0.333333333333"), True),
    }
    assert kolkata == {
        (at(9, 18, 30), "input"): dec("0.333333333334"),
        (at(9, 18, 30), "output"): 1,
        (at(10, 18, 30), "input"): dec("2.666666666666"),  # and the 2 of the 11th, which had no calls, at its first instant
        (at(10, 18, 30), "output"): 2,
    }
    assert cut["input", "USD"].billed_cost == dec("0.333333333333")


def test_instances_billed_without_calls_lie_evenly_over_the_day(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.charge(session, make.bill_part(session), make.charge_item(session, ChargeClass.COMPUTE), "1", quantity="24")
    with sqlite_store.read() as session:
        hours = by_period(session, "hour", day(10), basis="billed")
        zone = by_period(session, "day", basis="billed", time_zone="Asia/Kolkata")
        minutes = costs(session, basis="billed", period=Period(at(10, 6), at(10, 6, 36)))
    assert len(hours) == 24
    assert (hours[at(10)], hours[at(10, 1)], hours[at(10, 2)]) == (dec("0.041666666666"), dec("0.041666666667"), dec("0.041666666667"))
    assert money.add(cost for cost in hours.values() if cost is not None) == 1
    # 18 h 30 min of 24
    assert zone == {at(9, 18, 30): dec("0.770833333333"), at(10, 18, 30): dec("0.229166666667")}
    assert (minutes["USD",].cost, minutes["USD",].core_hours) == (dec("0.025"), dec("14.4"))


def test_instance_hours_are_shared_like_the_bill_that_will_come(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, valid_from=at(19), valid_to=at(20))
        make.price(session, PriceMeter.INSTANCE_HOURS, "1")
        for application, tokens, time in (("a", 1, at(19, 2)), ("b", 2, at(19, 20))):
            series = make.series(session, endpoint="llama-online", deployment="blue", application=application)
            make.event(session, series, time=time, input_tokens=tokens, output_tokens=0)
    with sqlite_store.read() as session:
        found = costs(session, "application")
        hour = costs(session, "application", period=Period(at(19, 5), at(19, 6)))
    assert {key[0]: (each.cost, each.core_hours, each.estimate) for key, each in found.items()} == {"a": (8, 192, True), "b": (16, 384, True)}
    assert {key[0]: each.cost for key, each in hour.items()} == {"a": dec("0.333333333333"), "b": dec("0.666666666667")}


def test_the_hour_that_new_york_has_twice_is_two_hours(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        for time in (at(1, 4), at(1, 5, 30), at(1, 6, 30), at(2, 4, 59, 59), at(2, 5)):
            make.event(session, time=time, input_tokens=MILLION, output_tokens=0)
    with sqlite_store.read() as session:
        days = by_period(session, "day", time_zone="America/New_York")
        hours = by_period(session, "hour", Period(at(1, 5), at(1, 7)), time_zone="America/New_York")
        month = by_period(session, "month", time_zone="America/New_York")
    # The clock goes back at 06:00 UTC: the first of November has 25 hours.
    assert days == {at(1, 4): 4, at(2, 5): 1}
    assert hours == {at(1, 5): 1, at(1, 6): 1}
    assert month == {at(1, 4): 5}


def test_a_period_may_begin_and_end_within_a_quarter_hour(store: Store) -> None:
    with store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        odd = at(10, 9, 7, 3) + timedelta(microseconds=1)
        for time in (odd - timedelta(microseconds=1), odd, at(10, 9, 14), at(10, 9, 20), at(10, 12), at(10, 12, 1, 1)):
            make.event(session, time=time, input_tokens=MILLION, output_tokens=0)
    with store.read() as session:
        whole = costs(session, period=Period(odd, at(10, 12, 1, 1)))
        inside = costs(session, period=Period(odd, odd + timedelta(microseconds=1)))
        hours = by_period(session, "hour", Period(odd, at(10, 12, 1, 2)))
        assert costs(session, period=Period(odd, odd)) == {}
    assert (whole["USD",].cost, inside["USD",].cost) == (4, 1)
    assert hours == {odd: 3, at(10, 12): 2}


# -- whose, and what was known --------------------------------------------------------------------


def test_owners_change_over_time_and_the_more_specific_one_stands(store: Store) -> None:
    with store.write() as session:
        make.serverless(session, "Online/blue")
        make.owner(session, deployment=None, team="by-workspace", cost_center="cc-workspace")
        make.owner(session, deployment="BLUE", team="first", cost_center=None, valid_to=at(10, 12))
        make.owner(session, deployment="online/Blue", team="second", cost_center=None, valid_from=at(10, 12))
        make.owner(session, deployment=None, workspace=None, application="app", team="by-application", cost_center="cc-application")
        make.owner(session, deployment=None, workspace=None, tag_key="env", tag_value="prod", team="by-tag", cost_center=None)
        for hour, tokens in ((11, 1), (12, 2)):
            make.event(session, make.series(session, endpoint="online", deployment="blue"), time=at(10, hour), input_tokens=tokens)
        make.event(session, make.series(session, endpoint="online", deployment="blue", application="app"), time=at(10), input_tokens=4)
        make.event(session, make.series(session, application="app", tags={"env": "prod"}), time=at(10), input_tokens=8)
        make.event(session, make.series(session, team="own", application="app"), time=at(10), input_tokens=16)
        make.event(session, make.series(session), time=at(10), input_tokens=32)
        make.event(session, make.series(session, workspace_name="ws-west"), time=at(10), input_tokens=64)
    with store.read() as session:
        found = costs(session, "team", "cost_center")
        asked = costs(session, filters=Filters(teams=("second",)))
    assert {key[:2]: each.input_tokens for key, each in found.items()} == {
        ("first", "cc-workspace"): 1,
        ("second", "cc-workspace"): 2,
        ("by-application", "cc-application"): 4,
        ("by-tag", "cc-application"): 8,
        ("own", "cc-application"): 16,
        ("by-workspace", "cc-workspace"): 32,
        (None, None): 64,
    }
    assert [each.input_tokens for each in asked.values()] == [2]


def test_as_of_answers_with_the_events_prices_registry_and_bills_of_then(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "1.00")
        make.price(session, PriceMeter.INPUT_TOKENS, "4.00", known_from=at(18))
        make.serverless(session, model="Other", known_from=at(19))
        make.event(session, time=at(10, 9), input_tokens=MILLION, output_tokens=0)
        make.event(session, time=at(10, 9), input_tokens=MILLION, output_tokens=0, received_at=at(16, 12))
        make.event(session, time=at(10, 9, 0, 1), input_tokens=MILLION, output_tokens=0, received_at=at(16, 13))
        first = make.bill_part(session, landed_at=at(12))
        make.charge(session, first, make.charge_item(session), "0.90")
        restated = make.bill_part(session, landed_at=at(15))
        make.charge(session, restated, make.charge_item(session), "1.70")
        make.supersede(session, first, at(15))
        make.bill_part(session, landed_at=None, subscription_id="staged")
    instants = (at(10, 8), at(11), at(12), at(15) - timedelta(microseconds=1), at(15), at(16, 12), at(16, 13), at(17), at(18), at(19))
    with store.read() as session:
        found = {when: [(each.currency, each.billed_cost, each.metered_cost) for each in table(session, as_of=when).totals] for when in instants}
    assert found == {
        at(10, 8): [],
        at(11): [("USD", None, 1)],
        at(12): [("USD", dec("0.90"), 1)],
        at(15) - timedelta(microseconds=1): [("USD", dec("0.90"), 1)],
        at(15): [("USD", dec("1.70"), 1)],
        at(16, 12): [("USD", dec("1.70"), 2)],
        at(16, 13): [("USD", dec("1.70"), 3)],
        at(17): [("USD", dec("1.70"), 3)],
        at(18): [("USD", dec("1.70"), 12)],
        at(19): [("USD", dec("1.70"), None)],
    }


def test_visible_workspaces_limit_the_shares_but_not_what_they_are_shares_of(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.workspace_fact(session, workspace="ws-b")
        for name in ("ws-east", "ws-b"):
            make.serverless(session, workspace=name)
            make.event(session, make.series(session, workspace_name=name), time=at(10), input_tokens=1 if name == "ws-b" else 3, output_tokens=0)
        make.charge(session, make.bill_part(session), make.charge_item(session), "8")
    with sqlite_store.read() as session:
        seen = {name: [each.cost for each in table(session, filters=Filters(visible=frozenset({name}))).totals] for name in ("ws-east", "ws-b", "else")}
    assert seen == {"ws-east": [6], "ws-b": [2], "else": []}


def test_an_unknown_group_is_refused_by_name(sqlite_store: Store) -> None:
    with sqlite_store.read() as session, pytest.raises(InvalidInput, match="group_by does not know 'colour'"):
        costs(session, "colour")


# -- sums -----------------------------------------------------------------------------------------

ADDITIVE = [one.name for one in fields(Figures) if one.name.endswith(("_tokens", "requests", "cost", "hours"))]


def test_totals_are_the_sums_of_rows_and_filters_part_the_whole(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        two_candidates(session)
        shared_day(session)
        make.managed(session, valid_from=at(9), valid_to=at(12, 1, 7))
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.333")
        make.token_prices(session)
    parts: dict[str, Callable[[str], Filters]] = {
        "workspace": lambda value: Filters(workspaces=(value,)),
        "mode": lambda value: Filters(modes=(Mode(value),)),
    }
    with sqlite_store.read() as session:
        for basis in ledger.BASES:
            (whole,) = table(session, basis=basis).totals
            for group in ("workspace", "deployment", "model", "meter", "mode", "application", "team", "cost_center", "subscription", "tag:env"):
                for granularity in ("hour", "day", "week", "month"):
                    found = table(session, NOVEMBER, granularity, group, basis=basis)
                    (total,) = found.totals
                    for name in ADDITIVE:
                        rows = [value for row in found.rows if (value := getattr(row.figures, name)) is not None]
                        assert money.add(map(Decimal, rows)) == (getattr(total, name) or 0) == (getattr(whole, name) or 0), (basis, group, granularity, name)
            for group, part in parts.items():
                values = [row.groups[group] for row in table(session, NOVEMBER, "none", group, basis=basis).rows]
                sums = [each for value in values if value is not None for each in table(session, basis=basis, filters=part(value)).totals]
                assert money.add(each.cost for each in sums if each.cost is not None) == whole.cost


# -- through the front door -----------------------------------------------------------------------

HEADER = "date,billingPeriodStartDate,SubscriptionId,resourceGroupName,ResourceId,publisherType,publisherName,consumedService,meterCategory,meterName,ProductName,unitOfMeasure,quantity,effectivePrice,chargeType,billingCurrency,pricingCurrency,costInBillingCurrency,exchangeRatePricingToBilling,exchangeRateDate,additionalInfo,tags"


def test_files_and_events_make_the_figures(store: Store, tmp_path: Path) -> None:
    sub = make.SUBSCRIPTION
    place = f"{sub},rg-ai,/subscriptions/{sub}/resourceGroups/rg-ai/providers/Microsoft.MachineLearningServices/workspaces"
    vm = f"{place}/ws-east,Microsoft,Microsoft,Microsoft.MachineLearningServices,Virtual Machines,NC24ads A100 v4,NC24ads A100 v4,1 Hour"
    size = '"{""ServiceType"": ""Standard_NC24ads_A100_v4""}"'
    saas = (
        f"{sub},rg-ai,{SAAS},Marketplace,Meta,Microsoft.SaaS,SaaS,Llama-3.3-70B-Instruct - plan - paygo-inference-input-tokens,Llama-3.3-70B-Instruct - plan,1K"
    )
    bill = tmp_path / "bill.csv"
    bill.write_text(
        "\n".join(
            [
                HEADER,
                f"11/18/2026,11/01/2026,{saas},1000,0.0007,Usage,EUR,USD,0.63,0.9,11/01/2026,,",
                f"11/18/2026,11/01/2026,{vm},24,3.5,Usage,EUR,USD,75.6,0.9,11/01/2026,{size},",
                f'11/18/2026,11/01/2026,{vm},2,3.5,Usage,EUR,USD,6.3,0.9,11/01/2026,{size},"{{""azuremlcluster"": ""gpu""}}"',
                f"11/18/2026,11/01/2026,{sub},,,,,,,,,,,,RoundingAdjustment,EUR,EUR,0.01,1,11/01/2026,,",
            ]
        )
        + "\n"
    )
    with store.write() as session:
        import_inventory(
            session,
            [
                (
                    "inventory.csv",
                    b"workspace,endpoint,deployment,mode,model,sku,instance_count,region,subscription_id,resource_group,valid_from\n"
                    b"ws-east,,llama-chat,serverless,Llama-3.3-70B-Instruct,,,eastus,%b,rg-ai,\n"
                    b"ws-east,online,blue,managed_compute,Llama-3.1-8B-Instruct,Standard_NC24ads_A100_v4,1,eastus,%b,rg-ai,2026-11-18\n"
                    % (sub.encode(), sub.encode()),
                )
            ],
            now=at(1),
            author="ana",
        )
        import_owners(session, [("owners.csv", b"workspace,deployment,team\nws-east,llama-chat,search\n")], now=at(1), author="ana")
        import_prices(
            session,
            b"model,meter,unit_price,currency,unit,sku\nLlama-3.3-70B-Instruct,input_tokens,0.70,USD,1M tokens,\n"
            b"Llama-3.3-70B-Instruct,output_tokens,0.70,USD,1M tokens,\n,instance_hours,3.50,USD,1 hour,Standard_NC24ads_A100_v4\n",
            name="prices.csv",
            now=at(1),
            author="ana",
        )
    ingest = Ingest(store, now=lambda: NOW)
    ingest.start()
    sent = b"\n".join(
        b'{"id":"%d","time":"2026-11-%dT09:00:00Z","workspace":"ws-east","deployment":"llama-chat","model":"x","input_tokens":1000000,"output_tokens":0}'
        % (number, number)
        for number in (18, 19)
    )
    assert ingest.accept(Batch(native.capture(sent, media_type="application/x-ndjson", defaults=Defaults()))).accepted == 2
    ingest.stop()
    land(store, read_bill(bill, name=bill.name), now=NOW, author="ana")
    with store.read() as session:
        found = {
            (row.period.start.day, row.groups["deployment"], row.groups["team"]): (row.figures.cost, row.figures.metered_cost, row.figures.billed_cost)
            for row in table(session, Period(at(18), at(20)), "day", "deployment", "team").rows
        }
        totals = table(session, Period(at(18), at(20))).totals
    assert found == {
        (18, "llama-chat", "search"): (dec("0.63"), dec("0.63"), dec("0.63")),
        (18, "online/blue", None): (dec("75.6"), dec("75.6"), dec("75.6")),
        (18, None, None): (dec("0.01"), 0, dec("0.01")),
        (19, "llama-chat", "search"): (dec("0.63"), dec("0.63"), None),
        (19, "online/blue", None): (dec("75.6"), dec("75.6"), None),
    }
    # The cluster's row is no model spend.
    assert [(each.currency, each.cost, each.billed_cost) for each in totals] == [("EUR", dec("152.47"), dec("76.24"))]


def test_a_short_name_stays_accepted_while_senders_use_it_and_is_unique_within_the_workspaces_asked_about(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, "ep/blue", workspace="ws-east")
        make.managed(session, "other/blue", workspace="ws-west")
        make.event(session, make.series(session, workspace_name="ws-east", deployment="blue"), time=datetime(2026, 11, 10, 9, tzinfo=UTC))
    with sqlite_store.read() as session:
        period = Period(datetime(2026, 11, 10, tzinfo=UTC), datetime(2026, 11, 11, tzinfo=UTC))

        def requests(name: str, *workspaces: str) -> int:
            filters = Filters(deployments=(name,), workspaces=workspaces)
            answer = ledger.costs(session, CostQuery(period, "none", basis="metered", filters=filters), now=make.NOW)
            return sum(total.requests for total in answer.totals)

        assert requests("blue", "ws-east") == 1
        assert requests("ep/blue") == 1
        assert requests("blue") == 0  # two workspaces have one


# -- spellings and what is not known --------------------------------------------------------------


def test_a_model_comes_back_as_its_own_deployment_spells_it_and_is_one_model_still(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session, "first", model="Llama-3.3-70B-Instruct")
        make.serverless(session, "second", model="llama-3.3-70b-instruct")
        for name in ("first", "second"):
            make.event(session, make.series(session, deployment=name, model="whatever"), time=at(10))
    with sqlite_store.read() as session:
        apart, together = costs(session, "deployment", "model"), costs(session, "model")
        asked = costs(session, "deployment", filters=Filters(models=("LLAMA-3.3-70b-instruct",)))
        named = costs(session, "deployment", filters=Filters(deployments=("FIRST",)))
    assert {key[:2] for key in apart} == {("first", "Llama-3.3-70B-Instruct"), ("second", "llama-3.3-70b-instruct")}
    assert [(key[0], figures.requests) for key, figures in together.items()] == [("Llama-3.3-70B-Instruct", 2)]
    assert {key[0] for key in asked} == {"first", "second"}
    assert {key[0] for key in named} == {"first"}


@pytest.mark.parametrize(("has_meter", "expected"), [(False, ("0.75", "0.25")), (True, ("0.5", "0.5"))])
def test_billed_input_is_cut_by_all_input_unless_the_bill_has_cached_input_apart(sqlite_store: Store, has_meter: bool, expected: tuple[str, str]) -> None:
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
    assert tuple(found["input", name, "USD"].billed_cost for name in ("chat", "batch")) == tuple(map(dec, expected))
    assert not has_meter or found["cached_input", "chat", "USD"].billed_cost == dec("0.08")


def test_calls_of_which_nothing_is_known_cost_an_unknown_amount_and_not_nothing(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "2.00")
        make.event(session, make.series(session, model=""), time=at(10), input_tokens=None, output_tokens=None)
        make.event(session, time=at(11), input_tokens=None, output_tokens=None)
        make.managed(session)
        make.event(session, make.series(session, endpoint="llama-online", deployment="blue"), time=at(11), input_tokens=None, output_tokens=None)
    with sqlite_store.read() as session:
        first, second = (costs(session, "meter", "mode", period=day(number), now=at(12)) for number in (10, 11))
    for figures in (first["input", "unknown", None], second["input", "unknown", "USD"]):
        assert (figures.cost, figures.metered_cost, figures.unknown_token_requests) == (None, None, 1)
        assert "not known" in figures.reasons["metered_cost"] or "price" in figures.reasons["metered_cost"]
    # Managed compute is paid by the hour: what its calls held is no part of its cost.
    assert [figures.metered_cost for key, figures in second.items() if key[:2] == ("input", "managed_compute")] == [dec("0")]


@pytest.mark.parametrize("is_billed", [False, True])
def test_capacity_is_given_by_tokens_else_by_requests_else_by_time_and_says_so(sqlite_store: Store, *, is_billed: bool) -> None:
    """One instance at 4.00 an hour for three days: used by two, by one whose tokens nobody told, by nobody."""
    first = datetime(2026, 11, 3, tzinfo=UTC)
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.managed(session, valid_from=first, valid_to=first + timedelta(days=3))
        make.owner(session, deployment="llama-online/blue", team="platform")
        make.price(session, PriceMeter.INSTANCE_HOURS, "4.00", sku="Standard_NC24ads_A100_v4")
        one, two = (make.series(session, endpoint="llama-online", deployment="blue", application=name) for name in ("chat", "search"))
        make.event(session, one, time=first + timedelta(hours=8), input_tokens=2_000, output_tokens=1_000)
        make.event(session, two, time=first + timedelta(hours=9), input_tokens=900, output_tokens=100)
        make.event(session, two, time=first + timedelta(days=1, hours=9), input_tokens=None, output_tokens=None)
        if is_billed:
            part = make.bill_part(session)
            for day in (3, 4, 5):
                make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE), "96.00", quantity="24", charged_on=date(2026, 11, day))
    period = Period(first, first + timedelta(days=3))
    with sqlite_store.read() as session:
        applications, teams, whole = (
            costs(session, group, period=period, basis="billed" if is_billed else "metered") for group in ("application", "team", "deployment")
        )
    assert {name: (figures.cost, figures.allocation) for (name, _), figures in applications.items()} == {
        "chat": (Decimal(72), "tokens"),
        "search": (Decimal(120), "tokens, requests"),
        None: (Decimal(96), "time"),
    }
    assert {name: (figures.cost, figures.allocation) for (name, _), figures in teams.items()} == {"platform": (Decimal(288), "tokens, requests, time")}
    assert [(figures.cost, figures.allocation) for figures in whole.values()] == [(Decimal(288), None)]


def test_owners_of_their_time_cover_idle_instances_and_money_without_a_deployment(sqlite_store: Store) -> None:
    """A day without a call and a charge of no deployment go to whoever owned the deployment, else the workspace, on that day."""
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.managed(session, valid_from=at(3), valid_to=at(5))
        make.price(session, PriceMeter.INSTANCE_HOURS, "4.00", sku="Standard_NC24ads_A100_v4")
        make.owner(session, deployment="llama-online/blue", team="search", cost_center="CC-1", valid_to=at(4))
        make.owner(session, deployment="llama-online/blue", team="chat", cost_center="CC-2", valid_from=at(4))
        make.owner(session, workspace="ws-east", deployment=None, team="platform", cost_center="CC-9")
        part = make.bill_part(session)
        make.charge(
            session,
            part,
            make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None, sku="Standard_X"),
            "5.00",
            charged_on=date(2026, 11, 6),
        )
    with sqlite_store.read() as session:
        metered = costs(session, "team", "cost_center", basis="metered")
        billed = costs(session, "team", "cost_center", "deployment", basis="billed")
    assert {key[:2]: figures.cost for key, figures in metered.items() if figures.cost} == {("search", "CC-1"): 96, ("chat", "CC-2"): 96}
    assert {key[:3]: figures.cost for key, figures in billed.items() if figures.cost} == {("platform", "CC-9", None): 5}
