"""Serverless or dedicated: what a million tokens costs each way, where the two meet, and which is cheaper."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from urllib.parse import parse_qsl

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.shell import Failure, View, age_line, card, empty_panel, failure_panel, tile
from models import money
from models.errors import InvalidInput
from models.ledger import ComparisonRow, WhatIf

PATH = "comparison"
NAME = "Comparison"
GROUP = "Money"
GROUP = "Money"
_MOST_INSTANCES = 1000


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
        what_if = _what_if(view)
    except InvalidInput as fault:
        return [*head, failure_panel(Failure("this what-if", fault.message, passes=False), view.link(PATH, replace(view.selection, own=()))), _form(view)]
    rows = view.ask("the comparison", lambda: view.ledger.comparison(period, view.selection.filters(view.visible), now=view.now, what_if=what_if))
    if isinstance(rows, Failure):
        return [*head, failure_panel(rows, view.here)]
    if not rows:
        return [*head, empty_panel(view, age)]
    charts = [chart for row in rows if (chart := _chart(view, row)) is not None]
    return [*head, _advice(view, rows), *charts, _table(view, rows), _form(view), *([_imagined(rows, what_if)] if what_if is not None else [])]


def _what_if(view: View) -> WhatIf | None:
    """The size, number and hours that the address asks about; all three or none."""
    sku, instances, hours = (view.selection.asked(key) for key in ("sku", "instances", "hours_per_day"))
    if sku is None and instances is None and hours is None:
        return None
    if sku is None or instances is None or hours is None:
        raise InvalidInput("a what-if needs a size, a number of instances and hours a day together")
    if not (instances.isascii() and instances.isdigit() and len(instances) <= 4 and 1 <= int(instances) <= _MOST_INSTANCES):
        raise InvalidInput(f"instances must be a whole number from 1 to {_MOST_INSTANCES}, not {instances[:20]!r}")
    length = money.decimal_from(hours, what="hours a day")
    if not 0 < length <= 24:
        raise InvalidInput("hours a day must be above 0 and at most 24")
    return WhatIf(sku, int(instances), length)


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
        note="What instances of a size would cost a day, run so many hours, and from how many tokens a day they would be cheaper than serverless.",
        name="wide",
    )


def _imagined(rows: list[ComparisonRow], asked: WhatIf) -> Component:
    columns = [
        tables.Column("Model"),
        tables.Column("Cost a day", is_number=True),
        tables.Column("Break-even tokens a day", is_number=True),
        tables.Column("Tokens a day now", is_number=True),
        tables.Column("Would be cheaper"),
        tables.Column("Why not known"),
    ]
    cells: list[list[tables.Cell]] = []
    for row in rows:
        answer = row.what_if
        if answer is None:
            continue
        even, seen = answer.break_even_tokens_per_day, _seen(row)
        cheaper = text.UNKNOWN if even is None or seen is None else "managed compute" if seen > even else "serverless"
        cells.append(
            [
                tables.named(row.model),
                tables.amount(answer.capacity_cost_per_day, row.currency, answer.reason),
                text.tokens(even),
                text.tokens(seen),
                cheaper,
                html.Span(text.visible(answer.reason or ""), className="wrap"),
            ]
        )
    title = f"{asked.instances} × {text.visible(text.short(asked.sku, 40))}, {asked.hours_per_day.normalize():f} hours a day"
    note = "By price alone: whether the instances can carry the load is not part of it."
    return card(title, tables.table(columns, cells, caption="What if"), note=note, name="wide")


def _seen(row: ComparisonRow) -> int | None:
    """Tokens a day, both ways together."""
    return None if not row.days else int(money.QUOTIENT.divide(Decimal(row.managed.tokens + row.serverless.tokens), row.days))


def _idle(row: ComparisonRow) -> Decimal | None:
    """What idle capacity costs a day."""
    return None if row.managed.idle_cost is None or not row.days else money.QUOTIENT.divide(row.managed.idle_cost, row.days)


def _advice(view: View, rows: list[ComparisonRow]) -> Component:
    tiles: list[Component] = []
    for row in rows:
        cheaper, saving = row.advice.cheaper, row.advice.saving_per_day
        if cheaper is None:
            continue
        note = f"cheaper by {text.money(saving, row.currency)} a day; from {text.count(int(row.days))} days, {row.standing}"
        tiles.append(tile(text.short(row.model, 40), text.words(cheaper), note=[note, " · ", _why(view, row)], title=row.model))
    by_currency: dict[str | None, Decimal] = {}
    for row in rows:
        if idle := _idle(row):
            by_currency[row.currency] = by_currency.get(row.currency, Decimal(0)) + idle
    for currency, amount in sorted(by_currency.items(), key=lambda pair: pair[0] or ""):
        tiles.append(tile("Idle burn a day", text.money(amount, currency), note="capacity that was paid for and served nothing"))
    if not tiles:
        return html.P("No advice for this period: what is missing is said beside each model below.", className="notice")
    return html.Div(tiles, className="tiles")


def _why(view: View, row: ComparisonRow) -> Component:
    """The way to what the model's cost is made of."""
    return dcc.Link("why?", href=view.link("explain", replace(view.selection, models=(row.model,), currency=row.currency, own=())))


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
    seen = _seen(row) or 0
    figure = figures.cost_lines(
        per_token=per_token, step_cost=per_day / instances, step_tokens=step, seen=seen, even=even, currency=row.currency, revision=view.here
    )
    said = f"break-even at {text.tokens(even)} tokens a day, today {text.tokens(seen)}; instances cost {text.money(per_day, row.currency)} a day"
    if row.break_even_reachable is False:
        said += "; today's instances cannot serve that many"
    note = said if step else f"{said}. What an instance can serve is not known: set capacity_tokens_per_minute of the deployment."
    return card(text.short(row.model, 60), figures.graph(figure, name=f"lines-{row.model}-{row.currency}", describes=said), note=note, name="wide")


