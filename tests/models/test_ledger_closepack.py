"""The close pack: the month's cost as balanced journal lines, without a lost cent in any world."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import Session

from collector.reports.closepack import close_body, tables
from models import ledger, money
from models.charges import ChargeClass
from models.errors import InvalidInput
from models.ledger import ClosePack, CostQuery
from models.ledger.closepack import rounded
from models.periods import month_period
from models.prices import PriceMeter
from models.store import Store
from tests import factories as make
from tests.models.test_ledger_property import World, add_bill, add_calls, add_facts, worlds, writing

NOW = make.NOW
OCTOBER, NOVEMBER = date(2026, 10, 1), date(2026, 11, 1)
MILLION = 1_000_000


def lines(pack: ClosePack, kind: str) -> dict[tuple[str | None, str], tuple[str, str]]:
    (one,) = pack.currencies
    return {(line.cost_center, line.account): (str(line.debit), str(line.credit)) for entry in one.entries if entry.kind == kind for line in entry.lines}


def october(session: Session) -> None:
    """Billed to the 30th; the last day's usage is not billed. Two cost centres, a third of a cent each way."""
    make.serverless(session, "one")
    make.serverless(session, "two")
    make.owner(session, deployment="one", cost_center="CC-1")
    make.owner(session, deployment="two", cost_center="CC-2")
    make.price(session, PriceMeter.INPUT_TOKENS, "1.00")
    one, two = make.series(session, deployment="one"), make.series(session, deployment="two")
    make.event(session, one, time=datetime(2026, 10, 20, 8, tzinfo=UTC), input_tokens=10 * MILLION, output_tokens=0)
    make.event(session, two, time=datetime(2026, 10, 21, 8, tzinfo=UTC), input_tokens=7 * MILLION, output_tokens=0)


def test_unbilled_usage_is_accrued_and_reversed_on_the_first_of_the_next_month(store: Store) -> None:
    with store.write() as session:
        october(session)
        pack = ledger.close_pack(session, OCTOBER, now=NOW)
        (total,) = ledger.costs(session, CostQuery(month_period(OCTOBER), "none"), now=NOW).totals
    assert (pack.standing, [one.currency for one in pack.currencies]) == ("provisional", ["USD"])
    assert lines(pack, "accrual") == {("CC-1", "serverless"): ("10.00", "0"), ("CC-2", "serverless"): ("7.00", "0"), (None, "accrued"): ("0", "17.00")}
    assert lines(pack, "reversal") == {("CC-1", "serverless"): ("0", "10.00"), ("CC-2", "serverless"): ("0", "7.00"), (None, "accrued"): ("17.00", "0")}
    assert [(entry.kind, entry.on) for entry in pack.currencies[0].entries] == [("accrual", date(2026, 10, 31)), ("reversal", date(2026, 11, 1))]
    assert pack.currencies[0].cost == total.cost == Decimal(17)


def test_billed_charges_are_the_invoice_and_a_credit_is_credited(store: Store) -> None:
    with store.write() as session:
        october(session)
        part = make.bill_part(session, period_start=OCTOBER)
        make.charge(session, part, make.charge_item(session, ChargeClass.ADJUSTMENT), "-0.504", charged_on=date(2026, 10, 12), charge_type="RoundingAdjustment")
        pack = ledger.close_pack(session, OCTOBER, now=NOW)
    assert lines(pack, "invoice")[None, "unallocated"] == ("0", "0.50")
    assert lines(pack, "invoice")[None, "payable"] == ("0.50", "0")
    (one,) = pack.currencies
    assert all(entry.debits == entry.credits for entry in one.entries)


