"""The inventory of Azure comes in here: what the lists of Resource Manager say becomes registry facts.

Everything of a subscription is read before anything is written: a list that fails or ends early changes nothing, so a
deployment is ended only by a complete list that no longer has it. How many instances a managed deployment had over time
is measured (metric DeploymentCapacity, to the minute); when one was deleted, the activity log tells. The facts land
through ``collector/registry.py`` as an imported file's would.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlmodel import Session, col, select

from collector import registry
from models.errors import DomainError, InvalidInput, UpstreamError
from models.periods import parse_instant, rfc3339
from models.quotas import EndpointFact
from models.resources import DeploymentFact, Mode, WorkspaceFact
from models.store import Store

AUTHOR = "azure"
# Versions of the lists read here (azure-rest-api-specs, stable, 2026); their objects are those of ``collector/registry.py``.
_ML_VERSION = "2024-10-01"
_ACCOUNTS_VERSION = "2024-10-01"
_METRICS_VERSION = "2024-02-01"
_LOG_VERSION = "2015-04-01"

_MINUTE, _HOUR = timedelta(minutes=1), timedelta(hours=1)
# A longer timespan is answered with its last 31 days, silently; we stay below it. Metrics and the log are kept 90 days and more.
_METRICS_SPAN = timedelta(days=30)
_KEPT = timedelta(days=89)
# Metrics settle for some minutes; each pull measures a little of the last one's time again.
_OVERLAP = timedelta(hours=2)
# Hours that are looked at minute by minute in one pull of a deployment; above it a change is told to the hour.
_MOST_HOURS_REFINED = 24

Say = Callable[[str], None]


class Arm(Protocol):
    """The part of the Azure client that reads Resource Manager: complete lists or an error, never a part of one."""

    def arm_list(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Every object of a list, to its last page."""

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One answer."""


@dataclass(frozen=True, slots=True)
class Step:
    """From ``start`` to ``end`` there were so many instances."""

    start: datetime
    end: datetime
    instances: int


@dataclass(slots=True)
class Listing:
    """Everything that was read of one subscription."""

    subscription_id: str
    objects: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, list[Step]] = field(default_factory=dict)  # resource id, lower case -> instances over the measured time
    deleted: dict[str, datetime] = field(default_factory=dict)  # resource id, lower case -> when the log says it went
    skipped: Counter[str] = field(default_factory=Counter)  # what is there and is none of ours


@dataclass(frozen=True, slots=True)
class InventorySync:
    """What a pull of the inventory did."""

    subscriptions: tuple[str, ...]
    imported: tuple[registry.InventoryImport, ...]
    failures: tuple[str, ...] = ()

    def summary(self) -> str:
        """A few plain lines for the person who ran it."""
        lines = [f"subscription {name}: {done.summary()}" for name, done in zip(self.subscriptions, self.imported, strict=True)]
        return "\n".join([*lines, *(f"nothing was changed of {failure}" for failure in self.failures)])


def sync(store: Store, arm: Arm, subscriptions: Sequence[str], *, now: Callable[[], datetime], say: Say = lambda _line: None) -> InventorySync:
    """Pull the inventory of every subscription; each lands whole or not at all. Raises where all of them failed."""
    names: list[str] = []
    imported: list[registry.InventoryImport] = []
    failures: list[str] = []
    faults: list[DomainError] = []
    for subscription in subscriptions:
        try:
            with store.read() as session:
                known = _known_online(session, subscription)
                measured = _measured_until(session, subscription)
            listing = read(arm, subscription, known=known, measured=measured, now=now())
            with store.write() as session:
                done = land(session, listing, now=now())
        except DomainError as fault:
            failures.append(f"subscription {subscription}: {fault.message}")
            faults.append(fault)
            continue
        names.append(subscription)
        imported.append(done)
        say(f"subscription {subscription}: {done.summary()}")
    if faults and not imported:
        raise faults[0]
    return InventorySync(tuple(names), tuple(imported), tuple(failures))


# -- reading --------------------------------------------------------------------------------------


def read(arm: Arm, subscription_id: str, *, known: Iterable[str], measured: Mapping[str, datetime], now: datetime) -> Listing:
    """Everything of a subscription. ``known`` are the online deployments that were there, ``measured`` until when each endpoint's instances are."""
    found = Listing(subscription_id.casefold())
    root = f"/subscriptions/{subscription_id}/providers"
    for workspace in arm.arm_list(f"{root}/Microsoft.MachineLearningServices/workspaces", api_version=_ML_VERSION):
        found.objects.append(workspace)
        for collection in ("serverlessEndpoints", "marketplaceSubscriptions", "onlineEndpoints"):
            items = arm.arm_list(f"{_id(workspace)}/{collection}", api_version=_ML_VERSION)
            found.objects += items
            if collection == "onlineEndpoints":
                for endpoint in items:
                    _read_endpoint(arm, endpoint, found, since=measured.get(_id(endpoint).casefold()), now=now)
    for account in arm.arm_list(f"{root}/Microsoft.CognitiveServices/accounts", api_version=_ACCOUNTS_VERSION):
        deployments = arm.arm_list(f"{_id(account)}/deployments", api_version=_ACCOUNTS_VERSION)
        ours = [each for each in deployments if _is_llama(each)]
        if len(deployments) > len(ours):
            found.skipped["deployments of other models"] += len(deployments) - len(ours)
        if ours:
            found.objects += [account, *ours]
    there = {_id(each).casefold() for each in found.objects}
    gone = {name.casefold() for name in known} - there
    if gone:
        found.deleted = _deletions(arm, subscription_id, gone, now=now)
    return found


