"""Every recorded file of Azure through the real path: pulled or imported as a user would have it, and read where a user reads it, to the last digit."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import col, select

from collector.billing import amortized, land, read_bill
from models.errors import Conflict
from models.quotas import AzureQuota
from models.resources import DeploymentFact
from models.store import Store
from tests.collector.api.serving import serving
from tests.collector.azure.recording import ACCOUNT, COST, DATA, WORKSPACE, A, B, Recording, exactly, exported, ordered, recorded, recording
from tests.walks.service import amounts, costs

FIRST, RESTATED = datetime(2025, 3, 6, 12, tzinfo=UTC), datetime(2025, 3, 9, 12, tzinfo=UTC)
MARCH = {"since": "2025-03-01", "to": "2025-04-01", "basis": "billed"}
EXPECTED = exactly("cost_details_expected.json")
BEFORE, AFTER = EXPECTED["as_of_2025-03-06"], EXPECTED["as_of_2025-03-09_restated"]
QUERY = f"/subscriptions/{A}{COST}/query"
ORDER = f"/{ACCOUNT}{COST}/generateCostDetailsReport"

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """Of one kind: what lands where on both kinds of database is for the tests of landing and the walks."""
    return sqlite_store


@pytest.fixture
def azure() -> Iterator[Recording]:
    with recording() as running:
        yield running


@pytest.fixture
def api(store: Store) -> Iterator[httpx.Client]:
    with serving(store) as service:
        service.at = datetime(2025, 3, 10, 12, tzinfo=UTC)
        yield service.client


def decimals(said: dict[str, str]) -> dict[str | None, Decimal]:
    return {currency: Decimal(text) for currency, text in said.items()}


def by(api: httpx.Client, group_by: str, **query: str) -> dict[tuple[Any, ...], Decimal]:
    rows = costs(api, **MARCH, granularity="none", group_by=group_by, **query)["rows"]
    return {(*(row[name] for name in group_by.split(",")), row["currency"]): Decimal(row["cost"]) for row in rows}


# -- bills ----------------------------------------------------------------------------------------


def test_a_report_is_pulled_and_then_restated(store: Store, azure: Recording, api: httpx.Client) -> None:
    """cost_details_operation_result.json, cost_details.csv, cost_details_restated.csv, cost_details_expected.json."""
    assert azure.sync(store, "costs", at=FIRST, scopes=ACCOUNT) == []
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])
    assert by(api, "subscription") == {(A, "USD"): Decimal("3633.90843083"), (B, "EUR"): Decimal("210.534939")}
    # Ten hours of 6 cores have no tag: 28.152 EUR, which the oracle says in dollars (at 0.92).
    rows = costs(api, **MARCH, granularity="none", group_by="deployment", mode="managed_compute")["rows"]
    tagged = {name: said for name, said in BEFORE["managed_compute_by_deployment"].items() if not name.startswith("(")}
    assert {(row["deployment"], row["currency"]): (Decimal(row["cost"]), Decimal(row["core_hours"])) for row in rows} == {
        **{(name, "USD"): (Decimal(said["usd"]), Decimal(said["core_hours"])) for name, said in tagged.items()},
        (None, "EUR"): (Decimal("28.152"), Decimal(60)),
    }
    azure.on("GET", "/reports/cost_details.csv", recorded("cost_details_restated.csv"))
    ordered(azure, "cost_details_operation_result.json")
    azure.answers["GET", "/operations/cost_details_operation_result.json"] = [
        azure._made(recorded("cost_details_operation_result.json").replace(b"80608", b"83739"))
    ]
    assert azure.sync(store, "costs", at=RESTATED, scopes=ACCOUNT) == []
    assert amounts(api, **MARCH) == decimals(AFTER["in_scope"])
    assert amounts(api, **MARCH, as_of="2025-03-07T00:00:00Z") == decimals(BEFORE["in_scope"])
    # By the Foundry route, the Marketplace route, compute, and the rounding adjustment of neither.
    assert by(api, "mode") == {
        ("serverless", "USD"): Decimal("2519.56977971"),
        ("serverless", "EUR"): Decimal("300.267139"),
        ("managed_compute", "USD"): Decimal("1715.749"),
        ("unknown", "USD"): Decimal("-0.01"),
    }
    found = api.get("/v1/problems").json()["items"]
    assert [(one["kind"], one["currency"], one["amount"]) for one in found if one["kind"] == "out_of_scope"] == [("out_of_scope", "USD", "0.02496")]


def test_a_report_that_fails_is_ordered_again_and_one_without_data_changes_nothing(store: Store, azure: Recording, api: httpx.Client) -> None:
    """cost_details_operation_failed.json, cost_details_operation_nodata.json."""
    ordered(azure, "cost_details_operation_failed.json", "cost_details_operation_result.json")
    assert azure.sync(store, "costs", at=FIRST, scopes=ACCOUNT) == []
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])
    assert azure.count("POST", ORDER) == 2
    # Three that fail are enough: the bill stands, the reason is told.
    ordered(azure, "cost_details_operation_failed.json")
    (failure,) = azure.sync(store, "costs", at=RESTATED, scopes=ACCOUNT)
    assert "InternalServerError: Report generation failed. Please retry." in failure
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])
    (source,) = [one for one in api.get("/v1/sources").json()["items"] if one["name"].startswith("costs")]
    assert (source["state"], "Report generation failed" in source["message"]) == ("failed", True)
    ordered(azure, "cost_details_operation_nodata.json")
    assert azure.sync(store, "costs", at=datetime(2025, 3, 9, 20, tzinfo=UTC), scopes=ACCOUNT) != []
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])


def test_a_file_of_an_enterprise_agreement_is_imported(store: Store, api: httpx.Client) -> None:
    """cost_details_ea.csv: two days of one subscription, tags without braces."""
    landed = land(store, read_bill(DATA / "azure" / "cost_details_ea.csv", name="cost_details_ea.csv"), now=RESTATED, author="ana")
    assert (landed.rows, landed.source) == (26, "cost_details_ea")
    assert amounts(api, **MARCH) == {"USD": Decimal("2254.31266228")}
    assert by(api, "mode") == {("serverless", "USD"): Decimal("1115.22466228"), ("managed_compute", "USD"): Decimal("1139.088")}
    # Two deployments of 24 cores for 48 hours on each of the two days, and one of 96 for a day.
    assert by(api, "deployment", mode="managed_compute") == {
        ("llama-8b-managed/blue", "USD"): Decimal("352.608"),
        ("llama-70b-shared/default", "USD"): Decimal("786.48"),
    }


def test_a_subscription_without_reports_is_read_from_its_newest_complete_export(store: Store, azure: Recording, api: httpx.Client) -> None:
    """exports_list.json, export_run_history.json, focus_export_manifest.json, focus_export_part_0_0001.csv and _1_."""
    exported(azure)
    said: list[str] = []
    assert azure.sync(store, "costs", at=RESTATED, said=said) == []
    assert any("reading the export focus-daily" in line for line in said)
    assert amounts(api, **MARCH) == decimals(AFTER["in_scope"])
    compute = {(name, "USD"): Decimal(each["usd"]) for name, each in AFTER["managed_compute_by_deployment"].items()}
    assert by(api, "deployment", mode="managed_compute") == compute


def test_without_report_and_export_the_query_is_read_to_its_last_page(store: Store, azure: Recording, api: httpx.Client) -> None:
    """query_usage_request.json, query_usage_daily_by_resource.page1.json and .page2.json, query_usage_monthly.json, query_usage_by_tag.json."""
    assert azure.sync(store, "costs", at=FIRST) == []
    # Of all that is billed (3633.93339083) the storage row is no model spend.
    assert amounts(api, **MARCH) == {"USD": Decimal("3633.90843083")}
    daily = {row["period_start"][:10]: Decimal(row["cost"]) for row in costs(api, **MARCH, granularity="day")["rows"]}
    tagged: dict[str, Decimal] = {}
    for cost, day, _key, _value, _currency in exactly("query_usage_by_tag.json")["properties"]["rows"]:
        name = f"{str(day)[:4]}-{str(day)[4:6]}-{str(day)[6:]}"
        tagged[name] = tagged.get(name, Decimal(0)) + Decimal(str(cost))
    tagged["2025-03-01"] -= Decimal("0.02496")
    assert daily == tagged
    # What is asked for is what was recorded as asked, but for the month's last day and the quantity.
    said = next(body for method, path, _, body in azure.asked if (method, path) == ("POST", QUERY) and "grouping" in body["dataset"])
    whole = exactly("query_usage_request.json")
    assert {name: said[name] for name in ("type", "timeframe")} == {name: whole[name] for name in ("type", "timeframe")}
    assert (said["dataset"]["grouping"], said["dataset"]["granularity"]) == (whole["dataset"]["grouping"], whole["dataset"]["granularity"])
    assert said["dataset"]["aggregation"].items() <= whole["dataset"]["aggregation"].items()


def test_pages_that_do_not_add_up_to_the_total_are_not_taken(store: Store, azure: Recording, api: httpx.Client) -> None:
    pages = [recorded("query_usage_daily_by_resource.page1.json"), recorded("query_usage_daily_by_resource.page2.json")]
    short = b'{"properties": {"nextLink": null, "columns": [{"name": "Cost"}, {"name": "Currency"}], "rows": [[3633.93339084, "USD"]]}}'
    azure.on("POST", QUERY, *[*pages, short] * 3)
    (failure,) = azure.sync(store, "costs", at=FIRST)
    assert "the pages add up to 3633.93339083 USD, the total is 3633.93339084 USD" in failure
    assert amounts(api, **MARCH) == {}


def test_a_refusal_that_passes_is_waited_for_as_long_as_it_says(store: Store, azure: Recording, api: httpx.Client) -> None:
    """errors/429_qpu.json, 429_retry_after.json, 429_arm_subscription_reads.json, 503.json, 500.json."""
    # The longest of the four headers; what Azure says; with a 500 it says nothing: at once, and longer with each.
    waits = {"429_qpu": [13.0], "429_retry_after": [17.0], "429_arm_subscription_reads": [11.0], "503": [5.0], "500": []}
    for number, (name, slept) in enumerate(waits.items(), start=1):
        azure.slept.clear()
        ordered(azure, "cost_details_operation_result.json")
        azure.fails("POST", ORDER, name)
        assert azure.sync(store, "costs", at=FIRST, scopes=ACCOUNT) == []
        assert (azure.slept, azure.count("POST", ORDER)) == (slept, 2 * number), name
        (source,) = [one for one in api.get("/v1/sources").json()["items"] if one["name"].startswith("costs")]
        assert (source["state"], source["throttles"]) == ("ok", name.startswith("429")), name
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])


def test_a_refusal_that_stays_is_told_with_what_to_do(store: Store, azure: Recording, api: httpx.Client) -> None:
    """errors/400_bad_timeframe.json, 401_expired_token.json, 403_ao_view_charges_off.json, 403_rbac.json, 404_scope.json."""
    role = f"az role assignment create --role 'Cost Management Reader' --assignee <identity> --scope /subscriptions/{A}"
    words = {
        "400_bad_timeframe": "BadRequest: Invalid query definition: timePeriod requires timeframe 'Custom'.",
        "401_expired_token": "sign in again (az login)",
        "403_ao_view_charges_off": "'AO view charges'",
        "403_rbac": role,
        "404_scope": f"SubscriptionNotFound: The subscription '{A}' could not be found. Correct METERBRIDGE_AZURE_SUBSCRIPTIONS and METERBRIDGE_AZURE_SCOPES",
    }
    for name, told in words.items():
        azure.answers.pop(("POST", QUERY.casefold()))
        azure.fails("POST", QUERY, name)
        (failure,) = azure.sync(store, "costs", at=FIRST)
        assert told in failure
        (source,) = [one for one in api.get("/v1/sources").json()["items"] if one["name"].startswith("costs")]
        assert (source["state"], told in source["message"]) == ("failed", True)
    assert (amounts(api, **MARCH), azure.slept) == ({}, [])


# -- what there is --------------------------------------------------------------------------------


def test_the_recorded_inventory_is_what_the_deployments_page_knows(store: Store, azure: Recording, api: httpx.Client) -> None:
    """serverless_endpoints.json, marketplace_subscriptions.json and _proj_chatbot, online_endpoints.json, online_deployments.json and _shared_quota of both, monitor_metrics_deployment_capacity.json, activity_log_scale_events.json."""
    at = datetime(2025, 3, 3, 9, tzinfo=UTC)
    assert azure.sync(store, "inventory", at=at) == []
    listed = {one["deployment"]: one for one in api.get("/v1/deployments").json()["items"]}
    assert {name: (one["workspace"], one["model"], one["sku"], one["instance_count"], one["state"]) for name, one in listed.items()} == {
        "llama-31-405b-prod": ("ws-llama-prod", "Meta-Llama-3.1-405B-Instruct", None, None, "Online"),
        "llama-31-8b-prod": ("ws-llama-prod", "Meta-Llama-3.1-8B-Instruct", None, None, "Online"),
        "llama-31-8b-old": ("ws-llama-prod", "Meta-Llama-3.1-8B-Instruct", None, None, "Suspended"),
        "llama-8b-managed/blue": ("ws-llama-prod", "Meta-Llama-3.1-8B-Instruct", "Standard_NC24ads_A100_v4", 2, "Succeeded"),
        "llama-8b-managed/green": ("ws-llama-prod", "Meta-Llama-3.1-8B-Instruct", "STANDARD_NC24ADS_A100_V4", 1, "Updating"),
        "llama-8b-managed/canary": ("ws-llama-prod", "Meta-Llama-3.1-8B-Instruct", "Standard_NC6s_v3", 3, "Succeeded"),
        "llama-70b-shared/default": ("proj-chatbot", "Meta-Llama-3.1-70B-Instruct", "Standard_ND96amsr_A100_v4", 1, "Succeeded"),
        "llama-33-70b": ("aif-contoso", "Llama-3.3-70B-Instruct", None, None, "Succeeded"),
    }
    # The lifecycle table knows when the Marketplace's older models retire; those of one's own compute and the first-party one stay.
    assert {name for name, one in listed.items() if one["retires_at"] == "2026-06-13T00:00:00Z"} == {
        "llama-31-405b-prod",
        "llama-31-8b-prod",
        "llama-31-8b-old",
    }
    # Its subscription's offer and plan are what a bill names.
    facts = known(store)
    (old,) = facts["llama-31-8b-old"]
    assert (old.offer_id, old.plan_id) == ("meta-llama-3-1-8b-instruct-offer", "meta-llama-3-1-8b-instruct-plan")
    # The hour is not of one number, so its minutes are asked for: three instances from 08:03 to 08:05, else the two that the deployment says of itself.
    measured = [(one.valid_to, one.instance_count) for one in facts["llama-8b-managed/blue"]]
    assert measured == [(at.replace(hour=8, minute=3), 2), (at.replace(hour=8, minute=5), 3), (None, 2)]
    # Green is gone the next day: since 21:10, as the log of activities says in other capitals.
    rest = [one for one in exactly("online_deployments.json")["value"] if one["name"] != "green"]
    azure.on("GET", f"{WORKSPACE}/onlineEndpoints/llama-8b-managed/deployments", json.dumps({"value": rest}, default=str).encode())
    assert azure.sync(store, "inventory", at=at + timedelta(days=1)) == []
    assert [one.valid_to for one in known(store)["llama-8b-managed/green"]][-1] == datetime(2025, 3, 3, 21, 10, tzinfo=UTC)
    # The endpoint on shared quota says when it will delete itself.
    pools = {one["deployment"]: one for one in api.get("/v1/quotas").json()["items"] if one["measure"] == "tokens_per_minute"}
    assert {name for name, one in pools.items() if one["deletes_at"] == "2025-03-09T08:15:00Z"} == {"llama-70b-shared/default"}


def known(store: Store) -> dict[str, list[DeploymentFact]]:
    """What stands in the registry, by deployment, in order of time."""
    found: dict[str, list[DeploymentFact]] = {}
    with store.read() as session:
        facts = list(session.exec(select(DeploymentFact).where(col(DeploymentFact.known_to).is_(None))))
        session.expunge_all()
    for one in sorted(facts, key=lambda one: one.valid_from or datetime.min.replace(tzinfo=UTC)):
        found.setdefault(one.name, []).append(one)
    return found


def test_the_recorded_quotas_stand_level_by_level(store: Store, azure: Recording, api: httpx.Client) -> None:
    """compute_usages_eastus2.json, aml_usages.json, aml_quotas.json."""
    assert azure.sync(store, "inventory", at=FIRST) == []
    assert azure.sync(store, "quotas", at=FIRST) == []
    pools = {
        (one["source"], one["level"], one["family"]): (one["limit"], one["used"]) for one in api.get("/v1/quotas").json()["items"] if one["kind"] == "cores"
    }
    family, low = "Standard NCADSA100v4 Family Cluster Dedicated vCPUs", "Standard NCADSA100v4 Family Cluster LowPriority vCPUs"
    assert pools["compute", "family", "standardNCADSA100v4Family"] == (96, 72)
    assert pools["compute", "family", "standardNDAMSv4_A100Family"] == (96, 96)
    assert pools["compute", "total", "cores"] == (350, 312)
    assert pools["ml", "family", family] == (96, 72)
    assert pools["ml", "total", "Total Cluster Dedicated Regional vCPUs"] == (300, 174)
    # -1 is no limit, and no limit is not nought.
    assert pools["ml", "low_priority", low] == (None, 0)
    # What is set where nothing is used is said by the other list; the usages that are read hold every one of its limits.
    with store.read() as session:
        stored = {(one.family, one.level, one.quota) for one in session.exec(select(AzureQuota).where(AzureQuota.source == "ml"))}
    levels = {"vmFamily": "family", "workspaces": "workspace"}
    said = {(one["name"]["value"], levels[one["type"].split("/")[1]], one["limit"]) for one in exactly("aml_quotas.json")["value"]}
    assert said == {(family, "family", 96), (family, "workspace", 72), (family, "workspace", 96)}
    assert said <= stored


def test_of_the_recorded_prices_each_size_and_token_has_one(store: Store, azure: Recording, api: httpx.Client) -> None:
    """retail_prices_page1.json, retail_prices_page2.json, marketplace_catalog_offer.json."""
    assert azure.sync(store, "inventory", at=FIRST) == []
    assert azure.sync(store, "prices", at=FIRST) == []
    prices = {(one["sku"] or one["model"], one["meter"]): (one["unit_price"], one["unit"]) for one in api.get("/v1/prices").json()["items"]}
    # Spot, low priority, Windows, reservations, developer and other regions' prices are all in the pages.
    assert {(name.casefold(), meter): price for (name, meter), price in prices.items()} == {
        ("standard_nc24ads_a100_v4", "instance_hours"): ("3.673", "1 hour"),
        ("standard_nc6s_v3", "instance_hours"): ("3.06", "1 hour"),
        ("standard_nd96amsr_a100_v4", "instance_hours"): ("32.7702", "1 hour"),
        ("llama-3.3-70b-instruct", "input_tokens"): ("0.00071", "1K tokens"),
        ("llama-3.3-70b-instruct", "output_tokens"): ("0.00071", "1K tokens"),
    }
    # The Marketplace's prices are in no list of Azure's: ours, which the catalogue bears out.
    (plan,) = exactly("marketplace_catalog_offer.json")["plans"]
    catalogue = {one["meter"]["meterId"].split("-")[2]: one["meter"]["price"]["listPrice"] * 1000 for one in plan["availabilities"]}
    with resources.files("collector").joinpath("data/prices.csv").open(encoding="utf-8") as lines:
        ours = {
            one["meter"].removesuffix("_tokens"): Decimal(one["unit_price"]) for one in csv.DictReader(lines) if one["model"] == "Meta-Llama-3.1-8B-Instruct"
        }
    assert ours == catalogue == {"input": Decimal("0.30"), "output": Decimal("0.61")}


def test_the_recorded_counts_stand_beside_ours(store: Store, azure: Recording, api: httpx.Client) -> None:
    """monitor_metrics_endpoint.json, monitor_metrics_foundry_tokens.json."""
    assert azure.sync(store, "inventory", at=datetime(2025, 3, 3, 9, tzinfo=UTC)) == []
    assert azure.sync(store, "metrics", at=datetime(2025, 3, 3, 9, 20, tzinfo=UTC)) == []
    rows = api.get("/v1/witnesses", params={"from": "2025-03-03", "to": "2025-03-04", "granularity": "hour"}).json()["rows"]
    assert {(one["deployment"], one["measure"], one["period_start"]): (one["witnessed"], one["counted"]) for one in rows} == {
        # A minute without a value is no minute without requests.
        ("llama-8b-managed/blue", "requests", "2025-03-03T08:00:00Z"): (381, 0),
        ("llama-33-70b", "requests", "2025-03-03T08:00:00Z"): (31, 0),
        ("llama-33-70b", "input", "2025-03-03T08:00:00Z"): (15_100, 0),
        ("llama-33-70b", "output", "2025-03-03T08:00:00Z"): (2_370, 0),
    }


def test_every_recorded_file_is_named_by_a_test() -> None:
    """A file that no test speaks of is one whose figures nobody holds us to."""
    said = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("test_recorded.py", "recording.py"))
    names = [path.relative_to(DATA / "azure").as_posix() for path in (DATA / "azure").rglob("*") if path.is_file()]
    assert len(names) > 40
    unspoken = [name for name in names if name.rpartition("/")[2].partition(".")[0] not in said]
    assert unspoken == []


def test_the_recorded_bill_as_one_of_pay_as_you_go_is_refused_beside_the_calendars(store: Store, api: httpx.Client, tmp_path: Path) -> None:
    """cost_details.csv for 17 February to 16 March: the same money, and no day of it twice."""
    calendar = DATA / "azure" / "cost_details.csv"
    with calendar.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    path = tmp_path / "pay-as-you-go.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"billingPeriodStartDate": "02/17/2025", "billingPeriodEndDate": "03/16/2025"} for row in rows)
    landed = land(store, read_bill(path, name=path.name), now=FIRST, author="ana")
    assert {str(part.billed) for part in landed.parts} == {"2025-02-17 to 2025-03-16"}
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])
    with pytest.raises(Conflict) as refused:
        land(store, read_bill(calendar, name=calendar.name), now=RESTATED, author="ana")
    assert (
        f"subscription {A}: its bill for 2025-03 and the one for 2025-02-17 to 2025-03-16 (pay-as-you-go.csv) both hold 2025-03-01 to 2025-03-16"
        in refused.value.message
    )
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])
    land(store, read_bill(calendar, name=calendar.name), now=RESTATED, author="ana", replace=True)
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])
    # Each route is billed to a day of its own.
    reached = {one["name"]: one["data_until"] for one in api.get("/v1/sources").json()["items"] if one["kind"] == "bill"}
    assert reached == {
        f"marketplace · subscription {A}": "2025-03-06T00:00:00Z",
        f"foundry · subscription {A}": "2025-03-05T00:00:00Z",
        f"compute · subscription {A}": "2025-03-06T00:00:00Z",
        f"marketplace · subscription {B}": "2025-03-06T00:00:00Z",
        f"compute · subscription {B}": "2025-03-05T00:00:00Z",
    }


def test_what_the_recorded_bill_has_of_everything_at_once(store: Store, api: httpx.Client, tmp_path: Path) -> None:
    """cost_details.csv: a refund beside its usage, a purchase of nothing, meters without a name; and with one unit nobody knows."""
    with (DATA / "azure" / "cost_details.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    # The day's output tokens of the 405b, in a unit of which nobody knows what it holds.
    unknown = next(row for row in rows if row["date"] == "03/01/2025" and "405b" in row["meterName"] and row["meterName"].endswith("output-tokens"))
    unknown["unitOfMeasure"] = "1 Barrel"
    path = tmp_path / "cost_details.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    landed = land(store, read_bill(path, name=path.name), now=FIRST, author="ana")
    assert landed.rows == 69
    assert amounts(api, **MARCH) == decimals(BEFORE["in_scope"])
    told = {(one["kind"], one["amount"], one["count"]) for one in api.get("/v1/problems").json()["items"] if one["kind"] in {"unknown_unit", "unmapped_meter"}}
    assert told == {("unknown_unit", "145.604", 1), ("unmapped_meter", "0.003", 1)}


def test_a_reservation_beside_the_recorded_bill_is_bought_once_and_spread_over_its_days(store: Store, api: httpx.Client, tmp_path: Path) -> None:
    """cost_details.csv with a reservation of 100 USD bought on the first day, of which each of five days takes 3."""
    with (DATA / "azure" / "cost_details.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    vm = next(row for row in rows if "llama-8b-managed" in row["tags"] and row["chargeType"] == "Usage")
    of_plan = {"reservationId": "/providers/Microsoft.Capacity/reservationOrders/o/reservations/r", "reservationName": "nc24"}
    bought = vm | of_plan | {"date": "03/01/2025", "chargeType": "Purchase", "quantity": "1", "costInBillingCurrency": "100", "tags": ""}
    spread = [vm | of_plan | {"date": f"03/0{day}/2025", "quantity": "1", "costInBillingCurrency": "3"} for day in range(1, 6)]
    bills = []
    for name, more in (("actual.csv", [bought]), ("amortized.csv", spread)):
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows([*rows, *more])
        bills.append(read_bill(path, name=name))
    land(store, amortized(*bills), now=FIRST, author="ana")
    assert amounts(api, **MARCH) == {"USD": Decimal("3733.90843083"), "EUR": Decimal("210.534939")}
    assert amounts(api, **MARCH | {"basis": "amortized"}) == {"USD": Decimal("3648.90843083"), "EUR": Decimal("210.534939")}
