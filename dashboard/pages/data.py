"""How far every source reaches, and what in the data a person should look at."""

from __future__ import annotations

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import tables, text
from dashboard.pages import start
from dashboard.shell import Failure, View, age_line, card, failure_panel
from models.ledger import DataAge, Problem, SourceAge

PATH = "data"
NAME = "Data"
GROUP = "Data"

_MOST_PROBLEMS = 200
_KINDS = {"usage": "Usage", "bill": "Bill"}


def layout(view: View) -> list[Component]:
    """Three questions to the ledger: the age of the data, the problems in it, what is not set up right."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    problems = view.ask("the list of problems", lambda: view.ledger.problems(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div(
            [html.H1(NAME), html.P("Where the figures come from, how far they reach, and what is wrong with them", className="subtitle")], className="heading"
        ),
        age_line(age, view.now),
    ]
    if isinstance(age, Failure):
        sources: list[Component] = [failure_panel(age, view.here)]
    elif not age.sources:
        sources = start.steps(view)
    else:
        sources = [_sources(view, age)]
    audit = view.ask("the onboarding audit", lambda: view.ledger.onboarding(visible=view.visible, now=view.now))
    return [
        *head,
        failure_panel(problems, view.here) if isinstance(problems, Failure) else _problems(view, problems),
        *sources,
        *([failure_panel(audit, view.here)] if isinstance(audit, Failure) else [_audit(view, audit)] if audit else []),
    ]


def _money(view: View, found: Problem) -> str | Component:
    return "" if found.amount is None else view.figure("finding_amount", found.amount, found.currency, problem=found.kind, subject=found.subject)


def _audit(view: View, found: list[Problem]) -> Component:
    columns = [tables.Column("What"), tables.Column("Where"), tables.Column("Detail"), tables.Column("What to do"), tables.Column("Amount", is_number=True)]
    rows: list[list[tables.Cell]] = [
        [
            html.Span(text.words(one.kind), className="pill provisional"),
            html.Span(tables.named(one.subject, length=120), className="wrap"),
            html.Span(text.visible(one.detail), className="wrap"),
            html.Span(text.visible(one.remedy), className="wrap"),
            _money(view, one),
        ]
        for one in found[:_MOST_PROBLEMS]
    ]
    return card(
        "Set up right?",
        tables.table(columns, rows, caption="What is not set up right yet"),
        note="Where bill, inventory, prices and usage do not fit together.",
        name="wide",
    )


def _sources(view: View, age: DataAge) -> Component:
    columns = [
        tables.Column("Kind"),
        tables.Column("Source"),
        tables.Column("Reaches to", title="the last instant that it covers"),
        tables.Column("Last arrival"),
        tables.Column("Age"),
    ]

    def cells(source: SourceAge) -> list[tables.Cell]:
        reach = text.until(source.reaches) if source.kind == "bill" else text.instant(source.reaches)
        return [
            _KINDS.get(source.kind, source.kind),
            tables.named(source.name, length=60),
            html.Span(reach, title=text.exact_instant(source.reaches)),
            html.Span(text.instant(source.arrived_at), title=text.exact_instant(source.arrived_at)) if source.arrived_at else "",
            text.ago(source.arrived_at or source.reaches, view.now),
        ]

    ordered = sorted(age.sources, key=lambda source: (source.kind != "bill", source.kind, source.name))
    add = dcc.Link("Add data", href=f"{view.prefix}start", className="button")
    return card(
        "Sources",
        tables.table(columns, [cells(source) for source in ordered], caption="Sources of data and their age"),
        note="A bill reaches to the last UTC day that has usage in it; days after it show metered figures and are provisional.",
        aside=add,
        name="wide",
    )


def _problems(view: View, problems: list[Problem]) -> Component:
    if not problems:
        return card("Problems", html.P("None: every charge has a place, every metered token a price."), name="wide")
    columns = [
        tables.Column("What"),
        tables.Column("Where"),
        tables.Column("Detail"),
        tables.Column("What to do"),
        tables.Column("Amount", is_number=True, title="the money that it concerns"),
        tables.Column("Count", is_number=True),
    ]
    rows: list[list[tables.Cell]] = [
        [
            html.Span(text.words(problem.kind), className="pill provisional"),
            html.Span(tables.named(problem.subject, length=120), className="wrap"),
            html.Span(text.visible(problem.detail), className="wrap"),
            html.Span(text.visible(problem.remedy), className="wrap"),
            _money(view, problem),
            text.count(problem.count) if problem.count is not None else "",
        ]
        for problem in problems[:_MOST_PROBLEMS]
    ]
    note = f"The first {_MOST_PROBLEMS} of {len(problems)}." if len(problems) > _MOST_PROBLEMS else ""
    number = f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}"
    return card(number, tables.table(columns, rows, caption="Problems in the data"), note=note, name="wide")
