"""Every figure of every page leads to why it is what it is, and page, drawer, route and curl line say the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import ModuleType
from typing import Any

import pytest
from dash import dcc
from dash.development.base_component import Component
from playwright.sync_api import Browser, Locator, Page, expect

from collector import witnessing
from collector.capture.aggregates import REASON, Point, digest_of
from collector.files import Files
from dashboard import text
from dashboard.app import DRAWER, PAGES, create_dashboard, ledger_over
from dashboard.filters import Selection
from dashboard.pages import alerts, comparison, data, deployment, explain, ingest, overview, quotas, reconciliation, rules
from dashboard.shell import View
from models import ledger
from models.charges import ChargeClass, MeterKind
from models.columns import to_microseconds
from models.intake import IntakeHour
from models.ledger import FIGURES, Ask
from models.prices import PriceMeter
from models.quotas import AzureQuota, family_key
from models.resources import DeploymentSetting
from models.store import Store
from models.usage import Quality, Status, UsageArrival
from models.utilisation import GpuHour
from models.witnesses import Measure
from tests import factories as make
from tests.collector.api.serving import Service
from tests.collector.api.serving import serving as api
from tests.dashboard import fakes
from tests.dashboard.serve import mount, serving
from tests.dashboard.test_pages_browser import browser, watched
from tests.dashboard.test_pages_money import said

__all__ = ["browser"]  # the fixture

NOW = make.NOW
WHOLE = "?from=2026-11-01&to=2026-11-21"
# Each page with what has to be in its address for it to show figures.
SCREENS: tuple[tuple[ModuleType, str], ...] = (
    (overview, WHOLE),
    (overview, ""),
    (deployment, f"{WHOLE}&workspace=ws-east&deployment=llama-foundry"),
    (deployment, f"{WHOLE}&workspace=ws-east&deployment=llama-online/blue"),
    (reconciliation, WHOLE),
    (reconciliation, f"{WHOLE}&cause=unmetered_usage&workspace=ws-east&deployment=llama-foundry&day=2026-11-10&meter=input"),
    (reconciliation, "?from=2026-10-01&to=2026-11-01"),
    (reconciliation, "?from=2026-11-01&to=2026-12-01&since=bill"),
    (comparison, f"{WHOLE}&sku=Standard_NC24ads_A100_v4&instances=2&hours_per_day=12"),
    (explain, f"{WHOLE}&currency=USD&figure=cost"),
    (explain, f"{WHOLE}&currency=USD&figure=variance"),
    (quotas, ""),
    (rules, ""),
    (alerts, ""),
    (data, ""),
    (ingest, ""),
)


_WITNESSED: tuple[tuple[Measure, int], ...] = (("input", 60_000), ("output", 40))


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """A model that runs both ways with a gap each day, money without a place, tokens without a price, a closed month that moved, a budget, an alert."""
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.managed(session)
        make.token_prices(session, "1.00", "2.00", model=make.MODEL)
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.50", sku="Standard_NC24ads_A100_v4")
        part = make.bill_part(session)
        series = make.series(session, deployment="llama-foundry", application="<b>app</b>")
        own = make.series(session, endpoint="llama-online", deployment="blue")
        for day in range(1, 20):
            at = datetime(2026, 11, day, 8, tzinfo=NOW.tzinfo)
            make.event(session, series, time=at, input_tokens=300_000, output_tokens=9_000)
            make.event(session, own, time=at, input_tokens=50_000, output_tokens=0)
            if day < 18:
                make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "0.33", quantity="0.33", charged_on=date(2026, 11, day))
                make.charge(session, part, make.charge_item(session, ChargeClass.COMPUTE), "84.00", quantity="24", charged_on=date(2026, 11, day))
        nowhere = make.charge_item(session, ChargeClass.MARKETPLACE, MeterKind.OTHER, resource="saas-nobody-knows", meter_name="a meter nobody mapped")
        make.charge(session, part, nowhere, "7.5", quantity="3", charged_on=date(2026, 11, 9))
        unpriced = make.series(session, workspace_name="ws-lonely", deployment="secret", model="A-Model-Of-No-List")
        session.add(DeploymentSetting(workspace="ws-east", name="llama-online/blue", capacity_tokens_per_minute=50_000, known_from=make.LONG_AGO))
        make.event(session, unpriced, time=NOW - timedelta(days=2), input_tokens=1234, output_tokens=None)
        # Seen by others, throttled, estimated, refused, and cores that upgrades need.
        guessed = datetime(2026, 11, 19, 9, tzinfo=NOW.tzinfo)
        make.event(session, series, time=guessed, input_tokens=700, output_tokens=70, quality=int(Quality.ESTIMATED))
        for minute in (5, 9):
            make.event(session, series, time=NOW - timedelta(minutes=minute), status=Status.THROTTLED, input_tokens=None, output_tokens=None, billable=False)
        arrived = int(NOW.timestamp()) // 3600 * 3600
        for key, outcome, events in (
            *(("k1", "accepted", 41), ("k1", "duplicate", 7), ("k1", "conflict", 2), ("k1", "ignored", 3), ("k1", "missing", 5), ("k1", "estimated", 6)),
            *(("k1", "invalid_value", 4), ("k2", "accepted", 17), ("k2", "malformed", 1)),
        ):
            session.add(IntakeHour(starts_at=arrived, key_id=key, source="gateway", format="native", outcome=outcome, events=events))
        session.add(UsageArrival(arrived_at=arrived, happened_on=arrived // 86_400, writer=1, events=58, last_seq=1, last_received_at=NOW))
        session.add(
            AzureQuota(
                subscription_id=make.SUBSCRIPTION,
                region="eastus",
                source="ml",
                level="family",
                family="Standard NCASv3_T4 Family",
                family_key=family_key("Standard NCASv3_T4 Family"),
                quota=48,
                used=16,
                unit="Count",
                known_from=NOW,
                seen_at=NOW,
            )
        )
        session.add(
            GpuHour(
                workspace="ws-east",
                deployment="llama-online/blue",
                time=NOW - timedelta(hours=5),
                busy_percent=Decimal(35),
                memory_percent=Decimal(80),
                received_at=NOW,
            )
        )
        october = make.bill_part(session, period_start=date(2026, 10, 1), file_name="october.csv", landed_at=NOW - timedelta(days=3))
        make.event(session, series, time=datetime(2026, 10, 10, 8, tzinfo=NOW.tzinfo), input_tokens=10_000_000, output_tokens=0)
        make.charge(session, october, make.charge_item(session, ChargeClass.FOUNDRY), "11.00", quantity="11", charged_on=date(2026, 10, 10))
        session.flush()
        ledger.close_month(session, date(2026, 10, 1), author="ana", software="1", now=NOW - timedelta(days=1))
        late = datetime(2026, 10, 12, 8, tzinfo=NOW.tzinfo)
        make.event(session, series, time=late, input_tokens=3_000_000, output_tokens=0, received_at=NOW - timedelta(hours=1))
        make.budget(session, now=NOW)
        make.alert(session, now=NOW)
    began = to_microseconds(guessed)
    seen = [
        Point(
            REASON,
            kind="vllm",
            name=f"vllm:{measure}",
            measure=measure,
            digest=digest_of(measure, "vllm"),
            temporality="cumulative",
            service="ws-east/llama-online/blue",
            workspace="ws-east",
            endpoint="llama-online",
            deployment="blue",
            time=began + 60_000_000,
            started_at=began,
            value=value,
        )
        for measure, value in _WITNESSED
    ]
    witnessing.keep(sqlite_store, seen, now=NOW)
    return sqlite_store


def figures_in(part: Any) -> Iterator[Any]:
    """Every explainable figure of a part of a page."""
    if isinstance(part, (list, tuple)):
        for one in part:
            yield from figures_in(one)
    elif isinstance(part, Component):
        if str(getattr(part, "href", "")).startswith(f"{DRAWER}?"):
            yield part
        yield from figures_in(getattr(part, "children", None))


def sampled(found: list[Any]) -> list[Any]:
    """Of each kind of figure the first, the second and the last."""
    kinds: dict[str, list[Any]] = {}
    for one in {each.href: each for each in found}.values():
        kinds.setdefault(_figure_of(one.href), []).append(one)
    return [one for of in kinds.values() for one in {id(each): each for each in (*of[:2], of[-1])}.values()]


def drawn(store: Store, page: ModuleType, search: str) -> list[Any]:
    with ledger_over(store.read)() as opened:
        view = View(Selection.parse(search), opened, NOW, None, "/dashboard/", page.PATH, "http://x", is_open=True)
        return list(figures_in(page.layout(view)))


def test_the_same_query_gives_the_figure_that_the_page_shows(store: Store) -> None:
    """Read again by its address alone, each figure is the same to the last digit; its rows add up to it where they say so."""
    seen: set[str] = set()
    for page, search in SCREENS:
        found = drawn(store, page, search)
        assert found, page.NAME
        with store.read() as session:
            for link in sampled(found):
                selection = Selection.parse(link.href.removeprefix(DRAWER))
                assert not selection.ignored
                query = selection.query(now=NOW, visible=None, granularity="none")
                answer = ledger.why(session, Ask(selection.asked("figure") or "", query, dict(selection.own)), now=NOW)
                exact = text.figure_exactly(answer.value, answer.kind, answer.unit)
                assert (exact == link.title) if answer.value is not None else ("absent" in link.className), link.href
                assert answer.formula
                if answer.adds_up and answer.rows and answer.value is not None:
                    assert sum(Decimal(row.value or 0) for row in answer.rows) == answer.value, link.href
                seen.add(answer.figure)
    assert set(FIGURES) == seen


def charts_in(part: Any) -> Iterator[dict[str, Any]]:
    """Every chart of a part of a page."""
    if isinstance(part, (list, tuple)):
        for one in part:
            yield from charts_in(one)
    elif isinstance(part, dcc.Graph):
        yield vars(part)["figure"]
    elif isinstance(part, Component):
        yield from charts_in(getattr(part, "children", None))


def marks(trace: dict[str, Any]) -> list[tuple[str, Any, Any, str]]:
    """The first, the middle and the last mark of a trace that lead somewhere: (address, x, y, the words of its hover)."""
    meta: dict[str, Any] = trace.get("meta") or {"of": []}
    led = [place for place, own in enumerate(meta["of"]) if own is not None]
    said = trace.get("customdata") or [""] * len(trace["x"])
    return [
        (meta["why"].replace("{}", meta["of"][place]), trace["x"][place], trace["y"][place], said[place])
        for place in sorted({led[0], led[len(led) // 2], led[-1]} if led else ())
    ]


def test_every_mark_of_a_chart_leads_to_the_figure_that_it_draws(store: Store) -> None:
    seen: set[str] = set()
    for page, search in (
        *SCREENS,
        (overview, f"{WHOLE}&group_by=deployment"),
        (overview, f"{WHOLE}&group_by=mode"),
        (overview, "?granularity=week"),
        (deployment, f"{WHOLE}&workspace=ws-lonely&deployment=secret"),
    ):
        with ledger_over(store.read)() as opened:
            view = View(Selection.parse(search), opened, NOW, None, "/dashboard/", page.PATH, "http://x", is_open=True)
            charts = list(charts_in(page.layout(view)))
        with store.read() as session:
            for trace in (trace for chart in charts for trace in chart["data"]):
                for href, x, y, words in marks(trace):
                    selection = Selection.parse(href.removeprefix(DRAWER))
                    assert not selection.ignored
                    query = selection.query(now=NOW, visible=None, granularity="none")
                    answer = ledger.why(session, Ask(selection.asked("figure") or "", query, dict(selection.own)), now=NOW)
                    assert answer.value is not None, href
                    seen.add(answer.figure)
                    if answer.figure.startswith("quota_"):  # drawn in percent of the limit
                        assert f"{answer.value:,}" in words, href
                    elif answer.figure in ("tokens_per_day", "break_even_tokens_per_day"):
                        assert answer.value == x, href
                    elif answer.figure not in ("alert_value", "serverless_list_per_1m", "capacity_cost"):  # what a span or a line is drawn from
                        # What is below nought hangs from the step before it.
                        assert abs(float(answer.value)) == y if answer.figure == "cause" else float(answer.value) == y, href
    assert seen == {
        *("cost", "metered_cost", "billed_cost", "input_tokens", "output_tokens", "requests", "unknown_token_requests"),
        *("expected", "billed", "cause", "quota_used", "quota_peak", "alert_value"),
        *("intake_arrived", "intake_duplicates", "intake_conflicts", "intake_rejected"),
        *("serverless_list_per_1m", "capacity_cost", "tokens_per_day", "break_even_tokens_per_day"),
    }


def test_the_route_and_its_curl_line_say_the_same(store: Store) -> None:
    """``/v1/explain`` takes the drawer's query as it is, and what its curl line asks answers with the same digits."""
    differ: list[tuple[str, str]] = []
    with api(store) as service:
        for page, search in SCREENS:
            for link in {_figure_of(one.href): one for one in drawn(store, page, search)}.values():
                body = service.client.get(f"/v1/explain{link.href.removeprefix(DRAWER)}")
                assert body.status_code == 200, body.text
                said = body.json()
                if said["value"] is None or said["figure"].startswith(("budget_", "sender_", "variance")) or "without" in link.href:
                    continue
                if str(said["value"]) not in _curled(service, said["curl"]):
                    differ.append((link.href, said["curl"]))
    assert differ == []


