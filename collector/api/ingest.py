"""The ingest routes: raw ASGI, because a typed list body costs four times the storage of its events.

Reads the body under a limit, undoes gzip under the same limit, hands it to the capture module of the route, and
answers after the commit. Every 2xx is a promise kept by ``collector.ingest``.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import anyio
import msgspec
from anyio import to_thread
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from collector.api.gate import headers_of
from collector.api.problems import problem_of
from collector.auth import Principal
from collector.capture import native, openai
from collector.capture.event import Defaults, Item
from collector.ingest import Batch, Ingest, Verdict
from models.columns import to_microseconds
from models.errors import DomainError, InvalidInput, Unavailable
from models.periods import parse_instant

MAX_BODY: Final = 16 * 1024 * 1024
# Bodies that are being read or wait for their commit, together; an event in memory is several times its text.
MAX_HELD: Final = 8 * MAX_BODY
_BODY_SECONDS: Final = 60
# Items above which an answer is long enough to write to stall the loop.
_LONG_ANSWER: Final = 2_000
_STEP: Final = 8 * 1024
# Below this, decoding on the event loop is quicker than handing it to a thread.
_SMALL_BODY: Final = 16 * 1024
_DEFAULT_HEADERS = ("source", "workspace", "endpoint", "deployment", "model", "application", "team", "user")


@dataclass(frozen=True, slots=True)
class Request:
    """An ingest request, its body read and unpacked."""

    body: bytes
    media_type: str | None
    headers: Mapping[str, str]
    defaults: Defaults
    received_at: int


Capture = Callable[[Request], list[Item]]


def _native(request: Request) -> list[Item]:
    return native.capture(request.body, media_type=request.media_type, defaults=request.defaults)


def _openai(request: Request) -> list[Item]:
    return openai.capture(request.body, media_type=request.media_type, headers=request.headers, defaults=request.defaults, received_at=request.received_at)


_JSON_TYPES = frozenset(
    {"application/json", "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/json-seq"}
)
ROUTES: Mapping[str, tuple[Capture, frozenset[str]]] = {
    "/v1/usage": (_native, _JSON_TYPES),
    "/v1/usage/openai": (_openai, _JSON_TYPES | {"text/event-stream", "text/plain", "application/octet-stream"}),
}


class Held:
    """The bytes of all bodies in memory, bounded: many senders at once must not fill it."""

    def __init__(self, limit: int = MAX_HELD) -> None:
        self._limit = limit
        self.size = 0

    def take(self, size: int) -> None:
        """Count bytes in; refuses what does not fit."""
        if self.size + size > self._limit:
            raise Unavailable("too many bodies are being read at once; send the same again in a moment", retry_after_seconds=1)
        self.size += size

    def give(self, size: int) -> None:
        """Count bytes out."""
        self.size -= size


class IngestRoutes:
    """ASGI: answers the ingest routes, passes everything else on."""

    def __init__(self, app: ASGIApp, *, ingest: Ingest, clock: Callable[[], int]) -> None:
        self._app = app
        self._ingest = ingest
        self._clock = clock
        self._held = Held()
        # Threads of their own: reports that take all of the others must not keep usage waiting.
        self._threads = anyio.CapacityLimiter(4)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in ROUTES:
            await self._app(scope, receive, send)
            return
        try:
            response = await self._answer(scope, receive)
        except DomainError as fault:
            response = problem_of(fault)
        except TimeoutError:
            response = problem_of(InvalidInput(f"the body did not arrive within {_BODY_SECONDS} seconds", error="malformed"))
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        capture, accepted = ROUTES[scope["path"]]
        principal: Principal = scope["state"]["principal"]
        headers = headers_of(scope)
        media_type = _media_type(headers, accepted)
        is_gzip = is_packed(headers)
        defaults = defaults_from(headers)
        home = next(iter(principal.workspaces)) if principal.workspaces is not None and len(principal.workspaces) == 1 else None
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            self._held.take(size)
            taken += size

        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await read_body(receive, headers, limit=MAX_BODY, take=take)
            if is_gzip:
                body = await to_thread.run_sync(unpacked, body, MAX_BODY, limiter=self._threads)
                take(len(body))
            request = Request(body, media_type, headers, defaults, self._clock())
            items = capture(request) if len(body) <= _SMALL_BODY else await to_thread.run_sync(capture, request, limiter=self._threads)
            verdict = await asyncio.wrap_future(self._ingest.submit(Batch(items, principal.workspaces, home)))
            if len(items) <= _LONG_ANSWER:
                return _response(verdict, len(items))
            return await to_thread.run_sync(_response, verdict, len(items), limiter=self._threads)
        finally:
            self._held.give(taken)


def _response(verdict: Verdict, items: int) -> Response:
    is_refused = items > 0 and len(verdict.rejected) == items
    return Response(
        msgspec.json.encode(verdict.body()), 422 if is_refused else 200, headers={"x-content-type-options": "nosniff"}, media_type="application/json"
    )


def _media_type(headers: Mapping[str, str], accepted: frozenset[str]) -> str | None:
    said = headers.get("content-type")
    if said is None or not said.strip():
        return None
    media_type = said.split(";", 1)[0].strip().lower()
    if media_type not in accepted:
        raise InvalidInput(
            f"the content type {media_type[:80]!r} is not read here; send application/json, or application/x-ndjson for one event a line",
            error="unsupported_media_type",
        )
    return media_type


def defaults_from(headers: Mapping[str, str]) -> Defaults:
    """What ``x-meterbridge-*`` headers say for events that do not say it; names are percent-encoded UTF-8."""
    values: dict[str, str] = {}
    for name in _DEFAULT_HEADERS:
        said = headers.get(f"x-meterbridge-{name}")
        if said:
            try:
                text = unquote(said, errors="strict")
            except UnicodeDecodeError as fault:
                raise InvalidInput(f"the header x-meterbridge-{name} is not percent-encoded UTF-8") from fault
            if len(text) > 256 or any(ord(sign) < 32 or ord(sign) == 127 for sign in text):
                raise InvalidInput(f"the header x-meterbridge-{name} must be 1 to 256 printable characters")
            values[name] = text
    times: dict[str, int] = {}
    for name in ("started_at", "ended_at"):
        said = headers.get(f"x-meterbridge-{name.replace('_', '-')}")
        if said:
            times[name] = to_microseconds(parse_instant(said, what=f"the header x-meterbridge-{name.replace('_', '-')}"))
    return Defaults(**values, **times)  # type: ignore[arg-type]  # names checked above


def is_packed(headers: Mapping[str, str]) -> bool:
    """Whether the body is gzip; any other encoding is refused."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise InvalidInput(f"the content encoding {encoding[:40]!r} is not read here; send gzip or none", error="unsupported_encoding")
    return "gzip" in encoding


