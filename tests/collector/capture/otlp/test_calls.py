"""What is read of one call: its id and times, where it belongs, its counts and how it ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from collector.capture.event import CapturedEvent, Defaults, Ignored
from collector.capture.otlp import records
from models.usage import Flag, Quality, Status
from tests.collector.capture.otlp.messages import CALL, RECEIVED_AT, SPAN, TEN_O_CLOCK, TRACE, events, failed, logs, one, pairs, refusal, request, span, traces


def log_request(*found: dict[str, Any]) -> dict[str, Any]:
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(found)}]}]}


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
