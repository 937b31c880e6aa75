"""A bill file becomes current charges, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import select

from collector.billing import BillRow, Landing, deliveries, land, read_bill, together
from collector.billing.classify import Dimensions, meter_kind, model_from, unit_from
from collector.billing.formats import day_from
from models import money
from models.charges import BillPart, Charge, ChargeClass, ChargeDay, ChargeItem, MeterKind
from models.errors import Conflict, InvalidInput
from models.periods import BillingPeriod
from models.prices import model_key
from models.resources import DeploymentFact, Mode, Route, Workspace, WorkspaceFact
from models.store import Store, quick
from tests import factories

AZURE = Path(__file__).parents[1] / "data" / "azure"
FOCUS = Path(__file__).parents[1] / "data" / "focus"
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
LATER = NOW + timedelta(hours=4)
A, B = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
WORKSPACE = f"/subscriptions/{A}/resourceGroups/rg-ai/providers/Microsoft.MachineLearningServices/workspaces/ws-east"
SAAS = f"/subscriptions/{A}/resourceGroups/rg-ai/providers/Microsoft.SaaS/resources/llama-offer"

# A Llama input-token row as cost details have it; tests change what they are about.
TOKENS = {
    "date": "03/01/2025",
    "billingPeriodStartDate": "03/01/2025",
    "billingAccountId": "acct",
    "SubscriptionId": A,
    "resourceGroupName": "rg-ai",
    "ResourceId": SAAS,
    "publisherType": "Marketplace",
    "publisherName": "Meta",
    "consumedService": "Microsoft.SaaS",
    "meterCategory": "SaaS",
    "meterSubCategory": "meta-llama-3-1-8b-instruct-offer",
    "meterName": "Meta-Llama-3.1-8B-Instruct - plan-a - paygo-inference-input-tokens",
    "ProductName": "Meta-Llama-3.1-8B-Instruct - plan-a",
    "resourceLocation": "global",
    "unitOfMeasure": "1K",
    "quantity": "100",
    "effectivePrice": "0.0003",
    "chargeType": "Usage",
    "billingCurrency": "USD",
    "pricingCurrency": "USD",
    "costInBillingCurrency": "0.03",
    "exchangeRatePricingToBilling": "1",
    "exchangeRateDate": "03/01/2025",
    "additionalInfo": "",
    "tags": "",
    "costCenter": "",
    "reservationId": "",
}
VM = TOKENS | {
    "ResourceId": WORKSPACE,
    "publisherType": "Microsoft",
    "publisherName": "Microsoft",
    "consumedService": "Microsoft.MachineLearningServices",
    "meterCategory": "Virtual Machines",
    "meterSubCategory": "NCadsA100v4 Series",
    "meterName": "NC24ads A100 v4",
    "ProductName": "Virtual Machines NCadsA100v4 Series - NC24ads A100 v4 - US East 2",
    "resourceLocation": "eastus2",
    "unitOfMeasure": "1 Hour",
    "quantity": "24",
    "effectivePrice": "3.673",
    "costInBillingCurrency": "88.152",
    "additionalInfo": '{"ServiceType": "Standard_NC24ads_A100_v4", "VCPUs": 24}',
    "tags": '{"azuremlendpoint": "ep", "azuremldeployment": "blue"}',
}
FOCUS_ROW = {
    "BilledCost": "0.03",
    "BillingCurrency": "USD",
    "BillingPeriodStart": "2025-03-01T00:00:00Z",
    "ChargeCategory": "Usage",
    "ChargeClass": "",
    "ChargeDescription": "Meta-Llama-3.1-8B-Instruct inference input tokens",
    "ChargePeriodStart": "2025-03-01T00:00:00Z",
    "ConsumedQuantity": "100000",
    "ConsumedUnit": "Tokens",
    "EffectiveCost": "0.03",
    "PricingQuantity": "100",
    "PricingUnit": "1000 Tokens",
    "PublisherName": "Meta",
    "RegionId": "global",
    "ResourceId": SAAS.lower(),
    "ServiceName": "Azure Marketplace",
    "SkuMeter": "paygo-inference-input-tokens",
    "SubAccountId": f"/subscriptions/{A}",
    "Tags": "{}",
}


def as_csv(rows: Iterable[Mapping[str, str]], *, header: Iterable[str] | None = None) -> str:
    made = [dict(row) for row in rows]
    names = list(header) if header is not None else list(made[0])
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(made)
    return out.getvalue()


class Desk:
    """Where a test puts files and lands them."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store

    def file(self, content: str | bytes, name: str = "bill.csv") -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def land(self, *paths: Path, now: datetime | Callable[[], datetime] = NOW, replace: bool = False) -> Landing:
        return land(self.store, together([read_bill(path, name=path.name) for path in paths]), now=now, author="ana", replace=replace)

    def rows(self, *rows: Mapping[str, str], name: str = "bill.csv", now: datetime = NOW, replace: bool = False) -> Landing:
        return self.land(self.file(as_csv(rows), name), now=now, replace=replace)

    def read(self, *rows: Mapping[str, str], name: str = "bill.csv") -> list[BillRow]:
        return list(read_bill(self.file(as_csv(rows), name), name=name).rows())

    def parts(self) -> list[BillPart]:
        with self.store.read() as session:
            parts = list(session.exec(select(BillPart).order_by(sa.text("id"))))
            session.expunge_all()
        return parts

    def current(self) -> list[tuple[Charge, ChargeItem]]:
        with self.store.read() as session:
            rows = session.exec(
                select(Charge, ChargeItem)
                .join(ChargeItem, Charge.item_id == ChargeItem.id)  # type: ignore[arg-type]
                .where(Charge.part_id.in_(_current_parts()))  # type: ignore[attr-defined]
            ).all()
            session.expunge_all()
        return [(charge, item) for charge, item in rows]

    def days(self) -> list[tuple[ChargeDay, ChargeItem]]:
        with self.store.read() as session:
            rows = session.exec(
                select(ChargeDay, ChargeItem)
                .join(ChargeItem, ChargeDay.item_id == ChargeItem.id)  # type: ignore[arg-type]
                .where(ChargeDay.part_id.in_(_current_parts()))  # type: ignore[attr-defined]
            ).all()
            session.expunge_all()
        return [(day, item) for day, item in rows]

    def counts(self) -> tuple[int, int, int]:
        with self.store.read() as session:
            parts, charges, days = (session.scalar(sa.text(f"SELECT count(*) FROM {table}")) for table in ("bill_part", "charge", "charge_day"))
        return int(parts or 0), int(charges or 0), int(days or 0)


