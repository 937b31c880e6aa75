"""Costs by any grouping on any basis: metered, billed, best, amortized. DESIGN.md "How a figure comes about" is the rule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money, skus
from models.charges import ChargeClass, ChargeDay, ChargeItem, MeterKind
from models.columns import EPOCH, from_microseconds, to_microseconds
from models.errors import InvalidInput
from models.ledger.evidence import Evidence
from models.ledger.hours import instance_hours, stretches
from models.ledger.shares import NO_AMOUNTS, Amounts, Hours, Run, Share
from models.ledger.sums import Sums, plus
from models.ledger.values import GROUPS, CostQuery, CostRow, CostTable
from models.ledger.world import Lens, Series, Use, World, read_usage
from models.matching import Identity
from models.money import ZERO
from models.periods import DAY, Period, buckets, day_start, days, settles_at, utc_day, zone_from
from models.prices import TOKEN_METERS, PriceMeter, UnitPrice, Unpriced, model_key, model_name
from models.resources import Mode, Route
from models.usage import DAY_SECONDS, QUARTER_SECONDS

_HOUR = 3_600_000_000
_DAY = DAY_SECONDS * 1_000_000
_MICROSECOND = timedelta(microseconds=1)


def costs(session: Session, query: CostQuery, *, now: datetime) -> CostTable:
    """Costs and usage of a period by any grouping, on any basis, as known now or at ``query.as_of``."""
    return Answer(session, query, now=now).answer()


_PRICED_BY = (
    (MeterKind.INPUT, PriceMeter.INPUT_TOKENS),
    (MeterKind.CACHED_INPUT, PriceMeter.CACHED_INPUT_TOKENS),
    (MeterKind.OUTPUT, PriceMeter.OUTPUT_TOKENS),
)
_Groups = tuple[str | None, ...]
_Spot = tuple[int, _Groups, str | None]  # bucket, groups, currency: a row


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
    terms: dict[date, tuple[Term, ...]] = field(default_factory=dict)
    groups: dict[MeterKind, _Groups] = field(default_factory=dict)


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
    units: Decimal | None = None  # tokens or hours, as many as were billed; None where the unit is unknown
    is_credit: bool = False  # anything but usage: a refund, a credit, a correction
    lines: int = 1
    part_id: int = 0
    charge_type: str = "Usage"  # as billed
    is_estimate: bool = False


@dataclass(slots=True)
class _Used:
    """The usage of a deployment on a day under one series and meaning, and how it lies over the buckets (-1: before the period)."""

    series: int
    stretch: int
    meaning: Meaning
    requests: int = 0
    tokens: dict[MeterKind, int] = field(default_factory=dict)
    by_bucket: dict[int, list[int]] = field(default_factory=dict)  # requests, input, cached input, output tokens

    def weight(self, kind: MeterKind | None, *, is_split: bool, bucket: int | None = None) -> int:
        """Its tokens of the kind, all of them for a kind that counts no tokens, its requests for None.

        ``is_split`` where the bill has cached input as a meter of its own: only then is it no part of the input billed.
        """
        requests, inputs, cached, outputs = self._sums() if bucket is None else self.by_bucket.get(bucket, (0, 0, 0, 0))
        match kind:
            case None:
                return requests
            case MeterKind.TRAINING:
                return inputs + outputs if self.meaning.is_training else 0
            case MeterKind.INPUT | MeterKind.CACHED_INPUT | MeterKind.OUTPUT if self.meaning.is_training:
                return 0
            case MeterKind.INPUT:
                return inputs - cached if is_split else inputs
            case MeterKind.CACHED_INPUT:
                return cached
            case MeterKind.OUTPUT:
                return outputs
            case _:
                return inputs + outputs

    def _sums(self) -> tuple[int, int, int, int]:
        rows = self.by_bucket.values()
        return sum(row[0] for row in rows), sum(row[1] for row in rows), sum(row[2] for row in rows), sum(row[3] for row in rows)


_Key = tuple[date, str, str]  # day, workspace and deployment without case
_UsedBy = dict[_Key, dict[tuple[int, int], _Used]]  # by series and stretch


def _key(day: date, identity: Identity) -> _Key:
    return day, (identity.workspace or "").casefold(), (identity.deployment or "").casefold()


def _users(
    used: _UsedBy, day: date, identities: Sequence[Identity], kind: MeterKind, *, is_split: bool = False
) -> tuple[list[tuple[Identity, _Used]], list[int], MeterKind | None]:
    """Who used these deployments on a day, in order of series, and by what an amount is cut over them: (users, weights, kind)."""
    users = [(each, one) for each in identities for one in used.get(_key(day, each), {}).values()]
    users.sort(key=lambda pair: (pair[1].series, pair[1].stretch))
    by: MeterKind | None
    for by in (kind, None):
        weights = [one.weight(by, is_split=is_split) for _, one in users]
        if any(weights):
            return users, weights, by
    return [], [], None


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

    def __init__(self, session: Session, query: CostQuery, *, now: datetime, usage_as_of: datetime | None = None, evidence: Evidence | None = None) -> None:
        unknown = [name for name in query.group_by if name not in GROUPS and not (name.startswith("tag:") and len(name) > 4)]
        if unknown:
            raise InvalidInput(f"group_by does not know {unknown[0][:60]!r}; it takes {', '.join(GROUPS)} and tag:<key>")
        self.session = session
        self.query = query
        self._evidence = evidence
        self._usage_as_of = query.as_of if usage_as_of is None else usage_as_of
        self.horizon = now if query.as_of is None else min(query.as_of, now)
        self.world = World(session, self.horizon)
        self.zone = zone_from(query.time_zone)
        self.buckets = buckets(query.period, query.granularity, self.zone)
        self._starts = [to_microseconds(bucket.start) for bucket in self.buckets]
        self._end = to_microseconds(query.period.end)
        self.lens = Lens(self.world, query.filters)
        # Below the bill: what only requests know.
        labels = {"application", "team", "cost_center"}
        self._asks_labels = bool(labels & set(query.group_by) or any(name.startswith("tag:") for name in query.group_by)) or bool(
            query.filters.applications or query.filters.teams or query.filters.tags
        )
        self._is_fine = self._asks_labels or "model" in query.group_by or bool(query.filters.models)
        self.rows: dict[_Spot, Sums] = {}
        # Of several spellings in a row the first of these is shown: the registry's, then usage's in order of arrival, then a bill's.
        self._ranks: dict[str, int] = {}
        for model in (*self.world.registry.models(), *(series.model for series in self.world.series.values() if series.model)):
            self._ranks.setdefault(model_name(model), len(self._ranks))
        self._spelled: dict[_Groups, str] = {}
        self._timelines: dict[int, tuple[list[int], list[Meaning]]] = {}
        self._cells: dict[tuple[object, ...], int] = {}
        self._prices: dict[tuple[object, ...], UnitPrice | Unpriced] = {}
        self._price_changes: dict[tuple[object, ...], set[datetime]] = {}
        self._owners: dict[tuple[object, ...], tuple[str | None, str | None]] = {}

    # -- what a series means --------------------------------------------------------------------

    def _timeline(self, series: Series) -> tuple[list[int], list[Meaning]]:
        """The stretches of the period's days in which nothing about the series changes: their first seconds, and what it then is.

        Usage is judged at the start of its quarter hour, so a change counts from the next one that begins.
        """
        found = self._timelines.get(series.id)
        if found is not None:
            return found
        registry = self.world.registry
        first = to_microseconds(self.query.period.start) // _DAY * DAY_SECONDS
        last = -(-self._end // _DAY) * DAY_SECONDS
        changes = registry.changes(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment)
        changes |= registry.owner_changes(application=series.application, tags=series.tags)
        meant_from: list[tuple[int, Identity, str | None, str | None]] = []
        for at in [first, *_quarters(changes, first, last)]:
            meant = self.resolved(series, from_microseconds(at * 1_000_000))
            if not meant_from or meant_from[-1][1:] != meant:
                meant_from.append((at, *meant))
        starts: list[int] = []
        meanings: list[Meaning] = []
        for index, (begin, identity, team, center) in enumerate(meant_from):
            finish = meant_from[index + 1][0] if index + 1 < len(meant_from) else last
            for at in [begin, *_quarters(self._changes_of_prices(identity), begin, finish)]:
                meaning = self._meaning(series, identity, team, center, at)
                if not meanings or meanings[-1].cell != meaning.cell or meanings[-1].identity != identity:
                    starts.append(at)
                    meanings.append(meaning)
        self._timelines[series.id] = starts, meanings
        return starts, meanings

    def resolved(self, series: Series, at: datetime) -> tuple[Identity, str | None, str | None]:
        """(identity, team, cost centre) of the series at the instant."""
        identity = self.world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=at)
        team, center = self.world.registry.owner(
            workspace=identity.workspace, deployment=identity.deployment, application=series.application, tags=series.tags, team=series.team, at=at
        )
        return identity, team, center

    def asked(self, series: Series) -> list[tuple[datetime | None, datetime | None]]:
        """The stretches of the period in which the series is what the filters ask for; None where one has no end within it."""
        starts, meanings = self._timeline(series)
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
        starts, meanings = self._timeline(series)
        return meanings[max(0, bisect_right(starts, seconds) - 1)]

    def _meaning(self, series: Series, identity: Identity, team: str | None, center: str | None, at: int) -> Meaning:
        is_training = series.operation == "fine_tuning"
        prices = {meter: self._unit_price(meter, identity, at) for meter in _price_meters(identity)}
        meaning = Meaning(
            identity,
            team,
            center,
            series.application,
            series.tags,
            is_training,
            self.lens.passes(identity, application=series.application, team=team, tags=series.tags),
            prices,
            0,
        )
        rows = tuple(price.row.id if isinstance(price, UnitPrice) else None for price in prices.values())
        key = (identity, is_training, meaning.is_asked, self._groups_of(meaning, MeterKind.INPUT), rows)
        meaning.cell = self._cells.setdefault(key, len(self._cells))
        return meaning

    def _unit_price(self, meter: PriceMeter, identity: Identity, at: int) -> UnitPrice | Unpriced:
        key = (meter, at, identity.model, identity.workspace, identity.sku, identity.region)
        found = self._prices.get(key)
        if found is None:
            found = self._prices[key] = self.world.prices.price(
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
            found = self._price_changes[key] = self.world.prices.changes(
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
        billing = self.world.billing_currency(identity.subscription, month)
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
            rate = self._rate(identity.subscription, price.currency, currency, month)
            if rate is None:
                yield Term(kind, currency, None, _no_rate(price.currency, currency), price)
            else:
                yield Term(kind, currency, money.times(price.per_unit, rate), None, price, rate)

    def _is_wanted(self, currency: str | None) -> bool:
        return self.query.currency is None or self.query.currency == currency

    def _rate(self, subscription: str | None, source: str, target: str, day: date) -> Decimal | None:
        return Decimal(1) if subscription is None else self.world.rate(subscription, source, target, day)

    # -- rows -----------------------------------------------------------------------------------

    def _groups_of(self, meaning: Meaning, meter: MeterKind) -> _Groups:
        found = meaning.groups.get(meter)
        if found is None:
            found = meaning.groups[meter] = self._groups(
                meaning.identity, application=meaning.application, team=meaning.team, center=meaning.center, tags=meaning.tags, meter=meter
            )
        return found

    def _groups(
        self, identity: Identity, *, application: str | None, team: str | None, center: str | None, tags: Mapping[str, str], meter: MeterKind
    ) -> _Groups:
        """The values of the asked groups."""
        values: list[str | None] = []
        for name in self.query.group_by:
            match name:
                case "workspace":
                    values.append(identity.workspace)
                case "deployment":
                    values.append(identity.deployment)
                case "model":
                    values.append(None if identity.model is None else model_key(identity.model))
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
        groups = tuple(values)
        if identity.model is not None and "model" in self.query.group_by:
            # Spellings of one model are one row, which shows one that is in it: a deployment's model comes back as inventory has it.
            spelled = model_name(identity.model)
            shown = self._spelled.setdefault(groups, spelled)
            if shown != spelled and self._ranks.setdefault(spelled, len(self._ranks)) < self._ranks.setdefault(shown, len(self._ranks)):
                self._spelled[groups] = spelled
        return groups

    def shown(self, groups: _Groups) -> _Groups:
        """The groups of a row as people read them: the model by a spelling of its own."""
        return tuple(self._spelled[groups] if name == "model" and value is not None else value for name, value in zip(self.query.group_by, groups, strict=True))

    def _row(self, bucket: int, groups: _Groups, currency: str | None) -> Sums:
        spot = (bucket, groups, currency)
        row = self.rows.get(spot)
        if row is None:
            row = self.rows[spot] = Sums()
        return row

    def _bucket_of(self, at: int) -> int:
        """The index of the bucket that holds an instant (microseconds); -1 before the period, the number of buckets after it."""
        return len(self.buckets) if at >= self._end else bisect_right(self._starts, at) - 1

    def _standing(self, day: date, *, is_reached: bool) -> int:
        return 2 if self.horizon >= settles_at(day) else 1 if is_reached else 0

    # -- the answer -----------------------------------------------------------------------------

    def gather(self) -> None:
        """Fill ``rows`` with the sums of the question; once."""
        if self.buckets:
            bills = self._bills()
            cut = {bill.day for bill in bills if self._is_cut(bill.day)}
            if self._is_fine:
                cut |= {utc_day(self.query.period.start), utc_day(self.query.period.end - _MICROSECOND)}
            needs_shares = bool(cut) or any(len(bill.identities) > 1 for bill in bills)
            used: _UsedBy = {}
            self._add_usage(cut, used if needs_shares else None)
            self._add_instances(used)
            self._add_bills(bills, used)

    def answer(self) -> CostTable:
        """Rows and totals; sums are made by row first, so that a total is the sum of its rows."""
        self.gather()
        wanted = self.query.currency
        chosen = {spot: sums for spot, sums in self.rows.items() if wanted is None or spot[2] == wanted}
        totals: dict[str | None, Sums] = {}
        for (_, _, currency), sums in chosen.items():
            totals.setdefault(currency, Sums()).absorb(sums)
        basis, names = self.query.basis, self.query.group_by
        shown = {groups: self.shown(groups) for groups in {spot[1] for spot in chosen}}
        order = sorted(chosen, key=lambda spot: (spot[0], [(value is None, value or "") for value in shown[spot[1]]], spot[2] is None, spot[2] or ""))
        return CostTable(
            self.query,
            [CostRow(self.buckets[spot[0]], dict(zip(names, shown[spot[1]], strict=True)), chosen[spot].figures(basis, spot[2])) for spot in order],
            [totals[currency].figures(basis, currency) for currency in sorted(totals, key=lambda code: (code is None, code or ""))],
        )

    def _is_cut(self, day: date) -> bool:
        """Whether a UTC day lies in more than one bucket, or partly outside the period."""
        start = to_microseconds(day_start(day))
        return self._bucket_of(start) != self._bucket_of(start + _DAY - 1)

    # -- usage ----------------------------------------------------------------------------------

    def _add_usage(self, cut: set[date], used: _UsedBy | None) -> None:
        """Sum usage by cell (what no row, price or bill tells apart), then price each cell once."""
        cells: dict[tuple[int, int, int], tuple[Meaning, list[int]]] = {}
        opens = self._starts[0] // (QUARTER_SECONDS * 1_000_000) * QUARTER_SECONDS
        for use, bucket in self._read(cut, is_whole=used is not None):
            at, series_id, requests, inputs, outputs, cached, *_ = use
            starts, meanings = self._timelines[series_id]
            if bucket == 0 and at < opens:
                at = opens  # of a slot that began before the period, only the part in it was read
            index = 0 if len(starts) == 1 else max(0, bisect_right(starts, at) - 1)
            meaning = meanings[index]
            day = at // DAY_SECONDS
            if 0 <= bucket < len(self.buckets) and meaning.is_asked:
                key = (meaning.cell, day, bucket)
                cell = cells.get(key)
                if cell is None:
                    cells[key] = (meaning, list(use[2:]))
                else:
                    sums = cell[1]
                    for place, value in enumerate(use[2:]):
                        sums[place] += value
            if used is not None and meaning.identity.deployment is not None:
                of_day = used.setdefault(_key(_date(day), meaning.identity), {})
                one = of_day.get((series_id, index))
                if one is None:
                    one = of_day[series_id, index] = _Used(series_id, index, meaning)
                into = one.by_bucket.setdefault(bucket, [0, 0, 0, 0])
                into[0] += requests
                into[1] += inputs
                into[2] += cached
                into[3] += outputs
        for (_, day, bucket), (meaning, sums) in cells.items():
            self._add_cell(meaning, _date(day), bucket, sums)

    def _read(self, cut: set[date], *, is_whole: bool) -> Iterator[tuple[Use, int]]:
        """The usage of the period with its bucket; of days that a bill has to be cut over also what lies outside the period.

        ``is_whole`` reads what the caller may not see, too: a bill is shared with it.
        """
        period = self.query.period
        parts = list(self._parts())
        before = Period(day_start(utc_day(period.start)), period.start)
        after = Period(period.end, max(period.end, day_start(utc_day(period.end - _MICROSECOND) + DAY)))
        outside = [part for part in (before, after) if part.start < part.end and utc_day(part.start) in cut]
        series = [one for one in self.world.series.values() if is_whole or self._may_be_seen(one)]
        for part, slot, shift in [*parts, *((part, DAY_SECONDS, 0) for part in outside)]:
            whole: list[int] = []
            broken: list[int] = []
            for one in series:
                starts, _ = self._timeline(one)
                moves = any((at % slot) not in (0, shift) for at in starts[1:])
                (broken if moves and slot > QUARTER_SECONDS else whole).append(one.id)
            for ids, width, cut_at in ((whole, slot, shift), (broken, QUARTER_SECONDS, 0)):
                if not ids:
                    continue
                only = None if len(ids) == len(self.world.series) else ids
                for use in read_usage(self.session, part, slot=width, shift=cut_at, as_of=self._usage_as_of, series=only):
                    at = max(use[0] * 1_000_000, to_microseconds(part.start))
                    yield use, self._bucket_of(at)

    def _parts(self) -> Iterator[tuple[Period, int, int]]:
        """The period in runs whose inner cuts repeat daily or hourly: (part, slot, shift) to sum usage by."""
        edges = self._starts[1:]
        offsets = [edge % _DAY for edge in edges]
        if self.query.granularity == "hour" or any(offset % (QUARTER_SECONDS * 1_000_000) for offset in offsets):
            slot = 3600 if all(edge % _HOUR == 0 for edge in edges) else QUARTER_SECONDS
            yield self.query.period, slot, 0
            return
        # Clocks change twice a year: a run ends where the local midnight moves.
        begin = 0
        for index in range(1, len(offsets) + 1):
            if index == len(offsets) or offsets[index] != offsets[begin]:
                left = self.query.period.start if begin == 0 else self.buckets[begin + 1].start
                right = self.query.period.end if index == len(offsets) else self.buckets[index + 1].start
                yield Period(left, right), DAY_SECONDS, offsets[begin] // 1_000_000
                begin = index
        if not offsets:
            yield self.query.period, DAY_SECONDS, 0

    def _may_be_seen(self, series: Series) -> bool:
        """Whether the caller may see the series at some time of the period: others are not even read."""
        visible = self.query.filters.visible
        return visible is None or any(meaning.identity.workspace in visible for meaning in self._timeline(series)[1])

    def _add_cell(self, meaning: Meaning, day: date, bucket: int, sums: Sequence[int]) -> None:
        requests, inputs, outputs, cached, reasoning, unknown, estimated = sums
        identity = meaning.identity
        is_reached = self.world.is_reached(identity.subscription, identity.route if identity.mode != Mode.UNKNOWN else None, day)
        standing = self._standing(day, is_reached=is_reached)
        terms = self.terms(meaning, day)
        is_split = len(terms) == 3
        row: Sums
        for index, term in enumerate(terms):
            kind = term.meter
            if index == 0:
                # A request counts in the row of the input (of training), whatever its tokens are.
                row = self._row(bucket, self._groups_of(meaning, kind), term.currency)
                row.requests += requests
                row.unknown_requests += unknown
                row.estimated_requests += estimated
                # Of managed compute tokens cost nothing by themselves.
                row.is_unknown |= bool(unknown) and identity.mode != Mode.MANAGED_COMPUTE
                row.standing = min(row.standing, standing)
                row.is_billed |= is_reached
                row.is_best |= is_reached
            match kind:
                case MeterKind.OUTPUT:
                    tokens = outputs
                case MeterKind.TRAINING:
                    tokens = inputs + outputs
                case MeterKind.CACHED_INPUT:
                    tokens = cached
                case _:
                    tokens = inputs - cached if is_split else inputs
            if not tokens:
                continue
            row = self._row(bucket, self._groups_of(meaning, kind), term.currency)
            match kind:
                case MeterKind.OUTPUT:
                    row.output_tokens += outputs
                    row.reasoning_output_tokens += reasoning
                case MeterKind.TRAINING:
                    row.input_tokens += inputs
                    row.output_tokens += outputs
                case MeterKind.CACHED_INPUT:
                    row.input_tokens += cached
                    row.cached_input_tokens += cached
                case _:
                    row.input_tokens += tokens
                    if not is_split:
                        row.cached_input_tokens += cached
            row.standing = min(row.standing, standing)
            row.is_billed |= is_reached
            row.is_best |= is_reached
            row.units = money.plus(row.units, Decimal(tokens))
            if self._evidence is not None and self._is_wanted(term.currency):
                cost = None if term.factor is None else money.times(term.factor, tokens)
                self._evidence.note_metered(
                    identity,
                    day=day,
                    meter=kind,
                    price=term.price,
                    currency=term.currency,
                    rate=term.rate,
                    reason=term.reason,
                    units=Decimal(tokens),
                    amount=cost,
                    counts=not is_reached,
                )
            if term.factor is not None:
                amount = money.times(term.factor, tokens)
                row.is_metered = True
                row.metered = money.plus(row.metered, amount)
                if is_reached:
                    row.add_cover(day, identity, metered=amount)
                else:
                    row.is_best = True
                    row.best = money.plus(row.best, amount)
            elif term.reason is not None:
                row.unpriced_tokens += tokens
                row.is_unpriced = True
                row.reasons.add(term.reason)

    # -- instance hours of managed compute ------------------------------------------------------

    def _add_instances(self, used: _UsedBy) -> None:
        start, end = self.query.period.start, min(self.query.period.end, self.horizon)
        if start >= end:
            return
        registry = self.world.registry
        for workspace, name, facts in registry.managed():
            if self.lens.deployments is not None and name not in self.lens.deployments:
                continue
            # From the day's start: hours and shares do not hang on where a question begins.
            by_day: dict[date, list[Run]] = {}
            for begin, finish, fact in stretches(facts, day_start(utc_day(start)), end):
                region = registry.identity(workspace, name, model=None, at=begin).region
                edges = {begin, finish, *(day_start(day) for day in days(Period(begin, finish)))}
                edges |= self.world.prices.changes(meters=(PriceMeter.INSTANCE_HOURS,), model=fact.model, workspace=workspace, sku=fact.sku, region=region)
                for left, right in pairwise(sorted(edge for edge in edges if begin <= edge <= finish)):
                    price = self.world.prices.price(
                        meter=PriceMeter.INSTANCE_HOURS, at=left, model=fact.model, workspace=workspace, sku=fact.sku, region=region
                    )
                    by_day.setdefault(utc_day(left), []).append(Run(left, right, fact, price))
            for day, runs in by_day.items():
                self._add_instance_day(day, registry.identity(workspace, name, model=None, at=runs[0].start), runs, used)

    def _add_instance_day(self, day: date, identity: Identity, runs: Sequence[Run], used: _UsedBy) -> None:
        """A deployment's instance-hours of a UTC day: per bucket, and cut over who used it that day where only they know the answer."""
        billing = self.world.billing_currency(identity.subscription, day)
        cuts = [from_microseconds(at) for at in self._starts]
        found: dict[tuple[str | None, str | None], dict[int, Hours]] = {}
        for run in runs:
            currency = billing or (run.price.currency if isinstance(run.price, UnitPrice) else None)
            of = found.setdefault((run.fact.model, currency), {})
            before = ZERO
            for left, right in pairwise([run.start, *(at for at in cuts if run.start < at < run.end), run.end]):
                # Hours up to each cut, less those before: the parts of a run add up however it is cut.
                until = instance_hours(run.start, right)
                hours, before = money.times(money.minus(until, before), run.fact.instance_count or 0), until
                if hours:
                    into = of.setdefault(self._bucket_of(to_microseconds(left)), Hours())
                    cost = self._cost_of(run, hours, identity.subscription, currency, day)
                    into.add(*cost, hours)
                    self._note_hours(run, identity, currency=currency, day=day, hours=hours, cost=cost)
        users, weights, _ = _users(used, day, (identity,), MeterKind.COMPUTE) if self._is_fine else ([], [], None)
        for (model, currency), by_bucket in found.items():
            so_far = Hours()
            given = [Hours() for _ in users]
            for bucket in sorted(by_bucket):
                part = by_bucket[bucket]
                if not users:
                    team, center = self._owner(identity, runs[0].start)
                    whose = [Share(bucket, replace(identity, model=model), None, team, center, {}, NO_AMOUNTS, by_usage=False)]
                    self._add_hours(day, currency, whose, [part])
                    continue
                # What is due up to here is cut, less what was given before: hours add up to days, and shares to hours.
                so_far = so_far.plus(part)
                due = so_far.split(weights)
                parts = [one.minus(earlier) for one, earlier in zip(due, given, strict=True)]
                given = due
                whose = [
                    Share(
                        bucket, replace(who, model=seen.identity.model or model), seen.application, seen.team, seen.center, seen.tags, NO_AMOUNTS, by_usage=True
                    )
                    for who, one in users
                    for seen in (one.meaning,)
                ]
                self._add_hours(day, currency, whose, parts)

    def _note_hours(
        self, run: Run, identity: Identity, *, currency: str | None, day: date, hours: Decimal, cost: tuple[Decimal | None, Decimal | None, str | None]
    ) -> None:
        """Keep the hours as evidence, where the whole of them is asked for: who used them is a question of shares."""
        if self._evidence is None or not self._is_wanted(currency) or not self.lens.passes(identity, application=None, team=None, tags={}):
            return
        price = run.price if isinstance(run.price, UnitPrice) else None
        rate = None if price is None else self._rate(identity.subscription, price.currency, currency or price.currency, day)
        is_reached = self.world.is_reached(identity.subscription, Route.COMPUTE, day)
        self._evidence.note_metered(
            identity,
            day=day,
            meter=MeterKind.COMPUTE,
            price=price,
            currency=currency,
            rate=rate,
            reason=cost[2],
            units=hours,
            amount=cost[0],
            counts=not is_reached,
        )

    def _cost_of(
        self, run: Run, hours: Decimal, subscription: str | None, currency: str | None, day: date
    ) -> tuple[Decimal | None, Decimal | None, str | None]:
        """(cost, core-hours, why there is no cost) of some hours of a run."""
        cores = skus.cores(run.fact.sku or "")
        core_hours = None if cores is None else money.times(hours, cores)
        if isinstance(run.price, Unpriced):
            return None, core_hours, run.price.reason
        rate = self._rate(subscription, run.price.currency, currency or run.price.currency, day)
        if rate is None:
            return None, core_hours, _no_rate(run.price.currency, currency)
        return money.times(money.times(run.price.per_unit, hours), rate), core_hours, None

    def _add_hours(self, day: date, currency: str | None, shares: Sequence[Share], parts: Sequence[Hours]) -> None:
        spots = [self._spot(share, MeterKind.COMPUTE, currency) for share in shares]
        is_estimate = len(set(spots)) > 1
        for share, spot, part in zip(shares, spots, parts, strict=True):
            if spot is None:
                continue
            is_reached = self.world.is_reached(share.identity.subscription, Route.COMPUTE, day)
            row = self._row(*spot)
            row.standing = min(row.standing, self._standing(day, is_reached=is_reached))
            row.is_billed |= is_reached
            row.is_best |= is_reached
            row.estimate |= is_estimate or (share.by_usage and self._asks_labels)
            row.metered_core_hours = plus(row.metered_core_hours, part.core_hours)
            row.units = money.plus(row.units, part.instance_hours)
            if not is_reached:
                row.best_core_hours = plus(row.best_core_hours, part.core_hours)
            if part.reason is not None:
                row.is_unpriced = True
                row.reasons.add(part.reason)
            if part.cost is None:
                continue
            row.is_metered = True
            row.metered = money.plus(row.metered, part.cost)
            if is_reached:
                row.add_cover(day, share.identity, metered=part.cost)
            else:
                row.is_best = True
                row.best = money.plus(row.best, part.cost)

    def _owner(self, identity: Identity, at: datetime) -> tuple[str | None, str | None]:
        key = (identity.workspace, identity.deployment, at)
        found = self._owners.get(key)
        if found is None:
            found = self._owners[key] = self.world.registry.owner(
                workspace=identity.workspace, deployment=identity.deployment, application=None, tags={}, team=None, at=at
            )
        return found

    # -- the bill -------------------------------------------------------------------------------

    def _bills(self) -> list[_Bill]:
        """The charges of the days that the period touches, with whom they may belong to."""
        period = self.query.period
        parts = {part.id: part.subscription_id for part in self.world.parts}
        if not parts:
            return []
        last = utc_day(period.end - _MICROSECOND)
        row = ChargeDay
        columns = [col(one) for one in (row.charged_on, row.item_id, row.currency, row.quantity, row.billed_cost, row.effective_cost, row.part_id)]
        columns += [col(row.charge_type), col(row.rows)]
        found = self.session.execute(
            sa.select(*columns)
            .where(col(row.part_id).in_(list(parts)), col(row.charged_on) >= utc_day(period.start), col(row.charged_on) <= last)
            .order_by(col(row.charged_on), col(row.item_id), col(row.charge_type), col(row.currency), col(row.part_id))
        ).all()
        items = self._items({one.item_id for one in found})
        changes = sorted(self.world.registry.every_change())
        # Whom a charge belongs to changes with the registry only, at the start or in the middle of a day.
        stamps = {day: (bisect_right(changes, day_start(day)), bisect_right(changes, day_start(day + DAY))) for day in {one.charged_on for one in found}}
        targets: dict[tuple[int, tuple[int, int]], tuple[Identity, ...]] = {}
        bills: list[_Bill] = []
        tagged: dict[_Key, Decimal] = {}
        for day, item_id, currency, quantity, billed, effective, part_id, charge_type, lines in found:
            item = items.get(item_id)
            if item is None:
                continue
            stamp = (item_id, stamps[day])
            identities = targets.get(stamp)
            if identities is None:
                identities = targets[stamp] = self.world.registry.target(item, day_start(day)).identities
            if identities[0].subscription is None and parts[part_id]:
                identities = tuple(replace(one, subscription=parts[part_id]) for one in identities)
            units = None if quantity is None or item.unit_size is None else money.times(quantity, item.unit_size)
            hours = units if item.meter_kind == MeterKind.COMPUTE else None
            if hours is not None and identities[0].deployment is not None:
                key = _key(day, identities[0])
                tagged[key] = money.plus(tagged.get(key, ZERO), hours)
            bills.append(
                _Bill(day, item, currency, billed, effective, hours, identities, units, charge_type.casefold() != "usage", lines, part_id, charge_type)
            )
        return self._with_untagged(bills, tagged)

    def _items(self, ids: set[int]) -> dict[int, ChargeItem]:
        """The items that count as model spend."""
        wanted = sorted(ids)
        found: dict[int, ChargeItem] = {}
        for index in range(0, len(wanted), 500):
            query = select(ChargeItem).where(col(ChargeItem.id).in_(wanted[index : index + 500]), col(ChargeItem.charge_class) != ChargeClass.OUT_OF_SCOPE)
            found |= {item.id: item for item in self.session.exec(query) if item.id is not None}
        return found

    def _with_untagged(self, bills: list[_Bill], tagged: dict[_Key, Decimal]) -> list[_Bill]:
        """Give untagged VM rows to the only deployment of their size, up to its instance-hours."""
        managed = list(self.world.registry.managed())
        left: dict[_Key, Decimal] = {}
        answer: list[_Bill] = []
        for bill in bills:
            only = bill.identities[0]
            sku = (bill.item.sku or "").casefold()
            if bill.hours is None or bill.hours <= 0 or only.deployment is not None or only.workspace is None or not sku:
                answer.append(bill)
                continue
            begin, finish = day_start(bill.day), min(day_start(bill.day + DAY), self.horizon)
            fitting = {
                name: runs
                for workspace, name, facts in managed
                if workspace == only.workspace
                if (runs := [one for one in stretches(facts, begin, finish) if (one[2].sku or "").casefold() == sku])
            }
            if len(fitting) != 1:
                answer.append(bill)
                continue
            ((name, runs),) = fitting.items()
            found = self.world.registry.identity(only.workspace, name, model=None, at=runs[0][0])
            given = replace(found, mode=Mode.MANAGED_COMPUTE, route=Route.COMPUTE, subscription=only.subscription or found.subscription)
            key = _key(bill.day, given)
            if key not in left:
                own = money.add(money.times(instance_hours(a, b), fact.instance_count or 0) for a, b, fact in runs)
                left[key] = max(ZERO, money.minus(own, tagged.get(key, ZERO)))
            taken = min(left[key], bill.hours)
            if taken <= 0:
                answer.append(bill)
                continue
            left[key] = money.minus(left[key], taken)
            rest = money.minus(bill.hours, taken)
            weights = [taken, rest]
            (billed, billed_rest), (effective, effective_rest) = money.split(bill.billed, weights), money.split(bill.effective, weights)
            answer.append(replace(bill, billed=billed, effective=effective, hours=taken, units=taken, identities=(given,), is_estimate=True))
            if rest > 0:
                answer.append(replace(bill, billed=billed_rest, effective=effective_rest, hours=rest, units=rest))
        return answer

    def _add_bills(self, bills: Sequence[_Bill], used: _UsedBy) -> None:
        cached = {_key(bill.day, each) for bill in bills if bill.item.meter_kind == MeterKind.CACHED_INPUT for each in bill.identities}
        for bill in bills:
            cores = bill.item.cores or skus.cores(bill.item.sku or "")
            core_hours = None if bill.hours is None or cores is None else money.times(bill.hours, cores)
            amounts = Amounts(bill.billed, bill.effective, core_hours, bill.units)
            is_cut = self._is_cut(bill.day)
            is_split = any(_key(bill.day, each) in cached for each in bill.identities)
            shares = list(self._cut(bill, amounts, used, is_cut=is_cut, is_split=is_split))
            self._add_shares(bill, shares, is_cut=is_cut)

    def _cut(self, bill: _Bill, amounts: Amounts, used: _UsedBy, *, is_cut: bool, is_split: bool) -> Iterator[Share]:
        """Cut a charge over the series that used its deployments that day, then each share over the buckets the day lies in.

        Always in this order, so that the rows of any finer question add up to those of a coarser one.
        """
        start = to_microseconds(day_start(bill.day))
        identity = _common(bill.identities)
        if len(bill.identities) == 1 and not is_cut and not self._is_fine:
            yield Share(self._bucket_of(start), identity, None, None, None, {}, amounts, by_usage=False)
            return
        users, weights, by = _users(used, bill.day, bill.identities, bill.item.meter_kind, is_split=is_split)
        if users:
            for (who, one), weight, part in zip(users, weights, amounts.split(weights), strict=True):
                if weight:
                    seen = one.meaning
                    named = replace(who, model=seen.identity.model or who.model)
                    steps = (
                        [(bucket, one.weight(by, is_split=is_split, bucket=bucket)) for bucket in sorted(one.by_bucket)]
                        if is_cut
                        else [(self._bucket_of(start), 1)]
                    )
                    for (bucket, _), piece in zip(steps, part.spread([step for _, step in steps]), strict=True):
                        yield Share(bucket, named, seen.application, seen.team, seen.center, seen.tags, piece, by_usage=True)
            return
        team, center = self._owner(identity, day_start(bill.day))
        edges, pieces = [start], [amounts]
        if is_cut and bill.item.meter_kind == MeterKind.COMPUTE:
            edges = [start, *(edge for edge in (*self._starts, self._end) if start < edge < start + _DAY)]
            pieces = amounts.spread([right - left for left, right in pairwise([*edges, start + _DAY])])
        for edge, piece in zip(edges, pieces, strict=True):
            yield Share(self._bucket_of(edge), identity, None, team, center, {}, piece, by_usage=False)

    def _add_shares(self, bill: _Bill, shares: Sequence[Share], *, is_cut: bool) -> None:
        spots = [self._spot(share, bill.item.meter_kind, bill.currency) for share in shares]
        standing = self._standing(bill.day, is_reached=True)
        is_estimate = bill.is_estimate or is_cut or len(set(spots)) > 1
        for spot, share in zip(spots, shares, strict=True):
            if spot is None:
                continue
            row = self._row(*spot)
            row.standing = min(row.standing, standing)
            row.is_billed = row.is_best = True
            row.estimate |= is_estimate or (share.by_usage and self._asks_labels)
            row.billed = money.plus(row.billed, share.amounts.billed)
            row.effective = money.plus(row.effective, share.amounts.effective)
            row.best = money.plus(row.best, share.amounts.billed)
            row.billed_core_hours = plus(row.billed_core_hours, share.amounts.core_hours)
            row.best_core_hours = plus(row.best_core_hours, share.amounts.core_hours)
            if self._evidence is not None and self._is_wanted(bill.currency):
                self._evidence.note_billed(
                    share,
                    item=bill.item,
                    charge_type=bill.charge_type,
                    currency=bill.currency,
                    part_id=bill.part_id,
                    day=bill.day,
                    rows=bill.lines,
                    estimate=row.estimate,
                )
            row.bill.add(share.amounts.billed, share.amounts.units, is_credit=bill.is_credit, lines=bill.lines)
            row.add_cover(bill.day, share.identity, billed=share.amounts.billed)

    def _spot(self, share: Share, meter: MeterKind, currency: str | None) -> _Spot | None:
        """The row a share goes to; None where it is outside the period or the filters."""
        if not 0 <= share.bucket < len(self.buckets):
            return None
        if not self.lens.passes(share.identity, application=share.application, team=share.team, tags=share.tags):
            return None
        groups = self._groups(
            share.identity,
            application=share.application,
            team=share.team,
            center=share.center,
            tags=share.tags,
            meter=meter,
        )
        return share.bucket, groups, currency


def _price_meters(identity: Identity) -> Sequence[PriceMeter]:
    return (PriceMeter.INSTANCE_HOURS,) if identity.mode == Mode.MANAGED_COMPUTE else sorted(TOKEN_METERS)


def _quarters(changes: Iterable[datetime], first: int, last: int) -> list[int]:
    """The quarter hours (seconds) within (first, last) from which the changes count, in order."""
    starts = {-(-to_microseconds(at) // 1_000_000 // QUARTER_SECONDS) * QUARTER_SECONDS for at in changes}
    return sorted(at for at in starts if first < at < last)


def _date(day: int) -> date:
    """The UTC day of that number since 1970."""
    return (EPOCH + day * DAY).date()


def _no_rate(source: str, target: str | None) -> str:
    return f"no exchange rate from {source} to {target} is known from the bill"
