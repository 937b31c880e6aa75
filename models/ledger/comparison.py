"""Serverless beside managed compute, per model: what a million tokens costs on each, idle time included. ``models.breakeven`` decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session

from models import money, skus
from models.breakeven import MILLION, Advice, ChoiceOfMode, Load, Managed, Serverless, advise, allocated, break_even, per_million
from models.columns import to_microseconds
from models.errors import InvalidInput
from models.ledger import rates
from models.ledger.billed import Reading
from models.ledger.costs import Answer
from models.ledger.deployments import settings_known
from models.ledger.hours import instance_hours, stretches
from models.ledger.meanings import shared
from models.ledger.room import ENOUGH, Quotas, Room, Site
from models.ledger.sums import Sums
from models.ledger.utilisation import GpuUse, gpu_use
from models.ledger.values import CostQuery, Filters, Standing, share_of
from models.ledger.world import World, read_usage
from models.lifecycle import is_sold_serverless, retires_at
from models.limits import limits_known
from models.money import ZERO
from models.periods import Period
from models.prices import PriceMeter, UnitPrice, model_key, model_name
from models.resources import DeploymentFact, Mode, Route
from models.usage import DAY_SECONDS, STATUS_CODE, Status

_HOUR = 3600
_STANDINGS: tuple[Standing, ...] = ("provisional", "settling", "settled")
# The highest minute lies in one of the highest hours: as many are looked into.
_HOURS_LOOKED_INTO = 5
_MOST_INSTANCES = 1000
_TWELVE = Decimal(1).scaleb(-12)
_NOTHING = Load(input_tokens=0, output_tokens=0, peak_hour_tokens=0, peak_minute_tokens=0)


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Managed compute as it might be run: so many instances of a size, so many hours a day."""

    sku: str
    instances: int
    hours_per_day: Decimal


@dataclass(frozen=True, slots=True)
class WhatIfAnswer:
    """What that would cost a day, from how many tokens a day it would be cheaper than serverless, and whether either can carry the load of the period.

    ``managed_feasible`` None: nobody knows what an instance of that size serves, or whether the vCPU quota holds them (``room``). ``cheaper`` only where both can; else ``reason`` says what cannot.
    """

    capacity_cost_per_day: Decimal | None
    break_even_tokens_per_day: int | None
    reason: str | None
    serverless_feasible: bool = False
    serverless_reason: str | None = None
    managed_feasible: bool | None = None
    managed_reason: str | None = None
    capacity_tokens_per_day: int | None = None
    instances_needed: int | None = None
    room: Room = ENOUGH
    cheaper: ChoiceOfMode | None = None
    saving_per_day: Decimal | None = None

    @property
    def break_even_reachable(self) -> bool | None:
        """Whether those instances could serve as many; None where nobody knows."""
        even, most = self.break_even_tokens_per_day, self.capacity_tokens_per_day
        return None if even is None or most is None else even <= most


@dataclass(frozen=True, slots=True)
class ServerlessSide:
    """What serverless served and cost, and what it may serve: the limits of the model's deployments together, with who says them."""

    tokens: int
    cost: Decimal | None
    effective_cost_per_1m: Decimal | None
    feasible: bool
    reason: str | None
    list_input_per_1m: Decimal | None
    list_output_per_1m: Decimal | None
    list_per_1m: Decimal | None  # at the mix of the row
    unknown_token_share: Decimal | None = None  # of the requests: their tokens are in no figure here
    estimated_token_share: Decimal | None = None
    tokens_per_minute_limit: int | None = None
    limit_source: str | None = None
    retires_at: datetime | None = None  # when the last of its deployments' models does


