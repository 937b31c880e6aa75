"""A snapshot as a mail: what mail programs show everywhere (tables, styles in place; no picture, script or address of another host).

The short form of the report, for whoever reads it on a telephone: long lists end after some rows and say so. Text and HTML
are written from the same blocks, so that neither says what the other does not. Every text from outside is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from html import escape
from typing import Any
from zoneinfo import ZoneInfo

from collector.reports import closepack, context, outline, words
from collector.reports.charts import FIRM, INK, LINE, OPEN, QUIET

# Of a long table so many rows; fewer where the mail would be longer than Gmail shows of one (102 kB).
_MOST_ROWS = (12, 6, 3)
_LARGEST = 98_000
_MOST_MOVERS = 5
_MOST_DETAILED = 3
_MOST_FIGURES = 2
_NAME = 60
_FONT = "font-family:Arial,Helvetica,sans-serif"


@dataclass(frozen=True, slots=True)
class Said:
    """A paragraph; ``size`` is of its letters in pixels, ``is_quiet`` for what stands beside the matter."""

    text: str
    size: int = 14
    is_quiet: bool = False
    is_title: bool = False
    link: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """A table; the first column is of names (a second line in small after a line end), the others of numbers.

    One that ``is_long`` may be cut to its first rows, and the last where it is the sum of all (``has_sum``).
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    is_long: bool = False
    has_sum: bool = False


@dataclass(frozen=True, slots=True)
class Lengths:
    """Bars beside each other's names: (name, share of the longest in percent, figure, colour)."""

    title: str
    bars: Sequence[tuple[str, int, str, str]]
    note: str = ""


Block = Said | Rows | Lengths


@dataclass(frozen=True, slots=True)
class Letter:
    """What is read: one line of subject, and the same matter as text and as HTML."""

    subject: str
    text: str
    html: str


def letter(body: Mapping[str, Any], *, notes: Sequence[tuple[str, str]] = ()) -> Letter:
    """The mail of a snapshot; ``notes`` stand at its end, each with the address that it leads to or none."""
    title = title_of(body)
    blocks = [*(_close(body, title) if body["kind"] == "close" else _cost(body, title)), *(Said(text, 13, link=link) for text, link in notes)]
    snapshot = body["snapshot"]
    blocks.append(Said(f"Snapshot {snapshot['id'] or '(not kept)'}, sha256 {snapshot['sha256']}. Sent by meterbridge.", 11, is_quiet=True))
    totals = [words.amount(total["cost"], total["currency"]) for total in body["totals"] if total["cost"] is not None][:3]
    for most in _MOST_ROWS:
        shown = [_cut(block, most) if isinstance(block, Rows) else block for block in blocks]
        html = _html(title, shown)
        if len(html.encode()) <= _LARGEST:
            break
    return Letter(f"{title}: {'; '.join(totals)}" if totals else title, "\n".join(_text(shown)) + "\n", html)


def title_of(body: Mapping[str, Any]) -> str:
    """What the mail is called."""
    return closepack.title_of(body) if body["kind"] == "close" else words.title_of(body)


def _cost(body: Mapping[str, Any], title: str) -> Iterator[Block]:
    yield Said(title, 20, is_title=True)
    yield Said(words.span(body), 12, is_quiet=True)
    first = outline.front(body)
    for said in first.leads:
        yield Said(said, 16)
    if first.more:
        yield Said(first.more, 12, is_quiet=True)
    for said in first.known:
        yield Said(said, 14)
    shown = list(zip(body["totals"], body["currencies"], strict=True))
    if len(shown) > _MOST_DETAILED:
        yield Said(f"Of {len(shown)} currencies the first {_MOST_DETAILED} are told in detail here; all are in the files of this report.", 12, is_quiet=True)
    if changed := body.get("restatement"):
        rows = [[_place(line), words.amount(line["was"], line["currency"]), words.amount(line["is"], line["currency"])] for line in changed]
        yield _listed("What this restatement changes", ["Deployment", "Was", "Is"], rows)
    for total, one in shown[:_MOST_DETAILED]:
        if total["cost"] is not None:
            yield from _currency(body, total, one)
    for table in context.tables(body):
        yield _folded(table)
    yield Said(f"Billed where the bill reaches, metered after it. {words.age(body)}", 12, is_quiet=True)


