"""Bill against metering, day by day: every variance in named causes that add up to it. ``models.variance`` decides them.

What there is of each row and day (some ten thousand of a month) is made of structs that C fills: a frozen dataclass costs eight times as much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from operator import attrgetter

import msgspec
from sqlmodel import Session

from models import money
from models.charges import MeterKind
from models.errors import InvalidInput
from models.ledger import ceilings
from models.ledger.billed import Reading
from models.ledger.costs import Answer
from models.ledger.lags import SPARE, Lags
from models.ledger.sums import Sums, covered
from models.ledger.values import CostQuery, Filters, share_of
from models.ledger.world import World
from models.money import ZERO
from models.periods import DAY, Period, day_start, utc_day
from models.prices import in_one
from models.variance import Cause, Facing, State, causes, natural, net_timing, tokens_needed

_GROUPS = ("workspace", "deployment", "meter")
_KINDS = {kind.value: kind for kind in MeterKind}
_CAUSES = tuple(Cause)
_BILLED, _EXPECTED = attrgetter("billed"), attrgetter("expected")
_TOKENS = dict(zip(ceilings.KINDS, map(attrgetter, ("input_tokens", "output_tokens", "cached_input_tokens")), strict=True))
_STATES: tuple[State, ...] = ("open", "settling", "closed")
_LONGEST = 100 * DAY


class ReconciliationRow(msgspec.Struct, frozen=True, gc=False):
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
    answer = Answer(session, query, now=now, usage_as_of=usage_as_of, reading=reading, needs_coverage=False)
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
_Line = tuple[ceilings.Place, MeterKind, str | None]  # place, meter, currency


class _Reconciler:
    """One reconciliation in the making. Days go by their number among those of the answer, which has one more on either side."""

    def __init__(self, session: Session, answer: Answer, period: Period) -> None:
        self._session = session
        self._answer = answer
        self._period = period
        self._days = [utc_day(bucket.start) for bucket in answer.buckets]
        # What bill and meter say of each line, day by day.
        self._cells: dict[_Line, dict[int, Sums]] = {}
        self._currencies: dict[tuple[ceilings.Place, MeterKind], set[str | None]] = {}
        self._requests: dict[ceilings.Place, set[int]] = {}
        # What there is of each currency's deployments, day by day.
        self._sides: dict[str | None, dict[ceilings.Place, dict[int, list[Sums]]]] = {}
        self._ceilings: dict[tuple[int, ceilings.Place, MeterKind], int] = {}

    def reconciled(self) -> Reconciliation:
        self._gather()
        self._find_ceilings()
        by_day: list[list[ReconciliationRow]] = [[] for _ in self._days]
        for line in sorted(self._cells, key=_order):
            self._add_line(line, self._cells[line], by_day)
        rows = [row for of_day in by_day for row in of_day]
        return Reconciliation(self._period, rows, list(self._totals(rows)))

    # -- facts ----------------------------------------------------------------------------------

    def _gather(self) -> None:
        found, last = self._answer.lines, len(self._days) - 1
        apart = {groups[:2] for (groups, _), rows in found.items() if groups[2] == MeterKind.CACHED_INPUT and any(sums.lines for sums in rows.values())}
        for (groups, currency), rows in found.items():
            place = (groups[0], groups[1])
            if used := [day for day, sums in rows.items() if sums.requests]:
                self._requests.setdefault(place, set()).update(used)
            cells = {day: sums for day, sums in rows.items() if 0 < day < last}
            if not cells:
                continue
            sides = self._sides.setdefault(currency, {}).setdefault(place, {})
            for day, sums in cells.items():
                if day in sides:
                    sides[day].append(sums)
                else:
                    sides[day] = [sums]
            kind = _KINDS.get(groups[2] or "", MeterKind.OTHER)
            if kind == MeterKind.CACHED_INPUT and place not in apart:
                kind = MeterKind.INPUT  # the bill has one meter for both
            self._currencies.setdefault((place, kind), set()).add(currency)
            line = self._cells.setdefault((place, kind, currency), cells)
            if line is not cells:
                for day, sums in cells.items():
                    line[day] = _together(line[day], sums) if day in line else sums

    def _is_instrumented(self, place: ceilings.Place, day: int) -> bool:
        used = self._requests.get(place, ())
        return day in used or day - 1 in used or day + 1 in used

    def _unknown(self, place: ceilings.Place, currency: str | None) -> dict[int, int]:
        """Calls without tokens of a deployment, by day: they stand in the input's row and concern the output's as well."""
        inputs = self._cells.get((place, MeterKind.INPUT, currency))
        return {day: sums.unknown_requests for day, sums in inputs.items() if sums.unknown_requests} if inputs else {}

    def _of_day(self, place: ceilings.Place, day: int) -> Iterable[Sums]:
        """All that there is of a deployment's day, in whatever currency."""
        return (sums for sides in self._sides.values() for sums in sides.get(place, {}).get(day, ()))

    def _find_ceilings(self) -> None:
        """Look up what calls of unknown tokens may have used, where a gap could be of them."""
        asked: dict[int, dict[ceilings.Asked, int]] = {}
        for line, cells in self._cells.items():
            place, meter, currency = line
            if meter not in ceilings.KINDS:
                continue
            unknown = self._unknown(place, currency)
            metered = _metered(cells) if unknown else []
            for day in unknown.keys() & cells.keys():
                facing = self._facing(line, day, cells[day], _price_near(cells, metered, day), ZERO)
                least = tokens_needed(facing, unknown[day])
                # Where no call told any such token the percentile is nothing.
                if least is not None and any(_TOKENS[meter](sums) for sums in self._of_day(place, day)):
                    key, of_day = (place, meter), asked.setdefault(day, {})
                    of_day[key] = max(least, of_day.get(key, 0))
        for day, wanted in asked.items():
            start, places = day_start(self._days[day]), {place for place, _ in wanted}
            series: dict[int, ceilings.Place] = {}
            for one in self._answer.world.series.values():
                identity = self._answer.meanings.meaning_at(one, int(start.timestamp())).identity
                if (place := (identity.workspace, identity.deployment)) in places:
                    series[one.id] = place
            calls = {place: sum(sums.requests for sums in self._of_day(place, day)) for place in places}
            found = ceilings.ceilings(self._session, start, wanted, series=series, calls=calls, as_of=self._answer.usage_as_of)
            self._ceilings |= {(day, *key): tokens for key, tokens in found.items()}

    # -- rows -----------------------------------------------------------------------------------

    def _add_line(self, line: _Line, cells: Mapping[int, Sums], by_day: Sequence[list[ReconciliationRow]]) -> None:
        """Compare a line day by day and add its rows to those of the days."""
        (workspace, deployment), meter, currency = line
        name = meter.value
        unknown = self._unknown(line[0], currency)
        wholes = natural(meter, is_metered=False), natural(meter, is_metered=True)
        compared: dict[date, dict[Cause, Decimal]] = {}  # what was told apart by comparing: the rest its meter says
        metered = _metered(cells) if None in wholes else []
        for day, sums in cells.items():
            expected, billed = sums.metered, sums.billed
            is_unit_known = sums.is_billed_unit_known
            # Without any money in it, known or not, it is no row: tokens of managed compute cost nothing by themselves.
            if not (expected or billed or sums.lines or sums.unpriced_tokens or (sums.billed_units and is_unit_known)):
                continue
            on, gap = self._days[day], money.minus(billed, expected)
            split: dict[Cause, Decimal] = {}
            if gap:
                whole = wholes[bool(sums.units)]
                if whole is not None:
                    split = {whole: gap}
                else:
                    ceiling = ZERO
                    if day in unknown:
                        tokens = self._ceilings.get((day, line[0], meter), 0)
                        ceiling = Decimal(tokens * unknown[day])
                    split = compared[on] = causes(self._facing(line, day, sums, _price_near(cells, metered, day), ceiling))
            by_day[day].append(
                ReconciliationRow(  # by position: as many names cost as much as the rest of it
                    workspace,
                    deployment,
                    name,
                    on,
                    currency,
                    expected,
                    billed,
                    sums.units,
                    sums.billed_units if is_unit_known else None,
                    split,
                    _STATES[sums.standing],
                    sums.estimate,
                    unknown.get(day, 0),
                    _NO_REASONS if is_unit_known and not sums.reasons else _reasons(sums),
                    sums.invoiced if sums.invoiced_lines else None,
                    sums.lines,
                    sums.invoiced_lines,
                )
            )
        if compared:
            net_timing(compared)
            for split in compared.values():
                if len(split) > 1:
                    ordered = [(cause, split[cause]) for cause in _CAUSES if cause in split]
                    split.clear()
                    split.update(ordered)

    def _facing(self, line: _Line, day: int, sums: Sums, price: Decimal | None, ceiling: Decimal) -> Facing:
        place, meter, currency = line
        return Facing(
            meter=meter,
            expected=sums.metered,
            billed=sums.billed,
            metered_units=sums.units,
            billed_units=sums.billed_units if sums.is_billed_unit_known else None,
            credits=sums.credits,
            unpriced_units=Decimal(sums.unpriced_tokens),
            price=price,
            ceiling_units=ceiling,
            is_instrumented=self._is_instrumented(place, day),
            is_other_currency=len(self._currencies[(place, meter)]) > 1 and self._is_other_currency(line, day, sums),
            state=_STATES[sums.standing],
            lines=sums.lines,
            # Of the day's bill, whoever asks and for whatever period; and no bill is coarser than the currency's own unit.
            last_digit=min(-money.minor_digits(currency), self._answer.reading.finest(self._days[day])),
        )

    def _is_other_currency(self, line: _Line, day: int, sums: Sums) -> bool:
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
            sides = self._sides[currency]
            every = [sums for by_day in sides.values() for cells in by_day.values() for sums in cells if sums.is_used]
            yield ReconciliationTotal(
                currency,
                money.add(map(_EXPECTED, of)),
                money.add(map(_BILLED, of)),
                causes_of(of),
                covered(_faced(place, cells) for place, by_day in sides.items() for cells in by_day.values()),
                len(of),
                sum(sums.requests for sums in every),
                sum(sums.unknown_requests for sums in every),
                *invoiced_of(of),
            )


