"""The process that reads hard budgets: it says what the ledger says, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from collector import rulebook
from collector.rulebook import Author, BudgetBody
from collector.standings import Standings, hard_budgets
from models.errors import Unavailable
from models.ledger.budgets import hard_standings
from models.store import Store
from tests import factories as make
from tests.walks.service import environment, until

NOW = make.NOW


def furnish(store: Store) -> None:
    with store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1234567.891234", "1.00")
        make.event(session, time=NOW - timedelta(hours=2), input_tokens=10, output_tokens=0)
        for name, scope in (("chat", {"workspace": "ws-east", "deployment": ["llama-chat", "other"]}), ("all", {})):
            said = {
                "name": name, "scope": scope, "amount": "100.00", "currency": "USD", "period": "month", "time_zone": "Europe/Berlin", "basis": "best",
                "steps": [100], "hard": True,
            }  # fmt: skip
            rulebook.create_budget(session, BudgetBody.model_validate(said), by=Author("tests"), now=NOW)


def test_the_process_says_what_the_ledger_says_to_the_digit(store: Store) -> None:
    furnish(store)
    asked = Standings(store)
    try:
        told = [asked.read(NOW), asked.read(NOW)]
    finally:
        asked.end()
    with store.read() as session:
        known = tuple(hard_standings(session, hard_budgets(session), now=NOW))
    assert told == [known, known]
    assert [(one.name, one.spent, one.remaining) for one in known] == [(name, Decimal("12.34567891234"), Decimal("87.65432108766")) for name in ("chat", "all")]


def test_a_database_that_cannot_be_read_is_a_fault_with_its_reason(tmp_path: Path) -> None:
    asked = Standings(Store(f"sqlite:///{tmp_path}/empty.db"))
    try:
        with pytest.raises(Unavailable, match="hard budgets could not be read"):
            asked.read(NOW)
    finally:
        asked.end()


def test_the_process_ends_with_a_parent_that_is_killed(sqlite_store: Store) -> None:
    parent = (
        "import sys, time; from datetime import datetime, UTC; from collector.standings import Standings; from models.store import Store; "
        "found = Standings(Store(sys.argv[1])); found.read(datetime.now(UTC)); print(found._process.pid, flush=True); time.sleep(600)"
    )
    url = sqlite_store.url.render_as_string(hide_password=False)
    with subprocess.Popen([sys.executable, "-c", parent, url], stdout=subprocess.PIPE, text=True, env=environment(None)) as process:
        try:
            assert process.stdout is not None
            child = int(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGKILL)
    until(lambda: not is_running(child), within=30, what="the end of the process")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that ended and that nobody asked after is no longer running, either.
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
