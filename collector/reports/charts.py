"""The charts of a report as shapes on a plane: drawn once, written as SVG by ``page`` and as PDF by ``paper``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 680.0, 210.0
INK, QUIET, LINE, UP, DOWN, FIRM, OPEN = "#1b2330", "#566175", "#dfe3ea", "#c2452d", "#1f7a5a", "#2a7fd1", "#a9c9ea"
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 70.0, 10.0, 14.0, 34.0
_GRID = 4
_WIDEST = 90.0  # of a bar: one alone is no wall


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    color: str


@dataclass(frozen=True, slots=True)
class Stroke:
    """A line."""

    x1: float
    y1: float
    x2: float
    y2: float
    color: str = LINE


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text; ``y`` is its baseline."""

    x: float
    y: float
    text: str
    size: float = 10.0
    anchor: Literal["start", "middle", "end"] = "start"
    color: str = QUIET


Shape = Box | Stroke | Words


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of ``WIDTH`` x ``HEIGHT`` with what it says in a sentence, for whoever cannot see it."""

    title: str
    says: str
    shapes: tuple[Shape, ...]
    legend: tuple[tuple[str, str], ...] = ()  # (colour, what it means)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a day or a step. ``start`` and ``end`` are where it begins and ends on the axis; ``note`` stands above it."""

    label: str
    start: float
    end: float
    note: str
    color: str


def bars(title: str, says: str, given: Sequence[Bar], *, unit: str, legend: tuple[tuple[str, str], ...] = (), base: float = 0.0) -> Chart:
    """Vertical bars on one axis, with zero on it, or with ``base`` where what is below that says nothing."""
    low = min(base, *(min(max(bar.start, base), max(bar.end, base)) for bar in given)) if given else 0.0
    high = max(base, *(max(bar.start, bar.end) for bar in given)) if given else 0.0
    if high == low:
        high = low + 1.0
    step = _round_step((high - low) / _GRID)
    bottom, top = step * int(low // step), step * -int(-high // step)

    def y(value: float) -> float:
        return _MARGIN_TOP + (top - value) / (top - bottom) * (HEIGHT - _MARGIN_TOP - _MARGIN_BOTTOM)

    shapes: list[Shape] = []
    tick = bottom
    while tick <= top + step / 2:
        shapes += [Stroke(_MARGIN_LEFT, y(tick), WIDTH - _MARGIN_RIGHT, y(tick)), Words(_MARGIN_LEFT - 8, y(tick) + 3.5, _tick(tick, step), anchor="end")]
        tick += step
    shapes.append(Words(2, _MARGIN_TOP - 4, unit, size=9))
    room = (WIDTH - _MARGIN_LEFT - _MARGIN_RIGHT) / max(1, len(given))
    for index, bar in enumerate(given):
        width = min(room * 0.68, _WIDEST)
        left = _MARGIN_LEFT + room * index + (room - width) / 2
        upper, lower = y(max(bar.start, bar.end)), y(max(min(bar.start, bar.end), bottom))
        shapes.append(Box(left, upper, width, max(lower - upper, 0.8), bar.color))
        if bar.note:
            shapes.append(Words(left + width / 2, upper - 4, bar.note, size=9, anchor="middle", color=INK))
        shapes.append(Words(left + width / 2, HEIGHT - _MARGIN_BOTTOM + 15, bar.label, anchor="middle"))
    shapes.append(Stroke(_MARGIN_LEFT, y(max(0.0, bottom)), WIDTH - _MARGIN_RIGHT, y(max(0.0, bottom)), QUIET))
    return Chart(title, says, tuple(shapes), legend)


def _round_step(raw: float) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten."""
    power = 1.0
    while power * 10 <= raw:
        power *= 10
    while power > raw:
        power /= 10
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999999)


def _tick(value: float, step: float) -> str:
    digits = 0
    while digits < 6 and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:,.{digits}f}"
