"""A bill file becomes current charges, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import random
import threading
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import select

from collector.billing import Landing, formats, land, read_bill, together
from collector.billing.classify import Dimensions
from models.errors import Conflict
from models.periods import BillingPeriod
from models.resources import DeploymentFact, Mode, Route, Workspace, WorkspaceFact
from models.store import Store, quick
from tests import factories
from tests.collector.billing.desk import AZURE, FOCUS, LATER, NOW, TOKENS, VM, WORKSPACE, A, B, Desk, as_csv, by_class, sums


def test_a_days_sum_knows_what_of_it_is_on_an_invoice(desk: Desk) -> None:
    desk.rows(
        TOKENS | {"invoiceId": "G000000001"},
        TOKENS | {"invoiceId": "G000000002", "quantity": "50", "costInBillingCurrency": "0.015"},
        TOKENS | {"invoiceId": "", "costInBillingCurrency": "0.2"},
        VM | {"invoiceId": ""},
    )
    assert {item.charge_class.value: (day.rows, day.billed_cost, day.invoiced_rows, day.invoiced_cost) for day, item in desk.days()} == {
        "marketplace": (3, Decimal("0.245"), 2, Decimal("0.045")),
        "compute": (1, Decimal("88.152"), 0, None),
    }


def test_a_restated_file_replaces_and_the_older_one_stays_readable(desk: Desk) -> None:
    desk.land(AZURE / "cost_details.csv", now=NOW)
    landing = desk.land(AZURE / "cost_details_restated.csv", now=LATER)

    assert landing.in_scope_totals == {"USD": Decimal("4235.30877971"), "EUR": Decimal("300.267139")}
    assert [part.replaced_totals for part in landing.parts] == [{"USD": Decimal("3633.93339083")}, {"EUR": Decimal("210.534939")}]
    assert sums(desk.days(), by_class) == {
        ("marketplace", "USD"): Decimal("2513.88977971"),
        ("marketplace", "EUR"): Decimal("300.267139"),
        ("compute", "USD"): Decimal("1715.749"),
        ("foundry", "USD"): Decimal("5.68"),
        ("adjustment", "USD"): Decimal("-0.01"),
        ("out_of_scope", "USD"): Decimal("0.02496"),
    }
    parts = desk.parts()
    assert [(part.landed_at, part.superseded_at) for part in parts] == [(NOW, LATER), (NOW, LATER), (LATER, None), (LATER, None)]
    with desk.store.read() as session:
        old = session.execute(sa.select(sa.func.count()).select_from(sa.table("charge")).where(sa.column("part_id").in_([part.id for part in parts[:2]])))
        assert old.scalar_one() == 69


def test_the_same_file_again_changes_nothing_and_says_so(desk: Desk) -> None:
    first = desk.land(AZURE / "cost_details.csv", now=NOW)
    before = desk.counts()
    again = desk.land(AZURE / "cost_details.csv", now=LATER, replace=True)

    assert again.unchanged
    assert not first.unchanged
    assert desk.counts() == before
    assert again.in_scope_totals == first.in_scope_totals
    assert "nothing was written" in again.summary()


def test_an_older_file_lands_again_once_it_was_replaced(table: Desk) -> None:
    table.rows(TOKENS, name="one.csv")
    table.rows(TOKENS, TOKENS, name="two.csv", now=LATER)
    back = table.rows(TOKENS, name="one.csv", now=LATER, replace=True)
    assert not back.unchanged
    assert back.totals == {"USD": Decimal("0.03")}


@pytest.mark.parametrize(("cost", "is_refused"), [("80", False), ("79.99", True)])
def test_a_total_that_falls_by_more_than_a_fifth_needs_a_word(desk: Desk, cost: str, is_refused: bool) -> None:
    desk.rows(TOKENS | {"costInBillingCurrency": "100"})
    if not is_refused:
        assert desk.rows(TOKENS | {"costInBillingCurrency": cost}, now=LATER).totals == {"USD": Decimal(cost)}
        return
    with pytest.raises(Conflict, match=r"from 100 to 79.99 USD.*--replace"):
        desk.rows(TOKENS | {"costInBillingCurrency": cost}, now=LATER)
    assert desk.counts() == (1, 1, 1)
    assert desk.rows(TOKENS | {"costInBillingCurrency": cost}, now=LATER, replace=True).totals == {"USD": Decimal("79.99")}


def test_a_currency_that_vanishes_is_a_fall(table: Desk) -> None:
    table.rows(TOKENS, TOKENS | {"billingCurrency": "EUR"})
    with pytest.raises(Conflict, match=r"falls from 0.03 to 0 EUR"):
        table.rows(TOKENS | {"costInBillingCurrency": "5"}, now=LATER)


def test_a_file_replaces_only_the_subscriptions_and_months_it_contains(desk: Desk) -> None:
    april = TOKENS | {"date": "04/02/2025", "billingPeriodStartDate": "04/01/2025"}
    other = TOKENS | {"SubscriptionId": B}
    desk.rows(TOKENS, april, other)
    desk.rows(april | {"costInBillingCurrency": "7"}, now=LATER)

    current = [(part.subscription_id, part.period_start, part.totals) for part in desk.parts() if part.superseded_at is None]
    assert sorted(current, key=str) == [
        (A, date(2025, 3, 1), {"USD": "0.03"}),
        (A, date(2025, 4, 1), {"USD": "7"}),
        (B, date(2025, 3, 1), {"USD": "0.03"}),
    ]


def test_charges_of_no_subscription_belong_to_their_billing_account(table: Desk) -> None:
    loose = TOKENS | {"SubscriptionId": "", "ResourceId": "", "chargeType": "RoundingAdjustment"}
    table.rows(loose | {"billingAccountId": "/providers/Microsoft.Billing/billingAccounts/one"})
    table.rows(loose | {"billingAccountId": "two", "costInBillingCurrency": "1"}, now=LATER)
    table.rows(loose | {"billingAccountId": "ONE", "costInBillingCurrency": "2"}, now=LATER)

    current = [(part.subscription_id, part.billing_account, part.totals) for part in table.parts() if part.superseded_at is None]
    assert current == [("", "two", {"USD": "1"}), ("", "ONE", {"USD": "2"})]


def test_without_a_billing_period_the_charge_says_the_month(table: Desk) -> None:
    row = {name: value for name, value in TOKENS.items() if name != "billingPeriodStartDate"}
    table.rows(row | {"date": "2025-04-30"})
    assert table.parts()[0].period_start == date(2025, 4, 1)


def from_the_17th(table: Desk, *, month: int, name: str) -> Path:
    """The recorded bill as one of a subscription whose bills begin on the 17th: its first days, or those from the 17th on."""
    start, end = (f"{month:02}/17/2025", f"{month + 1:02}/16/2025")
    records = list(csv.DictReader(io.StringIO((AZURE / "cost_details.csv").read_text(encoding="utf-8-sig"), newline="")))
    kept = [row | {"billingPeriodStartDate": start, "billingPeriodEndDate": end} for row in records if row["SubscriptionId"] == A]
    if month == 3:
        kept = [row | {"date": row["date"].replace("03/0", "03/2")} for row in kept]
    return table.file(as_csv(kept), name)


def test_a_bill_for_other_days_than_a_months_stands_beside_the_next_and_replaces_itself(table: Desk) -> None:
    february, march = from_the_17th(table, month=2, name="february.csv"), from_the_17th(table, month=3, name="march.csv")
    landing = table.land(february)
    assert "for 2025-02-17 to 2025-03-16 (cost_details_mca)" in landing.summary()
    table.land(march)
    once = sum(charge.billed_cost for charge, _ in table.current())
    assert once == 2 * landing.totals["USD"]
    # Both are of March, and of the one as of the other nothing is lost when it comes again.
    spans = [(part.period_start, part.billed) for part in table.parts() if part.superseded_at is None]
    assert spans == [
        (date(2025, 3, 1), BillingPeriod(date(2025, 2, 17), date(2025, 3, 17))),
        (date(2025, 3, 1), BillingPeriod(date(2025, 3, 17), date(2025, 4, 17))),
    ]
    table.land(table.file(february.read_bytes() + b"\r\n", "again.csv"), now=LATER)
    assert sum(charge.billed_cost for charge, _ in table.current()) == once


def test_bills_whose_days_overlap_are_refused_by_name(table: Desk) -> None:
    table.land(from_the_17th(table, month=2, name="february.csv"))
    before = table.current()
    with pytest.raises(Conflict, match=r"its bill for 2025-03 and the one for 2025-02-17 to 2025-03-16 \(february.csv\) both hold 2025-03-01 to 2025-03-16"):
        table.land(AZURE / "cost_details.csv", now=LATER)
    assert table.current() == before
    landing = table.land(AZURE / "cost_details.csv", now=LATER, replace=True)
    assert sum(charge.billed_cost for charge, _ in table.current()) == sum(landing.totals.values())
    # And the other way round.
    with pytest.raises(Conflict, match=r"its bill for 2025-02-17 to 2025-03-16 and the one for 2025-03 \(cost_details.csv\) both hold"):
        table.land(from_the_17th(table, month=2, name="once-more.csv"), now=LATER)


def test_a_month_that_a_bill_no_longer_touches_goes_with_it(table: Desk) -> None:
    mine = TOKENS | {"billingPeriodStartDate": "02/17/2025", "billingPeriodEndDate": "03/16/2025"}
    table.rows(mine, mine | {"date": "02/20/2025"})
    assert len(table.current()) == 2
    table.rows(mine, now=LATER, replace=True)
    assert [part.period_start for part in table.parts() if part.superseded_at is None] == [date(2025, 3, 1)]
    assert len(table.current()) == 1


def test_currencies_of_one_part_stay_apart(table: Desk) -> None:
    landing = table.rows(TOKENS, TOKENS | {"billingCurrency": "EUR", "costInBillingCurrency": "0.02"})
    assert landing.totals == {"USD": Decimal("0.03"), "EUR": Decimal("0.02")}
    assert len(landing.parts) == 1
    assert len(table.days()) == 2


def test_the_latest_dated_rate_is_used_and_others_are_told(table: Desk) -> None:
    euro = TOKENS | {"billingCurrency": "EUR"}
    landing = table.rows(
        euro | {"exchangeRatePricingToBilling": "0.93", "exchangeRateDate": "03/02/2025"},
        euro | {"exchangeRatePricingToBilling": "0.9200", "exchangeRateDate": "03/01/2025"},
    )
    assert table.parts()[0].exchange_rates == {"USD>EUR": "0.93"}
    assert [(one["kind"], one["subject"], one["count"]) for one in landing.problems] == [("several_rates", "USD>EUR", 1)]


class Crash(Exception):
    """The process ends here."""


def test_a_crash_before_the_flip_shows_nothing_and_is_cleaned_up_at_the_next_landing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> datetime:
        # A killed process removes nothing.
        monkeypatch.setattr("collector.billing.landing._remove", lambda *_: None)
        raise Crash

    desk.rows(TOKENS)
    with pytest.raises(Crash):
        desk.land(AZURE / "cost_details.csv", now=crash)
    monkeypatch.undo()
    assert desk.counts()[:2] == (3, 70)
    assert [part.landed_at for part in desk.parts()] == [NOW, None, None]
    assert sums(desk.current(), by_class) == {("marketplace", "USD"): Decimal("0.03")}

    desk.rows(TOKENS, TOKENS, now=LATER)

    assert desk.counts() == (2, 3, 2)


def test_a_failure_removes_what_it_staged(desk: Desk) -> None:
    def fail() -> datetime:
        raise Crash

    with pytest.raises(Crash):
        desk.land(AZURE / "cost_details.csv", now=fail)
    assert desk.counts() == (0, 0, 0)


def test_a_landing_under_way_is_no_leftover(desk: Desk) -> None:
    other = desk.file(as_csv([TOKENS | {"SubscriptionId": B}]), "other.csv")
    ours = desk.file(as_csv([TOKENS] * 3), "ours.csv")
    seen: list[Landing] = []

    def someone_else_lands(_: int, __: int | None) -> None:
        seen.append(desk.land(other))

    landing = land(desk.store, read_bill(ours, name="ours.csv"), now=LATER, author="ana", progress=someone_else_lands)

    assert (seen[0].rows, landing.rows) == (1, 3)
    assert desk.counts()[:2] == (2, 4)


def test_of_two_landings_at_once_one_is_current(desk: Desk) -> None:
    files = [desk.file(as_csv([TOKENS | {"costInBillingCurrency": cost}]), f"{cost}.csv") for cost in ("10", "11")]
    ready = threading.Barrier(2)
    faults: list[BaseException] = []

    def instant() -> datetime:
        return NOW

    def one(path: Path) -> None:
        try:
            bill = read_bill(path, name=path.name)
            ready.wait(30)
            land(desk.store, bill, now=instant, author="ana")
        except BaseException as fault:  # noqa: BLE001 -- told by the assertion below
            faults.append(fault)

    threads = [threading.Thread(target=one, args=(path,)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert faults == []
    assert sorted(part.superseded_at is None for part in desk.parts()) == [False, True]
    assert all(part.landed_at == NOW for part in desk.parts())


def test_a_part_is_never_landed_before_what_it_replaces(table: Desk) -> None:
    table.rows(TOKENS, now=LATER)
    table.rows(TOKENS, TOKENS, now=NOW)
    assert [(part.landed_at, part.superseded_at) for part in table.parts()] == [(LATER, LATER), (LATER, None)]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)))
def test_rows_in_any_order_land_to_the_same_days(table: Desk, order: list[int]) -> None:
    rows = [
        TOKENS
        | {
            "costInBillingCurrency": f"0.{index}1",
            "quantity": "" if index == 7 else str(index),
            "date": f"03/0{index % 3 + 1}/2025",
            "tags": f'"n": "{index % 2}"',
        }
        for index in range(12)
    ]

    def days() -> set[Any]:
        return {
            (day.charged_on, item.digest, day.charge_type, day.currency, day.rows, day.quantity, day.billed_cost, day.effective_cost)
            for day, item in table.days()
        }

    table.rows(*rows, replace=True)
    expected = days()
    table.rows(*(rows[index] for index in order), replace=True)
    assert days() == expected
    assert len(expected) == 6
    assert {(rows, quantity) for _, _, _, _, rows, quantity, _, _ in expected if quantity is None} == {(2, None)}


def test_landing_tells_how_far_it_is(table: Desk) -> None:
    told: list[tuple[int, int | None]] = []
    bill = read_bill(table.file(as_csv([TOKENS] * 4500)), name="bill.csv")
    land(table.store, bill, now=NOW, author="ana", progress=lambda done, of: told.append((done, of)))
    assert told == [(2000, 4500), (4000, 4500), (4500, 4500)]
    # Packed lines cannot be counted without unpacking them, the bytes can; a line break in a cell makes it "at most".
    told.clear()
    packed = table.file(gzip.compress(as_csv([TOKENS | {"meterName": "other"}] * 3).encode()))
    land(table.store, read_bill(packed, name="bill.csv.gz"), now=NOW, author="ana", replace=True, progress=lambda done, of: told.append((done, of)))
    broken = table.file(as_csv([TOKENS | {"product": "two\nlines"}] * 3))
    land(table.store, read_bill(broken, name="bill.csv"), now=NOW, author="ana", replace=True, progress=lambda done, of: told.append((done, of)))
    assert told == [(3, 3), (3, 6)]


def test_a_packed_bill_tells_how_far_it_is_by_its_bytes(table: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """6,000 rows of amounts that do not pack, as one file and as the parts of an export, in blocks and record by record: a share that grows to the whole."""
    chance = random.Random(1)
    rows = [TOKENS | {"quantity": str(chance.randrange(10**15)), "invoiceId": f"{chance.randrange(16**200):x}"} for _ in range(6_000)]
    whole, *parts = (table.file(gzip.compress(as_csv(some).encode()), f"{number}.csv.gz") for number, some in enumerate((rows, rows[:4_000], rows[4_000:])))
    for large, paths in ((0, [whole]), (0, parts), (1 << 30, [whole])):
        monkeypatch.setattr(formats, "_LARGE", large)
        told: list[tuple[int, int | None]] = []
        bill = together([read_bill(path, name=f"part_{number}_0001.csv.gz") for number, path in enumerate(paths)])
        land(table.store, bill, now=NOW, author="ana", replace=True, progress=lambda done, of, told=told: told.append((done, of)))  # type: ignore[misc]
        assert [done for done, _ in told] == [2_000, 4_000, 6_000]
        first, second, last = (done / (of or 0) for done, of in told)
        # Blocks are read ahead: of a file as small as this, all of them.
        assert 0.3 < first <= (0.8 if large else 1)
        assert first <= second <= last == 1


def test_the_disk_is_waited_for_once_at_the_flip(table: Desk) -> None:
    """Staged rows are invisible: the log is synced (2) with the commit that shows them, and not (1) with those before it."""
    synced: list[int] = []

    def committed(connection: sa.Connection) -> None:
        synced.append(int(quick(connection, "PRAGMA synchronous").fetchone()[0]))

    sa.event.listen(table.store._writer, "commit", committed)
    bill = read_bill(table.file(as_csv([TOKENS] * 4500)), name="bill.csv")
    land(table.store, bill, now=NOW, author="ana")
    sa.event.remove(table.store._writer, "commit", committed)
    assert synced[-1] == 2
    assert synced.count(1) >= 3
    with table.store.connection() as connection:
        assert quick(connection, "PRAGMA synchronous").fetchone()[0] == 2


def test_the_summary_says_what_happened_in_a_few_lines(table: Desk) -> None:
    table.land(AZURE / "cost_details.csv")
    assert table.land(AZURE / "cost_details_restated.csv", now=LATER).summary().splitlines() == [
        "cost_details_restated.csv: landed 72 rows of 2 subscriptions for 2025-03 (cost_details_mca)",
        "  billed 300.267139 EUR, 4235.33373971 USD; of it model spend 300.267139 EUR, 4235.30877971 USD",
        "  replaces 2 earlier parts, which stay readable as of then",
        "  rows that are not model spend (kept, never added): 1",
        "  rows of a meter whose text does not say what it counts (their money counts, their quantity once somebody says it): 1",
    ]


def registry(store: Store) -> tuple[list[str], list[Any], list[Any]]:
    with store.read() as session:
        identities = sorted(session.exec(select(Workspace.name)))
        workspaces = [(one.workspace, one.kind, one.subscription_id, one.resource_group, one.source) for one in session.exec(select(WorkspaceFact))]
        deployments = [(one.workspace, one.name, one.mode, one.route, one.model, one.sku, one.source) for one in session.exec(select(DeploymentFact))]
    return identities, sorted(workspaces, key=str), sorted(deployments, key=str)


def test_workspaces_and_deployments_that_only_the_bill_knows_are_told_to_the_registry(desk: Desk) -> None:
    desk.land(AZURE / "cost_details_restated.csv")
    desk.land(FOCUS / "focus_export_part_0_0001.csv", FOCUS / "focus_export_part_1_0001.csv", now=LATER)  # lower-cased ids add nothing

    a100, nd96 = "Standard_NC24ads_A100_v4", "Standard_ND96amsr_A100_v4"
    assert registry(desk.store) == (
        ["aif-contoso", "proj-chatbot", "ws-llama-prod"],
        [
            ("aif-contoso", "foundry_account", A, "rg-ai-prod", "bill"),
            ("proj-chatbot", "workspace", A, "rg-ai-studio", "bill"),
            ("ws-llama-prod", "workspace", A, "rg-ai-prod", "bill"),
        ],
        [
            ("aif-contoso", "llama-33-70b", Mode.SERVERLESS, Route.FOUNDRY, "Llama-3.3-70B-Instruct", None, "bill"),
            ("proj-chatbot", "llama-70b-shared/default", Mode.MANAGED_COMPUTE, Route.COMPUTE, None, nd96, "bill"),
            ("ws-llama-prod", "llama-8b-managed/blue", Mode.MANAGED_COMPUTE, Route.COMPUTE, None, a100, "bill"),
            ("ws-llama-prod", "llama-8b-managed/green", Mode.MANAGED_COMPUTE, Route.COMPUTE, None, a100, "bill"),
        ],
    )


def test_one_name_where_endpoint_and_deployment_are_the_same(table: Desk) -> None:
    table.rows(VM | {"tags": '{"azuremlendpoint": "ep", "azuremldeployment": "ep"}'})
    assert [one[1] for one in registry(table.store)[2]] == ["ep"]


def test_what_inventory_knows_stays_and_what_usage_knows_gets_its_subscription(table: Desk) -> None:
    with table.store.write() as session:
        for name in ("WS-East", "ws-west"):
            factories.workspace(session, name)
        session.add(WorkspaceFact(workspace="WS-East", source="usage", known_from=NOW))
        session.add(WorkspaceFact(workspace="ws-west", source="inventory", subscription_id=B, known_from=NOW))
        session.add(DeploymentFact(workspace="ws-west", name="ep/blue", endpoint="ep", deployment="blue", source="inventory", known_from=NOW))
        session.add(DeploymentFact(workspace="WS-East", name="Ep/blue", endpoint="Ep", deployment="blue", source="usage", known_from=NOW))
    table.rows(VM, VM | {"ResourceId": WORKSPACE.replace("ws-east", "WS-WEST")})

    identities, workspaces, deployments = registry(table.store)
    assert identities == ["WS-East", "ws-west"]
    assert workspaces == [
        ("WS-East", "workspace", A, "rg-ai", "bill"),
        ("WS-East", "workspace", None, None, "usage"),
        ("ws-west", "workspace", B, None, "inventory"),
    ]
    assert [(workspace, name, source) for workspace, name, *_, source in deployments] == [
        ("WS-East", "Ep/blue", "bill"),
        ("WS-East", "Ep/blue", "usage"),
        ("ws-west", "ep/blue", "inventory"),
    ]


def test_every_text_of_a_row_has_a_place_in_both_schemas() -> None:
    from collector.billing.formats import _COST_DETAILS, _FOCUS

    assert set(Dimensions._fields) <= {*_COST_DETAILS, *_FOCUS}
