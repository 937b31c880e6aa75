"""Tables on a page and the files one can take home from them: same rows, same ledger answer.

A file carries every digit as plain decimal text. Its text cells cannot be taken for formulas by a spreadsheet; its
number cells stay numbers, so a credit keeps its minus sign.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from dash import html
from dash.development.base_component import Component

from dashboard import text
from models import money
from models.cells import cell, plain
from models.ledger import CostTable, Figures
from models.periods import rfc3339

_FIGURES = (
    "currency",
    "cost",
    "metered_cost",
    "billed_cost",
    "input_tokens",
    "output_tokens",
    "requests",
    "core_hours",
    "status",
    "unpriced_tokens",
    "unknown_token_requests",
    "estimated_token_requests",
    "coverage",
    "estimate",
)

Cell = str | Component | list[str | Component]


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading and whether it holds numbers; ``title`` explains the heading."""

    heading: str
    is_number: bool = False
    title: str | None = None


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, caption: str) -> Component:
    """A table that scrolls sideways inside its card rather than widening the page.

    On a telephone it becomes a list: each row a heading, its first cell, with every other cell named by its column.
    """
    head = html.Tr([html.Th(column.heading, scope="col", className="number" if column.is_number else "", title=column.title or "") for column in columns])
    body = [
        html.Tr(
            [
                # A named cell is one part beside its name, whatever it is made of.
                html.Td(html.Div(cell) if cell != "" else cell, className="number" if column.is_number else "", **_labelled(column))
                for column, cell in zip(columns, row, strict=True)
            ]
        )
        for row in rows
    ]
    return html.Div(
        html.Table([html.Caption(caption, className="hidden"), html.Thead(head), html.Tbody(body)]),
        className="table",
        tabIndex="0",
        role="region",
        **text.spoken(caption),
    )


def _labelled(column: Column) -> dict[str, Any]:
    return {"data-label": column.heading}


def amount(value: Decimal | None, currency: str | None, reason: str | None = None) -> Component:
    """A sum of money with all its digits, or the reason why there is none, in the title."""
    if value is None:
        return html.Span(text.UNKNOWN, className="absent", title=reason or "not known")
    return html.Span(text.money(value, currency), title=text.money_exactly(value, currency))


def named(value: str | None, *, absent: str = text.UNALLOCATED, length: int = 40) -> Component:
    """A name from outside: isolated text, shortened, whole in the title."""
    whole = text.name(value, absent=absent)
    return html.Bdi(text.short(whole, length), title=whole, className="absent" if value is None else "name")


def beneath(shown: str | Component, said: str) -> Component:
    """A cell with a remark in small letters below it."""
    return html.Span([shown, html.Br(), html.Span(text.visible(said), className="where-is")] if said else [shown])


def standing(figures: Figures) -> Component:
    """How final a row is."""
    pill = html.Span(figures.status, className=f"pill {figures.status}")
    return (
        html.Span([pill, " ", html.Span("estimate", className="pill", title=f"given by {figures.allocation}" if figures.allocation else "")], className="pills")
        if figures.estimate
        else pill
    )


def untold(figures: Figures) -> Component:
    """The share of a row's requests whose tokens nobody told, and of those that are an estimate."""
    said = [
        f"{text.percent(share)} {words}"
        for share, part, words in (
            (figures.unknown_token_share, figures.unknown_token_requests, "unknown"),
            (figures.estimated_token_share, figures.estimated_token_requests, "estimated"),
        )
        if part
    ]
    shown = ", ".join(said) or ("none" if figures.requests else "")
    return html.Span(shown, title=f"{text.count(figures.unknown_token_requests)} unknown, {text.count(figures.estimated_token_requests)} estimated")


UNTOLD = Column("Tokens not told", title="share of the requests whose tokens are unknown, or an estimate")


def costs_csv(answer: CostTable) -> str:
    """The rows of one ledger answer as CSV (RFC 4180), in its own order."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    groups = answer.query.group_by
    writer.writerow(["period_start", "period_end", *(plain(group) for group in groups), *_FIGURES])
    for row in answer.rows:
        writer.writerow(
            [
                rfc3339(row.period.start),
                rfc3339(row.period.end),
                *(cell(row.groups.get(group)) for group in groups),
                *(cell(getattr(row.figures, field)) for field in _FIGURES),
            ]
        )
    return out.getvalue()


def control_total(answer: CostTable) -> str:
    """What the cost column adds up to, for each currency, from the ledger's own totals."""
    return "; ".join(f"{money.text(total.cost)} {total.currency or '-'}" for total in answer.totals if total.cost is not None)
