"""Accepting usage: what is counted, what is met again, what is refused, and what is left on the disk."""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.capture.event import CapturedEvent, Ignored, Item, Refusal
from collector.ingest import Batch, Ingest, Rejected, StoredCall, Verdict, commit, names, queue
from models import ledger
from models.columns import to_microseconds
from models.errors import Unavailable
from models.identities import Identities
from models.ledger import CostQuery
from models.periods import Period
from models.store import Store
from models.usage import Flag, Operation, Quality, Status
from tests import factories

SEEDS = int(os.environ.get("METERBRIDGE_TEST_SEEDS", "25"))
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ROLLUP = "requests, input_tokens, output_tokens, cached_input_tokens, reasoning_output_tokens, unknown_requests, estimated_requests"


@dataclass
class Clock:
    at: datetime = NOW

    def __call__(self) -> datetime:
        return self.at


def call(event_id: str | None = "call-1", time: datetime | None = NOW - MINUTE, **overrides: Any) -> CapturedEvent:
    facts: dict[str, Any] = {
        "workspace": "ws-east",
        "deployment": "llama-chat",
        "model": "Llama-3.3-70B-Instruct",
        "input_tokens": 1000,
        "output_tokens": 200,
        "is_native_time": True,
    }
    return CapturedEvent(event_id, None if time is None else to_microseconds(time), **facts | overrides)


@contextmanager
def running(store: Store, now: Callable[[], datetime] = lambda: NOW) -> Iterator[Ingest]:
    ingest = Ingest(store, now=now)
    ingest.start()
    try:
        yield ingest
    finally:
        ingest.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ingest(store: Store, clock: Clock) -> Iterator[Ingest]:
    with running(store, clock) as found:
        yield found


