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
    attach: list[str] = Field(default_factory=lambda: ["pdf"], sa_column=Column(JsonText, nullable=False))  # what a mail encloses: pdf, csv
    folder: str = Field(default="", sa_column=Column(Text, nullable=False))  # below the one root of reports
    container: str = Field(default="", sa_column=Column(Text, nullable=False))  # of Azure Blob storage, with a folder in it
    is_enabled: bool = Field(default=True, sa_column=Column(Boolean, nullable=False))
    origin: str = Field(default="", sa_column=Column(Text, nullable=False))  # "apply" where a file made it
    error: str = Field(default="", sa_column=Column(Text, nullable=False))  # why its last report could not be made; "" once it was
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    updated_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    deleted_at: datetime | None = Field(default=None, sa_column=Column(Instant))


class ReportDelivery(SQLModel, table=True):
    """A period's report on its way: the notices are rows of the outbox, the states are how the files stand ("", pending, written, failed)."""

    __tablename__ = "report_delivery"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    schedule_id: str = Field(sa_column=Column(Text, nullable=False))
    slot: str = Field(sa_column=Column(Text, nullable=False))  # weekly-2026-W46, or now-<request> where somebody asked for it
    period: str = Field(sa_column=Column(Text, nullable=False))
    snapshot_id: str = Field(sa_column=Column(Text, nullable=False))
    notices: list[str] = Field(sa_column=Column(JsonText, nullable=False))  # ids of the outbox's deliveries
    missed: list[dict[str, str]] = Field(
        default_factory=list, sa_column=Column(JsonText, nullable=False)
    )  # {"receiver", "reason"}: nothing was put into the outbox
    asked_by: str = Field(default="", sa_column=Column(Text, nullable=False))  # "" is the schedule
    folder: str = Field(default="", sa_column=Column(Text, nullable=False))
    folder_state: str = Field(default="", sa_column=Column(Text, nullable=False))
    folder_error: str = Field(default="", sa_column=Column(Text, nullable=False))
    attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False))  # at the folder
    container: str = Field(default="", sa_column=Column(Text, nullable=False))
    container_state: str = Field(default="", sa_column=Column(Text, nullable=False))
    container_error: str = Field(default="", sa_column=Column(Text, nullable=False))
    container_attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    made_at: datetime = Field(sa_column=Column(Instant, nullable=False))

    __table_args__ = (UniqueConstraint("schedule_id", "slot", name="uq_report_delivery"),)
