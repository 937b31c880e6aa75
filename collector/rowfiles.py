"""The tables that people hand us: CSV with a header line, or JSON objects with the same names.

Owns reading them exactly and saying what is wrong with them. A file is read whole or refused whole: every row is looked at,
what is wrong is gathered in ``Faults``, and one ``InvalidInput`` names up to twenty places. What a row means is the
caller's affair.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, NoReturn

from models import money
from models.errors import InvalidInput
from models.periods import parse_bound, rfc3339

MAX_ROWS = 100_000
MAX_NAME = 256  # CONTRACT.md, "names are at most 256 characters"
MAX_TEXT = 4_096
_SHOWN_FAULTS = 20
_COUNT = re.compile(r"\d{1,9}\Z", re.ASCII)


class Faults:
    """What is wrong with the files of one import, so that one run shows all of it."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @property
    def count(self) -> int:
        return len(self._found)

    def add(self, place: str, message: str) -> None:
        """Note that something is wrong at the place."""
        self._found.append(f"{place}: {message}")

    def raise_if_any(self) -> None:
        """Refuse the whole import if anything was noted."""
        if not self._found:
            return
        shown = "; ".join(self._found[:_SHOWN_FAULTS])
        more = len(self._found) - _SHOWN_FAULTS
        raise InvalidInput(f"{shown}{f'; and {more} more' if more > 0 else ''}. Nothing was imported; correct the file and import it again")


class Row:
    """One row of a file. A field that cannot be read is noted as a fault of the row and given as None or ""."""

    def __init__(self, place: str, values: Mapping[str, str], faults: Faults) -> None:
        self.place = place
        self.is_sound = True
        self._values = values
        self._faults = faults

    def fault(self, message: str) -> None:
        """Note that something is wrong with this row."""
        self.is_sound = False
        self._faults.add(self.place, message)

    def text(self, column: str, *, longest: int = MAX_TEXT) -> str:
        """The field, "" where it is empty or the file has no such column."""
        value = self._values.get(column, "")
        if len(value) > longest:
            self.fault(f"{column} is longer than {longest} characters")
            return ""
        return value

    def name(self, column: str, *, required: bool = False) -> str:
        """The field as a name."""
        value = self.text(column, longest=MAX_NAME)
        if required and not self._values.get(column):
            self.fault(f"{column} is empty")
        return value

    def one_of(self, column: str, words: Collection[str], *, required: bool = False) -> str:
        """The field, which must be one of the words."""
        value = self.text(column)
        if value in words or (not value and not required):
            return value
        self.fault(f"{column} is {value[:60]!r}; it must be one of {', '.join(words)}" if value else f"{column} is empty; it must be one of {', '.join(words)}")
        return ""

    def decimal(self, column: str) -> Decimal | None:
        """The field as an exact decimal, None (a fault) where it is empty."""
        try:
            return money.decimal_from(self.text(column), what=column)
        except InvalidInput as fault:
            self.fault(fault.message)
            return None

    def currency(self, column: str) -> str:
        """The field as an ISO 4217 code."""
        try:
            return money.currency_from(self.text(column), what=column)
        except InvalidInput as fault:
            self.fault(fault.message)
            return ""

    def count(self, column: str) -> int | None:
        """The field as a whole number, None where it is empty."""
        value = self.text(column)
        if not value:
            return None
        if not _COUNT.match(value):
            self.fault(f"{column} is not a whole number: {value[:60]!r}")
            return None
        return int(value)

    def instant(self, column: str) -> datetime | None:
        """The field as an instant, None where it is empty: RFC 3339 with an offset, or a date (its UTC midnight)."""
        value = self.text(column)
        if not value:
            return None
        try:
            return parse_bound(value, what=column)
        except InvalidInput as fault:
            self.fault(f"{fault.message}; a date such as 2026-11-20 is taken as its UTC midnight")
            return None

    def validity(self) -> tuple[datetime | None, datetime | None]:
        """``valid_from`` (included) and ``valid_to`` (excluded); None is unbounded."""
        start, end = self.instant("valid_from"), self.instant("valid_to")
        if start is not None and end is not None and end <= start:
            self.fault(f"valid_to ({rfc3339(end)}) is not after valid_from ({rfc3339(start)}); validity includes its start and excludes its end")
        return start, end


def read_rows(name: str, content: bytes, *, columns: Collection[str], required: Collection[str], faults: Faults, wrapper: str) -> list[Row]:
    """The rows of a CSV or JSON file; ``wrapper`` is the member that a JSON object may hold its list in."""
    if is_json(name, content):
        return rows_from_objects(name, read_json(name, content), columns=columns, required=required, faults=faults, wrapper=wrapper)
    return _csv_rows(name, _decoded(name, content), columns=columns, required=required, faults=faults)


def is_json(name: str, content: bytes) -> bool:
    """Whether a file is JSON, by its name or its first character."""
    return name.casefold().endswith(".json") or content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")


