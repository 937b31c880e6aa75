"""Bill against metering, day by day: every variance in named causes that add up to it. ``models.variance`` decides them.

What there is of each row and day (some ten thousand of a month) is made of structs that C fills: a frozen dataclass costs eight times as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, col

from models import money
from models.charges import MeterKind
from models.errors import InvalidInput
from models.ledger.billed import Reading
from models.ledger.costs import Answer
from models.ledger.sums import Sums
from models.ledger.values import CostQuery, Filters
from models.money import ZERO
from models.periods import DAY, Period, day_start, utc_day
from models.usage import UsageEvent
from models.variance import Cause, Facing, State, causes, natural, net_timing

_GROUPS = ("workspace", "deployment", "meter")
_KINDS = {kind.value: kind for kind in MeterKind}
_CAUSES = tuple(Cause)
_STATES: tuple[State, ...] = ("open", "settling", "closed")
# The bound of what unknown calls may have used is looked up among at most this many of a day's events.
_MOST_SAMPLED = 200_000
_LONGEST = 100 * DAY


class ReconciliationRow(msgspec.Struct, frozen=True):
    """One workspace, deployment, meter, UTC day and currency; ``causes`` add up to ``variance = billed - expected`` exactly.

    ``reasons`` says what is missing from the amounts: tokens without a price, calls without tokens.
    """

    workspace: str | None
    deployment: str | None
    meter: str
    day: date
    currency: str | None
    expected: Decimal
    billed: Decimal
    metered_units: Decimal
    billed_units: Decimal | None
    causes: Mapping[Cause, Decimal]
    state: State
    estimate: bool
    unknown_token_requests: int
    reasons: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def variance(self) -> Decimal:
        return money.minus(self.billed, self.expected)


@dataclass(frozen=True, slots=True)
class ReconciliationTotal:
    """The rows of one currency added up; ``coverage`` is the share of billed money that metering saw (None where nothing is billed)."""

    currency: str | None
    expected: Decimal
    billed: Decimal
    causes: Mapping[Cause, Decimal]
    coverage: Decimal | None
    rows: int

    @property
    def variance(self) -> Decimal:
        return money.minus(self.billed, self.expected)

    @property
    def unexplained(self) -> Decimal:
        return self.causes.get(Cause.UNEXPLAINED, ZERO)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The answer: rows in order of day, workspace, deployment, meter, currency; one total per currency."""

    period: Period
    rows: list[ReconciliationRow]
    totals: list[ReconciliationTotal]


def reconciliation(
    session: Session,
    period: Period,
    filters: Filters = Filters(),  # noqa: B008 - a frozen value
    *,
    now: datetime,
    as_of: datetime | None = None,
    usage_as_of: datetime | None = None,
    reading: Reading | None = None,
) -> Reconciliation:
    """Expected against billed for the whole UTC days of a period, as known now or at ``as_of``.

    ``reading`` is what the caller has read then already. ``usage_as_of`` leaves out the usage that arrived later and nothing else: to tell late usage from a change of facts.
    """
    if period != Period(day_start(utc_day(period.start)), day_start(utc_day(period.end))):
        raise InvalidInput("reconciliation is by whole UTC days: from and to must be midnights")
    if period.end - period.start > _LONGEST:
        raise InvalidInput(f"reconciliation takes at most {_LONGEST.days} days at once; ask month by month")
    # A day on either side: whether somebody was metering is judged within a day.
    wide = Period(period.start - DAY, period.end + DAY)
    query = CostQuery(wide, "day", _GROUPS, "billed", filters, as_of=as_of)
    answer = Answer(session, query, now=now, usage_as_of=usage_as_of, reading=reading)
    answer.gather()
    return _Reconciler(session, answer, period).reconciled()


_Place = tuple[str | None, str | None]  # workspace, deployment
_Line = tuple[_Place, MeterKind, str | None]  # place, meter, currency


@dataclass(slots=True, eq=False)
class _Cell:
    """What bill and meter say of one line and day."""

    expected: Decimal
    billed: Decimal
    metered_units: Decimal
    billed_units: Decimal | None
    credits: Decimal
    unpriced_units: int
    unknown_requests: int
    lines: int
    standing: int
    estimate: bool
    reasons: Collection[str]

    @classmethod
    def of(cls, sums: Sums) -> _Cell:
        billed_units = sums.billed_units if sums.is_billed_unit_known else None
        return cls(
            sums.metered,
            sums.billed,
            sums.units,
            billed_units,
            sums.credits,
            sums.unpriced_tokens,
            sums.unknown_requests,
            sums.lines,
            sums.standing,
            sums.estimate,
            sums.reasons,
        )

    def add(self, sums: Sums) -> None:
        """Add what stands in a row of its own and is one with this."""
        self.expected = money.plus(self.expected, sums.metered)
        self.billed = money.plus(self.billed, sums.billed)
        self.metered_units = money.plus(self.metered_units, sums.units)
        is_known = self.billed_units is not None and sums.is_billed_unit_known
        self.billed_units = money.plus(self.billed_units or ZERO, sums.billed_units) if is_known else None
        self.credits = money.plus(self.credits, sums.credits)
        self.unpriced_units += sums.unpriced_tokens
        self.unknown_requests += sums.unknown_requests
        self.lines += sums.lines
        self.standing = min(self.standing, sums.standing)
        self.estimate |= sums.estimate
        self.reasons = {*self.reasons, *sums.reasons}

    @property
    def is_empty(self) -> bool:
        """Whether there is no money in it, known or not: tokens of managed compute cost nothing by themselves."""
        return not (self.expected or self.billed or self.billed_units or self.unpriced_units or self.lines)


