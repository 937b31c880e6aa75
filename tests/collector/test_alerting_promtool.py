"""Our engine against Prometheus' own, on random series: the same pending, firing and resolved at every minute.

Prometheus has no hysteresis, no countdown and another idea of no data, so that the rules here have none. How many series:
``SERIES`` by default, more with METERBRIDGE_TEST_SEEDS.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from collector.alerting import INACTIVE, Phase, Piece, Policy, Sample, State, decide, follow
from tests.conftest import cannot_run

SERIES = int(os.environ.get("METERBRIDGE_TEST_SEEDS", "300"))
PER_FILE = 100
MINUTES = 30
START = datetime(2026, 11, 20, 10, tzinfo=UTC)


@dataclass(frozen=True)
class Case:
    """A rule in minutes, and a value for each minute."""

    for_: int
    keep: int
    values: tuple[int, ...]

    @property
    def policy(self) -> Policy:
        return Policy(Decimal(80), for_=timedelta(minutes=self.for_), keep_firing_for=timedelta(minutes=self.keep))


def random_case(seed: int) -> Case:
    dice = random.Random(seed)
    # Runs of high and low, so that "for" is met now and then; around the threshold, so that equality is met too.
    values: list[int] = []
    while len(values) <= MINUTES:
        values += [dice.choice((79, 10, 0) if dice.random() < 0.5 else (80, 81, 100))] * dice.randint(1, 6)
    return Case(dice.choice((0, 0, 1, 2, 3, 5, 8)), dice.choice((0, 0, 1, 2, 4, 7)), tuple(values[: MINUTES + 1]))


def by_minute(case: Case) -> list[Phase]:
    """The phase after each minute's sample."""
    state, phases = INACTIVE, []
    for minute, value in enumerate(case.values):
        state = decide(case.policy, state, Sample(START + timedelta(minutes=minute), Decimal(value))).state
        phases.append(state.phase)
    return phases


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        cannot_run("promtool is not here to compare alert states with; run: apt-get install prometheus")
    return found


def write_files(folder: Path, cases: list[Case]) -> Path:
    """A rule and a series for each case, and what we say of every minute as the expectation."""
    rules: list[str] = ["groups:", "- name: all", "  rules:"]
    series: list[str] = []
    expected: list[str] = []
    for number, case in enumerate(cases):
        rules += [f"  - alert: A{number}", f"    expr: m{number} >= 80", f"    for: {case.for_}m", f"    keep_firing_for: {case.keep}m"]
        series.append(f"  - {{series: 'm{number}', values: '{' '.join(map(str, case.values))}'}}")
        for minute, phase in enumerate(by_minute(case)):
            # promtool lists the firing ones only.
            listed = "[{exp_labels: {}}]" if phase is Phase.FIRING else "[]"
            expected.append(f"  - {{eval_time: {minute}m, alertname: A{number}, exp_alerts: {listed}}}")
    # One test with every series: a test of its own for each would start a storage each.
    head = ["rule_files: [rules.yaml]", "evaluation_interval: 1m", "tests:", "- interval: 1m", "  input_series:"]
    tests = [*head, *series, "  alert_rule_test:", *expected]
    (folder / "rules.yaml").write_text("\n".join(rules) + "\n", encoding="utf-8")
    (folder / "tests.yaml").write_text("\n".join(tests) + "\n", encoding="utf-8")
    return folder / "tests.yaml"


def test_random_series_fire_as_prometheus_says(tmp_path: Path) -> None:
    tool = promtool()
    seen: set[Phase] = set()
    for first in range(0, SERIES, PER_FILE):
        cases = [random_case(seed) for seed in range(first, min(first + PER_FILE, SERIES))]
        seen |= {phase for case in cases for phase in by_minute(case)}
        folder = tmp_path / str(first)
        folder.mkdir()
        done = subprocess.run([tool, "test", "rules", str(write_files(folder, cases))], capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, "FAILED" in done.stdout + done.stderr) == (0, False), (done.stdout + done.stderr)[:4000]
    assert seen == set(Phase)


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    tool = promtool()
    case = Case(0, 0, (100,) * (MINUTES + 1))
    tests = write_files(tmp_path, [case])
    tests.write_text(
        tests.read_text(encoding="utf-8").replace(
            "eval_time: 5m, alertname: A0, exp_alerts: [{exp_labels: {}}]", "eval_time: 5m, alertname: A0, exp_alerts: []"
        )
    )
    done = subprocess.run([tool, "test", "rules", str(tests)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("seed", range(200))
def test_along_a_line_the_same_minutes_fire_as_by_samples(seed: int) -> None:
    case = random_case(seed)
    pieces = [Piece(START + timedelta(minutes=minute), START + timedelta(minutes=minute + 1), Decimal(value)) for minute, value in enumerate(case.values)]
    state, episodes = follow(case.policy, INACTIVE, pieces)
    along = [
        any(one.fired_at <= at and (one.resolved_at is None or at < one.resolved_at) for one in episodes)
        for at in (START + timedelta(minutes=minute) for minute in range(len(case.values)))
    ]
    phases = by_minute(case)
    assert along == [phase is Phase.FIRING for phase in phases]
    assert isinstance(state, State)
