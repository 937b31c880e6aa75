import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from collector.azure.simulator import shapes
from collector.registry import Changes, InventoryImport, OwnerImport, import_inventory, import_owners, set_owners
from models import ledger
from models.errors import InvalidInput
from models.matching import Registry
from models.quotas import EndpointFact
from models.resources import DeploymentFact, Mode, Owner, Route, Workspace, WorkspaceFact
from models.store import Store

AZURE = Path(__file__).parents[1] / "data" / "azure"
SUBSCRIPTION = "11111111-1111-4111-8111-111111111111"
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
CREATED = datetime(2025, 2, 10, 9, tzinfo=UTC)


def azure(*names: str) -> list[tuple[str, bytes]]:
    return [(name, (AZURE / f"{name}.json").read_bytes()) for name in names]


def inventory(store: Store, *files: str | tuple[str, bytes], now: datetime = NOW, replace: bool = False) -> InventoryImport:
    with store.write() as session:
        return import_inventory(
            session, [("inventory.csv", file.encode()) if isinstance(file, str) else file for file in files], now=now, author="ana", replace=replace
        )


def owners(store: Store, content: str, *, now: datetime = NOW, replace: bool = False, name: str = "owners.csv") -> OwnerImport:
    with store.write() as session:
        return import_owners(session, [(name, content.encode())], now=now, author="ana", replace=replace)


def facts(store: Store, table: type[Any] = DeploymentFact, *, as_of: datetime | None = None) -> list[Any]:
    with store.read() as session:
        rows = list(session.exec(select(table).order_by(col(table.id))))
        session.expunge_all()
    if as_of is None:
        return [row for row in rows if row.known_to is None]
    return [row for row in rows if row.known_from <= as_of and (row.known_to is None or row.known_to > as_of)]


def counts(store: Store, *, as_of: datetime | None = None) -> dict[tuple[datetime | None, datetime | None], int | None]:
    return {(fact.valid_from, fact.valid_to): fact.instance_count for fact in facts(store, as_of=as_of)}


def refusal(store: Store, *files: str | tuple[str, bytes], replace: bool = False) -> str:
    with pytest.raises(InvalidInput) as refused:
        inventory(store, *files, replace=replace)
    assert facts(store) == []
    return refused.value.message


# -- Azure's own replies ------------------------------------------------------------------------


def test_azure_lists_become_deployments_named_as_azure_names_them(store: Store) -> None:
    result = inventory(store, *azure("online_endpoints", "online_deployments", "serverless_endpoints", "marketplace_subscriptions"))
    assert result.deployments == Changes(added=6)
    by_name = {fact.name: fact for fact in facts(store)}
    assert sorted(by_name) == [
        "llama-31-405b-prod",
        "llama-31-8b-old",
        "llama-31-8b-prod",
        "llama-8b-managed/blue",
        "llama-8b-managed/canary",
        "llama-8b-managed/green",
    ]
    blue = by_name["llama-8b-managed/blue"]
    assert (blue.workspace, blue.endpoint, blue.deployment) == ("ws-llama-prod", "llama-8b-managed", "blue")
    assert (blue.mode, blue.route, blue.sku, blue.instance_count) == (Mode.MANAGED_COMPUTE, Route.COMPUTE, "Standard_NC24ads_A100_v4", 2)
    assert (blue.model, blue.region, blue.state, blue.valid_from, blue.valid_to) == ("Meta-Llama-3.1-8B-Instruct", "eastus2", "Succeeded", CREATED, None)
    assert (blue.source, blue.author, blue.known_from) == ("inventory", "ana", NOW)
    served = by_name["llama-31-405b-prod"]
    assert (served.endpoint, served.deployment, served.mode, served.route) == ("llama-31-405b-prod", "llama-31-405b-prod", Mode.SERVERLESS, Route.MARKETPLACE)
    assert (served.model, served.sku, served.instance_count) == ("Meta-Llama-3.1-405B-Instruct", None, None)
    assert (served.offer_id, served.plan_id) == ("meta-llama-3-1-405b-instruct-offer", "meta-llama-3-1-405b-instruct-plan")
    assert (served.state, by_name["llama-31-8b-old"].state) == ("Online", "Suspended")
    (workspace,) = facts(store, WorkspaceFact)
    assert (workspace.workspace, workspace.kind, workspace.subscription_id, workspace.resource_group, workspace.region) == (
        "ws-llama-prod",
        "workspace",
        SUBSCRIPTION,
        "rg-ai-prod",
        "eastus2",
    )
    with store.read() as session:
        assert [(row.name, row.first_seen_at) for row in session.exec(select(Workspace))] == [("ws-llama-prod", NOW)]


