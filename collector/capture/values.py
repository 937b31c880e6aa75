"""The values of foreign formats, read by one set of rules: JSON, names, codes, times and token counts.

Owns what a value means wherever it stands; which field holds it is the format's own matter. What cannot be used raises
``Unfit`` with the verdict on its item. Nothing here repeats a value in words: it could be a prompt or a secret.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

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
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)
# Hosts that carry the endpoint's name (serverless ones, managed compute) and those of a Foundry account, which is a workspace here.
_SERVERLESS_HOST = re.compile(r"([a-z0-9][a-z0-9-]*)\.[a-z0-9]+\.(?:models|inference)\.ai\.azure\.com\Z")
_MANAGED_HOST = re.compile(r"([a-z0-9][a-z0-9-]*)\.[a-z0-9]+\.inference\.ml\.azure\.com\Z")
_ACCOUNT_HOST = re.compile(r"([a-z0-9][a-z0-9-]*)\.(?:services\.ai|openai|cognitiveservices)\.azure\.com\Z")
_DEPLOYMENT_PATH = re.compile(r"/deployments/([^/]+)")
_LIMIT_NAMES = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_AMOUNT = re.compile(r"[0-9]{1,16}(?:\.[0-9]{1,32})?(?:[eE][+-]?[0-9]{1,2})?\Z")


class Unfit(Exception):
    """One item cannot be used; carries the verdict."""

    def __init__(self, error: ErrorClass, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(error, detail)


# --- JSON --------------------------------------------------------------------------------------------------------


# Of one item's values: each takes some sixty bytes beside its text, and no answer of a model holds as many.
_MAX_VALUES = 500_000
_LONG = 1024 * 1024


def loaded(piece: bytes | str) -> Any:
    """The value, or the refusal of what is no JSON; NaN and oversized numbers become floats that no count accepts."""
    if _is_heavy(piece):
        return Refusal("too_large", f"an item holds more than {_MAX_VALUES} values; send what counts of it only")
    if isinstance(piece, bytes) and len(piece) > _LONG:
        # Without a copy as text; of a member that such an item names twice the last value is taken.
        with contextlib.suppress(ValueError, RecursionError):
            return msgspec.json.decode(piece)
    try:
        return json.loads(piece if isinstance(piece, str) else piece.decode(), parse_int=_integer, object_pairs_hook=_object)
    except _Repeated:
        return Refusal("malformed", "an object names a member twice; which of the two values is meant cannot be known")
    except UnicodeDecodeError:
        return Refusal("malformed", "not UTF-8 text")
    except RecursionError:
        return Refusal("malformed", "JSON nested too deep to be read")
    except ValueError:
        return Refusal("malformed", "neither JSON nor a stream of server-sent events")


def _is_heavy(piece: bytes | str) -> bool:
    if len(piece) <= _MAX_VALUES:
        return False
    signs = (",", "{", "[") if isinstance(piece, str) else (b",", b"{", b"[")
    return sum(map(piece.count, signs)) > _MAX_VALUES  # type: ignore[arg-type]  # of its own kind


def quickly(piece: bytes) -> Any:
    """As ``loaded`` and several times as quick, for bodies of many kilobytes an event; a member named twice has its last value."""
    if _is_heavy(piece):
        return loaded(piece)
    try:
        return msgspec.json.decode(piece)
    except (ValueError, RecursionError):
        return loaded(piece)


class _Repeated(Exception):
    """An object has two members of one name."""


def _object(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Repeated
    return found


def _integer(digits: str) -> int | float:
    # Python refuses to read thousands of digits; such a number is out of every range anyway.
    return int(digits) if len(digits) < 32 else math.inf


def part(value: Mapping[str, Any], *names: str) -> Json:
    """The first of the names that holds an object, else an empty one."""
    for name in names:
        found = value.get(name)
        if isinstance(found, dict):
            return found
    return {}


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
    """A whole number from 0, also as text (some clients send every parameter as one); None for anything else."""
    if isinstance(value, str) and _DIGITS.match(value):
        value = int(value)
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


def finish(reasons: Sequence[str | None]) -> dict[str, Scalar]:
    """How the candidates of an answer ended: the filter's reason if it stopped any, else the first one's.

    A candidate without a reason stays apart from an answer that nothing is known of: the former is ``None`` under its
    name, the latter has no such name. Candidates that ended differently are listed in their order.
    """
    if not reasons:
        return {}
    found: dict[str, Scalar] = {"finish_reason": next((reason for reason in reasons if reason in FILTER_CODES), reasons[0])}
    if len(set(reasons)) > 1:
        found["finish_reasons"] = ",".join(reason or "null" for reason in reasons)[:MAX_NAME]
    return found


def asked_for(request: Mapping[str, Any], headers: Mapping[str, Any]) -> dict[str, Scalar]:
    """What a request asks of the model that decides how much it may answer; only what it says.

    ``extra-parameters`` (in older pages ``extra-params``) tells what becomes of parameters that the API does not know:
    those of vLLM reach the model unless they are dropped.
    """
    extra = next((word(headers.get(name)) for name in ("extra-parameters", "extra-params") if headers.get(name)), None) if headers else None
    inner = request.get("extra_body")
    known = {**inner, **request} if isinstance(inner, dict) else request
    is_passed = extra != "drop"
    return {
        "choices": small(known.get("n")),
        "best_of": small(known.get("best_of")),
        "max_tokens": _first_limit(known),
        "ignore_eos": True if is_passed and known.get("ignore_eos") in (True, "true", "True") else None,
        "beam_search": True if is_passed and known.get("use_beam_search") in (True, "true", "True") else None,
        "extra_parameters": extra,
    }


def _first_limit(known: Mapping[str, Any]) -> int | None:
    for name in _LIMIT_NAMES:
        value = small(known.get(name))
        if value:
            return value
    return None


# --- places and traces -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """What an address of Azure says about where a call went; None where it does not."""

    workspace: str | None = None
    endpoint: str | None = None
    deployment: str | None = None


def place(url: Any) -> Place:
    """The place that an address (with or without a scheme) names; what else it holds may be a secret and is not looked at."""
    if not isinstance(url, str) or len(url) > 4096:
        return _NOWHERE
    # Addresses are alike; one that may hold a secret is not remembered.
    return _placed(url) if "?" in url or "@" in url or len(url) > MAX_NAME else _known_place(url)


def _placed(url: str) -> Place:
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return _NOWHERE
    in_path = _DEPLOYMENT_PATH.search(parts.path)
    deployment = label(unquote(in_path[1])) if in_path else None
    if found := _SERVERLESS_HOST.match(host) or _MANAGED_HOST.match(host):
        return Place(endpoint=found[1], deployment=deployment)
    if found := _ACCOUNT_HOST.match(host):
        return Place(workspace=found[1], deployment=deployment)
    return Place(deployment=deployment)


_NOWHERE = Place()
_known_place = functools.lru_cache(maxsize=4096)(_placed)


def is_managed(url: Any) -> bool:
    """Whether the address is one of managed compute, whose deployments are told apart by a header."""
    return isinstance(url, str) and ".inference.ml.azure.com" in url.lower()


def endpoint_name(said: str | None) -> str | None:
    """An endpoint's name, also where its address was written in its place (``https://<name>.<region>.inference.ai.azure.com``)."""
    return said if said is None or "." not in said else place(said).endpoint or said


