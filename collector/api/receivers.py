"""Receivers of notices and their deliveries."""

from __future__ import annotations

import base64
import secrets
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlmodel import Session, col, select

from collector.api.deps import Caller, Now, Reading, Writing
from collector.api.reads import refuse_unknown, whole_number
from collector.auth import Principal
from collector.notices import enqueue
from collector.rulebook import audit, new_id
from collector.webhooks import dispatch, reach
from collector.webhooks.formats import sample
from collector.webhooks.setup import Telling
from models.errors import Conflict, InvalidInput, NotFound
from models.notices import Delivery, DeliveryAttempt, DeliveryStatus, Format, Receiver
from models.periods import rfc3339
from models.store import Store

router = APIRouter(tags=["receivers"])
_OVERLAP = timedelta(hours=24)
_LOOK_UP_SECONDS = 3.0
_MOST_RECEIVERS = 1000


class ReceiverBody(BaseModel):
    """A receiver as the API takes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=256)
    url: str = Field(min_length=1, max_length=2048)
    format: Format = Field(strict=False)
    workspaces: list[str] = Field(default_factory=list, max_length=1000)
    default: bool = False
    routing_key: str | None = Field(default=None, min_length=1, max_length=256)
    enabled: bool = True

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise ValueError("a name has visible characters, and no control characters")
        return value

    @field_validator("workspaces")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        if not all(one.strip() and len(one) <= 256 and "\0" not in one for one in value):
            raise ValueError("a workspace is a name of 1 to 256 characters")
        return sorted(set(value))


@router.get("/v1/webhooks", summary="The receivers of notices")
def receivers(request: Request, session: Reading, caller: Caller) -> dict[str, Any]:
    """Every receiver that the caller may see, oldest first; without their secrets."""
    refuse_unknown(request, ())
    rows = session.exec(select(Receiver).where(col(Receiver.deleted_at).is_(None)).order_by(col(Receiver.created_at), col(Receiver.id)))
    return {"items": [_shown(row) for row in rows if _may_see(row, caller)], "next_cursor": None}


@router.post("/v1/webhooks", status_code=201, summary="Make a receiver")
def create(request: Request, body: ReceiverBody, caller: Caller, now: Now) -> dict[str, Any]:
    """The receiver with its secret, which no later answer shows."""
    _check(request, body)
    store: Store = request.app.state.store
    with store.write() as session:
        if (session.scalar(sa.select(sa.func.count()).select_from(Receiver).where(col(Receiver.deleted_at).is_(None))) or 0) >= _MOST_RECEIVERS:
            raise Conflict(f"there are {_MOST_RECEIVERS:,} receivers already; delete some first")
        row = Receiver(
            id=new_id("hook"),
            name=body.name,
            url=body.url,
            format=body.format,
            workspaces=body.workspaces,
            is_default=body.default,
            secret=_new_secret() if body.format is Format.STANDARD else None,
            routing_key=body.routing_key,
            is_enabled=body.enabled,
            disabled_reason="" if body.enabled else "by hand",
            created_at=now,
            updated_at=now,
        )
        session.add(row)
        session.flush()
        audit(session, actor=_actor(caller), action="create", kind="receiver", object_id=row.id, before=None, after=_shown(row), now=now)
        return _shown(row) | {"secret": row.secret, "routing_key": row.routing_key}


@router.get("/v1/webhooks/{receiver_id}", summary="One receiver")
def receiver(session: Reading, caller: Caller, *, receiver_id: str) -> dict[str, Any]:
    """The receiver, and how it went lately."""
    return _shown(_found(session, receiver_id, caller))


@router.put("/v1/webhooks/{receiver_id}", summary="Replace a receiver")
def replace(request: Request, body: ReceiverBody, caller: Caller, now: Now, *, receiver_id: str) -> dict[str, Any]:
    """The receiver as it is now. Its secret stays, and its routing key if none is given; ``enabled`` ends a 410's disabling."""
    store: Store = request.app.state.store
    with store.read() as session:
        kept = _found(session, receiver_id, caller).routing_key
    _check(request, body, kept_key=kept)
    with store.write() as session:
        row = _found(session, receiver_id, caller)
        before = _shown(row)
        if row.format is not body.format:
            raise InvalidInput("the format of a receiver stays: what waits for it is rendered already; make a new one")
        row.name, row.url, row.workspaces, row.is_default, row.updated_at = body.name, body.url, body.workspaces, body.default, now
        row.routing_key = body.routing_key or row.routing_key
        if body.enabled:
            row.is_enabled, row.disabled_reason, row.failures, row.rests_until = True, "", 0, None
        elif row.is_enabled:
            dispatch.disable(session, row, "by hand", now=now)
        session.add(row)
        session.flush()
        audit(session, actor=_actor(caller), action="update", kind="receiver", object_id=row.id, before=before, after=_shown(row), now=now)
        return _shown(row)


