"""Who runs which job: one row a job, taken by slot and guarded by a fence.

Time is cut into slots as long as the job's interval; a slot is run once, by whichever process takes it first. A process
that dies loses its lease by time; one that only stalled finds the fence passed and cannot say that it was done.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Text
from sqlmodel import Field, Session, SQLModel, col

from models.columns import Instant, to_microseconds

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class JobLease(SQLModel, table=True):
    """The last slot of a job: who has it or had it, and what came of it."""

    __tablename__ = "job_lease"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    slot: int = Field(sa_column=Column(BigInteger, nullable=False))
    fence: int = Field(sa_column=Column(BigInteger, nullable=False))
    holder: str = Field(sa_column=Column(Text, nullable=False))
    started_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    expires_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    finished_at: datetime | None = Field(default=None, sa_column=Column(Instant))  # None while it runs
    next_at: datetime = Field(sa_column=Column(Instant, nullable=False))  # when it is run again if all goes well
    error: str = Field(default="", sa_column=Column(Text, nullable=False))  # why the last run did not end well


def pull_job(source: str, scope: str = "") -> str:
    """The name of the job that pulls a source (of a scope) from Azure."""
    return f"azure_{source}:{scope}" if scope else f"azure_{source}"


def slot_of(now: datetime, every: timedelta, offset: timedelta = timedelta(0)) -> int:
    """The number of the slot that an instant is in; slots begin ``offset`` after every multiple of their length."""
    return to_microseconds(now - offset) // (every // timedelta(microseconds=1))


def slot_start(slot: int, every: timedelta, offset: timedelta = timedelta(0)) -> datetime:
    """When a slot begins."""
    return _EPOCH + every * slot + offset


def take(session: Session, name: str, *, every: timedelta, holder: str, now: datetime, lasts: timedelta, offset: timedelta = timedelta(0)) -> int | None:
    """Take the slot that ``now`` is in; gives the fence, or None where it was run, runs elsewhere, or an earlier one still runs."""
    slot = slot_of(now, every, offset)
    row = JobLease
    taken: dict[str, Any] = {
        "slot": slot,
        "holder": holder,
        "started_at": now,
        "expires_at": now + lasts,
        "finished_at": None,
        "next_at": slot_start(slot + 1, every, offset),
        "error": "",
    }
    is_over = sa.or_(col(row.finished_at).is_not(None), col(row.expires_at) <= now)
    changed = session.execute(
        sa.update(row)
        .where(
            col(row.name) == name,
            # A slot that was begun and never finished is run again once its lease is over.
            sa.or_(sa.and_(col(row.slot) < slot, is_over), sa.and_(col(row.slot) == slot, col(row.finished_at).is_(None), col(row.expires_at) <= now)),
        )
        .values(**taken, fence=col(row.fence) + 1)
        .returning(col(row.fence))
        .execution_options(synchronize_session=False)
    ).scalar()
    if changed is not None:
        return int(changed)
    insert = _insert(session)
    made = session.execute(insert.values(name=name, fence=1, **taken).on_conflict_do_nothing().returning(sa.column("fence"))).scalar()
    return None if made is None else int(made)


def _insert(session: Session) -> Any:
    from sqlalchemy.dialects import postgresql, sqlite  # noqa: PLC0415

    table: sa.Table = JobLease.__table__  # type: ignore[attr-defined]
    return postgresql.insert(table) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(table)


def let_go(session: Session, is_gone: Callable[[str], bool], *, now: datetime) -> None:
    """End the leases whose holders are known to be gone: their slots are free for whoever comes, and not after hours only."""
    row = JobLease
    held = session.execute(
        sa.select(col(row.name), col(row.fence), col(row.holder)).where(col(row.finished_at).is_(None), col(row.error) == "", col(row.expires_at) > now)
    )
    for name, fence, holder in held.all():
        if is_gone(holder):
            session.execute(
                sa.update(row).where(col(row.name) == name, col(row.fence) == fence).values(expires_at=now).execution_options(synchronize_session=False)
            )


def finish(session: Session, name: str, fence: int, *, now: datetime, error: str = "") -> bool:
    """Say that the run is over; False where another process has taken over since, whose word counts."""
    row = JobLease
    done = session.execute(
        sa.update(row)
        .where(col(row.name) == name, col(row.fence) == fence)
        .values(finished_at=now, error=error[:2000])
        .execution_options(synchronize_session=False)
    )
    return bool(done.rowcount)  # type: ignore[attr-defined]


def put_off(session: Session, name: str, fence: int, *, until: datetime, error: str) -> bool:
    """Say that the slot is to be run again from ``until`` on, by whoever comes first; False where another process has taken over since."""
    row = JobLease
    done = session.execute(
        sa.update(row)
        .where(col(row.name) == name, col(row.fence) == fence)
        # Not finished, and its lease over at that time: as if its process had died then.
        .values(finished_at=None, expires_at=until, next_at=until, error=error[:2000])
        .execution_options(synchronize_session=False)
    )
    return bool(done.rowcount)  # type: ignore[attr-defined]
