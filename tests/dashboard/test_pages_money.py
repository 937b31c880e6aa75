"""The money pages over a real database: what they show equals what the ledger says, and every state of theirs is said in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dash.development.base_component import Component

from dashboard import figures
from dashboard.app import LedgerReader
from dashboard.filters import Selection
from dashboard.pages import comparison, explain, ingest, reconciliation, reports
from dashboard.shell import View
from models.breakeven import Advice
from models.errors import Unavailable
from models.ledger import ComparisonRow, Reconciliation, ReconciliationRow, ReconciliationTotal, WhatIf
from models.ledger.comparison import ManagedSide, ServerlessSide, WhatIfAnswer
from models.ledger.intake import DoorHour, Intake, Line, Refused, RefusedSample, Sender, SnapshotRecord
from models.ledger.utilisation import GpuUse
from models.periods import Period
from models.reports import ReportSnapshot
from models.store import Store
from models.variance import Cause
from tests.dashboard import fakes

NOW = fakes.NOW
DAY = date(2026, 11, 3)


def said(part: Any) -> str:
    """Every word of a part of a page, in order."""
    if isinstance(part, (list, tuple)):
        return " ".join(" ".join(said(one) for one in part).split())
    if isinstance(part, Component):
        return said(getattr(part, "children", None))
    return "" if part is None else str(part)


def links(part: Any) -> list[str]:
    if isinstance(part, (list, tuple)):
        return [found for one in part for found in links(one)]
    if not isinstance(part, Component):
        return []
    here = getattr(part, "href", None)
    return [*([here] if here else []), *links(getattr(part, "children", None))]


def row(cause: Cause, *, deployment: str, billed: str) -> ReconciliationRow:
    amount = Decimal(billed) - 10
    return ReconciliationRow(
        "ws-a", deployment, "input_tokens", DAY, "USD", Decimal(10), Decimal(billed), Decimal(1000), None, {cause: amount}, "closed", False, 0
    )


class MoneyLedger(fakes.FakeLedger):
    """The made-up ledger with answers for the money pages."""

    def reconciliation(self, period: Period, filters: Any, *, now: datetime) -> Reconciliation:
        self._called("reconciliation")
        rows = [row(Cause.PRICE_DIFFERENCE, deployment="dear", billed="12.5"), row(Cause.UNEXPLAINED, deployment="odd", billed="9.25")]
        causes = {Cause.PRICE_DIFFERENCE: Decimal("2.5"), Cause.UNEXPLAINED: Decimal("-0.75")}
        return Reconciliation(period, rows, [ReconciliationTotal("USD", Decimal(20), Decimal("21.75"), causes, Decimal("0.98"), 2)])

    def closed_months(self, *, now: datetime) -> list[Any]:
        self._called("closed_months")
        return []

    def comparison(self, period: Period, filters: Any, *, now: datetime, what_if: WhatIf | None = None) -> list[ComparisonRow]:
        self._called("comparison")
        answer = (
            None
            if what_if is None
            else WhatIfAnswer(Decimal(80), 40_000_000, None, True, None, False, "calls come in 9 hours of the day (UTC), and the instances would run 8")
        )
        serverless = ServerlessSide(0, Decimal(0), None, True, None, Decimal("0.60"), Decimal("0.80"), Decimal("0.66"))
        managed = ManagedSide(
            300_000_000,
            Decimal(2400),
            Decimal(600),
            Decimal(1800),
            Decimal(8),
            Decimal(2),
            Decimal("0.25"),
            "observed",
            None,
            40_000_000,
            1,
            1,
            None,
            GpuUse(Decimal("0.31"), None, 24, None),
        )
        return [
            ComparisonRow(
                "Llama-3.3-70B-Instruct",
                "USD",
                serverless,
                managed,
                120_000_000,
                False,
                Advice("serverless", Decimal(60), None),
                Decimal(30),
                "settled",
                Decimal("0.7"),
                answer,
            )
        ]

    def intake(self, period: Period, *, visible: frozenset[str] | None, now: datetime) -> Intake:
        self._called("intake")
        at = datetime(2026, 11, 19, 8, tzinfo=UTC)
        sample = RefusedSample(NOW, 3, "unknown field 'prompt'", {"id": "string", "prompt": "string"})
        return Intake(
            period,
            [(at, 420)],
            [Sender("gateway", 2, 400, 100, 90_000, NOW, 0)],
            [],
            [],
            hours=[DoorHour(at, 420, 7, 1, 12)],
            lines=[Line("k1", "gateway key", "gateway", "native", 420, 7, 1, 10, 0, 105, 0), Line("?", None, "", "litellm", 0, 0, 0, 2, 0, 0, 0)],
            refused=[
                Refused("k1", "gateway key", "gateway", "native", "schema_invalid", 10, "Rename the field.", [sample]),
                Refused("?", None, "", "litellm", "unauthorized", 2, "Send a key.", []),
            ],
        )

    def report_snapshots(self, *, visible: frozenset[str] | None) -> list[SnapshotRecord]:
        self._called("report_snapshots")
        return [SnapshotRecord("weekly-2026-W46-abc", "weekly", "2026-W46", "UTC", 1, NOW, "ab" * 32, True)]


@pytest.fixture
def ledger() -> MoneyLedger:
    return MoneyLedger()


def view(ledger: Any, path: str, search: str = "", *, visible: frozenset[str] | None = None) -> View:
    return View(Selection.parse(search), ledger, NOW, visible, "/dashboard/", path, "http://127.0.0.1:8000", is_open=True)


def test_reconciliation_heads_with_unexplained_and_coverage(ledger: MoneyLedger) -> None:
    page = said(reconciliation.layout(view(ledger, "reconciliation")))
    assert "Unexplained -0.75 USD" in page
    assert "Coverage 98 %" in page
    assert "price difference 2.50 USD 1 dear" in page
    assert "Rows that differ" in page


def test_a_cause_that_cancels_out_over_the_period_is_named_with_its_rows(ledger: MoneyLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(Cause.TIMING, deployment="late", billed=billed) for billed in ("9.25", "10.75")]
    found = Reconciliation(Selection.parse("").period(NOW), rows, [ReconciliationTotal("USD", Decimal(20), Decimal(20), {}, Decimal(1), 2)])
    monkeypatch.setattr(ledger, "reconciliation", lambda *_asked, **_more: found)
    assert "timing 0.00 USD 2 late" in said(reconciliation.layout(view(ledger, "reconciliation")))


def test_a_difference_below_one_has_marks_on_its_axis() -> None:
    drawn = figures.waterfall(
        [("expected", Decimal(0), True), ("currency", Decimal("0.6"), False), ("billed", Decimal("0.6"), True)], currency="CHF", revision=""
    )
    assert drawn["layout"]["yaxis"]["tickformat"] == ",~f"


def test_lines_that_no_instances_can_reach_are_not_said_to_meet(ledger: MoneyLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    page = said(comparison.layout(view(ledger, "comparison")))
    assert "Serverless would cost as much as today's instances at 120.0 M tokens a day, which they cannot serve: the lines do not meet. Today" in page
    (one,) = ledger.comparison(Selection.parse("").period(NOW), None, now=NOW)
    monkeypatch.setattr(ledger, "comparison", lambda *_asked, **_more: [replace(one, break_even_reachable=True)])
    assert "The lines meet at 120.0 M tokens a day; today" in said(comparison.layout(view(ledger, "comparison")))


def test_a_cause_in_the_address_shows_its_rows_alone(ledger: MoneyLedger) -> None:
    page = reconciliation.layout(view(ledger, "reconciliation", "?cause=unexplained"))
    assert "Rows with unexplained" in said(page)
    (rows,) = (words for part in page if (words := said(part)).startswith("Rows with"))
    assert "odd" in rows
    assert "dear" not in rows


def test_a_row_leads_to_its_own_day_deployment_and_meter(ledger: MoneyLedger) -> None:
    page = reconciliation.layout(view(ledger, "reconciliation"))
    assert "/dashboard/reconciliation?workspace=ws-a&deployment=dear&day=2026-11-03&meter=input_tokens" in links(page)


@pytest.mark.parametrize(("search", "words"), [("?cause=magic", "there is no cause 'magic'"), ("?day=yesterday", "day must be written like 2026-11-03")])
def test_reconciliation_refuses_what_cannot_be_meant(ledger: MoneyLedger, search: str, words: str) -> None:
    assert words in said(reconciliation.layout(view(ledger, "reconciliation", search)))


def test_the_month_picker_has_six_months_and_marks_the_present_one(ledger: MoneyLedger) -> None:
    page = reconciliation.layout(view(ledger, "reconciliation", "?from=2026-10-01&to=2026-11-01"))
    months = page[2]
    assert said(months) == "Jun 2026 Jul 2026 Aug 2026 Sep 2026 Oct 2026 Nov 2026"
    assert "/dashboard/reconciliation?from=2026-09-01&to=2026-10-01" in links(months)


@pytest.mark.parametrize(
    ("module", "broken"), [(reconciliation, "reconciliation"), (comparison, "comparison"), (ingest, "intake"), (reports, "report_snapshots")]
)
def test_a_page_whose_answer_cannot_be_had_says_so_and_offers_to_try_again(ledger: MoneyLedger, module: Any, broken: str) -> None:
    ledger.broken[broken] = Unavailable("the database is busy")
    page = module.layout(view(ledger, module.PATH))
    assert "the database is busy" in said(page)
    assert "Try again" in said(page)


def test_comparison_names_the_cheaper_mode_its_saving_and_how_sure_that_is(ledger: MoneyLedger) -> None:
    page = said(comparison.layout(view(ledger, "comparison")))
    assert "serverless cheaper by 60.00 USD a day; from 30 days, settled" in page
    assert "Idle burn a day 60.00 USD" in page
    assert "today's instances cannot serve that many" in page


def test_a_what_if_is_in_the_address(ledger: MoneyLedger) -> None:
    page = said(comparison.layout(view(ledger, "comparison", "?sku=Standard_X&instances=2&hours_per_day=8")))
    assert "2 × Standard_X, 8 hours a day" in page
    # That a break-even lies at 40 million and 10 million come is no advice where the instances cannot carry them.
    assert "Llama-3.3-70B-Instruct yes no unknown unknown 80.00 USD 40.0 M 10.0 M calls come in 9 hours" in page


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("?sku=Standard_X", "a what-if needs sku (a size), instances and hours_per_day together"),
        ("?sku=X&instances=0&hours_per_day=8", "instances must be a whole number from 1 to 1,000, not '0'"),
        ("?sku=X&instances=1&hours_per_day=25", "hours_per_day must be above 0 and at most 24"),
    ],
)
def test_a_what_if_that_cannot_be_meant_is_refused_in_words(ledger: MoneyLedger, search: str, words: str) -> None:
    page = said(comparison.layout(view(ledger, "comparison", search)))
    assert words in page
    assert "comparison" not in ledger.calls


def test_ingest_shows_senders_with_their_share_of_unknown_tokens(ledger: MoneyLedger) -> None:
    page = said(ingest.layout(view(ledger, "ingest")))
    assert "Events that arrived 420" in page
    assert "gateway 2 400 90,000 100 25 %" in page
    assert "None: no id came again with other content." in page


def test_ingest_shows_what_was_refused_with_a_sample_and_what_to_do(ledger: MoneyLedger) -> None:
    page = said(ingest.layout(view(ledger, "ingest")))
    assert "Refused 12 and 1 conflicts" in page
    assert "gateway key gateway native 420 7 1 10 25 %" in page
    assert "no valid key (not read) LiteLLM unauthorized 2 Send a key. not kept any more" in page
    assert "gateway key gateway native schema invalid 10 Rename the field. item 3" in page
    assert '"prompt": "string"' in page


def test_reports_lists_what_is_kept_and_marks_restatements(ledger: MoneyLedger) -> None:
    page = said(reports.layout(view(ledger, "reports")))
    assert "weekly 2026-W46" in page
    assert "restatement 1" in page


# -- over a real database ---------------------------------------------------------------------------


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[LedgerReader]:
    store = Store(f"sqlite:///{tmp_path}/t.db")
    store.migrate()
    with store.write() as session:
        for name, scope in (("weekly-a", '{"deployments":[],"teams":[],"visible":null,"workspaces":[]}'), ("weekly-b", '{"visible":["ws-a"]}')):
            session.add(
                ReportSnapshot(
                    id=name, kind="weekly", period="2026-W46", time_zone="UTC", scope=scope, number=0, made_at=NOW, figures_sha256="ab", body={"a": 1}
                )
            )
    with store.read() as session:
        yield LedgerReader(session)
    store.close()


def test_an_empty_service_says_what_to_do_next_on_every_money_page(reader: LedgerReader) -> None:
    for module in (reconciliation, comparison, explain):
        page = said(module.layout(view(reader, module.PATH)))
        assert "Nothing here" in page, module.NAME
    assert "meterbridge import" in said(ingest.layout(view(reader, "ingest")))


def test_a_reader_of_some_workspaces_sees_no_report_of_others(reader: LedgerReader) -> None:
    assert [one.id for one in reader.report_snapshots(visible=None)] == ["weekly-a", "weekly-b"]
    assert reader.report_snapshots(visible=frozenset({"ws-b"})) == []
    assert reader.intake(Period(datetime(2026, 11, 1, tzinfo=UTC), NOW), visible=frozenset({"ws-b"}), now=NOW).arrivals is None


def test_what_one_page_asks_stays_in_the_address_and_is_no_filter() -> None:
    selection = Selection.parse("?workspace=ws-a&cause=rounding")
    assert selection.asked("cause") == "rounding"
    assert selection.search() == "?workspace=ws-a&cause=rounding"
    assert selection.asking(cause=None) == replace(selection, own=())
    assert not Selection.parse("?cause=rounding").is_narrowed
