"""Data points of OTLP metrics as witnesses: which of them are, their identity, and both encodings alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import Parse  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from collector.capture import otlp
from collector.capture.aggregates import Point
from collector.capture.event import Defaults, Ignored, Item, Refusal

NINE = 1_795_165_200
BEGAN = NINE - 600
OLD = "gen_ai.client.token.usage"


def metric(name: str = OLD, kind: str = "histogram", temporality: int = 2, **point: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"sum": 57.0, "count": "2"} if "istogram" in kind else {"asInt": "57"}
    said = {"startTimeUnixNano": f"{BEGAN}000000000", "timeUnixNano": f"{NINE}000000000", "attributes": [pair("gen_ai.token.type", "input")], **value, **point}
    return {"name": name, kind: {"aggregationTemporality": temporality, "dataPoints": [{key: found for key, found in said.items() if found is not None}]}}


def pair(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def body(*metrics: dict[str, Any], **resource: str) -> dict[str, Any]:
    named = {"service.name": "invoice-rag", "meterbridge.deployment": "llama-chat"} | {key.replace("_", "."): value for key, value in resource.items()}
    attributes = [pair(key, value) for key, value in named.items()]
    return {"resourceMetrics": [{"resource": {"attributes": attributes}, "scopeMetrics": [{"scope": {"name": "s"}, "metrics": list(metrics)}]}]}


def capture(said: dict[str, Any], *, is_json: bool, defaults: Defaults | None = None) -> list[Item]:
    text = json.dumps(said)
    raw = text.encode() if is_json else Parse(text, ExportMetricsServiceRequest()).SerializeToString()
    return otlp.capture_metrics(raw, media_type="application/json" if is_json else "application/x-protobuf", defaults=defaults)


BOTH = pytest.mark.parametrize("is_json", [True, False], ids=["json", "protobuf"])


@BOTH
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (metric(), ("input", "cumulative", 57)),
        (metric(temporality=1), ("input", "delta", 57)),
        (metric(kind="exponentialHistogram"), ("input", "cumulative", 57)),
        (metric(attributes=[pair("gen_ai.token.type", "completion")]), ("output", "cumulative", 57)),
        (metric("gen_ai.client.inference.usage.output_tokens", "sum"), ("output", "cumulative", 57)),
        (metric("gen_ai.client.inference.usage.cache_read.input_tokens", "sum", asInt=None, asDouble=12.0), ("cached_input", "cumulative", 12)),
        (metric("gen_ai.client.inference.usage.reasoning.output_tokens", "sum"), ("reasoning_output", "cumulative", 57)),
        (metric("gen_ai.client.inference.operation.input_tokens"), ("input", "cumulative", 57)),
        (metric("vllm:generation_tokens_total", "sum"), ("output", "cumulative", 57)),
    ],
)
def test_what_a_point_witnesses(said: dict[str, Any], expected: tuple[str, str, int], is_json: bool) -> None:
    (found,) = capture(body(said), is_json=is_json)
    assert isinstance(found, Point)
    assert (found.measure, found.temporality, found.value) == expected
    assert (found.service, found.application, found.deployment, found.time, found.started_at) == (
        "invoice-rag",
        "invoice-rag",
        "llama-chat",
        NINE * 1_000_000,
        BEGAN * 1_000_000,
    )


@BOTH
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(metric(attributes=[pair("gen_ai.token.type", "total")]), id="a total repeats its parts"),
        pytest.param(metric(attributes=[]), id="no type"),
        pytest.param(metric("gen_ai.client.operation.duration"), id="another metric"),
        pytest.param(metric("gen_ai.client.inference.usage.input_tokens", "gauge"), id="a gauge adds up to nothing"),
        pytest.param(metric(temporality=0), id="neither a difference nor a sum"),
        pytest.param(metric(sum=None), id="no value"),
    ],
)
def test_points_that_witness_nothing(said: dict[str, Any], is_json: bool) -> None:
    if not is_json:
        said = json.loads(json.dumps(said).replace('"gauge": {"aggregationTemporality": 2, ', '"gauge": {'))
    (found,) = capture(body(said), is_json=is_json)
    assert type(found) is Ignored


@BOTH
@pytest.mark.parametrize(("changes", "error"), [({"sum": 1.5}, "invalid_value"), ({"sum": -1.0}, "invalid_value"), ({"timeUnixNano": "0"}, "invalid_time")])
def test_points_that_cannot_be(changes: dict[str, Any], error: str, is_json: bool) -> None:
    good, bad = metric(), metric(**changes)
    found = capture(body(bad, good), is_json=is_json)
    assert [type(item) for item in found] == [Refusal, Point]
    assert isinstance(found[0], Refusal)
    assert found[0].error == error


@BOTH
def test_a_series_is_its_resource_scope_name_and_attributes_in_any_order(is_json: bool) -> None:
    def digest(*attributes: dict[str, Any], defaults: Defaults | None = None, **resource: str) -> bytes:
        said = metric(attributes=[pair("gen_ai.token.type", "input"), *attributes])
        (found,) = capture(body(said, **resource), is_json=is_json, defaults=defaults)
        assert isinstance(found, Point)
        return found.digest

    assert digest() == digest()
    assert digest(pair("a", "1"), pair("b", "2")) == digest(pair("b", "2"), pair("a", "1"))
    others = [digest(pair("server.port", "1")), digest(service_instance_id="a"), digest(service_instance_id="b"), digest(defaults=Defaults(workspace="w"))]
    assert len({digest(), *others}) == 5


@BOTH
def test_the_request_says_where_it_is_from(is_json: bool) -> None:
    said = body(metric())
    said["resourceMetrics"][0]["resource"] = {}
    (found,) = capture(said, is_json=is_json, defaults=Defaults(workspace="ws-east", deployment="d", application="app"))
    assert isinstance(found, Point)
    assert (found.workspace, found.deployment, found.application, found.service) == ("ws-east", "d", "app", "unknown service")
