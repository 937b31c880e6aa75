"""The daily and the monthly report: the weekly's figures of another period, in every format."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlmodel import Session

from collector import reports
from models import ledger
from models.periods import Period
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import serving

NOW = datetime(2026, 12, 8, 9, tzinfo=UTC)
MILLION = 1_000_000


def at(month: int, day: int, hour: int = 8) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


def world(session: Session) -> None:
    make.serverless(session)
    make.token_prices(session, "1.00", "2.00")
    for when, millions in ((at(10, 14), 4), (at(11, 9), 3), (at(11, 10, 23), 2), (at(12, 7, 6), 5), (at(12, 7, 23), 1), (at(12, 6), 4)):
        make.event(session, make.series(session, team="search"), time=when, input_tokens=millions * MILLION, output_tokens=0)


def body_of(session: Session, unit: ledger.Unit, name: str | None, zone: str = "UTC", now: datetime = NOW) -> dict[str, Any]:
    span = ledger.span_of(unit, name, now=now, time_zone=zone)
    return reports.keep(session, reports.weekly_draft(session, span, ledger.Filters(), now=now), now=now)


@pytest.mark.parametrize(
    ("unit", "name", "zone", "cost", "before"),
    [("day", None, "UTC", "6", "4"), ("day", "2026-12-08", "Europe/Berlin", "1", "5"), ("month", None, "UTC", "5", "4"), ("month", "2026-10", "UTC", "4", "0")],
)
def test_each_has_the_figures_of_its_period_beside_the_one_before(
    store: Store, *, unit: ledger.Unit, name: str | None, zone: str, cost: str, before: str
) -> None:
    with store.write() as session:
        world(session)
        body = body_of(session, unit, name, zone)
    (total,) = body["totals"]
    assert (total["cost"], total[f"last_{unit}"]["cost"]) == (cost, before)
    (dollars,) = body["currencies"]
    assert [line[f"last_{unit}_cost"] for line in dollars["teams"]] == [before]
    for form in reports.FORMATS:
        made = reports.written(body, form)
        assert made.control_total == {"USD": cost}, form
    (row,) = csv.DictReader(io.StringIO(reports.written(body, "csv").content.decode()))
    assert (row["cost"], row[f"last_{unit}_cost"]) == (cost, before)
    page = reports.written(body, "html").content.decode()
    assert "week" not in page.partition("<body>")[2]
    assert ("From the day before to this one" if unit == "day" else "From last month to this one") in page
    assert "last day" not in page.lower()


def test_a_day_is_told_by_its_hours(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session, "day", "2026-12-07", "Europe/Berlin")
    assert [(hour["from"], hour["cost"]) for hour in body["currencies"][0]["hours"]] == [("2026-12-07T06:00:00Z", "5")]


def test_a_month_is_provisional_until_it_is_closed(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        part = make.bill_part(session, landed_at=at(12, 7))
        make.charge(session, part, make.charge_item(session), "3.00", charged_on=date(2026, 11, 9))
        before = body_of(session, "month", "2026-11")
        ledger.close_month(session, date(2026, 11, 1), author="test", software="1", now=NOW)
        after = body_of(session, "month", "2026-11")
        elsewhere = body_of(session, "month", "2026-11", "Europe/Berlin")
    assert [(one["standing"], one["snapshot"]["number"]) for one in (before, after, elsewhere)] == [("provisional", 0), ("final", 1), ("provisional", 0)]
    # In a closed month best is what was billed, to its last day.
    assert (before["totals"][0]["cost"], after["totals"][0]["cost"]) == ("5", "3")
    assert "provisional until the month is closed" in reports.written(before, "html").content.decode()


def test_over_http_each_by_its_own_parameter(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
    with serving(sqlite_store) as service:
        day, month, wrong, other = (
            service.client.get(f"/v1/reports/{query}")
            for query in ("daily?day=2026-11-09", "monthly?month=2026-10", "daily?day=2026-11", "daily?week=2026-W46")
        )
        costs = service.client.get("/v1/costs?from=2026-11-09&to=2026-11-10&granularity=none").json()["totals"]
    assert [answer.status_code for answer in (day, month, wrong, other)] == [200, 200, 422, 422]
    assert day.json()["totals"][0]["cost"] == costs[0]["cost"] == "3"
    assert Period(at(10, 1, 0), at(11, 1, 0)) == Period(*(datetime.fromisoformat(month.json()[name]) for name in ("from", "to")))
