"""What the reconciliation says differently than when somebody looked last: both sides of every line, then and now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session, col

from models import money
from models.charges import BillPart
from models.ledger.reconciliation import Reconciliation, reconciliation
from models.ledger.values import Filters
from models.money import ZERO
from models.periods import Period
from models.variance import Cause

_Line = tuple[str | None, str | None, str, str | None]  # workspace, deployment, meter, currency


@dataclass(frozen=True, slots=True)
class Moved:
    """By how much a line's sides, and what nothing explains of it, changed since an instant."""

    workspace: str | None
    deployment: str | None
    meter: str
    currency: str | None
    expected: Decimal
    billed: Decimal
    unexplained: Decimal


def before_last_landing(session: Session, *, now: datetime) -> datetime | None:
    """The last instant at which the newest bill was not there yet; None before any bill."""
    newest: datetime | None = session.execute(sa.select(sa.func.max(col(BillPart.landed_at))).where(col(BillPart.landed_at) <= now)).scalar()
    return None if newest is None else newest - timedelta(microseconds=1)


def moved_since(session: Session, period: Period, filters: Filters, *, since: datetime, now: datetime, found: Reconciliation | None = None) -> list[Moved]:
    """The lines of a period that are not what they were, the most moved first; ``found`` is its reconciliation as of now, if somebody has it."""
    then = _lines(reconciliation(session, period, filters, now=now, as_of=since))
    today = _lines(reconciliation(session, period, filters, now=now) if found is None else found)
    moved: list[Moved] = []
    for line in then.keys() | today.keys():
        sides = [money.minus(after, before) for after, before in zip(today.get(line, _NOTHING), then.get(line, _NOTHING), strict=True)]
        if any(sides):
            moved.append(Moved(*line, *sides))
    return sorted(moved, key=lambda one: (-abs(one.billed), -abs(one.expected), one.workspace or "", one.deployment or "", one.meter, one.currency or ""))


_NOTHING = (ZERO, ZERO, ZERO)


def _lines(found: Reconciliation) -> Mapping[_Line, tuple[Decimal, Decimal, Decimal]]:
    lines: dict[_Line, tuple[Decimal, Decimal, Decimal]] = {}
    for row in found.rows:
        line = (row.workspace, row.deployment, row.meter, row.currency)
        expected, billed, unexplained = lines.get(line, _NOTHING)
        more = row.causes.get(Cause.UNEXPLAINED, ZERO)
        lines[line] = (money.plus(expected, row.expected), money.plus(billed, row.billed), money.plus(unexplained, more))
    return lines