def rows(store: Store, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    with store.read() as session:
        return [tuple(row) for row in session.execute(sa.text(query), parameters)]


def count(store: Store, table: str) -> int:
    return int(rows(store, f"SELECT COUNT(*) FROM {table}")[0][0])


def outcome(verdict: Verdict) -> tuple[int, int, list[str]]:
    return verdict.accepted, verdict.duplicates, [one.error for one in verdict.rejected]


# -- met again --------------------------------------------------------------------------------------


def test_the_same_event_is_a_duplicate_for_ever(store: Store, ingest: Ingest, clock: Clock) -> None:
    assert outcome(ingest.accept(Batch([call()]))) == (1, 0, [])
    clock.at = NOW + 400 * DAY
    assert outcome(ingest.accept(Batch([call()]))) == (0, 1, [])
    assert count(store, "usage_event") == 1
    assert rows(store, "SELECT SUM(requests), SUM(input_tokens) FROM usage_quarter") == [(1, 1000)]


@pytest.mark.parametrize(
    "other",
    [
        {"input_tokens": 1001},
        {"output_tokens": None},
        {"model": "Llama-4-Maverick"},
        {"deployment": "llama-other"},
        {"status": Status.ERROR},
        {"billable": False},
        {"team": "search"},
        {"tags": {"env": "prod"}},
        {"operation": Operation.TEXT_COMPLETION},
        {"fine_tuned": True},
        {"details": {"user": "u-1"}},
        {"started_at": to_microseconds(NOW - 2 * MINUTE)},
        {"input_tokens": 1001, "time": NOW - 3 * DAY},
    ],
)
def test_the_same_id_with_other_content_is_a_conflict_and_the_first_stands(store: Store, ingest: Ingest, other: dict[str, Any]) -> None:
    ingest.accept(Batch([call()]))
    verdict = ingest.accept(Batch([call(**other)]))
    assert outcome(verdict) == (0, 0, ["conflict"])
    assert rows(store, "SELECT input_tokens, output_tokens FROM usage_event") == [(1000, 200)]
    assert count(store, "usage_conflict") == 1


def test_a_conflict_sent_a_hundred_times_is_one_piece_of_evidence(store: Store, ingest: Ingest) -> None:
    ingest.accept(Batch([call()]))
    for _ in range(3):
        ingest.accept(Batch([call(input_tokens=7)] * 30))
    assert rows(store, "SELECT c.stands_seq = e.seq, c.sent FROM usage_conflict c, usage_event e")[0][0] in (True, 1)
    assert count(store, "usage_conflict") == 1
    assert '"input_tokens":7' in rows(store, "SELECT sent FROM usage_conflict")[0][0]


def test_duplicates_and_conflicts_inside_one_batch(store: Store, ingest: Ingest) -> None:
    verdict = ingest.accept(Batch([call(), call(), call(input_tokens=7), call("call-2"), call(input_tokens=7)]))
    assert outcome(verdict) == (2, 1, ["conflict", "conflict"])
    assert [one.index for one in verdict.rejected] == [2, 4]
    assert [(one.index, one.is_duplicate) for one in verdict.stored] == [(0, False), (1, True), (3, False)]
    assert rows(store, "SELECT stands_seq FROM usage_conflict") == rows(store, "SELECT seq FROM usage_event WHERE event_id = 'call-1'")


def test_equal_content_within_an_hour_is_a_restamped_retry(store: Store, ingest: Ingest) -> None:
    ingest.accept(Batch([call(time=NOW - 2 * HOUR)]))
    verdict = ingest.accept(Batch([call(time=NOW - HOUR)]))
    assert outcome(verdict) == (0, 1, [])
    assert verdict.body()["events"] == [{"index": 0, "duplicate": True, "flags": ["restamped"], "tokens_quality": "reported"}]
    assert count(store, "usage_event") == 1


def test_equal_content_farther_apart_is_another_call_and_both_are_met_again(store: Store, ingest: Ingest) -> None:
    apart = HOUR + timedelta(microseconds=1)
    assert outcome(ingest.accept(Batch([call(time=NOW - apart)]))) == (1, 0, [])
    assert outcome(ingest.accept(Batch([call(time=NOW)]))) == (1, 0, [])
    assert outcome(ingest.accept(Batch([call(time=NOW - apart), call(time=NOW)]))) == (0, 2, [])
    assert rows(store, "SELECT SUM(requests) FROM usage_quarter") == [(2,)]


def test_an_event_without_a_time_keeps_that_of_its_first_arrival(store: Store, ingest: Ingest, clock: Clock) -> None:
    first = ingest.accept(Batch([call(time=None, is_native_time=False)]))
    assert first.body()["events"][0]["flags"] == ["time_received"]
    clock.at = NOW + 3 * DAY
    assert outcome(ingest.accept(Batch([call(time=None, is_native_time=False)]))) == (0, 1, [])
    assert rows(store, "SELECT time FROM usage_event") == [(to_microseconds(NOW),)]


def test_an_event_without_an_id_is_known_by_what_it_says(store: Store, ingest: Ingest) -> None:
    assert outcome(ingest.accept(Batch([call(None), call(None), call(None, tags={"env": "prod"}), call(None, fine_tuned=True)]))) == (3, 1, [])
    assert {flags & Flag.SYNTHETIC_ID for (flags,) in rows(store, "SELECT flags FROM usage_event")} == {Flag.SYNTHETIC_ID}


def test_identity_is_workspace_source_and_id(store: Store, ingest: Ingest) -> None:
    batch = Batch([call(), call(source="gateway"), call(workspace="ws-west"), call("Call-1")])
    assert outcome(ingest.accept(batch)) == (4, 0, [])
    assert outcome(ingest.accept(batch)) == (0, 4, [])


# -- time -------------------------------------------------------------------------------------------


def test_a_clock_ahead_is_stored_at_arrival_and_its_retry_is_met(store: Store, ingest: Ingest, clock: Clock) -> None:
    ahead = call(time=NOW + 5 * MINUTE + timedelta(microseconds=1))
    assert ingest.accept(Batch([ahead])).body()["events"][0]["flags"] == ["clock_skew"]
    assert rows(store, "SELECT time, sent_time FROM usage_event") == [(to_microseconds(NOW), to_microseconds(NOW + 5 * MINUTE) + 1)]
    clock.at = NOW + 20 * MINUTE
    again = ingest.accept(Batch([ahead]))
    assert outcome(again) == (0, 1, [])
    assert again.body()["events"][0]["flags"] == ["clock_skew"]
    assert rows(store, "SELECT SUM(requests) FROM usage_minute") == [(1,)]


def test_five_minutes_ahead_is_still_the_senders_own_time(store: Store, ingest: Ingest) -> None:
    verdict = ingest.accept(Batch([call(time=NOW + 5 * MINUTE)]))
    assert verdict.stored[0].flags == 0
    assert rows(store, "SELECT time, sent_time FROM usage_event") == [(to_microseconds(NOW + 5 * MINUTE), None)]


def test_more_than_thirty_days_ahead_is_refused_of_a_native_sender_only(store: Store, ingest: Ingest) -> None:
    far = NOW + 30 * DAY + timedelta(seconds=1)
    native = ingest.accept(Batch([call(time=far)]))
    assert outcome(native) == (0, 0, ["invalid_time"])
    assert (count(store, "workspace"), count(store, "usage_source")) == (0, 0)
    foreign = ingest.accept(Batch([call(time=far, is_native_time=False)]))
    assert foreign.body()["events"][0]["flags"] == ["clock_skew"]
    assert outcome(ingest.accept(Batch([call("call-2", time=NOW + 30 * DAY)]))) == (1, 0, [])


def test_a_late_event_keeps_its_own_time_and_is_known_from_today(store: Store, ingest: Ingest) -> None:
    ingest.accept(Batch([call(time=datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC))]))
    quarter = int(datetime(2024, 2, 29, 23, 45, tzinfo=UTC).timestamp())
    assert rows(store, "SELECT starts_at, known_on, outcome, requests FROM usage_quarter") == [(quarter, 20_777, 1, 1)]
    assert rows(store, "SELECT starts_at FROM usage_minute") == [(quarter + 14 * 60,)]


# -- where it belongs -------------------------------------------------------------------------------


def test_a_workspace_or_deployment_that_nobody_says_is_refused_by_name(store: Store, ingest: Ingest) -> None:
    verdict = ingest.accept(Batch([call(workspace=None), call(deployment=None), call("call-2")]))
    assert outcome(verdict) == (1, 0, ["schema_invalid", "schema_invalid"])
    assert [(one.index, one.detail.split(";")[0]) for one in verdict.rejected] == [
        (0, "workspace is missing, and the inventory names no single one for this deployment"),
        (1, "deployment is missing"),
    ]


