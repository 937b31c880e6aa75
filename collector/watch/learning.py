"""Limits learnt from traffic: what the answers' headers say, and what had been used when Azure threw a 429.

A header is Azure's own word and counts at once. A single 429 proves little, as others may have called the deployment
unseen: its level is kept as an episode, and two episodes at about the same level teach a limit. A minute that used more than that
and was not throttled takes it back. What is learnt never overrules what a person or Azure's inventory said; it stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models.columns import from_microseconds, to_microseconds
from models.ledger import rates
from models.ledger.world import World
from models.limits import LimitSource, PoolLimit, ThrottleEpisode, limits_known, set_limit
from models.periods import rfc3339
from models.store import Store
from models.usage import MINUTE_SECONDS, STATUS_CODE, Status

# The first look of a process goes this far back; later ones begin where the one before ended, less what may arrive late.
_FIRST_LOOK = timedelta(minutes=10)
_OVERLAP = timedelta(seconds=30)
# A header says the same again and again: of many events only the newest are looked into.
_MOST_EVENTS = 20_000
# 429s closer to each other than this are one episode; the last ones of so many days teach.
_PAUSE = timedelta(seconds=60)
_TAUGHT_BY = timedelta(days=7)
# The second-highest episode has to reach this share of the highest: percents.
_AGREES = 75
# The same header is dated anew this often, so that a quiet database is not written to every few seconds.
_DATED_EVERY = timedelta(minutes=10)
_SECOND = 1_000_000
_MEASURES: tuple[rates.Measure, ...] = ("tokens_per_minute", "requests_per_minute")

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Header:
    """The newest word of a deployment's answers on one limit."""

    place: Place
    measure: rates.Measure
    value: int
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Episode:
    """429s by Azure with no longer pause between them; ``used`` is what the minute before the first one held of the limit it met."""

    place: Place
    measure: rates.Measure
    began_at: datetime
    ended_at: datetime
    used: int


@dataclass(slots=True)
class Lessons:
    """What a look found: headers, episodes, and the highest unthrottled minute of deployments whose limit was observed."""

    headers: list[Header] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)
    disproved: dict[tuple[Place, rates.Measure], int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.headers or self.episodes or self.disproved)


class Learner:
    """Looks at what arrived since the last time; all that it knows of the past is in the database."""

    def __init__(self) -> None:
        self._until: datetime | None = None

    def run(self, store: Store, *, now: datetime) -> None:
        """Learn from the events since the last look."""
        since = now - _FIRST_LOOK if self._until is None else max(self._until - _OVERLAP, now - _FIRST_LOOK)
        with store.read() as session:
            lessons = look(session, since=since, now=now)
        if not lessons.is_empty:
            with store.write() as session:
                learn(session, lessons, now=now)
        self._until = now


# -- looking --------------------------------------------------------------------------------------


def look(session: Session, *, since: datetime, now: datetime) -> Lessons:
    """What the events from ``since`` on teach. Reads only."""
    said = _headers(session, since, now)
    thrown = _throttles(session, since, now)
    limits = limits_known(session, now)
    observed = {(row.workspace, row.deployment): row for row in limits.all() if row.source is LimitSource.OBSERVED}
    if not (said or thrown or observed):
        return Lessons()
    places = _Places(session, now)
    lessons = Lessons()
    newest: dict[tuple[Place, rates.Measure], tuple[int, int]] = {}
    for series, measure, value, at in said:
        place = places.of.get(series)
        if place is not None:
            newest[place, measure] = max(newest.get((place, measure), (0, 0)), (at, value))
    for (place, measure), (at, value) in sorted(newest.items()):
        known = next((row for row in limits.every(*place, measure) if row.source is LimitSource.HEADER), None)
        seen_at = from_microseconds(at)
        is_news = known is None or known.value != value or known.seen_at is None or seen_at - known.seen_at >= _DATED_EVERY
        # Of two processes one may look at older events than the other has seen.
        if is_news and (known is None or known.seen_at is None or seen_at > known.seen_at):
            lessons.headers.append(Header(place, measure, value, seen_at))
    by_place: dict[Place, list[_Thrown]] = {}
    for one in thrown:
        if (place := places.of.get(one.series)) is not None:
            by_place.setdefault(place, []).append(one)
    for place, ones in sorted(by_place.items()):
        lessons.episodes += _episodes(
            session, place, ones, places.series[place], limits_of={m: rates.limit_of(limits, *place, m, is_said=True) for m in _MEASURES}
        )
    if observed:
        lessons.disproved = _disproved(session, observed.values(), places, since, now)
    return lessons


