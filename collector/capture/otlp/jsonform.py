"""Reads the JSON encoding of OTLP: lowerCamelCase names, hex ids, integers as numbers or texts, unknown fields ignored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from collector.capture import bodies
from collector.capture.event import Refusal
from collector.capture.otlp.records import MAX_RECORDS, WANTED, Record, Scalar, Sum, Value
from models.errors import InvalidInput

# An attribute of two brackets takes some 30 bytes; a body that is little but brackets is an attack on memory.
_MAX_BRACKETS: Final = 4 * MAX_RECORDS
_MAX_COMMAS: Final = 500_000
_INTEGER = re.compile(r"-?[0-9]{1,20}\Z")
_DELTA, _CUMULATIVE = "AGGREGATION_TEMPORALITY_DELTA", "AGGREGATION_TEMPORALITY_CUMULATIVE"
_POINTS: Final = ("gauge", "sum", "histogram", "exponentialHistogram", "summary")
Json = dict[str, Any]


class _Unfit(Exception):
    """One record cannot be read; says what is wrong with it."""


def spans(body: bytes) -> Iterator[Record | Refusal]:
    """The spans of an ExportTraceServiceRequest."""
    return _records(body, "resourceSpans", "scopeSpans", "spans", _span)


def logs(body: bytes) -> Iterator[Record | Refusal]:
    """The records of an ExportLogsServiceRequest."""
    return _records(body, "resourceLogs", "scopeLogs", "logRecords", _log)


def sums(body: bytes) -> Iterator[Sum | Refusal]:
    """The data points of an ExportMetricsServiceRequest; those of kinds that do not add up have no value."""
    try:
        for group in _list(_loaded(body), "resourceMetrics"):
            resource: dict[str, Value] = {}
            said = _object(_object(group, "resourceMetrics").get("resource"), "resource")
            _attributes(said, resource)
            told = _told(said)
            for scope in _list(_object(group, "resourceMetrics"), "scopeMetrics"):
                named = json.dumps(_object(scope, "scopeMetrics").get("scope"), sort_keys=True)
                for metric in _list(_object(scope, "scopeMetrics"), "metrics"):
                    yield from _metric(_object(metric, "a metric"), resource, [*told, named])
    except _Unfit as fault:
        raise _malformed(str(fault)) from fault


def _metric(metric: Json, resource: dict[str, Value], identity: list[str]) -> Iterator[Sum | Refusal]:
    name = _string(metric, "name")
    for kind in _POINTS:
        data = _object(metric.get(kind), kind)
        said = data.get("aggregationTemporality")
        for value in _list(data, "dataPoints"):
            if not isinstance(value, dict):
                raise _Unfit("a data point is not an object")
            point = Sum(resource, [*identity, name, *_told(value)], name, is_delta=said in (1, "1", _DELTA), is_cumulative=said in (2, "2", _CUMULATIVE))
            try:
                _attributes(value, point.attributes)
                point.started, point.time = _nanoseconds(value, "startTimeUnixNano"), _nanoseconds(value, "timeUnixNano")
                if kind == "sum":
                    point.value = _finite(value.get("asInt", value.get("asDouble")))
                elif kind in {"histogram", "exponentialHistogram"}:
                    point.value = _finite(value.get("sum"))
            except _Unfit as fault:
                yield Refusal("schema_invalid", str(fault))
            else:
                yield point


def _told(value: Json) -> list[str]:
    return sorted(json.dumps(pair, sort_keys=True) for pair in _list(value, "attributes"))


def _finite(value: Any) -> Scalar | None:
    found = _number(value)
    return found if isinstance(found, str | int | float) else None


def _records(body: bytes, top: str, middle: str, leaf: str, read: Callable[[Json, Record], None]) -> Iterator[Record | Refusal]:
    for resource, value in _groups(body, top, middle, leaf):
        record = Record(resource)
        try:
            read(_object(value, f"an element of {leaf}"), record)
        except _Unfit as fault:
            yield Refusal("schema_invalid", str(fault))
        else:
            yield record


def _groups(body: bytes, top: str, middle: str, leaf: str) -> Iterator[tuple[dict[str, Value], Any]]:
    """Each span, record or metric with the attributes of its resource: the three requests are built alike."""
    seen = 0
    try:
        for group in _list(_loaded(body), top):
            resource: dict[str, Value] = {}
            _attributes(_object(_object(group, top).get("resource"), "resource"), resource)
            for scope in _list(_object(group, top), middle):
                for value in _list(_object(scope, middle), leaf):
                    seen += 1
                    if seen > MAX_RECORDS:
                        raise InvalidInput(f"the body holds more than {MAX_RECORDS} records; send it in parts", error="too_large")
                    yield resource, value
    except _Unfit as fault:
        raise _malformed(str(fault)) from fault


def _loaded(body: bytes) -> Json:
    text = bodies.trimmed(body)
    if not text:
        return {}  # nothing was sent, so nothing is lost
    if text[:1] != b"{":
        raise _malformed("the request is not an object")
    if text.count(b"{") + text.count(b"[") > _MAX_BRACKETS or text.count(b",") > _MAX_COMMAS:
        raise InvalidInput("the body holds more objects and arrays than are read at once; send it in parts", error="too_large")
    try:
        value = json.loads(text.decode(), parse_int=_integer)
    except UnicodeDecodeError as fault:
        raise _malformed("it is not UTF-8 text") from fault
    except RecursionError as fault:
        raise _malformed("it is nested too deep") from fault
    except ValueError as fault:
        raise _malformed("it is not JSON") from fault
    return _object(value, "the request")


def _integer(digits: str) -> int | float:
    # Python refuses to read thousands of digits; such a number is out of every range anyway.
    return int(digits) if len(digits) < 32 else math.inf


def _malformed(why: str) -> InvalidInput:
    return InvalidInput(f"the body is not an OTLP/JSON request: {why}", error="malformed")


def _object(value: Any, what: str) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Unfit(f"{what} is not an object")
    return value


def _list(value: Json, name: str) -> list[Any]:
    found = value.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise _Unfit(f"{name} is not an array")
    return found


def _span(value: Json, record: Record) -> None:
    _attributes(value, record.attributes)
    _place(value, record)
    record.name = _string(value, "name")
    record.started = _nanoseconds(value, "startTimeUnixNano")
    record.ended = _nanoseconds(value, "endTimeUnixNano")
    status = _object(value.get("status"), "status")
    record.message = _string(status, "message")
    record.is_error = status.get("code") in (2, "2", "STATUS_CODE_ERROR")


def _log(value: Json, record: Record) -> None:
    _attributes(value, record.attributes)
    _place(value, record)
    record.name = _string(value, "eventName")
    record.ended = _nanoseconds(value, "timeUnixNano") or _nanoseconds(value, "observedTimeUnixNano")


def _place(value: Json, record: Record) -> None:
    record.trace_id = _string(value, "traceId").lower()
    record.span_id = _string(value, "spanId").lower()


def _string(value: Json, name: str) -> str:
    found = value.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _Unfit(f"{name} is not a text")
    return found


def _nanoseconds(value: Json, name: str) -> int:
    """The instant, 0 where it is not said; what no clock can mean is refused."""
    found = _number(value.get(name))
    if found is None:
        return 0
    if isinstance(found, float) and found.is_integer():
        found = int(found)  # a sender without 64-bit integers
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 1 << 64:
        raise _Unfit(f"{name} is not a count of nanoseconds")
    return found


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and _INTEGER.match(value) else value


def _attributes(value: Json, into: dict[str, Value]) -> None:
    for pair in _list(value, "attributes"):
        if not isinstance(pair, dict):
            raise _Unfit("an element of attributes is not an object")
        key = pair.get("key")
        if isinstance(key, str) and key in WANTED:
            found = _any_value(_object(pair.get("value"), "the value of an attribute"))
            if found is not None:
                into[key] = found


def _any_value(value: Json) -> Value | None:
    """The value; None for an empty one. Maps and bytes are not entered, and an array only for its scalars."""
    array = value.get("arrayValue")
    if isinstance(array, dict):
        inner = (_scalar(one) for one in _list(array, "values") if isinstance(one, dict))
        return tuple(one for one in inner if one is not None and not isinstance(one, tuple))
    found = _scalar(value)
    return () if found is None and any(value.get(name) is not None for name in ("arrayValue", "kvlistValue", "bytesValue")) else found


def _scalar(value: Json) -> Scalar | tuple[()] | None:
    """The scalar, () for one of the wrong kind."""
    text = value.get("stringValue")
    if text is not None:
        return text if isinstance(text, str) else ()
    truth = value.get("boolValue")
    if truth is not None:
        return truth if isinstance(truth, bool) else ()
    number = value.get("intValue")
    if number is None:
        number = value.get("doubleValue")
    if number is None:
        return None
    # A truth value where a number belongs stays one, to be refused by name.
    found = _number(number)
    return found if isinstance(found, int | float) else ()
