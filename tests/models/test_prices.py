from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.prices import Price, PriceBook, PriceMeter, UnitPrice, Unpriced, in_one, model_key, model_name

AT = datetime(2026, 11, 20, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)


def row(unit_price: str, **fields: Any) -> Price:
    values = {"model": "m", "meter": PriceMeter.INPUT_TOKENS, "currency": "USD", "unit": "1M tokens", "origin": "imported", "version": "v", "known_from": AT}
    return Price(**{**values, "unit_price": Decimal(unit_price), **fields})


def chosen(*rows: Price, **asked: Any) -> UnitPrice | Unpriced:
    return PriceBook(rows).price(**{"meter": PriceMeter.INPUT_TOKENS, "at": AT, "model": "m", **asked})


def figure(*rows: Price, **asked: Any) -> Decimal | None:
    found = chosen(*rows, **asked)
    return found.row.unit_price if isinstance(found, UnitPrice) else None


# -- names of models ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "Meta-Llama-3.1-8B-Instruct",
        "meta-llama-3-1-8b-instruct",
        "Llama-3.1-8B-Instruct",
        " llama 3.1 8b instruct ",
        "Meta_Llama_3_1_8B_Instruct",
        "azureml://registries/azureml-meta/models/Meta-Llama-3.1-8B-Instruct",
        "azureml://registries/azureml-meta/models/Meta-Llama-3.1-8B-Instruct/versions/4",
        "AzureML://Registries/azureml-meta/Models/Meta-Llama-3.1-8B-Instruct/labels/latest",
        "azureml://locations/eastus2/workspaces/2f1a/models/Meta-Llama-3.1-8B-Instruct/versions/1",
        "azureml:Meta-Llama-3.1-8B-Instruct:4",
        "azureml:Meta-Llama-3.1-8B-Instruct@latest",
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/models/Meta-Llama-3.1-8B-Instruct/versions/1",
        "azureml:/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/models/Llama-3.1-8B-Instruct/versions/1",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B-Instruct",
        "azure_ai/Meta-Llama-3.1-8B-Instruct",
    ],
)
def test_spellings_of_one_model_share_a_key(spelling: str) -> None:
    assert model_key(spelling) == "llama-3-1-8b-instruct"


def test_different_models_keep_different_keys() -> None:
    models = [
        "Meta-Llama-3-8B-Instruct",
        "Meta-Llama-3-70B-Instruct",
        "Meta-Llama-3.1-8B",
        "Meta-Llama-3.1-8B-Instruct",
        "Meta-Llama-3.1-8B-Instruct-FP8",
        "Meta-Llama-3.1-70B-Instruct",
        "Meta-Llama-3.1-405B-Instruct",
        "Llama-3.2-1B-Instruct",
        "Llama-3.2-11B-Vision-Instruct",
        "Llama-3.2-90B-Vision-Instruct",
        "Llama-3.3-70B-Instruct",
        "Llama-4-Scout-17B-16E-Instruct",
        "Llama-4-Maverick-17B-128E-Instruct",
        "Llama-4-Maverick-17B-128E-Instruct-FP8",
        "Llama-Guard-3-8B",
        "Prompt-Guard-86M",
        "someone-else/Llama-3.1-8B-Instruct",
        "/mnt/models/ours/llama-8b",
        "/mnt/models/ours/llama-70b",
    ]
    assert len({model_key(model) for model in models}) == len(models)


def test_a_model_keeps_its_name_but_for_the_wrapping() -> None:
    assert model_name("azureml://registries/azureml-meta/models/Llama-4-Maverick-17B-128E-Instruct-FP8/versions/2") == "Llama-4-Maverick-17B-128E-Instruct-FP8"
    assert model_name("Meta-Llama-3.1-8B-Instruct") == "Meta-Llama-3.1-8B-Instruct"
    assert model_key("") == ""


# -- which price --------------------------------------------------------------------------------


def test_a_price_is_per_single_token_or_hour_and_exact() -> None:
    found = chosen(row("0.71"))
    assert isinstance(found, UnitPrice)
    assert (found.per_unit, found.currency) == (Decimal("0.00000071"), "USD")
    thousand = chosen(row("0.00071", unit="1K tokens"))
    assert isinstance(thousand, UnitPrice)
    assert thousand.per_unit == found.per_unit
    hours = chosen(
        row("3.673", model="", meter=PriceMeter.INSTANCE_HOURS, unit="1 hour", sku="Standard_NC24ads_A100_v4"),
        meter=PriceMeter.INSTANCE_HOURS,
        model=None,
        sku="STANDARD_NC24ADS_A100_V4",
    )
    assert isinstance(hours, UnitPrice)
    assert hours.per_unit == Decimal("3.673")


