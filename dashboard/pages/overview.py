"""What was spent, where, how final that is, and what the month will be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.filters import Selection
from dashboard.pages import start
from dashboard.shell import Failure, View, age_line, card, empty_panel, failure_panel, switch, tile, together
from models.ledger import CostQuery, CostRow, CostTable, DataAge, Forecast
from models.ledger import Figures as Total
from models.periods import Period, month_period, utc_day
from models.resources import Mode

PATH = ""
NAME = "Overview"
GROUP = "Money"

_STACKS = (("workspace", "Workspace"), ("deployment", "Deployment"), ("mode", "Mode"))
_TOP = 8
_MOST_ROWS = 200

_FILTERED = frozenset({"workspace", "deployment", "model", "application", "team"})
_SAID = {"cost": "on the chosen basis", "metered_cost": "metered", "billed_cost": "billed"}


def layout(view: View) -> list[Component]:
    """Three questions to the ledger: by group and bucket (chart), by bucket (standing, bill), by deployment (table)."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    heading = _heading(view)
    if isinstance(age, DataAge) and not age.sources and age.metered_until is None and age.billed_until is None:
        return [heading, age_line(age, view.now), *start.steps(view)]
    by_period = view.ask("spend over time", lambda: view.ledger.costs(_query(view, ()), now=view.now))
    head: list[Component] = [heading, age_line(age, view.now)]
    if isinstance(by_period, Failure):
        return [*head, failure_panel(by_period, view.here)]
    forecasts = view.ask("the forecast", lambda: view.ledger.forecast(view.selection.filters(view.visible), now=view.now))
    if not by_period.rows:
        return [*head, empty_panel(view, age)]
    group = _stack(view)
    by_group = view.ask("spend by group", lambda: view.ledger.costs(_query(view, group), now=view.now))
    query = view.selection.query(now=view.now, visible=view.visible, granularity="none", group_by=("workspace", "deployment"))
    by_deployment = view.ask("spend by deployment", lambda: view.ledger.costs(query, now=view.now))
    return [
        *head,
        _tiles(view, by_period.totals, forecasts, age),
        *(_charts(view, by_period, by_group, group)),
        *([failure_panel(by_deployment, view.here)] if isinstance(by_deployment, Failure) else [_top(view, by_deployment), _table(view, by_deployment)]),
    ]


def _heading(view: View) -> Component:
    period = text.span(view.selection.period(view.now))
    basis = "" if view.selection.basis == "best" else f" · basis {view.selection.basis}"
    return html.Div([html.H1(NAME), html.P(f"{period} (UTC days){basis}", className="subtitle")], className="heading")


def _query(view: View, group_by: tuple[str, ...]) -> CostQuery:
    granularity = "day" if view.selection.granularity == "none" else view.selection.granularity
    return view.selection.query(now=view.now, visible=view.visible, granularity=granularity, group_by=group_by)


def _stack(view: View) -> tuple[str, ...]:
    """What the bars are stacked by; a deployment's name means something only beside its workspace's."""
    group = view.selection.group_by or ("workspace",)
    return ("workspace", "deployment") if group == ("deployment",) else group


def _naming(answer: CostTable) -> Callable[[CostRow], str]:
    """How the bars of a chart are named: a deployment by itself, with its workspace where two workspaces have one of that name."""
    homes: dict[str | None, set[str | None]] = {}
    for row in answer.rows:
        homes.setdefault(row.groups.get("deployment"), set()).add(row.groups.get("workspace"))

    def named(row: CostRow) -> str:
        if tuple(row.groups) != ("workspace", "deployment"):
            return " · ".join(text.words(text.name(value)) if key == "mode" else text.name(value) for key, value in row.groups.items())
        workspace, deployment = row.groups["workspace"], row.groups["deployment"]
        if len(homes[deployment]) == 1 or (workspace is None and deployment is None):
            return text.name(deployment)
        return f"{text.name(deployment)} · {text.name(workspace)}"

    return named


# -- headline figures -------------------------------------------------------------------------------


