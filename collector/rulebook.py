"""Rules, budgets and silences as people keep them: checked, written with an audit trail, shown as JSON.

The API and ``meterbridge apply`` both write through here. An edit that changes what is judged raises the row's revision, so
that the watch judges it anew; deleting keeps the row, because its alerts point at it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from sqlmodel import Session, col, select

from models import money
from models.alerts import COUNTDOWN_KINDS, LIMITED_KINDS, RATE_KINDS, RULE_KINDS, Alert, AlertRule, AuditEntry, Budget, Kind, NoData, Severity, Silence
from models.columns import EPOCH
from models.errors import InvalidInput, NotFound
from models.ledger.alerts import explain_query
from models.ledger.budgets import scope_filters
from models.money import currency_from, decimal_from
from models.notices import Receiver
from models.periods import parse_instant, rfc3339, zone_from

_Row = TypeVar("_Row", AlertRule, Budget, Silence)
_Body = TypeVar("_Body", bound=BaseModel)

DEFAULT_MAX_ALERTS = 100
_LONGEST_FOR = 86_400
_FAR = datetime(2200, 1, 1, tzinfo=EPOCH.tzinfo)
# What a silence may name; a scope's tags too.
MATCHER_NAMES = frozenset(
    {"alert_id", "rule", "rule_id", "kind", "severity", "step", "workspace", "deployment", "model", "application", "team", "mode"}
    | {"endpoint", "source", "subscription", "region", "family", "cost_center", "receiver", "schedule"}
)


# -- bodies ---------------------------------------------------------------------------------------


def _number(value: object) -> Decimal:
    """A threshold: a JSON number or a decimal string."""
    if isinstance(value, Decimal):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number is needed")  # noqa: TRY004 - what pydantic takes for a fault
    try:
        found = decimal_from(str(value), what="it")
    except InvalidInput as fault:
        raise ValueError(fault.message) from fault
    if found < 0:
        raise ValueError("it must not be negative")
    return found


def _amount(value: object) -> Decimal:
    """Money: a decimal string, or a whole number."""
    if isinstance(value, Decimal):
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('money is a decimal string such as "100.00"')  # noqa: TRY004
    try:
        found = decimal_from(str(value), what="it")
    except InvalidInput as fault:
        raise ValueError(fault.message) from fault
    if found <= 0:
        raise ValueError("it must be more than zero")
    return found


def _instant(value: object) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None:  # YAML has instants of its own
        found = value
    elif isinstance(value, str):
        try:
            found = parse_instant(value, what="it")
        except InvalidInput as fault:
            raise ValueError(fault.message) from fault
    else:
        raise ValueError("an RFC 3339 time with an offset is needed, such as 2026-11-20T10:00:00Z")
    if not EPOCH <= found < _FAR:
        raise ValueError("it must lie between 1970 and 2200")
    return found


def _scope(value: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
    for name, said in value.items():
        every = [said] if isinstance(said, str) else said
        if not every or any(not one or len(one) > 256 or "\0" in one for one in every) or len(every) > 200:
            raise ValueError(f"{name} must be one to 200 names of 1 to 256 characters")
    try:
        scope_filters(value)
    except InvalidInput as fault:
        raise ValueError(fault.message) from fault
    return value


def _printable(value: str) -> str:
    if not value.strip() or any(ord(sign) < 32 or 0xD800 <= ord(sign) < 0xE000 for sign in value):
        raise ValueError("a name of printable characters is needed")
    return value


def _steps(value: list[int]) -> list[int]:
    if len(value) > 20 or any(not 1 <= step <= 1000 for step in value) or len(set(value)) != len(value):
        raise ValueError("steps are up to 20 different whole percents from 1 to 1000")
    return sorted(value)


def _ids(value: list[str]) -> list[str]:
    if len(value) > 50 or any(not one or len(one) > 256 or "\0" in one for one in value):
        raise ValueError("receivers are up to 50 ids of /v1/webhooks")
    return list(dict.fromkeys(value))


def _url(value: str) -> str:
    if value and (not value.startswith(("https://", "http://")) or any(ord(sign) <= 32 for sign in value)):
        raise ValueError("an http or https URL is needed")
    return value


def _currency(value: str) -> str:
    try:
        return currency_from(value, what="it")
    except InvalidInput as fault:
        raise ValueError(fault.message) from fault


def _zone(value: str) -> str:
    try:
        zone_from(value)
    except InvalidInput as fault:
        raise ValueError(fault.message) from fault
    return value


Number = Annotated[Decimal, BeforeValidator(_number)]
Amount = Annotated[Decimal, BeforeValidator(_amount)]
When = Annotated[datetime, BeforeValidator(_instant)]
Scope = Annotated[dict[str, str | list[str]], AfterValidator(_scope)]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
Percents = Annotated[list[Annotated[int, Field(strict=True)]], AfterValidator(_steps)]
Receivers = Annotated[list[str], AfterValidator(_ids)]
Url = Annotated[str, Field(max_length=2000), AfterValidator(_url)]
Seconds = Annotated[int, Field(strict=True, ge=0, le=_LONGEST_FOR)]
Text = Annotated[str, Field(max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RuleBody(_Strict):
    """``POST /v1/alert-rules``: one of ``threshold`` and ``threshold_percent`` (of the limit) is needed, but for a heartbeat."""

    name: Name
    kind: Kind
    scope: Scope = Field(default_factory=dict)
    threshold: Number | None = None
    threshold_percent: Number | None = None
    clear_threshold: Number | None = None
    window_seconds: Literal[60, 300] = 60
    for_seconds: Seconds = 0
    keep_firing_for_seconds: Seconds = 0
    severity: Severity = Severity.WARNING
    no_data: NoData = NoData.OK
    receivers: Receivers = Field(default_factory=list)
    max_alerts: Annotated[int, Field(strict=True, ge=1, le=10_000)] = DEFAULT_MAX_ALERTS
    runbook_url: Url = ""
    enabled: bool = True

    @model_validator(mode="after")
    def _agree(self) -> RuleBody:
        if self.kind not in RULE_KINDS:
            raise ValueError(f"kind {self.kind.value} is made by budgets or other systems; a rule takes {', '.join(sorted(kind.value for kind in RULE_KINDS))}")
        if self.kind is Kind.HEARTBEAT:
            return self
        if (self.threshold is None) == (self.threshold_percent is None):
            raise ValueError("give either threshold or threshold_percent")
        if self.threshold_percent is not None and self.kind not in LIMITED_KINDS:
            raise ValueError(f"{self.kind.value} has no limit to take a threshold_percent of; give threshold")
        edge = self.threshold if self.threshold is not None else self.threshold_percent
        assert edge is not None  # one of them is
        if self.clear_threshold is not None and (self.clear_threshold < edge if self.kind in COUNTDOWN_KINDS else self.clear_threshold > edge):
            raise ValueError("clear_threshold must lie on the quiet side of the threshold, in the same unit")
        if self.window_seconds != 60 and self.kind not in RATE_KINDS:
            raise ValueError("only rates have a window_seconds")
        return self


class BudgetBody(_Strict):
    """``POST /v1/budgets``."""

    name: Name
    scope: Scope = Field(default_factory=dict)
    amount: Amount
    currency: Annotated[str, AfterValidator(_currency)]
    period: Literal["day", "week", "month", "quarter", "year"]
    time_zone: Annotated[str, Field(max_length=100), AfterValidator(_zone)] = "UTC"
    week_starts_on: Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"] = "monday"
    basis: Literal["metered", "billed", "best"] = "best"
    steps: Percents = Field(default_factory=lambda: [50, 80, 100])
    forecast_steps: Percents = Field(default_factory=list)
    hard: bool = False
    severity: Severity = Severity.WARNING
    receivers: Receivers = Field(default_factory=list)
    runbook_url: Url = ""


class Matcher(_Strict):
    """A label of an alert and the value it must have."""

    name: Annotated[str, Field(max_length=256)]
    value: Annotated[str, Field(max_length=256)]

    @model_validator(mode="after")
    def _known(self) -> Matcher:
        if self.name not in MATCHER_NAMES and not (self.name.startswith("tag:") and len(self.name) > 4):
            raise ValueError(f"no alert has a label {self.name[:60]!r}; a matcher takes {', '.join(sorted(MATCHER_NAMES))} and tag:<key>")
        return self


def _clock(value: object) -> str:
    # YAML 1.1 reads 22:00 as the number 1320, in base sixty.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1440:
        value = f"{value // 60:02}:{value % 60:02}"
    if not isinstance(value, str):
        raise ValueError('a time of day such as "22:00" is needed')  # noqa: TRY004
    try:
        found = time.fromisoformat(value)
    except ValueError as fault:
        raise ValueError('a time of day such as "22:00" is needed') from fault
    if found.tzinfo is not None:
        raise ValueError("the zone is said in time_zone")
    return value


class Weekly(_Strict):
    """A window that comes every week; one that does not end after it starts ends on the next day."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    days: Annotated[list[Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]], Field(min_length=1, max_length=7)]
    starts: Annotated[str, BeforeValidator(_clock)] = Field(alias="from")
    ends: Annotated[str, BeforeValidator(_clock)] = Field(alias="to")
    time_zone: Annotated[str, Field(max_length=100), AfterValidator(_zone)] = "UTC"


