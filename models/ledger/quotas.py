"""What is left of every limit: tokens and requests a minute of deployments, vCPUs of families, endpoints that delete themselves.

Usage is that of the 60 seconds before now, from the events as they were committed (``models.ledger.rates``), in the reading
that counts against the limit, with the other one and five minutes beside it; the peak is the highest minute of seven
days, of tokens as billed, with the highest of tokens as admitted beside it. Azure's own quotas are shown as Azure told them, Compute and Machine Learning apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session

from models import money, skus
from models.columns import from_microseconds, to_microseconds
from models.ledger import rates
from models.ledger.hours import stretches
from models.ledger.values import Filters
from models.ledger.world import Lens, World
from models.lifecycle import context_tokens, retires_at
from models.limits import Counting, Limits, PoolLimit, limits_known
from models.matching import Identity
from models.periods import to_the_second
from models.prices import model_key
from models.quotas import azure_quotas, endpoints, family_key
from models.resources import Mode, Route
from models.usage import MINUTE_SECONDS, QUARTER_SECONDS, Operation

PEAK_DAYS = 7
_RATES: tuple[rates.Measure, ...] = ("tokens_per_minute", "requests_per_minute")
_COUNTED = "SUM(CASE WHEN q.outcome % 2 = 1 THEN q.input_tokens + q.output_tokens ELSE 0 END)"
_BOTH = f"{_COUNTED}, SUM(q.requests)"  # in the order of _RATES
_BOTH_NAMED = f"{_COUNTED} AS tokens, SUM(q.requests) AS requests"
# Quarters of one deployment that a round looks into, and of all of them that one question holds.
_MOST_AT_ONCE, _QUARTERS_AT_ONCE = 16, 500
# Calls that are read one by one for what they were admitted for: half a second (20 microseconds each; SQLite, November 2026).
_MOST_CALLS = 25_000


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest calendar minute since a time that says how far back was looked; None where there was no call."""

    value: int | None
    at: datetime | None
    since: datetime


@dataclass(frozen=True, slots=True)
class LimitSaid:
    """What one source says of a limit: since when we know, when it was last seen, and what from. One of them counts."""

    source: str
    value: int
    known_from: datetime
    seen_at: datetime | None
    evidence: str
    author: str
    counts: bool

    @property
    def said_at(self) -> datetime:
        return self.seen_at or self.known_from


@dataclass(frozen=True, slots=True)
class Throttled:
    """429s that ``by`` (azure, gateway, client, unknown) threw at a caller."""

    by: str
    caller: str
    count: int


# A deployment that is fuller than this has no room that anybody should count on: percents.
_ROOM_BELOW = 80


