"""Files of the read API: every row, numbers as numbers, names no spreadsheet runs, and a control total that is the sum."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from collector.api import reads
from models import money
from models.charges import ChargeClass
from models.store import Store
from tests import factories
from tests.collector.api.serving import Service, serving

PERIOD = {"from": "2026-11-10", "to": "2026-11-12"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Service]:
    """On the 10th 3 million tokens at 0.50 (billed 1.20), on the 11th a million (0.50); one application's name is a formula."""
    file = tmp_path_factory.mktemp("extracts") / "t.db"
    file.write_bytes(migrated_file.read_bytes())
    store = Store(f"sqlite:///{file}")
    with store.write() as session:
        factories.token_prices(session, "0.50", "0.50")
        factories.workspace_fact(session)
        factories.serverless(session)
        of = factories.series(session, application="=HYPERLINK(1)", team="search", tags={"env": "prod"})
        for name, day, tokens in (("+1", 10, 3_000_000), ("b", 11, 1_000_000)):
            factories.event(session, of, time=datetime(2026, 11, day, 8, tzinfo=UTC), input_tokens=tokens, output_tokens=0, event_id=name)
        item = factories.charge_item(session, ChargeClass.MARKETPLACE)
        factories.charge(session, factories.bill_part(session), item, "1.20", charged_on=date(2026, 11, 10), quantity="3000")
    with serving(store) as service:
        yield service
    store.close()


def asked(world: Service, path: str, **parameters: Any) -> tuple[bytes, Any]:
    answer = world.client.get(path, params=PERIOD | parameters)
    assert answer.status_code == 200, answer.text
    return answer.content, answer.headers


def test_costs_as_csv(world: Service) -> None:
    content, headers = asked(world, "/v1/costs", format="csv", group_by="deployment,application")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert [(row["period_start"], row["deployment"], row["application"], row["cost"], row["billed_cost"], row["estimate"]) for row in rows] == [
        ("2026-11-10T00:00:00Z", "llama-chat", "'=HYPERLINK(1)", "1.2", "1.2", "true"),
        ("2026-11-11T00:00:00Z", "llama-chat", "'=HYPERLINK(1)", "0.5", "", "false"),
    ]
    assert (headers["x-control-total"], headers["x-rows"]) == ("USD 1.7", "2")
    assert headers["content-type"] == "text/csv; charset=utf-8"
    assert headers["content-disposition"] == 'attachment; filename="meterbridge-costs.csv"'


@pytest.mark.parametrize("basis", ["metered", "billed", "best", "amortized"])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_rows_add_up_to_the_control_total_and_to_the_json(world: Service, basis: str, form: str) -> None:
    content, headers = asked(world, "/v1/costs", format=form, basis=basis, granularity="hour", group_by="meter")
    if form == "csv":
        costs = [Decimal(row["cost"]) for row in csv.DictReader(io.StringIO(content.decode())) if row["cost"]]
    else:
        costs = [row["cost"] for row in pq.read_table(io.BytesIO(content)).to_pylist() if row["cost"] is not None]
    said = json.loads(asked(world, "/v1/costs", basis=basis, granularity="hour", group_by="meter")[0])
    assert headers["x-control-total"] == f"USD {money.text(money.add(costs))}" == f"USD {said['totals'][0]['cost']}"


def test_costs_as_parquet_have_types(world: Service) -> None:
    content, _ = asked(world, "/v1/costs", format="parquet", group_by="application")
    first, _ = pq.read_table(io.BytesIO(content)).to_pylist()
    assert (first["period_start"], first["application"], first["cost"], first["input_tokens"], first["estimate"]) == (
        datetime(2026, 11, 10, tzinfo=UTC),
        "=HYPERLINK(1)",
        Decimal("1.200000000000000000"),
        3_000_000,
        True,
    )


