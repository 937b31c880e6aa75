"""Every dataset that Azure gives a bill in is read to its exact facts, or refused by file, line and column."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collector.billing import BillRow, deliveries, read_bill, together
from collector.billing.formats import day_from
from models.charges import ChargeClass, MeterKind
from models.errors import InvalidInput
from tests.collector.billing.desk import AZURE, FOCUS, FOCUS_ROW, LATER, NOW, TOKENS, WORKSPACE, A, Desk, as_csv, by_class, sums


def test_a_cost_details_file_lands_to_its_exact_sums(desk: Desk) -> None:
    landing = desk.land(AZURE / "cost_details.csv")

    assert landing.rows == 69
    assert landing.totals == {"USD": Decimal("3633.93339083"), "EUR": Decimal("210.534939")}
    assert landing.in_scope_totals == {"USD": Decimal("3633.90843083"), "EUR": Decimal("210.534939")}
    expected = {
        ("marketplace", "USD"): Decimal("2015.32343083"),
        ("marketplace", "EUR"): Decimal("182.382939"),
        ("compute", "USD"): Decimal("1612.905"),
        ("compute", "EUR"): Decimal("28.152"),
        ("foundry", "USD"): Decimal("5.68"),
        ("out_of_scope", "USD"): Decimal("0.02496"),
    }
    assert sums(desk.current(), by_class) == expected
    assert sums(desk.days(), by_class) == expected


def test_a_cost_details_file_agrees_with_its_oracle_by_offer_and_deployment(desk: Desk) -> None:
    desk.land(AZURE / "cost_details.csv")
    oracle = json.loads((AZURE / "cost_details_expected.json").read_text(), parse_float=Decimal)["as_of_2025-03-06"]

    by_offer = sums(desk.days(), lambda _, item: item.resource_id.rsplit("/", 1)[-1] if item.charge_class is ChargeClass.MARKETPLACE else None)
    # The oracle is in USD; the 70B offer is billed in EUR at 0.92.
    in_usd = {offer: amount / Decimal("0.92") if "70B" in offer else amount for offer, amount in by_offer.items()}
    assert in_usd == {offer: Decimal(amount) for offer, amount in oracle["usd_by_saas_resource"].items()}

    hours: dict[str, Decimal] = defaultdict(Decimal)
    core_hours: dict[str, Decimal] = defaultdict(Decimal)
    for day, item in desk.days():
        if item.charge_class is ChargeClass.COMPUTE:
            assert item.unit_size == 1
            assert item.cores is not None
            assert day.quantity is not None
            name = f"{item.endpoint or '(untagged)'}/{item.deployment or '(untagged)'}"
            hours[name] += day.quantity
            core_hours[name] += day.quantity * item.cores
    assert hours == {name: Decimal(one["instance_hours"]) for name, one in oracle["managed_compute_by_deployment"].items()}
    assert core_hours == {name: Decimal(one["core_hours"]) for name, one in oracle["managed_compute_by_deployment"].items()}


def test_rows_that_are_twins_both_count_and_one_without_a_meter_keeps_its_money(desk: Desk) -> None:
    """Azure's documentation calls day, meter and resource a key; real bills hold several records of one, some alike to the last digit."""
    desk.land(AZURE / "cost_details.csv")
    by_line = {charge.line: (charge, item) for charge, item in desk.current()}
    twins = [by_line[line] for line in (63, 64)]
    assert [(charge.quantity, charge.billed_cost) for charge, _ in twins] == [(Decimal("6.5"), Decimal("23.8745"))] * 2
    assert twins[0][0].item_id == twins[1][0].item_id
    (day,) = [day for day, item in desk.days() if item.id == twins[0][0].item_id and day.charged_on == date(2025, 3, 3)]
    assert (day.quantity, day.billed_cost, day.rows) == (Decimal(13), Decimal("47.749"), 2)
    charge, item = by_line[55]
    assert (item.meter_name, charge.billed_cost, item.charge_class, item.model) == ("", Decimal("0.003"), ChargeClass.MARKETPLACE, "Meta-Llama-3.1-8B-Instruct")
    assert item.meter_kind is MeterKind.OTHER


