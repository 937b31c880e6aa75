"""What usage means, for as long as it means the same: whose a series is, what its tokens cost, and since when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal

from models import money, traffic
from models.charges import MeterKind
from models.columns import from_microseconds, to_microseconds
from models.ledger.world import Lens, Series, World
from models.matching import Identity
from models.periods import Period
from models.prices import TOKEN_METERS, PriceMeter, UnitPrice, Unpriced
from models.resources import Mode
from models.usage import DAY_SECONDS, QUARTER_SECONDS

_DAY = DAY_SECONDS * 1_000_000
_PRICED_BY = (
    (MeterKind.INPUT, PriceMeter.INPUT_TOKENS),
    (MeterKind.CACHED_INPUT, PriceMeter.CACHED_INPUT_TOKENS),
    (MeterKind.OUTPUT, PriceMeter.OUTPUT_TOKENS),
)


@dataclass(frozen=True, slots=True)
class Term:
    """What the tokens of one meter cost in one month: ``factor`` per token in ``currency``, or why there is none."""

    meter: MeterKind
    currency: str | None
    factor: Decimal | None
    reason: str | None
    price: UnitPrice | None
    rate: Decimal | None = None  # from the price's currency


@dataclass(slots=True, eq=False)
class Meaning:
    """What a series is, whose it is and what its tokens cost, for a stretch of time in which none of it changes."""

    identity: Identity
    team: str | None
    center: str | None
    application: str | None
    tags: Mapping[str, str]
    is_training: bool
    is_asked: bool
    prices: Mapping[PriceMeter, UnitPrice | Unpriced]  # of tokens; of managed compute that of its hours
    cell: int  # series that no row, price or bill tells apart share it
    # Of calls that name an endpoint of several deployments and none of them: whose they may be, with their lots of a hundred.
    shares: Sequence[tuple[int, int, Meaning]] = ()
    is_share: bool = False
    terms: dict[date, tuple[Term, ...]] = field(default_factory=dict)


_Meant = tuple[Identity, str | None, str | None]  # with team and cost centre


def shared(meaning: Meaning, at: int, counts: Sequence[int]) -> Iterator[tuple[Meaning, Sequence[int]]]:
    """The counts of a quarter hour (its first second) by whose they are; those of a longer slot are shared as its first quarter's."""
    if not meaning.shares:
        yield meaning, counts
    for begin, end, share in meaning.shares:
        parts = [traffic.part(count, quarter=at // QUARTER_SECONDS, begin=begin, end=end) for count in counts]
        if any(parts):
            yield share, parts


class Meanings:
    """What the series of a world mean within a period. ``kept_apart`` gives what of a meaning a question has rows by."""

    def __init__(self, world: World, lens: Lens, period: Period, kept_apart: Callable[[Meaning], object]) -> None:
        self._world, self._lens, self._period, self._kept_apart = world, lens, period, kept_apart
        self._timelines: dict[int, tuple[list[int], list[Meaning]]] = {}
        self._cells: dict[tuple[object, ...], int] = {}
        self._prices: dict[tuple[object, ...], UnitPrice | Unpriced] = {}
        self._price_changes: dict[tuple[object, ...], set[datetime]] = {}

    def timeline(self, series: Series) -> tuple[list[int], list[Meaning]]:
        """The stretches of the period's days in which nothing about the series changes: their first seconds, and what it then is.

        Usage is judged at the start of its quarter hour, so a change counts from the next one that begins.
        """
        found = self._timelines.get(series.id)
        if found is not None:
            return found
        registry = self._world.registry
        first = to_microseconds(self._period.start) // _DAY * DAY_SECONDS
        last = -(-to_microseconds(self._period.end) // _DAY) * DAY_SECONDS
        changes = registry.changes(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment)
        changes |= registry.owner_changes(application=series.application, tags=series.tags)
        meant_from: list[tuple[int, _Meant, list[tuple[int, int, _Meant]]]] = []
        for at in [first, *_quarters(changes, first, last)]:
            moment = from_microseconds(at * 1_000_000)
            meant, shares = self.resolved(series, moment), self._shares(series, moment)
            if not meant_from or meant_from[-1][1:] != (meant, shares):
                meant_from.append((at, meant, shares))
        starts: list[int] = []
        meanings: list[Meaning] = []
        for index, (begin, meant, shares) in enumerate(meant_from):
            finish = meant_from[index + 1][0] if index + 1 < len(meant_from) else last
            moves = set(self._changes_of_prices(meant[0])).union(*(self._changes_of_prices(each[0]) for _, _, each in shares))
            for at in [begin, *_quarters(moves, begin, finish)]:
                meaning = self._meaning(series, meant, at)
                meaning.shares = [(left, right, self._meaning(series, each, at, is_share=True)) for left, right, each in shares]
                # Apart by everything, also by what this question has no rows by: a charge is cut over stretches, the same for every question.
                before = meanings[-1] if meanings else None
                if before is None or shares or before.shares or (before.cell, before.identity, before.team, before.center) != (meaning.cell, *meant):
                    starts.append(at)
                    meanings.append(meaning)
        self._timelines[series.id] = starts, meanings
        return starts, meanings

    def resolved(self, series: Series, at: datetime) -> _Meant:
        """(identity, team, cost centre) of the series at the instant."""
        identity = self._world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=at)
        return self._owned(series, identity, at)

    def _owned(self, series: Series, identity: Identity, at: datetime) -> _Meant:
        team, center = self._world.registry.owner(
            workspace=identity.workspace, deployment=identity.deployment, application=series.application, tags=series.tags, team=series.team, at=at
        )
        return identity, team, center

    def _shares(self, series: Series, at: datetime) -> list[tuple[int, int, _Meant]]:
        registry = self._world.registry
        found = registry.shares(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, at=at)
        return [(begin, end, self._owned(series, registry.identity(series.workspace, name, model=series.model, at=at), at)) for name, begin, end in found]

    def asked(self, series: Series) -> list[tuple[datetime | None, datetime | None]]:
        """The stretches of the period in which the series is what the filters ask for; None where one has no end within it."""
        starts, meanings = self.timeline(series)
        found: list[tuple[datetime | None, datetime | None]] = []
        for index, meaning in enumerate(meanings):
            if meaning.is_asked:
                begin = None if index == 0 else from_microseconds(starts[index] * 1_000_000)
                end = None if index + 1 == len(starts) else from_microseconds(starts[index + 1] * 1_000_000)
                if found and found[-1][1] is not None and found[-1][1] == begin:
                    found[-1] = (found[-1][0], end)
                else:
                    found.append((begin, end))
        return found

    def meaning_at(self, series: Series, seconds: int) -> Meaning:
        """What the series is at the start of a quarter hour of the period's days."""
        starts, meanings = self.timeline(series)
        return meanings[max(0, bisect_right(starts, seconds) - 1)]

    def _meaning(self, series: Series, meant: _Meant, at: int, *, is_share: bool = False) -> Meaning:
        identity, team, center = meant
        is_training = series.operation == "fine_tuning"
        prices = {meter: self._unit_price(meter, identity, at) for meter in _price_meters(identity)}
        meaning = Meaning(
            identity,
            team,
            center,
            series.application,
            series.tags,
            is_training,
            self._lens.passes(identity, application=series.application, team=team, tags=series.tags),
            prices,
            0,
            is_share=is_share,
        )
        rows = tuple(price.row.id if isinstance(price, UnitPrice) else None for price in prices.values())
        key = (identity, is_training, meaning.is_asked, is_share, self._kept_apart(meaning), rows)
        meaning.cell = self._cells.setdefault(key, len(self._cells))
        return meaning

    def _unit_price(self, meter: PriceMeter, identity: Identity, at: int) -> UnitPrice | Unpriced:
        key = (meter, at, identity.model, identity.workspace, identity.sku, identity.region)
        found = self._prices.get(key)
        if found is None:
            found = self._prices[key] = self._world.prices.price(
                meter=meter,
                at=from_microseconds(at * 1_000_000),
                model=identity.model,
                workspace=identity.workspace,
                sku=identity.sku,
                region=identity.region,
            )
        return found

    def _changes_of_prices(self, identity: Identity) -> set[datetime]:
        key = (identity.mode, identity.model, identity.workspace, identity.sku, identity.region)
        found = self._price_changes.get(key)
        if found is None:
            found = self._price_changes[key] = self._world.prices.changes(
                meters=_price_meters(identity), model=identity.model, workspace=identity.workspace, sku=identity.sku, region=identity.region
            )
        return found

    def terms(self, meaning: Meaning, day: date) -> tuple[Term, ...]:
        """What the tokens of a meaning cost on a day, meter by meter, in the billing currency at the bill's rate of that month."""
        month = day.replace(day=1)
        found = meaning.terms.get(month)
        if found is None:
            found = meaning.terms[month] = tuple(self._terms(meaning, month))
        return found

    def _terms(self, meaning: Meaning, month: date) -> Iterator[Term]:
        identity = meaning.identity
        billing = self._world.billing_currency(identity.subscription, month)
        if identity.mode == Mode.MANAGED_COMPUTE:
            hourly = meaning.prices[PriceMeter.INSTANCE_HOURS]
            billing = billing or (hourly.currency if isinstance(hourly, UnitPrice) else None)
            yield Term(MeterKind.INPUT, billing, None, None, None)
            yield Term(MeterKind.OUTPUT, billing, None, None, None)
            return
        asked: Iterable[tuple[MeterKind, PriceMeter]] = _PRICED_BY
        if meaning.is_training:
            asked = [(MeterKind.TRAINING, PriceMeter.TRAINING_TOKENS)]
        elif isinstance(meaning.prices[PriceMeter.CACHED_INPUT_TOKENS], Unpriced):
            asked = [pair for pair in _PRICED_BY if pair[0] != MeterKind.CACHED_INPUT]
        chosen = [(kind, meaning.prices[meter]) for kind, meter in asked]
        # Tokens without a price stand beside those of the same calls that have one.
        priced = {kind: price.currency for kind, price in chosen if isinstance(price, UnitPrice)}
        beside = billing or next((priced[kind] for kind in (MeterKind.INPUT, MeterKind.OUTPUT, MeterKind.TRAINING) if kind in priced), None)
        for kind, price in chosen:
            if isinstance(price, Unpriced):
                yield Term(kind, beside, None, price.reason, None)
                continue
            currency = billing or price.currency
            rate = self.rate(identity.subscription, price.currency, currency, month)
            if rate is None:
                yield Term(kind, currency, None, no_rate(price.currency, currency), price)
            else:
                yield Term(kind, currency, money.times(price.per_unit, rate), None, price, rate)

    def rate(self, subscription: str | None, source: str, target: str, day: date) -> Decimal | None:
        return Decimal(1) if subscription is None else self._world.rate(subscription, source, target, day)


def _price_meters(identity: Identity) -> Sequence[PriceMeter]:
    return (PriceMeter.INSTANCE_HOURS,) if identity.mode == Mode.MANAGED_COMPUTE else sorted(TOKEN_METERS)


def _quarters(changes: Iterable[datetime], first: int, last: int) -> list[int]:
    """The quarter hours (seconds) within (first, last) from which the changes count, in order."""
    starts = {-(-to_microseconds(at) // 1_000_000 // QUARTER_SECONDS) * QUARTER_SECONDS for at in changes}
    return sorted(at for at in starts if first < at < last)


def no_rate(source: str, target: str | None) -> str:
    """Why an amount in one currency has none in another."""
    return f"no exchange rate from {source} to {target} is known from the bill"
