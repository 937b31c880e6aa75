"""Bodies made to hurt: refused by class, within 60 MiB of the process, while somebody else's usage goes on being stored."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.walks.service import Service

pytestmark = pytest.mark.walk

MIB = 1024 * 1024
MOST_ADDED = 60 * 1024  # KiB, of one process, all of these bodies together
JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}
PACKED = {**JSON, "content-encoding": "gzip"}


def event(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "time": "2026-11-20T09:00:00Z", "workspace": "w", "deployment": "d", "input_tokens": 1, "output_tokens": 1, **more}


def chunks(number: int) -> Iterator[bytes]:
    for _ in range(number):
        yield b" " * MIB


def many(item: bytes, number: int) -> bytes:
    return b"[" + b",".join([item] * number) + b"]"


GOOD = json.dumps(event("stored")).encode()
DEEP = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
BOMB = gzip.compress(bytes(64 * MIB), 9) * 8  # half a gibibyte
EVERY = ("/v1/usage", "/v1/usage/openai", "/v1/usage/litellm", "/v1/usage/azure", "/api/v1/events", "/otlp/v1/traces", "/otlp/v1/logs", "/otlp/v1/metrics")
NATIVE, SOME = EVERY[:1], ("/v1/usage", "/v1/usage/openai", "/otlp/v1/traces")
# (what, routes, headers, body, the class that the answer names and where; None: whatever the route says)
BODIES: list[tuple[str, tuple[str, ...], dict[str, str], Any, str | None]] = [
    ("gzip bomb", EVERY, PACKED, BOMB, None),
    ("20,000 deep", EVERY, JSON, DEEP, None),
    ("an item 20,000 deep", NATIVE, JSON, b"[" + GOOD + b"," + DEEP + b"]", "malformed at 1"),
    ("16 MiB deep", NATIVE, JSON, b"[" * (16 * MIB), "malformed"),
    ("NaN", NATIVE, JSON, GOOD + b'\n{"id": "x", "input_tokens": NaN}', "malformed at 1"),
    ("2^63", NATIVE, JSON, json.dumps([event("stored"), event("x", input_tokens=2**63)]).encode(), "invalid_value at 1"),
    ("200 MiB that are announced", SOME, {**JSON, "content-length": str(200 * MIB)}, 200, "too_large"),
    ("200 MiB that are not", SOME, JSON, 200, "too_large"),
    ("millions of numbers", SOME, JSON, many(b"1", 8_000_000), None),
    ("millions of objects", SOME, JSON, many(b"{}", 5_000_000), None),
    ("millions of lines", SOME[:2], LINES, b"{}\n" * (5 * MIB), "too_large"),
    ("millions of numbers in one", SOME, JSON, b'{"records":' + many(b"1", 8_000_000) + b"}", None),
    ("as many faults as there may be", NATIVE, JSON, many(b"{}", 199_000), "schema_invalid at 0"),
    ("a long text", EVERY, JSON, many(b'{"id":"' + b"x" * (15 * MIB) + b'"}', 1), None),
    ("a long number", NATIVE, JSON, many(b'{"input_tokens":' + b"9" * (15 * MIB) + b"}", 1), None),
]


class Sender(threading.Thread):
    """Somebody whose usage is in order, and who sends it one by one."""

    def __init__(self, url: str) -> None:
        super().__init__(name="sender", daemon=True)
        self._url = url
        self._ended = threading.Event()
        self.stored = 0
        self.refused: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=30) as client:
            for number in count():
                if self._ended.wait(0.005):
                    return
                answer = client.post("/v1/usage", json=event(f"sender-{number}"))
                if answer.status_code == 200 and answer.json()["accepted"] == 1:
                    self.stored += 1
                else:
                    self.refused.append(answer.text)

    def end(self) -> None:
        self._ended.set()
        self.join(30)


def memory(service: Service, what: str) -> int:
    """A line of the kernel's account of the process, in KiB."""
    lines = Path(f"/proc/{service.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what + ":"))


def said(answer: httpx.Response) -> str:
    """The class of the first refusal, and its index where there is one."""
    body = answer.json()
    if body.get("rejected"):
        return f"{body['rejected'][0]['error']} at {body['rejected'][0]['index']}"
    return str(body.get("error"))


def test_bodies_made_to_hurt_are_refused_within_bounds_while_others_are_served(tmp_path: Path) -> None:
    with Service(f"sqlite:///{tmp_path}/hurt.db", tmp_path) as service:
        for batch in range(3):
            assert service.client.post("/v1/usage", json=[event(f"warm-{batch}-{number}") for number in range(2000)]).json()["accepted"] == 2000
        sender = Sender(service.url)
        sender.start()
        with contextlib.suppress(OSError):
            # The highest mark so far is forgotten, where the kernel lets us.
            Path(f"/proc/{service.pid}/clear_refs").write_text("5", encoding="ascii")
        before = memory(service, "VmRSS")
        costly: list[str] = []
        for what, routes, headers, body, named in BODIES:
            for route in routes:
                served = sender.stored
                with httpx.Client(trust_env=False, timeout=60) as client:
                    answer = client.post(service.url + route, headers=headers, content=chunks(body) if isinstance(body, int) else body)
                    while sender.stored == served and not sender.refused and sender.is_alive():
                        sender.join(0.01)
                if named is not None and not route.startswith("/otlp"):
                    assert said(answer) == named, (what, route, answer.text[:300])
                assert answer.status_code in {200, 400, 413, 422}, (what, route, answer.text[:300])
                added = memory(service, "VmHWM") - before
                if added > MOST_ADDED:
                    costly.append(f"{what} at {route}: {added // 1024} MiB more than before")
        sender.end()
        assert sender.refused == []
        assert costly == [], costly[-1]
