"""Why a figure of any page is what it is: one question for all of them, answered with the formula and what went into it.

A figure is named by ``Ask``: its name, the query that it was read with, and what narrows it further (a meter, a day, a
cause, a pool, a budget). ``why`` reads it again through the ledger function that the page and the route read, so that
drawer, page and API cannot say different things, and adds what it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Literal
from urllib.parse import quote, urlencode

from sqlmodel import Session

from models import money
from models.errors import InvalidInput, NotFound
from models.ledger.alerts import alerts, budget_standings
from models.ledger.closing import adjustments
from models.ledger.comparison import ComparisonRow, comparison, what_if_from
from models.ledger.costs import costs
from models.ledger.events import receipt
from models.ledger.explain import FORMULA, Explanation, explain
from models.ledger.insight import data_age, forecast
from models.ledger.intake import Intake, intake
from models.ledger.invoices import SHARES, invoices
from models.ledger.onboarding import onboarding
from models.ledger.quotas import Pool, pressure, quotas
from models.ledger.reconciliation import ReconciliationRow, invoiced_of, reconciliation, unknown_calls
from models.ledger.since import before_last_landing, moved_since
from models.ledger.values import Basis, CostQuery, DataAge, Figures, Filters
from models.ledger.witnesses import problems, witness_rows
from models.ledger.worklist import WAITED_FOR
from models.periods import DAY, Period, day_start, month_period, month_start, rfc3339, utc_day
from models.variance import Cause

Kind = Literal["money", "tokens", "count", "share", "hours", "rate"]
Number = Decimal | int
# What narrows a figure beside the filters of every read.
OWN = (
    *("figure", "without", "meter", "day", "cause", "side", "pool", "budget", "alert", "problem", "subject", "sender", "invoice", "since"),
    *("line", "event", "witness"),
    *("sku", "instances", "hours_per_day"),
)
_MOST_ROWS = 60
_LATELY = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Ask:
    """Which figure, of which question. ``own`` holds what narrows it further, by the names of ``OWN``."""

    figure: str
    query: CostQuery
    own: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Term:
    """A number that went into a figure; ``unit`` is its currency where it is money.

    ``place`` and ``own`` are where the same figure stands by itself, where it does: a workspace and a deployment, and what else narrows it.
    """

    name: str
    value: Number | None
    kind: Kind
    unit: str | None = None
    place: tuple[str | None, str | None] | None = None
    own: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Why:
    """A figure with everything behind it. ``rows`` add up to it where ``adds_up``; ``more_rows`` are left out, largest first."""

    figure: str
    words: str
    value: Number | None
    kind: Kind
    unit: str | None
    reason: str | None
    formula: str
    terms: Sequence[Term]
    rows: Sequence[Term]
    more_rows: int
    adds_up: bool
    evidence: Explanation | None
    route: str
    parameters: Sequence[tuple[str, str]]
    age: DataAge

    @property
    def request(self) -> str:
        """The path and query by which the API tells the same figure."""
        return self.route + (f"?{urlencode(list(self.parameters), quote_via=quote, safe=',:')}" if self.parameters else "")


def why(session: Session, ask: Ask, *, now: datetime) -> Why:
    """The figure that is asked about, read again, and why it is what it is."""
    known = FIGURES.get(ask.figure)
    if known is None:
        raise InvalidInput(f"there is no figure {ask.figure[:40]!r} to explain; there are {', '.join(sorted(FIGURES))}")
    found = known.answer(session, ask, now)
    rows = sorted((row for row in found.rows if row.value), key=lambda row: (-abs(Decimal(row.value or 0)), row.name))
    return Why(
        figure=ask.figure,
        words=known.words,
        value=found.value,
        kind=known.kind,
        unit=found.unit,
        reason=found.reason,
        formula=found.formula or known.formula,
        terms=found.terms,
        rows=rows[:_MOST_ROWS],
        more_rows=max(0, len(rows) - _MOST_ROWS),
        adds_up=found.adds_up,
        evidence=found.evidence,
        route=found.route,
        parameters=found.parameters,
        age=found.evidence.age if found.evidence is not None else data_age(session, visible=ask.query.filters.visible, now=now),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A figure before it is told."""

    value: Number | None
    unit: str | None
    route: str
    parameters: Sequence[tuple[str, str]] = ()
    formula: str = ""
    reason: str | None = None
    terms: Sequence[Term] = ()
    rows: Iterable[Term] = ()
    adds_up: bool = False
    evidence: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that can be explained: what it is called, how it is written, how it comes about, and who answers."""

    words: str
    kind: Kind
    formula: str
    answer: Callable[[Session, Ask, datetime], _Found]


def query_parameters(query: CostQuery) -> list[tuple[str, str]]:
    """The period and filters of a question as the routes take them."""
    filters = query.filters
    said = [("from", rfc3339(query.period.start)), ("to", rfc3339(query.period.end))]
    for name, values in (
        ("workspace", filters.workspaces),
        ("deployment", filters.deployments),
        ("model", filters.models),
        ("application", filters.applications),
        ("team", filters.teams),
        ("mode", tuple(mode.value for mode in filters.modes)),
    ):
        said += [(name, value) for value in values]
    said += [(f"tag:{key}", value) for key, value in filters.tags]
    return said


def _narrowed(ask: Ask) -> list[tuple[str, str]]:
    currency = ask.query.currency
    return query_parameters(ask.query) + ([] if currency is None else [("currency", currency)])


def _without(ask: Ask) -> tuple[str, ...]:
    """What the figure has none of: the unallocated row's deployment, say."""
    return tuple(name for name in ask.own.get("without", "").split(",") if name and name != "currency")


def _has_no_currency(ask: Ask) -> bool:
    return "currency" in ask.own.get("without", "").split(",")


def _as_of(ask: Ask) -> list[tuple[str, str]]:
    return [] if ask.query.as_of is None else [("as_of", rfc3339(ask.query.as_of))]


# -- costs, tokens, requests ------------------------------------------------------------------------


