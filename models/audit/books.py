"""Questions, answers and the plain books between them: figures at their finest place, and how they add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal, localcontext
from functools import cache
from typing import Protocol

from models import money
from models.money import ZERO
from models.periods import Granularity, Period, buckets, days, rfc3339, settles_at
from models.prices import model_key

STANDINGS = ("provisional", "settling", "settled")  # from the least settled up


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the ledger and of the books alike: a period of whole UTC days, cut and grouped."""

    period: Period
    granularity: Granularity = "day"
    group_by: tuple[str, ...] = ()
    basis: str = "best"
    as_of: datetime | None = None

    def __str__(self) -> str:
        asked = f"basis={self.basis} group_by={','.join(self.group_by) or '-'} granularity={self.granularity}"
        return asked if self.as_of is None else f"{asked} as_of={rfc3339(self.as_of)}"


class FiguresLike(Protocol):
    """The numbers of a row or total that are compared; the ledger's ``Figures`` is one."""

    @property
    def currency(self) -> str | None: ...
    @property
    def cost(self) -> Decimal | None: ...
    @property
    def metered_cost(self) -> Decimal | None: ...
    @property
    def billed_cost(self) -> Decimal | None: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def requests(self) -> int: ...
    @property
    def core_hours(self) -> Decimal | None: ...
    @property
    def status(self) -> str: ...
    @property
    def unpriced_tokens(self) -> int: ...
    @property
    def unknown_token_requests(self) -> int: ...


class RowLike(Protocol):
    """One row of an answer; the ledger's ``CostRow`` is one."""

    @property
    def period(self) -> Period: ...
    @property
    def groups(self) -> Mapping[str, str | None]: ...
    @property
    def figures(self) -> FiguresLike: ...


class TableLike(Protocol):
    """A whole answer; the ledger's ``CostTable`` is one."""

    @property
    def rows(self) -> Sequence[RowLike]: ...
    @property
    def totals(self) -> Sequence[FiguresLike]: ...


@dataclass(frozen=True, slots=True)
class Figures:
    """The recomputed numbers of one row or total."""

    currency: str | None = None
    cost: Decimal | None = None
    metered_cost: Decimal | None = None
    billed_cost: Decimal | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    core_hours: Decimal | None = None
    status: str = STANDINGS[0]
    unpriced_tokens: int = 0
    unknown_token_requests: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One recomputed row."""

    period: Period
    groups: dict[str, str | None]
    figures: Figures


@dataclass(frozen=True, slots=True)
class Table:
    """The recomputed answer: rows in order of period, groups and currency; one total per currency."""

    rows: list[Row]
    totals: list[Figures]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a figure belongs: the finest cell that any question can ask for. None is unallocated or not said."""

    day: date
    workspace: str | None
    deployment: str | None
    model: str | None
    mode: str | None
    application: str | None
    team: str | None
    cost_center: str | None
    subscription: str | None
    meter: str
    currency: str | None


