"""A snapshot as PDF: the same figures and charts as the page, on A4, with fonts of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fpdf import FPDF
from fpdf.enums import MethodReturnValue, XPos, YPos

from collector.reports import closepack, outline, words
from collector.reports.charts import HEIGHT, INK, LINE, QUIET, WIDTH, Box, Chart, Stroke

_FONTS = Path(__file__).parent.parent / "data" / "fonts"
_LEFT, _TOP, _PAGE_WIDTH = 16.0, 16.0, 178.0
_SCALE = _PAGE_WIDTH / WIDTH
_ROW = 5.2
# A deployment list may be long; the file of a report with thousands of rows is CSV.
_MOST_ROWS = 400
_TILE = 15.0
# Of text in tables: the first that fits, so that names are broken only where they must be.
_SIZES = (7.5, 7.0, 6.4)


class _Paper(FPDF):
    """A4 with a footer that names the snapshot."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(format="A4")
        self._body = body
        self.set_margins(_LEFT, _TOP, _LEFT)
        self.set_auto_page_break(auto=True, margin=18)
        self.add_font("report", "", _FONTS / "DejaVuSans.ttf")
        self.add_font("report", "B", _FONTS / "DejaVuSans-Bold.ttf")
        self.set_title(closepack.title_of(body) if body["kind"] == "close" else words.title_of(body))
        self.set_creator("meterbridge")
        # The file is a function of the snapshot: made twice, it is the same bytes.
        self.set_creation_date(datetime.fromisoformat(body["snapshot"]["made_at"]))

    def footer(self) -> None:
        self.set_y(-13)
        self.ink(QUIET, 7)
        snapshot = self._body["snapshot"]
        self.cell(0, 4, f"{snapshot['id'] or 'not kept'} · sha256 {snapshot['sha256'][:16]}… · page {self.page_no()} of {{nb}}", align="C")

    def ink(self, color: str, size: float, style: str = "") -> None:
        """The pen for the next text."""
        self.set_font("report", style, size)
        self.set_text_color(*_rgb(color))

    def line_of(self, text: str, size: float, *, color: str = INK, style: str = "", gap: float = 0.0) -> None:
        """A paragraph."""
        self.ink(color, size, style)
        self.multi_cell(_PAGE_WIDTH, size * 0.5, text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        if gap:
            self.ln(gap)


def pdf(body: Mapping[str, Any]) -> bytes:
    """The whole file."""
    paper = _Paper(body)
    paper.add_page()
    if body["kind"] == "close":
        _close(paper, body)
        return bytes(paper.output())
    paper.line_of(words.title_of(body), 17, style="B", gap=1)
    paper.line_of(words.span(body), 8.5, color=QUIET, gap=3)
    paper.set_y(paper.get_y() - 2)
    paper.line_of(words.age(body), 8.5, color=QUIET, gap=3)
    first = outline.front(body)
    is_several = len(first.leads) > 1
    for said in first.leads:
        paper.line_of(said, 10 if len(first.leads) > 2 else 11.5, gap=1 if is_several else 2)
    if first.more:
        paper.line_of(first.more, 9, color=QUIET, gap=1)
    for said in first.known:
        paper.line_of(f"\N{BULLET} {said}", 9, gap=0.5)
    for part in first.parts:
        _part(paper, part, is_front=True)
    paper.add_page()
    paper.line_of("Detail", 15, style="B", gap=1)
    for part in outline.detail(body):
        _part(paper, part)
    _terms(paper, body)
    return bytes(paper.output())


def _close(paper: _Paper, body: Mapping[str, Any]) -> None:
    paper.line_of(closepack.title_of(body), 17, style="B", gap=1)
    paper.line_of(words.span(body), 8.5, color=QUIET, gap=3)
    for said in closepack.leads(body):
        paper.line_of(said, 9.5, gap=1)
    for table in closepack.tables(body):
        _table(paper, table)
    _terms(paper, body)


def _terms(paper: _Paper, body: Mapping[str, Any]) -> None:
    paper.ln(3)
    paper.line_of(words.terms(body), 7.5, color=QUIET)


def _part(paper: _Paper, part: outline.Part, *, is_front: bool = False) -> None:
    """A part; on the front without what it has no room for, as the detail is complete."""
    opening = 12 + _tiles_height(part.tiles) if part.tiles else HEIGHT * _SCALE + 20 if part.charts else 30
    if part.title and paper.will_page_break(opening):
        paper.add_page()
    if part.title:
        paper.ln(2)
        paper.line_of(part.title, 13, style="B", gap=1)
    if part.tiles:
        _tiles(paper, part.tiles)
    if part.caution:
        paper.line_of(part.caution, 8, color=QUIET, gap=1)
    for chart in part.charts:
        _chart(paper, chart)
    for table in part.tables:
        if not is_front or not paper.will_page_break(_ROW * (len(table.rows) + 1) + 8):
            _table(paper, table)
    if part.note and not paper.will_page_break(9):
        paper.ln(1)
        paper.line_of(part.note, 8, color=QUIET)


def _tiles_height(tiles: Sequence[tuple[str, str]]) -> float:
    return -(-len(tiles) // 4) * (_TILE + 2) + 1


def _tiles(paper: _Paper, tiles: Sequence[tuple[str, str]]) -> None:
    """Rows of four boxes: a figure, and what it is in up to two lines."""
    width, height = _PAGE_WIDTH / 4, _TILE
    top = paper.get_y()
    for index, (figure, label) in enumerate(tiles):
        left, above = _LEFT + index % 4 * width, top + index // 4 * (height + 2)
        paper.set_draw_color(*_rgb(LINE))
        paper.set_line_width(0.2)
        paper.rect(left, above, width - 2, height)
        size = 11.0
        paper.ink(INK, size, "B")
        while paper.get_string_width(figure) > width - 6 and size > 6:
            size -= 0.5
            paper.ink(INK, size, "B")
        paper.set_xy(left + 1, above + 1)
        paper.cell(width - 4, 6, figure)
        paper.ink(QUIET, 6.5)
        paper.set_xy(left + 1, above + 7)
        paper.multi_cell(width - 4, 3, label, align="L")
    paper.set_xy(_LEFT, top + _tiles_height(tiles))


def _chart(paper: _Paper, chart: Chart) -> None:
    height = HEIGHT * _SCALE
    if paper.will_page_break(height + 8):
        paper.add_page()
    paper.line_of(chart.title, 9, color=QUIET, style="B")
    top = paper.get_y() + 1
    for shape in chart.shapes:
        if isinstance(shape, Box):
            paper.set_fill_color(*_rgb(shape.color))
            paper.rect(_LEFT + shape.x * _SCALE, top + shape.y * _SCALE, shape.width * _SCALE, shape.height * _SCALE, style="F")
        elif isinstance(shape, Stroke):
            paper.set_draw_color(*_rgb(shape.color))
            paper.set_line_width(0.15)
            paper.line(_LEFT + shape.x1 * _SCALE, top + shape.y1 * _SCALE, _LEFT + shape.x2 * _SCALE, top + shape.y2 * _SCALE)
        else:
            paper.ink(shape.color, shape.size * _SCALE / 0.3528)
            width = paper.get_string_width(shape.text)
            left = _LEFT + shape.x * _SCALE - {"start": 0.0, "middle": width / 2, "end": width}[shape.anchor]
            paper.text(left, top + shape.y * _SCALE, shape.text)
    left = _LEFT + 20
    for color, meaning in chart.legend:
        paper.set_fill_color(*_rgb(color))
        paper.rect(left, top + height - 1, 2.4, 2.4, style="F")
        paper.ink(QUIET, 7)
        paper.text(left + 3.4, top + height + 1, meaning)
        left += 8 + paper.get_string_width(meaning)
    paper.set_xy(_LEFT, top + height + 4)


def _table(paper: _Paper, table: closepack.Table) -> None:
    heads, rows, note = table.heads, table.rows, table.note
    if paper.will_page_break((_ROW * (len(rows) + 1 if table.is_short else 3) if rows else 0) + (17 if note else 7)):
        paper.add_page()
    paper.ln(2)
    paper.line_of(table.title, 9, color=QUIET, style="B", gap=0.5)
    if not rows:
        paper.line_of(note, 8, color=QUIET)
        return
    numeric = [head.startswith("#") for head in heads]
    for size in _SIZES:
        paper.ink(INK, size, "B")
        wanted = [
            max(paper.get_string_width(text) + 3.5 for text in (head.removeprefix("#"), *(row[at] for row in rows[:_MOST_ROWS])))
            for at, head in enumerate(heads)
        ]
        if sum(wanted) <= _PAGE_WIDTH:
            break
    widths = _widths(wanted, numeric)
    named_heads = [head.removeprefix("#") for head in heads]
    _row(paper, named_heads, widths, numeric, size=size, style="B", color=QUIET)
    shown = rows[:_MOST_ROWS]
    for left, row in zip(range(len(shown), 0, -1), shown, strict=True):
        # The last row, which may be the sum, does not stand alone.
        if paper.will_page_break(min(left, 2) * _ROW):
            # A page of a long table says for itself what its columns are.
            paper.add_page()
            _row(paper, named_heads, widths, numeric, size=size, style="B", color=QUIET)
        _row(paper, row, widths, numeric, size=size, style="B" if row[0] == closepack.SUM else "")
    if len(rows) > _MOST_ROWS:
        paper.line_of(f"and {len(rows) - _MOST_ROWS:,} more: they are in the CSV of this snapshot", 8, color=QUIET)
    if note:
        paper.ln(1)
        paper.line_of(note, 8, color=QUIET)


def _widths(wanted: Sequence[float], numeric: Sequence[bool]) -> list[float]:
    """Numbers get the room they need; of the rest short names get it as well, and long ones share what is left."""
    widths = [width if is_number else 0.0 for width, is_number in zip(wanted, numeric, strict=True)]
    room = _PAGE_WIDTH - sum(widths)
    names = sorted((width, at) for at, (width, is_number) in enumerate(zip(wanted, numeric, strict=True)) if not is_number)
    for rank, (width, at) in enumerate(names):
        widths[at] = min(width, room / (len(names) - rank))
        room -= widths[at]
    named = sum(widths[at] for _, at in names)
    # Where there is room for all of them, it is spread over the page.
    return [width if is_number or not named else width * (1 + room / named) for width, is_number in zip(widths, numeric, strict=True)]


def _row(paper: _Paper, cells: Sequence[str], widths: Sequence[float], numeric: Sequence[bool], *, size: float, style: str = "", color: str = INK) -> None:
    """A row as high as its longest cell, never cut by a page's end."""
    paper.ink(color, size, style)
    # Nearly every cell is one line: measured once and written as it is, which laying out costs ten times.
    long = [paper.get_string_width(cell) for cell in cells]
    lines = [
        1 if "\n" not in cell and own <= width - 1 - 2 * paper.c_margin else _lines_of(paper, cell, width)
        for cell, own, width in zip(cells, long, widths, strict=True)
    ]
    height = max(_ROW, 3.6 * max(lines) + 1.4)
    if paper.will_page_break(height):
        paper.add_page()
        paper.ink(color, size, style)
    left, top = _LEFT, paper.get_y()
    base = top + 0.7 + 1.8 + 0.3 * paper.font_size  # of letters in the middle of a line, as the library sets them
    for cell, own, width, is_number, count in zip(cells, long, widths, numeric, lines, strict=True):
        if count == 1 and cell:
            paper.text(left + (width - 1 - paper.c_margin - own if is_number else paper.c_margin), base, cell)
        elif count > 1:
            paper.set_xy(left, top + 0.7)
            paper.multi_cell(width - 1, 3.6, cell, align="R" if is_number else "L", new_x=XPos.RIGHT, new_y=YPos.TOP)
        left += width
    paper.set_draw_color(*_rgb(LINE))
    paper.set_line_width(0.1)
    paper.line(_LEFT, top + height, _LEFT + _PAGE_WIDTH, top + height)
    paper.set_xy(_LEFT, top + height)


def _lines_of(paper: _Paper, cell: str, width: float) -> int:
    lines = paper.multi_cell(width - 1, 3.6, cell, dry_run=True, output=MethodReturnValue.LINES)
    return len(lines) if isinstance(lines, list) else 1


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
