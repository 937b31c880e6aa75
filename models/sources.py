"""Pulls from Azure: each run as a row, so that what failed, and why, is seen, and what was begun is taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Column, Date, Index, Text
from sqlmodel import Field, Session, SQLModel, col, select

from models.columns import BigInt, EnumText, Instant

# How often each source is pulled from Azure: bills twice a day, as Azure asks to be asked once.
PULLED_EVERY: Mapping[Literal["costs", "inventory", "quotas", "prices", "metrics"], timedelta] = {
    "costs": timedelta(hours=12),
    "inventory": timedelta(hours=1),
    "quotas": timedelta(minutes=15),
    "prices": timedelta(days=1),
    "metrics": timedelta(hours=1),
}
# Runs older than this are removed, but for the last of each source and scope.
_KEPT = timedelta(days=100)


class PullState(StrEnum):
    """What became of a run."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    RESCHEDULED = "rescheduled"  # Azure throttled for longer than a job sleeps; ``next_at`` says until when


class SourcePull(SQLModel, table=True):
    """One run of one source over one scope; ``month`` for bills. A run that is still ``running`` after a restart was interrupted."""

    __tablename__ = "source_pull"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    source: str = Field(sa_column=Column(Text, nullable=False))  # costs | inventory | quotas | prices | metrics
    scope: str = Field(sa_column=Column(Text, nullable=False))  # without slashes at its ends; '' where there is none
    month: date | None = Field(default=None, sa_column=Column(Date))  # its first day
    started_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    finished_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    state: PullState = Field(sa_column=Column(EnumText(PullState), nullable=False))
    rows: int | None = Field(default=None, sa_column=Column(BigInt))
    calls: int = Field(default=0, sa_column=Column(BigInt, nullable=False))
    throttles: int = Field(default=0, sa_column=Column(BigInt, nullable=False))
    message: str = Field(default="", sa_column=Column(Text, nullable=False))  # what came of it, or what went wrong and the fix
    data_until: datetime | None = Field(default=None, sa_column=Column(Instant))
    next_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    # Where a report that was ordered is asked for: an address of Resource Manager, which holds no secret.
    operation: str = Field(default="", sa_column=Column(Text, nullable=False))

    __table_args__ = (Index("ix_source_pull_source", "source", "scope", "month"),)


def begin(session: Session, source: str, scope: str, *, month: date | None = None, now: datetime) -> SourcePull:
    """A run that starts."""
    row = SourcePull(source=source, scope=scope, month=month, started_at=now, state=PullState.RUNNING)
    session.add(row)
    session.flush()
    return row


def finish(
    session: Session,
    pull_id: int,
    state: PullState,
    *,
    now: datetime,
    message: str = "",
    rows: int | None = None,
    calls: int = 0,
    throttles: int = 0,
    data_until: datetime | None = None,
    next_at: datetime | None = None,
) -> None:
    """How a run ended; older runs of its source and scope that nobody needs any more are removed."""
    row = session.get(SourcePull, pull_id)
    if row is None:
        return
    row.state, row.finished_at, row.message, row.rows = state, now, message[:2000], rows
    row.calls, row.throttles, row.data_until, row.next_at = calls, throttles, data_until, next_at
    if state == PullState.DONE:
        row.operation = ""
    session.add(row)
    table = SourcePull
    session.execute(
        sa.delete(table).where(col(table.source) == row.source, col(table.scope) == row.scope, col(table.started_at) < now - _KEPT, col(table.id) != row.id)
    )


def remember_operation(session: Session, pull_id: int, operation: str) -> None:
    """Where the report of a run is asked for, so that a restart asks for the same one."""
    row = session.get(SourcePull, pull_id)
    if row is not None:
        row.operation = operation
        session.add(row)


def unfinished_operation(session: Session, source: str, scope: str, month: date, *, since: datetime) -> str:
    """The report that was ordered by a run that did not end well; '' where there is none to go on with."""
    row = SourcePull
    last = session.exec(
        select(row)
        .where(col(row.source) == source, col(row.scope) == scope, col(row.month) == month, col(row.started_at) >= since)
        .order_by(col(row.id).desc())
        .limit(1)
    ).first()
    return "" if last is None or last.state == PullState.DONE else last.operation


def calls_since(session: Session, source: str, since: datetime) -> tuple[int, datetime | None]:
    """How often Azure was asked by the runs of a source that began after ``since``, and when the first of them began."""
    row = SourcePull
    asked = sa.select(sa.func.coalesce(sa.func.sum(col(row.calls)), 0), sa.func.min(col(row.started_at))).where(
        col(row.source) == source, col(row.started_at) > since
    )
    calls, first = session.execute(asked).one()
    return int(calls), first


def ended_since(session: Session, source: str, scope: str, since: datetime, *, about: tuple[date, date] | None = None) -> tuple[set[date | None], int]:
    """Of the runs that began since then: the months that were pulled whole, and how often the one that failed most has failed.

    With ``about``, of runs for bills that begin in these days (the last one excluded) alone.
    """
    row = SourcePull
    asked = (
        sa.select(col(row.month), col(row.state), sa.func.count())
        .where(col(row.source) == source, col(row.scope) == scope, col(row.started_at) >= since, col(row.state).in_((PullState.DONE, PullState.FAILED)))
        .group_by(col(row.month), col(row.state))
    )
    found = [
        (month, state, int(count)) for month, state, count in session.execute(asked) if about is None or (month is not None and about[0] <= month < about[1])
    ]
    return {month for month, state, _ in found if state == PullState.DONE}, max((count for _, state, count in found if state == PullState.FAILED), default=0)


def last_runs(session: Session) -> Sequence[SourcePull]:
    """The last run of every source, scope and month, in that order."""
    row = SourcePull
    newest = sa.select(sa.func.max(col(row.id))).group_by(col(row.source), col(row.scope), col(row.month))
    return session.exec(select(row).where(col(row.id).in_(newest)).order_by(col(row.source), col(row.scope), col(row.month))).all()


def reached(session: Session) -> dict[tuple[str, str], datetime]:
    """Until when each source and scope has data: what the last good run of its newest month with any said."""
    row = SourcePull
    good = (col(row.state) == PullState.DONE, col(row.data_until).is_not(None))
    newest = sa.select(sa.func.max(col(row.id))).where(*good).group_by(col(row.source), col(row.scope), col(row.month))
    runs = session.exec(select(row).where(col(row.id).in_(newest))).all()
    return {(run.source, run.scope): run.data_until for run in sorted(runs, key=lambda run: run.month or date.min) if run.data_until is not None}


def last_success(session: Session, source: str, scope: str, *, month: date | None = None) -> SourcePull | None:
    """The last run that went well."""
    row = SourcePull
    asked = select(row).where(col(row.source) == source, col(row.scope) == scope, col(row.state) == PullState.DONE)
    if month is not None:
        asked = asked.where(col(row.month) == month)
    return session.exec(asked.order_by(col(row.id).desc()).limit(1)).first()
