"""Who is told of alerts: the receivers, how they are, and what was sent to them lately; an admin tests and replays here."""

from __future__ import annotations

from collections.abc import Sequence

from dash import html
from dash.development.base_component import Component

from dashboard import acts, tables, text
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile
from models.ledger import ReceiverStanding
from models.notices import Delivery, DeliveryStatus

PATH = "receivers"
NAME = "Receivers"
GROUP = "Operations"

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
    if isinstance(found, Failure):
        return [*head, failure_panel(found, view.here)]
    if not found:
        how = "Nobody is told yet. Add a receiver with POST /v1/webhooks; one that is a default hears the built-in rules."
        return [*head, card("Receivers", html.P(how), name="wide")]
    return [*head, _tiles(found), _table(view, found), *(_deliveries(view, one) for one in found if one.deliveries)]


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
        state = "well" if _is_well(one) else f"{receiver.failures} failures in a row"
        if not receiver.is_enabled:
            state = f"off: {receiver.disabled_reason or 'by hand'}"
        elif receiver.rests_until is not None:
            state = f"rests until {text.instant(receiver.rests_until)} after {receiver.failures} failures"
        test = acts.form(view.prefix, "test-receiver", "Send a test", back=PATH, title="Send a sample that says it is a test", id=receiver.id)
        return [
            tables.named(receiver.name),
            receiver.format.value,
            html.Span(text.visible(state), className="pill settled" if _is_well(one) else "pill provisional"),
            html.Span(
                ", ".join(map(text.visible, receiver.workspaces)) or ("built-in rules and those that name it" if receiver.is_default else "rules that name it"),
                className="wrap",
            ),
            *([html.Span(test if receiver.is_enabled else "enable it first: PUT /v1/webhooks/{id}", className="acts")] if view.may_act else []),
        ]

    return card("Receivers", tables.table(columns, [cells(one) for one in found], caption="Receivers"), name="wide")


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
            text.visible(delivery.type),
            html.Span(delivery.status.value, className=f"pill {_PILLS.get(delivery.status, 'provisional')}"),
            html.Span(text.ago(delivery.created_at, view.now), title=text.exact_instant(delivery.created_at)),
            text.instant(delivery.delivered_at) if delivery.delivered_at else "",
            text.count(delivery.attempts),
            html.Span(answer or "none yet", className="wrap"),
            text.instant(delivery.next_attempt_at) if delivery.next_attempt_at and delivery.status == DeliveryStatus.PENDING else "",
            *([html.Span(again if one.receiver.is_enabled else "", className="acts")] if view.may_act else []),
        ]

    name = text.visible(one.receiver.name)
    return card(f"Last told to {name}", tables.table(columns, [cells(row) for row in one.deliveries], caption=f"Last deliveries to {name}"), name="wide")
