"""The read routes: each parameter, paging, receipts, refusals by name, and no fault whatever is asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.charges import ChargeClass, MeterKind
from models.store import Store, head_revision
from tests import factories
from tests.collector.api.serving import Service, serving

PERIOD = {"from": "2026-11-10", "to": "2026-11-12"}


def told(store: Store) -> None:
    """Two days, two workspaces, one bill that reaches the first day.

    On the 10th ws-east used 3 million tokens at 0.50 (1.50; billed 1.20), on the 11th 1 million (0.50, not billed);
    ws-west, of another subscription without a bill, 2 million on the 11th at 0.50 (1.00).
    """
    with store.write() as session:
        factories.token_prices(session, "0.50", "0.50")
        factories.workspace_fact(session)
        factories.workspace_fact(session, workspace="ws-west", subscription_id="00000000-0000-0000-0000-000000000002")
        factories.serverless(session)
        factories.serverless(session, "llama-west", workspace="ws-west")
        east = factories.series(session, application="chat", team="search", tags={"env": "prod"})
        west = factories.series(session, workspace_name="ws-west", deployment="llama-west")
        for of, name, day, hour, inputs, outputs in (
            (east, "east-8", 10, 8, 1_000_000, 0),
            (east, "east-20", 10, 20, 2_000_000, 0),
            (east, "east-next", 11, 8, 1_000_000, 0),
            (west, "west/1 ä", 11, 9, 1_500_000, 500_000),
        ):
            at = datetime(2026, 11, day, hour, tzinfo=UTC)
            factories.event(session, of, time=at, input_tokens=inputs, output_tokens=outputs, event_id=name)
        part = factories.bill_part(session)
        item = factories.charge_item(session, ChargeClass.MARKETPLACE, MeterKind.INPUT)
        factories.charge(session, part, item, "1.20", charged_on=date(2026, 11, 10), quantity="3000")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Service]:
    """One service over the told world: nothing here writes."""
    file = tmp_path_factory.mktemp("reads") / "t.db"
    file.write_bytes(migrated_file.read_bytes())
    store = Store(f"sqlite:///{file}")
    told(store)
    with serving(store) as service:
        yield service
    store.close()


def costs(world: Service, **parameters: Any) -> dict[str, Any]:
    answer = world.client.get("/v1/costs", params=PERIOD | {name.rstrip("_"): value for name, value in parameters.items()})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def total(world: Service, **parameters: Any) -> tuple[str | None, int]:
    """(cost, requests) over everything asked for."""
    found = costs(world, granularity="none", **parameters)["totals"]
    assert len(found) <= 1
    return (found[0]["cost"], found[0]["requests"]) if found else (None, 0)


# -- costs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ("2.7", 4)),  # 1.20 billed + 0.50 + 1.00
        ({"basis": "best"}, ("2.7", 4)),
        ({"basis": "metered"}, ("3", 4)),
        ({"basis": "billed"}, ("1.2", 4)),
        ({"basis": "amortized"}, ("1.2", 4)),
        ({"workspace": "ws-east"}, ("1.7", 3)),
        ({"workspace": ["ws-east", "ws-west"]}, ("2.7", 4)),
        ({"workspace": "ws-none"}, (None, 0)),
        ({"deployment": "llama-west"}, ("1", 1)),
        ({"model": "llama-3.3-70b-INSTRUCT"}, ("2.7", 4)),
        ({"model": "Llama-4"}, (None, 0)),
        ({"application": "chat", "basis": "metered"}, ("2", 3)),
        ({"team": "search", "basis": "metered"}, ("2", 3)),
        ({"mode": "serverless"}, ("2.7", 4)),
        ({"mode": "managed_compute"}, (None, 0)),
        ({"tag:env": "prod", "basis": "metered"}, ("2", 3)),
        ({"tag:env": "test"}, (None, 0)),
        ({"currency": "USD"}, ("2.7", 4)),
        ({"currency": "EUR"}, (None, 0)),
        ({"from": "2026-11-11T00:00:00Z"}, ("1.5", 2)),
        ({"from": "2026-11-10T20:00:00+01:00", "basis": "metered"}, ("2.5", 3)),
        ({"from": "2026-11-12"}, (None, 0)),
    ],
)
def test_each_parameter_narrows_the_question(world: Service, parameters: dict[str, Any], expected: tuple[str | None, int]) -> None:
    cost, requests = total(world, **parameters)
    shown = None if cost is None else cost.rstrip("0").rstrip(".") if "." in cost else cost
    assert (shown, requests) == expected


def test_a_row_has_every_field_of_the_contract_and_money_is_text(world: Service) -> None:
    found = costs(world, group_by="workspace,deployment,team")
    row = found["rows"][0]
    assert {
        "period_start", "workspace", "deployment", "team", "currency", "cost", "metered_cost", "billed_cost", "input_tokens", "output_tokens", "requests",
        "core_hours", "status", "unpriced_tokens", "unknown_token_requests", "coverage", "estimate",
    } <= row.keys()  # fmt: skip
    assert (row["period_start"], row["workspace"], row["currency"], row["input_tokens"]) == ("2026-11-10T00:00:00Z", "ws-east", "USD", 3_000_000)
    assert {type(row[name]) for name in ("cost", "metered_cost", "billed_cost")} == {str}
    assert row["status"] == "settling"
    assert found["group_by"] == ["workspace", "deployment", "team"]


@pytest.mark.parametrize(
    ("granularity", "starts"),
    [
        ("hour", ["2026-11-10T08:00:00Z", "2026-11-10T20:00:00Z", "2026-11-11T08:00:00Z", "2026-11-11T09:00:00Z"]),
        ("day", ["2026-11-10T00:00:00Z", "2026-11-11T00:00:00Z"]),
        ("week", ["2026-11-10T00:00:00Z"]),
        ("month", ["2026-11-10T00:00:00Z"]),
        ("none", ["2026-11-10T00:00:00Z"]),
    ],
)
def test_rows_are_cut_at_the_calendar(world: Service, granularity: str, starts: list[str]) -> None:
    rows = costs(world, granularity=granularity, basis="metered")["rows"]
    assert [row["period_start"] for row in rows if row["requests"]] == starts


def test_days_are_those_of_the_zone(world: Service) -> None:
    rows = costs(world, basis="metered", time_zone="Asia/Tokyo")["rows"]
    # 20:00 in UTC is the next morning in Tokyo, whose midnight is 15:00 of the day before.
    assert [(row["period_start"], row["requests"]) for row in rows if row["requests"]] == [("2026-11-10T00:00:00Z", 1), ("2026-11-10T15:00:00Z", 3)]


def test_as_of_answers_with_what_was_known(world: Service) -> None:
    assert total(world, basis="metered", as_of="2026-11-10T12:00:00Z") == ("0.5", 1)
    assert total(world, basis="billed", as_of="2026-11-19")[0] is None
    assert costs(world, as_of="2026-11-19")["as_of"] == "2026-11-19T00:00:00Z"


def test_defaults_are_those_of_the_contract(world: Service) -> None:
    found = world.client.get("/v1/costs").json()
    assert (found["from"], found["to"], found["granularity"], found["basis"], found["as_of"], found["time_zone"], found["group_by"]) == (
        "2026-10-21T00:00:00Z",
        "2026-11-20T10:00:00Z",
        "day",
        "best",
        None,
        "UTC",
        [],
    )
    assert found["next_cursor"] is None


def _paged(world: Service, path: str, key: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    pages: list[dict[str, Any]] = []
    cursor: str | None = None
    while cursor is not None or not pages:
        answer = world.client.get(path, params=parameters | ({} if cursor is None else {"cursor": cursor}))
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        cursor = pages[-1]["next_cursor"]
        assert len(pages) < 50
    assert all(len(page[key]) == parameters["limit"] for page in pages[:-1])
    return pages


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("groups", ["", "workspace,team", "application,meter,tag:env"])
def test_the_rows_of_all_pages_are_all_rows_and_totals_stand_on_each(world: Service, limit: int, groups: str) -> None:
    question = PERIOD | {"granularity": "hour", "group_by": groups, "basis": "metered"}
    whole = world.client.get("/v1/costs", params=question).json()
    pages = _paged(world, "/v1/costs", "rows", question | {"limit": limit})
    assert [row for page in pages for row in page["rows"]] == whole["rows"]
    assert all(page["totals"] == whole["totals"] for page in pages)


@pytest.mark.parametrize(
    ("path", "parameters", "named"),
    [
        ("/v1/costs", {"workspcae": "x"}, "workspcae"),
        ("/v1/costs", {"tag:": "x"}, "tag:"),
        ("/v1/costs", {"granularity": "year"}, "granularity"),
        ("/v1/costs", {"granularity": ["day", "hour"]}, "granularity"),
        ("/v1/costs", {"basis": "list"}, "basis"),
        ("/v1/costs", {"group_by": "colour"}, "colour"),
        ("/v1/costs", {"group_by": "tag:a,tag:b,tag:c,tag:d,tag:e,tag:f,tag:g,tag:h,tag:i"}, "group_by"),
        ("/v1/costs", {"currency": "DOLLAR"}, "currency"),
        ("/v1/costs", {"mode": "serverfull"}, "mode"),
        ("/v1/costs", {"from": "yesterday"}, "from"),
        ("/v1/costs", {"from": "2026-11-12", "to": "2026-11-10"}, "from"),
        ("/v1/costs", {"from": "2026-11-10T10:00:00"}, "from"),
        ("/v1/costs", {"from": "1999-12-31"}, "from"),
        ("/v1/costs", {"to": "0001-01-02"}, "to"),
        ("/v1/costs", {"to": "9999-12-31"}, "to"),
        ("/v1/costs", {"from": "2001-01-01"}, "ten years"),
        ("/v1/costs", {"from": "2020-01-01", "granularity": "hour"}, "hours"),
        ("/v1/costs", {"as_of": "0001-01-01"}, "as_of"),
        ("/v1/costs", {"time_zone": "Mars/Olympus"}, "Mars/Olympus"),
        ("/v1/costs", {"time_zone": "../../etc/passwd"}, "time zone"),
        ("/v1/costs", {"limit": "0"}, "limit"),
        ("/v1/costs", {"limit": "10001"}, "limit"),
        ("/v1/costs", {"limit": "१"}, "limit"),
        ("/v1/costs", {"cursor": "words"}, "cursor"),
        ("/v1/costs", {"team": "x" * 1025}, "team"),
        ("/v1/costs", {"team": "a\0b"}, "team"),
        ("/v1/usage", {"granularity": "day"}, "granularity"),
        ("/v1/usage", {"limit": "1001"}, "limit"),
        ("/v1/usage", {"cursor": "words"}, "cursor"),
        ("/v1/usage/east-8", {"team": "search"}, "team"),
        ("/v1/problems", {"team": "search"}, "team"),
        ("/v1/data-age", {"from": "2026-11-10"}, "from"),
    ],
)
def test_a_bad_question_is_refused_by_name(world: Service, path: str, parameters: dict[str, Any], named: str) -> None:
    answer = world.client.get(path, params=parameters)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert named in answer.json()["detail"]


@pytest.mark.parametrize("key", [None, 1, {}, [], ["2026-11-10"], ["2026-11-10", 5], ["x", "USD"], [["2026-11-10"], "USD"], ["2026-11-10", "USD", "x"]])
def test_a_cursor_of_another_question_is_refused(world: Service, key: Any) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")
    answer = world.client.get("/v1/costs", params=PERIOD | {"cursor": cursor})
    assert (answer.status_code, "cursor" in answer.json()["detail"]) == (422, True)


# -- usage ------------------------------------------------------------------------------------------


def test_events_come_newest_first_and_page_by_page(world: Service) -> None:
    pages = _paged(world, "/v1/usage", "items", PERIOD | {"limit": 3})
    items = [item for page in pages for item in page["items"]]
    assert [item["id"] for item in items] == ["west/1 ä", "east-next", "east-20", "east-8"]
    assert items[0] | {"handle": ""} == items[0] | {"handle": "", "counted": True, "reason": None, "workspace": "ws-west", "deployment": "llama-west"}
    assert [item["id"] for item in world.client.get("/v1/usage", params=PERIOD | {"tag:env": "prod", "team": "search", "limit": 1}).json()["items"]] == [
        "east-next"
    ]


def test_a_receipt_explains_the_event_to_the_digit(world: Service) -> None:
    found = world.client.get("/v1/usage/east-8").json()
    assert (found["id"], found["workspace"], found["input_tokens"], found["currency"]) == ("east-8", "ws-east", 1_000_000, "USD")
    assert [(line["meter"], line["quantity"], float(line["unit_price"])) for line in found["lines"] if line["quantity"]] == [("input", 1_000_000, 0.5)]
    assert float(found["expected_cost"]) == 0.5
    # A third of the day's tokens of 1.20.
    assert (float(found["billed_share"]), found["estimate"], found["billed_on"]) == (0.4, True, "2026-11-10")
    assert isinstance(found["expected_cost"], str)


def test_a_receipt_is_found_by_any_id_and_by_its_handle(world: Service) -> None:
    item = world.client.get("/v1/usage", params=PERIOD).json()["items"][0]
    by_id = world.client.get("/v1/usage/west%2F1%20%C3%A4")
    assert (by_id.status_code, by_id.json()) == (200, world.client.get(f"/v1/usage/{item['handle']}").json())


@pytest.mark.parametrize("path", ["nothing", "evt_999999", "evt_99999999999999999999", "a%00b", "", "east-8?workspace=ws-west", "east-8?source=other"])
def test_what_is_not_there_is_404(world: Service, path: str) -> None:
    answer = world.client.get(f"/v1/usage/{path}")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


def test_several_events_of_one_id_are_narrowed(service_on_both: Service) -> None:
    sent = {"id": "call-1", "time": "2026-11-20T09:00:00Z", "deployment": "llama-chat", "input_tokens": 5, "output_tokens": 6}
    for workspace, source in (("ws-east", "default"), ("ws-west", "default"), ("ws-west", "gateway")):
        assert service_on_both.client.post("/v1/usage", json={**sent, "workspace": workspace, "source": source}).json()["accepted"] == 1
    get = service_on_both.client.get
    several = get("/v1/usage/call-1")
    assert (several.status_code, several.json()["error"]) == (409, "conflict")
    assert "3 events" in several.json()["detail"]
    assert get("/v1/usage/call-1?workspace=ws-west").status_code == 409
    assert get("/v1/usage/call-1?workspace=ws-east").json()["workspace"] == "ws-east"
    assert get("/v1/usage/call-1?workspace=ws-west&source=gateway").json()["source"] == "gateway"
    handles = [item["handle"] for item in get("/v1/usage").json()["items"]]
    assert {get(f"/v1/usage/{handle}").status_code for handle in handles} == {200}


# -- nothing breaks ---------------------------------------------------------------------------------

_NAMES = st.sampled_from(
    (
        *["from", "to", "workspace", "deployment", "model", "application", "team", "mode", "granularity", "group_by", "basis", "currency"],
        "as_of",
        "time_zone",
        "limit",
        "cursor",
        "source",
        "tag:env",
        "tag:",
        "tag:\x00",
        "",
    )
)
_BOUNDS = ["2026-11-10", "2026-11-11T00:00:00Z", "2026-11-11T05:30:00 05:30", "0001-01-01", "9999-12-31T23:59:59Z", "2026-02-30", "2200-01-01", "2000-01-01"]
_WORDS = ["ws-east", "llama-chat", "search", "day", "hour", "week", "month", "none", "workspace", "tag:env", "meter", "workspace,meter", "best", "metered"]
_MORE = [
    "billed",
    "USD",
    "KRW",
    "XXX",
    "serverless",
    "Europe/Berlin",
    "America",
    "Australia/Lord_Howe",
    "UTC",
    "1",
    "1000",
    "-1",
    "1e3",
    "%",
    "'",
    '";--',
    "\ud7ff",
]
_VALUES = st.sampled_from(_BOUNDS + _WORDS + _MORE) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace").decode()) | st.integers().map(str)
_CURSORS = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(_BOUNDS), lambda inner: st.lists(inner, max_size=3), max_leaves=4
).map(lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("="))
_PATHS = st.sampled_from(["/v1/costs", "/v1/usage", "/v1/usage/east-8", "/v1/usage/evt_1", "/v1/problems", "/v1/data-age", "/metrics", "/readyz"])


@settings(max_examples=150)
@given(_PATHS, st.lists(st.tuples(_NAMES, _VALUES) | st.tuples(st.just("cursor"), _CURSORS), max_size=4))
def test_no_question_is_a_fault_of_ours(world: Service, path: str, parameters: list[tuple[str, str]]) -> None:
    answer = world.client.get(path, params=httpx.QueryParams(urlencode(parameters)))
    assert answer.status_code in (200, 404, 422), (path, parameters, answer.text)
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]


# -- operations -------------------------------------------------------------------------------------


def test_operations(service_on_both: Service) -> None:
    get = service_on_both.client.get
    assert [(get(path).status_code, get(path).text) for path in ("/livez", "/readyz")] == [(200, "ok\n"), (200, "ready\n")]
    assert get("/version").json() == {"version": "1.2.3", "schema": head_revision()}
    sent = {"id": "a", "time": "2026-11-20T09:00:00Z", "workspace": "w", "deployment": "d", "input_tokens": 5, "output_tokens": 6}
    service_on_both.client.post("/v1/usage", json=[sent, sent, {}])
    metrics = get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {'meterbridge_usage_events_total{outcome="accepted"} 1', 'meterbridge_usage_events_total{outcome="rejected"} 1'} <= set(metrics.text.splitlines())
    assert get("/v1/data-age").json()["metered_until"] == "2026-11-20T09:00:00Z"
    assert {one["kind"] for one in get("/v1/problems").json()["items"]} >= {"unconfirmed_deployment"}


def test_a_database_of_another_version_is_not_ready(service: Service) -> None:
    with service.store.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = 'other'")
    answer = service.client.get("/readyz")
    assert (answer.status_code, "meterbridge migrate" in answer.json()["detail"], answer.headers["retry-after"]) == (503, True, "5")


def test_the_description_names_every_route_and_the_page_needs_no_other_host(world: Service) -> None:
    schema = world.client.get("/openapi.json").json()
    assert {
        "/v1/costs",
        "/v1/usage",
        "/v1/usage/openai",
        "/v1/usage/{event_id}",
        "/v1/problems",
        "/v1/data-age",
        "/livez",
        "/readyz",
        "/version",
        "/metrics",
    } <= set(schema["paths"])
    assert set(schema["paths"]["/v1/usage"]) == {"get", "post"}
    named = {one["name"] for one in schema["paths"]["/v1/costs"]["get"]["parameters"]}
    assert {"from", "to", "workspace", "group_by", "basis", "currency", "as_of", "time_zone", "limit", "cursor"} <= named
    page = world.client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "<script" not in page.text
    assert "//" not in page.text.replace("endpoint//", "")
    for path in schema["paths"]:
        assert path in page.text