def _of_costs(session: Session, ask: Ask, now: datetime) -> _Found:
    groups, wanted = _without(ask), ask.query.currency
    basis: Basis = "metered" if ask.figure == "metered_cost" else "billed" if ask.figure == "billed_cost" else ask.query.basis
    whole = explain(session, replace(ask.query, group_by=groups, basis=basis), now=now)

    def is_meant(figures: Figures) -> bool:
        return figures.currency == wanted or (wanted is None and not _has_no_currency(ask))

    meant = [row.figures for row in whole.rows if not any(row.groups.values())] if groups else list(whole.totals)
    figures = next((one for one in meant if is_meant(one)), None)
    value = None if figures is None else _tokens(figures) if ask.figure == "tokens" else getattr(figures, ask.figure)
    split = costs(session, replace(ask.query, granularity="none", group_by=_finer(ask)), now=now)
    rows = []
    for row in split.rows:
        if is_meant(row.figures) and all(row.groups.get(name) is None for name in groups if name in row.groups):
            part = _tokens(row.figures) if ask.figure == "tokens" else getattr(row.figures, ask.figure)
            place = (row.groups["workspace"], row.groups["deployment"]) if "deployment" in row.groups else None
            rows.append(Term(" / ".join(name or "unallocated" for name in row.groups.values()), part, FIGURES[ask.figure].kind, row.figures.currency, place))
    evidence = replace(
        whole,
        metered=[line for line in whole.metered if (wanted is None or line.currency == wanted) and _lacks(line, groups)],
        billed=[line for line in whole.billed if (wanted is None or line.currency == wanted) and _lacks(line, groups)],
    )
    beside = () if figures is None else _BESIDE[ask.figure]
    terms = [Term(FIGURES[name].words, getattr(figures, name), FIGURES[name].kind, wanted) for name in beside]
    return _Found(
        value=value,
        unit=None if figures is None else figures.currency,
        formula=FORMULA[basis] if FIGURES[ask.figure].kind == "money" else "",
        reason="nothing is known of this selection" if figures is None else figures.reasons.get(ask.figure),
        terms=terms,
        rows=rows,
        adds_up=ask.figure != "coverage",
        evidence=evidence,
        route="/v1/costs",
        parameters=[
            *_narrowed(ask),
            ("granularity", "none"),
            *([("group_by", ",".join(groups))] if groups else []),
            *([("basis", ask.query.basis)] if ask.query.basis != "best" else []),
            *_as_of(ask),
        ],
    )


def _finer(ask: Ask) -> tuple[str, ...]:
    """What the rows behind a figure are: its deployments, of one deployment its meters' owners."""
    return ("workspace", "deployment") if len(ask.query.filters.deployments) != 1 else ("application", "team")


def _lacks(line: object, groups: Sequence[str]) -> bool:
    return all(getattr(line, name, None) is None for name in groups)


def _tokens(figures: Figures) -> int:
    return figures.input_tokens + figures.output_tokens


_BESIDE: Mapping[str, Sequence[str]] = {
    "cost": ("metered_cost", "billed_cost"),
    "metered_cost": ("unpriced_tokens", "unknown_token_requests"),
    "billed_cost": (),
    "tokens": ("input_tokens", "output_tokens"),
    "input_tokens": ("cached_input_tokens", "unknown_token_requests"),
    "output_tokens": ("unknown_token_requests",),
    "cached_input_tokens": ("input_tokens",),
    "requests": ("unknown_token_requests",),
    "core_hours": (),
    "coverage": ("metered_cost", "billed_cost", "unknown_token_requests", "unpriced_tokens"),
    "unpriced_tokens": ("input_tokens", "output_tokens"),
    "unknown_token_requests": ("requests",),
    "estimated_token_requests": ("requests",),
}


def _of_forecast(session: Session, ask: Ask, now: datetime) -> _Found:
    month = month_period(utc_day(now))
    query = replace(ask.query, period=Period(month.start, now), basis="best", group_by=())
    found = next((one for one in forecast(session, ask.query.filters, now=now) if one.currency == ask.query.currency), None)
    spent = _of_costs(session, replace(ask, figure="cost", query=query), now)
    if found is None:
        return replace(spent, value=None, reason="there is no spend to go by")
    if ask.figure == "month_to_date":
        return replace(spent, value=found.month_to_date, unit=found.currency, formula=FIGURES[ask.figure].formula)
    return replace(
        spent,
        value=found.month_end,
        unit=found.currency,
        reason=found.reason,
        formula=FIGURES[ask.figure].formula,
        route="/v1/explain",
        parameters=[*_narrowed(ask), ("figure", ask.figure)],
        terms=[Term("month to date", found.month_to_date, "money", found.currency), Term("complete days to go by", found.complete_days, "count")],
        adds_up=False,
    )


# -- bill against metering --------------------------------------------------------------------------


