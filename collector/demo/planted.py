"""What is planted in the sample world's bills: one discrepancy of each cause, of an amount that anyone can work out by hand.

They are planted on one deployment whose traffic is no matter of chance: a canary that is called twenty times a day with
2,000,000 input and 100,000 output tokens in all, 1.42 and 0.071 USD at 0.71 a million. Each has a day of its own.
The credit, the rounding and what is not billed yet are in the story of the other deployments already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal

CANARY = "llama-33-70b-canary"
TRIAL = "llama-4-maverick-trial"  # in no inventory, and nobody reports its calls
CALLS_A_DAY, INPUT_TOKENS, OUTPUT_TOKENS = 20, 100_000, 5_000
MINUTE = 36  # of the hours 0 to 19
_MILLION = Decimal("0.71")


@dataclass(frozen=True, slots=True)
class Planted:
    """On which day what is wrong."""

    unbilled_on: date  # the bill lacks the input
    late_on: date  # half of the input is billed a day late
    slipped_on: date  # the output is billed in tokens as if they were thousands
    foreign_on: date  # the input is billed in francs, and no bill says a rate
    hosted_on: date  # a day of hosting, which nobody meters
    bundled_on: date  # the input is billed as one bundle, so that no quantity explains its price
    unmapped_on: date  # a meter that no mapping knows
    trial_on: date  # a deployment that nobody instrumented
    dearer_on: date  # the output is billed above the list price
    past_us_on: date  # calls past the instruments
    silent_on: date  # a call that does not tell its tokens

    @classmethod
    def told(cls, opened_on: date) -> Planted:
        """Counted from the day the world was first shown; what needs a closed day lies more than 36 days back."""

        def ago(count: int) -> date:
            return opened_on - timedelta(days=count)

        # Timing cancels within a month: both days of it have to be in one.
        late = ago(47) if ago(46).day != 1 else ago(48)
        return cls(ago(50), late, ago(43), ago(41), ago(39), ago(33), ago(28), ago(20), ago(14), ago(11), ago(8))


@dataclass(frozen=True, slots=True)
class Billed:
    """A row of the canary's bill: thousands of tokens (or other units), USD a unit, and what its row says differently."""

    kind: str
    quantity: Decimal
    price: Decimal
    fields: Mapping[str, str] = field(default_factory=dict)


def canary_bill(planted: Planted, day: date, *, input_tokens: int, output_tokens: int) -> Iterator[Billed]:
    """The canary's rows of a day, with what is wrong with them."""
    thousand = _MILLION.scaleb(-3)
    inputs, outputs = Decimal(input_tokens).scaleb(-3), Decimal(output_tokens).scaleb(-3)
    moved = Decimal(1000)
    if day == planted.late_on:
        inputs -= moved
    elif day == planted.late_on + timedelta(days=1):
        inputs += moved
    elif day == planted.past_us_on:
        inputs += 400
    if day == planted.foreign_on:
        francs = {"billingCurrency": "CHF", "pricingCurrency": "CHF", "costInBillingCurrency": "1.3", "costInPricingCurrency": "1.3"}
        yield Billed("input", inputs, thousand, francs | {"exchangeRatePricingToBilling": "", "exchangeRateDate": "", "paygCostInBillingCurrency": ""})
    elif day == planted.bundled_on:
        yield Billed("input", Decimal(1), Decimal("1.92"), {"unitOfMeasure": "1 Bundle"})
    elif day != planted.unbilled_on:
        yield Billed("input", inputs, thousand)
    if day == planted.slipped_on:
        outputs *= 1000
    yield Billed("output", outputs, Decimal("0.91").scaleb(-3) if day == planted.dearer_on else thousand)
    if day == planted.hosted_on:
        hosting = {"meterName": "Llama 3.3 70B hosting Hours", "ProductName": "Llama Models - Llama 3.3 70B hosting", "unitOfMeasure": "1 Hour"}
        yield Billed("output", Decimal(24), Decimal("0.74"), hosting)
    if day == planted.unmapped_on:
        strange = {"meterName": "Llama 3.3 70B grounding Units", "ProductName": "Llama Models - Llama 3.3 70B grounding", "unitOfMeasure": "1 Unit"}
        yield Billed("output", Decimal(40), Decimal("0.05"), strange)
