from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import money
from models.errors import InvalidInput, InvariantBroken
from models.money import Money

AMOUNTS = st.decimals(min_value=Decimal("-1e13"), max_value=Decimal("1e13"), allow_nan=False, allow_infinity=False, places=10)
WEIGHTS = st.lists(st.one_of(st.integers(0, 10**12), st.decimals(0, 10**6, allow_nan=False, allow_infinity=False, places=6)), min_size=1, max_size=12)


# -- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0.71", "0.71"),
        (" 12 ", "12"),
        ("-3.50", "-3.5"),
        ("+1", "1"),
        (".5", "0.5"),
        ("7.", "7"),
        ("1e-10", "0.0000000001"),
        ("1E3", "1000"),
        ("-0.00", "0"),
        ("10000000000000.0000000001", "10000000000000.0000000001"),
    ],
)
def test_decimal_text_is_read_exactly_and_written_plainly(written: str, value: str) -> None:
    assert money.text(money.decimal_from(written, what="x")) == value


@pytest.mark.parametrize(
    "written", ["", " ", "1,000", "1.000,5", "$1", "NaN", "Infinity", "0x1", "1_000", "١٢", "½", "1e999", "1e31", "1e-41", "1 2", "--1", "1" * 101]
)
def test_what_is_no_decimal_number_is_refused_by_name(written: str) -> None:
    with pytest.raises(InvalidInput, match="unit_price is"):
        money.decimal_from(written, what="unit_price")


@given(st.decimals(min_value=Decimal("-1e30"), max_value=Decimal("1e30"), allow_nan=False, allow_infinity=False, places=30))
def test_text_goes_round(value: Decimal) -> None:
    written = money.text(value)
    assert "E" not in written
    assert money.decimal_from(written, what="x") == value
    assert money.text(money.decimal_from(written, what="x")) == written


@pytest.mark.parametrize(("written", "code"), [("USD", "USD"), (" eur ", "EUR")])
def test_a_currency_is_three_letters(written: str, code: str) -> None:
    assert money.currency_from(written, what="currency") == code


@pytest.mark.parametrize("written", ["", "US", "USDT", "U$D", "ßa", "ıdr", "12A"])
def test_what_is_no_currency_is_refused(written: str) -> None:
    with pytest.raises(InvalidInput, match="currency is not"):
        money.currency_from(written, what="currency")


# -- sums ---------------------------------------------------------------------------------------


def test_ten_trillion_and_a_ten_billionth_add_up_to_the_digit() -> None:
    assert money.add([Decimal(10000000000000), Decimal("0.0000000001"), Decimal(-10000000000000)]) == Decimal("0.0000000001")
    assert money.text(money.add([Decimal("1e13")] * 3 + [Decimal("1e-10")] * 7)) == "30000000000000.0000000007"
    assert money.add([]) == 0


def test_ten_trillion_tokens_at_a_price_of_a_ten_billionth() -> None:
    assert money.text(money.times(Decimal("0.0000000001234567890123456789"), 10**13)) == "1234.567890123456789"


def test_a_sum_that_would_lose_a_digit_raises() -> None:
    with pytest.raises(ArithmeticError):
        money.plus(Decimal("1e100"), Decimal("1e-100"))


@given(st.lists(AMOUNTS, max_size=20))
def test_the_order_of_a_sum_does_not_matter(values: list[Decimal]) -> None:
    assert money.add(values) == money.add(reversed(values)) == money.add(sorted(values))


@given(AMOUNTS, AMOUNTS)
def test_minus_undoes_plus(left: Decimal, right: Decimal) -> None:
    assert money.minus(money.plus(left, right), right) == left


def test_a_ratio_over_zero_is_not_known() -> None:
    assert money.ratio(Decimal(1), Decimal(0)) is None
    assert money.ratio(Decimal(1), Decimal(3)) == Decimal("0.3333333333333333333333333333")


# -- rounding for people ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        ("0.125", "USD", "0.12"),
        ("0.135", "USD", "0.14"),
        ("-0.125", "EUR", "-0.12"),
        ("2.5", "JPY", "2"),
        ("12345678901234567890123456789.5", "KRW", "12345678901234567890123456790"),
        ("1.0005", "KWD", "1.000"),
        ("7", None, "7.00"),
    ],
)
def test_amounts_are_shown_half_even_in_the_currencys_digits(amount: str, currency: str | None, shown: str) -> None:
    assert str(money.shown(Decimal(amount), currency)) == shown


def test_a_bound_is_cut_not_rounded() -> None:
    assert money.truncated(Decimal("0.99999"), 4) == Decimal("0.9999")
    assert money.truncated(Decimal("-0.99999"), 4) == Decimal("-0.9999")


# -- shares -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "weights", "digits", "shares"),
    [
        ("1.00", [1, 1, 1], 2, ["0.34", "0.33", "0.33"]),
        ("-1.00", [1, 1, 1], 2, ["-0.34", "-0.33", "-0.33"]),
        ("0.05", [1, 2, 0], 2, ["0.02", "0.03", "0"]),
        ("10", [0, 7], 2, ["0", "10"]),
        ("1.005", [1, 1], 2, ["0.503", "0.502"]),
        ("0", [3, 4], 2, ["0", "0"]),
        ("100", [Decimal("0.25"), Decimal("0.75")], 0, ["25", "75"]),
        ("1", [1, 2], 12, ["0.333333333333", "0.666666666667"]),
        ("1E+3", [Decimal("1E+2"), 300], 2, ["250", "750"]),
    ],
)
def test_shares_go_by_the_largest_remainder(amount: str, weights: list[int | Decimal], digits: int, shares: list[str]) -> None:
    assert money.split(Decimal(amount), weights, digits=digits) == [Decimal(share) for share in shares]


@given(AMOUNTS, WEIGHTS, st.integers(0, 12))
def test_shares_add_up_and_none_is_off_by_a_last_digit(amount: Decimal, weights: list[int | Decimal], digits: int) -> None:
    total = money.add(Decimal(weight) for weight in weights)
    if total == 0:
        with pytest.raises(InvariantBroken):
            money.split(amount, weights, digits=digits)
        return
    shares = money.split(amount, weights, digits=digits)
    assert money.add(shares) == amount
    place = min(-digits, int(amount.as_tuple().exponent))
    for share, weight in zip(shares, weights, strict=True):
        # |share · total − amount · weight| < one last place · total, without a division that would round
        distance = money.minus(money.times(share, total), money.times(amount, Decimal(weight)))
        assert distance.copy_abs() < money.times(Decimal(1).scaleb(place), total)
        assert share * amount >= 0
        if weight == 0:
            assert share == 0


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [2, -1]])
def test_a_split_needs_weights(weights: list[int]) -> None:
    with pytest.raises(InvariantBroken):
        money.split(Decimal(1), weights)


# -- currencies ---------------------------------------------------------------------------------


def test_money_adds_within_a_currency_only() -> None:
    assert Money(Decimal("1.10"), "USD") + Money(Decimal("0.90"), "USD") == Money(Decimal("2.00"), "USD")
    assert Money(Decimal(1), "USD") - Money(Decimal(3), "USD") == Money(Decimal(-2), "USD")
    with pytest.raises(InvariantBroken, match="USD and EUR"):
        Money(Decimal(1), "USD") + Money(Decimal(1), "EUR")


def test_negating_keeps_every_digit() -> None:
    amount = Decimal("12345678901234567890123456789012345.0000000001")
    assert -Money(amount, "KRW") == Money(Decimal("-12345678901234567890123456789012345.0000000001"), "KRW")
