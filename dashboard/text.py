"""How figures, instants and names are written for people: the only formatter of the pages.

Locale-neutral: ``1,234.56 USD`` reads the same everywhere, and the currency's code stands where a symbol could be
the wrong one. A number that is not known is a word, never a zero. Names come from outside and may hold anything;
``visible`` makes what a screen would hide or obey readable, and nothing here ever yields markup.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any

from models import money as exact
from models.ledger import Kind
from models.periods import DAY, Granularity, Period, day_start, floor, rfc3339
from models.variance import Cause

UNKNOWN = "unknown"
UNALLOCATED = "unallocated"

# Characters that draw nothing or change the order in which others are drawn: controls, bidirectional overrides,
# zero-width joiners, line separators, lone surrogates, private use.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def money(amount: Decimal | None, currency: str | None) -> str:
    """``1,234.56 USD``; an amount too small for the currency's last digit says so instead of showing zero."""
    if amount is None:
        return UNKNOWN
    rounded = exact.shown(amount, currency)
    unit = currency or "(no currency)"
    if rounded == 0 and amount != 0:
        smallest = Decimal(1).scaleb(-exact.minor_digits(currency))
        return f"{'<' if amount > 0 else '>-'}{smallest} {unit}"
    return f"{abs(rounded) if rounded == 0 else rounded:,f} {unit}"


def money_exactly(amount: Decimal | None, currency: str | None) -> str:
    """Every digit that is known, for titles and files."""
    return UNKNOWN if amount is None else f"{exact.text(amount)} {currency or '(no currency)'}"


def count(value: int | None) -> str:
    """``1,234,567``."""
    return UNKNOWN if value is None else f"{value:,}"


def quantity(value: Decimal) -> str:
    """``1,234.5``: every digit that says something."""
    written = f"{value:,f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


def tokens(value: int | None) -> str:
    """Three figures that fit a tile: ``12.3 M``; small counts stay whole."""
    if value is None:
        return UNKNOWN
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if abs(value) >= size:
            return f"{Decimal(value) / size:,.1f} {unit}"
    return f"{value:,}"


def hours(value: Decimal | None) -> str:
    """``1,234.5`` hours, without the unit."""
    return UNKNOWN if value is None else f"{value.quantize(Decimal('0.1')):,f}"


def percent(share: Decimal | None) -> str:
    """A share between 0 and 1 as ``98.4 %``; never rounded up to all or down to nothing."""
    if share is None:
        return UNKNOWN
    value = (share * 100).quantize(Decimal("0.1"))
    if value >= 100 and share < 1:
        return ">99.9 %"
    if value == 0 and share > 0:
        return "<0.1 %"
    return f"{Decimal(exact.text(value)):,} %"


def figure(value: Decimal | int | None, kind: Kind, unit: str | None = None) -> str:
    """A figure as its kind is written."""
    if kind == "money":
        return money(None if value is None else Decimal(value), unit)
    if value is None:
        return UNKNOWN
    match kind:
        case "tokens" | "count":
            return count(int(value))
        case "share":
            return percent(Decimal(value))
        case "hours":
            return hours(Decimal(value))
        case "rate":
            return quantity(Decimal(value))


def figure_exactly(value: Decimal | int | None, kind: Kind, unit: str | None = None) -> str:
    """Every digit of a figure that is known."""
    if kind == "money":
        return money_exactly(None if value is None else Decimal(value), unit)
    return UNKNOWN if value is None else exact.text(Decimal(value))


def day(value: date) -> str:
    """``20 Nov 2026``."""
    return f"{value.day} {value:%b %Y}"


def instant(at: datetime | None) -> str:
    """``20 Nov 2026, 23:56 UTC``."""
    return "never" if at is None else f"{day(at.astimezone(UTC).date())}, {at.astimezone(UTC):%H:%M} UTC"


