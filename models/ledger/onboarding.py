"""What is not set up right yet: every place where bill, inventory, prices and usage do not fit together, with the fix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session, col

from models import money
from models.charges import ChargeClass, ChargeDay, ChargeItem
from models.ledger.costs import costs
from models.ledger.values import CostQuery, Filters, Problem
from models.ledger.world import World
from models.lifecycle import SERVERLESS_REGIONS, is_sold_serverless, retires_at
from models.matching import Target
from models.money import ZERO
from models.periods import DAY, Period, day_start, utc_day
from models.prices import model_key
from models.resources import DeploymentFact, Mode, Route

LOOKED_AT = 60 * DAY
RETIRES_SOON = 90 * DAY
_BILLED_LATE = 4 * DAY
_WORKS = frozenset({"", "online", "succeeded", "healthy", "ready"})


def onboarding(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
    """Findings in order of kind and name; empty where everything fits together. A caller of some workspaces sees theirs."""
    return _Audit(session, visible, now).findings()


class _Audit:
    """One look at everything."""

    def __init__(self, session: Session, visible: frozenset[str] | None, now: datetime) -> None:
        self._session = session
        self._visible = visible
        self._now = now
        self._world = World(session, now)
        self._since = now - LOOKED_AT
        self._facts: list[tuple[str, str, DeploymentFact]] = []
        registry = self._world.registry
        for workspace, name in registry.deployments():
            fact = registry.fact(workspace, name, now)
            ended = fact is not None and fact.valid_to is not None and fact.valid_to <= now
            if fact is not None and not ended and fact.source == "inventory":
                self._facts.append((workspace, name, fact))
        self._charged = list(self._charges())

    def findings(self) -> list[Problem]:
        found = [*self._saas(), *self._untagged(), *self._doubled(), *self._places(), *self._traffic()]
        return sorted(found, key=lambda one: (one.kind, one.subject, one.currency or ""))

    # -- what the bill says ---------------------------------------------------------------------

    def _charges(self) -> Iterator[tuple[ChargeItem, Target, str, Decimal, datetime]]:
        """Every item of the counting bills of the last days with its money per currency and the last day it was charged."""
        parts = [part.id for part in self._world.parts]
        row = ChargeDay
        sums: dict[tuple[int, str], tuple[Decimal, datetime]] = {}
        asked = sa.select(*(col(one) for one in (row.item_id, row.currency, row.billed_cost, row.charged_on))).where(
            col(row.part_id).in_(parts), col(row.charged_on) >= utc_day(self._since)
        )
        for item_id, currency, cost, day in self._session.execute(asked):
            amount, last = sums.get((item_id, currency), (ZERO, day_start(day)))
            sums[item_id, currency] = (money.plus(amount, cost), max(last, day_start(day)))
        items = {item.id: item for item in self._session.scalars(sa.select(ChargeItem))}
        for (item_id, currency), (amount, last) in sums.items():
            item = items[item_id]
            if item.charge_class in (ChargeClass.MARKETPLACE, ChargeClass.FOUNDRY, ChargeClass.COMPUTE):
                yield item, self._world.registry.target(item, last), currency, amount, last

    def _sees(self, workspaces: Iterable[str | None]) -> bool:
        return self._visible is None or any(name in self._visible for name in workspaces if name is not None)

    def _saas(self) -> Iterator[Problem]:
        """SaaS resources that no deployment is known for, and those that billing cannot tell apart."""
        lost: dict[tuple[str, str], Decimal] = {}
        apart: dict[tuple[str, str], tuple[Decimal, Target]] = {}
        for item, target, currency, amount, _ in self._charged:
            if item.charge_class != ChargeClass.MARKETPLACE:
                continue
            key = (item.resource_id or item.meter_name, currency)
            if len(target.identities) > 1:
                apart[key] = (money.plus(apart.get(key, (ZERO, target))[0], amount), target)
            elif target.identities[0].deployment is None:
                lost[key] = money.plus(lost.get(key, ZERO), amount)
        if self._visible is None:
            for (resource, currency), amount in lost.items():
                yield Problem(
                    "saas_without_deployment",
                    resource,
                    "billed in the last 60 days, and no deployment is known for it",
                    "import the inventory of its workspace (meterbridge sync inventory), or cancel the subscription if nothing uses it",
                    currency,
                    amount,
                )
        for (resource, currency), (amount, target) in apart.items():
            places = sorted({identity.workspace or "" for identity in target.identities})
            if not self._sees(places):
                continue
            names = ", ".join(f"{identity.workspace}/{identity.deployment}" for identity in target.identities)
            is_one = len(places) == 1
            yield Problem(
                "several_deployments_of_an_offer" if is_one else "workspaces_billed_together",
                resource,
                f"billing cannot tell {names} apart; their shares are by our own tokens" if is_one else f"one SaaS resource bills {names}",
                "keep one serverless deployment of a model in a project" if is_one else "subscribe each workspace by itself, in a resource group of its own",
                currency,
                amount,
            )

    def _untagged(self) -> Iterator[Problem]:
        """VM hours without the tags that name their deployment."""
        sums: dict[tuple[str, str, str], Decimal] = {}
        for item, _, currency, amount, _ in self._charged:
            if item.charge_class == ChargeClass.COMPUTE and not (item.endpoint or item.deployment) and self._sees([item.workspace]):
                key = (item.workspace or "(no workspace)", item.sku or item.meter_name, currency)
                sums[key] = money.plus(sums.get(key, ZERO), amount)
        for (workspace, size, currency), amount in sums.items():
            if amount:
                yield Problem(
                    "missing_tags",
                    f"{workspace}: {size}",
                    "VM hours of the last 60 days without the tags azuremlendpoint and azuremldeployment",
                    "turn on tag inheritance in Cost Management; until then they go to the only deployment of that size",
                    currency,
                    amount,
                )

    # -- what the inventory says ----------------------------------------------------------------

    def _doubled(self) -> Iterator[Problem]:
        """More than one serverless deployment of a model in a project, and more than one subscription of it to an offer."""
        models: dict[tuple[str, str], list[str]] = {}
        offers: dict[tuple[str, str], set[str]] = {}
        for workspace, name, fact in self._facts:
            if fact.mode != Mode.SERVERLESS or self._world.registry.route(fact) != Route.MARKETPLACE or not self._sees([workspace]):
                continue
            if fact.model:
                models.setdefault((workspace, model_key(fact.model)), []).append(name)
            if fact.offer_id and fact.saas_resource_id:
                offers.setdefault((workspace, fact.offer_id.casefold()), set()).add(fact.saas_resource_id.casefold())
        for (workspace, model), names in models.items():
            if len(names) > 1:
                yield Problem(
                    "several_deployments_of_a_model",
                    f"{workspace}: {model}",
                    f"{', '.join(names)}: billing sums them up, and their shares are estimates",
                    "keep one serverless deployment of a model in a project",
                    count=len(names),
                )
        for (workspace, offer), resources in offers.items():
            if len(resources) > 1:
                yield Problem(
                    "several_subscriptions_to_an_offer",
                    f"{workspace}: {offer}",
                    f"{len(resources)} SaaS resources of one offer",
                    "delete the marketplace subscription that nothing uses",
                    count=len(resources),
                )

    def _places(self) -> Iterator[Problem]:
        """Deployments where their model is not offered, that failed and are billed, or whose model ends soon."""
        billed: dict[tuple[str, str], tuple[Decimal, str]] = {}
        for _, target, currency, amount, last in self._charged:
            if last >= self._now - 7 * DAY:
                for identity in target.identities:
                    if identity.workspace and identity.deployment:
                        key = (identity.workspace, identity.deployment)
                        billed[key] = (money.plus(billed.get(key, (ZERO, currency))[0], amount), currency)
        for workspace, name, fact in self._facts:
            if not self._sees([workspace]):
                continue
            place = f"{workspace}/{name}"
            if fact.mode == Mode.SERVERLESS and self._world.registry.route(fact) == Route.MARKETPLACE and not is_sold_serverless(fact.region):
                yield Problem(
                    "region_not_offered",
                    place,
                    f"{fact.model or 'its model'} is not offered serverless in {fact.region}",
                    f"deploy it in one of {', '.join(sorted(SERVERLESS_REGIONS))}, or correct the inventory",
                )
            if (fact.state or "").casefold() not in _WORKS and (workspace, name) in billed:
                amount, currency = billed[workspace, name]
                yield Problem(
                    "failed_and_billed",
                    place,
                    f"its state is {fact.state}, and it was billed in the last week",
                    "delete it or deploy it again",
                    currency,
                    amount,
                )
            ends = retires_at(fact, self._world.registry.route(fact))
            if ends is not None and ends <= self._now + RETIRES_SOON:
                left = (ends - self._now) // DAY if ends > self._now else -((self._now - ends) // DAY)
                days = f"{abs(left)} day{'' if abs(left) == 1 else 's'}"
                yield Problem(
                    "model_retires",
                    place,
                    f"{fact.model or 'its model'} {f'retires in {days}' if ends > self._now else f'retired {days} ago'}, on {ends:%Y-%m-%d}",
                    "move its callers to another model",
                    count=left,
                )

    # -- what usage says ------------------------------------------------------------------------

    def _traffic(self) -> Iterator[Problem]:
        """Deployments with traffic that no bill names although it should by now, and tokens without a price."""
        registry = self._world.registry
        charged = {(identity.workspace, identity.deployment) for _, target, _, _, _ in self._charged for identity in target.identities}
        period = Period(self._now - 30 * DAY, self._now)
        query = CostQuery(period, "none", ("workspace", "deployment", "model", "mode"), "metered", Filters(visible=self._visible))
        for row in costs(self._session, query, now=self._now).rows:
            workspace, name, figures = row.groups["workspace"], row.groups["deployment"], row.figures
            if workspace is None or name is None:
                continue
            if figures.unpriced_tokens:
                yield Problem(
                    "meter_without_price",
                    f"{workspace}/{name}",
                    figures.reasons.get("metered_cost") or figures.reasons.get("unpriced_tokens") or "no price",
                    "add a price: meterbridge import prices FILE",
                    count=figures.unpriced_tokens,
                )
            fact = registry.fact(workspace, name, self._now)
            if not figures.requests or (workspace, name) in charged or fact is None or fact.source != "inventory" or fact.mode != Mode.SERVERLESS:
                continue
            route, subscription = registry.route(fact), registry.subscription(workspace, self._now)
            if self._world.is_reached(subscription, route, utc_day(self._now - _BILLED_LATE)):
                yield Problem(
                    "traffic_without_bill",
                    f"{workspace}/{name}",
                    f"{figures.requests} requests in the last 30 days, and no charge of the last 60 is for it",
                    "check its SaaS resource id and resource group in the inventory, and whether the bill is of its subscription",
                    count=figures.requests,
                )
