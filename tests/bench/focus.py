"""How fast a month goes out as FOCUS and how much memory that takes, however many rows the month has."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from collector import focus
from models import ledger, money
from models.charges import Charge, ChargeClass, ChargeDay
from models.money import ZERO
from models.store import Store
from tests import factories as make
from tests.bench.figures import Figure

# METERBRIDGE_BENCH_FOCUS_ROWS=5000000 is the largest month that is promised (400 MiB); as Parquet it took 259 MiB, 100,000 rows 248 (2026-11-21).
ROWS = int(os.environ.get("METERBRIDGE_BENCH_FOCUS_ROWS") or 200_000)
_MONTH, _NOW = date(2026, 10, 1), datetime(2026, 11, 3, tzinfo=UTC)
_ITEMS, _AT_ONCE = 200, 50_000
_DAYS = 31


def exporting(folder: Path, *, rounds: int) -> list[Figure]:
    """The month, and a tenth of it beside it: memory that does not grow with rows is the same in both."""
    figures: list[Figure] = []
    for rows in (ROWS // 10, ROWS):
        database = folder / f"{rows}.db"
        fill(database, rows=rows)
        for form in focus.FORMATS:
            speed = Figure(f"{rows:,} rows as {form}", "rows/s", [], note="every row checked")
            memory = Figure(f"the process at its largest, {rows:,} rows as {form}", "MiB", [])
            told = Figure(f"times it said how far it is, {rows:,} rows as {form}", "", [])
            for _ in range(rounds):
                words = [sys.executable, "-m", "tests.bench.focus", str(database), str(folder / f"out.{form}"), form]
                seconds, largest, said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
                speed.rounds.append(rows / float(seconds))
                memory.rounds.append(float(largest))
                told.rounds.append(float(said))
            figures += [speed, memory, told]
    return figures


def fill(database: Path, *, rows: int) -> None:
    """A billed October of 200 deployments; the last two share one resource, so that their rows have to be split."""
    store = Store(f"sqlite:///{database}")
    store.migrate()
    with store.write() as session:
        make.workspace_fact(session)
        make.token_prices(session, "0.80", "0.90")
        items: list[int] = []
        for number in range(_ITEMS):
            name = f"llama-{number}"
            make.foundry(session, name)
            items.append(make.charge_item(session, ChargeClass.FOUNDRY, deployment=name).id or 0)
        for name in ("chat-a", "chat-b"):
            make.serverless(session, name, offer_id="llama-offer")
            at = datetime(2026, 10, 10, 8, tzinfo=UTC)
            make.event(session, make.series(session, deployment=name), time=at, input_tokens=2_000_000, output_tokens=0)
        items.append(make.charge_item(session, offer_id="llama-offer").id or 0)
        part = make.bill_part(
            session, period_start=_MONTH, landed_at=_NOW - timedelta(days=1), rows=rows, reaches={"foundry": "2026-10-31", "marketplace": "2026-10-31"}
        )
        days: dict[tuple[date, int], list[Any]] = {}
        batch: list[dict[str, Any]] = []
        for row in _rows(part.id or 0, items, rows):
            sums = days.setdefault((row["charged_on"], row["item_id"]), [0, ZERO, ZERO])
            sums[0], sums[1], sums[2] = sums[0] + 1, money.plus(sums[1], row["quantity"]), money.plus(sums[2], row["billed_cost"])
            batch.append(row)
            if len(batch) == _AT_ONCE:
                session.execute(sa.insert(Charge), batch)
                batch = []
        if batch:
            session.execute(sa.insert(Charge), batch)
        session.execute(
            sa.insert(ChargeDay),
            [
                {
                    "part_id": part.id,
                    "charged_on": day,
                    "item_id": item,
                    "charge_type": "Usage",
                    "currency": "USD",
                    "rows": count,
                    "quantity": quantity,
                    "billed_cost": billed,
                    "effective_cost": billed,
                }
                for (day, item), (count, quantity, billed) in days.items()
            ],
        )
    store.close()


def _rows(part: int, items: list[int], rows: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(1)
    for number in range(rows):
        quantity = Decimal(chance.randrange(1, 10**7)).scaleb(-4)
        yield {
            "part_id": part,
            "line": number + 2,
            "item_id": items[number // _DAYS % len(items)],
            "charged_on": _MONTH + timedelta(days=number % _DAYS),
            "charge_type": "Usage",
            "quantity": quantity,
            "unit_price": Decimal("0.71"),
            "billed_cost": money.times(quantity, Decimal("0.71")),
            "currency": "USD",
            "pricing_currency": "USD",
        }


def main() -> None:
    """Export one month; prints its seconds, the most memory (MiB) the process had and how often it said how far it is."""
    store = Store(f"sqlite:///{sys.argv[1]}")
    form = focus.checked("1.2", sys.argv[3])[1]
    said: list[int] = []
    began = time.perf_counter()
    with store.read() as session, Path(sys.argv[2]).open("wb") as stream:
        about = ledger.focus_month(session, _MONTH, now=_NOW)
        focus.export(session, about, stream, version="1.2", form=form, visible=None, now=_NOW, progress=lambda done, _of: said.append(done))
    seconds = time.perf_counter() - began
    store.close()
    print(f"{seconds:.3f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} {len(said)}")  # noqa: T201 (what it is for)


if __name__ == "__main__":
    main()
