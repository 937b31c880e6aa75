"""Usage events as they are counted, and the rollups that are committed with them.

One event is one billable attempt at a deployment. ``input_tokens`` includes cached input and
``output_tokens`` includes reasoning and every candidate; subsets are never added. None is unknown, never 0.

An event's categorical facts (workspace, deployment as sent, model, application, team, tags …) are one
``UsageSeries``; an event is its series, its time and its counts. Rollups are keyed by series, so that a
mapping learnt later moves every view and no stored row.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import IntEnum, IntFlag, StrEnum
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, SmallInteger, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.columns import BigInt, Instant, JsonText

QUARTER_SECONDS = 900
MINUTE_SECONDS = 60
DAY_SECONDS = 86_400


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


def flag_names(flags: int) -> list[str]:
    """The flags as the wire spells them, in a fixed order."""
    return [flag.name.lower() for flag in Flag if flag.name and flag & flags]


def identity_hash(workspace_id: int, source_id: int, event_id: str) -> int:
    """A signed 64-bit digest of an event's identity: a small key to look for it by, never the identity itself."""
    return int.from_bytes(hashlib.blake2b(f"{workspace_id}\0{source_id}\0{event_id}".encode(), digest_size=8).digest(), "big", signed=True)


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
    """A stored event. ``seq`` is the order of arrival and the opaque handle; the key is led by the time.

    ``time`` is the effective end of the call; ``sent_time`` is what the sender wrote, where it differs.
    """

    __tablename__ = "usage_event"

    seq: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    time: datetime = Field(sa_column=Column(Instant, nullable=False))
    workspace_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    source_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    event_id: str = Field(sa_column=Column(Text, nullable=False))
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
    identity_hash: int = Field(sa_column=Column(BigInteger, nullable=False))  # of (workspace, source, id)
    content_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))  # of all but the times
    details: dict[str, Any] | None = Field(default=None, sa_column=Column(JsonText))

    __table_args__ = (
        UniqueConstraint("time", "workspace_id", "source_id", "event_id", name="uq_usage_event_identity"),
        Index("ix_usage_event_identity_hash", "identity_hash"),
        Index("ix_usage_event_received_at", "received_at"),
    )


class UsageConflict(SQLModel, table=True):
    """What was sent under an id that already stands with other content: kept as evidence, counted nowhere."""

    __tablename__ = "usage_conflict"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    stands_seq: int = Field(sa_column=Column(BigInteger, nullable=False))
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
