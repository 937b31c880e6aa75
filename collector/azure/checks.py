"""What ``meterbridge doctor`` asks Azure: who we are there, what we may read, how fresh it is, and what a deployer lacks.

Nothing is changed and no bill is asked for: rights are read from the permissions that Azure itself lists, so that a
look costs none of the tenant's budget of cost queries.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, Protocol

from collector.doctor import Finding
from models import sources
from models.errors import DomainError, Forbidden, NotFound, Unauthorized
from models.periods import to_the_second
from models.sources import PullState
from models.store import Store

_SUBSCRIPTION_VERSION = "2022-12-01"
_PERMISSIONS_VERSION = "2022-04-01"
_ML_VERSION = "2024-10-01"
_EXPORTS_VERSION = "2025-03-01"
_DENIALS_VERSION = "2022-04-01"
_ACCOUNT_VERSION = "2024-04-01"
_ACCOUNT = re.compile(r"providers/Microsoft\.Billing/billingAccounts/[^/]+", re.IGNORECASE)
_ACCOUNTS = {
    "EnterpriseAgreement": "Enterprise Agreement",
    "MicrosoftCustomerAgreement": "Microsoft Customer Agreement",
    "MicrosoftPartnerAgreement": "Microsoft Partner Agreement",
}
# The principal that deny assignments name for all of the tenant.
_EVERYONE = "00000000-0000-0000-0000-000000000000"
_MOST_CONTAINERS = 10
_DAY = timedelta(days=1)
# The documentation says that cost data is refreshed every four hours and asks for one pull a day.
_STALE = {"costs": 2 * _DAY, "inventory": 2 * _DAY, "quotas": 2 * _DAY, "prices": 8 * _DAY, "metrics": 2 * _DAY}
_MOST_WORKSPACES = 20
# The budget is spoken of as tight when less than a quarter of it is left.
_TIGHT = 4
# Query units for each tenant and hour, as documented (Microsoft, Manage costs with automation, 2026-07).
_HOURLY_BUDGET = 600

Place = Literal["subscription", "resource group", "workspace"]

READ_BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
READ_COSTS = "Microsoft.CostManagement/query/read"
READ_INVENTORY = "Microsoft.MachineLearningServices/workspaces/read"


@dataclass(frozen=True, slots=True)
class Need:
    """A permission that a person needs to deploy a serverless model, where, and a built-in role that holds it."""

    action: str
    at: Place
    role: str


# As Microsoft documents them for serverless deployments, from where they are asked (a subscription is subscribed to the
# offer, the SaaS resource lies in a resource group, the endpoint in a workspace).
NEEDS = (
    Need("Microsoft.MarketplaceOrdering/agreements/offers/plans/read", "subscription", "Contributor"),
    Need("Microsoft.MarketplaceOrdering/agreements/offers/plans/sign/action", "subscription", "Contributor"),
    Need("Microsoft.MarketplaceOrdering/offerTypes/publishers/offers/plans/agreements/read", "subscription", "Contributor"),
    Need("Microsoft.Marketplace/offerTypes/publishers/offers/plans/agreements/read", "subscription", "Contributor"),
    Need("Microsoft.SaaS/register/action", "subscription", "Contributor"),
    Need("Microsoft.SaaS/resources/read", "resource group", "Contributor"),
    Need("Microsoft.SaaS/resources/write", "resource group", "Contributor"),
    Need("Microsoft.MachineLearningServices/workspaces/marketplaceModelSubscriptions/*", "workspace", "AzureML Data Scientist"),
    Need("Microsoft.MachineLearningServices/workspaces/serverlessEndpoints/*", "workspace", "AzureML Data Scientist"),
)

# The start of subscriptionPolicies.quotaId -> what kind of subscription it is, and whether it may buy from the Marketplace.
_AGREEMENTS = (
    ("azureplan", "Microsoft Customer Agreement", True),
    ("enterpriseagreement", "Enterprise Agreement", True),
    ("msdndevtest", "Enterprise Dev/Test", True),
    ("payasyougo", "pay-as-you-go", True),
    ("freetrial", "free trial", False),
    ("azurepass", "Azure Pass", False),
    ("azureforstudents", "student", False),
    ("dreamspark", "student", False),
    ("sponsored", "sponsored", False),
    ("msdn", "Visual Studio credit", False),
    ("mpn", "partner credit", False),
)


class Azure(Protocol):
    """What is asked of the way to Azure."""

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]: ...

    def arm_list(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> list[dict[str, Any]]: ...


def examine(
    store: Store, azure: Azure, *, subscriptions: Sequence[str], scopes: Sequence[str], now: datetime, deploy_permissions: bool = False
) -> Iterator[Finding]:
    """Findings in order of how much depends on them; without a sign-in only what is known here follows."""
    signed_in = yield from _sign_in(azure)
    if signed_in:
        for subscription in subscriptions:
            yield from _subscription(azure, subscription)
        for scope in scopes:
            yield from _account(azure, scope)
            yield from _scope(azure, scope)
        if deploy_permissions:
            for subscription in subscriptions:
                yield from _deployer(azure, subscription)
    yield from _pulls(store, scopes, now=now)
    yield from _headroom(store, now=now)


def _sign_in(azure: Azure) -> Generator[Finding, None, bool]:
    try:
        seen = azure.arm_list("/subscriptions", api_version=_SUBSCRIPTION_VERSION)
    except Unauthorized as fault:
        yield Finding("failure", f"Azure: {fault.message}", "az login, or give the service a managed identity; or correct METERBRIDGE_AZURE_CREDENTIAL")
        return False
    except DomainError as fault:
        yield Finding("failure", f"Azure: {fault.message}", "check METERBRIDGE_AZURE_ARM_URL, and that this machine may reach it over https (proxy, firewall)")
        return False
    yield Finding("ok", f"Azure: signed in, {len(seen)} subscription{'s' if len(seen) != 1 else ''} in sight")
    return True


def _subscription(azure: Azure, subscription: str) -> Iterator[Finding]:
    scope = f"subscriptions/{subscription}"
    try:
        said = azure.arm_get(f"/{scope}", api_version=_SUBSCRIPTION_VERSION)
    except (Forbidden, NotFound):
        yield Finding(
            "failure",
            f"subscription {subscription}: it is not there, or nothing of it may be read",
            f"correct METERBRIDGE_AZURE_SUBSCRIPTIONS, or: {_assign('Reader', scope)}",
        )
        return
    except DomainError as fault:
        yield Finding("failure", f"subscription {subscription}: {fault.message}", "try again later: meterbridge doctor")
        return
    yield _kind(subscription, said)
    yield from _may(azure, scope, READ_INVENTORY, "read the inventory", "Reader")


def _kind(subscription: str, said: Mapping[str, Any]) -> Finding:
    """What kind of agreement it is under; a free one cannot deploy, one that is off bills nothing."""
    quota_id = str((said.get("subscriptionPolicies") or {}).get("quotaId") or "")
    state = str(said.get("state") or "Enabled")
    named = f"subscription {subscription} ({said.get('displayName') or 'no name'})"
    if state != "Enabled":
        return Finding("failure", f"{named} is {state}: nothing runs in it", "pay what is owed or turn it on again under Cost Management + Billing")
    # Longer names first, as MSDNDevTest begins with MSDN.
    found = next(((name, may) for start, name, may in _AGREEMENTS if quota_id.casefold().startswith(start)), None)
    if found is None:
        return Finding(
            "warning",
            f"{named}: its offer {quota_id or '(none told)'} is not known; whether it may deploy Marketplace models is unclear",
            "look it up under Subscriptions > Overview > Offer; pay-as-you-go, Microsoft Customer Agreement and Enterprise Agreement may deploy",
        )
    name, may_deploy = found
    if not may_deploy:
        return Finding(
            "failure",
            f"{named}: {name} ({quota_id}); it cannot deploy models from the Marketplace",
            "upgrade it to pay-as-you-go: Subscriptions > Upgrade, or use another subscription",
        )
    return Finding("ok", f"{named}: {name} ({quota_id})")


def _account(azure: Azure, scope: str) -> Iterator[Finding]:
    """What kind of billing account a scope is in; bills of one opened at the portal are read by subscription alone."""
    found = _ACCOUNT.match(scope)
    if found is None:
        return
    try:
        said = azure.arm_get(f"/{found[0]}", api_version=_ACCOUNT_VERSION)
    except DomainError:
        return  # whether its costs may be read is asked below; its kind is only a help
    kind = str((said.get("properties") or {}).get("agreementType") or "")
    if kind == "MicrosoftOnlineServicesProgram":
        yield Finding(
            "failure",
            f"{scope}: a pay-as-you-go account, whose bills Azure gives by subscription only",
            "name its subscriptions in METERBRIDGE_AZURE_SUBSCRIPTIONS, and no METERBRIDGE_AZURE_SCOPES",
        )
    elif kind:
        yield Finding("ok", f"{scope}: {_ACCOUNTS.get(kind, kind)}")


def _scope(azure: Azure, scope: str) -> Iterator[Finding]:
    """Whether the bill of a scope can be read, and what exports it has."""
    if scope.casefold().startswith("providers/microsoft.billing"):
        # Billing accounts have roles of their own, which Microsoft.Authorization does not list.
        role = "a billing reader role (Microsoft Customer Agreement: Billing account reader; Enterprise Agreement: Enterprise Administrator, read only)"
    else:
        role = "Cost Management Reader"
        yield from _may(azure, scope, READ_COSTS, "read costs", role)
    try:
        exports = azure.arm_list(f"/{scope}/providers/Microsoft.CostManagement/exports", api_version=_EXPORTS_VERSION)
    except Forbidden:
        fix = f"assign {role} under Cost Management + Billing > Access control" if role != "Cost Management Reader" else _assign(role, scope)
        yield Finding("failure", f"{scope}: its exports may not be listed", fix)
        return
    except DomainError as fault:
        yield Finding("warning", f"{scope}: its exports could not be listed: {fault.message}", "try again later: meterbridge doctor")
        return
    names = sorted(str(each.get("name") or "") for each in exports)
    if names:
        yield Finding("ok", f"{scope}: exports {', '.join(names[:10])}" + (f" and {len(names) - 10} more" if len(names) > 10 else ""))
        yield from _storage(azure, scope, exports)
    else:
        yield Finding(
            "ok", f"{scope}: no exports; bills are asked for as reports (months above 2 GB need an export: Cost Management > Exports > Cost and usage, FOCUS)"
        )


def _storage(azure: Azure, scope: str, exports: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether the files of the exports may be read: that is a right to data, which no role on the subscription's resources holds."""
    containers: dict[str, str] = {}
    for export in exports:
        to = ((export.get("properties") or {}).get("deliveryInfo") or {}).get("destination") or {}
        if to.get("resourceId") and to.get("container"):
            place = f"{str(to['resourceId']).strip('/')}/blobServices/default/containers/{to['container']}"
            containers.setdefault(place, str(export.get("name") or ""))
    for place, name in sorted(containers.items())[:_MOST_CONTAINERS]:
        try:
            blocks = _permissions(azure, place)
        except Forbidden:
            blocks = []
        except DomainError as fault:
            yield Finding(
                "warning",
                f"{scope}: whether the files of the export {name} may be read could not be told: {fault.message}",
                "try again later: meterbridge doctor",
            )
            continue
        data = [{"actions": block.get("dataActions") or (), "notActions": block.get("notDataActions") or ()} for block in blocks]
        if allows(data, READ_BLOBS):
            yield Finding("ok", f"{scope}: may read the files of the export {name}")
        else:
            what = f"{scope}: may not read the files of the export {name} ({READ_BLOBS} is missing), from which bills come where Azure makes no report"
            yield Finding("warning", what, _assign("Storage Blob Data Reader", place))


