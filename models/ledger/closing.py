"""Closed months: what was stored, what today would say differently, and why. Stored + adjustments = what is so today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.charges import BillPart
from models.closing import ClosedRow, MonthClose, closes_known
from models.errors import Conflict, NotFound
from models.ledger.invoices import invoices_of
from models.ledger.meters import meter_mappings
from models.ledger.reconciliation import ReconciliationRow, reconciliation
from models.ledger.values import Filters
from models.money import ZERO
from models.periods import month_period, month_start, next_month, rfc3339, settles_at
from models.prices import Price

AdjustmentCause = Literal["late_usage", "restated_bill", "price", "mapping", "software"]
Side = Literal["expected", "billed"]
# Where a close's versions name the invoices of its charges; closes of earlier versions do not.
INVOICES = "invoices"
_Key = tuple[date, str | None, str | None, str, str | None]


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What one row of a closed month differs by today, on one side, for one cause."""

    month: date
    day: date
    workspace: str | None
    deployment: str | None
    meter: str
    currency: str | None
    side: Side
    cause: AdjustmentCause
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Restated:
    """What the bill said of one row of a month at one instant and at a later one; None where it said nothing of it."""

    before: ReconciliationRow | None
    after: ReconciliationRow | None


@dataclass(frozen=True, slots=True)
class ClosedTotal:
    """What was stored of one currency. ``invoiced`` is what of billed stood on an invoice then; None with ``not_invoiced`` saying why."""

    expected: Decimal
    billed: Decimal
    invoiced: Decimal | None
    not_invoiced: str | None


@dataclass(frozen=True, slots=True)
class ClosedMonth:
    """A close that stands, with its stored totals per currency."""

    close: MonthClose
    totals: Mapping[str | None, ClosedTotal]


def closed_months(session: Session, *, now: datetime) -> list[ClosedMonth]:
    """Every close that stands."""
    found: list[ClosedMonth] = []
    for close in closes_known(session, now):
        by_currency: dict[str | None, list[ClosedRow]] = {}
        for row in _stored(session, close):
            by_currency.setdefault(row.currency, []).append(row)
        found.append(ClosedMonth(close, {currency: _total(close, rows) for currency, rows in by_currency.items()}))
    return found


def _total(close: MonthClose, rows: Sequence[ClosedRow]) -> ClosedTotal:
    billed, known = money.add(row.billed for row in rows), [row.invoiced for row in rows if row.invoiced is not None]
    invoiced, reason = (money.add(known) if known else None), None
    if INVOICES not in close.versions:
        reason = "it was closed by a version of this service that did not keep what was on invoices"
    elif invoiced is None:
        reason = "no charge of it was on an invoice when it was closed"
    elif invoiced != billed:
        reason = "some of its charges were on no invoice when it was closed"
    return ClosedTotal(money.add(row.expected for row in rows), billed, invoiced, reason)


def close_of(session: Session, month: date, *, now: datetime) -> MonthClose:
    """The close of a month that stands now."""
    found = [close for close in closes_known(session, now) if close.month == month]
    if not found:
        raise NotFound(f"{month:%Y-%m} is not closed; close it with: meterbridge close --month {month:%Y-%m}")
    return found[-1]


def _stored(session: Session, close: MonthClose) -> Sequence[ClosedRow]:
    row = ClosedRow
    return session.exec(select(row).where(col(row.close_id) == close.id).order_by(col(row.id))).all()


def close_month(session: Session, month: date, *, author: str, software: str, now: datetime) -> MonthClose:
    """Store the month's rows as they are; refuses a month that is not settled, not billed whole, or closed already."""
    if month != month_start(month):
        raise Conflict(f"{month} is not the first day of a month")
    if any(close.month == month for close in closes_known(session, now)):
        raise Conflict(f"{month:%Y-%m} is closed already; open it again first: meterbridge reopen --month {month:%Y-%m}")
    settled = settles_at(month)
    if now < settled:
        raise Conflict(f"{month:%Y-%m} still moves until {rfc3339(settled)}; Azure re-rates a month up to five days past its end")
    parts = session.exec(
        select(BillPart).where(
            col(BillPart.period_start) == month,
            col(BillPart.landed_at) <= now,
            sa.or_(col(BillPart.superseded_at).is_(None), col(BillPart.superseded_at) > now),
        )
    ).all()
    if not parts:
        raise Conflict(f"no bill of {month:%Y-%m} has been landed; import it, or pull it with: meterbridge sync costs --month {month:%Y-%m}")
    # A bill for other days than the month's settles with its own end, and several of them hold the month together.
    open_until = max((part.billed.settles_at for part in parts if part.in_scope_totals), default=settled)
    if now < open_until:
        raise Conflict(f"the bill that holds the end of {month:%Y-%m} is for days beyond it and still moves until {rfc3339(open_until)}")
    if gap := _gap(parts, month):
        whose, day = gap
        raise Conflict(
            f"the bills of {whose or 'the billing account'} leave out {day}, so {month:%Y-%m} is not billed whole; pull it: meterbridge sync costs --month {month:%Y-%m}"
        )
    early = [part for part in parts if part.landed_at is not None and part.landed_at < max(settled, part.billed.settles_at) and part.in_scope_totals]
    if early:
        names = ", ".join(part.subscription_id or "the billing account" for part in early[:3])
        raise Conflict(
            f"the bill of {month:%Y-%m} for {names} was landed before {rfc3339(settled)} and may have changed since; "
            f"land it again: meterbridge sync costs --month {month:%Y-%m}, or import the file anew"
        )
    close = MonthClose(
        month=month,
        closed_at=now,
        closed_by=author,
        software=software,
        versions={
            "bill_parts": sorted(part.id or 0 for part in parts),
            "last_price": session.scalar(sa.select(sa.func.max(col(Price.id)))),
            "meter_mappings": [row.id for row in meter_mappings(session)],
            INVOICES: sorted({name for part in parts for name in invoices_of(session, part.id or 0)}),
        },
    )
    session.add(close)
    session.flush()
    found = reconciliation(session, month_period(month), now=now)
    for row in found.rows:
        session.add(
            ClosedRow(
                close_id=close.id or 0,
                day=row.day,
                workspace=row.workspace,
                deployment=row.deployment,
                meter=row.meter,
                currency=row.currency,
                expected=row.expected,
                billed=row.billed,
                metered_units=row.metered_units,
                billed_units=row.billed_units,
                causes={cause.value: money.text(amount) for cause, amount in row.causes.items()},
                invoiced=row.invoiced,
            )
        )
    session.flush()
    return close


