"""The charges that a question needs, day by day and item by item, with whom they may belong to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money, skus
from models.charges import ChargeClass, ChargeDay, ChargeItem, MeterKind
from models.ledger.hours import instance_hours, stretches
from models.ledger.shares import Amounts
from models.ledger.world import World
from models.matching import Identity
from models.money import ZERO
from models.periods import DAY, Period, day_start, utc_day
from models.resources import Mode, Route

_MICROSECOND = timedelta(microseconds=1)
Place = tuple[date, str, str]  # day, workspace and deployment without case


def place_of(day: date, identity: Identity) -> Place:
    """Where usage and charges of a deployment's day meet."""
    return day, (identity.workspace or "").casefold(), (identity.deployment or "").casefold()


@dataclass(slots=True, eq=False)
class Target:
    """An item for as long as it means the same: what it is and whose it may be.

    ``groups`` are kept for every view of a question that was asked already (None: not in it).
    """

    item: ChargeItem
    kind: MeterKind
    cores: int | None
    unit_size: Decimal | None
    identities: tuple[Identity, ...]
    common: Identity  # what those that cannot be told apart have in common
    groups: dict[int, tuple[str | None, ...] | None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Bill:
    """One day's charges of an item and kind in one landing. ``units`` are tokens or hours; None where the unit is unknown."""

    day: date
    target: Target
    currency: str
    amounts: Amounts
    is_credit: bool  # anything but usage: a refund, a credit, a correction
    lines: int
    part_id: int
    charge_type: str  # as billed
    is_estimate: bool = False

    @property
    def hours(self) -> Decimal | None:
        """Instance-hours; None for what is billed by tokens, or in an unknown unit."""
        return self.amounts.units if self.target.kind == MeterKind.COMPUTE else None


def charges_of(session: Session, world: World, period: Period, *, horizon: datetime) -> list[Bill]:
    """The charges of the UTC days that the period touches, in order of day and item; untagged hours given to whose they must be."""
    subscriptions = {part.id: part.subscription_id for part in world.parts}
    if not subscriptions:
        return []
    row = ChargeDay
    columns = [col(one) for one in (row.charged_on, row.item_id, row.currency, row.quantity, row.billed_cost, row.effective_cost, row.part_id)]
    columns += [col(row.charge_type), col(row.rows)]
    found = session.execute(
        sa.select(*columns)
        .where(
            col(row.part_id).in_(list(subscriptions)),
            col(row.charged_on) >= utc_day(period.start),
            col(row.charged_on) <= utc_day(period.end - _MICROSECOND),
        )
        .order_by(col(row.charged_on), col(row.item_id), col(row.charge_type), col(row.currency), col(row.part_id))
    ).all()
    items = _items(session, {one.item_id for one in found})
    changes = sorted(world.registry.every_change())
    targets: dict[tuple[int, int, int, str | None], Target] = {}
    stamps: dict[date, tuple[int, int]] = {}
    bills: list[Bill] = []
    tagged: dict[Place, Decimal] = {}
    times = money.EXACT.multiply
    for day, item_id, currency, quantity, billed, effective, part_id, charge_type, lines in found:
        item = items.get(item_id)
        if item is None:
            continue
        stamp = stamps.get(day)
        if stamp is None:
            # Whom a charge belongs to changes with the registry only, at the start or in the middle of a day.
            stamp = stamps[day] = (bisect_right(changes, day_start(day)), bisect_right(changes, day_start(day + DAY)))
        subscription = subscriptions[part_id]
        key = (item_id, *stamp, subscription)
        target = targets.get(key)
        if target is None:
            target = targets[key] = _target(world, item, day, subscription)
        units = None if quantity is None or target.unit_size is None else times(quantity, target.unit_size)
        core_hours = None
        if target.kind == MeterKind.COMPUTE and units is not None:
            core_hours = None if target.cores is None else times(units, Decimal(target.cores))
            if target.identities[0].deployment is not None:
                place = place_of(day, target.identities[0])
                tagged[place] = money.plus(tagged.get(place, ZERO), units)
        is_credit = charge_type != "Usage" and charge_type.casefold() != "usage"
        bills.append(Bill(day, target, currency, Amounts(billed, effective, core_hours, units), is_credit, lines, part_id, charge_type))
    return list(_with_untagged(world, bills, tagged, horizon=horizon))


def _items(session: Session, ids: set[int]) -> dict[int, ChargeItem]:
    """The items that count as model spend."""
    wanted = sorted(ids)
    found: dict[int, ChargeItem] = {}
    for index in range(0, len(wanted), 500):
        query = select(ChargeItem).where(col(ChargeItem.id).in_(wanted[index : index + 500]), col(ChargeItem.charge_class) != ChargeClass.OUT_OF_SCOPE)
        found |= {item.id: item for item in session.exec(query) if item.id is not None}
    return found


def _target(world: World, item: ChargeItem, day: date, subscription: str | None) -> Target:
    identities = world.registry.target(item, day_start(day)).identities
    if identities[0].subscription is None and subscription:
        identities = tuple(replace(one, subscription=subscription) for one in identities)
    return _of(item, identities)


def _of(item: ChargeItem, identities: tuple[Identity, ...]) -> Target:
    return Target(item, item.meter_kind, item.cores or skus.cores(item.sku or ""), item.unit_size, identities, _common(identities))


def _common(identities: tuple[Identity, ...]) -> Identity:
    first = identities[0]
    if len(identities) == 1:
        return first
    workspaces = {identity.workspace for identity in identities}
    models = {identity.model for identity in identities}
    return replace(
        first,
        workspace=first.workspace if len(workspaces) == 1 else None,
        deployment=None,
        model=first.model if len(models) == 1 else None,
        is_confirmed=False,
    )


def _with_untagged(world: World, bills: list[Bill], tagged: dict[Place, Decimal], *, horizon: datetime) -> Iterator[Bill]:
    """Give untagged VM rows to the only deployment of their size, up to its instance-hours."""
    managed = list(world.registry.managed())
    left: dict[Place, Decimal] = {}
    for bill in bills:
        if bill.target.kind != MeterKind.COMPUTE:
            yield bill
            continue
        only, hours = bill.target.identities[0], bill.hours
        sku = (bill.target.item.sku or "").casefold()
        if hours is None or hours <= 0 or only.deployment is not None or only.workspace is None or not sku:
            yield bill
            continue
        begin, finish = day_start(bill.day), min(day_start(bill.day + DAY), horizon)
        fitting = {
            name: runs
            for workspace, name, facts in managed
            if workspace == only.workspace
            if (runs := [one for one in stretches(facts, begin, finish) if (one[2].sku or "").casefold() == sku])
        }
        if len(fitting) != 1:
            yield bill
            continue
        ((name, runs),) = fitting.items()
        found = world.registry.identity(only.workspace, name, model=None, at=runs[0][0])
        given = replace(found, mode=Mode.MANAGED_COMPUTE, route=Route.COMPUTE, subscription=only.subscription or found.subscription)
        place = place_of(bill.day, given)
        if place not in left:
            own = money.add(money.times(instance_hours(a, b), fact.instance_count or 0) for a, b, fact in runs)
            left[place] = max(ZERO, money.minus(own, tagged.get(place, ZERO)))
        taken = min(left[place], hours)
        if taken <= 0:
            yield bill
            continue
        left[place] = money.minus(left[place], taken)
        rest = money.minus(hours, taken)
        target, weights = bill.target, [taken, rest]
        (billed, billed_rest), (effective, effective_rest) = money.split(bill.amounts.billed, weights), money.split(bill.amounts.effective, weights)
        yield replace(bill, amounts=_amounts(target, billed, effective, taken), target=_of(target.item, (given,)), is_estimate=True)
        if rest > 0:
            yield replace(bill, amounts=_amounts(target, billed_rest, effective_rest, rest))


def _amounts(target: Target, billed: Decimal, effective: Decimal, hours: Decimal) -> Amounts:
    return Amounts(billed, effective, None if target.cores is None else money.times(hours, target.cores), hours)
