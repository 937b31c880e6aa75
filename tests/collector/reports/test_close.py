"""The close pack as files and over HTTP: one snapshot, one control total, restated when it changes."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import Session

from collector import reports
from models import ledger, money
from models.ledger import CostQuery
from models.periods import month_period
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import serving

NOW = make.NOW
OCTOBER = date(2026, 10, 1)
EVIL = "=1+1<script>"


def world(session: Session) -> None:
    make.serverless(session)
    make.owner(session, deployment="llama-chat", cost_center=EVIL)
    make.token_prices(session, "1.00", "2.00")
    make.event(session, time=datetime(2026, 10, 20, 8, tzinfo=UTC), input_tokens=1_234_567, output_tokens=0)


def body_of(session: Session, now: datetime = NOW) -> dict[str, Any]:
    return reports.keep(session, reports.close_draft(session, OCTOBER, ledger.Filters(), now=now), now=now)


def test_the_journal_has_the_control_total_and_no_cost_centre_is_a_formula(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = body_of(session)
        (total,) = ledger.costs(session, CostQuery(month_period(OCTOBER), "none"), now=NOW).totals
    made = reports.written(body, "csv")
    rows = list(csv.DictReader(io.StringIO(made.content.decode())))
    assert made.control_total == {"USD": "1.23"}
    assert body["totals"][0]["cost"] == money.text(total.cost or money.ZERO) == "1.234567"
    assert body["totals"][0]["rounding"] == "-0.004567"
    assert [(row["entry"], row["date"], row["cost_center"], row["account"], row["debit"], row["credit"]) for row in rows] == [
        ("accrual", "2026-10-31", f"'{EVIL}", "serverless", "1.23", "0.00"),
        ("accrual", "2026-10-31", "", "accrued", "0.00", "1.23"),
        ("reversal", "2026-11-01", f"'{EVIL}", "serverless", "0.00", "1.23"),
        ("reversal", "2026-11-01", "", "accrued", "1.23", "0.00"),
    ]
    page = reports.written(body, "html").content.decode()
    assert "<script>" not in page
    assert "provisional" in page
    assert reports.written(body, "pdf").content.startswith(b"%PDF")


def test_the_same_figures_are_the_same_snapshot_and_others_restate_it(store: Store) -> None:
    with store.write() as session:
        world(session)
        first = body_of(session)
        again = body_of(session, NOW + timedelta(hours=1))
        later = NOW + timedelta(hours=2)
        make.event(session, time=datetime(2026, 10, 21, 8, tzinfo=UTC), received_at=later, input_tokens=1_000_000, output_tokens=0)
        restated = body_of(session, later)
    assert first["snapshot"] == again["snapshot"]
    assert (first["snapshot"]["number"], restated["snapshot"]["number"]) == (0, 1)
    deltas = {(line["entry"], line["account"]): line["delta"] for line in restated["restatement"]}
    assert deltas[("accrual", "serverless")] == "1"
    assert money.add(Decimal(delta) for delta in deltas.values()) == 0


def test_over_http_in_every_format(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
    with serving(sqlite_store) as service:
        answers = {form: service.client.get("/v1/reports/close", params={"month": "2026-10", "format": form}) for form in reports.FORMATS}
        refused = [
            service.client.get("/v1/reports/close", params=said).status_code for said in ({}, {"month": "2026-13"}, {"month": "2026-10", "format": "doc"})
        ]
    assert {form: answer.status_code for form, answer in answers.items()} == dict.fromkeys(reports.FORMATS, 200)
    assert answers["csv"].headers["x-control-total"] == "USD 1.23"
    assert answers["json"].json()["standing"] == "provisional"
    assert refused in ([400] * 3, [422] * 3)


@pytest.mark.parametrize("month", [date(2026, 11, 1)])
def test_a_month_that_runs_is_not_kept(sqlite_store: Store, month: date) -> None:
    with sqlite_store.write() as session:
        world(session)
        body = reports.keep(session, reports.close_draft(session, month, ledger.Filters(), now=NOW), now=NOW)
    assert (body["snapshot"]["id"], body["snapshot"]["reason"]) == (None, "the month is not over yet")


def test_the_share_of_calls_that_told_no_tokens_stands_beside_their_number(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        for _ in range(2):
            make.event(session, time=datetime(2026, 10, 21, 8, tzinfo=UTC), input_tokens=None, output_tokens=None)
        body = body_of(session)
    assert body["data_age"] == {"metered_until": "2026-10-21T08:00:00Z", "billed_until": None}
    assert (body["unknown_token_requests"], body["unknown_token_share"]) == (2, "0.6667")
    assert "2 requests (66.7 %) did not say their tokens: metering cannot say what they cost, the bill does." in (
        page := reports.written(body, "html").content.decode()
    )
    assert "Metered until 2026-10-21 08:00 UTC, no bill says yet how far it reaches." in page
    assert "1.23 USD is to be booked; the exact cost is " in page
