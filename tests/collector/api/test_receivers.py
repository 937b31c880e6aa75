"""Receivers over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook

from collector import notices
from collector.webhooks.dispatch import Dispatcher
from collector.webhooks.reach import Policy
from collector.webhooks.sending import Sender
from collector.webhooks.setup import Telling
from models.store import Store
from tests.collector.api.serving import NOW, Service, bearer, serving
from tests.collector.webhooks.listening import listening, says

HOOK = {"name": "Ops", "url": "https://hooks.example.com/a", "format": "standard"}


@pytest.fixture
def service(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    def telling() -> Telling:
        return Telling(
            Policy.parse("127.0.0.1/32", ""), resolver=lambda host, _port: {"hooks.example.com": ["93.184.215.14"], "inner.example": ["10.0.0.1"]}[host]
        )

    monkeypatch.setattr("collector.app.Telling", telling)
    with serving(sqlite_store) as running:
        yield running


def made(service: Service, **changes: Any) -> dict[str, Any]:
    answer = service.client.post("/v1/webhooks", json=HOOK | changes)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def drain(service: Service) -> None:
    sender = Sender(Policy.parse("127.0.0.1/32", ""), timeout_seconds=5)
    Dispatcher(service.store, sender, now=lambda: service.at).drain()
    sender.close()


def test_the_secret_is_in_the_creating_answer_only(service: Service) -> None:
    first = made(service, default=True, workspaces=["ws-b", "ws-a"])
    assert first["secret"].startswith("whsec_")
    assert (first["default"], first["workspaces"], first["enabled"]) == (True, ["ws-a", "ws-b"], True)
    pager = made(service, format="pagerduty", routing_key="R" * 32)
    assert (pager["routing_key"], pager["secret"]) == ("R" * 32, None)
    for path in ("/v1/webhooks", f"/v1/webhooks/{first['id']}", f"/v1/webhooks/{pager['id']}", "/v1/audit-trail"):
        said = service.client.get(path).text
        assert first["secret"] not in said
        assert "R" * 32 not in said
    assert [one["id"] for one in service.client.get("/v1/webhooks").json()["items"]] == sorted([first["id"], pager["id"]])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "https://inner.example/"}, "10.0.0.1"),
        ({"url": "http://hooks.example.com/"}, "use https"),
        ({"url": "https://169.254.169.254/"}, "not a public address"),
        ({"url": "https://2130706433/"}, "four decimal numbers"),
        ({"url": "https://a:b@hooks.example.com/"}, "user name"),
        ({"format": "pagerduty"}, "routing_key"),
        ({"format": "email", "url": "mailto:ops@example.com"}, "METERBRIDGE_SMTP_URL"),
        ({"format": "carrier_pigeon"}, "format"),
        ({"name": "a\nb"}, "name"),
        ({"more": 1}, "more"),
        ({"secret": "hunter2"}, "whsec_"),
        ({"format": "slack", "secret": "whsec_" + "QUFB" * 8}, "secret"),
        ({"severities": ["loud"]}, "severities"),
        ({"matchers": [{"name": "colour", "value": "red"}]}, "no alert has a label 'colour'"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_reason(service: Service, changes: dict[str, Any], reason: str) -> None:
    answer = service.client.post("/v1/webhooks", json=HOOK | changes)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert "hunter2" not in answer.text
    assert service.client.get("/v1/webhooks").json()["items"] == []


def test_a_test_is_delivered_and_listed_with_its_attempts_and_can_be_replayed(service: Service) -> None:
    with listening(says(500)) as heard:
        hook = made(service, url=heard.url)
        sent = service.client.post(f"/v1/webhooks/{hook['id']}/test")
        assert (sent.status_code, sent.json()["type"], sent.json()["status"]) == (202, "webhook.test", "pending")
        drain(service)
        [item] = service.client.get(f"/v1/webhooks/{hook['id']}/deliveries").json()["items"]
        assert (item["status"], item["attempts"], item["last_status"], item["attempt_list"][0]["status"]) == ("pending", 1, 500, 500)
        heard.answer = says(200)
        assert service.client.post(f"/v1/webhooks/{hook['id']}/deliveries/{item['id']}/replay").status_code == 202
        drain(service)
    [item] = service.client.get(f"/v1/webhooks/{hook['id']}/deliveries").json()["items"]
    assert (item["status"], item["attempts"], item["last_status"], item["next_attempt_at"]) == ("delivered", 2, 200, None)
    assert heard.heard[0].headers["webhook-id"] == heard.heard[1].headers["webhook-id"] == item["webhook_id"]
    assert heard.heard[0].body == heard.heard[1].body
    assert 'meterbridge_webhook_attempts_total{outcome="delivered"} 1' in service.client.get("/metrics").text


def test_a_rotated_secret_is_new_and_the_old_one_signs_for_a_day(service: Service) -> None:
    with listening(says(200)) as heard:
        hook = made(service, url=heard.url)
        rotated = service.client.post(f"/v1/webhooks/{hook['id']}/rotate").json()
        assert rotated["secret"] != hook["secret"]
        for hours in (0, 25):
            service.later(hours=hours)
            service.client.post(f"/v1/webhooks/{hook['id']}/test")
            drain(service)
    assert [len(one.headers["webhook-signature"].split(" ")) for one in heard.heard] == [2, 1]


def test_a_receiver_that_was_disabled_is_enabled_by_hand(service: Service) -> None:
    with listening(says(410)) as heard:
        hook = made(service, url=heard.url)
        service.client.post(f"/v1/webhooks/{hook['id']}/test")
        drain(service)
        shown = service.client.get(f"/v1/webhooks/{hook['id']}").json()
        assert (shown["enabled"], shown["disabled_reason"]) == (False, "it answered 410 Gone")
        assert service.client.post(f"/v1/webhooks/{hook['id']}/test").status_code == 409
        changed = service.client.put(f"/v1/webhooks/{hook['id']}", json=HOOK | {"url": heard.url, "name": "New"})
        assert (changed.status_code, changed.json()["enabled"], changed.json()["name"]) == (200, True, "New")
        assert service.client.post(f"/v1/webhooks/{hook['id']}/test").status_code == 202


def test_a_deleted_receiver_is_told_nothing(service: Service) -> None:
    hook = made(service, default=True)
    with service.store.write() as session:
        notices.post(session, alert={"id": "a"}, type="alert.firing", receivers=None, now=NOW)
    assert service.client.delete(f"/v1/webhooks/{hook['id']}").status_code == 204
    drain(service)
    assert service.client.get(f"/v1/webhooks/{hook['id']}").status_code == 404
    assert service.client.delete(f"/v1/webhooks/{hook['id']}").status_code == 404


def test_deliveries_are_paged_newest_first(service: Service) -> None:
    hook = made(service)
    for _ in range(3):
        service.client.post(f"/v1/webhooks/{hook['id']}/test")
    first = service.client.get(f"/v1/webhooks/{hook['id']}/deliveries", params={"limit": 2}).json()
    rest = service.client.get(f"/v1/webhooks/{hook['id']}/deliveries", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert (len(first["items"]), len(rest["items"]), rest["next_cursor"]) == (2, 1, None)
    assert service.client.get(f"/v1/webhooks/{hook['id']}/deliveries", params={"cursor": "x"}).status_code == 422


def test_a_key_of_a_workspace_sees_receivers_of_that_workspace_only(service: Service) -> None:
    east, west, everybody = made(service, workspaces=["ws-east"]), made(service, workspaces=["ws-west"]), made(service)
    admin, key = service.key("admin"), service.key("read", "ws-east")
    assert [one["id"] for one in service.client.get("/v1/webhooks", headers=bearer(key)).json()["items"]] == [east["id"]]
    for hidden in (west, everybody):
        assert service.client.get(f"/v1/webhooks/{hidden['id']}/deliveries", headers=bearer(key)).status_code == 404
    assert service.client.post("/v1/webhooks", json=HOOK, headers=bearer(key)).status_code == 403
    assert service.client.post("/v1/webhooks", json=HOOK, headers=bearer(admin)).status_code == 201


def test_a_receiver_says_what_it_hears_and_a_secret_of_its_own_takes_over_from_the_one_before(service: Service) -> None:
    mine = ["whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)]
    hears = {"severities": ["warning", "critical"], "matchers": [{"name": "deployment", "value": "chat"}]}
    with listening(says(200)) as heard:
        hook = made(service, url=heard.url, secret=mine[0], **hears)
        assert (hook["secret"], hook["severities"], hook["matchers"]) == (mine[0], ["critical", "warning"], hears["matchers"])
        changed = service.client.put(f"/v1/webhooks/{hook['id']}", json=HOOK | {"url": heard.url, "secret": mine[1]}).raise_for_status()
        assert (changed.json()["severities"], changed.json()["matchers"]) == ([], [])
        assert not any(secret in changed.text for secret in mine)
        service.client.post(f"/v1/webhooks/{hook['id']}/test").raise_for_status()
        drain(service)
        (one,) = heard.heard
    for secret in mine:
        # Another program's signature of the same bytes.
        signed = Webhook(secret).sign(msg_id=one.headers["webhook-id"], timestamp=NOW, data=one.body.decode())
        assert signed in one.headers["webhook-signature"].split(" ")


def test_the_path_of_a_url_is_for_admins_and_never_in_the_trail(service: Service) -> None:
    hook = made(service, format="slack", url="https://hooks.example.com/services/T1/hidden")
    service.client.put(f"/v1/webhooks/{hook['id']}", json=HOOK | {"format": "slack", "url": "https://hooks.example.com/services/T2/hidden"}).raise_for_status()
    trail = service.client.get("/v1/audit-trail", params={"kind": "receiver"}).json()["items"]
    first, second = trail[1]["after"]["url"], trail[0]["after"]["url"]
    assert first.startswith("https://hooks.example.com/… (")
    assert first != second
    admin, reader = service.key("admin"), service.key("read")
    assert service.client.get(f"/v1/webhooks/{hook['id']}", headers=bearer(admin)).json()["url"].endswith("/T2/hidden")
    assert service.client.get(f"/v1/webhooks/{hook['id']}", headers=bearer(reader)).json()["url"] == "https://hooks.example.com/…"
    assert "hidden" not in service.client.get("/v1/audit-trail", headers=bearer(admin)).text


def test_a_rule_names_receivers_that_exist(service: Service) -> None:
    rule = {"name": "Tokens", "kind": "tokens_per_minute", "threshold": 5, "receivers": ["hook_none"]}
    answer = service.client.post("/v1/alert-rules", json=rule)
    assert (answer.status_code, answer.json()["field"]) == (422, "receivers")
    hook = made(service)
    kept = service.client.post("/v1/alert-rules", json=rule | {"receivers": [hook["id"]]}).raise_for_status().json()
    service.client.delete(f"/v1/webhooks/{hook['id']}").raise_for_status()
    # One that is gone since does not keep the rule from being changed.
    again = service.client.put(f"/v1/alert-rules/{kept['id']}", json=rule | {"receivers": [hook["id"]], "threshold": 6})
    assert (again.status_code, again.json()["threshold"]) == (200, 6)
