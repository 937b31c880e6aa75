"""A line of the ledger as a row of FOCUS: names and nulls as the specification wants them. Pure.

Quantities and prices are of the priced unit (1000 Tokens, Hours): list and contracted cost are price x quantity, exactly.
Where no price of a row is known, its SKU is null, and with it everything that would hang on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache

from collector.focus.columns import Version
from models import money, skus
from models.charges import ChargeClass, MeterKind
from models.ledger.focus import FocusLine
from models.periods import DAY, next_month
from models.resources import Mode, Route

Value = str | Decimal | datetime | None
Row = dict[str, Value]
METHOD = "request-tokens-proportional"
_MOST_STILL = 20_000
_TOKENS = frozenset({MeterKind.INPUT, MeterKind.OUTPUT, MeterKind.CACHED_INPUT, MeterKind.TRAINING})
_HOURS = frozenset({MeterKind.HOSTING, MeterKind.COMPUTE, MeterKind.COMMITMENT})
_TOKEN_TYPE = {MeterKind.INPUT: "input", MeterKind.OUTPUT: "output", MeterKind.CACHED_INPUT: "cached_input", MeterKind.TRAINING: "training"}
_WORDS = {
    MeterKind.INPUT: "inference input tokens",
    MeterKind.OUTPUT: "inference output tokens",
    MeterKind.CACHED_INPUT: "inference cached input tokens",
    MeterKind.TRAINING: "fine-tuning tokens",
    MeterKind.HOSTING: "hosting of a fine-tuned model",
    MeterKind.COMPUTE: "managed compute hours",
}
# Azure region -> its name; a region that is not among them has neither, as FOCUS wants both or none.
_REGIONS = {
    "eastus": "East US",
    "eastus2": "East US 2",
    "westus": "West US",
    "westus2": "West US 2",
    "westus3": "West US 3",
    "northcentralus": "North Central US",
    "southcentralus": "South Central US",
    "centralus": "Central US",
    "westeurope": "West Europe",
    "northeurope": "North Europe",
    "swedencentral": "Sweden Central",
    "francecentral": "France Central",
    "germanywestcentral": "Germany West Central",
    "uksouth": "UK South",
    "switzerlandnorth": "Switzerland North",
    "canadaeast": "Canada East",
    "canadacentral": "Canada Central",
    "australiaeast": "Australia East",
    "japaneast": "Japan East",
    "koreacentral": "Korea Central",
    "southeastasia": "Southeast Asia",
    "centralindia": "Central India",
    "southindia": "South India",
    "brazilsouth": "Brazil South",
    "norwayeast": "Norway East",
    "polandcentral": "Poland Central",
    "italynorth": "Italy North",
    "spaincentral": "Spain Central",
    "uaenorth": "UAE North",
    "southafricanorth": "South Africa North",
}


class Rows:
    """The rows of one file. What lines of one item have in common is made once: a month of millions of lines has few items."""

    def __init__(self, month: date, version: Version) -> None:
        self._month, self._version = month, version
        self._still: dict[tuple[object, ...], Row] = {}

    def of(self, line: FocusLine) -> Row:
        """The row of a line, with every column of the version that is not null; what is missing is null."""
        if line.kind != "charge" or _commitment_id(line) is not None:
            return row_of(line, month=self._month, version=self._version)
        # Items and facts are the export's own objects for as long as it runs: told apart by what they are.
        key = (
            id(line.item),
            id(line.fact),
            line.identity,
            line.charge_type,
            line.currency,
            line.pricing_currency,
            line.rate,
            line.list_price,
            line.contracted_price,
            line.billed_unit,
            line.units is None,
            line.price_version,
            line.invoice_id,
            line.billing_account,
            line.subscription,
            line.day < self._month,
        )
        still = self._still.get(key)
        if still is None:
            if len(self._still) >= _MOST_STILL:
                self._still.clear()
            still = self._still[key] = _still(line, self._month, self._version)
        return still | _moving(line, still)


def row_of(line: FocusLine, *, month: date, version: Version) -> Row:
    """The row, with every column of the version that is not null; what is missing is null."""
    still = _still(line, month, version)
    return still | _moving(line, still)


def _still(line: FocusLine, month: date, version: Version) -> Row:
    """What a line shares with others of its item: everything but its day, its amounts and its id."""
    row: Row = {}
    row |= _account(line, month)
    row |= _charge(line, month)
    row |= _service(line, version)
    row |= _prices(line)
    row |= _resource(line, version)
    row |= _commitment(line)
    row |= _ours(line)
    if version == "1.4":
        del row["ProviderName"], row["PublisherName"]
    # Names may have blanks at their ends; FOCUS's values have none.
    told = {name: value.strip() if isinstance(value, str) else value for name, value in row.items()}
    return {name: value for name, value in told.items() if value is not None and value != ""}


def _moving(line: FocusLine, still: Row) -> Row:
    found: Row = {"ChargePeriodStart": _midnight(line.day), "ChargePeriodEnd": _midnight(line.day + DAY), "x_ChargeId": line.id}
    cores = still.get("x_CoreHours")
    if cores is not None and line.units is not None:
        found["x_CoreHours"] = _core_hours(line)
    return found | _costs(line, still.get("ListUnitPrice"), still.get("ContractedUnitPrice"))


def _account(line: FocusLine, month: date) -> Row:
    account = line.billing_account.strip("/")
    if not account:
        account = "providers/Microsoft.Billing/billingAccounts/unknown"
    elif "/" not in account:
        account = f"providers/Microsoft.Billing/billingAccounts/{account}"  # digits alone would be read as a number
    is_profile = "/billingprofiles/" in account.casefold()
    return {
        "BillingAccountId": "/" + account,
        "BillingAccountName": account.rpartition("/")[2],
        "BillingAccountType": "Billing Profile" if is_profile else "Billing Account",
        "BillingCurrency": line.currency,
        "BillingPeriodStart": _midnight(month),
        "BillingPeriodEnd": _midnight(next_month(month)),
        "InvoiceId": line.invoice_id,
        "InvoiceIssuerName": "Microsoft",
        "SubAccountId": f"/subscriptions/{line.subscription}" if line.subscription else None,
        "SubAccountName": line.subscription or None,
        "SubAccountType": "Subscription" if line.subscription else None,
    }


@lru_cache(maxsize=4096)  # asked for every row
def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def category(line: FocusLine) -> str:
    """FOCUS's category of a charge; a refund keeps that of what it refunds."""
    kind = line.charge_type.casefold()
    if kind in ("credit", "tax"):
        return kind.capitalize()
    if line.meter == MeterKind.ADJUSTMENT or kind in ("roundingadjustment", "adjustment"):
        return "Adjustment"
    match kind:
        case "purchase":
            return "Purchase"
        case "refund" if line.meter == MeterKind.COMMITMENT:
            return "Purchase"
        case _:
            return "Usage"


