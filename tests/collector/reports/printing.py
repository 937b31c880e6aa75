"""What a PDF holds: the words of one of ours, sheet by sheet, and where the headings of one that a browser printed stand."""

from __future__ import annotations

import re
import zlib

_STREAM = re.compile(rb"stream\n(.*?)\nendstream", re.DOTALL)
_SHOWN = re.compile(rb"/F(\d+) [\d.]+ Tf|\(((?:[^()\\]|\\.)*)\) Tj", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_SIGNS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}


def sheets(pdf: bytes) -> list[str]:
    """The text of each page in the order in which it was drawn, a space between what was drawn apart."""
    streams: list[bytes] = []
    for found in _STREAM.findall(pdf):
        try:
            streams.append(zlib.decompress(found))
        except zlib.error:
            streams.append(found)
    # Fonts stand in the file in the order of their numbers, each with its table from codes to signs.
    tables = [dict(re.findall(rb"^<([0-9A-Fa-f]{4})> <([0-9A-Fa-f]+)>$", one, re.MULTILINE)) for one in streams if b"beginbfchar" in one]
    fonts = [{int(code, 16): bytes.fromhex(text.decode()).decode("utf-16-be") for code, text in table.items()} for table in tables]
    pages: list[str] = []
    for one in streams:
        if b") Tj" not in one:
            continue
        font, said = 0, []
        for number, text in _SHOWN.findall(one):
            if number:
                font = int(number) - 1
                continue
            plain = _ESCAPED.sub(lambda match: _SIGNS.get(match[1], match[1]), text)
            said.append("".join(fonts[font].get(int.from_bytes(plain[at : at + 2], "big"), "?") for at in range(0, len(plain), 2)))
        pages.append(" ".join(" ".join(said).split()))
    return pages


_SHEETS = re.compile(rb"(\d+) 0 obj\s*<</Type /Page\b")
_HEADING = re.compile(rb"/Title \(((?:[^()\\]|\\.)*)\)\s*/Dest \[(\d+) 0 R /XYZ [\d.]+ ([\d.]+)")


def headings(pdf: bytes) -> list[tuple[str, int]]:
    """The headings of a PDF with an outline in their order, each with the number of the sheet that it stands on."""
    number_of = {found: number for number, found in enumerate(_SHEETS.findall(pdf), 1)}
    places = sorted((number_of[on], -float(height), title.decode("ascii")) for title, on, height in _HEADING.findall(pdf))
    return [(title, number) for number, _, title in places]