def _accuracy(forecast: Forecast, currency: str) -> str:
    """Where the month will end eight times in ten, and how far such forecasts were off when tried on the past."""
    found = f"from {text.count(forecast.complete_days)} complete days"
    if forecast.low is not None and forecast.high is not None:
        found = f"8 of 10: {text.money(forecast.low, currency)} to {text.money(forecast.high, currency)}"
    if forecast.error_percent is not None:
        found += f"; off by {forecast.error_percent:.0f} % in {text.count(forecast.trials)} tries on the past"
    return found


def _tiles(view: View, totals: Sequence[Total], forecasts: list[Forecast] | Failure, age: DataAge | Failure) -> Component:
    rows: list[list[Component]] = []
    expected = {} if isinstance(forecasts, Failure) else {one.currency: one for one in forecasts}
    wanted = view.selection.currency
    currencies = [total.currency for total in _busiest_first(totals) if total.currency is not None]
    # A currency without a row here is shown for its month alone; one that spends nothing there either is not.
    spends = [one.currency for one in expected.values() if one.month_to_date or one.month_end]
    currencies += sorted(currency for currency in spends if currency not in currencies and wanted in {None, currency})
    several = len(currencies) > 1
    month = month_period(utc_day(view.now))
    to_date = replace(view.selection, begin=month.start, end=None)
    for currency in currencies:
        unit = f" ({currency})" if several else ""
        forecast = expected.get(currency)
        tiles: list[Component] = []
        rows.append(tiles)
        if forecast is not None:
            tiles.append(
                tile(
                    f"Month to date{unit}",
                    view.figure("month_to_date", forecast.month_to_date, currency, selection=to_date),
                    note=f"{month.start:%B %Y}",
                )
            )
            tiles.append(
                tile(
                    f"Forecast to month end{unit}",
                    view.figure("month_end", forecast.month_end, currency, selection=to_date, reason=forecast.reason),
                    note=forecast.reason or _accuracy(forecast, currency),
                    tone="absent" if forecast.month_end is None else "",
                )
            )
        elif isinstance(forecasts, Failure):
            tiles.append(tile(f"Forecast{unit}", "not available", note=forecasts.message, tone="absent"))
        total = next((one for one in totals if one.currency == currency), None)
        if total is not None:
            tiles.append(_spend_tile(view, f"Spend in this period{unit}", total))
            tiles.append(_coverage_tile(view, f"Coverage{unit}", total))
    others = [_uncurrencied_tile(view, total) for total in totals if total.currency is None]
    if isinstance(age, DataAge):
        others.append(
            tile(
                "Data age",
                text.ago(age.metered_until, view.now) or "no usage yet",
                title=text.exact_instant(age.metered_until),
                note=f"newest usage; billed until {text.until(age.billed_until)}",
            )
        )
    if rows:
        rows[-1] += others
    else:
        rows.append(others)
    return html.Div([html.Div(row, className="tiles") for row in rows], className="tile-rows")


def _spend_tile(view: View, label: str, total: Total) -> Component:
    said: list[str | Component] = [
        "billed ",
        view.figure("billed_cost", total.billed_cost, total.currency, reason=total.reasons.get("billed_cost")),
        ", metered ",
        view.figure("metered_cost", total.metered_cost, total.currency, reason=total.reasons.get("metered_cost")),
    ]
    reason = total.reasons.get("cost")
    return tile(
        label,
        view.figure("cost", total.cost, total.currency, reason=reason),
        note=[html.Span(total.status, className=f"pill {total.status}"), " ", *([reason] if reason else said)],
        tone="absent" if total.cost is None else "",
    )


def gaps(view: View, total: Total) -> list[str | Component]:
    """What a total does not hold, each a figure; empty where nothing is missing."""
    said: list[str | Component] = []
    for name, value, share, words in (
        ("unknown_token_requests", total.unknown_token_requests, total.unknown_token_share, "requests with unknown tokens"),
        ("estimated_token_requests", total.estimated_token_requests, total.estimated_token_share, "with estimated tokens"),
        ("unpriced_tokens", total.unpriced_tokens, None, "tokens without a price"),
    ):
        if value:
            said += ["; " if said else "", view.figure(name, value, total.currency), f" {words}", f" ({text.percent(share)})" if share is not None else ""]
    return said


