"""What is cut into shares: billed amounts and hours, over who used them and over time, so that the parts add up exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import msgspec

from models import money
from models.matching import Identity
from models.money import ZERO
from models.prices import UnitPrice, Unpriced
from models.resources import DeploymentFact


class Amounts(msgspec.Struct, frozen=True, gc=False):
    """What is split together: billed and effective cost, core-hours and units (tokens, hours) where they are known, and what of billed is invoiced."""

    billed: Decimal
    effective: Decimal
    core_hours: Decimal | None
    units: Decimal | None = None
    invoiced: Decimal | None = None  # None where none of it is on an invoice

    def split(self, weights: Sequence[int]) -> list[Amounts]:
        """Shares by weight that add up exactly (largest remainder)."""
        if sum(map(bool, weights)) == 1:
            return [self if weight else NO_AMOUNTS for weight in weights]
        billed = money.split(self.billed, weights)
        effective = billed if self.effective == self.billed else money.split(self.effective, weights)
        unknown: list[Decimal | None] = [None] * len(weights)
        hours: Sequence[Decimal | None] = unknown if self.core_hours is None else money.split(self.core_hours, weights)
        units: Sequence[Decimal | None] = unknown if self.units is None else money.split(self.units, weights)
        invoiced = self._invoiced(billed, weights, money.split)
        return [Amounts(*one) for one in zip(billed, effective, hours, units, invoiced, strict=True)]

    def spread(self, weights: Sequence[int]) -> list[Amounts]:
        """Shares in order of time that add up exactly: each is what is due up to its end less what was due before.

        Cut anywhere else, the same stretch of time gets the same amount; a largest remainder would not promise that.
        """
        if len(weights) == 1:
            return [self]
        billed = _due(self.billed, weights)
        effective = billed if self.effective == self.billed else _due(self.effective, weights)
        unknown: list[Decimal | None] = [None] * len(weights)
        hours: Sequence[Decimal | None] = unknown if self.core_hours is None else _due(self.core_hours, weights)
        units: Sequence[Decimal | None] = unknown if self.units is None else _due(self.units, weights)
        invoiced = self._invoiced(billed, weights, _due)
        return [Amounts(*one) for one in zip(billed, effective, hours, units, invoiced, strict=True)]

    def _invoiced(
        self, billed: Sequence[Decimal], weights: Sequence[int], cut: Callable[[Decimal, Sequence[int]], Sequence[Decimal]]
    ) -> Sequence[Decimal | None]:
        """Shares of what is invoiced; a charge is nearly always invoiced whole or not at all."""
        if self.invoiced is None:
            return [None] * len(weights)
        return billed if self.invoiced == self.billed else cut(self.invoiced, weights)


NO_AMOUNTS = Amounts(ZERO, ZERO, None)
NO_TAGS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Run:
    """A time within a UTC day in which instances, their facts and their price stay the same."""

    start: datetime
    end: datetime
    fact: DeploymentFact
    price: UnitPrice | Unpriced


@dataclass(slots=True)
class Hours:
    """Instance-hours and core-hours and what they cost, None where not known; ``reason`` says why some of it is not."""

    cost: Decimal | None = None
    core_hours: Decimal | None = None
    reason: str | None = None
    instance_hours: Decimal = ZERO

    def add(self, cost: Decimal | None, core_hours: Decimal | None, reason: str | None, hours: Decimal) -> None:
        self.cost, self.core_hours, self.reason = plus(self.cost, cost), plus(self.core_hours, core_hours), self.reason or reason
        self.instance_hours = money.plus(self.instance_hours, hours)

    def plus(self, other: Hours) -> Hours:
        hours = money.plus(self.instance_hours, other.instance_hours)
        return Hours(plus(self.cost, other.cost), plus(self.core_hours, other.core_hours), self.reason or other.reason, hours)

    def minus(self, other: Hours) -> Hours:
        hours = money.minus(self.instance_hours, other.instance_hours)
        return Hours(minus(self.cost, other.cost), minus(self.core_hours, other.core_hours), self.reason, hours)

    def split(self, weights: Sequence[int]) -> list[Hours]:
        nothing: list[Decimal | None] = [None] * len(weights)
        costs: Sequence[Decimal | None] = nothing if self.cost is None else money.split(self.cost, weights)
        hours: Sequence[Decimal | None] = nothing if self.core_hours is None else money.split(self.core_hours, weights)
        parts = zip(weights, costs, hours, money.split(self.instance_hours, weights), strict=True)
        # A user without tokens has no part in it, not one of nothing.
        return [Hours(cost, core_hours, self.reason, of_it) if weight else Hours() for weight, cost, core_hours, of_it in parts]


# What an amount was given to its users by; a row may hold several.
BY_TOKENS, BY_REQUESTS, BY_TIME = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a billed amount and what it belongs to; ``by_usage`` where only requests told whose it is, and ``by`` what it was cut."""

    bucket: int
    identity: Identity
    application: str | None
    team: str | None
    center: str | None
    tags: Mapping[str, str]
    amounts: Amounts
    by_usage: bool
    by: int = 0


def _due(amount: Decimal, weights: Sequence[int]) -> list[Decimal]:
    """The amount over time: cut to 12 digits (or its own last one) at each step, the last step taking what is left."""
    exponent = amount.as_tuple().exponent
    place = min(-12, exponent if isinstance(exponent, int) else -12)
    units = int(amount.scaleb(-place, money.EXACT))
    sign, units = (-1, -units) if units < 0 else (1, units)
    whole, so_far, before = sum(weights), 0, 0
    found: list[Decimal] = []
    for weight in weights:
        so_far += weight
        due = units * so_far // whole
        found.append(Decimal(sign * (due - before)).scaleb(place, money.EXACT))
        before = due
    return found


def plus(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    """The exact sum of what is known; None only where neither is."""
    if right is None:
        return left
    return right if left is None else money.plus(left, right)


def minus(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    """The exact difference; ``left`` as it is where ``right`` is not known."""
    return left if left is None or right is None else money.minus(left, right)
