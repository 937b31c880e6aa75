"""The simulator says what Azure says, in its shapes, and its bill is its truth to the last digit, through the real SDK."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.core.exceptions import ClientAuthenticationError, DecodeError, HttpResponseError, ServiceResponseError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.rest import HttpRequest
from azure.mgmt.costmanagement import CostManagementClient

from collector import billing
from collector.azure.simulator import RESTATEMENTS, Export, Fault, InventedWorld, Simulator

DATA = Path(__file__).parents[2] / "data" / "azure"
NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
OCTOBER, NOVEMBER = date(2026, 10, 1), date(2026, 11, 1)
DAILY = {
    "granularity": "Daily",
    "aggregation": {"totalCost": {"name": "Cost", "function": "Sum"}, "totalQuantity": {"name": "UsageQuantity", "function": "Sum"}},
    "grouping": [{"type": "Dimension", "name": "ResourceId"}, {"type": "Dimension", "name": "Meter"}],
}


class Bearer(SansIOHTTPPolicy[Any, Any]):
    def on_request(self, request: Any) -> None:
        request.http_request.headers["Authorization"] = "Bearer simulated"


class NoCredential:
    def get_token(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the policy signs")


@dataclass
class Stage:
    world: InventedWorld
    azure: Simulator
    client: Any
    now: list[datetime]

    @property
    def ids(self) -> list[str]:
        return [each.id for each in self.world.subscriptions()]

    def query(
        self, subscription: str, first: date, last: date, dataset: dict[str, Any] | None = None, type_: str = "ActualCost"
    ) -> tuple[list[str], list[Any]]:
        period = {"from": f"{first}T00:00:00Z", "to": f"{last}T23:59:59Z"}
        body = {"type": type_, "timeframe": "Custom", "timePeriod": period, "dataset": dataset or DAILY}
        answer = self.client.query.usage(f"subscriptions/{subscription}", body, cls=exact)
        names = [column["name"] for column in answer["properties"]["columns"]]
        rows = answer["properties"]["rows"]
        for _ in range(50):
            if not (link := answer["properties"]["nextLink"]):
                return names, rows
            response = self.client.send_request(HttpRequest("POST", link, json=body))
            response.raise_for_status()
            answer = json.loads(response.text(), parse_float=Decimal)
            rows += answer["properties"]["rows"]
        raise AssertionError("the pages have no end")

    def report(self, subscription: str, first: date, last: date, metric: str = "ActualCost") -> Any:
        period = {"start": first.isoformat(), "end": last.isoformat()}
        return self.client.generate_cost_details_report.begin_create_operation(
            f"subscriptions/{subscription}", {"metric": metric, "timePeriod": period}
        ).result()


def exact(pipeline: Any, _data: Any, _headers: Any) -> Any:
    return json.loads(pipeline.http_response.text(), parse_float=Decimal)


def stage(**options: Any) -> Iterator[Stage]:
    world = InventedWorld(options.pop("seed", 5), date(2026, 9, 20), date(2026, 12, 31), **options.pop("world", {}))
    now = [NOW]
    with Simulator(world, lambda: now[0], **options) as azure:
        client = CostManagementClient(NoCredential(), base_url=azure.arm_url, authentication_policy=Bearer(), retry_total=0)
        yield Stage(world, azure, client, now)
        client.close()


@pytest.fixture
def scene() -> Iterator[Stage]:
    yield from stage(page_rows=150, page_objects=3, page_items=5)


def bill(paths: list[Path]) -> list[billing.BillRow]:
    return list(billing.together([billing.read_bill(path, name=path.name) for path in paths]).rows())


def fetched(urls: list[str], folder: Path, headers: dict[str, str] | None = None) -> list[Path]:
    paths = []
    for number, url in enumerate(urls):
        path = folder / f"part_{number}_0001.csv"
        path.write_bytes(httpx.get(url, headers=headers).raise_for_status().content)
        paths.append(path)
    return paths


# -- its truth ------------------------------------------------------------------------------------


def test_the_pages_of_a_query_add_up_to_the_truth_of_every_meter_and_day(scene: Stage) -> None:
    for subscription, currency in zip(scene.ids, ("USD", "EUR", "JPY"), strict=True):
        names, rows = scene.query(subscription, OCTOBER, date(2026, 10, 31))
        assert names == ["Cost", "UsageQuantity", "UsageDate", "ResourceId", "Meter", "Currency"]
        told = {(row[2], row[3], row[4], row[5]): Decimal(row[0]) for row in rows}
        assert len(told) == len(rows) > 150
        truth: dict[Any, Decimal] = {}
        for key, amount in scene.world.truth(NOW).items():
            if key.subscription == subscription and key.month == OCTOBER:
                short = (int(f"{key.day:%Y%m%d}"), key.resource, key.meter, key.currency)
                truth[short] = truth.get(short, Decimal(0)) + amount
        assert told == truth
        assert {row[5] for row in rows} == {currency}


@pytest.mark.parametrize("metric", ["ActualCost", "AmortizedCost"])
def test_the_blobs_of_a_report_are_the_truth(scene: Stage, tmp_path: Path, metric: str) -> None:
    for number, subscription in enumerate(scene.ids):
        done = scene.report(subscription, NOVEMBER, date(2026, 11, 30), metric)
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = bill(fetched([blob.blob_link for blob in done.manifest.blobs], folder))
        (expected,) = [amount for key, amount in scene.world.totals(NOW, metric=metric).items() if key[:2] == (subscription, NOVEMBER)]  # type: ignore[arg-type]
        assert sum((row.billed_cost for row in rows), Decimal(0)) == expected


def test_an_export_tells_actual_and_amortized_cost(tmp_path: Path) -> None:
    for scene in stage(exports=(Export("focus", "/subscriptions/" + InventedWorld(5, NOVEMBER, NOVEMBER).subscriptions()[0].id),)):
        scope, head = f"subscriptions/{scene.ids[0]}", {"authorization": "Bearer storage"}
        (export,) = scene.client.exports.list(scope).value
        runs = scene.client.exports.get_execution_history(scope, export.name).value
        manifest = httpx.get(f"{scene.azure.blob_url}/exports/{runs[0].properties['manifestFile']}", headers=head).json()
        rows = bill(fetched([f"{scene.azure.blob_url}/exports/{blob['blobName']}" for blob in manifest["blobs"]], tmp_path, head))
        at = NOW.replace(hour=5)
        key = (scene.ids[0], NOVEMBER, "USD")
        assert sum((row.billed_cost for row in rows), Decimal(0)) == scene.world.totals(at)[key]
        assert sum((row.effective_cost or Decimal(0) for row in rows), Decimal(0)) == scene.world.totals(at, metric="AmortizedCost")[key]
        assert len(rows) == manifest["dataRowCount"]


def test_the_newest_run_of_an_export_is_under_way_in_the_morning(scene: Stage) -> None:
    scene.now[0] = NOW.replace(hour=5, minute=20)
    scope = f"subscriptions/{scene.ids[0]}"
    scene.azure.costs.exports = (Export("focus", f"/{scope}"),)
    statuses = [run.properties.status for run in scene.client.exports.get_execution_history(scope, "focus").value]
    assert statuses[:2] == ["InProgress", "Completed"]
    listed = httpx.get(f"{scene.azure.blob_url}/exports?restype=container&comp=list", headers={"authorization": "Bearer s"}).text
    assert listed.count("manifest.json") == statuses.count("Completed")


def test_a_month_moves_until_five_days_past_its_end_and_then_no_more(scene: Stage) -> None:
    def september(at: datetime) -> dict[Any, Decimal]:
        return {key: amount for key, amount in scene.world.totals(at).items() if key[1] == date(2026, 9, 1)}

    moving = [september(datetime(2026, 9, 22, tzinfo=UTC) + timedelta(days=number)) for number in range(13)]
    assert len({tuple(each.values()) for each in moving}) == 13
    closed = september(datetime(2026, 10, 6, tzinfo=UTC))
    assert september(datetime(2027, 1, 1, tzinfo=UTC)) == closed


@pytest.mark.parametrize("fault", sorted(RESTATEMENTS))
def test_each_restatement_changes_the_bill_in_its_own_way(fault: Fault) -> None:
    world = InventedWorld(5, OCTOBER, date(2026, 10, 31), restatements={fault}, subscription_count=1)
    still = InventedWorld(5, OCTOBER, date(2026, 10, 31), restatements=(), subscription_count=1)
    early, late = datetime(2026, 10, 12, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    (before,), (after,), (plain,) = (each.values() for each in (world.totals(early), world.totals(late), still.totals(late)))
    (usual,) = still.totals(early).values()
    match fault:
        case Fault.RERATED_DAY | Fault.LATE_ROW:
            assert before < usual
            assert after == plain
        case Fault.VANISHED_ROW:
            assert before > usual
            assert after == plain
        case _:
            assert after < plain


def test_the_same_seed_gives_the_same_bytes(scene: Stage, tmp_path: Path) -> None:
    again = InventedWorld(5, date(2026, 9, 20), date(2026, 12, 31))
    assert again.truth(NOW) == scene.world.truth(NOW)
    first, second = (httpx.get(scene.report(scene.ids[0], NOVEMBER, date(2026, 11, 30)).manifest.blobs[0].blob_link).content for _ in range(2))
    assert first == second
    assert InventedWorld(6, OCTOBER, NOVEMBER).truth(NOW) != InventedWorld(5, OCTOBER, NOVEMBER).truth(NOW)


# -- its words ------------------------------------------------------------------------------------


def paths(value: Any, at: str = "") -> set[str]:
    """Every member of a JSON value, items of one list taken together."""
    match value:
        case dict():
            return {path for name, each in value.items() for path in {f"{at}.{name}"} | paths(each, f"{at}.{name}")}
        case list():
            return {path for each in value for path in paths(each, f"{at}[]")}
        case _:
            return set()


ARM = "/subscriptions/{0}/resourceGroups/rg-Models/providers/Microsoft.MachineLearningServices/workspaces/ws-prod-0"
LISTS = [
    ("online_endpoints.json", ARM + "/onlineEndpoints"),
    ("online_deployments.json", ARM + "/onlineEndpoints/llama-8b/deployments"),
    ("serverless_endpoints.json", ARM + "/serverlessEndpoints"),
    ("marketplace_subscriptions.json", ARM + "/marketplaceSubscriptions"),
    ("aml_usages.json", "/subscriptions/{0}/providers/Microsoft.MachineLearningServices/locations/eastus2/usages"),
    ("compute_usages_eastus2.json", "/subscriptions/{0}/providers/Microsoft.Compute/locations/eastus2/usages"),
    ("activity_log_scale_events.json", "/subscriptions/{0}/providers/Microsoft.Insights/eventtypes/management/values"),
]
# Members of a recorded answer that nothing here depends on.
LEFT_OUT = (
    "pollingInterval",
    "Instances",
    "targetUtilization",
    "costcenter",
    "identity",
    "requestSettings",
    "egressPublicNetworkAccess",
    "appInsightsEnabled",
    ".traffic.",
    "TargetAuto",
)


@pytest.mark.parametrize(("name", "path"), LISTS)
def test_lists_have_every_member_of_recorded_ones(scene: Stage, name: str, path: str) -> None:
    response = scene.client.send_request(HttpRequest("GET", path.format(scene.ids[0]), params={"api-version": "2024-10-01"}))
    recorded = {each for each in paths(json.loads((DATA / name).read_text())) if not any(part in each for part in LEFT_OUT)}
    assert recorded - paths(response.json()) == set()


def test_cost_answers_have_every_member_of_recorded_ones(scene: Stage) -> None:
    scene.azure.costs.exports = (Export("focus", f"/subscriptions/{scene.ids[0]}"),)
    root = f"/subscriptions/{scene.ids[0]}/providers/Microsoft.CostManagement"
    period = {"from": "2026-10-01T00:00:00Z", "to": "2026-10-31T00:00:00Z"}
    definition = {"type": "ActualCost", "timeframe": "Custom", "timePeriod": period, "dataset": DAILY}
    begun = scene.client.send_request(
        HttpRequest("POST", f"{root}/generateCostDetailsReport", json={"metric": "ActualCost", "timePeriod": {"start": "2026-10-01", "end": "2026-10-31"}})
    )
    assert (begun.status_code, "Retry-After" in begun.headers) == (202, True)
    assert scene.client.send_request(HttpRequest("GET", begun.headers["Location"])).status_code == 202
    runs = scene.client.send_request(HttpRequest("GET", f"{root}/exports/focus/runHistory")).json()
    manifest = f"{scene.azure.blob_url}/exports/{runs['value'][0]['properties']['manifestFile']}"
    answers = {
        "query_usage_daily_by_resource.page1.json": scene.client.send_request(HttpRequest("POST", f"{root}/query", json=definition)).json(),
        "cost_details_operation_result.json": scene.client.send_request(HttpRequest("GET", begun.headers["Location"])).json(),
        "exports_list.json": scene.client.send_request(HttpRequest("GET", f"{root}/exports")).json(),
        "export_run_history.json": runs,
        "focus_export_manifest.json": httpx.get(manifest, headers={"authorization": "Bearer s"}).json(),
    }
    for name, answer in answers.items():
        assert {path for path in paths(json.loads((DATA / name).read_text())) - paths(answer) if ".error" not in path} == set(), name


def test_no_data_and_a_failed_report_both_come_with_200(scene: Stage) -> None:
    scene.now[0] = datetime(2026, 9, 20, 1, tzinfo=UTC)
    assert scene.report(scene.ids[0], date(2026, 8, 1), date(2026, 8, 31)).status == "NoDataFound"
    scene.azure.faults.arm(Fault.REPORT_FAILED)
    assert scene.report(scene.ids[0], date(2026, 9, 1), date(2026, 9, 30)).status == "Failed"


def test_metrics_leave_out_what_was_not_measured(scene: Stage) -> None:
    blue = ARM.format(scene.ids[0]) + "/onlineEndpoints/llama-8b/deployments/blue"
    params = {
        "api-version": "2024-02-01",
        "metricnames": "DeploymentCapacity",
        "interval": "PT1H",
        "aggregation": "Maximum",
        "timespan": "2026-09-19T22:00:00Z/2026-09-20T02:00:00Z",
    }
    answer = scene.client.send_request(HttpRequest("GET", f"{blue}/providers/Microsoft.Insights/metrics", params=params)).json()
    assert answer["value"][0]["timeseries"][0]["data"] == [
        {"timeStamp": "2026-09-19T22:00:00Z"},
        {"timeStamp": "2026-09-19T23:00:00Z"},
        {"timeStamp": "2026-09-20T00:00:00Z", "maximum": 1.0},
        {"timeStamp": "2026-09-20T01:00:00Z", "maximum": 1.0},
    ]
    params["timespan"] = "2026-09-20T00:00:00Z/2026-11-20T00:00:00Z"
    cut = scene.client.send_request(HttpRequest("GET", f"{blue}/providers/Microsoft.Insights/metrics", params=params)).json()
    assert len(cut["value"][0]["timeseries"][0]["data"]) == 31 * 24


def test_lists_come_in_pages(scene: Stage) -> None:
    path = f"/subscriptions/{scene.ids[0]}/providers/Microsoft.MachineLearningServices/workspaces"
    scene.azure.manager.page_objects = 2
    first = scene.client.send_request(HttpRequest("GET", path, params={"api-version": "2024-10-01"})).json()
    second = scene.client.send_request(HttpRequest("GET", first["nextLink"])).json()
    assert [each["name"] for each in first["value"] + second["value"]] == ["ws-prod-0", "hub-0", "proj-chat-0"]
    assert second["nextLink"] is None


PRICE = "serviceName eq 'Virtual Machines' and armRegionName eq 'eastus2' and armSkuName eq 'Standard_NC24ads_A100_v4'"


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        (PRICE, 7),
        (f"{PRICE} and type eq 'Consumption'", 5),
        (f"{PRICE} and contains(productName, 'Windows')", 1),
        (f"{PRICE} and (type eq 'Reservation' or type eq 'DevTestConsumption')", 2),
        (f"{PRICE} and isPrimaryMeterRegion eq false", 1),
        ("serviceName eq 'Foundry Models'", 6),
        ("meterName eq 'it''s not there'", 0),
    ],
)
def test_prices_are_filtered_and_paged(scene: Stage, condition: str, count: int) -> None:
    answer = httpx.get(scene.azure.retail_prices_url, params={"$filter": condition}).json()
    items = answer["Items"]
    while link := answer["NextPageLink"]:
        answer = httpx.get(link).json()
        items += answer["Items"]
    assert len(items) == count


def test_reference_prices_come_in_other_currencies(scene: Stage) -> None:
    answer = httpx.get(scene.azure.retail_prices_url, params={"$filter": f"{PRICE} and contains(productName, 'Windows')", "currencyCode": "'EUR'"}).json()
    assert (answer["BillingCurrency"], answer["Items"][0]["retailPrice"]) == ("EUR", 0.46)
    assert httpx.get(scene.azure.retail_prices_url, params={"$filter": "armRegionName eq"}).status_code == 400


# -- its refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeframe": "MonthToDate"}, "timePeriod requires timeframe 'Custom'"),
        ({"dataset": DAILY | {"grouping": DAILY["grouping"] * 2}}, "at most 2 group-by"),  # type: ignore[operator]
        ({"dataset": DAILY | {"grouping": [{"type": "Dimension", "name": "Nothing"}]}}, "Invalid dataset grouping"),
        ({"type": "FocusCost"}, "is not supported"),
    ],
)
def test_a_query_that_azure_refuses_is_refused(scene: Stage, change: dict[str, Any], message: str) -> None:
    period = {"from": "2026-10-01T00:00:00Z", "to": "2026-10-31T00:00:00Z"}
    body = {"type": "ActualCost", "timeframe": "Custom", "timePeriod": period, "dataset": DAILY} | change
    with pytest.raises(HttpResponseError, match=message) as refused:
        scene.client.query.usage(f"subscriptions/{scene.ids[0]}", body)
    assert refused.value.status_code == 400


def test_a_pay_as_you_go_subscription_has_no_cost_details() -> None:
    for scene in stage(world={"agreement": "payg"}):
        with pytest.raises(HttpResponseError, match="not supported for subscriptions of the offer payg"):
            scene.report(scene.ids[0], OCTOBER, date(2026, 10, 31))
        subscription = scene.client.send_request(HttpRequest("GET", f"/subscriptions/{scene.ids[0]}", params={"api-version": "2022-12-01"})).json()
        assert subscription["subscriptionPolicies"]["quotaId"] == "PayAsYouGo_2014-09-01"


def test_the_budget_of_the_tenant_is_kept_in_three_windows() -> None:
    seconds = [0.0]
    for scene in stage(enforces_budget=True, clock=lambda: seconds[0]):
        for _ in range(12):
            scene.query(scene.ids[0], OCTOBER, OCTOBER, DAILY)
        with pytest.raises(HttpResponseError) as refused:
            scene.query(scene.ids[1], OCTOBER, OCTOBER, DAILY)
        wait = int(refused.value.response.headers["x-ms-ratelimit-microsoft.costmanagement-qpu-retry-after"])  # type: ignore[union-attr]
        assert 10 <= wait <= 11
        assert "Retry-After" not in refused.value.response.headers  # type: ignore[union-attr]
        seconds[0] += wait
        scene.query(scene.ids[1], OCTOBER, OCTOBER, DAILY)
        assert [call.status for call in scene.azure.calls] == [200] * 12 + [429, 200]


def test_a_call_without_the_right_token_is_refused(scene: Stage) -> None:
    scene.azure.token = "right"
    with pytest.raises(ClientAuthenticationError):
        scene.query(scene.ids[0], OCTOBER, OCTOBER)


def test_a_token_at_a_blob_link_is_noticed(scene: Stage) -> None:
    done = scene.report(scene.ids[0], OCTOBER, date(2026, 10, 31))
    httpx.get(done.manifest.blobs[0].blob_link)
    assert scene.azure.leaks == []
    httpx.get(done.manifest.blobs[0].blob_link, headers={"authorization": "Bearer simulated"})
    httpx.get(scene.azure.retail_prices_url, headers={"authorization": "Bearer simulated"})
    assert len(scene.azure.leaks) == 2


# -- its faults -----------------------------------------------------------------------------------


def headers(name: str) -> Callable[[Exception], bool]:
    def is_throttled(fault: Exception) -> bool:
        answer: Any = fault.response if isinstance(fault, HttpResponseError) else None
        return answer is not None and answer.status_code == 429 and name in answer.headers

    return is_throttled


def status(code: int) -> Callable[[Exception], bool]:
    return lambda fault: isinstance(fault, HttpResponseError) and fault.status_code == code


PREFIX = "x-ms-ratelimit-microsoft.costmanagement"
SEEN: dict[Fault, Callable[[Exception], bool]] = {
    Fault.THROTTLE_RETRY_AFTER: headers("Retry-After"),
    Fault.THROTTLE_QPU: headers(f"{PREFIX}-qpu-retry-after"),
    Fault.THROTTLE_ENTITY: headers(f"{PREFIX}-entity-retry-after"),
    Fault.THROTTLE_TENANT: headers(f"{PREFIX}-tenant-retry-after"),
    Fault.THROTTLE_CLIENT_TYPE: headers(f"{PREFIX}-clienttype-retry-after"),
    Fault.THROTTLE_ALL: headers(f"{PREFIX}-entity-retry-after"),
    Fault.ERROR_500: status(500),
    Fault.ERROR_502: status(502),
    Fault.ERROR_503: status(503),
    Fault.HANG: lambda fault: isinstance(fault, ServiceResponseError),
    Fault.RESET: lambda fault: isinstance(fault, ServiceResponseError),
    Fault.TRUNCATED: lambda fault: isinstance(fault, DecodeError | json.JSONDecodeError),
    Fault.UNAUTHORIZED_ONCE: lambda fault: isinstance(fault, ClientAuthenticationError),
}


@pytest.mark.parametrize("fault", SEEN)
def test_a_fault_befalls_one_request_as_the_sdk_sees_it(scene: Stage, fault: Fault) -> None:
    scene.azure.faults.hang_seconds = 0.05
    scene.azure.faults.arm(fault)
    with pytest.raises(Exception) as seen:
        scene.query(scene.ids[0], OCTOBER, date(2026, 10, 31))
    assert SEEN[fault](seen.value), repr(seen.value)
    assert scene.azure.faults.happened == {fault: 1}
    assert scene.query(scene.ids[0], OCTOBER, date(2026, 10, 31))[1]


def test_a_link_that_leads_to_itself_never_ends(scene: Stage) -> None:
    scene.azure.faults.arm(Fault.NEXT_LINK_LOOP, times=1000)
    with pytest.raises(AssertionError, match="no end"):
        scene.query(scene.ids[0], OCTOBER, date(2026, 10, 31))


def test_a_page_that_changed_tells_a_row_twice_or_never(scene: Stage) -> None:
    _, whole = scene.query(scene.ids[0], OCTOBER, date(2026, 10, 31))
    scene.azure.faults.arm(Fault.PAGE_CHANGED, skip=1)
    _, rows = scene.query(scene.ids[0], OCTOBER, date(2026, 10, 31))
    assert abs(len(rows) - len(whole)) == 1


def test_columns_in_another_order_carry_the_same(scene: Stage, tmp_path: Path) -> None:
    usual, rows = scene.query(scene.ids[0], OCTOBER, OCTOBER)
    scene.azure.faults.arm(Fault.COLUMN_ORDER, times=3)
    names, moved = scene.query(scene.ids[0], OCTOBER, OCTOBER)
    assert names != usual
    assert sorted(str([row[names.index(name)] for name in usual]) for row in moved) == sorted(map(str, rows))
    links = [blob.blob_link for blob in scene.report(scene.ids[0], OCTOBER, date(2026, 10, 31)).manifest.blobs]
    total = sum((row.billed_cost for row in bill(fetched(links, tmp_path))), Decimal(0))
    assert total == scene.world.totals(NOW)[scene.ids[0], OCTOBER, "USD"]


def test_an_expired_link_stays_expired_and_a_new_one_works(scene: Stage) -> None:
    link = scene.report(scene.ids[0], OCTOBER, date(2026, 10, 31)).manifest.blobs[0].blob_link
    scene.azure.faults.arm(Fault.EXPIRED_SAS)
    assert [httpx.get(link).status_code for _ in range(2)] == [403, 403]
    fresh = scene.report(scene.ids[0], OCTOBER, date(2026, 10, 31)).manifest.blobs[0].blob_link
    assert httpx.get(fresh).status_code == 200


def test_a_storm_is_the_same_for_the_same_seed_and_never_too_long(scene: Stage) -> None:
    def pattern(seed: int) -> list[Fault | None]:
        scene.azure.faults.clear()
        scene.azure.faults.storm(seed, list(Fault), rate=0.6, most_in_a_row=2)
        return [scene.azure.faults.next("query") for _ in range(300)]

    first = pattern(1)
    assert first == pattern(1) != pattern(2)
    assert not any(all(first[start : start + 3]) for start in range(298))
    assert not RESTATEMENTS & {fault for fault in first if fault}
