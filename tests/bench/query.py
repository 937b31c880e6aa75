"""What a page waits for: the ledger's answers over 60 days of the sample world, beside the plainest SQL over the same rollup."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import sqlalchemy as sa

from collector import cli, demo
from collector.settings import Settings
from models import ledger
from models.ledger import CostQuery, Filters
from models.periods import Period
from models.store import Store
from tests.bench.figures import Figure
from tests.walks.service import Service

SEED, DAYS = 7, 60
_FLOOR = (
    "SELECT q.starts_at / 86400, w.name, SUM(q.requests), SUM(q.input_tokens), SUM(q.output_tokens) FROM usage_quarter q "
    "JOIN usage_series s ON s.id = q.series_id JOIN workspace w ON w.id = s.workspace_id WHERE q.starts_at >= :start AND q.starts_at < :end GROUP BY 1, 2"
)


def queries(folder: Path, *, rounds: int) -> list[Figure]:
    """The questions of the overview page and of ``/v1/costs``; the last is asked over HTTP."""
    now = datetime.now(UTC)
    url = f"sqlite:///{folder}/world.db"
    floor = "one SQL sum over usage_quarter, by day and workspace"
    with Service(url, folder) as service:
        events, seconds = _fill(service, url, folder, now)
        store = Store(url)
        period = Period(demo.World(SEED, now, days=DAYS).starts_at, now)
        everything = Filters()

        def asked(*group_by: str, granularity: str = "day") -> Callable[[], object]:
            query = CostQuery(period, "none" if granularity == "none" else "day", group_by)
            return lambda: _in_session(store, lambda session: ledger.costs(session, query, now=now))

        def over_http() -> object:
            said = {"from": period.start.isoformat(), "to": now.isoformat(), "group_by": "workspace"}
            return httpx.get(f"{service.url}/v1/costs", params=said, trust_env=False, timeout=60).raise_for_status()

        def plain() -> object:
            return _in_session(
                store, lambda session: session.execute(sa.text(_FLOOR), {"start": period.start.timestamp(), "end": period.end.timestamp()}).all()
            )

        questions: dict[str, Callable[[], object]] = {
            floor: plain,
            "costs by day and workspace": asked("workspace"),
            "overview: age of the data": lambda: _in_session(store, lambda session: ledger.data_age(session, visible=None, now=now)),
            "overview: costs by day": asked(),
            "overview: forecast": lambda: _in_session(store, lambda session: ledger.forecast(session, everything, now=now)),
            "overview: by workspace and deployment": asked("workspace", "deployment", granularity="none"),
            "GET /v1/costs by day and workspace": over_http,
        }
        found = {name: Figure(name, "ms", [], of=None if name == floor else floor) for name in questions}
        for turn in range(rounds + 1):
            for name, question in questions.items():
                started = time.perf_counter()
                question()
                # The first turn fills caches.
                if turn:
                    found[name].rounds.append((time.perf_counter() - started) * 1000)
        store.close()
    fed = Figure(f"the sample world, {events:,} events of {DAYS} days, over HTTP with its bills", "events/s", [events / seconds], note="3 connections, gzip")
    return [fed, *found.values()]


def _in_session(store: Store, question: Callable[..., object]) -> object:
    with store.read() as session:
        return question(session)


def _fill(service: Service, url: str, folder: Path, now: datetime) -> tuple[int, float]:
    stop = threading.Event()

    def say(line: str) -> None:
        if line.startswith("bills:"):
            stop.set()

    world = demo.World(SEED, now, days=DAYS)
    started = time.perf_counter()
    bring_in = cli._importer(Settings(database_url=url), folder)
    # The imports say on standard output what they landed; there the table goes.
    with contextlib.redirect_stdout(sys.stderr):
        demo.feed(service.url, world, api_key=None, say=say, stop=stop, import_bill=bring_in, clock=lambda: now)
    seconds = time.perf_counter() - started
    return world.count(world.starts_at, now), seconds
