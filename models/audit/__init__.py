"""``meterbridge verify``: the second pair of eyes.

Recomputes every figure from the raw rows (events, charges, prices, registry, owners) in plain Decimal and compares it
with what the ledger answers. It is written from DESIGN.md, "How a figure comes about", and shares no code with
``models/ledger.py`` or ``models/matching.py``; it reads no rollup and no summed charge except to check them, and sums
nothing in SQL. Where it and the ledger disagree, one of them is wrong: ``verify`` says where, people decide which.

The walk: ``verify`` -> rollups against events -> summed charges against charges -> ``recompute`` -> ``Books.costs``
against ``ask``, question by question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import groupby, pairwise
from typing import Any, Protocol

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.audit.bills import Invoiced, Line, LineKey, add_invoices, lines_of, meter_reaches_of, reaches_of
from models.audit.bookkeeping import data_period, recompute
from models.audit.books import Books, Figures, FiguresLike, Place, Question, Row, RowLike, Table, TableLike
from models.charges import IN_SCOPE, BillPart, ChargeDay, ChargeItem
from models.closing import ClosedRow, closes_known
from models.columns import EPOCH
from models.corrections import UsagePosting
from models.money import ZERO
from models.periods import DAY, Granularity, Period, day_start, month_period, month_start, rfc3339, utc_day
from models.prices import model_key
from models.usage import (
    DAY_SECONDS,
    MINUTE_SECONDS,
    QUARTER_SECONDS,
    STATUS_CODE,
    STATUS_OF_CODE,
    Operation,
    Quality,
    Status,
    UsageEvent,
    UsageMinute,
    UsageQuarter,
    UsageSeries,
)

__all__ = [
    "BASES",
    "GROUPINGS",
    "Answers",
    "Books",
    "Difference",
    "Figures",
    "Place",
    "Question",
    "Row",
    "Table",
    "TableLike",
    "Verification",
    "data_period",
    "recompute",
    "verify",
]

MOST_DIFFERENCES = 200
BASES = ("metered", "billed", "best", "amortized")
GROUPINGS: tuple[tuple[str, ...], ...] = (
    (),
    ("workspace",),
    ("workspace", "deployment"),
    ("model",),
    ("mode",),
    ("application",),
    ("team",),
    ("cost_center",),
    ("subscription",),
    ("meter",),
)
_GRANULARITIES: tuple[Granularity, ...] = ("day", "none")
_COMPARED = (
    "cost",
    "metered_cost",
    "billed_cost",
    "input_tokens",
    "output_tokens",
    "requests",
    "core_hours",
    "status",
    "unpriced_tokens",
    "unknown_token_requests",
)
_MICROSECONDS = 1_000_000
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is stored or answered otherwise than the raw rows say."""

    what: str
    where: str
    ledger: str
    recomputed: str

    def __str__(self) -> str:
        return f"{self.what}, {self.where}: stored or answered {self.ledger}, recomputed {self.recomputed}"


@dataclass(slots=True)
class Verification:
    """How many figures were checked and which differ; ``more`` counts the differences beyond the first 200."""

    checked: int = 0
    differences: list[Difference] = field(default_factory=list)
    more: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether everything agrees."""
        return not self.differences

    def lines(self) -> list[str]:
        """One line per difference, and one for those left out."""
        return [*map(str, self.differences), *([f"and {self.more} more"] if self.more else [])]

    def equal(self, what: str, where: str, ledger: object, recomputed: object) -> None:
        """Count one check; note it where the two are not the same."""
        self.checked += 1
        if ledger != recomputed:
            self.note(what, where, _written(ledger), _written(recomputed))

    def note(self, what: str, where: str, ledger: str, recomputed: str) -> None:
        """Keep a difference, or count it once there are enough to look at."""
        if len(self.differences) < MOST_DIFFERENCES:
            self.differences.append(Difference(what, where, ledger, recomputed))
        else:
            self.more += 1


def _written(value: object) -> str:
    return money.text(value) if isinstance(value, Decimal) else "null" if value is None else str(value)


class LineLike(Protocol):
    """What a row of bill or metering is about."""

    @property
    def day(self) -> date: ...
    @property
    def workspace(self) -> str | None: ...
    @property
    def deployment(self) -> str | None: ...
    @property
    def meter(self) -> str: ...
    @property
    def currency(self) -> str | None: ...


class MatchLike(LineLike, Protocol):
    """A row of the reconciliation."""

    @property
    def expected(self) -> Decimal: ...
    @property
    def billed(self) -> Decimal: ...
    @property
    def invoiced(self) -> Decimal | None: ...
    @property
    def causes(self) -> Mapping[Any, Decimal]: ...


class InvoiceLike(Protocol):
    """An invoice's charges by what they are; an id of None: charges that are on none yet."""

    @property
    def invoice_id(self) -> str | None: ...
    @property
    def currency(self) -> str: ...
    @property
    def in_scope(self) -> Decimal: ...
    @property
    def out_of_scope(self) -> Decimal: ...
    @property
    def credits(self) -> Decimal: ...


