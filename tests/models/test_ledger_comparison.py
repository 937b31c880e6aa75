"""Serverless beside managed compute in small worlds worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col

from models import ledger, money
from models.ledger import ComparisonRow, WhatIf, WhatIfAnswer
from models.limits import LimitSource, set_limit
from models.periods import Period
from models.prices import PriceMeter
from models.quotas import AzureQuota, family_key
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


def told(session: Session, family: str, quota: int | None, used: int, *, region: str = "eastus", level: str = "family") -> None:
    """The workspace's subscription, and what Azure says of a family, or of all of them, there."""
    make.workspace_fact(session)
    facts: dict[str, Any] = {"subscription_id": make.SUBSCRIPTION, "region": region, "source": "ml", "level": level, "family": family}
    session.add(AzureQuota(**facts, family_key=family_key(family), quota=quota, used=used, unit="Count", known_from=TEN_DAYS.start, seen_at=NOW))


def imagined(session: Session, sku: str, instances: int, hours: str) -> WhatIfAnswer:
    found = only(session, what_if=WhatIf(sku, instances, dec(hours))).what_if
    assert found is not None
    return found


def test_imagined_instances_that_cannot_carry_the_load_are_not_advised(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        told(session, "standardNCADSA100v4Family", 96, 0)
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


def test_imagined_instances_that_the_vcpu_quota_cannot_hold_cannot_be_had(store: Store) -> None:
    with store.write() as session:
        world(session, capacity=10_000, price="20.00")
        set_limit(session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=5_000_000, source=LimitSource.AZURE, now=NOW)
        told(session, "standardNCADSA100v4Family", 100, 28)
    with store.read() as session:
        three, four = imagined(session, SKU, 3, "24"), imagined(session, SKU, 4, "24")
    # 100 - 28 = 72 vCPUs are left: three times 24.
    assert (three.managed_feasible, three.room.vcpus_needed, three.room.vcpus_left, three.cheaper) == (True, 72, 72, "serverless")
    assert (four.managed_feasible, four.room.vcpus_needed, four.room.vcpus_left, four.cheaper, four.saving_per_day) == (False, 96, 72, None, None)
    assert (
        four.reason
        == four.managed_reason
        == "the vCPU quota cannot hold them: 4 × Standard_NC24ads_A100_v4 need 96 vCPUs of standardNCADSA100v4Family, and 72 are left in eastus"
    )
    # What they would cost is known all the same.
    assert four.capacity_cost_per_day == dec("384")


def test_a_quota_that_nobody_told_is_unknown_and_one_without_a_limit_is_room(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session, capacity=10_000, price="20.00")
        set_limit(session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=5_000_000, source=LimitSource.AZURE, now=NOW)
        told(session, "standardNCSv3Family", 96, 0)  # another family
    with sqlite_store.read() as session:
        unknown, one = imagined(session, SKU, 3, "24"), imagined(session, SKU, 1, "24")
        seen = only(session, filters=ledger.Filters(visible=frozenset({"ws-east"})), what_if=WhatIf(SKU, 3, dec("24"))).what_if
    assert (unknown.managed_feasible, unknown.cheaper, unknown.room.vcpus_needed, unknown.room.vcpus_left) == (None, None, 72, None)
    assert unknown.reason == unknown.managed_reason
    assert "nobody told the vCPU quota of standardNCADSA100v4Family in eastus (meterbridge sync quotas)" in (unknown.reason or "")
    # As many as run need no quota; here one is too few for the load.
    assert one.managed_reason == "the instances cannot carry it: 1,250,000 tokens in one hour need 3, and they would be 1"
    assert seen is not None
    assert (seen.managed_feasible, "a key of some workspaces" in (seen.managed_reason or "")) == (None, True)
    with sqlite_store.write() as session:
        told(session, "standardNCADSA100v4Family", None, 400)
    with sqlite_store.read() as session:
        unlimited = imagined(session, SKU, 3, "24")
    assert (unlimited.managed_feasible, unlimited.room.vcpus_left, unlimited.cheaper) == (True, None, "serverless")


def test_a_size_that_upgrades_in_place_of_others_needs_a_fifth_more_and_may_use_what_it_holds(sqlite_store: Store) -> None:
    v3 = "Standard_NC12s_v3"
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.serverless(session, "llama-chat")
        # Five run on 60 vCPUs and keep 12 free; of the family's 96, 6 are somebody else's.
        make.managed(session, "llama-online/blue", instance_count=5, sku=v3, valid_from=TEN_DAYS.start)
        told(session, "standardNCSv3Family", 96, 66)
        make.price(session, PriceMeter.INSTANCE_HOURS, "1.00", unit="1 hour", sku=v3, model="")
        make.token_prices(session, "1.00", "1.00")
        session.add(DeploymentSetting(workspace="ws-east", name="llama-online/blue", capacity_tokens_per_minute=50_000, known_from=TEN_DAYS.start))
        make.event(session, make.series(session, endpoint="llama-online", deployment="blue"), time=TEN_DAYS.start, input_tokens=100_000, output_tokens=0)
    with sqlite_store.read() as session:
        six, seven = imagined(session, v3, 6, "24"), imagined(session, v3, 7, "24")
    # 96 - 66 - 12 = 18 vCPUs are left, and the five hold 60 + 12: 90. Six need 72 + 24 = 96, as their upgrade takes two.
    assert (six.room.vcpus_needed, six.room.vcpus_left, six.managed_feasible) == (96, 90, False)
    assert (seven.room.vcpus_needed, seven.room.vcpus_left) == (108, 90)
    assert "with what their upgrades need" in (six.managed_reason or "")


TOTAL = "Total Cluster Dedicated Regional vCPUs"


@pytest.mark.parametrize(
    ("total", "left", "binds"),
    [
        ((300, 100), 72, "standardNCADSA100v4Family"),
        ((300, 250), 50, TOTAL),  # 250 of other families, too
        ((None, 250), 72, "standardNCADSA100v4Family"),
    ],
)
def test_the_tighter_of_the_family_and_the_regions_total_binds_and_is_named(sqlite_store: Store, total: tuple[int | None, int], left: int, binds: str) -> None:
    with sqlite_store.write() as session:
        world(session, capacity=10_000, price="20.00")
        set_limit(session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=5_000_000, source=LimitSource.AZURE, now=NOW)
        told(session, "standardNCADSA100v4Family", 100, 28)
        told(session, TOTAL, *total, level="total")
        told(session, "Clusters", 500, 499, level="total")
    with sqlite_store.read() as session:
        four = imagined(session, SKU, 4, "24")
    assert (four.room.vcpus_needed, four.room.vcpus_left, four.room.quota) == (96, left, binds)
    assert four.reason == f"the vCPU quota cannot hold them: 4 × Standard_NC24ads_A100_v4 need 96 vCPUs of {binds}, and {left} are left in eastus"


def test_a_total_holds_a_family_without_a_limit_and_what_every_family_keeps_for_upgrades(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session, capacity=10_000, price="20.00")
        set_limit(session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=5_000_000, source=LimitSource.AZURE, now=NOW)
        # Of another family: five instances of 12 vCPUs keep one free for their upgrades.
        make.managed(session, "other/green", instance_count=5, sku="Standard_NC12s_v3", model="Another", valid_from=TEN_DAYS.start)
        told(session, "standardNCADSA100v4Family", None, 24)
        told(session, TOTAL, 180, 84, level="total")
    with sqlite_store.read() as session:
        asked = [ledger.comparison(session, TEN_DAYS, now=NOW, what_if=WhatIf(SKU, count, dec("24"))) for count in (3, 4)]
    three, four = (one.what_if for rows in asked for one in rows if one.what_if is not None and one.model != "Another")
    # 180 - 84 - 12 = 84 vCPUs are left; three need 72, four 96.
    assert (three.managed_feasible, three.room.vcpus_left, three.room.quota) == (True, 84, TOTAL)
    assert (four.managed_feasible, four.room.vcpus_needed, four.room.vcpus_left) == (False, 96, 84)


def test_more_instances_than_the_quota_holds_are_not_advised(store: Store) -> None:
    with store.write() as session:
        # An instance serves 600,000 tokens an hour; the highest holds 1,250,000: three are needed, one runs.
        world(session, capacity=10_000, price="100.00")
        set_limit(session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=5_000_000, source=LimitSource.AZURE, now=NOW)
        told(session, "standardNCSv3Family", 96, 0)
    with store.read() as session:
        unknown = only(session)
    with store.write() as session:
        told(session, "standardNCADSA100v4Family", 96, 48)
    with store.read() as session:
        full = only(session)
    assert unknown.managed.instances_needed == 3
    # An instance that runs can be had, so the prices are compared; that nobody knows of the two others is said beside it.
    assert (unknown.managed.feasible, unknown.advice.cheaper) == (None, "managed_compute")
    assert "nobody told the vCPU quota of standardNCADSA100v4Family in eastus" in (unknown.advice.reason or "")
    assert unknown.managed.feasible_reason == unknown.advice.reason
    assert (full.managed.feasible, full.managed.room.vcpus_needed, full.managed.room.vcpus_left, full.advice.cheaper) == (False, 72, 48, None)
    assert (
        full.advice.reason
        == "the vCPU quota cannot hold them: 3 × Standard_NC24ads_A100_v4 need 72 vCPUs of standardNCADSA100v4Family, and 48 are left in eastus"
    )
