"""The weekly cost report as figures: what was spent, what changed and why, what is not final yet. Renderers only write it down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Literal

from sqlmodel import Session

from models import money
from models.errors import InvalidInput
from models.ledger.billed import Reading
from models.ledger.comparison import comparison
from models.ledger.costs import costs_together
from models.ledger.insight import data_age, forecast
from models.ledger.reconciliation import ReconciliationTotal, reconciliation
from models.ledger.values import CostQuery, CostRow, CostTable, DataAge, Figures, Filters, Forecast
from models.money import ZERO
from models.periods import DAY, Granularity, Period, day_start, floor, following, utc_day, zone_from
from models.resources import Mode

_MOST_MOVERS = 10
_DEPLOYMENTS = ("workspace", "deployment", "model", "mode")
_METERS = ("workspace", "deployment", "meter", "mode")
_LINES: tuple[tuple[str, ...], ...] = (("mode",), ("workspace",), _DEPLOYMENTS, ("team",))
_ASKED: tuple[tuple[str, ...], ...] = ((), *_LINES, _METERS)
_SAME_PRICE = Decimal("0.005")
_SAME_PERCENT = Decimal("0.05")
Unit = Literal["day", "week", "month"]


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of this week beside last week's; ``percent`` is of last week, None where there was nothing."""

    now: Decimal | None
    before: Decimal | None

    @property
    def difference(self) -> Decimal | None:
        return None if self.now is None or self.before is None else money.minus(self.now, self.before)

    @property
    def percent(self) -> Decimal | None:
        if self.difference is None or self.before is None or not self.before:
            return None
        return money.QUOTIENT.divide(self.difference * 100, abs(self.before)).quantize(Decimal("0.01"))


@dataclass(frozen=True, slots=True)
class Line:
    """One workspace, deployment, team or mode: its figures of this week and last (None where there were none)."""

    names: Mapping[str, str | None]
    figures: Figures
    before: Figures | None

    @property
    def change(self) -> Change:
        return Change(self.figures.cost, ZERO if self.before is None else self.before.cost)


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Last week's cost to this week's: the steps add up to the difference exactly.

    ``volume``: more or fewer tokens at last week's mix and prices; ``mix``: other deployments and meters; ``price``: other
    prices per token; ``capacity``: instance-hours that served tokens, and all of those of which what they could serve is not
    known; ``idle``: instance-hours that served none (None where that is known of no instance); ``corrections``: what no usage
    stands behind (credits, adjustments, restatements, money without a deployment).
    """

    before: Decimal
    volume: Decimal
    mix: Decimal
    price: Decimal
    capacity: Decimal
    idle: Decimal | None
    corrections: Decimal
    now: Decimal

    @property
    def steps(self) -> Mapping[str, Decimal | None]:
        """By name, in order; those that are not known are part of another one."""
        return {name: getattr(self, name) for name in ("volume", "mix", "price", "capacity", "idle", "corrections")}


@dataclass(frozen=True, slots=True)
class Alike:
    """Like for like: the days of a week that are billed, and the same weekdays of the week before, which are billed as well."""

    days: Sequence[date]
    days_before: Sequence[date]
    cost: Change


@dataclass(frozen=True, slots=True)
class CurrencyWeek:
    """Everything about one currency of the week. ``by_day`` has every day that has anything.

    ``alike`` None where the whole week is billed, or none of it.
    """

    currency: str | None
    total: Figures
    cost: Change
    billed: Change
    waterfall: Waterfall | None
    by_day: Sequence[CostRow]
    by_mode: Sequence[Line]
    by_workspace: Sequence[Line]
    by_deployment: Sequence[Line]
    by_team: Sequence[Line]
    movers: Sequence[tuple[Line, str]]
    forecast: Forecast | None
    reconciliation: ReconciliationTotal | None
    alike: Alike | None = None


@dataclass(frozen=True, slots=True)
class Week:
    """An ISO week in a time zone; or, by ``unit``, a day or a month, whose report is the same."""

    name: str  # 2026-W46, 2026-11-19, 2026-10
    period: Period
    time_zone: str
    unit: Unit = "week"


@dataclass(frozen=True, slots=True)
class WeeklyReport:
    """One week's report as known at ``made_at``; ``provisional_days`` are those that no bill reaches yet."""

    week: Week
    made_at: datetime
    currencies: Sequence[CurrencyWeek]
    provisional_days: Sequence[date]
    age: DataAge

    @property
    def used(self) -> frozenset[tuple[str, str]]:
        """Workspace and deployment of everything that it has a line of."""
        lines = (line for one in self.currencies for line in one.by_deployment)
        return frozenset((workspace, name) for line in lines if (workspace := line.names["workspace"]) and (name := line.names["deployment"]))


