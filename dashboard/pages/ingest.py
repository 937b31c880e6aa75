"""What arrives and from whom: the rate, what is refused and why, the senders, what contradicts itself and what may be counted twice."""

from __future__ import annotations

import json

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.pages import start
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile, together
from models.ledger.intake import Intake, RefusedSample

PATH = "ingest"
NAME = "Ingest"
GROUP = "Data"
_MOST_SHOWN = 50
_CAME = (("accepted", "stored, "), ("duplicates", "came again, "), ("conflicts", "conflicts and "), ("rejected", "refused at the ingest routes"))
_FORMATS = {
    "native": "native",
    "openai": "response bodies",
    "litellm": "LiteLLM",
    "azure": "Azure logs",
    "cloudevents": "CloudEvents",
    "otlp_traces": "OTLP traces",
    "otlp_logs": "OTLP logs",
    "otlp_metrics": "OTLP metrics",
}


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
    if not found.senders and not found.arrivals and not found.lines:
        return [*head, *start.steps(view)]
    chart = [_rate(view, found)] if found.arrivals or found.hours else []
    return [*head, _tiles(view, found), *chart, _lines(view, found), _refused(view, found), _senders(view, found), _conflicts(found), _twins(found)]


def _tiles(view: View, found: Intake) -> Component:
    requests, unknown = sum(one.requests for one in found.senders), sum(one.unknown_requests for one in found.senders)
    refused, conflicts = sum(one.rejected for one in found.lines), sum(one.conflicts for one in found.lines)
    return html.Div(
        [
            tile(
                "Events that arrived",
                view.figure(
                    "intake_arrived", found.arrived, reason="only for readers of all workspaces", shown=None if found.arrived is not None else "not told"
                ),
                note="and were stored, of any age, in these days" if found.arrived is not None else "only for readers of all workspaces",
            ),
            tile(
                "Refused",
                view.figure("intake_rejected", refused),
                note=["and ", view.figure("intake_conflicts", conflicts), " conflicts"],
                tone="warn" if refused else "",
            ),
            tile("Came again", view.figure("intake_duplicates", sum(one.duplicates for one in found.lines)), note="duplicates: counted once"),
            tile(
                "Calls in these days",
                view.figure("sender_requests", requests),
                note="from 1 sender" if len(found.senders) == 1 else f"from {text.count(len(found.senders))} senders",
            ),
            tile(
                "Without token counts",
                view.figure("sender_unknown_share", found.unknown_share, reason="no call came"),
                note=[view.figure("sender_unknown_requests", unknown), " calls: their cost is not known"],
            ),
        ],
        className="tiles",
    )


def _rate(view: View, found: Intake) -> Component:
    figure = figures.arrivals(found.arrivals or (), found.hours, period=found.period, revision=view.here, why=lambda name: view.ways(f"intake_{name}"))
    sums = {name: sum(getattr(one, name) for one in found.lines) for name in ("accepted", "duplicates", "conflicts", "rejected")}
    said = [part for name, words in _CAME for part in (view.figure(f"intake_{name}", sums[name]), f" {words}")]
    return card(
        "Arrivals",
        figures.graph(figure, name="arrivals", describes="Events that arrived by hour: stored, duplicates, conflicts and refused"),
        together("Together ", *said),
        note="Events by the hour in which they arrived, whenever the calls were.",
        name="wide",
    )


def _key(key: str | None, key_id: str, *, is_unknown: bool) -> Component:
    if is_unknown:
        return html.Span("no valid key", className="absent", title="no key was sent, or one that is unknown or revoked")
    return tables.named(key if key is not None else key_id or None, absent="open mode")


