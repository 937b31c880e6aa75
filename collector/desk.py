"""What may be changed from the dashboard: each act is the API route of that name, called with the viewer as its caller."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Protocol

from pydantic import ValidationError
from sqlmodel import Session

from collector import rulebook
from collector.api import alerts, quotas, receivers, schedules, workbench
from collector.auth import OPEN, Principal
from collector.receivers import ReceiverBody
from collector.reports import schedules as kept_schedules
from collector.reports.places import Places
from collector.reports.schedules import ScheduleBody
from collector.rulebook import MATCHER_NAMES, BudgetBody, RuleBody, SilenceBody, Weekly, parsed
from collector.watch import Known, backtest, backtest_budget
from collector.webhooks.setup import Telling
from models.alerts import Alert, AlertRule, Budget
from models.errors import Forbidden, InvalidInput, NotFound
from models.periods import Period, parse_instant
from models.store import Store
from models.trials import Trial

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
    """Alerts, silences, rules, budgets, limits, receivers and schedules of reports; every act is one transaction with its line in the audit trail."""

    def __init__(self, store: Store, *, now: Callable[[], datetime], telling: Telling | None = None, public_url: str = "") -> None:
        self._store = store
        self._now = now
        self._telling = telling or Telling()
        self._public_url = public_url

    def __call__(self, what: str, said: Mapping[str, str], viewer: Viewer) -> tuple[str, str] | None:
        """Do it; gives a label and a secret that is shown this once, if there is one. ``DomainError`` where it cannot be done, with nothing changed."""
        if viewer.scope != "admin":
            raise Forbidden("this needs an admin key")
        caller = Principal(viewer.key_id, viewer.name, "admin", viewer.workspaces) if viewer.key_id else OPEN
        now = self._now()
        match what:
            case "send-report":
                # Its figures take seconds: made before anybody has to wait for the writer.
                _send_report(self._store, said, caller, public_url=self._public_url, now=now)
                return None
            case "create-receiver":
                return _secret(receivers.make(self._store, self._telling, _receiver(said), caller, now))
            case "replace-receiver" | "enable-receiver" | "disable-receiver":
                with self._store.read() as session:
                    kept = receivers.receiver(session, caller, receiver_id=_needed(said, "id"))
                body = _receiver(said, kept, is_enabled={"enable-receiver": True, "disable-receiver": False}.get(what))
                receivers.change(self._store, self._telling, body, caller, now, receiver_id=said["id"])
                return None
        with self._store.write() as session:
            if what in ("create-schedule", "replace-schedule", "delete-schedule"):
                _schedule(session, what, said, caller, places=self._telling.places, now=now)
                return None
            return _in_one(session, what, said, caller, now)

    def tried(self, what: str, said: Mapping[str, str]) -> Trial:
        """What the rule or budget of a form would have done over the last so many days; nothing is kept."""
        now = self._now()
        days = said.get("days", "")
        if not (days.isascii() and days.isdigit() and len(days) < 4 and int(days) > 0):
            raise InvalidInput("a whole number of days is needed", field="days")
        period = Period(now - timedelta(days=int(days)), now)
        with self._store.read() as session:
            if what == "budget":
                budget = rulebook.found(session, Budget, said["id"], visible=None) if said.get("id") else None
                body = _budget(said, rulebook.budget_body(budget) if budget is not None else {})
                known: Known = "today" if said.get("known") == "today" else "then"
                return backtest_budget(session, rulebook.tried_budget(body, now=now), period, now=now, known=known)
            rule = rulebook.found(session, AlertRule, said["id"], visible=None) if said.get("id") else None
            return backtest(session, rulebook.tried_rule(_rule(said, rulebook.rule_body(rule) if rule is not None else {}), now=now), period, now=now)


def _in_one(session: Session, what: str, said: Mapping[str, str], caller: Principal, now: datetime) -> tuple[str, str] | None:
    """What is done in one transaction."""
    match what:
        case "acknowledge":
            alerts.acknowledge(session, caller, now, alert_id=_needed(said, "id"))
        case "silence":
            _silence(session, said, caller, now)
        case "create-silence":
            alerts.create_silence(_window(said, now), session, caller, now)
        case "replace-silence":
            kept = alerts.silence(session, caller, now, silence_id=_needed(said, "id"))
            body = {name: value for name, value in kept.items() if name in SilenceBody.model_fields}
            body |= {"ends_at": _instant(said, "ends_at")} if said.get("ends_at") else {}
            body |= {"comment": said["comment"]} if "comment" in said else {}
            alerts.replace_silence(parsed(SilenceBody, body, where=""), session, caller, now, silence_id=kept["id"])
        case "end-silence":
            alerts.expire_silence(session, caller, now, silence_id=_needed(said, "id"))
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
        case "set-limit":
            limit: dict[str, object] = {"limit": _whole(said, "limit") if said.get("limit") else None}
            limit |= {"counting": said["counting"]} if said.get("counting") else {}
            quotas.put_quota(session, caller, now, pool_id=_needed(said, "id"), said=parsed(quotas.LimitSaid, limit, where=""))
        case "delete-receiver":
            receivers.delete(session, caller, now, receiver_id=_needed(said, "id"))
        case "rotate-receiver":
            return _secret(receivers.rotate(session, caller, now, receiver_id=_needed(said, "id")))
        case "sign-line":
            workbench.put_worklist(session, caller, now, item_id=_needed(said, "id"), said=workbench.Said(sign=True))
        case "say-of-line":
            words = workbench.Said(owner=said.get("owner", ""), note=said.get("note", ""))
            workbench.put_worklist(session, caller, now, item_id=_needed(said, "id"), said=words)
        case "say-of-invoice":
            try:
                stated = workbench.Stated(currency=said.get("currency", ""), amount=_needed(said, "amount"), tax=said.get("tax") or "0")
            except ValidationError as fault:
                raise InvalidInput("an invoice says an amount and a tax, as 1234.56") from fault
            workbench.put_invoice(session, caller, now, invoice_id=_needed(said, "id"), said=stated)
        case "map-meter":
            meter = {name: said[name] for name in workbench.Mapped.model_fields if said.get(name)}
            workbench.map_meter(session, caller, now, said=parsed(workbench.Mapped, meter, where=""))
        case "unmap-meter":
            workbench.unmap_meter(session, caller, now, mapping_id=_needed(said, "id"))
        case "decide-price":
            workbench.decide(session, caller, now, waiting_id=_needed(said, "id"), decision=_needed(said, "decision"))
        case "test-receiver":
            receivers.test(session, caller, now, receiver_id=_needed(said, "id"))
        case "replay":
            receivers.replay(session, caller, now, receiver_id=_needed(said, "id"), delivery_id=_needed(said, "delivery"))
        case _:
            raise NotFound(f"nothing is called {what[:40]!r} here")
    return None


def _secret(made: Mapping[str, str | None]) -> tuple[str, str] | None:
    secret = made["secret"]
    return None if secret is None else (f"The secret of {made['name']}, shown this once: give it to the receiver, so that it can check what we sign.", secret)


def _receiver(said: Mapping[str, str], kept: Mapping[str, object] = MappingProxyType({}), *, is_enabled: bool | None = None) -> ReceiverBody:
    """The receiver of a form; what the form does not say stays as it is ``kept``, and so does what is secret where nothing is typed."""
    body = {name: value for name, value in kept.items() if name in ReceiverBody.model_fields}
    body |= {name: said[name] for name in ("name", "format", "url", "routing_key", "secret") if said.get(name)}
    if "default" in said:
        body["default"] = said["default"] == "yes"
    for name in ("workspaces", "severities"):
        if name in said:
            body[name] = _listed(said[name])
    if "matchers" in said:
        body["matchers"] = _matchers(said["matchers"])
    if is_enabled is not None:
        body["enabled"] = is_enabled
    return parsed(ReceiverBody, body, where="")


def _listed(value: str) -> list[str]:
    """Names with commas or line ends between them."""
    return [one for part in value.splitlines() for one in (piece.strip() for piece in part.split(",")) if one]


def _matchers(value: str) -> list[dict[str, str]]:
    found = [one.partition("=") for one in _listed(value)]
    if any(not (name.strip() and is_pair and wanted.strip()) for name, is_pair, wanted in found):
        raise InvalidInput("write label=value with commas between, such as deployment=chat", field="matchers")
    return [{"name": name.strip(), "value": wanted.strip()} for name, _, wanted in found]


def _window(said: Mapping[str, str], now: datetime) -> SilenceBody:
    """A silence or maintenance window of a form: from now on where no start is said; with days it comes every week."""
    body: dict[str, object] = {"matchers": _matchers(said.get("matchers", "")), "comment": said.get("comment", "")}
    starts = _instant(said, "starts_at") if said.get("starts_at") else now
    body["starts_at"] = starts
    body["ends_at"] = _instant(said, "ends_at") if said.get("ends_at") else starts + _hours(said)
    if said.get("days"):
        weekly = {"days": _listed(said["days"]), "from": said.get("from", ""), "to": said.get("to", ""), "time_zone": said.get("time_zone") or "UTC"}
        body["weekly"] = parsed(Weekly, weekly, where="").model_dump(by_alias=True)
    return parsed(SilenceBody, body, where="")


def _schedule(session: Session, what: str, said: Mapping[str, str], caller: Principal, *, places: Places, now: datetime) -> None:
    """Make, change or delete the schedule of a form; what the form does not say stays as it is."""
    if what == "delete-schedule":
        schedules.delete(session, caller, now, schedule_id=_needed(said, "id"))
        return
    body: dict[str, object] = {}
    if what == "replace-schedule":
        kept = kept_schedules.shown(schedules.found(session, _needed(said, "id"), caller))
        body = {name: value for name, value in kept.items() if name in ScheduleBody.model_fields}
    body |= {name: said[name] for name in ("name", "report", "time_zone", "folder", "container") if name in said}
    # Names may have commas in them: each stands on a line.
    body |= {name: [one for one in said[name].splitlines() if one] for name in ("workspaces", "teams", "receivers") if name in said}
    if "attach" in said:
        body["attach"] = _listed(said["attach"])
    if "hours_after" in said:
        body["hours_after"] = _whole(said, "hours_after")
    if "enabled" in said:
        body["enabled"] = said["enabled"] == "yes"
    made = parsed(ScheduleBody, body, where="")
    if what == "create-schedule":
        schedules.make(session, made, caller, places=places, now=now)
    else:
        schedules.alter(session, made, caller, schedule_id=said["id"], places=places, now=now)


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
        raise InvalidInput("it is missing", field=name)
    return found


def _silence(session: Session, said: Mapping[str, str], caller: Principal, now: datetime) -> None:
    """Silence exactly what this alert is: its rule and the place it speaks of."""
    alert = session.get(Alert, _needed(said, "id"))
    if alert is None:
        raise NotFound(f"there is no alert {said['id'][:80]!r}")
    lasts = _hours(said)
    about = {"rule_id": alert.rule_id} if alert.rule_id else {"alert_id": alert.id}
    about |= {name: value for name, value in alert.scope.items() if isinstance(value, str) and value and (name in MATCHER_NAMES or name.startswith("tag:"))}
    matchers = [{"name": name, "value": value} for name, value in about.items()]
    body = parsed(
        SilenceBody,
        {"matchers": matchers, "starts_at": now.isoformat(), "ends_at": (now + lasts).isoformat(), "comment": "from the dashboard"},
        where="silence",
    )
    alerts.create_silence(body, session, caller, now)


_MINUTE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", re.ASCII)


def _instant(said: Mapping[str, str], name: str) -> datetime:
    """A time of a form: RFC 3339, or as people write it, in UTC."""
    text = said[name]
    try:
        return parse_instant(f"{text}:00Z" if _MINUTE.fullmatch(text) else text, what="it")
    except InvalidInput as fault:
        raise InvalidInput(f"a time such as 2026-11-20 22:00 (UTC) or 2026-11-20T22:00:00+01:00 is needed, not {text[:40]!r}", field=name) from fault


def _hours(said: Mapping[str, str]) -> timedelta:
    hours = said.get("hours", "")
    if not (hours.isascii() and hours.isdigit() and len(hours) < 4 and 1 <= int(hours) <= _LONGEST_SILENCE_HOURS):
        raise InvalidInput(f"hours must be a whole number from 1 to {_LONGEST_SILENCE_HOURS}", field="hours")
    return timedelta(hours=int(hours))


def _scope(said: Mapping[str, str], kept: Mapping[str, object]) -> dict[str, object]:
    """The scope of a form: names with commas between them, tags as key=value; an empty field is all, what the form does not have stays."""
    scope = dict(kept)
    for name in ("workspace", "deployment", "model", "application", "team"):
        before = scope.get(name)
        # As the form showed it: a name may have a comma of its own.
        if name in said and said[name] != (", ".join(before) if isinstance(before, list) else before or ""):
            scope.pop(name, None)
            if found := _listed(said[name]):
                scope[name] = found[0] if len(found) == 1 else found
    if "tags" in said:
        scope = {name: value for name, value in scope.items() if not name.startswith("tag:")}
        tags: dict[str, list[str]] = {}
        for one in _listed(said["tags"]):
            key, is_pair, value = (part.strip() for part in one.partition("="))
            if not (key and is_pair and value):
                raise InvalidInput("write key=value with commas between, such as env=prod", field="tags")
            tags.setdefault(f"tag:{key}", []).append(value)
        scope |= {name: values[0] if len(values) == 1 else values for name, values in tags.items()}
    return scope


def _kept_scope(kept: Mapping[str, object]) -> Mapping[str, object]:
    scope = kept.get("scope")
    return scope if isinstance(scope, Mapping) else {}


def _number(said: Mapping[str, str], name: str) -> Decimal | None:
    text = said.get(name, "")
    if not text:
        return None
    try:
        return Decimal(text)
    except InvalidOperation as fault:
        raise InvalidInput(f"a number such as 80 or 0.5 is needed, not {text[:40]!r}", field=name) from fault


def _whole(said: Mapping[str, str], name: str) -> int:
    text = said.get(name, "") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidInput(f"a whole number is needed, not {text[:40]!r}", field=name)
    return int(text)


def _percents(said: Mapping[str, str], name: str) -> list[int]:
    parts = [part.strip() for part in said.get(name, "").split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise InvalidInput("whole percentages with commas between them are needed, such as 50, 80, 100", field=name)
    return [int(part) for part in parts]


def _rule(said: Mapping[str, str], kept: Mapping[str, object] = MappingProxyType({})) -> RuleBody:
    """The rule of a form; what the form does not say stays as it is ``kept``."""
    body = {name: value for name, value in kept.items() if name in RuleBody.model_fields}
    body |= {name: said[name] for name in ("name", "kind", "severity", "no_data") if said.get(name)}
    if "threshold" in said or "threshold_percent" in said:
        body |= {"threshold": _number(said, "threshold"), "threshold_percent": _number(said, "threshold_percent")}
    if "clear_threshold" in said:
        body["clear_threshold"] = _number(said, "clear_threshold")
    body |= {name: _whole(said, name) for name in ("for_seconds", "keep_firing_for_seconds") if name in said}
    if said.get("window_seconds"):
        body["window_seconds"] = _whole(said, "window_seconds")
    body |= _told(said)
    if "enabled" in said:
        body["enabled"] = said["enabled"] == "yes"
    body["scope"] = _scope(said, _kept_scope(kept))
    return parsed(RuleBody, body, where="")


def _told(said: Mapping[str, str]) -> dict[str, object]:
    """Who is told and what they read, as forms of rules and budgets both say it."""
    found: dict[str, object] = {"receivers": _listed(said["receivers"])} if "receivers" in said else {}
    if "runbook_url" in said:
        found["runbook_url"] = said["runbook_url"]
    return found


def _budget(said: Mapping[str, str], kept: Mapping[str, object] = MappingProxyType({})) -> BudgetBody:
    """The budget of a form; what the form does not say stays as it is ``kept``."""
    body = {name: value for name, value in kept.items() if name in BudgetBody.model_fields}
    body |= {name: said[name] for name in ("name", "amount", "period") if said.get(name)}
    if said.get("currency"):
        body["currency"] = said["currency"].upper()
    if "hard" in said:
        body["hard"] = said["hard"] == "yes"
    body |= {name: said[name] for name in ("time_zone", "basis", "week_starts_on", "severity") if said.get(name)}
    body |= {name: _percents(said, name) for name in ("steps", "forecast_steps") if name in said}
    body |= _told(said)
    body["scope"] = _scope(said, _kept_scope(kept))
    return parsed(BudgetBody, body, where="")
