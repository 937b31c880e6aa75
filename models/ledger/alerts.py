"""What people look at of alerts: those of now and of late, budgets against their amounts, rules, receivers and what they were told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models.alerts import Alert, AlertRule, AlertState, AuditEntry, Budget, Silence
from models.ledger.budgets import SCOPE_NAMES, Outlook, Spend, outlook, period_of, scope_filters, spend_of
from models.notices import Delivery, DeliveryAttempt, Receiver
from models.silences import pairs

_MOST = 500


@dataclass(frozen=True, slots=True)
class BudgetStanding:
    """A budget in its running period; ``outlook`` is where the period will likely end."""

    budget: Budget
    spend: Spend
    outlook: Outlook

    @property
    def share(self) -> Decimal:
        """What is spent of the amount, as a part of one."""
        return self.spend.amount / self.budget.amount if self.budget.amount else Decimal(0)


@dataclass(frozen=True, slots=True)
class ReceiverStanding:
    """A receiver with its last deliveries, newest first, their attempts by delivery, what they are about, and who names it."""

    receiver: Receiver
    deliveries: Sequence[Delivery]
    attempts: Mapping[str, Sequence[DeliveryAttempt]]
    about: Mapping[str, str]  # the rules of the alerts that they tell of
    named_by: Sequence[str]


@dataclass(frozen=True, slots=True)
class TrailEntry:
    """One line of the audit trail: who changed what, and the parts that differ as (name, before, after)."""

    at: datetime
    actor: str
    action: str
    kind: str
    object_id: str
    name: str
    parts: Sequence[tuple[str, Any, Any]]


def alerts(session: Session, *, since: datetime, visible: frozenset[str] | None) -> list[Alert]:
    """Open alerts and those that ended after an instant, the newest first."""
    row = Alert
    asked = select(row).where(sa.or_(col(row.state) != AlertState.RESOLVED, col(row.resolved_at) >= since)).order_by(col(row.seq).desc()).limit(_MOST)
    return [one for one in session.exec(asked) if may_see(one.scope, visible)]


def alert_rules(session: Session, *, visible: frozenset[str] | None) -> list[AlertRule]:
    """Every rule, by name."""
    row = AlertRule
    return [
        one
        for one in session.exec(select(row).where(col(row.deleted_at).is_(None)).order_by(col(row.name), col(row.id)))
        if visible is None or may_see(one.scope, visible)
    ]


def budget_standings(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[BudgetStanding]:
    """Every budget with what is spent of it and where its period will likely end, the fullest first."""
    row = Budget
    found: list[BudgetStanding] = []
    for budget in session.exec(select(row).where(col(row.deleted_at).is_(None)).order_by(col(row.name), col(row.id))):
        if not may_see(budget.scope, visible):
            continue
        spent = spend_of(session, budget, now=now)
        found.append(
            BudgetStanding(
                budget,
                spent,
                outlook(
                    session,
                    filters=scope_filters(budget.scope),
                    period=period_of(budget, now),
                    basis=budget.basis,  # type: ignore[arg-type]  # checked when it was written
                    currency=budget.currency,
                    now=now,
                    time_zone=budget.time_zone,
                    spent=spent.amount,
                ),
            )
        )
    return sorted(found, key=lambda one: (-one.share, one.budget.name))


def receivers(session: Session, *, most: int = 5) -> list[ReceiverStanding]:
    """Every receiver with its last deliveries and who names it."""
    row = Receiver
    named: dict[str, list[str]] = {}
    rules = session.exec(select(AlertRule.name, AlertRule.receivers).where(col(AlertRule.deleted_at).is_(None))).all()
    budgets = session.exec(select(Budget.name, Budget.receivers).where(col(Budget.deleted_at).is_(None))).all()
    for name, ids in sorted([*rules, *budgets], key=lambda pair: pair[0]):
        for receiver_id in ids:
            named.setdefault(receiver_id, []).append(name)
    found: list[ReceiverStanding] = []
    for receiver in session.exec(select(row).where(col(row.deleted_at).is_(None)).order_by(col(row.name), col(row.id))):
        told = session.exec(select(Delivery).where(col(Delivery.receiver_id) == receiver.id).order_by(col(Delivery.seq).desc()).limit(most)).all()
        tried: dict[str, list[DeliveryAttempt]] = {}
        attempts = select(DeliveryAttempt).where(col(DeliveryAttempt.delivery_id).in_([one.id for one in told])).order_by(col(DeliveryAttempt.seq))
        for attempt in session.exec(attempts):
            tried.setdefault(attempt.delivery_id, []).append(attempt)
        about = dict(session.exec(select(Alert.id, Alert.rule).where(col(Alert.id).in_([one.alert_id for one in told]))).all())
        found.append(ReceiverStanding(receiver, told, tried, about, named.get(receiver.id, ())))
    return found


def silences(session: Session, *, since: datetime, visible: frozenset[str] | None) -> list[Silence]:
    """Silences and maintenance windows that run or come, and those that ended after an instant; the latest end first."""
    asked = select(Silence).where(col(Silence.deleted_at).is_(None), col(Silence.ends_at) >= since).order_by(col(Silence.ends_at).desc(), col(Silence.id))
    return [
        one
        for one in session.exec(asked.limit(_MOST))
        if may_see({"workspace": [value for name, value in pairs(one.matchers) if name == "workspace"]}, visible)
    ]


def trail(session: Session, *, kinds: Sequence[str], visible: frozenset[str] | None, most: int = 30) -> list[TrailEntry]:
    """The latest changes of such things, newest first; whoever sees some workspaces sees changes of what is about these."""
    asked = select(AuditEntry).where(col(AuditEntry.kind).in_(list(kinds))).order_by(col(AuditEntry.id).desc()).limit(most if visible is None else _MOST)
    return [_told(one) for one in session.exec(asked) if visible is None or may_see((one.after or one.before or {}).get("scope") or {}, visible)][:most]


# They change with everything, and say nothing of their own.
_UNTOLD = frozenset({"id", "updated_at", "created_at", "revision", "state", "origin", "author", "name"})


def _told(entry: AuditEntry) -> TrailEntry:
    before, after = entry.before or {}, entry.after or {}
    names = [name for name in {**before, **after} if before.get(name) != after.get(name) and (name not in _UNTOLD or (name == "name" and before and after))]
    # What is new has nothing to differ from: what it was given is enough.
    parts = [(name, before.get(name), after.get(name)) for name in names if before or after.get(name) not in (None, "", [], {}, False, 0)]
    called = (
        after.get("name") or before.get("name") or " ".join(f"{one['name']}={one['value']}" for one in after.get("matchers") or before.get("matchers") or ())
    )
    return TrailEntry(entry.at, entry.actor, entry.action, entry.kind, entry.object_id, str(called or entry.object_id), parts if after or not before else [])


def explain_query(alert: Alert) -> str:
    """The question to the ledger whose answer is the money behind an alert: its scope, and what its sample was measured over."""
    found: list[tuple[str, str]] = []
    for name, value in sorted(alert.scope.items()):
        found += [(name, one) for one in ([value] if isinstance(value, str) else value)] if name in SCOPE_NAMES or name.startswith("tag:") else []
    found += [(name, str(alert.sample[name])) for name in ("from", "to", "basis", "currency") if isinstance(alert.sample.get(name), str)]
    return urlencode(found)


def may_see(scope: Mapping[str, Any], visible: frozenset[str] | None) -> bool:
    """Whether a reader of some workspaces may see what has this scope: only what is of theirs alone."""
    if visible is None:
        return True
    said = scope.get("workspace")
    named = [said] if isinstance(said, str) else list(said or ())
    return bool(named) and all(name in visible for name in named)