def test_azure_lists_tell_of_the_addresses_and_the_traffic_of_endpoints(store: Store) -> None:
    inventory(store, *azure("online_endpoints", "online_deployments", "serverless_endpoints"))
    told = {fact.endpoint: fact for fact in facts(store, EndpointFact)}
    managed, serverless = told["llama-8b-managed"], told["llama-31-405b-prod"]
    assert (managed.workspace, managed.subscription_id, managed.host, managed.region) == (
        "ws-llama-prod",
        SUBSCRIPTION,
        "llama-8b-managed.eastus2.inference.ml.azure.com",
        "eastus2",
    )
    # No pull has measured its instances: the next one begins at their creation.
    assert (managed.traffic, managed.created_at, managed.known_from, managed.seen_at) == ({"blue": 90, "green": 10}, CREATED, NOW, None)
    assert (serverless.host, serverless.traffic) == ("llama-31-405b-prod.eastus2.models.ai.azure.com", {})

    (_, content), *others = azure("online_endpoints", "online_deployments", "serverless_endpoints")
    reply = json.loads(content)
    reply["value"][0]["properties"]["traffic"] = {"blue": 50, "green": 50}
    inventory(store, ("endpoints.json", json.dumps(reply).encode()), *others, now=LATER)
    looks = sorted((fact.known_from, fact.traffic) for fact in facts(store, EndpointFact) if fact.endpoint == "llama-8b-managed")
    assert looks == [(LATER, {"blue": 50, "green": 50})]
    assert [fact.traffic for fact in facts(store, EndpointFact, as_of=NOW) if fact.endpoint == "llama-8b-managed"] == [{"blue": 90, "green": 10}]

    inventory(store, *azure("online_deployments"), now=LATER + timedelta(days=1), replace=True)
    assert [fact.endpoint for fact in facts(store, EndpointFact)] == ["llama-8b-managed"]


@pytest.mark.parametrize("traffic", [["blue"], {"blue": "90"}, {"blue": 101}, {"blue": True}])
def test_traffic_that_is_no_share_is_refused_by_name(sqlite_store: Store, traffic: Any) -> None:
    ((_, content),) = azure("online_endpoints")
    reply = json.loads(content)
    reply["value"][0]["properties"]["traffic"] = traffic
    assert "endpoints.json object 1: properties.traffic is not a share" in refusal(sqlite_store, ("endpoints.json", json.dumps(reply).encode()))


def test_the_same_lists_again_change_nothing(store: Store) -> None:
    files = azure("online_deployments", "serverless_endpoints", "marketplace_subscriptions", "online_deployments_shared_quota")
    inventory(store, *files)
    before = [fact.model_dump() for table in (DeploymentFact, WorkspaceFact) for fact in facts(store, table)]
    result = inventory(store, *files, now=LATER, replace=True)
    assert (result.deployments, result.workspaces) == (Changes(unchanged=7), Changes(unchanged=2))
    assert [fact.model_dump() for table in (DeploymentFact, WorkspaceFact) for fact in facts(store, table)] == before
    with store.read() as session:
        assert len(session.exec(select(DeploymentFact)).all()) == 7


def test_an_offer_is_found_by_model_where_the_endpoint_names_no_subscription(sqlite_store: Store) -> None:
    (_, endpoints), offers = azure("serverless_endpoints", "marketplace_subscriptions")
    reply = json.loads(endpoints)
    for endpoint in reply["value"]:
        del endpoint["properties"]["marketplaceSubscriptionId"]
    inventory(sqlite_store, ("endpoints.json", json.dumps(reply).encode()), offers)
    assert {fact.offer_id for fact in facts(sqlite_store)} == {"meta-llama-3-1-405b-instruct-offer", "meta-llama-3-1-8b-instruct-offer"}


