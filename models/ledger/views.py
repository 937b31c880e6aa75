"""One grouping of a question: what belongs to it is added up in rows, and the rows come out as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from decimal import Decimal

import msgspec

from models import money
from models.charges import MeterKind
from models.ledger.meanings import Meaning, Term
from models.ledger.shares import Hours, Share, plus
from models.ledger.sums import Sums
from models.ledger.values import CostQuery, CostRow, CostTable
from models.ledger.world import World
from models.matching import Identity
from models.periods import Period
from models.prices import model_key, model_name
from models.resources import Mode

Groups = tuple[str | None, ...]
Line = tuple[Groups, str | None]  # groups and currency
Spot = tuple[int, Groups, str | None]  # bucket, groups, currency: a row
_LABELS = {"application", "team", "cost_center"}


class Cell(msgspec.Struct, frozen=True, eq=False):
    """Usage that no row, price or bill tells apart, on one day in one bucket."""

    meaning: Meaning
    day: date
    bucket: int
    is_reached: bool  # by a bill
    standing: int
    requests: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    reasoning_output_tokens: int
    unknown_requests: int
    estimated_requests: int


class Priced(msgspec.Struct, frozen=True, eq=False):
    """Tokens of one meter and what they cost; None where nobody knows, as the term says."""

    term: Term
    tokens: int
    amount: Decimal | None


class View:
    """The rows of one query.

    ``is_fine`` where a charge has to be cut over who used a deployment even if it is of one: only requests know the answer.
    """

    def __init__(self, query: CostQuery, world: World, *, needs_coverage: bool = True) -> None:
        filters = query.filters
        self.query = query
        self.needs_coverage = needs_coverage
        # Below the bill: what only requests know.
        self.asks_labels = any(name in _LABELS or name.startswith("tag:") for name in query.group_by) or bool(
            filters.applications or filters.teams or filters.tags
        )
        self.is_fine = self.asks_labels or "model" in query.group_by or bool(filters.models)
        self.asks_meter = "meter" in query.group_by
        self.lines: dict[Line, dict[int, Sums]] = {}  # the rows of each, by bucket
        self._groups: dict[tuple[int, MeterKind], tuple[Meaning, Groups]] = {}
        # Of several spellings in a row the first of these is shown: the registry's, then usage's in order of arrival, then a bill's.
        self._ranks: dict[str, int] = {}
        if "model" in query.group_by:
            for model in (*world.registry.models(), *(series.model for series in world.series.values() if series.model)):
                self._ranks.setdefault(model_name(model), len(self._ranks))
        self._spelled: dict[Groups, str] = {}

    # -- rows -----------------------------------------------------------------------------------

    def groups_of(self, meaning: Meaning, meter: MeterKind) -> Groups:
        """The values of the asked groups for the tokens of a meter."""
        key = (id(meaning), meter)
        found = self._groups.get(key)
        if found is None:
            groups = self.groups(meaning.identity, application=meaning.application, team=meaning.team, center=meaning.center, tags=meaning.tags, meter=meter)
            # With the meaning itself: its id is nobody else's only for as long as it is there.
            found = self._groups[key] = meaning, groups
        return found[1]

    def groups(self, identity: Identity, *, application: str | None, team: str | None, center: str | None, tags: Mapping[str, str], meter: MeterKind) -> Groups:
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

    def shown(self, groups: Groups) -> Groups:
        """The groups of a row as people read them: the model by a spelling of its own."""
        return tuple(self._spelled[groups] if name == "model" and value is not None else value for name, value in zip(self.query.group_by, groups, strict=True))

    def line(self, groups: Groups, currency: str | None) -> dict[int, Sums]:
        """The rows of groups and currency by bucket, to add to."""
        key = groups, currency
        found = self.lines.get(key)
        if found is None:
            found = self.lines[key] = {}
        return found

    def row(self, bucket: int, groups: Groups, currency: str | None) -> Sums:
        """The sums of a row, to add to."""
        line = self.line(groups, currency)
        found = line.get(bucket)
        if found is None:
            found = line[bucket] = Sums()
        return found

    # -- what belongs to them -------------------------------------------------------------------

    def add_usage(self, cell: Cell, priced: Sequence[Priced]) -> None:
        """Add calls, and tokens meter by meter."""
        identity = cell.meaning.identity
        of = self._covers(identity)
        is_split = len(priced) == 3
        for index, one in enumerate(priced):
            if index and not one.tokens:
                continue
            kind = one.term.meter
            row = self.row(cell.bucket, self.groups_of(cell.meaning, kind), one.term.currency)
            row.standing = min(row.standing, cell.standing)
            row.is_used = True
            row.is_billed |= cell.is_reached
            row.is_best |= cell.is_reached
            row.estimate |= cell.meaning.is_share
            if not index:
                # A request counts in the row of the input (of training), whatever its tokens are.
                row.requests += cell.requests
                row.unknown_requests += cell.unknown_requests
                row.estimated_requests += cell.estimated_requests
                # Of managed compute tokens cost nothing by themselves.
                row.is_unknown |= bool(cell.unknown_requests) and identity.mode != Mode.MANAGED_COMPUTE
            if not one.tokens:
                continue
            match kind:
                case MeterKind.OUTPUT:
                    row.output_tokens += cell.output_tokens
                    row.reasoning_output_tokens += cell.reasoning_output_tokens
                case MeterKind.TRAINING:
                    row.input_tokens += cell.input_tokens
                    row.output_tokens += cell.output_tokens
                case MeterKind.CACHED_INPUT:
                    row.input_tokens += cell.cached_input_tokens
                    row.cached_input_tokens += cell.cached_input_tokens
                case _:
                    row.input_tokens += one.tokens
                    if not is_split:
                        row.cached_input_tokens += cell.cached_input_tokens
            row.units = money.plus(row.units, Decimal(one.tokens))
            if one.amount is not None:
                row.add_metered(cell.day, one.amount, of, is_reached=cell.is_reached)
            elif one.term.reason is not None:
                row.unpriced_tokens += one.tokens
                row.is_unpriced = True
                row.reasons |= {one.term.reason}

    def add_hours(
        self, day: date, shares: Sequence[Share], parts: Sequence[Hours], spots: Sequence[Spot | None], *, reached: Callable[[Identity], tuple[bool, int]]
    ) -> None:
        """Add instance-hours of managed compute; ``reached`` tells whether a bill covers the day, and how settled it is."""
        is_estimate = len(set(spots)) > 1
        for share, spot, part in zip(shares, spots, parts, strict=True):
            if spot is None:
                continue
            is_reached, standing = reached(share.identity)
            row = self.row(*spot)
            row.standing = min(row.standing, standing)
            row.is_used = True
            row.is_billed |= is_reached
            row.is_best |= is_reached
            row.estimate |= is_estimate or (share.by_usage and self.asks_labels)
            row.by |= share.by if self.asks_labels else 0
            row.metered_core_hours = plus(row.metered_core_hours, part.core_hours)
            row.units = money.plus(row.units, part.instance_hours)
            if not is_reached:
                row.best_core_hours = plus(row.best_core_hours, part.core_hours)
            if part.reason is not None:
                row.is_unpriced = True
                row.reasons |= {part.reason}
            if part.cost is not None:
                row.add_metered(day, part.cost, self._covers(share.identity), is_reached=is_reached)

    def _covers(self, identity: Identity) -> tuple[str | None, str | None] | None:
        """Whose coverage it is; None where nobody asks."""
        return (identity.workspace, identity.deployment) if self.needs_coverage else None

    # -- the answer -----------------------------------------------------------------------------

    def table(self, buckets: Sequence[Period]) -> CostTable:
        """Rows and totals; sums are made by row first, so that a total is the sum of its rows."""
        wanted = self.query.currency
        chosen = {line: rows for line, rows in self.lines.items() if wanted is None or line[1] == wanted}
        totals: dict[str | None, Sums] = {}
        for (_, currency), rows in chosen.items():
            total = totals.setdefault(currency, Sums())
            for sums in rows.values():
                total.absorb(sums)
        basis, names = self.query.basis, self.query.group_by
        shown = {groups: self.shown(groups) for groups, _ in chosen}
        order = sorted(chosen, key=lambda line: ([(value is None, value or "") for value in shown[line[0]]], line[1] is None, line[1] or ""))
        by_bucket: dict[int, list[tuple[Line, Sums]]] = {}
        for line in order:
            for bucket, sums in chosen[line].items():
                by_bucket.setdefault(bucket, []).append((line, sums))
        return CostTable(
            self.query,
            [
                CostRow(buckets[bucket], dict(zip(names, shown[groups], strict=True)), sums.figures(basis, currency))
                for bucket in sorted(by_bucket)
                for (groups, currency), sums in by_bucket[bucket]
            ],
            [totals[currency].figures(basis, currency) for currency in sorted(totals, key=lambda code: (code is None, code or ""))],
        )


class Common(View):
    """What every view of several keeps apart or none: usage is added up here once, and then given to all of them."""

    def __init__(self, query: CostQuery, world: World, *, needs_coverage: bool) -> None:
        super().__init__(query, world, needs_coverage=needs_coverage)
        self._meant: dict[Groups, tuple[Meaning, MeterKind]] = {}

    def groups_of(self, meaning: Meaning, meter: MeterKind) -> Groups:
        groups = (str(meaning.cell), meter.value)
        self._meant.setdefault(groups, (meaning, meter))
        return groups

    def give(self, views: Sequence[View]) -> None:
        """Add the rows to those of the views."""
        metered = [view for view in views if view.asks_meter]
        others = [view for view in views if not view.asks_meter]
        together: dict[tuple[object, ...], tuple[int, Meaning, MeterKind, str | None, Sums]] = {}
        for (groups, currency), rows in self.lines.items():
            meaning, meter = self._meant[groups]
            for bucket, sums in rows.items():
                for view in metered:
                    view.row(bucket, view.groups_of(meaning, meter), currency).absorb(sums)
                key = bucket, meaning.cell, currency
                found = together.get(key)
                if found is None:
                    found = together[key] = bucket, meaning, meter, currency, Sums()
                found[4].absorb(sums)
        for bucket, meaning, meter, currency, sums in together.values():
            for view in others:
                view.row(bucket, view.groups_of(meaning, meter), currency).absorb(sums)
