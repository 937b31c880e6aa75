"""Bill against metering in small worlds whose gaps were planted by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import Session

from models import ledger, money
from models.charges import ChargeClass, MeterKind
from models.errors import InvalidInput
from models.ledger import Ask, CostQuery, Filters, ReconciliationRow
from models.periods import Period, month_period
from models.prices import PriceMeter
from models.store import Store
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00: October is closed since the 5th
OCTOBER, NOVEMBER = month_period(date(2026, 10, 1)), month_period(date(2026, 11, 1))
MILLION = 1_000_000


def at(day: int, hour: int = 8, month: int = 11) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


def found(session: Session, period: Period = NOVEMBER, *, now: datetime = NOW) -> dict[tuple[Any, ...], ReconciliationRow]:
    answer = ledger.reconciliation(session, period, now=now)
    for row in answer.rows:
        assert money.add(row.causes.values()) == row.variance
    for total in answer.totals:
        assert money.add(total.causes.values()) == total.variance
        assert total.variance == money.add(row.variance for row in answer.rows if row.currency == total.currency)
    return {(row.deployment, row.meter, row.day.day): row for row in answer.rows}


def said(row: ReconciliationRow) -> tuple[str, str, dict[str, str], str]:
    return money.text(row.expected), money.text(row.billed), {cause.value: money.text(share) for cause, share in row.causes.items()}, row.state


def foundry_charge(
    session: Session, part: Any, cost: str, quantity: str, day: date, *, kind: MeterKind = MeterKind.INPUT, charge_type: str = "Usage", **item: Any
) -> None:
    of = make.charge_item(session, ChargeClass.FOUNDRY, kind, **item)
    make.charge(session, part, of, cost, charged_on=day, quantity=quantity, charge_type=charge_type)


def test_an_open_a_settling_and_a_closed_day(store: Store) -> None:
    with store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        of = make.series(session, deployment="llama-foundry")
        for day, month in ((30, 10), (10, 11), (15, 11)):
            make.event(session, of, time=at(day, month=month), input_tokens=MILLION, output_tokens=0)
        make.charge(
            session,
            make.bill_part(session, period_start=date(2026, 10, 1)),
            make.charge_item(session, ChargeClass.FOUNDRY),
            "0.25",
            quantity="0.25",
            charged_on=date(2026, 10, 30),
        )
        foundry_charge(session, make.bill_part(session), "0.75", "0.75", date(2026, 11, 10))
    with store.read() as session:
        october, november = found(session, OCTOBER), found(session)
    assert said(october["llama-foundry", "input", 30]) == ("1", "0.25", {"unbilled_usage": "-0.75"}, "closed")
    assert said(november["llama-foundry", "input", 10]) == ("1", "0.75", {"not_yet_billed": "-0.25"}, "settling")
    assert said(november["llama-foundry", "input", 15]) == ("1", "0", {"not_yet_billed": "-1"}, "open")


def test_each_planted_gap_is_found_under_its_cause(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        of = make.series(session, deployment="llama-foundry")
        for day in range(1, 8):
            make.event(session, of, time=at(day), input_tokens=MILLION, output_tokens=0)
        make.event(session, of, time=at(7, 9), input_tokens=None, output_tokens=None)
        part = make.bill_part(session)
        foundry_charge(session, part, "1.20", "1", date(2026, 11, 1))  # a dearer price
        foundry_charge(session, part, "1.50", "1.5", date(2026, 11, 2))  # half a million past the instruments
        foundry_charge(session, part, "1000", "1000", date(2026, 11, 3))  # a thousand times the quantity
        foundry_charge(session, part, "1", "1", date(2026, 11, 4))
        foundry_charge(session, part, "-0.30", "0", date(2026, 11, 4), charge_type="Refund")
        foundry_charge(session, part, "1", "1", date(2026, 11, 5))
        foundry_charge(session, part, "9.60", "24", date(2026, 11, 5), kind=MeterKind.HOSTING)
        foundry_charge(session, part, "1", "1", date(2026, 11, 6))
        foundry_charge(session, part, "0.44", "1", date(2026, 11, 6), kind=MeterKind.OTHER)
        foundry_charge(session, part, "3", "3", date(2026, 11, 7))  # one call of unknown tokens may have used a million
        foundry_charge(session, part, "5", "5", date(2026, 11, 15), deployment="shadow")  # nobody meters it
    with sqlite_store.read() as session:
        rows = found(session)
    assert {key: said(row)[2] for key, row in rows.items() if row.causes} == {
        ("llama-foundry", "input", 1): {"price_difference": "0.2"},
        ("llama-foundry", "input", 2): {"unmetered_usage": "0.5"},
        ("llama-foundry", "input", 3): {"unit_mismatch": "999"},
        ("llama-foundry", "input", 4): {"credit_or_refund": "-0.3"},
        ("llama-foundry", "hosting", 5): {"not_metered": "9.6"},
        ("llama-foundry", "other", 6): {"unmapped_meter": "0.44"},
        ("llama-foundry", "input", 7): {"unknown_tokens": "1", "unmetered_usage": "1"},
        ("shadow", "input", 15): {"not_instrumented": "5"},
    }


def test_usage_billed_a_day_late_is_timing_once_the_month_is_closed(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        of = make.series(session, deployment="llama-foundry")
        for day in (12, 13):
            make.event(session, of, time=at(day, month=10), input_tokens=MILLION, output_tokens=0)
        part = make.bill_part(session, period_start=date(2026, 10, 1))
        foundry_charge(session, part, "0.6", "0.6", date(2026, 10, 12))
        foundry_charge(session, part, "1.5", "1.5", date(2026, 10, 13))
    with sqlite_store.read() as session:
        rows = found(session, OCTOBER)
    assert said(rows["llama-foundry", "input", 12])[2] == {"timing": "-0.4"}
    assert said(rows["llama-foundry", "input", 13])[2] == {"unmetered_usage": "0.1", "timing": "0.4"}


def test_expected_in_one_currency_and_billed_in_another_without_a_rate_is_currency(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        make.event(session, make.series(session, deployment="llama-foundry"), time=at(10), input_tokens=MILLION, output_tokens=0)
        part = make.bill_part(session, totals={}, exchange_rates={})
        of = make.charge_item(session, ChargeClass.FOUNDRY)
        make.charge(session, part, of, "0.92", charged_on=date(2026, 11, 10), currency="EUR")
    with sqlite_store.read() as session:
        answer = ledger.reconciliation(session, NOVEMBER, now=NOW)
    assert all(set(row.causes) <= {"currency", "unexplained"} for row in answer.rows if row.causes)
    assert money.add(row.billed for row in answer.rows if row.currency == "EUR") == Decimal("0.92")


def test_hours_of_managed_compute_are_matched_by_instance_hours(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.managed(session, instance_count=2)
        make.price(session, PriceMeter.INSTANCE_HOURS, "4.00", unit="1 hour", sku="Standard_NC24ads_A100_v4", model="")
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE), "200", quantity="50", charged_on=date(2026, 11, 10))
    with sqlite_store.read() as session:
        row = found(session)["llama-online/blue", "compute", 10]
    # 2 instances x 24 h x 4.00 = 192; two hours more were billed, and our meter of them is the inventory.
    assert (row.metered_units, row.billed_units) == (Decimal(48), Decimal(50))
    assert said(row)[:2] == ("192", "200")
    assert money.add(row.causes.values()) == 8


def test_sums_equal_those_of_costs(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.serverless(session)
        make.token_prices(session, "1.00", "2.00")
        for day in range(1, 19):
            make.event(session, time=at(day), input_tokens=day * 1000, output_tokens=day * 77)
        part = make.bill_part(session)
        for day in range(1, 15):
            make.charge(session, part, make.charge_item(session), f"0.{day:03}", charged_on=date(2026, 11, day))
    with sqlite_store.read() as session:
        answer = ledger.reconciliation(session, NOVEMBER, now=NOW)
        (total,) = ledger.costs(session, CostQuery(NOVEMBER, "none", (), "billed"), now=NOW).totals
    (ours,) = answer.totals
    assert (ours.expected, ours.billed, ours.coverage) == (total.metered_cost, total.billed_cost, total.coverage)


def test_only_whole_days_and_a_bounded_period_are_taken(sqlite_store: Store) -> None:
    with sqlite_store.read() as session:
        with pytest.raises(InvalidInput, match="midnights"):
            ledger.reconciliation(session, Period(at(1, 5), at(2, 0)), now=NOW)
        with pytest.raises(InvalidInput, match="at most"):
            ledger.reconciliation(session, Period(datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)), now=NOW)


def test_a_row_is_the_same_whoever_asks_for_however_much(store: Store) -> None:
    # 0.02 too much of an amount with one decimal: no rounding, as the same day's bill has amounts with four. Tenths are never the last digit of dollars.
    with store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        part = make.bill_part(session)
        for name, day, tokens, cost in (("one", 10, 2_480_000, "2.5"), ("other", 10, 1_000_100, "1.0001"), ("one", 12, 2_480_000, "2.5")):
            make.foundry(session, name)
            make.event(session, make.series(session, deployment=name), time=at(day), input_tokens=tokens, output_tokens=0)
            foundry_charge(session, part, cost, cost, date(2026, 11, day), deployment=name)
    with store.read() as session:
        whole = ledger.reconciliation(session, NOVEMBER, now=NOW).rows
        parts = [
            *ledger.reconciliation(session, NOVEMBER, Filters(deployments=("other",)), now=NOW).rows,
            *ledger.reconciliation(session, Period(at(9, 0), at(11, 0)), Filters(deployments=("one",)), now=NOW).rows,
            *ledger.reconciliation(session, Period(at(11, 0), at(13, 0)), now=NOW).rows,
        ]
    assert sorted(parts, key=lambda row: (row.day, row.deployment)) == whole
    assert [said(row)[2] for row in whole] == [{"unmetered_usage": "0.02"}, {}, {"unmetered_usage": "0.02"}]


def test_a_call_of_unknown_tokens_counts_once_however_many_meters_its_day_has(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        of = make.series(session, deployment="llama-foundry")
        for _ in range(3):
            make.event(session, of, time=at(10), input_tokens=MILLION, output_tokens=MILLION)
        make.event(session, of, time=at(10), input_tokens=None, output_tokens=None)
    with sqlite_store.read() as session:
        answer = ledger.reconciliation(session, month_period(date(2026, 11, 1)), now=NOW)
        other = ledger.why(session, Ask("expected", CostQuery(month_period(date(2026, 11, 1)), "none", currency="USD")), now=NOW)
    assert [(row.meter, row.unknown_token_requests) for row in answer.rows] == [("input", 1), ("output", 1)]
    (total,) = answer.totals
    assert (total.requests, total.unknown_token_requests, total.unknown_token_share) == (4, 1, Decimal("0.25"))
    assert [term.value for term in other.terms if term.name == "calls of unknown tokens"] == [1]


def test_what_is_billed_is_invoiced_whole_in_part_or_not_yet(store: Store) -> None:
    with store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        make.event(session, make.series(session, deployment="llama-foundry"), time=at(5), input_tokens=MILLION, output_tokens=0)
        part, of = make.bill_part(session), make.charge_item(session, ChargeClass.FOUNDRY)
        make.charge(session, part, of, "1.20", charged_on=date(2026, 11, 2), invoice_id="G1")
        make.charge(session, part, of, "-0.20", charged_on=date(2026, 11, 2), invoice_id="G2", charge_type="Refund")
        make.charge(session, part, of, "1.10", charged_on=date(2026, 11, 3), invoice_id="G1")
        make.charge(session, part, of, "0.30", charged_on=date(2026, 11, 3))
        make.charge(session, part, of, "0.80", charged_on=date(2026, 11, 4))
    with store.read() as session:
        rows = found(session)
        (total,) = ledger.reconciliation(session, NOVEMBER, now=NOW).totals
    told = {day: (money.text(row.billed), row.invoiced, row.not_invoiced) for (_, _, day), row in rows.items()}
    assert told == {
        2: ("1", Decimal("1.00"), None),
        3: ("1.4", Decimal("1.10"), "some of these charges are on no invoice yet"),
        4: ("0.8", None, "no invoice has been made for these charges yet"),
        5: ("0", None, "nothing is billed, so nothing can be on an invoice"),
    }
    # 1.20 - 0.20 + 1.10 of 3.20
    assert (total.billed, total.invoiced, total.not_invoiced) == (Decimal("3.20"), Decimal("2.10"), "some of these charges are on no invoice yet")


def test_what_is_invoiced_of_a_charge_that_two_share_is_shared_as_the_charge_is(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        for name, calls in (("one", 1), ("two", 2)):
            make.serverless(session, name)
            make.event(session, make.series(session, deployment=name), time=at(10), input_tokens=calls * 1000, output_tokens=0)
        make.managed(session, instance_count=1)
        part, of = make.bill_part(session), make.charge_item(session)
        make.charge(session, part, of, "1.00", charged_on=date(2026, 11, 10), invoice_id="G1")
        make.charge(session, part, of, "0.50", charged_on=date(2026, 11, 10))
        # 30 untagged hours: the only deployment of the size takes its 24, and its share of what is invoiced.
        untagged = make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None)
        make.charge(session, part, untagged, "10", quantity="10", charged_on=date(2026, 11, 10), invoice_id="G1")
        make.charge(session, part, untagged, "20", quantity="20", charged_on=date(2026, 11, 10))
    with store.read() as session:
        rows = found(session)
        (total,) = ledger.reconciliation(session, NOVEMBER, now=NOW).totals
    assert {key[0]: (money.text(row.billed), money.text(row.invoiced or Decimal(-1))) for key, row in rows.items()} == {
        "one": ("0.5", "0.333333333333"),
        "two": ("1", "0.666666666667"),
        "llama-online/blue": ("24", "8"),
        None: ("6", "2"),
    }
    assert (total.billed, total.invoiced) == (Decimal("31.5"), Decimal(11))


def test_why_an_amount_is_invoiced_names_its_rows_and_why_it_is_not_all(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        part, of = make.bill_part(session), make.charge_item(session, ChargeClass.FOUNDRY)
        make.charge(session, part, of, "1.25", charged_on=date(2026, 11, 2), invoice_id="G1")
        make.charge(session, part, of, "0.75", charged_on=date(2026, 11, 3))
    with sqlite_store.read() as session:
        query = CostQuery(NOVEMBER, "none", currency="USD")
        whole, of_third = (ledger.why(session, Ask("invoiced", query, own), now=NOW) for own in ({}, {"day": "2026-11-03"}))
    assert (whole.value, whole.reason) == (Decimal("1.25"), "some of these charges are on no invoice yet")
    assert ([(row.own["day"], row.value) for row in whole.rows], whole.adds_up) == ([("2026-11-02", Decimal("1.25"))], True)
    assert (of_third.value, of_third.reason) == (None, "no invoice has been made for these charges yet")
