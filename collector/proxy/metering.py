"""What one call through the proxy was, read while its bytes pass, by the service's own capture code.

Nothing of a prompt or an answer is held longer than it takes to read it: a stream is reduced, event by event, to what
decides its counts, its model and its end.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec

from collector.capture import openai, values
from collector.capture.event import CapturedEvent, Defaults, Ignored
from collector.proxy.upstreams import Upstream
from meterbridge_client.calls import EventReader, Unpacker, without_secrets
from models.columns import to_microseconds
from models.periods import rfc3339
from models.usage import Operation, Status

_ENDINGS: Final = (
    (b"/chat/completions", Operation.CHAT),
    (b"/completions", Operation.TEXT_COMPLETION),
    (b"/embeddings", Operation.EMBEDDINGS),
    (b"/responses", Operation.CHAT),
)
# An answer that is longer is read at its end, where the usage stands; only embeddings and tokens with their odds are.
_WHOLE_BYTES: Final = 4 * 1024 * 1024
_TAIL_BYTES: Final = 64 * 1024
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,256})"')
# What the capture code reads of a request; a prompt itself is only there or not.
_SCALARS = frozenset({"model", "n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream", "user", "ignore_eos", "use_beam_search"})
_PROMPTS: Mapping[str, Any] = {"messages": [], "prompt": "", "input": "", "instructions": ""}
# The fields of a native event that the details of a captured one may fill.
_DETAILS = (
    "duration_ms",
    "stream",
    "response_id",
    "request_id",
    "finish_reason",
    "http_status",
    "user",
    "choices",
    "best_of",
    "max_tokens",
    "ratelimit_remaining_tokens",
    "ratelimit_remaining_requests",
    "ratelimit_limit_tokens",
    "ratelimit_limit_requests",
)


def operation_of(method: str, path: bytes) -> Operation | None:
    """Which operation of a model the request is, None where it is none."""
    ending = path.rstrip(b"/")
    return next((operation for end, operation in _ENDINGS if ending.endswith(end)), None) if method == "POST" else None


@dataclass(slots=True)
class _Stream:
    """What a stream has said so far, reduced."""

    said: dict[str, Any] = field(default_factory=dict)
    reasons: dict[int, str | None] = field(default_factory=dict)
    is_text: bool = False
    has_done: bool = False

    def take(self, data: bytes) -> None:
        """Take one event."""
        if data == b"[DONE]":
            self.has_done = True
            return
        chunk = values.loaded(data)
        if not isinstance(chunk, dict):
            return
        inner = chunk.get("response")
        if isinstance(inner, dict):
            chunk = inner  # an event of a Responses stream holds the response so far
        for name in ("id", "model", "object"):
            if not self.said.get(name) and isinstance(chunk.get(name), str):
                self.said[name] = chunk[name]
        for name in ("created", "created_at"):
            if not self.said.get(name) and isinstance(chunk.get(name), int | float):
                self.said[name] = chunk[name]
        for name in ("status", "incomplete_details"):
            if chunk.get(name) is not None:
                self.said[name] = chunk[name]
        usage = chunk.get("usage")
        choices = chunk.get("choices")
        if isinstance(usage, dict) and any(isinstance(value, int) for value in usage.values()):
            self.said["usage"] = usage
            # The chunk that only tells the usage is the last of all.
            self.has_done = self.has_done or choices == []
        if "error" not in self.said and (error := _error(chunk)) is not None:
            self.said["error"] = error
        for place, choice in enumerate(choices if isinstance(choices, list) else ()):
            if isinstance(choice, dict):
                said = choice.get("index")
                index: int = said if isinstance(said, int) else place
                if len(self.reasons) < 1_000 or index in self.reasons:
                    self.reasons[index] = choice.get("finish_reason") or self.reasons.get(index)
                self.is_text = self.is_text or "text" in choice

    def text(self) -> str:
        """The same as a stream of one event, for the capture code."""
        if not self.said and not self.reasons and not self.has_done:
            return ""
        whole = dict(self.said)
        if self.reasons:
            whole["choices"] = [
                {"index": index, "finish_reason": reason} | ({"text": ""} if self.is_text else {}) for index, reason in sorted(self.reasons.items())
            ]
        return f"data: {msgspec.json.encode(whole).decode()}\n\n" + ("data: [DONE]\n\n" if self.has_done else "")


def _error(chunk: Mapping[str, Any]) -> dict[str, Any] | None:
    """An error object without its words."""
    error = chunk.get("error")
    if not error and (chunk.get("object") == "error" or chunk.get("type") == "error"):
        error = chunk
    if not error:
        return None
    found = {name: error.get(name) for name in ("code", "type", "status", "statusCode")} if isinstance(error, dict) else {}
    inner = error.get("innererror") if isinstance(error, dict) else None
    return {**found, "innererror": {"code": inner.get("code")} if isinstance(inner, dict) else None, "seen": True}


class Exchange:
    """One call, from before it is passed on. Its id is made here and never changes, however often it is reported."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        operation: Operation,
        path: str,
        headers: Mapping[str, str],
        request: Mapping[str, Any],
        source: str,
        started_at: datetime,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.status: int | None = None
        self.upstream = upstream
        self._operation = operation
        self._url = f"{upstream.scheme}://{upstream.host_header.decode()}{path}"
        self._asked = headers
        self._request = {name: value for name, value in request.items() if name in _SCALARS and isinstance(value, str | int | float | bool)} | {
            name: empty for name, empty in _PROMPTS.items() if name in request
        }
        self._source = source
        self._started_at = started_at
        self._headers: Mapping[str, str] = {}
        self._stream: _Stream | None = None
        self._events = EventReader()
        self._unpack: Unpacker | None = None
        self._whole = bytearray()
        self._tail = bytearray()

    # -- while it passes ------------------------------------------------------------------------

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer begins."""
        self.status = status
        self._headers = headers
        self._unpack = Unpacker(headers.get("content-encoding", ""))
        if headers.get("content-type", "").lower().startswith("text/event-stream"):
            self._stream = _Stream()

    def passed(self, piece: bytes) -> None:
        """A piece of the answer's body went by."""
        assert self._unpack is not None
        plain = self._unpack(piece)
        if self._stream is not None:
            for data in self._events(plain):
                self._stream.take(data)
        elif len(self._whole) + len(plain) <= _WHOLE_BYTES and not self._tail:
            self._whole += plain
        else:
            if not self._tail:
                self._tail += self._whole[-_TAIL_BYTES:]
                del self._whole[_TAIL_BYTES:]
            self._tail += plain
            del self._tail[:-_TAIL_BYTES]

    @property
    def held(self) -> int:
        """How many bytes wait to be read at the end."""
        return len(self._whole)

    # -- when it is over ------------------------------------------------------------------------

    def event(self, *, ended_at: datetime, is_whole: bool, model: str | None) -> dict[str, Any] | None:
        """The native event of the call; None where the answer was no call after all.

        ``is_whole`` says that the answer's last byte came (and went). ``model`` is what ``/info`` told, for answers that name none.
        """
        ended_at = max(ended_at, self._started_at)
        response = self._response()
        captured = openai.of_envelope(self._envelope(response, ended_at), defaults=Defaults(source=self._source), received_at=to_microseconds(ended_at))
        if isinstance(captured, Ignored):
            return None
        if not isinstance(captured, CapturedEvent):
            captured = self._bare(ended_at)
        details = dict(captured.details)
        if "max_tokens_source" in details:
            details["max_tokens"] = None  # the model's own limit: the service knows it, too
        status = captured.status
        if status is Status.SUCCESS and not is_whole and captured.output_tokens is None:
            status = Status.INCOMPLETE  # cut off before it said what it took
        place = values.place(self._url)
        upstream = self.upstream
        event: dict[str, Any] = {
            "id": self.id,
            "time": rfc3339(ended_at),
            "started_at": rfc3339(self._started_at),
            "source": self._source,
            "workspace": self._workspace() or place.workspace,
            **self._placed(captured, place),
            "model": captured.model or model,
            "operation": (self._operation if captured.operation is Operation.OTHER else captured.operation).value,
            "input_tokens": captured.input_tokens,
            "output_tokens": captured.output_tokens,
            "cached_input_tokens": captured.cached_input_tokens,
            "reasoning_output_tokens": captured.reasoning_output_tokens,
            "status": status.value,
            "throttled_by": "azure" if status is Status.THROTTLED else None,
            "application": upstream.application or self._label("application"),
            "team": upstream.team or self._label("team"),
            **{name: details.get(name) for name in _DETAILS},
        }
        event["user"] = event["user"] or self._label("user")
        event["stream"] = True if self._stream is not None else event["stream"]
        event["duration_ms"] = (to_microseconds(ended_at) - to_microseconds(self._started_at)) // 1000
        return without_secrets({name: value for name, value in event.items() if value is not None}, self._asked)

    def refused(self, *, ended_at: datetime, http_status: int, max_tokens: int | None) -> dict[str, Any]:
        """The native event of a call that this gateway did not let through."""
        place = values.place(self._url)
        self.status = http_status
        event: dict[str, Any] = {
            "id": self.id,
            "time": rfc3339(max(ended_at, self._started_at)),
            "started_at": rfc3339(self._started_at),
            "source": self._source,
            "workspace": self._workspace() or place.workspace,
            **self._placed(None, place),
            "model": values.label(self._request.get("model")),
            "operation": self._operation.value,
            "status": Status.THROTTLED.value,
            "throttled_by": "gateway",
            "http_status": http_status,
            "max_tokens": max_tokens,
            "application": self.upstream.application or self._label("application"),
            "team": self.upstream.team or self._label("team"),
            "user": self._label("user") or values.label(self._request.get("user")),
        }
        return without_secrets({name: value for name, value in event.items() if value is not None}, self._asked)

    @property
    def pinned(self) -> str:
        """The deployment that the request's header names, of several behind one endpoint."""
        return self._asked.get("azureml-model-deployment", "")

    @property
    def workspace(self) -> str | None:
        """The workspace, as far as it is known before the call."""
        return self._workspace() or values.place(self._url).workspace

    @property
    def deployment(self) -> str | None:
        """The deployment (or endpoint), as far as it is known before the call."""
        place = self._placed(None, values.place(self._url))
        return place.get("deployment") or place.get("endpoint")

    def _response(self) -> Any:
        if self._stream is not None:
            for data in self._events.end():
                self._stream.take(data)
            return self._stream.text()
        if self._tail:
            usage = None
            for found in _USAGE.finditer(bytes(self._tail)):
                usage = values.loaded(found[1])
            model = _MODEL.search(bytes(self._whole)) or _MODEL.search(bytes(self._tail))
            kind = "list" if self._operation is Operation.EMBEDDINGS else "chat.completion" if self._operation is Operation.CHAT else "text_completion"
            return {"object": kind, "usage": usage if isinstance(usage, dict) else None, "model": model[1].decode("utf-8", "replace") if model else None}
        whole = values.loaded(bytes(self._whole)) if self._whole else None
        self._whole.clear()
        return whole

    def _envelope(self, response: Any, ended_at: datetime) -> dict[str, Any]:
        return {
            "request": self._request,
            "response": response,
            "status": self.status,
            "headers": dict(self._headers),
            "request_headers": dict(self._asked),
            "started_at": rfc3339(self._started_at),
            "ended_at": rfc3339(ended_at),
        }

    def _bare(self, ended_at: datetime) -> CapturedEvent:
        """An attempt whose answer cannot be read: no answer at all, a page of some gateway, a stream cut at its start."""
        is_failed = self.status is None or self.status >= 400
        details = {
            "http_status": self.status,
            "request_id": next((found for name in ("apim-request-id", "x-request-id") if (found := values.label(self._headers.get(name)))), None),
        }
        return CapturedEvent(
            id=None,
            time=to_microseconds(ended_at),
            model=values.label(self._request.get("model")),
            operation=self._operation,
            status=Status.ERROR if is_failed else Status.INCOMPLETE,
            details=values.said({name: details[name] for name in details}),
        )

    def _workspace(self) -> str | None:
        return self.upstream.workspace or self._label("workspace")

    def _placed(self, captured: CapturedEvent | None, place: values.Place) -> dict[str, str | None]:
        """Endpoint and deployment: as set, as the caller says, as the answer's headers, the request's or the address say; else the host."""
        upstream = self.upstream
        endpoint = upstream.endpoint or place.endpoint
        deployment = upstream.deployment or self._label("deployment") or place.deployment
        if deployment is None and captured is not None:
            deployment = captured.deployment
        if deployment is None:
            deployment = values.label(self._asked.get("azureml-model-deployment"))
        if deployment is None and endpoint is None and place.workspace is not None:
            deployment = values.label(self._request.get("model"))  # on a Foundry account the model of the request names the deployment
        if upstream.deployment is not None and upstream.endpoint is None:
            endpoint = None  # a name that was set says it all
        return {"endpoint": endpoint if endpoint or deployment else upstream.host_name, "deployment": deployment}

    def _label(self, name: str) -> str | None:
        return values.label(self._asked.get(f"x-meterbridge-{name}"))
