"""The queue of the ingest and its group commit: one thread takes all that waits and commits it as one.

A commit in flight is the window in which the next one gathers, so that a busy service shares its disk syncs and a
quiet one adds no delay.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Protocol

import psycopg
import sqlalchemy as sa
from sqlalchemy import exc

from collector import witnesses
from collector.ingest.batch import Batch, Verdict
from collector.ingest.commit import Commit
from collector.ingest.names import Names
from collector.ingest.rows import Numbers, StoredCall
from models.columns import to_microseconds
from models.errors import Unavailable
from models.identities import Identities
from models.store import Store, quick, unavailable_as_such

logger = logging.getLogger(__name__)

MAX_QUEUED_EVENTS = 200_000
MAX_COMMIT_EVENTS = 20_000
# What PostgreSQL says of a transaction that lost a race and may simply be tried again: deadlock, serialization.
_LOST_RACE = frozenset({"40P01", "40001"})
# As long as a service may still commit what waits when it is told to end; what was not answered is sent again.
_STOP_SECONDS = 4


def closed_months(connection: sa.Connection) -> frozenset[date]:
    """The first days of the months that are closed: an event of theirs that arrives now is flagged ``late``."""
    found = quick(connection, "SELECT month FROM month_close WHERE reopened_at IS NULL").fetchall()
    # SQLite keeps a date as its text.
    return frozenset(month if isinstance(month, date) else date.fromisoformat(month) for (month,) in found)


class Link(Protocol):
    """What is told of every commit's calls, in its transaction and at its end; it must be quick."""

    def __call__(self, connection: sa.Connection, calls: Sequence[StoredCall], *, received: int, is_sqlite: bool) -> None: ...


Told = Callable[[Verdict | Unavailable], None]


@dataclass(slots=True)
class _Waiting:
    batch: Batch
    told: Told
    is_wanted: Callable[[], bool] | None = None  # asked once, when its turn comes


class _Stale(Exception):
    """A connection that was kept had ended."""


