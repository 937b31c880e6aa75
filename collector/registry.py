"""Inventory and owners come in here: files and Azure's own list replies become registry facts.

Owns what a file says of workspaces, deployments and owners, and the bitemporal rule by which a later file changes an
earlier one. What usage and bills let us know of a deployment stands beside these facts and is never touched here; which fact
applies is decided in ``models/matching.py``.

The rule: a row with a validity of its own restates its subject's whole history. A row without one says what is so now:
where that differs from what stands, the old holds until ``now`` and the new from ``now``; an empty field says nothing and
keeps what stands. Facts already known are left alone, so an import can be repeated. Every function works in the caller's
transaction and leaves the commit to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from collector.rowfiles import MAX_NAME, MAX_ROWS, Faults, Row, is_json, overlaps, read_json, read_rows, rows_from_objects
from models.errors import InvalidInput
from models.limits import LimitSource, set_limit
from models.matching import full_name
from models.periods import parse_instant
from models.prices import model_name
from models.quotas import EndpointFact
from models.resources import DeploymentFact, Mode, Owner, Route, Workspace, WorkspaceFact

INVENTORY_COLUMNS = (
    "workspace",
    "endpoint",
    "deployment",
    "mode",
    "route",
    "model",
    "sku",
    "instance_count",
    "region",
    "subscription_id",
    "resource_group",
    "offer_id",
    "plan_id",
    "saas_resource_id",
    "resource_id",
    "state",
    "retires_at",
    "valid_from",
    "valid_to",
    "workspace_kind",
)
OWNER_COLUMNS = ("workspace", "deployment", "application", "tag", "team", "cost_center", "valid_from", "valid_to")

_WORKSPACE_KINDS = ("workspace", "foundry_account")
_DEPLOYMENT_ATTRIBUTES = (
    "mode",
    "route",
    "model",
    "sku",
    "instance_count",
    "region",
    "offer_id",
    "plan_id",
    "saas_resource_id",
    "resource_id",
    "state",
    "retires_at",
)
_WORKSPACE_ATTRIBUTES = ("kind", "subscription_id", "resource_group", "region")
_OWNER_ATTRIBUTES = ("team", "cost_center")
# Azure writes these with varying capitals (STANDARD_NC24ADS_A100_V4 in one reply, Standard_NC24ads_A100_v4 in the next).
_CASELESS = frozenset({"workspace", "endpoint", "deployment", "model", "sku", "region", "offer_id", "plan_id", "saas_resource_id", "resource_id", "state"})
_IMPORT_LOCK = 0x6D6272656769  # "mbregi": one import of facts at a time

_Fact = TypeVar("_Fact", DeploymentFact, WorkspaceFact, Owner)
_Attributes = Mapping[str, Any]
_Subject = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """How many subjects (deployments, workspaces, owners) an import touched, and how."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    ended: int = 0

    def summary(self) -> str:
        """``2 added, 1 changed, 3 unchanged``; ended ones only where there are any."""
        ended = f", {self.ended} ended" if self.ended else ""
        return f"{self.added} added, {self.changed} changed, {self.unchanged} unchanged{ended}"