def _currency(body: Mapping[str, Any], total: Mapping[str, Any], one: Mapping[str, Any]) -> Iterator[Block]:
    code, unit = one["currency"], words.unit(body)
    facts = [
        [f"The {unit} before", words.amount(total[f"last_{unit}"]["cost"], code)],
        ["Billed", words.amount(total["billed_cost"], code)],
        ["Tokens", words.count(total["input_tokens"] + total["output_tokens"])],
        ["Requests", words.count(total["requests"])],
    ]
    if total["core_hours"] is not None:
        facts.append(["Core-hours", words.hours(total["core_hours"])])
    expected = one["forecast"]
    if expected is not None and expected["month_end"] is not None:
        facts.append([f"{words.forecast_month(body)} so far", words.amount(expected["month_to_date"], code)])
        facts.append([f"Expected for {words.forecast_month(body)}", words.amount(expected["month_end"], code)])
    yield Rows(f"In {code}", [f"Cost of the {unit}", words.amount(total["cost"], code)], facts)
    if said := words.not_certain(total):
        yield Said(said, 13)
    heads, steps = words.steps_of(body, one)
    if steps:
        named = [[head.removeprefix("#"), step] for head, step in zip(heads, steps, strict=True)]
        yield Rows(words.way(unit), named[0], named[1:])
    yield from _days(body, one)
    for title, key, absent in (
        ("By mode", "modes", "unknown"),
        ("By workspace", "workspaces", "unallocated"),
        ("By team", "teams", "no team"),
        ("By deployment", "deployments", "unallocated"),
    ):
        rows = [
            [
                _place(line) if key == "deployments" else words.named(line, key.removesuffix("s"), absent),
                words.amount(line["cost"], code),
                words.percent(line["change_percent"]),
            ]
            for line in one[key]
        ]
        if len(rows) > 1 or key == "deployments":
            yield _listed(title, [title.removeprefix("By ").capitalize(), "Cost", "Change"], rows)
    rows = [[f"{_place(line)}\n{words.name(line['reason'])}", words.signed(line["change"], code)] for line in one["movers"][:_MOST_MOVERS]]
    yield _listed("What moved most, and why", ["Deployment", "Change"], rows)
    matched = one["reconciliation"]
    if matched is not None:
        causes = sorted(matched["causes"].items(), key=lambda pair: -abs(Decimal(pair[1])))
        yield Rows(
            "Bill against metering",
            ["Gap", words.signed(matched["variance"], code)],
            [
                ["Expected", words.amount(matched["expected"], code)],
                ["Billed", words.amount(matched["billed"], code)],
                *([f"of the gap: {cause.replace('_', ' ')}", words.signed(share, code)] for cause, share in causes[: words.CAUSES_SHOWN]),
                ["Unexplained", words.amount(matched["unexplained"], code)],
            ],
        )


def _days(body: Mapping[str, Any], one: Mapping[str, Any]) -> Iterator[Block]:
    unit, code = words.unit(body), one["currency"]
    part = "hour" if unit == "day" else "day"
    parts = [each for each in one[f"{part}s"] if each["cost"] is not None]
    longest = max((abs(Decimal(each["cost"])) for each in parts), default=Decimal(0))
    if len(parts) > 1 and longest:
        zone = ZoneInfo(body["time_zone"])
        yield Lengths(
            f"By {part}",
            [
                (
                    f"{datetime.fromisoformat(each['from']).astimezone(zone):{'%H:%M' if unit == 'day' else '%a %d %b'}}",
                    int(max(Decimal(each["cost"]), Decimal(0)) * 100 / longest),
                    words.amount(each["cost"], code),
                    OPEN if each["status"] == "provisional" else FIRM,
                )
                for each in parts
            ],
            "The paler ones are not billed yet: metered figures stand in." if any(each["status"] == "provisional" for each in parts) else "",
        )


