"""Files of usage in any accepted format, from bytes to stored events: recognised by content, read in slices.

Lines are read a MiB at a time, so that a file may be larger than memory; a single document (an array, one
protobuf or JSON export, a stream of server-sent events) is read whole up to a limit. Lines of several formats may stand
in one file: each is judged by what it says. What an item means is the capture modules' matter.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from collector.capture import azure, bodies, cloudevents, envoy, helicone, langfuse, litellm, native, openai, otlp, portkey, values
from collector.capture.aggregates import Point
from collector.capture.event import Defaults, Item, Refusal
from collector.ingest import Batch, Ingest
from models.errors import InvalidInput

SLICE: Final = 1024 * 1024
# A single document is decoded at once; this is far above any export that is one.
MAX_DOCUMENT: Final = 256 * 1024 * 1024
MAX_LINE: Final = 16 * 1024 * 1024
# Events of one commit: beside an import a service has requests to answer.
MOST_TOGETHER: Final = 5_000
MOST_SHOWN: Final = 20
_LOOKED_AT = 64 * 1024
# Calls of a gateway's log whose counts were seen, for rows of their messages that come later.
_REMEMBERED = 200_000

_LINES, _JSON, _PROTOBUF, _SSE = "application/x-ndjson", "application/json", "application/x-protobuf", "text/event-stream"
_NATIVE_FIELDS = frozenset(
    {
        "id",
        "time",
        "started_at",
        "source",
        "workspace",
        "deployment",
        "endpoint",
        "model",
        "fine_tuned",
        "operation",
        "input_tokens",
        "output_tokens",
        "cached_input_tokens",
        "reasoning_output_tokens",
        "choices",
        "best_of",
        "max_tokens",
        "status",
        "finish_reason",
        "throttled_by",
        "billable",
        "ratelimit_remaining_tokens",
        "ratelimit_remaining_requests",
        "ratelimit_limit_tokens",
        "ratelimit_limit_requests",
        "http_status",
        "duration_ms",
        "stream",
        "application",
        "team",
        "user",
        "tags",
        "response_id",
        "request_id",
    }
)
_OTLP = {"resourceSpans": "otlp-traces", "resourceLogs": "otlp-logs", "resourceMetrics": "otlp-metrics"}
_ENVELOPE = frozenset({"response", "request"})
_OPENAI_OBJECTS = frozenset({"chat.completion", "text_completion", "chat.completion.chunk", "response", "list", "error"})
_ROW: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(slots=True)
class Outcome:
    """What became of one file."""

    name: str
    accepted: int = 0
    duplicates: int = 0
    ignored: int = 0
    witnesses: int = 0
    refused: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)  # of the first that were refused

    def summary(self) -> str:
        """One line for a person."""
        told = ", ".join(sorted(self.formats)) or "nothing"
        more = f", {self.ignored} were no usage" if self.ignored else ""
        more += f", {self.witnesses} kept as a witness" if self.witnesses else ""
        return f"{self.name} ({told}): {self.accepted} events stored, {self.duplicates} were there already{more}, {self.refused} refused"


@dataclass(frozen=True, slots=True)
class Reader:
    """What a file's items are handed to, and what is said for those that do not say it."""

    ingest: Ingest
    received_at: Callable[[], int]
    keep: Callable[[Sequence[Point]], object]  # witnesses of usage, which are no events
    defaults: Defaults
    format: str | None = None
    most_shown: int = MOST_SHOWN
    most_together: int = MOST_TOGETHER
    slice_size: int = SLICE


def load(path: Path, reader: Reader, progress: Callable[[int], None]) -> Outcome:
    """Store the usage of one file; ``progress`` takes the bytes of it that are done. Raises ``InvalidInput`` for what is none of the formats."""
    if reader.format is not None and reader.format not in FORMATS:
        raise InvalidInput(f"there is no usage format {reader.format[:40]!r}; it is one of {', '.join(FORMATS)}")
    outcome = Outcome(path.name)
    with path.open("rb") as raw, contextlib.ExitStack() as stack:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: IO[bytes] = _unpacked(stack, raw) if is_packed else raw
        try:
            for items, places in _read(stream, reader, outcome):
                _store(items, places, reader, outcome)
                progress(raw.tell())
        except (EOFError, zlib.error, gzip.BadGzipFile) as fault:
            raise InvalidInput(f"{path.name} is no whole gzip file: it is cut off or damaged ({outcome.accepted} events before that are stored)") from fault
    progress(path.stat().st_size)
    return outcome


def _unpacked(stack: contextlib.ExitStack, raw: IO[bytes]) -> IO[bytes]:
    stream = gzip.GzipFile(fileobj=raw)
    stack.callback(stream.close)
    return cast("IO[bytes]", stream)


