"""LiteLLM's callback bodies: each captured one with the events that it must become, and nothing of what was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.capture import litellm
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from models.errors import InvalidInput
from models.usage import Flag, Operation, Quality, Status

DATA = Path(__file__).parents[2] / "data" / "litellm"
# 2026-11-20T10:00:00Z
TEN_O_CLOCK = 1_795_168_800_000_000


def capture(body: Any, *, media_type: str | None = "application/json", defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return litellm.capture(raw, media_type=media_type, headers={}, defaults=defaults or Defaults(), received_at=TEN_O_CLOCK)


def one(body: Any, **said: Any) -> CapturedEvent:
    (item,) = capture(body, **said)
    assert isinstance(item, CapturedEvent), item
    return item


def refusal(body: Any) -> Refusal:
    (item,) = capture(body)
    assert isinstance(item, Refusal), item
    return item


def payload(**changes: Any) -> dict[str, Any]:
    said = {
        "id": "chatcmpl-1",
        "litellm_call_id": "call-1",
        "call_type": "acompletion",
        "status": "success",
        "startTime": 1_795_168_798.5,
        "endTime": 1_795_168_800.0,
        "model": "llama",
        "prompt_tokens": 19,
        "completion_tokens": 72,
        "total_tokens": 91,
    }
    return {name: value for name, value in (said | changes).items() if value != "absent"}


TAGS = {"litellm:team:invoices": "true", "litellm:env:prod": "true"}
LIMITS = {"ratelimit_remaining_tokens": 199_642, "ratelimit_remaining_requests": 999}
APIM_ID = "4f9c2b1e-6a5d-4c0e-9f3a-7f1d2f3f5f10"


def answered(id_: str, response_id: str, started_at: int, time: int, **changes: Any) -> CapturedEvent:
    """A call of the captures that the provider's headers came with."""
    details: dict[str, Any] = {
        "source_format": "litellm",
        "response_id": response_id,
        "request_id": APIM_ID,
        "finish_reason": "stop",
        "choices": 1,
        "user": "u-7",
        **LIMITS,
    }
    details |= {"reported_cost": "0.00006460999999999999", "reported_cost_currency": "USD"} | changes.pop("details", {})
    said: dict[str, Any] = {"model": "Meta-Llama-3.1-405B-Instruct", "input_tokens": 19, "output_tokens": 72, "tags": TAGS}
    return CapturedEvent(id=id_, time=time, started_at=started_at, deployment="meta-llama-31-405b-x1", details=details, **said | changes)


