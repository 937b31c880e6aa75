"""A billing month as charges and estimates that can be told apart, for an export: streamed, and equal to the ledger's sums.

A charge that belongs to one deployment is one line, as billed. One that billing cannot attribute by itself (a SaaS
resource of several deployments, an untagged VM row) is cut exactly as ``costs`` cuts it, a line for each share, with the
ratio. What a reservation or savings plan pays for, and what it costs, is a line for each day: the bill tells its amortized
cost in rows of their own. Usage that the bill does not reach yet is a line of an estimate, of no billed cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import sqlalchemy as sa
from sqlmodel import Session, col

from models import money
from models.charges import BillPart, Charge, ChargeClass, ChargeDay, ChargeItem, MeterKind
from models.closing import closes_known
from models.ledger.closing import restated
from models.ledger.costs import Answer
from models.ledger.evidence import Evidence
from models.ledger.reconciliation import ReconciliationRow
from models.ledger.shares import Share
from models.ledger.values import CostQuery, Filters
from models.ledger.world import World
from models.matching import Identity
from models.money import ZERO
from models.periods import DAY, Period, day_start, days, month_period, utc_day
from models.prices import PriceMeter, UnitPrice
from models.resources import DeploymentFact, Mode

Kind = Literal["charge", "share", "estimate", "correction"]
# Rows of a bill that are reasoned over at once, where lines are shares of them.
_MOST_TOGETHER = 100_000
_INSTANT = timedelta(microseconds=1)
_PRICED = {
    MeterKind.INPUT: PriceMeter.INPUT_TOKENS,
    MeterKind.OUTPUT: PriceMeter.OUTPUT_TOKENS,
    MeterKind.CACHED_INPUT: PriceMeter.CACHED_INPUT_TOKENS,
    MeterKind.TRAINING: PriceMeter.TRAINING_TOKENS,
    MeterKind.HOSTING: PriceMeter.HOSTING_HOURS,
    MeterKind.COMPUTE: PriceMeter.INSTANCE_HOURS,
}


@dataclass(frozen=True, slots=True)
class FocusLine:
    """One line of the month. Quantities are in tokens or hours (``units``), prices in ``currency`` for one of them.

    ``billed_unit`` is how many units one priced unit holds (1,000 for a meter in 1K). ``ratio`` is this share's part of its origin.
    """

    kind: Kind
    id: str
    day: date
    currency: str
    billed: Decimal
    effective: Decimal
    item: ChargeItem | None
    charge_type: str
    meter: MeterKind
    identity: Identity
    fact: DeploymentFact | None
    units: Decimal | None
    billed_unit: Decimal | None
    list_price: Decimal | None  # for one unit
    contracted_price: Decimal | None
    pricing_currency: str
    rate: Decimal  # from the pricing currency to ``currency``
    price_version: str | None
    invoice_id: str | None
    billing_account: str
    subscription: str
    origin: str | None = None
    ratio: Decimal | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class FocusMonth:
    """What a month's export says of itself; ``as_of`` is when a closed month was closed."""

    month: date
    is_closed: bool
    as_of: datetime | None
    rows: int  # at least so many lines are to come
    closed_by: str = ""


def focus_month(session: Session, month: date, *, now: datetime) -> FocusMonth:
    """Whether the month is closed, and about how many lines it has."""
    close = next((one for one in closes_known(session, now) if one.month == month), None)
    known = now if close is None else close.closed_at
    rows = session.scalar(sa.select(sa.func.sum(col(BillPart.rows))).where(*_counting(month, known))) or 0
    return FocusMonth(month, close is not None, None if close is None else close.closed_at, int(rows), "" if close is None else close.closed_by)


def _counting(month: date, known: datetime) -> Sequence[sa.ColumnElement[bool]]:
    return (
        col(BillPart.period_start) == month,
        col(BillPart.landed_at) <= known,
        sa.or_(col(BillPart.superseded_at).is_(None), col(BillPart.superseded_at) > known),
    )


