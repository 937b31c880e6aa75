"""Half-open periods of aware UTC instants, and the calendar that people cut them by.

Every period in meterbridge includes its start and excludes its end. ``now`` is always an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo

from models.errors import InvalidInput

Granularity = Literal["hour", "day", "week", "month", "none"]
GRANULARITIES: tuple[Granularity, ...] = ("hour", "day", "week", "month", "none")

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
# Azure may change a month's usage until the fifth day of the next one (Microsoft Learn, "Understand Cost
# Management data", read 2026); a day's figures count as settled from then on.
SETTLES_AFTER = timedelta(days=5)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)\Z", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d\Z", re.ASCII)
_DECODED_PLUS = re.compile(r"(?<=\d) (?=\d\d:\d\d\Z)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Period:
    """From ``start`` (included) to ``end`` (excluded)."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("a period needs aware instants")
        if self.end < self.start:
            raise InvalidInput(f"the period ends ({rfc3339(self.end)}) before it starts ({rfc3339(self.start)})")

    def __contains__(self, at: datetime) -> bool:
        return self.start <= at < self.end

    def overlap(self, start: datetime | None, end: datetime | None) -> timedelta:
        """How much of the period lies in [start, end); None is unbounded."""
        left = self.start if start is None else max(self.start, start)
        right = self.end if end is None else min(self.end, end)
        return max(right - left, timedelta(0))


def valid_together(one: tuple[datetime | None, datetime | None], other: tuple[datetime | None, datetime | None]) -> bool:
    """Whether two spans of validity (None = open at that end) have an instant in common."""
    (from_one, to_one), (from_other, to_other) = one, other
    return (to_one is None or from_other is None or from_other < to_one) and (to_other is None or from_one is None or from_one < to_other)


def rfc3339(at: datetime) -> str:
    """``2026-11-20T10:00:00Z``; fractions only where there are any."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def to_the_second(at: datetime) -> str:
    """The same for people, who read no fractions."""
    return rfc3339(at.replace(microsecond=0))


def parse_instant(text: str, *, what: str) -> datetime:
    """An RFC 3339 instant with an offset, as aware UTC; digits beyond microseconds are cut."""
    if len(text) > 64 or not _RFC3339.match(text):
        raise InvalidInput(f"{what} is not an RFC 3339 time with an offset (such as 2026-11-20T10:00:00Z): {text[:40]!r}", error="invalid_time")
    try:
        return datetime.fromisoformat(text.replace("z", "Z").replace("t", "T")).astimezone(UTC)
    except (ValueError, OverflowError) as fault:
        raise InvalidInput(f"{what} is not a time that exists: {text[:40]!r}", error="invalid_time") from fault


def parse_bound(text: str, *, what: str) -> datetime:
    """A query bound: an instant, or a date (its UTC midnight)."""
    if _DATE.match(text):
        try:
            return datetime.combine(date.fromisoformat(text), time(), UTC)
        except ValueError as fault:
            raise InvalidInput(f"{what} is not a date that exists: {text!r}", error="invalid_time") from fault
    # A "+" of a query string arrives as a space where the sender did not escape it.
    return parse_instant(_DECODED_PLUS.sub("+", text), what=what)


def zone_from(name: str) -> tzinfo:
    """The IANA time zone of that name."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as fault:
        raise InvalidInput(f"there is no time zone named {name[:60]!r}; use an IANA name such as Europe/Berlin") from fault


def utc_day(at: datetime) -> date:
    """The UTC calendar day that holds the instant."""
    return at.astimezone(UTC).date()


def day_start(day: date) -> datetime:
    """UTC midnight at the start of the day."""
    return datetime.combine(day, time(), UTC)


def month_start(day: date) -> date:
    """The first day of the month."""
    return day.replace(day=1)


def next_month(day: date) -> date:
    """The first day of the following month."""
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


def same_day_next_month(day: date) -> date:
    """The day of that number in the following month, its last one where it has no such day."""
    following = next_month(day)
    return min(following.replace(day=1) + timedelta(days=day.day - 1), next_month(following) - DAY)


def parse_month(text: str, *, what: str) -> date:
    """A calendar month written ``2026-10``, as its first day."""
    year, _, month = text.partition("-")
    digits = year + month
    if not (len(year) == 4 and len(month) == 2 and digits.isascii() and digits.isdigit() and 1 <= int(month) <= 12 and 2000 <= int(year) < 2200):
        raise InvalidInput(f"{what} must be written like 2026-11, not {text[:20]!r}")
    return date(int(year), int(month), 1)