def _current_parts() -> Any:
    return sa.text("SELECT id FROM bill_part WHERE landed_at IS NOT NULL AND superseded_at IS NULL").columns(sa.column("id", sa.BigInteger)).scalar_subquery()


@pytest.fixture
def desk(tmp_path: Path, store: Store) -> Desk:
    return Desk(tmp_path, store)


@pytest.fixture
def table(tmp_path: Path, sqlite_store: Store) -> Desk:
    """A desk on SQLite only, for what the database does not decide."""
    return Desk(tmp_path, sqlite_store)


def sums(rows: Iterable[tuple[Any, ChargeItem]], key: Callable[[Any, ChargeItem], Any]) -> dict[Any, Decimal]:
    found: dict[Any, Decimal] = defaultdict(lambda: money.ZERO)
    for row, item in rows:
        if (where := key(row, item)) is not None:
            found[where] += row.billed_cost
    return dict(found)


def by_class(row: Any, item: ChargeItem) -> Any:
    return item.charge_class.value, row.currency


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


def test_a_restated_file_replaces_and_the_older_one_stays_readable(desk: Desk) -> None:
    desk.land(AZURE / "cost_details.csv", now=NOW)
    landing = desk.land(AZURE / "cost_details_restated.csv", now=LATER)

    assert landing.in_scope_totals == {"USD": Decimal("4235.30877971"), "EUR": Decimal("300.267139")}
    assert [part.replaced_totals for part in landing.parts] == [{"USD": Decimal("3633.93339083")}, {"EUR": Decimal("210.534939")}]
    assert sums(desk.days(), by_class) == {
        ("marketplace", "USD"): Decimal("2513.88977971"),
        ("marketplace", "EUR"): Decimal("300.267139"),
        ("compute", "USD"): Decimal("1715.749"),
        ("foundry", "USD"): Decimal("5.68"),
        ("adjustment", "USD"): Decimal("-0.01"),
        ("out_of_scope", "USD"): Decimal("0.02496"),
    }
    parts = desk.parts()
    assert [(part.landed_at, part.superseded_at) for part in parts] == [(NOW, LATER), (NOW, LATER), (LATER, None), (LATER, None)]
    with desk.store.read() as session:
        old = session.execute(sa.select(sa.func.count()).select_from(sa.table("charge")).where(sa.column("part_id").in_([part.id for part in parts[:2]])))
        assert old.scalar_one() == 69


def test_a_part_knows_its_rates_reaches_and_problems(table: Desk) -> None:
    table.land(AZURE / "cost_details_restated.csv")
    us, emea = table.parts()

    assert (us.subscription_id, us.period_start, us.source, us.author, us.rows) == (A, date(2025, 3, 1), "cost_details_mca", "ana", 62)
    assert (us.exchange_rates, emea.exchange_rates) == ({}, {"USD>EUR": "0.92"})
    # The refund of 03-03 and the rounding of 03-31 reach nothing.
    assert us.reaches == {"marketplace": "2025-03-05", "compute": "2025-03-05", "foundry": "2025-03-04"}
    assert emea.reaches == {"marketplace": "2025-03-05"}
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


# -- Parquet and gzip -----------------------------------------------------------------------------


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
    assert bill.row_count == 18
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


# -- what is refused ------------------------------------------------------------------------------


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


