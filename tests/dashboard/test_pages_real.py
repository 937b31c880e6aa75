"""The pages of finance and operations over a real ledger: what they say, and that a browser draws them to the end."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import ModuleType

import pytest
from playwright.sync_api import expect, sync_playwright
from plotly.utils import PlotlyJSONEncoder

from collector.files import Files
from dashboard.app import create_dashboard, ledger_over
from dashboard.filters import Selection
from dashboard.pages import alerts, comparison, data, explain, quotas, receivers, reconciliation, reports, rules
from dashboard.pages import sources as sources_page
from dashboard.shell import View
from models import sources
from models.alerts import Alert, AlertState, Budget, Kind, Severity
from models.charges import ChargeClass
from models.notices import Format, Receiver
from models.prices import PriceMeter
from models.sources import PullState
from models.store import Store
from tests import factories as make
from tests.dashboard import fakes
from tests.dashboard.serve import mount, serving

NOW = make.NOW
NEW: tuple[ModuleType, ...] = (reconciliation, comparison, reports, quotas, alerts, rules, receivers, data, explain)


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """A model that runs both ways, with a bill, a gap, a budget, an alert and a pull."""
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.managed(session)
        make.token_prices(session, "1.00", "2.00")
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.50", sku="Standard_NC24ads_A100_v4")
        part = make.bill_part(session)
        for day in range(8, 20):
            at = datetime(2026, 11, day, 8, tzinfo=NOW.tzinfo)
            make.event(session, make.series(session, deployment="llama-foundry", application="<b>app</b>"), time=at, input_tokens=40_000_000, output_tokens=0)
            make.event(session, make.series(session, endpoint="llama-online", deployment="blue"), time=at, input_tokens=5_000_000, output_tokens=0)
            if day < 18:
                make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "44.00", quantity="44", charged_on=date(2026, 11, day))
                make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE), "84.00", quantity="24", charged_on=date(2026, 11, day))
        session.add(
            Budget(
                id="budget_1",
                name="All of it",
                scope={},
                amount=Decimal(2000),
                currency="USD",
                period="month",
                steps=[50, 80],
                forecast_steps=[],
                severity=Severity.WARNING,
                receivers=[],
                created_at=NOW,
                updated_at=NOW,
            )
        )
        session.add(
            Alert(
                id="alert_1",
                seq=1,
                rule_id="rule_1",
                rule="<i>Tokens</i>",
                kind=Kind.TOKENS_PER_MINUTE,
                state=AlertState.FIRING,
                severity=Severity.CRITICAL,
                scope={"workspace": "ws-east", "deployment": "llama-foundry"},
                subject="s",
                value=Decimal(410_000),
                threshold=Decimal(400_000),
                why="410000 tokens in a minute",
                sample={},
                receivers=[],
                pending_at=NOW - timedelta(hours=2),
                fired_at=NOW - timedelta(hours=1),
            )
        )
        session.add(
            Receiver(id="r", name="ops", url="https://hooks.example.com/x", format=Format.SLACK, workspaces=[], is_default=True, created_at=NOW, updated_at=NOW)
        )
        run = sources.begin(session, "costs", "subscriptions/s1", now=NOW - timedelta(hours=2))
        sources.finish(session, run.id or 0, PullState.FAILED, now=NOW, calls=3, message="403 AuthorizationFailed; it needs the role Cost Management Reader")
    return sqlite_store


def drawn(store: Store, page: ModuleType, *, visible: frozenset[str] | None = None, search: str = "") -> str:
    """The page as text, markup left out."""
    with ledger_over(store.read)() as opened:
        view = View(Selection.parse(search), opened, NOW, visible, "/dashboard/", page.PATH, "http://x", is_open=True)
        parts = page.layout(view)
        return json.dumps(parts, cls=PlotlyJSONEncoder, ensure_ascii=False)


def test_reconciliation_leads_from_expected_to_billed(store: Store) -> None:
    page = drawn(store, reconciliation)
    for words in ("Unexplained", "Coverage", "calls past the instruments", "not yet billed", "From expected to billed", "llama-foundry", "explain?"):
        assert words in page
    assert "40.00 USD" in page  # 4.00 a day past the instruments, on ten days


def test_comparison_advises_and_draws_the_break_even(store: Store) -> None:
    page = drawn(store, comparison)
    for words in ("break-even at", "Idle a day", "Dedicated per 1M, all in", "tokens a day", "capacity_tokens_per_minute"):
        assert words in page


def test_quotas_show_what_is_left_and_the_highest_minute(store: Store) -> None:
    page = drawn(store, quotas)
    for words in ("Pools above 80 %", "40,000,000", "highest of 7 days", "Every pool"):
        assert words in page


def test_alerts_say_why_and_budgets_where_they_end(store: Store) -> None:
    page = drawn(store, alerts)
    for words in ("410000 tokens in a minute", "worst: critical"):
        assert words in page
    assert "All of it" in drawn(store, rules)
    assert "Not reached" in drawn(store, receivers)
    assert "410,000" in page
    assert "&lt;i&gt;Tokens" in page  # in the chart, which reads markup
    hidden = drawn(store, alerts, visible=frozenset({"elsewhere"}))
    assert "410000" not in hidden
    assert "All of it" not in drawn(store, rules, visible=frozenset({"elsewhere"}))
    assert "Not reached" not in drawn(store, receivers, visible=frozenset({"elsewhere"}))


def test_sources_show_pulls_with_their_last_word(store: Store) -> None:
    page = drawn(store, sources_page)
    for words in ("costs · subscriptions/s1", "it needs the role Cost Management Reader"):
        assert words in page


def test_explain_takes_a_figure_apart(store: Store) -> None:
    page = drawn(store, explain, search="?from=2026-11-01&to=2026-12-01&deployment=llama-foundry")
    for words in ("Why this number?", "november.csv", "curl 'http://x/v1/explain?", "price-", "1 USD per 1M tokens"):
        assert words in page


def test_reports_offer_files_that_exist(store: Store) -> None:
    page = drawn(store, reports)
    app = create_dashboard(open_ledger=ledger_over(store.read), access=fakes.FakeAccess(keyless=True), now=lambda: NOW, files=Files(store, now=lambda: NOW))
    client = app.server.test_client()
    addresses = [found.removeprefix("/dashboard") for found in re.findall(r'"href": "(/dashboard/download/[^"]+)"', page)]
    assert len(addresses) > 20
    for address in (addresses[0], addresses[1], next(one for one in addresses if "focus?month=2026-11" in one)):
        answer = client.get(address)
        assert (answer.status_code, bool(answer.headers["X-Control-Total"])) == (200, True)
    assert client.get("/download/weekly?week=2026-W99").status_code == 422
    assert client.get("/download/nothing").status_code == 404
    assert client.get("/download/focus?month=2027-05").status_code == 422


@pytest.mark.parametrize("page", NEW)
def test_an_empty_service_says_what_to_do(sqlite_store: Store, page: ModuleType) -> None:
    text = drawn(sqlite_store, page)
    assert "cannot be shown" not in text


@pytest.fixture
def origin(store: Store) -> Iterator[str]:
    app = create_dashboard(open_ledger=ledger_over(store.read), access=fakes.FakeAccess(keyless=True), now=lambda: NOW, files=Files(store, now=lambda: NOW))
    with serving(mount(app)) as address:
        yield address


@pytest.mark.browser
def test_a_browser_draws_every_page_to_its_end(origin: str) -> None:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1280, "height": 1200})
        page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda fault: said.append(str(fault)))
        for module in NEW:
            page.goto(f"{origin}/dashboard/{module.PATH}")
            expect(page.locator("main h1")).to_be_visible(timeout=30_000)
            expect(page.locator("main .failure")).to_have_count(0)
            # A chart that never comes to rest would keep the page from being drawn.
            assert page.screenshot(timeout=20_000)
        browser.close()
    assert said == []
