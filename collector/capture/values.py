"""The values of foreign formats, read by one set of rules: JSON, names, codes, times and token counts.

Owns what a value means wherever it stands; which field holds it is the format's own matter. What cannot be used raises
``Unfit`` with the verdict on its item. Nothing here repeats a value in words: it could be a prompt or a secret.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from collector.capture.event import MAX_COUNT, ErrorClass, Refusal
from collector.capture.native import EARLIEST, MAX_NAME
from models.errors import InvalidInput
from models.periods import parse_instant
from models.usage import Flag, Operation, Quality, Status

Scalar = str | int | bool | None
# JSON objects of a foreign service: nothing is known about their values until it is checked.
Json = dict[str, Any]

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND

FILTER_CODES = frozenset({"content_filter", "content_filter_error", "responsibleaipolicyviolation", "content_policy_violation"})
THROTTLE_CODES = frozenset({"429", "rate_limit_exceeded", "ratelimitreached", "toomanyrequests", "too_many_requests", "insufficient_quota"})

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Codes and reasons are words of an API; anything longer or with spaces could be text of a person.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}\Z")
_DIGITS = re.compile(r"[0-9]{1,16}\Z")
_INTEGRAL = re.compile(r"[0-9]{1,16}(?:\.0{1,16})?\Z")
_AMOUNT = re.compile(r"[0-9]{1,16}(?:\.[0-9]{1,32})?(?:[eE][+-]?[0-9]{1,2})?\Z")


class Unfit(Exception):
    """One item cannot be used; carries the verdict."""

    def __init__(self, error: ErrorClass, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(error, detail)


# --- JSON --------------------------------------------------------------------------------------------------------


def loaded(piece: bytes | str) -> Any:
    """The value, or the refusal of what is no JSON; NaN and oversized numbers become floats that no count accepts."""
    try:
        return json.loads(piece if isinstance(piece, str) else piece.decode(), parse_int=_integer)
    except UnicodeDecodeError:
        return Refusal("malformed", "not UTF-8 text")
    except RecursionError:
        return Refusal("malformed", "JSON nested too deep to be read")
    except ValueError:
        return Refusal("malformed", "neither JSON nor a stream of server-sent events")


def _integer(digits: str) -> int | float:
    # Python refuses to read thousands of digits; such a number is out of every range anyway.
    return int(digits) if len(digits) < 32 else math.inf


def part(value: Mapping[str, Any], *names: str) -> Json:
    """The first of the names that holds an object, else an empty one."""
    return next((found for name in names if isinstance(found := value.get(name), dict)), {})


# --- names and numbers -------------------------------------------------------------------------------------------


def text(value: Any, what: str, *, limit: int = MAX_NAME) -> str | None:
    """A name as it was sent, None where it is empty; a damaged one is refused rather than changed."""
    if not isinstance(value, str) or not value:
        return None
    if len(value) > limit or _CONTROL.search(value):
        raise Unfit("invalid_value", f"{what} is longer than {limit} characters or holds control characters")
    return value


def name(fields: Mapping[str, Any], field: str) -> str | None:
    """The name in that field; anything but a text there is refused."""
    value = fields.get(field)
    if value is not None and not isinstance(value, str):
        raise Unfit("schema_invalid", f"{field} is not a text")
    return text(value, field)


def label(value: Any) -> str | None:
    """A text that nothing is decided by: left out where it does not fit, because it is no reason to lose the tokens."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_NAME and not _CONTROL.search(value) else None


def identifier(value: Any, what: str) -> str | None:
    """An id: a text, or a number as its digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(value, what)


def word(value: Any) -> str | None:
    """A code or reason of an API; a number as its digits; anything that could be prose is dropped."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and _WORD.match(value) else None


def small(value: Any) -> int | None:
    """A whole number from 0, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else None


def remaining(value: Any) -> int | None:
    """What is left of a rate limit; -1 is Azure's "unknown", and no digits either."""
    if isinstance(value, str):
        return int(value) if _DIGITS.match(value.strip()) else None
    return small(value)


def http_status(value: Any, what: str = "status") -> int | None:
    """An HTTP status code, as a number or its digits."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and _DIGITS.match(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 999:
        raise Unfit("invalid_value", f"{what} is not an HTTP status code")
    return value


def amount(value: Any) -> str | None:
    """An amount of money in plain digits, for display beside ours; a float's are those that were sent."""
    spelled = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    return format(Decimal(spelled), "f") if isinstance(spelled, str) and _AMOUNT.match(spelled) else None


