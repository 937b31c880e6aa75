"""Column types that keep what they are given, on SQLite as on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Dialect, Integer, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from models import money

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CANONICAL = msgspec.json.Encoder(order="deterministic")
_MICROSECOND = timedelta(microseconds=1)

# SQLite gives only INTEGER PRIMARY KEY the rowid; every other place takes 64 bits on both.
BigInt = BigInteger().with_variant(Integer(), "sqlite")


def to_microseconds(at: datetime) -> int:
    """Microseconds since 1970 of an aware instant, exactly."""
    if at.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return (at - EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """The aware UTC instant."""
    return EPOCH + timedelta(microseconds=microseconds)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


class ExactDecimal(TypeDecorator[Decimal]):
    """A Decimal kept digit for digit: NUMERIC on PostgreSQL, text on SQLite (whose NUMERIC is a float).

    The text form cannot be summed in SQL, on purpose: sums of money are made in Python, exactly.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Numeric() if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if not isinstance(value, Decimal):
            raise TypeError(f"money columns take Decimal, not {type(value).__name__}")
        return value if dialect.name == "postgresql" else money.text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Decimal | None] | None:
        """The same without the two calls around it that every value of every row would pay for; the driver of PostgreSQL gives Decimals."""
        return None if dialect.name == "postgresql" else _decimal


class Instant(TypeDecorator[datetime]):
    """An aware instant, stored as microseconds since 1970 in UTC: exact, ordered, the same on both databases."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_microseconds(value)


class EnumText(TypeDecorator[Any]):
    """A closed set of words, stored as text and given back as its ``StrEnum``."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        return None if value is None else self.kind(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.kind(value)


class JsonText(TypeDecorator[Any]):
    """JSON as canonical text (sorted keys, no spaces): equal values are equal bytes on both databases."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else canonical_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def canonical_json(value: Mapping[str, Any] | list[Any]) -> str:
    """The one text of a JSON value: sorted keys, no spaces, characters as they are."""
    return _CANONICAL.encode(value).decode()
