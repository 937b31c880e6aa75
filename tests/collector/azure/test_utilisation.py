"""GPU use of online deployments from Azure Monitor: whole hours, once, beside what tokens say; unknown where Azure says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import select

from collector.azure import utilisation
from models import ledger
from models.errors import UpstreamError
from models.ledger.utilisation import ABSENT, gpu_use
from models.periods import DAY, Period
from models.store import Store
from models.utilisation import GpuHour
from tests import factories as make
from tests.collector.azure.test_metrics import Place, place

__all__ = ["place"]  # the fixture

NOW = datetime(2026, 11, 20, 10, 20, tzinfo=UTC)
DEPLOYMENT = (
    "/subscriptions/s1/resourceGroups/rg-ai/providers/Microsoft.MachineLearningServices/workspaces/ws-east/onlineEndpoints/llama-online/deployments/blue"
)


class Monitor:
    """Answers for metrics: by hour of the day the percent of GPU time, or nothing; or refuses."""

    def __init__(self, busy: Mapping[int, float], fault: UpstreamError | None = None) -> None:
        self.busy, self.fault = busy, fault
        self.asked: list[str] = []

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        assert api_version
        assert params
        self.asked.append(params["timespan"])
        if self.fault is not None:
            raise self.fault
        points = [{"timeStamp": f"2026-11-20T{hour:02d}:00:00Z", "average": value} for hour, value in self.busy.items()]
        told = [("GpuUtilizationPercentage", [*points, {"timeStamp": "2026-11-20T08:00:00Z"}]), ("GpuMemoryUtilizationPercentage", points[:1])]
        return {"value": [{"name": {"value": name}, "timeseries": [{"metadatavalues": [], "data": data}]} for name, data in told]}


def pulled(store: Store, monitor: Monitor) -> utilisation.Synced:
    return utilisation.sync(store, monitor, ["s1"], now=lambda: NOW)


def test_hours_are_stored_once_and_a_missing_one_is_unknown_not_nought(store: Store) -> None:
    with store.write() as session:
        make.managed(session, resource_id=DEPLOYMENT)
    monitor = Monitor({6: 40.0, 7: 25.5})
    assert pulled(store, monitor) == utilisation.Synced(2, 1, [])
    with store.read() as session:
        assert [(row.time.hour, row.busy_percent, row.memory_percent) for row in session.exec(select(GpuHour).order_by(GpuHour.time))] == [  # type: ignore[arg-type]
            (6, Decimal("40.0"), Decimal("40.0")),
            (7, Decimal("25.5"), None),
        ]
        # (40 + 25.5) / 2; 8 o'clock was not told and takes no part.
        use = gpu_use(session, Period(NOW - DAY, NOW), [("WS-East", "llama-online/BLUE")])
        assert (use.busy, use.memory, use.hours, use.reason) == (Decimal("0.3275"), Decimal("0.4"), 2, None)
        nothing = gpu_use(session, Period(NOW - 9 * DAY, NOW - 8 * DAY), [("ws-east", "llama-online/blue")])
        assert (nothing.busy, nothing.reason) == (None, ABSENT)
    before = len(monitor.asked)
    pulled(store, monitor)
    assert monitor.asked[before:] == ["2026-11-20T08:00:00Z/2026-11-20T10:00:00Z"]  # only what is not there yet


@pytest.mark.parametrize(("retryable", "failures"), [(False, ()), (True, ("Monitor is away",))])
def test_a_metric_that_azure_does_not_know_is_no_failure(sqlite_store: Store, retryable: bool, failures: tuple[str, ...]) -> None:
    with sqlite_store.write() as session:
        make.managed(session, resource_id=DEPLOYMENT)
    found = pulled(sqlite_store, Monitor({}, UpstreamError("Monitor is away", retryable=retryable)))
    assert (found.hours, tuple(found.failures)) == (0, failures)


def test_the_comparison_shows_gpu_use_beside_the_use_by_tokens(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.managed(session, resource_id=DEPLOYMENT)
        make.event(session, make.series(session, endpoint="llama-online", deployment="blue"), time=NOW - timedelta(hours=3))
    asked = Period(NOW - DAY, NOW)
    with sqlite_store.read() as session:
        (row,) = ledger.comparison(session, asked, now=NOW)
        assert (row.managed.gpu.busy, row.managed.gpu.reason) == (None, ABSENT)
    pulled(sqlite_store, Monitor({6: 40.0}))
    with sqlite_store.read() as session:
        (row,) = ledger.comparison(session, asked, now=NOW)
        assert (row.managed.gpu.busy, row.managed.gpu.hours, row.managed.utilisation) == (Decimal("0.4"), 1, None)


def test_the_simulated_azure_tells_gpu_use_through_the_real_shape(sqlite_store: Store, place: Place) -> None:
    place.inventory(sqlite_store)
    found = utilisation.sync(sqlite_store, place.arm, [each.id for each in place.world.subscriptions()], now=lambda: place.at)
    assert found.deployments > 0
    assert found.hours > 100
    assert found.failures == []
    with sqlite_store.read() as session:
        assert all(Decimal(0) < (row.busy_percent or Decimal(0)) <= 97 and row.memory_percent == Decimal("81.5") for row in session.exec(select(GpuHour)))
