"""CloudEvents 1.0 of ``POST /api/v1/events``: structured, batch and binary, and the plain JSON of OpenMeter's clients.

Owns the envelope and the few kinds of data that are usage: ``llm.usage`` (the native field names, or an OpenAI
``usage`` object), LiteLLM's ``litellm_tokens``, and, under any type, data that counts prompt and completion tokens or
one direction of them (``{"tokens", "type": "input"|"output"}``). Every other event is ignored. Identity is the event's
own: its ``source`` becomes the event's source, its ``id`` the id. ``subject`` is kept as the receipt's ``subject``, and
as its ``user`` where LiteLLM says it; it names nothing that is counted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from collector.capture import bodies, values
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.native import MAX_TAGS
from collector.capture.values import Json, Scalar, Tokens, Unfit
from models.errors import InvalidInput
from models.usage import Flag, Operation, Status

_STRUCTURED = "application/cloudevents"
_BATCH = "application/cloudevents-batch"
_BINARY_HEADERS = frozenset({"ce-specversion", "ce-id", "ce-source", "ce-type"})
_USAGE, _LITELLM = "llm.usage", "litellm_tokens"
_TWO_WAYS = frozenset({"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"})
_DIRECTIONS = ("input", "output")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_COUNTS = ("choices", "best_of", "max_tokens", "duration_ms")
_NAMES = ("response_id", "request_id")
_LIMITS = ("ratelimit_remaining_tokens", "ratelimit_remaining_requests", "ratelimit_limit_tokens", "ratelimit_limit_requests")
_Member = TypeVar("_Member", Operation, Status)
_THROTTLERS = frozenset({"azure", "gateway", "client"})


def capture(body: bytes, *, media_type: str | None, headers: Mapping[str, str], defaults: Defaults, received_at: int) -> list[Item]:  # noqa: ARG001 - as every format's
    """The events that the request carries, in whichever mode; ``headers`` have lower-case names.

    A body that is not of its mode raises ``InvalidInput``: ``malformed``, or ``schema_invalid`` where one event came as
    a batch or several as one.
    """
    kind = bodies.base_type(media_type)
    if not kind.startswith(_STRUCTURED) and _BINARY_HEADERS & headers.keys():
        try:
            return [_item(_binary(body, kind, headers), defaults)]
        except Unfit as fault:
            return [fault.refusal]
    text = bodies.trimmed(body)
    if kind and not kind.startswith(_STRUCTURED) and kind not in {"application/json", "text/json"} and not bodies.is_lines(media_type):
        raise InvalidInput(
            f"the content type {kind[:80]!r} is not read here; send application/cloudevents+json, application/cloudevents-batch+json or application/json, "
            "or the ce- headers of the binary mode",
            error="unsupported_media_type",
        )
    if kind.startswith(_STRUCTURED) and not kind.endswith("+json"):
        raise InvalidInput("events are read as JSON; send application/cloudevents+json", error="unsupported_media_type")
    is_batch = text[:1] == b"["
    if text and kind.startswith(_STRUCTURED) and is_batch != kind.startswith(_BATCH):
        said = "a batch is an array of events" if kind.startswith(_BATCH) else "one event is an object; send an array as application/cloudevents-batch+json"
        raise InvalidInput(f"the body does not fit its content type: {said}", error="schema_invalid")
    found = [values.loaded(piece) for piece in bodies.pieces(text, media_type=media_type)]
    if len(found) == 1 and not is_batch and isinstance(found[0], Refusal):
        raise InvalidInput(found[0].detail, error=found[0].error)
    return [_item(value, defaults) for value in found]


def _item(value: Any, defaults: Defaults) -> Item:
    if isinstance(value, Refusal):
        return value
    if not isinstance(value, dict):
        return Refusal("schema_invalid", "not an event: expected an object")
    try:
        return _Event(value, defaults).captured()
    except Unfit as fault:
        return fault.refusal


def _binary(body: bytes, kind: str, headers: Mapping[str, str]) -> Json:
    """The event of the binary mode in its structured form: the attributes are headers, the body is the data."""
    event: Json = {name.removeprefix("ce-"): _header(value, name) for name, value in headers.items() if name.startswith("ce-")}
    for reserved in ("data", "data_base64", "datacontenttype"):
        event.pop(reserved, None)
    if kind:
        event["datacontenttype"] = kind
    if body:
        # Left as bytes: only data that is usage has to be JSON.
        event["data"] = body
    return event


def _header(value: str, name: str) -> str:
    """A header's text: quotes undone, then percent-decoded once (HTTP protocol binding 1.0, 3.1.3.2)."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = _ESCAPED.sub(r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeError as fault:
        raise Unfit("invalid_value", f"{name} is not percent-encoded UTF-8") from fault


