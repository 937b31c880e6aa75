"""Hard budgets, read by a process of its own.

What a month has cost is a sum that takes a processor for a tenth of a second and more. In a thread it would hold up every
answer of the service meanwhile, as one interpreter runs one thread at a time; beside it, at a lower priority, nobody waits.
The process reads the database and nothing else, is told one instant a line, answers with one line, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlmodel import Session, col, select

from models.alerts import Budget
from models.errors import DomainError, Unavailable
from models.ledger.budgets import HardStanding, hard_standings
from models.periods import Period
from models.store import Store

_NICENESS = 10
_END_SECONDS = 5


def hard_budgets(session: Session) -> Sequence[Budget]:
    """The hard budgets that stand."""
    return session.exec(select(Budget).where(col(Budget.deleted_at).is_(None), col(Budget.is_hard))).all()


class Standings:
    """The parent's end: one question at a time, from one thread."""

    def __init__(self, store: Store) -> None:
        self._url = store.url.render_as_string(hide_password=False)
        self._process: subprocess.Popen[str] | None = None

    def read(self, now: datetime) -> tuple[HardStanding, ...]:
        """How every hard budget stands; starts the process if there is none."""
        try:
            process = self._process
            if process is None:
                process = self._process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{now.isoformat()}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise Unavailable("the process that reads hard budgets has ended")
            said = json.loads(line)
            if "fault" in said:
                raise Unavailable(f"hard budgets could not be read: {said['fault']}")
            return tuple(_standing(one) for one in said["standings"])
        except (OSError, ValueError) as fault:
            raise Unavailable(f"the process that reads hard budgets does not answer: {fault}") from fault

    def _started(self) -> subprocess.Popen[str]:
        # The URL may hold a password: it is in no argument, which others could list.
        process = subprocess.Popen([sys.executable, "-m", "collector.standings"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        assert process.stdin is not None
        process.stdin.write(f"{self._url}\n")
        return process

    def end(self) -> None:
        """End the process; who waits for its answer gets none. May be called from any thread."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _said(one: HardStanding) -> dict[str, object]:
    return {
        "budget_id": one.budget_id,
        "name": one.name,
        "scope": dict(one.scope),
        "amount": str(one.amount),
        "currency": one.currency,
        "spent": str(one.spent),
        "ceiling": str(one.ceiling),
        "remaining": str(one.remaining),
        "start": one.period.start.isoformat(),
        "end": one.period.end.isoformat(),
    }


def _standing(said: dict[str, Any]) -> HardStanding:
    period = Period(datetime.fromisoformat(said["start"]), datetime.fromisoformat(said["end"]))
    amount, spent, ceiling, remaining = (Decimal(said[name]) for name in ("amount", "spent", "ceiling", "remaining"))
    return HardStanding(said["budget_id"], said["name"], said["scope"], amount, said["currency"], spent, ceiling, remaining, period)


def main() -> int:
    """Answer until the parent has no more questions, or is gone."""
    # Ctrl-C is meant for the parent, which ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    store = Store(sys.stdin.readline().strip())
    for line in sys.stdin:
        now = datetime.fromisoformat(line.strip())
        try:
            with store.read() as session:
                answer: dict[str, object] = {"standings": [_said(one) for one in hard_standings(session, hard_budgets(session), now=now)]}
        except DomainError as fault:
            answer = {"fault": fault.message}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