CACHED: dict[str, Any] = {
    "model": "cached-Meta-Llama-3.1-405B-Instruct",
    "input_tokens": 4100,
    "output_tokens": 144,
    "cached_input_tokens": 3840,
    "reasoning_output_tokens": 31,
}
ALERT: list[Item] = [Ignored("a budget alert of LiteLLM; send these to /v1/alerts/litellm")]
CAPTURED: dict[str, list[Item]] = {
    "captured-010-litellm-json_array.body": [
        answered(
            "68159d21-471e-42ce-8009-9f26a75eaa94",
            "chatcmpl-3472ffcee80e45ae9b988e965f7c358b",
            1_795_211_661_488_555,
            1_795_211_662_326_170,
            details={"duration_ms": 837},
        ),
        answered(
            "dc059ff8-2302-4183-992c-83649625a991",
            "chatcmpl-0ee8b8e52682408a8accfd164b307e4b",
            1_795_211_662_366_561,
            1_795_211_664_278_109,
            **CACHED,
            details={"duration_ms": 1911, "choices": 2, "reported_cost": "0.00301324"},
        ),
    ],
    "captured-011-litellm-json_array.body": [
        # A stream without include_usage: LiteLLM says 0/0/0.
        answered(
            "33536b19-3ba1-46ba-b12b-9d731098b43c",
            "chatcmpl-38c03701e1f14728957a417ae691e4ae",
            1_795_211_689_103_034,
            1_795_211_712_747_331,
            input_tokens=None,
            output_tokens=None,
            quality=Quality.MISSING,
            flags=Flag.USAGE_MISSING,
            details={"duration_ms": 23_644, "stream": True, "reported_cost": "0.0"},
        ),
        answered(
            "0e5d1ca7-f713-47c7-964e-75698c11daf4",
            "chatcmpl-774c8d947a514d5099a18cee9012b0c1",
            1_795_211_712_730_208,
            1_795_211_712_762_676,
            details={"duration_ms": 32},
        ),
        # No headers of a provider, no alias of a router: nobody says which deployment it was.
        CapturedEvent(
            id="113947ec-dc27-459b-b507-c629f9c34d24",
            time=1_795_211_712_793_922,
            started_at=1_795_211_712_765_666,
            model="Meta-Llama-3.1-8B",
            operation=Operation.TEXT_COMPLETION,
            input_tokens=19,
            output_tokens=72,
            details={
                "source_format": "litellm",
                "response_id": "cmpl-cd4bd3925ce942589ccafb13a9fe0332",
                "finish_reason": "stop",
                "choices": 1,
                "duration_ms": 28,
                "reported_cost": "0.0",
                "reported_cost_currency": "USD",
            },
        ),
        CapturedEvent(
            id="ec3f1d58-b5fc-41d6-bfea-a5625f31b1b4:failed:1795211712827409",
            time=1_795_211_712_866_889,
            started_at=1_795_211_712_827_409,
            deployment="meta-llama-31-405b-x1",
            model="err400",
            tags=TAGS,
            status=Status.FILTERED,
            details={
                "source_format": "litellm",
                "request_id": APIM_ID,
                "litellm_call_id": "ec3f1d58-b5fc-41d6-bfea-a5625f31b1b4",
                "http_status": 400,
                "error_code": "content_filter",
                "user": "u-7",
                "duration_ms": 39,
                **LIMITS,
                "reported_cost": "0.0",
                "reported_cost_currency": "USD",
            },
        ),
        CapturedEvent(
            id="4ac63267-0547-4608-8a2c-e4dc0137e210:failed:1795211712892286",
            time=1_795_211_712_912_182,
            started_at=1_795_211_712_892_286,
            deployment="meta-llama-31-405b-x1",
            model="err429",
            tags=TAGS,
            status=Status.THROTTLED,
            details={
                "source_format": "litellm",
                "request_id": APIM_ID,
                "litellm_call_id": "4ac63267-0547-4608-8a2c-e4dc0137e210",
                "http_status": 429,
                "error_code": "429",
                "throttled_by": "azure",
                "user": "u-7",
                "duration_ms": 19,
                "ratelimit_remaining_tokens": 0,
                "ratelimit_remaining_requests": 999,
                "reported_cost": "0.0",
                "reported_cost_currency": "USD",
            },
        ),
    ],
    "captured-012-litellm-ndjson.body": [
        answered(
            "6b28e9a8-bed4-4011-80da-c7c5a5f42430",
            "chatcmpl-cce159ae0bbd48088eaf292a26aab603",
            1_795_211_726_088_220,
            1_795_211_727_568_153,
            details={"duration_ms": 1479},
        ),
        answered(
            "5edec887-5d95-406d-8b45-b66fae11d31e",
            "chatcmpl-aefbc069bd9f429b9a975ede93cda99e",
            1_795_211_727_614_904,
            1_795_211_728_825_427,
            **CACHED,
            details={"duration_ms": 1210, "choices": 2, "reported_cost": "0.00301324"},
        ),
    ],
    "captured-017-litellm-webhook-budget_crossed.body": ALERT,
    "captured-018-litellm-webhook-threshold.body": ALERT,
    "captured-019-litellm-webhook-soft.body": ALERT,
    "captured-020-litellm-webhook-projected.body": ALERT,
    "captured-021-litellm-webhook-spend_tracked.body": ALERT,
}


def test_every_captured_body_has_an_expectation() -> None:
    assert {path.name for path in DATA.iterdir() if not path.name.endswith(".meta.json")} == set(CAPTURED)


@pytest.mark.parametrize("name", sorted(CAPTURED))
def test_a_captured_body_becomes_its_events(name: str) -> None:
    assert capture((DATA / name).read_bytes()) == CAPTURED[name]


