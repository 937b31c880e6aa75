"""What a cost report says and in which order: one page that a director reads, then the detail. Page and paper only draw it.

The detail is complete in itself, so that the first page may leave out what it has no room for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collector.reports import context, words
from collector.reports.charts import Chart
from collector.reports.closepack import SUM, Table, causes_of

# So many currencies have their boxes on the first page; of more each has a line in its tables, up to what a page holds.
_MOST_IN_BOXES, _MOST_IN_FRONT = 2, 5
# Of several currencies fewer have room, and of many one each.
_MOST_MOVERS, _FEWER_MOVERS = 5, 3
_MOVED = ("Workspace", "Deployment", "#Change", "#Now", "Why")

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """What is said together, of one currency or of all; ``caution`` is what its figures lack."""

    title: str
    tiles: Sequence[tuple[str, str]] = ()
    caution: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Front:
    """The first page: a sentence for each currency (``more`` for those it has no room for), what one must know, and the figures."""

    leads: Sequence[str]
    more: str
    known: Sequence[str]
    parts: Sequence[Part]


def front(body: Mapping[str, Any]) -> Front:
    """What stands on the first page, whatever the currencies."""
    both = list(zip(body["totals"], body["currencies"], strict=True))
    shown = both[:_MOST_IN_FRONT]
    leads = [words.headline(body, total) for total, _ in shown]
    if not both:
        leads = [f"Nothing was used and nothing was billed in this {words.unit(body)} or the one before."]
    left = len(both) - len(shown)
    priced = [(total, one) for total, one in shown if total["cost"] is not None]
    return Front(
        leads,
        f"{words.count_of(left, 'more currency', 'more currencies')}: see the detail." if left else "",
        [said for said in (words.restated(body), words.missing_days(body), words.alike(body), *context.sentences(body)) if said],
        _in_lines(body, priced) if len(both) > _MOST_IN_BOXES else [_in_a_box(body, total, one, is_alone=len(both) == 1) for total, one in priced],
    )


def detail(body: Mapping[str, Any]) -> list[Part]:
    """All that the report says, part by part: what a restatement changes, each currency, what stands beside the money."""
    restated = [
        [
            *(words.name(line[key]) for key in ("workspace", "deployment")),
            *(words.amount(line[key], line["currency"]) for key in ("was", "is")),
            words.signed(line["delta"], line["currency"]),
        ]
        for line in body.get("restatement") or ()
    ]
    found = [Part("", tables=[Table("What this restatement changes", ("Workspace", "Deployment", "#Was", "#Is", "#Difference"), restated)])] if restated else []
    both = zip(body["totals"], body["currencies"], strict=True)
    found += [_of_currency(body, total, one) if total["cost"] is not None else _of_no_price(one) for total, one in both]
    beside = context.tables(body)
    return [*found, Part("", tables=beside)] if beside else found


def _in_a_box(body: Mapping[str, Any], total: Figures, one: Figures, *, is_alone: bool) -> Part:
    """One currency on the first page: with charts where it is the only one."""
    tables: list[Table] = []
    heads, steps = words.steps_of(body, one)
    if steps and not is_alone:
        tables.append(Table(words.way(words.unit(body)), heads, [steps]))
    if moved := _moved(one, most=_MOST_MOVERS if is_alone else _FEWER_MOVERS):
        tables.append(Table("What moved most", _MOVED, moved))
    said = words.matched(one)
    return Part(
        one["currency"] or "No currency",
        words.tiles_of(body, total, one),
        words.not_certain(total),
        words.charts_of(body, one) if is_alone else (),
        tables,
        f"Bill against metering. {said}" if said else "",
    )


def _in_lines(body: Mapping[str, Any], both: Sequence[tuple[Figures, Figures]]) -> list[Part]:
    """Several currencies on the first page: the same figures, a line of each table for each."""
    unit = words.unit(body)
    figures: list[Sequence[str]] = []
    lacking: list[str] = []
    falls: dict[str, dict[str, str]] = {}
    moved: list[Sequence[str]] = []
    matched: list[Sequence[str]] = []
    for total, one in both:
        code = one["currency"]
        ahead, of = one["forecast"], one["reconciliation"]
        figures.append(
            [
                words.name(code),
                words.amount(total["cost"], code),
                words.percent(total["change_percent"]),
                words.amount(total["billed_cost"], code),
                words.count(total["input_tokens"] + total["output_tokens"]),
                words.hours(total["core_hours"]),
                words.amount(ahead["month_end"], code) if ahead is not None and ahead["month_end"] is not None else "–",
            ]
        )
        if said := words.not_certain(total):
            lacking.append(f"{code}: {said}")
        heads, steps = words.steps_of(body, one)
        falls[code] = dict(zip(heads, steps, strict=True))
        moved += _moved(one, most=_FEWER_MOVERS if len(both) <= _FEWER_MOVERS else 1)
        if of is not None:
            matched.append(
                [
                    words.name(code),
                    *(words.amount(of[key], code) for key in ("expected", "billed")),
                    words.signed(of["variance"], code),
                    words.amount(of["unexplained"], code),
                    words.share(total["coverage"]),
                ]
            )
    # In the order of the steps: what one currency has not, another may.
    every = [f"#{words.last(unit).capitalize()}", *(f"#{label.capitalize()}" for label in words.STEPS.values()), f"#This {unit}"]
    order = [head for head in every if any(head in fall for fall in falls.values())]
    tables = [
        Table(
            "By currency",
            ("", f"#This {unit}", "#Change", "#Billed", "#Tokens", "#Core-hours", f"#Expected for {words.forecast_month(body)}"),
            figures,
            "\n".join(lacking),
        ),
        Table(
            words.way(words.unit(body)), ["", *order], [[words.name(code), *(fall.get(head, "–") for head in order)] for code, fall in falls.items() if fall]
        ),
        Table("Bill against metering", ("", "#Expected", "#Billed", "#Gap", "#Unexplained", "#Of the bill metered"), matched),
        Table("What moved most", _MOVED, moved),
    ]
    return [Part("", tables=[table for table in tables if table.rows])]


def _of_currency(body: Mapping[str, Any], total: Figures, one: Figures) -> Part:
    code, unit = one["currency"], words.unit(body)
    tables: list[Table] = []
    for title, key, columns, absent in (
        ("By workspace", "workspaces", ("workspace",), "unallocated"),
        ("By deployment", "deployments", ("workspace", "deployment", "model"), "unallocated"),
        ("By mode", "modes", ("mode",), "unknown"),
        ("By team", "teams", ("team",), "no team"),
    ):
        rows = [
            [
                *(words.named(line, name, absent) for name in columns),
                words.amount(line["cost"], code),
                words.amount(line[f"last_{unit}_cost"], code),
                words.percent(line["change_percent"]),
                line["status"] + (", estimate" if line["estimate"] else ""),
            ]
            for line in one[key]
        ]
        if len(rows) > 1:
            before = total[f"last_{unit}"]["cost"]
            together = [words.amount(total["cost"], code), words.amount(before, code), words.percent(total["change_percent"])]
            rows.append([SUM, *[""] * (len(columns) - 1), *together, ""])
        tables.append(
            Table(title, (*(name.capitalize() for name in columns), f"#This {unit}", f"#{words.last(unit).capitalize()}", "#Change", "Standing"), rows)
        )
    tables.append(Table("What moved most", _MOVED, _moved(one)))
    if (of := one["reconciliation"]) is not None:
        tables.append(causes_of("Bill against metering", of, code, words.matched(one)))
    return Part(
        code or "No currency",
        caution=words.not_certain(total),
        charts=words.charts_of(body, one) if len(body["currencies"]) > 1 else (),
        tables=[table for table in tables if table.rows or table.note],
    )


def _of_no_price(one: Figures) -> Part:
    rows = [
        [*(words.name(line[key]) for key in ("workspace", "deployment", "model")), words.count(line["unpriced_tokens"]), words.count(line["requests"])]
        for line in one["deployments"]
    ]
    return Part(
        one["currency"] or "Without a price",
        tables=[Table("What it was", ("Workspace", "Deployment", "Model", "#Tokens without a price", "#Requests"), rows)] if rows else [],
    )


def _moved(one: Figures, *, most: int | None = None) -> list[Sequence[str]]:
    code = one["currency"]
    return [
        [words.name(line["workspace"]), words.name(line["deployment"]), words.signed(line["change"], code), words.amount(line["cost"], code), line["reason"]]
        for line in one["movers"][:most]
    ]
