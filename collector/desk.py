"""What may be changed from the dashboard: each act is the API route of that name, called with the viewer as its caller."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Protocol

from sqlmodel import Session

from collector import rulebook
from collector.api import alerts, receivers, schedules
from collector.auth import OPEN, Principal
from collector.rulebook import MATCHER_NAMES, BudgetBody, RuleBody, SilenceBody, parsed
from models.alerts import Alert, AlertRule, Budget
from models.errors import Forbidden, InvalidInput, NotFound
from models.store import Store

_LONGEST_SILENCE_HOURS = 168


class Viewer(Protocol):
    """The key that somebody signed in with; ``workspaces`` None is all of them."""

    @property
    def key_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def workspaces(self) -> frozenset[str] | None: ...


class Desk:
    """``acknowledge``, ``silence``, rules, budgets, ``test`` and ``replay``; every act is one transaction with its line in the audit trail."""

    def __init__(self, store: Store, *, now: Callable[[], datetime], public_url: str = "") -> None:
        self._store = store
        self._now = now
        self._public_url = public_url

    def __call__(self, what: str, said: Mapping[str, str], viewer: Viewer) -> None:
        """Do it; ``DomainError`` where it cannot be done, with nothing changed."""
        if viewer.scope != "admin":
            raise Forbidden("this needs an admin key")
        caller = Principal(viewer.key_id, viewer.name, "admin", viewer.workspaces) if viewer.key_id else OPEN
        now = self._now()
        if what == "send-report":
            # Its figures take seconds: made before anybody has to wait for the writer.
            _send_report(self._store, said, caller, public_url=self._public_url, now=now)
            return
        with self._store.write() as session:
            match what:
                case "acknowledge":
                    alerts.acknowledge(session, caller, now, alert_id=_needed(said, "id"))
                case "silence":
                    _silence(session, said, caller, now)
                case "create-rule":
                    alerts.create_rule(_rule(said), session, caller, now)
                case "replace-rule":
                    rule = rulebook.found(session, AlertRule, _needed(said, "id"), visible=caller.visible)
                    alerts.replace_rule(_rule(said, rulebook.rule_body(rule)), session, caller, now, rule_id=rule.id)
                case "delete-rule":
                    alerts.delete_rule(session, caller, now, rule_id=_needed(said, "id"))
                case "create-budget":
                    alerts.create_budget(_budget(said), session, caller, now)
                case "replace-budget":
                    budget = rulebook.found(session, Budget, _needed(said, "id"), visible=caller.visible)
                    alerts.replace_budget(_budget(said, rulebook.budget_body(budget)), session, caller, now, budget_id=budget.id)
                case "delete-budget":
                    alerts.delete_budget(session, caller, now, budget_id=_needed(said, "id"))
                case "test-receiver":
                    receivers.test(session, caller, now, receiver_id=_needed(said, "id"))
                case "replay":
                    receivers.replay(session, caller, now, receiver_id=_needed(said, "id"), delivery_id=_needed(said, "delivery"))
                case _:
                    raise NotFound(f"nothing is called {what[:40]!r} here")


def _send_report(store: Store, said: Mapping[str, str], caller: Principal, *, public_url: str, now: datetime) -> None:
    """Send what the form says; the form sent twice is one report, as it names what it was made after."""
    receiver, period = said.get("receiver", ""), said.get("period", "")
    after = "|".join((_needed(said, "after"), receiver, period))
    request = f"page-{hashlib.sha256(after.encode()).hexdigest()[:32]}"
    asked = {"period": period or None, "receivers": [receiver] if receiver else None, "request": request}
    body = parsed(schedules.SendBody, asked, where="send")
    schedules.send_asked(store, body, caller, schedule_id=_needed(said, "id"), public_url=public_url, now=now)


def _needed(said: Mapping[str, str], name: str) -> str:
    found = said.get(name, "")
    if not found:
        raise InvalidInput(f"{name} is missing")
    return found


def _silence(session: Session, said: Mapping[str, str], caller: Principal, now: datetime) -> None:
    """Silence exactly what this alert is: its rule and the place it speaks of."""
    alert = session.get(Alert, _needed(said, "id"))
    if alert is None:
        raise NotFound(f"there is no alert {said['id'][:80]!r}")
    hours = said.get("hours", "")
    if not (hours.isascii() and hours.isdigit() and len(hours) < 4 and 1 <= int(hours) <= _LONGEST_SILENCE_HOURS):
        raise InvalidInput(f"hours must be a whole number from 1 to {_LONGEST_SILENCE_HOURS}")
    about = {"rule_id": alert.rule_id} if alert.rule_id else {"alert_id": alert.id}
    about |= {name: value for name, value in alert.scope.items() if isinstance(value, str) and value and (name in MATCHER_NAMES or name.startswith("tag:"))}
    matchers = [{"name": name, "value": value} for name, value in about.items()]
    body = parsed(
        SilenceBody,
        {"matchers": matchers, "starts_at": now.isoformat(), "ends_at": (now + timedelta(hours=int(hours))).isoformat(), "comment": "from the dashboard"},
        where="silence",
    )
    alerts.create_silence(body, session, caller, now)


def _scope(said: Mapping[str, str]) -> dict[str, str]:
    return {name: said[name] for name in ("workspace", "deployment", "team", "application") if said.get(name)}


def _number(said: Mapping[str, str], name: str) -> Decimal | None:
    text = said.get(name, "")
    if not text:
        return None
    try:
        return Decimal(text)
    except InvalidOperation as fault:
        raise InvalidInput(f"{name} must be a number such as 80 or 0.5, not {text[:40]!r}") from fault


def _whole(said: Mapping[str, str], name: str) -> int:
    text = said.get(name, "") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidInput(f"{name} must be a whole number, not {text[:40]!r}")
    return int(text)


def _percents(said: Mapping[str, str], name: str) -> list[int]:
    parts = [part.strip() for part in said.get(name, "").split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise InvalidInput(f"{name} must be whole percentages with commas between them, such as 50, 80, 100")
    return [int(part) for part in parts]


def _rule(said: Mapping[str, str], kept: Mapping[str, object] = MappingProxyType({})) -> RuleBody:
    """The rule of a form; what the form does not say stays as it is ``kept``."""
    body = {name: value for name, value in kept.items() if name in RuleBody.model_fields}
    body |= {name: said[name] for name in ("name", "kind", "severity") if said.get(name)}
    if "threshold" in said or "threshold_percent" in said:
        body |= {"threshold": _number(said, "threshold"), "threshold_percent": _number(said, "threshold_percent")}
    if "for_seconds" in said:
        body["for_seconds"] = _whole(said, "for_seconds")
    if "enabled" in said:
        body["enabled"] = said["enabled"] == "yes"
    if not kept:
        body["scope"] = _scope(said)
    return parsed(RuleBody, body, where="rule")


def _budget(said: Mapping[str, str], kept: Mapping[str, object] = MappingProxyType({})) -> BudgetBody:
    """The budget of a form; what the form does not say stays as it is ``kept``."""
    body = {name: value for name, value in kept.items() if name in BudgetBody.model_fields}
    body |= {name: said[name] for name in ("name", "amount", "period") if said.get(name)}
    if said.get("currency"):
        body["currency"] = said["currency"].upper()
    if "hard" in said:
        body["hard"] = said["hard"] == "yes"
    if said.get("steps"):
        body["steps"] = _percents(said, "steps")
    if not kept:
        body["scope"] = _scope(said)
    return parsed(BudgetBody, body, where="budget")