def _coverage_tile(view: View, label: str, total: Total) -> Component:
    missing = gaps(view, total)
    note = missing or ["of the billed amount was metered; no unknown tokens"]
    reason = "nothing billed to compare with yet"
    if total.coverage is None:
        note = [reason, *(["; ", *missing] if missing else [])]
    return tile(label, view.figure("coverage", total.coverage, total.currency, reason=reason), note=note)


def _uncurrencied_tile(view: View, total: Total) -> Component:
    tokens = total.input_tokens + total.output_tokens
    missing = gaps(view, total)
    return tile(
        "Without a price",
        view.figure("tokens", tokens, None, shown=f"{text.tokens(tokens)} tokens"),
        note=[
            view.figure("requests", total.requests, None),
            " requests for which neither a bill nor a price names a currency",
            *(["; ", *missing] if missing else []),
        ],
        tone="absent",
    )


# -- charts and table -------------------------------------------------------------------------------


def _charts(view: View, by_period: CostTable, by_group: CostTable | Failure, group: tuple[str, ...]) -> list[Component]:
    currencies = [total.currency for total in _busiest_first(by_period.totals) if total.cost is not None] or [None]
    revision = view.here
    chosen = "deployment" if group == ("workspace", "deployment") else group[0]
    stacks = switch(
        "Stack by",
        [(words, view.link(PATH, replace(view.selection, group_by=() if key == "workspace" else (key,))), key == chosen) for key, words in _STACKS],
    )
    parts: list[Component] = []
    for currency in currencies:
        unit = f" ({currency})" if len(currencies) > 1 and currency else ""
        marker = currency or "none"
        if isinstance(by_group, Failure):
            parts.append(failure_panel(by_group, view.here))
        else:
            parts.append(
                card(
                    f"Spend over time{unit}",
                    figures.graph(
                        figures.spend_over_time(by_group, by_period, currency=currency, naming=_naming(by_group), revision=revision, why=_leading(view)),
                        name=f"spend-{marker}",
                        describes=f"Bars of spend over time in {marker}, stacked by {chosen}",
                        height=340,
                    ),
                    *_together(view, by_period, currency, "cost"),
                    note="Shaded days still change: provisional ones are metered only, settling ones are billed but not closed.",
                    aside=stacks,
                    name="wide",
                )
            )
        parts.append(
            card(
                f"Metered beside billed{unit}",
                figures.graph(
                    figures.metered_and_billed(by_period, currency=currency, revision=revision, why=partial(view.ways, currency=currency)),
                    name=f"billed-{marker}",
                    describes=f"Bars of metered and billed cost over time in {marker}",
                ),
                *_together(view, by_period, currency, "metered_cost", "billed_cost"),
                note="What the requests should cost, and what Azure charged. No billed bar: the bill does not reach that day yet.",
                name="wide",
            )
        )
    return parts


def _leading(view: View) -> Callable[[CostRow], Callable[[Period], str] | None]:
    """Where the bars of a group lead: to its own spend; nowhere where no filter can name the group (a meter, a cost centre)."""

    def way(row: CostRow) -> Callable[[Period], str] | None:
        chosen = view.selection
        for name, value in row.groups.items():
            if value is None:
                continue
            if name == "mode":
                chosen = replace(chosen, modes=(Mode(value),))
            elif name.startswith("tag:"):
                chosen = replace(chosen, tags=(*(tag for tag in chosen.tags if tag[0] != name[4:]), (name[4:], value)))
            elif name in _FILTERED:
                chosen = _narrowed(chosen, name, value)
            else:
                return None
        return view.ways("cost", row.figures.currency, selection=chosen, without=[name for name, value in row.groups.items() if value is None])

    return way


def _narrowed(selection: Selection, name: str, value: str) -> Selection:
    match name:
        case "workspace":
            return replace(selection, workspaces=(value,))
        case "deployment":
            return replace(selection, deployments=(value,))
        case "model":
            return replace(selection, models=(value,))
        case "application":
            return replace(selection, applications=(value,))
        case _:
            return replace(selection, teams=(value,))


def _together(view: View, answer: CostTable, currency: str | None, *names: str) -> list[Component]:
    total = next((one for one in answer.totals if one.currency == currency), None)
    if total is None:
        return []
    return [together("Together ", *(part for name in names for part in (", " if name != names[0] else "", view.of_row(name, total), f" {_SAID[name]}")))]


