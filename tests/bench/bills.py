"""Rows a second that a bill lands with, beside what reading its CSV alone takes."""

from __future__ import annotations

import csv
import gc
import os
import random
import resource
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from collector import billing
from collector.azure.simulator.estate import COST_DETAILS_COLUMNS
from models.store import Store
from tests.bench.figures import Figure

# METERBRIDGE_BENCH_BILL_ROWS=2000000 is the largest month that a report holds: it took 42.0 s of processor time (47,700 rows a second, 0.50 of
# csv.reader's 21.1 s) and 283 MiB at most, on a machine kept busy by others (2026-11-21; load 10 on two cores).
ROWS = int(os.environ.get("METERBRIDGE_BENCH_BILL_ROWS") or 200_000)
_MONTH = date(2026, 10, 1)
_SUBSCRIPTIONS, _RESOURCES = 5, 600
_NOW = datetime(2026, 11, 3, tzinfo=UTC)


def landing(folder: Path, *, rounds: int) -> list[Figure]:
    """A cost details month landed on SQLite, each time in a process and a database of its own."""
    path = folder / "month.csv"
    write(path, rows=ROWS)
    plain = Figure(f"csv.reader alone, {ROWS:,} rows of {len(COST_DETAILS_COLUMNS)} columns", "rows/s", [], note=f"{path.stat().st_size / 1024**2:.0f} MiB")
    landed = Figure("read, classified and landed on SQLite", "rows/s", [], of=plain.name, note="durable in slices, summed by item and day")
    # What a busy machine leaves comparable.
    plain_work = Figure("csv.reader alone, of processor time", "rows/s", [])
    work = Figure("landed, of processor time", "rows/s", [], of=plain_work.name)
    memory = Figure("the process at its largest", "MiB", [])
    for number in range(rounds):
        began, worked = time.perf_counter(), time.process_time()
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = sum(1 for _ in csv.reader(text, strict=True)) - 1
        plain.rounds.append(rows / (time.perf_counter() - began))
        plain_work.rounds.append(rows / (time.process_time() - worked))
        words = [sys.executable, "-m", "tests.bench.bills", str(path), str(folder / f"{number}.db")]
        seconds, processor, largest = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        landed.rounds.append(rows / float(seconds))
        work.rounds.append(rows / float(processor))
        memory.rounds.append(float(largest))
    return [plain, landed, plain_work, work, memory]


def write(path: Path, *, rows: int) -> None:
    """A month as an MCA customer's report has it: most of it is not model spend, and amounts hardly repeat."""
    chance = random.Random(1)
    days = [f"{_MONTH + timedelta(days=number):%m/%d/%Y}" for number in range(31)]
    shapes = [_shape(number, chance) for number in range(_RESOURCES)]
    with path.open("w", encoding="utf-8-sig", newline="") as out:
        writer = csv.DictWriter(out, COST_DETAILS_COLUMNS, restval="", lineterminator="\r\n")
        writer.writeheader()
        for number in range(rows):
            quantity = f"{chance.randrange(1, 10**7) / 10**4:.4f}"
            cost = f"{chance.randrange(1, 10**12) / 10**10:.10f}"
            amounts = {"quantity": quantity, "costInBillingCurrency": cost, "costInPricingCurrency": cost, "costInUsd": cost, "date": days[number % 31]}
            writer.writerow(shapes[number // 31 % _RESOURCES] | amounts)


def _shape(number: int, chance: random.Random) -> dict[str, str]:
    subscription = f"00000000-0000-0000-0000-{number % _SUBSCRIPTIONS:012d}"
    is_model = number % 20 == 0
    group = f"/subscriptions/{subscription}/resourceGroups/rg-{number % 40}/providers"
    resource_id = (
        f"{group}/Microsoft.MachineLearningServices/workspaces/ws-{number}"
        if is_model
        else f"{group}/Microsoft.Compute/virtualMachines/vm-{number}-{chance.randrange(10**6)}"
    )
    tags = {"azuremlendpoint": f"llama-{number}", "azuremldeployment": "blue"} if is_model else {"env": "prod", "owner": f"team-{number % 17}"}
    return {
        "billingAccountId": "/providers/Microsoft.Billing/billingAccounts/1",
        "billingAccountName": "Example",
        "billingPeriodStartDate": "10/01/2026",
        "billingPeriodEndDate": "10/31/2026",
        "SubscriptionId": subscription,
        "subscriptionName": f"sub-{number % _SUBSCRIPTIONS}",
        "ResourceId": resource_id,
        "resourceGroupName": f"rg-{number % 40}",
        "resourceLocation": "eastus2",
        "consumedService": "Microsoft.MachineLearningServices" if is_model else "Microsoft.Compute",
        "publisherType": "Microsoft",
        "publisherName": "Microsoft",
        "meterCategory": "Virtual Machines",
        "meterSubCategory": "NCADS A100 v4 Series",
        "meterName": "NC24ads A100 v4",
        "ProductName": "Virtual Machines NCADS A100 v4 Series - NC24ads A100 v4 - US East 2",
        "unitOfMeasure": "1 Hour",
        "effectivePrice": "3.673",
        "billingCurrency": "USD",
        "pricingCurrency": "USD",
        "exchangeRatePricingToBilling": "1",
        "chargeType": "Usage",
        "frequency": "UsageBased",
        "pricingModel": "OnDemand",
        "tags": "{" + ", ".join(f'"{key}": "{value}"' for key, value in tags.items()) + "}",
        "additionalInfo": '{"UsageType":"ComputeHR","ImageType":"Canonical","ServiceType":"Standard_NC24ads_A100_v4","VMName":null,"VCPUs":24}',
    }


def main() -> None:
    """Land one file in a new database; prints the seconds that took, those of the processor, and the most memory (MiB) the process had."""
    path, database = Path(sys.argv[1]), Path(sys.argv[2])
    store = Store(f"sqlite:///{database}")
    store.migrate()
    gc.collect()
    began, worked = time.perf_counter(), time.process_time()
    billing.land(store, billing.read_bill(path, name=path.name), now=_NOW, author="bench", replace=True)
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    store.close()
    print(f"{seconds:.3f} {processor:.3f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")  # noqa: T201 (what it is for)


if __name__ == "__main__":
    main()
