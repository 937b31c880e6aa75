"""Sliding windows over events: what counts when, and what is too late."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from models import ledger
from models.columns import to_microseconds
from models.ledger import rates
from models.lifecycle import context_tokens
from models.store import Store
from models.usage import Status
from tests import factories

NOW = factories.NOW
SECOND = to_microseconds(NOW) // 1_000_000


def test_an_event_counts_for_its_window_and_no_longer() -> None:
    line = rates.sliding([{100: (5, 1, 0), 130: (7, 1, 0)}], 0, window=60, start=90, end=200)
    assert line == [(90, 0), (100, 5), (130, 12), (160, 7), (190, 0)]


def test_what_lies_before_the_start_counts_as_long_as_its_window_reaches() -> None:
    line = rates.sliding([{50: (5, 1, 0)}, {50: (2, 1, 0), 95: (1, 1, 0)}], 0, window=60, start=90, end=120)
    assert line == [(90, 7), (95, 8), (110, 1)]


def test_the_bound_is_never_below_any_window() -> None:
    of = [{0: (10, 0, 0), 60: (20, 0, 0), 120: (5, 0, 0)}, {60: (1, 0, 0)}]
    assert rates.bound(of, 0, window=60) == 31
    assert rates.bound(of, 0, window=300) == 36
    assert rates.bound([], 0, window=60) == 0


def test_seconds_hold_tokens_requests_and_throttles_of_what_came_in_time(store: Store) -> None:
    with store.write() as session:
        of = factories.series(session)
        factories.event(session, of, time=NOW, input_tokens=100, output_tokens=20)
        factories.event(session, of, time=NOW, input_tokens=None, output_tokens=None, status=Status.THROTTLED)
        factories.event(session, of, time=NOW, input_tokens=50, output_tokens=0, billable=False)
        factories.event(session, of, time=NOW - timedelta(minutes=5), input_tokens=7, output_tokens=0, received_at=NOW + timedelta(minutes=5))
        factories.event(session, of, time=NOW - timedelta(minutes=5), input_tokens=9, output_tokens=0, received_at=NOW + timedelta(minutes=5, seconds=1))
        # A clock four minutes ahead: it counts when it arrived.
        factories.event(session, of, time=NOW + timedelta(minutes=4), input_tokens=3, output_tokens=0, received_at=NOW + timedelta(seconds=1))
        series = of.id or 0
    with store.read() as session:
        found = rates.seconds(session, series=[series], start=SECOND - 600, end=SECOND + 60)
        minutes = rates.minutes(session, start=SECOND - 600, end=SECOND + 60)
    assert found == {series: {SECOND: (120, 3, 1), SECOND - 300: (7, 1, 0), SECOND + 1: (3, 1, 0)}}
    # The rollup holds what was late, too: it only bounds.
    assert minutes[series][SECOND - 300] == (16, 2, 0)
    assert minutes[series][SECOND + 60] == (3, 1, 0)


@pytest.mark.parametrize(
    ("said", "context", "admitted"),
    [
        ({"details": {"max_tokens": 400}}, 131_072, 1_400),
        ({}, 131_072, 1_016),  # the documented default of 16
        ({"output_tokens": 90}, 131_072, 1_090),  # it was answered more than the default: its limit was another
        ({"output_tokens": 90, "details": {"choices": 3}}, 131_072, 1_090),  # thirty for each of three
        ({"output_tokens": 91, "details": {"choices": 3}}, 131_072, 1_093),
        ({"details": {"max_tokens": 400, "choices": 3}}, 131_072, 2_200),
        ({"details": {"max_tokens": 400, "choices": 2, "best_of": 5}}, 131_072, 3_000),
        ({"details": {"max_tokens": 400, "best_of": 4, "beam_search": True}}, 131_072, 2_600),  # four beams
        ({"details": {"max_tokens": 4_000}}, 4_096, 4_096),  # no answer is longer than the context leaves it
        ({"details": {"max_tokens": 4_000, "choices": 2}}, 4_096, 1_000 + 2 * 3_096),
        ({"input_tokens": 5_000, "details": {"max_tokens": 400}}, 4_096, 5_000),
        ({"details": {"max_tokens": 200_000}}, None, 201_000),
        ({"input_tokens": None, "output_tokens": None, "details": {"max_tokens": 400}}, 131_072, 400),  # the prompt is not known
    ],
)
def test_a_call_is_admitted_for_its_prompt_and_all_that_it_may_be_answered(
    sqlite_store: Store, said: dict[str, Any], context: int | None, admitted: int
) -> None:
    with sqlite_store.write() as session:
        of = factories.series(session)
        factories.event(session, of, time=NOW, **{"input_tokens": 1_000, "output_tokens": 10} | said)
        series = of.id or 0
    with sqlite_store.read() as session:
        found = rates.admitted(session, series={series: rates.Reserve(context, is_generating=True)}, start=SECOND - 60, end=SECOND)
    assert found == {series: {SECOND: (admitted, 0, 0)}}


def test_admitted_stands_at_the_beginning_of_calls_that_went_and_count(store: Store) -> None:
    with store.write() as session:
        of, vectors = factories.series(session), factories.series(session, operation="embeddings")
        asked: dict[str, Any] = {"details": {"max_tokens": 500}}
        factories.event(session, of, time=NOW, input_tokens=100, output_tokens=1, started_at=NOW - timedelta(seconds=20), **asked)
        factories.event(session, of, time=NOW, input_tokens=200, output_tokens=1, duration_ms=30_000, **asked)
        factories.event(session, of, time=NOW, input_tokens=300, output_tokens=1, started_at=NOW - timedelta(seconds=61), **asked)
        factories.event(session, of, time=NOW, input_tokens=400, output_tokens=None, status=Status.THROTTLED, **asked)
        factories.event(session, of, time=NOW, input_tokens=500, output_tokens=1, billable=False, **asked)
        factories.event(session, vectors, time=NOW, input_tokens=7_000, output_tokens=None, details={"max_tokens": 500})
        twin = factories.event(session, of, time=NOW, input_tokens=600, output_tokens=1, **asked)
        factories.taken_back(session, twin, kind="witness", made_at=NOW)
        reserves = {of.id or 0: rates.Reserve(None, is_generating=True), vectors.id or 0: rates.Reserve(None, is_generating=False)}
        chat, embedded = reserves
    with store.read() as session:
        found = rates.admitted(session, series=reserves, start=SECOND - 59, end=SECOND)
    assert found == {chat: {SECOND - 20: (600, 0, 0), SECOND - 30: (700, 0, 0)}, embedded: {SECOND: (7_000, 0, 0)}}


def test_the_context_of_a_model_is_that_of_its_card() -> None:
    known = ("Llama-3.3-70B-Instruct", "Meta-Llama-3-8B-Instruct", "Llama-4-Maverick-17B-128E-Instruct-FP8", "phi-4", None)
    assert [context_tokens(model) for model in known] == [131_072, 8_192, 1_048_576, None, None]


def test_growing_peaks_meet_the_limit_on_a_day_that_is_told(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        factories.serverless(session)
        of = factories.series(session)
        # Ten thousand more each day, 260,000 today: 140,000 are left, which is fourteen days.
        for day in range(7):
            factories.event(session, of, time=NOW - timedelta(days=day, minutes=1), input_tokens=260_000 - 10_000 * day, output_tokens=0)
    with sqlite_store.read() as session:
        tokens = next(one for one in ledger.quotas(session, now=NOW) if one.measure == "tokens_per_minute")
    assert (tokens.limit, tokens.peak, tokens.saturation_at) == (400_000, 260_000, NOW + timedelta(days=14))
