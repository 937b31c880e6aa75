"""Raw OpenAI and Azure AI Model Inference bodies of ``POST /v1/usage/openai``: what a gateway or an SDK hook saw.

Takes the counts, the ids and a few named scalars out of a response (or stream, or error) and drops the rest unread:
prompts, completions, error texts and secrets have no way into an event. Foreign senders are forgiven what the native
format is not (missing ids and times), but a count is never guessed: unknown stays None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from collector.capture import bodies, values
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.native import EARLIEST
from collector.capture.values import DAY, FILTER_CODES, SECOND, THROTTLE_CODES, Json, Scalar, Tokens, Unfit
from meterbridge_client.calls import without_secrets
from models.errors import InvalidInput
from models.usage import DEFAULT_MAX_TOKENS, Flag, Operation, Status

_SSE_START = re.compile(r"(?:data|event|id|retry)?:")
_SSE_TYPE = "text/event-stream"

_ANSWER_KEYS = ("choices", "usage", "error", "output", "data")
# Answers of the same APIs that are no billable call.
_PENDING = frozenset({"queued", "in_progress"})


def capture(body: bytes, *, media_type: str | None, headers: Mapping[str, str], defaults: Defaults, received_at: int) -> list[Item]:
    """The calls that the body tells of: a raw body is one; envelopes come singly, in an array or one per line.

    ``headers`` have lower-case names; those of the provider (request id, deployment, remaining limits) count for a
    body that holds one call. A body that cannot be read at all raises ``InvalidInput("malformed")``.
    """
    try:
        context = _context(headers, defaults)
    except Unfit as fault:
        # What the request says about all of its items is wrong; no item can be judged without it.
        raise InvalidInput(fault.refusal.detail, error=fault.refusal.error) from fault
    text = bodies.trimmed(body)
    if bodies.base_type(media_type) == _SSE_TYPE or is_stream(text):
        found: list[Any] = [text.decode("utf-8", "replace")]
        is_single = True
    elif _is_failed(context.status) and text[:1] not in {b"{", b"["}:
        found, is_single = [None], True  # a gateway's own error page
    else:
        found, is_single = _values(text, media_type)
        if is_single and isinstance(found[0], Refusal) and found[0].error == "malformed":
            raise InvalidInput(found[0].detail, error=found[0].error)
    shared = headers if is_single else {}
    return [value if isinstance(value, Refusal) else _item(value, context, shared, received_at) for value in found]


def is_stream(text: bytes) -> bool:
    """Whether a text is one of server-sent events."""
    return _SSE_START.match(text[:6].decode("latin-1")) is not None


def of_envelope(envelope: Json, *, defaults: Defaults, received_at: int) -> Item:
    """The call of an envelope that came inside another format's record."""
    return _item(envelope, _Context(defaults=defaults), {}, received_at)


def _is_failed(http_status: int | None) -> bool:
    return http_status is not None and http_status >= 400


@dataclass(slots=True, kw_only=True)
class _Context:
    """What is said beside the bodies: by the headers of the request, else by its defaults."""

    defaults: Defaults
    status: int | None = None


@dataclass(slots=True)
class _Answer:
    """What is taken from a response or a stream: no more than is kept or decided upon."""

    id: str | None = None
    model: str | None = None
    created: float | None = None
    object: str = ""
    usage: Json | None = None
    error: Json | None = None
    # By choice index: a candidate may end before one with a lower index.
    finish_reasons: dict[int, str] = field(default_factory=dict)
    choices: set[int] = field(default_factory=set)
    status: str = ""
    reason: str = ""
    is_stream: bool = False
    has_ended: bool = True


# --- reading -----------------------------------------------------------------------------------------------------


def _values(text: bytes, media_type: str | None) -> tuple[list[Any], bool]:
    """The JSON values of the body, a refusal in place of each that cannot be read, and whether they are one call."""
    found: list[Any] = [values.loaded(piece) for piece in bodies.pieces(text, media_type=media_type)]
    if len(found) > 1 and all(isinstance(value, dict) and _is_chunk(value) for value in found):
        return [found], True
    is_list = bodies.is_lines(media_type) or text[:1] == b"["
    return found, len(found) == 1 and not is_list