def _charge(line: FocusLine, month: date) -> Row:
    of = category(line)
    is_refund = line.charge_type.casefold() == "refund"
    model = line.identity.model or (line.item.model if line.item is not None else None)
    match of:
        case "Usage" if line.kind == "correction":
            what = f"{line.note}: {model or line.identity.sku or 'Llama'} {_WORDS.get(line.meter, 'usage')}"
        case "Usage" if _is_unused(line):
            what = f"{_plan(line)} of {line.item.sku if line.item is not None and line.item.sku else 'compute'}, unused"
        case "Usage":
            what = f"{model or line.identity.sku or 'Llama'} {_WORDS.get(line.meter, 'usage')}, " + (
                "refund" if is_refund else "pay-as-you-go" if _commitment_id(line) is None else f"paid by a {_plan(line).lower()}"
            )
        case "Purchase":
            what = f"{line.item.meter_name if line.item is not None and line.item.meter_name else model or 'commitment'}, purchase"
        case _:
            what = line.note or line.charge_type
    return {
        "ChargeCategory": of,
        # What an invoice says of days before its own month corrects an earlier one.
        "ChargeClass": "Correction" if line.kind == "correction" or line.day < month else None,
        "ChargeDescription": what,
        "ChargeFrequency": "Usage-Based" if of == "Usage" and not is_refund else "One-Time",
        "PricingCategory": None if of not in ("Usage", "Purchase") else "Committed" if of == "Usage" and _commitment_id(line) is not None else "Standard",
    }


def _commitment_id(line: FocusLine) -> str | None:
    return None if line.item is None else line.item.commitment_id


