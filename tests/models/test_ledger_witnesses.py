"""Witnesses of usage: what counters and metrics saw beside what was counted, worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import Session

from collector import witnessing
from collector.capture.aggregates import REASON, Point, digest_of
from models import ledger
from models.columns import to_microseconds
from models.ledger import Filters, WitnessRow
from models.ledger.witnesses import Increment, increments, witness_problems
from models.periods import Period
from models.store import Store
from models.witnesses import WitnessTarget
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00
TODAY = Period(datetime(2026, 11, 20, tzinfo=UTC), NOW)
NEW, OLD = "gen_ai.client.inference.usage.{}_tokens", "gen_ai.client.token.usage"


def at(hour: int, minute: int = 0, *, day: int = 20) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC)


def point(when: datetime, value: int, measure: Any = "input", *, began: datetime | None = None, **overrides: Any) -> Point:
    facts: dict[str, Any] = {
        "kind": "vllm",
        "name": f"vllm:{measure}",
        "temporality": "cumulative",
        "service": "ws-east/llama-online/blue",
        "workspace": "ws-east",
        "endpoint": "llama-online",
        "deployment": "blue",
    } | overrides
    digest = facts.pop("digest", None) or digest_of(measure, facts["name"], facts["service"], facts["deployment"], facts.pop("engine", "0"))
    started = None if began is None else to_microseconds(began)
    return Point(REASON, measure=measure, digest=digest, time=to_microseconds(when), started_at=started, value=value, **facts)


def otlp(when: datetime, value: int, name: str, measure: Any = "input", **overrides: Any) -> Point:
    facts = {"kind": "otlp", "name": name, "service": "invoice-rag", "application": "invoice-rag", "endpoint": None, "deployment": "llama-chat"}
    return point(when, value, measure, **facts | overrides)


def rows(session: Session, period: Period = TODAY, granularity: Any = "day", *, visible: frozenset[str] | None = None) -> list[WitnessRow]:
    return ledger.witness_rows(session, period, granularity=granularity, filters=Filters(visible=visible), now=NOW)


def told(session: Session, **asked: Any) -> list[tuple[Any, ...]]:
    return [(row.deployment, row.measure, row.scope, row.witnessed, row.counted, row.share, row.disagrees) for row in rows(session, **asked)]


# --- increments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([(0, 10, 100), (0, 20, 130)], [(10, 20, 30)], id="the first value of an unknown beginning says only where it stands"),
        pytest.param([(5, 10, 100), (5, 20, 130)], [(5, 10, 100), (10, 20, 30)], id="a known beginning counts from there"),
        pytest.param([(0, 10, 100), (0, 20, 7), (0, 30, 9)], [(10, 20, 7), (20, 30, 2)], id="a value that falls began again"),
        pytest.param([(5, 10, 100), (12, 20, 110)], [(5, 10, 100), (12, 20, 110)], id="another beginning is another run, even if it is higher"),
        pytest.param([(5, 10, 1), (6, 11, 2), (5, 20, 4), (6, 21, 6)], [(5, 10, 1), (10, 20, 3), (6, 11, 2), (11, 21, 4)], id="two workers under one name"),
        pytest.param([(0, 20, 130), (0, 10, 100)], [(10, 20, 30)], id="in whatever order they came"),
    ],
)
def test_the_increments_of_a_counter(points: list[tuple[int, int, int]], expected: list[tuple[int, int, int]]) -> None:
    assert list(increments(points, is_cumulative=True)) == [Increment(*one) for one in expected]


def test_the_increments_of_a_delta_are_its_values() -> None:
    assert list(increments([(0, 20, 3), (5, 10, 4)], is_cumulative=False)) == [Increment(20, 20, 3), Increment(5, 10, 4)]


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 1000)), min_size=1, max_size=20, unique_by=lambda one: one[0]))
def test_a_counter_that_begins_again_loses_nothing_it_told(steps: list[tuple[int, int]]) -> None:
    """Whatever the values are, increments are never negative, and a run with a beginning adds up to its last value."""
    points = [(1, time, value) for time, value in sorted(steps)]
    assert all(one.value >= 0 for one in increments(points, is_cumulative=True))
    rising = [(1, time, index * 10) for index, (time, _) in enumerate(sorted(steps))]
    assert sum(one.value for one in increments(rising, is_cumulative=True)) == rising[-1][2]


# --- beside the count --------------------------------------------------------------------------------------------


def usage_of(session: Session, *events: tuple[datetime, int, int], **of: Any) -> None:
    series = make.series(session, **{"deployment": "blue", "endpoint": "llama-online"} | of)
    for when, sent, got in events:
        make.event(session, series, time=when, input_tokens=sent, output_tokens=got)


def test_a_deployments_own_counters_agree_or_do_not(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.managed(session)
        usage_of(session, (at(9, 5), 1000, 200), (at(9, 30), 500, 90))
    told_twice = [point(at(8, 59), 4000, began=at(0)), point(at(9, 59), 5500, began=at(0)), point(at(9, 59), 900, "output", began=at(9))]
    for _ in range(2):
        witnessing.keep(store, told_twice, now=NOW)
    with store.read() as session:
        (hour,) = [row for row in rows(session, Period(at(9), NOW), "hour") if row.measure == "output"]
    assert (hour.workspace, hour.deployment, hour.witnessed, hour.counted, hour.difference) == ("ws-east", "llama-online/blue", 900, 290, 610)
    assert (hour.share, hour.disagrees) == (Decimal("2.1034"), True)
    with store.read() as session:
        hours = {row.period.start.hour: row.witnessed for row in rows(session, TODAY, "hour") if row.measure == "input"}
        (day,) = [row.witnessed for row in rows(session) if row.measure == "input"]
    # 4,000 lie evenly over 0:00 to 8:59; of the 1,500 until 9:59 one minute of sixty is still in the eighth hour.
    assert sum(hours.values()) == day == 5500
    assert (hours[9], hours[0]) == (1475, 445)


def test_engines_add_up_and_a_restart_is_no_negative_usage(store: Store) -> None:
    with store.write() as session:
        usage_of(session, (at(9, 5), 600, 1))
    witnessing.keep(
        store,
        [
            *(point(at(9, minute), value, engine="0") for minute, value in ((0, 9000), (10, 9400), (20, 150))),  # restarted in between
            *(point(at(9, minute), value, engine="1") for minute, value in ((0, 70), (20, 120))),
            point(at(9), 0, "preemptions", name="vllm:num_preemptions_total"),
            point(at(9, 20), 2, "preemptions", name="vllm:num_preemptions_total"),
        ],
        now=NOW,
    )
    with store.read() as session:
        (row,) = rows(session)
    assert (row.witnessed, row.counted, row.disagrees) == (400 + 150 + 50, 600, False)
    assert row.note == "2 preemptions: work that was begun again is in these counters"


@pytest.mark.parametrize(("witnessed", "disagrees"), [(1020, False), (1021, True), (980, False), (979, True), (0, True)])
def test_beyond_two_percent_somebody_should_look(store: Store, witnessed: int, disagrees: bool) -> None:
    with store.write() as session:
        usage_of(session, (at(9), 1000, 1))
    witnessing.keep(store, [point(at(9, 30), witnessed, began=at(9))], now=NOW)
    with store.read() as session:
        assert [row.disagrees for row in rows(session)] == [disagrees]
        found = witness_problems(session, visible=None, now=NOW)
        everything = ledger.problems(session, visible=None, now=NOW)
    assert [one.kind for one in found] == ["witness_disagrees"] * disagrees
    assert ("witness_disagrees" in {one.kind for one in everything}) is disagrees


def test_a_problem_says_where_when_and_by_how_much(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        usage_of(session, (at(9), 1000, 1))
    witnessing.keep(sqlite_store, [point(at(9, 30), 1100, began=at(9))], now=NOW)
    with sqlite_store.read() as session:
        (found,) = witness_problems(session, visible=None, now=NOW)
        assert witness_problems(session, visible=frozenset({"ws-west"}), now=NOW) == []
    assert found.subject == "ws-east / llama-online/blue: vllm ws-east/llama-online/blue"
    assert found.detail == "on 2026-11-20 it saw 1,100 input tokens and 1,000 were counted (more by 100, 10.0 %)"
    assert found.count == 100


def test_of_two_names_of_one_fact_the_newest_speaks(sqlite_store: Store) -> None:
    """A service in transition sends the histogram of old and the counters of today side by side."""
    with sqlite_store.write() as session:
        usage_of(session, (at(9, 10), 640, 512), deployment="llama-chat", endpoint="", application="invoice-rag")
    points = [
        otlp(at(9, 20), 640, OLD, began=at(9)),
        otlp(at(9, 20), 512, OLD, "output", began=at(9)),
        otlp(at(9, 20), 640, NEW.format("input"), began=at(9)),
        otlp(at(9, 20), 0, NEW.format("output"), "output", began=at(9)),  # a counter that was registered and never used
    ]
    witnessing.keep(sqlite_store, points, now=NOW)
    with sqlite_store.read() as session:
        assert told(session) == [
            ("llama-chat", "input", "application", 640, 640, Decimal("0.0000"), False),
            ("llama-chat", "output", "application", 512, 512, Decimal("0.0000"), False),
        ]


def test_a_service_is_compared_with_its_own_calls_else_with_at_least_all(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        usage_of(session, (at(9), 5000, 1), deployment="llama-chat", endpoint="")
    witnessing.keep(sqlite_store, [otlp(at(9, 20), 640, OLD, began=at(9))], now=NOW)
    with sqlite_store.read() as session:
        # Nobody counts under its name: 640 of 5,000 are fine, more than all would not be.
        assert told(session) == [("llama-chat", "input", "at_least", 640, 5000, Decimal("0.0000"), False)]
    witnessing.keep(sqlite_store, [otlp(at(9, 40), 6000, OLD, began=at(9))], now=NOW)
    with sqlite_store.read() as session:
        assert told(session) == [("llama-chat", "input", "at_least", 6000, 5000, Decimal("0.2000"), True)]


def test_a_witness_without_a_workspace_is_placed_where_there_is_one_choice(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.serverless(session)
        usage_of(session, (at(9), 920, 73), deployment="llama-chat", endpoint="")
    gateway = point(at(9, 1), 920, kind="appinsights", name="Prompt Tokens", temporality="delta", workspace=None, endpoint=None, deployment="LLAMA-chat")
    witnessing.keep(sqlite_store, [gateway], now=NOW)
    with sqlite_store.read() as session:
        assert told(session) == [("llama-chat", "input", "at_least", 920, 920, Decimal("0.0000"), False)]
        assert told(session, visible=frozenset({"ws-west"})) == []


def test_old_points_are_let_go(sqlite_store: Store) -> None:
    witnessing.keep(sqlite_store, [point(NOW - timedelta(days=100), 5), point(at(9), 9)], now=NOW)
    witnessing.forget_old(sqlite_store, NOW)
    with sqlite_store.read() as session:
        assert session.connection().exec_driver_sql("SELECT value FROM witness_point").scalars().all() == [9]


def test_a_target_that_does_not_answer_is_a_problem_after_ten_minutes(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        session.add(WitnessTarget(name="ws-east/e/gone", asked_at=NOW, answered_at=NOW - timedelta(minutes=11), failure="ConnectError (h:1)"))
        session.add(WitnessTarget(name="ws-east/e/short", asked_at=NOW, answered_at=NOW - timedelta(minutes=9), failure="it answered 503"))
        session.add(WitnessTarget(name="ws-west/e/never", asked_at=NOW, failure="it answered 404"))
    with sqlite_store.read() as session:
        found = witness_problems(session, visible=None, now=NOW)
        own = witness_problems(session, visible=frozenset({"ws-west"}), now=NOW)
    assert [(one.kind, one.subject, one.detail) for one in found] == [
        ("witness_unreachable", "ws-east/e/gone", "its counters last answered at 2026-11-20 09:49 UTC: ConnectError (h:1)"),
        ("witness_unreachable", "ws-west/e/never", "its counters have not answered yet: it answered 404"),
    ]
    assert [one.subject for one in own] == ["ws-west/e/never"]
