"""Pulls from the simulated Azure through the real SDK end in its truth, whatever goes wrong on the way."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlmodel import col, select

from collector import demo
from collector.azure.simulator import RESTATEMENTS, Fault, InventedWorld
from collector.demo import places
from models.charges import BillPart
from models.periods import DAY, day_start, utc_day
from models.resources import DeploymentFact
from models.store import Store
from tests.collector.azure.proving import SEEDS, leftovers, pulling, stored, truth
from tests.walks import faults
from tests.walks.faults import FIRST, LAST, NOW
from tests.walks.service import environment, verify

pytestmark = [
    pytest.mark.walk,
    # The SDK leaves the connection of an answer that broke off to the garbage collector, in whichever test that runs next.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# Faults of query pages: a pull of reports has none.
OF_PAGES = {Fault.PAGE_CHANGED, Fault.NEXT_LINK_LOOP}
BREAKING = sorted(set(Fault) - RESTATEMENTS - OF_PAGES)


@pytest.fixture(scope="module")
def empty() -> Iterator[Path]:
    """A migrated database without anything in it, to be copied."""
    with faults.empty_database() as (path, _):
        yield path


def opened(empty: Path, path: Path) -> Store:
    shutil.copy(empty, path)
    return Store(f"sqlite:///{path}")


@pytest.mark.parametrize("case", faults.cases(), ids=str)
def test_a_fault_costs_a_pull_at_most_never_a_cent(case: faults.Case, empty: Path, tmp_path: Path) -> None:
    """All of them with fifty seeds: ``python -m tests.walks.faults``."""
    assert sum(faults.prove(case, seed, empty=empty, folder=tmp_path).happened for seed in range(SEEDS)) > 0


def test_sixty_days_of_faults_end_in_the_truth(empty: Path, tmp_path: Path) -> None:
    store = opened(empty, tmp_path / "t.db")
    first = date(2026, 8, 20)
    world = InventedWorld("sixty", first, first + 60 * DAY, subscription_count=min(3, SEEDS))
    now = [datetime(2026, 8, 22, 7, tzinfo=UTC)]
    failed = pulled = 0
    with pulling(world, store, lambda: now[0]) as (azure, pull):
        azure.faults.storm("sixty", BREAKING, rate=0.12)
        end = datetime(2026, 10, 20, 7, tzinfo=UTC)
        while now[0] < end:
            try:
                pull()
                pulled += 1
                # Every third day, and at the end: the comparison takes longer than the pull.
                if pulled % 3 == 0:
                    assert stored(store) == truth(world, now[0])
                    assert stored(store, amortized=True) == truth(world, now[0], amortized=True)
            except AssertionError:
                raise
            except Exception:  # noqa: BLE001 -- a day without a pull; the next one brings it
                failed += 1
            now[0] += DAY
        assert azure.faults.happened.total() > 40
        assert azure.leaks == []
        azure.faults.clear()
        # Past the close of the last month nothing moves any more; each month was pulled once after its own.
        now[0] = datetime(2026, 11, 6, 7, tzinfo=UTC)
        pull()
        assert stored(store) == truth(world, now[0])
        with store.read() as session:
            parts = session.exec(select(BillPart).where(col(BillPart.superseded_at).is_(None), col(BillPart.landed_at).is_not(None))).all()
            totals = {(part.subscription_id, part.period_start, code): Decimal(amount) for part in parts for code, amount in part.totals.items()}
        assert totals == world.totals(now[0])
    # One request in eight goes wrong, and the client takes it; but a token that is refused twice in a row is refused.
    assert pulled + failed == 59
    assert failed <= 2
    assert leftovers(store) == 0
    store.close()
    verify(f"sqlite:///{tmp_path / 't.db'}", folder=tmp_path)


# One process that knows everything a pull needs, and splits off a child for each: starting Python anew took longer than the pulls.
_PULLERS = """
import os, sys
from datetime import UTC, date, datetime
from collector.azure import costs, policies, sync
from collector.azure.simulator import InventedWorld
from models.store import Store
from tests.collector.azure.proving import pulling
import azure.mgmt.costmanagement
for line in sys.stdin:
    url, seed = line.split()
    child = os.fork()
    if child == 0:
        world = InventedWorld(int(seed), date(2026, 9, 28), date(2026, 10, 4), subscription_count=2, extra_rows=250)
        now = datetime(2026, 10, 5, 6, tzinfo=UTC)
        store = Store(url)
        with pulling(world, store, lambda: now, timeout=60) as (_, pull):
            print("ready", os.getpid(), flush=True)
            pull()
        os._exit(0)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_pull_killed_at_any_moment_loses_and_doubles_nothing(empty: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", _PULLERS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(None)) as pullers:
        assert pullers.stdin is not None
        assert pullers.stdout is not None
        for seed in range(SEEDS):
            url = f"sqlite:///{tmp_path / f'{seed}.db'}"
            opened(empty, tmp_path / f"{seed}.db").close()
            world = InventedWorld(seed, FIRST, LAST, subscription_count=2, extra_rows=250)
            chance = random.Random(f"kill/{seed}")
            killed = 0
            for attempt in range(3):
                pullers.stdin.write(f"{url} {seed}\n")
                pullers.stdin.flush()
                said, _, number = pullers.stdout.readline().partition(" ")
                assert said == "ready"
                if attempt < 2:
                    time.sleep(chance.uniform(0.02, 0.7))
                    with suppress(ProcessLookupError):
                        os.kill(int(number), signal.SIGKILL)
                ended = int(pullers.stdout.readline().removeprefix("ended "))
                killed += ended == -signal.SIGKILL
                assert ended == 0 or attempt < 2
                store = Store(url)
                now, whole = stored(store), truth(world, NOW)
                landed = {key[:2] for key in now}
                # What has landed is whole, the rest is not there at all.
                assert now == {key: amount for key, amount in whole.items() if key[:2] in landed}
                if attempt == 2:
                    assert now == whole
                    assert leftovers(store) == 0
                store.close()
            assert killed
        pullers.stdin.close()
        assert pullers.wait(30) == 0


def test_the_sample_world_pulled_is_the_sample_world_imported(empty: Path, tmp_path: Path) -> None:
    """What ``make demo`` pulls from its Azure is what the company's files would say."""
    now = datetime.now(UTC)
    world = demo.World(11, now, days=40, scale=0.02)
    store = opened(empty, tmp_path / "t.db")
    with demo.SampleAzure(world.estate(), store, first_day=world.story.first_day, now=lambda: now) as azure:
        assert azure.sync("inventory", threading.Event()) == "inventory: 11 deployments of 2 subscriptions"
        assert azure.sync("quotas", threading.Event()).splitlines() == ["10 quotas of 4 regions and sources, 10 of them new or changed"]
        azure.sync("costs", threading.Event())
        yesterday = now - DAY
        span = f"{yesterday:%Y-%m-%d}T00:00:00Z/{now:%Y-%m-%d}T00:00:00Z"
        asked = {"metricnames": "RequestsPerMinute", "interval": "PT1M", "aggregation": "Average", "timespan": span}
        endpoint = f"{places.ASSIST.resource_id}/onlineEndpoints/llama-8b/providers/Microsoft.Insights/metrics"
        with azure.opened() as client:
            (metric,) = client.arm_get(endpoint, api_version="2024-02-01", params=asked)["value"]
        counted = {series["metadatavalues"][0]["value"]: sum(point.get("average", 0) for point in series["data"]) for series in metric["timeseries"]}
    sent = [json.loads(line) for body in world.usage(day_start(utc_day(yesterday)), day_start(utc_day(now))) for line in body.decode().splitlines()]
    assert counted == {name: sum(each["deployment"] == name for each in sent) for name in ("blue", "green")}
    assert min(counted.values()) > 0
    billed: Counter[str] = Counter()
    for _, content in world.bills(now):
        lines = content.decode("utf-8-sig").splitlines()
        billed["rows"] += len(lines) - 1
    with store.read() as session:
        parts = session.exec(select(BillPart).where(col(BillPart.superseded_at).is_(None))).all()
        assert sum(part.rows for part in parts) == billed["rows"]
        steps = session.exec(
            select(DeploymentFact)
            .where(col(DeploymentFact.name) == "llama-8b/blue", col(DeploymentFact.known_to).is_(None))
            .order_by(col(DeploymentFact.valid_from))
        ).all()
        inventory = [(fact.valid_from, fact.instance_count) for fact in steps if fact.source == "inventory"]
    assert inventory == [(world.starts_at, 1), (world.story.scale_up_at, 2)]
    store.close()


def test_the_simulator_runs_on_its_own(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "collector.azure.simulator", "--seed", "3", "--today", "2026-11-20", "--faults", "all"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment(None), cwd=tmp_path)
    assert child.stdout is not None
    with child, child.stdout:
        lines = [child.stdout.readline() for _ in range(5)]
        child.terminate()
        assert child.wait(10) == 0
    # As a shell reads them: the credential holds a semicolon.
    said = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert said["METERBRIDGE_AZURE_CREDENTIAL"] == "static:simulated;for-storage"
    assert set(said) == {f"METERBRIDGE_AZURE_{name}" for name in ("ARM_URL", "RETAIL_PRICES_URL", "CREDENTIAL", "SUBSCRIPTIONS", "SCOPES")}
    assert len(json.dumps(said["METERBRIDGE_AZURE_SUBSCRIPTIONS"].split(","))) > 100
