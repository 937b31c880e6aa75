"""The native usage event of ``POST /v1/usage``: strict, because its senders wrote it for us.

The whole body is decoded in one pass; only a body with a fault in it is taken apart and judged item by item, by the
same decoder, so that both ways know one set of rules. Whether a time lies in the future is left to ingest, which
knows the time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from collector.capture import bodies
from collector.capture.event import MAX_COUNT, CapturedEvent, Defaults, ErrorClass, Item, Refusal
from models.errors import InvalidInput
from models.periods import parse_instant
from models.usage import Flag, Operation, Quality, Status

MAX_NAME = 256
MAX_TAGS = 64
# Nothing was metered before this service's models existed: an older time is a clock that was never set.
EARLIEST: Final = 1_672_531_200_000_000  # 2023-01-01T00:00:00Z

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What the parts of a time are worth: minutes as they are met ("2026-11-20T10:00:"), the rest ("07", ".123Z") at once.
_MINUTES: dict[str, int] = {}
_MINUTES_KEPT = 10_000
_SECONDS = {f"{second:02}": second * 1_000_000 for second in range(60)}
_FRACTIONS = {"Z": 0} | {f".{millis:03}Z": millis * 1000 for millis in range(1000)}
# C0, DEL and C1: invisible in every list a person reads, and NUL is refused by PostgreSQL.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Looking a member up on its enum class costs as much as a dictionary entry, for every event.
_SUCCESS, _INCOMPLETE, _FILTERED = Status.SUCCESS, Status.INCOMPLETE, Status.FILTERED
_CHAT, _EMBEDDINGS = Operation.CHAT, Operation.EMBEDDINGS
_REPORTED, _NO_FLAG = Quality.REPORTED, Flag.NONE

_Name = Annotated[str, Meta(max_length=MAX_NAME)]
_Id = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
# -1 is how Azure's headers say "unknown".
_Remaining = Annotated[int, Meta(ge=-1, le=MAX_COUNT)]


class _Sent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The event as its sender wrote it; null means not said."""

    id: _Id
    time: str
    started_at: str | None = None
    source: _Name | None = None
    workspace: _Name | None = None
    deployment: _Name | None = None
    endpoint: _Name | None = None
    model: _Name | None = None
    fine_tuned: bool | None = None
    operation: Operation | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cached_input_tokens: _Count | None = None
    reasoning_output_tokens: _Count | None = None
    choices: _Count | None = None
    best_of: _Count | None = None
    max_tokens: _Count | None = None
    status: Status | None = None
    finish_reason: _Name | None = None
    throttled_by: Literal["azure", "gateway", "client"] | None = None
    billable: bool | None = None
    ratelimit_remaining_tokens: _Remaining | None = None
    ratelimit_remaining_requests: _Remaining | None = None
    http_status: Annotated[int, Meta(ge=0, le=999)] | None = None
    duration_ms: _Count | None = None
    stream: bool | None = None
    application: _Name | None = None
    team: _Name | None = None
    user: _Name | None = None
    tags: Annotated[dict[_Name, _Name], Meta(max_length=MAX_TAGS)] | None = None
    response_id: _Name | None = None
    request_id: _Name | None = None


_ONE = msgspec.json.Decoder(_Sent)
_MANY = msgspec.json.Decoder(list[_Sent])
_SYNTAX = msgspec.json.Decoder(msgspec.Raw)


def capture(body: bytes, *, media_type: str | None, defaults: Defaults) -> list[Item]:
    """The items of a native body: one event, an array of them, or one per line.

    A body that is not JSON at all raises ``InvalidInput("malformed")``; every other fault is the verdict on one item.
    """
    sent = _decode_whole(body, media_type)
    if sent is not None:
        return _captured(sent, defaults, is_plain=_is_plain(body))
    found = bodies.pieces(body, media_type=media_type)
    is_single = len(found) == 1 and not bodies.is_lines(media_type) and bodies.trimmed(body)[:1] != b"["
    items: list[Item] = []
    for piece in found:
        judged = _decode_piece(piece)
        if isinstance(judged, Refusal):
            if is_single and judged.error == "malformed":
                raise InvalidInput(judged.detail, error="malformed")
            items.append(judged)
        else:
            items += _captured((judged,), defaults, is_plain=_is_plain(piece))
    return items


def _decode_whole(body: bytes, media_type: str | None) -> Sequence[_Sent] | None:
    """Every event of the body, or None where anything in it is at fault."""
    try:
        if bodies.is_lines(media_type):
            return _ONE.decode_lines(body)
        start = body.lstrip()[:1]
        if start == b"[":
            return _MANY.decode(body)
        if start == b"{":
            found = _ONE.decode_lines(body)
            return found if len(found) == 1 or b"\n" in body else None
    except (ValueError, RecursionError):
        pass
    return None


