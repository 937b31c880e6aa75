"""Every page in a real browser, mounted as the service mounts it: it draws, filters, and keeps to itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dashboard.access import Viewer
from dashboard.app import create_dashboard, ledger_over
from models.errors import Unavailable
from models.store import Store
from tests.dashboard import fakes
from tests.dashboard.serve import mount, mounted, serving

pytestmark = pytest.mark.browser

WATCH = """
window.violations = [];
document.addEventListener('securitypolicyviolation', event => window.violations.push(event.violatedDirective + ' ' + event.blockedURI));
"""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        driven = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield driven
        driven.close()


@pytest.fixture
def ledger() -> fakes.FakeLedger:
    return fakes.FakeLedger(problem_list=fakes.problems())


@pytest.fixture
def access() -> fakes.FakeAccess:
    return fakes.FakeAccess(keyless=True)


@pytest.fixture
def origin(ledger: fakes.FakeLedger, access: fakes.FakeAccess) -> Iterator[str]:
    with serving(mounted(ledger, access)) as address:
        yield address


@contextmanager
def watched(browser: Browser, origin: str, *, width: int = 1280, scheme: str = "light", allowed: str = "$^") -> Iterator[Page]:
    """A page whose console, policy violations and requests are checked when it is left; ``allowed`` are console lines that belong to the test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light")
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda fault: said.append(str(fault)))
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script(WATCH)
    page.set_default_timeout(30_000)
    try:
        yield page
        assert page.evaluate("window.violations") == []
        assert [line for line in said if not re.search(allowed, line)] == []
        assert [url for url in asked if not url.startswith((origin, "data:", "blob:"))] == []
    finally:
        context.close()


def bars(page: Page, name: str) -> int:
    page.wait_for_selector(f"#{name} svg .bars .point")
    return page.locator(f"#{name} svg .bars .point").count()


