"""What is left of every limit: tokens and requests a minute of deployments, vCPUs of families, endpoints that delete themselves.

Usage is that of the 60 seconds before now, from the events as they were committed (``models.ledger.rates``); the peak is
the highest minute of seven days. Azure's own quotas are shown as Azure told them, Compute and Machine Learning apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session

from models import money
from models.columns import from_microseconds, to_microseconds
from models.ledger import rates
from models.ledger.values import Filters
from models.ledger.world import Lens, World
from models.lifecycle import retires_at
from models.limits import Counting, limits_known
from models.matching import Identity
from models.quotas import azure_quotas, endpoints
from models.resources import Mode
from models.usage import MINUTE_SECONDS, QUARTER_SECONDS

PEAK_DAYS = 7
_RATES: tuple[rates.Measure, ...] = ("tokens_per_minute", "requests_per_minute")
_OUTCOME_OF = {"tokens_per_minute": "CASE WHEN outcome % 2 = 1 THEN input_tokens + output_tokens ELSE 0 END", "requests_per_minute": "requests"}


@dataclass(frozen=True, slots=True)
class Pool:
    """One limit and how much of it is used. ``limit`` None: there is none, or nobody told it (``reason``)."""

    id: str
    kind: str  # deployment | cores
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
    used: int | None = None
    peak: int | None = None
    peak_at: datetime | None = None
    counting: str | None = None
    throttled: Mapping[str, int] = field(default_factory=dict)  # 429s of the last hour by who threw them
    users: Sequence[tuple[str, int]] = ()  # applications by what they used of it just now
    saturation_at: datetime | None = None
    deletes_at: datetime | None = None
    retires_at: datetime | None = None
    seen_at: datetime | None = None

    @property
    def headroom(self) -> int | None:
        """What is left now; below zero where more was used than the limit says."""
        return None if self.limit is None or self.used is None else self.limit - self.used


def quotas(session: Session, filters: Filters = Filters(), *, now: datetime) -> list[Pool]:  # noqa: B008 - a frozen value
    """Every pool: deployments first (tokens, then requests), then vCPU families."""
    found = _deployments(session, filters, now=now)
    if filters.visible is None:
        found += _cores(session, now=now)
    return found


# -- deployments ----------------------------------------------------------------------------------

_Place = tuple[str, str]


def _places(world: World, filters: Filters, *, now: datetime) -> tuple[dict[_Place, list[int]], dict[_Place, Identity]]:
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


def _deployments(session: Session, filters: Filters, *, now: datetime) -> list[Pool]:
    world = World(session, now)
    series, about = _places(world, filters, now=now)
    limits = limits_known(session, now)
    at = to_microseconds(now) // 1_000_000
    busy = rates.minutes(session, start=at - 2 * MINUTE_SECONDS, end=at)
    wanted = sorted(one for ids in series.values() for one in ids if one in busy)
    seconds = rates.seconds(session, series=wanted, start=at - MINUTE_SECONDS, end=at)
    peaks = _Peaks(session, now=now)
    throttled = _throttled(session, wanted=series, now=now)
    deleting = {(one.workspace.casefold(), one.endpoint.casefold()): one.deletes_at for one in endpoints(session, known=now) if one.deletes_at is not None}
    found: list[Pool] = []
    for key in sorted(about):
        workspace, name = key
        identity = about[key]
        fact = world.registry.fact(workspace, name, now)
        endpoint = fact.endpoint if fact is not None else name.partition("/")[0]
        for index, measure in enumerate(_RATES):
            limit = rates.limit_of(limits, workspace, name, measure)
            said = limits.of(workspace, name, measure)
            # Nobody limits the tokens of one's own instances; a limit of theirs is one that an owner set.
            is_limited = identity.mode != Mode.MANAGED_COMPUTE or said is not None
            own = [one for one in series.get(key, ()) if one in seconds]
            used = sum(counts[index] for one in own for second, counts in seconds[one].items() if at - MINUTE_SECONDS < second <= at)
            peak, peak_at = peaks.of(series.get(key, []), measure)
            value = limit.value if limit is not None and is_limited else None
            by_user: dict[str, int] = {}
            for one in own:
                amount = sum(counts[index] for second, counts in seconds[one].items() if at - MINUTE_SECONDS < second <= at)
                user = world.series[one].application or world.series[one].team or world.series[one].workspace
                if amount:
                    by_user[user] = by_user.get(user, 0) + amount
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
                    used=used,
                    peak=peak,
                    peak_at=peak_at,
                    counting=(said.counting if said is not None else Counting.BILLED).value,
                    throttled=throttled.get(key, {}),
                    users=sorted(by_user.items(), key=lambda pair: (-pair[1], pair[0]))[:5],
                    saturation_at=peaks.saturation(series.get(key, []), measure, value),
                    deletes_at=deleting.get((workspace.casefold(), (endpoint or "").casefold())),
                    retires_at=retires_at(fact, identity.route),
                )
            )
    return found


class _Peaks:
    """The highest minute of the last days, exactly, without reading every minute of them.

    A minute never holds more than its quarter hour: quarters are looked into from the fullest one down, until what is
    left could not hold a higher minute.
    """

    def __init__(self, session: Session, *, now: datetime) -> None:
        self._session = session
        self._now = to_microseconds(now) // 1_000_000
        self._start = self._now - PEAK_DAYS * 86_400
        self._quarters: dict[str, dict[int, dict[int, int]]] = {}
        self._found: dict[tuple[tuple[int, ...], str], tuple[int | None, datetime | None]] = {}

    def _by_quarter(self, measure: str) -> dict[int, dict[int, int]]:
        found = self._quarters.get(measure)
        if found is None:
            found = self._quarters[measure] = {}
            rows = self._session.execute(
                sa.text(
                    f"SELECT series_id, starts_at, SUM({_OUTCOME_OF[measure]}) FROM usage_quarter "  # noqa: S608 - names of ours
                    "WHERE starts_at >= :start AND starts_at <= :now GROUP BY series_id, starts_at"
                ),
                {"start": self._start, "now": self._now},
            )
            for series, at, amount in rows:
                found.setdefault(int(series), {})[int(at)] = int(amount)
        return found

    def _together(self, series: Sequence[int], measure: str) -> dict[int, int]:
        by_series = self._by_quarter(measure)
        together: dict[int, int] = {}
        for one in series:
            for at, amount in by_series.get(one, {}).items():
                together[at] = together.get(at, 0) + amount
        return together

    def of(self, series: Sequence[int], measure: str) -> tuple[int | None, datetime | None]:
        """(the most in a minute, when); None where nothing was used."""
        key = (tuple(series), measure)
        if key not in self._found:
            self._found[key] = self._look(series, measure)
        return self._found[key]

    def _look(self, series: Sequence[int], measure: str) -> tuple[int | None, datetime | None]:
        together = self._together(series, measure)
        best, best_at = 0, None
        for at in sorted(together, key=lambda one: (-together[one], one)):
            if together[at] <= best:
                break
            ids = ",".join(map(str, series))
            row = self._session.execute(
                sa.text(
                    f"SELECT starts_at, SUM({_OUTCOME_OF[measure]}) AS amount FROM usage_minute "  # noqa: S608 - numbers and names of ours
                    f"WHERE starts_at >= :start AND starts_at < :end AND series_id IN ({ids}) GROUP BY starts_at ORDER BY amount DESC, starts_at LIMIT 1"
                ),
                {"start": at, "end": at + QUARTER_SECONDS},
            ).first()
            if row is not None and int(row[1]) > best:
                best, best_at = int(row[1]), int(row[0])
        return (best, from_microseconds(best_at * 1_000_000)) if best_at is not None else (None, None)

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


def _throttled(session: Session, *, wanted: Mapping[_Place, Sequence[int]], now: datetime) -> dict[_Place, dict[str, int]]:
    """429s of the last hour by deployment and by who threw them."""
    of = {one: place for place, ids in wanted.items() for one in ids}
    start = to_microseconds(now - timedelta(hours=1))
    found: dict[_Place, dict[str, int]] = {}
    by = "json_extract(details, '$.throttled_by')" if session.get_bind().dialect.name == "sqlite" else "details::json ->> 'throttled_by'"
    rows = session.execute(
        sa.text(f"SELECT series_id, {by}, COUNT(*) FROM usage_event WHERE time >= :start AND status = 2 GROUP BY 1, 2"),  # noqa: S608 - names of ours
        {"start": start},
    )
    for series, thrower, count in rows:
        place = of.get(int(series))
        if place is not None:
            into = found.setdefault(place, {})
            who = str(thrower) if thrower else "unknown"
            into[who] = into.get(who, 0) + int(count)
    return found


# -- vCPUs ----------------------------------------------------------------------------------------


def _cores(session: Session, *, now: datetime) -> list[Pool]:
    """Azure's vCPU quotas as it told them: Compute and Machine Learning count the same cores apart, and are never added."""
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
                counting="vcpus",
                seen_at=row.seen_at,
            )
        )
    return found


def pool_place(pool_id: str) -> tuple[str, str, str] | None:
    """(workspace, deployment, measure) of a deployment's pool id; None where it is no such id."""
    place, _, measure = pool_id.rpartition(":")
    workspace, _, name = place.partition("/")
    return (workspace, name, measure) if workspace and name and measure in _RATES else None
