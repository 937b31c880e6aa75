"""The month close pack: what finance books of a month, by cost centre, to the cent, and what explains it.

Every amount is one of ``costs`` (basis best) or of ``reconciliation``; here it is only put into journal lines. A closed
month is told as it was known at its close, with an entry for what has changed since; an open one as it is known now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from sqlmodel import Session

from models import money
from models.closing import MonthClose, closes_known
from models.errors import InvalidInput
from models.ledger.closing import Adjustment, adjustments
from models.ledger.comparison import comparison
from models.ledger.costs import costs
from models.ledger.reconciliation import ReconciliationTotal, reconciliation
from models.ledger.values import CostQuery, Figures, Filters, share_of
from models.money import ZERO
from models.periods import DAY, Period, month_period, month_start, next_month, settles_at, utc_day
from models.resources import Mode

EntryKind = Literal["invoice", "accrual", "reversal", "adjustment"]
# Instances are allocated where tokens used them and idle where none did; undetermined where what they could serve is not known.
SERVERLESS, ALLOCATED, IDLE, UNDETERMINED, UNALLOCATED = "serverless", "managed_allocated", "managed_idle", "managed_undetermined", "unallocated"
UNKNOWN_MODE = "unknown_mode"
PAYABLE, ACCRUED = "payable", "accrued"
Standing = Literal["final", "provisional"]
_GROUPS = ("cost_center", "deployment", "model", "mode")
_Key = tuple[str | None, str]  # cost centre, account


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One line in whole minor units of its currency: a debit or a credit, never both. ``exact`` is its signed amount before rounding."""

    cost_center: str | None
    account: str
    debit: Decimal
    credit: Decimal
    exact: Decimal


@dataclass(frozen=True, slots=True)
class Entry:
    """Lines whose debits equal their credits. ``on`` is None where the entry belongs to the period in which it is booked."""

    kind: EntryKind
    on: date | None
    lines: list[JournalLine]

    @property
    def debits(self) -> Decimal:
        return money.add(line.debit for line in self.lines)

    @property
    def credits(self) -> Decimal:
        return money.add(line.credit for line in self.lines)


@dataclass(frozen=True, slots=True)
class CurrencyClose:
    """One currency of the month. ``booked`` is the month's cost in minor units: invoice and accrual together; ``rounding`` = booked - cost."""

    currency: str
    total: Figures
    booked: Decimal
    entries: list[Entry]
    reconciliation: ReconciliationTotal | None

    @property
    def cost(self) -> Decimal:
        return self.total.cost or ZERO

    @property
    def rounding(self) -> Decimal:
        return money.minus(self.booked, self.cost)


@dataclass(frozen=True, slots=True)
class ClosePack:
    """The pack; ``standing`` is final for a closed month. ``known_at`` is what the figures are as of (None: now)."""

    month: date
    period: Period
    standing: Standing
    settles_at: datetime
    close: MonthClose | None
    currencies: list[CurrencyClose]
    adjustments: list[Adjustment]
    unpriced_tokens: int
    unknown_token_requests: int
    requests: int

    @property
    def unknown_token_share(self) -> Decimal | None:
        """The share of the month's requests whose cost is in no figure, as nobody told their tokens."""
        return share_of(self.unknown_token_requests, self.requests)

    @property
    def known_at(self) -> datetime | None:
        return None if self.close is None else self.close.closed_at


def close_pack(session: Session, month: date, filters: Filters = Filters(), *, now: datetime) -> ClosePack:  # noqa: B008 - a frozen value
    """The month as finance books it."""
    if month != month_start(month):
        raise InvalidInput(f"{month} is not the first day of a month")
    period = month_period(month)
    if period.start > now:
        raise InvalidInput(f"{month:%Y-%m} has not begun yet")
    close = next((one for one in closes_known(session, now) if one.month == month), None)
    known = now if close is None else close.closed_at
    totals = costs(session, CostQuery(period, "none", filters=filters), now=known).totals
    matched = {total.currency: total for total in reconciliation(session, period, filters, now=known).totals}
    lines = _Lines.of(session, period, filters, now=known)
    since = None if close is None else _Lines.of(session, period, filters, now=now)
    found: list[CurrencyClose] = []
    for currency in sorted({total.currency for total in totals if total.currency} | ({code for code in since.costs if code} if since else set())):
        figures = next((total for total in totals if total.currency == currency), None) or _nothing(currency)
        entries = _entries(lines, currency, month, period)
        if since is not None:
            entries += _adjustment(lines, since, currency)
        booked = money.shown(figures.cost or ZERO, currency)
        found.append(CurrencyClose(currency, figures, booked, entries, matched.get(currency)))
    return ClosePack(
        month=month,
        period=period,
        standing="provisional" if close is None else "final",
        settles_at=settles_at(month),
        close=close,
        currencies=found,
        adjustments=[] if close is None else adjustments(session, month, filters=filters, now=now),
        unpriced_tokens=sum(total.unpriced_tokens for total in totals),
        unknown_token_requests=sum(total.unknown_token_requests for total in totals),
        requests=sum(total.requests for total in totals),
    )


def _nothing(currency: str) -> Figures:
    """The figures of a currency that the month did not have at its close."""
    return Figures(currency, ZERO, ZERO, None, 0, 0, 0, 0, 0, None, "settled", 0, 0, 0, None, False, {"billed_cost": "nothing was billed"})