# -- landing --------------------------------------------------------------------------------------


def test_the_same_file_again_changes_nothing_and_says_so(desk: Desk) -> None:
    first = desk.land(AZURE / "cost_details.csv", now=NOW)
    before = desk.counts()
    again = desk.land(AZURE / "cost_details.csv", now=LATER, replace=True)

    assert again.unchanged
    assert not first.unchanged
    assert desk.counts() == before
    assert again.in_scope_totals == first.in_scope_totals
    assert "nothing was written" in again.summary()


def test_an_older_file_lands_again_once_it_was_replaced(table: Desk) -> None:
    table.rows(TOKENS, name="one.csv")
    table.rows(TOKENS, TOKENS, name="two.csv", now=LATER)
    back = table.rows(TOKENS, name="one.csv", now=LATER, replace=True)
    assert not back.unchanged
    assert back.totals == {"USD": Decimal("0.03")}


@pytest.mark.parametrize(("cost", "is_refused"), [("80", False), ("79.99", True)])
def test_a_total_that_falls_by_more_than_a_fifth_needs_a_word(desk: Desk, cost: str, is_refused: bool) -> None:
    desk.rows(TOKENS | {"costInBillingCurrency": "100"})
    if not is_refused:
        assert desk.rows(TOKENS | {"costInBillingCurrency": cost}, now=LATER).totals == {"USD": Decimal(cost)}
        return
    with pytest.raises(Conflict, match=r"from 100 to 79.99 USD.*--replace"):
        desk.rows(TOKENS | {"costInBillingCurrency": cost}, now=LATER)
    assert desk.counts() == (1, 1, 1)
    assert desk.rows(TOKENS | {"costInBillingCurrency": cost}, now=LATER, replace=True).totals == {"USD": Decimal("79.99")}


def test_a_currency_that_vanishes_is_a_fall(table: Desk) -> None:
    table.rows(TOKENS, TOKENS | {"billingCurrency": "EUR"})
    with pytest.raises(Conflict, match=r"falls from 0.03 to 0 EUR"):
        table.rows(TOKENS | {"costInBillingCurrency": "5"}, now=LATER)


def test_a_file_replaces_only_the_subscriptions_and_months_it_contains(desk: Desk) -> None:
    april = TOKENS | {"date": "04/02/2025", "billingPeriodStartDate": "04/01/2025"}
    other = TOKENS | {"SubscriptionId": B}
    desk.rows(TOKENS, april, other)
    desk.rows(april | {"costInBillingCurrency": "7"}, now=LATER)

    current = [(part.subscription_id, part.period_start, part.totals) for part in desk.parts() if part.superseded_at is None]
    assert sorted(current, key=str) == [
        (A, date(2025, 3, 1), {"USD": "0.03"}),
        (A, date(2025, 4, 1), {"USD": "7"}),
        (B, date(2025, 3, 1), {"USD": "0.03"}),
    ]


def test_charges_of_no_subscription_belong_to_their_billing_account(table: Desk) -> None:
    loose = TOKENS | {"SubscriptionId": "", "ResourceId": "", "chargeType": "RoundingAdjustment"}
    table.rows(loose | {"billingAccountId": "/providers/Microsoft.Billing/billingAccounts/one"})
    table.rows(loose | {"billingAccountId": "two", "costInBillingCurrency": "1"}, now=LATER)
    table.rows(loose | {"billingAccountId": "ONE", "costInBillingCurrency": "2"}, now=LATER)

    current = [(part.subscription_id, part.billing_account, part.totals) for part in table.parts() if part.superseded_at is None]
    assert current == [("", "two", {"USD": "1"}), ("", "ONE", {"USD": "2"})]


def test_without_a_billing_period_the_charge_says_the_month(table: Desk) -> None:
    row = {name: value for name, value in TOKENS.items() if name != "billingPeriodStartDate"}
    table.rows(row | {"date": "2025-04-30"})
    assert table.parts()[0].period_start == date(2025, 4, 1)


def from_the_17th(table: Desk, *, month: int, name: str) -> Path:
    """The recorded bill as one of a subscription whose bills begin on the 17th: its first days, or those from the 17th on."""
    start, end = (f"{month:02}/17/2025", f"{month + 1:02}/16/2025")
    records = list(csv.DictReader(io.StringIO((AZURE / "cost_details.csv").read_text(encoding="utf-8-sig"), newline="")))
    kept = [row | {"billingPeriodStartDate": start, "billingPeriodEndDate": end} for row in records if row["SubscriptionId"] == A]
    if month == 3:
        kept = [row | {"date": row["date"].replace("03/0", "03/2")} for row in kept]
    return table.file(as_csv(kept), name)


