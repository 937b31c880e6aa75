"""Waste and witnesses over HTTP: parameters, shape, and the caller's own workspaces."""

from __future__ import annotations

from typing import Any

import pytest

from tests.collector.api.serving import Service, bearer


def sent(service: Service, *events: dict[str, Any]) -> None:
    facts = {"time": "2026-11-20T09:00:00Z", "workspace": "ws-east", "deployment": "llama-chat", "model": "llama", "input_tokens": 100, "output_tokens": 10}
    answer = service.client.post("/v1/usage", json=[{"id": f"e-{number}", **facts, **event} for number, event in enumerate(events)])
    assert answer.status_code == 200, answer.text


def test_waste_by_deployment(service_on_both: Service) -> None:
    service = service_on_both
    sent(
        service,
        {"finish_reason": "stop"},
        {"finish_reason": "length"},
        {"finish_reason": "content_filter", "status": "filtered"},
        {"finish_reason": "stop", "best_of": 5, "choices": 1},
        {"status": "throttled", "input_tokens": None, "output_tokens": None, "http_status": 429},
    )
    answer = service.client.get("/v1/waste").json()
    assert (answer["from"], answer["to"]) == ("2026-11-13T10:00:00Z", "2026-11-20T10:00:00Z")
    (row,) = answer["rows"]
    assert {name: row[name] for name in ("workspace", "deployment", "requests", "answered", "filtered", "filtered_share")} == {
        "workspace": "ws-east",
        "deployment": "llama-chat",
        "requests": 5,
        "answered": 4,
        "filtered": 1,
        "filtered_share": "0.25",
    }
    assert row["finish_reasons"] == {"content_filter": 1, "length": 1, "stop": 2}
    assert {kind: (one["requests"], one["output_tokens"], one["estimate"]) for kind, one in row["waste"].items()} == {
        "candidates": (1, 8, True),
        "content_filter": (1, 10, False),
        "length": (1, 10, False),
        "throttled": (1, 0, False),
    }
    assert (row["waste"]["length"]["cost"], row["waste"]["length"]["reason"]) == (None, "these tokens have no price")
    assert service.client.get("/v1/waste", params={"deployment": "other"}).json()["rows"] == []


@pytest.mark.parametrize(("path", "query"), [("/v1/waste", {"form": "x"}), ("/v1/waste", {"from": "2026-01-01"}), ("/v1/witnesses", {"granularity": "week"})])
def test_a_question_that_cannot_be_answered_is_refused(service: Service, path: str, query: dict[str, str]) -> None:
    answer = service.client.get(path, params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_witnesses_by_hour_and_only_of_ones_own_workspaces(service: Service) -> None:
    point = {
        "timestamp": "2026-11-20T09:01:00Z",
        "name": "Prompt Tokens",
        "valueSum": 120,
        "customDimensions": {"API ID": "llama-api", "Backend ID": "llama-chat"},
    }
    sent(service, {})
    answer = service.client.post("/v1/usage/azure", json=[point, {**point, "name": "Total Tokens"}], headers={"x-meterbridge-workspace": "ws-east"})
    assert (answer.status_code, answer.json()["ignored"], answer.json()["accepted"]) == (200, 2, 0)
    (row,) = service.client.get("/v1/witnesses", params={"granularity": "hour"}).json()["rows"]
    shown = {name: row[name] for name in ("period_start", "kind", "service", "measure", "scope", "witnessed", "counted", "difference", "share", "disagrees")}
    assert shown == {
        "period_start": "2026-11-20T09:00:00Z",
        "kind": "appinsights",
        "service": "API Management llama-api",
        "measure": "input",
        "scope": "at_least",
        "witnessed": 120,
        "counted": 100,
        "difference": 20,
        "share": "0.2",
        "disagrees": True,
    }
    service.key()
    assert service.client.get("/v1/witnesses", headers=bearer(service.key("read", "ws-west"))).json()["rows"] == []
    assert service.client.get("/v1/waste", headers=bearer(service.key("read", "ws-west"))).json()["rows"] == []