def _figure_of(href: str) -> str:
    return Selection.parse(href.removeprefix(DRAWER)).asked("figure") or ""


def _curled(service: Service, line: str) -> str:
    command, address = shlex.split(line)
    assert command == "curl"
    answer = service.client.get(address.removeprefix(service.url))
    assert answer.status_code == 200
    return answer.text


def test_a_figure_that_does_not_exist_is_refused_by_name(store: Store) -> None:
    with api(store) as service:
        answer = service.client.get("/v1/explain?figure=luck")
        assert (answer.status_code, "there is no figure 'luck' to explain" in answer.json()["detail"]) == (422, True)
        assert service.client.get("/v1/explain?figure=budget_spent&budget=none").status_code == 404


@pytest.fixture
def origin(store: Store) -> Iterator[str]:
    app = create_dashboard(open_ledger=ledger_over(store.read), access=fakes.FakeAccess(keyless=True), now=lambda: NOW, files=Files(store, now=lambda: NOW))
    with serving(mount(app)) as address:
        yield address


@pytest.mark.walk
@pytest.mark.browser
def test_a_click_on_each_kind_of_figure_opens_the_drawer_with_that_figure(browser: Browser, origin: str) -> None:
    """On every page, one of each kind: the drawer says the figure clicked, how it comes about and the line for curl; Escape and the back button close it."""
    clicked: set[str] = set()
    with watched(browser, origin) as page:
        for module, search in SCREENS:
            page.goto(f"{origin}/dashboard/{module.PATH}{search}")
            expect(page.locator("main h1")).to_be_visible()
            expect(page.locator("main a.why").first).to_be_visible()
            links: list[str] = page.evaluate("[...document.querySelectorAll('main a.why')].map(link => link.getAttribute('href'))")
            wanted = {_figure_of(href): href for href in links}
            # Each kind where it is met first, and on every page one at least.
            for figure in [one for one in wanted if one not in clicked] or list(wanted)[-1:]:
                href = wanted[figure]
                link = page.locator(f'main a.why[href="{href}"]').first
                title, is_known = link.get_attribute("title"), "absent" not in str(link.get_attribute("class"))
                link.dispatch_event("click")  # the drawer of the figure before may lie above it
                expect(page.locator("#drawer")).to_have_attribute("data-of", href)
                expect(page.locator("#drawer .why-value")).to_have_attribute("title", str(title) if is_known else "unknown")
                expect(page.locator("#drawer pre")).to_contain_text("curl ")
                clicked.add(figure)
            page.keyboard.press("Escape")
            expect(page.locator("#drawer > *")).to_have_count(0)
        page.go_back()
        expect(page.locator("#drawer .why-value")).to_be_visible()
    assert set(FIGURES) == clicked
    assert {page.PATH for page, _ in SCREENS} < {page.PATH for page in PAGES}


