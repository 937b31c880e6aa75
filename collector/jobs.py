"""What runs on a schedule, in UTC. Jobs live in code: a stored job would be a pickle that anyone with the database could swap.

Time is cut into slots as long as a job's interval. Of any number of processes on one database one runs each slot, under
a fenced lease; a slot that was missed (a stall, a restart) is run once, late. Every job may run twice with the same
outcome: a process that dies in the middle leaves its slot to the next one.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from apscheduler.schedulers.background import BackgroundScheduler

from collector import pricing
from collector.corrections import reverse_twins
from collector.reports import delivery
from collector.watch import Learner, Watcher, standing_watch
from collector.webhooks.setup import Telling
from models import leases
from models.errors import DomainError
from models.store import Store, unavailable_as_such

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every so often; ``run`` takes the store and the time."""

    name: str
    every: timedelta
    run: Callable[[Store, datetime], None]
    # How long a process may take before another one thinks it dead.
    lasts: timedelta = timedelta(minutes=15)
    # Its slots begin this much later than those of others of its length: jobs that ask the same service do not ask at once.
    offset: timedelta = timedelta(0)


class NotYet(Exception):
    """Raised by a job that is to be run again at a known time, before its next slot or instead of it."""

    def __init__(self, until: datetime, why: str) -> None:
        super().__init__(why)
        self.until, self.why = until, why


def standing(*, public_url: str = "") -> list[Job]:
    """Every job of this software."""
    watcher = standing_watch(public_url=public_url)
    learner = Learner()
    return [
        # An event is judged within 15 seconds of its arrival.
        Job("watch", timedelta(seconds=5), lambda store, now: watch(watcher, store, now=now)),
        Job("limits", timedelta(seconds=10), lambda store, now: learner.run(store, now=now)),
        Job("optimize", timedelta(hours=6), lambda store, _now: optimize(store)),
        Job("bundled_prices", timedelta(hours=24), lambda store, now: bundled_prices(store, now=now)),
        # The same call sent again with a time far from its first one: counted until the next look.
        Job("twins", timedelta(hours=24), twins),
    ]


def reporting(telling: Telling) -> list[Job]:
    """Reports that go out by themselves, and their files, which are soon there also where somebody waits for them."""
    return [
        Job("reports", timedelta(minutes=5), lambda store, now: delivery.run(store, now, public_url=telling.public_url)),
        Job("report_files", timedelta(seconds=15), lambda store, now: delivery.write_files(store, telling.places, now=now)),
    ]


def create_scheduler(store: Store, *, now: Callable[[], datetime], more: Sequence[Job] = (), public_url: str = "") -> BackgroundScheduler:
    """The schedule of a process, not started yet; ``more`` are the jobs that settings ask for."""
    scheduler = BackgroundScheduler(
        timezone=UTC,
        # The default grace of one second would skip a run after any stall.
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    holder = f"{socket.gethostname()}/{os.getpid()}"
    try:
        with store.write() as session:
            leases.let_go(session, _is_gone, now=now())
    except DomainError as fault:
        logger.warning("the leases of processes that are gone were not ended: %s; they end by themselves", fault.message)
    for job in (*standing(public_url=public_url), *more):
        # Looked at more often than it runs: a slot that a restart has missed is not to wait for a whole interval.
        seconds = min(job.every, _LOOK).total_seconds()
        scheduler.add_job(run_slot, "interval", seconds=seconds, args=(job, store, now), kwargs={"holder": holder}, id=job.name)
    return scheduler


def _is_gone(holder: str) -> bool:
    """Whether a holder was a process of this machine that is no more. One of our own number was our predecessor: we hold nothing yet."""
    host, _, number = holder.rpartition("/")
    if host != socket.gethostname() or not number.isdigit():
        return False
    if int(number) == os.getpid():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


_LOOK = timedelta(minutes=1)


def run_slot(job: Job, store: Store, now: Callable[[], datetime], *, holder: str) -> bool:
    """Run the job if its slot is free; gives whether it was run here."""
    if store.is_sqlite and job.every < _LOOK:
        # One process owns a SQLite file: there is nobody to share with, and no need to write that often.
        _guarded(job, store, now)
        return True
    try:
        with store.write() as session:
            fence = leases.take(session, job.name, every=job.every, holder=holder, now=now(), lasts=job.lasts, offset=job.offset)
        if fence is None:
            return False
        until, error = None, ""
        try:
            error = _guarded(job, store, now)
        except NotYet as later:
            until, error = later.until, later.why
            logger.warning("job %s is run again at %s: %s", job.name, until.isoformat(timespec="seconds"), error)
        with store.write() as session:
            if until is not None:
                is_ours = leases.put_off(session, job.name, fence, until=until, error=error)
            else:
                is_ours = leases.finish(session, job.name, fence, now=now(), error=error)
            if not is_ours:
                logger.warning("job %s took longer than its lease of %s; another process has taken over", job.name, job.lasts)
    except DomainError as fault:
        logger.warning("job %s could not be taken: %s", job.name, fault.message)
        return False
    return True


def _guarded(job: Job, store: Store, now: Callable[[], datetime]) -> str:
    """Run it; gives what went wrong."""
    try:
        job.run(store, now())
    except NotYet:
        raise
    except DomainError as fault:
        logger.warning("job %s did not run: %s; it is tried again at its next time", job.name, fault.message)
        return fault.message
    except Exception as fault:
        logger.exception("job %s failed", job.name)
        return f"{type(fault).__name__}; see the log"
    return ""


def watch(watcher: Watcher, store: Store, *, now: datetime) -> None:
    """Judge every rule and budget."""
    watcher.run(store, now=now)


def optimize(store: Store) -> None:
    """Let the database look at its own statistics."""
    with unavailable_as_such(), store.connection() as connection:
        if store.is_sqlite:
            # Looks at a sample: the write lock is held meanwhile.
            connection.exec_driver_sql("PRAGMA analysis_limit = 400")
            connection.exec_driver_sql("PRAGMA optimize")
        else:
            connection.execute(sa.text("ANALYZE"))
        connection.commit()


def bundled_prices(store: Store, *, now: datetime) -> None:
    """Bring in the price list of this version, if it is not there yet."""
    with store.write() as session:
        pricing.ensure_bundled(session, now=now)


def twins(store: Store, now: datetime) -> None:
    """Take back events that are the same call sent again more than an hour apart."""
    reverse_twins(store, now=now)
