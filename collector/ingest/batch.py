"""What goes into the ingest and what comes out: the items of one request, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from collector.capture.event import ErrorClass, Item, Refusal
from models.usage import Quality, flag_names

LONG_ANSWER = 1_000
_QUALITY_NAMES = [quality.name.lower() for quality in sorted(Quality)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of one request, in its order; ``allowed`` are the workspaces its key may write (None = all)."""

    items: Sequence[Item]
    allowed: frozenset[str] | None = None
    home: str | None = None  # the workspace of a key that has exactly one


@dataclass(frozen=True, slots=True)
class Rejected:
    """One refused item of a batch."""

    index: int
    error: ErrorClass
    detail: str


@dataclass(frozen=True, slots=True)
class Stored:
    """One accepted or duplicate item of a batch with what it was flagged."""

    index: int
    is_duplicate: bool
    flags: int
    quality: int


@dataclass(slots=True)
class Verdict:
    """What became of a batch, once it is on the disk."""

    accepted: int = 0
    duplicates: int = 0
    ignored: int = 0
    unknown: int = 0  # of the accepted, those whose tokens nobody said
    estimated: int = 0  # of the accepted, those whose tokens are an estimate
    rejected: list[Rejected] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)  # of a long batch, only the remarkable ones

    def body(self) -> dict[str, Any]:
        """The answer of the ingest routes; beyond a thousand items only the remarkable ones are listed."""
        is_short = self.accepted + self.duplicates <= LONG_ANSWER
        answer: dict[str, Any] = {
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "rejected": self.rejected,  # encoded as they are: a dictionary for each would be most of a hostile body's memory
        }
        if self.ignored:
            answer["ignored"] = self.ignored
        answer["events"] = [
            {"index": one.index, "duplicate": one.is_duplicate, "flags": flag_names(one.flags), "tokens_quality": _QUALITY_NAMES[one.quality]}
            for one in self.stored
            if is_short or one.flags or one.quality
        ]
        return answer


class Refused(Exception):
    """An item is not stored: said where it is found out, caught where its verdict is given."""

    def __init__(self, error: ErrorClass, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(error, detail)
