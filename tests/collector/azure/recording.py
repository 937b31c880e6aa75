"""An Azure that answers with the recorded bodies of tests/data/azure, over real HTTP, each at the address that yields it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from collector.azure import sync
from collector.azure.client import Azure, AzureSettings
from collector.settings import Settings
from models.store import Store

DATA = Path(__file__).parents[2] / "data"
A, B = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
ACCOUNT = "providers/Microsoft.Billing/billingAccounts/92e88a2c-13e6-5b8f-80d1-27674fbb68c6:0811d0b8-b4c9-58e4-9bda-e46147b4c705_2019-05-31"
COST = "/providers/Microsoft.CostManagement"
# What is not recorded: lists of what holds the recorded things.
_PROD = f"/subscriptions/{A}/resourceGroups/rg-ai-prod/providers"
WORKSPACE = f"{_PROD}/Microsoft.MachineLearningServices/workspaces/ws-llama-prod"
CHATBOT = f"/subscriptions/{A}/resourceGroups/rg-ai-studio/providers/Microsoft.MachineLearningServices/workspaces/proj-chatbot"
FOUNDRY = f"{_PROD}/Microsoft.CognitiveServices/accounts/aif-contoso"
Query = Mapping[str, str]
Answer = tuple[int, Mapping[str, str], bytes]


def recorded(name: str) -> bytes:
    """The bytes of a recorded file."""
    return next(path for path in (DATA / "azure" / name, DATA / "focus" / name) if path.exists()).read_bytes()


def exactly(name: str) -> dict[str, Any]:
    """A recorded document with its numbers as they are written."""
    found: dict[str, Any] = json.loads(recorded(name), parse_float=Decimal)
    return found


def listed(*objects: Mapping[str, Any]) -> bytes:
    """A list of Resource Manager."""
    return json.dumps({"value": objects}).encode()


@dataclass
class Recording:
    """What is answered where: (method, path in lower case) -> answers, the last of which stays."""

    url: str = ""
    answers: dict[tuple[str, str], list[Callable[[Query], Answer]]] = field(default_factory=dict)
    asked: list[tuple[str, str, Query, Any]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def on(self, method: str, path: str, *answers: bytes | Callable[[Query], bytes] | Answer) -> None:
        """What this address answers, one after the other."""
        self.answers[method, path.casefold()] = [self._made(answer) for answer in answers]

    def fails(self, method: str, path: str, *names: str) -> None:
        """This address answers with recorded errors first."""
        faults = []
        for name in names:
            said = json.loads(recorded(f"errors/{name}.json"))
            faults.append(self._made((said["status"], said["headers"], json.dumps(said["body"]).encode())))
        self.answers[method, path.casefold()] = [*faults, *self.answers.get((method, path.casefold()), faults[-1:])]

    @staticmethod
    def _made(answer: bytes | Callable[[Query], bytes] | Answer) -> Callable[[Query], Answer]:
        if isinstance(answer, tuple):
            return lambda _query: answer
        return (lambda query: (200, {}, answer(query))) if callable(answer) else (lambda _query: (200, {}, answer))

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        """The answer to a request; links of the real hosts lead here."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append((method, parts.path, query, json.loads(body) if body else None))
        known = self.answers.get((method, parts.path.casefold()))
        if known is None:
            return 404, {}, b'{"error": {"code": "NotRecorded", "message": "nothing is recorded here"}}'
        status, headers, content = (known.pop(0) if len(known) > 1 else known[0])(query)
        hosts = rb"https://(?:management\.azure\.com|prices\.azure\.com(?::443)?|ccmreportstorage\.blob\.example)"
        local = {name: re.sub(hosts.decode(), self.url, value) for name, value in headers.items()}
        return status, local, re.sub(hosts, self.url.encode(), content)

    def count(self, method: str, path: str) -> int:
        """How often an address was asked."""
        return sum((verb, place.casefold()) == (method, path.casefold()) for verb, place, _, _ in self.asked)

    def sync(self, store: Store, what: sync.What, *, at: datetime, scopes: str = "", said: list[str] | None = None) -> list[sync.Failure]:
        """``meterbridge sync`` against this Azure at an instant."""
        settings = AzureSettings.of(
            Settings.from_environment(
                {
                    "METERBRIDGE_AZURE_ARM_URL": self.url,
                    "METERBRIDGE_AZURE_RETAIL_PRICES_URL": self.url,
                    "METERBRIDGE_AZURE_CREDENTIAL": "static:t;for-storage",
                    "METERBRIDGE_AZURE_SUBSCRIPTIONS": A,
                    "METERBRIDGE_AZURE_SCOPES": scopes,
                }
            )
        )
        months = [at.date().replace(day=1)] if what == "costs" else None
        lines = [] if said is None else said
        with Azure(settings, now=lambda: at, sleep=self.slept.append, timeout=5) as azure:
            return sync.pull(store, azure, what, months=months, now=lambda: at, say=lines.append, progress=lambda _done, _of: None)


