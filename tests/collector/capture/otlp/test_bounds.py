"""What is never kept, what is refused without costing a neighbour, and what is said back."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.capture import otlp
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.otlp import records
from models.errors import InvalidInput
from models.usage import Status
from tests.collector.capture.otlp.messages import (
    CALL,
    DATA,
    JSON,
    PROTOBUF,
    RECEIVED_AT,
    body_of,
    events,
    failed,
    field,
    logs,
    packed_pairs,
    refusal,
    request,
    span,
    traces,
    varint,
)


def fixed(number: int, nanoseconds: str | int) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<Q", int(nanoseconds))


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
