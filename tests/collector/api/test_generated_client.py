"""A client that is generated from the description alone sends usage, reads figures and meets an error, without a line written for it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving

NAME = "meterbridge_generated"


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "2.00")
    with serving(sqlite_store) as found:
        yield found


@pytest.fixture
def generated(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the client."""
    (tmp_path / "openapi.json").write_bytes(service.client.get("/openapi.json").content)
    # Its style is nobody's business here, and its formatter would be most of the time.
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    asked = ["generate", "--path", "openapi.json", "--config", "config.yml", "--meta", "none", "--output-path", NAME]
    made = subprocess.run([sys.executable, "-m", "openapi_python_client", *asked], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    said = (made.stdout + made.stderr).splitlines()
    # It knows one form of a body less than we take; each such route takes JSON too.
    assert {line for line in said if line.startswith("Unsupported")} <= {f"Unsupported content type application/{form}" for form in FORMS}
    assert [line for line in said if line.startswith("WARNING") and "within ingest" not in line] == []
    monkeypatch.syspath_prepend(str(tmp_path))

    def module(name: str) -> ModuleType:
        return importlib.import_module(f"{NAME}.{name}")

    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


FORMS = ("x-ndjson", "x-protobuf", "cloudevents+json", "cloudevents-batch+json")


@pytest.mark.walk
def test_a_generated_client_sends_and_reads(service: Service, generated: Any) -> None:
    secret = service.key("admin")
    client = generated("client").AuthenticatedClient(base_url=service.url, token=secret)
    models = generated("models")
    event = models.UsageSent(
        id="call-1",
        time=(make.NOW - timedelta(hours=1)).isoformat(),
        workspace="ws-east",
        deployment="llama-chat",
        input_tokens=1_000_000,
        output_tokens=500_000,
    )
    with client:
        taken = generated("api.ingest.post_v1_usage").sync(client=client, body=event)
        assert (type(taken).__name__, taken.accepted, taken.rejected, taken.events[0].tokens_quality) == ("Taken", 1, [], "reported")
        costs = generated("api.figures.get_v1_costs").sync(client=client, group_by=["deployment"], granularity="none")
        assert type(costs).__name__ == "Costs"
        (row,) = costs.rows
        # 1 million at 1.00 and half a million at 2.00.
        assert (row.cost, row.currency, row.input_tokens, row.status.value, row["deployment"]) == ("2", "USD", 1_000_000, "provisional", "llama-chat")
        assert [total.cost for total in costs.totals] == ["2"]
        pools = generated("api.quotas.get_v1_quotas").sync(client=client).items
        assert {(pool.measure, pool.limit_source) for pool in pools} == {("tokens_per_minute", "default"), ("requests_per_minute", "default")}
        report = generated("api.reports.get_v1_reports_weekly").sync(client=client, week="2026-W47")
        assert (report.week, report.totals[0].cost, report.totals[0].last_week.cost) == ("2026-W47", "2", "0")
        why = generated("api.figures.get_v1_explain").sync(client=client, figure="input_tokens")
        assert (type(why).__name__, why.value) == ("FigureExplained", 1_000_000)
        rule = models.RuleBody(name="Busy", kind=models.Kind.TOKENS_PER_MINUTE, threshold=1000)
        made = generated("api.alerts.post_v1_alert_rules").sync(client=client, body=rule)
        assert (made.name, made.threshold, made.enabled) == ("Busy", 1000, True)
        listed = generated("api.alerts.get_v1_alert_rules").sync(client=client).items
        assert made.id in {one.id for one in listed}
        wrong = generated("api.figures.get_v1_costs").sync_detailed(client=client, basis="guessed")
        assert (wrong.status_code, type(wrong.parsed).__name__, wrong.parsed.error) == (422, "Problem", "invalid_value")
        assert json.loads(wrong.content)["detail"] == wrong.parsed.detail