def account(*deployments: dict[str, Any], location: str = "Sweden Central") -> list[dict[str, Any]]:
    id_ = f"/subscriptions/{SUBSCRIPTION.upper()}/resourceGroups/RG-Foundry/providers/Microsoft.CognitiveServices/accounts/Contoso-AI"
    return [
        {"id": id_, "type": "Microsoft.CognitiveServices/accounts", "location": location, "kind": "AIServices"},
        *({**deployment, "id": f"{id_}/deployments/{deployment['name']}"} for deployment in deployments),
    ]


def test_a_foundry_account_is_a_workspace_and_its_deployments_are_serverless(store: Store) -> None:
    deployment = {
        "name": "Llama-3.3-70B-Instruct",
        "type": "Microsoft.CognitiveServices/accounts/deployments",
        "sku": {"name": "GlobalStandard", "capacity": 100},
        "properties": {"model": {"format": "Meta", "name": "Llama-3.3-70B-Instruct", "version": "9"}, "provisioningState": "Succeeded"},
        "systemData": {"createdAt": "2026-03-01T08:00:00.1234567Z"},
    }
    inventory(store, ("account.json", json.dumps(account(deployment)).encode()))
    (fact,) = facts(store)
    assert (fact.workspace, fact.name, fact.mode, fact.route) == ("Contoso-AI", "Llama-3.3-70B-Instruct", Mode.SERVERLESS, Route.FOUNDRY)
    assert (fact.model, fact.sku, fact.instance_count, fact.region) == ("Llama-3.3-70B-Instruct", None, None, "swedencentral")
    assert fact.valid_from == datetime(2026, 3, 1, 8, 0, 0, 123456, tzinfo=UTC)
    (workspace,) = facts(store, WorkspaceFact)
    assert (workspace.workspace, workspace.kind, workspace.subscription_id, workspace.resource_group) == (
        "Contoso-AI",
        "foundry_account",
        SUBSCRIPTION,
        "rg-foundry",
    )


def test_one_azure_object_on_its_own_is_taken(sqlite_store: Store) -> None:
    (_, content) = azure("online_deployments_shared_quota")[0]
    inventory(sqlite_store, ("show.json", json.dumps(json.loads(content)["value"][0]).encode()))
    assert [fact.name for fact in facts(sqlite_store)] == ["llama-70b-shared/default"]


def test_what_is_not_billed_by_the_endpoint_is_counted_and_left_out(sqlite_store: Store) -> None:
    name, content = azure("online_deployments")[0]
    reply = json.loads(content)
    reply["value"][0]["properties"]["endpointComputeType"] = "Kubernetes"
    reply["value"].append({"id": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/sa"})
    result = inventory(sqlite_store, (name, json.dumps(reply).encode()))
    assert sum(result.ignored.values()) == 2
    assert [fact.deployment for fact in facts(sqlite_store)] == ["green", "canary"]
    assert "1 microsoft.storage/storageaccounts" in result.summary()


def test_an_empty_list_is_nothing(sqlite_store: Store) -> None:
    assert inventory(sqlite_store, ("empty.json", b'{"value": [], "nextLink": null}')).deployments == Changes()


def test_a_page_of_a_list_cannot_replace(sqlite_store: Store) -> None:
    name, content = azure("online_deployments")[0]
    page = {**json.loads(content), "nextLink": "https://management.azure.com/next"}
    assert "nextLink" in refusal(sqlite_store, (name, json.dumps(page).encode()), replace=True)
    assert inventory(sqlite_store, (name, json.dumps(page).encode())).deployments == Changes(added=3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"value": [{"id": "/subscriptions/x"}]}', "object 1: has no Azure resource id"),
        (b'{"value": 3}', "value is not a list"),
        (b'{"value": [', "is not JSON"),
        (b'[{"id": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a"}]', "holds nothing that belongs to an inventory"),
        (
            b'[{"id": "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/onlineEndpoints/e/deployments/d", "sku": {"capacity": "two"}, "systemData": {"createdAt": "yesterday"}}]',
            "sku.capacity is not a whole number; list.json object 1: systemData.createdAt is not an RFC 3339 time",
        ),
    ],
)
def test_a_reply_that_is_not_an_inventory_is_refused(sqlite_store: Store, content: bytes, says: str) -> None:
    assert says in refusal(sqlite_store, ("list.json", content))


