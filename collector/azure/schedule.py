"""When Azure is asked without being told: bills twice a day, inventory and quotas more often, settled months once a week.

Cost details do not draw on the query API's units (QPU); what does is a subscription without them, one unit a month of
data. Azure refreshes cost data every four hours and asks to be asked about once a day.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from collector.azure import costs, sync
from collector.azure.client import Azure, AzureSettings, is_set_up
from collector.jobs import Job
from collector.settings import Settings
from models import sources
from models.errors import DomainError, UpstreamError
from models.sources import PullState
from models.store import Store

logger = logging.getLogger(__name__)

COSTS_EVERY = timedelta(hours=12)
WATCHED_EVERY = timedelta(days=7)
EVERY: dict[sync.What, timedelta] = {"costs": COSTS_EVERY, "inventory": timedelta(hours=1), "quotas": timedelta(minutes=15), "prices": timedelta(days=1)}
_LASTS = timedelta(hours=2)


def jobs(settings: Settings) -> list[Job]:
    """The pulls that the settings ask for; none where they name no Azure."""
    if not is_set_up(settings):
        return []
    asked = AzureSettings.of(settings)
    found = [Job(f"azure_{what}", every, _pulling(asked, what), _LASTS) for what, every in EVERY.items() if what in ("costs", "prices") or asked.subscriptions]
    return [*found, Job("azure_settled_months", WATCHED_EVERY, _watching(asked), _LASTS)]


def _pulling(asked: AzureSettings, what: sync.What) -> Callable[[Store, datetime], None]:
    def run(store: Store, now: datetime) -> None:
        until = _left_alone_until(store, what)
        if until is not None and until > now:
            raise UpstreamError(f"Azure asked to be left alone until {until:%H:%M} UTC", retryable=True)
        _pull(store, asked, what, None)

    return run


def _watching(asked: AzureSettings) -> Callable[[Store, datetime], None]:
    """Settled months, one a week in turn: Azure may still change its mind, and a closed month then shows adjustments."""

    def run(store: Store, now: datetime) -> None:
        months = costs.watched_months(store, now=now)
        if months:
            week = now.isocalendar().week
            _pull(store, asked, "costs", [months[week % len(months)]])

    return run


def _pull(store: Store, asked: AzureSettings, what: sync.What, months: list[date] | None) -> None:
    clock = lambda: datetime.now(UTC)  # noqa: E731 - what a job waits for passes on the real clock
    with Azure(asked, now=clock) as azure:
        failures = sync.pull(store, azure, what, months=months, now=clock, say=logger.info, progress=lambda _done, _of: None)
    if failures:
        raise UpstreamError("; ".join(failures)[:2000], retryable=True)


def _left_alone_until(store: Store, what: sync.What) -> datetime | None:
    try:
        with store.read() as session:
            waits = [run.next_at for run in sources.last_runs(session) if run.source == what and run.state == PullState.RESCHEDULED and run.next_at is not None]
    except DomainError:
        return None
    return max(waits, default=None)
