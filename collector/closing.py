"""``meterbridge close`` and ``reopen``: the month close as commands. What is stored and compared is the ledger's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime

import msgspec
from sqlmodel import Session

from collector import rulebook
from models import ledger, money
from models.periods import parse_month
from models.store import Store


class CloseMonth(msgspec.Struct, tag="close_month", forbid_unknown_fields=True):
    """``meterbridge close --month YYYY-MM``."""

    month: str
    author: str
    software: str


class ReopenMonth(msgspec.Struct, tag="reopen_month", forbid_unknown_fields=True):
    """``meterbridge reopen --month YYYY-MM --reason TEXT``."""

    month: str
    author: str
    reason: str = ""


def close(store: Store, asked: CloseMonth, *, now: datetime, say: Callable[[str], None]) -> int:
    """Close the month and say what it came to."""
    month = parse_month(asked.month, what="the month")
    with store.write() as session:
        ledger.close_month(session, month, author=asked.author, software=asked.software, now=now)
        _audit(session, month, "close", {"software": asked.software}, author=asked.author, now=now)
        (closed,) = [one for one in ledger.closed_months(session, now=now) if one.close.month == month]
    say(f"{month:%Y-%m} is closed")
    for currency, total in sorted(closed.totals.items(), key=lambda pair: pair[0] or ""):
        invoiced = f"invoiced {money.text(total.invoiced)}" if total.invoiced is not None else total.not_invoiced
        say(f"{currency or 'no currency'}: billed {money.text(total.billed)}, expected {money.text(total.expected)}, {invoiced}")
    return 0


def reopen(store: Store, asked: ReopenMonth, *, now: datetime, say: Callable[[str], None]) -> int:
    """Open the month again."""
    month = parse_month(asked.month, what="the month")
    with store.write() as session:
        ledger.reopen_month(session, month, author=asked.author, reason=asked.reason, now=now)
        _audit(session, month, "reopen", {"reason": asked.reason}, author=asked.author, now=now)
    say(f"{month:%Y-%m} is open again; what it says moves with its bill and its usage")
    return 0


def _audit(session: Session, month: date, action: str, after: Mapping[str, str], *, author: str, now: datetime) -> None:
    rulebook.audit(session, actor=author, action=action, kind="month", object_id=f"{month:%Y-%m}", before=None, after=after, now=now)