def test_a_bill_for_other_days_than_a_months_stands_beside_the_next_and_replaces_itself(table: Desk) -> None:
    february, march = from_the_17th(table, month=2, name="february.csv"), from_the_17th(table, month=3, name="march.csv")
    landing = table.land(february)
    assert "for 2025-02-17 to 2025-03-16 (cost_details_mca)" in landing.summary()
    table.land(march)
    once = sum(charge.billed_cost for charge, _ in table.current())
    assert once == 2 * landing.totals["USD"]
    # Both are of March, and of the one as of the other nothing is lost when it comes again.
    spans = [(part.period_start, part.billed) for part in table.parts() if part.superseded_at is None]
    assert spans == [
        (date(2025, 3, 1), BillingPeriod(date(2025, 2, 17), date(2025, 3, 17))),
        (date(2025, 3, 1), BillingPeriod(date(2025, 3, 17), date(2025, 4, 17))),
    ]
    table.land(table.file(february.read_bytes() + b"\r\n", "again.csv"), now=LATER)
    assert sum(charge.billed_cost for charge, _ in table.current()) == once


def test_bills_whose_days_overlap_are_refused_by_name(table: Desk) -> None:
    table.land(from_the_17th(table, month=2, name="february.csv"))
    before = table.current()
    with pytest.raises(Conflict, match=r"its bill for 2025-03 and the one for 2025-02-17 to 2025-03-16 \(february.csv\) both hold 2025-03-01 to 2025-03-16"):
        table.land(AZURE / "cost_details.csv", now=LATER)
    assert table.current() == before
    landing = table.land(AZURE / "cost_details.csv", now=LATER, replace=True)
    assert sum(charge.billed_cost for charge, _ in table.current()) == sum(landing.totals.values())
    # And the other way round.
    with pytest.raises(Conflict, match=r"its bill for 2025-02-17 to 2025-03-16 and the one for 2025-03 \(cost_details.csv\) both hold"):
        table.land(from_the_17th(table, month=2, name="once-more.csv"), now=LATER)


def test_a_month_that_a_bill_no_longer_touches_goes_with_it(table: Desk) -> None:
    mine = TOKENS | {"billingPeriodStartDate": "02/17/2025", "billingPeriodEndDate": "03/16/2025"}
    table.rows(mine, mine | {"date": "02/20/2025"})
    assert len(table.current()) == 2
    table.rows(mine, now=LATER, replace=True)
    assert [part.period_start for part in table.parts() if part.superseded_at is None] == [date(2025, 3, 1)]
    assert len(table.current()) == 1


def test_currencies_of_one_part_stay_apart(table: Desk) -> None:
    landing = table.rows(TOKENS, TOKENS | {"billingCurrency": "EUR", "costInBillingCurrency": "0.02"})
    assert landing.totals == {"USD": Decimal("0.03"), "EUR": Decimal("0.02")}
    assert len(landing.parts) == 1
    assert len(table.days()) == 2


def test_the_latest_dated_rate_is_used_and_others_are_told(table: Desk) -> None:
    euro = TOKENS | {"billingCurrency": "EUR"}
    landing = table.rows(
        euro | {"exchangeRatePricingToBilling": "0.93", "exchangeRateDate": "03/02/2025"},
        euro | {"exchangeRatePricingToBilling": "0.9200", "exchangeRateDate": "03/01/2025"},
    )
    assert table.parts()[0].exchange_rates == {"USD>EUR": "0.93"}
    assert [(one["kind"], one["subject"], one["count"]) for one in landing.problems] == [("several_rates", "USD>EUR", 1)]


class Crash(Exception):
    """The process ends here."""


def test_a_crash_before_the_flip_shows_nothing_and_is_cleaned_up_at_the_next_landing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> datetime:
        # A killed process removes nothing.
        monkeypatch.setattr("collector.billing.landing._remove", lambda *_: None)
        raise Crash

    desk.rows(TOKENS)
    with pytest.raises(Crash):
        desk.land(AZURE / "cost_details.csv", now=crash)
    monkeypatch.undo()
    assert desk.counts()[:2] == (3, 70)
    assert [part.landed_at for part in desk.parts()] == [NOW, None, None]
    assert sums(desk.current(), by_class) == {("marketplace", "USD"): Decimal("0.03")}

    desk.rows(TOKENS, TOKENS, now=LATER)

    assert desk.counts() == (2, 3, 2)


def test_a_failure_removes_what_it_staged(desk: Desk) -> None:
    def fail() -> datetime:
        raise Crash

    with pytest.raises(Crash):
        desk.land(AZURE / "cost_details.csv", now=fail)
    assert desk.counts() == (0, 0, 0)


def test_a_landing_under_way_is_no_leftover(desk: Desk) -> None:
    other = desk.file(as_csv([TOKENS | {"SubscriptionId": B}]), "other.csv")
    ours = desk.file(as_csv([TOKENS] * 3), "ours.csv")
    seen: list[Landing] = []

    def someone_else_lands(_: int, __: int | None) -> None:
        seen.append(desk.land(other))

    landing = land(desk.store, read_bill(ours, name="ours.csv"), now=LATER, author="ana", progress=someone_else_lands)

    assert (seen[0].rows, landing.rows) == (1, 3)
    assert desk.counts()[:2] == (2, 4)


