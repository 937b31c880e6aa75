"""What a simulated Azure holds: the values that its answers are made of, and the world that has them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, NamedTuple, Protocol

from models.periods import DAY, BillingPeriod, month_start, same_day_next_month

Metric = Literal["ActualCost", "AmortizedCost"]
# The 65 columns of cost details, Microsoft Customer Agreement, schema 2023-12-01-preview, in its order and capitals.
COST_DETAILS_COLUMNS = (
    "invoiceId",
    "previousInvoiceId",
    "billingAccountId",
    "billingAccountName",
    "billingProfileId",
    "billingProfileName",
    "invoiceSectionId",
    "invoiceSectionName",
    "resellerName",
    "resellerMpnId",
    "costCenter",
    "billingPeriodEndDate",
    "billingPeriodStartDate",
    "servicePeriodEndDate",
    "servicePeriodStartDate",
    "date",
    "serviceFamily",
    "productOrderId",
    "productOrderName",
    "consumedService",
    "meterId",
    "meterName",
    "meterCategory",
    "meterSubCategory",
    "meterRegion",
    "ProductId",
    "ProductName",
    "SubscriptionId",
    "subscriptionName",
    "publisherType",
    "publisherId",
    "publisherName",
    "resourceGroupName",
    "ResourceId",
    "resourceLocation",
    "location",
    "effectivePrice",
    "quantity",
    "unitOfMeasure",
    "chargeType",
    "billingCurrency",
    "pricingCurrency",
    "costInBillingCurrency",
    "costInPricingCurrency",
    "costInUsd",
    "paygCostInBillingCurrency",
    "paygCostInUsd",
    "exchangeRatePricingToBilling",
    "exchangeRateDate",
    "isAzureCreditEligible",
    "serviceInfo1",
    "serviceInfo2",
    "additionalInfo",
    "tags",
    "PayGPrice",
    "frequency",
    "term",
    "reservationId",
    "reservationName",
    "pricingModel",
    "unitPrice",
    "costAllocationRuleName",
    "benefitId",
    "benefitName",
    "provider",
)

# What a subscription says of its offer (subscriptionPolicies.quotaId).
_QUOTA_IDS = {
    "mca": "AzurePlan_2019-07-01",
    "ea": "EnterpriseAgreement_2014-09-01",
    "payg": "PayAsYouGo_2014-09-01",
    "trial": "FreeTrial_2014-09-01",
}

# A billed row: column of cost details -> text. What is not there is empty.
BilledRow = Mapping[str, str]
# An object of Azure Resource Manager, as its list answers hold it; ``id`` and ``type`` are always there.
ArmObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription; ``agreement`` decides which cost routes it may use."""

    id: str
    name: str
    agreement: Literal["mca", "ea", "payg", "trial"] = "mca"
    billing_day: int = 1  # of the month, on which its bills begin; other than 1 with pay-as-you-go alone

    def billed_in(self, day: date) -> BillingPeriod:
        """The bill that a day's charges are on."""
        if self.billing_day == 1:
            return BillingPeriod.of_month(day)
        start = day.replace(day=self.billing_day) if day.day >= self.billing_day else (month_start(day) - DAY).replace(day=self.billing_day)
        return BillingPeriod(start, same_day_next_month(start))

    @property
    def quota_id(self) -> str:
        return _QUOTA_IDS[self.agreement]


@dataclass(frozen=True, slots=True)
class CapacityStep:
    """From this instant on a deployment has so many instances; 0 where it is gone."""

    at: datetime
    instances: int


def instances_at(steps: Sequence[CapacityStep], at: datetime) -> int:
    """How many instances there were at an instant."""
    return next((step.instances for step in reversed(steps) if step.at <= at), 0)


class Minute(NamedTuple):
    """What a deployment was asked in a minute, and the tokens that Azure counted for it."""

    at: datetime
    requests: int
    input_tokens: int
    output_tokens: int


class Estate(Protocol):
    """A world that the simulator can serve. Every answer is a function of the instant asked at: nothing is stored."""

    @property
    def billing_account(self) -> str:
        """``/providers/Microsoft.Billing/billingAccounts/…``, above every subscription."""

    def subscriptions(self) -> Sequence[Subscription]: ...

    def objects(self, at: datetime) -> Sequence[ArmObject]:
        """Every workspace, endpoint, deployment, account and offer subscription that is there."""

    def billed(self, subscription_id: str, month: date, *, metric: Metric, at: datetime) -> Sequence[BilledRow]:
        """The subscription's rows of a calendar month as billing tells them at that instant; '' asks for rows of no subscription."""

    def capacity(self, resource_id: str) -> Sequence[CapacityStep]:
        """The instances of an online deployment over time; nothing where it is not one."""

    def requests(self, resource_id: str, start: datetime, end: datetime) -> Mapping[str, Sequence[Minute]]:
        """The requests of an endpoint or account by the minute and by deployment; only minutes that have any."""

    def usages(self, subscription_id: str, region: str, *, source: Literal["compute", "ml", "ml_quotas"], at: datetime) -> Sequence[Mapping[str, Any]]:
        """Rows of Compute or Machine Learning usages (and ML quotas)."""

    def retail_prices(self) -> Sequence[Mapping[str, Any]]:
        """Items of the Retail Prices API, in USD."""


_NAMESPACE = uuid.UUID("b0d2c3e4-0f0e-5a63-8f5f-73696d756c61")


def made_id(*names: object) -> str:
    """A GUID that is always the same for the same names."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(str(name) for name in names)))
