import csv
import io
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from dashboard import tables
from models.ledger import CostQuery, CostRow, CostTable, Figures
from models.periods import Period

DAY = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC))
FIGURES = Figures("USD", Decimal("-12.3456789012"), None, Decimal("1E+3"), 5, 6, 0, 0, 7, None, "settling", 0, 1, 0, Decimal("0.9931"), estimate=True)


def answer(*names: str | None) -> CostTable:
    query = CostQuery(DAY, "day", ("deployment",))
    return CostTable(query, [CostRow(DAY, {"deployment": name}, FIGURES) for name in names], [FIGURES, replace(FIGURES, currency="EUR", cost=Decimal(1))])


def read(content: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content, newline="")))


def test_a_file_holds_every_digit_and_leaves_unknown_empty() -> None:
    row = read(tables.costs_csv(answer("chat")))[0]
    assert row == {
        "period_start": "2026-11-01T00:00:00Z",
        "period_end": "2026-11-02T00:00:00Z",
        "deployment": "chat",
        "currency": "USD",
        "cost": "-12.3456789012",
        "metered_cost": "",
        "billed_cost": "1000",
        "input_tokens": "5",
        "output_tokens": "6",
        "requests": "7",
        "core_hours": "",
        "status": "settling",
        "unpriced_tokens": "0",
        "unknown_token_requests": "1",
        "estimated_token_requests": "0",
        "coverage": "0.9931",
        "estimate": "true",
    }


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\tx", "\rx", "\nx", "\x00x", "＝1"])
def test_a_name_that_a_spreadsheet_would_run_is_made_text(name: str) -> None:
    assert read(tables.costs_csv(answer(name)))[0]["deployment"] == f"'{name}"


@pytest.mark.parametrize("name", ["chat", "a=b", 'say "hi", then', "two\nlines"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert read(tables.costs_csv(answer(name)))[0]["deployment"] == name


def test_unallocated_is_an_empty_cell() -> None:
    assert read(tables.costs_csv(answer(None)))[0]["deployment"] == ""


def test_the_control_total_is_the_ledgers_own_for_each_currency() -> None:
    assert tables.control_total(answer("a", "b")) == "-12.3456789012 USD; 1 EUR"