def _faced(place: ceilings.Place, cells: Sequence[Sums]) -> tuple[Decimal, Decimal]:
    """What of a deployment's day is billed, and what metering says of it where a bill reaches it; unallocated money has no metering."""
    used = [] if place[1] is None else [money.minus(sums.metered, sums.unreached) for sums in cells if sums.is_used]
    return money.add(map(_BILLED, cells)), money.add(used)


def _order(line: _Line) -> tuple[bool, str, bool, str, str, str]:
    (workspace, deployment), meter, currency = line
    return workspace is None, workspace or "", deployment is None, deployment or "", meter.value, currency or ""


def _together(one: Sums, other: Sums) -> Sums:
    """What stands in two rows and is one line; the rows stay as they are."""
    both = Sums()
    both.absorb(one)
    both.absorb(other)
    return both


def _reasons(sums: Sums) -> Mapping[str, str]:
    found = {"expected": in_one(sums.reasons)} if sums.reasons else {}
    if not sums.is_billed_unit_known:
        found["billed_units"] = "the bill's unit is not known"
    return found


def _metered(cells: Mapping[int, Sums]) -> list[int]:
    """The days of a line that say what its units cost."""
    return [day for day, sums in cells.items() if sums.units > 0 and sums.metered]


def _price_near(by_day: Mapping[int, Sums], metered: Collection[int], day: int) -> Decimal | None:
    """What a unit cost on the nearest day that was metered; None where that is the day itself, or no day."""
    if not metered or by_day[day].units > 0:
        return None
    nearest = min(metered, key=lambda other: (abs(other - day), other))
    return money.QUOTIENT.divide(by_day[nearest].metered, by_day[nearest].units)


