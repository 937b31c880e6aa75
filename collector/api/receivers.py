"""Receivers of notices and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlmodel import Session, col, select

from collector import receivers as kept
from collector.api.deps import Caller, Now, Reading, Writing
from collector.api.reads import refuse_unknown, whole_number
from collector.auth import Principal
from collector.notices import enqueue
from collector.receivers import ReceiverBody
from collector.rulebook import Author, audit, new_id
from collector.webhooks.formats import sample
from collector.webhooks.setup import Telling
from models.errors import Conflict, InvalidInput, NotFound
from models.notices import Delivery, DeliveryAttempt, DeliveryStatus, Receiver
from models.periods import rfc3339
from models.store import Store

router = APIRouter(tags=["receivers"])


@router.get("/v1/webhooks", summary="The receivers of notices")
def receivers(request: Request, session: Reading, caller: Caller) -> dict[str, Any]:
    """Every receiver that the caller may see, oldest first; without their secrets, and for others than an admin without the path of their URL."""
    refuse_unknown(request, ())
    return {"items": [_shown(row, caller) for row in kept.standing(session) if _may_see(row, caller)], "next_cursor": None}


@router.post("/v1/webhooks", status_code=201, summary="Make a receiver")
def create(request: Request, body: ReceiverBody, caller: Caller, now: Now) -> dict[str, Any]:
    """The receiver with its secret, which no later answer shows."""
    return make(request.app.state.store, _telling(request), body, caller, now)


def make(store: Store, telling: Telling, body: ReceiverBody, caller: Principal, now: datetime) -> dict[str, Any]:
    """Check and keep a receiver; the answer has its secret."""
    kept.check(telling, body)
    with store.write() as session:
        row = kept.create(session, body, by=_author(caller), now=now)
        return _shown(row, caller) | {"secret": row.secret, "routing_key": row.routing_key}


@router.get("/v1/webhooks/{receiver_id}", summary="One receiver")
def receiver(session: Reading, caller: Caller, *, receiver_id: str) -> dict[str, Any]:
    """The receiver, and how it went lately."""
    return _shown(_found(session, receiver_id, caller), caller)


@router.put("/v1/webhooks/{receiver_id}", summary="Replace a receiver")
def replace(request: Request, body: ReceiverBody, caller: Caller, now: Now, *, receiver_id: str) -> dict[str, Any]:
    """The receiver as it is now. A secret or routing key that is not given stays; a new secret lets the old one sign for a day. ``enabled`` ends a 410's disabling."""
    return change(request.app.state.store, _telling(request), body, caller, now, receiver_id=receiver_id)


def change(store: Store, telling: Telling, body: ReceiverBody, caller: Principal, now: datetime, *, receiver_id: str) -> dict[str, Any]:
    """Check and keep a receiver as it is now."""
    with store.read() as session:
        kept_key = _found(session, receiver_id, caller).routing_key
    kept.check(telling, body, kept_key=kept_key)
    with store.write() as session:
        return _shown(kept.replace(session, _found(session, receiver_id, caller), body, by=_author(caller), now=now), caller)


@router.delete("/v1/webhooks/{receiver_id}", status_code=204, summary="Delete a receiver")
def delete(session: Writing, caller: Caller, now: Now, *, receiver_id: str) -> Response:
    """Nothing is sent to it any more; its secrets are forgotten. Rules that name no other receiver tell the defaults."""
    kept.delete(session, _found(session, receiver_id, caller), by=_author(caller), now=now)
    return Response(status_code=204)


@router.post("/v1/webhooks/{receiver_id}/rotate", summary="A new secret; the old one signs too for a day")
def rotate(session: Writing, caller: Caller, now: Now, *, receiver_id: str) -> dict[str, Any]:
    """The receiver with its new secret, which no later answer shows."""
    row = kept.rotate(session, _found(session, receiver_id, caller), by=_author(caller), now=now)
    return _shown(row, caller) | {"secret": row.secret}


@router.post("/v1/webhooks/{receiver_id}/test", status_code=202, summary="Send a sample that says it is a test")
def test(session: Writing, caller: Caller, now: Now, *, receiver_id: str) -> dict[str, Any]:
    """The delivery, which is made at once; what the receiver answered is among its deliveries, as a status only."""
    row = _found(session, receiver_id, caller)
    _refuse_disabled(row)
    # Somebody waits for it: a receiver that rests is tried now.
    row.rests_until = None
    session.add(row)
    made = enqueue(session, row, sample(new_id("msg"), receiver_name=row.name, now=now), now=now)
    audit(session, actor=_author(caller).name, action="test", kind="receiver", object_id=row.id, before=None, after={"delivery": made.id}, now=now)
    return _delivery(session, made)


