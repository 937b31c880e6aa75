"""Reporting: everything reaches the service once, whatever the service, the network or the process does meanwhile."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from meterbridge_client import reporter as module
from meterbridge_client.reporter import Reporter
from models.store import Store
from tests.collector.api.serving import NOW, bearer, serving
from tests.walks.service import ROOT, until

Answer = tuple[int, dict[str, Any], dict[str, str]]


@dataclass
class Service:
    """A service that answers as the test says, and knows what it was sent."""

    url: str = ""
    answer: Callable[[list[dict[str, Any]]], Answer] = lambda events: (200, {"accepted": len(events), "duplicates": 0, "rejected": []}, {})
    batches: list[list[dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def ids(self) -> Counter[str]:
        return Counter(event["id"] for batch in self.batches for event in batch)


@pytest.fixture
def service() -> Iterator[Service]:
    with answering() as found:
        yield found


@contextmanager
def answering(port: int = 0) -> Iterator[Service]:
    found = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/usage"
            events = [json.loads(line) for line in gzip.decompress(body).splitlines()]
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            status, said, headers = found.answer(events)
            if status == 200:
                found.batches.append(events)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"call-{number}", "time": "2026-11-20T09:59:00Z", "workspace": "ws", "deployment": "d", "input_tokens": 3, "output_tokens": 2, **more}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COLLECT_SECONDS", 0.01)
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.05)


@pytest.fixture
def reporter(service: Service, tmp_path: Path) -> Iterator[Reporter]:
    found = Reporter(service.url, key="mb_secret", spool=tmp_path / "spool")
    yield found
    found.close(0)


def test_events_are_delivered_in_batches_with_the_key(service: Service, reporter: Reporter) -> None:
    for number in range(500):
        reporter.report(event(number))
    assert reporter.flush()
    assert service.ids() == Counter(f"call-{number}" for number in range(500))
    assert len(service.batches) < 100
    assert {headers["authorization"] for headers in service.headers} == {"Bearer mb_secret"}
    stats = reporter.stats()
    assert (stats.reported, stats.spooled, stats.accepted, stats.waiting, stats.dropped, stats.last_error) == (500, 500, 500, 0, 0, None)


def test_a_service_that_is_away_loses_nothing(tmp_path: Path) -> None:
    with answering() as gone:
        pass
    port = int(gone.url.rpartition(":")[2])
    reporter = Reporter(gone.url, spool=tmp_path)
    for number in range(20):
        reporter.report(event(number))
    until(lambda: reporter.stats().failed_attempts >= 2, within=10, what="two failed attempts")
    with answering(port) as service:
        assert reporter.flush()
        assert service.ids() == Counter(f"call-{number}" for number in range(20))
    reporter.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [429, 503, 500, 408])
def test_a_busy_service_is_asked_again_after_the_time_that_it_says(service: Service, reporter: Reporter, status: int) -> None:
    answers: Iterator[Answer] = iter([(status, {}, {"retry-after": "0.2"})] * 2)
    plain = service.answer
    service.answer = lambda events: next(answers, None) or plain(events)
    reporter.report(event(1))
    assert reporter.flush()
    assert service.ids() == {"call-1": 1}
    assert reporter.stats().failed_attempts == 2


def test_an_answer_that_was_lost_is_a_duplicate_and_no_second_event(sqlite_store: Store, tmp_path: Path) -> None:
    with serving(sqlite_store) as service:
        for _ in range(2):
            reporter = Reporter(service.url, spool=tmp_path)
            reporter.report(event(1))
            reporter.report(event(2, input_tokens=4))
            assert reporter.flush()
            stats = reporter.stats()
            reporter.close()
        assert (stats.accepted, stats.duplicates) == (0, 2)
        found = service.client.get("/v1/costs", params={"from": "2026-11-20T00:00:00Z", "to": "2026-11-21T00:00:00Z", "granularity": "none"}).json()
        assert [(total["requests"], total["input_tokens"], total["output_tokens"]) for total in found["totals"]] == [(2, 7, 4)]


def test_refused_events_are_set_aside_once_and_their_neighbours_stand(sqlite_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(sqlite_store) as service:
        reporter = Reporter(service.url, key=service.key("ingest", "ws"), spool=tmp_path)
        reporter.report(event(1))
        reporter.report(event(2, time="1999-01-01T00:00:00Z"))
        reporter.report(event(3, workspace="another"))
        reporter.report(event(4))
        with caplog.at_level(logging.WARNING, logger="meterbridge_client"):
            assert reporter.flush()
        stats = reporter.stats()
        reporter.close()
        assert (stats.accepted, stats.rejected, stats.waiting) == (2, 2, 0)
        stored = service.client.get(
            "/v1/usage", params={"from": "2026-11-20T00:00:00Z", "to": "2026-11-21T00:00:00Z"}, headers=bearer(service.key("read"))
        ).json()
        assert sorted(one["id"] for one in stored["items"]) == ["call-1", "call-4"]
    aside = [json.loads(line) for line in (tmp_path / "rejected.log").read_text().splitlines()]
    assert [(one["event"]["id"], one["error"]) for one in aside] == [("call-2", "invalid_time"), ("call-3", "forbidden_workspace")]
    assert sum("is set aside" in record.message for record in caplog.records) == 2
    assert NOW.year == 2026


def test_one_event_that_spoils_a_body_is_found_and_set_aside(service: Service, reporter: Reporter, tmp_path: Path) -> None:
    plain = service.answer
    service.answer = lambda events: (400, {"error": "malformed"}, {}) if any(one["id"] == "call-5" for one in events) else plain(events)
    for number in range(12):
        reporter.report(event(number))
    assert reporter.flush()
    assert set(service.ids()) == {f"call-{number}" for number in range(12) if number != 5}
    assert json.loads((tmp_path / "spool" / "rejected.log").read_text())["event"]["id"] == "call-5"


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_wrong_key_or_address_keeps_the_events_until_it_is_right(service: Service, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture) -> None:
    with answering() as elsewhere:
        service.answer = lambda _: (status, {}, {"location": elsewhere.url})
        wrong = Reporter(service.url, key="wrong", spool=tmp_path)
        with caplog.at_level(logging.WARNING, logger="meterbridge_client"):
            wrong.report(event(1))
            assert not wrong.flush(0.3)
            wrong.close(0)
        assert elsewhere.headers == []
    assert len(caplog.records) == 1
    service.answer = Service().answer
    right = Reporter(service.url, key="right", spool=tmp_path)
    right.wake()
    assert right.flush()
    right.close()
    assert service.ids() == {"call-1": 1}


def test_a_queue_that_is_full_drops_and_counts(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUE", 5)
    reporter = Reporter(service.url, spool=tmp_path)
    monkeypatch.setattr(reporter, "_start", lambda: None)  # no thread takes anything out
    for number in range(8):
        reporter.report(event(number))
    assert (reporter.stats().dropped, reporter.stats().waiting) == (3, 5)
    reporter._queue.clear()
    reporter.close(0)


def test_memory_alone_delivers_too(service: Service) -> None:
    reporter = Reporter(service.url, spool=False)
    reporter.report(event(1))
    assert reporter.flush()
    assert (service.ids(), reporter.stats().spooled) == ({"call-1": 1}, 0)
    reporter.close()


def test_without_a_folder_of_the_user_memory_serves(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    reporter = Reporter(service.url)
    reporter.report(event(1))
    assert reporter.flush()
    reporter.close()
    with pytest.raises(OSError, match="file"):
        Reporter(service.url, spool=tmp_path / "file" / "below")


CALLER = """
import os, sys
from meterbridge_client.reporter import Reporter
reporter = Reporter(sys.argv[1], spool=sys.argv[2])
for number in range(100_000):
    reporter.report({"id": f"call-{number}", "time": "2026-11-20T09:59:00Z", "workspace": "ws", "deployment": "d", "input_tokens": 3, "output_tokens": 2})
    if sys.argv[3] == "spooled":
        assert reporter.spooled()
        print(number, flush=True)
    elif number == 99:
        if sys.argv[3] == "fork":
            if os.fork() == 0:
                reporter.report({"id": "child", "time": "2026-11-20T09:59:00Z", "workspace": "ws", "deployment": "d"})
                sys.exit()
            os.wait()
        break
