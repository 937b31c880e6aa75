"""Costs by any grouping on any basis: metered, billed, best, amortized. DESIGN.md "How a figure comes about" is the rule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from sqlmodel import Session

from models import money, skus
from models.charges import MeterKind
from models.columns import EPOCH, from_microseconds, to_microseconds
from models.errors import InvalidInput, InvariantBroken
from models.ledger.billed import Bill, Place, Reading, Target, place_of
from models.ledger.evidence import Evidence
from models.ledger.hours import instance_hours, stretches
from models.ledger.meanings import Meaning, Meanings, Term, no_rate, shared
from models.ledger.shares import BY_REQUESTS, BY_TIME, BY_TOKENS, NO_AMOUNTS, NO_TAGS, Hours, Run, Share
from models.ledger.sums import Sums
from models.ledger.values import GROUPS, CostQuery, CostTable
from models.ledger.views import Cell, Common, Groups, Line, Priced, Spot, View
from models.ledger.world import Lens, Series, Use
from models.matching import Identity
from models.money import ZERO
from models.periods import DAY, Period, buckets, day_start, days, settles_at, utc_day, zone_from
from models.prices import PriceMeter, UnitPrice, Unpriced
from models.resources import Mode, Route
from models.usage import DAY_SECONDS, QUARTER_SECONDS

_HOUR = 3_600_000_000
_DAY = DAY_SECONDS * 1_000_000
_MICROSECOND = timedelta(microseconds=1)


def costs(session: Session, query: CostQuery, *, now: datetime, reading: Reading | None = None) -> CostTable:
    """Costs and usage of a period by any grouping, on any basis, as known now or at ``query.as_of``; ``reading`` is what somebody has read at that instant."""
    return Answer(session, query, now=now, reading=reading).answer()


def costs_together(
    session: Session, queries: Sequence[CostQuery], *, now: datetime, reading: Reading | None = None, needs_coverage: bool = True
) -> list[CostTable]:
    """The answers of ``costs`` to queries that differ in grouping, basis and currency only; ``reading`` is what somebody has read at ``now`` already.

    Where the caller shows no coverage, ``needs_coverage`` spares to note it deployment by deployment and day by day; it is None then.
    """
    answer = Answer(session, *queries, now=now, reading=reading, needs_coverage=needs_coverage)
    answer.gather()
    return [view.table(answer.buckets) for view in answer.views]


@dataclass(slots=True)
class _Used:
    """The usage of a deployment on a day under one series and meaning, and how it lies over the buckets (-1: before the period)."""

    series: int
    stretch: int
    meaning: Meaning
    by_bucket: dict[int, list[int]] = field(default_factory=dict)  # requests, input, cached input, output tokens
    _whole: tuple[int, int, int, int] | None = None  # the sums of all buckets, once all usage is read

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
        if self._whole is None:
            requests, inputs, cached, outputs = map(sum, zip(*self.by_bucket.values(), strict=True))
            self._whole = requests, inputs, cached, outputs
        return self._whole


_UsedBy = dict[Place, dict[tuple[int, int], _Used]]  # by series and stretch


@dataclass(frozen=True, slots=True)
class _Day:
    """A UTC day as a question sees it."""

    start: int  # microseconds
    bucket: int  # that its start lies in; -1: before the period
    is_cut: bool  # lies in more than one bucket, or partly outside the period
    standing: int  # of what a bill has reached
    standing_unreached: int


_Users = list[tuple[Identity, _Used]]


def _weighed(users: _Users, kind: MeterKind, *, is_split: bool = False) -> tuple[_Users, list[int], MeterKind | None]:
    """By what an amount of a kind is cut over who used its deployments: (users, weights, kind)."""
    by: MeterKind | None
    for by in (kind, None):
        weights = [one.weight(by, is_split=is_split) for _, one in users]
        if any(weights):
            return users, weights, by
    return [], [], None


class _Whole:
    """Charges that no cut divides, added up by item, whose they are (None: nobody asks) and bucket: once, however many views they go to."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, int], tuple[Target, Share | None, int, Sums]] = {}

    def at(self, target: Target, share: Share | None, bucket: int) -> Sums:
        # With what the ids are of: an id is nobody else's only for as long as it is there.
        key = id(target), id(share), bucket
        found = self.found.get(key)
        if found is None:
            found = self.found[key] = target, share, bucket, Sums()
        return found[3]


