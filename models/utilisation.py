"""How busy the GPUs of managed compute were, as Azure Monitor tells it: hours as told, beside what tokens say and never mixed with it."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import Column, Text
from sqlmodel import Field, SQLModel

from models.columns import ExactDecimal, Instant


class GpuHour(SQLModel, table=True):
    """One hour of one online deployment: the mean share of its GPUs' time and memory, in percent; None where Azure did not say it."""

    __tablename__ = "gpu_hour"

    workspace: str = Field(sa_column=Column(Text, primary_key=True))
    deployment: str = Field(sa_column=Column(Text, primary_key=True))  # endpoint/deployment, as inventory spells it
    time: datetime = Field(sa_column=Column(Instant, primary_key=True, nullable=False))  # the hour's start
    busy_percent: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
    memory_percent: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
    received_at: datetime = Field(sa_column=Column(Instant, nullable=False))
