"""What OTLP/HTTP answers: Export*ServiceResponse for what was taken, google.rpc.Status for what was not."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from collector.capture.bodies import base_type

Kind = Literal["traces", "logs", "metrics"]

JSON: Final = "application/json"
PROTOBUF: Final = "application/x-protobuf"
# google.rpc.Code by HTTP status, as google/rpc/code.proto maps them.
RPC_CODES: Final = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 413: 3, 415: 3, 422: 3, 429: 8, 500: 13, 501: 12, 503: 14, 504: 4}
_UNKNOWN = 2
_REJECTED: Final = {"traces": "rejectedSpans", "logs": "rejectedLogRecords", "metrics": "rejectedDataPoints"}
_MAX_MESSAGE = 2_000


def answer(kind: Kind, media_type: str | None, rejected: int, message: str | None) -> tuple[bytes, str]:
    """The body of a 200 and its media type: empty on full success, else how many were refused and why.

    A message without a refusal is a warning, which OTLP has a place for.
    """
    said = (message or "")[:_MAX_MESSAGE]
    is_partial = rejected > 0 or said != ""
    if base_type(media_type) == JSON:
        # Integers of 64 bits are texts in the JSON form of protobuf.
        partial = ({_REJECTED[kind]: str(rejected)} if rejected else {}) | ({"errorMessage": said} if said else {})
        return msgspec.json.encode({"partialSuccess": partial} if is_partial else {}), JSON
    return (_field(1, _message(rejected, said)) if is_partial else b""), PROTOBUF


def status_body(media_type: str | None, code: int, message: str) -> tuple[bytes, str]:
    """The google.rpc.Status of an answer with this HTTP status, and its media type."""
    rpc_code, said = RPC_CODES.get(code, _UNKNOWN), message[:_MAX_MESSAGE]
    if base_type(media_type) == JSON:
        return msgspec.json.encode({"code": rpc_code, "message": said}), JSON
    return _message(rpc_code, said), PROTOBUF


def _message(number: int, text: str) -> bytes:
    """A message of an integer in field 1 and a text in field 2: both answers are built so."""
    return (b"\x08" + _varint(number) if number else b"") + (_field(2, text.encode("utf-8", "replace")) if text else b"")


def _field(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
