"""What was paid for answers that nobody could use well: cut off, filtered, thrown away, or run past their end.

Reads the calls themselves, as only they know why an answer ended, so it takes a month at most. Counts are exact. Money
is tokens × the price of their quarter hour, as in metered cost; it is the cost of the calls concerned, not a saving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

import sqlalchemy as sa
from sqlmodel import Session

from models import money
from models.charges import MeterKind
from models.columns import from_microseconds, to_microseconds
from models.errors import InvalidInput
from models.ledger.costs import Answer
from models.ledger.meanings import Meaning
from models.ledger.values import CostQuery, Filters
from models.periods import Period, utc_day
from models.usage import QUARTER_SECONDS, STATUS_OF_CODE, Status

WasteKind = Literal["length", "content_filter", "content_filter_error", "candidates", "ignore_eos", "error", "throttled"]
KINDS: tuple[WasteKind, ...] = ("length", "content_filter", "content_filter_error", "candidates", "ignore_eos", "error", "throttled")
MOST = timedelta(days=31)

_ANSWERED = frozenset({Status.SUCCESS, Status.INCOMPLETE, Status.FILTERED})
# What a text of details says, in one grouping: the reason (a null stays apart from silence), candidates, and the flag of vLLM.
_SQLITE = """CASE WHEN json_type(details, '$.finish_reason') = 'null' THEN 'null' ELSE json_extract(details, '$.finish_reason') END AS reason,
COALESCE(json_extract(details, '$.best_of'), 0) AS best_of, COALESCE(json_extract(details, '$.choices'), 1) AS choices,
CASE WHEN json_extract(details, '$.ignore_eos') THEN 1 ELSE 0 END AS ignored"""
_POSTGRESQL = """CASE WHEN json_typeof(details::json -> 'finish_reason') = 'null' THEN 'null' ELSE details::json ->> 'finish_reason' END AS reason,
COALESCE((details::json ->> 'best_of')::bigint, 0) AS best_of, COALESCE((details::json ->> 'choices')::bigint, 1) AS choices,
CASE WHEN details::json ->> 'ignore_eos' = 'true' THEN 1 ELSE 0 END AS ignored"""


@dataclass(slots=True)
class WasteCount:
    """The calls of one kind: how many, their tokens, and what those cost (None where a price is missing).

    Of ``candidates`` the output is the share of the candidates that were not returned, an estimate by their number.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unknown_token_requests: int = 0
    cost: Decimal | None = money.ZERO
    estimate: bool = False


@dataclass(slots=True)
class WasteRow:
    """One deployment: its calls by how they ended, and what was wasted. ``finish_reasons`` has ``null`` and ``not_said`` apart."""

    workspace: str | None
    deployment: str | None
    currency: str | None
    requests: int = 0
    answered: int = 0
    filtered: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    waste: dict[WasteKind, WasteCount] = field(default_factory=dict)

    @property
    def filtered_share(self) -> Decimal | None:
        """Answers that a content filter stopped, of all that were answered, prompts it refused included; None without any."""
        share = money.ratio(Decimal(self.filtered), Decimal(self.answered)) if self.answered else None
        return None if share is None else money.truncated(share, 4)


@dataclass(frozen=True, slots=True)
class _Group:
    """Calls that are alike, of one quarter hour and series."""

    meaning: Meaning
    at: int
    status: Status
    reason: str | None
    best_of: int
    choices: int
    ignored: bool
    requests: int
    input: int
    output: int
    cached: int
    unknown: int


def waste(session: Session, period: Period, filters: Filters, *, now: datetime) -> list[WasteRow]:
    """Per deployment and currency, the most calls first."""
    if period.end - period.start > MOST:
        raise InvalidInput("waste is read from the calls themselves, at most 31 days at a time; ask for a shorter period")
    answer = Answer(session, CostQuery(period, "none", filters=filters), now=now)
    rows: dict[tuple[str | None, str | None, str | None], WasteRow] = {}
    for group in _groups(session, answer, period):
        identity = group.meaning.identity
        terms = {term.meter: (term.factor, term.currency) for term in answer.meanings.terms(group.meaning, utc_day(from_microseconds(group.at * 1_000_000)))}
        currency = next((currency for _, currency in terms.values() if currency is not None), None)
        row = rows.setdefault((identity.workspace, identity.deployment, currency), WasteRow(identity.workspace, identity.deployment, currency))
        _add(row, group, {meter: factor for meter, (factor, _) in terms.items()})
    return sorted(rows.values(), key=lambda row: (-row.requests, row.workspace or "", row.deployment or "", row.currency or ""))


