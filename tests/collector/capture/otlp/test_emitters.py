"""Each captured emitter becomes its calls, and a call that is told twice counts once."""

from __future__ import annotations

from typing import Any

import pytest

from collector.capture import otlp
from collector.capture.event import CapturedEvent, Ignored
from models.usage import Flag, Operation, Quality, Status
from tests.collector.capture.otlp.messages import CALL, JSON, PROTOBUF, SPAN, body_of, events, logs, one, request, span, traces

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
