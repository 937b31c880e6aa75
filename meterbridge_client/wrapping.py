"""Puts the meter between a client and its transport, where every attempt passes, retries of the client's own included.

Nothing of openai or azure-ai-inference is imported: both hand their requests to one ``send``, and that is what is
wrapped. Whatever goes wrong in here is logged once and the call goes on as if it were not wrapped.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from meterbridge_client.calls import Call, Labels, Watch, operation_of
from meterbridge_client.reporter import Reporter

logger = logging.getLogger("meterbridge_client")

_MARK = "_meterbridge"
# Azure's model inference API answers 422 to parameters it does not know, older ones 400.
_REFUSES_OPTIONS = (400, 422)
_NEVER_SENT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "LocalProtocolError",
        "ServiceRequestError",
        "ServiceRequestTimeoutError",
    }
)
_EVENT_END = re.compile(rb"(\r\n\r\n|\n\n|\r\r)")
_USAGE_EVENT_BYTES = 64 * 1024


def transport_of(client: Any) -> Any:
    """What the client sends by; ``TypeError`` for a client of another kind, ``ValueError`` for one that is metered already."""
    transport = _find(client)
    if hasattr(transport, _MARK):
        raise ValueError("this client is metered already; wrap it once")
    return transport


def install(transport: Any, reporter: Reporter, labels: Labels) -> None:
    """Meter everything that goes through the transport from now on."""
    meter = _Meter(reporter, labels)
    is_async = hasattr(transport, "__aenter__")
    adapter = _Httpx(is_async=is_async) if _is_httpx(transport) else _AzureCore(is_async=is_async)
    transport.send = (_wrapped_async if is_async else _wrapped)(_method(transport, "send"), meter, adapter)
    setattr(transport, _MARK, meter)


def reporter_of(client: Any) -> Reporter:
    """The reporter of a wrapped client."""
    meter = getattr(_find(client), _MARK, None)
    if not isinstance(meter, _Meter):
        raise TypeError("this client is not wrapped; call meterbridge_client.wrap first")
    return meter.reporter


def _find(client: Any) -> Any:
    inner = getattr(client, "_client", None)
    if _is_httpx(inner):
        return inner  # openai
    transport = getattr(getattr(inner, "_pipeline", None), "_transport", None)
    if callable(getattr(transport, "send", None)):
        return transport  # azure-ai-inference
    raise TypeError(
        f"{type(client).__name__} cannot be wrapped; give a client of openai (OpenAI, AsyncOpenAI, AzureOpenAI) "
        "or of azure-ai-inference (ChatCompletionsClient, EmbeddingsClient)"
    )


def _method(thing: Any, name: str) -> Callable[..., Any]:
    """The method before it is replaced, without a cycle: what its user drops is to end then, not when the collector comes by."""
    own: Callable[..., Any] | None = vars(thing).get(name)
    if own is not None:
        return own
    function, back = getattr(type(thing), name), weakref.ref(thing)
    return lambda *given, **named: function(back(), *given, **named)


def _is_httpx(thing: Any) -> bool:
    return callable(getattr(thing, "send", None)) and callable(getattr(thing, "build_request", None))


class _Meter:
    """What all calls of one client share."""

    def __init__(self, reporter: Reporter, labels: Labels) -> None:
        self.reporter = reporter
        self.labels = labels
        self.model: str | None = None  # as /info told it
        # Where stream_options has been refused; it is not tried there again.
        self.refusing: set[str] = set()
        self._has_warned = False

    def failed(self, fault: Exception) -> None:
        """A fault of ours: said once, never raised."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning("meterbridge: a call could not be metered (%s)", type(fault).__name__)  # its text could hold a prompt


# -- the two kinds of transport -------------------------------------------------------------------------


