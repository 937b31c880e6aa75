"""Schedules of reports over HTTP, and the snapshots that signed links open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from collector import reports
from collector.api.deps import Caller, Now, Reading, Stored, Writing
from collector.api.reads import documented, refuse_unknown
from collector.auth import Principal
from collector.reports import delivery, links
from collector.rulebook import audit, new_id
from models.errors import Forbidden, InvalidInput, NotFound
from models.notices import Delivery, Receiver
from models.periods import rfc3339, zone_from
from models.schedules import ReportDelivery, ReportSchedule

router = APIRouter(tags=["reports"])
_MOST_SHOWN = 200


class ScheduleBody(BaseModel):
    """A schedule as the API takes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=256)
    report: str = Field(pattern="^(daily|weekly|monthly|close)$")
    time_zone: str = Field(default="UTC", max_length=64)
    hours_after: int = Field(default=7, ge=0, le=240)
    workspaces: list[str] = Field(default_factory=list, max_length=1000)
    teams: list[str] = Field(default_factory=list, max_length=1000)
    receivers: list[str] = Field(default_factory=list, max_length=100)
    folder: str = Field(default="", max_length=1024)
    enabled: bool = True


@router.get("/v1/report-schedules", summary="The schedules of reports")
def schedules(request: Request, session: Reading, caller: Caller) -> dict[str, Any]:
    """Every schedule, oldest first."""
    refuse_unknown(request, ())
    _refuse_limited(caller)
    rows = session.exec(select(ReportSchedule).where(col(ReportSchedule.deleted_at).is_(None)).order_by(col(ReportSchedule.created_at), col(ReportSchedule.id)))
    return {"items": [_shown(row) for row in rows], "next_cursor": None}


@router.post("/v1/report-schedules", status_code=201, summary="Make a schedule")
def create(body: ScheduleBody, session: Writing, caller: Caller, now: Now) -> dict[str, Any]:
    """It sends the first period that ends after it was made."""
    _refuse_limited(caller)
    row = ReportSchedule(id=new_id("sch"), **_checked(session, body), created_at=now, updated_at=now)
    session.add(row)
    session.flush()
    audit(session, actor=_actor(caller), action="create", kind="report_schedule", object_id=row.id, before=None, after=_shown(row), now=now)
    return _shown(row)


@router.put("/v1/report-schedules/{schedule_id}", summary="Change a schedule")
def change(body: ScheduleBody, session: Writing, caller: Caller, now: Now, *, schedule_id: str) -> dict[str, Any]:
    """The whole schedule anew; what was sent stays sent."""
    row = _found(session, schedule_id, caller)
    before = _shown(row)
    for name, value in _checked(session, body).items():
        setattr(row, name, value)
    row.updated_at = now
    session.add(row)
    session.flush()
    audit(session, actor=_actor(caller), action="update", kind="report_schedule", object_id=row.id, before=before, after=_shown(row), now=now)
    return _shown(row)


@router.delete("/v1/report-schedules/{schedule_id}", status_code=204, summary="Delete a schedule")
def delete(session: Writing, caller: Caller, now: Now, *, schedule_id: str) -> Response:
    """It sends nothing any more; what it sent stays on record."""
    row = _found(session, schedule_id, caller)
    before = _shown(row)
    row.deleted_at = now
    session.add(row)
    session.flush()
    audit(session, actor=_actor(caller), action="delete", kind="report_schedule", object_id=row.id, before=before, after=None, now=now)
    return Response(status_code=204)


@router.post("/v1/report-schedules/{schedule_id}/send", status_code=202, summary="Send the last complete period now")
def send_now(store: Stored, caller: Caller, now: Now, *, schedule_id: str) -> dict[str, Any]:
    """Goes out beside what the schedule sends; files follow within minutes."""
    with store.read() as session:
        draft = delivery.drafted(session, _found(session, schedule_id, caller), now=now)
    with store.write() as session:
        return _sent(session, delivery.send(session, _found(session, schedule_id, caller), draft, slot=None, now=now))