@router.delete("/v1/webhooks/{receiver_id}", status_code=204, summary="Delete a receiver")
def delete(session: Writing, caller: Caller, now: Now, *, receiver_id: str) -> Response:
    """Nothing is sent to it any more; its secrets are forgotten."""
    row = _found(session, receiver_id, caller)
    before = _shown(row)
    dispatch.disable(session, row, "it was deleted", now=now)
    row.deleted_at, row.secret, row.previous_secret, row.routing_key = now, None, None, None
    session.add(row)
    session.flush()
    audit(session, actor=_actor(caller), action="delete", kind="receiver", object_id=row.id, before=before, after=None, now=now)
    return Response(status_code=204)


@router.post("/v1/webhooks/{receiver_id}/rotate", summary="A new secret; the old one signs too for a day")
def rotate(session: Writing, caller: Caller, now: Now, *, receiver_id: str) -> dict[str, Any]:
    """The receiver with its new secret, which no later answer shows."""
    row = _found(session, receiver_id, caller)
    if row.secret is None:
        raise Conflict(f"a receiver of the format {row.format.value} has no secret to rotate")
    before = _shown(row)
    row.secret, row.previous_secret, row.previous_until, row.updated_at = _new_secret(), row.secret, now + _OVERLAP, now
    session.add(row)
    session.flush()
    audit(session, actor=_actor(caller), action="rotate", kind="receiver", object_id=row.id, before=before, after=_shown(row), now=now)
    return _shown(row) | {"secret": row.secret}


@router.post("/v1/webhooks/{receiver_id}/test", status_code=202, summary="Send a sample that says it is a test")
def test(session: Writing, caller: Caller, now: Now, *, receiver_id: str) -> dict[str, Any]:
    """The delivery, which is made at once; what the receiver answered is among its deliveries, as a status only."""
    row = _found(session, receiver_id, caller)
    _refuse_disabled(row)
    # Somebody waits for it: a receiver that rests is tried now.
    row.rests_until = None
    session.add(row)
    made = enqueue(session, row, sample(new_id("msg"), receiver_name=row.name, now=now), now=now)
    audit(session, actor=_actor(caller), action="test", kind="receiver", object_id=row.id, before=None, after={"delivery": made.id}, now=now)
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
    audit(session, actor=_actor(caller), action="replay", kind="receiver", object_id=row.id, before=None, after={"delivery": found.id}, now=now)
    return _delivery(session, found)


# -- checks and shapes ----------------------------------------------------------------------------


def _check(request: Request, body: ReceiverBody, *, kept_key: str | None = None) -> None:
    """Refuse what could never be told, before anything is written; outside any transaction, as names are looked up."""
    telling: Telling = getattr(request.app.state, "telling", None) or Telling()
    if body.format is Format.PAGERDUTY and not (body.routing_key or kept_key):
        raise InvalidInput("routing_key: PagerDuty needs the integration's key")
    if body.format is not Format.PAGERDUTY and body.routing_key is not None:
        raise InvalidInput("routing_key: only receivers of the format pagerduty have one")
    if body.format is Format.EMAIL:
        reach.mailbox(body.url)
        if telling.mail is None:
            raise InvalidInput("no mail server is set up: set METERBRIDGE_SMTP_URL and METERBRIDGE_SMTP_FROM, then make the receiver")
        return
    target = reach.parse(body.url)
    addresses = [target.host] if reach.literal(target.host) else _addresses(telling, target)
    if addresses:
        telling.policy.check(target, addresses)
    elif target.scheme == "http":
        raise reach.Refused(f"{target.host} has no address now, and plain http is only for networks of METERBRIDGE_WEBHOOK_ALLOW")
    elif target.port not in telling.policy.ports and not telling.policy.allow:
        raise reach.Refused(f"port {target.port}: public receivers are on port {', '.join(map(str, sorted(telling.policy.ports)))} (METERBRIDGE_WEBHOOK_PORTS)")


def _addresses(telling: Telling, target: reach.Target) -> list[str]:
    """The addresses of a name now; none if it has none or is slow. Each attempt asks again, so nothing is missed."""
    asking = ThreadPoolExecutor(max_workers=1)
    try:
        return list(asking.submit(telling.resolver, target.host, target.port).result(timeout=_LOOK_UP_SECONDS))
    except (OSError, UnicodeError, TookTooLong):
        return []
    finally:
        asking.shutdown(wait=False)


def _actor(caller: Principal) -> str:
    return caller.name if caller.key_id is None else f"{caller.name} ({caller.key_id})"


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


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


def _when(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)


def _shown(row: Receiver) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "url": row.url,
        "format": row.format.value,
        "workspaces": row.workspaces,
        "default": row.is_default,
        "enabled": row.is_enabled,
        "disabled_reason": row.disabled_reason or None,
        "failures": row.failures,
        "rests_until": _when(row.rests_until),
        "previous_secret_until": _when(row.previous_until),
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


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
        "next_attempt_at": _when(row.next_attempt_at),
        "created_at": rfc3339(row.created_at),
        "delivered_at": _when(row.delivered_at),
        "attempt_list": [{"at": rfc3339(one.at), "status": one.status, "error": one.error or None, "duration_ms": one.duration_ms} for one in tried],
    }
