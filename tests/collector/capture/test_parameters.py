"""What a request asks of the model and how its candidates ended, as Azure's documentation of Meta Llama has it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from collector.capture import openai, values
from collector.capture.event import CapturedEvent, Defaults, Item, Refusal
from collector.capture.values import Place
from models.usage import Flag, Status

RECEIVED_AT = 1_795_168_800_000_000


def capture(body: Any, **headers: str) -> list[Item]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return openai.capture(json.dumps(body).encode(), media_type=None, headers=named, defaults=Defaults(), received_at=RECEIVED_AT)


def one(body: Any, **headers: str) -> CapturedEvent:
    (item,) = capture(body, **headers)
    assert isinstance(item, CapturedEvent), item
    return item


def call(*reasons: Any, sent: int = 9, got: int = 4, request: dict[str, Any] | None = None, **envelope: Any) -> dict[str, Any]:
    choices = [{"index": index, "finish_reason": reason, "message": {"content": "x"}} for index, reason in enumerate(reasons)]
    response = {"id": "chatcmpl-1", "object": "chat.completion", "model": "", "choices": choices, "usage": {"prompt_tokens": sent, "completion_tokens": got}}
    return {"response": response, "request": {"messages": [{"role": "user", "content": "x"}]} | (request or {})} | envelope


# --- how it ended ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("stop", Status.SUCCESS),
        ("length", Status.SUCCESS),
        (None, Status.SUCCESS),
        ("content_filter", Status.FILTERED),
        ("content_filter_error", Status.FILTERED),
    ],
)
def test_finish_reasons_are_kept_apart_and_null_is_one(reason: str | None, status: Status) -> None:
    event = one(call(reason))
    assert ("finish_reason" in event.details, event.details["finish_reason"], event.status) == (True, reason, status)
    assert (event.input_tokens, event.output_tokens) == (9, 4)  # a filtered answer is billed, too


def test_a_call_without_choices_says_nothing_of_how_it_ended() -> None:
    assert "finish_reason" not in one({"object": "list", "data": [{"object": "embedding"}], "usage": {"prompt_tokens": 3}}).details


def test_candidates_that_ended_differently_are_all_told() -> None:
    event = one(call("stop", "content_filter", None))
    assert (event.details["finish_reason"], event.details["finish_reasons"]) == ("content_filter", "stop,content_filter,null")
    assert "finish_reasons" not in one(call("stop", "stop")).details


# --- what it asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "got", "kept"),
    [
        pytest.param({}, 4, {"max_tokens": 16, "max_tokens_source": "default"}, id="16 where nothing is said"),
        pytest.param({"max_tokens": 64}, 4, {"max_tokens": 64}, id="said"),
        pytest.param({"max_tokens": "64"}, 4, {"max_tokens": 64}, id="said as a text"),
        pytest.param({"max_completion_tokens": 32}, 4, {"max_tokens": 32}, id="said by its newer name"),
        pytest.param({}, 17, {}, id="an answer that is longer had another limit"),
        pytest.param({"n": 2}, 32, {"max_tokens": 16, "max_tokens_source": "default"}, id="of each candidate"),
        pytest.param({"best_of": 3}, 48, {"max_tokens": 16, "max_tokens_source": "default"}, id="also of those that are thrown away"),
    ],
)
def test_the_default_limit_is_sixteen(request_: dict[str, Any], got: int, kept: dict[str, Any]) -> None:
    details = one(call("stop", got=got, request=request_)).details
    assert {name: details[name] for name in ("max_tokens", "max_tokens_source") if name in details} == kept


def test_without_the_request_no_limit_is_assumed() -> None:
    assert "max_tokens" not in one(call("stop")["response"]).details


def test_candidates_are_named_and_never_divide_the_tokens() -> None:
    event = one(call("stop", request={"n": "1", "best_of": 4, "presence_penalty": "0.5", "frequency_penalty": "-1.0"}, got=400))
    assert (event.details["choices"], event.details["best_of"], event.output_tokens) == (1, 4, 400)


@pytest.mark.parametrize("header", ["extra-parameters", "extra-params"])
@pytest.mark.parametrize("place", ["headers", "request_headers"])
@pytest.mark.parametrize(("said", "is_passed"), [("pass-through", True), ("allow", True), ("drop", False)])
def test_parameters_of_vllm_count_where_they_reach_the_model(header: str, place: str, said: str, is_passed: bool) -> None:
    request = {"ignore_eos": True, "use_beam_search": True, "best_of": 4}
    asked: dict[str, Any] = {place: {header.title(): said}}
    details = one(call("stop", request=request, **asked)).details
    assert details["extra_parameters"] == said
    assert (details.get("ignore_eos"), details.get("beam_search")) == ((True, True) if is_passed else (None, None))


def test_parameters_of_vllm_are_read_from_the_extra_body_too() -> None:
    assert one(call("stop", request={"extra_body": {"ignore_eos": "true", "n": 3}})).details["ignore_eos"] is True


@pytest.mark.parametrize(("written", "kept"), [(5, 5), (0, None), (10, None)])
def test_what_was_written_to_a_cache_is_within_the_input(written: int, kept: int | None) -> None:
    body = call("stop", sent=9)
    body["response"]["usage"]["prompt_tokens_details"] = {"cache_write_tokens": written}
    event = one(body)
    assert (event.input_tokens, event.details.get("cache_write_input_tokens")) == (9, kept)
    assert bool(event.flags & Flag.SUBSET_EXCEEDS_TOTAL) is (written > 9)


# --- where it went -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://llama-70b.eastus2.inference.ai.azure.com/v1/chat/completions", Place(endpoint="llama-70b")),
        ("https://Llama-70B.EastUS2.models.ai.azure.com", Place(endpoint="llama-70b")),
        ("llama-70b.eastus2.inference.ai.azure.com:443", Place(endpoint="llama-70b")),
        ("https://llama-mc.westus3.inference.ml.azure.com/score", Place(endpoint="llama-mc")),
        ("https://my-hub.services.ai.azure.com/models", Place(workspace="my-hub")),
        ("https://my-hub.openai.azure.com/openai/deployments/llama%20x/chat/completions?api-key=s", Place(workspace="my-hub", deployment="llama x")),
        ("https://evil.example/inference.ai.azure.com", Place()),
        ("https://a.b.inference.ai.azure.com.evil.example", Place()),
        ("http://[", Place()),
        (7, Place()),
    ],
)
def test_an_address_names_its_place(url: Any, place: Place) -> None:
    assert values.place(url) == place


def test_the_address_of_a_call_is_where_it_went_unless_somebody_says_it() -> None:
    url = "https://llama-70b.eastus2.inference.ai.azure.com/v1/chat/completions"
    event = one(call("stop", url=url, workspace="ws-east"))
    assert (event.workspace, event.endpoint, event.deployment, event.model) == ("ws-east", "llama-70b", None, None)
    assert one(call("stop", url=url, deployment="blue")).endpoint is None
    assert one(call("stop", endpoint=url)).endpoint == "llama-70b"
    assert one(call("stop")["response"], x_meterbridge_endpoint="https%3A%2F%2Fllama-70b.eastus2.inference.ai.azure.com").endpoint == "llama-70b"


# --- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b'{"id": "a", "id": "b", "choices": []}', b'{"id": "a", "choices": [], "usage": {"prompt_tokens": 1, "prompt_tokens": 1000}}']
)
def test_an_object_that_says_a_member_twice_is_malformed(body: bytes) -> None:
    """Whichever of the two another reader takes, somebody would count something else."""
    assert values.loaded(body) == Refusal("malformed", "an object names a member twice; which of the two values is meant cannot be known")
    found = openai.capture(
        body + b"\n" + json.dumps(call("stop")).encode(), media_type="application/x-ndjson", headers={}, defaults=Defaults(), received_at=RECEIVED_AT
    )
    assert [type(item) for item in found] == [Refusal, CapturedEvent]