def test_a_part_knows_its_rates_reaches_and_problems(table: Desk) -> None:
    table.land(AZURE / "cost_details_restated.csv")
    us, emea = table.parts()

    assert (us.subscription_id, us.period_start, us.source, us.author, us.rows) == (A, date(2025, 3, 1), "cost_details_mca", "ana", 62)
    assert (us.exchange_rates, emea.exchange_rates) == ({}, {"USD>EUR": "0.92"})
    # The refund of 03-03 and the rounding of 03-31 reach nothing.
    assert us.reaches == {"marketplace": "2025-03-05", "compute": "2025-03-05", "foundry": "2025-03-04"}
    assert emea.reaches == {"marketplace": "2025-03-05"}
    assert emea.meter_reaches == {"marketplace/input": "2025-03-05", "marketplace/output": "2025-03-05"}
    # A meter that says nothing is kept by its name too: somebody may say later what it counts.
    assert {what: day for what, day in us.meter_reaches.items() if "/other" in what} == {
        "marketplace/other": "2025-03-01",
        "marketplace/other//meta-llama-3-1-8b-instruct-plan": "2025-03-01",
    }
    assert [(one["kind"], one["subject"], one["amount"], one["count"]) for one in us.problems] == [
        ("out_of_scope", "Storage", "0.02496", 1),
        ("unmapped_meter", "no meter name", "0.003", 1),
    ]


def facts(rows: Iterable[BillRow]) -> Counter[Any]:
    """What a row says, but for the spelling of ids that datasets do not share."""
    return Counter(
        (
            row.about.item.charge_class,
            row.about.item.meter_kind,
            row.about.item.is_fine_tuned,
            row.about.item.model,
            row.about.item.workspace,
            row.about.item.endpoint,
            row.about.item.deployment,
            row.about.item.plan_id,
            row.about.item.offer_id,
            row.about.item.sku,
            row.about.item.cores,
            row.about.item.resource_id.casefold(),
            row.about.subscription_id,
            row.about.item.resource_group,
            row.charged_on,
            row.about.charge_type.casefold().removeprefix("rounding"),
            row.billed_cost,
            row.about.currency,
            None if row.quantity is None or row.about.item.unit_size is None else row.quantity * row.about.item.unit_size,
        )
        for row in rows
    )


def test_the_ea_and_mca_columns_say_the_same() -> None:
    ea = facts(read_bill(AZURE / "cost_details_ea.csv", name="ea").rows())
    mca = facts(read_bill(AZURE / "cost_details.csv", name="mca").rows())

    assert read_bill(AZURE / "cost_details_ea.csv", name="ea").source == "cost_details_ea"
    assert sum(ea.values()) == 26
    assert ea - mca == Counter()


def test_the_parts_of_a_focus_export_say_what_the_cost_details_say() -> None:
    focus = together([read_bill(FOCUS / f"focus_export_part_{number}_0001.csv", name=f"part {number}") for number in (1, 0)])
    details = read_bill(AZURE / "cost_details_restated.csv", name="details")

    assert facts(focus.rows()) == facts(details.rows())


def test_the_parts_of_an_export_land_as_one_and_take_the_place_of_the_other_dataset(desk: Desk) -> None:
    desk.land(AZURE / "cost_details_restated.csv", now=NOW)
    landing = desk.land(FOCUS / "focus_export_part_0_0001.csv", FOCUS / "focus_export_part_1_0001.csv", now=LATER)

    assert (landing.rows, landing.file_name) == (72, "focus_export_part_0_0001.csv and 1 more")
    assert landing.in_scope_totals == {"USD": Decimal("4235.30877971"), "EUR": Decimal("300.267139")}
    assert [part.superseded_at for part in desk.parts()] == [LATER, LATER, None, None]
    assert desk.parts()[3].exchange_rates == {"USD>EUR": "0.92"}
    lines = sorted(charge.line for charge, _ in desk.current())
    assert lines == [*range(2, 38), *range(39, 75)]


