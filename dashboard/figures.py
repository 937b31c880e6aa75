"""Every chart: the one place where an exact amount becomes a float, because a screen has no more digits than that.

A chart draws what one ledger answer holds and adds nothing up; its hover texts are written from the exact figures.
Plotly reads pseudo-HTML in every label it is given, so names from outside pass through ``label`` first. Colours of ink
and grid come from the style sheet (they follow the theme), colours of data from one palette that both themes can carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html import escape
from typing import Any
from zlib import crc32

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import text
from models.ledger import CostRow, CostTable, Standing
from models.ledger.intake import DoorHour
from models.periods import Granularity, Period, buckets
from models.trials import Trial

# Told apart with the common colour-vision deficiencies in this order (after Okabe and Ito), each with at least
# 3:1 contrast to both the light and the dark page.
PALETTE = ("#2a7fd1", "#d9730d", "#159a78", "#c2559d", "#8268d6", "#a98307", "#5d6d83", "#3a9bb5", "#76882a", "#98705c")
METERED, BILLED, QUIET = PALETTE[0], PALETTE[1], "#8a93a3"
_BAD = "#d0342c"
_MODE_COLOURS = {"serverless": PALETTE[0], "managed_compute": PALETTE[1], "unknown": QUIET}
_SHADES: dict[Standing, str] = {"provisional": "rgba(128,140,160,0.20)", "settling": "rgba(128,140,160,0.08)"}
_LEGEND_NAMES = 12
_MOST_SHADES = 200

# Bars of hours and days stand over their tick, so that the label is under the bar: the axis is shifted by half a bar.
_HALVES: dict[Granularity, timedelta] = {"hour": timedelta(minutes=30), "day": timedelta(hours=12)}

# The type in the id of every chart, by which a refresh finds it.
CHART = "chart"

Figure = dict[str, Any]
# By the name of a figure: the address of the drawer on it, for each period.
Ways = Callable[[str], Callable[[Period], str] | None]


@dataclass(frozen=True, slots=True)
class Series:
    """One name in a chart: its rows in order of time and what is drawn of each (None leaves a gap)."""

    name: str
    colour: str
    points: list[tuple[Period, Decimal | int | None, str]]
    why: Callable[[Period], str | None] | None = None  # the address of the drawer on what is drawn of a period


def leading(trace: Figure, addresses: Sequence[str | None]) -> Figure:
    """The trace, each of its marks the way to an address (None: to nowhere): the shell opens it where somebody clicks.

    What the addresses have in common is said once: a month by the hour has thousands of them.
    """
    known = [address for address in addresses if address is not None]
    if not known:
        return trace
    begin = _common(known)
    ending = _common([address[len(begin) :][::-1] for address in known])[::-1]
    own = [None if address is None else address[len(begin) : len(address) - len(ending)] for address in addresses]
    return {**trace, "meta": {"why": f"{begin}{{}}{ending}", "of": own}}


def _common(texts: Sequence[str]) -> str:
    """What all of them begin with: what the first and the last of them in order do."""
    first, last = min(texts), max(texts)
    return first[: next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))]


def graph(figure: Figure, *, name: str, describes: str, height: int = 300) -> Component:
    """A chart with its name for those who cannot see it; it never offers to send its data anywhere."""
    leads = any("meta" in trace for trace in figure["data"])
    return html.Div(
        dcc.Graph(
            id={"type": CHART, "name": name},
            figure=figure,
            responsive=True,
            style={"height": f"{height}px"},
            config={
                "displaylogo": False,
                "showSendToCloud": False,
                "showEditInChartStudio": False,
                "plotlyServerURL": "",
                "showTips": False,
                "displayModeBar": "hover",
                "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
                "toImageButtonOptions": {"filename": f"meterbridge-{name}"},
            },
        ),
        id=name,
        className="chart leads" if leads else "chart",
        role="img",
        **text.spoken(describes),
    )


def label(name: str, length: int = 32) -> str:
    """A name that Plotly will draw as it is written: shortened, and without anything it would take for markup."""
    return escape(text.short(name, length), quote=False)


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name that depends on the name first and on its company only where two want the same."""
    taken: dict[str, str] = {}
    free = list(PALETTE)
    for name in sorted(set(names)):
        if name in _MODE_COLOURS:
            taken[name] = _MODE_COLOURS[name]
        elif name == text.UNALLOCATED or not free:
            taken[name] = QUIET
        else:
            wanted = PALETTE[crc32(name.encode("utf-8", "replace")) % len(PALETTE)]
            taken[name] = wanted if wanted in free else free[0]
            free.remove(taken[name])
    return taken