def week_of(name: str | None, *, now: datetime, time_zone: str = "UTC") -> Week:
    """The ISO week of a name like ``2026-W46``; the last complete one for None."""
    zone = zone_from(time_zone)
    if name is None:
        end = floor(now, "week", zone)
        start = floor(end - DAY, "week", zone)
    else:
        year, _, number = name.partition("-W")
        if not (len(year) == 4 and len(number) == 2 and (year + number).isascii() and (year + number).isdigit()):
            raise InvalidInput(f"a week is written like 2026-W46, not {name[:20]!r}")
        try:
            monday = date.fromisocalendar(int(year), int(number), 1)
        except ValueError as fault:
            raise InvalidInput(f"there is no week {name}: {year} has {date(int(year), 12, 28).isocalendar().week if int(year) else 0} weeks") from fault
        if not 2000 <= monday.year < 2200:
            raise InvalidInput(f"week {name} is outside the years that can hold anything")
        start = floor(day_start(monday) + timedelta(hours=36), "week", zone)
        end = following(start, "week", zone)
    local = (start + timedelta(hours=36)).astimezone(zone).isocalendar()
    return Week(f"{local.year}-W{local.week:02}", Period(start, end), time_zone)


def weekly(
    session: Session,
    week: Week,
    filters: Filters = Filters(),  # noqa: B008 - a frozen value
    *,
    now: datetime,
    reading: Reading | None = None,
) -> WeeklyReport:
    """The week's figures beside those of the week before, on basis best; ``reading`` is what somebody has read at ``now`` already."""
    if week.period.start >= now:
        raise InvalidInput(f"{week.unit} {week.name} has not begun yet")
    before = Period(floor(week.period.start - DAY / 2, week.unit, zone_from(week.time_zone)), week.period.start)
    made = _Maker(session, week, before, filters, now=now, reading=Reading(session, now) if reading is None else reading)
    age = data_age(session, visible=filters.visible, now=now, world=made.reading.world)
    return WeeklyReport(week, now, made.currencies(), made.provisional_days(), age)


