"""The VM sizes that managed online endpoints run on: cores, GPUs, quota family.

Used where a bill or an inventory names a size and not its vCPUs. Names are compared without case and with or without
``Standard_``: Azure writes ``STANDARD_NC24ADS_A100_V4``, ``Standard_NC24ads_A100_v4`` and ``NC24ads A100 v4`` for one size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Sku:
    """One VM size. ``reserves_upgrade_quota`` says whether a rolling upgrade needs a fifth more quota than it runs on."""

    name: str
    cores: int
    gpus: int
    family: str
    reserves_upgrade_quota: bool = False


# Azure ML's list of sizes for managed online endpoints with its "Skip 20% Reservation" mark and family spelling
# (azure-ai-docs, reference-managed-online-endpoints-vm-sku-list, read 2026-07).
SKUS: tuple[Sku, ...] = (
    *(Sku(f"Standard_NC{cores}ads_A100_v4", cores, gpus, "standardNCADSA100v4Family") for cores, gpus in ((24, 1), (48, 2), (96, 4))),
    Sku("Standard_NC40ads_H100_v5", 40, 1, "standardNCADSH100v5Family"),
    Sku("Standard_NC80adis_H100_v5", 80, 2, "standardNCADSH100v5Family"),
    Sku("Standard_ND96asr_v4", 96, 8, "standard NDASv4_A100 Family"),
    Sku("Standard_ND96amsr_A100_v4", 96, 8, "standard NDAMSv4_A100Family"),
    Sku("Standard_ND96is_H100_v5", 96, 8, "standardNDv5H100Family"),
    Sku("Standard_ND96isr_H100_v5", 96, 8, "standardNDv5H100Family"),
    Sku("Standard_ND40rs_v2", 40, 8, "standardNDSv2Family"),
    *(Sku(f"Standard_NC{cores}s_v3", cores, gpus, "standardNCSv3Family", reserves_upgrade_quota=True) for cores, gpus in ((6, 1), (12, 2), (24, 4))),
    *(
        Sku(f"Standard_NC{cores}as_T4_v3", cores, gpus, "standard NCASv3_T4 Family", reserves_upgrade_quota=True)
        for cores, gpus in ((4, 1), (8, 1), (16, 1), (64, 4))
    ),
    # The three smallest hold a share of one GPU; the list counts it as one.
    *(
        Sku(f"Standard_NV{cores}ads_A10_v5", cores, gpus, "standardNVADSA10v5Family", reserves_upgrade_quota=True)
        for cores, gpus in ((6, 1), (12, 1), (18, 1), (36, 1), (72, 2))
    ),
)

# From the third version of a series on, the number in a size's name is its vCPUs; after a hyphen stand the vCPUs of a
# constrained size (Azure "VM size naming conventions"). Older names (DS3_v2) count otherwise.
_BY_CONVENTION = re.compile(r"[a-z]+(\d+)(?:-(\d+))?[a-z]*(?:_[a-z0-9]+)*_v(?:[3-9]|\d\d)\Z")


def _key(sku: str) -> str:
    return re.sub(r"[ _]+", "_", sku.strip().casefold()).removeprefix("standard_")


_BY_KEY = {_key(sku.name): sku for sku in SKUS}


def find(sku: str) -> Sku | None:
    """The size of that name, None where it is not one of the list."""
    return _BY_KEY.get(_key(sku))


def upgrade_cores(sku: Sku, instances: int) -> int:
    """The vCPUs that have to stay free to upgrade so many instances: a fifth of them, rounded up to whole ones, of sizes that need it."""
    return -(-instances // 5) * sku.cores if sku.reserves_upgrade_quota else 0


@lru_cache(maxsize=4096)
def cores(sku: str) -> int | None:
    """The vCPUs of one instance, None where neither the list nor the naming convention tells."""
    if (known := find(sku)) is not None:
        return known.cores
    named = _BY_CONVENTION.match(_key(sku))
    return int(named.group(2) or named.group(1)) if named else None
