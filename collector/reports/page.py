"""A snapshot as one HTML page: opens offline, prints well, runs nothing. Every text from outside is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from collector.reports import closepack, context, words
from collector.reports.charts import HEIGHT, WIDTH, Box, Chart, Stroke

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 760px; padding: 24px; background: #fff; color: #1b2330; font: 14px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 28px 0 6px; } h3 { font-size: 13px; margin: 18px 0 4px; color: #566175; }
.know { margin: 6px 0 0; padding-left: 20px; } h1.detail { margin-top: 40px; padding-top: 16px; border-top: 2px solid #1b2330; }
.sub, .note, figcaption { color: #566175; font-size: 12.5px; } .lead { font-size: 17px; margin: 14px 0 4px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0; } .tile { border: 1px solid #dfe3ea; border-radius: 8px; padding: 8px 14px; flex: 1 1 130px; }
.tile b { display: block; font-size: 18px; } .tile span { color: #566175; font-size: 12px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 12.5px; } th { text-align: left; color: #566175; font-weight: 600; }
th { white-space: nowrap; } th, td { padding: 4px 8px 4px 0; border-bottom: 1px solid #dfe3ea; vertical-align: top; overflow-wrap: anywhere; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 10px 0; } svg { width: 100%; height: auto; } .key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 4px 0 10px; }
.warn { background: #fdf3dd; color: #6d4a05; border-radius: 8px; padding: 8px 12px; }
footer { overflow-wrap: anywhere; margin-top: 28px; border-top: 1px solid #dfe3ea; padding-top: 8px; color: #566175; font-size: 11.5px; }
@media (max-width: 560px) { body { padding: 14px; } .wide table { min-width: 600px; } .wide td { overflow-wrap: normal; } }
@media print { .wide { overflow: visible; } body { padding: 0; max-width: none; } figure { break-inside: avoid; } h2, h3 { break-after: avoid; } h1.detail { break-before: page; border-top: 0; margin-top: 0; padding-top: 0; } thead { display: table-header-group; } tr { break-inside: avoid; } }
"""

_FIRST_MOVERS = 5


def html_page(body: Mapping[str, Any]) -> str:
    """The whole page."""
    if body["kind"] == "close":
        return _document(closepack.title_of(body), _close_parts(body))
    title = words.title_of(body)
    span = f"{words.instant(body['from'], body['time_zone'])} to {words.instant(body['to'], body['time_zone'])} · {_number_of(body)}"
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(span)}<br>{escape(words.age(body))}</p>']
    if not body["totals"]:
        parts.append(f'<p class="lead">Nothing was used and nothing was billed in this {words.unit(body)} or the one before.</p>')
    parts += [f'<p class="lead">{escape(words.headline(body, total))}</p>' for total in body["totals"]]
    known = [said for said in (words.restated(body), words.missing_days(body), words.alike(body), *context.sentences(body)) if said]
    if known:
        parts.append(f'<ul class="know">{"".join(f"<li>{escape(said)}</li>" for said in known)}</ul>')
    both = list(zip(body["totals"], body["currencies"], strict=True))
    for total, one in both:
        parts += _first(body, total, one, has_charts=len(both) == 1)
    parts.append('<h1 class="detail">Detail</h1>')
    parts += _restatement(body)
    for total, one in both:
        parts += _detail(body, total, one, has_charts=len(both) > 1)
    parts += _tables(context.tables(body))
    parts.append(f"<footer>{escape(_footer(body))}</footer>")
    return _document(title, parts)


def _close_parts(body: Mapping[str, Any]) -> list[str]:
    snapshot = body["snapshot"]
    span = f"{words.instant(body['from'], 'UTC')} to {words.instant(body['to'], 'UTC')} · {_number_of(body)}"
    parts = [f"<h1>{escape(closepack.title_of(body))}</h1>", f'<p class="sub">{escape(span)}</p>']
    parts += [f"<p>{escape(said)}</p>" for said in closepack.leads(body)]
    parts += _tables(closepack.tables(body))
    return [*parts, f"<footer>Basis best. Snapshot {escape(snapshot['id'] or '(not kept)')}, sha256 {snapshot['sha256']}.</footer>"]


def _document(title: str, parts: Sequence[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)} · meterbridge</title><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _number_of(body: Mapping[str, Any]) -> str:
    snapshot = body["snapshot"]
    if snapshot["id"] is None:
        return f"as of {words.instant(snapshot['made_at'], body['time_zone'])}: {snapshot['reason']}"
    kept = f"made {words.instant(snapshot['made_at'], body['time_zone'])}"
    return f"{kept}, restatement {snapshot['number']}" if snapshot["number"] else kept


def _footer(body: Mapping[str, Any]) -> str:
    snapshot = body["snapshot"]
    return f"Basis best: billed where the bill reaches, metered after it. Snapshot {snapshot['id'] or '(not kept)'}, sha256 {snapshot['sha256']}."


def _restatement(body: Mapping[str, Any]) -> list[str]:
    changed = body.get("restatement")
    if not changed:
        return []
    rows = [
        [
            escape(words.name(line["workspace"])),
            escape(words.name(line["deployment"])),
            _n(words.amount(line["was"], line["currency"])),
            _n(words.amount(line["is"], line["currency"])),
            _n(words.signed(line["delta"], line["currency"])),
        ]
        for line in changed
    ]
    return ["<h2>What this restatement changes</h2>", _table(["Workspace", "Deployment", "#Was", "#Is", "#Difference"], rows)]


