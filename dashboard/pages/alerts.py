"""What needs somebody now, what did in the last week, and what is silenced; an admin acknowledges and silences here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import acts, figures, tables, text
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile
from dashboard.trail import changes
from models.alerts import Alert, AlertState, Silence
from models.columns import canonical_json
from models.ledger import explain_query
from models.periods import Period
from models.silences import WEEKDAYS, Quiet, in_weekly, labels_of, silenced_by

PATH = "alerts"
NAME = "Alerts"
GROUP = "Operations"
_LATELY = timedelta(days=7)
_COLOURS = {"critical": "#d0342c", "error": "#d9730d", "warning": "#a98307", "info": "#2a7fd1"}
_MOST_SPANS = 30
_MOST_ROWS = 60


def layout(view: View) -> list[Component]:
    """One question to the ledger: the alerts of now and of the last week."""
    since = view.now - _LATELY
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div([html.H1(NAME), html.P("What needs somebody now, and what did in the last 7 days", className="subtitle")], className="heading"),
        age_line(age, view.now),
    ]
    found = view.ask("the alerts", lambda: view.ledger.alerts(since=since, visible=view.visible))
    quiet = view.ask("the silences", lambda: view.ledger.silences(since=since, visible=view.visible))
    quiets = {row.id: row for row in quiet} if not isinstance(quiet, Failure) else {}
    parts: list[Component] = (
        [failure_panel(found, view.here)]
        if isinstance(found, Failure)
        else [_tiles(view, found, quiets), *_timeline(view, found, since), _table(view, found, quiets)]
    )
    silences = [failure_panel(quiet, view.here)] if isinstance(quiet, Failure) else [_silences(view, quiet)]
    return [*head, *parts, *silences, *([_new_silence(view), _new_window(view)] if view.may_act else []), changes(view, "alert", "silence")]


def _silence_of(view: View, alert: Alert, quiets: Mapping[str, Silence]) -> Silence | None:
    """The silence that covers an open alert now."""
    if alert.state == AlertState.RESOLVED:
        return None
    quiet = silenced_by([Quiet.of(row) for row in quiets.values()], labels_of(alert), view.now)
    return None if quiet is None else quiets[quiet.id]


def _tiles(view: View, found: list[Alert], quiets: Mapping[str, Silence]) -> Component:
    firing = [one for one in found if one.state == AlertState.FIRING]
    pending = [one for one in found if one.state == AlertState.PENDING]
    unseen = [one for one in firing if one.acknowledged_at is None]
    silent = sum(_silence_of(view, one, quiets) is not None for one in firing)
    worst = next((severity for severity in _COLOURS if any(one.severity.value == severity for one in firing)), None)
    return html.Div(
        [
            tile("Firing", text.count(len(firing)), note=f"worst: {worst}" if worst else "nothing needs anybody", tone="warn" if firing else ""),
            tile("Not acknowledged", text.count(len(unseen)), note=f"of those that fire; {silent} silenced" if silent else "of those that fire"),
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
    ways = [view.why("alert_value", alert=one.id) if one.value is not None else None for one in fired]
    figure = figures.spans(rows, period=period, revision=view.here, why=ways)
    return [card("The last 7 days", figures.graph(figure, name="spans", describes="; ".join(row[4] for row in rows), height=90 + 30 * names), name="wide")]


def _subject(alert: Alert) -> str:
    for name in ("receiver", "schedule"):
        if name in alert.scope:
            # Their scope has an id; people know them by their names.
            return f"{name} {alert.sample.get(name, alert.scope[name])}"
    named = [str(alert.scope[key]) for key in ("deployment", "endpoint", "family", "workspace", "region", "team") if isinstance(alert.scope.get(key), str)]
    return " · ".join(named) or "everything"


def _table(view: View, found: list[Alert], quiets: Mapping[str, Silence]) -> Component:
    if not found:
        return card(
            "Alerts",
            html.P("None in the last 7 days. Built-in rules watch every deployment: 80 % and 95 % of its limits, and calls that are throttled."),
            name="wide",
        )
    columns = [
        tables.Column("State"),
        tables.Column("Alert"),
        tables.Column("Why"),
        tables.Column("Value", is_number=True, title="against its threshold"),
        tables.Column("Since"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]
    pills = {AlertState.FIRING: "provisional", AlertState.PENDING: "settling", AlertState.RESOLVED: "settled"}
    sizes = Counter(one.group_id for one in found if one.group_id is not None)

    def cells(one: Alert) -> list[tables.Cell]:
        since = one.fired_at or one.pending_at
        runbook = one.runbook_url if one.runbook_url.startswith(("https://", "http://")) else ""
        silence = _silence_of(view, one, quiets)
        links: list[str | Component] = [html.A("Runbook", href=runbook, rel="noopener noreferrer")] if runbook else []
        if query := explain_query(one):
            links.append(dcc.Link("Explain", href=f"{view.prefix}explain?{query}", title="the money behind it: its scope over what was measured"))
        state: list[str | Component] = [html.Span(one.state.value, className=f"pill {pills[one.state]}")]
        if silence is not None:
            state += [html.Br(), html.Span(f"silenced until {text.instant(silence.ends_at)}", className="where-is", title=_about(silence))]
        if one.group_id is not None and sizes[one.group_id] > 1:
            state += [html.Br(), html.Span(f"told with {sizes[one.group_id] - 1} others", className="where-is", title=f"group {one.group_id}")]
        when: list[str | Component] = [html.Span(f"{text.instant(since)} ({text.ago(since, view.now)})", title=text.exact_instant(since))]
        if one.resolved_at is not None:
            when += [html.Br(), html.Span(f"ended {text.instant(one.resolved_at)}", className="where-is", title=text.exact_instant(one.resolved_at))]
        if one.acknowledged_at is not None:
            seen = f"acknowledged by {text.visible(one.acknowledged_by)}, {text.instant(one.acknowledged_at)}"
            when += [html.Br(), html.Span(seen, className="where-is")]
        return [
            state,
            [
                tables.named(one.rule),
                html.Br(),
                html.Span(
                    [html.Span(one.severity.value, className=f"severity {one.severity.value}"), " · ", tables.named(_subject(one))], className="where-is"
                ),
            ],
            [html.Span(text.visible(one.why), className="wrap"), html.Span([*links, *_sample(one)], className="links")],
            [
                view.figure("alert_value", one.value, alert=one.id, shown=_money(one, one.value)) if one.value is not None else "",
                html.Br(),
                html.Span(
                    ["of ", view.figure("alert_threshold", one.threshold, alert=one.id, shown=_money(one, one.threshold))] if one.threshold is not None else "",
                    className="where-is",
                ),
            ],
            when,
            *([html.Span(_buttons(view, one), className="acts")] if view.may_act else []),
        ]

    order = {AlertState.FIRING: 0, AlertState.PENDING: 1, AlertState.RESOLVED: 2}
    # Those that were told by one notice stand together.
    newest = {one.group_id or one.id: one.seq for one in sorted(found, key=lambda one: one.seq)}
    ordered = sorted(found, key=lambda one: (order[one.state], -newest[one.group_id or one.id], -one.seq))
    note = "A silenced alert goes on, and is told again when the silence ends." if view.may_act else "Sign in with an admin key to acknowledge or silence."
    if len(found) > _MOST_ROWS:
        note = f"The first {_MOST_ROWS} of {len(found)}. {note}"
    return card("Alerts", tables.table(columns, [cells(one) for one in ordered[:_MOST_ROWS]], caption="Alerts"), note=note, name="wide")


def _sample(alert: Alert) -> list[Component]:
    """What was measured, under the words that sum it up."""
    if not alert.sample:
        return []
    lines = [
        html.Li(f"{text.words(str(name))}: {text.short(text.visible(_plain(value)), 120)}") for name, value in alert.sample.items() if value not in (None, "")
    ]
    return [acts.unfolded("Sample", html.Ul(lines, className="choices"))]


def _plain(value: object) -> str:
    return canonical_json(value) if isinstance(value, dict | list) else str(value)


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


# -- silences -------------------------------------------------------------------------------------


def _silences(view: View, found: Sequence[Silence]) -> Component:
    if not found:
        how = "None runs, comes or ended in the last 7 days. A silence keeps alerts from being told; they are still judged and listed."
        return card("Silences and maintenance windows", html.P(how), name="wide")
    columns = [
        tables.Column("State"),
        tables.Column("Covers"),
        tables.Column("From"),
        tables.Column("To"),
        tables.Column("Made by"),
        tables.Column("Why"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(one: Silence) -> list[tables.Cell]:
        is_over, is_coming = one.ends_at <= view.now, one.starts_at > view.now
        state, pill = ("past", "") if is_over else ("coming", "settling") if is_coming else ("active", "provisional")
        if state == "active" and one.weekly is not None and not in_weekly(one.weekly, view.now):
            state, pill = "between windows", "settling"
        end = acts.field("New end", "ends_at", text.minute(one.ends_at), note="UTC")
        change = acts.form(view.prefix, "replace-silence", "Save", back=PATH, fields=[end], name="fields", id=one.id)
        stop = acts.form(view.prefix, "end-silence", "Call it off" if is_coming else "End it now", back=PATH, title="What still fires is told", id=one.id)
        return [
            html.Span(state, className=f"pill {pill}"),
            html.Span(_about(one), className="wrap"),
            text.instant(one.starts_at),
            text.instant(one.ends_at),
            html.Span("a file" if one.origin == "apply" else tables.named(one.author)),
            html.Span(text.visible(one.comment), className="wrap"),
            *([html.Span([stop, acts.unfolded("Change the end", change)] if not is_over else [], className="acts")] if view.may_act else []),
        ]

    order = sorted(found, key=lambda one: (one.ends_at <= view.now, one.starts_at > view.now, one.ends_at))
    note = "They keep alerts from being told; the alerts are still judged and listed. Those that are over stay here for 7 days."
    table = tables.table(columns, [cells(one) for one in order[:_MOST_ROWS]], caption="Silences and maintenance windows")
    return card("Silences and maintenance windows", table, note=note, name="wide")


def _about(silence: Silence) -> str:
    """What a silence covers and when, in words."""
    said = ", ".join(f"{text.visible(one['name'])}={text.visible(one['value'])}" for one in silence.matchers)
    if silence.weekly is None:
        return said
    weekly = silence.weekly
    return f"{said}; every {', '.join(weekly['days'])} {weekly['from']} to {weekly['to']} ({weekly['time_zone']})"


_MATCHERS_NOTE = "label=value with commas between, such as deployment=chat, kind=throttled_requests; one label twice takes either"


def _new_silence(view: View) -> Component:
    fields = [
        acts.field("Alerts with", "matchers", hint="workspace=…", needed=True, wide=True, note=_MATCHERS_NOTE),
        acts.field("From (UTC)", "starts_at", hint="now"),
        acts.choice(
            "For",
            "hours",
            [(str(hours), words) for hours, words in ((1, "1 hour"), (4, "4 hours"), (8, "8 hours"), (24, "a day"), (72, "3 days"), (168, "a week"))],
        ),
        acts.field("Why", "comment", wide=True),
    ]
    return card("A new silence", acts.form(view.prefix, "create-silence", "Silence them", back=PATH, fields=fields, name="fields"), name="wide")


def _new_window(view: View) -> Component:
    days = [(day, day.capitalize()) for day in WEEKDAYS]
    fields = [
        acts.field("Alerts with", "matchers", hint="workspace=…", needed=True, wide=True, note=_MATCHERS_NOTE),
        acts.several("Every", "days", days),
        acts.field("From", "from", hint="22:00", needed=True),
        acts.field("To", "to", hint="02:00", needed=True, note="one that does not end after it starts ends the next day"),
        acts.field("Time zone", "time_zone", "UTC"),
        acts.field("Until (UTC)", "ends_at", text.minute(view.now + timedelta(days=365)), needed=True),
        acts.field("Why", "comment", wide=True),
    ]
    make = acts.form(view.prefix, "create-silence", "Make the window", back=PATH, fields=fields, name="fields")
    return card("A new maintenance window", make, note="It comes every week until its end.", name="wide")


def _money(alert: Alert, value: Decimal | None) -> str | None:
    """A sum of money as people write it, where it is one."""
    currency = alert.sample.get("currency")
    return text.money(value, currency) if isinstance(currency, str) else None