def spend_over_time(
    by_group: CostTable,
    by_period: CostTable,
    *,
    currency: str | None,
    naming: Callable[[CostRow], str],
    revision: str,
    why: Callable[[CostRow], Callable[[Period], str] | None] = lambda _row: None,
) -> Figure:
    """Spend stacked by group, one bar for each bucket; ``by_period`` says which buckets are not settled yet, ``why`` where a group's bars lead."""
    rows = [row for row in by_group.rows if row.figures.currency == currency and row.figures.cost is not None]
    grouped: dict[str, list[CostRow]] = {}
    for row in rows:
        grouped.setdefault(naming(row), []).append(row)
    palette = colours(grouped)
    order = sorted(grouped, key=lambda name: (name == text.UNALLOCATED, name))
    series = [
        Series(
            name,
            palette[name],
            [(row.period, row.figures.cost, text.money(row.figures.cost, currency) + (" (estimate)" if row.figures.estimate else "")) for row in grouped[name]],
            why(grouped[name][0]),
        )
        for name in order
    ]
    figure = bars(series, by_period, currency=currency, unit=currency or "amount", revision=revision, mode="relative")
    for trace in figure["data"][_LEGEND_NAMES:]:
        trace["showlegend"] = False
    return figure


def metered_and_billed(table: CostTable, *, currency: str | None, revision: str, why: Ways = lambda _name: None) -> Figure:
    """What our instruments metered beside what Azure billed; days that no bill reaches have no billed bar."""
    rows = [row for row in table.rows if row.figures.currency == currency]
    series = [
        Series(
            "metered", METERED, [(row.period, row.figures.metered_cost, text.money(row.figures.metered_cost, currency)) for row in rows], why("metered_cost")
        ),
        Series("billed", BILLED, [(row.period, row.figures.billed_cost, _billed_text(row, currency)) for row in rows], why("billed_cost")),
    ]
    return bars(series, table, currency=currency, unit=currency or "amount", revision=revision, mode="group")


def tokens_over_time(table: CostTable, *, currency: str | None, revision: str, why: Ways = lambda _name: None) -> Figure:
    """Tokens in and out, stacked."""
    rows = [row for row in table.rows if row.figures.currency == currency]
    series = [
        Series(
            "input", PALETTE[2], [(row.period, row.figures.input_tokens, f"{text.count(row.figures.input_tokens)} tokens") for row in rows], why("input_tokens")
        ),
        Series(
            "output",
            PALETTE[4],
            [(row.period, row.figures.output_tokens, f"{text.count(row.figures.output_tokens)} tokens") for row in rows],
            why("output_tokens"),
        ),
    ]
    return bars(series, table, currency=currency, unit="tokens", revision=revision, mode="relative")


def requests_over_time(table: CostTable, *, currency: str | None, revision: str, why: Ways = lambda _name: None) -> Figure:
    """Requests, and of them those whose tokens nobody said."""
    rows = [row for row in table.rows if row.figures.currency == currency]
    series = [
        Series("requests", PALETTE[7], [(row.period, row.figures.requests, f"{text.count(row.figures.requests)} requests") for row in rows], why("requests"))
    ]
    if any(row.figures.unknown_token_requests for row in rows):
        said = [(row.period, row.figures.unknown_token_requests, f"{text.count(row.figures.unknown_token_requests)} requests") for row in rows]
        series.append(Series("of them with unknown tokens", PALETTE[1], list(said), why("unknown_token_requests")))
    return bars(series, table, currency=currency, unit="requests", revision=revision, mode="group" if len(series) > 1 else "relative")


