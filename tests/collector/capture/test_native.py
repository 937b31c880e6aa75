"""The native usage event: what is taken, what is refused and by which class."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.capture import native
from collector.capture.columns import columns_of
from collector.capture.event import CapturedEvent, Defaults, Item, Refusal
from models.errors import InvalidInput
from models.usage import Flag, Operation, Quality, Status

# 2026-11-20T10:00:00Z
TEN_O_CLOCK = 1_795_168_800_000_000

JSON_TYPE = "application/json"
LINES_TYPE = "application/x-ndjson"


def native_event(**changes: Any) -> dict[str, Any]:
    event = {"id": "r-1", "time": "2026-11-20T10:00:00Z", "deployment": "llama", "input_tokens": 1200, "output_tokens": 300}
    return {name: value for name, value in (event | changes).items() if value != "absent"}


def capture(body: Any, *, media_type: str | None = JSON_TYPE, defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return list(native.capture(raw, media_type=media_type, defaults=defaults or Defaults()))


def one(**changes: Any) -> CapturedEvent:
    (item,) = capture(native_event(**changes))
    assert isinstance(item, CapturedEvent), item
    return item


def refusal(**changes: Any) -> Refusal:
    (item,) = capture(native_event(**changes))
    assert isinstance(item, Refusal), item
    return item


def ids(items: list[Item]) -> list[str | None]:
    return [item.id if isinstance(item, CapturedEvent) else item.error for item in items if not hasattr(item, "reason")]


def test_every_field_finds_its_place() -> None:
    (event,) = capture(
        {
            "id": "r-1",
            "time": "2026-11-20T10:00:00.123456Z",
            "started_at": "2026-11-20T11:59:58+02:00",
            "source": "gateway",
            "workspace": "finance",
            "deployment": "llama",
            "endpoint": "chat-endpoint",
            "model": "Llama-3.3-70B-Instruct",
            "fine_tuned": True,
            "operation": "text_completion",
            "input_tokens": 1200,
            "output_tokens": 300,
            "cached_input_tokens": 1024,
            "reasoning_output_tokens": 12,
            "choices": 3,
            "best_of": 4,
            "max_tokens": 512,
            "status": "filtered",
            "finish_reason": "content_filter",
            "throttled_by": "gateway",
            "billable": False,
            "ratelimit_remaining_tokens": 399000,
            "ratelimit_remaining_requests": -1,
            "ratelimit_limit_tokens": 400_000,
            "ratelimit_limit_requests": -1,
            "http_status": 200,
            "duration_ms": 2123,
            "stream": True,
            "application": "support",
            "team": "care",
            "user": "u-7",
            "tags": {"stage": "prod", "größe": "ß\n"},
            "response_id": "chatcmpl-1",
            "request_id": "apim-1",
        }
    )
    assert event == CapturedEvent(
        id="r-1",
        time=TEN_O_CLOCK + 123_456,
        source="gateway",
        workspace="finance",
        endpoint="chat-endpoint",
        deployment="llama",
        model="Llama-3.3-70B-Instruct",
        operation=Operation.TEXT_COMPLETION,
        fine_tuned=True,
        application="support",
        team="care",
        tags={"stage": "prod", "größe": "ß\n"},
        status=Status.FILTERED,
        billable=False,
        input_tokens=1200,
        output_tokens=300,
        cached_input_tokens=1024,
        reasoning_output_tokens=12,
        quality=Quality.REPORTED,
        flags=Flag.NONE,
        started_at=TEN_O_CLOCK - 2_000_000,
        is_native_time=True,
        details={
            "choices": 3,
            "best_of": 4,
            "max_tokens": 512,
            "finish_reason": "content_filter",
            "throttled_by": "gateway",
            "ratelimit_remaining_tokens": 399000,
            "ratelimit_limit_tokens": 400_000,
            "http_status": 200,
            "duration_ms": 2123,
            "stream": True,
            "user": "u-7",
            "response_id": "chatcmpl-1",
            "request_id": "apim-1",
        },
    )


def test_what_is_not_said_has_its_default() -> None:
    event = one(source=None, tags=None, status=None, billable=None, model="")
    assert (event.source, event.operation, event.status, event.billable, event.fine_tuned) == ("default", Operation.CHAT, Status.SUCCESS, True, False)
    assert (event.workspace, event.model, event.started_at, event.tags, event.details) == (None, None, None, {}, {})
    assert one(deployment="absent").deployment is None


def test_the_request_fills_only_what_the_event_leaves_open() -> None:
    defaults = Defaults(source="key-source", workspace="w", deployment="d", model="m", application="a", team="t", user="u")
    bare, said, by_endpoint = capture(
        [
            {"id": "1", "time": "2026-11-20T10:00:00Z"},
            native_event(id="2", source="s", workspace="x", model="y", application="b", team="v", user="z"),
            {"id": "3", "time": "2026-11-20T10:00:00Z", "endpoint": "e"},
        ],
        defaults=defaults,
    )
    assert isinstance(bare, CapturedEvent)
    assert (bare.source, bare.workspace, bare.deployment, bare.model, bare.application, bare.team) == ("key-source", "w", "d", "m", "a", "t")
    assert bare.details == {"user": "u"}
    assert isinstance(said, CapturedEvent)
    assert (said.source, said.workspace, said.deployment, said.model, said.application, said.team) == ("s", "x", "llama", "y", "b", "v")
    assert said.details == {"user": "z"}
    assert isinstance(by_endpoint, CapturedEvent)
    assert (by_endpoint.endpoint, by_endpoint.deployment) == ("e", None)


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b'[{"id":"a","time":"2026-11-20T10:00:00Z"},{"id":"b","time":"2026-11-20T10:00:00Z"}]', JSON_TYPE),
        (b'{"id":"a","time":"2026-11-20T10:00:00Z"}\n{"id":"b","time":"2026-11-20T10:00:00Z"}', JSON_TYPE),
        (b'{"id":"a","time":"2026-11-20T10:00:00Z"}\r\n\r\n  \n{"id":"b","time":"2026-11-20T10:00:00Z"}\r\n', LINES_TYPE),
        (b'{"id":"a","time":"2026-11-20T10:00:00Z"}\n{"id":"b","time":"2026-11-20T10:00:00Z"}\n', "Application/JSONL; charset=utf-8"),
        (b'\xef\xbb\xbf\n[{"id":"a","time":"2026-11-20T10:00:00Z"}, {"id":"b","time":"2026-11-20T10:00:00Z"}]\n', None),
    ],
)
def test_arrays_and_lines_are_read_alike(body: bytes, media_type: str | None) -> None:
    assert ids(capture(body, media_type=media_type)) == ["a", "b"]


def test_no_items_are_no_fault() -> None:
    assert capture(b"[]") == []
    assert capture(b"", media_type=LINES_TYPE) == []


def test_a_pretty_printed_event_is_one_event() -> None:
    assert ids(capture(json.dumps(native_event(), indent=1).encode())) == ["r-1"]


def test_a_bad_item_in_an_array_costs_no_neighbour() -> None:
    items = capture([native_event(id="1"), native_event(id="2", prompt="secret"), 7, None, native_event(id="5")])
    assert ids(items) == ["1", "schema_invalid", "schema_invalid", "schema_invalid", "5"]
    assert isinstance(items[1], Refusal)
    assert "prompt" in items[1].detail
    assert "secret" not in items[1].detail


def test_a_bad_line_costs_no_neighbour() -> None:
    good = json.dumps(native_event(id="1")).encode()
    for media_type in (LINES_TYPE, JSON_TYPE):
        body = b"\n".join([good, b"", b"{broken", good.replace(b'"1"', b'"2"'), b'{"id": "\xff"}', good.replace(b'"1"', b'"3"')])
        assert ids(capture(body, media_type=media_type)) == ["1", "malformed", "2", "malformed", "3"]


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (b'{"id":"x\\ud800","time":"2026-11-20T10:00:00Z"}', "invalid_value"),
        (b'{"id":"\\udc00\\ud83d\\ude00","time":"2026-11-20T10:00:00Z"}', "invalid_value"),
        (b'{"id":"\\\\ud800","time":NaN}', "malformed"),
        (b'{"id":"x","input_tokens":Infinity}', "malformed"),
        (b"[" * 20_000 + b"]" * 20_000, "malformed"),
        (b'{"id":"x","tags":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, "malformed"),
        (b'{"id":"\xff","time":"2026-11-20T10:00:00Z"}', "malformed"),
        (b'{"id":"x","input_tokens":' + b"9" * 5_000 + b"}", "invalid_value"),
    ],
)
def test_an_item_that_stops_the_decoder_costs_no_neighbour(broken: bytes, error: str) -> None:
    good = json.dumps(native_event(id="1")).encode()
    assert ids(capture(b"[" + good + b"," + broken + b", " + good.replace(b'"1"', b'"2"') + b"]")) == ["1", error, "2"]
    assert ids(capture(good + b"\n" + broken + b"\n" + good.replace(b'"1"', b'"2"'), media_type=LINES_TYPE)) == ["1", error, "2"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"hello",
        b"{",
        b'{"id":"a"',
        b'[{"id":"a"}',
        b"[1,2",
        b'["a',
        b"]",
        b"\xff\xfe",
        b'{"id":"a",\n "time": }',
        b"[" * 20_000,
        b"{}{}",
        b'{"prompt": "cut o',
        b"[1]]",
    ],
)
def test_a_body_that_is_no_json_is_malformed_as_a_whole(body: bytes) -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(body)
    assert fault.value.error == "malformed"


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"id": "absent"}, "schema_invalid", "id"),
        ({"id": None}, "schema_invalid", "id"),
        ({"id": 7}, "schema_invalid", "id"),
        ({"id": ""}, "invalid_value", "id"),
        ({"id": "x" * 257}, "invalid_value", "id"),
        ({"id": "a\0b"}, "invalid_value", "id"),
        ({"id": "a\nb"}, "invalid_value", "id"),
        ({"id": "a\x7fb"}, "invalid_value", "id"),
        ({"deployment": "a\x85b"}, "invalid_value", "deployment"),
        ({"model": "m" * 257}, "invalid_value", "model"),
        ({"user": "a\x00"}, "invalid_value", "user"),
        ({"prompt": "hello"}, "schema_invalid", "prompt"),
        ({"input_tokens": 12.0}, "schema_invalid", "input_tokens"),
        ({"input_tokens": "12"}, "schema_invalid", "input_tokens"),
        ({"input_tokens": True}, "schema_invalid", "input_tokens"),
        ({"output_tokens": -1}, "invalid_value", "output_tokens"),
        ({"output_tokens": 2**53}, "invalid_value", "output_tokens"),
        ({"output_tokens": 10**30}, "invalid_value", "output_tokens"),
        ({"cached_input_tokens": -1}, "invalid_value", "cached_input_tokens"),
        ({"duration_ms": 1.5}, "schema_invalid", "duration_ms"),
        ({"operation": "image"}, "invalid_value", "operation"),
        ({"status": "ok"}, "invalid_value", "status"),
        ({"status": 200}, "schema_invalid", "status"),
        ({"throttled_by": "me"}, "invalid_value", "throttled_by"),
        ({"billable": 1}, "schema_invalid", "billable"),
        ({"tags": ["a"]}, "schema_invalid", "tags"),
        ({"tags": {"a": 1}}, "schema_invalid", "tags"),
        ({"tags": {"a": {"b": "c"}}}, "schema_invalid", "tags"),
        ({"tags": {"a": "\0"}}, "invalid_value", "tags"),
        ({"tags": {"a": "v" * 257}}, "invalid_value", "tags"),
        ({"tags": {"k" * 257: "v"}}, "invalid_value", "tags"),
        ({"tags": {str(number): "v" for number in range(65)}}, "invalid_value", "tags"),
        ({"time": "absent"}, "schema_invalid", "time"),
        ({"time": 1795168800}, "schema_invalid", "time"),
        ({"time": "2026-11-20T10:00:00"}, "invalid_time", "time"),
        ({"time": "2026-11-20"}, "invalid_time", "time"),
        ({"time": ""}, "invalid_time", "time"),
        ({"time": "yesterday"}, "invalid_time", "time"),
        ({"time": "2026-02-30T10:00:00Z"}, "invalid_time", "time"),
        ({"time": "2026-11-20T25:00:00Z"}, "invalid_time", "time"),
        ({"time": "20261120T100000Z"}, "invalid_time", "time"),
        ({"time": "2026-11-20T10:00:60Z"}, "invalid_time", "time"),
        ({"time": "2026-11-20T10:00:00+00:00Z"}, "invalid_time", "time"),
        ({"time": "2026-11-20T10:00:00.+00:00"}, "invalid_time", "time"),
        ({"time": "Z"}, "invalid_time", "time"),
        ({"time": "+00:00"}, "invalid_time", "time"),
        ({"time": "2026-11-20T10:00:00.Z"}, "invalid_time", "time"),
        ({"time": "2026-11-20T10:00:00.1+05:00Z"}, "invalid_time", "time"),
        ({"time": "2026-11-20T10:00:00.١Z"}, "invalid_time", "time"),
        ({"time": "2022-12-31T23:59:59.999999Z"}, "invalid_time", "time"),
        ({"time": "0001-01-01T00:00:00+05:00"}, "invalid_time", "time"),
        ({"started_at": "2026-11-20T09:00:00"}, "invalid_time", "started_at"),
        ({"started_at": "then"}, "invalid_time", "started_at"),
    ],
)
def test_a_fault_is_refused_by_class_and_field(changes: dict[str, Any], error: str, named: str) -> None:
    verdict = refusal(**changes)
    assert (verdict.error, named in verdict.detail) == (error, True), verdict


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-11-20T10:00:00Z", TEN_O_CLOCK),
        ("2026-11-20t10:00:00z", TEN_O_CLOCK),
        ("2026-11-20T12:00:00+02:00", TEN_O_CLOCK),
        ("2026-11-20T10:00:00+00:00", TEN_O_CLOCK),
        ("2026-11-20T10:00:07.25+00:00", TEN_O_CLOCK + 7_250_000),
        ("2026-11-20T10:00:00-00:00", TEN_O_CLOCK),
        ("2026-11-20T10:00:07.1Z", TEN_O_CLOCK + 7_100_000),
        ("2026-11-20T10:00:07.123Z", TEN_O_CLOCK + 7_123_000),
        ("2026-11-20T10:00:07.000001Z", TEN_O_CLOCK + 7_000_001),
        ("2026-11-20T10:00:59.999999999Z", TEN_O_CLOCK + 59_999_999),
        ("2026-11-20T12:00:07.9999999+02:00", TEN_O_CLOCK + 7_999_999),
        ("2023-01-01T00:00:00Z", 1_672_531_200_000_000),
    ],
)
def test_time_is_exact_to_the_microsecond_and_finer_digits_are_cut(text: str, micros: int) -> None:
    # Once as the first of its minute and once among others.
    native._MINUTES.clear()
    assert [one(time=text).time for _ in range(3)] == [micros] * 3


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.datetimes(min_value=datetime.fromisoformat("2023-01-01"), max_value=datetime.fromisoformat("2030-01-01")),
    st.sampled_from(["seconds", "milliseconds", "microseconds"]),
    st.sampled_from(["Z", "+00:00", "+05:45", "-11:00"]),
)
def test_every_time_is_read_as_the_calendar_has_it(at: datetime, timespec: str, offset: str) -> None:
    written = at.isoformat(timespec=timespec) + offset
    expected = (datetime.fromisoformat(written) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert native._micros(written, "time") == expected
    assert native._micros(written, "time") == expected


def test_many_minutes_are_met_and_not_all_are_kept() -> None:
    for day in range(1, 9):
        for minute in range(1440):
            native._micros(f"2026-11-{day:02}T{minute // 60:02}:{minute % 60:02}:00Z", "time")
    assert 0 < len(native._MINUTES) <= 10_000
    assert native._micros("2026-11-01T00:00:00.5Z", "time") == TEN_O_CLOCK - (19 * 24 + 10) * 3_600_000_000 + 500_000


def test_a_call_that_starts_after_its_end_keeps_only_its_end() -> None:
    event = one(started_at="2026-11-20T10:00:01Z")
    assert (event.time, event.started_at) == (TEN_O_CLOCK, None)


@pytest.mark.parametrize(
    ("changes", "quality", "output"),
    [
        ({}, Quality.REPORTED, 300),
        ({"output_tokens": None}, Quality.MISSING, None),
        ({"output_tokens": "absent", "status": "incomplete"}, Quality.MISSING, None),
        ({"output_tokens": None, "status": "filtered"}, Quality.MISSING, None),
        ({"output_tokens": None, "status": "filtered", "http_status": 200}, Quality.MISSING, None),
        ({"output_tokens": None, "status": "filtered", "http_status": 400}, Quality.REPORTED, None),
        ({"output_tokens": None, "status": "error"}, Quality.REPORTED, None),
        ({"output_tokens": None, "status": "throttled"}, Quality.REPORTED, None),
        ({"output_tokens": None, "billable": False}, Quality.REPORTED, None),
        ({"output_tokens": None, "operation": "embeddings"}, Quality.REPORTED, 0),
        ({"output_tokens": None, "input_tokens": None, "operation": "embeddings"}, Quality.MISSING, None),
    ],
)
def test_a_count_that_is_needed_and_not_known_is_missing(changes: dict[str, Any], quality: Quality, output: int | None) -> None:
    event = one(**changes)
    assert (event.quality, event.output_tokens) == (quality, output)
    assert event.flags == (Flag.USAGE_MISSING if quality is Quality.MISSING else Flag.NONE)


def test_a_subset_larger_than_its_whole_is_dropped_and_flagged() -> None:
    event = one(cached_input_tokens=1201, reasoning_output_tokens=300)
    assert (event.input_tokens, event.cached_input_tokens, event.reasoning_output_tokens) == (1200, None, 300)
    assert event.flags == Flag.SUBSET_EXCEEDS_TOTAL
    assert one(reasoning_output_tokens=301).flags == Flag.SUBSET_EXCEEDS_TOTAL
    assert one(cached_input_tokens=1200).cached_input_tokens == 1200


def test_a_subset_of_an_unknown_whole_is_not_kept() -> None:
    event = one(input_tokens=None, cached_input_tokens=5)
    assert (event.cached_input_tokens, event.flags) == (None, Flag.USAGE_MISSING)


def test_the_status_stays_as_it_was_sent() -> None:
    event = one(status="success", http_status=429)
    assert (event.status, event.details) == (Status.SUCCESS, {"http_status": 429})


def test_zero_is_a_count() -> None:
    event = one(input_tokens=0, output_tokens=0, ratelimit_remaining_tokens=0)
    assert (event.input_tokens, event.output_tokens, event.quality) == (0, 0, Quality.REPORTED)
    assert event.details == {"ratelimit_remaining_tokens": 0}


def test_names_come_back_byte_for_byte() -> None:
    event = one(deployment=" Llama–70B ", id='a"b\\c😀')
    assert (event.deployment, event.id) == (" Llama–70B ", 'a"b\\c😀')


def test_more_items_than_a_body_can_honestly_hold_are_too_large() -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(b"[" + b"1," * 500_000 + b"1]")
    assert fault.value.error == "too_large"


def test_a_large_hostile_body_is_judged_in_bounded_time() -> None:
    bodies = [b'["' + b"\\" * 1_000_000, b'[{"a":"' + b'\\"' * 500_000, b"[" * 1_000_000, b'{"id":"' + b"\\ud800" * 200_000 + b'"}', b"\n{" * 50_000]
    began = time.process_time()
    for body in bodies:
        assert "event" not in verdicts(body, JSON_TYPE)
    assert time.process_time() - began < 20


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
FIELD_NAMES = st.sampled_from(sorted(native._Sent.__struct_fields__)) | st.text(max_size=6)


def verdicts(body: bytes, media_type: str | None) -> list[str]:
    """The class of each item, or of the body."""
    try:
        items = native.capture(body, media_type=media_type, defaults=Defaults())
    except InvalidInput as fault:
        return [fault.error]
    return [item.error if isinstance(item, Refusal) else "event" if isinstance(item, CapturedEvent) else "ignored" for item in items]


KNOWN = {"event", "malformed", "schema_invalid", "invalid_value", "invalid_time", "too_large"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\ud8\n 1', max_size=60).map(str.encode), st.sampled_from([None, JSON_TYPE, LINES_TYPE]))
def test_any_bytes_are_judged(body: bytes, media_type: str | None) -> None:
    assert set(verdicts(body, media_type)) <= KNOWN


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(FIELD_NAMES, JSON_VALUES, max_size=6) | JSON_VALUES, max_size=5), st.booleans())
def test_any_json_is_judged(values: list[Any], is_lines: bool) -> None:
    body, media_type = ("\n".join(json.dumps(value) for value in values), LINES_TYPE) if is_lines else (json.dumps(values), JSON_TYPE)
    judged = verdicts(body.encode(), media_type)
    assert set(judged) <= KNOWN
    # One line that is an array of objects is the array: senders keep their content type when they begin to batch.
    alone = values[0] if is_lines and len(values) == 1 else None
    if isinstance(alone, list) and alone and all(isinstance(each, dict) for each in alone):
        values = alone
    assert len(judged) == len(values)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["good", "bad", "broken"]), min_size=1, max_size=8))
def test_verdicts_follow_the_order_of_the_items(kinds: list[str]) -> None:
    written = {"good": json.dumps(native_event()), "bad": json.dumps(native_event(input_tokens=-1)), "broken": '{"id": nope}'}
    expected = [{"good": "r-1", "bad": "invalid_value", "broken": "malformed"}[kind] for kind in kinds]
    assert ids(capture(("[" + ",".join(written[kind] for kind in kinds) + "]").encode())) == expected
    assert ids(capture("\n".join(written[kind] for kind in kinds).encode(), media_type=LINES_TYPE)) == expected


# -- large bodies ------------------------------------------------------------------------------------


def test_a_large_body_says_by_columns_what_it_says_one_by_one() -> None:
    lines = []
    for number in range(300):
        at = f"2026-11-{number % 28 + 1:02}T{number % 24:02}:{number % 60:02}:{number % 59:02}.{number:03}Z"
        event: dict[str, Any] = {"id": f"call-{number}", "time": at, "workspace": f"ws-{number % 3}", "input_tokens": number, "output_tokens": number % 7}
        match number % 11:
            case 1:
                event |= {"cached_input_tokens": number + 1}
            case 2:
                event |= {"output_tokens": None}
            case 3:
                event |= {"status": "throttled", "input_tokens": None, "http_status": 429, "throttled_by": "azure"}
            case 4:
                event |= {"started_at": "2026-10-01T00:00:00+02:00", "tags": {"b": "1", "a": "ü"}, "user": "u", "fine_tuned": True, "stream": False}
            case 5:
                event |= {"duration_ms": 12, "response_id": "r", "request_id": "", "finish_reason": "", "endpoint": "e", "billable": False}
            case 6:
                event |= {"time": "2026-02-30T00:00:00Z"}
            case 7:
                event |= {"operation": "embeddings", "output_tokens": None, "ratelimit_remaining_tokens": -1, "ratelimit_limit_requests": 60, "choices": 2}
            case 8:
                event |= {"started_at": "2027-01-01T00:00:00Z", "cached_input_tokens": 0}
            case _:
                pass
        lines.append(json.dumps(event, ensure_ascii=False))
    defaults = Defaults(deployment="llama", user="me", model="m")
    found = native.capture("\n".join(lines).encode(), media_type="application/x-ndjson", defaults=defaults)
    single = [native.capture(line.encode(), media_type="application/x-ndjson", defaults=defaults)[0] for line in lines]
    columns = found.columns  # type: ignore[attr-defined]  # of large bodies only
    assert list(found) == single
    events = [item for place, item in enumerate(single) if isinstance(item, CapturedEvent) and place not in set(columns.rest)]
    assert 150 < len(events) < 300
    expected = columns_of(events)
    assert expected is not None
    for name in ("ids", "short_ids", "inputs", "outputs", "cached", "reasoning", "started", "durations", "response_ids", "request_ids", "details"):
        assert getattr(columns, name) == getattr(expected, name), name
    for name in ("times", "status", "billable", "quality", "flags"):
        assert getattr(columns, name).tolist() == getattr(expected, name).tolist(), name
    assert [columns.said[code] for code in columns.codes] == [expected.said[code] for code in expected.codes]
    assert [columns.event(at) for at in range(len(events))] == events
