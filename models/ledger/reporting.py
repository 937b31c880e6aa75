"""Reports that go out by themselves, as people look at them: each schedule, to whom it sends, and how its last reports went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, select

from models.ledger.spans import span_of
from models.ledger.weekly import Unit
from models.notices import Delivery, DeliveryStatus, Receiver
from models.schedules import ReportDelivery, ReportSchedule

UNIT_OF: Mapping[str, Unit] = {"daily": "day", "weekly": "week", "monthly": "month", "close": "month"}
_MOST_SENT = 5
_MOST_SCHEDULES = 200


@dataclass(frozen=True, slots=True)
class Part:
    """What became of one report at one receiver or place: waiting, arrived or failed, and why."""

    to: str
    state: str
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Sent:
    """One report on its way, with every receiver and place that it is for."""

    delivery: ReportDelivery
    parts: Sequence[Part]

    @property
    def state(self) -> str:
        """The worst of its parts."""
        states = {part.state for part in self.parts}
        return next((state for state in ("failed", "waiting") if state in states), "arrived")


@dataclass(frozen=True, slots=True)
class ScheduleStanding:
    """A schedule, its receivers (None: one that is gone) and its last reports, the newest first."""

    schedule: ReportSchedule
    receivers: Sequence[tuple[str, Receiver | None]]
    sent: Sequence[Sent]


def report_schedules(session: Session) -> list[ScheduleStanding]:
    """Every schedule by name."""
    row = ReportSchedule
    found = session.exec(select(row).where(col(row.deleted_at).is_(None)).order_by(col(row.name), col(row.id)).limit(_MOST_SCHEDULES)).all()
    known = {one.id: one for one in session.exec(select(Receiver))}
    return [_standing(session, one, known) for one in found]


def periods_of(schedule: ReportSchedule, *, now: datetime, most: int = 4) -> list[str]:
    """The last complete days, weeks or months of a schedule's report, the newest first."""
    found: list[str] = []
    for _ in range(most):
        # The month of a close pack is that of the bill: UTC, as its schedule is.
        span = span_of(UNIT_OF[schedule.report], None, now=now, time_zone=schedule.time_zone)
        found.append(span.name)
        now = span.period.start
    return found


def _standing(session: Session, schedule: ReportSchedule, known: dict[str, Receiver]) -> ScheduleStanding:
    deliveries = session.exec(
        select(ReportDelivery)
        .where(col(ReportDelivery.schedule_id) == schedule.id)
        .order_by(col(ReportDelivery.made_at).desc(), col(ReportDelivery.id).desc())
        .limit(_MOST_SENT)
    ).all()
    told = {one.id: one for one in session.exec(select(Delivery).where(col(Delivery.id).in_([name for each in deliveries for name in each.notices])))}
    receivers = [(name, one if (one := known.get(name)) is not None and one.deleted_at is None else None) for name in schedule.receivers]
    return ScheduleStanding(schedule, receivers, [Sent(one, _parts(one, told, known)) for one in deliveries])


def _parts(delivery: ReportDelivery, told: dict[str, Delivery], known: dict[str, Receiver]) -> list[Part]:
    states = {DeliveryStatus.PENDING: "waiting", DeliveryStatus.DELIVERED: "arrived", DeliveryStatus.FAILED: "failed"}
    found = [Part(one["receiver"], "failed", one["reason"], 0) for one in delivery.missed]
    for name in delivery.notices:
        one = told.get(name)
        if one is not None:  # notices are forgotten a quarter later
            found.append(Part(known[one.receiver_id].name, states[one.status], one.last_error if one.status != DeliveryStatus.DELIVERED else "", one.attempts))
    for what, path, state, error, attempts in (
        ("folder", delivery.folder, delivery.folder_state, delivery.folder_error, delivery.attempts),
        ("container", delivery.container, delivery.container_state, delivery.container_error, delivery.container_attempts),
    ):
        if state:
            found.append(Part(f"{what} {path}", {"pending": "waiting", "written": "arrived"}.get(state, "failed"), error, attempts))
    return found
