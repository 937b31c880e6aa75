"""Rules, budgets, silences and alerts over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from collector import rulebook
from collector.rulebook import RuleBody
from collector.watch import Watcher, backtest
from models.alerts import AlertRule
from models.errors import InvalidInput
from models.periods import Period
from models.store import Store
from tests import factories
from tests.collector.api.serving import NOW, Service, bearer, serving

RULE = {
    "name": "Tokens",
    "kind": "tokens_per_minute",
    "scope": {"workspace": "ws-east"},
    "threshold": 1000,
    "for_seconds": 0,
    "keep_firing_for_seconds": 60,
    "severity": "critical",
    "receivers": ["hook-1"],
}
BUDGET = {
    "name": "Search",
    "scope": {"workspace": "ws-east"},
    "amount": "100.00",
    "currency": "USD",
    "period": "month",
    "time_zone": "Europe/Berlin",
    "basis": "metered",
    "steps": [50, 80, 100],
    "hard": False,
    "severity": "warning",
    "receivers": [],
}
SILENCE = {
    "matchers": [{"name": "workspace", "value": "ws-east"}],
    "starts_at": "2026-11-20T09:00:00Z",
    "ends_at": "2026-11-20T12:00:00Z",
    "comment": "a planned change",
}


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    with sqlite_store.write() as session:
        factories.receiver(session, "hook-1")
    with serving(sqlite_store) as running:
        yield running


def evaluate(service: Service) -> None:
    Watcher(lambda *_, **__: None).run(service.store, now=service.at)


def alerts(service: Service, **parameters: Any) -> list[dict[str, Any]]:
    return list(service.client.get("/v1/alerts", params=parameters).raise_for_status().json()["items"])


@pytest.mark.parametrize(("path", "body"), [("/v1/alert-rules", RULE), ("/v1/budgets", BUDGET), ("/v1/silences", SILENCE)])
def test_what_is_made_can_be_read_replaced_and_deleted(service: Service, path: str, body: dict[str, Any]) -> None:
    made = service.client.post(path, json=body)
    assert made.status_code == 201
    made_id = made.json()["id"]
    assert body.items() <= made.json().items()
    assert service.client.get(f"{path}/{made_id}").json().items() >= body.items()
    assert [one["id"] for one in service.client.get(path).json()["items"]] == [made_id]
    assert service.client.get(path).json()["next_cursor"] is None
    other = body | ({"comment": "another"} if path == "/v1/silences" else {"name": "Another"})
    replaced = service.client.put(f"{path}/{made_id}", json=other)
    assert (replaced.status_code, replaced.json()["id"]) == (200, made_id)
    assert other.items() <= replaced.json().items()
    assert service.client.delete(f"{path}/{made_id}").status_code == 204
    assert service.client.get(f"{path}/{made_id}").status_code == 404
    trail = service.client.get("/v1/audit-trail").json()["items"]
    assert [(one["action"], one["object_id"]) for one in trail] == [("delete", made_id), ("update", made_id), ("create", made_id)]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/alert-rules", RULE | {"unknown": 1}, "body.unknown"),
        ("/v1/alert-rules", RULE | {"kind": "tokens"}, "body.kind"),
        ("/v1/alert-rules", RULE | {"kind": "budget"}, "made by budgets"),
        ("/v1/alert-rules", RULE | {"threshold_percent": 80}, "either threshold or threshold_percent"),
        ("/v1/alert-rules", {key: value for key, value in RULE.items() if key != "threshold"}, "either threshold or threshold_percent"),
        ("/v1/alert-rules", RULE | {"scope": {"team_name": "x"}}, "scope does not know 'team_name'"),
        ("/v1/alert-rules", RULE | {"for_seconds": -1}, "body.for_seconds"),
        ("/v1/alert-rules", RULE | {"clear_threshold": 2000}, "quiet side"),
        ("/v1/budgets", BUDGET | {"amount": 100.5}, "decimal string"),
        ("/v1/budgets", BUDGET | {"amount": "0"}, "more than zero"),
        ("/v1/budgets", BUDGET | {"time_zone": "Mars/Olympus"}, "no time zone named"),
        ("/v1/budgets", BUDGET | {"steps": [50, 50]}, "different whole percents"),
        ("/v1/budgets", BUDGET | {"period": "fortnight"}, "body.period"),
        ("/v1/silences", SILENCE | {"ends_at": "2026-11-20T09:00:00Z"}, "after starts_at"),
        ("/v1/silences", SILENCE | {"matchers": []}, "body.matchers"),
        ("/v1/silences", SILENCE | {"matchers": [{"name": "colour", "value": "red"}]}, "no alert has a label 'colour'"),
        ("/v1/silences", SILENCE | {"starts_at": "2026-11-20T09:00:00"}, "offset"),
    ],
)
def test_a_body_that_cannot_be_used_says_where_and_why(service: Service, path: str, body: dict[str, Any], said: str) -> None:
    answer = service.client.post(path, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert said in answer.json()["detail"]


def test_an_alert_says_why_and_is_acknowledged_once(service: Service) -> None:
    rule = service.client.post("/v1/alert-rules", json=RULE).json()
    with service.store.write() as session:
        factories.event(session, time=NOW, input_tokens=1000, output_tokens=0)
    evaluate(service)
    (alert,) = alerts(service, state="firing", kind="tokens_per_minute")
    assert (alert["rule_id"], alert["rule"], alert["severity"], alert["value"], alert["threshold"]) == (rule["id"], "Tokens", "critical", 1000, 1000)
    assert alert["scope"] == {"workspace": "ws-east", "deployment": "llama-chat"}
    assert alert["why"] == "1000 tokens a minute, threshold 1000: the threshold is reached; new usage"
    assert (alert["fired_at"], alert["resolved_at"], alert["acknowledged_at"], alert["step"], alert["silenced"]) == (
        "2026-11-20T10:00:00Z",
        None,
        None,
        None,
        False,
    )
    assert alert["explain_url"].startswith("/v1/explain?deployment=llama-chat&workspace=ws-east&from=")
    metric = f'meterbridge_alerts{{rule_id="{rule["id"]}",kind="tokens_per_minute",severity="critical",state="firing"}} 1'
    assert metric in service.client.get("/metrics").text.splitlines()
    service.later(seconds=30)
    done = service.client.post(f"/v1/alerts/{alert['id']}/acknowledge")
    assert (done.status_code, done.json()["acknowledged_at"]) == (200, "2026-11-20T10:00:30Z")
    service.later(seconds=30)
    assert service.client.post(f"/v1/alerts/{alert['id']}/acknowledge").json()["acknowledged_at"] == "2026-11-20T10:00:30Z"
    assert service.client.post("/v1/silences", json=SILENCE).status_code == 201
    assert service.client.get(f"/v1/alerts/{alert['id']}").json()["silenced"] is True


def test_a_budget_shows_what_is_spent_and_where_it_will_end(service: Service) -> None:
    with service.store.write() as session:
        factories.token_prices(session, "1000000", "1000000")
        for day in range(10, 20):
            factories.event(session, time=NOW.replace(day=day, hour=12), input_tokens=2, output_tokens=0)
    made = service.client.post("/v1/budgets", json=BUDGET).json()
    assert (made["spent"], made["used_percent"], made["remaining"]) == ("20", "20", "80")
    assert (made["period_start"], made["period_end"]) == ("2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z")
    forecast = service.client.get(f"/v1/budgets/{made['id']}").json()["forecast"]
    # Ten days at 2, and eleven days to come at 2.
    assert (forecast["expected"], forecast["complete_days"], forecast["reason"]) == ("42", 10, None)


def test_a_back_test_tells_the_firings_and_leaves_no_trace(service: Service) -> None:
    with service.store.write() as session:
        for minute in (0, 1, 60):
            factories.event(session, time=NOW - timedelta(hours=3) + timedelta(minutes=minute), input_tokens=1200, output_tokens=0)
    body = {"rule": RULE, "from": "2026-11-20T00:00:00Z", "to": "2026-11-20T10:00:00Z"}
    answer = service.client.post("/v1/alert-rules/backtest", json=body)
    assert answer.status_code == 200
    assert answer.json()["firings"] == [
        {
            "scope": {"workspace": "ws-east", "deployment": "llama-chat"},
            "fired_at": "2026-11-20T07:00:00Z",
            "resolved_at": "2026-11-20T07:03:00Z",
            "peak": 1200,
            "why": "tokens_per_minute at or above 1000 since 2026-11-20T07:00:00Z",
        },
        {
            "scope": {"workspace": "ws-east", "deployment": "llama-chat"},
            "fired_at": "2026-11-20T08:00:00Z",
            "resolved_at": "2026-11-20T08:02:00Z",
            "peak": 1200,
            "why": "tokens_per_minute at or above 1000 since 2026-11-20T08:00:00Z",
        },
    ]
    assert alerts(service) == []
    assert service.client.get("/v1/alert-rules").json()["items"] == []
    assert service.client.post("/v1/alert-rules/backtest", json=body | {"from": "2025-11-20T00:00:00Z"}).status_code == 422


def test_a_back_test_follows_a_firing_over_its_slices(service: Service) -> None:
    with service.store.write() as session:
        for minute in range(0, 8 * 60, 2):
            tokens = 9000 if minute == 60 else 1200
            factories.event(session, time=NOW - timedelta(hours=9) + timedelta(minutes=minute), input_tokens=tokens, output_tokens=0)
    body = {"rule": RULE | {"for_seconds": 0, "keep_firing_for_seconds": 120}, "from": "2026-11-20T00:00:00Z", "to": "2026-11-20T09:00:00Z"}
    (firing,) = service.client.post("/v1/alert-rules/backtest", json=body).json()["firings"]
    assert (firing["fired_at"], firing["resolved_at"], firing["peak"]) == ("2026-11-20T01:00:00Z", None, 9000)


def test_a_back_test_of_days_asks_at_each_midnight(service: Service) -> None:
    with service.store.write() as session:
        factories.event(session, time=NOW - timedelta(days=3), input_tokens=5000, output_tokens=0)
    rule = {"name": "unpriced", "kind": "unpriced_usage", "threshold": 5000}
    firings = service.client.post("/v1/alert-rules/backtest", json={"rule": rule, "from": "2026-11-15T00:00:00Z", "to": "2026-11-20T00:00:00Z"}).json()[
        "firings"
    ]
    assert [(one["fired_at"], one["resolved_at"], one["peak"]) for one in firings] == [("2026-11-18T00:00:00Z", "2026-11-19T00:00:00Z", 5000)]
    refused = service.client.post(
        "/v1/alert-rules/backtest", json={"rule": {"name": "x", "kind": "heartbeat"}, "from": "2026-11-15T00:00:00Z", "to": "2026-11-20T00:00:00Z"}
    )
    assert refused.status_code == 422


def test_a_limited_key_sees_its_own_workspaces_only(service: Service) -> None:
    admin = bearer(service.key("admin"))
    east, west = bearer(service.key("read", "ws-east")), bearer(service.key("read", "ws-west"))
    rule = service.client.post("/v1/alert-rules", json=RULE, headers=admin).json()["id"]
    budget = service.client.post("/v1/budgets", json=BUDGET, headers=admin).json()["id"]
    service.client.post("/v1/budgets", json=BUDGET | {"scope": {}}, headers=admin)
    with service.store.write() as session:
        factories.event(session, time=NOW, input_tokens=1000, output_tokens=0)
    evaluate(service)
    alert = service.client.get("/v1/alerts", headers=admin).json()["items"][0]["id"]
    for path, one in (("/v1/alert-rules", rule), ("/v1/budgets", budget), ("/v1/alerts", alert)):
        assert [item["id"] for item in service.client.get(path, headers=east).json()["items"]] == [one]
        assert service.client.get(f"{path}/{one}", headers=east).status_code == 200
        assert service.client.get(path, headers=west).json()["items"] == []
        assert service.client.get(f"{path}/{one}", headers=west).status_code == 404
    assert service.client.post("/v1/alert-rules", json=RULE, headers=east).status_code == 403
    seen = {
        name: [one["object_id"] for one in service.client.get("/v1/audit-trail", headers=key).json()["items"]] for name, key in (("east", east), ("west", west))
    }
    assert seen == {"east": [budget, rule], "west": []}


LITELLM: dict[str, Any] = {
    "spend": 101.5,
    "max_budget": 100,
    "token": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
    "team_alias": "search",
    "event": "budget_crossed",
    "event_group": "team",
    "event_message": "Team Budget: Budget Crossed",
}


def test_a_litellm_webhook_is_one_external_alert_however_often_it_comes(service: Service) -> None:
    for _ in range(3):
        assert service.client.post("/v1/alerts/litellm", json=LITELLM).status_code == 200
    assert service.client.post("/v1/alerts/litellm", json=LITELLM | {"event": "spend_tracked"}).json() == {
        "accepted": 0,
        "ignored": 1,
        "reason": "spend_tracked is no alert",
    }
    (alert,) = alerts(service)
    assert (alert["kind"], alert["state"], alert["value"], alert["threshold"], alert["why"]) == (
        "external",
        "firing",
        "101.5",
        "100",
        "Team Budget: Budget Crossed",
    )
    assert alert["scope"] == {"team": "search"}
    assert LITELLM["token"] not in str(alert)
    evaluate(service)
    assert alerts(service)[0]["told_at"] == "2026-11-20T10:00:00Z"
    service.later(hours=24)
    evaluate(service)
    assert alerts(service)[0]["state"] == "resolved"


def test_a_litellm_webhook_comes_with_an_ingest_key(service: Service) -> None:
    service.key("admin")
    assert service.client.post("/v1/alerts/litellm", json=LITELLM, headers=bearer(service.key("ingest"))).status_code == 200
    assert service.client.post("/v1/alerts/litellm", json=LITELLM, headers=bearer(service.key("read"))).status_code == 403
    assert service.client.post("/v1/alerts/litellm", content=b"{", headers=bearer(service.key("ingest"))).status_code == 400


def test_pages_of_alerts_follow_the_cursor(service: Service) -> None:
    service.client.post("/v1/alert-rules", json=RULE)
    with service.store.write() as session:
        for number in range(5):
            factories.event(session, factories.series(session, deployment=f"d{number}"), time=NOW, input_tokens=1000, output_tokens=0)
    evaluate(service)
    first = service.client.get("/v1/alerts", params={"limit": 3}).json()
    second = service.client.get("/v1/alerts", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    seen = [one["scope"]["deployment"] for one in first["items"] + second["items"]]
    assert (len(first["items"]), second["next_cursor"], sorted(seen)) == (3, None, ["d0", "d1", "d2", "d3", "d4"])
    assert service.client.get("/v1/alerts", params={"state": "loud"}).status_code == 422


def test_the_builtin_rules_can_be_switched_off_and_stay_so(service: Service) -> None:
    evaluate(service)
    rule = service.client.get("/v1/alert-rules/builtin-tokens-80").json()
    changed = {key: rule[key] for key in ("name", "kind", "scope", "threshold_percent", "severity", "receivers")} | {"enabled": False}
    assert service.client.put("/v1/alert-rules/builtin-tokens-80", json=changed).json()["enabled"] is False
    service.client.delete("/v1/alert-rules/builtin-throttled")
    evaluate(service)
    with service.store.read() as session:
        standing = {row.id: row.is_enabled for row in rulebook.standing(session, AlertRule)}
    assert (standing["builtin-tokens-80"], "builtin-throttled" in standing) == (False, False)


def test_a_silenced_alert_is_listed_with_the_silence_that_covers_it_until_that_is_ended(service: Service) -> None:
    service.client.post("/v1/alert-rules", json=RULE).raise_for_status()
    with service.store.write() as session:
        factories.event(session, time=NOW, input_tokens=1200, output_tokens=0)
    evaluate(service)
    [alert] = [one for one in alerts(service) if one["rule"] == "Tokens"]
    assert (alert["state"], alert["silenced"], alert["silenced_by"]) == ("firing", False, None)
    silence = service.client.post("/v1/silences", json=SILENCE).json()
    other = service.client.post("/v1/silences", json=SILENCE | {"matchers": [{"name": "workspace", "value": "ws-west"}]}).json()
    again = service.client.get(f"/v1/alerts/{alert['id']}").json()
    assert (again["silenced"], again["silenced_by"]) == (True, silence["id"])
    service.later(minutes=5)
    ended = service.client.post(f"/v1/silences/{silence['id']}/expire").raise_for_status().json()
    assert (ended["state"], ended["ends_at"]) == ("expired", "2026-11-20T10:05:00Z")
    assert service.client.get(f"/v1/alerts/{alert['id']}").json()["silenced_by"] is None
    # It stays listed, and ending it again is nothing new.
    service.later(minutes=5)
    assert service.client.post(f"/v1/silences/{silence['id']}/expire").json()["ends_at"] == "2026-11-20T10:05:00Z"
    assert {one["id"]: one["state"] for one in service.client.get("/v1/silences").json()["items"]} == {silence["id"]: "expired", other["id"]: "active"}
    trail = service.client.get("/v1/audit-trail", params={"object_id": silence["id"]}).json()["items"]
    assert [(one["action"], (one["before"] or {}).get("ends_at"), one["after"]["ends_at"]) for one in trail] == [
        ("update", "2026-11-20T12:00:00Z", "2026-11-20T10:05:00Z"),
        ("create", None, "2026-11-20T12:00:00Z"),
    ]


def test_a_silence_that_is_called_off_before_it_begins_never_does(service: Service) -> None:
    coming = service.client.post("/v1/silences", json=SILENCE | {"starts_at": "2026-11-20T11:00:00Z"}).json()
    assert coming["state"] == "pending"
    ended = service.client.post(f"/v1/silences/{coming['id']}/expire").json()
    assert (ended["state"], ended["ends_at"]) == ("expired", "2026-11-20T10:00:00Z")


def test_a_back_test_looks_at_usage_by_its_own_time_and_draws_the_line(service: Service) -> None:
    with service.store.write() as session:
        # Imported a week after it was used: nobody is told of it live, and a back-test is about just that.
        factories.event(session, time=NOW - timedelta(days=7), received_at=NOW, input_tokens=1200, output_tokens=0)
    body = {"rule": RULE, "from": "2026-11-13T09:00:00Z", "to": "2026-11-13T11:00:00Z"}
    answer = service.client.post("/v1/alert-rules/backtest", json=body).json()
    assert [(one["fired_at"], one["peak"]) for one in answer["firings"]] == [("2026-11-13T10:00:00Z", 1200)]
    (line,) = answer["lines"]
    assert (line["scope"], line["threshold"], answer["unit"]) == ({"workspace": "ws-east", "deployment": "llama-chat"}, 1000, "tokens a minute")
    assert max(line["points"], key=lambda point: point[1]) == ["2026-11-13T10:00:00Z", 1200]
    evaluate(service)
    assert [one for one in alerts(service) if one["rule"] == "Tokens"] == []


def test_a_back_test_judges_by_the_limits_of_today(service: Service) -> None:
    with service.store.write() as session:
        factories.serverless(session)
        factories.event(session, time=NOW - timedelta(days=1), input_tokens=450_000, output_tokens=0)
        factories.event(session, time=NOW - timedelta(hours=12), input_tokens=500_000, output_tokens=0)
    rule = {name: value for name, value in RULE.items() if name != "threshold"} | {"threshold_percent": 80}
    body = {"rule": rule, "from": "2026-11-19T00:00:00Z", "to": "2026-11-20T10:00:00Z"}
    fired = []
    for limit in (None, 600_000):
        service.client.put("/v1/quotas/ws-east/llama-chat:tokens_per_minute", json={"limit": limit}).raise_for_status()
        fired.append([one["peak"] for one in service.client.post("/v1/alert-rules/backtest", json=body).raise_for_status().json()["firings"]])
    # The default of 400,000, and what somebody has raised it to since.
    assert fired == [[450_000, 500_000], [500_000]]


def test_a_back_test_of_a_budget_tells_its_steps_period_by_period(service: Service) -> None:
    with service.store.write() as session:
        factories.token_prices(session, "1.00", "2.00")
        for day, millions in ((1, 40), (2, 30), (3, 40), (18, 90)):
            factories.event(session, time=datetime(2026, 11, day, 12, tzinfo=NOW.tzinfo), input_tokens=millions * 1_000_000, output_tokens=0)
    budget = BUDGET | {"period": "week", "time_zone": "UTC"}
    body = {"budget": budget, "from": "2026-11-01T00:00:00Z", "to": "2026-11-20T00:00:00Z"}
    answer = service.client.post("/v1/budgets/backtest", json=body).raise_for_status().json()
    # 40 on Sunday the 1st end with its week; 30 + 40 from Monday on; 90 in the third week, of which 80 % tells and 50 % with it.
    assert [(one["step"], one["fired_at"], one["resolved_at"], one["peak"]) for one in answer["firings"]] == [
        (50, "2026-11-03T13:00:00Z", "2026-11-09T00:00:00Z", "70"),
        (80, "2026-11-18T13:00:00Z", None, "90"),
    ]
    assert [line["threshold"] for line in answer["lines"]] == ["100"]
    assert service.client.get("/v1/budgets").json()["items"] == []
    # What was crossed before the time that is asked for told before it.
    later = service.client.post("/v1/budgets/backtest", json=body | {"from": "2026-11-04T00:00:00Z"}).json()
    assert [one["step"] for one in later["firings"]] == [80]
    for start in ("2025-11-01T00:00:00Z", "2026-11-20T00:00:00Z"):
        refused = service.client.post("/v1/budgets/backtest", json=body | {"from": start})
        assert refused.status_code == 422, refused.text


def test_a_back_test_that_takes_too_long_says_what_to_do(service: Service) -> None:
    seconds = iter(range(0, 1000, 20))
    rule = rulebook.tried_rule(RuleBody.model_validate(RULE), now=NOW)
    with service.store.read() as session, pytest.raises(InvalidInput, match="more than 25 seconds; test a shorter time"):
        backtest(session, rule, Period(NOW - timedelta(days=2), NOW), now=NOW, clock=lambda: next(seconds))