@router.get("/v1/webhooks/{receiver_id}/deliveries", summary="What was sent to a receiver, newest first")
def deliveries(request: Request, session: Reading, caller: Caller, *, receiver_id: str) -> dict[str, Any]:
    """Every delivery with its attempts; ``limit`` and ``cursor`` page."""
    refuse_unknown(request, ("limit", "cursor"))
    row = _found(session, receiver_id, caller)
    limit = whole_number(request, "limit", default=100, low=1, high=1000)
    cursor = request.query_params.get("cursor") or ""
    question = select(Delivery).where(Delivery.receiver_id == row.id).order_by(col(Delivery.seq).desc())
    if cursor:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
            raise InvalidInput("the cursor is not one of this list; begin without it")
        question = question.where(col(Delivery.seq) < int(cursor))
    rows = session.exec(question.limit(limit + 1)).all()
    return {"items": [_delivery(session, one) for one in rows[:limit]], "next_cursor": str(rows[limit - 1].seq) if len(rows) > limit else None}


@router.post("/v1/webhooks/{receiver_id}/deliveries/{delivery_id}/replay", status_code=202, summary="Send a delivery again, under its id")
def replay(session: Writing, caller: Caller, now: Now, *, receiver_id: str, delivery_id: str) -> dict[str, Any]:
    """The delivery, due now; the same bytes under the same webhook-id."""
    row = _found(session, receiver_id, caller)
    _refuse_disabled(row)
    found = session.exec(select(Delivery).where(Delivery.id == delivery_id, Delivery.receiver_id == row.id)).first()
    if found is None:
        raise NotFound(f"there is no delivery {delivery_id[:60]!r} of this receiver; see GET /v1/webhooks/{row.id}/deliveries")
    found.status, found.step, found.started_at, found.next_attempt_at = DeliveryStatus.PENDING, 0, now, now
    found.resend_at = found.claimed_by = found.claimed_until = None
    row.rests_until = None
    session.add(found)
    session.add(row)
    session.flush()
    audit(session, actor=_author(caller).name, action="replay", kind="receiver", object_id=row.id, before=None, after={"delivery": found.id}, now=now)
    return _delivery(session, found)


# -- checks and shapes ----------------------------------------------------------------------------


def _telling(request: Request) -> Telling:
    return getattr(request.app.state, "telling", None) or Telling()


def _author(caller: Principal) -> Author:
    return Author(caller.name if caller.key_id is None else f"{caller.name} ({caller.key_id})")


def _shown(row: Receiver, caller: Principal) -> dict[str, Any]:
    return kept.shown(row, whole_url=caller.may("admin"))


def _may_see(row: Receiver, caller: Principal) -> bool:
    """A key of some workspaces sees receivers of these only: a URL is often a secret too."""
    return caller.visible is None or bool(row.workspaces and set(row.workspaces) <= set(caller.visible))


def _found(session: Session, receiver_id: str, caller: Principal) -> Receiver:
    row = session.get(Receiver, receiver_id) if "\0" not in receiver_id else None
    if row is None or row.deleted_at is not None or not _may_see(row, caller):
        raise NotFound(f"there is no receiver {receiver_id[:60]!r}; see GET /v1/webhooks")
    return row


def _refuse_disabled(row: Receiver) -> None:
    if not row.is_enabled:
        raise Conflict(f"the receiver is disabled ({row.disabled_reason}); enable it first: PUT /v1/webhooks/{row.id} with enabled true")


def _delivery(session: Session, row: Delivery) -> dict[str, Any]:
    tried = session.exec(select(DeliveryAttempt).where(DeliveryAttempt.delivery_id == row.id).order_by(col(DeliveryAttempt.seq)).limit(100))
    return {
        "id": row.id,
        "webhook_id": row.notice_id,
        "alert_id": row.alert_id if row.type != "webhook.test" else None,
        "type": row.type,
        "status": row.status.value,
        "attempts": row.attempts,
        "last_status": row.last_status,
        "last_error": row.last_error or None,
        "next_attempt_at": kept.when(row.next_attempt_at),
        "created_at": rfc3339(row.created_at),
        "delivered_at": kept.when(row.delivered_at),
        "attempt_list": [{"at": rfc3339(one.at), "status": one.status, "error": one.error or None, "duration_ms": one.duration_ms} for one in tried],
    }
