"""How fast deployments are used: tokens, requests and 429s per minute, over windows that slide by the second.

The rollup per minute says where anything can be near a limit at all; the seconds come from the events themselves. An event
counts at the end of its call, or at its arrival if the sender's clock is ahead, and not at all if it arrived too late to
be about now. The other reading of tokens, ``admitted``, counts what a call may use when it begins: Azure documents for few
routes which of the two it compares with a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import sqlalchemy as sa
from sqlmodel import Session

from models.limits import Counting, Limits
from models.usage import DEFAULT_MAX_TOKENS, MINUTE_SECONDS, STATUS_CODE, Status

Measure = Literal["tokens_per_minute", "requests_per_minute", "throttled_requests"]
MEASURES: tuple[Measure, ...] = ("tokens_per_minute", "requests_per_minute", "throttled_requests")
# An event that arrives later than this after its call is history: it is counted everywhere and pages nobody (CONTRACT.md).
MAX_LATENESS_SECONDS = 600
# A sender's clock may be this far ahead and its time still stands (CONTRACT.md).
_AHEAD_SECONDS = 300
WINDOWS = (60, 300)
# Where nothing else is known: Azure ML serverless endpoints (reference of 2026; CONTRACT.md "Admission").
DEFAULT_TOKENS_PER_MINUTE = 400_000
DEFAULT_REQUESTS_PER_MINUTE = 1_000
_THROTTLED = STATUS_CODE[Status.THROTTLED]
_CHUNK = 500
_FOR_EVER = 2**62

Counts = tuple[int, int, int]  # in the order of MEASURES


@dataclass(frozen=True, slots=True)
class Limit:
    """What a deployment may use a minute, who says so, and which reading of tokens counts against it."""

    value: int
    source: str
    counting: Counting = Counting.BILLED


def limit_of(known: Limits, workspace: str | None, deployment: str | None, measure: Measure, *, is_said: bool = False) -> Limit | None:
    """The limit of a deployment: as somebody said it, else the default; None where there is none (nobody limits 429s).

    ``is_said``: what was only observed does not count.
    """
    if measure == "throttled_requests":
        return None
    said = known.of(workspace, deployment, measure, is_said=is_said)
    if said is not None:
        return Limit(said.value, said.source.value, said.counting)
    return Limit(DEFAULT_TOKENS_PER_MINUTE if measure == "tokens_per_minute" else DEFAULT_REQUESTS_PER_MINUTE, "default")


def minutes(session: Session, *, start: int, end: int) -> dict[int, dict[int, Counts]]:
    """Counts per series and minute (seconds since 1970) from the rollup; what lies ahead of ``end`` counts in its minute."""
    found: dict[int, dict[int, Counts]] = {}
    rows = session.execute(
        sa.text(
            "SELECT series_id, starts_at, SUM(CASE WHEN outcome % 2 = 1 THEN input_tokens + output_tokens ELSE 0 END), SUM(requests), "
            "SUM(CASE WHEN outcome / 2 = :throttled THEN requests ELSE 0 END) FROM usage_minute "
            "WHERE starts_at >= :start AND starts_at < :end GROUP BY series_id, starts_at"
        ),
        {"start": start - MINUTE_SECONDS, "end": end + _AHEAD_SECONDS + MINUTE_SECONDS, "throttled": _THROTTLED},
    )
    latest = end // MINUTE_SECONDS * MINUTE_SECONDS
    for series, minute, *counts in rows:
        of = found.setdefault(int(series), {})
        at = min(int(minute), latest)
        before = of.get(at, (0, 0, 0))
        of[at] = (before[0] + int(counts[0]), before[1] + int(counts[1]), before[2] + int(counts[2]))
    return found


def bound(of_series: Iterable[Mapping[int, Counts]], index: int, *, window: int) -> int:
    """The most that any window of that many seconds can hold: a window lies within that many minutes and one."""
    together: dict[int, int] = {}
    for of in of_series:
        for minute, counts in of.items():
            together[minute] = together.get(minute, 0) + counts[index]
    reach = window + MINUTE_SECONDS
    ordered = sorted(together.items())
    most = held = first = 0
    for minute, count in ordered:
        held += count
        while ordered[first][0] <= minute - reach:
            held -= ordered[first][1]
            first += 1
        most = max(most, held)
    return most


def seconds(session: Session, *, series: Sequence[int], start: int, end: int, late: int | None = MAX_LATENESS_SECONDS) -> dict[int, dict[int, Counts]]:
    """Counts per series and second in ``[start, end]``, of the events that arrived at most so many seconds late (None: however late)."""
    found: dict[int, dict[int, Counts]] = {}
    at = "CASE WHEN received_at < time THEN received_at ELSE time END / 1000000"
    for index in range(0, len(series), _CHUNK):
        only = ",".join(map(str, series[index : index + _CHUNK]))
        rows = session.execute(
            sa.text(
                f"SELECT series_id, {at}, SUM(CASE WHEN billable THEN COALESCE(input_tokens, 0) + COALESCE(output_tokens, 0) ELSE 0 END), COUNT(*), "  # noqa: S608 - numbers of ours only
                f"SUM(CASE WHEN status = {_THROTTLED} THEN 1 ELSE 0 END) FROM usage_event "
                f"WHERE time >= :start AND time < :end AND received_at - time <= :late AND series_id IN ({only}) GROUP BY 1, 2"
            ),
            {"start": start * 1_000_000, "end": (end + _AHEAD_SECONDS + 1) * 1_000_000, "late": _FOR_EVER if late is None else late * 1_000_000},
        )
        for one, second, *counts in rows:
            if int(second) <= end:
                found.setdefault(int(one), {})[int(second)] = (int(counts[0]), int(counts[1]), int(counts[2]))
        # Of several witnesses of one call one counts.
        taken = session.execute(
            sa.text(
                "SELECT series_id, time / 1000000, SUM(CASE WHEN outcome % 2 = 1 THEN sign * (input_tokens + output_tokens) ELSE 0 END), SUM(sign), "  # noqa: S608 - numbers of ours only
                f"SUM(CASE WHEN outcome / 2 = {_THROTTLED} THEN sign ELSE 0 END) FROM usage_posting "
                f"WHERE time >= :start AND time < :end AND series_id IN ({only}) GROUP BY 1, 2"
            ),
            {"start": start * 1_000_000, "end": (end + 1) * 1_000_000},
        )
        for one, second, *counts in taken:
            before = found.get(int(one), {}).get(int(second))
            if before is not None:
                found[int(one)][int(second)] = (before[0] + int(counts[0]), before[1] + int(counts[1]), before[2] + int(counts[2]))
    return found


@dataclass(frozen=True, slots=True)
class Reserve:
    """What decides how much the calls of a series may be answered: the model's context (None: not known), and whether it answers in tokens."""

    context: int | None
    is_generating: bool


