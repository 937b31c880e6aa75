"""Why a day's bill and a day's metering differ: the gap in named causes that add up to it exactly. Pure.

What billing and metering say of one workspace, deployment, meter, UTC day and currency is a ``Facing``; ``causes``
splits ``billed - expected`` in the fixed order of DESIGN.md. ``net_timing`` then cancels what one day lacks and the
day beside it has too much of. Whatever no cause names is ``unexplained``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Literal

import msgspec

from models import money
from models.charges import MeterKind
from models.money import ZERO


class Cause(StrEnum):
    """The names of a gap, in the order in which they are taken."""

    UNMAPPED_METER = "unmapped_meter"
    NOT_METERED = "not_metered"
    CREDIT_OR_REFUND = "credit_or_refund"
    CURRENCY = "currency"
    UNIT_MISMATCH = "unit_mismatch"
    PRICE_DIFFERENCE = "price_difference"
    UNKNOWN_TOKENS = "unknown_tokens"
    NOT_INSTRUMENTED = "not_instrumented"
    NOT_YET_BILLED = "not_yet_billed"
    TIMING = "timing"
    UNMETERED_USAGE = "unmetered_usage"
    UNBILLED_USAGE = "unbilled_usage"
    ROUNDING = "rounding"
    UNEXPLAINED = "unexplained"


State = Literal["open", "settling", "closed"]
_SLIPS = tuple(Decimal(10) ** power for power in (3, -3, 6, -6))
# Two quantities or prices that differ by less are the same one: the days of bill and meter are cut by different clocks.
_SAME = Decimal("0.02")
# Between these no factor is near a slip: nearly every day of every row.
_PLAIN = Decimal("0.0015"), Decimal(500)
# Quotients are cut here; what they are multiplied with again never makes a hundredth of a cent of it.
_DIGITS = 18
_UNBOUNDED = Decimal(10) ** 24


class Facing(msgspec.Struct, frozen=True, kw_only=True):
    """Bill and meter face to face. Amounts in the row's currency; units are tokens, or hours of managed compute.

    ``billed_units`` None: the bill's unit is not known. ``ceiling_units`` bounds what calls of unknown tokens may have
    used. ``last_digit`` is the finest decimal place of the bill's amounts. ``price`` is what a unit costs where metering
    alone does not say (nothing was metered); None where nobody knows.
    """

    meter: MeterKind
    expected: Decimal = ZERO
    billed: Decimal = ZERO
    metered_units: Decimal = ZERO
    billed_units: Decimal | None = ZERO
    credits: Decimal = ZERO
    unpriced_units: Decimal = ZERO
    price: Decimal | None = None
    ceiling_units: Decimal = ZERO
    is_instrumented: bool = True
    is_other_currency: bool = False
    state: State = "settling"
    lines: int = 0
    last_digit: int = 0

    @property
    def variance(self) -> Decimal:
        """Billed less expected."""
        return money.minus(self.billed, self.expected)


def causes(row: Facing) -> dict[Cause, Decimal]:
    """The variance in causes; only those that are not zero, and they add up to it exactly."""
    gap = _Gap(row)
    if not gap.left:
        return gap.causes
    if (whole := natural(row.meter, is_metered=bool(row.metered_units))) is not None:
        return {whole: gap.left}
    gap.take(Cause.CREDIT_OR_REFUND, row.credits)
    if row.is_other_currency:
        gap.take(Cause.CURRENCY, gap.left)
    if gap.left:
        gap.by_units()
    # What is left is smaller than the digits of the bill: nobody's fault.
    gap.take(Cause.ROUNDING if gap.is_rounded(gap.left) else Cause.UNEXPLAINED, gap.left)
    return gap.causes


def natural(meter: MeterKind, *, is_metered: bool) -> Cause | None:
    """The cause that a meter's kind says already, of all of its variance; None where bill and meter have to be compared."""
    match meter:
        case MeterKind.OTHER:
            return Cause.UNMAPPED_METER
        case MeterKind.ADJUSTMENT:
            return Cause.ROUNDING
        case MeterKind.HOSTING | MeterKind.COMMITMENT:
            return Cause.NOT_METERED
        case MeterKind.TRAINING if not is_metered:
            return Cause.NOT_METERED
        case _:
            return None


def tokens_needed(row: Facing, calls: int) -> int | None:
    """How many tokens so many calls of unknown tokens need to have had each, so that all that can be theirs is; None where nothing is, whatever they had."""
    taken = causes(msgspec.structs.replace(row, ceiling_units=_UNBOUNDED)).get(Cause.UNKNOWN_TOKENS)
    price = _price(row, money.minus(row.billed, row.credits))
    if taken is None or not price or not calls:
        return None
    # Two more than the quotient says: what its last digit lacks is never missing.
    return int(_quotient(taken, money.times(price, calls))) + 2


