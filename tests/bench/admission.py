"""What asking before a call costs: 500 questions a second to ``/v1/admission``, beside a route and a server that do nothing, in turns.

The questions come at their own pace, however slow the answers are, and a latency counts from the time at which the question
was due; so that a stall is felt by everybody who would have asked in it. Meanwhile events arrive, and budgets and quotas
are read again. Service, client and database share the machine's cores: how long the service's loop stood ready and was
given none of them is shown beside, as no service can answer in that time.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from models.periods import rfc3339
from tests.bench.figures import Figure
from tests.bench.load import reading_only, requests_of
from tests.walks.service import Service

PER_SECOND, SECONDS, CONNECTIONS = 500, 6, 64
DEPLOYMENTS, HARD_BUDGETS = 50, 10
EVENTS_A_SECOND = 200
_LIMIT_MS = 5


def asking(folder: Path, *, rounds: int) -> list[Figure]:
    """Latency of a question at 500 a second, and of a server and of a route that do nothing at the same pace."""
    found: dict[str, list[float]] = {}
    with Service(f"sqlite:///{folder}/bench.db", folder) as service, reading_only() as bare:
        _furnish(service)
        asked = [json.dumps({"workspace": "w", "deployment": f"d{number}", "tokens": 900}).encode() for number in range(DEPLOYMENTS)]
        questions = requests_of(asked, media_type="application/json", path="/v1/admission")
        noop = [b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"]
        listed = [b"GET /v1/admission/denied HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"]
        _paced(service.url, questions, seconds=2)
        for _ in range(rounds):
            # What the machine allows: a server that has nothing to do but to answer.
            _note(found, "bare server", _paced(bare, questions, seconds=SECONDS))
            for name, requests, pace in (("nothing", noop, PER_SECOND), ("admission", questions, PER_SECOND), ("deny-list", listed, 20)):
                busy, stood = _cpu_seconds(service.pid), _waited_seconds(service.pid)
                latencies = _paced(service.url, requests, seconds=SECONDS, per_second=pace)
                # Not a matter of who else runs on the machine; what events cost meanwhile is in it.
                found.setdefault(f"{name}, CPU", []).append((_cpu_seconds(service.pid) - busy) * 1000 / SECONDS)
                found.setdefault(f"{name}, loop ready without a core", []).append((_waited_seconds(service.pid) - stood) * 1000 / SECONDS)
                _note(found, name, latencies)
    return [
        Figure(
            name,
            "ms" if name.endswith(("p50", "p99")) else "ms a second",
            measured,
            of=None if name.startswith(("bare", "nothing")) else f"nothing, {name.partition(', ')[2]}",
            note=f"the issue allows {_LIMIT_MS}" if name == "admission, p99" else "",
        )
        for name, measured in found.items()
    ]


def _note(found: dict[str, list[float]], name: str, latencies: Sequence[float]) -> None:
    ordered = sorted(latencies)
    for share, quantile in ((0.5, "p50"), (0.99, "p99")):
        found.setdefault(f"{name}, {quantile}", []).append(ordered[int(share * (len(ordered) - 1))] * 1000)


def _cpu_seconds(pid: int) -> float:
    """What the process has used of the processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _waited_seconds(pid: int) -> float:
    """How long the process's first thread, which is the loop's, has stood ready to run and been given no core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9


def _furnish(service: Service) -> None:
    """Deployments that were used in the last minute, and hard budgets over some of them."""
    for number in range(HARD_BUDGETS):
        body = {
            "name": f"b{number}", "scope": {"workspace": "w", "deployment": f"d{number}"}, "amount": "1000.00", "currency": "USD",
            "period": "month", "basis": "best", "steps": [100], "hard": True,
        }  # fmt: skip
        service.client.post("/v1/budgets", json=body).raise_for_status()
    service.client.post("/v1/usage", json=[_event(number) for number in range(DEPLOYMENTS * 20)]).raise_for_status()


def _event(number: int) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex, "time": rfc3339(datetime.now(UTC)), "workspace": "w", "deployment": f"d{number % DEPLOYMENTS}",
        "model": "Llama-3.3-70B-Instruct", "input_tokens": 900, "output_tokens": 100,
    }  # fmt: skip


def _paced(url: str, requests: Sequence[bytes], *, seconds: int, per_second: int = PER_SECOND) -> list[float]:
    return asyncio.run(_ask(url, requests, seconds, per_second))


async def _ask(url: str, requests: Sequence[bytes], seconds: int, per_second: int) -> list[float]:
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    pool = _Pool()
    for _ in range(CONNECTIONS):
        _, asker = await loop.create_connection(lambda: _Asker(pool), str(address.hostname), int(address.port or 80))
        pool.free.append(asker)
    reporting = asyncio.create_task(_report(str(address.hostname), int(address.port or 80), seconds))
    begun = loop.time()
    for number in range(per_second * seconds):
        due = begun + number / per_second
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        pool.ask(requests[number % len(requests)], due)
    while len(pool.latencies) < per_second * seconds:
        if pool.fault is not None:
            raise pool.fault
        await asyncio.sleep(0.01)
    await reporting
    for asker in pool.free:
        asker.close()
    return pool.latencies


async def _report(host: str, port: int, seconds: int) -> None:
    """Events meanwhile, ten batches a second."""
    reader, writer = await asyncio.open_connection(host, port)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        body = json.dumps([_event(number) for number in range(EVENTS_A_SECOND // 10)]).encode()
        writer.write(requests_of([body], media_type="application/json")[0])
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
        await asyncio.sleep(0.1)
    writer.close()


class _Pool:
    """Connections that are free, and questions that are due and have none."""

    def __init__(self) -> None:
        self.free: deque[_Asker] = deque()
        self.waiting: deque[tuple[bytes, float]] = deque()
        self.latencies: list[float] = []
        self.fault: Exception | None = None

    def ask(self, request: bytes, due: float) -> None:
        if self.free:
            self.free.popleft().ask(request, due)
        else:
            self.waiting.append((request, due))

    def answered(self, asker: _Asker, seconds: float) -> None:
        self.latencies.append(seconds)
        if self.waiting:
            asker.ask(*self.waiting.popleft())
        else:
            self.free.append(asker)


class _Asker(asyncio.Protocol):
    """One connection, one question at a time."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._answer = b""
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def close(self) -> None:
        self._transport.close()

    def ask(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0):
            return
        if b" 200 " not in head[:16]:
            self._pool.fault = RuntimeError(f"answered {head[:16]!r}: {body[:300]!r}")
        self._answer = b""
        self._pool.answered(self, self._loop.time() - self._due)