def focus_lines(session: Session, about: FocusMonth, *, visible: frozenset[str] | None, now: datetime) -> Iterator[FocusLine]:
    """Every line of the month: charges of its bill, then estimates of what the bill does not reach, then corrections of closed months."""
    return _Export(session, about, visible, now).lines()


_Cut = tuple[date, int, int, str, str]  # day, part, item, kind of charge, currency


@dataclass(slots=True)
class _Shares(Evidence):
    """The shares of some days' charges, by what they are shares of, and what was metered there, day by day."""

    wanted: frozenset[_Cut] = frozenset()
    cut: dict[_Cut, list[tuple[Identity, Decimal, Decimal, Decimal | None]]] = field(default_factory=dict)
    by_day: dict[date, Evidence] = field(default_factory=dict)

    def note_metered(self, identity: Identity, *, day: date, **said: Any) -> None:
        """Keep what the bill does not reach."""
        if said["counts"]:
            self.by_day.setdefault(day, Evidence()).note_metered(identity, day=day, **said)

    def note_billed(
        self, share: Share, *, item: ChargeItem, charge_type: str, currency: str | None, part_id: int, day: date, rows: int, estimate: bool
    ) -> None:
        """Keep the share with its deployment; shares of the same one are added up."""
        del rows, estimate
        cut = (day, part_id, item.id or 0, charge_type, currency or "")
        if cut not in self.wanted:
            return
        of = self.cut.setdefault(cut, [])
        amounts, key = share.amounts, (share.identity.workspace, share.identity.deployment)
        for index, (identity, billed, effective, units) in enumerate(of):
            if (identity.workspace, identity.deployment) == key:
                together = None if units is None or amounts.units is None else money.plus(units, amounts.units)
                of[index] = (identity, money.plus(billed, amounts.billed), money.plus(effective, amounts.effective), together)
                return
        of.append((share.identity, amounts.billed, amounts.effective, amounts.units))


