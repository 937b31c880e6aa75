"""What the metering proxy adds to a call: the same calls to the same deployment, directly and through it, in turns.

The deployment is a process that answers at once, so that the whole of a latency is transport; service, proxy,
deployment and client share the machine. What is added is the difference of the two quantiles.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from tests.bench.figures import Figure
from tests.bench.load import Load, requests_of, send
from tests.walks.service import ROOT, Service, environment

CALLS = 1_500
CONNECTIONS = (1, 8)
_WARM = 200
_ANSWER = json.dumps(
    {
        "id": "cmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "Llama-3.3-70B-Instruct",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * 300}}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 300, "total_tokens": 1200},
    }
).encode()
_ASKED = json.dumps({"messages": [{"role": "user", "content": "word " * 900}], "max_tokens": 400}).encode()


def added(folder: Path, *, rounds: int) -> list[Figure]:
    """Latency of a call at a few numbers of connections, direct and proxied."""
    found: dict[str, list[float]] = {}
    with _deployment() as upstream, Service(f"sqlite:///{folder}/bench.db", folder) as service:
        words = ["proxy", "--port", "0", "--upstream", upstream, "--report-to", service.url, "--workspace", "w", "--deployment", "d"]
        proxy = Service(None, folder, words=[*words, "--spool", str(folder / "spool")])
        proxy.start(ready=False)
        try:
            calls = requests_of([_ASKED] * CALLS, media_type="application/json", path="/v1/chat/completions")
            for url in (upstream, proxy.url):
                send(url, calls[:_WARM], connections=4)
            for _ in range(rounds):
                for connections in CONNECTIONS:
                    direct, through = (send(url, calls, connections=connections) for url in (upstream, proxy.url))
                    _note(found, f"{connections} connection{'s' * (connections > 1)}", direct, through)
        finally:
            proxy.stop()
    return [Figure(name, "calls/s" if "calls/s" in name else "ms", measured) for name, measured in found.items()]


def _note(found: dict[str, list[float]], name: str, direct: Load, through: Load) -> None:
    for share, quantile in ((0.5, "p50"), (0.99, "p99")):
        found.setdefault(f"{name}: direct {quantile}", []).append(direct.quantile(share))
        found.setdefault(f"{name}: through {quantile}", []).append(through.quantile(share))
        found.setdefault(f"{name}: added {quantile}", []).append(through.quantile(share) - direct.quantile(share))
    found.setdefault(f"{name}: through, calls/s", []).append(len(through.latencies) / through.seconds)


@contextmanager
def _deployment() -> Iterator[str]:
    """The URL of a deployment of its own process that answers at once."""
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.proxy"], cwd=ROOT, stdout=subprocess.PIPE, env=environment(None), text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate()


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    more = scope["type"] == "http"
    while more:
        more = (await receive()).get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _ANSWER})


def _serve() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(_answer, log_config=None, access_log=False, lifespan="off")).run(sockets=[listener])


if __name__ == "__main__":
    _serve()