def reopen_month(session: Session, month: date, *, author: str, reason: str, now: datetime) -> MonthClose:
    """Let the month move again; the close stays on record with who opened it and why."""
    close = close_of(session, month, now=now)
    close.reopened_at, close.reopened_by, close.reason = now, author, reason
    session.add(close)
    session.flush()
    return close


def adjustments(session: Session, month: date, *, filters: Filters = Filters(), now: datetime) -> list[Adjustment]:  # noqa: B008 - a frozen value
    """What today would say differently of a closed month, row by row and by cause; stored + these = derived, exactly."""
    close = close_of(session, month, now=now)
    period = month_period(month)
    stored = {_key(row): (row.expected, row.billed, row.metered_units) for row in _stored(session, close) if _is_asked(row, filters)}
    then, later_facts, today = (
        {_key(row): row for row in reconciliation(session, period, filters, now=now, as_of=as_of, usage_as_of=usage).rows}
        for as_of, usage in ((close.closed_at, None), (None, close.closed_at), (None, None))
    )
    is_restated = _is_restated(session, close, now=now)
    found: list[Adjustment] = []
    for key in sorted(stored.keys() | then.keys() | later_facts.keys() | today.keys(), key=_order):
        day, workspace, deployment, meter, currency = key
        was = stored.get(key, (ZERO, ZERO, ZERO))
        # Another version of this software may have derived other rows from the same facts.
        at_close, with_facts, now_row = then.get(key), later_facts.get(key), today.get(key)
        moved_units = _units(with_facts) != _units(at_close)
        steps: list[tuple[Side, AdjustmentCause, Decimal]] = [
            ("expected", "software", money.minus(_expected(at_close), was[0])),
            ("expected", "mapping" if moved_units else "price", money.minus(_expected(with_facts), _expected(at_close))),
            ("expected", "late_usage", money.minus(_expected(now_row), _expected(with_facts))),
            ("billed", "software", money.minus(_billed(at_close), was[1])),
            ("billed", "restated_bill" if is_restated else "mapping", money.minus(_billed(now_row), _billed(at_close))),
        ]
        found += [Adjustment(month, day, workspace, deployment, meter, currency, side, cause, amount) for side, cause, amount in steps if amount]
    return found


def restated(session: Session, month: date, *, filters: Filters, since: datetime, until: datetime) -> list[Restated]:
    """The rows of a month of which bills that landed after ``since``, up to ``until``, say another amount or quantity."""
    was, said = ({_key(row): row for row in reconciliation(session, month_period(month), filters, now=at).rows} for at in (since, until))
    found: list[Restated] = []
    for key in sorted(was.keys() | said.keys(), key=_order):
        before, after = was.get(key), said.get(key)
        amounts = [(ZERO, None) if row is None else (row.billed, row.billed_units or None) for row in (before, after)]
        if amounts[0] != amounts[1]:
            found.append(Restated(before if amounts[0] != (ZERO, None) else None, after if amounts[1] != (ZERO, None) else None))
    return found


def _gap(parts: Sequence[BillPart], month: date) -> tuple[str, date] | None:
    """A subscription and a day of the month that none of its bills is for, its first one being told by the first of them."""
    for subscription in sorted({part.subscription_id for part in parts if part.in_scope_totals}):
        bills = sorted({part.billed for part in parts if part.subscription_id == subscription})
        day = max(month, bills[0].start)
        for billed in bills:
            day = max(day, billed.end) if billed.start <= day else day
        if day < next_month(month):
            return subscription, day
    return None


def _is_restated(session: Session, close: MonthClose, *, now: datetime) -> bool:
    """Whether the month's bill was landed again since the close."""
    row = BillPart
    current = session.scalars(
        sa.select(col(row.id)).where(
            col(row.period_start) == close.month, col(row.landed_at) <= now, sa.or_(col(row.superseded_at).is_(None), col(row.superseded_at) > now)
        )
    ).all()
    return bool(sorted(one or 0 for one in current) != close.versions["bill_parts"])


def _is_asked(row: ClosedRow, filters: Filters) -> bool:
    return (filters.visible is None or row.workspace in filters.visible) and (not filters.workspaces or row.workspace in filters.workspaces)


def _key(row: ClosedRow | ReconciliationRow) -> _Key:
    return row.day, row.workspace, row.deployment, row.meter, row.currency


def _order(key: _Key) -> tuple[object, ...]:
    return key[0], *((one is None, one or "") for one in key[1:])


def _expected(row: ReconciliationRow | None) -> Decimal:
    return ZERO if row is None else row.expected


def _billed(row: ReconciliationRow | None) -> Decimal:
    return ZERO if row is None else row.billed


def _units(row: ReconciliationRow | None) -> Decimal:
    return ZERO if row is None else row.metered_units
