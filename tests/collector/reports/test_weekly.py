"""Weekly reports as files: what each format holds, that all tell the same figures, and that they can be made again."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright
from sqlmodel import Session, select

from collector import reports
from collector.reports import outline, words
from collector.reports.letter import letter
from models import ledger, money
from models.cells import plain
from models.ledger import CostQuery
from models.periods import Period
from models.reports import ReportSnapshot
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import serving
from tests.collector.reports.printing import headings, sheets

NOW = make.NOW
W46 = Period(datetime(2026, 11, 9, tzinfo=UTC), datetime(2026, 11, 16, tzinfo=UTC))
EVIL = '=HYPERLINK("http://x")<script>alert(1)</script>'


def at(day: int) -> datetime:
    return datetime(2026, 11, day, 8, tzinfo=UTC)


def world(session: Session) -> None:
    make.serverless(session)
    make.token_prices(session, "1.00", "2.00")
    make.event(session, time=at(4), input_tokens=1_000_000, output_tokens=0)
    for day in range(9, 16):
        make.event(session, make.series(session, team=EVIL), time=at(day), input_tokens=123_457 * day, output_tokens=7)
    make.event(session, make.series(session, deployment="nameless", model=EVIL), time=at(10))
    part = make.bill_part(session)
    make.charge(session, part, make.charge_item(session), "1.00", charged_on=date(2026, 11, 4))
    make.charge(session, part, make.charge_item(session), "3.50", charged_on=date(2026, 11, 10))


def of_currencies(body: dict[str, Any], count: int) -> tuple[dict[str, Any], list[str]]:
    """The report as if its first currency were so many, with long names and something uncertain in each."""
    total, one = next((total, one) for total, one in zip(body["totals"], body["currencies"], strict=True) if total["cost"] is not None)
    codes = ["USD", "EUR", "GBP", "JPY", "CHF", "SEK", "AUD"][:count]
    movers = [{**one["movers"][0], "deployment": f"a-deployment-with-a-long-name-{number}"} for number in range(10)]
    many = {
        **body,
        "totals": [{**total, "currency": code, "unknown_token_requests": 3} for code in codes],
        "currencies": [{**one, "currency": code, "movers": movers} for code in codes],
    }
    return many, [words.amount(total["cost"], code) for code in codes]


def body_of(session: Session, week: str = "2026-W46", now: datetime = NOW) -> dict[str, Any]:
    return reports.keep(session, reports.weekly_draft(session, ledger.week_of(week, now=now), ledger.Filters(), now=now), now=now)


def test_json_has_the_figures_of_costs_to_the_digit(store: Store) -> None:
    with store.write() as session:
        world(session)
        body = body_of(session)
        expected = {total.currency: total for total in ledger.costs(session, CostQuery(W46, "none"), now=NOW).totals}
    assert {total["currency"] for total in body["totals"]} == set(expected)
    for total in body["totals"]:
        figures = expected[total["currency"]]
        assert total["cost"] == (None if figures.cost is None else money.text(figures.cost))
        assert total["billed_cost"] == (None if figures.billed_cost is None else money.text(figures.billed_cost))
    (dollars,) = [total for total in body["totals"] if total["currency"] == "USD"]
    assert dollars["last_week"]["cost"] == "1"
    assert dollars["change_percent"] is not None


def test_csv_adds_up_to_the_total_and_no_name_is_a_formula(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
    made = reports.written(body, "csv")
    rows = list(csv.DictReader(io.StringIO(made.content.decode())))
    for total in body["totals"]:
        own = [row for row in rows if row["currency"] == (total["currency"] or "")]
        assert money.text(money.add(Decimal(row["cost"] or 0) for row in own)) == (total["cost"] or "0") == made.control_total[total["currency"] or "none"]
        assert money.add(Decimal(row["billed_cost"] or 0) for row in own) == Decimal(total["billed_cost"] or 0)
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())
    assert any(row["model"] == f"'{EVIL}" for row in rows)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "|x", "%x"])
def test_what_a_spreadsheet_would_run_is_made_text(name: str) -> None:
    assert plain(name) == f"'{name}"


def test_html_runs_nothing_loads_nothing_and_shows_names_as_they_are(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
    page = reports.written(body, "html").content.decode()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "src=" not in page
    assert "href=" not in page
    assert page.count("<svg") == 2 * len([total for total in body["totals"] if total["cost"] is not None])
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


def test_every_list_ends_in_its_sum_and_the_largest_cause_stands_first(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        for name, day, tokens in (("a", 3, 2_000_000), ("a", 10, 2_000_400), ("b", 3, 1_000_000), ("b", 10, 1_500_000)):
            make.event(session, make.series(session, deployment=name), time=at(day), input_tokens=tokens, output_tokens=0)
        body = body_of(session)
    one = {**body["currencies"][0], "reconciliation": {"expected": "3.5", "billed": "6.5", "variance": "3", "unexplained": "0"}}
    one["reconciliation"]["causes"] = {"rounding": "0.01", "timing": "-1.01", "unmetered_usage": "4"}
    (part, *_) = outline.detail({**body, "currencies": [one]})
    tables = {table.title: table.rows for table in part.tables}
    assert [row[3:6] for row in tables["By deployment"]] == [
        ["2.00 USD", "2.00 USD", "0.0 %"],
        ["1.50 USD", "1.00 USD", "+50.0 %"],
        ["3.50 USD", "3.00 USD", "+16.7 %"],
    ]
    assert tables["By deployment"][-1][0] == "Together"
    assert [row[0] for row in tables["By workspace"]] == ["ws-east"]  # a sum of one would say it twice
    assert [(row[0], row[2]) for row in tables["Bill against metering"]] == [
        ("unmetered usage", "+4.00 USD"),
        ("timing", "-1.01 USD"),
        ("rounding", "+0.01 USD"),
        ("Together", "+3.00 USD"),
    ]


def test_the_forecast_names_its_month_which_is_not_that_of_the_report(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
    total, one = next(pair for pair in zip(body["totals"], body["currencies"], strict=True) if pair[0]["cost"] is not None)
    alone = {**body, "totals": [total], "currencies": [{**one, "forecast": {"month_to_date": "4", "month_end": "9.5", "reason": None}}]}
    later = {**alone, "snapshot": {**body["snapshot"], "made_at": "2026-12-01T06:00:00Z"}}
    for told, month in ((alone, "November"), (later, "December")):
        assert f"expected for {month}; 4.00 USD so far" in " ".join(sheets(reports.written(told, "pdf").content)[0].split())
        assert f"Expected for {month}" in letter(told).text
        assert f"#Expected for {month}" in outline.front(of_currencies(told, 3)[0]).parts[0].tables[0].heads


def test_a_week_that_is_billed_in_part_says_its_change_like_for_like(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        part, item = make.bill_part(session, reaches={"marketplace": "2026-11-11"}), make.charge_item(session)
        for day, amount in ((2, "2.00"), (3, "1.00"), (5, "9.99"), (9, "3.00"), (11, "4.00")):
            make.charge(session, part, item, amount, charged_on=date(2026, 11, day))
        make.event(session, time=at(13), input_tokens=50_000_000, output_tokens=0)
        body = body_of(session)
    assert body["currencies"][0]["like_for_like"] == {
        "days": ["2026-11-09", "2026-11-10", "2026-11-11"],
        "days_last_week": ["2026-11-02", "2026-11-03", "2026-11-04"],
        "cost": "7",
        "last_week_cost": "3",
        "change": "4",
        "change_percent": "133.33",
    }
    said = "Like for like, the billed days Mon 09 Nov to Wed 11 Nov against Mon 02 Nov to Wed 04 Nov: 7.00 USD against 3.00 USD (+133.3 %)."
    assert said in reports.written(body, "html").content.decode()
    assert said in letter(body).text
    assert said in sheets(reports.written(body, "pdf").content)[0]


def test_no_page_of_a_pdf_holds_a_tile_or_a_heading_alone(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
    total, one = next((total, one) for total, one in zip(body["totals"], body["currencies"], strict=True) if total["cost"] is not None)
    for count in range(1, 8):
        many = {**body, "totals": [total] * count, "currencies": [one] * count}
        pages = sheets(reports.written(many, "pdf").content)
        # Without its figures a page would hold little more than its foot.
        assert all(len(page) > 300 for page in pages[:-1]), [len(page) for page in pages]
        assert len(pages) <= 2 + 2 * count


@pytest.mark.parametrize("count", range(1, 8))
def test_what_a_director_reads_is_one_page_whatever_the_currencies(sqlite_store: Store, count: int) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
    many, costs = of_currencies(body, count)
    first, second, *_ = sheets(reports.written(many, "pdf").content)
    assert second.startswith("Detail")
    for cost in costs[:5]:
        assert f"{cost} in week 2026-W46" in first
        # In the sentence and in the figures; of several currencies in the steps as well, which else are a chart.
        assert first.count(cost) >= (2 if count == 1 else 3)
    # Beside charts and five movers it may stand in the detail only.
    assert "Bill against metering" in first or count == 1
    assert ("more currenc" in first) == (count > 5)
    assert ("2 more currencies: see the detail." in first) == (count == 7)


def test_the_printed_page_is_one_first_page_and_then_the_detail(sqlite_store: Store, chromium: str) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        for count in (1, 2, 3, 5, 7):
            many, costs = of_currencies(body, count)
            page.set_content(reports.written(many, "html").content.decode())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            printed = headings(page.pdf(prefer_css_page_size=True, outline=True, tagged=True))
            begins = [title for title, _ in printed].index("Detail")
            front = [title for title, _ in printed[:begins]]
            assert {sheet for _, sheet in printed[:begins]} == {1}, (count, printed)
            # It begins a page: what stands before it would else have taken the second.
            assert printed[begins][1] == 2, (count, printed)
            assert front[1:] == {
                1: ["USD", "What moved most"],
                2: ["USD", "From last week to this one", "What moved most", "EUR", "From last week to this one", "What moved most"],
            }.get(count, ["By currency", "From last week to this one", "Bill against metering", "What moved most"])
            said = page.inner_text(".front")
            for cost in costs[:5]:
                assert said.count(cost) >= 2
            assert ("2 more currencies: see the detail." in said) == (count == 7)
            # Nothing of the first page is there alone: the detail names every mover.
            assert page.locator("h1.detail ~ * td >> text=a-deployment-with-a-long-name-9").count() == count


def test_pdf_is_a_function_of_the_snapshot(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
    first, second = (reports.written(body, "pdf").content for _ in range(2))
    assert first.startswith(b"%PDF-")
    assert first == second
    assert len(first) < 200_000


def test_the_same_figures_are_the_same_snapshot_and_a_change_is_a_numbered_restatement(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        first = body_of(session)
        later = NOW + timedelta(hours=1)
        again = body_of(session, now=later)
        make.event(session, time=at(12), input_tokens=500_000, output_tokens=0)
        restated = body_of(session, now=later)
        rows = len(session.exec(select(ReportSnapshot)).all())
    assert again == first
    assert (first["snapshot"]["number"], restated["snapshot"]["number"], rows) == (0, 1, 2)
    assert restated["restatement"] == [
        {
            "currency": "USD",
            "workspace": "ws-east",
            "deployment": "llama-chat",
            "model": make.MODEL,
            "mode": "serverless",
            "was": restated["restatement"][0]["was"],
            "is": restated["restatement"][0]["is"],
            "delta": "0.5",
        }
    ]
    assert b"What this restatement changes" in reports.written(restated, "html").content


def test_a_week_that_still_runs_is_shown_and_not_kept(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session, "2026-W47")
        assert len(session.exec(select(ReportSnapshot)).all()) == 0
    assert body["snapshot"]["id"] is None
    assert "not over" in body["snapshot"]["reason"]


def test_an_empty_world_makes_a_report_in_every_format(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        body = body_of(session)
    for form in reports.FORMATS:
        assert reports.written(body, form).content
    assert b"Nothing was used" in reports.written(body, "html").content


def test_over_http_with_its_control_total(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
    with serving(sqlite_store) as service:
        found = {form: service.client.get(f"/v1/reports/weekly?week=2026-W46&format={form}") for form in reports.FORMATS}
        wrong = [service.client.get(f"/v1/reports/weekly?{query}") for query in ("format=xls", "week=2025-W53", "weeks=1")]
    assert [answer.status_code for answer in (*found.values(), *wrong)] == [200] * 4 + [422] * 3
    (dollars,) = [total for total in found["json"].json()["totals"] if total["currency"] == "USD"]
    assert f"USD {dollars['cost']}" in found["csv"].headers["x-control-total"]
    assert found["pdf"].headers["content-type"] == "application/pdf"
    assert "default-src 'none'" in found["html"].headers["content-security-policy"]
    assert len({found[form].json()["snapshot"]["id"] for form in ("json",)}) == 1


@pytest.mark.walk
def test_the_command_writes_the_file_and_its_control_total(sqlite_store: Store, tmp_path: Path) -> None:
    with sqlite_store.write() as session:
        world(session)
    sqlite_store.close()

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        url = sqlite_store.url.render_as_string()
        return subprocess.run(
            [sys.executable, "-m", "collector.cli", "report", "weekly", "--database-url", url, *more], capture_output=True, text=True, check=False
        )

    done = run("--week", "2026-W46", "--format", "csv", "--out", str(tmp_path / "w.csv"))
    assert (done.returncode, "USD" in done.stdout) == (0, True), done.stderr
    meta = json.loads((tmp_path / "w.csv.meta.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "w.csv").read_text())))
    assert meta["control_total"]["USD"] == money.text(money.add(Decimal(row["cost"] or 0) for row in rows if row["currency"] == "USD"))
    missing = run("--week", "2025-W53", "--format", "csv", "--out", str(tmp_path / "x.csv"))
    assert (missing.returncode, missing.stderr.count("\n"), (tmp_path / "x.csv").exists()) == (2, 1, False)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 19), st.integers(0, 23), st.integers(0, 10**7), st.sampled_from(["llama-chat", "other"])), max_size=12))
def test_report_and_costs_agree_in_any_world(tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int, int, str]]) -> None:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('world')}/t.db")
    store.migrate()
    with store.write() as session:
        make.serverless(session)
        make.token_prices(session, "0.713", "2.001")
        for day, hour, tokens, name in calls:
            make.event(session, make.series(session, deployment=name), time=at(day).replace(hour=hour), input_tokens=tokens, output_tokens=tokens // 3)
        body = body_of(session)
        totals = ledger.costs(session, CostQuery(W46, "none"), now=NOW).totals
    store.close()
    shown = {total["currency"]: total["cost"] for total in body["totals"] if total["requests"]}
    assert shown == {total.currency: None if total.cost is None else money.text(total.cost) for total in totals}
    for one in body["currencies"]:
        fall = one["waterfall"]
        if fall is not None:
            steps = money.add(Decimal(fall[name] or 0) for name in ("last_week", "volume", "mix", "price", "capacity", "idle", "corrections"))
            assert steps == Decimal(fall["this_week"])