@contextmanager
def recording() -> Iterator[Recording]:
    """An Azure of the recorded world: a billing account with a report, subscription A with all that is in it."""
    azure = Recording()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, headers, content = azure.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    azure.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=lambda: server.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        _bills(azure)
        _inventory(azure)
        _measures(azure)
        yield azure
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ordered(azure: Recording, *results: str) -> None:
    """What becomes of the reports that are ordered, one after the other."""
    azure.on("POST", f"/{ACCOUNT}{COST}/generateCostDetailsReport", (202, {"Location": f"https://management.azure.com/operations/{results[0]}"}, b""))
    for name in results:
        azure.on("GET", f"/operations/{name}", recorded(name))
    if len(results) > 1:
        azure.answers["POST", f"/{ACCOUNT}{COST}/generateCostDetailsReport".casefold()] = [
            azure._made((202, {"Location": f"https://management.azure.com/operations/{name}"}, b"")) for name in results
        ]


def _bills(azure: Recording) -> None:
    ordered(azure, "cost_details_operation_result.json")
    azure.on("GET", "/reports/cost_details.csv", recorded("cost_details.csv"))
    scope = f"/subscriptions/{A}"
    azure.on("GET", scope, json.dumps({"subscriptionPolicies": {"quotaId": "EnterpriseAgreement_2014-09-01"}}).encode())
    # Subscription A as one that has no report: its export, or the query.
    azure.on("POST", f"{scope}{COST}/generateCostDetailsReport", (422, {}, b'{"error": {"code": "NotSupported", "message": "not for this agreement"}}'))
    azure.on(
        "POST", f"{scope}{COST}/query", recorded("query_usage_daily_by_resource.page1.json"), recorded("query_usage_daily_by_resource.page2.json"), _total()
    )
    azure.on("GET", f"{scope}{COST}/exports", listed())


def _total() -> bytes:
    """Of the recorded months, what all publishers come to."""
    sums = sum((row[0] for row in exactly("query_usage_monthly.json")["properties"]["rows"]), Decimal(0))
    columns = [{"name": "Cost", "type": "Number"}, {"name": "Currency", "type": "String"}]
    return b'{"properties": {"nextLink": null, "columns": ' + json.dumps(columns).encode() + f', "rows": [[{sums}, "USD"]]}}}}'.encode()


def exported(azure: Recording) -> None:
    """The recorded export belongs to the subscription, and its blobs can be fetched."""
    scope = f"/subscriptions/{A}"
    azure.on("GET", f"{scope}{COST}/exports", recorded("exports_list.json"))
    azure.on("GET", f"{scope}{COST}/exports/focus-daily/runHistory", recorded("export_run_history.json"))
    (export,) = exactly("exports_list.json")["value"]
    account = export["properties"]["deliveryInfo"]["destination"]["resourceId"]
    azure.on("GET", account, json.dumps({"properties": {"primaryEndpoints": {"blob": azure.url}}}).encode())
    manifest = exactly("focus_export_manifest.json")
    (run, _) = exactly("export_run_history.json")["value"]
    azure.on("GET", f"/exports/{run['properties']['manifestFile']}", recorded("focus_export_manifest.json"))
    for number, blob in enumerate(manifest["blobs"]):
        azure.on("GET", f"/exports/{blob['blobName']}", recorded(f"focus_export_part_{number}_0001.csv"))


