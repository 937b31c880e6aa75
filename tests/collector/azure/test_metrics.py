"""Azure Monitor's counts as witnesses: whole hours, once, of what the registry knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from collector.azure import inventory, metrics
from collector.azure.client import Rescheduled
from collector.azure.simulator import InventedWorld, Simulator
from models.columns import EPOCH
from models.errors import UpstreamError
from models.store import Store
from models.witnesses import WitnessPoint, WitnessSeries
from tests.collector.azure.plain import PlainArm

DATA = Path(__file__).parents[2] / "data" / "azure"
HOUR = timedelta(hours=1)


@dataclass
class Place:
    """A simulated Azure whose virtual time is ``at``."""

    at: datetime
    world: InventedWorld
    azure: Simulator = field(init=False)
    arm: PlainArm = field(init=False)

    def sync(self, store: Store, arm: Any = None) -> str:
        return metrics.sync(store, arm or self.arm, [each.id for each in self.world.subscriptions()], now=lambda: self.at)

    def inventory(self, store: Store) -> None:
        inventory.sync(store, self.arm, [each.id for each in self.world.subscriptions()], now=lambda: self.at)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place(datetime(2026, 10, 20, 9, 30, tzinfo=UTC), InventedWorld(3, date(2026, 10, 1), date(2026, 11, 30), subscription_count=1))
    with Simulator(made.world, lambda: made.at) as azure:
        made.azure, made.arm = azure, PlainArm(azure.arm_url)
        yield made
        made.arm.close()


def stored(store: Store) -> dict[tuple[str, str, str], dict[datetime, int]]:
    """(metric, endpoint, deployment) -> end of the hour -> value."""
    with store.read() as session:
        rows = session.exec(select(WitnessSeries, WitnessPoint).join(WitnessPoint, col(WitnessPoint.series_id) == col(WitnessSeries.id)))
        found: dict[tuple[str, str, str], dict[datetime, int]] = {}
        for series, point in rows:
            assert (series.kind, series.temporality) == ("azure_monitor", "delta")
            assert point.started_at == point.time - HOUR != EPOCH
            found.setdefault((series.name, series.endpoint, series.deployment), {})[point.time] = point.value
        return found


def test_hours_are_the_simulators_to_the_last_request(store: Store, place: Place) -> None:
    place.inventory(store)
    assert place.sync(store).endswith("endpoints and accounts, until 2026-10-20 09:00 UTC")
    found = stored(store)
    end = datetime(2026, 10, 20, 9, tzinfo=UTC)
    account = next(each["id"] for each in place.world.objects(place.at) if each["type"].casefold().endswith("/accounts"))
    told = place.world.requests(account, end - HOUR, end)["llama-33-70b"]
    total = sum(count for _, count in told)
    assert total > 0
    assert found["ModelRequests", "", "llama-33-70b"][end] == total
    assert found["InputTokens", "", "llama-33-70b"][end] == total * 400
    assert found["OutputTokens", "", "llama-33-70b"][end] == total * 90
    endpoint = next(each["id"] for each in place.world.objects(place.at) if each["id"].endswith("/onlineEndpoints/llama-8b"))
    # The sum of the minutes' averages: an average over the hour would be a quarter of it.
    assert found["RequestsPerMinute", "llama-8b", "blue"][end] == sum(count for _, count in place.world.requests(endpoint, end - HOUR, end)["blue"])
    # A week, hour by hour.
    assert len(found["RequestsPerMinute", "llama-8b", "blue"]) == 7 * 24


def test_a_second_pull_asks_only_for_what_is_new(store: Store, place: Place) -> None:
    place.inventory(store)
    place.sync(store)
    before = stored(store)
    assert place.sync(store).startswith("metrics: 0 hourly counts")
    assert stored(store) == before
    # Ten past is too early for the hour before; a quarter past is not.
    place.at = datetime(2026, 10, 20, 10, 14, tzinfo=UTC)
    assert place.sync(store).startswith("metrics: 0 hourly counts")
    place.at = datetime(2026, 10, 20, 10, 15, tzinfo=UTC)
    place.sync(store)
    new = {time for times in stored(store).values() for time in times} - {time for times in before.values() for time in times}
    assert new == {datetime(2026, 10, 20, 10, tzinfo=UTC)}


def test_nothing_known_nothing_asked(store: Store, place: Place) -> None:
    assert place.sync(store) == "metrics: no online endpoint or Foundry account is known yet; meterbridge sync inventory finds them"
    assert not place.azure.counted()["metrics"]


class Failing:
    """An Azure that fails for some resources, or asks to be left alone."""

    def __init__(self, arm: PlainArm, part: str, fault: Exception) -> None:
        self._arm, self._part, self._fault = arm, part, fault

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        if self._part in path:
            raise self._fault
        return self._arm.arm_get(path, api_version=api_version, params=params)


def test_one_resource_that_fails_does_not_stop_the_others(store: Store, place: Place) -> None:
    place.inventory(store)
    with pytest.raises(UpstreamError, match="all is away"):
        place.sync(store, Failing(place.arm, "/", UpstreamError("all is away", retryable=True)))
    assert place.sync(store, Failing(place.arm, "/accounts/", UpstreamError("the account is away", retryable=True))).endswith("; the account is away")
    names = {name for name, _, _ in stored(store)}
    assert names == {"RequestsPerMinute"}
    with pytest.raises(Rescheduled):
        place.sync(store, Failing(place.arm, "/accounts/", Rescheduled(place.at + HOUR, seconds=3600)))


def test_a_minute_without_a_value_is_not_nought_and_other_dimensions_are_added() -> None:
    answer = json.loads((DATA / "monitor_metrics_endpoint.json").read_text(), parse_float=Decimal)
    found = metrics.sums(answer, dimension="deployment", aggregation="Average")
    assert found["RequestsPerMinute", "blue"] == {datetime(2025, 3, 3, 8, tzinfo=UTC): Decimal(381)}
    assert metrics.sums({"value": []}, dimension="deployment", aggregation="Average") == {}
