"""Reports as they were made: immutable snapshots that every format is written from, for ever."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Integer, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.columns import Instant, JsonText


class ReportSnapshot(SQLModel, table=True):
    """One report of a period and scope; ``number`` 0 is the first, a later one restates it. Never changed."""

    __tablename__ = "report_snapshot"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))  # daily | weekly | monthly | close
    period: str = Field(sa_column=Column(Text, nullable=False))  # 2026-W46, 2026-11-19, 2026-10
    time_zone: str = Field(sa_column=Column(Text, nullable=False))
    scope: str = Field(sa_column=Column(Text, nullable=False))  # canonical JSON of what it is limited to
    number: int = Field(sa_column=Column(Integer, nullable=False))
    made_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    figures_sha256: str = Field(sa_column=Column(Text, nullable=False))  # of the figures alone: two that agree are one report
    body: dict[str, Any] = Field(sa_column=Column(JsonText, nullable=False))

    __table_args__ = (UniqueConstraint("kind", "period", "time_zone", "scope", "number", name="uq_report_snapshot"),)
