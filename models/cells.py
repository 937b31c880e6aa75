"""Cells of files that spreadsheets open: every digit as plain text, and no name that may run as a formula."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from models import money
from models.periods import rfc3339

# What a spreadsheet would take for a formula or a command, were it the first sign of a cell, full-width forms among it
# (OWASP "CSV Injection"; ASVS 5.0, 1.2.10); the control signs are skipped by some before they look.
_FORMULA = frozenset("=+-@\t\r\n|%\x00＝＋－＠")


def plain(text: str) -> str:
    """The name as a cell's text: an apostrophe in front keeps it from being run."""
    return f"'{text}" if text and text[0] in _FORMULA else text


def cell(value: object) -> str:
    """A value as a cell: nothing where it is not known; numbers stay numbers, so that a credit keeps its minus sign."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Decimal():
            return money.text(value)
        case datetime():
            return rfc3339(value)
        case int():
            return str(value)
        case _:
            return plain(str(value))
