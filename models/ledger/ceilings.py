"""What calls whose tokens nobody told may have used at most: each as much as the 99th percentile of its deployment's calls that day.

Few days need the figure itself. What is asked is mostly whether it is at least as high as a gap is wide, and one call in a hundred
above that is proof enough: a look into some hours of a day instead of at all of its events.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session

from models.charges import MeterKind
from models.columns import to_microseconds

Place = tuple[str | None, str | None]  # workspace, deployment
Asked = tuple[Place, MeterKind]
KINDS = (MeterKind.INPUT, MeterKind.OUTPUT, MeterKind.CACHED_INPUT)  # that a call may have tokens of

_HOUR = timedelta(hours=1)
# Hours of the day that are looked at, one after the other: first some far from each other, as most questions are answered there.
_WINDOWS = ((12, 13), (0, 1), (18, 19), (6, 7), (1, 6), (7, 12), (13, 18), (19, 24))
# Of a day at most so many events are looked at (its hours in that order); the percentile is of those then.
_MOST = 1_000_000
_AT_ONCE = 10_000
_EVENTS = "SELECT e.series_id, e.input_tokens, e.output_tokens, e.cached_input_tokens FROM usage_event e"


def ceilings(
    session: Session, day: datetime, asked: Mapping[Asked, int], *, series: Mapping[int, Place], calls: Mapping[Place, int], as_of: datetime | None
) -> dict[Asked, int]:
    """Tokens that a call had at most: the 99th percentile (nearest rank) of the day that starts at ``day``, or what is ``asked`` for where it is no less.

    ``series`` tells whose the events of a series are, ``calls`` how many a deployment had that day at the most, known tokens or not.
    Calls that were taken back do not count; with ``as_of`` nor do those that arrived later. Nothing where no tokens are known.
    """
    counts: dict[Place, dict[MeterKind, list[int | None]]] = {place: {kind: [] for kind in KINDS} for place, _ in asked}
    above = dict.fromkeys(asked, 0)
    waiting = dict(asked)
    counting = _counting(session, day, as_of=as_of)
    left = _MOST
    for first, last in _WINDOWS:
        wanted = {place for place, _ in waiting}
        ids = [number for number, place in series.items() if place in wanted]
        if not ids or left <= 0:
            break
        seen = {(place, kind): len(counts[place][kind]) for place, kind in waiting}
        adders = {number: tuple(counts[series[number]][kind].append for kind in KINDS) for number in ids}
        window = f"e.time >= {to_microseconds(day + first * _HOUR)} AND e.time < {to_microseconds(day + last * _HOUR)}"
        events = sa.text(f"{_EVENTS} WHERE {window} AND e.series_id IN ({', '.join(map(str, ids))}){counting} LIMIT {left}")
        for some in session.execute(events).partitions(_AT_ONCE):
            left -= len(some)
            for number, inputs, outputs, cached in some:
                add_input, add_output, add_cached = adders[number]
                add_input(inputs)
                add_output(outputs)
                add_cached(cached)
        for one, before in seen.items():
            place, kind = one
            least = asked[one]
            above[one] += sum([count is not None and count >= least for count in counts[place][kind][before:]])
            # No more than a hundredth of them are above the 99th percentile.
            if above[one] > calls[place] // 100:
                del waiting[one]
    return dict(asked) | {(place, kind): _percentile(counts[place][kind]) for place, kind in waiting}


def _counting(session: Session, day: datetime, *, as_of: datetime | None) -> str:
    """What else is asked of the day's events (``e``): that they had arrived, and were not taken back."""
    known, made = ("", "") if as_of is None else (f" AND e.received_at <= {to_microseconds(as_of)}", f" AND made_at <= {to_microseconds(as_of)}")
    of_day = f"time >= {to_microseconds(day)} AND time < {to_microseconds(day + 24 * _HOUR)}"
    # On most days nothing was: to ask of each event would take longer than the rest.
    if session.scalar(sa.text(f"SELECT 1 FROM usage_posting WHERE {of_day}{made} LIMIT 1")) is None:  # noqa: S608 - numbers of ours only
        return known
    return f"{known} AND COALESCE((SELECT SUM(sign) FROM usage_posting p WHERE p.seq = e.seq{made}), 0) >= 0"  # noqa: S608 - numbers of ours only


def _percentile(counts: list[int | None]) -> int:
    known = sorted(count for count in counts if count is not None)
    return known[-(-99 * len(known) // 100) - 1] if known else 0
