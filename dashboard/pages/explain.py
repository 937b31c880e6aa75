"""Why a figure is what it is: formula, quantities, prices, charges, their age, and the same question as a line for curl."""

from __future__ import annotations

import shlex
from dataclasses import replace

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import tables, text
from dashboard.pages import monthly
from dashboard.shell import Failure, View, age_line, card, empty_panel, failure_panel, tile
from models.ledger import FORMULA, Ask, Explanation, MeteredLine, Term, Why, counted_in

PATH = "explain"
NAME = "Why?"
GROUP = "Money"
_MOST_LINES = 60


def layout(view: View) -> list[Component]:
    """One question to the ledger: the selection's figure, taken apart; the cost, where the address names none."""
    if view.selection.asked("figure") is not None:
        return [html.Div(html.H1("Why this number?"), className="heading"), *_body(view)]
    selection = replace(view.selection, own=(), group_by=(), granularity="none")
    query = selection.query(now=view.now, visible=view.visible, granularity="none", group_by=())
    head: list[Component] = [
        html.Div(
            [html.H1("Why this number?"), html.P(f"What a figure is made of: {text.span(query.period)}, basis {query.basis}{_of(view)}", className="subtitle")],
            className="heading",
        )
    ]
    found = view.ask("the explanation", lambda: view.ledger.explain(query, now=view.now))
    if isinstance(found, Failure):
        return [*head, failure_panel(found, view.here)]
    # The period is written out: left to itself the API takes another default than the pages, which show whole days.
    whole = replace(selection, begin=query.period.start, end=query.period.end)
    address = f"{view.origin}/v1/explain{whole.search()}"
    if not found.totals:
        return [*head, age_line(found.age, view.now), empty_panel(view, found.age)]
    return [
        *head,
        age_line(found.age, view.now),
        html.Div(
            [
                tile(
                    "Figure",
                    text.money(total.cost, total.currency),
                    title=text.money_exactly(total.cost, total.currency),
                    note=[
                        total.reasons.get("cost")
                        or f"{total.status}; the lines below count to {text.money_exactly(counted_in(found, total.currency), total.currency)}",
                        "; tokens not told: ",
                        tables.untold(total),
                    ],
                    tone="absent" if total.cost is None else "",
                )
                for total in found.totals
            ],
            className="tiles",
        ),
        card(
            "Formula",
            html.P(f"{FORMULA[query.basis]}."),
            html.P("The same question to the API:", className="note"),
            html.Pre(f"curl {shlex.quote(address)}"),
            name="wide",
        ),
        _metered(found),
        _billed(found),
    ]


def drawer(view: View) -> list[Component]:
    """The same beside the page that the figure stands on."""
    whole = dcc.Link("As a page", href=view.link(PATH, view.selection), className="button")
    return [html.Header([html.H2("Why this number?"), whole, html.A("Close", href="#closed", className="button", id="close")]), *_body(view)]


def _body(view: View) -> list[Component]:
    """A figure of any kind: how it comes about, what went into it, and the same question as a line for curl."""
    selection = view.selection
    query = replace(selection, granularity="none").query(now=view.now, visible=view.visible, granularity="none")
    asked = Ask(selection.asked("figure") or "cost", query, dict(selection.own))
    found = view.ask("the explanation", lambda: view.ledger.why(asked, now=view.now))
    if isinstance(found, Failure):
        return [failure_panel(found, view.here)]
    exact = text.figure_exactly(found.value, found.kind, found.unit)
    # How much of a line counts is said of the cost: beside what is expected, "none of it" would be wrong.
    is_cost = found.figure == "cost"
    secret = "" if view.is_open else " -H 'Authorization: Bearer YOUR_KEY'"
    said = [f"{text.span(query.period)}{_of(view)}"] + [
        f"{text.words(key)} {text.visible(text.short(value, 60))}" for key, value in selection.own if key != "figure"
    ]
    lines = found.evidence
    return [
        html.Div(
            [
                html.Div(found.words, className="tile-label"),
                html.Div(text.figure(found.value, found.kind, found.unit), className="tile-value why-value", title=exact),
                html.Div([exact, f" · {found.reason}" if found.reason else ""], className="tile-note"),
                html.Div("; ".join(said), className="tile-note"),
            ],
            className="tile" if found.value is not None else "tile absent",
        ),
        card("Formula", html.P(f"{found.formula[:1].upper()}{found.formula[1:]}."), _terms(found), name="wide"),
        *([rows] if (rows := _rows(view, found)) is not None else []),
        *([_metered(lines, has_counted=is_cost)] if lines is not None and lines.metered else []),
        *([_billed(lines, has_counted=is_cost)] if lines is not None and lines.billed else []),
        card("The same from the API", html.Pre(f"curl{secret} {shlex.quote(view.origin + found.request)}"), name="wide"),
        age_line(found.age, view.now),
    ]


