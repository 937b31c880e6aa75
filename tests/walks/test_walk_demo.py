"""The sample world through the real service: usage over HTTP, files by the import command, killed in between, fed again."""

from __future__ import annotations

import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from collector import cli, demo
from collector.demo import world
from collector.settings import Settings
from models.errors import Unavailable
from models.periods import DAY, day_start, rfc3339, utc_day
from tests.walks.service import Behind, Service, costs, until, verify

pytestmark = pytest.mark.walk

SEED, DAYS, SCALE = 11, 10, 0.1
EVENTS_A_BODY = 200  # so that there is a middle to be killed in


class Feeding:
    """The world on its way into the service, in a thread as ``meterbridge demo`` has it; ``end`` waits until it is all in."""

    def __init__(self, service: Service, database_url: str, folder: Path, now: datetime) -> None:
        self._service, self._database_url, self._folder, self._now = service, database_url, folder, now
        self._stop = threading.Event()
        self._said: list[str] = []
        self._faults: list[Exception] = []
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def end(self) -> None:
        self._thread.join(120)
        assert not self._faults, self._faults
        assert any(line.startswith("bills:") for line in self._said), self._said
        assert not any("refused" in line for line in self._said), self._said

    def abandon(self) -> None:
        """Stop where it is: the service is gone."""
        self._stop.set()
        self._thread.join(120)
        assert all(isinstance(fault, Unavailable) for fault in self._faults), self._faults

    def _feed(self) -> None:
        # A world of its own each time, as a restarted process makes it: the same bytes.
        sample = demo.World(SEED, self._now, days=DAYS, scale=SCALE)
        try:
            demo.feed(self._service.url, sample, api_key=None, say=self._say, stop=self._stop, import_bill=self._bring_in, clock=lambda: self._now)
        except Exception as fault:  # noqa: BLE001 - told by the test's own thread
            self._faults.append(fault)

    def _say(self, line: str) -> None:
        self._said.append(line)
        if line.startswith("bills:"):
            self._stop.set()

    def _bring_in(self, kind: str, name: str, data: bytes) -> None:
        # The import command as the demo itself gives it, beside the service; test_walk_bills.py types it out.
        cli._importer(Settings(database_url=self._database_url), self._folder)(kind, name, data)


def figures(service: Service, now: datetime) -> list[dict[str, Any]]:
    """Everything that finance would ask, of whole days only: what is still under way changes with the clock."""
    since, to = rfc3339(day_start(utc_day(now)) - DAYS * DAY), rfc3339(day_start(utc_day(now)))
    found: list[dict[str, Any]] = []
    for group_by in ("workspace,deployment", "team", "meter"):
        for basis in ("metered", "billed", "best"):
            said = costs(service.client, since=since, to=to, granularity="day", group_by=group_by, basis=basis, limit="10000")
            found += [*said["rows"], *said["totals"]]
    return found


def test_the_sample_world_is_the_same_however_it_came_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "EVENTS_A_BODY", EVENTS_A_BODY)
    now = datetime.now(UTC)
    calm, killed = (f"sqlite:///{tmp_path}/{name}.db" for name in ("calm", "killed"))
    with Service(calm, tmp_path) as service:
        Feeding(service, calm, tmp_path, now).end()
        expected = figures(service, now)
        stored = Behind(calm).number("SELECT COUNT(*) FROM usage_event")
        assert stored > 1000
        assert {row["currency"] for row in expected} >= {"USD", "EUR"}
        # Started again, it sends everything again.
        service.stop()
        service.start()
        Feeding(service, calm, tmp_path, now).end()
        assert Behind(calm).number("SELECT COUNT(*) FROM usage_event") == stored
        assert figures(service, now) == expected
    verify(calm, folder=tmp_path)

    with Service(killed, tmp_path) as service:
        feeding = Feeding(service, killed, tmp_path, now)
        until(lambda: _events(killed) > 0, within=60, what="a part of the usage", pause=0.002)
        service.kill()
        feeding.abandon()
        assert 0 < _events(killed) < stored, "it was not killed in the middle"
        service.start()
        Feeding(service, killed, tmp_path, now).end()
        assert _events(killed) == stored
        assert figures(service, now) == expected
    verify(killed, folder=tmp_path)


def _events(database_url: str) -> int:
    if not Behind(database_url).rows("SELECT 1 FROM sqlite_master WHERE name = 'usage_event'"):
        return 0
    return Behind(database_url).number("SELECT COUNT(*) FROM usage_event")


def test_the_demo_command_is_ready_and_ends_at_once(tmp_path: Path) -> None:
    with Service(None, tmp_path, words=("demo", "--port", "0")) as service:
        page = service.client.get("/dashboard/")
        assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
        asked_at = time.monotonic()
        assert service.stop(signal.SIGINT) == 0, service.said()
        assert time.monotonic() - asked_at < 10
        assert "Traceback" not in service.said()
    verify(f"sqlite:///{next((tmp_path / '.demo').glob('*.db'))}", folder=tmp_path)
