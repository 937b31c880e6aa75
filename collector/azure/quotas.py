"""vCPU quotas come in here: what Compute and Machine Learning each say of a region, kept with its history.

The two count apart, and the same cores appear at several levels; which level a row is of is kept, so that nobody adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlmodel import Session, col, select

from collector.azure.inventory import Arm, Say
from models.errors import DomainError, UpstreamError
from models.quotas import AzureQuota, family_key
from models.resources import DeploymentFact, WorkspaceFact
from models.store import Store

Source = Literal["compute", "ml"]
# Versions of the usages read here (azure-rest-api-specs, stable, 2026).
_VERSIONS: Mapping[Source, str] = {"compute": "2024-07-01", "ml": "2024-10-01"}
_PROVIDERS: Mapping[Source, str] = {"compute": "Microsoft.Compute", "ml": "Microsoft.MachineLearningServices"}
_ATTRIBUTES = ("level", "workspace", "family", "quota", "used", "unit")


@dataclass(frozen=True, slots=True)
class QuotaSync:
    """What a pull of the quotas did: how many rows it read, how many of them said something new."""

    rows: int
    changed: int
    places: int
    failures: tuple[str, ...] = ()

    def summary(self) -> str:
        """A few plain lines for the person who ran it."""
        lines = [f"{self.rows} quotas of {self.places} regions and sources, {self.changed} of them new or changed"]
        return "\n".join([*lines, *(f"nothing was changed of {failure}" for failure in self.failures)])


def sync(store: Store, arm: Arm, subscriptions: Sequence[str], *, now: Callable[[], datetime], say: Say = lambda _line: None) -> QuotaSync:
    """Pull the quotas of every region that a subscription has a workspace in; each region and source lands whole or not at all."""
    with store.read() as session:
        places = {subscription: regions(session, subscription) for subscription in subscriptions}
    rows = changed = landed = 0
    failures: list[str] = []
    faults: list[DomainError] = []
    for subscription, names in places.items():
        if not names:
            say(f"subscription {subscription}: no region is known yet; meterbridge sync inventory finds them")
        for region in names:
            for source in _PROVIDERS:
                path = f"/subscriptions/{subscription}/providers/{_PROVIDERS[source]}/locations/{region}/usages"
                try:
                    items = arm.arm_list(path, api_version=_VERSIONS[source])
                    quotas = [_quota(item, subscription, region, source, now=now()) for item in items]
                    with store.write() as session:
                        changed += land(session, quotas, place=(subscription, region, source), now=now())
                except DomainError as fault:
                    failures.append(f"{source} quotas of {region} in subscription {subscription}: {fault.message}")
                    faults.append(fault)
                    continue
                rows, landed = rows + len(quotas), landed + 1
    if faults and not landed:
        raise faults[0]
    return QuotaSync(rows, changed, landed, tuple(failures))


def regions(session: Session, subscription_id: str) -> list[str]:
    """The regions in which the subscription has a workspace or a deployment."""
    homes = session.exec(
        select(WorkspaceFact).where(col(WorkspaceFact.known_to).is_(None), col(WorkspaceFact.subscription_id) == subscription_id.casefold())
    ).all()
    names = {home.workspace.casefold() for home in homes}
    found = {home.region for home in homes if home.region}
    for fact in session.exec(select(DeploymentFact).where(col(DeploymentFact.known_to).is_(None), col(DeploymentFact.region).is_not(None))):
        if fact.workspace.casefold() in names and fact.region:
            found.add(fact.region)
    return sorted(found - {"global"})


def land(session: Session, quotas: Sequence[AzureQuota], *, place: tuple[str, str, Source], now: datetime) -> int:
    """Keep what is new, confirm what stands, close what is no longer said; gives how many rows said something new."""
    subscription, region, source = place
    said = {_key(row): row for row in quotas}
    standing = session.exec(
        select(AzureQuota).where(
            col(AzureQuota.known_to).is_(None),
            col(AzureQuota.subscription_id) == subscription.casefold(),
            col(AzureQuota.region) == region,
            col(AzureQuota.source) == source,
        )
    ).all()
    for row in standing:
        fresh = said.get(_key(row))
        if fresh is not None and all(getattr(row, name) == getattr(fresh, name) for name in _ATTRIBUTES):
            row.seen_at = now
            del said[_key(row)]
        else:
            row.known_to = now
        session.add(row)
    session.add_all(said.values())
    session.flush()
    return len(said)


def _quota(item: Mapping[str, Any], subscription: str, region: str, source: Source, *, now: datetime) -> AzureQuota:
    name = (item.get("name") or {}).get("value")
    used, limit = _whole(item.get("currentValue")), _whole(item.get("limit"))
    if not isinstance(name, str) or used is None or limit is None:
        raise UpstreamError(f"Azure answered a quota of {region} that says no name, use or limit: {str(item)[:120]}; nothing was changed", retryable=False)
    level, workspace = _level(item, name, source)
    return AzureQuota(
        subscription_id=subscription.casefold(),
        region=region,
        source=source,
        level=level,
        workspace=workspace,
        family=name,
        family_key=family_key(name),
        # Low-priority families have no limit, which Azure writes as -1.
        quota=None if limit < 0 else limit,
        used=used,
        unit=str(item.get("unit") or "Count"),
        known_from=now,
        seen_at=now,
    )


def _level(item: Mapping[str, Any], name: str, source: Source) -> tuple[str, str]:
    """At which level Azure counts the row, and of which workspace."""
    if source == "compute":
        folded = name.casefold()
        if folded == "cores":
            return "total", ""
        if "lowpriority" in folded:
            return "low_priority", ""
        return ("family", "") if folded.endswith("family") else ("other", "")
    kind = str(item.get("type") or "").casefold().split("/")[1:2]
    match kind:
        case ["vmfamily"]:
            # Compare names too: low-priority families come as families of their own.
            return ("low_priority" if "lowpriority" in name.casefold() else "family"), ""
        case ["workspaces" | "workspace"]:
            # Both spellings occur in one answer.
            parts = str(item.get("id") or "").split("/")
            return "workspace", parts[8] if len(parts) > 8 else ""
        case ["totalcores" | "dedicatedcores"]:
            return "total", ""
        case ["lowprioritycores"]:
            return "low_priority", ""
        case _:
            return "other", ""


def _key(row: AzureQuota) -> tuple[str, str, str]:
    return row.level, row.workspace.casefold(), row.family.casefold()


def _whole(value: object) -> int | None:
    """A count; Azure writes some of them as 12.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value:
        return None
    return int(value)