def test_the_overview_draws_its_tiles_charts_and_table(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/")
        expect(page.locator("main h1")).to_have_text("Overview")
        assert bars(page, "spend-USD") == 30 * 4
        assert bars(page, "billed-USD") == 30 + 27
        expect(page.locator(".tile-label")).to_have_text(["Month to date", "Forecast to month end", "Spend in this period", "Coverage", "Data age"])
        expect(page.locator(".annotation-text", has_text="provisional").first).to_be_visible()
        expect(page.locator("#attention")).to_contain_text("3 things in the data to look at")
        expect(page.locator("p.open")).to_have_text("Open: no key has been created.")
        assert page.locator("table tbody tr").count() == 11
        expect(page).to_have_title("Overview · meterbridge")
        assert page.locator("nav a").all_inner_texts() == [
            "Overview",
            "Deployment",
            "Reconciliation",
            "Comparison",
            "Reports",
            "Quotas",
            "Alerts",
            "Rules",
            "Receivers",
            "Sources",
            "Data",
            "Ingest",
            "Add data",
        ]


def test_the_address_is_the_state(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/?workspace=ws-research&from=2026-11-14&group_by=deployment")
        assert bars(page, "spend-USD") == 7 * 2
        expect(page.locator("main .subtitle").first).to_contain_text("14 Nov to 20 Nov 2026")
        expect(page.locator(".chips li").first).to_contain_text("workspace: ws-research")
        page.get_by_role("link", name="Mode", exact=True).click()
        page.wait_for_url("**/dashboard/?from=2026-11-14&workspace=ws-research&group_by=mode")
        expect(page.locator("#spend-USD .bars .point")).to_have_count(7)
        page.get_by_role("link", name="Data", exact=True).click()
        expect(page.locator("main h1")).to_have_text("Data")
        page.go_back()
        expect(page.locator("main h1")).to_have_text("Overview")
        page.go_back()
        expect(page.locator("#spend-USD .bars .point")).to_have_count(14)
        assert page.url.endswith("?workspace=ws-research&from=2026-11-14&group_by=deployment")


def test_controls_write_the_address(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/")
        bars(page, "spend-USD")
        page.locator("#filter-workspace").click()
        page.locator(".dash-dropdown-content").get_by_text("ws-support", exact=True).click()
        page.keyboard.press("Escape")
        page.wait_for_url("**/dashboard/?workspace=ws-support")
        expect(page.locator("#spend-USD .bars .point")).to_have_count(30)
        page.get_by_role("link", name="7 days").click()
        page.wait_for_url("**/dashboard/?from=2026-11-14&workspace=ws-support")
        expect(page.locator("#spend-USD .bars .point")).to_have_count(7)
        page.locator(".chips .remove").first.click()
        page.wait_for_url("**/dashboard/?from=2026-11-14")
        expect(page.locator("#spend-USD .bars .point")).to_have_count(28)


def test_a_deployment_has_a_page_of_its_own(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/")
        page.locator(".bar-list a", has_text="search-rerank/green").click()
        expect(page.locator("main h1")).to_have_text("search-rerank/green")
        assert page.url.endswith("/dashboard/deployment?workspace=ws-support&deployment=search-rerank%2Fgreen")
        assert bars(page, "money-USD") == 57
        assert bars(page, "tokens-USD") == 60
        assert bars(page, "requests-USD") == 30
        expect(page.locator(".tile", has_text="Core-hours")).to_contain_text("4,320.0")
        expect(page.get_by_role("heading", name="Latest 20 events")).to_be_visible()


def test_the_deployment_page_without_one_lets_choose(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/deployment")
        expect(page.locator(".choices a")).to_have_count(10)
        page.locator(".choices a", has_text="scout-17b").click()
        expect(page.locator("main h1")).to_have_text("scout-17b")


def test_the_data_page_lists_sources_and_problems(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/data")
        expect(page.locator("main")).to_contain_text("3 problems")
        expect(page.locator("main")).to_contain_text("unmapped meter")
        expect(page.locator("main")).to_contain_text("31.42 USD")
        expect(page.locator("main")).to_contain_text("end of 17 Nov 2026")


def test_the_file_holds_what_the_table_shows(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/?workspace=ws-research")
        with page.expect_download() as started:
            page.get_by_role("link", name="Download CSV").click()
        lines = Path(started.value.path()).read_text(encoding="utf-8").splitlines()
        assert [line.split(",")[3] for line in lines] == ["deployment", "llama-33-70b-batch", "scout-17b"]


@pytest.mark.parametrize("path", ["", "deployment?workspace=ws-support&deployment=maverick-17b", "data", "start"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_no_page_is_wider_than_the_screen_and_ink_stands_out(browser: Browser, origin: str, path: str, width: int, scheme: str) -> None:
    with watched(browser, origin, width=width, scheme=scheme) as page:
        page.goto(f"{origin}/dashboard/{path}")
        page.wait_for_selector("main h1")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.querySelector('main h1')).color")
        assert contrast(ground, ink) >= 7
        faint = page.evaluate("getComputedStyle(document.querySelector('.age')).color")
        assert contrast(ground, faint) >= 4.5


def test_the_theme_is_the_systems_until_the_reader_chooses(browser: Browser, origin: str) -> None:
    with watched(browser, origin, scheme="dark") as page:
        page.goto(f"{origin}/dashboard/")
        bars(page, "spend-USD")
        dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        label = page.evaluate("getComputedStyle(document.querySelector('#spend-USD .ytick text')).fill")
        page.get_by_role("button", name="Theme").click()
        expect(page.locator("html")).to_have_attribute("data-theme", "light")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != dark
        assert page.evaluate("getComputedStyle(document.querySelector('#spend-USD .ytick text')).fill") != label
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_a_refresh_brings_new_figures_and_keeps_the_readers_zoom(browser: Browser, origin: str, ledger: fakes.FakeLedger) -> None:
    chart = "document.querySelector('#spend-USD .js-plotly-plot')"
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/")
        bars(page, "spend-USD")
        box = page.locator("#spend-USD .nsewdrag").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 60, steps=5)
        page.mouse.up()
        zoomed = page.evaluate(f"{chart}.layout.xaxis.range")
        assert zoomed[0] > "2026-11-05"
        page.locator("main h1").evaluate("heading => { heading.marked = true; }")
        ledger.facts = [fact for fact in ledger.facts if fact.workspace != "ws-support"]
        page.evaluate("window.dash_clientside.set_props('tick', {data: 1})")
        expect(page.locator("#spend-USD .infolayer .legendtext")).to_have_count(3)
        assert page.evaluate(f"{chart}.layout.xaxis.range") == zoomed
        expect(page.locator("table td", has_text="ws-support")).to_have_count(0)
        # One page, one total: what stands below a chart is as new as the tile above it.
        spent = page.locator(".tile", has_text="Spend in this period").locator(".tile-value").inner_text()
        expect(page.locator(".card", has_text="Spend over time").locator("p.note").last).to_contain_text(f"Together {spent}")
        assert page.locator("main h1").evaluate("heading => heading.marked") is True  # what reads the same is left alone
        ledger.facts = []
        page.evaluate("window.dash_clientside.set_props('tick', {data: 2})")
        expect(page.locator("main h2").first).to_have_text("1. Send usage")


def test_names_from_outside_are_only_ever_text(browser: Browser, origin: str, ledger: fakes.FakeLedger) -> None:
    ledger.facts = fakes.hostile_world()
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/?from=2026-11-19&group_by=deployment")
        bars(page, "spend-USD")
        expect(page.locator("table td", has_text="<img src=x onerror=window.hacked=1>")).to_have_count(1)
        expect(page.locator("table td", has_text="\\u202egnp.exe\\u202c")).to_have_count(1)
        expect(page.locator("table td", has_text="&lt;script&gt;")).to_have_count(1)
        expect(page.locator("#spend-USD .legendtext", has_text="<b>bold</b>")).to_have_count(1)
        assert page.locator("main img, main b, #spend-USD .legendtext a").count() == 0
        page.locator("#spend-USD .nsewdrag").hover()
        page.wait_for_selector("#spend-USD .hoverlayer text")
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        page.locator(".bar-list a", has_text="=cmd").click()
        expect(page.locator("main h1")).to_have_text("=cmd|' /C calc'!A0")
        page.locator("summary").click()
        page.locator("#filter-application").click()
        expect(page.locator(".dash-dropdown-content")).to_contain_text("<img src=x onerror=window.hacked=1>")
        assert page.evaluate("window.hacked") is None


def test_amounts_of_two_currencies_stand_side_by_side(browser: Browser, origin: str, ledger: fakes.FakeLedger) -> None:
    ledger.facts = fakes.two_currencies()
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/")
        bars(page, "spend-EUR")
        bars(page, "spend-JPY")
        values = page.locator(".tile-value").all_inner_texts()
        assert [value for value in values if value.endswith(" EUR")]
        assert [value for value in values if re.fullmatch(r"[\d,]+ JPY", value)]
        expect(page.locator(".tile", has_text="Without a price")).to_contain_text("neither a bill nor a price names a currency")
        expect(page.locator(".tile", has_text="Forecast to month end (EUR)")).to_contain_text("fewer than 7 complete days")


def test_an_empty_service_says_how_to_begin(browser: Browser, origin: str, ledger: fakes.FakeLedger) -> None:
    ledger.facts = []
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/")
        expect(page.locator("main h2")).to_have_text(["1. Send usage", "2. Import a bill", "3. Point what you already run at it"])
        expect(page.locator("main")).to_contain_text(f"curl -X POST {origin}/v1/usage")
        expect(page.locator("main")).to_contain_text("meterbridge import charges cost-details.csv")


def test_an_empty_selection_says_where_the_data_is(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/?from=2025-01-01&to=2025-02-01&team=nobody")
        expect(page.locator("main")).to_contain_text("There is no usage and no charge from 1 Jan to 31 Jan 2025")
        expect(page.locator("main")).to_contain_text("bills to end of 17 Nov 2026")
        page.get_by_role("link", name="Clear the filters").click()
        page.wait_for_url("**/dashboard/?from=2025-01-01&to=2025-02-01")


def test_a_failing_part_is_named_and_can_be_tried_again(browser: Browser, origin: str, ledger: fakes.FakeLedger) -> None:
    ledger.broken["costs"] = Unavailable("the database does not answer: disk full")
    with watched(browser, origin) as page:
        page.goto(f"{origin}/dashboard/")
        expect(page.get_by_role("alert")).to_contain_text("Spend over time cannot be shown")
        expect(page.get_by_role("alert")).to_contain_text("disk full")
        ledger.broken.clear()
        page.get_by_role("link", name="Try again").click()
        bars(page, "spend-USD")


def test_signing_in_and_out(browser: Browser, origin: str, access: fakes.FakeAccess) -> None:
    access.keyless = False
    access.viewers = {"secret": Viewer("k1", "finance", "read", frozenset({"ws-research"})), "writer": Viewer("k2", "gw", "ingest", None)}
    with watched(browser, origin, allowed=r"status of (401|403)") as page:
        page.goto(f"{origin}/dashboard/?from=2026-11-14")
        assert page.locator("input[type=password]").is_visible()
        page.get_by_label("Key").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("This key does not work: it is unknown or was revoked.")
        page.get_by_label("Key").fill("writer")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("This is an ingest key")
        page.get_by_label("Key").fill("secret")
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/dashboard/?from=2026-11-14")
        assert bars(page, "spend-USD") == 7
        expect(page.locator("p.open")).to_have_count(0)
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/dashboard/login")
        page.goto(f"{origin}/dashboard/data")
        page.wait_for_url("**/dashboard/login?next=data")


def test_a_revoked_key_leads_back_to_the_login(browser: Browser, origin: str, access: fakes.FakeAccess) -> None:
    access.keyless = False
    access.viewers = {"secret": Viewer("k1", "finance", "read", None)}
    # Dash's own handling of a refused callback reads its body twice, if a second one is under way when the page changes.
    with watched(browser, origin, allowed=r"status of 401|body stream already read") as page:
        page.goto(f"{origin}/dashboard/")
        page.get_by_label("Key").fill("secret")
        page.get_by_role("button", name="Sign in").click()
        bars(page, "spend-USD")
        access.viewers.clear()
        page.get_by_role("link", name="Data", exact=True).click()
        # Every part of the page that is refused leads there, and a later one may cut the first one short.
        expect(page).to_have_url(re.compile(r"/dashboard/login\?next=data$"))


def test_a_real_and_empty_database_is_an_empty_service(browser: Browser, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/t.db")
    store.migrate()
    app = create_dashboard(open_ledger=ledger_over(store.read), access=fakes.FakeAccess(keyless=True), now=lambda: fakes.NOW, notice=None)
    with serving(mount(app)) as origin:
        for path, said in (
            ("", "1. Send usage"),
            ("deployment", "No deployment in this period"),
            ("data", "None: every charge"),
            ("start", "3. Point what you already run at it"),
        ):
            with watched(browser, origin) as page:
                page.goto(f"{origin}/dashboard/{path}")
                expect(page.locator("main")).to_contain_text(said)
    store.close()


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two ``rgb(…)`` colours."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
