"""A FOCUS file read as strictly as it is to be written: text to values, then every rule of the checker."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime
from decimal import Decimal

from collector import focus
from collector.focus.check import Together
from collector.focus.columns import DECIMALS, TIMES
from collector.focus.rows import Row, Value

_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)\.\d+")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_NOTHING = frozenset({"null", "none", "n/a", "na", "-"})


def faults_of(text: str, *, version: focus.Version) -> list[str]:
    """What is wrong with a file."""
    reader = csv.DictReader(io.StringIO(text))
    names = tuple(reader.fieldnames or ())
    wanted = focus.columns(version)
    if names != wanted:
        strange = sorted(set(names) ^ set(wanted))
        return [f"the columns are not those of {version}: {', '.join(strange) or 'another order'}"]
    found: list[str] = []
    together = Together()
    for number, cells in enumerate(reader, 2):
        row: Row = {}
        for name, cell in cells.items():
            if cell:
                value = _value(name, cell)
                if isinstance(value, str) and (name in DECIMALS or name in TIMES or value.casefold() in _NOTHING):
                    found.append(f"row {number}: {name} is written {value!r}")
                else:
                    row[name] = value
        wrong = focus.faults(row, version=version)
        found += [f"row {number}: {fault}" for fault in wrong]
        if not wrong:
            together.see(row)
    return found + together.faults(is_whole=True)


def _value(name: str, cell: str) -> Value:
    if name in DECIMALS:
        return Decimal(cell) if _DECIMAL.fullmatch(cell) else cell
    if name in TIMES:
        return datetime.strptime(cell, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) if _TIME.fullmatch(cell) else cell
    return cell
