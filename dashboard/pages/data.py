"""How far every source reaches, and what in the data a person should look at."""

from __future__ import annotations

from collections.abc import Sequence

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import acts, tables, text
from dashboard.pages import start
from dashboard.shell import Failure, View, age_line, card, failure_panel
from models.charges import MeterKind
from models.ledger import DataAge, Meters, MeterUse, Problem, SourceAge
from models.meters import MeterMapping
from models.prices import WaitingPrice

PATH = "data"
NAME = "Data"
GROUP = "Data"

_MOST_PROBLEMS = 200
_KINDS = {"usage": "Usage", "bill": "Bill"}


def layout(view: View) -> list[Component]:
    """Five questions to the ledger: the age of the data, the problems in it, the meters, prices that wait, what is not set up right."""
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
    # Meters are of the whole bill: who sees some workspaces only is told of none.
    meters = view.ask("the meters of the bill", lambda: view.ledger.meters(now=view.now)) if view.visible is None else Meters((), ())
    prices = view.ask("the prices that wait", view.ledger.waiting_prices) if view.visible is None else []
    audit = view.ask("the onboarding audit", lambda: view.ledger.onboarding(visible=view.visible, now=view.now))
    return [
        *head,
        failure_panel(problems, view.here) if isinstance(problems, Failure) else _problems(view, problems),
        *([failure_panel(meters, view.here)] if isinstance(meters, Failure) else _meters(view, meters)),
        *([failure_panel(prices, view.here)] if isinstance(prices, Failure) else [_prices(view, prices)] if prices else []),
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


# -- meters -----------------------------------------------------------------------------------------

_ALL_KINDS: tuple[tuple[str, str], ...] = (
    ("", "choose"),
    ("input", "input tokens"),
    ("output", "output tokens"),
    ("cached_input", "cached input tokens"),
    ("fine_tuned_input", "input tokens of a fine-tuned model"),
    ("fine_tuned_output", "output tokens of a fine-tuned model"),
    ("training", "training tokens"),
    ("hosting", "hosting hours of a fine-tuned model"),
    ("compute", "hours of a machine"),
    ("other", "nobody can say"),
)
_UNITS = (("", "as the bill says it"), ("1K tokens", "1K tokens"), ("1M tokens", "1M tokens"), ("1 hour", "1 hour"))


def _meters(view: View, found: Meters) -> list[Component]:
    """The meters that somebody has to say something of, and what was said already."""
    open_ones = [(use, problem) for use in found.uses if (problem := use.problem) is not None]
    parts: list[Component] = []
    if open_ones:
        note = "Their money is in every total as meter “other”, or without a quantity. What you say counts at once, for charges that have landed too; closed months keep their rows and show it as an adjustment."
        columns = [
            tables.Column("Meter"),
            tables.Column("Why"),
            tables.Column("Unit", title="as the bill has it"),
            tables.Column("Last billed"),
            tables.Column("Amount", is_number=True, title="billed since it was first seen"),
            tables.Column("Rows", is_number=True),
            *([tables.Column("What to do")] if view.may_act else []),
        ]
        rows = [_open_meter(view, use, problem) for use, problem in open_ones[:_MOST_PROBLEMS]]
        parts.append(card("What does this meter count?", tables.table(columns, rows, caption="Meters that nobody can tell"), note=note, name="wide"))
    if found.mappings:
        parts.append(_mappings(view, found.mappings))
    return parts


def _open_meter(view: View, use: MeterUse, problem: Problem) -> list[tables.Cell]:
    cells: list[tables.Cell] = [
        html.Span([tables.named(use.meter or "(no name)", length=60), html.Span(tables.named(use.offer or use.route.value, length=40), className="where")]),
        html.Span(text.words(problem.kind), className="pill provisional", title=problem.detail),
        tables.named(use.unit or "none", length=24),
        text.day(use.last_on),
        _money(view, problem),
        text.count(use.rows),
    ]
    if not view.may_act:
        return cells
    if not use.meter:
        return [*cells, html.Span("The bill gives it no name: look at its rows", className="wrap")]
    of = f" of {text.short(text.visible(use.offer), 60)}" if use.offer else ""
    fields = [
        acts.choice(
            "It counts",
            "kind",
            _ALL_KINDS,
            chosen="" if use.kind == MeterKind.OTHER else use.kind.value,
            note=f"for every meter{of} called {text.short(text.visible(use.meter), 60)}",
        ),
        acts.choice("One unit holds", "unit", _UNITS, note=f"the bill says {text.visible(use.unit) or 'nothing'}"),
        acts.field("Since", "valid_from", hint="2026-11-01", note="empty: always"),
        acts.field("Note", "note", hint="who said so"),
    ]
    form = acts.form(view.prefix, "map-meter", "Say it", back=PATH, fields=fields, name="fields", meter=use.meter, offer=use.offer or "")
    return [*cells, html.Span(acts.popped("Say", text.short(text.visible(use.meter), 60), form), className="acts")]


def _mappings(view: View, found: Sequence[MeterMapping]) -> Component:
    words = dict(_ALL_KINDS)
    columns = [
        tables.Column("Meter"),
        tables.Column("Counts"),
        tables.Column("Days"),
        tables.Column("Said by"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(row: MeterMapping) -> list[tables.Cell]:
        days = " ".join(f"{word} {text.day(at.date())}" for word, at in (("from", row.valid_from), ("before", row.valid_to)) if at is not None)
        unit = f", in {row.unit}" if row.unit else ""
        back = acts.form(view.prefix, "unmap-meter", "Take back", back=PATH, id=str(row.id), title="its own text counts again")
        return [
            html.Span([tables.named(row.meter, length=60), html.Span(tables.named(row.offer or "any offer", length=40), className="where")]),
            f"{words[row.kind.value]}{unit}",
            days or "always",
            html.Span(f"{text.visible(row.author) or 'nobody named'}, {text.day(row.known_from.date())}", title=row.note, className="wrap"),
            *([back] if view.may_act else []),
        ]

    table = tables.table(columns, [cells(row) for row in found[:_MOST_PROBLEMS]], caption="What was said of meters")
    return card("What was said of meters", table, note="These go before what a meter's own text says.", name="wide")


# -- prices -----------------------------------------------------------------------------------------


def _prices(view: View, found: Sequence[WaitingPrice]) -> Component:
    """The rows of price files that count only once somebody says that they are right."""
    columns = [
        tables.Column("Price of"),
        tables.Column("Meter"),
        tables.Column("Price", is_number=True),
        tables.Column("What looks wrong"),
        tables.Column("Came"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(row: WaitingPrice) -> list[tables.Cell]:
        where = " · ".join(text.visible(one) for one in (row.workspace, row.sku if row.model else "", row.region) if one)
        days = " ".join(f"{word} {text.day(at.date())}" for word, at in (("from", row.valid_from), ("before", row.valid_to)) if at is not None)
        by = f"{text.visible(row.author) or 'nobody named'}, {text.day(row.arrived_at.date())}"
        return [
            tables.beneath(tables.named(row.model or row.sku or "any model", length=60), "; ".join(one for one in (where, days) if one)),
            text.words(row.meter.value),
            f"{text.money_exactly(row.unit_price, row.currency)} per {row.unit}",
            html.Span(text.visible(row.reason), className="wrap"),
            tables.beneath(by, row.source),
            *(
                [html.Span([_decide(view, row, "accept", "it counts from now on"), _decide(view, row, "reject", "it is put away")], className="acts")]
                if view.may_act
                else []
            ),
        ]

    return card(
        "Prices that wait for review",
        tables.table(columns, [cells(row) for row in found[:_MOST_PROBLEMS]], caption="Prices that wait for review"),
        note="They look wrong and count only once accepted; what they would replace counts until then. The other rows of their files count already.",
        name="wide",
    )


def _decide(view: View, row: WaitingPrice, decision: str, title: str) -> Component:
    return acts.form(view.prefix, "decide-price", decision.capitalize(), back=PATH, id=str(row.id), decision=decision, title=title)


def _sources(view: View, age: DataAge) -> Component:
    columns = [
        tables.Column("Source"),
        tables.Column("Kind"),
        tables.Column("Reaches to", title="the last instant that it covers"),
        tables.Column("Last arrival"),
        tables.Column("Age"),
    ]

    def cells(source: SourceAge) -> list[tables.Cell]:
        reach = text.until(source.reaches) if source.kind == "bill" else text.instant(source.reaches)
        return [
            tables.named(source.name, length=60),
            _KINDS.get(source.kind, source.kind),
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
