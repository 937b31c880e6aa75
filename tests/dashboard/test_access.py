from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from dashboard.access import COOKIE, Viewer, inside
from dashboard.app import create_dashboard
from models.errors import Unavailable
from tests.dashboard import fakes

FINANCE = Viewer("k_finance", "finance", "read", frozenset({"ws-support"}))
INGEST = Viewer("k_ingest", "gateway", "ingest", None)
ADMIN = Viewer("k_admin", "admin", "admin", None)
EVERYTHING = [
    ("GET", "/_dash-layout"),
    ("GET", "/_dash-dependencies"),
    ("POST", "/_dash-update-component"),
    ("GET", "/_reload-hash"),
    ("GET", "/_favicon.ico"),
    ("GET", "/_dash-component-suites/dash/dcc/dash_core_components.js"),
    ("GET", "/assets/live.js"),
    ("GET", "/download/costs.csv"),
    ("POST", "/"),
    ("PUT", "/_dash-layout"),
]


@pytest.fixture
def ledger() -> fakes.FakeLedger:
    return fakes.FakeLedger()


@pytest.fixture
def access() -> fakes.FakeAccess:
    return fakes.FakeAccess({"finance-secret": FINANCE, "ingest-secret": INGEST, "admin-secret": ADMIN})


@pytest.fixture
def clock() -> list[datetime]:
    return [fakes.NOW]


@pytest.fixture
def client(ledger: fakes.FakeLedger, access: fakes.FakeAccess, clock: list[datetime]) -> Iterator[FlaskClient]:
    app = create_dashboard(open_ledger=fakes.open_ledger(ledger), access=access, now=lambda: clock[0], notice="Open: no key has been created.")
    app.server.config["APPLICATION_ROOT"] = "/dashboard"  # what the mount says; the cookie is for that path only
    with app.server.test_client() as browser:
        yield browser


def sign_in(client: FlaskClient, secret: str = "finance-secret", **more: str) -> TestResponse:
    return client.post("/login", data={"key": secret, **more})


def target(part: str) -> dict[str, str]:
    name, prop = part.split(".")
    return {"id": name, "property": prop}


def ask(client: FlaskClient, output: str, search: str, pathname: str, **headers: str) -> TestResponse:
    """One callback, as the page asks for it."""
    several = output.startswith("..")
    body = {
        "output": output,
        "outputs": [target(part) for part in output.strip(".").split("...")] if several else target(output),
        "inputs": [{"id": "url", "property": "pathname", "value": pathname}, {"id": "url", "property": "search", "value": search}],
        "changedPropIds": ["url.search"],
        "state": [],
    }
    return client.post("/_dash-update-component", json=body, headers=headers)


def page(client: FlaskClient, search: str = "", pathname: str = "/dashboard/", headers: dict[str, str] | None = None) -> TestResponse:
    return ask(client, "page.children", search, pathname, **(headers or {}))


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
def test_nothing_is_answered_without_a_session(client: FlaskClient, ledger: fakes.FakeLedger, method: str, path: str) -> None:
    answer = client.open(path, method=method, json={} if method != "GET" else None)
    assert answer.status_code == 401
    assert answer.content_type == "application/problem+json"
    assert answer.get_json()["detail"] == "sign in first"
    assert ledger.calls == []


