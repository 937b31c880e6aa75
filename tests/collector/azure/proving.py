"""How a pull is held against the simulator's truth: every subscription, month, currency, resource, meter and day."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlmodel import col, select

from collector.azure import sync
from collector.azure.simulator import InventedWorld, Simulator
from collector.demo.azure import SampleAzure
from models import money
from models.charges import BillPart, Charge, ChargeItem
from models.errors import UpstreamError
from models.store import Store

# How many seeds each property is shown for: few in an ordinary run, METERBRIDGE_TEST_SEEDS of them on request.
SEEDS = int(os.environ.get("METERBRIDGE_TEST_SEEDS") or 1)
Key = tuple[str, date, str, str, str | None, str, date]


@contextmanager
def pulling(world: InventedWorld, store: Store, now: Callable[[], datetime], *, timeout: float = 0.5) -> Iterator[tuple[Simulator, Callable[[], None]]]:
    """The world as an Azure, and a pull of all its costs through the client, which waits for nothing here."""
    with SampleAzure(world, store, first_day=world.first_day, now=now, sleep=lambda _seconds: None, timeout=timeout) as azure:
        simulator = azure.simulator
        simulator.costs.poll_seconds = "0.005"
        simulator.faults.hang_seconds = 0.02
        simulator.faults.retry_after_seconds = 0

        def pull() -> None:
            """What is due, as the schedule would ask for it."""
            with azure.opened() as client:
                failures = sync.pull(store, client, "costs", now=now, say=lambda _line: None, progress=lambda _done, _of: None)
            if failures:
                raise UpstreamError("; ".join(failures), retryable=True)

        yield simulator, pull


def stored(store: Store, *, amortized: bool = False) -> dict[Key, Decimal]:
    """The current bill, row by row summed in plain Decimal: neither day sums nor totals are believed. Zeros are left out."""
    found: dict[Key, Decimal] = {}
    with store.read() as session:
        rows = (
            select(Charge, ChargeItem, BillPart)
            .join(ChargeItem, col(ChargeItem.id) == col(Charge.item_id))
            .join(BillPart, col(BillPart.id) == col(Charge.part_id))
            .where(col(BillPart.landed_at).is_not(None), col(BillPart.superseded_at).is_(None))
        )
        for charge, item, part in session.exec(rows):
            name = f"{item.endpoint}/{item.deployment}" if item.endpoint else item.deployment
            key = (part.subscription_id, part.period_start, charge.currency, item.resource_id.lower(), name, item.meter_name, charge.charged_on)
            amount = charge.effective_cost if amortized and charge.effective_cost is not None else charge.billed_cost
            found[key] = money.plus(found.get(key, money.ZERO), amount)
    return {key: amount for key, amount in found.items() if amount}


def truth(world: InventedWorld, at: datetime, *, amortized: bool = False) -> dict[Key, Decimal]:
    """The simulator's truth in the same words; what is no model spend is kept without its resource."""
    found: dict[Key, Decimal] = {}
    for key, amount in world.truth(at, metric="AmortizedCost" if amortized else "ActualCost").items():
        is_model_spend = any(part in key.resource for part in ("/microsoft.saas/", "/accounts/", "/workspaces/"))
        resource = key.resource if is_model_spend else ""
        meter = key.meter if key.resource else "Rounding Adjustment"
        said = (key.subscription, key.month, key.currency, resource, key.deployment, meter, key.day)
        found[said] = money.plus(found.get(said, money.ZERO), amount)
    return {key: amount for key, amount in found.items() if amount}


def current(store: Store) -> list[Any]:
    """The parts that count, as they stand: unchanged means byte for byte."""
    with store.read() as session:
        parts = select(BillPart).where(col(BillPart.landed_at).is_not(None), col(BillPart.superseded_at).is_(None)).order_by(col(BillPart.id))
        return [part.model_dump() for part in session.exec(parts)]


def leftovers(store: Store) -> int:
    """Rows of parts that were staged and never flipped in."""
    with store.read() as session:
        staged = select(Charge.id).join(BillPart, col(BillPart.id) == col(Charge.part_id)).where(col(BillPart.landed_at).is_(None))
        return len(session.exec(staged).all())