def causes_of(rows: Iterable[ReconciliationRow]) -> dict[Cause, Decimal]:
    """The causes of rows of one currency added up, in their order; only those that are not zero."""
    parts: dict[Cause, list[Decimal]] = {cause: [] for cause in _CAUSES}
    for row in rows:
        for cause, amount in row.causes.items():
            parts[cause].append(amount)
    return {cause: amount for cause, amounts in parts.items() if (amount := money.add(amounts))}


def not_invoiced(charges: int, invoiced: int) -> str | None:
    """Why not all of so many charges is on an invoice, where so many of them are."""
    if charges and charges == invoiced:
        return None
    if not charges:
        return "nothing is billed, so nothing can be on an invoice"
    return "some of these charges are on no invoice yet" if invoiced else "no invoice has been made for these charges yet"


def invoiced_of(rows: Iterable[ReconciliationRow]) -> tuple[Decimal | None, str | None]:
    """What of rows of one currency is on an invoice (None: nothing), and why not all of it is."""
    counted, known = [0, 0], []
    for row in rows:
        counted[0] += row.charges
        if row.invoiced is not None:
            counted[1] += row.invoiced_charges
            known.append(row.invoiced)
    return (money.add(known) if known else None), not_invoiced(*counted)


def unknown_calls(rows: Iterable[ReconciliationRow]) -> int:
    """The calls of unknown tokens behind rows; one stands beside every meter of its deployment's day."""
    return sum({(row.workspace, row.deployment, row.day, row.currency): row.unknown_token_requests for row in rows}.values())
