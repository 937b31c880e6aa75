"""How a report writes its figures for people, and which charts it shows: shared by page and paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from collector.reports.charts import DOWN, FIRM, OPEN, UP, Bar, Chart, bars
from models import money
from models.ledger import Unit

# The reports of a day, a week and a month are one report of another period.
UNITS: Mapping[str, Unit] = {"daily": "day", "weekly": "week", "monthly": "month"}
STEPS = {"volume": "volume", "mix": "mix", "price": "price", "capacity": "capacity", "idle": "idle", "corrections": "corrections"}
CAUSES_SHOWN = 8
# More bars than these have no room for their figures: the axis says them.
_MOST_NOTED = 12
_MOST_NAMED = 7
_SMALL_STEPS = 0.25


def amount(text: str | None, currency: str | None) -> str:
    """``1,234.56 USD``, rounded to the currency's digits; unknown is a word."""
    if text is None:
        return "unknown"
    return money.said(Decimal(text), currency)


def signed(text: str | None, currency: str | None) -> str:
    """An amount with its sign."""
    said = amount(text, currency)
    return f"+{said}" if text is not None and Decimal(text) > 0 and not said.startswith("<") else said


def percent(text: str | None) -> str:
    """``+12.3 %``; a dash where there is nothing to compare with."""
    if text is None:
        return "–"
    shown = Decimal(text).quantize(Decimal("0.1"))
    return f"{shown:+,f} %" if shown else "0.0 %"


def plain_percent(text: str | None) -> str:
    """``87.5 %``, of a limit or a budget; a dash where there is none."""
    return "–" if text is None else f"{Decimal(text).quantize(Decimal('0.1')):,f} %"


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


def named(line: Mapping[str, Any], key: str, absent: str = "unallocated") -> str:
    """What a line is of, by one of its names; a mode is two words."""
    return name(line[key].replace("_", " ") if key == "mode" and line[key] else line[key], absent)


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
    """The one sentence a director reads; which days are not billed yet stands below it (``missing_days``)."""
    if total["cost"] is None and total["unpriced_tokens"]:
        return f"{count(total['unpriced_tokens'])} {'token' if total['unpriced_tokens'] == 1 else 'tokens'} of {this(body)} without a price: what they cost is not known and in no figure here."
    said = f"{amount(total['cost'], total['currency'])} {'on' if unit(body) == 'day' else 'in'} {this(body).removeprefix('day ')}"
    if total["change_percent"] is not None:
        said += f", {percent(total['change_percent'])} against the {unit(body)} before"
    if body.get("standing") == "provisional":
        said += "; provisional until the month is closed"
    if unit(body) == "day" and body["provisional_days"]:
        said += "; the bill has not reached it and metered figures stand in"
    return said + "."


def day(text: str, zone: str) -> str:
    """The day of an instant in the report's zone."""
    return f"{datetime.fromisoformat(text).astimezone(ZoneInfo(zone)):%d %b %Y}"


def missing_days(body: Mapping[str, Any]) -> str:
    """The days that no bill has reached, by name; '' where there are none."""
    days = [date.fromisoformat(one) for one in body["provisional_days"]]
    if not days:
        return ""
    said = ", ".join(f"{one:%a %d %b}" for one in days[:_MOST_NAMED]) + (f" and {len(days) - _MOST_NAMED} more" if len(days) > _MOST_NAMED else "")
    why = "" if alike(body) else ", so that there the change compares metered with billed"
    return f"Not billed yet: {said}. Metered figures stand in{why}."


def alike(body: Mapping[str, Any]) -> str:
    """The change over the days that are billed alone; '' where that is no other figure than the week's, and in snapshots of before."""
    last = f"last_{unit(body)}"
    told = [(one["currency"], of) for one in body["currencies"] if (of := one.get("like_for_like")) and None not in (of["cost"], of[f"{last}_cost"])]
    if not told:
        return ""
    of = told[0][1]
    days, before = _stretches(of["days"]), _stretches(of[f"days_{last}"])
    sums = "; ".join(
        f"{amount(of['cost'], code)} against {amount(of[f'{last}_cost'], code)}"
        + (f" ({percent(of['change_percent'])})" if of["change_percent"] is not None else "")
        for code, of in told[:_MOST_NAMED]
    )
    return f"Like for like, the billed {'day' if len(of['days']) == 1 else 'days'} {days} against {before}: {sums}."


