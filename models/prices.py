"""The price book: what a token or an hour costs, for any time, as known at any time.

``PriceBook.price`` is the one place that chooses a price. Sources rank imported over synced over bundled; within a
source the more specific row wins (workspace, then sku, then region, then general), then the later arrival.
A model without a price is ``Unpriced``, never the nearest price.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache

from sqlalchemy import Column, Text
from sqlmodel import Field, SQLModel

from models import money
from models.columns import BigInt, EnumText, ExactDecimal, Instant


class PriceMeter(StrEnum):
    """What a price is for."""

    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    CACHED_INPUT_TOKENS = "cached_input_tokens"
    HOSTING_HOURS = "hosting_hours"
    TRAINING_TOKENS = "training_tokens"
    INSTANCE_HOURS = "instance_hours"


TOKEN_METERS = frozenset({PriceMeter.INPUT_TOKENS, PriceMeter.OUTPUT_TOKENS, PriceMeter.CACHED_INPUT_TOKENS, PriceMeter.TRAINING_TOKENS})

# unit text -> how many tokens or hours one unit holds, as a power of ten
UNIT_DIGITS: dict[str, int] = {"1M tokens": 6, "1K tokens": 3, "1 hour": 0}

_SOURCE_RANK = {"imported": 2, "synced": 1, "bundled": 0}


class Price(SQLModel, table=True):
    """One row of a price file. Empty text means any; ``valid_to`` None means until further notice."""

    __tablename__ = "price"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    model: str = Field(default="", sa_column=Column(Text, nullable=False))  # as written; compared by model_key
    meter: PriceMeter = Field(sa_column=Column(EnumText(PriceMeter), nullable=False))
    unit_price: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    currency: str = Field(sa_column=Column(Text, nullable=False))
    unit: str = Field(sa_column=Column(Text, nullable=False))
    workspace: str = Field(default="", sa_column=Column(Text, nullable=False))
    sku: str = Field(default="", sa_column=Column(Text, nullable=False))
    region: str = Field(default="", sa_column=Column(Text, nullable=False))
    valid_from: datetime | None = Field(default=None, sa_column=Column(Instant))
    valid_to: datetime | None = Field(default=None, sa_column=Column(Instant))
    origin: str = Field(sa_column=Column(Text, nullable=False))  # imported | synced | bundled
    source: str = Field(default="", sa_column=Column(Text, nullable=False))  # where the figure was published
    version: str = Field(sa_column=Column(Text, nullable=False))  # the import that brought it
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))


class WaitingPrice(SQLModel, table=True):
    """A row of a price file that looks wrong and counts only once somebody has said that it is right. Never deleted."""

    __tablename__ = "waiting_price"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    model: str = Field(default="", sa_column=Column(Text, nullable=False))
    meter: PriceMeter = Field(sa_column=Column(EnumText(PriceMeter), nullable=False))
    unit_price: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    currency: str = Field(sa_column=Column(Text, nullable=False))
    unit: str = Field(sa_column=Column(Text, nullable=False))
    workspace: str = Field(default="", sa_column=Column(Text, nullable=False))
    sku: str = Field(default="", sa_column=Column(Text, nullable=False))
    region: str = Field(default="", sa_column=Column(Text, nullable=False))
    valid_from: datetime | None = Field(default=None, sa_column=Column(Instant))
    valid_to: datetime | None = Field(default=None, sa_column=Column(Instant))
    source: str = Field(default="", sa_column=Column(Text, nullable=False))
    version: str = Field(sa_column=Column(Text, nullable=False))
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    reason: str = Field(sa_column=Column(Text, nullable=False))  # what looks wrong
    arrived_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    # accepted | rejected | superseded (by a later file); None while it waits
    decision: str | None = Field(default=None, sa_column=Column(Text))
    decided_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    decided_by: str = Field(default="", sa_column=Column(Text, nullable=False))


# A model asset as ARM, the registry and the command line write it: azureml://registries/R/models/NAME/versions/1,
# /subscriptions/…/workspaces/W/models/NAME/versions/1, azureml:NAME:1.
_ASSET_PATH = re.compile(r"(?:azureml:)?/.*/(?:workspaces|registries)/[^/]+/models/([^/]+)(?:/.*)?\Z", re.IGNORECASE)
_ASSET_SHORT = re.compile(r"azureml:([^/:@]+)(?:[:@][^/:@]*)?\Z", re.IGNORECASE)
# Prefixes that name where the same weights are fetched or called (Hugging Face, as vLLM reports it; LiteLLM), not another model.
_PUBLISHERS = ("azure-ai/", "azure/", "meta-llama/", "meta/")


@lru_cache(maxsize=4096)
def model_name(model: str) -> str:
    """The model's own name where a registry or ARM id (``azureml://registries/…/models/NAME/versions/N``) was given."""
    found = _ASSET_PATH.match(model.strip()) or _ASSET_SHORT.match(model.strip())
    return found.group(1) if found else model


