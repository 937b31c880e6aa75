"""Whether a call may go: quotas and hard budgets, answered from memory.

What was used in the last minute is read from the database at most every quarter of a second, hard budgets every two
seconds; between, answers come from what was read. Nothing is reserved: calls that were admitted and have not been
reported yet do not count, so a burst may overshoot by what runs at the same time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from models.alerts import Budget
from models.columns import to_microseconds
from models.ledger import rates
from models.ledger.budgets import HardStanding, hard_standings
from models.ledger.world import World
from models.limits import Limits, limits_known
from models.matching import Identity, Registry
from models.money import text
from models.periods import rfc3339
from models.resources import Mode
from models.store import Store
from models.usage import MINUTE_SECONDS

_FRESH_SECONDS = 0.25
_BUDGETS_SECONDS = 2.0
# The registry and the series change seldom and cost most to read.
_WORLD_SECONDS = 5.0
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


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read: per deployment what each second of the last minute used."""

    at: datetime
    second: int
    used: Mapping[_Place, Mapping[int, rates.Counts]]
    limits: Limits
    names: Mapping[_Place, tuple[str, str]]
    budgets: tuple[HardStanding, ...]
    registry: Registry


@dataclass(slots=True)
class _World:
    """The registry and which series is whose, while they are fresh."""

    registry: Registry
    place_of: dict[int, _Place] = field(default_factory=dict)
    names: dict[_Place, tuple[str, str]] = field(default_factory=dict)


class Admission:
    """The desk that answers; safe to ask from many threads."""

    def __init__(self, store: Store, *, now: Callable[[], datetime], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen: _Seen | None = None
        self._world: _World | None = None
        self._read_at = self._budgets_at = self._world_at = float("-inf")
        self._budgets: tuple[HardStanding, ...] = ()

    @property
    def is_stale(self) -> bool:
        """Whether what was read is too old to answer from."""
        return self._monotonic() - self._read_at > _FRESH_SECONDS

    def refresh(self) -> None:
        """Read again, unless another thread just did."""
        with self._lock:
            if not self.is_stale:
                return
            with self._store.read() as session:
                now = self._now()
                self._seen = self._read(session, now)
                session.expunge_all()  # what was read is used after the session: its end would empty the rows
            self._read_at = self._monotonic()

    def _read(self, session: Session, now: datetime) -> _Seen:
        clock = self._monotonic()
        if self._world is None or clock - self._world_at > _WORLD_SECONDS:
            self._world, self._world_at = _world(session, now), clock
        if clock - self._budgets_at > _BUDGETS_SECONDS:
            budgets = session.exec(select(Budget).where(col(Budget.deleted_at).is_(None))).all()
            self._budgets = tuple(hard_standings(session, budgets, now=now))
            self._budgets_at = clock
        at = to_microseconds(now) // 1_000_000
        busy = rates.minutes(session, start=at - 2 * MINUTE_SECONDS, end=at)
        if any(series not in self._world.place_of for series in busy):
            # A deployment that was never seen before: look at the registry again.
            self._world, self._world_at = _world(session, now), clock
        used: dict[_Place, dict[int, rates.Counts]] = {}
        for series, by_second in rates.seconds(session, series=sorted(busy), start=at - MINUTE_SECONDS, end=at).items():
            place = self._world.place_of.get(series)
            if place is None:
                continue
            into = used.setdefault(place, {})
            for second, counts in by_second.items():
                before = into.get(second, (0, 0, 0))
                into[second] = (before[0] + counts[0], before[1] + counts[1], before[2] + counts[2])
        return _Seen(now, at, used, limits_known(session, now), self._world.names, self._budgets, self._world.registry)

    # -- judging --------------------------------------------------------------------------------

    def judge(self, asked: Asked) -> Verdict:
        """May the call go, as things were when they were last read."""
        seen = self._seen
        if seen is None:
            self.refresh()
            seen = self._seen
            assert seen is not None
        identity = seen.registry.resolve(workspace=asked.workspace, endpoint=None, deployment=asked.deployment, model=None, at=seen.at)
        name = identity.deployment or asked.deployment
        place = (asked.workspace.casefold(), name.casefold())
        # The minute goes on while nothing is read.
        second = max(seen.second, to_microseconds(self._now()) // 1_000_000)
        tokens, left = self._limits(seen, place, second, asked.tokens, is_own=identity.mode == Mode.MANAGED_COMPUTE)
        if tokens is not None:
            return Verdict(False, tokens[0], tokens[1], max(0, left or 0), seen.at)
        for standing in seen.budgets:
            if standing.remaining <= 0 and _concerns(standing.scope, asked, identity):
                wait = int((standing.period.end - seen.at).total_seconds())
                return Verdict(False, _spent(standing), max(1, wait), left, seen.at)
        return Verdict(True, None, None, left, seen.at)

    def _limits(self, seen: _Seen, place: _Place, second: int, tokens: int, *, is_own: bool) -> tuple[tuple[str, int] | None, int | None]:
        """((why not, seconds to wait) or None, tokens left of the minute)."""
        by_second = seen.used.get(place, {})
        left: int | None = None
        for index, measure in enumerate(_MEASURES):
            if is_own and seen.limits.of(*place, measure, is_said=True) is None:
                continue  # one's own instances have no limit but what they can do
            # An observed limit is an inference: it warns, and stops no call (calls that it stopped could never disprove it).
            limit = rates.limit_of(seen.limits, *place, measure, is_said=True)
            if limit is None:
                continue
            used = sum(counts[index] for at, counts in by_second.items() if second - MINUTE_SECONDS < at <= second)
            wanted = tokens if index == 0 else 1
            if index == 0:
                left = max(0, limit.value - used)
            if used + wanted > limit.value:
                what = "tokens" if index == 0 else "requests"
                why = f"quota: {used:,} of {limit.value:,} {what} a minute are used ({limit.source}), and this call may use {wanted:,}"
                return (why, _wait(by_second, index, second, used + wanted - limit.value)), left
        return None, left

    def denied(self) -> Iterator[Denied]:
        """Deployments at their limit, and what hard budgets that are spent cover."""
        seen = self._seen
        if seen is None:
            return
        for place in sorted(seen.used):
            verdict, _ = self._limits(seen, place, seen.second, 1, is_own=False)
            if verdict is not None:
                yield Denied(*seen.names.get(place, place), verdict[0].partition(", and this call")[0], verdict[1])
        for standing in seen.budgets:
            if standing.remaining <= 0:
                scope = standing.scope
                for workspace in _many(scope.get("workspace")) or [None]:
                    for deployment in _many(scope.get("deployment")) or [None]:
                        yield Denied(workspace, deployment, _spent(standing), max(1, int((standing.period.end - seen.at).total_seconds())))


def _spent(standing: HardStanding) -> str:
    return (
        f"budget: {standing.name} has spent {text(standing.spent)} of {text(standing.amount)} {standing.currency}; "
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


def _concerns(scope: Mapping[str, Any], asked: Asked, identity: Identity) -> bool:
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
        among = {(one or "").casefold() for one in _many(wanted)}
        value = said.get(key)
        if among and (value is None or value.casefold() not in among):
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
            found.names[place] = (identity.workspace, identity.deployment)
        else:
            found.place_of[series.id] = ("", "")
    return found
