"""Schedules of reports over HTTP, and the snapshots that signed links open."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from collector import reports
from collector.api.deps import Caller, Now, Reading, Stored, Writing
from collector.api.reads import documented, refuse_unknown
from collector.auth import Principal
from collector.reports import delivery, links
from collector.reports import schedules as kept
from collector.reports.places import Places
from collector.reports.schedules import ScheduleBody
from collector.rulebook import Author
from collector.webhooks.setup import Telling
from models.errors import Forbidden, InvalidInput
from models.notices import Delivery
from models.periods import rfc3339
from models.schedules import ReportDelivery, ReportSchedule
from models.store import Store

router = APIRouter(tags=["reports"])
_MOST_SHOWN = 200
# A report shown by a browser runs nothing and fetches nothing.
SHOWN_SAFELY = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"}


class SendBody(BaseModel):
    """What is sent now: by default the last complete period, to everybody of the schedule, with its files."""

    model_config = ConfigDict(extra="forbid", strict=True)

    period: str | None = Field(default=None, max_length=10)
    receivers: list[str] | None = Field(default=None, min_length=1, max_length=100)
    request: str | None = Field(default=None, pattern="^[A-Za-z0-9_-]{8,64}$")


@router.get("/v1/report-schedules", summary="The schedules of reports")
def schedules(request: Request, session: Reading, caller: Caller) -> dict[str, Any]:
    """Every schedule, oldest first."""
    refuse_unknown(request, ())
    _refuse_limited(caller)
    return {"items": [kept.shown(row) for row in kept.standing(session)], "next_cursor": None}


@router.post("/v1/report-schedules", status_code=201, summary="Make a schedule")
def create(request: Request, body: ScheduleBody, session: Writing, caller: Caller, now: Now) -> dict[str, Any]:
    """It sends the first period that ends after it was made."""
    return make(session, body, caller, places=_places(request), now=now)


def make(session: Session, body: ScheduleBody, caller: Principal, *, places: Places, now: datetime) -> dict[str, Any]:
    """Keep a new schedule."""
    _refuse_limited(caller)
    return kept.shown(kept.create(session, body, places, by=_author(caller), now=now))


@router.put("/v1/report-schedules/{schedule_id}", summary="Change a schedule")
def change(request: Request, body: ScheduleBody, session: Writing, caller: Caller, now: Now, *, schedule_id: str) -> dict[str, Any]:
    """The whole schedule anew; what was sent stays sent."""
    return alter(session, body, caller, schedule_id=schedule_id, places=_places(request), now=now)


def alter(session: Session, body: ScheduleBody, caller: Principal, *, schedule_id: str, places: Places, now: datetime) -> dict[str, Any]:
    """Keep a schedule as it is now."""
    return kept.shown(kept.replace(session, found(session, schedule_id, caller), body, places, by=_author(caller), now=now))


@router.delete("/v1/report-schedules/{schedule_id}", status_code=204, summary="Delete a schedule")
def delete(session: Writing, caller: Caller, now: Now, *, schedule_id: str) -> Response:
    """It sends nothing any more; what it sent stays on record."""
    kept.delete(session, found(session, schedule_id, caller), by=_author(caller), now=now)
    return Response(status_code=204)


@router.post("/v1/report-schedules/{schedule_id}/send", status_code=202, summary="Send a complete period now")
def send_now(request: Request, store: Stored, caller: Caller, now: Now, *, schedule_id: str, body: SendBody | None = None) -> dict[str, Any]:
    """Goes out beside what the schedule sends; files follow within the minute. The same ``request`` again is the same delivery."""
    telling: Telling = request.app.state.telling
    return send_asked(store, body or SendBody(), caller, schedule_id=schedule_id, public_url=telling.public_url, now=now)


def send_asked(store: Store, body: SendBody, caller: Principal, *, schedule_id: str, public_url: str, now: datetime) -> dict[str, Any]:
    """Send it, once for each ``request``, with its line in the audit trail."""
    _refuse_limited(caller)
    receivers = None if body.receivers is None else tuple(body.receivers)
    asked = delivery.Asked(_author(caller).name, body.request or secrets.token_hex(8), body.period, receivers)
    made = delivery.send_now(store, schedule_id, asked, now=now, public_url=public_url)
    with store.read() as session:
        return _sent(session, session.get_one(ReportDelivery, made))


@router.get("/v1/report-schedules/{schedule_id}/preview", summary="What sending now would send, and to whom", openapi_extra=documented("period", "format"))
def preview(request: Request, store: Stored, caller: Caller, now: Now, *, schedule_id: str) -> Response:
    """As JSON: the period, receivers, places and the mail's subject; with ``format=html`` the mail itself. Nothing is kept or sent."""
    refuse_unknown(request, ("period", "format"))
    _refuse_limited(caller)
    said = request.query_params
    seen = delivery.preview(store, schedule_id, period=said.get("period") or None, now=now)
    if said.get("format") == "html":
        return Response(seen.html, headers=SHOWN_SAFELY, media_type="text/html; charset=utf-8")
    if said.get("format") not in (None, "", "json"):
        raise InvalidInput("format must be json or html")
    return JSONResponse(seen.shown())


@router.get("/v1/report-schedules/{schedule_id}/deliveries", summary="What a schedule has sent")
def deliveries(request: Request, session: Reading, caller: Caller, *, schedule_id: str) -> dict[str, Any]:
    """The newest first, with how each receiver and the folder stand."""
    refuse_unknown(request, ())
    row = found(session, schedule_id, caller)
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
        **SHOWN_SAFELY,
        "X-Control-Total": made.control_header,
        "Referrer-Policy": "no-referrer",
        "Content-Disposition": f'{"inline" if form == "html" else "attachment"}; filename="meterbridge-{snapshot.id}.{form}"',
    }
    return Response(made.content, headers=headers, media_type=made.media_type)


def _places(request: Request) -> Places:
    telling: Telling = request.app.state.telling
    return telling.places


def _refuse_limited(caller: Principal) -> None:
    if caller.visible is not None:
        raise Forbidden("schedules are for keys of every workspace; this key is limited to some")


def found(session: Session, schedule_id: str, caller: Principal) -> ReportSchedule:
    """The schedule, for a caller who may see it."""
    _refuse_limited(caller)
    return delivery.standing(session, schedule_id)


def _author(caller: Principal) -> Author:
    return Author(caller.name if caller.key_id is None else f"{caller.name} ({caller.key_id})")


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
        "missed": row.missed,
        "asked_by": row.asked_by or None,
        "folder": {"path": row.folder, "state": row.folder_state, "error": row.folder_error} if row.folder else None,
        "container": {"path": row.container, "state": row.container_state, "error": row.container_error} if row.container else None,
    }