class SilenceBody(_Strict):
    """``POST /v1/silences``; with ``weekly`` a maintenance window."""

    matchers: Annotated[list[Matcher], Field(min_length=1, max_length=50)]
    starts_at: When
    ends_at: When
    weekly: Weekly | None = None
    comment: Text = ""

    @model_validator(mode="after")
    def _ordered(self) -> SilenceBody:
        if self.ends_at <= self.starts_at:
            raise ValueError("ends_at must be after starts_at")
        return self


def parsed(body: type[_Body], said: object, *, where: str) -> _Body:
    """A body from plain data (a file, a form); a fault says where it is."""
    try:
        return body.model_validate(said)
    except ValidationError as fault:
        first = fault.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        # What several fields do not agree about is in none of them: it is shown at the one that it names first.
        names = [str(first["loc"][0])] if first["loc"] else sorted((name for name in body.model_fields if name in message), key=message.index)
        place = ".".join([where, *(str(part) for part in first["loc"])])
        raise InvalidInput(f"{place}: {message}" if where else message, error="schema_invalid", field="" if where else next(iter(names), "")) from fault


# -- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes a change, and whether a file does (``origin``)."""

    name: str
    origin: str = ""


def audit(
    session: Session, *, actor: str, action: str, kind: str, object_id: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, now: datetime
) -> None:
    """Add to the audit trail what changed, in the transaction that changes it."""
    session.add(
        AuditEntry(
            at=now,
            actor=actor,
            action=action,
            kind=kind,
            object_id=object_id,
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
        )
    )
    session.flush()


