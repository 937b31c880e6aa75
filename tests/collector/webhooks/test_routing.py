"""Who hears of which alert."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlmodel import Session, col, select

from collector import notices
from models.notices import Delivery, Format
from models.store import Store
from tests import factories

NOW = factories.NOW
ALERT = {
    "id": "alert_1",
    "rule": "Tokens",
    "rule_id": "rule_1",
    "kind": "tokens_per_minute",
    "severity": "warning",
    "step": None,
    "scope": {"workspace": "ws-east", "deployment": "chat"},
}


def told(session: Session, alert: dict[str, Any] = ALERT, *, receivers: list[str] | None = None, is_over: bool = False) -> list[str]:
    """The receivers of one more notice of the alert."""
    before = set(session.exec(select(Delivery.seq)))
    notices.post(session, alert=alert, type="alert.resolved" if is_over else "alert.firing", receivers=receivers, now=NOW)
    return [one.receiver_id for one in session.exec(select(Delivery).order_by(col(Delivery.receiver_id))) if one.seq not in before]


@pytest.mark.parametrize(
    ("wants", "hears"),
    [
        ({}, True),
        ({"severities": ["critical", "warning"]}, True),
        ({"severities": ["critical"]}, False),
        ({"workspaces": ["ws-east"]}, True),
        ({"workspaces": ["ws-west"]}, False),
        ({"matchers": [{"name": "deployment", "value": "chat"}, {"name": "deployment", "value": "search"}]}, True),
        ({"matchers": [{"name": "deployment", "value": "search"}]}, False),
        ({"matchers": [{"name": "rule", "value": "Tokens"}, {"name": "kind", "value": "tokens_per_minute"}]}, True),
        ({"matchers": [{"name": "rule_id", "value": "rule_1"}, {"name": "severity", "value": "error"}]}, False),
        ({"is_enabled": False}, False),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_a_receiver_hears_what_it_wants_of_what_is_meant_for_it(sqlite_store: Store, wants: dict[str, Any], *, hears: bool, is_named: bool) -> None:
    with sqlite_store.write() as session:
        factories.receiver(session, "hook_1", is_default=not is_named, **wants)
        factories.receiver(session, "hook_2")
        assert told(session, receivers=["hook_1"] if is_named else None) == (["hook_1"] if hears else [])


def test_the_end_is_told_to_whoever_was_told_the_beginning(store: Store) -> None:
    with store.write() as session:
        was_told = factories.receiver(session, "hook_1", is_default=True)
        assert told(session) == ["hook_1"]
        # Meanwhile somebody changes who hears what.
        was_told.severities, was_told.is_default = ["critical"], False
        session.add(was_told)
        factories.receiver(session, "hook_2", is_default=True)
        assert told(session, is_over=True) == ["hook_1"]


def test_links_lead_to_the_address_at_which_people_come(sqlite_store: Store) -> None:
    alert = ALERT | {"explain_url": "/v1/explain?workspace=ws-east"}
    with sqlite_store.write() as session:
        factories.receiver(session, "hook_1", is_default=True, format=Format.STANDARD)
        notices.post(session, alert=alert, type="alert.firing", receivers=None, now=NOW, public_url="https://costs.example.com")
        said = json.loads(session.exec(select(Delivery.body)).one())["data"]
    assert {name: value for name, value in said.items() if name not in ALERT} == {
        "explain_url": "https://costs.example.com/v1/explain?workspace=ws-east",
        "url": "https://costs.example.com/dashboard/alerts",
        "explain_page_url": "https://costs.example.com/dashboard/explain?workspace=ws-east",
    }


def test_where_no_named_receiver_is_left_the_defaults_are_told(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        factories.receiver(session, "hook_1", deleted_at=NOW)
        factories.receiver(session, "hook_2", is_default=True)
        factories.receiver(session, "hook_3")
        assert told(session, receivers=["hook_1"]) == ["hook_2"]
        assert told(session, receivers=["hook_1", "hook_3"]) == ["hook_3"]


def test_that_a_receiver_is_not_reached_is_told_to_the_others(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        factories.receiver(session, "hook_1", is_default=True)
        factories.receiver(session, "hook_2", is_default=True)
        assert told(session, ALERT | {"kind": "unreached_receiver", "scope": {"receiver": "hook_1"}}) == ["hook_2"]
