"""What a rule or budget would have done over stored history: when it would have fired, and the line it would have followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from models.periods import Period


@dataclass(frozen=True, slots=True)
class Firing:
    """One time that it would have fired; ``resolved_at`` None: it still would."""

    scope: Mapping[str, Any]
    fired_at: datetime
    resolved_at: datetime | None
    peak: Decimal | None
    why: str
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The measured value of one subject over time, thinned out to what a chart can show, with the value it fires at."""

    scope: Mapping[str, Any]
    threshold: Decimal
    points: Sequence[tuple[datetime, Decimal]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A rule or budget tried on the past; ``notes`` say what the answer does not hold."""

    period: Period
    unit: str
    firings: Sequence[Firing]
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    more_firings: int = 0  # beyond those that are given