def _is_unused(line: FocusLine) -> bool:
    return line.charge_type.casefold().startswith("unused")


def _plan(line: FocusLine) -> str:
    """What kind of commitment it is: Azure's ids say it, and of what is unused the kind of charge."""
    said = (line.charge_type + (_commitment_id(line) or "")).casefold()
    return "Savings Plan" if "savingsplan" in said else "Reservation"


def _commitment(line: FocusLine) -> Row:
    """The reservation or savings plan behind a row. What it paid for is Used, what nobody used of it Unused; its fee is neither.

    A reservation is of hours, a savings plan of money: what a row took of it is said in those.
    """
    named, of = _commitment_id(line), category(line)
    if named is None or of not in ("Usage", "Purchase"):
        return {}
    if of == "Purchase" and line.effective:
        # The bill does not spread it (there is no amortized report of it): what is bought is spent, as of any purchase.
        return {}
    is_plan = _plan(line) == "Savings Plan"
    quantity = line.units if not is_plan else line.billed if of == "Purchase" else line.effective
    if quantity is None:
        # FOCUS wants the quantity of every row that names a commitment; it is not known here.
        return {"PricingCategory": "Standard"}
    found: Row = {
        "CommitmentDiscountCategory": "Spend" if is_plan else "Usage",
        "CommitmentDiscountId": named,
        "CommitmentDiscountName": (line.item.plan_id if line.item is not None else None) or named.rstrip("/").rpartition("/")[2],
        "CommitmentDiscountQuantity": quantity,
        "CommitmentDiscountStatus": None if of == "Purchase" else "Unused" if _is_unused(line) else "Used",
        "CommitmentDiscountType": _plan(line),
        "CommitmentDiscountUnit": line.currency if is_plan else "Hours",
    }
    if of == "Purchase" or _is_unused(line):
        # Neither is of any machine: the commitment itself is the resource.
        found |= {"ResourceId": named, "ResourceName": found["CommitmentDiscountName"], "ResourceType": _plan(line)}
    return found


def _is_marketplace(line: FocusLine) -> bool:
    if line.item is not None:
        return line.item.charge_class == ChargeClass.MARKETPLACE
    if line.kind == "correction":
        return line.identity.route == Route.MARKETPLACE
    return line.identity.mode != Mode.MANAGED_COMPUTE and line.identity.route != Route.FOUNDRY and line.kind == "estimate"


def _service(line: FocusLine, version: Version) -> Row:
    is_marketplace = _is_marketplace(line)
    of = category(line)
    if of not in ("Usage", "Purchase"):
        named: Row = {"ServiceCategory": "Other", "ServiceName": "Azure billing", "ServiceSubcategory": "Other (Other)"}
    elif line.meter == MeterKind.COMMITMENT:
        name = "Azure Savings Plan for Compute" if _plan(line) == "Savings Plan" else "Azure Reservations"
        named = {"ServiceCategory": "Management and Governance", "ServiceName": name, "ServiceSubcategory": "Cost Management"}
    elif line.meter == MeterKind.COMPUTE or line.identity.mode == Mode.MANAGED_COMPUTE:
        named = {"ServiceCategory": "AI and Machine Learning", "ServiceName": "Azure Machine Learning", "ServiceSubcategory": "Machine Learning"}
    else:
        named = {"ServiceCategory": "AI and Machine Learning", "ServiceName": "Meta Llama models as a service", "ServiceSubcategory": "Generative AI"}
    named |= {"ProviderName": "Microsoft", "PublisherName": "Meta" if is_marketplace else "Microsoft"}
    if version != "1.2":
        named |= {"ServiceProviderName": "Meta" if is_marketplace else "Microsoft", "HostProviderName": "Microsoft"}
    return named


