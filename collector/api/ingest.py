"""The ingest routes: raw ASGI, because a typed list body costs four times the storage of its events.

Reads the body under a limit, undoes gzip under the same limit, hands it to the capture module of the route, and
answers after the commit. Every 2xx is a promise kept by ``collector.ingest``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import anyio
import msgspec
from anyio import to_thread
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from collector.api.gate import headers_of
from collector.api.problems import problem, problem_of, status_of
from collector.auth import Principal
from collector.capture import azure, cloudevents, litellm, native, openai, otlp
from collector.capture.bodies import base_type
from collector.capture.event import Defaults, Item, Refusal
from collector.ingest import Batch, Ingest, Verdict
from collector.tally import Tally
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
SMALL_BODY: Final = 16 * 1024
_NO_DEFAULTS: Final = Defaults()
_DEFAULT_HEADERS = ("source", "workspace", "endpoint", "deployment", "model", "application", "team", "user")


@dataclass(frozen=True, slots=True)
class Request:
    """An ingest request, its body read and unpacked."""

    body: bytes
    media_type: str | None
    headers: Mapping[str, str]
    defaults: Defaults
    received_at: int


Capture = Callable[[Request], Sequence[Item]]


def _native(request: Request) -> Sequence[Item]:
    return native.capture(request.body, media_type=request.media_type, defaults=request.defaults)


def _openai(request: Request) -> list[Item]:
    return openai.capture(request.body, media_type=request.media_type, headers=request.headers, defaults=request.defaults, received_at=request.received_at)


def _litellm(request: Request) -> list[Item]:
    try:
        return litellm.capture(request.body, media_type=request.media_type, headers=request.headers, defaults=request.defaults, received_at=request.received_at)
    except InvalidInput as fault:
        if fault.error != "malformed":
            raise
        # LiteLLM forgets what it sent whatever we answer: a refusal of the whole body is a verdict like any other.
        return [Refusal("malformed", fault.message)]


def _cloudevents(request: Request) -> list[Item]:
    return cloudevents.capture(request.body, media_type=request.media_type, headers=request.headers, defaults=request.defaults, received_at=request.received_at)


def _azure(request: Request) -> list[Item]:
    return azure.capture(request.body, media_type=request.media_type, headers=request.headers, defaults=request.defaults, received_at=request.received_at)


def _otlp_traces(request: Request) -> list[Item]:
    return otlp.capture_traces(request.body, media_type=request.media_type, defaults=request.defaults, received_at=request.received_at)


def _otlp_logs(request: Request) -> list[Item]:
    return otlp.capture_logs(request.body, media_type=request.media_type, defaults=request.defaults, received_at=request.received_at)


def _otlp_metrics(request: Request) -> list[Item]:
    return otlp.capture_metrics(request.body, media_type=request.media_type, defaults=request.defaults)


# -- answers --------------------------------------------------------------------------------------

Answer = Callable[[Verdict, int, str | None], Response]
_NOSNIFF = {"x-content-type-options": "nosniff"}


def _verdict(verdict: Verdict, items: int, _media_type: str | None) -> Response:
    is_refused = items > 0 and len(verdict.rejected) == items
    return Response(msgspec.json.encode(verdict.body()), 422 if is_refused else 200, headers=_NOSNIFF, media_type="application/json")


def _always_ok(verdict: Verdict, _items: int, _media_type: str | None) -> Response:
    return Response(msgspec.json.encode(verdict.body()), 200, headers=_NOSNIFF, media_type="application/json")


def _no_content(verdict: Verdict, items: int, _media_type: str | None) -> Response:
    """OpenMeter's clients take exactly 204 for success; what was refused is a problem that lists it."""
    if not verdict.rejected:
        return Response(status_code=204)
    first = verdict.rejected[0]
    detail = f"{len(verdict.rejected)} of {items} events were refused, the others are stored; the first: {first.detail}"
    rejected = msgspec.to_builtins(verdict.rejected)
    return problem(400, detail, error=first.error, rejected=rejected, accepted=verdict.accepted, duplicates=verdict.duplicates)