class _Maker:
    """One report in the making."""

    def __init__(self, session: Session, week: Week, before: Period, filters: Filters, *, now: datetime, reading: Reading) -> None:
        self.session, self.week, self.before, self.filters, self.now, self.reading = session, week, before, filters, now, reading
        (of_days,) = self._ask(week.period, (), granularity="hour" if week.unit == "day" else "day", needs_coverage=True)
        self.days = of_days.rows
        self.coverage = {figures.currency: figures.coverage for figures in of_days.totals}

    def _ask(self, period: Period, *groupings: tuple[str, ...], granularity: Granularity, needs_coverage: bool = False) -> list[CostTable]:
        """The answers to several groupings of a period, from one reading of it."""
        queries = [CostQuery(period, granularity, groups, "best", self.filters, time_zone=self.week.time_zone) for groups in groupings]
        return costs_together(self.session, queries, now=self.now, reading=self.reading, needs_coverage=needs_coverage)

    def currencies(self) -> list[CurrencyWeek]:
        # Both in one answer: what usage means and whose charges are is found once.
        both = self._ask(Period(self.before.start, self.week.period.end), *_ASKED, granularity=self.week.unit)
        rows_of = dict(zip(_ASKED, (table.rows for table in both), strict=True))
        starts = (self.week.period.start, self.before.start)
        asked = [{groups: [row for row in rows if row.period.start == start] for groups, rows in rows_of.items()} for start in starts]
        this, last = ({row.figures.currency: row.figures for row in rows[()]} for rows in asked)
        lines = {groups: _lines(*(rows[groups] for rows in asked)) for groups in _LINES}
        meters = [rows[_METERS] for rows in asked]
        forecasts = {one.currency: one for one in forecast(self.session, self.filters, now=self.now, reading=self.reading)}
        matched = self._reconciled()
        idle = self._idle(lines[_DEPLOYMENTS])
        alike = self._alike()
        found: list[CurrencyWeek] = []
        for currency in sorted(this.keys() | last.keys(), key=lambda code: (code is None, code or "")):
            total = replace(this.get(currency) or _nothing(last[currency]), coverage=self.coverage.get(currency))
            earlier = last.get(currency)
            cost = Change(total.cost, ZERO if earlier is None else earlier.cost)
            deployments = [line for line in lines[_DEPLOYMENTS] if line.figures.currency == currency]
            found.append(
                CurrencyWeek(
                    currency=currency,
                    total=total,
                    cost=cost,
                    billed=Change(total.billed_cost, ZERO if earlier is None else earlier.billed_cost),
                    waterfall=_waterfall(cost, *([row for row in rows if row.figures.currency == currency] for rows in meters), idle=idle.get(currency)),
                    by_day=[row for row in self.days if row.figures.currency == currency],
                    by_mode=[line for line in lines["mode",] if line.figures.currency == currency],
                    by_workspace=[line for line in lines["workspace",] if line.figures.currency == currency],
                    by_deployment=deployments,
                    by_team=[line for line in lines["team",] if line.figures.currency == currency],
                    movers=_movers(deployments, self.week.unit),
                    forecast=forecasts.get(currency or ""),
                    reconciliation=matched.get(currency),
                    alike=alike(currency),
                )
            )
        return found

    def _alike(self) -> Callable[[str | None], Alike | None]:
        """Of a currency, the billed days of a week that is not billed whole, against the same weekdays of the week before."""
        still_open = self.provisional_days()
        firm = {self._day_of(row) for row in self.days}.difference(still_open)
        if self.week.unit != "week" or not firm or not (still_open or self.week.period.end > self.now):
            return lambda _: None
        monday = self.week.period.start.astimezone(zone_from(self.week.time_zone)).date()
        # A day without anything counts up to the last one that is billed: nothing was used on it.
        days = [day for day in (monday + DAY * number for number in range(7)) if day <= max(firm) and day not in still_open]
        earlier = self._ask(self.before, (), granularity="day")[0].rows
        # Where the week before is metered only, its day is like no billed one.
        open_before = {self._day_of(row) for row in earlier if row.figures.status == "provisional"}
        days = [day for day in days if day - 7 * DAY not in open_before]
        days_before = [day - 7 * DAY for day in days]

        def of(currency: str | None) -> Alike | None:
            sums: list[Decimal | None] = []
            for rows, asked in ((self.days, days), (earlier, days_before)):
                costs = [row.figures.cost for row in rows if row.figures.currency == currency and self._day_of(row) in asked]
                sums.append(None if None in costs else money.add(cost for cost in costs if cost is not None))
            return Alike(days, days_before, Change(sums[0], sums[1])) if days else None

        return of

    def _day_of(self, row: CostRow) -> date:
        """The day of a row in the report's zone."""
        return row.period.start.astimezone(zone_from(self.week.time_zone)).date()

    def _idle(self, deployments: Sequence[Line]) -> Mapping[str | None, Decimal]:
        """What instances cost that served nothing, this period's less the last one's, by currency: of the models of which both are known."""
        managed = [line for line in deployments if line.names["mode"] == Mode.MANAGED_COMPUTE and line.names["deployment"] and line.names["model"]]
        if not managed:
            return {}
        shares = [
            {
                (row.model.casefold(), row.currency): (row.managed.idle_cost, row.managed.capacity_cost)
                for row in comparison(self.session, period, self.filters, now=self.now, reading=self.reading)
            }
            for period in (self.before, self.week.period)
        ]
        amounts: dict[tuple[str, str | None], list[Decimal]] = {}
        for line in managed:
            of = amounts.setdefault(((line.names["model"] or "").casefold(), line.figures.currency), [ZERO, ZERO])
            for index, figures in enumerate((line.before, line.figures)):
                of[index] = money.plus(of[index], ZERO if figures is None else figures.cost or ZERO)
        found: dict[str | None, Decimal] = {}
        for (model, currency), costed in amounts.items():
            idle = [_idle_part(amount, known.get((model, currency))) for amount, known in zip(costed, shares, strict=True)]
            if idle[0] is not None and idle[1] is not None:
                found[currency] = money.plus(found.get(currency, ZERO), money.minus(idle[1], idle[0]))
        return found

    def _reconciled(self) -> Mapping[str | None, ReconciliationTotal]:
        """By whole UTC days, as billing knows no others: those that lie in the week."""
        start, end = self.week.period.start, self.week.period.end
        first = day_start(utc_day(start)) if day_start(utc_day(start)) == start else day_start(utc_day(start) + DAY)
        last = day_start(utc_day(end))
        return {total.currency: total for total in reconciliation(self.session, Period(first, last), self.filters, now=self.now, reading=self.reading).totals}

    def provisional_days(self) -> list[date]:
        return sorted({self._day_of(row) for row in self.days if row.figures.status == "provisional"})