def _stretches(days: Sequence[str]) -> str:
    """Days as runs: ``Mon 16 Nov to Wed 18 Nov, Fri 20 Nov``."""
    runs: list[list[date]] = []
    for one in map(date.fromisoformat, days):
        if runs and (one - runs[-1][-1]).days == 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    return ", ".join(f"{run[0]:%a %d %b}" + (f" to {run[-1]:%a %d %b}" if len(run) > 1 else "") for run in runs)


def restated(body: Mapping[str, Any]) -> str:
    """What a restatement comes to; '' of a first report."""
    lines = body.get("restatement") or ()
    if not body["snapshot"]["number"]:
        return ""
    sums: dict[str | None, Decimal] = {}
    for line in lines:
        sums[line["currency"]] = money.plus(sums.get(line["currency"], money.ZERO), Decimal(line["delta"] or 0))
    said = ", ".join(signed(money.text(total), currency) for currency, total in sorted(sums.items(), key=str))
    changed = f"{said} in {count_of(len(lines), 'line')}, below" if lines else "no cost changed"
    return f"Restatement {body['snapshot']['number']} of this report: {changed}."


def matched(one: Mapping[str, Any]) -> str:
    """Bill against metering in a sentence."""
    of, code = one["reconciliation"], one["currency"]
    if of is None:
        return ""
    return (
        f"Expected {amount(of['expected'], code)}, billed {amount(of['billed'], code)}: a gap of "
        f"{signed(of['variance'], code)}, of which {amount(of['unexplained'], code)} is unexplained."
    )


