"""Prices come in here: from a user's file, from a list the code ships, or from Azure, always as rows with a version.

Rows are added and ended, never edited; which of them applies to a call is decided in ``models/prices.py``. A file is
imported whole or not at all. Every function works in the caller's transaction and leaves the commit to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from importlib.resources import files
from typing import Literal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from collector import pricereview
from collector.rowfiles import Faults, Row, overlaps, read_rows
from models import ledger
from models.columns import EPOCH
from models.errors import InvalidInput
from models.periods import Period, rfc3339, valid_together
from models.prices import TOKEN_METERS, Price, PriceMeter, model_key

COLUMNS = ("model", "meter", "unit_price", "currency", "unit", "valid_from", "valid_to", "workspace", "sku", "region", "source")
_REQUIRED = ("meter", "unit_price", "currency", "unit")
_TOKEN_UNITS = ("1M tokens", "1K tokens")
_HOUR_UNITS = ("1 hour",)

BUNDLED_ON = date(2026, 11, 20)  # when collector/data/prices.csv was last looked over; change both together
_MOST_SHOWN = 20
_IMPORT_LOCK = 0x6D627072696365  # "mbprice": one import of prices at a time

Origin = Literal["imported", "synced", "bundled"]


@dataclass(frozen=True, slots=True)
class PriceRow:
    """One price as a file or a catalogue states it; empty text means any, None in the validity is unbounded."""

    meter: PriceMeter
    unit_price: Decimal
    currency: str
    unit: str
    model: str = ""
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    workspace: str = ""
    sku: str = ""
    region: str = ""
    source: str = ""

    def applies_to(self) -> tuple[PriceMeter, str, str, str, str]:
        """What the price is for, as the price book compares it: two rows that share this are equally specific."""
        return _applies_to(self)

    def overlaps(self, other: Price) -> bool:
        """Whether both are valid at some instant."""
        return valid_together((self.valid_from, self.valid_to), (other.valid_from, other.valid_to))


@dataclass(frozen=True, slots=True)
class PriceImport:
    """What an import of prices did; ``version`` is what receipts show for the rows it added."""

    version: str
    added: int
    unchanged: int
    superseded: int  # earlier rows that a new one now wins over, for the time both are valid
    ended: int  # earlier rows that ``replace`` took out of use
    waiting: Sequence[pricereview.Waits] = ()  # rows that look wrong and wait for somebody to say that they are right

    def summary(self) -> str:
        """One line for the person who ran it."""
        parts = [f"{self.added} added", f"{self.unchanged} unchanged"]
        parts += [f"{self.superseded} superseded"] if self.superseded else []
        parts += [f"{self.ended} ended"] if self.ended else []
        parts += [f"{len(self.waiting)} wait for review"] if self.waiting else []
        told = [f"prices: {', '.join(parts)} (version {self.version})", *(f"waits as {row.line}" for row in self.waiting[:_MOST_SHOWN])]
        if self.waiting:
            told.append("let them count with: meterbridge prices accept ID…, or put them away with: meterbridge prices reject ID…")
        return "\n".join(told)


def import_prices(session: Session, content: bytes, *, name: str, now: datetime, author: str, replace: bool = False) -> PriceImport:
    """Take in a price file; ``replace`` ends every imported price that it does not repeat. Rows that look wrong wait."""
    return store_prices(
        session,
        parse_prices(content, name=name),
        origin="imported",
        version=_version(content, now.date()),
        now=now,
        author=author,
        replace=replace,
        is_reviewed=False,
    )


def store_prices(
    session: Session,
    rows: Sequence[PriceRow],
    *,
    origin: Origin,
    version: str,
    now: datetime,
    author: str,
    replace: bool = False,
    is_reviewed: bool = True,
) -> PriceImport:
    """Add the rows of one origin that do not already stand; they win over earlier ones from ``now`` on."""
    _one_at_a_time(session)
    by_subject: dict[tuple[PriceMeter, str, str, str, str], list[Price]] = {}
    for price in session.exec(select(Price).where(col(Price.origin) == origin, col(Price.known_to).is_(None)).order_by(col(Price.known_from), col(Price.id))):
        by_subject.setdefault(_applies_to(price), []).append(price)
    added: list[Price] = []
    superseding: list[int] = []
    kept = set[int | None]()
    unchanged = 0
    for row in rows:
        rivals = [price for price in by_subject.get(row.applies_to(), ()) if row.overlaps(price)]
        # Only the latest arrival counts as standing: a price that was since overruled is said anew by saying it again.
        standing = rivals if replace else rivals[-1:]
        same = next((price for price in standing if _states(price, row)), None)
        if same is not None:
            kept.add(same.id)
            unchanged += 1
            continue
        superseding.append(len(rivals))
        added.append(_price(row, origin=origin, version=version, author=author, known_from=now))
    held: dict[int, str] = {}
    if not is_reviewed:
        in_use = [price for price in price_rows(session) if price.known_from <= now]
        held = pricereview.doubts(added, in_use, now=now)
    waiting = pricereview.hold(session, [(added[index], reason) for index, reason in held.items()], version=version, author=author, now=now) if held else []
    # What a row that waits would have replaced goes on until it is decided.
    kept |= {price.id for index in held for price in by_subject.get(_applies_to(added[index]), ())}
    added = [row for index, row in enumerate(added) if index not in held]
    superseded = sum(count for index, count in enumerate(superseding) if index not in held)
    ended = [price for prices in by_subject.values() for price in prices if price.id not in kept] if replace else []
    for price in ended:
        price.known_to = now
    session.add_all([*ended, *added])
    session.flush()
    return PriceImport(version=version, added=len(added), unchanged=unchanged, superseded=0 if replace else superseded, ended=len(ended), waiting=waiting)


@dataclass(frozen=True, slots=True)
class PricePreview:
    """What importing a price file would change at once, which of its rows would wait for review, and what it would change with those accepted."""

    rows: Sequence[ledger.Rerate]
    waiting: Sequence[str] = ()
    accepted: Sequence[ledger.Rerate] = ()  # empty where nothing would wait


def previewed(session: Session, content: bytes, *, name: str, period: Period, now: datetime, replace: bool = False) -> PricePreview:
    """What importing a price file would change of a period's metered cost; nothing is imported."""
    rows = parse_prices(content, name=name)
    in_use = [price for price in price_rows(session) if price.known_from <= now]
    imported = [price for price in in_use if price.origin == "imported"]
    told = [
        _price(row, origin="imported", version="preview", author="", known_from=now)
        for row in rows
        if not any(_applies_to(price) == row.applies_to() and _states(price, row) for price in imported)
    ]
    held = pricereview.doubts(told, in_use, now=now)

    def then(counting: Sequence[Price], waiting: Sequence[Price] = ()) -> Sequence[ledger.Rerate]:
        goes_on = {_applies_to(price) for price in waiting}
        goes_on |= {row.applies_to() for row in rows if any(_states(price, row) for price in imported)}
        standing = [price for price in in_use if not (replace and price.origin == "imported") or _applies_to(price) in goes_on]
        return ledger.rerated(session, [*standing, *counting], period, now=now)

    at_once = [price for index, price in enumerate(told) if index not in held]
    return PricePreview(
        then(at_once, [told[index] for index in held]),
        [pricereview.line(told[index], reason) for index, reason in sorted(held.items())],
        then(told) if held else (),
    )


