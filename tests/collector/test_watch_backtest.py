"""A budget tried on the past tells what the watch would have told, with what was known then."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from collector import rulebook
from collector.rulebook import BudgetBody
from collector.watch import Known, backtest_budget
from models.periods import DAY, Period
from models.store import Store
from models.trials import Trial
from tests import factories

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
NOVEMBER = Period(datetime(2026, 11, 1, tzinfo=UTC), NOW)


def use(store: Store, day: int, tokens: int, *, month: int = 11, arrived: datetime | None = None) -> None:
    """Calls at noon: a token costs a dollar."""
    at = datetime(2026, month, day, 12, tzinfo=UTC)
    with store.write() as session:
        factories.event(session, time=at, received_at=arrived or at, input_tokens=tokens, output_tokens=0)


def priced(store: Store) -> None:
    with store.write() as session:
        factories.token_prices(session, "1000000", "1000000")


def tried(store: Store, period: Period = NOVEMBER, *, known: Known = "then", steps: Sequence[int] = (50, 80), **more: Any) -> Trial:
    said = {"name": "b", "scope": {}, "amount": "100.00", "currency": "USD", "period": "month", "basis": "metered", "steps": list(steps), **more}
    with store.read() as session:
        return backtest_budget(session, rulebook.tried_budget(BudgetBody.model_validate(said), now=NOW), period, now=NOW, known=known)


def told(trial: Trial) -> list[tuple[int | None, datetime]]:
    return [(one.step, one.fired_at) for one in trial.firings]


def test_a_step_is_told_when_its_usage_arrived_not_when_it_was_used(store: Store) -> None:
    priced(store)
    use(store, 3, 60, arrived=datetime(2026, 11, 12, 9, 30, tzinfo=UTC))
    use(store, 14, 25)
    trial = tried(store)
    assert told(trial) == [(50, datetime(2026, 11, 12, 10, tzinfo=UTC)), (80, datetime(2026, 11, 14, 13, tzinfo=UTC))]
    assert trial.firings[1].why == "85.00 USD spent since 2026-11-01T00:00:00Z, at or above 80 % of 100.00 USD"
    assert "as in an import" in trial.notes[1]
    today = tried(store, known="today")
    assert told(today) == [(50, datetime(2026, 11, 3, 13, tzinfo=UTC)), (80, datetime(2026, 11, 14, 13, tzinfo=UTC))]
    assert "by what is known of the spend today" in today.notes[0]


def test_two_steps_in_two_hours_of_a_day_are_both_told(sqlite_store: Store) -> None:
    priced(sqlite_store)
    use(sqlite_store, 5, 55)
    with sqlite_store.write() as session:
        at = datetime(2026, 11, 5, 15, 20, tzinfo=UTC)
        factories.event(session, time=at, received_at=at, input_tokens=30, output_tokens=0)
    trial = tried(sqlite_store)
    assert told(trial) == [(50, datetime(2026, 11, 5, 13, tzinfo=UTC)), (80, datetime(2026, 11, 5, 16, tzinfo=UTC))]
    assert trial.notes == ["by what was known of the spend at the time, to the hour"]


def test_a_step_of_the_forecast_is_told_in_the_hour_in_which_it_was_expected(sqlite_store: Store) -> None:
    priced(sqlite_store)
    for day in range(20, 32):
        use(sqlite_store, day, 2, month=10)
    for day in range(1, 20):
        use(sqlite_store, day, 2 if day < 6 else 50)
    # On the 5th: 5 x 2 and 25 days to come at 2. On the 6th: 5 x 2, 50 today, 24 days at 2.
    trial = tried(sqlite_store, steps=[500], forecast_steps=[50, 100])
    assert told(trial)[:2] == [(50, datetime(2026, 11, 1, 1, tzinfo=UTC)), (100, datetime(2026, 11, 6, 13, tzinfo=UTC))]
    assert trial.firings[1].why == "108.00 USD expected at the period's end, at or above 100 % of 100.00 USD"
    assert trial.firings[0].why == "60.00 USD expected at the period's end, at or above 50 % of 100.00 USD"


def test_what_a_new_price_took_back_the_same_day_was_told_all_the_same(store: Store) -> None:
    cheaper_from = datetime(2026, 11, 1, 15, 20, tzinfo=UTC)
    with store.write() as session:
        factories.token_prices(session, "1000000", "1000000", known_to=cheaper_from)
        factories.token_prices(session, "500000", "500000", known_from=cheaper_from)
    for day in range(20, 32):
        use(store, day, 2, month=10)
    use(store, 1, 45)
    # At noon 45, and 103 expected: 29 more days at 2. From 15:20 on half of it.
    trial = tried(store, steps=[40], forecast_steps=[100])
    fired, fell = datetime(2026, 11, 1, 13, tzinfo=UTC), cheaper_from
    assert [(one.step, one.fired_at, one.resolved_at, one.peak) for one in trial.firings] == [
        (40, fired, fell, Decimal(45)),
        (100, fired, None, Decimal("103.00")),
    ]


def test_what_arrived_later_changes_nothing_that_would_have_been_told(store: Store) -> None:
    priced(store)
    for day in range(14, 32):
        use(store, day, 2, month=10)
    for day in range(1, 10):
        use(store, day, 4)
    early = Period(datetime(2026, 10, 14, tzinfo=UTC), datetime(2026, 11, 10, tzinfo=UTC))
    before = tried(store, early, steps=[30], forecast_steps=[80, 100])
    assert before.firings
    # Usage of those days, of days after them, and another price: all of it came when they were over.
    for day in (2, 8, 12):
        use(store, day, 500, arrived=datetime(2026, 11, 15, tzinfo=UTC))
    with store.write() as session:
        factories.token_prices(session, "9000000", "9000000", known_from=datetime(2026, 11, 16, tzinfo=UTC))
    after = tried(store, early, steps=[30], forecast_steps=[80, 100])
    assert (after.firings, after.lines) == (before.firings, before.lines)
    assert after.notes[:1] == before.notes[:1]
    assert tried(store, early, steps=[30], known="today").firings != before.firings


def test_how_good_the_forecasts_were_is_said_of_periods_that_are_over(sqlite_store: Store) -> None:
    priced(sqlite_store)
    for number in range(40):
        at = datetime(2026, 9, 20, 12, tzinfo=UTC) + number * DAY
        with sqlite_store.write() as session:
            factories.event(session, time=at, received_at=at, input_tokens=2, output_tokens=0)
    trial = tried(sqlite_store, Period(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)), steps=[500], forecast_steps=[500])
    # Two dollars each day until the 29th; the last two days of October have none.
    # 62 were expected on most days, and it was 58.
    assert trial.notes[-1].startswith(
        "steps of the forecast are looked at as the spend is: at each day's end and before a bill or a price arrives, and then to the hour; half of 31 forecasts missed the end by at most 6.9 %, and the band of "
    )
