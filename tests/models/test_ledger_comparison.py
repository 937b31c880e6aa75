"""Serverless beside managed compute in small worlds worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from models import ledger, money
from models.ledger import ComparisonRow, WhatIf, WhatIfAnswer
from models.limits import LimitSource, set_limit
from models.periods import Period
from models.prices import PriceMeter
from models.resources import DeploymentFact, DeploymentSetting
from models.store import Store
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00
TEN_DAYS = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 11, tzinfo=UTC))
MILLION = 1_000_000
SKU = "Standard_NC24ads_A100_v4"


def dec(text: str) -> Decimal:
    return Decimal(text)


def world(session: Session, *, capacity: int | None = 100_000, tokens_a_day: int = 10 * MILLION, price: str = "1.00") -> None:
    """One instance at 4.00 an hour for ten days; each day so many tokens on it (three quarters input), one million serverless."""
    make.managed(session, "llama-online/blue", instance_count=1, sku=SKU, valid_from=TEN_DAYS.start, valid_to=TEN_DAYS.end)
    make.serverless(session, "llama-chat")
    make.price(session, PriceMeter.INSTANCE_HOURS, "4.00", unit="1 hour", sku=SKU, model="")
    make.token_prices(session, price, price)
    if capacity is not None:
        session.add(DeploymentSetting(workspace="ws-east", name="llama-online/blue", capacity_tokens_per_minute=capacity, known_from=TEN_DAYS.start))
    blue = make.series(session, endpoint="llama-online", deployment="blue")
    for day in range(10):
        for hour in range(8):
            at = TEN_DAYS.start + timedelta(days=day, hours=hour, minutes=5)
            make.event(session, blue, time=at, input_tokens=tokens_a_day * 3 // 32, output_tokens=tokens_a_day // 32)
        make.event(session, time=TEN_DAYS.start + timedelta(days=day, hours=12), input_tokens=MILLION // 2, output_tokens=MILLION // 2)


def only(session: Session, **asked: Any) -> ComparisonRow:
    (row,) = ledger.comparison(session, TEN_DAYS, now=NOW, **asked)
    return row


def test_capacity_is_what_was_used_and_what_was_idle(store: Store) -> None:
    with store.write() as session:
        world(session)
    with store.read() as session:
        row = only(session)
    managed = row.managed
    # 240 h x 4.00; 100,000 tokens a minute for 240 h are 1,440 million, of which 100 million were served.
    assert (managed.capacity_cost, managed.tokens, managed.capacity_tokens_per_day) == (dec("960"), 100 * MILLION, 144 * MILLION)
    assert managed.utilisation == dec("0.069444")
    assert managed.allocated_cost is not None
    assert managed.idle_cost is not None
    assert money.plus(managed.allocated_cost, managed.idle_cost) == 960
    assert managed.allocated_cost.quantize(dec("0.000001")) == dec("66.666667")
    assert (managed.per_1m_allocation, managed.utilisation_method) == (dec("9.6"), "configured")
    assert managed.per_1m_usage is not None
    assert managed.per_1m_usage.quantize(dec("0.000001")) == dec("0.666667")
    assert (managed.core_hours, managed.instances, managed.instances_needed) == (dec("5760"), 1, 1)
    # 96.00 a day at 1.00 a million are 96 million tokens a day, which one instance can serve.
    assert (row.break_even_tokens_per_day, row.break_even_reachable) == (96 * MILLION, True)
    assert (row.serverless.tokens, row.serverless.cost, row.serverless.effective_cost_per_1m) == (10 * MILLION, dec("10"), dec("1"))
    assert row.days == 10
    assert row.standing == "provisional"


def test_a_load_above_the_serverless_limit_is_not_advised_to_go_there(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session, capacity=1_000_000, tokens_a_day=10 * MILLION, price="20.00")
    with sqlite_store.read() as session:
        row = only(session)
    # 11 million tokens a day at 20.00 cost 220.00 serverless; the instance costs 96.00; but each call alone is more than a minute may hold.
    assert row.advice.cheaper is None
    assert "400,000" in (row.advice.reason or "")


def test_the_saving_is_the_difference_a_day_of_carrying_the_whole_load(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session, capacity=1_000_000, tokens_a_day=2_400_000, price="20.00")
        # The serverless million comes in one minute otherwise.
        session.connection().exec_driver_sql("UPDATE usage_minute SET input_tokens = input_tokens / 10, output_tokens = output_tokens / 10")
    with sqlite_store.read() as session:
        row = only(session)
    # 3.4 million tokens a day: 68.00 by token, 96.00 by the hour.
    assert (row.advice.cheaper, row.advice.saving_per_day, row.advice.reason) == ("serverless", dec("28"), None)


def test_without_a_known_capacity_utilisation_and_idle_are_not_known(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session, capacity=None)
    with sqlite_store.read() as session:
        managed = only(session).managed
    assert (managed.utilisation, managed.allocated_cost, managed.idle_cost, managed.capacity_cost) == (None, None, None, dec("960"))
    assert "capacity_tokens_per_minute" in (managed.reason or "")


def test_a_model_that_runs_one_way_only_is_not_compared(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        make.event(session, time=TEN_DAYS.start)
    with sqlite_store.read() as session:
        row = only(session)
    assert (row.advice.cheaper, row.managed.capacity_cost, row.break_even_tokens_per_day) == (None, None, None)
    assert "no online deployment" in (row.advice.reason or "")


def test_another_size_or_schedule_can_be_imagined(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        make.price(session, PriceMeter.INSTANCE_HOURS, "7.00", unit="1 hour", sku="Standard_NC48ads_A100_v4", model="")
    with sqlite_store.read() as session:
        found = only(session, what_if=WhatIf("standard_nc48ads_a100_v4", 2, dec("10"))).what_if
        unknown = only(session, what_if=WhatIf("Standard_X", 1, dec("24"))).what_if
    assert found is not None
    assert unknown is not None
    assert (found.capacity_cost_per_day, found.break_even_tokens_per_day) == (dec("140"), 140 * MILLION)
    assert (unknown.capacity_cost_per_day, "no hourly price" in (unknown.reason or "")) == (None, True)


def test_serverless_is_weighed_against_the_limit_that_somebody_said(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session, capacity=1_000_000, tokens_a_day=10 * MILLION, price="20.00")
        for value, source in ((2_000_000, LimitSource.USER), (900_000, LimitSource.OBSERVED)):
            set_limit(session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=value, source=source, now=NOW)
    with sqlite_store.read() as session:
        row = only(session)
    # A call on the instance holds 1,250,000 tokens, one on serverless 1,000,000; 400,000 would be the default.
    assert (row.peak_minute_tokens, row.peak_hour_tokens) == (1_250_000, 1_250_000)
    assert (row.serverless.tokens_per_minute_limit, row.serverless.limit_source, row.serverless.feasible) == (2_000_000, "user", True)
    # 11 million tokens a day: 220.00 by token, 96.00 by the hour.
    assert (row.advice.cheaper, row.advice.saving_per_day) == ("managed_compute", dec("124"))


def test_an_observed_limit_and_another_deployments_default_add_up(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session, tokens_a_day=10 * MILLION)
        make.serverless(session, "llama-spare")
        set_limit(session, workspace="WS-EAST", deployment="llama-chat", measure="tokens_per_minute", value=700_000, source=LimitSource.OBSERVED, now=NOW)
    with sqlite_store.read() as session:
        serverless = only(session).serverless
        narrow = only(session, filters=ledger.Filters(deployments=("llama-chat", "llama-online/blue"))).serverless
    assert (serverless.tokens_per_minute_limit, serverless.limit_source) == (1_100_000, "2 deployments together: default, observed")
    assert (
        serverless.reason
        == "serverless cannot carry it: 1,250,000 tokens in one minute, and its limit is 1,100,000 (2 deployments together: default, observed)"
    )
    assert (narrow.tokens_per_minute_limit, narrow.limit_source) == (700_000, "observed")


def imagined(session: Session, sku: str, instances: int, hours: str) -> WhatIfAnswer:
    found = only(session, what_if=WhatIf(sku, instances, dec(hours))).what_if
    assert found is not None
    return found


def test_imagined_instances_that_cannot_carry_the_load_are_not_advised(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        # An instance serves 10,000 tokens a minute, 600,000 an hour; the highest hour holds 1,250,000.
        world(session, capacity=10_000, tokens_a_day=10 * MILLION, price="20.00")
        set_limit(session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=5_000_000, source=LimitSource.AZURE, now=NOW)
    with sqlite_store.read() as session:
        two, three = imagined(session, SKU, 2, "24"), imagined(session, SKU, 3, "24")
        # Calls come in the hours 0 to 7 and 12.
        short, enough = imagined(session, SKU, 3, "8.5"), imagined(session, SKU.lower(), 3, "9")
    assert (two.managed_feasible, two.instances_needed, two.cheaper, two.saving_per_day) == (False, 3, None, None)
    assert two.reason == two.managed_reason == "the instances cannot carry it: 1,250,000 tokens in one hour need 3, and they would be 2"
    # 11 million tokens a day cost 220.00 by token; three instances cost 288.00 a day, nine hours of them 108.00.
    assert (three.serverless_feasible, three.managed_feasible, three.reason) == (True, True, None)
    assert (three.cheaper, three.saving_per_day, three.capacity_cost_per_day) == ("serverless", dec("68"), dec("288"))
    assert (three.capacity_tokens_per_day, three.break_even_tokens_per_day, three.break_even_reachable) == (43_200_000, 14_400_000, True)
    assert (short.managed_feasible, short.cheaper) == (False, None)
    assert short.managed_reason == "calls come in 9 hours of the day (UTC), and the instances would run 8.5"
    assert (enough.managed_feasible, enough.cheaper, enough.saving_per_day) == (True, "managed_compute", dec("112"))


def test_a_what_if_is_not_decided_by_what_is_not_known_or_cannot_be_had(sqlite_store: Store) -> None:
    bigger = "Standard_NC48ads_A100_v4"
    with sqlite_store.write() as session:
        world(session, capacity=1_000_000, tokens_a_day=2_400_000, price="20.00")
        make.price(session, PriceMeter.INSTANCE_HOURS, "7.00", unit="1 hour", sku=bigger, model="")
        session.connection().exec_driver_sql("UPDATE usage_minute SET input_tokens = input_tokens / 10, output_tokens = output_tokens / 10")
    with sqlite_store.read() as session:
        unknown = imagined(session, bigger, 1, "24")
    assert (unknown.serverless_feasible, unknown.managed_feasible, unknown.cheaper) == (True, None, None)
    assert unknown.reason == unknown.managed_reason
    assert f"what a {bigger} serves of this model is not known" in (unknown.reason or "")
    # What they would cost is known all the same: 168.00 a day are 8.4 million tokens at 20.00.
    assert (unknown.capacity_cost_per_day, unknown.break_even_tokens_per_day, unknown.break_even_reachable) == (dec("168"), 8_400_000, None)


def test_what_the_inventory_says_is_retired_or_not_sold_there_cannot_be_had(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        session.exec(sa.delete(DeploymentFact).where(col(DeploymentFact.name) == "llama-chat"))
        make.serverless(session, "llama-chat", retires_at=datetime(2026, 11, 15, tzinfo=UTC))
    with sqlite_store.read() as session:
        row, asked = only(session), imagined(session, SKU, 1, "24")
    assert (row.serverless.feasible, row.serverless.reason, row.advice.cheaper) == (False, "the model is retired from serverless since 2026-11-15", None)
    assert (asked.serverless_feasible, asked.serverless_reason, asked.cheaper) == (False, row.serverless.reason, None)


def test_a_model_deployed_where_it_is_not_sold_and_never_called_cannot_be_had(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, "llama-online/blue", instance_count=1, sku=SKU, valid_from=TEN_DAYS.start)
        make.serverless(session, "llama-chat", region="West Europe")
        make.price(session, PriceMeter.INSTANCE_HOURS, "4.00", unit="1 hour", sku=SKU, model="")
        make.token_prices(session, "1.00", "1.00")
        make.event(session, make.series(session, endpoint="llama-online", deployment="blue"), time=TEN_DAYS.start)
    with sqlite_store.read() as session:
        serverless = only(session).serverless
    assert (serverless.feasible, serverless.reason) == (False, "the model is not offered serverless in West Europe")