def _table(view: View, rows: list[ComparisonRow]) -> Component:
    columns = [
        tables.Column("Model"),
        tables.Column("Serverless per 1M", is_number=True, title="what was paid for a million tokens"),
        tables.Column("Dedicated per 1M, all in", is_number=True, title="capacity cost ÷ tokens (allocation): reconciles to the bill"),
        tables.Column("Dedicated per 1M, used", is_number=True, title="allocated cost ÷ tokens (usage): without idle time"),
        tables.Column("Utilisation", is_number=True),
        tables.Column("Idle a day", is_number=True),
        tables.Column("Break-even tokens a day", is_number=True),
        tables.Column("Cheaper"),
        tables.Column("What is missing"),
        tables.Column(""),
    ]

    def cells(row: ComparisonRow) -> list[tables.Cell]:
        idle = _idle(row)
        reasons = [row.advice.reason or "", row.managed.reason or "", row.serverless.reason or ""]
        return [
            tables.named(row.model),
            tables.amount(row.serverless.effective_cost_per_1m, row.currency, row.serverless.reason),
            tables.amount(row.managed.per_1m_allocation, row.currency, row.managed.reason),
            tables.amount(row.managed.per_1m_usage, row.currency, row.managed.reason),
            text.percent(row.managed.utilisation),
            tables.amount(None if idle is None else money.truncated(idle, 6), row.currency, row.managed.reason),
            text.tokens(row.break_even_tokens_per_day),
            text.words(row.advice.cheaper) if row.advice.cheaper else text.UNKNOWN,
            html.Span("; ".join(dict.fromkeys(reason for reason in reasons if reason)), className="wrap"),
            _why(view, row),
        ]

    return card("Every model", tables.table(columns, [cells(row) for row in rows], caption="Serverless beside managed compute"), name="wide")
