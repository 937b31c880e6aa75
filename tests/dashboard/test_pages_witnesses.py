"""What Azure Monitor counted stands on the page of the deployment beside what senders reported, with a verdict for each day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, expect

from collector import witnessing
from collector.capture.aggregates import REASON, Point
from dashboard.app import create_dashboard, ledger_over
from models.columns import to_microseconds
from models.store import Store
from tests import factories as make
from tests.dashboard import fakes
from tests.dashboard.serve import mount, serving
from tests.dashboard.test_pages_browser import browser, watched  # noqa: F401 - a fixture

HOUR = timedelta(hours=1)
NINTH, TENTH = datetime(2026, 11, 9, 8, tzinfo=UTC), datetime(2026, 11, 10, 8, tzinfo=UTC)


def told(store: Store) -> None:
    """On the 9th Azure saw 20 requests and we 20; on the 10th it saw 50 and we 40."""
    with store.write() as session:
        make.managed(session)
        series = make.series(session, endpoint="llama-online", deployment="blue")
        for began, number in ((NINTH, 20), (TENTH, 40)):
            for minute in range(number):
                make.event(session, series, time=began + timedelta(minutes=minute))
    points = [
        Point(
            REASON,
            kind="azure_monitor",
            name="RequestsPerMinute",
            measure="requests",
            temporality="delta",
            service="endpoint",
            digest=b"1" * 32,
            time=to_microseconds(began + HOUR),
            started_at=to_microseconds(began),
            value=value,
            workspace="ws-east",
            endpoint="llama-online",
            deployment="blue",
            model=None,
        )
        for began, value in ((NINTH, 20), (TENTH, 50))
    ]
    witnessing.keep(store, points, now=make.NOW)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_azures_own_count_stands_beside_ours(sqlite_store: Store, browser: Browser, width: int, scheme: str) -> None:  # noqa: F811 - the fixture
    told(sqlite_store)
    made = create_dashboard(open_ledger=ledger_over(sqlite_store.read), access=fakes.FakeAccess(keyless=True), now=lambda: make.NOW)
    with serving(mount(made)) as origin, watched(browser, origin, width=width, scheme=scheme) as page:
        page.goto(f"{origin}/dashboard/deployment?workspace=ws-east&deployment=llama-online/blue&from=2026-11-01&to=2026-11-15")
        rows = page.locator("table:has(caption:text-is('What others counted, by day')) tbody tr")
        expect(rows).to_have_count(2)
        shown = [[cell.strip() for cell in row.locator("td, th").all_inner_texts()] for row in rows.all()]
        assert [row[1:] for row in shown] == [
            ["Azure Monitor", "requests", "50", "40", "+10", "disagree"],
            ["Azure Monitor", "requests", "20", "20", "0", "agree"],
        ]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
