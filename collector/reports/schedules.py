"""Keeping schedules of reports: what one may say, and every change of one with its line in the audit trail.

What a schedule sends is ``delivery``'s.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from collector.reports import delivery, mailing
from collector.reports.places import Places
from collector.rulebook import Author, audit, new_id
from models.errors import InvalidInput
from models.notices import Receiver
from models.periods import rfc3339, zone_from
from models.schedules import ReportSchedule


class ScheduleBody(BaseModel):
    """A schedule as the API, the pages and files say it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=256)
    report: str = Field(pattern="^(daily|weekly|monthly|close)$")
    time_zone: str = Field(default="UTC", max_length=64)
    hours_after: int = Field(default=7, ge=0, le=240)
    workspaces: list[str] = Field(default_factory=list, max_length=1000)
    teams: list[str] = Field(default_factory=list, max_length=1000)
    receivers: list[str] = Field(default_factory=list, max_length=100)
    attach: list[str] = Field(default_factory=lambda: ["pdf"], max_length=2)
    folder: str = Field(default="", max_length=1024)
    container: str = Field(default="", max_length=1024)
    enabled: bool = True


def standing(session: Session) -> list[ReportSchedule]:
    """Every schedule that was not deleted, oldest first."""
    return list(
        session.exec(select(ReportSchedule).where(col(ReportSchedule.deleted_at).is_(None)).order_by(col(ReportSchedule.created_at), col(ReportSchedule.id)))
    )


def create(session: Session, body: ScheduleBody, places: Places, *, by: Author, now: datetime) -> ReportSchedule:
    """A new schedule; it sends the first period that ends from now on."""
    row = ReportSchedule(id=new_id("sch"), origin=by.origin, created_at=now, updated_at=now, **_values(session, body, places))
    session.add(row)
    session.flush()
    audit(session, actor=by.name, action="create", kind="report_schedule", object_id=row.id, before=None, after=shown(row), now=now)
    return row


def replace(session: Session, row: ReportSchedule, body: ScheduleBody, places: Places, *, by: Author, now: datetime) -> ReportSchedule:
    """The whole schedule anew; what was sent stays sent."""
    before = shown(row)
    for name, value in _values(session, body, places).items():
        setattr(row, name, value)
    row.updated_at = now
    session.add(row)
    session.flush()
    audit(session, actor=by.name, action="update", kind="report_schedule", object_id=row.id, before=before, after=shown(row), now=now)
    return row


def delete(session: Session, row: ReportSchedule, *, by: Author, now: datetime) -> None:
    """It sends nothing any more; what it sent stays on record."""
    before = shown(row)
    row.deleted_at = now
    session.add(row)
    session.flush()
    audit(session, actor=by.name, action="delete", kind="report_schedule", object_id=row.id, before=before, after=None, now=now)


def shown(row: ReportSchedule) -> dict[str, Any]:
    """A schedule as JSON; what was said comes back under the same names."""
    names = ("id", "name", "report", "time_zone", "hours_after", "workspaces", "teams", "receivers", "attach", "folder", "container", "error", "origin")
    return {
        **{name: getattr(row, name) for name in names},
        "enabled": row.is_enabled,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def checked(body: ScheduleBody, places: Places) -> ScheduleBody:
    """The body with its places spelt as they are kept; all that can be told without knowing the receivers is judged."""
    zone_from(body.time_zone)
    if body.report == "close" and body.time_zone != "UTC":
        raise InvalidInput("a month is closed in UTC, as Azure bills it; leave out time_zone", field="time_zone")
    if not body.name.isprintable():
        raise InvalidInput("a name has visible characters, and no control characters", field="name")
    if not body.receivers and not body.folder and not body.container:
        raise InvalidInput("say who gets it: receivers (ids of /v1/webhooks), a folder, a container, or several of them", field="receivers")
    if unknown := set(body.attach) - set(mailing.ENCLOSABLE):
        raise InvalidInput(f"attach says what a mail encloses: {', '.join(mailing.ENCLOSABLE)}, not {min(unknown)[:20]!r}", field="attach")
    try:
        folder = f"{'/'.join(places.steps(body.folder)) or '.'}" if body.folder else ""
    except InvalidInput as fault:
        raise InvalidInput(fault.message, field="folder") from fault
    try:
        container = places.container(body.container).url if body.container else ""
    except InvalidInput as fault:
        raise InvalidInput(fault.message, field="container") from fault
    return body.model_copy(update={"folder": folder, "container": container})


def _values(session: Session, body: ScheduleBody, places: Places) -> dict[str, Any]:
    said = checked(body, places)
    for receiver_id in said.receivers:
        receiver = session.get(Receiver, receiver_id)
        if receiver is None or receiver.deleted_at is not None:
            raise InvalidInput(f"there is no receiver {receiver_id[:60]!r}; GET /v1/webhooks lists them", field="receivers")
        if reason := delivery.refusal(receiver, said.workspaces):
            raise InvalidInput(f"receiver {receiver.name!r}: {reason}", field="receivers")
    return {**said.model_dump(exclude={"enabled"}), "is_enabled": said.enabled}
