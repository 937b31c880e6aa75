"""Facts over time, chosen plainly: the registry, the owners, the price book and what meters count, as known at a moment.

Written from DESIGN.md; shares nothing with ``models/matching.py``, ``models.prices.PriceBook`` or ``models.meters.MeterBook``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Protocol, TypeVar

from sqlmodel import Session, select

from models import money
from models.charges import ChargeItem, MeterKind
from models.meters import HOUR_KINDS, MEANS, SUITS, TOKEN_KINDS, MeterMapping, meter_text, unit_from
from models.prices import UNIT_DIGITS, Price, PriceMeter, model_key
from models.quotas import EndpointFact
from models.resources import DeploymentFact, Owner, WorkspaceFact


class Known(Protocol):
    """A row of the registry, the owners, the price book or the mappings of meters."""

    id: int | None
    valid_from: datetime | None
    valid_to: datetime | None
    known_from: datetime
    known_to: datetime | None


def _was_known(row: Known, moment: datetime) -> bool:
    return row.known_from <= moment and (row.known_to is None or moment < row.known_to)


def _is_valid(row: Known, at: datetime) -> bool:
    return (row.valid_from is None or row.valid_from <= at) and (row.valid_to is None or at < row.valid_to)


def _arrival(row: Known) -> tuple[datetime, int]:
    return row.known_from, row.id or 0


_SOURCE_RANK = {"inventory": 1, "bill": 0}  # usage only lists what was seen
Fact = TypeVar("Fact", DeploymentFact, WorkspaceFact)


def valid_fact(rows: Sequence[Fact], at: datetime) -> Fact | None:
    """The row whose validity holds the instant: inventory over bill, then the later arrival."""
    return max((row for row in rows if _is_valid(row, at)), key=lambda row: (_SOURCE_RANK[row.source], _arrival(row)), default=None)


def fact_at(rows: Sequence[Fact], at: datetime) -> Fact | None:
    """The row that applies at an instant; outside every validity the last that ended, else the first to begin, of the best source."""
    found = valid_fact(rows, at)
    if found is not None or not rows:
        return found
    rank = max(_SOURCE_RANK[row.source] for row in rows)
    best = [row for row in rows if _SOURCE_RANK[row.source] == rank]
    ended = [row for row in best if row.valid_to is not None and row.valid_to <= at]
    if ended:
        return max(ended, key=lambda row: (row.valid_to or at, _arrival(row)))
    first = min(row.valid_from or at for row in best)
    return max((row for row in best if row.valid_from == first), key=_arrival)


class Registry:
    """What inventory and bills say of workspaces and deployments, as known at a moment. Names compare without case."""

    def __init__(self, session: Session, moment: datetime) -> None:
        self.deployments: dict[str, dict[str, list[DeploymentFact]]] = {}  # workspace -> full name -> rows
        self.workspaces: dict[str, list[WorkspaceFact]] = {}
        for deployment in session.exec(select(DeploymentFact)):
            if deployment.source in _SOURCE_RANK and _was_known(deployment, moment):
                self.deployments.setdefault(deployment.workspace.casefold(), {}).setdefault(deployment.name.casefold(), []).append(deployment)
        for workspace in session.exec(select(WorkspaceFact)):
            if workspace.source in _SOURCE_RANK and _was_known(workspace, moment):
                self.workspaces.setdefault(workspace.workspace.casefold(), []).append(workspace)
        self.looks = [row for row in session.exec(select(EndpointFact)) if row.known_from <= moment]  # at endpoints, also those that are gone

    def traffic(self, workspace: str, endpoint: str, deployment: str, at: datetime) -> list[tuple[str, int]]:
        """Full names and percentages of an endpoint's deployments, where a call names the endpoint alone and the endpoint has several."""
        if not endpoint or (deployment and deployment.casefold() != endpoint.casefold()):
            return []
        known = self.deployments.get(workspace.casefold(), {})
        several = [name for name, rows in known.items() if any(row.endpoint.casefold() == endpoint.casefold() for row in rows)]
        if len(several) < 2 or endpoint.casefold() in known:
            return []
        looks = [look for look in self.looks if look.workspace.casefold() == workspace.casefold() and look.endpoint.casefold() == endpoint.casefold()]
        looks.sort(key=lambda look: (look.known_from, look.id or 0))
        past = [look for look in looks if look.known_from <= at]
        told = past[-1] if past else looks[0] if looks else None
        if told is None or any(type(percent) is not int or percent < 0 for percent in told.traffic.values()) or sum(told.traffic.values()) != 100:
            return []
        return [(self.name(workspace, told.endpoint, name) or name, told.traffic[name]) for name in sorted(told.traffic)]

    def workspace_name(self, billed: str | None) -> str | None:
        """A workspace of a bill, as the registry spells it if it knows it."""
        if billed is None:
            return None
        rows: list[WorkspaceFact | DeploymentFact] = [*self.workspaces.get(billed.casefold(), ())]
        rows = rows or [row for named in self.deployments.get(billed.casefold(), {}).values() for row in named]
        return max(rows, key=lambda row: (_SOURCE_RANK[row.source], _arrival(row))).workspace if rows else billed

    def name(self, workspace: str | None, endpoint: str | None, deployment: str | None) -> str | None:
        """The full name that an endpoint and a deployment as sent (or tagged) mean."""
        known = self.deployments.get((workspace or "").casefold(), {})
        if endpoint and deployment:
            return self._spelled(known, deployment if endpoint.casefold() == deployment.casefold() else f"{endpoint}/{deployment}")
        sent = deployment or endpoint
        if not sent:
            return None
        if sent.casefold() in known:
            return self._spelled(known, sent)
        part = "deployment" if deployment else "endpoint"
        same = [rows for rows in known.values() if any(getattr(row, part).casefold() == sent.casefold() for row in rows)]
        return self._spelled(known, max(same[0], key=_arrival).name) if len(same) == 1 else sent

    @staticmethod
    def _spelled(known: Mapping[str, list[DeploymentFact]], name: str) -> str:
        inventory = [row for row in known.get(name.casefold(), ()) if row.source == "inventory"]
        return max(inventory, key=_arrival).name if inventory else name

    def deployment(self, workspace: str | None, name: str | None, at: datetime) -> DeploymentFact | None:
        if workspace is None or name is None:
            return None
        return fact_at(self.deployments.get(workspace.casefold(), {}).get(name.casefold(), ()), at)

    def workspace(self, name: str | None, at: datetime) -> WorkspaceFact | None:
        return None if name is None else fact_at(self.workspaces.get(name.casefold(), ()), at)

    def subscription(self, workspace: str | None, at: datetime) -> str | None:
        """From the rows that say one, whatever else the others say."""
        saying = [row for row in self.workspaces.get((workspace or "").casefold(), ()) if row.subscription_id]
        fact = fact_at(saying, at) if workspace is not None else None
        return (fact.subscription_id or "").lower() if fact else None

    def changes(self, workspace: str) -> set[datetime]:
        """The instants at which what is known of a workspace or its deployments may change."""
        key = workspace.casefold()
        rows: list[Known] = [*self.workspaces.get(key, ()), *(row for named in self.deployments.get(key, {}).values() for row in named)]
        looks = {look.known_from for look in self.looks if look.workspace.casefold() == key}
        return looks | {at for row in rows for at in (row.valid_from, row.valid_to) if at is not None}