class _Export:
    """One month on its way out."""

    def __init__(self, session: Session, about: FocusMonth, visible: frozenset[str] | None, now: datetime) -> None:
        self._session = session
        self._about = about
        self._visible = visible
        self._now = now
        self._known = about.as_of or now
        self._world = World(session, self._known)
        self._parts = {part.id or 0: part for part in self._world.parts if part.period_start == about.month}
        self._items: dict[int, ChargeItem] = {}
        self._whose: dict[tuple[int, date], Identity | None] = {}
        self._prices: dict[tuple[object, ...], tuple[Decimal, str] | None] = {}
        self._corrections = list(self._corrected())
        # A file has the ids of all rows or of none: also of what corrects an earlier month.
        self._has_invoices = self._is_invoiced() and all(one.invoice_id for one in self._corrections)

    def lines(self) -> Iterator[FocusLine]:
        cut: set[_Cut] = set()
        committed: set[_Cut] = set()
        for part_id in sorted(self._parts):
            yield from self._charges(part_id, cut, committed)
        for one in sorted(committed):
            yield self._committed(one)
        yield from self._shared(cut)
        for line in self._corrections:
            yield line if self._has_invoices else replace(line, invoice_id=None)

    def _shared(self, cut: set[_Cut]) -> Iterator[FocusLine]:
        """The lines that only the ledger's own reasoning gives: shares, and estimates. Some days at a time, so that memory stays small."""
        month = month_period(self._about.month)
        whole = set() if self._about.is_closed else set(days(Period(month.start, min(month.end, day_start(utc_day(self._now) + DAY)))))
        asked = sorted({day for day, *_ in cut} | whole)
        step = max(1, min(31, _MOST_TOGETHER * 30 // (self._about.rows + 1)))
        runs: list[list[date]] = []
        for day in asked:
            if runs and len(runs[-1]) < step and day == runs[-1][-1] + DAY:
                runs[-1].append(day)
            else:
                runs.append([day])
        for run in runs:
            wanted = frozenset(one for one in cut if run[0] <= one[0] <= run[-1])
            shares = self._reasoned(run[0], run[-1], wanted)
            for day in run:
                yield from self._cut(sorted(one for one in wanted if one[0] == day), shares)
                if day in whole and day in shares.by_day:
                    yield from self._estimates(day, shares.by_day[day])

    def _is_invoiced(self) -> bool:
        """Whether every charge of the month names its invoice: a file has the ids of all rows or of none."""
        parts = list(self._parts)
        if not parts:
            return False
        row = Charge
        without = sa.select(col(row.id)).where(col(row.part_id).in_(parts), sa.or_(col(row.invoice_id).is_(None), col(row.invoice_id) == ""))
        return self._session.execute(without.limit(1)).first() is None

    # -- charges --------------------------------------------------------------------------------

    def _charges(self, part_id: int, cut: set[_Cut], committed: set[_Cut]) -> Iterator[FocusLine]:
        row = Charge
        columns = (
            row.line,
            row.item_id,
            row.charged_on,
            row.charge_type,
            row.quantity,
            row.unit_price,
            row.billed_cost,
            row.effective_cost,
            row.currency,
            row.pricing_currency,
            row.invoice_id,
        )
        asked = sa.select(*(col(one) for one in columns)).where(col(row.part_id) == part_id).order_by(col(row.line))
        for line, item_id, day, charge_type, quantity, unit_price, billed, effective, currency, pricing_currency, invoice_id in self._session.execute(
            asked, execution_options={"yield_per": 5000}
        ):
            item = self._item(item_id, day)
            if item.charge_class == ChargeClass.OUT_OF_SCOPE:
                continue
            identity = self._owner(item, day)
            if identity is None:
                cut.add((day, part_id, item_id, charge_type, currency))
                continue
            if self._visible is not None and identity.workspace not in self._visible:
                continue
            if item.commitment_id is not None:
                committed.add((day, part_id, item_id, charge_type, currency))
                continue
            yield self._line(
                "charge",
                f"{part_id}-{line}",
                part_id,
                item,
                identity,
                day=day,
                charge_type=charge_type,
                units=None if quantity is None or item.unit_size is None else money.times(quantity, item.unit_size),
                billed=billed,
                effective=billed if effective is None else effective,
                currency=currency,
                unit_price=unit_price,
                pricing_currency=pricing_currency or currency,
                invoice_id=invoice_id,
            )

    def _committed(self, key: _Cut) -> FocusLine:
        """A day of one item under a commitment: billed and amortized cost, which the bill has in different rows, side by side."""
        day, part_id, item_id, charge_type, currency = key
        item, row = self._item(item_id, day), Charge
        total = self._session.get_one(ChargeDay, (part_id, day, item_id, charge_type, currency))
        of_the_day = (col(row.part_id) == part_id, col(row.item_id) == item_id, col(row.charged_on) == day, col(row.charge_type) == charge_type)
        said = self._session.execute(sa.select(col(row.unit_price), col(row.pricing_currency)).where(*of_the_day, col(row.currency) == currency).distinct())
        # What the commitment pays for has a price of nothing; what it would cost without is the price book's.
        prices = {(price, pricing) for price, pricing in said if price}
        price, pricing_currency = prices.pop() if len(prices) == 1 else (None, None)
        identity = self._owner(item, day)
        assert identity is not None
        found = self._line(
            "charge",
            f"{part_id}-{item_id}-{day:%Y%m%d}-{charge_type.casefold()}-{currency}",
            part_id,
            item,
            identity,
            day=day,
            charge_type=charge_type,
            units=None if total.quantity is None or item.unit_size is None else money.times(total.quantity, item.unit_size),
            billed=total.billed_cost,
            effective=total.effective_cost,
            currency=currency,
            unit_price=price,
            pricing_currency=pricing_currency or currency,
            invoice_id=self._invoice_of(part_id, item_id, day),
        )
        self._session.expunge(total)
        return found

    def _item(self, item_id: int, day: date) -> ChargeItem:
        """The item as it is to be understood on the day."""
        found = self._items.get(item_id)
        if found is None:
            found = self._session.get_one(ChargeItem, item_id)
            self._session.expunge(found)
            self._items[item_id] = found
        return self._world.meters.meant(found, day_start(day))

    def _owner(self, item: ChargeItem, day: date) -> Identity | None:
        """Whose charge it is; None where it has to be cut as the ledger cuts it."""
        key = (item.id or 0, day)
        if key not in self._whose:
            if len(self._whose) > 200_000:
                self._whose.clear()
            identities = self._world.registry.target(item, day_start(day)).identities
            only = identities[0]
            has_shares = len(identities) > 1 or (item.meter_kind == MeterKind.COMPUTE and only.deployment is None and only.workspace is not None and item.sku)
            self._whose[key] = None if has_shares else only
        return self._whose[key]

    def _cut(self, wanted: Sequence[_Cut], shares: _Shares) -> Iterator[FocusLine]:
        """Charges that are shared, share by share: together what was billed, to the last digit."""
        for key in wanted:
            day, part_id, item_id, charge_type, currency = key
            found = shares.cut.get(key, [])
            item = self._item(item_id, day)
            ratios = self._ratios([billed or units or ZERO for _, billed, _, units in found])
            for number, ((identity, billed, effective, units), ratio) in enumerate(zip(found, ratios, strict=True)):
                if self._visible is not None and identity.workspace not in self._visible:
                    continue
                origin = f"{part_id}-{item_id}-{day:%Y%m%d}-{charge_type.casefold()}-{currency}"
                yield self._line(
                    "share" if len(found) > 1 else "charge",
                    f"{origin}-{number}",
                    part_id,
                    item,
                    identity,
                    day=day,
                    charge_type=charge_type,
                    units=units,
                    billed=billed,
                    effective=effective,
                    currency=currency,
                    unit_price=None,
                    pricing_currency=currency,
                    invoice_id=self._invoice_of(part_id, item_id, day),
                    origin=origin if len(found) > 1 else None,
                    ratio=ratio if len(found) > 1 else None,
                )

    @staticmethod
    def _ratios(amounts: Sequence[Decimal]) -> list[Decimal]:
        """The parts of one, adding up to it exactly."""
        if not amounts:
            return []
        weights = [abs(one) for one in amounts]
        return money.split(Decimal(1), weights if any(weights) else [1] * len(amounts))

    def _invoice_of(self, part_id: int, item_id: int, day: date) -> str | None:
        if not self._has_invoices:
            return None
        row = Charge
        return self._session.scalar(
            sa.select(col(row.invoice_id)).where(col(row.part_id) == part_id, col(row.item_id) == item_id, col(row.charged_on) == day).limit(1)
        )

    def _reasoned(self, first: date, last: date, wanted: frozenset[_Cut]) -> _Shares:
        shares = _Shares(wanted=wanted)
        query = CostQuery(
            Period(day_start(first), day_start(last + DAY)), "day", ("workspace", "deployment", "meter"), "best", Filters(), as_of=self._about.as_of
        )
        Answer(self._session, query, now=self._now, evidence=shares).gather()
        return shares

    def _line(
        self,
        kind: Kind,
        line_id: str,
        part_id: int,
        item: ChargeItem,
        identity: Identity,
        *,
        day: date,
        charge_type: str,
        units: Decimal | None,
        billed: Decimal,
        effective: Decimal,
        currency: str,
        unit_price: Decimal | None,
        pricing_currency: str,
        invoice_id: str | None,
        origin: str | None = None,
        ratio: Decimal | None = None,
    ) -> FocusLine:
        part = self._parts[part_id]
        subscription = item.subscription_id or part.subscription_id
        rate = self._world.rate(part.subscription_id, pricing_currency, currency, day) or Decimal(1)
        contracted = None
        if unit_price is not None and item.unit_size:
            contracted = money.times(money.QUOTIENT.divide(unit_price, item.unit_size), rate)
        listed = self._listed(item, identity, day, currency, subscription=part.subscription_id, charge_type=charge_type)
        return FocusLine(
            kind=kind,
            id=line_id,
            day=day,
            currency=currency,
            billed=billed,
            effective=effective,
            item=item,
            charge_type=charge_type,
            meter=item.meter_kind,
            identity=identity,
            fact=self._fact(identity, day),
            units=units,
            billed_unit=item.unit_size,
            list_price=None if listed is None else listed[0],
            contracted_price=contracted,
            pricing_currency=pricing_currency,
            rate=rate,
            price_version=None if listed is None else listed[1],
            invoice_id=invoice_id if self._has_invoices else None,
            billing_account=part.billing_account,
            subscription=subscription,
            origin=origin,
            ratio=ratio,
        )

    def _fact(self, identity: Identity, day: date) -> DeploymentFact | None:
        if identity.workspace is None or identity.deployment is None:
            return None
        return self._world.registry.fact(identity.workspace, identity.deployment, day_start(day))

    def _listed(self, item: ChargeItem, identity: Identity, day: date, currency: str, *, subscription: str, charge_type: str) -> tuple[Decimal, str] | None:
        """The price book's price of one unit in the billing currency, with its version."""
        is_unused = item.meter_kind == MeterKind.COMMITMENT and charge_type.casefold().startswith("unused")
        # The hours of a reservation that nobody used would have cost what the machine costs.
        meter = PriceMeter.INSTANCE_HOURS if is_unused else _PRICED.get(item.meter_kind)
        if meter is None or item.is_fine_tuned:
            return None
        model = None if meter == PriceMeter.INSTANCE_HOURS else identity.model or item.model
        return self._booked(
            meter, day, currency, subscription, model=model, workspace=identity.workspace, sku=item.sku or identity.sku, region=identity.region or item.region
        )

    def _booked(
        self, meter: PriceMeter, day: date, currency: str, subscription: str, *, model: str | None, workspace: str | None, sku: str | None, region: str | None
    ) -> tuple[Decimal, str] | None:
        key = (meter, day, model, workspace, sku, region, currency, subscription)
        if key not in self._prices:
            if len(self._prices) > 100_000:
                self._prices.clear()
            found = self._world.prices.price(meter=meter, at=day_start(day), model=model, workspace=workspace, sku=sku, region=region)
            rate = self._world.rate(subscription, found.currency, currency, day) if isinstance(found, UnitPrice) else None
            self._prices[key] = (money.times(found.per_unit, rate), found.row.version) if isinstance(found, UnitPrice) and rate is not None else None
        return self._prices[key]

    # -- estimates ------------------------------------------------------------------------------

    def _estimates(self, day: date, evidence: Evidence) -> Iterator[FocusLine]:
        """What was metered on a day that the bill does not reach: priced, and billed by nobody yet."""
        for key, metered in sorted(evidence.metered.items(), key=lambda pair: _order(pair[0])):
            amount, price = metered.counted, metered.price
            if not amount or price is None or key.currency is None or (self._visible is not None and key.workspace not in self._visible):
                continue
            workspace, name = key.workspace or "", key.deployment
            identity = self._world.registry.identity(workspace, name, model=price.model or None, at=day_start(day))
            meter = MeterKind(key.meter)
            block = Decimal(10) ** {"1M tokens": 6, "1K tokens": 3, "1 hour": 0}[price.unit]
            rate = key.rate or Decimal(1)
            per_unit = money.times(price.unit_price.scaleb(-block.adjusted(), money.EXACT), rate)
            subscription = identity.subscription or ""
            yield FocusLine(
                kind="estimate",
                id=f"e-{day:%Y%m%d}-{workspace}-{name}-{meter.value}-{key.currency}-{price.id}",
                day=day,
                currency=key.currency,
                billed=ZERO,
                effective=amount,
                item=None,
                charge_type="Usage",
                meter=meter,
                identity=identity,
                fact=self._fact(identity, day),
                units=metered.units,
                billed_unit=block,
                list_price=per_unit,
                contracted_price=per_unit,
                pricing_currency=price.currency,
                rate=rate,
                price_version=price.version,
                invoice_id=None,
                billing_account=self._account_of(subscription),
                subscription=subscription,
            )

    def _account_of(self, subscription: str) -> str:
        """The billing account of a subscription's newest bill; its own where it has none yet."""
        accounts = [part.billing_account for part in self._world.parts if part.subscription_id == subscription and part.billing_account]
        known = accounts or [part.billing_account for part in self._world.parts if part.billing_account]
        return known[-1] if known else ""

    # -- corrections ----------------------------------------------------------------------------

    def _corrected(self) -> Iterator[FocusLine]:
        """What bills that landed in this month changed of months that were closed before: their files stay as they were.

        Each row that changed is reversed, with its quantity, and charged again as it is now.
        """
        period = month_period(self._about.month)
        until = min(self._now, period.end - _INSTANT)
        for close in closes_known(self._session, self._now):
            # What changed before this month is in the file of the month in which it changed.
            since = max(close.closed_at, period.start - _INSTANT)
            if close.month >= self._about.month or since >= until:
                continue
            landed = self._landed(close.month, since, until)
            if not landed:
                continue
            for number, one in enumerate(restated(self._session, close.month, filters=Filters(visible=self._visible), since=since, until=until)):
                for what, sign, row in (("reversal", -1, one.before), ("restatement", 1, one.after)):
                    if row is not None and row.currency is not None:
                        yield self._correction(f"k-{close.month:%Y%m}-{number}-{what}", row, sign, note=f"{what} of {close.month:%Y-%m}", parts=landed)

    def _correction(self, line_id: str, row: ReconciliationRow, sign: int, *, note: str, parts: Sequence[int]) -> FocusLine:
        identity = Identity(row.workspace, row.deployment, mode=Mode.UNKNOWN, route=None)
        if row.workspace is not None and row.deployment is not None:
            identity = self._world.registry.identity(row.workspace, row.deployment, model=None, at=day_start(row.day))
        subscription, meter, currency = identity.subscription or "", MeterKind(row.meter), row.currency or ""
        priced = _PRICED.get(meter)
        listed = None
        if priced is not None:
            model = None if priced == PriceMeter.INSTANCE_HOURS else identity.model
            listed = self._booked(priced, row.day, currency, subscription, model=model, workspace=identity.workspace, sku=identity.sku, region=identity.region)
        charge = Charge
        invoice = self._session.scalar(
            sa.select(col(charge.invoice_id)).where(col(charge.part_id).in_(parts), col(charge.charged_on) == row.day, col(charge.invoice_id) != "").limit(1)
        )
        return FocusLine(
            kind="correction",
            id=line_id,
            day=row.day,
            currency=currency,
            billed=money.times(row.billed, sign),
            effective=money.times(row.billed, sign),
            item=None,
            # What was no usage (a credit, a fee) is corrected by an adjustment.
            charge_type="Adjustment" if priced is None else "Usage",
            meter=meter,
            identity=identity,
            fact=self._fact(identity, row.day),
            units=None if row.billed_units is None else money.times(row.billed_units, sign),
            billed_unit=Decimal(1 if meter in (MeterKind.HOSTING, MeterKind.COMPUTE) else 1000),
            list_price=None if listed is None else listed[0],
            contracted_price=None,
            pricing_currency=currency,
            rate=Decimal(1),
            price_version=None if listed is None else listed[1],
            invoice_id=invoice,
            billing_account=self._account_of(subscription),
            subscription=subscription,
            note=note,
        )

    def _landed(self, month: date, since: datetime, until: datetime) -> list[int]:
        """The bills of a month that landed after an instant, up to another."""
        row = BillPart
        asked = sa.select(col(row.id)).where(col(row.period_start) == month, col(row.landed_at) > since, col(row.landed_at) <= until)
        return [one for one in self._session.scalars(asked) if one is not None]


def _order(key: object) -> tuple[str, ...]:
    return tuple("" if (value := getattr(key, name)) is None else str(value) for name in ("workspace", "deployment", "meter", "currency", "price_id"))