def _read_endpoint(arm: Arm, endpoint: Mapping[str, Any], found: Listing, *, since: datetime | None, now: datetime) -> None:
    for deployment in arm.arm_list(f"{_id(endpoint)}/deployments", api_version=_ML_VERSION):
        found.objects.append(deployment)
        start = max(_created_at(deployment) or now - _KEPT, now - _KEPT, since - _OVERLAP if since else now - _KEPT)
        found.steps[_id(deployment).casefold()] = capacity(arm, _id(deployment), start=start, end=now)


def capacity(arm: Arm, resource_id: str, *, start: datetime, end: datetime) -> list[Step]:
    """The instances of a managed deployment over time, as measured; time without a measurement is in no step."""
    start = start.replace(minute=0, second=0, microsecond=0)
    cells: list[tuple[datetime, timedelta, int]] = []
    refined = 0
    while start < end:
        stop = min(start + _METRICS_SPAN, end)
        for at, lowest, highest in _points(arm, resource_id, start, stop, "PT1H"):
            if lowest == highest or refined >= _MOST_HOURS_REFINED:
                cells.append((at, _HOUR, highest))
                continue
            refined += 1
            cells += [(minute, _MINUTE, most) for minute, _, most in _points(arm, resource_id, at, min(at + _HOUR, end), "PT1M")]
        start = stop
    steps: list[Step] = []
    for at, length, count in cells:
        until = min(at + length, end)
        if steps and steps[-1].end == at and steps[-1].instances == count:
            steps[-1] = Step(steps[-1].start, until, count)
        elif until > at:
            steps.append(Step(at, until, count))
    return steps


def _points(arm: Arm, resource_id: str, start: datetime, end: datetime, interval: str) -> list[tuple[datetime, int, int]]:
    """(time, lowest, highest) where there is a measurement: a cell without one is unknown, not nought."""
    params = {
        "metricnames": "DeploymentCapacity",
        "timespan": f"{start:%Y-%m-%dT%H:%M:%SZ}/{end:%Y-%m-%dT%H:%M:%SZ}",
        "interval": interval,
        "aggregation": "Minimum,Maximum",
    }
    answer = arm.arm_get(f"{resource_id}/providers/Microsoft.Insights/metrics", api_version=_METRICS_VERSION, params=params)
    found = []
    for metric in answer.get("value") or ():
        for series in metric.get("timeseries") or ():
            for point in series.get("data") or ():
                highest = point.get("maximum")
                # Of one minute the highest is enough, and some answers have nothing else.
                lowest = point.get("minimum", highest if interval == "PT1M" else None)
                if lowest is not None and highest is not None:
                    at = parse_instant(str(point["timeStamp"]), what="timeStamp")
                    found.append((at, int(lowest), int(highest)))
    return sorted(found)


def _deletions(arm: Arm, subscription_id: str, gone: Iterable[str], *, now: datetime) -> dict[str, datetime]:
    """When the activity log says that they were deleted, itself or with its endpoint; it writes ids in any capitals."""
    condition = f"eventTimestamp ge '{rfc3339(now - _KEPT)}' and eventTimestamp le '{rfc3339(now)}' and resourceProvider eq 'Microsoft.MachineLearningServices'"
    path = f"/subscriptions/{subscription_id}/providers/Microsoft.Insights/eventtypes/management/values"
    deletions: dict[str, datetime] = {}
    for event in arm.arm_list(path, api_version=_LOG_VERSION, params={"$filter": condition}):
        operation = str((event.get("operationName") or {}).get("value") or "").casefold()
        status = str((event.get("status") or {}).get("value") or "").casefold()
        if operation.endswith("/delete") and status == "succeeded":
            at = parse_instant(str(event["eventTimestamp"]), what="eventTimestamp")
            resource = str(event.get("resourceId") or "").casefold()
            deletions[resource] = max(at, deletions.get(resource, at))
    found = {}
    for name in gone:
        times = [at for resource, at in deletions.items() if name == resource or name.startswith(resource + "/")]
        if times:
            found[name] = max(times)
    return found


