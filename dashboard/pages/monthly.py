"""What finance does with a month beside looking at it: the worklist with its signatures, invoices tied out, bills that are late, what moved since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import acts, tables, text
from dashboard.filters import Selection
from dashboard.shell import Failure, View, card, failure_panel
from models.ledger import Invoice, Lag, Moved, WorklistItem
from models.periods import Period, month_period, utc_day

_MOST_ROWS = 15


def month_of(period: Period) -> date | None:
    """The month that a screen shows, whole; None where it shows another period."""
    first = utc_day(period.start)
    return first if month_period(first) == period else None


def sections(view: View, period: Period, path: str) -> list[Component]:
    """The parts of the reconciliation's page that are of a month, and what moved since the last bill came."""
    parts: list[Component] = [_moved(view, period, path)]
    month = month_of(period)
    if month is None:
        return [*parts, card("Worklist and invoices", html.P("They are of a month: choose one above."), name="wide")]
    parts.append(_worklist(view, month, path))
    if view.visible is None:  # invoices and bills are of whole subscriptions
        parts += [_invoices(view, month, path), _lags(view)]
    return parts


def narrowed(selection: Selection, workspace: str | None, deployment: str | None) -> Selection:
    """The selection of one place; what a place has no name for stays as wide as it was."""
    return replace(
        selection,
        workspaces=(workspace,) if workspace else selection.workspaces,
        deployments=(deployment,) if deployment else selection.deployments,
    )


def without(workspace: str | None, deployment: str | None) -> list[str]:
    """Which of the two a row has none of."""
    return [name for name, value in (("workspace", workspace), ("deployment", deployment)) if value is None]


# -- worklist ---------------------------------------------------------------------------------------