def _first(body: Mapping[str, Any], total: Mapping[str, Any], one: Mapping[str, Any], *, has_charts: bool) -> list[str]:
    """What stands on the first page of one currency."""
    code = one["currency"]
    if total["cost"] is None:
        return []
    tiles = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in words.tiles_of(body, total, one))
    parts = [f"<h2>{escape(code or 'No currency')}</h2>", f'<div class="tiles">{tiles}</div>']
    if said := words.not_certain(total):
        parts.append(f'<p class="warn">{escape(said)}</p>')
    heads, steps = words.steps_of(body, one)
    if has_charts:
        parts += [_figure(chart) for chart in words.charts_of(body, one)]
    elif steps:
        # Of several currencies there is no room for charts on one page.
        parts += [f"<h3>From last {words.unit(body)} to this one</h3>", _table(heads, [[escape(step) for step in steps]])]
    if one["movers"]:
        parts += ["<h3>What moved most</h3>", _movers(body, one, most=_FIRST_MOVERS)]
    if said := words.matched(one):
        parts.append(f'<p class="note">Bill against metering. {escape(said)}</p>')
    return parts


def _movers(body: Mapping[str, Any], one: Mapping[str, Any], *, most: int | None = None) -> str:
    code = one["currency"]
    rows = [
        [
            escape(words.name(line["workspace"])),
            escape(words.name(line["deployment"])),
            _n(words.signed(line["change"], code)),
            _n(words.amount(line["cost"], code)),
            escape(line["reason"]),
        ]
        for line in one["movers"][:most]
    ]
    return _table(["Workspace", "Deployment", "#Change", f"#This {words.unit(body)}", "Why"], rows)


def _detail(body: Mapping[str, Any], total: Mapping[str, Any], one: Mapping[str, Any], *, has_charts: bool) -> list[str]:
    """Everything of one currency."""
    code, unit = one["currency"], words.unit(body)
    if total["cost"] is None:
        return [f"<h2>{escape(code or 'Without a price')}</h2>", *_unpriced(one)]
    parts = [f"<h2>{escape(code or 'No currency')}</h2>"]
    if has_charts:
        parts += [_figure(chart) for chart in words.charts_of(body, one)]
    parts += _lines("By workspace", one["workspaces"], ("workspace",), code, unit)
    parts += _lines("By deployment", one["deployments"], ("workspace", "deployment", "model"), code, unit)
    parts += _lines("By mode", one["modes"], ("mode",), code, unit)
    parts += _lines("By team", one["teams"], ("team",), code, unit, absent="no team")
    if len(one["movers"]) > _FIRST_MOVERS:
        parts += ["<h3>What moved most</h3>", _movers(body, one)]
    matched = one["reconciliation"]
    if matched is not None and matched["causes"]:
        rows = [[escape(cause.replace("_", " ")), _n(words.signed(share, code))] for cause, share in matched["causes"].items()]
        parts += ["<h3>Bill against metering</h3>", _table(["Cause", "#Amount"], rows)]
    return parts


def _tables(tables: Sequence[closepack.Table]) -> list[str]:
    parts: list[str] = []
    for table in tables:
        parts.append(f"<h2>{escape(table.title)}</h2>")
        if table.note:
            parts.append(f'<p class="note">{escape(table.note)}</p>')
        if table.rows:
            parts.append(_table(table.heads, [[escape(cell) for cell in row] for row in table.rows]))
    return parts


def _unpriced(one: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            *(escape(words.name(line[key])) for key in ("workspace", "deployment", "model")),
            _n(words.count(line["unpriced_tokens"])),
            _n(words.count(line["requests"])),
        ]
        for line in one["deployments"]
    ]
    return [_table(["Workspace", "Deployment", "Model", "#Tokens without a price", "#Requests"], rows)]


def _lines(title: str, lines: Sequence[Mapping[str, Any]], names: Sequence[str], code: str | None, unit: str, *, absent: str = "unallocated") -> list[str]:
    if not lines:
        return []
    rows = [
        [
            *(escape(words.name(line[name], absent)) for name in names),
            _n(words.amount(line["cost"], code)),
            _n(words.amount(line[f"last_{unit}_cost"], code)),
            _n(words.percent(line["change_percent"])),
            escape(line["status"] + (", estimate" if line["estimate"] else "")),
        ]
        for line in lines
    ]
    return [f"<h3>{escape(title)}</h3>", _table([*(name.capitalize() for name in names), f"#This {unit}", f"#Last {unit}", "#Change", "Standing"], rows)]


def _n(text: str) -> str:
    return escape(text)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Heads that begin with # are of numbers. Cells are escaped already."""
    classes = [' class="n"' if head.startswith("#") else "" for head in heads]
    head = "".join(f"<th{of}>{escape(text.removeprefix('#'))}</th>" for text, of in zip(heads, classes, strict=True))
    lines = "".join("<tr>" + "".join(f"<td{of}>{cell}</td>" for cell, of in zip(row, classes, strict=True)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


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
