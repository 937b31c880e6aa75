"""Langfuse's observations, from its API or its exports: generations and embeddings; spans and events are none.

Its usage is a map of kinds of the sender's own naming, which add up: cached input stands beside input, not within it,
unless the total says otherwise. The OTLP reader takes the same map from a span's attribute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from collector.capture import bodies, values
from collector.capture.event import MAX_COUNT, CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.values import Json, Scalar, Tokens, Unfit
from models.errors import InvalidInput
from models.usage import Operation, Status

# The parts that stand for a whole direction where the others are subsets.
_INPUT_KINDS: Final = frozenset({"input", "input_tokens", "prompt_tokens", "prompttokens"})
_OUTPUT_KINDS: Final = frozenset({"output", "output_tokens", "completion_tokens", "completiontokens"})
_TOTALS: Final = ("total", "total_tokens", "totaltokens")
_CALLS: Final = {"generation": Operation.CHAT, "embedding": Operation.EMBEDDINGS}
_HEX = re.compile(r"[0-9a-f]+\Z")


def capture(body: bytes, *, media_type: str | None, headers: Mapping[str, str], defaults: Defaults, received_at: int) -> list[Item]:  # noqa: ARG001 - as every format's
    """The observations of the body; a page of the API (``{"data": […]}``) is read as its observations."""
    found = [values.loaded(piece) for piece in bodies.pieces(body, media_type=media_type)]
    if len(found) == 1 and isinstance(found[0], Refusal) and found[0].error == "malformed":
        raise InvalidInput(found[0].detail, error=found[0].error)
    return [_item(value, defaults) for page in found for value in (page["data"] if _is_page(page) else [page])]


def is_mine(value: Json) -> bool:
    """Whether the object is an observation of Langfuse, or a page of them."""
    if _is_page(value):
        return all(isinstance(one, dict) and is_mine(one) for one in value["data"][:3])
    return (
        "type" in value and bool({"traceId", "trace_id"} & value.keys()) and bool({"startTime", "start_time", "usageDetails", "usage_details"} & value.keys())
    )


def tokens_of(usage: Mapping[str, Any]) -> Tokens:
    """The counts of Langfuse's map.

    A total that equals input + output says that the other kinds are subsets after all, and so do OpenAI's nested details;
    a total that fits neither reading is a contradiction.
    """
    found = Tokens()
    count = values.Counter({kind.lower(): value for kind, value in _flat(usage)})
    counts = {kind: known for kind in count.values if kind != "unit" and (known := count(kind)) is not None}
    found.flags |= count.flags
    totals = [counts.pop(kind) for kind in _TOTALS if kind in counts]
    inputs = _picked(counts, lambda kind: any(word in kind for word in ("input", "prompt", "cache")))
    outputs = _picked(counts, lambda kind: kind not in inputs and any(word in kind for word in ("output", "completion", "reasoning")))
    whole_input, whole_output = (_picked(counts, kinds.__contains__) for kinds in (_INPUT_KINDS, _OUTPUT_KINDS))
    found.total = totals[0] if totals else None
    found.cached = _sum(_picked(inputs, lambda kind: "cache" in kind and not any(word in kind for word in ("creation", "write"))))
    found.reasoning = _sum(_picked(outputs, lambda kind: "reasoning" in kind))
    has_details = any(isinstance(value, dict) for value in usage.values())
    if has_details or (found.total not in {None, sum(counts.values())} and found.total == sum(whole_input.values()) + sum(whole_output.values())):
        inputs, outputs = whole_input, whole_output
    found.input, found.output = _sum(inputs), _sum(outputs)
    return found


def _flat(usage: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The counts of the map; those of an inner object (OpenAI's details) under its name and theirs."""
    for kind, value in usage.items():
        if isinstance(value, dict):
            yield from ((f"{kind}.{inner}", count) for inner, count in value.items())
        else:
            yield kind, value


def _picked(counts: dict[str, int], is_picked: Callable[[str], bool]) -> dict[str, int]:
    return {kind: count for kind, count in counts.items() if is_picked(kind)}


def _sum(counts: dict[str, int]) -> int | None:
    if not counts:
        return None
    total = sum(counts.values())
    if total > MAX_COUNT:
        raise Unfit("invalid_value", f"the counts of usage_details add up to more than {MAX_COUNT}")
    return total


def _is_page(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("data"), list) and "object" not in value and bool({"meta", "pagination"} & value.keys())


def _item(value: Any, defaults: Defaults) -> Item:
    if isinstance(value, Refusal):
        return value
    if not isinstance(value, dict) or not is_mine(value):
        return Refusal("schema_invalid", "not an observation of Langfuse: expected an object with id, type, traceId and startTime")
    kind = value.get("type")
    if not isinstance(kind, str) or kind.lower() not in _CALLS:
        return Ignored("an observation that repeats the sum of others")
    try:
        return _captured({_snake(name): found for name, found in value.items()}, defaults, _CALLS[kind.lower()])
    except Unfit as fault:
        return fault.refusal


def _captured(value: Json, defaults: Defaults, operation: Operation) -> CapturedEvent:
    usage = next((found for name in ("usage_details", "usage") if (found := _object(value.get(name)))), {})
    tokens = tokens_of(usage)
    if operation is Operation.EMBEDDINGS and tokens.output is None and (tokens.input is not None or tokens.total is not None):
        tokens.output = 0
    tokens.settle()
    has_failed = str(value.get("level", "")).upper() == "ERROR"
    status = Status.ERROR if has_failed else Status.SUCCESS
    if tokens.is_zero:
        tokens.input = tokens.output = tokens.cached = tokens.reasoning = None
    tokens.judge(status, None)
    time = values.believed(values.instant(value.get("end_time") or value.get("start_time"), "endTime"))
    started_at = values.believed(values.instant(value.get("start_time"), "startTime"))
    started_at = None if started_at is None or time is None or started_at > time else started_at
    trace, span = (found.lower() if isinstance(found := value.get(name), str) else "" for name in ("trace_id", "id"))
    is_span = len(trace) == 32 and len(span) == 16 and bool(_HEX.match(trace) and _HEX.match(span))
    parameters, metadata = _object(value.get("model_parameters")) or {}, _object(value.get("metadata")) or {}
    cost = values.amount((_object(value.get("cost_details")) or {}).get("total") or value.get("calculated_total_cost") or value.get("total_cost"))
    details: dict[str, Scalar] = values.asked_for(parameters, {}) | {
        "source_format": "langfuse",
        "trace_id": trace if is_span else None,
        "span_id": span if is_span else None,
        "user": values.label(value.get("user_id")) or defaults.user,
        "duration_ms": None if started_at is None or time is None else (time - started_at) // 1000,
        "total_tokens_reported": tokens.total_reported,
        "reported_cost": cost,
        "reported_cost_currency": None if cost is None else "USD",
    }
    return CapturedEvent(
        # As the same observation has it over OTLP: sent both ways, it is still one call.
        id=trace + span if is_span else values.identifier(value.get("id"), "id"),
        time=time,
        source=defaults.source,
        workspace=defaults.workspace,
        endpoint=values.endpoint_name(defaults.endpoint),
        deployment=values.text(metadata.get("deployment"), "metadata.deployment") or defaults.deployment,
        model=values.text(value.get("model") or value.get("provided_model_name"), "model") or defaults.model,
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
        started_at=started_at,
        details=values.said(details),
    )


def _object(value: Any) -> Json | None:
    """The object, also where an export wrote it as text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: "_" + found[1].lower(), name)
