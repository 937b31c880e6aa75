"""Reports that go out by themselves: each period of a schedule once, to receivers through the outbox, into a folder and a container.

The figures are made in a reading session; snapshot, notices and the row of the slot are one short transaction, so that of any number of processes one sends; files are
written after it and again until they stand, whole or not at all, with the same bytes each time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from collector.notices import enqueue
from collector.reports import letter, links
from collector.reports.places import Places, files_of
from collector.reports.snapshots import Draft, close_draft, keep, unkept, weekly_draft
from collector.reports.words import UNITS
from collector.rulebook import audit, new_id
from collector.webhooks.formats import Notice
from models import ledger
from models.errors import Conflict, DomainError, InvalidInput, NotFound
from models.ledger import Filters
from models.notices import TELLS_REPORTS, Delivery, DeliveryStatus, Receiver
from models.periods import DAY, Period, month_period, month_start, parse_month, utc_day
from models.reports import ReportSnapshot
from models.schedules import ReportDelivery, ReportSchedule
from models.store import Store

logger = logging.getLogger(__name__)

# A period that the bill has not reached waits for it so long, and then names the days that are missing.
WAITS = timedelta(hours=72)
# What was missed meanwhile (a stop, a restart) is sent late; what is older is no news, and can be sent by hand.
CATCHES_UP = timedelta(hours=72)
_MOST_CAUGHT_UP = 4
MOST_ATTEMPTS = 50
# So many attempts in vain are a failure that somebody is told of, though more follow.
IN_VAIN = 5
_MOST_LOOKED_AT = 50
Place = Literal["folder", "container"]


def run(store: Store, now: datetime, *, public_url: str = "") -> None:
    """Send what is due. A schedule whose report cannot be made keeps none of the others from theirs, and says why."""
    with store.read() as session:
        row = ReportSchedule
        ids = session.exec(select(row.id).where(col(row.deleted_at).is_(None), col(row.is_enabled).is_(True)).order_by(col(row.id))).all()
    for schedule_id in ids:
        error = ""
        try:
            for _ in range(_MOST_CAUGHT_UP):
                if send_due(store, schedule_id, now=now, public_url=public_url) is None:
                    break
        except DomainError as fault:
            error = fault.message
            logger.warning("the report of schedule %s could not be made: %s", schedule_id, error)
        except Exception as fault:
            error = f"{type(fault).__name__}; see the log"
            logger.exception("the report of schedule %s could not be made", schedule_id)
        _note(store, schedule_id, error)


def _note(store: Store, schedule_id: str, error: str) -> None:
    with store.read() as session:
        if session.get_one(ReportSchedule, schedule_id).error == error:
            return
    with store.write() as session:
        row = session.get_one(ReportSchedule, schedule_id)
        row.error = error
        session.add(row)


def send_due(store: Store, schedule_id: str, *, now: datetime, public_url: str = "") -> ReportDelivery | None:
    """Send the oldest period that is due and not sent; None where there is nothing to do, or another process did it."""
    with store.read() as session:
        due = _due(session, schedule_id, now=now)
        if due is None:
            return None
        draft = drafted(session, due[0], now=now, period=due[1])
    try:
        with store.write() as session:
            due = _due(session, schedule_id, now=now)
            if due is None:
                return None
            schedule, name = due
            return send(session, schedule, draft, slot=slot_of(schedule, name), now=now, public_url=public_url, period=name)
    except IntegrityError:
        return None  # another process has sent this one


@dataclass(frozen=True, slots=True)
class Asked:
    """A report that somebody asked for: ``request`` makes asking twice one report, ``receivers`` None are all of the schedule, with its files."""

    by: str
    request: str
    period: str | None = None
    receivers: tuple[str, ...] | None = None


def send_now(store: Store, schedule_id: str, asked: Asked, *, now: datetime, public_url: str = "") -> str:
    """Send a period because somebody asked; asked for again in the same words, it is the delivery that was made then. Gives its id."""
    slot = f"now-{asked.request}"
    with store.read() as session:
        schedule = standing(session, schedule_id)
        made = _sent(session, schedule_id, slot)
        if made is not None:
            return made.id
        draft = drafted(session, schedule, now=now, period=asked.period)
    try:
        with store.write() as session:
            schedule = standing(session, schedule_id)
            return send(session, schedule, draft, slot=slot, now=now, public_url=public_url, period=asked.period, asked=asked).id
    except IntegrityError:
        with store.read() as session:
            made = _sent(session, schedule_id, slot)
            if made is None:
                raise
            return made.id


def standing(session: Session, schedule_id: str) -> ReportSchedule:
    """The schedule, which must not be deleted."""
    row = session.get(ReportSchedule, schedule_id)
    if row is None or row.deleted_at is not None:
        raise NotFound(f"there is no schedule {schedule_id[:60]!r}")
    return row


def _sent(session: Session, schedule_id: str, slot: str) -> ReportDelivery | None:
    return session.exec(select(ReportDelivery).where(col(ReportDelivery.schedule_id) == schedule_id, col(ReportDelivery.slot) == slot)).first()


def slot_of(schedule: ReportSchedule, name: str) -> str:
    """The one place that a period has among a schedule's deliveries: a schedule may become one of another report, whose month has the same name."""
    return f"{schedule.report}-{name}"


