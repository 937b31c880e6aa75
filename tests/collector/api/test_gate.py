"""Who is let in: the open mode of one machine, and keys with their scopes and workspaces."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from collector import auth
from collector.api.gate import refuse_foreign
from models.errors import Forbidden
from models.store import Store
from tests.collector.api.serving import NOW, Service, bearer, serving

EVENT = {"id": "call-1", "time": "2026-11-20T09:59:00Z", "workspace": "ws-east", "deployment": "llama-chat", "input_tokens": 5, "output_tokens": 6}


def link(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1])), timeout=20)


# -- the open mode ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:8000"},
        {"host": "LOCALHOST:8000"},
        {"host": "[::1]"},
        {"host": "[::1]:8000"},
        {"host": "localhost:8000", "origin": "http://localhost:8000"},
        {"host": "localhost:8000", "sec-fetch-site": "same-origin"},
        {"host": "localhost:8000", "sec-fetch-site": "none"},
    ],
)
def test_this_machine_is_answered_without_a_key(headers: dict[str, str]) -> None:
    refuse_foreign(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": ""},
        {"host": "attacker.example"},
        {"host": "127.0.0.1.attacker.example:8000"},
        {"host": "localhost.attacker.example"},
        {"host": "localhost:8000@attacker.example"},
        {"host": "0.0.0.0:8000"},
        {"host": "[::ffff:127.0.0.1]"},
        {"host": "::1"},
        {"host": "localhost", "forwarded": "for=192.0.2.1"},
        {"host": "localhost", "x-forwarded-for": "127.0.0.1"},
        {"host": "localhost", "x-forwarded-host": "localhost"},
        {"host": "localhost", "x-forwarded-proto": "https"},
        {"host": "localhost", "x-forwarded-anything": ""},
        {"host": "localhost", "x-real-ip": "192.0.2.1"},
        {"host": "localhost", "via": "1.1 proxy"},
        {"host": "localhost", "sec-fetch-site": "cross-site"},
        {"host": "localhost", "sec-fetch-site": "same-site"},
        {"host": "localhost:8000", "origin": "http://attacker.example"},
        {"host": "localhost:8000", "origin": "http://localhost:9000"},
        {"host": "localhost:8000", "origin": "null"},
        {"host": "localhost:8000", "origin": "http://["},
    ],
)
def test_whatever_comes_from_elsewhere_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        refuse_foreign(headers)


@pytest.mark.parametrize("path", ["/v1/costs", "/v1/usage", "/metrics", "/docs", "/openapi.json", "/", "/dashboard/", "/v1/control", "/nothing"])
@pytest.mark.parametrize("headers", [{"host": "attacker.example"}, {"x-forwarded-for": "1.2.3.4"}, {"sec-fetch-site": "cross-site"}, {"origin": "http://["}])
def test_the_open_mode_refuses_foreigners_on_every_route(service: Service, path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        answer = service.client.request(method, path, headers=headers)
        assert (answer.status_code, answer.headers["content-type"], answer.json()["error"]) == (403, "application/problem+json", "forbidden")


def test_probes_are_answered_to_everybody(service: Service) -> None:
    service.key()
    for path in ("/livez", "/readyz", "/version"):
        assert service.client.get(path, headers={"host": "attacker.example"}).status_code == 200


def test_a_service_that_others_can_reach_answers_nobody_without_a_key(sqlite_store: Store) -> None:
    with serving(sqlite_store, is_loopback=False) as service:
        for path in ("/v1/costs", "/docs", "/metrics", "/dashboard/"):
            answer = service.client.get(path)
            assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
        assert service.client.post("/v1/usage", json=EVENT).status_code == 401
        assert service.client.get("/v1/costs", headers=bearer(service.key())).status_code == 200


# -- every route, every key -------------------------------------------------------------------------

_PUBLIC = {"/livez", "/readyz", "/version"}
# A signed link is its own key.
_SIGNED = "/v1/reports/shared/"
_INGEST = ("/v1/usage", "/otlp/", "/api/v1/events")
# Asked by gateways with the ingest key they report with; the route looks at the rest.
_ANY_SCOPE = {"/v1/admission", "/v1/admission/denied", "/v1/alerts/litellm"}


def _routes(service: Service) -> list[tuple[str, str]]:
    paths: dict[str, dict[str, Any]] = service.client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), re.sub(r"\{.*?\}", "some-id", path))
        for path, methods in paths.items()
        for method in methods
        if path not in _PUBLIC and not path.startswith(_SIGNED)
    ]


def test_a_link_that_nobody_signed_opens_nothing(service: Service) -> None:
    service.key("admin")
    for token in ("some-id", "x.y", "AAAA.BBBB.CCCC"):
        assert service.client.get(f"/v1/reports/shared/{token}").status_code == 404


def test_every_route_asks_for_the_right_key(service: Service) -> None:
    routes = _routes(service)
    assert {("POST", "/v1/usage"), ("POST", "/v1/usage/openai"), ("GET", "/v1/costs"), ("GET", "/v1/usage/some-id"), ("GET", "/metrics")} <= set(routes)
    keys: dict[str, str] = {scope: service.key(scope) for scope in auth.SCOPES}
    revoked = service.key("admin")
    with service.store.write() as session:
        session.execute(sa.text("UPDATE api_key SET revoked_at = created_at WHERE secret_hash = :hash"), {"hash": auth._hash(revoked)})
    service.keys.refresh()
    for method, path in routes:
        needed = "read" if method == "GET" else "ingest" if path.startswith(_INGEST) and path != "/v1/usage/void" else "admin"
        if path in _ANY_SCOPE:
            continue  # below
        for who, headers, expected in [
            ("nobody", {}, 401),
            ("unknown", bearer("mb_00000000_" + "x" * 43), 401),
            ("not a bearer", {"authorization": f"Basic {keys['admin']}"}, 401),
            ("empty", {"authorization": "Bearer"}, 401),
            ("strange", {"authorization": "Bearer schl\xfcssel".encode("latin-1")}, 401),
            ("revoked", bearer(revoked), 401),
            ("wrong scope", bearer(keys["read" if needed == "ingest" else "ingest"]), 403),
            ("wrong scope", bearer(keys["read" if needed == "admin" else "ingest" if needed == "read" else "read"]), 403),
        ]:
            answer = service.client.request(method, path, headers=headers)  # type: ignore[arg-type]
            assert (who, path, answer.status_code) == (who, path, expected)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert ("www-authenticate" in answer.headers) == (expected == 401)
        for scope in (needed, "admin"):
            assert service.client.request(method, path, headers=bearer(keys[scope])).status_code not in (401, 403), (method, path, scope)


def test_what_gateways_ask_takes_their_ingest_key_and_none_that_is_unknown(service: Service) -> None:
    asked = {"workspace": "ws-east", "deployment": "llama-chat", "tokens": 1}
    for scope in ("ingest", "read", "admin"):
        assert service.client.post("/v1/admission", json=asked, headers=bearer(service.key(scope))).status_code == 200
        assert service.client.get("/v1/admission/denied", headers=bearer(service.key(scope))).status_code == 200
    other = service.key("ingest", "ws-west")
    assert service.client.post("/v1/admission", json=asked, headers=bearer(other)).status_code == 403
    for path in ("/v1/admission", "/v1/alerts/litellm"):
        assert service.client.post(path, json=asked).status_code == 401
    assert service.client.post("/v1/alerts/litellm", json={}, headers=bearer(service.key("read"))).status_code == 403


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/deployments/x"), ("POST", "/v1/budgets"), ("DELETE", "/v1/usage/x"), ("POST", "/v1/usage/void")])
def test_what_changes_anything_else_needs_admin(service: Service, method: str, path: str) -> None:
    for scope in ("read", "ingest"):
        answer = service.client.request(method, path, headers=bearer(service.key(scope)))
        assert (answer.status_code, f"the scope {scope}" in answer.json()["detail"]) == (403, True)


def test_a_scope_is_judged_before_the_body_is_read(service: Service) -> None:
    secret = service.key("read")
    with link(service) as found:
        found.sendall(f"POST /v1/usage HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {secret}\r\nContent-Length: 999999\r\n\r\n".encode())
        assert found.recv(100).startswith(b"HTTP/1.1 403 ")


def test_docs_and_the_login_are_open_to_read_once_there_are_keys(service: Service) -> None:
    service.key()
    assert [service.client.get(path).status_code for path in ("/docs", "/openapi.json")] == [200, 200]
    assert service.client.get("/").headers["location"] == "/docs"  # this one serves no dashboard
    assert service.client.get("/metrics").status_code == 401


def test_a_read_key_sees_its_workspaces_and_no_other(service: Service) -> None:
    service.client.post("/v1/usage", json=[EVENT, {**EVENT, "workspace": "ws-west", "id": "call-2"}])
    mine = bearer(service.key("read", "ws-east"))
    assert [one["workspace"] for one in service.client.get("/v1/usage", headers=mine).json()["items"]] == ["ws-east"]
    assert service.client.get("/v1/usage", params={"workspace": "ws-west"}, headers=mine).json()["items"] == []
    rows = service.client.get("/v1/costs", params={"group_by": "workspace", "granularity": "none"}, headers=mine).json()
    assert {row["workspace"] for row in rows["rows"]} == {"ws-east"}
    assert sum(total["requests"] for total in rows["totals"]) == 1
    assert service.client.get("/v1/usage/call-1", headers=mine).status_code == 200
    for path in ("/v1/usage/call-2", "/v1/usage/evt_2", "/v1/usage/call-2?workspace=ws-west"):
        answer = service.client.get(path, headers=mine)
        assert (answer.status_code, "ws-west" in answer.json()["detail"]) == (404, False)
    everything = bearer(service.key("read"))
    assert len(service.client.get("/v1/usage", headers=everything).json()["items"]) == 2


# -- when keys come and go --------------------------------------------------------------------------


def test_a_new_and_a_revoked_key_are_effective_within_five_seconds(service: Service) -> None:
    assert service.client.get("/v1/costs").status_code == 200
    with service.store.write() as session:
        info, secret = auth.create_key(session, name="me", scope="admin", workspaces=(), now=NOW)
    service.later(seconds=5)
    assert service.client.get("/v1/costs").status_code == 401
    assert service.client.get("/v1/costs", headers=bearer(secret)).status_code == 200
    with service.store.write() as session:
        auth.revoke_key(session, info.id, now=NOW)
    service.later(seconds=5)
    assert service.client.get("/v1/costs", headers=bearer(secret)).status_code == 401
    # A revoked key was created: the service never opens again.
    assert service.client.get("/v1/costs").status_code == 401


def test_an_admin_key_file_opens_a_container(sqlite_store: Store, tmp_path: Path) -> None:
    auth.ensure_admin_key(sqlite_store, tmp_path / "key", now=NOW)
    with serving(sqlite_store, is_loopback=False) as service:
        assert service.client.get("/v1/costs", headers=bearer((tmp_path / "key").read_text().strip())).status_code == 200


def test_without_a_dashboard_the_root_leads_to_the_routes(service: Service) -> None:
    answer = service.client.get("/", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (200, "/docs")


def test_head_answers_what_get_would_without_its_body(service: Service) -> None:
    asked, told = (
        service.client.get("/v1/costs?granularity=none&to=2026-11-20T00:00:00Z"),
        service.client.head("/v1/costs?granularity=none&to=2026-11-20T00:00:00Z"),
    )
    assert (told.status_code, told.content) == (200, b"")
    assert (told.headers["content-type"], told.headers["content-length"]) == (asked.headers["content-type"], str(len(asked.content)))
    assert service.client.head("/v1/no-such-route").status_code == 404
