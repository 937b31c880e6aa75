"""The service is killed at moments nobody chose, again and again: what was acknowledged is there, once, and nothing else is.

``KILL_CYCLES=500 pytest tests/walks/test_walk_kill.py`` takes it further than every day's few cycles.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from models.periods import rfc3339
from tests.walks.service import Behind, CrashablePostgreSQL, Service, amounts, begin, run, totals, until, verify
from tests.walks.test_walk_bills import DATA, FIRST, MARCH, decimals, read, write

pytestmark = pytest.mark.walk

SEED = 20261120
WRITERS = 4
CYCLES = {"sqlite": 5, "postgresql": 3}
MORE_CYCLES = int(os.environ.get("KILL_CYCLES", "0"))
LONGEST_LOAD_SECONDS = 1.2
# What is acknowledged before a life of the service may end, on a machine however slow: in all lives before it together.
LEAST_A_LIFE = 600
RESENT_SHARE = 0.25
STARTS_AT = datetime(2026, 11, 19, 6, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """One call, made from its number alone: sent again, it is the same to the byte."""

    number: int

    @property
    def id(self) -> str:
        return f"call-{self.number}"

    @property
    def tokens(self) -> tuple[int, int]:
        return 1 + self.number * 7919 % 4001, 1 + self.number * 104_729 % 997

    def body(self) -> str:
        tokens_in, tokens_out = self.tokens
        said = {
            "id": self.id,
            "time": rfc3339(STARTS_AT + timedelta(seconds=self.number * 37 % 86_400)),
            "workspace": f"ws-{self.number % 3}",
            "deployment": f"llama-{self.number % 5}",
            "model": "Llama-3.3-70B-Instruct",
            "input_tokens": tokens_in,
            "output_tokens": tokens_out,
            "application": f"app-{self.number % 4}",
        }
        return json.dumps(said)


@dataclass(slots=True)
class History:
    """What was sent and what became of it, across every life of the service."""

    acked: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)  # sent, and the answer never came
    abandoned: set[int] = field(default_factory=set)  # unknown, and on purpose never sent again
    faults: list[str] = field(default_factory=list)
    requests: int = 0
    resent: int = 0
    _next: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, chance: random.Random, size: int) -> list[Event]:
        """A body: new events, a quarter of them sent before (acknowledged ones, and those of unknown fate)."""
        with self._lock:
            again = sum(chance.random() < RESENT_SHARE for _ in range(size))
            old = chance.sample(sorted(self.unknown), min(again, len(self.unknown)))
            # The newest acknowledged ones are those that a careless service loses.
            newest = sorted(self.acked)[-2000:]
            old += chance.sample(newest, min(again - len(old), len(newest)))
            fresh = range(self._next, self._next + size - len(old))
            self._next = fresh.stop
            self.unknown.update(fresh)
            self.resent += len(old)
            self.requests += 1
        events = [Event(number) for number in (*old, *fresh)]
        chance.shuffle(events)
        return events

    def note(self, events: Sequence[Event], was_acked: set[int], answer: httpx.Response) -> None:
        """Take a verdict in, and hold it against what was promised before."""
        with self._lock:
            if answer.status_code != 200:
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    self.faults.append(f"answered {answer.status_code}: {answer.text[:300]}")
                return
            said = answer.json()
            if said["rejected"] or said["accepted"] + said["duplicates"] != len(events):
                self.faults.append(f"of {len(events)} events: {str(said)[:300]}")
            forgotten = [one["index"] for one in said["events"] if events[one["index"]].number in was_acked and not one["duplicate"]]
            if forgotten:
                self.faults.append(f"{len(forgotten)} acknowledged events were new to the service when they came again")
            numbers = {event.number for event in events}
            self.acked |= numbers
            self.unknown -= numbers

    def abandon_some(self, chance: random.Random) -> None:
        """One unknown outcome in five stays unknown: both fates are right for it."""
        with self._lock:
            chosen = {number for number in sorted(self.unknown) if chance.random() < 0.2}
            self.abandoned |= chosen
            self.unknown -= chosen


def send_until(end: threading.Event, url: str, history: History, chance: random.Random) -> None:
    """One writer: single events, arrays and NDJSON, until it is told to stop or nobody is there."""
    with httpx.Client(base_url=url, timeout=httpx.Timeout(20), trust_env=False) as client:
        while not end.is_set():
            form = chance.choice(("one", "array", "lines"))
            events = history.draw(chance, 1 if form == "one" else chance.randint(2, 40) if form == "array" else chance.randint(10, 300))
            bodies = [event.body() for event in events]
            body = bodies[0] if form == "one" else f"[{','.join(bodies)}]" if form == "array" else "\n".join(bodies) + "\n"
            media_type = "application/x-ndjson" if form == "lines" else "application/json"
            was_acked = {event.number for event in events} & history.acked
            try:
                answer = client.post("/v1/usage", content=body, headers={"content-type": media_type})
            except httpx.TransportError:
                return  # unknown, all of them
            history.note(events, was_acked, answer)


@pytest.fixture
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that the service finds empty; PostgreSQL is one that keeps what it committed."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/killed.db"
    else:
        with request.getfixturevalue("crashable").durable_database() as url:
            yield url


@pytest.mark.parametrize("durable_url", ["sqlite", "postgresql"], indirect=True)
def test_killed_under_load_it_keeps_every_promise(durable_url: str, tmp_path: Path) -> None:
    kind = "sqlite" if durable_url.startswith("sqlite") else "postgresql"
    chance = random.Random(SEED)
    history = History()
    service = Service(durable_url, tmp_path)
    for cycle in range(MORE_CYCLES or CYCLES[kind]):
        end = threading.Event()
        with service:
            writers = [
                threading.Thread(target=send_until, args=(end, service.url, history, random.Random(f"{SEED}/{cycle}/{number}"))) for number in range(WRITERS)
            ]
            for writer in writers:
                writer.start()
            least = cycle * LEAST_A_LIFE
            until(lambda: len(history.acked) >= least or history.faults, within=120, what=f"a load of {least} events")  # noqa: B023 - asked within the cycle
            end.wait(chance.uniform(0.05, LONGEST_LOAD_SECONDS))
            service.kill()
            end.set()
            for writer in writers:
                writer.join(30)
        history.abandon_some(chance)
        assert not history.faults, history.faults[:5]

    with service:
        while history.unknown:
            events = [Event(number) for number in sorted(history.unknown)[:500]]
            answer = service.client.post("/v1/usage", content=f"[{','.join(event.body() for event in events)}]", headers={"content-type": "application/json"})
            history.note(events, set(), answer)
            assert not history.faults, history.faults
        hold_against(history, service, durable_url)
        assert service.stop() == 0
    verify(durable_url, folder=tmp_path)


def hold_against(history: History, service: Service, database_url: str) -> None:
    """The database, and what the service says, against the history."""
    assert len(history.acked) > 1000, "there was no load worth the name"
    assert history.resent > 100
    stored = Behind(database_url).rows("SELECT event_id, input_tokens, output_tokens FROM usage_event")
    ids = [row[0] for row in stored]
    assert len(ids) == len(set(ids)), "an event is there twice"
    numbers = {int(name.removeprefix("call-")) for name in ids}
    assert history.acked - numbers == set(), "acknowledged events are lost"
    assert numbers - history.acked - history.abandoned == set(), "there are events that were never sent"
    assert {row[0]: row[1:] for row in stored} == {Event(number).id: Event(number).tokens for number in numbers}

    tokens_in, tokens_out = (sum(Event(number).tokens[side] for number in numbers) for side in (0, 1))
    for rollup in ("usage_minute", "usage_quarter"):
        sums = Behind(database_url).rows(f"SELECT SUM(requests), SUM(input_tokens), SUM(output_tokens) FROM {rollup}")
        assert [int(one) for one in sums[0]] == [len(numbers), tokens_in, tokens_out], rollup
    said = totals(service.client, since="2026-11-18", to="2026-11-21", basis="metered")
    found = [sum(total[name] for total in said.values()) for name in ("requests", "input_tokens", "output_tokens")]
    assert found == [len(numbers), tokens_in, tokens_out]


def test_sqlite_writes_to_the_disk_before_it_answers(tmp_path: Path) -> None:
    """A kill cannot show it (the system still writes what a dead process left), so the setting itself is looked at."""
    from models.store import Store

    store = Store(f"sqlite:///{tmp_path}/settings.db")
    store.migrate()
    with store.connection() as connection, connection.begin():
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2, "FULL: the commit is on the disk when it returns"
    store.close()
    verify(f"sqlite:///{tmp_path}/settings.db", folder=tmp_path)


@pytest.mark.parametrize("durable_url", ["sqlite", "postgresql"], indirect=True)
def test_killed_while_a_bill_is_staged_nothing_of_it_shows(durable_url: str, tmp_path: Path) -> None:
    header, rows = read(DATA / "azure" / "cost_details.csv")
    # The same month, 500 times as long: some thirty thousand rows.
    bill = write(tmp_path / "whole company.csv", header, rows * 500)
    behind = Behind(durable_url)
    with Service(durable_url, tmp_path) as service:
        assert run(durable_url, "import", "charges", str(DATA / "azure" / "cost_details.csv"), folder=tmp_path).code == 0
        importing = begin(durable_url, "import", "charges", str(bill), folder=tmp_path)
        until(lambda: behind.number("SELECT COUNT(*) FROM charge") > 2000, within=60, what="staging")
        # On SQLite the service does it for the command; on PostgreSQL the command itself.
        if durable_url.startswith("sqlite"):
            service.kill()
            _, said = importing.communicate(timeout=60)
            assert (importing.returncode, "Traceback" in said) == (1, False), said
            service.start()
        else:
            importing.kill()
            importing.communicate(timeout=60)
        assert behind.number("SELECT COUNT(*) FROM bill_part WHERE landed_at IS NULL") > 0, "it was not killed while staging"
        assert amounts(service.client, basis="billed", **MARCH) == decimals(FIRST["in_scope"])

        landed = run(durable_url, "import", "charges", str(bill), folder=tmp_path)
        assert landed.code == 0, landed.err
        assert amounts(service.client, basis="billed", **MARCH) == {name: amount * 500 for name, amount in decimals(FIRST["in_scope"]).items()}
        assert behind.number("SELECT COUNT(*) FROM bill_part WHERE landed_at IS NULL") == 0
        assert behind.number("SELECT COUNT(*) FROM charge") == 69 * 501, "rows of the dead import are left over"
        assert behind.number("SELECT COUNT(*) FROM charge c LEFT JOIN bill_part p ON p.id = c.part_id WHERE p.id IS NULL") == 0
    verify(durable_url, folder=tmp_path)


@pytest.fixture(scope="module")
def crashable() -> Iterator[CrashablePostgreSQL]:
    """A server of these walks' own."""
    with CrashablePostgreSQL() as server:
        yield server