@dataclass(frozen=True, slots=True)
class InventoryImport:
    """What an import of inventory did; ``ignored`` counts Azure objects that are neither billed nor needed, by type."""

    deployments: Changes
    workspaces: Changes
    ignored: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for the person who ran it."""
        ignored = f"; not used: {', '.join(f'{count} {kind}' for kind, count in sorted(self.ignored.items()))}" if self.ignored else ""
        return f"deployments: {self.deployments.summary()}; workspaces: {self.workspaces.summary()}{ignored}"


@dataclass(frozen=True, slots=True)
class OwnerImport:
    """What an import of owners did."""

    owners: Changes

    def summary(self) -> str:
        """One line for the person who ran it."""
        return f"owners: {self.owners.summary()}"


def import_inventory(session: Session, files: Sequence[tuple[str, bytes]], *, now: datetime, author: str, replace: bool = False) -> InventoryImport:
    """Take in inventory files: our own CSV or JSON, or list replies of Azure Resource Manager, all read as one.

    ``replace`` ends, from ``now`` on, the deployments that the files no longer name in the workspaces they mention.
    """
    _one_at_a_time(session)
    faults = Faults()
    found = _read_inventory(files, faults, is_whole=replace)
    deployments = _by_subject(found.deployments, _DEPLOYMENTS, faults)
    workspaces = _workspaces_said(found, faults)
    faults.raise_if_any()

    ensure_workspaces(session, found.mentioned.values(), now=now)
    inventory = _Author("inventory", author, now)
    workspace_changes = _apply(session, _WORKSPACES, _standing_inventory(session, WorkspaceFact), workspaces, inventory)
    standing = [fact for fact in _standing_inventory(session, DeploymentFact) if fact.workspace.casefold() in found.mentioned]
    deployment_changes = _apply(session, _DEPLOYMENTS, standing, deployments, inventory, end_unnamed=replace)
    _land_endpoints(session, found, now=now, end_unnamed=replace)
    for workspace, deployment, measure, value in found.limits:
        set_limit(
            session, workspace=workspace, deployment=deployment, measure=measure, value=value, source=LimitSource.AZURE,
            evidence="the deployment's rateLimits in the inventory", seen_at=now, now=now,
        )  # fmt: skip
    return InventoryImport(deployment_changes, workspace_changes, dict(found.ignored))


def import_owners(session: Session, files: Sequence[tuple[str, bytes]], *, now: datetime, author: str, replace: bool = False) -> OwnerImport:
    """Take in ownership files; ``replace`` ends, from ``now`` on, the owners of what the files no longer name."""
    faults = Faults()
    rows = [row for name, content in files for row in read_rows(name, content, columns=OWNER_COLUMNS, required=(), faults=faults, wrapper="owners")]
    return _set_owners(session, rows, faults, now=now, author=author, replace=replace)


def set_owners(session: Session, owners: Sequence[Mapping[str, object]], *, name: str, now: datetime, author: str, replace: bool = False) -> OwnerImport:
    """The same for owners that were read elsewhere; ``name`` names their place in messages."""
    faults = Faults()
    rows = rows_from_objects(name, list(owners), columns=OWNER_COLUMNS, required=(), faults=faults, wrapper="owners")
    return _set_owners(session, rows, faults, now=now, author=author, replace=replace)


def ensure_workspaces(session: Session, names: Iterable[str], *, now: datetime) -> None:
    """Give each workspace its identity row, unless it has one in some spelling."""
    known = {name.casefold() for name in session.exec(select(Workspace.name))}
    values = [{"name": name, "first_seen_at": now} for name in sorted(names) if name.casefold() not in known]
    if values:
        # Ingest may meet the same workspace at the same moment: the first one in stands.
        insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
        session.execute(insert(Workspace).on_conflict_do_nothing(index_elements=["name"]), values)


def _standing_inventory(session: Session, table: type[_Fact]) -> list[_Fact]:
    return list(session.exec(select(table).where(col(table.source) == "inventory", col(table.known_to).is_(None)).order_by(col(table.id))))


def _land_endpoints(session: Session, found: _Inventory, *, now: datetime, end_unnamed: bool) -> None:
    said = {(each["workspace"].casefold(), each["endpoint"].casefold()): each for each in found.endpoints}
    fresh = {place: EndpointFact(**each, known_from=now) for place, each in said.items()}
    # A file of our own names an endpoint by its deployments.
    named = said.keys() | {(one.attributes["workspace"].casefold(), one.attributes["endpoint"].casefold()) for one in found.deployments}
    for known in session.exec(select(EndpointFact).where(col(EndpointFact.known_to).is_(None)).order_by(col(EndpointFact.id))).all():
        place = known.workspace.casefold(), known.endpoint.casefold()
        if place in said and all(getattr(known, name) == said[place][name] for name in said[place] if name not in {"workspace", "endpoint"}):
            fresh.pop(place, None)
        elif place in said or (end_unnamed and place[0] in found.mentioned and place not in named):
            known.known_to = now
            session.add(known)
            if place in fresh:
                fresh[place].seen_at = known.seen_at  # what was measured stays measured
    session.add_all(fresh.values())
    session.flush()


# -- what a file says ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Said:
    """What one row or Azure object says of a subject; its attributes name the subject too."""

    place: str
    attributes: _Attributes
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    created_at: datetime | None = None  # since when Azure has had it: the start of what is new to us

    @property
    def is_explicit(self) -> bool:
        return self.valid_from is not None or self.valid_to is not None


@dataclass(slots=True)
class _Inventory:
    """What the files of one import say together."""

    deployments: list[_Said] = field(default_factory=list)
    workspaces: list[_Said] = field(default_factory=list)
    implied: list[_Said] = field(default_factory=list)  # of a workspace, by what is said of its deployments
    regions: dict[str, set[str]] = field(default_factory=dict)  # where its deployments are
    mentioned: dict[str, str] = field(default_factory=dict)  # workspaces: case-folded name -> as first written
    endpoints: list[_Attributes] = field(default_factory=list)
    limits: list[tuple[str, str, str, int]] = field(default_factory=list)  # workspace, deployment, measure, a minute
    ignored: Counter[str] = field(default_factory=Counter)


def _read_inventory(files: Sequence[tuple[str, bytes]], faults: Faults, *, is_whole: bool) -> _Inventory:
    found = _Inventory()
    objects: list[_Resource] = []
    for name, content in files:
        if is_json(name, content):
            document = read_json(name, content)
            if _is_azure_reply(document):
                objects += _azure_objects(name, document, faults, is_whole=is_whole)
                continue
            rows = rows_from_objects(name, document, columns=INVENTORY_COLUMNS, required=("workspace",), faults=faults, wrapper="deployments")
        else:
            rows = read_rows(name, content, columns=INVENTORY_COLUMNS, required=("workspace",), faults=faults, wrapper="deployments")
        for row in rows:
            _read_row(row, found)
    _read_azure(objects, found, faults)
    if objects and not found.mentioned and not faults.count:
        faults.add(objects[0].place, f"holds nothing that belongs to an inventory, only {', '.join(sorted(found.ignored))}")
    return found


def _read_row(row: Row, found: _Inventory) -> None:
    workspace, endpoint, deployment = row.name("workspace", required=True), row.name("endpoint"), row.name("deployment")
    kind = row.one_of("workspace_kind", _WORKSPACE_KINDS)
    mode = row.one_of("mode", [mode.value for mode in Mode])
    route = row.one_of("route", [route.value for route in Route])
    model, sku = row.text("model"), row.name("sku")
    instance_count, retires_at = row.count("instance_count"), row.instant("retires_at")
    region = _region(row.name("region"))
    valid_from, valid_to = row.validity()
    mode, route = _mode_and_route(row, mode=mode, route=route, sku=sku)
    attributes = {
        "mode": Mode(mode) if mode not in ("", Mode.UNKNOWN) else None,
        "route": Route(route) if route else None,
        "model": model_name(model) or None,
        "sku": sku or None,
        "instance_count": instance_count,
        "region": region,
        **{column: row.text(column) or None for column in ("offer_id", "plan_id", "saas_resource_id", "resource_id", "state")},
        "retires_at": retires_at,
    }
    names_deployment = bool(endpoint or deployment)
    if not names_deployment and (said := [column for column, value in attributes.items() if value is not None and column != "region"]):
        row.fault(f"says {', '.join(said)} but names no deployment and no endpoint")
    if not row.is_sound:
        return
    found.mentioned.setdefault(workspace.casefold(), workspace)
    subscription_id = row.text("subscription_id").lower() or None
    about = {
        "workspace": workspace,
        # Said only beside a subscription: a fact that knows nothing else would outrank what the bills know.
        "kind": kind or ("foundry_account" if route == Route.FOUNDRY and subscription_id else None),
        "subscription_id": subscription_id,
        "resource_group": row.text("resource_group").lower() or None,
        "region": None if names_deployment else region,
    }
    if names_deployment:
        endpoint, deployment = _names(endpoint, deployment)
        names = {"workspace": workspace, "endpoint": endpoint, "deployment": deployment}
        found.deployments.append(_Said(row.place, names | attributes, valid_from, valid_to))
        found.implied.append(_Said(row.place, about))
        if region:
            found.regions.setdefault(workspace.casefold(), set()).add(region)
    else:
        found.workspaces.append(_Said(row.place, about, valid_from, valid_to))


def _mode_and_route(row: Row, *, mode: str, route: str, sku: str) -> tuple[str, str]:
    """How the deployment is paid for, from what the row says of either."""
    if not mode:
        if route == Route.COMPUTE or (sku and not route):
            mode = Mode.MANAGED_COMPUTE.value
        elif route:
            mode = Mode.SERVERLESS.value
    if mode == Mode.MANAGED_COMPUTE:
        if route and route != Route.COMPUTE:
            row.fault(f"managed compute is billed by the route compute, not {route}")
        return mode, Route.COMPUTE.value
    if mode == Mode.SERVERLESS and route == Route.COMPUTE:
        row.fault("a serverless deployment is billed by the route marketplace or foundry, not compute")
    return mode, route


def _names(endpoint: str, deployment: str) -> tuple[str, str]:
    """Endpoint and deployment, each standing for the other where one is not said; a full name is taken apart."""
    if "/" in deployment and (not endpoint or deployment.startswith(endpoint + "/")):
        endpoint, _, deployment = deployment.partition("/") if not endpoint else (endpoint, "/", deployment[len(endpoint) + 1 :])
    return endpoint or deployment, deployment or endpoint


def _region(text: str) -> str | None:
    """Azure's short region name: some replies say ``East US 2`` for ``eastus2``."""
    return "".join(text.lower().split()) or None