def test_of_two_landings_at_once_one_is_current(desk: Desk) -> None:
    files = [desk.file(as_csv([TOKENS | {"costInBillingCurrency": cost}]), f"{cost}.csv") for cost in ("10", "11")]
    ready = threading.Barrier(2)
    faults: list[BaseException] = []

    def instant() -> datetime:
        return NOW

    def one(path: Path) -> None:
        try:
            bill = read_bill(path, name=path.name)
            ready.wait(30)
            land(desk.store, bill, now=instant, author="ana")
        except BaseException as fault:  # noqa: BLE001 -- told by the assertion below
            faults.append(fault)

    threads = [threading.Thread(target=one, args=(path,)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert faults == []
    assert sorted(part.superseded_at is None for part in desk.parts()) == [False, True]
    assert all(part.landed_at == NOW for part in desk.parts())


def test_a_part_is_never_landed_before_what_it_replaces(table: Desk) -> None:
    table.rows(TOKENS, now=LATER)
    table.rows(TOKENS, TOKENS, now=NOW)
    assert [(part.landed_at, part.superseded_at) for part in table.parts()] == [(LATER, LATER), (LATER, None)]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)))
def test_rows_in_any_order_land_to_the_same_days(table: Desk, order: list[int]) -> None:
    rows = [
        TOKENS
        | {
            "costInBillingCurrency": f"0.{index}1",
            "quantity": "" if index == 7 else str(index),
            "date": f"03/0{index % 3 + 1}/2025",
            "tags": f'"n": "{index % 2}"',
        }
        for index in range(12)
    ]

    def days() -> set[Any]:
        return {
            (day.charged_on, item.digest, day.charge_type, day.currency, day.rows, day.quantity, day.billed_cost, day.effective_cost)
            for day, item in table.days()
        }

    table.rows(*rows, replace=True)
    expected = days()
    table.rows(*(rows[index] for index in order), replace=True)
    assert days() == expected
    assert len(expected) == 6
    assert {(rows, quantity) for _, _, _, _, rows, quantity, _, _ in expected if quantity is None} == {(2, None)}


def test_landing_tells_how_far_it_is(table: Desk) -> None:
    told: list[tuple[int, int | None]] = []
    bill = read_bill(table.file(as_csv([TOKENS] * 4500)), name="bill.csv")
    land(table.store, bill, now=NOW, author="ana", progress=lambda done, of: told.append((done, of)))
    assert told == [(2000, 4500), (4000, 4500), (4500, 4500)]
    # Packed lines cannot be counted without unpacking them; a line break in a cell makes it "at most".
    told.clear()
    packed = table.file(gzip.compress(as_csv([TOKENS | {"meterName": "other"}] * 3).encode()))
    land(table.store, read_bill(packed, name="bill.csv.gz"), now=NOW, author="ana", replace=True, progress=lambda done, of: told.append((done, of)))
    broken = table.file(as_csv([TOKENS | {"product": "two\nlines"}] * 3))
    land(table.store, read_bill(broken, name="bill.csv"), now=NOW, author="ana", replace=True, progress=lambda done, of: told.append((done, of)))
    assert told == [(3, None), (3, 6)]


def test_the_disk_is_waited_for_once_at_the_flip(table: Desk) -> None:
    """Staged rows are invisible: the log is synced (2) with the commit that shows them, and not (1) with those before it."""
    synced: list[int] = []

    def committed(connection: sa.Connection) -> None:
        synced.append(int(quick(connection, "PRAGMA synchronous").fetchone()[0]))

    sa.event.listen(table.store._writer, "commit", committed)
    bill = read_bill(table.file(as_csv([TOKENS] * 4500)), name="bill.csv")
    land(table.store, bill, now=NOW, author="ana")
    sa.event.remove(table.store._writer, "commit", committed)
    assert synced[-1] == 2
    assert synced.count(1) >= 3
    with table.store.connection() as connection:
        assert quick(connection, "PRAGMA synchronous").fetchone()[0] == 2


def test_the_summary_says_what_happened_in_a_few_lines(table: Desk) -> None:
    table.land(AZURE / "cost_details.csv")
    assert table.land(AZURE / "cost_details_restated.csv", now=LATER).summary().splitlines() == [
        "cost_details_restated.csv: landed 72 rows of 2 subscriptions for 2025-03 (cost_details_mca)",
        "  billed 300.267139 EUR, 4235.33373971 USD; of it model spend 300.267139 EUR, 4235.30877971 USD",
        "  replaces 2 earlier parts, which stay readable as of then",
        "  rows that are not model spend (kept, never added): 1",
        "  rows of a meter that is not known (their money counts, their quantity is unknown): 1",
    ]


