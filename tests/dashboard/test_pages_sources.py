"""The page that says where facts come from: what is drawn, what is said, and what stands there when there is nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, expect
from plotly.utils import PlotlyJSONEncoder

from dashboard.filters import Selection
from dashboard.pages import sources
from dashboard.shell import View
from models.errors import Unavailable
from models.ledger import Source
from tests.dashboard import fakes
from tests.dashboard.serve import mounted, serving
from tests.dashboard.test_pages_browser import browser, watched  # noqa: F401 - a fixture

NOW = fakes.NOW
HOUR = timedelta(hours=1)
BILL = datetime(2026, 11, 18, tzinfo=UTC)


def found() -> list[Source]:
    return [
        Source(
            "usage", "default", "ok", last_success=NOW - timedelta(minutes=4), last_attempt=NOW - timedelta(minutes=4), data_until=NOW - timedelta(minutes=4)
        ),
        Source("bill", "marketplace · subscription 5f3a", "ok", last_success=NOW - 9 * HOUR, last_attempt=NOW - 9 * HOUR, data_until=BILL),
        Source(
            "azure",
            "costs · subscriptions/5f3a 2026-11",
            "rescheduled",
            last_success=NOW - 20 * HOUR,
            last_attempt=NOW - HOUR,
            data_until=BILL,
            calls=3,
            throttles=2,
            next_run=NOW + HOUR,
            message="Azure throttles; it is asked again at 13:00 UTC",
        ),
        Source("azure", "quotas", "ok", last_success=NOW - HOUR / 6, last_attempt=NOW - HOUR / 6, data_until=NOW - HOUR / 6, rows=1204, calls=14, throttles=0),
        Source("azure", "inventory", "failed", last_attempt=NOW - HOUR, calls=1, message="403: give the identity the role Reader on subscriptions/5f3a"),
        Source("job", "bundled_prices", "ok", last_success=NOW - HOUR, last_attempt=NOW - HOUR),
        Source("job", "twins", "interrupted", last_attempt=NOW - 5 * HOUR),
    ]


@dataclass
class Known(fakes.FakeLedger):
    """A ledger that says these sources."""

    known: list[Source] = field(default_factory=found)

    def sources(self, *, visible: frozenset[str] | None, now: datetime) -> list[Source]:
        self._called("sources")
        return self.known


def written(ledger: Known) -> str:
    view = View(Selection.parse(""), ledger, NOW, None, "/dashboard/", sources.PATH, "http://127.0.0.1", True)
    return json.dumps(sources.layout(view), cls=PlotlyJSONEncoder, ensure_ascii=False)


def test_every_source_is_named_with_its_state_and_last_word() -> None:
    page = written(Known())
    assert "403: give the identity the role Reader on subscriptions/5f3a" in page
    assert "costs · subscriptions/5f3a 2026-11 reaches to end of 17 Nov 2026" in page
    assert '"20 Nov 2026, 13:00 UTC"' in page


def test_what_went_wrong_stands_first() -> None:
    page = written(Known())
    table = page[page.index("Sources and their last word") :]
    assert table.index("costs · subscriptions/5f3a") < table.index("marketplace")
    assert table.index('"inventory"') < table.index('"quotas"')


def test_without_any_source_the_first_steps_stand_there() -> None:
    page = written(Known(facts=[], known=[]))
    assert "How far each source reaches" not in page
    assert "meterbridge" in page


def test_a_database_that_is_away_leaves_the_rest_of_the_page() -> None:
    page = written(Known(broken={"sources": Unavailable("the database does not answer")}))
    assert "The sources cannot be shown" in page
    assert "Metered until" in page


def test_a_source_that_has_never_reached_anything_is_in_the_table_only() -> None:
    page = written(Known(known=[Source("azure", "inventory", "failed", message="refused")]))
    assert "How far each source reaches" not in page
    assert '"never"' in page
    assert '"refused"' in page


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_draws_without_a_word_in_the_console(browser: Browser, width: int, scheme: str) -> None:  # noqa: F811 - the fixture
    with serving(mounted(Known(), fakes.FakeAccess(keyless=True))) as origin, watched(browser, origin, width=width, scheme=scheme) as page:
        page.goto(f"{origin}/dashboard/sources")
        expect(page.locator("main h1")).to_have_text("Sources")
        # Four reach somewhere: each a bar of what is there and one of what is missing.
        expect(page.locator("#reach svg .bars .point")).to_have_count(8)
        expect(page.locator(".tile-value")).to_have_text(["3", "2 days ago", "2"])
        # On a telephone each row is headed by its first cell: by whose source it is, not by its kind.
        names = page.locator(".table:has(caption:text('Sources and their last word')) tbody td:first-child").all_text_contents()
        assert "inventory" in names
        assert "Azure" not in names
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
