import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import col, select

from collector.pricing import PriceImport, PriceRow, ensure_bundled, import_prices, parse_prices, price_rows, store_prices
from models.columns import EPOCH
from models.errors import InvalidInput
from models.prices import Price, PriceBook, PriceMeter, UnitPrice, Unpriced
from models.store import Store

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
HEADER = "model,meter,unit_price,currency,unit,valid_from,valid_to,workspace,sku,region,source\n"
CONTRACT = (
    HEADER
    + "Llama-3.3-70B-Instruct,input_tokens,0.71,USD,1M tokens,,,,,,our contract\n"
    + "Llama-3.3-70B-Instruct,output_tokens,0.00071,USD,1K tokens,2026-01-01,2026-11-20T12:00:00+02:00,,,,our contract\n"
    + "Llama-3.3-70B-Instruct,output_tokens,0.65,eur,1M tokens,2026-11-20T10:00:00Z,,,,,our contract\n"
    + ",instance_hours,3.673,USD,1 hour,,,,Standard_NC24ads_A100_v4,eastus2,our contract\n"
)


def imported(store: Store, content: str | bytes, *, now: datetime = NOW, replace: bool = False, name: str = "prices.csv") -> PriceImport:
    with store.write() as session:
        return import_prices(session, content.encode() if isinstance(content, str) else content, name=name, now=now, author="ana", replace=replace)


def rows(store: Store, *, as_of: datetime | None = None) -> list[Price]:
    with store.read() as session:
        return price_rows(session, as_of=as_of)


def price(store: Store, at: datetime, *, meter: str = "input_tokens", as_of: datetime | None = None, **asked: str) -> UnitPrice | Unpriced:
    return PriceBook(rows(store, as_of=as_of)).price(meter=PriceMeter(meter), at=at, **{"model": "Llama-3.3-70B-Instruct", **asked})


def per_unit(found: UnitPrice | Unpriced) -> Decimal:
    assert isinstance(found, UnitPrice)
    return found.per_unit


def refusal(content: str | bytes, *, name: str = "prices.csv") -> str:
    with pytest.raises(InvalidInput) as refused:
        parse_prices(content.encode() if isinstance(content, str) else content, name=name)
    return refused.value.message


def line(**fields: str) -> str:
    row = {"model": "m", "meter": "input_tokens", "unit_price": "1", "currency": "USD", "unit": "1M tokens", **fields}
    return ",".join(row.get(column, "") for column in HEADER.strip().split(",")) + "\n"


# -- the file -----------------------------------------------------------------------------------


def test_a_price_file_is_kept_as_it_says(store: Store) -> None:
    result = imported(store, CONTRACT)
    assert (result.added, result.unchanged, result.superseded, result.ended) == (4, 0, 0, 0)
    assert result.version.startswith("2026-11-20-")
    assert len(result.version) == len("2026-11-20-") + 8
    assert result.summary() == f"prices: 4 added, 0 unchanged (version {result.version})"
    assert [(row.unit_price, row.currency, row.unit, row.valid_from, row.valid_to) for row in rows(store)] == [
        (Decimal("0.71"), "USD", "1M tokens", None, None),
        (Decimal("0.00071"), "USD", "1K tokens", datetime(2026, 1, 1, tzinfo=UTC), NOW),
        (Decimal("0.65"), "EUR", "1M tokens", NOW, None),
        (Decimal("3.673"), "USD", "1 hour", None, None),
    ]
    assert {(row.origin, row.source, row.version, row.author, row.known_from) for row in rows(store)} == {
        ("imported", "our contract", result.version, "ana", NOW)
    }
    # Half-open: the old output price until 10:00 UTC, the new one from then on.
    assert per_unit(price(store, NOW - timedelta(microseconds=1), meter="output_tokens")) == Decimal("0.00000071")
    assert per_unit(price(store, NOW, meter="output_tokens")) == Decimal("0.00000065")


def test_json_has_the_same_names_and_keeps_every_digit(sqlite_store: Store) -> None:
    content = '{"prices": [{"model": "m", "meter": "input_tokens", "unit_price": 0.1000000000000000000000000000000000000001, "currency": "USD", "unit": "1M tokens"}]}'
    imported(sqlite_store, content, name="prices.json")
    assert [row.unit_price for row in rows(sqlite_store)] == [Decimal("0.1000000000000000000000000000000000000001")]
    listed = json.dumps(
        [
            {
                "model": "m",
                "meter": "input_tokens",
                "unit_price": "0.1000000000000000000000000000000000000001",
                "currency": "USD",
                "unit": "1M tokens",
                "sku": None,
            }
        ]
    )
    assert imported(sqlite_store, listed, name="prices.txt", now=LATER).unchanged == 1


