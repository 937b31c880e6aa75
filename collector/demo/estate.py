"""The sample company's Azure: the same places, bills and instances that its usage belongs to, for the simulator to serve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from collector.azure.simulator import shapes
from collector.azure.simulator.estate import ArmObject, BilledRow, CapacityStep, Metric, Minute, Subscription, instances_at
from collector.demo import bills, places
from collector.demo.places import DEPLOYMENTS, SUBSCRIPTIONS, WORKSPACES, Deployment, Story, instances_over_time
from collector.demo.traffic import OUTCOMES, Call
from models import money, skus
from models.periods import DAY, day_start, month_start, utc_day
from models.resources import Route

# Thousands of tokens a minute. An ordinary day stays below; the incident's surge does not. A world that used more than its
# limit in many a minute, with no 429, would be none.
_CAPACITY = {"llama-33-70b": 650, "llama-33-70b-batch": 650, "llama-4-maverick": 650}
# vCPUs by family: room for every Llama on A100s that the comparison may ask for, and too little for a second A10.
_LIMITS = {"standardNCADSA100v4Family": 480, "standardNVADSA10v5Family": 72}
_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Contoso:
    """The estate behind a sample world."""

    story: Story
    billed_tokens: bills.BilledTokens
    calls: Callable[[Deployment, date], Sequence[Call]]

    @property
    def billing_account(self) -> str:
        return bills.ACCOUNT

    def subscriptions(self) -> Sequence[Subscription]:
        return [Subscription(each.id, each.name) for each in SUBSCRIPTIONS]

    def billed(self, subscription_id: str, month: date, *, metric: Metric, at: datetime) -> Sequence[BilledRow]:
        del metric  # the sample company has no reservations: what it pays is what it uses
        for subscription in SUBSCRIPTIONS:
            if subscription.id == subscription_id.lower() and month_start(self.story.first_day) <= month <= utc_day(at):
                return bills.rows(subscription, month, story=self.story, billed_tokens=self.billed_tokens, today=utc_day(at))
        return ()

    def objects(self, at: datetime) -> Sequence[ArmObject]:
        return list(self._objects(at))

    def _objects(self, at: datetime) -> Iterator[ArmObject]:
        born = day_start(self.story.first_day)
        for place in WORKSPACES:
            make = shapes.account if place.kind == "foundry_account" else shapes.workspace
            yield make(place.resource_id, region=place.region, created_at=born)
        for endpoint in sorted({(each.workspace.resource_id, each.endpoint, each.workspace.region) for each in DEPLOYMENTS if each.endpoint}):
            behind = [each for each in DEPLOYMENTS if (each.workspace.resource_id, each.endpoint) == endpoint[:2]]
            shares = (100,) if len(behind) == 1 else (83, 17)
            traffic = dict(zip((each.name for each in behind), shares, strict=True))
            yield shapes.online_endpoint(f"{endpoint[0]}/onlineEndpoints/{endpoint[1]}", region=endpoint[2], traffic=traffic, created_at=born)
        for each in DEPLOYMENTS:
            place = each.workspace
            match each.route:
                case Route.COMPUTE:
                    assert each.size is not None
                    count = instances_at(self.capacity(each.resource_id), at)
                    yield shapes.online_deployment(
                        each.resource_id, region=place.region, model=each.model, size=each.size.sku, instances=count, created_at=born
                    )
                case Route.FOUNDRY:
                    yield shapes.foundry_deployment(each.resource_id, model=each.model, capacity=_CAPACITY.get(each.name, 200), created_at=born)
                case Route.MARKETPLACE:
                    offer = f"{place.resource_id}/marketplaceSubscriptions/{each.plan_stem}"
                    is_retired = each.name == "llama-31-405b" and at >= self.story.retires_at
                    yield shapes.offer_subscription(offer, model=each.model, offer=f"{each.plan_stem}-offer", plan=f"{each.plan_stem}-plan", created_at=born)
                    yield shapes.serverless_endpoint(
                        each.resource_id,
                        region=place.region,
                        model=each.model,
                        state="Suspended" if is_retired else "Online",
                        offer_subscription_id=offer,
                        created_at=born,
                    )

    def capacity(self, resource_id: str) -> Sequence[CapacityStep]:
        for each in DEPLOYMENTS:
            if each.size is not None and each.resource_id.casefold() == resource_id.casefold():
                return [CapacityStep(at, count) for at, count in instances_over_time(each, self.story)]
        return ()

    def requests(self, resource_id: str, start: datetime, end: datetime) -> Mapping[str, Sequence[Minute]]:
        found: dict[str, Sequence[Minute]] = {}
        for each in DEPLOYMENTS:
            parent = f"{each.workspace.resource_id}/onlineEndpoints/{each.endpoint}" if each.endpoint else each.workspace.resource_id
            if each.route is Route.MARKETPLACE or parent.casefold() != resource_id.casefold():
                continue
            minutes: dict[datetime, tuple[int, int, int]] = {}
            day = max(utc_day(start), self.story.first_day)
            while day_start(day) < end:
                for call in self.calls(each, day):
                    at = day_start(day) + timedelta(minutes=call.at_ms // _MINUTE_MS)
                    requests, inputs, outputs = minutes.get(at, (0, 0, 0))
                    # Tokens are counted where a model worked: not of what was throttled or refused.
                    if OUTCOMES[call.outcome].is_billed:
                        inputs, outputs = inputs + call.input_tokens, outputs + call.output_tokens
                    minutes[at] = requests + 1, inputs, outputs
                day += DAY
            found[each.name] = [Minute(at, *counts) for at, counts in sorted(minutes.items()) if start <= at < end]
        return found

    def usages(self, subscription_id: str, region: str, *, source: Literal["compute", "ml", "ml_quotas"], at: datetime) -> Sequence[Mapping[str, Any]]:
        used: Counter[str] = Counter()
        for each in DEPLOYMENTS:
            if each.size is not None and each.workspace.region == region.casefold() and each.workspace.subscription.id == subscription_id.lower():
                size = skus.find(each.size.sku)
                assert size is not None
                used[size.family] += size.cores * instances_at(self.capacity(each.resource_id), at)
        if source == "compute":
            families = [shapes.compute_usage(family, used=used[family], limit=limit) for family, limit in _LIMITS.items()]
            return [shapes.compute_usage("cores", used=used.total(), limit=700, shown="Total Regional vCPUs"), *families]
        subscription = f"/subscriptions/{subscription_id}"
        names = {family: f"Standard {family.removeprefix('standard').removesuffix('Family')} Family Cluster Dedicated vCPUs" for family in _LIMITS}
        return [shapes.ml_usage(subscription, "vmFamily", names[family], used=used[family], limit=limit) for family, limit in _LIMITS.items()]

    def retail_prices(self) -> Sequence[Mapping[str, Any]]:
        items: list[Mapping[str, Any]] = []
        for place in sorted({(each.workspace.region, each.workspace.location) for each in DEPLOYMENTS}):
            for size in (places.ONE_A100, places.FOUR_A100, places.ONE_A10):
                items += [
                    shapes.vm_price(
                        size.sku,
                        size.meter,
                        size.series,
                        region=place[0],
                        location=place[1],
                        hourly=money.text(size.hourly if not decoy else money.times(size.hourly, Decimal("0.4"))),
                        decoy=decoy,
                    )
                    for decoy in ("", "Spot", "Low Priority", "Windows", "DevTestConsumption")
                ]
            for model, price in ((places.LLAMA_33_70B, "Llama 3.3 70B"), (places.MAVERICK, "Llama 4 Maverick")):
                for end, amount in (("Inp", model.input), ("Outp", model.output)):
                    meter = f"{price} {end} glbl Tokens"
                    items.append(shapes.token_price(meter, bills.meter_id(meter), *place, money.text(amount.scaleb(-3))))
        return items
