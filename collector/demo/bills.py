"""The bills of the sample world: cost-details files in the layout of a Microsoft Customer Agreement.

Every quantity is an exact function of a day's tokens or instance-hours, every cost quantity × price (× the exchange
rate). What the bill deliberately does not share with the events is listed in ``Story`` and in the deployments'
``unmetered_permille``: calls past the instruments, a price above the list, a refund, a row without its tags. One discrepancy
of each cause, of a hand-known amount, is in ``planted``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

from collector.azure.simulator.estate import COST_DETAILS_COLUMNS
from collector.demo.places import (
    AMERICAS,
    DEPLOYMENTS,
    MAVERICK,
    MAVERICK_OUTPUT_BILLED,
    RESEARCH,
    SUBSCRIPTIONS,
    Deployment,
    Story,
    Subscription,
    instances_over_time,
    made_id,
)
from collector.demo.planted import CANARY, TRIAL, canary_bill
from collector.demo.traffic import Tokens
from models import money
from models.periods import DAY, Period, day_start, month_start, next_month, settles_at, utc_day
from models.resources import Route

ACCOUNT = f"/providers/Microsoft.Billing/billingAccounts/{made_id('billing account')}:{made_id('billing tenant')}_2019-05-31"
# How far a bill lags behind: Marketplace usage comes in up to a day late, so its last full day is one earlier.
_LAG = {Route.MARKETPLACE: timedelta(days=2), Route.FOUNDRY: timedelta(days=1), Route.COMPUTE: timedelta(days=1)}
# The meters of Llama 3.3 70B in the Retail Prices API; the other ids are made.
_METER_IDS = {
    "Llama 3.3 70B Inp glbl Tokens": "1a90d107-2527-5fe4-bced-37776297dcec",
    "Llama 3.3 70B Outp glbl Tokens": "27268bdf-1d66-5f0a-9454-d1218d8924c0",
}
_FOUNDRY_NAMES = {"Llama-3.3-70B-Instruct": "Llama 3.3 70B", "Llama-4-Maverick-17B-128E-Instruct-FP8": "Llama 4 Maverick"}
_REFUNDED_THOUSANDS = 250
_ROUNDING = {"USD": Decimal("-0.01"), "EUR": Decimal("0.01")}

# The billed tokens of a deployment on a day, calls past the instruments included.
BilledTokens = Callable[[Deployment, date], Tokens]


@dataclass(frozen=True, slots=True)
class _Line:
    """A billed row before it is spelled out: what differs from row to row."""

    subscription: Subscription
    day: date
    quantity: Decimal
    price: Decimal  # USD per unit
    cost: Decimal  # USD
    charge_type: str
    fields: dict[str, str]


def bills(*, story: Story, billed_tokens: BilledTokens, now: datetime) -> list[tuple[str, bytes]]:
    """The cost-details files as of ``now``: (file name, content), one per subscription and billing month, oldest first."""
    today = utc_day(now)
    files: list[tuple[str, bytes]] = []
    month = month_start(story.first_day)
    while month <= today:
        for subscription in SUBSCRIPTIONS:
            told = rows(subscription, month, story=story, billed_tokens=billed_tokens, today=today)
            if told:
                files.append((f"cost-details-{subscription.name}-{month:%Y-%m}.csv", _file(told)))
        month = next_month(month)
    return files


def rows(subscription: Subscription, month: date, *, story: Story, billed_tokens: BilledTokens, today: date) -> list[dict[str, str]]:
    """The subscription's rows of a month as billing tells them on a day, by column of cost details."""
    invoice = _invoice(subscription, month) if today >= utc_day(settles_at(month)) else ""
    return [_row(line, month, invoice) for line in _month(subscription, month, story=story, billed_tokens=billed_tokens, today=today)]


def meter_id(meter: str) -> str:
    """The id of a token meter, the same in bills and in the price list."""
    return _METER_IDS.get(meter) or made_id("meter", meter)


def _month(subscription: Subscription, month: date, *, story: Story, billed_tokens: BilledTokens, today: date) -> Iterator[_Line]:
    end = next_month(month)
    day = max(month, story.first_day)
    while day < end and day < today:
        for deployment in DEPLOYMENTS:
            if deployment.workspace.subscription is subscription and day <= today - _LAG[deployment.route]:
                if deployment.size is None:
                    yield from _token_lines(deployment, day, billed_tokens(deployment, day), story)
                else:
                    yield _hours_line(deployment, day, story)
        if subscription is AMERICAS and day == max(month, story.first_day):
            yield _storage_line(subscription, day)
        day += DAY
    if end <= today and day == end:
        adjustment = _ROUNDING[subscription.currency]
        # The adjustment is made in the billing currency; its price side only mirrors it.
        in_usd = adjustment if subscription.currency == "USD" else money.ZERO
        fields = {"ProductName": "Rounding Adjustment", "publisherType": "Microsoft", "publisherName": "Microsoft", "frequency": "OneTime"}
        fields |= {"costInBillingCurrency": money.text(adjustment), "paygCostInBillingCurrency": "0", "paygCostInUsd": "0", "isAzureCreditEligible": "False"}
        yield _Line(subscription, end - DAY, money.ZERO, money.ZERO, in_usd, "RoundingAdjustment", fields)