@lru_cache(maxsize=4096)
def model_key(model: str) -> str:
    """What two spellings of one model share: case, ``.`` or ``-``, the publisher, and the ``Meta-`` before ``Llama`` do not count.

    Everything else does: size, tuning (``Instruct``, ``Vision``) and quantisation (``FP8``) make another model.
    """
    key = model_name(model).strip().casefold().replace(".", "-").replace("_", "-").replace(" ", "-")
    for publisher in _PUBLISHERS:
        key = key.removeprefix(publisher)
    return key.removeprefix("meta-") if key.startswith("meta-llama") else key


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """A chosen price: currency per single token or hour, with the row it came from."""

    per_unit: Decimal
    currency: str
    row: Price


@dataclass(frozen=True, slots=True)
class Unpriced:
    """No price applies, and why."""

    reason: str


_DAY_OF_REASON = re.compile(r" at (\d{4}-\d\d-\d\d)(?=; )")
_MOST_REASONS = 3


def in_one(reasons: Iterable[str]) -> str:
    """Reasons in one line: a price that is missing on several days is missing once, with how many days those are."""
    days: dict[tuple[str, str], set[str]] = {}
    for reason in reasons:
        before, *rest = _DAY_OF_REASON.split(reason, maxsplit=1)
        day, after = rest or ("", "")
        days.setdefault((before, after), set()).add(day)
    said = [
        f"{before} on {len(found)} days ({min(found)} to {max(found)}){after}"
        if len(found) > 1
        else f"{before}{f' at {day}' if (day := min(found)) else ''}{after}"
        for (before, after), found in sorted(days.items())
    ]
    return "; ".join(said[:_MOST_REASONS])


class PriceBook:
    """The prices known at one instant, ready to answer for any time."""

    def __init__(self, rows: Iterable[Price]) -> None:
        self._rows: dict[tuple[PriceMeter, str], list[Price]] = {}
        for row in rows:
            self._rows.setdefault((PriceMeter(row.meter), model_key(row.model) if row.model else ""), []).append(row)

    def price(
        self,
        *,
        meter: PriceMeter,
        at: datetime,
        model: str | None,
        workspace: str | None = None,
        sku: str | None = None,
        region: str | None = None,
    ) -> UnitPrice | Unpriced:
        """The price that applies at the instant; ``at`` is the event's own time."""
        best: Price | None = None
        for row in self._candidates(meter, model, workspace=workspace, sku=sku, region=region):
            if (row.valid_from is None or row.valid_from <= at) and (row.valid_to is None or at < row.valid_to) and (best is None or _rank(row) > _rank(best)):
                best = row
        if best is None:
            what = model or sku or "an unnamed model"
            return Unpriced(f"no {meter.value} price for {what} at {at:%Y-%m-%d}; add one with: meterbridge import prices FILE")
        return UnitPrice(best.unit_price.scaleb(-UNIT_DIGITS[best.unit], money.EXACT), best.currency, best)

    def changes(
        self,
        *,
        meters: Iterable[PriceMeter],
        model: str | None,
        workspace: str | None,
        sku: str | None = None,
        region: str | None = None,
    ) -> set[datetime]:
        """The instants at which one of these prices may change."""
        found: set[datetime] = set()
        for meter in meters:
            for row in self._candidates(meter, model, workspace=workspace, sku=sku, region=region):
                found.update(at for at in (row.valid_from, row.valid_to) if at is not None)
        return found

    def _candidates(self, meter: PriceMeter, model: str | None, *, workspace: str | None, sku: str | None, region: str | None) -> list[Price]:
        keys = ("", model_key(model)) if model else ("",)
        return [
            row
            for key in keys
            for row in self._rows.get((meter, key), ())
            if (not row.workspace or row.workspace == workspace)
            and (not row.sku or (sku is not None and row.sku.casefold() == sku.casefold()))
            and (not row.region or (region is not None and row.region.casefold() == region.casefold()))
        ]


def _rank(row: Price) -> tuple[int, bool, bool, bool, bool, datetime, int]:
    return (
        _SOURCE_RANK[row.origin],
        bool(row.workspace),
        bool(row.sku),
        bool(row.region),
        bool(row.model),
        row.known_from,
        row.id or 0,
    )
