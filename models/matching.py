"""What a name on an event or a bill means: the registry, ownership and the mapping of charges to deployments.

Pure decisions over rows that were known at one instant. Rows of source ``usage`` only list what was seen: they lend
a spelling to the bill and decide nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from models import traffic
from models.charges import ChargeClass, ChargeItem
from models.periods import DAY
from models.prices import model_key
from models.quotas import EndpointFact
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


def full_name(endpoint: str | None, deployment: str | None) -> str | None:
    """``endpoint/deployment``; one name where both are the same or one is not said."""
    if endpoint and deployment and endpoint != deployment:
        return f"{endpoint}/{deployment}"
    return deployment or endpoint or None


class Registry:
    """Workspaces, deployments, owners and the traffic of endpoints as known at one instant."""

    def __init__(
        self,
        workspaces: Iterable[WorkspaceFact],
        deployments: Iterable[DeploymentFact],
        owners: Iterable[Owner] = (),
        endpoints: Iterable[EndpointFact] = (),
    ) -> None:
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
        # Owners by what they name: (rank, name), so that a series looks at its own few only.
        self._owners: dict[tuple[int, str, str], list[Owner]] = {}
        for owner in owners:
            self._owners.setdefault(_owned(owner), []).append(owner)
        # What each look at an endpoint said of its traffic, in the order of the looks.
        self._traffic: dict[tuple[str, str], list[EndpointFact]] = {}
        for endpoint in sorted(endpoints, key=lambda one: (one.known_from, one.id or 0)):
            self._traffic.setdefault((endpoint.workspace.casefold(), endpoint.endpoint.casefold()), []).append(endpoint)

    # -- deployments ----------------------------------------------------------------------------

    def resolve(self, *, workspace: str, endpoint: str | None, deployment: str | None, model: str | None, at: datetime) -> Identity:
        """What an event's names mean at the instant."""
        name = self._name(workspace, endpoint, deployment)
        return self.identity(workspace, name, model=model, at=at)

    def _name(self, workspace: str, endpoint: str | None, deployment: str | None) -> str | None:
        if endpoint and deployment and endpoint.casefold() == deployment.casefold():
            endpoint = None
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

    def shares(self, *, workspace: str, endpoint: str | None, deployment: str | None, at: datetime) -> list[tuple[str, int, int]]:
        """Whose the calls may be that name an endpoint of several deployments and none of them: full names, with their lots of a hundred.

        As the latest look at the endpoint by then found its traffic, else the first look. Empty where the names say it all, or nobody knows.
        """
        looks = self._shared(workspace, endpoint, deployment)
        if not looks:
            return []
        look = next((one for one in reversed(looks) if one.known_from <= at), looks[0])
        named = traffic.ranges(look.traffic)
        return [(self._name(workspace, look.endpoint, name) or name, begin, end) for name, begin, end in named]

    def _shared(self, workspace: str, endpoint: str | None, deployment: str | None) -> Sequence[EndpointFact]:
        if not endpoint or (deployment and deployment.casefold() != endpoint.casefold()):
            return ()
        place, key = workspace.casefold(), endpoint.casefold()
        if (place, key) in self._facts or len(self._of_endpoint.get((place, key), ())) < 2:
            return ()
        return self._traffic.get((place, key), ())

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

    def models(self) -> Iterable[str]:
        """The models as the registry spells them: inventory first, then in order of arrival."""
        facts = (fact for facts in self._facts.values() for fact in facts if fact.model)
        for fact in sorted(facts, key=lambda fact: (-_SOURCE_RANK[fact.source], fact.known_from, fact.id or 0)):
            yield fact.model or ""

    def every_change(self) -> set[datetime]:
        """The instants at which any name's meaning may change."""
        facts: list[DeploymentFact | WorkspaceFact] = [fact for facts in self._workspaces.values() for fact in facts]
        facts += [fact for facts in self._facts.values() for fact in facts]
        return {at for fact in facts for at in (fact.valid_from, fact.valid_to) if at is not None}

    def changes(self, *, workspace: str, endpoint: str | None, deployment: str | None) -> set[datetime]:
        """The instants at which what these names mean may change."""
        found: set[datetime] = set()
        name = self._name(workspace, endpoint, deployment)
        facts: list[DeploymentFact | WorkspaceFact] = list(self._workspaces.get(workspace.casefold(), ()))
        if name is not None:
            facts += self._facts.get((workspace.casefold(), name.casefold()), ())
        looks = self._shared(workspace, endpoint, deployment)
        if looks:
            found.update(look.known_from for look in looks[1:])
            for each in self._of_endpoint[workspace.casefold(), (endpoint or "").casefold()]:
                facts += self._facts[workspace.casefold(), each]
        for fact in facts:
            found.update(at for at in (fact.valid_from, fact.valid_to) if at is not None)
        return found

    def managed(self) -> Iterable[tuple[str, str, list[DeploymentFact]]]:
        """The deployments that inventory has as managed compute at some time: workspace, name, all that it says of them."""
        for (place, key), facts in sorted(self._facts.items()):
            said = [fact for fact in facts if fact.source == "inventory"]
            if any(fact.mode == Mode.MANAGED_COMPUTE for fact in said):
                home = self.workspace_fact(place, said[0].known_from)
                shown = home.workspace if home is not None and home.source == "inventory" else said[0].workspace
                yield shown, self._spelling[place, key][2], said

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
        name = self._name(workspace, item.endpoint, item.deployment)
        if name is not None and (known := self._spelling.get((workspace.casefold(), name.casefold()))) is not None:
            name = known[2]
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
        if item.workspace and (item.endpoint or item.deployment):
            # Some offers are billed on the serverless endpoint itself.
            return Target((self._billed_identity(item, at),))
        homes = {place for place, facts in self._workspaces.items() if _is_home(facts, item, at)}
        here = [
            (place, key, facts, fact)
            for (place, key), facts in self._facts.items()
            if place in homes and (fact := _applying(facts, at)).mode == Mode.SERVERLESS and self.route(fact) == Route.MARKETPLACE
        ]
        resource = item.resource_id.casefold()
        offers = {text.casefold() for text in (item.offer_id, item.plan_id) if text}
        wanted = model_key(item.model) if item.model else None
        for chosen in (
            [row for row in here if row[3].saas_resource_id and row[3].saas_resource_id.casefold() == resource],
            [row for row in here if {text.casefold() for text in (row[3].offer_id, row[3].plan_id) if text} & offers],
            [row for row in here if wanted is not None and row[3].model and model_key(row[3].model) == wanted],
        ):
            if chosen:
                # Of one that was replaced by another, only the one that was there on that day can have been charged.
                alive = [row for row in chosen if any(_touches(fact, at, at + DAY) for fact in row[2])] or chosen
                names = sorted({(place, key) for place, key, _, _ in alive})
                return Target(tuple(self._serverless(item, place, key, at) for place, key in names))
        return Target((Identity(None, None, item.model, Mode.SERVERLESS, Route.MARKETPLACE, subscription=item.subscription_id or None),))

    def _serverless(self, item: ChargeItem, place: str, key: str, at: datetime) -> Identity:
        name = self._spelling[place, key][2]
        found = self.identity(self.workspace_name(place), name, model=item.model, at=at)
        return Identity(
            found.workspace, name, found.model, Mode.SERVERLESS, Route.MARKETPLACE, None, found.region, item.subscription_id or None, found.is_confirmed
        )

    # -- owners ---------------------------------------------------------------------------------

    def owner_changes(self, *, application: str | None, tags: Mapping[str, str]) -> set[datetime]:
        """The instants at which the owner of something with these labels may change, whatever its deployment."""
        named = [key for key in self._owners if key[0] < 2 or key in _labels(application, tags)]
        return {at for key in named for owner in self._owners[key] for at in (owner.valid_from, owner.valid_to) if at is not None}

    def owner(
        self, *, workspace: str | None, deployment: str | None, application: str | None, tags: Mapping[str, str], team: str | None, at: datetime
    ) -> tuple[str | None, str | None]:
        """(team, cost centre): an event's own team stands; else tag before application before deployment before workspace."""
        keys = _labels(application, tags)
        if deployment is not None:
            # An owner file may use the short name of managed compute where it is unique.
            full, short = deployment.casefold(), deployment.rsplit("/", 1)[-1].casefold()
            keys.append((1, full, ""))
            if short != full and workspace is not None and (self._name(workspace, None, short) or "").casefold() == full:
                keys.append((1, short, ""))
        if workspace is not None:
            keys += [(0, workspace.casefold(), ""), (0, "", "")]
        named = {key for key in keys if key[0] == 1}
        best_team: tuple[tuple[int, int, datetime, int], str] | None = None
        best_center: tuple[tuple[int, int, datetime, int], str] | None = None
        for key in keys:
            for owner in self._owners.get(key, ()):
                if not _is_valid(owner, at) or (owner.workspace and (workspace is None or owner.workspace.casefold() != workspace.casefold())):
                    continue
                # A row that says several things is about what all of them are true of.
                if (owner.application or application) != application or (owner.deployment and (1, owner.deployment.casefold(), "") not in named):
                    continue
                order = (key[0], 1 if owner.workspace else 0, owner.known_from, owner.id or 0)
                if owner.team is not None and (best_team is None or order > best_team[0]):
                    best_team = (order, owner.team)
                if owner.cost_center is not None and (best_center is None or order > best_center[0]):
                    best_center = (order, owner.cost_center)
        return team or (best_team[1] if best_team else None), best_center[1] if best_center else None


def _owned(owner: Owner) -> tuple[int, str, str]:
    """What an owner row names, the more specific the higher: a tag, an application, a deployment, a workspace."""
    if owner.tag_key is not None:
        return 3, owner.tag_key, owner.tag_value or ""
    if owner.application is not None:
        return 2, owner.application, ""
    if owner.deployment is not None:
        return 1, owner.deployment.casefold(), ""
    return 0, (owner.workspace or "").casefold(), ""


def _labels(application: str | None, tags: Mapping[str, str]) -> list[tuple[int, str, str]]:
    keys = [(3, key, value) for key, value in tags.items()]
    return keys if application is None else [*keys, (2, application, "")]


def _is_home(facts: Sequence[WorkspaceFact], item: ChargeItem, at: datetime) -> bool:
    said = [fact for fact in facts if fact.subscription_id and fact.resource_group]
    if not said:
        return False
    fact = _applying(said, at)
    return fact.subscription_id == item.subscription_id and fact.resource_group == item.resource_group


def _touches(fact: DeploymentFact, start: datetime, end: datetime) -> bool:
    return (fact.valid_from is None or fact.valid_from < end) and (fact.valid_to is None or fact.valid_to > start)


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
