"""Azure Monitor's own counts of requests and tokens come in here: a second witness beside what senders report.

What is asked for comes from the registry: online endpoints (requests) and Foundry accounts (requests and tokens), each
by deployment. Serverless endpoints have no such metrics. An hour is stored once, when it is over and told whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

import sqlalchemy as sa
from sqlmodel import Session, col, select

from collector.azure.client import Rescheduled
from collector.capture.aggregates import REASON, Point, digest_of
from collector.witnessing import keep
from models.columns import to_microseconds
from models.errors import DomainError
from models.money import EXACT
from models.periods import floor, parse_instant
from models.resources import DeploymentFact, Mode, Route
from models.store import Store
from models.witnesses import Measure, WitnessPoint, WitnessSeries

KIND = "azure_monitor"
_VERSION = "2024-02-01"
_HOUR = timedelta(hours=1)
# Monitor is about a minute behind; an hour that is stored is not asked for again.
_SETTLES = timedelta(minutes=15)
# How far the first pull of a resource, or one after a long silence, looks back.
_LOOK_BACK = timedelta(days=7)
# Azure cuts a span above 31 days without a word; a day of minutes is a fair size of answer as well.
_SPAN = timedelta(days=1)


class Arm(Protocol):
    """What is asked of the way to Azure."""

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class _Metrics:
    """The metrics of a kind of resource: an average says how many there were in a minute and nothing of more than one."""

    names: Mapping[str, Measure]
    aggregation: str
    interval: str
    dimension: str


_ENDPOINT = _Metrics({"RequestsPerMinute": "requests"}, "Average", "PT1M", "deployment")
_ACCOUNT = _Metrics({"ModelRequests": "requests", "InputTokens": "input", "OutputTokens": "output"}, "Total", "PT1H", "ModelDeploymentName")


@dataclass(slots=True)
class _Resource:
    """An endpoint or account, with its deployments that the registry knows: name, lower case -> how it stands there."""

    id: str
    metrics: _Metrics
    workspace: str
    endpoint: str | None
    deployments: dict[str, DeploymentFact]


@dataclass(frozen=True, slots=True)
class Synced:
    """What a pull brought: hourly counts of so many of the endpoints and accounts there are, until an instant."""

    hours: int
    asked: int
    until: datetime
    failures: Sequence[str]

    def summary(self) -> str:
        """One plain line."""
        if not self.asked:
            return "metrics: no online endpoint or Foundry account is known yet; meterbridge sync inventory finds them"
        heard = self.asked - len(self.failures)
        return f"metrics: {self.hours} hourly counts of {heard} endpoints and accounts, until {self.until:%Y-%m-%d %H:%M} UTC"


def sync(store: Store, client: Arm, subscriptions: Sequence[str], *, now: Callable[[], datetime], progress: Callable[[int, int | None], None]) -> Synced:
    """Bring in the hours that are not there yet. One resource that fails does not stop the others; a long throttle does."""
    end = floor(now() - _SETTLES, "hour")
    with store.read() as session:
        asked = [(resource, _since(session, resource.id, end)) for resource in _resources(session, subscriptions)]
    hours = 0
    failures: list[str] = []
    for number, (resource, start) in enumerate(asked):
        try:
            points = list(_read(client, resource, start, end))
        except Rescheduled:
            raise
        except DomainError as fault:
            failures.append(fault.message)
            continue
        if points:
            hours += keep(store, points, now=now())
        progress(number + 1, len(asked))
    return Synced(hours, len(asked), end, failures)


def _resources(session: Session, subscriptions: Sequence[str]) -> list[_Resource]:
    starts = tuple(f"/subscriptions/{each.casefold()}/" for each in subscriptions)
    found: dict[str, _Resource] = {}
    facts = select(DeploymentFact).where(col(DeploymentFact.known_to).is_(None), col(DeploymentFact.valid_to).is_(None), col(DeploymentFact.resource_id) != "")
    for fact in session.exec(facts.order_by(col(DeploymentFact.resource_id), col(DeploymentFact.id))):
        parent, _, name = str(fact.resource_id).rpartition("/deployments/")
        if not parent.casefold().startswith(starts) or not name:
            continue
        if fact.mode == Mode.MANAGED_COMPUTE:
            metrics, endpoint = _ENDPOINT, parent.rpartition("/")[2]
        elif fact.route == Route.FOUNDRY:
            metrics, endpoint = _ACCOUNT, None
        else:
            continue
        resource = found.setdefault(parent.casefold(), _Resource(parent, metrics, fact.workspace, endpoint, {}))
        session.expunge(fact)
        resource.deployments[name.casefold()] = fact
    return list(found.values())


def _since(session: Session, resource_id: str, end: datetime) -> datetime:
    """The end of the newest hour that is there."""
    newest = (
        sa.select(sa.func.max(col(WitnessPoint.time)))
        .join(WitnessSeries, col(WitnessSeries.id) == col(WitnessPoint.series_id))
        .where(col(WitnessSeries.kind) == KIND, col(WitnessSeries.service) == resource_id.casefold())
    )
    found: datetime | None = session.execute(newest).scalar()
    return end - _LOOK_BACK if found is None else max(found, end - _LOOK_BACK)


def _read(client: Arm, resource: _Resource, start: datetime, end: datetime) -> Iterator[Point]:
    """The counts of every hour of [start, end) that has any; an hour without a value is unknown, not nought."""
    metrics = resource.metrics
    while start < end:
        stop = min(start + _SPAN, end)
        answer = client.arm_get(
            f"{resource.id}/providers/Microsoft.Insights/metrics",
            api_version=_VERSION,
            params={
                "metricnames": ",".join(metrics.names),
                "timespan": f"{start:%Y-%m-%dT%H:%M:%SZ}/{stop:%Y-%m-%dT%H:%M:%SZ}",
                "interval": metrics.interval,
                "aggregation": metrics.aggregation,
                "$filter": f"{metrics.dimension} eq '*'",
            },
        )
        for (name, deployment), hours in sums(answer, dimension=metrics.dimension, aggregation=metrics.aggregation).items():
            fact, measure = resource.deployments.get(deployment), metrics.names.get(name)
            if fact is None or measure is None:
                continue
            for hour, value in sorted(hours.items()):
                if start <= hour < stop:
                    yield Point(
                        REASON,
                        kind="azure_monitor",
                        name=name,
                        measure=measure,
                        temporality="delta",
                        service=resource.id.casefold(),
                        digest=digest_of(KIND, resource.id.casefold(), name, deployment),
                        time=to_microseconds(hour + _HOUR),
                        started_at=to_microseconds(hour),
                        value=int(value.to_integral_value(context=EXACT)),
                        workspace=resource.workspace,
                        endpoint=resource.endpoint,
                        deployment=str(fact.resource_id).rpartition("/")[2],
                        model=fact.model,
                    )
        start = stop


def sums(answer: Mapping[str, Any], *, dimension: str, aggregation: str) -> dict[tuple[str, str], dict[datetime, Decimal]]:
    """(metric, deployment in lower case) -> hour -> count, over all other dimensions and the values within the hour."""
    found: dict[tuple[str, str], dict[datetime, Decimal]] = {}
    for metric in answer.get("value") or ():
        name = str(metric["name"]["value"])
        for series in metric.get("timeseries") or ():
            labels = {str(each["name"]["value"]).casefold(): str(each["value"]) for each in series.get("metadatavalues") or ()}
            deployment = labels.get(dimension.casefold())
            if deployment is None:
                continue
            for point in series.get("data") or ():
                value = point.get(aggregation.casefold())
                if value is not None:
                    hour = floor(parse_instant(str(point["timeStamp"]), what="timeStamp"), "hour")
                    hours = found.setdefault((name, deployment.casefold()), {})
                    hours[hour] = EXACT.add(hours.get(hour, Decimal(0)), Decimal(str(value)))
    return found
