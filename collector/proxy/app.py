"""The ASGI application: one request in, the same request out, the same answer back, and what it was on the side.

Bodies of calls that are metered are read whole (under a limit) before they are passed on; all other bodies, and every
answer, go through piece by piece as they come. Nothing is retried here: that is the caller's to decide.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx
import msgspec
from starlette.types import Receive, Scope, Send

from collector.capture import values
from collector.proxy.admission import Admission, tokens_of
from collector.proxy.metering import Exchange, operation_of
from collector.proxy.upstreams import Upstream, choose
from meterbridge_client.calls import Unpacker
from meterbridge_client.reporter import Reporter
from meterbridge_client.wrapping import UsageHider

logger = logging.getLogger(__name__)

# What holds between two neighbours only (RFC 9110, 7.6.1), and what this server has done already.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_OURS: Final = b"x-meterbridge-"
_OWN_PATHS: Final = b"/.meterbridge/"
_INFO_BYTES: Final = 64 * 1024
# Reading a longer answer than this on the loop would hold up everybody else.
_LONG_ANSWER: Final = 64 * 1024

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of the proxy; times in seconds. ``read`` is the longest silence of an upstream: a model may think for minutes."""

    body_bytes: int = 16 * 1024 * 1024
    connect: float = 10.0
    read: float = 600.0
    write: float = 60.0
    pool: float = 10.0
    connections: int = 200

    def timeouts(self) -> dict[str, float]:
        return {"connect": self.connect, "read": self.read, "write": self.write, "pool": self.pool}