def _worklist(view: View, month: date, path: str) -> Component:
    found = view.ask("the worklist", lambda: view.ledger.worklist(month, view.selection.filters(view.visible), now=view.now))
    if isinstance(found, Failure):
        return failure_panel(found, view.here)
    if not found:
        return card("Worklist", html.P("Nothing to look at: no line differs by 1.00 and by 1 % of its larger side."), name="wide")
    whole = replace(view.selection, begin=month_period(month).start, end=month_period(month).end)
    columns = [
        tables.Column("Deployment"),
        tables.Column("Meter"),
        tables.Column("Variance", is_number=True, title="billed less expected"),
        tables.Column("To look at", is_number=True, title="without what only has to be waited for"),
        tables.Column("Causes"),
        tables.Column("State"),
        tables.Column("Owner"),
        tables.Column("Note"),
        tables.Column("Signed"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(item: WorklistItem) -> list[tables.Cell]:
        of, lacks, entry = narrowed(whole, item.workspace, item.deployment), without(item.workspace, item.deployment), item.entry
        causes: list[str | Component] = []
        for cause, amount in sorted(item.causes.items(), key=lambda pair: -abs(pair[1]))[:4]:
            figure = view.figure("cause", amount, item.currency, selection=of, without=lacks, cause=cause.value, meter=item.meter)
            causes += [f"{'; ' if causes else ''}{text.cause(cause)} ", figure]
        return [
            html.Span([tables.named(item.deployment, length=36), html.Span(tables.named(item.workspace, length=24), className="where")]),
            text.words(item.meter),
            view.figure("variance", item.variance, item.currency, selection=of, without=lacks, meter=item.meter),
            view.figure("left", item.left, item.currency, selection=of, without=lacks, meter=item.meter),
            html.Span(causes, className="wrap"),
            item.state,
            text.visible(entry.owner) if entry is not None else "",
            html.Span(text.visible(entry.note), className="wrap") if entry is not None and entry.note else "",
            _signed(item),
            *([_say(view, item, path)] if view.may_act else []),
        ]

    note = "Lines that differ by at least 1.00 and 1 %, and those that somebody said something of. A signature is of the figures as they stood."
    return card("Worklist", tables.table(columns, [cells(item) for item in found[:_MOST_ROWS]], caption="Worklist"), note=note, name="wide")


def _signed(item: WorklistItem) -> Component | str:
    entry = item.entry
    if entry is None or entry.signed_at is None:
        return ""
    by = f"{text.visible(entry.signed_by or '')}, {text.day(entry.signed_at.date())}"
    if not item.changed:
        return html.Span(by, className="pill settled", title="unchanged since")
    moved = "; ".join(f"{text.cause(name)} by {text.money(amount, item.currency)}" for name, amount in item.changed.items())
    return html.Span([html.Span("changed since you signed", className="pill provisional"), f" {by}: {moved}"], className="wrap")


def _say(view: View, item: WorklistItem, path: str) -> Component:
    entry = item.entry
    is_signed = entry is not None and entry.signed_at is not None
    fields = [acts.field("Owner", "owner", entry.owner if entry is not None else ""), acts.field("Note", "note", entry.note if entry is not None else "")]
    back = f"{path}{view.selection.search()}"
    return html.Span(
        [
            acts.form(view.prefix, "sign-line", "Sign again" if is_signed else "Sign", back=back, id=item.id, title="These figures are understood"),
            acts.unfolded("Say", acts.form(view.prefix, "say-of-line", "Save", back=back, fields=fields, name="fields", id=item.id)),
        ],
        className="acts",
    )


# -- invoices and late bills ------------------------------------------------------------------------


def _invoices(view: View, month: date, path: str) -> Component:
    found = view.ask("the invoices", lambda: view.ledger.invoices(month, now=view.now))
    if isinstance(found, Failure):
        return failure_panel(found, view.here)
    if not found:
        return card("Invoices", html.P("No charge of this month has landed."), name="wide")
    columns = [
        tables.Column("Invoice"),
        tables.Column("In scope", is_number=True, title="model spend: what every other figure here counts"),
        tables.Column("Out of scope", is_number=True),
        tables.Column("Credits", is_number=True),
        tables.Column("Tax", is_number=True),
        tables.Column("Total", is_number=True, title="the four together"),
        tables.Column("Invoice says", is_number=True),
        tables.Column("Difference", is_number=True, title="must be nought"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]
    whole = replace(view.selection, begin=month_period(month).start, end=month_period(month).end)

    def cells(one: Invoice) -> list[tables.Cell]:
        def figure(name: str, value: Decimal | None) -> Component:
            return view.figure(
                f"invoice_{name}", value, one.currency, selection=whole, reason="nobody has said what the invoice prints", invoice=one.invoice_id or "-"
            )

        fields = [acts.field("Amount due", "amount", ""), acts.field("Tax in it", "tax", "0")]
        back = f"{path}{view.selection.search()}"
        return [
            tables.named(one.invoice_id, absent="not invoiced yet"),
            *(figure(name, getattr(one, name)) for name in ("in_scope", "out_of_scope", "credits", "tax", "total", "stated", "difference")),
            *(
                [
                    acts.unfolded(
                        "Say what it prints",
                        acts.form(view.prefix, "say-of-invoice", "Save", back=back, fields=fields, name="fields", id=one.invoice_id, currency=one.currency),
                    )
                    if one.invoice_id
                    else ""
                ]
                if view.may_act
                else []
            ),
        ]

    note = "In scope + out of scope + credits + tax = invoice, or the difference is shown."
    return card("Invoices tied out", tables.table(columns, [cells(one) for one in found[:_MOST_ROWS]], caption="Invoices"), note=note, name="wide")


def _lags(view: View) -> Component:
    found = view.ask("how late bills are", lambda: view.ledger.lags(now=view.now))
    if isinstance(found, Failure):
        return failure_panel(found, view.here)
    if not found:
        return card("How late bills come", html.P("No bill has landed yet."), name="wide")
    columns = [
        tables.Column("Subscription"),
        tables.Column("Route"),
        tables.Column("Meter"),
        tables.Column("Reaches to"),
        tables.Column("Usually"),
        tables.Column("State"),
    ]

    def cells(one: Lag) -> list[tables.Cell]:
        hours = text.count(one.usual // timedelta(hours=1))
        few = "as its route; too few landings to learn from" if one.meter else "documented; too few landings to learn from"
        learnt = f"within {hours} h" + (f", from {one.landings} landings" if one.landings >= 5 else f" ({few})")
        late = one.overdue_since is not None
        return [
            tables.named(one.subscription, length=40),
            text.words(one.route),
            text.words(one.meter) if one.meter else "all",
            text.day(one.reaches),
            learnt,
            html.Span(f"overdue since {text.instant(one.overdue_since)}" if late else "on time", className=f"pill {'provisional' if late else 'settled'}"),
        ]

    return card("How late bills come", tables.table(columns, [cells(one) for one in found[:_MOST_ROWS]], caption="How late bills come"), name="wide")


# -- what moved -------------------------------------------------------------------------------------


def _moved(view: View, period: Period, path: str) -> Component:
    """Asked for by a link: it reads the period twice."""
    heading = "What changed since last time"
    if view.selection.asked("since") is None:
        link = dcc.Link(
            "Compare with before the newest bill", href=view.link(path, view.selection.asking(since="bill", day=None, meter=None)), className="button"
        )
        return card(heading, aside=link, note="The period as it was known before the newest bill came.", name="wide")
    since = view.ask("when the newest bill came", lambda: view.ledger.before_last_landing(now=view.now))
    if isinstance(since, Failure) or since is None:
        return failure_panel(since, view.here) if isinstance(since, Failure) else card(heading, html.P("No bill has landed yet."), name="wide")
    found = view.ask("what changed", lambda: view.ledger.moved_since(period, view.selection.filters(view.visible), since=since, now=view.now))
    if isinstance(found, Failure):
        return failure_panel(found, view.here)
    close = dcc.Link("Close", href=view.link(path, view.selection.asking(since=None)), className="button")
    note = f"Since {text.instant(since)}, before the newest bill came."
    if not found:
        return card(heading, html.P("Nothing: every line is what it was."), note=note, aside=close, name="wide")
    return card(heading, _moves(view, period, found), note=note, aside=close, name="wide")


def _moves(view: View, period: Period, found: Sequence[Moved]) -> Component:
    columns = [
        tables.Column("Workspace"),
        tables.Column("Deployment"),
        tables.Column("Meter"),
        tables.Column("Expected", is_number=True, title="now less then"),
        tables.Column("Billed", is_number=True, title="now less then"),
        tables.Column("Unexplained", is_number=True, title="now less then"),
    ]
    whole = replace(view.selection, begin=period.start, end=period.end)
    rows: list[list[tables.Cell]] = [
        [
            tables.named(one.workspace, length=24),
            tables.named(one.deployment, length=36),
            text.words(one.meter),
            *(
                view.figure(
                    f"moved_{side}",
                    getattr(one, side),
                    one.currency,
                    selection=narrowed(whole, one.workspace, one.deployment),
                    without=without(one.workspace, one.deployment),
                    meter=one.meter,
                )
                for side in ("expected", "billed", "unexplained")
            ),
        ]
        for one in found[:_MOST_ROWS]
    ]
    return tables.table(columns, rows, caption="What changed since last time")
