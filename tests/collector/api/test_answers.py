"""The OpenAPI description cannot lie: every answer it describes is asked of a running service that has something to say, and compared in both directions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from collector.api.answers import components
from collector.azure.client import AzureSettings
from collector.reports import links
from collector.reports.places import Places
from collector.webhooks.setup import Telling
from models import ledger, sources
from models.alerts import Alert, AlertState, Kind, Severity
from models.charges import BillPart, ChargeClass, MeterKind
from models.prices import PriceMeter, WaitingPrice
from models.resources import Setting
from models.sources import PullState
from models.store import Store
from models.usage import Status
from tests import factories as make
from tests.collector.api.serving import Service, serving

NOW = make.NOW  # 2026-11-20 10:00
HOUR = timedelta(hours=1)
CALL = {"id": "call-1", "time": "2026-11-20T09:50:00Z", "workspace": "ws-east", "deployment": "llama-chat", "model": make.MODEL}


def told(store: Store) -> None:
    """October with a bill, closed and then billed anew; November with usage of every kind, a bill to the 12th, pulls and prices."""
    with store.write() as session:
        make.workspace_fact(session)
        make.token_prices(session, "0.50", "0.50")
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.673", sku="Standard_NC24ads_A100_v4", model="")
        make.serverless(session)
        make.foundry(session)
        make.managed(session)
        make.owner(session)
        chat = make.series(session, application="chat", team="search", tags={"env": "prod"})
        foundry = make.series(session, deployment="llama-foundry")
        online = make.series(session, deployment="blue", endpoint="llama-online")
        unpriced = make.series(session, deployment="unpriced", model="no-such-model")
        for day in (datetime(2026, 10, 12, 9, tzinfo=UTC), datetime(2026, 11, 10, 9, tzinfo=UTC), NOW - timedelta(days=8), NOW - timedelta(minutes=20)):
            make.event(session, chat, time=day, input_tokens=1_000_000, event_id=f"{day:%B}-{day.day}".casefold())
            make.event(session, foundry, time=day, input_tokens=2_000_000)
            make.event(session, online, time=day, input_tokens=3_000_000)
            make.event(session, unpriced, time=day)
            make.event(session, chat, time=day, input_tokens=None, output_tokens=None, status=Status.INCOMPLETE)
        october = make.bill_part(session, period_start=date(2026, 10, 1), landed_at=datetime(2026, 11, 7, tzinfo=UTC))
        make.charge(session, october, make.charge_item(session), "0.40", charged_on=date(2026, 10, 12), quantity="1000")
        make.charge(session, october, make.charge_item(session, ChargeClass.COMPUTE), "88.152", charged_on=date(2026, 10, 13), quantity="24")
        number = october.id
        session.add(alert())
        session.add(Setting(name="cookie_secret", value="00" * 32))
        session.add(
            WaitingPrice(
                model=make.MODEL,
                meter=PriceMeter.INPUT_TOKENS,
                unit_price=Decimal(71),
                currency="USD",
                unit="1M tokens",
                version="2",
                reason="100 x",
                arrived_at=NOW,
            )
        )
    with store.write() as session:
        ledger.close_month(session, date(2026, 10, 1), author="finance", software="1.2.3", now=datetime(2026, 11, 8, tzinfo=UTC))
    with store.write() as session:
        october = session.get_one(BillPart, number)
        make.supersede(session, october, datetime(2026, 11, 9, tzinfo=UTC))
        again = make.bill_part(session, period_start=date(2026, 10, 1), landed_at=datetime(2026, 11, 9, tzinfo=UTC))
        make.charge(session, again, make.charge_item(session), "0.45", charged_on=date(2026, 10, 12), quantity="1000")
        part = make.bill_part(session, landed_at=datetime(2026, 11, 13, tzinfo=UTC))
        for charge_class in (ChargeClass.MARKETPLACE, ChargeClass.FOUNDRY, ChargeClass.COMPUTE, ChargeClass.ADJUSTMENT, ChargeClass.OUT_OF_SCOPE):
            make.charge(session, part, make.charge_item(session, charge_class), "12.75", charged_on=date(2026, 11, 10), quantity="1000")
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, MeterKind.OUTPUT, deployment="gone"), "3.00", charged_on=date(2026, 11, 12))
        run = sources.begin(session, "costs", "subscriptions/s1", now=NOW - 2 * HOUR)
        sources.finish(session, run.id or 0, PullState.DONE, now=NOW - HOUR, rows=7, calls=3, data_until=NOW - timedelta(days=1), message="landed 7 rows")


def alert() -> Alert:
    """One that fires."""
    return Alert(
        id="alt_1",
        seq=1,
        rule_id="rul_0",
        rule="Busy",
        kind=Kind.TOKENS_PER_MINUTE,
        state=AlertState.FIRING,
        severity=Severity.WARNING,
        scope={"workspace": "ws-east"},
        open_key="rul_0",
        subject="ws-east",
        value=Decimal(90),
        threshold=Decimal(60),
        why="90 tokens a minute",
        sample={"measured": "minute"},
        receivers=[],
        pending_at=NOW - HOUR,
        fired_at=NOW - HOUR,
    )


def sent(service: Service) -> None:
    """What people and programs send to it themselves."""
    for counts in ({"input_tokens": 1000, "output_tokens": 20}, {"input_tokens": 1001, "output_tokens": 20}):
        service.client.post("/v1/usage", json={**CALL, **counts})
    throttled = {"http_status": 429, "throttled_by": "azure", "ratelimit_limit_tokens": 200_000, "ratelimit_remaining_tokens": 0}
    service.client.post("/v1/usage", json=[{**CALL, "id": "call-2", "input_tokens": 5, "output_tokens": 1}, {**CALL, "id": "call-3", **throttled}, {"id": "x"}])
    cut = {"finish_reason": "length", "input_tokens": 5, "output_tokens": 1}
    service.client.post("/v1/usage", json={**CALL, "id": "call-5", "time": "2026-11-20T09:00:00Z", **cut})
    gateway = {"API ID": "llama-api", "Backend ID": "llama-chat"}
    point = {"timestamp": "2026-11-20T09:01:00Z", "name": "Prompt Tokens", "valueSum": 120, "customDimensions": gateway}
    service.client.post("/v1/usage/azure", json=[point, {**point, "name": "Total Tokens"}], headers=HEADERS)
    service.client.post("/v1/usage/void", json={"workspace": "ws-east", "ids": ["call-2"], "reason": "a test"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Service]:
    file = tmp_path_factory.mktemp("answers") / "t.db"
    file.write_bytes(migrated_file.read_bytes())
    store = Store(f"sqlite:///{file}")
    told(store)
    folder = tmp_path_factory.mktemp("reports")
    telling = Telling(resolver=lambda *_: ["93.184.215.14"], places=Places(folder, AzureSettings("", "", "", (), ())))
    with serving(store, telling=telling) as service:
        sent(service)
        yield service
    store.close()


def strict(schema: Any) -> Any:
    """The same description, in which nothing may be that it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(one) for name, one in schema.items()}
    if "properties" in found and isinstance(found.get("properties"), dict) and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


