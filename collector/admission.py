"""Whether a call may go: quotas and hard budgets, answered from memory.

What was used in the last minute is read from the database every quarter of a second while anybody asks, hard budgets
every two seconds (or a tenth of the time, where they take long); between, answers come from what was read. Who asks seldom
waits for a fresh look; under load a thread looks at the minute and a process of its own at hard budgets, and nobody waits.
Both go on for a minute after the load, the thread once a second: a load that comes back finds them at work. Nothing is
reserved: calls that were admitted and have not been reported yet do not count, so a burst may overshoot by what runs at the
same time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlmodel import Session

from collector.standings import Standings, hard_budgets
from models import money
from models.columns import to_microseconds
from models.errors import DomainError
from models.ledger import rates
from models.ledger.budgets import HardStanding, hard_standings
from models.ledger.world import World
from models.lifecycle import context_tokens
from models.limits import Counting, Limits, limits_known
from models.matching import Identity, Registry
from models.periods import rfc3339
from models.prices import model_key
from models.resources import Mode
from models.store import Store
from models.usage import MINUTE_SECONDS, Operation

logger = logging.getLogger(__name__)

_FRESH_SECONDS = 0.25
# From so many questions between two looks on, a thread looks; what it read is answered from up to so old.
_BUSY, _OLDEST_SECONDS = 5, 5.0
# So long after a load the thread looks as often as in it, and then so seldom, until nobody has needed it for long.
_LINGER_SECONDS, _IDLE_SECONDS, _SPARE_SECONDS = 5.0, 1.0, 60.0
# Of every look the last seconds are read again, the whole minute once a second: few events are reported later than this.
_RECENT_SECONDS, _MINUTE_EVERY_SECONDS = 10, 1.0
_BUDGETS_SECONDS = 2.0
_BUDGETS_SHARE = 10
# A process that has not told of hard budgets for so long has failed.
_OLDEST_BUDGETS_SECONDS = 60.0
# The registry and the series change seldom and cost most to read.
_WORLD_SECONDS = 5.0
_MOST_NAMES = 10_000
_MEASURES: tuple[rates.Measure, ...] = ("tokens_per_minute", "requests_per_minute")


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that wants to go; ``tokens`` is what it may use at most."""

    workspace: str
    deployment: str
    tokens: int
    application: str | None = None
    team: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """May it go? ``remaining`` are the tokens left of this minute (None: no limit)."""

    allow: bool
    reason: str | None
    retry_after_seconds: int | None
    remaining: int | None
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Denied:
    """Something whose calls are denied now; workspace and deployment None are any."""

    workspace: str | None
    deployment: str | None
    reason: str
    retry_after_seconds: int | None


_Place = tuple[str, str]  # workspace and deployment, without case


