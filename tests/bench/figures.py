"""A measured figure and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """The rounds of one measurement. ``of`` is the limit or floor that it is held against, None for one itself."""

    name: str
    unit: str
    rounds: list[float]
    of: str | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def table(figures: Sequence[Figure]) -> str:
    """One line a figure: median, spread, and its ratio to the limit beside it."""
    known = {figure.name: figure for figure in figures}
    lines = [("", "median", "min … max", "unit", "ratio", "")]
    for figure in figures:
        ratio = ""
        if figure.of is not None:
            ratio = f"{figure.median / known[figure.of].median:.3g} × {figure.of}"
        spread = f"{_written(min(figure.rounds))} … {_written(max(figure.rounds))}"
        lines.append((figure.name, _written(figure.median), spread, figure.unit, ratio, figure.note))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(line[at].rjust(widths[at]) for at in (1, 2)), line[3].ljust(widths[3]), line[4].ljust(widths[4]), line[5]]
        ).rstrip()
        for line in lines
    )


def _written(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