@dataclass(slots=True)
class Sums:
    """What adds up within a place. ``open_…`` is the part of it on days that no bill reaches; ``standing`` indexes ``STANDINGS``."""

    metered: Decimal = ZERO
    has_priced: bool = False
    has_unpriced: bool = False
    open_metered: Decimal = ZERO
    open_priced: bool = False
    open_unpriced: bool = False
    billed: Decimal = ZERO
    amortized: Decimal = ZERO
    invoiced: Decimal = ZERO
    is_reached: bool = False
    has_core_hours: bool = False
    metered_core_hours: Decimal = ZERO
    open_core_hours: Decimal = ZERO
    billed_core_hours: Decimal = ZERO
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    unpriced_tokens: int = 0
    unknown_token_requests: int = 0
    standing: int = len(STANDINGS) - 1

    def absorb(self, other: Sums) -> None:
        """Add what another place holds."""
        self.metered += other.metered
        self.has_priced |= other.has_priced
        self.has_unpriced |= other.has_unpriced
        self.open_metered += other.open_metered
        self.open_priced |= other.open_priced
        self.open_unpriced |= other.open_unpriced
        self.billed += other.billed
        self.amortized += other.amortized
        self.invoiced += other.invoiced
        self.is_reached |= other.is_reached
        self.has_core_hours |= other.has_core_hours
        self.metered_core_hours += other.metered_core_hours
        self.open_core_hours += other.open_core_hours
        self.billed_core_hours += other.billed_core_hours
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.requests += other.requests
        self.unpriced_tokens += other.unpriced_tokens
        self.unknown_token_requests += other.unknown_token_requests
        self.standing = min(self.standing, other.standing)

    def add_metered(self, cost: Decimal | None, *, is_reached: bool) -> None:
        """Add the metered cost of some usage; None where it has no price."""
        self.is_reached |= is_reached
        if cost is None:
            self.has_unpriced = True
            self.open_unpriced |= not is_reached
            return
        self.metered += cost
        self.has_priced = True
        if not is_reached:
            self.open_metered += cost
            self.open_priced = True

    def figures(self, currency: str | None, basis: str) -> Figures:
        """The sums as an answer shows them under a basis."""
        metered = None if self.has_unpriced and not self.has_priced else self.metered
        billed = self.billed if self.is_reached else None
        match basis:
            case "metered":
                cost, core_hours = metered, self.metered_core_hours
            case "billed":
                cost, core_hours = billed, self.billed_core_hours
            case "amortized":
                cost, core_hours = (self.amortized if self.is_reached else None), self.billed_core_hours
            case "best":
                is_unknown = self.open_unpriced and not self.open_priced and not self.is_reached
                cost, core_hours = (None if is_unknown else self.billed + self.open_metered), self.billed_core_hours + self.open_core_hours
            case _:
                raise ValueError(f"there is no basis {basis}")
        return Figures(
            currency=currency,
            cost=cost,
            metered_cost=metered,
            billed_cost=billed,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            requests=self.requests,
            core_hours=core_hours if self.has_core_hours else None,
            status=STANDINGS[self.standing],
            unpriced_tokens=self.unpriced_tokens,
            unknown_token_requests=self.unknown_token_requests,
        )


@dataclass(slots=True)
class Books:
    """Every figure of a period at its finest place, as known at ``moment``."""

    period: Period
    moment: datetime
    cells: dict[Place, Sums] = field(default_factory=dict)

    def at(self, place: Place, *, is_reached: bool) -> Sums:
        """The sums of a place, to add to; notes how settled what is added is."""
        sums = self.cells.get(place)
        if sums is None:
            sums = self.cells[place] = Sums()
        standing = 2 if self.moment >= _settles_at(place.day) else 1 if is_reached else 0
        sums.standing = min(sums.standing, standing)
        return sums

    def summed(self, question: Question) -> dict[tuple[datetime, tuple[str | None, ...], str | None], Sums]:
        """The cells of a question's period added up per (start of the row, groups, currency)."""
        start_of = {day: cut.start for cut in buckets(question.period, question.granularity) for day in days(cut)}
        found: dict[tuple[datetime, tuple[str | None, ...], str | None], Sums] = {}
        # Models compare without case and spelling: one of the spellings stands for all.
        spelling = {model_key(model): model for model in sorted({place.model for place in self.cells if place.model is not None}, reverse=True)}
        with localcontext(money.EXACT):
            for place, sums in self.cells.items():
                start = start_of.get(place.day)
                if start is None:
                    continue
                model = None if place.model is None else spelling[model_key(place.model)]
                groups = tuple(model if name == "model" else getattr(place, name) for name in question.group_by)
                key = (start, groups, place.currency)
                if key not in found:
                    found[key] = Sums()
                found[key].absorb(sums)
        return found

    def costs(self, question: Question) -> Table:
        """What ``/v1/costs`` should answer."""
        summed = self.summed(question)
        return self.shaped(question, summed)

    @staticmethod
    def shaped(question: Question, summed: Mapping[tuple[datetime, tuple[str | None, ...], str | None], Sums]) -> Table:
        """Sums as rows and totals of the question's basis."""
        ends = {cut.start: cut for cut in buckets(question.period, question.granularity)}
        totals: dict[str | None, Sums] = {}
        rows = []
        with localcontext(money.EXACT):
            for (start, groups, currency), sums in sorted(summed.items(), key=_row_order):
                named = dict(zip(question.group_by, groups, strict=True))
                rows.append(Row(ends[start], named, sums.figures(currency, question.basis)))
                totals.setdefault(currency, Sums()).absorb(sums)
            return Table(rows, [sums.figures(currency, question.basis) for currency, sums in sorted(totals.items(), key=lambda pair: pair[0] or "")])


def _row_order(pair: tuple[tuple[datetime, tuple[str | None, ...], str | None], Sums]) -> tuple[datetime, list[tuple[bool, str]], str]:
    start, groups, currency = pair[0]
    return start, [(name is None, name or "") for name in groups], currency or ""


@cache
def _settles_at(day: date) -> datetime:
    return settles_at(day)
