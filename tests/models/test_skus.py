"""VM sizes by whatever name Azure gives them."""

from __future__ import annotations

import pytest

from models import skus


@pytest.mark.parametrize(
    ("name", "cores"),
    [
        ("Standard_NC24ads_A100_v4", 24),
        ("STANDARD_NC24ADS_A100_V4", 24),
        ("NC24ads A100 v4", 24),
        ("Standard_ND96amsr_A100_v4", 96),
        ("Standard_NC6s_v3", 6),
        ("Standard_NV72ads_A10_v5", 72),
        ("Standard_E16-4ds_v5", 4),  # not in the list: by the naming convention
        ("Standard_DS3_v2", None),  # older names count otherwise
        ("paygo-inference-input-tokens", None),
        ("", None),
    ],
)
def test_the_cores_of_a_size(name: str, cores: int | None) -> None:
    assert skus.cores(name) == cores


def test_gpu_sizes_for_large_models_need_no_quota_for_upgrades() -> None:
    large = skus.find("standard_nc96ads_a100_v4")
    small = skus.find("Standard_NC6s_v3")
    assert large is not None
    assert small is not None
    assert (large.gpus, large.family, large.reserves_upgrade_quota) == (4, "standardNCADSA100v4Family", False)
    assert (small.gpus, small.reserves_upgrade_quota) == (1, True)