class Ingest:
    """The writer of events of one process. ``now`` is the server's clock."""

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], datetime],
        closed: Callable[[sa.Connection], frozenset[date]] = closed_months,
        link: Link | None = witnesses.link,
    ) -> None:
        self._store = store
        self._link = link
        self._now = now
        self._closed = closed
        self._waiting: deque[_Waiting] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        # Kept from commit to commit: to take one from the pool costs as much as a small commit's own statements.
        self._connection: sa.Connection | None = None
        self._closings = store.closings
        self._names = Names(is_sqlite=store.is_sqlite)
        self._numbers = Numbers(is_sqlite=store.is_sqlite)
        self._identities = Identities(is_sqlite=store.is_sqlite)
        self._told: list[Callable[[], None]] = []
        self._ending: list[Callable[[], None]] = []
        self.counters: dict[str, int] = {"accepted": 0, "duplicates": 0, "rejected": 0, "commits": 0, "failures": 0}

    # -- the queue ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin committing."""
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Commit what waits, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=_STOP_SECONDS)
        for told in self._ending:
            told()

    def when_stopped(self, told: Callable[[], None]) -> None:
        """Have ``told`` called once the last commit is made."""
        self._ending.append(told)

    def submit(self, batch: Batch) -> Future[Verdict]:
        """Queue a batch; the future is done once its events are on the disk, or fails with ``Unavailable``."""
        asked: Future[Verdict] = Future()

        def told(found: Verdict | Unavailable) -> None:
            if isinstance(found, Unavailable):
                asked.set_exception(found)
            else:
                asked.set_result(found)

        # A request that is given up can cancel its batch until its turn comes; one that did needs no answer.
        self._queue(_Waiting(batch, told, asked.set_running_or_notify_cancel))
        return asked

    def enqueue(self, batch: Batch, told: Told) -> None:
        """Queue a batch for who needs no future; ``told`` is called in the writer's thread and must not fail."""
        self._queue(_Waiting(batch, told))

    def _queue(self, waiting: _Waiting) -> None:
        size = max(1, len(waiting.batch.items))
        with self._changed:
            if self._stopping:
                raise Unavailable("the service is stopping; send the same again in a moment", retry_after_seconds=2)
            if self._queued and self._queued + size > MAX_QUEUED_EVENTS:
                raise Unavailable(f"{self._queued} events wait to be stored; send the same again in a moment", retry_after_seconds=1)
            self._waiting.append(waiting)
            self._queued += size
            self._changed.notify()

    def when_answered(self, told: Callable[[], None]) -> None:
        """Have ``told`` called in the writer's thread each time it has answered everything of a commit; it must not fail."""
        self._told.append(told)

    def is_answering(self) -> bool:
        """Whether this is the writer's thread, so that ``when_answered`` follows."""
        return threading.current_thread() is self._thread

    def accept(self, batch: Batch) -> Verdict:
        """Submit and wait: for commands and tests."""
        return self.submit(batch).result()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    break
                taken: list[_Waiting] = []
                events = 0
                while self._waiting and (not taken or events + len(self._waiting[0].batch.items) <= MAX_COMMIT_EVENTS):
                    taken.append(self._waiting.popleft())
                    events += max(1, len(taken[-1].batch.items))
                self._queued -= events
            taken = [waiting for waiting in taken if waiting.is_wanted is None or waiting.is_wanted()]
            if taken:
                self._commit_all(taken)
                for told in self._told:
                    told()
        self._hang_up()

    def _commit_all(self, taken: list[_Waiting]) -> None:
        try:
            verdicts = self._commit([waiting.batch for waiting in taken])
        except Exception as fault:
            self._forget()
            self.counters["failures"] += 1
            if len(taken) > 1 and not isinstance(fault, Unavailable):
                # One batch of several may be at fault: the neighbours must not pay for it.
                for waiting in taken:
                    self._commit_all([waiting])
                return
            if not isinstance(fault, Unavailable):
                logger.exception("usage could not be stored")
                fault = Unavailable("the usage could not be stored; the fault is in the service's log")
            for waiting in taken:
                waiting.told(fault)
            return
        for waiting, verdict in zip(taken, verdicts, strict=True):
            self.counters["accepted"] += verdict.accepted
            self.counters["duplicates"] += verdict.duplicates
            self.counters["rejected"] += len(verdict.rejected)
            waiting.told(verdict)
        self.counters["commits"] += 1

    # -- one commit -----------------------------------------------------------------------------

    def _commit(self, batches: Sequence[Batch]) -> list[Verdict]:
        for _ in range(5):
            try:
                return self._attempt(batches)
            except (exc.IntegrityError, sqlite3.IntegrityError, psycopg.IntegrityError):
                pass  # Another process was quicker with one of these events.
            except _Stale:
                pass  # The connection ended while nobody used it.
            except Unavailable as fault:
                cause = getattr(fault.__cause__, "orig", fault.__cause__)
                if getattr(cause, "sqlstate", None) not in _LOST_RACE:
                    raise
            # Look again.
            self._forget()
        raise Unavailable("other writers kept storing the same events; send them again", retry_after_seconds=1)

    def _attempt(self, batches: Sequence[Batch]) -> list[Verdict]:
        if self._closings != self._store.closings:
            self._hang_up()
        was_open = self._connection is not None
        with unavailable_as_such():
            if self._connection is None:
                self._closings = self._store.closings
                self._connection = self._store.writer()
            connection = self._connection
            driver: Any = connection.connection.driver_connection
            try:
                with connection.begin() as transaction:
                    verdicts = self._taken(connection, batches)
                    transaction.commit()
            except BaseException as fault:
                self._hang_up()
                if was_open and not self._store.is_sqlite and driver.closed:
                    raise _Stale from fault
                raise
        self._identities.keep()
        return verdicts

    def _taken(self, connection: sa.Connection, batches: Sequence[Batch]) -> list[Verdict]:
        received = to_microseconds(self._now())
        commit = Commit(
            connection,
            self._names,
            self._identities,
            self._numbers,
            is_sqlite=self._store.is_sqlite,
            received=received,
            closed=self._closed(connection),
        )
        verdicts = commit.judge(batches)
        commit.write()
        if self._link is not None:
            calls = commit.calls()
            if calls:
                self._link(connection, calls, received=received, is_sqlite=self._store.is_sqlite)
        return verdicts

    def _hang_up(self) -> None:
        """Give the connection back; the pool looks at it before it is used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _forget(self) -> None:
        """A transaction was rolled back: what was learnt in it may not be so."""
        self._names.forget()
        self._numbers.forget()
        self._identities.forget()
