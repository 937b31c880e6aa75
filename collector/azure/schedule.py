"""When Azure is asked without being told: bills twice a day, inventory and quotas more often, settled months once a week.

Every billing scope has a job of its own, and their slots are spread evenly: the query API's budget (12 units in ten
seconds, 60 a minute, 600 an hour; one unit a month of data) is the whole tenant's. Azure refreshes cost data every four
hours and asks to be asked about once a day. A run that was throttled is taken up when Azure allows it again, one that
failed after 5, 15 and 45 minutes; when that is stands in the job's lease, so that it outlives the process and is done once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from collector.azure import costs, sync
from collector.azure.client import Azure, AzureSettings, is_set_up
from collector.jobs import Job, NotYet
from collector.settings import Settings
from models import leases, sources
from models.errors import DomainError, UpstreamError
from models.leases import pull_job
from models.periods import DAY, day_start, month_period, month_start, settles_at, utc_day
from models.sources import PullState
from models.store import Store

logger = logging.getLogger(__name__)

EVERY: Mapping[sync.What, timedelta] = sources.PULLED_EVERY
COSTS_EVERY = EVERY["costs"]
WATCHED_EVERY = timedelta(days=7)
# An hour of Azure Monitor is whole a quarter past; asked sooner, it would come an hour late.
_OFFSETS: dict[sync.What, timedelta] = {"metrics": timedelta(minutes=17)}
_NONE = timedelta(0)
# A pull that failed for a reason that may pass is tried again so much later each time, and then at its next slot.
_AGAIN_AFTER = (timedelta(minutes=5), timedelta(minutes=15), timedelta(minutes=45))
_LASTS = timedelta(hours=2)
_SETTLED = "settled_months"


def jobs(settings: Settings) -> list[Job]:
    """The pulls that the settings ask for; none where they name no Azure."""
    if not is_set_up(settings):
        return []
    asked = AzureSettings.of(settings)
    found = [
        Job(pull_job(what), every, _pulling(asked, what, _Slots(every, _OFFSETS.get(what, _NONE))), _LASTS, _OFFSETS.get(what, _NONE))
        for what, every in EVERY.items()
        if what == "prices" or (what != "costs" and asked.subscriptions)
    ]
    for scope, open_offset, settled_offset in _spread(asked.scopes):
        one = replace(asked, scopes=(scope,))
        found += [
            Job(pull_job("costs", scope), COSTS_EVERY, _pulling(one, "costs", _Slots(COSTS_EVERY, open_offset)), _LASTS, open_offset),
            Job(pull_job(_SETTLED, scope), WATCHED_EVERY, _watching(one, _Slots(WATCHED_EVERY, settled_offset)), _LASTS, settled_offset),
        ]
    return found


def _spread(scopes: Sequence[str]) -> list[tuple[str, timedelta, timedelta]]:
    """Each scope with how much later than the others its slots begin: those of its running month, and those of settled ones."""
    step, week = COSTS_EVERY / max(len(scopes), 1), WATCHED_EVERY / max(len(scopes), 1)
    # Half a step aside, so that the two never meet.
    return [(scope, step * place, week * place + step / 2) for place, scope in enumerate(scopes)]


@dataclass(frozen=True, slots=True)
class Planned:
    """A pull of one month of one scope; where only the query API has it, it costs one unit of the tenant's budget."""

    at: datetime
    scope: str
    month: date | None  # None: the settled month whose turn it is


def day_plan(scopes: Sequence[str], day: date) -> list[Planned]:
    """Every month of costs that is asked for on a UTC day when all goes well, in order of time."""
    begin = day_start(day)
    this = month_start(day)
    before = month_start(this - DAY)
    found: list[Planned] = []
    for scope, open_offset, settled_offset in _spread(scopes):
        # The first run after the month before has settled is the last that asks for it.
        for at in _slots(begin, COSTS_EVERY, open_offset):
            is_settled = at - COSTS_EVERY >= settles_at(before)
            found += [Planned(at, scope, month) for month in ((this,) if is_settled else (before, this))]
        found += [Planned(at, scope, None) for at in _slots(begin, WATCHED_EVERY, settled_offset)]
    return sorted(found, key=lambda one: (one.at, one.scope, one.month or date.min))


