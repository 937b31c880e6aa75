"""One deployment: what it cost by day on both bases, what it served, and its latest events."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.pages import comparison, overview
from dashboard.shell import Failure, View, age_line, card, empty_panel, failure_panel, tile, together
from models.ledger import CostQuery, CostRow, CostTable, Figures, UsagePage, UsageRecord, WitnessRow
from models.periods import DAY, Period

PATH = "deployment"
NAME = "Deployment"
GROUP = "Money"

_LAST_EVENTS = 20
_MOST_CHOICES = 100
_WITNESSED, _MOST_WITNESSED = 31 * DAY, 60
_WITNESSES = {"azure_monitor": "Azure Monitor", "vllm": "vLLM's counters", "otlp": "OpenTelemetry metrics", "appinsights": "Application Insights"}


def layout(view: View) -> list[Component]:
    """Three questions to the ledger: by bucket, by model and mode, and the latest events."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    if len(view.selection.deployments) != 1 or len(view.selection.workspaces) > 1:
        return [html.Div(html.H1(NAME), className="heading"), age_line(age, view.now), _choose(view)]
    selection = view.selection
    granularity = "day" if selection.granularity == "none" else selection.granularity
    query = selection.query(now=view.now, visible=view.visible, granularity=granularity)
    by_period = view.ask("spend of this deployment", lambda: view.ledger.costs(query, now=view.now))
    kinds = view.ask("the model of this deployment", lambda: view.ledger.costs(replace(query, granularity="none", group_by=("mode", "model")), now=view.now))
    events = view.ask(
        "the latest events", lambda: view.ledger.usage_list(period=query.period, filters=query.filters, limit=_LAST_EVENTS, cursor=None, now=view.now)
    )
    head = [_heading(view, kinds), age_line(age, view.now)]
    if isinstance(by_period, Failure):
        return [*head, failure_panel(by_period, view.here)]
    if not by_period.rows:
        return [*head, empty_panel(view, age)]
    parts: list[Component] = []
    for total in by_period.totals:
        parts += [_tiles(view, total), *_charts(view, by_period, total)]
    return [*head, *parts, *_capacity(view, kinds), *_witnesses(view, query), _events(view, events), _days(view, by_period)]


def _heading(view: View, kinds: CostTable | Failure) -> Component:
    deployment = view.selection.deployments[0]
    said: list[str | Component] = []
    if view.selection.workspaces:
        said += ["in ", tables.named(view.selection.workspaces[0]), " · "]
    if isinstance(kinds, CostTable):
        for kind in list(dict.fromkeys((row.groups["mode"], row.groups["model"]) for row in kinds.rows))[:3]:
            said += [text.words(kind[0] or "unknown"), " · ", tables.named(kind[1], absent="model unknown"), " · "]
    said.append(f"{text.span(view.selection.period(view.now))} (UTC days)")
    return html.Div([html.H1(tables.named(deployment, length=60)), html.P(said, className="subtitle")], className="heading")


def _choose(view: View) -> Component:
    """Without one deployment in the address: those there are."""
    query = view.selection.query(now=view.now, visible=view.visible, granularity="none", group_by=("workspace", "deployment"))
    answer = view.ask("the list of deployments", lambda: view.ledger.costs(query, now=view.now))
    if isinstance(answer, Failure):
        return failure_panel(answer, view.here)
    pairs = sorted({(row.groups["workspace"] or "", row.groups["deployment"] or "") for row in answer.rows})
    known = [(workspace, deployment) for workspace, deployment in pairs if workspace and deployment]
    if not known:
        return card("No deployment in this period", html.P("Choose a longer period, or clear the filters."))
    items = [
        html.Li(
            [
                dcc.Link(tables.named(deployment, length=60), href=view.link(PATH, view.selection.for_deployment(workspace, deployment))),
                html.Span(tables.named(workspace), className="where"),
            ]
        )
        for workspace, deployment in known[:_MOST_CHOICES]
    ]
    note = f"The first {_MOST_CHOICES} of {len(known)}; choose a workspace to see the others." if len(known) > _MOST_CHOICES else ""
    return card("Choose a deployment", html.Ul(items, className="choices"), note=note)