def said(details: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The details without those that are not known."""
    return {field: value for field, value in details.items() if value is not None}


# --- times -------------------------------------------------------------------------------------------------------


def instant(value: Any, what: str) -> int | None:
    """An RFC 3339 time as microseconds since 1970; None where there is none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise Unfit("invalid_time", f"{what} is not an RFC 3339 text with an offset")
    try:
        at = parse_instant(value, what=what)
    except InvalidInput as fault:
        raise Unfit("invalid_time", f"{what} is not an RFC 3339 time with an offset, such as 2026-11-20T10:00:00Z") from fault
    return int(at.timestamp()) * SECOND + at.microsecond


def believed(at: int | None) -> int | None:
    """The time, unless it is from a clock that was never set."""
    return at if at is not None and at >= EARLIEST else None


# --- token counts ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tokens:
    """Counts as they were reported; None is unknown. ``total`` is evidence, never counted."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    reasoning: int | None = None
    total: int | None = None
    quality: Quality = Quality.REPORTED
    flags: Flag = Flag.NONE

    @property
    def is_zero(self) -> bool:
        return self.input == 0 and self.output == 0

    @property
    def total_reported(self) -> int | None:
        """The total, where the counts do not say the same."""
        if self.flags & Flag.TOTAL_MISMATCH or self.input is None or self.output is None:
            return self.total
        return None

    def judge(self, status: Status, status_code: int | None, *, is_billable: bool = True) -> None:
        """Remark on counts that are missing or zero where a call of this outcome has some."""
        is_refused = status_code is not None and status_code >= 400
        was_answered = is_billable and (status in {Status.SUCCESS, Status.INCOMPLETE} or (status is Status.FILTERED and not is_refused))
        if self.input is None or self.output is None:
            self.quality = Quality.MISSING if was_answered else Quality.REPORTED
            self.flags |= Flag.USAGE_MISSING if was_answered else Flag.NONE
        elif was_answered and self.is_zero:
            self.flags |= Flag.ZERO_USAGE


def tokens_of(usage: Json | None, operation: Operation) -> Tokens:
    """The counts of a usage object, by any of its naming schemes; subsets are named, never added."""
    found = Tokens()
    if usage is None:
        return found
    count = Counter(usage)
    found.input = count("prompt_tokens", "input_tokens")
    found.output = count("completion_tokens", "output_tokens")
    found.total = count("total_tokens")
    found.cached = Counter(part(usage, "prompt_tokens_details", "input_tokens_details"), count)("cached_tokens")
    found.reasoning = Counter(part(usage, "completion_tokens_details", "output_tokens_details"), count)("reasoning_tokens")
    if found.cached is None:
        found.cached = count("cached_input_tokens")
    if found.reasoning is None:
        found.reasoning = count("reasoning_output_tokens")
    if operation is Operation.EMBEDDINGS and found.output is None:
        found.output = 0
    _derive(found)
    found.flags |= count.flags
    if found.cached is not None and (found.input is None or found.cached > found.input):
        found.flags |= Flag.NONE if found.input is None else Flag.SUBSET_EXCEEDS_TOTAL
        found.cached = None
    if found.reasoning is not None and (found.output is None or found.reasoning > found.output):
        found.flags |= Flag.NONE if found.output is None else Flag.SUBSET_EXCEEDS_TOTAL
        found.reasoning = None
    return found


def _derive(found: Tokens) -> None:
    """Fill the one count that the total leaves no choice about; a total that contradicts is evidence, not a count."""
    if found.total is None:
        return
    if found.input is not None and found.output is not None:
        if found.input + found.output != found.total:
            found.flags |= Flag.TOTAL_MISMATCH
        return
    known = found.input if found.input is not None else found.output
    if known is None:
        return
    if known > found.total:
        found.flags |= Flag.TOTAL_MISMATCH
        return
    found.quality = Quality.DERIVED
    if found.input is None:
        found.input = found.total - known
    else:
        found.output = found.total - known


class Counter:
    """Reads counts out of one object by the value rule, and remembers that one had to be coerced."""

    def __init__(self, values: Mapping[str, Any], parent: Counter | None = None) -> None:
        self.values = values
        self.parent = parent
        self.flags = Flag.NONE

    def __call__(self, *names: str) -> int | None:
        """The first of the names that holds a value: an integer, an integral float or decimal text."""
        field = next((field for field in names if self.values.get(field) is not None), None)
        if field is None:
            return None
        value = self.values[field]
        if isinstance(value, str) and _INTEGRAL.match(value):
            value = int(value.partition(".")[0])
            self._coerced()
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
            self._coerced()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
            raise Unfit("invalid_value", f"{field} is not a count: expected a whole number from 0 to {MAX_COUNT}")
        return value

    def _coerced(self) -> None:
        (self.parent or self).flags |= Flag.COERCED
