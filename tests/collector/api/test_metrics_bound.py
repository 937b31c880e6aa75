"""Spend by deployment for Prometheus: the dearest by name, the others together, and how many those are."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from collector.api.metrics import MOST_DEPLOYMENTS, figures
from models.store import Store
from tests import factories as make


def test_the_cheapest_deployments_stand_together_and_are_counted(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        for number in range(MOST_DEPLOYMENTS + 2):
            of = make.series(session, deployment=f"d-{number:03}")
            make.event(session, of, time=make.NOW - timedelta(hours=1), input_tokens=1_000_000 * (number + 1), output_tokens=0)
    with sqlite_store.read() as session:
        lines = figures(session, visible=None, now=make.NOW)
    best = [line for line in lines if line.startswith("meterbridge_month_cost{") and 'basis="best"' in line]
    assert len(best) == MOST_DEPLOYMENTS + 1
    assert sum(Decimal(line.rpartition(" ")[2]) for line in best) == sum(range(1, MOST_DEPLOYMENTS + 3))
    # The two cheapest: 1.00 and 2.00.
    assert [line.rpartition(" ")[2] for line in best if 'deployment="other"' in line] == ["3"]
    assert "meterbridge_month_deployments_in_other 2" in lines