class _Httpx:
    """Requests and responses of httpx and httpx2."""

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async

    def body(self, request: Any) -> bytes:
        content: bytes = request.content  # raises for a body that is streamed; then it is no JSON for a model
        return content

    def with_body(self, request: Any, body: bytes) -> Any:
        left_out = (b"content-length", b"accept-encoding", b"transfer-encoding")
        headers = [(name, value) for name, value in request.headers.raw if name.lower() not in left_out]
        return type(request)(request.method, request.url, headers=[*headers, (b"accept-encoding", b"identity")], content=body, extensions=request.extensions)

    def encoding(self, response: Any) -> str:
        return str(response.headers.get("content-encoding", ""))

    def tee(self, response: Any, tee: _Tee) -> None:
        response.stream = (_async_stream if self._is_async else _sync_stream)(response, tee)


class _AzureCore:
    """Requests and responses of azure.core.rest."""

    def __init__(self, *, is_async: bool) -> None:
        self._is_async = is_async

    def body(self, request: Any) -> bytes:
        content = request.content
        return content.encode() if isinstance(content, str) else bytes(content or b"")

    def with_body(self, request: Any, body: bytes) -> Any:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("content-length", "accept-encoding")}
        if not any(name.lower() in ("extra-parameters", "extra-params") for name in headers):
            headers["extra-parameters"] = "pass-through"  # the API refuses, by default, parameters that not every model has
        return type(request)(request.method, request.url, headers={**headers, "Accept-Encoding": "identity"}, content=body)

    def encoding(self, response: Any) -> str:
        del response
        return ""  # what is read of it is unpacked already

    def tee(self, response: Any, tee: _Tee) -> None:
        read, close = _method(response, "iter_bytes"), _method(response, "close")
        if self._is_async:

            async def aclose() -> None:
                tee.end()
                await close()

            response.iter_bytes = lambda *given, **named: _aiterate(read(*given, **named), tee)
            response.close = aclose
        else:

            def end() -> None:
                tee.end()
                close()

            response.iter_bytes = lambda *given, **named: _iterate(read(*given, **named), tee)
            response.close = end


_Adapter = _Httpx | _AzureCore


def _content(response: Any) -> bytes | None:
    """The body, where it has been read already."""
    content: bytes | None = getattr(response, "_content", None)
    return content


# -- one attempt ---------------------------------------------------------------------------------------


class _Attempt:
    """One request on its way, and what will be reported of it, once."""

    def __init__(self, meter: _Meter, adapter: _Adapter, request: Any, operation: str) -> None:
        self.request = request
        self._meter = meter
        self._adapter = adapter
        self._call = Call(operation=operation, url=str(request.url), headers=request.headers, body=adapter.body(request), labels=meter.labels)
        self._is_told = False
        self.has_options = False
        self._ask_for_usage()

    def _ask_for_usage(self) -> None:
        """Have a stream say its usage at the end, unless the caller has decided that."""
        asked = self._call.request
        options = asked.get("stream_options")
        is_open = asked.get("stream") is True and (options is None or (isinstance(options, dict) and "include_usage" not in options))
        if not is_open or not self._call.can_ask_for_usage or self.place in self._meter.refusing:
            return
        body = json.dumps({**asked, "stream_options": {**(options or {}), "include_usage": True}}, ensure_ascii=False, separators=(",", ":")).encode()
        self.request = self._adapter.with_body(self.request, body)
        self.has_options = True

    @property
    def place(self) -> str:
        """Where an answer to stream_options holds: a deployment may be chosen by the address, a header or the model."""
        pinned = self.request.headers.get("azureml-model-deployment", "")
        return f"{str(self.request.url).partition('?')[0]} {pinned} {self._call.request.get('model') or ''}"

    def is_refused(self, response: Any) -> bool:
        """Whether it was refused, perhaps for what we have added: anything but the filter's verdict on the prompt."""
        if not self.has_options or response.status_code not in _REFUSES_OPTIONS:
            return False
        return not any(word in (_content(response) or b"").lower() for word in (b"content_filter", b"responsibleai", b"context_length"))

    def plain(self, request: Any) -> str:
        """Go on as the caller wrote it (the refused request was our doing, and is no call); gives the place that refused."""
        place = self.place
        self.request, self.has_options = request, False
        return place

    def answered(self, response: Any) -> None:
        """Report an answer that is there, or watch it come."""
        body = _content(response)
        status, headers = response.status_code, dict(response.headers.items())
        is_stream = str(response.headers.get("content-type", "")).lower().startswith("text/event-stream")
        encoding = "" if body is not None else self._adapter.encoding(response)
        watch = Watch(self._call, is_stream=is_stream, encoding=encoding)

        def tell() -> None:
            has_ended = watch.end()
            self._report(self._call.event(status=status, headers=headers, is_stream=is_stream, has_ended=has_ended, model=self._meter.model))

        if body is not None:
            watch.feed(body)
            tell()
        else:
            hide = UsageHider() if self.has_options and is_stream and not encoding else None
            self._adapter.tee(response, _Tee(watch, hide, tell, self._meter.failed))

    def broke(self, fault: BaseException) -> None:
        """No answer came. What never left costs nothing; what did may have been answered, and billed, unheard."""
        outcome = "error" if type(fault).__name__ in _NEVER_SENT else "incomplete"
        self._report(self._call.event(status=None, outcome=outcome, model=self._meter.model))

    def _report(self, event: Mapping[str, Any]) -> None:
        if not self._is_told:
            self._is_told = True
            self._meter.reporter.report(event)


