"""Cost Management as it answers: the query API with its pages, the cost details report, exports and their blobs."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from collector.azure.simulator.estate import COST_DETAILS_COLUMNS, BilledRow, Estate, Metric, Subscription, made_id
from collector.azure.simulator.faults import Fault
from collector.azure.simulator.focus import FOCUS_COLUMNS, focus_row
from collector.azure.simulator.storage import storage_error
from collector.azure.simulator.wire import Answer, Refused, Request, json_answer
from models import money
from models.periods import DAY, BillingPeriod, month_start, next_month

API = "microsoft.costmanagement"
# Dimension of a query, in lower case -> column of cost details.
_DIMENSIONS: Mapping[str, str] = {
    "resourceid": "ResourceId",
    "meter": "meterName",
    "meterid": "meterId",
    "metercategory": "meterCategory",
    "metersubcategory": "meterSubCategory",
    "servicename": "meterCategory",
    "consumedservice": "consumedService",
    "servicefamily": "serviceFamily",
    "product": "ProductName",
    "productorderid": "productOrderId",
    "productordername": "productOrderName",
    "publishertype": "publisherType",
    "publishername": "publisherName",
    "chargetype": "chargeType",
    "frequency": "frequency",
    "pricingmodel": "pricingModel",
    "unitofmeasure": "unitOfMeasure",
    "resourcegroup": "resourceGroupName",
    "resourcegroupname": "resourceGroupName",
    "resourcelocation": "resourceLocation",
    "subscriptionid": "SubscriptionId",
    "subscriptionname": "subscriptionName",
    "billingprofileid": "billingProfileId",
    "billingaccountid": "billingAccountId",
    "invoiceid": "invoiceId",
    "invoicesection": "invoiceSectionName",
    "reservationid": "reservationId",
    "benefitid": "benefitId",
}
_AMOUNTS: Mapping[str, str] = {"cost": "costInBillingCurrency", "pretaxcost": "costInBillingCurrency", "costusd": "costInUsd", "usagequantity": "quantity"}
_LOWER = frozenset({"resourceid", "resourcegroup", "resourcegroupname"})
_SCOPE = re.compile(
    r"(?P<sub>subscriptions/(?P<id>[^/]+)(?:/resourcegroups/(?P<group>[^/]+))?)\Z"
    r"|(?P<account>providers/microsoft\.billing/billingaccounts/[^/]+)(?:/billingprofiles/(?P<profile>[^/]+))?\Z"
)


@dataclass(frozen=True, slots=True)
class Export:
    """A scheduled export of a scope, month to date, every morning at five."""

    name: str
    scope: str
    type: str = "FocusCost"  # ActualCost | AmortizedCost | FocusCost
    container: str = "exports"
    root: str = "costs"
    parts: int = 2


@dataclass(slots=True)
class _Operation:
    """A cost details report under way."""

    id: str
    scope: str
    body: Any
    polls_left: int
    content: list[bytes] | None  # None: there is no data
    has_failed: bool = False
    signature: int = 0


@dataclass(slots=True)
class CostManagement:
    """Everything under Microsoft.CostManagement, and the storage that reports and exports are fetched from."""

    estate: Estate
    now: Callable[[], datetime]
    blob_base: Callable[[], str]
    page_rows: int = 1000
    report_blobs: int = 2
    report_polls: int = 1
    poll_seconds: str = "0.02"  # a plain 0 would mean the client's own half minute
    exports: tuple[Export, ...] = ()
    seed: object = 0
    _operations: dict[str, _Operation] = field(default_factory=dict)
    _spent: set[str] = field(default_factory=set)  # signatures that have expired
    _rows: dict[tuple[str, date, str, datetime], Sequence[BilledRow]] = field(default_factory=dict)

    # -- scopes ---------------------------------------------------------------------------------

    def _scope(self, scope: str) -> tuple[list[str], Callable[[BilledRow], bool]]:
        """The subscriptions of a scope ('' for rows of none) and a filter for what of them is in it."""
        found = _SCOPE.match(scope.casefold().strip("/"))
        if found is None:
            raise Refused(400, "BadRequest", f"Invalid scope '{scope}'.")
        if found["account"]:
            if "/" + found["account"] != self.estate.billing_account.casefold():
                raise Refused(404, "NotFound", f"The billing account '{scope}' could not be found.")
            profile = found["profile"]
            everyone = [*(each.id for each in self.estate.subscriptions()), ""]
            return everyone, (lambda row: row.get("billingProfileId", "").casefold().endswith("/" + profile)) if profile else (lambda _row: True)
        subscription = self.subscription(found["id"])
        group = found["group"]
        return [subscription.id], (lambda row: row.get("resourceGroupName", "").casefold() == group) if group else (lambda _row: True)

    def subscription(self, subscription_id: str) -> Subscription:
        """The subscription of that id, or Azure's refusal."""
        for each in self.estate.subscriptions():
            if each.id.casefold() == subscription_id.casefold():
                return each
        raise Refused(404, "SubscriptionNotFound", f"The subscription '{subscription_id}' could not be found.")

    def _billed(self, subscription_id: str, month: date, metric: Metric, at: datetime) -> Sequence[BilledRow]:
        key = (subscription_id, month, metric, at)
        if key not in self._rows:
            if len(self._rows) > 200:
                self._rows.clear()
            self._rows[key] = self.estate.billed(subscription_id, month, metric=metric, at=at)
        return self._rows[key]

    def rows(self, scope: str, first: date, last: date, *, metric: Metric, at: datetime) -> list[BilledRow]:
        """The rows of a scope whose day lies in [first, last]."""
        subscriptions, is_inside = self._scope(scope)
        found: list[BilledRow] = []
        for subscription in subscriptions:
            month = month_start(first)
            while month <= last:
                found += [row for row in self._billed(subscription, month, metric, at) if is_inside(row) and first <= _day(row) <= last]
                month = next_month(month)
        return found

    # -- query ----------------------------------------------------------------------------------

    def query(self, request: Request, scope: str) -> Answer:
        """A page of an aggregated answer."""
        definition = request.body if isinstance(request.body, dict) else {}
        dataset = definition.get("dataset") or {}
        metric = _metric(definition.get("type"))
        first, last = self._timeframe(definition)
        groupings = _groupings(dataset)
        aggregations = _aggregations(dataset)
        granularity = str(dataset.get("granularity") or "None").casefold()
        if granularity not in {"daily", "monthly", "none"}:
            raise Refused(400, "BadRequest", f"Invalid query definition: granularity '{dataset.get('granularity')}' is not supported.")
        rows = [row for row in self.rows(scope, first, last, metric=metric, at=self.now()) if _passes(dataset.get("filter"), row)]

        columns = [{"name": name, "type": "Number"} for name in aggregations]
        if granularity == "daily":
            columns.append({"name": "UsageDate", "type": "Number"})
        elif granularity == "monthly":
            columns.append({"name": "BillingMonth", "type": "Datetime"})
        for kind, name in groupings:
            columns += (
                [{"name": "TagKey", "type": "String"}, {"name": "TagValue", "type": "String"}] if kind == "tagkey" else [{"name": name, "type": "String"}]
            )
        columns.append({"name": "Currency", "type": "String"})

        sums: dict[tuple[Any, ...], list[Decimal]] = {}
        for row in rows:
            key: list[Any] = []
            if granularity == "daily":
                key.append(int(f"{_day(row):%Y%m%d}"))
            elif granularity == "monthly":
                key.append(f"{month_start(_day(row)):%Y-%m-01T00:00:00}")
            for kind, name in groupings:
                if kind == "tagkey":
                    value = _tags(row).get(name.casefold())
                    key += [name if value is not None else None, value]
                else:
                    value = row.get(_DIMENSIONS[name.casefold()], "")
                    key.append(value.lower() if name.casefold() in _LOWER else value)
            key.append(row.get("billingCurrency", ""))
            total = sums.setdefault(tuple(key), [money.ZERO] * len(aggregations))
            for place, column in enumerate(aggregations.values()):
                total[place] = money.plus(total[place], Decimal(row.get(column) or "0"))
        table = [[*sums[key], *key] for key in sorted(sums, key=lambda key: tuple("" if part is None else str(part) for part in key))]
        return self._page(request, scope, columns, table)

    def _page(self, request: Request, scope: str, columns: list[dict[str, str]], table: list[list[Any]]) -> Answer:
        start = _skip(request.query.get("$skiptoken"))
        if request.fault is Fault.PAGE_CHANGED and start:
            # A row came in before, or one went: a row is told twice or never.
            start += self._chance("page", start).choice((-1, 1))
        page = table[start : start + self.page_rows]
        link = None
        if request.fault is Fault.NEXT_LINK_LOOP and len(table) > self.page_rows:
            link = self._query_link(request, scope, start)
        elif start + self.page_rows < len(table):
            link = self._query_link(request, scope, start + self.page_rows)
        if request.fault is Fault.COLUMN_ORDER:
            order = list(range(len(columns)))
            self._chance("columns", request.path).shuffle(order)
            columns = [columns[place] for place in order]
            page = [[row[place] for place in order] for row in page]
        name = made_id("query", scope, start)
        body = {
            "id": f"{scope}/providers/Microsoft.CostManagement/query/{name}",
            "name": name,
            "type": "Microsoft.CostManagement/query",
            "location": None,
            "sku": None,
            "eTag": None,
            "properties": {"nextLink": link, "columns": columns, "rows": page},
        }
        return json_answer(body)

    def _query_link(self, request: Request, scope: str, start: int) -> str:
        token = quote(base64.b64encode(start.to_bytes(4, "big")).decode())
        return f"{request.base}/{scope}/providers/Microsoft.CostManagement/query?api-version=2025-03-01&$skiptoken={token}"

    def _timeframe(self, definition: Mapping[str, Any]) -> tuple[date, date]:
        frame, period = str(definition.get("timeframe") or "").casefold(), definition.get("timePeriod") or {}
        today = self.now().date()
        if (frame == "custom") != bool(period):
            raise Refused(400, "BadRequest", "Invalid query definition: timePeriod requires timeframe 'Custom'.")
        month = month_start(today)
        match frame:
            case "custom":
                first, last = date.fromisoformat(period["from"][:10]), date.fromisoformat(period["to"][:10])
                if last < first or (last - first).days > 366:
                    raise Refused(400, "BadRequest", "Invalid query definition: the time period must be at most one year.")
                return first, last
            case "monthtodate" | "thecurrentmonth" | "billingmonthtodate":
                return month, today
            case "thelastmonth" | "thelastbillingmonth":
                return month_start(month - DAY), month - DAY
            case "weektodate":
                return today - timedelta(days=today.isoweekday() % 7), today
            case _:
                raise Refused(400, "BadRequest", f"Invalid query definition: timeframe '{definition.get('timeframe')}' is not supported.")

    def _chance(self, *names: object) -> random.Random:
        return random.Random("/".join(map(str, (self.seed, *names))))  # noqa: S311 (a sample)

    # -- cost details ---------------------------------------------------------------------------

    def begin_report(self, request: Request, scope: str) -> Answer:
        """Take a report in hand: 202 with the place to ask."""
        body = request.body if isinstance(request.body, dict) else {}
        found = _SCOPE.match(scope.casefold().strip("/"))
        if found is None or found["group"]:
            raise Refused(400, "BadRequest", "Cost details are not supported for this scope.")
        if found["id"] and (agreement := self.subscription(found["id"]).agreement) not in {"mca", "ea"}:
            raise Refused(
                422, "UnprocessableEntity", f"Cost details are not supported for subscriptions of the offer {agreement}; use Exports or the Query API."
            )
        first, last = self._report_period(body)
        rows = self.rows(scope, first, last, metric=_metric(body.get("metric")), at=self.now())
        operation = _Operation(made_id("report", scope, len(self._operations), self.now()), scope, body, self.report_polls, None)
        if rows:
            operation.content = list(_csv_parts(rows, self.report_blobs))
        self._operations[operation.id] = operation
        return Answer(202, b"", {"Location": self._operation_link(request, operation), "Retry-After": self.poll_seconds})

    def _report_period(self, body: Mapping[str, Any]) -> tuple[date, date]:
        today = self.now().date()
        said = [name for name in ("timePeriod", "billingPeriod", "invoiceId") if body.get(name)]
        if len(said) > 1:
            raise Refused(400, "BadRequest", "Only one of timePeriod, billingPeriod and invoiceId can be given.")
        if period := body.get("timePeriod"):
            first, last = date.fromisoformat(str(period["start"])[:10]), date.fromisoformat(str(period["end"])[:10])
            if last < first or last >= next_month(month_start(first)) + DAY:
                raise Refused(400, "BadRequest", "The time period must be within one month.")
            if (today - first).days > 400:
                raise Refused(400, "BadRequest", "The start date must be within the last 13 months.")
            return first, last
        if period := body.get("billingPeriod"):
            first = date(int(str(period)[:4]), int(str(period)[4:6]), 1)
            return first, next_month(first) - DAY
        return month_start(today), today

    def _operation_link(self, request: Request, operation: _Operation) -> str:
        return f"{request.base}/{operation.scope}/providers/Microsoft.CostManagement/costDetailsOperationResults/{operation.id}?api-version=2025-03-01"

    def report(self, request: Request, operation_id: str) -> Answer:
        """How far a report is: 202, or 200 with what became of it."""
        operation = self._operations.get(operation_id.casefold())
        if operation is None:
            raise Refused(404, "NotFound", "The operation could not be found.")
        if request.fault is Fault.REPORT_FAILED:
            operation.has_failed = True
        if operation.polls_left > 0:
            operation.polls_left -= 1
            return Answer(202, b"", {"Location": self._operation_link(request, operation), "Retry-After": self.poll_seconds})
        body: dict[str, Any] = {
            "id": f"{operation.scope}/providers/Microsoft.CostManagement/costDetailsOperationResults/{operation.id}",
            "name": operation.id,
        }
        if operation.has_failed:
            body |= {"status": "Failed", "error": {"code": "InternalServerError", "message": "Report generation failed. Please retry."}}
        elif operation.content is None:
            body |= {"status": "NoDataFound"}
        else:
            operation.signature += 1
            until = self.now() + timedelta(hours=12)
            blobs = [
                {"blobLink": f"{self.blob_base()}/reports/{operation.id}/part_{number}_0001.csv?{self._sas(operation)}", "byteCount": len(content)}
                for number, content in enumerate(operation.content)
            ]
            body |= {
                "status": "Completed",
                "manifest": {
                    "manifestVersion": "2025-03-01",
                    "dataFormat": "Csv",
                    "blobCount": len(blobs),
                    "byteCount": sum(map(len, operation.content)),
                    "compressData": False,
                    "requestContext": {"requestScope": operation.scope, "requestBody": operation.body},
                    "blobs": blobs,
                },
                "validTill": f"{until:%Y-%m-%dT%H:%M:%S}.0000000Z",
            }
        return json_answer(body)

    def _sas(self, operation: _Operation) -> str:
        until = quote(f"{self.now() + timedelta(hours=12):%Y-%m-%dT%H:%M:%SZ}", safe="")
        return f"sv=2023-01-03&sr=b&sig={made_id('sig', operation.id, operation.signature)}&se={until}&sp=r"

    # -- exports and storage --------------------------------------------------------------------

    def list_exports(self, scope: str) -> Answer:
        """The exports of a scope."""
        self._scope(scope)
        return json_answer({"value": [self._export(each) for each in self.exports if _same_scope(each.scope, scope)]})

    def _export(self, export: Export) -> dict[str, Any]:
        return {
            "id": f"/{export.scope.strip('/')}/providers/Microsoft.CostManagement/exports/{export.name}",
            "name": export.name,
            "type": "Microsoft.CostManagement/exports",
            "eTag": '"1da0000000000"',
            "properties": {
                "schedule": {"status": "Active", "recurrence": "Daily", "recurrencePeriod": {"from": "2025-02-01T00:00:00Z", "to": "2030-01-01T00:00:00Z"}},
                "format": "Csv",
                "deliveryInfo": {
                    "destination": {
                        "type": "AzureBlob",
                        "resourceId": self._storage_id(),
                        "container": export.container,
                        "rootFolderPath": export.root,
                    }
                },
                "definition": {
                    "type": export.type,
                    "timeframe": "MonthToDate",
                    "dataSet": {
                        "granularity": "Daily",
                        "configuration": {"dataVersion": "1.2-preview" if export.type == "FocusCost" else "2023-12-01-preview"},
                    },
                },
                "partitionData": True,
                "dataOverwriteBehavior": "CreateNewReport",
                "compressionMode": "none",
                "nextRunTimeEstimate": f"{self.now().date() + DAY:%Y-%m-%d}T05:00:00Z",
            },
        }

    def _storage_id(self) -> str:
        return f"/subscriptions/{self.estate.subscriptions()[0].id}/resourceGroups/rg-costs/providers/Microsoft.Storage/storageAccounts/stcostexports"

    def storage_account(self, request: Request) -> Answer | None:
        """The account that exports go to, as Resource Manager tells it; None where the request is for something else."""
        if not self.exports or "/" + request.folded.strip("/") != self._storage_id().casefold():
            return None
        properties = {"provisioningState": "Succeeded", "primaryEndpoints": {"blob": self.blob_base() + "/"}}
        return json_answer({"id": self._storage_id(), "name": "stcostexports", "kind": "StorageV2", "properties": properties})

    def export_runs(self, scope: str, name: str) -> Answer:
        """The last runs of an export, newest first; the one of this morning may be under way."""
        export = self._export_named(scope, name)
        values = []
        for run in self._runs(export):
            properties: dict[str, Any] = {"executionType": "Scheduled", "submittedBy": "System", "submittedTime": f"{run.at:%Y-%m-%dT%H:%M:%SZ}"}
            properties["status"] = "Completed" if run.is_complete else "InProgress"
            if run.is_complete:
                properties |= {
                    "processingStartTime": f"{run.at + timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}",
                    "processingEndTime": f"{run.at + timedelta(minutes=50):%Y-%m-%dT%H:%M:%SZ}",
                    "fileName": run.folder,
                    "manifestFile": f"{run.folder}/manifest.json",
                }
            values.append(
                {
                    "id": f"/{scope.strip('/')}/providers/Microsoft.CostManagement/exports/{export.name}/runs/{run.id}",
                    "name": run.id,
                    "type": "Microsoft.CostManagement/exports/run",
                    "properties": properties,
                }
            )
        return json_answer({"value": values})

    def _export_named(self, scope: str, name: str) -> Export:
        for each in self.exports:
            if _same_scope(each.scope, scope) and each.name.casefold() == name.casefold():
                return each
        raise Refused(404, "NotFound", f"The export '{name}' could not be found.")

    def _runs(self, export: Export) -> list[_Run]:
        runs: list[_Run] = []
        now = self.now()
        for back in range(40):
            at = now.replace(hour=5, minute=0, second=0, microsecond=0) - timedelta(days=back)
            if at > now:
                continue
            # The previous bill is exported beside the new one until it has settled.
            bills = {self._billed_in(export.scope, day) for day in (at.date(), at.date() - timedelta(days=6))}
            for bill in sorted(bills, reverse=True):
                run_id = made_id("run", export.scope, export.name, at.date(), bill.start)
                folder = f"{export.root}/{export.name}/{bill.start:%Y%m%d}-{bill.end - DAY:%Y%m%d}/{run_id}"
                runs.append(_Run(run_id, at, bill, folder, is_complete=now >= at + timedelta(hours=1)))
        return runs

    def _billed_in(self, scope: str, day: date) -> BillingPeriod:
        found = _SCOPE.match(scope.casefold().strip("/"))
        return self.subscription(found["id"]).billed_in(day) if found is not None and found["id"] else BillingPeriod.of_month(day)

    def blob(self, request: Request) -> Answer:
        """A blob of a report or an export, or the list of a container."""
        signature = request.query.get("sig", "")
        if request.fault is Fault.EXPIRED_SAS and signature:
            self._spent.add(signature)
        if signature in self._spent or not (signature or "authorization" in request.headers):
            return storage_error(403, "AuthenticationFailed", "Signature not valid in the specified time frame")
        path = unquote(request.path)
        if request.query.get("comp") == "list":
            return self._container(path.strip("/"), request)
        container, _, name = path.partition("/")
        content = self._report_blob(name) if container == "reports" else dict(self._export_blobs(container, name)).get(name)
        if content is None:
            return storage_error(404, "BlobNotFound", "The specified blob does not exist.")
        body = content() if callable(content) else content
        if request.fault is Fault.COLUMN_ORDER and name.endswith(".csv"):
            body = self._reordered(body, name)
        return Answer(200, body, {"Content-Type": "text/csv" if name.endswith(".csv") else "application/json", "x-ms-blob-type": "BlockBlob"})

    def _report_blob(self, name: str) -> bytes | None:
        operation_id, _, part = name.partition("/")
        operation = self._operations.get(operation_id)
        number = re.match(r"part_(\d+)_", part)
        if operation is None or operation.content is None or number is None or int(number[1]) >= len(operation.content):
            return None
        return operation.content[int(number[1])]

    def _export_blobs(self, container: str, prefix: str = "") -> Iterator[tuple[str, Callable[[], bytes]]]:
        for export in self.exports:
            if export.container != container:
                continue
            for run in self._runs(export):
                if not (run.folder.startswith(prefix) or prefix.startswith(run.folder)):
                    continue
                for number in range(export.parts if run.is_complete else 1):
                    yield f"{run.folder}/part_{number}_0001.csv", partial(self._export_part, export, run, number)
                if run.is_complete:
                    yield f"{run.folder}/manifest.json", partial(self._manifest, export, run)

    def _export_part(self, export: Export, run: _Run, number: int) -> bytes:
        return self._export_parts(export, run)[number]

    def _export_parts(self, export: Export, run: _Run) -> list[bytes]:
        metric: Metric = "AmortizedCost" if export.type == "AmortizedCost" else "ActualCost"
        first, last = run.bill.start, run.bill.end - DAY
        rows = self.rows(export.scope, first, last, metric=metric, at=run.at)
        if export.type != "FocusCost":
            return list(_csv_parts(rows, export.parts))
        amortized = self.rows(export.scope, first, last, metric="AmortizedCost", at=run.at)
        effective = {row.get("x_row", str(number)): row.get("costInBillingCurrency", "0") for number, row in enumerate(amortized)}
        told = [focus_row(row, effective.get(row.get("x_row", str(number)), "0")) for number, row in enumerate(rows)]
        known = {row.get("x_row") for row in rows}
        # What only the amortized view has (the unused part of a reservation) is a row of no billed cost.
        told += [focus_row({**row, "costInBillingCurrency": "0"}, row["costInBillingCurrency"]) for row in amortized if row.get("x_row") not in known]
        return list(_csv_parts(told, export.parts, columns=FOCUS_COLUMNS))

    def _manifest(self, export: Export, run: _Run) -> bytes:
        parts = self._export_parts(export, run)
        counts = [part.count(b"\r\n") - 1 for part in parts]
        said = {
            "manifestVersion": "2024-04-01",
            "byteCount": sum(map(len, parts)),
            "blobCount": len(parts),
            "dataRowCount": sum(counts),
            "exportConfig": {
                "exportName": export.name,
                "resourceId": f"/{export.scope.strip('/')}/providers/Microsoft.CostManagement/exports/{export.name}",
                "dataVersion": "1.2-preview" if export.type == "FocusCost" else "2023-12-01-preview",
                "apiVersion": "2025-03-01",
                "type": export.type,
                "timeFrame": "MonthToDate",
                "granularity": "Daily",
            },
            "deliveryConfig": {
                "partitionData": True,
                "dataOverwriteBehavior": "CreateNewReport",
                "fileFormat": "Csv",
                "compressionMode": "None",
                "containerUri": self._storage_id(),
                "rootFolderPath": export.root,
            },
            "runInfo": {
                "executionType": "Scheduled",
                "submittedTime": f"{run.at:%Y-%m-%dT%H:%M:%S}.0000000Z",
                "runId": run.id,
                "startDate": f"{run.bill.start:%Y-%m-%d}T00:00:00",
                "endDate": f"{run.bill.end - DAY:%Y-%m-%d}T00:00:00",
            },
            "blobs": [
                {"blobName": f"{run.folder}/part_{number}_0001.csv", "byteCount": len(part), "dataRowCount": count}
                for number, (part, count) in enumerate(zip(parts, counts, strict=True))
            ],
        }
        return json.dumps(said, indent=2).encode()

    def _container(self, container: str, request: Request) -> Answer:
        prefix, marker = request.query.get("prefix", ""), request.query.get("marker", "")
        most = int(request.query.get("maxresults") or 5000)
        names = sorted(name for name, _ in self._export_blobs(container, prefix) if name.startswith(prefix) and name >= marker)
        following = names[most] if len(names) > most else ""
        items = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{self.now():%a, %d %b %Y %H:%M:%S} GMT</Last-Modified>"
            f"<BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name in names[:most]
        )
        text = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="{request.base}/" ContainerName="{escape(container)}">'
            f"<Prefix>{escape(prefix)}</Prefix><Blobs>{items}</Blobs><NextMarker>{escape(following)}</NextMarker></EnumerationResults>"
        )
        return Answer(200, ("\ufeff" + text).encode(), {"Content-Type": "application/xml"})

    def _reordered(self, content: bytes, name: str) -> bytes:
        records = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        order = list(range(len(records[0])))
        self._chance("blob", name).shuffle(order)
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerows([record[place] for place in order] for record in records)
        return text.getvalue().encode("utf-8-sig")


