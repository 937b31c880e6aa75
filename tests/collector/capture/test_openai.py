"""Raw OpenAI and Azure bodies: each recorded shape with the event that it must become, and nothing of what was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.capture import openai
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from models.errors import InvalidInput
from models.usage import Flag, Operation, Quality, Status

DATA = Path(__file__).parents[2] / "data" / "openai"
# 2026-11-20T10:00:00Z
TEN_O_CLOCK = 1_795_168_800_000_000
RECEIVED_AT = TEN_O_CLOCK + 86_400_000_000

USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}


def capture(body: Any, *, media_type: str | None = None, headers: dict[str, str] | None = None, defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return openai.capture(raw, media_type=media_type, headers=headers or {}, defaults=defaults or Defaults(), received_at=RECEIVED_AT)


def one(body: Any, **said: Any) -> CapturedEvent:
    (item,) = capture(body, **said)
    assert isinstance(item, CapturedEvent), item
    return item


def refusal(body: Any, **said: Any) -> Refusal:
    (item,) = capture(body, **said)
    assert isinstance(item, Refusal), item
    return item


def chat(**changes: Any) -> dict[str, Any]:
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_795_168_790,
        "model": "Llama-3.3-70B-Instruct",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
        "usage": USAGE,
    }
    return {name: value for name, value in (answer | changes).items() if value != "absent"}


def stream(*chunks: dict[str, Any] | str, done: bool = True) -> str:
    lines = [chunk if isinstance(chunk, str) else "data: " + json.dumps(chunk) for chunk in chunks]
    return "\n\n".join([*lines, "data: [DONE]"] if done else lines) + "\n\n"


def chunk(**changes: Any) -> dict[str, Any]:
    piece = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_795_168_790, "model": "Llama-3.3-70B-Instruct"}
    return piece | {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]} | changes


ENDED = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

RECORDED: dict[str, dict[str, Any]] = {
    "azure-openai-chat.json": {
        "id": "chatcmpl-9HpbZPf84KZFiQG6fdY0KVtIwHyIa",
        "time": 1_714_036_973_000_000,
        "model": "gpt-35-turbo",
        "input_tokens": 15,
        "output_tokens": 24,
        "details": {
            "source_format": "openai_response",
            "response_id": "chatcmpl-9HpbZPf84KZFiQG6fdY0KVtIwHyIa",
            "request_id": "8a3ae7c6-2eb5-45ea-947e-b4218c7ca1a5",
            "finish_reason": "stop",
            "http_status": 200,
            "choices": 1,
            "ratelimit_remaining_tokens": 119984,
            "ratelimit_remaining_requests": 119,
        },
    },
    "azure-openai-chat-2026.json": {
        "id": "chatcmpl-DPTBKC5U7aQYydhXIGw4HbPc0HcVT",
        "time": 1_774_962_746_000_000,
        "deployment": "openllmetry-testing",
        "model": "gpt-4.1-mini-2025-04-14",
        "input_tokens": 16,
        "output_tokens": 22,
        "cached_input_tokens": 0,
        "reasoning_output_tokens": 0,
        "details": {
            "source_format": "openai_response",
            "response_id": "chatcmpl-DPTBKC5U7aQYydhXIGw4HbPc0HcVT",
            "request_id": "f93b3050-42ab-44dd-936f-7bc80fba2799",
            "finish_reason": "stop",
            "http_status": 200,
            "choices": 1,
            "ratelimit_remaining_tokens": 119986,
            "ratelimit_remaining_requests": 119,
            "ratelimit_limit_tokens": 120_000,
            "ratelimit_limit_requests": 120,
        },
    },
    "azure-openai-reasoning.json": {
        "id": "chatcmpl-C6EJeKZdEaC0VeeKH3lWwJBjCTcpd",
        "time": 1_755_601_034_000_000,
        "deployment": "gpt-5-nano",
        "model": "gpt-5-nano-2025-08-07",
        "input_tokens": 11,
        "output_tokens": 203,
        "cached_input_tokens": 0,
        "reasoning_output_tokens": 192,
        "details": {
            "source_format": "openai_response",
            "response_id": "chatcmpl-C6EJeKZdEaC0VeeKH3lWwJBjCTcpd",
            "request_id": "aebd8320-f701-4e7d-801f-2955f84e3811",
            "finish_reason": "stop",
            "http_status": 200,
            "choices": 1,
            "ratelimit_remaining_tokens": 99994,
            "ratelimit_remaining_requests": 99,
            "ratelimit_limit_tokens": 100_000,
            "ratelimit_limit_requests": 100,
        },
    },
    "azure-openai-output-filtered.json": {
        "id": "chatcmpl-9HpyGSWv1hoKdGaUaiFhfxzTEVlZo",
        "time": 1_714_038_380_000_000,
        "model": "gpt-35-turbo",
        "status": Status.FILTERED,
        "input_tokens": 15,
        "output_tokens": 19,
        "details": {
            "source_format": "openai_response",
            "response_id": "chatcmpl-9HpyGSWv1hoKdGaUaiFhfxzTEVlZo",
            "request_id": "6624fbc0-526e-4c5f-b98c-fb96daf3c582",
            "finish_reason": "content_filter",
            "http_status": 200,
            "choices": 1,
            "ratelimit_remaining_tokens": 119984,
            "ratelimit_remaining_requests": 119,
        },
    },
    # Recorded with HTTP 200; the error object knows better.
    "azure-openai-prompt-filtered.json": {
        "id": "6624fbc0-526e-4c5f-b98c-fb96daf3c582",
        "time": None,
        "operation": Operation.OTHER,
        "status": Status.FILTERED,
        "details": {
            "source_format": "openai_response",
            "request_id": "6624fbc0-526e-4c5f-b98c-fb96daf3c582",
            "http_status": 400,
            "error_code": "content_filter",
            "ratelimit_remaining_tokens": 119984,
            "ratelimit_remaining_requests": 119,
        },
    },
    "azure-openai-deployment-not-found.json": {
        "id": "229984e1-2885-42a2-9668-09b5037db6ea",
        "time": None,
        "operation": Operation.OTHER,
        "status": Status.ERROR,
        "details": {
            "source_format": "openai_response",
            "request_id": "229984e1-2885-42a2-9668-09b5037db6ea",
            "http_status": 404,
            "error_code": "DeploymentNotFound",
        },
    },
    "azure-openai-stream-no-usage.sse": {
        "id": "chatcmpl-9HpbaAXyt0cAnlWvI8kUAFpZt5jyQ",
        "time": 1_714_036_974_000_000,
        "model": "gpt-35-turbo",
        "quality": Quality.MISSING,
        "flags": Flag.USAGE_MISSING,
        "details": {
            "source_format": "openai_response",
            "response_id": "chatcmpl-9HpbaAXyt0cAnlWvI8kUAFpZt5jyQ",
            "request_id": "90ada254-7916-4e05-a761-c290afc3ea2a",
            "finish_reason": "stop",
            "http_status": 200,
            "choices": 1,
            "stream": True,
            "ratelimit_remaining_tokens": 119968,
            "ratelimit_remaining_requests": 118,
        },
    },
    "mslearn-serverless-chat.json": {
        "id": "0a1234b5de6789f01gh2i345j6789klm",
        "time": 1_718_726_686_000_000,
        "model": "Meta-Llama-3.1-405B-Instruct",
        "input_tokens": 19,
        "output_tokens": 72,
        "details": {"source_format": "openai_response", "response_id": "0a1234b5de6789f01gh2i345j6789klm", "finish_reason": "stop", "choices": 1},
    },
    # Its ``created`` is a day in January 1970.
    "mslearn-text-completion.json": {
        "id": "12345678-1234-1234-1234-abcdefghijkl",
        "time": None,
        "operation": Operation.TEXT_COMPLETION,
        "input_tokens": 7,
        "output_tokens": 16,
        "details": {"source_format": "openai_response", "response_id": "12345678-1234-1234-1234-abcdefghijkl", "finish_reason": "stop", "choices": 1},
    },
    "mslearn-chat-empty-model.json": {
        "id": "12345678-1234-1234-1234-abcdefghijkl",
        "time": None,
        "model": None,
        "input_tokens": 10,
        "output_tokens": 30,
        "details": {"source_format": "openai_response", "response_id": "12345678-1234-1234-1234-abcdefghijkl", "finish_reason": "stop", "choices": 1},
    },
    "mslearn-serverless-stream.sse": {
        "id": "23b54589eba14564ad8a2e6978775a39",
        "time": 1_718_726_371_000_000,
        "model": "Meta-Llama-3.1-405B-Instruct",
        "input_tokens": 19,
        "output_tokens": 72,
        "details": {
            "source_format": "openai_response",
            "response_id": "23b54589eba14564ad8a2e6978775a39",
            "finish_reason": "stop",
            "choices": 1,
            "stream": True,
        },
    },
    "mslearn-content-filter-400.json": {
        "id": None,
        "time": None,
        "operation": Operation.OTHER,
        "status": Status.FILTERED,
        "details": {"source_format": "openai_response", "http_status": 400, "error_code": "content_filter"},
    },
    "synthetic-stream-include-usage.sse": {
        "id": "chatcmpl-dev-inc",
        "time": 1_795_212_000_000_000,
        "model": "Llama-3.3-70B-Instruct",
        "input_tokens": 11,
        "output_tokens": 2,
        "details": {"source_format": "openai_response", "response_id": "chatcmpl-dev-inc", "finish_reason": "stop", "choices": 1, "stream": True},
    },
    "synthetic-stream-truncated.sse": {
        "id": "chatcmpl-dev-inc",
        "time": 1_795_212_000_000_000,
        "model": "Llama-3.3-70B-Instruct",
        "status": Status.INCOMPLETE,
        "quality": Quality.MISSING,
        "flags": Flag.USAGE_MISSING | Flag.STREAM_TRUNCATED,
        "details": {"source_format": "openai_response", "response_id": "chatcmpl-dev-inc", "finish_reason": None, "choices": 1, "stream": True},
    },
    "synthetic-n3-cached.json": {
        "id": "chatcmpl-dev-n3",
        "time": 1_795_212_001_000_000,
        "model": "Llama-3.3-70B-Instruct",
        "input_tokens": 1500,
        "output_tokens": 96,
        "cached_input_tokens": 1408,
        "reasoning_output_tokens": 12,
        "details": {"source_format": "openai_response", "response_id": "chatcmpl-dev-n3", "finish_reason": "stop", "choices": 3},
    },
    "synthetic-429.json": {
        "id": "5f1a8a16-7b0a-4d5d-9a3c-111111111111",
        "time": None,
        "operation": Operation.OTHER,
        "status": Status.THROTTLED,
        "details": {
            "source_format": "openai_response",
            "request_id": "5f1a8a16-7b0a-4d5d-9a3c-111111111111",
            "http_status": 429,
            "error_code": "429",
            "ratelimit_remaining_tokens": 0,
        },
    },
}


def recorded_headers(name: str) -> dict[str, str]:
    meta = DATA / (name.partition(".")[0] + ".meta.json")
    if not meta.exists():
        return {}
    said = json.loads(meta.read_text())
    return {**said["response_headers"], "x-meterbridge-status": str(said["http_status"])}


def test_every_recorded_body_has_an_expectation() -> None:
    assert {path.name for path in DATA.iterdir() if not path.name.endswith(".meta.json")} == set(RECORDED)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_body_becomes_its_event(name: str) -> None:
    assert one((DATA / name).read_bytes(), headers=recorded_headers(name)) == CapturedEvent(**RECORDED[name])


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_body_in_an_envelope_becomes_the_same_event(name: str) -> None:
    headers = recorded_headers(name)
    status = headers.pop("x-meterbridge-status", None)
    text = (DATA / name).read_text()
    for response in [text] if name.endswith(".sse") else [text, json.loads(text)]:
        envelope = {"response": response, "status": status, "headers": {key.upper(): value for key, value in headers.items()}}
        assert capture([envelope, envelope]) == [CapturedEvent(**RECORDED[name])] * 2


def test_an_envelope_tells_who_where_and_when() -> None:
    event = one(
        {
            "request": {"model": "llama", "n": 2, "best_of": 3, "max_tokens": 512, "stream": False, "user": "u-7", "messages": []},
            "response": chat(model="", choices=[]),
            "status": 200,
            "headers": {"X-MS-Deployment-Name": "other", "APIM-Request-Id": "apim-1", "x-ratelimit-remaining-tokens": "-1", "x-ms-is-spilled-over": "True"},
            "workspace": "finance",
            "deployment": "llama-70b",
            "started_at": "2026-11-20T09:59:58.5Z",
            "ended_at": "2026-11-20T12:00:00+02:00",
        },
        headers={"x-meterbridge-workspace": "w", "x-meterbridge-application": "support", "x-meterbridge-team": "care", "x-meterbridge-source": "gateway"},
    )
    assert event == CapturedEvent(
        id="chatcmpl-1",
        time=TEN_O_CLOCK,
        source="gateway",
        workspace="finance",
        deployment="llama-70b",
        model="llama",
        application="support",
        team="care",
        input_tokens=11,
        output_tokens=2,
        flags=Flag.SPILLOVER,
        started_at=TEN_O_CLOCK - 1_500_000,
        details={
            "source_format": "openai_response",
            "response_id": "chatcmpl-1",
            "request_id": "apim-1",
            "http_status": 200,
            "choices": 2,
            "best_of": 3,
            "max_tokens": 512,
            "stream": False,
            "user": "u-7",
            "duration_ms": 1500,
        },
    )


def test_headers_tell_the_same_about_a_raw_body() -> None:
    event = one(
        chat(model="absent", created=0),
        headers={
            "x-meterbridge-workspace": "finance",
            "x-meterbridge-deployment": "llama-70b",
            "x-meterbridge-started-at": "2026-11-20T09:59:58Z",
            "x-meterbridge-ended-at": "2026-11-20T10:00:00Z",
            "x-meterbridge-status": "200",
            "x-meterbridge-user": "u-7",
            "x-meterbridge-model": "Llama-3.3-70B-Instruct",
            "azureml-model-deployment": "blue",
        },
        defaults=Defaults(workspace="w", deployment="d", source="key"),
    )
    assert (event.workspace, event.deployment, event.model, event.source) == ("finance", "llama-70b", "Llama-3.3-70B-Instruct", "key")
    assert (event.time, event.started_at, event.details["duration_ms"], event.details["user"]) == (TEN_O_CLOCK, TEN_O_CLOCK - 2_000_000, 2000, "u-7")


def test_the_provider_names_the_deployment_where_nobody_else_does() -> None:
    assert one(chat(), headers={"azureml-model-deployment": "blue"}).deployment == "blue"
    assert one(chat(), headers={"azureml-model-deployment": "blue", "x-ms-deployment-name": "green"}).deployment == "green"
    assert one(chat(), headers={"x-ms-deployment-name": "green"}, defaults=Defaults(endpoint="e")).deployment is None


def test_many_envelopes_come_as_an_array_or_as_lines_and_share_no_request_id() -> None:
    envelopes = [{"response": chat(id="a")}, {"response": chat(id="")}, {"response": stream(chunk(id="c"))}]
    lines = "\n".join(json.dumps(envelope) for envelope in envelopes)
    for items in (
        capture(envelopes, headers={"x-request-id": "ours"}),
        capture(lines, headers={"x-request-id": "ours"}),
        capture(lines, headers={"x-request-id": "ours"}, media_type="application/x-ndjson"),
    ):
        assert [item.id for item in items if isinstance(item, CapturedEvent)] == ["a", None, "c"]


def test_a_bad_envelope_costs_no_neighbour() -> None:
    good = json.dumps({"response": chat()})
    deep = '{"response":' + '{"a":' * 20_000 + "1" + "}" * 20_001
    for bad, error in [
        ('{"response": 7}', "schema_invalid"),
        ("{oops}", "malformed"),
        (deep, "malformed"),
        ('{"response": {"usage": {"prompt_tokens": -1}}}', "invalid_value"),
    ]:
        for body in (f"[{good}, {bad}, {good}]", f"{good}\n{bad}\n{good}"):
            first, second, third = capture(body)
            assert isinstance(first, CapturedEvent)
            assert isinstance(second, Refusal)
            assert second.error == error
            assert isinstance(third, CapturedEvent)


@pytest.mark.parametrize(
    ("changes", "headers", "id_"),
    [
        ({"id": "chatcmpl-1"}, {"apim-request-id": "apim"}, "chatcmpl-1"),
        ({"id": ""}, {"apim-request-id": "apim", "x-request-id": "x"}, "apim"),
        ({"id": "absent"}, {"apim-request-id": "not-set", "x-request-id": "x"}, "x"),
        ({"id": None}, {"x-ms-client-request-id": "retried"}, None),
        ({"id": 17}, {}, "17"),
    ],
)
def test_the_id_is_the_bodys_else_the_providers(changes: dict[str, Any], headers: dict[str, str], id_: str | None) -> None:
    assert one(chat(**changes), headers=headers).id == id_


def test_a_retry_through_a_proxy_is_the_same_event() -> None:
    assert one(chat(), headers={"x-request-id": "attempt-1"}) == one(chat(), headers={"x-request-id": "attempt-2"})
    assert one({"response": chat(), "headers": {"x-request-id": "provider"}}).details["request_id"] == "provider"


def test_names_in_headers_are_percent_encoded() -> None:
    assert one(chat(), headers={"x-meterbridge-deployment": "gr%C3%B6%C3%9Fe"}).deployment == "größe"


@pytest.mark.parametrize(
    ("created", "time"),
    [
        (1_795_168_790, 1_795_168_790_000_000),
        (1_795_168_790.5, 1_795_168_790_500_000),
        (217_877, None),
        (0, None),
        (1_672_531_199, None),
        (1_672_531_200, 1_672_531_200_000_000),
        (1_795_168_800 + 2 * 86_400, 1_795_341_600_000_000),
        (1_795_168_801 + 2 * 86_400, None),
        (10**40, None),
        (True, None),
        ("1795168790", None),
    ],
)
def test_created_is_believed_where_it_is_plausible(created: Any, time: int | None) -> None:
    assert one(chat(created=created)).time == time


def test_created_counts_whole_seconds_and_may_lie_just_before_the_start() -> None:
    event = one({"response": chat(created=1_795_168_800), "started_at": "2026-11-20T10:00:00.250Z"})
    assert (event.time, event.started_at) == (TEN_O_CLOCK + 250_000, TEN_O_CLOCK + 250_000)
    assert "duration_ms" not in event.details
    assert one({"response": chat(created=1_795_168_800), "started_at": "2026-11-20T10:00:01Z"}).started_at is None


def test_a_time_before_2023_is_the_time_of_arrival() -> None:
    event = one({"response": chat(), "started_at": "1970-01-01T00:00:00Z", "ended_at": "1970-01-01T00:00:01Z"})
    assert (event.time, event.started_at) == (None, None)


@pytest.mark.parametrize(
    ("usage", "tokens", "quality", "flags"),
    [
        ({"prompt_tokens": 12.0, "completion_tokens": "3"}, (12, 3, None, None), Quality.REPORTED, Flag.COERCED),
        ({"prompt_tokens": "12.00", "completion_tokens": 3}, (12, 3, None, None), Quality.REPORTED, Flag.COERCED),
        ({"prompt_tokens": 2**53 - 1, "completion_tokens": 0}, (2**53 - 1, 0, None, None), Quality.REPORTED, Flag.NONE),
        ({"input_tokens": 12, "output_tokens": 3}, (12, 3, None, None), Quality.REPORTED, Flag.NONE),
        ({"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 16}, (12, 3, None, None), Quality.REPORTED, Flag.TOTAL_MISMATCH),
        ({"prompt_tokens": 12, "total_tokens": 15}, (12, 3, None, None), Quality.DERIVED, Flag.NONE),
        ({"completion_tokens": 3, "total_tokens": 15}, (12, 3, None, None), Quality.DERIVED, Flag.NONE),
        ({"prompt_tokens": 12, "total_tokens": 11}, (12, None, None, None), Quality.MISSING, Flag.TOTAL_MISMATCH | Flag.USAGE_MISSING),
        ({"total_tokens": 15}, (None, None, None, None), Quality.MISSING, Flag.USAGE_MISSING),
        ({"prompt_tokens": 12, "completion_tokens": None}, (12, None, None, None), Quality.MISSING, Flag.USAGE_MISSING),
        ({}, (None, None, None, None), Quality.MISSING, Flag.USAGE_MISSING),
        (None, (None, None, None, None), Quality.MISSING, Flag.USAGE_MISSING),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (0, 0, None, None), Quality.REPORTED, Flag.ZERO_USAGE),
        (USAGE | {"prompt_tokens_details": None, "completion_tokens_details": {"audio_tokens": 9}}, (11, 2, None, None), Quality.REPORTED, Flag.NONE),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 11}}, (11, 2, 11, None), Quality.REPORTED, Flag.NONE),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": "12"}}, (11, 2, None, None), Quality.REPORTED, Flag.SUBSET_EXCEEDS_TOTAL | Flag.COERCED),
        (USAGE | {"completion_tokens_details": {"reasoning_tokens": 3}}, (11, 2, None, None), Quality.REPORTED, Flag.SUBSET_EXCEEDS_TOTAL),
    ],
)
def test_counts_are_taken_as_reported(usage: Any, tokens: tuple[int | None, ...], quality: Quality, flags: Flag) -> None:
    event = one(chat(usage=usage))
    assert (event.input_tokens, event.output_tokens, event.cached_input_tokens, event.reasoning_output_tokens) == tokens
    assert (event.quality, event.flags) == (quality, flags)


def test_a_total_that_could_not_be_used_is_kept_as_evidence() -> None:
    assert one(chat(usage={"total_tokens": 15})).details["total_tokens_reported"] == 15
    assert one(chat(usage=USAGE | {"total_tokens": 99})).details["total_tokens_reported"] == 99
    assert "total_tokens_reported" not in one(chat()).details


@pytest.mark.parametrize("value", [True, -1, 1.5, 2**53, 10**40, "-1", "1.5", "1e3", "NaN", "twelve", "", " 12", [], {}, float("nan"), float("inf"), "9" * 400])
@pytest.mark.parametrize("place", ["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"])
def test_what_is_no_count_is_refused_by_name(value: Any, place: str) -> None:
    usage: dict[str, Any] = dict(USAGE)
    match place:
        case "cached_tokens":
            usage["prompt_tokens_details"] = {place: value}
        case "reasoning_tokens":
            usage["completion_tokens_details"] = {place: value}
        case _:
            usage[place] = value
    verdict = refusal(chat(usage=usage))
    assert (verdict.error, place in verdict.detail) == ("invalid_value", True)


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    assert refusal('{"choices":[],"usage":{"prompt_tokens":' + "9" * 100_000 + "}}").error == "invalid_value"


def test_embeddings_have_no_output() -> None:
    body = {"object": "list", "data": [{"object": "embedding", "embedding": [0.5]}], "model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    event = one(body, headers={"x-request-id": "x-1"})
    assert (event.id, event.operation, event.input_tokens, event.output_tokens, event.quality) == ("x-1", Operation.EMBEDDINGS, 8, 0, Quality.REPORTED)
    unknown = one(body | {"usage": None})
    assert (unknown.input_tokens, unknown.output_tokens, unknown.quality) == (None, None, Quality.MISSING)


def test_a_response_object_names_its_counts_otherwise() -> None:
    body = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_795_168_790,
        "status": "completed",
        "model": "gpt-5",
        "error": None,
        "incomplete_details": None,
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}],
        "usage": {
            "input_tokens": 37,
            "input_tokens_details": {"cached_tokens": 30},
            "output_tokens": 11,
            "output_tokens_details": {"reasoning_tokens": 4},
            "total_tokens": 48,
        },
    }
    event = one(body)
    assert (event.id, event.time, event.operation, event.status) == ("resp_1", 1_795_168_790_000_000, Operation.CHAT, Status.SUCCESS)
    assert (event.input_tokens, event.output_tokens, event.cached_input_tokens, event.reasoning_output_tokens) == (37, 11, 30, 4)
    assert one(body | {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}).status is Status.FILTERED
    assert one(body | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}).status is Status.INCOMPLETE
    assert one(body | {"status": "failed", "usage": None}).status is Status.ERROR
    assert isinstance(capture(body | {"status": "in_progress", "usage": None})[0], Ignored)
    streamed = "\n\n".join(
        f"event: {kind}\ndata: {json.dumps({'type': kind, 'response': inner})}"
        for kind, inner in [("response.created", body | {"status": "in_progress", "usage": None}), ("response.completed", body)]
    )
    assert one(streamed) == CapturedEvent(
        id="resp_1",
        time=1_795_168_790_000_000,
        model="gpt-5",
        input_tokens=37,
        output_tokens=11,
        cached_input_tokens=30,
        reasoning_output_tokens=4,
        details={"source_format": "openai_response", "response_id": "resp_1", "stream": True},
    )
    assert one(streamed.partition("\n\n")[0]).status is Status.INCOMPLETE


def test_the_last_usage_of_a_stream_counts_and_is_never_a_sum() -> None:
    event = one(
        stream(
            chunk(usage={"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}),
            chunk(usage={"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}),
            chunk(**ENDED, usage=None),
        )
    )
    assert (event.input_tokens, event.output_tokens, event.status, event.flags) == (11, 2, Status.SUCCESS, Flag.NONE)


@pytest.mark.parametrize(
    ("body", "status", "flags"),
    [
        (stream(chunk(), chunk(**ENDED)), Status.SUCCESS, Flag.USAGE_MISSING),
        (stream(chunk(), chunk(**ENDED), done=False), Status.SUCCESS, Flag.USAGE_MISSING),
        (stream(chunk()), Status.SUCCESS, Flag.USAGE_MISSING),
        (stream(chunk(), done=False), Status.INCOMPLETE, Flag.USAGE_MISSING | Flag.STREAM_TRUNCATED),
        (stream(chunk(), 'data: {"id', done=False), Status.INCOMPLETE, Flag.USAGE_MISSING | Flag.STREAM_TRUNCATED),
        (stream(chunk(usage=USAGE), done=False), Status.INCOMPLETE, Flag.STREAM_TRUNCATED),
        (stream(chunk(), chunk(choices=[], usage=USAGE), done=False), Status.SUCCESS, Flag.NONE),
        (stream(chunk(choices=[{"index": 1}]), chunk(**ENDED), done=False), Status.INCOMPLETE, Flag.USAGE_MISSING | Flag.STREAM_TRUNCATED),
        (stream(chunk(), {"error": {"code": "429"}}, done=False), Status.THROTTLED, Flag.STREAM_TRUNCATED),
        (stream(chunk(), {"error": {"message": "boom"}}, done=False), Status.ERROR, Flag.STREAM_TRUNCATED),
        (stream(chunk(), {"error": {"code": "content_filter"}}, done=False), Status.FILTERED, Flag.USAGE_MISSING | Flag.STREAM_TRUNCATED),
        (stream(chunk(), chunk(choices=[{"index": 0, "finish_reason": "content_filter"}], usage=USAGE)), Status.FILTERED, Flag.NONE),
    ],
)
def test_how_a_stream_ends(body: str, status: Status, flags: Flag) -> None:
    event = one(body)
    assert (event.status, event.flags, event.id) == (status, flags, "chatcmpl-1")
    assert event.details["stream"] is True


def test_a_stream_is_read_however_it_is_framed() -> None:
    chunks = [chunk(), chunk(**ENDED, usage=USAGE)]
    framed = stream(*chunks)
    whole = one(framed)
    assert whole.input_tokens == 11
    for body in (
        framed.replace("\n", "\r\n"),
        framed.replace("data: ", "data:"),
        ": keep-alive\n\n" + framed,
        "event: message\n" + framed,
        "\n\n" + framed.rstrip(),
        framed.replace('"usage"', '\ndata: "usage"'),
        chunks,
        {"response": chunks},
        {"response": framed},
    ):
        assert one(body) == whole
    assert one(framed.encode() + b"data: \xff\xfe\xf0", media_type="text/event-stream; charset=utf-8").input_tokens == 11


@pytest.mark.parametrize(
    ("body", "headers", "status", "http_status", "code"),
    [
        ({"error": {"code": "429", "message": "m"}}, {}, Status.THROTTLED, 429, "429"),
        ({"error": {"code": "RateLimitReached"}}, {"x-meterbridge-status": "429"}, Status.THROTTLED, 429, "RateLimitReached"),
        ({"statusCode": 429, "message": "Rate limit is exceeded"}, {}, Status.THROTTLED, 429, None),
        ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, {}, Status.ERROR, 400, "400"),
        ({"error": {"type": "server_error", "code": None}}, {"x-meterbridge-status": "200"}, Status.ERROR, None, "server_error"),
        ({"error": {"code": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, {}, Status.FILTERED, 400, "400"),
        ({"error": "model is loading, please wait"}, {"x-meterbridge-status": "503"}, Status.ERROR, 503, None),
        ({"error": {"code": "a sentence, not a code"}}, {"x-meterbridge-status": "500"}, Status.ERROR, 500, None),
        ("<html>Bad gateway</html>", {"x-meterbridge-status": "502"}, Status.ERROR, 502, None),
        ("", {"x-meterbridge-status": "504"}, Status.ERROR, 504, None),
        ({"detail": "Not found"}, {"x-meterbridge-status": "404"}, Status.ERROR, 404, None),
        ({"response": "upstream timed out", "status": 504}, {}, Status.ERROR, 504, None),
        ({"request": {"messages": []}, "response": None, "status": "429"}, {}, Status.THROTTLED, 429, None),
    ],
)
def test_an_error_has_no_tokens_and_keeps_its_code_only(body: Any, headers: dict[str, str], status: Status, http_status: int | None, code: str | None) -> None:
    event = one(body, headers=headers)
    assert (event.status, event.details.get("http_status"), event.details.get("error_code")) == (status, http_status, code)
    assert (event.id, event.time, event.input_tokens, event.output_tokens, event.quality, event.flags) == (None, None, None, None, Quality.REPORTED, Flag.NONE)


@pytest.mark.parametrize(
    ("request_", "operation"),
    [
        ({"messages": []}, Operation.CHAT),
        ({"prompt": "p"}, Operation.TEXT_COMPLETION),
        ({"input": "i"}, Operation.EMBEDDINGS),
        ({"input": "i", "max_output_tokens": 5}, Operation.CHAT),
        ('{"messages": []}', Operation.CHAT),
        ("no json", Operation.OTHER),
        ({}, Operation.OTHER),
    ],
)
def test_the_request_tells_what_a_failed_call_asked_for(request_: Any, operation: Operation) -> None:
    assert one({"request": request_, "response": {"error": {"code": "x"}}, "status": 500}).operation is operation


def test_a_failed_request_names_its_model_and_limits() -> None:
    event = one({"request": {"model": "llama", "max_completion_tokens": 64, "n": True, "best_of": -1, "stream": True}, "status": 429})
    assert (event.model, event.details) == ("llama", {"source_format": "openai_response", "http_status": 429, "max_tokens": 64, "stream": True})


@pytest.mark.parametrize("body", [{"object": "model", "id": "m"}, {"object": "list", "data": [{"object": "model"}]}])
def test_other_answers_of_the_api_are_ignored(body: Any) -> None:
    assert isinstance(capture(body)[0], Ignored)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "schema_invalid"),
        ({"hello": 1}, "schema_invalid"),
        (7, "schema_invalid"),
        ({"response": None}, "schema_invalid"),
        ({"response": chat(), "status": "fine"}, "invalid_value"),
        ({"response": chat(), "status": True}, "invalid_value"),
        ({"response": chat(), "workspace": 7}, "schema_invalid"),
        ({"response": chat(), "ended_at": "yesterday"}, "invalid_time"),
        ({"response": chat(), "ended_at": "2026-11-20T10:00:00"}, "invalid_time"),
        ({"response": chat(), "started_at": 1_795_168_800}, "invalid_time"),
        ({"response": "not json"}, "malformed"),
        ({"response": '{"a":' * 20_000}, "malformed"),
        (chat(id="a\0b"), "invalid_value"),
        (chat(id="\ud800"), "invalid_value"),
        (chat(model="m" * 257), "invalid_value"),
        (chat(usage="many"), "schema_invalid"),
        ("data: nothing\n\n", "malformed"),
    ],
)
def test_a_fault_is_refused_by_its_class(body: Any, error: str) -> None:
    assert refusal(body).error == error


@pytest.mark.parametrize(
    "body", [b"", b" \n", b"hello", b"{", b"\xff\xfe{}", b'{"id": "\xff"}', b"[1", b"{" * 20_000, b'{"a":' * 20_000 + b"1" + b"}" * 20_000]
)
def test_a_body_that_cannot_be_read_is_malformed(body: bytes) -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(body)
    assert fault.value.error == "malformed"


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"x-meterbridge-ended-at": "soon"}, "invalid_time"),
        ({"x-meterbridge-status": "ok"}, "invalid_value"),
        ({"x-meterbridge-workspace": "w" * 257}, "invalid_value"),
    ],
)
def test_a_header_that_cannot_be_used_refuses_the_request(headers: dict[str, str], error: str) -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(chat(), headers=headers)
    assert fault.value.error == error


CANARY = "canary says: my password is swordfish"
# Names, ids, codes and numbers are what an event is made of; every other text is somebody's content.
KEPT = {"id", "model", "object", "finish_reason", "code", "type", "status", "param"}


def planted(value: Any, name: str = "") -> Any:
    """The value with the canary in every text that could carry content, and in a field that nobody knows."""
    if isinstance(value, dict):
        return {key: planted(inner, key) for key, inner in value.items()} | {"unknown_field": CANARY, CANARY: {"deep": [CANARY]}}
    if isinstance(value, list):
        return [planted(inner, name) for inner in value]
    return CANARY if isinstance(value, str) and name not in KEPT else value


def planted_body(name: str) -> str:
    text = (DATA / name).read_text()
    if name.endswith(".json"):
        return json.dumps(planted(json.loads(text)))
    lines = []
    for line in text.splitlines():
        try:
            lines.append("data: " + json.dumps(planted(json.loads(line.removeprefix("data: ")))))
        except ValueError:
            lines.append(line)
    return "\n".join(lines) + f"\n\n: {CANARY}\nevent: {CANARY}\n\n"


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_nothing_that_was_said_and_no_secret_is_kept(name: str) -> None:
    body = planted_body(name)
    assert body.count(CANARY) > 1
    secrets = {"api-key": CANARY, "authorization": f"Bearer {CANARY}", "cookie": CANARY, "x-unknown": CANARY, "ocp-apim-subscription-key": CANARY}
    request = planted(
        {"messages": [{"role": "user", "content": "c"}], "prompt": "p", "input": "i", "tools": [{"type": "function", "description": "d"}], "stop": "s"}
    )
    envelope = {"request": request, "response": body, "status": 200, "headers": secrets, "unknown": CANARY}
    items = [
        *capture(body, headers=recorded_headers(name) | secrets),
        *capture([envelope, envelope]),
        *capture(planted({"response": "r"}) | {"response": body}),
    ]
    assert len(items) == 4
    assert all(isinstance(item, CapturedEvent) for item in items)
    assert CANARY not in repr(items)
    assert "swordfish" not in repr(items)


@pytest.mark.parametrize(
    "body",
    [
        CANARY,
        {CANARY: CANARY},
        {"response": CANARY},
        {"response": chat(), "status": CANARY},
        {"response": chat(), "ended_at": CANARY},
        chat(usage=CANARY),
        chat(usage={"prompt_tokens": CANARY}),
        f"data: {CANARY}\n\n",
    ],
)
def test_no_refusal_repeats_what_was_sent(body: Any) -> None:
    assert CANARY not in "\n".join(verdicts(body if isinstance(body, bytes) else json.dumps(body).encode()))
    assert "swordfish" not in "\n".join(verdicts(str(body).encode()))


def verdicts(body: bytes, media_type: str | None = None) -> list[str]:
    """Each item's verdict in words, or that on the body."""
    try:
        items = capture(body, media_type=media_type)
    except InvalidInput as fault:
        return [f"{fault.error}: {fault.message}"]
    return [repr(item) for item in items]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "id",
                    "object",
                    "model",
                    "choices",
                    "usage",
                    "error",
                    "code",
                    "status",
                    "created",
                    "response",
                    "request",
                    "headers",
                    "index",
                    "prompt_tokens",
                    "data",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200) | st.text(alphabet='[]{}",:\\datevn \n1', max_size=60).map(str.encode),
    st.sampled_from([None, "text/event-stream", "application/x-ndjson"]),
)
def test_any_bytes_are_judged(body: bytes, media_type: str | None) -> None:
    assert all(verdicts(body, media_type))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON_VALUES)
def test_any_json_is_judged(value: Any) -> None:
    assert all(verdicts(json.dumps(value).encode()))
    assert len(verdicts(json.dumps([value, chat()]).encode())) == 2
    assert len(verdicts(json.dumps({"response": value, "request": value, "headers": value, "status": 500}).encode())) == 1
    assert len(verdicts(f"data: {json.dumps(value)}\n\n".encode())) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(chat(), JSON_VALUES)))
def test_any_damaged_answer_is_judged(damage: dict[str, Any]) -> None:
    (verdict,) = verdicts(json.dumps(chat() | damage).encode())
    assert verdict


def test_a_large_stream_is_read_whole() -> None:
    event = one("data: " + json.dumps(chunk()) + "\n\n" + 'data: {"choices":[]}\n\n' * 100_000 + stream(chunk(**ENDED, usage=USAGE)))
    assert (event.input_tokens, event.output_tokens) == (11, 2)
