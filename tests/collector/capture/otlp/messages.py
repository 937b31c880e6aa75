"""Requests of OTLP as emitters send them, written in both encodings, and the events they became."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

from collector.capture import otlp
from collector.capture.event import CapturedEvent, Defaults, Item, Refusal

DATA = Path(__file__).parents[3] / "data" / "otlp"
JSON, PROTOBUF = "application/json", "application/x-protobuf"
# 2026-11-20T10:00:00Z
TEN_O_CLOCK = 1_795_168_800_000_000
RECEIVED_AT = TEN_O_CLOCK + 86_400_000_000
TRACE, SPAN = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"
CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "Llama-3.3-70B-Instruct",
    "gen_ai.usage.input_tokens": 19,
    "gen_ai.usage.output_tokens": 72,
}


def body_of(name: str) -> bytes:
    body = (DATA / name).read_bytes()
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


def traces(body: Any, *, media_type: str = JSON, defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return otlp.capture_traces(raw, media_type=media_type, defaults=defaults or Defaults(), received_at=RECEIVED_AT)


def logs(body: Any, *, media_type: str = JSON, defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return otlp.capture_logs(raw, media_type=media_type, defaults=defaults or Defaults(), received_at=RECEIVED_AT)


def value(said: Any) -> dict[str, Any]:
    match said:
        case bool():
            return {"boolValue": said}
        case int():
            return {"intValue": str(said)}
        case float():
            return {"doubleValue": said}
        case list():
            return {"arrayValue": {"values": [value(one) for one in said]}}
        case dict():
            return {"kvlistValue": {"values": pairs(said)}}
        case bytes():
            return {"bytesValue": "AAAA"}
        case None:
            return {}
    return {"stringValue": said}


def pairs(said: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value(one)} for key, one in said.items()]


def span(said: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": SPAN,
        "name": "chat",
        "startTimeUnixNano": str((TEN_O_CLOCK - 2_000_000) * 1000),
        "endTimeUnixNano": str(TEN_O_CLOCK * 1000),
        "attributes": pairs(CALL if said is None else said),
    } | changes


def request(*spans: Any, resource: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {"attributes": pairs(resource or {})}, "scopeSpans": [{"spans": list(spans)}]}]}


def one(said: dict[str, Any] | None = None, *, resource: dict[str, Any] | None = None, defaults: Defaults | None = None, **changes: Any) -> CapturedEvent:
    (item,) = traces(request(span(said, **changes), resource=resource), defaults=defaults)
    assert isinstance(item, CapturedEvent), item
    return item


def failed(message: str, **said: Any) -> CapturedEvent:
    return one({"gen_ai.operation.name": "chat", **{name.replace("_", ".", 1): each for name, each in said.items()}}, status={"code": 2, "message": message})


def refusal(item: Item) -> Refusal:
    assert isinstance(item, Refusal), item
    return item


def events(items: list[Item]) -> list[CapturedEvent]:
    return [item for item in items if isinstance(item, CapturedEvent)]


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    found = b""
    while number > 0x7F:
        found += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return found + bytes((number,))


def field(number: int, content: bytes | int | str) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    raw = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def packed_value(said: dict[str, Any]) -> bytes:
    for name, content in said.items():
        match name:
            case "stringValue":
                return field(1, content)
            case "boolValue":
                return field(2, int(content))
            case "intValue":
                return field(3, int(content))
            case "doubleValue":
                return varint(4 << 3 | 1) + struct.pack("<d", content)
            case "arrayValue":
                return field(5, b"".join(field(1, packed_value(each)) for each in content["values"]))
            case "kvlistValue":
                return field(6, packed_pairs(1, content["values"]))
            case "bytesValue":
                return field(7, b"\0\0\0")
    return b""


def packed_pairs(number: int, found: list[dict[str, Any]]) -> bytes:
    return b"".join(field(number, field(1, pair["key"]) + field(2, packed_value(pair["value"]))) for pair in found)