def _tiles(view: View, total: Figures) -> Component:
    note: list[str | Component] = [
        html.Span(total.status, className=f"pill {total.status}"),
        " ",
        total.reasons.get("cost", "estimate" if total.estimate else ""),
    ]
    tokens = [view.figure(name, getattr(total, name), total.currency, shown=text.tokens(getattr(total, name))) for name in ("input_tokens", "output_tokens")]
    tiles = [
        tile("Spend in this period", view.of_row("cost", total), note=note),
        tile("Metered", view.of_row("metered_cost", total), note=total.reasons.get("metered_cost", "what the requests should cost")),
        tile("Billed", view.of_row("billed_cost", total), note=total.reasons.get("billed_cost", "what Azure charged")),
        tile(
            "Tokens in / out",
            html.Span([tokens[0], " / ", tokens[1]]),
            note=[
                view.figure("cached_input_tokens", total.cached_input_tokens, total.currency, shown=text.tokens(total.cached_input_tokens)),
                " of the input cached",
            ],
        ),
        tile("Requests", view.of_row("requests", total), note=overview.gaps(view, total) or "all with known tokens"),
    ]
    if total.core_hours is not None:
        tiles.append(tile("Core-hours", view.of_row("core_hours", total), note="of its instances, idle or not"))
    return html.Div(tiles, className="tiles")


def _capacity(view: View, kinds: CostTable | Failure) -> list[Component]:
    """How well the instances are used: by their tokens, and as Azure sees their GPUs; nothing where it has none of its own."""
    if isinstance(kinds, Failure) or not any(row.groups["mode"] == "managed_compute" for row in kinds.rows):
        return []
    period, filters = view.selection.period(view.now), view.selection.filters(view.visible)
    rows = view.ask("the use of its instances", lambda: view.ledger.comparison(period, filters, now=view.now))
    if isinstance(rows, Failure):
        return [failure_panel(rows, view.here)]
    tiles: list[Component] = []
    for row in rows:
        managed = row.managed
        if managed.capacity_cost is None:
            continue
        method = f"tokens served of what they could serve ({managed.utilisation_method})" if managed.utilisation_method else managed.reason or ""
        memory = comparison.figure_of(view, row, "gpu_memory", managed.gpu.memory, managed.gpu.reason)
        busy: list[str | Component] = ["of the hours that Azure Monitor told; memory ", memory] if managed.gpu.hours else [managed.gpu.reason or ""]
        tiles += [
            tile("Utilisation by tokens", comparison.figure_of(view, row, "utilisation", managed.utilisation, managed.reason), note=method),
            tile("GPU busy", comparison.figure_of(view, row, "gpu_utilisation", managed.gpu.busy, managed.gpu.reason), note=busy),
            tile("Capacity cost", comparison.figure_of(view, row, "capacity_cost", managed.capacity_cost), note="allocated + idle, exactly"),
            tile(
                "Idle burn a day",
                comparison.figure_of(view, row, "idle_cost_per_day", row.idle_cost_per_day, managed.reason),
                note="paid for and served nothing",
            ),
        ]
    return [card("Its instances", html.Div(tiles, className="tiles"), name="wide")] if tiles else []


def _charts(view: View, by_period: CostTable, total: Figures) -> list[Component]:
    marker, revision = total.currency or "none", view.here
    why = partial(view.ways, currency=total.currency)
    parts = []
    if total.metered_cost is not None or total.billed_cost is not None:
        parts.append(
            card(
                "Metered beside billed",
                figures.graph(
                    figures.metered_and_billed(by_period, currency=total.currency, revision=revision, why=why),
                    name=f"money-{marker}",
                    describes=f"Bars of metered and billed cost over time in {marker}",
                ),
                together("Together ", view.of_row("metered_cost", total), " metered, ", view.of_row("billed_cost", total), " billed"),
                note="Shaded days still change.",
                name="wide",
            )
        )
    if total.requests:
        parts += [
            card(
                "Tokens",
                figures.graph(
                    figures.tokens_over_time(by_period, currency=total.currency, revision=revision, why=why),
                    name=f"tokens-{marker}",
                    describes="Bars of input and output tokens over time",
                ),
                together("Together ", view.of_row("input_tokens", total), " in, ", view.of_row("output_tokens", total), " out"),
            ),
            card(
                "Requests",
                figures.graph(
                    figures.requests_over_time(by_period, currency=total.currency, revision=revision, why=why),
                    name=f"requests-{marker}",
                    describes="Bars of requests over time",
                ),
                together("Together ", view.of_row("requests", total), " requests"),
            ),
        ]
    return parts