RECEIVER = {"name": "finance", "url": "https://hooks.example.com/x", "format": "standard"}
RULE = {"name": "Busy", "kind": "tokens_per_minute", "scope": {"workspace": "ws-east"}, "threshold": 1000, "severity": "warning", "receivers": []}
BUDGET = {"name": "Chat", "scope": {"workspace": "ws-east"}, "amount": "100.00", "currency": "USD", "period": "month", "steps": [50, 100]}
SILENCE = {"matchers": [{"name": "workspace", "value": "ws-east"}], "starts_at": "2026-11-01T00:00:00Z", "ends_at": "2026-12-01T00:00:00Z", "comment": "x"}
LITELLM = {"event": "budget_crossed", "event_group": "team", "event_message": "over", "team_id": "search", "spend": 12.5, "max_budget": 10.0}
SPAN = {"from": "2026-11-10T00:00:00Z", "to": "2026-11-20T00:00:00Z"}
# What is asked, in this order: {last:…} is the id in the answer to the question of that name.
QUESTIONS: list[tuple[str, str, Any]] = [
    ("get", "/version", None),
    ("get", "/v1/costs", None),
    ("get", "/v1/costs?granularity=none&group_by=workspace,team,tag:env&basis=billed", None),
    ("get", "/v1/usage", None),
    ("get", "/v1/usage/call-1", None),
    ("get", "/v1/usage/november-10", None),
    ("get", "/v1/usage/conflicts", None),
    ("get", "/v1/usage/postings", None),
    ("post", "/v1/usage/void", {"workspace": "ws-east", "ids": ["call-1", "nothing"], "dry_run": True}),
    ("get", "/v1/problems", None),
    ("get", "/v1/onboarding", None),
    ("get", "/v1/data-age", None),
    ("get", "/v1/sources", None),
    ("get", "/v1/intake?from=2026-11-20&to=2026-11-21", None),
    ("get", "/v1/deployments", None),
    ("put", "/v1/deployments/llama-foundry", {"capacity_tokens_per_minute": 90_000}),
    ("get", "/v1/waste", None),
    ("get", "/v1/witnesses?granularity=hour", None),
    ("get", "/v1/explain", None),
    ("get", "/v1/explain?figure=input_tokens", None),
    ("get", "/v1/explain?figure=cost&granularity=none", None),
    ("get", "/v1/reconciliation", None),
    ("get", "/v1/reconciliation?month=2026-10", None),
    ("get", "/v1/closes", None),
    ("get", "/v1/adjustments?month=2026-10", None),
    ("get", "/v1/worklist?month=2026-11", None),
    ("put", "/v1/worklist/{worklist}", {"owner": "me", "note": "asked Azure", "sign": True}),
    ("get", "/v1/worklist", None),
    ("get", "/v1/invoices", None),
    ("put", "/v1/invoices/inv-1", {"currency": "USD", "amount": "100.00", "tax": "19.00"}),
    ("get", "/v1/lags", None),
    ("get", "/v1/meters", None),
    ("post", "/v1/meters/mappings", {"meter": "paygo-*-input", "kind": "fine_tuned_input", "unit": "1K tokens", "valid_from": "2026-11-01"}),
    ("get", "/v1/meters/mappings", None),
    ("get", "/v1/comparison", None),
    ("get", "/v1/comparison?sku=Standard_NC24ads_A100_v4&instances=1&hours_per_day=8", None),
    ("get", "/v1/prices", None),
    ("post", "/v1/prices/preview?from=2026-11-01&to=2026-11-20", {"a": "price file"}),
    ("get", "/v1/prices/waiting", None),
    ("post", "/v1/prices/waiting/{waiting}/accept", None),
    ("get", "/v1/quotas", None),
    ("put", "/v1/quotas/ws-east%2Fllama-chat:tokens_per_minute", {"limit": 1500}),
    ("get", "/v1/quotas", None),
    ("post", "/v1/admission", {"workspace": "ws-east", "deployment": "llama-chat", "tokens": 10_000_000}),
    ("post", "/v1/admission", {"workspace": "ws-east", "deployment": "elsewhere"}),
    ("get", "/v1/admission/denied", None),
    ("post", "/v1/alert-rules", RULE),
    ("get", "/v1/alert-rules", None),
    ("get", "/v1/alert-rules/{rule}", None),
    ("put", "/v1/alert-rules/{rule}", RULE | {"threshold": 10}),
    ("post", "/v1/alert-rules/backtest", {"rule": RULE, **SPAN}),
    ("post", "/v1/budgets", BUDGET),
    ("get", "/v1/budgets", None),
    ("get", "/v1/budgets/{budget}", None),
    ("put", "/v1/budgets/{budget}", BUDGET),
    ("post", "/v1/budgets/backtest", {"budget": BUDGET, **SPAN}),
    ("post", "/v1/silences", SILENCE),
    ("get", "/v1/silences", None),
    ("get", "/v1/silences/{silence}", None),
    ("put", "/v1/silences/{silence}", SILENCE),
    ("get", "/v1/alerts", None),
    ("post", "/v1/alerts/litellm", LITELLM),
    ("post", "/v1/alerts/litellm", LITELLM | {"event": "spend_tracked"}),
    ("get", "/v1/alerts/alt_1", None),
    ("post", "/v1/alerts/alt_1/acknowledge", None),
    ("post", "/v1/silences/{silence}/expire", None),
    ("post", "/v1/webhooks", RECEIVER),
    ("get", "/v1/webhooks", None),
    ("get", "/v1/webhooks/{receiver}", None),
    ("put", "/v1/webhooks/{receiver}", RECEIVER),
    ("post", "/v1/webhooks/{receiver}/rotate", None),
    ("post", "/v1/webhooks/{receiver}/test", None),
    ("get", "/v1/webhooks/{receiver}/deliveries", None),
    ("post", "/v1/webhooks/{receiver}/deliveries/{delivery}/replay", None),
    ("post", "/v1/report-schedules", {"name": "Board", "report": "weekly", "receivers": ["{receiver}"], "folder": "board"}),
    ("get", "/v1/report-schedules", None),
    ("put", "/v1/report-schedules/{schedule}", {"name": "Board", "report": "monthly", "receivers": ["{receiver}"], "folder": "board"}),
    ("get", "/v1/report-schedules/{schedule}/preview", None),
    ("post", "/v1/report-schedules/{schedule}/send", {}),
    ("get", "/v1/report-schedules/{schedule}/deliveries", None),
    ("get", "/v1/reports/daily?day=2026-11-10", None),
    ("get", "/v1/reports/weekly?week=2026-W47", None),
    ("get", "/v1/reports/weekly?week=2026-W46", None),
    ("get", "/v1/reports/monthly?month=2026-10", None),
    ("get", "/v1/reports/monthly?month=2026-11", None),
    ("get", "/v1/reports/close?month=2026-10", None),
    ("get", "/v1/reports/close?month=2026-11", None),
    ("get", "/v1/reports/shared/{link}?format=json", None),
    ("get", "/v1/audit-trail", None),
    ("post", "/v1/usage", [{**CALL, "id": "call-4", "input_tokens": 5, "output_tokens": 1}, {"id": "x"}]),
    ("post", "/v1/usage/openai", {"id": "chatcmpl-1", "object": "chat.completion", "model": "x", "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
    ("post", "/v1/usage/litellm", []),
    ("post", "/v1/usage/azure", {"records": []}),
]
PRICES = "model,meter,unit_price,currency,unit\nLlama-3.3-70B-Instruct,input_tokens,0.60,USD,1M tokens\n"
HEADERS = {"content-type": "application/json", "x-meterbridge-workspace": "ws-east", "x-meterbridge-deployment": "llama-chat"}
# Whose answer says the id that later questions name.
NAMES = {
    "post /v1/alert-rules": "rule",
    "post /v1/budgets": "budget",
    "post /v1/silences": "silence",
    "post /v1/webhooks": "receiver",
    "post /v1/webhooks/{receiver}/test": "delivery",
    "post /v1/report-schedules": "schedule",
    "get /v1/worklist?month=2026-11": "worklist",
    "get /v1/prices/waiting": "waiting",
}


def route_of(paths: Mapping[str, Any], method: str, asked: str) -> str:
    """The described route that the question goes to: the one with the fewest variable parts."""
    parts = asked.partition("?")[0].split("/")
    found = [
        path
        for path, methods in paths.items()
        if method in methods
        and len(path.split("/")) == len(parts)
        and all(said.startswith("{") or said == part for said, part in zip(path.split("/"), parts, strict=True))
    ]
    return min(found, key=lambda path: path.count("{"))


def answered(service: Service) -> Iterator[tuple[str, Any, Any]]:
    """Each question with its route's schema, and the answer."""
    api = service.client.get("/openapi.json").json()
    ids: dict[str, str] = {}
    for method, asked, body in QUESTIONS:
        path = asked
        for name, known in ids.items():
            path = path.replace(f"{{{name}}}", known)
        content = (
            None if body is None else PRICES if "preview" in path and "prices" in path else json.dumps(body).replace("{receiver}", ids.get("receiver", ""))
        )
        answer = service.client.request(method, path, content=content, headers=HEADERS)
        assert answer.status_code // 100 == 2, (method, path, answer.status_code, answer.text)
        found = answer.json()
        if f"{method} {asked}" in NAMES:
            ids[NAMES[f"{method} {asked}"]] = found["items"][0]["id"] if "items" in found else found["id"]
        if isinstance(found.get("snapshot"), dict) and found["snapshot"]["id"] is not None:
            with service.store.read() as session:
                ids["link"] = links.token_of(session, found["snapshot"]["id"], now=NOW) or ""
        route = route_of(api["paths"], method, path)
        described = api["paths"][route][method]["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        yield f"{method} {route}", {**described, "components": api["components"]}, found


def met(schema: Any, value: Any, shapes: Mapping[str, Any]) -> Iterator[str]:
    """The names of the components that parts of this answer are."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield name
        yield from met(shapes[name], value, shapes)
    for one in schema.get("oneOf", ()):
        if Draft202012Validator({**CALL, "components": {"schemas": shapes}}).is_valid(value):
            yield from met(one, value, shapes)
    if isinstance(value, list):
        for item in value:
            yield from met(schema.get("items", {}), item, shapes)
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, part in value.items():
            yield from met(schema.get("properties", {}).get(name, others if isinstance(others, dict) else {}), part, shapes)


def test_every_answer_is_as_it_is_described(world: Service) -> None:
    wrong: list[str] = []
    asked: set[str] = set()
    seen: set[str] = set()
    for name, schema, found in answered(world):
        asked.add(name)
        wrong += [f"{name} {fault.json_path}: {fault.message[:300]}" for fault in Draft202012Validator(strict(schema)).iter_errors(found)]
        seen.update(met(schema, found, schema["components"]["schemas"]))
    assert wrong == [], "collector/api/answers.py describes it otherwise"
    api = world.client.get("/openapi.json").json()
    described = {
        f"{method} {path}"
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
        for status, answer in operation["responses"].items()
        if status.startswith("2") and "application/json" in answer.get("content", {})
    }
    assert described - asked == set()
    # None of the shapes was left without an answer that has it: an empty list is as any description of it says.
    shapes = {name for name in api["components"]["schemas"] if name in components()}
    assert shapes - seen == {"Problem", "UsageSent"}
