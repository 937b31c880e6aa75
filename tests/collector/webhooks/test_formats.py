"""What receivers get to read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.webhooks.formats import TEAMS_BYTES, Notice, render, sample
from models.notices import Format

AT = datetime(2026, 11, 20, 10, tzinfo=UTC)
NASTY = "<!here> @here *b* _i_ [x](https://evil.example) & <script>\r\nBcc: x\x00\x1b[31m\u202e|`{{DATE(2017-02-14T06:08:39Z)}}"
ALERT: dict[str, Any] = {
    "id": "alert_1",
    "rule_id": "rule_1",
    "rule": "Tokens",
    "kind": "tokens_per_minute",
    "severity": "critical",
    "scope": {"workspace": "ws-east", "deployment": "llama-prod"},
    "value": 390000,
    "threshold": 380000,
    "step": None,
    "why": "390,000 tokens a minute of 400,000",
    "fired_at": "2026-11-20T09:59:00Z",
    "resolved_at": None,
    "runbook_url": "https://wiki.example/tokens",
}


def rendered(form: Format, kind: str = "alert.firing", **changes: Any) -> Any:
    notice = Notice("msg_1", kind, AT, ALERT | changes)
    return json.loads(render(form, notice, receiver_name="Ops", routing_key="R" * 32))


def test_standard_is_type_timestamp_and_the_alert() -> None:
    assert rendered(Format.STANDARD) == {"type": "alert.firing", "timestamp": "2026-11-20T10:00:00Z", "data": ALERT}


def test_alertmanager_has_the_same_labels_when_firing_and_resolved() -> None:
    firing, resolved = rendered(Format.ALERTMANAGER), rendered(Format.ALERTMANAGER, "alert.resolved", resolved_at="2026-11-20T10:00:00Z", value=1)
    assert (firing["version"], firing["status"], resolved["status"]) == ("4", "firing", "resolved")
    assert firing["alerts"][0]["endsAt"] == "0001-01-01T00:00:00Z"
    assert resolved["alerts"][0]["endsAt"] == "2026-11-20T10:00:00Z"
    for name in ("labels", "fingerprint", "startsAt"):
        assert firing["alerts"][0][name] == resolved["alerts"][0][name]
    assert firing["commonLabels"] == {
        "alertname": "Tokens", "deployment": "llama-prod", "kind": "tokens_per_minute", "rule_id": "rule_1", "severity": "critical", "workspace": "ws-east",
    }  # fmt: skip


def test_an_alertmanager_gets_a_list_that_ends_only_when_resolved() -> None:
    firing, resolved = rendered(Format.ALERTMANAGER_API), rendered(Format.ALERTMANAGER_API, "alert.resolved", resolved_at="2026-11-20T10:00:00Z")
    assert set(firing[0]) == {"labels", "annotations", "startsAt"}
    assert resolved[0]["endsAt"] == "2026-11-20T10:00:00Z"


def test_pagerduty_pairs_trigger_and_resolve() -> None:
    firing, resolved = rendered(Format.PAGERDUTY), rendered(Format.PAGERDUTY, "alert.resolved")
    assert (firing["event_action"], resolved["event_action"]) == ("trigger", "resolve")
    assert firing["dedup_key"] == resolved["dedup_key"] == "alert_1"
    assert (firing["routing_key"], firing["payload"]["severity"], firing["payload"]["source"]) == ("R" * 32, "critical", "ws-east/llama-prod")


@pytest.mark.parametrize("form", [Format.SLACK, Format.TEAMS, Format.EMAIL])
def test_people_read_firing_or_resolved(form: Format) -> None:
    assert "firing" in json.dumps(rendered(form))
    assert "resolved" not in json.dumps(rendered(form))
    assert "resolved" in json.dumps(rendered(form, "alert.resolved"))
    assert "firing" not in json.dumps(rendered(form, "alert.resolved"))


@pytest.mark.parametrize("form", list(Format))
def test_a_test_opens_nothing(form: Format) -> None:
    said = render(form, sample("msg_1", receiver_name="Ops", now=AT), receiver_name="Ops", routing_key="R")
    assert "firing" not in said
    assert "trigger" not in said
    assert "test" in said.lower()


def test_people_get_a_budgets_figures_rounded_and_programs_exactly() -> None:
    notice = Notice("msg_1", "alert.firing", AT, ALERT | {"kind": "budget", "value": "85.104938270735", "threshold": "80", "sample": {"currency": "USD"}})
    told = json.loads(render(Format.EMAIL, notice, receiver_name="Ops", routing_key=None))["text"].splitlines()
    assert {"Value: 85.10 USD", "Threshold: 80.00 USD"} <= set(told), told
    assert json.loads(render(Format.STANDARD, notice, receiver_name="Ops", routing_key=None))["data"]["value"] == "85.104938270735"


def test_slack_interprets_nothing_of_a_name() -> None:
    said = rendered(Format.SLACK, rule=NASTY, why=NASTY, scope={"deployment": NASTY})
    assert said["mrkdwn"] is False
    for text in [said["text"], *(one["text"] for block in said["blocks"] for one in block.get("fields", [block.get("text")]))]:
        assert "<" not in text
        assert ">" not in text
        assert "@here" not in text
    assert all(one["type"] == "plain_text" for block in said["blocks"] for one in block.get("fields", [block.get("text")]))
    assert len(said["blocks"][0]["text"]["text"]) <= 150


def test_teams_interprets_nothing_of_a_name() -> None:
    card = rendered(Format.TEAMS, rule=NASTY, why=NASTY)["attachments"][0]["content"]
    assert {one["type"] for one in card["body"]} == {"RichTextBlock"}
    assert {run["type"] for one in card["body"] for run in one["inlines"]} == {"TextRun"}


def test_a_subject_is_one_line() -> None:
    said = rendered(Format.EMAIL, rule=NASTY)
    assert said["subject"].isprintable()
    assert "\u202e" not in said["subject"]


LINKS = {
    "url": "https://costs.example.com/dashboard/alerts",
    "explain_page_url": "https://costs.example.com/dashboard/explain?deployment=a%7Cb&workspace=ws-east",
}


def test_people_and_programs_get_links_that_open_the_pages_from_outside() -> None:
    alerts, explain = LINKS.values()
    slack = rendered(Format.SLACK, **LINKS)["blocks"][-1]["text"]
    assert slack == {
        "type": "mrkdwn", "verbatim": True, "text": f"<{alerts}|Open the alerts> · <{explain.replace('&', '&amp;')}|Explain>",
    }  # fmt: skip
    card = rendered(Format.TEAMS, **LINKS)["attachments"][0]["content"]
    assert [(one["type"], one["title"], one["url"]) for one in card["actions"]] == [
        ("Action.OpenUrl", "Open the alerts", alerts), ("Action.OpenUrl", "Explain", explain),
    ]  # fmt: skip
    assert [one["href"] for one in rendered(Format.PAGERDUTY, **LINKS)["links"]] == [ALERT["runbook_url"], alerts, explain]
    assert rendered(Format.ALERTMANAGER, **LINKS)["alerts"][0]["generatorURL"] == explain
    assert f"Explain: {explain}\n" in rendered(Format.EMAIL, **LINKS)["text"]
    assert "dashboard" not in json.dumps([rendered(form) for form in Format])


def test_what_could_end_a_link_early_does_not() -> None:
    text = rendered(Format.SLACK, url="https://costs.example.com/a|b>c<d")["blocks"][-1]["text"]["text"]
    assert text == "<https://costs.example.com/a%7Cb%3Ec%3Cd|Open the alerts>"


def test_a_link_of_a_rule_is_a_web_page_or_none() -> None:
    assert "javascript" not in json.dumps([rendered(form, runbook_url="javascript:alert(1)") for form in Format if form is not Format.STANDARD])


@given(st.text(), st.text(max_size=3000), st.dictionaries(st.text(max_size=2000), st.text(max_size=2000) | st.lists(st.text()), max_size=30))
def test_every_alert_can_be_told_to_everybody_within_their_limits(rule: str, why: str, scope: dict[str, Any]) -> None:
    for form in Format:
        notice = Notice("msg_1", "alert.firing", AT, ALERT | {"rule": rule, "why": why, "scope": scope})
        body = render(form, notice, receiver_name=rule, routing_key="R").encode()
        said = json.loads(body)
        if form is Format.TEAMS:
            assert len(body) <= TEAMS_BYTES
        if form is Format.PAGERDUTY:
            assert len(said["payload"]["summary"]) <= 1024
        if form is Format.SLACK:
            assert max(len(field["text"]) for block in said["blocks"] for field in block.get("fields", [])) <= 2000
            assert len(said["blocks"][1]["text"]["text"]) <= 3000
