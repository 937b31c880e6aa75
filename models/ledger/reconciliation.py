"""Bill against metering, day by day: every variance in named causes that add up to it. ``models.variance`` decides them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property

import sqlalchemy as sa
from sqlmodel import Session, col

from models import money
from models.charges import MeterKind
from models.errors import InvalidInput
from models.ledger.costs import Answer
from models.ledger.sums import Sums
from models.ledger.values import CostQuery, Filters
from models.money import ZERO
from models.periods import DAY, Period, day_start, utc_day
from models.usage import UsageEvent
from models.variance import Cause, Facing, State, causes, net_timing

_GROUPS = ("workspace", "deployment", "meter")
_STATES: tuple[State, ...] = ("open", "settling", "closed")
# The bound of what unknown calls may have used is looked up among at most this many of a day's events.
_MOST_SAMPLED = 200_000
_LONGEST = 100 * DAY


@dataclass(frozen=True, slots=True)
class ReconciliationRow:
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
    reasons: Mapping[str, str] = field(default_factory=dict)

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
) -> Reconciliation:
    """Expected against billed for the whole UTC days of a period, as known now or at ``as_of``.

    ``usage_as_of`` leaves out the usage that arrived later and nothing else: to tell late usage from a change of facts.
    """
    if period != Period(day_start(utc_day(period.start)), day_start(utc_day(period.end))):
        raise InvalidInput("reconciliation is by whole UTC days: from and to must be midnights")
    if period.end - period.start > _LONGEST:
        raise InvalidInput(f"reconciliation takes at most {_LONGEST.days} days at once; ask month by month")
    # A day on either side: whether somebody was metering is judged within a day.
    wide = Period(period.start - DAY, period.end + DAY)
    query = CostQuery(wide, "day", _GROUPS, "billed", filters, as_of=as_of)
    answer = Answer(session, query, now=now, usage_as_of=usage_as_of)
    answer.gather()
    return _Reconciler(session, answer, period).reconciled()


_Place = tuple[str | None, str | None]  # workspace, deployment
_Line = tuple[_Place, MeterKind, str | None]  # place, meter, currency


@dataclass
class _Cell:
    """What bill and meter say of one line and day; added up once, when all of it is gathered."""

    sums: list[Sums] = field(default_factory=list)

    @cached_property
    def expected(self) -> Decimal:
        return money.add(one.metered for one in self.sums)

    @cached_property
    def billed(self) -> Decimal:
        return money.add(one.billed for one in self.sums)

    @cached_property
    def metered_units(self) -> Decimal:
        return money.add(one.units for one in self.sums)

    @cached_property
    def billed_units(self) -> Decimal | None:
        return money.add(one.bill.units for one in self.sums) if all(one.bill.is_unit_known for one in self.sums) else None

    @cached_property
    def is_empty(self) -> bool:
        """Whether there is no money in it, known or not: tokens of managed compute cost nothing by themselves."""
        return not (self.expected or self.billed or self.billed_units or any(one.unpriced_tokens or one.bill.lines for one in self.sums))


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
        rows.sort(key=lambda row: (row.day, *((name is None, name or "") for name in (row.workspace, row.deployment)), row.meter, row.currency or ""))
        return Reconciliation(self._period, rows, list(_totals(rows, self._answer, self._period)))

    # -- facts ----------------------------------------------------------------------------------

    def _gather(self) -> None:
        buckets = self._answer.buckets
        apart = {(groups[0], groups[1]) for (_, groups, _), sums in self._answer.rows.items() if groups[2] == MeterKind.CACHED_INPUT and sums.bill.lines}
        for (bucket, groups, currency), sums in self._answer.rows.items():
            workspace, deployment, meter = groups
            day, place = utc_day(buckets[bucket].start), (workspace, deployment)
            if sums.requests:
                self._requests.add((place, day))
            self._last_digit = min(self._last_digit, sums.bill.place)
            kind = MeterKind(meter or MeterKind.OTHER)
            if kind == MeterKind.CACHED_INPUT and place not in apart:
                kind = MeterKind.INPUT  # the bill has one meter for both
            if buckets[bucket].start < self._period.start or buckets[bucket].start >= self._period.end:
                continue
            self._cells.setdefault((place, kind, currency), {}).setdefault(day, _Cell()).sums.append(sums)
            self._currencies.setdefault((place, kind), set()).add(currency)

    def _is_instrumented(self, place: _Place, day: date) -> bool:
        return any((place, near) in self._requests for near in (day - DAY, day, day + DAY))

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
                    identity = self._answer.meaning_at(series, int(day_start(near).timestamp())).identity
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
        facing: dict[date, Facing] = {}
        metered = [day for day, cell in by_day.items() if cell.metered_units > 0 and cell.expected]
        for day, cell in by_day.items():
            if cell.is_empty:
                continue
            unknown = self._unknown_requests(place, currency, day)
            facing[day] = Facing(
                meter=meter,
                expected=cell.expected,
                billed=cell.billed,
                metered_units=cell.metered_units,
                billed_units=cell.billed_units,
                credits=money.add(one.bill.credits for one in cell.sums),
                unpriced_units=Decimal(sum(one.unpriced_tokens for one in cell.sums)),
                price=_price_near(by_day, metered, day),
                ceiling_units=self._ceiling(place, day, meter, unknown),
                is_instrumented=self._is_instrumented(place, day),
                is_other_currency=self._is_other_currency(line, day, cell),
                state=_STATES[min(one.standing for one in cell.sums)],
                lines=sum(one.bill.lines for one in cell.sums),
                last_digit=self._last_digit,
            )
            found[day] = causes(facing[day])
        net_timing(found)
        for day, split in found.items():
            row, cell = facing[day], by_day[day]
            reasons = "; ".join(sorted({reason for one in cell.sums for reason in one.reasons})[:3])
            unknown = self._unknown_requests(place, currency, day)
            yield ReconciliationRow(
                workspace=place[0],
                deployment=place[1],
                meter=meter.value,
                day=day,
                currency=currency,
                expected=row.expected,
                billed=row.billed,
                metered_units=row.metered_units,
                billed_units=row.billed_units,
                causes={cause: split[cause] for cause in Cause if cause in split},
                state=row.state,
                estimate=any(one.estimate for one in cell.sums),
                unknown_token_requests=unknown,
                reasons={
                    **({"expected": reasons} if reasons else {}),
                    **({"billed_units": "the bill's unit is not known"} if row.billed_units is None else {}),
                },
            )

    def _unknown_requests(self, place: _Place, currency: str | None, day: date) -> int:
        """Calls without tokens of the deployment's day: they stand in the input's row and concern the output's as well."""
        cell = self._cells.get((place, MeterKind.INPUT, currency), {}).get(day)
        return 0 if cell is None else sum(one.unknown_requests for one in cell.sums)

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


def _price_near(by_day: Mapping[date, _Cell], metered: Collection[date], day: date) -> Decimal | None:
    """What a unit cost on the nearest day that was metered: for days on which nothing was."""
    nearest = min(metered, key=lambda other: (abs(other - day), other), default=None)
    return None if nearest is None else money.QUOTIENT.divide(by_day[nearest].expected, by_day[nearest].metered_units)


def _totals(rows: Iterable[ReconciliationRow], answer: Answer, period: Period) -> Iterable[ReconciliationTotal]:
    by_currency: dict[str | None, list[ReconciliationRow]] = {}
    for row in rows:
        by_currency.setdefault(row.currency, []).append(row)
    covers: dict[str | None, Sums] = {}
    for (bucket, _, currency), sums in answer.rows.items():
        if period.start <= answer.buckets[bucket].start < period.end:
            covers.setdefault(currency, Sums()).absorb(sums)
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
