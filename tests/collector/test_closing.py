"""Closing a month and opening it again: said to whoever does it, and kept in the audit trail."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlmodel import select

from collector import closing
from models.alerts import AuditEntry
from models.errors import Conflict, InvalidInput, NotFound
from models.store import Store
from tests.models.test_ledger_closing import CLOSED, world


def trail(store: Store) -> list[tuple[str, str, str, str, object]]:
    with store.read() as session:
        return [(one.actor, one.action, one.kind, one.object_id, one.after) for one in session.exec(select(AuditEntry))]


def test_a_close_and_a_reopening_are_in_the_audit_trail_with_their_reason(store: Store) -> None:
    with store.write() as session:
        world(session)
    said: list[str] = []
    assert closing.close(store, closing.CloseMonth("2026-10", "ana", "0.1.0"), now=CLOSED, say=said.append) == 0
    later = CLOSED + timedelta(days=1)
    assert closing.reopen(store, closing.ReopenMonth("2026-10", "ben", "a credit was missing"), now=later, say=said.append) == 0
    assert said[0] == "2026-10 is closed"
    assert said[-1].startswith("2026-10 is open again")
    assert trail(store) == [
        ("ana", "close", "month", "2026-10", {"software": "0.1.0"}),
        ("ben", "reopen", "month", "2026-10", {"reason": "a credit was missing"}),
    ]


def test_what_is_refused_leaves_no_trace(sqlite_store: Store) -> None:
    with pytest.raises(InvalidInput, match="the month must be written like 2026-11, not '2026-1'"):
        closing.close(sqlite_store, closing.CloseMonth("2026-1", "ana", "0.1.0"), now=CLOSED, say=print)
    with pytest.raises(Conflict, match="no bill"):
        closing.close(sqlite_store, closing.CloseMonth("2026-10", "ana", "0.1.0"), now=CLOSED, say=print)
    with pytest.raises(NotFound, match="not closed"):
        closing.reopen(sqlite_store, closing.ReopenMonth("2026-10", "ana", ""), now=CLOSED, say=print)
    assert trail(sqlite_store) == []