def ensure_bundled(session: Session, *, now: datetime) -> int:
    """Have the price list of this software in use, and no older one; gives the number of rows added."""
    content = files("collector").joinpath("data", "prices.csv").read_bytes()
    version = _version(content, BUNDLED_ON)
    if _stands(session, version):
        return 0
    _one_at_a_time(session)
    if _stands(session, version):
        return 0  # another process that started beside this one has just done it
    # The first list was published before this database was made, so any ``as_of`` may use it; a later list came with
    # an upgrade and must not change what was answered before it.
    known_from = now if session.exec(select(Price.id).where(col(Price.origin) == "bundled").limit(1)).first() else EPOCH
    session.exec(sa.update(Price).where(col(Price.origin) == "bundled", col(Price.known_to).is_(None)).values(known_to=now))
    rows = parse_prices(content, name="prices.csv")
    session.add_all(_price(row, origin="bundled", version=version, author="meterbridge", known_from=known_from) for row in rows)
    session.flush()
    return len(rows)


def _stands(session: Session, version: str) -> bool:
    asked = select(Price.version).where(col(Price.origin) == "bundled", col(Price.known_to).is_(None)).distinct()
    return set(session.exec(asked)) == {version}


def price_rows(session: Session, *, as_of: datetime | None = None) -> list[Price]:
    """The prices in use now, or known at an instant, oldest first; they may outlive the session."""
    asked = select(Price).order_by(col(Price.known_from), col(Price.id))
    if as_of is None:
        asked = asked.where(col(Price.known_to).is_(None))
    else:
        asked = asked.where(col(Price.known_from) <= as_of, sa.or_(col(Price.known_to).is_(None), col(Price.known_to) > as_of))
    rows = list(session.exec(asked))
    for row in rows:
        session.expunge(row)
    return rows