def _of_reconciliation(session: Session, ask: Ask, now: datetime) -> _Found:
    period, day, meter = ask.query.period, _day(ask), ask.own.get("meter")
    found = reconciliation(session, period, ask.query.filters, now=now, as_of=ask.query.as_of)
    if ask.query.currency is None and not _has_no_currency(ask) and found.totals:
        ask = replace(ask, query=replace(ask.query, currency=found.totals[0].currency))
    rows = [row for row in found.rows if _is_asked(row, ask, day=day, meter=meter)]
    cause = Cause.UNEXPLAINED if ask.figure == "unexplained" else _cause(ask)
    read: Callable[[ReconciliationRow], Decimal] = {
        "expected": lambda row: row.expected,
        "billed": lambda row: row.billed,
        "invoiced": lambda row: row.invoiced or money.ZERO,
        "variance": lambda row: row.variance,
        "left": lambda row: money.minus(row.variance, money.add(row.causes.get(cause, money.ZERO) for cause in WAITED_FOR)),
    }.get(ask.figure, lambda row: row.causes.get(cause or Cause.UNEXPLAINED, money.ZERO))
    total = next((one for one in found.totals if one.currency == ask.query.currency), None)
    value: Decimal | None = money.add(read(row) for row in rows)
    invoiced, not_invoiced = invoiced_of(rows)
    if ask.figure == "invoiced":
        value = invoiced
    if ask.figure == "bill_coverage":
        value, read = None if total is None else total.coverage, lambda row: row.billed
    of_day = period if day is None else Period(day_start(day), day_start(day + DAY))
    query = replace(ask.query, period=of_day, basis="metered" if ask.figure == "expected" else "billed", group_by=_without(ask))
    whole = explain(session, query, now=now)
    currency = ask.query.currency
    evidence = replace(
        whole,
        metered=[line for line in whole.metered if line.currency == currency and meter in (None, line.meter) and _lacks(line, _without(ask))],
        billed=[line for line in whole.billed if line.currency == currency and meter in (None, line.meter) and _lacks(line, _without(ask))],
    )
    return _Found(
        value=value,
        unit=currency,
        reason=not_invoiced if ask.figure == "invoiced" else None,
        formula=CAUSES[cause] if cause is not None and ask.figure in ("cause", "unexplained") else "",
        terms=[
            Term("expected", money.add(row.expected for row in rows), "money", currency),
            Term("billed", money.add(row.billed for row in rows), "money", currency),
            Term("invoiced", invoiced, "money", currency),
            Term("calls of unknown tokens", unknown_calls(rows), "count"),
        ],
        rows=[
            Term(
                *(f"{row.day} · {row.workspace or 'unallocated'} / {row.deployment or 'unallocated'} · {row.meter}", read(row), "money", currency),
                place=(row.workspace, row.deployment),
                own={"day": row.day.isoformat(), "meter": row.meter, **({"cause": cause.value} if ask.figure == "cause" and cause is not None else {})},
            )
            for row in rows
        ],
        adds_up=ask.figure != "bill_coverage",
        evidence=evidence,
        route="/v1/reconciliation",
        parameters=[pair for pair in _narrowed(replace(ask, query=query)) if pair[0] in ("from", "to", "workspace", "deployment", "currency")] + _as_of(ask),
    )


def _is_asked(row: ReconciliationRow, ask: Ask, *, day: date | None, meter: str | None) -> bool:
    return row.currency == ask.query.currency and day in (None, row.day) and meter in (None, row.meter) and _lacks(row, _without(ask))


def _day(ask: Ask) -> date | None:
    said = ask.own.get("day")
    try:
        return None if said is None else date.fromisoformat(said)
    except ValueError as fault:
        raise InvalidInput(f"day must be written like 2026-11-03, not {said[:20]!r}" if said else "day is empty") from fault


def _cause(ask: Ask) -> Cause | None:
    said = ask.own.get("cause")
    if ask.figure != "cause":
        return None
    if said not in set(Cause):
        raise InvalidInput(f"cause must be one of {', '.join(Cause)}")
    return Cause(said)


# How each cause of a variance comes about, in the order in which they are taken (DESIGN.md "Reconciliation").
CAUSES: Mapping[Cause, str] = {
    Cause.UNMAPPED_METER: "the whole difference of meters whose kind no mapping says",
    Cause.NOT_METERED: "what was billed for hosting, commitments and training: nobody meters it",
    Cause.CREDIT_OR_REFUND: "credits, refunds and other charges that are no usage",
    Cause.CURRENCY: "the one side of a day whose bill and price are in two currencies without a rate between them",
    Cause.UNIT_MISMATCH: "billed quantity is 1,000 or 1,000,000 times the metered one, or the reverse, at the same price: the whole difference",
    Cause.PRICE_DIFFERENCE: "billed - expected price x billed quantity",
    Cause.UNKNOWN_TOKENS: "what calls without tokens may have used: at most their number x the 99th percentile of the deployment's calls that day x price",
    Cause.NOT_INSTRUMENTED: "billed above expected where nobody metered the deployment within a day",
    Cause.NOT_YET_BILLED: "expected above billed while the day is not closed: the bill may still come",
    Cause.TIMING: "what one day has too much and the day beside it too little of, at most the smaller of the two",
    Cause.UNMETERED_USAGE: "billed quantity above the metered one at the expected price, on a deployment that is metered: calls past the instruments",
    Cause.UNBILLED_USAGE: "metered quantity above the billed one at the expected price, after the day was closed",
    Cause.ROUNDING: "a rest of at most half a last digit for every billed line, and the bill's own rounding adjustments",
    Cause.UNEXPLAINED: "what is left when every other cause has taken its part",
}


def _of_adjustment(session: Session, ask: Ask, now: datetime) -> _Found:
    day = _day(ask)
    if day is None:
        raise InvalidInput("an adjustment is of a day: say day=2026-10-03")
    own = ask.own
    month = month_start(day)
    rows = [
        one
        for one in adjustments(session, month, filters=ask.query.filters, now=now)
        if (one.day, one.meter, one.side, one.cause, one.currency) == (day, own.get("meter"), own.get("side"), own.get("cause"), ask.query.currency)
        and _lacks(one, _without(ask))
    ]
    kept = [(name, value) for name, value in query_parameters(ask.query) if name == "workspace"]
    return _Found(
        value=money.add(one.amount for one in rows),
        unit=ask.query.currency,
        rows=[Term(f"{one.workspace or 'unallocated'} / {one.deployment or 'unallocated'}", one.amount, "money", one.currency) for one in rows],
        adds_up=True,
        route="/v1/adjustments",
        parameters=[("month", f"{month:%Y-%m}"), *kept],
    )


def _of_moved(session: Session, ask: Ask, now: datetime) -> _Found:
    since = before_last_landing(session, now=now)
    rows = [] if since is None else moved_since(session, ask.query.period, ask.query.filters, since=since, now=now)
    meant = [one for one in rows if one.currency == ask.query.currency and ask.own.get("meter") in (None, one.meter) and _lacks(one, _without(ask))]
    side = ask.figure.removeprefix("moved_")
    return _Found(
        value=money.add(getattr(one, side) for one in meant),
        unit=ask.query.currency,
        rows=[
            Term(f"{one.workspace or 'unallocated'} / {one.deployment or 'unallocated'} · {one.meter}", getattr(one, side), "money", one.currency)
            for one in meant
        ],
        adds_up=True,
        formula="" if since is None else f"{FIGURES[ask.figure].formula} (as_of={rfc3339(since)})",
        route="/v1/explain",
        parameters=[*_narrowed(ask), *((name, value) for name, value in ask.own.items() if name in ("figure", "meter", "without"))],
    )