def bars(series: Sequence[Series], standing: CostTable, *, currency: str | None, unit: str, revision: str, mode: str) -> Figure:
    """Bars over time. ``revision`` names the screen: while it stays the same, a refresh keeps the reader's zoom."""
    period, granularity = standing.query.period, standing.query.granularity
    traces = []
    for one in series:
        points = [(span, value, said) for span, value, said in one.points if value is not None]
        trace: Figure = {
            "type": "bar",
            "name": label(one.name, 28),
            "x": [_at(_centre(span, granularity)) for span, _, _ in points],
            "y": [float(value) for _, value, _ in points],
            "width": [_milliseconds(span.end - span.start) * (0.8 if mode == "relative" else 0.4) for span, _, _ in points],
            "customdata": [f"{label(one.name, 40)}: {escape(said, quote=False)}" for _, _, said in points],
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {"color": one.colour, "line": {"width": 0}},
            "showlegend": True,
        }
        traces.append(trace if one.why is None else leading(trace, [one.why(span) for span, _, _ in points]))
    shapes, notes = _shading(standing, currency)
    left, right = _edges(period, granularity)
    return {
        "data": traces,
        "layout": {
            "barmode": mode,
            "showlegend": len(traces) > 1,
            "uirevision": revision,
            "hovermode": "x unified",
            "dragmode": "zoom",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "#667085"},
            "hoverlabel": {"bgcolor": "#1d2430", "bordercolor": "#1d2430", "font": {"color": "#f4f6fa"}, "namelength": -1},
            "margin": {"l": 64, "r": 12, "t": 26, "b": 8},
            "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "font": {"size": 12}},
            "xaxis": {
                "type": "date",
                "range": [_at(left), _at(right)],
                **_ticks(standing),
                "showgrid": False,
                "hoverformat": "%a %d %b %Y, %H:%M UTC" if granularity == "hour" else "%a %d %b %Y",
                "tickformatstops": [
                    {"dtickrange": [None, 86_399_999], "value": "%H:%M\n%d %b"},
                    {"dtickrange": [86_400_000, None], "value": "%d %b\n%Y"},
                ],
                "tickangle": 0,
                "automargin": True,
                "fixedrange": False,
            },
            "yaxis": {
                "title": {"text": escape(unit, quote=False)},
                "tickformat": ",~s" if unit in {"tokens", "requests"} else ",~f",
                "rangemode": "tozero",
                "gridcolor": "rgba(128,140,160,0.25)",
                "zerolinecolor": "rgba(128,140,160,0.5)",
                "fixedrange": True,
            },
            "shapes": shapes,
            "annotations": notes,
        },
    }


def _plain(traces: list[Figure], revision: str, **layout: Any) -> Figure:
    """A chart that is not over time: the look of the others, and the axes it says."""
    base: Figure = {
        "showlegend": len(traces) > 1,
        "uirevision": revision,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "#667085"},
        "hoverlabel": {"bgcolor": "#1d2430", "bordercolor": "#1d2430", "font": {"color": "#f4f6fa"}, "namelength": -1},
        "margin": {"l": 12, "r": 12, "t": 26, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "font": {"size": 12}},
    }
    return {"data": traces, "layout": base | layout}


_GRID = {"gridcolor": "rgba(128,140,160,0.25)", "zerolinecolor": "rgba(128,140,160,0.5)", "automargin": True}


