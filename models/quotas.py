"""Limits of pools and where each was learnt: what Azure said of quotas, and of the endpoints that live on shared ones.

Rows are bitemporal as the registry's are: a row says what was so from when to when we knew it, and is never edited but
for closing ``known_to`` and for ``seen_at``, the last time that Azure said the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Boolean, Column, Index, Text
from sqlmodel import Field, Session, SQLModel, col, select

from models.columns import BigInt, Instant, JsonText

# An endpoint on shared quota is deleted this long after its creation, unless it says a time itself (Microsoft Learn, 2025).
SHARED_QUOTA_LIFE = timedelta(hours=168)


class AzureQuota(SQLModel, table=True):
    """A vCPU limit as Azure tells it; Compute and Machine Learning count apart, and neither is ever added to the other."""

    __tablename__ = "azure_quota"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    subscription_id: str = Field(sa_column=Column(Text, nullable=False))  # lower case
    region: str = Field(sa_column=Column(Text, nullable=False))
    source: str = Field(sa_column=Column(Text, nullable=False))  # compute | ml
    level: str = Field(sa_column=Column(Text, nullable=False))  # family | total | low_priority | workspace | other
    workspace: str = Field(default="", sa_column=Column(Text, nullable=False))  # level workspace only: the same cores seen from there
    family: str = Field(sa_column=Column(Text, nullable=False))  # as Azure writes it
    family_key: str = Field(sa_column=Column(Text, nullable=False))  # by which the spellings of Compute, ML and the size list meet
    quota: int | None = Field(default=None, sa_column=Column("quota", BigInt))  # None: no limit (Azure says -1)
    used: int = Field(sa_column=Column(BigInt, nullable=False))
    unit: str = Field(sa_column=Column(Text, nullable=False))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))
    seen_at: datetime = Field(sa_column=Column(Instant, nullable=False))

    __table_args__ = (Index("ix_azure_quota_place", "subscription_id", "region", "source"),)

    @property
    def headroom(self) -> int | None:
        """What is left; None where there is no limit."""
        return None if self.quota is None else self.quota - self.used


class EndpointFact(SQLModel, table=True):
    """What Azure says of an online or serverless endpoint: its address, its traffic, and when it deletes itself."""

    __tablename__ = "endpoint_fact"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    workspace: str = Field(sa_column=Column(Text, nullable=False))
    endpoint: str = Field(sa_column=Column(Text, nullable=False))
    host: str | None = Field(default=None, sa_column=Column(Text))  # lower case
    subscription_id: str = Field(sa_column=Column(Text, nullable=False))  # lower case
    region: str | None = Field(default=None, sa_column=Column(Text))
    traffic: dict[str, Any] = Field(sa_column=Column(JsonText, nullable=False))  # deployment -> percent
    is_shared_quota: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))
    created_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    target_deletion_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))
    # When a pull last measured its deployments; None where only files told of it.
    seen_at: datetime | None = Field(default=None, sa_column=Column(Instant))

    __table_args__ = (Index("ix_endpoint_fact_place", "workspace", "endpoint"), Index("ix_endpoint_fact_host", "host"))

    @property
    def deletes_at(self) -> datetime | None:
        """When it deletes itself: only endpoints on shared quota do."""
        if self.target_deletion_at is not None:
            return self.target_deletion_at
        return self.created_at + SHARED_QUOTA_LIFE if self.is_shared_quota and self.created_at is not None else None


def family_key(family: str) -> str:
    """What the spellings of one VM family share.

    Compute says ``standardNCADSA100v4Family``, Machine Learning ``Standard NCADSA100v4 Family Cluster Dedicated vCPUs``,
    the list of sizes ``standard NDAMSv4_A100Family``.
    """
    folded = "".join(sign for sign in family.casefold() if sign.isalnum())
    return (
        folded.removesuffix("vcpus")
        .removesuffix("dedicated")
        .removesuffix("lowpriority")
        .removesuffix("cluster")
        .removesuffix("family")
        .removeprefix("standard")
    )


def azure_quotas(session: Session, *, known: datetime) -> Iterator[AzureQuota]:
    """The quotas as known at an instant."""
    rows = select(AzureQuota).where(col(AzureQuota.known_from) <= known)
    for row in session.exec(rows.order_by(col(AzureQuota.subscription_id), col(AzureQuota.region), col(AzureQuota.source), col(AzureQuota.id))):
        if row.known_to is None or row.known_to > known:
            yield row


def endpoints(session: Session, *, known: datetime) -> Iterator[EndpointFact]:
    """The endpoints that were there, as known at an instant."""
    for row in session.exec(select(EndpointFact).where(col(EndpointFact.known_from) <= known).order_by(col(EndpointFact.id))):
        if row.known_to is None or row.known_to > known:
            yield row