def _is_done(session: Session, schedule: ReportSchedule, name: str) -> bool:
    if _sent(session, schedule.id, slot_of(schedule, name)) is not None:
        return True
    # Slots had the name of the period alone; what they were of, their snapshot says.
    before = _sent(session, schedule.id, name)
    return before is not None and before.snapshot_id.startswith(f"{schedule.report}-")


def _due(session: Session, schedule_id: str, *, now: datetime) -> tuple[ReportSchedule, str] | None:
    """The schedule and the oldest period that is to be sent now, None where none is."""
    schedule = session.get(ReportSchedule, schedule_id)
    if schedule is None or schedule.deleted_at is not None or not schedule.is_enabled:
        return None
    for name, period in _candidates(schedule, now=now):
        is_early = period.end < schedule.created_at
        if not is_early and not _is_done(session, schedule, name) and not _waits(session, schedule, period, now=now):
            return schedule, name
    return None


def _candidates(schedule: ReportSchedule, *, now: datetime) -> list[tuple[str, Period]]:
    """The periods whose time to be sent has come, oldest first: the newest, and those before it that a stop of some days has missed."""
    at, after = now - timedelta(hours=schedule.hours_after), now - timedelta(hours=schedule.hours_after) - CATCHES_UP
    found: list[tuple[str, Period]] = []
    while len(found) < _MOST_CAUGHT_UP:
        name, period = period_of(schedule, None, now=at)
        if found and period.end < after:
            break
        found.append((name, period))
        at = period.start
    return found[::-1]


def period_of(schedule: ReportSchedule, name: str | None, *, now: datetime) -> tuple[str, Period]:
    """The day, week or month of that name, which must be over; the last complete one for None."""
    if schedule.report in UNITS:
        span = ledger.span_of(UNITS[schedule.report], name, now=now, time_zone=schedule.time_zone)
        found = span.name, span.period
    else:
        month = month_start(month_start(utc_day(now)) - DAY) if name is None else parse_month(name, what="the month")
        found = f"{month:%Y-%m}", month_period(month)
    if found[1].end > now:
        raise InvalidInput(f"{found[0]} is not over yet; a report is sent of what is complete")
    return found


def _waits(session: Session, schedule: ReportSchedule, period: Period, *, now: datetime) -> bool:
    # Yesterday's report is for today: a bill is never that quick.
    if schedule.report == "daily" or now >= period.end + WAITS:
        return False
    reached = ledger.data_age(session, visible=filters_of(schedule).visible, now=now).billed_until
    # Where no bill has ever come there is none to wait for.
    return reached is not None and reached < period.end


def filters_of(schedule: ReportSchedule) -> Filters:
    """What the schedule's report is limited to."""
    return Filters(teams=tuple(schedule.teams), visible=frozenset(schedule.workspaces) if schedule.workspaces else None)


def drafted(session: Session, schedule: ReportSchedule, *, now: datetime, period: str | None = None) -> Draft:
    """The figures of a complete period: what takes long."""
    name, span = period_of(schedule, period, now=now)
    if schedule.report in UNITS:
        return weekly_draft(session, ledger.span_of(UNITS[schedule.report], name, now=now, time_zone=schedule.time_zone), filters_of(schedule), now=now)
    return close_draft(session, utc_day(span.start), filters_of(schedule), now=now)


