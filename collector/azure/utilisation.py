"""How busy the GPUs of online deployments were, from Azure Monitor: whole hours, once. Not every size and model has these metrics.

A deployment that Azure knows no such metric of is no failure: its utilisation stays unknown, and pages say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from collector.azure.client import Rescheduled
from collector.azure.metrics import Arm
from models.errors import DomainError, UpstreamError
from models.periods import floor, parse_instant
from models.resources import DeploymentFact, Mode
from models.store import Store
from models.utilisation import GpuHour

_VERSION = "2024-02-01"
_HOUR, _SPAN, _LOOK_BACK, _SETTLES = timedelta(hours=1), timedelta(days=7), timedelta(days=30), timedelta(minutes=15)
_METRICS = {"GpuUtilizationPercentage": "busy_percent", "GpuMemoryUtilizationPercentage": "memory_percent"}
# An hour without a metric is asked for again for so long; a deployment that has none costs one call an hour.
_MOST_DEPLOYMENTS = 500


@dataclass(frozen=True, slots=True)
class Synced:
    """What a pull brought: so many hours of so many deployments, and which Azure could not be asked about."""

    hours: int
    deployments: int
    failures: Sequence[str]


def sync(store: Store, client: Arm, subscriptions: Sequence[str], *, now: Callable[[], datetime]) -> Synced:
    """Bring in the hours that are not there yet; what Azure has no such metric of is passed by, a long throttle ends the run."""
    end = floor(now() - _SETTLES, "hour")
    with store.read() as session:
        asked = [(fact, _since(session, fact, end)) for fact in _deployments(session, subscriptions)]
    hours = heard = 0
    failures: list[str] = []
    for fact, start in asked:
        try:
            rows = _read(client, fact, start, end, now=now())
        except Rescheduled:
            raise
        except UpstreamError as fault:
            if fault.retryable:
                failures.append(fault.message)
            continue
        except DomainError as fault:
            failures.append(fault.message)
            continue
        with store.write() as session:
            for row in rows:
                session.merge(row)
        hours, heard = hours + len(rows), heard + bool(rows)
    return Synced(hours, heard, failures)


def _deployments(session: Session, subscriptions: Sequence[str]) -> list[DeploymentFact]:
    starts = tuple(f"/subscriptions/{each.casefold()}/" for each in subscriptions)
    facts = select(DeploymentFact).where(
        col(DeploymentFact.known_to).is_(None),
        col(DeploymentFact.valid_to).is_(None),
        col(DeploymentFact.resource_id) != "",
        col(DeploymentFact.mode) == Mode.MANAGED_COMPUTE,
    )
    found: dict[str, DeploymentFact] = {}
    for fact in session.exec(facts.order_by(col(DeploymentFact.resource_id), col(DeploymentFact.id))):
        if str(fact.resource_id).casefold().startswith(starts) and "/deployments/" in str(fact.resource_id):
            found.setdefault(str(fact.resource_id).casefold(), fact)
            session.expunge(fact)
    return list(found.values())[:_MOST_DEPLOYMENTS]


def _since(session: Session, fact: DeploymentFact, end: datetime) -> datetime:
    newest = sa.select(sa.func.max(col(GpuHour.time))).where(col(GpuHour.workspace) == fact.workspace, col(GpuHour.deployment) == fact.name)
    found: datetime | None = session.execute(newest).scalar()
    return end - _LOOK_BACK if found is None else max(found + _HOUR, end - _LOOK_BACK)


def _read(client: Arm, fact: DeploymentFact, start: datetime, end: datetime, *, now: datetime) -> list[GpuHour]:
    found: dict[datetime, GpuHour] = {}
    while start < end:
        stop = min(start + _SPAN, end)
        answer = client.arm_get(
            f"{fact.resource_id}/providers/Microsoft.Insights/metrics",
            api_version=_VERSION,
            params={
                "metricnames": ",".join(_METRICS),
                "timespan": f"{start:%Y-%m-%dT%H:%M:%SZ}/{stop:%Y-%m-%dT%H:%M:%SZ}",
                "interval": "PT1H",
                "aggregation": "Average",
            },
        )
        for field, at, value in _points(answer):
            if start <= at < stop:
                row = found.setdefault(at, GpuHour(workspace=fact.workspace, deployment=fact.name, time=at, received_at=now))
                setattr(row, field, value)
        start = stop
    return [found[at] for at in sorted(found)]


def _points(answer: Mapping[str, Any]) -> list[tuple[str, datetime, Decimal]]:
    """(field, hour, percent) of what Azure told; an hour without a value is unknown, not nought."""
    return [
        (field, floor(parse_instant(str(point["timeStamp"]), what="timeStamp"), "hour"), Decimal(str(point["average"])))
        for metric in answer.get("value") or ()
        if (field := _METRICS.get(str(metric["name"]["value"]))) is not None
        for series in (metric.get("timeseries") or ())[:1]  # without a dimension asked for there is one
        for point in series.get("data") or ()
        if point.get("average") is not None
    ]