"""


def caller(url: str, folder: Path, how: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", CALLER, url, str(folder), how]
    return subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_killed_caller_loses_nothing_that_was_spooled(sqlite_store: Store, tmp_path: Path) -> None:
    with serving(sqlite_store) as service:
        process = caller(service.url, tmp_path, "spooled")
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().splitlines()]
        process.stdout.close()
        process.wait()
        after = Reporter(service.url, spool=tmp_path)
        after.wake()
        assert after.flush()
        after.close()
        found = service.client.get("/v1/costs", params={"from": "2026-11-20T00:00:00Z", "to": "2026-11-21T00:00:00Z", "granularity": "none"}).json()
    (total,) = found["totals"]
    assert total["requests"] in (len(told), len(told) + 1)
    assert (total["input_tokens"], total["output_tokens"]) == (3 * total["requests"], 2 * total["requests"])


def test_the_end_of_a_program_delivers_what_it_reported(service: Service, tmp_path: Path) -> None:
    process = caller(service.url, tmp_path, "ends")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert service.ids() == Counter(f"call-{number}" for number in range(100))
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_reports_its_own_and_nothing_twice(service: Service, tmp_path: Path) -> None:
    process = caller(service.url, tmp_path, "fork")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert service.ids() == Counter({**{f"call-{number}": 1 for number in range(100)}, "child": 1})
    assert list(tmp_path.iterdir()) == []
