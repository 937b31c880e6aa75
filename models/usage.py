"""Usage events as they are counted, and the rollups that are committed with them.

One event is one billable attempt at a deployment. ``input_tokens`` includes cached input and
``output_tokens`` includes reasoning and every candidate; subsets are never added. None is unknown, never 0.

An event's categorical facts (workspace, deployment as sent, model, application, team, tags …) are one
``UsageSeries``; an event is its series, its time and its counts. Rollups are keyed by series, so that a
mapping learnt later moves every view and no stored row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from enum import IntEnum, IntFlag, StrEnum
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Boolean, Column, Dialect, Integer, LargeBinary, SmallInteger, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel import Field, SQLModel

from models.columns import BigInt, Instant, JsonText, canonical_json

QUARTER_SECONDS = 900
MINUTE_SECONDS = 60
DAY_SECONDS = 86_400
# "max_tokens: default 16" (Azure's pages of Meta Llama inference, chat and text completions).
DEFAULT_MAX_TOKENS = 16


class Operation(StrEnum):
    """What the call asked for (OpenTelemetry GenAI operation names)."""

    CHAT = "chat"
    TEXT_COMPLETION = "text_completion"
    EMBEDDINGS = "embeddings"
    FINE_TUNING = "fine_tuning"
    OTHER = "other"


class Status(StrEnum):
    """How the call ended."""

    SUCCESS = "success"
    ERROR = "error"
    THROTTLED = "throttled"
    FILTERED = "filtered"
    INCOMPLETE = "incomplete"


STATUS_CODE: dict[Status, int] = {
    Status.SUCCESS: 0,
    Status.ERROR: 1,
    Status.THROTTLED: 2,
    Status.FILTERED: 3,
    Status.INCOMPLETE: 4,
}
STATUS_OF_CODE: dict[int, Status] = {code: status for status, code in STATUS_CODE.items()}


class Quality(IntEnum):
    """Where the token counts come from; the order is how much they are worth."""

    REPORTED = 0
    DERIVED = 1
    ESTIMATED = 2
    MISSING = 3


class Flag(IntFlag):
    """Remarks on an event; names are those of the wire (``clock_skew``)."""

    NONE = 0
    CLOCK_SKEW = 1
    LATE = 2
    RESTAMPED = 4
    TOTAL_MISMATCH = 8
    USAGE_MISSING = 16
    ZERO_USAGE = 32
    COERCED = 64
    SUBSET_EXCEEDS_TOTAL = 128
    STREAM_TRUNCATED = 256
    SYNTHETIC_ID = 512
    TIME_RECEIVED = 1024
    CONFLICTING_ATTRIBUTES = 2048
    DEFAULT_VALUES = 4096
    PARTIAL_DIRECTION = 8192
    GATEWAY_CACHE_HIT = 16384
    SPILLOVER = 32768
    TAGS_NOT_GROUPED = 65536


_FLAG_NAMES = [(int(flag), flag.name.lower()) for flag in Flag if flag.name and flag]


def flag_names(flags: int) -> list[str]:
    """The flags as the wire spells them, in a fixed order."""
    return [name for flag, name in _FLAG_NAMES if flag & flags] if flags else []


# -- how ids and details are kept ----------------------------------------------------------------

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
Detail = str | int | bool | None


def short_id(text: str) -> str | bytes:
    """A sender's id as SQLite keeps it: the sixteen bytes of a UUID in its usual spelling, any other text as it is."""
    return bytes.fromhex(text.replace("-", "")) if len(text) == 36 and _UUID.fullmatch(text) else text


def long_id(stored: str | bytes) -> str:
    """The sender's id again, letter for letter."""
    if isinstance(stored, str):
        return stored
    digits = stored.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Split(NamedTuple):
    """Details as they are stored: what most calls say in columns of its own, the rest as JSON."""

    duration_ms: int | None
    response_id: str | None
    request_id: str | None
    details: str | None

    def whole(self) -> dict[str, Detail]:
        """The details again."""
        found: dict[str, Detail] = {} if self.details is None else json.loads(self.details)
        for name in ("duration_ms", "response_id", "request_id"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        return found


def split_details(details: Mapping[str, Detail]) -> Split:
    """How to store an event's details."""
    if not details:
        return _NO_DETAILS
    rest = dict(details)
    duration, response, request = rest.get("duration_ms"), rest.get("response_id"), rest.get("request_id")
    if type(duration) is int:
        del rest["duration_ms"]
    if type(response) is str:
        del rest["response_id"]
    if type(request) is str:
        del rest["request_id"]
    return Split(
        duration if type(duration) is int else None,
        response if type(response) is str else None,
        request if type(request) is str else None,
        canonical_json(rest) if rest else None,
    )


_NO_DETAILS = Split(None, None, None, None)


class _Bytes(LargeBinary):
    """A column without affinity: what is written is what is read, text or bytes."""

    def bind_processor(self, dialect: Dialect) -> None:  # noqa: ARG002 - SQLAlchemy's signature
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> None:  # noqa: ARG002 - as above
        return None


class EventId(TypeDecorator[str]):
    """A sender's id: text, compared byte by byte; on SQLite a UUID takes sixteen bytes instead of thirty-six."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        # PostgreSQL's own order of texts is a language's, and several times as slow in the key.
        return TEXT(collation="C") if dialect.name == "postgresql" else _Bytes()

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else short_id(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - as above
        return None if value is None else long_id(value)


class UsageSource(SQLModel, table=True):
    """A sender's name for itself; identity is (workspace shard, source, id)."""

    __tablename__ = "usage_source"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    name: str = Field(sa_column=Column(Text, nullable=False, unique=True))


class UsageSeries(SQLModel, table=True):
    """One combination of everything categorical about an event, as sent ('' where it was not sent)."""

    __tablename__ = "usage_series"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    workspace_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    source_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    endpoint: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    model: str = Field(sa_column=Column(Text, nullable=False))
    operation: str = Field(sa_column=Column(Text, nullable=False))
    fine_tuned: bool = Field(sa_column=Column(Boolean, nullable=False))
    application: str = Field(sa_column=Column(Text, nullable=False))
    team: str = Field(sa_column=Column(Text, nullable=False))
    tags: str = Field(sa_column=Column(Text, nullable=False))  # canonical JSON object, '{}' for none
    # The combination may be longer than an index entry can be; its digest is the key.
    digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))


