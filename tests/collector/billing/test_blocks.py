"""Large bills are read in blocks; what they say, and what is refused of them, is what a plain reader makes of the same bytes."""

from __future__ import annotations

import csv
import io
import os
import random
from pathlib import Path

import pytest

from collector.billing import formats
from collector.billing.blocks import UnreadableInBlocks, blocks
from collector.billing.formats import BillRow, read_bill
from models.errors import InvalidInput

DATA = Path(__file__).parents[2] / "data"
AZURE = DATA / "azure"
SEEDS = int(os.environ.get("METERBRIDGE_TEST_SEEDS", "1"))
FILES = [
    AZURE / "cost_details.csv",
    AZURE / "cost_details_restated.csv",
    AZURE / "cost_details_ea.csv",
    DATA / "focus" / "focus_export_part_0_0001.csv",
    DATA / "focus" / "azure_focus_1_2_preview_export.csv",
]


def in_blocks(text: bytes, *, width: int) -> list[tuple[str, ...]]:
    """All that the blocks say, until their end or the first thing they are not sure of."""
    found: list[tuple[str, ...]] = []
    try:
        for columns in blocks(io.BytesIO(text), width=width, places=range(width)):
            found.extend(zip(*(columns[place].to_pylist() for place in range(width)), strict=True))
    except UnreadableInBlocks:
        return [*found, ()]
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
def test_blocks_say_what_a_strict_reader_says_or_leave_it_to_it(seed: int) -> None:
    """Of 3,000 small files made of little else than quotes, commas and line ends."""
    chance = random.Random(seed)
    certain = 0
    for _ in range(3_000):
        body = "".join(chance.choice('"",,\n\rab ') for _ in range(chance.randrange(1, 14)))
        text = chance.choice(["\ufeff", ""]) + "x,y\n" + body
        said = in_blocks(text.encode(), width=2)
        try:
            plain = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True))[1:]
        except csv.Error:
            plain = [[]]
        if said[-1:] == [()]:
            continue
        assert [list(row) for row in said] == [row or ["", ""] for row in plain], text
        certain += 1
    assert certain > 100


@pytest.mark.parametrize("text", ['a,"b"c\n', 'a,b"c\n', '"" "",b\n', 'a,"b\n', "a,b,c\n", 'a,"{"k":"v"}"\n'])
def test_what_a_strict_reader_may_see_otherwise_is_left_to_it(text: str) -> None:
    assert in_blocks(f"x,y\n{text}".encode(), width=2)[-1] == ()


def plainly(rows: list[BillRow]) -> list[tuple[object, ...]]:
    """The rows as values, what they share included."""
    about = [tuple(getattr(row.about, name) for name in row.about.__slots__) for row in rows]
    return [(*row[:1], *shared, row.about.item.digest, *row[2:]) for row, shared in zip(rows, about, strict=True)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_reads_the_same_in_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = plainly(list(read_bill(path, name=path.name).rows()))
    monkeypatch.setattr(formats, "_LARGE", 0)
    # Without this a reader that gives up at once would pass.
    monkeypatch.setattr(formats._Rows, "_of_records", None)
    assert plainly(list(read_bill(path, name=path.name).rows())) == one_by_one


@pytest.mark.parametrize(
    ("column", "text", "told"),
    [
        ("date", "03/99/2025", "row 42, column date is not a date"),
        ("quantity", "1,5", "row 42, column quantity"),
        ("costInBillingCurrency", "", "row 42, column costInBillingCurrency"),
        ("effectivePrice", "NaN", "row 42, column effectivePrice"),
        ("billingCurrency", "Euro", "row 42, column billingCurrency"),
        ("chargeType", "", "row 42, column chargeType is empty"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, text: str, told: str) -> None:
    monkeypatch.setattr(formats, "_LARGE", 0)
    with (AZURE / "cost_details.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[40][column] = text
    rows[60]["date"] = "a later fault, of an earlier column"
    path = tmp_path / "bill.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InvalidInput, match=told):
        list(read_bill(path, name="bill.csv").rows())


def test_numbers_in_other_writings_and_texts_that_hold_the_separator_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (AZURE / "cost_details.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))[:6]
    rows[1] |= {"quantity": "1.5E-7", "costInBillingCurrency": " -2.5e-3"}
    rows[4] |= {"meterName": "in\x1fput"}
    path = tmp_path / "bill.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    one_by_one = plainly(list(read_bill(path, name="bill.csv").rows()))
    monkeypatch.setattr(formats, "_LARGE", 0)
    found = list(read_bill(path, name="bill.csv").rows())
    assert plainly(found) == one_by_one
    assert (str(found[1].quantity), str(found[1].billed_cost), found[4].about.item.meter_name) == ("1.5E-7", "-0.0025", "in\x1fput")
