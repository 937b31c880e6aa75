"""The traffic of an endpoint as shares of its deployments: whose a call is that names the endpoint alone.

Azure sends each call to a deployment by the percentages of the endpoint's traffic, unless a header pins it. Where no header
told, the figures of a quarter hour are shared by the same percentages: unit n of it goes to lot (n + quarter) x 61 of a
hundred, so that every hundred units are shared exactly, a single one is sent to each in turn, and sums of quarter hours add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

LOTS = 100
_STEP = 61  # prime to a hundred, and far from both its ends: neighbours go to lots far apart


def ranges(traffic: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """The lots of each deployment that has any, in order of names; none where they do not add up to a hundred."""
    found: list[tuple[str, int, int]] = []
    end = 0
    for name in sorted(traffic):
        percent = traffic[name]
        if type(percent) is not int or not 0 <= percent <= LOTS:
            return []
        if percent:
            found.append((name, end, end + percent))
        end += percent
    return found if end == LOTS else []


def part(count: int, *, quarter: int, begin: int, end: int) -> int:
    """How many of the first ``count`` units of a quarter hour (its number since 1970) fall to the lots from ``begin`` to ``end``."""
    whole, rest = divmod(abs(count), LOTS)
    found = whole * (end - begin) + _of_rest(rest, quarter % LOTS, begin, end)
    return found if count >= 0 else -found


@lru_cache(maxsize=50_000)
def _of_rest(rest: int, offset: int, begin: int, end: int) -> int:
    return sum(begin <= (unit + offset) * _STEP % LOTS < end for unit in range(rest))
