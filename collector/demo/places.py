"""Who and what exists in the sample world: subscriptions, workspaces, deployments, applications, teams, prices.

Names, ids and volumes are invented; shapes, units and token prices are those of Azure. Nothing here depends on the
seed. ``Story`` holds the few dates that something happens on.
"""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

from collector.demo.planted import CALLS_A_DAY, CANARY, INPUT_TOKENS, OUTPUT_TOKENS, Planted
from models.periods import day_start, rfc3339
from models.resources import Mode, Route

# Ids of the sample world are made from names, so that two runs agree on them.
_NAMESPACE = uuid.UUID("6f0d6f2e-52a4-5d0b-9a5c-6d6574657262")


def made_id(*names: str) -> str:
    """A GUID that is always the same for the same names."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(names)))


@dataclass(frozen=True, slots=True)
class Story:
    """When things happen, counted from the day the world was first shown."""

    first_day: date  # of traffic and bills
    scale_up_at: datetime  # llama-8b/blue gets its second instance
    incident_on: date  # a surge runs into the limit of llama-33-70b
    retires_at: datetime  # serverless 3.1 405B
    scout_retires_at: datetime  # announced, still ahead
    refund_on: date
    reorganised_at: datetime  # doc-search changes teams
    repriced_on: date  # from here on Azure bills Maverick output above the list price
    untagged_on: date  # the VM row of llama-70b arrives without its tags
    planted: Planted

    @classmethod
    def told(cls, *, opened_on: date, days: int) -> Story:
        """The dates of a world first shown on that day, with that many whole days behind it."""

        def ago(count: int) -> date:
            return opened_on - timedelta(days=count)

        return cls(
            first_day=ago(days),
            scale_up_at=day_start(ago(35)) + timedelta(hours=10),
            incident_on=ago(17),
            retires_at=day_start(ago(21)),
            scout_retires_at=day_start(opened_on + timedelta(days=70)),
            refund_on=ago(31),
            reorganised_at=day_start(ago(20)),
            repriced_on=ago(12),
            untagged_on=ago(9),
            planted=Planted.told(opened_on),
        )


@dataclass(frozen=True, slots=True)
class Subscription:
    """An Azure subscription and the currency of its bill (prices are in USD everywhere)."""

    id: str
    name: str
    currency: str
    rate: Decimal  # billing currency for one USD
    profile: str
    invoice_section: str
    cost_center: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """An Azure ML workspace or project, or a Foundry account."""

    name: str
    kind: str  # workspace | foundry_account
    subscription: Subscription
    resource_group: str
    region: str
    location: str  # the region as bills spell it

    @property
    def resource_id(self) -> str:
        provider = "Microsoft.CognitiveServices/accounts" if self.kind == "foundry_account" else "Microsoft.MachineLearningServices/workspaces"
        return f"/subscriptions/{self.subscription.id}/resourceGroups/{self.resource_group}/providers/{provider}/{self.name}"


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """USD per million tokens; ``cached`` None where cached input costs as much as any input."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """A VM size: what an hour of one instance costs in USD, and what the bill calls it."""

    sku: str
    cores: int
    hourly: Decimal
    meter: str
    series: str


@dataclass(frozen=True, slots=True)
class Caller:
    """An application as one deployment sees it: its share of the calls, and how long its prompts are."""

    application: str
    share: int
    prompt_percent: int = 100
    tags: tuple[tuple[str, str], ...] = (("env", "prod"),)
    team: str | None = None  # only where the application says it itself


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment and its usual traffic: calls on an ordinary weekday, tokens of an ordinary call."""

    workspace: Workspace
    name: str
    model: str
    calls_a_day: int
    input_tokens: int
    output_tokens: int
    context: int  # the longest prompt it is sent
    hours: str  # a rhythm of ``traffic.RHYTHMS``
    growth_percent: int  # over sixty days
    callers: tuple[Caller, ...]
    endpoint: str = ""  # managed compute only
    size: Size | None = None
    instances: int = 0
    tokens: TokenPrice | None = None
    milliseconds_a_token: int = 18
    unmetered_permille: int = 0  # what Azure bills above the events, per thousand

    @property
    def route(self) -> Route:
        if self.size is not None:
            return Route.COMPUTE
        return Route.FOUNDRY if self.workspace.kind == "foundry_account" else Route.MARKETPLACE

    @property
    def mode(self) -> Mode:
        return Mode.SERVERLESS if self.size is None else Mode.MANAGED_COMPUTE

    @property
    def full_name(self) -> str:
        return f"{self.endpoint}/{self.name}" if self.endpoint else self.name

    @property
    def plan_stem(self) -> str:
        return self.model.lower().replace(".", "-")

    @property
    def resource_id(self) -> str:
        match self.route:
            case Route.COMPUTE:
                return f"{self.workspace.resource_id}/onlineEndpoints/{self.endpoint}/deployments/{self.name}"
            case Route.FOUNDRY:
                return f"{self.workspace.resource_id}/deployments/{self.name}"
            case Route.MARKETPLACE:
                return f"{self.workspace.resource_id}/serverlessEndpoints/{self.name}"

    @property
    def saas_resource_id(self) -> str:
        """The SaaS resource that a Marketplace deployment is charged on; empty for the other routes."""
        if self.route is not Route.MARKETPLACE:
            return ""
        group = f"/subscriptions/{self.workspace.subscription.id}/resourceGroups/{self.workspace.resource_group}"
        return f"{group}/providers/Microsoft.SaaS/resources/{self.model}-{made_id('saas', self.workspace.name, self.model)}"


