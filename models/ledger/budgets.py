"""Budgets against the ledger: the calendar period, what is spent in it, and where it is likely to end.

Spend is ``ledger.costs`` of the budget's scope and basis, nothing else, so that a budget can never disagree with a page.
A budget on the billed basis counts whole UTC days: a charge belongs to the period that holds the start of its day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Literal

from sqlmodel import Session, col, select

from models import money
from models.alerts import Budget
from models.errors import InvalidInput
from models.ledger.billed import Reading
from models.ledger.costs import costs_together
from models.ledger.values import Basis, CostQuery, Figures, Filters, share_of
from models.ledger.world import World
from models.money import ZERO
from models.periods import DAY, Period, day_start, utc_day, zone_from
from models.prices import UNIT_DIGITS, Price, PriceMeter
from models.resources import Mode

BudgetPeriod = Literal["day", "week", "month", "quarter", "year"]
PERIODS: tuple[BudgetPeriod, ...] = ("day", "week", "month", "quarter", "year")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SCOPE_NAMES = ("workspace", "deployment", "model", "application", "team", "mode")  # and tag:<key>
# A forecast looks back this far, and says nothing before it has seen so many complete days.
LOOKS_BACK = 56 * DAY
_FEWEST_DAYS = 5
_FEWEST_TRIALS = 5
_MEAN_OF_WEEKS = 4
_Z90 = Decimal("1.2816")  # nine of ten below, for a normal distribution


def scope_filters(scope: Mapping[str, Any], *, visible: frozenset[str] | None = None) -> Filters:
    """A scope as the read API's filters: each name has one value or a list of them; ``{}`` is everything."""
    values: dict[str, tuple[str, ...]] = {}
    tags: list[tuple[str, str]] = []
    for name, said in scope.items():
        every = (said,) if isinstance(said, str) else tuple(said)
        if name.startswith("tag:") and len(name) > 4:
            tags += [(name[4:], value) for value in every]
        elif name in SCOPE_NAMES:
            values[name] = every
        else:
            raise InvalidInput(f"scope does not know {name[:60]!r}; it takes {', '.join(SCOPE_NAMES)} and tag:<key>")
    try:
        modes = tuple(Mode(mode) for mode in values.get("mode", ()))
    except ValueError as fault:
        raise InvalidInput(f"scope.mode must be one of {', '.join(mode.value for mode in Mode)}") from fault
    return Filters(
        workspaces=values.get("workspace", ()),
        deployments=values.get("deployment", ()),
        models=values.get("model", ()),
        applications=values.get("application", ()),
        teams=values.get("team", ()),
        modes=modes,
        tags=tuple(tags),
        visible=visible,
    )


# -- the calendar ---------------------------------------------------------------------------------


def calendar_period(kind: str, at: datetime, *, zone: tzinfo = UTC, week_starts_on: str = "monday") -> Period:
    """The day, week, month, quarter or year of the zone's calendar that holds the instant, as UTC instants."""
    day = at.astimezone(zone).date()
    match kind:
        case "day":
            first, following = day, day + DAY
        case "week":
            first = day - timedelta(days=(day.weekday() - WEEKDAYS.index(week_starts_on)) % 7)
            following = first + timedelta(days=7)
        case "month":
            first, following = day.replace(day=1), _months_on(day.replace(day=1), 1)
        case "quarter":
            first = day.replace(month=day.month - (day.month - 1) % 3, day=1)
            following = _months_on(first, 3)
        case "year":
            first, following = date(day.year, 1, 1), date(day.year + 1, 1, 1)
        case _:
            raise InvalidInput(f"period must be one of {', '.join(PERIODS)}, not {kind[:40]!r}")
    return Period(_midnight(first, zone), _midnight(following, zone))