def send(
    session: Session,
    schedule: ReportSchedule,
    draft: Draft,
    *,
    slot: str,
    now: datetime,
    public_url: str = "",
    period: str | None = None,
    asked: Asked | None = None,
) -> ReportDelivery:
    """Put the report on its way, to whom it is for and may be; who cannot be told is written down with the reason."""
    name, _ = period_of(schedule, period, now=now)
    if not draft.is_of(schedule.report, name, schedule.time_zone, filters_of(schedule)):
        raise Conflict(f"schedule {schedule.name!r} was changed while its report was being made; send it again")
    only = None if asked is None else asked.receivers
    if only is not None and not set(only) <= set(schedule.receivers):
        raise InvalidInput(f"schedule {schedule.name!r} does not send to {', '.join(sorted(set(only) - set(schedule.receivers)))[:200]}")
    body = keep(session, draft, now=now)
    has_files = only is None
    delivery = ReportDelivery(
        id=new_id("rpt"),
        schedule_id=schedule.id,
        slot=slot,
        period=name,
        snapshot_id=body["snapshot"]["id"],
        notices=[],
        asked_by="" if asked is None else asked.by,
        folder=schedule.folder if has_files else "",
        folder_state="pending" if schedule.folder and has_files else "",
        container=schedule.container if has_files else "",
        container_state="pending" if schedule.container and has_files else "",
        made_at=now,
    )
    notice = Notice(id=new_id("msg"), type="report.ready", at=now, data=_told(session, delivery, schedule, body, public_url=public_url, now=now))
    for receiver_id in dict.fromkeys(schedule.receivers if only is None else only):
        receiver = session.get(Receiver, receiver_id)
        reason = refusal(receiver, schedule.workspaces)
        if reason or receiver is None:
            delivery.missed = [*delivery.missed, {"receiver": receiver_id if receiver is None else receiver.name, "id": receiver_id, "reason": reason}]
        else:
            delivery.notices = [*delivery.notices, enqueue(session, receiver, notice, now=now).id]
    session.add(delivery)
    session.flush()
    if asked is not None:
        after = {"delivery": delivery.id, "period": name, "receivers": list(schedule.receivers if only is None else only), "files": has_files}
        audit(session, actor=asked.by, action="send", kind="report_schedule", object_id=schedule.id, before=None, after=after, now=now)
    return delivery


def refusal(receiver: Receiver | None, workspaces: Sequence[str]) -> str:
    """Why the receiver gets nothing of a schedule of these workspaces; "" where it does. Both may have changed since they were joined."""
    if receiver is None or receiver.deleted_at is not None:
        return "it was deleted"
    if receiver.format not in TELLS_REPORTS:
        return f"it is for alerts only ({receiver.format.value}); a report goes to standard, slack, teams or email"
    if receiver.workspaces and not (workspaces and set(workspaces) <= set(receiver.workspaces)):
        return f"it may hear of {', '.join(receiver.workspaces)} only; limit the schedule's workspaces to them"
    return "" if receiver.is_enabled else f"it is disabled{f': {receiver.disabled_reason}' if receiver.disabled_reason else ''}"


def _told(session: Session, delivery: ReportDelivery, schedule: ReportSchedule, body: dict[str, Any], *, public_url: str, now: datetime) -> dict[str, Any]:
    told: dict[str, Any] = {"id": delivery.id, "kind": "report", "rule": schedule.name, "severity": schedule.report, "why": summary(body)}
    told |= {"title": letter.title_of(body), "snapshot": body["snapshot"]["id"], "sha256": body["snapshot"]["sha256"], "period": delivery.period}
    told |= {"totals": _totals(body), "attach": schedule.attach}
    token = links.token_of(session, body["snapshot"]["id"], now=now)
    if token is not None:
        told["path"] = f"/v1/reports/shared/{token}"
        told |= {"url": f"{public_url}{told['path']}", "url_until": (now + links.LASTS).date().isoformat()} if public_url else {}
    return told


def _totals(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: total[key] for key in ("currency", "cost", "billed_cost")} for total in body["totals"]]


def summary(body: dict[str, Any]) -> str:
    """What the report says, in a line; names the days that the bill has not reached."""
    unit = UNITS.get(body["kind"], "month")
    name = f"{unit.capitalize()} {body[unit]}" + (f", {body['standing']}" if "standing" in body else "")
    said = "; ".join(f"{total['cost'] or 'unknown'} {total['currency'] or ''}".strip() for total in body["totals"]) or "nothing used and nothing billed"
    missing = body.get("provisional_days")
    return f"{name}: {said}." + (f" Not billed yet: {', '.join(missing)}." if missing else "")


@dataclass(frozen=True, slots=True)
class Preview:
    """What sending would send, and to whom; nothing of it is kept."""

    schedule: ReportSchedule
    period: str
    subject: str
    summary: str
    html: str
    receivers: Sequence[tuple[str, str, str, str]]  # id, name, format, why it gets nothing ("" where it does)

    def shown(self) -> dict[str, Any]:
        """As the API says it."""
        receivers = [dict(zip(("id", "name", "format", "reason"), one, strict=True)) for one in self.receivers]
        said = {"schedule": self.schedule.id, "period": self.period, "subject": self.subject, "summary": self.summary, "receivers": receivers}
        return said | {"attach": self.schedule.attach, "folder": self.schedule.folder or None, "container": self.schedule.container or None}


