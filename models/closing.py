"""Months that were closed, with the rows as they then were: what finance booked stays what it was."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Date, Index, Text
from sqlmodel import Field, Session, SQLModel, col, select

from models.columns import BigInt, ExactDecimal, Instant, JsonText


class MonthClose(SQLModel, table=True):
    """One close of one month; ``reopened_at`` None while it stands. Never deleted: a month closed twice has two."""

    __tablename__ = "month_close"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    month: date = Field(sa_column=Column(Date, nullable=False))  # its first day
    closed_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    closed_by: str = Field(sa_column=Column(Text, nullable=False))
    software: str = Field(sa_column=Column(Text, nullable=False))
    # What the rows came from: {"bill_parts": [ids], "last_price": id of the last price known, "meter_mappings": [ids in use], "invoices": [ids that their charges name]}
    versions: dict[str, Any] = Field(sa_column=Column(JsonText, nullable=False))
    reopened_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    reopened_by: str = Field(default="", sa_column=Column(Text, nullable=False))
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))  # why it was opened again

    __table_args__ = (Index("ix_month_close_month", "month"),)


class ClosedRow(SQLModel, table=True):
    """One row of a closed month: workspace, deployment, meter, day and currency, as reconciliation had it at the close."""

    __tablename__ = "closed_row"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    close_id: int = Field(sa_column=Column(BigInt, nullable=False, index=True))
    day: date = Field(sa_column=Column(Date, nullable=False))
    workspace: str | None = Field(default=None, sa_column=Column(Text))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    meter: str = Field(sa_column=Column(Text, nullable=False))
    currency: str | None = Field(default=None, sa_column=Column(Text))
    expected: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    billed: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    metered_units: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    billed_units: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
    causes: dict[str, str] = Field(sa_column=Column(JsonText, nullable=False))
    # What of billed stood on an invoice; of closes whose versions name no invoices nobody knows.
    invoiced: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))


def closes_known(session: Session, at: datetime) -> Sequence[MonthClose]:
    """The closes that stood at an instant, in order of month."""
    row = MonthClose
    return session.exec(
        select(row).where(col(row.closed_at) <= at, sa.or_(col(row.reopened_at).is_(None), col(row.reopened_at) > at)).order_by(col(row.month), col(row.id))
    ).all()
