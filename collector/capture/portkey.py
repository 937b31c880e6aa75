"""Portkey's log export: one request a line, counts in ``req_units`` and ``res_units``.

``cost`` is in cents whatever ``cost_currency`` says beside it, so it is kept with "cents" in its currency and never
read as an amount of that currency. Bodies of requests and answers are read for an id and reasons, and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from collector.capture import bodies, openai, values
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.values import Json, Scalar, Tokens, Unfit
from models.errors import InvalidInput
from models.usage import Flag, Operation, Status

_UNITS = ("req_units", "res_units", "total_units")
_PATHS = ((re.compile(r"/embeddings\Z"), Operation.EMBEDDINGS), (re.compile(r"(?<!chat)/completions\Z"), Operation.TEXT_COMPLETION))
_CURRENCY = re.compile(r"[A-Z]{3}\Z")


def capture(body: bytes, *, media_type: str | None, headers: Mapping[str, str], defaults: Defaults, received_at: int) -> list[Item]:  # noqa: ARG001 - as every format's
    """The requests that the export holds."""
    found = [values.loaded(piece) for piece in bodies.pieces(body, media_type=media_type)]
    if len(found) == 1 and isinstance(found[0], Refusal) and found[0].error == "malformed":
        raise InvalidInput(found[0].detail, error=found[0].error)
    return [_item(value, defaults, received_at) for value in found]


def is_mine(value: Json) -> bool:
    """Whether the object is a row of Portkey's export."""
    return any(name in value for name in _UNITS) or ("ai_org" in value and "ai_model" in value)


def _item(value: Any, defaults: Defaults, received_at: int) -> Item:
    if isinstance(value, Refusal):
        return value
    if not isinstance(value, dict) or not is_mine(value):
        return Refusal("schema_invalid", "not a row of Portkey's log export: expected an object with req_units, res_units or ai_model")
    try:
        return _captured(value, defaults, received_at)
    except Unfit as fault:
        return fault.refusal


def _captured(value: Json, defaults: Defaults, received_at: int) -> CapturedEvent:
    metadata = values.part(value, "metadata")
    url = value.get("request_url")
    operation = next((operation for path, operation in _PATHS if isinstance(url, str) and path.search(url.partition("?")[0])), Operation.CHAT)
    status, http_status = _outcome(value)
    told = _answer(value, received_at)
    if told is not None and status is Status.SUCCESS and told.status is Status.FILTERED:
        status = told.status
    usage = {
        name: found for name, unit in zip(("prompt_tokens", "completion_tokens", "total_tokens"), _UNITS, strict=True) if (found := value.get(unit)) is not None
    }
    tokens = values.tokens_of(usage, operation)
    if tokens.is_zero and not tokens.total:
        # A gateway's zeros are what it writes where it was not told: streams without usage, failures.
        tokens = Tokens(flags=tokens.flags & Flag.COERCED)
    is_cached = "HIT" in str(value.get("cache_status", "")).upper()
    tokens.judge(status, http_status, is_billable=not is_cached)
    place = values.place(url)
    endpoint, deployment = (defaults.endpoint, defaults.deployment) if not (place.endpoint or place.deployment) else (place.endpoint, place.deployment)
    cost, currency = values.amount(value.get("cost")), value.get("cost_currency")
    details: dict[str, Scalar] = {
        "source_format": "portkey",
        "request_id": values.identifier(value.get("id"), "id"),
        "user": next((found for name in ("_user", "user") if (found := values.label(metadata.get(name)))), None) or defaults.user,
        "http_status": http_status,
        "duration_ms": values.small(value.get("response_time")),
        "total_tokens_reported": tokens.total_reported,
        "reported_cost": cost,
        "reported_cost_currency": None if cost is None else f"{currency} cents" if isinstance(currency, str) and _CURRENCY.match(currency) else "cents",
    }
    kept = (
        {name: told.details[name] for name in ("response_id", "finish_reason", "finish_reasons", "choices", "max_tokens") if name in told.details}
        if told
        else {}
    )
    return CapturedEvent(
        id=values.identifier(value.get("id"), "id"),
        time=values.believed(values.instant(value.get("created_at"), "created_at")),
        source=defaults.source,
        workspace=defaults.workspace or place.workspace,
        endpoint=values.endpoint_name(endpoint),
        deployment=deployment,
        model=values.text(value.get("ai_model"), "ai_model") or defaults.model,
        operation=operation,
        application=values.text(metadata.get("application"), "metadata.application") or defaults.application,
        team=values.text(metadata.get("team"), "metadata.team") or defaults.team,
        status=status,
        billable=not is_cached,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        quality=tokens.quality,
        flags=tokens.flags | (Flag.GATEWAY_CACHE_HIT if is_cached else Flag.NONE),
        details=values.said(details) | kept,
    )


def _outcome(value: Json) -> tuple[Status, int | None]:
    http_status = values.http_status(value.get("response_status_code"), "response_status_code")
    if http_status == 429:
        return Status.THROTTLED, http_status
    has_failed = value.get("is_success") in (False, "false", 0) or (http_status or 0) >= 400
    return (Status.ERROR if has_failed else Status.SUCCESS), http_status


def _answer(value: Json, received_at: int) -> CapturedEvent | None:
    response = value.get("response")
    if not isinstance(response, str | dict) or not response:
        return None
    found = openai.of_envelope({"request": value.get("request"), "response": response}, defaults=Defaults(), received_at=received_at)
    return None if isinstance(found, Refusal | Ignored) else found