def test_one_name_in_two_resource_groups_is_refused(sqlite_store: Store) -> None:
    one, other = (f"/subscriptions/s/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/ws" for group in ("a", "b"))
    assert "resource_group of ws is b, but two.json object 1 says a" in refusal(sqlite_store, ("two.json", json.dumps([{"id": one}, {"id": other}]).encode()))


# -- our own columns ----------------------------------------------------------------------------

FLEET = (
    "workspace,endpoint,deployment,mode,route,model,sku,instance_count,region,subscription_id,resource_group\n"
    "Ws-Ä,managed,blue,managed_compute,,azureml://registries/azureml-meta/models/Meta-Llama-3.1-8B-Instruct/versions/4,Standard_NC24ads_A100_v4,2,East US 2,SUB-1,RG-1\n"
    "Ws-Ä,,scout,serverless,marketplace,Llama-4-Scout-17B-16E-Instruct,,,,sub-1,rg-1\n"
    "acct,,llama-33,,foundry,Llama-3.3-70B-Instruct,,,,sub-2,rg-2\n"
    "Ws-Ä,,managed/green,,,,Standard_NC6s_v3,1,,,\n"
)


def test_a_csv_inventory(store: Store) -> None:
    result = inventory(store, FLEET)
    assert (result.deployments, result.workspaces) == (Changes(added=4), Changes(added=2))
    assert [(fact.workspace, fact.name, fact.mode, fact.route, fact.instance_count, fact.valid_from) for fact in facts(store)] == [
        ("Ws-Ä", "managed/blue", Mode.MANAGED_COMPUTE, Route.COMPUTE, 2, None),
        ("Ws-Ä", "scout", Mode.SERVERLESS, Route.MARKETPLACE, None, None),
        ("acct", "llama-33", Mode.SERVERLESS, Route.FOUNDRY, None, None),
        ("Ws-Ä", "managed/green", Mode.MANAGED_COMPUTE, Route.COMPUTE, 1, None),
    ]
    assert facts(store)[0].model == "Meta-Llama-3.1-8B-Instruct"
    assert [(fact.workspace, fact.kind, fact.subscription_id, fact.resource_group, fact.region) for fact in facts(store, WorkspaceFact)] == [
        ("Ws-Ä", "workspace", "sub-1", "rg-1", "eastus2"),
        ("acct", "foundry_account", "sub-2", "rg-2", None),
    ]


def test_json_says_the_same_as_csv(sqlite_store: Store) -> None:
    rows = [
        {
            "workspace": "ws",
            "endpoint": "e",
            "deployment": "d",
            "mode": "managed_compute",
            "sku": "Standard_NC6s_v3",
            "instance_count": 3,
            "valid_from": "2026-01-01",
            "model": None,
        }
    ]
    inventory(sqlite_store, ("inventory.json", json.dumps(rows).encode()))
    inventory(
        sqlite_store,
        "workspace,endpoint,deployment,mode,sku,instance_count,valid_from\nws,e,d,managed_compute,Standard_NC6s_v3,3,2026-01-01T00:00:00Z\n",
        now=LATER,
    )
    (fact,) = facts(sqlite_store)
    assert (fact.instance_count, fact.valid_from, fact.known_from) == (3, datetime(2026, 1, 1, tzinfo=UTC), NOW)


def test_a_change_without_dates_holds_from_now(store: Store) -> None:
    inventory(store, *azure("online_deployments_shared_quota"))
    result = inventory(store, "workspace,endpoint,deployment,instance_count\nproj-chatbot,llama-70b-shared,default,4\n", now=LATER)
    assert result.deployments == Changes(changed=1)
    assert counts(store) == {(CREATED, LATER): 1, (LATER, None): 4}
    assert counts(store, as_of=NOW) == {(CREATED, None): 1}
    # What the second file did not say still stands.
    assert [fact.sku for fact in facts(store)] == ["Standard_ND96amsr_A100_v4", "Standard_ND96amsr_A100_v4"]
    assert inventory(store, "workspace,endpoint,deployment,instance_count\nproj-chatbot,llama-70b-shared,default,4\n", now=LATER).deployments == Changes(
        unchanged=1
    )


