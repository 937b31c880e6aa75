"""The proxy as its clients meet it, and a reporter that a test can look into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from collector.proxy.admission import Admission, Mode
from collector.proxy.app import Limits, Proxy
from collector.proxy.command import config
from collector.proxy.upstreams import parse
from meterbridge_client.reporter import Reporter
from tests.clients.upstream import listening
from tests.walks.service import until


class Notebook(Reporter):
    """Keeps what is reported instead of delivering it."""

    def __init__(self, folder: Path) -> None:
        super().__init__("http://127.0.0.1:9", spool=folder)
        self.events: list[dict[str, Any]] = []

    def report(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))


@dataclass
class Running:
    """A running proxy."""

    url: str
    proxy: Proxy
    reporter: Reporter
    client: httpx.Client
    seen: list[dict[str, Any]] = field(default_factory=list)

    def events(self, number: int) -> list[dict[str, Any]]:
        """What it has reported, once that is so many; a report follows its answer."""
        assert isinstance(self.reporter, Notebook)
        kept = self.reporter.events
        until(lambda: len(kept) >= number, within=10, what=f"report {number}")
        assert len(kept) == number, kept
        return list(kept)

    def event(self) -> dict[str, Any]:
        """The only one."""
        return self.events(1)[0]


@contextmanager
def proxying(
    *upstreams: str,
    reporter: Reporter,
    admission: Mode = "off",
    service: str = "",
    key: str | None = None,
    include_usage: bool = False,
    limits: Limits | None = None,
    admission_timeout: float = 5.0,
) -> Iterator[Running]:
    """The proxy before these upstreams, until the block ends."""
    found = limits or Limits()
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=found.connections), trust_env=False)
    asking = None
    if admission != "off":
        asking = Admission(httpx.AsyncHTTPTransport(trust_env=False), url=service, key=key, mode=admission, timeout=admission_timeout)
    proxy = Proxy(
        [parse(text) for text in upstreams],
        transport=transport,
        reporter=reporter,
        now=lambda: datetime.now(UTC),
        admission=asking,
        include_usage=include_usage,
        limits=found,
    )
    with listening(proxy, config(proxy)) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        try:
            yield Running(url, proxy, reporter, client)
        finally:
            reporter.close(0)