def _store(items: Sequence[Item], places: Sequence[str], reader: Reader, outcome: Outcome) -> None:
    # Native events come as columns, and hold none.
    points = [item for item in items if isinstance(item, Point)] if isinstance(items, list) else []
    if points:
        reader.keep(points)
        outcome.witnesses += len(points)
    # Taken apart, columns would become events one by one; a slice of them is few enough as it is.
    step = reader.most_together if isinstance(items, list) or len(items) > 4 * reader.most_together else len(items)
    for start in range(0, len(items), step or 1):
        verdict = reader.ingest.accept(Batch(items if step == len(items) else items[start : start + step]))
        outcome.accepted += verdict.accepted
        outcome.duplicates += verdict.duplicates
        outcome.ignored += verdict.ignored
        for one in verdict.rejected:
            outcome.refused += 1
            if len(outcome.reasons) < reader.most_shown:
                outcome.reasons.append(f"{outcome.name}, {places[start + one.index]}: {one.error}: {one.detail}")
    outcome.ignored -= len(points)


# --- what a file is ----------------------------------------------------------------------------------------------

Read = tuple[Sequence[Item], Sequence[str]]


def _read(stream: IO[bytes], reader: Reader, outcome: Outcome) -> Iterator[Read]:
    """The items of the file, slice by slice, and where each of them stands."""
    start = stream.read(_LOOKED_AT)
    text = bodies.trimmed(start)
    stream.seek(0)
    if not text:
        return
    if reader.format in {None, "openai"} and openai.is_stream(text):
        yield _document(stream, "openai", _SSE, reader, outcome)
    elif (kind := otlp.binary_kind(start)) is not None and reader.format in {None, kind}:
        yield _document(stream, kind, _PROTOBUF, reader, outcome)
    elif text[:1] == b"[" or not _has_whole_first_line(stream, reader.slice_size):
        stream.seek(0)
        yield from _of_document(stream, reader, outcome)
    else:
        stream.seek(0)
        yield from _Lines(reader, outcome).read(stream)


def _has_whole_first_line(stream: IO[bytes], size: int) -> bool:
    """Whether the first line that is not blank is a value of its own, rather than the beginning of one, or no value at all."""
    line = b""
    while not line and (line := stream.readline(max(size, _LOOKED_AT))):
        line = bodies.trimmed(line)
    has_more = bool(stream.read(1))
    return has_more and (line[:1] != b"{" or _decoded(line) is not None)


def _decoded(piece: bytes) -> Any:
    try:
        return msgspec.json.decode(piece)
    except (ValueError, RecursionError):
        return None


def recognised(value: Any) -> str | None:
    """The format that an object is of, by what only that format says; None for none of them."""
    if isinstance(value, list):
        return next((found for one in value[:20] if isinstance(one, dict) and (found := recognised(one))), None)
    if not isinstance(value, dict):
        return None
    if "id" in value and value.keys() <= _NATIVE_FIELDS and _tells_native(value):
        return "native"
    for key, kind in _OTLP.items():
        if key in value:
            return kind
    for is_mine, kind in _MARKS:
        if is_mine(value):
            return kind
    # Misspelt ones are to be refused by the name of their field.
    return "native" if "id" in value and "time" in value else None


def _tells_native(value: Mapping[str, Any]) -> bool:
    return "time" in value or "input_tokens" in value or "output_tokens" in value


def _is_openai(value: Json) -> bool:
    return (
        "choices" in value
        or ("object" in value and value["object"] in _OPENAI_OBJECTS)
        or (bool(_ENVELOPE & value.keys()) and not azure.is_mine(value))
        or (isinstance(value.get("error"), dict) and "code" in value["error"])
    )


Json = dict[str, Any]
_MARKS: Final[Sequence[tuple[Callable[[Json], bool], str]]] = (
    (lambda value: "specversion" in value and "type" in value, "cloudevents"),
    (lambda value: "litellm_call_id" in value or ("call_type" in value and "startTime" in value) or {"event_group", "spend"} <= value.keys(), "litellm"),
    (langfuse.is_mine, "langfuse"),
    (helicone.is_mine, "helicone"),
    (portkey.is_mine, "portkey"),
    (envoy.is_mine, "envoy"),
    (_is_openai, "openai"),
    (azure.is_mine, "azure"),
)


# --- documents ---------------------------------------------------------------------------------------------------


