"""What is planted in the sample world's bills is found: each discrepancy under its cause, on its day, with the amount worked out by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from collector import commands, demo, pricing
from collector.demo.planted import CANARY, TRIAL, Planted
from models import audit, ledger
from models.ledger import CostQuery, Filters, Reconciliation
from models.periods import DAY, Period, day_start, utc_day
from models.store import Store
from models.variance import Cause
from tests.collector.api.serving import NOW, Service, serving

# At 0.71 USD a million: the canary's 2,000,000 input tokens a day are 1.42, its 100,000 output tokens 0.071.
PLANTED = {
    ("2026-10-01", "input", "USD", Cause.UNBILLED_USAGE): "-1.42",  # no row at all
    ("2026-10-04", "input", "USD", Cause.TIMING): "-0.71",  # a million tokens too few
    ("2026-10-05", "input", "USD", Cause.TIMING): "0.71",  # and too many
    ("2026-10-08", "output", "USD", Cause.UNIT_MISMATCH): "70.929",  # 71.00 instead of 0.071
    ("2026-10-10", "input", "CHF", Cause.CURRENCY): "1.3",
    ("2026-10-10", "input", "USD", Cause.CURRENCY): "-1.42",
    ("2026-10-12", "hosting", "USD", Cause.NOT_METERED): "17.76",  # 24 x 0.74
    ("2026-10-18", "input", "USD", Cause.UNEXPLAINED): "0.5",  # one bundle of 1.92
    ("2026-10-23", "other", "USD", Cause.UNMAPPED_METER): "2",  # 40 x 0.05
    ("2026-11-06", "output", "USD", Cause.PRICE_DIFFERENCE): "0.02",  # (0.91 - 0.71) x 0.1 million
    ("2026-11-09", "input", "USD", Cause.UNMETERED_USAGE): "0.284",  # 400,000 tokens more than the events
    ("2026-11-12", "input", "USD", Cause.UNKNOWN_TOKENS): "0.071",  # one call as large as the others
    ("2026-11-12", "output", "USD", Cause.UNKNOWN_TOKENS): "0.00355",
    ("2026-11-20", "input", "USD", Cause.NOT_YET_BILLED): "-0.71",  # the ten calls of today
    ("2026-11-20", "output", "USD", Cause.NOT_YET_BILLED): "-0.0355",
}


@pytest.fixture
def shown(sqlite_store: Store, tmp_path: Path) -> Iterator[Service]:
    """The sample world, thinned, as ``meterbridge demo`` brings it in."""
    with sqlite_store.write() as session:
        pricing.ensure_bundled(session, now=NOW)
    stop = threading.Event()
    with serving(sqlite_store) as service:
        desk = commands.Desk(sqlite_store, service.ingest, lambda: NOW, lambda _line: None, lambda _done, _of: None)

        def bring_in(kind: str, name: str, data: bytes) -> None:
            (tmp_path / name).write_bytes(data)
            of = next(one for one in commands.KINDS if one == kind)
            commands.run(commands.Import(of, [str(tmp_path / name)], replace=kind == "charges"), desk)

        def say(line: str) -> None:
            if line.startswith("bills:"):
                stop.set()

        world = demo.World(7, NOW, scale=0.005)
        demo.feed(service.url, world, api_key=None, say=say, stop=stop, import_bill=bring_in, clock=lambda: NOW, tick_seconds=0)
        yield service


def reconciled(store: Store, *deployments: str) -> Reconciliation:
    end = day_start(utc_day(NOW)) + DAY
    with store.read() as session:
        return ledger.reconciliation(session, Period(end - 61 * DAY, end), Filters(deployments=deployments), now=NOW)


def test_every_planted_discrepancy_is_found_under_its_cause_with_its_amount(shown: Service) -> None:
    store = shown.store
    found = reconciled(store, CANARY)
    said = {(row.day.isoformat(), row.meter, row.currency, cause): amount for row in found.rows for cause, amount in row.causes.items()}
    assert said == {key: Decimal(amount) for key, amount in PLANTED.items()}
    assert all(sum(row.causes.values(), Decimal(0)) == row.variance for row in found.rows)
    (trial,) = reconciled(store, TRIAL).rows
    assert (trial.day, trial.causes) == (date(2026, 10, 31), {Cause.NOT_INSTRUMENTED: Decimal(2)})  # 8 million x 0.25
    # With the story of the other deployments, no cause is without an example, and the page has what to show.
    whole = reconciled(store)
    assert {cause for total in whole.totals for cause in total.causes} | {Cause.TIMING} == set(Cause)
    credit = [(row.deployment, row.causes[Cause.CREDIT_OR_REFUND]) for row in whole.rows if Cause.CREDIT_OR_REFUND in row.causes]
    assert credit == [("llama-31-405b", Decimal(-4))]  # 250,000 tokens at 16.00
    rounding = sorted((row.currency or "", row.causes[Cause.ROUNDING]) for row in whole.rows if row.meter == "adjustment")
    assert rounding == [("EUR", Decimal("0.01"))] * 2 + [("USD", Decimal("-0.01"))] * 2
    kinds = {problem["kind"] for problem in shown.client.get("/v1/problems").json()["items"]}
    assert {"unmapped_meter", "unknown_unit"} <= kinds


def test_the_second_pair_of_eyes_agrees_on_the_planted_days(shown: Service) -> None:
    with shown.store.read() as session:

        def ask(question: audit.Question) -> ledger.CostTable:
            basis = next(one for one in ledger.BASES if one == question.basis)
            return ledger.costs(session, CostQuery(question.period, question.granularity, question.group_by, basis, as_of=question.as_of), now=NOW)

        days = Period(day_start(date(2026, 10, 8)), day_start(date(2026, 10, 13)))  # a unit slip, francs without a rate, hosting
        found = audit.verify(session, now=NOW, ask=ask, period=days)
    assert found.differences == []
    assert found.checked > 1000


def test_both_days_of_a_late_row_are_in_one_month_whenever_the_demo_is_opened() -> None:
    for days in range(800):
        late = Planted.told(date(2026, 1, 1) + timedelta(days=days)).late_on
        assert late.month == (late + DAY).month
