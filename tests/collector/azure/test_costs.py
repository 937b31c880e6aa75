"""Where a month's bill is read from when the report is not to be had, and what amortized cost adds to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlmodel import col, select

from collector.azure import costs, sync
from collector.azure.client import Azure, AzureSettings, Refusal
from collector.azure.simulator import Export, Fault, InventedWorld, Simulator
from collector.billing import amortized, read_bill
from collector.settings import Settings
from models import ledger, sources
from models.charges import BillPart, Charge, ChargeDay
from models.errors import Conflict, Forbidden, InvalidInput
from models.periods import BillingPeriod
from models.sources import PullState, SourcePull
from models.store import Store
from tests.collector.azure.proving import SEEDS, stored, truth
from tests.walks.service import verify

FIRST, LAST = date(2026, 9, 28), date(2026, 10, 4)
OCTOBER = date(2026, 10, 1)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@dataclass
class Place:
    """A simulated Azure of one subscription, a store and a clock that a pull moves when it waits."""

    store: Store
    simulator: Simulator
    world: InventedWorld
    clock: list[datetime]
    said: list[str] = field(default_factory=list)
    token: str = "static:t;for-storage"

    def now(self) -> datetime:
        return self.clock[0]

    def pull(self, month: date = OCTOBER, **options: Any) -> list[sync.Failure]:
        def sleep(seconds: float) -> None:
            self.clock[0] += timedelta(seconds=seconds)

        settings = replace(AzureSettings.of(Settings.from_environment(self.simulator.environment())), credential=self.token)
        with Azure(settings, now=self.now, sleep=sleep, timeout=0.5, **options) as azure:
            return sync.pull(self.store, azure, "costs", months=[month], now=self.now, say=self.said.append, progress=lambda _done, _of: None)

    def pull_due(self) -> list[sync.Failure]:
        settings = replace(AzureSettings.of(Settings.from_environment(self.simulator.environment())), credential=self.token)
        with Azure(settings, now=self.now, sleep=lambda _seconds: None, timeout=5) as azure:
            return sync.pull(self.store, azure, "costs", now=self.now, say=self.said.append, progress=lambda _done, _of: None)

    def truth(self, at: datetime, *, amortized: bool = False) -> dict[Any, Any]:
        return {key: amount for key, amount in truth(self.world, at, amortized=amortized).items() if key[1] == OCTOBER}

    def last_run(self) -> SourcePull:
        with self.store.read() as session:
            found = session.exec(select(SourcePull).order_by(col(SourcePull.id).desc()).limit(1)).one()
            session.expunge(found)
            return found


def placed(store: Store, stack: ExitStack, *, agreement: Literal["mca", "payg"], seed: int = 1, exports: tuple[str, ...] = ()) -> Place:
    world = InventedWorld(seed, FIRST, LAST, subscription_count=1, agreement=agreement)
    clock = [datetime(2026, 10, 5, 6, tzinfo=UTC)]
    simulator = stack.enter_context(Simulator(world, lambda: clock[0], token="t"))
    scope = f"/subscriptions/{world.subscriptions()[0].id}"
    simulator.costs.exports = tuple(Export(f"{kind.lower()}-daily", scope, type=kind) for kind in exports)
    simulator.faults.hang_seconds = 0.02
    return Place(store, simulator, world, clock)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


# -- amortized cost -------------------------------------------------------------------------------


def test_a_reservation_is_spread_over_its_days_and_the_billed_cost_stays(store: Store, stack: ExitStack) -> None:
    place = placed(store, stack, agreement="mca")
    assert place.pull() == []
    assert stored(store) == place.truth(place.now())
    assert stored(store, amortized=True) == place.truth(place.now(), amortized=True)
    assert stored(store) != stored(store, amortized=True)
    assert place.simulator.counted()["report"] == 2
    with store.read() as session:
        days = session.exec(select(ChargeDay)).all()
        charges = session.exec(select(Charge)).all()
        assert sum(day.billed_cost for day in days) == sum(charge.billed_cost for charge in charges)
        assert sum(day.effective_cost for day in days) == sum(place.truth(place.now(), amortized=True).values())
    # The same again changes nothing.
    assert place.pull() == []
    assert "unchanged" in place.said[-1]


def test_a_bill_without_commitments_is_asked_for_once(store: Store, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InventedWorld, "_reserved", lambda *_: iter(()))
    monkeypatch.setattr(InventedWorld, "_reservation_bought", lambda self, where, _month, first: self._storage(where, first))
    place = placed(store, stack, agreement="mca")
    assert place.pull() == []
    assert place.simulator.counted()["report"] == 1


def test_only_what_differs_is_a_row_more(tmp_path: Path) -> None:
    header = "date,SubscriptionId,ResourceId,meterCategory,meterName,unitOfMeasure,quantity,costInBillingCurrency,billingCurrency,chargeType,reservationId,consumedService"
    vm = "/subscriptions/s1/resourceGroups/rg/providers/Microsoft.MachineLearningServices/workspaces/w"
    bought = "10/01/2026,s1,,Virtual Machines,Reserved,1,1,720,USD,Purchase,r1,Microsoft.Capacity"
    covered = f"10/01/2026,s1,{vm},Virtual Machines,ND96,1 Hour,24,{{}},USD,Usage,r1,Microsoft.MachineLearningServices"
    plain = f"10/01/2026,s1,{vm},Virtual Machines,NC24,1 Hour,24,88.152,USD,Usage,,Microsoft.MachineLearningServices"
    unused = f"10/01/2026,s1,{vm},Virtual Machines,ND96,1 Hour,6,4.5,USD,UnusedReservation,r1,Microsoft.MachineLearningServices"
    (tmp_path / "actual.csv").write_text("\n".join((header, bought, covered.format("0"), plain)))
    (tmp_path / "amortized.csv").write_text("\n".join((header, covered.format("18"), plain, unused)))
    actual, other = (read_bill(tmp_path / f"{name}.csv", name=name) for name in ("actual", "amortized"))
    assert (actual.has_commitments(), amortized(actual, other).sha256 == actual.sha256) == (True, False)
    found = [
        (row.line, row.about.charge_type, str(row.quantity), str(row.billed_cost), None if row.effective_cost is None else str(row.effective_cost))
        for row in amortized(actual, other).rows()
    ]
    assert found == [
        (2, "Purchase", "1", "720", None),
        (3, "Usage", "24", "0", None),
        (4, "Usage", "24", "88.152", None),
        (5, "Purchase", "0", "0", "-720"),
        (6, "Usage", "0", "0", "18"),
        (7, "UnusedReservation", "6", "0", "4.5"),
    ]
    (tmp_path / "none.csv").write_text(f"{header}\n{plain}")
    assert not read_bill(tmp_path / "none.csv", name="none").has_commitments()


def test_the_same_bill_of_two_kinds_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "date,SubscriptionId,ResourceId,meterCategory,meterName,unitOfMeasure,quantity,costInBillingCurrency,billingCurrency,chargeType\n10/01/2026,s,r,c,m,1,1,1,USD,Usage"
    )
    (tmp_path / "f.csv").write_text(
        "BilledCost,EffectiveCost,BillingCurrency,ChargeCategory,ChargePeriodStart,PricingQuantity,PricingUnit,ResourceId\n1,1,USD,Usage,2026-10-01,1,1,r"
    )
    with pytest.raises(InvalidInput, match="of different kinds"):
        amortized(read_bill(tmp_path / "a.csv", name="a"), read_bill(tmp_path / "f.csv", name="f"))


# -- exports --------------------------------------------------------------------------------------


def test_without_reports_the_newest_complete_export_is_read(store: Store, stack: ExitStack) -> None:
    for seed in range(SEEDS):
        place = placed(store, stack, agreement="payg", seed=seed + 1, exports=("AmortizedCost", "ActualCost", "FocusCost"))
        place.clock[0] = datetime(2026, 10, 5, 5, 30, tzinfo=UTC)
        # This morning's run is under way: yesterday's is the newest one that is complete.
        assert place.pull(most_cost_calls=10_000) == []
        assert "cost details are refused (UnprocessableEntity); reading the export focuscost-daily" in "\n".join(place.said)
        yesterday = datetime(2026, 10, 4, 5, tzinfo=UTC)
        mine = {place.world.subscriptions()[0].id.casefold()}
        assert {key: amount for key, amount in stored(store).items() if key[0] in mine} == place.truth(yesterday)
        assert {key: amount for key, amount in stored(store, amortized=True).items() if key[0] in mine} == place.truth(yesterday, amortized=True)
        place.clock[0] = datetime(2026, 10, 5, 6, 30, tzinfo=UTC)
        assert place.pull(most_cost_calls=10_000) == []
        assert {key: amount for key, amount in stored(store).items() if key[0] in mine} == place.truth(datetime(2026, 10, 5, 5, tzinfo=UTC))
        assert place.simulator.leaks == []
        assert place.last_run().state == PullState.DONE


@pytest.mark.parametrize("fault", [Fault.ERROR_503, Fault.RESET, Fault.HANG, Fault.TRUNCATED, Fault.THROTTLE_ALL])
def test_an_export_comes_whole_whatever_breaks(store: Store, stack: ExitStack, fault: Fault) -> None:
    place = placed(store, stack, agreement="payg", exports=("ActualCost",))
    for skip in (0, 2, 3):
        place.simulator.faults.arm(fault, skip=skip)
    for _ in range(4):
        if not place.pull():
            break
    assert place.simulator.faults.happened[fault]
    assert stored(store) == place.truth(datetime(2026, 10, 5, 5, tzinfo=UTC))


def test_a_token_of_resource_manager_is_not_sent_to_storage(store: Store, stack: ExitStack) -> None:
    place = placed(store, stack, agreement="payg", exports=("FocusCost",))
    place.token = "static:t"
    (failure,) = place.pull()
    assert "a static token is for Resource Manager alone" in failure
    assert place.simulator.counted()["blob"] == 0
    assert stored(store) == {}


def test_an_export_that_lies_elsewhere_is_not_fetched(store: Store, stack: ExitStack) -> None:
    place = placed(store, stack, agreement="payg", exports=("FocusCost",))
    place.simulator.costs.blob_base = lambda: "https://blob.core.windows.net.example.com"
    (failure,) = place.pull()
    assert "blob.core.windows.net.example.com, which is no address of Azure" in failure


# -- the query API --------------------------------------------------------------------------------


def test_without_reports_and_exports_the_query_api_is_read_and_gives_way_to_them(store: Store, stack: ExitStack) -> None:
    place = placed(store, stack, agreement="payg")
    assert place.pull() == []
    assert "there is no export; reading the query API" in "\n".join(place.said)
    total = sum(place.truth(place.now()).values())
    assert sum(stored(store).values()) == total
    place.simulator.costs.exports = (Export("focus", f"/subscriptions/{place.world.subscriptions()[0].id}"),)
    assert place.pull() == []
    assert stored(store) == place.truth(datetime(2026, 10, 5, 5, tzinfo=UTC))
    # From here on an answer without tags and units is not taken for it.
    place.simulator.costs.exports = ()
    (failure,) = place.pull()
    assert "which has a bill with tags and units" in failure
    assert stored(store) == place.truth(datetime(2026, 10, 5, 5, tzinfo=UTC))


# -- calls ----------------------------------------------------------------------------------------


def test_what_all_processes_asked_in_the_last_hour_counts(store: Store, stack: ExitStack) -> None:
    place = placed(store, stack, agreement="mca")
    assert place.pull(most_cost_calls=60) == []
    began = datetime(2026, 10, 5, 5, 40, tzinfo=UTC)
    with store.write() as session:
        run = sources.begin(session, costs.SOURCE, "subscriptions/other", month=OCTOBER, now=began)
        sources.finish(session, run.id or 0, PullState.DONE, now=began, calls=540)
    asked = len(place.simulator.calls)
    (failure,) = place.pull()
    assert "throttles" in failure
    assert (place.last_run().state, place.last_run().next_at) == (PullState.RESCHEDULED, began + timedelta(hours=1))
    # How its bills are cut was asked of Resource Manager; Cost Management was left alone.
    assert [call.kind for call in place.simulator.calls[asked:]] == ["list"]
    place.clock[0] = began + timedelta(hours=1, minutes=1)
    assert place.pull() == []


def test_a_month_costs_few_calls(store: Store, stack: ExitStack) -> None:
    place = placed(store, stack, agreement="mca")
    place.simulator.costs.report_polls = 8
    assert place.pull() == []
    counted = place.simulator.counted()
    assert counted["report"] + counted["poll"] == 2 + 2 * 9
    with store.read() as session:
        assert [part.rows for part in session.exec(select(BillPart))] != []


def test_a_refusal_of_rights_is_no_reason_to_look_elsewhere(store: Store, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Azure, *_said: Any, **_more: Any) -> Any:
        raise Refusal("gone", status=410, code="Gone")

    place = placed(store, stack, agreement="mca", exports=("FocusCost",))
    monkeypatch.setattr(Azure, "begin_report", refused)
    assert place.pull() == [f"subscriptions/{place.world.subscriptions()[0].id} 2026-10: gone"]
    assert stored(store) == {}


# -- bills for other days than a month's ----------------------------------------------------------

FROM_17TH = BillingPeriod(date(2026, 7, 17), date(2026, 8, 17)), BillingPeriod(date(2026, 8, 17), date(2026, 9, 17))


@pytest.mark.walk
@pytest.mark.parametrize("route", ["query", "export"])
def test_bills_from_the_17th_are_pulled_as_they_are_cut_and_closed_when_they_settle(sqlite_store: Store, tmp_path: Path, stack: ExitStack, route: str) -> None:
    store = sqlite_store
    world = InventedWorld(5, date(2026, 7, 17), date(2026, 9, 10), subscription_count=1, agreement="payg", billing_day=17)
    clock = [datetime(2026, 8, 20, 7, tzinfo=UTC)]
    simulator = stack.enter_context(Simulator(world, lambda: clock[0], token="t"))
    scope = f"/subscriptions/{world.subscriptions()[0].id}"
    simulator.costs.exports = (Export("focus", scope),) if route == "export" else ()
    place = Place(store, simulator, world, clock)

    def billed() -> list[tuple[date, BillingPeriod]]:
        with store.read() as session:
            parts = session.exec(select(BillPart).where(col(BillPart.landed_at).is_not(None), col(BillPart.superseded_at).is_(None)))
            return sorted((part.period_start, part.billed) for part in parts)

    def is_true(*, at: datetime) -> bool:
        told, found = truth(world, at), stored(store)
        return found == told if route == "export" else sum(found.values()) == sum(told.values())

    assert place.pull_due() == []
    july, august, september = date(2026, 7, 1), date(2026, 8, 1), date(2026, 9, 1)
    # The bill that ended on the 16th, and the open one; a part of each month they touch.
    assert billed() == [(july, FROM_17TH[0]), (august, FROM_17TH[0]), (august, FROM_17TH[1])]
    assert is_true(at=clock[0].replace(hour=5))
    before = billed()
    assert place.pull(august) == []
    assert billed() == before
    with store.read() as session:
        sources_told = {one.name.rpartition("from ")[2] for one in ledger.sources(session, visible=None, now=clock[0]) if one.kind == "azure"}
        # Both routes reach the 17th, and no hole is left at the seam of the two bills.
        assert sources_told == {"2026-08-17"}
    clock[0] = datetime(2026, 9, 12, 7, tzinfo=UTC)
    assert place.pull_due() == []
    assert billed() == [(july, FROM_17TH[0]), (august, FROM_17TH[0]), (august, FROM_17TH[1]), (september, FROM_17TH[1])]
    assert is_true(at=clock[0].replace(hour=5))
    # August ends within a bill that still moves.
    with pytest.raises(Conflict, match=r"for days beyond it and still moves until 2026-09-22T00:00:00Z"), store.write() as session:
        ledger.close_month(session, august, author="ana", software="t", now=clock[0])
    clock[0] = datetime(2026, 9, 22, 7, tzinfo=UTC)
    with pytest.raises(Conflict, match=r"was landed before"), store.write() as session:
        ledger.close_month(session, august, author="ana", software="t", now=clock[0])
    for month in (july, august):
        assert place.pull(month) == []
    assert is_true(at=clock[0].replace(hour=5))
    with store.write() as session:
        close = ledger.close_month(session, august, author="ana", software="t", now=clock[0])
        assert len(close.versions["bill_parts"]) == 2
    with store.read() as session:
        assert ledger.invoices(session, august, now=clock[0])[0].total == sum(
            amount for key, amount in truth(world, clock[0]).items() if key[6] >= FROM_17TH[1].start
        )
    verify(store.url.render_as_string(hide_password=False), folder=tmp_path)


def test_the_bills_that_azure_names_go_on_before_and_after() -> None:
    bills = costs.Bills(FROM_17TH)
    assert bills.of(date(2026, 8, 16)) == FROM_17TH[0]
    assert bills.of(date(2026, 7, 16)) == BillingPeriod(date(2026, 6, 17), date(2026, 7, 17))
    assert bills.of(date(2027, 1, 17)) == BillingPeriod(date(2027, 1, 17), date(2027, 2, 17))
    assert bills.touching(date(2026, 8, 1), until=date(2026, 8, 20)) == list(FROM_17TH)
    assert bills.touching(date(2026, 8, 1), until=date(2026, 8, 16)) == [FROM_17TH[0]]
    assert costs.Bills().touching(OCTOBER, until=date(2026, 12, 1)) == [BillingPeriod.of_month(OCTOBER)]


def test_which_days_a_bill_is_for_must_be_read_where_it_is_no_month(sqlite_store: Store, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    place = placed(sqlite_store, stack, agreement="payg")
    listing = Azure.arm_list

    def forbidden(self: Azure, path: str, **said: Any) -> Any:
        if path.endswith("/billingPeriods"):
            raise Forbidden("no")
        return listing(self, path, **said)

    monkeypatch.setattr(Azure, "arm_list", forbidden)
    # Nothing of it is known yet: by the calendar.
    assert place.pull() == []
    scope = f"subscriptions/{place.world.subscriptions()[0].id}"
    with sqlite_store.write() as session:
        for part in session.exec(select(BillPart)):
            part.billed_from, part.billed_to = date(2026, 9, 17), date(2026, 10, 17)
    (failure,) = place.pull()
    assert failure.endswith(f"assign the role Cost Management Reader on /{scope}")
    assert not failure.passes
    assert (place.last_run().state, place.last_run().month) == (PullState.FAILED, date(2026, 10, 1))