class _Event:
    """One event, its attributes not yet checked."""

    def __init__(self, event: Json, defaults: Defaults) -> None:
        self.event = event
        self.defaults = defaults

    def captured(self) -> Item:
        version = self._required("specversion")
        if version != "1.0":
            return Refusal("unsupported_version", "specversion is not 1.0, the only one that is read")
        identity, source, kind = self._required("id"), self._required("source"), self._required("type")
        subject = self.event.get("subject")
        if subject is not None and not isinstance(subject, str):
            return Refusal("schema_invalid", "subject is not a text")
        time = values.believed(values.instant(self.event.get("time"), "time"))
        is_ours = kind in {_USAGE, _LITELLM}
        data = self._data(must_be_json=is_ours)
        if not isinstance(data, dict):
            if is_ours:
                return Refusal("schema_invalid", "data is not an object; a text that holds JSON is not read as JSON")
            return Ignored("an event of a type that is not usage")
        is_one_way = data.get("tokens") is not None and data.get("type") in _DIRECTIONS and not _TWO_WAYS & data.keys()
        if not is_ours and not is_one_way and not _TWO_WAYS & data.keys():
            return Ignored("an event of a type that is not usage")
        return _Usage(data, self.event, self.defaults, kind=kind, subject=subject, is_one_way=is_one_way).captured(identity, source, time)

    def _required(self, name: str) -> str:
        found = values.name(self.event, name)
        if found is None:
            raise Unfit("schema_invalid", f"{name} is missing; a CloudEvent has specversion, id, source and type")
        return found

    def _data(self, *, must_be_json: bool) -> Any:
        """The data: JSON as it stands; bytes (binary mode, data_base64) are decoded where they are said to be JSON."""
        data, encoded = self.event.get("data"), self.event.get("data_base64")
        if encoded is not None:
            if data is not None or not isinstance(encoded, str):
                raise Unfit("schema_invalid", "data_base64 is not a text, or stands beside data")
            try:
                data = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError) as fault:
                raise Unfit("invalid_value", "data_base64 is not base64") from fault
        if not isinstance(data, bytes):
            return data
        said = self.event.get("datacontenttype")
        kind = bodies.base_type(said if isinstance(said, str) else None)
        if kind and kind != "text/json" and not kind.endswith(("/json", "+json")):
            if must_be_json:
                raise Unfit("unsupported_media_type", "the data of a usage event is JSON; its content type says otherwise")
            return None
        found = values.loaded(bodies.trimmed(data))
        if isinstance(found, Refusal):
            if must_be_json:
                raise Unfit(found.error, f"data: {found.detail}")
            return None
        return found