def _token_lines(deployment: Deployment, day: date, tokens: Tokens, story: Story) -> Iterator[_Line]:
    prices = deployment.tokens
    assert prices is not None
    if deployment.name == CANARY:
        for row in canary_bill(story.planted, day, input_tokens=tokens.input, output_tokens=tokens.output):
            yield _usage(deployment.workspace.subscription, day, row.quantity, row.price, _foundry_fields(deployment, row.kind) | dict(row.fields))
        if day == story.planted.trial_on:
            trial = next(each for each in DEPLOYMENTS if each.name == "llama-4-maverick")
            yield _usage(trial.workspace.subscription, day, Decimal(8000), MAVERICK.input.scaleb(-3), _foundry_fields(trial, "input") | {"tags": _tag(TRIAL)})
        return
    output_price = MAVERICK_OUTPUT_BILLED if deployment.name == "llama-4-maverick" and day >= story.repriced_on else prices.output
    if prices.cached is None:
        meters = [("input", tokens.input, prices.input), ("output", tokens.output, output_price)]
    else:
        meters = [("input", tokens.input - tokens.cached, prices.input), ("output", tokens.output, output_price), ("cached", tokens.cached, prices.cached)]
    fields = _marketplace_fields if deployment.route is Route.MARKETPLACE else _foundry_fields
    for kind, count, per_million in meters:
        if count:
            yield _usage(deployment.workspace.subscription, day, Decimal(count).scaleb(-3), per_million.scaleb(-3), fields(deployment, kind))
    if deployment.name == "llama-31-405b" and day == story.refund_on:
        per_unit = prices.output.scaleb(-3)
        quantity = Decimal(-_REFUNDED_THOUSANDS)
        refund = fields(deployment, "output") | {"frequency": "OneTime", "previousInvoiceId": "G000000001"}
        yield _Line(deployment.workspace.subscription, day, quantity, per_unit, money.times(quantity, per_unit), "Refund", refund)


