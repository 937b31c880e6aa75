"""OpenTelemetry (OTLP/HTTP, protobuf and JSON) of ``POST /otlp/v1/traces``, ``/logs`` and ``/metrics``.

    protobuf, jsonform   an encoding → records (only the attributes that ``records`` names)
    calls                a record → the event of a model call, a refusal, or why it is none
    metrics              a data point → a witness of usage
    answers              what is said back

A body that cannot be read at all raises ``InvalidInput("malformed")``; every other fault is the verdict on one record.
"""

from __future__ import annotations

from collector.capture.bodies import base_type
from collector.capture.event import Defaults, Item, Refusal
from collector.capture.otlp import jsonform, metrics, protobuf
from collector.capture.otlp.answers import JSON, PROTOBUF, Kind, answer, status_body
from collector.capture.otlp.calls import captured
from models.errors import InvalidInput

__all__ = ["MEDIA_TYPES", "Kind", "answer", "binary_kind", "capture_logs", "capture_metrics", "capture_traces", "status_body"]

MEDIA_TYPES = frozenset({JSON, PROTOBUF})


def capture_traces(body: bytes, *, media_type: str | None, defaults: Defaults, received_at: int) -> list[Item]:
    """One item per span, in the body's order."""
    found = jsonform.spans(body) if _is_json(media_type) else protobuf.spans(body)
    return [one if isinstance(one, Refusal) else captured(one, "span", defaults, received_at) for one in found]


def capture_logs(body: bytes, *, media_type: str | None, defaults: Defaults, received_at: int) -> list[Item]:
    """One item per log record, in the body's order."""
    found = jsonform.logs(body) if _is_json(media_type) else protobuf.logs(body)
    return [one if isinstance(one, Refusal) else captured(one, "log", defaults, received_at) for one in found]


def capture_metrics(body: bytes, *, media_type: str | None, defaults: Defaults | None = None, received_at: int | None = None) -> list[Item]:  # noqa: ARG001
    """One item per data point, none of them an event: counting both the calls and their sums would count twice."""
    found = jsonform.sums(body) if _is_json(media_type) else protobuf.sums(body)
    return [one if isinstance(one, Refusal) else metrics.witnessed(one, defaults or Defaults()) for one in found]


def binary_kind(start: bytes) -> str | None:
    """The format of a file that begins with these bytes, if they are OTLP's protobuf (``otlp-traces`` …)."""
    if start[:1] != b"\n":
        return None
    found = protobuf.kind(start)
    return None if found is None else f"otlp-{found}"


def _is_json(media_type: str | None) -> bool:
    said = base_type(media_type)
    if said not in MEDIA_TYPES:
        raise InvalidInput(f"OTLP comes as {PROTOBUF} or {JSON}; say which in the Content-Type", error="unsupported_media_type")
    return said == JSON
