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
from sqlmodel import Session, col, select

from collector import witnessing
from collector.azure import inventory, metrics, schedule
from collector.azure.client import Rescheduled
from collector.azure.simulator import InventedWorld, Simulator
from collector.capture.aggregates import REASON, Point
from collector.jobs import run_slot
from collector.settings import Settings
from models import ledger
from models.columns import EPOCH, to_microseconds
from models.errors import UpstreamError
from models.periods import DAY, Period
from models.store import Store
from models.witnesses import WitnessPoint, WitnessSeries
from tests import factories as make
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

    def pulled(self, store: Store, arm: Any = None) -> metrics.Synced:
        subscriptions = [each.id for each in self.world.subscriptions()]
        return metrics.sync(store, arm or self.arm, subscriptions, now=lambda: self.at, progress=lambda _done, _of: None)

    def sync(self, store: Store, arm: Any = None) -> str:
        return self.pulled(store, arm).summary()

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
    total = sum(minute.requests for minute in told)
    assert total > 0
    assert found["ModelRequests", "", "llama-33-70b"][end] == total
    assert found["InputTokens", "", "llama-33-70b"][end] == total * 400
    assert found["OutputTokens", "", "llama-33-70b"][end] == total * 90
    endpoint = next(each["id"] for each in place.world.objects(place.at) if each["id"].endswith("/onlineEndpoints/llama-8b"))
    # The sum of the minutes' averages: an average over the hour would be a quarter of it.
    assert found["RequestsPerMinute", "llama-8b", "blue"][end] == sum(minute.requests for minute in place.world.requests(endpoint, end - HOUR, end)["blue"])
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
    none = place.pulled(store, Failing(place.arm, "/", UpstreamError("all is away", retryable=True)))
    assert (none.hours, none.asked, list(none.failures)) == (0, 3, ["all is away"] * 3)
    some = place.pulled(store, Failing(place.arm, "/accounts/", UpstreamError("the account is away", retryable=True)))
    assert list(some.failures) == ["the account is away"]
    names = {name for name, _, _ in stored(store)}
    assert names == {"RequestsPerMinute"}
    with pytest.raises(Rescheduled):
        place.sync(store, Failing(place.arm, "/accounts/", Rescheduled(place.at + HOUR, seconds=3600)))


def test_azures_requests_stand_beside_our_count_by_hour_and_day(store: Store, place: Place) -> None:
    """Of what Azure counted, one request was reported twice and three never; what it told nothing of is no disagreement."""
    place.at = datetime(2026, 10, 20, 9, 30, tzinfo=UTC)
    place.inventory(store)
    place.sync(store)
    end = datetime(2026, 10, 20, 9, tzinfo=UTC)
    endpoint = next(each for each in place.world.objects(place.at) if each["id"].endswith("/onlineEndpoints/llama-8b"))
    workspace = endpoint["id"].split("/")[8]
    told = [minute.at for minute in place.world.requests(endpoint["id"], end - HOUR, end)["blue"] for _ in range(minute.requests)]
    whole_day = sum(minute.requests for minute in place.world.requests(endpoint["id"], end.replace(hour=0), end)["blue"])
    with store.write() as session:
        series = make.series(session, workspace_name=workspace, endpoint="llama-8b", deployment="blue")
        for at in [*told[3:], told[-1]]:
            make.event(session, series, time=at)
        # Before Azure told anything: ours alone, and nothing can be said of it.
        make.event(session, series, time=end - 8 * DAY)
    seven = Period(end - 8 * DAY, end)
    with store.read() as session:
        (hour,) = [row for row in rows_of(session, Period(end - HOUR, end), "hour", place.at) if row.deployment == "llama-8b/blue"]
        days = {row.period.start: row for row in rows_of(session, seven, "day", place.at) if row.deployment == "llama-8b/blue"}
        problem = next(one for one in ledger.problems(session, visible=None, now=place.at) if "llama-8b/blue" in one.subject)
    assert (hour.kind, hour.measure, hour.scope) == ("azure_monitor", "requests", "deployment")
    assert (hour.witnessed, hour.counted, hour.difference) == (len(told), len(told) - 2, 2)
    today = days[end.replace(hour=0)]
    assert (today.witnessed, today.counted) == (whole_day, len(told) - 2)
    assert end - 8 * DAY not in {start for start, row in days.items() if row.counted}
    assert (problem.kind, "requests and 0 were counted" in problem.detail) == ("witness_disagrees", True)


