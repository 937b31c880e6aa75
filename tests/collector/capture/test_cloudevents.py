"""CloudEvents: each captured request with the events that it must become, in every mode, and nothing else of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.capture import cloudevents
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from models.errors import InvalidInput
from models.usage import Flag, Operation, Quality, Status

DATA = Path(__file__).parents[2] / "data" / "cloudevents"
# 2026-11-20T10:00:00Z
TEN_O_CLOCK = 1_795_168_800_000_000
STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


def capture(body: Any, *, media_type: str | None = "application/json", headers: dict[str, str] | None = None, defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return cloudevents.capture(raw, media_type=media_type, headers=headers or {}, defaults=defaults or Defaults(), received_at=TEN_O_CLOCK)


def one(body: Any, **said: Any) -> CapturedEvent:
    (item,) = capture(body, **said)
    assert isinstance(item, CapturedEvent), item
    return item


def refusal(body: Any, **said: Any) -> Refusal:
    (item,) = capture(body, **said)
    assert isinstance(item, Refusal), item
    return item


def event(**changes: Any) -> dict[str, Any]:
    said = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "urn:app",
        "type": "llm.usage",
        "time": "2026-11-20T10:00:00Z",
        "data": {"model": "llama", "input_tokens": 11, "output_tokens": 4},
    }
    return {name: value for name, value in (said | changes).items() if value != "absent"}


def of_data(data: Any, **changes: Any) -> CapturedEvent:
    return one(event(data=data, **changes))


LLAMA = "Meta-Llama-3.1-405B-Instruct"


def of_openmeter(id_: str, sent: int, got: int, time: int | None = None) -> CapturedEvent:
    return CapturedEvent(
        id=id_,
        time=time,
        source="invoice-rag",
        model=LLAMA,
        input_tokens=sent,
        output_tokens=got,
        details={"source_format": "cloudevents", "subject": "team-invoices"},
    )


def of_litellm(id_: str, time: int, model: str, counts: tuple[int, int], cost: str) -> CapturedEvent:
    details = {"source_format": "cloudevents", "response_id": id_, "subject": "u-7", "user": "u-7", "reported_cost": cost, "reported_cost_currency": "USD"}
    return CapturedEvent(id=id_, time=time, source="litellm-proxy", model=model, input_tokens=counts[0], output_tokens=counts[1], details=details)


def of_python(id_: str) -> CapturedEvent:
    source = "/ws-retail/meta-llama-31-405b-x1"
    return CapturedEvent(
        id=id_, time=TEN_O_CLOCK, source=source, model=LLAMA, input_tokens=11, output_tokens=4, details={"source_format": "cloudevents", "subject": "team-a"}
    )


def of_javascript(id_: str, sent: int, got: int) -> CapturedEvent:
    return CapturedEvent(
        id=id_,
        time=TEN_O_CLOCK + 123_000,
        source="urn:invoice-rag",
        workspace="ws-retail",
        deployment="meta-llama-31-405b-x1",
        model=LLAMA,
        input_tokens=sent,
        output_tokens=got,
        details={"source_format": "cloudevents", "subject": "team-a"},
    )


CAPTURED: dict[str, list[Item]] = {
    "captured-013-litellm-openmeter.body": [
        of_litellm("chatcmpl-1d41557a914e48a0b68b12ed60966973", 1_795_211_744_453_778, LLAMA, (19, 72), "0.00006460999999999999")
    ],
    "captured-014-litellm-openmeter.body": [
        of_litellm("chatcmpl-c1b925ba4ae44fb59c72f3c718a5cb34", 1_795_211_744_517_985, "cached-" + LLAMA, (4100, 144), "0.00301324")
    ],
    "captured-015-py-cloudevents-structured.body": [of_python("ced-py-structured")],
    "captured-016-py-cloudevents-binary.body": [of_python("ced-py-binary")],
    "captured-023-openmeter-py-event.body": [of_openmeter("omd-1", 12, 3)],
    "captured-024-openmeter-py-events.body": [
        of_openmeter("omd-2", 100, 50, TEN_O_CLOCK - 1),
        of_openmeter("omd-3", 7, 0),
        of_openmeter("omd-2", 100, 50, TEN_O_CLOCK - 1),
    ],
    "captured-025-openmeter-py-events_json.body": [of_openmeter("omd-4", 1, 1)],
    "captured-029-js-cloudevents-structured.body": [of_javascript("ced-js-1", 10, 5)],
    "captured-030-js-cloudevents-binary.body": [of_javascript("ced-js-2", 20, 7)],
    "openmeter-prompt-event.json": [
        CapturedEvent(
            id="5c10fade-1c9e-4d6c-8275-c52c36731d3c",
            time=1_795_080_000_000_000,
            source="demo-org-seeder",
            model="Llama-3.3-70B-Instruct",
            input_tokens=412,
            output_tokens=0,
            flags=Flag.PARTIAL_DIRECTION,
            details={"source_format": "cloudevents", "subject": "demo-subject-7"},
        )
    ],
}


def captured_headers(name: str) -> dict[str, str]:
    meta = DATA / (name.removesuffix(".body") + ".meta.json")
    return {name.lower(): value for name, value in json.loads(meta.read_text())["headers"]} if meta.exists() else {}


def test_every_captured_body_has_an_expectation() -> None:
    assert {path.name for path in DATA.iterdir() if not path.name.endswith(".meta.json")} == set(CAPTURED)


@pytest.mark.parametrize("name", sorted(CAPTURED))
def test_a_captured_request_becomes_its_events(name: str) -> None:
    headers = captured_headers(name)
    assert capture((DATA / name).read_bytes(), media_type=headers.get("content-type"), headers=headers) == CAPTURED[name]


BINARY = {"ce-specversion": "1.0", "ce-id": "e-1", "ce-source": "urn:app", "ce-type": "llm.usage", "ce-time": "2026-11-20T10:00:00Z"}


def test_every_mode_carries_the_same_event() -> None:
    whole = one(event())
    assert (whole.id, whole.source, whole.time, whole.input_tokens, whole.output_tokens) == ("e-1", "urn:app", TEN_O_CLOCK, 11, 4)
    assert not whole.is_native_time
    assert capture(event(), media_type=STRUCTURED + "; charset=utf-8") == [whole]
    assert capture([event(), event()], media_type=BATCH) == [whole, whole]
    assert capture([event()], media_type=None) == [whole]
    assert capture(event()["data"], headers=BINARY) == [whole]
    assert capture(event()["data"], media_type=None, headers=BINARY) == [whole]
    assert capture(event()["data"], media_type="application/vnd.acme+json", headers=BINARY) == [whole]
    encoded = base64.b64encode(json.dumps(event()["data"]).encode()).decode()
    assert one(event(data="absent", data_base64=encoded)) == whole
    assert one(event(data="absent", data_base64=encoded, datacontenttype="application/json")) == whole


def test_a_batch_may_be_empty() -> None:
    assert capture([], media_type=BATCH) == []
    assert capture("[ ]") == []


@pytest.mark.parametrize(("body", "media_type"), [(event(), BATCH), ([event()], STRUCTURED)])
def test_a_body_that_is_not_of_its_content_type_is_refused_whole(body: Any, media_type: str) -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(body, media_type=media_type)
    assert fault.value.error == "schema_invalid"


def test_events_in_other_encodings_are_not_read() -> None:
    with pytest.raises(InvalidInput) as fault:
        capture("<event/>", media_type="application/cloudevents+xml")
    assert fault.value.error == "unsupported_media_type"
    assert refusal("text", media_type="text/plain", headers=BINARY).error == "unsupported_media_type"
    assert refusal(event(data="absent", data_base64="aGk=", datacontenttype="text/plain")).error == "unsupported_media_type"


@pytest.mark.parametrize("body", [b"", b"hello", b"{", b"\xff{}", b"[1", b'{"a":' * 20_000 + b"1" + b"}" * 20_000])
@pytest.mark.parametrize("media_type", [None, "application/json"])
def test_a_body_that_cannot_be_read_is_malformed(body: bytes, media_type: str | None) -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(body, media_type=media_type)
    assert fault.value.error == "malformed"


@pytest.mark.parametrize(
    ("said", "source"),
    [
        ("urn%3Aapp", "urn:app"),
        ("gr%C3%B6%C3%9Fe", "größe"),
        ("50%2525", "50%25"),
        ('"a \\"quoted\\" one"', 'a "quoted" one'),
        (" urn:app ", "urn:app"),
        ("100%", "100%"),
        ("größe".encode().decode("latin-1"), "größe"),
    ],
)
def test_a_header_is_decoded_once(said: str, source: str) -> None:
    assert one(event()["data"], headers=BINARY | {"ce-source": said}).source == source


@pytest.mark.parametrize("said", ["%FF", "%C3", "ö", "%ED%A0%80"])
def test_a_header_that_is_no_utf_8_is_refused(said: str) -> None:
    assert refusal(event()["data"], headers=BINARY | {"ce-source": said}).error == "invalid_value"


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
@pytest.mark.parametrize("value", ["absent", None, "", 7])
def test_the_required_attributes_are_required(name: str, value: Any) -> None:
    verdict = refusal(event(**{name: value}))
    assert (verdict.error, name in verdict.detail) == ("schema_invalid", True)
    if value == "absent":
        headers = {header: said for header, said in BINARY.items() if header != f"ce-{name}"}
        assert refusal(event()["data"], headers=headers).error == "schema_invalid"


@pytest.mark.parametrize("version", ["0.3", "1.1", "2.0", "1"])
def test_another_version_is_not_read(version: str) -> None:
    assert refusal(event(specversion=version)).error == "unsupported_version"


def test_attributes_that_are_optional_may_be_null() -> None:
    assert one(event(subject=None, datacontenttype=None, dataschema=None, time=None)) == one(event(time="absent"))
    assert one(event(time=None)).time is None


@pytest.mark.parametrize(
    ("said", "time"),
    [
        ("2026-11-20T18:00:00+08:00", TEN_O_CLOCK),
        ("2026-11-20T10:00:00.0000019Z", TEN_O_CLOCK + 1),
        ("2026-11-20t10:00:00z", TEN_O_CLOCK),
        ("1970-01-01T00:00:00Z", None),
    ],
)
def test_time_is_rfc_3339(said: str, time: int | None) -> None:
    assert one(event(time=said)).time == time


@pytest.mark.parametrize("said", ["2026-11-20T10:00:00", "2026-11-20", "now", 1_795_168_800, True, "2026-13-20T10:00:00Z"])
def test_a_time_without_an_offset_is_refused(said: Any) -> None:
    assert refusal(event(time=said)).error == "invalid_time"


def test_events_of_other_types_are_ignored() -> None:
    for data in ({"order": 7}, {"tokens": 5}, {"tokens": 5, "type": "total"}, "text", '{"prompt_tokens": 1}', [1], None, 7):
        assert isinstance(capture(event(type="com.example.order", data=data))[0], Ignored)
    assert isinstance(capture("<xml/>", media_type="text/xml", headers=BINARY | {"ce-type": "com.example.order"})[0], Ignored)
    assert isinstance(capture("{oops", headers=BINARY | {"ce-type": "com.example.order"})[0], Ignored)
    assert isinstance(capture("", media_type=None, headers=BINARY | {"ce-type": "com.example.order"})[0], Ignored)


@pytest.mark.parametrize("kind", ["llm.usage", "litellm_tokens"])
@pytest.mark.parametrize("data", ["absent", None, '{"prompt_tokens": 1}', [1], 7])
def test_a_text_in_data_is_not_parsed_again(kind: str, data: Any) -> None:
    assert refusal(event(type=kind, data=data)).error == "schema_invalid"


def test_usage_by_the_native_names() -> None:
    data = {
        "workspace": "finance",
        "endpoint": "e",
        "deployment": "d",
        "model": "llama",
        "fine_tuned": True,
        "operation": "text_completion",
        "input_tokens": 11,
        "output_tokens": 4,
        "cached_input_tokens": 3,
        "reasoning_output_tokens": 2,
        "status": "filtered",
        "http_status": 200,
        "finish_reason": "content_filter",
        "billable": False,
        "application": "app",
        "team": "care",
        "user": "u-7",
        "tags": {"env": "prod"},
        "choices": 2,
        "best_of": 3,
        "max_tokens": 64,
        "duration_ms": 900,
        "stream": True,
        "response_id": "r",
        "request_id": "q",
        "throttled_by": "client",
        "ratelimit_remaining_tokens": -1,
        "ratelimit_remaining_requests": 9,
        "started_at": "2026-11-20T09:59:59.1Z",
        "messages": [{"content": "not taken"}],
    }
    assert of_data(data, subject="customer") == CapturedEvent(
        id="e-1",
        time=TEN_O_CLOCK,
        source="urn:app",
        workspace="finance",
        endpoint="e",
        deployment="d",
        model="llama",
        operation=Operation.TEXT_COMPLETION,
        fine_tuned=True,
        application="app",
        team="care",
        tags={"env": "prod"},
        status=Status.FILTERED,
        billable=False,
        input_tokens=11,
        output_tokens=4,
        cached_input_tokens=3,
        reasoning_output_tokens=2,
        started_at=TEN_O_CLOCK - 900_000,
        details={
            "source_format": "cloudevents",
            "subject": "customer",
            "user": "u-7",
            "http_status": 200,
            "finish_reason": "content_filter",
            "choices": 2,
            "best_of": 3,
            "max_tokens": 64,
            "duration_ms": 900,
            "stream": True,
            "response_id": "r",
            "request_id": "q",
            "throttled_by": "client",
            "ratelimit_remaining_requests": 9,
        },
    )


def test_usage_as_an_openai_object() -> None:
    usage = {"prompt_tokens": "11", "completion_tokens": 4.0, "total_tokens": 16, "prompt_tokens_details": {"cached_tokens": 12}}
    found = of_data({"usage": usage})
    assert (found.input_tokens, found.output_tokens, found.cached_input_tokens, found.details["total_tokens_reported"]) == (11, 4, None, 16)
    assert found.flags == Flag.COERCED | Flag.TOTAL_MISMATCH | Flag.SUBSET_EXCEEDS_TOTAL
    nothing: list[dict[str, Any]] = [{}, {"usage": None}, {"usage": {}}, {"input_tokens": None}]
    for data in nothing:
        unknown = of_data(data)
        assert (unknown.input_tokens, unknown.output_tokens, unknown.quality, unknown.flags) == (None, None, Quality.MISSING, Flag.USAGE_MISSING)


def test_litellms_zeros_are_unknown_and_others_are_counts() -> None:
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cost": 0}
    unknown = of_data(zeros, type="litellm_tokens", subject="u-7")
    assert (unknown.input_tokens, unknown.quality, unknown.flags) == (None, Quality.MISSING, Flag.USAGE_MISSING)
    assert unknown.details == {
        "source_format": "cloudevents",
        "response_id": "e-1",
        "subject": "u-7",
        "user": "u-7",
        "reported_cost": "0",
        "reported_cost_currency": "USD",
    }
    zero = of_data(zeros, subject="u-7")
    assert (zero.input_tokens, zero.quality, zero.flags, zero.details) == (
        0,
        Quality.REPORTED,
        Flag.ZERO_USAGE,
        {"source_format": "cloudevents", "subject": "u-7"},
    )


@pytest.mark.parametrize("kind", ["prompt", "tokens", "llm.usage"])
@pytest.mark.parametrize(
    ("data", "counts", "flags"),
    [
        ({"tokens": 412, "type": "input"}, (412, 0), Flag.PARTIAL_DIRECTION),
        ({"tokens": "31", "type": "output"}, (0, 31), Flag.PARTIAL_DIRECTION | Flag.COERCED),
        ({"tokens": 0, "type": "output"}, (0, 0), Flag.PARTIAL_DIRECTION),
    ],
)
def test_one_direction_leaves_the_other_to_another_event(kind: str, data: dict[str, Any], counts: tuple[int, int], flags: Flag) -> None:
    found = of_data(data, type=kind)
    assert (found.input_tokens, found.output_tokens, found.flags, found.quality) == (*counts, flags, Quality.REPORTED)


def test_the_request_names_what_the_event_does_not() -> None:
    defaults = Defaults(source="never", workspace="finance", deployment="llama-70b", model="llama", application="app", team="care", user="u-1")
    found = one(event(data={"usage": {"prompt_tokens": 1, "completion_tokens": 1}}), defaults=defaults)
    assert (found.source, found.workspace, found.deployment, found.model) == ("urn:app", "finance", "llama-70b", "llama")
    assert (found.application, found.team, found.details) == ("app", "care", {"source_format": "cloudevents", "user": "u-1"})
    assert one(event(data={"endpoint": "e"}), defaults=defaults).deployment is None
    assert one(event(llmworkspace="retail"), defaults=defaults).workspace == "retail"


def test_a_subject_is_never_a_reason_to_lose_the_tokens() -> None:
    assert "subject" not in one(event(subject="s" * 300)).details
    assert one(event(subject="s\0")).input_tokens == 11


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([7], "schema_invalid"),
        ([None], "schema_invalid"),
        (event(subject=7), "schema_invalid"),
        (event(source="s" * 257), "invalid_value"),
        (event(id="a\0b"), "invalid_value"),
        (event(id="\ud800"), "invalid_value"),
        (event(data_base64="aGk="), "schema_invalid"),
        (event(data="absent", data_base64=7), "schema_invalid"),
        (event(data="absent", data_base64="no base64!"), "invalid_value"),
        (event(data="absent", data_base64="aGk="), "malformed"),
        (event(data={"usage": 7}), "schema_invalid"),
        (event(data={"input_tokens": -1}), "invalid_value"),
        (event(data={"input_tokens": True}), "invalid_value"),
        (event(data={"usage": {"prompt_tokens": 1.5}}), "invalid_value"),
        (event(type="prompt", data={"tokens": -1, "type": "input"}), "invalid_value"),
        (event(data={"operation": "thinking"}), "invalid_value"),
        (event(data={"status": 7}), "schema_invalid"),
        (event(data={"billable": "yes"}), "schema_invalid"),
        (event(data={"throttled_by": "moon"}), "invalid_value"),
        (event(data={"http_status": 1000}), "invalid_value"),
        (event(data={"choices": -1}), "invalid_value"),
        (event(data={"tags": ["a"]}), "schema_invalid"),
        (event(data={"tags": {"a": 1}}), "schema_invalid"),
        (event(data={"tags": {str(number): "" for number in range(65)}}), "schema_invalid"),
        (event(data={"started_at": "soon"}), "invalid_time"),
        (event(data={"deployment": 7}), "schema_invalid"),
    ],
)
def test_a_fault_is_refused_by_its_class(body: Any, error: str) -> None:
    assert refusal(body).error == error


def test_a_bad_event_costs_no_neighbour() -> None:
    good = json.dumps(event())
    for bad in ("{oops}", "null", json.dumps(event(specversion="0.3")), '{"a":' * 20_000 + "1" + "}" * 20_000):
        first, second, third = capture(f"[{good}, {bad}, {good}]", media_type=BATCH)
        assert isinstance(first, CapturedEvent)
        assert isinstance(second, Refusal)
        assert first == third


CANARY = "canary says: my password is swordfish"
KEPT = {"specversion", "id", "source", "type", "time", "subject", "model", "deployment", "llmworkspace", "datacontenttype"}


def planted(value: Any, name: str = "") -> Any:
    """The value with the canary in every text that could carry content and in fields that nobody knows."""
    if isinstance(value, dict):
        content = {"messages": [{"content": CANARY}], "prompt": CANARY, "response": CANARY, "api_key": CANARY, CANARY: {"deep": [CANARY]}}
        return {key: planted(inner, key) for key, inner in value.items()} | content
    if isinstance(value, list):
        return [planted(inner, name) for inner in value]
    return CANARY if isinstance(value, str) and name not in KEPT else value


@pytest.mark.parametrize("name", sorted(CAPTURED))
def test_nothing_that_was_said_and_no_secret_is_kept(name: str) -> None:
    headers = captured_headers(name) | {"authorization": f"Bearer {CANARY}", "cookie": CANARY, "ce-secret": CANARY, "x-unknown": CANARY}
    body = json.dumps(planted(json.loads((DATA / name).read_text())))
    assert body.count(CANARY) > 4
    is_binary = "ce-id" in headers
    items = capture(body, media_type=headers.get("content-type"), headers=headers if is_binary else {key: headers[key] for key in headers if key[:3] != "ce-"})
    assert items == CAPTURED[name]


@pytest.mark.parametrize(
    "body",
    [
        CANARY,
        [CANARY],
        {CANARY: CANARY},
        event(specversion=CANARY),
        event(time=CANARY),
        event(data=CANARY),
        event(data={"input_tokens": CANARY}),
        event(data={"status": CANARY}),
        event(data={"throttled_by": CANARY}),
        event(data={"tags": CANARY}),
        event(data="absent", data_base64=CANARY),
        event(type=CANARY),
    ],
)
def test_no_verdict_repeats_what_was_sent(body: Any) -> None:
    assert "swordfish" not in "\n".join(verdicts(json.dumps(body).encode()))


def verdicts(body: bytes, media_type: str | None = None, headers: dict[str, str] | None = None) -> list[str]:
    """Each item's verdict in words, or that on the body."""
    try:
        items = capture(body, media_type=media_type, headers=headers)
    except InvalidInput as fault:
        return [f"{fault.error}: {fault.message}"]
    return [repr(item) for item in items]


FIELDS = [
    *event(),
    "subject",
    "data_base64",
    "usage",
    "tokens",
    "input_tokens",
    "prompt_tokens",
    "tags",
    "operation",
    "status",
    "started_at",
    "datacontenttype",
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["input", "litellm_tokens", "1.0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200) | st.text(alphabet='[]{}",:\\nul \n1', max_size=60).map(str.encode),
    st.sampled_from([None, STRUCTURED, BATCH, "application/json", "application/x-ndjson"]),
    st.dictionaries(st.sampled_from(list(BINARY)), st.text(max_size=8), max_size=5),
)
def test_any_bytes_and_headers_are_judged(body: bytes, media_type: str | None, headers: dict[str, str]) -> None:
    assert all(verdicts(body, media_type, headers))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON_VALUES)))
def test_any_damaged_event_is_judged_and_its_neighbour_kept(damage: dict[str, Any]) -> None:
    damaged, within, neighbour = verdicts(json.dumps([event() | damage, event(data=damage), event()]).encode())
    assert damaged
    assert within
    assert neighbour == repr(one(event()))
