"""Names in files that spreadsheets open: none may run as a formula."""

from __future__ import annotations

# What a spreadsheet would take for one, were it the first sign of a cell; the control signs are skipped by some before they look.
_FORMULA = frozenset("=+-@\t\r\n|%")


def plain(text: str) -> str:
    """The name as a cell's text: an apostrophe in front keeps it from being run."""
    return f"'{text}" if text and text[0] in _FORMULA else text
