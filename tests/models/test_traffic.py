"""Calls that name an endpoint of several deployments are shared by the endpoint's traffic: exactly, and marked."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import Session

from models import audit, ledger, traffic
from models.audit import Question
from models.charges import ChargeClass
from models.ledger import CostQuery, CostTable, Filters
from models.periods import Period
from models.prices import PriceMeter
from models.quotas import EndpointFact
from models.store import Store
from tests import factories as make

NOW = make.NOW
# The number of its quarter hour since 1970 ends in 00: unit n goes to lot n x 61 of a hundred.
EVEN = datetime(2026, 11, 10, 17, tzinfo=UTC)
DAYS = Period(datetime(2026, 11, 10, tzinfo=UTC), datetime(2026, 11, 12, tzinfo=UTC))


def endpoint(session: Session, shares: dict[str, Any], **overrides: Any) -> None:
    facts = {"workspace": "ws-east", "endpoint": "llama-online", "subscription_id": make.SUBSCRIPTION, "traffic": shares}
    session.add(EndpointFact(**facts | {"known_from": make.LONG_AGO, "seen_at": make.LONG_AGO} | overrides))


def asked(session: Session, *group_by: str, period: Period = DAYS, granularity: Any = "none", **more: Any) -> CostTable:
    return ledger.costs(session, CostQuery(period, granularity, group_by, **more), now=NOW)


def counts(table: CostTable) -> dict[Any, Any]:
    return {tuple(row.groups.values()): (row.figures.requests, row.figures.input_tokens, row.figures.output_tokens, row.figures.estimate) for row in table.rows}


@pytest.fixture
def world(store: Store) -> Store:
    with store.write() as session:
        make.workspace_fact(session)
        for name in ("blue", "green"):
            make.managed(session, f"llama-online/{name}", valid_from=DAYS.start)
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.00")
        endpoint(session, {"blue": 90, "green": 10})
        series = make.series(session, endpoint="llama-online", deployment="", application="chat")
        for number in range(20):
            make.event(session, series, time=EVEN, input_tokens=1000, output_tokens=1 if number < 15 else 0)
    return store


def test_traffic_shares_calls_tokens_and_says_that_it_did(world: Store) -> None:
    with world.read() as session:
        table = asked(session, "deployment")
        (whole,) = asked(session).rows
    # Of twenty units those numbered 13 and 18 fall to the last ten lots; of fifteen the first of them; of 20,000 two thousand.
    assert counts(table) == {("llama-online/blue",): (18, 18_000, 14, True), ("llama-online/green",): (2, 2_000, 1, True)}
    assert (whole.figures.requests, whole.figures.input_tokens, whole.figures.output_tokens) == (20, 20_000, 15)


def test_who_is_named_is_believed_and_only_the_others_are_shared(world: Store) -> None:
    with world.write() as session:
        make.event(session, make.series(session, endpoint="llama-online", deployment="green"), time=EVEN, input_tokens=7, output_tokens=1)
        # An endpoint that inventory has one deployment of needs no shares.
        make.managed(session, "solo/one", valid_from=DAYS.start)
        endpoint(session, {"one": 100}, endpoint="solo")
        make.event(session, make.series(session, endpoint="solo", deployment=""), time=EVEN, input_tokens=5, output_tokens=0)
    with world.read() as session:
        found = counts(asked(session, "deployment"))
        green = counts(asked(session, "deployment", filters=Filters(deployments=("green",))))
    assert found["llama-online/green",] == (3, 2_007, 2, True)
    assert found["solo/one",] == (1, 5, 0, False)
    assert green == {("llama-online/green",): (3, 2_007, 2, True)}


@pytest.mark.parametrize("shares", [{}, {"blue": 0, "green": 0}, {"blue": 50, "green": 40}, {"blue": "90", "green": "10"}, {"blue": 110, "green": -10}])
def test_traffic_that_says_nothing_shares_nothing(sqlite_store: Store, shares: dict[str, Any]) -> None:
    with sqlite_store.write() as session:
        for name in ("blue", "green"):
            make.managed(session, f"llama-online/{name}", valid_from=DAYS.start)
        endpoint(session, shares)
        make.event(session, make.series(session, endpoint="llama-online", deployment=""), time=EVEN)
    with sqlite_store.read() as session:
        found = counts(asked(session, "deployment"))
    assert found["llama-online",] == (1, 1000, 200, False)


def test_each_call_is_shared_as_the_traffic_was_seen_in_its_time(world: Store) -> None:
    later = datetime(2026, 11, 11, 8, tzinfo=UTC)
    with world.write() as session:
        series = make.series(session, endpoint="LLAMA-online", deployment="")
        endpoint(session, {"blue": 0, "green": 100}, known_from=later, seen_at=later)
        for hour in (7, 8):
            make.event(session, series, time=later.replace(hour=hour, minute=30), input_tokens=100, output_tokens=0)
    with world.read() as session:
        day = Period(later.replace(hour=0), later.replace(day=12, hour=0))
        hours = {
            row.period.start.hour: (row.groups["deployment"], row.figures.input_tokens)
            for row in asked(session, "deployment", period=day, granularity="hour").rows
            if row.figures.input_tokens > 50
        }
        # What was known before inventory looked again.
        before = counts(asked(session, "deployment", period=day, as_of=NOW)), counts(asked(session, "deployment", period=day, as_of=later))
    assert hours == {7: ("llama-online/blue", 90), 8: ("llama-online/green", 100)}
    assert before[0]["llama-online/green",][1] == 110
    assert before[1]["llama-online/green",][1] == 10


def test_hours_add_up_to_days_and_the_plain_way_agrees(world: Store) -> None:
    with world.write() as session:
        part = make.bill_part(session)
        for name in ("blue", "green"):
            item = make.charge_item(session, ChargeClass.COMPUTE, deployment=name)
            make.charge(session, part, item, "72.50", charged_on=EVEN.date(), quantity="24")
        series = make.series(session, endpoint="llama-online", deployment="llama-online", application="search")
        for number in range(60):
            at = EVEN.replace(hour=number % 20, minute=number % 60)
            make.event(session, series, time=at, input_tokens=17 + number, output_tokens=None if number % 7 == 0 else 3, cached_input_tokens=number % 5)
    with world.read() as session:
        hours = asked(session, "deployment", "application", granularity="hour").rows
        days = asked(session, "deployment", "application").rows

        def ask(question: Question) -> CostTable:
            basis = next(one for one in ledger.BASES if one == question.basis)
            return ledger.costs(session, CostQuery(question.period, question.granularity, question.group_by, basis, as_of=question.as_of), now=NOW)

        verified = audit.verify(session, now=NOW, ask=ask)
    assert verified.lines() == []
    for day in days:
        own = [row.figures for row in hours if row.groups == day.groups]
        for name in ("requests", "input_tokens", "output_tokens", "unknown_token_requests"):
            assert sum(getattr(one, name) for one in own) == getattr(day.figures, name), name
        assert sum((one.billed_cost or Decimal(0) for one in own), Decimal(0)) == day.figures.billed_cost or day.figures.billed_cost is None
    assert {row.groups["application"] for row in days if row.figures.billed_cost} == {"chat", "search"}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(0, 3_000), st.integers(0, 10_000))
def test_parts_add_up_never_shrink_and_are_fair(cuts: list[int], count: int, quarter: int) -> None:
    edges = sorted({0, 100, *cuts})
    parts = [traffic.part(count, quarter=quarter, begin=begin, end=end) for begin, end in itertools.pairwise(edges)]
    more = [traffic.part(count + 1, quarter=quarter, begin=begin, end=end) for begin, end in itertools.pairwise(edges)]
    assert sum(parts) == count
    assert sum(more) == count + 1
    assert all(left <= right for left, right in zip(parts, more, strict=True))
    # Single calls of a hundred quarter hours in a row go round.
    round_trip = [sum(traffic.part(1, quarter=quarter + n, begin=begin, end=end) for n in range(100)) for begin, end in itertools.pairwise(edges)]
    assert round_trip == [end - begin for begin, end in itertools.pairwise(edges)]
    assert [traffic.part(-count, quarter=quarter, begin=begin, end=end) for begin, end in itertools.pairwise(edges)] == [-part for part in parts]
