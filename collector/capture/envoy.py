"""Access logs of Envoy AI Gateway: JSON lines with keys that the operator chose, by convention OpenTelemetry's.

Values may be texts, and "-" (or null) is none. The time of a line is its start; its end is that and the duration.
``gen_ai.provider.name`` is the name of a backend, not a provider, and ``total`` is evidence only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from collector.capture import bodies, values
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.values import FILTER_CODES, Json, Scalar, Tokens, Unfit
from models.errors import InvalidInput
from models.usage import Flag, Operation, Status

_INPUT = ("gen_ai.usage.input_tokens", "llm_input_token", "input_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "llm_output_token", "output_tokens")
_TOTAL = ("gen_ai.usage.total_tokens", "llm_total_token", "total_tokens")
_CACHED = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cached_input_tokens", "llm_cached_input_token")
_MODEL = ("gen_ai.response.model", "gen_ai.request.model", "x-ai-eg-model")
_PATH = ("x-envoy-origin-path", "x-envoy-original-path", "path", ":path")
_HOST = ("upstream_host_name", "x-forwarded-host", "authority", ":authority")
_MARKS = frozenset({*_INPUT[:2], *_OUTPUT[:2], *_TOTAL[:2], *_MODEL})
_OPERATIONS = (
    (re.compile(r"/chat/completions\Z|/responses\Z|/messages\Z"), Operation.CHAT),
    (re.compile(r"/embeddings\Z"), Operation.EMBEDDINGS),
    (re.compile(r"/completions\Z"), Operation.TEXT_COMPLETION),
)
_DURATION = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?\Z")


def capture(body: bytes, *, media_type: str | None, headers: Mapping[str, str], defaults: Defaults, received_at: int) -> list[Item]:  # noqa: ARG001 - as every format's
    """The calls that the lines tell of."""
    found = [values.loaded(piece) for piece in bodies.pieces(body, media_type=media_type)]
    if len(found) == 1 and isinstance(found[0], Refusal) and found[0].error == "malformed":
        raise InvalidInput(found[0].detail, error=found[0].error)
    return [_item(value, defaults) for value in found]


def is_mine(value: Json) -> bool:
    """Whether the object is a line of the gateway's access log."""
    return bool(_MARKS & value.keys()) and bool({"start_time", "response_code", "x-request-id", "duration"} & value.keys())


def _item(value: Any, defaults: Defaults) -> Item:
    if isinstance(value, Refusal):
        return value
    if not isinstance(value, dict) or not is_mine(value):
        return Refusal("schema_invalid", "not a line of Envoy AI Gateway's access log: expected gen_ai.* keys beside start_time and response_code")
    line = {name: found for name, found in value.items() if found not in ("-", "", None)}
    try:
        return _captured(line, defaults)
    except Unfit as fault:
        return fault.refusal


def _captured(line: Json, defaults: Defaults) -> Item:
    path = next((found.partition("?")[0] for name in _PATH if isinstance(found := line.get(name), str)), "")
    operation = next((operation for pattern, operation in _OPERATIONS if pattern.search(path)), None)
    tokens = _tokens(line, operation or Operation.CHAT)
    method = line.get("method", line.get(":method"))
    if (path and operation is None and tokens.input is None) or (isinstance(method, str) and method.upper() != "POST"):
        return Ignored("a request that calls no model")
    http_status = values.http_status(line.get("response_code"), "response_code") or None
    status = _status(line, http_status)
    tokens.judge(status, http_status)
    started_at = values.believed(values.instant(line.get("start_time"), "start_time"))
    lasted = _milliseconds(line.get("duration"))
    host = next((found for name in _HOST if isinstance(found := line.get(name), str)), None)
    place = values.place(f"https://{host}{path}" if host else None)
    endpoint, deployment = (place.endpoint, place.deployment) if place.endpoint or place.deployment else (defaults.endpoint, defaults.deployment)
    details: dict[str, Scalar] = values.trace(line.get("traceparent")) | {
        "source_format": "envoy_access_log",
        "response_id": values.label(line.get("gen_ai.response.id")),
        "request_id": values.label(line.get("x-request-id")),
        "finish_reason": values.word(line.get("gen_ai.response.finish_reason")),
        "http_status": http_status,
        "throttled_by": "azure" if status is Status.THROTTLED and host else None,
        "duration_ms": None if lasted is None else int(lasted),
        "user": values.label(line.get("x-user-id")) or defaults.user,
        "total_tokens_reported": tokens.total_reported,
    }
    return CapturedEvent(
        id=values.text(line.get("x-request-id"), "x-request-id"),
        time=None if started_at is None else started_at + int((lasted or 0) * 1000),
        source=defaults.source,
        workspace=defaults.workspace or place.workspace,
        endpoint=values.endpoint_name(endpoint),
        deployment=deployment,
        model=next((found for name in _MODEL if (found := values.text(line.get(name), name))), None) or defaults.model,
        operation=operation or Operation.CHAT,
        application=defaults.application,
        team=defaults.team,
        status=status,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cached_input_tokens=tokens.cached,
        quality=tokens.quality,
        flags=tokens.flags,
        started_at=started_at if lasted is not None else None,
        details=values.said(details),
    )


def _tokens(line: Json, operation: Operation) -> Tokens:
    fields = (("prompt_tokens", _INPUT), ("completion_tokens", _OUTPUT), ("total_tokens", _TOTAL), ("cached_input_tokens", _CACHED))
    usage = {name: found for name, keys in fields if (found := next((line[key] for key in keys if key in line), None)) is not None}
    # A log's texts are its way to write numbers, nothing that was coerced.
    usage = {name: int(found) if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 17 else found for name, found in usage.items()}
    tokens = values.tokens_of(usage, operation)
    return Tokens(flags=tokens.flags & Flag.COERCED) if tokens.is_zero and not tokens.total else tokens


def _status(line: Json, http_status: int | None) -> Status:
    if http_status == 429:
        return Status.THROTTLED
    if http_status is not None and http_status >= 400:
        return Status.ERROR
    if line.get("gen_ai.response.finish_reason") in FILTER_CODES:
        return Status.FILTERED
    # No status is a caller that went away before there was an answer.
    return Status.INCOMPLETE if http_status is None and "response_code" in line else Status.SUCCESS


def _milliseconds(value: Any) -> float | None:
    if isinstance(value, str) and _DURATION.match(value):
        value = float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 10**12 else None
