"""What ``meterbridge doctor`` finds out about an Azure, and the fix beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from collector import doctor
from collector.azure import checks
from collector.azure.client import Azure, AzureSettings
from collector.azure.simulator import Export, InventedWorld, Simulator
from collector.doctor import Finding
from collector.settings import Settings
from models import sources
from models.errors import DomainError, Forbidden, UpstreamError
from models.sources import PullState
from models.store import Store
from models.usage import UsageArrival

NOW = datetime(2026, 10, 5, 6, tzinfo=UTC)
SCIENTIST = {
    "actions": ["Microsoft.MachineLearningServices/workspaces/*/" + each for each in ("read", "action", "delete", "write")],
    "notActions": ["Microsoft.MachineLearningServices/workspaces/delete"],
}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(InventedWorld(1, date(2026, 9, 28), date(2026, 10, 4), subscription_count=1), lambda: NOW, token="secret-token") as made:
        yield made


def looked(store: Store, simulator: Simulator, *, deploy_permissions: bool = False, token: str = "") -> list[Finding]:
    settings = AzureSettings.of(Settings.from_environment(simulator.environment()))
    if token:
        settings = replace(settings, credential=f"static:{token}")
    with Azure(settings, now=lambda: NOW, sleep=lambda _seconds: None) as azure:
        return list(checks.examine(store, azure, subscriptions=settings.subscriptions, scopes=settings.scopes, now=NOW, deploy_permissions=deploy_permissions))


def of(findings: list[Finding], text: str) -> Finding:
    found = [each for each in findings if text in each.what]
    assert len(found) == 1, [each.what for each in findings]
    return found[0]


def test_all_is_well_but_nothing_was_pulled(store: Store, simulator: Simulator) -> None:
    findings = looked(store, simulator)
    subscription = simulator.estate.subscriptions()[0].id
    assert of(findings, "signed in").what == "Azure: signed in, 1 subscription in sight"
    assert of(findings, "simulated-0").what == f"subscription {subscription} (simulated-0): Microsoft Customer Agreement (AzurePlan_2019-07-01)"
    assert of(findings, "read the inventory").level == "ok"
    assert of(findings, "read costs").level == "ok"
    assert of(findings, "no exports").level == "ok"
    assert [(each.what, each.fix) for each in findings if each.level != "ok"] == [
        (f"{name}: nothing was pulled yet", f"meterbridge sync {name}") for name in ("costs", "inventory", "quotas", "prices", "metrics")
    ]
    # Looking costs nothing of the tenant's budget.
    assert set(simulator.counted()) == {"list", "exports"}


def test_a_token_that_is_refused_ends_the_look_at_azure(store: Store, simulator: Simulator) -> None:
    findings = looked(store, simulator, token="another")
    assert (findings[0].level, "az login" in findings[0].fix) == ("failure", True)
    assert "another" not in "".join(each.line() for each in findings)
    assert not [each for each in findings if "may " in each.what]
    assert of(findings, "throttling").level == "ok"


def test_missing_roles_are_named_with_the_command(store: Store, simulator: Simulator) -> None:
    simulator.manager.actions = ["Microsoft.Resources/subscriptions/read"]
    findings = looked(store, simulator)
    scope = f"subscriptions/{simulator.estate.subscriptions()[0].id}"
    assert of(findings, "may not read the inventory").fix == f"az role assignment create --assignee <identity> --role Reader --scope /{scope}"
    costs = of(findings, "may not read costs")
    assert costs.level == "failure"
    assert costs.fix == (
        f"az role assignment create --assignee <identity> --role 'Cost Management Reader' --scope /{scope}"
        "; with an Enterprise Agreement also turn on 'AO view charges'"
    )


@pytest.mark.parametrize(
    ("quota_id", "level", "said"),
    [
        ("PayAsYouGo_2014-09-01", "ok", "pay-as-you-go"),
        ("EnterpriseAgreement_2014-09-01", "ok", "Enterprise Agreement"),
        ("MSDNDevTest_2014-09-01", "ok", "Enterprise Dev/Test"),
        ("MSDN_2014-09-01", "failure", "it cannot deploy models"),
        ("FreeTrial_2014-09-01", "failure", "free trial"),
        ("Sponsored_2016-01-01", "failure", "it cannot deploy models"),
        ("Novel_2027-01-01", "warning", "is not known"),
        ("", "warning", "(none told)"),
    ],
)
def test_the_agreement_is_told_from_the_offer(store: Store, quota_id: str, level: str, said: str) -> None:
    finding = of(list(examine(store, Told({"/subscriptions/s1": subscription(quota_id)}))), "subscription s1 (Team)")
    assert (finding.level, said in finding.what, bool(finding.fix)) == (level, True, level != "ok")


def test_a_subscription_that_is_off_or_hidden(store: Store) -> None:
    off = subscription("PayAsYouGo_2014-09-01") | {"state": "Warned"}
    assert "is Warned" in of(list(examine(store, Told({"/subscriptions/s1": off}))), "subscription s1 (Team)").what
    hidden = of(list(examine(store, Told({"/subscriptions/s1": Forbidden("no")}))), "subscription s1:")
    assert hidden.fix == (
        "correct METERBRIDGE_AZURE_SUBSCRIPTIONS, or: az role assignment create --assignee <identity> --role Reader --scope /subscriptions/s1"
    )


def test_azure_that_is_away(store: Store) -> None:
    away = list(examine(store, Told({"/subscriptions": UpstreamError("Azure could not be reached", retryable=True)})))
    assert (away[0].level, "METERBRIDGE_AZURE_ARM_URL" in away[0].fix) == ("failure", True)


def test_exports_are_listed_and_a_billing_account_has_roles_of_its_own(store: Store) -> None:
    scope = "providers/Microsoft.Billing/billingAccounts/7"
    path = f"/{scope}/providers/Microsoft.CostManagement/exports"
    found = list(checks.examine(store, Told({path: [{"name": "focus-daily"}, {"name": "actual"}]}), subscriptions=(), scopes=(scope,), now=NOW))
    assert of(found, "exports").what == f"{scope}: exports actual, focus-daily"
    refused = of(list(checks.examine(store, Told({path: Forbidden("no")}), subscriptions=(), scopes=(scope,), now=NOW)), "may not be listed")
    assert "Enterprise Administrator, read only" in refused.fix


def test_the_kind_of_a_billing_account_is_said_and_one_of_the_portal_is_read_by_subscription(store: Store) -> None:
    scope = "providers/Microsoft.Billing/billingAccounts/7"

    def told(kind: str) -> Finding:
        answers = {f"/{scope}": {"properties": {"agreementType": kind}}, f"/{scope}/providers/Microsoft.CostManagement/exports": []}
        found = list(checks.examine(store, Told(answers), subscriptions=(), scopes=(f"{scope}/billingProfiles/p",), now=NOW))
        return of([each for each in found if "exports" not in each.what], "p: ")

    assert told("EnterpriseAgreement") == Finding("ok", f"{scope}/billingProfiles/p: Enterprise Agreement")
    assert told("MicrosoftCustomerAgreement").what.endswith("Microsoft Customer Agreement")
    payg = told("MicrosoftOnlineServicesProgram")
    assert (payg.level, "METERBRIDGE_AZURE_SUBSCRIPTIONS" in payg.fix) == ("failure", True)


def test_the_files_of_an_export_need_a_role_of_their_own_which_is_named_with_its_command(store: Store, simulator: Simulator) -> None:
    subscription = simulator.estate.subscriptions()[0].id
    simulator.costs.exports = (Export("focus-daily", f"/subscriptions/{subscription}"),)
    container = f"subscriptions/{subscription}/resourceGroups/rg-costs/providers/Microsoft.Storage/storageAccounts/stcostexports/blobServices/default/containers/exports"
    finding = of(looked(store, simulator), "the files of the export focus-daily")
    assert (finding.level, finding.fix) == (
        "warning",
        f"az role assignment create --assignee <identity> --role 'Storage Blob Data Reader' --scope /{container}",
    )
    simulator.manager.rights = {container.casefold(): [{"actions": [], "dataActions": [checks.READ_BLOBS]}]}
    assert of(looked(store, simulator), "the files of the export focus-daily").level == "ok"


def denial(*actions: str, **more: Any) -> dict[str, Any]:
    """A deny assignment as Azure lists it."""
    everybody = [{"id": "00000000-0000-0000-0000-000000000000", "type": "SystemDefined"}]
    said = {"denyAssignmentName": "Locked by stack", "scope": "/subscriptions/s", "permissions": [{"actions": list(actions)}], "principals": everybody}
    return {"id": "/subscriptions/s/providers/Microsoft.Authorization/denyAssignments/d1", "name": "d1", "properties": said | more}


@pytest.mark.parametrize(
    ("made", "level", "said"),
    [
        (denial("Microsoft.CostManagement/*"), "failure", "takes Microsoft.CostManagement/query/read from everybody"),
        (denial("*/read", excludePrincipals=[{"id": "1"}]), "warning", "from some"),
        (denial("*/read", principals=[{"id": "2"}]), "warning", "from some"),
    ],
)
def test_a_deny_assignment_wins_over_every_role(store: Store, simulator: Simulator, made: dict[str, Any], level: str, said: str) -> None:
    simulator.manager.denials = [made, denial("Microsoft.Storage/*")]
    found = of(looked(store, simulator), "takes Microsoft.CostManagement/query/read")
    assert (found.level, said in found.what, "'Locked by stack' on /subscriptions/s" in found.what) == (level, True, True)
    assert "az rest --method get --url '/subscriptions/s/providers/Microsoft.Authorization/denyAssignments/d1?api-version=2022-04-01'" in found.fix
    assert not [each for each in looked(store, simulator) if "may read costs" in each.what]


def test_a_denied_deployer_is_told_which_permission(store: Store, simulator: Simulator) -> None:
    simulator.manager.actions = ("*",)
    simulator.manager.denials = [denial("Microsoft.SaaS/resources/write")]
    findings = looked(store, simulator, deploy_permissions=True)
    assert {each.level for each in findings if "takes Microsoft.SaaS/resources/write" in each.what} == {"failure"}
    assert not [each for each in findings if "deploying: all" in each.what and each.what.endswith("/rg-Models")]


# -- the nine permissions -------------------------------------------------------------------------


def test_a_reader_lacks_all_that_deploying_needs_and_is_told_the_command(store: Store, simulator: Simulator) -> None:
    simulator.manager.actions = ["*/read"]
    findings = [each for each in looked(store, simulator, deploy_permissions=True) if each.what.startswith("deploying")]
    root = f"subscriptions/{simulator.estate.subscriptions()[0].id}"
    missing = {each.what.split()[2] for each in findings if each.level == "failure"}
    # Four of the nine are reads, which a reader has.
    assert missing == {each.action for each in checks.NEEDS if not each.action.endswith("/read")}
    sign = next(each for each in findings if "sign/action" in each.what)
    assert sign.fix == f"az role assignment create --assignee <identity> --role Contributor --scope /{root}"
    endpoints = next(each for each in findings if "serverlessEndpoints/*" in each.what)
    assert "--role 'AzureML Data Scientist'" in endpoints.fix
    assert "/providers/Microsoft.MachineLearningServices/workspaces/" in endpoints.fix


def test_a_contributor_of_the_subscription_has_all_nine(store: Store, simulator: Simulator) -> None:
    simulator.manager.actions, simulator.manager.not_actions = ["*"], ["Microsoft.Authorization/*/Write", "Microsoft.Authorization/*/Delete"]
    findings = [each for each in looked(store, simulator, deploy_permissions=True) if each.what.startswith("deploying")]
    assert {each.level for each in findings} == {"ok"}
    assert len(checks.NEEDS) == 9


def test_rights_are_asked_for_where_they_count(store: Store, simulator: Simulator) -> None:
    listed = [each["id"].strip("/").casefold() for each in simulator.estate.objects(NOW) if each["type"].casefold().endswith("services/workspaces")]
    simulator.manager.actions = ["*"]
    simulator.manager.rights = {listed[0]: [{"actions": ["*/read"]}]}
    failures = [each for each in looked(store, simulator, deploy_permissions=True) if each.level == "failure"]
    assert len(failures) == 2
    assert all(listed[0] in each.what.casefold() for each in failures)


@pytest.mark.parametrize(
    ("blocks", "action", "is_held"),
    [
        ([{"actions": ["*/read"]}], "Microsoft.SaaS/resources/read", True),
        ([{"actions": ["microsoft.saas/RESOURCES/*"]}], "Microsoft.SaaS/resources/write", True),
        ([{"actions": ["Microsoft.SaaS/resources"]}], "Microsoft.SaaS/resources/write", False),
        ([{"actions": ["*"], "notActions": ["Microsoft.SaaS/*"]}], "Microsoft.SaaS/register/action", False),
        # What one role leaves out another still gives.
        ([{"actions": ["*"], "notActions": ["Microsoft.SaaS/*"]}, {"actions": ["*/action"]}], "Microsoft.SaaS/register/action", True),
        ([SCIENTIST], "Microsoft.MachineLearningServices/workspaces/serverlessEndpoints/*", True),
        ([{"actions": ["*/read"]}], "Microsoft.MachineLearningServices/workspaces/serverlessEndpoints/*", False),
        # A part that is left out is missing from the whole.
        ([{"actions": ["*"], "notActions": ["*/serverlessEndpoints/delete"]}], "Microsoft.MachineLearningServices/workspaces/serverlessEndpoints/*", False),
        ([{"actions": ["*"], "notActions": ["*/onlineEndpoints/delete"]}], "Microsoft.MachineLearningServices/workspaces/serverlessEndpoints/*", True),
        ([{"actions": ["Microsoft.SaaS/resources.read"]}], "Microsoft.SaaS/resources/read", False),
        ([{}], "Microsoft.SaaS/resources/read", False),
        ([], "Microsoft.SaaS/resources/read", False),
    ],
)
def test_wildcards_and_what_is_left_out(blocks: list[dict[str, Any]], action: str, is_held: bool) -> None:
    assert checks.allows(blocks, action) is is_held


# -- what was pulled ------------------------------------------------------------------------------


def ran(store: Store, source: str, state: PullState, at: datetime, *, scope: str = "", message: str = "", calls: int = 0, throttles: int = 0) -> None:
    with store.write() as session:
        row = sources.begin(session, source, scope, now=at)
        sources.finish(session, row.id or 0, state, now=at, message=message, calls=calls, throttles=throttles)


def test_the_age_of_the_newest_pull_and_its_failure(store: Store) -> None:
    ran(store, "inventory", PullState.DONE, NOW - timedelta(hours=47))
    ran(store, "quotas", PullState.DONE, NOW - timedelta(hours=49))
    ran(store, "prices", PullState.DONE, NOW - timedelta(days=1))
    ran(store, "prices", PullState.FAILED, NOW, message="status 503")
    findings = list(examine(store, Told({})))
    assert of(findings, "inventory: pulled").level == "ok"
    assert of(findings, "quotas: pulled").what == "quotas: pulled whole last on 2026-10-03T05:00:00Z"
    assert of(findings, "prices: ").what == "prices: the last pull failed (status 503); the one of 2026-10-04T06:00:00Z stands"


def test_of_bills_those_are_looked_at_that_are_asked_for(store: Store) -> None:
    ran(store, "costs", PullState.FAILED, NOW, scope="subscriptions/misspelt", message="404 SubscriptionNotFound")
    ran(store, "costs", PullState.DONE, NOW - timedelta(hours=1), scope="subscriptions/a")
    asked = checks.examine(store, Told({}), subscriptions=(), scopes=("subscriptions/a", "subscriptions/new"), now=NOW)
    assert [(each.level, each.what) for each in asked if each.what.startswith("costs")] == [
        ("warning", "costs of subscriptions/new: nothing was pulled yet"),
        ("ok", "costs of subscriptions/a: pulled 2026-10-05T05:00:00Z"),
    ]


def test_headroom_is_what_the_last_hour_left(store: Store) -> None:
    assert of(list(examine(store, Told({}))), "throttling").what == (
        "throttling: 600 of 600 cost calls left this hour, throttled 0 times by the runs of the last day"
    )
    ran(store, "costs", PullState.DONE, NOW - timedelta(minutes=30), calls=451)
    tight = of(list(examine(store, Told({}))), "throttling")
    assert (tight.level, tight.what[:24], bool(tight.fix)) == ("warning", "throttling: 149 of 600 c", True)


# -- the command ----------------------------------------------------------------------------------


def test_doctor_looks_at_azure_only_where_one_is_set_up(store: Store, simulator: Simulator) -> None:
    plain = list(doctor.examine(store, Settings.from_environment({}), now=NOW, is_service_running=False))
    assert not [each for each in plain if "Azure:" in each.what]
    asked = list(doctor.examine(store, Settings.from_environment({}), now=NOW, is_service_running=False, deploy_permissions=True))
    assert "METERBRIDGE_AZURE_SUBSCRIPTIONS" in asked[-1].fix
    settings = Settings.from_environment(simulator.environment())
    found = list(doctor.examine(store, settings, now=NOW, is_service_running=False, deploy_permissions=True))
    assert [each for each in found if each.what.startswith("Azure: signed in")]
    assert [each for each in found if each.what.startswith("deploying")]
    wrong = list(doctor.examine(store, replace(settings, azure_credential="mine"), now=NOW, is_service_running=False))
    assert "METERBRIDGE_AZURE_CREDENTIAL must be" in wrong[-1].what


@pytest.mark.parametrize(("seconds", "is_ahead"), [(300, False), (301, True)])
def test_an_arrival_ahead_of_the_clock(store: Store, seconds: int, is_ahead: bool) -> None:
    at = NOW + timedelta(seconds=seconds)
    hour = int(at.replace(minute=0, second=0).timestamp())
    with store.write() as session:
        session.add(UsageArrival(arrived_at=hour, happened_on=20731, writer=0, events=1, last_seq=1, last_received_at=at))
    found = list(doctor.examine(store, Settings.from_environment({}), now=NOW, is_service_running=False))
    assert bool([each for each in found if "events arrived later" in each.what]) is is_ahead


def subscription(quota_id: str) -> dict[str, Any]:
    return {"displayName": "Team", "state": "Enabled", "subscriptionPolicies": {"quotaId": quota_id}}


def examine(store: Store, azure: Told) -> Iterator[Finding]:
    return checks.examine(store, azure, subscriptions=("s1",), scopes=(), now=NOW)


class Told:
    """An Azure that says what it is told to, for what no simulator refuses."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers

    def _answer(self, path: str, default: Any) -> Any:
        found = self._answers.get(path, default)
        if isinstance(found, DomainError):
            raise found
        return found

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self._answer(path, subscription("AzurePlan_2019-07-01"))
        return found

    def arm_list(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._answer(path, [])
        return found
