"""The day, week or month that a report is of, by its name in a time zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

from models.errors import InvalidInput
from models.ledger.weekly import Unit, Week, week_of
from models.periods import Period, floor, following, zone_from

_LIKE = {"day": "2026-11-19", "month": "2026-10"}


def span_of(unit: Unit, name: str | None, *, now: datetime, time_zone: str = "UTC") -> Week:
    """The day (2026-11-19), ISO week (2026-W46) or month (2026-10) of that name; the last complete one for None."""
    if unit == "week":
        return week_of(name, now=now, time_zone=time_zone)
    zone = zone_from(time_zone)
    if name is None:
        start = floor(floor(now, unit, zone) - timedelta(hours=12), unit, zone)
    else:
        start = datetime.combine(_first(unit, name), time(), zone).astimezone(UTC)
    local = start.astimezone(zone).date()
    return Week(local.isoformat() if unit == "day" else f"{local:%Y-%m}", Period(start, following(start, unit, zone)), time_zone, unit)


def _first(unit: Unit, name: str) -> date:
    written = name if unit == "day" else f"{name}-01"
    try:
        first = date.fromisoformat(written)
    except ValueError:
        first = date.min
    if first.isoformat() != written or not 2000 <= first.year < 2200:
        raise InvalidInput(f"a {unit} is written like {_LIKE[unit]} and must exist, from 2000 on; not {name[:20]!r}")
    return first
