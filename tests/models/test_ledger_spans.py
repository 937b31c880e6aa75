"""The day, week or month of a report, by its name."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from models import ledger
from models.errors import InvalidInput
from models.periods import Period
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00, a Friday of W47


def utc(month: int, day: int, hour: int = 0) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("unit", "name", "zone", "expected", "period"),
    [
        ("day", None, "UTC", "2026-11-19", Period(utc(11, 19), utc(11, 20))),
        # It is the 20th, 23 h in Auckland: the last complete day is the 19th there.
        ("day", None, "Pacific/Auckland", "2026-11-19", Period(utc(11, 18, 11), utc(11, 19, 11))),
        ("day", None, "Pacific/Kiritimati", "2026-11-20", Period(utc(11, 19, 10), utc(11, 20, 10))),
        # The clocks of Berlin go back: the day has 25 hours.
        ("day", "2026-10-25", "Europe/Berlin", "2026-10-25", Period(utc(10, 24, 22), utc(10, 25, 23))),
        ("week", None, "UTC", "2026-W46", Period(utc(11, 9), utc(11, 16))),
        ("month", None, "UTC", "2026-10", Period(utc(10, 1), utc(11, 1))),
        ("month", "2026-11", "America/New_York", "2026-11", Period(utc(11, 1, 4), utc(12, 1, 5))),
    ],
)
def test_a_span_is_a_day_week_or_month_of_its_zone(unit: ledger.Unit, name: str | None, zone: str, expected: str, period: Period) -> None:
    found = ledger.span_of(unit, name, now=NOW, time_zone=zone)
    assert (found.name, found.period, found.unit) == (expected, period, unit)


@pytest.mark.parametrize(
    ("unit", "name"),
    [("day", "2026-11-31"), ("day", "20261119"), ("day", "2026-W47-4"), ("day", ""), ("month", "2026-13"), ("month", "1999-12"), ("month", "x")],
)
def test_one_that_does_not_exist_is_refused(unit: ledger.Unit, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"a {unit} is written like"):
        ledger.span_of(unit, name, now=NOW)
