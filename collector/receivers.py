"""Receivers as people keep them: checked, written with an audit trail, shown without what is secret.

The API, the pages and ``meterbridge apply`` all write through here. A secret, a routing key and the path of a URL are
shown to nobody who could not change them, and never land in the audit trail: there a URL is its host and a fingerprint.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from datetime import datetime, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlmodel import Session, col, select

from collector.rulebook import Author, Matcher, audit, new_id
from collector.webhooks import dispatch, reach
from collector.webhooks.setup import Telling
from models.alerts import Severity
from models.errors import Conflict, InvalidInput
from models.notices import BY_HAND, Format, Receiver, place
from models.periods import rfc3339

# How long the secret before signs too, so that a receiver can change over.
OVERLAP = timedelta(hours=24)
_LOOK_UP_SECONDS = 3.0
_MOST_RECEIVERS = 1000
_SECRET_BYTES = range(24, 65)  # Standard Webhooks


class ReceiverBody(BaseModel):
    """A receiver as it is said; ``secret`` is one that the receiver knows already, else a new one is made."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=256)
    url: str = Field(min_length=1, max_length=2048)
    format: Format = Field(strict=False)
    workspaces: list[str] = Field(default_factory=list, max_length=1000)
    default: bool = False
    severities: list[Annotated[Severity, Field(strict=False)]] = Field(default_factory=list, max_length=4)
    matchers: list[Annotated[Matcher, Field(strict=False)]] = Field(default_factory=list, max_length=50)
    routing_key: str | None = Field(default=None, min_length=1, max_length=256, repr=False)
    secret: str | None = Field(default=None, max_length=200, repr=False)
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

    @field_validator("severities")
    @classmethod
    def _distinct(cls, value: list[Severity]) -> list[Severity]:
        return [one for one in Severity if one in value]

    @field_validator("secret")
    @classmethod
    def _signs(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            key = base64.b64decode(value.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not value.startswith("whsec_") or len(key) not in _SECRET_BYTES:
            # Never the value itself: what answers is shown and logged.
            raise ValueError("a secret is whsec_ and 24 to 64 bytes in base64; make one with: echo whsec_$(openssl rand -base64 32)")
        return value


# -- checks ---------------------------------------------------------------------------------------


def check(telling: Telling, body: ReceiverBody, *, kept_key: str | None = None) -> None:
    """Refuse what could never be told, before anything is written; outside any transaction, as names are looked up."""
    if body.format is Format.PAGERDUTY and not (body.routing_key or kept_key):
        raise InvalidInput("PagerDuty needs the integration's key", field="routing_key")
    if body.format is not Format.PAGERDUTY and body.routing_key is not None:
        raise InvalidInput("only receivers of the format pagerduty have one", field="routing_key")
    if body.format is not Format.STANDARD and body.secret is not None:
        raise InvalidInput("only receivers of the format standard are signed for", field="secret")
    try:
        _check_url(telling, body)
    except InvalidInput as fault:
        fault.field = "url"
        raise


def _check_url(telling: Telling, body: ReceiverBody) -> None:
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


# -- writing --------------------------------------------------------------------------------------


def standing(session: Session) -> list[Receiver]:
    """Every receiver that was not deleted, oldest first."""
    return list(session.exec(select(Receiver).where(col(Receiver.deleted_at).is_(None)).order_by(col(Receiver.created_at), col(Receiver.id))))


def create(session: Session, body: ReceiverBody, *, by: Author, now: datetime) -> Receiver:
    """A new receiver, checked before."""
    if (session.scalar(sa.select(sa.func.count()).select_from(Receiver).where(col(Receiver.deleted_at).is_(None))) or 0) >= _MOST_RECEIVERS:
        raise Conflict(f"there are {_MOST_RECEIVERS:,} receivers already; delete some first")
    row = Receiver(
        id=new_id("hook"),
        secret=(body.secret or _new_secret()) if body.format is Format.STANDARD else None,
        routing_key=body.routing_key,
        is_enabled=body.enabled,
        disabled_reason="" if body.enabled else BY_HAND,
        origin=by.origin,
        created_at=now,
        updated_at=now,
        **_values(body),
    )
    session.add(row)
    session.flush()
    _audit(session, row, "create", None, recorded(row), by=by, now=now)
    return row


def replace(session: Session, row: Receiver, body: ReceiverBody, *, by: Author, now: datetime) -> Receiver:
    """The receiver as the body has it, checked before. A secret or key that is not said stays; ``enabled`` ends a 410's disabling."""
    before = recorded(row)
    if row.format is not body.format:
        raise InvalidInput("the format of a receiver stays: what waits for it is rendered already; make a new one", field="format")
    for name, value in _values(body).items():
        setattr(row, name, value)
    row.routing_key, row.updated_at = body.routing_key or row.routing_key, now
    if body.secret is not None and body.secret != row.secret:
        _change_secret(row, body.secret, now=now)
    if body.enabled:
        row.is_enabled, row.disabled_reason, row.failures, row.rests_until = True, "", 0, None
    elif row.is_enabled:
        dispatch.disable(session, row, BY_HAND, now=now)
    session.add(row)
    session.flush()
    _audit(session, row, "update", before, recorded(row), by=by, now=now)
    return row


def delete(session: Session, row: Receiver, *, by: Author, now: datetime) -> None:
    """Nothing is sent to it any more; its secrets are forgotten."""
    before = recorded(row)
    dispatch.disable(session, row, "it was deleted", now=now)
    row.deleted_at, row.secret, row.previous_secret, row.routing_key = now, None, None, None
    session.add(row)
    session.flush()
    _audit(session, row, "delete", before, None, by=by, now=now)


def rotate(session: Session, row: Receiver, *, by: Author, now: datetime) -> Receiver:
    """The receiver with a new secret; the one before signs too for a day."""
    if row.secret is None:
        raise Conflict(f"a receiver of the format {row.format.value} has no secret to rotate")
    before = recorded(row)
    _change_secret(row, _new_secret(), now=now)
    row.updated_at = now
    session.add(row)
    session.flush()
    _audit(session, row, "rotate", before, recorded(row), by=by, now=now)
    return row


def _values(body: ReceiverBody) -> dict[str, Any]:
    return {
        "name": body.name,
        "url": body.url,
        "format": body.format,
        "workspaces": body.workspaces,
        "is_default": body.default,
        "severities": [one.value for one in body.severities],
        "matchers": [{"name": one.name, "value": one.value} for one in body.matchers],
    }


def _change_secret(row: Receiver, secret: str, *, now: datetime) -> None:
    row.secret, row.previous_secret, row.previous_until = secret, row.secret, now + OVERLAP


def _audit(session: Session, row: Receiver, action: str, before: dict[str, Any] | None, after: dict[str, Any] | None, *, by: Author, now: datetime) -> None:
    audit(session, actor=by.name, action=action, kind="receiver", object_id=row.id, before=before, after=after, now=now)


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


# -- shown ----------------------------------------------------------------------------------------


def shown(row: Receiver, *, whole_url: bool) -> dict[str, Any]:
    """A receiver as JSON; a URL is often a secret, so that only those who may change it see it whole."""
    return {
        "id": row.id,
        "name": row.name,
        "url": row.url if whole_url else place(row.url, row.format),
        "format": row.format.value,
        "workspaces": row.workspaces,
        "default": row.is_default,
        "severities": row.severities,
        "matchers": row.matchers,
        "enabled": row.is_enabled,
        "disabled_reason": row.disabled_reason or None,
        "failures": row.failures,
        "rests_until": when(row.rests_until),
        "previous_secret_until": when(row.previous_until),
        "origin": row.origin,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def recorded(row: Receiver) -> dict[str, Any]:
    """A receiver as the audit trail has it: a change of its URL shows, the URL does not."""
    fingerprint = hashlib.sha256(row.url.encode()).hexdigest()[:8]
    return shown(row, whole_url=False) | {"url": f"{place(row.url, row.format)} ({fingerprint})"}


def when(at: datetime | None) -> str | None:
    """An instant as JSON."""
    return None if at is None else rfc3339(at)
