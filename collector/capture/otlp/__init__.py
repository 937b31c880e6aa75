"""OpenTelemetry (OTLP/HTTP, protobuf and JSON) of ``POST /otlp/v1/traces``, ``/logs`` and ``/metrics``.

    protobuf, jsonform   an encoding → records (only the attributes that ``records`` names)
    calls                a record → the event of a model call, a refusal, or why it is none
    answers              what is said back

A body that cannot be read at all raises ``InvalidInput("malformed")``; every other fault is the verdict on one record.
"""

from __future__ import annotations

from collector.capture.bodies import base_type
from collector.capture.event import Defaults, Ignored, Item, Refusal
from collector.capture.otlp import jsonform, protobuf
from collector.capture.otlp.answers import JSON, PROTOBUF, Kind, answer, status_body
from collector.capture.otlp.calls import captured
from models.errors import InvalidInput

__all__ = ["MEDIA_TYPES", "Kind", "answer", "capture_logs", "capture_metrics", "capture_traces", "status_body"]

MEDIA_TYPES = frozenset({JSON, PROTOBUF})
# Whatever an aggregate counts was counted by a span or a log record, or will be told apart by the bill.
_WITNESS = Ignored("a metric is a sum of calls, not a call")


def capture_traces(body: bytes, *, media_type: str | None, defaults: Defaults, received_at: int) -> list[Item]:
    """One item per span, in the body's order."""
    found = jsonform.spans(body) if _is_json(media_type) else protobuf.spans(body)
    return [one if isinstance(one, Refusal) else captured(one, "span", defaults, received_at) for one in found]


def capture_logs(body: bytes, *, media_type: str | None, defaults: Defaults, received_at: int) -> list[Item]:
    """One item per log record, in the body's order."""
    found = jsonform.logs(body) if _is_json(media_type) else protobuf.logs(body)
    return [one if isinstance(one, Refusal) else captured(one, "log", defaults, received_at) for one in found]


def capture_metrics(body: bytes, *, media_type: str | None) -> list[Item]:
    """One ignored item per data point: counting both the calls and their sums would count twice."""
    points = jsonform.points(body) if _is_json(media_type) else protobuf.points(body)
    return [_WITNESS] * points


def _is_json(media_type: str | None) -> bool:
    said = base_type(media_type)
    if said not in MEDIA_TYPES:
        raise InvalidInput(f"OTLP comes as {PROTOBUF} or {JSON}; say which in the Content-Type", error="unsupported_media_type")
    return said == JSON
