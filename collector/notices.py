"""The outbox's front door: a notice of an alert, put into the caller's transaction for each receiver it is for.

Every transition is told, also one that was over before its first delivery: the firing goes first, the resolved after it.
What is sent is rendered here, once: every attempt has the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from sqlmodel import Session, col, select, update

from collector.rulebook import new_id
from collector.webhooks.formats import Notice, render
from models.notices import Delivery, DeliveryStatus, Receiver
from models.silences import agrees, labels, pairs

Type = Literal["alert.firing", "alert.resolved", "webhook.test"]


def post(
    session: Session,
    *,
    alert: Mapping[str, object],
    type: Literal["alert.firing", "alert.resolved"],  # noqa: A002 - the word of the wire
    receivers: Sequence[str] | None,
    now: datetime,
    public_url: str = "",
) -> None:
    """Tell ``receivers`` (None: those marked default) of ``alert``; delivered after the caller's commit.

    Where none of the named receivers is left, the defaults are told: an alert must not fall silent because somebody tidied
    up. The end is told to whoever was told the beginning, whatever was changed in between.
    """
    every = session.exec(select(Receiver).where(col(Receiver.deleted_at).is_(None)).order_by(col(Receiver.id))).all()
    named = [one for one in every if receivers is not None and one.id in receivers]
    notice = Notice(id=new_id("msg"), type=type, at=now, data=_linked(alert, public_url))
    heard = _heard_of(session, str(alert.get("id", ""))) if type == "alert.resolved" else None
    for receiver in every:
        is_named = receiver in named
        is_meant = receiver.id in heard if heard else (is_named if named else receiver.is_default) and _is_for(receiver, alert, is_named=is_named)
        if is_meant and receiver.is_enabled:
            enqueue(session, receiver, notice, now=now)


def _linked(alert: Mapping[str, object], public_url: str) -> Mapping[str, object]:
    """The alert with links that lead somewhere from outside, where it is known how people come here."""
    if not public_url:
        return alert
    asked = str(alert.get("explain_url") or "")
    page = f"{public_url}/dashboard/"
    return {**alert, "explain_url": f"{public_url}{asked}", "url": f"{page}alerts", "explain_page_url": page + asked.removeprefix("/v1/")}


def _heard_of(session: Session, alert_id: str) -> frozenset[str]:
    told = select(Delivery.receiver_id).where(Delivery.alert_id == alert_id, Delivery.type == "alert.firing").distinct()
    return frozenset(session.exec(told))


def enqueue(session: Session, receiver: Receiver, notice: Notice, *, now: datetime) -> Delivery:
    """One delivery, due at once."""
    alert_id = str(notice.data.get("id", notice.id))
    mine = (col(Delivery.receiver_id) == receiver.id, col(Delivery.alert_id) == alert_id)
    if notice.data.get("kind") == "heartbeat":
        # A beat says "now": those that could not be told are worth nothing when the next one comes.
        waiting = (*mine, col(Delivery.status) == DeliveryStatus.PENDING, col(Delivery.claimed_by).is_(None))
        session.exec(update(Delivery).where(*waiting).values(status=DeliveryStatus.FAILED, next_attempt_at=None, last_error="a newer heartbeat took its place"))
    # What is told now stands in for what would have been told again.
    session.exec(update(Delivery).where(*mine, col(Delivery.resend_at).is_not(None)).values(resend_at=None))
    row = Delivery(
        id=new_id("dlv"),
        notice_id=notice.id,
        receiver_id=receiver.id,
        alert_id=alert_id,
        type=notice.type,
        body=render(receiver.format, notice, receiver_name=receiver.name, routing_key=receiver.routing_key),
        created_at=now,
        started_at=now,
        next_attempt_at=now,
    )
    session.add(row)
    session.flush()
    return row


def _is_for(receiver: Receiver, alert: Mapping[str, object], *, is_named: bool) -> bool:
    """Whether the alert is one of those that the receiver wants to hear of."""
    scope = alert.get("scope")
    scope = scope if isinstance(scope, Mapping) else {}
    if scope.get("receiver") == receiver.id:
        return False  # that it is not reached cannot be told to itself
    if receiver.severities and alert.get("severity") not in receiver.severities:
        return False
    about = {name: alert.get(name) for name in ("id", "rule", "rule_id", "kind", "severity", "step")}
    if not agrees(pairs(receiver.matchers), labels(**about, scope=scope)):
        return False
    if not receiver.workspaces:
        return True
    said = scope.get("workspace")
    workspaces = [said] if isinstance(said, str) else list(said) if isinstance(said, Sequence) else []
    # One that is about no workspace at all goes only where a rule names the receiver.
    return all(one in receiver.workspaces for one in workspaces) if workspaces else is_named