def _otlp_answer(kind: otlp.Kind) -> Answer:
    def answer(verdict: Verdict, _items: int, media_type: str | None) -> Response:
        message = "; ".join(f"item {one.index}: {one.detail}" for one in verdict.rejected[:5]) or None
        body, answered = otlp.answer(kind, media_type, len(verdict.rejected), message)
        return Response(body, 200, headers=_NOSNIFF, media_type=answered)

    return answer


def _otlp_fault(fault: DomainError, media_type: str | None) -> Response:
    """An OTLP sender reads google.rpc.Status, and tries again on 503 only."""
    status = 400 if status_of(fault) == 422 else status_of(fault)
    body, answered = otlp.status_body(media_type if media_type in otlp.MEDIA_TYPES else "application/json", status, fault.message)
    headers = {**_NOSNIFF, **({"retry-after": str(fault.retry_after_seconds)} if isinstance(fault, Unavailable) else {})}
    return Response(body, status, headers=headers, media_type=answered)


def _fault(fault: DomainError, _media_type: str | None) -> Response:
    return problem_of(fault)


@dataclass(frozen=True, slots=True)
class Route:
    """How one ingest route reads and answers; ``media_types`` None leaves the judgement to the capture module."""

    capture: Capture
    media_types: frozenset[str] | None
    answer: Answer = _verdict
    fault: Callable[[DomainError, str | None], Response] = _fault


