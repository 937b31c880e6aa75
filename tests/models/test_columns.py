from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.columns import EPOCH, BigInt, EnumText, ExactDecimal, Instant, JsonText, canonical_json, from_microseconds, to_microseconds
from models.store import Store


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


METADATA = sa.MetaData()
KEPT = sa.Table(
    "kept",
    METADATA,
    sa.Column("id", BigInt, primary_key=True, autoincrement=True),
    sa.Column("amount", ExactDecimal),
    sa.Column("at", Instant),
    sa.Column("colour", EnumText(Colour)),
    sa.Column("document", JsonText),
    sa.Column("big", BigInt),
)


@pytest.fixture
def connection(store: Store) -> Iterator[sa.Connection]:
    with store.connection() as opened, opened.begin() as transaction:
        METADATA.create_all(opened)
        yield opened
        transaction.rollback()


def kept(connection: sa.Connection, **values: Any) -> Any:
    (name,) = values
    id_ = connection.scalar(sa.insert(KEPT).values(**values).returning(KEPT.c.id))
    return connection.scalar(sa.select(KEPT.c[name]).where(KEPT.c.id == id_))


@pytest.mark.parametrize(
    "text", ["10000000000000", "0.0000000001", "12345678901234567890.0123456789012345678901234567890123456789", "-0.1", "0", "1E+30", "1E-40", "1.50"]
)
def test_decimals_come_back_digit_for_digit(connection: sa.Connection, text: str) -> None:
    found = kept(connection, amount=Decimal(text))
    assert isinstance(found, Decimal)
    assert found == Decimal(text)


def test_a_sum_of_ten_trillion_and_a_ten_billionth_survives_the_database(connection: sa.Connection) -> None:
    for text in ("10000000000000", "0.0000000001", "-10000000000000"):
        kept(connection, amount=Decimal(text))
    assert sum(connection.scalars(sa.select(KEPT.c.amount)), Decimal(0)) == Decimal("0.0000000001")


def test_money_is_never_a_float(connection: sa.Connection) -> None:
    with pytest.raises(sa.exc.StatementError, match="money columns take Decimal, not float"):
        kept(connection, amount=0.1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(value=st.decimals(min_value=Decimal("-1e30"), max_value=Decimal("1e30"), allow_nan=False, allow_infinity=False, places=20))
def test_any_decimal_goes_round(connection: sa.Connection, value: Decimal) -> None:
    assert kept(connection, amount=value) == value


@pytest.mark.parametrize(
    "at",
    [
        datetime(2026, 11, 20, 10, 0, 0, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        EPOCH,
    ],
)
def test_instants_come_back_to_the_microsecond_in_utc(connection: sa.Connection, at: datetime) -> None:
    found = kept(connection, at=at)
    assert (found, found.tzinfo) == (at, UTC)


def test_an_instant_of_another_offset_is_the_same_instant(connection: sa.Connection) -> None:
    noon = datetime(2026, 11, 20, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert kept(connection, at=noon) == datetime(2026, 11, 20, 6, 30, tzinfo=UTC)


def test_an_instant_without_a_zone_is_refused(connection: sa.Connection) -> None:
    with pytest.raises(sa.exc.StatementError, match="needs a time zone"):
        kept(connection, at=datetime(2026, 11, 20))  # noqa: DTZ001


def test_instants_sort_and_compare_in_the_database(connection: sa.Connection) -> None:
    for minute in (30, 10, 20):
        kept(connection, at=EPOCH + timedelta(minutes=minute))
    asked = sa.select(KEPT.c.at).where(KEPT.c.at >= EPOCH + timedelta(minutes=20)).order_by(KEPT.c.at)
    assert list(connection.scalars(asked)) == [EPOCH + timedelta(minutes=20), EPOCH + timedelta(minutes=30)]


def test_microseconds_are_exact_where_a_float_is_not() -> None:
    at = datetime(2286, 11, 20, 17, 46, 39, 999_999, tzinfo=UTC)
    assert from_microseconds(to_microseconds(at)) == at
    assert to_microseconds(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)) == 1_000_005


def test_a_word_of_a_closed_set_comes_back_as_itself(connection: sa.Connection) -> None:
    assert kept(connection, colour=Colour.RED) is Colour.RED
    assert kept(connection, colour="blue") is Colour.BLUE
    with pytest.raises(sa.exc.StatementError, match="green"):
        kept(connection, colour="green")
    # A word that another version of the software wrote is not taken for one of ours.
    connection.execute(sa.text("INSERT INTO kept (colour) VALUES ('violet')"))
    with pytest.raises(ValueError, match="violet"):
        connection.scalars(sa.select(KEPT.c.colour)).all()


def test_json_is_kept_as_one_text_per_value(connection: sa.Connection) -> None:
    document = {"b": [1, None, "ä"], "a": {"y": True, "x": 0}}
    assert kept(connection, document=document) == document
    assert canonical_json(document) == '{"a":{"x":0,"y":true},"b":[1,null,"ä"]}'
    assert canonical_json(dict(reversed(document.items()))) == canonical_json(document)


def test_nothing_stays_nothing(connection: sa.Connection) -> None:
    for name in ("amount", "at", "colour", "document", "big"):
        assert kept(connection, **{name: None}) is None


def test_whole_numbers_have_64_bits(connection: sa.Connection) -> None:
    assert kept(connection, big=2**63 - 1) == 2**63 - 1
    assert kept(connection, big=-(2**63)) == -(2**63)