def tiles_of(body: Mapping[str, Any], total: Mapping[str, Any], one: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few figures that stand first, each with what it is."""
    code, of = one["currency"], unit(body)
    like = one.get("like_for_like")
    found = [
        (amount(total["cost"], code), "cost: billed, else metered"),
        (percent(total["change_percent"]), f"against {amount(total[f'last_{of}']['cost'], code)} the {of} before"),
        *([(percent(like["change_percent"]), f"like for like: {count_of(len(like['days']), 'billed day')} against the same weekdays")] if like else []),
        (amount(total["billed_cost"], code), "of it billed"),
        (count(total["input_tokens"] + total["output_tokens"]), f"tokens in {count_of(total['requests'], 'request')}"),
    ]
    if total["core_hours"] is not None and Decimal(total["core_hours"]):
        found.append((hours(total["core_hours"]), "core-hours"))
    found.append((share(total["coverage"]), "of the bill was metered"))
    ahead = one["forecast"]
    if ahead is not None and ahead["month_end"] is not None:
        found.append((amount(ahead["month_end"], code), f"expected for {forecast_month(body)}; {amount(ahead['month_to_date'], code)} so far"))
    return found


def forecast_month(body: Mapping[str, Any]) -> str:
    """The month that the forecast is of: the one in which the report was made, which the report itself need not be of."""
    return f"{datetime.fromisoformat(body['snapshot']['made_at']):%B}"


def count_of(number: int, what: str, many: str = "") -> str:
    """``1 day``, ``2 days``."""
    return f"{count(number)} {what if number == 1 else many or what + 's'}"


def of_requests(part: int, total: Mapping[str, Any], key: str) -> str:
    """How much of all requests that is, in brackets; nothing of what counts no requests."""
    requests = total.get("requests") or 0
    if not requests or not key.endswith("_requests"):
        return ""
    return f" ({money.QUOTIENT.divide(Decimal(100 * part), Decimal(requests)).quantize(Decimal('0.1'))} %)"


_LACKING = {
    "unpriced_tokens": (("token", "has no price"), ("tokens", "have no price")),
    "unknown_token_requests": (("request", "did not say its tokens"), ("requests", "did not say their tokens")),
    "estimated_token_requests": (("request", "has estimated tokens"), ("requests", "have estimated tokens")),
}


def lacking(key: str, total: Mapping[str, Any], share: str = "") -> str:
    """How much of a total lacks what the key says: ``2 requests did not say their tokens``; ``share`` stands behind the number."""
    what, lacks = _LACKING[key][total[key] != 1]
    return f"{count(total[key])} {what}{share} {lacks}"


def not_certain(total: Mapping[str, Any]) -> str:
    """What is in no figure here, or not certain; '' where there is nothing."""
    said = [f"{lacking(key, total)}{of_requests(total[key], total, key)}" for key in _LACKING if total[key]]
    return f"Not in these figures or not certain: {'; '.join(said)}." if said else ""


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
        given = [Bar(last(of), 0.0, at, _short(fall[f"last_{of}"]), FIRM)]
        for key, label in STEPS.items():
            if fall.get(key) is None:
                continue  # not known apart: another step has it
            step = float(fall[key])
            given.append(Bar(label, at, at + step, _short(fall[key], with_sign=True), UP if step > 0 else DOWN))
            at += step
        given.append(Bar(f"this {of}", 0.0, float(fall[f"this_{of}"]), _short(fall[f"this_{of}"]), FIRM))
        says = "; ".join(f"{bar.label}: {bar.note} {currency}" for bar in given)
        levels = [given[0].end, given[-1].end, *(level for bar in given[1:-1] for level in (bar.start, bar.end))]
        # Small steps from one large bar to the other could not be seen from zero.
        low, high = min(levels, default=0.0), max(levels, default=0.0)
        base = low - 2 * (high - low) if low > 0 and high - low < low * _SMALL_STEPS else 0.0
        title = f"{way(of)} ({currency}){', the axis does not begin at zero' if base else ''}"
        found.append(bars(title, says, given, unit=currency, legend=((UP, "more"), (DOWN, "less")), base=base))
    return found


def last(of: Unit) -> str:
    """The period before, as a column's head and a bar's name."""
    return "day before" if of == "day" else f"last {of}"


def way(of: Unit) -> str:
    """What stands above the steps from the period before to this one."""
    return "From the day before to this one" if of == "day" else f"From last {of} to this one"


def steps_of(body: Mapping[str, Any], one: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The way from last time to this one as heads and figures; both empty where it is not known."""
    fall, code, of = one["waterfall"], one["currency"], unit(body)
    if fall is None:
        return [], []
    steps = [(label, fall[key]) for key, label in STEPS.items() if fall.get(key) is not None]
    heads = [f"#{last(of).capitalize()}", *(f"#{label.capitalize()}" for label, _ in steps), f"#This {of}"]
    return heads, [amount(fall[f"last_{of}"], code), *(signed(step, code) for _, step in steps), amount(fall[f"this_{of}"], code)]


def span(body: Mapping[str, Any]) -> str:
    """What time the report is of, and when it was made."""
    snapshot, zone = body["snapshot"], body["time_zone"]
    said = f"{instant(body['from'], zone)} to {instant(body['to'], zone)} · "
    if snapshot["id"] is None:
        return f"{said}as of {instant(snapshot['made_at'], zone)}: {snapshot['reason']}"
    again = f", restatement {snapshot['number']}" if snapshot["number"] else ""
    return f"{said}made {instant(snapshot['made_at'], zone)}{again}"


def terms(body: Mapping[str, Any]) -> str:
    """The words of a report that not everybody knows."""
    said = "Each amount is rounded for itself: parts may differ from their sum in the last digit."
    if body["kind"] == "close":
        return f"Journal lines are split to the last digit and add up. Elsewhere: {said[0].lower()}{said[1:]}"
    return (
        "Cost: billed where the bill reaches, metered after it (basis best). Provisional: not billed yet. Settling: billed, and Azure may still change it until five days "
        f"after its month. Settled: billed and past that. Estimate: a share of what is billed in one sum for several. {said}"
    )


def age(body: Mapping[str, Any]) -> str:
    """How old the data is."""
    until, zone = body["data_age"], body["time_zone"]
    metered = f"Metered until {instant(until['metered_until'], zone)}" if until["metered_until"] else "Nothing is metered yet"
    billed = f"billed until {instant(until['billed_until'], zone)}" if until["billed_until"] else "no bill says yet how far it reaches"
    return f"{metered}, {billed}."


def _short(text: str, *, with_sign: bool = False) -> str:
    value = Decimal(text)
    digits = 2 if abs(value) < 1000 else 0
    said = f"{value.quantize(Decimal(1).scaleb(-digits)):,f}"
    if Decimal(said.replace(",", "")) == 0:
        said = "0"
    return f"+{said}" if with_sign and value > 0 and said != "0" else said
