"""The ingest routes: raw ASGI, because a typed list body costs four times the storage of its events.

Reads the body under a limit, undoes gzip under the same limit, hands it to the capture module of the route, and
answers after the commit. Every 2xx is a promise kept by ``collector.ingest``.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import msgspec
from starlette.concurrency import run_in_threadpool
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
_BODY_SECONDS: Final = 60
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


class IngestRoutes:
    """ASGI: answers the ingest routes, passes everything else on."""

    def __init__(self, app: ASGIApp, *, ingest: Ingest, clock: Callable[[], int]) -> None:
        self._app = app
        self._ingest = ingest
        self._clock = clock

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
        async with asyncio.timeout(_BODY_SECONDS):
            body = await read_body(receive, headers, limit=MAX_BODY)
        request = Request(body, media_type, headers, defaults_from(headers), self._clock())
        items = capture(request) if len(body) <= _SMALL_BODY else await run_in_threadpool(capture, request)
        home = next(iter(principal.workspaces)) if principal.workspaces is not None and len(principal.workspaces) == 1 else None
        future = self._ingest.submit(Batch(items, principal.workspaces, home))
        verdict = await asyncio.wrap_future(future)
        return _response(verdict, len(items))


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


async def read_body(receive: Receive, headers: Mapping[str, str], *, limit: int) -> bytes:
    """The whole body, gzip undone; ``too_large`` beyond the limit, from Content-Length alone where it is given."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise InvalidInput(f"the content encoding {encoding[:40]!r} is not read here; send gzip or none", error="unsupported_encoding")
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    unpacked = _Unpacked(limit=limit, is_gzip="gzip" in encoding)
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Unavailable("the sender went away before the body was complete")
        unpacked.add(message.get("body", b""))
        more = message.get("more_body", False)
    return unpacked.whole()


class _Unpacked:
    """A body as it arrives, never held beyond the limit."""

    def __init__(self, *, limit: int, is_gzip: bool) -> None:
        self._limit = limit
        self._chunks: list[bytes] = []
        self._size = 0
        self._gzip = zlib.decompressobj(31) if is_gzip else None
        self._is_begun = False

    def add(self, chunk: bytes) -> None:
        if self._gzip is None:
            self._keep(chunk)
            return
        while chunk:
            if self._gzip.eof:
                self._gzip = zlib.decompressobj(31)  # a gzip body may have several members
            self._is_begun = True
            try:
                self._keep(self._gzip.decompress(chunk, self._limit - self._size + 1))
            except zlib.error as fault:
                raise InvalidInput("the body is not gzip, though its Content-Encoding says so", error="malformed") from fault
            chunk = self._gzip.unused_data if self._gzip.eof else self._gzip.unconsumed_tail

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise _too_large(self._limit)
        self._chunks.append(piece)

    def whole(self) -> bytes:
        if self._gzip is not None and self._is_begun and not self._gzip.eof:
            raise InvalidInput("the gzip body ends too early; send it again", error="malformed")
        return b"".join(self._chunks)


def _too_large(limit: int) -> InvalidInput:
    return InvalidInput(f"the body is larger than {limit // 1024 // 1024} MiB (after decompression); send it in several requests", error="too_large")