def _item(value: Any, context: _Context, headers: Mapping[str, str], received_at: int) -> Item:
    try:
        if isinstance(value, dict) and _is_envelope(value):
            return _from_envelope(value, context, headers, received_at)
        return _Call(context.defaults, headers, status=context.status).captured(value, received_at)
    except Unfit as fault:
        return fault.refusal


def _is_envelope(value: Json) -> bool:
    return ("response" in value or "request" in value) and not any(key in value for key in ("choices", "usage", "error", "object"))


def _is_chunk(value: Json) -> bool:
    return value.get("object") == "chat.completion.chunk"


def _context(headers: Mapping[str, str], defaults: Defaults) -> _Context:
    # Header values are percent-encoded UTF-8: HTTP itself has no letters beyond ASCII.
    said = {name.removeprefix("x-meterbridge-").replace("-", "_"): unquote(value) for name, value in headers.items() if name.startswith("x-meterbridge-")}
    return _Context(defaults=_said(said, defaults), status=values.http_status(said.get("status")))


def _said(fields: Mapping[str, Any], defaults: Defaults) -> Defaults:
    """The defaults with what ``fields`` say put before them."""
    endpoint, deployment = values.name(fields, "endpoint"), values.name(fields, "deployment")
    if endpoint is None and deployment is None:
        endpoint, deployment = defaults.endpoint, defaults.deployment
    return Defaults(
        source=values.name(fields, "source") or defaults.source,
        workspace=values.name(fields, "workspace") or defaults.workspace,
        endpoint=values.endpoint_name(endpoint),
        deployment=deployment,
        model=values.name(fields, "model") or defaults.model,
        application=values.name(fields, "application") or defaults.application,
        team=values.name(fields, "team") or defaults.team,
        user=values.name(fields, "user") or defaults.user,
        started_at=_instant(fields, "started_at", defaults.started_at),
        ended_at=_instant(fields, "ended_at", defaults.ended_at),
    )


def _from_envelope(envelope: Json, context: _Context, headers: Mapping[str, str], received_at: int) -> Item:
    own = envelope.get("headers")
    if isinstance(own, dict):
        headers = {name.lower(): value for name, value in own.items() if isinstance(value, str)}
    request = envelope.get("request")
    if isinstance(request, str):
        request = values.loaded(request)
    status = values.http_status(envelope.get("status"))
    asked = envelope.get("request_headers")
    call = _Call(
        _at(_said(envelope, context.defaults), envelope.get("url")),
        headers,
        asked={name.lower(): value for name, value in asked.items() if isinstance(value, str)} if isinstance(asked, dict) else {},
        status=context.status if status is None else status,
        request=request if isinstance(request, dict) else {},
        has_own_headers=isinstance(own, dict),
    )
    return call.captured(envelope.get("response"), received_at)


def _at(said: Defaults, url: Any) -> Defaults:
    """The defaults with what the address of the call names, where nobody said it."""
    place = values.place(url)
    if said.endpoint is None and said.deployment is None:
        said = replace(said, endpoint=place.endpoint, deployment=place.deployment)
    return replace(said, workspace=said.workspace or place.workspace)


def _answer(response: Any, status: int | None) -> _Answer:
    """What the response says, whichever of its shapes it has."""
    if isinstance(response, str):
        text = response.strip()
        if _SSE_START.match(text):
            return _streamed(*_events(text))
        response = values.loaded(text) if text else None
    if isinstance(response, list):
        chunks = [chunk for chunk in response if isinstance(chunk, dict)]
        if response and len(chunks) == len(response):
            return _streamed(chunks, has_done=False)
    if isinstance(response, dict):
        # One event of a Responses stream that was sent on its own.
        inner = response.get("response")
        if isinstance(inner, dict) and "object" not in response:
            response = inner
        answer = _Answer()
        _read(response, answer)
        return answer
    if _is_failed(status):
        return _Answer()  # gateways answer errors with HTML, plain text or nothing
    if isinstance(response, Refusal):
        raise Unfit(response.error, response.detail)
    if response is None:
        raise Unfit("schema_invalid", "response is missing; send the response body, or the status of a call that got none")
    raise Unfit("schema_invalid", "not a response body: expected an object or the text of a stream")


def _events(text: str) -> tuple[list[Json], bool]:
    """The JSON objects of a server-sent event stream, and whether it said ``[DONE]``; what is cut or broken is left out."""
    chunks: list[Json] = []
    has_done = False
    data: list[str] = []
    for line in [*re.split(r"\r\n|\n|\r", text), ""]:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            joined = "\n".join(data).strip()
            data = []
            if joined == "[DONE]":
                has_done = True
                continue
            chunk = values.loaded(joined)
            if isinstance(chunk, dict):
                chunks.append(chunk)
    return chunks, has_done


