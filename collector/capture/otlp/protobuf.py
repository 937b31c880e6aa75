"""Reads the protobuf encoding of OTLP, entering only the messages and attributes that are looked at.

Not the generated classes: those build an object for every prompt, span event and bucket, so that 16 MiB of empty
messages take gigabytes, and a single text that is not UTF-8 costs every span of its body. Field numbers are
those of opentelemetry-proto 1.x, where they are frozen; an unknown field is skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from collector.capture.event import Refusal
from collector.capture.otlp.records import MAX_RECORDS, WANTED, Record, Scalar, Value
from models.errors import InvalidInput

# A tag is a field's number and how it is laid out: number * 8 + wire type. Of a length-delimited field the readers
# get where it starts and ends, of a fixed one the same, of a varint its value.
_VARINT, _FIXED64, _LEN, _FIXED32 = 0, 1, 2, 5
_1, _2, _5, _6, _7, _9, _10, _11, _12, _15 = (number << 3 | _LEN for number in (1, 2, 5, 6, 7, 9, 10, 11, 12, 15))
# Gauge, sum, histogram, exponential histogram, summary.
_METRICS: Final = frozenset({_5, _7, _9, _10, _11})
_WANTED: Final = {name.encode(): name for name in WANTED}
_DOUBLE: Final = struct.Struct("<d")
_ERROR = 2


class _Broken(Exception):
    """The bytes are no message."""


def spans(body: bytes) -> Iterator[Record | Refusal]:
    """The spans of an ExportTraceServiceRequest."""
    for resource, at, stop in _groups(body):
        yield _guarded(_span, body, at, stop, resource)


def logs(body: bytes) -> Iterator[Record | Refusal]:
    """The records of an ExportLogsServiceRequest."""
    for resource, at, stop in _groups(body):
        yield _guarded(_log, body, at, stop, resource)


def points(body: bytes) -> int:
    """How many data points an ExportMetricsServiceRequest holds; each is walked through once."""
    found = 0
    try:
        for _, at, stop in _groups(body):
            for tag, first, end in _fields(body, at, stop):
                if tag not in _METRICS:
                    continue
                for inner, start, last in _fields(body, first, end):
                    if inner == _1:
                        found += 1
                        for _ in _fields(body, start, last):
                            pass
                if found > MAX_RECORDS:
                    raise _too_many()
    except (_Broken, IndexError) as fault:
        raise _malformed() from fault
    return found


def _groups(body: bytes) -> Iterator[tuple[dict[str, Value], int, int]]:
    """Where each span, log record or metric lies, and the attributes of its resource: the three requests are built alike."""
    seen = 0
    try:
        for top, at, stop in _fields(body, 0, len(body)):
            seen += 1
            if seen > MAX_RECORDS:
                raise _too_many()
            if top != _1:
                continue
            resource: dict[str, Value] = {}
            scopes: list[tuple[int, int]] = []
            # The resource may come after what it describes.
            for tag, first, end in _fields(body, at, stop):
                if tag == _1:
                    _resource(body, first, end, resource)
                elif tag == _2:
                    scopes.append((first, end))
            for first, end in scopes:
                seen += 1
                for tag, start, last in _fields(body, first, end):
                    if tag == _2:
                        seen += 1
                        if seen > MAX_RECORDS:
                            raise _too_many()
                        yield resource, start, last
    except (_Broken, IndexError, UnicodeDecodeError) as fault:
        raise _malformed() from fault


def _malformed() -> InvalidInput:
    return InvalidInput(
        "the body is not an OTLP protobuf message: its lengths do not add up (cut off, still compressed, or JSON under the wrong Content-Type?)",
        error="malformed",
    )


def _too_many() -> InvalidInput:
    return InvalidInput(f"the body holds more than {MAX_RECORDS} records; send it in parts", error="too_large")


def _guarded(read: Callable[[bytes, int, int, Record], None], body: bytes, at: int, stop: int, resource: dict[str, Value]) -> Record | Refusal:
    """The record, or the refusal of one whose inside is broken: its neighbours' bounds are known."""
    record = Record(resource)
    try:
        read(body, at, stop, record)
    except (_Broken, IndexError):
        return Refusal("malformed", "not a protobuf message: its lengths do not add up")
    except UnicodeDecodeError:
        return Refusal("malformed", "a text is not UTF-8")
    return record


def _resource(body: bytes, at: int, stop: int, into: dict[str, Value]) -> None:
    for tag, first, end in _fields(body, at, stop):
        if tag == _1:
            _attribute(body, first, end, into)


