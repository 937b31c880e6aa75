"""Alerts that other systems send: LiteLLM's budget webhooks. Each is an alert of kind ``external``, told as ours are.

LiteLLM sends the same crossing again and again and never says that it is over, so that one alert stands for all of them
until it has not been repeated for a day.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from collector import rulebook
from models.alerts import Alert, AlertState, Kind, Severity
from models.errors import InvalidInput
from models.periods import rfc3339

SYSTEM = "litellm"
# An alert that nobody repeats ends by itself after this.
EXPIRES_AFTER = timedelta(hours=24)
_SEVERITY: Mapping[str, Severity] = {
    "budget_crossed": Severity.ERROR,
    "threshold_crossed": Severity.WARNING,
    "soft_budget_crossed": Severity.WARNING,
    "projected_limit_exceeded": Severity.WARNING,
}
# Sent after every call; it is no alert.
_IGNORED = frozenset({"spend_tracked"})
_NAMES = ("team_id", "team_alias", "key_alias", "token", "user_id", "user_email", "customer_id", "end_user_id", "organization_id")
_MOST_TEXT = 256


def accept_litellm(session: Session, said: object, *, now: datetime) -> dict[str, Any]:
    """Keep LiteLLM's webhook as an external alert; the caller holds the lock under which alerts are written.

    A new one is told at the next evaluation of the watch, with everything else that fires then.
    """
    if not isinstance(said, dict):
        raise InvalidInput("a LiteLLM webhook is a JSON object with event and event_group", error="schema_invalid")
    event = _text(said.get("event"))
    if event in _IGNORED:
        return {"accepted": 0, "ignored": 1, "reason": f"{event} is no alert"}
    if event is None or event not in _SEVERITY:
        known = ", ".join([*_SEVERITY, *sorted(_IGNORED)])
        raise InvalidInput(f"event must be one of {known}, not {str(said.get('event'))[:60]!r}", error="schema_invalid")
    group = _text(said.get("event_group")) or "unknown"
    names = {name: text for name in _NAMES if name != "token" and (text := _text(said.get(name))) is not None}
    # The token is a hash of the key; enough of it to tell two keys apart.
    token = _text(said.get("token"))
    if token is not None:
        names["token"] = token[:12]
    subject = "|".join([event, group, *(f"{name}={text}" for name, text in sorted(names.items()))])
    key = f"{SYSTEM}|{subject}"
    spend, ceiling = _number(said.get("spend")), _number(said.get("max_budget"))
    if event == "soft_budget_crossed":
        ceiling = _number(said.get("soft_budget")) or ceiling
    sample: dict[str, Any] = {"measured": "external", "system": SYSTEM, "event": event, "event_group": group, "received_at": rfc3339(now), **names}
    for name in ("projected_spend", "projected_exceeded_date"):
        if said.get(name) is not None:
            sample[name] = _text(str(said[name]))
    why = _text(said.get("event_message")) or f"LiteLLM says {event.replace('_', ' ')} for a {group}"
    alert = session.exec(select(Alert).where(Alert.open_key == key)).first()
    if alert is not None:
        alert.value, alert.threshold, alert.sample, alert.why, alert.expires_at = spend, ceiling, sample, why, now + EXPIRES_AFTER
        session.add(alert)
        session.flush()
        return {"accepted": 0, "duplicates": 1, "id": alert.id}
    scope: dict[str, Any] = {"team": names["team_alias"]} if "team_alias" in names else {}
    alert = Alert(
        id=rulebook.new_id("alert"),
        seq=int(session.scalar(sa.select(sa.func.coalesce(sa.func.max(col(Alert.seq)), 0))) or 0) + 1,
        rule_id=SYSTEM,
        rule=f"LiteLLM: {event.replace('_', ' ')}",
        kind=Kind.EXTERNAL,
        state=AlertState.FIRING,
        severity=_SEVERITY[event],
        scope=scope,
        open_key=key,
        subject=subject,
        value=spend,
        threshold=ceiling,
        why=why,
        sample=sample,
        receivers=[],
        pending_at=now,
        fired_at=now,
        expires_at=now + EXPIRES_AFTER,
    )
    session.add(alert)
    session.flush()
    return {"accepted": 1, "id": alert.id}


def _text(value: object) -> str | None:
    """A name or sentence of another system: printable, and not longer than ours."""
    if not isinstance(value, str) or not value.strip():
        return None
    return "".join(sign if sign.isprintable() else " " for sign in value)[:_MOST_TEXT]


def _number(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    number = Decimal(value)
    return number if number.is_finite() and abs(number) < Decimal(10) ** 20 else None