def _of_invoice(session: Session, ask: Ask, now: datetime) -> _Found:
    month, asked = month_start(utc_day(ask.query.period.start)), ask.own.get("invoice", "-")
    found = invoices(session, month, now=now)
    one = next((each for each in found if (each.invoice_id or "-", each.currency) == (asked, ask.query.currency)), None)
    if one is None or ask.query.filters.visible is not None:
        raise NotFound(f"there is no invoice {asked[:60]!r} of {month:%Y-%m} in this currency")
    parts = [Term(share.replace("_", " "), getattr(one, share), "money", one.currency) for share in SHARES]
    value: Decimal | None = getattr(one, ask.figure.removeprefix("invoice_"))
    return _Found(
        value=value,
        unit=one.currency,
        reason=None if value is not None else "nobody has said what the invoice prints",
        terms=[
            *parts,
            Term("total", one.total, "money", one.currency),
            Term("the invoice says", one.stated, "money", one.currency),
            Term("rows", one.rows, "count"),
        ],
        route="/v1/invoices",
        parameters=[("month", f"{month:%Y-%m}")],
    )


# -- comparison -------------------------------------------------------------------------------------


def _of_comparison(session: Session, ask: Ask, now: datetime) -> _Found:
    what_if = what_if_from(ask.own)
    rows = comparison(session, ask.query.period, ask.query.filters, now=now, what_if=what_if)
    row = next((one for one in rows if ask.query.currency in (None, one.currency)), None)
    if row is None:
        raise NotFound("no such model was run in this period, in this currency")
    value, terms = _COMPARED[ask.figure](row)
    managed = row.managed
    evidence = explain(session, replace(ask.query, group_by=()), now=now)
    imagined = [(name, ask.own[name]) for name in ("sku", "instances", "hours_per_day") if name in ask.own]
    return _Found(
        value=value,
        unit=None if FIGURES[ask.figure].kind != "money" else row.currency,
        reason=None
        if value is not None
        else (managed.gpu.reason if ask.figure.startswith("gpu_") else None) or managed.reason or row.serverless.reason or row.advice.reason,
        terms=terms,
        evidence=replace(
            evidence,
            metered=[line for line in evidence.metered if line.currency == row.currency],
            billed=[line for line in evidence.billed if line.currency == row.currency],
        ),
        route="/v1/comparison",
        parameters=_narrowed(ask) + imagined,
    )


def _compared(read: Callable[[ComparisonRow], Number | None], *names: str) -> Callable[[ComparisonRow], tuple[Number | None, list[Term]]]:
    return lambda row: (read(row), [_TERMS[name](row) for name in names])


_TERMS: Mapping[str, Callable[[ComparisonRow], Term]] = {
    "capacity_cost": lambda row: Term("capacity cost of the period", row.managed.capacity_cost, "money", row.currency),
    "allocated_cost": lambda row: Term("capacity cost x utilisation (allocated)", row.managed.allocated_cost, "money", row.currency),
    "idle_cost": lambda row: Term("capacity cost - allocated (idle)", row.managed.idle_cost, "money", row.currency),
    "tokens": lambda row: Term("tokens that the instances served", row.managed.tokens, "tokens"),
    "serverless_tokens": lambda row: Term("tokens that serverless served", row.serverless.tokens, "tokens"),
    "serverless_cost": lambda row: Term("serverless cost of the period", row.serverless.cost, "money", row.currency),
    "days": lambda row: Term("days of the period", row.days, "rate"),
    "capacity": lambda row: Term("tokens a day that the instances can serve", row.managed.capacity_tokens_per_day, "tokens"),
    "input": lambda row: Term("list price of a million input tokens", row.serverless.list_input_per_1m, "money", row.currency),
    "output": lambda row: Term("list price of a million output tokens", row.serverless.list_output_per_1m, "money", row.currency),
    "mix": lambda row: Term("input's share of the tokens", row.mix_input_share, "share"),
    "list": lambda row: Term("serverless list price of a million tokens at this mix", row.serverless.list_per_1m, "money", row.currency),
    "even": lambda row: Term("break-even tokens a day", row.break_even_tokens_per_day, "tokens"),
    "cores": lambda row: Term("core-hours", row.managed.core_hours, "hours"),
    "gpu_hours": lambda row: Term("hours that Azure told", row.managed.gpu.hours, "count"),
    "limit": lambda row: Term(
        f"tokens a minute that serverless may serve, said by {row.serverless.limit_source}", row.serverless.tokens_per_minute_limit, "tokens"
    ),
    "peak_minute": lambda row: Term("tokens of the highest minute", row.peak_minute_tokens, "tokens"),
    "peak_hour": lambda row: Term("tokens of the highest hour", row.peak_hour_tokens, "tokens"),
    "imagined": lambda row: Term("tokens a day that such instances can serve", None if row.what_if is None else row.what_if.capacity_tokens_per_day, "tokens"),
    "needed": lambda row: Term("instances that the whole load needs", row.managed.instances_needed, "count"),
    "instances": lambda row: Term("instances that run", row.managed.instances, "count"),
}
_COMPARED: Mapping[str, Callable[[ComparisonRow], tuple[Number | None, list[Term]]]] = {
    "serverless_per_1m": _compared(lambda row: row.serverless.effective_cost_per_1m, "serverless_cost", "serverless_tokens"),
    "serverless_list_per_1m": _compared(lambda row: row.serverless.list_per_1m, "input", "output", "mix"),
    "allocation_per_1m": _compared(lambda row: row.managed.per_1m_allocation, "capacity_cost", "tokens"),
    "usage_per_1m": _compared(lambda row: row.managed.per_1m_usage, "allocated_cost", "tokens"),
    "capacity_cost": _compared(lambda row: row.managed.capacity_cost, "allocated_cost", "idle_cost", "cores", "days"),
    "utilisation": _compared(lambda row: row.managed.utilisation, "tokens", "capacity", "days"),
    "gpu_utilisation": _compared(lambda row: row.managed.gpu.busy, "gpu_hours"),
    "gpu_memory": _compared(lambda row: row.managed.gpu.memory, "gpu_hours"),
    "idle_cost_per_day": _compared(lambda row: row.idle_cost_per_day, "capacity_cost", "allocated_cost", "idle_cost", "days"),
    "break_even_tokens_per_day": _compared(lambda row: row.break_even_tokens_per_day, "capacity_cost", "days", "list", "input", "output", "mix"),
    "tokens_per_day": _compared(lambda row: row.tokens_per_day, "tokens", "serverless_tokens", "days"),
    "saving_per_day": _compared(lambda row: row.advice.saving_per_day, "capacity_cost", "list", "tokens", "serverless_tokens", "instances", "needed", "days"),
    "peak_minute_tokens": _compared(lambda row: row.peak_minute_tokens, "limit"),
    "peak_hour_tokens": _compared(lambda row: row.peak_hour_tokens, "instances", "needed"),
    "serverless_limit": _compared(lambda row: row.serverless.tokens_per_minute_limit, "peak_minute"),
    "instances_needed": _compared(lambda row: row.managed.instances_needed, "peak_hour", "instances", "capacity"),
    "what_if_cost_per_day": _compared(lambda row: None if row.what_if is None else row.what_if.capacity_cost_per_day),
    "what_if_break_even": _compared(lambda row: None if row.what_if is None else row.what_if.break_even_tokens_per_day, "list", "mix", "imagined"),
    "what_if_saving": _compared(lambda row: None if row.what_if is None else row.what_if.saving_per_day, "list", "tokens", "serverless_tokens", "days"),
}


