"""What Azure says of how busy GPUs were: means of whole hours, unknown where it says nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.periods import Period
from models.utilisation import GpuHour

ABSENT = "Azure Monitor told no GPU metric of these instances in the period"
_HUNDRED = Decimal(100)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Mean shares of GPU time and of GPU memory over so many hours of instances that told them; None with a reason where none did."""

    busy: Decimal | None
    memory: Decimal | None
    hours: int
    reason: str | None


def gpu_use(session: Session, period: Period, places: Collection[tuple[str, str]]) -> GpuUse:
    """How busy the GPUs of these deployments (workspace, name) were, every hour of each weighing the same."""
    wanted = {(workspace.casefold(), name.casefold()) for workspace, name in places}
    row = GpuHour
    asked = select(row).where(
        col(row.time) >= period.start, col(row.time) < period.end, sa.func.lower(col(row.workspace)).in_({workspace for workspace, _ in wanted})
    )
    told = [one for one in session.exec(asked) if (one.workspace.casefold(), one.deployment.casefold()) in wanted] if places else []
    busy, memory = ([value for value in values if value is not None] for values in ((one.busy_percent for one in told), (one.memory_percent for one in told)))
    return GpuUse(_share(busy), _share(memory), len(busy), None if busy else ABSENT)


def _share(percents: list[Decimal]) -> Decimal | None:
    if not percents:
        return None
    return money.truncated(money.QUOTIENT.divide(money.add(percents), _HUNDRED * len(percents)), 6)