def test_azures_spelling_of_a_size_or_name_is_not_a_change(sqlite_store: Store) -> None:
    inventory(sqlite_store, "workspace,endpoint,deployment,mode,sku,instance_count\nWS,E,d,managed_compute,STANDARD_NC6S_V3,1\n")
    result = inventory(sqlite_store, "workspace,endpoint,deployment,mode,sku,instance_count\nws,e,D,managed_compute,Standard_NC6s_v3,1\n", now=LATER)
    assert result.deployments == Changes(unchanged=1)
    assert [(fact.workspace, fact.name) for fact in facts(sqlite_store)] == [("WS", "E/d")]
    with sqlite_store.read() as session:
        assert session.exec(select(Workspace.name)).all() == ["WS"]


def test_a_deployment_paid_another_way_is_described_anew(sqlite_store: Store) -> None:
    inventory(sqlite_store, "workspace,deployment,mode,sku,instance_count\nws,chat,managed_compute,Standard_NC6s_v3,1\n")
    inventory(sqlite_store, "workspace,deployment,route,model\nws,chat,foundry,Llama-3.3-70B-Instruct\n", now=LATER)
    old, new = facts(sqlite_store)
    assert (old.mode, old.sku, old.instance_count, old.valid_to) == (Mode.MANAGED_COMPUTE, "Standard_NC6s_v3", 1, LATER)
    assert (new.mode, new.route, new.sku, new.instance_count, new.valid_from) == (Mode.SERVERLESS, Route.FOUNDRY, None, None, LATER)


SCALING = (
    "workspace,endpoint,deployment,mode,sku,instance_count,valid_from,valid_to\n"
    "ws,e,blue,managed_compute,Standard_NC6s_v3,1,2026-01-01,2026-06-01\n"
    "ws,e,blue,managed_compute,Standard_NC6s_v3,3,2026-06-01T00:00:00+00:00,\n"
)
JANUARY, JUNE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)


def test_rows_with_dates_restate_the_whole_history(store: Store) -> None:
    inventory(
        store,
        "workspace,endpoint,deployment,mode,sku,instance_count\nws,e,blue,managed_compute,Standard_NC6s_v3,9\nws,e,other,managed_compute,Standard_NC6s_v3,5\n",
    )
    result = inventory(store, SCALING, now=LATER)
    assert result.deployments == Changes(changed=1)
    assert {(fact.deployment, fact.valid_from, fact.valid_to): fact.instance_count for fact in facts(store)} == {
        ("other", None, None): 5,
        ("blue", JANUARY, JUNE): 1,
        ("blue", JUNE, None): 3,
    }
    assert sorted(fact.instance_count for fact in facts(store, as_of=NOW)) == [5, 9]
    assert inventory(store, SCALING, now=LATER + timedelta(days=1)).deployments == Changes(unchanged=1)


def test_a_change_splits_only_the_part_that_is_in_force(sqlite_store: Store) -> None:
    inventory(sqlite_store, SCALING.replace("Standard_NC6s_v3,3,2026-06-01T00:00:00+00:00,", "Standard_NC6s_v3,3,2026-06-01,2027-01-01"))
    inventory(sqlite_store, "workspace,endpoint,deployment,instance_count\nws,e,blue,2\n", now=LATER)
    assert counts(sqlite_store) == {(JANUARY, JUNE): 1, (JUNE, LATER): 3, (LATER, datetime(2027, 1, 1, tzinfo=UTC)): 2}


def test_replace_ends_what_the_workspace_no_longer_has(store: Store) -> None:
    inventory(store, "workspace,deployment,mode\na,one,serverless\na,two,serverless\nb,three,serverless\n")
    result = inventory(store, "workspace,deployment,mode\na,one,serverless\n", now=LATER, replace=True)
    assert result.deployments == Changes(unchanged=1, ended=1)
    assert {fact.name: fact.valid_to for fact in facts(store)} == {"one": None, "two": LATER, "three": None}
    again = inventory(store, "workspace,deployment,mode\na,one,serverless\n", now=LATER + timedelta(days=1), replace=True)
    assert again.deployments == Changes(unchanged=1)


