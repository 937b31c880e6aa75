"""The dispatcher: takes what is due from the outbox, sends it, writes down what came of it.

A delivery is claimed in one transaction and sent outside any. Who dies with a claim loses it after ``LEASE``, and another
sends it again under the same id: at least once, never never. Each receiver has one attempt under way in a process at most,
its oldest due delivery first, so that a receiver that hangs delays itself only; of one alert nothing is told to a
receiver before what was to be told earlier.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select, update

from collector.webhooks import schedule
from collector.webhooks.sending import Outcome, Parcel, Sender
from models.alerts import Alert, AlertState
from models.errors import DomainError
from models.notices import Delivery, DeliveryAttempt, DeliveryCount, DeliveryStatus, Format, Receiver
from models.store import Store

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=45)
RESEND_EVERY = timedelta(minutes=1)
_MOST_AT_ONCE = 256
_PAUSE_SECONDS = 0.25
_KEEP, _KEEP_BEATS = timedelta(days=90), timedelta(days=1)
_PRUNE_EVERY = timedelta(hours=1)
_MOST_PRUNED = 5_000
_OUTCOMES = ("delivered", "failed", "given_up")
_GONE = 410


def claim(session: Session, *, holder: str, now: datetime, busy: Collection[str] = (), limit: int = _MOST_AT_ONCE) -> list[Parcel]:
    """Take the oldest due delivery of each receiver that has none under way."""
    heads = sa.select(sa.func.min(Delivery.seq)).where(*_due(now, busy)).group_by(col(Delivery.receiver_id)).order_by(sa.func.min(Delivery.seq)).limit(limit)
    # PostgreSQL: a row that another process is claiming is left to it. SQLite has one writer, and leaves the words out.
    question = select(Delivery).where(col(Delivery.seq).in_(heads.scalar_subquery()), *_due(now, busy)).with_for_update(skip_locked=True)
    parcels = []
    for row in session.exec(question.order_by(col(Delivery.seq))).all():
        receiver = session.get_one(Receiver, row.receiver_id)
        is_resend = row.status is DeliveryStatus.DELIVERED
        if is_resend and not _fires(session, row.alert_id):
            row.resend_at = None
            session.add(row)
            continue
        row.claimed_by, row.claimed_until = holder, now + LEASE
        session.add(row)
        parcels.append(_parcel(row, receiver, is_resend=is_resend, now=now))
    session.flush()
    return parcels


def _due(now: datetime, busy: Collection[str]) -> list[sa.ColumnElement[bool]]:
    earlier = aliased(Delivery)
    receivers = sa.select(col(Receiver.id)).where(
        col(Receiver.deleted_at).is_(None), col(Receiver.is_enabled).is_(True), sa.or_(col(Receiver.rests_until).is_(None), col(Receiver.rests_until) <= now)
    )
    found = [
        sa.or_(
            sa.and_(col(Delivery.status) == DeliveryStatus.PENDING, col(Delivery.next_attempt_at) <= now),
            col(Delivery.resend_at) <= now,
        ),
        sa.or_(col(Delivery.claimed_until).is_(None), col(Delivery.claimed_until) <= now),
        col(Delivery.receiver_id).in_(receivers),
        ~sa.exists().where(
            col(earlier.alert_id) == col(Delivery.alert_id),
            col(earlier.receiver_id) == col(Delivery.receiver_id),
            col(earlier.seq) < col(Delivery.seq),
            sa.or_(col(earlier.status) == DeliveryStatus.PENDING, col(earlier.claimed_until) > now),
        ),
    ]
    return [*found, col(Delivery.receiver_id).not_in(list(busy))] if busy else found


def _fires(session: Session, alert_id: str) -> bool:
    return session.exec(select(Alert.id).where(Alert.id == alert_id, col(Alert.state) == AlertState.FIRING)).first() is not None


def _parcel(row: Delivery, receiver: Receiver, *, is_resend: bool, now: datetime) -> Parcel:
    previous = receiver.previous_secret if receiver.previous_until is not None and now < receiver.previous_until else None
    return Parcel(
        delivery_id=row.id,
        notice_id=row.notice_id,
        receiver_id=receiver.id,
        url=receiver.url,
        format=receiver.format,
        secrets=tuple(secret for secret in (receiver.secret, previous) if secret),
        body=row.body,
        created_at=row.created_at,
        step=row.step,
        started_at=row.started_at,
        is_resend=is_resend,
    )


def record(session: Session, parcel: Parcel, outcome: Outcome, *, holder: str, now: datetime) -> None:
    """Write down an attempt; one whose claim was lost meanwhile (to another process, or a replay) is theirs to tell."""
    # The receiver first, as everywhere: two processes that lock in two orders would wait for each other. A new notice only refers to it.
    receiver = session.exec(select(Receiver).where(Receiver.id == parcel.receiver_id).with_for_update(key_share=True)).one()
    row = session.exec(select(Delivery).where(Delivery.id == parcel.delivery_id, Delivery.claimed_by == holder).with_for_update()).first()
    if row is None:
        return
    after = schedule.retry_after(outcome.retry_after, now=now)
    row.claimed_by = row.claimed_until = None
    row.last_status, row.last_error = outcome.status, outcome.error
    _judge(session, receiver, outcome, retry_after=after, now=now)
    if parcel.is_resend:
        if row.resend_at is not None:
            row.resend_at = now + RESEND_EVERY
        session.add(row)
        return
    row.attempts += 1
    session.add(DeliveryAttempt(delivery_id=row.id, at=now, status=outcome.status, error=outcome.error, duration_ms=outcome.duration_ms))
    _count(session, "delivered" if outcome.is_delivered else "failed")
    if outcome.is_delivered:
        row.status, row.delivered_at, row.next_attempt_at = DeliveryStatus.DELIVERED, now, None
        if receiver.format is Format.ALERTMANAGER_API and row.type == "alert.firing" and not _has_later(session, row):
            row.resend_at = now + RESEND_EVERY
    else:
        # PagerDuty says 400 to a body or key that it will never take.
        is_final = not receiver.is_enabled or (receiver.format is Format.PAGERDUTY and outcome.status == 400)
        row.next_attempt_at = None if is_final else schedule.next_attempt(row.id, step=row.step, started_at=row.started_at, now=now, retry_after=after)
        row.step += 1
        if row.next_attempt_at is None:
            row.status = DeliveryStatus.FAILED
            _count(session, "given_up")
            logger.warning("the delivery %s to the receiver %s is given up: %s", row.id, receiver.id, outcome.error)
    session.add(row)


def _judge(session: Session, receiver: Receiver, outcome: Outcome, *, retry_after: timedelta | None, now: datetime) -> None:
    """The circuit breaker of a receiver, and its end."""
    if outcome.is_delivered:
        if receiver.failures:
            # It is back: what waits for a later attempt need not.
            waiting = (col(Delivery.receiver_id) == receiver.id, col(Delivery.status) == DeliveryStatus.PENDING, col(Delivery.next_attempt_at) > now)
            session.exec(update(Delivery).where(*waiting).values(next_attempt_at=now))
        receiver.failures, receiver.rests_until = 0, None
    elif outcome.status == _GONE and receiver.format is not Format.EMAIL:
        disable(session, receiver, "it answered 410 Gone", now=now)
    else:
        receiver.failures += 1
        rest = schedule.rest(receiver.failures)
        if retry_after is not None:
            rest = max(rest or timedelta(0), min(retry_after, schedule.LONGEST_RETRY_AFTER))
        receiver.rests_until = None if rest is None else now + rest
    session.add(receiver)
    session.flush()


def disable(session: Session, receiver: Receiver, reason: str, *, now: datetime) -> None:
    """Tell a receiver nothing any more; what waits for it has failed, and can be replayed once it is enabled again."""
    receiver.is_enabled, receiver.disabled_reason, receiver.updated_at = False, reason, now
    session.add(receiver)
    mine = (col(Delivery.receiver_id) == receiver.id,)
    session.exec(update(Delivery).where(*mine, col(Delivery.resend_at).is_not(None)).values(resend_at=None))
    # One that is under way is written down when it ends.
    waiting = (*mine, col(Delivery.status) == DeliveryStatus.PENDING, col(Delivery.claimed_by).is_(None))
    session.exec(update(Delivery).where(*waiting).values(status=DeliveryStatus.FAILED, next_attempt_at=None, last_error=f"the receiver is disabled: {reason}"))
    logger.warning("the receiver %s is disabled: %s", receiver.id, reason)


def _has_later(session: Session, row: Delivery) -> bool:
    later = select(Delivery.seq).where(Delivery.alert_id == row.alert_id, Delivery.receiver_id == row.receiver_id, col(Delivery.seq) > row.seq)
    return session.exec(later.limit(1)).first() is not None


def _count(session: Session, outcome: str) -> None:
    session.execute(
        sa.text("INSERT INTO delivery_count (outcome, number) VALUES (:outcome, 1) ON CONFLICT (outcome) DO UPDATE SET number = delivery_count.number + 1"),
        {"outcome": outcome},
    )


def prune(session: Session, *, now: datetime) -> None:
    """Forget what was settled long ago: a quarter's notices, a day's heartbeats and tests."""
    beats = sa.select(col(Alert.id)).where(col(Alert.kind) == "heartbeat")
    old = sa.select(col(Delivery.id)).where(
        col(Delivery.status) != DeliveryStatus.PENDING,
        col(Delivery.resend_at).is_(None),
        sa.or_(
            col(Delivery.created_at) < now - _KEEP,
            sa.and_(col(Delivery.created_at) < now - _KEEP_BEATS, col(Delivery.alert_id).in_(beats)),
        ),
    )
    ids = list(session.scalars(old.limit(_MOST_PRUNED)))
    for at in range(0, len(ids), 500):
        session.execute(sa.delete(DeliveryAttempt).where(col(DeliveryAttempt.delivery_id).in_(ids[at : at + 500])))
        session.execute(sa.delete(Delivery).where(col(Delivery.id).in_(ids[at : at + 500])))


def metric_lines(session: Session) -> list[str]:
    """Attempts by outcome, what waits, and receivers that are told nothing: Prometheus text."""
    counts = dict(session.exec(select(DeliveryCount.outcome, DeliveryCount.number)).all())
    waiting = session.scalar(sa.select(sa.func.count()).select_from(Delivery).where(col(Delivery.status) == DeliveryStatus.PENDING)) or 0
    disabled = sa.select(sa.func.count()).select_from(Receiver).where(col(Receiver.deleted_at).is_(None), col(Receiver.is_enabled).is_(False))
    return [
        "# HELP meterbridge_webhook_attempts_total Attempts to deliver a notice, by outcome; given_up counts deliveries whose attempts are used up.",
        "# TYPE meterbridge_webhook_attempts_total counter",
        *(f'meterbridge_webhook_attempts_total{{outcome="{name}"}} {counts.get(name, 0)}' for name in _OUTCOMES),
        "# HELP meterbridge_webhook_deliveries_pending Deliveries that wait for an attempt.",
        "# TYPE meterbridge_webhook_deliveries_pending gauge",
        f"meterbridge_webhook_deliveries_pending {waiting}",
        "# HELP meterbridge_webhook_receivers_disabled Receivers that are told nothing, by their own answer or by hand.",
        "# TYPE meterbridge_webhook_receivers_disabled gauge",
        f"meterbridge_webhook_receivers_disabled {session.scalar(disabled) or 0}",
    ]


class Dispatcher:
    """A thread that empties the outbox; ``now`` is the clock of the composition root."""

    def __init__(self, store: Store, sender: Sender, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._sender = sender
        self._now = now
        self._holder = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        # The database has its own threads: no receiver can keep it waiting.
        self._database = ThreadPoolExecutor(max_workers=2, thread_name_prefix="outbox")
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._pruned_at: datetime | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way is sent again by whoever comes next."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._sender.close()
        self._database.shutdown(wait=False)

    def drain(self) -> int:
        """Send all that is due now, and nothing later; gives the number of attempts. For tests and one-off runs."""
        return asyncio.run(self._drain())

    async def _drain(self) -> int:
        attempts = 0
        while parcels := self._claim():
            attempts += len(parcels)
            await asyncio.gather(*(self._attempt(parcel) for parcel in parcels))
        return attempts

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._loop())

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            try:
                parcels = await loop.run_in_executor(self._database, self._claim)
            except DomainError as fault:
                logger.warning("the outbox cannot be read: %s; it is tried again", fault.message)
                parcels = []
            except Exception:
                # Telling must go on after whatever this was.
                logger.exception("the outbox failed; it is tried again")
                parcels = []
            for parcel in parcels:
                self._busy[parcel.receiver_id] = asyncio.create_task(self._attempt(parcel))
            if not parcels:
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                # The quick ones free their receivers; the slow ones are not waited for.
                await asyncio.wait(list(self._busy.values()), timeout=_PAUSE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in list(self._busy.values()):
            task.cancel()

    def _claim(self) -> list[Parcel]:
        now, busy = self._now(), tuple(self._busy)
        limit = _MOST_AT_ONCE - len(busy)
        if limit <= 0:
            return []
        with self._store.read() as session:
            # Looking costs no writer's turn.
            is_due = session.execute(sa.select(col(Delivery.seq)).where(*_due(now, busy)).limit(1)).first() is not None
        if self._pruned_at is None or now - self._pruned_at >= _PRUNE_EVERY:
            self._pruned_at = now
            with self._store.write() as session:
                prune(session, now=now)
        if not is_due:
            return []
        with self._store.write() as session:
            return claim(session, holder=self._holder, now=now, busy=busy, limit=limit)

    async def _attempt(self, parcel: Parcel) -> None:
        try:
            outcome = await self._sender.send(parcel, now=self._now())
            await asyncio.get_running_loop().run_in_executor(self._database, self._record, parcel, outcome)
        except DomainError as fault:
            logger.warning("what came of the delivery %s could not be written down: %s; it is sent again under its id", parcel.delivery_id, fault.message)
        except Exception:
            logger.exception("the delivery %s failed; it is sent again under its id", parcel.delivery_id)
        finally:
            self._busy.pop(parcel.receiver_id, None)

    def _record(self, parcel: Parcel, outcome: Outcome) -> None:
        with self._store.write() as session:
            record(session, parcel, outcome, holder=self._holder, now=self._now())
