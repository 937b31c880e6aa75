"""The form of a report's schedule on the Reports page: who gets what of it, when, and how; and taking one away."""

from __future__ import annotations

from collections.abc import Sequence

from dash import html
from dash.development.base_component import Component

from dashboard import acts, text
from dashboard.shell import Failure, View, card
from models.ledger import ScheduleStanding
from models.notices import TELLS_REPORTS
from models.schedules import ReportSchedule

_REPORTS = (
    ("weekly", "weekly cost report"),
    ("daily", "daily cost report"),
    ("monthly", "monthly cost report"),
    ("close", "month close pack"),
)
_ENCLOSED = (("pdf", "the PDF"), ("pdf, csv", "PDF and CSV"), ("csv", "the CSV"), ("", "nothing"))


def new(view: View, back: str) -> Component:
    """A form that makes a schedule."""
    make = acts.form(view.prefix, "create-schedule", "Make the schedule", back=back, fields=_fields(view, None), name="fields")
    return card("A new schedule", make, note="It sends the first period that ends from now on. What is sent until then can be sent by hand.", name="wide")


def edit(view: View, one: ScheduleStanding, back: str) -> list[Component]:
    """The buttons that change a schedule and take it away."""
    schedule = one.schedule
    form = acts.form(view.prefix, "replace-schedule", "Save", back=back, fields=_fields(view, schedule), name="fields", id=schedule.id)
    switch = acts.form(
        view.prefix,
        "replace-schedule",
        "Switch off" if schedule.is_enabled else "Switch on",
        back=back,
        title="Send nothing by itself until it is switched on again" if schedule.is_enabled else "Send the periods whose time comes from now on",
        id=schedule.id,
        enabled="no" if schedule.is_enabled else "yes",
    )
    remove = [
        html.P("It sends nothing any more; what it sent stays on record.", className="field-note"),
        acts.form(view.prefix, "delete-schedule", "Yes, delete it", back=back, id=schedule.id),
    ]
    return [acts.popped("Edit", text.short(text.visible(schedule.name)), form), switch, acts.unfolded("Delete", *remove)]


def _fields(view: View, schedule: ReportSchedule | None) -> list[Component]:
    known = view.ask("the receivers", view.ledger.receivers)
    choices = view.ask("the teams and workspaces", lambda: view.ledger.choices(visible=view.visible, now=view.now))
    told = (
        []
        if isinstance(known, Failure)
        else [(one.receiver.id, f"{text.visible(one.receiver.name)} ({one.receiver.format.value})") for one in known if one.receiver.format in TELLS_REPORTS]
    )
    teams, workspaces = ([], []) if isinstance(choices, Failure) else (choices.teams, choices.workspaces)
    return [
        acts.field("Name", "name", schedule.name if schedule else "", needed=True, hint="Board, every Monday"),
        acts.choice("Report", "report", _REPORTS, chosen=schedule.report if schedule else "weekly"),
        acts.field(
            "Hours after its end",
            "hours_after",
            str(schedule.hours_after if schedule else 7),
            note="0 to 240; one that the bill has not reached waits up to 72 hours",
        ),
        acts.field(
            "Time zone", "time_zone", schedule.time_zone if schedule else "UTC", hint="Europe/Berlin", note="of its days and weeks; a close pack is in UTC"
        ),
        _names("Teams", "teams", "all teams", teams, schedule.teams if schedule else ()),
        _names("Workspaces", "workspaces", "all workspaces", workspaces, schedule.workspaces if schedule else ()),
        acts.several(
            "To",
            "receivers",
            [("", "nobody: files only"), *told, *_gone(schedule.receivers if schedule else (), [name for name, _ in told])],
            chosen=(schedule.receivers if schedule else ()) or [""],
            note="receivers for e-mail, Slack, Teams or Standard Webhooks, made on the Receivers page",
        ),
        acts.choice("Mails enclose", "attach", _ENCLOSED, chosen=", ".join(sorted(schedule.attach, reverse=True)) if schedule else "pdf"),
        acts.field("Folder", "folder", schedule.folder if schedule else "", hint="none", note="below the folder of reports; it gets every format"),
        acts.field(
            "Container",
            "container",
            schedule.container if schedule else "",
            hint="https://ACCOUNT.blob.core.windows.net/finance/weekly",
            wide=True,
            note="of Azure Blob storage, with a folder in it; the service's identity writes there",
        ),
    ]


def _names(label: str, name: str, everything: str, known: Sequence[str], chosen: Sequence[str]) -> Component:
    options = [("", everything), *((one, text.visible(one)) for one in known), *_gone(chosen, known)]
    return acts.several(label, name, options, chosen=list(chosen) or [""])


def _gone(chosen: Sequence[str], known: Sequence[str]) -> list[tuple[str, str]]:
    """What was chosen before and is not known now stays chosen, and is seen."""
    return [(one, f"{text.visible(one)} (not known)") for one in chosen if one not in known]
