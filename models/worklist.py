"""What people decided about differences between bill and metering: owners, notes and sign-offs; and what invoices say.

Rows are ended and added, never edited, so that who said what, and when, stays on record.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import Column, Date, Index, Text
from sqlmodel import Field, SQLModel

from models.columns import BigInt, ExactDecimal, Instant, JsonText


class WorklistEntry(SQLModel, table=True):
    """What is said of one line of a month; the open row (``known_to`` None) is the latest word."""

    __tablename__ = "worklist_entry"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    month: date = Field(sa_column=Column(Date, nullable=False))  # its first day
    workspace: str | None = Field(default=None, sa_column=Column(Text))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    meter: str = Field(sa_column=Column(Text, nullable=False))
    currency: str | None = Field(default=None, sa_column=Column(Text))
    owner: str = Field(default="", sa_column=Column(Text, nullable=False))  # who looks at it
    note: str = Field(default="", sa_column=Column(Text, nullable=False))
    signed_by: str = Field(default="", sa_column=Column(Text, nullable=False))
    signed_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    # what was signed: {"billed": text, "expected": text, cause: text …}
    signed: dict[str, str] | None = Field(default=None, sa_column=Column(JsonText))
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))

    __table_args__ = (Index("ix_worklist_entry_month", "month"),)


class InvoiceStatement(SQLModel, table=True):
    """The amount due as an invoice prints it, as somebody typed it in; the open row is the latest word."""

    __tablename__ = "invoice_statement"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    invoice_id: str = Field(sa_column=Column(Text, nullable=False, index=True))
    currency: str = Field(sa_column=Column(Text, nullable=False))
    amount: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    tax: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))  # of it; cost details leave tax out
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))
