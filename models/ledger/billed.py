"""What questions read of bill and meter, once however many ask: charges with whom they may belong to, and the sums of usage."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money, skus
from models.charges import ChargeClass, ChargeItem, MeterKind
from models.columns import EPOCH
from models.ledger.hours import instance_hours, stretches
from models.ledger.shares import Amounts
from models.ledger.world import Use, World, read_usage
from models.matching import Identity
from models.money import ZERO
from models.periods import DAY, Period, day_start, days, utc_day
from models.resources import Mode, Route
from models.usage import DAY_SECONDS

_INSTANT = timedelta(microseconds=1)
# Rows of charges that are in memory as they were read.
_AT_ONCE = 5_000

Place = tuple[date, str, str]  # day, workspace and deployment without case


def place_of(day: date, identity: Identity) -> Place:
    """Where usage and charges of a deployment's day meet."""
    return day, *_folded(identity)


def _folded(identity: Identity) -> tuple[str, str]:
    return (identity.workspace or "").casefold(), (identity.deployment or "").casefold()


@dataclass(slots=True, eq=False)
class Target:
    """An item for as long as it means the same: what it is and whose it may be."""

    item: ChargeItem
    currency: str
    kind: MeterKind
    cores: int | None
    unit_size: Decimal | None
    identities: tuple[Identity, ...]
    common: Identity  # what those that cannot be told apart have in common
    place: tuple[str, str]  # workspace and deployment of the first, without case
    covers: tuple[str | None, str | None]  # workspace and deployment of what they have in common