def _decode_piece(piece: bytes) -> _Sent | Refusal:
    try:
        _SYNTAX.decode(piece)  # first, so that what is cut off is not called by the name of its first wrong field
        return _ONE.decode(piece)
    except msgspec.ValidationError as fault:
        return _refusal(str(fault))
    except UnicodeDecodeError:
        return Refusal("malformed", "not UTF-8 text")
    except RecursionError:
        return Refusal("malformed", "JSON nested too deep; at most 32 levels are read")
    except msgspec.DecodeError as fault:
        if _has_lone_surrogate(piece):
            return Refusal("invalid_value", "a text holds half of a surrogate pair; send whole characters")
        return Refusal("malformed", f"not JSON: {str(fault)[:100]}")


def _refusal(said: str) -> Refusal:
    """The decoder's complaint in our classes, naming the field and never echoing a value."""
    complaint, _, place = said.partition(" - at ")
    unknown = re.match(r"Object contains unknown field `(.*)`", complaint, re.DOTALL)
    if unknown:
        return Refusal("schema_invalid", f"unknown field {unknown[1][:100]!r}; prompts, completions and fields of your own are not taken (use tags)")
    missing = re.match(r"Object missing required field `(\w+)`", complaint)
    if missing:
        return Refusal("schema_invalid", f"{missing[1]} is missing")
    field = "".join(re.findall(r"\$\.(\w+)", place)) or "the item"
    if complaint.startswith("Invalid enum value"):
        return Refusal("invalid_value", f"{field} is none of the values that it may have")
    error: ErrorClass = "invalid_value" if re.search(r"of length|[<>]=|out of range", complaint) else "schema_invalid"
    return Refusal(error, f"{field}: {complaint[:1].lower()}{complaint[1:]}")


def _has_lone_surrogate(piece: bytes) -> bool:
    """Whether the JSON is refused only because of an unpaired half of a surrogate pair (U+D800 to U+DFFF)."""
    # An escaped backslash before the u makes it plain text: pairs of characters are consumed together.
    mended = re.sub(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u]|\\u[dD][89a-fA-F][0-9a-fA-F]{2}", _without_surrogate, piece)
    if mended == piece:
        return False
    try:
        _SYNTAX.decode(mended)
    except (ValueError, RecursionError):
        return False
    return True


def _without_surrogate(match: re.Match[bytes]) -> bytes:
    return b"?" if len(match.group()) == 6 else match.group()


def _is_plain(body: bytes) -> bool:
    """Whether no text in the body can hold a control character: none is legal in JSON but as an escape, DEL or beyond ASCII."""
    return body.isascii() and b"\\" not in body and b"\x7f" not in body


def _captured(sent: Sequence[_Sent], defaults: Defaults, *, is_plain: bool) -> list[Item]:
    items: list[Item] = []
    add = items.append
    for event in sent:
        if not is_plain:
            unfit = _unfit_text(event)
            if unfit is not None:
                add(unfit)
                continue
        try:
            time = _micros(event.time, "time")
            if time < EARLIEST:
                add(Refusal("invalid_time", "time is before 2023; is the sender's clock set?"))
                continue
            started_at = None
            if event.started_at is not None:
                started_at = _micros(event.started_at, "started_at")
                if started_at > time:
                    started_at = None
        except InvalidInput as fault:
            add(Refusal("invalid_time", fault.message))
            continue
        add(_one(event, defaults, time, started_at))
    return items


