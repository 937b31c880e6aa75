"""Schedules of reports and what was delivered: one row per schedule and period, so that each is sent once."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Boolean, Column, Integer, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.columns import Instant, JsonText


class ReportSchedule(SQLModel, table=True):
    """A report that goes out by itself. ``hours_after`` is how long after the period's end; a deleted one keeps its deliveries."""

    __tablename__ = "report_schedule"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False))
    report: str = Field(sa_column=Column(Text, nullable=False))  # daily | weekly | monthly | close
    time_zone: str = Field(sa_column=Column(Text, nullable=False))
    hours_after: int = Field(sa_column=Column(Integer, nullable=False))
    workspaces: list[str] = Field(sa_column=Column(JsonText, nullable=False))  # [] is every workspace
    teams: list[str] = Field(sa_column=Column(JsonText, nullable=False))  # [] is every team
    receivers: list[str] = Field(sa_column=Column(JsonText, nullable=False))  # ids
    folder: str = Field(default="", sa_column=Column(Text, nullable=False))
    is_enabled: bool = Field(default=True, sa_column=Column(Boolean, nullable=False))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    updated_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    deleted_at: datetime | None = Field(default=None, sa_column=Column(Instant))


class ReportDelivery(SQLModel, table=True):
    """A period's report on its way: the notices are rows of the outbox, ``folder_state`` is how the files stand."""

    __tablename__ = "report_delivery"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    schedule_id: str = Field(sa_column=Column(Text, nullable=False))
    slot: str = Field(sa_column=Column(Text, nullable=False))  # 2026-W46, or now-<id> where somebody asked for it
    period: str = Field(sa_column=Column(Text, nullable=False))
    snapshot_id: str = Field(sa_column=Column(Text, nullable=False))
    notices: list[str] = Field(sa_column=Column(JsonText, nullable=False))  # ids of the outbox's deliveries
    folder: str = Field(default="", sa_column=Column(Text, nullable=False))
    folder_state: str = Field(default="", sa_column=Column(Text, nullable=False))  # "" | pending | written | failed
    folder_error: str = Field(default="", sa_column=Column(Text, nullable=False))
    attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    made_at: datetime = Field(sa_column=Column(Instant, nullable=False))

    __table_args__ = (UniqueConstraint("schedule_id", "slot", name="uq_report_delivery"),)