def admitted(
    session: Session, *, series: Mapping[int, Reserve], start: int, end: int, slot: int = 1, late: int | None = MAX_LATENESS_SECONDS
) -> dict[int, dict[int, Counts]]:
    """Tokens that calls which began in ``[start, end]`` were admitted for, per series and second (or ``slot`` of seconds); requests and 429s are 0.

    That is the prompt and, for each candidate (the higher of ``n`` and ``best_of``; the beams of a beam search are its
    ``best_of``), the most it may be answered: ``max_tokens``, else the default or what it was answered if that is more; no
    answer is longer than the model's context leaves it. Calls that were refused, or answered from a gateway's cache, were
    not admitted; calls that have not ended yet are not known.
    """
    lite = session.get_bind().dialect.name == "sqlite"
    most, least = ("MAX", "MIN") if lite else ("GREATEST", "LEAST")

    def detail(name: str) -> str:
        return f"json_extract(e.details, '$.{name}')" if lite else f"(e.details::json ->> '{name}')::bigint"

    prompt = "COALESCE(e.input_tokens, 0)"
    candidates = f"{most}(COALESCE({detail('choices')}, 1), COALESCE({detail('best_of')}, 1), 1)"
    asked = f"COALESCE({detail('max_tokens')}, {most}({DEFAULT_MAX_TOKENS}, (COALESCE(e.output_tokens, 0) + {candidates} - 1) / {candidates}))"
    begun = "COALESCE(e.started_at, e.time - e.duration_ms * 1000, e.time)"
    at = f"CASE WHEN e.received_at < {begun} THEN e.received_at ELSE {begun} END / 1000000 / {slot} * {slot}"
    alike: dict[Reserve, list[int]] = {}
    for one, reserve in series.items():
        alike.setdefault(reserve, []).append(one)
    found: dict[int, dict[int, Counts]] = {}
    for reserve, ids in alike.items():
        answer = asked if reserve.context is None else f"{least}({asked}, {most}({reserve.context} - {prompt}, 0))"
        tokens = f"{prompt} + ({answer}) * {candidates}" if reserve.is_generating else prompt
        for index in range(0, len(ids), _CHUNK):
            only = ",".join(map(str, ids[index : index + _CHUNK]))
            rows = session.execute(
                sa.text(
                    f"SELECT e.series_id, {at}, SUM({tokens}) FROM usage_event e "  # noqa: S608 - numbers and names of ours
                    f"WHERE e.time >= :start AND e.time < :end AND e.received_at - e.time <= :late AND e.series_id IN ({only}) "
                    f"AND e.status <> {_THROTTLED} AND e.billable "
                    "AND COALESCE((SELECT SUM(p.sign) FROM usage_posting p WHERE p.seq = e.seq), 0) >= 0 GROUP BY 1, 2"
                ),
                {"start": start * 1_000_000, "end": (end + _AHEAD_SECONDS + 1) * 1_000_000, "late": _FOR_EVER if late is None else late * 1_000_000},
            )
            for one, second, amount in rows:
                if start <= int(second) <= end:
                    found.setdefault(int(one), {})[int(second)] = (int(amount), 0, 0)
    return found


def sliding(of_series: Iterable[Mapping[int, Counts]], index: int, *, window: int, start: int, end: int) -> list[tuple[int, int]]:
    """What the last ``window`` seconds held, from ``start`` to ``end``: (from which second on, the sum), each until the next.

    An event counts from its own second on, for that many seconds.
    """
    changes: dict[int, int] = {}
    for of in of_series:
        for second, counts in of.items():
            if counts[index] and start - window < second <= end:
                changes[second] = changes.get(second, 0) + counts[index]
                changes[second + window] = changes.get(second + window, 0) - counts[index]
    line = [(start, 0)]
    held = 0
    for second, group in groupby(sorted(changes.items()), key=lambda change: max(start, change[0])):
        if second > end:
            break
        held += sum(change for _, change in group)
        if second == line[-1][0]:
            line[-1] = (second, held)
        else:
            line.append((second, held))
    return line