def waterfall(steps: Sequence[tuple[str, Decimal, bool]], *, currency: str | None, revision: str, why: Sequence[str | None] = ()) -> Figure:
    """From the first bar to the last by what lies between: (name, amount, whether it is a total); ``why`` is where each leads."""
    # Bars that stand where the one before ended; Plotly's own waterfall does not draw inside a layout that adapts.
    level, bases, heights, tints = 0.0, list[float](), list[float](), list[str]()
    for _, amount, is_total in steps:
        height = float(amount)
        start = 0.0 if is_total else level
        bases.append(min(start, start + height))
        heights.append(abs(height))
        tints.append(METERED if is_total else BILLED if height > 0 else PALETTE[2])
        level = start + height
    # Steps that are small beside the totals would be lines; then the axis begins below them, and says so.
    floor = min((base for base, (_, _, is_total) in zip(bases, steps, strict=True) if not is_total), default=0.0)
    top = max((base + height for base, height in zip(bases, heights, strict=True)), default=0.0)
    is_cut = floor > 0.5 * top > 0
    cut = floor - 0.3 * (top - floor) if is_cut else None
    trace: Figure = {
        "type": "bar",
        "x": [label(name, 24) for name, _, _ in steps],
        "base": bases,
        "y": heights,
        "customdata": [f"{label(name, 40)}: {escape(text.money(amount, currency), quote=False)}" for name, amount, _ in steps],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": tints},
    }
    return _plain(
        [leading(trace, why)],
        revision,
        showlegend=False,
        bargap=0.15,
        margin={"l": 76, "r": 12, "t": 12, "b": 120},
        # Slanted labels and a margin that adapts to them chase each other for ever.
        xaxis={"automargin": False, "tickangle": -30, "fixedrange": True, "type": "category"},
        yaxis={
            **_GRID,
            "automargin": False,
            "title": {"text": escape(currency or "amount", quote=False) + (" (axis cut)" if is_cut else "")},
            "tickformat": ",~f",
            "fixedrange": True,
            **({"range": [cut, top + 0.1 * (top - (cut or 0.0))]} if is_cut else {}),
        },
    )


