"""A deployment that speaks the Azure AI model inference API, on a port of this machine.

What it does is chosen by a word in the prompt, so that any client can ask for it: FILTER-PROMPT, FILTER-OUTPUT, THROTTLE,
BREAK, EMPTY-MODEL, REFUSE-OPTIONS, ZIPPED, SLOW; and for streams, by ``shape``: where the usage stands in them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from starlette.types import Receive, Scope, Send

MODEL = "Llama-3.3-70B-Instruct"
KEY = "0123456789abcdef0123456789abcdef"  # as long as Azure's are
PROMPT, ANSWER = "a canary: the prompt of nobody's business", "a canary: the answer of nobody's business"

Shape = Literal["with_finish", "after_finish", "none", "cumulative"]


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for found, value in self.headers if found == name), None)

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Upstream:
    """The running deployment: what it was asked, and how its streams tell their usage."""

    url: str = ""
    shape: Shape = "with_finish"
    asked: list[Asked] = field(default_factory=list)
    calls: int = 0
    left: threading.Event = field(default_factory=threading.Event)  # a caller went away from a stream
    pieces: int = 0
    may_go_on: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        asked = Asked(scope["method"], scope["raw_path"].decode("latin-1") + query, headers, body)
        self.asked.append(asked)
        path = scope["path"]
        if path.endswith("/info"):
            await _json(send, 200, {"model_name": MODEL, "model_type": "chat-completion", "model_provider_name": "Meta"})
        elif path.endswith(("/chat/completions", "/completions", "/embeddings")):
            await self._call(asked, path, receive, send)
        else:
            await _json(send, 404, {"error": {"code": "NotFound", "message": "no such path"}})

    async def _call(self, asked: Asked, path: str, receive: Receive, send: Send) -> None:
        self.calls += 1
        number = self.calls
        request = asked.json
        text = asked.body.decode()
        if asked.header("authorization") is None and asked.header("api-key") is None:
            await _json(send, 401, {"error": {"code": "Unauthorized", "message": "no key"}})
            return
        if "THROTTLE" in text:
            headers = {"retry-after": "1", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-remaining-requests": "17", "x-should-retry": "false"}
            await _json(send, 429, {"error": {"code": "429", "message": "slow down: " + ANSWER}}, headers)
            return
        if "FILTER-PROMPT" in text:
            error = {"code": "content_filter", "message": "filtered: " + PROMPT, "param": "prompt", "status": 400, "type": None}
            await _json(send, 400, {"error": error})
            return
        if "REFUSE-OPTIONS" in text and "stream_options" in request:
            await _json(send, 422, {"error": "Extra inputs are not permitted", "detail": [{"loc": ["body", "stream_options"]}]})
            return
        headers = {"x-request-id": f"request-{number}", "x-ratelimit-remaining-tokens": "399000", "x-ratelimit-remaining-requests": "990"}
        headers |= {"x-ratelimit-limit-tokens": "400000", "x-ratelimit-limit-requests": "1000"}
        if path.endswith("/embeddings"):
            vector = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}
            answer = {"object": "list", "data": [vector], "model": MODEL, "usage": {"prompt_tokens": 4, "total_tokens": 4}}
            await _json(send, 200, answer, headers)
        elif request.get("stream"):
            await self._stream(asked, path, number, receive, send)
        else:
            await _json(send, 200, _whole(request, text, number, path), headers, zipped="ZIPPED" in text)

    async def _stream(self, asked: Asked, path: str, number: int, receive: Receive, send: Send) -> None:
        request, text = asked.json, asked.body.decode()
        head = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-request-id", f"request-{number}".encode())]
        pack = zlib.compressobj(wbits=31) if "ZIPPED" in text else None
        if pack is not None:
            head.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": 200, "headers": head})
        watch = asyncio.ensure_future(_gone(receive, self.left)) if "SLOW" in text else None
        for place, event in enumerate(_events(self.shape, request, text, number, path)):
            if "BREAK" in text and place == 3:
                return
            if "SLOW" in text and place == 3:
                while not self.may_go_on.is_set() and not self.left.is_set():  # noqa: ASYNC110 - set from another thread
                    await asyncio.sleep(0.005)
                if self.left.is_set():
                    break
            piece = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            self.pieces += 1
            await send(
                {"type": "http.response.body", "body": piece if pack is None else pack.compress(piece) + pack.flush(zlib.Z_SYNC_FLUSH), "more_body": True}
            )
        if watch is not None:
            watch.cancel()
        await send({"type": "http.response.body", "body": b"" if pack is None else pack.flush(), "more_body": False})


async def _gone(receive: Receive, left: threading.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    left.set()


def _whole(request: dict[str, Any], text: str, number: int, path: str) -> dict[str, Any]:
    is_chat = path.endswith("/chat/completions")
    reason = "content_filter" if "FILTER-OUTPUT" in text else "stop"
    choices = [
        {"index": index, "finish_reason": reason} | ({"message": {"role": "assistant", "content": ANSWER}} if is_chat else {"text": ANSWER, "logprobs": None})
        for index in range(request.get("n") or 1)
    ]
    usage: dict[str, Any] = {"prompt_tokens": 11, "completion_tokens": 7 * len(choices), "total_tokens": 11 + 7 * len(choices)}
    return {
        "id": f"cmpl-{number}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": 217877,
        "model": "" if "EMPTY-MODEL" in text else MODEL,
        "choices": choices,
        "usage": usage | {"prompt_tokens_details": {"cached_tokens": 2}},
    }


def _events(shape: Shape, request: dict[str, Any], text: str, number: int, path: str) -> Iterator[dict[str, Any] | str]:
    is_chat = path.endswith("/chat/completions")
    wants = (request.get("stream_options") or {}).get("include_usage", False)
    model = "" if "EMPTY-MODEL" in text else MODEL
    base = {"id": f"cmpl-{number}", "object": "chat.completion.chunk" if is_chat else "text_completion", "created": 1, "model": model}

    def chunk(content: str | None, reason: str | None, usage: dict[str, int] | None = None) -> dict[str, Any]:
        part = {"delta": {"role": "assistant", "content": content or ""}} if is_chat else {"text": content or ""}
        found: dict[str, Any] = {**base, "choices": [{"index": 0, "finish_reason": reason, **part}]}
        if usage is not None or (shape == "after_finish" and wants):
            found["usage"] = usage
        return found

    def counted(output: int) -> dict[str, int] | None:
        return {"prompt_tokens": 13, "completion_tokens": output, "total_tokens": 13 + output} if shape == "cumulative" else None

    # As Azure's content filter begins a stream.
    yield {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    for place, word in enumerate(("a canary:", " the answer of", " nobody's business")):
        yield chunk(word, None, counted(place + 1))
    last = {"prompt_tokens": 13, "completion_tokens": 9, "total_tokens": 22}
    yield chunk(None, "content_filter" if "FILTER-OUTPUT" in text else "stop", last if shape in {"with_finish", "cumulative"} else None)
    if shape == "after_finish" and wants:
        yield {**base, "choices": [], "usage": last}
    yield "[DONE]"


async def _json(send: Send, status: int, value: Any, headers: dict[str, str] | None = None, *, zipped: bool = False) -> None:
    body = json.dumps(value).encode()
    found = [(b"content-type", b"application/json"), *((name.encode(), said.encode()) for name, said in (headers or {}).items())]
    if zipped:
        body = gzip.compress(body)
        found.append((b"content-encoding", b"gzip"))
    found.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def listening(app: Any, config: uvicorn.Config | None = None) -> Iterator[str]:
    """An ASGI application on a free port, until the block ends; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config or uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@contextmanager
def upstream() -> Iterator[Upstream]:
    """The deployment, until the block ends."""
    running = Upstream()
    with listening(running) as running.url:
        yield running