def test_a_foreign_event_without_a_deployment_is_kept(store: Store, ingest: Ingest) -> None:
    assert outcome(ingest.accept(Batch([call(deployment=None, is_native_time=False)]))) == (1, 0, [])


def test_refused_events_leave_no_trace(store: Store, ingest: Ingest) -> None:
    refused: list[Item] = [
        call("a", workspace=None, source="s1"),
        call("b", deployment=None, source="s2"),
        call("c", workspace="ws-other", source="s3"),
        call("d", time=NOW + 31 * DAY, source="s4"),
        Refusal("malformed", "no JSON"),
        Ignored("not usage"),
    ]
    verdict = ingest.accept(Batch(refused, frozenset({"ws-east", "ws-west"})))
    assert (verdict.accepted, len(verdict.rejected), verdict.ignored) == (0, 5, 1)
    tables = ("usage_event", "usage_series", "usage_source", "usage_quarter", "usage_minute", "usage_conflict", "workspace", "workspace_fact")
    assert {table: count(store, table) for table in (*tables, "deployment_fact", "shard_binding")} == dict.fromkeys(
        (*tables, "deployment_fact", "shard_binding"), 0
    )


def test_a_conflicting_event_lists_no_deployment_of_its_own(store: Store, ingest: Ingest) -> None:
    ingest.accept(Batch([call()]))
    ingest.accept(Batch([call(deployment="llama-invented", model="Llama-9")]))
    assert count(store, "usage_series") == 1
    assert rows(store, "SELECT name, source FROM deployment_fact") == [("llama-chat", "usage")]


def test_usage_lists_its_deployment_once_unconfirmed(store: Store, ingest: Ingest) -> None:
    for number in range(3):
        ingest.accept(Batch([call(f"call-{number}", team=f"team-{number}", endpoint="llama-online", deployment="blue")]))
    assert rows(store, "SELECT workspace, name, endpoint, deployment, mode, source FROM deployment_fact") == [
        ("ws-east", "llama-online/blue", "llama-online", "blue", "unknown", "usage")
    ]
    assert rows(store, "SELECT workspace, source FROM workspace_fact") == [("ws-east", "usage")]


def test_the_registry_finds_the_workspace_and_it_stays(store: Store, ingest: Ingest) -> None:
    with store.write() as session:
        factories.serverless(session, "llama-chat", workspace="ws-east")
    assert outcome(ingest.accept(Batch([call(workspace=None)]))) == (1, 0, [])
    with store.write() as session:
        session.execute(sa.text("UPDATE deployment_fact SET workspace = 'ws-moved'"))
        factories.serverless(session, "llama-chat", workspace="ws-third")
    # Another process, which remembers nothing.
    with running(store) as fresh:
        assert outcome(fresh.accept(Batch([call(workspace=None), call("call-2", workspace=None)]))) == (1, 1, [])
    assert rows(store, "SELECT name FROM workspace") == [("ws-east",)]
    assert rows(store, "SELECT DISTINCT w.name FROM usage_event e JOIN workspace w ON w.id = e.workspace_id") == [("ws-east",)]


def test_a_deployment_name_in_two_workspaces_names_neither(store: Store, ingest: Ingest) -> None:
    with store.write() as session:
        factories.serverless(session, "llama-chat", workspace="ws-east")
        factories.serverless(session, "LLAMA-chat", workspace="ws-west")
    assert outcome(ingest.accept(Batch([call(workspace=None)]))) == (0, 0, ["schema_invalid"])
    assert count(store, "shard_binding") == 0


def test_the_only_deployment_of_a_workspace_is_meant_and_a_retry_is_met_when_there_are_two(store: Store, ingest: Ingest) -> None:
    with store.write() as session:
        factories.serverless(session, "llama-chat", workspace="ws-east")
    assert outcome(ingest.accept(Batch([call(deployment=None)]))) == (1, 0, [])
    assert rows(store, "SELECT deployment FROM usage_series") == [("llama-chat",)]
    with store.write() as session:
        factories.serverless(session, "llama-second", workspace="ws-east")
    assert outcome(ingest.accept(Batch([call(deployment=None), call("call-2", deployment=None)]))) == (0, 1, ["schema_invalid"])


def test_a_key_of_one_workspace_is_at_home_there(store: Store, ingest: Ingest) -> None:
    batch = Batch([call(workspace=None), call("call-2", workspace="ws-west")], frozenset({"ws-east"}), "ws-east")
    verdict = ingest.accept(batch)
    assert outcome(verdict) == (1, 0, ["forbidden_workspace"])
    assert verdict.rejected == [Rejected(1, "forbidden_workspace", "this key may not write usage of workspace 'ws-west'")]
    assert rows(store, "SELECT name FROM workspace") == [("ws-east",)]


def test_a_refusal_does_not_tell_which_workspace_the_registry_meant(store: Store, ingest: Ingest) -> None:
    with store.write() as session:
        factories.serverless(session, "llama-chat", workspace="ws-secret")
    for _ in range(2):
        verdict = ingest.accept(Batch([call(workspace=None)], frozenset({"ws-east", "ws-west"})))
        assert outcome(verdict) == (0, 0, ["forbidden_workspace"])
        assert "ws-secret" not in verdict.rejected[0].detail
    assert (count(store, "shard_binding"), count(store, "workspace")) == (0, 0)