def test_numbered_parts_of_one_export_belong_together(tmp_path: Path) -> None:
    names = ["march.csv", "x_part_0_0001.csv", "april.csv", "x_part_1_0001.csv", "y_part_0_0001.csv"]

    grouped = deliveries([tmp_path / name for name in names])

    assert [[path.name for path in group] for group in grouped] == [
        ["march.csv"],
        ["x_part_0_0001.csv", "x_part_1_0001.csv"],
        ["april.csv"],
        ["y_part_0_0001.csv"],
    ]


def test_one_file_is_not_two_parts_of_an_export() -> None:
    with pytest.raises(InvalidInput, match="given twice"):
        together([read_bill(AZURE / "cost_details.csv", name="a"), read_bill(AZURE / "cost_details.csv", name="b")])


def test_a_native_focus_export_with_all_its_gaps_is_read() -> None:
    rows = list(read_bill(FOCUS / "azure_focus_1_2_preview_export.csv", name="export").rows())

    assert Counter((row.about.item.charge_class.value, row.about.item.meter_kind.value, row.about.charge_type) for row in rows) == {
        ("marketplace", "input", "Usage"): 4,
        ("marketplace", "output", "Usage"): 3,
        ("marketplace", "training", "Usage"): 1,
        ("marketplace", "hosting", "Usage"): 1,
        ("marketplace", "input", "Refund"): 1,
        ("out_of_scope", "other", "Usage"): 2,
        ("compute", "compute", "Usage"): 3,
        ("compute", "commitment", "UnusedReservation"): 1,
        ("compute", "commitment", "Purchase"): 1,
        ("adjustment", "adjustment", "Adjustment"): 1,
    }
    assert {row.about.item.unit_size for row in rows if row.about.item.meter_kind is MeterKind.INPUT} == {Decimal(1000)}
    unused = next(row for row in rows if row.about.charge_type == "UnusedReservation")
    assert (unused.about.item.deployment, unused.billed_cost, unused.effective_cost) == (None, Decimal(0), Decimal("4.7"))


def test_a_focus_file_without_azure_columns_is_read(table: Desk) -> None:
    tokens, vm = table.read(
        FOCUS_ROW,
        FOCUS_ROW
        | {
            "BilledCost": "88.152",
            "PublisherName": "Microsoft",
            "ServiceName": "Azure Machine Learning",
            "ResourceId": f"{WORKSPACE.lower()}/onlineendpoints/ep/deployments/blue",
            "SkuMeter": "NC24ads A100 v4",
            "ChargeDescription": "VM hours",
            "PricingQuantity": "24",
            "PricingUnit": "Hours",
        },
    )
    assert (tokens.about.item.charge_class, tokens.about.item.meter_kind, tokens.about.item.model) == (
        ChargeClass.MARKETPLACE,
        MeterKind.INPUT,
        "Meta-Llama-3.1-8B-Instruct",
    )
    assert (tokens.quantity, tokens.about.item.unit_size, tokens.effective_cost) == (Decimal(100), Decimal(1000), Decimal("0.03"))
    assert (vm.about.item.charge_class, vm.about.item.workspace, vm.about.item.endpoint, vm.about.item.deployment) == (
        ChargeClass.COMPUTE,
        "ws-east",
        "ep",
        "blue",
    )
    assert (vm.about.item.sku, vm.about.item.cores, vm.about.item.unit_size) == ("Standard_NC24ads_A100_v4", 24, Decimal(1))


def test_a_focus_row_with_only_a_consumed_quantity_counts_that(table: Desk) -> None:
    (row,) = table.read(FOCUS_ROW | {"PricingQuantity": "", "PricingUnit": ""})
    assert (row.quantity, row.about.item.unit, row.about.item.unit_size) == (Decimal(100_000), "Tokens", Decimal(1))