def trace(parent: Any) -> dict[str, Scalar]:
    """Trace and span of a W3C ``traceparent``; nothing where it is none."""
    found = _TRACE_PARENT.match(parent) if isinstance(parent, str) else None
    if found is None:
        return {}
    return {"trace_id": found[1], "span_id": found[2]}


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
    cache_write: int | None = None

    @property
    def is_zero(self) -> bool:
        return self.input == 0 and self.output == 0

    @property
    def total_reported(self) -> int | None:
        """The total, where the counts do not say the same."""
        if self.flags & Flag.TOTAL_MISMATCH or self.input is None or self.output is None:
            return self.total
        return None

    def settle(self) -> None:
        """Fill the count that the total leaves no choice about, and leave out subsets that exceed their whole."""
        _derive(self)
        if self.cached is not None and (self.input is None or self.cached > self.input):
            self.flags |= Flag.NONE if self.input is None else Flag.SUBSET_EXCEEDS_TOTAL
            self.cached = None
        if self.cache_write is not None and (self.input is None or self.cache_write > self.input):
            self.flags |= Flag.NONE if self.input is None else Flag.SUBSET_EXCEEDS_TOTAL
            self.cache_write = None
        if self.reasoning is not None and (self.output is None or self.reasoning > self.output):
            self.flags |= Flag.NONE if self.output is None else Flag.SUBSET_EXCEEDS_TOTAL
            self.reasoning = None

    def judge(self, status: Status, status_code: int | None, *, is_billable: bool = True) -> None:
        """Remark on counts that are missing or zero where a call of this outcome has some."""
        is_refused = status_code is not None and status_code >= 400
        was_answered = is_billable and (status in {Status.SUCCESS, Status.INCOMPLETE} or (status is Status.FILTERED and not is_refused))
        if self.input is None or self.output is None:
            self.quality = Quality.MISSING if was_answered else Quality.REPORTED
            if was_answered:
                self.flags |= Flag.USAGE_MISSING
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
    of_input = part(usage, "prompt_tokens_details", "input_tokens_details")
    of_output = part(usage, "completion_tokens_details", "output_tokens_details")
    if of_input:
        found.cached = Counter(of_input, count)("cached_tokens")
    if of_output:
        found.reasoning = Counter(of_output, count)("reasoning_tokens")
    if found.cached is None:
        found.cached = count("cached_input_tokens")
    if found.reasoning is None:
        found.reasoning = count("reasoning_output_tokens")
    # For the receipt only, and only where something was written.
    found.cache_write = (
        (of_input and Counter(of_input, count)("cache_write_tokens", "cache_creation_tokens"))
        or count("cache_write_input_tokens", "cache_creation_input_tokens")
        or None
    )
    if operation is Operation.EMBEDDINGS and found.output is None:
        found.output = 0
    found.settle()
    if count.flags:
        found.flags |= count.flags
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
        for field in names:
            value = self.values.get(field)
            if value is not None:
                break
        else:
            return None
        if type(value) is int and 0 <= value <= MAX_COUNT:
            return value
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
