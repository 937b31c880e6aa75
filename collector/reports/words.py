"""How a report writes its figures for people, and which charts it shows: shared by page and paper."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from collector.reports.charts import DOWN, FIRM, OPEN, UP, Bar, Chart, bars
from models import money
from models.ledger import Unit

# The reports of a day, a week and a month are one report of another period.
UNITS: Mapping[str, Unit] = {"daily": "day", "weekly": "week", "monthly": "month"}
STEPS = {"volume": "volume", "mix": "mix", "price": "price", "capacity": "capacity", "corrections": "corrections"}
CAUSES_SHOWN = 8
_MOST_NAMED = 3
# More bars than these have no room for their figures: the axis says them.
_MOST_NOTED = 12


def amount(text: str | None, currency: str | None) -> str:
    """``1,234.56 USD``, rounded to the currency's digits; unknown is a word."""
    if text is None:
        return "unknown"
    value = Decimal(text)
    shown = money.shown(value, currency)
    if not shown and value:
        return f"{'<' if value > 0 else '>-'}{Decimal(1).scaleb(-money.minor_digits(currency))} {currency or ''}".strip()
    return f"{shown or abs(shown):,f} {currency or ''}".strip()


def signed(text: str | None, currency: str | None) -> str:
    """An amount with its sign."""
    said = amount(text, currency)
    return f"+{said}" if text is not None and Decimal(text) > 0 and not said.startswith("<") else said


def percent(text: str | None) -> str:
    """``+12.3 %``; a dash where there is nothing to compare with."""
    return "–" if text is None else f"{Decimal(text).quantize(Decimal('0.1')):+,f} %"


def share(text: str | None) -> str:
    """A share of one as percent."""
    return "–" if text is None else f"{(Decimal(text) * 100).quantize(Decimal('0.1'))} %"


def count(value: int | None) -> str:
    """``1,234,567``."""
    return "–" if value is None else f"{value:,}"


def hours(text: str | None) -> str:
    """Core-hours with two digits."""
    return "–" if text is None else f"{Decimal(text).quantize(Decimal('0.01')):,f}"


def name(value: str | None, absent: str = "unallocated") -> str:
    """A name from outside on one line; what is not there is a word. Escaping is the writer's."""
    if value is None or value == "":
        return absent
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in value)


def cut(text: str, length: int) -> str:
    """A text that fits a column."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def unit(body: Mapping[str, Any]) -> Unit:
    """What the report is of."""
    return UNITS[body["kind"]]


def title_of(body: Mapping[str, Any]) -> str:
    """What stands at its top: ``Weekly cost report 2026-W46``, with what it is limited to."""
    return f"{body['kind'].capitalize()} cost report {body[unit(body)]}{limits(body)}"


def limits(body: Mapping[str, Any]) -> str:
    """What a report of a part is limited to, as it follows its title: ``, team risk``."""
    found = []
    for what, names in sorted(body.get("scope", {}).items()):
        shown = ", ".join(cut(name(one), 40) for one in names[:_MOST_NAMED])
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        found.append(f", {what.removesuffix('s') if len(names) == 1 else what} {shown}{more}")
    return "".join(found)


def this(body: Mapping[str, Any]) -> str:
    """The period as people say it: ``week 2026-W46``, ``November 2026``."""
    name = str(body[unit(body)])
    return f"{date.fromisoformat(f'{name}-01'):%B %Y}" if unit(body) == "month" else f"{unit(body)} {name}"


def headline(body: Mapping[str, Any], total: Mapping[str, Any]) -> str:
    """The one sentence a director reads."""
    if total["cost"] is None and total["unpriced_tokens"]:
        return f"{count(total['unpriced_tokens'])} tokens of {this(body)} have no price: what they cost is not known and in no figure here."
    said = f"{amount(total['cost'], total['currency'])} {'on' if unit(body) == 'day' else 'in'} {this(body).removeprefix('day ')}"
    if total["change_percent"] is not None:
        said += f", {percent(total['change_percent'])} against the {unit(body)} before"
    if body.get("standing") == "provisional":
        said += "; provisional until the month is closed"
    days = len(body["provisional_days"])
    if unit(body) == "day" and days:
        said += "; the bill has not reached it and metered figures stand in"
    elif days:
        said += f"; {days} of its days {'is' if days == 1 else 'are'} not billed yet and metered figures stand in"
    return said + "."


def instant(text: str | None, zone: str) -> str:
    """An instant in the report's zone, to the minute."""
    if text is None:
        return "never"
    return f"{datetime.fromisoformat(text).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}"


def charts_of(body: Mapping[str, Any], one: Mapping[str, Any]) -> list[Chart]:
    """The charts of one currency: its days (of a day, its hours), and the way from last period to this one."""
    found: list[Chart] = []
    currency = one["currency"] or ""
    zone = ZoneInfo(body["time_zone"])
    of = unit(body)
    part = "hour" if of == "day" else "day"
    days = [day for day in one[f"{part}s"] if day["cost"] is not None]
    label_of = {"day": "%H", "week": "%a %d %b", "month": "%d"}[of]
    if days:
        given = [
            Bar(
                datetime.fromisoformat(day["from"]).astimezone(zone).strftime(label_of),
                0.0,
                float(day["cost"]),
                _short(day["cost"]) if len(days) <= _MOST_NOTED else "",
                OPEN if day["status"] == "provisional" else FIRM,
            )
            for day in days
        ]
        legend = ((FIRM, "billed"), (OPEN, "not billed yet: metered"))
        says = "; ".join(f"{bar.label}: {_short(day['cost'])} {currency}" for bar, day in zip(given, days, strict=True))
        found.append(bars(f"Cost by {part} ({currency})", says, given, unit=currency, legend=legend))
    fall = one["waterfall"]
    if fall is not None:
        at = float(fall[f"last_{of}"])
        given = [Bar(f"last {of}", 0.0, at, _short(fall[f"last_{of}"]), FIRM)]
        for key, label in STEPS.items():
            step = float(fall[key])
            given.append(Bar(label, at, at + step, _short(fall[key], with_sign=True), UP if step > 0 else DOWN))
            at += step
        given.append(Bar(f"this {of}", 0.0, float(fall[f"this_{of}"]), _short(fall[f"this_{of}"]), FIRM))
        says = "; ".join(f"{bar.label}: {bar.note} {currency}" for bar in given)
        found.append(bars(f"From last {of} to this one ({currency})", says, given, unit=currency, legend=((UP, "more"), (DOWN, "less"))))
    return found


def _short(text: str, *, with_sign: bool = False) -> str:
    value = Decimal(text)
    digits = 2 if abs(value) < 1000 else 0
    said = f"{value.quantize(Decimal(1).scaleb(-digits)):,f}"
    if Decimal(said.replace(",", "")) == 0:
        said = "0"
    return f"+{said}" if with_sign and value > 0 and said != "0" else said
