"""Keeping what counters and metrics say of usage: beside the events, never among them.

``Witnessing`` stands before the ingest: it takes the witnesses out of a request's items, stores them and passes the
rest on, so that an answer of success means the same for both. A point that is told twice is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from collector.capture.aggregates import Point
from collector.capture.event import Item, Refusal
from collector.ingest import Batch, Ingest, Verdict
from models.columns import EPOCH, from_microseconds
from models.store import Store
from models.witnesses import WitnessPoint, WitnessSeries

# Two months of comparison and the one before it.
KEPT = timedelta(days=93)
_CHUNK = 500


def keep(store: Store, points: Sequence[Point], *, now: datetime) -> int:
    """Store the points that are not there yet; gives how many there were."""
    with store.write() as session:
        return _kept(session, points, now=now)


def forget_old(store: Store, now: datetime) -> None:
    """Delete points that are older than any comparison looks back."""
    with store.write() as session:
        session.execute(sa.delete(WitnessPoint).where(col(WitnessPoint.time) < now - KEPT))


def _kept(session: Session, points: Sequence[Point], *, now: datetime) -> int:
    ids = _series(session, {point.digest: point for point in points})
    rows = {
        (ids[point.digest], point.time, point.started_at or 0): {
            "series_id": ids[point.digest],
            "time": from_microseconds(point.time),
            "started_at": EPOCH if point.started_at is None else from_microseconds(point.started_at),
            "value": point.value,
            "received_at": now,
        }
        for point in points
    }
    ordered = [rows[key] for key in sorted(rows)]
    for first in range(0, len(ordered), _CHUNK):
        session.execute(_insert(session, WitnessPoint).on_conflict_do_nothing(), ordered[first : first + _CHUNK])
    return len(ordered)


def _series(session: Session, first_of: dict[bytes, Point]) -> dict[bytes, int]:
    """The ids of the series, made where they are new."""
    rows = [
        {
            "digest": digest,
            "kind": point.kind,
            "name": point.name,
            "measure": point.measure,
            "temporality": point.temporality,
            "service": point.service,
            "workspace": point.workspace or "",
            "endpoint": point.endpoint or "",
            "deployment": point.deployment or "",
            "model": point.model or "",
            "application": point.application or "",
        }
        for digest, point in sorted(first_of.items())
    ]
    found: dict[bytes, int] = {}
    for first in range(0, len(rows), _CHUNK):
        chunk = rows[first : first + _CHUNK]
        session.execute(_insert(session, WitnessSeries).on_conflict_do_nothing(), chunk)
        asked = sa.select(col(WitnessSeries.digest), col(WitnessSeries.id)).where(col(WitnessSeries.digest).in_([row["digest"] for row in chunk]))
        found |= {bytes(digest): series_id for digest, series_id in session.execute(asked) if series_id is not None}
    return found


def _insert(session: Session, table: Any) -> Any:
    return (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert(table)


class Witnessing(Ingest):  # the same to a caller
    """An ingest that also keeps witnesses. ``now`` is the server's clock."""

    def __init__(self, ingest: Ingest, store: Store, *, now: Callable[[], datetime]) -> None:
        # Not the base's: the queue and the thread are those of the ingest it stands before.
        self._ingest = ingest
        self._store = store
        self._now = now
        # Metrics come once a minute and service: one thread is enough, and keeps SQLite's one writer from being fought over.
        self._witness_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="witness")

    def submit(self, batch: Batch) -> Future[Verdict]:
        """As ``Ingest.submit``; witnesses count as ignored, those of a workspace that the key may not write as refused."""
        # Native bodies come as columns and hold no witness: to look at each would undo what columns are for.
        if getattr(batch.items, "columns", None) is not None or not any(type(item) is Point for item in batch.items):
            return self._ingest.submit(batch)
        return self._witness_thread.submit(self._stored, batch)

    def _stored(self, batch: Batch) -> Verdict:
        items: list[Item] = []
        points: list[Point] = []
        for item in batch.items:
            found = _allowed(item, batch) if isinstance(item, Point) else item
            if isinstance(found, Point):
                points.append(found)
            items.append(found)
        if points:
            keep(self._store, points, now=self._now())
        return self._ingest.submit(Batch(items, batch.allowed, batch.home)).result()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ingest, name)


def _allowed(point: Point, batch: Batch) -> Item:
    if batch.allowed is None or point.workspace in batch.allowed:
        return point
    if point.workspace is None and batch.home is not None:
        return _at(point, batch.home)
    return Refusal("forbidden_workspace", "this key may not write usage of that workspace, or several are its own and none is said")


def _at(point: Point, workspace: str) -> Point:
    return replace(point, workspace=workspace)


def witnessing(ingest: Ingest, store: Store, *, now: Callable[[], datetime]) -> Ingest:
    """The ingest as the routes see it, with witnesses kept on their way."""
    return Witnessing(ingest, store, now=now)