def _streamed(chunks: list[Json], has_done: bool) -> _Answer:  # noqa: FBT001 - the pair that _events returns
    """One answer from all chunks: the first id and model that are not empty, the last usage that says something."""
    answer = _Answer(is_stream=True)
    for chunk in chunks:
        inner = chunk.get("response")
        _read(inner if isinstance(inner, dict) else chunk, answer)
    if not chunks and not has_done:
        raise Unfit("malformed", "a stream without a single readable event")
    answer.has_ended = (
        has_done
        or bool(answer.finish_reasons.keys() >= answer.choices and answer.choices)
        or answer.status in {"completed", "incomplete", "failed", "cancelled"}
    )
    last = chunks[-1] if chunks else {}
    # The chunk of stream_options.include_usage has no choices and is the last of all.
    answer.has_ended = answer.has_ended or (_tells(last.get("usage")) and last.get("choices") == [])
    return answer


def _read(value: Json, answer: _Answer) -> None:
    """Take from one response or chunk what the answer does not know yet."""
    answer.id = answer.id or values.identifier(value.get("id"), "id")
    answer.model = answer.model or values.text(value.get("model"), "model")
    created = value.get("created", value.get("created_at"))
    if answer.created is None and isinstance(created, int | float) and not isinstance(created, bool) and created > 0:
        answer.created = created
    if isinstance(value.get("object"), str) and answer.object in {"", "unknown"}:
        answer.object = value["object"]
    usage = value.get("usage")
    if usage is not None and not isinstance(usage, dict):
        raise Unfit("schema_invalid", "usage is not an object")
    if _tells(usage):
        answer.usage = usage
    if answer.error is None:
        answer.error = _error(value)
    _read_choices(value, answer)
    answer.status = values.word(value.get("status")) or answer.status
    details = value.get("incomplete_details")
    if isinstance(details, dict):
        answer.reason = values.word(details.get("reason")) or answer.reason
    if not answer.object and any(key in value for key in _ANSWER_KEYS):
        answer.object = "unknown"


def _read_choices(value: Json, answer: _Answer) -> None:
    choices = value.get("choices")
    for place, choice in enumerate(choices if isinstance(choices, list) else []):
        if not isinstance(choice, dict):
            continue
        said = choice.get("index")
        index = said if isinstance(said, int) and 0 <= said < 10_000 else place
        answer.choices.add(index)
        reason = values.word(choice.get("finish_reason"))
        if reason:
            answer.finish_reasons[index] = reason
        if answer.object in {"", "unknown"}:
            answer.object = "text_completion" if "text" in choice else "chat.completion"


def _tells(usage: Any) -> bool:
    return isinstance(usage, dict) and any(
        usage.get(name) is not None for name in ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "total_tokens")
    )


def _error(value: Json) -> Json | None:
    """The error object in any of its shapes: OpenAI's, vLLM's flat one, that of API Management, a stream's."""
    error = value.get("error")
    if error:
        return error if isinstance(error, dict) else {}
    if value.get("object") == "error" or value.get("type") == "error":
        return value
    if "statusCode" in value and "choices" not in value:
        return {"status": value["statusCode"]}
    if value.get("object") == "response" and value.get("status") == "failed":
        return {}
    return None


# --- deciding ----------------------------------------------------------------------------------------------------