AMERICAS = Subscription(
    id="a0c0a0c0-0001-4000-8000-00000000c0a1",
    name="contoso-ai",
    currency="USD",
    rate=Decimal(1),
    profile="USDP-0001",
    invoice_section="Americas",
    cost_center="cc-1001",
)
EMEA = Subscription(
    id="b0c0b0c0-0002-4000-8000-00000000c0b2",
    name="contoso-ai-emea",
    currency="EUR",
    rate=Decimal("0.92"),
    profile="EURP-0001",
    invoice_section="EMEA",
    cost_center="cc-2001",
)
SUBSCRIPTIONS = (AMERICAS, EMEA)

ASSIST = Workspace("ws-assist-prod", "workspace", AMERICAS, "rg-ai-prod", "eastus2", "US East 2")
RESEARCH = Workspace("proj-research", "workspace", AMERICAS, "rg-ai-research", "eastus2", "US East 2")
EUROPE = Workspace("ws-emea", "workspace", EMEA, "rg-ai-emea", "swedencentral", "SE Central")
FOUNDRY = Workspace("aif-contoso", "foundry_account", AMERICAS, "rg-ai-foundry", "eastus2", "US East 2")
WORKSPACES = (ASSIST, RESEARCH, EUROPE, FOUNDRY)

# Published token prices (price tables read in 2026, see the bundled price list); the cached prices are the sample
# company's own agreement. VM prices are placeholders near those of 2026.
LLAMA_33_70B = TokenPrice(Decimal("0.71"), Decimal("0.71"), Decimal("0.355"))
MAVERICK = TokenPrice(Decimal("0.25"), Decimal("1.00"), Decimal("0.125"))
SCOUT = TokenPrice(Decimal("0.20"), Decimal("0.78"))
LLAMA_31_405B = TokenPrice(Decimal("5.33"), Decimal("16.00"))
MAVERICK_OUTPUT_BILLED = Decimal("1.10")  # from Story.repriced_on

ONE_A100 = Size("Standard_NC24ads_A100_v4", 24, Decimal("3.673"), "NC24ads A100 v4", "NCadsA100v4 Series")
FOUR_A100 = Size("Standard_NC96ads_A100_v4", 96, Decimal("14.692"), "NC96ads A100 v4", "NCadsA100v4 Series")
ONE_A10 = Size("Standard_NV36ads_A10_v5", 36, Decimal("3.52"), "NV36ads A10 v5", "NVadsA10v5 Series")