_BAR = "#{chart} .barlayer > .trace:nth-of-type({trace}) .point:nth-of-type({mark}) path"
# A chart of each kind, a mark of it in the browser's terms, and the trace and mark that it is.
_CLICKED: tuple[tuple[ModuleType, str, str, str, int, int], ...] = (
    # The second group stacked on the first: a click on it must not take the one below.
    (overview, f"{WHOLE}&group_by=deployment", "spend-USD", _BAR.format(chart="spend-USD", trace=2, mark=12), 1, 11),
    (reconciliation, WHOLE, "waterfall-USD", _BAR.format(chart="waterfall-USD", trace=1, mark=2), 0, 1),
    (quotas, "", "levels", _BAR.format(chart="levels", trace=1, mark=-1), 0, -1),
    (comparison, WHOLE, f"lines-{make.MODEL}-USD", ".scatterlayer .points path:last-of-type", 2, -1),
)


def _point_at(page: Page, shape: Locator) -> None:
    """Move the mouse to the middle of a mark until its chart has found it: a chart that is still being laid out has no marks."""
    for frame in range(600):
        box = shape.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2 + frame % 2, box["y"] + box["height"] / 2)
        page.evaluate("() => new Promise(requestAnimationFrame)")
        if page.locator(".hoverlayer > *").count():
            return
    pytest.fail("no mark of the chart is under the pointer")