def _denied(azure: Azure, scope: str, actions: Sequence[str]) -> Iterator[Finding]:
    """Deny assignments at or above a scope that hold one of the actions: they win over every role."""
    try:
        listed = azure.arm_list(f"/{scope}/providers/Microsoft.Authorization/denyAssignments", api_version=_DENIALS_VERSION, params={"$filter": "atScope()"})
    except DomainError:
        return  # who may read may list them; where not, a role is missing, which is said already
    for one in listed:
        said = one.get("properties") or {}
        name = f"the deny assignment {said.get('denyAssignmentName') or one.get('name')!r} on {said.get('scope') or '/' + scope}"
        address = f"{one.get('id')}?api-version={_DENIALS_VERSION}"
        fix = (
            "no role undoes it: have whoever manages the application, deployment stack or blueprint that made it exclude the service's identity; "
            f"az rest --method get --url {shlex.quote(address)} shows it"
        )
        is_for_all = any(str(each.get("id")) == _EVERYONE for each in said.get("principals") or ()) and not said.get("excludePrincipals")
        for action in actions:
            if not allows(said.get("permissions") or (), action):
                continue
            if is_for_all:
                yield Finding("failure", f"{scope}: {name} takes {action} from everybody", fix)
            else:
                yield Finding("warning", f"{scope}: {name} takes {action} from some; if the service is one of them it may not, whatever its roles", fix)


