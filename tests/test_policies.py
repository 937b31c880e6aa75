"""The API Management policies are XML, ask the routes that exist and read the fields that those answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from models.alerts import Budget, Severity
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving

FOLDER = Path(__file__).parents[1] / "deploy" / "policies"
POLICIES = sorted(FOLDER.glob("*.xml"))
VALUES = {"meterbridge-url", "meterbridge-key", "meterbridge-workspace", "meterbridge-mode"}


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    with serving(sqlite_store) as running:
        yield running


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.name)
def test_a_policy_has_its_sections_and_known_values(policy: Path) -> None:
    root = ET.parse(policy).getroot()
    assert [section.tag for section in root] == ["inbound", "backend", "outbound", "on-error"]
    assert all(section.find("base") is not None for section in root)
    text = policy.read_text(encoding="utf-8")
    assert set(re.findall(r"\{\{([a-z-]+)\}\}", text)) <= VALUES
    for asked in root.iter("send-request"):
        # We must not become something that production waits for.
        assert (asked.get("timeout"), asked.get("ignore-error")) == ("1", "true")


def test_the_policies_read_what_the_routes_answer(service: Service) -> None:
    said = service.client.post("/v1/admission", json={"workspace": "w", "deployment": "d", "tokens": 5}).json()
    text = (FOLDER / "admission.xml").read_text(encoding="utf-8")
    for field in re.findall(r"said\[&quot;(\w+)&quot;\]", text):
        assert field in said
    assert {"allow", "retry_after_seconds"} <= set(re.findall(r"said\[&quot;(\w+)&quot;\]", text))
    listed = service.client.get("/v1/admission/denied").json()
    text = (FOLDER / "admission-denied-list.xml").read_text(encoding="utf-8")
    assert set(listed) == {"items"}
    assert set(re.findall(r"item\[&quot;(\w+)&quot;\]", text)) == {"workspace", "deployment", "retry_after_seconds"}


def test_the_list_names_its_items_as_the_policy_reads_them(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.token_prices(session)
        make.event(session, make.series(session, deployment="llama-foundry"), time=make.NOW - timedelta(minutes=5))
        budget = Budget(
            id="budget_1",
            name="none",
            scope={"workspace": "ws-east"},
            amount=Decimal("0.0001"),
            currency="USD",
            period="month",
            steps=[100],
            forecast_steps=[],
            is_hard=True,
            severity=Severity.CRITICAL,
            receivers=[],
            created_at=make.LONG_AGO,
            updated_at=make.LONG_AGO,
        )
        session.add(budget)
    with serving(sqlite_store) as service:
        denied = service.client.post("/v1/admission", json={"workspace": "ws-east", "deployment": "llama-foundry", "tokens": 5}).json()
        assert (denied["allow"], "budget" in denied["reason"]) == (False, True)
        (item,) = service.client.get("/v1/admission/denied").json()["items"]
        assert (item["workspace"], set(item)) == ("ws-east", {"workspace", "deployment", "reason", "retry_after_seconds"})
