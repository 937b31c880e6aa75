"""The routes of the correlation over HTTP: shapes, parameters, what is refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import date
from decimal import Decimal

import pyarrow.parquet as pq
import pytest

from models.charges import ChargeClass
from models.periods import parse_instant
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.token_prices(session, "1.00", "2.00")
        of = make.series(session, deployment="llama-foundry")
        make.event(session, of, time=parse_instant("2026-11-10T08:00:00Z", what="time"), input_tokens=1_000_000, output_tokens=100_000)
    with serving(sqlite_store) as running:
        yield running


def test_reconciliation_has_the_fields_of_the_contract(service: Service) -> None:
    answer = service.client.get("/v1/reconciliation?month=2026-11")
    assert answer.status_code == 200
    body = answer.json()
    assert [(row["meter"], row["expected"], row["billed"], row["variance"], row["causes"], row["state"]) for row in body["rows"]] == [
        ("input", "1", "0", "-1", {"not_yet_billed": "-1"}, "open"),
        ("output", "0.2", "0", "-0.2", {"not_yet_billed": "-0.2"}, "open"),
    ]
    assert (body["rows"][0]["workspace"], body["rows"][0]["deployment"], body["rows"][0]["day"]) == ("ws-east", "llama-foundry", "2026-11-10")
    assert [(total["currency"], total["variance"], total["unexplained"]) for total in body["totals"]] == [("USD", "-1.2", "0")]
    first = service.client.get("/v1/reconciliation?month=2026-11&limit=1").json()
    second = service.client.get("/v1/reconciliation", params={"month": "2026-11", "limit": "1", "cursor": first["next_cursor"]}).json()
    assert [*first["rows"], *second["rows"]] == body["rows"]
    assert (first["totals"], second["next_cursor"]) == (body["totals"], None)


def test_reconciliation_says_what_of_billed_is_invoiced(service: Service, sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        part, of = make.bill_part(session), make.charge_item(session, ChargeClass.FOUNDRY)
        for day, cost, invoice in ((10, "0.90", "G1"), (11, "0.40", None)):
            make.charge(session, part, of, cost, quantity=cost, charged_on=date(2026, 11, day), invoice_id=invoice)
    body = service.client.get("/v1/reconciliation?month=2026-11").json()
    assert [(row["day"], row["meter"], row["billed"], row["invoiced"], row["reasons"]) for row in body["rows"]] == [
        ("2026-11-10", "input", "0.9", "0.9", {}),
        ("2026-11-10", "output", "0", None, {"invoiced": "nothing is billed, so nothing can be on an invoice"}),
        ("2026-11-11", "input", "0.4", None, {"invoiced": "no invoice has been made for these charges yet"}),
    ]
    assert [(one["invoiced"], one["reasons"]) for one in body["totals"]] == [("0.9", {"invoiced": "some of these charges are on no invoice yet"})]
    csv_file = service.client.get("/v1/reconciliation?month=2026-11&format=csv")
    assert csv_file.headers["x-control-total"] == "USD 1.3"
    rows = list(csv.DictReader(io.StringIO(csv_file.text)))
    assert [(row["day"], row["meter"], row["expected"], row["billed"], row["invoiced"], row["variance"], row["cause_unmetered_usage"]) for row in rows] == [
        ("2026-11-10", "input", "1", "0.9", "0.9", "-0.1", "0"),
        ("2026-11-10", "output", "0.2", "0", "", "-0.2", "0"),
        ("2026-11-11", "input", "0", "0.4", "", "0.4", "0.4"),
    ]
    table = pq.read_table(io.BytesIO(service.client.get("/v1/reconciliation?month=2026-11&format=parquet").content)).to_pylist()
    assert [(row["invoiced"], row["not_invoiced"]) for row in table] == [
        (Decimal("0.9"), None),
        (None, "nothing is billed, so nothing can be on an invoice"),
        (None, "no invoice has been made for these charges yet"),
    ]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("month=2026-13", "like 2026-11"),
        ("month=2026-11&from=2026-11-01", "not both"),
        ("month=2026-11&cursor=%C3%BC", "cursor"),
        ("group_by=team", "no parameter"),
        ("from=2026-11-01T05:00:00Z&to=2026-11-02", "midnights"),
    ],
)
def test_a_question_that_reconciliation_cannot_answer_is_refused(service: Service, query: str, said: str) -> None:
    answer = service.client.get(f"/v1/reconciliation?{query}")
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True)


def test_comparison_has_the_fields_of_the_contract(service: Service) -> None:
    (row,) = service.client.get("/v1/comparison?from=2026-11-01&to=2026-11-11").json()["rows"]
    assert row["model"] == make.MODEL
    assert row["serverless"] == {
        "effective_cost_per_1m": "1.090909090909",
        "list_price_per_1m": {"input": "1", "output": "2", "at_mix": "1.090909090909"},
        "tokens": 1_100_000,
        "cost": "1.2",
        "feasible": False,
        "reason": row["serverless"]["reason"],
        "unknown_token_share": "0",
        "estimated_token_share": "0",
        # Its one call holds more tokens than the default allows in a minute.
        "tokens_per_minute_limit": 400_000,
        "limit_source": "default",
        "retires_at": None,
    }
    assert row["serverless"]["reason"] == "serverless cannot carry it: 1,100,000 tokens in one minute, and its limit is 400,000 (default)"
    assert (row["managed_compute"]["feasible"], row["managed_compute"]["feasible_reason"]) == (False, "no online deployment of this model is in the inventory")
    assert (row["peak_minute_tokens"], row["peak_hour_tokens"]) == (1_100_000, 1_100_000)
    assert set(row["managed_compute"]) >= {
        "effective_cost_per_1m",
        "tokens",
        "capacity_cost",
        "allocated_cost",
        "idle_cost",
        "utilisation",
        "core_hours",
        "capacity_tokens_per_day",
        "instances_needed",
    }
    assert (row["cheaper"], row["saving_per_day"], row["days"], row["standing"]) == (None, None, 10, "provisional")
    assert "no online deployment" in row["reason"]
    assert service.client.get("/v1/comparison?sku=Standard_X").status_code == 422
    (asked,) = service.client.get("/v1/comparison?from=2026-11-01&to=2026-11-11&sku=Standard_X&instances=1&hours_per_day=24").json()["rows"]
    unknown = "what a Standard_X serves of this model is not known: no deployment of the model on that size has a capacity_tokens_per_minute"
    assert asked["what_if"] == {
        "serverless": {"feasible": False, "reason": row["serverless"]["reason"]},
        "managed_compute": {
            "feasible": None,
            "reason": unknown,
            "capacity_tokens_per_day": None,
            "instances_needed": None,
            "vcpus_needed": None,
            "vcpus_left": None,
            "vcpu_quota": None,
        },
        "capacity_cost_per_day": None,
        "break_even_tokens_per_day": None,
        "break_even_reachable": None,
        "cheaper": None,
        "saving_per_day": None,
        "reason": "there is no hourly price of Standard_X in this currency; the size is not one we know",
    }


def test_an_owner_says_what_a_deployment_can_serve(service: Service) -> None:
    told = service.client.put("/v1/deployments/llama-foundry", json={"capacity_tokens_per_minute": 90_000})
    assert (told.status_code, told.json()["capacity_tokens_per_minute"], told.json()["id"]) == (200, 90_000, "ws-east/llama-foundry")
    (listed,) = service.client.get("/v1/deployments").json()["items"]
    assert listed == told.json()
    again = service.client.put("/v1/deployments/ws-east%2Fllama-foundry", json={"capacity_tokens_per_minute": None})
    assert again.json()["capacity_tokens_per_minute"] is None
    assert service.client.put("/v1/deployments/nowhere", json={}).status_code == 404
    assert service.client.put("/v1/deployments/llama-foundry", json={"capacity_tokens_per_minute": 0}).status_code == 422
    assert service.client.put("/v1/deployments/llama-foundry", json={"capacity": 5}).status_code == 422