def _may(azure: Azure, scope: str, action: str, what: str, role: str) -> Iterator[Finding]:
    try:
        blocks = _permissions(azure, scope)
    except Forbidden:
        blocks = []
    except DomainError as fault:
        yield Finding("warning", f"{scope}: whether we may {what} could not be told: {fault.message}", "try again later: meterbridge doctor")
        return
    if allows(blocks, action):
        denied = list(_denied(azure, scope, [action]))
        yield from denied or [Finding("ok", f"{scope}: may {what}")]
    else:
        extra = "; with an Enterprise Agreement also turn on 'AO view charges'" if action == READ_COSTS else ""
        yield Finding("failure", f"{scope}: may not {what} ({action} is missing)", _assign(role, scope) + extra)


# -- what a deployer needs ------------------------------------------------------------------------


def _deployer(azure: Azure, subscription: str) -> Iterator[Finding]:
    """The permissions of whoever is signed in, held against what deploying needs; the workspaces are those in sight."""
    root = f"subscriptions/{subscription}"
    try:
        listed = azure.arm_list(f"/{root}/providers/Microsoft.MachineLearningServices/workspaces", api_version=_ML_VERSION)
        workspaces = sorted(str(each["id"]).strip("/") for each in listed)
        groups = sorted({one.partition("/providers/")[0] for one in workspaces[:_MOST_WORKSPACES]})
        asked: list[tuple[Place, str]] = [("subscription", root)]
        asked += [("resource group", one) for one in groups or [root]]
        asked += [("workspace", one) for one in workspaces[:_MOST_WORKSPACES] or [root]]
        for place, scope in asked:
            blocks = _permissions(azure, scope)
            needs = [need for need in NEEDS if need.at == place]
            missing = [need for need in needs if not allows(blocks, need.action)]
            for need in missing:
                yield Finding("failure", f"deploying needs {need.action} on {scope}: missing", _assign(need.role, scope))
            denied = list(_denied(azure, scope, [need.action for need in needs if need not in missing]))
            yield from denied
            if not missing and not denied:
                yield Finding("ok", f"deploying: all {len(needs)} permissions on {scope}")
    except DomainError as fault:
        yield Finding(
            "failure", f"subscription {subscription}: what a deployer may do could not be read: {fault.message}", f"{_assign('Reader', root)}; then try again"
        )
        return
    if len(workspaces) > _MOST_WORKSPACES:
        more = len(workspaces) - _MOST_WORKSPACES
        yield Finding("warning", f"subscription {subscription}: {more} further workspaces were not looked at", f"only the first {_MOST_WORKSPACES} are")


