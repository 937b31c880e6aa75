"""Aggregate witnesses of usage: counters and metrics that are compared with what was counted, and never counted themselves.

A point is stored as it was told, under its series (who told it, of what) and its times; a point told twice is one.
Increments, counter resets and the choice between two names of one fact are found at read time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import BigInteger, Column, Index, LargeBinary, Text
from sqlmodel import Field, SQLModel

from models.columns import BigInt, Instant

WitnessKind = Literal["otlp", "appinsights", "vllm", "azure_monitor"]
Measure = Literal["input", "output", "cached_input", "reasoning_output", "requests", "preemptions"]
Temporality = Literal["delta", "cumulative"]


class WitnessSeries(SQLModel, table=True):
    """One counter or metric of one sender; names are as sent, '' where they were not."""

    __tablename__ = "witness_series"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    # Of everything that tells the series from others: resource, scope, name, attributes.
    digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    measure: str = Field(sa_column=Column(Text, nullable=False))
    temporality: str = Field(sa_column=Column(Text, nullable=False))
    service: str = Field(sa_column=Column(Text, nullable=False))
    workspace: str = Field(sa_column=Column(Text, nullable=False))
    endpoint: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    model: str = Field(sa_column=Column(Text, nullable=False))
    application: str = Field(sa_column=Column(Text, nullable=False))


class WitnessPoint(SQLModel, table=True):
    """The value of a series at a time; ``started_at`` is when its counter or interval began, 0 (1970) where that was not said."""

    __tablename__ = "witness_point"

    series_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    time: datetime = Field(sa_column=Column(Instant, primary_key=True, nullable=False))
    started_at: datetime = Field(sa_column=Column(Instant, primary_key=True, nullable=False))
    value: int = Field(sa_column=Column(BigInteger, nullable=False))
    received_at: datetime = Field(sa_column=Column(Instant, nullable=False))

    __table_args__ = (Index("ix_witness_point_time", "time"), {"sqlite_with_rowid": False})


class WitnessTarget(SQLModel, table=True):
    """A deployment whose own counters are asked for, and how that went last."""

    __tablename__ = "witness_target"

    name: str = Field(sa_column=Column(Text, primary_key=True))  # workspace/endpoint/deployment
    asked_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    answered_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    failure: str | None = Field(default=None, sa_column=Column(Text))