class Owners:
    """Who answers for spend, as known at a moment."""

    def __init__(self, session: Session, moment: datetime) -> None:
        self.rows = [row for row in session.exec(select(Owner)) if _was_known(row, moment)]
        self.changes = {at for row in self.rows for at in (row.valid_from, row.valid_to) if at is not None}

    def of(
        self,
        registry: Registry,
        *,
        workspace: str | None,
        deployment: str | None,
        at: datetime,
        application: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> tuple[str | None, str | None]:
        """Team and cost centre: each from the most specific row that applies and says one."""
        found = []
        for row in self.rows:
            if not _is_valid(row, at):
                continue
            if row.workspace and (workspace is None or row.workspace.casefold() != workspace.casefold()):
                continue
            if row.deployment:
                meant = registry.name(workspace, None, row.deployment)
                if deployment is None or meant is None or meant.casefold() != deployment.casefold():
                    continue
            if row.application and row.application != application:
                continue
            if row.tag_key and (row.tag_key not in (tags or {}) or (row.tag_value is not None and (tags or {})[row.tag_key] != row.tag_value)):
                continue
            specific = 3 if row.tag_key else 2 if row.application else 1 if row.deployment else 0
            found.append(((specific, bool(row.workspace), _arrival(row)), row))
        found.sort(key=lambda pair: pair[0], reverse=True)
        team = next((row.team for _, row in found if row.team), None)
        return team, next((row.cost_center for _, row in found if row.cost_center), None)


_ORIGIN_RANK = {"imported": 2, "synced": 1, "bundled": 0}


class Prices:
    """The price rows known at a moment, and this module's own way of choosing one."""

    def __init__(self, session: Session, moment: datetime) -> None:
        self.rows: dict[PriceMeter, list[Price]] = {}
        for row in session.exec(select(Price)):
            if _was_known(row, moment):
                self.rows.setdefault(row.meter, []).append(row)
        self.changes = {at for rows in self.rows.values() for row in rows for at in (row.valid_from, row.valid_to) if at is not None}
        self._fitting: dict[tuple[PriceMeter, str | None, str | None, str | None, str | None], list[Price]] = {}

    def fitting(self, meter: PriceMeter, *, model: str | None, workspace: str | None, sku: str | None, region: str | None) -> list[Price]:
        """The rows that may apply at some time, the one that wins first."""
        key = (meter, model, workspace, sku, region)
        if key not in self._fitting:
            self._fitting[key] = sorted(
                (
                    row
                    for row in self.rows.get(meter, ())
                    if (not row.model or (model is not None and model_key(row.model) == model_key(model)))
                    and (not row.workspace or row.workspace == workspace)
                    and (not row.sku or (sku is not None and row.sku.casefold() == sku.casefold()))
                    and (not row.region or (region is not None and row.region.casefold() == region.casefold()))
                ),
                key=lambda row: (_ORIGIN_RANK[row.origin], bool(row.workspace), bool(row.sku), bool(row.region), bool(row.model), _arrival(row)),
                reverse=True,
            )
        return self._fitting[key]

    @staticmethod
    def at(rows: Iterable[Price], at: datetime) -> Price | None:
        return next((row for row in rows if _is_valid(row, at)), None)


class Meters:
    """What is said of meters at a moment, tried one after the other for each charge."""

    def __init__(self, session: Session, moment: datetime) -> None:
        self.rows = [row for row in session.exec(select(MeterMapping)) if _was_known(row, moment)]

    def item(self, item: ChargeItem, at: datetime) -> ChargeItem:
        """What was charged, with its meter as the best mapping has it."""
        if item.charge_class not in SUITS or item.meter_kind is MeterKind.COMMITMENT:
            return item
        fitting = [
            row
            for row in self.rows
            if MEANS[row.kind] in SUITS[item.charge_class]
            and _is_valid(row, at)
            and _is_like(meter_text(item).casefold(), row.meter.casefold().split("*"))
            and row.offer.casefold() in ("", (item.offer_id or "").casefold())
        ]
        if not fitting:
            return item
        best = max(fitting, key=lambda row: ("*" not in row.meter, row.offer != "", _arrival(row)))
        kind, is_fine_tuned = MEANS[best.kind]
        unit = unit_from(best.unit or item.unit)
        if kind not in TOKEN_KINDS | HOUR_KINDS:
            size = None
        elif not best.unit and item.unit_size is not None and (kind in TOKEN_KINDS) is (item.meter_kind in TOKEN_KINDS):
            size = item.unit_size
        else:
            size = unit.size if unit is not None and unit.fits(kind) and (unit.noun or unit.says_size) else None
        return ChargeItem(**item.model_dump() | {"meter_kind": kind, "is_fine_tuned": is_fine_tuned, "unit_size": size})


def _is_like(text: str, pieces: Sequence[str]) -> bool:
    """Whether a text is these pieces with anything between them."""
    if len(pieces) == 1:
        return text == pieces[0]
    first, *middle, last = pieces
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    rest = text[len(first) : len(text) - len(last)]
    for piece in middle:
        found = rest.find(piece)
        if found < 0:
            return False
        rest = rest[found + len(piece) :]
    return True


@cache
def per_unit(price: Decimal, unit: str) -> Decimal:
    """The price of a single token or hour, from one of a price file's units."""
    return price.scaleb(-UNIT_DIGITS[unit], money.EXACT)