def _one(sent: _Sent, defaults: Defaults, time: int, started_at: int | None) -> CapturedEvent:
    operation = sent.operation or _CHAT
    status = sent.status or _SUCCESS
    billable = sent.billable is not False
    input_tokens, output_tokens = sent.input_tokens, sent.output_tokens
    cached, reasoning = sent.cached_input_tokens, sent.reasoning_output_tokens
    quality, flags = _REPORTED, _NO_FLAG
    if output_tokens is None and input_tokens is not None and operation is _EMBEDDINGS:
        output_tokens = 0
    # A prompt filtered by an HTTP error was not answered and not billed: its counts are none, not unknown.
    if (
        (input_tokens is None or output_tokens is None)
        and billable
        and (status is _SUCCESS or status is _INCOMPLETE or (status is _FILTERED and (sent.http_status is None or sent.http_status < 400)))
    ):
        quality, flags = Quality.MISSING, Flag.USAGE_MISSING
    if cached is not None and (input_tokens is None or cached > input_tokens):
        # A part of an unknown whole cannot be priced either, but only one that is larger is a contradiction.
        flags |= _NO_FLAG if input_tokens is None else Flag.SUBSET_EXCEEDS_TOTAL
        cached = None
    if reasoning is not None and (output_tokens is None or reasoning > output_tokens):
        flags |= _NO_FLAG if output_tokens is None else Flag.SUBSET_EXCEEDS_TOTAL
        reasoning = None
    endpoint, deployment = sent.endpoint or None, sent.deployment or None
    if endpoint is None and deployment is None:
        endpoint, deployment = defaults.endpoint, defaults.deployment
    return CapturedEvent(
        sent.id,
        time,
        sent.source or defaults.source,
        sent.workspace or defaults.workspace,
        endpoint,
        deployment,
        sent.model or defaults.model,
        operation,
        sent.fine_tuned is True,
        sent.application or defaults.application,
        sent.team or defaults.team,
        sent.tags or {},
        status,
        billable,
        input_tokens,
        output_tokens,
        cached,
        reasoning,
        quality,
        flags,
        started_at,
        True,
        _details(sent, defaults),
    )


def _details(sent: _Sent, defaults: Defaults) -> dict[str, str | int | bool | None]:
    """What is kept for the receipt only, by name, where it was said."""
    found: dict[str, str | int | bool | None] = {}
    # Spelled out: a loop over names costs three times as much, for every event.
    if sent.duration_ms is not None:
        found["duration_ms"] = sent.duration_ms
    if sent.stream is not None:
        found["stream"] = sent.stream
    if sent.response_id:
        found["response_id"] = sent.response_id
    if sent.request_id:
        found["request_id"] = sent.request_id
    if sent.finish_reason:
        found["finish_reason"] = sent.finish_reason
    if sent.http_status is not None:
        found["http_status"] = sent.http_status
    if sent.user or defaults.user:
        found["user"] = sent.user or defaults.user
    if sent.choices is not None:
        found["choices"] = sent.choices
    if sent.best_of is not None:
        found["best_of"] = sent.best_of
    if sent.max_tokens is not None:
        found["max_tokens"] = sent.max_tokens
    if sent.throttled_by is not None:
        found["throttled_by"] = sent.throttled_by
    if sent.ratelimit_remaining_tokens is not None and sent.ratelimit_remaining_tokens >= 0:
        found["ratelimit_remaining_tokens"] = sent.ratelimit_remaining_tokens
    if sent.ratelimit_remaining_requests is not None and sent.ratelimit_remaining_requests >= 0:
        found["ratelimit_remaining_requests"] = sent.ratelimit_remaining_requests
    return found


def _unfit_text(sent: _Sent) -> Refusal | None:
    for field in (
        "id",
        "source",
        "workspace",
        "deployment",
        "endpoint",
        "model",
        "application",
        "team",
        "user",
        "finish_reason",
        "response_id",
        "request_id",
    ):
        text = getattr(sent, field)
        if text and _CONTROL.search(text):
            return Refusal("invalid_value", f"{field} holds a control character")
    if sent.tags and any("\0" in key or "\0" in value for key, value in sent.tags.items()):
        return Refusal("invalid_value", "tags hold a NUL character")
    return None


def _micros(text: str, what: str) -> int:
    """An RFC 3339 instant as microseconds since 1970; finer digits are cut."""
    # Events of a batch share their minutes, and seconds and milliseconds are few: three look-ups take a third of a parse.
    try:
        return _MINUTES[text[:17]] + _SECONDS[text[17:19]] + _FRACTIONS[text[19:]]
    except KeyError:
        return _micros_of(text, what)


def _micros_of(text: str, what: str) -> int:
    # The other usual ending of UTC (Python writes it), and the finer digits that no table holds.
    utc = text[:-6] + "Z" if text.endswith("+00:00") else text
    minute, second, fraction = _MINUTES.get(utc[:17]), _SECONDS.get(utc[17:19]), utc[20:-1]
    if minute is not None and second is not None and utc[-1] == "Z" and utc[19] == "." and len(utc) <= 64 and fraction.isdigit() and fraction.isascii():
        return minute + second + int(fraction[:6].ljust(6, "0"))
    since = parse_instant(text, what=what) - _EPOCH
    micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if utc[-1] == "Z" and utc[10] == "T":
        if len(_MINUTES) >= _MINUTES_KEPT:
            _MINUTES.clear()
        _MINUTES[utc[:17]] = micros // 60_000_000 * 60_000_000
    return micros