def _begin(meter: _Meter, adapter: _Adapter, request: Any) -> _Attempt | None:
    try:
        operation = operation_of(request.method, str(request.url))
        return None if operation is None else _Attempt(meter, adapter, request, operation)
    except Exception as fault:  # noqa: BLE001 - the call must go on
        meter.failed(fault)
        return None


def _safely(meter: _Meter, act: Callable[..., None], *given: Any) -> None:
    try:
        act(*given)
    except Exception as fault:  # noqa: BLE001 - the call must go on
        meter.failed(fault)


def _learn(meter: _Meter, request: Any, response: Any) -> None:
    """``GET /info`` names the model that other answers of the deployment leave empty."""
    if request.method == "GET" and str(request.url).partition("?")[0].endswith("/info"):
        said = json.loads(_content(response) or b"null")
        if response.status_code == 200 and isinstance(said, dict) and isinstance(said.get("model_name"), str):
            meter.model = said["model_name"] or meter.model


def _wrapped(send: Callable[..., Any], meter: _Meter, adapter: _Adapter) -> Callable[..., Any]:
    def metered(request: Any, *given: Any, **named: Any) -> Any:
        attempt = _begin(meter, adapter, request)
        if attempt is None:
            response = send(request, *given, **named)
            _safely(meter, _learn, meter, request, response)
            return response
        try:
            response = send(attempt.request, *given, **named)
            if response.status_code >= 400:
                response.read()
            if attempt.is_refused(response):
                place = attempt.plain(request)
                response = send(request, *given, **named)
                if response.status_code < 400:
                    meter.refusing.add(place)
                else:
                    response.read()
        except BaseException as fault:
            _safely(meter, attempt.broke, fault)
            raise
        _safely(meter, attempt.answered, response)
        return response

    return metered


def _wrapped_async(send: Callable[..., Any], meter: _Meter, adapter: _Adapter) -> Callable[..., Any]:
    async def metered(request: Any, *given: Any, **named: Any) -> Any:
        attempt = _begin(meter, adapter, request)
        if attempt is None:
            response = await send(request, *given, **named)
            _safely(meter, _learn, meter, request, response)
            return response
        try:
            response = await send(attempt.request, *given, **named)
            if response.status_code >= 400:
                await _aread(response)
            if attempt.is_refused(response):
                place = attempt.plain(request)
                response = await send(request, *given, **named)
                if response.status_code < 400:
                    meter.refusing.add(place)
                else:
                    await _aread(response)
        except BaseException as fault:
            _safely(meter, attempt.broke, fault)
            raise
        _safely(meter, attempt.answered, response)
        return response

    return metered