def _months_on(first: date, months: int) -> date:
    index = first.year * 12 + first.month - 1 + months
    return date(index // 12, index % 12 + 1, 1)


def _midnight(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time(), zone).astimezone(UTC)


def billed_days(period: Period) -> Period:
    """The UTC days that start within the period: a bill knows no others."""
    return Period(_day_from(period.start), _day_from(period.end))


def _day_from(at: datetime) -> datetime:
    start = day_start(utc_day(at))
    return start if start == at else start + DAY


def period_of(budget: Budget, at: datetime) -> Period:
    """The budget's calendar period that holds the instant."""
    return calendar_period(budget.period, at, zone=zone_from(budget.time_zone), week_starts_on=budget.week_starts_on)


# -- spend ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spend:
    """What is spent in a period in one currency, and what that amount does not hold."""

    period: Period
    currency: str
    amount: Decimal
    unpriced_tokens: int
    unknown_token_requests: int
    requests: int
    tokens: int
    status: str
    reasons: Mapping[str, str]
    estimated_token_requests: int = 0
    all_requests: int = 0  # also those that no currency is known of

    @property
    def unknown_token_share(self) -> Decimal | None:
        """The share of the requests whose tokens nobody told; None without requests."""
        return share_of(self.unknown_token_requests, self.all_requests)

    @property
    def estimated_token_share(self) -> Decimal | None:
        """The share of the requests whose tokens are an estimate; None without requests."""
        return share_of(self.estimated_token_requests, self.all_requests)


def spend(
    session: Session,
    *,
    filters: Filters,
    period: Period,
    basis: Basis,
    currency: str,
    now: datetime,
    reading: Reading | None = None,
    as_of: datetime | None = None,
) -> Spend:
    """The spend of a period up to now in one currency, from the ledger; ``reading`` is what somebody has read at ``now`` already.

    ``as_of`` leaves out what arrived later, for a look back.
    """
    asked = billed_days(period) if basis == "billed" else period
    (table,) = costs_together(session, [CostQuery(asked, "none", (), basis, filters, as_of=as_of)], now=now, reading=reading)
    # Tokens that nothing prices have no currency: they are missing from every budget that covers them.
    missing = sum(figures.unpriced_tokens for figures in table.totals if figures.currency in (currency, None))
    covered = [figures for figures in table.totals if figures.currency in (currency, None)]
    unknown = sum(figures.unknown_token_requests for figures in covered)
    estimated, requests = sum(figures.estimated_token_requests for figures in covered), sum(figures.requests for figures in covered)
    own = next((figures for figures in table.totals if figures.currency == currency), None)
    if own is None:
        return Spend(period, currency, ZERO, missing, unknown, 0, 0, "provisional", {}, estimated, requests)
    tokens = own.input_tokens + own.output_tokens
    return Spend(
        period, currency, own.cost if own.cost is not None else ZERO, missing, unknown, own.requests, tokens, own.status, own.reasons, estimated, requests
    )


def spend_of(session: Session, budget: Budget, *, now: datetime) -> Spend:
    """What the budget has spent in the period that is running."""
    basis: Basis = budget.basis  # type: ignore[assignment]  # checked when it was written
    return spend(session, filters=scope_filters(budget.scope), period=period_of(budget, now), basis=basis, currency=budget.currency, now=now)


@dataclass(frozen=True, slots=True)
class HardStanding:
    """What a hard budget still allows: best spend, with what has no price or no tokens at a ceiling; None where there is no ceiling to go by."""

    budget_id: str
    name: str
    scope: Mapping[str, Any]
    amount: Decimal
    currency: str
    spent: Decimal
    ceiling: Decimal
    remaining: Decimal
    period: Period


def hard_standings(session: Session, budgets: Sequence[Budget], *, now: datetime) -> list[HardStanding]:
    """Every hard budget as admission judges it: on best, unpriced and unknown tokens at the dearest token price known in its currency."""
    hard = [budget for budget in budgets if budget.is_hard and budget.deleted_at is None]
    if not hard:
        return []
    dearest, reading = _dearest(session, now), Reading(session, now)
    found: list[HardStanding] = []
    for budget in hard:
        period = period_of(budget, now)
        said = spend(session, filters=scope_filters(budget.scope), period=period, basis="best", currency=budget.currency, now=now, reading=reading)
        usual = -(-said.tokens // said.requests) if said.requests else 0
        ceiling = money.times(dearest.get(budget.currency, ZERO), said.unpriced_tokens + said.unknown_token_requests * usual)
        remaining = money.minus(budget.amount, money.plus(said.amount, ceiling))
        found.append(HardStanding(budget.id, budget.name, budget.scope, budget.amount, budget.currency, said.amount, ceiling, remaining, said.period))
    return found


def _dearest(session: Session, now: datetime) -> dict[str, Decimal]:
    """The dearest price of a token by currency, of the prices that are known and not over."""
    found: dict[str, Decimal] = {}
    for row in session.exec(select(Price).where(col(Price.known_from) <= now, col(Price.known_to).is_(None))):
        if row.meter in (PriceMeter.INPUT_TOKENS, PriceMeter.OUTPUT_TOKENS) and (row.valid_to is None or row.valid_to > now):
            per_token = row.unit_price.scaleb(-UNIT_DIGITS[row.unit], money.EXACT)
            found[row.currency] = max(found.get(row.currency, ZERO), per_token)
    return found


# -- where it will end ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where a period's spend will likely end: of ten such forecasts one ends below ``low`` and one above ``high``.

    ``error_percent`` is the median miss of the same forecast made at earlier days (``trials`` of them). All None with a
    reason while there is too little to go by.
    """

    period: Period
    currency: str
    spent: Decimal
    expected: Decimal | None
    low: Decimal | None
    high: Decimal | None
    complete_days: int
    trials: int
    error_percent: Decimal | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Days:
    """Spend per complete local day, in order, and of the running day up to now; days that no bill has reached are scaled."""

    complete: list[tuple[date, Decimal]]
    today: tuple[date, Decimal]


def outlook(
    session: Session,
    *,
    filters: Filters,
    period: Period,
    basis: Basis,
    currency: str,
    now: datetime,
    time_zone: str = "UTC",
    spent: Decimal | None = None,
    reading: Reading | None = None,
    as_of: datetime | None = None,
) -> Outlook:
    """The forecast of a period's end: past days as they are, those to come by the mean of their weekday; ``reading`` and ``as_of`` as in ``spend``."""
    so_far = spend(session, filters=filters, period=period, basis=basis, currency=currency, now=now, as_of=as_of).amount if spent is None else spent
    known = daily(session, filters=filters, basis=basis, currency=currency, now=now, time_zone=time_zone, reading=reading, as_of=as_of)
    return look_ahead(known, period=period, basis=basis, currency=currency, so_far=so_far, zone=zone_from(time_zone))


def look_ahead(known: Days, *, period: Period, basis: Basis, currency: str, so_far: Decimal, zone: tzinfo = UTC) -> Outlook:
    """The forecast from days that are known: pure, so that every forecast anywhere is this one."""
    first, last = period.start.astimezone(zone).date(), period.end.astimezone(zone).date()
    history = known.complete
    if len(history) < _FEWEST_DAYS:
        reason = f"a forecast needs five complete days; there are {len(history)}"
        return Outlook(period, currency, so_far, None, None, None, len(history), 0, None, reason)
    today, running = known.today
    means = _by_weekday(history)
    inside = money.add(amount for day, amount in history if first <= day < last)
    # Days between the last complete one and today are those that no bill has reached yet, on the billed basis.
    start = max(first, history[-1][0] + DAY)
    ahead = [start + timedelta(days=index) for index in range((last - start).days)]
    to_come = ZERO
    for day in ahead:
        usual = means[day.weekday()]
        to_come = money.plus(to_come, max(usual, running) if day == today else usual)
    expected = money.plus(inside, to_come)
    low_ratio, high_ratio, error, trials = _trials(history, len(ahead))
    low = money.plus(inside, _scaled(to_come, low_ratio))
    high = money.plus(inside, _scaled(to_come, high_ratio))
    least = so_far if basis != "billed" else min(so_far, expected)
    places = (money.shown(max(value, least), currency) for value in (expected, low, high))
    shown_expected, shown_low, shown_high = places
    return Outlook(period, currency, so_far, shown_expected, min(shown_low, shown_expected), max(shown_high, shown_expected), len(history), trials, error, None)


def daily(
    session: Session,
    *,
    filters: Filters,
    basis: Basis,
    currency: str,
    now: datetime,
    time_zone: str = "UTC",
    reading: Reading | None = None,
    as_of: datetime | None = None,
) -> Days:
    """Spend of each complete day of the last eight weeks since there was any, and of today.

    Metered days that the bill has not reached are scaled by how bill and metering compare on those that it has.
    """
    zone = zone_from(time_zone)
    today = now.astimezone(zone).date()
    since = _midnight((now - LOOKS_BACK).astimezone(zone).date(), zone)
    query = CostQuery(Period(since, now), "day", (), basis, filters, currency, as_of, time_zone)
    (table,) = costs_together(session, [query], now=now, reading=reading)
    rows = {row.period.start.astimezone(zone).date(): row.figures for row in table.rows if row.figures.cost is not None}
    until = today
    if basis == "billed" and rows:
        reached = (World(session, now) if reading is None else reading.world).billed_until()
        until = min(today, reached.astimezone(zone).date() if reached is not None else min(rows))
    return days_of(rows, today=today, until=until, basis=basis)


def days_of(rows: Mapping[date, Figures], *, today: date, until: date, basis: Basis) -> Days:
    """The days before ``until`` from the first that has any, and today; days that no bill has reached are scaled."""
    if not rows:
        return Days([], (today, ZERO))
    pairs = [
        (figures.billed_cost, figures.metered_cost)
        for figures in rows.values()
        if figures.status != "provisional" and figures.billed_cost is not None and figures.metered_cost is not None
    ]
    factor = _factor(pairs) if basis == "best" else Decimal(1)
    complete: list[tuple[date, Decimal]] = []
    day = min(rows)
    while day < until:
        figures = rows.get(day)
        amount = ZERO if figures is None or figures.cost is None else figures.cost
        complete.append((day, _scaled(amount, factor) if figures is not None and figures.status == "provisional" else amount))
        day += DAY
    running = rows.get(today)
    return Days(complete, (today, running.cost if running is not None and running.cost is not None else ZERO))


def _factor(pairs: Sequence[tuple[Decimal, Decimal]]) -> Decimal:
    billed, metered = money.add(pair[0] for pair in pairs), money.add(pair[1] for pair in pairs)
    found = money.ratio(billed, metered) if len(pairs) >= _FEWEST_DAYS and metered > 0 else None
    # A bill of half or twice of what was metered has another cause than its delay.
    return found if found is not None and Decimal("0.5") <= found <= 2 else Decimal(1)


def _by_weekday(history: Sequence[tuple[date, Decimal]]) -> list[Decimal]:
    """The mean of the last four of each weekday; of a weekday not seen yet, the mean of all."""
    recent = history[-7 * _MEAN_OF_WEEKS :]
    overall = _mean([amount for _, amount in recent])
    means: list[Decimal] = []
    for weekday in range(7):
        own = [amount for day, amount in recent if day.weekday() == weekday]
        means.append(_mean(own) if own and len(recent) >= 14 else overall)
    return means


def _trials(history: Sequence[tuple[date, Decimal]], horizon: int) -> tuple[Decimal, Decimal, Decimal | None, int]:
    """The same forecast made at earlier days: (low ratio, high ratio, median miss in percent, how many) of actual to expected."""
    horizon = max(1, min(horizon, len(history) - _FEWEST_DAYS))
    ratios: list[Decimal] = []
    for origin in range(_FEWEST_DAYS, len(history) - horizon + 1):
        means = _by_weekday(history[:origin])
        expected = money.add(means[day.weekday()] for day, _ in history[origin : origin + horizon])
        found = money.ratio(money.add(amount for _, amount in history[origin : origin + horizon]), expected)
        if found is not None:
            ratios.append(found)
    ratios.sort()
    if len(ratios) < _FEWEST_TRIALS:
        spread = _spread([amount for _, amount in history], horizon)
        return max(ZERO, Decimal(1) - spread), Decimal(1) + spread, None, len(ratios)
    misses = sorted(abs(ratio - 1) * 100 for ratio in ratios)
    return _quantile(ratios, 10), _quantile(ratios, 90), misses[len(misses) // 2].quantize(Decimal("0.1")), len(ratios)


def _spread(amounts: Sequence[Decimal], horizon: int) -> Decimal:
    """Nine of ten of a sum of independent days lie within this share of its mean."""
    mean = _mean(amounts)
    if mean == 0:
        return ZERO
    variance = _mean([money.times(money.minus(amount, mean), money.minus(amount, mean)) for amount in amounts])
    ratio = money.ratio(variance.sqrt(money.QUOTIENT), mean) or ZERO
    return _scaled(ratio, _Z90) / Decimal(horizon).sqrt(money.QUOTIENT)


def _quantile(ordered: Sequence[Decimal], percent: int) -> Decimal:
    return ordered[min(len(ordered) - 1, max(0, round((len(ordered) - 1) * percent / 100)))]


def _mean(values: Sequence[Decimal]) -> Decimal:
    return money.ratio(money.add(values), Decimal(len(values))) or ZERO


def _scaled(value: Decimal, factor: Decimal) -> Decimal:
    """An estimate times a factor, to 28 digits: never an amount that is booked."""
    return money.QUOTIENT.multiply(value, factor)


# -- what is unusual ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unusual:
    """A day's spend against the band that its weekday usually lies in; ``percent`` outside of it, 0 within."""

    day: date
    currency: str
    spent: Decimal
    low: Decimal
    high: Decimal
    percent: Decimal


def unusual(days: Days, *, currency: str) -> Unusual | None:
    """How far the last complete day (or today already) lies outside its band; None while there are too few days."""
    found: list[Unusual] = []
    today, running = days.today
    candidates = [(today, running, False)]
    if days.complete:
        candidates.append((*days.complete[-1], True))
    for day, spent, is_complete in candidates:
        before = [one for one in days.complete if one[0] < day]
        if len(before) < 7:
            continue
        own = sorted(amount for at, amount in before if at.weekday() == day.weekday())
        among = own if len(own) >= _FEWEST_TRIALS else sorted(amount for _, amount in before)
        low, high = _quantile(among, 10), _quantile(among, 90)
        over = _outside(money.minus(spent, high), high)
        # A day that is still running is not too cheap yet.
        under = _outside(money.minus(low, spent), low) if is_complete else ZERO
        found.append(Unusual(day, currency, spent, low, high, max(over, under, ZERO)))
    return max(found, key=lambda one: one.percent, default=None)


def _outside(by: Decimal, edge: Decimal) -> Decimal:
    if by <= 0:
        return ZERO
    share = money.ratio(by, edge)
    # From nothing to something is as unusual as it can be said in percent.
    return Decimal(1000) if share is None else min(Decimal(1000), _scaled(share, Decimal(100)).quantize(Decimal("0.1")))