def parse_prices(content: bytes, *, name: str) -> list[PriceRow]:
    """The rows of a price file, or one ``InvalidInput`` that names everything wrong with it."""
    faults = Faults()
    read = read_rows(name, content, columns=COLUMNS, required=_REQUIRED, faults=faults, wrapper="prices")
    rows = [(row.place, price) for row in read if (price := _price_row(row)) is not None]
    for earlier, later in overlaps((price.applies_to(), price.valid_from, price.valid_to, place) for place, price in rows):
        faults.add(later, f"prices the same thing as {earlier} at the same time; validity includes its start and excludes its end")
    faults.raise_if_any()
    if not rows:
        raise InvalidInput(f"{name} has no prices in it")
    return [price for _, price in rows]


def _price_row(row: Row) -> PriceRow | None:
    meter = row.one_of("meter", [meter.value for meter in PriceMeter], required=True)
    units = () if not meter else _TOKEN_UNITS if meter in TOKEN_METERS else _HOUR_UNITS
    unit = row.one_of("unit", units, required=True) if units else ""
    unit_price, currency = row.decimal("unit_price"), row.currency("currency")
    if unit_price is not None and unit_price < 0:
        row.fault("unit_price is negative; discounts and credits come with the bill")
    valid_from, valid_to = row.validity()
    for column, at in (("valid_from", valid_from), ("valid_to", valid_to)):
        if at is not None and (at.minute or at.second or at.microsecond):
            row.fault(f"{column} ({rfc3339(at)}) is not on a whole UTC hour")
    sku = row.name("sku")
    if meter == PriceMeter.INSTANCE_HOURS and not sku:
        row.fault("instance_hours needs the sku (the VM size) that the price is for")
    model, workspace, region, source = row.name("model"), row.name("workspace"), row.name("region"), row.text("source")
    if not row.is_sound or unit_price is None:
        return None
    return PriceRow(
        meter=PriceMeter(meter),
        unit_price=unit_price.copy_abs(),  # -0 is 0; abs() would round to the context's digits
        currency=currency,
        unit=unit,
        model=model,
        valid_from=valid_from,
        valid_to=valid_to,
        workspace=workspace,
        sku=sku,
        region=region,
        source=source,
    )


def _applies_to(price: Price | PriceRow) -> tuple[PriceMeter, str, str, str, str]:
    return (PriceMeter(price.meter), model_key(price.model), price.workspace, price.sku.casefold(), price.region.casefold())


def _states(price: Price, row: PriceRow) -> bool:
    return (price.model, price.unit_price, price.currency, price.unit, price.valid_from, price.valid_to, price.sku, price.region, price.source) == (
        row.model,
        row.unit_price,
        row.currency,
        row.unit,
        row.valid_from,
        row.valid_to,
        row.sku,
        row.region,
        row.source,
    )


def _price(row: PriceRow, *, origin: Origin, version: str, author: str, known_from: datetime) -> Price:
    return Price(
        model=row.model,
        meter=row.meter,
        unit_price=row.unit_price,
        currency=row.currency,
        unit=row.unit,
        workspace=row.workspace,
        sku=row.sku,
        region=row.region,
        valid_from=row.valid_from,
        valid_to=row.valid_to,
        origin=origin,
        source=row.source,
        version=version,
        author=author,
        known_from=known_from,
    )


def _version(content: bytes, on: date) -> str:
    return f"{on.isoformat()}-{hashlib.sha256(content).hexdigest()[:8]}"


def _one_at_a_time(session: Session) -> None:
    # SQLite has one writer anyway; on PostgreSQL two imports at once would each miss what the other adds.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_IMPORT_LOCK)))
