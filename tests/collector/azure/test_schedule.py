"""Scheduled pulls against a simulated Azure: each scope by a job of its own, and a throttle put off to the second that Azure names."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlmodel import select

from collector.azure import schedule
from collector.azure.client import Azure
from collector.azure.simulator import Fault, InventedWorld, Simulator
from collector.jobs import Job, run_slot
from collector.settings import Settings
from models import ledger
from models.leases import JobLease
from models.store import Store
from tests.collector.azure.proving import stored, truth

FIRST, LAST = date(2026, 9, 28), date(2026, 10, 4)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def clock() -> list[datetime]:
    return [datetime(2026, 10, 5, 6, tzinfo=UTC)]


@pytest.fixture
def simulator(clock: list[datetime], monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    def sleep(seconds: float) -> None:
        clock[0] += timedelta(seconds=seconds)

    monkeypatch.setattr(schedule, "_clock", lambda: clock[0])
    monkeypatch.setattr(schedule, "Azure", functools.partial(Azure, sleep=sleep, timeout=5))
    with Simulator(InventedWorld(1, FIRST, LAST, subscription_count=2), lambda: clock[0], token="t") as running:
        yield running


def of_costs(simulator: Simulator) -> list[Job]:
    found = schedule.jobs(Settings.from_environment(simulator.environment()))
    return [job for job in found if job.name.startswith("azure_costs:")]


def test_the_jobs_of_all_scopes_bring_the_whole_bill(simulator: Simulator, sqlite_store: Store, clock: list[datetime]) -> None:
    jobs = of_costs(simulator)
    assert [job.offset for job in jobs] == [timedelta(0), timedelta(hours=6)]
    for job in jobs:
        assert run_slot(job, sqlite_store, lambda: clock[0], holder="a")
    world = InventedWorld(1, FIRST, LAST, subscription_count=2)
    assert stored(sqlite_store) == truth(world, clock[0])
    with sqlite_store.read() as session:
        assert [lease.error for lease in session.exec(select(JobLease))] == ["", ""]
        said = {one.name.rpartition(" ")[0]: one for one in ledger.sources(session, visible=None, now=clock[0]) if one.kind == "azure"}
        # The first scope's slots begin at 00:00 and 12:00, the second's six hours later.
        assert [said[f"costs · {job.name.partition(':')[2]}"].next_run for job in jobs] == [
            datetime(2026, 10, 5, 12, tzinfo=UTC),
            datetime(2026, 10, 5, 18, tzinfo=UTC),
        ]


def test_a_throttle_puts_the_slot_off_and_the_other_scopes_wait_too(simulator: Simulator, sqlite_store: Store, clock: list[datetime]) -> None:
    simulator.faults.arm(Fault.THROTTLE_TENANT)
    simulator.faults.retry_after_seconds = 3600
    first, second = of_costs(simulator)
    allowed = clock[0] + timedelta(hours=1)
    for job in (first, second):
        assert run_slot(job, sqlite_store, lambda: clock[0], holder="a")
    # Azure heard from us once.
    assert sum(simulator.counted().values()) == 1
    with sqlite_store.read() as session:
        assert [lease.next_at for lease in session.exec(select(JobLease))] == [allowed, allowed]
        assert {one.state for one in ledger.sources(session, visible=None, now=clock[0])} == {"rescheduled"}
    assert not run_slot(first, sqlite_store, lambda: allowed - timedelta(seconds=1), holder="b")
    clock[0] = allowed
    for job in (first, second):
        assert run_slot(job, sqlite_store, lambda: clock[0], holder="b")
    assert stored(sqlite_store) == truth(InventedWorld(1, FIRST, LAST, subscription_count=2), clock[0])