@dataclass(frozen=True, slots=True)
class Pool:
    """One limit and how much of it is used. ``limit`` None: there is none, or nobody told it (``reason``)."""

    id: str
    kind: str  # deployment | foundry | cores
    measure: str  # tokens_per_minute | requests_per_minute | vcpus
    workspace: str | None = None
    deployment: str | None = None
    model: str | None = None
    mode: str | None = None
    subscription: str | None = None
    region: str | None = None
    family: str | None = None
    source: str | None = None  # compute | ml, of vCPUs
    level: str | None = None
    limit: int | None = None
    limit_source: str | None = None
    limits_said: Sequence[LimitSaid] = ()  # every source's word, the one that counts first
    reason: str | None = None
    used: int | None = None
    readings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # a minute's worth by counting and window
    left_said: tuple[int, datetime] | None = None  # what a header of the last minute said was left, and when
    upgrade_reserved: int | None = None  # vCPUs that have to stay free for upgrades
    deployments: Sequence[str] = ()  # of a pool that several share
    peak: int | None = None
    peak_at: datetime | None = None
    admitted_peak: Peak | None = None  # of a deployment's tokens, counted when calls began
    counting: str | None = None
    throttled: Mapping[str, int] = field(default_factory=dict)  # 429s of the last hour by who threw them
    throttled_callers: Sequence[Throttled] = ()  # the same, by who was calling too
    users: Sequence[tuple[str, int]] = ()  # applications by what they used of it just now
    saturation_at: datetime | None = None
    deletes_at: datetime | None = None
    retires_at: datetime | None = None
    seen_at: datetime | None = None

    @property
    def headroom(self) -> int | None:
        """What is left now; below zero where more was used than the limit says."""
        return None if self.limit is None or self.used is None else self.limit - self.used

    @property
    def upgrade_left(self) -> int | None:
        """What is left once upgrades have what they need; None where no instance needs it."""
        return None if self.upgrade_reserved is None or self.headroom is None else self.headroom - self.upgrade_reserved

    @property
    def recent(self) -> int | None:
        """A minute's worth of the last five, in the reading that counts."""
        return self.readings.get(self.counting or "", {}).get("300s")

    @property
    def limit_note(self) -> str | None:
        """Which sources say another limit than the one that counts: none is overruled in silence."""
        first = next((one for one in self.limits_said if one.counts), None)
        others = [
            f"{one.source} says {one.value:,} ({to_the_second(one.said_at)})" for one in self.limits_said if first is not None and one.value != first.value
        ]
        return f"{'; '.join(others)}; the limit of {first.source} counts" if first is not None and others else None

    def has_room(self, now: datetime) -> bool | None:
        """Whether a caller may count on it now; None where no limit is known."""
        if self.limit is None or self.used is None:
            return None
        is_over = any(at is not None and at <= now for at in (self.deletes_at, self.retires_at))
        is_full = self.used * 100 >= self.limit * _ROOM_BELOW or (self.left_said is not None and self.left_said[0] * 100 <= self.limit * (100 - _ROOM_BELOW))
        return not is_over and not is_full


@dataclass(frozen=True, slots=True)
class Pressure:
    """Pools taken together: which are nearly full, which deployments have room (tokens, requests), most left first, and which end."""

    limited: int
    full: Sequence[Pool]
    deployments: int
    room: Sequence[tuple[Pool, Pool]]
    throttled: Sequence[tuple[Pool, Throttled]]
    ending: Sequence[Pool]


def pressure(pools: Iterable[Pool], *, now: datetime) -> Pressure:
    """What the pools of one answer come to."""
    every = list(pools)
    limited = [pool for pool in every if pool.limit]
    by_place: dict[tuple[str | None, str | None], dict[str, Pool]] = {}
    for pool in every:
        if pool.kind == "deployment":
            by_place.setdefault((pool.workspace, pool.deployment), {})[pool.measure] = pool
    pairs = [(of["tokens_per_minute"], of["requests_per_minute"]) for of in by_place.values() if len(of) == 2]
    return Pressure(
        limited=len(limited),
        full=[pool for pool in limited if (pool.used or 0) * 100 >= (pool.limit or 0) * _ROOM_BELOW],
        deployments=len(by_place),
        room=sorted((pair for pair in pairs if all(pool.has_room(now) for pool in pair)), key=lambda pair: (-(pair[0].headroom or 0), pair[0].id)),
        throttled=[(pool, one) for _, pool in pairs for one in pool.throttled_callers],
        ending=[tokens for tokens, _ in pairs if tokens.deletes_at is not None or tokens.retires_at is not None],
    )


def quotas(session: Session, filters: Filters = Filters(), *, now: datetime, is_brief: bool = False) -> list[Pool]:  # noqa: B008 - a frozen value
    """Every pool: deployments first (tokens, then requests), then what Foundry deployments share, then vCPU families.

    ``is_brief``: what a limit is and what is used of it now, without peaks, throttles and other readings; for who asks often.
    """
    world = World(session, now)
    found = _deployments(session, filters, world, now=now, is_brief=is_brief)
    if filters.visible is None:
        # What others use of a shared pool, and the cores of a subscription, are not for a key of some workspaces.
        found += _foundry(found, world, now=now) + _cores(session, world, now=now)
    return found


# -- deployments ----------------------------------------------------------------------------------