def new_id(prefix: str) -> str:
    """A public id that cannot be guessed from another."""
    return f"{prefix}_{secrets.token_hex(8)}"


def _rule_values(body: RuleBody) -> dict[str, Any]:
    values = body.model_dump(exclude={"enabled"})
    return {**values, "is_enabled": body.enabled}


def _budget_values(body: BudgetBody) -> dict[str, Any]:
    values = body.model_dump(exclude={"hard"})
    return {**values, "is_hard": body.hard}


def _silence_values(body: SilenceBody) -> dict[str, Any]:
    return {
        "matchers": [{"name": matcher.name, "value": matcher.value} for matcher in body.matchers],
        "starts_at": body.starts_at,
        "ends_at": body.ends_at,
        "weekly": None if body.weekly is None else body.weekly.model_dump(by_alias=True),
        "comment": body.comment,
    }


def tried_rule(body: RuleBody, *, now: datetime) -> AlertRule:
    """A rule that is tried and not kept."""
    return AlertRule(id="backtest", created_at=now, updated_at=now, **_rule_values(body))


def tried_budget(body: BudgetBody, *, now: datetime) -> Budget:
    """A budget that is tried and not kept."""
    return Budget(id="backtest", created_at=now, updated_at=now, **_budget_values(body))


def create_rule(session: Session, body: RuleBody, *, by: Author, now: datetime, rule_id: str | None = None) -> AlertRule:
    """A new rule."""
    _refuse_unknown(session, body.receivers)
    row = AlertRule(id=rule_id or new_id("rule"), origin=by.origin, created_at=now, updated_at=now, **_rule_values(body))
    return _created(session, row, "alert-rule", rule_body(row), by=by, now=now)


def create_budget(session: Session, body: BudgetBody, *, by: Author, now: datetime) -> Budget:
    """A new budget."""
    _refuse_unknown(session, body.receivers)
    row = Budget(id=new_id("budget"), origin=by.origin, created_at=now, updated_at=now, **_budget_values(body))
    return _created(session, row, "budget", budget_body(row), by=by, now=now)


def create_silence(session: Session, body: SilenceBody, *, by: Author, now: datetime) -> Silence:
    """A new silence."""
    row = Silence(id=new_id("silence"), author=by.name, origin=by.origin, created_at=now, **_silence_values(body))
    return _created(session, row, "silence", silence_body(row, now=now), by=by, now=now)


def _created(session: Session, row: _Row, kind: str, shown: Mapping[str, Any], *, by: Author, now: datetime) -> _Row:
    session.add(row)
    session.flush()
    audit(session, actor=by.name, action="create", kind=kind, object_id=row.id, before=None, after=shown, now=now)
    return row