def test_one_payload_an_array_and_lines_say_the_same() -> None:
    event = one(payload())
    assert (event.id, event.time, event.started_at) == ("call-1", TEN_O_CLOCK, TEN_O_CLOCK - 1_500_000)
    line = json.dumps(payload())
    assert capture(line) == capture([payload()]) == [event]
    for media_type in ("application/json", "application/x-ndjson", None):
        assert capture(f"{line}\n{line}", media_type=media_type) == [event, event]
        assert capture(f"null\n{line}\nnull", media_type=media_type)[1] == event


def test_a_payload_that_could_not_be_built_is_ignored_and_costs_no_neighbour() -> None:
    first, second, third = capture([None, payload(), {"litellm_call_id": "x", "prompt_tokens": -1}])
    assert isinstance(first, Ignored)
    assert isinstance(second, CapturedEvent)
    assert isinstance(third, Refusal)
    assert isinstance(capture("null")[0], Ignored)
    assert capture([]) == []


def test_the_first_version_is_refused_with_what_to_do() -> None:
    old = {"id": "chatcmpl-1", "usage": "Usage(completion_tokens=21, prompt_tokens=4)", "startTime": "2026-11-20 10:00:00.1", "model": "llama"}
    assert refusal(old).error == "unsupported_version"
    assert "generic_api_use_v1: false" in refusal(old).detail


@pytest.mark.parametrize("call_type", ["aget_responses", "get_responses", "alist_input_items", "adelete_responses", "aretrieve_batch", "afile_content"])
def test_reading_what_is_stored_is_no_call(call_type: str) -> None:
    assert isinstance(capture(payload(call_type=call_type))[0], Ignored)


@pytest.mark.parametrize(
    ("call_type", "operation"),
    [
        ("completion", Operation.CHAT),
        ("acompletion", Operation.CHAT),
        ("aresponses", Operation.CHAT),
        ("anthropic_messages", Operation.CHAT),
        ("atext_completion", Operation.TEXT_COMPLETION),
        ("aembedding", Operation.EMBEDDINGS),
        ("amoderation", Operation.OTHER),
        (None, Operation.CHAT),
    ],
)
def test_what_the_call_asked_for(call_type: Any, operation: Operation) -> None:
    assert one(payload(call_type=call_type)).operation is operation


def test_an_answer_from_the_cache_is_not_billed_and_not_the_original() -> None:
    hit = one(payload(id="chatcmpl-1_cache_hit1795168801.5", litellm_call_id="call-2", cache_hit=True, response_cost=0.0))
    assert (hit.id, hit.billable, hit.flags, hit.input_tokens) == ("call-2", False, Flag.GATEWAY_CACHE_HIT, 19)
    assert hit.details["response_id"] == "chatcmpl-1"
    assert one(payload(id="chatcmpl-1_cache_hit1795168801.5", litellm_call_id="absent", cache_hit=True)).id == "chatcmpl-1_cache_hit1795168801.5"
    unknown = one(payload(cache_hit=True, prompt_tokens=0, completion_tokens=0, total_tokens=0))
    assert (unknown.input_tokens, unknown.quality, unknown.flags) == (None, Quality.REPORTED, Flag.GATEWAY_CACHE_HIT)
    assert one(payload(cache_hit=False)).billable


def test_a_retry_keeps_the_calls_id_and_its_tokens() -> None:
    """The router's attempts share a litellm_call_id: the failure must not stand in the way of the success."""
    failed = one(payload(id="call-1", status="failure", prompt_tokens=0, completion_tokens=0, total_tokens=0, error_information={"error_code": "500"}))
    again = one(payload(id="call-1", status="failure", startTime=1_795_168_799.0, error_information={"error_code": "500"}))
    assert [failed.id, again.id, one(payload()).id] == ["call-1:failed:1795168798500000", "call-1:failed:1795168799000000", "call-1"]
    assert (failed.status, failed.input_tokens, failed.quality, failed.flags) == (Status.ERROR, None, Quality.REPORTED, Flag.NONE)
    assert "response_id" not in failed.details


