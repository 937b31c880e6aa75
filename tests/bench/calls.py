"""Calls of a virtual day for twenty billing scopes, made by the scheduled jobs against a simulator that keeps the documented budget.

python -m tests.bench.calls [mca|payg]…
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from collector.azure import schedule
from collector.azure.client import Azure
from collector.azure.simulator import InventedWorld, Simulator
from collector.azure.simulator.server import QPU_BUDGET, Call
from collector.jobs import run_slot
from collector.settings import Settings
from models.store import Store

SCOPES = 20
# The dearest kind of day: the month before has not settled, so both are asked for.
_BEGINS = datetime(2026, 10, 3, tzinfo=UTC)


def day(agreement: Literal["mca", "payg"], store: Store) -> list[Call]:
    """Every call of the day, on the virtual clock, which waiting moves on."""
    clock = [_BEGINS]

    def seconds() -> float:
        return clock[0].timestamp()

    def sleep(seconds: float) -> None:
        clock[0] += timedelta(seconds=seconds)

    vars(schedule)["_clock"] = lambda: clock[0]
    vars(schedule)["Azure"] = functools.partial(Azure, sleep=sleep, timeout=30)
    world = InventedWorld(1, date(2026, 9, 28), date(2026, 10, 2), subscription_count=SCOPES, agreement=agreement)
    with Simulator(world, lambda: clock[0], token="t", clock=seconds, enforces_budget=True) as azure:
        jobs = [job for job in schedule.jobs(Settings.from_environment(azure.environment())) if job.name.startswith(("azure_costs:", "azure_settled"))]
        at = _BEGINS
        while at < _BEGINS + timedelta(days=1):
            clock[0] = max(clock[0], at)
            for job in jobs:
                run_slot(job, store, lambda: clock[0], holder="bench")
            at += timedelta(minutes=36)
        return list(azure.calls)


def _most(calls: list[Call], seconds: float, weight: Callable[[Call], int]) -> int:
    """The most of any stretch of so many seconds."""
    return max((sum(weight(other) for other in calls if one.at - seconds < other.at <= one.at) for one in calls if weight(one)), default=0)


def main() -> None:
    """Print what a day asks for beside the documented limits."""
    for agreement in sys.argv[1:] or ("mca", "payg"):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(f"sqlite:///{folder}/calls.db")
            store.migrate()
            calls = day("payg" if agreement == "payg" else "mca", store)
            store.close()
        limits = ", ".join(f"{_most(calls, seconds, lambda call: call.qpu)} of {limit} in {seconds} s" for limit, seconds in QPU_BUDGET)
        asked = sum(call.kind in {"report", "poll", "query", "exports"} for call in calls)
        throttled = sum(call.status == 429 for call in calls)
        sys.stdout.write(f"{agreement}: {asked} calls to Cost Management, {sum(call.qpu for call in calls)} units; most {limits}; throttled {throttled}\n")


if __name__ == "__main__":
    main()
