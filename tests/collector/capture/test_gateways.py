"""Helicone, Portkey, Langfuse and Envoy AI Gateway: each export with the events it must become, and nothing of what was said."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from collector.capture import envoy, helicone, langfuse, portkey
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from models.errors import InvalidInput
from models.usage import Flag, Operation, Quality, Status

DATA = Path(__file__).resolve().parents[2] / "data" / "other"
RECEIVED_AT = 1_795_168_800_000_000 + 86_400_000_000
CANARY = "canary says: my password is swordfish"
TEN_PAST_NINE = 1_795_079_400_000_000  # 2026-11-19T09:10:00Z


def capture(module: ModuleType, body: Any, **said: Any) -> list[Item]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found: list[Item] = module.capture(raw, media_type="application/json", headers={}, defaults=said.pop("defaults", Defaults()), received_at=RECEIVED_AT)
    return found


def one(module: ModuleType, body: Any, **said: Any) -> CapturedEvent:
    (item,) = capture(module, body, **said)
    assert isinstance(item, CapturedEvent), item
    return item


def test_the_samples_become_their_events() -> None:
    assert capture(helicone, (DATA / "helicone-webhook.json").read_bytes()) == [
        CapturedEvent(
            id="33333333-0000-4000-8000-000000000003",
            time=None,
            model="Meta-Llama-3.1-70B-Instruct",
            input_tokens=812,
            output_tokens=45,
            details={
                "source_format": "helicone",
                "request_id": "33333333-0000-4000-8000-000000000003",
                "user": "u-7",
                "duration_ms": 1432,
                "reported_cost": "0.0021",
                "reported_cost_currency": "USD",
            },
        )
    ]
    assert capture(portkey, (DATA / "portkey-export.jsonl").read_bytes()) == [
        CapturedEvent(
            id="44444444-0000-4000-8000-000000000004",
            time=TEN_PAST_NINE,
            model="Llama-3.3-70B-Instruct",
            team="invoices",
            input_tokens=210,
            output_tokens=33,
            details={
                "source_format": "portkey",
                "request_id": "44444444-0000-4000-8000-000000000004",
                "http_status": 200,
                "duration_ms": 911,
                "reported_cost": "0.0173",
                "reported_cost_currency": "USD cents",
            },
        )
    ]
    assert capture(envoy, (DATA / "envoy-ai-gateway-access.ndjson").read_bytes()) == [
        CapturedEvent(
            id="55555555-0000-4000-8000-000000000005",
            time=TEN_PAST_NINE + 120_120_000 + 912_000,
            started_at=TEN_PAST_NINE + 120_120_000,
            model="Llama-3.3-70B-Instruct",
            input_tokens=210,
            output_tokens=33,
            details={
                "source_format": "envoy_access_log",
                "request_id": "55555555-0000-4000-8000-000000000005",
                "http_status": 200,
                "duration_ms": 912,
            },
        )
    ]


# --- Helicone ----------------------------------------------------------------------------------------------------

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "llama",
    "choices": [{"index": 0, "finish_reason": "length", "message": {"content": CANARY}}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 4}},
}


def hook(**changes: Any) -> dict[str, Any]:
    said = {"request_id": "r-1", "request_body": json.dumps({"messages": [CANARY]}), "response_body": json.dumps(ANSWER), "model": "llama"}
    return {name: value for name, value in (said | changes).items() if value != "absent"}


def test_helicone_without_tokens_is_missing_not_zero() -> None:
    found = one(helicone, hook(response_body="{}"))
    assert (found.input_tokens, found.output_tokens, found.quality, found.flags) == (None, None, Quality.MISSING, Flag.USAGE_MISSING)
    cut = one(helicone, hook(response_body=json.dumps(ANSWER)[:80]))
    assert (cut.input_tokens, cut.quality) == (None, Quality.MISSING)


def test_helicone_takes_the_answer_that_came_whole() -> None:
    found = one(helicone, hook())
    assert (found.input_tokens, found.output_tokens, found.cached_input_tokens) == (11, 2, 4)
    assert (found.details["response_id"], found.details["finish_reason"]) == ("chatcmpl-1", "length")
    counted = one(helicone, hook(metadata={"promptTokens": 12, "completionTokens": 3, "totalTokens": 15}))
    assert (counted.input_tokens, counted.output_tokens, counted.cached_input_tokens) == (12, 3, None)


@pytest.mark.parametrize(("http_status", "status"), [(429, Status.THROTTLED), (500, Status.ERROR), ("200", Status.SUCCESS)])
def test_heliconees_export_has_columns_of_its_own(http_status: Any, status: Status) -> None:
    row = {"request_id": "r-2", "provider": "AZURE", "prompt_tokens": 7, "completion_tokens": -1, "response_status": http_status}
    found = one(helicone, row | {"request_created_at": "2026-11-19T09:10:00Z"})
    assert (found.status, found.time, found.input_tokens, found.output_tokens) == (status, TEN_PAST_NINE, 7, None)


# --- Portkey -----------------------------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    said = {"id": "p-1", "created_at": "2026-11-19T09:10:00.000Z", "is_success": True, "ai_model": "llama", "req_units": 21, "res_units": 3, "total_units": 24}
    return {name: value for name, value in (said | changes).items() if value != "absent"}


def test_portkeys_cost_is_in_cents_and_never_dollars() -> None:
    assert one(portkey, row(cost=1.73, cost_currency="USD")).details["reported_cost_currency"] == "USD cents"
    assert one(portkey, row(cost=1.73)).details["reported_cost_currency"] == "cents"
    assert "reported_cost" not in one(portkey, row()).details


def test_how_a_request_through_portkey_ended() -> None:
    throttled = one(portkey, row(is_success=False, response_status_code=429, req_units=0, res_units=0, total_units=0))
    assert (throttled.status, throttled.input_tokens, throttled.quality) == (Status.THROTTLED, None, Quality.REPORTED)
    assert one(portkey, row(is_success=False, response_status_code="500")).status is Status.ERROR
    zero = one(portkey, row(req_units=0, res_units=0, total_units=0))
    assert (zero.input_tokens, zero.quality) == (None, Quality.MISSING)
    hit = one(portkey, row(cache_status="HIT"))
    assert (hit.billable, hit.flags) == (False, Flag.GATEWAY_CACHE_HIT)
    embedded = one(
        portkey, row(request_url="https://llama-3.eastus2.models.ai.azure.com/v1/embeddings?api-version=1", res_units="absent", total_units="absent")
    )
    assert (embedded.operation, embedded.output_tokens, embedded.endpoint) == (Operation.EMBEDDINGS, 0, "llama-3")
    filtered = one(portkey, row(response=ANSWER | {"choices": [{"index": 0, "finish_reason": "content_filter"}]}))
    assert (filtered.status, filtered.details["response_id"], filtered.input_tokens) == (Status.FILTERED, "chatcmpl-1", 21)


# --- Langfuse ----------------------------------------------------------------------------------------------------


def generation(usage: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    said = {
        "id": "0123456789abcdef",
        "traceId": "0123456789abcdef0123456789abcdef",
        "type": "GENERATION",
        "startTime": "2026-11-19T09:09:59.000Z",
        "endTime": "2026-11-19T09:10:00.000Z",
        "model": "llama",
        "input": CANARY,
        "output": CANARY,
        "usageDetails": usage,
    }
    return said | changes


@pytest.mark.parametrize(
    ("usage", "counts", "flags"),
    [
        pytest.param(
            {"input": 100, "cache_read_input_tokens": 40, "output": 9, "total": 149}, (140, 9, 40), Flag.NONE, id="the total is the sum: cached stands beside"
        ),
        pytest.param(
            {"input": 100, "cache_read_input_tokens": 40, "output": 9, "total": 109}, (100, 9, 40), Flag.NONE, id="the total is in + out: cached is within"
        ),
        pytest.param({"input": 100, "cache_read_input_tokens": 40, "output": 9}, (140, 9, 40), Flag.NONE, id="without a total they add up"),
        pytest.param({"input": 100, "output": 9, "total": 120}, (100, 9, None), Flag.TOTAL_MISMATCH, id="a total that fits neither"),
        pytest.param({"input": "100", "output": 9.0}, (100, 9, None), Flag.COERCED, id="texts and floats"),
        pytest.param({"promptTokens": 100, "completionTokens": 9, "totalTokens": 109}, (100, 9, None), Flag.NONE, id="the older names"),
    ],
)
def test_langfuses_usage_adds_up(usage: dict[str, Any], counts: tuple[int | None, ...], flags: Flag) -> None:
    found = one(langfuse, generation(usage))
    assert (found.input_tokens, found.output_tokens, found.cached_input_tokens) == counts
    assert found.flags == flags


def test_an_observation_is_the_call_that_its_span_is() -> None:
    found = one(langfuse, {"data": [generation({"input": 3, "output": 1})], "meta": {"page": 1}})
    assert found.id == "0123456789abcdef0123456789abcdef" + "0123456789abcdef"
    assert (found.details["trace_id"], found.details["span_id"]) == (found.id[:32], found.id[32:])
    assert (found.time, found.started_at) == (TEN_PAST_NINE, TEN_PAST_NINE - 1_000_000)
    as_exported = {"id": "o-1", "trace_id": "t", "type": "generation", "start_time": "2026-11-19T09:10:00Z", "usage_details": '{"input": 3, "output": 1}'}
    assert (one(langfuse, as_exported).id, one(langfuse, as_exported).input_tokens) == ("o-1", 3)
    assert one(langfuse, generation({"input": 3, "output": 1}, costDetails={"total": 0.25})).details["reported_cost"] == "0.25"


def test_spans_and_events_of_langfuse_are_no_calls_and_failures_have_no_tokens() -> None:
    assert isinstance(capture(langfuse, generation({"input": 3}, type="SPAN"))[0], Ignored)
    failed = one(langfuse, generation({}, level="ERROR"))
    assert (failed.status, failed.input_tokens, failed.quality) == (Status.ERROR, None, Quality.REPORTED)
    assert one(langfuse, generation(None)).quality is Quality.MISSING


# --- Envoy -------------------------------------------------------------------------------------------------------


def line(**changes: Any) -> dict[str, Any]:
    said = {
        "gen_ai.request.model": "llama",
        "gen_ai.usage.input_tokens": "21",
        "gen_ai.usage.output_tokens": "3",
        "gen_ai.usage.total_tokens": "24",
        "start_time": "2026-11-19T09:10:00Z",
        "method": "POST",
        "x-envoy-origin-path": "/v1/chat/completions",
        "response_code": "200",
        "duration": "912.5",
        "x-request-id": "e-1",
    }
    return {name: value for name, value in (said | changes).items() if value != "absent"}


def test_envoys_dashes_are_nothing() -> None:
    none = {"gen_ai.usage.input_tokens": "-", "gen_ai.usage.output_tokens": "-", "gen_ai.usage.total_tokens": None, "gen_ai.response.model": "-"}
    found = one(envoy, line(**none))
    assert (found.input_tokens, found.output_tokens, found.quality, found.model) == (None, None, Quality.MISSING, "llama")
    gone = one(envoy, line(**none, response_code="-"))
    assert (gone.status, gone.quality) == (Status.SUCCESS, Quality.MISSING)
    throttled = one(envoy, line(**none, response_code="429"))
    assert (throttled.status, throttled.quality, throttled.flags) == (Status.THROTTLED, Quality.REPORTED, Flag.NONE)
    assert one(envoy, line(**{"x-request-id": "-"})).id is None


def test_envoys_total_is_never_added_and_its_time_is_the_start() -> None:
    found = one(envoy, line())
    assert (found.input_tokens, found.output_tokens) == (21, 3)
    assert (found.started_at, found.time, found.details["duration_ms"]) == (TEN_PAST_NINE, TEN_PAST_NINE + 912_500, 912)
    odd = one(envoy, line(**{"gen_ai.usage.total_tokens": "99"}))
    assert (odd.input_tokens, odd.flags, odd.details["total_tokens_reported"]) == (21, Flag.TOTAL_MISMATCH, 99)


def test_requests_past_the_models_are_ignored() -> None:
    assert isinstance(capture(envoy, line(**{"method": "GET", "x-envoy-origin-path": "/v1/models"}))[0], Ignored)


# --- all of them -------------------------------------------------------------------------------------------------

MODULES = [helicone, portkey, langfuse, envoy]
GOOD = {helicone: hook(), portkey: row(), langfuse: generation({"input": 3, "output": 1}), envoy: line()}


@pytest.mark.parametrize("module", MODULES)
def test_a_bad_item_costs_no_neighbour(module: ModuleType) -> None:
    found = capture(module, [GOOD[module], 7, {"what": CANARY}, GOOD[module]])
    assert [type(item) for item in found] == [CapturedEvent, Refusal, Refusal, CapturedEvent]
    with pytest.raises(InvalidInput):
        capture(module, b'{"request_id": ')


@pytest.mark.parametrize("module", MODULES)
def test_the_request_names_what_the_item_does_not(module: ModuleType) -> None:
    defaults = Defaults(source="gateway", workspace="ws-east", endpoint="https://llama-9.eastus2.inference.ai.azure.com", team="care", user="u-1")
    found = one(module, GOOD[module], defaults=defaults)
    assert (found.source, found.workspace, found.endpoint, found.team, found.details["user"]) == ("gateway", "ws-east", "llama-9", "care", "u-1")


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("value", [True, -1, 1.5, 2**53, "many", [], "NaN"])
def test_what_is_no_count_is_refused(module: ModuleType, value: Any) -> None:
    field = {helicone: "metadata", portkey: "req_units", langfuse: "usageDetails", envoy: "gen_ai.usage.input_tokens"}[module]
    said = {helicone: {"promptTokens": value}, langfuse: {"input": value}}.get(module, value)
    if (module, value) == (helicone, -1):
        return  # its own way to say that nothing was counted
    found = capture(module, GOOD[module] | {field: said})
    assert [type(item) for item in found] == [Refusal]
    assert [item.error for item in found if isinstance(item, Refusal)] == ["invalid_value"]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_was_said_is_kept(module: ModuleType) -> None:
    planted = GOOD[module] | {"messages": CANARY, "error": CANARY, "statusMessage": CANARY, "properties": {"note": CANARY}, "user_id": None}
    for item in capture(module, [planted, {**planted, "response_status": CANARY, "response_status_code": CANARY, "response_code": CANARY, "type": CANARY}]):
        assert "swordfish" not in repr(item)
