"""Objects of Azure Resource Manager in the shape that its list answers give them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from collector.azure.simulator.estate import ArmObject

ML = "Microsoft.MachineLearningServices/workspaces"
ACCOUNTS = "Microsoft.CognitiveServices/accounts"


def workspace(resource_id: str, *, region: str, created_at: datetime, kind: str = "Default", hub_id: str = "") -> ArmObject:
    """An Azure ML workspace, a hub, or a project of one."""
    properties: dict[str, Any] = {"provisioningState": "Succeeded", "friendlyName": _name(resource_id)}
    if hub_id:
        properties["hubResourceId"] = hub_id
    return _object(resource_id, ML, created_at, location=region, kind=kind, properties=properties)


def account(resource_id: str, *, region: str, created_at: datetime) -> ArmObject:
    """A Foundry (Cognitive Services) account."""
    properties = {"provisioningState": "Succeeded", "endpoint": f"https://{_name(resource_id)}.services.ai.azure.com/", "internalId": "simulated"}
    return _object(resource_id, ACCOUNTS, created_at, location=region, kind="AIServices", sku={"name": "S0"}, properties=properties)


def foundry_deployment(resource_id: str, *, model: str, capacity: int, created_at: datetime) -> ArmObject:
    """A model deployed on a Foundry account; its capacity is in thousands of tokens a minute."""
    properties = {
        "model": {"format": "Meta", "name": model, "version": "1"},
        "provisioningState": "Succeeded",
        "rateLimits": [
            {"key": "request", "renewalPeriod": 60, "count": 1000},
            {"key": "token", "renewalPeriod": 60, "count": capacity * 1000},
        ],
    }
    return _object(resource_id, f"{ACCOUNTS}/deployments", created_at, sku={"name": "GlobalStandard", "capacity": capacity}, properties=properties)


def online_endpoint(
    resource_id: str,
    *,
    region: str,
    traffic: Mapping[str, int],
    created_at: datetime,
    deletes_at: datetime | None = None,
    host_suffix: str = "inference.ml.azure.com",
) -> ArmObject:
    """A managed online endpoint; ``deletes_at`` is that of one on shared quota."""
    uri = f"https://{_name(resource_id)}.{region}.{host_suffix}"
    shared = {"SharedComputeCapacityEnabled": "true", "TargetAutoDeletionTime": f"{deletes_at:%a, %d %b %Y %H:%M:%S} GMT"} if deletes_at else {}
    properties = {
        "authMode": "Key",
        "compute": None,
        "description": "",
        "traffic": dict(traffic),
        "mirrorTraffic": {},
        "publicNetworkAccess": "Enabled",
        "provisioningState": "Succeeded",
        "scoringUri": f"{uri}/score",
        "swaggerUri": f"{uri}/swagger.json",
        "properties": shared,
    }
    return _object(resource_id, f"{ML}/onlineEndpoints", created_at, location=region, kind="Managed", properties=properties)


def online_deployment(resource_id: str, *, region: str, model: str, size: str, instances: int, created_at: datetime) -> ArmObject:
    """A deployment behind a managed online endpoint."""
    properties = {
        "endpointComputeType": "Managed",
        "instanceType": size,
        "model": f"azureml://registries/azureml-meta/models/{model}/versions/1",
        "scaleSettings": {"scaleType": "Default"},
        "provisioningState": "Succeeded",
        "properties": {},
    }
    sku = {"name": "Default", "tier": "Standard", "capacity": instances}
    return _object(resource_id, f"{ML}/onlineEndpoints/deployments", created_at, location=region, kind="Managed", sku=sku, properties=properties)


def serverless_endpoint(resource_id: str, *, region: str, model: str, state: str, offer_subscription_id: str, created_at: datetime) -> ArmObject:
    """A serverless endpoint of the Marketplace route."""
    properties = {
        "modelSettings": {"modelId": f"azureml://registries/azureml-meta/models/{model}"},
        "authMode": "Key",
        "inferenceEndpoint": {"uri": f"https://{_name(resource_id)}.{region}.models.ai.azure.com"},
        "contentSafety": {"contentSafetyStatus": "Enabled"},
        "provisioningState": "Succeeded",
        "endpointState": state,
        "marketplaceSubscriptionId": offer_subscription_id,
    }
    return _object(
        resource_id, f"{ML}/serverlessEndpoints", created_at, location=region, kind="ServerlessEndpoint", sku={"name": "Consumption"}, properties=properties
    )


def offer_subscription(resource_id: str, *, model: str, offer: str, plan: str, created_at: datetime) -> ArmObject:
    """A workspace's subscription to a Marketplace offer."""
    properties = {
        "modelId": f"azureml://registries/azureml-meta/models/{model}",
        "marketplacePlan": {"publisherId": "metagenai", "offerId": offer, "planId": plan},
        "marketplaceSubscriptionStatus": "Subscribed",
        "provisioningState": "Succeeded",
    }
    return _object(resource_id, f"{ML}/marketplaceSubscriptions", created_at, properties=properties)


