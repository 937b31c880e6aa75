"""The columns of each version of FOCUS, in its order, and ours after them."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

Version = Literal["1.2", "1.3", "1.4"]
VERSIONS: tuple[Version, ...] = get_args(Version)

# FOCUS 1.2 has 57 columns of CostAndUsage; see columns() for what later versions add and take away.
_IN_1_2 = (
    "AvailabilityZone",
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "CapacityReservationId",
    "CapacityReservationStatus",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountQuantity",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "CommitmentDiscountUnit",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
)
_NEW_IN_1_3 = (
    "AllocatedMethodDetails",
    "AllocatedMethodId",
    "AllocatedResourceId",
    "AllocatedResourceName",
    "AllocatedTags",
    "ContractApplied",
    "HostProviderName",
    "ServiceProviderName",
)
_NEW_IN_1_4 = ("CommitmentProgramEligibilityDetails", "InvoiceDetailId")
_GONE_IN_1_4 = frozenset({"ProviderName", "PublisherName"})
OURS = (
    "x_ChargeId",
    "x_CostSource",
    "x_CostStatus",
    "x_WorkspaceName",
    "x_EndpointName",
    "x_DeploymentName",
    "x_DeploymentKind",
    "x_ModelName",
    "x_TokenType",
    "x_CoreHours",
    "x_PriceBookVersion",
    "x_BillingExchangeRate",
    "x_OriginChargeId",
    "x_AllocatedRatio",
)

DECIMALS = frozenset(
    {
        "BilledCost",
        "CommitmentDiscountQuantity",
        "ConsumedQuantity",
        "ContractedCost",
        "ContractedUnitPrice",
        "EffectiveCost",
        "ListCost",
        "ListUnitPrice",
        "PricingCurrencyContractedUnitPrice",
        "PricingCurrencyEffectiveCost",
        "PricingCurrencyListUnitPrice",
        "PricingQuantity",
        "x_CoreHours",
        "x_BillingExchangeRate",
        "x_AllocatedRatio",
    }
)
TIMES = frozenset({"BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"})


@cache  # asked for every row
def columns(version: Version) -> tuple[str, ...]:
    """The columns of a file, FOCUS's in order of name, then ours."""
    names = set(_IN_1_2)
    if version != "1.2":
        names |= set(_NEW_IN_1_3)
    if version == "1.4":
        names = (names | set(_NEW_IN_1_4)) - _GONE_IN_1_4
    return (*sorted(names), *OURS)
