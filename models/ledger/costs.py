"""Costs by any grouping on any basis: metered, billed, best, amortized. DESIGN.md "How a figure comes about" is the rule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise

from sqlmodel import Session, col, select

from models import money, skus
from models.charges import ChargeClass, ChargeDay, ChargeItem, MeterKind
from models.columns import from_microseconds, to_microseconds
from models.errors import InvalidInput
from models.ledger.values import GROUPS, Basis, CostQuery, CostRow, CostTable, Figures, Standing
from models.ledger.world import Lens, Series, Use, World, read_usage
from models.matching import Identity
from models.money import ZERO
from models.periods import DAY, HOUR, Period, buckets, day_start, days, settles_at, utc_day, zone_from
from models.prices import TOKEN_METERS, PriceMeter, UnitPrice, Unpriced, model_key, model_name
from models.resources import DeploymentFact, Mode, Route
from models.usage import DAY_SECONDS, QUARTER_SECONDS

_QUARTER = QUARTER_SECONDS * 1_000_000
_HOUR = 3_600_000_000


def costs(session: Session, query: CostQuery, *, now: datetime) -> CostTable:
    """Costs and usage of a period by any grouping, on any basis, as known now or at ``query.as_of``."""
    return Answer(session, query, now=now).answer()


_STANDINGS: tuple[Standing, ...] = ("provisional", "settling", "settled")


@dataclass(slots=True)
class _Sums:
    """A row or total while its cells arrive."""

    metered: Decimal = ZERO
    billed: Decimal = ZERO
    effective: Decimal = ZERO
    best: Decimal = ZERO
    is_metered: bool = False
    is_billed: bool = False
    is_best: bool = False
    is_unpriced: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    requests: int = 0
    unpriced_tokens: int = 0
    unknown_requests: int = 0
    estimated_requests: int = 0
    metered_core_hours: Decimal | None = None
    billed_core_hours: Decimal | None = None
    best_core_hours: Decimal | None = None
    standing: int = 2
    estimate: bool = False
    reasons: set[str] = field(default_factory=set)
    # (day, workspace, deployment) -> [billed, metered] of reached days
    cover: dict[tuple[date, str | None, str | None], list[Decimal]] = field(default_factory=dict)

    def figures(self, basis: Basis, currency: str | None) -> Figures:
        nothing_known = self.is_unpriced and not self.is_metered
        metered = None if nothing_known else self.metered
        billed = self.billed if self.is_billed else None
        reasons: dict[str, str] = {}
        if metered is None or self.unpriced_tokens or self.reasons:
            reasons["metered_cost" if metered is None else "unpriced_tokens"] = "; ".join(sorted(self.reasons)[:3]) or "there is no price for this usage"
        if billed is None:
            reasons["billed_cost"] = "no bill reaches this period yet"
        hours: Decimal | None
        cost: Decimal | None
        match basis:
            case "metered":
                cost, hours = metered, self.metered_core_hours
            case "billed":
                cost, hours = billed, self.billed_core_hours
            case "amortized":
                cost, hours = (self.effective if self.is_billed else None), self.billed_core_hours
            case "best":
                cost, hours = (self.best if self.is_best or not nothing_known else None), self.best_core_hours
        if cost is None:
            reasons["cost"] = reasons.get("billed_cost" if basis in ("billed", "amortized") else "metered_cost", "not known")
        return Figures(
            currency=currency,
            cost=cost,
            metered_cost=metered,
            billed_cost=billed,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_input_tokens=self.cached_input_tokens,
            reasoning_output_tokens=self.reasoning_output_tokens,
            requests=self.requests,
            core_hours=hours,
            status=_STANDINGS[self.standing],
            unpriced_tokens=self.unpriced_tokens,
            unknown_token_requests=self.unknown_requests,
            estimated_token_requests=self.estimated_requests,
            coverage=self._coverage(),
            estimate=self.estimate,
            reasons=reasons,
        )

    def _coverage(self) -> Decimal | None:
        billed = seen = ZERO
        for amount, metered in self.cover.values():
            if amount > 0:
                billed = money.plus(billed, amount)
                seen = money.plus(seen, max(ZERO, min(amount, metered)))
        share = money.ratio(seen, billed)
        return None if share is None else money.truncated(share, 4)


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a cell goes: its bucket and groups."""

    bucket: int
    groups: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class _Bill:
    """One day's charges of an item, with whom they may belong to."""

    day: date
    item: ChargeItem
    currency: str
    billed: Decimal
    effective: Decimal
    hours: Decimal | None
    identities: tuple[Identity, ...]
    is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class _Unit:
    """One share of an amount: what it belongs to and how much it weighs."""

    bucket: int | None
    identity: Identity
    application: str | None
    team: str | None
    center: str | None
    tags: Mapping[str, str]
    weight: int