def _span(body: bytes, at: int, stop: int, record: Record) -> None:
    for tag, first, end in _fields(body, at, stop):
        if tag == _9:
            _attribute(body, first, end, record.attributes)
        elif tag == _1:
            record.trace_id = body[first:end].hex()
        elif tag == _2:
            record.span_id = body[first:end].hex()
        elif tag == _5:
            record.name = body[first:end].decode("utf-8", "replace")
        elif tag == 7 << 3 | _FIXED64:
            record.started = int.from_bytes(body[first:end], "little")
        elif tag == 8 << 3 | _FIXED64:
            record.ended = int.from_bytes(body[first:end], "little")
        elif tag == _15:
            for inner, start, last in _fields(body, first, end):
                if inner == _2:
                    record.message = body[start:last].decode("utf-8", "replace")
                elif inner == 3 << 3 | _VARINT:
                    record.is_error = start == _ERROR


def _log(body: bytes, at: int, stop: int, record: Record) -> None:
    observed = 0
    for tag, first, end in _fields(body, at, stop):
        if tag == _6:
            _attribute(body, first, end, record.attributes)
        elif tag == _9:
            record.trace_id = body[first:end].hex()
        elif tag == _10:
            record.span_id = body[first:end].hex()
        elif tag == _12:
            record.name = body[first:end].decode()
        elif tag == 1 << 3 | _FIXED64:
            record.ended = int.from_bytes(body[first:end], "little")
        elif tag == 11 << 3 | _FIXED64:
            observed = int.from_bytes(body[first:end], "little")
    record.ended = record.ended or observed


def _attribute(body: bytes, at: int, stop: int, into: dict[str, Value]) -> None:
    """Take a KeyValue if its key is wanted; the value of any other is not entered."""
    name, value = None, None
    # All writers put a short key first: most attributes end here, after one look-up.
    if stop - at > 2 and body[at] == _1 and body[at + 1] < 0x80:
        key = at + 2
        at = key + body[at + 1]
        if at > stop:
            raise _Broken
        name = _WANTED.get(body[key:at])
        if name is None:
            return
    for tag, first, end in _fields(body, at, stop):
        if tag == _1:
            name = _WANTED.get(body[first:end])
        elif tag == _2:
            value = (first, end)
    if name is not None and value is not None:
        found = _any_value(body, *value)
        if found is not None:
            into[name] = found


def _any_value(body: bytes, at: int, stop: int) -> Value | None:
    """The value; None for an empty one. Maps and bytes are not entered, and an array only for its scalars."""
    value: Value | None = None
    for tag, first, end in _fields(body, at, stop):
        if tag == _5:
            value = _array(body, first, end)
        elif tag in {_6, _7}:
            value = ()
        else:
            scalar = _scalar(body, tag, first, end)
            value = value if scalar is None else scalar
    return value


def _array(body: bytes, at: int, stop: int) -> tuple[Scalar, ...]:
    found: list[Scalar] = []
    for tag, first, end in _fields(body, at, stop):
        if tag == _1:
            for inner, start, last in _fields(body, first, end):
                scalar = _scalar(body, inner, start, last)
                if scalar is not None:
                    found.append(scalar)
    return tuple(found)


def _scalar(body: bytes, tag: int, first: int, end: int) -> Scalar | None:
    if tag == _1:
        return body[first:end].decode()
    if tag == 2 << 3 | _VARINT:
        return first != 0
    if tag == 3 << 3 | _VARINT:
        return first - (1 << 64) if first >= 1 << 63 else first
    if tag == 4 << 3 | _FIXED64:
        return float(_DOUBLE.unpack_from(body, first)[0])
    return None


def _fields(body: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message at ``body[at:stop]``, in order: tag, then start and end, or value and 0 of a varint."""
    while at < stop:
        tag = body[at]
        at += 1
        if tag > 0x7F:
            tag, at = _varint(body, at - 1)
        wire = tag & 7
        if wire == _LEN:
            size = body[at]
            at += 1
            if size > 0x7F:
                size, at = _varint(body, at - 1)
            end = at + size
        elif wire == _VARINT:
            value, at = _varint(body, at)
            end = at
        elif wire == _FIXED64:
            end = at + 8
        elif wire == _FIXED32:
            end = at + 4
        else:
            raise _Broken  # groups were never part of OTLP
        if end > stop or tag < 8:
            raise _Broken
        if wire == _VARINT:
            yield tag, value, 0
        else:
            yield tag, at, end
        at = end


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """The value of at most 64 bits that starts here, and where it ends."""
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise _Broken