# -- counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, (0, 1000, 200)),
        ({"input_tokens": None, "quality": Quality.MISSING}, (1, 0, 200)),
        ({"output_tokens": None, "quality": Quality.MISSING, "status": Status.INCOMPLETE}, (1, 1000, 0)),
        ({"output_tokens": None, "quality": Quality.MISSING, "status": Status.FILTERED}, (1, 1000, 0)),
        ({"input_tokens": None, "output_tokens": None, "status": Status.FILTERED}, (0, 0, 0)),
        ({"output_tokens": None, "quality": Quality.MISSING, "billable": False}, (0, 1000, 0)),
        ({"input_tokens": None, "output_tokens": None, "quality": Quality.MISSING, "status": Status.ERROR}, (0, 0, 0)),
        ({"input_tokens": None, "output_tokens": None, "quality": Quality.MISSING, "status": Status.THROTTLED}, (0, 0, 0)),
    ],
)
def test_unknown_tokens_are_counted_as_unknown_and_never_as_zero(store: Store, ingest: Ingest, overrides: dict[str, Any], expected: tuple[int, ...]) -> None:
    ingest.accept(Batch([call(**overrides)]))
    assert rows(store, "SELECT unknown_requests, input_tokens, output_tokens FROM usage_quarter") == [expected]
    assert rows(store, "SELECT is_unknown, input_tokens IS NULL FROM usage_event") == [(bool(expected[0]), overrides.get("input_tokens", 1000) is None)]


_events = st.builds(
    lambda number, minute, series, inputs, outputs, status, billable: call(
        f"call-{number}",
        NOW - minute * 7 * MINUTE,
        # All of a call follows from its number: another one under its id would be a conflict.
        workspace=("ws-east", "ws-west")[series % 2],
        deployment=("llama-chat", "llama-small", "llama-online")[series % 3],
        team=(None, "search")[series % 2],
        input_tokens=inputs,
        output_tokens=outputs,
        cached_input_tokens=None if inputs is None else inputs // 3,
        quality=Quality.MISSING if inputs is None or outputs is None else Quality.REPORTED,
        status=status,
        billable=billable,
    ),
    st.integers(0, 10**6),
    st.integers(0, 400),
    st.integers(0, 5),
    st.none() | st.integers(0, 10**9),
    st.none() | st.integers(0, 10**6),
    st.sampled_from(Status),
    st.booleans(),
)


def _by_hand(events: Sequence[CapturedEvent], seconds: int) -> dict[tuple[Any, ...], list[int]]:
    """The rollup of these events, counted one by one."""
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 7)
    for event in events:
        assert event.time is not None
        start = event.time // 1_000_000 // seconds * seconds
        into = sums[start, event.workspace, event.deployment, event.team or "", event.status.value, event.billable]
        answered = event.billable and event.status not in {Status.ERROR, Status.THROTTLED}
        added = (1, event.input_tokens or 0, event.output_tokens or 0, event.cached_input_tokens or 0, 0)
        for place, number in enumerate((*added, int(answered and event.quality is Quality.MISSING), 0)):
            into[place] += number
    return dict(sums)