def test_what_ended_by_mistake_goes_on_where_azure_says_it_was_there_all_along(sqlite_store: Store) -> None:
    files = azure("online_deployments_shared_quota")
    inventory(sqlite_store, *files)
    inventory(sqlite_store, "workspace\nproj-chatbot\n", now=LATER, replace=True)
    assert [fact.valid_to for fact in facts(sqlite_store)] == [LATER]
    inventory(sqlite_store, *files, now=LATER + timedelta(days=2))
    assert [(fact.valid_from, fact.valid_to) for fact in facts(sqlite_store)] == [(CREATED, LATER), (LATER, None)]


def test_what_ended_comes_back_from_now_where_nobody_says_since_when(sqlite_store: Store) -> None:
    inventory(sqlite_store, "workspace,deployment,mode\na,one,serverless\n")
    inventory(sqlite_store, "workspace\na\n", now=LATER, replace=True)
    back = LATER + timedelta(days=2)
    inventory(sqlite_store, "workspace,deployment,mode\na,one,serverless\n", now=back)
    assert [(fact.valid_from, fact.valid_to) for fact in facts(sqlite_store)] == [(None, LATER), (back, None)]


def test_facts_of_usage_and_bills_are_left_alone(store: Store) -> None:
    with store.write() as session:
        session.add(DeploymentFact(workspace="ws", name="chat", endpoint="chat", deployment="chat", source="bill", known_from=NOW))
        session.add(WorkspaceFact(workspace="ws", subscription_id="sub", source="bill", known_from=NOW))
    inventory(store, "workspace,deployment,mode,region\nws,chat,serverless,eastus\n", now=LATER, replace=True)
    assert [fact.source for fact in facts(store)] == ["bill", "inventory"]
    # The file says nothing of the subscription: no fact of it may outrank the bill's.
    assert [fact.source for fact in facts(store, WorkspaceFact)] == ["bill"]


def test_an_azure_list_and_a_file_complete_each_other(sqlite_store: Store) -> None:
    inventory(
        sqlite_store,
        *azure("serverless_endpoints"),
        "workspace,deployment,retires_at,saas_resource_id\nws-llama-prod,llama-31-8b-old,2026-06-13,/subscriptions/x/saas\n",
    )
    (old,) = [fact for fact in facts(sqlite_store) if fact.name == "llama-31-8b-old"]
    assert (old.retires_at, old.saas_resource_id, old.state) == (datetime(2026, 6, 13, tzinfo=UTC), "/subscriptions/x/saas", "Suspended")
    # A later list that knows no retirement date does not take it away.
    assert inventory(sqlite_store, *azure("serverless_endpoints"), now=LATER).deployments == Changes(unchanged=3)


def test_a_workspace_that_moves_keeps_its_past(store: Store) -> None:
    inventory(store, "workspace,subscription_id,resource_group,region,workspace_kind\nws,sub-1,rg,eastus,workspace\n")
    result = inventory(store, "workspace,subscription_id\nws,SUB-2\n", now=LATER)
    assert result.workspaces == Changes(changed=1)
    assert [(fact.subscription_id, fact.resource_group, fact.valid_from, fact.valid_to) for fact in facts(store, WorkspaceFact)] == [
        ("sub-1", "rg", None, LATER),
        ("sub-2", "rg", LATER, None),
    ]


def test_a_workspace_may_have_a_dated_history_beside_its_deployments(sqlite_store: Store) -> None:
    inventory(
        sqlite_store,
        "workspace,deployment,mode,subscription_id,valid_from,valid_to\nws,,,sub-1,,2026-06-01\nws,,,sub-2,2026-06-01,\nws,chat,serverless,,2026-01-01,\n",
    )
    assert [(fact.subscription_id, fact.valid_from, fact.valid_to) for fact in facts(sqlite_store, WorkspaceFact)] == [
        ("sub-1", None, JUNE),
        ("sub-2", JUNE, None),
    ]
    assert [fact.valid_from for fact in facts(sqlite_store)] == [JANUARY]


