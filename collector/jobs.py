"""What runs on a schedule, in UTC. Jobs live in code: a stored job would be a pickle that anyone with the database could swap.

Every job may run twice with the same outcome; after a stall a missed one runs once. A restart begins the intervals anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from apscheduler.schedulers.background import BackgroundScheduler

from collector import pricing
from collector.corrections import reverse_twins
from collector.watch import Watcher, standing_watch
from models.errors import DomainError
from models.store import Store, unavailable_as_such

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do every so often; ``run`` takes the store and the time."""

    name: str
    every: timedelta
    run: Callable[[Store, datetime], None]


def standing() -> list[Job]:
    """Every job of this software."""
    watcher = standing_watch()
    return [
        # An event is judged within 15 seconds of its arrival.
        Job("watch", timedelta(seconds=5), lambda store, now: watch(watcher, store, now=now)),
        Job("optimize", timedelta(hours=6), lambda store, _now: optimize(store)),
        Job("bundled_prices", timedelta(hours=24), lambda store, now: bundled_prices(store, now=now)),
        # The same call sent again with a time far from its first one: counted until the next look.
        Job("twins", timedelta(hours=24), twins),
    ]


def create_scheduler(store: Store, *, now: Callable[[], datetime], more: Sequence[Job] = ()) -> BackgroundScheduler:
    """The schedule of a process, not started yet; ``more`` are the jobs that settings ask for."""
    scheduler = BackgroundScheduler(
        timezone=UTC,
        # The default grace of one second would skip a run after any stall.
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    for job in (*standing(), *more):
        scheduler.add_job(_guarded, "interval", seconds=job.every.total_seconds(), args=(job, store, now), id=job.name)
    return scheduler


def _guarded(job: Job, store: Store, now: Callable[[], datetime]) -> None:
    try:
        job.run(store, now())
    except DomainError as fault:
        logger.warning("job %s did not run: %s; it is tried again at its next time", job.name, fault.message)


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