def test_a_parquet_export_lands_as_its_csv_does(desk: Desk) -> None:
    with (FOCUS / "azure_focus_1_2_preview_export.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns: dict[str, Any] = {name: pa.array([row[name] or None for row in rows], pa.string()) for name in rows[0]}
    for name in ("BilledCost", "EffectiveCost"):
        columns[name] = pa.array([Decimal(row[name]) for row in rows], pa.decimal128(38, 12))
    for name in ("PricingQuantity", "x_PricingBlockSize"):
        columns[name] = pa.array([float(row[name]) if row[name] else None for row in rows], pa.float64())
    for name in ("ChargePeriodStart", "BillingPeriodStart"):
        columns[name] = pa.array([datetime.fromisoformat(row[name]) for row in rows], pa.timestamp("us", "UTC"))
    columns["Tags"] = pa.array([list(json.loads(row["Tags"] or "{}").items()) for row in rows], pa.map_(pa.string(), pa.string()))
    path = desk.folder / "export.parquet"
    pq.write_table(pa.table(columns), path, compression="snappy")

    bill = read_bill(path, name="export.parquet")
    assert bill.whole(0) == 18
    assert facts(bill.rows()) == facts(read_bill(FOCUS / "azure_focus_1_2_preview_export.csv", name="csv").rows())
    landing = desk.land(path)
    assert landing.totals == {"USD": Decimal("2082.83048488")}
    assert landing.in_scope_totals == {"USD": Decimal("2070.08048488")}


@pytest.mark.parametrize(("kind", "value"), [(pa.float64(), 0.1), (pa.decimal128(20, 6), Decimal("0.1")), (pa.string(), "0.1")])
def test_parquet_amounts_are_exact_whatever_their_type(tmp_path: Path, kind: Any, value: Any) -> None:
    columns = {name: pa.array([text]) for name, text in FOCUS_ROW.items()} | {"BilledCost": pa.array([value], kind)}
    pq.write_table(pa.table(columns), tmp_path / "one.parquet")

    (row,) = read_bill(tmp_path / "one.parquet", name="one").rows()

    assert row.billed_cost == Decimal("0.1")


def test_a_parquet_nan_is_refused(tmp_path: Path) -> None:
    columns = {name: pa.array([text]) for name, text in FOCUS_ROW.items()} | {"BilledCost": pa.array([float("nan")])}
    pq.write_table(pa.table(columns), tmp_path / "one.parquet")

    with pytest.raises(InvalidInput, match=r"one row 2, column BilledCost is not a decimal number: 'nan'"):
        list(read_bill(tmp_path / "one.parquet", name="one").rows())


def test_a_gzipped_file_is_read(table: Desk) -> None:
    path = table.file(gzip.compress((AZURE / "cost_details.csv").read_bytes()), "cost_details.csv.gz")
    assert table.land(path).in_scope_totals == {"USD": Decimal("3633.90843083"), "EUR": Decimal("210.534939")}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"costInBillingCurrency": "1,234.00"}, r"bill.csv row 3, column costInBillingCurrency is not a decimal number: '1,234.00'"),
        ({"costInBillingCurrency": "$12"}, "row 3, column costInBillingCurrency"),
        ({"costInBillingCurrency": "NaN"}, "row 3, column costInBillingCurrency"),
        ({"costInBillingCurrency": ""}, "row 3, column costInBillingCurrency"),
        ({"quantity": "many"}, "row 3, column quantity"),
        ({"effectivePrice": "?"}, "row 3, column effectivePrice"),
        ({"exchangeRatePricingToBilling": "Infinity"}, "row 3, column exchangeRatePricingToBilling"),
        ({"date": "31/03/2025"}, "row 3, column date is not a date: '31/03/2025'"),
        ({"date": ""}, "row 3, column date"),
        ({"billingPeriodStartDate": "March"}, "row 3, column billingPeriodStartDate"),
        ({"billingCurrency": "US$"}, "row 3, column billingCurrency is not a three-letter currency code"),
        ({"chargeType": ""}, "row 3, column chargeType is empty"),
    ],
)
def test_a_cell_that_cannot_be_read_refuses_the_whole_file(desk: Desk, change: dict[str, str], told: str) -> None:
    path = desk.file(as_csv([TOKENS, TOKENS | change]))

    with pytest.raises(InvalidInput, match=told) as refusal:
        desk.land(path)

    assert "nothing was landed" in refusal.value.message
    assert desk.counts() == (0, 0, 0)