def _hours_line(deployment: Deployment, day: date, story: Story) -> _Line:
    size, place = deployment.size, deployment.workspace
    assert size is not None
    period = Period(day_start(day), day_start(day + DAY))
    steps = instances_over_time(deployment, story)
    ends: list[datetime | None] = [*(at for at, _ in steps[1:]), None]
    hours = sum(count * (period.overlap(start, end) // timedelta(hours=1)) for (start, count), end in zip(steps, ends, strict=True))
    tags = {"azuremlendpoint": deployment.endpoint, "azuremldeployment": deployment.name, "costcenter": place.subscription.cost_center}
    fields = {
        "serviceFamily": "Compute",
        "consumedService": "Microsoft.MachineLearningServices",
        "meterId": made_id("meter", size.sku, place.region),
        "meterName": size.meter,
        "meterCategory": "Virtual Machines",
        "meterSubCategory": size.series,
        "meterRegion": place.location,
        "ProductId": "DZH318Z-VM",
        "ProductName": f"Virtual Machines {size.series} - {size.meter} - {place.location}",
        "publisherType": "Microsoft",
        "publisherName": "Microsoft",
        "resourceGroupName": place.resource_group,
        "ResourceId": place.resource_id,
        "resourceLocation": place.region,
        "location": place.location,
        "unitOfMeasure": "1 Hour",
        "additionalInfo": json.dumps({"ServiceType": size.sku, "VMName": "", "VCPUs": size.cores}),
        "tags": "" if place is RESEARCH and day == story.untagged_on else json.dumps(tags),
    }
    return _usage(place.subscription, day, Decimal(hours), size.hourly, fields)


def _marketplace_fields(deployment: Deployment, kind: str) -> dict[str, str]:
    place = deployment.workspace
    product = f"{deployment.model} - {deployment.plan_stem}-plan"
    meter = f"{product} - paygo-inference-{kind}-tokens"
    return {
        "serviceFamily": "SaaS",
        "productOrderId": made_id("order", place.name, deployment.model),
        "productOrderName": deployment.model,
        "consumedService": "Microsoft.SaaS",
        "meterId": made_id("meter", meter),
        "meterName": meter,
        "meterCategory": "SaaS",
        "meterSubCategory": f"{deployment.plan_stem}-offer",
        "meterRegion": "Global",
        "ProductId": f"DZH318Z-{made_id('product', deployment.model)[:4].upper()}",
        "ProductName": product,
        "publisherType": "Marketplace",
        "publisherName": "Meta",
        "resourceGroupName": place.resource_group,
        "ResourceId": deployment.saas_resource_id,
        "resourceLocation": "global",
        "location": "Global",
        "unitOfMeasure": "1K",
        "isAzureCreditEligible": "False",
        "term": "1 Month",
    }


def _foundry_fields(deployment: Deployment, kind: str) -> dict[str, str]:
    place, name = deployment.workspace, _FOUNDRY_NAMES[deployment.model]
    stem = f"{name} {({'input': 'Inp', 'output': 'Outp', 'cached': 'cached Inp'})[kind]} glbl"
    meter = f"{stem} Tokens"
    return {
        "serviceFamily": "AI + Machine Learning",
        "consumedService": "Microsoft.CognitiveServices",
        "meterId": meter_id(meter),
        "meterName": meter,
        "meterCategory": "Foundry Models",
        "meterSubCategory": "Llama",
        "ProductName": f"Llama Models - {stem}",
        "publisherType": "Microsoft",
        "publisherName": "Microsoft",
        "resourceGroupName": place.resource_group,
        "ResourceId": place.resource_id,
        "resourceLocation": place.region,
        "location": place.location,
        "unitOfMeasure": "1K",
        "tags": _tag(deployment.name),
    }


def _tag(deployment: str) -> str:
    return json.dumps({"deployment": deployment}, separators=(",", ":"))


def _storage_line(subscription: Subscription, day: date) -> _Line:
    fields = {
        "serviceFamily": "Storage",
        "consumedService": "Microsoft.Storage",
        "meterId": made_id("meter", "storage"),
        "meterName": "Hot LRS Data Stored",
        "meterCategory": "Storage",
        "meterSubCategory": "Tiered Block Blob",
        "meterRegion": "US East 2",
        "ProductName": "Tiered Block Blob - Hot LRS",
        "publisherType": "Microsoft",
        "publisherName": "Microsoft",
        "resourceGroupName": "rg-ai-prod",
        "ResourceId": f"/subscriptions/{subscription.id}/resourceGroups/rg-ai-prod/providers/Microsoft.Storage/storageAccounts/stassistprod",
        "resourceLocation": "eastus2",
        "location": "US East 2",
        "unitOfMeasure": "1 GB/Month",
    }
    return _usage(subscription, day, Decimal("412.5"), Decimal("0.0208"), fields)


def _usage(subscription: Subscription, day: date, quantity: Decimal, price: Decimal, fields: dict[str, str]) -> _Line:
    return _Line(subscription, day, quantity, price, money.times(quantity, price), "Usage", fields)


def _file(told: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COST_DETAILS_COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(told)
    return text.getvalue().encode("utf-8-sig")


def _invoice(subscription: Subscription, month: date) -> str:
    """The number of a billing profile's invoice of a month; it is made once the month does not change any more."""
    return f"G{int(made_id('invoice', subscription.profile, month.isoformat())[:8], 16) % 10**9:09d}"


def _row(line: _Line, month: date, invoice: str) -> dict[str, str]:
    subscription = line.subscription
    in_usd, price = money.text(line.cost), money.text(line.price)
    in_billing = money.text(money.times(line.cost, subscription.rate))
    day, first = f"{line.day:%m/%d/%Y}", f"{month:%m/%d/%Y}"
    usual = {
        "billingAccountId": ACCOUNT,
        "billingAccountName": "Contoso (sample)",
        "billingProfileId": f"{ACCOUNT}/billingProfiles/{subscription.profile}",
        "billingProfileName": f"Contoso {subscription.invoice_section}",
        "invoiceId": invoice,
        "invoiceSectionId": f"IS-{subscription.profile}",
        "invoiceSectionName": subscription.invoice_section,
        "costCenter": subscription.cost_center,
        "billingPeriodStartDate": first,
        "billingPeriodEndDate": f"{next_month(month) - DAY:%m/%d/%Y}",
        "servicePeriodStartDate": day,
        "servicePeriodEndDate": day,
        "date": day,
        "SubscriptionId": subscription.id,
        "subscriptionName": subscription.name,
        "effectivePrice": price,
        "PayGPrice": price,
        "unitPrice": price,
        "quantity": money.text(line.quantity),
        "chargeType": line.charge_type,
        "billingCurrency": subscription.currency,
        "pricingCurrency": "USD",
        "costInBillingCurrency": in_billing,
        "costInPricingCurrency": in_usd,
        "costInUsd": in_usd,
        "paygCostInBillingCurrency": in_billing,
        "paygCostInUsd": in_usd,
        "exchangeRatePricingToBilling": money.text(subscription.rate),
        "exchangeRateDate": first,
        "isAzureCreditEligible": "True",
        "frequency": "UsageBased",
        "pricingModel": "OnDemand",
        "provider": "Azure",
    }
    return usual | line.fields