class Bill(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One day's charges of an item, kind and currency in one landing. ``units`` are tokens or hours; None where the unit is unknown."""

    day: date
    target: Target
    amounts: Amounts
    is_credit: bool  # anything but usage: a refund, a credit, a correction
    lines: int
    invoiced_lines: int  # those of them that name an invoice
    part_id: int
    charge_type: str  # as billed
    is_estimate: bool = False

    @property
    def hours(self) -> Decimal | None:
        """Instance-hours; None for what is billed by tokens, or in an unknown unit."""
        return self.amounts.units if self.target.kind == MeterKind.COMPUTE else None


class Reading:
    """What is known at one instant: the world, and charges and usage of the days that were asked for already."""

    def __init__(self, session: Session, known: datetime) -> None:
        self.world = World(session, known)
        self._session = session
        self._subscriptions = {part.id: part.subscription_id for part in self.world.parts}
        self._items: dict[int, ChargeItem | None] = {}  # None for what is no model spend
        # By the changes that come before a day's start and before its end: by item, currency and subscription; None for what is no model spend.
        self._targets: dict[tuple[int, int], dict[tuple[int, str, str | None], Target | None]] = {}
        # Of equal identities one: so that what belongs together is found by what it is, not by comparing a dozen names.
        self._identities: dict[Identity, Identity] = {}
        self._changes = sorted({*self.world.registry.every_change(), *self.world.meters.changes()})
        self._by_day: dict[date, list[Bill]] = {}
        self._finest: dict[date, int] = {}
        self._usage: dict[datetime | None, dict[int, list[Use]]] = {}  # of every series, by what had arrived and day (since 1970)

    def charges(self, period: Period) -> list[tuple[date, list[Bill]]]:
        """The charges of the UTC days that the period touches, in order of day and item; untagged hours given to whose they must be."""
        asked = list(days(period))
        missing = [day for day in asked if day not in self._by_day] if self._subscriptions else []
        # By runs of days: what is known between them is not read again.
        for _, run in groupby(enumerate(missing), key=lambda pair: pair[1].toordinal() - pair[0]):
            self._read({day: self._by_day.setdefault(day, []) for _, day in run})
        return [(day, bills) for day in asked if (bills := self._by_day.get(day))]

    def finest(self, day: date) -> int:
        """The finest decimal place of a day's amounts as billed (-3: thousandths), once its charges are read; 0 where there are none."""
        return self._finest.get(day, 0)

    def usage(self, period: Period, *, slot: int, shift: int, as_of: datetime | None, series: Sequence[int] | None) -> list[Use]:
        """The usage of a period as ``read_usage`` has it; whole UTC days of every series are read once."""
        first, last = utc_day(period.start + DAY - _INSTANT), utc_day(period.end)  # half open
        if slot != DAY_SECONDS or shift or series is not None or first >= last:
            return read_usage(self._session, period, slot=slot, shift=shift, as_of=as_of, series=series)
        known = self._usage.setdefault(as_of, {})
        numbers = range((first - EPOCH.date()).days, (last - EPOCH.date()).days)
        for _, run in groupby(enumerate(day for day in numbers if day not in known), key=lambda pair: pair[1] - pair[0]):
            missing = [day for _, day in run]
            known |= {day: [] for day in missing}
            whole = Period(EPOCH + missing[0] * DAY, EPOCH + (missing[-1] + 1) * DAY)
            for use in read_usage(self._session, whole, slot=slot, shift=0, as_of=as_of, series=None):
                known[use[0] // DAY_SECONDS].append(use)
        inner = [use for day in numbers for use in known[day]]
        ends = Period(period.start, day_start(first)), Period(day_start(last), period.end)
        before, after = ([] if end.start >= end.end else read_usage(self._session, end, slot=slot, shift=0, as_of=as_of, series=None) for end in ends)
        return [*before, *inner, *after]

    def _read(self, into: Mapping[date, list[Bill]]) -> None:
        """Read the charges of days that follow one another."""
        # As the driver gives them (SQLite: text): objects, or a call for every value, would cost as much again, and there are ten thousands.
        # What nearly always says the same is not even fetched: None is a charge of usage, or a cost that is not spread.
        parts = ", ".join(str(one) for one in self._subscriptions if one is not None)
        asked = sa.text(
            "SELECT charged_on, item_id, currency, quantity, billed_cost, NULLIF(effective_cost, billed_cost), part_id, NULLIF(charge_type, 'Usage'), rows, "  # noqa: S608 - numbers of ours only
            f"invoiced_rows, invoiced_cost FROM charge_day WHERE part_id IN ({parts}) AND charged_on >= :first AND charged_on <= :last "
            "ORDER BY charged_on, item_id, charge_type, currency, part_id"
        ).bindparams(sa.bindparam("first", min(into), sa.Date), sa.bindparam("last", max(into), sa.Date))
        # Whom a charge belongs to and what its meter counts change with the registry and the mappings only, at the start or in the middle of a day.
        tagged: dict[Place, Decimal] = {}
        subscriptions, compute = self._subscriptions, MeterKind.COMPUTE
        day, bills, last = min(into), into[min(into)], None
        targets: dict[tuple[int, str, str | None], Target | None] = {}
        for on, item_id, currency, told, cost, effect, part_id, other_type, lines, invoiced_lines, invoiced in self._rows(asked):
            if on != last:
                day, last = date.fromisoformat(on) if isinstance(on, str) else on, on
                stamp = bisect_right(self._changes, day_start(day)), bisect_right(self._changes, day_start(day + DAY))
                targets, bills = self._targets.setdefault(stamp, {}), into[day]
            key = item_id, currency, subscriptions[part_id]
            try:
                target = targets[key]
            except KeyError:
                target = targets[key] = self._target(*key, day)
            if target is None:
                continue
            billed = Decimal(cost)
            units = None if told is None or target.unit_size is None else money.times(Decimal(told), target.unit_size)
            core_hours = None
            if target.kind == compute and units is not None:
                core_hours = None if target.cores is None else money.times(units, target.cores)
                if target.identities[0].deployment is not None:
                    place = place_of(day, target.identities[0])
                    tagged[place] = money.plus(tagged.get(place, ZERO), units)
            amounts = Amounts(
                billed,
                billed if effect is None else Decimal(effect),
                core_hours,
                units,
                None if invoiced is None else billed if invoiced == cost else Decimal(invoiced),
            )
            is_credit = other_type is not None and other_type.casefold() != "usage"
            bills.append(Bill(day, target, amounts, is_credit, lines, invoiced_lines, part_id, other_type or "Usage"))
        for day, bills in into.items():
            # An exact sum has the finest place of what was added.
            exponent = money.add([bill.amounts.billed for bill in bills]).as_tuple().exponent
            self._finest[day] = exponent if isinstance(exponent, int) else 0
            if any(bill.target.kind == MeterKind.COMPUTE for bill in bills):
                bills[:] = _with_untagged(self.world, bills, tagged)

    def _rows(self, asked: sa.TextClause) -> Iterator[Any]:
        """The rows of a question, some thousands at once, whose items are known then."""
        for some in self._session.execute(asked).partitions(_AT_ONCE):
            self._know_items({one[1] for one in some})
            yield from some

    def _target(self, item_id: int, currency: str, subscription: str | None, day: date) -> Target | None:
        item = self._items.get(item_id)
        if item is None:
            return None
        item = self.world.meters.meant(item, day_start(day))
        identities = self.world.registry.target(item, day_start(day)).identities
        if identities[0].subscription is None and subscription:
            identities = tuple(replace(one, subscription=subscription) for one in identities)
        return _of(item, currency, tuple(self._identities.setdefault(one, one) for one in identities))

    def _know_items(self, ids: set[int]) -> None:
        """Read the items that count as model spend."""
        wanted = sorted(ids - self._items.keys())
        self._items |= dict.fromkeys(wanted)
        for index in range(0, len(wanted), 500):
            query = select(ChargeItem).where(col(ChargeItem.id).in_(wanted[index : index + 500]), col(ChargeItem.charge_class) != ChargeClass.OUT_OF_SCOPE)
            self._items |= {item.id: item for item in self._session.exec(query) if item.id is not None}


def _of(item: ChargeItem, currency: str, identities: tuple[Identity, ...]) -> Target:
    common = _common(identities)
    return Target(
        item,
        currency,
        item.meter_kind,
        item.cores or skus.cores(item.sku or ""),
        item.unit_size,
        identities,
        common,
        _folded(identities[0]),
        (common.workspace, common.deployment),
    )


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


def _with_untagged(world: World, bills: list[Bill], tagged: Mapping[Place, Decimal]) -> list[Bill]:
    """Give untagged VM rows to the only deployment of their size, up to its instance-hours."""
    managed = list(world.registry.managed())
    left: dict[Place, Decimal] = {}
    found: list[Bill] = []
    for bill in bills:
        if bill.target.kind != MeterKind.COMPUTE:
            found.append(bill)
            continue
        only, hours = bill.target.identities[0], bill.hours
        sku = (bill.target.item.sku or "").casefold()
        if hours is None or hours <= 0 or only.deployment is not None or only.workspace is None or not sku:
            found.append(bill)
            continue
        begin, finish = day_start(bill.day), min(day_start(bill.day + DAY), world.known)
        fitting = {
            name: runs
            for workspace, name, facts in managed
            if workspace == only.workspace
            if (runs := [one for one in stretches(facts, begin, finish) if (one[2].sku or "").casefold() == sku])
        }
        if len(fitting) != 1:
            found.append(bill)
            continue
        ((name, runs),) = fitting.items()
        known = world.registry.identity(only.workspace, name, model=None, at=runs[0][0])
        given = replace(known, mode=Mode.MANAGED_COMPUTE, route=Route.COMPUTE, subscription=only.subscription or known.subscription)
        place = place_of(bill.day, given)
        if place not in left:
            own = money.add(money.times(instance_hours(a, b), fact.instance_count or 0) for a, b, fact in runs)
            left[place] = max(ZERO, money.minus(own, tagged.get(place, ZERO)))
        taken = min(left[place], hours)
        if taken <= 0:
            found.append(bill)
            continue
        left[place] = money.minus(left[place], taken)
        rest = money.minus(hours, taken)
        target, weights = bill.target, [taken, rest]
        (billed, billed_rest), (effective, effective_rest) = money.split(bill.amounts.billed, weights), money.split(bill.amounts.effective, weights)
        of_it, of_rest = (None, None) if bill.amounts.invoiced is None else money.split(bill.amounts.invoiced, weights)
        whole = _amounts(target, billed, effective, taken, of_it)
        found.append(msgspec.structs.replace(bill, amounts=whole, target=_of(target.item, target.currency, (given,)), is_estimate=True))
        if rest > 0:
            found.append(msgspec.structs.replace(bill, amounts=_amounts(target, billed_rest, effective_rest, rest, of_rest)))
    return found


def _amounts(target: Target, billed: Decimal, effective: Decimal, hours: Decimal, invoiced: Decimal | None) -> Amounts:
    return Amounts(billed, effective, None if target.cores is None else money.times(hours, target.cores), hours, invoiced)
