"""Limits of deployments a minute: who said them and since when. Azure's vCPU quotas are in ``models.quotas``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    # What a learnt limit was learnt from, in words, and when that was last seen (None: said once, by a person or Azure).
    evidence: str = Field(default="", sa_column=Column(Text, nullable=False))
    seen_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))

    __table_args__ = (Index("ix_pool_limit_place", "workspace", "deployment"),)


class ThrottleEpisode(SQLModel, table=True):
    """One time that Azure threw 429s at a deployment, and what the minute before the first of them had used of a limit."""

    __tablename__ = "throttle_episode"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    workspace: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    measure: str = Field(sa_column=Column(Text, nullable=False))  # the limit that was met
    began_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    ended_at: datetime = Field(sa_column=Column(Instant, nullable=False))  # its last 429 so far
    used: int = Field(sa_column=Column(BigInt, nullable=False))

    __table_args__ = (Index("ix_throttle_episode_place", "workspace", "deployment", "began_at"),)


_RANK = {source: rank for rank, source in enumerate(LimitSource)}
_Key = tuple[str, str, str]  # workspace and deployment without case, measure


class Limits:
    """The limits known at an instant, the best source's for each."""

    def __init__(self, rows: Iterable[PoolLimit]) -> None:
        by_source: dict[_Key, dict[LimitSource, PoolLimit]] = {}
        for row in rows:
            # Of one source the later row is its latest word.
            by_source.setdefault((row.workspace.casefold(), row.deployment.casefold(), row.measure), {})[row.source] = row
        self._rows = {key: tuple(sorted(said.values(), key=lambda one: _RANK[one.source])) for key, said in by_source.items()}

    def of(self, workspace: str | None, deployment: str | None, measure: str, *, is_said: bool = False) -> PoolLimit | None:
        """The limit that counts; None where only the default is left. ``is_said`` leaves out what was only observed."""
        return next((row for row in self.every(workspace, deployment, measure) if not is_said or row.source is not LimitSource.OBSERVED), None)

    def every(self, workspace: str | None, deployment: str | None, measure: str) -> tuple[PoolLimit, ...]:
        """What every source says, the one that counts first: a source that is overruled is shown, not forgotten."""
        return self._rows.get(((workspace or "").casefold(), (deployment or "").casefold(), measure), ())

    def all(self) -> Iterator[PoolLimit]:
        """Every source's word on every pool."""
        for said in self._rows.values():
            yield from said


def limits_known(session: Session, at: datetime) -> Limits:
    """The limits as they were known at an instant."""
    row = PoolLimit
    query = select(row).where(col(row.known_from) <= at, sa.or_(col(row.known_to).is_(None), col(row.known_to) > at)).order_by(col(row.id))
    return Limits(session.exec(query).all())


def set_limit(
    session: Session,
    *,
    workspace: str,
    deployment: str,
    measure: str,
    value: int | None,
    source: LimitSource,
    counting: Counting = Counting.BILLED,
    author: str = "",
    evidence: str = "",
    seen_at: datetime | None = None,
    now: datetime,
) -> None:
    """Say a limit, or take back what the source said (``value`` None). The same limit said again only dates it anew."""
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
        if (one.value, one.counting, one.author) == (value, counting, author):
            one.evidence, one.seen_at = evidence, seen_at
            return
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
                evidence=evidence,
                seen_at=seen_at,
                known_from=now,
            )
        )
