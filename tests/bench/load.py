"""A small HTTP client that asks as fast as it is answered, and a server that does nothing but read."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from tests.walks.service import ROOT, environment


@dataclass(frozen=True, slots=True)
class Load:
    """How a load went: seconds in all, and of each request."""

    seconds: float
    latencies: list[float]

    def quantile(self, share: float) -> float:
        """A latency in milliseconds."""
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))] * 1000


def requests_of(bodies: Sequence[bytes], *, media_type: str, path: str = "/v1/usage", is_gzip: bool = False) -> list[bytes]:
    """Whole requests, made before the clock starts."""
    packed = "content-encoding: gzip\r\n" if is_gzip else ""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {media_type}\r\n{packed}content-length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


def send(url: str, requests: Sequence[bytes], *, connections: int) -> Load:
    """Send every request once; each connection takes the next as soon as it is answered. Any answer but 2xx ends it."""
    return asyncio.run(_send(url, requests, connections))


async def _send(url: str, requests: Sequence[bytes], connections: int) -> Load:
    address = urlsplit(url)
    waiting = iter(requests)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    host, port = str(address.hostname), int(address.port or 80)
    made = [(await loop.create_connection(lambda: _Sender(waiting, latencies), host, port))[1] for _ in range(connections)]
    started = time.perf_counter()
    for sender in made:
        sender.next()
    await asyncio.gather(*(sender.done for sender in made))
    return Load(time.perf_counter() - started, latencies)


class _Sender(asyncio.Protocol):
    """One connection. Plain bytes: a client that costs more than the service would measure itself."""

    def __init__(self, waiting: Iterator[bytes], latencies: list[float]) -> None:
        self._waiting = waiting
        self._latencies = latencies
        self._answer = b""
        self._asked = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def next(self) -> None:
        """Send what waits, or end."""
        request = next(self._waiting, None)
        if request is None:
            self._transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._asked = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._latencies.append(time.perf_counter() - self._asked)
        if b" 20" not in head[:16]:
            self.connection_lost(RuntimeError(f"answered {head[:16]!r}: {body[:300]!r}"))
            return
        self._answer = b""
        self.next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or RuntimeError("the service closed a connection"))


# -- the limit: reading bodies and nothing else ---------------------------------------------------


@contextmanager
def reading_only() -> Iterator[str]:
    """The URL of a server of its own process that reads each body and answers."""
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.load"], cwd=ROOT, stdout=subprocess.PIPE, env=environment(None), text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate()


async def _read_only(scope: Any, receive: Any, send: Any) -> None:
    more = scope["type"] == "http"
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def _serve() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(_read_only, log_config=None, access_log=False, lifespan="off")).run(sockets=[listener])


if __name__ == "__main__":
    _serve()
