"""Pulls as the command makes them: what lands, what is written down of each run, what a restart goes on with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from collector import cli
from collector.azure import costs, retail, sync
from collector.azure.client import Azure, AzureSettings
from collector.azure.simulator import Fault, InventedWorld, Simulator
from collector.settings import Settings
from models import sources
from models.errors import InvalidInput
from models.periods import BillingPeriod, settles_at
from models.prices import Price, PriceMeter
from models.sources import PullState, SourcePull
from models.store import Store
from tests import factories as make
from tests.collector.azure.proving import stored, truth

FIRST, LAST = date(2026, 9, 28), date(2026, 10, 4)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@dataclass
class Place:
    """A simulated Azure, a store, and a clock that a pull moves when it waits."""

    store: Store
    simulator: Simulator
    world: InventedWorld
    clock: list[datetime]
    said: list[str] = field(default_factory=list)

    def now(self) -> datetime:
        return self.clock[0]

    def _sleep(self, seconds: float) -> None:
        self.clock[0] += timedelta(seconds=seconds)

    def pull(self, what: sync.What, *months: date, **options: Any) -> list[sync.Failure]:
        settings = AzureSettings.of(Settings.from_environment(self.simulator.environment()))
        with Azure(settings, now=self.now, sleep=self._sleep, timeout=0.5, **options) as azure:
            return sync.pull(self.store, azure, what, months=months or None, now=self.now, say=self.said.append, progress=lambda _done, _of: None)

    def runs(self) -> list[SourcePull]:
        with self.store.read() as session:
            found = list(session.exec(select(SourcePull)))
            for one in found:
                session.expunge(one)
            return sorted(found, key=lambda one: one.id or 0)


@pytest.fixture
def place(store: Store) -> Iterator[Place]:
    world = InventedWorld(1, FIRST, LAST, subscription_count=2)
    clock = [datetime(2026, 10, 5, 6, tzinfo=UTC)]
    with Simulator(world, lambda: clock[0], token="t") as simulator:
        simulator.faults.hang_seconds = 0.02
        yield Place(store, simulator, world, clock)


def test_without_being_told_the_open_month_and_the_one_before_are_pulled_until_it_has_settled(place: Place) -> None:
    assert place.pull("costs") == []
    assert stored(place.store) == truth(place.world, place.now())
    assert stored(place.store, amortized=True) == truth(place.world, place.now(), amortized=True)
    assert [(run.month, run.state, run.operation) for run in place.runs()] == [
        (date(2026, 9, 1), PullState.DONE, ""),
        (date(2026, 10, 1), PullState.DONE, ""),
    ] * 2
    assert all(run.calls >= 2 and run.finished_at is not None and run.rows for run in place.runs())
    scope = f"subscriptions/{place.world.subscriptions()[0].id}"
    place.clock[0] = settles_at(date(2026, 9, 1)) + timedelta(hours=1)
    september, october = BillingPeriod.of_month(FIRST), BillingPeriod.of_month(LAST)
    assert costs.due(place.store, scope, costs.Bills(), now=place.now()) == [september, october]
    place.pull("costs")
    assert costs.due(place.store, scope, costs.Bills(), now=place.now()) == [october]
    assert place.simulator.counted()["report"] + place.simulator.counted()["poll"] <= 60


def test_a_month_without_charges_is_no_failure(place: Place) -> None:
    assert place.pull("costs", date(2026, 3, 1)) == []
    assert "has no charges in 2026-03" in place.said[-1]
    assert {run.state for run in place.runs()} == {PullState.DONE}


def test_a_month_older_than_what_azure_keeps_is_said_to_be_so(place: Place) -> None:
    # On 2026-10-05 details reach back to September of the year before.
    assert place.pull("costs", date(2025, 9, 1)) == []
    assert "has no charges in 2025-09" in place.said[-1]
    assert place.pull("costs", date(2025, 8, 1)) == []
    assert "Azure has no details of 2025-08 any more, which does not say that nothing was charged" in place.said[-1]
    assert "to 2025-09. Import that month's bill from a file" in place.said[-1]


def test_a_report_that_was_ordered_is_asked_for_again_after_a_cut(place: Place) -> None:
    place.simulator.faults.arm(Fault.ERROR_500, times=8, kinds={"poll"})
    failures = place.pull("costs", date(2026, 10, 1))
    assert ["500 InternalServerError" in failure for failure in failures] == [True]
    first, second = place.runs()
    assert (first.state, bool(first.operation), second.state) == (PullState.FAILED, True, PullState.DONE)
    assert "500 InternalServerError" in first.message
    ordered = place.simulator.counted()["report"]
    assert place.pull("costs", date(2026, 10, 1)) == []
    # Only the other subscription's report, which had landed, was ordered anew; amortized cost is another of each.
    assert place.simulator.counted()["report"] == ordered + 3
    assert stored(place.store) == {key: amount for key, amount in truth(place.world, place.now()).items() if key[1] == date(2026, 10, 1)}


def test_a_long_throttle_ends_the_run_and_says_when_it_goes_on(place: Place) -> None:
    place.simulator.faults.arm(Fault.THROTTLE_TENANT)
    place.simulator.faults.retry_after_seconds = 3600
    began = place.now()
    (failure,) = place.pull("costs", date(2026, 10, 1))
    assert "no call for 3600 s" in failure
    (run,) = place.runs()
    assert (run.state, run.next_at, run.throttles, run.rows) == (PullState.RESCHEDULED, began + timedelta(hours=1), 1, None)
    assert stored(place.store) == {}


def test_a_failed_report_is_ordered_again_and_then_given_up(place: Place) -> None:
    place.simulator.faults.arm(Fault.REPORT_FAILED)
    assert place.pull("costs", date(2026, 10, 1)) == []
    place.simulator.faults.arm(Fault.REPORT_FAILED, times=6)  # each report is asked for twice
    before = stored(place.store)
    (failure,) = place.pull("costs", date(2026, 10, 1))
    assert "could not make the report" in failure
    assert "Report generation failed" in failure
    assert stored(place.store) == before


def test_a_subscription_without_reports_is_read_by_query(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Azure, *_said: Any, **_more: Any) -> Any:
        from collector.azure.client import Refusal

        raise Refusal("cost details are not supported", status=422, code="UnprocessableEntity")

    monkeypatch.setattr(Azure, "begin_report", refused)
    assert place.pull("costs", date(2026, 10, 1)) == []
    assert "reading the query API" in "\n".join(place.said)
    told = {key: amount for key, amount in truth(place.world, place.now()).items() if key[1] == date(2026, 10, 1)}
    by_day: dict[tuple[Any, ...], Decimal] = {}
    for key, amount in told.items():
        by_day[key[0], key[2], key[6]] = by_day.get((key[0], key[2], key[6]), Decimal(0)) + amount
    found: dict[tuple[Any, ...], Decimal] = {}
    for key, amount in stored(place.store).items():
        found[key[0], key[2], key[6]] = found.get((key[0], key[2], key[6]), Decimal(0)) + amount
    assert found == by_day


def test_inventory_quotas_and_prices_are_written_down_too(place: Place) -> None:
    for what in ("inventory", "quotas", "prices"):
        assert place.pull(what) == []
    assert [(run.source, run.state) for run in place.runs()] == [("inventory", "done"), ("quotas", "done"), ("prices", "done")]
    with place.store.read() as session:
        assert {run.source for run in sources.last_runs(session)} == {"inventory", "quotas", "prices"}
    place.simulator.faults.arm(Fault.ERROR_500, times=100, kinds={"list"})
    assert place.pull("inventory")
    assert place.runs()[-1].state == PullState.FAILED


# -- retail prices --------------------------------------------------------------------------------


def item(**more: Any) -> dict[str, Any]:
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0,
        "unitPrice": Decimal("3.673"),
        "effectiveStartDate": "2023-08-01T00:00:00Z",
        "meterId": "m",
        "meterName": "NC24ads A100 v4",
        "productName": "Virtual Machines NCADS A100 v4 Series",
        "skuName": "NC24ads A100 v4",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": "Standard_NC24ads_A100_v4",
    } | more


SIZE = "Standard_NC24ads_A100_v4"
DECOYS = (
    {"meterName": "NC24ads A100 v4 Spot", "skuName": "NC24ads A100 v4 Spot", "unitPrice": Decimal("1.46")},
    {"meterName": "NC24ads A100 v4 Low Priority", "unitPrice": Decimal("0.73")},
    {"productName": "Virtual Machines NCADS A100 v4 Series Windows", "unitPrice": Decimal("4.777")},
    {"type": "Reservation", "unitPrice": Decimal(19305)},
    {"type": "DevTestConsumption"},
    {"isPrimaryMeterRegion": False, "unitPrice": Decimal("9.99")},
    {"effectiveStartDate": "2027-01-01T00:00:00Z", "unitPrice": Decimal("5.00")},
    {"effectiveStartDate": "2020-01-01T00:00:00Z", "unitPrice": Decimal("2.00")},
)


def test_exactly_one_price_of_a_linux_hour() -> None:
    rows, doubts = retail.hours([item(), *(item(**decoy) for decoy in DECOYS)], [SIZE], "eastus2", now=make.NOW)
    assert [(row.sku, row.region, row.unit_price, row.unit, row.currency) for row in rows] == [(SIZE, "eastus2", Decimal("3.673"), "1 hour", "USD")]
    assert doubts == []


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "Standard_NC24ads_A100_v4 in eastus2: the list has no price"),
        ([item(), item(unitPrice=Decimal("3.7"))], "Standard_NC24ads_A100_v4 in eastus2: the list has 2 prices (3.673 USD, 3.7 USD)"),
    ],
)
def test_no_price_or_two_is_a_doubt_and_no_row(items: list[dict[str, Any]], said: str) -> None:
    rows, doubts = retail.hours(items, [SIZE], "eastus2", now=make.NOW)
    assert (rows, doubts) == ([], [f"{said}; import a price of your own: meterbridge import prices FILE"])


def test_token_meters_of_foundry_models() -> None:
    shape = {"armSkuName": None, "unitOfMeasure": "1K", "unitPrice": Decimal("0.00071")}
    meters = ["Llama 3.3 70B Inp glbl Tokens", "Llama 3.3 70B Outp glbl Tokens", "Llama 3.3 70B Batch Inp glbl Tokens", "Mistral Inp Tokens"]
    rows, doubts = retail.tokens([item(**shape, meterName=name) for name in meters], "eastus2", now=make.NOW)
    assert [(row.model, row.meter, row.unit_price, row.unit) for row in rows] == [
        ("Llama-3.3-70B-Instruct", PriceMeter.INPUT_TOKENS, Decimal("0.00071"), "1K tokens"),
        ("Llama-3.3-70B-Instruct", PriceMeter.OUTPUT_TOKENS, Decimal("0.00071"), "1K tokens"),
    ]
    assert doubts == []


@pytest.mark.walk
def test_prices_come_in_once_and_stand_between_imported_and_bundled(place: Place) -> None:
    place.pull("inventory")
    place.pull("prices")
    with place.store.read() as session:
        first = [(row.sku, row.model, row.unit_price, row.origin) for row in session.exec(select(Price).where(Price.origin == "synced"))]
    assert first
    place.pull("prices")
    with place.store.read() as session:
        assert [(row.sku, row.model, row.unit_price, row.origin) for row in session.exec(select(Price).where(Price.origin == "synced"))] == first
    for fault in (Fault.ERROR_503, Fault.HANG, Fault.TRUNCATED, Fault.RESET, Fault.THROTTLE_RETRY_AFTER):
        place.simulator.faults.arm(fault, kinds={"prices"})
    assert place.pull("prices") == []
    assert place.simulator.leaks == []


def test_pages_of_prices_that_lead_in_a_circle_or_elsewhere_change_nothing(place: Place) -> None:
    place.pull("inventory")
    place.simulator.page_items = 1
    place.simulator.faults.arm(Fault.NEXT_LINK_LOOP, times=50, kinds={"prices"})
    (failure,) = place.pull("prices")
    assert "lead in a circle" in failure


# -- the command ----------------------------------------------------------------------------------


def test_the_command_refuses_what_makes_no_sense(place: Place) -> None:
    settings = Settings.from_environment(place.simulator.environment())
    for what, month, said in (("inventory", "2026-10", "--month is for costs"), ("costs", "2027-01", "has not begun"), ("costs", "soon", "written like")):
        with pytest.raises(InvalidInput, match=said):
            sync.run(
                place.store,
                sync.command_of(what, month, settings),  # type: ignore[arg-type]
                now=place.now,
                say=place.said.append,
                progress=lambda _done, _of: None,
            )
    with pytest.raises(InvalidInput, match="METERBRIDGE_AZURE_SUBSCRIPTIONS"):
        sync.command_of("costs", None, Settings())
    assert "static" not in repr(sync.command_of("costs", None, settings))


def test_the_command_line_pulls_and_says_what_came(
    place: Place, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        monkeypatch.setenv("METERBRIDGE_DATABASE_URL", sqlite_url)
        assert cli.main(["sync", "costs"]) == 2
        assert "METERBRIDGE_AZURE_SUBSCRIPTIONS" in capsys.readouterr().err
        for name, value in place.simulator.environment().items():
            monkeypatch.setenv(name, value)
        assert cli.main(["sync", "costs", "--month", "2026-10"]) == 0
        assert "landed" in "".join(capsys.readouterr())
        assert cli.main(["sync", "quotas", "--month", "2026-10"]) == 2
        monkeypatch.setenv("METERBRIDGE_AZURE_CREDENTIAL", "static:wrong-secret")
        assert cli.main(["sync", "inventory"]) == 1
        said = "".join(capsys.readouterr())
        assert "The token was refused" in said
        assert "wrong-secret" not in said
    finally:
        root.handlers[:], root.level = handlers, level
    store = Store(sqlite_url)
    assert stored(store) == {key: amount for key, amount in truth(place.world, place.now()).items() if key[1] == date(2026, 10, 1)}
    store.close()
