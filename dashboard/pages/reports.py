"""Reports: what is sent by itself and how that went, sending one now, and the files to take home."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from urllib.parse import urlencode

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import acts, tables, text
from dashboard.pages import scheduling
from dashboard.shell import Failure, View, age_line, card, failure_panel
from dashboard.trail import changes
from models import ledger
from models.ledger import ScheduleStanding
from models.periods import DAY, month_start, utc_day

PATH = "reports"
NAME = "Reports"
GROUP = "Money"
_DAYS, _WEEKS, _MONTHS = 7, 8, 6
_PILLS = {"waiting": "pill settling", "arrived": "pill settled", "failed": "pill provisional"}


def layout(view: View) -> list[Component]:
    """The weeks and months that can be taken home, newest first."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    closed = view.ask("the closed months", lambda: view.ledger.closed_months(now=view.now)) if view.visible is None else []
    finals = set[date]() if isinstance(closed, Failure) else {one.close.month for one in closed}
    return [
        html.Div(
            [html.H1(NAME), html.P("What is sent by itself, and files to take home with a control total that equals the figures here", className="subtitle")],
            className="heading",
        ),
        age_line(age, view.now),
        *_schedules(view),
        _weekly(view),
        _daily(view),
        _monthly(view, finals),
        _focus(view, finals),
        _kept(view),
    ]


def _schedules(view: View) -> list[Component]:
    """Who gets what by itself, and how that went; one that is asked for by its id is shown with what sending it now would send."""
    if view.visible is not None:
        return []
    found = view.ask("the schedules", view.ledger.report_schedules)
    if isinstance(found, Failure):
        return [failure_panel(found, view.here)]
    new = [scheduling.new(view, PATH)] if view.may_act else []
    if not found:
        where = "Make the first schedule below" if view.may_act else "An admin makes a schedule on this page"
        how = f"Nothing is sent by itself yet. {where}, or keep schedules in a file: meterbridge apply -f."
        return [card("Sent by themselves", html.P(how), name="wide"), *new]
    chosen = next((one for one in found if one.schedule.id == view.selection.asked("schedule")), None)
    columns = [tables.Column(name) for name in ("Schedule", "Report", "Limited to", "To", "Last sent", "How it went")]
    columns += [tables.Column("What to do")] if view.may_act else []
    rows = [_scheduled(view, one) for one in found]
    note = "A period is sent once, some hours after its end; one that the bill has not reached waits up to 72 hours for it."
    listed = card("Sent by themselves", tables.table(columns, rows, caption="Schedules of reports"), note=note, name="wide")
    made = changes(view, "report_schedule")
    if chosen is None:
        return [listed, *new, made]
    return [*([_send_now(view, chosen)] if view.may_act else []), _progress(view, chosen), listed, *new, made]


def _scheduled(view: View, one: ScheduleStanding) -> list[tables.Cell]:
    schedule = one.schedule
    limits = [*(f"team {team}" for team in schedule.teams), *(f"workspace {name}" for name in schedule.workspaces)]
    last = one.sent[0] if one.sent else None
    state = html.Span(
        (schedule.error and "not made") or "nothing sent yet", className="pill provisional" if schedule.error else "pill", title=text.visible(schedule.error)
    )
    return [
        dcc.Link(tables.named(schedule.name), href=view.link(PATH, view.selection.asking(schedule=schedule.id))),
        schedule.report + ("" if schedule.time_zone == "UTC" else f" ({text.visible(schedule.time_zone)})") + ("" if schedule.is_enabled else ", switched off"),
        html.Span(", ".join(map(text.visible, limits)) or "all", className="wrap"),
        html.Span(", ".join(_targets(one)), className="wrap"),
        ""
        if last is None
        else html.Span(f"{last.delivery.period}, {text.ago(last.delivery.made_at, view.now)}", title=text.exact_instant(last.delivery.made_at)),
        state if last is None or schedule.error else html.Span(last.state, className=_PILLS[last.state]),
        *([html.Span(_acts(view, one), className="acts")] if view.may_act else []),
    ]


def _acts(view: View, one: ScheduleStanding) -> list[Component]:
    link = dcc.Link("Preview and send", href=view.link(PATH, view.selection.asking(schedule=one.schedule.id)), className="button")
    return [link, *scheduling.edit(view, one, PATH)]


def _targets(one: ScheduleStanding) -> list[str]:
    names = [f"{text.visible(receiver.name)} ({receiver.format.value})" if receiver else f"{text.visible(name)} (deleted)" for name, receiver in one.receivers]
    places = ((kind, path) for kind, path in (("folder", one.schedule.folder), ("container", one.schedule.container)) if path)
    return [*names, *(f"{kind} {text.visible(path)}" for kind, path in places)]


