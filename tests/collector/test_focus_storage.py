"""A FOCUS month into a container: the file, then what stands beside it, and the same names again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from collector import focus
from collector.azure.simulator import InventedWorld, Simulator
from models.errors import InvalidInput
from models.store import Store
from tests import factories as make
from tests.collector.reports.test_delivery import places

NOW = make.NOW


def test_a_month_goes_into_a_container_with_its_control_total(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    with store.write() as session:
        make.serverless(session)
        part = make.bill_part(session, landed_at=NOW)
        make.charge(session, part, make.charge_item(session), "3.25", charged_on=date(2026, 11, 10))
    with Simulator(InventedWorld(1, date(2026, 9, 28), date(2026, 10, 4), subscription_count=1), lambda: NOW) as azure:
        azure.storage.containers.add("finance")
        azure.storage.signature = "secret"
        address = f"{azure.blob_url}/finance/focus?sv=1&sig=secret"
        asked = focus.ExportFocus("2026-11", "", to=address)
        for _ in range(2):
            assert focus.run(store, asked, places=places(tmp_path, azure), now=NOW, say=said.append, progress=lambda _done, _of: None) == 0
        name = "finance/focus/meterbridge-focus-2026-11-v1.2.csv"
        assert (list(azure.storage.blobs), azure.storage.writes) == ([name, f"{name}.meta.json"], 4)
        content, beside = azure.storage.blobs[name], json.loads(azure.storage.blobs[f"{name}.meta.json"])
        rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert (beside["File"], beside["Bytes"], beside["sha256"]) == (name.rpartition("/")[2], len(content), hashlib.sha256(content).hexdigest())
    assert (sum(Decimal(row["BilledCost"]) for row in rows), beside["control_total"]) == (Decimal("3.25"), {"USD": "3.25"})
    assert not [line for line in said if "secret" in line]
    assert any(line.startswith(f"{azure_host(address)}") for line in said)


def azure_host(address: str) -> str:
    return address.partition("/finance")[0]


def test_what_is_no_container_is_refused_before_anything_is_made(sqlite_store: Store, tmp_path: Path) -> None:
    for address in ("https://evil.example/c", "/srv/out.csv", "https://a.blob.core.windows.net"):
        with pytest.raises(InvalidInput, match="a container is written like"):
            focus.run(sqlite_store, focus.ExportFocus("2026-11", "", to=address), places=places(tmp_path), now=NOW, say=print, progress=lambda _done, _of: None)
