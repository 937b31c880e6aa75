"""Price rows that look wrong wait for a person; the others of their file count at once.

What looks wrong: a price a thousand or a million times another one of the same thing (a slip of the unit), one more than
five times away from the price it would replace, input dearer than output, cached input dearer than input. ``doubts``
decides and is pure. A row that is accepted counts from that moment on, as if it had been imported then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlmodel import Session

from collector import rulebook
from models import ledger, money
from models.errors import Conflict, NotFound
from models.periods import to_the_second, valid_together
from models.prices import UNIT_DIGITS, Price, PriceBook, PriceMeter, UnitPrice, WaitingPrice, model_key

_FARTHEST = Decimal(5)
# A slip of the unit is a factor of 1,000 or 1,000,000, give or take what a price may really have moved by.
_SLIPS = tuple((Decimal(power) / 2, Decimal(power) * 2, name) for power, name in ((1000, "1,000"), (1_000_000, "1,000,000")))
_DEARER = ((PriceMeter.INPUT_TOKENS, PriceMeter.OUTPUT_TOKENS), (PriceMeter.CACHED_INPUT_TOKENS, PriceMeter.INPUT_TOKENS))


def doubts(rows: Sequence[Price], standing: Sequence[Price], *, now: datetime) -> dict[int, str]:
    """Index of a row -> what looks wrong with it; ``standing`` are the prices in use, of every origin."""
    book = PriceBook(standing)
    found: dict[int, str] = {}
    for index, row in enumerate(rows):
        reason = _against_known(row, book, standing, now=now)
        if reason is not None:
            found[index] = reason
    for cheap, dear in _DEARER:
        for index, row in enumerate(rows):
            if PriceMeter(row.meter) != cheap:
                continue
            for other_index, other in [*enumerate(rows), *((None, price) for price in standing if price.origin == "imported")]:
                if PriceMeter(other.meter) == dear and _place(other) == _place(row) and _overlap(row, other) and _per_unit(row) > _per_unit(other):
                    if other_index is None and any(PriceMeter(new.meter) == dear and _place(new) == _place(row) for new in rows):
                        continue  # the file itself says that one anew
                    words = f"{cheap.value} at {_shown(row)} is dearer than {dear.value} at {_shown(other)}"
                    for one in (index, other_index):
                        if one is not None:
                            found.setdefault(one, words)
    return found


def _against_known(row: Price, book: PriceBook, standing: Sequence[Price], *, now: datetime) -> str | None:
    at = row.valid_from or now
    known = book.price(
        meter=PriceMeter(row.meter), at=at, model=row.model or None, workspace=row.workspace or None, sku=row.sku or None, region=row.region or None
    )
    if isinstance(known, UnitPrice) and known.currency == row.currency:
        factor = _factor(_per_unit(row), known.per_unit)
        for low, high, name in _SLIPS:
            if factor is not None and low <= factor <= high:
                less = "more" if _per_unit(row) > known.per_unit else "less"
                return f"{_shown(row)} is about {name} times {less} than the {_shown(known.row)} in use ({known.row.origin}): is the unit right?"
    for price in reversed(standing):
        if price.origin != "bundled" and price.currency == row.currency and _subject(price) == _subject(row) and _overlap(row, price):
            factor = _factor(_per_unit(row), _per_unit(price))
            if factor is not None and factor > _FARTHEST:
                return f"{_shown(row)} is more than five times away from the {_shown(price)} that it would replace"
            return None
    return None


def _factor(one: Decimal, other: Decimal) -> Decimal | None:
    """How many times the larger is the smaller; None where one is free."""
    if not one or not other:
        return None
    return money.QUOTIENT.divide(max(one, other), min(one, other))


def _per_unit(row: Price) -> Decimal:
    return row.unit_price.scaleb(-UNIT_DIGITS[row.unit], money.EXACT)


def _shown(row: Price) -> str:
    return f"{money.text(row.unit_price)} {row.currency} per {row.unit}"


def _place(row: Price) -> tuple[str, ...]:
    return model_key(row.model), row.workspace, row.sku.casefold(), row.region.casefold(), row.currency


def _subject(row: Price) -> tuple[str, ...]:
    return PriceMeter(row.meter).value, model_key(row.model), row.workspace, row.sku.casefold(), row.region.casefold()


def _overlap(one: Price, other: Price) -> bool:
    return valid_together((one.valid_from, one.valid_to), (other.valid_from, other.valid_to))


# -- what waits ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waits:
    """A row that waits, as a person is told of it."""

    id: int
    reason: str
    line: str


def hold(session: Session, held: Sequence[tuple[Price, str]], *, version: str, author: str, now: datetime) -> list[Waits]:
    """Have rows wait; one that waits already with the same words keeps its place, an older word on the same thing is over."""
    open_rows = ledger.waiting_prices(session)
    found: list[WaitingPrice] = []
    for price, reason in held:
        same = next((row for row in open_rows if _says(row) == _says(price)), None)
        if same is not None:
            found.append(same)
            continue
        for row in open_rows:
            if _subject(as_price(row)) == _subject(price) and (row.valid_from, row.valid_to) == (price.valid_from, price.valid_to):
                row.decision, row.decided_at, row.decided_by = "superseded", now, author
        waits = WaitingPrice(
            model=price.model,
            meter=price.meter,
            unit_price=price.unit_price,
            currency=price.currency,
            unit=price.unit,
            workspace=price.workspace,
            sku=price.sku,
            region=price.region,
            valid_from=price.valid_from,
            valid_to=price.valid_to,
            source=price.source,
            version=version,
            author=author,
            reason=reason,
            arrived_at=now,
        )
        session.add(waits)
        found.append(waits)
    session.flush()
    return [Waits(row.id or 0, row.reason, waiting_line(row)) for row in found]


def decide(session: Session, waiting_id: int, *, accept: bool, author: str, now: datetime) -> WaitingPrice:
    """Let a row count from now on, or put it away; either stays on record."""
    row = session.get(WaitingPrice, waiting_id)
    if row is None:
        raise NotFound(f"no price row {waiting_id} waits or has waited; see: meterbridge prices waiting")
    if row.decision is not None:
        raise Conflict(f"price row {waiting_id} was {row.decision} by {row.decided_by or 'nobody named'} at {to_the_second(row.decided_at or now)}")
    row.decision, row.decided_at, row.decided_by = "accepted" if accept else "rejected", now, author
    if accept:
        session.add(as_price(row, author=author, known_from=now))
    price = {"price": line(row, row.reason), "decision": row.decision}
    rulebook.audit(session, actor=author, action=row.decision, kind="waiting-price", object_id=str(waiting_id), before=None, after=price, now=now)
    return row


def as_price(row: WaitingPrice, *, author: str | None = None, known_from: datetime | None = None) -> Price:
    """The row as one that counts."""
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
        origin="imported",
        source=row.source,
        version=row.version,
        author=row.author if author is None else author,
        known_from=known_from or row.arrived_at,
    )


def _says(row: Price | WaitingPrice) -> tuple[object, ...]:
    return (
        row.model,
        PriceMeter(row.meter),
        row.unit_price,
        row.currency,
        row.unit,
        row.workspace,
        row.sku,
        row.region,
        row.valid_from,
        row.valid_to,
        row.source,
    )


def waiting_line(row: WaitingPrice) -> str:
    """The row for a person, with the id to decide it by."""
    return f"{row.id}: {line(row, row.reason)}"


def line(row: Price | WaitingPrice, reason: str) -> str:
    """The row for a person, with what looks wrong."""
    what = " ".join(part for part in (row.model or row.sku or "any model", PriceMeter(row.meter).value, row.workspace, row.region) if part)
    return f"{what}: {reason}"
