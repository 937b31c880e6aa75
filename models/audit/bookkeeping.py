"""Writes the plain books: usage, then instance-hours, then charges, each from its raw rows (DESIGN.md, "How a figure comes about")."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from itertools import pairwise

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money, skus
from models.audit.bills import Bills, Line, LineKey
from models.audit.books import Books, Place, Sums
from models.audit.facts import Known, Meters, Owners, Prices, Registry, fact_at, per_unit, valid_fact
from models.charges import IN_SCOPE, BillPart, Charge, ChargeClass, ChargeItem, MeterKind
from models.columns import EPOCH
from models.corrections import UsagePosting
from models.money import ZERO
from models.periods import DAY, HOUR, Period, day_start, days, utc_day
from models.prices import TOKEN_METERS, Price, PriceMeter, model_key
from models.resources import DeploymentFact, Mode, Route, Workspace
from models.usage import QUARTER_SECONDS, Operation, UsageEvent, UsageSeries

_MICROSECONDS = 1_000_000
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class _View:
    """What a series means, and what its tokens cost, during a stretch of time in which no fact and no price changes."""

    workspace: str
    deployment: str | None
    model: str | None
    mode: Mode
    routes: tuple[Route, ...]
    application: str | None
    team: str | None
    cost_center: str | None
    subscription: str | None
    is_training: bool
    prices: Mapping[PriceMeter, Price | None]  # of its tokens, or of the hours of managed compute


@dataclass(slots=True)
class _Counts:
    """The events of one series in one quarter hour, or in a day of such quarter hours."""

    requests: int = 0
    unknown: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0


@dataclass(slots=True)
class _Used:
    """The usage of one deployment and day under one series: what a billed amount is split by. Its input includes the cached part."""

    requests: int = 0
    tokens: Counter[str] = field(default_factory=Counter)

    def weight(self, kind: MeterKind, *, is_cached_billed: bool) -> int:
        if kind is MeterKind.INPUT and is_cached_billed:
            return self.tokens[kind] - self.tokens[MeterKind.CACHED_INPUT]
        return self.tokens[kind] if kind in _TOKEN_KINDS else sum(self.tokens.values()) - self.tokens[MeterKind.CACHED_INPUT]


def _dealt(counts: _Counts, quarter: int, traffic: Sequence[tuple[str, int]]) -> list[tuple[str, _Counts]]:
    """Counts of a quarter hour dealt out like cards: unit n lies in lot (n + quarter) x 61 of a hundred, and the lots are the percentages in order."""
    owner = [name for name, percent in traffic for _ in range(percent)]
    dealt: dict[str, _Counts] = {}
    for what in ("requests", "unknown", "input", "output", "cached") if owner else ():
        count = getattr(counts, what)
        hands = Counter(owner[(unit + quarter) * 61 % 100] for unit in range(abs(count) % 100))
        for name, percent in traffic:
            part = hands[name] + abs(count) // 100 * percent
            if part:
                dealt.setdefault(name, _Counts())
                setattr(dealt[name], what, part if count > 0 else -part)
    return list(dealt.items())


_MODE_OF = {ChargeClass.MARKETPLACE: Mode.SERVERLESS, ChargeClass.FOUNDRY: Mode.SERVERLESS, ChargeClass.COMPUTE: Mode.MANAGED_COMPUTE}
_TOKEN_KINDS = frozenset({MeterKind.INPUT, MeterKind.OUTPUT, MeterKind.CACHED_INPUT, MeterKind.TRAINING})
_SERVERLESS = (Route.MARKETPLACE, Route.FOUNDRY)
# (workspace, deployment) without case, and the names that a share of a bill takes over from usage
_Spot = tuple[str, str | None]
_Piece = tuple[str | None, str | None, str | None, str | None, str | None, str | None]  # workspace, deployment, application, team, cost centre, model
_Named = tuple[int, str | None, str | None, str | None, str | None]  # series, application, team, cost centre, model


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A time of a managed deployment in which neither its facts nor their price change; at most a UTC day long."""

    start: datetime
    end: datetime
    fact: DeploymentFact
    price: Price | None

    @property
    def instance_hours(self) -> Decimal:
        """Instances × hours: whole UTC hours, and the broken ones at the ends, each rounded half-even to 6 digits."""
        first_whole = self.start + (EPOCH - self.start) % HOUR
        last_whole = self.end - (self.end - EPOCH) % HOUR
        if first_whole > last_whole:
            hours = _broken_hour(self.end - self.start)
        else:
            hours = _broken_hour(first_whole - self.start) + Decimal((last_whole - first_whole) // HOUR) + _broken_hour(self.end - last_whole)
        return hours * (self.fact.instance_count or 0)


def _broken_hour(length: timedelta) -> Decimal:
    hours = money.QUOTIENT.divide(Decimal(length // _MICROSECOND), Decimal(HOUR // _MICROSECOND))
    return hours.quantize(Decimal("0.000001"), rounding=ROUND_HALF_EVEN, context=money.QUOTIENT)


@dataclass(slots=True)
class _Instances:
    """What a deployment's instances did on a day, in one currency; ``cost`` None where none of it has a price."""

    start: datetime
    workspace: str | None
    deployment: str | None
    subscription: str | None
    cost: Decimal | None = None
    core_hours: Decimal | None = None
    is_unpriced: bool = False


@dataclass(frozen=True, slots=True)
class _Share:
    """What of a billed line is one deployment's (None: nobody's), or lies between candidates that cannot be told apart."""

    workspace: str | None
    deployment: str | None
    candidates: tuple[tuple[str, str], ...]
    billed: Decimal
    amortized: Decimal
    hours: Decimal | None
    invoiced: Decimal


def _to(whole: _Share, workspace: str | None, deployment: str | None) -> _Share:
    return replace(whole, workspace=workspace, deployment=deployment)


def _spot(workspace: str | None, deployment: str | None) -> _Spot:
    return (workspace or "").casefold(), deployment.casefold() if deployment else None


def _size(fact: DeploymentFact) -> tuple[str, str, int | None, str, str]:
    """What of a deployment's facts its instance-hours and their price depend on."""
    return fact.workspace, (fact.sku or "").casefold(), fact.instance_count, (fact.region or "").casefold(), fact.model or ""


def _is_tagged(item: ChargeItem) -> bool:
    return item.charge_class is ChargeClass.COMPUTE and bool(item.endpoint or item.deployment)


def _hours(item: ChargeItem, quantity: Decimal | None) -> Decimal | None:
    """Billed instance-hours of a VM row; None where it counts something else or does not say."""
    if item.charge_class is not ChargeClass.COMPUTE or item.meter_kind is not MeterKind.COMPUTE or quantity is None or item.unit_size is None:
        return None
    return quantity * item.unit_size


def _same(known: str | None, billed: str | None) -> bool:
    return bool(known and billed) and (known or "").casefold() == (billed or "").casefold()


def recompute(session: Session, *, now: datetime, as_of: datetime | None = None, period: Period | None = None) -> Books:
    """The plain books: every figure of the period (default: of all data) from the raw rows, as known by ``as_of``."""
    moment = now if as_of is None else min(now, as_of)
    chosen = period or data_period(session, now=now) or Period(day_start(utc_day(now)), day_start(utc_day(now)))
    with localcontext(money.EXACT):
        return _Bookkeeper(session, moment, chosen).books()


def data_period(session: Session, *, now: datetime) -> Period | None:
    """The UTC days from the first event, charge or managed deployment to the end of today (or of the last of them); None without data."""
    first, last = session.exec(select(sa.func.min(UsageEvent.time), sa.func.max(UsageEvent.time))).one()
    found = [utc_day(at) for at in (first, last) if at is not None]
    landed = sa.select(col(BillPart.id)).where(col(BillPart.landed_at).is_not(None))
    found += [
        day for day in session.exec(select(sa.func.min(Charge.charged_on), sa.func.max(Charge.charged_on)).where(col(Charge.part_id).in_(landed))).one() if day
    ]
    for row in session.exec(select(DeploymentFact)):
        if row.mode is Mode.MANAGED_COMPUTE and row.source == "inventory":
            found.append(utc_day(min(row.valid_from or row.known_from, now)))
    return Period(day_start(min(found)), day_start(max(utc_day(now), *found) + DAY)) if found else None


class _Bookkeeper:
    """Writes one set of books."""

    def __init__(self, session: Session, moment: datetime, period: Period) -> None:
        self.session, self.moment = session, moment
        self.registry = Registry(session, moment)
        self.owners = Owners(session, moment)
        self.prices = Prices(session, moment)
        self.meters = Meters(session, moment)
        self.bills = Bills(session, moment)
        self.result = Books(period, moment)
        self.used: dict[tuple[date, _Spot], dict[_Named, _Used]] = {}
        self.cached_billed: set[tuple[date, _Spot]] = set()  # days on which the bill has cached input as a meter of its own

    def books(self) -> Books:
        """Usage first: a bill is split by it."""
        self._enter_usage()
        self._enter_instance_hours()
        self._enter_charges()
        return self.result

    # -- usage ------------------------------------------------------------------------------------

    def _enter_usage(self) -> None:
        workspaces = {row.id: row.name for row in self.session.exec(select(Workspace))}
        series = {row.id: row for row in self.session.exec(select(UsageSeries))}
        changes: dict[int, list[datetime]] = {}
        views: dict[tuple[int, int, str | None], _View] = {}
        by_day: dict[tuple[int, int, str, date], _Counts] = {}
        for (quarter, series_id), counts in self._events().items():
            at = EPOCH + timedelta(seconds=quarter * QUARTER_SECONDS)
            sent = series.get(series_id)
            if sent is None or sent.workspace_id not in workspaces:
                continue  # reported by the check of the rollups
            if sent.workspace_id not in changes:
                known = self.registry.changes(workspaces[sent.workspace_id]) | self.owners.changes | self.prices.changes
                changes[sent.workspace_id] = sorted(known)
            stretch = bisect_right(changes[sent.workspace_id], at)
            workspace = workspaces[sent.workspace_id]
            counts.cached = min(counts.cached, counts.input)
            # By the endpoint's traffic where the calls name no deployment of several, else all to what the names mean.
            parts: Sequence[tuple[str | None, _Counts]] = _dealt(counts, quarter, self.registry.traffic(workspace, sent.endpoint, sent.deployment, at))
            for name, part in parts or [(self.registry.name(workspace, sent.endpoint, sent.deployment), counts)]:
                if (series_id, stretch, name) not in views:
                    views[series_id, stretch, name] = self._view(sent, workspace, name, at)
                day = by_day.setdefault((series_id, stretch, name or "", utc_day(at)), _Counts())
                day.requests += part.requests
                day.unknown += part.unknown
                day.input += part.input
                day.output += part.output
                day.cached += part.cached
        for (series_id, stretch, named, on), counts in sorted(by_day.items(), key=lambda pair: pair[0]):
            self._enter_day(series_id, views[series_id, stretch, named or None], counts, on)

    def _events(self) -> dict[tuple[int, int], _Counts]:
        """The events known at the moment, added up per (quarter hour, series): requests of all, tokens of the billable ones."""
        query = sa.select(
            sa.type_coerce(col(UsageEvent.time), sa.BigInteger),
            col(UsageEvent.series_id),
            col(UsageEvent.billable),
            col(UsageEvent.is_unknown),
            col(UsageEvent.input_tokens),
            col(UsageEvent.output_tokens),
            col(UsageEvent.cached_input_tokens),
        ).where(
            col(UsageEvent.received_at) <= self.moment,
            col(UsageEvent.time) >= self.result.period.start,
            col(UsageEvent.time) < self.result.period.end,
        )
        found: dict[tuple[int, int], _Counts] = {}
        for time, series_id, billable, is_unknown, input_tokens, output_tokens, cached in self.session.connection().execute(query).yield_per(5000):
            key = (time // (QUARTER_SECONDS * _MICROSECONDS), series_id)
            counts = found.get(key)
            if counts is None:
                counts = found[key] = _Counts()
            counts.requests += 1
            counts.unknown += is_unknown
            if billable:
                counts.input += input_tokens or 0
                counts.output += output_tokens or 0
                counts.cached += cached or 0
        self._take_back(found)
        return found

    def _take_back(self, found: dict[tuple[int, int], _Counts]) -> None:
        """Leave out what had been taken back by the moment: an event counts while the signs of its postings add up to nothing."""
        query = select(UsagePosting).where(
            col(UsagePosting.made_at) <= self.moment, col(UsagePosting.time) >= self.result.period.start, col(UsagePosting.time) < self.result.period.end
        )
        for row in self.session.exec(query):
            key = (int((row.time - EPOCH) / timedelta(microseconds=1)) // (QUARTER_SECONDS * _MICROSECONDS), row.series_id)
            counts = found.setdefault(key, _Counts())
            counts.requests += row.sign
            counts.unknown += row.sign * row.unknown_requests
            if row.outcome % 2:
                counts.input += row.sign * row.input_tokens
                counts.output += row.sign * row.output_tokens
                counts.cached += row.sign * row.cached_input_tokens

    def _view(self, sent: UsageSeries, workspace: str, name: str | None, at: datetime) -> _View:
        fact = self.registry.deployment(workspace, name, at)
        model = (fact.model if fact else None) or sent.model or None
        mode = fact.mode if fact else Mode.UNKNOWN
        route = fact.route if fact else None
        team, cost_center = self.owners.of(
            self.registry, workspace=workspace, deployment=name, at=at, application=sent.application or None, tags=json.loads(sent.tags)
        )
        return _View(
            workspace=workspace,
            deployment=name,
            model=model,
            mode=mode,
            routes=(Route.COMPUTE,) if mode is Mode.MANAGED_COMPUTE else (route,) if mode is Mode.SERVERLESS and route else _SERVERLESS,
            application=sent.application or None,
            team=sent.team or team,
            cost_center=cost_center,
            subscription=self.registry.subscription(workspace, at),
            is_training=sent.operation == Operation.FINE_TUNING and mode is not Mode.MANAGED_COMPUTE,
            prices={
                meter: self.prices.at(
                    self.prices.fitting(meter, model=model, workspace=workspace, sku=fact.sku if fact else None, region=fact.region if fact else None), at
                )
                for meter in ((PriceMeter.INSTANCE_HOURS,) if mode is Mode.MANAGED_COMPUTE else TOKEN_METERS)
            },
        )

    def _enter_day(self, series_id: int, view: _View, counts: _Counts, day: date) -> None:
        is_reached = self.bills.is_reached(view.subscription, view.routes, day)
        billed_in = self.bills.currency(view.subscription, day)

        # (meter, input tokens, output tokens, price)
        quantities: list[tuple[MeterKind, int, int, Price | None]]
        if view.is_training:
            first = view.prices.get(PriceMeter.TRAINING_TOKENS)
            quantities = [(MeterKind.TRAINING, counts.input, counts.output, first)]
        else:
            input_price, output_price = view.prices.get(PriceMeter.INPUT_TOKENS), view.prices.get(PriceMeter.OUTPUT_TOKENS)
            cached_price = view.prices.get(PriceMeter.CACHED_INPUT_TOKENS)
            cached = counts.cached if cached_price else 0
            first = input_price or output_price or view.prices.get(PriceMeter.INSTANCE_HOURS)
            quantities = [
                (MeterKind.INPUT, counts.input - cached, 0, input_price),
                (MeterKind.CACHED_INPUT, cached, 0, cached_price),
                (MeterKind.OUTPUT, 0, counts.output, output_price),
            ]

        def sums_of(meter: MeterKind, price: Price | None) -> Sums:
            # Tokens without a price stand beside those of the same request that have one: beside the total they are missing from.
            stands_by = price or first
            currency = billed_in or (stands_by.currency if stands_by else None)
            return self.result.at(self._place(day, view, meter, currency), is_reached=is_reached)

        requests = sums_of(MeterKind.TRAINING if view.is_training else MeterKind.INPUT, first)
        requests.is_reached |= is_reached
        requests.requests += counts.requests
        requests.unknown_token_requests += counts.unknown
        if counts.unknown and view.mode is not Mode.MANAGED_COMPUTE:
            requests.add_metered(None, is_reached=is_reached)

        named = (series_id, view.application, view.team, view.cost_center, view.model)
        used = self.used.setdefault((day, _spot(view.workspace, view.deployment)), {}).setdefault(named, _Used())
        used.requests += counts.requests
        if view.is_training:
            used.tokens[MeterKind.TRAINING] += counts.input + counts.output
        else:
            used.tokens[MeterKind.INPUT] += counts.input
            used.tokens[MeterKind.CACHED_INPUT] += counts.cached
            used.tokens[MeterKind.OUTPUT] += counts.output

        for meter, input_tokens, output_tokens, price in quantities:
            tokens = input_tokens + output_tokens
            if not tokens:
                continue
            sums = sums_of(meter, price)
            sums.is_reached |= is_reached
            sums.input_tokens += input_tokens
            sums.output_tokens += output_tokens
            if view.mode is Mode.MANAGED_COMPUTE:
                continue
            cost = self._cost(price, Decimal(tokens), view.subscription, billed_in, day)
            sums.add_metered(cost, is_reached=is_reached)
            if cost is None:
                sums.unpriced_tokens += tokens

    def _cost(self, price: Price | None, quantity: Decimal, subscription: str | None, billed_in: str | None, day: date) -> Decimal | None:
        """Quantity × price in the currency of the bill, exactly; None without a price (or without a rate to that currency)."""
        if price is None:
            return None
        cost = quantity * per_unit(price.unit_price, price.unit)
        if billed_in is None or subscription is None:
            return cost
        rate = self.bills.rate(subscription, day, source=price.currency, target=billed_in)
        return None if rate is None else cost * rate

    @staticmethod
    def _place(day: date, view: _View, meter: MeterKind, currency: str | None) -> Place:
        return Place(
            day,
            view.workspace,
            view.deployment,
            view.model,
            view.mode.value,
            view.application,
            view.team,
            view.cost_center,
            view.subscription,
            meter.value,
            currency,
        )

    # -- managed compute by inventory -------------------------------------------------------------

    def _stretches(self, rows: Sequence[DeploymentFact], day: date, prices: Callable[[DeploymentFact], Sequence[Price]]) -> Iterator[_Stretch]:
        """The day, up to the moment, cut into stretches of equal facts and price; only where the inventory is valid."""
        start, end = day_start(day), min(day_start(day) + DAY, self.moment)
        known: list[Known] = [*rows, *(price for row in rows for price in prices(row))]
        cuts = {start, end, *(at for row in known for at in (row.valid_from, row.valid_to) if at is not None and start < at < end)}
        previous: _Stretch | None = None
        for left, right in pairwise(sorted(cuts)):
            fact = valid_fact(rows, left)
            if fact is None or fact.mode is not Mode.MANAGED_COMPUTE or fact.source != "inventory":
                continue
            price = self.prices.at(prices(fact), left)
            if previous and previous.end == left and previous.price is price and _size(previous.fact) == _size(fact):
                previous = _Stretch(previous.start, right, fact, price)
                continue
            if previous:
                yield previous
            previous = _Stretch(left, right, fact, price)
        if previous:
            yield previous

    def _instance_stretches(self, rows: Sequence[DeploymentFact], day: date) -> list[_Stretch]:
        def prices(row: DeploymentFact) -> Sequence[Price]:
            return self.prices.fitting(PriceMeter.INSTANCE_HOURS, model=row.model, workspace=row.workspace, sku=row.sku, region=row.region)

        return [] if day_start(day) >= self.moment else list(self._stretches(rows, day, prices))

    def _enter_instance_hours(self) -> None:
        managed = [
            rows
            for named in self.registry.deployments.values()
            for rows in named.values()
            if any(row.mode is Mode.MANAGED_COMPUTE and row.source == "inventory" for row in rows)
        ]
        for day in days(self.result.period):
            for rows in managed:
                self._enter_instance_day(day, self._instance_stretches(rows, day))

    def _enter_instance_day(self, day: date, stretches: Sequence[_Stretch]) -> None:
        """A deployment's instance-hours of a day, added up and then cut like a bill: over the series that used it."""
        amounts: dict[tuple[str | None, str | None], _Instances] = {}
        for stretch in stretches:
            fact, price, hours = stretch.fact, stretch.price, stretch.instance_hours
            if not hours:
                continue
            workspace = self.registry.workspace_name(fact.workspace)
            subscription = self.registry.subscription(workspace, stretch.start)
            billed_in = self.bills.currency(subscription, day)
            currency = billed_in or (price.currency if price else None)
            sum_of = amounts.setdefault(
                (fact.model, currency), _Instances(stretch.start, workspace, self.registry.name(fact.workspace, None, fact.name), subscription)
            )
            cores = skus.cores(fact.sku) if fact.sku else None
            if cores is not None:
                sum_of.core_hours = (sum_of.core_hours or ZERO) + hours * cores
            cost = self._cost(price, hours, subscription, billed_in, day)
            if cost is None:
                sum_of.is_unpriced = True
            else:
                sum_of.cost = (sum_of.cost or ZERO) + cost
        for (model, currency), sum_of in amounts.items():
            self._enter_instances(day, model, currency, sum_of)

    def _enter_instances(self, day: date, model: str | None, currency: str | None, whole: _Instances) -> None:
        names = ((whole.workspace, whole.deployment),) if whole.workspace and whole.deployment else ()
        pieces, weights = self._pieces(day, names, MeterKind.COMPUTE)
        if not pieces:
            team, cost_center = self.owners.of(self.registry, workspace=whole.workspace, deployment=whole.deployment, at=whole.start)
            pieces, weights = [(whole.workspace, whole.deployment, None, team, cost_center, model)], [1]
        is_reached = self.bills.is_reached(whole.subscription, (Route.COMPUTE,), day)
        costs, hours = money.split(whole.cost or ZERO, weights), money.split(whole.core_hours or ZERO, weights)
        for index, (workspace, deployment, application, team, cost_center, used_as) in enumerate(pieces):
            if not weights[index]:
                continue
            place = Place(
                day,
                workspace,
                deployment,
                used_as,
                Mode.MANAGED_COMPUTE.value,
                application,
                team,
                cost_center,
                whole.subscription,
                MeterKind.COMPUTE.value,
                currency,
            )
            sums = self.result.at(place, is_reached=is_reached)
            if whole.cost is not None:
                sums.add_metered(costs[index], is_reached=is_reached)
            if whole.is_unpriced:
                sums.add_metered(None, is_reached=is_reached)
            if whole.core_hours is not None:
                sums.has_core_hours = True
                sums.metered_core_hours += hours[index]
                if not is_reached:
                    sums.open_core_hours += hours[index]

    # -- charges ----------------------------------------------------------------------------------

    def _enter_charges(self) -> None:
        lines = [
            (part, key, line, self.meters.item(self.bills.items[key[1]], day_start(key[0]))) for part, key, line in self.bills.lines if self._is_counted(key)
        ]
        tagged: dict[tuple[date, _Spot], Decimal] = {}
        for _, (day, *_), line, item in lines:
            if _is_tagged(item):
                workspace = self.registry.workspace_name(item.workspace)
                spot = (day, _spot(workspace, self.registry.name(workspace, item.endpoint, item.deployment)))
                tagged[spot] = tagged.get(spot, ZERO) + (_hours(item, line.quantity) or ZERO)
        shares = [(part, day, currency, item, share) for part, (day, _, _, currency), line, item in lines for share in self._shares(item, day, line, tagged)]
        for _, day, _, item, share in shares:
            if item.meter_kind is MeterKind.CACHED_INPUT:
                own = ((share.workspace, share.deployment),) if share.workspace and share.deployment else ()
                self.cached_billed |= {(day, _spot(*names)) for names in share.candidates or own}
        for part, day, currency, item, share in shares:
            subscription = item.subscription_id or part.subscription_id or None
            self._enter_share(share, item=item, day=day, currency=currency, subscription=subscription)

    def _is_counted(self, key: LineKey) -> bool:
        item = self.bills.items.get(key[1])  # a charge without an item is reported by the check of the bills
        return item is not None and item.charge_class in IN_SCOPE and day_start(key[0]) in self.result.period

    def _shares(self, item: ChargeItem, day: date, line: Line, tagged: dict[tuple[date, _Spot], Decimal]) -> list[_Share]:
        """The deployments that a line belongs to, with what of it is theirs."""
        hours = _hours(item, line.quantity)
        workspace = self.registry.workspace_name(item.workspace)
        whole = _Share(workspace, None, (), line.billed, line.amortized, hours, line.invoiced)
        match item.charge_class:
            case ChargeClass.COMPUTE if _is_tagged(item):
                return [_to(whole, workspace, self.registry.name(workspace, item.endpoint, item.deployment))]
            case ChargeClass.COMPUTE:
                return self._untagged(whole, item, day, tagged)
            case ChargeClass.FOUNDRY:
                return [_to(whole, workspace, self.registry.name(workspace, None, item.deployment))]
            case ChargeClass.MARKETPLACE:
                return self._marketplace(whole, item, day)
            case _:
                return [_to(whole, None, None)]

    def _untagged(self, whole: _Share, item: ChargeItem, day: date, tagged: dict[tuple[date, _Spot], Decimal]) -> list[_Share]:
        """An untagged VM row: to the only deployment of that size, up to its instance-hours less those billed to it already."""
        if whole.workspace is None or item.sku is None or whole.hours is None or whole.hours <= 0:
            return [whole]
        of_size = []
        for rows in self.registry.deployments.get(whole.workspace.casefold(), {}).values():
            stretches = [each for each in self._instance_stretches(rows, day) if (each.fact.sku or "").casefold() == item.sku.casefold()]
            if stretches:
                of_size.append((stretches[-1].fact.name, sum((each.instance_hours for each in stretches), ZERO)))
        if len(of_size) != 1:
            return [whole]
        name = self.registry.name(whole.workspace, None, of_size[0][0])
        spot = (day, _spot(whole.workspace, name))
        room = of_size[0][1] - tagged.get(spot, ZERO)
        if room <= 0:
            return [whole]
        taken = min(room, whole.hours)
        tagged[spot] = tagged.get(spot, ZERO) + taken
        if taken == whole.hours:
            return [_to(whole, whole.workspace, name)]
        weights = [taken, whole.hours - taken]
        its, rest = zip(*(money.split(amount, weights) for amount in (whole.billed, whole.amortized, whole.invoiced)), strict=True)
        return [
            _Share(whole.workspace, name, (), its[0], its[1], taken, its[2]),
            _Share(whole.workspace, None, (), rest[0], rest[1], whole.hours - taken, rest[2]),
        ]

    def _marketplace(self, whole: _Share, item: ChargeItem, day: date) -> list[_Share]:
        """A SaaS row: to the Marketplace deployment it is for, or between those it can be for."""
        candidates = self._candidates(item, day_start(day))
        if len(candidates) == 1:
            return [_to(whole, *candidates[0])]
        workspaces = {workspace for workspace, _ in candidates}
        workspace = workspaces.pop() if len(workspaces) == 1 else whole.workspace
        return [replace(whole, workspace=workspace, candidates=tuple(candidates))]

    def _candidates(self, item: ChargeItem, at: datetime) -> list[tuple[str, str]]:
        """(workspace, deployment) of those whose SaaS resource it is, else whose offer or plan, else whose model; in order of name."""
        found: list[tuple[str, str, DeploymentFact]] = []
        for key, named in self.registry.deployments.items():
            workspace = self.registry.workspace(key, at)
            if workspace is None or (workspace.subscription_id or "").lower() != item.subscription_id:
                continue
            if (workspace.resource_group or "").lower() != item.resource_group:
                continue
            for rows in named.values():
                fact = fact_at(rows, at)
                if fact is not None and fact.mode is Mode.SERVERLESS and fact.route is Route.MARKETPLACE:
                    spelled = self.registry.workspace_name(fact.workspace) or fact.workspace
                    found.append((spelled, self.registry.name(fact.workspace, None, fact.name) or fact.name, fact))
        found.sort(key=lambda each: each[:2])
        signs: tuple[Callable[[DeploymentFact], bool], ...] = (
            lambda fact: _same(fact.saas_resource_id, item.resource_id),
            lambda fact: _same(fact.offer_id, item.offer_id) or _same(fact.plan_id, item.plan_id),
            lambda fact: bool(fact.model and item.model) and model_key(fact.model or "") == model_key(item.model or ""),
        )
        for is_its in signs:
            its = [(workspace, name) for workspace, name, fact in found if is_its(fact)]
            if its:
                return its
        return []

    def _pieces(self, day: date, deployments: Sequence[tuple[str, str]], kind: MeterKind) -> tuple[list[_Piece], list[int]]:
        """How an amount of these deployments is cut on a day: over the series that used them, by tokens, else by requests."""
        used = [(named, each, names) for names in deployments for named, each in self.used.get((day, _spot(*names)), {}).items()]
        used.sort(key=lambda one: one[0][0])
        is_cached_billed = any((day, _spot(*names)) in self.cached_billed for names in deployments)
        weights = [each.weight(kind, is_cached_billed=is_cached_billed) for _, each, _ in used]
        if not any(weights):
            weights = [each.requests for _, each, _ in used]
        if not any(weights):
            return [], []
        return [(*names, *named[1:]) for named, _, names in used], weights

    def _enter_share(self, share: _Share, *, item: ChargeItem, day: date, currency: str, subscription: str | None) -> None:
        """Cut a share over the series that used its deployments that day; without usage it stays unnamed."""
        own = ((share.workspace, share.deployment),) if share.workspace and share.deployment else ()
        pieces, weights = self._pieces(day, share.candidates or own, item.meter_kind)
        cores = item.cores if item.cores is not None else skus.cores(item.sku) if item.sku else None
        core_hours = share.hours * cores if share.hours is not None and cores is not None else None
        if not pieces:
            team, cost_center = self.owners.of(self.registry, workspace=share.workspace, deployment=share.deployment, at=day_start(day))
            fact = self.registry.deployment(share.workspace, share.deployment, day_start(day))
            pieces, weights = [(share.workspace, share.deployment, None, team, cost_center, (fact.model if fact else None) or item.model)], [1]
        billed, amortized, hours, invoiced = (money.split(amount, weights) for amount in (share.billed, share.amortized, core_hours or ZERO, share.invoiced))
        mode = _MODE_OF.get(item.charge_class, Mode.UNKNOWN)
        for index, (workspace, deployment, application, team, cost_center, model) in enumerate(pieces):
            if not weights[index]:
                continue
            place = Place(day, workspace, deployment, model, mode.value, application, team, cost_center, subscription, item.meter_kind.value, currency)
            sums = self.result.at(place, is_reached=True)
            sums.is_reached = True
            sums.billed += billed[index]
            sums.amortized += amortized[index]
            sums.invoiced += invoiced[index]
            sums.has_core_hours |= core_hours is not None
            sums.billed_core_hours += hours[index]