# -- limits, budgets, alerts, findings --------------------------------------------------------------


def _of_pool(session: Session, ask: Ask, now: datetime) -> _Found:
    asked = ask.own.get("pool", "")
    pool = next((one for one in quotas(session, Filters(visible=ask.query.filters.visible), now=now) if one.id == asked), None)
    if pool is None:
        raise NotFound(f"there is no pool {asked[:120]!r}")
    value: int | None = getattr(pool, ask.figure.removeprefix("quota_"))
    return _Found(
        value=value,
        unit=pool.measure.replace("_", " "),
        reason=None if value is not None else "nobody said the limit" if pool.limit is None else "nothing was seen of it",
        terms=[
            Term(f"limit, said by {(pool.limit_source or 'nobody').replace('_', ' ')}", pool.limit, "count"),
            Term(f"used now{f', counting {pool.counting} tokens' if pool.counting else ''}", pool.used, "count"),
            Term(f"highest minute of 7 days{f' ({rfc3339(pool.peak_at)})' if pool.peak_at else ''}", pool.peak, "count"),
            *(Term(f"throttled in the last hour by {who}", number, "count") for who, number in pool.throttled.items()),
        ],
        rows=[Term(f"used by {who}", number, "count") for who, number in pool.users] if ask.figure == "quota_used" else [],
        route="/v1/quotas",
        parameters=[("workspace", pool.workspace), ("deployment", pool.deployment)] if pool.workspace and pool.deployment else [],
    )