def _send_now(view: View, one: ScheduleStanding) -> Component:
    schedule = one.schedule
    periods = ledger.periods_of(schedule, now=view.now)
    everybody = "everybody" + (", with the files" if schedule.folder or schedule.container else "")
    fields = [
        _choice("What", "period", [(name, f"{schedule.report} {name}") for name in periods]),
        _choice("To", "receiver", [("", everybody), *((name, text.visible(known.name)) for name, known in one.receivers if known is not None)]),
    ]
    # Named after the last report: the same button pressed twice asks for one report.
    after = one.sent[0].delivery.id if one.sent else "nothing"
    back = f"{PATH}{view.selection.asking(schedule=schedule.id).search()}"
    sending = acts.form(
        view.prefix,
        "send-report",
        "Send now",
        back=back,
        fields=fields,
        title="Sends it once, however often this is pressed",
        name="fields",
        id=schedule.id,
        after=after,
    )
    mails = [html.A(name, href=f"{view.prefix}download/preview?{urlencode({'schedule': schedule.id, 'period': name})}", target="_blank") for name in periods]
    attached = f" Mails enclose {' and '.join(schedule.attach).upper()}." if schedule.attach else " Mails enclose nothing."
    body = html.Div(
        [
            html.P(["It goes to ", html.B(", ".join(_targets(one)) or "nobody", style={"overflowWrap": "anywhere"}), ".", attached]),
            html.P(["Look at the mail first (its figures take a moment): ", *[piece for mail in mails for piece in (mail, " ")]]),
            sending,
        ]
    )
    return card(f"Send {text.visible(schedule.name)} now", body, note="Beside what the schedule sends; who asked for it is in the audit trail.", name="wide")


def _choice(label: str, name: str, values: Sequence[tuple[str, str]]) -> Component:
    return html.Label([html.Span(label), html.Select([html.Option(words, value=value) for value, words in values], name=name)], className="labelled")


def _progress(view: View, one: ScheduleStanding) -> Component:
    columns = [tables.Column(name) for name in ("Report", "Made", "Asked for by", "To", "State")] + [
        tables.Column("Attempts", is_number=True),
        tables.Column("What went wrong"),
    ]
    rows: list[list[tables.Cell]] = [
        [
            sent.delivery.period,
            html.Span(text.ago(sent.delivery.made_at, view.now), title=text.exact_instant(sent.delivery.made_at)),
            text.visible(sent.delivery.asked_by) or "the schedule",
            html.Span(text.visible(part.to), className="wrap"),
            html.Span(part.state, className=_PILLS[part.state]),
            text.count(part.attempts),
            html.Span(text.visible(part.error), className="wrap"),
        ]
        for sent in one.sent
        for part in sent.parts
    ]
    name = text.visible(one.schedule.name)
    problem = [html.P(f"Its report could not be made: {text.visible(one.schedule.error)}", className="fault")] if one.schedule.error else []
    shown = tables.table(columns, rows, caption=f"Last reports of {name}") if rows else html.P("Nothing was sent yet.")
    waiting = sum(part.state == "waiting" for sent in one.sent for part in sent.parts)
    note = f"{waiting} on their way; this refreshes by itself." if waiting else "Everything has arrived or failed."
    return card(f"How {name} went", html.Div([*problem, shown]), note=note if rows else "", name="wide")


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
        files = _files(view, f"weekly?week={name}")
        rows.append([name, f"{text.day(start)} – {text.day(start + 6 * DAY)}", files])
    note = "Made from one kept snapshot: asked for again, a week says the same, and later changes are a numbered restatement."
    return card(
        "Weekly cost report",
        tables.table([tables.Column("Week"), tables.Column("Days"), tables.Column("Files")], rows, caption="Weekly reports"),
        note=note,
        name="wide",
    )


def _daily(view: View) -> Component:
    today = utc_day(view.now)
    rows: list[list[tables.Cell]] = [[text.day(today - back * DAY), _files(view, f"daily?day={today - back * DAY}")] for back in range(1, _DAYS + 1)]
    return card(
        "Daily cost report",
        tables.table([tables.Column("Day"), tables.Column("Files")], rows, caption="Daily reports"),
        note="With its hours; by UTC.",
        name="wide",
    )


def _files(view: View, report: str) -> tables.Cell:
    return [piece for form in ("html", "pdf", "csv", "json") for piece in (_link(view, form.upper(), f"{report}&format={form}"), " ")]


def _monthly(view: View, finals: set[date]) -> Component:
    """What a month cost and what finance books of it; the running one is looked at and not kept."""
    month = month_start(utc_day(view.now))
    rows: list[list[tables.Cell]] = []
    for _ in range(_MONTHS):
        name = f"{month:%Y-%m}"
        rows.append(
            [
                f"{month:%B %Y}",
                _standing(month, finals),
                _files(view, f"monthly?month={name}"),
                _files(view, f"close?month={name}"),
            ]
        )
        month = month_start(month - DAY)
    columns = [tables.Column(name) for name in ("Month", "State", "Cost report", "Close pack")]
    note = "Provisional until the month is closed; what the close changes is then a restatement."
    return card("Monthly cost report and close pack", tables.table(columns, rows, caption="Monthly reports"), note=note, name="wide")


def _standing(month: date, finals: set[date]) -> Component:
    state = "closed" if month in finals else "open"
    return html.Span(state, className=f"pill {'settled' if state == 'closed' else 'provisional'}")


def _focus(view: View, finals: set[date]) -> Component:
    month = month_start(utc_day(view.now))
    rows: list[list[tables.Cell]] = []
    for _ in range(_MONTHS):
        name = f"{month:%Y-%m}"
        links: list[str | Component] = []
        for version in ("1.2", "1.3", "1.4"):
            for form in ("csv", "parquet"):
                links += [_link(view, f"FOCUS {version} {form}", f"focus?month={name}&version={version}&format={form}"), " "]
        rows.append([f"{month:%B %Y}", _standing(month, finals), links])
        month = month_start(month - DAY)
    note = "FOCUS rows are the charges as billed; what no bill reaches yet is an estimate of no billed cost."
    return card(
        "Months in FOCUS",
        tables.table([tables.Column("Month"), tables.Column("State"), tables.Column("Files")], rows, caption="Months in FOCUS"),
        note=note,
        name="wide",
    )