def compute_usage(family: str, *, used: int, limit: int, shown: str = "") -> dict[str, Any]:
    """A row of Microsoft.Compute usages."""
    return {"limit": limit, "unit": "Count", "currentValue": used, "name": {"value": family, "localizedValue": shown or f"{family} vCPUs"}}


def ml_usage(scope: str, kind: str, family: str, *, used: int, limit: int) -> dict[str, Any]:
    """A row of Machine Learning usages; ``scope`` is a subscription or a workspace."""
    return {
        "id": f"{scope}/usages/{family.replace(' ', '_')}",
        "type": f"Microsoft.MachineLearningServices/{kind}/usages",
        "currentValue": used,
        "limit": limit,
        "name": {"value": family, "localizedValue": family},
        "unit": "Count",
    }


def vm_price(size: str, meter: str, series: str, *, region: str, location: str, hourly: str, decoy: str = "") -> dict[str, Any]:
    """An item of the Retail Prices API for a VM hour; ``decoy`` names what sets it apart from the plain Linux price."""
    item: dict[str, Any] = {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": hourly,
        "unitPrice": hourly,
        "armRegionName": region,
        "location": location,
        "effectiveStartDate": "2023-08-01T00:00:00Z",
        "meterId": f"{size}/{region}/{decoy}".lower(),
        "meterName": meter,
        "productId": "DZH318Z0SYN1",
        "skuId": f"DZH318Z0SYN1/{decoy or 'LINX'}",
        "productName": f"Virtual Machines {series}",
        "skuName": meter,
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": size,
    }
    match decoy:
        case "Spot" | "Low Priority":
            item |= {"meterName": f"{meter} {decoy}", "skuName": f"{meter} {decoy}"}
        case "Windows":
            item |= {"productName": f"Virtual Machines {series} Windows"}
        case "Reservation":
            item |= {"type": "Reservation", "reservationTerm": "1 Year"}
        case "DevTestConsumption":
            item |= {"type": "DevTestConsumption"}
        case "secondary":
            item |= {"isPrimaryMeterRegion": False}
    return item


def token_price(meter: str, meter_id: str, region: str, location: str, per_thousand: str) -> dict[str, Any]:
    """An item of the Retail Prices API for a model sold by Azure."""
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": per_thousand,
        "unitPrice": per_thousand,
        "armRegionName": region,
        "location": location,
        "effectiveStartDate": "2025-01-01T00:00:00Z",
        "meterId": meter_id,
        "meterName": meter,
        "productId": "DZH318Z0LLMA",
        "skuId": "DZH318Z0LLMA/0001",
        "productName": "Llama Models",
        "skuName": meter.removesuffix(" Tokens"),
        "serviceName": "Foundry Models",
        "serviceId": "DZH31FNDRYM",
        "serviceFamily": "AI + Machine Learning",
        "unitOfMeasure": "1K",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": "",
    }


def _object(resource_id: str, type_: str, created_at: datetime, **more: Any) -> ArmObject:
    stamp = f"{created_at:%Y-%m-%dT%H:%M:%S}.000Z"
    by = {"createdBy": "deployer@contoso.example", "createdByType": "User", "lastModifiedBy": "deployer@contoso.example", "lastModifiedByType": "User"}
    return {"id": resource_id, "name": _name(resource_id), "type": type_, "tags": {}, **more, "systemData": {"createdAt": stamp, "lastModifiedAt": stamp, **by}}


def _name(resource_id: str) -> str:
    return resource_id.rpartition("/")[2]
