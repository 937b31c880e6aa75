"""Limits learnt from traffic: headers at once, 429s when two agree; nobody's word is overruled in silence."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session, col, select

from collector.admission import Admission, Asked
from collector.watch import Learner
from models import ledger
from models.ledger import Pool
from models.limits import Counting, LimitSource, PoolLimit, ThrottleEpisode, set_limit
from models.store import Store
from models.usage import Status
from tests import factories as make

NOW = make.NOW
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
AZURE = {"throttled_by": "azure"}


def pools(store: Store, now: datetime = NOW) -> dict[str, Pool]:
    with store.read() as session:
        return {one.measure: one for one in ledger.quotas(session, now=now) if one.kind == "deployment"}


def answered(session: Session, at: datetime, tokens: int = 1000, **details: Any) -> None:
    make.event(session, time=at, input_tokens=tokens, output_tokens=0, details=details or None)


def refused(session: Session, at: datetime, **details: Any) -> None:
    make.event(session, time=at, input_tokens=None, output_tokens=None, status=Status.THROTTLED, details=AZURE | details)


def test_a_header_is_the_limit_until_a_newer_one_says_another(store: Store) -> None:
    learner = Learner()
    with store.write() as session:
        make.serverless(session)
        answered(session, NOW - MINUTE, ratelimit_limit_tokens=200_000, ratelimit_limit_requests=600)
        answered(session, NOW - 2 * MINUTE, ratelimit_limit_tokens=50_000)
    learner.run(store, now=NOW)
    tokens, requests = pools(store)["tokens_per_minute"], pools(store)["requests_per_minute"]
    assert (tokens.limit, tokens.limit_source, requests.limit, requests.limit_source) == (200_000, "header", 600, "header")
    (said,) = tokens.limits_said
    assert (said.source, said.value, said.seen_at, said.evidence, said.counts) == (
        "header", 200_000, NOW - MINUTE, "x-ratelimit-limit-tokens of an answer", True,
    )  # fmt: skip
    with store.write() as session:
        answered(session, NOW + 5 * SECOND, ratelimit_limit_tokens=300_000)
    learner.run(store, now=NOW + 10 * SECOND)
    learner.run(store, now=NOW + 20 * SECOND)
    assert pools(store, NOW + 20 * SECOND)["tokens_per_minute"].limit == 300_000
    assert pools(store, NOW)["tokens_per_minute"].limit == 200_000  # as it was known then
    with store.read() as session:
        kept = session.exec(select(PoolLimit.value).where(PoolLimit.measure == "tokens_per_minute").order_by(col(PoolLimit.id))).all()
    assert kept == [200_000, 300_000]


def test_what_a_gateway_answers_by_itself_teaches_nothing(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.event(
            session, time=NOW, input_tokens=None, output_tokens=None, status=Status.THROTTLED,
            details={"throttled_by": "gateway", "ratelimit_limit_tokens": 10, "ratelimit_remaining_tokens": 0},
        )  # fmt: skip
    Learner().run(sqlite_store, now=NOW)
    assert (pools(sqlite_store)["tokens_per_minute"].limit, pools(sqlite_store)["tokens_per_minute"].limit_source) == (400_000, "default")
    with sqlite_store.read() as session:
        assert session.exec(select(ThrottleEpisode)).all() == []


def test_a_limit_of_the_owner_stands_and_the_header_that_differs_is_named(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        set_limit(
            session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=500_000, source=LimitSource.USER, author="ops",
            now=NOW - MINUTE,
        )  # fmt: skip
        answered(session, NOW, ratelimit_limit_tokens=200_000)
    Learner().run(sqlite_store, now=NOW)
    pool = pools(sqlite_store)["tokens_per_minute"]
    assert (pool.limit, pool.limit_source) == (500_000, "user")
    assert [(one.source, one.value, one.counts) for one in pool.limits_said] == [("user", 500_000, True), ("header", 200_000, False)]
    assert pool.limit_note == "header says 200,000 (2026-11-20T10:00:00Z); the limit of user counts"


def test_two_429s_at_one_level_teach_the_limit_and_one_alone_does_not(store: Store) -> None:
    learner = Learner()
    first, second = NOW - 9 * MINUTE, NOW - 4 * MINUTE
    with store.write() as session:
        make.serverless(session)
        answered(session, first - 30 * SECOND, tokens=12_000)
        answered(session, first - 61 * SECOND, tokens=7_000)  # of the minute before
        answered(session, first, tokens=7_000)
        refused(session, first)
        refused(session, first + 40 * SECOND)  # the same episode
    learner.run(store, now=first + MINUTE)
    assert pools(store)["tokens_per_minute"].limit_source == "default"
    with store.write() as session:
        answered(session, second - 10 * SECOND, tokens=20_000)
        refused(session, second)
    learner.run(store, now=second + MINUTE)
    learner.run(store, now=NOW)
    pool = pools(store)["tokens_per_minute"]
    assert (pool.limit, pool.limit_source) == (20_000, "observed")
    assert pool.limits_said[0].evidence == (
        "Azure answered 429 when the minute before had used 19,000 and 20,000, at 2026-11-20T09:51:00Z and 2026-11-20T09:56:00Z"
    )
    with store.read() as session:
        found = session.exec(select(ThrottleEpisode).order_by(col(ThrottleEpisode.began_at))).all()
        assert [(one.began_at, one.ended_at, one.used) for one in found] == [(first, first + 40 * SECOND, 19_000), (second, second, 20_000)]
    # It warns and stops no call.
    desk = Admission(store, now=lambda: NOW, monotonic=lambda: 0.0)
    assert desk.judge(Asked("ws-east", "llama-chat", 100_000)).allow


def test_more_than_was_observed_takes_the_limit_back(sqlite_store: Store) -> None:
    learner = Learner()
    with sqlite_store.write() as session:
        make.serverless(session)
        for at in (NOW - 9 * MINUTE, NOW - 5 * MINUTE):
            answered(session, at - SECOND, tokens=5_000)
            refused(session, at)
    learner.run(sqlite_store, now=NOW)
    assert pools(sqlite_store)["tokens_per_minute"].limit == 5_000
    with sqlite_store.write() as session:
        answered(session, NOW + 30 * SECOND, tokens=9_000)
    learner.run(sqlite_store, now=NOW + MINUTE)
    assert (pools(sqlite_store, NOW + MINUTE)["tokens_per_minute"].limit_source) == "default"
    with sqlite_store.write() as session:
        answered(session, NOW + 3 * MINUTE, tokens=5_000)
        refused(session, NOW + 3 * MINUTE)
    learner.run(sqlite_store, now=NOW + 4 * MINUTE)
    # What was disproved does not agree with anybody any more.
    assert (pools(sqlite_store, NOW + 4 * MINUTE)["tokens_per_minute"].limit_source) == "default"


def test_levels_far_apart_are_other_callers_and_teach_nothing(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        for at, tokens in ((NOW - 9 * MINUTE, 5_000), (NOW - 5 * MINUTE, 7_000)):
            answered(session, at - SECOND, tokens=tokens)
            refused(session, at)
    Learner().run(sqlite_store, now=NOW)
    assert pools(sqlite_store)["tokens_per_minute"].limit_source == "default"


def test_the_header_of_a_429_says_which_limit_was_met(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        for at in (NOW - 9 * MINUTE, NOW - 5 * MINUTE):
            for second in range(1, 5):
                answered(session, at - second * SECOND, tokens=90_000)
            refused(session, at, ratelimit_remaining_tokens=100, ratelimit_remaining_requests=0)
    Learner().run(sqlite_store, now=NOW)
    found = pools(sqlite_store)
    assert (found["requests_per_minute"].limit, found["requests_per_minute"].limit_source) == (4, "observed")
    assert found["tokens_per_minute"].limit_source == "default"


def test_a_limit_said_for_admitted_tokens_says_so(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        set_limit(
            session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=9_000, source=LimitSource.USER,
            counting=Counting.ADMITTED, now=NOW,
        )  # fmt: skip
        answered(session, NOW - SECOND, tokens=1_000, max_tokens=500, choices=2)
    pool = pools(sqlite_store)["tokens_per_minute"]
    assert (pool.counting, pool.used, pool.headroom) == ("admitted", 2_000, 7_000)