@dataclass(frozen=True, slots=True)
class _Run:
    id: str
    at: datetime
    bill: BillingPeriod
    folder: str
    is_complete: bool


def _same_scope(left: str, right: str) -> bool:
    return left.strip("/").casefold() == right.strip("/").casefold()


def _metric(said: object) -> Metric:
    match str(said or "ActualCost").casefold():
        case "actualcost" | "usage":
            return "ActualCost"
        case "amortizedcost":
            return "AmortizedCost"
        case _:
            raise Refused(400, "BadRequest", f"Invalid query definition: type '{said}' is not supported.")


def _groupings(dataset: Mapping[str, Any]) -> list[tuple[str, str]]:
    groupings = [(str(each.get("type") or "").casefold(), str(each.get("name") or "")) for each in dataset.get("grouping") or ()]
    if len(groupings) > 2:
        raise Refused(400, "BadRequest", "Invalid query definition: at most 2 group-by clauses are supported.")
    for kind, name in groupings:
        if kind not in {"dimension", "tagkey"} or (kind == "dimension" and name.casefold() not in _DIMENSIONS):
            raise Refused(400, "BadRequest", f"Invalid dataset grouping: '{name}'; valid values: {', '.join(sorted(_DIMENSIONS))}.")
    return groupings


def _aggregations(dataset: Mapping[str, Any]) -> dict[str, str]:
    said = dataset.get("aggregation") or {}
    if not 1 <= len(said) <= 2:
        raise Refused(400, "BadRequest", "Invalid query definition: 1 or 2 aggregation clauses are supported.")
    found: dict[str, str] = {}
    for each in said.values():
        name = str(each.get("name") or "")
        if each.get("function") != "Sum" or name.casefold() not in _AMOUNTS:
            raise Refused(400, "BadRequest", f"Invalid aggregation: '{name}'.")
        found[name] = _AMOUNTS[name.casefold()]
    return found