_Place = tuple[str, str]


def places(world: World, filters: Filters, *, now: datetime) -> tuple[dict[_Place, list[int]], dict[_Place, Identity]]:
    """The deployments that are used or that inventory has: their series, and what they are."""
    lens = Lens(world, filters)
    series: dict[_Place, list[int]] = {}
    about: dict[_Place, Identity] = {}
    for one in world.series.values():
        identity = world.registry.resolve(workspace=one.workspace, endpoint=one.endpoint, deployment=one.deployment, model=one.model, at=now)
        if identity.workspace and identity.deployment and lens.passes(identity, application=None, team=None, tags={}):
            key = (identity.workspace, identity.deployment)
            series.setdefault(key, []).append(one.id)
            about.setdefault(key, identity)
    for workspace, name in world.registry.deployments():
        identity = world.registry.identity(workspace, name, model=None, at=now)
        if identity.workspace and identity.deployment and lens.passes(identity, application=None, team=None, tags={}):
            about.setdefault((identity.workspace, identity.deployment), identity)
    return series, about


@dataclass(frozen=True, slots=True)
class _Windows:
    """What the series of a deployment used in the last minute and the last five, by reading and measure."""

    callers: Mapping[int, str]  # as the page names them
    billed: Mapping[int, Mapping[int, rates.Counts]]
    admitted: Mapping[int, Mapping[int, rates.Counts]]
    at: int

    def used(self, ids: Iterable[int], measure: rates.Measure, counting: Counting, window: int) -> int:
        """A minute's worth of the window, rounded up: a limit is one of minutes."""
        index = rates.MEASURES.index(measure)
        among = self.admitted if counting is Counting.ADMITTED and measure == "tokens_per_minute" else self.billed
        held = sum(counts[index] for one in ids for second, counts in among.get(one, {}).items() if self.at - window < second <= self.at)
        return -(-held * MINUTE_SECONDS // window)

    def users(self, ids: Iterable[int], measure: rates.Measure, counting: Counting) -> list[tuple[str, int]]:
        """Who used the last minute, most first."""
        found: dict[str, int] = {}
        for one in ids:
            amount = self.used((one,), measure, counting, MINUTE_SECONDS)
            if amount:
                user = self.callers[one]
                found[user] = found.get(user, 0) + amount
        return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:5]


def _windows(
    session: Session, world: World, places: Mapping[_Place, Sequence[int]], about: Mapping[_Place, Identity], limits: Limits, *, now: datetime, is_brief: bool
) -> _Windows:
    at = to_microseconds(now) // 1_000_000
    longest = MINUTE_SECONDS if is_brief else max(rates.WINDOWS)
    busy = rates.minutes(session, start=at - longest - MINUTE_SECONDS, end=at)
    wanted = {one: key for key, ids in places.items() for one in ids if one in busy}
    reserves = {
        one: rates.Reserve(context_tokens(about[key].model), world.series[one].operation != Operation.EMBEDDINGS)
        for one, key in wanted.items()
        if not is_brief or _counting(limits.of(*key, "tokens_per_minute")) is Counting.ADMITTED
    }
    named = {one: world.series[one].application or world.series[one].team or world.series[one].workspace for one in wanted}
    billed = rates.seconds(session, series=sorted(wanted), start=at - longest, end=at)
    return _Windows(named, billed, rates.admitted(session, series=reserves, start=at - longest, end=at), at)


def _counting(said: PoolLimit | None) -> Counting:
    return said.counting if said is not None else Counting.BILLED


