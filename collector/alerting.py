"""When an alert begins and ends: pure decisions over samples, as in ``rules/alerting.go`` of Prometheus.

``decide`` takes a policy, the state so far and one sample, and gives the next state with the reason; ``follow`` does so
along a line of values that are known for every instant, so that a transition has the time at which it happened and not
that of whoever looked. Nothing here reads a clock, a database or a unit: that is ``collector/watch``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import assert_never

from models import money
from models.alerts import NoData

ZERO = timedelta(0)


class Phase(StrEnum):
    """Where a rule is with one subject; ``resolved`` is an inactive one that has fired."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class Reason(StrEnum):
    """Why a state is what it is after a sample."""

    BELOW = "below the threshold"
    REACHED = "the threshold is reached"
    WAITING = "the threshold is reached, not yet for long enough"
    LASTED = "the threshold was reached for long enough"
    HOLDS = "the condition still holds"
    KEPT = "the condition no longer holds; kept firing for a while"
    ENDED = "the condition no longer holds"
    NO_DATA = "no data"


@dataclass(frozen=True, slots=True)
class Policy:
    """What ``decide`` needs of a rule. ``clear`` ends a firing alert later than ``threshold`` would (hysteresis)."""

    threshold: Decimal
    clear: Decimal | None = None
    is_countdown: bool = False  # fires at or below the threshold
    for_: timedelta = ZERO
    keep_firing_for: timedelta = ZERO
    no_data: NoData = NoData.OK


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured value at an instant; None where there was nothing to measure."""

    at: datetime
    value: Decimal | None


@dataclass(frozen=True, slots=True)
class State:
    """The state of a rule for one subject, with the time of each transition that led to it."""

    phase: Phase = Phase.INACTIVE
    pending_at: datetime | None = None
    fired_at: datetime | None = None
    quiet_since: datetime | None = None
    resolved_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.phase in (Phase.PENDING, Phase.FIRING)


INACTIVE = State()


@dataclass(frozen=True, slots=True)
class Transition:
    """What a sample did: the state after it, the reason, and whether the phase changed."""

    before: Phase
    state: State
    reason: Reason
    sample: Sample

    @property
    def is_change(self) -> bool:
        return self.before != self.state.phase


def holds(policy: Policy, value: Decimal | None, *, is_firing: bool) -> bool | None:
    """Whether the condition holds; None where no data leaves things as they are."""
    if value is None:
        match policy.no_data:
            case NoData.OK:
                return False
            case NoData.KEEP:
                return None
            case NoData.ALERT:
                return True
            case _:
                assert_never(policy.no_data)
    edge = policy.clear if is_firing and policy.clear is not None else policy.threshold
    return value <= edge if policy.is_countdown else value >= edge


def decide(policy: Policy, state: State, sample: Sample) -> Transition:
    """The state after a sample. ``for`` counts from the first sample that held, ``keep_firing_for`` from the first that did not."""
    before = state.phase
    held = holds(policy, sample.value, is_firing=before is Phase.FIRING)
    if held is None:
        return Transition(before, state, Reason.NO_DATA, sample)
    is_blind = sample.value is None
    match before:
        case Phase.INACTIVE | Phase.RESOLVED:
            if not held:
                return Transition(before, state, Reason.NO_DATA if is_blind else Reason.BELOW, sample)
            begun = State(Phase.PENDING, pending_at=sample.at)
            if policy.for_ > ZERO:
                return Transition(before, begun, Reason.WAITING, sample)
            return Transition(before, replace(begun, phase=Phase.FIRING, fired_at=sample.at), Reason.NO_DATA if is_blind else Reason.REACHED, sample)
        case Phase.PENDING:
            if not held:
                return Transition(before, INACTIVE, Reason.NO_DATA if is_blind else Reason.BELOW, sample)
            if sample.at - (state.pending_at or sample.at) < policy.for_:
                return Transition(before, state, Reason.WAITING, sample)
            return Transition(before, replace(state, phase=Phase.FIRING, fired_at=sample.at), Reason.NO_DATA if is_blind else Reason.LASTED, sample)
        case Phase.FIRING:
            if held:
                return Transition(before, replace(state, quiet_since=None), Reason.HOLDS, sample)
            quiet = state.quiet_since or sample.at
            if sample.at - quiet < policy.keep_firing_for:
                return Transition(before, replace(state, quiet_since=quiet), Reason.KEPT, sample)
            ended = replace(state, phase=Phase.RESOLVED, quiet_since=quiet, resolved_at=sample.at)
            return Transition(before, ended, Reason.NO_DATA if is_blind else Reason.ENDED, sample)
        case _:
            assert_never(before)


# -- along a line ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch ``[start, end)`` over which the measured value is the same, or stands for what decides alike."""

    start: datetime
    end: datetime
    value: Decimal | None


@dataclass(frozen=True, slots=True)
class Episode:
    """One time that a rule fired along a line: until when (None = still), and the highest value (lowest of a countdown) in it."""

    pending_at: datetime
    fired_at: datetime
    resolved_at: datetime | None
    peak: Decimal | None


def follow(policy: Policy, state: State, pieces: Iterable[Piece]) -> tuple[State, list[Episode]]:
    """The state after a line of values, and each time that it fired. A transition happens when it is due, not when the value next changes."""
    episodes: list[Episode] = []
    peak: Decimal | None = None
    for piece in pieces:
        at: datetime | None = piece.start
        while at is not None:
            done = decide(policy, state, Sample(at, piece.value))
            state = done.state
            if done.is_change and state.phase is Phase.RESOLVED:
                episodes.append(_episode(state, peak))
                peak = None
            elif state.is_open and piece.value is not None and (peak is None or (piece.value < peak if policy.is_countdown else piece.value > peak)):
                peak = piece.value
            elif not state.is_open:
                peak = None
            at = _due(policy, state, at, piece.end)
    if state.phase is Phase.FIRING:
        episodes.append(_episode(state, peak))
    return state, episodes


def _episode(state: State, peak: Decimal | None) -> Episode:
    fired = state.fired_at
    assert fired is not None  # only firing leads here
    return Episode(state.pending_at or fired, fired, state.resolved_at, peak)


def _due(policy: Policy, state: State, at: datetime, end: datetime) -> datetime | None:
    """When the state changes by the passing of time alone, if that is after ``at`` and before ``end``."""
    if state.phase is Phase.PENDING and state.pending_at is not None:
        due = state.pending_at + policy.for_
    elif state.phase is Phase.FIRING and state.quiet_since is not None:
        due = state.quiet_since + policy.keep_firing_for
    else:
        return None
    return due if at < due < end else None


# -- budgets --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a budget that are newly crossed, and the one that tells (the highest, if none above it has told)."""

    crossed: tuple[int, ...]
    telling: int | None


def steps_crossed(*, spent: Decimal, amount: Decimal, steps: Sequence[int], claimed: Iterable[int]) -> Steps:
    """Which steps (percents of ``amount``) are crossed by ``spent`` and were not before in this period."""
    before = set(claimed)
    crossed = tuple(sorted({step for step in steps if step not in before and is_crossed(spent=spent, amount=amount, step=step)}))
    highest = crossed[-1] if crossed else None
    return Steps(crossed, highest if highest is not None and highest > max(before, default=-1) else None)


def is_crossed(*, spent: Decimal, amount: Decimal, step: int) -> bool:
    """Whether ``spent`` is at or above ``step`` percent of ``amount``."""
    return money.times(spent, 100) >= money.times(amount, step)
