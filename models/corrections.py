"""What was taken back: signed postings beside stored events, which witness of a call counts, and twins to look at.

An event is never edited or deleted. It counts while the signs of its postings add up to zero; each posting carries
the event's counts, so that sums at any instant need no look at the event, and went into the rollups with its own day.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Column, Index, Integer, SmallInteger, Text
from sqlmodel import Field, SQLModel

from models.columns import BigInt, Instant


class UsagePosting(SQLModel, table=True):
    """One event taken back (``sign`` -1) or counted again (+1), with who said so and why."""

    __tablename__ = "usage_posting"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    time: datetime = Field(sa_column=Column(Instant, nullable=False))  # of the event
    seq: int = Field(sa_column=Column(BigInteger, nullable=False))  # of the event
    series_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    outcome: int = Field(sa_column=Column(SmallInteger, nullable=False))
    sign: int = Field(sa_column=Column(SmallInteger, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))  # void | witness | twin
    of_time: datetime | None = Field(default=None, sa_column=Column(Instant))  # the event that counts instead
    of_seq: int | None = Field(default=None, sa_column=Column(BigInteger))
    batch: str = Field(default="", sa_column=Column(Text, nullable=False))  # what was taken back together
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    made_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    input_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    output_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    cached_input_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    reasoning_output_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    unknown_requests: int = Field(sa_column=Column(Integer, nullable=False))
    estimated_requests: int = Field(sa_column=Column(Integer, nullable=False))

    __table_args__ = (Index("ix_usage_posting_time", "time"), Index("ix_usage_posting_seq", "seq"), Index("ix_usage_posting_made_at", "made_at"))


class UsageCall(SQLModel, table=True):
    """Which event names which call, by a digest of workspace and response (else request, else span) id; led by the hour."""

    __tablename__ = "usage_call"

    hour: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))  # since 1970
    key: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    time: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = ({"sqlite_with_rowid": False},)


class UsageTwin(SQLModel, table=True):
    """An event that was stored though its id stands, with the same content, at another time more than an hour away."""

    __tablename__ = "usage_twin"

    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    time: int = Field(sa_column=Column(BigInteger, nullable=False))
    of_seq: int = Field(sa_column=Column(BigInteger, nullable=False))
    of_time: int = Field(sa_column=Column(BigInteger, nullable=False))