def _deployments(session: Session, filters: Filters, world: World, *, now: datetime, is_brief: bool) -> list[Pool]:
    series, about = places(world, filters, now=now)
    limits = limits_known(session, now)
    windows = _windows(session, world, series, about, limits, now=now, is_brief=is_brief)
    peaks = Peaks(session, now=now)
    if not is_brief:
        peaks.look((series.get(key, ()), measure) for key in about for measure in _RATES)
    admitted = {} if is_brief else _admitted_peaks(session, world, series, about, peaks)
    throttled = {} if is_brief else _throttled(session, world, places=series, now=now)
    left = {} if is_brief else _left(session, places=series, now=now)
    deleting = {(one.workspace.casefold(), one.endpoint.casefold()): one.deletes_at for one in endpoints(session, known=now) if one.deletes_at is not None}
    found: list[Pool] = []
    for key in sorted(about):
        workspace, name = key
        identity, ids = about[key], series.get(key, [])
        fact = world.registry.fact(workspace, name, now)
        endpoint = fact.endpoint if fact is not None else name.partition("/")[0]
        thrown = throttled.get(key, ())
        for measure in _RATES:
            limit = rates.limit_of(limits, workspace, name, measure)
            said = limits.of(workspace, name, measure)
            # Nobody limits the tokens of one's own instances; a limit of theirs is one that an owner set.
            is_limited = identity.mode != Mode.MANAGED_COMPUTE or said is not None
            counting = _counting(said)
            peak, peak_at = (None, None) if is_brief else peaks.of(ids, measure)
            readings = {} if is_brief else {one.value: {f"{window}s": windows.used(ids, measure, one, window) for window in rates.WINDOWS} for one in Counting}
            value = limit.value if limit is not None and is_limited else None
            found.append(
                Pool(
                    id=f"{workspace}/{name}:{measure}",
                    kind="deployment",
                    measure=measure,
                    workspace=workspace,
                    deployment=name,
                    model=identity.model,
                    mode=identity.mode.value,
                    subscription=identity.subscription,
                    region=identity.region,
                    limit=value,
                    limit_source=limit.source if limit is not None and is_limited else None,
                    limits_said=[_said(row, is_first=row is said) for row in limits.every(workspace, name, measure)],
                    used=windows.used(ids, measure, counting, MINUTE_SECONDS),
                    readings=readings,
                    left_said=left.get((key, measure)),
                    peak=peak,
                    peak_at=peak_at,
                    admitted_peak=admitted.get(key) if measure == "tokens_per_minute" else None,
                    counting=counting.value,
                    throttled=_by_thrower(thrown),
                    throttled_callers=thrown,
                    users=windows.users(ids, measure, counting),
                    saturation_at=None if is_brief else peaks.saturation(ids, measure, value),
                    deletes_at=deleting.get((workspace.casefold(), (endpoint or "").casefold())),
                    retires_at=retires_at(fact, identity.route),
                )
            )
    return found


def _admitted_peaks(
    session: Session, world: World, places: Mapping[_Place, Sequence[int]], about: Mapping[_Place, Identity], peaks: Peaks
) -> dict[_Place, Peak]:
    """The minute of each deployment in which the calls that began were admitted for most.

    No rollup holds it: calls are read one by one, the latest first, as many as a page may wait for.
    """
    reserves = {
        one: rates.Reserve(context_tokens(about[key].model), world.series[one].operation != Operation.EMBEDDINGS) for key, ids in places.items() for one in ids
    }
    since = peaks.since(reserves, most_requests=_MOST_CALLS)
    by_series = rates.admitted(session, series=reserves, start=since, end=peaks.now, slot=MINUTE_SECONDS, late=None)
    found: dict[_Place, Peak] = {}
    for key in about:
        together: dict[int, int] = {}
        for one in places.get(key, ()):
            for minute, counts in by_series.get(one, {}).items():
                together[minute] = together.get(minute, 0) + counts[0]
        at = max(together, key=lambda minute: (together[minute], -minute), default=None)
        highest, when = (None, None) if at is None else (together[at], from_microseconds(at * 1_000_000))
        found[key] = Peak(highest, when, from_microseconds(since * 1_000_000))
    return found


def _said(row: PoolLimit, *, is_first: bool) -> LimitSaid:
    return LimitSaid(row.source.value, row.value, row.known_from, row.seen_at, row.evidence, row.author, is_first)


