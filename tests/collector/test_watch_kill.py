"""A watch that is killed in the middle, again and again, while rates cross: nothing missed, nothing told twice.

The process that judges is ended with SIGKILL at moments nobody chose. What it told is read from the same database, in
whose transactions it was told: a notice and its alert stand together or not at all.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from collector import rulebook
from collector.rulebook import Author, RuleBody
from models.store import Store
from tests import factories

CYCLES = int(os.environ.get("KILL_CYCLES", "4"))
DEPLOYMENTS = 12

# The judging process: as fast as it can, with an outbox that is a table of the same database.
JUDGE = """
import sys, time
from datetime import UTC, datetime
import sqlalchemy as sa
from collector.watch import Watcher
from models.store import Store

def post(session, *, alert, type, receivers, now):
    session.execute(sa.text("INSERT INTO told (alert_id, type) VALUES (:id, :type)"), {"id": alert["id"], "type": type})

store = Store(sys.argv[1])
watcher = Watcher(post)
print("ready", flush=True)
while True:
    watcher.run(store, now=datetime.now(UTC))
    time.sleep(0.01)
"""


def test_a_judge_that_is_killed_misses_no_crossing_and_tells_none_twice(sqlite_url: str) -> None:
    store = Store(sqlite_url)
    chance = random.Random(7)
    with store.write() as session:
        session.execute(sa.text("CREATE TABLE told (alert_id TEXT NOT NULL, type TEXT NOT NULL)"))
        body = RuleBody.model_validate({"name": "rate", "kind": "tokens_per_minute", "threshold": 1000, "max_alerts": 1000})
        rulebook.create_rule(session, body, by=Author("tests"), now=datetime.now(UTC))
        factories.workspace(session)
    crossed: set[str] = set()
    for cycle in range(CYCLES):
        judge = subprocess.Popen([sys.executable, "-c", JUDGE, sqlite_url], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert judge.stdout is not None
        judge.stdout.readline()
        for number in range(DEPLOYMENTS // 3):
            name = f"d{cycle}-{number}"
            with store.write() as session:
                factories.event(session, factories.series(session, deployment=name), time=datetime.now(UTC), input_tokens=1000, output_tokens=0)
            crossed.add(name)
            until = time.monotonic() + chance.random() * 0.06
            while time.monotonic() < until:
                pass
        os.kill(judge.pid, signal.SIGKILL)
        judge.wait()
        judge.stdout.close()
    told: list[tuple[str, str]] = []

    def post(_session: object, *, alert: dict[str, str], type: str, **_: object) -> None:  # noqa: A002
        told.append((alert["id"], type))

    from collector.watch import Watcher

    # The last life: first what still fires, then, a while later, the end of everything.
    last = Watcher(post)  # type: ignore[arg-type]
    last.run(store, now=datetime.now(UTC))
    last.run(store, now=datetime.now(UTC) + timedelta(minutes=3))
    with store.read() as session:
        told += [(row[0], row[1]) for row in session.execute(sa.text("SELECT alert_id, type FROM told"))]
        alerts = {row[0]: json.loads(row[1])["deployment"] for row in session.execute(sa.text("SELECT id, scope FROM alert"))}
        states = {row[0] for row in session.execute(sa.text("SELECT state FROM alert WHERE rule = 'rate'"))}
        grouped = {row[0] for row in session.execute(sa.text("SELECT id FROM alert WHERE group_id IS NOT NULL AND group_id <> id"))}
    store.close()
    assert {alerts[one] for one in alerts} >= crossed
    assert Counter(alerts.values()) == Counter(crossed)
    # One firing and one end of each, but for those whose notice another alert of the same moment spoke for.
    assert Counter(told) == Counter((one, kind) for one in alerts if one not in grouped for kind in ("alert.firing", "alert.resolved"))
    assert states == {"resolved"}