@dataclass(frozen=True, slots=True)
class ManagedSide:
    """What the instances served and cost; allocated + idle is the capacity cost exactly, both None while utilisation is."""

    tokens: int
    capacity_cost: Decimal | None
    allocated_cost: Decimal | None
    idle_cost: Decimal | None
    per_1m_allocation: Decimal | None
    per_1m_usage: Decimal | None
    utilisation: Decimal | None
    utilisation_method: str | None
    core_hours: Decimal | None
    capacity_tokens_per_day: int | None
    instances: int
    instances_needed: int | None
    reason: str | None
    gpu: GpuUse
    unknown_token_share: Decimal | None = None  # as above
    estimated_token_share: Decimal | None = None
    feasible: bool | None = None  # None: nobody knows what an instance can serve, or whether the vCPU quota holds more of them
    feasible_reason: str | None = None
    room: Room = ENOUGH


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One model in one currency."""

    model: str
    currency: str | None
    serverless: ServerlessSide
    managed: ManagedSide
    break_even_tokens_per_day: int | None
    break_even_reachable: bool | None
    advice: Advice
    days: Decimal
    standing: Standing
    mix_input_share: Decimal | None  # input's share of the tokens that the break-even goes by: the instances' own, else all
    what_if: WhatIfAnswer | None
    peak_minute_tokens: int = 0  # of both ways together
    peak_hour_tokens: int = 0

    @property
    def tokens_per_day(self) -> int | None:
        """What the model serves a day, both ways together."""
        return None if not self.days else int(money.QUOTIENT.divide(Decimal(self.managed.tokens + self.serverless.tokens), self.days))

    @property
    def idle_cost_per_day(self) -> Decimal | None:
        """What idle capacity burns a day."""
        idle = self.managed.idle_cost
        return None if idle is None or not self.days else money.QUOTIENT.divide(idle, self.days).quantize(_TWELVE)


def what_if_from(said: Mapping[str, str]) -> WhatIf | None:
    """The what-if of a query: ``sku``, ``instances`` and ``hours_per_day`` together, or none of them."""
    asked = [said[name] for name in ("sku", "instances", "hours_per_day") if said.get(name)]
    if not asked:
        return None
    if len(asked) < 3:
        raise InvalidInput("a what-if needs sku (a size), instances and hours_per_day together")
    sku, instances, hours = asked
    if not (instances.isascii() and instances.isdigit() and len(instances) <= 4 and 1 <= int(instances) <= _MOST_INSTANCES):
        raise InvalidInput(f"instances must be a whole number from 1 to {_MOST_INSTANCES:,}, not {instances[:20]!r}")
    length = money.decimal_from(hours, what="hours_per_day")
    if not 0 < length <= 24:
        raise InvalidInput("hours_per_day must be above 0 and at most 24")
    return WhatIf(sku, int(instances), length)


def comparison(
    session: Session,
    period: Period,
    filters: Filters = Filters(),  # noqa: B008 - a frozen value
    *,
    now: datetime,
    what_if: WhatIf | None = None,
    reading: Reading | None = None,
) -> list[ComparisonRow]:
    """Every model with usage or capacity in the period, in order of name and currency."""
    end = min(period.end, now)
    if end <= period.start:
        raise InvalidInput("the period has not begun yet")
    query = CostQuery(Period(period.start, end), "none", ("workspace", "deployment", "model", "mode"), "best", filters)
    answer = Answer(session, query, now=now, reading=reading)
    answer.gather()
    return _Comparison(session, answer, now=now, what_if=what_if).rows()


@dataclass(slots=True)
class _Side:
    """One mode of one model while it is added up."""

    sums: Sums = field(default_factory=Sums)
    is_costed: bool = False

    @property
    def tokens(self) -> int:
        return self.sums.input_tokens + self.sums.output_tokens

    @property
    def cost(self) -> Decimal | None:
        """Best, with what is billed counted as amortized: a reservation pays for hours that are billed at nothing."""
        sums = self.sums
        if (sums.is_unpriced or sums.is_unknown) and not sums.is_metered and not sums.is_best:
            return None
        return money.plus(sums.best, money.minus(sums.effective, sums.billed))


@dataclass(slots=True)
class _Capacity:
    """What the managed deployments of a model could serve over the period."""

    instance_hours: Decimal = ZERO
    tokens: Decimal | None = ZERO
    instances: int = 0
    per_instance: list[Decimal | None] = field(default_factory=list)
    by_size: dict[str, list[Decimal | None]] = field(default_factory=dict)  # the same by size
    methods: set[str] = field(default_factory=set)
    places: list[tuple[str, str]] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    running: dict[str, int] = field(default_factory=dict)  # instances at the end of the period, by size
    sites: set[Site] = field(default_factory=set)
    held: list[tuple[Site, DeploymentFact]] = field(default_factory=list)  # those that run now: what of the vCPU quota is used is theirs


class _Comparison:
    def __init__(self, session: Session, answer: Answer, *, now: datetime, what_if: WhatIf | None) -> None:
        self._session = session
        self._answer = answer
        self._world: World = answer.world
        self._period = answer.query.period
        self._now = now
        self._what_if = what_if
        self._days = money.QUOTIENT.divide(
            Decimal((self._period.end - self._period.start) // timedelta(microseconds=1)), Decimal(timedelta(days=1) // timedelta(microseconds=1))
        )
        self._quotas = Quotas(session, answer.world, now=now)
        self._settings = settings_known(session, now)
        self._limits = limits_known(session, now)
        self._called: dict[str, set[tuple[str, str]]] = {}  # by model: where calls came that are not managed compute's
        self._spelled: dict[str, str] = {}
        # (model, mode) -> tokens by hour; deployment (without case) -> hour -> (tokens, throttles)
        self._hours: dict[tuple[str, Mode], dict[int, int]] = {}
        self._of_deployment: dict[tuple[str, str], dict[int, list[int]]] = {}

    def rows(self) -> list[ComparisonRow]:
        sides: dict[tuple[str, str | None], dict[Mode, _Side]] = {}
        for (groups, currency), rows in self._answer.lines.items():
            some = [sums for sums in rows.values() if sums.requests or sums.best or sums.effective or sums.metered or sums.metered_core_hours or sums.is_best]
            if groups[2] is None or not some:
                continue
            key = groups[2]
            shown = self._answer.shown(groups)[2] or key
            self._spelled.setdefault(key, shown)
            mode = Mode.MANAGED_COMPUTE if groups[3] == Mode.MANAGED_COMPUTE else Mode.SERVERLESS
            if mode == Mode.SERVERLESS and groups[0] and groups[1]:
                self._called.setdefault(key, set()).add((groups[0], groups[1]))
            side = sides.setdefault((key, currency), {}).setdefault(mode, _Side())
            for sums in some:
                side.sums.absorb(sums)
        self._read_hours()
        capacities = self._capacities()
        found = [self._row(key, currency, of, capacities.get(key)) for (key, currency), of in sides.items()]
        return sorted(found, key=lambda row: (row.model.casefold(), row.currency is None, row.currency or ""))

    # -- loads ----------------------------------------------------------------------------------

    def _read_hours(self) -> None:
        for use in read_usage(self._session, self._period, slot=_HOUR, as_of=None, series=None):
            at, series_id, _, inputs, outputs, *_ = use
            series = self._world.series.get(series_id)
            if series is None:
                continue
            for meaning, (tokens,) in shared(self._answer.meanings.meaning_at(series, at), at, (inputs + outputs,)):
                identity = meaning.identity
                if identity.model is None or not meaning.is_asked:
                    continue
                mode = Mode.MANAGED_COMPUTE if identity.mode == Mode.MANAGED_COMPUTE else Mode.SERVERLESS
                of = self._hours.setdefault((model_key(identity.model), mode), {})
                of[at] = of.get(at, 0) + tokens
                if mode == Mode.MANAGED_COMPUTE:
                    name = ((identity.workspace or "").casefold(), (identity.deployment or "").casefold())
                    self._of_deployment.setdefault(name, {}).setdefault(at, [0, 0])[0] += tokens
        start, end = (to_microseconds(at) // 1_000_000 for at in (self._period.start, self._period.end))
        throttled = STATUS_CODE[Status.THROTTLED]
        rows = self._session.execute(
            sa.text(
                "SELECT starts_at / 3600 * 3600, series_id, SUM(requests) FROM usage_quarter "
                "WHERE starts_at >= :start AND starts_at < :end AND outcome / 2 = :throttled GROUP BY 1, 2"
            ),
            {"start": start, "end": end, "throttled": throttled},
        )
        for at, series_id, requests in rows:
            series = self._world.series.get(series_id)
            if series is not None:
                for meaning, (throttles,) in shared(self._answer.meanings.meaning_at(series, int(at)), int(at), (int(requests),)):
                    name = ((meaning.identity.workspace or "").casefold(), (meaning.identity.deployment or "").casefold())
                    if name in self._of_deployment:
                        self._of_deployment[name].setdefault(int(at), [0, 0])[1] += throttles

    def _load(self, key: str, modes: Sequence[Mode], sums: Sequence[Sums]) -> Load:
        hours: dict[int, int] = {}
        for mode in modes:
            for at, tokens in self._hours.get((key, mode), {}).items():
                hours[at] = hours.get(at, 0) + tokens
        highest = sorted(hours, key=lambda at: (-hours[at], at))[:_HOURS_LOOKED_INTO]
        return Load(
            input_tokens=sum(one.input_tokens for one in sums),
            output_tokens=sum(one.output_tokens for one in sums),
            peak_hour_tokens=hours[highest[0]] if highest else 0,
            peak_minute_tokens=max((self._peak_minute(key, modes, at) for at in highest), default=0),
        )

    def _peak_minute(self, key: str, modes: Sequence[Mode], hour: int) -> int:
        minutes: dict[int, int] = {}
        rows = self._session.execute(
            sa.text(
                "SELECT starts_at, series_id, SUM(CASE WHEN outcome % 2 = 1 THEN input_tokens + output_tokens ELSE 0 END) FROM usage_minute "
                "WHERE starts_at >= :start AND starts_at < :end GROUP BY 1, 2"
            ),
            {"start": hour, "end": hour + _HOUR},
        )
        for at, series_id, tokens in rows:
            series = self._world.series.get(series_id)
            if series is None:
                continue
            for meaning, (part,) in shared(self._answer.meanings.meaning_at(series, int(at)), int(at), (int(tokens),)):
                identity = meaning.identity
                mode = Mode.MANAGED_COMPUTE if identity.mode == Mode.MANAGED_COMPUTE else Mode.SERVERLESS
                if identity.model is not None and model_key(identity.model) == key and mode in modes:
                    minutes[int(at)] = minutes.get(int(at), 0) + part
        return max(minutes.values(), default=0)

    # -- capacity -------------------------------------------------------------------------------

    def _capacities(self) -> dict[str, _Capacity]:
        found: dict[str, _Capacity] = {}
        for workspace, name, facts in self._world.registry.managed():
            runs = stretches(facts, self._period.start, self._period.end)
            model = next((fact.model for _, _, fact in reversed(runs) if fact.model), None)
            if not runs or model is None:
                continue
            if not self._is_asked(workspace, name):
                continue
            self._spelled.setdefault(model_key(model), model_name(model))
            into = found.setdefault(model_key(model), _Capacity())
            self._add_capacity(into, workspace, name, runs)
            into.sites.add(self._site(workspace, name, runs[-1][2]))
            for _, _, fact in stretches(facts, self._now, self._now + timedelta(microseconds=1)):
                into.held.append((self._site(workspace, name, fact), fact))
        return found

    def _site(self, workspace: str, name: str, fact: DeploymentFact) -> Site:
        """The subscription and region of a deployment."""
        registry = self._world.registry
        return registry.subscription(workspace, self._now), fact.region or registry.identity(workspace, name, model=None, at=self._now).region

    def _is_asked(self, workspace: str, name: str) -> bool:
        filters, deployments = self._answer.query.filters, self._answer.lens.deployments
        is_seen = filters.visible is None or workspace in filters.visible
        return is_seen and (not filters.workspaces or workspace in filters.workspaces) and (deployments is None or name in deployments)

    def _add_capacity(self, into: _Capacity, workspace: str, name: str, runs: Sequence[tuple[datetime, datetime, DeploymentFact]]) -> None:
        hours = money.add(money.times(instance_hours(left, right), fact.instance_count or 0) for left, right, fact in runs)
        last = runs[-1][2].instance_count or 0
        into.instance_hours = money.plus(into.instance_hours, hours)
        into.instances += last
        into.places.append((workspace, name))
        per_instance, method = self._per_instance(workspace, name, last, runs)
        into.per_instance.append(per_instance)
        size = (runs[-1][2].sku or "").casefold()
        into.by_size.setdefault(size, []).append(per_instance)
        into.running[size] = into.running.get(size, 0) + last
        if per_instance is None:
            into.tokens = None
            into.reasons.add(f"what {workspace} / {name} can serve is not known: set its capacity_tokens_per_minute")
            return
        into.methods.add(method)
        if into.tokens is not None:
            into.tokens = into.tokens + money.times(per_instance, hours * 60)

    def _per_instance(self, workspace: str, name: str, instances: int, runs: Sequence[tuple[datetime, datetime, DeploymentFact]]) -> tuple[Decimal | None, str]:
        """Tokens a minute that one instance serves, and how we know."""
        said = self._settings.get((workspace.casefold(), name.casefold()))
        if said is not None and said.capacity_tokens_per_minute and instances:
            return money.QUOTIENT.divide(Decimal(said.capacity_tokens_per_minute), Decimal(instances)), "configured"
        hours = self._of_deployment.get((workspace.casefold(), name.casefold()), {})
        full = [(tokens, at) for at, (tokens, throttles) in hours.items() if throttles and tokens]
        for tokens, at in sorted(full, reverse=True):
            running = [fact.instance_count for left, right, fact in runs if left.timestamp() < at + _HOUR and at < right.timestamp() and fact.instance_count]
            if running:
                return money.QUOTIENT.divide(Decimal(tokens), Decimal(60 * max(running))), "highest hour with throttled calls"
        return None, ""

    # -- rows -----------------------------------------------------------------------------------

    def _row(self, key: str, currency: str | None, of: Mapping[Mode, _Side], capacity: _Capacity | None) -> ComparisonRow:
        token_side, hour_side = of.get(Mode.SERVERLESS, _Side()), of.get(Mode.MANAGED_COMPUTE, _Side())
        whole = self._load(key, (Mode.SERVERLESS, Mode.MANAGED_COMPUTE), [token_side.sums, hour_side.sums])
        own = self._load(key, (Mode.MANAGED_COMPUTE,), [hour_side.sums])
        serverless, retires = self._serverless(key, currency, is_called=bool(token_side.tokens))
        has_managed = capacity is not None or hour_side.cost not in (None, ZERO)
        capacity_cost = hour_side.cost if has_managed else None
        known = capacity or _Capacity(tokens=None)
        per_instance = [one for one in known.per_instance if one is not None]
        managed = Managed(
            capacity_cost=capacity_cost,
            instances=known.instances,
            tokens_per_minute=min(per_instance) if per_instance and len(per_instance) == len(known.per_instance) else None,
            carries=own,
            reason=None if capacity is not None else "no online deployment of this model is in the inventory",
        )
        room = self._room_for_more(known, managed.instances_for(whole))
        managed = replace(managed, has_room=room.holds, no_room=room.reason)
        utilisation = used = idle = None
        if capacity_cost is not None and known.tokens is not None:
            utilisation, used, idle = allocated(capacity_cost, own.tokens, known.tokens)
        mix = own if own.tokens else whole
        even = None if capacity_cost is None else break_even(capacity_cost, self._days, mix.input_tokens, mix.output_tokens, serverless)
        per_day = None if known.tokens is None else int(money.QUOTIENT.divide(known.tokens, self._days))
        cannot = serverless.cannot(whole)
        can, lack = managed.can(whole)
        return ComparisonRow(
            model=self._spelled.get(key, key),
            currency=currency,
            serverless=ServerlessSide(
                tokens=token_side.tokens,
                cost=token_side.cost if Mode.SERVERLESS in of else ZERO,
                effective_cost_per_1m=per_million(token_side.cost, token_side.tokens),
                feasible=cannot is None,
                reason=cannot,
                list_input_per_1m=None if serverless.input_price is None else money.times(serverless.input_price, MILLION),
                list_output_per_1m=None if serverless.output_price is None else money.times(serverless.output_price, MILLION),
                list_per_1m=per_million(serverless.cost(mix.input_tokens, mix.output_tokens), mix.tokens),
                unknown_token_share=share_of(token_side.sums.unknown_requests, token_side.sums.requests),
                estimated_token_share=share_of(token_side.sums.estimated_requests, token_side.sums.requests),
                tokens_per_minute_limit=serverless.tokens_per_minute_limit,
                limit_source=serverless.limit_source,
                retires_at=retires,
            ),
            managed=ManagedSide(
                tokens=own.tokens,
                capacity_cost=capacity_cost,
                allocated_cost=used,
                idle_cost=idle,
                per_1m_allocation=per_million(capacity_cost, own.tokens),
                per_1m_usage=per_million(used, own.tokens),
                utilisation=utilisation,
                utilisation_method="; ".join(sorted(known.methods)) or None,
                core_hours=hour_side.sums.best_core_hours,
                capacity_tokens_per_day=per_day,
                instances=known.instances,
                instances_needed=managed.instances_for(whole),
                reason="; ".join(sorted(known.reasons)[:3]) or managed.reason,
                gpu=gpu_use(self._session, self._period, known.places),
                unknown_token_share=share_of(hour_side.sums.unknown_requests, hour_side.sums.requests),
                estimated_token_share=share_of(hour_side.sums.estimated_requests, hour_side.sums.requests),
                feasible=can,
                feasible_reason=lack,
                room=room,
            ),
            break_even_tokens_per_day=even,
            break_even_reachable=None if even is None or per_day is None else even <= per_day,
            advice=advise(whole, serverless, managed, self._days),
            days=self._days,
            standing=_STANDINGS[min(side.sums.standing for side in of.values())],
            mix_input_share=None if not mix.tokens else money.truncated(money.QUOTIENT.divide(Decimal(mix.input_tokens), Decimal(mix.tokens)), 6),
            what_if=self._imagined(key, currency, serverless, known, whole=whole, mix=mix),
            peak_minute_tokens=whole.peak_minute_tokens,
            peak_hour_tokens=whole.peak_hour_tokens,
        )

    def _serverless(self, key: str, currency: str | None, *, is_called: bool) -> tuple[Serverless, datetime | None]:
        """The model's token prices at the end of the period, where it is or would be deployed serverless, in the row's currency; and when it retires.

        ``is_called``: calls of the period were answered. What is only announced or listed yields to that.
        """
        places = self._places(key)
        at = self._period.end - timedelta(microseconds=1)
        model = self._spelled.get(key, key)
        found: list[Decimal | None] = []
        own = [fact for _, fact in places if fact is not None and fact.mode == Mode.SERVERLESS]
        route = self._world.registry.route
        ends = [fact.retires_at if is_called else retires_at(fact, route(fact)) for fact in own]
        retires = max((one for one in ends if one is not None), default=None) if None not in ends else None
        for meter in (PriceMeter.INPUT_TOKENS, PriceMeter.OUTPUT_TOKENS):
            prices = (
                self._in_currency(price, currency, workspace)
                for workspace, fact in places
                for price in (self._world.prices.price(meter=meter, at=at, model=model, workspace=workspace, region=fact.region if fact is not None else None),)
                if isinstance(price, UnitPrice)
            )
            found.append(next((price for price in prices if price is not None), None))
        reason = None
        if None in found:
            reason = "there is no serverless price of this model" + (f" in {currency}" if currency else "")
        elif retires is not None and retires <= self._now:
            reason = f"the model is retired from serverless since {retires:%Y-%m-%d}"
        elif own and not is_called and all(route(fact) == Route.MARKETPLACE and not is_sold_serverless(fact.region) for fact in own):
            reason = f"the model is not offered serverless in {', '.join(sorted({fact.region or '' for fact in own}))}"
        limit, source = self._limit(key)
        return Serverless(input_price=found[0], output_price=found[1], tokens_per_minute_limit=limit, reason=reason, limit_source=source), retires

    def _limit(self, key: str) -> tuple[int, str]:
        """What its serverless deployments may serve a minute together, each by the best word on it, and whose words these are."""
        asked = {(workspace, fact.name) for workspace, fact in self._places(key) if workspace and fact is not None and fact.mode == Mode.SERVERLESS}
        among = {(workspace, name) for workspace, name in asked if self._is_asked(workspace, name)} | self._called.get(key, set())
        places = {(workspace.casefold(), name.casefold()) for workspace, name in among}
        limits = [one for place in sorted(places) if (one := rates.limit_of(self._limits, *place, "tokens_per_minute")) is not None]
        if not limits:
            return rates.DEFAULT_TOKENS_PER_MINUTE, "default"
        said = ", ".join(sorted({one.source for one in limits}))
        return sum(one.value for one in limits), said if len(limits) == 1 else f"{len(limits)} deployments together: {said}"

    def _places(self, key: str) -> list[tuple[str | None, DeploymentFact | None]]:
        """Where the model runs, serverless deployments first; at the end nowhere in particular."""
        found: list[tuple[str | None, DeploymentFact | None]] = []
        for workspace, name in self._world.registry.deployments():
            fact = self._world.registry.fact(workspace, name, self._now)
            if fact is not None and fact.model and model_key(fact.model) == key:
                found.append((workspace, fact))
        found.sort(key=lambda place: place[1] is None or place[1].mode != Mode.SERVERLESS)
        return [*found, (None, None)]

    def _in_currency(self, price: UnitPrice, currency: str | None, workspace: str | None) -> Decimal | None:
        if currency is None or price.currency == currency:
            return price.per_unit
        subscription = self._world.registry.subscription(workspace, self._now) if workspace else None
        rate = None if subscription is None else self._world.rate(subscription, price.currency, currency, self._period.end.date())
        return None if rate is None else money.times(price.per_unit, rate)

    def _imagined(self, key: str, currency: str | None, serverless: Serverless, known: _Capacity, *, whole: Load, mix: Load) -> WhatIfAnswer | None:
        """The instances of the what-if beside serverless, for the load as it was: first whether either can carry it, then which costs less."""
        asked = self._what_if
        if asked is None:
            return None
        hourly = self._hourly(key, currency, asked.sku)
        cost = None if hourly is None else money.times(money.times(hourly, asked.instances), asked.hours_per_day)
        # What an instance serves is known of sizes that run the model; of several of one size the slowest speaks.
        said = known.by_size.get(asked.sku.casefold(), [])
        serves = [one for one in said if one is not None]
        room = self._room_for(key, known, asked)
        managed = Managed(
            capacity_cost=None if cost is None else money.times(cost, self._days),
            instances=asked.instances,
            tokens_per_minute=min(serves) if serves else None,
            carries=_NOTHING,
            reason=self._out_of_hours(key, asked),
            is_fixed=True,
            has_room=room.holds,
            no_room=room.reason,
        )
        can, lack = managed.can(whole)
        if can is None and not serves:
            lack = f"what a {asked.sku[:60]} serves of this model is not known: no deployment of the model on that size has a capacity_tokens_per_minute"
        cannot, advice = serverless.cannot(whole), advise(whole, serverless, managed, self._days)
        reason = advice.reason
        if cost is None:
            reason = f"there is no hourly price of {asked.sku[:60]} in this currency" + ("" if skus.cores(asked.sku) else "; the size is not one we know")
        elif can is None and cannot is None and whole.tokens:
            reason = lack
        return WhatIfAnswer(
            capacity_cost_per_day=cost,
            break_even_tokens_per_day=None if cost is None else break_even(cost, Decimal(1), mix.input_tokens, mix.output_tokens, serverless),
            reason=reason,
            serverless_feasible=cannot is None,
            serverless_reason=cannot,
            managed_feasible=can,
            managed_reason=lack,
            capacity_tokens_per_day=int(min(serves) * 60 * asked.instances * asked.hours_per_day) if serves else None,
            instances_needed=managed.instances_for(whole),
            room=room,
            cheaper=advice.cheaper,
            saving_per_day=advice.saving_per_day,
        )

    def _room_for(self, key: str, known: _Capacity, asked: WhatIf) -> Room:
        """Whether the vCPU quota holds the what-if's instances in place of those that run."""
        if asked.instances <= known.running.get(asked.sku.casefold(), 0):
            return ENOUGH
        # Where nothing of the model runs on instances yet, they would run where it is deployed otherwise.
        sites = known.sites or {self._site(workspace, fact.name, fact) for workspace, fact in self._places(key) if workspace and fact is not None}
        return self._room(asked.sku, asked.instances, sites, known.held)

    def _room_for_more(self, known: _Capacity, needed: int | None) -> Room:
        """Whether the vCPU quota holds as many as the load needs beside those that run, of one of the sizes that run."""
        if needed is None or needed <= known.instances:
            return ENOUGH
        found = [
            self._room(sku, count + needed - known.instances, known.sites, [(site, fact) for site, fact in known.held if (fact.sku or "").casefold() == sku])
            for sku, count in sorted(known.running.items())
        ]
        for holds in (True, None, False):
            for room in found:
                if room.holds is holds:
                    return room
        return ENOUGH

    def _room(self, sku: str, instances: int, sites: Iterable[Site], own: Sequence[tuple[Site, DeploymentFact]]) -> Room:
        if self._answer.query.filters.visible is not None:
            return Room(
                holds=None, reason="whether the vCPU quota holds more instances is not told to a key of some workspaces: quotas are of whole subscriptions"
            )
        return self._quotas.room(sku, instances, sites, own=own)

    def _hourly(self, key: str, currency: str | None, sku: str) -> Decimal | None:
        """What an hour of the size costs where the model runs, else anywhere."""
        if currency is None:
            return None  # nothing says in which currency it should stand
        model, at = self._spelled.get(key, key), self._period.end - timedelta(microseconds=1)
        for region in dict.fromkeys([*(fact.region for _, fact in self._places(key) if fact is not None), None]):
            price = self._world.prices.price(meter=PriceMeter.INSTANCE_HOURS, at=at, model=model, sku=sku, region=region)
            if isinstance(price, UnitPrice) and (hourly := self._in_currency(price, currency, None)) is not None:
                return hourly
        return None

    def _out_of_hours(self, key: str, asked: WhatIf) -> str | None:
        """Why instances that run so many hours of every day leave calls unanswered; None where they need not."""
        hours = {
            at % DAY_SECONDS // _HOUR for mode in (Mode.SERVERLESS, Mode.MANAGED_COMPUTE) for at, tokens in self._hours.get((key, mode), {}).items() if tokens
        }
        if len(hours) <= asked.hours_per_day:
            return None
        return f"calls come in {len(hours)} hours of the day (UTC), and the instances would run {money.text(asked.hours_per_day)}"
