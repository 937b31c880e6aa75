"""Who is told of alerts: the receivers, how they are, and what was sent to them lately; an admin makes, changes, tests and replays here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dash import html
from dash.development.base_component import Component

from dashboard import acts, tables, text
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile
from dashboard.trail import changes
from models.ledger import ReceiverStanding
from models.notices import BY_HAND, Delivery, DeliveryAttempt, DeliveryStatus, Format, Receiver, place

PATH = "receivers"
NAME = "Receivers"
GROUP = "Operations"

_FORMATS = {
    Format.STANDARD: "Standard Webhooks (signed)",
    Format.SLACK: "Slack",
    Format.TEAMS: "Teams",
    Format.PAGERDUTY: "PagerDuty",
    Format.EMAIL: "e-mail",
    Format.ALERTMANAGER: "Alertmanager's webhook",
    Format.ALERTMANAGER_API: "an Alertmanager (API)",
}
_PILLS = {DeliveryStatus.PENDING: "settling", DeliveryStatus.DELIVERED: "settled"}


def layout(view: View) -> list[Component]:
    """One question to the ledger: every receiver with its last deliveries."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div([html.H1(NAME), html.P("Who is told of alerts, and whether they were reached", className="subtitle")], className="heading"),
        age_line(age, view.now),
    ]
    if view.visible is not None:
        # The address of a receiver is often a secret of the whole service.
        return [*head, card("Receivers", html.P("These are shown to keys that see every workspace: sign in with one of those."), name="wide")]
    found = view.ask("the receivers", view.ledger.receivers)
    new = [_new(view)] if view.may_act else []
    if isinstance(found, Failure):
        return [*head, failure_panel(found, view.here), *new]
    if not found:
        where = "Make the first one below" if view.may_act else "An admin makes one on this page"
        how = f"Nobody is told yet. {where}, or keep them in a file: meterbridge apply -f alerts.yaml. One that is a default hears the built-in rules."
        return [*head, card("Receivers", html.P(how), name="wide"), *new]
    deliveries = [_deliveries(view, one) for one in found if one.deliveries]
    return [*head, _tiles(found), _table(view, found), *new, *deliveries, changes(view, "receiver")]


def _is_well(one: ReceiverStanding) -> bool:
    return one.receiver.is_enabled and one.receiver.rests_until is None and not one.receiver.failures


def _tiles(found: Sequence[ReceiverStanding]) -> Component:
    broken = sum(not _is_well(one) for one in found)
    waiting = sum(delivery.status == DeliveryStatus.PENDING for one in found for delivery in one.deliveries)
    defaults = sum(one.receiver.is_default and one.receiver.is_enabled for one in found)
    return html.Div(
        [
            tile("Not reached", text.count(broken), note=f"of {len(found)} receivers", tone="warn" if broken else ""),
            tile("Waiting", text.count(waiting), note="of the last deliveries"),
            tile("Defaults", text.count(defaults), note="hear the built-in rules", tone="" if defaults else "warn"),
        ],
        className="tiles",
    )