@pytest.mark.parametrize("path", ["/", "/deployment?workspace=a", "/data", "/any/where"])
def test_a_page_without_a_session_leads_to_the_login_and_back(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 303
    assert answer.location.startswith("/dashboard/login")
    shown = client.get(answer.location.removeprefix("/dashboard"))
    assert shown.status_code == 200
    back = sign_in(client, next=path.lstrip("/"))
    assert (back.status_code, back.location) == (303, f"/dashboard{path}")


def test_every_route_but_the_login_is_behind_the_guard(client: FlaskClient) -> None:
    rules = {str(rule.rule) for rule in client.application.url_map.iter_rules()}
    assert rules == {
        "/",
        "/<path:path>",
        "/_dash-component-suites/<string:package_name>/<path:fingerprinted_path>",
        "/_dash-dependencies",
        "/_dash-layout",
        "/_dash-update-component",
        "/_favicon.ico",
        "/_reload-hash",
        "/assets/<path:filename>",
        "/download/costs.csv",
        "/download/<kind>",
        "/act/<what>",
        "/login",
        "/logout",
    }


def test_the_cookie_is_not_for_scripts_or_other_sites_and_holds_no_secret(client: FlaskClient) -> None:
    answer = sign_in(client)
    assert answer.status_code == 303
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Path=/dashboard" in cookie
    assert "Max-Age=43200" in cookie
    assert "Secure" not in cookie
    assert "finance-secret" not in cookie
    assert "Secure" in client.post("/login", data={"key": "finance-secret"}, base_url="https://meter.example").headers["Set-Cookie"]


def test_behind_a_proxy_that_speaks_https_the_cookie_is_for_https_only(ledger: fakes.FakeLedger, access: fakes.FakeAccess) -> None:
    app = create_dashboard(open_ledger=fakes.open_ledger(ledger), access=access, now=lambda: fakes.NOW, is_behind_tls=True)
    with app.server.test_client() as browser:
        assert "Secure" in sign_in(browser).headers["Set-Cookie"]


@pytest.mark.parametrize(
    ("secret", "status", "said"),
    [
        ("", 401, "This key does not work"),
        ("wrong", 401, "This key does not work"),
        ("x" * 5000, 401, "This key does not work"),
        ("ingest-secret", 403, "This is an ingest key"),
    ],
)
def test_a_key_that_may_not_look_gets_one_clear_line_and_no_cookie(client: FlaskClient, secret: str, status: int, said: str) -> None:
    answer = sign_in(client, secret)
    assert answer.status_code == status
    assert answer.text.count(said) == 1
    assert "Set-Cookie" not in answer.headers
    assert secret == "" or f'"{secret}"' not in answer.text


def test_a_session_ends_after_twelve_hours(client: FlaskClient, clock: list[datetime]) -> None:
    sign_in(client)
    clock[0] = fakes.NOW + timedelta(hours=11, minutes=59)
    assert client.get("/_dash-layout").status_code == 200
    clock[0] = fakes.NOW + timedelta(hours=12)
    assert client.get("/_dash-layout").status_code == 401


def test_a_revoked_key_is_out_at_once(client: FlaskClient, access: fakes.FakeAccess) -> None:
    sign_in(client)
    assert page(client).status_code == 200
    del access.viewers["finance-secret"]
    assert page(client).status_code == 401
    assert client.get("/").status_code == 303


def test_a_cookie_that_was_tampered_with_or_signed_elsewhere_is_nobody(client: FlaskClient, access: fakes.FakeAccess) -> None:
    sign_in(client)
    value = client.get_cookie(COOKIE, path="/dashboard")
    assert value is not None
    client.set_cookie(COOKIE, value.value[:-2] + "zz", path="/dashboard")
    assert client.get("/_dash-layout").status_code == 401
    elsewhere = create_dashboard(
        open_ledger=fakes.open_ledger(fakes.FakeLedger()), access=replace(access, cookie_secret=b"another"), now=lambda: fakes.NOW, notice=None
    )
    stranger = elsewhere.server.test_client()
    stranger.set_cookie(COOKIE, value.value)
    assert stranger.get("/_dash-layout").status_code == 401


def test_logging_out_takes_the_cookie_back(client: FlaskClient) -> None:
    sign_in(client)
    answer = client.post("/logout")
    assert answer.location == "/dashboard/login"
    assert f"{COOKIE}=;" in answer.headers["Set-Cookie"]
    assert "Path=/dashboard" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("path", ["/login", "/logout", "/_dash-update-component"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
    ],
)
def test_a_post_from_another_site_is_refused(client: FlaskClient, ledger: fakes.FakeLedger, path: str, headers: dict[str, str]) -> None:
    sign_in(client)
    answer = client.post(path, data={"key": "finance-secret"}, headers=headers)
    assert answer.status_code == 403
    assert ledger.calls == []


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}, {}])
def test_a_post_from_our_own_pages_is_served(client: FlaskClient, headers: dict[str, str]) -> None:
    sign_in(client)
    assert page(client, headers=headers).status_code == 200


def test_a_key_of_one_workspace_sees_that_one_everywhere(client: FlaskClient) -> None:
    sign_in(client)
    body = page(client).text
    assert "ws-support" in body
    assert "ws-contracts-prod" not in body
    assert "ws-contracts-prod" not in page(client, "?workspace=ws-contracts-prod&group_by=deployment").text.replace("workspace=ws-contracts-prod", "")
    filters = ask(client, "..nav.children...filters.children..", "", "/dashboard/").text
    assert "ws-support" in filters
    assert "ws-contracts-prod" not in filters
    file = client.get("/download/costs.csv?granularity=none&group_by=workspace")
    assert "ws-support" in file.text
    assert "ws-contracts-prod" not in file.text


def test_a_file_is_the_ledgers_answer_with_its_control_total(client: FlaskClient, ledger: fakes.FakeLedger) -> None:
    batch, other = [fact for fact in fakes.world(days=1) if fact.workspace == "ws-research"]
    ledger.facts = [replace(batch, deployment="=batch", metered=Decimal("44.0012345")), replace(other, deployment="scout", metered=Decimal("19.5"))]
    sign_in(client, "admin-secret")
    file = client.get("/download/costs.csv?granularity=none&group_by=deployment&workspace=ws-research&from=2026-11-19&basis=metered")
    assert file.status_code == 200
    assert file.content_type == "text/csv; charset=utf-8"
    rows = [line.split(",") for line in file.text.splitlines()]
    assert rows[0][:5] == ["period_start", "period_end", "deployment", "currency", "cost"]
    assert [row[:5] for row in rows[1:]] == [
        ["2026-11-19T00:00:00Z", "2026-11-21T00:00:00Z", "'=batch", "USD", "44.0012345"],
        ["2026-11-19T00:00:00Z", "2026-11-21T00:00:00Z", "scout", "USD", "19.5"],
    ]
    assert file.headers["X-Control-Total"] == "63.5012345 USD"