# -- what a row is for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "charge_class"),
    [
        ({}, ChargeClass.MARKETPLACE),
        ({"publisherType": "Azure"}, ChargeClass.MARKETPLACE),  # EA files contradict themselves about it
        ({"publisherName": "", "meterName": "", "ProductName": "Meta-Llama-3.1-8B-Instruct - p"}, ChargeClass.MARKETPLACE),
        ({"publisherName": "Fabrikam", "meterName": "seat", "ProductName": "Chat", "meterSubCategory": ""}, ChargeClass.OUT_OF_SCOPE),
        ({"publisherName": "LlamaIndex", "meterName": "seat", "ProductName": "LlamaCloud", "meterSubCategory": ""}, ChargeClass.OUT_OF_SCOPE),
        ({"publisherName": "Metabase", "meterName": "seat", "ProductName": "BI", "meterSubCategory": ""}, ChargeClass.OUT_OF_SCOPE),
        ({"chargeType": "Refund", "costInBillingCurrency": "-1"}, ChargeClass.MARKETPLACE),
        ({"chargeType": "Tax"}, ChargeClass.OUT_OF_SCOPE),
        ({"chargeType": "RoundingAdjustment", "ResourceId": ""}, ChargeClass.ADJUSTMENT),
    ],
)
def test_marketplace_rows(table: Desk, change: dict[str, str], charge_class: ChargeClass) -> None:
    (row,) = table.read(TOKENS | change)
    assert row.about.item.charge_class is charge_class


@pytest.mark.parametrize(
    ("change", "is_in_scope"),
    [
        ({}, True),
        ({"tags": ""}, True),
        ({"tags": '"AzureMLEndpoint": "ep", "AZUREMLDEPLOYMENT": "blue", "cluster": "gpu"'}, True),
        ({"tags": '{"azuremlcluster": "cpu"}'}, False),
        ({"tags": '{"ComputeInstance": "ana-notebook"}'}, False),
        ({"tags": "", "additionalInfo": '{"ServiceType": "Standard_NC24ads_A100_v4", "ClusterName": "train"}'}, False),
        ({"tags": "", "additionalInfo": '{"ServiceType": "Standard_NC24ads_A100_v4", "ComputeType": "AmlCompute"}'}, False),
        ({"tags": "", "additionalInfo": '{"ServiceType": "Standard_NC24ads_A100_v4", "ClusterName": ""}'}, True),
        ({"tags": "", "ResourceId": f"{WORKSPACE}/computes/train"}, False),
        ({"tags": "", "meterCategory": "Storage", "meterName": "LRS", "additionalInfo": "", "unitOfMeasure": "1 GB/Month"}, False),
        ({"ResourceId": f"/subscriptions/{A}/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm", "consumedService": "Microsoft.Compute"}, False),
    ],
)
def test_vm_hours_count_unless_they_are_a_clusters_or_an_instances(table: Desk, change: dict[str, str], is_in_scope: bool) -> None:
    (row,) = table.read(VM | change)
    assert row.about.item.charge_class is (ChargeClass.COMPUTE if is_in_scope else ChargeClass.OUT_OF_SCOPE)


def test_a_commitment_for_machine_learning_is_capacity_of_no_deployment(table: Desk) -> None:
    bought, unused, other = table.read(
        VM | {"chargeType": "Purchase", "reservationId": "r-1", "ResourceId": "", "tags": ""},
        VM | {"chargeType": "UnusedReservation", "reservationId": "r-1", "ResourceId": "", "tags": ""},
        VM | {"chargeType": "Purchase", "reservationId": "r-2", "ResourceId": "", "tags": "", "consumedService": "Microsoft.Compute"},
    )
    for row in (bought, unused):
        assert (row.about.item.charge_class, row.about.item.meter_kind, row.about.item.deployment) == (ChargeClass.COMPUTE, MeterKind.COMMITMENT, None)
    assert other.about.item.charge_class is ChargeClass.OUT_OF_SCOPE


def test_a_foundry_meter_belongs_to_its_account_and_deployment(table: Desk) -> None:
    foundry = TOKENS | {
        "ResourceId": f"/subscriptions/{A}/resourceGroups/RG-AI/providers/Microsoft.CognitiveServices/accounts/Aif-Contoso",
        "publisherType": "Microsoft",
        "publisherName": "Microsoft",
        "consumedService": "Microsoft.CognitiveServices",
        "meterCategory": "Foundry Models",
        "meterSubCategory": "",
        "meterName": "Llama 4 Maverick 17B cached Inp glbl Tokens",
        "ProductName": "Llama Models",
        "unitOfMeasure": "1M",
        "tags": '{"Deployment": "mav"}',
    }
    llama, gpt = table.read(foundry, foundry | {"meterName": "gpt 4o Inp glbl Tokens", "ProductName": "OpenAI"})
    assert (llama.about.item.charge_class, llama.about.item.meter_kind, llama.about.item.unit_size) == (
        ChargeClass.FOUNDRY,
        MeterKind.CACHED_INPUT,
        Decimal(1_000_000),
    )
    assert (llama.about.item.workspace, llama.about.item.deployment, llama.about.item.resource_group) == ("Aif-Contoso", "mav", "rg-ai")
    assert llama.about.item.model == "Llama-4-Maverick-17B-128E-Instruct-FP8"
    assert gpt.about.item.charge_class is ChargeClass.OUT_OF_SCOPE


