"""Signed links: whoever has one reads one snapshot, until it ends, and nothing else."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta

from sqlmodel import Session

from models.columns import from_microseconds, to_microseconds
from models.errors import NotFound
from models.reports import ReportSnapshot
from models.resources import Setting

LASTS = timedelta(days=30)
_PURPOSE = b"report link\0"


def token_of(session: Session, snapshot_id: str, *, now: datetime) -> str | None:
    """The token of a snapshot; None on a database that was never served, which has no secret to sign with."""
    secret = session.get(Setting, "cookie_secret")
    if secret is None:
        return None
    said = f"{snapshot_id}.{to_microseconds(now + LASTS) // 1_000_000}"
    return f"{said}.{_signed(secret.value, said)}"


def snapshot_of(session: Session, token: str, *, now: datetime) -> ReportSnapshot:
    """What the token opens; every reason against it looks the same."""
    said, _, signature = token.rpartition(".")
    snapshot_id, _, ends = said.rpartition(".")
    secret = session.get(Setting, "cookie_secret")
    # Compared as bytes: a token from outside may hold any sign.
    if secret is not None and hmac.compare_digest(_signed(secret.value, said).encode(), signature.encode("utf-8", "replace")):
        found = session.get(ReportSnapshot, snapshot_id)
        if found is not None and now < from_microseconds(int(ends) * 1_000_000):
            return found
    raise NotFound("this link opens nothing: it has ended, or it was changed on its way")


def _signed(secret: str, said: str) -> str:
    return hmac.new(bytes.fromhex(secret), _PURPOSE + said.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
