"""The differences between bill and metering that a person should look at, with what people have said of them.

A line is a workspace, deployment, meter and currency of a month. It is material where what is left of its variance,
without what only has to be waited for, is at least 1.00 and at least 1 % of the larger side (DESIGN.md).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal

from sqlmodel import Session, col, select

from models import money
from models.errors import NotFound
from models.ledger.reconciliation import Reconciliation, ReconciliationRow, causes_of, reconciliation
from models.ledger.values import Filters
from models.periods import month_period
from models.variance import Cause, State
from models.worklist import WorklistEntry

LEAST_AMOUNT = Decimal("1.00")
LEAST_SHARE = Decimal("0.01")
# Time brings these right by itself, or there is nothing to bring right.
WAITED_FOR = frozenset({Cause.NOT_YET_BILLED, Cause.TIMING, Cause.ROUNDING})
_STATES: tuple[State, ...] = ("open", "settling", "closed")
_Key = tuple[str | None, str | None, str, str | None]  # workspace, deployment, meter, currency


@dataclass(frozen=True, slots=True)
class WorklistItem:
    """One line of a month. ``left`` is the variance without what is only to be waited for; ``changed`` says by how much what was signed has moved since."""

    month: date
    workspace: str | None
    deployment: str | None
    meter: str
    currency: str | None
    expected: Decimal
    billed: Decimal
    causes: Mapping[Cause, Decimal]
    state: State
    days: int
    entry: WorklistEntry | None
    changed: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """How routes name it."""
        said = json.dumps([f"{self.month:%Y-%m}", self.workspace, self.deployment, self.meter, self.currency], separators=(",", ":"), ensure_ascii=False)
        return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")

    @property
    def variance(self) -> Decimal:
        return money.minus(self.billed, self.expected)

    @property
    def left(self) -> Decimal:
        return money.minus(self.variance, money.add(amount for cause, amount in self.causes.items() if cause in WAITED_FOR))

    @property
    def is_material(self) -> bool:
        """Whether a person is asked to look."""
        return abs(self.left) >= max(LEAST_AMOUNT, money.times(max(abs(self.billed), abs(self.expected)), LEAST_SHARE))

    def figures(self) -> dict[str, str]:
        """What a signature is of."""
        return {
            "expected": money.text(self.expected),
            "billed": money.text(self.billed),
            **{cause.value: money.text(amount) for cause, amount in self.causes.items()},
        }


def worklist(
    session: Session,
    month: date,
    filters: Filters = Filters(),  # noqa: B008 - a frozen value
    *,
    now: datetime,
    found: Reconciliation | None = None,
) -> list[WorklistItem]:
    """The month's material lines and those that somebody has said something of, the largest first; ``found`` is its reconciliation, if somebody has it."""
    lines = _lines(reconciliation(session, month_period(month), filters, now=now) if found is None else found)
    entries = {_key(entry): entry for entry in _entries(session, month) if filters.visible is None or entry.workspace in filters.visible}
    items = [_item(month, key, lines.get(key, []), entries.get(key)) for key in lines.keys() | (entries.keys() if filters.workspaces == () else set())]
    return sorted(
        (item for item in items if item.is_material or item.entry is not None),
        key=lambda item: (-abs(item.left), item.workspace or "", item.deployment or "", item.meter, item.currency or ""),
    )


def worklist_item(session: Session, item_id: str, *, visible: frozenset[str] | None, now: datetime) -> WorklistItem:
    """The line of an id, material or not."""
    try:
        month, workspace, deployment, meter, currency = json.loads(base64.urlsafe_b64decode(item_id + "=" * (-len(item_id) % 4)))
        first = date.fromisoformat(f"{month}-01")
    except (ValueError, TypeError, binascii.Error) as fault:
        raise NotFound("there is no such line; take the id from /v1/worklist") from fault
    key = (workspace, deployment, meter, currency)
    if visible is not None and workspace not in visible:
        raise NotFound("there is no such line; take the id from /v1/worklist")
    # Of its own deployment alone where it names one: whoever signs is in a write, and others wait for that.
    is_named = isinstance(workspace, str) and isinstance(deployment, str)
    own = Filters(workspaces=(workspace,), deployments=(deployment,), visible=visible) if is_named else Filters(visible=visible)
    lines = _lines(reconciliation(session, month_period(first), own, now=now))
    entry = next((one for one in _entries(session, first) if _key(one) == key), None)
    if key not in lines and entry is None:
        raise NotFound("there is no such line; take the id from /v1/worklist")
    return _item(first, key, lines.get(key, []), entry)


def _entries(session: Session, month: date) -> list[WorklistEntry]:
    row = WorklistEntry
    return list(session.exec(select(row).where(col(row.month) == month, col(row.known_to).is_(None)).order_by(col(row.id))))


def _key(of: WorklistEntry | ReconciliationRow) -> _Key:
    return of.workspace, of.deployment, of.meter, of.currency


def _lines(found: Reconciliation) -> dict[_Key, list[ReconciliationRow]]:
    lines: dict[_Key, list[ReconciliationRow]] = {}
    for row in found.rows:
        lines.setdefault(_key(row), []).append(row)
    return lines


def _item(month: date, key: _Key, rows: list[ReconciliationRow], entry: WorklistEntry | None) -> WorklistItem:
    item = WorklistItem(
        month=month,
        workspace=key[0],
        deployment=key[1],
        meter=key[2],
        currency=key[3],
        expected=money.add(row.expected for row in rows),
        billed=money.add(row.billed for row in rows),
        causes=causes_of(rows),
        state=_STATES[min((_STATES.index(row.state) for row in rows), default=0)],
        days=len(rows),
        entry=entry,
    )
    if entry is None or entry.signed is None:
        return item
    now_so, then_so = item.figures(), entry.signed
    moved = {
        name: amount
        for name in [*now_so, *(name for name in then_so if name not in now_so)]
        if (amount := money.minus(Decimal(now_so.get(name, "0")), Decimal(then_so.get(name, "0"))))
    }
    return WorklistItem(
        item.month, item.workspace, item.deployment, item.meter, item.currency, item.expected, item.billed, item.causes, item.state, item.days, entry, moved
    )
