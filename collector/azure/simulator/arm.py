"""Azure Resource Manager as it answers reads: lists of what is there, usages, metrics, the activity log, permissions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from collector.azure.simulator.estate import CapacityStep, Estate, Minute, instances_at, made_id
from collector.azure.simulator.faults import Fault
from collector.azure.simulator.wire import Answer, Refused, Request, json_answer
from models.errors import InvalidInput
from models.periods import DAY, BillingPeriod, parse_instant

_MINUTE = timedelta(minutes=1)
_LONGEST_METRICS = timedelta(days=31)  # a longer timespan is cut to the last 31 days, with no word of it
_LOG_KEPT = timedelta(days=90)
_INTERVALS = {
    "PT1M": _MINUTE,
    "PT5M": 5 * _MINUTE,
    "PT15M": 15 * _MINUTE,
    "PT30M": 30 * _MINUTE,
    "PT1H": timedelta(hours=1),
    "PT6H": timedelta(hours=6),
    "PT12H": timedelta(hours=12),
    "P1D": timedelta(days=1),
}
# How many of each a request of a Foundry account counts for.
_GPU_METRICS = frozenset({"GpuUtilizationPercentage", "GpuMemoryUtilizationPercentage"})
_ACCOUNT_METRICS: dict[str, Callable[[Minute], int]] = {
    "ModelRequests": lambda minute: minute.requests,
    "AzureOpenAIRequests": lambda minute: minute.requests,
    "InputTokens": lambda minute: minute.input_tokens,
    "OutputTokens": lambda minute: minute.output_tokens,
    "TotalTokens": lambda minute: minute.input_tokens + minute.output_tokens,
}
_ML = "microsoft.machinelearningservices"
_ONLINE = f"{_ML}/workspaces/onlineendpoints/deployments"
_USAGES = re.compile(
    r"subscriptions/(?P<sub>[^/]+)/providers/(?P<provider>microsoft\.compute|microsoft\.machinelearningservices)/locations/(?P<region>[^/]+)/(?P<what>usages|quotas)\Z"
)
_METRICS = re.compile(r"(?P<id>.+)/providers/microsoft\.insights/metrics\Z", re.IGNORECASE)
_LOG = re.compile(r"subscriptions/(?P<sub>[^/]+)/providers/microsoft\.insights/eventtypes/management/values\Z")
_IN_SUBSCRIPTION = re.compile(r"subscriptions/(?P<sub>[^/]+)(?:/resourcegroups/(?P<group>[^/]+))?/providers/(?P<type>[^/]+/[^/]+)\Z")
_PERMISSIONS = re.compile(r"(?P<scope>.+)/providers/microsoft\.authorization/(?P<what>permissions|roleassignments|roledefinitions|denyassignments)\Z")
READER = "acdd72a7-3385-48ef-bd42-f606fba81ae7"
COST_READER = "72fafb9e-0641-4937-9268-a91bfd8191a3"


@dataclass(slots=True)
class ResourceManager:
    """Everything of Azure Resource Manager that is not Cost Management."""

    estate: Estate
    now: Callable[[], datetime]
    page_objects: int = 100
    # What the caller may do, as role definitions tell it.
    actions: Sequence[str] = ("*/read", "Microsoft.CostManagement/*/read", "Microsoft.CostManagement/query/action")
    not_actions: Sequence[str] = ()
    # Where the caller's rights are other ones: scope, lower case and without slashes at its ends -> role definitions.
    rights: Mapping[str, Sequence[Mapping[str, Sequence[str]]]] = field(default_factory=dict)
    denials: Sequence[dict[str, Any]] = ()  # deny assignments, as Azure lists them

    def answer(self, request: Request) -> Answer:
        """The answer to a GET; raises ``Refused`` where Azure would."""
        path = request.folded
        if path == "subscriptions":
            return self._list(request, [self._subscription(each.id) for each in self.estate.subscriptions()])
        if (found := re.fullmatch(r"subscriptions/([^/]+)", path)) is not None:
            return json_answer(self._subscription(found[1]))
        if (found := re.fullmatch(r"subscriptions/([^/]+)/resourcegroups", path)) is not None:
            return self._list(request, self._groups(found[1]))
        if (found := re.fullmatch(r"subscriptions/([^/]+)/providers/microsoft.billing/billingperiods", path)) is not None:
            return self._list(request, self._billing_periods(found[1]))
        if (usages := _USAGES.match(path)) is not None:
            return self._usages(usages)
        if (metrics := _METRICS.match(request.path)) is not None:
            return self._metrics(request, metrics["id"])
        if (log := _LOG.match(path)) is not None:
            return self._list(request, list(self._activity(log["sub"], request.query.get("$filter", ""))))
        if (rights := _PERMISSIONS.match(path)) is not None:
            return self._rights(rights["scope"], rights["what"])
        return self._objects(request)

    def _subscription(self, subscription_id: str) -> dict[str, Any]:
        for each in self.estate.subscriptions():
            if each.id.casefold() == subscription_id.casefold():
                return {
                    "id": f"/subscriptions/{each.id}",
                    "subscriptionId": each.id,
                    "displayName": each.name,
                    "tenantId": made_id("tenant"),
                    "state": "Enabled",
                    "authorizationSource": "RoleBased",
                    "subscriptionPolicies": {
                        "locationPlacementId": "Public_2014-09-01",
                        "quotaId": each.quota_id,
                        "spendingLimit": "On" if each.agreement == "trial" else "Off",
                    },
                }
        raise Refused(404, "SubscriptionNotFound", f"The subscription '{subscription_id}' could not be found.")

    def _billing_periods(self, subscription_id: str) -> list[dict[str, Any]]:
        """The bills of a year, newest first; only those who buy at the portal have any."""
        self._subscription(subscription_id)
        found = next(each for each in self.estate.subscriptions() if each.id.casefold() == subscription_id.casefold())
        if found.agreement != "payg":
            raise Refused(404, "BillingPeriodsNotFound", "Billing periods are not supported for this subscription type.")
        bills: list[BillingPeriod] = []
        day = self.now().date()
        for _ in range(13):
            bills.append(found.billed_in(day))
            day = bills[-1].start - DAY
        return [
            {
                "id": f"/subscriptions/{found.id}/providers/Microsoft.Billing/billingPeriods/{bill.start:%Y%m}-1",
                "name": f"{bill.start:%Y%m}-1",
                "type": "Microsoft.Billing/billingPeriods",
                "properties": {"billingPeriodStartDate": f"{bill.start}", "billingPeriodEndDate": f"{bill.end - DAY}"},
            }
            for bill in bills
        ]

    def _groups(self, subscription_id: str) -> list[dict[str, Any]]:
        self._subscription(subscription_id)
        prefix = f"/subscriptions/{subscription_id}/resourcegroups/"
        ids = {each["id"].split("/")[4]: each for each in self.estate.objects(self.now()) if each["id"].casefold().startswith(prefix)}
        return [
            {
                "id": f"/subscriptions/{subscription_id}/resourceGroups/{name}",
                "name": name,
                "type": "Microsoft.Resources/resourceGroups",
                "location": each.get("location", ""),
            }
            for name, each in sorted(ids.items())
        ]

    # -- lists ----------------------------------------------------------------------------------

    def _objects(self, request: Request) -> Answer:
        there = {each["id"].casefold().strip("/"): each for each in self.estate.objects(self.now())}
        path = request.folded.strip("/")
        if path in there:
            return json_answer(there[path])
        if (found := _IN_SUBSCRIPTION.match(path)) is not None:
            self._subscription(found["sub"])
            group = f"/resourcegroups/{found['group']}/" if found["group"] else "/"
            start = f"subscriptions/{found['sub']}{group}"
            return self._list(request, [each for id_, each in there.items() if id_.startswith(start) and each["type"].casefold() == found["type"]])
        parent, _, collection = path.rpartition("/")
        if parent not in there:
            raise Refused(404, "ResourceNotFound", f"The Resource '{parent}' was not found.")
        inside = [each for id_, each in there.items() if id_.startswith(path + "/") and "/" not in id_[len(path) + 1 :]]
        if not inside and collection not in {"onlineendpoints", "deployments", "serverlessendpoints", "marketplacesubscriptions"}:
            raise Refused(404, "InvalidResourceType", f"The resource type '{collection}' could not be found.")
        return self._list(request, inside)

    def _list(self, request: Request, items: Sequence[Mapping[str, Any]]) -> Answer:
        if "api-version" not in request.query:
            raise Refused(400, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
        start = int(request.query.get("$skiptoken") or 0)
        link = None
        if start + self.page_objects < len(items):
            following = start if request.fault is Fault.NEXT_LINK_LOOP else start + self.page_objects
            link = f"{request.base}/{request.path}?{urlencode({**request.query, '$skiptoken': str(following)}, quote_via=quote)}"
        return json_answer({"value": list(items[start : start + self.page_objects]), "nextLink": link})

    def _usages(self, found: re.Match[str]) -> Answer:
        self._subscription(found["sub"])
        is_compute = found["provider"] == "microsoft.compute"
        source = "compute" if is_compute else "ml" if found["what"] == "usages" else "ml_quotas"
        rows = self.estate.usages(found["sub"], found["region"], source=source, at=self.now())  # type: ignore[arg-type]
        return json_answer({"value": list(rows)} | ({} if is_compute else {"nextLink": None}))

    # -- what happened --------------------------------------------------------------------------

    def _metrics(self, request: Request, resource_id: str) -> Answer:
        resource = "/" + resource_id.strip("/")
        interval_name = request.query.get("interval", "PT1M")
        interval = _INTERVALS.get(interval_name)
        if interval is None:
            raise Refused(400, "BadRequest", f"Detected invalid time grain input: {interval_name}")
        start, end = self._timespan(request.query.get("timespan", ""))
        aggregations = [each.strip().casefold() for each in request.query.get("aggregation", "Average").split(",")]
        values = []
        for name in request.query.get("metricnames", "").split(","):
            series = self._capacity(resource, (start, end), interval, aggregations) if name == "DeploymentCapacity" else None
            if name in _GPU_METRICS:
                series = self._gpu(resource, name, (start, end), interval)
            if series is None:
                series = self._requests(resource, name, (start, end), interval, aggregations)
            values.append(
                {
                    "id": f"{resource}/providers/Microsoft.Insights/metrics/{name}",
                    "type": "Microsoft.Insights/metrics",
                    "name": {"value": name, "localizedValue": name},
                    "displayDescription": "",
                    "unit": "Count",
                    "timeseries": series,
                    "errorCode": "Success",
                }
            )
        return json_answer(
            {"cost": 0, "timespan": f"{_text(start)}/{_text(end)}", "interval": interval_name, "namespace": "", "resourceregion": "", "value": values}
        )

    def _timespan(self, text: str) -> tuple[datetime, datetime]:
        try:
            start, end = (parse_instant(each, what="timespan") for each in text.split("/"))
        except (ValueError, InvalidInput) as fault:
            raise Refused(400, "BadRequest", f"Invalid timespan '{text}'.") from fault
        start, end = start.replace(second=0, microsecond=0), min(end, self.now())
        return max(start, end - _LONGEST_METRICS), end

    def _capacity(self, resource: str, span: tuple[datetime, datetime], interval: timedelta, aggregations: Sequence[str]) -> list[dict[str, Any]] | None:
        (start, end), steps = span, self.estate.capacity(resource)
        if not steps:
            return None
        data = []
        at = start
        while at < end:
            counts = _counts_between(steps, at, min(at + interval, end))
            point: dict[str, Any] = {"timeStamp": _text(at)}
            if counts:
                point |= {name: float(max(counts) if name == "maximum" else min(counts)) for name in aggregations if name in {"maximum", "minimum"}}
                if "average" in aggregations:
                    point["average"] = sum(counts) / len(counts)
            data.append(point)
            at += interval
        return [{"metadatavalues": [], "data": data}]

    def _gpu(self, resource: str, name: str, span: tuple[datetime, datetime], interval: timedelta) -> list[dict[str, Any]] | None:
        """As busy as its requests make it; the weights of the model fill the memory as long as there is an instance."""
        (start, end), steps = span, self.estate.capacity(resource)
        if not steps:
            return None
        parent, _, deployment = resource.rpartition("/deployments/")
        calls: dict[datetime, int] = {}
        for minute in self.estate.requests(parent, start, end).get(deployment, ()):
            slot = start + (minute.at - start) // interval * interval
            calls[slot] = calls.get(slot, 0) + minute.requests
        data, at = [], start
        while at < end:
            point: dict[str, Any] = {"timeStamp": _text(at)}
            if (running := instances_at(steps, at)) > 0:
                busy = min(97.0, 4.0 + calls.get(at, 0) * (timedelta(hours=1) / interval) / running)
                point["average"] = busy if name == "GpuUtilizationPercentage" else 81.5
            data.append(point)
            at += interval
        return [{"metadatavalues": [], "data": data}]

    def _requests(self, resource: str, name: str, span: tuple[datetime, datetime], interval: timedelta, aggregations: Sequence[str]) -> list[dict[str, Any]]:
        start, end = span
        is_account = name in _ACCOUNT_METRICS
        if name != "RequestsPerMinute" and not is_account:
            raise Refused(
                400, "BadRequest", f"Failed to find metric configuration for provider, metric: {name}. Valid metrics: RequestsPerMinute,DeploymentCapacity"
            )
        counted = _ACCOUNT_METRICS.get(name, _ACCOUNT_METRICS["ModelRequests"])
        label = "modeldeploymentname" if is_account else "deployment"
        found = []
        for deployment, minutes in self.estate.requests(resource, start, end).items():
            cells: dict[datetime, list[int]] = {}
            for minute in minutes:
                cells.setdefault(start + (minute.at - start) // interval * interval, []).append(counted(minute))
            data = []
            at = start
            while at < end:
                point: dict[str, Any] = {"timeStamp": _text(at)}
                if counts := cells.get(at):
                    # An average over the minutes that had any: no total, whatever the grain.
                    known = {"average": sum(counts) / len(counts)}
                    if is_account:
                        known |= {"total": float(sum(counts)), "maximum": float(max(counts)), "count": float(sum(counts))}
                    point |= {each: known[each] for each in aggregations if each in known}
                data.append(point)
                at += interval
            found.append({"metadatavalues": [{"name": {"value": label, "localizedValue": label}, "value": deployment}], "data": data})
        return found

    def _activity(self, subscription_id: str, condition: str) -> Iterator[dict[str, Any]]:
        self._subscription(subscription_id)
        limits = dict(re.findall(r"eventTimestamp (ge|le) '([^']+)'", condition))
        start = parse_instant(limits["ge"], what="eventTimestamp") if "ge" in limits else self.now() - _LOG_KEPT
        end = parse_instant(limits["le"], what="eventTimestamp") if "le" in limits else self.now()
        if start < self.now() - _LOG_KEPT - timedelta(days=1):
            raise Refused(400, "BadRequest", "The start time cannot be more than 90 days in the past.")
        events = []
        for resource in self._deployments_ever(subscription_id):
            for step in self.estate.capacity(resource):
                is_gone = step.instances == 0
                # Deletes come in other capitals than writes.
                operation = f"Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments/{'delete' if is_gone else 'write'}"
                said = resource.upper() if is_gone else resource
                for status, delay in (("Started", -timedelta(minutes=12)), ("Succeeded", timedelta())):
                    at = step.at + delay
                    if start <= at <= min(end, self.now()):
                        events.append((at, operation, status, said))
        for at, operation, status, resource in sorted(events, reverse=True):
            yield {
                "eventTimestamp": f"{at:%Y-%m-%dT%H:%M:%S.%f}0Z",
                "operationName": {"value": operation, "localizedValue": operation},
                "status": {"value": status, "localizedValue": status},
                "resourceId": resource,
                "caller": "deployer@contoso.example",
                "correlationId": made_id("correlation", resource, at),
                "level": "Informational",
                "category": {"value": "Administrative", "localizedValue": "Administrative"},
                "properties": {"eventCategory": "Administrative", "message": operation},
                "subscriptionId": subscription_id,
            }

    def _deployments_ever(self, subscription_id: str) -> list[str]:
        # Also those that are gone by now: the log remembers them.
        found = {
            each["id"] for back in range(0, 90, 5) for each in self.estate.objects(self.now() - timedelta(days=back)) if each["type"].casefold() == _ONLINE
        }
        return sorted(id_ for id_ in found if id_.casefold().startswith(f"/subscriptions/{subscription_id.casefold()}/"))

    # -- rights ---------------------------------------------------------------------------------

    def _rights(self, scope: str, what: str) -> Answer:
        if scope.startswith("subscriptions/"):
            self._subscription(scope.split("/")[1])
        if what == "permissions":
            roles = self.rights.get(scope.strip("/"), [{"actions": self.actions, "notActions": self.not_actions}])
            value: list[dict[str, Any]] = [
                {
                    "actions": list(role["actions"]),
                    "notActions": list(role.get("notActions", ())),
                    "dataActions": list(role.get("dataActions", ())),
                    "notDataActions": [],
                }
                for role in roles
            ]
        elif what == "denyassignments":
            value = list(self.denials)
        elif what == "roleassignments":
            value = [
                {
                    "id": f"/{scope}/providers/Microsoft.Authorization/roleAssignments/{made_id('assignment', role)}",
                    "name": made_id("assignment", role),
                    "type": "Microsoft.Authorization/roleAssignments",
                    "properties": {
                        "roleDefinitionId": f"/{scope}/providers/Microsoft.Authorization/roleDefinitions/{role}",
                        "principalId": made_id("principal"),
                        "principalType": "ServicePrincipal",
                        "scope": f"/{scope}",
                    },
                }
                for role in (READER, COST_READER)
            ]
        else:
            value = [
                {
                    "id": f"/{scope}/providers/Microsoft.Authorization/roleDefinitions/{role}",
                    "name": role,
                    "type": "Microsoft.Authorization/roleDefinitions",
                    "properties": {
                        "roleName": name,
                        "type": "BuiltInRole",
                        "permissions": [{"actions": list(self.actions), "notActions": list(self.not_actions)}],
                    },
                }
                for role, name in ((READER, "Reader"), (COST_READER, "Cost Management Reader"))
            ]
        return json_answer({"value": value, "nextLink": None})


def _counts_between(steps: Sequence[CapacityStep], start: datetime, end: datetime) -> list[int]:
    """The instance counts that held within [start, end); nothing for time without any."""
    counts = []
    for step, following in zip(steps, [*(each.at for each in steps[1:]), None], strict=True):
        if step.at < end and (following is None or following > start) and step.instances:
            counts.append(step.instances)
    return counts


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