def month_period(day: date) -> Period:
    """The UTC calendar month that holds the day."""
    return Period(day_start(month_start(day)), day_start(next_month(day)))


@dataclass(frozen=True, slots=True, order=True)
class BillingPeriod:
    """The UTC days that one bill is for, from ``start`` up to and without ``end``: a calendar month, but for pay-as-you-go."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if not DAY <= self.end - self.start <= _LONGEST_BILLED:
            raise InvalidInput(f"a bill from {self.start} to {self.end - DAY} is not one of a month")

    @classmethod
    def of_month(cls, day: date) -> BillingPeriod:
        """The calendar month that holds the day."""
        return cls(month_start(day), next_month(day))

    @property
    def is_month(self) -> bool:
        """Whether it is a calendar month."""
        return self.start.day == 1 and self.end == next_month(self.start)

    @property
    def settles_at(self) -> datetime:
        """When its figures stop moving by themselves."""
        return day_start(self.end) + SETTLES_AFTER

    def overlaps(self, other: BillingPeriod) -> bool:
        """Whether a day lies in both."""
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"{self.start:%Y-%m}" if self.is_month else f"{self.start} to {self.end - DAY}"


# A first bill may be for more than a month.
_LONGEST_BILLED = timedelta(days=62)


def settles_at(day: date) -> datetime:
    """When a day's figures stop moving by themselves: its month's end plus five days."""
    return day_start(next_month(day)) + SETTLES_AFTER


def days(period: Period) -> Iterator[date]:
    """The UTC days that the period touches, in order; an empty period touches none."""
    day = utc_day(period.start)
    while period.start < period.end and day_start(day) < period.end:
        yield day
        day += DAY


def floor(at: datetime, granularity: Granularity, zone: tzinfo = UTC) -> datetime:
    """The start of the hour, day, ISO week or month (of ``zone``) that holds the instant, as UTC."""
    local = at.astimezone(zone)
    match granularity:
        case "hour":
            # Subtracting keeps the fold that replace() would lose. Where the clock jumped by half an hour since then
            # (Lord Howe Island), the hour that the clock shows now began with the jump.
            start = at.astimezone(UTC) - _past_the_hour(local)
            return start if _offset(start, zone) == _offset(at, zone) else _clock_change(start, at, zone)
        case "day":
            first = local.date()
        case "week":
            first = local.date() - timedelta(days=local.weekday())
        case "month":
            first = local.date().replace(day=1)
        case "none":
            raise ValueError("granularity none has no calendar start")
    return datetime.combine(first, time(), zone).astimezone(UTC)


def _past_the_hour(local: datetime) -> timedelta:
    return timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)


def _offset(at: datetime, zone: tzinfo) -> timedelta | None:
    return at.astimezone(zone).utcoffset()


def _clock_change(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """The first instant of the offset that ``zone`` has at ``after`` and did not have at ``before``, as UTC."""
    early, late = int(before.timestamp()), -int(-after.timestamp() // 1)
    while late - early > 1:
        middle = (early + late) // 2
        if _offset(datetime.fromtimestamp(middle, UTC), zone) == _offset(after, zone):
            late = middle
        else:
            early = middle
    return datetime.fromtimestamp(late, UTC)


def following(start: datetime, granularity: Granularity, zone: tzinfo = UTC) -> datetime:
    """The start of the next hour, day, week or month after one that starts at ``start``."""
    if granularity == "hour":
        end = start + HOUR - _past_the_hour(start.astimezone(zone))
        return end if _offset(end, zone) == _offset(start, zone) else _clock_change(start, end, zone)
    local = start.astimezone(zone).date()
    match granularity:
        case "day":
            day = local + DAY
        case "week":
            day = local + timedelta(days=7)
        case "month":
            day = next_month(local)
        case _:
            raise ValueError("granularity none has no next start")
    return datetime.combine(day, time(), zone).astimezone(UTC)


def buckets(period: Period, granularity: Granularity, zone: tzinfo = UTC) -> list[Period]:
    """The period cut at calendar boundaries; the first and last may be partial, an empty period gives none."""
    if period.start == period.end:
        return []
    if granularity == "none":
        return [period]
    cuts: list[Period] = []
    start, edge = period.start, floor(period.start, granularity, zone)
    while start < period.end:
        edge = following(edge, granularity, zone)
        cuts.append(Period(start, min(edge, period.end)))
        start = edge
    return cuts
