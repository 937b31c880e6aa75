"""What somebody says of a meter goes before its own text: in every view, for its days, and only since it was said."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlmodel import Session

from models import ledger, money
from models.audit.facts import Meters
from models.charges import ChargeClass, ChargeItem, MeterKind
from models.ledger import CostQuery
from models.meters import MappedKind, MeterBook, MeterMapping, unit_from
from models.periods import Period, month_period
from models.prices import PriceMeter
from models.store import Store
from tests import factories as make
from tests.models.test_audit_answers import verified

NOW = make.NOW  # 2026-11-20 10:00
OCTOBER, NOVEMBER = date(2026, 10, 1), month_period(date(2026, 11, 1))
MILLION = 1_000_000


def at(day: int, month: int = 11) -> datetime:
    return datetime(2026, month, day, tzinfo=UTC)


def item(meter_name: str = "Llama mystery", **said: Any) -> ChargeItem:
    facts: dict[str, Any] = {"id": 7, "charge_class": ChargeClass.MARKETPLACE, "meter_kind": MeterKind.OTHER, "unit": "1K", "tags": {}, "digest": b""}
    return ChargeItem(meter_name=meter_name, **facts | said)


_numbers = iter(range(1, 1000))


def mapping(meter: str, kind: MappedKind = MappedKind.INPUT, **said: Any) -> MeterMapping:
    facts: dict[str, Any] = {"id": next(_numbers), "meter": meter, "kind": kind, "known_from": make.LONG_AGO}
    return MeterMapping(**facts | said)


def kinds(rows: list[MeterMapping], *items: ChargeItem) -> list[str]:
    return [MeterBook(rows).meant(one, at(10)).meter_kind.value for one in items]


def test_a_mapping_names_a_meter_or_a_pattern_without_case(sqlite_store: Store) -> None:
    cases = [
        ("Llama mystery", "llama MYSTERY", True),
        ("Llama myst", "Llama mystery", False),
        ("*mystery", "Llama mystery", True),
        ("*", "Llama mystery", True),
        ("llama*y", "Llama mystery", True),
        ("Llama*stery*y", "Llama mystery", False),
        ("a.c", "abc", False),
        ("offer - plan (*)", "offer - plan (x)", True),
        ("aa*aa", "aaa", False),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c-b", False),
        # Tried at every place for every star, it would be tried for years.
        ("*a" * 100 + "b", "a" * 250, False),
    ]
    with sqlite_store.write() as session:
        for meter, name, fits in cases:
            assert kinds([mapping(meter)], item(name)) == (["input"] if fits else ["other"]), meter
            # verify finds the same in its own way
            told = make.meter_mapping(session, meter, MappedKind.INPUT)
            assert (Meters(session, NOW).item(item(name), at(10)).meter_kind == MeterKind.INPUT) is fits, meter
            session.delete(told)


def test_the_more_specific_mapping_wins_then_the_later() -> None:
    rows = [
        mapping("Llama mystery", MappedKind.TRAINING),
        mapping("*", MappedKind.HOSTING, offer="llama-offer", known_from=at(9)),
        mapping("llama *", MappedKind.OUTPUT, known_from=at(8)),
        mapping("Llama mystery", MappedKind.CACHED_INPUT, known_from=make.LONG_AGO - timedelta(days=1)),
        mapping("Llama mystery", MappedKind.INPUT, offer="Llama-Offer", known_from=make.LONG_AGO),
    ]
    asked = item(), item(offer_id="LLAMA-offer"), item("llama two"), item("llama two", offer_id="llama-offer"), item("else")
    assert kinds(rows, *(ChargeItem(**one.model_dump() | {"id": number}) for number, one in enumerate(asked))) == [
        "training",
        "input",
        "output",
        "hosting",
        "other",
    ]


def test_a_mapping_says_the_unit_where_the_bill_does_not() -> None:
    def size(unit: str, billed: str, kind: MappedKind = MappedKind.INPUT, **said: Any) -> Decimal | None:
        return MeterBook([mapping("*", kind, unit=unit)]).meant(item(unit=billed, **said), at(10)).unit_size

    assert size("", "1K") == 1000
    assert size("", "1M Tokens") == MILLION
    assert size("", "Units") is None
    assert size("1M tokens", "Units") == MILLION
    assert size("", "1 Hour") is None
    assert size("", "1 Hour", MappedKind.HOSTING) == 1
    assert size("", "Units", MappedKind.OTHER) is None
    # What the row's own columns said of its unit stays, unless an hour meter turns out to count tokens.
    assert size("", "Units", meter_kind=MeterKind.OUTPUT, unit_size=Decimal(100)) == 100
    assert size("", "Units", meter_kind=MeterKind.HOSTING, unit_size=Decimal(1)) is None
    assert unit_from("1 Barrel") is None


def test_a_mapping_decides_no_more_than_what_a_meter_counts() -> None:
    rows = [mapping("*", MappedKind.INPUT)]
    machine = item(charge_class=ChargeClass.COMPUTE, meter_kind=MeterKind.COMPUTE)
    bought = item(charge_class=ChargeClass.COMPUTE, meter_kind=MeterKind.COMMITMENT)
    assert kinds(rows, machine) == ["compute"]
    assert kinds([mapping("*", MappedKind.HOSTING)], machine) == ["hosting"]
    assert kinds([mapping("*", MappedKind.HOSTING)], bought) == ["commitment"]
    assert kinds([mapping("*", MappedKind.COMPUTE)], item()) == ["other"]
    assert kinds(rows, item(charge_class=ChargeClass.OUT_OF_SCOPE), item(charge_class=ChargeClass.ADJUSTMENT, meter_kind=MeterKind.ADJUSTMENT)) == [
        "other",
        "adjustment",
    ]


def test_rows_without_a_meter_name_go_by_their_plan() -> None:
    assert kinds([mapping("custom plan")], item("", plan_id="Custom plan"), ChargeItem(**item("x").model_dump() | {"id": 8})) == ["input", "other"]


def test_fine_tuned_kinds_say_so() -> None:
    found = MeterBook([mapping("*", MappedKind.FINE_TUNED_OUTPUT)]).meant(item(), at(10))
    assert (found.meter_kind, found.is_fine_tuned, found.id) == (MeterKind.OUTPUT, True, 7)


# -- in the ledger --------------------------------------------------------------------------------


def unmapped_world(session: Session, days: tuple[date, ...] = (date(2026, 11, 9), date(2026, 11, 10))) -> None:
    """A million input tokens a day at 1.00 each, billed by a meter whose name says nothing."""
    make.foundry(session, known_from=make.LONG_AGO)
    make.price(session, PriceMeter.INPUT_TOKENS, "1.00")
    make.price(session, PriceMeter.OUTPUT_TOKENS, "2.00")
    of = make.series(session, deployment="llama-foundry")
    part = make.bill_part(session, period_start=days[0].replace(day=1), landed_at=datetime(2026, 11, 11, 5, tzinfo=UTC))
    mystery = make.charge_item(session, ChargeClass.FOUNDRY, MeterKind.OTHER, meter_name="Llama mystery", unit="1M", unit_size=None)
    for day in days:
        when = datetime(day.year, day.month, day.day, 8, tzinfo=UTC)
        make.event(session, of, time=when, received_at=when, input_tokens=MILLION, output_tokens=0)
        make.charge(session, part, mystery, "1.00", charged_on=day, quantity="1")


def rows(session: Session, period: Period = NOVEMBER, *, as_of: datetime | None = None) -> dict[tuple[str, int], dict[str, str]]:
    found = ledger.reconciliation(session, period, now=NOW, as_of=as_of).rows
    return {(row.meter, row.day.day): {cause.value: money.text(amount) for cause, amount in row.causes.items()} for row in found}


UNMAPPED = {
    ("input", 9): {"not_yet_billed": "-1"},
    ("input", 10): {"not_yet_billed": "-1"},
    ("other", 9): {"unmapped_meter": "1"},
    ("other", 10): {"unmapped_meter": "1"},
}


def test_landed_charges_are_read_anew_and_what_was_known_then_stays(store: Store) -> None:
    with store.write() as session:
        unmapped_world(session)
        make.meter_mapping(session, "Llama mystery", MappedKind.INPUT, known_from=at(15))
    with store.read() as session:
        assert rows(session, as_of=at(15) - timedelta(seconds=1)) == UNMAPPED
        assert rows(session) == {("input", 9): {}, ("input", 10): {}}
        query = CostQuery(NOVEMBER, "none", ("meter",), "billed")
        assert [(row.groups["meter"], row.figures.cost) for row in ledger.costs(session, query, now=NOW).rows] == [("input", Decimal(2))]


def test_a_mapping_counts_in_its_days_only(store: Store) -> None:
    with store.write() as session:
        unmapped_world(session)
        make.meter_mapping(session, "Llama *", MappedKind.INPUT, valid_from=at(10), valid_to=at(11))
    with store.read() as session:
        assert rows(session) == {("input", 9): {"not_yet_billed": "-1"}, ("other", 9): {"unmapped_meter": "1"}, ("input", 10): {}}


def test_a_mapping_that_was_taken_back_counts_until_then(store: Store) -> None:
    with store.write() as session:
        unmapped_world(session)
        make.meter_mapping(session, "Llama *", MappedKind.INPUT, known_to=at(16))
    with store.read() as session:
        assert rows(session) == UNMAPPED
        assert rows(session, as_of=at(16) - timedelta(seconds=1)) == {("input", 9): {}, ("input", 10): {}}


def test_an_export_names_the_meter_as_it_is_mapped(store: Store) -> None:
    with store.write() as session:
        unmapped_world(session)
        make.meter_mapping(session, "Llama mystery", MappedKind.INPUT, valid_from=at(10))
    with store.read() as session:
        lines = list(ledger.focus_lines(session, ledger.focus_month(session, date(2026, 11, 1), now=NOW), visible=None, now=NOW))
    charged = {line.day.day: (line.meter.value, line.units, line.list_price) for line in lines if line.kind == "charge"}
    assert charged == {9: ("other", None, None), 10: ("input", Decimal(MILLION), Decimal("0.000001"))}


def test_a_closed_month_keeps_its_rows_and_shows_the_mapping_as_an_adjustment(store: Store) -> None:
    closed_at = datetime(2026, 11, 12, tzinfo=UTC)
    with store.write() as session:
        unmapped_world(session, (date(2026, 10, 5),))
        ledger.close_month(session, OCTOBER, author="finance", software="1", now=closed_at)
        make.meter_mapping(session, "Llama mystery", MappedKind.INPUT, known_from=at(15))
    with store.read() as session:
        assert ledger.adjustments(session, OCTOBER, now=at(14)) == []
        found = ledger.adjustments(session, OCTOBER, now=NOW)
        (month,) = ledger.closed_months(session, now=NOW)
        assert month.close.versions["meter_mappings"] == []
    assert [(one.meter, one.side, one.cause, money.text(one.amount)) for one in found] == [
        ("input", "billed", "mapping", "1"),
        ("other", "billed", "mapping", "-1"),
    ]
    assert (month.totals["USD"].expected, month.totals["USD"].billed) == (Decimal(1), Decimal(1))


def test_verify_agrees_with_the_ledger_about_mapped_meters(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        unmapped_world(session)
        make.managed(session, valid_from=at(8), valid_to=at(11))
        make.price(session, PriceMeter.INSTANCE_HOURS, "4.00", sku="Standard_NC24ads_A100_v4")
        part = make.bill_part(session, subscription_id="00000000-0000-0000-0000-000000000002", landed_at=datetime(2026, 11, 11, 5, tzinfo=UTC))
        hours = make.charge_item(session, ChargeClass.COMPUTE, MeterKind.OTHER, meter_name="A100 box", unit="1 Hour", unit_size=None)
        make.charge(session, part, hours, "96", charged_on=date(2026, 11, 9), quantity="24")
        make.meter_mapping(session, "Llama*", MappedKind.CACHED_INPUT, valid_from=at(10))
        make.meter_mapping(session, "llama *ery", MappedKind.OUTPUT, known_from=at(12), valid_to=at(10))
        make.meter_mapping(session, "*box", MappedKind.COMPUTE)
    with sqlite_store.read() as session:
        assert verified(session).differences == []
        query = CostQuery(NOVEMBER, "none", ("meter",), "billed")
        found = {row.groups["meter"]: (row.figures.cost, row.figures.core_hours) for row in ledger.costs(session, query, now=NOW).rows if row.figures.cost}
    assert found == {"cached_input": (Decimal(1), None), "output": (Decimal(1), None), "compute": (Decimal(96), Decimal(576))}
