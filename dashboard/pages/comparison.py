"""Serverless or dedicated: what a million tokens costs each way, where the two meet, and which is cheaper."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from urllib.parse import parse_qsl

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.shell import Failure, View, age_line, card, empty_panel, failure_panel, tile, together
from models.errors import InvalidInput
from models.ledger import ComparisonRow, WhatIf, what_if_from
from models.ledger.comparison import ManagedSide, ServerlessSide

PATH = "comparison"
NAME = "Comparison"
GROUP = "Money"


def layout(view: View) -> list[Component]:
    """One question to the ledger: every model of the period, both ways."""
    period = view.selection.period(view.now)
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div(
            [html.H1(NAME), html.P(f"Should a model run serverless or on instances of its own? {text.span(period)}", className="subtitle")], className="heading"
        ),
        age_line(age, view.now),
    ]
    try:
        what_if = what_if_from(dict(view.selection.own))
    except InvalidInput as fault:
        return [*head, failure_panel(Failure("this what-if", fault.message, passes=False), view.link(PATH, replace(view.selection, own=()))), _form(view)]
    rows = view.ask("the comparison", lambda: view.ledger.comparison(period, view.selection.filters(view.visible), now=view.now, what_if=what_if))
    if isinstance(rows, Failure):
        return [*head, failure_panel(rows, view.here)]
    if not rows:
        return [*head, empty_panel(view, age)]
    charts = [chart for row in rows if (chart := _chart(view, row)) is not None]
    return [
        *head,
        _advice(view, rows),
        _feasible(view, rows),
        *charts,
        _table(view, rows),
        _form(view),
        *([_imagined(view, rows, what_if)] if what_if is not None else []),
    ]


def _form(view: View) -> Component:
    """Three questions that go into the address, beside the present selection."""
    kept = [(key, value) for key, value in parse_qsl(replace(view.selection, own=()).search().removeprefix("?"))]
    fields = (("sku", "Size", "Standard_ND96asr_v4"), ("instances", "Instances", "1"), ("hours_per_day", "Hours a day", "24"))
    controls: list[Component] = [
        html.Div(
            [
                html.Label(words, htmlFor=f"ask-{key}"),
                dcc.Input(id=f"ask-{key}", name=key, type="text", value=view.selection.asked(key) or "", placeholder=hint, required=True, maxLength=80),
            ],
            className="field",
        )
        for key, words, hint in fields
    ]
    hidden = [dcc.Input(type="hidden", name=key, value=value) for key, value in kept]
    return card(
        "What if?",
        html.Form(
            [*hidden, html.Div([*controls, html.Div(html.Button("Ask", type="submit"), className="field")], className="bar-row")],
            method="get",
            action=f"{view.prefix}{PATH}",
        ),
        note="Whether instances of a size, run so many hours a day, could carry the load of this period, what they would cost a day, and from how many tokens a day they would be cheaper than serverless.",
        name="wide",
    )


def _imagined(view: View, rows: list[ComparisonRow], asked: WhatIf) -> Component:
    columns = [
        tables.Column("Model"),
        tables.Column("Serverless can carry it"),
        tables.Column("These instances can"),
        tables.Column("Would be cheaper"),
        tables.Column("By, a day", is_number=True),
        tables.Column("Cost a day", is_number=True),
        tables.Column("Break-even tokens a day", is_number=True),
        tables.Column("Tokens a day now", is_number=True),
        tables.Column("Why not"),
    ]
    cells: list[list[tables.Cell]] = []
    for row in rows:
        answer = row.what_if
        if answer is None:
            continue
        asking = {"sku": asked.sku, "instances": str(asked.instances), "hours_per_day": f"{asked.hours_per_day.normalize():f}"}
        reasons = dict.fromkeys(one for one in (answer.serverless_reason, answer.managed_reason, answer.reason) if one)
        cells.append(
            [
                tables.named(row.model),
                _yes(known=answer.serverless_feasible),
                _yes(known=answer.managed_feasible),
                text.words(answer.cheaper) if answer.cheaper else text.UNKNOWN,
                figure_of(view, row, "what_if_saving", answer.saving_per_day, answer.reason, **asking),
                figure_of(view, row, "what_if_cost_per_day", answer.capacity_cost_per_day, answer.reason, **asking),
                figure_of(view, row, "what_if_break_even", answer.break_even_tokens_per_day, answer.reason or row.serverless.reason, **asking),
                figure_of(view, row, "tokens_per_day", row.tokens_per_day),
                html.Span(text.visible("; ".join(reasons)), className="wrap") if reasons else "",
            ]
        )
    title = f"{asked.instances} × {text.visible(text.short(asked.sku, 40))}, {asked.hours_per_day.normalize():f} hours a day"
    note = "For the load as it was: a way that cannot carry it is not advised, whatever it costs."
    return card(title, tables.table(columns, cells, caption="What if"), note=note, name="wide")


def _feasible(view: View, rows: list[ComparisonRow]) -> Component:
    """Before any price: which way can be had, and which carries the load."""
    columns = [
        tables.Column("Model"),
        tables.Column("Highest minute", is_number=True, title="tokens, both ways together"),
        tables.Column("Serverless may serve", is_number=True, title="tokens a minute, and who says so"),
        tables.Column("Serverless can carry it"),
        tables.Column("Highest hour", is_number=True, title="tokens, both ways together"),
        tables.Column("Instances needed", is_number=True, title="by the highest hour, of those that run"),
        tables.Column("Instances can carry it"),
        tables.Column("Why not"),
    ]
    cells: list[list[tables.Cell]] = []
    for row in rows:
        serverless, managed = row.serverless, row.managed
        reasons = [serverless.reason, managed.feasible_reason]
        if serverless.retires_at is not None and serverless.retires_at > view.now:
            reasons.append(f"serverless retires on {text.day(serverless.retires_at.date())}")
        limit = serverless.tokens_per_minute_limit
        cells.append(
            [
                _named(row, rows),
                figure_of(view, row, "peak_minute_tokens", row.peak_minute_tokens),
                tables.beneath(figure_of(view, row, "serverless_limit", limit), serverless.limit_source or ""),
                _yes(known=serverless.feasible),
                figure_of(view, row, "peak_hour_tokens", row.peak_hour_tokens),
                tables.beneath(
                    figure_of(view, row, "instances_needed", managed.instances_needed, managed.feasible_reason), f"{text.count(managed.instances)} run"
                ),
                _yes(known=managed.feasible),
                html.Span(text.visible("; ".join(one for one in reasons if one)), className="wrap") if any(reasons) else "",
            ]
        )
    return card("Can either carry the load?", tables.table(columns, cells, caption="What can carry the load"), name="wide")


def _yes(*, known: bool | None) -> str:
    return text.UNKNOWN if known is None else "yes" if known else "no"


def figure_of(view: View, row: ComparisonRow, name: str, value: Decimal | int | None, reason: str | None = None, **own: str) -> Component:
    """A figure of one model."""
    shown = text.tokens(value) if isinstance(value, int) else None
    return view.figure(name, value, row.currency, selection=replace(view.selection, models=(row.model,)), reason=reason, shown=shown, **own)


def _way(view: View, row: ComparisonRow, name: str) -> str:
    """Where a mark of a model's chart leads."""
    return view.why(name, row.currency, selection=replace(view.selection, models=(row.model,)))