def _of_document(stream: IO[bytes], reader: Reader, outcome: Outcome) -> Iterator[Read]:
    body = _whole(stream, outcome)
    kind = reader.format
    if kind is None:
        # Only its beginning decides; an array whose first items are broken is judged by the first that is not.
        pieces = bodies.pieces(body, media_type=_JSON)
        kind = next((found for piece in pieces[:1000] if (found := recognised(_decoded(piece)))), None)
        if kind is None:
            raise _unrecognised(outcome.name)
    yield _captured(body, kind, _JSON, reader, outcome)


def _document(stream: IO[bytes], kind: str, media_type: str, reader: Reader, outcome: Outcome) -> Read:
    return _captured(_whole(stream, outcome), kind, media_type, reader, outcome)


def _whole(stream: IO[bytes], outcome: Outcome) -> bytes:
    body = stream.read(MAX_DOCUMENT + 1)
    if len(body) > MAX_DOCUMENT:
        raise InvalidInput(f"{outcome.name} is one document of more than {MAX_DOCUMENT // 1024 // 1024} MiB; write it as one event a line")
    return body


def _captured(body: bytes, kind: str, media_type: str, reader: Reader, outcome: Outcome) -> Read:
    items = FORMATS[kind](body, media_type, reader)
    outcome.formats[kind] += len(items)
    return items, [f"item {index + 1}" for index in range(len(items))]


def _unrecognised(name: str) -> InvalidInput:
    return InvalidInput(f"{name} is in none of the formats that are read ({', '.join(FORMATS)}); if it is in one of them, say which with --format")


# --- lines -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Line:
    number: int
    text: bytes
    kind: str | None


class _Lines:
    """One value a line."""

    def __init__(self, reader: Reader, outcome: Outcome) -> None:
        self.reader = reader
        self.outcome = outcome
        self.kind = reader.format  # of lines that cannot be recognised: that of the line before
        self.counted: OrderedDict[Any, None] = OrderedDict()
        self.parts: list[_Line] = []
        self.waiting: list[_Line] = []

    def read(self, stream: IO[bytes]) -> Iterator[Read]:
        """The items of all lines, a slice at a time."""
        number = 1
        is_first = True
        while lines := stream.readlines(self.reader.slice_size):
            texts = [_Line(number + index, line.strip(), None) for index, line in enumerate(lines)]
            number += len(lines)
            if is_first:
                texts[0].text = bodies.trimmed(texts[0].text)
                is_first = False
            texts = [line for line in texts if line.text]
            yield from self._slice(texts)
        yield from self._rest()

    def _slice(self, lines: list[_Line]) -> Iterator[Read]:
        self._recognise(lines)
        group: list[_Line] = []
        for line in lines:
            if group and group[-1].kind != line.kind:
                yield self._items(group)
                group = []
            group.append(line)
        if group:
            yield self._items(group)

    def _recognise(self, lines: list[_Line]) -> None:
        for line in lines:
            if len(line.text) > MAX_LINE:
                raise InvalidInput(f"{self.outcome.name}, line {line.number}: longer than {MAX_LINE // 1024 // 1024} MiB")
            line.kind = self.reader.format or recognised(_decoded(line.text))
        known = next((line.kind for line in lines if line.kind), self.kind)
        if known is None:
            raise _unrecognised(self.outcome.name)
        for line in lines:
            # A broken line is refused in the words of the format around it.
            line.kind = known = line.kind or known
        self.kind = known

    def _items(self, lines: list[_Line]) -> Read:
        kind = lines[0].kind or ""
        if kind == "openai":
            lines = self._whole_streams(lines)
        if kind == "azure":
            lines = self._without_parts(lines)
        if not lines:
            return [], []
        self.outcome.formats[kind] += len(lines)
        if kind not in _MANY_A_LINE:
            items = FORMATS[kind](b"\n".join(line.text for line in lines), _LINES, self.reader)
            if len(items) == len(lines):
                return items, [f"line {line.number}" for line in lines]
        found: list[Item] = []
        places: list[str] = []
        for line in lines:
            items = self._of_line(kind, line.text)
            found += items
            places += [f"line {line.number}" if len(items) == 1 else f"line {line.number}, item {index + 1}" for index in range(len(items))]
        return found, places

    def _of_line(self, kind: str, text: bytes) -> Sequence[Item]:
        try:
            return FORMATS[kind](text, _JSON, self.reader)
        except InvalidInput as fault:
            return [_refusal(fault)]

    # -- values that take several lines ---------------------------------------------------------

    def _whole_streams(self, lines: list[_Line]) -> list[_Line]:
        """Chunks of a stream, one a line, taken together as the one call that they are; the last is kept until it is over."""
        found: list[_Line] = []
        for line in lines:
            value = values.loaded(line.text) if b'"chat.completion.chunk"' in line.text else None
            if not isinstance(value, dict) or value.get("object") != "chat.completion.chunk":
                found += self._stream()
                found.append(line)
                continue
            if self.waiting and value.get("id") and self._waiting_id() not in ("", value["id"]):
                found += self._stream()
            self.waiting.append(line)
            if sum(len(one.text) for one in self.waiting) > MAX_LINE:
                found += self._stream()
        return found

    def _waiting_id(self) -> str:
        said = (value.get("id") for line in self.waiting if isinstance(value := values.loaded(line.text), dict))
        return next((one for one in said if isinstance(one, str) and one), "")

    def _stream(self) -> list[_Line]:
        waiting, self.waiting = self.waiting, []
        return [_Line(waiting[0].number, b"[" + b",".join(line.text for line in waiting) + b"]", "openai")] if waiting else []

    def _without_parts(self, lines: list[_Line]) -> list[_Line]:
        """The lines without rows of a gateway's log that hold only messages: the row with the counts may stand in another slice."""
        found: list[_Line] = []
        for line in lines:
            value = _decoded(line.text)
            call = azure.call_of(value) if isinstance(value, dict) else None
            if call is None:
                found.append(line)
            elif call[1]:
                self.counted[call[0]] = None
                if len(self.counted) > _REMEMBERED:
                    self.counted.popitem(last=False)
                found.append(line)
            elif call[0] in self.counted or len(self.parts) >= MOST_TOGETHER:
                self.outcome.ignored += 1
            else:
                # What its messages say is not kept, here or anywhere.
                row = {name: said for name, said in value.items() if "messages" not in name.lower()}
                self.parts.append(_Line(line.number, json.dumps(row).encode(), "azure"))
        return found

    def _rest(self) -> Iterator[Read]:
        """What waited for the end of the file."""
        if stream := self._stream():
            yield self._items_of_rest("openai", stream)
        parts = [line for line in self.parts if (azure.call_of(_decoded(line.text)) or ((), False))[0] not in self.counted]
        self.outcome.ignored += len(self.parts) - len(parts)
        if parts:
            yield self._items_of_rest("azure", parts)

    def _items_of_rest(self, kind: str, lines: list[_Line]) -> Read:
        self.outcome.formats[kind] += len(lines)
        if kind == "openai":
            items: Sequence[Item] = self._of_line(kind, lines[0].text)
        else:
            items = FORMATS[kind](b"\n".join(line.text for line in lines), _LINES, self.reader)
        return items, [f"line {line.number}" for line in lines]


