"""Every fault class × many seeds: whatever goes wrong with Azure, pulls end in the simulator's truth to the last digit.

python -m tests.walks.faults [CLASS…] [--seeds 50] [--processes 1]

A *case* is a fault on one of the routes that a bill comes by (the report, an export, the query API), or one of Azure's
changes of mind, pulled every fifth day until the months have settled. Each seed makes a world of its own, a place in the
run where the fault strikes, and a database. After every pull that failed, what had landed before is as it was.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Literal

from sqlmodel import col, select

from collector.azure.simulator import RESTATEMENTS, Export, Fault, InventedWorld
from collector.azure.simulator.faults import Kind, meets
from models import money
from models.charges import BillPart
from models.store import Store
from tests.collector.azure.proving import Key, current, leftovers, pulling, stored, truth

Route = Literal["report", "export", "query"]
# What each route asks Azure for; a fault that befalls none of it is no case of the route.
_ASKS: dict[Route, frozenset[Kind]] = {
    "report": frozenset({"report", "poll", "blob"}),
    "export": frozenset({"report", "exports", "blob", "list"}),
    "query": frozenset({"report", "exports", "query"}),
}
FIRST, LAST = date(2026, 9, 28), date(2026, 10, 4)
NOW = datetime(2026, 10, 5, 6, tzinfo=UTC)
_MORNING = NOW.replace(hour=5)  # exports are of five o'clock
_MOST_PULLS = 30


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """A fault and the route that it befalls."""

    fault: Fault
    route: Route

    def __str__(self) -> str:
        return f"{self.fault}/{self.route}"


def cases() -> list[Case]:
    """Every fault on every route that it can befall; changes of mind on the report alone."""
    return [
        Case(fault, route)
        for fault in Fault
        for route, asks in _ASKS.items()
        if (fault in RESTATEMENTS and route == "report") or (_may_happen(fault, route) and any(meets(fault, kind) for kind in asks))
    ]


def _may_happen(fault: Fault, route: Route) -> bool:
    # Pages are the query's, columns of a blob the report's and the export's; an export's links do not expire.
    if fault in {Fault.PAGE_CHANGED, Fault.NEXT_LINK_LOOP}:
        return route == "query"
    return not (fault is Fault.REPORT_FAILED and route != "report")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case was put through."""

    pulls: int
    failed: int
    happened: int
    calls: int


def prove(case: Case, seed: int, *, empty: Path, folder: Path) -> Outcome:
    """Pull a world of this seed through the case; raises where the bill is not the truth."""
    store = _opened(empty, folder / f"{case.fault}-{case.route}-{seed}.db")
    try:
        return _changed(case.fault, seed, store) if case.fault in RESTATEMENTS else _broken(case, seed, store)
    finally:
        store.close()


def _opened(empty: Path, path: Path) -> Store:
    shutil.copy(empty, path)
    return Store(f"sqlite:///{path}")


def _broken(case: Case, seed: int, store: Store) -> Outcome:
    """The fault strikes twice, somewhere in the first pull; pulled again until one goes through."""
    world = InventedWorld(seed, FIRST, LAST, subscription_count=2, agreement="mca" if case.route == "report" else "payg")
    chance = random.Random(f"{case}/{seed}")
    failed = 0
    with pulling(world, store, lambda: NOW) as (azure, pull):
        azure.costs.report_blobs = 2
        azure.costs.page_rows = 25
        if case.route == "export":
            azure.costs.exports = tuple(Export("focus-daily", f"/subscriptions/{each.id}") for each in world.subscriptions())
        for _ in range(2):
            kinds = _ASKS[case.route] if case.route != "report" else None
            azure.faults.arm(case.fault, skip=chance.randrange(6), times=chance.randint(1, 3), kinds=kinds)
        for _ in range(_MOST_PULLS):
            before = {part["id"]: part for part in current(store)}
            try:
                pull()
                break
            except Exception:  # noqa: BLE001 -- whatever the fault makes of the SDK
                failed += 1
                after = {part["id"]: part for part in current(store)}
                # Months that landed before the fault are whole; the one it befell is as it was.
                assert before.items() <= after.items(), f"{case} with seed {seed} changed what had landed"
        else:
            raise AssertionError(f"{case} with seed {seed} never let a pull through")
        happened, calls, leaks = azure.faults.happened[case.fault], len(azure.calls), azure.leaks
    assert leaks == [], f"{case} with seed {seed} leaked our token: {leaks}"
    _compare(case, seed, store, world)
    return Outcome(failed + 1, failed, happened, calls)