HEADER = "workspace,endpoint,deployment,mode,route,sku,instance_count,valid_from,valid_to,workspace_kind\n"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (",e,d,,,,,,,", "workspace is empty"),
        ("ws,,,serverless,,,,,,", "says mode but names no deployment"),
        ("ws,e,d,paygo,,,,,,", "mode is 'paygo'; it must be one of serverless, managed_compute, unknown"),
        ("ws,e,d,managed_compute,marketplace,,,,,", "managed compute is billed by the route compute"),
        ("ws,e,d,serverless,compute,,,,,", "a serverless deployment is billed by"),
        ("ws,e,d,,,,2.5,,,", "instance_count is not a whole number: '2.5'"),
        ("ws,e,d,,,,-1,,,", "instance_count is not a whole number: '-1'"),
        ("ws,e,d,,,,,2026-13-01,,", "valid_from is not a date that exists"),
        ("ws,e,d,,,,,01.02.2026,,", "valid_from is not an RFC 3339 time"),
        ("ws,e,d,,,,,2026-01-01,2026-01-01,", "is not after valid_from"),
        ("ws,e,d,,,,,,,hub", "workspace_kind is 'hub'"),
        ("ws,e,d", "has 3 fields where the header has 10"),
        (f"{'w' * 257},e,d,,,,,,,", "workspace is longer than 256 characters"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(sqlite_store: Store, row: str, says: str) -> None:
    message = refusal(sqlite_store, f"{HEADER}good,,fine,serverless,,,,,,\n{row}\n")
    assert message.startswith("inventory.csv line 3: ")
    assert says in message


def test_overlapping_rows_of_one_deployment_are_refused(sqlite_store: Store) -> None:
    message = refusal(sqlite_store, f"{HEADER}ws,e,d,,,,,2026-01-01,2026-06-02,\nws,x,x,,,,,,,\nWS,e,D,,,,,2026-06-01,,\n")
    assert "inventory.csv line 4: says of the same deployment and time as inventory.csv line 2" in message


def test_contradicting_rows_of_one_deployment_are_refused(sqlite_store: Store) -> None:
    message = refusal(sqlite_store, f"{HEADER}ws,e,d,,,,1,,,\nws,e,d,,,,2,,,\n")
    assert "inventory.csv line 3: instance_count of ws/e/d is 2, but inventory.csv line 2 says 1" in message


def test_columns_are_checked_by_name(sqlite_store: Store) -> None:
    assert "there is no column 'colour'" in refusal(sqlite_store, "workspace,colour\nws,red\n")
    assert "workspace is missing" in refusal(sqlite_store, "deployment\nchat\n")


def test_at_most_twenty_faults_are_shown(sqlite_store: Store) -> None:
    message = refusal(sqlite_store, "workspace,deployment,mode\n" + "ws,d,wrong\n" * 25)
    assert message.count("mode is") == 20
    assert "and 5 more" in message


def test_a_fault_in_one_file_keeps_the_others_out(store: Store) -> None:
    refusal(store, *azure("online_deployments"), "workspace,mode\nws,wrong\n")
    assert facts(store, WorkspaceFact) == []


def test_imports_at_the_same_time_do_not_miss_each_other(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: inventory(store, FLEET), range(4)))
    assert sorted(one.deployments.added for one in done) == [0, 0, 0, 4]
    assert len(facts(store)) == 4


# -- owners -------------------------------------------------------------------------------------

OWNERS = (
    "workspace,deployment,application,tag,team,cost_center\n"
    "ws-llama-prod,llama-8b-managed/blue,,,Search,cc-1001\n"
    ",,chatbot,,Support,\n"
    ",,,project=atlas=2,Research,cc-7\n"
    "ws-lab,,,,,cc-9\n"
)


def test_an_ownership_file(store: Store) -> None:
    assert owners(store, OWNERS).owners == Changes(added=4)
    assert [(row.workspace, row.deployment, row.application, row.tag_key, row.tag_value, row.team, row.cost_center) for row in facts(store, Owner)] == [
        ("ws-llama-prod", "llama-8b-managed/blue", None, None, None, "Search", "cc-1001"),
        (None, None, "chatbot", None, None, "Support", None),
        (None, None, None, "project", "atlas=2", "Research", "cc-7"),
        ("ws-lab", None, None, None, None, None, "cc-9"),
    ]
    assert owners(store, OWNERS, now=LATER).owners == Changes(unchanged=4)