def test_usage_has_every_event_however_many_are_read_at_once(world: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_EVENTS_AT_ONCE", 1)
    content, headers = asked(world, "/v1/usage", format="csv")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert [(row["id"], row["time"], row["input_tokens"], row["tags"], row["counted"]) for row in rows] == [
        ("b", "2026-11-11T08:00:00Z", "1000000", '{"env": "prod"}', "true"),
        ("'+1", "2026-11-10T08:00:00Z", "3000000", '{"env": "prod"}', "true"),
    ]
    assert headers["x-control-total"] == "requests 2; input_tokens 4000000; output_tokens 0; cached_input_tokens 0; reasoning_output_tokens 0"
    table = pq.read_table(io.BytesIO(asked(world, "/v1/usage", format="parquet")[0]))
    assert [(row["id"], row["input_tokens"], row["mode"]) for row in table.to_pylist()] == [("b", 1_000_000, "serverless"), ("+1", 3_000_000, "serverless")]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_usage_adds_up_to_the_tokens_of_costs(sqlite_store: Store, form: str) -> None:
    # One event is taken back, one is not billable, one says more cached than input tokens, and of one no tokens are known.
    with sqlite_store.write() as session:
        of = factories.series(session)
        at = datetime(2026, 11, 10, 8, tzinfo=UTC)
        factories.event(session, of, time=at, event_id="plain", input_tokens=1000, output_tokens=200, cached_input_tokens=300, reasoning_output_tokens=50)
        factories.event(session, of, time=at + timedelta(hours=1), event_id="odd", input_tokens=10, output_tokens=1, cached_input_tokens=25)
        factories.event(session, of, time=at, event_id="free", input_tokens=70_000, output_tokens=7000, billable=False)
        factories.event(session, of, time=at, event_id="silent", input_tokens=None, output_tokens=None)
        factories.event(session, of, time=at, event_id="gone", input_tokens=900_000, output_tokens=90_000)
    with serving(sqlite_store) as service:
        taken = service.client.post("/v1/usage/void", json={"ids": ["gone"], "workspace": "ws-east"})
        assert taken.status_code == 200, taken.text
        content, headers = asked(service, "/v1/usage", format=form)
        (total,) = json.loads(asked(service, "/v1/costs", granularity="none")[0])["totals"]
    said = "requests 4; input_tokens 1010; output_tokens 201; cached_input_tokens 310; reasoning_output_tokens 50"
    assert (headers["x-control-total"], headers["x-rows"]) == (said, "5")
    assert said == "; ".join(
        f"{name} {total[name]}" for name in ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens")
    )
    rows = list(csv.DictReader(io.StringIO(content.decode()))) if form == "csv" else pq.read_table(io.BytesIO(content)).to_pylist()
    counted = [row for row in rows if row["counted"] in (True, "true") and row["billable"] in (True, "true")]
    assert sum(int(row["input_tokens"] or 0) for row in counted) == 1010


def test_a_file_of_nothing_has_its_columns(world: Service) -> None:
    for form in ("csv", "parquet"):
        content, headers = asked(world, "/v1/usage", format=form, workspace="ws-none")
        names = content.decode().splitlines()[0].split(",") if form == "csv" else pq.read_table(io.BytesIO(content)).column_names
        assert (names[:2], headers["x-rows"]) == (["handle", "id"], "0")


@pytest.mark.parametrize(
    ("path", "parameters", "said"),
    [
        ("/v1/costs", {"format": "xlsx"}, "format must be json, csv or parquet"),
        ("/v1/usage", {"format": "csv", "limit": "5"}, "leave out limit and cursor"),
        ("/v1/costs", {"format": "csv", "cursor": "x"}, "leave out limit and cursor"),
    ],
)
def test_what_cannot_be_meant_is_refused(world: Service, path: str, parameters: dict[str, str], said: str) -> None:
    answer = world.client.get(path, params=PERIOD | parameters)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_more_events_than_a_file_holds_are_refused(world: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_EVENTS_AT_ONCE", 1)
    monkeypatch.setattr(reads, "_MOST_EVENTS", 1)
    answer = world.client.get("/v1/usage", params=PERIOD | {"format": "csv"})
    assert (answer.status_code, "ask for a shorter period" in answer.text) == (422, True)


@pytest.mark.parametrize(
    ("path", "named", "span", "forms"),
    [
        ("reports/daily", {"day": "2026-11-10"}, ("2026-11-10", "2026-11-11"), ("json", "csv", "html", "pdf")),
        ("reports/weekly", {"week": "2026-W46"}, ("2026-11-09", "2026-11-16"), ("json", "csv", "html", "pdf")),
        ("reports/monthly", {"month": "2026-11"}, ("2026-11-01", "2026-12-01"), ("json", "csv", "html", "pdf")),
        ("reports/close", {"month": "2026-11"}, ("2026-11-01", "2026-12-01"), ("json", "csv", "html", "pdf")),
        ("export/focus", {"month": "2026-11"}, ("2026-11-01", "2026-12-01"), ("csv", "parquet")),
    ],
)
def test_every_file_has_the_control_total_of_the_same_question(
    world: Service, path: str, named: dict[str, str], span: tuple[str, str], forms: tuple[str, ...]
) -> None:
    # An invoice knows no estimates: a FOCUS file's total is what is billed.
    basis = "billed" if path == "export/focus" else "best"
    costs = world.client.get("/v1/costs", params={"from": span[0], "to": span[1], "granularity": "none", "basis": basis}).json()
    (total,) = costs["totals"]
    for form in forms:
        answer = world.client.get(f"/v1/{path}", params={**named, "format": form})
        assert answer.status_code == 200, answer.text
        currency, _, amount = answer.headers["x-control-total"].partition(" ")
        assert (currency, Decimal(amount)) == ("USD", Decimal(total["cost"])), (path, form)
        if form == "parquet":
            assert money.add(row["BilledCost"] for row in pq.read_table(io.BytesIO(answer.content)).to_pylist()) == Decimal(amount)
        if form == "csv":
            rows = csv.DictReader(io.StringIO(answer.content.decode()))
            column = {"reports/close": "debit", "export/focus": "BilledCost"}.get(path, "cost")
            # What a close pack accrues it takes back in the next month.
            assert money.add(Decimal(row[column]) for row in rows if row[column] and not row.get("entry", "").startswith("reversal")) == Decimal(amount)