def _refuse_unknown(session: Session, ids: Sequence[str], *, kept: Sequence[str] = ()) -> None:
    """Nobody would be told of what names a receiver that does not exist; one that stood there before may have gone since."""
    new = [one for one in ids if one not in kept]
    known = set(session.exec(select(Receiver.id).where(col(Receiver.id).in_(new), col(Receiver.deleted_at).is_(None)))) if new else set()
    missing = [one for one in new if one not in known]
    if missing:
        raise InvalidInput(f"there is no receiver {missing[0][:60]!r}; GET /v1/webhooks lists their ids", field="receivers")


# An edit of these leaves what is judged as it was: a new name or receiver is no new alert.
_UNJUDGED = frozenset({"name", "receivers", "severity", "runbook_url", "max_alerts", "is_hard", "comment"})


def replace_rule(session: Session, row: AlertRule, body: RuleBody, *, by: Author, now: datetime) -> AlertRule:
    """The rule as the body has it; judged anew where that matters."""
    before = rule_body(row)
    _refuse_unknown(session, body.receivers, kept=row.receivers)
    _replace(row, _rule_values(body), now=now)
    return _replaced(session, row, "alert-rule", before, rule_body(row), by=by, now=now)


def replace_budget(session: Session, row: Budget, body: BudgetBody, *, by: Author, now: datetime) -> Budget:
    """The budget as the body has it; its steps are armed again where that matters."""
    before = budget_body(row)
    _refuse_unknown(session, body.receivers, kept=row.receivers)
    _replace(row, _budget_values(body), now=now)
    return _replaced(session, row, "budget", before, budget_body(row), by=by, now=now)


def replace_silence(session: Session, row: Silence, body: SilenceBody, *, by: Author, now: datetime) -> Silence:
    """The silence as the body has it."""
    before = silence_body(row, now=now)
    for name, value in _silence_values(body).items():
        setattr(row, name, value)
    return _replaced(session, row, "silence", before, silence_body(row, now=now), by=by, now=now)


def expire_silence(session: Session, row: Silence, *, by: Author, now: datetime) -> Silence:
    """The silence ended now, and listed as one that is over; one that has not begun never does."""
    if row.ends_at <= now:
        return row
    before = silence_body(row, now=now)
    row.starts_at, row.ends_at = min(row.starts_at, now), now
    return _replaced(session, row, "silence", before, silence_body(row, now=now), by=by, now=now)


def _replace(row: AlertRule | Budget, values: Mapping[str, Any], *, now: datetime) -> None:
    changed = {name for name, value in values.items() if getattr(row, name) != value}
    for name in changed:
        setattr(row, name, values[name])
    if changed - _UNJUDGED:
        row.revision += 1
    if changed:
        row.updated_at = now


def _replaced(session: Session, row: _Row, kind: str, before: Mapping[str, Any], after: Mapping[str, Any], *, by: Author, now: datetime) -> _Row:
    if before != after:
        session.add(row)
        session.flush()
        audit(session, actor=by.name, action="update", kind=kind, object_id=row.id, before=before, after=after, now=now)
    return row


def delete(session: Session, row: AlertRule | Budget | Silence, *, by: Author, now: datetime) -> None:
    """End a rule, budget or silence; its row and its alerts stay."""
    match row:
        case AlertRule():
            kind, before = "alert-rule", rule_body(row)
        case Budget():
            kind, before = "budget", budget_body(row)
        case Silence():
            kind, before = "silence", silence_body(row, now=now)
    row.deleted_at = now
    session.add(row)
    session.flush()
    audit(session, actor=by.name, action="delete", kind=kind, object_id=row.id, before=before, after=None, now=now)


def standing(session: Session, table: type[_Row]) -> list[_Row]:
    """Every rule, budget or silence that was not deleted, oldest first."""
    return list(session.exec(select(table).where(col(table.deleted_at).is_(None)).order_by(col(table.created_at), col(table.id))))


def found(session: Session, table: type[_Row], object_id: str, *, visible: frozenset[str] | None) -> _Row:
    """One of them that the caller may see."""
    row = session.get(table, object_id) if "\0" not in object_id else None
    if row is None or row.deleted_at is not None or not may_see(row, visible):
        raise NotFound(f"there is no {table.__tablename__.replace('_', ' ')} {object_id[:80]!r}")
    return row


def may_see(row: AlertRule | Budget | Silence | Alert, visible: frozenset[str] | None) -> bool:
    """Whether a caller who is limited to workspaces may see it: it must be about those and no other."""
    if visible is None:
        return True
    if isinstance(row, Silence):
        return is_about({"workspace": [one["value"] for one in row.matchers if one["name"] == "workspace"]}, visible)
    return is_about(row.scope, visible)


