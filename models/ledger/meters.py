"""The meters of the bills: what each counts, who says so, and the money of those that nobody can tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.charges import ChargeClass, ChargeDay, ChargeItem, MeterKind
from models.ledger.values import Problem
from models.ledger.world import World
from models.meters import MappedKind, MeterMapping, meter_text
from models.money import ZERO
from models.periods import DAY, day_start, utc_day
from models.resources import Route

LOOKED_AT = 60 * DAY
ROUTES = {ChargeClass.MARKETPLACE: Route.MARKETPLACE, ChargeClass.FOUNDRY: Route.FOUNDRY, ChargeClass.COMPUTE: Route.COMPUTE}
_UNMEASURED = frozenset({MeterKind.ADJUSTMENT, MeterKind.OTHER, MeterKind.COMMITMENT})


@dataclass(frozen=True, slots=True)
class MeterUse:
    """A meter of the bills that count, in one unit and currency, with what it is taken for and its money.

    ``mapping`` is the row that says so; None where the meter's own text does.
    """

    meter: str  # "" where the bill gives it no name at all
    offer: str | None
    route: Route
    kind: MeterKind
    is_fine_tuned: bool
    unit: str
    is_unit_known: bool
    mapping: int | None
    model: str | None
    currency: str
    amount: Decimal
    rows: int
    first_on: date
    last_on: date

    @property
    def problem(self) -> Problem | None:
        """What a person has to say of it; None where it is plain."""
        named = self.meter or "no meter name"
        days = f"; billed from {self.first_on} to {self.last_on}"
        if self.kind == MeterKind.OTHER:
            subject = f"{named} ({self.offer})" if self.offer else named
            detail = f"{self.model or 'no model'}: the meter does not say what it counts, so its quantity is unknown{days}"
            return Problem("unmapped_meter", subject, detail, "say what it counts: on the Data page, or meterbridge import meters FILE", *self._sums())
        if not self.is_unit_known:
            detail = f"{named}: what one unit holds is not known, so neither is the quantity{days}"
            remedy = "say the meter's kind and unit: on the Data page, or meterbridge import meters FILE"
            return Problem("unknown_unit", f"{self.unit or 'no unit'} ({named})", detail, remedy, *self._sums())
        return None

    def _sums(self) -> tuple[str, Decimal, int]:
        return self.currency, self.amount, self.rows


@dataclass(frozen=True, slots=True)
class Meters:
    """What is billed by which meter, those that somebody has to say something of first; and what was said."""

    uses: Sequence[MeterUse]
    mappings: Sequence[MeterMapping]


def meters(session: Session, *, now: datetime) -> Meters:
    """The meters of the last 60 days, and of all time those that cannot be told."""
    world = World(session, now)
    return Meters(list(_uses(session, world, since=utc_day(now - LOOKED_AT))), meter_mappings(session))


def meter_mappings(session: Session) -> list[MeterMapping]:
    """The mappings in use, oldest first."""
    row = MeterMapping
    return list(session.exec(select(row).where(col(row.known_to).is_(None)).order_by(col(row.known_from), col(row.id))))


def untold_meters(session: Session, world: World) -> Iterator[Problem]:
    """The meters of the bills of which somebody has to say what they count or what their unit holds."""
    # One whose own text speaks is looked at only if somebody may have said that it misleads.
    since = utc_day(world.known - LOOKED_AT) if any(row.kind == MappedKind.OTHER for row in meter_mappings(session)) else None
    for use in _uses(session, world, since=since):
        if (problem := use.problem) is not None:
            yield problem


def _uses(session: Session, world: World, *, since: date | None) -> Iterator[MeterUse]:
    """The meters since a day (None: no others), and of all time those whose own text says too little."""
    item, row = ChargeItem, ChargeDay
    in_scope = col(item.charge_class).in_(list(ROUTES))
    says_little = sa.or_(col(item.meter_kind) == MeterKind.OTHER, sa.and_(col(item.unit_size).is_(None), col(item.meter_kind).not_in(list(_UNMEASURED))))
    asked = sa.and_(in_scope, says_little) if since is None else in_scope
    items = {one.id: one for one in session.scalars(sa.select(item).where(asked))}
    if not items:
        return
    parts = [part.id for part in world.parts]
    of_all_time = col(row.item_id).in_(sa.select(col(item.id)).where(in_scope, says_little))
    when = of_all_time if since is None else sa.or_(col(row.charged_on) >= since, of_all_time)
    columns = (row.item_id, row.charged_on, row.charge_type, row.currency, row.rows, row.billed_cost)
    found: dict[tuple[object, ...], MeterUse] = {}
    for item_id, day, charge_type, currency, rows, cost in session.execute(
        sa.select(*(col(one) for one in columns)).where(col(row.part_id).in_(parts), when).order_by(col(row.charged_on), col(row.item_id))
    ):
        own = items.get(item_id)
        if own is None:
            continue
        at = day_start(day)
        mapping, meant = world.meters.mapping(own, at), world.meters.meant(own, at)
        # A plan is subscribed to by a purchase of nothing at no cost; that is no meter to be missed.
        if not cost and charge_type.casefold() == "purchase":
            continue
        said_by = None if mapping is None else mapping.id
        is_known = meant.unit_size is not None or meant.meter_kind in _UNMEASURED
        key = (own.charge_class, meter_text(own), own.offer_id, meant.meter_kind, meant.is_fine_tuned, own.unit, is_known, said_by, currency)
        before = found.get(key)
        found[key] = MeterUse(
            meter=meter_text(own),
            offer=own.offer_id,
            route=ROUTES[own.charge_class],
            kind=meant.meter_kind,
            is_fine_tuned=meant.is_fine_tuned,
            unit=own.unit,
            is_unit_known=is_known,
            mapping=said_by,
            model=own.model if before is None or before.model == own.model else None,
            currency=currency,
            amount=money.plus(ZERO if before is None else before.amount, cost),
            rows=rows if before is None else before.rows + rows,
            first_on=day if before is None else before.first_on,
            last_on=day,
        )
    yield from sorted(found.values(), key=lambda use: (use.problem is None, use.meter.casefold(), use.offer or "", use.currency, use.unit, str(use.mapping)))