@pytest.mark.parametrize(
    ("error", "status", "http_status", "code"),
    [
        ({"error_code": "429", "error_rate_limit_category": "vendor_rate_limit"}, Status.THROTTLED, 429, "429"),
        ({"error_code": "None", "error_class": "RateLimitError"}, Status.THROTTLED, 429, None),
        ({"error_code": "content_filter", "normalized_error": "400_INVALID_REQUEST"}, Status.FILTERED, 400, "content_filter"),
        ({"error_code": "400", "error_class": "ContentPolicyViolationError"}, Status.FILTERED, 400, "400"),
        ({"error_code": 401}, Status.ERROR, 401, "401"),
        ({"error_code": "", "normalized_error": "503_UNAVAILABLE"}, Status.ERROR, 503, None),
        ({"error_code": "the prompt was: hello"}, Status.ERROR, None, None),
        (None, Status.ERROR, None, None),
    ],
)
def test_how_a_failure_is_told(error: Any, status: Status, http_status: int | None, code: str | None) -> None:
    event = one(payload(status="failure", prompt_tokens=0, completion_tokens=0, total_tokens=0, error_information=error))
    assert (event.status, event.details.get("http_status"), event.details.get("error_code")) == (status, http_status, code)
    assert (event.input_tokens, event.output_tokens, event.quality, event.flags) == (None, None, Quality.REPORTED, Flag.NONE)


def test_whose_limit_it_was() -> None:
    own = one(payload(status="failure", error_information={"error_code": "429", "error_rate_limit_category": "litellm_rate_limit"}))
    assert own.details["throttled_by"] == "gateway"


def test_a_filtered_answer_was_billed() -> None:
    event = one(payload(response={"choices": [{"finish_reason": "stop"}, {"finish_reason": "content_filter"}]}))
    assert (event.status, event.input_tokens, event.details["finish_reason"], event.details["choices"]) == (Status.FILTERED, 19, "content_filter", 2)


def test_an_embedding_has_no_output_and_details_are_subsets() -> None:
    event = one(payload(call_type="aembedding", completion_tokens="absent", total_tokens=19))
    assert (event.input_tokens, event.output_tokens, event.quality) == (19, 0, Quality.REPORTED)
    usage = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 20}, "completion_tokens_details": {"reasoning_tokens": 72}}
    event = one(payload(metadata={"usage_object": usage}))
    assert (event.input_tokens, event.cached_input_tokens, event.reasoning_output_tokens, event.flags) == (19, None, 72, Flag.SUBSET_EXCEEDS_TOTAL)
    assert one(payload(prompt_tokens=None, metadata={"usage_object": {"prompt_tokens": 20}})).input_tokens == 20


HEADERS = {"additional_headers": {"llm_provider-azureml-model-deployment": "blue", "azureml-model-deployment": "green"}}


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({}, (None, None)),
        ({"hidden_params": HEADERS}, (None, "blue")),
        ({"hidden_params": {"additional_headers": {"X-MS-Deployment-Name": "chat", "azureml-model-deployment": "green"}}}, (None, "chat")),
        ({"api_base": "https://LLAMA-x1.eastus2.models.ai.azure.com/v1"}, ("llama-x1", None)),
        ({"api_base": "https://llama-x1.eastus2.models.ai.azure.com/v1", "hidden_params": HEADERS}, (None, "blue")),
        ({"api_base": "https://llama-mc.eastus2.inference.ml.azure.com/v1", "hidden_params": HEADERS}, ("llama-mc", "blue")),
        ({"api_base": "https://llama-mc.eastus2.inference.ml.azure.com/score"}, ("llama-mc", None)),
        ({"api_base": "https://acc.openai.azure.com/openai/deployments/gpt%2Dx/chat"}, (None, "gpt-x")),
        ({"api_base": "https://acc.openai.azure.com", "custom_llm_provider": "azure", "model": "azure/gpt-x"}, (None, "gpt-x")),
        ({"api_base": "https://[broken", "model_group": "router-llama"}, (None, "router-llama")),
        ({"api_base": "http://127.0.0.1:18081/v1", "model_group": "router-llama"}, (None, "router-llama")),
    ],
)
def test_where_the_call_went(said: dict[str, Any], place: tuple[str | None, str | None]) -> None:
    event = one(payload(**said))
    assert (event.endpoint, event.deployment) == place


