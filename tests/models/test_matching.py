"""What names mean, from rows alone: no database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from models.charges import ChargeClass, ChargeItem, MeterKind
from models.matching import Registry, full_name
from models.resources import DeploymentFact, Mode, Owner, Route, WorkspaceFact

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def at(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, tzinfo=UTC)


def fact(name: str, **more: Any) -> DeploymentFact:
    endpoint, _, deployment = name.partition("/")
    facts: dict[str, Any] = {"mode": Mode.SERVERLESS, "source": "inventory", "known_from": LONG_AGO, "workspace": "ws"} | more
    return DeploymentFact(name=name, endpoint=endpoint, deployment=deployment or endpoint, **facts)


def home(**more: Any) -> WorkspaceFact:
    facts: dict[str, Any] = {"workspace": "ws", "subscription_id": "sub", "resource_group": "rg", "source": "inventory", "known_from": LONG_AGO}
    return WorkspaceFact(**facts | more)


def item(**more: Any) -> ChargeItem:
    facts: dict[str, Any] = {"charge_class": ChargeClass.MARKETPLACE, "meter_kind": MeterKind.INPUT, "subscription_id": "sub", "resource_group": "rg"}
    return ChargeItem(**facts | {"resource_id": "", "tags": {}, "digest": b""} | more)


@pytest.mark.parametrize(
    ("endpoint", "deployment", "name"), [("e", "d", "e/d"), ("e", "e", "e"), (None, "d", "d"), ("e", None, "e"), ("", "", None), (None, None, None)]
)
def test_full_name(endpoint: str | None, deployment: str | None, name: str | None) -> None:
    assert full_name(endpoint, deployment) == name


@pytest.mark.parametrize(
    ("endpoint", "deployment", "meant"),
    [
        ("EP", "Blue", "ep/Blue"),
        (None, "BLUE", "ep/Blue"),
        (None, "green", "green"),  # two of them: itself
        ("ep", None, "ep"),  # two deployments of the endpoint: itself
        ("ep2", None, "ep2/green"),
        ("Solo", "solo", "SOLO"),
        (None, "seen", "seen"),  # usage rows decide nothing
        (None, None, None),
    ],
)
def test_a_name_means_the_full_one_else_the_only_short_one_else_itself(endpoint: str | None, deployment: str | None, meant: str | None) -> None:
    registry = Registry([home()], [fact("ep/Blue"), fact("ep/green"), fact("ep2/green"), fact("SOLO"), fact("x/seen", source="usage")])
    assert registry.resolve(workspace="WS", endpoint=endpoint, deployment=deployment, model="m", at=at(1)).deployment == meant


def test_inside_validity_else_the_last_that_ended_else_the_first_to_begin() -> None:
    registry = Registry(
        [],
        [
            fact("d", model="first", valid_from=at(3), valid_to=at(5)),
            fact("d", model="second", valid_from=at(8), valid_to=at(9)),
            fact("d", model="bill", source="bill", valid_from=at(6), valid_to=at(7)),
        ],
    )
    models = [registry.resolve(workspace="ws", endpoint=None, deployment="d", model="sent", at=at(day)).model for day in (1, 3, 5, 6, 8, 9)]
    assert models == ["first", "first", "first", "bill", "second", "second"]


def test_inventory_wins_over_the_bill_and_of_equals_the_later_arrival() -> None:
    facts = [fact("d", model="bill", source="bill", known_from=at(9)), fact("d", model="old"), fact("d", model="new", known_from=at(2))]
    for rows in (facts, facts[::-1]):
        assert Registry([], rows).resolve(workspace="ws", endpoint=None, deployment="d", model=None, at=at(10)).model == "new"


def test_the_subscription_comes_from_the_rows_that_say_one() -> None:
    registry = Registry([home(source="bill"), home(subscription_id=None, resource_group=None)], [])
    assert registry.subscription("WS", at(1)) == "sub"
    assert registry.subscription("other", at(1)) is None


def test_a_serverless_deployment_is_foundrys_in_a_foundry_account_and_the_marketplaces_elsewhere() -> None:
    registry = Registry([home(workspace="account", kind="foundry_account")], [fact("d"), fact("d", workspace="account"), fact("v", mode=Mode.MANAGED_COMPUTE)])
    routes = [
        registry.resolve(workspace=name, endpoint=None, deployment=one, model=None, at=at(1)).route
        for name, one in (("ws", "d"), ("account", "d"), ("ws", "v"))
    ]
    assert routes == [Route.MARKETPLACE, Route.FOUNDRY, Route.COMPUTE]


def test_a_charge_of_a_replaced_deployment_is_for_the_one_that_was_there_that_day() -> None:
    registry = Registry([home()], [fact("old", model="m", valid_to=at(10, 9)), fact("new", model="M", valid_from=at(10, 9))])
    found = {day: [each.deployment for each in registry.target(item(model="m"), at(day)).identities] for day in (9, 10, 11)}
    assert found == {9: ["old"], 10: ["new", "old"], 11: ["new"]}
    assert len(registry.target(item(model="m"), at(10)).identities) > 1


@pytest.mark.parametrize("wrong", [{"subscription_id": "else"}, {"resource_group": "else"}, {"model": "else"}])
def test_a_marketplace_charge_of_nobody_is_unallocated(wrong: dict[str, str]) -> None:
    (found,) = Registry([home()], [fact("d", model="m")]).target(item(**{"model": "m"} | wrong), at(1)).identities
    assert (found.workspace, found.deployment, found.mode) == (None, None, Mode.SERVERLESS)


def test_an_offer_billed_on_its_endpoint_is_that_endpoint() -> None:
    (found,) = (
        Registry([home()], [fact("Llama"), fact("other", model="m")])
        .target(item(workspace="WS", endpoint="llama", deployment="llama", model="m"), at(1))
        .identities
    )
    assert (found.workspace, found.deployment, found.route) == ("ws", "Llama", Route.MARKETPLACE)


def test_a_bill_is_spelled_as_usage_spelled_it_where_inventory_says_nothing() -> None:
    registry = Registry(
        [home(workspace="Ws", source="usage")], [fact("Llama-Chat", source="usage", workspace="Ws"), fact("llama-chat", source="bill", workspace="Ws")]
    )
    (found,) = registry.target(item(charge_class=ChargeClass.FOUNDRY, workspace="WS", deployment="LLAMA-CHAT"), at(1)).identities
    assert (found.workspace, found.deployment, found.is_confirmed) == ("Ws", "Llama-Chat", False)


def test_team_and_cost_centre_come_from_the_most_specific_row_that_says_one() -> None:
    def owner(**more: Any) -> Owner:
        facts: dict[str, Any] = {"source": "imported", "known_from": LONG_AGO}
        return Owner(**facts | more)

    registry = Registry(
        [],
        [fact("ep/blue")],
        [
            owner(workspace="WS", team="place", cost_center="c1"),
            owner(deployment="Blue", team="anywhere", valid_to=at(5)),
            owner(workspace="ws", deployment="ep/BLUE", team="here"),
            owner(application="app", cost_center="c2"),
            owner(tag_key="k", tag_value="v", team="tag"),
            owner(tag_key="k", tag_value="w", team="never", cost_center="never"),
        ],
    )

    def asked(**more: Any) -> tuple[str | None, str | None]:
        return registry.owner(**{"workspace": "ws", "deployment": "ep/blue", "application": None, "tags": {}, "team": None, "at": at(1)} | more)

    assert asked() == ("here", "c1")
    assert asked(application="app") == ("here", "c2")
    assert asked(application="app", tags={"k": "v"}) == ("tag", "c2")
    assert asked(team="own") == ("own", "c1")
    assert asked(workspace="far", deployment="blue") == ("anywhere", None)
    assert asked(workspace="far", deployment="blue", at=at(5)) == (None, None)
    assert asked(deployment=None) == ("place", "c1")
    assert asked(workspace=None, deployment=None) == (None, None)
