"""Quotas as Compute and Machine Learning tell them, with their history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from collector.azure import inventory, quotas
from collector.azure.simulator import Fault, InventedWorld, Simulator
from models.errors import UpstreamError
from models.quotas import azure_quotas, family_key
from models.store import Store
from tests.collector.azure.plain import PlainArm

START = datetime(2026, 10, 2, 12, tzinfo=UTC)


@pytest.fixture
def azure() -> Iterator[tuple[Simulator, PlainArm, list[datetime]]]:
    now = [START]
    with Simulator(InventedWorld(7, date(2026, 10, 1), date(2026, 11, 30), subscription_count=1), lambda: now[0]) as served:
        arm = PlainArm(served.arm_url)
        yield served, arm, now
        arm.close()


def sync(store: Store, azure: tuple[Simulator, PlainArm, list[datetime]]) -> quotas.QuotaSync:
    served, arm, now = azure
    return quotas.sync(store, arm, [each.id for each in served.estate.subscriptions()], now=lambda: now[0])


def test_regions_are_those_of_the_inventory(store: Store, azure: tuple[Simulator, PlainArm, list[datetime]]) -> None:
    served, arm, now = azure
    assert sync(store, azure).places == 0
    inventory.sync(store, arm, [served.estate.subscriptions()[0].id], now=lambda: now[0])
    done = sync(store, azure)
    assert (done.places, done.rows, done.changed) == (2, 9, 9)
    with store.read() as session:
        found = {(row.source, row.level, row.workspace, row.family): (row.quota, row.used, row.headroom) for row in azure_quotas(session, known=START)}
    assert found["compute", "family", "", "standardNCADSA100v4Family"] == (96, 48, 48)
    assert found["compute", "total", "", "cores"] == (350, 48, 302)
    assert found["ml", "family", "", "Standard NCADSA100v4 Family Cluster Dedicated vCPUs"] == (96, 48, 48)
    assert found["ml", "low_priority", "", "Standard NCADSA100v4 Family Cluster LowPriority vCPUs"] == (None, 0, None)


def test_a_change_keeps_what_was_known_before(store: Store, azure: tuple[Simulator, PlainArm, list[datetime]]) -> None:
    served, arm, now = azure
    inventory.sync(store, arm, [served.estate.subscriptions()[0].id], now=lambda: now[0])
    sync(store, azure)
    now[0] = datetime(2026, 11, 10, tzinfo=UTC)
    done = sync(store, azure)
    assert 0 < done.changed < done.rows
    with store.read() as session:
        family = "standardNCADSA100v4Family"
        used = [next(row.used for row in azure_quotas(session, known=at) if row.family == family) for at in (START, now[0])]
    # Blue has had three instances since 16 October, green still its one.
    assert used == [48, 96]


def test_a_failed_pull_changes_nothing(store: Store, azure: tuple[Simulator, PlainArm, list[datetime]]) -> None:
    served, arm, now = azure
    inventory.sync(store, arm, [served.estate.subscriptions()[0].id], now=lambda: now[0])
    sync(store, azure)
    now[0] = datetime(2026, 11, 10, tzinfo=UTC)
    served.faults.arm(Fault.ERROR_503, times=2, kinds=["list"])
    with pytest.raises(UpstreamError):
        sync(store, azure)
    with store.read() as session:
        assert {row.known_from for row in azure_quotas(session, known=now[0])} == {START}


def test_the_spellings_of_a_family_meet() -> None:
    spellings = ("standardNCADSA100v4Family", "StandardNCADSA100v4Family", "Standard NCADSA100v4 Family Cluster Dedicated vCPUs", "STANDARD NCADSA100V4 FAMILY")
    assert {family_key(each) for each in spellings} == {"ncadsa100v4"}
    assert family_key("standard NDAMSv4_A100Family") == family_key("standardNDAMSv4_A100Family") == "ndamsv4a100"
    assert family_key("Standard NCASv3_T4 Family") != family_key("standardNCSv3Family")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("aml_usages.json", {"family", "total", "low_priority", "workspace"}), ("compute_usages_eastus2.json", {"family", "total", "low_priority", "other"})],
)
def test_the_levels_of_recorded_answers_are_told_apart(store: Store, name: str, expected: set[str]) -> None:
    items: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "data" / "azure" / name).read_text())["value"]
    source: quotas.Source = "ml" if name.startswith("aml") else "compute"
    rows = [quotas._quota(item, "S", "eastus2", source, now=START) for item in items]
    assert expected <= {row.level for row in rows}
    if source == "ml":
        # The same family at three levels: never the same row.
        assert {(row.level, row.workspace) for row in rows if family_key(row.family) == "ncadsa100v4" and row.level != "low_priority"} >= {
            ("family", ""),
            ("workspace", "ws-llama-prod"),
            ("workspace", "proj-chatbot"),
        }
    with store.write() as session:
        assert quotas.land(session, rows, place=("S", "eastus2", source), now=START) == len(rows)
