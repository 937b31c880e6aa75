"""Limits of deployments a minute: who said them and since when. Azure's vCPU quotas are in ``models.quotas``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import Column, Index, Text
from sqlmodel import Field, Session, SQLModel, col, select

from models.columns import BigInt, EnumText, Instant


class LimitSource(StrEnum):
    """Who says a limit; the first one that does decides."""

    USER = "user"
    AZURE = "azure"
    HEADER = "header"  # x-ratelimit-limit-* of an answer
    OBSERVED = "observed"  # what was used when Azure throttled
    DEFAULT = "default"


class Counting(StrEnum):
    """What counts against a limit of tokens: Azure does not document it for every route."""

    BILLED = "billed"  # input and output tokens, at the end of a call
    ADMITTED = "admitted"  # prompt + max_tokens x max(n, best_of), at its start


class PoolLimit(SQLModel, table=True):
    """One limit of one deployment as one source says it; the open row (``known_to`` None) is its latest word."""

    __tablename__ = "pool_limit"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    workspace: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str = Field(sa_column=Column(Text, nullable=False))  # the full name, as shown
    measure: str = Field(sa_column=Column(Text, nullable=False))  # tokens_per_minute | requests_per_minute
    value: int = Field(sa_column=Column(BigInt, nullable=False))
    source: LimitSource = Field(sa_column=Column(EnumText(LimitSource), nullable=False))
    counting: Counting = Field(default=Counting.BILLED, sa_column=Column(EnumText(Counting), nullable=False))
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))

    __table_args__ = (Index("ix_pool_limit_place", "workspace", "deployment"),)


_RANK = {source: rank for rank, source in enumerate(LimitSource)}
_Key = tuple[str, str, str]  # workspace and deployment without case, measure


class Limits:
    """The limits known at an instant, the best source's for each."""

    def __init__(self, rows: Iterable[PoolLimit]) -> None:
        self._rows: dict[_Key, PoolLimit] = {}
        for row in rows:
            key = (row.workspace.casefold(), row.deployment.casefold(), row.measure)
            standing = self._rows.get(key)
            if standing is None or _RANK[row.source] <= _RANK[standing.source]:
                self._rows[key] = row

    def of(self, workspace: str | None, deployment: str | None, measure: str) -> PoolLimit | None:
        """The limit that somebody said; None where only the default is left."""
        return self._rows.get(((workspace or "").casefold(), (deployment or "").casefold(), measure))


def limits_known(session: Session, at: datetime) -> Limits:
    """The limits as they were known at an instant."""
    row = PoolLimit
    query = select(row).where(col(row.known_from) <= at, sa.or_(col(row.known_to).is_(None), col(row.known_to) > at)).order_by(col(row.id))
    return Limits(session.exec(query).all())


def set_limit(
    session: Session, *, workspace: str, deployment: str, measure: str, value: int | None, source: LimitSource, counting: Counting, author: str, now: datetime
) -> None:
    """Say a limit, or take back what the source said (``value`` None)."""
    row = PoolLimit
    standing = session.exec(
        select(row).where(
            col(row.known_to).is_(None),
            col(row.workspace) == workspace,
            col(row.deployment) == deployment,
            col(row.measure) == measure,
            col(row.source) == source,
        )
    ).all()
    for one in standing:
        one.known_to = now
    if value is not None:
        session.add(
            row(
                workspace=workspace,
                deployment=deployment,
                measure=measure,
                value=value,
                source=source,
                counting=counting,
                author=author,
                known_from=now,
            )
        )