def is_about(scope: object, visible: frozenset[str]) -> bool:
    """Whether a scope is about these workspaces and no other."""
    workspace = scope.get("workspace") if isinstance(scope, dict) else None
    said = [workspace] if isinstance(workspace, str) else workspace or []
    return bool(said) and visible.issuperset(said)


# -- shown ----------------------------------------------------------------------------------------


def _text(value: Decimal | None) -> str | None:
    return None if value is None else money.text(value)


def number(value: Decimal | None) -> int | str | None:
    """A threshold or sample as JSON: a whole number, else decimal text; never a float."""
    if value is None:
        return None
    return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else money.text(value)


def _when(value: datetime | None) -> str | None:
    return None if value is None else rfc3339(value)


def rule_body(row: AlertRule) -> dict[str, Any]:
    """A rule as JSON; what was posted comes back under the same names."""
    return {
        "id": row.id,
        "name": row.name,
        "kind": row.kind.value,
        "scope": row.scope,
        "threshold": number(row.threshold),
        "threshold_percent": number(row.threshold_percent),
        "clear_threshold": number(row.clear_threshold),
        "window_seconds": row.window_seconds,
        "for_seconds": row.for_seconds,
        "keep_firing_for_seconds": row.keep_firing_for_seconds,
        "severity": row.severity.value,
        "no_data": row.no_data.value,
        "receivers": row.receivers,
        "max_alerts": row.max_alerts,
        "runbook_url": row.runbook_url,
        "enabled": row.is_enabled,
        "origin": row.origin,
        "revision": row.revision,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def budget_body(row: Budget) -> dict[str, Any]:
    """A budget as JSON, without what is spent."""
    return {
        "id": row.id,
        "name": row.name,
        "scope": row.scope,
        "amount": amount_text(row.amount, row.currency),
        "currency": row.currency,
        "period": row.period,
        "time_zone": row.time_zone,
        "week_starts_on": row.week_starts_on,
        "basis": row.basis,
        "steps": row.steps,
        "forecast_steps": row.forecast_steps,
        "hard": row.is_hard,
        "severity": row.severity.value,
        "receivers": row.receivers,
        "runbook_url": row.runbook_url,
        "origin": row.origin,
        "revision": row.revision,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def amount_text(amount: Decimal, currency: str) -> str:
    """The amount with all the digits it has, and as many as people use of that currency."""
    shown = money.shown(amount, currency)
    return format(shown, "f") if shown == amount else money.text(amount)


def silence_body(row: Silence, *, now: datetime) -> dict[str, Any]:
    """A silence as JSON with whether its time is to come, now or over."""
    state = "expired" if row.ends_at <= now or row.deleted_at is not None else "active" if row.starts_at <= now else "pending"
    return {
        "id": row.id,
        "matchers": row.matchers,
        "starts_at": rfc3339(row.starts_at),
        "ends_at": rfc3339(row.ends_at),
        "weekly": row.weekly,
        "comment": row.comment,
        "author": row.author,
        "origin": row.origin,
        "state": state,
        "created_at": rfc3339(row.created_at),
    }


def alert_body(alert: Alert, *, silenced: bool) -> dict[str, Any]:
    """An alert as JSON: for the API, and for notices."""
    return {
        "id": alert.id,
        "rule_id": alert.rule_id,
        "rule": alert.rule,
        "kind": alert.kind.value,
        "state": alert.state.value,
        "severity": alert.severity.value,
        "scope": alert.scope,
        "value": _text(alert.value) if alert.kind in _OF_MONEY else number(alert.value),
        "threshold": _text(alert.threshold) if alert.kind in _OF_MONEY else number(alert.threshold),
        "step": alert.step,
        "why": alert.why,
        "sample": alert.sample,
        "silenced": silenced,
        "pending_at": rfc3339(alert.pending_at),
        "fired_at": _when(alert.fired_at),
        "resolved_at": _when(alert.resolved_at),
        "told_at": _when(alert.told_at),
        "acknowledged_at": _when(alert.acknowledged_at),
        "acknowledged_by": alert.acknowledged_by or None,
        "group_id": alert.group_id,
        "expires_at": _when(alert.expires_at),
        "runbook_url": alert.runbook_url or None,
        "explain_url": explain_url(alert),
    }


def explain_url(alert: Alert) -> str:
    """The question to ``/v1/explain`` whose answer is the figure behind the alert."""
    query = explain_query(alert)
    return f"/v1/explain?{query}" if query else "/v1/explain"


_OF_MONEY = frozenset({Kind.BUDGET, Kind.BUDGET_FORECAST, Kind.IDLE_DEPLOYMENT, Kind.UNMETERED_USAGE, Kind.EXTERNAL})
