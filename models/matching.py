"""What a name on an event or a bill means: the registry, ownership and the mapping of charges to deployments.

Pure decisions over rows that were known at one instant. Rows of source ``usage`` only list what was seen: they lend
a spelling to the bill and decide nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from models.charges import ChargeClass, ChargeItem
from models.prices import model_key
from models.resources import DeploymentFact, Mode, Owner, Route, WorkspaceFact

_Fact = TypeVar("_Fact", DeploymentFact, WorkspaceFact)
_SOURCE_RANK = {"inventory": 2, "bill": 1, "usage": 0}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a deployment is at an instant; ``deployment`` None where a charge or event names none."""

    workspace: str | None
    deployment: str | None
    model: str | None = None
    mode: Mode = Mode.UNKNOWN
    route: Route | None = None
    sku: str | None = None
    region: str | None = None
    subscription: str | None = None
    is_confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where a charge belongs: one deployment, several that billing cannot tell apart, or a workspace without one."""

    identities: tuple[Identity, ...]

    @property
    def is_ambiguous(self) -> bool:
        return len(self.identities) > 1


def full_name(endpoint: str | None, deployment: str | None) -> str | None:
    """``endpoint/deployment``; one name where both are the same or one is not said."""
    if endpoint and deployment and endpoint != deployment:
        return f"{endpoint}/{deployment}"
    return deployment or endpoint or None


class Registry:
    """Workspaces, deployments and owners as known at one instant."""

    def __init__(self, workspaces: Iterable[WorkspaceFact], deployments: Iterable[DeploymentFact], owners: Iterable[Owner] = ()) -> None:
        self._workspaces: dict[str, list[WorkspaceFact]] = {}
        for place in workspaces:
            self._workspaces.setdefault(place.workspace.casefold(), []).append(place)
        self._facts: dict[tuple[str, str], list[DeploymentFact]] = {}
        self._spelling: dict[tuple[str, str], tuple[int, int, str]] = {}
        self._short: dict[tuple[str, str], set[str]] = {}
        self._of_endpoint: dict[tuple[str, str], set[str]] = {}
        for fact in deployments:
            workspace, name = fact.workspace.casefold(), fact.name.casefold()
            # Of two spellings inventory's stands, then the first one that usage showed, then the bill's.
            rank = (2 if fact.source == "inventory" else 1 if fact.source == "usage" else 0, -(fact.id or 0), fact.name)
            if (workspace, name) not in self._spelling or rank > self._spelling[workspace, name]:
                self._spelling[workspace, name] = rank
            if fact.source == "usage":
                continue
            self._facts.setdefault((workspace, name), []).append(fact)
            self._short.setdefault((workspace, fact.deployment.casefold()), set()).add(name)
            self._of_endpoint.setdefault((workspace, fact.endpoint.casefold()), set()).add(name)
        for facts in self._facts.values():
            facts.sort(key=_fact_order)
        self._owners = list(owners)

    # -- deployments ----------------------------------------------------------------------------

    def resolve(self, *, workspace: str, endpoint: str | None, deployment: str | None, model: str | None, at: datetime) -> Identity:
        """What an event's names mean at the instant."""
        name = self._name(workspace, endpoint, deployment)
        return self.identity(workspace, name, model=model, at=at)

    def _name(self, workspace: str, endpoint: str | None, deployment: str | None) -> str | None:
        sent = full_name(endpoint, deployment)
        if sent is None:
            return None
        place = workspace.casefold()
        key = sent.casefold()
        if (place, key) in self._facts:
            return self._spelled(place, key, sent)
        if not (endpoint and deployment and endpoint != deployment):
            among = self._short.get((place, key), set()) if deployment else self._of_endpoint.get((place, key), set())
            if len(among) == 1:
                (only,) = among
                return self._spelled(place, only, only)
        return sent

    def _spelled(self, place: str, key: str, sent: str) -> str:
        rank, _, name = self._spelling[place, key]
        return name if rank == 2 or sent.casefold() != key else sent

    def identity(self, workspace: str, name: str | None, *, model: str | None, at: datetime) -> Identity:
        home = self.workspace_fact(workspace, at)
        shown = home.workspace if home is not None and home.source == "inventory" else workspace
        fact = self.fact(workspace, name, at) if name is not None else None
        subscription = self.subscription(workspace, at)
        if fact is None:
            return Identity(shown, name, model or None, subscription=subscription)
        return Identity(
            workspace=shown,
            deployment=name,
            model=fact.model or model or None,
            mode=fact.mode,
            route=self.route(fact),
            sku=fact.sku,
            region=fact.region or (home.region if home is not None else None),
            subscription=subscription,
            is_confirmed=fact.source == "inventory",
        )

    def fact(self, workspace: str, name: str, at: datetime) -> DeploymentFact | None:
        """The row that decides at the instant: inside its validity, else the latest before, else the first."""
        facts = self._facts.get((workspace.casefold(), name.casefold()))
        return _applying(facts, at) if facts else None

    def workspace_fact(self, workspace: str, at: datetime) -> WorkspaceFact | None:
        """The row of the workspace that decides at the instant."""
        facts = self._workspaces.get(workspace.casefold())
        return _applying([fact for fact in facts if fact.source != "usage"] or facts, at) if facts else None

    def subscription(self, workspace: str, at: datetime) -> str | None:
        """The workspace's subscription, from the best source that says one: inventory may name a workspace and not this."""
        facts = [fact for fact in self._workspaces.get(workspace.casefold(), ()) if fact.subscription_id]
        return _applying(facts, at).subscription_id if facts else None

    def route(self, fact: DeploymentFact) -> Route | None:
        """How the deployment's charges reach the bill; a serverless one outside a Foundry account comes by Marketplace."""
        if fact.route is not None:
            return fact.route
        match fact.mode:
            case Mode.MANAGED_COMPUTE:
                return Route.COMPUTE
            case Mode.SERVERLESS:
                homes = self._workspaces.get(fact.workspace.casefold(), ())
                return Route.FOUNDRY if any(home.kind == "foundry_account" for home in homes) else Route.MARKETPLACE
            case _:
                return None

    def changes(self, *, workspace: str, endpoint: str | None, deployment: str | None) -> set[datetime]:
        """The instants at which what these names mean may change."""
        found: set[datetime] = set()
        name = self._name(workspace, endpoint, deployment)
        facts: list[DeploymentFact | WorkspaceFact] = list(self._workspaces.get(workspace.casefold(), ()))
        if name is not None:
            facts += self._facts.get((workspace.casefold(), name.casefold()), ())
        for fact in facts:
            found.update(at for at in (fact.valid_from, fact.valid_to) if at is not None)
        return found

    def managed(self) -> Iterable[tuple[str, str, list[DeploymentFact]]]:
        """The managed-compute deployments of the inventory: workspace, name, their rows in order."""
        for (place, key), facts in sorted(self._facts.items()):
            counted = [
                fact for fact in facts if fact.source == "inventory" and fact.mode == Mode.MANAGED_COMPUTE and fact.sku and fact.instance_count is not None
            ]
            if counted:
                home = self.workspace_fact(place, counted[0].known_from)
                shown = home.workspace if home is not None and home.source == "inventory" else counted[0].workspace
                yield shown, self._spelling[place, key][2], counted

    def deployments(self) -> list[tuple[str, str]]:
        """Every (workspace, name) that inventory or a bill names, as shown."""
        return sorted((self.workspace_name(facts[0].workspace), self._spelling[place, key][2]) for (place, key), facts in self._facts.items())

    # -- charges --------------------------------------------------------------------------------

    def workspace_name(self, billed: str) -> str:
        """A workspace as the bill spells it, in the spelling it is known by."""
        facts = self._workspaces.get(billed.casefold())
        if not facts:
            return billed
        best = max(facts, key=lambda fact: (2 if fact.source == "inventory" else 1 if fact.source == "usage" else 0, -(fact.id or 0)))
        return best.workspace

    def target(self, item: ChargeItem, at: datetime) -> Target:
        """Whose charge it is, from what billing says and the registry knows; ``at`` is the charged day's start."""
        match item.charge_class:
            case ChargeClass.MARKETPLACE:
                return self._marketplace(item, at)
            case ChargeClass.FOUNDRY | ChargeClass.COMPUTE if item.workspace:
                return Target((self._billed_identity(item, at),))
            case _:
                workspace = self.workspace_name(item.workspace) if item.workspace else None
                return Target((Identity(workspace, None, item.model, mode=_mode(item), route=_route(item), subscription=item.subscription_id or None),))

    def _billed_identity(self, item: ChargeItem, at: datetime) -> Identity:
        workspace = self.workspace_name(item.workspace or "")
        billed = full_name(item.endpoint, item.deployment)
        place = workspace.casefold()
        name = billed
        if billed is not None:
            known = self._spelling.get((place, billed.casefold()))
            name = known[2] if known is not None else billed
        found = self.identity(workspace, name, model=item.model, at=at)
        return Identity(
            workspace=found.workspace,
            deployment=name,
            model=found.model,
            mode=_mode(item),
            route=_route(item),
            sku=item.sku or found.sku,
            region=found.region or item.region,
            subscription=item.subscription_id or found.subscription,
            is_confirmed=found.is_confirmed,
        )

    def _marketplace(self, item: ChargeItem, at: datetime) -> Target:
        homes = {
            place
            for place, facts in self._workspaces.items()
            for fact in facts
            if fact.subscription_id == item.subscription_id and fact.resource_group is not None and fact.resource_group == item.resource_group
        }
        here = [(place, key, fact) for (place, key), facts in self._facts.items() if place in homes for fact in facts if self.route(fact) == Route.MARKETPLACE]
        resource = item.resource_id.casefold()
        offers = {text.casefold() for text in (item.offer_id, item.plan_id) if text}
        wanted = model_key(item.model) if item.model else None
        for chosen in (
            [row for row in here if row[2].saas_resource_id and row[2].saas_resource_id.casefold() == resource],
            [row for row in here if {text.casefold() for text in (row[2].offer_id, row[2].plan_id) if text} & offers],
            [row for row in here if wanted is not None and row[2].model and model_key(row[2].model) == wanted],
        ):
            if chosen:
                alive = [row for row in chosen if _is_valid(row[2], at)] or chosen
                names = sorted({(place, key) for place, key, _ in alive})
                return Target(tuple(self._serverless(item, place, key, at) for place, key in names))
        # The resource group has one workspace with Marketplace models: the money is at least that one's.
        places = {place for place, _, _ in here} or homes
        workspace = self.workspace_name(next(iter(places))) if len(places) == 1 else None
        return Target((Identity(workspace, None, item.model, Mode.SERVERLESS, Route.MARKETPLACE, subscription=item.subscription_id or None),))

    def _serverless(self, item: ChargeItem, place: str, key: str, at: datetime) -> Identity:
        name = self._spelling[place, key][2]
        found = self.identity(self.workspace_name(place), name, model=item.model, at=at)
        return Identity(
            found.workspace, name, found.model, Mode.SERVERLESS, Route.MARKETPLACE, None, found.region, item.subscription_id or None, found.is_confirmed
        )

    # -- owners ---------------------------------------------------------------------------------

    @property
    def has_owners(self) -> bool:
        return bool(self._owners)

    def owner_changes(self) -> set[datetime]:
        """The instants at which an owner may change."""
        return {at for owner in self._owners for at in (owner.valid_from, owner.valid_to) if at is not None}

    def owner(
        self, *, workspace: str | None, deployment: str | None, application: str | None, tags: Mapping[str, str], team: str | None, at: datetime
    ) -> tuple[str | None, str | None]:
        """(team, cost centre): an event's own team stands; else tag before application before deployment before workspace."""
        best_team: tuple[tuple[int, int, datetime, int], str] | None = None
        best_center: tuple[tuple[int, int, datetime, int], str] | None = None
        for owner in self._owners:
            if not _is_valid(owner, at) or (owner.workspace and owner.workspace != workspace):
                continue
            if owner.tag_key is not None:
                fits, rank = tags.get(owner.tag_key) == owner.tag_value, 3
            elif owner.application is not None:
                fits, rank = application == owner.application, 2
            elif owner.deployment is not None:
                fits, rank = deployment == owner.deployment, 1
            else:
                fits, rank = workspace is not None, 0
            if not fits:
                continue
            order = (rank, 1 if owner.workspace else 0, owner.known_from, owner.id or 0)
            if owner.team is not None and (best_team is None or order > best_team[0]):
                best_team = (order, owner.team)
            if owner.cost_center is not None and (best_center is None or order > best_center[0]):
                best_center = (order, owner.cost_center)
        return team or (best_team[1] if best_team else None), best_center[1] if best_center else None


