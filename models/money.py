"""Exact money: decimal text in, decimal text out, no float in between.

Owns the arithmetic of amounts and prices. Sums and products are exact (they raise rather than
round); rounding happens in two named places only: ``shown`` for people and ``split`` for shares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal, Inexact, InvalidOperation, localcontext
from functools import cache, reduce

from models.errors import InvalidInput, InvariantBroken

# Sums of 10^13 in a currency like KRW beside prices of 10^-10 per token need about 40 digits;
# 120 leaves room for a product of two such numbers. Inexact is trapped: a result that would
# have to be rounded is a defect, not a smaller number.
EXACT = Context(prec=120, traps=[Inexact, InvalidOperation])

# Division has no exact result in general; quotients (rates, shares for display) keep 28 digits.
QUOTIENT = Context(prec=28, rounding=ROUND_HALF_EVEN)

# What is cut to a place keeps all that is left of it.
_CUT = Context(prec=80, rounding=ROUND_DOWN)

ZERO = Decimal(0)

# ISO 4217 minor units that are not two (2026 list); everything else shows two digits.
_MINOR_UNITS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}
_DECIMAL_TEXT = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?\Z", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}\Z")


def decimal_from(text: str, *, what: str) -> Decimal:
    """The exact value of a decimal number in ASCII digits; ``what`` names it in the error.

    Thousands separators, currency signs, NaN and infinities are refused: a bill that holds
    them was made by a spreadsheet and may have lost digits already.
    """
    stripped = text.strip()
    if len(stripped) > 100 or not _DECIMAL_TEXT.match(stripped):
        raise InvalidInput(f"{what} is not a decimal number: {stripped[:60]!r}")
    value = Decimal(stripped)
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or value.adjusted() > 30 or exponent < -40:
        raise InvalidInput(f"{what} is outside the range that is kept exactly (10^-40 to 10^30): {stripped[:60]!r}")
    return value


def currency_from(text: str, *, what: str) -> str:
    """An ISO 4217 code, upper case."""
    code = text.strip().upper()
    if not text.isascii() or not _CURRENCY.match(code):  # upper() turns ß into SS
        raise InvalidInput(f"{what} is not a three-letter currency code: {text[:20]!r}")
    return code


def add(values: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    return reduce(EXACT.add, values, ZERO)


# The exact sum, difference and product of two; a product takes an int too. The context's own methods: nothing runs
# oftener, and a call of ours around them costs as much again.
plus = EXACT.add
minus = EXACT.subtract
times = EXACT.multiply


def ratio(left: Decimal, right: Decimal) -> Decimal | None:
    """``left / right`` to 28 digits, or None where ``right`` is zero: for shares and rates, never for amounts."""
    return None if right == 0 else QUOTIENT.divide(left, right)


def text(value: Decimal) -> str:
    """Plain decimal text without an exponent and without trailing zeros; ``-0`` is ``0``."""
    if value == 0:
        return "0"
    written = format(value, "f")
    return written.rstrip("0").rstrip(".") if "." in written else written


def minor_digits(currency: str | None) -> int:
    """Digits after the point that people use for this currency."""
    return _MINOR_UNITS.get(currency or "", 2)


def shown(value: Decimal, currency: str | None) -> Decimal:
    """The amount rounded half-even to the currency's minor unit: for people, never for sums."""
    with localcontext(QUOTIENT) as context:
        context.prec = 60
        return value.quantize(Decimal(1).scaleb(-minor_digits(currency)))


def said(value: Decimal, currency: str | None) -> str:
    """``1,234.56 USD``: the amount in a sentence for people; what rounds to nothing and is not says so."""
    rounded = shown(value, currency)
    if not rounded and value:
        return f"{'<' if value > 0 else '>-'}{Decimal(1).scaleb(-minor_digits(currency))} {currency or ''}".strip()
    return f"{rounded or abs(rounded):,f} {currency or ''}".strip()


def split(amount: Decimal, weights: Sequence[int | Decimal], *, digits: int = 12) -> list[Decimal]:
    """Shares of ``amount`` in proportion to ``weights`` that add up to it exactly (largest remainder).

    ``digits`` is the finest place a share is cut at; a finer amount keeps its own last place.
    Ties go to the earlier weight, so that the answer depends on nothing but the arguments.
    """
    total = add(Decimal(weight) for weight in weights)
    if not weights or total <= 0 or any(weight < 0 for weight in weights):
        raise InvariantBroken("a split needs weights that are not negative and not all zero")
    exponent = amount.as_tuple().exponent
    place = min(-digits, exponent if isinstance(exponent, int) else -digits)
    units = int(amount.scaleb(-place, EXACT))
    sign, magnitude = (-1, -units) if units < 0 else (1, units)
    scaled = [Decimal(weight) for weight in weights]
    scale = max(0, *(-int(weight.as_tuple().exponent) for weight in scaled))
    parts = [int(weight.scaleb(scale, EXACT)) for weight in scaled]
    whole = sum(parts)
    floors = [magnitude * part // whole for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda index: (-(magnitude * parts[index] % whole), index))
    for index in by_remainder[: magnitude - sum(floors)]:
        floors[index] += 1
    shares = [Decimal(sign * floor).scaleb(place, EXACT) for floor in floors]
    if add(shares) != amount:
        raise InvariantBroken(f"shares of {amount} add up to {add(shares)}")
    return shares


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in one currency; arithmetic between currencies raises."""

    amount: Decimal
    currency: str

    def __add__(self, other: Money) -> Money:
        self._same(other)
        return Money(plus(self.amount, other.amount), self.currency)

    def __sub__(self, other: Money) -> Money:
        self._same(other)
        return Money(minus(self.amount, other.amount), self.currency)

    def __neg__(self) -> Money:
        return Money(self.amount.copy_negate(), self.currency)  # unary minus would round to the thread's context

    def _same(self, other: Money) -> None:
        if self.currency != other.currency:
            raise InvariantBroken(f"{self.currency} and {other.currency} do not add up")


def truncated(value: Decimal, digits: int) -> Decimal:
    """``value`` cut (not rounded) to ``digits`` places: for bounds."""
    return _CUT.quantize(value, _place(digits))


@cache
def _place(digits: int) -> Decimal:
    """One of that decimal place; a handful of places are ever asked for."""
    return Decimal(1).scaleb(-digits)