def _busiest_first(totals: Sequence[Total]) -> list[Total]:
    """Currencies in order of how much is going on in them: their amounts do not compare."""
    return sorted(totals, key=lambda total: (-total.requests, total.currency or "~"))


def _ordered(answer: CostTable) -> list[CostRow]:
    """Dearest first within a currency, the busiest currency first; unknown amounts last."""
    place = {total.currency: index for index, total in enumerate(_busiest_first(answer.totals))}

    def rank(row: CostRow) -> tuple[int, bool, Decimal]:
        cost = row.figures.cost
        return (place.get(row.figures.currency, len(place)), cost is None, Decimal(0) if cost is None else -cost)

    return sorted(answer.rows, key=rank)


def _link(view: View, row: CostRow, *, length: int = 44) -> Component:
    workspace, deployment = row.groups["workspace"], row.groups["deployment"]
    if workspace is None or deployment is None:
        return tables.named(deployment)
    return dcc.Link(tables.named(deployment, length=length), href=view.link("deployment", view.selection.for_deployment(workspace, deployment)))


def _top(view: View, answer: CostTable) -> Component:
    lists: list[Component] = []
    for total in _busiest_first(answer.totals):
        rows = [row for row in _ordered(answer) if row.figures.currency == total.currency and row.figures.cost is not None][:_TOP]
        if not rows:
            continue
        lengths = figures.shares([row.figures.cost for row in rows])
        lists.append(
            html.Ol(
                [
                    html.Li(
                        [
                            html.Div([_link(view, row), html.Span(tables.named(row.groups["workspace"], length=30), className="where")], className="bar-name"),
                            html.Div(html.Div(className="fill", style={"width": f"{width}%"}), className="track"),
                            html.Div(_figures(view, row)("cost"), className="number"),
                        ]
                    )
                    for row, width in zip(rows, lengths, strict=True)
                ],
                className="bar-list",
            )
        )
    return card("Top deployments", *lists, name="wide")


def _figures(view: View, row: CostRow) -> Callable[[str], Component]:
    """The figures of a deployment's row, each with the query that is its own."""
    workspace, deployment = row.groups["workspace"], row.groups["deployment"]
    narrowed = replace(
        view.selection,
        workspaces=(workspace,) if workspace is not None else view.selection.workspaces,
        deployments=(deployment,) if deployment is not None else view.selection.deployments,
    )
    without = [name for name, value in row.groups.items() if value is None]
    return lambda name: view.of_row(name, row.figures, selection=narrowed, without=without)


def _table(view: View, answer: CostTable) -> Component:
    rows = _ordered(answer)
    columns = [
        tables.Column("Deployment"),
        tables.Column("Workspace"),
        tables.Column("Spend", is_number=True, title=f"basis {view.selection.basis}"),
        tables.Column("Metered", is_number=True),
        tables.Column("Billed", is_number=True),
        tables.Column("Input tokens", is_number=True),
        tables.Column("Output tokens", is_number=True),
        tables.Column("Requests", is_number=True),
        tables.Column("Core-hours", is_number=True),
        tables.UNTOLD,
        tables.Column("Status"),
    ]
    cells: list[list[tables.Cell]] = []
    for row in rows[:_MOST_ROWS]:
        figure = _figures(view, row)
        cells.append(
            [
                _link(view, row),
                tables.named(row.groups["workspace"]),
                *(figure(name) for name in ("cost", "metered_cost", "billed_cost", "input_tokens", "output_tokens", "requests")),
                figure("core_hours") if row.figures.core_hours is not None else "",
                tables.untold(row.figures),
                tables.standing(row.figures),
            ]
        )
    file = replace(view.selection, granularity="none", group_by=("workspace", "deployment"))
    download = html.A("Download CSV", href=f"{view.prefix}download/costs.csv{file.search()}", className="button", download="costs.csv")
    more = f"The first {_MOST_ROWS} of {text.count(len(rows))}; the file has them all." if len(rows) > _MOST_ROWS else ""
    return card("All deployments", tables.table(columns, cells, caption="Spend by deployment"), note=more, aside=download, name="wide")