def test_a_refused_file_leaves_the_current_bill_alone(desk: Desk) -> None:
    desk.rows(TOKENS)
    with pytest.raises(InvalidInput):
        desk.rows(TOKENS, TOKENS | {"quantity": "x"}, now=LATER)
    assert desk.counts() == (1, 1, 1)
    assert desk.parts()[0].superseded_at is None


def test_a_missing_column_is_named(table: Desk) -> None:
    row = {name: value for name, value in TOKENS.items() if name not in {"costInBillingCurrency", "quantity"}}
    with pytest.raises(InvalidInput, match=r"bill.csv lacks the columns costInBillingCurrency, quantity"):
        table.rows(row)


def test_a_file_of_another_kind_is_told_what_was_looked_for(table: Desk) -> None:
    with pytest.raises(InvalidInput, match=r"not a bill that meterbridge knows.*costInBillingCurrency.*FOCUS.*BilledCost.*found name, age"):
        table.land(table.file("name,age\nx,1\n"))
    with pytest.raises(InvalidInput, match="semicolons"):
        table.land(table.file("name;age\nx;1\n"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "bill.csv is empty"),
        (as_csv([], header=TOKENS).encode(), "a header and no rows"),
        (as_csv([TOKENS]).encode("utf-16"), "UTF-16"),
        (as_csv([TOKENS]).encode() + b"03/01/2025,cut", r"row 3 has 2 cells where the header has 27"),
        (as_csv([TOKENS]).replace("rg-ai", "rg-\xe9").encode("latin-1"), "not UTF-8"),
        (as_csv([TOKENS]).encode() + b'"03/01/2025', "not a well-formed CSV"),
        (gzip.compress(as_csv([TOKENS] * 500).encode())[:-200], "damaged gzip"),
        (b"PAR1 and then nothing", "damaged Parquet"),
        (as_csv([TOKENS]).replace("date,", "date,DATE,", 1).encode(), "twice"),
    ],
)
def test_a_damaged_file_is_refused_as_what_it_is(table: Desk, content: bytes, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        table.land(table.file(content))
    assert table.counts() == (0, 0, 0)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"march.csv cannot be read: No such file"):
        read_bill(tmp_path / "march.csv", name="march.csv")


@pytest.mark.parametrize(
    "text", ["03/01/2025", "3/1/2025", "3/1/2025 12:00:00 AM", "2025-03-01", "20250301", "2025-03-01T00:00Z", "2025-03-01T23:59:59.9999999Z"]
)
def test_the_ways_a_day_is_written(text: str) -> None:
    assert day_from(text) == date(2025, 3, 1)


def test_a_timestamp_with_an_offset_is_a_utc_day() -> None:
    assert day_from("2025-03-01T23:30:00-05:00") == date(2025, 3, 2)
    assert day_from("2025-02-30") is None
    assert day_from("٢٠٢٥-03-01") is None


@pytest.mark.parametrize("text", ['{"env": "prod", "n": 1}', '"env": "prod", "n": 1', '{"env": "prod", "n": "1", "cut off": "he'])
def test_tags_with_and_without_braces_and_cut_off(table: Desk, text: str) -> None:
    (row,) = table.read(TOKENS | {"tags": text})
    assert row.about.item.tags == {"env": "prod", "n": "1"}
