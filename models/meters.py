"""What a meter counts, where people say it: mappings that go before what the meter's own text says.

The shipped defaults are code (``collector/billing/classify.py``) and stand on each ``charge_item``. A ``MeterMapping`` is
chosen at read time, so that one told later moves every view and no stored row. Of those that fit, one that spells the meter
out goes before a pattern, one that names an offer before one that does not, then the later arrival. What the bill's kind of
charge decides (adjustments, commitments, what is no model spend) is no mapping's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import Column, Text
from sqlmodel import Field, SQLModel

from models import money
from models.charges import ChargeClass, ChargeItem, MeterKind
from models.columns import BigInt, EnumText, Instant
from models.prices import UNIT_DIGITS

TOKEN_KINDS = frozenset({MeterKind.INPUT, MeterKind.OUTPUT, MeterKind.CACHED_INPUT, MeterKind.TRAINING})
HOUR_KINDS = frozenset({MeterKind.HOSTING, MeterKind.COMPUTE, MeterKind.COMMITMENT})


class MappedKind(StrEnum):
    """What somebody may say that a meter counts."""

    INPUT = "input"
    OUTPUT = "output"
    CACHED_INPUT = "cached_input"
    FINE_TUNED_INPUT = "fine_tuned_input"
    FINE_TUNED_OUTPUT = "fine_tuned_output"
    TRAINING = "training"
    HOSTING = "hosting"
    COMPUTE = "compute"
    OTHER = "other"  # its own text misleads: nobody can say


# kind -> what it counts, and whether for a fine-tuned model
MEANS: Mapping[MappedKind, tuple[MeterKind, bool]] = {
    MappedKind.INPUT: (MeterKind.INPUT, False),
    MappedKind.OUTPUT: (MeterKind.OUTPUT, False),
    MappedKind.CACHED_INPUT: (MeterKind.CACHED_INPUT, False),
    MappedKind.FINE_TUNED_INPUT: (MeterKind.INPUT, True),
    MappedKind.FINE_TUNED_OUTPUT: (MeterKind.OUTPUT, True),
    MappedKind.TRAINING: (MeterKind.TRAINING, True),
    MappedKind.HOSTING: (MeterKind.HOSTING, True),
    MappedKind.COMPUTE: (MeterKind.COMPUTE, False),
    MappedKind.OTHER: (MeterKind.OTHER, False),
}
_SERVERLESS = frozenset(MEANS.values()) - {MEANS[MappedKind.COMPUTE]}
# What may be said of a charge of each class: a token meter on a virtual machine would have nothing to face.
SUITS: Mapping[ChargeClass, frozenset[tuple[MeterKind, bool]]] = {
    ChargeClass.MARKETPLACE: _SERVERLESS,
    ChargeClass.FOUNDRY: _SERVERLESS,
    ChargeClass.COMPUTE: frozenset(MEANS[kind] for kind in (MappedKind.COMPUTE, MappedKind.HOSTING, MappedKind.OTHER)),
}


class MeterMapping(SQLModel, table=True):
    """One mapping of meters to what they count, from a file, a form or the API. Rows are added and ended, never edited."""

    __tablename__ = "meter_mapping"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    meter: str = Field(sa_column=Column(Text, nullable=False))  # as billed, without case; * stands for any text
    offer: str = Field(default="", sa_column=Column(Text, nullable=False))  # the Marketplace offer, without case; '' = any
    kind: MappedKind = Field(sa_column=Column(EnumText(MappedKind), nullable=False))
    unit: str = Field(default="", sa_column=Column(Text, nullable=False))  # of UNIT_DIGITS; '' = as the bill says it
    # Of UTC midnights, as charges are of UTC days.
    valid_from: datetime | None = Field(default=None, sa_column=Column(Instant))
    valid_to: datetime | None = Field(default=None, sa_column=Column(Instant))
    note: str = Field(default="", sa_column=Column(Text, nullable=False))  # where it was looked up
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))


def meter_text(item: ChargeItem) -> str:
    """The name that a meter goes by: rows without one have it in the plan's place, or none but that of their category."""
    return item.meter_name or item.plan_id or item.meter_category


