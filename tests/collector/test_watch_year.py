"""A year on a simulated clock in five zones: each budget period tells its steps once, whatever the clocks do.

Evaluations are at each change that matters (usage, a local midnight) rather than every five seconds; the calendar itself
is followed hour by hour.
"""

from __future__ import annotations

from calendar import isleap
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from collector.alerting import steps_crossed
from models.ledger.budgets import PERIODS, BudgetPeriod, billed_days, calendar_period
from models.store import Store
from tests import factories
from tests.collector.test_watch import Watched, watched

pytestmark = pytest.mark.walk

# Half-hour and quarter-hour offsets, clocks that change at midnight, by half an hour, and not at all.
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Beirut", "Australia/Lord_Howe", "Asia/Kathmandu")
YEAR = 2028
HOUR = timedelta(hours=1)


def per_year(kind: BudgetPeriod) -> int:
    return {"day": 366, "week": 53, "month": 12, "quarter": 4, "year": 1}[kind]


@pytest.mark.parametrize("zone_name", ZONES)
@pytest.mark.parametrize("kind", PERIODS)
def test_periods_follow_each_other_without_gap_or_overlap_through_a_leap_year(kind: BudgetPeriod, zone_name: str) -> None:
    zone = ZoneInfo(zone_name)
    at = datetime(YEAR, 1, 1, tzinfo=zone).astimezone(UTC)
    end = datetime(YEAR + 1, 1, 1, tzinfo=zone).astimezone(UTC)
    period = calendar_period(kind, at, zone=zone)
    starts = [period.start]
    while at < end:
        if at >= period.end:
            following = calendar_period(kind, at, zone=zone)
            assert following.start == period.end
            period = following
            starts.append(period.start)
        assert calendar_period(kind, at, zone=zone) == period
        at += HOUR
    # The year 2028 begins on a Saturday, so that it touches 53 weeks and a bit of one before.
    assert len(starts) == per_year(kind) + (1 if kind == "week" and starts[0] < datetime(YEAR, 1, 1, tzinfo=zone) and len(starts) == 54 else 0)
    for start in starts[1:]:
        local = start.astimezone(zone)
        # Where midnight does not exist (Beirut), the day begins with the clock change.
        assert (local.hour, local.minute) in ((0, 0), (1, 0))


@pytest.mark.parametrize(
    ("zone_name", "day", "hours"),
    [
        ("Europe/Berlin", date(2028, 3, 26), 23),
        ("Europe/Berlin", date(2028, 10, 29), 25),
        ("America/New_York", date(2028, 3, 12), 23),
        ("America/New_York", date(2028, 11, 5), 25),
        ("Asia/Beirut", date(2028, 3, 26), 23),
        ("Australia/Lord_Howe", date(2028, 4, 2), 24.5),
        ("Australia/Lord_Howe", date(2028, 10, 1), 23.5),
        ("Asia/Kathmandu", date(2028, 2, 29), 24),
    ],
)
def test_a_day_is_as_long_as_its_clock_makes_it(zone_name: str, day: date, hours: float) -> None:
    zone = ZoneInfo(zone_name)
    period = calendar_period("day", datetime(day.year, day.month, day.day, 12, tzinfo=zone).astimezone(UTC), zone=zone)
    assert (period.end - period.start).total_seconds() / 3600 == hours


def test_the_leap_day_belongs_to_february() -> None:
    assert isleap(YEAR)
    period = calendar_period("month", datetime(2028, 2, 29, 23, 59, tzinfo=UTC))
    assert (period.start, period.end) == (datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC))


def test_weeks_begin_on_the_day_that_is_asked_for() -> None:
    at = datetime(2028, 2, 29, 12, tzinfo=UTC)  # a Tuesday
    starts = {day: calendar_period("week", at, week_starts_on=day).start.day for day in ("monday", "tuesday", "wednesday", "sunday")}
    assert starts == {"monday": 28, "tuesday": 29, "wednesday": 23, "sunday": 27}


def test_a_billed_period_is_the_utc_days_that_start_in_it() -> None:
    local = calendar_period("month", datetime(2028, 3, 15, tzinfo=UTC), zone=ZoneInfo("America/New_York"))
    assert local.start == datetime(2028, 3, 1, 5, tzinfo=UTC)
    period = billed_days(local)
    assert (period.start, period.end) == (datetime(2028, 3, 2, tzinfo=UTC), datetime(2028, 4, 2, tzinfo=UTC))
    # Months tile the days of the bill too.
    following = billed_days(calendar_period("month", local.end, zone=ZoneInfo("America/New_York")))
    assert following.start == period.end


@pytest.mark.parametrize("zone_name", ZONES)
def test_hourly_spend_of_a_year_crosses_each_step_once_a_day(zone_name: str) -> None:
    """Ten an hour against a day's 200: steps at 50 and 100 percent are crossed in hours 10 and 20, on days of 23 to 25 hours."""
    zone = ZoneInfo(zone_name)
    at, end = datetime(YEAR, 1, 1, tzinfo=zone).astimezone(UTC), datetime(YEAR + 1, 1, 1, tzinfo=zone).astimezone(UTC)
    told: Counter[int] = Counter()
    period = calendar_period("day", at, zone=zone)
    spent, claimed = Decimal(0), set[int]()
    while at < end:
        if at >= period.end:
            period, spent, claimed = calendar_period("day", at, zone=zone), Decimal(0), set()
        spent += 10
        found = steps_crossed(spent=spent, amount=Decimal(200), steps=[50, 100], claimed=claimed)
        claimed |= set(found.crossed)
        if found.telling is not None:
            told[found.telling] += 1
        at += HOUR
    assert told == {50: 366, 100: 366}


def test_a_year_of_the_watch_tells_each_month_once_and_ends_it_at_its_local_midnight(sqlite_store: Store) -> None:
    watch: Watched = watched(sqlite_store)
    watch.now = datetime(2027, 12, 31, tzinfo=UTC)
    with watch.store.write() as session:
        factories.token_prices(session, "1000000", "1000000")
    for zone in ZONES:
        watch.budget(name=zone, time_zone=zone, steps=[50, 100])
    told: Counter[tuple[str, str, int | None]] = Counter()
    for month in range(1, 13):
        # 60 on the fifth, 50 on the twentieth: half and whole of every zone's month.
        for day, tokens in ((5, 60), (20, 50)):
            watch.now = datetime(YEAR, month, day, 12, tzinfo=UTC)
            watch.use(tokens=tokens)
            told.update(watch.run())
            assert watch.run(timedelta(minutes=2)) == []
        ends = {zone: calendar_period("month", watch.now, zone=ZoneInfo(zone)).end for zone in ZONES}
        for zone, end in sorted(ends.items(), key=lambda pair: pair[1]):
            watch.now = end - timedelta(seconds=1)
            assert [name for _, name, _ in watch.run()] == []
            watch.now = end
            done = watch.run()
            told.update(done)
            assert {(kind, name) for kind, name, _ in done} == {("alert.resolved", zone)}
    assert told == {(kind, zone, step): 12 for kind in ("alert.firing", "alert.resolved") for zone in ZONES for step in (50, 100)}