async def _aread(response: Any) -> None:
    await (response.aread() if hasattr(response, "aread") else response.read())


# -- streams -------------------------------------------------------------------------------------------


class UsageHider:
    """Takes the chunk that only tells the usage out of a stream whose caller did not ask for it; all else passes to the byte."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, piece: bytes) -> bytes:
        """What may be passed on now: whole events, since no reader can use a part of one."""
        *events, self._rest = _EVENT_END.split(self._rest + piece)
        # Split with a group: an event, the break behind it, the next event …
        return b"".join(event + end for event, end in zip(events[::2], events[1::2], strict=True) if not self._tells_usage_only(event))

    def end(self) -> bytes:
        """What is left at the end of the stream."""
        left, self._rest = self._rest, b""
        return left

    @staticmethod
    def _tells_usage_only(event: bytes) -> bool:
        if b'"usage"' not in event or b'"choices"' not in event or len(event) > _USAGE_EVENT_BYTES:
            return False
        try:
            said = json.loads(event.partition(b"data:")[2])
        except ValueError:
            return False
        return isinstance(said, dict) and said.get("choices") == [] and isinstance(said.get("usage"), dict)


class _Tee:
    """Passes the pieces of a body on, and shows them to the meter; nothing that the meter does stops them."""

    def __init__(self, watch: Watch, hide: UsageHider | None, tell: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        self._watch = watch
        self._hide = hide
        self._tell = tell
        self._failed = failed
        self._is_over = False

    def see(self, piece: bytes) -> bytes:
        """The piece as the caller gets it."""
        try:
            self._watch.feed(piece)
            if self._watch.has_done:
                self.end()  # some callers leave the stream as it is once it has said so
        except Exception as fault:  # noqa: BLE001 - the call must go on
            self._failed(fault)
        return piece if self._hide is None else self._hide(piece)

    def last(self) -> bytes:
        """What was held back, when the body has come to its end."""
        return b"" if self._hide is None else self._hide.end()

    def end(self) -> None:
        """The body is over: read to its end, broken, or left by its caller."""
        if not self._is_over:
            self._is_over = True
            try:
                self._tell()
            except Exception as fault:  # noqa: BLE001 - the call must go on
                self._failed(fault)


def _iterate(pieces: Iterator[bytes], tee: _Tee) -> Iterator[bytes]:
    try:
        for piece in pieces:
            passed = tee.see(piece)
            if passed:
                yield passed
        passed = tee.last()
        if passed:
            yield passed
    finally:
        tee.end()


async def _aiterate(pieces: AsyncIterator[bytes], tee: _Tee) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            passed = tee.see(piece)
            if passed:
                yield passed
        passed = tee.last()
        if passed:
            yield passed
    finally:
        tee.end()


def _library(response: Any) -> Any:
    """The client's own HTTP library, which is loaded, as it made the response: httpx, or httpx2 in newer clients; this package needs none."""
    return next(sys.modules[name] for name in (each.__module__.partition(".")[0] for each in type(response).__mro__) if name.startswith("httpx"))


def _sync_stream(response: Any, tee: _Tee) -> Any:
    stream = response.stream

    class Teed(_library(response).SyncByteStream):  # type: ignore[misc]  # known when it runs
        def __iter__(self) -> Iterator[bytes]:
            return _iterate(iter(stream), tee)

        def close(self) -> None:
            tee.end()
            stream.close()

        def __del__(self) -> None:
            tee.end()

    return Teed()


def _async_stream(response: Any, tee: _Tee) -> Any:
    stream = response.stream

    class Teed(_library(response).AsyncByteStream):  # type: ignore[misc]
        def __aiter__(self) -> AsyncIterator[bytes]:
            return _aiterate(stream.__aiter__(), tee)

        async def aclose(self) -> None:
            tee.end()
            await stream.aclose()

        def __del__(self) -> None:
            tee.end()

    return Teed()