class Answer:
    """One reading of usage and bill, and the queries it answers: they differ in grouping, basis and currency only."""

    def __init__(
        self,
        session: Session,
        query: CostQuery,
        *more: CostQuery,
        now: datetime,
        usage_as_of: datetime | None = None,
        evidence: Evidence | None = None,
        reading: Reading | None = None,
        needs_coverage: bool = True,
    ) -> None:
        for each in (query, *more):
            unknown = [name for name in each.group_by if name not in GROUPS and not (name.startswith("tag:") and len(name) > 4)]
            if unknown:
                raise InvalidInput(f"group_by does not know {unknown[0][:60]!r}; it takes {', '.join(GROUPS)} and tag:<key>")
            if replace(each, group_by=query.group_by, basis=query.basis, currency=query.currency) != query or (more and evidence is not None):
                raise InvariantBroken("queries that are answered together differ in grouping, basis and currency only, and leave no evidence")
        self.session = session
        self.query = query
        self._evidence = evidence
        self.usage_as_of = query.as_of if usage_as_of is None else usage_as_of
        self.horizon = now if query.as_of is None else min(query.as_of, now)
        self._needs_coverage = needs_coverage
        # What was read at another instant tells nothing of this one.
        self.reading = reading if reading is not None and reading.world.known == self.horizon else Reading(session, self.horizon)
        self.world = self.reading.world
        self.zone = zone_from(query.time_zone)
        self.buckets = buckets(query.period, query.granularity, self.zone)
        self._starts = [to_microseconds(bucket.start) for bucket in self.buckets]
        self._end = to_microseconds(query.period.end)
        self.lens = Lens(self.world, query.filters)
        self.views = views = [View(each, self.world, needs_coverage=needs_coverage) for each in (query, *more)]
        self._is_fine = any(view.is_fine for view in self.views)
        # Not through ``self``: an answer that holds itself stays in memory until somebody looks for such circles.
        self.meanings = Meanings(self.world, self.lens, query.period, lambda meaning: tuple(view.groups_of(meaning, MeterKind.INPUT) for view in views))
        self._days: dict[date, _Day] = {}
        self._owners: dict[tuple[object, ...], tuple[str | None, str | None]] = {}
        # With what their keys are of: an id is nobody else's only for as long as it is there.
        self._targeted: dict[tuple[int, int, MeterKind | None], tuple[Groups | None, Identity]] = {}
        self._grouped: dict[tuple[object, ...], tuple[Groups | None, Identity, Mapping[str, str]]] = {}
        self._renamed: dict[tuple[int, str | None], tuple[Identity, Identity]] = {}
        self._whole: dict[tuple[object, ...], tuple[Share, Target, Meaning | None]] = {}
        self._used_at: dict[Place, Sequence[_Used]] = {}

    @property
    def lines(self) -> dict[Line, dict[int, Sums]]:
        """The sums of the first query's rows by groups and currency, then bucket, once they are gathered."""
        return self.views[0].lines

    def shown(self, groups: Groups) -> Groups:
        """The groups of a row of the first query as people read them."""
        return self.views[0].shown(groups)

    def gather(self) -> None:
        """Fill the rows with the sums of the questions; once."""
        if not self.buckets:
            return
        charges = self.reading.charges(self.query.period)
        cut = {day for day, _ in charges if self._day(day).is_cut}
        if self._is_fine:
            cut |= {utc_day(self.query.period.start), utc_day(self.query.period.end - _MICROSECOND)}
        needs_shares = bool(cut) or any(len(bill.target.identities) > 1 for _, bills in charges for bill in bills)
        used: _UsedBy = {}
        self._add_usage(cut, used if needs_shares else None)
        self._add_instances(used)
        self._add_bills(charges, used)

    def answer(self) -> CostTable:
        """The first query's table."""
        self.gather()
        return self.views[0].table(self.buckets)

    # -- days and places ------------------------------------------------------------------------

    def _day(self, day: date) -> _Day:
        found = self._days.get(day)
        if found is None:
            start = to_microseconds(day_start(day))
            bucket = self._bucket_of(start)
            is_settled = self.horizon >= settles_at(day)
            found = self._days[day] = _Day(start, bucket, bucket != self._bucket_of(start + _DAY - 1), 2 if is_settled else 1, 2 if is_settled else 0)
        return found

    def _bucket_of(self, at: int) -> int:
        """The index of the bucket that holds an instant (microseconds); -1 before the period, the number of buckets after it."""
        return len(self.buckets) if at >= self._end else bisect_right(self._starts, at) - 1

    def _reached(self, subscription: str | None, route: Route | None, day: date) -> tuple[bool, int]:
        """Whether a bill covers the day, and how settled what is known of it is."""
        is_reached = self.world.is_reached(subscription, route, day)
        of = self._day(day)
        return is_reached, of.standing if is_reached else of.standing_unreached

    def _is_wanted(self, currency: str | None) -> bool:
        return self.query.currency is None or self.query.currency == currency

    def _spot(self, view: View, share: Share, meter: MeterKind, currency: str | None) -> Spot | None:
        """The row a share goes to; None where it is outside the period or the filters."""
        if not 0 <= share.bucket < len(self.buckets):
            return None
        groups = self._groups(view, share, meter)
        if groups is None:
            return None
        return share.bucket, groups, currency

    def _groups(self, view: View, share: Share, meter: MeterKind) -> Groups | None:
        """What of a view's rows a share belongs to; None where the filters leave it out."""
        identity, tags = share.identity, share.tags
        key = (id(view), id(identity), share.application, share.team, share.center, id(tags), meter if view.asks_meter else None)
        found = self._grouped.get(key)
        if found is None:
            is_asked = self.lens.passes(identity, application=share.application, team=share.team, tags=tags)
            groups = view.groups(identity, application=share.application, team=share.team, center=share.center, tags=tags, meter=meter) if is_asked else None
            # With what it is of: its id is nobody else's only for as long as it is there.
            found = self._grouped[key] = groups, identity, tags
        return found[0]

    def _named(self, who: Identity, seen: Meaning) -> Identity:
        """A deployment as one of its users calls its model."""
        model = seen.identity.model or who.model
        if model == who.model:
            return who
        key = (id(who), model)
        found = self._renamed.get(key)
        if found is None:
            found = self._renamed[key] = replace(who, model=model), who
        return found[0]

    def _users(self, used: _UsedBy, day: date, identities: Sequence[Identity]) -> _Users:
        """Who used these deployments on a day, in order of series."""
        users = [(each, one) for each in identities for one in self._of_place(used, place_of(day, each))]
        if len(identities) > 1:
            users.sort(key=lambda pair: (pair[1].series, pair[1].stretch))
        return users

    def _of_place(self, used: _UsedBy, place: Place) -> Sequence[_Used]:
        found = self._used_at.get(place)
        if found is None:
            found = self._used_at[place] = sorted(used.get(place, {}).values(), key=lambda one: (one.series, one.stretch))
        return found

    def _owner(self, identity: Identity, at: datetime) -> tuple[str | None, str | None]:
        key = (identity.workspace, identity.deployment, at)
        found = self._owners.get(key)
        if found is None:
            found = self._owners[key] = self.world.registry.owner(
                workspace=identity.workspace, deployment=identity.deployment, application=None, tags={}, team=None, at=at
            )
        return found

    # -- usage ----------------------------------------------------------------------------------

    def _add_usage(self, cut: set[date], used: _UsedBy | None) -> None:
        """Sum usage by cell (what no row, price or bill tells apart), then price each cell once."""
        cells: dict[tuple[int, int, int], tuple[Meaning, list[int]]] = {}
        opens = self._starts[0] // (QUARTER_SECONDS * 1_000_000) * QUARTER_SECONDS
        series = self.world.series
        for use, bucket in self._read(cut, is_whole=used is not None):
            at, series_id = use[:2]
            starts, meanings = self.meanings.timeline(series[series_id])
            if bucket == 0 and at < opens:
                at = opens  # of a slot that began before the period, only the part in it was read
            index = 0 if len(starts) == 1 else max(0, bisect_right(starts, at) - 1)
            day = at // DAY_SECONDS
            whole = meanings[index]
            for meaning, counts in shared(whole, at, use[2:]) if whole.shares else ((whole, use[2:]),):
                if 0 <= bucket < len(self.buckets) and meaning.is_asked:
                    key = (meaning.cell, day, bucket)
                    cell = cells.get(key)
                    if cell is None:
                        cells[key] = (meaning, list(counts))
                    else:
                        sums = cell[1]
                        for place, value in enumerate(counts):
                            sums[place] += value
                if used is not None and meaning.identity.deployment is not None:
                    of_day = used.setdefault(place_of(_date(day), meaning.identity), {})
                    one = of_day.get((series_id, index))
                    if one is None:
                        one = of_day[series_id, index] = _Used(series_id, index, meaning)
                    into = one.by_bucket.setdefault(bucket, [0, 0, 0, 0])
                    requests, inputs, outputs, cached, *_ = counts
                    into[0] += requests
                    into[1] += inputs
                    into[2] += cached
                    into[3] += outputs
        # What goes to the same row of several views is added up once.
        common = Common(self.query, self.world, needs_coverage=self._needs_coverage)
        asked: Sequence[View] = self.views if len(self.views) == 1 else (common,)
        for (_, day, bucket), (meaning, sums) in cells.items():
            self._add_cell(asked, meaning, _date(day), bucket, sums)
        if len(self.views) > 1:
            common.give(self.views)

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
                starts, meanings = self.meanings.timeline(one)
                moves = any((at % slot) not in (0, shift) for at in starts[1:]) or any(meaning.shares for meaning in meanings)
                (broken if moves and slot > QUARTER_SECONDS else whole).append(one.id)
            for ids, width, cut_at in ((whole, slot, shift), (broken, QUARTER_SECONDS, 0)):
                if not ids:
                    continue
                only = None if len(ids) == len(self.world.series) else ids
                for use in self.reading.usage(part, slot=width, shift=cut_at, as_of=self.usage_as_of, series=only):
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
        return visible is None or any(meaning.identity.workspace in visible for meaning in self.meanings.timeline(series)[1])

    def _add_cell(self, into: Sequence[View], meaning: Meaning, day: date, bucket: int, sums: Sequence[int]) -> None:
        _, inputs, outputs, cached, *_ = sums
        identity = meaning.identity
        is_reached, standing = self._reached(identity.subscription, identity.route if identity.mode != Mode.UNKNOWN else None, day)
        terms = self.meanings.terms(meaning, day)
        priced: list[Priced] = []
        for term in terms:
            match term.meter:
                case MeterKind.OUTPUT:
                    tokens = outputs
                case MeterKind.TRAINING:
                    tokens = inputs + outputs
                case MeterKind.CACHED_INPUT:
                    tokens = cached
                case _:
                    tokens = inputs - cached if len(terms) == 3 else inputs
            amount = None if term.factor is None else money.times(term.factor, tokens)
            priced.append(Priced(term, tokens, amount))
            if tokens:
                self._note_usage(identity, day, term, tokens, amount, counts=not is_reached)
        cell = Cell(meaning, day, bucket, is_reached, standing, *sums)
        for view in into:
            view.add_usage(cell, priced)

    def _note_usage(self, identity: Identity, day: date, term: Term, tokens: int, amount: Decimal | None, *, counts: bool) -> None:
        if self._evidence is None or not self._is_wanted(term.currency):
            return
        self._evidence.note_metered(
            identity,
            day=day,
            meter=term.meter,
            price=term.price,
            currency=term.currency,
            rate=term.rate,
            reason=term.reason,
            units=Decimal(tokens),
            amount=amount,
            counts=counts,
        )

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
        shared = _weighed(self._users(used, day, (identity,)), MeterKind.COMPUTE) if self._is_fine else ([], [], None)
        for (model, currency), by_bucket in found.items():
            for is_fine in sorted({view.is_fine for view in self.views}):
                users, weights, by = shared if is_fine else ([], [], None)
                named = replace(identity, model=model)
                callers = [replace(who, model=one.meaning.identity.model or model) for who, one in users]
                so_far = Hours()
                given = [Hours() for _ in users]
                for bucket in sorted(by_bucket):
                    part = by_bucket[bucket]
                    if not users:
                        team, center = self._owner(identity, runs[0].start)
                        whose = [Share(bucket, named, None, team, center, NO_TAGS, NO_AMOUNTS, by_usage=False, by=BY_TIME)]
                        self._add_hours(day, currency, whose, [part], is_fine=is_fine)
                        continue
                    # What is due up to here is cut, less what was given before: hours add up to days, and shares to hours.
                    so_far = so_far.plus(part)
                    due = so_far.split(weights)
                    parts = [one.minus(earlier) for one, earlier in zip(due, given, strict=True)]
                    given = due
                    whose = [
                        Share(bucket, caller, seen.application, seen.team, seen.center, seen.tags, NO_AMOUNTS, by_usage=True, by=_by(by))
                        for caller, (_, one) in zip(callers, users, strict=True)
                        for seen in (one.meaning,)
                    ]
                    self._add_hours(day, currency, whose, parts, is_fine=is_fine)

    def _add_hours(self, day: date, currency: str | None, shares: Sequence[Share], parts: Sequence[Hours], *, is_fine: bool) -> None:
        for view in self.views:
            if view.is_fine == is_fine:
                spots = [self._spot(view, share, MeterKind.COMPUTE, currency) for share in shares]
                view.add_hours(day, shares, parts, spots, reached=lambda identity: self._reached(identity.subscription, Route.COMPUTE, day))

    def _note_hours(
        self, run: Run, identity: Identity, *, currency: str | None, day: date, hours: Decimal, cost: tuple[Decimal | None, Decimal | None, str | None]
    ) -> None:
        """Keep the hours as evidence, where the whole of them is asked for: who used them is a question of shares."""
        if self._evidence is None or not self._is_wanted(currency) or not self.lens.passes(identity, application=None, team=None, tags={}):
            return
        price = run.price if isinstance(run.price, UnitPrice) else None
        rate = None if price is None else self.meanings.rate(identity.subscription, price.currency, currency or price.currency, day)
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
        rate = self.meanings.rate(subscription, run.price.currency, currency or run.price.currency, day)
        if rate is None:
            return None, core_hours, no_rate(run.price.currency, currency)
        return money.times(money.times(run.price.per_unit, hours), rate), core_hours, None

    # -- the bill -------------------------------------------------------------------------------

    def _add_bills(self, charges: Iterable[tuple[date, Sequence[Bill]]], used: _UsedBy) -> None:
        fine = [view for view in self.views if view.is_fine]
        plain = self.views[0] if len(self.views) == 1 and not fine else None
        lines: dict[int, dict[int, Sums] | None] = {}
        whole = _Whole()
        for on, bills in charges:
            day = self._day(on)
            cached = {place_of(on, each) for bill in bills if bill.target.kind == MeterKind.CACHED_INPUT for each in bill.target.identities}
            divided = bills
            if not day.is_cut and self._evidence is None:
                if not 0 <= day.bucket < len(self.buckets):
                    continue
                sole = [bill for bill in bills if len(bill.target.identities) == 1]
                divided = [bill for bill in bills if len(bill.target.identities) > 1]
                if plain is not None:
                    self._add_plainly(plain, sole, day, lines)
                else:
                    for bill in self._add_sole(sole, day, used, cached, whole):
                        self._add_cut(fine, bill, day, used, cached)
            for bill in divided:
                self._add_cut(self.views, bill, day, used, cached)
        self._add_whole(whole)

    def _add_plainly(self, view: View, bills: Iterable[Bill], day: _Day, lines: dict[int, dict[int, Sums] | None]) -> None:
        """Add charges of one deployment each to the only view there is, where nobody has to be asked who used them; ``lines`` are the view's by target."""
        bucket, standing = day.bucket, day.standing
        for bill in bills:
            target = bill.target
            try:
                line = lines[id(target)]
            except KeyError:
                groups = self._targeted_by(view, target)
                line = lines[id(target)] = None if groups is None else view.line(groups, target.currency)
            if line is not None:
                row = line.get(bucket)
                if row is None:
                    row = line[bucket] = Sums()
                row.add_charge(bill, bill.amounts, target.covers if view.needs_coverage else None, is_estimate=bill.is_estimate, standing=standing)

    def _add_sole(self, bills: Iterable[Bill], day: _Day, used: _UsedBy, cached: Container[Place], whole: _Whole) -> Iterator[Bill]:
        """Add up charges of one deployment each, item by item; yields those that its users share: where nobody asks for users they are whole all the same."""
        asks_users, asks_others = self._is_fine, any(not view.is_fine for view in self.views)
        for bill in bills:
            target = bill.target
            # Only input is weighed by whether cached input is billed apart.
            is_split = target.kind == MeterKind.INPUT and (bill.day, *target.place) in cached
            only = self._whose(bill, used, day.bucket, is_split=is_split) if asks_users else None
            if only is not None or asks_others:
                of = target.covers if self._needs_coverage else None
                whole.at(target, only, day.bucket).add_charge(bill, bill.amounts, of, is_estimate=bill.is_estimate, standing=day.standing)
            if only is None and asks_users:
                yield bill

    def _add_cut(self, views: Sequence[View], bill: Bill, day: _Day, used: _UsedBy, cached: Container[Place]) -> None:
        is_split = bill.target.kind == MeterKind.INPUT and any(place_of(bill.day, each) in cached for each in bill.target.identities)
        shares = list(self._cut(bill, used, is_split=is_split, is_fine=self._is_fine))
        for view in views:
            self._add_shares(view, bill, shares, day)

    def _add_whole(self, whole: _Whole) -> None:
        """Add charges that are of one item in one bucket to the rows of all views."""
        # By meter, and what of it one deployment's are for the views that do not ask for meters.
        metered = [view for view in self.views if view.asks_meter]
        others = [view for view in self.views if not view.asks_meter]
        together: dict[tuple[object, ...], tuple[int, Target, Share | None, Sums]] = {}
        for target, share, bucket, sums in whole.found.values():
            self._absorb(metered, target, share, sums, bucket=bucket)
            if not others:
                continue
            key = bucket, id(target.common), id(share), target.currency
            found = together.get(key)
            if found is None:
                found = together[key] = bucket, target, share, Sums()
            found[3].absorb(sums)
        for bucket, target, share, sums in together.values():
            self._absorb(others, target, share, sums, bucket=bucket)

    def _absorb(self, views: Sequence[View], target: Target, share: Share | None, sums: Sums, *, bucket: int) -> None:
        for view in views:
            if share is not None or not view.is_fine:
                row = self._row_of(view, target, share, bucket)
                if row is not None:
                    row.absorb(sums)

    def _whose(self, bill: Bill, used: _UsedBy, bucket: int, *, is_split: bool) -> Share | None:
        """Whose all of a charge of one deployment is: its only user's that day, or its owner's; None where several share it."""
        target = bill.target
        there = [(target.identities[0], one) for one in self._of_place(used, (bill.day, *target.place))]
        users, weights, by = _weighed(there, target.kind, is_split=is_split)
        among = [pair for pair, weight in zip(users, weights, strict=True) if weight]
        if len(among) > 1:
            return None
        key: tuple[object, ...]
        if among:
            ((who, one),) = among
            seen = one.meaning
            key = id(target.common), id(seen), by is None, bucket
            found = self._whole.get(key)
            if found is None:
                named = self._named(who, seen)
                share = Share(bucket, named, seen.application, seen.team, seen.center, seen.tags, NO_AMOUNTS, by_usage=True, by=_by(by))
                found = self._whole[key] = share, target, seen
            return found[0]
        team, center = self._owner(target.common, day_start(bill.day))
        key = id(target.common), team, center, target.kind == MeterKind.COMPUTE, bucket
        found = self._whole.get(key)
        if found is None:
            by_time = BY_TIME if target.kind == MeterKind.COMPUTE else 0
            share = Share(bucket, target.common, None, team, center, NO_TAGS, NO_AMOUNTS, by_usage=False, by=by_time)
            found = self._whole[key] = share, target, None
        return found[0]

    def _row_of(self, view: View, target: Target, share: Share | None, bucket: int) -> Sums | None:
        """Where in a view charges go that need no cutting; None where nobody asks for them."""
        if share is not None and view.is_fine:
            groups = self._groups(view, share, target.kind)
            if groups is None:
                return None
            row = view.row(bucket, groups, target.currency)
            row.estimate |= share.by_usage and view.asks_labels
            row.by |= share.by if view.asks_labels else 0
            return row
        groups = self._targeted_by(view, target)
        return None if groups is None else view.row(bucket, groups, target.currency)

    def _targeted_by(self, view: View, target: Target) -> Groups | None:
        """What of a view's rows the charges of an item go to while nobody has to be asked who used it; None where the filters leave it out."""
        common = target.common
        key = id(view), id(common), target.kind if view.asks_meter else None
        try:
            return self._targeted[key][0]
        except KeyError:
            is_asked = self.lens.passes(common, application=None, team=None, tags=NO_TAGS)
            groups = view.groups(common, application=None, team=None, center=None, tags=NO_TAGS, meter=target.kind) if is_asked else None
            self._targeted[key] = groups, common
            return groups

    def _cut(self, bill: Bill, used: _UsedBy, *, is_split: bool, is_fine: bool) -> Iterator[Share]:
        """Cut a charge over the series that used its deployments that day, then each share over the buckets the day lies in.

        Always in this order, so that the rows of any finer question add up to those of a coarser one.
        """
        day, target, amounts = self._day(bill.day), bill.target, bill.amounts
        identity = target.common
        if len(target.identities) == 1 and not day.is_cut and not is_fine:
            yield Share(day.bucket, identity, None, None, None, NO_TAGS, amounts, by_usage=False)
            return
        users, weights, by = _weighed(self._users(used, bill.day, target.identities), target.kind, is_split=is_split)
        if users:
            for (who, one), weight, part in zip(users, weights, amounts.split(weights), strict=True):
                if weight:
                    seen = one.meaning
                    named = self._named(who, seen)
                    steps = (
                        [(bucket, one.weight(by, is_split=is_split, bucket=bucket)) for bucket in sorted(one.by_bucket)] if day.is_cut else [(day.bucket, 1)]
                    )
                    for (bucket, _), piece in zip(steps, part.spread([step for _, step in steps]), strict=True):
                        yield Share(bucket, named, seen.application, seen.team, seen.center, seen.tags, piece, by_usage=True, by=_by(by))
            return
        team, center = self._owner(identity, day_start(bill.day))
        edges, pieces = [day.start], [amounts]
        if day.is_cut and target.kind == MeterKind.COMPUTE:
            edges = [day.start, *(edge for edge in (*self._starts, self._end) if day.start < edge < day.start + _DAY)]
            pieces = amounts.spread([right - left for left, right in pairwise([*edges, day.start + _DAY])])
        for edge, piece in zip(edges, pieces, strict=True):
            yield Share(
                self._bucket_of(edge), identity, None, team, center, NO_TAGS, piece, by_usage=False, by=BY_TIME if target.kind == MeterKind.COMPUTE else 0
            )

    def _add_shares(self, view: View, bill: Bill, shares: Sequence[Share], day: _Day) -> None:
        target = bill.target
        spots = [self._spot(view, share, target.kind, target.currency) for share in shares]
        is_shared = bill.is_estimate or day.is_cut or len(set(spots)) > 1
        for spot, share in zip(spots, shares, strict=True):
            if spot is None:
                continue
            row = view.row(*spot)
            is_estimate = is_shared or (share.by_usage and view.asks_labels)
            row.by |= share.by if view.asks_labels else 0
            of = (share.identity.workspace, share.identity.deployment) if self._needs_coverage else None
            row.add_charge(bill, share.amounts, of, is_estimate=is_estimate, standing=day.standing)
            if self._evidence is not None and self._is_wanted(target.currency):
                self._evidence.note_billed(
                    share,
                    item=target.item,
                    charge_type=bill.charge_type,
                    currency=target.currency,
                    part_id=bill.part_id,
                    day=bill.day,
                    rows=bill.lines,
                    estimate=row.estimate,
                )


def _by(kind: MeterKind | None) -> int:
    """What users were weighed by: tokens of some kind, or their requests where those are not known."""
    return BY_REQUESTS if kind is None else BY_TOKENS


def _date(day: int) -> date:
    """The UTC day of that number since 1970."""
    return (EPOCH + day * DAY).date()
