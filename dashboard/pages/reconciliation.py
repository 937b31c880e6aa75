"""Bill against metering: from what was expected to what was billed, in causes; then the lines behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.filters import Selection
from dashboard.pages import deployment as deployments
from dashboard.pages import monthly
from dashboard.shell import Failure, View, age_line, card, empty_panel, failure_panel, switch, tile, together
from models import money
from models.errors import InvalidInput
from models.ledger import Adjustment, ClosedMonth, CostQuery, ReconciliationRow, ReconciliationTotal, invoiced_of
from models.money import ZERO
from models.periods import DAY, Period, day_start, month_period, month_start, utc_day
from models.variance import Cause

PATH = "reconciliation"
NAME = "Reconciliation"
GROUP = "Money"
# Each cell is a component that the browser builds: a few hundred rows take it half a minute.
_MOST_ROWS = 25
_MOST_REQUESTS = 25
_MONTHS = 6
_LONGEST = timedelta(days=100)
_INVOICED = tables.Column("Invoiced", is_number=True, title="what of billed is on an invoice")


def layout(view: View) -> list[Component]:
    """One question to the ledger: every workspace, deployment, meter and UTC day of the period; of one row also what is behind it."""
    period = _whole_days(view)
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    closed = view.ask("the closed months", lambda: view.ledger.closed_months(now=view.now)) if view.visible is None else []
    finals = [] if isinstance(closed, Failure) else closed
    head: list[Component] = [
        html.Div(
            [html.H1(NAME), html.P(f"Does the bill agree with the requests? {text.span(period)}, whole UTC days", className="subtitle")], className="heading"
        ),
        age_line(age, view.now),
        _months(view, period, finals),
    ]
    if isinstance(closed, Failure):
        head.append(failure_panel(closed, view.here))
    found = view.ask("the reconciliation", lambda: view.ledger.reconciliation(period, view.selection.filters(view.visible), now=view.now))
    if isinstance(found, Failure):
        return [*head, failure_panel(found, view.here)]
    if not found.rows:
        return [*head, empty_panel(view, age)]
    try:
        cause, day = _cause(view), _day(view)
    except InvalidInput as fault:
        return [*head, failure_panel(Failure("this part of the address", fault.message, passes=False), view.link(PATH, replace(view.selection, own=())))]
    whole = replace(view.selection, begin=period.start, end=period.end)
    parts: list[Component] = [*_row(view, whole, found.rows, day)] if day is not None else []
    for total in sorted(found.totals, key=lambda one: -abs(one.billed)):
        rows = [row for row in found.rows if row.currency == total.currency]
        several = len(found.totals) > 1
        parts += [
            _tiles(view, whole, total, several=several),
            *([_chart(view, whole, total, several=several)] if total.expected or total.billed else []),
            _by_cause(view, whole, rows, total, cause),
            _by_deployment(view, whole, rows, total),
        ]
    return [*head, *parts, _lines(view, whole, found.rows, cause), *monthly.sections(view, period, PATH), *_adjusted(view, period, finals)]


def _cause(view: View) -> Cause | None:
    """The cause that the address asks for."""
    asked = view.selection.asked("cause")
    if asked is None or asked in set(Cause):
        return None if asked is None else Cause(asked)
    raise InvalidInput(f"there is no cause {asked[:40]!r}; use one of {', '.join(Cause)}")


def _day(view: View) -> date | None:
    """The day of the row that the address asks for."""
    asked = view.selection.asked("day")
    try:
        return None if asked is None else date.fromisoformat(asked)
    except ValueError as fault:
        raise InvalidInput(f"day must be written like 2026-11-03, not {asked[:20]!r}" if asked else "") from fault


def _months(view: View, period: Period, closed: list[ClosedMonth]) -> Component:
    """The last months by name, those that are closed marked."""
    finals = {one.close.month for one in closed}
    month, options = month_start(utc_day(view.now)), []
    for _ in range(_MONTHS):
        of = month_period(month)
        chosen = replace(view.selection, begin=of.start, end=of.end, own=())
        options.append((f"{month:%b %Y}{' · closed' if month in finals else ''}", view.link(PATH, chosen), of == period))
        month = month_start(month - DAY)
    return html.Div(switch("Month", list(reversed(options))))


def _whole_days(view: View) -> Period:
    chosen = view.selection.period(view.now)
    start = day_start(utc_day(chosen.start))
    end = day_start(utc_day(chosen.end - timedelta(microseconds=1)) + DAY)
    return Period(max(start, end - _LONGEST), end)


def _tiles(view: View, whole: Selection, total: ReconciliationTotal, *, several: bool) -> Component:
    unknown, unit = total.unknown_token_requests, f" ({total.currency or 'no currency'})" if several else ""
    currency = total.currency

    def figure(name: str, value: Decimal | None) -> Component:
        return view.figure(name, value, currency, selection=whole, reason="nothing is billed")

    return html.Div(
        [
            tile(
                f"Unexplained{unit}",
                figure("unexplained", total.unexplained),
                note=[
                    "the figure to drive to zero · ",
                    dcc.Link("which rows", href=view.link(PATH, view.selection.asking(cause=Cause.UNEXPLAINED.value, day=None, meter=None))),
                ],
            ),
            tile(f"Coverage{unit}", figure("bill_coverage", total.coverage), note="of the billed amount was seen by our instruments"),
            tile(
                f"Expected{unit}",
                figure("expected", total.expected),
                note=f"metered quantities × price; {text.count(unknown)} calls without known tokens, {text.percent(total.unknown_token_share)} of all"
                if unknown
                else "metered quantities × price; every call told its tokens",
            ),
            tile(f"Billed{unit}", figure("billed", total.billed), note=["variance ", figure("variance", total.variance)]),
            tile(
                f"Invoiced{unit}",
                _invoiced(view, total.invoiced, total.not_invoiced, currency, selection=whole),
                note=total.not_invoiced or "all of what is billed is on an invoice",
            ),
        ],
        className="tiles",
    )


def _chart(view: View, whole: Selection, total: ReconciliationTotal, *, several: bool) -> Component:
    steps = [
        ("expected", total.expected, True),
        *((text.cause(cause), amount, False) for cause, amount in total.causes.items()),
        ("billed", total.billed, True),
    ]
    unit = f" ({total.currency or 'no currency'})" if several else ""
    asked: list[tuple[str, dict[str, str]]] = [("expected", {}), *(("cause", {"cause": cause.value}) for cause in total.causes), ("billed", {})]
    ways = [view.why(name, total.currency, selection=whole, **own) for name, own in asked]
    said = "; ".join(f"{words} {text.money(amount, total.currency)}" for words, amount, _ in steps)
    return card(
        f"From expected to billed{unit}",
        figures.graph(
            figures.waterfall(steps, currency=total.currency, revision=view.here, why=ways), name=f"waterfall-{total.currency}", describes=said, height=380
        ),
        together("Together the steps are ", view.figure("variance", total.variance, total.currency, selection=whole), "; each is a line of the causes below"),
        note="Each step is a named cause; together they are the whole difference, exactly.",
        name="wide",
    )


def _by_deployment(view: View, whole: Selection, rows: list[ReconciliationRow], total: ReconciliationTotal) -> Component:
    grouped: dict[tuple[str | None, str | None], list[ReconciliationRow]] = {}
    for row in rows:
        grouped.setdefault((row.workspace, row.deployment), []).append(row)
    lines: list[tuple[Decimal, list[tables.Cell]]] = []
    for (workspace, deployment), of in grouped.items():
        expected, billed = money.add(row.expected for row in of), money.add(row.billed for row in of)
        invoiced, not_invoiced = invoiced_of(of)
        causes: dict[Cause, Decimal] = {}
        for row in of:
            for cause, amount in row.causes.items():
                causes[cause] = money.plus(causes.get(cause, ZERO), amount)
        narrowed = monthly.narrowed(whole, workspace, deployment)
        lacks = monthly.without(workspace, deployment)
        lines.append(
            (
                abs(money.minus(billed, expected)),
                [
                    tables.named(workspace),
                    html.A(tables.named(deployment), href=view.link(PATH, narrowed)) if deployment else tables.named(deployment),
                    *(
                        view.figure(name, value, total.currency, selection=narrowed, without=lacks)
                        for name, value in (("expected", expected), ("billed", billed))
                    ),
                    _invoiced(view, invoiced, not_invoiced, total.currency, selection=narrowed, without=lacks),
                    view.figure("variance", money.minus(billed, expected), total.currency, selection=narrowed, without=lacks),
                    html.Span(_told(view, causes, total.currency, selection=narrowed, without=lacks)[:7] or "none", className="wrap"),
                ],
            )
        )
    columns = [
        tables.Column("Workspace"),
        tables.Column("Deployment"),
        tables.Column("Expected", is_number=True),
        tables.Column("Billed", is_number=True),
        _INVOICED,
        tables.Column("Variance", is_number=True, title="billed less expected"),
        tables.Column("Causes"),
    ]
    ordered = [cells for _, cells in sorted(lines, key=lambda pair: -pair[0])]
    heading = f"By deployment ({total.currency or 'no currency'})"
    return card(heading, tables.table(columns, ordered[:_MOST_ROWS], caption=heading), name="wide")


def _by_cause(view: View, whole: Selection, rows: list[ReconciliationRow], total: ReconciliationTotal, chosen: Cause | None) -> Component:
    """The causes with their amounts; each is a way to its rows."""
    lines: list[list[tables.Cell]] = []
    # What cancels out over the period (timing) is no step of the chart above, but there it is.
    amounts = dict.fromkeys((cause for row in rows for cause, amount in row.causes.items() if amount), ZERO) | dict(total.causes)
    for cause, amount in sorted(amounts.items(), key=lambda pair: -abs(pair[1])):
        of = [row for row in rows if row.causes.get(cause)]
        link = dcc.Link(text.cause(cause), href=view.link(PATH, view.selection.asking(cause=cause.value, day=None, meter=None)))
        lines.append(
            [
                html.Strong(link) if cause == chosen else link,
                view.figure("cause", amount, total.currency, selection=whole, cause=cause.value),
                text.count(len(of)),
                html.Span(", ".join(sorted({text.name(row.deployment) for row in of})[:4]), className="wrap"),
            ]
        )
    if not lines:
        return card("Causes", html.P("None: every line was billed as it was metered."), name="wide")
    columns = [tables.Column("Cause"), tables.Column("Amount", is_number=True), tables.Column("Rows", is_number=True), tables.Column("Deployments")]
    clear = dcc.Link("All causes", href=view.link(PATH, view.selection.asking(cause=None)), className="button") if chosen is not None else None
    heading = f"Causes ({total.currency or 'no currency'})"
    return card(heading, tables.table(columns, lines, caption=heading), note="A cause shows its rows below.", aside=clear, name="wide")


def _lines(view: View, whole: Selection, found: list[ReconciliationRow], cause: Cause | None) -> Component:
    """The rows themselves: those of a cause, or those that differ; largest first."""
    rows = [row for row in found if (row.causes.get(cause) if cause is not None else row.variance)]
    rows.sort(key=lambda row: (-abs(row.causes[cause] if cause is not None else row.variance), row.day, row.deployment or "", row.meter))
    heading = f"Rows with {text.cause(cause)}" if cause is not None else "Rows that differ"
    if not rows:
        return card(heading, html.P("None in this period." if cause is not None else "None: every line was billed as it was metered."), name="wide")
    columns = [
        tables.Column("Day"),
        tables.Column("Workspace"),
        tables.Column("Deployment"),
        tables.Column("Meter"),
        tables.Column("Expected", is_number=True),
        tables.Column("Billed", is_number=True),
        _INVOICED,
        tables.Column("Variance", is_number=True, title="billed less expected"),
        tables.Column("Causes"),
        tables.Column("State", title="open: the bill may still come; settling: it may still change; closed: final"),
    ]
    cells: list[list[tables.Cell]] = [
        [
            dcc.Link(text.day(row.day), href=_address(view, row), title="what is behind this row"),
            tables.named(row.workspace, length=24),
            tables.named(row.deployment, length=28),
            text.words(row.meter),
            *(
                view.figure(name, getattr(row, name), row.currency, selection=monthly.narrowed(whole, row.workspace, row.deployment), **_own(row))
                for name in ("expected", "billed")
            ),
            _invoiced(view, row.invoiced, row.not_invoiced, row.currency, selection=monthly.narrowed(whole, row.workspace, row.deployment), **_own(row)),
            view.figure("variance", row.variance, row.currency, selection=monthly.narrowed(whole, row.workspace, row.deployment), **_own(row)),
            html.Span(_told(view, row.causes, row.currency, selection=monthly.narrowed(whole, row.workspace, row.deployment), **_own(row)), className="wrap"),
            html.Span(row.state, className=f"pill {_PILLS[row.state]}")
            if row.overdue_since is None
            else html.Span("overdue", className="pill provisional", title=f"{row.state}; the bill of it should have come by {text.instant(row.overdue_since)}"),
        ]
        for row in rows[:_MOST_ROWS]
    ]
    shown = f"The {_MOST_ROWS} largest of {text.count(len(rows))}" if len(rows) > _MOST_ROWS else f"All {text.count(len(rows))}"
    return card(
        heading,
        tables.table(columns, cells, caption=heading),
        note=f"{shown}; a day shows its requests and the bill's rows. All rows: /v1/reconciliation.",
        name="wide",
    )


def _invoiced(view: View, value: Decimal | None, reason: str | None, currency: str | None, **narrowed: Any) -> Component:
    """What of a billed amount is on an invoice; with a mark where a part of it is on none yet."""
    if value is None:
        return view.figure("invoiced", None, currency, reason=reason, shown="none yet", **narrowed)
    said = view.figure("invoiced", value, currency, **narrowed)
    return said if reason is None else tables.beneath(said, "in part")


def _own(row: ReconciliationRow) -> dict[str, Any]:
    """What a row is narrowed by beside its place."""
    return {"meter": row.meter, "day": row.day.isoformat(), "without": monthly.without(row.workspace, row.deployment)}


def _told(view: View, causes: Mapping[Cause, Decimal], currency: str | None, **narrowed: Any) -> list[str | Component]:
    """The causes in words, the largest first, each amount a figure."""
    said: list[str | Component] = []
    for cause, amount in sorted(causes.items(), key=lambda pair: -abs(pair[1])):
        if amount:
            said += [f"{'; ' if said else ''}{text.cause(cause)} ", view.figure("cause", amount, currency, cause=cause.value, **narrowed)]
    return said


def _address(view: View, row: ReconciliationRow) -> str:
    return view.link(PATH, monthly.narrowed(view.selection, row.workspace, row.deployment).asking(day=row.day.isoformat(), meter=row.meter, cause=None))


# -- one row ----------------------------------------------------------------------------------------


def _row(view: View, whole: Selection, found: list[ReconciliationRow], day: date) -> list[Component]:
    """What is behind a row: its price lines, the bill's landings, and the newest of the day's requests."""
    meter = view.selection.asked("meter")
    rows = [row for row in found if row.day == day and meter in (None, row.meter)]
    back = dcc.Link("Close", href=view.link(PATH, view.selection.asking(day=None, meter=None)), className="button")
    heading = f"Behind {text.day(day)}{f', {text.words(meter)}' if meter else ''}"
    if not rows:
        return [card(heading, html.P("There is no such row in this period and these filters."), aside=back, name="wide")]
    of_day = Period(day_start(day), day_start(day + DAY))
    filters = view.selection.filters(view.visible)
    query = CostQuery(of_day, "none", ("workspace", "deployment", "meter"), "billed", filters)
    behind = view.ask("the lines behind this row", lambda: view.ledger.explain(query, now=view.now))
    if isinstance(behind, Failure):
        return [failure_panel(behind, view.here)]
    files = {part.id: part for part in behind.parts}
    lines: list[list[tables.Cell]] = []
    for line in behind.metered:
        if meter not in (None, line.meter):
            continue
        price = (
            f"× {text.money_exactly(line.unit_price, line.price_currency)} per {line.unit}" if line.unit_price is not None else (line.reason or text.UNKNOWN)
        )
        source = f"{line.price_source or ''} ({line.price_version})" if line.price_version else ""
        lines.append(
            [
                "metered",
                tables.named(line.deployment),
                html.Span(f"{text.quantity(line.quantity)} {price}", className="wrap"),
                html.Span(text.visible(source), className="wrap"),
                tables.amount(line.amount, line.currency, line.reason),
            ]
        )
    for bill in behind.billed:
        if meter not in (None, bill.meter):
            continue
        part = files.get(bill.part_id)
        source = f"{part.file_name}, landed {text.instant(part.landed_at)}" if part is not None and view.visible is None else ""
        said = f"{text.count(bill.rows)} {'row' if bill.rows == 1 else 'rows'} of the bill{' (share)' if bill.estimate else ''}"
        lines.append(
            ["billed", tables.named(bill.deployment), said, html.Span(text.visible(source), className="wrap"), tables.amount(bill.amount, bill.currency)]
        )
    columns = [tables.Column("Side"), tables.Column("Deployment"), tables.Column("From"), tables.Column("Source"), tables.Column("Amount", is_number=True)]
    causes: list[str | Component] = []
    for row in rows:
        told = _told(view, row.causes, row.currency, selection=monthly.narrowed(whole, row.workspace, row.deployment), **_own(row))
        causes += ["; " if causes and told else "", *told]
    standing = ", ".join(sorted({row.state for row in rows}))
    return [
        card(
            heading,
            html.P([f"{standing.capitalize()}. ", *(["Differs by: ", *causes] if causes else ["It was billed as it was metered"]), "."]),
            tables.table(columns, lines, caption=heading) if lines else html.P("Neither a request nor a charge is known for it."),
            aside=back,
            name="wide",
        ),
        _requests(view, of_day),
    ]


def _requests(view: View, of_day: Period) -> Component:
    page = view.ask(
        "the day's requests",
        lambda: view.ledger.usage_list(period=of_day, filters=view.selection.filters(view.visible), limit=_MOST_REQUESTS, cursor=None, now=view.now),
    )
    if isinstance(page, Failure):
        return failure_panel(page, view.here)
    if not page.items:
        return card("Requests of the day", html.P("None was sent to us: look whether this deployment reports its usage."), name="wide")
    columns = [
        tables.Column("Time"),
        tables.Column("Id"),
        tables.Column("Input", is_number=True),
        tables.Column("Output", is_number=True),
        tables.Column("Status"),
    ]
    rows: list[list[tables.Cell]] = [
        [
            text.instant(one.time),
            tables.named(one.id),
            *(deployments.event_figure(view, one, name) for name in ("input_tokens", "output_tokens")),
            text.words(one.status),
        ]
        for one in page.items
    ]
    note = f"The newest {_MOST_REQUESTS}; all of them at /v1/usage." if page.next_cursor else ""
    return card("Requests of the day", tables.table(columns, rows, caption="Requests of the day"), note=note, name="wide")


# -- closed months ----------------------------------------------------------------------------------


def _adjusted(view: View, period: Period, closed: list[ClosedMonth]) -> list[Component]:
    """What today would say differently of a closed month; only where the screen shows exactly that month."""
    month = next((one for one in closed if month_period(one.close.month) == period), None)
    if month is None:
        return []
    found = view.ask("the adjustments", lambda: view.ledger.adjustments(month.close.month, view.selection.filters(view.visible), now=view.now))
    if isinstance(found, Failure):
        return [failure_panel(found, view.here)]
    heading = f"Adjustments since {month.close.month:%B %Y} was closed"
    by = f"Closed {text.instant(month.close.closed_at)} by {text.name(month.close.closed_by)}; its rows stay as they were then."
    if not found:
        return [card(heading, html.P("None: today says what was closed."), note=by, name="wide")]
    columns = [
        tables.Column("Day"),
        tables.Column("Deployment"),
        tables.Column("Meter"),
        tables.Column("Side"),
        tables.Column("Cause"),
        tables.Column("Amount", is_number=True),
    ]

    def cells(one: Adjustment) -> list[tables.Cell]:
        return [
            text.day(one.day),
            tables.named(one.deployment),
            text.words(one.meter),
            one.side,
            text.words(one.cause),
            view.figure(
                "adjustment",
                one.amount,
                one.currency,
                selection=monthly.narrowed(replace(view.selection, begin=period.start, end=period.end), one.workspace, one.deployment),
                without=monthly.without(one.workspace, one.deployment),
                day=one.day.isoformat(),
                meter=one.meter,
                side=one.side,
                cause=one.cause,
            ),
        ]

    ordered = sorted(found, key=lambda one: -abs(one.amount))[:_MOST_ROWS]
    return [card(heading, tables.table(columns, [cells(one) for one in ordered], caption=heading), note=by, name="wide")]


_PILLS = {"open": "provisional", "settling": "settling", "closed": "settled"}