def _refusal(fault: InvalidInput) -> Refusal:
    # A whole-body problem of one line is that line's.
    return Refusal(fault.error if fault.error in _CLASSES else "schema_invalid", fault.message)  # type: ignore[arg-type]  # looked up


_CLASSES = frozenset({"malformed", "schema_invalid", "invalid_value", "invalid_time", "unsupported_version", "unsupported_media_type", "too_large"})

# --- formats -----------------------------------------------------------------------------------------------------

Capture = Callable[[bytes, str, Reader], Sequence[Item]]


def _of(capture: Callable[..., Sequence[Item]]) -> Capture:
    def captured(body: bytes, media_type: str, reader: Reader) -> Sequence[Item]:
        return capture(body, media_type=media_type, headers={}, defaults=reader.defaults, received_at=reader.received_at())

    return captured


def _native(body: bytes, media_type: str, reader: Reader) -> Sequence[Item]:
    return native.capture(body, media_type=media_type, defaults=reader.defaults)


def _otlp(capture: Callable[..., Sequence[Item]]) -> Capture:
    def captured(body: bytes, media_type: str, reader: Reader) -> Sequence[Item]:
        return capture(body, media_type=_PROTOBUF if media_type == _PROTOBUF else _JSON, defaults=reader.defaults, received_at=reader.received_at())

    return captured


FORMATS: Final[Mapping[str, Capture]] = {
    "native": _native,
    "openai": _of(openai.capture),
    "litellm": _of(litellm.capture),
    "otlp-traces": _otlp(otlp.capture_traces),
    "otlp-logs": _otlp(otlp.capture_logs),
    "otlp-metrics": _otlp(otlp.capture_metrics),
    "cloudevents": _of(cloudevents.capture),
    "azure": _of(azure.capture),
    "helicone": _of(helicone.capture),
    "portkey": _of(portkey.capture),
    "langfuse": _of(langfuse.capture),
    "envoy": _of(envoy.capture),
}
# A line of these may hold several items, as an exporter's batch or a page of an API does.
_MANY_A_LINE = frozenset({"otlp-traces", "otlp-logs", "otlp-metrics", "langfuse"})

__all__ = ["FORMATS", "Outcome", "Reader", "load", "recognised"]
