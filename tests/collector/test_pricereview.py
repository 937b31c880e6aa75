"""Prices that look wrong wait; the others of their file count at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlmodel import select

from collector import pricereview
from collector.pricing import PriceImport, import_prices, previewed, price_rows
from models import ledger
from models.alerts import AuditEntry
from models.errors import Conflict, NotFound
from models.periods import Period
from models.prices import PriceBook, PriceMeter, UnitPrice
from models.store import Store
from tests import factories as make

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
HEADER = "model,meter,unit_price,currency,unit,workspace\n"
MODEL = "Acme-Llama-70B"


def imported(store: Store, *lines: str, now: datetime = NOW, replace: bool = False) -> PriceImport:
    with store.write() as session:
        return import_prices(session, (HEADER + "\n".join(lines)).encode(), name="p.csv", now=now, author="ana", replace=replace)


def price(store: Store, meter: PriceMeter = PriceMeter.INPUT_TOKENS, *, known: datetime = LATER) -> Decimal | None:
    """Of a million tokens, at noon of the next day."""
    with store.read() as session:
        found = PriceBook(price_rows(session, as_of=known)).price(meter=meter, at=LATER, model=MODEL)
    return found.per_unit * 1_000_000 if isinstance(found, UnitPrice) else None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("0.71,USD,1M tokens", "0.71,USD,1K tokens", "about 1,000 times more than the 0.71 USD per 1M tokens in use (imported)"),
        ("0.71,USD,1M tokens", "0.00071,USD,1M tokens", "about 1,000 times less"),
        ("0.71,USD,1M tokens", "700000,USD,1M tokens", "about 1,000,000 times more"),
        ("0.71,USD,1M tokens", "3.56,USD,1M tokens", "more than five times away from the 0.71 USD per 1M tokens that it would replace"),
        ("0.71,USD,1M tokens", "3.55,USD,1M tokens", None),
        ("0.71,USD,1M tokens", "710,EUR,1M tokens", None),
    ],
)
def test_a_slip_of_the_unit_and_a_jump_wait(store: Store, before: str, after: str, said: str | None) -> None:
    imported(store, f"{MODEL},input_tokens,{before},")
    done = imported(store, f"{MODEL},input_tokens,{after},", now=LATER)
    assert [said in row.reason for row in done.waiting if said] == ([True] if said else [])
    assert (done.added, len(done.waiting)) == ((0, 1) if said else (1, 0))
    if said:
        assert price(store) == Decimal("0.71")


def test_input_dearer_than_output_waits_with_the_output_beside_it_and_the_rest_counts(store: Store) -> None:
    done = imported(
        store,
        f"{MODEL},input_tokens,2.00,USD,1M tokens,",
        f"{MODEL},output_tokens,1.00,USD,1M tokens,",
        "Other,input_tokens,1.00,USD,1M tokens,",
        "Other,output_tokens,1.00,USD,1M tokens,",
    )
    assert (done.added, len(done.waiting)) == (2, 2)
    assert {row.reason for row in done.waiting} == {"input_tokens at 2 USD per 1M tokens is dearer than output_tokens at 1 USD per 1M tokens"}
    assert done.summary().splitlines()[0].startswith("prices: 2 added, 0 unchanged, 2 wait for review")
    assert price(store) is None


def test_a_row_that_waits_counts_from_its_acceptance_on_and_only_once(store: Store) -> None:
    imported(store, f"{MODEL},input_tokens,0.71,USD,1M tokens,")
    (waits,) = imported(store, f"{MODEL},input_tokens,0.71,USD,1K tokens,").waiting
    with store.write() as session:
        decided = pricereview.decide(session, waits.id, accept=True, author="bo", now=LATER)
        assert (decided.decision, decided.decided_by) == ("accepted", "bo")
    assert (price(store, known=NOW), price(store)) == (Decimal("0.71"), Decimal(710))
    with store.write() as session, pytest.raises(Conflict, match="was accepted by bo"):
        pricereview.decide(session, waits.id, accept=False, author="bo", now=LATER)
    # The same file again says nothing new.
    again = imported(store, f"{MODEL},input_tokens,0.71,USD,1K tokens,", now=LATER + timedelta(hours=1))
    assert (again.added, again.unchanged, len(again.waiting)) == (0, 1, 0)
    with store.write() as session, pytest.raises(NotFound, match="waits or has waited"):
        pricereview.decide(session, 99, accept=True, author="bo", now=LATER)
    with store.read() as session:
        (entry,) = session.exec(select(AuditEntry))
        assert (entry.actor, entry.action, entry.kind, entry.object_id) == ("bo", "accepted", "waiting-price", str(waits.id))


def test_the_same_row_waits_once_and_a_later_word_replaces_it(store: Store) -> None:
    imported(store, f"{MODEL},input_tokens,0.71,USD,1M tokens,")
    first = imported(store, f"{MODEL},input_tokens,0.71,USD,1K tokens,").waiting
    assert [row.id for row in imported(store, f"{MODEL},input_tokens,0.71,USD,1K tokens,", now=LATER).waiting] == [row.id for row in first]
    imported(store, f"{MODEL},input_tokens,0.72,USD,1K tokens,", now=LATER)
    with store.read() as session:
        assert [row.unit_price for row in ledger.waiting_prices(session)] == [Decimal("0.72")]


def test_replace_keeps_what_a_waiting_row_would_have_replaced(store: Store) -> None:
    imported(store, f"{MODEL},input_tokens,0.71,USD,1M tokens,", "Gone,input_tokens,1,USD,1M tokens,")
    done = imported(store, f"{MODEL},input_tokens,0.71,USD,1K tokens,", now=LATER, replace=True)
    assert (done.ended, len(done.waiting)) == (1, 1)
    assert price(store, known=LATER + timedelta(hours=1)) == Decimal("0.71")


def test_a_contract_price_of_one_workspace_may_be_far_from_the_general_one(store: Store) -> None:
    imported(store, f"{MODEL},input_tokens,0.71,USD,1M tokens,")
    done = imported(store, f"{MODEL},input_tokens,0.05,USD,1M tokens,ws-1", now=LATER)
    assert (done.added, len(done.waiting)) == (1, 0)


def test_a_preview_shows_the_difference_per_team_and_imports_nothing(store: Store) -> None:
    with store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.50")
        make.owner(session)
        make.event(session, time=datetime(2026, 11, 10, 8, tzinfo=UTC), input_tokens=1_000_000, output_tokens=500_000)
        make.event(session, make.series(session, team="ads"), time=datetime(2026, 10, 10, 8, tzinfo=UTC), input_tokens=2_000_000, output_tokens=0)
    content = f"{HEADER}{make.MODEL},input_tokens,1.25,USD,1M tokens,\n".encode()
    with store.read() as session:
        found = previewed(session, content, name="p.csv", period=Period(NOW - timedelta(days=60), NOW), now=NOW)
        rows = found.rows
        assert (found.waiting, found.accepted) == ([], ())
        assert [(f"{row.month:%Y-%m}", row.team, row.currency, row.cost_now, row.cost_then, row.difference, row.is_closed) for row in rows] == [
            ("2026-10", "ads", "USD", Decimal(2), Decimal("2.5"), Decimal("0.5"), False),
            ("2026-11", "search", "USD", Decimal("1.75"), Decimal(2), Decimal("0.25"), False),
        ]
    with store.read() as session:
        assert ledger.waiting_prices(session) == []


def test_a_preview_tells_what_would_wait_and_counts_it_only_as_accepted(store: Store) -> None:
    with store.write() as session:
        make.serverless(session)
        make.owner(session)
        make.event(session, time=datetime(2026, 11, 10, 8, tzinfo=UTC), input_tokens=1_000_000, output_tokens=500_000)
    imported(store, f"{make.MODEL},input_tokens,1.00,USD,1M tokens,", f"{make.MODEL},output_tokens,2.00,USD,1M tokens,")
    content = f"{HEADER}{make.MODEL},input_tokens,0.001,USD,1M tokens,\n{make.MODEL},output_tokens,3.00,USD,1M tokens,\n".encode()
    for replace in (False, True):
        with store.read() as session:
            found = previewed(session, content, name="p.csv", period=Period(NOW - timedelta(days=60), NOW), now=LATER, replace=replace)
        (at_once,), (accepted,) = found.rows, found.accepted
        assert (at_once.cost_now, at_once.cost_then) == (Decimal(2), Decimal("2.5"))
        # A tenth of a cent for input, 1.50 for output.
        assert (accepted.cost_now, accepted.cost_then) == (Decimal(2), Decimal("1.501"))
        (line,) = found.waiting
        assert line.startswith(f"{make.MODEL} input_tokens: 0.001 USD per 1M tokens is about 1,000 times less than the 1 USD per 1M tokens in use")


def test_a_preview_that_replaces_keeps_what_the_file_repeats(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.owner(session)
        make.event(session, time=datetime(2026, 11, 10, 8, tzinfo=UTC), input_tokens=1_000_000, output_tokens=500_000)
    imported(sqlite_store, f"{make.MODEL},input_tokens,1.00,USD,1M tokens,", f"{make.MODEL},output_tokens,2.00,USD,1M tokens,")
    content = f"{HEADER}{make.MODEL},input_tokens,1.00,USD,1M tokens,\n".encode()
    with sqlite_store.read() as session:
        found = previewed(session, content, name="p.csv", period=Period(NOW - timedelta(days=60), NOW), now=LATER, replace=True)
    (row,) = found.rows
    assert (row.cost_now, row.cost_then, row.unpriced_then) == (Decimal(2), Decimal(1), 500_000)
