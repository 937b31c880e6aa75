"""OTLP spans, log records and metrics: each captured emitter with the events it must become, and nothing of what was said."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.capture import otlp
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.otlp import records
from models.errors import InvalidInput
from models.usage import Flag, Operation, Quality, Status

DATA = Path(__file__).parents[2] / "data" / "otlp"
JSON, PROTOBUF = "application/json", "application/x-protobuf"
# 2026-11-20T10:00:00Z
TEN_O_CLOCK = 1_795_168_800_000_000
RECEIVED_AT = TEN_O_CLOCK + 86_400_000_000
TRACE, SPAN = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"
CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "Llama-3.3-70B-Instruct",
    "gen_ai.usage.input_tokens": 19,
    "gen_ai.usage.output_tokens": 72,
}


def body_of(name: str) -> bytes:
    body = (DATA / name).read_bytes()
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


def traces(body: Any, *, media_type: str = JSON, defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return otlp.capture_traces(raw, media_type=media_type, defaults=defaults or Defaults(), received_at=RECEIVED_AT)


def logs(body: Any, *, media_type: str = JSON, defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return otlp.capture_logs(raw, media_type=media_type, defaults=defaults or Defaults(), received_at=RECEIVED_AT)


def value(said: Any) -> dict[str, Any]:
    match said:
        case bool():
            return {"boolValue": said}
        case int():
            return {"intValue": str(said)}
        case float():
            return {"doubleValue": said}
        case list():
            return {"arrayValue": {"values": [value(one) for one in said]}}
        case dict():
            return {"kvlistValue": {"values": pairs(said)}}
        case bytes():
            return {"bytesValue": "AAAA"}
        case None:
            return {}
    return {"stringValue": said}


def pairs(said: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value(one)} for key, one in said.items()]


def span(said: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": SPAN,
        "name": "chat",
        "startTimeUnixNano": str((TEN_O_CLOCK - 2_000_000) * 1000),
        "endTimeUnixNano": str(TEN_O_CLOCK * 1000),
        "attributes": pairs(CALL if said is None else said),
    } | changes


def request(*spans: Any, resource: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {"attributes": pairs(resource or {})}, "scopeSpans": [{"spans": list(spans)}]}]}


def log_request(*found: dict[str, Any]) -> dict[str, Any]:
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(found)}]}]}


def one(said: dict[str, Any] | None = None, *, resource: dict[str, Any] | None = None, defaults: Defaults | None = None, **changes: Any) -> CapturedEvent:
    (item,) = traces(request(span(said, **changes), resource=resource), defaults=defaults)
    assert isinstance(item, CapturedEvent), item
    return item


def failed(message: str, **said: Any) -> CapturedEvent:
    return one({"gen_ai.operation.name": "chat", **{name.replace("_", ".", 1): each for name, each in said.items()}}, status={"code": 2, "message": message})


def refusal(item: Item) -> Refusal:
    assert isinstance(item, Refusal), item
    return item


def events(items: list[Item]) -> list[CapturedEvent]:
    return [item for item in items if isinstance(item, CapturedEvent)]


# --- a small writer of protobuf, so that both encodings can say the same -----------------------------------------


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    found = b""
    while number > 0x7F:
        found += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return found + bytes((number,))


def field(number: int, content: bytes | int | str) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    raw = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def fixed(number: int, nanoseconds: str | int) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<Q", int(nanoseconds))


def packed_value(said: dict[str, Any]) -> bytes:
    for name, content in said.items():
        match name:
            case "stringValue":
                return field(1, content)
            case "boolValue":
                return field(2, int(content))
            case "intValue":
                return field(3, int(content))
            case "doubleValue":
                return varint(4 << 3 | 1) + struct.pack("<d", content)
            case "arrayValue":
                return field(5, b"".join(field(1, packed_value(each)) for each in content["values"]))
            case "kvlistValue":
                return field(6, packed_pairs(1, content["values"]))
            case "bytesValue":
                return field(7, b"\0\0\0")
    return b""


def packed_pairs(number: int, found: list[dict[str, Any]]) -> bytes:
    return b"".join(field(number, field(1, pair["key"]) + field(2, packed_value(pair["value"]))) for pair in found)


def packed_span(said: dict[str, Any]) -> bytes:
    status = said.get("status", {})
    return (
        field(1, bytes.fromhex(said["traceId"]))
        + field(2, bytes.fromhex(said["spanId"]))
        + field(5, said["name"])
        + field(6, 3)
        + fixed(7, said["startTimeUnixNano"])
        + fixed(8, said["endTimeUnixNano"])
        + packed_pairs(9, said["attributes"])
        + (field(15, field(2, status["message"]) + field(3, status["code"])) if status else b"")
    )


def packed(said: dict[str, Any]) -> bytes:
    """The protobuf of a request of spans, its resource written last, as protobuf allows."""
    return b"".join(
        field(
            1,
            b"".join(field(2, b"".join(field(2, packed_span(each)) for each in scope["spans"])) for scope in group["scopeSpans"])
            + field(1, packed_pairs(1, group["resource"]["attributes"])),
        )
        for group in said["resourceSpans"]
    )


# --- the captured emitters ---------------------------------------------------------------------------------------

OK, MISSING = Status.SUCCESS, Quality.MISSING
LLAMA = "Meta-Llama-3.1-405B-Instruct"
# model, operation, status, input, output, cached, reasoning
Row = tuple[str | None, str, str, int | None, int | None, int | None, int | None]
NINE_CALLS: list[Row] = [
    (LLAMA, "chat", "success", 19, 72, None, None),
    (f"cached-{LLAMA}", "chat", "success", 4100, 72, 3840, 31),
    (LLAMA, "chat", "success", 19, 216, None, None),
    (LLAMA, "chat", "success", 19, 72, None, None),
    (LLAMA, "chat", "success", None, None, None, None),
    ("Meta-Llama-3.1-8B", "text_completion", "success", 19, 72, None, None),
    ("embed-multi", "embeddings", "success", 8, 0, None, None),
    ("err400", "chat", "filtered", None, None, None, None),
    ("err429", "chat", "throttled", None, None, None, None),
]
OPENLLMETRY: list[Row] = [*NINE_CALLS[:6], ("embed-multi", "embeddings", "success", 8, 0, 0, None), *NINE_CALLS[7:]]
OPENINFERENCE: list[Row] = [*NINE_CALLS[:7], (None, "chat", "filtered", None, None, None, None), (None, "chat", "throttled", None, None, None, None)]
# It has no subsets, and no text completions.
CONTRIB_V2: list[Row] = [(*row[:5], None, None) for row in NINE_CALLS if row[1] != "text_completion"]
AZURE_AI_INFERENCE: list[Row] = [
    (LLAMA, "chat", "success", 19, 72, None, None),
    ("Llama-3.3-70B-Instruct", "chat", "success", 19, 72, None, None),
    ("azstream-Llama", "chat", "success", 19, 72, None, None),
    (LLAMA, "chat", "success", None, None, None, None),
    ("err400", "chat", "filtered", None, None, None, None),
    ("err429", "chat", "throttled", None, None, None, None),
]


@pytest.mark.parametrize(
    ("name", "rows", "ignored", "input_tokens", "output_tokens"),
    [
        ("captured-001-otel-openllmetry.body", OPENLLMETRY, 0, 4184, 504),
        ("rendered-001-otel-openllmetry.json", OPENLLMETRY, 0, 4184, 504),
        ("captured-004-otel-openinference-gzip.body", OPENINFERENCE, 0, 4184, 504),
        ("captured-005-otel-azureaiinference.body", AZURE_AI_INFERENCE, 6, 57, 216),
        ("rendered-005-otel-azureaiinference.json", AZURE_AI_INFERENCE, 6, 57, 216),
        ("captured-006-otel-contribv2-default.body", CONTRIB_V2, 0, 4165, 432),
    ],
)
def test_a_captured_emitter_becomes_its_calls(name: str, rows: list[Row], ignored: int, input_tokens: int, output_tokens: int) -> None:
    items = traces(body_of(name), media_type=JSON if name.endswith(".json") else PROTOBUF)
    found = events(items)
    assert [
        (e.model, e.operation.value, e.status.value, e.input_tokens, e.output_tokens, e.cached_input_tokens, e.reasoning_output_tokens) for e in found
    ] == rows
    assert sum(isinstance(item, Ignored) for item in items) == ignored
    assert sum(e.input_tokens or 0 for e in found) == input_tokens
    assert sum(e.output_tokens or 0 for e in found) == output_tokens
    assert {(e.workspace, e.deployment, e.endpoint, e.application, e.source) for e in found} == {
        ("ws-retail", "meta-llama-31-405b-x1", None, "invoice-rag", "default")
    }
    for event in found:
        is_missing = event.status is OK and event.input_tokens is None
        assert (event.quality, event.flags) == ((MISSING, Flag.USAGE_MISSING) if is_missing else (Quality.REPORTED, Flag.NONE))
        assert event.details.get("http_status") == {Status.FILTERED: 400, Status.THROTTLED: 429}.get(event.status)


@pytest.mark.parametrize("name", ["001-otel-openllmetry", "005-otel-azureaiinference"])
def test_json_says_what_protobuf_says(name: str) -> None:
    assert traces(body_of(f"rendered-{name}.json")) == traces(body_of(f"captured-{name}.body"), media_type=PROTOBUF)


def test_the_first_span_of_openllmetry_whole() -> None:
    assert traces(body_of("captured-001-otel-openllmetry.body"), media_type=PROTOBUF)[2] == CapturedEvent(
        id="b42135b8444fabb6fd9a14cdbd3ae04985b07f225c318919",
        time=1_795_211_648_938_449,
        workspace="ws-retail",
        deployment="meta-llama-31-405b-x1",
        model=LLAMA,
        application="invoice-rag",
        input_tokens=19,
        output_tokens=216,
        started_at=1_795_211_648_886_198,
        details={
            "source_format": "otlp_span",
            "response_id": "chatcmpl-de9986c4ac5d4a0ba3e5e6102a3f301d",
            "trace_id": "b42135b8444fabb6fd9a14cdbd3ae049",
            "span_id": "85b07f225c318919",
            "finish_reason": "stop",
            "stream": False,
            "max_tokens": 64,
            "duration_ms": 52,
        },
    )


def test_langfuse_counts_add_up() -> None:
    (event,) = events(traces(body_of("captured-022-langfuse-py.body"), media_type=PROTOBUF))
    assert (event.id, event.time) == ("dff860e0cc87eb245ec998fbe7eb91ed08f59dcfee8b5058", 1_795_211_768_302_178)
    assert (event.input_tokens, event.output_tokens, event.cached_input_tokens) == (47, 21, 10)
    assert (event.model, event.application, event.workspace, event.flags) == (LLAMA, None, None, Flag.NONE)


def test_the_javascript_sdk() -> None:
    (event,) = traces(body_of("captured-026-js-otlp-json.body"))
    assert event == CapturedEvent(
        id="86535dcd676884325f32c77c96151f5c98862b32f8000d16",
        time=1_795_211_770_090_414,
        workspace="ws-retail",
        model="Llama-3.2-90B-Vision-Instruct",
        application="invoice-web",
        input_tokens=640,
        output_tokens=512,
        cached_input_tokens=512,
        reasoning_output_tokens=11,
        started_at=1_795_211_770_090_000,
        details={
            "source_format": "otlp_span",
            "response_id": "chatcmpl-jsd-1",
            "trace_id": "86535dcd676884325f32c77c96151f5c",
            "span_id": "98862b32f8000d16",
            "finish_reason": "length",
            "duration_ms": 0,
        },
    )


def test_a_log_record_of_a_whole_call_counts() -> None:
    (event,) = events(logs(body_of("captured-028-js-otlp-json.body")))
    assert (event.id, event.time, event.input_tokens, event.output_tokens) == ("chatcmpl-jsd-1", 1_795_211_770_144_000, 640, 512)


def test_messages_in_the_log_are_no_calls() -> None:
    items = logs(body_of("captured-008-otel-contribv2-default.body"), media_type=PROTOBUF)
    assert [type(item) for item in items] == [Ignored] * 14


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("captured-002-otel-openllmetry.body", 24),
        ("captured-007-otel-contribv2-default.body", 11),
        ("captured-027-js-otlp-json.body", 3),
        ("otlp-proto-example-metrics.json", 4),
    ],
)
def test_metrics_are_a_witness_only(name: str, points: int) -> None:
    body = body_of(name)
    items = otlp.capture_metrics(body, media_type=JSON if body[:1] == b"{" else PROTOBUF)
    assert len(items) == points
    assert all(isinstance(item, Ignored) for item in items)


def test_other_traffic_is_ignored_not_refused() -> None:
    assert [type(item) for item in traces(body_of("otlp-proto-example-trace.json"))] == [Ignored]


# --- which records are calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "operation"),
    [
        ({"gen_ai.operation.name": "chat"}, Operation.CHAT),
        ({"gen_ai.operation.name": "generate_content"}, Operation.CHAT),
        ({"gen_ai.operation.name": "acompletion"}, Operation.CHAT),
        ({"gen_ai.operation.name": "completion"}, Operation.CHAT),
        ({"gen_ai.operation.name": "text_completion"}, Operation.TEXT_COMPLETION),
        ({"gen_ai.operation.name": "atext_completion"}, Operation.TEXT_COMPLETION),
        ({"gen_ai.operation.name": "embeddings"}, Operation.EMBEDDINGS),
        ({"gen_ai.operation.name": "embedding"}, Operation.EMBEDDINGS),
        ({"gen_ai.operation.name": "rerank", "gen_ai.response.id": "r-1", "gen_ai.usage.input_tokens": 5}, Operation.OTHER),
        ({"llm.request.type": "completion"}, Operation.TEXT_COMPLETION),
        ({"llm.request.type": "chat"}, Operation.CHAT),
        ({"openinference.span.kind": "LLM"}, Operation.CHAT),
        ({"openinference.span.kind": "EMBEDDING"}, Operation.EMBEDDINGS),
        ({"langfuse.observation.type": "generation"}, Operation.CHAT),
        ({"langfuse.observation.type": "embedding"}, Operation.EMBEDDINGS),
        ({"gen_ai.usage.prompt_tokens": 5, "gen_ai.usage.completion_tokens": 2, "gen_ai.request.model": "Llama"}, Operation.CHAT),
    ],
)
def test_a_call_of_a_model_by_any_of_its_marks(said: dict[str, Any], operation: Operation) -> None:
    assert one(said).operation is operation


TOKENS = {"gen_ai.usage.input_tokens": 19, "gen_ai.usage.output_tokens": 72, "gen_ai.request.model": "Llama"}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        *(({"gen_ai.operation.name": name, **TOKENS}, name) for name in ("invoke_agent", "invoke_workflow", "execute_tool", "create_agent", "plan")),
        *(({"openinference.span.kind": kind, **TOKENS}, "run") for kind in ("AGENT", "CHAIN", "TOOL", "RETRIEVER")),
        *(({"langfuse.observation.type": kind, **TOKENS}, "run") for kind in ("span", "agent", "tool", "chain")),
        ({"traceloop.span.kind": "workflow", **TOKENS}, "rag.workflow"),
        ({**CALL}, "raw_gen_ai_request"),
        ({"gen_ai.operation.name": "handoff", "gen_ai.usage.input_tokens": 5}, "handoff"),
        ({"http.request.method": "POST", "http.response.status_code": 429, "error.type": "429", "server.address": "host"}, "POST"),
        ({"gen_ai.system": "openai"}, "nothing said"),
        ({"gen_ai.usage.input_tokens": 5}, "tokens of nothing"),
        ({}, "empty"),
    ],
)
def test_what_repeats_a_call_or_is_none_is_ignored(said: dict[str, Any], name: str) -> None:
    items = traces(request(span(said, name=name), span(CALL)))
    assert [type(item) for item in items] == [Ignored, CapturedEvent]


def test_an_agent_with_its_call_counts_once() -> None:
    agent = span({"gen_ai.operation.name": "invoke_agent", **TOKENS}, spanId="00f067aa0ba902b7")
    chat = span(CALL, parentSpanId="00f067aa0ba902b7")
    web = span({"http.request.method": "POST", "http.response.status_code": 200}, spanId="00f067aa0ba902b8", parentSpanId=SPAN)
    assert [(e.input_tokens, e.output_tokens) for e in events(traces(request(agent, chat, web)))] == [(19, 72)]


# --- ids and times -----------------------------------------------------------------------------------------------


def test_the_id_of_a_span_is_its_place_in_lower_case() -> None:
    event = one(traceId=TRACE.upper(), spanId=SPAN.upper())
    assert event.id == "5b8efff798038103d269b633813fc60ceee19b7ec3c1b174"
    assert (event.details["trace_id"], event.details["span_id"]) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "changes",
    [
        {"traceId": "W47/95gDgQPSabYzgT/GDA=="},
        {"spanId": "7uGbfsPBsXQ="},
        {"traceId": ""},
        {"traceId": None},
        {"spanId": "0" * 16},
        {"traceId": "0" * 32},
        {"traceId": TRACE[:-1]},
        {"traceId": TRACE + "\n"},
    ],
)
def test_a_call_without_a_valid_place_is_refused_alone(changes: dict[str, Any]) -> None:
    items = traces(request(span(**changes), span()))
    assert refusal(items[0]).error == "malformed"
    assert isinstance(items[1], CapturedEvent)


def test_the_id_of_a_log_record() -> None:
    record = {"attributes": pairs({**CALL, "gen_ai.response.id": "chatcmpl-1"}), "timeUnixNano": str(TEN_O_CLOCK * 1000)}
    placed = record | {"traceId": TRACE, "spanId": SPAN, "eventName": "gen_ai.client.inference.operation.details"}
    invalid = record | {"traceId": "0" * 32, "spanId": SPAN}
    nameless = record | {"attributes": pairs(CALL)}
    found = events(logs(log_request(placed, record, invalid, nameless)))
    assert [event.id for event in found] == [TRACE + SPAN + "gen_ai.client.inference.operation.details", "chatcmpl-1", "chatcmpl-1", None]


def test_a_log_record_knows_when_it_was_seen() -> None:
    record = {"attributes": pairs(CALL), "observedTimeUnixNano": TEN_O_CLOCK * 1000 + 999}
    (event,) = events(logs(log_request(record)))
    assert (event.time, event.started_at) == (TEN_O_CLOCK, None)


def test_a_log_record_without_counts_is_a_call_only_by_its_name() -> None:
    said = {"gen_ai.operation.name": "chat"}
    details = {"attributes": pairs({**said, "event.name": "gen_ai.client.inference.operation.details"})}
    fault = {"attributes": pairs(said), "eventName": "gen_ai.client.operation.exception"}
    items = logs(log_request(details, fault))
    assert [type(item) for item in items] == [CapturedEvent, Ignored]
    assert events(items)[0].quality is Quality.MISSING


@pytest.mark.parametrize(
    ("started", "ended", "time", "started_at"),
    [
        (TEN_O_CLOCK * 1000 - 1, TEN_O_CLOCK * 1000 + 999, TEN_O_CLOCK, TEN_O_CLOCK - 1),
        (TEN_O_CLOCK * 1000 + 1000, TEN_O_CLOCK * 1000, TEN_O_CLOCK, None),  # a clock that was set back
        (0, 0, None, None),
        (1000, 2000, None, None),  # a clock that was never set
        (TEN_O_CLOCK * 1000, 0, None, TEN_O_CLOCK),
        (RECEIVED_AT * 1000 + 1000, 0, None, None),
        (0, float(TEN_O_CLOCK * 1000), TEN_O_CLOCK, None),  # a sender without 64-bit integers
    ],
)
def test_times_that_can_be_believed(started: int, ended: float, time: int | None, started_at: int | None) -> None:
    event = one(startTimeUnixNano=str(started), endTimeUnixNano=ended)
    assert (event.time, event.started_at) == (time, started_at)


# --- where it belongs --------------------------------------------------------------------------------------------


def test_our_own_attributes_win_and_the_span_wins_over_its_resource() -> None:
    resource = {
        "meterbridge.deployment": "own",
        "azure.ml.workspace.name": "ws-azure",
        "meterbridge.team": "search",
        "meterbridge.source": "sidecar",
        "service.name": "rag",
    }
    event = one({**CALL, "meterbridge.workspace": "ws-own", "azure.ml.deployment.name": "azures", "meterbridge.team": "ads"}, resource=resource)
    assert (event.workspace, event.deployment, event.team, event.source, event.application) == ("ws-own", "own", "ads", "sidecar", "rag")


def test_the_request_says_what_the_span_does_not() -> None:
    defaults = Defaults(source="k", workspace="w", endpoint="e", deployment="d", model="m", application="a", team="t", user="u", ended_at=TEN_O_CLOCK)
    event = one({"gen_ai.operation.name": "chat"}, defaults=defaults, resource={"service.name": "rag"}, endTimeUnixNano="0")
    assert (event.source, event.workspace, event.endpoint, event.deployment, event.model) == ("k", "w", "e", "d", "m")
    assert (event.application, event.team, event.details["user"], event.time) == ("a", "t", "u", TEN_O_CLOCK)
    named = one({**CALL, "meterbridge.endpoint": "e2", "meterbridge.application": "b"}, defaults=defaults)
    assert (named.endpoint, named.deployment, named.application) == ("e2", None, "b")


def test_nothing_said_is_nothing_known() -> None:
    event = one(
        {"gen_ai.operation.name": "chat", "gen_ai.response.model": ""}, resource={"service.name": "unknown_service:node", "azure.ml.workspace.name": ""}
    )
    assert (event.workspace, event.endpoint, event.deployment, event.application, event.team, event.model) == (None,) * 6


@pytest.mark.parametrize(
    ("said", "model"),
    [
        ({"gen_ai.request.model": "chat", "gen_ai.system": "az.ai.inference"}, None),
        ({"gen_ai.request.model": "chat", "gen_ai.response.model": "Llama-3.3-70B-Instruct"}, "Llama-3.3-70B-Instruct"),
        ({"gen_ai.request.model": "router", "gen_ai.response.model": "Llama-4"}, "Llama-4"),
        ({"llm.model_name": "Llama-4"}, "Llama-4"),
    ],
)
def test_the_model(said: dict[str, Any], model: str | None) -> None:
    assert one({"gen_ai.operation.name": "chat", **said}).model == model


def test_headers_and_addresses_are_kept_for_the_receipt() -> None:
    event = one(
        {
            **CALL,
            "server.address": "llama.eastus2.models.ai.azure.com",
            "http.response.header.apim-request-id": ["b0fc"],
            "http.response.header.azureml-model-deployment": ["llama-3"],
            "http.response.status_code": 200,
            "gen_ai.request.choice.count": 3,
            "gen_ai.request.stream": True,
        }
    )
    assert event.deployment == "llama-3"
    assert event.details == {
        "source_format": "otlp_span",
        "request_id": "b0fc",
        "trace_id": TRACE,
        "span_id": SPAN,
        "http_status": 200,
        "stream": True,
        "choices": 3,
        "server_address": "llama.eastus2.models.ai.azure.com",
        "duration_ms": 2000,
    }


@pytest.mark.parametrize(
    ("attribute", "content", "error"),
    [
        ("meterbridge.workspace", "w" * 257, "invalid_value"),
        ("meterbridge.deployment", "a\0b", "invalid_value"),
        ("gen_ai.response.model", "\ud800", "invalid_value"),
        ("azure.ml.deployment.name", 7, "schema_invalid"),
        ("meterbridge.team", {"a": "b"}, "schema_invalid"),
    ],
)
def test_a_damaged_name_is_refused_rather_than_changed(attribute: str, content: Any, error: str) -> None:
    items = traces(request(span({**CALL, attribute: content}), span()))
    assert refusal(items[0]).error == error
    assert attribute in refusal(items[0]).detail
    assert isinstance(items[1], CapturedEvent)


def test_what_is_kept_for_the_receipt_only_is_left_out_when_damaged() -> None:
    event = one({**CALL, "gen_ai.response.id": "a\nb", "server.address": "x" * 300}, resource={"service.name": "a\0"})
    assert "response_id" not in event.details
    assert "server_address" not in event.details
    assert event.application is None


# --- counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "figure"),
    [
        (records.INPUT, "input_tokens"),
        (records.OUTPUT, "output_tokens"),
        (records.CACHED, "cached_input_tokens"),
        (records.REASONING, "reasoning_output_tokens"),
    ],
)
def test_every_name_of_a_count_is_read_and_the_newest_wins(names: tuple[str, ...], figure: str) -> None:
    rest = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 900, "gen_ai.usage.output_tokens": 900}
    for place, name in enumerate(names):
        others = {key: number for key, number in rest.items() if key not in names}
        older = names[place + 1 :]
        agreeing = one({**others, name: 41, **dict.fromkeys(older, 41)})
        assert (getattr(agreeing, figure), agreeing.flags) == (41, Flag.NONE)
        for other in older:
            event = one({**others, other: 40, name: 41})
            assert (getattr(event, figure), event.flags) == (41, Flag.CONFLICTING_ATTRIBUTES)


def test_no_counts_on_success_are_unknown() -> None:
    event = one({"gen_ai.operation.name": "chat"})
    assert (event.input_tokens, event.output_tokens, event.quality, event.flags) == (None, None, Quality.MISSING, Flag.USAGE_MISSING)


def test_zeros_on_success_are_unknown_too() -> None:
    event = one({"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0})
    assert (event.input_tokens, event.output_tokens, event.quality) == (None, None, Quality.MISSING)
    assert event.flags == Flag.USAGE_MISSING | Flag.ZERO_USAGE


def test_zeros_of_a_failure_are_none() -> None:
    event = one({"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0, "error.type": "429"})
    assert (event.input_tokens, event.output_tokens, event.quality, event.flags) == (None, None, Quality.REPORTED, Flag.NONE)


@pytest.mark.parametrize(
    ("counts", "figures", "quality", "flags"),
    [
        ({"input_tokens": 19, "total_tokens": 91}, (19, 72), Quality.DERIVED, Flag.NONE),
        ({"output_tokens": 72, "total_tokens": 91}, (19, 72), Quality.DERIVED, Flag.NONE),
        ({"input_tokens": 19, "output_tokens": 72, "total_tokens": 91}, (19, 72), Quality.REPORTED, Flag.NONE),
        ({"input_tokens": 19, "output_tokens": 72, "total_tokens": 99}, (19, 72), Quality.REPORTED, Flag.TOTAL_MISMATCH),
        ({"input_tokens": 19, "total_tokens": 9}, (19, None), Quality.MISSING, Flag.TOTAL_MISMATCH | Flag.USAGE_MISSING),
        ({"total_tokens": 91}, (None, None), Quality.MISSING, Flag.USAGE_MISSING),
    ],
)
def test_a_total_fills_the_one_gap(counts: dict[str, int], figures: tuple[int | None, int | None], quality: Quality, flags: Flag) -> None:
    event = one({"gen_ai.operation.name": "chat", **{f"gen_ai.usage.{name}": count for name, count in counts.items()}})
    assert ((event.input_tokens, event.output_tokens), event.quality, event.flags) == (figures, quality, flags)
    is_evidence = bool(flags & Flag.TOTAL_MISMATCH) or None in figures
    assert event.details.get("total_tokens_reported") == (counts.get("total_tokens") if is_evidence else None)


@pytest.mark.parametrize(("said", "input_tokens", "output_tokens"), [({"input_tokens": 8}, 8, 0), ({"total_tokens": 8}, 8, 0), ({}, None, None)])
def test_embeddings_have_no_output(said: dict[str, int], input_tokens: int | None, output_tokens: int | None) -> None:
    event = one({"gen_ai.operation.name": "embeddings", **{f"gen_ai.usage.{name}": count for name, count in said.items()}})
    assert (event.input_tokens, event.output_tokens) == (input_tokens, output_tokens)


def test_a_part_larger_than_its_whole_is_unknown() -> None:
    event = one({**CALL, "gen_ai.usage.cache_read.input_tokens": 20, "gen_ai.usage.reasoning.output_tokens": 72})
    assert (event.input_tokens, event.cached_input_tokens, event.reasoning_output_tokens) == (19, None, 72)
    assert event.flags == Flag.SUBSET_EXCEEDS_TOTAL


@pytest.mark.parametrize(("content", "flags"), [(19, Flag.NONE), (19.0, Flag.COERCED), ("19", Flag.COERCED), ("19.0", Flag.COERCED)])
def test_a_count_by_the_value_rule(content: Any, flags: Flag) -> None:
    event = one({**CALL, "gen_ai.usage.input_tokens": content})
    assert (event.input_tokens, event.flags) == (19, flags)


@pytest.mark.parametrize("content", [True, -1, 1.5, 2**53, "many", "", "1e3", float("nan"), float("inf"), [19], {"a": 1}, b"19"])
def test_what_is_no_count_is_refused_alone(content: Any) -> None:
    items = traces(request(span({**CALL, "gen_ai.usage.input_tokens": content}), span()))
    assert refusal(items[0]).error == "invalid_value"
    assert "gen_ai.usage.input_tokens" in refusal(items[0]).detail
    assert isinstance(items[1], CapturedEvent)


def test_a_number_may_be_written_as_a_number_or_a_text() -> None:
    said = pairs({"gen_ai.operation.name": "chat"})
    for number in (4123, "4123"):
        event = one(attributes=[*said, {"key": "gen_ai.usage.input_tokens", "value": {"intValue": number}}])
        assert (event.input_tokens, event.flags & Flag.COERCED) == (4123, 0)


@pytest.mark.parametrize(
    ("usage", "figures", "flags"),
    [
        # input, output, cached, reasoning
        ({"input": 37, "output": 21}, (37, 21, None, None), Flag.NONE),
        ({"input": 37, "output": 21, "total": 58}, (37, 21, None, None), Flag.NONE),
        ({"input": 37, "output": 21, "cache_read_input_tokens": 10, "total": 68}, (47, 21, 10, None), Flag.NONE),
        ({"input": 37, "output": 21, "input_cached_tokens": 10, "output_reasoning_tokens": 4}, (47, 25, 10, 4), Flag.NONE),
        ({"input": 37, "output": 21, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 10}, (52, 21, 10, None), Flag.NONE),
        ({"input": 37, "output": 21, "input_cached_tokens": 10, "output_reasoning_tokens": 4, "total": 58}, (37, 21, 10, 4), Flag.NONE),
        ({"input": 37, "output": 21, "cache_read_input_tokens": 10, "total": 99}, (47, 21, 10, None), Flag.TOTAL_MISMATCH),
        ({"input": 37, "total": 58}, (37, 21, None, None), Flag.NONE),
        ({"prompt_tokens": 37, "completion_tokens": 21, "prompt_tokens_details": {"cached_tokens": 10, "audio": None}}, (37, 21, 10, None), Flag.NONE),
    ],
)
def test_langfuse_usage(usage: dict[str, Any], figures: tuple[int | None, ...], flags: Flag) -> None:
    event = one({"langfuse.observation.type": "generation", "langfuse.observation.usage_details": json.dumps(usage)})
    assert (event.input_tokens, event.output_tokens, event.cached_input_tokens, event.reasoning_output_tokens) == figures
    assert event.flags == flags


@pytest.mark.parametrize(
    "usage", ['{"input": true}', '{"input": -1}', '{"input": 1.5}', '{"input": 9007199254740991, "cache": 1}', "[1]", "{", "[" * 20_000, 5]
)
def test_langfuse_usage_that_is_none(usage: Any) -> None:
    items = traces(request(span({"langfuse.observation.type": "generation", "langfuse.observation.usage_details": usage}), span()))
    assert refusal(items[0]).error in {"invalid_value", "schema_invalid"}
    assert isinstance(items[1], CapturedEvent)


# --- how it ended ------------------------------------------------------------------------------------------------

OPENAI_FILTER = "Error code: 400 - {'error': {'message': 'The response was filtered', 'type': None, 'param': 'prompt', 'code': 'content_filter'}}"
AZURE_FILTER = "(content_filter) The response was filtered.\nCode: content_filter\nMessage: The response was filtered."


@pytest.mark.parametrize(
    ("event", "status", "http_status"),
    [
        (failed("Error code: 429 - {'error': {'code': '429'}}", error_type="RateLimitError"), Status.THROTTLED, 429),
        (failed("(429) Rate limit is exceeded.\nCode: 429", error_type="azure.core.exceptions.HttpResponseError"), Status.THROTTLED, 429),
        (failed("", error_type="openai.RateLimitError"), Status.THROTTLED, 429),
        (failed("", error_type="429"), Status.THROTTLED, 429),
        (failed("", http_response_status_code="unread"), Status.ERROR, None),
        (failed(OPENAI_FILTER, error_type="BadRequestError"), Status.FILTERED, 400),
        (failed(AZURE_FILTER, error_type="azure.core.exceptions.HttpResponseError"), Status.FILTERED, 400),
        (failed("", error_type="litellm.ContentPolicyViolationError"), Status.FILTERED, 400),
        (failed("Error code: 400 - {'error': {'code': 'BadRequest'}}", error_type="BadRequestError"), Status.ERROR, 400),
        (failed("Error code: 500", error_type="InternalServerError"), Status.ERROR, 500),
        (failed("Request timed out.", error_type="APITimeoutError"), Status.ERROR, None),
        (failed("no type"), Status.ERROR, None),
        (one({"gen_ai.operation.name": "chat", "error.type": "timeout"}), Status.ERROR, None),
        (one({"gen_ai.operation.name": "chat", "http.response.status_code": 429}), Status.THROTTLED, 429),
        (one({"gen_ai.operation.name": "chat", "http.response.status_code": 503}), Status.ERROR, 503),
        (one({"langfuse.observation.type": "generation", "langfuse.observation.level": "ERROR"}), Status.ERROR, None),
    ],
)
def test_how_a_call_failed(event: CapturedEvent, status: Status, http_status: int | None) -> None:
    assert (event.status, event.details.get("http_status")) == (status, http_status)
    assert (event.input_tokens, event.output_tokens, event.quality, event.flags) == (None, None, Quality.REPORTED, Flag.NONE)


@pytest.mark.parametrize(
    ("reasons", "status", "reason"),
    [
        (["stop", "content_filter"], Status.FILTERED, "content_filter"),
        (["length"], Status.SUCCESS, "length"),
        ('["stop"]', Status.SUCCESS, "stop"),
        ("stop", Status.SUCCESS, "stop"),
        (["a text of a person"], Status.SUCCESS, None),
        ("[" * 20_000, Status.SUCCESS, None),
        ([], Status.SUCCESS, None),
    ],
)
def test_how_an_answer_ended(reasons: Any, status: Status, reason: str | None) -> None:
    event = one({**CALL, "gen_ai.response.finish_reasons": reasons})
    assert (event.status, event.details.get("finish_reason")) == (status, reason)
    assert (event.input_tokens, event.output_tokens) == (19, 72)  # an answer that was filtered is billed


@pytest.mark.parametrize(
    ("answer", "response_id"),
    [
        ('{"id": "chatcmpl-1", "choices": [{"message": {"content": "hello"}}]}', "chatcmpl-1"),
        ('{"id": "an application\'s own answer"}', None),
        ('{"id": "with spaces in it", "choices": []}', None),
        ('{"id": "chatcmpl-1", "choices": [{"message": {"cont', None),
        ("hello", None),
        ("[" * 20_000, None),
        (5, None),
    ],
)
def test_openinference_has_the_response_id_inside_the_answer(answer: Any, response_id: str | None) -> None:
    event = one({"openinference.span.kind": "LLM", "output.value": answer})
    assert event.details.get("response_id") == response_id
    assert "hello" not in str(event)


# --- what must not be kept, and what must not break --------------------------------------------------------------

SECRET = "canary sk-live-4711"
KEPT_BY_NAME = {
    *records.RESPONSE_MODEL,
    *records.REQUEST_MODEL,
    *records.WORKSPACE,
    *records.ENDPOINT,
    *records.DEPLOYMENT,
    *records.APPLICATION,
    *records.TEAM,
    *records.REQUEST_ID,
    "service.name",
    "server.address",
    "gen_ai.response.id",
}


def with_secrets(said: Any, *, key: str = "") -> Any:
    """The request with the secret in every text but ids, times, and the names that an event is made of."""
    if isinstance(said, dict):
        if isinstance(said.get("key"), str):
            if said["key"] in KEPT_BY_NAME:
                return said
            return {"key": said["key"], "value": with_secrets(said.get("value"), key=said["key"])}
        return {name: with_secrets(each, key=name) for name, each in said.items()}
    if isinstance(said, list):
        return [with_secrets(each, key=key) for each in said]
    is_fixed = key in {"traceId", "spanId", "parentSpanId"} or key.endswith("Nano") or key in {"gen_ai.operation.name", "openinference.span.kind", "intValue"}
    if isinstance(said, str) and not is_fixed:
        return f"{said} {SECRET}"
    return said


def texts_of(items: list[Item]) -> str:
    return "\n".join(str(item) for item in items)


@pytest.mark.parametrize(
    "name",
    ["rendered-001-otel-openllmetry.json", "rendered-005-otel-azureaiinference.json", "captured-026-js-otlp-json.body", "captured-028-js-otlp-json.body"],
)
def test_no_text_but_the_named_ones_is_kept(name: str) -> None:
    said = json.loads(body_of(name))
    changed = with_secrets(said)
    assert json.dumps(changed).count(SECRET) >= 4
    items = logs(changed) if "-028-" in name else traces(changed)
    assert len(items) == len(logs(said) if "-028-" in name else traces(said))
    assert any(isinstance(item, CapturedEvent) for item in items)
    assert SECRET not in texts_of(items)


# Where texts lie in a protobuf request, by field number: an attribute, or a text of its own.
PAIR, TEXT = "pair", "text"
SPAN_TEXTS = {3: TEXT, 5: TEXT, 9: PAIR, 11: {2: TEXT, 3: PAIR}, 13: {3: TEXT, 4: PAIR}, 15: {2: TEXT}}
LOG_TEXTS = {3: TEXT, 5: {1: TEXT}, 6: PAIR}


def request_texts(record: dict[int, Any]) -> dict[int, Any]:
    return {1: {1: {1: PAIR}, 2: {1: {1: TEXT, 2: TEXT, 3: PAIR}, 2: record, 3: TEXT}, 3: TEXT}}


def read_varint(body: bytes, at: int) -> tuple[int, int]:
    end = next(place for place in range(at, len(body)) if body[place] < 0x80) + 1
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(body[at:end])), end


def packed_with_secrets(body: bytes, texts: dict[int, Any]) -> bytes:
    """The message with the secret in each of its texts, but in those that an event is made of."""
    found, at = b"", 0
    while at < len(body):
        start = at
        tag, at = read_varint(body, at)
        if tag & 7 != 2:
            at = read_varint(body, at)[1] if tag & 7 == 0 else at + (8 if tag & 7 == 1 else 4)
            found += body[start:at]
            continue
        size, at = read_varint(body, at)
        inner, at = body[at : at + size], at + size
        place = texts.get(tag >> 3)
        if place is TEXT:
            inner += SECRET.encode()
        elif place is PAIR:
            key = inner[2 : 2 + inner[1]].decode()
            if key not in KEPT_BY_NAME | {
                "gen_ai.operation.name",
                "openinference.span.kind",
                "langfuse.observation.type",
                "langfuse.observation.usage_details",
            }:
                inner = packed_with_secrets(inner, {2: {1: TEXT, 5: {1: {1: TEXT}}, 6: {1: {2: {1: TEXT}}}}})
        elif place:
            inner = packed_with_secrets(inner, place)
        found += field(tag >> 3, inner)
    return found


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("captured-001-otel-openllmetry.body", 9),
        ("captured-004-otel-openinference-gzip.body", 9),
        ("captured-005-otel-azureaiinference.body", 6),
        ("captured-006-otel-contribv2-default.body", 8),
        ("captured-008-otel-contribv2-default.body", 0),
        ("captured-022-langfuse-py.body", 1),
    ],
)
def test_no_text_of_a_protobuf_capture_but_the_named_ones_is_kept(name: str, calls: int) -> None:
    read, texts = (logs, LOG_TEXTS) if "-008-" in name else (traces, SPAN_TEXTS)
    changed = packed_with_secrets(body_of(name), request_texts(texts))
    assert changed.count(SECRET.encode()) >= 10
    items = read(changed, media_type=PROTOBUF)
    assert len(events(items)) == calls
    assert not [item for item in items if isinstance(item, Refusal)]
    kept = texts_of(items)
    for said in (SECRET, "languages", "Paris", "capital", "content management", "Try again", "Traceback", "pk-lf", "azsdk", "http:"):
        assert said not in kept


@pytest.mark.parametrize("attribute", sorted({"gen_ai.prompt.0.content", "api-key", "http.request.header.authorization", *records.WANTED} - KEPT_BY_NAME))
def test_each_attribute_alone_with_a_secret(attribute: str) -> None:
    own = {"meterbridge.source", "meterbridge.user"}
    (item,) = traces(request(span({**CALL, attribute: SECRET})))
    assert (SECRET in str(item)) is (attribute in own)


def test_error_texts_are_read_and_dropped() -> None:
    event = failed(f"Error code: 429 - {{'error': {{'code': '429', 'message': '{SECRET}'}}}} Code: {SECRET}", error_type=f"Fault {SECRET}")
    assert event.status is Status.THROTTLED
    assert "canary" not in str(event)


@pytest.mark.parametrize("capture", [traces, logs, lambda body, media_type: otlp.capture_metrics(body, media_type=media_type)])
@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"{", JSON),
        (b"[]", JSON),
        (b"null x", JSON),
        (b'{"resourceSpans": {}, "resourceLogs": {}, "resourceMetrics": {}}', JSON),
        (b'{"resourceSpans": [1], "resourceLogs": [1], "resourceMetrics": [1]}', JSON),
        (b'{"a": "\xff"}', JSON),
        (b'{"a":' * 20_000, JSON),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, JSON),
        (b'{"resourceSpans": []}', PROTOBUF),
        (b"\xff" * 30, PROTOBUF),
        (b"\x0a\x05ab", PROTOBUF),
        (b"\x0a", PROTOBUF),
        (b"\x0a" + b"\xff" * 9 + b"\x01", PROTOBUF),
        (b"\x0b\x0c", PROTOBUF),
        (b"\x02\x00", PROTOBUF),
        (b"\x09\x00", PROTOBUF),
        (b"\x0a\x02\x0a\x05", PROTOBUF),
        (gzip.compress(b"{}", mtime=0), PROTOBUF),
    ],
)
def test_a_body_that_cannot_be_read(capture: Callable[..., list[Item]], body: bytes, media_type: str) -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(body, media_type=media_type)
    assert fault.value.error == "malformed"


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.iterdir()))
def test_a_capture_that_was_cut_off_is_malformed(name: str) -> None:
    body = body_of(name)
    is_json = body[:1] == b"{"
    for size in {1, 2, len(body) // 3, len(body) // 2, len(body) - (2 if is_json else 1)}:
        with pytest.raises(InvalidInput):
            traces(body[:size], media_type=JSON if is_json else PROTOBUF)


@pytest.mark.parametrize("media_type", [None, "", "text/plain", "application/grpc"])
def test_the_media_type_must_be_known(media_type: str | None) -> None:
    with pytest.raises(InvalidInput) as fault:
        otlp.capture_traces(b"", media_type=media_type, defaults=Defaults(), received_at=RECEIVED_AT)
    assert fault.value.error == "unsupported_media_type"


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", PROTOBUF),
        (b"", JSON),
        (b"{}", "application/json; charset=utf-8"),
        (b'{"resource_spans": [{}]}', JSON),  # snake_case is an unknown field, and those are ignored
        (b'{"resourceSpans": [{"scopeSpans": null}], "resourceLogs": null}', JSON),
        (b"\x10\x01\x1a\x01a\x25abcd", "Application/X-Protobuf"),
        (b"\x08\x01", PROTOBUF),  # a field of another kind than it should be is an unknown one
    ],
)
def test_an_empty_request_is_no_fault(body: bytes, media_type: str) -> None:
    assert traces(body, media_type=media_type) == logs(body, media_type=media_type) == otlp.capture_metrics(body, media_type=media_type) == []


def test_unknown_fields_are_ignored() -> None:
    body = request(span(CALL, newField={"deep": [[1]]}, flags=257, kind="SPAN_KIND_CLIENT", droppedAttributesCount=3))
    assert len(events(traces(body))) == 1


@pytest.mark.parametrize(
    "broken",
    [
        7,
        "span",
        {"traceId": 5},
        {"attributes": {}},
        {"attributes": [5]},
        {"status": "error"},
        {"endTimeUnixNano": "soon"},
        {"endTimeUnixNano": -1},
        {"endTimeUnixNano": 2**64},
        {"endTimeUnixNano": True},
        {"endTimeUnixNano": 10**400},
    ],
)
def test_one_broken_span_costs_no_neighbour(broken: Any) -> None:
    items = traces(request(span(), broken, span()))
    assert [type(item) for item in items] == [CapturedEvent, Refusal, CapturedEvent]
    assert refusal(items[1]).error == "schema_invalid"


@pytest.mark.parametrize(
    "broken",
    [
        b"\x0a\x10abc",  # an id that ends early
        b"\x4a\x02\x0a\x09",  # an attribute whose key ends early
        field(9, field(1, "gen_ai.operation.name") + field(2, field(1, b"\xff"))),
        field(9, field(1, "gen_ai.operation.name") + field(2, b"\x0a\x7f")),
        b"\x78" + b"\xff" * 10 + b"\x01",
    ],
)
def test_one_broken_span_costs_no_neighbour_in_protobuf(broken: bytes) -> None:
    good = packed_span(span())
    body = field(1, field(2, field(2, good) + field(2, broken) + field(2, good)))
    items = traces(body, media_type=PROTOBUF)
    assert [type(item) for item in items] == [CapturedEvent, Refusal, CapturedEvent]
    assert refusal(items[1]).error == "malformed"


def test_a_prompt_that_is_not_utf8_costs_nothing() -> None:
    body = field(1, field(2, field(2, packed_span(span()) + field(9, field(1, "gen_ai.prompt") + field(2, field(1, b"\xff\xfe"))))))
    assert len(events(traces(body, media_type=PROTOBUF))) == 1


def test_values_nested_without_end_are_not_entered() -> None:
    inner = field(1, "x")
    for _ in range(3_000):
        inner = field(5, field(1, inner))
    attribute = field(9, field(1, "gen_ai.response.finish_reasons") + field(2, inner))
    body = field(1, field(2, field(2, packed_span(span()) + attribute)))
    assert len(events(traces(body, media_type=PROTOBUF))) == 1


def test_too_many_records_are_refused_before_they_fill_the_memory() -> None:
    spans = field(1, field(2, b"\x12\x00" * 500_001))
    for body, media_type in ((spans, PROTOBUF), (b"\x0a\x00" * 500_001, PROTOBUF), (b'{"resourceSpans": [' + b"{}," * 2_000_001 + b"{}]}", JSON)):
        with pytest.raises(InvalidInput) as fault:
            traces(body, media_type=media_type)
        assert fault.value.error == "too_large"


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=12)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2), max_leaves=5)
CASES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(st.lists(st.dictionaries(st.sampled_from(sorted(records.WANTED)) | st.text(max_size=5), VALUES, max_size=8), max_size=4))
@CASES
def test_both_encodings_say_the_same_whatever_is_said(said: list[dict[str, Any]]) -> None:
    body = request(*(span({**CALL, **each}) for each in said), resource=said[0] if said else {})
    items = traces(body)
    assert len(items) == len(said)
    assert traces(packed(body), media_type=PROTOBUF) == items


@given(st.sampled_from(sorted(path.name for path in DATA.iterdir())), st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=4)), min_size=1, max_size=6))
@CASES
def test_a_damaged_capture_is_read_or_refused(name: str, damages: list[tuple[int, bytes]]) -> None:
    body = bytearray(body_of(name))
    for place, found in damages:
        at = place % len(body)
        body[at : at + len(found) or at + 1] = found
    check_any_outcome(bytes(body))


@given(st.binary(max_size=60))
@CASES
def test_noise_is_read_or_refused(body: bytes) -> None:
    check_any_outcome(body)
    check_any_outcome(field(1, field(2, field(2, body))))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "key",
                    "value",
                    "stringValue",
                    "intValue",
                    "arrayValue",
                    "values",
                    "attributes",
                    "resource",
                    "scopeSpans",
                    "spans",
                    "status",
                    "traceId",
                    "name",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON_VALUES)
@CASES
def test_any_json_is_read_or_refused(said: Any) -> None:
    check_any_outcome(json.dumps(said).encode())
    check_any_outcome(json.dumps({"resourceSpans": said, "resourceLogs": said, "resourceMetrics": said}).encode())
    check_any_outcome(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [said]}]}]}).encode())


def check_any_outcome(body: bytes) -> None:
    for media_type in (JSON, PROTOBUF):
        for capture in (traces, logs, lambda body, media_type: otlp.capture_metrics(body, media_type=media_type)):
            try:
                items = capture(body, media_type=media_type)
            except InvalidInput as fault:
                assert fault.error in {"malformed", "too_large"}  # noqa: PT017 - reading is an outcome, too
            else:
                assert all(isinstance(item, CapturedEvent | Refusal | Ignored) for item in items)


# --- what is said back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["traces", "logs", "metrics"])
def test_full_success_leaves_partial_success_unset(kind: otlp.Kind) -> None:
    assert otlp.answer(kind, PROTOBUF, 0, None) == (b"", PROTOBUF)
    assert otlp.answer(kind, "application/json; charset=utf-8", 0, None) == (b"{}", JSON)


@pytest.mark.parametrize(("kind", "name"), [("traces", "rejectedSpans"), ("logs", "rejectedLogRecords"), ("metrics", "rejectedDataPoints")])
def test_partial_success(kind: otlp.Kind, name: str) -> None:
    body, media_type = otlp.answer(kind, JSON, 3, "item 1: no count")
    assert (json.loads(body), media_type) == ({"partialSuccess": {name: "3", "errorMessage": "item 1: no count"}}, JSON)
    # partial_success (1) of 20 bytes: rejected (1) = 300, error_message (2) of 15 bytes
    assert otlp.answer(kind, PROTOBUF, 300, "item 1: no coun")[0] == b"\x0a\x14\x08\xac\x02\x12\x0fitem 1: no coun"


def test_a_warning_is_a_message_without_a_refusal() -> None:
    assert otlp.answer("traces", JSON, 0, "were these snake_case names?")[0] == b'{"partialSuccess":{"errorMessage":"were these snake_case names?"}}'
    assert otlp.answer("traces", PROTOBUF, 0, "ok")[0] == b"\x0a\x04\x12\x02ok"


@pytest.mark.parametrize(("http_status", "code"), [(400, 3), (401, 16), (403, 7), (413, 3), (415, 3), (429, 8), (503, 14), (418, 2)])
def test_an_error_is_a_status(http_status: int, code: int) -> None:
    body, media_type = otlp.status_body(JSON, http_status, "cut off")
    assert (json.loads(body), media_type) == ({"code": code, "message": "cut off"}, JSON)
    assert otlp.status_body(PROTOBUF, http_status, "cut off") == (bytes((8, code)) + b"\x12\x07cut off", PROTOBUF)
    assert otlp.status_body("text/plain", http_status, "")[1] == PROTOBUF
