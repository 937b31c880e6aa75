"""One total, wherever it is read: API, dashboard, reports, close pack and files agree to the last digit in random worlds.

Bills of two subscriptions in two currencies with rates between them, four kinds of charges, shared resources, credits, usage
with and without prices, weeks of four time zones. METERBRIDGE_TEST_SEEDS makes it try more worlds.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.utils import PlotlyJSONEncoder

from collector import focus, reports
from dashboard.app import ledger_over
from dashboard.filters import Selection
from dashboard.pages import overview
from dashboard.shell import View
from models import ledger, money
from models.charges import ChargeClass, MeterKind
from models.ledger import Filters
from models.prices import PriceMeter
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving

WORLDS = int(os.environ.get("METERBRIDGE_TEST_SEEDS") or 2)
NOW = make.NOW  # 2026-11-20 10:00
OCTOBER = date(2026, 10, 1)
ZONES = ("UTC", "Europe/Berlin", "Pacific/Auckland", "America/St_Johns")
PLACES = {"ws-east": ("sub-usd", "USD"), "ws-west": ("sub-eur", "EUR")}
Totals = dict[str | None, str | None]
_TILE = re.compile(r'"Spend in this period[^"]*".*?figure=cost", "title": "([^"]*)"')

_amount = st.decimals(min_value=Decimal(-3), max_value=Decimal(40), places=7)
_charge = st.tuples(st.sampled_from(sorted(PLACES)), st.integers(1, 31), st.sampled_from(["saas", "foundry", "compute", "untagged", "rounding"]), _amount)
_calls = st.tuples(
    st.sampled_from(sorted(PLACES)),
    st.integers(1, 31),
    st.integers(0, 23),
    st.sampled_from(["chat-a", "chat-b", "llama-foundry", "llama-online/blue", "nobody-knows"]),
    st.integers(0, 10**7),
    st.sampled_from(["search", "", "=1+1"]),
)


def build(store: Store, charges: list[Any], calls: list[Any]) -> None:
    with store.write() as session:
        make.token_prices(session, "1.13", "2.27")
        make.price(session, PriceMeter.INSTANCE_HOURS, "3.673", sku="Standard_NC24ads_A100_v4", model="")
        for workspace, (subscription, currency) in PLACES.items():
            make.workspace_fact(session, workspace=workspace, subscription_id=subscription)
            for name in ("chat-a", "chat-b"):
                make.serverless(session, name, workspace=workspace, offer_id="llama-offer")
            make.foundry(session, workspace=workspace)
            make.managed(session, workspace=workspace, valid_from=datetime(2026, 10, 3, tzinfo=UTC), valid_to=datetime(2026, 10, 21, 7, 13, tzinfo=UTC))
            make.owner(session, workspace=workspace, deployment="chat-a", cost_center=f"cc-{workspace}")
            of: dict[str, Any] = {"subscription_id": subscription}
            part = make.bill_part(
                session, period_start=OCTOBER, landed_at=NOW - timedelta(days=9), exchange_rates={"USD>EUR": "0.8713", "EUR>USD": "1.1477"}, **of
            )
            where: dict[str, Any] = {**of, "workspace": workspace}
            items = {
                "saas": make.charge_item(session, offer_id="llama-offer", **of),
                "foundry": make.charge_item(session, ChargeClass.FOUNDRY, **where),
                "compute": make.charge_item(session, ChargeClass.COMPUTE, **where),
                "untagged": make.charge_item(session, ChargeClass.COMPUTE, endpoint=None, deployment=None, **where),
                "rounding": make.charge_item(session, ChargeClass.ADJUSTMENT, MeterKind.ADJUSTMENT, **of),
            }
            for place, day, kind, cost in charges:
                if place == workspace:
                    make.charge(session, part, items[kind], cost, quantity="3.5", charged_on=date(2026, 10, day), currency=currency, pricing_currency="USD")
        for workspace, day, hour, name, tokens, team in calls:
            series = make.series(session, workspace_name=workspace, deployment=name, team=team, model="" if name == "nobody-knows" else make.MODEL)
            make.event(session, series, time=datetime(2026, 10, day, hour, 17, tzinfo=UTC), input_tokens=tokens, output_tokens=tokens // 3)


def of_api(service: Service, start: datetime, end: datetime, zone: str) -> tuple[Totals, Totals]:
    asked = {"from": start.isoformat(), "to": end.isoformat(), "granularity": "none", "time_zone": zone}
    answer = service.client.get("/v1/costs", params=asked)
    assert answer.status_code == 200, answer.text
    totals = answer.json()["totals"]
    return {one["currency"]: one["cost"] for one in totals}, {one["currency"]: one["billed_cost"] for one in totals}


def of_dashboard(store: Store) -> Totals:
    """What the tiles of the overview say of October, every digit: it stands in the title of the figure."""
    with ledger_over(store.read)() as opened:
        view = View(Selection.parse("?from=2026-10-01&to=2026-11-01"), opened, NOW, None, "/dashboard/", overview.PATH, "http://x", is_open=True)
        drawn = json.dumps(overview.layout(view), cls=PlotlyJSONEncoder)
    said = [title.rpartition(" ") for title in _TILE.findall(drawn)]
    return {currency: amount for amount, _, currency in said}


def of_file(content: bytes, *names: str) -> list[Totals]:
    """The sums of a CSV by currency."""
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    return [
        {code: money.text(money.add(Decimal(row[name] or 0) for row in rows if row["currency"] == code)) for code in {row["currency"] for row in rows}}
        for name in names
    ]


def priced(totals: Totals) -> Totals:
    """Without what has no currency, and therefore no amount."""
    return {currency: amount for currency, amount in totals.items() if currency and amount is not None}


@settings(max_examples=WORLDS, deadline=None)
@given(st.lists(_charge, max_size=10), st.lists(_calls, min_size=1, max_size=10), st.sampled_from(ZONES))
def test_every_reader_gets_the_same_totals(tmp_path_factory: pytest.TempPathFactory, charges: list[Any], calls: list[Any], zone: str) -> None:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('totals')}/t.db")
    store.migrate()
    build(store, charges, calls)
    october, week = ledger.span_of("month", "2026-10", now=NOW), ledger.week_of("2026-W42", now=NOW, time_zone=zone)
    with serving(store) as service:
        costs, billed = of_api(service, october.period.start, october.period.end, "UTC")
        weekly, _ = of_api(service, week.period.start, week.period.end, zone)
        extract = service.client.get("/v1/costs", params={"from": "2026-10-01", "to": "2026-11-01", "group_by": "team", "granularity": "day", "format": "csv"})
        found = service.client.get("/v1/reports/weekly", params={"week": "2026-W42", "time_zone": zone}).json()
    # A report also names the currencies of the week before, of which this one has nothing.
    assert {one["currency"]: one["cost"] for one in found["totals"]} == {one["currency"]: weekly.get(one["currency"], "0") for one in found["totals"]}
    assert weekly.keys() <= {one["currency"] for one in found["totals"]}
    with store.read() as session:
        monthly = reports.weekly_draft(session, october, Filters(), now=NOW).body
        pack = reports.close_draft(session, OCTOBER, Filters(), now=NOW).body
        stream = io.BytesIO()
        exported = focus.export(session, ledger.focus_month(session, OCTOBER, now=NOW), stream, version="1.3", form="csv", visible=None, now=NOW)
    whole = {**monthly, "snapshot": {"id": None, "number": None, "sha256": "", "made_at": "2026-11-20T10:00:00Z", "reason": ""}}
    assert {one["currency"]: (one["cost"], one["billed_cost"]) for one in monthly["totals"]} == {code: (costs[code], billed[code]) for code in costs}
    by_file = of_file(reports.written(whole, "csv").content, "cost")[0]
    assert {code: total for code, total in by_file.items() if code} == priced(costs)
    assert {one["currency"]: one["cost"] for one in pack["totals"]} == priced(costs)
    assert of_dashboard(store) == {currency: amount for currency, amount in costs.items() if currency}
    assert extract.headers["x-control-total"] == "; ".join(f"{code} {amount}" for code, amount in sorted(priced(costs).items()))
    for one in pack["totals"]:
        assert Decimal(one["booked"]) == money.plus(Decimal(one["cost"]), Decimal(one["rounding"]))
    for one in pack["currencies"]:
        for entry in one["entries"]:
            sides = [money.add(Decimal(line[side]) for line in entry["lines"]) for side in ("debit", "credit")]
            assert sides[0] == sides[1] == Decimal(entry["debits"])
    assert {code: money.text(total) for code, total in exported.billed.items() if total} == {
        code: total for code, total in billed.items() if total not in (None, "0")
    }
    assert {code: money.text(total) for code, total in exported.effective.items() if total} == {
        code: total for code, total in priced(costs).items() if total != "0"
    }
    store.close()
