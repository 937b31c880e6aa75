"""A rule or budget tried on the past before it is kept: when it would have fired, on a chart and in a table.

Reached from the forms of the Rules page; the address holds the form, so that a trial can be shown to somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.pages import rules
from dashboard.shell import Failure, View, age_line, card, failure_panel
from models.errors import InvalidInput
from models.trials import Firing, Trial

PATH = "backtest"
NAME = "Back-test"
GROUP = "Operations"
_MOST_ROWS = 25


def layout(view: View) -> list[Component]:
    """One trial, and the form that it came from."""
    what = "budget" if view.said.get("what") == "budget" else "rule"
    called = view.said.get("name", "") or f"a new {what}"
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div(
            [html.H1("Tried on the past"), html.P(["Nothing is kept and nobody is told: ", tables.named(called)], className="subtitle")], className="heading"
        ),
        age_line(age, view.now),
    ]
    if view.tried is None:
        return [*head, card("Back-test", html.P("This asks for an admin key: whoever may make a rule may try it."), name="wide")]
    if not view.said:
        way = dcc.Link("Rules and budgets", href=f"{view.prefix}{rules.PATH}", className="button")
        return [*head, card("Back-test", html.P(["Fill in a rule or budget and press ", html.Em("Try on the past"), ". ", way]), name="wide")]
    tried, fault = view.tried, ("", "")
    try:
        found = tried(what, view.said)
    except InvalidInput as refused:
        fault, found = (refused.field, refused.message), None
    form = rules.budget_form(view, view.said, fault=fault) if what == "budget" else rules.rule_form(view, view.said, fault=fault)
    again = card("Change it, try again, or keep it", form, name="wide")
    if found is None:
        failure = Failure(f"this {what}", f"{text.words(fault[0])}: {fault[1]}" if fault[0] else fault[1], passes=False)
        return [*head, failure_panel(failure, view.here), again]
    return [*head, _answer(view, found), *_table(found), again]


def _answer(view: View, trial: Trial) -> Component:
    number = len(trial.firings) + trial.more_firings
    times = "once" if number == 1 else f"{text.count(number)} times"
    said = f"It would have fired {times} in {_lasted(trial.period.end - trial.period.start)}" if number else "It would not have fired"
    highest = max((value for line in trial.lines for _, value in line.points), default=None)
    notes = [f"highest {rules.number(_short(highest))} {trial.unit}"] if highest is not None else ["there is nothing of it in this time"]
    note = "; ".join([text.span(trial.period), *notes, *trial.notes])
    if not trial.lines:
        return card(said, html.P("Nothing that it watches was there: see whether its scope names what exists."), note=note, name="wide")
    describes = "; ".join([said, *(f"{one.why} (from {text.instant(one.fired_at)})" for one in trial.firings[:20])])
    figure = figures.trial(trial, naming=_place, revision=urlencode(view.said))
    return card(said, figures.graph(figure, name="trial", describes=describes, height=340), note=note, name="wide")


def _table(trial: Trial) -> list[Component]:
    if not trial.firings:
        return []
    has_steps = any(one.step is not None for one in trial.firings)
    columns = [
        tables.Column("From"),
        tables.Column("To"),
        tables.Column("Lasted"),
        *([tables.Column("Step")] if has_steps else []),
        tables.Column(f"Highest, {trial.unit}", is_number=True),
        tables.Column("What"),
        *([tables.Column("Why")] if has_steps else []),
    ]

    def cells(one: Firing) -> list[tables.Cell]:
        return [
            html.Span(text.instant(one.fired_at), title=text.exact_instant(one.fired_at)),
            html.Span(text.instant(one.resolved_at) if one.resolved_at else "still so at the end", title=text.exact_instant(one.resolved_at)),
            _lasted((one.resolved_at or trial.period.end) - one.fired_at),
            *([f"{one.step} %"] if has_steps else []),
            rules.number(_short(one.peak)),
            tables.named(_place(one.scope)),
            *([html.Span(text.visible(one.why), className="wrap")] if has_steps else []),
        ]

    number = len(trial.firings) + trial.more_firings
    note = f"The first {_MOST_ROWS} of {text.count(number)}." if number > _MOST_ROWS else ""
    return [
        card(
            "When it would have fired",
            tables.table(columns, [cells(one) for one in trial.firings[:_MOST_ROWS]], caption="Firings"),
            note=note,
            name="wide",
        )
    ]


def _place(scope: Mapping[str, Any]) -> str:
    named = [str(scope[key]) for key in ("deployment", "endpoint", "family", "workspace", "team", "application") if isinstance(scope.get(key), str)]
    return " · ".join(named) or "everything"


def _lasted(length: Any) -> str:
    seconds = int(length.total_seconds())
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            whole = seconds // size
            return f"{whole} {unit}{'' if whole == 1 else 's'}"
    return f"{seconds} s"


def _short(value: Decimal | None) -> Decimal | None:
    return value if value is None or value == value.to_integral_value() else value.quantize(Decimal("0.01"))