class AdjustmentLike(LineLike, Protocol):
    """What today says differently of a closed month, on one side of one row."""

    @property
    def side(self) -> str: ...
    @property
    def amount(self) -> Decimal: ...


@dataclass(frozen=True, slots=True)
class Answers:
    """What else the ledger answers and is held against: the reconciliation of a period, a closed month's adjustments, a month's export and invoices."""

    reconcile: Callable[[Period], Iterable[MatchLike]]
    adjust: Callable[[date], Iterable[AdjustmentLike]]
    export: Callable[[date], Mapping[str, Decimal]]  # billed cost per currency of an open month
    tie_out: Callable[[date], Iterable[InvoiceLike]]  # the invoices of a month


def verify(
    session: Session,
    *,
    now: datetime,
    ask: Callable[[Question], TableLike],
    answers: Answers | None = None,
    period: Period | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Check what is stored and what ``ask`` (the ledger) answers against the raw rows; ``progress`` is told each step."""
    tell = progress or (lambda _: None)
    found = Verification()
    tell("usage: events against their rollups")
    _check_usage(session, found)
    tell("bills: charges against their sums")
    _check_bills(session, found)
    chosen = period or data_period(session, now=now)
    if chosen is None:
        return found

    books = recompute(session, now=now, period=chosen)
    for group_by in GROUPINGS:
        tell(f"costs by {', '.join(group_by) or 'nothing'}")
        for granularity in _GRANULARITIES:
            _check_answers(found, books, Question(chosen, granularity, group_by), ask)
    if answers is not None:
        tell("the reconciliation and its causes")
        invoiced = _check_reconciliation(found, books, answers)
        tell("invoices")
        _check_invoices(session, found, books.period, answers, invoiced, now=now)
        tell("closed months: stored and adjusted")
        _check_closes(session, found, answers, now=now)
        tell("exports")
        _check_exports(session, found, answers, now=now)
    for as_of in _probes(session, now=now):
        tell(f"costs as of {rfc3339(as_of)}")
        books = recompute(session, now=now, as_of=as_of, period=chosen)
        for group_by in ((), ("workspace", "deployment"), ("team",)):
            _check_answers(found, books, Question(chosen, "day", group_by, as_of=as_of), ask)
    return found


def _probes(session: Session, *, now: datetime) -> list[datetime]:
    """Instants of the past to ask about: just before the latest landing, and the midnight that today began with."""
    landed = session.exec(select(sa.func.max(BillPart.landed_at))).one()
    return [*([landed - _MICROSECOND] if landed is not None and landed <= now else []), day_start(utc_day(now))]


_LONGEST_RECONCILED = DAY * 90
_Line = tuple[date, str | None, str | None, str | None]  # day, workspace, deployment, currency


def _named(line: _Line) -> str:
    return " / ".join(str(part) if part is not None else "none" for part in line)


def _check_reconciliation(found: Verification, books: Books, answers: Answers) -> dict[str | None, Decimal]:
    """Expected, billed and invoiced of every day and deployment are those of the raw rows, and causes add up to the difference; the invoiced totals."""
    nothing = (ZERO, ZERO, ZERO)
    ours: dict[_Line, tuple[Decimal, ...]] = {}
    start, end = books.period.start, books.period.end
    start, end = day_start(utc_day(start)), day_start(utc_day(end - _MICROSECOND) + DAY)
    for (at, groups, currency), sums in books.summed(Question(Period(start, end), "day", ("workspace", "deployment"))).items():
        ours[utc_day(at), groups[0], groups[1], currency] = sums.metered, sums.billed, sums.invoiced
    theirs: dict[_Line, tuple[Decimal, ...]] = {}
    while start < end:
        until = min(end, start + _LONGEST_RECONCILED)
        for row in answers.reconcile(Period(start, until)):
            line = (row.day, row.workspace, row.deployment, row.currency)
            found.equal("the causes of a difference", f"{_named(line)} {row.meter}", money.add(row.causes.values()), money.minus(row.billed, row.expected))
            amounts = (row.expected, row.billed, row.invoiced or ZERO)
            theirs[line] = tuple(money.plus(before, amount) for before, amount in zip(theirs.get(line, nothing), amounts, strict=True))
        start = until
    for line in sorted(ours.keys() | theirs.keys(), key=lambda one: [(part is None, str(part)) for part in one]):
        for place, name in enumerate(("expected", "billed", "invoiced")):
            found.equal(f"{name} of the reconciliation", _named(line), theirs.get(line, nothing)[place], ours.get(line, nothing)[place])
    invoiced: dict[str | None, Decimal] = {}
    for (*_, currency), (_, _, amount) in theirs.items():
        invoiced[currency] = money.plus(invoiced.get(currency, ZERO), amount)
    return invoiced


def _check_invoices(session: Session, found: Verification, period: Period, answers: Answers, invoiced: Mapping[str | None, Decimal], *, now: datetime) -> None:
    """Every invoice's charges are those of the raw rows, and its model spend is what the rows of the reconciliation say is invoiced."""
    items = {item.id: item for item in session.exec(select(ChargeItem)) if item.id is not None}
    ours: dict[date, dict[tuple[str, str], Invoiced]] = {}
    for part in session.exec(select(BillPart).where(col(BillPart.landed_at) <= now, col(BillPart.superseded_at).is_(None))):
        month = part.period_start if part.billed_from is None else month_start(part.billed_from)
        add_invoices(session, part.id or 0, items, ours.setdefault(month, {}), of=period)
    spent: dict[str | None, Decimal] = {}
    for month, of_month in sorted(ours.items()):
        theirs = {(one.invoice_id or "", one.currency): one for one in answers.tie_out(month)}
        for key in sorted(of_month.keys() | theirs.keys()):
            plain, told = of_month.get(key, Invoiced()), theirs.get(key, Invoiced())
            for name in ("in_scope", "out_of_scope", "credits"):
                found.equal(f"{name} of an invoice", f"{month:%Y-%m} {key[0] or 'not invoiced'} {key[1]}", getattr(told, name), getattr(plain, name))
            if key[0]:
                spent[key[1]] = money.plus(spent.get(key[1], ZERO), plain.spend)
    for currency in sorted(spent.keys() | invoiced.keys(), key=str):
        found.equal("invoiced of all rows", str(currency), invoiced.get(currency, ZERO), spent.get(currency, ZERO))


def _check_closes(session: Session, found: Verification, answers: Answers, *, now: datetime) -> None:
    """Of every closed month, what was stored and its adjustments are what is so today, row by row and side by side."""
    for close in closes_known(session, now):
        sums: dict[tuple[date, str | None, str | None, str, str | None, str], Decimal] = {}

        def add(row: MatchLike | ClosedRow | AdjustmentLike, side: str, amount: Decimal, into: dict[Any, Decimal] = sums) -> None:
            key = (row.day, row.workspace, row.deployment, row.meter, row.currency, side)
            into[key] = money.plus(into.get(key, ZERO), amount)

        for stored in session.exec(select(ClosedRow).where(col(ClosedRow.close_id) == close.id)):
            add(stored, "expected", stored.expected)
            add(stored, "billed", stored.billed)
        for adjusted in answers.adjust(close.month):
            add(adjusted, adjusted.side, adjusted.amount)
        for row in answers.reconcile(month_period(close.month)):
            add(row, "expected", -row.expected)
            add(row, "billed", -row.billed)
        for key, rest in sums.items():
            found.equal(f"stored and adjusted {key[5]} of {close.month:%Y-%m}", " / ".join(str(part) for part in key[:5]), rest, ZERO)


def _check_exports(session: Session, found: Verification, answers: Answers, *, now: datetime) -> None:
    """A month's export bills what its charges bill, currency by currency; closed months are exported as they were closed."""
    closed = {close.month for close in closes_known(session, now)}
    items = {item.id: item.charge_class for item in session.exec(select(ChargeItem)) if item.id is not None}
    ours: dict[date, dict[str, Decimal]] = {}
    for part in session.exec(select(BillPart).where(col(BillPart.landed_at) <= now, col(BillPart.superseded_at).is_(None))):
        if part.period_start in closed or part.id is None:
            continue
        of = ours.setdefault(part.period_start, {})
        for (_, item_id, _, currency), line in lines_of(session, part.id).items():
            if items.get(item_id) in IN_SCOPE:
                of[currency] = money.plus(of.get(currency, ZERO), line.billed)
    for month, totals in sorted(ours.items()):
        theirs = answers.export(month)
        for currency in sorted(totals.keys() | theirs.keys()):
            found.equal("billed cost of the export", f"{month:%Y-%m} {currency}", theirs.get(currency, ZERO), totals.get(currency, ZERO))


_ROLLUP_COUNTS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens", "unknown_requests", "estimated_requests")
_ESTIMATED = int(Quality.ESTIMATED)
_RollupKey = tuple[int, int, int, int]  # starts_at, series, known_on, outcome


def _check_usage(session: Session, found: Verification) -> None:
    """Every event is counted once in each rollup, under a series that exists; no identity stands twice."""
    series = {
        row.id: (row.workspace_id, row.source_id, row.operation)
        for row in session.connection().execute(sa.select(*map(col, (UsageSeries.id, UsageSeries.workspace_id, UsageSeries.source_id, UsageSeries.operation))))
    }
    unanswered = _filtered_without_answer(session)
    columns: list[Any] = [
        sa.type_coerce(col(UsageEvent.time), sa.BigInteger),
        sa.type_coerce(col(UsageEvent.received_at), sa.BigInteger),
        UsageEvent.seq,
        UsageEvent.workspace_id,
        UsageEvent.source_id,
        UsageEvent.event_id,
        UsageEvent.series_id,
        UsageEvent.status,
        UsageEvent.billable,
        UsageEvent.input_tokens,
        UsageEvent.output_tokens,
        UsageEvent.cached_input_tokens,
        UsageEvent.reasoning_output_tokens,
        UsageEvent.quality,
        UsageEvent.is_unknown,
    ]
    events = session.connection().execute(sa.select(*columns).order_by(col(UsageEvent.time))).yield_per(5000)
    seen_days = set()
    for day, of_day in groupby(events, key=lambda event: event[0] // (DAY_SECONDS * _MICROSECONDS)):
        seen_days.add(day)
        minutes: dict[_RollupKey, list[int]] = {}
        identities = set()
        of_day_rows: Iterable[Any] = of_day
        for time, received, seq, workspace, source, event_id, series_id, status, billable, sent, got, cached, reasoning, quality, said_unknown in of_day_rows:
            identity = (time, workspace, source, event_id)
            if identity in identities:
                found.note("an event stands twice", f"event {event_id!r} (seq {seq})", "twice", "once")
            identities.add(identity)
            known = series.get(series_id)
            if known is None or known[0] != workspace or known[1] != source:
                what = "missing" if known is None else "of another workspace or source"
                found.note("the series of an event", f"event {event_id!r} (seq {seq})", what, "its own")
            is_unknown = (
                (sent is None or got is None)
                and _is_unknown(status, sent, got, billable=billable, operation=known[2] if known else "")
                and seq not in unanswered
            )
            if is_unknown != bool(said_unknown):
                found.note("is_unknown", f"event {event_id!r} (seq {seq})", str(bool(said_unknown)), str(is_unknown))
            seconds = time // _MICROSECONDS
            key = (seconds - seconds % MINUTE_SECONDS, series_id, received // (DAY_SECONDS * _MICROSECONDS), status * 2 + bool(billable))
            counts = minutes.get(key)
            if counts is None:
                counts = minutes[key] = [0] * len(_ROLLUP_COUNTS)
            counts[0] += 1
            counts[1] += sent or 0
            counts[2] += got or 0
            counts[3] += cached or 0
            counts[4] += reasoning or 0
            counts[5] += is_unknown
            counts[6] += quality == _ESTIMATED
        found.checked += len(identities)
        _add_postings(session, day, minutes)
        _check_rollups(session, found, day, minutes, series)
    for table in (UsageMinute, UsageQuarter):
        stored = session.connection().execute(sa.select(col(table.starts_at)).distinct()).scalars()
        for day in sorted({starts_at // DAY_SECONDS for starts_at in stored} - seen_days):
            seen_days.add(day)
            _check_rollups(session, found, day, {}, series)


def _add_postings(session: Session, day: int, minutes: dict[_RollupKey, list[int]]) -> None:
    """What was taken back of a day's events, as the rollups should hold it: on the day it became known."""
    start = EPOCH + DAY * day
    for row in session.exec(select(UsagePosting).where(col(UsagePosting.time) >= start, col(UsagePosting.time) < start + DAY)):
        seconds = (row.time - EPOCH) // timedelta(seconds=1)
        key = (seconds - seconds % MINUTE_SECONDS, row.series_id, (row.made_at - EPOCH) // DAY, row.outcome)
        counts = minutes.setdefault(key, [0] * len(_ROLLUP_COUNTS))
        amounts = (1, row.input_tokens, row.output_tokens, row.cached_input_tokens, row.reasoning_output_tokens, row.unknown_requests, row.estimated_requests)
        for index, amount in enumerate(amounts):
            counts[index] += row.sign * amount


def _filtered_without_answer(session: Session) -> set[int]:
    """The filtered events that were refused with an HTTP error: nothing was billed, so nothing is unknown."""
    query = sa.select(col(UsageEvent.seq), col(UsageEvent.details)).where(
        col(UsageEvent.status) == STATUS_CODE[Status.FILTERED], sa.or_(col(UsageEvent.input_tokens).is_(None), col(UsageEvent.output_tokens).is_(None))
    )
    return {seq for seq, details in session.connection().execute(query) if ((details or {}).get("http_status") or 0) >= 400}


def _is_unknown(status: int, sent: int | None, got: int | None, *, billable: bool, operation: str) -> bool:
    """Whether Azure billed the call and we do not know how many tokens (DESIGN.md, "Events")."""
    if not billable or STATUS_OF_CODE[status] not in {Status.SUCCESS, Status.INCOMPLETE, Status.FILTERED}:
        return False
    return sent is None or (got is None and operation != Operation.EMBEDDINGS)


def _check_rollups(
    session: Session, found: Verification, day: int, minutes: Mapping[_RollupKey, Sequence[int]], series: Mapping[int, tuple[int, int, str]]
) -> None:
    """A day's rows of both rollups, count by count."""
    quarters: dict[_RollupKey, list[int]] = {}
    for (starts_at, *rest), counts in minutes.items():
        key = (starts_at - starts_at % QUARTER_SECONDS, rest[0], rest[1], rest[2])
        known = quarters.get(key)
        quarters[key] = list(counts) if known is None else [left + right for left, right in zip(known, counts, strict=True)]
    for table, ours in ((UsageMinute, minutes), (UsageQuarter, quarters)):
        name = str(table.__tablename__)
        start = col(table.starts_at)
        columns: list[Any] = [start, col(table.series_id), col(table.known_on), col(table.outcome), *(col(getattr(table, count)) for count in _ROLLUP_COUNTS)]
        query = sa.select(*columns).where(start >= day * DAY_SECONDS, start < (day + 1) * DAY_SECONDS)
        stored = {(row[0], row[1], row[2], row[3]): list(row[4:]) for row in session.connection().execute(query)}
        nothing = [0] * len(_ROLLUP_COUNTS)
        keys = stored.keys() | ours.keys()
        found.checked += len(keys)
        for key in sorted(key for key in keys if key[1] not in series or stored.get(key, nothing) != ours.get(key, nothing)):
            where = f"{rfc3339(EPOCH + timedelta(seconds=key[0]))} series {key[1]} known on {utc_day(EPOCH + DAY * key[2])} outcome {key[3]}"
            if key[1] not in series:
                found.note(f"the series of a row of {name}", where, "missing", "one that exists")
            for count, theirs, right in zip(_ROLLUP_COUNTS, stored.get(key, nothing), ours.get(key, nothing), strict=True):
                if theirs != right:
                    found.note(f"{name}.{count}", where, str(theirs), str(right))


def _check_bills(session: Session, found: Verification) -> None:
    """A part's summed charges, totals and reach are those of its single rows; a subscription's month has one current part."""
    items = {item.id: item for item in session.exec(select(ChargeItem)) if item.id is not None}
    current: dict[tuple[str, date], list[tuple[date, date | None]]] = {}
    for part in session.exec(select(BillPart).where(col(BillPart.landed_at).is_not(None)).order_by(col(BillPart.id))):
        assert part.id is not None
        if part.superseded_at is None:
            current.setdefault((part.subscription_id, part.period_start), []).append((part.billed_from or part.period_start, part.billed_to))
        lines = lines_of(session, part.id)
        _check_charge_days(session, found, part.id, lines)
        where = f"bill part {part.id} ({part.subscription_id or 'billing account'} {part.period_start:%Y-%m})"
        totals: dict[str, Decimal] = {}
        in_scope: dict[str, Decimal] = {}
        for (_, item_id, _, currency), line in lines.items():
            totals[currency] = money.plus(totals.get(currency, ZERO), line.billed)
            if item_id not in items:
                found.note("the item of a charge", f"{where} item {item_id}", "missing", "one that exists")
            elif items[item_id].charge_class in IN_SCOPE:
                in_scope[currency] = money.plus(in_scope.get(currency, ZERO), line.billed)
        found.equal("rows of a bill part", where, part.rows, sum(line.rows for line in lines.values()))
        for name, stored, ours in (("totals", part.totals, totals), ("in_scope_totals", part.in_scope_totals, in_scope)):
            for currency in sorted(stored.keys() | ours.keys()):
                found.equal(f"{name} of a bill part", f"{where} {currency}", Decimal(stored.get(currency, "0")), ours.get(currency, ZERO))
        reaches = {route.value: day.isoformat() for route, day in reaches_of(lines, items).items()}
        for route in sorted(part.reaches.keys() | reaches.keys()):
            found.equal("reach of a bill part", f"{where} {route}", part.reaches.get(route), reaches.get(route))
        by_meter = {what: day.isoformat() for what, day in meter_reaches_of(lines, items).items()}
        # Empty of what landed before it was kept.
        has_names = any(what.count("/") > 1 for what in part.meter_reaches)
        for what in sorted(part.meter_reaches.keys() | {what for what in by_meter if has_names or what.count("/") == 1}) if part.meter_reaches else ():
            found.equal("reach of a bill part by meter", f"{where} {what}", part.meter_reaches.get(what), by_meter.get(what))
    for (subscription, month), bills in sorted(current.items()):
        # Several only where they are for other days each, as pay-as-you-go bills are.
        bills.sort()
        apart = all(end is not None and following[1] is not None and end <= following[0] for (_, end), following in pairwise(bills))
        found.equal("current bill parts", f"{subscription or 'billing account'} {month:%Y-%m}", len(bills) if not apart else 1, 1)


def _check_charge_days(session: Session, found: Verification, part_id: int, lines: Mapping[LineKey, Line]) -> None:
    query = sa.select(
        col(ChargeDay.charged_on),
        col(ChargeDay.item_id),
        col(ChargeDay.charge_type),
        col(ChargeDay.currency),
        col(ChargeDay.rows),
        col(ChargeDay.quantity),
        col(ChargeDay.billed_cost),
        col(ChargeDay.effective_cost),
        col(ChargeDay.invoiced_rows),
        sa.func.coalesce(col(ChargeDay.invoiced_cost), ZERO),
    ).where(col(ChargeDay.part_id) == part_id)
    stored = {(row[0], row[1], row[2], row[3]): Line(row[4], row[5], row[6], row[7], row[8], row[9]) for row in session.connection().execute(query)}
    nothing = Line()
    for key in sorted(stored.keys() | lines.keys()):
        where = f"part {part_id} {key[0]} item {key[1]} {key[2]} {key[3]}"
        theirs, ours = stored.get(key, nothing), lines.get(key, nothing)
        found.equal("charge_day.rows", where, theirs.rows, ours.rows)
        found.equal("charge_day.quantity", where, theirs.quantity, ours.quantity)
        found.equal("charge_day.billed_cost", where, theirs.billed, ours.billed)
        found.equal("charge_day.effective_cost", where, theirs.amortized, ours.amortized)
        found.equal("charge_day.invoiced_rows", where, theirs.invoiced_rows, ours.invoiced_rows)
        found.equal("charge_day.invoiced_cost", where, theirs.invoiced, ours.invoiced)


def _check_answers(found: Verification, books: Books, question: Question, ask: Callable[[Question], TableLike]) -> None:
    """The ledger's answer on every basis, figure by figure."""
    summed = books.summed(question)
    for basis in BASES:
        asked = replace(question, basis=basis)
        ours, theirs = books.shaped(asked, summed), ask(asked)
        _compare(found, f"{asked}: row", _keyed(asked, theirs.rows, found), _keyed(asked, ours.rows, found))
        totals = {each.currency: each for each in theirs.totals}
        _compare(found, f"{asked}: total", _by_currency(theirs.totals), _by_currency(ours.totals))
        for name in _COMPARED:
            if name == "status":
                continue
            rows: dict[str | None, Decimal] = {}
            for row in theirs.rows:
                rows[row.figures.currency] = money.plus(rows.get(row.figures.currency, ZERO), Decimal(getattr(row.figures, name) or 0))
            for currency in sorted(rows.keys() | totals.keys(), key=lambda each: each or ""):
                total = Decimal((getattr(totals[currency], name) if currency in totals else None) or 0)
                found.equal(f"{name} of the total against the sum of its rows", f"{asked} {currency}", total, rows.get(currency, ZERO))


_AnswerKey = tuple[str, ...]


def _keyed(question: Question, rows: Iterable[RowLike], found: Verification) -> dict[_AnswerKey, FiguresLike]:
    keyed: dict[_AnswerKey, FiguresLike] = {}
    for row in rows:
        groups = (f"{name}={_compared(name, row.groups[name])}" for name in question.group_by)
        key = (rfc3339(row.period.start.astimezone(UTC)), *groups, row.figures.currency or "null")
        if key in keyed:
            found.note(f"{question}: row", " ".join(key), "twice", "once")
        keyed[key] = row.figures
    return keyed


def _compared(name: str, value: str | None) -> str:
    """A group's value as it is compared: which of a model's spellings is shown is no figure."""
    if value is None:
        return "null"
    return repr(model_key(value) if name == "model" else value)


def _by_currency(totals: Iterable[FiguresLike]) -> dict[_AnswerKey, FiguresLike]:
    return {(each.currency or "null",): each for each in totals}


def _compare(found: Verification, what: str, theirs: Mapping[_AnswerKey, FiguresLike], ours: Mapping[_AnswerKey, FiguresLike]) -> None:
    nothing = Figures()
    for key in sorted(theirs.keys() | ours.keys()):
        left, right = theirs.get(key), ours.get(key)
        for name in _COMPARED:
            ledger, recomputed = getattr(left or nothing, name), getattr(right or nothing, name)
            if name == "status" and (left is None or right is None):
                continue
            # No compute in a row is written as null or 0; and a row that is not there says what an empty one says.
            if (name == "core_hours" or left is None or right is None) and not ledger and not recomputed:
                continue
            found.equal(f"{what} {name}", " ".join(key), ledger, recomputed)