def _by_thrower(thrown: Sequence[Throttled]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in thrown:
        found[one.by] = found.get(one.by, 0) + one.count
    return found


def _left(session: Session, *, places: Mapping[_Place, Sequence[int]], now: datetime) -> dict[tuple[_Place, rates.Measure], tuple[int, datetime]]:
    """What the answers of the last minute said was left of a limit: Azure's own count, newest first."""
    of = {one: place for place, ids in places.items() for one in ids}
    rows = session.execute(
        sa.text(
            "SELECT e.series_id, e.time, e.details FROM usage_event e JOIN (SELECT series_id, MAX(time) AS time FROM usage_event "
            "WHERE time >= :start AND time <= :now AND details LIKE '%\"ratelimit_remaining\\_%' ESCAPE '\\' GROUP BY series_id) n "
            "ON n.series_id = e.series_id AND n.time = e.time WHERE e.details LIKE '%\"ratelimit_remaining\\_%' ESCAPE '\\'"
        ),
        {"start": to_microseconds(now) - MINUTE_SECONDS * 1_000_000, "now": to_microseconds(now)},
    )
    found: dict[tuple[_Place, rates.Measure], tuple[int, datetime]] = {}
    for series, at, details in rows:
        place, said = of.get(int(series)), json.loads(details)
        if place is None or said.get("throttled_by") in ("gateway", "client"):
            continue
        for measure, what in zip(_RATES, ("tokens", "requests"), strict=True):
            left = said.get(f"ratelimit_remaining_{what}")
            before = found.get((place, measure))
            if left is not None and (before is None or before[1] < from_microseconds(int(at))):
                found[place, measure] = (int(left), from_microseconds(int(at)))
    return found


class _Search:
    """For the highest minute of series that count together: the quarters that may hold it, the fullest first."""

    def __init__(self, series: tuple[int, ...], index: int, together: Mapping[int, int]) -> None:
        self.series = series
        self._index = index
        self._together = together
        self._left = sorted(together, key=lambda at: (together[at], -at))
        self.best, self.best_at = 0, None  # type: tuple[int, int | None]

    def next(self, most: int) -> Sequence[int]:
        """The fullest of those that could hold more than the best minute so far."""
        return [at for at in self._left[: -most - 1 : -1] if self._together[at] > self.best]

    def take(self, minutes: Mapping[tuple[tuple[int, ...], int], Sequence[tuple[int, tuple[int, ...]]]], most: int) -> None:
        """What the minutes of ``next`` held."""
        for at in self.next(most):
            if self._together[at] <= self.best:
                break
            for minute, amounts in minutes.get((self.series, at), ()):
                if amounts[self._index] > self.best:
                    self.best, self.best_at = amounts[self._index], minute
        del self._left[-most:]


class Peaks:
    """The highest minute of the last days, exactly, without reading every minute of them.

    A minute never holds more than its quarter hour: quarters are looked into from the fullest one down, until what is
    left could not hold a higher minute. Whoever asks for many deployments says so first (``look``): a round of quarters
    of all of them is then a few questions.
    """

    def __init__(self, session: Session, *, now: datetime, since: datetime | None = None) -> None:
        self._session = session
        self.now = self._now = to_microseconds(now) // 1_000_000
        self._start = self._now - PEAK_DAYS * 86_400 if since is None else to_microseconds(since) // 1_000_000
        self._quarters: dict[int, list[tuple[int, tuple[int, ...]]]] | None = None
        self._fullest: dict[int, tuple[int, int]] | None = None
        self._found: dict[tuple[tuple[int, ...], str], _Search] = {}

    def _by_quarter(self) -> dict[int, list[tuple[int, tuple[int, ...]]]]:
        if self._quarters is None:
            self._quarters = {}
            rows = self._session.execute(
                sa.text(
                    f"SELECT series_id, starts_at, {_BOTH} FROM usage_quarter q "  # noqa: S608 - names of ours
                    "WHERE starts_at >= :start AND starts_at <= :now GROUP BY series_id, starts_at"
                ),
                {"start": self._start, "now": self._now},
            )
            for series, at, *amounts in rows:
                self._quarters.setdefault(int(series), []).append((int(at), tuple(map(int, amounts))))
        return self._quarters

    def since(self, series: Iterable[int], *, most_requests: int) -> int:
        """From which second on the series made at most so many requests; the start of all where they made no more."""
        by_series, by_quarter = self._by_quarter(), dict[int, int]()
        for one in series:
            for at, amounts in by_series.get(one, ()):
                by_quarter[at] = by_quarter.get(at, 0) + amounts[1]
        left = most_requests
        for at in sorted(by_quarter, reverse=True):
            left -= by_quarter[at]
            if left < 0:
                return at + QUARTER_SECONDS
        return -(-self._start // MINUTE_SECONDS) * MINUTE_SECONDS

    def _together(self, series: Sequence[int], measure: str) -> dict[int, int]:
        index = _RATES.index(measure)
        by_series = self._by_quarter()
        together: dict[int, int] = {}
        for one in series:
            for at, amounts in by_series.get(one, ()):
                together[at] = together.get(at, 0) + amounts[index]
        return together

    def at_most(self, series: Sequence[int], measure: str) -> int:
        """What no minute of theirs was above: the fullest quarter hour of each, as if all had been the same one."""
        if self._fullest is None:
            rows = self._session.execute(
                sa.text(
                    f"SELECT series_id, MAX(tokens), MAX(requests) FROM (SELECT series_id, starts_at, {_BOTH_NAMED} FROM usage_quarter q "  # noqa: S608 - names of ours
                    "WHERE starts_at >= :start AND starts_at <= :now GROUP BY series_id, starts_at) AS quarters GROUP BY series_id"
                ),
                {"start": self._start, "now": self._now},
            )
            self._fullest = {int(one): (int(tokens), int(requests)) for one, tokens, requests in rows}
        index = _RATES.index(measure)
        return sum(self._fullest[one][index] for one in series if one in self._fullest)

    def of(self, series: Sequence[int], measure: str) -> tuple[int | None, datetime | None]:
        """(the most in a minute, when); None where nothing was used."""
        self.look([(series, measure)])
        found = self._found[tuple(series), measure]
        return (found.best, from_microseconds(found.best_at * 1_000_000)) if found.best_at is not None else (None, None)

    def look(self, asked: Iterable[tuple[Sequence[int], str]]) -> None:
        """Find the highest minutes of all of these together."""
        fresh = {(tuple(series), measure): None for series, measure in asked}.keys() - self._found.keys()
        searches = {key: _Search(key[0], _RATES.index(key[1]), self._together(*key)) for key in fresh}
        self._found.update(searches)
        step = 1
        while wanted := {(search.series, at) for search in searches.values() for at in search.next(step)}:
            minutes = self._minutes(sorted(wanted))
            for search in searches.values():
                search.take(minutes, step)
            step = min(_MOST_AT_ONCE, step * 4)

    def _minutes(self, wanted: Sequence[tuple[tuple[int, ...], int]]) -> dict[tuple[tuple[int, ...], int], list[tuple[int, tuple[int, ...]]]]:
        """What every minute of those quarters held, by the series that count together."""
        offsets = ", ".join(f"({second})" for second in range(0, QUARTER_SECONDS, MINUTE_SECONDS))
        found: dict[tuple[tuple[int, ...], int], list[tuple[int, tuple[int, ...]]]] = {}
        for index in range(0, len(wanted), _QUARTERS_AT_ONCE):
            chunk = wanted[index : index + _QUARTERS_AT_ONCE]
            pairs = ", ".join(f"({number}, {at}, {one})" for number, (series, at) in enumerate(chunk) for one in series)
            rows = self._session.execute(
                sa.text(
                    f"WITH wanted(number, quarter, series) AS (VALUES {pairs}), within(second) AS (VALUES {offsets}) "  # noqa: S608 - numbers and names of ours
                    f"SELECT w.number, q.starts_at, {_BOTH} FROM wanted w CROSS JOIN within i "
                    "JOIN usage_minute q ON q.starts_at = CAST(w.quarter AS BIGINT) + i.second AND q.series_id = w.series "
                    "GROUP BY w.number, q.starts_at ORDER BY w.number, q.starts_at"
                )
            )
            for number, at, *amounts in rows:
                found.setdefault(chunk[int(number)], []).append((int(at), tuple(map(int, amounts))))
        return found

    def saturation(self, series: Sequence[int], measure: str, limit: int | None) -> datetime | None:
        """When the daily peaks, going on as in the last week, will meet the limit; None where they do not rise or are too few.

        The slope is that of the fullest quarter hour of each day; the day it meets the limit at the highest minute's level.
        """
        peak, _ = self.of(series, measure)
        if limit is None or peak is None:
            return None
        now = from_microseconds(self._now * 1_000_000)
        if peak >= limit:
            return now
        days: dict[int, int] = {}
        for at, amount in self._together(series, measure).items():
            day = (self._now - at) // 86_400  # days back
            days[day] = max(days.get(day, 0), amount)
        if len(days) < 4:
            return None
        count = Decimal(len(days))
        mean_day = money.QUOTIENT.divide(Decimal(sum(-day for day in days)), count)
        mean = money.QUOTIENT.divide(Decimal(sum(days.values())), count)
        spread = sum(((-day - mean_day) ** 2 for day in days), Decimal(0))
        slope = sum(((-day - mean_day) * (amount - mean) for day, amount in days.items()), Decimal(0)) / spread
        highest = max(days.values())
        if slope <= 0 or not highest:
            return None
        # A quarter hour's growth as a share of its level is the minute's, too.
        per_day = slope / highest * peak
        left = Decimal(limit - peak) / per_day
        return now + timedelta(seconds=int(left * 86_400)) if left < 365 else None


def _throttled(session: Session, world: World, *, places: Mapping[_Place, Sequence[int]], now: datetime) -> dict[_Place, list[Throttled]]:
    """429s of the last hour by deployment, told apart by who threw them and who was calling; most first."""
    of = {one: place for place, ids in places.items() for one in ids}
    last = to_microseconds(now) // 1_000_000
    # The rollup says in which minutes there are any: of an hour of events only those are looked through.
    thrown = {minute for by_minute in rates.minutes(session, start=last - 3600, end=last).values() for minute, counts in by_minute.items() if counts[2]}
    if not thrown:
        return {}
    by = "json_extract(details, '$.throttled_by')" if session.get_bind().dialect.name == "sqlite" else "details::json ->> 'throttled_by'"
    rows = session.execute(
        sa.text(f"SELECT series_id, {by}, COUNT(*) FROM usage_event WHERE time >= :start AND time < :end AND status = 2 GROUP BY 1, 2"),  # noqa: S608 - names of ours
        {"start": max(min(thrown), last - 3600) * 1_000_000, "end": (max(thrown) + MINUTE_SECONDS) * 1_000_000},
    )
    counts: dict[_Place, dict[tuple[str, str], int]] = {}
    for series, thrower, count in rows:
        place = of.get(int(series))
        if place is not None:
            one = world.series[int(series)]
            key = (str(thrower) if thrower else "unknown", one.application or one.team or one.workspace)
            into = counts.setdefault(place, {})
            into[key] = into.get(key, 0) + int(count)
    return {
        place: [Throttled(by, caller, count) for (by, caller), count in sorted(into.items(), key=lambda pair: (-pair[1], pair[0]))]
        for place, into in counts.items()
    }


# -- pools of an account's models -----------------------------------------------------------------


def _foundry(pools: Sequence[Pool], world: World, *, now: datetime) -> list[Pool]:
    """What all Foundry deployments of one model in a region and subscription draw on together.

    Azure deals a pool's limit out to its deployments, so that theirs add up to what was dealt out. A limit that is only
    the documented default of a deployment says nothing of the pool.
    """
    together: dict[tuple[str, str, str], dict[str, list[Pool]]] = {}
    for pool in pools:
        fact = world.registry.fact(pool.workspace or "", pool.deployment or "", now)
        if fact is not None and pool.model and pool.subscription and pool.region and world.registry.route(fact) is Route.FOUNDRY:
            together.setdefault((pool.subscription, pool.region, model_key(pool.model)), {}).setdefault(pool.measure, []).append(pool)
    found: list[Pool] = []
    for (subscription, region, key), by_measure in sorted(together.items()):
        for measure, among in by_measure.items():
            is_dealt = all(one.limit is not None and one.limit_source in ("azure", "header", "user") for one in among)
            found.append(
                Pool(
                    id=f"foundry:{subscription}/{region}/{key}:{measure}",
                    kind="foundry",
                    measure=measure,
                    model=among[0].model,
                    mode=Mode.SERVERLESS.value,
                    subscription=subscription,
                    region=region,
                    limit=sum(one.limit or 0 for one in among) if is_dealt else None,
                    limit_source="deployments" if is_dealt else None,
                    reason=None if is_dealt else "no deployment's own limit is known beyond the documented default",
                    used=sum(one.used or 0 for one in among),
                    counting=among[0].counting if len({one.counting for one in among}) == 1 else "mixed",
                    deployments=[f"{one.workspace}/{one.deployment}" for one in among],
                    retires_at=min((one.retires_at for one in among if one.retires_at is not None), default=None),
                )
            )
    return found


# -- vCPUs ----------------------------------------------------------------------------------------


def _cores(session: Session, world: World, *, now: datetime) -> list[Pool]:
    """Azure's vCPU quotas as it told them: Compute and Machine Learning count the same cores apart, and are never added."""
    reserved = upgrade_cores(world, now)
    found: list[Pool] = []
    for row in azure_quotas(session, known=now):
        if row.level not in ("family", "total", "low_priority"):
            continue
        found.append(
            Pool(
                id=f"{row.subscription_id}/{row.region}/{row.source}/{row.level}/{row.family}",
                kind="cores",
                measure="vcpus",
                subscription=row.subscription_id,
                region=row.region,
                family=row.family,
                source=row.source,
                level=row.level,
                limit=row.quota,
                limit_source="azure",
                used=row.used,
                # Online endpoints run on Machine Learning's quota.
                upgrade_reserved=reserved.get((row.subscription_id, row.region.casefold(), row.family_key), 0)
                if row.source == "ml" and row.level == "family"
                else None,
                counting="vcpus",
                seen_at=row.seen_at,
            )
        )
    return found


def upgrade_cores(world: World, now: datetime) -> dict[tuple[str, str, str], int]:
    """The vCPUs that Azure wants free to upgrade deployments in, by subscription, region and family.

    A deployment of ``n`` instances needs quota for a fifth more, rounded up to whole instances; sizes that the list marks
    as skipping the reservation need none, and of sizes that are not on the list nothing is known.
    """
    found: dict[tuple[str, str, str], int] = {}
    for workspace, name, facts in world.registry.managed():
        for _, _, fact in stretches(facts, now, now + timedelta(microseconds=1)):
            sku = skus.find(fact.sku or "")
            region = fact.region or world.registry.identity(workspace, name, model=None, at=now).region
            subscription = world.registry.subscription(workspace, now)
            if sku is None or not sku.reserves_upgrade_quota or not fact.instance_count or region is None or subscription is None:
                continue
            key = (subscription, region.casefold(), family_key(sku.family))
            found[key] = found.get(key, 0) + skus.upgrade_cores(sku, fact.instance_count)
    return found


def pool_place(pool_id: str) -> tuple[str, str, str] | None:
    """(workspace, deployment, measure) of a deployment's pool id; None where it is no such id."""
    place, _, measure = pool_id.rpartition(":")
    workspace, _, name = place.partition("/")
    return (workspace, name, measure) if workspace and name and measure in _RATES else None
