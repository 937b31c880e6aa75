"""The pages of finance and operations over a real ledger: what they say, and that a browser draws them to the end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright
from plotly.utils import PlotlyJSONEncoder
from sqlmodel import select

from collector.files import Files
from dashboard.app import create_dashboard, ledger_over
from dashboard.filters import Selection
from dashboard.pages import alerts, comparison, data, explain, quotas, receivers, reconciliation, reports, rules
from dashboard.pages import sources as sources_page
from dashboard.shell import View
from models import ledger, sources
from models.charges import BillPart, ChargeClass, MeterKind
from models.limits import LimitSource, set_limit
from models.notices import Format, Receiver
from models.prices import PriceMeter
from models.quotas import AzureQuota
from models.resources import DeploymentSetting
from models.sources import PullState
from models.store import Store
from models.usage import Status
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
        make.budget(session, now=NOW)
        make.alert(session, now=NOW, rule="<i>Tokens</i>")
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
    for words in ("Unexplained", "Coverage", "calls past the instruments", "not yet billed", "From expected to billed", "llama-foundry", "figure=unexplained"):
        assert words in page
    assert "40.00 USD" in page  # 4.00 a day past the instruments, on ten days


def test_reconciliation_says_what_is_invoiced_and_what_is_not_yet(store: Store) -> None:
    with store.write() as session:
        part = session.exec(select(BillPart)).first()
        assert part is not None
        item = make.charge_item(session, ChargeClass.FOUNDRY, MeterKind.HOSTING)
        make.charge(session, part, item, "7.25", charged_on=date(2026, 11, 12), invoice_id="G1")
    page = drawn(store, reconciliation)
    for words in (
        "Invoiced",
        "7.25 USD",
        "none yet",
        "no invoice has been made for these charges yet",
        "some of these charges are on no invoice yet",
        "figure=invoiced",
    ):
        assert words in page


def test_comparison_advises_and_draws_the_break_even(store: Store) -> None:
    page = drawn(store, comparison)
    for words in ("break-even at", "Idle a day", "Dedicated per 1M, all in", "tokens a day", "capacity_tokens_per_minute"):
        assert words in page


def test_a_what_if_says_what_the_vcpu_quota_cannot_hold(store: Store) -> None:
    asked = "?sku=Standard_NC24ads_A100_v4&instances=3&hours_per_day=24"
    with store.write() as session:
        session.add(DeploymentSetting(workspace="ws-east", name="llama-online/blue", capacity_tokens_per_minute=1_000_000, known_from=NOW - timedelta(days=9)))
    assert "nobody told the vCPU quota of standardNCADSA100v4Family in eastus" in drawn(store, comparison, search=asked)
    with store.write() as session:
        facts: dict[str, Any] = {"subscription_id": make.SUBSCRIPTION, "region": "eastus", "source": "ml", "level": "family", "unit": "Count"}
        session.add(AzureQuota(**facts, family="standardNCADSA100v4Family", family_key="ncadsa100v4", quota=48, used=24, known_from=NOW, seen_at=NOW))
    # 24 are free, and 24 are those of the instance that runs.
    said = "3 × Standard_NC24ads_A100_v4 need 72 vCPUs of standardNCADSA100v4Family, and 48 are left in eastus"
    assert said in drawn(store, comparison, search=asked)


def test_quotas_show_what_is_left_and_the_highest_minute(store: Store) -> None:
    page = drawn(store, quotas)
    for words in ("Pools above 80 %", "40,000,000", "highest of 7 days", "Tokens and requests a minute", "No call was answered 429"):
        assert words in page


def crowded(store: Store) -> None:
    """Limits of three sources, calls that were throttled by Azure and by a gateway, and cores that upgrades need."""
    at = NOW - timedelta(seconds=20)
    with store.write() as session:
        chat = make.series(session, deployment="llama-foundry", application="chat")
        make.event(session, chat, time=at, input_tokens=90_000, output_tokens=0, details={"max_tokens": 4_000, "ratelimit_remaining_tokens": 110_000})
        for by, count in (("azure", 3), ("gateway", 2)):
            for second in range(count):
                make.event(
                    session, chat, time=at - timedelta(seconds=second), input_tokens=None, output_tokens=None, status=Status.THROTTLED,
                    details={"throttled_by": by},
                )  # fmt: skip
        for source, value, author, evidence in (
            (LimitSource.USER, 100_000, "olga (k1)", ""),
            (LimitSource.HEADER, 200_000, "", "x-ratelimit-limit-tokens of an answer"),
        ):
            set_limit(
                session, workspace="ws-east", deployment="llama-foundry", measure="tokens_per_minute", value=value, source=source, author=author,
                evidence=evidence, seen_at=None if author else at, now=NOW - timedelta(days=1),
            )  # fmt: skip
        make.managed(session, "guard/green", sku="Standard_NC4as_T4_v3", instance_count=6, model="Llama-Guard-3-8B")
        for counted_by, used in (("compute", 24), ("ml", 24)):
            session.add(
                AzureQuota(
                    subscription_id=make.SUBSCRIPTION,
                    region="eastus",
                    source=counted_by,
                    level="family",
                    family="standardNCASv3_T4Family",
                    family_key="ncasv3t4",
                    quota=28,
                    used=used,
                    unit="Count",
                    known_from=NOW,
                    seen_at=NOW,
                )
            )


def test_quotas_name_who_says_a_limit_who_was_throttled_and_what_upgrades_need(store: Store) -> None:
    crowded(store)
    page = drawn(store, quotas)
    for words in (
        "the owner, 19 Nov", "an answer's header says 200,000", "olga (k1)", "94,000 admitted", "110,000 says Azure", "Room now", "For upgrades",
    ):  # fmt: skip
        assert words in page, words
    with store.read() as session:
        pools = {one.id: one for one in ledger.quotas(session, now=NOW)}
    tokens = pools["ws-east/llama-foundry:tokens_per_minute"]
    assert (tokens.used, tokens.headroom, tokens.has_room(NOW)) == (90_000, 10_000, False)
    assert tokens.readings == {"billed": {"60s": 90_000, "300s": 18_000}, "admitted": {"60s": 94_000, "300s": 18_800}}
    assert tokens.left_said == (110_000, NOW - timedelta(seconds=20))
    thrown = pools["ws-east/llama-foundry:requests_per_minute"]
    assert (dict(thrown.throttled), [(one.by, one.caller, one.count) for one in thrown.throttled_callers]) == (
        {"azure": 3, "gateway": 2}, [("azure", "chat", 3), ("gateway", "chat", 2)],
    )  # fmt: skip
    shared = next(one for one in pools.values() if one.kind == "foundry" and one.measure == "tokens_per_minute")
    assert (shared.limit, shared.limit_source, shared.used, shared.deployments) == (100_000, "deployments", 90_000, ["ws-east/llama-foundry"])
    cores = {one.source: (one.headroom, one.upgrade_reserved) for one in pools.values() if one.kind == "cores"}
    # Six instances of four cores: two more have to fit, eight cores. The A100 size of the other deployment is exempt.
    assert cores == {"compute": (4, None), "ml": (4, 8)}


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
def test_a_browser_draws_every_page_to_its_end(origin: str, chromium: str) -> None:
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
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
