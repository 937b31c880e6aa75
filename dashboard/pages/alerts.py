"""What needs somebody now, and what did in the last week; an admin acknowledges and silences here."""

from __future__ import annotations

from datetime import datetime, timedelta

from dash import html
from dash.development.base_component import Component

from dashboard import acts, figures, tables, text
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile
from models.alerts import Alert, AlertState
from models.periods import Period

PATH = "alerts"
NAME = "Alerts"
GROUP = "Operations"
_LATELY = timedelta(days=7)
_COLOURS = {"critical": "#d0342c", "error": "#d9730d", "warning": "#a98307", "info": "#2a7fd1"}
_MOST_SPANS = 30


def layout(view: View) -> list[Component]:
    """One question to the ledger: the alerts of now and of the last week."""
    since = view.now - _LATELY
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div([html.H1(NAME), html.P("What needs somebody now, and what did in the last 7 days", className="subtitle")], className="heading"),
        age_line(age, view.now),
    ]
    found = view.ask("the alerts", lambda: view.ledger.alerts(since=since, visible=view.visible))
    parts: list[Component] = (
        [failure_panel(found, view.here)] if isinstance(found, Failure) else [_tiles(found), *_timeline(view, found, since), _table(view, found)]
    )
    return [*head, *parts]


def _tiles(found: list[Alert]) -> Component:
    firing = [one for one in found if one.state == AlertState.FIRING]
    pending = [one for one in found if one.state == AlertState.PENDING]
    unseen = [one for one in firing if one.acknowledged_at is None]
    worst = next((severity for severity in _COLOURS if any(one.severity.value == severity for one in firing)), None)
    return html.Div(
        [
            tile("Firing", text.count(len(firing)), note=f"worst: {worst}" if worst else "nothing needs anybody", tone="warn" if firing else ""),
            tile("Not acknowledged", text.count(len(unseen)), note="of those that fire"),
            tile("Pending", text.count(len(pending)), note="above their threshold, not yet for long enough"),
            tile("Ended in 7 days", text.count(sum(one.state == AlertState.RESOLVED for one in found))),
        ],
        className="tiles",
    )


def _timeline(view: View, found: list[Alert], since: datetime) -> list[Component]:
    fired = [one for one in found if one.fired_at is not None][:_MOST_SPANS]
    if not fired:
        return []
    period = Period(since, view.now)
    rows = [
        (
            f"{one.rule} · {_subject(one)}",
            one.fired_at or one.pending_at,
            one.resolved_at or view.now,
            _COLOURS.get(one.severity.value, figures.QUIET),
            f"{one.rule}: {one.why} ({text.instant(one.fired_at)} to {text.instant(one.resolved_at) if one.resolved_at else 'now'})",
        )
        for one in fired
    ]
    names = len({row[0] for row in rows})
    figure = figures.spans(rows, period=period, revision=view.here)
    return [card("The last 7 days", figures.graph(figure, name="spans", describes="; ".join(row[4] for row in rows), height=90 + 30 * names), name="wide")]


def _subject(alert: Alert) -> str:
    named = [str(alert.scope[key]) for key in ("deployment", "workspace") if isinstance(alert.scope.get(key), str)]
    return " · ".join(named) or "everything"


def _table(view: View, found: list[Alert]) -> Component:
    if not found:
        return card(
            "Alerts",
            html.P("None in the last 7 days. Built-in rules watch every deployment: 80 % and 95 % of its limits, and calls that are throttled."),
            name="wide",
        )
    columns = [
        tables.Column("State"),
        *([tables.Column("What to do")] if view.may_act else []),
        tables.Column("Severity"),
        tables.Column("Rule"),
        tables.Column("What"),
        tables.Column("Why"),
        tables.Column("Value", is_number=True),
        tables.Column("Threshold", is_number=True),
        tables.Column("Since"),
        tables.Column("Ended"),
        tables.Column("Acknowledged"),
    ]
    pills = {AlertState.FIRING: "provisional", AlertState.PENDING: "settling", AlertState.RESOLVED: "settled"}

    def cells(one: Alert) -> list[tables.Cell]:
        since = one.fired_at or one.pending_at
        runbook = one.runbook_url if one.runbook_url.startswith(("https://", "http://")) else ""
        return [
            html.Span(one.state.value, className=f"pill {pills[one.state]}"),
            *([html.Span(_buttons(view, one), className="acts")] if view.may_act else []),
            one.severity.value,
            html.A(text.visible(one.rule), href=runbook, rel="noopener noreferrer") if runbook else tables.named(one.rule),
            tables.named(_subject(one)),
            html.Span(text.visible(one.why), className="wrap"),
            view.figure("alert_value", one.value, alert=one.id) if one.value is not None else "",
            view.figure("alert_threshold", one.threshold, alert=one.id) if one.threshold is not None else "",
            html.Span(f"{text.instant(since)} ({text.ago(since, view.now)})", title=text.exact_instant(since)),
            text.instant(one.resolved_at) if one.resolved_at else "",
            f"{text.visible(one.acknowledged_by)}, {text.instant(one.acknowledged_at)}" if one.acknowledged_at else "",
        ]

    order = {AlertState.FIRING: 0, AlertState.PENDING: 1, AlertState.RESOLVED: 2}
    rows = [cells(one) for one in sorted(found, key=lambda one: (order[one.state], -one.seq))[:60]]
    note = "A silenced alert goes on, and is told again when the silence ends." if view.may_act else "Sign in with an admin key to acknowledge or silence."
    return card("Alerts", tables.table(columns, rows, caption="Alerts"), note=note, name="wide")


def _buttons(view: View, alert: Alert) -> list[Component]:
    """What an admin may do about an alert that is not over."""
    if alert.state == AlertState.RESOLVED:
        return []
    said: list[Component] = []
    if alert.acknowledged_at is None:
        said.append(acts.form(view.prefix, "acknowledge", "Acknowledge", back=PATH, title="Say that somebody is looking at it", id=alert.id))
    title = "Tell nobody of this rule at this place for so long"
    said += [acts.form(view.prefix, "silence", f"Silence {hours} h", back=PATH, title=title, id=alert.id, hours=hours) for hours in ("4", "24")]
    return said
