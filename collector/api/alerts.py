"""Rules, budgets, silences and alerts: parse, ask the rulebook or the watch, shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from collector import external, rulebook
from collector.api.deps import Caller, Now, Reading, Writing
from collector.api.reads import amount, refuse_unknown, whole_number
from collector.auth import Principal
from collector.rulebook import Author, BudgetBody, RuleBody, SilenceBody, When
from collector.watch import Known, backtest, backtest_budget
from collector.watch.judge import lock_alerts, read_quiets
from models import money
from models.alerts import Alert, AlertRule, AlertState, AuditEntry, Budget, Kind, Severity, Silence
from models.errors import Conflict, Forbidden, InvalidInput, NotFound
from models.ledger import budgets
from models.periods import Period, rfc3339
from models.silences import Quiet, labels_of, silenced_by
from models.trials import Trial

router = APIRouter(tags=["alerts"])
_MOST_ITEMS = 1000


def _author(caller: Principal) -> Author:
    return Author(caller.name if caller.key_id is None else f"{caller.name} ({caller.key_id})")


def _page(items: list[dict[str, Any]], next_cursor: str | None = None) -> dict[str, Any]:
    return {"items": items, "next_cursor": next_cursor}


# -- rules ----------------------------------------------------------------------------------------


@router.get("/v1/alert-rules", summary="The rules")
def rules(request: Request, session: Reading, caller: Caller) -> dict[str, Any]:
    """Every rule that the caller may see, oldest first."""
    refuse_unknown(request, ())
    return _page([rulebook.rule_body(row) for row in rulebook.standing(session, AlertRule) if rulebook.may_see(row, caller.visible)])


@router.post("/v1/alert-rules", status_code=201, summary="Make a rule")
def create_rule(body: RuleBody, session: Writing, caller: Caller, now: Now) -> dict[str, Any]:
    """The rule with its id; it is judged from what is stored within seconds."""
    return rulebook.rule_body(rulebook.create_rule(session, body, by=_author(caller), now=now))


class BacktestBody(BaseModel):
    """``{"rule", "from", "to"}``."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    rule: RuleBody
    start: When = Field(alias="from")
    end: When = Field(alias="to")


@router.post("/v1/alert-rules/backtest", summary="When a rule would have fired")
def test_rule(body: BacktestBody, session: Reading, now: Now) -> dict[str, Any]:
    """The firings over stored history, and the lines they are on; nobody is told and nothing is kept."""
    return _tried(backtest(session, rulebook.tried_rule(body.rule, now=now), _span(body.start, body.end), now=now), rulebook.number)


def _span(start: datetime, end: datetime) -> Period:
    if end <= start:
        raise InvalidInput("it must be after from", field="to")
    return Period(start, end)


def _tried(trial: Trial, value: Callable[[Decimal | None], int | str | None]) -> dict[str, Any]:
    return {
        "firings": [
            {
                "scope": one.scope,
                "fired_at": rfc3339(one.fired_at),
                "resolved_at": None if one.resolved_at is None else rfc3339(one.resolved_at),
                "peak": value(one.peak),
                "why": one.why,
                **({} if one.step is None else {"step": one.step}),
            }
            for one in trial.firings
        ],
        "from": rfc3339(trial.period.start),
        "to": rfc3339(trial.period.end),
        "unit": trial.unit,
        "lines": [
            {"scope": one.scope, "threshold": value(one.threshold), "points": [[rfc3339(at), value(height)] for at, height in one.points]}
            for one in trial.lines
        ],
        "notes": list(trial.notes),
    }


@router.get("/v1/alert-rules/{rule_id}", summary="One rule")
def rule(session: Reading, caller: Caller, *, rule_id: str) -> dict[str, Any]:
    """The rule."""
    return rulebook.rule_body(rulebook.found(session, AlertRule, rule_id, visible=caller.visible))


@router.put("/v1/alert-rules/{rule_id}", summary="Replace a rule")
def replace_rule(body: RuleBody, session: Writing, caller: Caller, now: Now, *, rule_id: str) -> dict[str, Any]:
    """The rule as it is now; what it judges differently is judged anew."""
    row = rulebook.found(session, AlertRule, rule_id, visible=caller.visible)
    return rulebook.rule_body(rulebook.replace_rule(session, row, body, by=_author(caller), now=now))


