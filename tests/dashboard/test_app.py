from types import ModuleType
from typing import Any

import pytest
from flask.testing import FlaskClient

from dashboard import figures
from dashboard.app import PAGES, PART, create_dashboard
from tests.dashboard import fakes

SHOWN: dict[str, Any] = {
    "filter-workspace": [],
    "filter-deployment": [],
    "filter-model": [],
    "filter-application": [],
    "filter-team": [],
    "filter-mode": [],
    "filter-basis": "best",
    "filter-granularity": "day",
    "filter-dates.start_date": "2026-10-22",
    "filter-dates.end_date": "2026-11-20",
    "filter-tag-value": None,
}


@pytest.fixture
def client() -> FlaskClient:
    app = create_dashboard(open_ledger=fakes.open_ledger(fakes.FakeLedger()), access=fakes.FakeAccess(keyless=True), now=lambda: fakes.NOW, notice=None)
    browser: FlaskClient = app.server.test_client()
    return browser


def navigate(client: FlaskClient, search: str, *, key: str | None = None, **changed: Any) -> str | None:
    """The address that the controls lead to from ``search``; None where they stay."""
    values = {**SHOWN, **{name.replace("__", ".").replace("_", "-", 2 if name.startswith("filter_tag") else 1): value for name, value in changed.items()}}
    inputs = [{"id": name.split(".")[0], "property": name.partition(".")[2] or "value", "value": value} for name, value in values.items()]
    answer = client.post(
        "/_dash-update-component",
        json={
            "output": "url.search",
            "outputs": {"id": "url", "property": "search"},
            "inputs": inputs,
            "state": [{"id": "filter-tag-key", "property": "value", "value": key}, {"id": "url", "property": "search", "value": search}],
            "changedPropIds": ["filter-workspace.value"],
        },
    )
    assert answer.status_code in {200, 204}
    response: dict[str, dict[str, str]] = answer.get_json()["response"] if answer.status_code == 200 else {}
    return response["url"]["search"] if "url" in response else None


def _left_alone(drawn: Any) -> list[str]:
    """The words of a page, as the browser gets it, that no refresh would replace."""
    if isinstance(drawn, str | int | float):
        return [str(drawn)]
    if isinstance(drawn, list):
        return [word for piece in drawn for word in _left_alone(piece)]
    if not isinstance(drawn, dict):
        return []
    props = drawn["props"]
    kind = props["id"]["type"] if isinstance(props.get("id"), dict) else ""
    return [] if kind in {PART, figures.CHART} else _left_alone(props.get("children"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.NAME)
def test_a_refresh_reaches_every_word_of_every_page(client: FlaskClient, page: ModuleType) -> None:
    place = f"/dashboard/{page.PATH}"
    values = [{"id": "url", "property": name, "value": value} for name, value in (("pathname", place), ("search", "?workspace=ws-assist"))]
    answer = client.post(
        "/_dash-update-component",
        json={"output": "page.children", "outputs": {"id": "page", "property": "children"}, "inputs": values, "changedPropIds": ["url.pathname"]},
    )
    drawn = answer.get_json()["response"]["page"]["children"]
    assert drawn
    assert _left_alone(drawn) == []


def test_controls_that_show_the_address_change_nothing(client: FlaskClient) -> None:
    assert navigate(client, "") is None
    assert navigate(client, "?mode=unknown&mode=serverless", filter_mode=["serverless", "unknown"]) is None


def test_each_control_writes_its_own_parameter(client: FlaskClient) -> None:
    assert navigate(client, "", filter_workspace=["a b", "c"]) == "?workspace=a%20b&workspace=c"
    assert navigate(client, "?group_by=mode", filter_team=["legal"]) == "?team=legal&group_by=mode"
    assert navigate(client, "", filter_mode=["managed_compute"]) == "?mode=managed_compute"
    assert navigate(client, "", filter_basis="billed") == "?basis=billed"
    assert navigate(client, "", filter_granularity="week") == "?granularity=week"
    assert navigate(client, "?tag:env=prod", key="team", filter_tag_value="x") == "?tag:env=prod&tag:team=x"


def test_a_cleared_control_takes_its_parameter_back(client: FlaskClient) -> None:
    assert navigate(client, "?workspace=a&currency=USD") == "?currency=USD"


def test_picked_days_are_both_included(client: FlaskClient) -> None:
    picked = {"filter_dates__start_date": "2026-11-02", "filter_dates__end_date": "2026-11-04"}
    assert navigate(client, "", **picked) == "?from=2026-11-02&to=2026-11-05"
    assert navigate(client, "?from=2026-11-02&to=2026-11-05", **picked) is None


def test_an_instant_in_the_address_survives_a_filter(client: FlaskClient) -> None:
    shown = {"filter_dates__start_date": "2026-11-02", "filter_dates__end_date": "2026-11-04"}
    search = "?from=2026-11-02T06:00:00Z&to=2026-11-04T18:00:00Z"
    assert navigate(client, search, filter_workspace=["a"], **shown) == f"{search}&workspace=a"


@pytest.mark.parametrize("nonsense", [{"filter_workspace": "text"}, {"filter_mode": [3]}, {"filter_basis": {"a": 1}}, {"filter_dates__start_date": "soon"}])
def test_what_no_control_sends_changes_nothing(client: FlaskClient, nonsense: dict[str, Any]) -> None:
    assert navigate(client, "", **nonsense) is None
