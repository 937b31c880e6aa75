"""Break-even and advice: the example of the documentation, and worlds whose truth is simulated call by call and hour by hour."""

from __future__ import annotations

import os
import random
import re
from decimal import Decimal
from pathlib import Path

import pytest

from models.breakeven import Advice, Load, Managed, Serverless, advise, allocated, break_even, per_million

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"
WORLDS = int(os.environ.get("METERBRIDGE_TEST_SEEDS", "200"))


def said(figure: str) -> str:
    """The result that the page gives for a figure."""
    found = re.search(rf"^\| {re.escape(figure)} \|.*\| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, figure
    return found[1].strip()


def test_the_example_of_the_documentation_is_so() -> None:
    serverless = Serverless(input_price=Decimal("0.50").scaleb(-6), output_price=Decimal("1.50").scaleb(-6), tokens_per_minute_limit=400_000)
    load = Load(input_tokens=75_000_000, output_tokens=25_000_000, peak_hour_tokens=1_000_000, peak_minute_tokens=50_000)
    managed = Managed(capacity_cost=Decimal(960), instances=1, tokens_per_minute=Decimal(100_000), carries=load)
    even = break_even(Decimal(960), Decimal(10), load.input_tokens, load.output_tokens, serverless)
    share, used, idle = allocated(Decimal(960), load.tokens, Decimal(100_000) * 60 * 240)
    cost = serverless.cost(load.input_tokens, load.output_tokens)
    advice = advise(load, serverless, managed, Decimal(10))
    assert cost is not None
    assert f"{cost / 100:.2f} USD" == said("mean price of a million tokens")
    assert f"{even:,}" == said("break-even tokens a day")
    assert f"{100_000 * 60 * 24:,}" == said("tokens it could serve a day")
    assert f"{share * 100:.2f} %" == said("utilisation")
    assert f"{per_million(Decimal(960), load.tokens):.2f} USD" == said("effective cost, allocation")
    assert f"{per_million(used, load.tokens):.2f} USD" == said("effective cost, usage")
    assert f"{cost / 10:.2f} USD" == said("serverless would cost a day")
    assert f"{advice.cheaper}, by {advice.saving_per_day:.2f} USD a day" == said("cheaper")
    assert used + idle == 960


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"tokens_per_minute_limit": 10}, "cannot carry"),
        ({"input_price": None}, "no serverless price"),
        ({"reason": "the model is retired"}, "retired"),
    ],
)
def test_a_way_that_cannot_be_had_is_not_advised(facts: dict[str, object], reason: str) -> None:
    known: dict[str, object] = {"input_price": Decimal("0.000001"), "output_price": Decimal("0.000001"), "tokens_per_minute_limit": 400_000} | facts
    load = Load(input_tokens=1000, output_tokens=0, peak_hour_tokens=1000, peak_minute_tokens=1000)
    managed = Managed(capacity_cost=Decimal(1), instances=1, tokens_per_minute=Decimal(100), carries=load)
    found = advise(load, Serverless(**known), managed, Decimal(1))  # type: ignore[arg-type]
    assert found.cheaper is None
    assert reason in (found.reason or "")


def simulated(seed: int) -> tuple[Advice, str | None, float]:
    """(our advice, the cheaper feasible way in truth, how far the costs lie apart) of one world.

    The truth is kept by other means: cents of single calls in integers, and instances that work through a queue minute
    by minute; a call that waits longer than its hour is a load that was not carried.
    """
    chance = random.Random(seed)
    days = chance.choice((5, 10, 30))
    input_nanos, output_nanos = chance.randint(100, 3000), chance.randint(200, 9000)  # of a millionth of a dollar, per token
    per_minute = chance.choice((20_000, 60_000, 150_000))
    running = chance.choice((1, 1, 2))
    hourly_cents = chance.randint(60, 700)
    # A reservation pays less for the same hours.
    hourly_cents = hourly_cents * 6 // 10 if chance.random() < 0.3 else hourly_cents
    limit = chance.choice((200_000, 400_000))
    volume = chance.lognormvariate(0, 1.0) * 1_500_000  # tokens an hour by day
    nanos = inputs = outputs = peak_hour = peak_minute = 0
    hours: list[list[int]] = []
    for hour in range(days * 24):
        busy = 1.0 if 8 <= hour % 24 < 19 else 0.15
        minutes = [0] * 60
        for _ in range(chance.randint(20, 40)):
            tokens = max(2, int(volume * busy / 30 * chance.uniform(0.3, 1.9)))
            sent = tokens * 4 // 5
            nanos += sent * input_nanos + (tokens - sent) * output_nanos
            inputs, outputs = inputs + sent, outputs + tokens - sent
            minutes[chance.randrange(60)] += tokens
        hours.append(minutes)
        peak_hour, peak_minute = max(peak_hour, sum(minutes)), max(peak_minute, *minutes)
    needed = next(count for count in range(1, 10_000) if all(sum(minutes) <= count * per_minute * 60 for minutes in hours))
    by_hour = max(needed, running) * hourly_cents * days * 24 / 100
    by_token = nanos / 1e12 * 1000
    feasible = all(tokens <= limit for minutes in hours for tokens in minutes)
    truth = None if not feasible else "serverless" if by_token < by_hour else "managed_compute"
    load = Load(input_tokens=inputs, output_tokens=outputs, peak_hour_tokens=peak_hour, peak_minute_tokens=peak_minute)
    price = [Decimal(one).scaleb(-9) for one in (input_nanos, output_nanos)]
    serverless = Serverless(input_price=price[0], output_price=price[1], tokens_per_minute_limit=limit)
    capacity = Decimal(running * hourly_cents * days * 24) / 100
    managed = Managed(capacity_cost=capacity, instances=running, tokens_per_minute=Decimal(per_minute), carries=load)
    return advise(load, serverless, managed, Decimal(days)), truth, abs(by_token - by_hour) / max(by_token, by_hour)


def test_the_advised_way_is_the_cheaper_feasible_one() -> None:
    wrong, judged, answers = [], 0, set()
    for seed in range(WORLDS):
        advice, truth, apart = simulated(seed)
        answers.add(advice.cheaper)
        if apart <= 0.02:
            continue  # around break-even either will do
        judged += 1
        if advice.cheaper != truth:
            wrong.append(seed)
    assert len(wrong) <= judged // 100, wrong[:10]
    assert answers == {None, "serverless", "managed_compute"}
    assert judged > WORLDS // 2
