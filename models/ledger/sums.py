"""A row or total of costs in the making: what arrives cell by cell, and the figures it comes to."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal

import msgspec

from models import money
from models.ledger.billed import Bill
from models.ledger.shares import BY_REQUESTS, BY_TIME, BY_TOKENS, Amounts, plus
from models.ledger.values import Basis, Figures, Standing
from models.money import ZERO
from models.prices import in_one

_Covered = tuple[date, tuple[str | None, str | None]]
_STANDINGS: tuple[Standing, ...] = ("provisional", "settling", "settled")

_ALLOCATIONS = ((BY_TOKENS, "tokens"), (BY_REQUESTS, "requests"), (BY_TIME, "time"))


class Sums(msgspec.Struct, eq=False, gc=False):
    """A row or total while its cells arrive; a struct that C fills, as an answer may have some ten thousands (nothing in it leads back to it)."""

    metered: Decimal = ZERO
    billed: Decimal = ZERO
    effective: Decimal = ZERO
    unreached: Decimal = ZERO  # what of the metered no bill reaches yet
    is_used: bool = False  # usage or instance-hours were added
    is_charged: bool = False  # charges were added
    is_metered: bool = False
    is_billed: bool = False
    is_best: bool = False
    is_unpriced: bool = False
    is_unknown: bool = False  # holds calls that cost something by tokens that nobody told
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    requests: int = 0
    unpriced_tokens: int = 0
    unknown_requests: int = 0
    estimated_requests: int = 0
    metered_core_hours: Decimal | None = None
    billed_core_hours: Decimal | None = None
    best_core_hours: Decimal | None = None
    standing: int = 2
    estimate: bool = False
    by: int = 0  # what amounts were given to their users by (``models.ledger.shares``)
    reasons: frozenset[str] = frozenset()
    # Of rows that stand for one meter: metered tokens or instance-hours, priced or not, and what the bill says of them
    # beside its amount: for telling a gap in price from one in quantity.
    units: Decimal = ZERO
    billed_units: Decimal = ZERO  # tokens or hours of usage lines
    is_billed_unit_known: bool = True
    credits: Decimal = ZERO  # what of the amount is no usage: refunds, credits, corrections
    lines: int = 0
    invoiced: Decimal = ZERO  # what of billed is on an invoice, and how many of the lines
    invoiced_lines: int = 0
    # Day, workspace and deployment -> (billed, metered) of reached days; None where there are none yet.
    cover: dict[_Covered, tuple[Decimal, Decimal]] | None = None

    def absorb(self, other: Sums) -> None:
        """Add a row to a total."""
        self.is_billed |= other.is_billed
        self.is_best |= other.is_best
        self.standing = min(self.standing, other.standing)
        self.estimate |= other.estimate
        self.by |= other.by
        if other.is_used:
            self.is_used = True
            self.metered = money.plus(self.metered, other.metered)
            self.unreached = money.plus(self.unreached, other.unreached)
            self.units = money.plus(self.units, other.units)
            self.is_metered |= other.is_metered
            self.is_unpriced |= other.is_unpriced
            self.is_unknown |= other.is_unknown
            self.input_tokens += other.input_tokens
            self.output_tokens += other.output_tokens
            self.cached_input_tokens += other.cached_input_tokens
            self.reasoning_output_tokens += other.reasoning_output_tokens
            self.requests += other.requests
            self.unpriced_tokens += other.unpriced_tokens
            self.unknown_requests += other.unknown_requests
            self.estimated_requests += other.estimated_requests
            self.reasons |= other.reasons
            self.metered_core_hours = plus(self.metered_core_hours, other.metered_core_hours)
            self.best_core_hours = plus(self.best_core_hours, other.best_core_hours)
        if other.is_charged:
            is_same = other.effective is other.billed and self.effective is self.billed
            self.is_charged = True
            self.billed = money.plus(self.billed, other.billed)
            self.effective = self.billed if is_same else money.plus(self.effective, other.effective)
            self.billed_units = money.plus(self.billed_units, other.billed_units)
            self.is_billed_unit_known &= other.is_billed_unit_known
            self.credits = money.plus(self.credits, other.credits)
            self.lines += other.lines
            self.billed_core_hours = plus(self.billed_core_hours, other.billed_core_hours)
            if other.invoiced_lines:
                self.invoiced = money.plus(self.invoiced, other.invoiced)
                self.invoiced_lines += other.invoiced_lines
            if not other.is_used:
                self.best_core_hours = plus(self.best_core_hours, other.best_core_hours)
        if other.cover is None:
            return
        if self.cover is None:
            self.cover = other.cover.copy()
            return
        cover = self.cover
        for key, (billed, metered) in other.cover.items():
            pair = cover.get(key)
            cover[key] = (billed, metered) if pair is None else (money.plus(pair[0], billed), money.plus(pair[1], metered))

    def add_charge(self, bill: Bill, amounts: Amounts, of: tuple[str | None, str | None] | None, *, is_estimate: bool, standing: int) -> None:
        """Add a charge, or what of it is a share: ``amounts`` of the workspace and deployment ``of``; ``standing`` tells how settled its day is.

        Without ``of`` nobody asks for coverage.
        """
        billed = amounts.billed
        self.standing = min(self.standing, standing)
        self.is_billed = self.is_best = self.is_charged = True
        if is_estimate:
            self.estimate = True
        # Where nothing is amortized the two are one sum.
        is_same = amounts.effective is billed and self.effective is self.billed
        self.billed = money.plus(self.billed, billed)
        self.effective = self.billed if is_same else money.plus(self.effective, amounts.effective)
        self.lines += bill.lines
        if amounts.invoiced is not None:
            self.invoiced = money.plus(self.invoiced, amounts.invoiced)
            self.invoiced_lines += bill.invoiced_lines
        if amounts.core_hours is not None:
            self.billed_core_hours = plus(self.billed_core_hours, amounts.core_hours)
            self.best_core_hours = plus(self.best_core_hours, amounts.core_hours)
        if bill.is_credit:
            self.credits = money.plus(self.credits, billed)
        elif amounts.units is None:
            self.is_billed_unit_known = False
        else:
            self.billed_units = money.plus(self.billed_units, amounts.units)
        if of is None:
            return
        key = bill.day, of
        if self.cover is None:
            self.cover = {key: (billed, ZERO)}
        else:
            pair = self.cover.get(key)
            self.cover[key] = (billed, ZERO) if pair is None else (money.plus(pair[0], billed), pair[1])

    def add_metered(self, day: date, amount: Decimal, of: tuple[str | None, str | None] | None, *, is_reached: bool) -> None:
        """Add what metering makes of the usage ``of`` a workspace and deployment; it is the best that is known until a bill reaches the day."""
        self.is_metered = True
        self.metered = money.plus(self.metered, amount)
        if is_reached:
            if of is None:
                return
            # Unallocated money has no metering.
            seen = ZERO if of[1] is None else amount
            key = day, of
            if self.cover is None:
                self.cover = {}
            pair = self.cover.get(key)
            self.cover[key] = (ZERO, seen) if pair is None else (pair[0], money.plus(pair[1], seen))
        else:
            self.is_best = True
            self.unreached = money.plus(self.unreached, amount)

    @property
    def best(self) -> Decimal:
        """The bill, and what no bill reaches as metered."""
        return money.plus(self.billed, self.unreached)

    def figures(self, basis: Basis, currency: str | None) -> Figures:
        nothing_known = (self.is_unpriced or self.is_unknown) and not self.is_metered
        metered = None if nothing_known else self.metered
        billed = self.billed if self.is_billed else None
        reasons: dict[str, str] = {}
        if metered is None or self.unpriced_tokens or self.reasons:
            reasons["metered_cost" if metered is None else "unpriced_tokens"] = in_one(self.reasons) or (
                "the tokens of these requests are not known" if self.is_unknown else "there is no price for this usage"
            )
        if billed is None:
            reasons["billed_cost"] = "no bill reaches this period yet"
        hours: Decimal | None
        cost: Decimal | None
        match basis:
            case "metered":
                cost, hours = metered, self.metered_core_hours
            case "billed":
                cost, hours = billed, self.billed_core_hours
            case "amortized":
                cost, hours = (self.effective if self.is_billed else None), self.billed_core_hours
            case "best":
                cost, hours = (self.best if self.is_best or not nothing_known else None), self.best_core_hours
        if cost is None:
            reasons["cost"] = reasons.get("billed_cost" if basis in ("billed", "amortized") else "metered_cost", "not known")
        return Figures(
            currency=currency,
            cost=cost,
            metered_cost=metered,
            billed_cost=billed,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_input_tokens=self.cached_input_tokens,
            reasoning_output_tokens=self.reasoning_output_tokens,
            requests=self.requests,
            core_hours=hours,
            status=_STANDINGS[self.standing],
            unpriced_tokens=self.unpriced_tokens,
            unknown_token_requests=self.unknown_requests,
            estimated_token_requests=self.estimated_requests,
            coverage=self.coverage(),
            estimate=self.estimate,
            reasons=reasons,
            allocation=", ".join(name for bit, name in _ALLOCATIONS if self.by & bit) or None,
        )

    def coverage(self) -> Decimal | None:
        """The share of billed money that metering saw; None where nothing is billed."""
        return None if self.cover is None else covered(self.cover.values())


def covered(days: Iterable[tuple[Decimal, Decimal]]) -> Decimal | None:
    """The share of the billed money of deployments' reached days, (billed, metered), that metering saw; None where nothing is billed."""
    billed = seen = ZERO
    for amount, metered in days:
        if amount > 0:
            billed = money.plus(billed, amount)
            if metered > 0:
                seen = money.plus(seen, min(amount, metered))
    share = money.ratio(seen, billed)
    return None if share is None else money.truncated(share, 4)