def _witnesses(view: View, query: CostQuery) -> list[Component]:
    """What Azure Monitor, counters and metrics saw of it, beside what was counted; nothing where nobody else looks."""
    newest = Period(max(query.period.start, query.period.end - _WITNESSED), query.period.end)
    answer = view.ask("what others counted", lambda: view.ledger.witnesses(newest, query.filters, now=view.now))
    if isinstance(answer, Failure):
        return [failure_panel(answer, view.here)]
    if not answer:
        return []
    columns = [
        tables.Column("Day"),
        tables.Column("Witness"),
        tables.Column("Of"),
        tables.Column("Witnessed", is_number=True),
        tables.Column("Counted", is_number=True, title="by what senders reported"),
        tables.Column("Difference", is_number=True, title="witnessed less counted"),
        tables.Column("Verdict"),
    ]
    ordered = sorted(answer, key=lambda row: (row.period.start, row.disagrees), reverse=True)
    rows: list[list[tables.Cell]] = [
        [
            text.bucket(row.period, "day"),
            html.Span(_WITNESSES.get(row.kind, row.kind), title=text.visible(row.service)),
            {"input": "input tokens", "output": "output tokens"}.get(row.measure, row.measure),
            *(_witness(view, row, name, value) for name, value in (("witnessed", row.witnessed), ("counted", row.counted))),
            _witness(view, row, "difference", row.difference, shown=f"{row.difference:+,}" if row.difference else "0"),
            html.Span("disagree" if row.disagrees else "agree", className=f"pill {'provisional' if row.disagrees else 'settled'}", title=row.note or ""),
        ]
        for row in ordered[:_MOST_WITNESSED]
    ]
    more = f" The newest {_MOST_WITNESSED} of {len(ordered)}." if len(ordered) > _MOST_WITNESSED else ""
    return [
        card(
            "Second witnesses",
            tables.table(columns, rows, caption="What others counted, by day"),
            note=f"Never added to anything. Beyond 2 % somebody should look: calls that nobody reports, or that are reported twice.{more}",
            name="wide",
        )
    ]


def _witness(view: View, row: WitnessRow, name: str, value: int, *, shown: str | None = None) -> Component:
    own = {"day": row.period.start.date().isoformat(), "meter": row.measure, "witness": row.kind, "subject": row.service}
    return view.figure(f"witness_{name}", value, None, selection=None, reason=None, shown=shown, without=(), **own)


def _events(view: View, events: UsagePage | Failure) -> Component:
    if isinstance(events, Failure):
        return failure_panel(events, view.here)
    columns = [
        tables.Column("Time (UTC)"),
        tables.Column("Id"),
        tables.Column("Operation"),
        tables.Column("Status"),
        tables.Column("Input", is_number=True, title="input tokens"),
        tables.Column("Output", is_number=True, title="output tokens"),
        tables.Column("Application"),
        tables.Column("Counted"),
    ]
    rows: list[list[tables.Cell]] = []
    for event in events.items:
        application = event.fields.get("application")
        rows.append(
            [
                html.Span(f"{event.time:%Y-%m-%d %H:%M:%S}", title=text.exact_instant(event.time)),
                tables.named(event.id, length=28),
                text.words(event.operation),
                html.Span(event.status, className=f"pill {event.status}" if event.status in {"error", "throttled"} else "pill"),
                *(event_figure(view, event, name) for name in ("input_tokens", "output_tokens")),
                tables.named(application, absent="") if isinstance(application, str) else "",
                "yes" if event.counted else html.Span("no", title=event.reason or ""),
            ]
        )
    if not rows:
        return card("Latest events", html.P("No usage event in this period: nobody sends usage of this deployment, or nobody calls it."), name="wide")
    return card(f"Latest {len(rows)} events", tables.table(columns, rows, caption="Latest usage events"), name="wide")


def event_figure(view: View, event: UsageRecord, name: str) -> Component:
    """A count of one call, and the way to its receipt."""
    value = event.fields.get(name)
    known = value if isinstance(value, int) else None
    return view.figure(f"event_{name}", known, reason="nobody told it", shown=text.UNKNOWN if known is None else text.count(known), event=event.handle)


def _days(view: View, by_period: CostTable) -> Component:
    granularity = by_period.query.granularity
    columns = [
        tables.Column(granularity.capitalize()),
        tables.Column("Spend", is_number=True),
        tables.Column("Metered", is_number=True),
        tables.Column("Billed", is_number=True),
        tables.Column("Input tokens", is_number=True),
        tables.Column("Output tokens", is_number=True),
        tables.Column("Requests", is_number=True),
        tables.Column("Core-hours", is_number=True),
        tables.Column("Status"),
    ]

    def cells(row: CostRow) -> list[tables.Cell]:
        figure, own = row.figures, replace(view.selection, begin=row.period.start, end=row.period.end)
        return [
            text.bucket(row.period, granularity),
            *(view.of_row(name, figure, selection=own) for name in ("cost", "metered_cost", "billed_cost", "input_tokens", "output_tokens", "requests")),
            view.of_row("core_hours", figure, selection=own) if figure.core_hours is not None else "",
            tables.standing(figure),
        ]

    newest = list(reversed(by_period.rows))
    file = replace(view.selection, granularity=granularity, group_by=())
    download = html.A("Download CSV", href=f"{view.prefix}download/costs.csv{file.search()}", className="button", download="costs.csv")
    return card(
        "In figures",
        tables.table(columns, [cells(row) for row in newest[:400]], caption=f"Figures by {granularity}"),
        note="The newest 400; the file has them all." if len(newest) > 400 else "",
        aside=download,
        name="wide",
    )