def _stored(store: Store, table: str) -> dict[tuple[Any, ...], list[int]]:
    names = ["success", "error", "throttled", "filtered", "incomplete"]
    found = rows(
        store,
        f"SELECT r.starts_at, w.name, s.deployment, s.team, r.outcome, {', '.join('r.' + name for name in ROLLUP.split(', '))} FROM {table} r "
        "JOIN usage_series s ON s.id = r.series_id JOIN workspace w ON w.id = s.workspace_id",
    )
    return {(*row[:4], names[row[4] // 2], bool(row[4] % 2)): list(row[5:]) for row in found}


def _answers(store: Store) -> list[Any]:
    with store.read() as session:
        tables = [
            ledger.costs(session, CostQuery(Period(NOW - 3 * DAY, NOW + DAY), "hour", groups, "metered"), now=NOW)
            for groups in ((), ("workspace", "deployment", "team"))
        ]
    return [(table.rows, table.totals) for table in tables]


@settings(max_examples=15)
@given(st.lists(_events, min_size=1, max_size=40, unique_by=lambda event: event.id), st.randoms(use_true_random=False), st.data())
def test_any_order_repetition_and_batching_gives_the_same_rollups(
    tmp_path_factory: pytest.TempPathFactory, migrated_file: Path, events: list[CapturedEvent], random: Any, data: st.DataObject
) -> None:
    answers = []
    for shuffled in (False, True):
        sent = list(events)
        if shuffled:
            sent += data.draw(st.lists(st.sampled_from(events), max_size=40))
            random.shuffle(sent)
        file = tmp_path_factory.mktemp("rollups") / "t.db"
        file.write_bytes(migrated_file.read_bytes())
        store = Store(f"sqlite:///{file}")
        with store.write() as session:
            factories.token_prices(session, "0.71", "0.35")
        with running(store) as ingest:
            while sent:
                size = data.draw(st.integers(1, 15)) if shuffled else len(sent)
                verdict = ingest.accept(Batch(sent[:size]))
                assert not verdict.rejected
                sent = sent[size:]
        assert _stored(store, "usage_quarter") == _by_hand(events, 900)
        assert _stored(store, "usage_minute") == _by_hand(events, 60)
        answers.append(_answers(store))
        store.close()
    assert answers[0] == answers[1]


def test_a_figure_of_the_ledger_by_hand(store: Store, ingest: Ingest) -> None:
    with store.write() as session:
        factories.token_prices(session, "0.71", "0.35")
    ingest.accept(Batch([call(f"call-{number}") for number in range(10)] * 2))
    with store.read() as session:
        total = ledger.costs(session, CostQuery(Period(NOW - DAY, NOW), "none", (), "metered"), now=NOW).totals[0]
    # 10,000 input at 0.71 and 2,000 output at 0.35 a million.
    assert (total.requests, total.metered_cost) == (10, Decimal("0.0078"))


# -- the queue --------------------------------------------------------------------------------------


def test_a_full_queue_asks_to_come_back(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MAX_QUEUED_EVENTS", 3)
    ingest = Ingest(store, now=clock)
    first = ingest.submit(Batch([call("a"), call("b")]))
    with pytest.raises(Unavailable, match="2 events wait") as refused:
        ingest.submit(Batch([call("c"), call("d")]))
    assert refused.value.retry_after_seconds == 1
    ingest.start()
    assert first.result(30).accepted == 2
    assert ingest.accept(Batch([call("c"), call("d")])).accepted == 2
    ingest.stop()
    with pytest.raises(Unavailable, match="stopping"):
        ingest.submit(Batch([call("e")]))


def test_what_waits_is_committed_before_the_end(store: Store, clock: Clock) -> None:
    ingest = Ingest(store, now=clock)
    waiting = [ingest.submit(Batch([call(f"call-{number}")])) for number in range(5)]
    ingest.start()
    ingest.stop()
    assert [future.result(0).accepted for future in waiting] == [1] * 5
    assert not any(thread.name == "ingest" for thread in threading.enumerate())


def test_a_sender_that_gave_up_costs_neither_the_writer_nor_its_neighbours(store: Store, clock: Clock) -> None:
    ingest = Ingest(store, now=clock)
    given_up, kept = ingest.submit(Batch([call("a")])), ingest.submit(Batch([call("b")]))
    assert given_up.cancel()
    ingest.start()
    assert kept.result(30).accepted == 1
    assert ingest.accept(Batch([call("c")])).accepted == 1
    ingest.stop()
    assert rows(store, "SELECT event_id FROM usage_event ORDER BY event_id") == [("b",), ("c",)]


def test_a_request_given_up_during_its_commit_does_not_end_the_writer(store: Store) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> datetime:
        begun.set()
        assert go_on.wait(30)
        return NOW

    with running(store, slow) as ingest:
        future = ingest.submit(Batch([call("a")]))
        assert begun.wait(30)
        assert not future.cancel()
        go_on.set()
        assert future.result(30).accepted == 1
        assert ingest.accept(Batch([call("b")])).accepted == 1


def test_one_poisoned_batch_does_not_fail_its_neighbours(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    ingest = Ingest(store, now=clock)
    # No column holds it; the capture modules refuse it long before.
    futures = [ingest.submit(Batch([call("a")])), ingest.submit(Batch([call("b", input_tokens=2**70)])), ingest.submit(Batch([call("c")]))]
    ingest.start()
    assert [futures[0].result(30).accepted, futures[2].result(30).accepted] == [1, 1]
    with pytest.raises(Unavailable, match="the fault is in the service's log"):
        futures[1].result(30)
    ingest.stop()
    assert "usage could not be stored" in caplog.text
    assert rows(store, "SELECT event_id FROM usage_event ORDER BY event_id") == [("a",), ("c",)]
    assert rows(store, "SELECT SUM(requests) FROM usage_quarter") == [(2,)]


def test_a_store_that_is_away_is_said_and_comes_back_by_itself(sqlite_store: Store, clock: Clock) -> None:
    with running(sqlite_store, clock) as ingest:
        ingest.accept(Batch([call("a")]))
        with sqlite_store.write() as session:
            session.execute(sa.text("ALTER TABLE usage_event RENAME TO usage_away"))
        with pytest.raises(Unavailable, match="the database does not answer"):
            ingest.accept(Batch([call("b"), call("c", workspace="ws-new")]))
        with sqlite_store.write() as session:
            session.execute(sa.text("ALTER TABLE usage_away RENAME TO usage_event"))
        assert outcome(ingest.accept(Batch([call("a"), call("b"), call("c", workspace="ws-new")]))) == (2, 1, [])
    assert ingest.counters == {"accepted": 3, "duplicates": 1, "rejected": 0, "commits": 2, "failures": 1}


def test_postgresql_that_ends_every_session_is_met_again(postgresql_url: str, clock: Clock) -> None:
    store, other = Store(postgresql_url), Store(postgresql_url)
    with running(store, clock) as ingest:
        ingest.accept(Batch([call("a")]))
        with other.write() as session:
            session.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"))
        assert outcome(ingest.accept(Batch([call("a"), call("b")]))) == (1, 1, [])
    store.close()
    other.close()


def test_a_full_disk_is_unavailable_and_stores_nothing(sqlite_store: Store, clock: Clock) -> None:
    with running(sqlite_store, clock) as ingest:
        ingest.accept(Batch([call("a")]))
    sqlite_store.close()
    limit = 1  # raised by SQLite to what the file has

    def small_disk(connection: Any, _record: Any) -> None:
        if limit:
            connection.execute(f"PRAGMA max_page_count = {limit}")

    sa.event.listen(sqlite_store.engine, "connect", small_disk)
    with running(sqlite_store, clock) as ingest:
        with pytest.raises(Unavailable, match="full"):
            ingest.accept(Batch([call(f"b-{number}", tags={"note": "x" * 250}) for number in range(2000)]))
        limit = 0
        sqlite_store.close()
        with sqlite_store.write() as session:
            session.execute(sa.text("PRAGMA max_page_count = 4294967294"))
        # The same writer is well again.
        assert ingest.accept(Batch([call("a"), call("b-0")])).accepted == 1
    assert count(sqlite_store, "usage_event") == 2


# -- many at once -----------------------------------------------------------------------------------


def _race(ingests: Sequence[Ingest], batches: Sequence[Sequence[Item]]) -> Counter[str]:
    """Every batch sent through every writer in turn, eight at a time."""
    found: Counter[str] = Counter()
    barrier = threading.Barrier(8)

    def send(thread: int) -> list[Verdict]:
        barrier.wait(30)
        return [ingests[(thread + number) % len(ingests)].submit(Batch(batch)).result(120) for number, batch in enumerate(batches)]

    with ThreadPoolExecutor(8) as pool:
        for verdicts in pool.map(send, range(8)):
            for verdict in verdicts:
                found.update(accepted=verdict.accepted, duplicates=verdict.duplicates, rejected=len(verdict.rejected))
    return found


def test_eight_threads_with_overlapping_batches_count_each_event_once(store: Store, ingest: Ingest) -> None:
    events = [call(f"call-{number}", NOW - number * MINUTE, workspace=f"ws-{number % 3}") for number in range(120)]
    batches = [events[first : first + 40] for first in range(0, 120, 20)]
    found = _race([ingest], batches)
    assert found == Counter(accepted=120, duplicates=8 * sum(map(len, batches)) - 120, rejected=0)
    assert rows(store, "SELECT SUM(requests), SUM(input_tokens) FROM usage_quarter") == [(120, 120_000)]
    assert rows(store, "SELECT SUM(requests), SUM(input_tokens) FROM usage_minute") == [(120, 120_000)]


def test_two_processes_on_one_postgresql_count_each_event_once(postgresql_url: str) -> None:
    stores = [Store(postgresql_url), Store(postgresql_url)]
    events = [call(f"call-{number}", NOW - number * MINUTE, workspace=f"ws-{number % 3}", source=f"s{number % 2}") for number in range(120)]
    batches = [list(reversed(events[first : first + 40])) if first % 40 else events[first : first + 40] for first in range(0, 120, 20)]
    with running(stores[0]) as one, running(stores[1]) as two:
        found = _race([one, two], batches)
    assert found == Counter(accepted=120, duplicates=8 * sum(map(len, batches)) - 120, rejected=0)
    assert rows(stores[0], "SELECT SUM(requests) FROM usage_quarter") == [(120,)]
    assert rows(stores[0], "SELECT COUNT(*), COUNT(DISTINCT event_id) FROM usage_event") == [(120, 120)]
    assert rows(stores[0], "SELECT COUNT(*) FROM deployment_fact") == [(3,)]
    for store in stores:
        store.close()


@dataclass
class Ticking:
    """A clock on which every reading is another microsecond, as two processes have."""

    number: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> datetime:
        with self.lock:
            self.number += 1
            return NOW + timedelta(microseconds=self.number)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(lambda number, thread: call(f"c-{number}", None, is_native_time=False), id="untimed"),
        pytest.param(lambda number, thread: call(f"c-{number}", NOW + DAY), id="clock ahead"),
        pytest.param(lambda number, thread: call(f"c-{number}", NOW - thread * MINUTE), id="restamped"),
    ],
)
def test_a_retry_with_another_time_through_another_process_is_counted_once(postgresql_url: str, event: Callable[[int, int], CapturedEvent]) -> None:
    stores = [Store(postgresql_url), Store(postgresql_url)]
    clock = Ticking()
    barrier = threading.Barrier(2)

    def send(thread: int, ingest: Ingest) -> int:
        accepted = 0
        for number in range(25):
            barrier.wait(30)
            accepted += ingest.accept(Batch([event(number, thread)])).accepted
        return accepted

    with running(stores[0], clock) as one, running(stores[1], clock) as two, ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(send, 0, one), pool.submit(send, 1, two)]
        assert sum(future.result(120) for future in sent) == 25
    assert rows(stores[0], "SELECT SUM(requests) FROM usage_quarter") == [(25,)]
    for store in stores:
        store.close()


def test_an_event_is_on_the_disk_when_it_is_answered(sqlite_store: Store, clock: Clock) -> None:
    with running(sqlite_store, clock) as ingest:
        ingest.accept(Batch([call()]))
        with closing(sqlite3.connect(f"file:{sqlite_store.path}?mode=ro", uri=True)) as other:
            assert other.execute("SELECT COUNT(*) FROM usage_event").fetchone() == (1,)
        assert Path(f"{sqlite_store.path}-wal").stat().st_size > 0


def test_a_long_answer_lists_only_what_is_remarkable(sqlite_store: Store, clock: Clock) -> None:
    with running(sqlite_store, clock) as ingest:
        events = [call(f"call-{number}") for number in range(1500)]
        events[7] = msgspec.structs.replace(events[7], time=to_microseconds(NOW + HOUR))
        body = ingest.accept(Batch(events)).body()
    assert (body["accepted"], body["events"]) == (1500, [{"index": 7, "duplicate": False, "flags": ["clock_skew"], "tokens_quality": "reported"}])


# -- by columns -------------------------------------------------------------------------------------

_STORED = (
    "e.time, e.event_id, w.name, s.name, r.deployment, r.team, r.tags, e.status, e.input_tokens, e.output_tokens, e.quality, e.is_unknown, e.flags, "
    "e.sent_time, e.started_at, e.duration_ms, e.response_id, e.details"
)


def _everything(store: Store) -> tuple[list[Any], ...]:
    events = rows(
        store,
        f"SELECT {_STORED} FROM usage_event e JOIN workspace w ON w.id = e.workspace_id JOIN usage_source s ON s.id = e.source_id "
        "JOIN usage_series r ON r.id = e.series_id ORDER BY e.time, w.name, s.name, e.event_id",
    )
    conflicts = rows(
        store, "SELECT e.event_id, c.sent FROM usage_conflict c JOIN usage_event e ON e.seq = c.stands_seq AND e.time = c.stands_time ORDER BY 1, 2"
    )
    rollups = [
        rows(
            store,
            f"SELECT w.name, s.name, r.deployment, r.tags, u.starts_at, u.known_on, u.outcome, {', '.join('u.' + name for name in ROLLUP.split(', '))} "
            f"FROM {table} u JOIN usage_series r ON r.id = u.series_id JOIN workspace w ON w.id = r.workspace_id JOIN usage_source s ON s.id = r.source_id "
            "ORDER BY 1, 2, 3, 4, 5, 6, 7",
        )
        for table in ("usage_quarter", "usage_minute")
    ]
    return events, conflicts, *rollups


def _any_item(number: int, minutes: int | None, tokens: int | None, kind: int) -> Item:
    if kind == 9:
        return Refusal("malformed", "no JSON")
    time = None if minutes is None else NOW - (minutes - 30) * MINUTE
    event_id = str(uuid.UUID(int=number)) if number % 3 else f"call-{number}"
    quality, flags = (Quality.MISSING, Flag.USAGE_MISSING) if tokens is None else (Quality.REPORTED, Flag.NONE)
    more: dict[str, Any] = {"quality": quality, "flags": flags, "is_native_time": minutes is not None, "source": ("default", "gateway")[number % 2]}
    if kind == 8:
        more["workspace"] = None
    if kind in (6, 7):
        more |= {"tags": {"env": "prod"}, "details": {"duration_ms": 5, "response_id": "r-1", "user": "ü\\"}, "started_at": to_microseconds(NOW - 90 * MINUTE)}
    return call(event_id, time, workspace=more.pop("workspace", ("ws-east", "ws-west", "ws-other")[number % 3]), input_tokens=tokens, **more)


_any_items = st.builds(
    _any_item, st.integers(0, 12), st.none() | st.sampled_from([0, 20, 40, 70, 200, 5000]), st.sampled_from([5, 5, 7, None]), st.integers(0, 9)
)


@settings(max_examples=SEEDS)
@given(st.lists(st.lists(st.lists(_any_items, max_size=12), min_size=1, max_size=3), min_size=1, max_size=4))
def test_deciding_by_columns_and_one_by_one_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, migrated_file: Path, commits: list[list[list[Item]]]
) -> None:
    found = []
    for least in (1, 10**9):
        file = tmp_path_factory.mktemp("columns") / "t.db"
        file.write_bytes(migrated_file.read_bytes())
        store = Store(f"sqlite:///{file}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commit, "_BY_COLUMNS", least)
            ingest = Ingest(store, now=lambda: NOW)
            allowed = frozenset({"ws-east", "ws-west"})
            bodies = []
            for batches in commits:
                futures = [ingest.submit(Batch(items, allowed if number % 2 else None)) for number, items in enumerate(batches)]
                ingest._commit_all(list(ingest._waiting))
                ingest._waiting.clear()
                bodies.append([future.result(0).body() for future in futures])
        found.append((bodies, _everything(store)))
        store.close()
    assert found[0] == found[1]


def test_what_a_filter_suspects_in_vain_is_new_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Identities, "suspects", lambda _self, _shard, fingerprints: np.ones(len(fingerprints), bool))
    events = [call(str(uuid.UUID(int=number)), NOW - number * MINUTE) for number in range(300)]
    twice = [*events[:2], *(call(str(uuid.UUID(int=1000 + number)), NOW - number * MINUTE) for number in range(298)), events[2], call("new"), call("new")]
    with running(store) as ingest:
        assert outcome(ingest.accept(Batch(events))) == (300, 0, [])
        assert outcome(ingest.accept(Batch(twice))) == (299, 4, [])
    assert count(store, "usage_event") == 599


@pytest.mark.parametrize("least", [1, 10**9])
def test_columns_are_met_again_in_any_way(store: Store, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(commit, "_BY_COLUMNS", least)
    events = [call(str(uuid.UUID(int=number)), NOW - number * 4 * MINUTE) for number in range(50)]
    restamped = [msgspec.structs.replace(event, time=(event.time or 0) - 60_000_000) for event in events]
    other = [msgspec.structs.replace(event, input_tokens=7) for event in events]
    with running(store) as ingest:
        assert outcome(ingest.accept(Batch(events))) == (50, 0, [])
        assert outcome(ingest.accept(Batch(events[::-1]))) == (0, 50, [])
    with running(store) as ingest:
        found = ingest.accept(Batch(restamped))
        assert (found.duplicates, {one.flags for one in found.stored}) == (50, {int(Flag.RESTAMPED)})
        assert outcome(ingest.accept(Batch(other))) == (0, 0, ["conflict"] * 50)
    assert rows(store, "SELECT SUM(requests), SUM(input_tokens) FROM usage_quarter") == [(50, 50_000)]
    assert count(store, "usage_conflict") == 50


def test_texts_of_any_kind_reach_the_database_and_come_back(store: Store, ingest: Ingest) -> None:
    names = ["a\\b", "tab\tline\nreturn\r", "\\N", "ü€\U0001f600", "\\x41", str(uuid.UUID(int=9)), str(uuid.UUID(int=0xABC)).upper(), "x" * 36]
    events = [call(name, details={"response_id": name, "request_id": name, "user": name, "duration_ms": 4}) for name in names]
    assert outcome(ingest.accept(Batch(events))) == (len(names), 0, [])
    assert outcome(ingest.accept(Batch(events))) == (0, len(names), [])
    with store.read() as session:
        items = ledger.usage_list(session, period=Period(NOW - DAY, NOW), filters=ledger.Filters(), limit=100, cursor=None, now=NOW).items
    assert {(one.id, one.fields["response_id"], one.fields["request_id"], one.fields["user"], one.fields["duration_ms"]) for one in items} == {
        (name, name, name, name, 4) for name in names
    }


# -- tags, closed months, calls ---------------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 10**9])
def test_tags_beyond_the_bound_are_kept_with_the_event_and_said_so(store: Store, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(names, "MAX_TAG_COMBINATIONS", 3)
    monkeypatch.setattr(commit, "_BY_COLUMNS", least)
    events = [call(f"call-{number}", tags={"request": str(number)}) for number in range(5)]
    for again in (False, True):
        with running(store) as ingest:
            verdict = ingest.accept(Batch(events))
            assert outcome(verdict) == ((0, 5, []) if again else (5, 0, []))
            assert [one.flags for one in verdict.stored] == [0, 0, 0, int(Flag.TAGS_NOT_GROUPED), int(Flag.TAGS_NOT_GROUPED)]
            assert outcome(ingest.accept(Batch([call("call-4", tags={"request": "else"})]))) == (0, 0, ["conflict"])
    assert sorted(rows(store, "SELECT tags FROM usage_series")) == [('{"request":"0"}',), ('{"request":"1"}',), ('{"request":"2"}',), ("{}",)]
    assert rows(store, "SELECT details FROM usage_event WHERE event_id = 'call-4'") == [('{"tags":"{\\"request\\":\\"4\\"}"}',)]


@pytest.mark.parametrize("least", [1, 10**9])
def test_an_event_of_a_closed_month_is_flagged_late(store: Store, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(commit, "_BY_COLUMNS", least)
    times = [
        datetime(2026, 9, 30, 23, 59, 59, tzinfo=UTC),
        datetime(2026, 10, 1, tzinfo=UTC),
        datetime(2026, 10, 31, 23, tzinfo=UTC),
        datetime(2026, 11, 1, tzinfo=UTC),
    ]
    ingest = Ingest(store, now=lambda: NOW, closed=lambda _: frozenset({date(2026, 10, 1)}))
    ingest.start()
    verdict = ingest.accept(Batch([call(f"call-{number}", time) for number, time in enumerate(times)]))
    ingest.stop()
    assert [one.flags for one in verdict.stored] == [0, int(Flag.LATE), int(Flag.LATE), 0]


def test_calls_that_name_themselves_are_told_of_in_the_transaction(store: Store) -> None:
    told: list[tuple[str | None, str | None, str | None]] = []

    def link(connection: sa.Connection, calls: Sequence[StoredCall], *, received: int, is_sqlite: bool) -> None:
        assert (received, is_sqlite) == (to_microseconds(NOW), store.is_sqlite)
        for one in calls:
            assert connection.execute(sa.text("SELECT seq FROM usage_event WHERE time = :time"), {"time": one.time}).scalars().all().count(one.seq) == 1
            told.append((one.response_id, one.request_id, one.span_id))

    ingest = Ingest(store, now=lambda: NOW, link=link)
    ingest.start()
    details: list[dict[str, Any]] = [{"response_id": "r"}, {}, {"trace_id": "t"}, {"request_id": str(uuid.UUID(int=5))}]
    details.append({"trace_id": "t", "span_id": "s"})
    ingest.accept(Batch([call(f"call-{number}", details=one) for number, one in enumerate(details)]))
    ingest.accept(Batch([call("call-0", details=details[0])]))
    ingest.stop()
    assert told == [("r", None, None), (None, str(uuid.UUID(int=5)), None), (None, None, "t:s")]
