"""What the month end waits for: 200 deployments of eight meters reconciled, and their weekly report with its PDF."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session

from collector import reports
from models import ledger
from models.charges import ChargeClass, ChargeDay, MeterKind
from models.periods import month_period
from models.store import Store
from models.usage import DAY_SECONDS, UsageMinute, UsageQuarter
from tests import factories as make
from tests.bench.figures import Figure

DEPLOYMENTS = int(os.environ.get("METERBRIDGE_BENCH_DEPLOYMENTS") or 200)
_MONTH, _NOW = date(2026, 10, 1), datetime(2026, 11, 7, 10, tzinfo=UTC)
_METERS = (
    MeterKind.INPUT,
    MeterKind.OUTPUT,
    MeterKind.CACHED_INPUT,
    MeterKind.TRAINING,
    MeterKind.HOSTING,
    MeterKind.COMMITMENT,
    MeterKind.ADJUSTMENT,
    MeterKind.OTHER,
)
_FLOOR = "SELECT q.starts_at / 86400, q.series_id, SUM(q.requests), SUM(q.input_tokens), SUM(q.output_tokens) FROM usage_quarter q GROUP BY 1, 2"


def closing(folder: Path, *, rounds: int) -> list[Figure]:
    """Beside one plain SQL sum over the same rollup."""
    # As the service does once it is loaded: to look for garbage among rows in the making takes a third of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    store = Store(f"sqlite:///{folder}/month.db")
    store.migrate()
    rows = _fill(store)
    floor = Figure("one SQL sum over usage_quarter, by day and series", "s", [], note=f"{DEPLOYMENTS} deployments, {rows:,} rows of the rollup")
    matched = Figure(f"a month of {DEPLOYMENTS} deployments × {len(_METERS)} meters reconciled", "s", [], of=floor.name, note="limit 2 s")
    worked = Figure("its worklist", "s", [], of=floor.name)
    weekly = Figure(f"a weekly report of {DEPLOYMENTS} deployments", "s", [], of=floor.name, note="limit 3 s, PDF included")
    paper = Figure("its PDF", "s", [], of=floor.name)
    for _ in range(rounds):
        for figure, seconds in zip((floor, matched, worked, weekly, paper), _round(store), strict=True):
            figure.rounds.append(seconds)
    store.close()
    return [floor, matched, worked, weekly, paper]


def _round(store: Store) -> tuple[float, ...]:
    with store.read() as session:
        took = [
            _took(lambda: session.execute(sa.text(_FLOOR)).all()),
            _took(lambda: ledger.reconciliation(session, month_period(_MONTH), now=_NOW)),
            _took(lambda: ledger.worklist(session, _MONTH, now=_NOW)),
        ]
    week = ledger.week_of("2026-W43", now=_NOW)
    body: dict[str, Any] = {}
    with store.read() as session:
        took.append(_took(lambda: body.update(reports.keep(session, reports.weekly_draft(session, week, ledger.Filters(), now=_NOW), now=_NOW))))
    return (*took, _took(lambda: reports.written(body, "pdf")))


def _took(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _fill(store: Store) -> int:
    """An October in which every deployment is used every hour and billed every day by eight meters."""
    with store.write() as session:
        make.workspace_fact(session)
        make.token_prices(session, "0.80", "0.90")
        part = make.bill_part(session, period_start=_MONTH, landed_at=_NOW - timedelta(days=1), reaches={"foundry": "2026-10-31"}, in_scope_totals={"USD": "1"})
        rows = 0
        for number in range(DEPLOYMENTS):
            name = f"llama-{number:03}"
            make.foundry(session, name)
            series = make.series(session, deployment=name, application=f"app-{number % 17}", team=f"team-{number % 9}")
            rows += _use(session, series.id or 0, number)
            _bill(session, part.id or 0, name)
        make.event(session, make.series(session, deployment="llama-000"), time=_NOW - timedelta(days=20))
        return rows


def _use(session: Session, series_id: int, number: int) -> int:
    """An hour's calls come in three minutes of one quarter; both rollups hold them, as the service writes both."""
    first = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
    quarters, minutes = [], []
    for hour in range(24 * 31):
        at = first + 3600 * hour
        together = {"requests": 40 + number % 7, "input_tokens": 90_000 + 13 * number + hour, "output_tokens": 20_000 + hour}
        quarters.append(_summed(series_id, at, together))
        first_two = [{name: count // share for name, count in together.items()} for share in (2, 3)]
        rest = {name: count - sum(part[name] for part in first_two) for name, count in together.items()}
        minutes += [_summed(series_id, at + 240 * index, part) for index, part in enumerate((*first_two, rest))]
    session.execute(sa.insert(UsageQuarter), quarters)
    session.execute(sa.insert(UsageMinute), minutes)
    return len(quarters)


def _summed(series_id: int, at: int, counts: dict[str, int]) -> dict[str, int]:
    nothing = {"cached_input_tokens": 0, "reasoning_output_tokens": 0, "unknown_requests": 0, "estimated_requests": 0}
    return {"starts_at": at, "series_id": series_id, "known_on": at // DAY_SECONDS, "outcome": 1, **counts, **nothing}


def _bill(session: Session, part_id: int, name: str) -> None:
    rows = []
    for meter in _METERS:
        item = make.charge_item(session, ChargeClass.FOUNDRY, meter, deployment=name)
        rows += [
            {
                "part_id": part_id,
                "charged_on": date(2026, 10, day),
                "item_id": item.id,
                "charge_type": "Usage",
                "currency": "USD",
                "rows": 1,
                "quantity": Decimal("2.16") + Decimal(day).scaleb(-3),
                "billed_cost": Decimal("1.728") + Decimal(day).scaleb(-3),
                "effective_cost": Decimal("1.728") + Decimal(day).scaleb(-3),
            }
            for day in range(1, 32)
        ]
    session.execute(sa.insert(ChargeDay), rows)
