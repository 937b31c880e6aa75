from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import periods
from models.errors import InvalidInput
from models.periods import Granularity, Period

BERLIN, KOLKATA, LORD_HOWE, KATHMANDU = (ZoneInfo(name) for name in ("Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "Asia/Kathmandu"))
ZONES = (
    UTC,
    BERLIN,
    KOLKATA,
    LORD_HOWE,
    KATHMANDU,
    *(ZoneInfo(name) for name in ("America/New_York", "America/Havana", "Africa/Cairo", "Pacific/Apia", "Pacific/Chatham")),
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def starts(period: Period, granularity: Granularity, zone: tzinfo) -> list[str]:
    return [periods.rfc3339(bucket.start) for bucket in periods.buckets(period, granularity, zone)]


def lengths(period: Period, granularity: Granularity, zone: tzinfo) -> list[float]:
    return [(bucket.end - bucket.start) / timedelta(hours=1) for bucket in periods.buckets(period, granularity, zone)]


def test_people_read_no_fractions_of_a_second() -> None:
    assert periods.to_the_second(utc("2026-11-20T10:00:59.999999")) == "2026-11-20T10:00:59Z"
    assert periods.to_the_second(datetime(2026, 11, 20, 1, tzinfo=BERLIN)) == "2026-11-20T00:00:00Z"


# -- periods ------------------------------------------------------------------------------------


def test_a_period_includes_its_start_and_excludes_its_end() -> None:
    day = Period(utc("2026-11-20"), utc("2026-11-21"))
    assert utc("2026-11-20") in day
    assert utc("2026-11-20T23:59:59.999999") in day
    assert utc("2026-11-21") not in day


def test_a_period_needs_zones_and_order() -> None:
    with pytest.raises(ValueError, match="aware"):
        Period(datetime(2026, 11, 20), utc("2026-11-21"))  # noqa: DTZ001
    with pytest.raises(InvalidInput, match=r"ends .* before it starts"):
        Period(utc("2026-11-21"), utc("2026-11-20"))


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [
        (None, None, 24),
        ("2026-11-20T12:00", None, 12),
        (None, "2026-11-20T06:00", 6),
        ("2026-11-19", "2026-11-20", 0),
        ("2026-11-20T06:00", "2026-11-20T18:00", 12),
        ("2026-12-01", None, 0),
    ],
)
def test_overlap(start: str | None, end: str | None, hours: int) -> None:
    day = Period(utc("2026-11-20"), utc("2026-11-21"))
    assert day.overlap(None if start is None else utc(start), None if end is None else utc(end)) == timedelta(hours=hours)


def test_the_days_that_a_period_touches() -> None:
    assert list(periods.days(Period(utc("2026-02-27T23:00"), utc("2026-03-01T00:00:01")))) == [date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1)]
    assert list(periods.days(Period(utc("2026-02-27"), utc("2026-02-28")))) == [date(2026, 2, 27)]
    assert list(periods.days(Period(utc("2026-02-27T12:00"), utc("2026-02-27T12:00")))) == []


# -- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00"),
        ("2026-11-20t10:00:00z", "2026-11-20T10:00:00"),
        ("2026-11-20 10:00:00Z", "2026-11-20T10:00:00"),
        ("2026-11-20T10:00:00+05:30", "2026-11-20T04:30:00"),
        ("2026-11-20T10:00:00-00:00", "2026-11-20T10:00:00"),
        ("2026-11-20T10:00:00.1234567Z", "2026-11-20T10:00:00.123456"),
        ("2026-11-20T10:00:00.999999999Z", "2026-11-20T10:00:00.999999"),
    ],
)
def test_instants_are_read_with_their_offset(text: str, at: str) -> None:
    assert periods.parse_instant(text, what="time") == utc(at)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-20",
        "2026-11-20T10:00:00",
        "2026-11-20T10:00Z",
        "2026-11-31T10:00:00Z",
        "2026-11-20T25:00:00Z",
        "20261120T100000Z",
        "1763632800",
        "0001-01-01T00:00:00+14:00",
        "٢٠٢٦-11-20T10:00:00Z",
    ],
)
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="time is not a") as refused:
        periods.parse_instant(text, what="time")
    assert refused.value.error == "invalid_time"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-11-20", "2026-11-20T00:00:00"),
        ("2026-11-20T10:00:00+01:00", "2026-11-20T09:00:00"),
        ("2026-11-20T10:00:00 01:00", "2026-11-20T09:00:00"),  # "+" as a query string's decoder leaves it
        ("2026-11-20 10:00:00Z", "2026-11-20T10:00:00"),
        ("2026-11-20 10:00:00 01:00", "2026-11-20T09:00:00"),
    ],
)
def test_bounds_are_dates_or_instants(text: str, at: str) -> None:
    assert periods.parse_bound(text, what="from") == utc(at)