def _close(body: Mapping[str, Any], title: str) -> Iterator[Block]:
    yield Said(title, 20, is_title=True)
    for said in closepack.leads(body):
        yield Said(said, 14)
    for table in closepack.tables(body):
        # Two names and up to three figures: the second name goes below the first.
        names = sum(not head.startswith("#") for head in table.heads)
        rows = [["\n".join(cell for cell in row[:names] if cell), *row[names:]] for row in table.rows]
        yield _listed(
            table.title,
            [", ".join(table.heads[:names]), *(head.removeprefix("#") for head in table.heads[names:])],
            rows,
            note=table.note,
            has_sum=bool(table.rows) and table.rows[-1][0] == closepack.SUM,
        )


def _folded(table: closepack.Table) -> Rows:
    """A table of many columns as one that a telephone has room for: a name and two figures, and all else in small below the name."""
    if not table.rows:
        return Rows(table.title, [], [], table.note)
    figures = [at for at, head in enumerate(table.heads) if head.startswith("#")]
    shown = figures[:_MOST_FIGURES]
    # Whoever has a workspace is known by what stands after it.
    lead = 1 if table.heads[0] == "Workspace" else 0
    below = [at for at in range(len(table.heads)) if at != lead and at not in shown]
    rows = []
    for row in table.rows:
        said = [f"{table.heads[at].removeprefix('#')} {words.cut(row[at], _NAME)}" for at in below if row[at] not in ("", "–")]
        rows.append([f"{words.cut(row[lead], _NAME)}\n{' · '.join(said)}", *(row[at] for at in shown)])
    heads = [table.heads[lead], *(table.heads[at].removeprefix("#") for at in shown)]
    return _listed(table.title, heads, rows, note=table.note)


def _place(line: Mapping[str, Any]) -> str:
    below = " · ".join(words.cut(words.name(line[key]), _NAME) for key in ("workspace", "model") if line.get(key))
    return f"{words.cut(words.name(line['deployment']), _NAME)}\n{below}" if below else words.name(line["deployment"])


def _listed(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "", has_sum: bool = False) -> Rows:
    return Rows(title, heads, rows, note, is_long=True, has_sum=has_sum)


def _cut(block: Rows, most: int) -> Rows:
    """The first rows, and the last where it is the sum of all."""
    rows = block.rows
    if not block.is_long or len(rows) <= most + 1:  # to say that one is left out takes as much room as the one
        return block
    shown = [*rows[: most - 1], rows[-1]] if block.has_sum else rows[:most]
    rest = f"{len(rows) - len(shown):,} more are in the PDF and CSV of this report."
    return replace(block, rows=shown, note=" ".join(one for one in (block.note, rest) if one))


# -- text -----------------------------------------------------------------------------------------


