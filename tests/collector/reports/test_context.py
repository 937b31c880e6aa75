"""Budgets, limits and earlier reports beside a report's money: in every format, and no part of what restates it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlmodel import Session

from collector import reports
from models import ledger
from models.alerts import Budget, Severity
from models.charges import BillPart, ChargeClass
from models.limits import Counting, LimitSource, set_limit
from models.store import Store
from tests import factories as make
from tests.collector.reports.printing import sheets

NOW = make.NOW
EVIL = "=1+1<script>"


def at(day: int) -> datetime:
    return datetime(2026, 11, day, 8, tzinfo=UTC)


def body_of(session: Session, week: str = "2026-W46", now: datetime = NOW) -> dict[str, Any]:
    return reports.keep(session, reports.weekly_draft(session, ledger.week_of(week, now=now), ledger.Filters(), now=now), now=now)


def world(session: Session) -> BillPart:
    make.workspace_fact(session)
    make.foundry(session)
    make.token_prices(session, "1.00", "2.00")
    for day in range(2, 20):
        make.event(session, make.series(session, deployment="llama-foundry"), time=at(day), input_tokens=1_000_000, output_tokens=0)
    said: dict[str, Any] = {"value": 900_000, "source": LimitSource.USER, "counting": Counting.BILLED, "author": "", "now": at(1)}
    set_limit(session, workspace="ws-east", deployment="llama-foundry", measure="tokens_per_minute", **said)
    facts: dict[str, Any] = {"scope": {}, "currency": "USD", "period": "month", "steps": [], "forecast_steps": [], "severity": Severity.INFO, "receivers": []}
    session.add(Budget(id="b", name=EVIL, amount=Decimal("15.00"), created_at=at(1), updated_at=at(1), **facts))
    part = make.bill_part(session)
    for day in range(2, 14):
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "1.00", charged_on=at(day).date())
    return part


def test_every_format_says_it(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        part = world(session)
        first = body_of(session, "2026-W45")
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "0.25", charged_on=at(4).date())
        body = body_of(session)
    assert first["earlier"] == []
    (budget,), (call,), (earlier,) = body["budgets"], body["close_calls"], body["earlier"]
    assert (budget["spent"], budget["amount"], budget["percent"], budget["reason"]) == ("18.25", "15", "121.7", None)
    assert (call["deployment"], call["peak"], call["limit"], call["percent"]) == ("llama-foundry", 1_000_000, 900_000, "111.1")
    assert (earlier["period"], earlier["told"], earlier["now"], earlier["difference"]) == ("2026-W45", "7", "7.25", "0.25")
    page = reports.written(body, "html").content.decode()
    printed = sheets(reports.written(body, "pdf").content)
    for said in (
        "Over budget: =1+1",
        "121.7 % spent",
        "Not billed yet: Sat 14 Nov, Sun 15 Nov. Metered figures stand in",
        "1 earlier week changed since first reported: +0.25 USD together",
        "Limits that were close",
        "111.1 %",
        "Metered until 2026-11-19 08:00 UTC, billed until 2026-11-14 00:00 UTC",
        "True-up of earlier weeks",
    ):
        assert said in page
        assert said in " ".join(printed)
    assert "<script" not in page
    assert page.index("Over budget") < page.index(">Detail<")
    # The first sheet is the director's: what follows it is detail.
    assert "Detail" not in printed[0]
    assert printed[1].startswith("Detail")


def test_what_becomes_of_it_later_restates_nothing(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        first = body_of(session)
        make.event(session, make.series(session, deployment="llama-foundry"), time=at(20), input_tokens=5_000_000, output_tokens=0)
        again = body_of(session, now=NOW + timedelta(hours=1))
        # As it was kept before there was any of this: the same figures are the same report.
        old = {name: value for name, value in first.items() if name not in ("budgets", "close_calls", "alerts", "earlier", "left_out")}
        for form in reports.FORMATS:
            assert reports.written(old, form).content
    assert again == first
    assert json.loads(reports.written(first, "json").content)["budgets"][0]["spent"] == "18"


def test_a_budget_that_a_cent_will_pass_is_named(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
    (budget,) = body["budgets"]
    for expected, said in (("20000.00", False), ("20000.01", True)):
        told = {**budget, "amount": "20000.00", "spent": "13875.48", "percent": "69.4", "expected": expected, "expected_percent": "100"}
        page = reports.written({**body, "budgets": [told]}, "html").content.decode()
        assert ("Expected to end over budget: =1+1&lt;script&gt; (69.4 % spent)." in page) == said
        assert "month from 01 Nov 2026" in page


def test_a_report_without_budgets_says_so(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session)
        make.event(session, time=at(10))
        body = body_of(session)
    assert "No budget is set for what this report covers." in reports.written(body, "html").content.decode()
