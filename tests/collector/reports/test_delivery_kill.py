"""A sender that is killed between any two of its steps, on both databases: the next one goes on, and each slot is sent once."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from models.notices import Delivery
from models.reports import ReportSnapshot
from models.schedules import ReportDelivery
from models.store import Store
from tests.collector.reports.test_delivery import NOW, receiver, schedule, world

pytestmark = pytest.mark.walk

# The sending process: for each step that it is told it forks one that dies there; "" lets it live.
SENDER = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from collector.azure.client import AzureSettings
from collector.reports import delivery, paper, places
from models.store import Store

url, root, at = sys.argv[1:]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(function):
    def dying(*given, **more):
        function(*given, **more)
        die()
    return dying

def send(step):
    match step:
        case "drafted": delivery.send = die
        case "kept": delivery.enqueue = die
        case "not committed": delivery.send = after(delivery.send)
        case "committed": delivery.write_files = die
        case "first file": places._replace = after(places._replace)
        case "within a file": places.os.replace = die
        case "every file": delivery._record = die
    now = datetime.fromisoformat(at)
    store = Store(url)
    delivery.run(store, now)
    into = places.Places(Path(root), AzureSettings("https://management.azure.com", "https://prices.azure.com", "default", (), ()))
    delivery.write_files(store, into, now=now)

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        send(line.strip())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
BEFORE, AFTER = ("drafted", "kept", "not committed"), ("committed", "first file", "within a file", "every file")


@contextmanager
def sending(store: Store, root: Path) -> Iterator[Callable[[str], int]]:
    """A sender that is told where to die; gives how it ended."""
    url = store.url.set(drivername="sqlite" if store.is_sqlite else "postgresql").render_as_string(hide_password=False)
    at = (NOW + timedelta(minutes=5)).isoformat()
    with subprocess.Popen(
        [sys.executable, "-c", SENDER, url, str(root), at], cwd=Path(__file__).parents[3], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said, told = process.stdin, process.stdout
        assert told.readline() == "ready\n"

        def run(step: str) -> int:
            said.write(f"{step}\n")
            said.flush()
            return int(told.readline())

        yield run
        said.close()


def test_a_sender_that_is_killed_at_any_step_sends_each_slot_once(store: Store, tmp_path: Path) -> None:
    with store.write() as session:
        world(session)
        receiver(session)
        schedule(session, folder="weekly")
    with sending(store, tmp_path) as run:
        for step in BEFORE:
            assert run(step) == -signal.SIGKILL, step
            with store.read() as session:
                assert [len(session.exec(select(table)).all()) for table in (ReportSnapshot, ReportDelivery, Delivery)] == [0, 0, 0], step
        for step in AFTER:
            assert run(step) == -signal.SIGKILL, step
            with store.read() as session:
                (row,) = session.exec(select(ReportDelivery)).all()
                assert (row.slot, row.folder_state, len(session.exec(select(Delivery)).all())) == ("weekly-2026-W46", "pending", 1), step
        assert run("") == 0
    with store.read() as session:
        (row,) = session.exec(select(ReportDelivery)).all()
        assert (row.folder_state, len(session.exec(select(Delivery)).all()), len(session.exec(select(ReportSnapshot)).all())) == ("written", 1, 1)
        base = f"meterbridge-{row.snapshot_id}"
    manifest = json.loads((tmp_path / "weekly" / f"{base}.manifest.json").read_text())
    for file in manifest["files"]:
        assert hashlib.sha256((tmp_path / "weekly" / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    # Nothing half is left under a name that anybody reads, and nothing of the dead under another.
    assert sorted(path.name for path in (tmp_path / "weekly").iterdir()) == sorted(f"{base}.{form}" for form in ("json", "csv", "html", "pdf", "manifest.json"))