# -- landing --------------------------------------------------------------------------------------


def land(session: Session, listing: Listing, *, now: datetime) -> registry.InventoryImport:
    """Make what was read the registry's facts: new ones begin, changed ones go on, those that are gone end."""
    imported = registry.InventoryImport(registry.Changes(), registry.Changes())
    if not listing.objects and (known := _known(session, listing.subscription_id)):
        # Azure answers a reader without a role with an empty list as well.
        raise UpstreamError(
            f"Azure lists nothing in subscription {listing.subscription_id}, where {known} deployments were; nothing was changed. "
            "If they are gone, end them with meterbridge import inventory --replace; else give this reader the role Reader on the subscription",
            retryable=True,
        )
    if listing.objects:
        content = json.dumps({"value": listing.objects}).encode()
        imported = registry.import_inventory(session, [(f"subscription {listing.subscription_id}", content)], now=now, author=AUTHOR, replace=True)
    ended = _end_lost_workspaces(session, listing, now=now)
    for fact_id, facts in _online_facts(session, listing.subscription_id).items():
        if (at := listing.deleted.get(fact_id)) is not None:
            _end_at(session, facts, at, now=now)
        elif steps := listing.steps.get(fact_id):
            _measure(session, facts, steps, now=now)
    _end_endpoints(session, listing, now=now)
    if ended:
        deployments = imported.deployments
        imported = registry.InventoryImport(
            registry.Changes(deployments.added, deployments.changed, deployments.unchanged, deployments.ended + ended), imported.workspaces, imported.ignored
        )
    return imported


def _end_lost_workspaces(session: Session, listing: Listing, *, now: datetime) -> int:
    """End what we had read in workspaces of the subscription that its list no longer has; gives how many deployments."""
    there = {_id(each).casefold().split("/")[8] for each in listing.objects}
    homes = select(WorkspaceFact.workspace).where(col(WorkspaceFact.known_to).is_(None), col(WorkspaceFact.source) == "inventory")
    lost = {name.casefold() for name in session.exec(homes.where(col(WorkspaceFact.subscription_id) == listing.subscription_id))} - there
    ended = 0
    for fact in session.exec(_standing()):
        if fact.workspace.casefold() in lost and fact.author == AUTHOR and fact.valid_to is None:
            fact.known_to = now
            session.add(fact)
            if fact.valid_from is None or fact.valid_from < now:
                session.add(_copy(fact, now=now, valid_to=now))
            ended += 1
    session.flush()
    return ended


def _online_facts(session: Session, subscription_id: str) -> dict[str, list[DeploymentFact]]:
    """The standing facts of the subscription's online deployments by resource id, lower case, in order of time."""
    found: dict[str, list[DeploymentFact]] = {}
    for fact in session.exec(_standing().where(col(DeploymentFact.mode) == Mode.MANAGED_COMPUTE)):
        if fact.resource_id and fact.resource_id.casefold().startswith(f"/subscriptions/{subscription_id}/"):
            found.setdefault(fact.resource_id.casefold(), []).append(fact)
    for facts in found.values():
        facts.sort(key=lambda fact: (fact.valid_from is not None, fact.valid_from))
    return found


def _end_at(session: Session, facts: Sequence[DeploymentFact], at: datetime, *, now: datetime) -> None:
    """What ended between two pulls ended when the log says, not when we saw it."""
    for fact in facts:
        if fact.valid_to == now or (fact.valid_to is None or fact.valid_to > at > (fact.valid_from or at - _MINUTE)):
            fact.known_to = now
            session.add(fact)
            if fact.valid_from is None or fact.valid_from < at:
                session.add(_copy(fact, now=now, valid_to=at))
    session.flush()


def _measure(session: Session, facts: Sequence[DeploymentFact], steps: Sequence[Step], *, now: datetime) -> None:
    """Lay the measured instance counts over the facts; time without a measurement keeps what stands."""
    wanted: list[tuple[DeploymentFact, datetime | None, datetime | None, int | None]] = []
    for number, fact in enumerate(facts):
        for start, end, count in _pieces(fact, steps, is_last=number == len(facts) - 1):
            before = wanted[-1] if wanted else None
            if before is not None and before[2] == start and before[3] == count and _says_the_same(before[0], fact):
                # Two facts were one all along: the change lay elsewhere.
                wanted[-1] = (*before[:2], end, count)
            else:
                wanted.append((fact, start, end, count))
    kept = {id(fact) for fact, *piece in wanted if piece == [fact.valid_from, fact.valid_to, fact.instance_count]}
    for fact in facts:
        if id(fact) not in kept:
            fact.known_to = now
            session.add(fact)
    for fact, start, end, count in wanted:
        if id(fact) not in kept:
            session.add(_copy(fact, now=now, valid_from=start, valid_to=end, instance_count=count))
    session.flush()


