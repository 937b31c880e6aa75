"""A rule and a budget from their making over HTTP to the alerts that usage sets off, in a running service."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.periods import rfc3339
from tests.walks.service import Service, until

pytestmark = pytest.mark.walk

# What the contract promises from an event's arrival on.
JUDGED_WITHIN = 15.0


def test_usage_that_crosses_a_rule_and_a_budget_is_an_alert_within_seconds(tmp_path: Path) -> None:
    with Service(None, tmp_path, words=("up", "--port", "0")) as service:
        client = service.client
        scope = {"workspace": "ws-alerts"}
        rule = client.post(
            "/v1/alert-rules", json={"name": "rate", "kind": "tokens_per_minute", "scope": scope, "threshold": 1000, "severity": "critical"}
        ).json()
        budget = {"name": "month", "scope": scope, "amount": "0.50", "currency": "USD", "period": "month", "basis": "metered", "steps": [50, 100]}
        assert client.post("/v1/budgets", json=budget).status_code == 201
        event = {
            "id": "one",
            "time": rfc3339(datetime.now(UTC)),
            "workspace": "ws-alerts",
            "deployment": "llama",
            "model": "Llama-3.3-70B-Instruct",
            "input_tokens": 1_000_000,
            "output_tokens": 0,
        }
        assert client.post("/v1/usage", json=event).json()["accepted"] == 1

        def both() -> list[dict[str, Any]] | None:
            found = [one for one in client.get("/v1/alerts", params={"state": "firing"}).json()["items"] if one["scope"].get("workspace") == "ws-alerts"]
            return found if {one["kind"] for one in found} >= {"tokens_per_minute", "budget"} else None

        alerts = until(both, within=JUDGED_WITHIN, what="the alerts of a rate and a budget", pause=0.2)
        by_rule = {one["rule"]: one for one in alerts}
        assert (by_rule["rate"]["rule_id"], by_rule["rate"]["value"], by_rule["rate"]["severity"]) == (rule["id"], 1_000_000, "critical")
        # 0.71 by the bundled price; of the two steps crossed at once the higher one tells.
        assert (by_rule["month"]["step"], by_rule["month"]["value"], by_rule["month"]["threshold"]) == (100, "0.71", "0.5")