class _Gap:
    """A variance while causes take their parts of it."""

    def __init__(self, row: Facing) -> None:
        self.row = row
        self.left = row.variance
        self.causes: dict[Cause, Decimal] = {}
        self._rounding = _rounding(row.last_digit, row.lines)

    def is_rounded(self, amount: Decimal) -> bool:
        """Whether it is no more than the rounding of the bill's lines leaves."""
        return -self._rounding <= amount <= self._rounding

    def take(self, cause: Cause, amount: Decimal) -> None:
        if amount:
            self.causes[cause] = money.plus(self.causes[cause], amount) if cause in self.causes else amount
            self.left = money.minus(self.left, amount)

    def by_units(self) -> None:
        """Price against quantity, and the causes of a gap in quantity."""
        row = self.row
        billed = money.minus(row.billed, row.credits)
        if row.billed_units is None or row.unpriced_units:
            # Without a quantity on the one side or a price on the other nothing tells them apart; but a whole side may be missing.
            if not row.metered_units and billed > 0 and not row.is_instrumented:
                self.take(Cause.NOT_INSTRUMENTED, self.left)
            return
        price = _price(row, billed)
        if price is None:
            return
        if row.metered_units > 0 and row.billed_units > 0:
            if _is_slip(billed, row.billed_units, row.metered_units, price):
                self.take(Cause.UNIT_MISMATCH, self.left)
                return
            by_price = money.minus(billed, _times(price, row.billed_units))
            if not self.is_rounded(by_price):
                self.take(Cause.PRICE_DIFFERENCE, by_price)
        if self.is_rounded(self.left):
            return
        if self.left < 0:
            self.take(Cause.UNBILLED_USAGE if row.state == "closed" else Cause.NOT_YET_BILLED, self.left)
            return
        if row.ceiling_units:
            self.take(Cause.UNKNOWN_TOKENS, min(self.left, _times(price, row.ceiling_units)))
        self.take(Cause.UNMETERED_USAGE if row.is_instrumented else Cause.NOT_INSTRUMENTED, self.left)


def _is_slip(billed: Decimal, billed_units: Decimal, metered_units: Decimal, price: Decimal) -> bool:
    """Whether the quantities differ by a factor that only a wrong unit makes, at one and the same price."""
    factor = _quotient(billed_units, metered_units)
    if _PLAIN[0] < factor < _PLAIN[1]:
        return False
    paid = _quotient(billed, billed_units)
    return any(abs(factor - one) <= one * _SAME for one in _SLIPS) and abs(paid - price) <= abs(price) * _SAME


def _price(row: Facing, billed: Decimal) -> Decimal | None:
    """What a unit is expected to cost: as metered, else as told, else as billed; None where nothing says."""
    if row.metered_units > 0:
        return _quotient(row.expected, row.metered_units)
    if row.price is not None:
        return row.price
    return _quotient(billed, row.billed_units) if row.billed_units else None


@lru_cache(maxsize=1024)
def _rounding(last_digit: int, lines: int) -> Decimal:
    """Half a last digit for every billed line; at least what cutting a quotient may leave."""
    return max(money.times(Decimal(5).scaleb(last_digit - 1), lines), Decimal(1).scaleb(-12))


def _quotient(left: Decimal, right: Decimal) -> Decimal:
    return money.QUOTIENT.divide(left, right)


def _times(price: Decimal, units: Decimal) -> Decimal:
    """An amount of a quotient, cut to digits that stay exact when they are added."""
    return money.truncated(money.times(price, units), _DIGITS)


def net_timing(days: Mapping[date, dict[Cause, Decimal]]) -> None:
    """Cancel what adjacent days of one row have too much and too little of, in order of days; sums stay as they are."""
    if not any(Cause.UNBILLED_USAGE in split for split in days.values()):
        return
    for day in sorted(days):
        after = days.get(day + timedelta(days=1))
        if after is None:
            continue
        here = days[day]
        for over, under in ((here, after), (after, here)):
            moved = min(over.get(Cause.UNMETERED_USAGE, ZERO), -under.get(Cause.UNBILLED_USAGE, ZERO))
            if moved > 0:
                _move(over, Cause.UNMETERED_USAGE, moved)
                _move(under, Cause.UNBILLED_USAGE, -moved)


def _move(of: dict[Cause, Decimal], cause: Cause, amount: Decimal) -> None:
    of[cause] = money.minus(of[cause], amount)
    of[Cause.TIMING] = money.plus(of.get(Cause.TIMING, ZERO), amount)
    for name in (cause, Cause.TIMING):
        if not of[name]:
            del of[name]