def _groups(session: Session, answer: Answer, period: Period) -> list[_Group]:
    said = _SQLITE if session.get_bind().dialect.name == "sqlite" else _POSTGRESQL
    found = session.execute(
        sa.text(
            f"SELECT time / {QUARTER_SECONDS * 1_000_000} * {QUARTER_SECONDS} AS slot, series_id, status, {said}, COUNT(*), "  # noqa: S608 - texts of ours
            "SUM(CASE WHEN billable THEN COALESCE(input_tokens, 0) ELSE 0 END), SUM(CASE WHEN billable THEN COALESCE(output_tokens, 0) ELSE 0 END), "
            "SUM(CASE WHEN billable THEN COALESCE(cached_input_tokens, 0) ELSE 0 END), SUM(CASE WHEN is_unknown THEN 1 ELSE 0 END) "
            "FROM usage_event WHERE time >= :start AND time < :end GROUP BY 1, 2, 3, 4, 5, 6, 7"
        ),
        {"start": to_microseconds(period.start), "end": to_microseconds(period.end)},
    )
    groups = []
    for slot, series_id, status, reason, best_of, choices, ignored, *sums in found:
        meaning = answer.meanings.meaning_at(answer.world.series[int(series_id)], int(slot))
        if meaning.is_asked:
            counts = [int(value) for value in sums]
            groups.append(_Group(meaning, int(slot), STATUS_OF_CODE[int(status)], reason, int(best_of), int(choices), bool(ignored), *counts))
    return groups


def _add(row: WasteRow, group: _Group, factors: Mapping[MeterKind, Decimal | None]) -> None:
    row.requests += group.requests
    is_answered = group.status in _ANSWERED
    if is_answered:
        row.answered += group.requests
        reason = group.reason or "not_said"
        row.finish_reasons[reason] = row.finish_reasons.get(reason, 0) + group.requests
    if group.status is Status.FILTERED:
        row.filtered += group.requests
    for kind in _kinds(group):
        output, is_estimate = group.output, False
        inputs, cached = group.input, group.cached
        if kind == "candidates":
            # The prompt was needed anyway; of the output the candidates that came back were.
            output, inputs, cached, is_estimate = group.output * (group.best_of - group.choices) // group.best_of, 0, 0, True
        into = row.waste.setdefault(kind, WasteCount())
        into.requests += group.requests
        into.input_tokens += inputs
        into.output_tokens += output
        into.unknown_token_requests += group.unknown
        into.estimate |= is_estimate
        cost = _cost(factors, inputs=inputs, cached=min(cached, inputs), output=output)
        into.cost = None if cost is None or into.cost is None else money.plus(into.cost, cost)


def _kinds(group: _Group) -> list[WasteKind]:
    """What is wasted about the calls; one may be wasteful in several ways, so kinds are never added up."""
    found: list[WasteKind] = []
    if group.status is Status.ERROR:
        found.append("error")
    elif group.status is Status.THROTTLED:
        found.append("throttled")
    elif group.status is Status.FILTERED:
        found.append("content_filter_error" if group.reason == "content_filter_error" else "content_filter")
    elif group.reason in {"length", "max_tokens", "max_output_tokens"}:
        found.append("length")
    if group.best_of > group.choices:
        found.append("candidates")
    if group.ignored:
        found.append("ignore_eos")
    return found


def _cost(factors: Mapping[MeterKind, Decimal | None], *, inputs: int, cached: int, output: int) -> Decimal | None:
    """What the tokens cost; None where some have no price, as those of managed compute, which is paid by the hour."""
    is_split = MeterKind.CACHED_INPUT in factors
    parts = {
        MeterKind.INPUT: inputs - cached * is_split,
        MeterKind.CACHED_INPUT: cached * is_split,
        MeterKind.OUTPUT: output,
        MeterKind.TRAINING: inputs + output if MeterKind.TRAINING in factors else 0,
    }
    total = money.ZERO
    for meter, tokens in parts.items():
        factor = factors.get(meter)
        if tokens and meter in factors:
            if factor is None:
                return None
            total = money.plus(total, money.times(factor, tokens))
    return total
