"""Cutting a body into its items, whatever the items are worth."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.capture import bodies
from collector.capture.bodies import base_type, is_lines, pieces
from models.errors import InvalidInput


@pytest.mark.parametrize(
    ("body", "media_type", "expected"),
    [
        (b'{"a": 1}', None, [b'{"a": 1}']),
        (b'{\n "a": 1\n}', "application/json", [b'{\n "a": 1\n}']),
        (b'[1, {"a": [2, 3]}, "x,]"]', None, [b"1", b'{"a": [2, 3]}', b'"x,]"']),
        (b"[]", None, []),
        (b'{"a": 1}\n\n{"a": 2}\r\n', "application/json", [b'{"a": 1}', b'{"a": 2}']),
        (b'{"a": 1}\nbroken', "application/json", [b'{"a": 1}', b"broken"]),
        (b'broken\n{"a": 2}', "application/json", [b"broken", b'{"a": 2}']),
        (b'{"a":\nbroken', "application/json", [b'{"a":\nbroken']),
        (b"[1]\n[2]\n", "application/x-ndjson", [b"[1]", b"[2]"]),
        (b"", "application/jsonl; charset=utf-8", []),
        (b"\xef\xbb\xbf[1]", None, [b"1"]),
        # Items that the decoder cannot pass over.
        (b'[{"a": nope}, "q\\"]", [{"b": NaN}], 4]', None, [b'{"a": nope}', b'"q\\"]"', b'[{"b": NaN}]', b"4"]),
        (b'[1,,"\xff"]', None, [b"1", b"", b'"\xff"']),
    ],
)
def test_a_body_is_cut_into_its_items(body: bytes, media_type: str | None, expected: list[bytes]) -> None:
    assert pieces(body, media_type=media_type) == expected


def test_nesting_does_not_stop_the_cut() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert pieces(b"[1," + deep + b",2]", media_type=None) == [b"1", deep, b"2"]


@pytest.mark.parametrize("item", [b"1", b"{}", b'{"a":[1,2]}', b'"x,{"'])
def test_more_items_than_real_usage_has_are_refused_before_they_are_made(item: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_ITEMS", 5)
    assert pieces(b"[" + b",".join([item] * 5) + b"]", media_type=None) == [item] * 5
    assert pieces(b" \n".join([item] * 5) + b"\n\n\n\n\n\n", media_type="application/x-ndjson") == [item] * 5
    for body, media_type in ((b"[" + b",".join([item] * 6) + b"]", None), (b"\n\n".join([item] * 6), "application/x-ndjson")):
        with pytest.raises(InvalidInput, match="more than 5 items") as fault:
            pieces(body, media_type=media_type)
        assert fault.value.error == "too_large"


@pytest.mark.parametrize("body", [b"", b" \n ", b"[", b"[1", b"[1]]", b"[1]x", b'["a]', b"[{]", b"[nope]]"])
def test_what_has_no_end_is_malformed(body: bytes) -> None:
    with pytest.raises(InvalidInput) as fault:
        pieces(body, media_type=None)
    assert fault.value.error == "malformed"


def test_the_media_type_is_read_without_its_parameters() -> None:
    assert base_type("Application/JSON; charset=utf-8") == "application/json"
    assert base_type(None) == ""
    assert is_lines("application/X-NDJSON;v=1")
    assert not is_lines("application/json")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8), max_size=6)
)
def test_a_broken_item_leaves_the_others_as_they_were(values: list[Any]) -> None:
    written = [json.dumps(value) for value in values]
    cut = pieces(("[" + ", ".join([*written, "nope"]) + "]").encode(), media_type=None)
    assert [json.loads(piece) for piece in cut[:-1]] == values
    assert cut[-1] == b"nope"