def _advice(view: View, rows: list[ComparisonRow]) -> Component:
    tiles: list[Component] = []
    for row in rows:
        cheaper, saving = row.advice.cheaper, row.advice.saving_per_day
        if cheaper is None:
            continue
        note: list[str | Component] = ["cheaper by ", figure_of(view, row, "saving_per_day", saving), f" a day; from {_confidence(row)}"]
        tiles.append(tile(text.short(row.model, 40), text.words(cheaper), note=note, title=row.model))
    for row in rows:
        if row.idle_cost_per_day:
            said: list[str | Component] = ["paid for and served nothing · ", tables.named(row.model, length=36)]
            tiles.append(tile("Idle burn a day", figure_of(view, row, "idle_cost_per_day", row.idle_cost_per_day), note=said))
    if not tiles:
        return html.P("No advice for this period: what is missing is said beside each model below.", className="notice")
    return html.Div(tiles, className="tiles")


def _confidence(row: ComparisonRow) -> str:
    """How many days speak, and how final they are."""
    days = int(row.days)
    return f"{text.count(days)} {'day' if days == 1 else 'days'}, {row.standing}"


def _named(row: ComparisonRow, rows: list[ComparisonRow]) -> Component:
    """A model; with the currency where it is billed in several."""
    is_alone = sum(other.model == row.model for other in rows) == 1
    return tables.beneath(tables.named(row.model), "" if is_alone else row.currency or "")


