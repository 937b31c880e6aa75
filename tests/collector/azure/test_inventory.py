"""What a pull of the inventory leaves in the registry, read through the real SDK from the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import col, select

from collector.azure import inventory
from collector.azure.simulator import Fault, InventedWorld, Simulator
from models.errors import UpstreamError
from models.matching import Registry
from models.quotas import EndpointFact, endpoints
from models.resources import DeploymentFact, Mode, Route, WorkspaceFact
from models.store import Store
from tests.collector.azure.plain import PlainArm

FIRST = date(2026, 10, 1)
LAST = date(2026, 11, 30)


@dataclass
class Place:
    """A simulated Azure whose virtual time is ``at``."""

    at: datetime
    world: InventedWorld
    azure: Simulator = field(init=False)
    arm: PlainArm = field(init=False)

    def sync(self, store: Store, subscriptions: list[str] | None = None) -> inventory.InventorySync:
        names = subscriptions or [each.id for each in self.world.subscriptions()]
        return inventory.sync(store, self.arm, names, now=lambda: self.at)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place(datetime(2026, 10, 20, 9, 30, tzinfo=UTC), InventedWorld(3, FIRST, LAST, subscription_count=1))
    with Simulator(made.world, lambda: made.at, page_objects=2) as azure:
        made.azure, made.arm = azure, PlainArm(azure.arm_url)
        yield made
        made.arm.close()


def standing(store: Store, name: str) -> list[DeploymentFact]:
    with store.read() as session:
        rows = select(DeploymentFact).where(col(DeploymentFact.name) == name, col(DeploymentFact.known_to).is_(None), col(DeploymentFact.source) == "inventory")
        found = list(session.exec(rows.order_by(col(DeploymentFact.valid_from))))
        session.expunge_all()
        return found


def test_every_route_is_found_with_what_tells_its_charges(store: Store, place: Place) -> None:
    place.sync(store)
    with store.read() as session:
        rows = list(session.exec(select(DeploymentFact).where(col(DeploymentFact.valid_to).is_(None), col(DeploymentFact.known_to).is_(None))))
        assert {(row.workspace, row.name, row.mode, row.route) for row in rows} == {
            ("ws-prod-0", "scout-prod", Mode.SERVERLESS, Route.MARKETPLACE),
            ("proj-chat-0", "scout-chat", Mode.SERVERLESS, Route.MARKETPLACE),
            ("aif-0", "llama-33-70b", Mode.SERVERLESS, Route.FOUNDRY),
            ("aif-0", "maverick", Mode.SERVERLESS, Route.FOUNDRY),
            ("ws-prod-0", "llama-8b/blue", Mode.MANAGED_COMPUTE, Route.COMPUTE),
            ("ws-prod-0", "llama-8b/green", Mode.MANAGED_COMPUTE, Route.COMPUTE),
            ("proj-chat-0", "llama-70b/default", Mode.MANAGED_COMPUTE, Route.COMPUTE),
        }
        scout = next(row for row in rows if row.name == "scout-prod")
        assert (scout.offer_id, scout.plan_id, scout.model) == (
            "llama-4-scout-17b-16e-instruct-offer",
            "llama-4-scout-17b-16e-instruct-plan",
            "Llama-4-Scout-17B-16E-Instruct",
        )
        homes = {row.workspace: (row.kind, row.subscription_id, row.resource_group, row.region) for row in session.exec(select(WorkspaceFact))}
    subscription = place.world.subscriptions()[0].id
    assert homes["aif-0"] == ("foundry_account", subscription, "rg-models", "eastus2")
    assert homes["proj-chat-0"] == ("workspace", subscription, "rg-models", "eastus2")


def test_instances_are_known_to_the_hour_they_changed_at(store: Store, place: Place) -> None:
    place.at = datetime(2026, 11, 29, 9, 30, tzinfo=UTC)
    place.sync(store)
    blue = f"/subscriptions/{place.world.subscriptions()[0].id}/resourceGroups/rg-Models/providers/Microsoft.MachineLearningServices/workspaces/ws-prod-0"
    truth = [(step.at, step.instances) for step in place.world.capacity(f"{blue}/onlineEndpoints/llama-8b/deployments/blue")]
    facts = standing(store, "llama-8b/blue")
    assert [(fact.valid_from, fact.instance_count) for fact in facts] == truth
    assert [fact.valid_to for fact in facts] == [*(at for at, _ in truth[1:]), None]


@pytest.mark.walk
def test_a_pull_a_day_and_one_pull_at_the_end_know_the_same(store: Store, place: Place) -> None:
    place.at = datetime(2026, 10, 2, 5, 17, tzinfo=UTC)
    while place.at < datetime(2026, 11, 29, tzinfo=UTC):
        place.sync(store)
        place.at += timedelta(hours=19)
    place.sync(store)
    steps = [(step.at, step.instances) for step in place.world.capacity(standing(store, "llama-8b/blue")[0].resource_id or "")]
    assert [(fact.valid_from, fact.instance_count) for fact in standing(store, "llama-8b/blue")] == steps
    green = standing(store, "llama-8b/green")
    gone = place.world.capacity(green[0].resource_id or "")[-1]
    assert gone.instances == 0
    assert [(fact.valid_from, fact.valid_to, fact.instance_count) for fact in green] == [(datetime(2026, 10, 1, tzinfo=UTC), gone.at, 1)]


def test_what_was_known_before_stays_readable(store: Store, place: Place) -> None:
    place.sync(store)
    before = place.at
    place.at = datetime(2026, 11, 29, 9, 30, tzinfo=UTC)
    place.sync(store)
    with store.read() as session:
        known = [
            row
            for row in session.exec(select(DeploymentFact).where(col(DeploymentFact.name) == "llama-8b/green"))
            if row.known_from <= before and (row.known_to is None or row.known_to > before)
        ]
        assert [(row.valid_to, row.instance_count) for row in known] == [(None, 1)]


def test_a_second_pull_changes_nothing(store: Store, place: Place) -> None:
    place.sync(store)
    with store.read() as session:
        count = len(session.exec(select(DeploymentFact)).all())
    again = place.sync(store)
    assert [(done.deployments.added, done.deployments.changed, done.deployments.ended) for done in again.imported] == [(0, 0, 0)]
    with store.read() as session:
        assert len(session.exec(select(DeploymentFact)).all()) == count


@pytest.mark.parametrize("skip", range(0, 21, 4))
def test_a_pull_that_fails_anywhere_changes_nothing(store: Store, place: Place, skip: int) -> None:
    place.sync(store)
    with store.read() as session:
        before = [row.model_dump() for row in session.exec(select(DeploymentFact).order_by(col(DeploymentFact.id)))]
    place.at = datetime(2026, 11, 29, 9, 30, tzinfo=UTC)
    place.azure.faults.arm(Fault.ERROR_500, skip=skip, kinds=["list"])
    with pytest.raises(UpstreamError):
        place.sync(store)
    with store.read() as session:
        assert [row.model_dump() for row in session.exec(select(DeploymentFact).order_by(col(DeploymentFact.id)))] == before


def test_an_empty_list_where_deployments_were_is_not_believed(store: Store, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.sync(store)
    monkeypatch.setattr(InventedWorld, "objects", lambda _self, _at: [])
    with pytest.raises(UpstreamError, match=r"lists nothing in subscription .* where 7 deployments were"):
        place.sync(store)
    assert standing(store, "llama-33-70b")[0].valid_to is None


def test_a_workspace_that_is_gone_ends_with_its_deployments(store: Store, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.sync(store)
    whole = InventedWorld.objects
    monkeypatch.setattr(InventedWorld, "objects", lambda self, at: [each for each in whole(self, at) if "/aif-0" not in each["id"]])
    place.at += timedelta(days=1)
    done = place.sync(store)
    assert done.imported[0].deployments.ended == 2
    assert [fact.valid_to for fact in standing(store, "maverick")] == [place.at]
    assert [fact.valid_to for fact in standing(store, "scout-prod")] == [None]


def test_one_subscription_that_fails_does_not_keep_the_others(store: Store) -> None:
    at = datetime(2026, 10, 20, tzinfo=UTC)
    world = InventedWorld(3, FIRST, LAST, subscription_count=2)
    with Simulator(world, lambda: at) as azure:
        arm = PlainArm(azure.arm_url)
        done = inventory.sync(store, arm, [world.subscriptions()[0].id, "00000000-0000-0000-0000-000000000000"], now=lambda: at)
        arm.close()
    assert done.subscriptions == (world.subscriptions()[0].id,)
    assert done.summary().splitlines()[1].startswith("nothing was changed of subscription 00000000-0000-0000-0000-000000000000: ")


def test_endpoints_say_their_host_and_when_they_delete_themselves(store: Store, place: Place) -> None:
    place.sync(store)
    with store.read() as session:
        by_host = {each.host: each for each in endpoints(session, known=place.at)}
        found = by_host["llama-8b.eastus2.inference.ml.azure.com"]
        assert (found.workspace, found.endpoint, found.traffic, found.deletes_at) == ("ws-prod-0", "llama-8b", {"blue": 90, "green": 10}, None)
        shared = next(each for each in endpoints(session, known=place.at) if each.endpoint == "llama-70b")
        assert shared.deletes_at == datetime(2026, 12, 1, 6, tzinfo=UTC)
        serverless = by_host["scout-prod.eastus2.models.ai.azure.com"]
        assert (serverless.workspace, serverless.endpoint) == ("ws-prod-0", "scout-prod")


def test_an_endpoint_on_shared_quota_without_a_time_lives_seven_days() -> None:
    born = datetime(2026, 10, 1, 8, 15, tzinfo=UTC)
    fact = EndpointFact(workspace="w", endpoint="e", subscription_id="s", traffic={}, is_shared_quota=True, created_at=born, known_from=born, seen_at=born)
    assert fact.deletes_at == datetime(2026, 10, 8, 8, 15, tzinfo=UTC)


def test_an_event_that_names_the_endpoint_means_its_only_deployment(store: Store, place: Place) -> None:
    place.sync(store)
    with store.read() as session:
        registry = Registry(session.exec(select(WorkspaceFact)).all(), session.exec(select(DeploymentFact).where(col(DeploymentFact.known_to).is_(None))).all())
        session.expunge_all()
    only = registry.resolve(workspace="proj-chat-0", endpoint="llama-70b", deployment=None, model=None, at=place.at)
    several = registry.resolve(workspace="ws-prod-0", endpoint="llama-8b", deployment=None, model=None, at=place.at)
    assert (only.deployment, only.mode) == ("llama-70b/default", Mode.MANAGED_COMPUTE)
    assert (several.deployment, several.mode) == ("llama-8b", Mode.UNKNOWN)


def test_deployments_of_other_models_are_left_out() -> None:
    account = "/subscriptions/s/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a"

    class Arm:
        def arm_list(self, path: str, **_: Any) -> list[dict[str, Any]]:
            if path.endswith("/accounts"):
                return [{"id": account, "type": "Microsoft.CognitiveServices/accounts"}]
            if path.endswith("/a/deployments"):
                names = (("g", "OpenAI", "gpt-4o"), ("l", "Meta", "Llama-3.3-70B-Instruct"))
                return [{"id": f"{account}/deployments/{name}", "properties": {"model": {"format": sold, "name": model}}} for name, sold, model in names]
            return []

        def arm_get(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {}

    listing = inventory.read(Arm(), "s", known=(), measured={}, now=datetime(2026, 11, 1, tzinfo=UTC))
    assert [each["id"].rpartition("/")[2] for each in listing.objects] == ["a", "l"]
    assert listing.skipped == {"deployments of other models": 1}