@dataclass(frozen=True, slots=True)
class _Lines:
    """Exact amounts by currency, cost centre and account: all of it, and what of it is billed."""

    costs: Mapping[str | None, Mapping[_Key, Decimal]]
    billed: Mapping[str | None, Mapping[_Key, Decimal]]

    @classmethod
    def of(cls, session: Session, period: Period, filters: Filters, *, now: datetime) -> _Lines:
        """By group of ``costs``; instances are cut into used and idle by their model's utilisation."""
        used = {
            (row.model.casefold(), row.currency): (row.managed.capacity_cost, row.managed.allocated_cost)
            for row in (comparison(session, period, filters, now=now) if now > period.start else ())
        }
        whole: dict[str | None, dict[_Key, Decimal]] = {}
        billed: dict[str | None, dict[_Key, Decimal]] = {}
        for row in costs(session, CostQuery(period, "none", _GROUPS, filters=filters), now=now).rows:
            groups, currency = row.groups, row.figures.currency
            center = groups["cost_center"]
            for into, amount in ((whole, row.figures.cost or ZERO), (billed, row.figures.billed_cost or ZERO)):
                of = into.setdefault(currency, {})
                for account, part in _accounts(groups, amount, used.get(((groups["model"] or "").casefold(), currency))):
                    of[center, account] = money.plus(of.get((center, account), ZERO), part)
        return cls(whole, billed)


def _accounts(groups: Mapping[str, str | None], amount: Decimal, capacity: tuple[Decimal | None, Decimal | None] | None) -> list[tuple[str, Decimal]]:
    """The accounts that an amount belongs to; the parts add up to it exactly."""
    if groups["deployment"] is None or groups["mode"] is None:
        return [(UNALLOCATED, amount)]
    if groups["mode"] != Mode.MANAGED_COMPUTE.value:
        return [(SERVERLESS if groups["mode"] == Mode.SERVERLESS.value else UNKNOWN_MODE, amount)]
    whole, used = capacity or (None, None)
    if not whole or used is None:
        return [(UNDETERMINED, amount)]
    allocated = money.truncated(money.QUOTIENT.divide(money.times(amount, used), whole), 12)
    return [(ALLOCATED, allocated), (IDLE, money.minus(amount, allocated))]


def _entries(lines: _Lines, currency: str, month: date, period: Period) -> list[Entry]:
    """The invoice, the accrual of what is not billed yet, and its reversal on the first day of the next month."""
    whole, billed = lines.costs.get(currency, {}), lines.billed.get(currency, {})
    open_ = {key: money.minus(amount, billed.get(key, ZERO)) for key, amount in whole.items()}
    booked = money.shown(money.add(whole.values()), currency)
    invoiced = money.shown(money.add(billed.values()), currency)
    last = utc_day(period.end - DAY)
    invoice = _entry("invoice", last, billed, invoiced, currency, against=PAYABLE)
    accrual = _entry("accrual", last, open_, money.minus(booked, invoiced), currency, against=ACCRUED)
    mirrored = [JournalLine(one.cost_center, one.account, one.credit, one.debit, one.exact.copy_negate()) for one in accrual.lines]
    made = [invoice, accrual, Entry("reversal", next_month(month), mirrored)]
    return [entry for entry in made if entry.lines]


def _adjustment(then: _Lines, today: _Lines, currency: str) -> list[Entry]:
    """What has changed since the close, as a difference to what was booked at it."""
    was, is_now = then.costs.get(currency, {}), today.costs.get(currency, {})
    moved = {key: money.minus(is_now.get(key, ZERO), was.get(key, ZERO)) for key in was.keys() | is_now.keys()}
    target = money.minus(money.shown(money.add(is_now.values()), currency), money.shown(money.add(was.values()), currency))
    entry = _entry("adjustment", None, moved, target, currency, against=ACCRUED)
    return [entry] if entry.lines else []


def _entry(kind: EntryKind, on: date | None, exact: Mapping[_Key, Decimal], target: Decimal, currency: str, *, against: str) -> Entry:
    """Lines in minor units that add up to the target, and the line against them."""
    keys = sorted((key for key, amount in exact.items() if amount), key=lambda key: (key[0] is None, key[0] or "", key[1]))
    if not keys:
        return Entry(kind, on, [])
    amounts = rounded([exact[key] for key in keys], target, digits=money.minor_digits(currency))
    lines = [_line(*key, amount, exact[key]) for key, amount in zip(keys, amounts, strict=True)]
    balance = _line(None, against, target.copy_negate(), money.add(exact[key] for key in keys).copy_negate())
    return Entry(kind, on, [*(line for line in lines if line.debit or line.credit), *([balance] if target else [])])


def _line(center: str | None, account: str, amount: Decimal, exact: Decimal) -> JournalLine:
    return JournalLine(center, account, amount if amount > 0 else ZERO, amount.copy_negate() if amount < 0 else ZERO, exact)


def rounded(exact: Iterable[Decimal], target: Decimal, *, digits: int) -> list[Decimal]:
    """The amounts in minor units, adding up to ``target`` (itself in minor units): largest remainder, ties to the earlier one.

    ``target`` lies within a unit of their sum; what is left over goes round from the largest remainder on.
    """
    scaled = [amount.scaleb(digits, money.EXACT) for amount in exact]
    floors = [int(amount.to_integral_value(rounding="ROUND_FLOOR")) for amount in scaled]
    left = int(target.scaleb(digits, money.EXACT)) - sum(floors)
    order = sorted(range(len(scaled)), key=lambda index: (-(scaled[index] - floors[index]), index))
    everyone, some = divmod(left, len(order)) if order else (0, 0)
    for place, index in enumerate(order):
        floors[index] += everyone + (1 if place < some else 0)
    return [Decimal(units).scaleb(-digits, money.EXACT) for units in floors]
