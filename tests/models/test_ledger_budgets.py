"""Where a period's spend will end, what is unusual, and what a hard budget still allows."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from models.alerts import Budget, Severity
from models.errors import InvalidInput
from models.ledger.budgets import Days, calendar_period, days_of, hard_standings, look_ahead, outlook, scope_filters, spend, unusual
from models.ledger.values import Figures, Filters
from models.resources import Mode
from models.store import Store
from tests import factories

NOVEMBER = calendar_period("month", datetime(2026, 11, 15, tzinfo=UTC))
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def used(store: Store, per_day: dict[date, int]) -> None:
    """So many dollars a day, at noon."""
    with store.write() as session:
        factories.token_prices(session, "1000000", "1000000")
        for day, dollars in per_day.items():
            factories.event(session, time=datetime(day.year, day.month, day.day, 12, tzinfo=UTC), input_tokens=dollars, output_tokens=0)


def every_day(first: date, last: date, dollars: int, *, weekend: int | None = None) -> dict[date, int]:
    found = {}
    for index in range((last - first).days + 1):
        day = first + timedelta(days=index)
        found[day] = weekend if weekend is not None and day.weekday() >= 5 else dollars
    return found


def test_the_spend_of_a_period_is_the_ledgers(store: Store) -> None:
    used(store, {date(2026, 10, 31): 7, date(2026, 11, 1): 5, date(2026, 11, 2): 6})
    with store.read() as session:
        found = spend(session, filters=Filters(), period=NOVEMBER, basis="metered", currency="USD", now=NOW)
        other = spend(session, filters=Filters(), period=NOVEMBER, basis="metered", currency="EUR", now=NOW)
    assert (found.amount, found.requests, other.amount) == (Decimal(11), 2, Decimal(0))


def test_a_forecast_follows_the_weekdays(sqlite_store: Store) -> None:
    # Six weeks of 10 on workdays and 2 on weekends; Friday 20 to Monday 30 November are still to come.
    used(sqlite_store, every_day(date(2026, 10, 9), date(2026, 11, 19), 10, weekend=2))
    with sqlite_store.read() as session:
        found = outlook(session, filters=Filters(), period=NOVEMBER, basis="metered", currency="USD", now=NOW)
    # 1 to 19 November: 14 workdays at 10, and 5 days of weekends (1, 7, 8, 14, 15) at 2.
    assert found.spent == Decimal(150)
    # To come: 7 workdays (20, 23 to 27, 30) and 4 weekend days.
    assert found.expected == Decimal(228)
    assert found.error_percent is not None
    assert found.trials >= 5


def test_a_forecast_of_a_steady_spend_misses_nothing_and_says_so(sqlite_store: Store) -> None:
    used(sqlite_store, every_day(date(2026, 10, 1), date(2026, 11, 19), 3))
    with sqlite_store.read() as session:
        found = outlook(session, filters=Filters(), period=NOVEMBER, basis="metered", currency="USD", now=NOW)
    assert (found.expected, found.low, found.high, found.error_percent) == (Decimal(90), Decimal(90), Decimal(90), Decimal(0))


def test_a_forecast_says_what_it_lacks(sqlite_store: Store) -> None:
    used(sqlite_store, every_day(date(2026, 11, 16), date(2026, 11, 19), 3))
    with sqlite_store.read() as session:
        found = outlook(session, filters=Filters(), period=NOVEMBER, basis="metered", currency="USD", now=NOW)
    assert (found.spent, found.expected, found.reason) == (Decimal(12), None, "a forecast needs five complete days; there are 4")


def test_an_uneven_spend_has_a_band_around_its_forecast(sqlite_store: Store) -> None:
    used(sqlite_store, {day: 5 + 10 * (index * 7 % 5) for index, day in enumerate(every_day(date(2026, 10, 1), date(2026, 11, 19), 0))})
    with sqlite_store.read() as session:
        found = outlook(session, filters=Filters(), period=NOVEMBER, basis="metered", currency="USD", now=NOW)
    assert found.low is not None
    assert found.expected is not None
    assert found.high is not None
    assert found.spent < found.low < found.expected < found.high


def of_a_day(metered: str, billed: str | None) -> Figures:
    """A day of which a bill has told, or of which only metering does."""
    told, amount = None if billed is None else Decimal(billed), Decimal(metered)
    return Figures(
        currency="USD",
        cost=amount if told is None else told,
        metered_cost=amount,
        billed_cost=told,
        input_tokens=1,
        output_tokens=0,
        cached_input_tokens=0,
        reasoning_output_tokens=0,
        requests=1,
        core_hours=None,
        status="provisional" if told is None else "settling",
        unpriced_tokens=0,
        unknown_token_requests=0,
        estimated_token_requests=0,
        coverage=None,
        estimate=False,
    )


def test_days_that_no_bill_has_reached_are_taken_as_the_bill_would_have_them() -> None:
    # Six days billed at 12 for 10 metered, then four that the bill has not reached.
    rows = {date(2026, 11, 1 + index): of_a_day("10", "12" if index < 6 else None) for index in range(10)}
    known = days_of(rows, today=date(2026, 11, 11), until=date(2026, 11, 11), basis="best")
    assert [amount for _, amount in known.complete] == [Decimal(12)] * 10
    seen = look_ahead(known, period=NOVEMBER, basis="best", currency="USD", so_far=Decimal(112))
    assert seen.expected == Decimal(360)
    # A bill of three times the metered amount has another cause than its delay; and metering alone is not scaled.
    odd = {day: of_a_day("10", None if one.billed_cost is None else "30") for day, one in rows.items()}
    assert days_of(odd, today=date(2026, 11, 11), until=date(2026, 11, 11), basis="best").complete[-1][1] == Decimal(10)
    assert days_of(rows, today=date(2026, 11, 11), until=date(2026, 11, 11), basis="metered").complete[-1][1] == Decimal(10)


def test_the_usual_band_is_that_of_the_weekday() -> None:
    # Nine weeks: 100 on Mondays, 10 otherwise.
    days = [(day, Decimal(100 if day.weekday() == 0 else 10)) for day in every_day(date(2026, 9, 7), date(2026, 11, 15), 0)]
    monday = date(2026, 11, 16)
    assert unusual(Days(days, (monday, Decimal(100))), currency="USD").percent == 0  # type: ignore[union-attr]
    tuesday = Days([*days, (monday, Decimal(100))], (date(2026, 11, 17), Decimal(25)))
    found = unusual(tuesday, currency="USD")
    assert found is not None
    assert (found.day, found.percent, found.high) == (date(2026, 11, 17), Decimal(150), Decimal(10))
    # A running day is not too cheap yet; a complete one is.
    assert unusual(Days(days, (monday, Decimal(0))), currency="USD").percent == 0  # type: ignore[union-attr]
    cheap = unusual(Days([*days, (monday, Decimal(40))], (date(2026, 11, 17), Decimal(0))), currency="USD")
    assert cheap is not None
    assert cheap.percent == Decimal(60)
    assert unusual(Days(days[:6], (date(2026, 9, 13), Decimal(1))), currency="USD") is None


def test_a_hard_budget_counts_what_has_no_price_at_the_dearest_one(store: Store) -> None:
    with store.write() as session:
        factories.token_prices(session, "1000000", "2000000")
        factories.event(session, time=NOW - timedelta(hours=1), input_tokens=10, output_tokens=0)
        unpriced = factories.series(session, deployment="other", model="Llama-Guard-9")
        factories.event(session, unpriced, time=NOW - timedelta(hours=1), input_tokens=20, output_tokens=0)
        facts = {"scope": {}, "steps": [100], "forecast_steps": [], "receivers": [], "severity": Severity.WARNING, "created_at": NOW, "updated_at": NOW}
        budget = Budget(id="b1", name="hard", amount=Decimal(100), currency="USD", period="month", is_hard=True, **facts)  # type: ignore[arg-type]
        session.add(budget)
        session.flush()
        soft = Budget(id="b2", name="soft", amount=Decimal(1), currency="USD", period="month", **facts)  # type: ignore[arg-type]
        (found,) = hard_standings(session, [budget, soft], now=NOW)
    # 10 at 1, and 20 that nothing prices at the dearest 2: 50 of 100.
    assert (found.budget_id, found.spent, found.ceiling, found.remaining) == ("b1", Decimal(10), Decimal(40), Decimal(50))


def test_a_scope_is_the_filters_of_the_read_api() -> None:
    found = scope_filters({"workspace": "a", "model": ["x", "y"], "mode": "serverless", "tag:env": "prod"})
    assert found == Filters(workspaces=("a",), models=("x", "y"), modes=(Mode.SERVERLESS,), tags=(("env", "prod"),))
    with pytest.raises(InvalidInput, match="scope does not know 'cost_center'"):
        scope_filters({"cost_center": "x"})