def _says_the_same(left: DeploymentFact, right: DeploymentFact) -> bool:
    """Whether two facts differ in nothing but their time and instances."""
    apart = {"id", "author", "instance_count", "valid_from", "valid_to", "known_from", "known_to"}
    return left.model_dump(exclude=apart) == right.model_dump(exclude=apart)


def _pieces(fact: DeploymentFact, steps: Sequence[Step], *, is_last: bool) -> list[tuple[datetime | None, datetime | None, int | None]]:
    """The fact's time cut where the measured count differs from what it says; pure."""
    pieces: list[tuple[datetime | None, datetime | None, int | None]] = []

    def add(start: datetime | None, end: datetime | None, count: int | None) -> None:
        if start is not None and end is not None and start >= end:
            return
        if pieces and pieces[-1][1] == start and pieces[-1][2] == count:
            pieces[-1] = (pieces[-1][0], end, count)
        else:
            pieces.append((start, end, count))

    reached = fact.valid_from
    for step in steps:
        start = step.start if reached is None else max(step.start, reached)
        end = step.end if fact.valid_to is None else min(step.end, fact.valid_to)
        if start >= end:
            continue
        # Between two measurements the count is the one before; at the very start it is the first one known.
        add(reached, start, pieces[-1][2] if pieces else fact.instance_count)
        add(start, end, step.instances)
        reached = end
    if reached != fact.valid_to or not pieces:
        # What the list says now holds from the last measurement on.
        add(reached, fact.valid_to, fact.instance_count if is_last or not pieces else pieces[-1][2])
    return pieces


def _end_endpoints(session: Session, listing: Listing, *, now: datetime) -> None:
    """Note which endpoints were measured now, and end those that Azure no longer lists."""
    there = {tuple(_id(each).casefold().split("/")[8:11:2]) for each in listing.objects}
    for known in session.exec(_standing_endpoints(listing.subscription_id)).all():
        if (known.workspace.casefold(), known.endpoint.casefold()) in there:
            known.seen_at = now
        else:
            known.known_to = now
        session.add(known)
    session.flush()


# -- small things ---------------------------------------------------------------------------------


def _standing() -> Any:
    return select(DeploymentFact).where(col(DeploymentFact.source) == "inventory", col(DeploymentFact.known_to).is_(None)).order_by(col(DeploymentFact.id))


def _standing_endpoints(subscription_id: str) -> Any:
    return select(EndpointFact).where(col(EndpointFact.known_to).is_(None), col(EndpointFact.subscription_id) == subscription_id)


def _known(session: Session, subscription_id: str) -> int:
    """How many deployments of the subscription we read before and hold to be there."""
    start = f"/subscriptions/{subscription_id}/"
    return sum(fact.valid_to is None and fact.author == AUTHOR and (fact.resource_id or "").casefold().startswith(start) for fact in session.exec(_standing()))


def _known_online(session: Session, subscription_id: str) -> list[str]:
    """The online deployments that were there when last read."""
    facts = _online_facts(session, subscription_id.casefold())
    return [name for name, rows in facts.items() if any(row.valid_to is None for row in rows)]


def _measured_until(session: Session, subscription_id: str) -> dict[str, datetime]:
    """Endpoint's resource id, lower case -> when its deployments were last measured."""
    rows = session.exec(_standing_endpoints(subscription_id.casefold())).all()
    seen = {(row.workspace.casefold(), row.endpoint.casefold()): row.seen_at for row in rows if row.seen_at is not None}
    found = {}
    for name in _online_facts(session, subscription_id.casefold()):
        parts = name.split("/")
        if (parts[8], parts[10]) in seen:
            found["/".join(parts[:11])] = seen[parts[8], parts[10]]
    return found


def _copy(fact: DeploymentFact, *, now: datetime, **changes: Any) -> DeploymentFact:
    values = fact.model_dump(exclude={"id", "known_from", "known_to"}) | changes
    return DeploymentFact(**values, known_from=now)


def _id(item: Mapping[str, Any]) -> str:
    said = item.get("id")
    if not isinstance(said, str) or not said.startswith("/subscriptions/"):
        raise UpstreamError(f"Azure listed an object without a resource id: {str(said)[:80]!r}; nothing was changed", retryable=False)
    return said.rstrip("/")


def _is_llama(deployment: Mapping[str, Any]) -> bool:
    model = (deployment.get("properties") or {}).get("model") or {}
    return str(model.get("format") or "").casefold() == "meta" or "llama" in str(model.get("name") or "").casefold()


def _created_at(item: Mapping[str, Any]) -> datetime | None:
    said = (item.get("systemData") or {}).get("createdAt")
    try:
        return parse_instant(said, what="createdAt") if isinstance(said, str) else None
    except InvalidInput:
        return None