def preview(store: Store, schedule_id: str, *, period: str | None, now: datetime) -> Preview:
    """The mail as it would be, without its link and files."""
    with store.read() as session:
        schedule = standing(session, schedule_id)
        draft = drafted(session, schedule, now=now, period=period)
        found: list[tuple[str, str, str, str]] = []
        for receiver_id in schedule.receivers:
            one = session.get(Receiver, receiver_id)
            found.append((receiver_id, receiver_id if one is None else one.name, "" if one is None else one.format.value, refusal(one, schedule.workspaces)))
        session.expunge_all()
    body = unkept(draft, now=now)
    enclosed = f"This is a preview: nothing was sent. The mail would enclose: {', '.join(schedule.attach).upper() or 'nothing'}."
    made = letter.letter(body, notes=[(enclosed, "")])
    return Preview(schedule, draft.named.period, made.subject, summary(body), made.html, found)


# -- files ----------------------------------------------------------------------------------------


def write_files(store: Store, places: Places, *, now: datetime) -> None:
    """Write every format of what waits for its folder or container; what cannot be written is tried again, and fails in the end."""
    with store.read() as session:
        row = ReportDelivery
        is_waiting = (col(row.folder_state) == "pending") | (col(row.container_state) == "pending")
        waiting = session.exec(select(row).where(is_waiting).order_by(col(row.made_at), col(row.id)).limit(_MOST_LOOKED_AT)).all()
        session.expunge_all()
    for one in waiting:
        if one.folder_state == "pending":
            _record(store, one.id, "folder", _written(store, places, one.snapshot_id, folder=one.folder, now=now))
        if one.container_state == "pending":
            _record(store, one.id, "container", _written(store, places, one.snapshot_id, container=one.container, now=now))


def _written(store: Store, places: Places, snapshot_id: str, *, now: datetime, folder: str = "", container: str = "") -> str:
    """Write them; gives what went wrong."""
    try:
        with store.read() as session:
            snapshot = session.get(ReportSnapshot, snapshot_id)
            body = None if snapshot is None else snapshot.body
        if body is None:
            raise Conflict(f"snapshot {snapshot_id} is gone")
        if container:
            places.upload(container, files_of(body), now=now)
        else:
            places.write(folder, files_of(body))
    except DomainError as fault:
        return fault.message
    return ""


def _record(store: Store, delivery_id: str, place: Place, error: str) -> None:
    attempts = "attempts" if place == "folder" else "container_attempts"
    with store.write() as session:
        row = session.get(ReportDelivery, delivery_id)
        if row is None or getattr(row, f"{place}_state") != "pending":
            return
        setattr(row, attempts, getattr(row, attempts) + 1)
        setattr(row, f"{place}_error", error)
        setattr(row, f"{place}_state", "written" if not error else "failed" if getattr(row, attempts) >= MOST_ATTEMPTS else "pending")
        session.add(row)
    if error:
        logger.warning("report %s could not be written into its %s: %s", delivery_id, place, error)


# -- what was not reached -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unreached:
    """A schedule with what of its reports went wrong, as sentences; none where all is well."""

    schedule: ReportSchedule
    faults: Sequence[str]


def unreached(session: Session) -> list[Unreached]:
    """Every enabled schedule: for each receiver and place of it, how its newest report went."""
    row = ReportSchedule
    found = session.exec(select(row).where(col(row.deleted_at).is_(None), col(row.is_enabled).is_(True)).order_by(col(row.id))).all()
    return [Unreached(one, _faults(session, one)) for one in found]


def _faults(session: Session, schedule: ReportSchedule) -> list[str]:
    faults = [f"its report could not be made: {schedule.error}"] if schedule.error else []
    sent = select(ReportDelivery).where(col(ReportDelivery.schedule_id) == schedule.id).order_by(col(ReportDelivery.made_at).desc(), col(ReportDelivery.id))
    seen: set[str] = set()
    for one in session.exec(sent.limit(_MOST_LOOKED_AT)):
        for missed in one.missed:
            if missed["id"] not in seen:
                faults.append(f"receiver {missed['receiver']} did not get {one.period}: {missed['reason']}")
            seen.add(missed["id"])
        for notice in session.exec(select(Delivery).where(col(Delivery.id).in_(one.notices))):
            is_late = notice.status is DeliveryStatus.PENDING and notice.attempts >= IN_VAIN
            if notice.receiver_id not in seen and (notice.status is DeliveryStatus.FAILED or is_late):
                receiver = session.get_one(Receiver, notice.receiver_id)
                faults.append(f"receiver {receiver.name} did not get {one.period}: {notice.last_error}")
            seen.add(notice.receiver_id)
        for place, path, state, error, attempts in (
            ("folder", one.folder, one.folder_state, one.folder_error, one.attempts),
            ("container", one.container, one.container_state, one.container_error, one.container_attempts),
        ):
            if state and place not in seen:
                if state == "failed" or (state == "pending" and attempts >= IN_VAIN):
                    faults.append(f"{place} {path} did not get {one.period}: {error}")
                seen.add(place)
    return faults