@pytest.mark.browser
def test_a_click_on_a_mark_of_a_chart_opens_the_drawer_on_its_figure(browser: Browser, origin: str) -> None:
    with watched(browser, origin) as page:
        for module, search, chart, mark, trace, number in _CLICKED:
            page.goto(f"{origin}/dashboard/{module.PATH}{search}")
            shape = page.locator(mark.replace(":nth-of-type(-1)", ":last-of-type"))
            shape.scroll_into_view_if_needed()
            address = page.evaluate(
                """([name, curve, place]) => {
                    const trace = document.getElementById(name).querySelector('.js-plotly-plot').data[curve];
                    const own = trace.meta.of;
                    return trace.meta.why.replace('{}', own[place < 0 ? own.length + place : place]);
                }""",
                [chart, trace, number],
            )
            for _ in range(2 if module is overview else 1):  # again after it was closed
                _point_at(page, shape)
                page.mouse.down()
                page.mouse.up()
                expect(page.locator("#drawer")).to_have_attribute("data-of", address)
                expect(page.locator("#drawer .why-value")).to_be_visible()
                page.keyboard.press("Escape")
                expect(page.locator("#drawer > *")).to_have_count(0)


@pytest.mark.parametrize(("figure", "has"), [("cost", True), ("expected", False), ("variance", False)])
def test_only_of_the_cost_is_it_said_how_much_of_a_line_counts(store: Store, figure: str, has: bool) -> None:
    with ledger_over(store.read)() as opened:
        view = View(Selection.parse(f"{WHOLE}&currency=USD&figure={figure}"), opened, NOW, None, "/dashboard/", explain.PATH, "http://x", is_open=True)
        page = said(explain.layout(view))
    assert "Price from Amount" in page
    assert "Days Bill Amount" in page
    assert ("Amount Counted" in page) == has
