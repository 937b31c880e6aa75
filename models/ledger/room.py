"""Whether a region's vCPU quota holds more instances of a size: what they need with their upgrades, against what is left there.

Online endpoints run on Machine Learning's quota of their size's family and within the region's total of all families: the
tighter of the two binds. What is left is counted as on the page of quotas, ``limit - used - kept for upgrades``, and what the
instances in question use already is theirs to use again. A family's quota that nobody told is unknown, never room; Azure
tells a region's quotas in one answer, so a total that is not in it does not bind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session

from models import skus
from models.ledger.quotas import upgrade_cores
from models.ledger.world import World
from models.quotas import AzureQuota, azure_quotas, family_key
from models.resources import DeploymentFact

Site = tuple[str | None, str | None]  # subscription, region


@dataclass(frozen=True, slots=True)
class Room:
    """Whether the quota holds the instances; None where nobody knows, with ``reason``. ``vcpus_left`` None: not known, or no limit; else it is ``quota``'s."""

    holds: bool | None
    reason: str | None = None
    vcpus_needed: int | None = None
    vcpus_left: int | None = None
    quota: str | None = None  # the one that binds, as Azure writes it


ENOUGH = Room(holds=True)


class Quotas:
    """The vCPU quotas as they are now, read once where somebody asks."""

    def __init__(self, session: Session, world: World, *, now: datetime) -> None:
        self._session, self._world, self._now = session, world, now
        self._rows: dict[tuple[str, str, str], AzureQuota] | None = None
        self._totals: dict[tuple[str, str], AzureQuota] = {}
        self._reserved: dict[tuple[str, str, str], int] = {}

    def room(self, sku: str, instances: int, sites: Iterable[Site], *, own: Sequence[tuple[Site, DeploymentFact]]) -> Room:
        """Whether so many instances fit into these subscriptions and regions together; ``own`` are instances that run and would be among them."""
        size = skus.find(sku)
        if size is None:
            return Room(holds=None, reason=f"which vCPU quota {sku[:60]} counts against is not known, so neither is whether it can be had")
        self._read()
        family, fitting, left = family_key(size.family), 0, 0
        needed = instances * size.cores + skus.upgrade_cores(size, instances)
        regions: list[str] = []
        unknown: list[str] = []
        binding: dict[str, None] = {}
        for subscription, region in sorted(set(sites), key=str):
            place = _place((subscription, region))
            row = (self._rows or {}).get((*place, family))
            if row is None:
                unknown.append(region or "a region that nobody says")
                continue
            limits = [(one, free) for one in (row, self._totals.get(place)) if one is not None and (free := self._free(one, place, own)) is not None]
            if not limits:
                return Room(holds=True, vcpus_needed=needed)
            binds, free = min(limits, key=lambda one: one[1])
            regions.append(row.region)
            binding[size.family if binds is row else binds.family] = None
            fitting, left = fitting + _fitting(size, free), left + free
        quota = " and ".join(binding) or None
        if fitting >= instances:
            return Room(holds=True, vcpus_needed=needed, vcpus_left=left, quota=quota)
        if unknown or not regions:
            where = ", ".join(unknown) or "the region of a deployment"
            return Room(
                holds=None,
                reason=f"whether {instances:,} × {size.name} can be had is not known: nobody told the vCPU quota of {size.family} in {where} (meterbridge sync quotas)",
                vcpus_needed=needed,
            )
        upgrades = " with what their upgrades need" if size.reserves_upgrade_quota else ""
        return Room(
            holds=False,
            reason=f"the vCPU quota cannot hold them: {instances:,} × {size.name} need {needed:,} vCPUs of {quota}{upgrades}, "
            f"and {left:,} are left in {', '.join(regions)}",
            vcpus_needed=needed,
            vcpus_left=left,
            quota=quota,
        )

    def _free(self, quota: AzureQuota, place: tuple[str, str], own: Sequence[tuple[Site, DeploymentFact]]) -> int | None:
        """What is left of a family's quota or of a total for the instances in question; None where it has no limit."""
        if quota.quota is None:
            return None
        is_total = quota.level == "total"
        kept = sum(cores for key, cores in self._reserved.items() if key[:2] == place and (is_total or key[2] == quota.family_key))
        again = sum(_cores(fact) for site, fact in own if _place(site) == place and (is_total or _family(fact) == quota.family_key))
        return max(0, quota.quota - quota.used - kept + again)

    def _read(self) -> None:
        if self._rows is None:
            told = [row for row in azure_quotas(self._session, known=self._now) if row.source == "ml"]
            self._rows = {(row.subscription_id, row.region.casefold(), row.family_key): row for row in told if row.level == "family"}
            # Beside the total of vCPUs Azure tells one of clusters.
            self._totals = {(row.subscription_id, row.region.casefold()): row for row in told if row.level == "total" and "vcpu" in row.family.casefold()}
            self._reserved = upgrade_cores(self._world, self._now)


def _place(site: Site) -> tuple[str, str]:
    return (site[0] or "").casefold(), (site[1] or "").casefold()


def _fitting(size: skus.Sku, vcpus: int) -> int:
    """How many instances so many vCPUs hold, upgrades included: n and a fifth of it, rounded up."""
    whole = vcpus // size.cores
    return whole * 5 // 6 if size.reserves_upgrade_quota else whole


def _cores(fact: DeploymentFact) -> int:
    """What a deployment's instances use and keep for upgrades."""
    size, count = skus.find(fact.sku or ""), fact.instance_count or 0
    return 0 if size is None else count * size.cores + skus.upgrade_cores(size, count)


def _family(fact: DeploymentFact) -> str | None:
    size = skus.find(fact.sku or "")
    return None if size is None else family_key(size.family)
