"""Reports that go out by themselves: each period of a schedule once, to receivers through the outbox and into a folder.

The figures are made in a reading session; snapshot, notices and the row of the slot are one short transaction, so that of any number of processes one sends; files are
written after it and again until they stand, whole or not at all, with the same bytes each time.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from collector.notices import enqueue
from collector.reports import links
from collector.reports.command import replace_file
from collector.reports.formats import FORMATS, written
from collector.reports.snapshots import Draft, close_draft, keep, weekly_draft
from collector.reports.words import UNITS
from collector.rulebook import new_id
from collector.webhooks.formats import Notice
from models import ledger
from models.errors import Conflict, DomainError, InvalidInput
from models.ledger import Filters
from models.notices import Format, Receiver
from models.periods import DAY, Period, month_period, month_start, utc_day
from models.reports import ReportSnapshot
from models.schedules import ReportDelivery, ReportSchedule
from models.store import Store

logger = logging.getLogger(__name__)

# A period that the bill has not reached waits for it so long, and then names the days that are missing.
WAITS = timedelta(hours=72)
MOST_ATTEMPTS = 50
# Who can be told of a report: what opens and closes incidents cannot.
TELLABLE = frozenset({Format.STANDARD, Format.SLACK, Format.TEAMS, Format.EMAIL})


def run(store: Store, now: datetime) -> None:
    """Send what is due, then write what is not written yet."""
    with store.read() as session:
        row = ReportSchedule
        ids = session.exec(select(row.id).where(col(row.deleted_at).is_(None), col(row.is_enabled).is_(True)).order_by(col(row.id))).all()
    for schedule_id in ids:
        try:
            send_due(store, schedule_id, now=now)
        except DomainError as fault:
            logger.warning("the report of schedule %s could not be made: %s", schedule_id, fault.message)
    write_files(store, now=now)


def send_due(store: Store, schedule_id: str, *, now: datetime) -> ReportDelivery | None:
    """Send the last complete period if it is due and not sent; None where there is nothing to do, or another process did it."""
    with store.read() as session:
        schedule = _due(session, schedule_id, now=now)
        if schedule is None:
            return None
        draft = drafted(session, schedule, now=now)
    try:
        with store.write() as session:
            schedule = _due(session, schedule_id, now=now)
            return None if schedule is None else send(session, schedule, draft, slot=last_period(schedule, now=now)[0], now=now)
    except IntegrityError:
        return None  # another process has sent this one


def _due(session: Session, schedule_id: str, *, now: datetime) -> ReportSchedule | None:
    """The schedule where its last complete period is to be sent now, None where not."""
    schedule = session.get(ReportSchedule, schedule_id)
    if schedule is None or schedule.deleted_at is not None or not schedule.is_enabled:
        return None
    name, period = last_period(schedule, now=now)
    if period.end + timedelta(hours=schedule.hours_after) > now or period.end < schedule.created_at:
        return None
    sent = select(ReportDelivery.id).where(col(ReportDelivery.schedule_id) == schedule.id, col(ReportDelivery.slot) == name)
    return None if session.exec(sent).first() is not None or _waits(session, schedule, period, now=now) else schedule


def last_period(schedule: ReportSchedule, *, now: datetime) -> tuple[str, Period]:
    """The last complete day, week or month."""
    if schedule.report in UNITS:
        span = ledger.span_of(UNITS[schedule.report], None, now=now, time_zone=schedule.time_zone)
        return span.name, span.period
    month = month_start(month_start(utc_day(now)) - DAY)
    return f"{month:%Y-%m}", month_period(month)


def _waits(session: Session, schedule: ReportSchedule, period: Period, *, now: datetime) -> bool:
    if now >= period.end + WAITS:
        return False
    reached = ledger.data_age(session, visible=_filters(schedule).visible, now=now).billed_until
    # Where no bill has ever come there is none to wait for.
    return reached is not None and reached < period.end


def _filters(schedule: ReportSchedule) -> Filters:
    return Filters(teams=tuple(schedule.teams), visible=frozenset(schedule.workspaces) if schedule.workspaces else None)


def drafted(session: Session, schedule: ReportSchedule, *, now: datetime) -> Draft:
    """The figures of the last complete period: what takes long."""
    name, period = last_period(schedule, now=now)
    if schedule.report in UNITS:
        span = ledger.span_of(UNITS[schedule.report], name, now=now, time_zone=schedule.time_zone)
        return weekly_draft(session, span, _filters(schedule), now=now)
    return close_draft(session, utc_day(period.start), _filters(schedule), now=now)


def send(session: Session, schedule: ReportSchedule, draft: Draft, *, slot: str | None, now: datetime) -> ReportDelivery:
    """Put the report of the last complete period on its way; ``slot`` None is one that somebody asked for."""
    name, _ = last_period(schedule, now=now)
    if not draft.is_of(schedule.report, name, schedule.time_zone, _filters(schedule)):
        raise Conflict(f"schedule {schedule.name!r} was changed while its report was being made; send it again")
    body = keep(session, draft, now=now)
    delivery = ReportDelivery(
        id=new_id("rpt"),
        schedule_id=schedule.id,
        slot=slot or "",
        period=name,
        snapshot_id=body["snapshot"]["id"],
        notices=[],
        folder=schedule.folder,
        folder_state="pending" if schedule.folder else "",
        made_at=now,
    )
    delivery.slot = slot or f"now-{delivery.id}"
    rows = session.exec(select(Receiver).where(col(Receiver.id).in_(schedule.receivers), col(Receiver.deleted_at).is_(None)).order_by(col(Receiver.id)))
    told: dict[str, Any] = {"id": delivery.id, "kind": "report", "rule": schedule.name, "severity": schedule.report, "why": summary(body)}
    told |= {"snapshot": body["snapshot"]["id"], "sha256": body["snapshot"]["sha256"], "period": name, "totals": _totals(body)}
    token = links.token_of(session, body["snapshot"]["id"], now=now)
    if token is not None:
        told["path"] = f"/v1/reports/shared/{token}"
    notice = Notice(id=new_id("msg"), type="report.ready", at=now, data=told)
    delivery.notices = [enqueue(session, receiver, notice, now=now).id for receiver in rows if receiver.format in TELLABLE]
    session.add(delivery)
    session.flush()
    return delivery


def _totals(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: total[key] for key in ("currency", "cost", "billed_cost")} for total in body["totals"]]


def summary(body: dict[str, Any]) -> str:
    """What the report says, in a line; names the days that the bill has not reached."""
    unit = UNITS.get(body["kind"], "month")
    name = f"{unit.capitalize()} {body[unit]}" + (f", {body['standing']}" if "standing" in body else "")
    said = "; ".join(f"{total['cost'] or 'unknown'} {total['currency'] or ''}".strip() for total in body["totals"]) or "nothing used and nothing billed"
    missing = body.get("provisional_days")
    return f"{name}: {said}." + (f" Not billed yet: {', '.join(missing)}." if missing else "")


def write_files(store: Store, *, now: datetime) -> None:
    """Write every format of what waits for its folder; what cannot be written is tried again, and fails in the end."""
    del now
    with store.read() as session:
        waiting = [(row.id, row.folder, row.snapshot_id) for row in session.exec(select(ReportDelivery).where(col(ReportDelivery.folder_state) == "pending"))]
    for delivery_id, folder, snapshot_id in waiting:
        error = ""
        try:
            with store.read() as session:
                snapshot = session.get(ReportSnapshot, snapshot_id)
                body = None if snapshot is None else snapshot.body
            if body is None:
                raise Conflict(f"snapshot {snapshot_id} is gone")
            _write_all(Path(folder), body)
        except DomainError as fault:
            error = fault.message
            logger.warning("report %s could not be written: %s", delivery_id, error)
        with store.write() as session:
            row = session.get(ReportDelivery, delivery_id)
            if row is not None and row.folder_state == "pending":
                row.attempts += 1
                row.folder_error = error
                row.folder_state = "written" if not error else "failed" if row.attempts >= MOST_ATTEMPTS else "pending"
                session.add(row)


def _write_all(folder: Path, body: dict[str, Any]) -> None:
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder}")
    for form in FORMATS:
        made = written(body, form)
        out = folder / f"meterbridge-{body['snapshot']['id']}.{form}"
        replace_file(out, made.content)
        replace_file(out.with_name(f"{out.name}.meta.json"), made.meta(body))