class _Places:
    """Which deployment a series is of, and the other way round."""

    def __init__(self, session: Session, now: datetime) -> None:
        world = World(session, now)
        self.of: dict[int, Place] = {}
        self.series: dict[Place, list[int]] = {}
        for one in world.series.values():
            identity = world.registry.resolve(workspace=one.workspace, endpoint=one.endpoint, deployment=one.deployment, model=one.model, at=now)
            if identity.workspace and identity.deployment:
                place = (identity.workspace, identity.deployment)
                self.of[one.id] = place
                self.series.setdefault(place, []).append(one.id)


def _headers(session: Session, since: datetime, now: datetime) -> list[tuple[int, rates.Measure, int, int]]:
    """(series, measure, limit, when last said): of answers that a gateway or the client made up itself nothing."""
    tokens, requests, by = (_detail(session, name) for name in ("ratelimit_limit_tokens", "ratelimit_limit_requests", "throttled_by"))
    rows = session.execute(
        sa.text(
            f"SELECT series_id, {tokens}, {requests}, MAX(time) FROM "  # noqa: S608 - names of ours
            "(SELECT series_id, time, details FROM usage_event WHERE time >= :start AND time <= :end ORDER BY time DESC LIMIT :most) newest "
            "WHERE details LIKE '%\"ratelimit_limit\\_%' ESCAPE '\\' "
            f"AND COALESCE({by}, '') NOT IN ('gateway', 'client') GROUP BY 1, 2, 3"
        ),
        {"start": to_microseconds(since), "end": to_microseconds(now), "most": _MOST_EVENTS},
    )
    found: list[tuple[int, rates.Measure, int, int]] = []
    for series, of_tokens, of_requests, at in rows:
        for measure, value in zip(_MEASURES, (of_tokens, of_requests), strict=True):
            if value is not None and int(value) > 0:
                found.append((int(series), measure, int(value), int(at)))
    return found


@dataclass(frozen=True, slots=True)
class _Thrown:
    """429s of one series and second; ``left_*`` is what the header said was left."""

    second: int
    series: int
    left_tokens: int | None
    left_requests: int | None


def _throttles(session: Session, since: datetime, now: datetime) -> list[_Thrown]:
    """429s that Azure threw: said so, or answered with what was left of its limits."""
    first, last = to_microseconds(since) // _SECOND, to_microseconds(now) // _SECOND
    # The rollup tells whether there are any at all.
    if not any(counts[2] for of in rates.minutes(session, start=first, end=last).values() for counts in of.values()):
        return []
    tokens, requests, by = (_detail(session, name) for name in ("ratelimit_remaining_tokens", "ratelimit_remaining_requests", "throttled_by"))
    rows = session.execute(
        sa.text(
            f"SELECT time / {_SECOND}, series_id, MIN({tokens}), MIN({requests}) FROM usage_event "  # noqa: S608 - names of ours
            f"WHERE time >= :start AND time <= :end AND status = {STATUS_CODE[Status.THROTTLED]} "
            f"AND COALESCE({by}, CASE WHEN {tokens} IS NULL AND {requests} IS NULL THEN '' ELSE 'azure' END) = 'azure' GROUP BY 1, 2 ORDER BY 1, 2"
        ),
        {"start": to_microseconds(since), "end": to_microseconds(now)},
    )
    return [_Thrown(int(second), int(series), *(None if left is None else int(left) for left in lefts)) for second, series, *lefts in rows]


def _episodes(
    session: Session, place: Place, thrown: Sequence[_Thrown], series: Sequence[int], *, limits_of: Mapping[rates.Measure, rates.Limit | None]
) -> list[Episode]:
    runs: list[list[_Thrown]] = []
    for one in thrown:
        if runs and one.second - runs[-1][-1].second <= _PAUSE.total_seconds():
            runs[-1].append(one)
        else:
            runs.append([one])
    found: list[Episode] = []
    for run in runs:
        first = run[0].second
        used = [0, 0]
        for by_second in rates.seconds(session, series=sorted(series), start=first - MINUTE_SECONDS + 1, end=first).values():
            for tokens, requests, throttled in by_second.values():
                used[0] += tokens
                used[1] += requests - throttled
        index = _met(run, used, limits_of)
        if used[index]:
            began, ended = (from_microseconds(second * _SECOND) for second in (first, run[-1].second))
            found.append(Episode(place, _MEASURES[index], began, ended, used[index]))
    return found


def _met(run: Iterable[_Thrown], used: Sequence[int], limits_of: Mapping[rates.Measure, rates.Limit | None]) -> int:
    """Which limit was met: the one of which a header says that nothing is left, else the one that was fuller."""
    for one in run:
        if one.left_tokens == 0 or one.left_requests == 0:
            return 0 if one.left_tokens == 0 else 1
    tokens, requests = (limits_of[measure] for measure in _MEASURES)
    assert tokens is not None
    assert requests is not None
    return 0 if used[0] * requests.value >= used[1] * tokens.value else 1