@pytest.mark.parametrize("text", ["2026-02-29", "2026-11", "yesterday", "2026-11-20T10:00:00", "٢٠٢٦-١١-٢٠", "2026-11-20\n"])
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="from is not a"):
        periods.parse_bound(text, what="from")


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_instants_go_round_as_text(at: datetime) -> None:
    assert periods.parse_instant(periods.rfc3339(at), what="time") == at


def test_a_zone_is_an_iana_name() -> None:
    assert periods.zone_from("UTC") is UTC
    assert str(periods.zone_from("Europe/Berlin")) == "Europe/Berlin"
    for name in ("", "Berlin", "../etc/passwd", "Europe/Berlin\0", "Europe"):
        with pytest.raises(InvalidInput, match="there is no time zone"):
            periods.zone_from(name)


# -- months -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "following"),
    [(date(2026, 1, 31), date(2026, 2, 1)), (date(2026, 12, 1), date(2027, 1, 1)), (date(2028, 2, 29), date(2028, 3, 1)), (date(2026, 2, 1), date(2026, 3, 1))],
)
def test_the_next_month(day: date, following: date) -> None:
    assert periods.next_month(day) == following


def test_a_day_settles_five_days_after_its_month() -> None:
    assert periods.settles_at(date(2026, 11, 1)) == periods.settles_at(date(2026, 11, 30)) == utc("2026-12-06")
    assert periods.month_period(date(2028, 2, 10)) == Period(utc("2028-02-01"), utc("2028-03-01"))


