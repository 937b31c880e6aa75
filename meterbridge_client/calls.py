"""What a call to a model said of itself, as a native usage event.

Counts, ids and named scalars are taken from the request and the answer; texts of people, tool calls and secrets are
never kept, not even for the length of a stream. Unknown is left out, never 0.
"""

from __future__ import annotations

import json
import re
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

MAX_COUNT = 2**53 - 1
_MAX_NAME = 256
# What is held of an answer; one that is longer is read at its end, where the usage stands.
_WHOLE_BYTES = 4 * 1024 * 1024
_TAIL_BYTES = 64 * 1024
_EVENT_BYTES = 4 * 1024 * 1024
_UNPACKED_BYTES = 256 * 1024 * 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}\Z")
_OPERATIONS = (("/chat/completions", "chat"), ("/completions", "text_completion"), ("/embeddings", "embeddings"), ("/responses", "chat"))
_FILTERED = frozenset({"content_filter", "content_filter_error", "responsibleaipolicyviolation", "content_policy_violation"})
_THROTTLED = frozenset({"429", "rate_limit_exceeded", "ratelimitreached", "toomanyrequests", "too_many_requests", "insufficient_quota"})
_SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "ocp-apim-subscription-key")
# A carriage return at the end of a piece may be the first half of a line break.
_LINE_BREAK = re.compile(rb"\r\n|\n|\r(?=[^\n])", re.DOTALL)
_FOUNDRY = re.compile(r"([^.]+)\.(?:services\.ai|openai|cognitiveservices)\.azure\.(?:com|us|cn)\Z")
_AZURE_ML = re.compile(r"([^.]+)\.[^.]+\.(?:models|inference)\.(?:ai|ml)\.azure\.(?:com|us|cn)\Z")
_USAGE_AT_THE_END = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