def _lines(view: View, found: Intake) -> Component:
    if not found.lines:
        return card("By key and format", html.P("Nothing came in at the ingest routes in these days."), name="wide")
    columns = [
        tables.Column("Key"),
        tables.Column("Sender", title="the source that its first event names"),
        tables.Column("Format"),
        tables.Column("Stored", is_number=True),
        tables.Column("Duplicates", is_number=True),
        tables.Column("Conflicts", is_number=True),
        tables.Column("Refused", is_number=True),
        tables.Column("Not usage", is_number=True, title="valid, and nothing to count: spans of other calls, metrics"),
        tables.Column("Without tokens", is_number=True, title="of what was stored, the share whose tokens nobody said"),
        tables.Column("Estimated", is_number=True, title="of what was stored, those whose tokens are an estimate"),
    ]
    rows: list[list[tables.Cell]] = [
        [
            _key(one.key, one.key_id, is_unknown=one.is_unknown),
            tables.named(one.source or None, absent="(not read)"),
            _FORMATS.get(one.format, one.format),
            view.figure("intake_accepted", one.accepted, line=one.line),
            *(
                view.figure(f"intake_{name}", getattr(one, name), line=one.line) if getattr(one, name) else ""
                for name in ("duplicates", "conflicts", "rejected", "ignored")
            ),
            view.figure("intake_missing_share", one.missing_share, line=one.line) if one.accepted else "",
            view.figure("intake_estimated", one.estimated, line=one.line) if one.estimated else "",
        ]
        for one in found.lines[:_MOST_SHOWN]
    ]
    note = "As it arrived in these days, whenever the calls were. " + _shown(len(found.lines), _MOST_SHOWN)
    return card("By key and format", tables.table(columns, rows, caption="What arrived by key and format"), note=note, name="wide")


def _refused(view: View, found: Intake) -> Component:
    refused = [one for one in found.refused if one.error != "conflict"]  # those have a table of their own
    if not refused:
        said = "None in these days. An event that is refused is named in the answer, with its index, the field and what to do; it would stand here too. "
        return card("Refused events", html.P([said, dcc.Link("How to send", href=f"{view.prefix}start")]), name="wide")
    columns = [
        tables.Column("Key"),
        tables.Column("Sender"),
        tables.Column("Format"),
        tables.Column("Why"),
        tables.Column("Events", is_number=True),
        tables.Column("What to do"),
        tables.Column("Newest samples"),
    ]
    rows: list[list[tables.Cell]] = [
        [
            _key(one.key, one.key_id, is_unknown=one.is_unknown),
            tables.named(one.source or None, absent="(not read)"),
            _FORMATS.get(one.format, one.format),
            text.words(one.error),
            view.figure("intake_rejected", one.events, line=one.line, subject=one.error),
            html.Span(one.fix, className="wrap"),
            html.Div([_sample(each, view) for each in one.samples] or [html.Span("not kept any more", className="absent")]),
        ]
        for one in refused[:_MOST_SHOWN]
    ]
    note = "A sample is the names of the fields and the kinds of their values; what was sent is not kept. " + _shown(len(refused), _MOST_SHOWN)
    return card("Refused events", tables.table(columns, rows, caption="Refused events"), note=note, name="wide")


def _sample(one: RefusedSample, view: View) -> Component:
    place = "whole body" if one.index is None else f"item {one.index}"
    head = html.Summary(f"{place}, {text.ago(one.seen_at, view.now)}: {text.visible(one.detail)}", className="wrap")
    if one.shape is None:
        return html.Div(f"{place}, {text.ago(one.seen_at, view.now)}: {text.visible(one.detail)}", className="wrap")
    return html.Details([head, html.Pre("\n".join(map(text.visible, json.dumps(one.shape, indent=1, ensure_ascii=False).split("\n"))))])


def _shown(number: int, most: int) -> str:
    return f"The first {most} of {text.count(number)}; all at /v1/intake." if number > most else ""


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
            view.figure("sender_requests", one.requests, sender=one.source or ""),
            view.figure("sender_tokens", one.tokens, shown=text.tokens(one.tokens), sender=one.source or ""),
            view.figure("sender_unknown_requests", one.unknown_requests, sender=one.source or ""),
            view.figure("sender_unknown_share", one.unknown_share, sender=one.source or ""),
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