def _tags(env: str, feature: str) -> tuple[tuple[str, str], ...]:
    return (("env", env), ("feature", feature))


DEPLOYMENTS = (
    Deployment(
        workspace=FOUNDRY,
        name="llama-33-70b",
        model="Llama-3.3-70B-Instruct",
        calls_a_day=760,
        input_tokens=44_000,
        output_tokens=900,
        context=128_000,
        hours="americas",
        growth_percent=35,
        callers=(
            Caller("support-assistant", 30, 90, _tags("prod", "answer")),
            Caller("support-assistant", 12, 60, _tags("prod", "summary")),
            Caller("doc-search", 14, 140, _tags("prod", "answer")),
            Caller("doc-search", 2, 140, _tags("staging", "answer")),
            Caller("sales-copilot", 6, 80, _tags("prod", "draft")),
        ),
        tokens=LLAMA_33_70B,
    ),
    Deployment(
        workspace=FOUNDRY,
        name="llama-33-70b-batch",
        model="Llama-3.3-70B-Instruct",
        calls_a_day=320,
        input_tokens=52_000,
        output_tokens=1_500,
        context=128_000,
        hours="night",
        growth_percent=20,
        callers=(Caller("ticket-triage", 40, 100, _tags("prod", "classify")), Caller("contract-review", 24, 110, _tags("prod", "extract"))),
        tokens=LLAMA_33_70B,
    ),
    Deployment(
        workspace=FOUNDRY,
        name="llama-4-maverick",
        model="Llama-4-Maverick-17B-128E-Instruct-FP8",
        calls_a_day=460,
        input_tokens=50_000,
        output_tokens=1_900,
        context=160_000,
        hours="americas",
        growth_percent=60,
        callers=(
            Caller("sales-copilot", 30, 70, _tags("prod", "draft")),
            Caller("contract-review", 24, 130, _tags("prod", "compare")),
            Caller("contract-review", 10, 130, _tags("staging", "compare")),
        ),
        tokens=MAVERICK,
        milliseconds_a_token=11,
    ),
    Deployment(
        workspace=FOUNDRY,
        name=CANARY,
        model="Llama-3.3-70B-Instruct",
        calls_a_day=CALLS_A_DAY,
        input_tokens=INPUT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        context=128_000,
        hours="steady",
        growth_percent=0,
        callers=(Caller("canary", 64, 100, _tags("prod", "probe")),),
        tokens=LLAMA_33_70B,
    ),
    Deployment(
        workspace=ASSIST,
        name="llama-4-scout",
        model="Llama-4-Scout-17B-16E-Instruct",
        calls_a_day=460,
        input_tokens=48_000,
        output_tokens=1_500,
        context=160_000,
        hours="americas",
        growth_percent=30,
        callers=(Caller("doc-search", 44, 110, _tags("prod", "rerank")), Caller("support-assistant", 20, 80, _tags("prod", "answer"))),
        tokens=SCOUT,
        milliseconds_a_token=9,
        unmetered_permille=60,
    ),
    Deployment(
        workspace=EUROPE,
        name="llama-4-scout-emea",
        model="Llama-4-Scout-17B-16E-Instruct",
        calls_a_day=340,
        input_tokens=52_000,
        output_tokens=1_600,
        context=160_000,
        hours="europe",
        growth_percent=45,
        callers=(Caller("support-assistant", 40, 90, _tags("prod", "answer")), Caller("contract-review", 24, 120, _tags("prod", "extract"))),
        tokens=SCOUT,
        milliseconds_a_token=9,
    ),
    Deployment(
        workspace=RESEARCH,
        name="llama-31-405b",
        model="Meta-Llama-3.1-405B-Instruct",
        calls_a_day=290,
        input_tokens=52_000,
        output_tokens=1_300,
        context=128_000,
        hours="americas",
        growth_percent=0,
        callers=(
            Caller("research-notebooks", 48, 100, _tags("research", "evaluation"), team="research"),
            Caller("code-review", 16, 80, _tags("prod", "review")),
        ),
        tokens=LLAMA_31_405B,
        milliseconds_a_token=42,
    ),
    Deployment(
        workspace=ASSIST,
        endpoint="llama-8b",
        name="blue",
        model="Meta-Llama-3.1-8B-Instruct",
        calls_a_day=520,
        input_tokens=34_000,
        output_tokens=700,
        context=128_000,
        hours="americas",
        growth_percent=60,
        callers=(Caller("ticket-triage", 44, 100, _tags("prod", "classify")), Caller("support-assistant", 20, 70, _tags("prod", "route"))),
        size=ONE_A100,
        instances=1,
        milliseconds_a_token=8,
    ),
    Deployment(
        workspace=ASSIST,
        endpoint="llama-8b",
        name="green",
        model="Meta-Llama-3.1-8B-Instruct",
        calls_a_day=110,
        input_tokens=22_000,
        output_tokens=700,
        context=128_000,
        hours="americas",
        growth_percent=15,
        callers=(Caller("ticket-triage", 64, 100, _tags("staging", "classify")),),
        size=ONE_A100,
        instances=1,
        milliseconds_a_token=8,
    ),
    Deployment(
        workspace=RESEARCH,
        endpoint="llama-70b",
        name="default",
        model="Meta-Llama-3.1-70B-Instruct",
        calls_a_day=700,
        input_tokens=98_000,
        output_tokens=1_600,
        context=128_000,
        hours="steady",
        growth_percent=40,
        callers=(
            Caller("research-notebooks", 40, 100, _tags("research", "corpus"), team="research"),
            Caller("code-review", 24, 70, _tags("prod", "review")),
        ),
        size=FOUR_A100,
        instances=1,
        milliseconds_a_token=22,
    ),
    Deployment(
        workspace=EUROPE,
        endpoint="guard",
        name="default",
        model="Llama-Guard-3-8B",
        calls_a_day=280,
        input_tokens=5_000,
        output_tokens=40,
        context=32_000,
        hours="europe",
        growth_percent=25,
        callers=(Caller("safety-filter", 64, 100, _tags("prod", "moderation")),),
        size=ONE_A10,
        instances=1,
        milliseconds_a_token=8,
    ),
)

