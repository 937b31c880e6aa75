"""A snapshot as one HTML page: opens offline, prints well, runs nothing. Every text from outside is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from collector.reports import closepack, outline, words
from collector.reports.charts import HEIGHT, WIDTH, Box, Chart, Stroke

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 760px; padding: 24px; background: #fff; color: #1b2330; font: 14px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 28px 0 6px; } h3 { font-size: 13px; margin: 18px 0 4px; color: #566175; }
.know { margin: 6px 0 0; padding-left: 20px; } h1.detail { margin-top: 40px; padding-top: 16px; border-top: 2px solid #1b2330; }
.sub, .note, figcaption { color: #566175; font-size: 12.5px; } .lead { font-size: 17px; margin: 14px 0 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 14px 0; } .tile { border: 1px solid #dfe3ea; border-radius: 8px; padding: 8px 14px; }
.tile b { display: block; font-size: 18px; } .tile span { color: #566175; font-size: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 12.5px; } th { text-align: left; color: #566175; font-weight: 600; }
th { white-space: nowrap; } th, td { padding: 4px 8px 4px 0; border-bottom: 1px solid #dfe3ea; vertical-align: top; overflow-wrap: anywhere; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; overflow-wrap: normal; } .n + :not(.n) { padding-left: 10px; } .n:last-child { padding-right: 0; } .sum td { font-weight: 600; }
figure { margin: 10px 0; } svg { width: 100%; height: auto; } .key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 4px 0 10px; print-color-adjust: exact; }
.warn { background: #fdf3dd; color: #6d4a05; border-radius: 8px; padding: 8px 12px; } .many .lead { font-size: 15px; margin: 6px 0 0; }
footer { overflow-wrap: anywhere; margin-top: 28px; border-top: 1px solid #dfe3ea; padding-top: 8px; color: #566175; font-size: 11.5px; }
@media screen and (max-width: 640px) {
  body { padding: 14px; } thead { display: none; } table, tbody, tr, td { display: block; } tr { padding: 6px 0; border-bottom: 1px solid #dfe3ea; }
  td, .n { display: flex; justify-content: space-between; gap: 16px; border: 0; padding: 1px 0; text-align: right; white-space: normal; }
  .n + :not(.n) { padding-left: 0; } svg text { font-size: 13px; }
  td::before { content: attr(data-label); color: #566175; flex: none; text-align: left; max-width: 50%; } td:first-child:not(.n) { font-weight: 600; } td:first-child:not(.n)::before { content: none; } td:empty { display: none; }
}
@page { size: A4; margin: 14mm 16mm 16mm; }
@media print {
  body { padding: 0; max-width: none; font-size: 12px; line-height: 1.35; } h1 { font-size: 20px; } h2 { font-size: 14px; margin: 12px 0 4px; } h3 { margin: 10px 0 2px; font-size: 11.5px; }
  .lead, .many .lead { font-size: 13px; margin: 6px 0 0; } .know { margin: 4px 0 0; } p { margin: 6px 0; } .sub, .note, figcaption { font-size: 10.5px; }
  .tiles { grid-template-columns: repeat(4, 1fr); gap: 6px; margin: 6px 0; } .tile { padding: 4px 8px; } .tile b { font-size: 14px; } .tile span { font-size: 9.5px; display: block; line-height: 1.2; }
  .warn { padding: 4px 8px; font-size: 10.5px; } table { font-size: 10px; } th, td { padding: 2px 6px 2px 0; } .front th, .front .n { white-space: normal; font-size: 9.5px; }
  figure { break-inside: avoid; margin: 6px 0; } .front svg { max-height: 58mm; } h2, h3, .warn, .tiles { break-after: avoid; } .tiles, .warn, .short, tr { break-inside: avoid; }
  h1.detail { break-before: page; border-top: 0; margin-top: 0; padding-top: 0; } thead { display: table-header-group; }
}
"""


