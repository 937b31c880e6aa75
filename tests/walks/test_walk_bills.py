"""From a bill file on a user's disk, through the import command beside the running service, to the figures of ``/v1/costs``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from models.periods import rfc3339
from tests.walks.service import Behind, Finished, Service, amounts, begin, costs, run, totals, verify

pytestmark = pytest.mark.walk

DATA = Path(__file__).parents[1] / "data"
MARCH = {"since": "2025-03-01", "to": "2025-04-01"}
EXPECTED: dict[str, Any] = json.loads((DATA / "azure" / "cost_details_expected.json").read_text(encoding="utf-8"))
FIRST, RESTATED = EXPECTED["as_of_2025-03-06"], EXPECTED["as_of_2025-03-09_restated"]


@pytest.fixture
def service(database_url: str, tmp_path: Path) -> Iterator[Service]:
    """The whole service on each kind of database; whatever a walk did, its figures are those of the raw rows."""
    with Service(database_url, tmp_path, words=("up", "--port", "0")) as running:
        yield running
        verify(database_url, folder=tmp_path)


def bring_in(database_url: str, folder: Path, *files: Path, replace: bool = False) -> Finished:
    words = ["import", "charges", *map(str, files), *(["--replace"] if replace else [])]
    return run(database_url, *words, folder=folder)


def billed(service: Service, **query: str) -> dict[str | None, Decimal]:
    return amounts(service.client, basis="billed", **query)


def by(service: Service, group_by: str, **query: str) -> dict[tuple[Any, ...], Decimal]:
    """Billed cost by the groups and the currency."""
    rows = costs(service.client, granularity="none", basis="billed", group_by=group_by, **query)["rows"]
    return {(*(row[name] for name in group_by.split(",")), row["currency"]): Decimal(row["cost"]) for row in rows}


def decimals(said: dict[str, str]) -> dict[str, Decimal]:
    return {currency: Decimal(text) for currency, text in said.items()}


def test_a_month_is_billed_and_then_restated(service: Service, database_url: str, tmp_path: Path) -> None:
    landed = bring_in(database_url, tmp_path, DATA / "azure" / "cost_details.csv")
    assert landed.code == 0, landed.err
    assert billed(service, **MARCH) == decimals(FIRST["in_scope"])

    refuse_bad_files(service, database_url, tmp_path)
    before = rfc3339(datetime.now(UTC))
    restated = bring_in(database_url, tmp_path, DATA / "azure" / "cost_details_restated.csv")
    assert restated.code == 0, restated.err
    assert billed(service, **MARCH) == decimals(RESTATED["in_scope"])
    assert billed(service, **MARCH, as_of=before) == decimals(FIRST["in_scope"])

    # Managed compute by deployment, to the digit: 240 + 13 hours of 24 cores, 24 hours of 96.
    rows = costs(service.client, **MARCH, granularity="none", basis="billed", group_by="deployment", mode="managed_compute")["rows"]
    assert {row["deployment"]: (Decimal(row["cost"]), Decimal(row["core_hours"])) for row in rows} == {
        name: (Decimal(said["usd"]), Decimal(said["core_hours"])) for name, said in RESTATED["managed_compute_by_deployment"].items()
    }
    assert by(service, "deployment", **MARCH, deployment="llama-33-70b") == {("llama-33-70b", "USD"): Decimal("5.68")}
    # By class: what is serverless (Marketplace and Foundry), what is compute, and the rounding adjustment of neither.
    assert by(service, "mode", **MARCH) == {
        ("serverless", "USD"): Decimal("2519.56977971"),
        ("serverless", "EUR"): Decimal("300.267139"),
        ("managed_compute", "USD"): Decimal("1715.749"),
        ("unknown", "USD"): Decimal("-0.01"),
    }
    assert by(service, "meter", **MARCH, currency="EUR") == {("input", "EUR"): Decimal("229.9178164"), ("output", "EUR"): Decimal("70.3493226")}
    assert by(service, "subscription", **MARCH) == {
        ("11111111-1111-4111-8111-111111111111", "USD"): Decimal("4235.30877971"),
        ("22222222-2222-4222-8222-222222222222", "EUR"): Decimal("300.267139"),
    }
    found = {(one["kind"], one["currency"]): one for one in service.client.get("/v1/problems").json()["items"]}
    assert found["out_of_scope", "USD"]["amount"] == "0.02496"
    assert "Storage" in found["out_of_scope", "USD"]["subject"]

    again = bring_in(database_url, tmp_path, DATA / "azure" / "cost_details_restated.csv")
    assert (again.code, "unchanged" in again.out) == (0, True)
    assert Behind(database_url).number("SELECT COUNT(*) FROM bill_part WHERE landed_at IS NULL OR superseded_at IS NULL") == 2


def test_the_same_month_in_other_formats(service: Service, database_url: str, tmp_path: Path) -> None:
    parts = [DATA / "focus" / f"focus_export_part_{number}_0001.csv" for number in (0, 1)]
    landed = bring_in(database_url, tmp_path, *parts)
    assert landed.code == 0, landed.err
    assert billed(service, **MARCH) == decimals(RESTATED["in_scope"])
    compute = by(service, "deployment", **MARCH, mode="managed_compute")
    assert compute == {(name, "USD"): Decimal(said["usd"]) for name, said in RESTATED["managed_compute_by_deployment"].items()}

    # Azure's own preview export, of another month: 10 Llama rows, 5 of compute and a rounding count; another seller and storage do not.
    native = bring_in(database_url, tmp_path, DATA / "focus" / "azure_focus_1_2_preview_export.csv")
    assert native.code == 0, native.err
    may = {"since": "2026-05-01", "to": "2026-06-01"}
    assert billed(service, **may) == {"USD": Decimal("2070.08048488")}
    assert billed(service, **MARCH) == decimals(RESTATED["in_scope"])
    seller, storage = ("12.5", "SaaS"), ("0.25", "Storage")
    listed = [one for one in service.client.get("/v1/problems").json()["items"] if one["kind"] == "out_of_scope" and "2026-05" in one["subject"]]
    assert sorted((one["amount"], one["subject"].partition(" ")[0]) for one in listed) == sorted([seller, storage])

    # The EA file knows two days of one subscription: so much less than what stands is taken only when told to.
    shorter = DATA / "azure" / "cost_details_ea.csv"
    refused = bring_in(database_url, tmp_path, shorter)
    assert (refused.code, "--replace" in refused.err) == (1, True), refused.err
    assert billed(service, **MARCH) == decimals(RESTATED["in_scope"])
    taken = bring_in(database_url, tmp_path, shorter, replace=True)
    assert taken.code == 0, taken.err
    assert billed(service, **MARCH) == {"USD": Decimal("2254.31266228"), "EUR": Decimal("300.267139")}
    assert by(service, "mode", **MARCH, currency="USD") == {("serverless", "USD"): Decimal("1115.22466228"), ("managed_compute", "USD"): Decimal("1139.088")}
    land_what_is_not_known(service, database_url, tmp_path)


def refuse_bad_files(service: Service, database_url: str, folder: Path) -> None:
    """What cannot be read is named on one line, exit 2, and every figure stays."""
    header, rows = read(DATA / "azure" / "cost_details.csv")
    figures, written = billed(service, **MARCH), Behind(database_url).number("SELECT COUNT(*) FROM charge")
    amount, day = [dict(row) for row in rows], [dict(row) for row in rows]
    amount[40]["costInBillingCurrency"] = "twelve"
    day[40]["date"] = "13/45/2025"
    bad = {
        write(folder / "no-cost.csv", [name for name in header if name != "costInBillingCurrency"], rows): ("costInBillingCurrency",),
        # The header is row 1.
        write(folder / "amount.csv", header, amount): ("row 42", "costInBillingCurrency", "twelve"),
        write(folder / "day.csv", header, day): ("row 42", "date", "13/45/2025"),
    }
    begun = [begin(database_url, "import", "charges", str(file), folder=folder) for file in bad]
    for process, (file, named) in zip(begun, bad.items(), strict=True):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert (len(said.strip().splitlines()), "Traceback" in said) == (1, False), said
        missing = [text for text in (file.name, *named) if text not in said]
        assert not missing, f"{said} does not name {missing}"
    assert billed(service, **MARCH) == figures
    assert Behind(database_url).number("SELECT COUNT(*) FROM charge") == written


def land_what_is_not_known(service: Service, database_url: str, folder: Path) -> None:
    """A unit, a meter and a currency that nobody knew land with their money, and are listed."""
    header, rows = read(DATA / "azure" / "cost_details.csv")
    tokens = next(row for row in rows if row["publisherType"] == "Marketplace" and row["meterName"].endswith("input-tokens"))
    tokens |= {"date": "04/03/2025", "billingPeriodStartDate": "04/01/2025", "billingPeriodEndDate": "04/30/2025"}
    won = "33333333-3333-4333-8333-333333333333"
    in_korea = {"SubscriptionId": won, "ResourceId": tokens["ResourceId"].replace(tokens["SubscriptionId"], won), "billingCurrency": "KRW"}
    made = [
        tokens | {"quantity": "10", "costInBillingCurrency": "1.000000000001"},
        tokens | {"quantity": "3", "unitOfMeasure": "1 Barrel", "costInBillingCurrency": "2.5"},
        tokens | {"quantity": "1", "meterName": "something new", "costInBillingCurrency": "0.25"},
        tokens | in_korea | {"quantity": "7", "costInBillingCurrency": "9800000000001.5"},
    ]
    landed = bring_in(database_url, folder, write(folder / "new things.csv", header, made))
    assert landed.code == 0, landed.err

    april = {"since": "2025-04-01", "to": "2025-05-01"}
    assert billed(service, **april) == {"USD": Decimal("3.750000000001"), "KRW": Decimal("9800000000001.5")}
    assert by(service, "meter", **april, currency="USD") == {("input", "USD"): Decimal("3.500000000001"), ("other", "USD"): Decimal("0.25")}
    found = {one["kind"]: one for one in service.client.get("/v1/problems").json()["items"] if "2025-04" in one["detail"]}
    assert (found["unknown_unit"]["amount"], found["unknown_unit"]["subject"].partition(" (")[0]) == ("2.5", "1 Barrel")
    assert (found["unmapped_meter"]["amount"], found["unmapped_meter"]["subject"].partition(" (")[0]) == ("0.25", "something new")
    say_what_they_are(service, database_url, folder, april)
    assert set(totals(service.client, **april, basis="billed", currency="KRW")) == {"KRW"}


def say_what_they_are(service: Service, database_url: str, folder: Path, april: dict[str, str]) -> None:
    """A file and a request say what the new meter and the unit are: the landed charges are read anew, and the problems are gone."""
    file = folder / "meters.csv"
    file.write_text("meter,kind,unit\nsomething new,output,1K tokens\n", encoding="utf-8")
    assert run(database_url, "import", "meters", str(file), folder=folder).out.splitlines() == ["meters: 1 added, 0 unchanged"]
    barrel = next(one for one in service.client.get("/v1/meters").json()["items"] if one["problem"] == "unknown_unit" and one["unit"] == "1 Barrel")
    said = {"meter": barrel["meter"], "offer": barrel["offer"], "kind": "input", "unit": "1M tokens", "valid_from": "2025-04-01", "valid_to": "2025-05-01"}
    made = service.client.post("/v1/meters/mappings", json=said)
    assert (made.status_code, made.json()["valid_from"]) == (201, "2025-04-01T00:00:00Z")
    assert by(service, "meter", **april, currency="USD") == {("input", "USD"): Decimal("3.500000000001"), ("output", "USD"): Decimal("0.25")}
    assert not [one for one in service.client.get("/v1/problems").json()["items"] if "2025-04" in one["detail"]]
    assert {one["meter"] for one in service.client.get("/v1/meters/mappings").json()["items"]} == {"something new", barrel["meter"]}


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def write(path: Path, header: list[str], rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path