class UsageEvent(SQLModel, table=True):
    """A stored event. Its key is led by the time and nothing else is indexed, so that it is written at one end.

    ``seq`` is the order of arrival, unique with or without the time; to find an event by it, know its time too.
    To find one by its id, ask ``models.identities``. ``time`` is the effective end of the call; ``sent_time`` is what
    the sender wrote, where it differs. Raw SQL reads the three ids of texts through ``long_id``.
    """

    __tablename__ = "usage_event"

    time: datetime = Field(sa_column=Column(Instant, primary_key=True, autoincrement=False))
    workspace_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    source_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    event_id: str = Field(sa_column=Column(EventId, primary_key=True))
    seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    series_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    status: int = Field(sa_column=Column(SmallInteger, nullable=False))
    billable: bool = Field(sa_column=Column(Boolean, nullable=False))
    input_tokens: int | None = Field(default=None, sa_column=Column(BigInteger))
    output_tokens: int | None = Field(default=None, sa_column=Column(BigInteger))
    cached_input_tokens: int | None = Field(default=None, sa_column=Column(BigInteger))
    reasoning_output_tokens: int | None = Field(default=None, sa_column=Column(BigInteger))
    quality: int = Field(sa_column=Column(SmallInteger, nullable=False))
    # True where the call was billed by Azure and at least one of its counts is not known.
    is_unknown: bool = Field(sa_column=Column(Boolean, nullable=False))
    flags: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    received_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    sent_time: datetime | None = Field(default=None, sa_column=Column(Instant))
    started_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    duration_ms: int | None = Field(default=None, sa_column=Column(BigInteger))
    response_id: str | None = Field(default=None, sa_column=Column(EventId))
    request_id: str | None = Field(default=None, sa_column=Column(EventId))
    details: dict[str, Any] | None = Field(default=None, sa_column=Column(JsonText))  # what has no column

    __table_args__ = ({"sqlite_with_rowid": False},)


class UsageArrival(SQLModel, table=True):
    """How many events of which UTC day arrived in which hour: where to look for what became known since.

    ``arrived_at`` is the start of the UTC hour in seconds since 1970, ``happened_on`` the day (days since 1970) of the
    events' effective time. ``writer`` tells processes apart, so that none waits for another's row.
    """

    __tablename__ = "usage_arrival"

    arrived_at: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    happened_on: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    writer: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    events: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_received_at: datetime = Field(sa_column=Column(Instant, nullable=False))

    __table_args__ = ({"sqlite_with_rowid": False},)


class UsageConflict(SQLModel, table=True):
    """What was sent under an id that already stands with other content: kept as evidence, counted nowhere."""

    __tablename__ = "usage_conflict"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    stands_seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    # The time of the event that stands, to find it by; None for what was kept before events were laid out by time.
    stands_time: datetime | None = Field(default=None, sa_column=Column(Instant))
    content_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    received_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    sent: dict[str, Any] = Field(sa_column=Column(JsonText, nullable=False))

    # The same contradiction re-sent a thousand times is one piece of evidence.
    __table_args__ = (UniqueConstraint("stands_seq", "content_hash", name="uq_usage_conflict"),)


class UsageQuarter(SQLModel, table=True):
    """Sums per quarter hour: for money in any time zone (half- and quarter-hour zones included).

    ``starts_at`` is seconds since 1970; ``known_on`` the UTC day (days since 1970) on which the facts arrived;
    ``outcome`` is status code * 2 + billable. Counts are sums over events, unknown tokens left out; a reversal is
    a row of negative counts on the day it became known.
    """

    __tablename__ = "usage_quarter"

    starts_at: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    series_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    known_on: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    outcome: int = Field(sa_column=Column(SmallInteger, primary_key=True, autoincrement=False))
    requests: int = Field(sa_column=Column(BigInteger, nullable=False))
    input_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    output_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    cached_input_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    reasoning_output_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    unknown_requests: int = Field(sa_column=Column(BigInteger, nullable=False))
    estimated_requests: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = ({"sqlite_with_rowid": False},)


class UsageMinute(SQLModel, table=True):
    """Sums per minute, with the columns of ``UsageQuarter``: for rates and quotas."""

    __tablename__ = "usage_minute"

    starts_at: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    series_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    known_on: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    outcome: int = Field(sa_column=Column(SmallInteger, primary_key=True, autoincrement=False))
    requests: int = Field(sa_column=Column(BigInteger, nullable=False))
    input_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    output_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    cached_input_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    reasoning_output_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    unknown_requests: int = Field(sa_column=Column(BigInteger, nullable=False))
    estimated_requests: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = ({"sqlite_with_rowid": False},)