_TEAM_OF = {
    "support-assistant": ("customer-care", "cc-1001"),
    "ticket-triage": ("customer-care", "cc-1001"),
    "sales-copilot": ("knowledge", "cc-1002"),
    "contract-review": ("knowledge", "cc-1002"),
    "research-notebooks": ("research", "cc-1003"),
    "code-review": ("platform", "cc-1004"),
    "canary": ("platform", "cc-1004"),
    "safety-filter": ("platform", "cc-1004"),
}


def instances_over_time(deployment: Deployment, story: Story) -> list[tuple[datetime, int]]:
    """When a managed deployment had how many instances: (from, count), in order."""
    steps = [(day_start(story.first_day), deployment.instances)]
    if deployment.full_name == "llama-8b/blue" and story.scale_up_at > steps[0][0]:
        steps.append((story.scale_up_at, deployment.instances + 1))
    return steps


_INVENTORY_COLUMNS = (
    "workspace,endpoint,deployment,mode,route,model,sku,instance_count,region,subscription_id,resource_group,offer_id,plan_id,"
    "saas_resource_id,resource_id,state,retires_at,valid_from,valid_to,workspace_kind"
)
_OWNER_COLUMNS = "workspace,deployment,application,tag,team,cost_center,valid_from,valid_to"
_PRICE_COLUMNS = "model,meter,unit_price,currency,unit,valid_from,valid_to,workspace,sku,region,source"