def test_the_request_names_what_the_payload_does_not() -> None:
    defaults = Defaults(source="proxy-1", workspace="finance", deployment="llama-70b", application="app", team="care", user="u-1", model="m")
    event = one(payload(model=None, model_group="alias"), defaults=defaults)
    assert (event.source, event.workspace, event.deployment, event.model) == ("proxy-1", "finance", "llama-70b", "alias")
    assert (event.application, event.team, event.details["user"]) == ("app", "care", "u-1")
    assert one(payload(hidden_params=HEADERS), defaults=defaults).deployment == "blue"


def test_the_keys_aliases_tell_application_team_and_user() -> None:
    metadata = {"user_api_key_alias": "invoices-prod", "user_api_key_team_alias": "", "user_api_key_team_id": "t-7", "user_api_key_user_id": "owner"}
    event = one(payload(metadata=metadata, end_user=None, model_parameters={"user": "u-7", "n": 2, "max_tokens": 64, "best_of": True}))
    assert (event.application, event.team, event.details["user"]) == ("invoices-prod", "t-7", "u-7")
    assert (event.details["choices"], event.details["max_tokens"], "best_of" in event.details) == (2, 64, False)
    assert one(payload(metadata=metadata, end_user="cust-9")).details["user"] == "cust-9"
    assert one(payload(metadata=metadata)).details["user"] == "owner"


def test_tags_are_words_and_what_cannot_be_one_is_left_out() -> None:
    event = one(payload(request_tags=["a", "a", "User-Agent: curl/8", "", 7, "x\0y", "t" * 300]))
    assert event.tags == {"litellm:a": "true"}
    assert len(one(payload(request_tags=[f"t{number}" for number in range(99)])).tags) == 64
    assert one(payload(request_tags="a")).tags == {}


@pytest.mark.parametrize(
    ("cost", "text"),
    [(6.461e-05, "0.00006461"), (0, "0"), ("1.50", "1.50"), (12, "12"), (-1.0, None), (True, None), (None, None), ("free", None), (float("nan"), None)],
)
def test_the_cost_is_kept_as_text_for_display(cost: Any, text: str | None) -> None:
    details = one(payload(response_cost=cost)).details
    assert (details.get("reported_cost"), details.get("reported_cost_currency")) == (text, None if text is None else "USD")


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ({"endTime": None}, (None, None)),
        ({"endTime": 1_795_168_800}, (TEN_O_CLOCK, TEN_O_CLOCK - 1_500_000)),
        ({"startTime": 1_795_168_801.0}, (TEN_O_CLOCK, None)),
        ({"startTime": None}, (TEN_O_CLOCK, None)),
        ({"startTime": 0.0, "endTime": 1.0}, (None, None)),
    ],
)
def test_when_the_call_was(times: dict[str, Any], found: tuple[int | None, int | None]) -> None:
    event = one(payload(**times))
    assert (event.time, event.started_at) == found
    assert ("duration_ms" in event.details) is (found[1] is not None)


def test_an_id_is_the_calls_else_the_payloads_else_none() -> None:
    assert one(payload(litellm_call_id="")).id == "chatcmpl-1"
    assert one(payload(litellm_call_id=None, id=None)).id is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([7], "schema_invalid"),
        (["text"], "schema_invalid"),
        ([[]], "schema_invalid"),
        ({"hello": 1}, "schema_invalid"),
        (payload(prompt_tokens=1.5), "invalid_value"),
        (payload(prompt_tokens=True), "invalid_value"),
        (payload(completion_tokens="many"), "invalid_value"),
        (payload(endTime=True), "invalid_time"),
        (payload(endTime="2026-11-20T10:00:00Z"), "invalid_time"),
        (payload(endTime=1_795_168_800_000), "invalid_time"),
        (payload(endTime=float("inf")), "invalid_time"),
        (payload(endTime=-1), "invalid_time"),
        (payload(litellm_call_id="a\0b"), "invalid_value"),
        (payload(model="m" * 257), "invalid_value"),
    ],
)
def test_a_fault_is_refused_by_its_class(body: Any, error: str) -> None:
    assert refusal(body).error == error


@pytest.mark.parametrize("body", [b"", b" \n", b"hello", b"{", b"\xff\xfe{}", b"[1", b'{"a":' * 20_000 + b"1" + b"}" * 20_000])
def test_a_body_that_cannot_be_read_is_malformed(body: bytes) -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(body)
    assert fault.value.error == "malformed"