def html_page(body: Mapping[str, Any]) -> str:
    """The whole page."""
    if body["kind"] == "close":
        return _document(closepack.title_of(body), _close_parts(body))
    title, first = words.title_of(body), outline.front(body)
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(words.span(body))}<br>{escape(words.age(body))}</p>']
    parts += [f'<p class="lead">{escape(said)}</p>' for said in first.leads]
    if first.more:
        parts.append(f'<p class="note">{escape(first.more)}</p>')
    if first.known:
        parts.append(f'<ul class="know">{"".join(f"<li>{escape(said)}</li>" for said in first.known)}</ul>')
    parts += [_part(part) for part in first.parts]
    parts = [f'<section class="front{" many" if len(first.leads) > 1 else ""}">{"".join(parts)}</section>', '<h1 class="detail">Detail</h1>']
    parts += [_part(part) for part in outline.detail(body)]
    parts.append(_foot(body))
    return _document(title, parts)


def _close_parts(body: Mapping[str, Any]) -> list[str]:
    parts = [f"<h1>{escape(closepack.title_of(body))}</h1>", f'<p class="sub">{escape(words.span(body))}</p>']
    parts += [f"<p>{escape(said)}</p>" for said in closepack.leads(body)]
    parts += [_table(table) for table in closepack.tables(body)]
    return [*parts, _foot(body)]


def _document(title: str, parts: Sequence[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)} · meterbridge</title><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _foot(body: Mapping[str, Any]) -> str:
    snapshot = body["snapshot"]
    return f"<footer>{escape(words.terms(body))}<br>Snapshot {escape(snapshot['id'] or '(not kept)')}, sha256 {snapshot['sha256']}.</footer>"


def _part(part: outline.Part) -> str:
    found = [f"<h2>{escape(part.title)}</h2>"] if part.title else []
    if part.tiles:
        tiles = "".join(f'<div class="tile"><b>{escape(figure)}</b><span>{escape(label)}</span></div>' for figure, label in part.tiles)
        found.append(f'<div class="tiles">{tiles}</div>')
    if part.caution:
        found.append(f'<p class="warn">{escape(part.caution)}</p>')
    found += [_figure(chart) for chart in part.charts]
    found += [_table(table) for table in part.tables]
    if part.note:
        found.append(_note(part.note))
    return "".join(found)


def _note(text: str) -> str:
    return f'<p class="note">{"<br>".join(escape(line) for line in text.splitlines())}</p>'


def _table(table: closepack.Table) -> str:
    """On a telephone it is a list, each value beside its name (``data-label``)."""
    heads = [head.removeprefix("#") for head in table.heads]
    classes = [' class="n"' if head.startswith("#") else "" for head in table.heads]
    head = "".join(f"<th{of}>{escape(text)}</th>" for text, of in zip(heads, classes, strict=True))
    lines = "".join(
        f"<tr{' class=sum' if row[0] == closepack.SUM else ''}>"
        + "".join(
            f"<td{of}{f' data-label={chr(34)}{escape(name)}{chr(34)}' if name else ''}>{escape(cell)}</td>"
            for cell, of, name in zip(row, classes, heads, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    rows = f"<table{' class=short' if table.is_short else ''}><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>" if table.rows else ""
    return f"<h3>{escape(table.title)}</h3>{rows}{_note(table.note) if table.note else ''}"


def _figure(chart: Chart) -> str:
    shapes: list[str] = []
    for shape in chart.shapes:
        if isinstance(shape, Box):
            shapes.append(f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}" fill="{shape.color}" rx="1.5"/>')
        elif isinstance(shape, Stroke):
            shapes.append(f'<line x1="{shape.x1:.1f}" y1="{shape.y1:.1f}" x2="{shape.x2:.1f}" y2="{shape.y2:.1f}" stroke="{shape.color}"/>')
        else:
            shapes.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" text-anchor="{shape.anchor}" fill="{shape.color}">{escape(shape.text)}</text>'
            )
    keys = "".join(f'<span class="key" style="background:{color}"></span>{escape(meaning)}' for color, meaning in chart.legend)
    return (
        f'<figure><figcaption>{escape(chart.title)}{keys}</figcaption><svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(chart.says)}" font-family="inherit">{"".join(shapes)}</svg></figure>'
    )