def test_a_byte_order_mark_spaces_and_blank_lines_do_not_matter() -> None:
    (row,) = parse_prices(b"\xef\xbb\xbfModel , METER,unit_price,currency,unit\r\n\r\n m , input_tokens,1.5,usd,1M tokens\r\n", name="p.csv")
    assert row == PriceRow(meter=PriceMeter.INPUT_TOKENS, unit_price=Decimal("1.5"), currency="USD", unit="1M tokens", model="m")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"meter": "tokens"},
            "meter is 'tokens'; it must be one of input_tokens, output_tokens, cached_input_tokens, hosting_hours, training_tokens, instance_hours",
        ),
        ({"meter": ""}, "meter is empty"),
        ({"unit": "1 hour"}, "unit is '1 hour'; it must be one of 1M tokens, 1K tokens"),
        ({"unit": "1m tokens"}, "unit is '1m tokens'"),
        ({"meter": "hosting_hours"}, "unit is '1M tokens'; it must be one of 1 hour"),
        ({"meter": "instance_hours", "unit": "1 hour"}, "instance_hours needs the sku"),
        ({"unit_price": "-0.01"}, "unit_price is negative"),
        ({"unit_price": "1.000.00"}, "unit_price is not a decimal number"),
        ({"unit_price": "NaN"}, "unit_price is not a decimal number"),
        ({"unit_price": ""}, "unit_price is not a decimal number"),
        ({"currency": "$"}, "currency is not a three-letter currency code"),
        ({"valid_from": "2026-11-20T10:30:00Z"}, "valid_from (2026-11-20T10:30:00Z) is not on a whole UTC hour"),
        ({"valid_from": "2026-11-20T10:00:00+05:30"}, "valid_from (2026-11-20T04:30:00Z) is not on a whole UTC hour"),
        ({"valid_to": "2026-11-20T23:59:59Z"}, "valid_to (2026-11-20T23:59:59Z) is not on a whole UTC hour"),
        ({"valid_from": "2026-11-20T10:00:00"}, "valid_from is not an RFC 3339 time with an offset"),
        ({"valid_from": "November"}, "valid_from is not an RFC 3339 time"),
        ({"valid_from": "2026-02-29"}, "valid_from is not a date that exists"),
        ({"valid_from": "2026-02-01", "valid_to": "2026-02-01"}, "valid_to (2026-02-01T00:00:00Z) is not after valid_from"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(fields: dict[str, str], says: str) -> None:
    message = refusal(HEADER + line(model="fine") + line(**fields))
    assert message.startswith("prices.csv line 3: ")
    assert says in message
    assert "Nothing was imported" in message


def test_everything_wrong_is_said_at_once_up_to_twenty() -> None:
    message = refusal(HEADER + line(unit_price="x", currency="y") + line(meter="z"))
    assert message.count("prices.csv line 2: ") == 2
    assert "prices.csv line 3: meter is 'z'" in message
    many = refusal(HEADER + line(meter="z") * 23)
    assert many.count("meter is 'z'") == 20
    assert "and 3 more" in many


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "prices.csv is empty"),
        (HEADER, "has no prices in it"),
        ("model,price\n", "there is no column 'price'"),
        ("model,meter,unit_price,currency\n", "unit is missing"),
        ("model,model,meter,unit_price,currency,unit\n", "the header names model twice"),
        ("model;meter;unit_price;currency;unit\n", "separated by semicolons"),
        (HEADER + "m,input_tokens\n", "prices.csv line 2: has 2 fields where the header has 11"),
        (HEADER + '"m,input_tokens\n', "this is not CSV"),
        (b"\xff\xfem\x00", "is not UTF-8 text"),
        (b"m\x00o\x00", "NUL characters"),
        ("[1]", "prices.csv item 1: is not an object"),
        ("[]", "has no prices in it"),
        ("{", "is not JSON"),
        ('[{"model": "m", "price": 1}]', "there is no column 'price'"),
        ('[{"unit_price": 1, "unit_price": 2}]', "says 'unit_price' twice"),
        ('[{"unit_price": NaN}]', "NaN is not a number"),
        ('[{"model": true, "meter": "input_tokens", "unit_price": 1, "currency": "USD", "unit": "1M tokens"}]', "model is true or false"),
        ('[{"model": ["m"], "meter": "input_tokens", "unit_price": 1, "currency": "USD", "unit": "1M tokens"}]', "model is not text or a number"),
        ('[{"model": "\\ud800", "meter": "input_tokens", "unit_price": 1, "currency": "USD", "unit": "1M tokens"}]', "model is not valid Unicode"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_is_no_price_list_is_refused(content: str | bytes, says: str) -> None:
    assert says in refusal(content)


def test_nothing_of_a_refused_file_is_kept(store: Store) -> None:
    with pytest.raises(InvalidInput):
        imported(store, HEADER + line() + line(meter="z"), replace=True)
    assert rows(store) == []


@pytest.mark.parametrize(
    ("other", "is_refused"),
    [
        ({}, True),
        ({"model": "M"}, True),  # one model in two spellings
        ({"currency": "EUR", "unit_price": "2"}, True),
        ({"valid_from": "2026-05-31"}, True),
        ({"valid_from": "2026-06-01"}, False),
        ({"valid_to": "2026-01-01"}, False),
        ({"valid_to": "2026-01-01T01:00:00Z"}, True),
        ({"workspace": "ws"}, False),
        ({"sku": "Standard_NC6s_v3"}, False),
        ({"region": "eastus2"}, False),
        ({"meter": "output_tokens"}, False),
        ({"model": ""}, False),
    ],
)
def test_two_prices_of_the_same_thing_at_the_same_time_are_refused(other: dict[str, str], is_refused: bool) -> None:
    content = HEADER + line(model="m", valid_from="2026-01-01", valid_to="2026-06-01") + line(**other)
    if is_refused:
        message = refusal(content)
        assert "prices the same thing as" in message
        assert "prices.csv line 2" in message
        assert "prices.csv line 3" in message
    else:
        assert len(parse_prices(content.encode(), name="prices.csv")) == 2


# -- over time ----------------------------------------------------------------------------------


def test_the_same_file_again_changes_nothing(store: Store) -> None:
    first = imported(store, CONTRACT)
    before = [row.model_dump() for row in rows(store)]
    again = imported(store, CONTRACT, now=LATER)
    assert (again.added, again.unchanged, again.superseded) == (0, 4, 0)
    assert imported(store, CONTRACT, now=LATER, replace=True).unchanged == 4
    assert [row.model_dump() for row in rows(store)] == before
    assert {row.version for row in rows(store)} == {first.version}


def test_a_later_import_supersedes_from_its_arrival(store: Store) -> None:
    imported(store, CONTRACT)
    result = imported(store, HEADER + line(model="llama-3-3-70b-instruct", unit_price="0.50", valid_from="2026-11-01"), now=LATER)
    assert (result.added, result.superseded, result.ended) == (1, 1, 0)
    november, october = datetime(2026, 11, 5, tzinfo=UTC), datetime(2026, 10, 31, 23, tzinfo=UTC)
    assert per_unit(price(store, november)) == Decimal("0.0000005")
    assert per_unit(price(store, november, as_of=NOW)) == Decimal("0.00000071")
    assert per_unit(price(store, october)) == Decimal("0.00000071")  # the earlier row stays where the later says nothing


def test_a_price_that_was_overruled_can_be_said_again(store: Store) -> None:
    first = HEADER + line(model="Llama-3.3-70B-Instruct", unit_price="1")
    imported(store, first)
    imported(store, HEADER + line(model="Llama-3.3-70B-Instruct", unit_price="2"), now=LATER)
    assert imported(store, first, now=LATER + timedelta(days=1)).added == 1
    assert per_unit(price(store, NOW)) == Decimal("0.000001")


def test_another_source_is_another_price_row(sqlite_store: Store) -> None:
    imported(sqlite_store, HEADER + line(source="offer of May"))
    assert imported(sqlite_store, HEADER + line(source="offer of June"), now=LATER).added == 1


def test_replace_ends_what_the_file_does_not_repeat(store: Store) -> None:
    imported(store, CONTRACT)
    result = imported(store, HEADER + line(model="Llama-3.3-70B-Instruct", unit_price="0.71", source="our contract"), now=LATER, replace=True)
    assert (result.added, result.unchanged, result.superseded, result.ended) == (0, 1, 0, 3)
    assert [row.meter for row in rows(store)] == [PriceMeter.INPUT_TOKENS]
    assert len(rows(store, as_of=NOW)) == 4
    assert isinstance(price(store, NOW, meter="output_tokens"), Unpriced)


def test_replace_leaves_other_sources(store: Store) -> None:
    with store.write() as session:
        ensure_bundled(session, now=NOW)
        row = PriceRow(meter=PriceMeter.INPUT_TOKENS, unit_price=Decimal("0.7"), currency="USD", unit="1M tokens", model="Llama-3.3-70B-Instruct")
        store_prices(session, [row], origin="synced", version="retail", now=NOW, author="sync")
    imported(store, CONTRACT, replace=True)
    assert per_unit(price(store, NOW)) == Decimal("0.00000071")
    imported(store, HEADER + line(model="something-else"), now=LATER, replace=True)
    assert per_unit(price(store, NOW)) == Decimal("0.0000007")
    assert {row.origin for row in rows(store)} == {"bundled", "synced", "imported"}


# -- the bundled list ---------------------------------------------------------------------------


def test_the_bundled_list_prices_a_fresh_database_for_any_time(store: Store) -> None:
    with store.write() as session:
        assert ensure_bundled(session, now=NOW) == 21
        assert ensure_bundled(session, now=LATER) == 0
    assert {(row.origin, row.known_from) for row in rows(store)} == {("bundled", EPOCH)}
    assert all("2026-11-20" in row.source for row in rows(store))
    long_ago = datetime(2025, 3, 1, tzinfo=UTC)
    assert len(rows(store, as_of=long_ago)) == 21
    expected = {
        ("Meta-Llama-3.1-8B-Instruct", "input_tokens"): "0.0000003",
        ("Meta-Llama-3.1-8B-Instruct", "output_tokens"): "0.00000061",
        ("Meta-Llama-3.1-70B-Instruct", "output_tokens"): "0.00000354",
        ("Meta-Llama-3.1-405B-Instruct", "output_tokens"): "0.000016",
        ("Llama-3.2-11B-Vision-Instruct", "input_tokens"): "0.00000037",
        ("Llama-3.2-90B-Vision-Instruct", "output_tokens"): "0.00000204",
        ("Llama-3.3-70B-Instruct", "output_tokens"): "0.00000071",
        ("Llama-4-Scout-17B-16E-Instruct", "output_tokens"): "0.00000078",
        ("azureml://registries/azureml-meta/models/Llama-4-Maverick-17B-128E-Instruct-FP8/versions/1", "output_tokens"): "0.000001",
    }
    for (model, meter), value in expected.items():
        assert per_unit(price(store, long_ago, model=model, meter=meter)) == Decimal(value), model
    assert isinstance(price(store, long_ago, model="Meta-Llama-3-70B-Instruct"), Unpriced)
    assert per_unit(price(store, long_ago, meter="instance_hours", sku="STANDARD_NC24ADS_A100_V4")) == Decimal("3.673")
    assert per_unit(price(store, long_ago, meter="instance_hours", sku="Standard_NC96ads_A100_v4")) == Decimal("14.692")


def test_figures_that_are_only_remembered_say_so(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        ensure_bundled(session, now=NOW)
    assert {row.sku for row in rows(sqlite_store) if row.source.startswith("placeholder")} == {
        "Standard_NC48ads_A100_v4",
        "Standard_NC96ads_A100_v4",
        "Standard_ND96amsr_A100_v4",
        "Standard_NC6s_v3",
    }


def test_a_newer_bundled_list_takes_over_from_its_arrival(store: Store) -> None:
    with store.write() as session:
        ensure_bundled(session, now=NOW)
        for row in session.exec(select(Price)):
            row.version, row.unit_price = "2026-01-01-00000000", Decimal(9)
    with store.write() as session:
        assert ensure_bundled(session, now=LATER) == 21
    assert per_unit(price(store, NOW)) == Decimal("0.00000071")
    assert per_unit(price(store, NOW, as_of=NOW)) == Decimal("0.000009")
    with store.read() as session:
        assert {(row.known_from, row.known_to) for row in session.exec(select(Price).order_by(col(Price.id)))} == {(EPOCH, LATER), (LATER, None)}


def test_processes_that_start_together_load_it_once(store: Store) -> None:
    def start(_: int) -> int:
        with store.write() as session:
            return ensure_bundled(session, now=NOW)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(start, range(4))) == [0, 0, 0, 21]
    assert len(rows(store)) == 21


def test_imports_at_the_same_time_do_not_miss_each_other(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: imported(store, CONTRACT), range(4)))
    assert sorted(one.added for one in done) == [0, 0, 0, 4]


def test_a_users_price_wins_over_the_bundled_one(sqlite_store: Store) -> None:
    imported(sqlite_store, CONTRACT)
    with sqlite_store.write() as session:
        ensure_bundled(session, now=LATER)
    found: Any = price(sqlite_store, LATER)
    assert (found.row.origin, found.row.source) == ("imported", "our contract")