def test_a_price_that_is_missing_on_many_days_is_missing_once() -> None:
    hours = [f"no instance_hours price for Standard_NC24ads_A100_v4 at 2026-11-{day:02}; add one with: meterbridge import prices FILE" for day in (3, 1, 2, 3)]
    tokens = "no input_tokens price for llama at 2026-11-02; add one with: meterbridge import prices FILE"
    assert in_one([*hours, tokens, "nobody said"]) == (
        "no input_tokens price for llama at 2026-11-02; add one with: meterbridge import prices FILE; "
        "no instance_hours price for Standard_NC24ads_A100_v4 on 3 days (2026-11-01 to 2026-11-03); add one with: meterbridge import prices FILE; "
        "nobody said"
    )
    assert in_one([]) == ""


def test_no_price_is_said_in_words() -> None:
    found = chosen(row("1"), model="another")
    assert found == Unpriced("no input_tokens price for another at 2026-11-20; add one with: meterbridge import prices FILE")
    assert isinstance(chosen(row("1"), meter=PriceMeter.OUTPUT_TOKENS), Unpriced)
    assert isinstance(chosen(row("1"), model=None), Unpriced)
    assert figure(row("1", model=""), model=None) == 1


def test_validity_includes_its_start_and_excludes_its_end() -> None:
    rows = row("1", valid_to=AT), row("2", valid_from=AT, valid_to=AT + HOUR)
    assert figure(*rows, at=AT - timedelta(microseconds=1)) == 1
    assert figure(*rows, at=AT) == 2
    assert figure(*rows, at=AT + HOUR) is None


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (row("1", origin="synced", workspace="ws", sku="s", region="r"), row("2", origin="imported", model="")),
        (row("1", origin="bundled", known_from=AT + HOUR), row("2", origin="synced", known_from=AT)),
        (row("1", sku="s", region="r"), row("2", workspace="ws")),
        (row("1", region="r"), row("2", sku="S")),
        (row("1"), row("2", region="R")),
        (row("1", model=""), row("2")),
        (row("1", known_from=AT), row("2", known_from=AT + HOUR)),
        (row("1", id=1), row("2", id=2)),
        (row("1", known_from=AT + HOUR), row("2", known_from=AT, workspace="ws")),
    ],
)
def test_imported_over_synced_over_bundled_then_the_specific_then_the_later(worse: Price, better: Price) -> None:
    asked = {"workspace": "ws", "sku": "s", "region": "r"}
    assert figure(worse, better, **asked) == figure(better, worse, **asked) == 2


def test_a_row_that_names_something_applies_to_nothing_else() -> None:
    assert figure(row("1", workspace="ws")) is None
    assert figure(row("1", workspace="ws"), workspace="WS") is None  # names are byte for byte
    assert figure(row("1", sku="s"), sku="t") is None
    assert figure(row("1", region="eastus"), region="eastus2") is None


def test_changes_are_the_bounds_of_the_prices_that_could_apply() -> None:
    book = PriceBook([row("1", valid_to=AT), row("2", valid_from=AT, workspace="other"), row("3", model="n", valid_from=AT + HOUR)])
    assert book.changes(meters=[PriceMeter.INPUT_TOKENS], model="m", workspace="ws") == {AT}
    assert book.changes(meters=[PriceMeter.OUTPUT_TOKENS], model="m", workspace="ws") == set()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["imported", "synced", "bundled"]),
            st.sampled_from(["", "ws"]),
            st.sampled_from(["", "r"]),
            st.integers(0, 3),
            st.none() | st.integers(-2, 2),
        ),
        max_size=8,
    ),
    st.randoms(),
)
def test_the_order_of_the_rows_does_not_matter(drawn: list[tuple[str, str, str, int, int | None]], random: Any) -> None:
    rows = [
        row(
            str(number),
            id=number,
            origin=origin,
            workspace=workspace,
            region=region,
            known_from=AT + arrival * HOUR,
            valid_from=None if start is None else AT + start * HOUR,
        )
        for number, (origin, workspace, region, arrival, start) in enumerate(drawn, start=1)
    ]
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert figure(*rows, workspace="ws", region="r") == figure(*shuffled, workspace="ws", region="r")