def test_a_broken_payload_costs_no_neighbour() -> None:
    good = json.dumps(payload())
    for bad in ("{oops}", '{"a":' * 20_000 + "1" + "}" * 20_000):
        for body in (f"[{good}, {bad}, {good}]", f"{good}\n{bad}\n{good}"):
            first, second, third = capture(body)
            assert isinstance(first, CapturedEvent)
            assert isinstance(second, Refusal)
            assert second.error == "malformed"
            assert first == third


CANARY = "canary says: my password is swordfish"
# Names, ids, codes and numbers are what an event is made of; every other text is somebody's content or a secret.
KEPT = {
    "id",
    "litellm_call_id",
    "call_type",
    "status",
    "model",
    "model_group",
    "end_user",
    "user",
    "api_base",
    "custom_llm_provider",
    "error_code",
    "user_api_key_alias",
    "user_api_key_team_alias",
    "user_api_key_team_id",
    "user_api_key_user_id",
    "user_api_key_end_user_id",
    "team_alias",
    "team_id",
    "request_tags",
    "error_provider_request_id",
}
KEPT_HEADERS = ("apim-request-id", "x-request-id", "azureml-model-deployment", "x-ms-deployment-name")


def planted(value: Any, name: str = "") -> Any:
    """The value with the canary in every text that could carry content, where there is none yet, and in fields that nobody knows."""
    if isinstance(value, dict):
        return {key: planted(inner, key) for key, inner in value.items()} | {"unknown_field": CANARY, CANARY: {"deep": [CANARY]}}
    if isinstance(value, list):
        return [planted(inner, name) for inner in value]
    return CANARY if (isinstance(value, str) or value is None) and name not in KEPT and not name.endswith(KEPT_HEADERS) else value


@pytest.mark.parametrize("name", sorted(name for name, items in CAPTURED.items() if items != ALERT))
def test_nothing_that_was_said_and_no_secret_is_kept(name: str) -> None:
    text = (DATA / name).read_text()
    payloads = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    bodies = [planted(said) | {"api_base": f"https://user:{CANARY}@host/v1?api-key={CANARY}#{CANARY}"} for said in payloads]
    assert json.dumps(bodies).count(CANARY) > 100
    items = capture(bodies)
    assert all(isinstance(item, CapturedEvent) for item in items)
    assert len(items) == len(CAPTURED[name])
    assert "swordfish" not in repr(items)


@pytest.mark.parametrize(
    "body",
    [
        CANARY,
        [CANARY],
        {CANARY: CANARY},
        payload(endTime=CANARY),
        payload(prompt_tokens=CANARY),
        payload(usage=CANARY),
        payload(status=CANARY),
        payload(call_type=CANARY),
        payload(litellm_call_id=CANARY + "\0"),
    ],
)
def test_no_verdict_repeats_what_was_sent(body: Any) -> None:
    assert "swordfish" not in "\n".join(verdicts(json.dumps(body).encode()))
    assert "swordfish" not in "\n".join(verdicts(str(body).encode()))


def verdicts(body: bytes, media_type: str | None = None) -> list[str]:
    """Each item's verdict in words, or that on the body."""
    try:
        items = capture(body, media_type=media_type)
    except InvalidInput as fault:
        return [f"{fault.error}: {fault.message}"]
    return [repr(item) for item in items]


FIELDS = [
    *payload(),
    "metadata",
    "usage_object",
    "hidden_params",
    "additional_headers",
    "response",
    "choices",
    "error_information",
    "request_tags",
    "api_base",
    "cache_hit",
    "response_cost",
    "model_parameters",
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200) | st.text(alphabet='[]{}",:\\nul \n1', max_size=60).map(str.encode),
    st.sampled_from([None, "application/json", "application/x-ndjson"]),
)
def test_any_bytes_are_judged(body: bytes, media_type: str | None) -> None:
    assert all(verdicts(body, media_type))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON_VALUES)))
def test_any_damaged_payload_is_judged_and_its_neighbour_kept(damage: dict[str, Any]) -> None:
    damaged, neighbour = verdicts(json.dumps([payload() | damage, payload()]).encode())
    assert damaged
    assert neighbour == repr(one(payload()))