@pytest.mark.parametrize(
    ("text", "kind", "is_fine_tuned"),
    [
        ("Offer - plan - paygo-inference-input-tokens", MeterKind.INPUT, False),
        ("paygo-inf-output-tokens", MeterKind.OUTPUT, False),
        ("paygo-finetuned-model-inference-input-tokens", MeterKind.INPUT, True),
        ("paygo-finetuned-model-inference-output-tokens", MeterKind.OUTPUT, True),
        ("paygo-finetuned-model-inference-hosting", MeterKind.HOSTING, True),
        ("paygo-finetuned-model-training-tokens", MeterKind.TRAINING, True),
        ("Llama 3.3 70B Inp glbl Tokens", MeterKind.INPUT, False),
        ("Llama 3.3 70B Outp DZone Tokens", MeterKind.OUTPUT, False),
        ("Llama 3.3 70B FT cchd Inp Tokens", MeterKind.CACHED_INPUT, True),
        ("", MeterKind.OTHER, False),
        ("Unassigned", MeterKind.OTHER, False),
    ],
)
def test_what_a_meter_counts(text: str, kind: MeterKind, is_fine_tuned: bool) -> None:
    assert meter_kind(text) == (kind, is_fine_tuned)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("Meta-Llama-3.1-405B-Instruct", "Meta-Llama-3.1-405B-Instruct"),
        ("Meta-Llama-3.1-8B-Instruct - plan - paygo-inference-input-tokens", "Meta-Llama-3.1-8B-Instruct"),
        ("Meta-Llama-3.1-8B", "Meta-Llama-3.1-8B"),
        ("meta-llama-3-1-405b-instruct-offer", "Meta-Llama-3.1-405B-Instruct"),
        ("Llama 3.3 70B Inp glbl Tokens", "Llama-3.3-70B-Instruct"),
        ("Llama Models - Llama 3.3 70B Outp glbl", "Llama-3.3-70B-Instruct"),
        ("Llama 3.2 11B Vision Inp Tokens", "Llama-3.2-11B-Vision-Instruct"),
        ("Llama 4 Maverick 17B Inp glbl Tokens", "Llama-4-Maverick-17B-128E-Instruct-FP8"),
        ("Llama-4-Scout-17B", "Llama-4-Scout-17B-16E-Instruct"),
        ("Llama-Guard-3-8B", "Llama-Guard-3-8B"),
        ("Standard LRS", None),
    ],
)
def test_the_model_that_a_text_names(text: str, model: str | None) -> None:
    assert model_from([text]) == model


def test_a_saas_resource_names_the_model_where_nothing_else_does() -> None:
    assert model_from([""], resource_name="meta-llama-3.1-8b-instruct-b09c2c3a-bc04-5f55-b4f4-4eaf1513cd1b") == "Meta-Llama-3.1-8B-Instruct"
    assert model_from([""], resource_name="our-llama-3-chat") is None
    assert model_key("Llama 3.3 70B Instruct") == model_key(str(model_from(["Llama 3.3 70B Inp glbl Tokens"])))


@pytest.mark.parametrize(
    ("text", "size", "noun"),
    [
        ("1K", 1000, ""),
        ("10K", 10_000, ""),
        ("1M", 1_000_000, ""),
        ("1", 1, ""),
        ("1000 Tokens", 1000, "token"),
        ("1K Tokens", 1000, "token"),
        ("per 1m tokens", 1_000_000, "token"),
        ("1,000 Tokens", 1000, "token"),
        ("Tokens", 1, "token"),
        ("1 Hour", 1, "hour"),
        ("100 Hours", 100, "hour"),
        ("1/Hour", 1, "hour"),
        ("Hours", 1, "hour"),
    ],
)
def test_units_are_known(text: str, size: int, noun: str) -> None:
    unit = unit_from(text)
    assert unit is not None
    assert (unit.size, unit.noun) == (Decimal(size), noun)


@pytest.mark.parametrize("text", ["", "1 GB/Month", "1 Month", "0 Tokens", "1 Page", "K-ish"])
def test_other_units_are_not(text: str) -> None:
    assert unit_from(text) is None


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({"PricingUnit": "Units", "x_PricingBlockSize": "1000"}, 1000),
        ({"PricingUnit": "Units", "x_PricingBlockSize": "1000", "x_PricingUnitDescription": "1K"}, 1000),
        ({"PricingUnit": "1K", "x_PricingBlockSize": "1000"}, 1000),
        ({"PricingUnit": "Units"}, None),  # 1K and 1M both read "Units"
        ({"PricingUnit": "1K", "x_PricingBlockSize": "1000000"}, None),  # it says two things
        ({"PricingUnit": "Tokens"}, 1),
        ({"PricingUnit": "Hours"}, None),  # tokens are not billed by the hour
    ],
)
def test_the_unit_of_a_focus_row(table: Desk, change: dict[str, str], size: int | None) -> None:
    (row,) = table.read(FOCUS_ROW | change)
    assert row.about.item.unit_size == size
    assert row.quantity == 100