class _Reconciler:
    """One reconciliation in the making."""

    def __init__(self, session: Session, answer: Answer, period: Period) -> None:
        self._session = session
        self._answer = answer
        self._period = period
        self._cells: dict[_Line, dict[date, _Cell]] = {}
        self._currencies: dict[tuple[_Place, MeterKind], set[str | None]] = {}
        self._requests: set[tuple[_Place, date]] = set()
        self._ceilings: dict[tuple[_Place, date], tuple[Decimal, Decimal]] = {}
        self._series: dict[tuple[_Place, date], list[int]] | None = None
        self._last_digit = 0

    def reconciled(self) -> Reconciliation:
        self._gather()
        rows: list[ReconciliationRow] = []
        for line, by_day in self._cells.items():
            rows += self._line(line, by_day)
        rows.sort(key=_order)
        return Reconciliation(self._period, rows, list(_totals(rows, self._answer, self._period)))

    # -- facts ----------------------------------------------------------------------------------

    def _gather(self) -> None:
        rows, buckets = self._answer.rows, self._answer.buckets
        apart = {(groups[0], groups[1]) for (_, groups, _), sums in rows.items() if groups[2] == MeterKind.CACHED_INPUT and sums.lines}
        starts = [utc_day(bucket.start) for bucket in buckets]
        is_asked = [self._period.start <= bucket.start < self._period.end for bucket in buckets]
        for (bucket, groups, currency), sums in rows.items():
            place, day = (groups[0], groups[1]), starts[bucket]
            if sums.requests:
                self._requests.add((place, day))
            if not is_asked[bucket]:
                continue
            kind = _KINDS.get(groups[2] or "", MeterKind.OTHER)
            if kind == MeterKind.CACHED_INPUT and place not in apart:
                kind = MeterKind.INPUT  # the bill has one meter for both
            by_day = self._cells.setdefault((place, kind, currency), {})
            cell = by_day.get(day)
            if cell is None:
                by_day[day] = _Cell.of(sums)
            else:
                cell.add(sums)
            self._currencies.setdefault((place, kind), set()).add(currency)
        # An exact sum has the finest last digit of what was added.
        exponent = money.add(sums.billed for sums in rows.values()).as_tuple().exponent
        self._last_digit = min(0, exponent if isinstance(exponent, int) else 0)

    def _is_instrumented(self, place: _Place, day: date) -> bool:
        requests = self._requests
        return (place, day) in requests or (place, day - DAY) in requests or (place, day + DAY) in requests

    def _ceiling(self, place: _Place, day: date, meter: MeterKind, requests: int) -> Decimal:
        """What calls of unknown tokens may have used at most: each as much as the 99th percentile of the deployment's calls that day."""
        if not requests or meter not in (MeterKind.INPUT, MeterKind.OUTPUT):
            return ZERO
        key = (place, day)
        if key not in self._ceilings:
            self._ceilings[key] = self._percentiles(self._series_of(place, day), day)
        return money.times(self._ceilings[key][meter == MeterKind.OUTPUT], requests)

    def _series_of(self, place: _Place, day: date) -> list[int]:
        if self._series is None:
            self._series = {}
            for series in self._answer.world.series.values():
                for near in sorted({on for by_day in self._cells.values() for on in by_day}):
                    identity = self._answer.meanings.meaning_at(series, int(day_start(near).timestamp())).identity
                    self._series.setdefault(((identity.workspace, identity.deployment), near), []).append(series.id)
        return self._series.get((place, day), [])

    def _percentiles(self, series: list[int], day: date) -> tuple[Decimal, Decimal]:
        found: list[Decimal] = []
        for column in (col(UsageEvent.input_tokens), col(UsageEvent.output_tokens)):
            known = self._session.scalars(
                sa.select(column)
                .where(
                    col(UsageEvent.time) >= day_start(day),
                    col(UsageEvent.time) < day_start(day + DAY),
                    col(UsageEvent.series_id).in_(series),
                    column.is_not(None),
                )
                .limit(_MOST_SAMPLED)
            ).all()
            ordered = sorted(int(one or 0) for one in known)
            found.append(Decimal(ordered[-(-99 * len(ordered) // 100) - 1]) if ordered else ZERO)
        return found[0], found[1]

    # -- rows -----------------------------------------------------------------------------------

    def _line(self, line: _Line, by_day: Mapping[date, _Cell]) -> Iterable[ReconciliationRow]:
        place, meter, currency = line
        found: dict[date, dict[Cause, Decimal]] = {}
        inputs = self._cells.get((place, MeterKind.INPUT, currency), {})
        has_others = len(self._currencies[(place, meter)]) > 1
        metered = [day for day, cell in by_day.items() if cell.metered_units > 0 and cell.expected]
        for day, cell in by_day.items():
            if cell.is_empty:
                continue
            whole = natural(meter, is_metered=bool(cell.metered_units))
            if whole is not None:
                gap = money.minus(cell.billed, cell.expected)
                found[day] = {whole: gap} if gap else {}
                continue
            found[day] = causes(
                Facing(
                    meter=meter,
                    expected=cell.expected,
                    billed=cell.billed,
                    metered_units=cell.metered_units,
                    billed_units=cell.billed_units,
                    credits=cell.credits,
                    unpriced_units=Decimal(cell.unpriced_units),
                    price=_price_near(by_day, metered, day),
                    ceiling_units=self._ceiling(place, day, meter, _unknown_requests(inputs, day)),
                    is_instrumented=self._is_instrumented(place, day),
                    is_other_currency=has_others and self._is_other_currency(line, day, cell),
                    state=_STATES[cell.standing],
                    lines=cell.lines,
                    last_digit=self._last_digit,
                )
            )
        net_timing(found)
        for day, split in found.items():
            cell = by_day[day]
            yield ReconciliationRow(
                workspace=place[0],
                deployment=place[1],
                meter=meter.value,
                day=day,
                currency=currency,
                expected=cell.expected,
                billed=cell.billed,
                metered_units=cell.metered_units,
                billed_units=cell.billed_units,
                causes=split if len(split) < 2 else {cause: split[cause] for cause in _CAUSES if cause in split},
                state=_STATES[cell.standing],
                estimate=cell.estimate,
                unknown_token_requests=_unknown_requests(inputs, day),
                reasons=_reasons(cell),
            )

    def _is_other_currency(self, line: _Line, day: date, cell: _Cell) -> bool:
        """Whether this side stands in one currency and the other side in another: no rate is known between them."""
        place, meter, currency = line
        for other in self._currencies[(place, meter)] - {currency}:
            if (facing := self._cells[(place, meter, other)].get(day)) is None:
                continue
            if cell.billed and not cell.metered_units and facing.metered_units and not facing.billed:
                return True
            if cell.metered_units and not cell.billed and facing.billed and not facing.metered_units:
                return True
        return False


def _order(row: ReconciliationRow) -> tuple[date, bool, str, bool, str, str, str]:
    place = (row.workspace is None, row.workspace or "", row.deployment is None, row.deployment or "")
    return (row.day, *place, row.meter, row.currency or "")


def _unknown_requests(inputs: Mapping[date, _Cell], day: date) -> int:
    """Calls without tokens of the deployment's day: they stand in the input's row and concern the output's as well."""
    cell = inputs.get(day)
    return 0 if cell is None else cell.unknown_requests


def _reasons(cell: _Cell) -> Mapping[str, str]:
    found = {"expected": "; ".join(sorted(cell.reasons)[:3])} if cell.reasons else {}
    if cell.billed_units is None:
        found["billed_units"] = "the bill's unit is not known"
    return found


def _price_near(by_day: Mapping[date, _Cell], metered: Collection[date], day: date) -> Decimal | None:
    """What a unit cost on the nearest day that was metered; None where that is the day itself, or no day."""
    if not metered or by_day[day].metered_units > 0:
        return None
    nearest = min(metered, key=lambda other: (abs(other - day), other))
    return money.QUOTIENT.divide(by_day[nearest].expected, by_day[nearest].metered_units)


def _totals(rows: Iterable[ReconciliationRow], answer: Answer, period: Period) -> Iterable[ReconciliationTotal]:
    by_currency: dict[str | None, list[ReconciliationRow]] = {}
    for row in rows:
        by_currency.setdefault(row.currency, []).append(row)
    covers: dict[str | None, Sums] = {}
    for (bucket, _, currency), sums in answer.rows.items():
        if period.start <= answer.buckets[bucket].start < period.end:
            covers.setdefault(currency, Sums()).absorb_cover(sums)
    for currency in sorted(by_currency, key=lambda code: (code is None, code or "")):
        of = by_currency[currency]
        split: dict[Cause, Decimal] = {}
        for row in of:
            for cause, amount in row.causes.items():
                split[cause] = money.plus(split.get(cause, ZERO), amount)
        yield ReconciliationTotal(
            currency,
            money.add(row.expected for row in of),
            money.add(row.billed for row in of),
            {cause: split[cause] for cause in Cause if split.get(cause)},
            covers[currency].coverage() if currency in covers else None,
            len(of),
        )