@router.delete("/v1/alert-rules/{rule_id}", status_code=204, summary="Delete a rule")
def delete_rule(session: Writing, caller: Caller, now: Now, *, rule_id: str) -> Response:
    """Its open alerts end."""
    rulebook.delete(session, rulebook.found(session, AlertRule, rule_id, visible=caller.visible), by=_author(caller), now=now)
    return Response(status_code=204)


# -- budgets --------------------------------------------------------------------------------------


@router.get("/v1/budgets", summary="The budgets, with what is spent in the running period")
def every_budget(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Every budget that the caller may see, oldest first."""
    refuse_unknown(request, ())
    return _page([_budget(session, row, now) for row in rulebook.standing(session, Budget) if rulebook.may_see(row, caller.visible)])


@router.post("/v1/budgets", status_code=201, summary="Make a budget")
def create_budget(body: BudgetBody, session: Writing, caller: Caller, now: Now) -> dict[str, Any]:
    """The budget with its id."""
    return _budget(session, rulebook.create_budget(session, body, by=_author(caller), now=now), now)


class BudgetBacktestBody(BaseModel):
    """``{"budget", "from", "to"}``; ``known`` "today" also counts what arrived after its time, as of an imported history."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    budget: BudgetBody
    known: Known = "then"
    start: When = Field(alias="from")
    end: When = Field(alias="to")


@router.post("/v1/budgets/backtest", summary="Which steps a budget would have crossed, and when")
def test_budget(body: BudgetBacktestBody, session: Reading, now: Now) -> dict[str, Any]:
    """The steps over stored history, and the spend they are on; nobody is told and nothing is kept."""
    return _tried(backtest_budget(session, rulebook.tried_budget(body.budget, now=now), _span(body.start, body.end), now=now, known=body.known), _money)


@router.get("/v1/budgets/{budget_id}", summary="One budget, with where its period is likely to end")
def one_budget(session: Reading, caller: Caller, now: Now, *, budget_id: str) -> dict[str, Any]:
    """What is spent, and the forecast of the period's end with its band and its accuracy so far."""
    row = rulebook.found(session, Budget, budget_id, visible=caller.visible)
    body = _budget(session, row, now)
    basis: Any = row.basis
    seen = budgets.outlook(
        session,
        filters=budgets.scope_filters(row.scope),
        period=budgets.period_of(row, now),
        basis=basis,
        currency=row.currency,
        now=now,
        time_zone=row.time_zone,
    )
    amounts = {name: _money(getattr(seen, name)) for name in ("expected", "low", "high", "error_percent")}
    return body | {"forecast": {**amounts, "complete_days": seen.complete_days, "trials": seen.trials, "reason": seen.reason}}


@router.put("/v1/budgets/{budget_id}", summary="Replace a budget; its steps are armed again")
def replace_budget(body: BudgetBody, session: Writing, caller: Caller, now: Now, *, budget_id: str) -> dict[str, Any]:
    """The budget as it is now."""
    row = rulebook.found(session, Budget, budget_id, visible=caller.visible)
    return _budget(session, rulebook.replace_budget(session, row, body, by=_author(caller), now=now), now)


@router.delete("/v1/budgets/{budget_id}", status_code=204, summary="Delete a budget")
def delete_budget(session: Writing, caller: Caller, now: Now, *, budget_id: str) -> Response:
    """Its open alerts end."""
    rulebook.delete(session, rulebook.found(session, Budget, budget_id, visible=caller.visible), by=_author(caller), now=now)
    return Response(status_code=204)


def _budget(session: Session, row: Budget, now: datetime) -> dict[str, Any]:
    said = budgets.spend_of(session, row, now=now)
    used = money.ratio(money.times(said.amount, 100), row.amount) or Decimal(0)
    return rulebook.budget_body(row) | {
        "period_start": rfc3339(said.period.start),
        "period_end": rfc3339(said.period.end),
        "spent": money.text(said.amount),
        "used_percent": money.text(used.quantize(Decimal("0.1"))),
        "remaining": money.text(money.minus(row.amount, said.amount)),
        "status": said.status,
        "unpriced_tokens": said.unpriced_tokens,
        "unknown_token_requests": said.unknown_token_requests,
        "unknown_token_share": amount(said.unknown_token_share),
        "estimated_token_share": amount(said.estimated_token_share),
        "reasons": dict(said.reasons),
    }


def _money(value: Decimal | None) -> str | None:
    return None if value is None else money.text(value)


# -- silences -------------------------------------------------------------------------------------


@router.get("/v1/silences", summary="The silences and maintenance windows")
def silences(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Every silence that the caller may see, oldest first; those that are over too."""
    refuse_unknown(request, ())
    return _page([rulebook.silence_body(row, now=now) for row in rulebook.standing(session, Silence) if rulebook.may_see(row, caller.visible)])


@router.post("/v1/silences", status_code=201, summary="Silence alerts for a while")
def create_silence(body: SilenceBody, session: Writing, caller: Caller, now: Now) -> dict[str, Any]:
    """The silence with its id; what still fires when it ends is told then."""
    return rulebook.silence_body(rulebook.create_silence(session, body, by=_author(caller), now=now), now=now)


@router.get("/v1/silences/{silence_id}", summary="One silence")
def silence(session: Reading, caller: Caller, now: Now, *, silence_id: str) -> dict[str, Any]:
    """The silence."""
    return rulebook.silence_body(rulebook.found(session, Silence, silence_id, visible=caller.visible), now=now)


@router.put("/v1/silences/{silence_id}", summary="Replace a silence")
def replace_silence(body: SilenceBody, session: Writing, caller: Caller, now: Now, *, silence_id: str) -> dict[str, Any]:
    """The silence as it is now."""
    row = rulebook.found(session, Silence, silence_id, visible=caller.visible)
    return rulebook.silence_body(rulebook.replace_silence(session, row, body, by=_author(caller), now=now), now=now)


@router.post("/v1/silences/{silence_id}/expire", summary="End a silence now; it stays listed")
def expire_silence(session: Writing, caller: Caller, now: Now, *, silence_id: str) -> dict[str, Any]:
    """The silence as it ended; what still fires is told. One that is over already stays as it was."""
    row = rulebook.found(session, Silence, silence_id, visible=caller.visible)
    return rulebook.silence_body(rulebook.expire_silence(session, row, by=_author(caller), now=now), now=now)


@router.delete("/v1/silences/{silence_id}", status_code=204, summary="End a silence and list it no more")
def delete_silence(session: Writing, caller: Caller, now: Now, *, silence_id: str) -> Response:
    """What still fires is told."""
    rulebook.delete(session, rulebook.found(session, Silence, silence_id, visible=caller.visible), by=_author(caller), now=now)
    return Response(status_code=204)


# -- alerts ---------------------------------------------------------------------------------------

_ALERT_FILTERS = ("state", "kind", "severity", "rule_id", "limit", "cursor")


@router.get("/v1/alerts", summary="The alerts, newest first, with why they fired")
def alerts(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """A page of alerts; ``next_cursor`` asks for the next."""
    refuse_unknown(request, _ALERT_FILTERS)
    said = request.query_params
    size = whole_number(request, "limit", default=200, low=1, high=_MOST_ITEMS)
    query = select(Alert).order_by(col(Alert.seq).desc())
    for name, column, kind in (("state", Alert.state, AlertState), ("kind", Alert.kind, Kind), ("severity", Alert.severity, Severity)):
        wanted = said.getlist(name)
        if wanted:
            query = query.where(col(column).in_([_member(kind, one, name) for one in wanted]))
    if said.get("rule_id"):
        query = query.where(Alert.rule_id == said["rule_id"])
    if said.get("cursor"):
        query = query.where(col(Alert.seq) < _cursor(said["cursor"]))
    found: list[Alert] = []
    # A caller who sees a part of the alerts only gets full pages of that part.
    for row in session.exec(query.execution_options(yield_per=500)):
        if rulebook.may_see(row, caller.visible):
            found.append(row)
            if len(found) > size:
                break
    page = found[:size]
    quiets = read_quiets(session)
    items = [_shown(one, quiets, now) for one in page]
    return _page(items, str(page[-1].seq) if len(found) > size else None)


def _member(kind: type[AlertState | Kind | Severity], said: str, name: str) -> AlertState | Kind | Severity:
    try:
        return kind(said)
    except ValueError as fault:
        raise InvalidInput(f"{name} must be one of {', '.join(one.value for one in kind)}, not {said[:40]!r}") from fault


def _cursor(said: str) -> int:
    if not (said.isascii() and said.isdigit() and len(said) < 19):
        raise InvalidInput("cursor is not one that an answer to this question gave; ask again without it")
    return int(said)


async def _raw(request: Request) -> bytes:
    return await request.body()


@router.post("/v1/alerts/litellm", summary="A LiteLLM budget webhook, as an external alert")
def from_litellm(body: Annotated[bytes, Depends(_raw)], request: Request, session: Writing, caller: Caller, now: Now) -> dict[str, Any]:
    """What became of it; always 200 once it is stored, as LiteLLM expects."""
    if not (caller.may("ingest") or caller.may("admin")):
        raise Forbidden(f"this key has the scope {caller.scope}; a gateway's webhook needs ingest")
    try:
        said = json.loads(body, parse_float=Decimal, parse_constant=str)
    except (ValueError, RecursionError) as fault:
        raise InvalidInput("the body is not JSON", error="malformed") from fault
    lock_alerts(session, is_sqlite=request.app.state.store.is_sqlite)
    return external.accept_litellm(session, said, now=now)


@router.get("/v1/alerts/{alert_id}", summary="One alert")
def alert(session: Reading, caller: Caller, now: Now, *, alert_id: str) -> dict[str, Any]:
    """The alert with its sample."""
    row = _alert(session, alert_id, caller)
    return _shown(row, read_quiets(session), now)


@router.post("/v1/alerts/{alert_id}/acknowledge", summary="Say that somebody is looking at it")
def acknowledge(session: Writing, caller: Caller, now: Now, *, alert_id: str) -> dict[str, Any]:
    """The alert; the first acknowledgement stands."""
    row = _alert(session, alert_id, caller)
    if row.state is AlertState.RESOLVED and row.acknowledged_at is None:
        raise Conflict("the alert is resolved; there is nothing left to look at")
    if row.acknowledged_at is None:
        row.acknowledged_at, row.acknowledged_by = now, _author(caller).name
        session.add(row)
        session.flush()
        after = {"acknowledged_at": rfc3339(now)}
        rulebook.audit(session, actor=row.acknowledged_by, action="acknowledge", kind="alert", object_id=row.id, before=None, after=after, now=now)
    return _shown(row, read_quiets(session), now)


def _shown(row: Alert, quiets: Sequence[Quiet], now: datetime) -> dict[str, Any]:
    """An alert with which silence covers it now, if it is open and one does."""
    quiet = silenced_by(quiets, labels_of(row), now) if row.open_key is not None else None
    return rulebook.alert_body(row, silenced=quiet is not None) | {"silenced_by": None if quiet is None else quiet.id}


def _alert(session: Session, alert_id: str, caller: Principal) -> Alert:
    row = session.get(Alert, alert_id) if "\0" not in alert_id else None
    if row is None or not rulebook.may_see(row, caller.visible):
        raise NotFound(f"there is no alert {alert_id[:80]!r}")
    return row


# -- the audit trail ------------------------------------------------------------------------------


@router.get("/v1/audit-trail", summary="Who changed which rule, budget, silence, receiver or mapping, who closed a month, and who decided a price")
def audit_trail(request: Request, session: Reading, caller: Caller) -> dict[str, Any]:
    """Changes, newest first; a key limited to workspaces sees those of what it may see."""
    refuse_unknown(request, ("kind", "object_id", "limit", "cursor"))
    size = whole_number(request, "limit", default=200, low=1, high=_MOST_ITEMS)
    query = select(AuditEntry).order_by(col(AuditEntry.id).desc())
    said = request.query_params
    if said.get("kind"):
        query = query.where(AuditEntry.kind == said["kind"])
    if said.get("object_id"):
        query = query.where(AuditEntry.object_id == said["object_id"])
    if said.get("cursor"):
        query = query.where(col(AuditEntry.id) < _cursor(said["cursor"]))
    rows: list[AuditEntry] = []
    for row in session.exec(query.execution_options(yield_per=500)):
        if caller.visible is None or rulebook.is_about((row.after or row.before or {}).get("scope"), caller.visible):
            rows.append(row)
            if len(rows) > size:
                break
    return _page([_entry(row) for row in rows[:size]], str(rows[size - 1].id) if len(rows) > size else None)


def _entry(row: AuditEntry) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "at": rfc3339(row.at),
        "actor": row.actor,
        "action": row.action,
        "kind": row.kind,
        "object_id": row.object_id,
        "before": row.before,
        "after": row.after,
    }