def _table(view: View, found: Sequence[ReceiverStanding]) -> Component:
    columns = [
        tables.Column("Receiver"),
        tables.Column("Format"),
        tables.Column("State"),
        tables.Column("Hears"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(one: ReceiverStanding) -> list[tables.Cell]:
        receiver = one.receiver
        rests = receiver.is_enabled and receiver.rests_until is not None and receiver.rests_until > view.now
        where = text.short(text.visible(place(receiver.url, receiver.format)), 44)
        return [
            [tables.named(receiver.name), html.Br(), html.Span(where, className="where-is", title="the path of a URL is often a secret, and not shown")],
            _FORMATS[receiver.format],
            [
                html.Span(text.visible(_state(one)), className="pill settled" if _is_well(one) else "pill provisional"),
                *([html.Br(), html.Span(f"next try {text.instant(receiver.rests_until)}", className="where-is")] if rests else []),
            ],
            html.Span([html.Span(line, className="wrap") for line in _hears(one)]),
            *([html.Span(_buttons(view, one), className="acts")] if view.may_act else []),
        ]

    return card("Receivers", tables.table(columns, [cells(one) for one in found], caption="Receivers"), name="wide")


def _state(one: ReceiverStanding) -> str:
    receiver = one.receiver
    if not receiver.is_enabled:
        return f"off: {receiver.disabled_reason or BY_HAND}"
    if receiver.rests_until is not None:
        return f"not reached: {receiver.failures} failures in a row"
    return "well" if not receiver.failures else f"{receiver.failures} failure{'' if receiver.failures == 1 else 's'} in a row"


def _hears(one: ReceiverStanding) -> list[str]:
    """What a receiver is told, in words."""
    receiver = one.receiver
    said: list[str] = ["rules that name nobody (default)"] if receiver.is_default else []
    if one.named_by:
        more = f" and {len(one.named_by) - 3} more" if len(one.named_by) > 3 else ""
        said.append(f"named by {', '.join(text.short(text.visible(name), 30) for name in one.named_by[:3])}{more}")
    narrowed = [
        ", ".join(receiver.severities),
        f"workspaces {', '.join(map(text.visible, receiver.workspaces))}" if receiver.workspaces else "",
        _matched(receiver.matchers),
    ]
    only = "; ".join(filter(None, narrowed))
    return [*(said or ["nothing yet: no rule names it and it is no default"]), *([f"only {only}"] if only else [])]


def _matched(matchers: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(f"{text.visible(one['name'])}={text.visible(one['value'])}" for one in matchers)


def _buttons(view: View, one: ReceiverStanding) -> list[Component]:
    receiver = one.receiver

    def button(what: str, label: str, title: str = "") -> Component:
        return acts.form(view.prefix, what, label, back=PATH, title=title, id=receiver.id)

    edit = acts.form(view.prefix, "replace-receiver", "Save", back=PATH, fields=_fields(receiver), name="fields", id=receiver.id)
    named = f"{len(one.named_by)} rules and budgets name it; those that name no other tell the defaults then. " if one.named_by else ""
    remove = [html.P(f"{named}What waits for it is not sent.", className="field-note"), button("delete-receiver", "Yes, delete it")]
    rotate = [
        html.P("A new secret is made and shown once; the present one signs too for a day.", className="field-note"),
        button("rotate-receiver", "Yes, make a new secret"),
    ]
    return [
        button("test-receiver", "Send a test", "Send a sample that says it is a test") if receiver.is_enabled else button("enable-receiver", "Switch on"),
        acts.popped("Edit", text.short(text.visible(receiver.name)), edit),
        *([acts.unfolded("New secret", *rotate)] if receiver.format is Format.STANDARD else []),
        *([button("disable-receiver", "Switch off", "Tell it nothing until it is switched on again")] if receiver.is_enabled else []),
        acts.unfolded("Delete", *remove),
    ]


_FLOORS = {
    "": "every severity",
    "critical": "critical only",
    "critical, error": "error and worse",
    "critical, error, warning": "warning and worse",
}


def _fields(receiver: Receiver | None) -> list[Component]:
    """The form of a receiver; what is secret is never put into it, and stays where nothing is typed."""
    floor = "" if receiver is None else ", ".join(receiver.severities)
    floors = [*_FLOORS.items(), *([(floor, floor)] if floor not in _FLOORS else [])]
    url_note = "https to a public address; others need METERBRIDGE_WEBHOOK_ALLOW. E-mail: mailto:name@example.com"
    parts = [
        acts.field("Name", "name", "" if receiver is None else receiver.name, needed=True),
        *([acts.choice("Format", "format", [(form.value, words) for form, words in _FORMATS.items()])] if receiver is None else []),
        acts.field(
            "URL",
            "url",
            hint="https://hooks.example.com/…" if receiver is None else f"{place(receiver.url, receiver.format)} stays",
            needed=receiver is None,
            wide=True,
            note=url_note,
        ),
    ]
    if receiver is None or receiver.format is Format.PAGERDUTY:
        parts.append(acts.field("Routing key", "routing_key", hint="PagerDuty only" if receiver is None else "stays as it is"))
    if receiver is None or receiver.format is Format.STANDARD:
        hint = "made for you" if receiver is None else "stays as it is"
        parts.append(acts.field("Secret", "secret", hint=hint, note="Standard Webhooks only: whsec_…, if the receiver has one already"))
    return [
        *parts,
        acts.choice(
            "Default",
            "default",
            (("no", "rules that name it"), ("yes", "rules that name nobody, too")),
            chosen="yes" if receiver is not None and receiver.is_default else "no",
        ),
        acts.choice("Severities", "severities", floors, chosen=floor),
        acts.field("Workspaces", "workspaces", "" if receiver is None else ", ".join(receiver.workspaces), hint="all"),
        acts.field(
            "Only alerts with",
            "matchers",
            "" if receiver is None else _matched(receiver.matchers),
            hint="all",
            wide=True,
            note="label=value with commas between, such as deployment=chat, kind=throttled_requests; one label twice takes either",
        ),
    ]


def _new(view: View) -> Component:
    make = acts.form(view.prefix, "create-receiver", "Make the receiver", back=PATH, fields=_fields(None), name="fields")
    return card("A new receiver", make, note="Its secret is shown once when it is made. Send it a test afterwards.", name="wide")


def _deliveries(view: View, one: ReceiverStanding) -> Component:
    columns = [
        tables.Column("What"),
        tables.Column("State"),
        tables.Column("Made"),
        tables.Column("Arrived"),
        tables.Column("Attempts", is_number=True),
        tables.Column("Last answer"),
        tables.Column("Next attempt"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(delivery: Delivery) -> list[tables.Cell]:
        answer = " ".join(part for part in (str(delivery.last_status or ""), text.visible(delivery.last_error or "")) if part)
        again = acts.form(view.prefix, "replay", "Send again", back=PATH, title="The same bytes under the same id", id=one.receiver.id, delivery=delivery.id)
        return [
            [text.visible(delivery.type), html.Br(), html.Span(tables.named(one.about.get(delivery.alert_id, "")), className="where-is")]
            if delivery.alert_id in one.about
            else text.visible(delivery.type),
            html.Span(delivery.status.value, className=f"pill {_PILLS.get(delivery.status, 'provisional')}"),
            html.Span(text.ago(delivery.created_at, view.now), title=text.exact_instant(delivery.created_at)),
            text.instant(delivery.delivered_at) if delivery.delivered_at else "",
            text.count(delivery.attempts),
            [html.Span(answer or "none yet", className="wrap"), *_attempts(one.attempts.get(delivery.id, ()))],
            text.instant(delivery.next_attempt_at) if delivery.next_attempt_at and delivery.status == DeliveryStatus.PENDING else "",
            *([html.Span(again if one.receiver.is_enabled else "", className="acts")] if view.may_act else []),
        ]

    name = text.visible(one.receiver.name)
    return card(f"Last told to {name}", tables.table(columns, [cells(row) for row in one.deliveries], caption=f"Last deliveries to {name}"), name="wide")


def _attempts(tried: Sequence[DeliveryAttempt]) -> list[Component]:
    """Every attempt, for whoever asks why it is not there yet."""
    if len(tried) < 2:
        return []
    lines = [f"{text.instant(one.at)}: {one.status or ''} {text.visible(one.error)} ({one.duration_ms} ms)" for one in tried[-20:]]
    return [acts.unfolded(f"{len(tried)} attempts", html.Ul([html.Li(line) for line in lines], className="choices"))]
