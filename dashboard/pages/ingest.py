"""What arrives and from whom: the rate, the senders, what contradicts itself and what may be counted twice."""

from __future__ import annotations

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.pages import start
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile
from models.ledger.intake import Intake

PATH = "ingest"
NAME = "Ingest"
GROUP = "Data"
_MOST_SHOWN = 50


def layout(view: View) -> list[Component]:
    """One question to the ledger: what arrived in the period, by hour and by sender."""
    period = view.selection.period(view.now)
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div(
            [html.H1(NAME), html.P(f"Which usage arrives, from whom, and what is wrong with it. {text.span(period)}", className="subtitle")],
            className="heading",
        ),
        age_line(age, view.now),
    ]
    found = view.ask("what arrived", lambda: view.ledger.intake(period, visible=view.visible, now=view.now))
    if isinstance(found, Failure):
        return [*head, failure_panel(found, view.here)]
    if not found.senders and not found.arrivals:
        return [*head, *start.steps(view)]
    chart = [_rate(view, found)] if found.arrivals else []
    return [*head, _tiles(found), *chart, _senders(view, found), _conflicts(found), _twins(found), _refused(view)]


def _tiles(found: Intake) -> Component:
    requests, unknown = sum(one.requests for one in found.senders), sum(one.unknown_requests for one in found.senders)
    arrived = "only for readers of all workspaces" if found.arrivals is None else text.count(sum(events for _, events in found.arrivals))
    return html.Div(
        [
            tile("Events that arrived", arrived, note="of any age, in these days"),
            tile("Calls in these days", text.count(requests), note=f"from {text.count(len(found.senders))} senders"),
            tile("Without token counts", text.percent(found.unknown_share), note=f"{text.count(unknown)} calls: their cost is not known"),
            tile("Conflicts kept", text.count(len(found.conflicts)), note="same id, other content; the first one counts"),
        ],
        className="tiles",
    )


def _rate(view: View, found: Intake) -> Component:
    return card(
        "Arrivals",
        figures.graph(
            figures.arrivals(found.arrivals or (), period=found.period, revision=view.here), name="arrivals", describes="Events that arrived by hour"
        ),
        note="Events by the hour in which they arrived, whenever the calls were.",
        name="wide",
    )


def _senders(view: View, found: Intake) -> Component:
    columns = [
        tables.Column("Sender"),
        tables.Column("Workspaces", is_number=True),
        tables.Column("Calls", is_number=True),
        tables.Column("Tokens", is_number=True),
        tables.Column("Without tokens", is_number=True, title="calls whose tokens nobody said"),
        tables.Column("Share", is_number=True),
        tables.Column("Conflicts", is_number=True),
        tables.Column("Newest call"),
    ]
    rows: list[list[tables.Cell]] = [
        [
            tables.named(one.source, absent="(no name)"),
            text.count(one.workspaces),
            text.count(one.requests),
            text.tokens(one.tokens),
            text.count(one.unknown_requests),
            text.percent(one.unknown_share),
            text.count(one.conflicts) if one.conflicts else "",
            html.Span(text.ago(one.last_call, view.now), title=text.exact_instant(one.last_call)),
        ]
        for one in found.senders[:60]
    ]
    return card(
        "Senders",
        tables.table(columns, rows, caption="Senders"),
        note="A sender is the source its events name. Without tokens: ask for them with stream_options.include_usage, or let the gateway report.",
        name="wide",
    )


def _conflicts(found: Intake) -> Component:
    if not found.conflicts:
        return card("Conflicts", html.P("None: no id came again with other content."), name="wide")
    columns = [tables.Column("Arrived"), tables.Column("Sender"), tables.Column("Workspace"), tables.Column("Id"), tables.Column("What differs (kept, sent)")]
    rows: list[list[tables.Cell]] = [
        [
            text.instant(one.received_at),
            tables.named(one.source),
            tables.named(one.workspace),
            tables.named(one.event_id),
            html.Span(text.visible("; ".join(f"{text.words(name)}: {was}, {now}" for name, was, now in one.differs) or "other fields"), className="wrap"),
        ]
        for one in found.conflicts[:_MOST_SHOWN]
    ]
    note = "The first one counts. Make the sender keep one id per call and the same content on every retry."
    return card("Conflicts", tables.table(columns, rows, caption="Conflicts"), note=note, name="wide")


def _twins(found: Intake) -> Component:
    if not found.twins:
        return card("Counted twice?", html.P("No two senders report the same traffic of a deployment in the last day."), name="wide")
    columns = [tables.Column("Workspace"), tables.Column("Deployment"), tables.Column("Senders"), tables.Column("Hours alike", is_number=True)]
    rows: list[list[tables.Cell]] = [
        [tables.named(one.workspace), tables.named(one.deployment), tables.named(" and ".join(one.sources), length=60), f"{one.hours} ({one.share} %)"]
        for one in found.twins
    ]
    note = "Two senders whose hours agree probably see the same calls. Send a call key with both, or void one of them."
    return card("Counted twice?", tables.table(columns, rows, caption="Senders that look alike"), note=note, name="wide")


def _refused(view: View) -> Component:
    said = "An event that is refused is named in the answer to whoever sent it, with its index, the field and the fix; it is not kept, so no sample of it can be shown here. How many were refused or came twice since the service started is at /metrics."
    return card("Refused events", html.P([said, " ", dcc.Link("How to send", href=f"{view.prefix}start")]), name="wide")