_ByDay = dict[tuple[date, str | None, str | None], list[Use]]


def _all_tokens(counts: list[int]) -> int:
    return counts[0] + counts[1]


def _requests(counts: list[int]) -> int:
    return counts[3]


_WEIGHTS: Mapping[MeterKind, Callable[[list[int]], int]] = {
    MeterKind.INPUT: lambda counts: counts[0],
    MeterKind.OUTPUT: lambda counts: counts[1],
    MeterKind.CACHED_INPUT: lambda counts: counts[2],
}


def _split_all(units: Sequence[_Unit], amounts: Sequence[Decimal | None]) -> list[tuple[Decimal | None, ...]]:
    """Each amount split over the units by weight, as one tuple a unit."""
    if len(units) == 1:
        return [tuple(amounts)]
    weights = [unit.weight for unit in units]
    columns = [[None] * len(units) if amount is None else money.split(amount, weights) for amount in amounts]
    return list(zip(*columns, strict=True))


def _common(identities: Sequence[Identity]) -> Identity:
    """What deployments that cannot be told apart have in common."""
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


class Answer:
    """One question being answered."""

    def __init__(self, session: Session, query: CostQuery, *, now: datetime) -> None:
        unknown = [name for name in query.group_by if name not in GROUPS and not (name.startswith("tag:") and len(name) > 4)]
        if unknown:
            raise InvalidInput(f"group_by does not know {unknown[0][:60]!r}; it takes {', '.join(GROUPS)} and tag:<key>")
        self.session = session
        self.query = query
        self.horizon = now if query.as_of is None else min(query.as_of, now)
        self.world = World(session, self.horizon)
        self.zone = zone_from(query.time_zone)
        self.buckets = buckets(query.period, query.granularity, self.zone)
        self._starts = [bucket.start for bucket in self.buckets]
        self.lens = Lens(self.world, query.filters)
        # Below the bill: what only requests know.
        fine = {"application", "team", "cost_center", "model"}
        self.is_fine = bool(fine & set(query.group_by) or any(name.startswith("tag:") for name in query.group_by)) or bool(
            query.filters.applications or query.filters.teams or query.filters.tags or query.filters.models
        )
        self.rows: dict[tuple[_Spot, str | None], _Sums] = {}
        self.totals: dict[str | None, _Sums] = {}
        self._model_names: dict[str, str] = {}
        self._segments: dict[int, list[datetime]] = {}
        self._resolved: dict[tuple[int, int], tuple[Identity, str | None, str | None]] = {}
        self._owner_changes = self.world.registry.owner_changes()

    # -- where things belong --------------------------------------------------------------------

    def bucket_of(self, at: datetime) -> int | None:
        """The index of the bucket that holds the instant, None outside the period."""
        if not self.query.period.start <= at < self.query.period.end:
            return None
        return bisect_right(self._starts, at) - 1

    def series_at(self, series: Series, at: datetime) -> tuple[Identity, str | None, str | None]:
        """(identity, team, cost centre) of the series at the instant; the same within a stretch without changes."""
        changes = self._segments.get(series.id)
        if changes is None:
            registry = self.world.registry
            changes = sorted(registry.changes(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment) | self._owner_changes)
            self._segments[series.id] = changes
        key = (series.id, bisect_right(changes, at))
        found = self._resolved.get(key)
        if found is None:
            registry = self.world.registry
            identity = registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=at)
            team, center = registry.owner(
                workspace=identity.workspace, deployment=identity.deployment, application=series.application, tags=series.tags, team=series.team, at=at
            )
            found = self._resolved[key] = (identity, team, center)
        return found

    def groups(
        self, identity: Identity, *, application: str | None, team: str | None, center: str | None, tags: Mapping[str, str], meter: MeterKind
    ) -> tuple[str | None, ...]:
        """The values of the asked groups."""
        values: list[str | None] = []
        for name in self.query.group_by:
            match name:
                case "workspace":
                    values.append(identity.workspace)
                case "deployment":
                    values.append(identity.deployment)
                case "model":
                    values.append(self._model_name(identity.model))
                case "meter":
                    values.append(meter.value)
                case "mode":
                    values.append(identity.mode.value)
                case "application":
                    values.append(application)
                case "team":
                    values.append(team)
                case "cost_center":
                    values.append(center)
                case "subscription":
                    values.append(identity.subscription)
                case _:
                    values.append(tags.get(name[4:]))
        return tuple(values)

    def _model_name(self, model: str | None) -> str | None:
        # Spellings of one model are one group, shown as the first one met (facts and series come in order of arrival).
        return None if model is None else self._model_names.setdefault(model_key(model), model_name(model))

    def sums(self, spot: _Spot, currency: str | None) -> tuple[_Sums, _Sums]:
        """The row and the total that a cell adds to."""
        row = self.rows.get((spot, currency))
        if row is None:
            row = self.rows[spot, currency] = _Sums()
        total = self.totals.get(currency)
        if total is None:
            total = self.totals[currency] = _Sums()
        return row, total

    # -- the answer -----------------------------------------------------------------------------

    def answer(self) -> CostTable:
        if self.buckets:
            billed = self._billed_days()
            slot = self._slot()
            uses = self._usage(slot, {bill.day for bill in billed})
            for use in uses:
                if use.is_inside:
                    self._add_usage(use)
            needs_shares = self.is_fine or self._cuts_days() or any(len(bill.identities) > 1 for bill in billed)
            by_day = self._usage_by_day(uses) if needs_shares else {}
            self._add_instances(by_day)
            self._add_billed(billed, by_day)
        wanted = self.query.currency
        rows = [
            CostRow(self.buckets[spot.bucket], dict(zip(self.query.group_by, spot.groups, strict=True)), sums.figures(self.query.basis, currency))
            for (spot, currency), sums in self.rows.items()
            if wanted is None or currency == wanted
        ]
        rows.sort(
            key=lambda row: (
                row.period.start,
                tuple((value is None, value or "") for value in row.groups.values()),
                row.figures.currency is None,
                row.figures.currency or "",
            )
        )
        totals = [
            self.totals[currency].figures(self.query.basis, currency)
            for currency in sorted(self.totals, key=lambda code: (code is None, code or ""))
            if wanted is None or currency == wanted
        ]
        return CostTable(self.query, rows, totals)

    def _cuts_days(self) -> bool:
        """Whether some UTC day lies in more than one bucket, or partly outside the period."""
        return any(not _is_midnight(bucket.start) for bucket in self.buckets) or not _is_midnight(self.query.period.end)

    def _slot(self) -> int:
        edges = [bucket.start for bucket in self.buckets] + [self.query.period.end]
        inner = edges[1:-1]  # the outer two are met exactly by reading broken quarters from events
        if all(_is_midnight(at) for at in inner):
            return DAY_SECONDS
        return 3600 if all(at.minute == at.second == at.microsecond == 0 for at in inner) else QUARTER_SECONDS

    def _usage(self, slot: int, billed_days: set[date]) -> list[Use]:
        period, as_of = self.query.period, self.query.as_of
        coarse, fine = self._series_by_slot(slot)
        uses: list[Use] = []
        ranges = [(period, True)]
        if not _is_midnight(period.start) and utc_day(period.start) in billed_days:
            ranges.append((Period(day_start(utc_day(period.start)), period.start), False))
        if not _is_midnight(period.end) and utc_day(period.end) in billed_days:
            ranges.append((Period(period.end, day_start(utc_day(period.end) + DAY)), False))
        for part, is_inside in ranges:
            if coarse:
                uses += read_usage(
                    self.session,
                    part,
                    slot=slot,
                    as_of=as_of,
                    series=None if not fine and len(coarse) == len(self.world.series) else coarse,
                    is_inside=is_inside,
                )
            if fine:
                uses += read_usage(self.session, part, slot=QUARTER_SECONDS, as_of=as_of, series=fine, is_inside=is_inside)
        # A slot that begins before the period is judged where the period begins, like every quarter hour at its start.
        first = from_microseconds(to_microseconds(period.start) // _QUARTER * _QUARTER)
        for use in uses:
            if use.is_inside and use.at < first:
                use.at = first
        return uses

    def _series_by_slot(self, slot: int) -> tuple[list[int], list[int]]:
        """Series that may be summed by the slot, and those whose price, owner or meaning changes inside one."""
        coarse: list[int] = []
        fine: list[int] = []
        period, visible = self.query.period, self.query.filters.visible
        for series in self.world.series.values():
            identity, _, _ = self.series_at(series, period.start)
            if visible is not None and identity.workspace not in visible:
                continue
            own = [at for at in self._segments[series.id] if period.start < at < period.end]
            changes = set(own)
            for at in (period.start, *own):
                found, _, _ = self.series_at(series, at)
                changes |= self.world.prices.changes(meters=TOKEN_METERS, model=found.model, workspace=found.workspace, sku=found.sku, region=found.region)
            moves = any(period.start < at < period.end and to_microseconds(at) % (slot * 1_000_000) for at in changes)
            (fine if moves and slot != QUARTER_SECONDS else coarse).append(series.id)
        return coarse, fine

    # -- usage ----------------------------------------------------------------------------------

    def _add_usage(self, use: Use) -> None:
        series = self.world.series[use.series]
        identity, team, center = self.series_at(series, use.at)
        if not self.lens.passes(identity, application=series.application, team=team, tags=series.tags):
            return
        bucket = self.bucket_of(max(use.at, self.query.period.start))
        if bucket is None:
            return
        day = utc_day(use.at)
        route = identity.route if identity.mode != Mode.UNKNOWN else None
        is_reached = self.world.is_reached(identity.subscription, route, day)
        standing = self._standing(day, is_reached=is_reached)
        currency, priced = self._price(use, series, identity, day)
        for index, (meter, tokens, amount, reason) in enumerate(priced):
            spot = _Spot(bucket, self.groups(identity, application=series.application, team=team, center=center, tags=series.tags, meter=meter))
            for sums in self.sums(spot, currency):
                if index == 0:
                    sums.requests += use.requests
                    sums.unknown_requests += use.unknown_requests
                    sums.estimated_requests += use.estimated_requests
                    sums.reasoning_output_tokens += use.reasoning_output_tokens
                match meter:
                    case MeterKind.OUTPUT:
                        sums.output_tokens += tokens
                    case MeterKind.TRAINING:
                        sums.input_tokens += use.input_tokens
                        sums.output_tokens += use.output_tokens
                    case MeterKind.CACHED_INPUT:
                        sums.input_tokens += tokens
                        sums.cached_input_tokens += tokens
                    case _:
                        sums.input_tokens += tokens
                        if len(priced) == 2:
                            sums.cached_input_tokens += use.cached_input_tokens
                sums.standing = min(sums.standing, standing)
                sums.is_billed |= is_reached
                sums.is_best |= is_reached
                if reason is not None:
                    if tokens:
                        sums.unpriced_tokens += tokens
                        sums.is_unpriced = True
                        sums.reasons.add(reason)
                elif amount is not None:
                    sums.is_metered = True
                    sums.metered = money.plus(sums.metered, amount)
                    if is_reached:
                        self._cover(sums, day, identity, metered=amount)
                    else:
                        sums.is_best = True
                        sums.best = money.plus(sums.best, amount)

    def _price(self, use: Use, series: Series, identity: Identity, day: date) -> tuple[str | None, list[tuple[MeterKind, int, Decimal | None, str | None]]]:
        """(currency, [(meter, tokens, amount, why there is none)]): the tokens of a use at their prices, in the billing currency."""
        billing = self.world.billing_currency(identity.subscription)
        if identity.mode == Mode.MANAGED_COMPUTE:
            if billing is None:
                hourly = self.world.prices.price(
                    meter=PriceMeter.INSTANCE_HOURS, at=use.at, model=identity.model, workspace=identity.workspace, sku=identity.sku, region=identity.region
                )
                billing = hourly.currency if isinstance(hourly, UnitPrice) else None
            return billing, [(MeterKind.INPUT, use.input_tokens, None, None), (MeterKind.OUTPUT, use.output_tokens, None, None)]
        if series.operation == "fine_tuning":
            asked = [(MeterKind.TRAINING, PriceMeter.TRAINING_TOKENS, use.input_tokens + use.output_tokens)]
        else:
            cached = self._unit_price(PriceMeter.CACHED_INPUT_TOKENS, identity, use.at)
            if isinstance(cached, UnitPrice):
                asked = [
                    (MeterKind.INPUT, PriceMeter.INPUT_TOKENS, use.input_tokens - use.cached_input_tokens),
                    (MeterKind.CACHED_INPUT, PriceMeter.CACHED_INPUT_TOKENS, use.cached_input_tokens),
                    (MeterKind.OUTPUT, PriceMeter.OUTPUT_TOKENS, use.output_tokens),
                ]
            else:
                asked = [(MeterKind.INPUT, PriceMeter.INPUT_TOKENS, use.input_tokens), (MeterKind.OUTPUT, PriceMeter.OUTPUT_TOKENS, use.output_tokens)]
        priced: list[tuple[MeterKind, int, Decimal | None, str | None]] = []
        currency = billing
        for kind, meter, tokens in asked:
            price = self._unit_price(meter, identity, use.at)
            if isinstance(price, Unpriced):
                priced.append((kind, tokens, None, price.reason))
                continue
            rate = Decimal(1) if billing is None or identity.subscription is None else self.world.rate(identity.subscription, price.currency, billing, day)
            currency = currency or price.currency
            if rate is None:
                priced.append((kind, tokens, None, f"no exchange rate from {price.currency} to {billing} is known from the bill"))
            elif billing is None and price.currency != currency:
                priced.append((kind, tokens, None, f"the prices of {identity.model} are in different currencies"))
            else:
                priced.append((kind, tokens, money.times(money.times(price.per_unit, tokens), rate), None))
        return currency, priced

    def _unit_price(self, meter: PriceMeter, identity: Identity, at: datetime) -> UnitPrice | Unpriced:
        return self.world.prices.price(meter=meter, at=at, model=identity.model, workspace=identity.workspace, sku=identity.sku, region=identity.region)

    def _standing(self, day: date, *, is_reached: bool) -> int:
        return 2 if self.horizon >= settles_at(day) else 1 if is_reached else 0

    @staticmethod
    def _cover(sums: _Sums, day: date, identity: Identity, *, billed: Decimal = ZERO, metered: Decimal = ZERO) -> None:
        pair = sums.cover.setdefault((day, identity.workspace, identity.deployment), [ZERO, ZERO])
        pair[0] = money.plus(pair[0], billed)
        if identity.deployment is not None:
            pair[1] = money.plus(pair[1], metered)

    # -- instance hours of managed compute ------------------------------------------------------

    def _add_instances(self, by_day: _ByDay) -> None:
        start, end = self.query.period.start, min(self.query.period.end, self.horizon)
        if start >= end:
            return
        for workspace, name, facts in self.world.registry.managed():
            for begin, finish, fact in _stretches(facts, start, end):
                self._add_instance_stretch(workspace, name, fact, begin, finish, by_day)

    def _add_instance_stretch(self, workspace: str, name: str, fact: DeploymentFact, begin: datetime, finish: datetime, by_day: _ByDay) -> None:
        identity = self.world.registry.identity(workspace, name, model=None, at=begin)
        if self.lens.deployments is not None and name not in self.lens.deployments:
            return
        edges = {begin, finish, *(day_start(day) for day in days(Period(begin, finish))), *self._starts}
        edges |= self.world.prices.changes(meters=(PriceMeter.INSTANCE_HOURS,), model=fact.model, workspace=workspace, sku=fact.sku, region=identity.region)
        edges |= self._owner_changes
        cuts = sorted(edge for edge in edges if begin <= edge <= finish)
        for left, right in pairwise(cuts):
            hours = money.times(instance_hours(left, right), fact.instance_count or 0)
            day, bucket = utc_day(left), self.bucket_of(left)
            if hours == 0 or bucket is None:
                continue
            price = self.world.prices.price(
                meter=PriceMeter.INSTANCE_HOURS, at=left, model=fact.model, workspace=workspace, sku=fact.sku, region=identity.region
            )
            billing = self.world.billing_currency(identity.subscription)
            amount, currency, reason = self._in_billing_currency(price, hours, identity.subscription, billing, day)
            per_instance = skus.cores(fact.sku or "")
            cores = None if per_instance is None else money.times(hours, per_instance)
            units = [unit for unit in self._units(by_day, day, (identity,), MeterKind.COMPUTE) if unit.bucket == bucket] if self.is_fine else []
            if not units:
                team, center = self._owner(identity, left)
                units = [_Unit(bucket, identity, None, team, center, {}, 1)]
            parts = _split_all(units, [amount, cores])
            is_reached = self.world.is_reached(identity.subscription, Route.COMPUTE, day)
            places = [self._place(unit, MeterKind.COMPUTE) for unit in units]
            is_estimate = len(set(places)) > 1
            for place, unit, (cost, core_hours) in zip(places, units, parts, strict=True):
                if place is None:
                    continue
                for sums in self.sums(place, currency):
                    sums.standing = min(sums.standing, self._standing(day, is_reached=is_reached))
                    sums.is_billed |= is_reached
                    sums.is_best |= is_reached
                    sums.estimate |= is_estimate
                    sums.metered_core_hours = _plus(sums.metered_core_hours, core_hours)
                    if not is_reached:
                        sums.best_core_hours = _plus(sums.best_core_hours, core_hours)
                    if cost is None:
                        sums.is_unpriced = True
                        sums.reasons.add(reason or "")
                        continue
                    sums.is_metered = True
                    sums.metered = money.plus(sums.metered, cost)
                    if is_reached:
                        self._cover(sums, day, unit.identity, metered=cost)
                    else:
                        sums.is_best = True
                        sums.best = money.plus(sums.best, cost)

    def _in_billing_currency(
        self, price: UnitPrice | Unpriced, quantity: Decimal | int, subscription: str | None, billing: str | None, day: date
    ) -> tuple[Decimal | None, str | None, str | None]:
        """(amount, currency, why there is none) of a quantity at a price."""
        if isinstance(price, Unpriced):
            return None, billing, price.reason
        currency = billing or price.currency
        rate = Decimal(1) if subscription is None else self.world.rate(subscription, price.currency, currency, day)
        if rate is None:
            return None, currency, f"no exchange rate from {price.currency} to {currency} is known from the bill"
        return money.times(money.times(price.per_unit, quantity), rate), currency, None

    # -- the bill -------------------------------------------------------------------------------

    def _billed_days(self) -> list[_Bill]:
        period = self.query.period
        parts = [part.id for part in self.world.parts]
        if not parts:
            return []
        found = self.session.execute(
            select(ChargeDay, ChargeItem)
            .join(ChargeItem, col(ChargeItem.id) == col(ChargeDay.item_id))
            .where(
                col(ChargeDay.part_id).in_(parts),
                col(ChargeDay.charged_on) >= utc_day(period.start),
                col(ChargeDay.charged_on) <= utc_day(period.end),
                col(ChargeItem.charge_class) != ChargeClass.OUT_OF_SCOPE,
            )
            .order_by(col(ChargeDay.charged_on), col(ChargeDay.item_id), col(ChargeDay.charge_type), col(ChargeDay.currency), col(ChargeDay.part_id))
        ).all()
        bills: list[_Bill] = []
        tagged: dict[tuple[date, str, str], Decimal] = {}
        for row, item in found:
            if day_start(row.charged_on) >= period.end:
                continue
            target = self.world.registry.target(item, day_start(row.charged_on))
            hours = None
            if item.meter_kind == MeterKind.COMPUTE and row.quantity is not None and item.unit_size is not None:
                hours = money.times(row.quantity, item.unit_size)
                only = target.identities[0]
                if only.workspace and only.deployment:
                    key = (row.charged_on, only.workspace, only.deployment)
                    tagged[key] = money.plus(tagged.get(key, ZERO), hours)
            bills.append(_Bill(row.charged_on, item, row.currency, row.billed_cost, row.effective_cost, hours, target.identities))
        return self._with_untagged(bills, tagged)

    def _with_untagged(self, bills: list[_Bill], tagged: dict[tuple[date, str, str], Decimal]) -> list[_Bill]:
        """Give untagged VM rows to the only deployment of their size, up to its instance-hours."""
        managed = list(self.world.registry.managed())
        left: dict[tuple[date, str, str], Decimal] = {}
        answer: list[_Bill] = []
        for bill in bills:
            only = bill.identities[0]
            sku = (bill.item.sku or "").casefold()
            if bill.hours is None or bill.hours <= 0 or only.deployment is not None or only.workspace is None or not sku:
                answer.append(bill)
                continue
            begin, finish = day_start(bill.day), min(day_start(bill.day + DAY), self.horizon)
            fitting = {
                name: [stretch for stretch in _stretches(facts, begin, finish) if (stretch[2].sku or "").casefold() == sku]
                for workspace, name, facts in managed
                if workspace == only.workspace
            }
            fitting = {name: stretches for name, stretches in fitting.items() if stretches}
            if len(fitting) != 1:
                answer.append(bill)
                continue
            ((name, stretches),) = fitting.items()
            key = (bill.day, only.workspace, name)
            if key not in left:
                own = money.add(money.times(instance_hours(a, b), fact.instance_count or 0) for a, b, fact in stretches)
                left[key] = max(ZERO, money.minus(own, tagged.get(key, ZERO)))
            taken = min(left[key], bill.hours)
            if taken <= 0:
                answer.append(bill)
                continue
            left[key] = money.minus(left[key], taken)
            found = self.world.registry.identity(only.workspace, name, model=None, at=begin)
            given = replace(found, mode=Mode.MANAGED_COMPUTE, route=Route.COMPUTE, subscription=only.subscription or found.subscription)
            rest = money.minus(bill.hours, taken)
            weights = [taken, rest]
            (billed, billed_rest), (effective, effective_rest) = money.split(bill.billed, weights), money.split(bill.effective, weights)
            answer.append(replace(bill, billed=billed, effective=effective, hours=taken, identities=(given,), is_estimate=True))
            if rest > 0:
                answer.append(replace(bill, billed=billed_rest, effective=effective_rest, hours=rest))
        return answer

    def _add_billed(self, bills: list[_Bill], by_day: _ByDay) -> None:
        for bill in bills:
            start = day_start(bill.day)
            bucket = self.bucket_of(start)
            is_whole = bucket is not None and start + DAY <= self.buckets[bucket].end
            kind = bill.item.meter_kind
            units: list[_Unit] = []
            if len(bill.identities) > 1 or not is_whole or self.is_fine:
                units = self._units(by_day, bill.day, bill.identities, kind)
            if not units:
                identity = _common(bill.identities)
                team, center = self._owner(identity, start)
                if is_whole or kind != MeterKind.COMPUTE:
                    units = [_Unit(bucket, identity, None, team, center, {}, 1)]
                else:
                    units = [_Unit(self.bucket_of(start + hour * HOUR), identity, None, team, center, {}, 1) for hour in range(24)]
            cores = bill.item.cores or skus.cores(bill.item.sku or "")
            core_hours = None if bill.hours is None or cores is None else money.times(bill.hours, cores)
            places = [self._place(unit, kind) for unit in units]
            is_estimate = bill.is_estimate or len(set(places)) > 1
            standing = self._standing(bill.day, is_reached=True)
            for place, unit, (billed, effective, hours) in zip(places, units, _split_all(units, [bill.billed, bill.effective, core_hours]), strict=True):
                if place is None or billed is None or effective is None:
                    continue
                for sums in self.sums(place, bill.currency):
                    sums.standing = min(sums.standing, standing)
                    sums.is_billed = sums.is_best = True
                    sums.estimate |= is_estimate
                    sums.billed = money.plus(sums.billed, billed)
                    sums.effective = money.plus(sums.effective, effective)
                    sums.best = money.plus(sums.best, billed)
                    sums.billed_core_hours = _plus(sums.billed_core_hours, hours)
                    sums.best_core_hours = _plus(sums.best_core_hours, hours)
                    self._cover(sums, bill.day, unit.identity, billed=billed)

    def _owner(self, identity: Identity, at: datetime) -> tuple[str | None, str | None]:
        return self.world.registry.owner(workspace=identity.workspace, deployment=identity.deployment, application=None, tags={}, team=None, at=at)

    # -- shares ---------------------------------------------------------------------------------

    def _usage_by_day(self, uses: list[Use]) -> _ByDay:
        by_day: _ByDay = {}
        for use in uses:
            identity, _, _ = self.series_at(self.world.series[use.series], use.at)
            if identity.deployment is not None:
                by_day.setdefault((utc_day(use.at), identity.workspace, identity.deployment), []).append(use)
        return by_day

    def _units(self, by_day: _ByDay, day: date, identities: Sequence[Identity], kind: MeterKind) -> list[_Unit]:
        """The day's usage of the deployments as shares in order of series and bucket; none where there was no usage."""
        sums: dict[tuple[int, int, int], tuple[_Unit, list[int]]] = {}
        for identity in identities:
            for use in by_day.get((day, identity.workspace, identity.deployment), ()):
                series = self.world.series[use.series]
                seen, team, center = self.series_at(series, use.at)
                bucket = self.bucket_of(max(use.at, self.query.period.start)) if use.is_inside else None
                key = (use.series, -1 if bucket is None else bucket, bisect_right(self._segments[use.series], use.at))
                if key not in sums:
                    billed = replace(seen, mode=identity.mode, route=identity.route, subscription=identity.subscription, model=seen.model or identity.model)
                    sums[key] = (_Unit(bucket, billed, series.application, team, center, series.tags, 0), [0, 0, 0, 0])
                into = sums[key][1]
                into[0] += use.input_tokens
                into[1] += use.output_tokens
                into[2] += use.cached_input_tokens
                into[3] += use.requests
        units = [sums[key] for key in sorted(sums)]
        for weigh in (_WEIGHTS.get(kind, _all_tokens), _requests):
            weights = [weigh(counts) for _, counts in units]
            if sum(weights):
                return [replace(unit, weight=weight) for (unit, _), weight in zip(units, weights, strict=True)]
        return []

    def _place(self, unit: _Unit, kind: MeterKind) -> _Spot | None:
        """The row a share goes to; None where it is outside the period or the filters."""
        if unit.bucket is None or not self.lens.passes(unit.identity, application=unit.application, team=unit.team, tags=unit.tags):
            return None
        return _Spot(unit.bucket, self.groups(unit.identity, application=unit.application, team=unit.team, center=unit.center, tags=unit.tags, meter=kind))


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


def _stretches(facts: Sequence[DeploymentFact], start: datetime, end: datetime) -> list[tuple[datetime, datetime, DeploymentFact]]:
    """The stretches of [start, end) over which one row holds, by what was learnt last; gaps have none."""
    edges = {start, end, *(at for fact in facts for at in (fact.valid_from, fact.valid_to) if at is not None and start < at < end)}
    found: list[tuple[datetime, datetime, DeploymentFact]] = []
    for left, right in pairwise(sorted(edges)):
        holding = [fact for fact in facts if (fact.valid_from is None or fact.valid_from <= left) and (fact.valid_to is None or left < fact.valid_to)]
        if holding:
            fact = max(holding, key=lambda one: (one.known_from, one.id or 0))
            if found and found[-1][2] is fact and found[-1][1] == left:
                found[-1] = (found[-1][0], right, fact)
            else:
                found.append((left, right, fact))
    return found


def _plus(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    if right is None:
        return left
    return right if left is None else money.plus(left, right)


def _is_midnight(at: datetime) -> bool:
    """Whether the instant is a UTC midnight."""
    return to_microseconds(at) % (DAY_SECONDS * 1_000_000) == 0
