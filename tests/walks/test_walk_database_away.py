"""The database goes away under the running service, or its disk fills: refused meanwhile, well again by itself, nothing lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.walks.service import Behind, CrashablePostgreSQL, Service, totals, until, verify

pytestmark = pytest.mark.walk

RECOVERS_WITHIN = 5.0
EVENT = {"time": "2026-11-19T08:00:00Z", "workspace": "ws-a", "deployment": "llama", "model": "Llama-3.3-70B-Instruct", "input_tokens": 10, "output_tokens": 1}


def send(service: Service, name: str) -> httpx.Response:
    return service.client.post("/v1/usage", json=EVENT | {"id": name})


def is_refused(answer: httpx.Response) -> bool:
    """As the contract has it: 503, when to come back, and a problem that says no more of the database than that it is away."""
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert (problem["status"], bool(problem["detail"])) == (503, True)
    return True


def is_stored(answer: httpx.Response) -> bool:
    return answer.status_code == 200 or not is_refused(answer)


@pytest.fixture
def crashable() -> Iterator[CrashablePostgreSQL]:
    """A server of this walk's own: the other tests need theirs alive."""
    with CrashablePostgreSQL() as server:
        yield server


def test_postgresql_crashes_and_comes_back(crashable: CrashablePostgreSQL, tmp_path: Path) -> None:
    with crashable.durable_database() as url, Service(url, tmp_path) as service:
        acked: set[str] = set()
        for crash in range(2):
            end = threading.Event()

            def write(end: threading.Event = end, crash: int = crash) -> None:
                for number in range(100_000):
                    if end.is_set():
                        return
                    name = f"{crash}-{number}"
                    if is_stored(send(service, name)):
                        acked.add(name)

            writer = threading.Thread(target=write)
            writer.start()
            until(lambda crash=crash: f"{crash}-20" in acked, within=30, what="some load")  # type: ignore[misc]  # mypy knows no lambda with a default
            crashable.crash()
            end.set()
            writer.join(60)

            assert is_refused(send(service, "never"))
            assert is_refused(service.client.get("/v1/costs"))
            assert is_refused(service.client.get("/v1/usage"))
            assert is_refused(service.client.get("/readyz"))
            assert service.client.get("/livez").status_code == 200

            crashable.start_again()
            until(lambda: is_stored(send(service, "after")), within=RECOVERS_WITHIN, what="recovery of the ingest")
            until(lambda: service.client.get("/v1/costs").status_code == 200, within=RECOVERS_WITHIN, what="recovery of the reads")
            until(service.is_ready, within=RECOVERS_WITHIN, what="readiness")

        stored = {row[0] for row in Behind(url).rows("SELECT event_id FROM usage_event")}
        assert acked - stored == set(), "acknowledged events are lost"
        assert "after" in stored
        verify(url, folder=tmp_path)


def test_a_full_disk_refuses_and_then_takes_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/full.db"
    with Service(url, tmp_path) as service:
        assert send(service, "before").status_code == 200
        with service.full_disk():
            assert is_refused(send(service, "meanwhile"))
            batch = "\n".join(json.dumps(EVENT | {"id": f"batch-{number}"}) for number in range(2000))
            assert is_refused(service.client.post("/v1/usage", content=batch, headers={"content-type": "application/x-ndjson"}))
            assert service.client.get("/livez").status_code == 200
            # What is there can still be read.
            assert requests(service) == 1
        until(lambda: is_stored(send(service, "after")), within=RECOVERS_WITHIN, what="recovery of the ingest")
        assert send(service, "meanwhile").json()["accepted"] == 1, "what was refused was stored all the same"
        assert requests(service) == 3
        until(service.is_ready, within=RECOVERS_WITHIN, what="readiness")
        verify(url, folder=tmp_path)


def requests(service: Service) -> int:
    return sum(total["requests"] for total in totals(service.client, since="2026-11-18", to="2026-11-21", basis="metered").values())
