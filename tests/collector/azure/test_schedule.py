"""Scheduled pulls against a simulated Azure: each scope by a job of its own, and a throttle put off to the second that Azure names."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import select

from collector.azure import schedule
from collector.azure.client import Azure
from collector.azure.simulator import Fault, InventedWorld, Simulator
from collector.jobs import Job, run_slot
from collector.settings import Settings
from models import ledger, sources
from models.leases import JobLease, pull_job
from models.sources import PullState, SourcePull
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
    # Cost Management heard from us once.
    assert simulator.counted() == {"list": 1, "report": 1}
    with sqlite_store.read() as session:
        assert [lease.next_at for lease in session.exec(select(JobLease))] == [allowed, allowed]
        assert {one.state for one in ledger.sources(session, visible=None, now=clock[0])} == {"rescheduled"}
    assert not run_slot(first, sqlite_store, lambda: allowed - timedelta(seconds=1), holder="b")
    clock[0] = allowed
    for job in (first, second):
        assert run_slot(job, sqlite_store, lambda: clock[0], holder="b")
    assert stored(sqlite_store) == truth(InventedWorld(1, FIRST, LAST, subscription_count=2), clock[0])


def test_a_pull_that_failed_is_tried_again_by_one_process_and_only_for_what_is_missing(
    simulator: Simulator, sqlite_store: Store, clock: list[datetime]
) -> None:
    first, _ = of_costs(simulator)
    # September comes; then Azure is away for as long as the client is patient, three times.
    simulator.faults.arm(Fault.ERROR_502, skip=2, times=7 * 3, kinds={"report"})
    began = clock[0]
    assert run_slot(first, sqlite_store, lambda: clock[0], holder="a")
    assert months_done(sqlite_store) == [date(2026, 9, 1)]
    for minutes in (5, 15, 45):
        due = next_try(sqlite_store, first)
        assert timedelta(minutes=minutes) <= due - clock[0] < timedelta(minutes=minutes + 1)
        assert (source_of(sqlite_store, clock[0]).state, source_of(sqlite_store, clock[0]).next_run) == ("failed", due)
        assert not run_slot(first, sqlite_store, lambda due=due: due - timedelta(seconds=1), holder="b")  # type: ignore[misc]
        # The process that began it is gone, another one goes on; a third finds it done or waiting.
        clock[0] = due
        assert run_slot(first, sqlite_store, lambda: clock[0], holder="b")
        assert not run_slot(first, sqlite_store, lambda: clock[0], holder="c")
    assert months_done(sqlite_store) == [date(2026, 9, 1), date(2026, 10, 1)]
    assert stored_of(sqlite_store, simulator) == truth_of(simulator, clock[0])
    assert clock[0] - began < timedelta(minutes=90)
    with sqlite_store.read() as session:
        (lease,) = session.exec(select(JobLease)).all()
        assert (lease.error, lease.next_at) == ("", datetime(2026, 10, 5, 12, tzinfo=UTC))


def test_after_three_more_tries_a_pull_waits_for_its_slot_and_a_refusal_waits_at_once(simulator: Simulator, sqlite_store: Store, clock: list[datetime]) -> None:
    first, second = of_costs(simulator)
    simulator.faults.arm(Fault.ERROR_502, times=10_000)
    for _ in range(4):
        assert run_slot(first, sqlite_store, lambda: clock[0], holder="a")
        clock[0] = max(clock[0], next_try(sqlite_store, first))
    # The fourth failure is the slot's last; the next slot has begun and its tries with it.
    assert clock[0] == datetime(2026, 10, 5, 12, tzinfo=UTC)
    assert run_slot(first, sqlite_store, lambda: clock[0], holder="a")
    assert timedelta(minutes=5) <= next_try(sqlite_store, first) - clock[0] < timedelta(minutes=6)
    simulator.faults.clear()
    simulator.token = "another"
    assert run_slot(second, sqlite_store, lambda: clock[0], holder="a")
    assert next_try(sqlite_store, second) == datetime(2026, 10, 5, 18, tzinfo=UTC)
    assert source_of(sqlite_store, clock[0], name=second.name).state == "failed"


def test_a_settled_month_has_its_own_tries_whatever_else_failed_that_week(simulator: Simulator, sqlite_store: Store, clock: list[datetime]) -> None:
    first, _ = of_costs(simulator)
    assert run_slot(first, sqlite_store, lambda: clock[0], holder="a")
    scope = first.name.partition(":")[2]
    settled = next(job for job in schedule.jobs(Settings.from_environment(simulator.environment())) if job.name == pull_job("settled_months", scope))
    clock[0] = datetime(2026, 11, 20, 10, tzinfo=UTC)
    with sqlite_store.write() as session:
        for hours in range(5):
            run = sources.begin(session, "costs", scope, month=date(2026, 11, 1), now=clock[0] - timedelta(hours=hours))
            sources.finish(session, run.id or 0, PullState.FAILED, now=clock[0] - timedelta(hours=hours), message="Azure was away")
    simulator.faults.arm(Fault.ERROR_502, times=10_000)
    assert run_slot(settled, sqlite_store, lambda: clock[0], holder="a")
    assert timedelta(minutes=5) <= next_try(sqlite_store, settled) - clock[0] < timedelta(minutes=6)


def next_try(store: Store, job: Job) -> datetime:
    with store.read() as session:
        return session.get_one(JobLease, job.name).next_at


def source_of(store: Store, now: datetime, *, name: str = "") -> ledger.Source:
    """What the page of sources says of the pull, or of the job of that name."""
    with store.read() as session:
        found = ledger.sources(session, visible=None, now=now)
    return next(one for one in found if (one.name == name if name else one.kind == "azure"))


def months_done(store: Store) -> list[date | None]:
    with store.read() as session:
        return sorted((run.month for run in session.exec(select(SourcePull)) if run.state == PullState.DONE), key=str)


def stored_of(store: Store, simulator: Simulator) -> dict[Any, Any]:
    first = simulator.estate.subscriptions()[0].id
    return {key: amount for key, amount in stored(store).items() if key[0] == first}


def truth_of(simulator: Simulator, at: datetime) -> dict[Any, Any]:
    first = simulator.estate.subscriptions()[0].id
    return {key: amount for key, amount in truth(InventedWorld(1, FIRST, LAST, subscription_count=2), at).items() if key[0] == first}
