"""Cuts a request body into its items: one JSON value, an array, or lines of JSON (NDJSON).

Owns nothing of what an item means. A cut never depends on whether the items are good, so that a bad one
cannot cost its neighbours: where the JSON decoder gives up (nesting, a broken item), brackets are counted instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import msgspec

from models.errors import InvalidInput

# Above what 16 MiB of real events hold (one of 84 bytes says next to nothing); what lies beyond is an attack on memory.
MAX_ITEMS = 200_000
# A nesting that nobody means, and that would be counted for as long as the body is.
_MAX_DEPTH = 200_000

_BOM = b"\xef\xbb\xbf"
_LINE_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonl", "application/jsonlines"})
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},"]', re.DOTALL)
_RAW_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_LINE = re.compile(rb"[^\s][^\n]*")


class _Anything(msgspec.Struct, gc=False):
    """An object, whatever it says."""


_ONLY_OBJECTS = msgspec.json.Decoder(list[_Anything])
_OBJECTS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_RAW = msgspec.json.Decoder(msgspec.Raw)


def base_type(media_type: str | None) -> str:
    """The media type without its parameters, lower case ('' where none was said)."""
    return (media_type or "").partition(";")[0].strip().lower()


def is_lines(media_type: str | None) -> bool:
    """Whether the media type says one JSON value per line."""
    return base_type(media_type) in _LINE_TYPES


def trimmed(body: bytes) -> bytes:
    """The body without a byte order mark and the white space around it."""
    return body.removeprefix(_BOM).strip()


def pieces(body: bytes, *, media_type: str | None) -> list[bytes]:
    """The items of the body, in order, each still to be decoded; blank lines are no items.

    An array that never closes is ``malformed`` as a whole. Lines are recognised by the media type or, since many
    senders say application/json for everything, by a body that is no single value but has a line that is an object.
    """
    text = trimmed(body)
    if is_lines(media_type) and not _is_one_array(text):
        found = _lines(text)
    elif not text:
        raise InvalidInput("the body is empty; send a JSON object, an array of objects or one object per line", error="malformed")
    elif text[:1] == b"[":
        found = _elements(text)
    elif b"\n" in text and not _is_json(text) and any(map(_is_object, _every_line(text))):
        found = _lines(text)
    else:
        found = [text]
    if len(found) > MAX_ITEMS:
        raise _too_many()
    return found


def _too_many() -> InvalidInput:
    return InvalidInput(f"the body holds more than {MAX_ITEMS} items; send it in parts", error="too_large")


def _is_one_array(text: bytes) -> bool:
    """Whether "one value per line" was said of a single array of events: senders keep their content type when they begin to batch."""
    if text[:1] != b"[" or b"\n" in text:
        return False
    try:
        return bool(_OBJECTS.decode(text))
    except (ValueError, RecursionError):
        return False


def _lines(text: bytes) -> list[bytes]:
    if text.count(b"\n") < MAX_ITEMS:
        return [line for line in map(bytes.strip, text.split(b"\n")) if line]
    # Millions of lines would take ten times the body before they were counted.
    return list(islice(_every_line(text), MAX_ITEMS + 1))


def _every_line(text: bytes) -> Iterator[bytes]:
    return (found.group().rstrip() for found in _LINE.finditer(text))


def _is_json(text: bytes) -> bool:
    try:
        _RAW.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_object(line: bytes) -> bool:
    return line.lstrip()[:1] == b"{" and _is_json(line)


def _elements(text: bytes) -> list[bytes]:
    try:
        if text.count(b",") >= MAX_ITEMS:
            # So many commas may part as many elements: they are taken at once only if they are objects, of which no more begin.
            if text.count(b"{") > MAX_ITEMS:
                return _elements_by_brackets(text)
            _ONLY_OBJECTS.decode(text)
        return [bytes(raw) for raw in _RAW_ITEMS.decode(text)]
    except (ValueError, RecursionError):
        return _elements_by_brackets(text)


def _elements_by_brackets(text: bytes) -> list[bytes]:
    """The elements of an array whose items may be broken inside, as long as brackets and quotes pair up."""
    found: list[bytes] = []
    depth, start = 0, 1
    for token in _STRUCTURE.finditer(text):
        match token.group()[:1]:
            case b"[" | b"{":
                depth += 1
                if depth > _MAX_DEPTH:
                    break
            case b"]" | b"}":
                depth -= 1
                if depth == 0 and token.end() == len(text):
                    return [*found, text[start : token.start()].strip()]
            case b"," if depth == 1:
                found.append(text[start : token.start()].strip())
                start = token.end()
                if len(found) > MAX_ITEMS:
                    raise _too_many()
            case _ if len(token.group()) == 1 and token.group() != b",":
                break  # a quote that never closes
        if depth <= 0:
            break
    raise InvalidInput("the body is not a JSON array: its brackets or quotes do not pair up (was it cut off?)", error="malformed")