def test_a_new_owner_answers_from_now_on(store: Store) -> None:
    owners(store, OWNERS)
    assert owners(store, "application,team,cost_center\nchatbot,Service,cc-2\n", now=LATER).owners == Changes(changed=1)
    registry = Registry([], [], facts(store, Owner))
    asked: dict[str, Any] = {"workspace": "ws", "deployment": None, "application": "chatbot", "tags": {}, "team": None}
    assert registry.owner(**asked, at=NOW) == ("Support", None)
    assert registry.owner(**asked, at=LATER) == ("Service", "cc-2")


def test_owners_with_dates_restate_their_subject(sqlite_store: Store) -> None:
    owners(sqlite_store, OWNERS)
    history = "application,team,valid_from,valid_to\nchatbot,Old,,2026-06-01\nchatbot,New,2026-06-01,\n"
    assert owners(sqlite_store, history, now=LATER).owners == Changes(changed=1)
    assert [(row.team, row.valid_from, row.valid_to) for row in facts(sqlite_store, Owner) if row.application] == [("Old", None, JUNE), ("New", JUNE, None)]
    assert owners(sqlite_store, history, now=LATER).owners == Changes(unchanged=1)


def test_replacing_owners_ends_the_others(sqlite_store: Store) -> None:
    owners(sqlite_store, OWNERS)
    assert owners(sqlite_store, "application,team\nchatbot,Support\n", now=LATER, replace=True).owners == Changes(unchanged=1, ended=3)
    assert [row.valid_to for row in facts(sqlite_store, Owner)] == [None, LATER, LATER, LATER]


def test_owners_read_elsewhere_follow_the_same_rules(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        assert set_owners(session, [{"tag": "project=atlas", "team": "Research"}], name="owners", now=NOW, author="apply").owners == Changes(added=1)
    assert owners(sqlite_store, '{"owners": [{"tag": "project=atlas", "team": "Research"}]}', name="o.json", now=LATER).owners == Changes(unchanged=1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("ws,chat,bot,,T,", "names deployment and application"),
        (",,,,T,", "names nothing that could be owned"),
        (",,,project,T,", "tag is 'project'; write it as key=value"),
        (",,,=x,T,", "write it as key=value"),
        (",,bot,,,", "names no team and no cost_center"),
    ],
)
def test_an_owner_that_cannot_be_used_is_named(sqlite_store: Store, row: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        owners(sqlite_store, f"workspace,deployment,application,tag,team,cost_center\n{row}\n")
    assert refused.value.message.startswith("owners.csv line 2: ")
    assert says in refused.value.message
    assert facts(sqlite_store, Owner) == []


def test_two_owners_at_once_are_refused(sqlite_store: Store) -> None:
    with pytest.raises(InvalidInput, match=r"owners\.csv line 3: says of the same owned thing and time as owners\.csv line 2"):
        owners(sqlite_store, "application,team,valid_from\nbot,A,2026-01-01\nbot,B,2026-02-01\n")
    with pytest.raises(InvalidInput, match=r"team of bot is B, but owners\.csv line 2 says A"):
        owners(sqlite_store, "application,team\nbot,A\nbot,B\n")


def test_what_azure_deals_out_to_a_foundry_deployment_is_its_limit(sqlite_store: Store) -> None:
    deployment = shapes.foundry_deployment(
        "/subscriptions/s1/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/acct/deployments/chat",
        model="Llama-3.3-70B-Instruct", capacity=250, created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    deployment["properties"]["rateLimits"].append({"key": "images", "renewalPeriod": 60, "count": 3})
    deployment["properties"]["rateLimits"][0] = {"key": "request", "renewalPeriod": 10, "count": 41}
    for _ in range(2):
        with sqlite_store.write() as session:
            import_inventory(session, [("list.json", json.dumps({"value": [deployment]}).encode())], now=NOW, author="tests")
    with sqlite_store.read() as session:
        found = {one.measure: (one.limit, one.limit_source, len(one.limits_said)) for one in ledger.quotas(session, now=NOW) if one.kind == "deployment"}
    assert found == {"tokens_per_minute": (250_000, "azure", 1), "requests_per_minute": (246, "azure", 1)}