def _prices(line: FocusLine) -> Row:
    """What a priced unit costs, with all that hangs on it; nothing where it is not known."""
    of, block = category(line), line.billed_unit
    counts_tokens, counts_hours = line.meter in _TOKENS, line.meter in _HOURS
    found: Row = {"PricingCurrency": line.pricing_currency}
    if of not in ("Usage", "Purchase") or line.units is None or not block or not (counts_tokens or counts_hours):
        return found
    listed, contracted = _per_block(line.list_price, block), _per_block(line.contracted_price, block)
    listed, contracted = listed if listed is not None else contracted, contracted if contracted is not None else listed
    if listed is None or contracted is None:
        return found  # nobody knows a price: a quotient of the amount would be no price
    sku = _sku(line)
    found |= {
        "PricingUnit": _unit(block, counts_tokens=counts_tokens),
        "ListUnitPrice": listed,
        "ContractedUnitPrice": contracted,
        "PricingCurrencyListUnitPrice": _divided(listed, line.rate),
        "PricingCurrencyContractedUnitPrice": _divided(contracted, line.rate),
        "SkuId": sku,
        "SkuMeter": _sku_meter(line),
        "SkuPriceId": f"{sku}/{_sku_meter(line)}",
        "SkuPriceDetails": _details(line),
    }
    if of == "Usage" and not _is_unused(line):
        found["ConsumedUnit"] = "Tokens" if counts_tokens else "Hours"
    return found


def _costs(line: FocusLine, listed: Value, contracted: Value) -> Row:
    """A line's amounts; list and contracted cost are price x quantity where there is a price."""
    found: Row = {"BilledCost": line.billed, "EffectiveCost": line.effective, "PricingCurrencyEffectiveCost": _divided(line.effective, line.rate)}
    if not isinstance(listed, Decimal) or not isinstance(contracted, Decimal) or line.units is None or not line.billed_unit:
        is_estimate = line.kind == "estimate" and category(line) == "Usage" and line.units is None
        return found | {"ListCost": line.effective if is_estimate else line.billed, "ContractedCost": line.billed}
    quantity = money.QUOTIENT.divide(line.units, line.billed_unit)
    found |= {"PricingQuantity": quantity, "ListCost": money.times(listed, quantity), "ContractedCost": money.times(contracted, quantity)}
    if category(line) == "Usage" and not _is_unused(line):
        found["ConsumedQuantity"] = line.units
    return found


def _per_block(price: Decimal | None, block: Decimal) -> Decimal | None:
    return None if price is None else money.times(price, block)


def _divided(amount: Decimal, rate: Decimal) -> Decimal:
    return amount if rate == 1 else money.truncated(money.QUOTIENT.divide(amount, rate), 18)


def _unit(block: Decimal, *, counts_tokens: bool) -> str:
    if not counts_tokens:
        return "Hours"
    return "Tokens" if block == 1 else f"{int(block)} Tokens"


def _sku(line: FocusLine) -> str:
    item = line.item
    if item is not None and item.offer_id and item.commitment_id is None:
        return "/".join(part for part in (item.publisher or "metagenai", item.offer_id, item.plan_id) if part)
    size = (item.sku if item is not None else None) or line.identity.sku
    if line.meter in (MeterKind.COMPUTE, MeterKind.COMMITMENT):
        return size or "managed-compute"
    return (line.identity.model or (item.model if item is not None else None) or "llama").casefold()


def _sku_meter(line: FocusLine) -> str:
    if line.item is not None and line.item.meter_name:
        return line.item.meter_name.rpartition(" - ")[2]
    return line.meter.value


def _details(line: FocusLine) -> str:
    model = line.identity.model or (line.item.model if line.item is not None else None)
    said: dict[str, str | int] = {}
    if line.meter in (MeterKind.COMPUTE, MeterKind.COMMITMENT):
        size = (line.item.sku if line.item is not None else None) or line.identity.sku
        cores = (line.item.cores if line.item is not None else None) or skus.cores(size or "")
        if cores:
            said["CoreCount"] = cores
        if size:
            said["InstanceType"] = size
    if model:
        said["x_ModelName"] = model
    if line.meter in _TOKEN_TYPE:
        said["x_TokenType"] = _TOKEN_TYPE[line.meter]
    return _json(said)


def _json(said: Mapping[str, object]) -> str:
    return json.dumps(said, ensure_ascii=False, sort_keys=True)