def _mode(item: ChargeItem) -> Mode:
    match item.charge_class:
        case ChargeClass.MARKETPLACE | ChargeClass.FOUNDRY:
            return Mode.SERVERLESS
        case ChargeClass.COMPUTE:
            return Mode.MANAGED_COMPUTE
        case _:
            return Mode.UNKNOWN


def _route(item: ChargeItem) -> Route | None:
    match item.charge_class:
        case ChargeClass.MARKETPLACE:
            return Route.MARKETPLACE
        case ChargeClass.FOUNDRY:
            return Route.FOUNDRY
        case ChargeClass.COMPUTE:
            return Route.COMPUTE
        case _:
            return None


def _is_valid(fact: DeploymentFact | WorkspaceFact | Owner, at: datetime) -> bool:
    return (fact.valid_from is None or fact.valid_from <= at) and (fact.valid_to is None or at < fact.valid_to)


def _fact_order(fact: DeploymentFact | WorkspaceFact) -> tuple[int, datetime, int]:
    return (_SOURCE_RANK[fact.source], fact.known_from, fact.id or 0)


def _applying(facts: Sequence[_Fact], at: datetime) -> _Fact:
    valid = [fact for fact in facts if _is_valid(fact, at)]
    if valid:
        return max(valid, key=_fact_order)
    # Of the best source there is: the latest that ended before, else the first that begins after.
    rank = max(_SOURCE_RANK[fact.source] for fact in facts)
    ranked = [fact for fact in facts if _SOURCE_RANK[fact.source] == rank]
    ended = [fact for fact in ranked if fact.valid_to is not None and fact.valid_to <= at]
    if ended:
        return max(ended, key=lambda fact: (fact.valid_to or at, fact.known_from, fact.id or 0))
    return min(ranked, key=lambda fact: (fact.valid_from or at, fact.known_from, fact.id or 0))