def test_an_unknown_unit_keeps_the_money_and_is_told(table: Desk) -> None:
    landing = table.rows(TOKENS | {"unitOfMeasure": "1 Page"})
    ((day, item),) = table.days()
    assert (day.billed_cost, day.quantity, item.unit_size) == (Decimal("0.03"), Decimal(100), None)
    assert [(one["kind"], one["subject"], one["amount"]) for one in landing.problems] == [("unknown_unit", "1 Page", "0.03")]


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


# -- first sights ---------------------------------------------------------------------------------


def registry(store: Store) -> tuple[list[str], list[Any], list[Any]]:
    with store.read() as session:
        identities = sorted(session.exec(select(Workspace.name)))
        workspaces = [(one.workspace, one.kind, one.subscription_id, one.resource_group, one.source) for one in session.exec(select(WorkspaceFact))]
        deployments = [(one.workspace, one.name, one.mode, one.route, one.model, one.sku, one.source) for one in session.exec(select(DeploymentFact))]
    return identities, sorted(workspaces, key=str), sorted(deployments, key=str)


def test_workspaces_and_deployments_that_only_the_bill_knows_are_told_to_the_registry(desk: Desk) -> None:
    desk.land(AZURE / "cost_details_restated.csv")
    desk.land(FOCUS / "focus_export_part_0_0001.csv", FOCUS / "focus_export_part_1_0001.csv", now=LATER)  # lower-cased ids add nothing

    a100, nd96 = "Standard_NC24ads_A100_v4", "Standard_ND96amsr_A100_v4"
    assert registry(desk.store) == (
        ["aif-contoso", "proj-chatbot", "ws-llama-prod"],
        [
            ("aif-contoso", "foundry_account", A, "rg-ai-prod", "bill"),
            ("proj-chatbot", "workspace", A, "rg-ai-studio", "bill"),
            ("ws-llama-prod", "workspace", A, "rg-ai-prod", "bill"),
        ],
        [
            ("aif-contoso", "llama-33-70b", Mode.SERVERLESS, Route.FOUNDRY, "Llama-3.3-70B-Instruct", None, "bill"),
            ("proj-chatbot", "llama-70b-shared/default", Mode.MANAGED_COMPUTE, Route.COMPUTE, None, nd96, "bill"),
            ("ws-llama-prod", "llama-8b-managed/blue", Mode.MANAGED_COMPUTE, Route.COMPUTE, None, a100, "bill"),
            ("ws-llama-prod", "llama-8b-managed/green", Mode.MANAGED_COMPUTE, Route.COMPUTE, None, a100, "bill"),
        ],
    )


def test_one_name_where_endpoint_and_deployment_are_the_same(table: Desk) -> None:
    table.rows(VM | {"tags": '{"azuremlendpoint": "ep", "azuremldeployment": "ep"}'})
    assert [one[1] for one in registry(table.store)[2]] == ["ep"]


def test_what_inventory_knows_stays_and_what_usage_knows_gets_its_subscription(table: Desk) -> None:
    with table.store.write() as session:
        for name in ("WS-East", "ws-west"):
            factories.workspace(session, name)
        session.add(WorkspaceFact(workspace="WS-East", source="usage", known_from=NOW))
        session.add(WorkspaceFact(workspace="ws-west", source="inventory", subscription_id=B, known_from=NOW))
        session.add(DeploymentFact(workspace="ws-west", name="ep/blue", endpoint="ep", deployment="blue", source="inventory", known_from=NOW))
        session.add(DeploymentFact(workspace="WS-East", name="Ep/blue", endpoint="Ep", deployment="blue", source="usage", known_from=NOW))
    table.rows(VM, VM | {"ResourceId": WORKSPACE.replace("ws-east", "WS-WEST")})

    identities, workspaces, deployments = registry(table.store)
    assert identities == ["WS-East", "ws-west"]
    assert workspaces == [
        ("WS-East", "workspace", A, "rg-ai", "bill"),
        ("WS-East", "workspace", None, None, "usage"),
        ("ws-west", "workspace", B, None, "inventory"),
    ]
    assert [(workspace, name, source) for workspace, name, *_, source in deployments] == [
        ("WS-East", "Ep/blue", "bill"),
        ("WS-East", "Ep/blue", "usage"),
        ("ws-west", "ep/blue", "inventory"),
    ]


def test_every_text_of_a_row_has_a_place_in_both_schemas() -> None:
    from collector.billing.formats import _COST_DETAILS, _FOCUS

    assert set(Dimensions._fields) <= {*_COST_DETAILS, *_FOCUS}
