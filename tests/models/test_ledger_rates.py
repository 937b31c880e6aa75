"""Sliding windows over events: what counts when, and what is too late."""

from __future__ import annotations

from datetime import timedelta

from models.columns import to_microseconds
from models.ledger import rates
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