def inventory(story: Story) -> bytes:
    """The inventory file: every deployment with its history."""
    rows: list[dict[str, str]] = []
    for deployment in DEPLOYMENTS:
        place = deployment.workspace
        about = {
            "workspace": place.name,
            # A serverless endpoint is its own only deployment.
            "endpoint": deployment.endpoint or deployment.name,
            "deployment": deployment.name,
            "mode": deployment.mode.value,
            "route": deployment.route.value,
            "model": deployment.model,
            "region": place.region,
            "subscription_id": place.subscription.id,
            "resource_group": place.resource_group,
            "resource_id": deployment.resource_id,
            "saas_resource_id": deployment.saas_resource_id,
            "workspace_kind": place.kind,
        }
        if deployment.route is Route.MARKETPLACE:
            about |= {"offer_id": f"{deployment.plan_stem}-offer", "plan_id": f"{deployment.plan_stem}-plan"}
        if deployment.size is not None:
            about["sku"] = deployment.size.sku
            # Without a row of no instances, the first row would hold for all time before it and cost money there.
            steps = [(None, 0), *instances_over_time(deployment, story)]
            ends: list[datetime | None] = [*(at for at, _ in steps[1:]), None]
            for (start, count), end in zip(steps, ends, strict=True):
                rows.append(
                    about
                    | {
                        "instance_count": str(count),
                        "state": "Succeeded" if count else "Creating",
                        "valid_from": rfc3339(start) if start else "",
                        "valid_to": rfc3339(end) if end else "",
                    }
                )
        elif deployment.name == "llama-31-405b":
            retires = rfc3339(story.retires_at)
            rows.append(about | {"state": "Online", "retires_at": retires, "valid_to": retires})
            rows.append(about | {"state": "Suspended", "retires_at": retires, "valid_from": retires})
        else:
            retires = rfc3339(story.scout_retires_at) if deployment.route is Route.MARKETPLACE else ""
            rows.append(about | {"state": "Succeeded" if deployment.route is Route.FOUNDRY else "Online", "retires_at": retires})
    return _csv(_INVENTORY_COLUMNS, rows)


def retirements(story: Story) -> bytes:
    """The announced retirements, as an inventory file that says nothing else; Azure's lists do not tell them."""
    dates = {"Meta-Llama-3.1-405B-Instruct": story.retires_at, "Llama-4-Scout-17B-16E-Instruct": story.scout_retires_at}
    rows = [
        {"workspace": each.workspace.name, "endpoint": each.name, "deployment": each.name, "retires_at": rfc3339(dates[each.model])}
        for each in DEPLOYMENTS
        if each.route is Route.MARKETPLACE
    ]
    return _csv(_INVENTORY_COLUMNS, rows)


def owners(story: Story) -> bytes:
    """The ownership map: applications and two deployments to teams, with one reorganisation."""
    moved = rfc3339(story.reorganised_at)
    rows = [{"application": application, "team": team, "cost_center": center} for application, (team, center) in _TEAM_OF.items()]
    rows += [
        {"application": "doc-search", "team": "knowledge", "cost_center": "cc-1002", "valid_to": moved},
        {"application": "doc-search", "team": "platform", "cost_center": "cc-1004", "valid_from": moved},
        {"workspace": RESEARCH.name, "deployment": "llama-70b/default", "team": "research", "cost_center": "cc-1003"},
        {"workspace": EUROPE.name, "deployment": "guard/default", "team": "platform", "cost_center": "cc-1004"},
    ]
    return _csv(_OWNER_COLUMNS, rows)


def prices() -> bytes:
    """The company's own prices: cached input on Foundry, and the hours of the VM sizes in use."""
    source = "sample price sheet"
    rows = [
        {"model": model, "meter": "cached_input_tokens", "unit_price": str(price.cached), "currency": "USD", "unit": "1M tokens", "source": source}
        for model, price in {each.model: each.tokens for each in DEPLOYMENTS}.items()
        if price is not None and price.cached is not None
    ]
    sizes = {(each.size.sku, each.workspace.region): each.size.hourly for each in DEPLOYMENTS if each.size is not None}
    rows += [
        {"meter": "instance_hours", "unit_price": str(hourly), "currency": "USD", "unit": "1 hour", "sku": sku, "region": region, "source": source}
        for (sku, region), hourly in sizes.items()
    ]
    return _csv(_PRICE_COLUMNS, rows)


def _csv(columns: str, rows: Iterable[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns.split(","), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
