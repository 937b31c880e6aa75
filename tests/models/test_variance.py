"""Causes of a variance, case by case with amounts worked out by hand; and that they always add up."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import money
from models.charges import MeterKind
from models.variance import Cause, Facing, causes, net_timing

MILLION = Decimal(1_000_000)


def dec(text: str) -> Decimal:
    return Decimal(text)


def facing(**facts: Any) -> Facing:
    """A million tokens at 0.71 on both sides, billed in two lines of eight digits, unless told."""
    known: dict[str, Any] = {
        "meter": MeterKind.INPUT,
        "expected": dec("0.71"),
        "billed": dec("0.71"),
        "metered_units": MILLION,
        "billed_units": MILLION,
        "lines": 2,
        "last_digit": -8,
    }
    return Facing(**known | facts)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, {}),
        ({"meter": MeterKind.OTHER, "expected": dec("0"), "metered_units": dec("0")}, {"unmapped_meter": "0.71"}),
        ({"meter": MeterKind.HOSTING, "expected": dec("0"), "metered_units": dec("0"), "billed_units": dec("24")}, {"not_metered": "0.71"}),
        ({"meter": MeterKind.TRAINING, "expected": dec("0"), "metered_units": dec("0")}, {"not_metered": "0.71"}),
        ({"meter": MeterKind.ADJUSTMENT, "expected": dec("0"), "metered_units": dec("0"), "billed": dec("-0.004")}, {"rounding": "-0.004"}),
        ({"billed": dec("0.51"), "credits": dec("-0.20")}, {"credit_or_refund": "-0.2"}),
        ({"billed": dec("0"), "billed_units": dec("0"), "is_other_currency": True}, {"currency": "-0.71"}),
        # Billed in units of a thousand that we read as one: a thousand times the quantity at the same price.
        ({"billed": dec("710"), "billed_units": MILLION * 1000}, {"unit_mismatch": "709.29"}),
        # 0.91 a million where 0.71 was expected.
        ({"billed": dec("0.91")}, {"price_difference": "0.2"}),
        # 0.91 a million, and half a million tokens more: (0.91 - 0.71) x 1.5 and 0.5 x 0.71.
        ({"billed": dec("1.365"), "billed_units": MILLION * dec("1.5")}, {"price_difference": "0.3", "unmetered_usage": "0.355"}),
        ({"billed": dec("1.065"), "billed_units": MILLION * dec("1.5")}, {"unmetered_usage": "0.355"}),
        # Calls of unknown tokens may have used 400,000 of the half million.
        (
            {"billed": dec("1.065"), "billed_units": MILLION * dec("1.5"), "ceiling_units": dec("400000")},
            {"unknown_tokens": "0.284", "unmetered_usage": "0.071"},
        ),
        ({"expected": dec("0"), "metered_units": dec("0"), "is_instrumented": False}, {"not_instrumented": "0.71"}),
        ({"expected": dec("0"), "metered_units": dec("0"), "price": dec("0.00000071")}, {"unmetered_usage": "0.71"}),
        ({"billed": dec("0"), "billed_units": dec("0"), "lines": 0, "state": "open"}, {"not_yet_billed": "-0.71"}),
        ({"billed": dec("0.355"), "billed_units": MILLION / 2}, {"not_yet_billed": "-0.355"}),
        ({"billed": dec("0.355"), "billed_units": MILLION / 2, "state": "closed"}, {"unbilled_usage": "-0.355"}),
        # Two lines of eight digits may be half a last digit off each.
        ({"billed": dec("0.71000001")}, {"rounding": "0.00000001"}),
        # The bill's unit is unknown: nothing tells price from quantity.
        ({"billed": dec("1.00"), "billed_units": None}, {"unexplained": "0.29"}),
        ({"expected": dec("0"), "unpriced_units": MILLION}, {"unexplained": "0.71"}),
    ],
)
def test_a_variance_has_these_causes(facts: dict[str, Any], expected: dict[str, str]) -> None:
    row = facing(**facts)
    found = causes(row)
    assert {cause.value: money.text(amount) for cause, amount in found.items()} == expected
    assert money.add(found.values()) == row.variance


def test_what_one_day_lacks_and_the_next_has_too_much_of_is_timing() -> None:
    days = {
        date(2026, 10, 5): {Cause.UNBILLED_USAGE: dec("-3")},
        date(2026, 10, 6): {Cause.UNMETERED_USAGE: dec("5")},
        date(2026, 10, 8): {Cause.UNBILLED_USAGE: dec("-1")},
    }
    net_timing(days)
    assert days == {
        date(2026, 10, 5): {Cause.TIMING: dec("-3")},
        date(2026, 10, 6): {Cause.UNMETERED_USAGE: dec("2"), Cause.TIMING: dec("3")},
        date(2026, 10, 8): {Cause.UNBILLED_USAGE: dec("-1")},
    }


_amounts = st.decimals(min_value=-1000, max_value=100_000, places=8)
_units = st.one_of(st.just(Decimal(0)), st.integers(0, 10**10).map(Decimal))


@given(
    st.builds(
        Facing,
        meter=st.sampled_from(MeterKind),
        expected=st.decimals(min_value=0, max_value=100_000, places=10),
        billed=_amounts,
        metered_units=_units,
        billed_units=st.one_of(st.none(), _units),
        credits=st.one_of(st.just(Decimal(0)), _amounts),
        unpriced_units=st.one_of(st.just(Decimal(0)), _units),
        price=st.one_of(st.none(), st.decimals(min_value="0.00000001", max_value=100, places=10)),
        ceiling_units=_units,
        is_instrumented=st.booleans(),
        is_other_currency=st.booleans(),
        state=st.sampled_from(["open", "settling", "closed"]),
        lines=st.integers(0, 50),
        last_digit=st.integers(-12, 0),
    )
)
def test_causes_add_up_exactly_whatever_faces_whatever(row: Facing) -> None:
    found = causes(row)
    assert money.add(found.values()) == row.variance
    assert all(found.values())
    days = {date(2026, 10, 5): dict(found), date(2026, 10, 6): {Cause.UNBILLED_USAGE: Decimal(-7)}}
    net_timing(days)
    assert money.add(days[date(2026, 10, 5)].values()) == row.variance
    assert money.add(days[date(2026, 10, 6)].values()) == -7
