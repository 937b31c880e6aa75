"""The native usage event of ``POST /v1/usage``: strict, because its senders wrote it for us.

The whole body is decoded in one pass; only a body with a fault in it is taken apart and judged item by item, by the
same decoder, so that both ways know one set of rules. Whether a time lies in the future is left to ingest, which
knows the time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, overload

import msgspec
import numpy as np
from msgspec import Meta

from collector.capture import bodies
from collector.capture.columns import MOST_SUMMED, STATUS_CODE_OF_WORD, Array, EventColumns, Said, coded, short_ids_of
from collector.capture.event import MAX_COUNT, CapturedEvent, Defaults, ErrorClass, Item, Refusal
from models.columns import canonical_json
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
_C1 = re.compile(rb"\xc2[\x80-\x9f]")
# Fewer events than this are not worth their columns.
_FEWEST_COLUMNS = 100
# Looking a member up on its enum class costs as much as a dictionary entry, for every event.
_SUCCESS, _INCOMPLETE, _FILTERED = Status.SUCCESS, Status.INCOMPLETE, Status.FILTERED
_UNANSWERED = frozenset({Status.ERROR.value, Status.THROTTLED.value})
_STATUS: dict[str, Status] = {status.value: status for status in Status}
_OPERATION: dict[str, Operation] = {operation.value: operation for operation in Operation}
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
    operation: Literal["chat", "text_completion", "embeddings", "fine_tuning", "other"] | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cached_input_tokens: _Count | None = None
    reasoning_output_tokens: _Count | None = None
    choices: _Count | None = None
    best_of: _Count | None = None
    max_tokens: _Count | None = None
    status: Literal["success", "error", "throttled", "filtered", "incomplete"] | None = None
    finish_reason: _Name | None = None
    throttled_by: Literal["azure", "gateway", "client"] | None = None
    billable: bool | None = None
    ratelimit_remaining_tokens: _Remaining | None = None
    ratelimit_remaining_requests: _Remaining | None = None
    ratelimit_limit_tokens: _Remaining | None = None
    ratelimit_limit_requests: _Remaining | None = None
    http_status: Annotated[int, Meta(ge=0, le=999)] | None = None
    duration_ms: _Count | None = None
    stream: bool | None = None
    application: _Name | None = None
    team: _Name | None = None
    user: _Name | None = None
    tags: Annotated[dict[_Name, _Name], Meta(max_length=MAX_TAGS)] | None = None
    response_id: _Name | None = None
    request_id: _Name | None = None


def event_schema() -> dict[str, Any]:
    """An event as JSON Schema, made from what the decoder itself checks."""
    _, shapes = msgspec.json.schema_components([_Sent])
    said: dict[str, Any] = shapes["_Sent"]
    fields = {name: {key: value for key, value in one.items() if key != "default"} for name, one in said["properties"].items()}
    return {"type": "object", "properties": fields, "required": said["required"], "additionalProperties": False, "description": said["description"]}


_ONE = msgspec.json.Decoder(_Sent)
_MANY = msgspec.json.Decoder(list[_Sent])
_SYNTAX = msgspec.json.Decoder(msgspec.Raw)


class _Items(Sequence[Item]):
    """The events of a large, clean body: as columns for who takes them together, one by one for who asks for one.

    What was decoded is let go, being several times the body, and decoded again for the few that are asked for.
    """

    def __init__(self, sent: Sequence[_Sent], defaults: Defaults, *, again: Callable[[], Sequence[_Sent]]) -> None:
        self._length = len(sent)
        self._again = again
        self._decoded: Sequence[_Sent] | None = None
        self._defaults = defaults
        self.columns = _columns(sent, defaults)

    def __len__(self) -> int:
        return self._length

    @property
    def _sent(self) -> Sequence[_Sent]:
        if self._decoded is None:
            self._decoded = self._again()
        return self._decoded

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        if isinstance(place, slice):
            return _captured(self._sent[place], self._defaults, is_plain=True)
        return _captured((self._sent[place],), self._defaults, is_plain=True)[0]


def capture(body: bytes, *, media_type: str | None, defaults: Defaults) -> Sequence[Item]:
    """The items of a native body: one event, an array of them, or one per line.

    A body that is not JSON at all raises ``InvalidInput("malformed")``; every other fault is the verdict on one item.
    """
    sent = _decode_whole(body, media_type)
    if sent is not None:
        is_plain = _is_plain(body)
        if is_plain and len(sent) >= _FEWEST_COLUMNS:
            return _Items(sent, defaults, again=lambda: _decode_whole(body, media_type) or ())
        return _captured(sent, defaults, is_plain=is_plain)
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
        said = str(fault)
        # A hostile body's hundred thousand faults are one object; a complaint as long as a body is not remembered.
        return _same_refusal(said) if len(said) < 200 else _refusal(said)
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


_same_refusal = lru_cache(maxsize=1_000)(_refusal)


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
    return b"\\" not in body and b"\x7f" not in body and (body.isascii() or not _C1.search(body))


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
    operation = _CHAT if sent.operation is None else _OPERATION[sent.operation]
    status = _SUCCESS if sent.status is None else _STATUS[sent.status]
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
    if sent.ratelimit_limit_tokens is not None and sent.ratelimit_limit_tokens >= 0:
        found["ratelimit_limit_tokens"] = sent.ratelimit_limit_tokens
    if sent.ratelimit_limit_requests is not None and sent.ratelimit_limit_requests >= 0:
        found["ratelimit_limit_requests"] = sent.ratelimit_limit_requests
    return found


# -- by columns ---------------------------------------------------------------------------------------


def _columns(sent: Sequence[_Sent], defaults: Defaults) -> EventColumns | None:
    """What ``_one`` makes of each event, for all of them at once; what it would remark on, or refuse, is in ``rest``."""
    (
        ids, times_said, started_said, source, workspace, deployment, endpoint, model, fine_tuned, operation, inputs, outputs, cached, reasoning,
        choices, best_of, max_tokens, status, finish_reason, throttled_by, billable, left_tokens, left_requests, limit_tokens, limit_requests, http_status, duration_ms, stream,
        application, team, user, tags, response_id, request_id,
    ) = zip(*map(msgspec.structs.astuple, sent), strict=True)  # fmt: skip
    times = _instants(times_said)
    is_plain = times >= EARLIEST
    started: list[int | None] = [None] * len(sent)
    if _is_said(started_said):
        for place, text in enumerate(started_said):
            if text is not None:
                try:
                    at = _micros(text, "started_at")
                except InvalidInput:
                    is_plain[place] = False
                else:
                    started[place] = at if at <= times[place] else None
    if None in inputs or None in outputs:
        for place, (asked, answered, how) in enumerate(zip(inputs, outputs, status, strict=True)):
            if (asked is None or answered is None) and how not in _UNANSWERED:
                is_plain[place] = False
    for part, whole in ((cached, inputs), (reasoning, outputs)):
        if _is_said(part):
            for place, (of, all_of) in enumerate(zip(part, whole, strict=True)):
                if of is not None and (all_of is None or of > all_of):
                    is_plain[place] = False
    for counts in (inputs, outputs):
        if max(filter(None, counts), default=0) > MOST_SUMMED:
            is_plain &= np.array([(count or 0) <= MOST_SUMMED for count in counts], bool)
    texts = [None if one is None else canonical_json(one) if one else "{}" for one in tags] if _is_said(tags) else tags
    codes, keys = coded(zip(source, workspace, endpoint, deployment, model, operation, fine_tuned, application, team, texts, strict=True))
    details = _packed(
        len(sent),
        {
            "best_of": best_of,
            "choices": choices,
            "finish_reason": finish_reason,
            "http_status": http_status,
            "max_tokens": max_tokens,
            "ratelimit_limit_requests": _known(limit_requests),
            "ratelimit_limit_tokens": _known(limit_tokens),
            "ratelimit_remaining_requests": _known(left_requests),
            "ratelimit_remaining_tokens": _known(left_tokens),
            "stream": stream,
            "throttled_by": throttled_by,
            "user": user if defaults.user is None else [name or defaults.user for name in user],
        },
    )
    zeros = np.zeros(len(sent), np.int64)
    columns = EventColumns(
        index=np.arange(len(sent)),
        ids=list(ids),
        short_ids=short_ids_of(ids),
        times=times,
        codes=codes,
        said=[_said(key, defaults) for key in keys],
        status=np.array([0 if how is None else STATUS_CODE_OF_WORD[how] for how in status], np.int64),
        billable=np.array([one is not False for one in billable], bool),
        inputs=list(inputs),
        outputs=list(outputs),
        cached=list(cached),
        reasoning=list(reasoning),
        quality=zeros,
        flags=zeros,
        started=started,
        durations=list(duration_ms),
        response_ids=_texts(response_id),
        request_ids=_texts(request_id),
        details=details,
        rest=[],
    )
    if not is_plain.all():
        columns = columns.only(is_plain)
    return columns


def _is_said(values: Sequence[object]) -> bool:
    return values.count(None) < len(values)


def _texts(values: Sequence[str | None]) -> list[str | None]:
    return [text or None for text in values] if "" in values else list(values)


def _packed(count: int, columns: dict[str, Sequence[Any]]) -> list[str | None]:
    """The details of many events as ``split_details`` would store them; the same few things are said again and again."""
    said = {name: values for name, values in columns.items() if _is_said(values)}
    if not said:
        return [None] * count
    names = list(said)
    texts: dict[tuple[Any, ...], str | None] = {}
    packed: list[str | None] = []
    for row in zip(*said.values(), strict=True):
        # True and 1 are one key of a dictionary, but stream is a column of booleans only.
        text = texts.get(row, "")
        if text == "":
            found = {name: value for name, value in zip(names, row, strict=True) if value is not None and value != ""}
            text = texts[row] = canonical_json(found) if found else None
        packed.append(text)
    return packed


def _known(remaining: Sequence[int | None]) -> Sequence[int | None]:
    return [None if left is None or left < 0 else left for left in remaining] if _is_said(remaining) else remaining


def _said(key: tuple[Any, ...], defaults: Defaults) -> Said:
    source, workspace, endpoint, deployment, model, operation, fine_tuned, application, team, tags = key
    endpoint, deployment = endpoint or None, deployment or None
    if endpoint is None and deployment is None:
        endpoint, deployment = defaults.endpoint, defaults.deployment
    return Said(
        source or defaults.source,
        workspace or defaults.workspace,
        endpoint or "",
        deployment or "",
        model or defaults.model or "",
        operation or Operation.CHAT.value,
        fine_tuned is True,
        application or defaults.application or "",
        team or defaults.team or "",
        tags or "{}",
        True,
    )


_YEAR, _MONTH, _DAY, _HOUR, _MINUTE, _SECOND = (0, 4), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19)
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


def _instants(texts: Sequence[str]) -> Array:
    """RFC 3339 instants as microseconds, all at once where they are written alike; -1 for what is none."""
    width = len(texts[0])
    whole = "".join(texts)
    if 20 <= width <= 27 and width != 21 and len(whole) == width * len(texts) and whole.isascii() and set(map(len, texts)) == {width}:
        found = _alike(np.frombuffer(whole.encode(), np.uint8).reshape(-1, width))
        if found is not None:
            return found
    times = np.empty(len(texts), np.int64)
    for place, text in enumerate(texts):
        try:
            times[place] = _micros(text, "time")
        except InvalidInput:
            times[place] = -1
    return times


def _alike(signs: Array) -> Array | None:
    """Instants such as 2026-11-20T10:00:00.123Z, a row each; None where one of them is anything else."""
    width = signs.shape[1]
    marks = (4, 7, 10, 13, 16, *([19] if width > 20 else []), width - 1)
    if (signs[:, marks] != np.frombuffer(b"--T::" + (b"." if width > 20 else b"") + b"Z", np.uint8)).any():
        return None
    digits = (signs - 48).astype(np.int64)
    if (digits[:, [place for place in range(width) if place not in marks]] > 9).any():
        return None

    def number(span: tuple[int, int]) -> Array:
        total: Array = np.zeros(len(signs), np.int64)
        for place in range(*span):
            total = total * 10 + digits[:, place]
        return total

    year, month, day, hour, minute, second = map(number, (_YEAR, _MONTH, _DAY, _HOUR, _MINUTE, _SECOND))
    if ((month < 1) | (month > 12)).any():
        return None
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    if ((year < 1970) | (day < 1) | (day > _MONTH_DAYS[month] + ((month == 2) & leap)) | (hour > 23) | (minute > 59) | (second > 59)).any():
        return None
    days = (year * 10_000 + month * 100 + day).tolist()
    known = {one: (datetime(one // 10_000, one // 100 % 100, one % 100, tzinfo=UTC) - _EPOCH).days for one in set(days)}
    fraction: Array = number((20, width - 1)) * 10 ** (26 - (width - 1)) if width > 20 else np.zeros(len(signs), np.int64)
    seconds = np.array([known[one] for one in days], np.int64) * 86_400 + hour * 3600 + minute * 60 + second
    instants: Array = seconds * 1_000_000 + fraction
    return instants


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
