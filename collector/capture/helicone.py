"""Helicone's webhooks and exported requests: counts in ``metadata`` (webhook) or beside the other columns (export).

A webhook says no time: its arrival stands for it. Without ``metadata`` (``includeData`` off) the tokens are not known,
unless the answer itself came along whole; one that was cut off, or lies behind a signed address, is not fetched. The
bodies are read for an id, counts and reasons, and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collector.capture import bodies, openai, values
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.values import Json, Scalar, Tokens, Unfit
from models.errors import InvalidInput
from models.usage import Operation, Status

_WHOLE = 2_000_000


def capture(body: bytes, *, media_type: str | None, headers: Mapping[str, str], defaults: Defaults, received_at: int) -> list[Item]:  # noqa: ARG001 - as every format's
    """The requests that the body tells of."""
    found = [values.loaded(piece) for piece in bodies.pieces(body, media_type=media_type)]
    if len(found) == 1 and isinstance(found[0], Refusal) and found[0].error == "malformed":
        raise InvalidInput(found[0].detail, error=found[0].error)
    return [_item(value, defaults, received_at) for value in found]


def is_mine(value: Json) -> bool:
    """Whether the object is one of Helicone's."""
    metadata = value.get("metadata")
    is_hook = "response_body" in value or (isinstance(metadata, dict) and "promptTokens" in metadata)
    return "request_id" in value and (is_hook or ("provider" in value and "prompt_tokens" in value))


def _item(value: Any, defaults: Defaults, received_at: int) -> Item:
    if isinstance(value, Refusal):
        return value
    if not isinstance(value, dict) or not is_mine(value):
        return Refusal("schema_invalid", "not a request of Helicone: expected an object with request_id and metadata or response_body")
    try:
        return _captured(value, defaults, received_at)
    except Unfit as fault:
        return fault.refusal


def _captured(value: Json, defaults: Defaults, received_at: int) -> CapturedEvent:
    metadata = values.part(value, "metadata")
    told = _answer(value, received_at)
    http_status = values.http_status(next((found for name in ("response_status", "status") if (found := value.get(name)) not in (None, "", -1)), None))
    status = _status(http_status) if http_status is not None else told.status if told else Status.SUCCESS
    operation = told.operation if told and told.operation is not Operation.OTHER else Operation.CHAT
    tokens = _tokens(value, metadata, operation, told)
    tokens.judge(status, http_status)
    time = values.believed(
        values.instant(next((said for name in ("response_created_at", "request_created_at") if (said := value.get(name))), None), "the time")
    )
    cost = values.amount(metadata.get("cost", value.get("cost")))
    place = values.place(value.get("request_path") or value.get("target_url"))
    endpoint, deployment = (defaults.endpoint, defaults.deployment) if not (place.endpoint or place.deployment) else (place.endpoint, place.deployment)
    details: dict[str, Scalar] = {
        "source_format": "helicone",
        "request_id": values.identifier(value.get("request_id"), "request_id"),
        "user": values.label(value.get("user_id")) or defaults.user,
        "http_status": http_status,
        "duration_ms": values.small(metadata.get("latencyMs", value.get("delay_ms"))),
        "total_tokens_reported": tokens.total_reported,
        "reported_cost": cost,
        "reported_cost_currency": None if cost is None else "USD",
    }
    kept = (
        {name: told.details[name] for name in ("response_id", "finish_reason", "finish_reasons", "choices", "error_code") if name in told.details}
        if told
        else {}
    )
    return CapturedEvent(
        id=values.identifier(value.get("request_id"), "request_id"),
        time=time,
        source=defaults.source,
        workspace=defaults.workspace or place.workspace,
        endpoint=values.endpoint_name(endpoint),
        deployment=deployment,
        model=values.text(value.get("model"), "model") or (told.model if told else None) or defaults.model,
        operation=operation,
        application=defaults.application,
        team=defaults.team,
        status=status,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cached_input_tokens=tokens.cached,
        reasoning_output_tokens=tokens.reasoning,
        quality=tokens.quality,
        flags=tokens.flags,
        details=values.said(details) | kept,
    )


def _tokens(value: Json, metadata: Json, operation: Operation, told: CapturedEvent | None) -> Tokens:
    names = (("prompt_tokens", "promptTokens"), ("completion_tokens", "completionTokens"), ("total_tokens", "totalTokens"))
    # -1 is Helicone's "not counted".
    usage = {name: found for name, own in names if (found := metadata.get(own, value.get(name))) not in (None, "", -1)}
    tokens = values.tokens_of(usage, operation)
    if tokens.input is None and tokens.output is None and told is not None:
        return Tokens(told.input_tokens, told.output_tokens, told.cached_input_tokens, told.reasoning_output_tokens, flags=told.flags, quality=told.quality)
    if told is not None and (tokens.input, tokens.output) == (told.input_tokens, told.output_tokens):
        tokens.cached, tokens.reasoning = told.cached_input_tokens, told.reasoning_output_tokens
    return Tokens(flags=tokens.flags) if tokens.is_zero and not tokens.total else tokens


def _answer(value: Json, received_at: int) -> CapturedEvent | None:
    """The call as its own answer tells it, where that came whole."""
    body = value.get("response_body")
    if not isinstance(body, str | dict) or body in ("", "{}", {}) or (isinstance(body, str) and len(body) > _WHOLE):
        return None
    found = openai.of_envelope({"request": value.get("request_body"), "response": body}, defaults=Defaults(), received_at=received_at)
    return None if isinstance(found, Refusal | Ignored) else found


def _status(http_status: int) -> Status:
    if http_status == 429:
        return Status.THROTTLED
    return Status.SUCCESS if http_status < 400 else Status.ERROR
