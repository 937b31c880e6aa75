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
from collector.capture.otlp.records import MAX_RECORDS, WANTED, Record, Scalar, Sum, Value
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
_DELTA, _CUMULATIVE = 1, 2


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


def sums(body: bytes) -> Iterator[Sum | Refusal]:
    """The data points of an ExportMetricsServiceRequest; those of kinds that do not add up have no value."""
    seen = 0
    try:
        for top, at, stop in _fields(body, 0, len(body)):
            if top != _1:
                continue
            resource: dict[str, Value] = {}
            told: list[str] = []
            scopes: list[tuple[int, int]] = []
            for tag, first, end in _fields(body, at, stop):
                if tag == _1:
                    _resource(body, first, end, resource)
                    told += sorted(body[start:last].hex() for inner, start, last in _fields(body, first, end) if inner == _1)
                elif tag == _2:
                    scopes.append((first, end))
            for first, end in scopes:
                scope = [body[start:last].hex() for inner, start, last in _fields(body, first, end) if inner == _1]
                for inner, start, last in _fields(body, first, end):
                    if inner != _2:
                        continue
                    for point in _metric(body, start, last, resource, [*told, *scope]):
                        seen += 1
                        if seen > MAX_RECORDS:
                            raise _too_many()
                        yield point
    except (_Broken, IndexError, UnicodeDecodeError) as fault:
        raise _malformed() from fault


def _metric(body: bytes, at: int, stop: int, resource: dict[str, Value], identity: list[str]) -> Iterator[Sum | Refusal]:
    name = next((body[first:end].decode("utf-8", "replace") for tag, first, end in _fields(body, at, stop) if tag == _1), "")
    for tag, first, end in _fields(body, at, stop):
        if tag not in _METRICS:
            continue
        # Of sums and histograms field 2 is the temporality; gauges and summaries have none.
        said = next((start for inner, start, _ in _fields(body, first, end) if inner == 2 << 3 | _VARINT), 0)
        for inner, start, last in _fields(body, first, end):
            if inner == _1:
                point = Sum(resource, [*identity, name], name, is_delta=said == _DELTA, is_cumulative=said == _CUMULATIVE)
                try:
                    _sum(body, start, last, tag, point)
                except (_Broken, IndexError, UnicodeDecodeError):
                    yield Refusal("malformed", "not a protobuf message: its lengths do not add up, or a text is not UTF-8")
                else:
                    yield point


def _sum(body: bytes, at: int, stop: int, kind: int, point: Sum) -> None:
    """A data point; the five kinds have their times in the same fields, and not their attributes."""
    attributes = _1 if kind == _10 else _9 if kind == _9 else _7
    for tag, first, end in _fields(body, at, stop):
        if tag == attributes:
            point.identity.append(body[first:end].hex())
            _attribute(body, first, end, point.attributes)
        elif tag == 2 << 3 | _FIXED64:
            point.started = int.from_bytes(body[first:end], "little")
        elif tag == 3 << 3 | _FIXED64:
            point.time = int.from_bytes(body[first:end], "little")
        elif (tag == 4 << 3 | _FIXED64 and kind == _7) or (tag == 5 << 3 | _FIXED64 and kind in {_9, _10}):
            point.value = float(_DOUBLE.unpack_from(body, first)[0])
        elif tag == 6 << 3 | _FIXED64 and kind == _7:
            point.value = int.from_bytes(body[first:end], "little", signed=True)


def kind(body: bytes) -> str | None:
    """Which of the three requests a body is the beginning of, by the first record in it; None where it is none of them."""
    try:
        for top, at, stop in _fields(body, 0, len(body)):
            for tag, first, end in _fields(body, at, min(stop, len(body))) if top == _1 else ():
                for inner, start, last in _fields(body, first, end) if tag == _2 else ():
                    if inner == _2:
                        return _kind_of_record(body, start, last)
    except (_Broken, IndexError):
        return None
    return None


def _kind_of_record(body: bytes, at: int, stop: int) -> str:
    tags = {tag: end - first for tag, first, end in _fields(body, at, stop)}
    if tags.get(_1) == 16 and tags.get(_2) == 8:
        return "traces"
    return "metrics" if _1 in tags and _METRICS & tags.keys() else "logs"


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
        if name is None or _short_value(body, at, stop, name, into):
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


def _short_value(body: bytes, at: int, stop: int, name: str, into: dict[str, Value]) -> bool:
    """Take a short text or a count that is all the rest of an attribute; False, and nothing taken, where it is anything else."""
    # From 0x80 on, the byte of a length is not all of it.
    if not 4 <= stop - at < 0x82 or body[at] != _2 or body[at + 1] != stop - at - 2:
        return False
    if body[at + 2] == _1 and body[at + 3] == stop - at - 4:
        into[name] = body[at + 4 : stop].decode()
        return True
    if body[at + 2] == 3 << 3 | _VARINT:
        value, end = _varint(body, at + 3)
        if end == stop:
            into[name] = value - (1 << 64) if value >= 1 << 63 else value
            return True
    return False


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