class MeterBook:
    """The mappings known at one instant, ready to answer for any item and day."""

    def __init__(self, rows: Iterable[MeterMapping]) -> None:
        ordered = sorted(rows, key=lambda row: ("*" not in row.meter, bool(row.offer), row.known_from, row.id or 0), reverse=True)
        self._rows = [(_pattern(row.meter), row) for row in ordered]
        self._fitting: dict[int | None, list[MeterMapping]] = {}
        self._meant: dict[tuple[int | None, int | None], ChargeItem] = {}

    def mapping(self, item: ChargeItem, at: datetime) -> MeterMapping | None:
        """The mapping that applies to an item at an instant; None where its own text stands."""
        if not self._rows:
            return None
        fitting = self._fitting.get(item.id)
        if fitting is None:
            fitting = self._fitting[item.id] = self._fit(item)
        return next((row for row in fitting if (row.valid_from is None or row.valid_from <= at) and (row.valid_to is None or at < row.valid_to)), None)

    def meant(self, item: ChargeItem, at: datetime) -> ChargeItem:
        """The item as the mapping that applies has it; itself where none does."""
        row = self.mapping(item, at)
        if row is None:
            return item
        key = (item.id, row.id)
        if key not in self._meant:
            kind, is_fine_tuned = MEANS[row.kind]
            own = {name: getattr(item, name) for name in ChargeItem.model_fields}
            self._meant[key] = ChargeItem(**own | {"meter_kind": kind, "is_fine_tuned": is_fine_tuned, "unit_size": _size(item, kind, row)})
        return self._meant[key]

    def changes(self) -> set[datetime]:
        """The instants at which what applies may change."""
        return {at for _, row in self._rows for at in (row.valid_from, row.valid_to) if at is not None}

    def _fit(self, item: ChargeItem) -> list[MeterMapping]:
        may_be = SUITS.get(item.charge_class)
        if may_be is None or item.meter_kind == MeterKind.COMMITMENT:
            return []
        name, offer = meter_text(item), (item.offer_id or "").casefold()
        return [row for fits, row in self._rows if MEANS[row.kind] in may_be and (not row.offer or row.offer.casefold() == offer) and fits.fullmatch(name)]


def _pattern(meter: str) -> re.Pattern[str]:
    first, *others = [re.escape(piece) for piece in meter.split("*")]
    # Each piece where it is first found, for good: tries of all places would grow with every star.
    text = first + "".join(f"(?>.*?{piece})" for piece in others[:-1]) + (f".*{others[-1]}" if others else "")
    return re.compile(text, re.IGNORECASE | re.DOTALL)


def _size(item: ChargeItem, kind: MeterKind, row: MeterMapping) -> Decimal | None:
    """Tokens or hours in one billed unit: as the mapping says, else as the bill does."""
    if row.unit:
        return Decimal(1).scaleb(UNIT_DIGITS[row.unit], money.EXACT)
    if kind not in TOKEN_KINDS and kind not in HOUR_KINDS:
        return None
    if item.unit_size is not None and (item.meter_kind in TOKEN_KINDS) == (kind in TOKEN_KINDS):
        return item.unit_size
    unit = unit_from(item.unit)
    return unit.size if unit is not None and (unit.says_size or unit.noun) and unit.fits(kind) else None


# -- units ----------------------------------------------------------------------------------------

_UNIT = re.compile(r"(?:per )?(?P<number>\d+(?:\.\d+)?)?\s*(?:(?P<scale>k|m|b|thousand|million|billion)(?![a-z]))?\s*(?:/\s*)?(?P<word>[a-z]+)?\Z")
_SCALES = {"k": 1_000, "thousand": 1_000, "m": 1_000_000, "million": 1_000_000, "b": 1_000_000_000, "billion": 1_000_000_000}
_NOUNS = {
    **dict.fromkeys(("", "unit", "units", "count"), ""),
    **dict.fromkeys(("token", "tokens"), "token"),
    **dict.fromkeys(("hour", "hours", "hr", "hrs", "h"), "hour"),
}


@dataclass(frozen=True, slots=True)
class Unit:
    """How many of what one billed unit holds; ``noun`` is ``token``, ``hour`` or '' (a bare count)."""

    size: Decimal
    noun: str
    says_size: bool

    def fits(self, kind: MeterKind) -> bool:
        """Whether a meter of that kind may be billed in it."""
        return self.noun in (("", "token") if kind in TOKEN_KINDS else ("", "hour"))


def unit_from(text: str) -> Unit | None:
    """``1K``, ``1M Tokens``, ``1000 Tokens``, ``1 Hour``, ``Units`` …; None where it is none of these."""
    found = _UNIT.match(text.casefold().replace(",", "").strip())
    if not text.strip() or found is None or (noun := _NOUNS.get(found["word"] or "")) is None:
        return None
    size = money.times(Decimal(found["number"] or 1), _SCALES.get(found["scale"] or "", 1))
    return Unit(size, noun, bool(found["number"] or found["scale"])) if size > 0 else None
