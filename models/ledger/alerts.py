"""What people look at of alerts: those of now and of late, budgets against their amounts, rules, receivers and what they were told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models.alerts import Alert, AlertRule, AlertState, Budget
from models.ledger.budgets import Outlook, Spend, outlook, period_of, scope_filters, spend_of
from models.notices import Delivery, Receiver

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
    """A receiver with its last deliveries, newest first."""

    receiver: Receiver
    deliveries: Sequence[Delivery]


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
    """Every receiver with its last deliveries."""
    row = Receiver
    found: list[ReceiverStanding] = []
    for receiver in session.exec(select(row).where(col(row.deleted_at).is_(None)).order_by(col(row.name), col(row.id))):
        told = session.exec(select(Delivery).where(col(Delivery.receiver_id) == receiver.id).order_by(col(Delivery.seq).desc()).limit(most)).all()
        found.append(ReceiverStanding(receiver, told))
    return found


def may_see(scope: Mapping[str, Any], visible: frozenset[str] | None) -> bool:
    """Whether a reader of some workspaces may see what has this scope: only what is of theirs alone."""
    if visible is None:
        return True
    said = scope.get("workspace")
    named = [said] if isinstance(said, str) else list(said or ())
    return bool(named) and all(name in visible for name in named)
