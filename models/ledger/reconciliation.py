"""Bill against metering, day by day: every variance in named causes that add up to it. ``models.variance`` decides them.

What there is of each row and day (some ten thousand of a month) is made of structs that C fills: a frozen dataclass costs eight times as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from operator import attrgetter

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, col

from models import money
from models.charges import MeterKind
from models.errors import InvalidInput
from models.ledger.billed import Reading
from models.ledger.costs import Answer
from models.ledger.lags import SPARE, Lags
from models.ledger.sums import Sums, covered
from models.ledger.values import CostQuery, Filters, share_of
from models.ledger.views import Groups
from models.ledger.world import World
from models.money import ZERO
from models.periods import DAY, Period, day_start, days, utc_day
from models.prices import in_one
from models.usage import UsageEvent
from models.variance import Cause, Facing, State, causes, natural, net_timing

_GROUPS = ("workspace", "deployment", "meter")
_KINDS = {kind.value: kind for kind in MeterKind}
_CAUSES = tuple(Cause)
_BILLED = attrgetter("billed")
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
    invoiced: Decimal | None = None  # what of billed is on an invoice
    charges: int = 0  # the billed lines of it, and how many of them name an invoice
    invoiced_charges: int = 0
    overdue_since: datetime | None = None  # when the bill of it should have come, by the lag of its meter; None where it is not awaited

    @property
    def not_invoiced(self) -> str | None:
        """Why nothing, or not all, of what is billed is on an invoice; None where all of it is."""
        return not_invoiced(self.charges, self.invoiced_charges)

    @property
    def variance(self) -> Decimal:
        return money.minus(self.billed, self.expected)


@dataclass(frozen=True, slots=True)
class ReconciliationTotal:
    """The rows of one currency added up; ``coverage`` is the share of billed money that metering saw (None where nothing is billed).

    ``requests`` are the calls of its deployments, ``unknown_token_requests`` those of them whose tokens nobody told: each once, however many meters.
    """

    currency: str | None
    expected: Decimal
    billed: Decimal
    causes: Mapping[Cause, Decimal]
    coverage: Decimal | None
    rows: int
    requests: int = 0
    unknown_token_requests: int = 0
    invoiced: Decimal | None = None
    not_invoiced: str | None = None  # why nothing, or not all, of what is billed is on an invoice

    @property
    def unknown_token_share(self) -> Decimal | None:
        """The share of the calls whose tokens are in no amount here; None where nobody called."""
        return share_of(self.unknown_token_requests, self.requests)

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
    found = _Reconciler(session, answer, period).reconciled()
    _raise_overdue(session, answer.world, found.rows, now=as_of or now)
    return found


def _raise_overdue(session: Session, world: World, rows: list[ReconciliationRow], *, now: datetime) -> None:
    """Say of rows that are metered and not billed since when their bill should have come, by the lag of their meter."""
    waiting = [
        index for index, row in enumerate(rows) if row.expected > 0 and not row.charges and row.state != "closed" and day_start(row.day + DAY) + SPARE <= now
    ]
    if not waiting:
        return
    lags = Lags(session, now=now)
    for index in waiting:
        row = rows[index]
        if row.workspace is None or row.deployment is None:
            continue
        whose = world.registry.identity(row.workspace, row.deployment, model=None, at=day_start(row.day))
        if whose.subscription is None or whose.route is None:
            continue
        due = lags.due(row.day, subscription=whose.subscription, route=whose.route.value, meter=row.meter)
        if due is not None and due <= now:
            rows[index] = msgspec.structs.replace(row, overdue_since=due)


_NO_REASONS: Mapping[str, str] = {}
_Place = tuple[str | None, str | None]  # workspace, deployment
_Line = tuple[_Place, MeterKind, str | None]  # place, meter, currency


class _Reconciler:
    """One reconciliation in the making."""

    def __init__(self, session: Session, answer: Answer, period: Period) -> None:
        self._session = session
        self._answer = answer
        self._period = period
        # What bill and meter say of each line, day by day.
        self._cells: dict[_Line, dict[date, Sums]] = {}
        self._currencies: dict[tuple[_Place, MeterKind], set[str | None]] = {}
        self._requests: dict[_Place, set[date]] = {}
        # What is billed and metered of the reached days of each currency's deployments.
        self._covers: dict[str | None, dict[_Place, dict[date, tuple[Decimal, Decimal]]]] = {}
        self._calls: dict[str | None, tuple[int, int]] = {}  # of each currency: all, and those of unknown tokens
        self._ceilings: dict[tuple[_Place, date], tuple[Decimal, Decimal]] = {}
        self._series: dict[tuple[_Place, date], list[int]] | None = None
        self._last_digit = 0

    def reconciled(self) -> Reconciliation:
        self._gather()
        by_day: dict[date, list[ReconciliationRow]] = {}
        for line in sorted(self._cells, key=_order):
            for row in self._line(line, self._cells[line]):
                by_day.setdefault(row.day, []).append(row)
        rows = [row for day in sorted(by_day) for row in by_day[day]]
        return Reconciliation(self._period, rows, list(self._totals(rows)))

    # -- facts ----------------------------------------------------------------------------------

    def _gather(self) -> None:
        rows = self._answer.rows
        starts = [utc_day(bucket.start) for bucket in self._answer.buckets]
        found: dict[tuple[Groups, str | None], dict[date, Sums]] = {}
        for (bucket, groups, currency), sums in rows.items():
            found.setdefault((groups, currency), {})[starts[bucket]] = sums
        apart = {groups[:2] for (groups, _), by_day in found.items() if groups[2] == MeterKind.CACHED_INPUT and any(sums.lines for sums in by_day.values())}
        asked = set(days(self._period))
        for (groups, currency), by_day in found.items():
            place = (groups[0], groups[1])
            if used := [day for day, sums in by_day.items() if sums.requests]:
                self._requests.setdefault(place, set()).update(used)
            cells = {day: sums for day, sums in by_day.items() if day in asked}
            if not cells:
                continue
            self._cover(place, currency, cells)
            kind = _KINDS.get(groups[2] or "", MeterKind.OTHER)
            if kind == MeterKind.CACHED_INPUT and place not in apart:
                kind = MeterKind.INPUT  # the bill has one meter for both
            self._currencies.setdefault((place, kind), set()).add(currency)
            line = self._cells.setdefault((place, kind, currency), cells)
            if line is not cells:
                for day, sums in cells.items():
                    line[day] = _together(line[day], sums) if day in line else sums
        # An exact sum has the finest last digit of what was added.
        exponent = money.add(map(_BILLED, rows.values())).as_tuple().exponent
        self._last_digit = min(0, exponent if isinstance(exponent, int) else 0)

    def _cover(self, place: _Place, currency: str | None, cells: Mapping[date, Sums]) -> None:
        cover = self._covers.setdefault(currency, {}).setdefault(place, {})
        calls, unknown = self._calls.get(currency, (0, 0))
        self._calls[currency] = (
            calls + sum(sums.requests for sums in cells.values()),
            unknown + sum(sums.unknown_requests for sums in cells.values()),
        )
        for day, sums in cells.items():
            for pair in sums.cover.values():
                before = cover.get(day)
                cover[day] = pair if before is None else (money.plus(before[0], pair[0]), money.plus(before[1], pair[1]))

    def _is_instrumented(self, place: _Place, day: date) -> bool:
        used = self._requests.get(place, ())
        return day in used or day - DAY in used or day + DAY in used

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

    def _line(self, line: _Line, by_day: Mapping[date, Sums]) -> Iterable[ReconciliationRow]:
        place, meter, currency = line
        name = meter.value
        # Calls without tokens of the deployment's day: they stand in the input's row and concern the output's as well.
        inputs = self._cells.get((place, MeterKind.INPUT, currency), {})
        unknown = {day: sums.unknown_requests for day, sums in inputs.items() if sums.unknown_requests}
        has_others = len(self._currencies[(place, meter)]) > 1
        metered = [day for day, sums in by_day.items() if sums.units > 0 and sums.metered]
        wholes = natural(meter, is_metered=False), natural(meter, is_metered=True)
        found: dict[date, dict[Cause, Decimal]] = {}
        for day, sums in by_day.items():
            if _is_empty(sums):
                continue
            whole = wholes[bool(sums.units)]
            if whole is not None:
                gap = money.minus(sums.billed, sums.metered)
                found[day] = {whole: gap} if gap else {}
                continue
            found[day] = causes(
                Facing(
                    meter=meter,
                    expected=sums.metered,
                    billed=sums.billed,
                    metered_units=sums.units,
                    billed_units=sums.billed_units if sums.is_billed_unit_known else None,
                    credits=sums.credits,
                    unpriced_units=Decimal(sums.unpriced_tokens),
                    price=_price_near(by_day, metered, day),
                    ceiling_units=self._ceiling(place, day, meter, unknown.get(day, 0)),
                    is_instrumented=self._is_instrumented(place, day),
                    is_other_currency=has_others and self._is_other_currency(line, day, sums),
                    state=_STATES[sums.standing],
                    lines=sums.lines,
                    last_digit=self._last_digit,
                )
            )
        net_timing(found)
        for day, split in found.items():
            sums = by_day[day]
            is_unit_known = sums.is_billed_unit_known
            yield ReconciliationRow(
                workspace=place[0],
                deployment=place[1],
                meter=name,
                day=day,
                currency=currency,
                expected=sums.metered,
                billed=sums.billed,
                metered_units=sums.units,
                billed_units=sums.billed_units if is_unit_known else None,
                causes=split if len(split) < 2 else {cause: split[cause] for cause in _CAUSES if cause in split},
                state=_STATES[sums.standing],
                estimate=sums.estimate,
                unknown_token_requests=unknown.get(day, 0),
                reasons=_NO_REASONS if is_unit_known and not sums.reasons else _reasons(sums),
                invoiced=sums.invoiced if sums.invoiced_lines else None,
                charges=sums.lines,
                invoiced_charges=sums.invoiced_lines,
            )

    def _is_other_currency(self, line: _Line, day: date, sums: Sums) -> bool:
        """Whether this side stands in one currency and the other side in another: no rate is known between them."""
        place, meter, currency = line
        for other in self._currencies[(place, meter)] - {currency}:
            if (facing := self._cells[(place, meter, other)].get(day)) is None:
                continue
            if sums.billed and not sums.units and facing.units and not facing.billed:
                return True
            if sums.units and not sums.billed and facing.billed and not facing.units:
                return True
        return False

    def _totals(self, rows: Iterable[ReconciliationRow]) -> Iterable[ReconciliationTotal]:
        by_currency: dict[str | None, list[ReconciliationRow]] = {}
        for row in rows:
            by_currency.setdefault(row.currency, []).append(row)
        for currency in sorted(by_currency, key=lambda code: (code is None, code or "")):
            of = by_currency[currency]
            yield ReconciliationTotal(
                currency,
                money.add(row.expected for row in of),
                money.add(row.billed for row in of),
                causes_of(of),
                covered(pair for cover in self._covers[currency].values() for pair in cover.values()) if currency in self._covers else None,
                len(of),
                *self._calls.get(currency, (0, 0)),
                *invoiced_of(of),
            )


def _order(line: _Line) -> tuple[bool, str, bool, str, str, str]:
    (workspace, deployment), meter, currency = line
    return workspace is None, workspace or "", deployment is None, deployment or "", meter.value, currency or ""


def _together(one: Sums, other: Sums) -> Sums:
    """What stands in two rows and is one line; the rows stay as they are."""
    both = Sums()
    both.absorb(one)
    both.absorb(other)
    return both


def _is_empty(sums: Sums) -> bool:
    """Whether there is no money in it, known or not: tokens of managed compute cost nothing by themselves."""
    return not (sums.metered or sums.billed or sums.lines or sums.unpriced_tokens or (sums.billed_units and sums.is_billed_unit_known))


def _reasons(sums: Sums) -> Mapping[str, str]:
    found = {"expected": in_one(sums.reasons)} if sums.reasons else {}
    if not sums.is_billed_unit_known:
        found["billed_units"] = "the bill's unit is not known"
    return found


def _price_near(by_day: Mapping[date, Sums], metered: Collection[date], day: date) -> Decimal | None:
    """What a unit cost on the nearest day that was metered; None where that is the day itself, or no day."""
    if not metered or by_day[day].units > 0:
        return None
    nearest = min(metered, key=lambda other: (abs(other - day), other))
    return money.QUOTIENT.divide(by_day[nearest].metered, by_day[nearest].units)


def causes_of(rows: Iterable[ReconciliationRow]) -> dict[Cause, Decimal]:
    """The causes of rows of one currency added up, in their order; only those that are not zero."""
    parts: dict[Cause, list[Decimal]] = {}
    for row in rows:
        for cause, amount in row.causes.items():
            parts.setdefault(cause, []).append(amount)
    return {cause: amount for cause in _CAUSES if cause in parts if (amount := money.add(parts[cause]))}


def not_invoiced(charges: int, invoiced: int) -> str | None:
    """Why not all of so many charges is on an invoice, where so many of them are."""
    if charges and charges == invoiced:
        return None
    if not charges:
        return "nothing is billed, so nothing can be on an invoice"
    return "some of these charges are on no invoice yet" if invoiced else "no invoice has been made for these charges yet"


def invoiced_of(rows: Iterable[ReconciliationRow]) -> tuple[Decimal | None, str | None]:
    """What of rows of one currency is on an invoice (None: nothing), and why not all of it is."""
    billed = [row for row in rows if row.charges]
    known = [row.invoiced for row in billed if row.invoiced is not None]
    return (money.add(known) if known else None), not_invoiced(sum(row.charges for row in billed), sum(row.invoiced_charges for row in billed))


def unknown_calls(rows: Iterable[ReconciliationRow]) -> int:
    """The calls of unknown tokens behind rows; one stands beside every meter of its deployment's day."""
    return sum({(row.workspace, row.deployment, row.day, row.currency): row.unknown_token_requests for row in rows}.values())
