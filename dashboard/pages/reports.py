"""Reports and exports to take home: the weekly report, the month in FOCUS, the costs of a month."""

from __future__ import annotations

from datetime import date, timedelta

from dash import html
from dash.development.base_component import Component

from dashboard import tables, text
from dashboard.shell import Failure, View, age_line, card, failure_panel
from models.periods import DAY, month_start, utc_day

PATH = "reports"
NAME = "Reports"
GROUP = "Money"
GROUP = "Money"
_WEEKS, _MONTHS = 8, 6


def layout(view: View) -> list[Component]:
    """The weeks and months that can be taken home, newest first."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    closed = view.ask("the closed months", lambda: view.ledger.closed_months(now=view.now)) if view.visible is None else []
    finals = set[date]() if isinstance(closed, Failure) else {one.close.month for one in closed}
    return [
        html.Div(
            [html.H1(NAME), html.P("Files to take home, each with a control total that equals the figures here", className="subtitle")], className="heading"
        ),
        age_line(age, view.now),
        _weekly(view),
        _kept(view),
        _monthly(view, finals),
    ]


def _kept(view: View) -> Component:
    """The snapshots that are kept, newest first; a number above 0 is a restatement."""
    found = view.ask("the kept reports", lambda: view.ledger.report_snapshots(visible=view.visible))
    if isinstance(found, Failure):
        return failure_panel(found, view.here)
    if not found:
        return card(
            "Kept reports", html.P("None yet: a report is kept the first time that somebody asks for a week that is over. Take one above."), name="wide"
        )
    columns = [
        tables.Column("Period"),
        tables.Column("Made"),
        tables.Column("Number"),
        tables.Column("Of"),
        tables.Column("Id"),
        tables.Column("Figures", title="SHA-256 of the figures"),
    ]
    rows: list[list[tables.Cell]] = [
        [
            f"{one.kind} {one.period}" + ("" if one.time_zone == "UTC" else f" ({text.visible(one.time_zone)})"),
            html.Span(text.ago(one.made_at, view.now), title=text.exact_instant(one.made_at)),
            html.Span(f"restatement {one.number}" if one.number else "first", className=f"pill {'provisional' if one.number else 'settled'}"),
            "all that you may see" if one.is_whole else "a part",
            tables.named(one.id, length=44),
            html.Span(text.short(one.figures_sha256, 13), title=one.figures_sha256),
        ]
        for one in found
    ]
    note = "A report is never changed: where later facts change its figures, a restatement says by how much."
    return card("Kept reports", tables.table(columns, rows, caption="Kept reports"), note=note, name="wide")


def _link(view: View, words: str, address: str) -> Component:
    return html.A(words, href=f"{view.prefix}download/{address}", className="button")


def _weekly(view: View) -> Component:
    monday = utc_day(view.now) - timedelta(days=utc_day(view.now).weekday())
    rows: list[list[tables.Cell]] = []
    for back in range(1, _WEEKS + 1):
        start = monday - 7 * back * DAY
        year, week, _ = start.isocalendar()
        name = f"{year}-W{week:02d}"
        links: list[str | Component] = []
        for form in ("html", "pdf", "csv", "json"):
            links += [_link(view, form.upper(), f"weekly?week={name}&format={form}"), " "]
        rows.append([name, f"{text.day(start)} – {text.day(start + 6 * DAY)}", links])
    note = "Made from one kept snapshot: asked for again, a week says the same, and later changes are a numbered restatement."
    return card(
        "Weekly cost report",
        tables.table([tables.Column("Week"), tables.Column("Days"), tables.Column("Files")], rows, caption="Weekly reports"),
        note=note,
        name="wide",
    )


def _monthly(view: View, finals: set[date]) -> Component:
    month = month_start(utc_day(view.now))
    rows: list[list[tables.Cell]] = []
    for _ in range(_MONTHS):
        name = f"{month:%Y-%m}"
        links: list[str | Component] = []
        for version in ("1.2", "1.3", "1.4"):
            for form in ("csv", "parquet"):
                links += [_link(view, f"FOCUS {version} {form}", f"focus?month={name}&version={version}&format={form}"), " "]
        state = "closed" if month in finals else "open"
        rows.append([f"{month:%B %Y}", html.Span(state, className=f"pill {'settled' if state == 'closed' else 'provisional'}"), links])
        month = month_start(month - DAY)
    note = "FOCUS rows are the charges as billed; what no bill reaches yet is an estimate of no billed cost."
    return card(
        "Months in FOCUS",
        tables.table([tables.Column("Month"), tables.Column("State"), tables.Column("Files")], rows, caption="Months in FOCUS"),
        note=note,
        name="wide",
    )