class _Call:
    """One call to a deployment: what was said around it, until its answer is known."""

    def __init__(
        self,
        said: Defaults,
        headers: Mapping[str, str],
        *,
        status: int | None,
        request: Json | None = None,
        asked: Mapping[str, str] | None = None,
        has_own_headers: bool = False,
    ) -> None:
        self.said = said
        self.headers = headers
        # The header that speaks of the request's parameters is a request's; senders that keep one set of headers put it there.
        self.asked = {**headers, **(asked or {})}
        self.http_status = status
        self.request = request or {}
        self.has_own_headers = has_own_headers

    def captured(self, response: Any, received_at: int) -> Item:
        """The event that the call and its answer make, or why there is none."""
        answer = _answer(response, self.http_status)
        is_failed = answer.error is not None or _is_failed(self.http_status)
        if not is_failed:
            no_usage = self._no_usage(answer, response)
            if no_usage is not None:
                return no_usage
        operation = self._operation(answer, response)
        status, http_status, code = self._outcome(answer)
        tokens = values.tokens_of(answer.usage, operation)
        tokens.judge(status, http_status)
        flags = tokens.flags
        if answer.is_stream and (not answer.has_ended or (answer.error is not None and answer.choices)):
            flags |= Flag.STREAM_TRUNCATED
        if self.headers.get("x-ms-is-spilled-over", "").lower() == "true":
            flags |= Flag.SPILLOVER
        time, started_at = self._times(answer, received_at)
        endpoint, deployment = self.said.endpoint, self.said.deployment
        if deployment is None:
            # Of several deployments behind one endpoint the request's header pins one, and some answers repeat it.
            pinned = self._header("azureml-model-deployment") or values.label(self.asked.get("azureml-model-deployment"))
            deployment = pinned if endpoint is not None else self._header("x-ms-deployment-name") or pinned
        model = answer.model or values.text(self.request.get("model"), "request.model") or self.said.model
        return CapturedEvent(
            id=answer.id or self._request_id(),
            time=time,
            source=self.said.source,
            workspace=self.said.workspace,
            endpoint=endpoint,
            deployment=deployment,
            model=without_secrets({"model": model}, self.asked).get("model"),
            operation=operation,
            application=self.said.application,
            team=self.said.team,
            status=status,
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cached_input_tokens=tokens.cached,
            reasoning_output_tokens=tokens.reasoning,
            quality=tokens.quality,
            flags=flags,
            started_at=started_at,
            details=without_secrets(self._details(answer, http_status, code, tokens, started_at), self.asked),
        )

    def _no_usage(self, answer: _Answer, response: Any) -> Refusal | Ignored | None:
        """Why an answer without an error is no call to be counted; None if it is one."""
        if answer.object == "response" and answer.status in _PENDING and not answer.is_stream:
            return Ignored("the response is still being made; send it when it is complete")
        if answer.object == "list" and answer.usage is None and not ("input" in self.request or _holds_embeddings(response)):
            return Ignored("a list that holds no embeddings")
        is_call = answer.is_stream or answer.usage is not None or answer.choices or answer.object in {"chat.completion", "text_completion", "response", "list"}
        if is_call:
            return None
        if answer.object and answer.object != "unknown":
            return Ignored("an object of the API that is no answer of a model")
        return Refusal("schema_invalid", "not a response body: no choices, no usage, no error")

    def _operation(self, answer: _Answer, response: Any) -> Operation:
        match answer.object:
            case "chat.completion" | "chat.completion.chunk" | "response":
                return Operation.CHAT
            case "text_completion":
                return Operation.TEXT_COMPLETION
            case "list" if "input" in self.request or _holds_embeddings(response) or answer.usage is not None:
                return Operation.EMBEDDINGS
        if "messages" in self.request:
            return Operation.CHAT
        if "prompt" in self.request:
            return Operation.TEXT_COMPLETION
        if "input" in self.request:
            # The Responses API names its prompt input, too.
            return Operation.CHAT if "max_output_tokens" in self.request or "instructions" in self.request else Operation.EMBEDDINGS
        return Operation.OTHER

    def _outcome(self, answer: _Answer) -> tuple[Status, int | None, str | None]:
        """How the call ended, its HTTP status, and the error's code; an error object beats HTTP 200."""
        if answer.error is None and not _is_failed(self.http_status):
            reasons = set(answer.finish_reasons.values()) | ({answer.reason} if answer.status == "incomplete" else set())
            if reasons & FILTER_CODES:
                return Status.FILTERED, self.http_status, None
            is_whole = answer.has_ended and answer.status not in {"incomplete", "cancelled"}
            return (Status.SUCCESS if is_whole else Status.INCOMPLETE), self.http_status, None
        error = answer.error or {}
        inner = error.get("innererror")
        code = values.word(error.get("code")) or values.word(error.get("type"))
        codes = {word.lower() for word in (code, values.word(inner.get("code") if isinstance(inner, dict) else None)) if word}
        http_status = self.http_status if _is_failed(self.http_status) else _error_status(error)
        if codes & FILTER_CODES:
            # The same code over an answer that had begun is a filtered completion: tokens were spent.
            return Status.FILTERED, self.http_status if answer.choices else http_status or 400, code
        if http_status == 429 or codes & THROTTLE_CODES:
            return Status.THROTTLED, http_status or 429, code
        return Status.ERROR, http_status, code

    def _times(self, answer: _Answer, received_at: int) -> tuple[int | None, int | None]:
        """The end and the start of the call, where they can be believed."""
        started_at = self.said.started_at
        time = self.said.ended_at
        if time is not None and time < EARLIEST:
            time = None
        elif time is None and answer.created is not None and math.isfinite(answer.created):
            created = int(answer.created * SECOND)
            if EARLIEST <= created <= received_at + DAY:
                # It counts whole seconds, so a call may seem to end a moment before it starts.
                time = started_at if started_at is not None and created < started_at < created + SECOND else created
        if started_at is not None and (started_at < EARLIEST or (time is not None and started_at > time)):
            started_at = None
        return time, started_at

    def _details(self, answer: _Answer, http_status: int | None, code: str | None, tokens: Tokens, started_at: int | None) -> dict[str, Scalar]:
        """The named scalars that are kept for the receipt."""
        request = self.request
        stream = request.get("stream")
        reasons = [answer.finish_reasons.get(index) for index in sorted(answer.choices)] or [answer.reason] * bool(answer.reason)
        found: dict[str, Scalar] = values.asked_for(request, self.asked) | {
            "source_format": "openai_response",
            "response_id": answer.id,
            # On the request to us, a proxy may write a new x-request-id for every attempt; kept beside an id of the
            # body's own it would make a retry look like other content.
            "request_id": self._request_id() if answer.id is None or self.has_own_headers else self._header("apim-request-id"),
            "http_status": http_status,
            "error_code": code,
            "cache_write_input_tokens": tokens.cache_write,
            "total_tokens_reported": tokens.total_reported,
            "stream": True if answer.is_stream else stream if isinstance(stream, bool) else None,
            "user": self.said.user or values.text(request.get("user"), "request.user"),
            "ratelimit_remaining_tokens": values.remaining(self.headers.get("x-ratelimit-remaining-tokens")),
            "ratelimit_remaining_requests": values.remaining(self.headers.get("x-ratelimit-remaining-requests")),
            "ratelimit_limit_tokens": values.remaining(self.headers.get("x-ratelimit-limit-tokens")),
            "ratelimit_limit_requests": values.remaining(self.headers.get("x-ratelimit-limit-requests")),
        }
        found["choices"] = found["choices"] or len(answer.choices) or None
        if self._has_default_limit(tokens, len(answer.choices)):
            found["max_tokens"], found["max_tokens_source"] = DEFAULT_MAX_TOKENS, "default"
        if self.said.ended_at is not None and started_at is not None and self.said.ended_at >= started_at:
            found["duration_ms"] = (self.said.ended_at - started_at) // 1000
        return values.said(found) | values.finish(reasons)

    def _has_default_limit(self, tokens: Tokens, candidates: int) -> bool:
        """Whether the model's own limit applied: the request is known and says none, and the answer is not longer than it."""
        is_request = "messages" in self.request or "prompt" in self.request
        says_one = any(values.small(self.request.get(name)) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
        most = DEFAULT_MAX_TOKENS * max(1, candidates, values.small(self.request.get("n")) or 1, values.small(self.request.get("best_of")) or 1)
        return is_request and not says_one and tokens.output is not None and tokens.output <= most

    def _header(self, name: str) -> str | None:
        return values.text(self.headers.get(name), name)

    def _request_id(self) -> str | None:
        for name in ("apim-request-id", "x-request-id"):
            value = self._header(name)
            if value and value != "not-set":
                return value
        return None


# --- values ------------------------------------------------------------------------------------------------------


def _holds_embeddings(response: Any) -> bool:
    data = response.get("data") if isinstance(response, dict) else None
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and (data[0].get("object") == "embedding" or "embedding" in data[0])


def _error_status(error: Json) -> int | None:
    """The HTTP status that an error object names, if any."""
    for name in ("status", "code", "statusCode"):
        value = error.get(name)
        if isinstance(value, str):
            value = values.remaining(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            return value
    return None


def _instant(fields: Mapping[str, Any], field: str, default: int | None) -> int | None:
    at = values.instant(fields.get(field), field)
    return default if at is None else at