def minute(at: datetime) -> str:
    """``2026-11-20 23:56``, in UTC: as forms take it back."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def until(at: datetime | None) -> str:
    """How far something reaches: an end at midnight is the day before it."""
    if at is None:
        return "nothing yet"
    here = at.astimezone(UTC)
    if here == day_start(here.date()):
        return f"end of {day((here - DAY).date())}"
    return instant(here)


def ago(at: datetime | None, now: datetime) -> str:
    """``3 minutes ago``, in the largest unit that fits."""
    if at is None:
        return ""
    seconds = int((now - at) / timedelta(seconds=1))
    if seconds < 60:
        return "just now"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            number = seconds // size
            return f"{number} {unit}{'' if number == 1 else 's'} ago"
    return "just now"


def span(period: Period, zone: tzinfo = UTC) -> str:
    """``22 Oct to 20 Nov 2026``: days of the zone as people say them, the last one included; instants where days do not fit."""
    start, end = period.start.astimezone(zone), period.end.astimezone(zone)
    if start == end or any(at != floor(at, "day", zone) for at in (start, end)):
        return f"{instant(start)} to {instant(end)}"
    last = (end - DAY).date()
    if last == start.date():
        return day(last)
    first = f"{start.day} {start:%b}" if start.year == last.year else day(start.date())
    return f"{first} to {day(last)}"


def bucket(period: Period, granularity: Granularity) -> str:
    """The name of one bar."""
    start = period.start.astimezone(UTC)
    match granularity:
        case "hour":
            return f"{start.day} {start:%b %Y, %H:%M} UTC"
        case "day":
            return f"{start:%a} {day(start.date())}"
        case "month":
            return f"{start:%B %Y}"
        case _:
            return span(period)


def visible(name: str) -> str:
    """The name with every hidden character written out, so that two names that differ look different."""
    if name.isascii() and name.isprintable():
        return name
    return "".join(f"\\u{ord(letter):04x}" if unicodedata.category(letter) in _HIDDEN else letter for letter in name)


def name(value: str | None, *, absent: str = UNALLOCATED) -> str:
    """A name as a label; ``absent`` stands for none at all."""
    if value is None:
        return absent
    return visible(value) if value.strip() else "(empty name)"


def short(label: str, length: int = 32) -> str:
    """The label cut in the middle: the ends of generated names tell them apart."""
    if len(label) <= length:
        return label
    head = (length - 1) // 2
    return f"{label[:head]}…{label[-(length - 1 - head) :]}"


_CAUSES: dict[str, str] = {
    Cause.UNMAPPED_METER: "meter we cannot map",
    Cause.NOT_METERED: "not metered (hosting, commitments)",
    Cause.CREDIT_OR_REFUND: "credit or refund",
    Cause.CURRENCY: "currency without a rate",
    Cause.UNIT_MISMATCH: "unit slip",
    Cause.PRICE_DIFFERENCE: "price difference",
    Cause.UNKNOWN_TOKENS: "calls of unknown tokens",
    Cause.NOT_INSTRUMENTED: "not instrumented",
    Cause.NOT_YET_BILLED: "not yet billed",
    Cause.TIMING: "timing",
    Cause.UNMETERED_USAGE: "calls past the instruments",
    Cause.UNBILLED_USAGE: "metered, never billed",
    Cause.ROUNDING: "rounding",
    Cause.UNEXPLAINED: "unexplained",
}


def cause(value: str) -> str:
    """Why billed differs from expected, as people say it; a name that is no such cause in its own words."""
    return _CAUSES.get(value, words(value))


def words(value: str) -> str:
    """``managed_compute`` as people write it."""
    return value.replace("_", " ")


def exact_instant(at: datetime | None) -> str:
    """RFC 3339, for titles and files."""
    return "" if at is None else rfc3339(at)


def spoken(label: str) -> dict[str, Any]:
    """The attribute that names a part of a page to those who hear it."""
    return {"aria-label": label}