_JSON_TYPES = frozenset({"application/json", "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonl"})
ROUTES: Mapping[str, Route] = {
    "/v1/usage": Route(_native, _JSON_TYPES),
    "/v1/usage/openai": Route(_openai, _JSON_TYPES | {"text/event-stream", "text/plain", "application/octet-stream"}),
    "/v1/usage/litellm": Route(_litellm, _JSON_TYPES, _always_ok),
    "/v1/usage/azure": Route(_azure, _JSON_TYPES),
    "/api/v1/events": Route(_cloudevents, None, _no_content),
    "/otlp/v1/traces": Route(_otlp_traces, None, _otlp_answer("traces"), _otlp_fault),
    "/otlp/v1/logs": Route(_otlp_logs, None, _otlp_answer("logs"), _otlp_fault),
    "/otlp/v1/metrics": Route(_otlp_metrics, None, _otlp_answer("metrics"), _otlp_fault),
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


class _Answers:
    """Brings verdicts from the writer's thread to the event loops, all of a commit with one wake-up."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._lock = threading.Lock()
        self._done: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        ingest.when_answered(self._wake)

    async def of(self, asked: Future[Verdict]) -> Verdict:
        """Wait for a verdict."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()

        def told(_done: Future[Verdict]) -> None:
            with self._lock:
                self._done.setdefault(loop, []).append(waiting)
            if not self._ingest.is_answering():
                self._wake()

        asked.add_done_callback(told)
        try:
            await waiting
        except asyncio.CancelledError:
            asked.cancel()
            raise
        return asked.result()

    def _wake(self) -> None:
        with self._lock:
            done, self._done = self._done, {}
        for loop, waiting in done.items():
            # A loop that has ended has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_release, waiting)


def _release(waiting: Sequence[asyncio.Future[None]]) -> None:
    for one in waiting:
        if not one.done():
            one.set_result(None)


class IngestRoutes:
    """ASGI: answers the ingest routes, passes everything else on."""

    def __init__(self, app: ASGIApp, *, ingest: Ingest, tally: Tally, clock: Callable[[], int]) -> None:
        self._app = app
        self._ingest = ingest
        self.tally = tally
        self.clock = clock
        self.held = Held()
        self._answers = _Answers(ingest)
        # Threads of their own: reports that take all of the others must not keep usage waiting.
        self._threads = anyio.CapacityLimiter(4)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in ROUTES:
            await self._app(scope, receive, send)
            return
        route = ROUTES[scope["path"]]
        headers = headers_of(scope)
        try:
            response = await self._answer(route, headers, scope, receive)
        except DomainError as fault:
            response = self._refused(fault, headers, scope)
        except TimeoutError:
            response = self._refused(InvalidInput(f"the body did not arrive within {_BODY_SECONDS} seconds", error="malformed"), headers, scope)
        await response(scope, receive, send)

    def _refused(self, fault: DomainError, headers: Mapping[str, str], scope: Scope) -> Response:
        principal: Principal = scope["state"]["principal"]
        return self.refused(scope["path"], fault, principal.key_id, base_type(headers.get("content-type")) or None)

    def refused(self, path: str, fault: DomainError, key_id: str | None, media_type: str | None) -> Response:
        """The answer to a body that is refused as a whole, and its place in the counts."""
        self.tally.refused(fault, key_id=key_id, path=path, at=self.clock())
        response = ROUTES[path].fault(fault, media_type)
        # Its traceback holds the frames that hold the body, and they hold it: 16 MiB each, until garbage is looked for.
        fault.__traceback__ = fault.__cause__ = fault.__context__ = None
        return response

    @staticmethod
    def answered(path: str, verdict: Verdict, items: int, media_type: str | None) -> Response:
        """The answer to a body whose items are judged."""
        return ROUTES[path].answer(verdict, items, media_type)

    async def _answer(self, route: Route, headers: Mapping[str, str], scope: Scope, receive: Receive) -> Response:
        principal: Principal = scope["state"]["principal"]
        media_type = _media_type(headers, route.media_types)
        is_gzip = is_packed(headers)
        defaults = defaults_from(headers)
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            self.held.take(size)
            taken += size

        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await read_body(receive, headers, limit=MAX_BODY, take=take)
            if is_gzip:
                body = await to_thread.run_sync(unpacked, body, MAX_BODY, limiter=self._threads)
                take(len(body))
            request = Request(body, media_type, headers, defaults, self.clock())
            items = route.capture(request) if len(body) <= SMALL_BODY else await to_thread.run_sync(route.capture, request, limiter=self._threads)
            verdict = await self._answers.of(self._ingest.submit(batch_of(items, principal)))
            sender = self.tally.judged(verdict, items, key_id=principal.key_id, path=scope["path"], at=request.received_at)
            if verdict.rejected and self.tally.wants(sender, verdict):
                await to_thread.run_sync(self.tally.sample, sender, verdict, body, media_type, request.received_at, limiter=self._threads)
            if len(items) <= _LONG_ANSWER:
                return route.answer(verdict, len(items), media_type)
            return await to_thread.run_sync(route.answer, verdict, len(items), media_type, limiter=self._threads)
        finally:
            self.held.give(taken)


def batch_of(items: Sequence[Item], principal: Principal) -> Batch:
    """The items of a request by what its key may write."""
    home = next(iter(principal.workspaces)) if principal.workspaces is not None and len(principal.workspaces) == 1 else None
    return Batch(items, principal.workspaces, home)


def _media_type(headers: Mapping[str, str], accepted: frozenset[str] | None) -> str | None:
    said = headers.get("content-type")
    if said is None or not said.strip():
        return None
    media_type = base_type(said)
    if accepted is not None and media_type not in accepted:
        raise InvalidInput(
            f"the content type {media_type[:80]!r} is not read here; send application/json, or application/x-ndjson for one event a line",
            error="unsupported_media_type",
        )
    return media_type


def defaults_from(headers: Mapping[str, str]) -> Defaults:
    """What ``x-meterbridge-*`` headers say for events that do not say it; names are percent-encoded UTF-8."""
    if not any(name.startswith("x-meterbridge-") for name in headers):
        return _NO_DEFAULTS
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