def _inventory(azure: Recording) -> None:
    scope = f"/subscriptions/{A}/providers"
    workspaces = [
        {"id": each, "name": each.rpartition("/")[2], "type": "Microsoft.MachineLearningServices/workspaces", "location": "eastus2"}
        for each in (WORKSPACE, CHATBOT)
    ]
    azure.on("GET", f"{scope}/Microsoft.MachineLearningServices/workspaces", listed(*workspaces))
    for name in ("serverlessEndpoints", "marketplaceSubscriptions", "onlineEndpoints"):
        azure.on("GET", f"{CHATBOT}/{name}", listed())
    azure.on("GET", f"{WORKSPACE}/serverlessEndpoints", recorded("serverless_endpoints.json"))
    azure.on("GET", f"{WORKSPACE}/marketplaceSubscriptions", recorded("marketplace_subscriptions.json"))
    azure.on("GET", f"{CHATBOT}/marketplaceSubscriptions", recorded("marketplace_subscriptions_proj_chatbot.json"))
    azure.on("GET", f"{WORKSPACE}/onlineEndpoints", recorded("online_endpoints.json"))
    azure.on("GET", f"{CHATBOT}/onlineEndpoints", recorded("online_endpoints_shared_quota.json"))
    azure.on("GET", f"{WORKSPACE}/onlineEndpoints/llama-8b-managed/deployments", recorded("online_deployments.json"))
    azure.on("GET", f"{CHATBOT}/onlineEndpoints/llama-70b-shared/deployments", recorded("online_deployments_shared_quota.json"))
    account = {"id": FOUNDRY, "name": "aif-contoso", "type": "Microsoft.CognitiveServices/accounts", "location": "eastus2", "kind": "AIServices"}
    model = {"format": "Meta", "name": "Llama-3.3-70B-Instruct", "version": "1"}
    deployment = {
        "id": f"{FOUNDRY}/deployments/llama-33-70b",
        "name": "llama-33-70b",
        "type": "Microsoft.CognitiveServices/accounts/deployments",
        "sku": {"name": "GlobalStandard", "capacity": 50},
        "properties": {"model": model, "provisioningState": "Succeeded"},
    }
    azure.on("GET", f"{scope}/Microsoft.CognitiveServices/accounts", listed(account))
    azure.on("GET", f"{FOUNDRY}/deployments", listed(deployment))
    azure.on("GET", f"{scope}/Microsoft.Insights/eventtypes/management/values", recorded("activity_log_scale_events.json"))
    for provider, name in (("Compute", "compute_usages_eastus2.json"), ("MachineLearningServices", "aml_usages.json")):
        azure.on("GET", f"{scope}/Microsoft.{provider}/locations/eastus2/usages", recorded(name))
    azure.on("GET", "/api/retail/prices", lambda query: recorded(f"retail_prices_page{2 if '$skip' in query else 1}.json"))


def _measures(azure: Recording) -> None:
    metrics = "providers/Microsoft.Insights/metrics"
    nothing = json.dumps({"value": []}).encode()
    blue = f"{WORKSPACE}/onlineEndpoints/llama-8b-managed/deployments/blue"
    azure.on("GET", f"{blue}/{metrics}", _capacity)
    for each in (f"{WORKSPACE}/onlineEndpoints/llama-8b-managed/deployments/green", f"{WORKSPACE}/onlineEndpoints/llama-8b-managed/deployments/canary"):
        azure.on("GET", f"{each}/{metrics}", nothing)
    azure.on("GET", f"{CHATBOT}/onlineEndpoints/llama-70b-shared/deployments/default/{metrics}", nothing)
    azure.on("GET", f"{WORKSPACE}/onlineEndpoints/llama-8b-managed/{metrics}", recorded("monitor_metrics_endpoint.json"))
    azure.on("GET", f"{CHATBOT}/onlineEndpoints/llama-70b-shared/{metrics}", nothing)
    azure.on("GET", f"{FOUNDRY}/{metrics}", recorded("monitor_metrics_foundry_tokens.json"))


def _capacity(query: Query) -> bytes:
    """The recorded minutes; asked by the hour, the lowest and the highest of them, as Azure would."""
    if query["metricnames"] != "DeploymentCapacity":
        return json.dumps({"value": []}).encode()
    if query["interval"] == "PT1M":
        return recorded("monitor_metrics_deployment_capacity.json")
    said = json.loads(recorded("monitor_metrics_deployment_capacity.json"))
    (series,) = said["value"][0]["timeseries"]
    values = [point["maximum"] for point in series["data"] if "maximum" in point]
    series["data"] = [{"timeStamp": series["data"][0]["timeStamp"], "minimum": min(values), "maximum": max(values)}]
    return json.dumps(said).encode()
