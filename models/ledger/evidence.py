"""What an answer was made of, kept while it is made: quantities by price version, charges by landing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal

from models import money
from models.charges import ChargeItem, MeterKind
from models.ledger.shares import Share
from models.matching import Identity
from models.money import ZERO
from models.prices import Price, UnitPrice


@dataclass(frozen=True, slots=True)
class MeteredKey:
    """What one line of metered evidence has in common."""

    workspace: str | None
    deployment: str | None
    meter: str
    currency: str | None
    price_id: int | None
    rate: Decimal | None
    reason: str | None


@dataclass(slots=True)
class Metered:
    """Units of one price version; ``counted`` is what of the amount no bill replaces."""

    price: Price | None
    units: Decimal = ZERO
    amount: Decimal | None = None
    counted: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class BilledKey:
    """What one line of billed evidence has in common."""

    workspace: str | None
    deployment: str | None
    meter: str
    currency: str | None
    part_id: int


@dataclass(slots=True)
class Billed:
    """Charges of one landing for one deployment's meter."""

    first_day: date
    last_day: date
    amount: Decimal = ZERO
    effective: Decimal = ZERO
    rows: int = 0
    estimate: bool = False


@dataclass(slots=True)
class Evidence:
    """The lines behind one answer."""

    metered: dict[MeteredKey, Metered] = field(default_factory=dict)
    billed: dict[BilledKey, Billed] = field(default_factory=dict)

    def note_metered(
        self,
        identity: Identity,
        *,
        day: date,
        meter: MeterKind,
        price: UnitPrice | None,
        currency: str | None,
        rate: Decimal | None,
        reason: str | None,
        units: Decimal,
        amount: Decimal | None,
        counts: bool,
    ) -> None:
        """A day's units that were priced, or could not be (``reason``)."""
        del day
        row = None if price is None else price.row
        key = MeteredKey(identity.workspace, identity.deployment, meter.value, currency, None if row is None else row.id, rate, reason)
        line = self.metered.setdefault(key, Metered(row))
        line.units = money.plus(line.units, units)
        if amount is not None:
            line.amount = amount if line.amount is None else money.plus(line.amount, amount)
            if counts:
                line.counted = money.plus(line.counted, amount)

    def note_billed(
        self, share: Share, *, item: ChargeItem, charge_type: str, currency: str | None, part_id: int, day: date, rows: int, estimate: bool
    ) -> None:
        """A share of a day's charges of one item and kind."""
        del charge_type
        key = BilledKey(share.identity.workspace, share.identity.deployment, item.meter_kind.value, currency, part_id)
        line = self.billed.setdefault(key, Billed(day, day))
        line.first_day, line.last_day = min(line.first_day, day), max(line.last_day, day)
        line.amount = money.plus(line.amount, share.amounts.billed)
        line.effective = money.plus(line.effective, share.amounts.effective)
        line.rows += rows
        line.estimate |= estimate
