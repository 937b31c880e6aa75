"""A world invented from a seed, with the exact truth of its bill: what a pull must end in, to the last digit.

Every fact of the bill is made of whole numbers (thousandths of a unit, billionths of a dollar, ten-thousandths of a rate),
and the truth is their integer product, so it shares no arithmetic with the rows. How a fact becomes known (late, first
too small, at another price, gone again) follows the virtual date alone; five days past the end of a month nothing moves.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from collector.azure.simulator import shapes
from collector.azure.simulator.estate import ArmObject, BilledRow, CapacityStep, Metric, Minute, Subscription, instances_at, made_id
from collector.azure.simulator.faults import RESTATEMENTS, Fault
from models import money
from models.periods import DAY, day_start, month_start, next_month

_ACCOUNT = f"{made_id('account')}:{made_id('tenant')}_2019-05-31"
_CLOSE = timedelta(days=5)
# Share of the facts that each restatement befalls.
_CHANCES = {Fault.RERATED_DAY: 0.08, Fault.LATE_ROW: 0.06, Fault.VANISHED_ROW: 0.05, Fault.REFUND: 0.04}
_HOURLY_BILLIONTHS = {"Standard_NC24ads_A100_v4": 3_673_000_000, "Standard_ND96amsr_A100_v4": 32_770_000_000}
_RESERVED_BILLIONTHS = 21_300_500_000
_CORES = {"Standard_NC24ads_A100_v4": 24, "Standard_ND96amsr_A100_v4": 96}
_METERS = {"Standard_NC24ads_A100_v4": ("NC24ads A100 v4", "NCadsA100v4 Series"), "Standard_ND96amsr_A100_v4": ("ND96amsr A100 v4", "NDAMSv4 Series")}


class TruthKey(NamedTuple):
    """What the truth is told by; ``deployment`` is None where the bill itself does not say one."""

    subscription: str
    month: date
    currency: str
    resource: str  # lower case
    deployment: str | None
    meter: str
    day: date


@dataclass(frozen=True, slots=True)
class _Place:
    subscription: Subscription
    group: str
    region: str
    location: str
    currency: str
    rate: int  # ten-thousandths of the billing currency for a dollar
    workspace: str
    project: str
    hub: str
    account: str

    def id(self, kind: str, name: str) -> str:
        return f"/subscriptions/{self.subscription.id}/resourceGroups/{self.group}/providers/{kind}/{name}"

    @property
    def workspace_id(self) -> str:
        return self.id(shapes.ML, self.workspace)

    @property
    def project_id(self) -> str:
        return self.id(shapes.ML, self.project)

    @property
    def account_id(self) -> str:
        return self.id(shapes.ACCOUNTS, self.account)

    def saas_id(self, workspace: str, model: str) -> str:
        return self.id("Microsoft.SaaS/resources", f"{model}-{made_id('saas', self.subscription.id, workspace, model)}")


@dataclass(frozen=True, slots=True)
class _Fact:
    """One billed fact in its final form, and from when to when it is told, and how otherwise before."""

    key: str
    place: _Place
    day: date
    quantity: int  # thousandths
    price: int  # billionths of a dollar
    charge_type: str
    fields: tuple[tuple[str, str], ...]
    resource: str
    deployment: str | None
    meter: str
    seen_at: datetime
    gone_at: datetime | None = None
    first_quantity: int | None = None  # until a day after it was first seen
    first_price: int | None = None
    rerated_at: datetime | None = None
    amortized_price: int | None = None  # where it differs from the actual one
    metrics: frozenset[str] = frozenset({"ActualCost", "AmortizedCost"})
    flat_cost: int | None = None  # ten-thousandths in the billing currency: no product of price and quantity

    def is_told(self, at: datetime, metric: Metric) -> bool:
        return metric in self.metrics and self.seen_at <= at and (self.gone_at is None or at < self.gone_at)

    def quantity_at(self, at: datetime) -> int:
        return self.first_quantity if self.first_quantity is not None and at < self.seen_at + DAY else self.quantity

    def price_at(self, at: datetime, metric: Metric) -> int:
        if metric == "AmortizedCost" and self.amortized_price is not None:
            return self.amortized_price
        return self.first_price if self.first_price is not None and self.rerated_at is not None and at < self.rerated_at else self.price


@dataclass(slots=True)
class InventedWorld:
    """Some subscriptions with both billing routes and managed compute; ``restatements`` says which changes of mind occur."""

    seed: object
    first_day: date
    last_day: date
    subscription_count: int = 3
    restatements: Collection[Fault] = RESTATEMENTS
    agreement: Literal["mca", "payg"] = "mca"
    billing_day: int = 1  # on which its bills begin; other than 1 with pay-as-you-go alone
    extra_rows: int = 0  # more small resources a day, to make an answer longer than a page
    _places: tuple[_Place, ...] = field(init=False)
    _facts: dict[tuple[str, date], tuple[_Fact, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._places = tuple(self._place(number) for number in range(self.subscription_count))

    def _place(self, number: int) -> _Place:
        # The second one is billed in euros, the third in yen.
        currency, rate = (("USD", 10_000), ("EUR", 9_217), ("JPY", 1_497_500))[number % 3]
        region, location = (("eastus2", "US East 2"), ("swedencentral", "SE Central"), ("westus3", "US West 3"))[number % 3]
        subscription = Subscription(made_id("subscription", self.seed, number), f"simulated-{number}", self.agreement, self.billing_day)
        return _Place(subscription, "rg-Models", region, location, currency, rate, f"ws-prod-{number}", f"proj-chat-{number}", f"hub-{number}", f"aif-{number}")

    # -- the estate -----------------------------------------------------------------------------

    @property
    def billing_account(self) -> str:
        return f"/providers/Microsoft.Billing/billingAccounts/{_ACCOUNT}"

    def subscriptions(self) -> Sequence[Subscription]:
        return [place.subscription for place in self._places]

    def objects(self, at: datetime) -> Sequence[ArmObject]:
        return [each for place in self._places for each in self._objects(place, at)]

    def _objects(self, place: _Place, at: datetime) -> Iterator[ArmObject]:
        born, region = day_start(self.first_day), place.region
        hub = place.id(shapes.ML, place.hub)
        yield shapes.workspace(place.workspace_id, region=region, created_at=born)
        yield shapes.workspace(hub, region=region, created_at=born, kind="Hub")
        yield shapes.workspace(place.project_id, region=region, created_at=born, kind="Project", hub_id=hub)
        yield shapes.account(place.account_id, region=region, created_at=born)
        for parent, name in ((place.workspace_id, "scout-prod"), (place.project_id, "scout-chat")):
            offer = f"{parent}/marketplaceSubscriptions/llama-4-scout"
            yield shapes.offer_subscription(offer, model=_SCOUT, offer=f"{_SCOUT_STEM}-offer", plan=f"{_SCOUT_STEM}-plan", created_at=born)
            yield shapes.serverless_endpoint(
                f"{parent}/serverlessEndpoints/{name}", region=region, model=_SCOUT, state="Online", offer_subscription_id=offer, created_at=born
            )
        for name, model in (("llama-33-70b", _LLAMA), ("maverick", _MAVERICK)):
            yield shapes.foundry_deployment(f"{place.account_id}/deployments/{name}", model=model, capacity=200, created_at=born)
        online = [(name, count) for name in ("blue", "green") if (count := instances_at(self._steps(place, name), at))]
        endpoint = f"{place.workspace_id}/onlineEndpoints/llama-8b"
        yield shapes.online_endpoint(
            endpoint, region=region, traffic=dict(zip((name for name, _ in online), (100,) if len(online) < 2 else (90, 10), strict=False)), created_at=born
        )
        for name, count in online:
            # Capitals differ between the objects of one list.
            size = _SMALL if name == "blue" else _SMALL.upper()
            yield shapes.online_deployment(f"{endpoint}/deployments/{name}", region=region, model=_LLAMA_8B, size=size, instances=count, created_at=born)
        shared = f"{place.project_id}/onlineEndpoints/llama-70b"
        yield shapes.online_endpoint(
            shared, region=region, traffic={"default": 100}, created_at=born, deletes_at=day_start(self.last_day) + timedelta(hours=30)
        )
        yield shapes.online_deployment(f"{shared}/deployments/default", region=region, model=_LLAMA_70B, size=_LARGE, instances=1, created_at=born)

    def _steps(self, place: _Place, name: str) -> list[CapacityStep]:
        """How many instances a deployment has had, changing on whole hours."""
        born = day_start(self.first_day)
        chance = self._chance("steps", place.subscription.id, name)
        length = max(2, (self.last_day - self.first_day).days)
        if name == "default":
            return [CapacityStep(born, 1)]
        if name == "green":
            gone = born + timedelta(days=chance.randint(length // 2, length), hours=chance.randint(1, 22))
            return [CapacityStep(born, 1), CapacityStep(gone, 0)]
        hours = sorted(chance.sample(range(24, length * 24), 2)) if length > 3 else []
        return [CapacityStep(born, 1), *(CapacityStep(born + timedelta(hours=hour), count) for hour, count in zip(hours, (3, 2), strict=False))]

    def capacity(self, resource_id: str) -> Sequence[CapacityStep]:
        for place in self._places:
            for parent, endpoint, name in (
                (place.workspace_id, "llama-8b", "blue"),
                (place.workspace_id, "llama-8b", "green"),
                (place.project_id, "llama-70b", "default"),
            ):
                if resource_id.casefold() == f"{parent}/onlineEndpoints/{endpoint}/deployments/{name}".casefold():
                    return self._steps(place, name)
        return ()

    def requests(self, resource_id: str, start: datetime, end: datetime) -> Mapping[str, Sequence[Minute]]:
        names = {"llama-8b": ("blue", "green"), "llama-70b": ("default",)}.get(resource_id.rpartition("/")[2].casefold(), ())
        if any(place.account_id.casefold() == resource_id.casefold() for place in self._places):
            names = ("llama-33-70b", "maverick")
        found: dict[str, list[Minute]] = {}
        for name in names:
            at = start.replace(minute=0, second=0, microsecond=0)
            while at < end:
                if at >= start:
                    count = self._chance("requests", resource_id, name, at).randint(1, 90)
                    found.setdefault(name, []).append(Minute(at, count, count * 400, count * 90))
                at += timedelta(minutes=15)
        return found

    def usages(self, subscription_id: str, region: str, *, source: Literal["compute", "ml", "ml_quotas"], at: datetime) -> Sequence[Mapping[str, Any]]:
        place = next(each for each in self._places if each.subscription.id.casefold() == subscription_id.casefold())
        here = place.region == region.casefold()
        used = sum(instances_at(self._steps(place, name), at) for name in ("blue", "green")) * 24 if here else 0
        subscription = f"/subscriptions/{place.subscription.id}"
        if source == "compute":
            return [
                shapes.compute_usage("cores", used=used, limit=350, shown="Total Regional vCPUs"),
                shapes.compute_usage("standardNCADSA100v4Family", used=used, limit=96, shown="Standard NCADSA100v4 Family vCPUs"),
                shapes.compute_usage("standardNDAMSv4_A100Family", used=96 if here else 0, limit=96, shown="Standard NDAMSv4_A100 Family vCPUs"),
                shapes.compute_usage("Standard NCASv3_T4 Family", used=0, limit=16, shown="Standard NCASv3_T4 Family vCPUs"),
            ]
        family = "Standard NCADSA100v4 Family Cluster Dedicated vCPUs"
        return [
            shapes.ml_usage(subscription, "dedicatedCores", "Total Cluster Dedicated Regional vCPUs", used=used, limit=300),
            shapes.ml_usage(subscription, "vmFamily", family, used=used, limit=96),
            # The same cores again, seen from the workspace; never to be added.
            shapes.ml_usage(place.workspace_id, "workspaces", family, used=used, limit=96),
            shapes.ml_usage(place.project_id, "workspace", family, used=0, limit=96),
            shapes.ml_usage(subscription, "lowPriorityCores", "Standard NCADSA100v4 Family Cluster LowPriority vCPUs", used=0, limit=-1),
        ]

    def retail_prices(self) -> Sequence[Mapping[str, Any]]:
        items: list[Mapping[str, Any]] = []
        for region, location in sorted({(place.region, place.location) for place in self._places}):
            for size, (meter, series) in _METERS.items():
                hourly = money.text(Decimal(_HOURLY_BILLIONTHS[size]).scaleb(-9))
                items += [
                    shapes.vm_price(size, meter, series, region=region, location=location, hourly="0.5" if decoy else hourly, decoy=decoy)
                    for decoy in ("", "Spot", "Low Priority", "Windows", "Reservation", "DevTestConsumption", "secondary")
                ]
            items += [shapes.token_price(f"Llama 3.3 70B {end} glbl Tokens", made_id("meter", end), region, location, "0.00071") for end in ("Inp", "Outp")]
        return items

    # -- the bill -------------------------------------------------------------------------------

    def billed(self, subscription_id: str, month: date, *, metric: Metric, at: datetime) -> Sequence[BilledRow]:
        return [self._row(fact, at, metric) for fact in self._month(subscription_id, month) if fact.is_told(at, metric)]

    def truth(self, at: datetime, *, metric: Metric = "ActualCost") -> dict[TruthKey, Decimal]:
        """The exact bill as of an instant: integers multiplied and added, nothing else."""
        sums: dict[TruthKey, int] = {}
        for place in self._places:
            month = month_start(self.first_day)
            while month <= self.last_day:
                for fact in self._month(place.subscription.id, month):
                    if not fact.is_told(at, metric):
                        continue
                    key = TruthKey(place.subscription.id, month, place.currency, fact.resource.lower(), fact.deployment, fact.meter, fact.day)
                    # 10^-3 of a unit × 10^-9 of a dollar × 10^-4 of a rate; a flat amount has 10^-4 only.
                    amount = fact.quantity_at(at) * fact.price_at(at, metric) * place.rate if fact.flat_cost is None else fact.flat_cost * 10**12
                    sums[key] = sums.get(key, 0) + amount
                month = next_month(month)
        return {key: Decimal(amount).scaleb(-16, money.EXACT) for key, amount in sums.items()}

    def totals(self, at: datetime, *, metric: Metric = "ActualCost") -> dict[tuple[str, date, str], Decimal]:
        """The truth by (subscription, month, currency)."""
        found: dict[tuple[str, date, str], Decimal] = {}
        for key, amount in self.truth(at, metric=metric).items():
            short = (key.subscription, key.month, key.currency)
            found[short] = money.plus(found.get(short, money.ZERO), amount)
        return found

    def _month(self, subscription_id: str, month: date) -> tuple[_Fact, ...]:
        key = (subscription_id.casefold(), month)
        if key not in self._facts:
            places = [place for place in self._places if place.subscription.id.casefold() == key[0]]
            self._facts[key] = tuple(fact for place in places for fact in self._invent(place, month))
        return self._facts[key]

    def _invent(self, place: _Place, month: date) -> Iterator[_Fact]:
        end = next_month(month)
        day = max(month, self.first_day)
        first = day
        while day < end and day <= self.last_day:
            for key, lag, values in self._usage(place, day):
                yield from self._known(place, day, key, lag, values)
            day += DAY
        if first >= end or first > self.last_day:
            return
        yield self._storage(place, first)
        yield self._reservation_bought(place, month, first)
        if end <= self.last_day:
            yield self._rounding(place, end - DAY)

    def _usage(self, place: _Place, day: date) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """(key, days until it is told, values) of what was used that day."""
        chance = self._chance("usage", place.subscription.id, day)
        for owner in (place.workspace, place.project):
            for end, price in (("input", 200_000), ("output", 780_000)):
                yield f"{owner}/{end}", 2, self._marketplace(place, owner, end, chance.randint(1_000, 90_000_000), price)
        for name, model, prices in (("llama-33-70b", "Llama 3.3 70B", (710_000, 710_000)), ("maverick", "Llama 4 Maverick", (250_000, 1_000_000))):
            for end, price in zip(("Inp", "Outp"), prices, strict=True):
                yield f"{name}/{end}", 1, self._foundry(place, name, f"{model} {end} glbl Tokens", chance.randint(1_000, 90_000_000), price)
        for name in ("blue", "green"):
            hours = _hours(self._steps(place, name), day)
            if hours:
                tagged = chance.random() > 0.1
                twins = 2 if chance.random() < 0.2 and hours > 1 else 1
                for number in range(twins):
                    part = hours // twins if number else hours - hours // twins * (twins - 1)
                    # Two legal records of one day, meter and resource, apart only in their AdditionalInfo.
                    yield f"{name}/{number}", 1, self._hours_of(place, name, part, is_tagged=tagged, number=number)
        yield from self._reserved(place)
        for number in range(self.extra_rows):
            yield f"extra/{number}", 1, self._foundry(place, f"small-{number:04d}", "Llama 3.3 70B Inp glbl Tokens", chance.randint(1, 9_999), 710_000)

    def _known(self, place: _Place, day: date, key: str, lag: int, values: dict[str, Any]) -> Iterator[_Fact]:
        """The fact as it becomes known, with what the seed lets happen to it."""
        chance = self._chance("known", place.subscription.id, day, key)
        closes = day_start(place.subscription.billed_in(day).end) + _CLOSE
        seen = min(day_start(day + lag * DAY), closes)
        fact = _Fact(key=key, place=place, day=day, seen_at=seen, **values)
        luck = {each: chance.random() < share for each, share in _CHANCES.items()}
        days, partial = chance.randint(2, 6), chance.randint(200, 900)
        is_plain_usage = fact.charge_type == "Usage" and fact.amortized_price is None and fact.metrics == _BOTH
        if not is_plain_usage:
            yield fact
            return
        changes: dict[str, Any] = {}
        if luck[Fault.LATE_ROW] and Fault.LATE_ROW in self.restatements:
            changes["seen_at"] = min(seen + days * DAY, closes)
        elif seen + DAY <= closes and Fault.RERATED_DAY in self.restatements:
            # The first estimate of a day holds only a part of it.
            changes["first_quantity"] = fact.quantity * partial // 1000
        if luck[Fault.RERATED_DAY] and Fault.RERATED_DAY in self.restatements:
            changes |= {"first_price": fact.price * 97 // 100, "rerated_at": min(seen + 2 * days * DAY, closes)}
        yield changed(fact, **changes)
        if luck[Fault.VANISHED_ROW] and Fault.VANISHED_ROW in self.restatements:
            yield changed(fact, key=f"{key}/vanishes", quantity=fact.quantity // 3 + 1, gone_at=min(seen + days * DAY, closes))
        if luck[Fault.REFUND] and Fault.REFUND in self.restatements:
            # Dated as its usage, and equal to it in every field of the documented unique key.
            yield changed(fact, key=f"{key}/refund", quantity=-(fact.quantity // 2), charge_type="Refund", seen_at=min(seen + days * DAY, closes))

    def _marketplace(self, place: _Place, owner: str, end: str, tokens: int, price: int) -> dict[str, Any]:
        product = f"{_SCOUT} - {_SCOUT_STEM}-plan"
        meter = f"{product} - paygo-inference-{end}-tokens"
        resource = place.saas_id(owner, _SCOUT)
        said = {
            "serviceFamily": "SaaS",
            "productOrderId": made_id("order", place.subscription.id, owner),
            "productOrderName": _SCOUT,
            "consumedService": "Microsoft.SaaS",
            "meterId": made_id("meter", meter),
            "meterCategory": "SaaS",
            "meterSubCategory": f"{_SCOUT_STEM}-offer",
            "meterRegion": "Global",
            "ProductName": product,
            "publisherType": "Marketplace",
            "publisherName": "Meta",
            "resourceLocation": "global",
            "location": "Global",
            "unitOfMeasure": "1K",
            "isAzureCreditEligible": "False",
            "term": "1 Month",
        }
        return {
            "quantity": tokens,
            "price": price,
            "charge_type": "Usage",
            "fields": tuple(said.items()),
            "resource": resource,
            "deployment": None,
            "meter": meter,
        }

    def _foundry(self, place: _Place, name: str, meter: str, tokens: int, price: int) -> dict[str, Any]:
        said = {
            "serviceFamily": "AI + Machine Learning",
            "consumedService": "Microsoft.CognitiveServices",
            "meterId": made_id("meter", meter),
            "meterCategory": "Foundry Models",
            "meterSubCategory": "Llama",
            "ProductName": f"Llama Models - {meter.removesuffix(' Tokens')}",
            "publisherType": "Microsoft",
            "publisherName": "Microsoft",
            "resourceLocation": place.region,
            "location": place.location,
            "unitOfMeasure": "1K",
            "tags": json.dumps({"deployment": name}),
        }
        return {
            "quantity": tokens,
            "price": price,
            "charge_type": "Usage",
            "fields": tuple(said.items()),
            "resource": place.account_id,
            "deployment": name,
            "meter": meter,
        }

    def _hours_of(self, place: _Place, name: str, hours: int, *, is_tagged: bool, number: int) -> dict[str, Any]:
        said = _vm_fields(place, _SMALL, number) | {"tags": json.dumps({"azuremlendpoint": "llama-8b", "azuremldeployment": name}) if is_tagged else ""}
        return {
            "quantity": hours * 1000,
            "price": _HOURLY_BILLIONTHS[_SMALL],
            "charge_type": "Usage",
            "fields": tuple(said.items()),
            "resource": place.workspace_id,
            "deployment": f"llama-8b/{name}" if is_tagged else None,
            "meter": _METERS[_SMALL][0],
        }

    def _reserved(self, place: _Place) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """A reservation of two instances of which one is used: nothing in actual cost, all of it in amortized cost."""
        reservation = {"reservationId": made_id("reservation", place.subscription.id), "reservationName": "llama-70b", "pricingModel": "Reservation"}
        tags = {"tags": json.dumps({"azuremlendpoint": "llama-70b", "azuremldeployment": "default"})}
        common = {"price": 0, "amortized_price": _RESERVED_BILLIONTHS, "resource": place.project_id, "meter": _METERS[_LARGE][0], "quantity": 24_000}
        used = _vm_fields(place, _LARGE, 0) | reservation | tags
        yield "reserved", 1, common | {"charge_type": "Usage", "fields": tuple(used.items()), "deployment": "llama-70b/default"}
        unused = _vm_fields(place, _LARGE, 0) | reservation
        only = {"charge_type": "UnusedReservation", "fields": tuple(unused.items()), "deployment": None, "metrics": frozenset({"AmortizedCost"})}
        yield "unused", 1, common | only

    def _reservation_bought(self, place: _Place, month: date, first: date) -> _Fact:
        said = {
            "serviceFamily": "Compute",
            "consumedService": "Microsoft.Capacity",
            "meterId": made_id("meter", "reservation"),
            "meterCategory": "Virtual Machines",
            "meterSubCategory": _METERS[_LARGE][1],
            "ProductName": "Reserved VM Instance, ND96amsr A100 v4",
            "publisherType": "Microsoft",
            "publisherName": "Microsoft",
            "unitOfMeasure": "1",
            "frequency": "Recurring",
            "reservationId": made_id("reservation", place.subscription.id),
            "reservationName": "llama-70b",
            "pricingModel": "Reservation",
        }
        resource = f"/providers/Microsoft.Capacity/reservationOrders/{made_id('order', place.subscription.id)}"
        values: dict[str, Any] = {
            "quantity": 1000,
            "price": 31_098_730 * 10**6,
            "charge_type": "Purchase",
            "resource": resource,
            "deployment": None,
            "meter": "",
        }
        only = frozenset({"ActualCost"})
        return _Fact(key=f"bought/{month}", place=place, day=first, fields=tuple(said.items()), seen_at=day_start(first), metrics=only, **values)

    def _storage(self, place: _Place, first: date) -> _Fact:
        said = {
            "serviceFamily": "Storage",
            "consumedService": "Microsoft.Storage",
            "meterId": made_id("meter", "storage"),
            "meterCategory": "Storage",
            "meterSubCategory": "Tiered Block Blob",
            "ProductName": "Tiered Block Blob - Hot LRS",
            "publisherType": "Microsoft",
            "publisherName": "Microsoft",
            "resourceLocation": place.region,
            "unitOfMeasure": "1 GB/Month",
        }
        resource = place.id("Microsoft.Storage/storageAccounts", "stmodels")
        return _Fact(
            key="storage",
            place=place,
            day=first,
            quantity=412_500,
            price=20_800_000,
            charge_type="Usage",
            fields=tuple(said.items()),
            resource=resource,
            deployment=None,
            meter="Hot LRS Data Stored",
            seen_at=day_start(first + DAY),
        )

    def _rounding(self, place: _Place, last: date) -> _Fact:
        said = {"ProductName": "Rounding Adjustment", "publisherType": "Microsoft", "publisherName": "Microsoft", "frequency": "OneTime"}
        cents = self._chance("rounding", place.subscription.id, last).choice((-100, 100, 200))
        return _Fact(
            key="rounding",
            place=place,
            day=last,
            quantity=0,
            price=0,
            charge_type="RoundingAdjustment",
            fields=tuple(said.items()),
            resource="",
            deployment=None,
            meter="",
            seen_at=day_start(last + 2 * DAY),
            flat_cost=cents,
        )

    def _row(self, fact: _Fact, at: datetime, metric: Metric) -> BilledRow:
        place, day = fact.place, fact.day
        quantity, price = Decimal(fact.quantity_at(at)).scaleb(-3), Decimal(fact.price_at(at, metric)).scaleb(-9)
        rate = Decimal(place.rate).scaleb(-4)
        in_usd = money.times(quantity, price)
        in_billing = money.times(in_usd, rate) if fact.flat_cost is None else Decimal(fact.flat_cost).scaleb(-4)
        billed, text = place.subscription.billed_in(day), f"{day:%m/%d/%Y}"
        first = f"{billed.start:%m/%d/%Y}"
        profile = f"{self.billing_account}/billingProfiles/{place.currency}P-0001"
        usual = {
            "x_row": f"{place.subscription.id}/{day}/{fact.key}",
            "billingAccountId": self.billing_account,
            "billingAccountName": "Simulated",
            "billingProfileId": profile,
            "billingProfileName": f"Simulated {place.currency}",
            "invoiceSectionId": "IS-0001",
            "invoiceSectionName": "Models",
            "costCenter": "cc-1001",
            "billingPeriodStartDate": first,
            "billingPeriodEndDate": f"{billed.end - DAY:%m/%d/%Y}",
            "servicePeriodStartDate": text,
            "servicePeriodEndDate": text,
            "date": text,
            "meterName": fact.meter,
            "SubscriptionId": place.subscription.id,
            "subscriptionName": place.subscription.name,
            "resourceGroupName": place.group if fact.resource.startswith("/subscriptions/") else "",
            "ResourceId": fact.resource,
            "effectivePrice": money.text(price),
            "PayGPrice": money.text(price),
            "unitPrice": money.text(price),
            "quantity": money.text(quantity),
            "chargeType": fact.charge_type,
            "billingCurrency": place.currency,
            "pricingCurrency": "USD",
            "costInBillingCurrency": money.text(in_billing),
            "costInPricingCurrency": money.text(in_usd),
            "costInUsd": money.text(in_usd),
            "paygCostInBillingCurrency": money.text(in_billing),
            "paygCostInUsd": money.text(in_usd),
            "exchangeRatePricingToBilling": money.text(rate),
            "exchangeRateDate": first,
            "isAzureCreditEligible": "True",
            "frequency": "UsageBased",
            "pricingModel": "OnDemand",
            "provider": "Azure",
        }
        return usual | dict(fact.fields)

    def _chance(self, *names: object) -> random.Random:
        return random.Random("/".join(map(str, (self.seed, *names))))  # noqa: S311 (a sample, not a secret)


_BOTH = frozenset({"ActualCost", "AmortizedCost"})
_SCOUT, _SCOUT_STEM = "Llama-4-Scout-17B-16E-Instruct", "llama-4-scout-17b-16e-instruct"
_LLAMA, _MAVERICK = "Llama-3.3-70B-Instruct", "Llama-4-Maverick-17B-128E-Instruct-FP8"
_LLAMA_8B, _LLAMA_70B = "Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct"
_SMALL, _LARGE = "Standard_NC24ads_A100_v4", "Standard_ND96amsr_A100_v4"


@lru_cache(maxsize=64)
def _details(size: str, number: int) -> str:
    return json.dumps({"ServiceType": size, "VMName": f"node-{number}" if number else "", "VCPUs": _CORES[size]})


def _vm_fields(place: _Place, size: str, number: int) -> dict[str, str]:
    meter, series = _METERS[size]
    return {
        "serviceFamily": "Compute",
        "consumedService": "Microsoft.MachineLearningServices",
        "meterId": made_id("meter", size, place.region),
        "meterCategory": "Virtual Machines",
        "meterSubCategory": series,
        "meterRegion": place.location,
        "ProductName": f"Virtual Machines {series} - {meter} - {place.location}",
        "publisherType": "Microsoft",
        "publisherName": "Microsoft",
        "resourceLocation": place.region,
        "location": place.location,
        "unitOfMeasure": "1 Hour",
        "additionalInfo": _details(size, number),
    }


def _hours(steps: Sequence[CapacityStep], day: date) -> int:
    """Instance-hours of the day; steps lie on whole hours."""
    start = day_start(day)
    return sum(instances_at(steps, start + timedelta(hours=hour)) for hour in range(24))