def _resource(line: FocusLine, version: Version) -> Row:
    own = _deployment_resource(line)
    billed = line.item.resource_id.casefold() if line.item is not None and line.item.resource_id else None
    found: Row = {"Tags": _json(line.item.tags) if line.item is not None and category(line) in ("Usage", "Purchase") else None}
    if line.kind == "share" and version != "1.2" and billed is not None:
        # A split leaves the origin's own facts as they are and names the target beside them.
        found |= _named(billed)
        if own is not None:
            found |= {"AllocatedResourceId": own, "AllocatedResourceName": line.identity.deployment, "AllocatedTags": _json({})}
        unit = "Hours" if line.meter in _HOURS else "Tokens"
        element: dict[str, object] = {"AllocatedRatio": float(line.ratio or 0), "UsageUnit": unit}
        if line.units is not None:
            element["UsageQuantity"] = float(line.units)
        found |= {"AllocatedMethodId": METHOD, "AllocatedMethodDetails": _json({"Elements": [element]})}
    elif (
        line.meter == MeterKind.COMPUTE
        or line.kind in ("share", "estimate", "correction")
        or (line.item is not None and line.item.charge_class == ChargeClass.FOUNDRY)
    ):
        found |= _named(own or billed)
    elif category(line) in ("Usage", "Purchase"):
        found |= _named(billed)
    region = (line.identity.region or (line.item.region if line.item is not None else None) or "").casefold().replace(" ", "")
    if region in _REGIONS and category(line) in ("Usage", "Purchase"):
        found |= {"RegionId": region, "RegionName": _REGIONS[region]}
    return found


def _deployment_resource(line: FocusLine) -> str | None:
    """The id of the deployment itself, in lower case; None where it is not known."""
    name = line.identity.deployment
    if name is None:
        return None
    if line.fact is not None and line.fact.resource_id:
        return line.fact.resource_id.casefold()
    if line.item is None or not line.item.resource_id:
        return None
    base = line.item.resource_id.casefold()
    if line.meter == MeterKind.COMPUTE and line.item.workspace:
        endpoint, _, deployment = name.casefold().partition("/")
        return f"{base}/onlineendpoints/{endpoint}/deployments/{deployment or endpoint}"
    if line.item.charge_class == ChargeClass.FOUNDRY:
        return f"{base}/deployments/{name.casefold()}"
    return None


_TYPES = (
    ("/onlineendpoints/", "Machine learning online deployment"),
    ("/serverlessendpoints/", "Serverless endpoint"),
    ("/microsoft.saas/", "SaaS"),
    ("/microsoft.cognitiveservices/", "Azure AI deployment"),
    ("/reservationorders/", "Reservation"),
    ("/microsoft.machinelearningservices/", "Machine learning workspace"),
)


def _named(resource: str | None) -> Row:
    if not resource:
        return {}
    kind = next((name for part, name in _TYPES if part in resource), "Azure resource")
    return {"ResourceId": resource, "ResourceName": resource.rpartition("/")[2], "ResourceType": kind}


def _core_hours(line: FocusLine) -> Decimal | None:
    if line.meter != MeterKind.COMPUTE or line.units is None:
        return None
    each = (line.item.cores if line.item is not None else None) or skus.cores((line.item.sku if line.item is not None else None) or line.identity.sku or "")
    return None if each is None else money.times(line.units, each)


def _ours(line: FocusLine) -> Row:
    name = line.identity.deployment
    endpoint = line.fact.endpoint if line.fact is not None else (name or "").partition("/")[0] or None
    source = (
        "RequestUsage"
        if line.kind == "estimate"
        else "ComputeMeter"
        if line.meter == MeterKind.COMPUTE
        else "MarketplaceMeter"
        if _is_marketplace(line)
        else "CostManagementExport"
    )
    mode = line.identity.mode
    return {
        "x_ChargeId": line.id,
        "x_CostSource": source,
        "x_CostStatus": "Estimated" if line.kind == "estimate" else "Reconciled" if line.invoice_id else "Metered",
        "x_WorkspaceName": line.identity.workspace,
        "x_EndpointName": endpoint,
        "x_DeploymentName": name,
        "x_DeploymentKind": None if mode == Mode.UNKNOWN else mode.value,
        "x_ModelName": line.identity.model or (line.item.model if line.item is not None else None),
        "x_TokenType": _TOKEN_TYPE.get(line.meter),
        "x_CoreHours": _core_hours(line),
        "x_PriceBookVersion": line.price_version,
        "x_BillingExchangeRate": line.rate,
        "x_OriginChargeId": line.origin,
        "x_AllocatedRatio": line.ratio,
    }
