"""A small HTTP client that asks as fast as it is answered, and a server that does nothing but read."""

from __future__ import annotations

import selectors
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


def requests_of(bodies: Sequence[bytes], *, media_type: str, path: str = "/v1/usage", is_gzip: bool = False, workspace: str | None = None) -> list[bytes]:
    """Whole requests, made before the clock starts; ``workspace`` is for formats that name none."""
    more = "content-encoding: gzip\r\n" if is_gzip else ""
    more += f"x-meterbridge-workspace: {workspace}\r\n" if workspace else ""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {media_type}\r\n{more}content-length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


def send(url: str, requests: Sequence[bytes], *, connections: int) -> Load:
    """Send every request once; each connection takes the next as soon as it is answered. Any answer but 2xx ends it."""
    address = urlsplit(url)
    waiting = iter(requests)
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        senders = [_Sender(selector, (str(address.hostname), int(address.port or 80)), latencies) for _ in range(connections)]
        started = time.perf_counter()
        busy = sum(sender.next(waiting) for sender in senders)
        while busy:
            for key, mask in selector.select():
                if key.data.go_on(mask, waiting):
                    busy -= 1
        seconds = time.perf_counter() - started
        for sender in senders:
            sender.close()
    return Load(seconds, latencies)


class _Sender:
    """One connection. Plain sockets: a client that costs more than the service would measure itself."""

    def __init__(self, selector: selectors.BaseSelector, address: tuple[str, int], latencies: list[float]) -> None:
        self._selector = selector
        self._latencies = latencies
        self._socket = socket.create_connection(address)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unsent = memoryview(b"")
        self._answer = b""
        self._asked = 0.0
        selector.register(self._socket, selectors.EVENT_READ, self)

    def next(self, waiting: Iterator[bytes]) -> bool:
        """Send what waits; False where nothing does."""
        request = next(waiting, None)
        if request is None:
            return False
        self._asked = time.perf_counter()
        self._unsent = memoryview(request)
        self._push()
        if self._unsent:
            self._selector.modify(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)
        return True

    def go_on(self, mask: int, waiting: Iterator[bytes]) -> bool:
        """Take what came, send what is left; True once this connection has nothing more to do."""
        if mask & selectors.EVENT_WRITE:
            self._push()
            if not self._unsent:
                self._selector.modify(self._socket, selectors.EVENT_READ, self)
        if not mask & selectors.EVENT_READ:
            return False
        data = self._socket.recv(65536)
        if not data:
            raise RuntimeError("the service closed a connection")
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0):
            return False
        self._latencies.append(time.perf_counter() - self._asked)
        if b" 20" not in head[:16]:
            raise RuntimeError(f"answered {head[:16]!r}: {body[:300]!r}")
        self._answer = b""
        return not self.next(waiting)

    def close(self) -> None:
        self._socket.close()

    def _push(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass


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