@router.get("/v1/report-schedules/{schedule_id}/deliveries", summary="What a schedule has sent")
def deliveries(request: Request, session: Reading, caller: Caller, *, schedule_id: str) -> dict[str, Any]:
    """The newest first, with how each receiver and the folder stand."""
    refuse_unknown(request, ())
    row = _found(session, schedule_id, caller)
    sent = select(ReportDelivery).where(col(ReportDelivery.schedule_id) == row.id).order_by(col(ReportDelivery.made_at).desc(), col(ReportDelivery.id))
    return {"items": [_sent(session, one) for one in session.exec(sent.limit(_MOST_SHOWN))], "next_cursor": None}


@router.get("/v1/reports/shared/{token}", summary="A report by its signed link", openapi_extra=documented("format"))
def shared(request: Request, session: Reading, now: Now, *, token: str) -> Response:
    """The one snapshot that the link is for, without a key, until the link ends."""
    refuse_unknown(request, ("format",))
    form = next((one for one in reports.FORMATS if one == (request.query_params.get("format") or "html")), None)
    if form is None:
        raise InvalidInput(f"format must be one of {', '.join(reports.FORMATS)}")
    snapshot = links.snapshot_of(session, token, now=now)
    made = reports.written(snapshot.body, form)
    headers = {
        "X-Control-Total": made.control_header,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
        "Content-Disposition": f'{"inline" if form == "html" else "attachment"}; filename="meterbridge-{snapshot.id}.{form}"',
    }
    return Response(made.content, headers=headers, media_type=made.media_type)


def _checked(session: Session, body: ScheduleBody) -> dict[str, Any]:
    zone_from(body.time_zone)
    if body.report == "close" and body.time_zone != "UTC":
        raise InvalidInput("a month is closed in UTC, as Azure bills it; leave out time_zone")
    if not body.name.isprintable():
        raise InvalidInput("a name has visible characters, and no control characters")
    if not body.receivers and not body.folder:
        raise InvalidInput("say who gets it: receivers (ids of /v1/webhooks), a folder, or both")
    if body.folder and not (Path(body.folder).is_absolute() and Path(body.folder).is_dir()):
        raise InvalidInput("folder must be the absolute path of a folder that exists where the service runs")
    for receiver_id in body.receivers:
        receiver = session.get(Receiver, receiver_id)
        if receiver is None or receiver.deleted_at is not None:
            raise InvalidInput(f"there is no receiver {receiver_id[:60]!r}; GET /v1/webhooks lists them")
        if receiver.format not in delivery.TELLABLE:
            raise InvalidInput(f"receiver {receiver.name!r} is for alerts only ({receiver.format.value}); a report goes to standard, slack, teams or email")
        if receiver.workspaces and not (body.workspaces and set(body.workspaces) <= set(receiver.workspaces)):
            raise InvalidInput(f"receiver {receiver.name!r} may hear of {', '.join(receiver.workspaces)} only; limit the schedule's workspaces to them")
    return {**body.model_dump(exclude={"enabled"}), "is_enabled": body.enabled}


def _refuse_limited(caller: Principal) -> None:
    if caller.visible is not None:
        raise Forbidden("schedules are for keys of every workspace; this key is limited to some")


def _found(session: Session, schedule_id: str, caller: Principal) -> ReportSchedule:
    _refuse_limited(caller)
    row = session.get(ReportSchedule, schedule_id)
    if row is None or row.deleted_at is not None:
        raise NotFound(f"there is no schedule {schedule_id[:60]!r}")
    return row


def _actor(caller: Principal) -> str:
    return caller.name if caller.key_id is None else f"{caller.name} ({caller.key_id})"


def _shown(row: ReportSchedule) -> dict[str, Any]:
    names = ("id", "name", "report", "time_zone", "hours_after", "workspaces", "teams", "receivers", "folder")
    return {
        **{name: getattr(row, name) for name in names},
        "enabled": row.is_enabled,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def _sent(session: Session, row: ReportDelivery) -> dict[str, Any]:
    notices = session.exec(select(Delivery).where(col(Delivery.id).in_(row.notices)).order_by(col(Delivery.seq)))
    return {
        "id": row.id,
        "slot": row.slot,
        "period": row.period,
        "snapshot": row.snapshot_id,
        "made_at": rfc3339(row.made_at),
        "notices": [
            {"id": one.id, "receiver": one.receiver_id, "status": one.status.value, "attempts": one.attempts, "error": one.last_error} for one in notices
        ],
        "folder": {"path": row.folder, "state": row.folder_state, "error": row.folder_error} if row.folder else None,
    }
