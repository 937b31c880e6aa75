"""What the documentation of the models says of addresses, deployments and keys, through the route that takes raw answers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from models.quotas import EndpointFact
from tests import factories as make
from tests.collector.api.serving import NOW, Service

KEY = "0123456789abcdef0123456789abcdef"  # as long as Azure's are
SERVERLESS = "https://llama-70b.eastus2.inference.ai.azure.com/v1/chat/completions"
ONLINE = "https://llama-online.westus3.inference.ml.azure.com/v1/chat/completions"
DAY = {"from": "2026-11-20", "to": "2026-11-21"}


def call(name: str, url: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": "x"}}
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    response = {"id": name, "object": "chat.completion", "model": "", "choices": [choice], "usage": usage}
    return {"url": url, "response": response, "ended_at": "2026-11-20T09:00:00Z", **more}


def inventory(service: Service) -> None:
    with service.store.write() as session:
        make.workspace_fact(session)
        make.serverless(session, "llama-70b")
        for name in ("blue", "green"):
            make.managed(session, f"llama-online/{name}")
        facts: dict[str, Any] = {"workspace": "ws-east", "endpoint": "llama-online", "subscription_id": make.SUBSCRIPTION}
        session.add(EndpointFact(**facts, traffic={"blue": 75, "green": 25}, known_from=make.LONG_AGO, seen_at=make.LONG_AGO))


def send(service: Service, *calls: dict[str, Any]) -> None:
    answer = service.client.post("/v1/usage/openai", json=list(calls))
    assert answer.json()["accepted"] == len(calls), answer.text


def listed(service: Service) -> set[tuple[Any, ...]]:
    items = service.client.get("/v1/usage", params=DAY).json()["items"]
    return {(one["response_id"], one["workspace"], one["deployment"], one["model"], one["mode"]) for one in items}


def test_an_address_is_its_deployment_and_its_workspace(service_on_both: Service) -> None:
    service = service_on_both
    inventory(service)
    send(service, call("c-1", SERVERLESS), call("c-2", ONLINE, headers={"azureml-model-deployment": "blue"}))
    assert listed(service) == {
        ("c-1", "ws-east", "llama-70b", make.MODEL, "serverless"),
        ("c-2", "ws-east", "llama-online/blue", make.MODEL, "managed_compute"),
    }


def test_of_several_deployments_behind_one_address_the_header_tells_else_the_traffic(service: Service) -> None:
    inventory(service)
    # A hundred of them, one in each quarter hour: the units go round.
    start = NOW - timedelta(hours=40)
    calls = [call(f"c-{number}", ONLINE) | {"ended_at": (start + timedelta(minutes=15 * number)).isoformat()} for number in range(100)]
    send(service, *calls, call("pinned", ONLINE, headers={"azureml-model-deployment": "green"}))
    rows = service.client.get("/v1/costs", params={"from": "2026-11-18", "to": "2026-11-21", "granularity": "none", "group_by": "deployment"}).json()["rows"]
    found = {row["deployment"]: (row["requests"], row["input_tokens"], row["estimate"]) for row in rows}
    assert found == {"llama-online/blue": (75, 7_500, True), "llama-online/green": (26, 2_600, True)}


def test_a_key_of_thirty_two_characters_is_stored_nowhere(service: Service) -> None:
    inventory(service)
    headers = {"api-key": KEY, "authorization": f"Bearer {KEY}", "x-request-id": "request-1"}
    asked = {"messages": [{"role": "user", "content": KEY}], "user": KEY, "stop": KEY}
    send(service, call("c-1", f"{SERVERLESS}?api-key={KEY}", headers=headers, request_headers=headers, request=asked))
    with service.store.read() as session:
        tables = session.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all()
        kept = repr([list(session.execute(sa.text(f'SELECT * FROM "{name}"'))) for name in tables])
    assert "request-1" in kept
    assert KEY not in kept
    assert KEY not in service.client.get("/metrics").text
