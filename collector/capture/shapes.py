"""What a refused item looked like: names of fields and kinds of values, never a value.

A name is a field's own only if it reads like one: what looks like a secret or like text is masked too, because some
senders key objects by what must not be kept. Everything is bounded; what cannot be read has no shape.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from collector.capture import bodies
from models.errors import InvalidInput

_MOST_BYTES = 64 * 1024
_LONGEST_BODY, _MOST_COMMAS = 4 * 1024 * 1024, 100_000  # a large body is not gone through once more for a sample
_MOST_NAMES, _MOST_DEPTH = 60, 5
MASKED = "…"
_NAME = re.compile(r"[A-Za-z_$@][A-Za-z0-9_.:$@/-]{0,47}")
# Words and dots are short between their separators; keys and tokens are not, or mix letters and digits.
_PIECE = re.compile(r"[A-Za-z0-9]+")
_QUOTED = re.compile(r"(?<!\w)(['\"`])(.*)\1(?!\w)", re.DOTALL)
# Before a quote of these stands the sender's own name for something; any other may be a value.
_NAMED = re.compile(r"(?:unknown field|workspace|content type|content encoding|the header) \Z")
_RECORDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_ANY = msgspec.json.Decoder()


def is_name(text: str) -> bool:
    """Whether a text reads like the name of a field."""
    if not _NAME.fullmatch(text):
        return False
    pieces = _PIECE.findall(text)
    return all(len(piece) <= 24 and sum(sign.isdigit() for sign in piece) <= 4 for piece in pieces)


def safe_detail(detail: str) -> str:
    """A message without what it quotes of the sender's, unless that is a name."""
    found = _QUOTED.search(detail)
    if found and not (_NAMED.search(detail[: found.start()]) and is_name(found[2])):
        detail = detail[: found.start(2)] + MASKED + detail[found.end(2) :]
    return detail[:300]


def shape_at(body: bytes, place: int | None, *, media_type: str | None) -> Any:
    """The shape of the item at that place of a body; of the whole body where there is one item only. None where it cannot be told."""
    if len(body) > _LONGEST_BODY or body.count(b",") > _MOST_COMMAS:
        return None
    try:
        found = bodies.pieces(body, media_type=media_type)
        piece = found[place or 0] if len(found) > (place or 0) else found[0]
        if len(found) == 1 and piece[:1] == b"{":
            piece = _record(piece, place or 0)
        return _shape(_ANY.decode(piece), [_MOST_NAMES], 0) if len(piece) <= _MOST_BYTES else f"{len(piece)} bytes"
    except (ValueError, RecursionError, InvalidInput, IndexError):
        return None


def _record(piece: bytes, place: int) -> bytes:
    """A log's record of a body that wraps them in one object."""
    members = _RECORDS.decode(piece)
    return bytes(_LIST.decode(members["records"])[place]) if "records" in members else piece


def _shape(value: Any, left: list[int], depth: int) -> Any:
    match value:
        case dict():
            if depth >= _MOST_DEPTH:
                return "object"
            shapes: dict[str, Any] = {}
            for name, inner in value.items():
                if left[0] <= 0:
                    shapes[MASKED] = "more"
                    break
                left[0] -= 1
                shapes[name if is_name(name) else MASKED] = _shape(inner, left, depth + 1)
            return shapes
        case list():
            return f"array of {len(value)}"
        case bool():
            return "boolean"
        case None:
            return "null"
        case str():
            return "string"
        case int():
            return "integer"
        case _:
            return "number"