class _Usage:
    """The data of an event that is usage."""

    def __init__(self, data: Json, event: Json, defaults: Defaults, *, kind: str, subject: str | None, is_one_way: bool) -> None:
        self.data = data
        self.event = event
        self.defaults = defaults
        self.is_litellm = kind == _LITELLM
        self.subject = values.label(subject)
        self.is_one_way = is_one_way

    def captured(self, identity: str, source: str, time: int | None) -> CapturedEvent:
        data = self.data
        operation = self._one_of(Operation, "operation") or Operation.CHAT
        status = self._one_of(Status, "status") or Status.SUCCESS
        http_status = values.http_status(data.get("http_status"), "http_status")
        is_billable = self._truth("billable") is not False
        tokens = self._tokens(operation)
        if not self.is_one_way:
            tokens.judge(status, http_status, is_billable=is_billable)
        started_at = values.believed(values.instant(data.get("started_at"), "started_at"))
        if started_at is not None and (time is None or started_at > time):
            started_at = None
        endpoint, deployment = values.name(data, "endpoint"), values.name(data, "deployment")
        if endpoint is None and deployment is None:
            endpoint, deployment = self.defaults.endpoint, self.defaults.deployment
        endpoint = values.endpoint_name(endpoint)
        return CapturedEvent(
            id=identity,
            time=time,
            source=source,
            workspace=values.name(data, "workspace") or self._extension("llmworkspace") or self._extension("workspace") or self.defaults.workspace,
            endpoint=endpoint,
            deployment=deployment,
            model=values.name(data, "model") or self.defaults.model,
            operation=operation,
            fine_tuned=self._truth("fine_tuned") is True,
            application=values.name(data, "application") or self.defaults.application,
            team=values.name(data, "team") or self.defaults.team,
            tags=self._tags(),
            status=status,
            billable=is_billable,
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cached_input_tokens=tokens.cached,
            reasoning_output_tokens=tokens.reasoning,
            quality=tokens.quality,
            flags=tokens.flags,
            started_at=started_at,
            details=self._details(http_status, tokens, identity),
        )

    def _tokens(self, operation: Operation) -> Tokens:
        usage = self.data.get("usage")
        if usage is not None and not isinstance(usage, dict):
            raise Unfit("schema_invalid", "usage is not an object")
        if self.is_one_way:
            # The other direction is told by another event: here it is none, not unknown.
            count = values.Counter(self.data)
            found = count("tokens")
            is_input = self.data["type"] == "input"
            return Tokens(input=found if is_input else 0, output=0 if is_input else found, flags=Flag.PARTIAL_DIRECTION | count.flags)
        tokens = values.tokens_of(self.data if usage is None else usage, operation)
        # LiteLLM writes zeros where it was not told.
        return Tokens() if self.is_litellm and tokens.is_zero and not tokens.total else tokens

    def _details(self, http_status: int | None, tokens: Tokens, identity: str) -> dict[str, Scalar]:
        data = self.data
        cost = values.amount(data.get("cost")) if self.is_litellm else None
        throttler = values.name(data, "throttled_by")
        if throttler is not None and throttler not in _THROTTLERS:
            raise Unfit("invalid_value", "throttled_by is none of azure, gateway and client")
        reasons = {"finish_reason": None} if "finish_reason" in data and data["finish_reason"] is None else {}
        user = values.name(data, "user") or (self.subject if self.is_litellm else None) or self.defaults.user
        return (
            values.said(
                {name: values.Counter(data)(name) for name in _COUNTS}
                | {name: values.name(data, name) for name in _NAMES}
                | {name: values.remaining(data.get(name)) for name in _LIMITS}
                | ({"response_id": identity} if self.is_litellm else {})
                | values.trace(self.event.get("traceparent"))
                | {
                    "source_format": "cloudevents",
                    "ignore_eos": True if data.get("ignore_eos") is True else None,
                    "subject": self.subject,
                    "user": user,
                    "http_status": http_status,
                    "finish_reason": values.word(data.get("finish_reason")),
                    "throttled_by": throttler,
                    "stream": self._truth("stream"),
                    "total_tokens_reported": tokens.total_reported,
                    "reported_cost": cost,
                    "reported_cost_currency": None if cost is None else "USD",
                }
            )
            | reasons
        )

    def _extension(self, name: str) -> str | None:
        return values.name(self.event, name)

    def _truth(self, name: str) -> bool | None:
        value = self.data.get(name)
        if value is not None and not isinstance(value, bool):
            raise Unfit("schema_invalid", f"{name} is neither true nor false")
        return value

    def _one_of(self, members: type[_Member], name: str) -> _Member | None:
        said = values.name(self.data, name)
        try:
            return None if said is None else members(said)
        except ValueError as fault:
            raise Unfit("invalid_value", f"{name} is none of the values that it may have") from fault

    def _tags(self) -> dict[str, str]:
        said = self.data.get("tags")
        if said is None:
            return {}
        if not isinstance(said, dict) or len(said) > MAX_TAGS or not all(isinstance(value, str) for value in said.values()):
            raise Unfit("schema_invalid", f"tags are not an object of at most {MAX_TAGS} texts")
        return {values.text(key, "a tag's name") or "": values.text(value, "a tag") or "" for key, value in said.items()}