class _Refused(Exception):
    """A request that goes nowhere, with the answer it gets."""

    def __init__(self, status: int, message: str, *, kind: str = "invalid_request_error", headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.headers = headers or []


@dataclass(slots=True)
class Counts:
    """What the proxy has done since it started."""

    requests: int = 0
    metered: int = 0
    refused: int = 0
    upstream_faults: int = 0
    in_flight: int = 0


@dataclass(slots=True)
class _Passing:
    """One request on its way."""

    scope: Scope
    upstream: Upstream
    target: bytes
    send: Send
    exchange: Exchange | None = None
    hider: UsageHider | None = None
    info: bytearray | None = None
    is_over: bool = False


class Proxy:
    """Passes requests on to ``upstreams``. ``transport`` reaches them, ``now`` is the clock, ``admission`` may be None."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        transport: httpx.AsyncBaseTransport,
        reporter: Reporter,
        now: Callable[[], datetime],
        source: str = "meterbridge-proxy",
        admission: Admission | None = None,
        include_usage: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._transport = transport
        self._reporter = reporter
        self._now = now
        self._source = source
        self._admission = admission
        self._include_usage = include_usage
        self._limits = limits or Limits()
        self._models: dict[tuple[str, str], str] = {}
        self.counts = Counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return  # no websockets
        self.counts.requests += 1
        self.counts.in_flight += 1
        try:
            await self._serve(scope, receive, send)
        except _Refused as refusal:
            self.counts.refused += 1
            await _answer(send, refusal.status, _error_body(refusal.status, refusal.message, refusal.kind), refusal.headers)
        finally:
            self.counts.in_flight -= 1

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start with the server, and close what is open to upstreams when it stops."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._transport.aclose()
                if self._admission is not None:
                    await self._admission.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked: bytes = scope.get("state", {}).get("target") or scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        if not asked.startswith(b"/") or scope["method"] == "CONNECT":
            raise _Refused(400, "this is no proxy for other addresses: ask for a path of its upstream", headers=[(b"connection", b"close")])
        headers = _by_name(scope["headers"])
        if asked.startswith(_OWN_PATHS):
            await self._own(asked, send)
            return
        upstream = choose(self._upstreams, host=headers.get("host", ""), target=asked)
        if upstream is None:
            raise _Refused(404, "no upstream of this proxy serves that address; it was started with --upstream for others", kind="not_found_error")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        passing = _Passing(scope, upstream, upstream.target(asked), send)
        path = asked.partition(b"?")[0]
        operation = operation_of(scope["method"], path)
        body: bytes | None = None
        if operation is not None:
            body = await self._whole(receive)
            started_at = self._now()
            request = _request_of(body, headers.get("content-encoding", ""))
            passing.exchange = Exchange(
                upstream=upstream,
                operation=operation,
                path=passing.target.decode("latin-1"),
                headers=headers,
                request=request,
                source=self._source,
                started_at=started_at,
            )
            self.counts.metered += 1
            if self._admission is not None:
                await self._admit(self._admission, passing.exchange, request)
            if self._include_usage and "content-encoding" not in headers:
                body = _asking_for_usage(body, request, path, passing)
        elif scope["method"] == "GET" and path.endswith(b"/info"):
            passing.info = bytearray()
        await self._guarded(passing, receive, body)

    # -- before it goes -------------------------------------------------------------------------

    async def _whole(self, receive: Receive) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Refused(400, "the caller went away before its request was complete")
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > self._limits.body_bytes:
                raise _too_large(self._limits.body_bytes)
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def _admit(self, admission: Admission, exchange: Exchange, request: Mapping[str, Any]) -> None:
        tokens = tokens_of(request)
        decision = await admission.ask(workspace=exchange.workspace, deployment=exchange.deployment, tokens=tokens)
        if decision.allow:
            return
        status = 429 if decision.is_answered else 503
        self._report(exchange.refused(ended_at=self._now(), http_status=status, max_tokens=values.small(request.get("max_tokens"))))
        after = decision.retry_after_seconds
        # Callers' libraries try a 429 again by themselves, which is right for a quota and useless against a spent budget.
        headers = [(b"retry-after", str(after or 60).encode()), (b"x-should-retry", b"true" if after is not None else b"false")]
        raise _Refused(
            status, f"refused by meterbridge before it was sent: {decision.reason or 'a limit is reached'}", kind="rate_limit_exceeded", headers=headers
        )

    # -- on its way -----------------------------------------------------------------------------

    async def _guarded(self, passing: _Passing, receive: Receive, body: bytes | None) -> None:
        """Pass it on, and stop at once when the caller goes away: what nobody reads should not be generated."""
        if body is None:
            await self._pass(passing, _Incoming(receive, self._limits.body_bytes))
            return
        passed = asyncio.ensure_future(self._pass(passing, httpx.ByteStream(body)))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({passed, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not passed.done() and not passing.is_over:
                passed.cancel()
            await asyncio.wait({passed})
            if not passed.cancelled():
                passed.result()
        finally:
            gone.cancel()
            if not passed.done():
                passed.cancel()
                await asyncio.wait({passed})

    async def _pass(self, passing: _Passing, body: httpx.AsyncByteStream) -> None:
        exchange = passing.exchange
        try:
            response = await self._sent(passing, body)
        except asyncio.CancelledError:
            if exchange is not None:
                await self._tell(exchange, is_whole=False)
            raise
        except (httpx.HTTPError, _UpstreamSpeaksNonsense) as fault:
            self.counts.upstream_faults += 1
            status, words = _fault(fault)
            if exchange is not None:
                exchange.status = status
                await self._tell(exchange, is_whole=False)
            logger.warning("upstream %s: %s (%s)", passing.upstream.url, words, type(fault).__name__)
            raise _Refused(status, f"the upstream {words}", kind="upstream_error", headers=[(b"retry-after", b"1")] if status == 503 else None) from fault
        try:
            await self._back(passing, response)
        finally:
            await response.aclose()

    async def _sent(self, passing: _Passing, body: httpx.AsyncByteStream) -> httpx.Response:
        upstream = passing.upstream
        request = httpx.Request(
            passing.scope["method"],
            f"{upstream.scheme}://{upstream.host_header.decode()}/",
            headers=_outgoing(passing, body),
            stream=body,
            # The target as it was asked for, to the byte: a URL object would spell it anew.
            extensions={"timeout": self._limits.timeouts(), "target": passing.target},
        )
        response = await self._transport.handle_async_request(request)
        if not 200 <= response.status_code <= 599:
            await response.aclose()
            raise _UpstreamSpeaksNonsense
        return response

    async def _back(self, passing: _Passing, response: httpx.Response) -> None:
        """The answer, piece by piece, to the caller and past the meter."""
        exchange, send = passing.exchange, passing.send
        if exchange is not None:
            exchange.answered(response.status_code, _by_name(response.headers.raw))
        is_sse = response.headers.get("content-type", "").startswith("text/event-stream") and "content-encoding" not in response.headers
        hide = passing.hider if is_sse else None
        headers = _returning(response, has_new_length=hide is not None)
        is_whole = False
        try:
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for piece in response.stream:
                if exchange is not None:
                    exchange.passed(piece)
                elif passing.info is not None and len(passing.info) < _INFO_BYTES:
                    passing.info += piece
                shown = piece if hide is None else hide(piece)
                if shown:
                    await send({"type": "http.response.body", "body": shown, "more_body": True})
            is_whole = True
            passing.is_over = True
            await send({"type": "http.response.body", "body": b"" if hide is None else hide.end(), "more_body": False})
        except httpx.HTTPError as fault:
            # Half an answer is out: the connection is closed under it, as the upstream did, so that the caller sees the break.
            self.counts.upstream_faults += 1
            logger.warning("upstream %s: its answer broke off (%s)", passing.upstream.url, type(fault).__name__)
        finally:
            if exchange is not None:
                await self._tell(exchange, is_whole=is_whole)
            elif is_whole and passing.info is not None and response.status_code == 200:
                self._learn(passing, response)

    # -- on the side ----------------------------------------------------------------------------

    async def _tell(self, exchange: Exchange, *, is_whole: bool) -> None:
        """Report the call, ended now. Never raises: the caller has its answer, or will get it."""
        ended_at = self._now()
        model = self._models.get(_place(exchange.upstream, exchange.pinned)) or self._models.get(_place(exchange.upstream, ""))
        try:
            if exchange.held > _LONG_ANSWER:
                event = await asyncio.shield(asyncio.to_thread(exchange.event, ended_at=ended_at, is_whole=is_whole, model=model))
            else:
                event = exchange.event(ended_at=ended_at, is_whole=is_whole, model=model)
        except Exception:  # a fault of ours must not become the caller's
            logger.exception("a call could not be metered")
            return
        if event is not None:
            self._report(event)

    def _report(self, event: Mapping[str, Any]) -> None:
        self._reporter.report(event)

    def _learn(self, passing: _Passing, response: httpx.Response) -> None:
        """``/info`` names the model of a deployment whose answers leave it empty."""
        plain = Unpacker(response.headers.get("content-encoding", ""))(bytes(passing.info or b""))
        said = values.loaded(plain)
        name = values.label(said.get("model_name")) if isinstance(said, dict) else None
        if name is not None and len(self._models) < 1_000:
            self._models[_place(passing.upstream, _by_name(passing.scope["headers"]).get("azureml-model-deployment", ""))] = name

    async def _own(self, asked: bytes, send: Send) -> None:
        """Two pages about the proxy itself, at a path that no upstream has."""
        path = asked.partition(b"?")[0]
        if path == _OWN_PATHS + b"livez":
            await _answer(send, 200, b'{"status":"ok"}')
        elif path == _OWN_PATHS + b"stats":
            asking = self._admission
            said = {
                "proxy": {name: getattr(self.counts, name) for name in Counts.__slots__},
                "reporting": {name: getattr(found, name) for found in [self._reporter.stats()] for name in type(found).__slots__},
                "admission": None if asking is None else {"asked": asking.asked, "denied": asking.denied, "failed": asking.failed},
            }
            await _answer(send, 200, json.dumps(said).encode())
        else:
            raise _Refused(404, "there is no such page; there are /.meterbridge/livez and /.meterbridge/stats", kind="not_found_error")


class _UpstreamSpeaksNonsense(Exception):
    """A status that no HTTP knows."""


class _Incoming(httpx.AsyncByteStream):
    """A request's body as it arrives."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Refused(400, "the caller went away before its request was complete")
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > self._limit:
                raise _too_large(self._limit)
            if piece:
                yield piece
            if not message.get("more_body", False):
                return


def _too_large(limit: int) -> _Refused:
    return _Refused(
        413, f"the request is larger than {limit // 1024 // 1024} MiB, which is the most that this proxy passes on", headers=[(b"connection", b"close")]
    )


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _place(upstream: Upstream, pinned: str) -> tuple[str, str]:
    return upstream.url, pinned


def _by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found


def _between_neighbours(headers: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The headers that are not passed on: hop by hop by their nature, or because Connection names them."""
    named = {word.strip().lower() for name, value in headers if name.lower() == b"connection" for word in value.split(b",")}
    return _HOP_BY_HOP | (named - {b"", b"close", b"keep-alive"})


def _outgoing(passing: _Passing, body: httpx.AsyncByteStream) -> Headers:
    headers = passing.scope["headers"]
    left_out = _between_neighbours(headers) | {b"host", b"expect"}
    found: Headers = [(b"host", passing.upstream.host_header)]
    is_whole = isinstance(body, httpx.ByteStream)
    has_length = False
    for name, value in headers:
        if name in left_out or name.startswith(_OURS):
            continue
        if name == b"content-length":
            if is_whole or has_length:
                continue
            has_length = True
        if name == b"accept-encoding" and passing.hider is not None:
            continue
        found.append((name, value))
    if is_whole:
        found.append((b"content-length", str(sum(map(len, body))).encode()))  # type: ignore[call-overload]
    elif not has_length and any(name == b"transfer-encoding" for name, _ in headers):
        found.append((b"transfer-encoding", b"chunked"))
    if passing.hider is not None:
        found.append((b"accept-encoding", b"identity"))
    return found


def _returning(response: httpx.Response, *, has_new_length: bool) -> Headers:
    raw = response.headers.raw
    left_out = _between_neighbours(raw)
    if response.status_code == 304 or has_new_length:
        left_out |= {b"content-length"}  # of the body that is not sent; the server would wait for it
    return [(name, value) for name, value in raw if name.lower() not in left_out]


def _request_of(body: bytes, encoding: str) -> Mapping[str, Any]:
    """The request as JSON, to read numbers from; empty where it is none."""
    said = values.loaded(Unpacker(encoding)(body)) if body else None
    return said if isinstance(said, dict) else {}


def _asking_for_usage(body: bytes, request: Mapping[str, Any], path: bytes, passing: _Passing) -> bytes:
    """The body with ``stream_options`` where its caller left that open; then the chunk it brings is kept from the caller."""
    options = request.get("stream_options")
    is_open = request.get("stream") is True and (options is None or (isinstance(options, dict) and "include_usage" not in options))
    if not is_open or not path.rstrip(b"/").endswith(b"/completions"):
        return body
    passing.hider = UsageHider()
    return msgspec.json.encode({**request, "stream_options": {**(options or {}), "include_usage": True}})


def _fault(fault: Exception) -> tuple[int, str]:
    """The status that tells a caller what happened between us and the upstream, and the words for it."""
    match fault:
        case httpx.PoolTimeout():
            return 503, "has no free connection: too many calls are under way"
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return 502, "cannot be reached"
        case httpx.TimeoutException():
            return 504, "did not answer in time"
        case _:
            return 502, "did not answer as HTTP asks"


def _error_body(status: int, message: str, kind: str) -> bytes:
    """An error in the shape that clients of OpenAI's API read."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": str(status) if status == 429 else kind}}).encode()


async def _answer(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    found: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": body})