def _of_pressure(session: Session, ask: Ask, now: datetime) -> _Found:
    """A count over all pools, and the pools that are counted."""
    own = ask.own
    found = pressure(quotas(session, Filters(visible=ask.query.filters.visible), now=now), now=now)
    route = _Found(value=None, unit=None, route="/v1/quotas")
    match ask.figure:
        case "pools_full":
            return replace(route, value=len(found.full), terms=[Term("pools with a known limit", found.limited, "count")], rows=_used(found.full))
        case "deployments_with_room":
            return replace(
                route,
                value=len(found.room),
                terms=[Term("deployments", found.deployments, "count")],
                rows=[Term(f"{one.id}: left", one.headroom, "count") for one, _ in found.room],
            )
        case "deployments_ending":
            ends = [(one, min(at for at in (one.deletes_at, one.retires_at) if at is not None)) for one in found.ending]
            return replace(
                route, value=len(ends), rows=[Term(f"{one.workspace} / {one.deployment}: days left", (at - now) // DAY, "count") for one, at in ends]
            )
    meant = [
        (pool, one)
        for pool, one in found.throttled
        if own.get("pool") in (None, pool.id) and own.get("side") in (None, one.by) and own.get("subject") in (None, one.caller)
    ]
    return replace(
        route,
        value=sum(one.count for _, one in meant),
        rows=[Term(f"{pool.workspace} / {pool.deployment}, thrown by {one.by} at {one.caller}", one.count, "count") for pool, one in meant],
        adds_up=True,
        parameters=[(name, value) for pool, _ in meant[:1] for name, value in (("workspace", pool.workspace), ("deployment", pool.deployment)) if value]
        if "pool" in own
        else [],
    )


def _used(pools: Sequence[Pool]) -> list[Term]:
    return [Term(f"{pool.id}: used", pool.used, "count") for pool in pools]


def _of_budget(session: Session, ask: Ask, now: datetime) -> _Found:
    asked = ask.own.get("budget", "")
    one = next((each for each in budget_standings(session, visible=ask.query.filters.visible, now=now) if each.budget.id == asked), None)
    if one is None:
        raise NotFound(f"there is no budget {asked[:60]!r}")
    budget, outlook = one.budget, one.outlook
    value = {
        "budget_spent": one.spend.amount,
        "budget_amount": budget.amount,
        "budget_share": one.share,
        "budget_low": outlook.low,
        "budget_high": outlook.high,
    }[ask.figure]
    return _Found(
        value=value,
        unit=None if ask.figure == "budget_share" else budget.currency,
        reason=outlook.reason if value is None else None,
        terms=[
            Term("spent", one.spend.amount, "money", budget.currency),
            Term("amount", budget.amount, "money", budget.currency),
            Term("likely end", outlook.expected, "money", budget.currency),
            Term("complete days to go by", outlook.complete_days, "count"),
            Term("tokens without a price, not in it", one.spend.unpriced_tokens, "tokens"),
            Term("calls without tokens, not in it", one.spend.unknown_token_requests, "count"),
        ],
        route="/v1/budgets",
    )


def _of_alert(session: Session, ask: Ask, now: datetime) -> _Found:
    asked = ask.own.get("alert", "")
    one = next((each for each in alerts(session, since=now - _LATELY, visible=ask.query.filters.visible) if each.id == asked), None)
    if one is None:
        raise NotFound(f"there is no alert {asked[:60]!r} of the last 7 days")
    return _Found(
        value=one.value if ask.figure == "alert_value" else one.threshold,
        unit=None,
        formula=f"{FIGURES[ask.figure].formula}: {one.why}",
        terms=[Term("measured", one.value, "rate"), Term("threshold", one.threshold, "rate")],
        route="/v1/alerts",
    )


def _of_problem(session: Session, ask: Ask, now: datetime) -> _Found:
    visible, own = ask.query.filters.visible, ask.own
    every = [*problems(session, visible=visible, now=now), *onboarding(session, visible=visible, now=now)]
    mine = [one for one in every if (one.kind, one.subject) == (own.get("problem"), own.get("subject")) and one.currency == ask.query.currency]
    if not mine:
        raise NotFound("this is no finding any more")
    is_audit = not any(one.kind == own.get("problem") for one in problems(session, visible=visible, now=now))
    return _Found(
        value=mine[0].amount,
        unit=mine[0].currency,
        formula=f"{FIGURES[ask.figure].formula}. {mine[0].detail}",
        terms=[Term("rows", mine[0].count, "count")] if mine[0].count is not None else [],
        route="/v1/onboarding" if is_audit else "/v1/problems",
    )


def _of_sender(session: Session, ask: Ask, now: datetime) -> _Found:
    """What one sender's calls of the period were, or all of them."""
    found, asked = intake(session, ask.query.period, visible=ask.query.filters.visible, now=now), ask.own.get("sender")
    meant = [each for each in found.senders if asked in (None, each.source or "")]
    if asked is not None and not meant:
        raise NotFound("this sender sent nothing in the period")
    requests, unknown = sum(one.requests for one in meant), sum(one.unknown_requests for one in meant)
    name = ask.figure.removeprefix("sender_")
    is_share = name == "unknown_share"
    read = "unknown_requests" if is_share else name
    return _Found(
        value=money.ratio(Decimal(unknown), Decimal(requests)) if is_share else sum(getattr(one, name) for one in meant),
        unit=None,
        reason="no call came" if not requests else None,
        terms=[Term("calls", requests, "count"), Term("of them without tokens", unknown, "count")],
        rows=[Term(one.source or "(no name)", getattr(one, read), "count", own={"sender": one.source or ""}) for one in meant] if asked is None else [],
        adds_up=not is_share,
        route="/v1/usage" if name == "tokens" else "/v1/costs",
        parameters=query_parameters(ask.query) + ([] if name == "tokens" else [("granularity", "none")]),
    )


def _of_intake(session: Session, ask: Ask, now: datetime) -> _Found:
    """How what arrived came out: of one key, format and source, or of all of them."""
    found, asked, error = intake(session, ask.query.period, visible=ask.query.filters.visible, now=now), ask.own.get("line"), ask.own.get("subject")
    name = ask.figure.removeprefix("intake_")
    route = _Found(value=None, unit=None, route="/v1/intake", parameters=query_parameters(ask.query)[:2])
    if name == "arrived":
        reason = "arrivals are counted of all workspaces together; this key sees some"
        return replace(
            route,
            value=found.arrived,
            reason=reason if found.arrived is None else None,
            rows=[Term(rfc3339(at), events, "count") for at, events in found.arrivals or ()],
            adds_up=True,
        )
    meant = [each for each in found.lines if asked in (None, each.line)]
    if asked is not None and not meant:
        raise NotFound("nothing arrived of this key, format and sender in the period")
    if error is not None:
        return replace(route, value=_turned_away(found, asked, error), terms=[Term("of all that was refused", sum(one.rejected for one in meant), "count")])
    if name == "missing_share":
        stored, missing = sum(one.accepted for one in meant), sum(one.missing for one in meant)
        terms = [Term("stored", stored, "count"), Term("of them without tokens", missing, "count")]
        return replace(route, value=money.ratio(Decimal(missing), Decimal(stored)), reason=None if stored else "nothing was stored", terms=terms)
    return replace(
        route,
        value=sum(getattr(one, name) for one in meant),
        rows=[Term(f"{one.key or 'no key'} · {one.format} · {one.source}", getattr(one, name), "count", own={"line": one.line}) for one in meant],
        adds_up=True,
    )


def _turned_away(found: Intake, line: str | None, error: str) -> int:
    return sum(one.events for one in found.refused if one.error == error and line in (None, one.line))


def _of_event(session: Session, ask: Ask, now: datetime) -> _Found:
    """A count of one call, with what it is expected to cost and its share of the bill."""
    handle = ask.own.get("event", "")
    found = receipt(session, handle, workspace=None, source=None, visible=ask.query.filters.visible, now=now)
    value = found.record.fields.get(ask.figure.removeprefix("event_"))
    said = f"tokens are {found.record.fields.get('tokens_quality', 'as sent')}" + (f"; not counted: {found.record.reason}" if found.record.reason else "")
    return _Found(
        value=value if isinstance(value, int) else None,
        unit=None,
        formula=f"{FIGURES[ask.figure].formula}; {said}",
        reason=None if isinstance(value, int) else "nobody told it",
        terms=[
            *(Term(f"{line.meter}: tokens", line.quantity, "tokens") for line in found.lines),
            *(
                Term(f"{line.meter}: price per {line.unit}, {line.price_source} ({line.price_version})", line.unit_price, "rate", line.currency)
                for line in found.lines
                if line.unit_price is not None
            ),
            Term("expected cost", found.expected_cost, "money", found.currency),
            Term("its share of that day's bill", found.billed_share, "money", found.currency),
        ],
        route=f"/v1/usage/{quote(handle, safe='')}",
    )


def _of_witness(session: Session, ask: Ask, now: datetime) -> _Found:
    """What one witness saw of a deployment's day, beside what was counted."""
    day, own = _day(ask), ask.own
    period = ask.query.period if day is None else Period(day_start(day), day_start(day + DAY))
    meant = [
        one
        for one in witness_rows(session, period, granularity="day", filters=ask.query.filters, now=now)
        if own.get("meter") in (None, one.measure) and own.get("witness") in (None, one.kind) and own.get("subject") in (None, one.service)
    ]
    if not meant:
        raise NotFound("no such witness saw this deployment then")
    name = ask.figure.removeprefix("witness_")
    return _Found(
        value=sum(getattr(one, name) for one in meant),
        unit=None,
        terms=[Term("witnessed", sum(one.witnessed for one in meant), "count"), Term("counted", sum(one.counted for one in meant), "count")],
        rows=[Term(f"{utc_day(one.period.start)} · {one.kind} · {one.measure}", getattr(one, name), "count") for one in meant],
        adds_up=True,
        route="/v1/witnesses",
        parameters=query_parameters(replace(ask.query, period=period)),
    )


FIGURES: Mapping[str, Figure] = {
    "cost": Figure("cost", "money", "", _of_costs),
    "metered_cost": Figure("metered cost", "money", "", _of_costs),
    "billed_cost": Figure("billed cost", "money", "", _of_costs),
    "tokens": Figure("tokens", "tokens", "input tokens + output tokens of the billable calls", _of_costs),
    "input_tokens": Figure(
        "input tokens", "tokens", "the input tokens of the billable calls, cached ones included; a call of unknown tokens adds none", _of_costs
    ),
    "output_tokens": Figure("output tokens", "tokens", "the output tokens of the billable calls, reasoning and every choice included", _of_costs),
    "cached_input_tokens": Figure("cached input tokens", "tokens", "the part of the input tokens that was answered from a cache", _of_costs),
    "requests": Figure("requests", "count", "every call that was stored and counted, whatever its status", _of_costs),
    "core_hours": Figure(
        "core-hours", "hours", "instance-hours x the cores of the size; billed hours where the bill counts, else those of the inventory", _of_costs
    ),
    "coverage": Figure(
        "coverage", "share", "the smaller of billed and metered of every deployment-day that was billed, added up, / what was billed for them", _of_costs
    ),
    "unpriced_tokens": Figure("tokens without a price", "tokens", "billable tokens for whose time, model and place the price book has no price", _of_costs),
    "unknown_token_requests": Figure("requests of unknown tokens", "count", "billable calls that answered and did not say their tokens", _of_costs),
    "estimated_token_requests": Figure("requests of estimated tokens", "count", "calls whose tokens the sender estimated", _of_costs),
    "month_to_date": Figure(
        "month to date",
        "money",
        "best: the billed amount of every day that the bill reaches, the metered amount of the others, since the 1st (UTC)",
        _of_forecast,
    ),
    "month_end": Figure(
        "forecast to the month's end",
        "money",
        "past days as they are (metered ones at the ratio that the bill had to metering); each day to come as the mean of the same weekday of the last four weeks",
        _of_forecast,
    ),
    "expected": Figure("expected", "money", "metered quantity x the price of its time, at the bill's own exchange rate", _of_reconciliation),
    "billed": Figure("billed", "money", "the charges of the current bills that belong here", _of_reconciliation),
    "invoiced": Figure("invoiced", "money", "of the charges of the current bills that belong here, those that name an invoice", _of_reconciliation),
    "variance": Figure("variance", "money", "billed - expected; the named causes add up to it exactly", _of_reconciliation),
    "left": Figure("to look at", "money", "variance without what only has to be waited for: not yet billed, timing, rounding", _of_reconciliation),
    "unexplained": Figure("unexplained", "money", CAUSES[Cause.UNEXPLAINED], _of_reconciliation),
    "cause": Figure("cause", "money", "", _of_reconciliation),
    "bill_coverage": Figure(
        "coverage",
        "share",
        "the smaller of billed and metered of every deployment-day that was billed, added up, / what was billed for them",
        _of_reconciliation,
    ),
    "adjustment": Figure("adjustment", "money", "what today says less what was stored when the month was closed", _of_adjustment),
    **{
        f"moved_{side}": Figure(f"change of {side}", "money", f"{side} now less {side} as it was known before the newest bill came", _of_moved)
        for side in ("expected", "billed", "unexplained")
    },
    **{
        f"invoice_{name}": Figure(f"invoice, {words}", "money", formula, _of_invoice)
        for name, words, formula in (
            ("in_scope", "in scope", "its charges of model spend: what every other figure counts"),
            ("out_of_scope", "out of scope", "its other charges, kept and never added to model spend"),
            ("credits", "credits", "its credits and refunds"),
            ("tax", "tax", "its tax, as billed or as said of the invoice"),
            ("total", "total", "in scope + out of scope + credits + tax"),
            ("stated", "as it says", "what somebody said that the invoice prints"),
            ("difference", "difference", "what the invoice prints less the total; must be nought"),
        )
    },
    "serverless_per_1m": Figure("serverless cost of a million tokens", "money", "serverless cost / serverless tokens x 1,000,000", _of_comparison),
    "serverless_list_per_1m": Figure(
        "serverless list price of a million tokens",
        "money",
        "input's share x input price + output's share x output price, at the mix of the tokens served",
        _of_comparison,
    ),
    "allocation_per_1m": Figure(
        "cost of a million tokens, all in (allocation)", "money", "capacity cost / tokens served x 1,000,000; reconciles to the bill", _of_comparison
    ),
    "usage_per_1m": Figure(
        "cost of a million tokens, used (usage)", "money", "capacity cost x utilisation / tokens served x 1,000,000; without idle time", _of_comparison
    ),
    "capacity_cost": Figure("capacity cost", "money", "best, with billed amounts as amortized: allocated + idle, exactly", _of_comparison),
    "utilisation": Figure("utilisation", "share", "tokens served / tokens that the instances could have served", _of_comparison),
    "gpu_utilisation": Figure("GPU utilisation", "share", "mean of the hours that Azure Monitor told of these instances", _of_comparison),
    "gpu_memory": Figure(
        "GPU memory in use", "share", "mean of the hours that Azure Monitor told; a model's weights fill it whether it serves or not", _of_comparison
    ),
    "idle_cost_per_day": Figure("idle burn a day", "money", "(capacity cost - capacity cost x utilisation) / days", _of_comparison),
    "break_even_tokens_per_day": Figure(
        "break-even tokens a day", "tokens", "capacity cost a day / serverless list price of a token at the mix of the instances' tokens", _of_comparison
    ),
    "tokens_per_day": Figure("tokens a day", "tokens", "tokens of both ways / days", _of_comparison),
    "saving_per_day": Figure(
        "saving a day", "money", "the difference a day of the whole load on serverless (tokens x list price) and on the instances that it needs", _of_comparison
    ),
    "peak_minute_tokens": Figure("tokens of the highest minute", "tokens", "the most of one minute, of both ways together, as billed", _of_comparison),
    "peak_hour_tokens": Figure("tokens of the highest hour", "tokens", "the most of one hour, of both ways together, as billed", _of_comparison),
    "serverless_limit": Figure(
        "what serverless may serve a minute",
        "tokens",
        "the limits of the model's serverless deployments together, each by the best word on it; without any, the documented default of one",
        _of_comparison,
    ),
    "instances_needed": Figure("instances needed", "count", "tokens of the highest hour / what an instance serves in an hour, rounded up", _of_comparison),
    "what_if_saving": Figure(
        "saving a day", "money", "the difference a day of the whole load on serverless (tokens x list price) and on such instances", _of_comparison
    ),
    "what_if_cost_per_day": Figure("what such instances cost a day", "money", "instances x hours a day x the hourly price of the size", _of_comparison),
    "what_if_break_even": Figure(
        "break-even tokens a day of such instances", "tokens", "their cost a day / serverless list price of a token at this mix", _of_comparison
    ),
    "quota_limit": Figure(
        "limit", "count", "the owner's word, else Azure's, an answer's header, what was used when it throttled, the documented default", _of_pool
    ),
    "quota_used": Figure("used now", "count", "what counts against the limit in the running minute; of vCPUs Azure's last word", _of_pool),
    "quota_headroom": Figure("left", "count", "limit - used now", _of_pool),
    "quota_peak": Figure("highest minute of 7 days", "count", "the most that was used in one minute of the last 7 days", _of_pool),
    "budget_spent": Figure("spent of the budget", "money", "the cost of its scope since its period began, on its basis", _of_budget),
    "budget_amount": Figure("amount of the budget", "money", "as it was set", _of_budget),
    "budget_share": Figure("used of the budget", "share", "spent / amount", _of_budget),
    "budget_low": Figure(
        "likely end (P10)",
        "money",
        "what is spent + each day to come by its weekday, at the ratio that 1 of 10 such forecasts of the past fell below",
        _of_budget,
    ),
    "budget_high": Figure(
        "likely end (P90)",
        "money",
        "what is spent + each day to come by its weekday, at the ratio that 1 of 10 such forecasts of the past rose above",
        _of_budget,
    ),
    "alert_value": Figure("measured", "rate", "as it was measured when the alert last changed", _of_alert),
    "alert_threshold": Figure("threshold", "rate", "as the rule says it", _of_alert),
    "finding_amount": Figure("money of this finding", "money", "the charges that the finding is about, added up", _of_problem),
    "quota_upgrade_reserved": Figure("kept for upgrades", "count", "a fifth of each deployment's instances, rounded up, x cores of the size", _of_pool),
    "quota_upgrade_left": Figure("left after upgrades", "count", "limit - used now - kept for upgrades", _of_pool),
    "quota_recent": Figure("a minute's worth of the last five", "count", "what was used in the last five minutes / 5, rounded up", _of_pool),
    "pools_full": Figure("pools above 80 %", "count", "pools with a known limit of which at least 80 % are used now", _of_pressure),
    "deployments_with_room": Figure(
        "deployments with room", "count", "those below 80 % of both limits, by our count and Azure's, that do not end", _of_pressure
    ),
    "deployments_ending": Figure("deployments that end", "count", "those that Azure deletes or whose model retires, at a known time", _of_pressure),
    "throttled_calls": Figure("throttled in the last hour", "count", "calls that were answered 429, by who threw it and who called", _of_pressure),
    "sender_tokens": Figure("tokens of a sender", "tokens", "input + output tokens of its calls that counted", _of_sender),
    "sender_requests": Figure("calls of a sender", "count", "calls of the period, whenever they arrived", _of_sender),
    "sender_unknown_requests": Figure("calls without tokens", "count", "billable calls that answered and did not say their tokens", _of_sender),
    "sender_unknown_share": Figure("share without tokens", "share", "calls without tokens / calls", _of_sender),
    "intake_arrived": Figure("events that arrived", "count", "events stored in these hours, of any age", _of_intake),
    "intake_accepted": Figure("stored", "count", "events that were stored when they arrived", _of_intake),
    "intake_duplicates": Figure("came again", "count", "events with an id and content that were stored before: counted once", _of_intake),
    "intake_conflicts": Figure("conflicts", "count", "events with an id that was stored before with other content: the first counts", _of_intake),
    "intake_rejected": Figure("refused", "count", "events turned away with a reason; of a body refused whole, one", _of_intake),
    "intake_ignored": Figure("not usage", "count", "items that are valid and hold nothing to count", _of_intake),
    "intake_estimated": Figure("stored with estimated tokens", "count", "of what was stored, events whose tokens are an estimate", _of_intake),
    "intake_missing_share": Figure("stored without tokens", "share", "of what was stored, the share whose tokens nobody said", _of_intake),
    "event_input_tokens": Figure("input tokens of a call", "tokens", "as the sender told it, cached input included", _of_event),
    "event_output_tokens": Figure("output tokens of a call", "tokens", "as the sender told it, reasoning included", _of_event),
    "witness_witnessed": Figure("witnessed", "count", "what somebody else saw; never added to anything", _of_witness),
    "witness_counted": Figure("counted", "count", "the same of what senders reported", _of_witness),
    "witness_difference": Figure("difference", "count", "witnessed - counted", _of_witness),
}

# Those whose row may stand in no currency (tokens that nothing prices): an unsaid currency is then that row, and not all of them.
UNCURRENCIED = frozenset(name for name, figure in FIGURES.items() if figure.answer in (_of_costs, _of_reconciliation))