def operation_of(method: str, url: str) -> str | None:
    """Which operation of a model that is, None where it is none."""
    path = urlsplit(url).path.rstrip("/")
    return next((operation for ending, operation in _OPERATIONS if path.endswith(ending)), None) if method.upper() == "POST" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What every event of a wrapped client says besides."""

    source: str = "meterbridge-client"
    workspace: str | None = None
    deployment: str | None = None
    application: str | None = None
    team: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class Call:
    """One attempt at a deployment, from before it is made. Its id is made here, once."""

    def __init__(self, *, operation: str, url: str, headers: Mapping[str, str], body: bytes, labels: Labels) -> None:
        self.id = uuid.uuid4().hex
        self.started_at = datetime.now(UTC)
        self._started = time.perf_counter()
        self._operation = operation
        self._url = url
        self._labels = labels
        self._asked = {name.lower(): value for name, value in headers.items()}
        self._request = _object(body)
        self._answer = _Answer()
        self._ended_at: datetime | None = None

    @property
    def request(self) -> Mapping[str, Any]:
        """The request's body; empty where it is no JSON object."""
        return self._request

    @property
    def can_ask_for_usage(self) -> bool:
        """Whether a stream of this operation knows ``stream_options``."""
        return urlsplit(self._url).path.rstrip("/").endswith("/completions")

    def takes(self, value: Mapping[str, Any]) -> None:
        """Take what one response, or one event of a stream, says."""
        self._answer.take(value)

    def event(
        self,
        *,
        status: int | None,
        headers: Mapping[str, str] | None = None,
        is_stream: bool = False,
        has_ended: bool = True,
        outcome: str | None = None,
        model: str | None = None,
    ) -> dict[str, Any]:
        """The native event of this attempt, ended now. ``status`` None: no answer came, ``outcome`` says how. ``model`` stands in where nobody names one."""
        answer, request, labels = self._answer, self._request, self._labels
        said = {name.lower(): value for name, value in (headers or {}).items()}
        judged, throttled_by = self._outcome(status, has_ended=has_ended)
        usage = answer.usage or {}
        workspace, endpoint, deployment = self._place(said)
        event: dict[str, Any] = {
            "id": self.id,
            "time": _rfc3339(self._ended()),
            "started_at": _rfc3339(self.started_at),
            "source": labels.source,
            "workspace": workspace,
            "deployment": deployment,
            "endpoint": endpoint,
            "model": _name(answer.model) or _name(request.get("model")) or _name(model),
            "operation": self._operation,
            "status": outcome or judged,
            "throttled_by": throttled_by,
            "http_status": status,
            "stream": True if is_stream else None,
            "finish_reason": answer.finish_reason(),
            "input_tokens": _count(usage, "prompt_tokens", "input_tokens"),
            "output_tokens": _count(usage, "completion_tokens", "output_tokens"),
            "cached_input_tokens": _count(_part(usage, "prompt_tokens_details", "input_tokens_details"), "cached_tokens"),
            "reasoning_output_tokens": _count(_part(usage, "completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
            "choices": _count(request, "n") or len(answer.choices) or None,
            "best_of": _count(request, "best_of"),
            "max_tokens": _count(request, "max_completion_tokens", "max_tokens", "max_output_tokens"),
            "duration_ms": int((time.perf_counter() - self._started) * 1000),
            "application": labels.application,
            "team": labels.team,
            "user": _name(request.get("user")),
            "tags": dict(labels.tags) or None,
            "response_id": _name(answer.id),
            "request_id": next((found for name in ("apim-request-id", "x-request-id") if (found := _name(said.get(name))) and found != "not-set"), None),
            "ratelimit_remaining_tokens": _remaining(said.get("x-ratelimit-remaining-tokens")),
            "ratelimit_remaining_requests": _remaining(said.get("x-ratelimit-remaining-requests")),
            "ratelimit_limit_tokens": _remaining(said.get("x-ratelimit-limit-tokens")),
            "ratelimit_limit_requests": _remaining(said.get("x-ratelimit-limit-requests")),
        }
        _complete(event, usage)
        return without_secrets({name: value for name, value in event.items() if value is not None}, self._asked)

    def _ended(self) -> datetime:
        if self._ended_at is None:
            self._ended_at = max(datetime.now(UTC), self.started_at)
        return self._ended_at

    def _outcome(self, status: int | None, *, has_ended: bool) -> tuple[str, str | None]:
        answer = self._answer
        is_failed = status is None or status >= 400
        if not is_failed and not answer.codes:
            if _FILTERED & {reason.lower() for reason in answer.finish_reasons.values()}:
                return "filtered", None
            return ("success" if has_ended and answer.status not in ("incomplete", "cancelled") else "incomplete"), None
        if answer.codes & _FILTERED:
            return "filtered", None
        if status == 429 or answer.codes & _THROTTLED:
            return "throttled", "azure"
        if not is_failed and (answer.choices or answer.usage):
            return "incomplete", None  # the stream broke off with an error after it had begun
        return "error", None

    def _place(self, said: Mapping[str, str]) -> tuple[str | None, str | None, str | None]:
        """Workspace, endpoint and deployment: as set, else as the address and the headers name them, else the host."""
        parts = urlsplit(self._url)
        host = parts.hostname or ""
        account = _FOUNDRY.match(host)
        workspace = self._labels.workspace or (account[1] if account else None)
        if self._labels.deployment:
            return workspace, None, self._labels.deployment
        in_path = re.search(r"/deployments/([^/]+)/", parts.path)
        named = (
            unquote(in_path[1]) if in_path else None,
            said.get("x-ms-deployment-name"),
            said.get("azureml-model-deployment") or self._asked.get("azureml-model-deployment"),
            # On a Foundry account the model of the request is the name of a deployment.
            self._request.get("model") if account else None,
        )
        deployment = next((name for one in named if (name := _name(one))), None)
        endpoint = _AZURE_ML.match(host)
        if endpoint:
            return workspace, endpoint[1], deployment
        return workspace, None if deployment else _name(host), deployment


def without_secrets(event: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """The event without a value that repeats a credential of its call (an upstream may echo one anywhere)."""
    secrets = [secret for name in _SECRET_HEADERS if len(secret := headers.get(name, "").rpartition(" ")[2]) >= 8]
    if not secrets:
        return event
    return {name: value for name, value in event.items() if not (isinstance(value, str) and any(secret in value for secret in secrets))}


@dataclass(slots=True)
class _Answer:
    id: str | None = None
    model: str | None = None
    usage: Mapping[str, Any] | None = None
    status: str = ""
    reason: str = ""
    codes: set[str] = field(default_factory=set)
    choices: set[int] = field(default_factory=set)
    finish_reasons: dict[int, str] = field(default_factory=dict)

    def take(self, value: Mapping[str, Any]) -> None:
        inner = value.get("response")
        if isinstance(inner, dict):
            value = inner  # an event of a Responses stream
        self.id = self.id or _name(value.get("id"))
        self.model = self.model or _name(value.get("model"))
        usage = value.get("usage")
        if isinstance(usage, dict) and any(isinstance(usage.get(name), int) for name in ("prompt_tokens", "input_tokens", "completion_tokens", "total_tokens")):
            self.usage = usage
        self.status = _word(value.get("status")) or self.status
        self.reason = _word(_part(value, "incomplete_details").get("reason")) or self.reason
        for place, choice in enumerate(value["choices"] if isinstance(value.get("choices"), list) else ()):
            if isinstance(choice, dict):
                index = choice.get("index")
                index = index if isinstance(index, int) and 0 <= index < 10_000 else place
                self.choices.add(index)
                reason = _word(choice.get("finish_reason"))
                if reason:
                    self.finish_reasons[index] = reason
        self._take_error(value)

    def _take_error(self, value: Mapping[str, Any]) -> None:
        error = value.get("error")
        if isinstance(error, str):
            error = {"code": "error"}
        if not isinstance(error, dict):
            error = value if value.get("object") == "error" or value.get("type") == "error" else None
        if error:
            codes = [_word(error.get("code")), _word(error.get("type")), _word(_part(error, "innererror").get("code"))]
            self.codes |= {code.lower() for code in codes if code} or {"error"}

    def finish_reason(self) -> str | None:
        reasons = [self.finish_reasons[index] for index in sorted(self.finish_reasons)]
        return next((reason for reason in reasons if reason.lower() in _FILTERED), reasons[0] if reasons else self.reason or None)

    @property
    def has_ended(self) -> bool:
        """Whether a stream said all that it had to say, though not in so many words."""
        return bool(self.choices and self.finish_reasons.keys() >= self.choices) or self.status in {"completed", "incomplete", "failed", "cancelled"}


class Watch:
    """Reads an answer as it passes, in any pieces; holds no more of it than it needs.

    ``encoding`` is the answer's Content-Encoding; ``is_stream`` that its type is text/event-stream.
    """

    def __init__(self, call: Call, *, is_stream: bool, encoding: str = "") -> None:
        self._call = call
        self.is_stream = is_stream
        self._unpack = Unpacker(encoding)
        self._events = EventReader()
        self._whole = bytearray()
        self._tail = bytearray()
        self.has_done = False

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the body."""
        plain = self._unpack(piece)
        if self.is_stream:
            for data in self._events(plain):
                self._event(data)
        elif len(self._whole) < _WHOLE_BYTES and not self._tail:
            self._whole += plain
        else:
            self._tail += plain
            del self._tail[:-_TAIL_BYTES]

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.has_done = True
        else:
            self._call.takes(_object(data))

    def end(self) -> bool:
        """The body is over (or was given up): whether it was whole, as far as that can be seen in it."""
        if self.is_stream:
            for data in self._events.end():
                self._event(data)
            answer = self._call._answer  # noqa: SLF001 - of this module
            return self.has_done or answer.has_ended
        if self._tail:
            found = None
            for found in _USAGE_AT_THE_END.finditer(bytes(self._tail)):  # noqa: B007 - the last one
                pass
            self._call.takes({"usage": _object(found[1]) if found else None})
            return True
        value = _object(bytes(self._whole))
        self._call.takes(value)
        self._whole.clear()
        return bool(value)


class EventReader:
    """Cuts server-sent events out of pieces of any size; gives the data of each."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def __call__(self, piece: bytes) -> list[bytes]:
        """The events that this piece completes."""
        text = self._rest + piece
        found: list[bytes] = []
        start = 0
        for line_break in _LINE_BREAK.finditer(text):
            self._line(text[start : line_break.start()], found)
            start = line_break.end()
        self._rest = text[start:]
        if len(self._rest) > _EVENT_BYTES:
            self._rest = b""  # no event of a model
        return found

    def end(self) -> list[bytes]:
        """What stands there when the stream ends without its last line break."""
        found: list[bytes] = []
        self._line(self._rest.rstrip(b"\r"), found)
        self._line(b"", found)
        self._rest = b""
        return found

    def _line(self, line: bytes, found: list[bytes]) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            found.append(b"\n".join(self._data).strip())
            self._data = []


class Unpacker:
    """Undoes gzip or deflate as it passes; gives nothing for an encoding it does not know."""

    def __init__(self, encoding: str) -> None:
        encoding = encoding.strip().lower()
        self._is_plain = encoding in ("", "identity")
        self._inflate = zlib.decompressobj(47) if encoding in ("gzip", "x-gzip", "deflate") else None
        self._given = 0

    def __call__(self, piece: bytes) -> bytes:
        if self._is_plain:
            return piece
        found = b""
        while piece and self._inflate is not None:
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(47)  # the next member of several
            try:
                found += self._inflate.decompress(piece, _UNPACKED_BYTES)
            except zlib.error:
                self._inflate = None
                break
            piece = self._inflate.unused_data
        self._given += len(found)
        if self._given > _UNPACKED_BYTES:
            self._inflate = None  # no answer of a model is that long
        return found


# -- values -----------------------------------------------------------------------------------------


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _part(value: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((found for name in names if isinstance(found := value.get(name), dict)), {})


def _count(value: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        found = value.get(name)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= MAX_COUNT:
            return found
    return None


def _remaining(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"[0-9]{1,15}", value.strip()) else None


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_NAME and not _CONTROL.search(value) else None


def _word(value: Any) -> str | None:
    """A code or reason of an API; anything that could be prose is dropped."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and _WORD.match(value) else None


def _complete(event: dict[str, Any], usage: Mapping[str, Any]) -> None:
    """The one count that the total leaves no choice about; embeddings have no output."""
    total = _count(usage, "total_tokens")
    known_in, known_out = event["input_tokens"], event["output_tokens"]
    if known_out is None and known_in is not None:
        if event["operation"] == "embeddings":
            event["output_tokens"] = 0
        elif total is not None and total >= known_in:
            event["output_tokens"] = total - known_in
    elif known_in is None and known_out is not None and total is not None and total >= known_out:
        event["input_tokens"] = total - known_out


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