def test_a_file_that_cannot_be_had_says_why(client: FlaskClient, ledger: fakes.FakeLedger) -> None:
    sign_in(client)
    assert client.get("/download/costs.csv?mode=turbo").status_code == 422
    ledger.broken["costs"] = Unavailable("the database does not answer: disk full")
    answer = client.get("/download/costs.csv")
    assert (answer.status_code, answer.text) == (503, "the database does not answer: disk full\n")


def test_without_any_key_this_machine_may_look_and_others_may_not(ledger: fakes.FakeLedger) -> None:
    app = create_dashboard(open_ledger=fakes.open_ledger(ledger), access=fakes.FakeAccess(keyless=True), now=lambda: fakes.NOW, notice="Open: no key yet.")
    browser = app.server.test_client()
    assert "Open: no key yet." in browser.get("/_dash-layout", base_url="http://127.0.0.1:8000").text
    assert page(browser).status_code == 200
    answer = browser.get("/", base_url="http://evil.example")
    assert answer.status_code == 403
    assert "only this machine" in answer.get_json()["detail"]


def test_every_answer_carries_the_security_headers(client: FlaskClient) -> None:
    sign_in(client)
    for path in ("/", "/login", "/_dash-layout", "/download/costs.csv", "/assets/style.css", "/nowhere"):
        with client.get(path) as answer:
            headers = answer.headers
        policy = headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
        assert "script-src 'self' 'sha256-" in policy
        assert "http:" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
    assert client.get("/_dash-layout").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "back",
    ["https://evil.example", "//evil.example", "\\\\evil.example", "/\\evil.example", "javascript:alert(1)", "login", "../v1/keys", "a\r\nSet-Cookie: x=1"],
)
def test_signing_in_never_leads_elsewhere(back: str) -> None:
    assert not inside(back).startswith(("http", "/", "\\", "javascript", "login", ".."))
    assert "evil.example" not in inside(back) or inside(back) == "evil.example"
    assert "\n" not in inside(back)


def test_the_way_back_keeps_the_address() -> None:
    assert inside("deployment?workspace=a%20b&from=2026-11-01") == "deployment?workspace=a%20b&from=2026-11-01"


def test_the_login_page_escapes_what_it_repeats(client: FlaskClient) -> None:
    shown = client.get('/login?next="><script>alert(1)</script>').text
    assert "<script>alert" not in shown


@pytest.mark.parametrize("broken", ["open", "data_age", "costs", "forecast", "usage_list"])
@pytest.mark.parametrize("pathname", ["/dashboard/", "/dashboard/data", "/dashboard/deployment", "/dashboard/start"])
def test_a_part_that_fails_says_so_and_no_page_is_lost(client: FlaskClient, ledger: fakes.FakeLedger, broken: str, pathname: str) -> None:
    sign_in(client)
    ledger.broken[broken] = Unavailable("the database does not answer: disk full")
    answer = page(client, "?workspace=ws-support&deployment=maverick-17b" if pathname.endswith("deployment") else "", pathname)
    assert answer.status_code == 200
    called = broken in ledger.calls
    assert ("disk full" in answer.text) == called


def test_what_nobody_foresaw_is_no_traceback(client: FlaskClient, ledger: fakes.FakeLedger, caplog: pytest.LogCaptureFixture) -> None:
    sign_in(client)
    ledger.broken["costs"] = RuntimeError("secret detail")
    answer = page(client)
    assert answer.status_code == 200
    assert "Spend over time cannot be shown" in answer.text
    assert "secret detail" not in answer.text
    assert "secret detail" in caplog.text


def test_an_overview_asks_at_most_three_cost_questions_of_one_moment(client: FlaskClient, ledger: fakes.FakeLedger) -> None:
    sign_in(client)
    page(client, "?from=2026-11-01")
    assert ledger.calls.count("costs") == 3
    assert ledger.calls.count("open") == 1


@pytest.mark.parametrize(("search", "said"), [("?mode=turbo", "There is no mode"), ("?from=2026-11-02&to=2026-11-01", "before it starts")])
def test_an_address_that_cannot_be_meant_says_so(client: FlaskClient, search: str, said: str) -> None:
    sign_in(client)
    assert said in page(client, search).text
    assert "There is no page" in page(client, "", "/dashboard/nowhere").text


def test_the_factory_can_be_called_again(client: FlaskClient) -> None:
    again = create_dashboard(open_ledger=fakes.open_ledger(fakes.FakeLedger()), access=fakes.FakeAccess(keyless=True), now=lambda: fakes.NOW, notice=None)
    assert page(again.server.test_client()).status_code == 200
    assert page(client).status_code == 401
