"""What people say that a meter counts comes in here: from a file (also one for ``apply``), from the API, or from the form on the Data page.

Rows are added and ended, never edited; which of them applies to a charge is decided in ``models/meters.py``. Every change
has its line in the audit trail. Every function works in the caller's transaction and leaves the commit to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session

from collector import rulebook
from collector.rowfiles import Faults, Row, overlaps, read_rows, rows_from_objects
from models import ledger
from models.errors import InvalidInput, NotFound
from models.meters import HOUR_KINDS, MEANS, TOKEN_KINDS, MappedKind, MeterMapping
from models.periods import day_start, rfc3339, utc_day, valid_together

COLUMNS = ("meter", "offer", "kind", "unit", "valid_from", "valid_to", "note")
_REQUIRED = ("meter", "kind")
TOKEN_UNITS = ("1K tokens", "1M tokens")
HOUR_UNITS = ("1 hour",)
MOST_IN_USE = 1_000
_KIND = "meter-mapping"
_IMPORT_LOCK = 0x6D626D6574657273  # "mbmeters": one change of the mappings at a time


@dataclass(frozen=True, slots=True)
class MappingRow:
    """One mapping as somebody states it; an empty offer is any, an empty unit is what the bill says."""

    meter: str
    kind: MappedKind
    offer: str = ""
    unit: str = ""
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    note: str = ""

    def subject(self) -> tuple[str, str]:
        """What the mapping is of: two rows that share this are equally specific."""
        return _subject(self)

    def faults(self) -> dict[str, str]:
        """Field -> what is wrong with it."""
        found: dict[str, str] = {}
        if not self.meter.strip():
            found["meter"] = "is empty; write the meter as the bill does, * for any text in it"
        counted = MEANS[self.kind][0]
        units = TOKEN_UNITS if counted in TOKEN_KINDS else HOUR_UNITS if counted in HOUR_KINDS else ()
        if self.unit and self.unit not in units:
            found["unit"] = f"is {self.unit[:60]!r}; a meter of kind {self.kind.value} has {' or '.join(units) or 'none'}, or nothing where the bill says it"
        for field, at in (("valid_from", self.valid_from), ("valid_to", self.valid_to)):
            if at is not None and at != day_start(utc_day(at)):
                found[field] = f"({rfc3339(at)}) is not a UTC midnight; charges are of UTC days"
        if self.valid_from is not None and self.valid_to is not None and self.valid_to <= self.valid_from:
            found["valid_to"] = f"({rfc3339(self.valid_to)}) is not after valid_from ({rfc3339(self.valid_from)}); validity excludes its end"
        return found


@dataclass(frozen=True, slots=True)
class MappingImport:
    """What an import of mappings did; the rows as ``shown`` has them."""

    added: Sequence[Mapping[str, Any]]
    unchanged: int
    ended: Sequence[Mapping[str, Any]]  # earlier rows that a new one takes the place of, or that ``replace`` took out of use

    def summary(self) -> str:
        """One line for the person who ran it."""
        return f"meters: {len(self.added)} added, {self.unchanged} unchanged{f', {len(self.ended)} ended' if self.ended else ''}"


def import_mappings(session: Session, content: bytes, *, name: str, now: datetime, author: str, replace: bool = False) -> MappingImport:
    """Take in a file of mappings; ``replace`` ends every mapping that it does not repeat."""
    faults = Faults()
    found = read_rows(name, content, columns=COLUMNS, required=_REQUIRED, faults=faults, wrapper="meters")
    if not found:
        faults.raise_if_any()
        raise InvalidInput(f"{name} has no mappings of meters in it")
    return _set(session, found, faults, now=now, author=author, replace=replace)


def set_mappings(session: Session, said: Sequence[Mapping[str, object]], *, name: str, now: datetime, author: str, replace: bool = False) -> MappingImport:
    """The same for mappings that were read elsewhere; ``name`` names their place in messages."""
    faults = Faults()
    rows = rows_from_objects(name, list(said), columns=COLUMNS, required=_REQUIRED, faults=faults, wrapper="meters")
    return _set(session, rows, faults, now=now, author=author, replace=replace)


def _set(session: Session, found: Sequence[Row], faults: Faults, *, now: datetime, author: str, replace: bool) -> MappingImport:
    rows: list[tuple[str, MappingRow]] = []
    for row in found:
        said = _row(row)
        if said is not None:
            rows.append((row.place, said))
    for earlier, later in overlaps((said.subject(), said.valid_from, said.valid_to, place) for place, said in rows):
        faults.add(later, f"maps the same meter as {earlier} at the same time; validity includes its start and excludes its end")
    faults.raise_if_any()
    standing = _standing(session)
    added: list[MeterMapping] = []
    ended: list[MeterMapping] = []
    kept = set[int | None]()
    for _, said in rows:
        stands, is_new, beaten = _put(session, standing, said, now=now, author=author)
        kept.add(stands.id)
        added += [stands] if is_new else []
        ended += beaten
    for unnamed in [one for of in standing.values() for one in of if replace and one.id not in kept]:
        _end(session, unnamed, now=now, author=author)
        standing[_subject(unnamed)].remove(unnamed)
        ended.append(unnamed)
    _refuse_too_many(standing)
    return MappingImport([shown(row) for row in added], len(rows) - len(added), [shown(row) for row in ended])


def put_mapping(session: Session, said: MappingRow, *, now: datetime, author: str) -> MeterMapping:
    """Have one mapping in use from now on; one of the same meter, offer and days gives way to it."""
    for field, fault in said.faults().items():
        raise InvalidInput(fault, field=field)
    standing = _standing(session)
    found, _, _ = _put(session, standing, said, now=now, author=author)
    _refuse_too_many(standing)
    return found


def end_mapping(session: Session, mapping_id: int, *, now: datetime, author: str) -> None:
    """Take a mapping out of use; it stays on record."""
    row = session.get(MeterMapping, mapping_id)
    if row is None or row.known_to is not None:
        raise NotFound(f"no mapping {mapping_id} is in use; GET /v1/meters/mappings lists those that are")
    _end(session, row, now=now, author=author)


def shown(row: MeterMapping) -> dict[str, Any]:
    """A mapping as the API shows it."""
    return {
        "id": str(row.id),
        "meter": row.meter,
        "offer": row.offer or None,
        "kind": row.kind.value,
        "unit": row.unit or None,
        "valid_from": None if row.valid_from is None else rfc3339(row.valid_from),
        "valid_to": None if row.valid_to is None else rfc3339(row.valid_to),
        "note": row.note,
        "author": row.author,
        "known_from": rfc3339(row.known_from),
    }


def _row(row: Row) -> MappingRow | None:
    kind = row.one_of("kind", [kind.value for kind in MappedKind], required=True)
    meter, offer, unit, note = row.name("meter"), row.name("offer"), row.text("unit"), row.text("note")
    valid_from, valid_to = row.instant("valid_from"), row.instant("valid_to")
    if not row.is_sound:
        return None
    said = MappingRow(meter, MappedKind(kind), offer, unit, valid_from, valid_to, note)
    for field, fault in said.faults().items():
        row.fault(f"{field} {fault}")
    return said if row.is_sound else None


_Standing = dict[tuple[str, str], list[MeterMapping]]  # subject -> its mappings in use, in the order of their arrival


def _standing(session: Session) -> _Standing:
    # SQLite has one writer anyway; on PostgreSQL two changes at once would each miss what the other adds.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_IMPORT_LOCK)))
    found: _Standing = {}
    for row in ledger.meter_mappings(session):
        found.setdefault(_subject(row), []).append(row)
    return found


def _refuse_too_many(standing: _Standing) -> None:
    # Every question about a bill tries them on each of its meters.
    if sum(map(len, standing.values())) > MOST_IN_USE:
        raise InvalidInput(f"more than {MOST_IN_USE:,} mappings of meters would be in use; write patterns, such as paygo-*-input-tokens", error="too_large")


def _put(session: Session, standing: _Standing, said: MappingRow, *, now: datetime, author: str) -> tuple[MeterMapping, bool, Sequence[MeterMapping]]:
    """The row that stands for what is said, whether it is new, and those that gave way to it."""
    days = said.valid_from, said.valid_to
    of = standing.setdefault(said.subject(), [])
    rivals = [row for row in of if valid_together(days, (row.valid_from, row.valid_to))]
    # Only the latest one counts as standing: what was overruled since is said anew by saying it again.
    if rivals and _states(rivals[-1]) == _states(said):
        return rivals[-1], False, ()
    beaten = [row for row in rivals if _holds(days, (row.valid_from, row.valid_to))]
    for row in beaten:
        _end(session, row, now=now, author=author)
        of.remove(row)
    added = MeterMapping(
        meter=said.meter,
        offer=said.offer,
        kind=said.kind,
        unit=said.unit,
        valid_from=said.valid_from,
        valid_to=said.valid_to,
        note=said.note,
        author=author,
        known_from=now,
    )
    session.add(added)
    session.flush()
    of.append(added)
    _audit(session, added, action="create", now=now, author=author)
    return added, True, beaten


def _end(session: Session, row: MeterMapping, *, now: datetime, author: str) -> None:
    row.known_to = now
    session.add(row)
    session.flush()
    _audit(session, row, action="delete", now=now, author=author)


def _audit(session: Session, row: MeterMapping, *, action: str, now: datetime, author: str) -> None:
    said: Mapping[str, Any] = shown(row)
    before, after = (None, said) if action == "create" else (said, None)
    rulebook.audit(session, actor=author, action=action, kind=_KIND, object_id=str(row.id), before=before, after=after, now=now)


def _subject(row: MeterMapping | MappingRow) -> tuple[str, str]:
    return row.meter.casefold(), row.offer.casefold()


def _states(row: MeterMapping | MappingRow) -> Sequence[object]:
    return row.meter, row.offer, row.kind, row.unit, row.valid_from, row.valid_to, row.note


def _holds(outer: tuple[datetime | None, datetime | None], inner: tuple[datetime | None, datetime | None]) -> bool:
    """Whether the first time holds all of the second."""
    return (outer[0] is None or (inner[0] is not None and outer[0] <= inner[0])) and (outer[1] is None or (inner[1] is not None and inner[1] <= outer[1]))