def levels(
    rows: Sequence[tuple[str, Decimal | None, Decimal | None, str]], *, revision: str, why: Callable[[str, int], str | None] = lambda _measure, _row: None
) -> Figure:
    """How full each of some pools is, in percent of its limit: (name, now, peak, words); ``why`` is where ``used`` and ``peak`` of a row lead."""
    ordered = list(reversed(rows))
    names = [label(name, 36) for name, _, _, _ in ordered]
    words = [escape(said, quote=False) for _, _, _, said in ordered]

    def trace(title: str, measure: str, place: int, colour: str) -> Figure:
        values = [row[place] for row in ordered]
        drawn: Figure = {
            "type": "bar",
            "orientation": "h",
            "name": title,
            "y": names,
            "x": [None if not isinstance(value, Decimal) else float(value) for value in values],
            "customdata": words,
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {"color": colour},
        }
        return leading(drawn, [why(measure, index) for index in reversed(range(len(rows)))])

    return _plain(
        [trace("highest of 7 days", "peak", 2, QUIET), trace("now", "used", 1, METERED)],
        revision,
        barmode="group",
        bargap=0.25,
        # A title of the axis would stand in the legend on a narrow screen; the unit is with every tick.
        xaxis={**_GRID, "ticksuffix": " %", "rangemode": "tozero", "fixedrange": True, "nticks": 6},
        yaxis={"automargin": True, "fixedrange": True},
        shapes=[{"type": "line", "x0": 100, "x1": 100, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": _BAD, "width": 2, "dash": "dot"}}],
        margin={"l": 12, "r": 24, "t": 12, "b": 8},
    )


def spans(rows: Sequence[tuple[str, datetime, datetime, str, str]], *, period: Period, revision: str, why: Sequence[str | None] = ()) -> Figure:
    """What was so from when to when: (name, start, end, colour, words); ``why`` is where each leads."""
    ordered = list(reversed(rows))
    # What has only begun is to be seen, too.
    shortest = (period.end - period.start) / 80
    begun = [min(max(start, period.start), end - shortest) for _, start, end, _, _ in ordered]
    trace: Figure = {
        "type": "bar",
        "orientation": "h",
        "y": [label(name, 30) for name, *_ in ordered],
        "base": [_at(start) for start in begun],
        "x": [_milliseconds(end - start) for (_, _, end, _, _), start in zip(ordered, begun, strict=True)],
        "marker": {"color": [colour for _, _, _, colour, _ in ordered]},
        "customdata": [escape(said, quote=False) for _, _, _, _, said in ordered],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    return _plain(
        [leading(trace, list(reversed(why)))],
        revision,
        showlegend=False,
        xaxis={**_GRID, "type": "date", "range": [_at(period.start), _at(period.end)], "fixedrange": True},
        yaxis={"automargin": True, "fixedrange": True, "type": "category"},
    )


def arrivals(hours: Sequence[tuple[datetime, int]], door: Sequence[DoorHour], *, period: Period, revision: str, why: Ways = lambda _name: None) -> Figure:
    """How many events arrived in each hour: stored, and on top of them those that came again or were turned away."""
    told = {one.starts_at: one for one in door}
    stored = {**{one.starts_at: one.accepted for one in door}, **dict(hours)}
    bars: tuple[tuple[str, str, str, dict[datetime, int]], ...] = (
        ("stored", "arrived" if hours else "accepted", METERED, stored),
        ("duplicates", "duplicates", QUIET, {at: one.duplicates for at, one in told.items()}),
        ("conflicts", "conflicts", BILLED, {at: one.conflicts for at, one in told.items()}),
        ("refused", "rejected", _BAD, {at: one.rejected for at, one in told.items()}),
    )
    traces: list[Figure] = []
    for name, measure, color, counts in bars:
        if not any(counts.values()):
            continue
        starts = sorted(counts)
        trace: Figure = {
            "type": "bar",
            "name": name,
            "x": [_at(at) for at in starts],
            "y": [counts[at] for at in starts],
            "offset": 0,
            "width": [_milliseconds(timedelta(hours=1))] * len(counts),
            "customdata": [f"{text.count(counts[at])} {name}" for at in starts],
            "hovertemplate": "%{x}: %{customdata}<extra></extra>",
            "marker": {"color": color, "line": {"width": 0}},
        }
        way = why(measure)
        traces.append(trace if way is None else leading(trace, [way(Period(at, at + timedelta(hours=1))) for at in starts]))
    return _plain(
        traces,
        revision,
        barmode="stack",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 64, "r": 12, "t": 32, "b": 8},
        xaxis={**_GRID, "type": "date", "range": [_at(period.start), _at(period.end)], "hoverformat": "%a %d %b %Y, %H:%M UTC", "tickangle": 0},
        yaxis={**_GRID, "title": {"text": "events an hour"}, "tickformat": ",~s", "rangemode": "tozero", "fixedrange": True},
    )


def cost_lines(
    *,
    per_token: Decimal,
    step_cost: Decimal,
    step_tokens: int | None,
    seen: int,
    even: int | None,
    currency: str | None,
    revision: str,
    why: Callable[[str], str | None] = lambda _name: None,
) -> Figure:
    """Cost a day against tokens a day: serverless by the token, instances by the step, and where today is.

    ``why`` is where the figures lead that it is drawn from: the list price, the capacity cost, today's tokens and those of the break-even.
    """
    most = max(seen, even or 0, 1) * 3 // 2
    points = [most * number // 60 for number in range(61)]
    instances = [max(1, -(-point // step_tokens)) if step_tokens else 1 for point in points]
    serverless = [float(per_token * point) for point in points]
    managed = [float(step_cost * number) for number in instances]

    def trace(title: str, name: str, values: list[float], colour: str, shape: str) -> Figure:
        line: Figure = {
            "type": "scatter",
            "mode": "lines",
            "name": title,
            "x": points,
            "y": values,
            "line": {"color": colour, "width": 3, "shape": shape},
            "hovertemplate": f"{title}: %{{y:,.2f}} {escape(currency or '', quote=False)} at %{{x:,.3s}} tokens a day<extra></extra>",
        }
        return leading(line, [why(name)] * len(points))

    marks = [("today", seen, QUIET)] + ([("break-even", even, "#d0342c")] if even is not None else [])
    dots: Figure = {
        "type": "scatter",
        "mode": "markers",
        "x": [at for _, at, _ in marks],
        "y": [float(per_token * at) for _, at, _ in marks],
        "customdata": [f"{words}: {text.count(at)} tokens a day" for words, at, _ in marks],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"color": [colour for _, _, colour in marks], "size": 9},
        "showlegend": False,
    }
    return _plain(
        [
            trace("serverless", "serverless_list_per_1m", serverless, METERED, "linear"),
            trace("managed compute", "capacity_cost", managed, BILLED, "hv"),
            leading(dots, [why("tokens_per_day"), *([why("break_even_tokens_per_day")] if even is not None else [])]),
        ],
        revision,
        margin={"l": 64, "r": 12, "t": 26, "b": 8},
        xaxis={**_GRID, "title": {"text": "tokens a day", "standoff": 4}, "tickformat": ",~s", "rangemode": "tozero", "fixedrange": True},
        # Below the axis title, which it would cover on a narrow screen.
        legend={"orientation": "h", "x": 0, "y": -0.3, "yanchor": "top", "font": {"size": 12}},
        yaxis={**_GRID, "title": {"text": f"{escape(currency or 'cost', quote=False)} a day"}, "rangemode": "tozero", "fixedrange": True},
        shapes=[
            {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": colour, "width": 2, "dash": "dot"}}
            for _, at, colour in marks
        ],
        annotations=[
            {"x": at, "y": 1, "yref": "paper", "text": words, "showarrow": False, "yanchor": "bottom", "font": {"size": 11}} for words, at, _ in marks
        ],
    )


def trial(trial: Trial, *, naming: Callable[[Mapping[str, Any]], str], revision: str) -> Figure:
    """The lines that a rule or budget would have followed, where it fires, and the stretches in which it would have."""
    tints = [PALETTE[index % len(PALETTE)] for index in range(len(trial.lines))]
    lines: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label(naming(line.scope)),
            "x": [_at(at) for at, _ in line.points],
            "y": [float(value) for _, value in line.points],
            "line": {"color": tint, "width": 2},
            "hovertemplate": "%{x|%a %d %b, %H:%M} UTC: %{y:,.6~g}<extra></extra>",
        }
        for line, tint in zip(trial.lines, tints, strict=True)
    ]
    marks: Figure = {
        "type": "scatter",
        "mode": "markers",
        "name": "would have fired",
        "x": [_at(one.fired_at) for one in trial.firings if one.peak is not None],
        "y": [float(one.peak) for one in trial.firings if one.peak is not None],
        "customdata": [escape(one.why, quote=False) for one in trial.firings if one.peak is not None],
        "hovertemplate": "%{x|%a %d %b, %H:%M:%S} UTC: %{customdata}<extra></extra>",
        "marker": {"color": _BAD, "size": 9, "symbol": "triangle-up"},
    }
    shades = [
        {
            "type": "rect",
            "x0": _at(one.fired_at),
            "x1": _at(one.resolved_at or trial.period.end),
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "fillcolor": _BAD,
            "opacity": 0.12,
            "line": {"width": 0},
        }
        for one in trial.firings[:_MOST_SHADES]
    ]
    edges = [
        {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": float(edge), "y1": float(edge), "line": {"color": _BAD, "width": 2, "dash": "dot"}}
        for edge in sorted({line.threshold for line in trial.lines})
    ]
    return _plain(
        [*lines, marks],
        revision,
        margin={"l": 72, "r": 12, "t": 12, "b": 8},
        xaxis={**_GRID, "type": "date", "range": [_at(trial.period.start), _at(trial.period.end)]},
        yaxis={**_GRID, "title": {"text": escape(trial.unit, quote=False)}, "rangemode": "tozero", "fixedrange": True},
        shapes=[*shades, *edges],
    )


def zoomed(figure: Figure, moved: object) -> Figure:
    """The figure with the stretch of time that its reader zoomed to (Plotly's ``relayoutData``).

    ``uirevision`` alone does not keep a zoom of an axis whose range is given.
    """
    if not isinstance(moved, dict):
        return figure
    stretch = [moved.get("xaxis.range[0]"), moved.get("xaxis.range[1]")]
    if not all(isinstance(bound, str) and len(bound) < 40 for bound in stretch):
        return figure
    layout = figure["layout"]
    return {**figure, "layout": {**layout, "xaxis": {**layout["xaxis"], "range": stretch}}}


def shares(amounts: Sequence[Decimal | None]) -> list[float]:
    """Lengths of bars in a list, as percent of the longest; a credit or an unknown amount has none."""
    longest = max((amount for amount in amounts if amount is not None), default=Decimal(0))
    return [0.0 if amount is None or amount <= 0 or longest <= 0 else round(float(amount) / float(longest) * 100, 2) for amount in amounts]


def _billed_text(row: CostRow, currency: str | None) -> str:
    return text.money(row.figures.billed_cost, currency) + (" (estimate)" if row.figures.estimate else "")


def _shading(table: CostTable, currency: str | None) -> tuple[list[Figure], list[Figure]]:
    """Grey behind the buckets whose figures still move, with the word for it on top."""
    runs: list[tuple[Standing, datetime, datetime]] = []
    for row in table.rows:
        if row.figures.currency != currency:
            continue
        start, end = _edges(row.period, table.query.granularity)
        if runs and runs[-1][0] == row.figures.status:
            runs[-1] = (runs[-1][0], runs[-1][1], end)
        else:
            runs.append((row.figures.status, start, end))
    shapes: list[Figure] = []
    notes: list[Figure] = []
    for status, start, end in runs:
        if status not in _SHADES:
            continue
        shapes.append(
            {
                "type": "rect",
                "layer": "below",
                "xref": "x",
                "yref": "paper",
                "x0": _at(start),
                "x1": _at(end),
                "y0": 0,
                "y1": 1,
                "line": {"width": 0},
                "fillcolor": _SHADES[status],
                "name": status,
            }
        )
        # Settling days come before provisional ones: anchored to their outer edges the two words do not meet.
        right = status == "provisional"
        if not any(note["text"] == status for note in notes):
            notes.append(
                {
                    "text": status,
                    "xref": "x",
                    "yref": "paper",
                    "x": _at(end if right else start),
                    "y": 1,
                    "xanchor": "right" if right else "left",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "font": {"size": 11},
                }
            )
    return shapes, notes


def _centre(span: Period, granularity: Granularity) -> datetime:
    """Where a bar stands: an hour's or day's over its own tick, a longer one in the middle of its (perhaps partial) period."""
    return span.start if granularity in _HALVES else span.start + (span.end - span.start) / 2


def _edges(span: Period, granularity: Granularity) -> tuple[datetime, datetime]:
    """The stretch of the axis that the bars of a period take up."""
    half = _HALVES.get(granularity, timedelta(0))
    return span.start - half, span.end - half


def _ticks(table: CostTable) -> Figure:
    """Weeks and months are named by their first day, under the middle of their bar; finer ticks are Plotly's own."""
    granularity = table.query.granularity
    if granularity in _HALVES:
        return {"nticks": 7}
    cuts = buckets(table.query.period, granularity)
    shown = cuts[:: max(1, -(-len(cuts) // 7))]
    written = "%b %Y" if granularity == "month" else "%d %b"
    return {"tickvals": [_at(_centre(cut, granularity)) for cut in shown], "ticktext": [f"{cut.start.astimezone(UTC):{written}}" for cut in shown]}


def _at(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _milliseconds(length: timedelta) -> float:
    return length / timedelta(milliseconds=1)
