"""LiteLLM's generic_api callback bodies of ``POST /v1/usage/litellm``: what the proxy logged of each attempt.

A StandardLoggingPayload carries prompts, completions, keys' hashes and stack traces beside its counts; only named
scalars are taken. LiteLLM sends once and forgets, so labels that cannot be used are left out rather than the event.

Request tags become tags ``litellm:<tag>`` with the value ``true``: they are words without keys, also where they look
like ``team:invoices``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec

from collector.capture import bodies, values
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.native import MAX_TAGS
from collector.capture.values import FILTER_CODES, SECOND, THROTTLE_CODES, Json, Scalar, Tokens, Unfit
from models.errors import InvalidInput
from models.usage import Flag, Operation, Status

_TAG = "litellm:"
# The proxy adds the client's name and version to every request's tags; nobody said them, and each would be a series.
_OWN_TAG = "User-Agent:"
_OF_PROVIDER = "llm_provider-"
_LATEST = 4_102_444_800  # 2100-01-01; beyond it a number is no epoch in seconds

# Calls that read or manage what is stored. Each is logged under a new id with the stored call's tokens (LiteLLM issue 17814).
_STORED = re.compile(r"a?(?:get|list|delete|retrieve|cancel|file|create_file|create_batch|vector_store)_", re.ASCII)
_OPERATIONS = {
    "": Operation.CHAT,
    "completion": Operation.CHAT,
    "responses": Operation.CHAT,
    "anthropic_messages": Operation.CHAT,
    "generate_content": Operation.CHAT,
    "generate_content_stream": Operation.CHAT,
    "text_completion": Operation.TEXT_COMPLETION,
    "embedding": Operation.EMBEDDINGS,
}
_NORMALIZED = re.compile(r"([45][0-9]{2})_")
_PAYLOAD_KEYS = frozenset({"litellm_call_id", "call_type", "prompt_tokens", "completion_tokens", "startTime"})
_ALERT_KEYS = frozenset({"event", "event_group", "spend"})


# What may stand in place of an object, such as a word where it was blacked out; nothing of it is read.
_Other = str | int | float | bool | list[Any] | None


class _Choice(TypedDict, total=False):
    finish_reason: Any


class _Response(TypedDict, total=False):
    choices: list[_Choice | _Other] | str | int | float | bool | None


class _Hidden(TypedDict, total=False):
    additional_headers: Any


class _Metadata(TypedDict, total=False):
    usage_object: Any
    user_api_key_alias: Any
    user_api_key_team_alias: Any
    user_api_key_team_id: Any
    team_alias: Any
    team_id: Any
    user_api_key_end_user_id: Any
    user_api_key_user_id: Any


class _Payload(TypedDict, total=False):
    """Everything that is read of a payload. Its prompts and answers are passed over: most of its kilobytes, never made into texts."""

    id: Any
    litellm_call_id: Any
    call_type: Any
    status: Any
    cache_hit: Any
    startTime: Any
    endTime: Any
    api_base: Any
    model: Any
    model_group: Any
    custom_llm_provider: Any
    prompt_tokens: Any
    completion_tokens: Any
    total_tokens: Any
    usage: Any
    response_cost: Any
    request_tags: Any
    end_user: Any
    stream: Any
    event: Any
    event_group: Any
    spend: Any
    model_parameters: Any
    error_information: Any
    metadata: _Metadata | _Other
    hidden_params: _Hidden | _Other
    response: _Response | _Other


_READ = msgspec.json.Decoder(_Payload)


def _loaded(piece: bytes) -> Any:
    """What is read of one payload; a payload of any other shape whole."""
    try:
        return _READ.decode(piece)
    except (ValueError, RecursionError):
        return values.quickly(piece)


def capture(body: bytes, *, media_type: str | None, headers: Mapping[str, str], defaults: Defaults, received_at: int) -> list[Item]:  # noqa: ARG001 - as every format's
    """The attempts that the body tells of: an array, one per line (under any content type) or a single one."""
    text = bodies.trimmed(body)
    found = [_loaded(piece) for piece in _pieces(text, media_type)]
    if len(found) == 1 and text[:1] != b"[" and isinstance(found[0], Refusal) and found[0].error == "malformed":
        raise InvalidInput(found[0].detail, error=found[0].error)
    return [_item(value, defaults) for value in found]


def _pieces(text: bytes, media_type: str | None) -> list[bytes]:
    # A payload that the proxy failed to build is a line of its own, too: the first line need not be an object.
    return bodies.pieces(text, media_type="application/x-ndjson" if text[:1] != b"[" and text.startswith(b"null\n") else media_type)


def _item(value: Any, defaults: Defaults) -> Item:
    if isinstance(value, Refusal):
        return value
    if value is None:
        return Ignored("a payload that LiteLLM failed to build")
    if not isinstance(value, dict):
        return Refusal("schema_invalid", "not a LiteLLM payload: expected an object")
    if value.keys() >= _ALERT_KEYS:
        return Ignored("a budget alert of LiteLLM; send these to /v1/alerts/litellm")
    if isinstance(value.get("startTime"), str) or isinstance(value.get("usage"), str):
        return Refusal("unsupported_version", "the payload of generic_api_use_v1 holds texts of Python objects; set generic_api_use_v1: false in LiteLLM")
    if _PAYLOAD_KEYS.isdisjoint(value):
        return Refusal("schema_invalid", "not a LiteLLM payload: no litellm_call_id, no call_type, no token counts")
    call_type = value.get("call_type")
    if isinstance(call_type, str) and _STORED.match(call_type):
        return Ignored("a call that reads or manages what is stored")
    try:
        return _Attempt(value, defaults).captured()
    except Unfit as fault:
        return fault.refusal


class _Attempt:
    """One attempt at a provider, or an answer from LiteLLM's cache."""

    def __init__(self, payload: Json, defaults: Defaults) -> None:
        self.payload = payload
        self.defaults = defaults
        self.metadata = values.part(payload, "metadata")
        self.parameters = values.part(payload, "model_parameters")
        self.response = values.part(payload, "response")
        self.error = values.part(payload, "error_information")
        self.headers = _provider_headers(payload)
        self.reasons = self._finish_reasons()
        self.address = values.place(payload.get("api_base"))
        self.has_failed = payload.get("status") == "failure"
        self.is_cache_hit = payload.get("cache_hit") is True

    def captured(self) -> CapturedEvent:
        call_type = self.payload.get("call_type")
        kind = call_type if isinstance(call_type, str) else ""
        operation = _OPERATIONS.get(kind, _OPERATIONS.get(kind.removeprefix("a"), Operation.OTHER))
        status, http_status, code = self._outcome()
        tokens = self._tokens(operation)
        tokens.judge(status, http_status, is_billable=not self.is_cache_hit)
        started_at, time = _epoch(self.payload, "startTime"), _epoch(self.payload, "endTime")
        if started_at is not None and (time is None or started_at > time):
            started_at = None
        endpoint, deployment = self._place()
        return CapturedEvent(
            id=self._id(),
            time=time,
            source=self.defaults.source,
            workspace=self.defaults.workspace or self.address.workspace,
            endpoint=endpoint,
            deployment=deployment,
            model=values.text(self.payload.get("model"), "model") or values.text(self.payload.get("model_group"), "model_group") or self.defaults.model,
            operation=operation,
            application=self._first(self.metadata, "user_api_key_alias") or self.defaults.application,
            team=self._first(self.metadata, "user_api_key_team_alias", "user_api_key_team_id", "team_alias", "team_id") or self.defaults.team,
            tags=_tags(self.payload.get("request_tags")),
            status=status,
            billable=not self.is_cache_hit,
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cached_input_tokens=tokens.cached,
            reasoning_output_tokens=tokens.reasoning,
            quality=tokens.quality,
            flags=tokens.flags | Flag.GATEWAY_CACHE_HIT if self.is_cache_hit else tokens.flags,
            started_at=started_at,
            details=self._details(http_status, code, tokens, started_at, time),
        )

    def _id(self) -> str | None:
        """The call's id; a failed attempt's says when it began, too.

        The router's retries and fallbacks share one litellm_call_id with the attempt that succeeds at last: an id of
        the call alone would let the failure stand and the tokens of the success be a conflict.
        """
        call_id = values.identifier(self.payload.get("litellm_call_id"), "litellm_call_id") or values.identifier(self.payload.get("id"), "id")
        if call_id is None or not self.has_failed:
            return call_id
        started_at = _epoch(self.payload, "startTime")
        return f"{call_id}:failed" if started_at is None else f"{call_id}:failed:{started_at}"

    def _place(self) -> tuple[str | None, str | None]:
        """Endpoint and deployment: as the provider's headers or the address name them, else the request's, else the router's alias."""
        named = self._first(self.headers, "x-ms-deployment-name", "azureml-model-deployment")
        place = self.address
        is_managed = values.is_managed(self.payload.get("api_base"))
        if named or is_managed:
            return place.endpoint if is_managed else None, named
        if place.deployment or place.endpoint:
            return (None, place.deployment) if place.deployment else (place.endpoint, None)
        model = self.payload.get("model")
        if self.payload.get("custom_llm_provider") == "azure" and isinstance(model, str):
            # Azure OpenAI is called by deployment, which LiteLLM knows as the model.
            return None, values.text(model.removeprefix("azure/"), "model")
        if self.defaults.endpoint is not None or self.defaults.deployment is not None:
            return values.endpoint_name(self.defaults.endpoint), self.defaults.deployment
        return None, values.text(self.payload.get("model_group"), "model_group")

    def _outcome(self) -> tuple[Status, int | None, str | None]:
        """How the attempt ended, its HTTP status and the error's code."""
        if not self.has_failed:
            return (Status.FILTERED if not FILTER_CODES.isdisjoint(self.reasons) else Status.SUCCESS), None, None
        code = next((found for said in (self.error.get("error_code"), self.headers.get("x-ms-error-code")) if (found := _word(said))), None)
        codes = {said.lower() for said in (code, _word(self.headers.get("x-ms-error-code"))) if said}
        kind = _word(self.error.get("error_class"))
        normalized = self.error.get("normalized_error")
        stated = _NORMALIZED.match(normalized) if isinstance(normalized, str) else None
        http_status = int(code) if code and re.fullmatch(r"[45][0-9]{2}", code) else int(stated[1]) if stated else None
        if codes & FILTER_CODES or kind == "ContentPolicyViolationError":
            return Status.FILTERED, http_status or 400, code
        if http_status == 429 or codes & THROTTLE_CODES or kind == "RateLimitError":
            return Status.THROTTLED, http_status or 429, code
        return Status.ERROR, http_status, code

    def _tokens(self, operation: Operation) -> Tokens:
        usage = dict(values.part(self.metadata, "usage_object"))
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            count = self.payload.get(name)
            if count is not None:
                usage[name] = count
        tokens = values.tokens_of(usage, operation)
        # LiteLLM writes zeros where it was not told: failures, and streams without stream_options.include_usage.
        return Tokens(flags=tokens.flags & Flag.COERCED) if tokens.is_zero and not tokens.total else tokens

    def _finish_reasons(self) -> list[str | None]:
        choices = self.response.get("choices")
        said = [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
        return list(map(_word, said))

    def _details(self, http_status: int | None, code: str | None, tokens: Tokens, started_at: int | None, time: int | None) -> dict[str, Scalar]:
        """The named scalars that are kept for the receipt; the cost is LiteLLM's own and only shown beside ours."""
        choices, stream = self.response.get("choices"), self.payload.get("stream")
        asked = values.asked_for(self.parameters, {})
        cost = values.amount(self.payload.get("response_cost"))
        category = _word(self.error.get("error_rate_limit_category"))
        own_id = None if self.has_failed else values.label(self.payload.get("id"))
        return values.said(
            asked
            | {
                "source_format": "litellm",
                # An answer from the cache repeats the id of the original; its own one has a suffix.
                "response_id": own_id.partition("_cache_hit")[0] if own_id and self.is_cache_hit else own_id,
                "request_id": self._request_id(),
                "litellm_call_id": values.label(self.payload.get("litellm_call_id")) if self.has_failed else None,
                "http_status": http_status,
                "error_code": code,
                "throttled_by": None if category is None else "azure" if category == "vendor_rate_limit" else "gateway",
                "choices": asked["choices"] or (len(choices) if isinstance(choices, list) and choices else None),
                "stream": stream if isinstance(stream, bool) else None,
                "user": self._user(),
                "duration_ms": (time - started_at) // 1000 if time is not None and started_at is not None else None,
                "ratelimit_remaining_tokens": self._ratelimit("remaining", "tokens"),
                "ratelimit_remaining_requests": self._ratelimit("remaining", "requests"),
                "ratelimit_limit_tokens": self._ratelimit("limit", "tokens"),
                "ratelimit_limit_requests": self._ratelimit("limit", "requests"),
                "cache_write_input_tokens": tokens.cache_write,
                "total_tokens_reported": tokens.total_reported,
                "reported_cost": cost,
                "reported_cost_currency": None if cost is None else "USD",
            }
        ) | values.finish(self.reasons)

    def _user(self) -> str | None:
        return (
            values.label(self.payload.get("end_user"))
            or values.label(self.metadata.get("user_api_key_end_user_id"))
            or values.label(self.parameters.get("user"))
            or values.label(self.metadata.get("user_api_key_user_id"))
            or values.label(self.defaults.user)
        )

    def _request_id(self) -> str | None:
        for said in (self.headers.get("apim-request-id"), self.headers.get("x-request-id"), self.error.get("error_provider_request_id")):
            found = values.label(said)
            if found and found not in {"not-set", "None"}:
                return found
        return None

    def _ratelimit(self, side: str, what: str) -> int | None:
        if not self.headers:
            return None
        said = values.remaining(self.headers.get(f"x-ratelimit-{side}-{what}"))
        return values.remaining(self.headers.get(f"x_ratelimit_{side}_{what}")) if said is None else said

    @staticmethod
    def _first(fields: Json, *names: str) -> str | None:
        for name in names:
            found = values.text(fields.get(name), name)
            if found:
                return found
        return None


def _provider_headers(payload: Json) -> Json:
    """The provider's response headers by lower-case name: prefixed after a success, bare after a failure."""
    said = values.part(values.part(payload, "hidden_params"), "additional_headers")
    if not said:
        return said
    found = {name.lower(): value for name, value in said.items()}
    return found | {name.removeprefix(_OF_PROVIDER): value for name, value in found.items() if name.startswith(_OF_PROVIDER)}


def _word(value: Any) -> str | None:
    # error_information spells what it does not know as Python does.
    found = values.word(value)
    return None if found == "None" else found


def _tags(said: Any) -> dict[str, str]:
    words = [word for word in said if isinstance(word, str) and word and not word.startswith(_OWN_TAG)] if isinstance(said, list) else []
    names = dict.fromkeys(name for word in words if (name := values.label(_TAG + word)))
    return dict.fromkeys(list(names)[:MAX_TAGS], "true")


def _epoch(payload: Json, field: str) -> int | None:
    """A time in seconds since 1970 as microseconds; None where there is none or the clock was never set."""
    value = payload.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= _LATEST:
        raise Unfit("invalid_time", f"{field} is not a time in seconds since 1970")
    return values.believed(round(value * SECOND))
