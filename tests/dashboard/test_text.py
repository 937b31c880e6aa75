from datetime import UTC, date, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from dashboard import text
from models.periods import Period


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (Decimal("1234.565"), "USD", "1,234.56 USD"),
        (Decimal("1234.575"), "USD", "1,234.58 USD"),
        (Decimal("-0.5"), "EUR", "-0.50 EUR"),
        (Decimal("1234567.5"), "JPY", "1,234,568 JPY"),
        (Decimal("1.2345"), "KWD", "1.234 KWD"),
        (Decimal("0.004"), "USD", "<0.01 USD"),
        (Decimal("-0.004"), "USD", ">-0.01 USD"),
        (Decimal("0.3"), "KRW", "<1 KRW"),
        (Decimal("-0"), "USD", "0.00 USD"),
        (Decimal(7), None, "7.00 (no currency)"),
        (None, "USD", "unknown"),
    ],
)
def test_money_is_written_with_its_code_and_never_shrinks_to_zero(amount: Decimal | None, currency: str | None, shown: str) -> None:
    assert text.money(amount, currency) == shown


def test_titles_hold_every_digit() -> None:
    assert text.money_exactly(Decimal("0.00001234500"), "USD") == "0.000012345 USD"


@pytest.mark.parametrize(
    ("share", "shown"),
    [("1", "100 %"), ("1378.762", "137,876.2 %"), ("0.9996", ">99.9 %"), ("0.984", "98.4 %"), ("0.0003", "<0.1 %"), ("0", "0 %"), (None, "unknown")],
)
def test_a_share_is_whole_only_when_it_is(share: str | None, shown: str) -> None:
    assert text.percent(None if share is None else Decimal(share)) == shown


def test_counts() -> None:
    assert text.count(1234567) == "1,234,567"
    assert text.count(None) == "unknown"
    assert text.tokens(12_345_678) == "12.3 M"
    assert text.tokens(4_200_000_000) == "4.2 G"
    assert text.tokens(999_999) == "999,999"
    assert text.hours(Decimal("4320.04")) == "4,320.0"


def test_an_end_at_midnight_is_the_day_before_it() -> None:
    assert text.until(datetime(2026, 11, 18, tzinfo=UTC)) == "end of 17 Nov 2026"
    assert text.until(datetime(2026, 11, 18, 9, 30, tzinfo=UTC)) == "18 Nov 2026, 09:30 UTC"
    assert text.until(None) == "nothing yet"


def test_periods_are_said_with_their_last_day_included() -> None:
    day = datetime(2026, 11, 1, tzinfo=UTC)
    assert text.span(Period(day, datetime(2026, 11, 8, tzinfo=UTC))) == "1 Nov to 7 Nov 2026"
    assert text.span(Period(day, datetime(2026, 11, 2, tzinfo=UTC))) == "1 Nov 2026"
    assert text.span(Period(datetime(2025, 12, 30, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))) == "30 Dec 2025 to 1 Jan 2026"
    zurich = Period(datetime(2026, 10, 31, 23, tzinfo=UTC), datetime(2026, 11, 30, 23, tzinfo=UTC))
    assert text.span(zurich, ZoneInfo("Europe/Zurich")) == "1 Nov to 30 Nov 2026"
    assert text.span(zurich) == "31 Oct 2026, 23:00 UTC to 30 Nov 2026, 23:00 UTC"
    assert text.span(Period(day, datetime(2026, 11, 1, 6, tzinfo=UTC))) == "1 Nov 2026, 00:00 UTC to 1 Nov 2026, 06:00 UTC"
    assert text.day(date(2026, 2, 3)) == "3 Feb 2026"


@pytest.mark.parametrize(("seconds", "said"), [(5, "just now"), (-30, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (200_000, "2 days ago")])
def test_ages(seconds: int, said: str) -> None:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    assert text.ago(datetime.fromtimestamp(now.timestamp() - seconds, UTC), now) == said


def test_names_show_what_they_hide() -> None:
    assert text.name("\u202egnp.exe") == "\\u202egnp.exe"
    assert text.name("a\tb\x00\u200b") == "a\\u0009b\\u0000\\u200b"
    assert text.name("Zürich 東京") == "Zürich 東京"
    assert text.name(None) == "unallocated"
    assert text.name("  ") == "(empty name)"


def test_long_names_keep_both_ends() -> None:
    assert text.short("deployment-" + "x" * 40 + "-blue", 21) == "deployment…xxxxx-blue"
    assert len(text.short("d" * 256, 40)) == 40
    assert text.short("short") == "short"
