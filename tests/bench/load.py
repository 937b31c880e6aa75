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


def requests_of(bodies: Sequence[bytes], *, media_type: str) -> list[bytes]:
    """Whole requests, made before the clock starts."""
    head = f"POST /v1/usage HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {media_type}\r\ncontent-length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


def send(url: str, requests: Sequence[bytes], *, connections: int) -> Load:
    """Send every request once; each connection takes the next as soon as it is answered. Any answer but 200 ends it."""
    return asyncio.run(_send(url, requests, connections))


async def _send(url: str, requests: Sequence[bytes], connections: int) -> Load:
    address = urlsplit(url)
    waiting = iter(requests)
    latencies: list[float] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            for request in waiting:
                asked = time.perf_counter()
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                latencies.append(time.perf_counter() - asked)
                if b" 200 " not in head[:16]:
                    raise RuntimeError(f"answered {head[:16]!r}: {body[:300]!r}")
        finally:
            writer.close()
            await writer.wait_closed()

    started = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    return Load(time.perf_counter() - started, latencies)


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