def test_months_of_a_zone_end_where_its_calendar_does() -> None:
    year = Period(utc("2026-01-01"), utc("2026-04-10"))
    assert starts(year, "month", BERLIN) == ["2026-01-01T00:00:00Z", "2026-01-31T23:00:00Z", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"]
    assert starts(year, "month", KOLKATA)[1:] == ["2026-01-31T18:30:00Z", "2026-02-28T18:30:00Z", "2026-03-31T18:30:00Z"]


def test_weeks_start_on_monday() -> None:
    assert periods.floor(utc("2026-01-01T12:00"), "week") == utc("2025-12-29")
    assert periods.floor(utc("2026-11-22T23:30"), "week", BERLIN) == utc("2026-11-22T23:00")


# -- clock changes ------------------------------------------------------------------------------


def test_a_day_of_a_clock_change_is_shorter_or_longer() -> None:
    assert lengths(Period(utc("2026-03-27T23:00"), utc("2026-03-30T22:00")), "day", BERLIN) == [24, 23, 24]
    assert lengths(Period(utc("2026-10-23T22:00"), utc("2026-10-26T23:00")), "day", BERLIN) == [24, 25, 24]


def test_the_repeated_hour_is_two_hours() -> None:
    night = Period(utc("2026-10-25T00:00"), utc("2026-10-25T03:00"))
    assert starts(night, "hour", BERLIN) == ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"]
    assert periods.floor(utc("2026-10-25T01:40"), "hour", BERLIN) == utc("2026-10-25T01:00")


def test_hours_of_a_half_hour_zone_start_at_half_past() -> None:
    assert starts(Period(utc("2026-11-20T10:00"), utc("2026-11-20T12:00")), "hour", KOLKATA) == [
        "2026-11-20T10:00:00Z",
        "2026-11-20T10:30:00Z",
        "2026-11-20T11:30:00Z",
    ]
    assert periods.floor(utc("2026-11-20T10:10"), "hour", KATHMANDU) == utc("2026-11-20T09:15")
    assert lengths(Period(utc("2026-11-19T18:30"), utc("2026-11-20T18:30")), "hour", KOLKATA) == [1] * 24


def test_a_clock_change_of_half_an_hour_makes_one_half_hour_and_returns_to_whole_hours() -> None:
    # Lord Howe, 5 April 2026, 02:00 +11:00 becomes 01:30 +10:30.
    autumn = Period(utc("2026-04-04T13:00"), utc("2026-04-04T17:30"))
    assert starts(autumn, "hour", LORD_HOWE) == [
        "2026-04-04T13:00:00Z",
        "2026-04-04T14:00:00Z",
        "2026-04-04T15:00:00Z",
        "2026-04-04T15:30:00Z",
        "2026-04-04T16:30:00Z",
    ]
    assert periods.floor(utc("2026-04-04T15:10"), "hour", LORD_HOWE) == utc("2026-04-04T15:00")
    # 4 October 2026, 02:00 +10:30 becomes 02:30 +11:00.
    spring = Period(utc("2026-10-03T14:30"), utc("2026-10-03T17:00"))
    assert starts(spring, "hour", LORD_HOWE) == ["2026-10-03T14:30:00Z", "2026-10-03T15:30:00Z", "2026-10-03T16:00:00Z"]
    assert periods.floor(utc("2026-10-03T15:45"), "hour", LORD_HOWE) == utc("2026-10-03T15:30")
    assert lengths(Period(utc("2026-10-02T13:30"), utc("2026-10-04T13:00")), "day", LORD_HOWE) == [24, 23.5]


def test_a_day_without_midnight_starts_at_its_first_instant() -> None:
    cairo = ZoneInfo("Africa/Cairo")  # 24 April 2026: 00:00 becomes 01:00
    assert periods.floor(utc("2026-04-24T10:00"), "day", cairo) == utc("2026-04-23T22:00")
    havana = ZoneInfo("America/Havana")  # 1 November 2026: midnight comes twice
    assert periods.floor(utc("2026-11-01T05:30"), "day", havana) == utc("2026-11-01T04:00")


def test_a_day_that_a_zone_left_out() -> None:
    apia = ZoneInfo("Pacific/Apia")  # 30 December 2011 does not exist there
    assert starts(Period(utc("2011-12-29T10:00"), utc("2011-12-31T10:00")), "day", apia) == ["2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"]


def test_no_granularity_is_one_bucket_and_an_empty_period_none() -> None:
    whole = Period(utc("2026-11-20T01:23:45"), utc("2026-12-24"))
    assert periods.buckets(whole, "none") == [whole]
    assert periods.buckets(Period(whole.start, whole.start), "day") == []
    with pytest.raises(ValueError, match="no calendar start"):
        periods.floor(whole.start, "none")


@given(
    st.datetimes(min_value=datetime(2010, 1, 1), max_value=datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(1, 100),
    st.sampled_from(ZONES),
    st.sampled_from(["hour", "day", "week", "month"]),
)
def test_buckets_cover_the_period_once_and_agree_with_floor(start: datetime, hours: int, zone: ZoneInfo, granularity: Granularity) -> None:
    period = Period(start, start + timedelta(hours=hours))
    cut = periods.buckets(period, granularity, zone)
    assert cut[0].start == period.start
    assert cut[-1].end == period.end
    assert all(left.end == right.start for left, right in pairwise(cut))
    for bucket in cut:
        assert bucket.start < bucket.end
        edge = periods.floor(bucket.start, granularity, zone)
        assert edge == bucket.start or bucket is cut[0]
        # Every instant of a bucket belongs to it, to its last microsecond.
        assert periods.floor(bucket.end - timedelta(microseconds=1), granularity, zone) == edge
        assert periods.floor(edge, granularity, zone) == edge
        assert periods.following(edge, granularity, zone) >= bucket.end


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ((1, 3), (2, 4), True),
        ((1, 3), (3, 4), False),  # half-open: the end of one is the start of the other
        ((3, 4), (1, 3), False),
        ((None, 2), (1, None), True),
        ((None, 1), (1, None), False),
        ((None, None), (2, 3), True),
    ],
)
def test_spans_of_validity_meet_where_they_share_an_instant(one: tuple[int | None, int | None], other: tuple[int | None, int | None], *, meet: bool) -> None:
    def at(day: int | None) -> datetime | None:
        return None if day is None else utc(f"2026-11-0{day}")

    first, second = (at(one[0]), at(one[1])), (at(other[0]), at(other[1]))
    assert periods.valid_together(first, second) is periods.valid_together(second, first) is meet
