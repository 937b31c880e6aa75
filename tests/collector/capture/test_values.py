"""The rules for the values of foreign formats, where no format's own test shows them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from collector.capture import values
from collector.capture.event import Refusal
from collector.capture.values import Tokens, Unfit
from models.usage import Flag, Operation, Quality, Status


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-10, "0.0000000001"), (0.1, "0.1"), ("6.4E-5", "0.000064"), ("12.50", "12.50"), (3, "3"), ("1e999", None), (1e300, None), ("NaN", None), ("-1", None)],
)
def test_an_amount_is_plain_digits_or_nothing(value: Any, text: str | None) -> None:
    assert values.amount(value) == text


@pytest.mark.parametrize(
    ("value", "left"), [("7", 7), (" 7 ", 7), (7, 7), (-1, None), ("-1", None), ("", None), (None, None), (True, None), (7.0, None), ("9" * 40, None)]
)
def test_what_is_left_of_a_limit(value: Any, left: int | None) -> None:
    assert values.remaining(value) == left


def test_a_label_is_left_out_where_a_name_is_refused() -> None:
    for damaged in ("a\0b", "n" * 257, "\ud800"):
        assert values.label(damaged) is None
        with pytest.raises(Unfit):
            values.text(damaged, "name")
    assert values.label("größe") == values.text("größe", "name") == "größe"
    assert values.label("") is values.text("", "name") is None


@pytest.mark.parametrize(
    ("status", "http_status", "is_billable", "quality", "flags"),
    [
        (Status.SUCCESS, None, True, Quality.MISSING, Flag.USAGE_MISSING),
        (Status.INCOMPLETE, 200, True, Quality.MISSING, Flag.USAGE_MISSING),
        (Status.FILTERED, 200, True, Quality.MISSING, Flag.USAGE_MISSING),
        (Status.FILTERED, 400, True, Quality.REPORTED, Flag.NONE),
        (Status.ERROR, 500, True, Quality.REPORTED, Flag.NONE),
        (Status.THROTTLED, 429, True, Quality.REPORTED, Flag.NONE),
        (Status.SUCCESS, None, False, Quality.REPORTED, Flag.NONE),
    ],
)
def test_counts_are_missing_where_a_billed_call_was_answered(status: Status, http_status: int | None, is_billable: bool, quality: Quality, flags: Flag) -> None:
    tokens = Tokens(input=5)
    tokens.judge(status, http_status, is_billable=is_billable)
    assert (tokens.quality, tokens.flags) == (quality, flags)


def test_counts_have_the_native_names_too() -> None:
    found = values.tokens_of({"input_tokens": 9, "output_tokens": 4, "cached_input_tokens": 3, "reasoning_output_tokens": 5}, Operation.CHAT)
    assert (found.input, found.output, found.cached, found.reasoning, found.flags) == (9, 4, 3, None, Flag.SUBSET_EXCEEDS_TOTAL)


@pytest.mark.parametrize("text", ["[1,1,1,1,1,1]", "[{},[],{},[]]", '{"a":[1,1,1,1,1]}'])
def test_an_item_of_more_values_than_any_answer_has_is_not_read(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_MAX_VALUES", 5)
    for piece in (text, text.encode()):
        found = values.loaded(piece)
        assert isinstance(found, Refusal)
        assert found.error == "too_large"
    assert isinstance(values.quickly(text.encode()), Refusal)
    monkeypatch.setattr(values, "_MAX_VALUES", 500)
    assert values.loaded(text) == json.loads(text)


def test_a_long_item_is_read_without_a_copy_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_LONG", 5)
    assert values.loaded(b'{"a": "xyz", "b": 1.5}') == {"a": "xyz", "b": 1.5}
    assert values.loaded(b'{"a": NaN, "b": 1}')["b"] == 1
    assert isinstance(values.loaded(b'{"a": nope}'), Refusal)
