"""Decides which spans and log records are calls of a model, and makes their events.

Only the span nearest to the provider counts: agents, chains and tools repeat the sum of their children, and an HTTP
span or a raw request beneath is the same call again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from collector.capture import langfuse
from collector.capture.event import MAX_COUNT, CapturedEvent, Defaults, ErrorClass, Ignored, Item, Refusal
from collector.capture.native import EARLIEST, MAX_NAME
from collector.capture.otlp import records
from collector.capture.otlp.records import Attributes, Record
from collector.capture.values import Unfit, endpoint_name
from models.usage import Flag, Operation, Quality, Status

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Codes and reasons are words of an API; anything longer or with spaces could be text of a person.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:\-]{0,127}\Z")
_INTEGRAL = re.compile(r"[0-9]{1,16}(?:\.0{1,16})?\Z")
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}\Z")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}\Z")
# How the OpenAI and Azure SDKs write the code of an error into its text, which the instrumentation copies into the status.
_MESSAGE_CODE = re.compile(r"""Error code: (\w{1,64})|\((\w{1,64})\) |\bCode: (\w{1,64})|['"]code['"]: ?['"]?(\w{1,64})""")
_MESSAGE_READ = 4_096

_CALLS: Final = {
    "chat": Operation.CHAT,
    "generate_content": Operation.CHAT,
    # LiteLLM names the function of its own that was called.
    "completion": Operation.CHAT,
    "acompletion": Operation.CHAT,
    "responses": Operation.CHAT,
    "aresponses": Operation.CHAT,
    "text_completion": Operation.TEXT_COMPLETION,
    "atext_completion": Operation.TEXT_COMPLETION,
    "embeddings": Operation.EMBEDDINGS,
    "embedding": Operation.EMBEDDINGS,
    "aembedding": Operation.EMBEDDINGS,
}
_SUMS: Final = frozenset({"invoke_agent", "invoke_workflow", "execute_tool", "create_agent", "plan"})
_REQUEST_TYPES: Final = {"chat": Operation.CHAT, "completion": Operation.TEXT_COMPLETION, "embedding": Operation.EMBEDDINGS}
_LOG_EVENT = "gen_ai.client.inference.operation.details"
_FILTER_CODES: Final = frozenset(
    {"content_filter", "content_filter_error", "responsibleaipolicyviolation", "content_policy_violation", "contentpolicyviolationerror"}
)
_THROTTLE_CODES: Final = frozenset({"429", "rate_limit_exceeded", "ratelimitreached", "toomanyrequests", "too_many_requests", "ratelimiterror"})

_NO_CALL: Final = Ignored("no call of a model")
_PARENT: Final = Ignored("repeats the sum of its children")
_REPEATED: Final = Ignored("the same call is told by its parent")

Kind = Literal["span", "log"]


_COUNTS: Final = frozenset({*records.INPUT, *records.OUTPUT, *records.TOTAL, "langfuse.observation.usage_details"})
_MODELS: Final = (*records.RESPONSE_MODEL, *records.REQUEST_MODEL)


class _Unfit(Exception):
    """The record cannot be used; carries the verdict."""

    def __init__(self, error: ErrorClass, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(error, detail)


class _Tokens(msgspec.Struct, gc=False):
    input: int | None = None
    output: int | None = None
    cached: int | None = None
    reasoning: int | None = None
    total: int | None = None
    quality: Quality = Quality.REPORTED
    flags: Flag = Flag.NONE


def captured(record: Record, kind: Kind, defaults: Defaults, received_at: int) -> Item:
    """The event of the call that the record tells of, or why there is none."""
    operation = _operation(record, kind)
    if isinstance(operation, Ignored):
        return operation
    try:
        return _event(record, kind, operation, defaults, received_at)
    except _Unfit as fault:
        return fault.refusal


def _event(record: Record, kind: Kind, operation: Operation, defaults: Defaults, received_at: int) -> CapturedEvent:
    tokens = _tokens(record.attributes, operation)
    status, http_status, reason = _outcome(record)
    was_answered = status is Status.SUCCESS or (status is Status.FILTERED and (http_status is None or http_status < 400))
    _judge(tokens, was_answered=was_answered)
    time, started_at = _times(record, defaults, received_at)
    endpoint, deployment = endpoint_name(_named(record, records.ENDPOINT)), _named(record, records.DEPLOYMENT)
    if endpoint is None and deployment is None:
        endpoint, deployment = defaults.endpoint, defaults.deployment
    return CapturedEvent(
        id=_id(record, kind),
        time=time,
        source=_named(record, ("meterbridge.source",)) or defaults.source,
        workspace=_named(record, records.WORKSPACE) or defaults.workspace,
        endpoint=endpoint,
        deployment=deployment,
        model=_model(record.attributes) or defaults.model,
        operation=operation,
        application=_named(record, records.APPLICATION) or defaults.application or _service(record),
        team=_named(record, records.TEAM) or defaults.team,
        status=status,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        cached_input_tokens=tokens.cached,
        reasoning_output_tokens=tokens.reasoning,
        quality=tokens.quality,
        flags=tokens.flags,
        started_at=started_at,
        details=_details(record, defaults, http_status, reason, tokens) | {"source_format": _FORMAT[kind]},
    )


# --- is it a call? -----------------------------------------------------------------------------------------------


def _operation(record: Record, kind: Kind) -> Operation | Ignored:
    """What the call asked for. Any mark of an agent, a chain or a tool outweighs what else is said."""
    said = record.attributes
    if not said:
        return _NO_CALL
    if record.name == "raw_gen_ai_request":
        return _REPEATED
    inference, observation = _lower(said.get("openinference.span.kind")), _lower(said.get("langfuse.observation.type"))
    if "traceloop.span.kind" in said or inference not in {"", "llm", "embedding"} or observation not in {"", "generation", "embedding"}:
        return _PARENT
    has_tokens = not _COUNTS.isdisjoint(said)
    if kind == "log" and not has_tokens and _event_name(record) != _LOG_EVENT:
        return _NO_CALL  # messages and exceptions of a call
    name = _lower(said.get("gen_ai.operation.name"))
    if name in _SUMS:
        return _PARENT
    operation = _CALLS.get(name) or (None if name else _REQUEST_TYPES.get(_lower(said.get("llm.request.type"))))
    if operation is not None:
        return operation
    if name:
        # An operation of later days counts where it carries what only a provider's answer has.
        return Operation.OTHER if has_tokens and "gen_ai.response.id" in said else _NO_CALL
    if "embedding" in {inference, observation}:
        return Operation.EMBEDDINGS
    if inference or observation:
        return Operation.TEXT_COMPLETION if record.name == "Completion" else Operation.CHAT
    return Operation.CHAT if has_tokens and not said.keys().isdisjoint(_MODELS) else _NO_CALL


def _lower(value: Any) -> str:
    return value.lower() if isinstance(value, str) else ""


def _event_name(record: Record) -> str:
    """The event that a log record is; before it had a field of its own it was an attribute."""
    said = record.attributes.get("event.name")
    return record.name or (said if isinstance(said, str) else "")


# --- who, which, when --------------------------------------------------------------------------------------------


def _id(record: Record, kind: Kind) -> str | None:
    has_place = bool(_TRACE_ID.match(record.trace_id) and _SPAN_ID.match(record.span_id))
    if kind == "span":
        if not has_place:
            raise _Unfit("malformed", "traceId and spanId must be 32 and 16 hexadecimal digits (not Base64), and not all zero")
        return record.trace_id + record.span_id
    if has_place:
        return record.trace_id + record.span_id + _checked(_event_name(record), "eventName")
    return _text(record.attributes.get("gen_ai.response.id"))


def _named(record: Record, names: Iterable[str]) -> str | None:
    """The first of the names that says something, on the record itself or else on its resource."""
    if record.attributes.keys().isdisjoint(names) and record.resource.keys().isdisjoint(names):
        return None
    for name in names:
        for attributes in (record.attributes, record.resource):
            value = attributes.get(name)
            if isinstance(value, tuple) and len(value) == 1:
                value = value[0]  # HTTP headers come as arrays
            if value is None or value == "":
                continue
            if not isinstance(value, str):
                raise _Unfit("schema_invalid", f"{name} is not a text")
            return _checked(value, name)
    return None


def _checked(value: str, what: str) -> str:
    """A name as it was sent; a damaged one is refused rather than changed."""
    if len(value) > MAX_NAME or _CONTROL.search(value):
        raise _Unfit("invalid_value", f"{what} is longer than {MAX_NAME} characters or holds control characters")
    return value


def _model(said: Attributes) -> str | None:
    for name in _MODELS:
        value = said.get(name)
        if not isinstance(value, str) or not value:
            continue
        # What azure-ai-inference writes where the request names no model, as serverless requests do not.
        if value == "chat" and name == "gen_ai.request.model":
            continue
        return _checked(value, name)
    return None


def _service(record: Record) -> str | None:
    name = _text(record.resource.get("service.name"))
    # SDKs that were told no name say so in the name.
    return None if name is None or name.startswith("unknown_service") else name


def _times(record: Record, defaults: Defaults, received_at: int) -> tuple[int | None, int | None]:
    """The end and the start of the call in microseconds, where they can be believed."""
    time: int | None = record.ended // 1000
    if time is not None and time < EARLIEST:
        time = defaults.ended_at
    started_at: int | None = record.started // 1000
    if started_at is not None and not EARLIEST <= started_at <= (received_at if time is None else time):
        started_at = None
    return time, started_at


# --- how many ----------------------------------------------------------------------------------------------------


def _tokens(said: Attributes, operation: Operation) -> _Tokens:
    """The counts by the newest name that is there; subsets are named, never added."""
    found = _Tokens()
    found.input, found.output, found.total = (_count(said, names, found) for names in (records.INPUT, records.OUTPUT, records.TOTAL))
    found.cached, found.reasoning = (_count(said, names, found) for names in (records.CACHED, records.REASONING))
    if found.input is None and found.output is None and "langfuse.observation.usage_details" in said:
        _add_up(said["langfuse.observation.usage_details"], found)
    if operation is Operation.EMBEDDINGS and found.output is None and (found.input is not None or found.total is not None):
        found.output = 0
    _derive(found)
    return found


def _count(said: Attributes, names: tuple[str, ...], found: _Tokens) -> int | None:
    if said.keys().isdisjoint(names):
        return None
    values = [(name, said[name]) for name in names if name in said]
    count = _whole(*values[0], found)
    if any(value != count and value != values[0][1] for _, value in values[1:]):
        found.flags |= Flag.CONFLICTING_ATTRIBUTES
    return count


def _whole(name: str, value: Any, found: _Tokens) -> int:
    """A count by the value rule: an integer, an integral float or decimal text."""
    if type(value) is int and 0 <= value <= MAX_COUNT:
        return value
    if isinstance(value, str) and _INTEGRAL.match(value):
        value = int(value.partition(".")[0])
        found.flags |= Flag.COERCED
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
        found.flags |= Flag.COERCED
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise _Unfit("invalid_value", f"{name} is not a count: expected a whole number from 0 to {MAX_COUNT}")
    return value


def _add_up(text: Any, found: _Tokens) -> None:
    """Langfuse's usage: a JSON map of kinds of its own naming."""
    try:
        usage = msgspec.json.decode(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        usage = None
    if not isinstance(usage, dict):
        raise _Unfit("schema_invalid", "langfuse.observation.usage_details is not a JSON object")
    try:
        tokens = langfuse.tokens_of(usage)
    except Unfit as fault:
        raise _Unfit(fault.refusal.error, f"langfuse.observation.usage_details: {fault.refusal.detail}") from fault
    found.input, found.output, found.cached, found.reasoning, found.total = tokens.input, tokens.output, tokens.cached, tokens.reasoning, tokens.total
    found.flags |= tokens.flags


def _derive(found: _Tokens) -> None:
    """Fill the one count that the total leaves no choice about; a total that contradicts is evidence, not a count."""
    if found.total is None or (found.input is None and found.output is None):
        return
    rest = found.total - (found.input or 0) - (found.output or 0)
    if found.input is not None and found.output is not None:
        found.flags |= Flag.TOTAL_MISMATCH if rest else Flag.NONE
    elif rest < 0:
        found.flags |= Flag.TOTAL_MISMATCH
    elif found.input is None:
        found.input, found.quality = rest, Quality.DERIVED
    else:
        found.output, found.quality = rest, Quality.DERIVED


def _judge(tokens: _Tokens, *, was_answered: bool) -> None:
    """Say what the counts are worth: a zero that a library writes for "not known" is unknown, and a part is within its whole."""
    if tokens.input == 0 and not tokens.output:
        tokens.flags |= Flag.ZERO_USAGE if was_answered else Flag.NONE
        tokens.input = tokens.output = None
    if tokens.input is None or tokens.output is None:
        tokens.quality = Quality.MISSING if was_answered else Quality.REPORTED
        if was_answered:
            tokens.flags |= Flag.USAGE_MISSING
    if tokens.cached is not None and (tokens.input is None or tokens.cached > tokens.input):
        tokens.flags |= Flag.NONE if tokens.input is None else Flag.SUBSET_EXCEEDS_TOTAL
        tokens.cached = None
    if tokens.reasoning is not None and (tokens.output is None or tokens.reasoning > tokens.output):
        tokens.flags |= Flag.NONE if tokens.output is None else Flag.SUBSET_EXCEEDS_TOTAL
        tokens.reasoning = None


# --- how it ended ------------------------------------------------------------------------------------------------


def _outcome(record: Record) -> tuple[Status, int | None, str | None]:
    """How the call ended, its HTTP status and the finish reason. The text of an error is read for its codes, and dropped."""
    said = record.attributes
    reason = _finish_reason(said)
    http_status = None
    if not said.keys().isdisjoint(records.HTTP_STATUS):
        http_status = next((status for name in records.HTTP_STATUS if (status := _http_status(said.get(name))) is not None), None)
    error = said.get("error.type")
    is_failed = record.is_error or (error is not None and error != "") or (http_status or 0) >= 400 or _lower(said.get("langfuse.observation.level")) == "error"
    if not is_failed:
        return (Status.FILTERED if reason in _FILTER_CODES else Status.SUCCESS), http_status, reason
    codes = {code.lower() for match in _MESSAGE_CODE.finditer(record.message[:_MESSAGE_READ]) for code in match.groups() if code}
    codes |= {str(error).rpartition(".")[2].lower()} if isinstance(error, str | int) else set()
    if http_status is None or http_status < 400:
        http_status = next((status for code in sorted(codes) if (status := _http_status(code)) is not None and status >= 400), None)
    if codes & _FILTER_CODES:
        return Status.FILTERED, http_status or 400, reason
    if http_status == 429 or codes & _THROTTLE_CODES:
        return Status.THROTTLED, 429, reason
    return Status.ERROR, http_status, reason


def _http_status(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599 else None


def _finish_reason(said: Attributes) -> str | None:
    """The reason of the first candidate, or the filter's if it stopped any of them."""
    if said.keys().isdisjoint(records.FINISH_REASONS):
        return None
    for name in records.FINISH_REASONS:
        value: Any = said.get(name)
        if isinstance(value, str) and value.startswith("["):  # LiteLLM writes the array as text
            try:
                value = msgspec.json.decode(value)
            except (ValueError, RecursionError):
                continue
        reasons = [reason for reason in (value if isinstance(value, tuple | list) else (value,)) if isinstance(reason, str) and _WORD.match(reason)]
        if reasons:
            return next((reason for reason in reasons if reason in _FILTER_CODES), reasons[0])
    return None


# --- what is kept beside it --------------------------------------------------------------------------------------


class _ModelAnswer(msgspec.Struct):
    """As much of a provider's answer as tells it from an application's own JSON."""

    id: str
    choices: msgspec.Raw


_MODEL_ANSWER: Final = msgspec.json.Decoder(_ModelAnswer)


_RARE: Final = frozenset({*records.STREAM, *records.REQUEST_ID, *records.CACHE_WRITE})
_FORMAT: Final = {"span": "otlp_span", "log": "otlp_log"}


def _details(record: Record, defaults: Defaults, http_status: int | None, reason: str | None, tokens: _Tokens) -> dict[str, str | int | bool | None]:
    """The named scalars that are kept for the receipt."""
    said = record.attributes
    stream = request_id = cache_write = None
    if not _RARE.isdisjoint(said):
        stream = next((said[name] for name in records.STREAM if isinstance(said.get(name), bool)), None)
        request_id = next((text for name in records.REQUEST_ID if (text := _text(said.get(name)))), None)
        # For the receipt only, and only where something was written.
        cache_write = next((count for name in records.CACHE_WRITE if (count := _small(said.get(name)))), None)
    found: dict[str, Any] = {
        "response_id": _response_id(said),
        "request_id": request_id,
        "trace_id": record.trace_id if _TRACE_ID.match(record.trace_id) else None,
        "span_id": record.span_id if _SPAN_ID.match(record.span_id) else None,
        "finish_reason": reason,
        "http_status": http_status,
        "error_code": _word(said.get("error.type")),
        "stream": stream,
        "choices": _small(said.get("gen_ai.request.choice.count")),
        "max_tokens": _small(said.get("gen_ai.request.max_tokens")),
        "cache_write_input_tokens": cache_write,
        "user": _text(said.get("meterbridge.user")) or _text(record.resource.get("meterbridge.user")) or defaults.user,
        "server_address": _text(said.get("server.address")),
    }
    if record.started and record.ended >= record.started:
        found["duration_ms"] = (record.ended - record.started) // 1_000_000
    if tokens.total is not None and (tokens.flags & Flag.TOTAL_MISMATCH or tokens.input is None or tokens.output is None):
        found["total_tokens_reported"] = tokens.total
    return {name: value for name, value in found.items() if value is not None}


def _response_id(said: Attributes) -> str | None:
    known = _text(said.get("gen_ai.response.id"))
    if known is not None or "openinference.span.kind" not in said:
        return known
    # OpenInference has it only inside the whole answer; the rest of that is not kept.
    answer = said.get("output.value")
    if not isinstance(answer, str):
        return None
    try:
        return _word(_MODEL_ANSWER.decode(answer).id)
    except (ValueError, RecursionError):
        return None


def _text(value: Any) -> str | None:
    """A text that is kept for the receipt only: a damaged one is left out."""
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and 0 < len(value) <= MAX_NAME and not _CONTROL.search(value) else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and _WORD.match(value) else None


def _small(value: Any) -> int | None:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else None