def _text(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Said():
                yield block.text
                if block.link:
                    yield block.link
                yield "=" * len(block.text) if block.is_title else ""
            case Rows():
                if block.rows:
                    yield from _text_table(block.title, [block.heads, *block.rows], block.note)
                elif block.note:
                    yield from (block.title.upper(), block.note, "")
            case Lengths():
                yield from _text_table(block.title, [(name, figure) for name, _, figure, _ in block.bars], block.note)


def _text_table(title: str, rows: Sequence[Sequence[str]], note: str) -> Iterator[str]:
    cells = [[" / ".join(part for part in cell.split("\n") if part) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    yield title.upper()
    for row in cells:
        yield "  ".join(cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
    if note:
        yield note
    yield ""


# -- HTML -----------------------------------------------------------------------------------------


def _html(title: str, blocks: Sequence[Block]) -> str:
    parts = "".join(_block(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light"><title>{escape(title)}</title></head>'
        f'<body style="margin:0;padding:0;background:#f3f5f8;color:{INK};{_FONT}">'
        '<table role="presentation" width="100%" cellpadding="0" cellspacing="0" border="0" style="background:#f3f5f8"><tr><td align="center" style="padding:12px 8px">'
        '<table role="presentation" width="100%" cellpadding="0" cellspacing="0" border="0" '
        'style="max-width:600px;background:#ffffff;border:1px solid #dfe3ea;text-align:left"><tr><td style="padding:20px 18px">'
        f"{parts}</td></tr></table></td></tr></table></body></html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Said():
            return _said(block)
        case Rows():
            return _table(block) if block.rows else _titled(block.title, "", block.note) if block.note else ""
        case Lengths():
            return _bars(block)


def _said(block: Said) -> str:
    color = QUIET if block.is_quiet else INK
    style = f"margin:10px 0;font-size:{block.size}px;line-height:1.4;color:{color};overflow-wrap:anywhere;word-break:break-word"
    tag = "h1" if block.is_title else "p"
    text = escape(block.text)
    if block.link:
        text = f'<a href="{escape(block.link)}" style="color:#1d5fa8">{text}</a>'
    return f'<{tag} style="{style}">{text}</{tag}>'


def _titled(title: str, inner: str, note: str) -> str:
    below = f'<p style="margin:4px 0 0;font-size:12px;color:{QUIET}">{escape(note)}</p>' if note else ""
    return (
        f'<h2 style="margin:20px 0 4px;font-size:14px;color:{QUIET}">{escape(title)}</h2>'
        + (
            f'<table width="100%" cellpadding="0" cellspacing="0" border="0" style="border-collapse:collapse;font-size:13px;line-height:1.35">{inner}</table>'
            if inner
            else ""
        )
        + below
    )


def _table(block: Rows) -> str:
    edge = f"padding:5px 0;border-bottom:1px solid {LINE};vertical-align:top"
    figure = f"{edge};padding-left:10px;text-align:right;white-space:nowrap"
    head = "".join(
        f'<th scope="col" style="{figure if at else edge};text-align:{"right" if at else "left"};color:{QUIET if at == 0 or len(block.heads) > 2 else INK}">{escape(text)}</th>'
        for at, text in enumerate(block.heads)
    )
    lines = "".join(
        "<tr>" + "".join(f'<td style="{figure if at else edge}">{_cell(text) if not at else escape(text)}</td>' for at, text in enumerate(row)) + "</tr>"
        for row in block.rows
    )
    return _titled(block.title, f"<tr>{head}</tr>{lines}", block.note)


def _cell(text: str) -> str:
    first, _, rest = text.partition("\n")
    small = "".join(f'<br><span style="font-size:11px;color:{QUIET}">{escape(line)}</span>' for line in rest.split("\n") if line)
    return f'<span style="overflow-wrap:anywhere;word-break:break-word">{escape(first)}{small}</span>'


def _bars(block: Lengths) -> str:
    lines = "".join(
        f'<tr><td style="padding:2px 8px 2px 0;white-space:nowrap;color:{QUIET};width:1%">{escape(name)}</td>'
        f'<td style="padding:2px 0">{_bar(share, color)}</td>'
        f'<td style="padding:2px 0 2px 8px;white-space:nowrap;text-align:right;width:1%">{escape(figure)}</td></tr>'
        for name, share, figure, color in block.bars
    )
    return _titled(block.title, lines, block.note)


def _bar(share: int, color: str) -> str:
    if share < 1:
        return ""
    cell = f'<td bgcolor="{color}" style="background:{color};font-size:1px;line-height:10px;height:10px">&nbsp;</td>'
    return f'<table role="presentation" width="{share}%" cellpadding="0" cellspacing="0" border="0"><tr>{cell}</tr></table>'