def _passes(condition: Mapping[str, Any] | None, row: BilledRow) -> bool:
    if not condition:
        return True
    if "and" in condition:
        return all(_passes(each, row) for each in condition["and"])
    if "or" in condition:
        return any(_passes(each, row) for each in condition["or"])
    if (told := condition.get("dimensions")) is not None:
        name = str(told.get("name") or "").casefold()
        if name not in _DIMENSIONS:
            raise Refused(400, "BadRequest", f"Invalid filter dimension: '{told.get('name')}'.")
        return row.get(_DIMENSIONS[name], "").casefold() in {str(value).casefold() for value in told.get("values") or ()}
    if (told := condition.get("tags")) is not None:
        value = _tags(row).get(str(told.get("name") or "").casefold())
        return value is not None and value.casefold() in {str(each).casefold() for each in told.get("values") or ()}
    raise Refused(400, "BadRequest", "Invalid query filter.")


def _tags(row: BilledRow) -> dict[str, str]:
    text = row.get("tags", "")
    return {name.casefold(): str(value) for name, value in json.loads(text).items()} if text else {}


def _day(row: BilledRow) -> date:
    month, day, year = row["date"].split("/")
    return date(int(year), int(month), int(day))


def _skip(token: str | None) -> int:
    if not token:
        return 0
    try:
        return int.from_bytes(base64.b64decode(token, validate=True), "big")
    except ValueError as fault:
        raise Refused(400, "BadRequest", "Invalid skip token.") from fault


def _csv_parts(rows: Sequence[Mapping[str, str]], parts: int, *, columns: Sequence[str] = COST_DETAILS_COLUMNS) -> Iterator[bytes]:
    """The rows over so many files, each with the header, as Azure writes them: a byte order mark and CRLF."""
    parts = max(1, min(parts, len(rows)))
    for start, end in pairwise(len(rows) * number // parts for number in range(parts + 1)):
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows[start:end])
        yield text.getvalue().encode("utf-8-sig")
