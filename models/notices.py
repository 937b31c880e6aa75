"""Notices of alerts, the receivers they are for, and every attempt to deliver one: the outbox.

A ``Delivery`` is one notice for one receiver with the very bytes that are sent: written in the transaction that changes
the alert, so that neither can be without the other. The notice's id is the same for all its receivers, attempts and replays.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from urllib.parse import urlsplit

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, Text
from sqlmodel import Field, SQLModel

from models.columns import BigInt, EnumText, Instant, JsonText

# Why a receiver is switched off that somebody switched off.
BY_HAND = "by hand"


class Format(StrEnum):
    """What a receiver understands."""

    STANDARD = "standard"  # Standard Webhooks, signed
    ALERTMANAGER = "alertmanager"  # as Alertmanager's own webhook (version 4)
    ALERTMANAGER_API = "alertmanager_api"  # to an Alertmanager
    SLACK = "slack"
    TEAMS = "teams"
    PAGERDUTY = "pagerduty"
    EMAIL = "email"


# Who can be told of a report: what opens and closes incidents cannot.
TELLS_REPORTS = frozenset({Format.STANDARD, Format.SLACK, Format.TEAMS, Format.EMAIL})


def place(url: str, form: Format) -> str:
    """Where a receiver is, without the path that may be its secret; a mailbox is none."""
    if form is Format.EMAIL:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…"


class DeliveryStatus(StrEnum):
    """Where a delivery is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Receiver(SQLModel, table=True):
    """Somebody who is told, where, and how it went lately."""

    __tablename__ = "receiver"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False))
    url: str = Field(sa_column=Column(Text, nullable=False))
    format: Format = Field(sa_column=Column(EnumText(Format), nullable=False))
    workspaces: list[str] = Field(sa_column=Column(JsonText, nullable=False))  # [] is every workspace
    is_default: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))
    # What it hears of that: [] is every severity, and every alert; matchers are those of silences.
    severities: list[str] = Field(default_factory=list, sa_column=Column(JsonText, nullable=False))
    matchers: list[dict[str, str]] = Field(default_factory=list, sa_column=Column(JsonText, nullable=False))
    # Why the row exists: "" by hand, "apply" from a file in version control.
    origin: str = Field(default="", sa_column=Column(Text, nullable=False))
    # Usable, so not hashed: what signs. The one before signs too until it ends, so that a receiver can change over.
    secret: str | None = Field(default=None, sa_column=Column(Text))
    previous_secret: str | None = Field(default=None, sa_column=Column(Text))
    previous_until: datetime | None = Field(default=None, sa_column=Column(Instant))
    routing_key: str | None = Field(default=None, sa_column=Column(Text))
    is_enabled: bool = Field(default=True, sa_column=Column(Boolean, nullable=False))
    disabled_reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    # The circuit breaker: failures in a row, and until when nothing is tried.
    failures: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    rests_until: datetime | None = Field(default=None, sa_column=Column(Instant))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    updated_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    deleted_at: datetime | None = Field(default=None, sa_column=Column(Instant))


class Delivery(SQLModel, table=True):
    """One notice for one receiver: a row of the outbox."""

    __tablename__ = "notice_delivery"
    __table_args__ = (
        Index("ix_notice_delivery_due", "status", "next_attempt_at"),
        Index("ix_notice_delivery_receiver", "receiver_id", "seq"),
        Index("ix_notice_delivery_alert", "alert_id", "receiver_id", "seq"),
        Index("ix_notice_delivery_resend", "resend_at"),
    )

    seq: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))  # the order of telling
    id: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    notice_id: str = Field(sa_column=Column(Text, nullable=False))  # the webhook-id
    receiver_id: str = Field(sa_column=Column(Text, ForeignKey("receiver.id"), nullable=False))
    alert_id: str = Field(sa_column=Column(Text, nullable=False))
    type: str = Field(sa_column=Column(Text, nullable=False))  # alert.firing | alert.resolved | webhook.test
    body: str = Field(sa_column=Column(Text, nullable=False))
    status: DeliveryStatus = Field(default=DeliveryStatus.PENDING, sa_column=Column(EnumText(DeliveryStatus), nullable=False))
    attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    # Where in the schedule it is; a replay begins the schedule anew while attempts are counted on.
    step: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    last_status: int | None = Field(default=None, sa_column=Column(Integer))
    last_error: str = Field(default="", sa_column=Column(Text, nullable=False))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    started_at: datetime = Field(sa_column=Column(Instant, nullable=False))  # of the schedule
    next_attempt_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    delivered_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    # Told again while the alert fires: an Alertmanager forgets what it does not hear of.
    resend_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    claimed_by: str | None = Field(default=None, sa_column=Column(Text))
    claimed_until: datetime | None = Field(default=None, sa_column=Column(Instant))


class DeliveryAttempt(SQLModel, table=True):
    """One attempt, and what came of it."""

    __tablename__ = "delivery_attempt"
    __table_args__ = (Index("ix_delivery_attempt_delivery", "delivery_id", "seq"),)

    seq: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    delivery_id: str = Field(sa_column=Column(Text, nullable=False))
    at: datetime = Field(sa_column=Column(Instant, nullable=False))
    status: int | None = Field(default=None, sa_column=Column(Integer))  # of the answer; None: there was none
    error: str = Field(default="", sa_column=Column(Text, nullable=False))
    duration_ms: int = Field(sa_column=Column(Integer, nullable=False))


class DeliveryCount(SQLModel, table=True):
    """Attempts by outcome since ever, for metrics: rows of attempts are not kept for ever."""

    __tablename__ = "delivery_count"

    outcome: str = Field(sa_column=Column(Text, primary_key=True))
    number: int = Field(default=0, sa_column=Column(BigInt, nullable=False))
