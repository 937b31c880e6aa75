"""Serverless or managed compute: which carries a load for less. Pure; docs/comparison.md derives it.

A load is tokens over some days with its highest hour and minute. Serverless costs tokens x price and is bounded by a
limit of tokens a minute; managed compute costs instances x hours x price, comes in whole instances and is bounded by
what an instance can serve. ``advise`` names the cheaper mode only where both can be had and can carry the load.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from typing import Literal

from models import money
from models.money import ZERO

ChoiceOfMode = Literal["serverless", "managed_compute"]
_DIGITS = 12
MILLION = Decimal(1_000_000)
_NOT_KNOWN = "what an instance can serve is not known; set capacity_tokens_per_minute of the deployment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What has to be served: tokens in all, and the most of them in one hour and in one minute."""

    input_tokens: int
    output_tokens: int
    peak_hour_tokens: int
    peak_minute_tokens: int

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Serverless:
    """Token prices (per token) and the limit, with who says it; ``reason`` why it cannot be had."""

    input_price: Decimal | None
    output_price: Decimal | None
    tokens_per_minute_limit: int | None
    reason: str | None = None
    limit_source: str = ""

    def cannot(self, load: Load) -> str | None:
        """Why it cannot be had or cannot carry the load; None where it can."""
        limit = self.tokens_per_minute_limit
        if self.reason is not None or limit is None or load.peak_minute_tokens <= limit:
            return self.reason
        said = f" ({self.limit_source})" if self.limit_source else ""
        return f"serverless cannot carry it: {load.peak_minute_tokens:,} tokens in one minute, and its limit is {limit:,}{said}"

    def cost(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """What these tokens cost; None without a price."""
        if self.input_price is None or self.output_price is None:
            return None
        return money.plus(money.times(self.input_price, input_tokens), money.times(self.output_price, output_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Managed:
    """What the instances cost over the period and can serve; ``instances`` as they run now.

    ``tokens_per_minute`` is of one instance, None where it is not known. ``carries`` is a load that they are known to
    have carried (their own). ``reason`` why it cannot be had. ``is_fixed`` where there are never more than ``instances``.
    ``has_room``: whether the vCPU quota holds as many as it takes (None: nobody knows), and ``no_room`` why not.
    """

    capacity_cost: Decimal | None
    instances: int
    tokens_per_minute: Decimal | None
    carries: Load
    reason: str | None = None
    is_fixed: bool = False
    has_room: bool | None = True
    no_room: str | None = None

    def can(self, load: Load) -> tuple[bool | None, str | None]:
        """Whether it can be had and carries the load, and why not; None where nobody knows what an instance serves or how many the quota holds."""
        if self.reason is not None or self.has_room is False:
            return False, self.reason or self.no_room
        needed = self.instances_for(load)
        if needed is None:
            return (True, None) if self._has_carried(load) else (None, _NOT_KNOWN)
        if self.is_fixed and needed > self.instances:
            return False, f"the instances cannot carry it: {load.peak_hour_tokens:,} tokens in one hour need {needed:,}, and they would be {self.instances:,}"
        return (True, None) if self.has_room else (None, self.no_room)

    def _has_carried(self, load: Load) -> bool:
        return load.tokens <= self.carries.tokens and load.peak_hour_tokens <= self.carries.peak_hour_tokens

    def instances_for(self, load: Load) -> int | None:
        """How many instances the highest hour of a load needs; None where nobody knows what one serves."""
        if self.tokens_per_minute is None or not self.tokens_per_minute:
            return None
        return max(1, int(money.QUOTIENT.divide(Decimal(load.peak_hour_tokens), self.tokens_per_minute * 60).to_integral_value(ROUND_CEILING)))

    def cost_of(self, load: Load) -> Decimal | None:
        """What carrying a load costs over the period, in whole instances, at least those that run; None where it is not known."""
        if self.capacity_cost is None or not self.instances:
            return None
        needed = self.instances_for(load)
        if needed is None:
            return self.capacity_cost if self._has_carried(load) else None
        if needed <= self.instances:
            return self.capacity_cost
        return _quotient(money.times(self.capacity_cost, needed), Decimal(self.instances))


@dataclass(frozen=True, slots=True)
class Advice:
    """The cheaper mode and by how much a day; both None with a reason where they cannot be compared.

    A reason beside instances that are advised says what is not known of more of them.
    """

    cheaper: ChoiceOfMode | None
    saving_per_day: Decimal | None
    reason: str | None


def break_even(capacity_cost: Decimal, days: Decimal, input_tokens: int, output_tokens: int, serverless: Serverless) -> int | None:
    """Tokens a day at which serverless, at this mix of input and output, costs as much as the capacity does.

    ``capacity_cost / days`` divided by the mean price of a token of the mix. None without prices or a mix.
    """
    cost = serverless.cost(input_tokens, output_tokens)
    tokens = input_tokens + output_tokens
    if cost is None or cost <= 0 or tokens <= 0 or days <= 0:
        return None
    with_days = money.QUOTIENT.divide(money.times(capacity_cost, tokens), money.times(days, cost))
    return int(with_days.to_integral_value(ROUND_HALF_EVEN))


def per_million(cost: Decimal | None, tokens: int) -> Decimal | None:
    """The effective cost of a million tokens; None where there is no cost or no token."""
    return None if cost is None or tokens <= 0 else _quotient(money.times(cost, MILLION), Decimal(tokens))


def allocated(capacity_cost: Decimal, tokens: int, capacity_tokens: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    """(utilisation, allocated cost, idle cost): the share of the capacity that was used; allocated + idle is the capacity cost exactly."""
    if capacity_tokens <= 0:
        return ZERO, ZERO, capacity_cost
    share = min(Decimal(1), money.QUOTIENT.divide(Decimal(tokens), capacity_tokens))
    used = money.truncated(money.times(capacity_cost, share), _DIGITS)
    return money.truncated(share, 6), used, money.minus(capacity_cost, used)


def advise(load: Load, serverless: Serverless, managed: Managed, days: Decimal) -> Advice:
    """Which mode carries the load for less; neither where one cannot be had, cannot carry it, or is not known well enough."""
    for reason in (serverless.reason, managed.reason):
        if reason is not None:
            return Advice(None, None, reason)
    if not load.tokens:
        return Advice(None, None, "nothing was served in this period")
    can_serve, lack = managed.can(load)
    for reason in (serverless.cannot(load), lack if can_serve is False else None):
        if reason is not None:
            return Advice(None, None, reason)
    by_token, by_hour = serverless.cost(load.input_tokens, load.output_tokens), managed.cost_of(load)
    if by_token is None:
        return Advice(None, None, "there is no serverless price of this model")
    if by_hour is None or (can_serve is None and managed.is_fixed):
        return Advice(None, None, lack or "what the instances cost is not known")
    if days <= 0:
        return Advice(None, None, "the period is empty")
    gap = money.minus(by_hour, by_token)
    saving = _quotient(abs(gap), days)
    if not gap:
        return Advice(None, ZERO, "both cost the same")
    return Advice("serverless", saving, None) if gap > 0 else Advice("managed_compute", saving, lack)


def _quotient(left: Decimal, right: Decimal) -> Decimal:
    return money.QUOTIENT.divide(left, right).quantize(Decimal(1).scaleb(-_DIGITS), rounding=ROUND_HALF_EVEN)
