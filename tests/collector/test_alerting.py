"""When an alert begins and ends: tables of (time, sample, expected state, expected reason)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from collector.alerting import INACTIVE, Episode, Phase, Piece, Policy, Reason, Sample, State, decide, follow, steps_crossed
from models.alerts import NoData

START = datetime(2026, 11, 20, 10, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def policy(threshold: int = 80, *, for_: int = 0, keep: int = 0, clear: int | None = None, is_countdown: bool = False, no_data: NoData = NoData.OK) -> Policy:
    return Policy(Decimal(threshold), None if clear is None else Decimal(clear), is_countdown, timedelta(minutes=for_), timedelta(minutes=keep), no_data)


# (minute, value, phase after, reason)
Row = tuple[int, int | None, Phase, Reason]
I, P, F, R = Phase.INACTIVE, Phase.PENDING, Phase.FIRING, Phase.RESOLVED

TABLES: dict[str, tuple[Policy, list[Row]]] = {
    "it fires at the threshold itself, at once without a for": (
        policy(),
        [(0, 79, I, Reason.BELOW), (1, 80, F, Reason.REACHED), (2, 81, F, Reason.HOLDS), (3, 79, R, Reason.ENDED), (4, 79, R, Reason.BELOW)],
    ),
    "for has to be held without a gap": (
        policy(for_=2),
        [
            (0, 90, P, Reason.WAITING),
            (1, 90, P, Reason.WAITING),
            (2, 10, I, Reason.BELOW),
            (3, 90, P, Reason.WAITING),
            (4, 90, P, Reason.WAITING),
            (5, 90, F, Reason.LASTED),
        ],
    ),
    "kept firing counts from the first quiet sample": (
        policy(keep=2),
        [
            (0, 90, F, Reason.REACHED),
            (1, 10, F, Reason.KEPT),
            (2, 10, F, Reason.KEPT),
            (3, 10, R, Reason.ENDED),
        ],
    ),
    "a value that comes back begins the keeping anew": (
        policy(keep=2),
        [
            (0, 90, F, Reason.REACHED),
            (1, 10, F, Reason.KEPT),
            (2, 90, F, Reason.HOLDS),
            (3, 10, F, Reason.KEPT),
            (4, 10, F, Reason.KEPT),
            (5, 10, R, Reason.ENDED),
        ],
    ),
    "hysteresis: a firing alert ends below its clear threshold only": (
        policy(clear=70),
        [(0, 75, I, Reason.BELOW), (1, 80, F, Reason.REACHED), (2, 70, F, Reason.HOLDS), (3, 69, R, Reason.ENDED), (4, 75, R, Reason.BELOW)],
    ),
    "a countdown fires at or below": (
        policy(24, is_countdown=True),
        [(0, 25, I, Reason.BELOW), (1, 24, F, Reason.REACHED), (2, 23, F, Reason.HOLDS), (3, 168, R, Reason.ENDED)],
    ),
    "no data is quiet by default": (policy(), [(0, None, I, Reason.NO_DATA), (1, 90, F, Reason.REACHED), (2, None, R, Reason.NO_DATA)]),
    "no data may keep the state": (
        policy(for_=2, no_data=NoData.KEEP),
        [(0, 90, P, Reason.WAITING), (1, None, P, Reason.NO_DATA), (2, 90, F, Reason.LASTED), (3, None, F, Reason.NO_DATA), (4, 10, R, Reason.ENDED)],
    ),
    "no data may be the alert": (policy(no_data=NoData.ALERT), [(0, 10, I, Reason.BELOW), (1, None, F, Reason.NO_DATA), (2, 10, R, Reason.ENDED)]),
    "a resolved alert begins again as a new one": (
        policy(for_=1),
        [(0, 90, P, Reason.WAITING), (1, 90, F, Reason.LASTED), (2, 10, R, Reason.ENDED), (3, 90, P, Reason.WAITING), (4, 90, F, Reason.LASTED)],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_states_follow_the_table(name: str) -> None:
    rule, rows = TABLES[name]
    state = INACTIVE
    for minute, value, phase, reason in rows:
        done = decide(rule, state, Sample(at(minute), None if value is None else Decimal(value)))
        state = done.state
        assert (minute, state.phase, done.reason) == (minute, phase, reason)


def test_the_row_keeps_the_time_of_every_transition() -> None:
    rule = policy(for_=1, keep=1)
    state = INACTIVE
    for minute, value in [(0, 90), (1, 90), (2, 10), (3, 10)]:
        state = decide(rule, state, Sample(at(minute), Decimal(value))).state
    assert state == State(Phase.RESOLVED, pending_at=at(0), fired_at=at(1), quiet_since=at(2), resolved_at=at(3))


def test_along_a_line_transitions_happen_when_they_are_due() -> None:
    # Above for seven minutes, then quiet: fires after the two of its for, ends after the three of its keeping.
    pieces = [Piece(at(0), at(1), Decimal(5)), Piece(at(1), at(5), Decimal(85)), Piece(at(5), at(8), Decimal(95)), Piece(at(8), at(20), Decimal(0))]
    state, episodes = follow(policy(for_=2, keep=3), INACTIVE, pieces)
    assert episodes == [Episode(pending_at=at(1), fired_at=at(3), resolved_at=at(11), peak=Decimal(95))]
    assert state.phase is Phase.RESOLVED


def test_a_line_that_ends_while_firing_is_an_open_episode() -> None:
    state, episodes = follow(policy(), INACTIVE, [Piece(at(0), at(3), Decimal(80)), Piece(at(3), at(4), Decimal(82))])
    assert episodes == [Episode(at(0), at(0), None, Decimal(82))]
    assert state.phase is Phase.FIRING


@pytest.mark.parametrize(
    ("spent", "claimed", "crossed", "telling"),
    [
        ("49.99", [], (), None),
        ("50", [], (50,), 50),
        ("85", [], (50, 80), 80),  # only the highest newly crossed one tells
        ("85", [50], (80,), 80),
        ("85", [50, 80], (), None),
        ("120", [50, 80], (100,), 100),
        ("120", [100], (50, 80), None),  # nothing below a step that has told
    ],
)
def test_of_budget_steps_the_highest_newly_crossed_one_tells(spent: str, claimed: list[int], crossed: tuple[int, ...], telling: int | None) -> None:
    found = steps_crossed(spent=Decimal(spent), amount=Decimal("100.00"), steps=[50, 80, 100], claimed=claimed)
    assert (found.crossed, found.telling) == (crossed, telling)