def read_json(name: str, content: bytes) -> Any:
    """A JSON document with its decimals kept exactly; a member that is said twice is refused."""
    try:
        return json.loads(_decoded(name, content), parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_members)
    except InvalidInput as fault:
        raise InvalidInput(f"{name}: {fault.message}", error="malformed") from fault
    except (ValueError, RecursionError) as fault:
        raise InvalidInput(f"{name} is not JSON: {str(fault)[:120]}", error="malformed") from fault


def rows_from_objects(name: str, document: Any, *, columns: Collection[str], required: Collection[str], faults: Faults, wrapper: str) -> list[Row]:
    """The rows of a JSON list of objects, of an object that holds one, or of a single object."""
    if isinstance(document, dict):
        document = document[wrapper] if set(document) == {wrapper} else [document]
    if not isinstance(document, list):
        raise InvalidInput(f"{name} is neither a list of objects nor an object with {wrapper!r}", error="malformed")
    _refuse_too_many(name, len(document))
    rows = []
    for number, item in enumerate(document, start=1):
        place = f"{name} item {number}"
        if not isinstance(item, dict):
            faults.add(place, "is not an object")
            continue
        unknown = [member for member in item if member not in columns]
        missing = [column for column in required if column not in item]
        if unknown or missing:
            _refuse_columns(place, unknown, missing, columns, faults)
            continue
        values = {column: text for column, value in item.items() if (text := _json_text(place, column, value, faults)) is not None}
        if len(values) == len(item):
            rows.append(Row(place, values, faults))
    return rows


def overlaps(rows: Iterable[tuple[Any, datetime | None, datetime | None, str]]) -> list[tuple[str, str]]:
    """Pairs of places whose validity overlaps for the same subject; rows are (subject, valid_from, valid_to, place)."""
    by_subject: dict[Any, list[tuple[datetime | None, datetime | None, str]]] = {}
    for subject, start, end, place in rows:
        by_subject.setdefault(subject, []).append((start, end, place))
    found = []
    for spans in by_subject.values():
        spans.sort(key=lambda span: (span[0] is not None, span[0] or 0))
        farthest = spans[0]
        for span in spans[1:]:
            if farthest[1] is None or span[0] is None or span[0] < farthest[1]:
                found.append((farthest[2], span[2]))
            if farthest[1] is not None and (span[1] is None or span[1] > farthest[1]):
                farthest = span
    return found


def _decoded(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise InvalidInput(f"{name} is not UTF-8 text (byte {fault.start}); save it as UTF-8", error="malformed") from fault
    if "\0" in text:
        raise InvalidInput(f"{name} holds NUL characters; it is not a text file, or UTF-16: save it as UTF-8", error="malformed")
    return text


def _csv_rows(name: str, text: str, *, columns: Collection[str], required: Collection[str], faults: Faults) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            begins, line = line, reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip().casefold() for field in fields]
                _check_header(name, header, columns, required)
                continue
            place = f"{name} line {begins}"
            if len(fields) != len(header):
                faults.add(place, f"has {len(fields)} fields where the header has {len(header)}")
                continue
            _refuse_too_many(name, len(rows) + 1)
            rows.append(Row(place, {column: field.strip() for column, field in zip(header, fields, strict=True)}, faults))
    except csv.Error as fault:
        raise InvalidInput(f"{name} line {line}: this is not CSV: {fault}", error="malformed") from fault
    if header is None:
        raise InvalidInput(f"{name} is empty; its first line names the columns: {','.join(columns)}", error="malformed")
    return rows


def _check_header(name: str, header: list[str], columns: Collection[str], required: Collection[str]) -> None:
    if len(header) == 1 and ";" in header[0]:
        raise InvalidInput(f"{name}: the columns are separated by semicolons; save it with commas", error="malformed")
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise InvalidInput(f"{name}: the header names {', '.join(twice)} twice", error="malformed")
    faults = Faults()
    _refuse_columns(
        f"{name} line 1", [column for column in header if column not in columns], [column for column in required if column not in header], columns, faults
    )
    faults.raise_if_any()


def _refuse_columns(place: str, unknown: list[str], missing: list[str], columns: Collection[str], faults: Faults) -> None:
    if unknown:
        faults.add(place, f"there is no column {', '.join(repr(column[:60]) for column in unknown[:10])}; the columns are {', '.join(columns)}")
    if missing:
        faults.add(place, f"{', '.join(missing)} is missing")


def _refuse_too_many(name: str, count: int) -> None:
    if count > MAX_ROWS:
        raise InvalidInput(f"{name} has more than {MAX_ROWS:,} rows; split it", error="too_large")


def _json_text(place: str, column: str, value: Any, faults: Faults) -> str | None:
    match value:
        case None:
            return ""
        case bool():
            faults.add(place, f"{column} is true or false; it must be text or a number")
        case str():
            if value.isascii() or _is_storable(value):
                return value.strip()
            faults.add(place, f"{column} is not valid Unicode")
        case int() | Decimal():
            return str(value)
        case _:
            faults.add(place, f"{column} is not text or a number")
    return None


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for member, _ in pairs:
            if member in seen:
                raise InvalidInput(f"an object says {member[:60]!r} twice")
            seen.add(member)
    return members


def _no_constant(word: str) -> NoReturn:
    raise InvalidInput(f"{word} is not a number")
