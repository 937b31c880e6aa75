"""Many events as columns: what a batch of thousands is made of, so that no event of it costs a call of its own.

``EventColumns`` holds the events of a body that need no second thought; ``rest`` lists the places of the others
(refusals, events without id or time …), which are decided one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import msgspec
import numpy as np

from collector.capture.event import CapturedEvent, Item
from models.columns import canonical_json
from models.usage import STATUS_CODE, STATUS_OF_CODE, Flag, Operation, Quality, Split, short_id, split_details

Array = np.ndarray[Any, Any]
# By their words: a member's own hash is worked out anew for every event.
STATUS_CODE_OF_WORD: dict[str, int] = {status.value: code for status, code in STATUS_CODE.items()}
# Sums of a commit are made in 64 bits: what could overflow them is counted one by one, in Python's own integers.
MOST_SUMMED = 2**40


class Said(NamedTuple):
    """Everything categorical that an event says ('' and '{}' where it says nothing); ``workspace`` None where it is not said."""

    source: str
    workspace: str | None
    endpoint: str
    deployment: str
    model: str
    operation: str
    fine_tuned: bool
    application: str
    team: str
    tags: str
    is_native: bool


@dataclass(slots=True)
class EventColumns:
    """Events by column; ``index`` is their place in the body, ``codes`` what they say, as a place in ``said``."""

    index: Array
    ids: list[str]
    short_ids: list[str | bytes]
    times: Array
    codes: Array
    said: list[Said]
    status: Array
    billable: Array
    inputs: list[int | None]
    outputs: list[int | None]
    cached: list[int | None]
    reasoning: list[int | None]
    quality: Array
    flags: Array
    started: list[int | None]
    durations: list[int | None]
    response_ids: list[str | None]
    request_ids: list[str | None]
    details: list[str | None]
    rest: list[int]

    def event(self, at: int) -> CapturedEvent:
        """One of them by itself, as its format would have made it."""
        said = self.said[self.codes[at]]
        details = Split(self.durations[at], self.response_ids[at], self.request_ids[at], self.details[at])
        return CapturedEvent(
            self.ids[at],
            int(self.times[at]),
            said.source,
            said.workspace,
            said.endpoint or None,
            said.deployment or None,
            said.model or None,
            Operation(said.operation),
            said.fine_tuned,
            said.application or None,
            said.team or None,
            msgspec.json.decode(said.tags),
            STATUS_OF_CODE[int(self.status[at])],
            bool(self.billable[at]),
            self.inputs[at],
            self.outputs[at],
            self.cached[at],
            self.reasoning[at],
            Quality(int(self.quality[at])),
            Flag(int(self.flags[at])),
            self.started[at],
            said.is_native,
            details.whole(),
        )

    def only(self, taken: Array) -> EventColumns:
        """The events that are marked; the others are left to ``rest``."""
        chosen: dict[str, Any] = {"said": self.said, "rest": sorted([*self.rest, *self.index[~taken].tolist()])}
        for name in ("index", "times", "codes", "status", "billable", "quality", "flags"):
            chosen[name] = getattr(self, name)[taken]
        for name in ("ids", "short_ids", "inputs", "outputs", "cached", "reasoning", "started", "durations", "response_ids", "request_ids", "details"):
            chosen[name] = list(compress(getattr(self, name), taken))
        return EventColumns(**chosen)


def coded(keys: Iterable[Any]) -> tuple[Array, list[Any]]:
    """Each key as a number, and the keys by their numbers."""
    numbers: dict[Any, int] = {}
    codes = [numbers.setdefault(key, len(numbers)) for key in keys]
    return np.array(codes, np.int64), list(numbers)


def short_ids_of(ids: Sequence[str]) -> list[str | bytes]:
    """``short_id`` of each; all at once where all of them are UUIDs."""
    text = "".join(ids)
    if len(text) == 36 * len(ids) and text.isascii() and set(map(len, ids)) == {36}:
        signs = np.frombuffer(text.encode(), np.uint8).reshape(-1, 36)
        dashes = signs[:, (8, 13, 18, 23)] == 45
        digits = signs[:, _DIGITS]
        if dashes.all() and _IS_DIGIT[digits].all():
            raw = bytes.fromhex(digits.tobytes().decode())
            return [raw[start : start + 16] for start in range(0, len(raw), 16)]
    return [short_id(one) for one in ids]


_DIGITS = [place for place in range(36) if place not in (8, 13, 18, 23)]
_IS_DIGIT = np.zeros(256, bool)
_IS_DIGIT[list(b"0123456789abcdef")] = True


def summed(counts: Sequence[int | None]) -> Array:
    """Counts to add up, unknown ones as nothing; they must be below ``MOST_SUMMED``."""
    try:
        return np.array(counts, np.int64)
    except TypeError:
        return np.array([count or 0 for count in counts], np.int64)


def columns_of(items: Sequence[Item]) -> EventColumns | None:
    """The columns of captured events; None where there is none to be had."""
    index: list[int] = []
    rest: list[int] = []
    events: list[CapturedEvent] = []
    for place, item in enumerate(items):
        if type(item) is CapturedEvent and item.id is not None and item.time is not None:
            index.append(place)
            events.append(item)
        else:
            rest.append(place)
    if not index:
        return None
    rows = zip(*map(msgspec.structs.astuple, events), strict=True)
    (
        ids, times, source, workspace, endpoint, deployment, model, operation, fine_tuned, application, team, tags,
        status, billable, inputs, outputs, cached, reasoning, quality, flags, started, is_native, details,
    ) = rows  # fmt: skip
    codes, said = coded(
        zip(
            source,
            workspace,
            [name or "" for name in endpoint],
            [name or "" for name in deployment],
            [name or "" for name in model],
            [one._value_ for one in operation],
            fine_tuned,
            [name or "" for name in application],
            [name or "" for name in team],
            [canonical_json(one) if one else "{}" for one in tags],
            is_native,
            strict=True,
        )
    )
    duration, response, request, kept = zip(*map(split_details, details), strict=True)
    columns = EventColumns(
        index=np.array(index, np.int64),
        ids=list(ids),
        short_ids=short_ids_of(ids),
        times=np.array(times, np.int64),
        codes=codes,
        said=[Said(*one) for one in said],
        status=np.array([STATUS_CODE_OF_WORD[one._value_] for one in status], np.int64),
        billable=np.array(billable, bool),
        inputs=list(inputs),
        outputs=list(outputs),
        cached=list(cached),
        reasoning=list(reasoning),
        quality=np.array(quality, np.int64),
        flags=np.array(flags, np.int64),
        started=list(started),
        durations=list(duration),
        response_ids=list(response),
        request_ids=list(request),
        details=list(kept),
        rest=rest,
    )
    for counts in (inputs, outputs, cached, reasoning):
        if any(count is not None and count > MOST_SUMMED for count in counts):
            return None
    return columns