def _slots(begin: datetime, every: timedelta, offset: timedelta) -> list[datetime]:
    """The beginnings of slots within the day that begins then."""
    slot = leases.slot_of(begin - timedelta(microseconds=1), every, offset) + 1
    found: list[datetime] = []
    while (at := leases.slot_start(slot, every, offset)) < begin + DAY:
        found.append(at)
        slot += 1
    return found


@dataclass(frozen=True, slots=True)
class _Slots:
    """The slots of a job of ours, as the lease cuts them."""

    every: timedelta
    offset: timedelta = timedelta(0)

    def began(self, now: datetime) -> datetime:
        return leases.slot_start(leases.slot_of(now, self.every, self.offset), self.every, self.offset)


def _pulling(asked: AzureSettings, what: sync.What, slots: _Slots) -> Callable[[Store, datetime], None]:
    def run(store: Store, now: datetime) -> None:
        _wait_if_told(store, what, now=now)
        there: set[date | None] = set()
        if what == "costs":
            # A run that is taken up again in its slot asks only for what did not come.
            with store.read() as session:
                there, _ = sources.ended_since(session, what, asked.scopes[0], slots.began(now))
        _pull(store, asked, what, slots, besides=there)

    return run


def _watching(asked: AzureSettings, slots: _Slots) -> Callable[[Store, datetime], None]:
    """Settled months, one a week in turn: Azure may still change its mind, and a closed month then shows adjustments."""

    def run(store: Store, now: datetime) -> None:
        months = costs.watched_months(store, now=now)
        if months:
            _wait_if_told(store, "costs", now=now)
            week = now.isocalendar().week
            _pull(store, asked, "costs", slots, months=[months[week % len(months)]])

    return run


def _pull(
    store: Store, asked: AzureSettings, what: sync.What, slots: _Slots, *, months: list[date] | None = None, besides: Collection[date | None] = ()
) -> None:
    with Azure(asked, now=_clock) as azure:
        failures = sync.pull(store, azure, what, months=months, besides=besides, now=_clock, say=logger.info, progress=lambda _done, _of: None)
    if not failures:
        return
    now = _clock()
    _wait_if_told(store, what, now=now)
    said = "; ".join(failures)[:2000]
    scope = asked.scopes[0] if what == "costs" else ""
    with store.read() as session:
        # A week holds many runs for the running month too, whose failures are not a settled one's. Its bills may begin within the month before.
        about = (months[0] - timedelta(days=31), utc_day(month_period(months[0]).end)) if months else None
        _, tries = sources.ended_since(session, what, scope, slots.began(now), about=about)
    if any(each.passes for each in failures) and 0 < tries <= len(_AGAIN_AFTER):
        until = now + _AGAIN_AFTER[tries - 1]
        # Not beyond its slot: the next one begins with all its tries.
        if until < slots.began(now) + slots.every:
            raise NotYet(until, f"{said}; tried again at {until:%H:%M} UTC")
    raise UpstreamError(said, retryable=True)


def _clock() -> datetime:
    """What a job waits for passes on the real clock."""
    return datetime.now(UTC)


def _wait_if_told(store: Store, what: sync.What, *, now: datetime) -> None:
    """Put the run off where Azure asked to be left alone: it is the tenant that is throttled, so every scope of it waits."""
    until = _left_alone_until(store, what)
    if until is not None and until > now:
        raise NotYet(until, f"Azure asked to be left alone until {until:%H:%M} UTC")


def _left_alone_until(store: Store, what: sync.What) -> datetime | None:
    try:
        with store.read() as session:
            waits = [run.next_at for run in sources.last_runs(session) if run.source == what and run.state == PullState.RESCHEDULED and run.next_at is not None]
    except DomainError:
        return None
    return max(waits, default=None)
