"""Stored events as a list and as receipts."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import Session

from models import ledger
from models.charges import ChargeClass
from models.errors import Conflict, InvalidInput, NotFound
from models.ledger import Filters
from models.periods import Period
from models.prices import PriceMeter
from models.store import Store
from models.usage import Operation, UsageSeries
from tests import factories as make

NOW = make.NOW
PERIOD = Period(datetime(2026, 11, 1, tzinfo=UTC), NOW)


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, tzinfo=UTC)


def stored(session: Session, series: UsageSeries, event_id: str, **more: Any) -> None:
    """An event that is found by its own id."""
    make.event(session, series, event_id=event_id, **more)


def test_the_list_is_newest_first_in_pages_and_within_the_callers_workspaces(store: Store) -> None:
    with store.write() as session:
        for number in range(1, 6):
            make.event(session, time=at(min(number, 4)), event_id=f"e{number}")
        make.event(session, make.series(session, workspace_name="ws-b"), time=at(2), event_id="other")
    mine = Filters(visible=frozenset({"ws-east"}))
    with store.read() as session:
        seen, cursor = [], None
        while True:
            page = ledger.usage_list(session, period=PERIOD, filters=mine, limit=2, cursor=cursor, now=NOW)
            seen.append([one.id for one in page.items])
            cursor = page.next_cursor
            if cursor is None:
                break
        with pytest.raises(InvalidInput, match="cursor"):
            ledger.usage_list(session, period=PERIOD, filters=mine, limit=2, cursor="x", now=NOW)
    assert seen == [["e5", "e4"], ["e3", "e2"], ["e1"]]


def test_a_receipt_is_quantity_times_price_and_a_share_of_the_days_bill(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.price(session, PriceMeter.INPUT_TOKENS, "1.00", version="v1")
        make.price(session, PriceMeter.CACHED_INPUT_TOKENS, "0.10", version="v2")
        series = make.series(session, deployment="llama-foundry")
        stored(session, series, "mine", time=at(10, 9), input_tokens=1000, cached_input_tokens=400, output_tokens=70)
        make.event(session, series, time=at(10, 8), input_tokens=1800, output_tokens=0)
        make.charge(session, make.bill_part(session), make.charge_item(session, ChargeClass.FOUNDRY), "2.40")
    with store.read() as session:
        found = ledger.receipt(session, "mine", workspace=None, source=None, visible=None, now=NOW)
        again = ledger.receipt(session, found.record.handle, workspace="ws-east", source="default", visible=frozenset({"ws-east"}), now=NOW)
        with pytest.raises(NotFound):
            ledger.receipt(session, "mine", workspace=None, source=None, visible=frozenset({"else"}), now=NOW)
    lines = {line.meter: (line.quantity, line.unit_price, line.amount, line.price_version, line.reason) for line in found.lines}
    assert lines["input"] == (600, Decimal("1.00"), Decimal("0.0006"), "v1", None)
    assert lines["cached_input"] == (400, Decimal("0.10"), Decimal("0.00004"), "v2", None)
    assert lines["output"][:4] == (70, None, None, None)
    assert "output_tokens" in (lines["output"][4] or "")
    assert (found.expected_cost, found.currency) == (Decimal("0.00064"), "USD")
    # 600 of the day's 2,400 uncached input tokens.
    assert (found.billed_share, found.billed_on) == (Decimal("0.6"), date(2026, 11, 10))
    assert again == found


def test_a_receipt_says_why_tokens_have_no_price_of_their_own(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, "vm")
        make.price(session, PriceMeter.INSTANCE_HOURS, "3")
        make.token_prices(session, "1", "1")
        make.price(session, PriceMeter.TRAINING_TOKENS, "3")
        stored(session, make.series(session, deployment="vm"), "vm")
        stored(session, make.series(session), "free", billable=False)
        stored(session, make.series(session, operation=Operation.FINE_TUNING.value), "tuned", input_tokens=10, output_tokens=5)
    with sqlite_store.read() as session:
        vm, free, tuned = (ledger.receipt(session, name, workspace=None, source=None, visible=None, now=NOW) for name in ("vm", "free", "tuned"))
    assert {(line.amount, line.reason) for line in vm.lines} == {(None, "managed compute is billed by instance-hours, not by tokens")}
    assert (vm.expected_cost, vm.billed_share) == (None, None)
    assert {(line.quantity, line.reason) for line in free.lines} == {(0, "the sender says this call is not billable")}
    assert [(line.meter, line.quantity, line.amount) for line in tuned.lines] == [("training", 15, Decimal("0.000045"))]


def test_an_id_that_several_events_have_needs_to_be_narrowed(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        for name in ("ws-a", "ws-b"):
            stored(session, make.series(session, workspace_name=name), "same")
    with sqlite_store.read() as session:
        with pytest.raises(Conflict, match="workspace=ws-a"):
            ledger.receipt(session, "same", workspace=None, source=None, visible=None, now=NOW)
        assert ledger.receipt(session, "same", workspace="ws-b", source=None, visible=None, now=NOW).record.workspace == "ws-b"
        # Who sees one of them knows of no other.
        assert ledger.receipt(session, "same", workspace=None, source=None, visible=frozenset({"ws-a"}), now=NOW).record.workspace == "ws-a"


def test_the_list_is_filtered_by_what_was_so_at_the_time_of_the_event(store: Store) -> None:
    with store.write() as session:
        series = make.series(session, application="chat")
        make.owner(session, application="chat", team="red", valid_to=at(15))
        make.owner(session, application="chat", team="blue", valid_from=at(15))
        make.event(session, series, event_id="early", time=at(10))
        make.event(session, series, event_id="late", time=at(16))
    with store.read() as session:

        def ids(team: str) -> list[str]:
            page = ledger.usage_list(session, period=Period(at(1), at(20)), filters=Filters(teams=(team,)), limit=10, cursor=None, now=NOW)
            return [item.id for item in page.items]

        assert (ids("red"), ids("blue"), ids("green")) == (["early"], ["late"], [])
        red = ledger.costs(session, ledger.CostQuery(Period(at(1), at(20)), "none", filters=Filters(teams=("red",))), now=NOW)
        assert sum(total.requests for total in red.totals) == 1