@dataclass(slots=True)
class _World:
    """The registry and which series is whose, while they are fresh."""

    registry: Registry
    place_of: dict[int, _Place] = field(default_factory=dict)
    reserves: dict[int, rates.Reserve] = field(default_factory=dict)
    names: dict[_Place, tuple[str, str]] = field(default_factory=dict)
    identities: dict[tuple[str, str], Identity] = field(default_factory=dict)  # what was asked for, and what it means

    def identity(self, workspace: str, deployment: str, at: datetime) -> Identity:
        """What a caller's names mean."""
        found = self.identities.get((workspace, deployment))
        if found is None:
            found = self.registry.resolve(workspace=workspace, endpoint=None, deployment=deployment, model=None, at=at)
            if len(self.identities) < _MOST_NAMES:
                self.identities[workspace, deployment] = found
        return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read: per deployment what each second of the last minute used."""

    at: datetime
    second: int
    used: Mapping[_Place, Mapping[int, rates.Counts]]
    admitted: Mapping[_Place, Mapping[int, rates.Counts]]  # of deployments whose limit counts so
    limits: Limits
    budgets: tuple[HardStanding, ...]
    world: _World


class Admission:
    """The desk that answers; safe to ask from many threads."""

    def __init__(self, store: Store, *, now: Callable[[], datetime], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen: _Seen | None = None
        self._world: _World | None = None
        self._read_at = self._minute_at = self._budgets_due = self._world_at = float("-inf")
        self._used: dict[int, dict[int, rates.Counts]] = {}
        self._admitted: dict[int, dict[int, rates.Counts]] = {}
        self._budgets: tuple[HardStanding, ...] = ()
        self._budgets_at = self._helped_from = float("-inf")
        self._standings = Standings(store)
        self._helping: threading.Thread | None = None
        self._asked = 0
        self._looking: threading.Thread | None = None
        self._ended, self._wake = threading.Event(), threading.Event()

    # -- looking --------------------------------------------------------------------------------

    @property
    def is_stale(self) -> bool:
        """Whether what was read is older than it should be."""
        return self._monotonic() - self._read_at > _FRESH_SECONDS

    def must_wait(self) -> bool:
        """Whether who asks now has to wait for ``refresh``. Under load a thread refreshes instead."""
        self._asked += 1
        if not self.is_stale:
            return False
        # Those count who came, not those who were answered: a load that begins is not to queue up behind its first look.
        if self._asked <= _BUSY or self._monotonic() - self._read_at > _OLDEST_SECONDS:
            return True
        if not self._is_looked_after():
            self._looking = threading.Thread(target=self._keep_looking, name="admission", daemon=True)
            self._looking.start()
        self._wake.set()
        return False

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._wake.set()
        self._standings.end()
        for thread in (self._looking, self._helping):
            if thread is not None:
                thread.join(timeout=5)

    def _is_looked_after(self) -> bool:
        return self._looking is not None and self._looking.is_alive()

    def _keep_looking(self) -> None:
        """Until few have asked for a while: a load that pauses is not to wait when it goes on."""
        busy_at = self._monotonic()
        while not self._ended.is_set():
            if self._asked > _BUSY:
                busy_at = self._monotonic()
            quiet = self._monotonic() - busy_at
            if quiet > _SPARE_SECONDS:
                return
            try:
                self.refresh()
            except DomainError as fault:
                # Who asks next waits, and is told.
                logger.warning("admission could not be refreshed: %s", fault.message)
                return
            self._wake.wait(_FRESH_SECONDS if quiet <= _LINGER_SECONDS else _IDLE_SECONDS)
            self._wake.clear()

    def _is_helped(self) -> bool:
        """Whether hard budgets are read by their own process; only under load is it worth one."""
        clock = self._monotonic()
        if not self._is_looked_after() or clock < self._helped_from:
            return False
        if clock - self._budgets_at > _OLDEST_BUDGETS_SECONDS:
            self._standings.end()  # whoever waits for its answer is told that it failed
            return False
        if self._helping is None or not self._helping.is_alive():
            self._helping = threading.Thread(target=self._keep_standings, name="admission-budgets", daemon=True)
            self._helping.start()
        return True

    def _keep_standings(self) -> None:
        """As long as a thread looks."""
        try:
            while not self._ended.is_set() and self._is_looked_after():
                begun = self._monotonic()
                self._budgets = self._standings.read(self._now())
                self._budgets_at = self._monotonic()
                self._ended.wait(max(_BUDGETS_SECONDS, _BUDGETS_SHARE * (self._monotonic() - begun)))
        except DomainError as fault:
            # The thread that looks reads them itself, and tries this again after a while.
            self._helped_from = self._monotonic() + _SPARE_SECONDS
            if not self._ended.is_set():
                logger.warning("%s", fault.message)
        finally:
            self._standings.end()

    def refresh(self) -> None:
        """Read again, unless another thread just did."""
        with self._lock:
            if not self.is_stale:
                return
            with self._store.read() as session:
                now = self._now()
                self._seen = self._read(session, now)
                session.expunge_all()  # what was read is used after the session: its end would empty the rows
            self._asked = 0
            self._read_at = self._monotonic()

    def _read(self, session: Session, now: datetime) -> _Seen:
        clock = self._monotonic()
        if self._world is None or clock - self._world_at > _WORLD_SECONDS:
            self._world, self._world_at = _world(session, now), clock
        if clock >= self._budgets_due:
            budgets = hard_budgets(session)
            if not (budgets and self._is_helped()):
                self._budgets = tuple(hard_standings(session, budgets, now=now))
                self._budgets_at = self._monotonic()
            self._budgets_due = clock + max(_BUDGETS_SECONDS, _BUDGETS_SHARE * (self._monotonic() - clock))
        at = to_microseconds(now) // 1_000_000
        busy = rates.minutes(session, start=at - 2 * MINUTE_SECONDS, end=at)
        if any(series not in self._world.place_of for series in busy):
            # A deployment that was never seen before: look at the registry again.
            self._world, self._world_at = _world(session, now), clock
        world, limits = self._world, limits_known(session, now)
        is_whole = clock - self._minute_at >= _MINUTE_EVERY_SECONDS
        start = at - (MINUTE_SECONDS if is_whole else _RECENT_SECONDS)
        reserves = {
            series: world.reserves[series]
            for series in busy
            if (place := world.place_of.get(series)) is not None
            and (limit := rates.limit_of(limits, *place, "tokens_per_minute", is_said=True)) is not None
            and limit.counting is Counting.ADMITTED
        }
        used = rates.seconds(session, series=sorted(busy), start=start, end=at)
        admitted = rates.admitted(session, series=reserves, start=start, end=at) if reserves else {}
        if is_whole:
            self._used, self._admitted, self._minute_at = used, admitted, clock
        else:
            self._used = _renewed(self._used, used, start=start, oldest=at - MINUTE_SECONDS)
            self._admitted = _renewed(self._admitted, admitted, start=start, oldest=at - MINUTE_SECONDS)
        return _Seen(now, at, _together(world, self._used), _together(world, self._admitted), limits, self._budgets, world)

    # -- judging --------------------------------------------------------------------------------

    def judge(self, asked: Asked) -> Verdict:
        """May the call go, as things were when they were last read."""
        seen = self._seen
        if seen is None:
            self.refresh()
            seen = self._seen
            assert seen is not None
        identity = seen.world.identity(asked.workspace, asked.deployment, seen.at)
        name = identity.deployment or asked.deployment
        place = (asked.workspace.casefold(), name.casefold())
        # The minute goes on while nothing is read.
        second = max(seen.second, to_microseconds(self._now()) // 1_000_000)
        tokens, left = self._limits(seen, place, second, asked.tokens, is_own=identity.mode == Mode.MANAGED_COMPUTE)
        if tokens is not None:
            return Verdict(False, tokens[0], tokens[1], max(0, left or 0), seen.at)
        for standing in seen.budgets:
            if standing.remaining <= 0 and _concerns(standing.scope, asked, identity, seen.world, seen.at):
                wait = int((standing.period.end - seen.at).total_seconds())
                return Verdict(False, _spent(standing), max(1, wait), left, seen.at)
        return Verdict(True, None, None, left, seen.at)

    def _limits(self, seen: _Seen, place: _Place, second: int, tokens: int, *, is_own: bool) -> tuple[tuple[str, int] | None, int | None]:
        """((why not, seconds to wait) or None, tokens left of the minute)."""
        left: int | None = None
        for index, measure in enumerate(_MEASURES):
            if is_own and seen.limits.of(*place, measure, is_said=True) is None:
                continue  # one's own instances have no limit but what they can do
            # An observed limit is an inference: it warns, and stops no call (calls that it stopped could never disprove it).
            limit = rates.limit_of(seen.limits, *place, measure, is_said=True)
            if limit is None:
                continue
            is_admitted = index == 0 and limit.counting is Counting.ADMITTED
            by_second = (seen.admitted if is_admitted else seen.used).get(place, {})
            used = sum(counts[index] for at, counts in by_second.items() if second - MINUTE_SECONDS < at <= second)
            wanted = tokens if index == 0 else 1
            if index == 0:
                left = max(0, limit.value - used)
            if used + wanted > limit.value:
                what = "tokens" if index == 0 else "requests"
                why = f"quota: {used:,} of {limit.value:,} {what} a minute are used ({limit.source}), and this call may use {wanted:,}"
                return (why, _wait(by_second, index, second, used + wanted - limit.value)), left
        return None, left

    def denied(self) -> list[Denied]:
        """Deployments at their limit, and what hard budgets that are spent cover; in a fixed order, so that a list is the same while nothing changes.

        A gateway's list knows places only: a budget of a model names the deployments that are known to be of it, and one of an
        application, team or tag is not in it (``/v1/admission`` knows who asks).
        """
        seen = self._seen
        if seen is None:
            return []
        found: list[Denied] = []
        for place in sorted(seen.used):
            workspace, deployment = seen.world.names.get(place, place)
            is_own = seen.world.identity(workspace, deployment, seen.at).mode == Mode.MANAGED_COMPUTE
            refused, _ = self._limits(seen, place, seen.second, 1, is_own=is_own)
            if refused is not None:
                # The figures in the reason move on every second; that it is so does not.
                found.append(Denied(workspace, deployment, "quota: the limit of the minute is reached", refused[1]))
        for standing in seen.budgets:
            if standing.remaining <= 0:
                wait = max(1, int((standing.period.end - seen.at).total_seconds()))
                why = f"budget: {standing.name} of {money.said(standing.amount, standing.currency)} is spent; it begins anew at {rfc3339(standing.period.end)}"
                found += [Denied(workspace, deployment, why, wait) for workspace, deployment in _covered(standing.scope, seen)]
        return found


def _covered(scope: Mapping[str, Any], seen: _Seen) -> list[tuple[str | None, str | None]]:
    """The places that a scope covers whoever calls; None is any."""
    if scope.keys() <= {"workspace", "deployment"}:
        return [(workspace, deployment) for workspace in _many(scope.get("workspace")) or [None] for deployment in _many(scope.get("deployment")) or [None]]
    if not scope.keys() <= {"workspace", "deployment", "model", "mode"}:
        return []
    every = sorted({*seen.world.names.values(), *seen.world.registry.deployments()})
    return [
        (workspace, deployment)
        for workspace, deployment in every
        if _concerns(scope, Asked(workspace, deployment, 0), seen.world.identity(workspace, deployment, seen.at), seen.world, seen.at)
    ]


def _renewed(
    before: Mapping[int, Mapping[int, rates.Counts]], read: Mapping[int, Mapping[int, rates.Counts]], *, start: int, oldest: int
) -> dict[int, dict[int, rates.Counts]]:
    """What was known of the seconds before ``start``, and what was read of those from it on."""
    found = {series: {second: counts for second, counts in of.items() if oldest <= second < start} for series, of in before.items()}
    for series, of in read.items():
        found.setdefault(series, {}).update(of)
    return found


def _together(world: _World, by_series: Mapping[int, Mapping[int, rates.Counts]]) -> dict[_Place, dict[int, rates.Counts]]:
    """Counts of series as those of their deployments."""
    found: dict[_Place, dict[int, rates.Counts]] = {}
    for series, by_second in by_series.items():
        place = world.place_of.get(series)
        if place is None:
            continue
        into = found.setdefault(place, {})
        for second, counts in by_second.items():
            before = into.get(second, (0, 0, 0))
            into[second] = (before[0] + counts[0], before[1] + counts[1], before[2] + counts[2])
    return found


def _spent(standing: HardStanding) -> str:
    return (
        f"budget: {standing.name} has spent {money.said(standing.spent, standing.currency)} of {money.said(standing.amount, standing.currency)}; "
        f"it begins anew at {rfc3339(standing.period.end)}"
    )


def _wait(by_second: Mapping[int, rates.Counts], index: int, second: int, excess: int) -> int:
    """Seconds until enough of the minute has passed; at most a minute."""
    freed = 0
    for at in sorted(by_second):
        if second - MINUTE_SECONDS < at <= second:
            freed += by_second[at][index]
            if freed >= excess:
                return max(1, min(MINUTE_SECONDS, at + MINUTE_SECONDS - second))
    return MINUTE_SECONDS


def _many(value: object) -> list[str | None]:
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _concerns(scope: Mapping[str, Any], asked: Asked, identity: Identity, world: _World, at: datetime) -> bool:
    """Whether a budget's scope holds the call.

    A call that does not say its application or team is not stopped by a budget of one, nor by one of a tag: the spend of
    others is no reason to deny it.
    """
    said: Mapping[str, str | None] = {
        "workspace": asked.workspace,
        "deployment": identity.deployment or asked.deployment,
        "model": identity.model,
        "mode": identity.mode.value,
        "application": asked.application,
        "team": asked.team,
    }
    for key, wanted in scope.items():
        names = [one for one in _many(wanted) if one is not None]
        value = said.get(key)
        if key == "model":
            is_among = value is not None and model_key(value) in {model_key(one) for one in names}
        elif key == "deployment":
            # A scope may use the short name of what the caller spells out.
            meant = {(world.identity(asked.workspace, one, at).deployment or one).casefold() for one in names}
            is_among = value is not None and value.casefold() in meant | {one.casefold() for one in names}
        else:
            is_among = value is not None and value.casefold() in {one.casefold() for one in names}
        if names and not is_among:
            return False
    return True


def _world(session: Session, now: datetime) -> _World:
    world = World(session, now)
    found = _World(world.registry)
    for series in world.series.values():
        identity = world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=now)
        if identity.workspace and identity.deployment:
            place = (identity.workspace.casefold(), identity.deployment.casefold())
            found.place_of[series.id] = place
            found.reserves[series.id] = rates.Reserve(context_tokens(identity.model), series.operation != Operation.EMBEDDINGS)
            found.names[place] = (identity.workspace, identity.deployment)
        else:
            found.place_of[series.id] = ("", "")
            found.reserves[series.id] = rates.Reserve(None, is_generating=True)
    return found
