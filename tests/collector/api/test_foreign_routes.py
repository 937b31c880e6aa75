"""The routes of other senders' formats: each is answered as its own clients expect, and counts once."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.collector.api.serving import Service

DATA = Path(__file__).resolve().parents[2] / "data"
HERE = {"x-meterbridge-workspace": "ws-east", "x-meterbridge-deployment": "llama-chat"}


def sent(service: Service, path: str, body: bytes, **headers: str) -> httpx.Response:
    return service.client.post(path, content=body, headers={**HERE, **{name.replace("_", "-"): value for name, value in headers.items()}})


def stored(service: Service) -> int:
    return len(service.client.get("/v1/usage", params={"from": "2023-01-01", "to": "2027-01-01", "limit": 1000}).json()["items"])


def test_litellm_is_answered_200_whatever_was_in_it(service: Service) -> None:
    body = (DATA / "litellm" / "captured-010-litellm-json_array.body").read_bytes()
    first = sent(service, "/v1/usage/litellm", body, content_type="application/json")
    again = sent(service, "/v1/usage/litellm", body, content_type="application/json")
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["accepted"] == stored(service) > 0
    assert (again.json()["accepted"], again.json()["duplicates"]) == (0, first.json()["accepted"])
    broken = sent(service, "/v1/usage/litellm", b'{"model": ', content_type="application/json")
    assert (broken.status_code, broken.json()["rejected"][0]["error"]) == (200, "malformed")


def test_cloudevents_are_answered_204_and_counted_once(service: Service) -> None:
    body = (DATA / "cloudevents" / "captured-015-py-cloudevents-structured.body").read_bytes()
    for _ in range(2):
        answer = sent(service, "/api/v1/events", body, content_type="application/cloudevents+json")
        assert (answer.status_code, answer.content) == (204, b"")
    assert stored(service) == 1


def test_a_refused_cloudevent_is_a_400_that_lists_it_and_costs_no_neighbour(service: Service) -> None:
    good = {
        "specversion": "1.0",
        "id": "a",
        "source": "gateway",
        "type": "llm.usage",
        "time": "2026-11-20T09:00:00Z",
        "data": {"input_tokens": 3, "output_tokens": 1},
    }
    answer = sent(
        service, "/api/v1/events", json.dumps([good, {**good, "id": "b", "specversion": "0.3"}]).encode(), content_type="application/cloudevents-batch+json"
    )
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert [(one["index"], one["error"]) for one in answer.json()["rejected"]] == [(1, "unsupported_version")]
    assert stored(service) == 1


@pytest.mark.parametrize("name", ["eventhub-diagnostic-gatewayllmlogs.json", "loganalytics-apimanagementgatewayllmlog.json"])
def test_azure_batches_are_stored_once(service: Service, name: str) -> None:
    body = (DATA / "azure_usage" / name).read_bytes()
    first = sent(service, "/v1/usage/azure", body, content_type="application/json")
    again = sent(service, "/v1/usage/azure", body, content_type="application/json")
    assert first.status_code == 200, first.text
    assert first.json()["accepted"] == stored(service) > 0
    assert again.json()["accepted"] == 0


def test_otlp_is_answered_in_its_own_words(service: Service) -> None:
    body = (DATA / "otlp" / "captured-001-otel-openllmetry.body").read_bytes()
    for _ in range(2):
        answer = sent(service, "/otlp/v1/traces", body, content_type="application/x-protobuf")
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "application/x-protobuf", b"")
    assert stored(service) == 9
    as_json = sent(service, "/otlp/v1/traces", b"{}", content_type="application/json")
    assert (as_json.status_code, as_json.json()) == (200, {})
    bad = sent(service, "/otlp/v1/logs", b"{", content_type="application/json")
    assert (bad.status_code, bad.headers["content-type"], bad.json()["code"]) == (400, "application/json", 3)
    assert sent(service, "/otlp/v1/metrics", b"", content_type="text/plain").status_code == 415


def test_a_span_without_a_workspace_is_a_partial_success(service: Service) -> None:
    body = (DATA / "otlp" / "rendered-001-otel-openllmetry.json").read_bytes().replace(b"workspace", b"elsewhere")
    answer = service.client.post("/otlp/v1/traces", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert int(answer.json()["partialSuccess"]["rejectedSpans"]) == 9
    assert "workspace" in answer.json()["partialSuccess"]["errorMessage"]


@pytest.mark.parametrize("path", ["/v1/usage/litellm", "/v1/usage/azure", "/api/v1/events", "/otlp/v1/traces"])
def test_keys_hold_on_every_route(service: Service, path: str) -> None:
    service.key("admin")
    reader = service.key("read")
    assert service.client.post(path, content=b"[]").status_code == 401
    assert service.client.post(path, content=b"[]", headers={"authorization": f"Bearer {reader}"}).status_code == 403