# -- Azure Resource Manager ---------------------------------------------------------------------

_ML = "microsoft.machinelearningservices/workspaces"
_ACCOUNT = "microsoft.cognitiveservices/accounts"
_RESOURCE_ID = re.compile(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/providers/([^/]+)((?:/[^/]+/[^/]+)+)/?\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Resource:
    """An object of an Azure list reply; ``kind`` is its provider and types in lower case, ``names`` byte for byte from its id."""

    place: str
    id: str
    subscription_id: str
    resource_group: str
    kind: str
    names: tuple[str, ...]
    body: Mapping[str, Any]

    def member(self, *path: str) -> Any:
        """The value at a path of members, None where it ends early."""
        value: Any = self.body
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def word(self, *path: str) -> str | None:
        """The text at a path; None where there is none."""
        value = self.member(*path)
        return value if isinstance(value, str) and value else None

    def created_at(self, faults: Faults) -> datetime | None:
        """When Azure says it was made."""
        said = self.word("systemData", "createdAt")
        if said is None:
            return None
        try:
            return parse_instant(said, what="systemData.createdAt")
        except InvalidInput as fault:
            faults.add(self.place, fault.message)
            return None


def _is_azure_reply(document: Any) -> bool:
    if isinstance(document, dict):
        return "value" in document or _has_resource_id(document)
    return isinstance(document, list) and any(_has_resource_id(item) for item in document)


def _has_resource_id(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("id"), str) and item["id"].lower().startswith("/subscriptions/")


def _azure_objects(name: str, document: Any, faults: Faults, *, is_whole: bool) -> Iterator[_Resource]:
    items = document
    if isinstance(document, dict):
        items = document.get("value", [document])
        if is_whole and document.get("nextLink"):
            faults.add(name, "is one page of a longer list (it has a nextLink); to replace, give the whole list in one file")
    if not isinstance(items, list):
        faults.add(name, "value is not a list")
        return
    if len(items) > MAX_ROWS:
        raise InvalidInput(f"{name} has more than {MAX_ROWS:,} objects; split it", error="too_large")
    for number, item in enumerate(items, start=1):
        place = f"{name} object {number}"
        parts = _RESOURCE_ID.match(item["id"]) if _has_resource_id(item) else None
        if parts is None:
            faults.add(place, "has no Azure resource id (/subscriptions/…/resourceGroups/…/providers/…)")
            continue
        segments = parts[4].strip("/").split("/")
        names = tuple(segments[1::2])
        if any(len(part) > MAX_NAME or not part.isprintable() for part in names):
            faults.add(place, f"its id holds a name that is longer than {MAX_NAME} characters or cannot be printed")
            continue
        yield _Resource(
            place=place,
            id=item["id"],
            subscription_id=parts[1].lower(),
            resource_group=parts[2].lower(),
            kind="/".join([parts[3], *segments[0::2]]).lower(),
            names=names,
            body=item,
        )


def _read_azure(objects: Sequence[_Resource], found: _Inventory, faults: Faults) -> None:
    offers = {resource.id.lower(): resource for resource in objects if resource.kind == f"{_ML}/marketplacesubscriptions"}
    account_regions = {resource.names[0].casefold(): _region(resource.word("location") or "") for resource in objects if resource.kind == _ACCOUNT}
    for resource in objects:
        workspace, said, kind = resource.names[0], None, "workspace"
        region = _region(resource.word("location") or "")
        if resource.kind == f"{_ML}/onlineendpoints/deployments":
            if (resource.word("properties", "endpointComputeType") or "Managed").casefold() != "managed":
                # Kubernetes and attached compute are paid for elsewhere, not by the endpoint's instances.
                found.ignored[f"{resource.kind} on the customer's own compute"] += 1
                continue
            said = _online_deployment(resource, region, faults)
        elif resource.kind == f"{_ML}/serverlessendpoints":
            said = _serverless_endpoint(resource, region, offers, faults)
        elif resource.kind == f"{_ACCOUNT}/deployments":
            kind, region = "foundry_account", region or account_regions.get(workspace.casefold())
            said = _foundry_deployment(resource, region, faults)
            found.limits += _rate_limits(resource)
        elif resource.kind == _ACCOUNT:
            kind = "foundry_account"
        elif resource.kind not in {_ML, f"{_ML}/onlineendpoints", f"{_ML}/marketplacesubscriptions"}:
            found.ignored[resource.kind] += 1
            continue
        found.mentioned.setdefault(workspace.casefold(), workspace)
        about = {"workspace": workspace, "kind": kind, "subscription_id": resource.subscription_id, "resource_group": resource.resource_group, "region": None}
        if resource.kind in {_ML, _ACCOUNT}:
            about["region"] = region
        elif region:
            found.regions.setdefault(workspace.casefold(), set()).add(region)
        found.workspaces.append(_Said(resource.place, about))
        if said is not None:
            found.deployments.append(said)
        if resource.kind in {f"{_ML}/onlineendpoints", f"{_ML}/serverlessendpoints"}:
            found.endpoints.append(_endpoint(resource, region, faults))


def _endpoint(resource: _Resource, region: str | None, faults: Faults) -> _Attributes:
    uri = resource.word("properties", "scoringUri") or resource.word("properties", "inferenceEndpoint", "uri")
    shares = resource.member("properties", "traffic") or {}
    if not isinstance(shares, dict) or any(isinstance(share, bool) or not isinstance(share, int) or not 0 <= share <= 100 for share in shares.values()):
        faults.add(resource.place, "properties.traffic is not a share from 0 to 100 for each deployment")
        shares = {}
    return {
        "workspace": resource.names[0],
        "endpoint": resource.names[1],
        "host": _host(uri) if uri else None,
        "subscription_id": resource.subscription_id,
        "region": region,
        "traffic": dict(shares),
        "is_shared_quota": (resource.word("properties", "properties", "SharedComputeCapacityEnabled") or "").casefold() == "true",
        "created_at": resource.created_at(faults),
        "target_deletion_at": _http_date(resource.word("properties", "properties", "TargetAutoDeletionTime")),
    }


def _host(uri: str) -> str | None:
    try:
        return (urlsplit(uri).hostname or "").rstrip(".") or None
    except ValueError:
        return None


def _http_date(said: str | None) -> datetime | None:
    """RFC 1123, as the deletion time is written; None for anything else."""
    if said is None:
        return None
    try:
        at = parsedate_to_datetime(said)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _online_deployment(resource: _Resource, region: str | None, faults: Faults) -> _Said:
    capacity = resource.member("sku", "capacity")
    model = resource.member("properties", "model")
    if isinstance(model, dict):  # older API versions: a reference object
        model = model.get("assetId") or model.get("id")
    if capacity is not None and (not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 0):
        faults.add(resource.place, "sku.capacity is not a whole number")
        capacity = None
    return _azure_deployment(
        resource,
        resource.names[1:3],
        faults,
        mode=Mode.MANAGED_COMPUTE,
        route=Route.COMPUTE,
        model=model if isinstance(model, str) else None,
        sku=resource.word("properties", "instanceType"),
        instance_count=capacity,
        region=region,
        state=resource.word("properties", "provisioningState"),
    )


def _serverless_endpoint(resource: _Resource, region: str | None, offers: Mapping[str, _Resource], faults: Faults) -> _Said:
    model = resource.word("properties", "modelSettings", "modelId")
    offer = offers.get((resource.word("properties", "marketplaceSubscriptionId") or "").lower())
    if offer is None and model is not None:
        parent = resource.id.lower().rpartition("/serverlessendpoints/")[0]
        same = [
            other
            for id_, other in offers.items()
            if id_.startswith(f"{parent}/marketplacesubscriptions/") and (other.word("properties", "modelId") or "").casefold() == model.casefold()
        ]
        offer = same[0] if len(same) == 1 else None
    return _azure_deployment(
        resource,
        (resource.names[1], resource.names[1]),
        faults,
        mode=Mode.SERVERLESS,
        route=Route.MARKETPLACE,
        model=model,
        region=region,
        offer_id=offer.word("properties", "marketplacePlan", "offerId") if offer else None,
        plan_id=offer.word("properties", "marketplacePlan", "planId") if offer else None,
        state=resource.word("properties", "endpointState") or resource.word("properties", "provisioningState"),
    )


def _foundry_deployment(resource: _Resource, region: str | None, faults: Faults) -> _Said:
    return _azure_deployment(
        resource,
        (resource.names[1], resource.names[1]),
        faults,
        mode=Mode.SERVERLESS,
        route=Route.FOUNDRY,
        model=resource.word("properties", "model", "name"),
        region=region,
        state=resource.word("properties", "provisioningState"),
    )


_LIMIT_KEYS = {"token": "tokens_per_minute", "request": "requests_per_minute"}


def _rate_limits(resource: _Resource) -> list[tuple[str, str, str, int]]:
    """What Azure dealt out to a deployment, a minute; a kind of limit that is not one of ours is left alone."""
    said = resource.member("properties", "rateLimits")
    found: list[tuple[str, str, str, int]] = []
    for one in said if isinstance(said, list) else ():
        measure = _LIMIT_KEYS.get(str(one.get("key", "")).casefold()) if isinstance(one, dict) else None
        count, seconds = (_positive(one.get(name)) for name in ("count", "renewalPeriod")) if measure is not None else (None, None)
        if measure is not None and count is not None and seconds is not None:
            found.append((resource.names[0], resource.names[1], measure, max(1, int(count * 60 // seconds))))
    return found


def _positive(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _azure_deployment(resource: _Resource, names: Sequence[str], faults: Faults, **attributes: Any) -> _Said:
    model = attributes.pop("model")
    said = {
        "workspace": resource.names[0],
        "endpoint": names[0],
        "deployment": names[1],
        **dict.fromkeys(_DEPLOYMENT_ATTRIBUTES),
        **attributes,
        "model": model_name(model) if model else None,
        "resource_id": resource.id,
    }
    return _Said(resource.place, said, created_at=resource.created_at(faults))


# -- owners -------------------------------------------------------------------------------------


def _set_owners(session: Session, rows: Sequence[Row], faults: Faults, *, now: datetime, author: str, replace: bool) -> OwnerImport:
    _one_at_a_time(session)
    said = _by_subject([owner for row in rows if (owner := _owner(row)) is not None], _OWNERS, faults)
    faults.raise_if_any()
    if not said:
        raise InvalidInput("there are no owners in the file")
    standing = list(session.exec(select(Owner).where(col(Owner.known_to).is_(None)).order_by(col(Owner.id))))
    return OwnerImport(_apply(session, _OWNERS, standing, said, _Author("imported", author, now), end_unnamed=replace))


def _owner(row: Row) -> _Said | None:
    workspace, deployment, application, tag = row.name("workspace"), row.text("deployment", longest=2 * MAX_NAME + 1), row.name("application"), row.text("tag")
    team, cost_center = row.name("team"), row.name("cost_center")
    valid_from, valid_to = row.validity()
    subjects = [column for column, value in (("deployment", deployment), ("application", application), ("tag", tag)) if value]
    if len(subjects) > 1:
        row.fault(f"names {' and '.join(subjects)}; a row says the owner of one of them")
    elif not subjects and not workspace:
        row.fault("names nothing that could be owned: a deployment, an application, a tag (key=value) or a workspace")
    key, equals, value = tag.partition("=")
    if tag and not (equals and key.strip() and value.strip()):
        row.fault(f"tag is {tag[:60]!r}; write it as key=value")
    if not team and not cost_center:
        row.fault("names no team and no cost_center")
    if not row.is_sound:
        return None
    subject = {"workspace": workspace, "deployment": deployment, "application": application, "tag_key": key.strip(), "tag_value": value.strip()}
    said = {name: text or None for name, text in {**subject, "team": team, "cost_center": cost_center}.items()}
    return _Said(row.place, said, valid_from, valid_to)


# -- the bitemporal rule ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """Attributes over ``[valid_from, valid_to)``."""

    attributes: _Attributes
    valid_from: datetime | None
    valid_to: datetime | None

    def __contains__(self, at: datetime) -> bool:
        return (self.valid_from is None or self.valid_from <= at) and (self.valid_to is None or at < self.valid_to)


@dataclass(frozen=True, slots=True)
class _Kind(Generic[_Fact]):
    """A table of facts: what tells its subjects apart, and what it says of them."""

    table: type[_Fact]
    noun: str
    names: tuple[str, ...]
    attributes: tuple[str, ...]
    is_caseless: bool  # Azure's names are the same in any capitals; ours (applications, tags) are not
    keeps_unsaid: bool  # whether an empty field leaves what stands

    def subject(self, attributes: _Attributes) -> _Subject:
        """What tells this subject from others."""
        return tuple(str(attributes[name] or "").casefold() if self.is_caseless else str(attributes[name] or "") for name in self.names)

    def span(self, fact: _Fact) -> _Span:
        """What the row says, and for when."""
        return _Span({name: getattr(fact, name) for name in (*self.names, *self.attributes)}, fact.valid_from, fact.valid_to)


_WORKSPACES = _Kind(WorkspaceFact, "workspace", ("workspace",), _WORKSPACE_ATTRIBUTES, is_caseless=True, keeps_unsaid=True)
_DEPLOYMENTS = _Kind(DeploymentFact, "deployment", ("workspace", "endpoint", "deployment"), _DEPLOYMENT_ATTRIBUTES, is_caseless=True, keeps_unsaid=True)
_OWNERS = _Kind(
    Owner, "owned thing", ("workspace", "deployment", "application", "tag_key", "tag_value"), _OWNER_ATTRIBUTES, is_caseless=False, keeps_unsaid=False
)


@dataclass(frozen=True, slots=True)
class _Author:
    """Who says it, where it comes from and when: what every new row is signed with."""

    source: str
    author: str
    now: datetime

    def fact(self, kind: _Kind[_Fact], span: _Span) -> _Fact:
        """The row of a span."""
        values = dict(span.attributes)
        if kind.table is DeploymentFact:
            values["name"] = full_name(values["endpoint"], values["deployment"])
        return kind.table(**values, source=self.source, author=self.author, valid_from=span.valid_from, valid_to=span.valid_to, known_from=self.now)


def _by_subject(all_said: Iterable[_Said], kind: _Kind[_Fact], faults: Faults) -> dict[_Subject, list[_Said]]:
    """What is said of each subject: its history, or one statement about now; contradictions are faults."""
    said_of: dict[_Subject, list[_Said]] = {}
    for said in all_said:
        said_of.setdefault(kind.subject(said.attributes), []).append(said)
    for subject, statements in said_of.items():
        if not any(said.is_explicit for said in statements):
            said_of[subject] = [_together(statements, kind, faults)]
            continue
        for earlier, later in overlaps((subject, said.valid_from, said.valid_to, said.place) for said in statements):
            faults.add(later, f"says of the same {kind.noun} and time as {earlier}; validity includes its start and excludes its end")
    return said_of


def _together(statements: Sequence[_Said], kind: _Kind[_Fact], faults: Faults) -> _Said:
    """One statement from several that each say a part of it, such as an Azure list and a file of retirement dates."""
    first, *others = statements
    for other in others:
        for name, value in other.attributes.items():
            known = first.attributes[name]
            if value is not None and known is not None and not _same(name, value, known):
                subject = "/".join(str(first.attributes[part]) for part in kind.names if first.attributes[part] is not None)
                faults.add(other.place, f"{name} of {subject} is {value}, but {first.place} says {known}")
        attributes = {name: other.attributes[name] if known is None else known for name, known in first.attributes.items()}
        first = changed(first, attributes=attributes, created_at=first.created_at or other.created_at)
    return first


def _workspaces_said(found: _Inventory, faults: Faults) -> dict[_Subject, list[_Said]]:
    """What is said of the workspaces that are mentioned with more than their name."""
    dated = {_WORKSPACES.subject(said.attributes) for said in found.workspaces if said.is_explicit}
    implied = [said for said in found.implied if _WORKSPACES.subject(said.attributes) not in dated]
    said_of = _by_subject([*found.workspaces, *implied], _WORKSPACES, faults)
    worth: dict[_Subject, list[_Said]] = {}
    for subject, statements in said_of.items():
        regions = found.regions.get(subject[0], set())
        if len(statements) == 1 and statements[0].attributes["region"] is None and len(regions) == 1:
            # Endpoints and Foundry deployments are where their workspace is.
            statements[0] = changed(statements[0], attributes={**statements[0].attributes, "region": next(iter(regions))})
        if any(said.attributes[name] is not None for said in statements for name in ("subscription_id", "resource_group", "kind")):
            worth[subject] = statements
    return worth


def _apply(
    session: Session,
    kind: _Kind[_Fact],
    current: Sequence[_Fact],
    said: Mapping[_Subject, Sequence[_Said]],
    by: _Author,
    *,
    end_unnamed: bool = False,
) -> Changes:
    """Bring the table to what is said: rows that no longer hold are closed, new ones added, the others left alone."""
    standing: dict[_Subject, list[tuple[_Fact, _Span]]] = {}
    for fact in current:
        span = kind.span(fact)
        standing.setdefault(kind.subject(span.attributes), []).append((fact, span))
    counts: Counter[str] = Counter()
    for subject in [*said, *(subject for subject in standing if subject not in said)]:
        facts = standing.get(subject, [])
        spans = [span for _, span in facts]
        if subject in said:
            wanted = _told(spans, said[subject], now=by.now, keeps_unsaid=kind.keeps_unsaid)
            verdict = "unchanged" if wanted == spans else "changed" if facts else "added"
        elif end_unnamed:
            wanted = [kept for span in spans if (kept := _until(span, by.now)) is not None]
            verdict = "ended" if wanted != spans else ""
        else:
            continue
        counts[verdict] += 1
        for fact, span in facts:
            if span not in wanted:
                fact.known_to = by.now
                session.add(fact)
        session.add_all(by.fact(kind, span) for span in wanted if span not in spans)
    session.flush()
    return Changes(counts["added"], counts["changed"], counts["unchanged"], counts["ended"])


def _told(spans: list[_Span], statements: Sequence[_Said], *, now: datetime, keeps_unsaid: bool) -> list[_Span]:
    """The history of a subject once the statements are heard; pure."""
    if any(said.is_explicit for said in statements):
        history = [_Span(_settled(said.attributes), said.valid_from, said.valid_to) for said in statements]
        # In the order that stands, where it says the same: then nothing has changed.
        return spans if len(spans) == len(history) and all(span in spans for span in history) else history
    (said,) = statements
    standing = next((span for span in spans if now in span), None)
    if standing is None:
        return [*spans, _Span(_settled(said.attributes), _begin(spans, said, now), _next_start(spans, now))]
    attributes = _merged(standing.attributes, said.attributes, keeps_unsaid=keeps_unsaid)
    if attributes == standing.attributes:
        return spans
    split = [past for past in (_until(standing, now),) if past is not None]
    return [*(span for span in spans if span is not standing), *split, _Span(attributes, now, standing.valid_to)]


def _begin(spans: Sequence[_Span], said: _Said, now: datetime) -> datetime | None:
    """When something that is in force now, but that we do not know as such, began."""
    created = None if said.created_at is None else min(said.created_at, now)
    ends = [span.valid_to for span in spans if span.valid_to is not None and span.valid_to <= now]
    if not ends:
        return created
    # It had ended: Azure's creation date tells whether it is a new one, or was there all along.
    return now if created is None else max(created, *ends)


def _next_start(spans: Sequence[_Span], now: datetime) -> datetime | None:
    return min((span.valid_from for span in spans if span.valid_from is not None and span.valid_from > now), default=None)


def _until(span: _Span, now: datetime) -> _Span | None:
    """The part of the span before ``now``."""
    if span.valid_to is not None and span.valid_to <= now:
        return span
    return None if span.valid_from is not None and span.valid_from >= now else changed(span, valid_to=now)


def _merged(standing: _Attributes, said: _Attributes, *, keeps_unsaid: bool) -> _Attributes:
    # Under another mode it is another deployment of the same name: the old one's size and offer say nothing of it.
    if said.get("mode") not in (None, standing.get("mode")) and standing.get("mode") != Mode.UNKNOWN:
        keeps_unsaid = False
    merged = {}
    for name, value in (said if keeps_unsaid else _settled(said)).items():
        known = standing[name]
        keeps = (value is None and keeps_unsaid) or (value is not None and known is not None and _same(name, value, known))
        merged[name] = known if keeps else value
    return merged


def _settled(attributes: _Attributes) -> _Attributes:
    """The attributes as the table keeps them: a mode and a kind always say something."""
    defaults = {"mode": Mode.UNKNOWN, "kind": "workspace"}
    return {name: defaults.get(name) if value is None else value for name, value in attributes.items()}


def _same(name: str, left: Any, right: Any) -> bool:
    return str(left).casefold() == str(right).casefold() if name in _CASELESS else bool(left == right)


def _one_at_a_time(session: Session) -> None:
    # SQLite has one writer anyway; on PostgreSQL two imports at once would each miss what the other adds.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_IMPORT_LOCK)))