def _terms(found: Why) -> Component | None:
    if not found.terms:
        return None
    lines: list[list[tables.Cell]] = [[term.name, _written(term)] for term in found.terms]
    return tables.table([tables.Column("Of"), tables.Column("Figure", is_number=True)], lines, caption="What the formula was filled in with")


def _written(term: Term) -> Component:
    return html.Span(text.figure(term.value, term.kind, term.unit), title=text.figure_exactly(term.value, term.kind, term.unit))


def _rows(view: View, found: Why) -> Component | None:
    if not found.rows:
        return None
    lines: list[list[tables.Cell]] = [[html.Span(text.visible(row.name), className="wrap"), _leading(view, found, row)] for row in found.rows]
    rest = f"; {text.count(found.more_rows)} smaller ones are left out" if found.more_rows else ""
    note = f"Together they are the figure{rest}." if found.adds_up else f"What it is taken over{rest}."
    return card(
        "Rows behind it", tables.table([tables.Column("Row"), tables.Column("Figure", is_number=True)], lines, caption="Rows behind it"), note=note, name="wide"
    )


def _leading(view: View, found: Why, row: Term) -> Component:
    """A row's figure, and the way to why it is what it is by itself, where it stands by itself."""
    if row.place is None and not row.own:
        return _written(row)
    workspace, deployment = row.place or (None, None)
    lacks = monthly.without(workspace, deployment) if row.place is not None else []
    return view.figure(found.figure, row.value, row.unit, selection=monthly.narrowed(view.selection, workspace, deployment), without=lacks, **row.own)


def _of(view: View) -> str:
    """What the figure is limited to, in words."""
    said = [f"{text.short(text.visible(key), 24)} {text.short(text.name(value, absent=''), 40)}" for key, value, _ in view.selection.chips()]
    return f", {', '.join(said)}" if said else ""


def _price(line: MeteredLine) -> str:
    """The unit price, with the exchange rate where the bill's currency is another one."""
    if line.unit_price is None:
        return line.reason or text.UNKNOWN
    rate = "" if line.exchange_rate is None else f" × {text.quantity(line.exchange_rate)} {line.currency or ''}"
    return f"{text.money_exactly(line.unit_price, line.price_currency)} per {line.unit}{rate}"


def _more(lines: int) -> str:
    return f"The first {_MOST_LINES} of {text.count(lines)}; /v1/explain has up to 2,000." if lines > _MOST_LINES else ""


def _metered(found: Explanation, *, has_counted: bool = True) -> Component:
    columns = [
        tables.Column("Deployment"),
        tables.Column("Meter"),
        tables.Column("Quantity", is_number=True),
        tables.Column("Price", is_number=True),
        tables.Column("Price from"),
        tables.Column("Amount", is_number=True),
        *([tables.Column("Counted", is_number=True, title="what of it is in the figure: where a bill counts, nothing")] if has_counted else []),
    ]
    rows: list[list[tables.Cell]] = [
        [
            tables.named(f"{line.workspace or text.UNALLOCATED} / {line.deployment or text.UNALLOCATED}", length=60),
            text.words(line.meter),
            text.quantity(line.quantity),
            _price(line),
            html.Span(f"{line.price_source or ''} ({line.price_version or 'no version'})", className="wrap"),
            tables.amount(line.amount, line.currency, line.reason),
            *([tables.amount(line.counted, line.currency)] if has_counted else []),
        ]
        for line in found.metered[:_MOST_LINES]
    ]
    if not rows:
        return card("Metered", html.P("Nothing was metered."), name="wide")
    return card("Metered", tables.table(columns, rows, caption="Metered quantities and their prices"), note=_more(len(found.metered)), name="wide")


def _billed(found: Explanation, *, has_counted: bool = True) -> Component:
    files = {part.id: part for part in found.parts}
    columns = [
        tables.Column("Deployment"),
        tables.Column("Meter"),
        tables.Column("Rows", is_number=True),
        tables.Column("Days"),
        tables.Column("Bill"),
        tables.Column("Amount", is_number=True),
        *([tables.Column("Counted", is_number=True)] if has_counted else []),
    ]
    rows: list[list[tables.Cell]] = []
    for line in found.billed[:_MOST_LINES]:
        part = files.get(line.part_id)
        source = f"{part.file_name}, landed {text.instant(part.landed_at)}" if part is not None else ""
        rows.append(
            [
                tables.named(f"{line.workspace or text.UNALLOCATED} / {line.deployment or text.UNALLOCATED}", length=60),
                text.words(line.meter),
                text.count(line.rows),
                f"{text.day(line.first_day)} – {text.day(line.last_day)}",
                html.Span(text.visible(source), className="wrap"),
                html.Span([tables.amount(line.amount, line.currency), " (share)" if line.estimate else ""]),
                *([tables.amount(line.counted, line.currency)] if has_counted else []),
            ]
        )
    if not rows:
        return card("Billed", html.P("No bill has charges for it."), name="wide")
    return card("Billed", tables.table(columns, rows, caption="Charges behind the figure"), note=_more(len(found.billed)), name="wide")