def _lines(now: Sequence[CostRow], before: Sequence[CostRow]) -> list[Line]:
    """The rows of one grouping beside those of the period before, the dearest first."""
    this, last = ({(*row.groups.values(), row.figures.currency): row for row in rows} for rows in (now, before))
    found: list[Line] = []
    for key in this.keys() | last.keys():
        row, earlier = this.get(key), last.get(key)
        if row is not None:
            figures, names = row.figures, row.groups
        else:
            assert earlier is not None
            figures, names = _nothing(earlier.figures), earlier.groups
        found.append(Line(names, figures, None if earlier is None else earlier.figures))
    return sorted(found, key=lambda line: (-(line.figures.cost or ZERO), [name or "\uffff" for name in line.names.values()], line.figures.currency or ""))


def _nothing(like: Figures) -> Figures:
    """The figures of a week without anything, of the same currency."""
    return replace(
        like,
        cost=ZERO,
        metered_cost=ZERO,
        billed_cost=None,
        input_tokens=0,
        output_tokens=0,
        cached_input_tokens=0,
        reasoning_output_tokens=0,
        requests=0,
        core_hours=None,
        unpriced_tokens=0,
        unknown_token_requests=0,
        estimated_token_requests=0,
        coverage=None,
        estimate=False,
        reasons={"billed_cost": "nothing was billed or used"},
    )


def _idle_part(cost: Decimal, known: tuple[Decimal | None, Decimal | None] | None) -> Decimal | None:
    """The idle part of what instances cost, as (idle, capacity) of their model say; None where they do not."""
    if not cost:
        return ZERO
    idle, capacity = known or (None, None)
    return None if idle is None or not capacity else _cut(money.QUOTIENT.divide(money.times(cost, idle), capacity))


