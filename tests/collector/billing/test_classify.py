"""What a row of a bill is for: its class, its meter, its model and its unit."""

from __future__ import annotations

from decimal import Decimal

import pytest

from collector.billing.classify import meter_kind, model_from
from models.charges import ChargeClass, MeterKind
from models.meters import unit_from
from models.prices import model_key
from tests.collector.billing.desk import FOCUS_ROW, TOKENS, VM, WORKSPACE, A, Desk


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