def _compare(case: Case, seed: int, store: Store, world: InventedWorld) -> None:
    match case.route:
        case "report":
            assert stored(store) == truth(world, NOW), f"{case} with seed {seed}"
            assert stored(store, amortized=True) == truth(world, NOW, amortized=True), f"{case} with seed {seed}, amortized"
        case "export":
            assert stored(store) == truth(world, _MORNING), f"{case} with seed {seed}"
        case "query":
            # It knows neither tags nor what a purchase is of: resource, meter and day are what is left.
            assert _coarse(stored(store)) == _coarse(truth(world, NOW)), f"{case} with seed {seed}"
    assert leftovers(store) == 0, f"{case} with seed {seed} left staged rows"


def _coarse(found: dict[Key, Decimal]) -> dict[tuple[object, ...], Decimal]:
    sums: dict[tuple[object, ...], Decimal] = {}
    for (subscription, month, currency, _, _, _, day), amount in found.items():
        key = (subscription, month, currency, day)
        sums[key] = money.plus(sums.get(key, money.ZERO), amount)
    return {key: amount for key, amount in sums.items() if amount}


def _changed(fault: Fault, seed: int, store: Store) -> Outcome:
    """Azure changes its mind as the days go by; each pull ends in what it says that day, and the last in what it stays with."""
    world = InventedWorld(seed, FIRST, LAST, subscription_count=1, restatements={fault})
    at = datetime(2026, 9, 29, 6, tzinfo=UTC)
    pulls = 0
    with pulling(world, store, lambda: at) as (azure, pull):
        while at < datetime(2026, 11, 7, tzinfo=UTC):
            pull()
            pulls += 1
            assert stored(store) == truth(world, at), f"{fault} with seed {seed} on {at}"
            at += timedelta(days=5)
        calls = len(azure.calls)
    with store.read() as session:
        restated = len(session.exec(select(BillPart).where(col(BillPart.superseded_at).is_not(None))).all())
    assert restated >= 2, f"{fault} with seed {seed} changed nothing"
    return Outcome(pulls, 0, restated, calls)


@contextmanager
def empty_database() -> Iterator[tuple[Path, Path]]:
    """A folder, and in it a migrated database without anything in it, to be copied."""
    with tempfile.TemporaryDirectory(prefix="meterbridge-faults-") as folder:
        path = Path(folder) / "empty.db"
        store = Store(f"sqlite:///{path}")
        store.migrate()
        store.close()
        yield path, Path(folder)


def _told(case: Case, *, seeds: int) -> tuple[str, bool]:
    """A line of what became of a case."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    began, done, wrong = time.perf_counter(), [], []
    with empty_database() as (empty, folder):
        for seed in range(seeds):
            try:
                done.append(prove(case, seed, empty=empty, folder=folder))
            except AssertionError as fault:
                wrong.append(str(fault).splitlines()[0][:200])
            for left in folder.glob(f"*-{seed}.db*"):
                left.unlink()
    sums = [sum(getattr(one, name) for one in done) for name in ("pulls", "failed", "happened", "calls")]
    line = f"{case!s:32} {len(done):3} of {seeds} true; pulls {sums[0]:4}, failed {sums[1]:3}, struck {sums[2]:4}, calls {sums[3]:6}, {time.perf_counter() - began:6.1f} s"
    return "\n".join([line, *(f"    {each}" for each in wrong[:5])]), not wrong and sums[2] > 0


def main() -> int:
    """Prove the cases that are named, or all of them; 1 where one of them is not true, or never struck."""
    parser = argparse.ArgumentParser(prog="python -m tests.walks.faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("classes", nargs="*", metavar="CLASS", help=f"{', '.join(sorted(Fault))}; all of them when none is named")
    parser.add_argument("--seeds", type=int, default=int(os.environ.get("METERBRIDGE_TEST_SEEDS") or 50), metavar="N")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    options = parser.parse_args()
    unknown = sorted(set(options.classes) - set(Fault))
    if unknown:
        parser.error(f"there is no class {', '.join(unknown)}")
    chosen = [case for case in cases() if not options.classes or case.fault in options.classes]
    return _all(chosen, seeds=options.seeds, processes=options.processes)


def _all(chosen: Sequence[Case], *, seeds: int, processes: int) -> int:
    is_true = True
    with ProcessPoolExecutor(max_workers=max(1, processes)) as pool:
        for line, good in pool.map(partial(_told, seeds=seeds), chosen):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            is_true = is_true and good
    sys.stdout.write(f"{len(chosen)} cases × {seeds} seeds: {'all true' if is_true else 'NOT all true'}\n")
    return 0 if is_true else 1


if __name__ == "__main__":
    sys.exit(main())