def test_instances_are_cut_into_used_and_idle(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        start = datetime(2026, 10, 10, tzinfo=UTC)
        make.managed(session, "llama-online/blue", valid_from=start, valid_to=start + timedelta(days=1), instance_count=1)
        make.price(session, PriceMeter.INSTANCE_HOURS, "1.00", unit="1 hour", sku="Standard_NC24ads_A100_v4", model="")
        pack = ledger.close_pack(session, OCTOBER, now=NOW)
    (one,) = pack.currencies
    accounts = {line.account: line.exact for line in one.entries[0].lines}
    # What an instance serves is not known here, so nothing says how much of it was idle.
    assert accounts == {"managed_undetermined": Decimal(24), "accrued": Decimal(-24)}


def test_a_month_to_come_is_refused(sqlite_store: Store) -> None:
    with sqlite_store.read() as session, pytest.raises(InvalidInput, match="has not begun"):
        ledger.close_pack(session, date(2026, 12, 1), now=NOW)


def test_a_closed_month_stays_final_and_late_usage_is_an_adjustment(store: Store) -> None:
    with store.write() as session:
        october(session)
        part = make.bill_part(session, period_start=OCTOBER, landed_at=NOW - timedelta(hours=1))
        make.charge(session, part, make.charge_item(session, deployment="one"), "9.99", charged_on=date(2026, 10, 20))
        ledger.close_month(session, OCTOBER, author="finance", software="test", now=NOW)
        at_close = ledger.close_pack(session, OCTOBER, now=NOW)
        later = NOW + timedelta(days=1)
        series = make.series(session, deployment="two")
        make.event(session, series, time=datetime(2026, 10, 31, 8, tzinfo=UTC), received_at=later, input_tokens=2 * MILLION, output_tokens=0)
        after = ledger.close_pack(session, OCTOBER, now=later + timedelta(hours=1))
    assert at_close.standing == after.standing == "final"
    booked = [[entry for entry in pack.currencies[0].entries if entry.kind != "adjustment"] for pack in (at_close, after)]
    assert booked[0] == booked[1]
    moved = money.add(line.exact for entry in after.currencies[0].entries if entry.kind == "adjustment" for line in entry.lines if line.account != "accrued")
    with store.read() as session:
        was, is_now = (
            ledger.costs(session, CostQuery(month_period(OCTOBER), "none"), now=at).totals[0].cost or money.ZERO for at in (NOW, later + timedelta(hours=1))
        )
    assert moved == money.minus(is_now, was)
    assert {(one.cause, one.amount) for one in after.adjustments} == {("late_usage", Decimal(2))}


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=30), st.sampled_from([0, 2, 3]), st.integers(0, 9))
def test_rounding_loses_nothing(units: list[int], digits: int, finer: int) -> None:
    exact = [Decimal(unit).scaleb(-digits - finer) for unit in units]
    target = money.add(exact).quantize(Decimal(1).scaleb(-digits))
    made = rounded(exact, target, digits=digits)
    assert money.add(made) == target
    assert all(abs(money.minus(one, of)) <= Decimal(1).scaleb(-digits) for one, of in zip(made, exact, strict=True))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('packs')}/t.db")
    store.migrate()
    return store


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(worlds)
def test_no_cent_is_lost_in_any_world(shared: Store, world: World) -> None:
    now = datetime(2026, 11, 3, 13, 17, tzinfo=UTC)
    random = Random(world.seed)
    with writing(shared) as session:
        add_facts(session, random)
        add_calls(session, list(world.calls))
        add_bill(session, random, landed=now - timedelta(hours=1))
        for month in (OCTOBER, NOVEMBER):
            pack = ledger.close_pack(session, month, now=now)
            totals = {one.currency: one.cost or money.ZERO for one in ledger.costs(session, CostQuery(month_period(month), "none"), now=now).totals}
            assert {one.currency: one.cost for one in pack.currencies} == {code: cost for code, cost in totals.items() if code}
            for one in pack.currencies:
                assert all(entry.debits == entry.credits for entry in one.entries)
                costs = [
                    line for entry in one.entries if entry.kind in {"invoice", "accrual"} for line in entry.lines if line.account not in {"payable", "accrued"}
                ]
                assert money.minus(money.add(line.debit for line in costs), money.add(line.credit for line in costs)) == one.booked
                assert one.booked == money.shown(one.cost, one.currency)


def test_the_pack_says_which_share_of_calls_told_no_tokens(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        october(session)
        for _ in range(2):
            make.event(session, make.series(session, deployment="one"), time=datetime(2026, 10, 22, 8, tzinfo=UTC), input_tokens=None, output_tokens=None)
        pack = ledger.close_pack(session, OCTOBER, now=NOW)
    assert (pack.requests, pack.unknown_token_requests, pack.unknown_token_share) == (4, 2, Decimal("0.5"))


def test_the_pack_says_what_of_billed_is_on_an_invoice(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        part, of = make.bill_part(session, period_start=OCTOBER), make.charge_item(session, ChargeClass.FOUNDRY)
        make.charge(session, part, of, "10.00", charged_on=date(2026, 10, 12), invoice_id="G1")
        make.charge(session, part, of, "2.50", charged_on=date(2026, 10, 13))
        body = close_body(ledger.close_pack(session, OCTOBER, now=NOW))
    matched = body["currencies"][0]["reconciliation"]
    assert (matched["billed"], matched["invoiced"], matched["reasons"]) == ("12.5", "10", {"invoiced": "some of these charges are on no invoice yet"})
    body["snapshot"] = {"made_at": "2026-11-20T10:00:00Z"}
    (note,) = [table.note for table in tables(body) if table.title == "Bill against metering (USD)"]
    assert note.endswith("Of what is billed 10.00 USD is on an invoice: some of these charges are on no invoice yet.")
    for name in ("invoiced", "reasons"):  # a pack that was kept before
        del matched[name]
    (note,) = [table.note for table in tables(body) if table.title == "Bill against metering (USD)"]
    assert "invoice" not in note