def rows_of(session: Session, period: Period, granularity: Any, now: datetime) -> list[ledger.WitnessRow]:
    return ledger.witness_rows(session, period, granularity=granularity, filters=ledger.Filters(), now=now)


def test_hours_of_which_azure_told_nothing_are_no_disagreement(sqlite_store: Store) -> None:
    at = datetime(2026, 10, 20, tzinfo=UTC)
    with sqlite_store.write() as session:
        series = make.series(session, endpoint="llama-online", deployment="blue")
        for number in range(50):
            make.event(session, series, time=at + timedelta(hours=3, minutes=number))
        for number in range(7):
            make.event(session, series, time=at + timedelta(hours=5, minutes=number))
    told = Point(
        REASON,
        kind="azure_monitor",
        name="RequestsPerMinute",
        measure="requests",
        temporality="delta",
        service="endpoint",
        digest=b"1" * 32,
        time=to_microseconds(at + 4 * HOUR),
        started_at=to_microseconds(at + 3 * HOUR),
        value=50,
        workspace="ws-east",
        endpoint="llama-online",
        deployment="blue",
        model=None,
    )
    witnessing.keep(sqlite_store, [told], now=at + DAY)
    with sqlite_store.read() as session:
        (day,) = rows_of(session, Period(at, at + DAY), "day", at + DAY)
        assert "witness_disagrees" not in {one.kind for one in ledger.problems(session, visible=None, now=at + DAY)}
    assert (day.witnessed, day.counted, day.disagrees) == (50, 50, False)
    assert day.note == "7 more were counted in hours of which it told nothing"


@pytest.mark.walk
def test_the_schedule_brings_every_hour_once_and_the_sources_say_how_far(store: Store, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_clock", lambda: place.at)
    settings = Settings.from_environment(place.azure.environment())
    (job,) = [job for job in schedule.jobs(settings) if job.name == "azure_metrics"]
    place.inventory(store)
    # The slot of 09:17 to 10:17.
    assert run_slot(job, store, lambda: place.at, holder="a")
    assert not run_slot(job, store, lambda: place.at, holder="b")
    assert max(max(times) for times in stored(store).values()) == datetime(2026, 10, 20, 9, tzinfo=UTC)
    asked = place.azure.counted()["metrics"]
    place.at = datetime(2026, 10, 20, 10, 17, tzinfo=UTC)
    assert run_slot(job, store, lambda: place.at, holder="b")
    # One call for each of the two endpoints and the account, and one for the GPUs of each of the three deployments.
    assert place.azure.counted()["metrics"] == asked + 6
    assert max(max(times) for times in stored(store).values()) == datetime(2026, 10, 20, 10, tzinfo=UTC)
    with store.read() as session:
        (source,) = [one for one in ledger.sources(session, visible=None, now=place.at) if one.name == "metrics"]
    assert (source.state, source.data_until, source.calls) == ("ok", datetime(2026, 10, 20, 10, tzinfo=UTC), 6)
    assert source.next_run == datetime(2026, 10, 20, 11, 17, tzinfo=UTC)


def test_a_minute_without_a_value_is_not_nought_and_other_dimensions_are_added() -> None:
    answer = json.loads((DATA / "monitor_metrics_endpoint.json").read_text(), parse_float=Decimal)
    found = metrics.sums(answer, dimension="deployment", aggregation="Average")
    assert found["RequestsPerMinute", "blue"] == {datetime(2025, 3, 3, 8, tzinfo=UTC): Decimal(381)}
    assert metrics.sums({"value": []}, dimension="deployment", aggregation="Average") == {}