def _chart(view: View, row: ComparisonRow) -> Component | None:
    """Only where both ways have a cost: one line alone compares nothing."""
    managed = row.managed
    if managed.capacity_cost is None or not managed.capacity_cost or not row.days or row.break_even_tokens_per_day is None:
        return None
    per_day = managed.capacity_cost / row.days
    even = row.break_even_tokens_per_day
    per_token = per_day / even if even else Decimal(0)
    instances = max(managed.instances, 1)
    step = managed.capacity_tokens_per_day // instances if managed.capacity_tokens_per_day else None
    seen = row.tokens_per_day or 0
    figure = figures.cost_lines(
        per_token=per_token,
        step_cost=per_day / instances,
        step_tokens=step,
        seen=seen,
        even=even,
        currency=row.currency,
        revision=view.here,
        why=lambda name: _way(view, row, name),
    )
    said = f"break-even at {text.tokens(even)} tokens a day, today {text.tokens(seen)}; instances cost {text.money(per_day, row.currency)} a day"
    if row.break_even_reachable is False:
        said += "; today's instances cannot serve that many"
    note = said if step else f"{said}. What an instance can serve is not known: set capacity_tokens_per_minute of the deployment."
    meet = figure_of(view, row, "break_even_tokens_per_day", even)
    where = together(
        *(
            ("Serverless would cost as much as today's instances at ", meet, " tokens a day, which they cannot serve: the lines do not meet. Today ")
            if row.break_even_reachable is False
            else ("The lines meet at ", meet, " tokens a day; today ")
        ),
        figure_of(view, row, "tokens_per_day", row.tokens_per_day),
        "; capacity cost ",
        figure_of(view, row, "capacity_cost", managed.capacity_cost),
    )
    return card(text.short(row.model, 60), figures.graph(figure, name=f"lines-{row.model}-{row.currency}", describes=said), where, note=note, name="wide")


def _table(view: View, rows: list[ComparisonRow]) -> Component:
    columns = [
        tables.Column("Model"),
        tables.Column("Serverless per 1M, paid", is_number=True, title="what was paid for a million tokens"),
        tables.Column("Serverless per 1M, list", is_number=True, title="the list price at the mix of input and output"),
        tables.Column("Dedicated per 1M, all in", is_number=True, title="capacity cost ÷ tokens (allocation): reconciles to the bill"),
        tables.Column("Dedicated per 1M, used", is_number=True, title="allocated cost ÷ tokens (usage): without idle time"),
        tables.Column("Capacity cost", is_number=True, title="allocated + idle, exactly"),
        tables.Column("Utilisation", is_number=True, title="tokens served ÷ tokens that the instances could have served"),
        tables.Column("GPU busy", is_number=True, title="as Azure Monitor tells it, where it does"),
        tables.Column("Idle a day", is_number=True),
        tables.Column("Break-even tokens a day", is_number=True),
        tables.Column("Tokens a day", is_number=True, title="both ways together"),
        tables.Column("Cheaper", title="from how many days, and how final they are"),
    ]

    def cells(row: ComparisonRow) -> list[tables.Cell]:
        serverless, managed = row.serverless, row.managed
        reasons = [
            row.advice.reason or "",
            managed.reason or "",
            serverless.reason or "",
            *_untold("serverless", serverless),
            *_untold("managed compute", managed),
        ]
        missing = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
        none = "nothing ran this way in the period"
        return [
            [
                _named(row, rows),
                *([html.Details([html.Summary("what is missing"), html.Span(text.visible(missing), className="wrap")])] if missing else []),
            ],
            figure_of(view, row, "serverless_per_1m", serverless.effective_cost_per_1m, serverless.reason or none),
            figure_of(view, row, "serverless_list_per_1m", serverless.list_per_1m, serverless.reason),
            figure_of(view, row, "allocation_per_1m", managed.per_1m_allocation, managed.reason or none),
            figure_of(view, row, "usage_per_1m", managed.per_1m_usage, managed.reason or none),
            figure_of(view, row, "capacity_cost", managed.capacity_cost, managed.reason or none),
            html.Span(figure_of(view, row, "utilisation", managed.utilisation, managed.reason), title=managed.utilisation_method or ""),
            figure_of(view, row, "gpu_utilisation", managed.gpu.busy, managed.gpu.reason),
            figure_of(view, row, "idle_cost_per_day", row.idle_cost_per_day, managed.reason),
            figure_of(view, row, "break_even_tokens_per_day", row.break_even_tokens_per_day, serverless.reason or managed.reason),
            figure_of(view, row, "tokens_per_day", row.tokens_per_day),
            tables.beneath(text.words(row.advice.cheaper) if row.advice.cheaper else text.UNKNOWN, _confidence(row)),
        ]

    return card("Every model", tables.table(columns, [cells(row) for row in rows], caption="Serverless beside managed compute"), name="wide")


def _untold(mode: str, side: ServerlessSide | ManagedSide) -> list[str]:
    parts = ((side.unknown_token_share, "did not tell their tokens"), (side.estimated_token_share, "have estimated tokens"))
    return [f"{text.percent(share)} of the {mode} calls {words}" for share, words in parts if share]
