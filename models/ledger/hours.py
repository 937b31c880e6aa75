"""Instance-hours of managed compute: over which stretches which facts hold, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from models import money
from models.columns import to_microseconds
from models.money import ZERO
from models.resources import DeploymentFact, Mode

_HOUR = 3_600_000_000


def instance_hours(start: datetime, end: datetime) -> Decimal:
    """The hours of [start, end): whole UTC hours, and each broken one rounded half-even to six digits."""
    first, last = -(-to_microseconds(start) // _HOUR), to_microseconds(end) // _HOUR
    if first > last:
        return _broken_hour(to_microseconds(end) - to_microseconds(start))
    whole = Decimal(last - first)
    return money.add((whole, _broken_hour(first * _HOUR - to_microseconds(start)), _broken_hour(to_microseconds(end) - last * _HOUR)))


def _broken_hour(microseconds: int) -> Decimal:
    share = money.ratio(Decimal(microseconds), Decimal(_HOUR)) or ZERO
    return share.quantize(Decimal("0.000001"))


def stretches(facts: Sequence[DeploymentFact], start: datetime, end: datetime) -> list[tuple[datetime, datetime, DeploymentFact]]:
    """The stretches of [start, end) over which managed compute runs unchanged, by what was learnt last; gaps have none."""
    edges = {start, end, *(at for fact in facts for at in (fact.valid_from, fact.valid_to) if at is not None and start < at < end)}
    found: list[tuple[datetime, datetime, DeploymentFact]] = []
    for left, right in pairwise(sorted(edges)):
        holding = [fact for fact in facts if (fact.valid_from is None or fact.valid_from <= left) and (fact.valid_to is None or left < fact.valid_to)]
        if holding:
            fact = max(holding, key=lambda one: (one.known_from, one.id or 0))
            if fact.mode != Mode.MANAGED_COMPUTE or not fact.sku or fact.instance_count is None:
                continue
            if found and found[-1][1] == left and _runs_on(found[-1][2], fact):
                found[-1] = (found[-1][0], right, fact)
            else:
                found.append((left, right, fact))
    return found


def _runs_on(before: DeploymentFact, after: DeploymentFact) -> bool:
    """Whether nothing that hours or their price hang on differs."""
    return before is after or all(getattr(before, name) == getattr(after, name) for name in ("sku", "instance_count", "region", "model"))
