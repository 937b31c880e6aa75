"""The lines behind a figure add up to it, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from models import ledger
from models.charges import ChargeClass
from models.ledger import BASES, CostQuery, Filters
from models.periods import month_period
from models.prices import PriceMeter
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving

NOVEMBER = month_period(date(2026, 11, 1))


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.managed(session, valid_from=datetime(2026, 11, 1, tzinfo=UTC))
        make.price(session, PriceMeter.INSTANCE_HOURS, "4.00", unit="1 hour", sku="Standard_NC24ads_A100_v4", model="")
        make.price(session, PriceMeter.INPUT_TOKENS, "1.00", valid_to=datetime(2026, 11, 12, tzinfo=UTC))
        make.price(session, PriceMeter.INPUT_TOKENS, "2.00", valid_from=datetime(2026, 11, 12, tzinfo=UTC))
        make.price(session, PriceMeter.OUTPUT_TOKENS, "3.00")
        of = make.series(session, deployment="llama-foundry", application="chat")
        for day in range(8, 19):
            make.event(session, of, time=datetime(2026, 11, day, 8, tzinfo=UTC), input_tokens=100_000 * day, output_tokens=1_000)
        part = make.bill_part(session)
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "1.25", charged_on=date(2026, 11, 9))
        make.charge(
            session, part, make.charge_item(session, ChargeClass.COMPUTE), "96.00", quantity="24", charged_on=date(2026, 11, 9), effective_cost=Decimal(50)
        )
        make.charge(session, part, make.charge_item(session, ChargeClass.ADJUSTMENT), "-0.01", charged_on=date(2026, 11, 9), charge_type="RoundingAdjustment")
    return sqlite_store


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("filters", [Filters(), Filters(deployments=("llama-foundry",)), Filters(applications=("chat",))])
def test_the_lines_add_up_to_the_figure(store: Store, basis: ledger.Basis, filters: Filters) -> None:
    with store.read() as session:
        found = ledger.explain(session, CostQuery(NOVEMBER, "none", (), basis, filters), now=make.NOW)
        totals = ledger.costs(session, CostQuery(NOVEMBER, "none", (), basis, filters), now=make.NOW).totals
    if filters.applications and basis in ("metered", "best"):
        return  # instance-hours of an application are shares, and named as such
    assert [(total.currency, total.cost) for total in found.totals] == [(total.currency, total.cost) for total in totals]
    for total in totals:
        assert ledger.counted_in(found, total.currency) == (total.cost or Decimal(0))


@pytest.fixture
def service(store: Store) -> Iterator[Service]:
    with serving(store) as running:
        yield running


def test_explain_takes_the_same_query_as_the_number_and_names_its_prices(service: Service) -> None:
    query = "from=2026-11-01&to=2026-12-01&granularity=none&deployment=llama-foundry&basis=metered"
    number = service.client.get(f"/v1/costs?{query}").json()["totals"][0]
    told = service.client.get(f"/v1/explain?{query}").json()
    assert told["totals"][0]["cost"] == told["totals"][0]["counted"] == number["cost"]
    prices = {(line["meter"], line["unit_price"]): line["quantity"] for line in told["metered"]}
    # 8 to 11 at 1.00, 12 to 18 at 2.00.
    assert prices == {("input", "1"): "3800000", ("input", "2"): "10500000", ("output", "3"): "11000"}
    assert all(line["price_version"] for line in told["metered"])
    assert told["curl"].startswith("curl 'http://127.0.0.1")
    assert told["data_age"]["metered_until"] is not None
    billed = service.client.get("/v1/explain?from=2026-11-01&to=2026-12-01&basis=billed").json()
    assert {line["bill_part"] for line in billed["billed"]} == {part["id"] for part in billed["bill_parts"]}
