"""Judge and dispatcher killed in the middle, again and again, while rates cross: nothing missed, and no second notice under another id.

The processes are ended with SIGKILL at moments nobody chose; on PostgreSQL there are two, of which one judges. What was told
is what a real receiver heard: each alert's firing and its end, once, or again under the same id and with the same bytes.
How many lives: a few by default, METERBRIDGE_TEST_SEEDS for more.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import col

from collector import rulebook
from collector.rulebook import Author, RuleBody
from collector.watch import standing_watch
from collector.webhooks.dispatch import Dispatcher
from collector.webhooks.reach import Policy
from collector.webhooks.sending import Sender
from models.notices import Delivery, DeliveryStatus, Format, Receiver
from models.store import Store
from tests import factories
from tests.collector.webhooks.listening import listening, says

pytestmark = pytest.mark.walk

LIVES = int(os.environ.get("METERBRIDGE_TEST_SEEDS", "2"))
CROSSINGS = 4
# The clock of each life is so much later than that of the one before: what the dead had leased has expired, and alerts end.
LATER = timedelta(seconds=50)

# A process that judges and delivers as fast as it can; its clock is ahead by so many seconds.
LIFE = """
import sys, threading, time
from datetime import UTC, datetime, timedelta
from collector.watch import standing_watch
from collector.webhooks.dispatch import Dispatcher
from collector.webhooks.reach import Policy
from collector.webhooks.sending import Sender
from models.store import Store

def now():
    return datetime.now(UTC) + timedelta(seconds=float(sys.argv[2]))

store = Store(sys.argv[1])
watcher = standing_watch()
watcher.run(store, now=now())
Dispatcher(store, Sender(Policy.parse("127.0.0.1/32", "")), now=now).start()
print("ready", flush=True)
while True:
    watcher.run(store, now=now())
    time.sleep(0.01)
"""


def living(url: str, ahead: timedelta, count: int) -> list[subprocess.Popen[bytes]]:
    """Processes that judge and deliver, once the last of them is ready."""
    words = [sys.executable, "-c", LIFE, url, str(ahead.total_seconds())]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) for _ in range(count)]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
    return started


def kill(lives: Sequence[subprocess.Popen[bytes]]) -> None:
    for one in lives:
        os.kill(one.pid, signal.SIGKILL)
        one.wait()
        assert one.stdout is not None
        one.stdout.close()


def test_whoever_is_killed_no_crossing_is_missed_and_none_is_told_under_two_ids(database_url: str) -> None:
    store = Store(database_url)
    chance = random.Random(7)
    crossed: set[str] = set()
    ahead = timedelta(0)
    with listening(says(204)) as heard:
        with store.write() as session:
            born = datetime.now(UTC)
            session.add(
                Receiver(
                    id="hook",
                    name="hook",
                    url=heard.url,
                    format=Format.STANDARD,
                    workspaces=[],
                    is_default=True,
                    secret="whsec_" + "QUFB" * 8,
                    created_at=born,
                    updated_at=born,
                )
            )
            body = RuleBody.model_validate({"name": "rate", "kind": "tokens_per_minute", "threshold": 1000, "max_alerts": 1000})
            rulebook.create_rule(session, body, by=Author("tests"), now=datetime.now(UTC))
            factories.workspace(session)
        for life in range(LIVES):
            lives = living(database_url, ahead, 1 if store.is_sqlite else 2)
            try:
                for number in range(CROSSINGS):
                    name = f"d{life}-{number}"
                    at = datetime.now(UTC) + ahead
                    with store.write() as session:
                        factories.event(session, factories.series(session, deployment=name), time=at, input_tokens=1000, output_tokens=0)
                    crossed.add(name)
                    until = time.monotonic() + chance.random() * 0.1
                    while time.monotonic() < until:
                        pass
            finally:
                kill(lives)
            ahead += LATER
        # The last life lives on: first what still fires, then, a while later, the end of everything.
        for later in (timedelta(0), timedelta(minutes=3), timedelta(minutes=6)):
            at = datetime.now(UTC) + ahead + later
            assert standing_watch().run(store, now=at)
            sender = Sender(Policy.parse("127.0.0.1/32", ""))
            Dispatcher(store, sender, now=lambda at=at: at).drain()  # type: ignore[misc]  # the default binds this round's
            sender.close()
    with store.read() as session:
        alerts = {row[0]: json.loads(row[1])["deployment"] for row in session.execute(sa.text("SELECT id, scope FROM alert WHERE rule = 'rate'"))}
        states = {row[0] for row in session.execute(sa.text("SELECT state FROM alert WHERE rule = 'rate'"))}
        grouped = {row[0] for row in session.execute(sa.text("SELECT id FROM alert WHERE group_id IS NOT NULL AND group_id <> id"))}
        waiting = session.scalar(sa.select(sa.func.count()).select_from(Delivery).where(col(Delivery.status) != DeliveryStatus.DELIVERED))
    store.close()
    assert (Counter(alerts.values()), states, waiting) == (Counter(crossed), {"resolved"}, 0)
    told: dict[tuple[str, str], set[tuple[str, bytes]]] = {}
    for one in heard.heard:
        said = json.loads(one.body)
        told.setdefault((said["data"]["id"], said["type"]), set()).add((one.headers["webhook-id"], one.body))
    # One firing and one end of each, but for those whose notice another alert of the same moment spoke for.
    assert set(told) == {(one, kind) for one in alerts if one not in grouped for kind in ("alert.firing", "alert.resolved")}
    assert {len(ids) for ids in told.values()} == {1}
    assert len({next(iter(ids))[0] for ids in told.values()}) == len(told)