def _waterfall(cost: Change, this: Sequence[CostRow], last: Sequence[CostRow], *, idle: Decimal | None) -> Waterfall | None:
    """The steps from last week's cost to this week's; None where either is not known."""
    if cost.now is None or cost.before is None:
        return None
    tokens = [_by_tokens(rows) for rows in (last, this)]
    hours = [
        money.add(row.figures.cost or ZERO for row in rows if row.groups["mode"] == "managed_compute" and row.groups["deployment"]) for rows in (last, this)
    ]
    quantity = [sum(count for count, _ in of.values()) for of in tokens]
    spent = [money.add(amount for _, amount in of.values()) for of in tokens]
    volume = mix = ZERO
    if quantity[0]:
        volume = _cut(money.QUOTIENT.divide(money.times(spent[0], quantity[1] - quantity[0]), Decimal(quantity[0])))
    at_old_prices = ZERO
    for key, (count, amount) in tokens[1].items():
        earlier, paid = tokens[0].get(key, (0, ZERO))
        # Where there was nothing last week there is no old price: all of it is a change of mix.
        old = amount if not earlier else _cut(money.QUOTIENT.divide(money.times(paid, count), Decimal(earlier)))
        at_old_prices = money.plus(at_old_prices, old)
    mix = money.minus(at_old_prices, money.plus(spent[0], volume))
    price = money.minus(spent[1], at_old_prices)
    capacity = money.minus(money.minus(hours[1], hours[0]), idle or ZERO)
    explained = money.add((volume, mix, price, capacity, idle or ZERO))
    return Waterfall(cost.before, volume, mix, price, capacity, idle, money.minus(money.minus(cost.now, cost.before), explained), cost.now)


def _by_tokens(rows: Sequence[CostRow]) -> dict[tuple[str | None, ...], tuple[int, Decimal]]:
    """(tokens, cost) of everything that is paid by the token and has tokens, by workspace, deployment and meter."""
    found: dict[tuple[str | None, ...], tuple[int, Decimal]] = {}
    for row in rows:
        tokens = row.figures.input_tokens + row.figures.output_tokens
        if row.groups["mode"] == "managed_compute" or not row.groups["deployment"] or not tokens or row.figures.cost is None:
            continue
        key = (row.groups["workspace"], row.groups["deployment"], row.groups["meter"])
        count, amount = found.get(key, (0, ZERO))
        found[key] = (count + tokens, money.plus(amount, row.figures.cost))
    return found


def _movers(lines: Sequence[Line], unit: Unit) -> list[tuple[Line, str]]:
    """The deployments whose cost changed most, with what changed."""
    moved = [line for line in lines if line.change.difference]
    moved.sort(key=lambda line: (-abs(line.change.difference or ZERO), [name or "" for name in line.names.values()]))
    return [(line, _reason(line, unit)) for line in moved[:_MOST_MOVERS]]


def _reason(line: Line, unit: Unit) -> str:
    """What moved it, from quantities and what a unit of them cost."""
    before = line.before
    if before is None or not before.cost:
        return f"new this {unit}"
    if not line.figures.cost:
        return f"nothing this {unit}"
    if line.names.get("deployment") is None:
        return "charges that no deployment is known for"
    if line.names.get("mode") == "managed_compute":
        return f"core-hours {_moved(line.figures.core_hours or ZERO, before.core_hours or ZERO)}"
    tokens = [Decimal(one.input_tokens + one.output_tokens) for one in (line.figures, before)]
    said = f"tokens {_moved(*tokens)}"
    if all(tokens):
        paid = [money.QUOTIENT.divide(one.cost or ZERO, count) for one, count in zip((line.figures, before), tokens, strict=True)]
        if abs(paid[0] - paid[1]) > abs(paid[1]) * _SAME_PRICE:
            said += f", cost per token {_moved(*paid)}"
    return said


def _moved(now: Decimal, before: Decimal) -> str:
    if not before:
        return "where there were none"
    percent = money.QUOTIENT.divide((now - before) * 100, before)
    if abs(percent) < _SAME_PERCENT:
        return "as before"
    return f"{percent.quantize(Decimal(1) if abs(percent) >= 1 else Decimal('0.1')):+} %"


def _cut(amount: Decimal) -> Decimal:
    return money.truncated(amount, 12)