def _permissions(azure: Azure, scope: str) -> list[dict[str, Any]]:
    return azure.arm_list(f"/{scope}/providers/Microsoft.Authorization/permissions", api_version=_PERMISSIONS_VERSION)


def allows(blocks: Iterable[Mapping[str, Any]], action: str) -> bool:
    """Whether role definitions (``actions`` less ``notActions``, each on its own, then together) hold an action.

    An action that ends in ``/*`` is all there is below it: one role may hold it whole, or several its reads, writes,
    deletes and other actions. What a role leaves out another may still give.
    """
    known = list(blocks)
    if any(_holds(block, action) for block in known):
        return True
    if not action.endswith("/*"):
        return False
    below = action.removesuffix("*")
    return all(any(_holds(block, below + part) for block in known) for part in ("read", "write", "delete", "*/action"))


def _holds(block: Mapping[str, Any], action: str) -> bool:
    wanted = action.casefold()
    return any(_covers(str(one).casefold(), wanted) for one in block.get("actions") or ()) and not any(
        _meets(str(one).casefold(), wanted) for one in block.get("notActions") or ()
    )


@cache
def _covers(pattern: str, action: str) -> bool:
    """Whether a pattern holds all of an action; a ``*`` in the action is met by a ``*`` alone."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), action, re.DOTALL) is not None


@cache
def _meets(left: str, right: str) -> bool:
    """Whether two patterns have any action in common."""
    if left[:1] == "*":
        return _meets(left[1:], right) or (right != "" and _meets(left, right[1:]))
    if right[:1] == "*":
        return _meets(left, right[1:]) or (left != "" and _meets(left[1:], right))
    return left == right or (left != "" and right != "" and left[0] == right[0] and _meets(left[1:], right[1:]))


def _assign(role: str, scope: str) -> str:
    return f"az role assignment create --assignee <identity> --role {shlex.quote(role)} --scope /{scope}"


# -- what was pulled ------------------------------------------------------------------------------


def _pulls(store: Store, scopes: Sequence[str], *, now: datetime) -> Iterator[Finding]:
    """How old the newest pull of each source is, and what the last one said where it failed; of bills those that are asked for now."""
    with store.read() as session:
        runs = list(sources.last_runs(session))
        newest: dict[tuple[str, str], datetime] = {}
        for run in runs:
            done = sources.last_success(session, run.source, run.scope)
            if done is not None and done.finished_at is not None:
                newest[run.source, run.scope] = done.finished_at
        last = {(run.source, run.scope): run for run in sorted(runs, key=lambda run: run.started_at)}
        told = {key: (run.state, run.message) for key, run in last.items()}
    for source, stale in _STALE.items():
        places = sorted(scope for name, scope in told if name == source and (source != "costs" or scope in scopes))
        if not places:
            yield Finding("warning", f"{source}: nothing was pulled yet", f"meterbridge sync {source}")
        if places and source == "costs":
            for scope in sorted(set(scopes).difference(places)):
                yield Finding("warning", f"costs of {scope}: nothing was pulled yet", "meterbridge sync costs")
        for scope in places:
            state, message = told[source, scope]
            at = newest.get((source, scope))
            where = f"{source} of {scope}" if scope else source
            if at is None or now - at > stale:
                age = "never" if at is None else f"last on {to_the_second(at)}"
                why = f": {message}" if state == PullState.FAILED and message else ""
                yield Finding("warning", f"{where}: pulled whole {age}{why}", f"meterbridge sync {source}")
            elif state == PullState.FAILED:
                yield Finding("warning", f"{where}: the last pull failed ({message}); the one of {to_the_second(at)} stands", f"meterbridge sync {source}")
            else:
                yield Finding("ok", f"{where}: pulled {to_the_second(at)}")


def _headroom(store: Store, *, now: datetime) -> Iterator[Finding]:
    """How much of the budget of cost calls is left in the running hour, and how often Azure throttled in a day."""
    with store.read() as session:
        calls, _ = sources.calls_since(session, "costs", now - timedelta(hours=1))
        throttles = sum(run.throttles for run in sources.last_runs(session) if run.started_at > now - _DAY)
    left = max(0, _HOURLY_BUDGET - calls)
    what = f"throttling: {left} of {_HOURLY_BUDGET} cost calls left this hour, throttled {throttles} times by the runs of the last day"
    if left * _TIGHT < _HOURLY_BUDGET or throttles:
        yield Finding("warning", what, "let the schedule pull once a day, and look whether another program queries Cost Management in this tenant")
    else:
        yield Finding("ok", what)