def _disproved(session: Session, rows: Iterable[PoolLimit], places: _Places, since: datetime, now: datetime) -> dict[tuple[Place, rates.Measure], int]:
    """Observed limits that a minute without a 429 has exceeded, with what it used."""
    start, end = to_microseconds(since) // _SECOND, to_microseconds(now) // _SECOND
    minutes = rates.minutes(session, start=start, end=end)
    found: dict[tuple[Place, rates.Measure], int] = {}
    for row in rows:
        place, index = (row.workspace, row.deployment), _MEASURES.index(row.measure)
        together: dict[int, list[int]] = {}
        for one in places.series.get(place, ()):
            for minute, counts in minutes.get(one, {}).items():
                sums = together.setdefault(minute, [0, 0, 0])
                for position, count in enumerate(counts):
                    sums[position] += count
        most = max((sums[index] for sums in together.values() if not sums[2]), default=0)
        if most > row.value:
            found[place, _MEASURES[index]] = most
    return found


def _detail(session: Session, name: str) -> str:
    """A detail of an event in SQL; numbers as numbers."""
    if session.get_bind().dialect.name == "sqlite":
        return f"json_extract(details, '$.{name}')"
    text = f"(details::json ->> '{name}')"
    return text if name == "throttled_by" else f"{text}::bigint"


# -- learning -------------------------------------------------------------------------------------


def learn(session: Session, lessons: Lessons, *, now: datetime) -> None:
    """Keep what was found; called twice with the same it changes nothing more."""
    for header in lessons.headers:
        workspace, deployment = header.place
        what = "tokens" if header.measure == "tokens_per_minute" else "requests"
        set_limit(
            session, workspace=workspace, deployment=deployment, measure=header.measure, value=header.value, source=LimitSource.HEADER,
            evidence=f"x-ratelimit-limit-{what} of an answer", seen_at=header.seen_at, now=now,
        )  # fmt: skip
    for (place, measure), most in lessons.disproved.items():
        _take_back(session, place, measure, most, now=now)
    for place, measure in sorted({_kept(session, episode) for episode in lessons.episodes}):
        _teach(session, place, measure, now=now)


def _kept(session: Session, episode: Episode) -> tuple[Place, rates.Measure]:
    """Store an episode, or how much longer one that is known went on."""
    row = ThrottleEpisode
    workspace, deployment = episode.place
    known = session.exec(
        select(row)
        .where(
            col(row.workspace) == workspace,
            col(row.deployment) == deployment,
            col(row.began_at) <= episode.ended_at + _PAUSE,
            col(row.ended_at) >= episode.began_at - _PAUSE,
        )
        .order_by(col(row.began_at))
        .limit(1)
    ).first()
    if known is None:
        session.add(
            row(
                workspace=workspace,
                deployment=deployment,
                measure=episode.measure,
                began_at=episode.began_at,
                ended_at=episode.ended_at,
                used=episode.used,
            )
        )
        session.flush()
        return episode.place, episode.measure
    known.ended_at = max(known.ended_at, episode.ended_at)
    if known.began_at == episode.began_at:
        known.used = max(known.used, episode.used)  # late events of its minute
    session.add(known)
    session.flush()
    return episode.place, known.measure  # type: ignore[return-value]  # one of ours


def _recent(session: Session, place: Place, measure: rates.Measure, now: datetime) -> list[ThrottleEpisode]:
    row = ThrottleEpisode
    same = (col(row.workspace) == place[0], col(row.deployment) == place[1], col(row.measure) == measure)
    return list(session.exec(select(row).where(*same, col(row.began_at) >= now - _TAUGHT_BY).order_by(col(row.used).desc(), col(row.id)).limit(100)))


def _teach(session: Session, place: Place, measure: rates.Measure, *, now: datetime) -> None:
    """Two episodes at about the same level are a limit: the higher of them."""
    agreeing = _recent(session, place, measure, now)[:2]
    if len(agreeing) < 2 or agreeing[1].used * 100 < agreeing[0].used * _AGREES:
        return
    times = sorted(one.began_at for one in agreeing)
    levels = sorted(one.used for one in agreeing)
    evidence = f"Azure answered 429 when the minute before had used {levels[0]:,} and {levels[1]:,}, at {rfc3339(times[0])} and {rfc3339(times[1])}"
    set_limit(
        session, workspace=place[0], deployment=place[1], measure=measure, value=agreeing[0].used, source=LimitSource.OBSERVED,
        evidence=evidence, seen_at=times[1], now=now,
    )  # fmt: skip


def _take_back(session: Session, place: Place, measure: rates.Measure, most: int, *, now: datetime) -> None:
    """More than the observed limit went through: the episodes below it were somebody else's doing."""
    for episode in _recent(session, place, measure, now):
        if episode.used < most:
            session.delete(episode)
    set_limit(session, workspace=place[0], deployment=place[1], measure=measure, value=None, source=LimitSource.OBSERVED, now=now)