async def read_body(receive: Receive, headers: Mapping[str, str], *, limit: int, take: Callable[[int], None]) -> bytes:
    """The body as sent; ``too_large`` beyond the limit, from Content-Length alone where it is given. ``take`` is told of every piece."""
    length = headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Unavailable("the sender went away before the body was complete")
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        take(len(piece))
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)


def unpacked(body: bytes, limit: int) -> bytes:
    """Gzip undone, of one member or several; never holds more than the limit."""
    pieces: list[bytes] = []
    size = 0
    member: Any = None
    # In short steps: what follows a member is copied, and a body may be nothing but tiny members.
    for start in range(0, len(body), _STEP):
        rest = body[start : start + _STEP]
        while rest:
            if member is None or member.eof:
                member = zlib.decompressobj(31)
            try:
                piece = member.decompress(rest, limit - size + 1)
            except zlib.error as fault:
                raise InvalidInput("the body is not gzip, though its Content-Encoding says so", error="malformed") from fault
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
            rest = member.unused_data if member.eof else member.unconsumed_tail
    if member is not None and not member.eof:
        raise InvalidInput("the gzip body ends too early; send it again", error="malformed")
    return b"".join(pieces)


def _too_large(limit: int) -> InvalidInput:
    return InvalidInput(f"the body is larger than {limit // 1024 // 1024} MiB (after decompression); send it in several requests", error="too_large")
