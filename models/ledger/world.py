"""What was known at an instant, and the sums of usage of a period: the inputs of every figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models.charges import BillPart
from models.closing import closes_known
from models.columns import to_microseconds
from models.ledger.values import Filters
from models.matching import Identity, Registry
from models.meters import MeterBook, MeterMapping
from models.periods import DAY, Period, day_start, month_start
from models.prices import Price, PriceBook, model_key
from models.quotas import EndpointFact
from models.resources import DeploymentFact, Owner, Route, Workspace, WorkspaceFact
from models.usage import DAY_SECONDS, QUARTER_SECONDS, UsageSeries

_Known = TypeVar("_Known", WorkspaceFact, DeploymentFact, Owner, Price, MeterMapping)
_QUARTER = QUARTER_SECONDS * 1_000_000


@dataclass(frozen=True, slots=True)
class Series:
    """A usage series with its names; None where the sender said nothing."""

    id: int
    workspace: str
    endpoint: str | None
    deployment: str | None
    model: str | None
    operation: str
    application: str | None
    team: str | None
    tags: Mapping[str, str]


class World:
    """Everything but quantities that decides a figure, as known at one instant."""

    def __init__(self, session: Session, known: datetime) -> None:
        self.known = known
        self.registry = Registry(
            _known(session, WorkspaceFact, known),
            _known(session, DeploymentFact, known),
            _known(session, Owner, known),
            # Those that are gone, too: each tells the traffic of its time.
            session.exec(select(EndpointFact).where(col(EndpointFact.known_from) <= known)).all(),
        )
        self.prices = PriceBook(_known(session, Price, known))
        self.meters = MeterBook(_known(session, MeterMapping, known))
        self.series: dict[int, Series] = {}
        for row, name in session.execute(
            sa.select(UsageSeries, col(Workspace.name)).join(Workspace, col(Workspace.id) == col(UsageSeries.workspace_id)).order_by(col(UsageSeries.id))
        ):
            if row.id is not None:
                tags = json.loads(row.tags) if row.tags != "{}" else {}
                self.series[row.id] = Series(
                    row.id,
                    name,
                    row.endpoint or None,
                    row.deployment or None,
                    row.model or None,
                    row.operation,
                    row.application or None,
                    row.team or None,
                    tags,
                )
        self.parts = list(
            session.exec(
                select(BillPart)
                .where(col(BillPart.landed_at) <= known, sa.or_(col(BillPart.superseded_at).is_(None), col(BillPart.superseded_at) > known))
                .order_by(col(BillPart.subscription_id), col(BillPart.period_start), col(BillPart.id))
            )
        )
        self._landed = {(part.subscription_id, part.period_start) for part in self.parts}
        # A closed month is billed to its end, whatever day its last charge is of.
        self._closed = {close.month for close in closes_known(session, known)}
        self._reach: dict[tuple[str, str], date] = {}
        self._reached: dict[tuple[str | None, Route | None, date], bool] = {}
        self._currency: dict[str, list[tuple[date, str]]] = {}
        self._rates: dict[tuple[str, str, str], list[tuple[date, Decimal]]] = {}
        for part in self.parts:
            for route, day in part.reaches.items():
                key = (part.subscription_id, route)
                self._reach[key] = max(self._reach.get(key, date.min), date.fromisoformat(day))
            totals = part.in_scope_totals or part.totals
            if totals:
                main = min(totals, key=lambda code: (-abs(Decimal(totals[code])), code))
                self._currency.setdefault(part.subscription_id, []).append((part.period_start, main))
            for pair, rate in part.exchange_rates.items():
                source, _, target = pair.partition(">")
                self._rates.setdefault((part.subscription_id, source, target), []).append((part.period_start, Decimal(rate)))
        self._subscriptions = sorted({part.subscription_id for part in self.parts})

    def is_reached(self, subscription: str | None, route: Route | None, day: date) -> bool:
        """Whether the bill covers the day; an unknown subscription or route counts as covered where any could be."""
        key = (subscription, route, day)
        found = self._reached.get(key)
        if found is None:
            month = month_start(day)
            if month in self._closed:
                self._reached[key] = True
                return True
            routes = (route,) if route is not None else (Route.MARKETPLACE, Route.FOUNDRY)
            among = self._subscriptions if subscription is None else (subscription,)
            found = self._reached[key] = any(
                (name, month) in self._landed and any(self._reach.get((name, way), date.min) >= day for way in routes) for name in among
            )
        return found

    def billing_currency(self, subscription: str | None, day: date) -> str | None:
        """The currency the subscription is billed in: as the bill of that month says, else of an earlier one, else of a later one."""
        return None if subscription is None else _of_month(self._currency.get(subscription), day)

    def rate(self, subscription: str, source: str, target: str, day: date) -> Decimal | None:
        """The bill's own rate of that month, else of the latest earlier one, else of the first later one."""
        return Decimal(1) if source == target else _of_month(self._rates.get((subscription, source, target)), day)

    def billed_until(self) -> datetime | None:
        """The end of the last day that every route of every subscription has reached."""
        return day_start(min(self._reach.values()) + DAY) if self._reach else None


_Value = TypeVar("_Value")


def _of_month(dated: Sequence[tuple[date, _Value]] | None, day: date) -> _Value | None:
    """The value of the day's month, else of the latest earlier one, else of the first later one; ``dated`` is in order."""
    if not dated:
        return None
    month = month_start(day)
    earlier = [value for start, value in dated if start <= month]
    return earlier[-1] if earlier else dated[0][1]


class Lens:
    """The filters of a question, with names as the world knows them."""

    def __init__(self, world: World, filters: Filters) -> None:
        self.filters = filters
        self.models = {model_key(model) for model in filters.models}
        self.deployments: set[str] | None = None
        if filters.deployments:
            # What names mean, not as they were sent: a short name that a sender uses stays the short name of what it means.
            meant = {
                (found.workspace, found.deployment)
                for series in world.series.values()
                for found in (
                    world.registry.resolve(
                        workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=world.known
                    ),
                )
            }
            known = {
                name
                for workspace, name in meant | set(world.registry.deployments())
                if name is not None
                and (not filters.workspaces or workspace in filters.workspaces)
                and (filters.visible is None or workspace in filters.visible)
            }
            self.deployments = set()
            for said in filters.deployments:
                name = said.casefold()  # Azure's names are compared without case
                same = {full for full in known if full.casefold() == name}
                # The short name of managed compute is accepted where it is unique.
                short = {full for full in known if full.rsplit("/", 1)[-1].casefold() == name}
                self.deployments |= same or (short if len(short) == 1 else {said})

    def passes(self, identity: Identity, *, application: str | None, team: str | None, tags: Mapping[str, str]) -> bool:
        """Whether something belongs to what was asked."""
        filters = self.filters
        return (
            (filters.visible is None or identity.workspace in filters.visible)
            and (not filters.workspaces or identity.workspace in filters.workspaces)
            and (self.deployments is None or identity.deployment in self.deployments)
            and (not self.models or (identity.model is not None and model_key(identity.model) in self.models))
            and (not filters.modes or identity.mode in filters.modes)
            and (not filters.applications or application in filters.applications)
            and (not filters.teams or team in filters.teams)
            and all(any(tags.get(key) == value for name, value in filters.tags if name == key) for key, _ in filters.tags)
        )


def _known(session: Session, table: type[_Known], known: datetime) -> Sequence[_Known]:
    """The rows of a bitemporal table that were known at the instant."""
    known_from, known_to = col(table.known_from), col(table.known_to)
    return session.exec(select(table).where(known_from <= known, sa.or_(known_to.is_(None), known_to > known)).order_by(col(table.id))).all()


# -- usage, from rollups --------------------------------------------------------------------------

# (start of the slot in seconds since 1970, series, requests, input, output, cached input, reasoning output tokens,
#  requests of unknown tokens, requests of estimated tokens)
Use = tuple[int, int, int, int, int, int, int, int, int]

# Cached tokens are part of the input; a sender that says otherwise cannot make the rest of the input negative. Rows of
# what was taken back are negative throughout.
_SUMS = """SUM(requests), SUM(CASE WHEN outcome % 2 = 1 THEN input_tokens ELSE 0 END), SUM(CASE WHEN outcome % 2 = 1 THEN output_tokens ELSE 0 END),
SUM(CASE WHEN outcome % 2 = 0 THEN 0 WHEN ABS(cached_input_tokens) > ABS(input_tokens) THEN input_tokens ELSE cached_input_tokens END),
SUM(CASE WHEN outcome % 2 = 1 THEN reasoning_output_tokens ELSE 0 END), SUM(unknown_requests), SUM(estimated_requests)"""
_EVENT_SUMS = """COUNT(*), SUM(CASE WHEN billable THEN COALESCE(input_tokens, 0) ELSE 0 END), SUM(CASE WHEN billable THEN COALESCE(output_tokens, 0) ELSE 0 END),
SUM(CASE WHEN NOT billable THEN 0 WHEN COALESCE(cached_input_tokens, 0) > COALESCE(input_tokens, 0) THEN COALESCE(input_tokens, 0)
ELSE COALESCE(cached_input_tokens, 0) END),
SUM(CASE WHEN billable THEN COALESCE(reasoning_output_tokens, 0) ELSE 0 END),
SUM(CASE WHEN is_unknown THEN 1 ELSE 0 END), SUM(CASE WHEN quality = 2 THEN 1 ELSE 0 END)"""


def read_usage(session: Session, period: Period, *, slot: int, shift: int = 0, as_of: datetime | None, series: Sequence[int] | None) -> list[Use]:
    """Usage of the period per slot (seconds) and series: rollups for whole quarter hours, events for the broken ones.

    ``shift`` cuts each slot once more, that many seconds after its start: the midnights of another zone beside those of
    UTC. With ``as_of``, rollup rows of the days before its own count, and of its own day the events that had arrived by then.
    """
    start, end = to_microseconds(period.start), to_microseconds(period.end)
    whole_start, whole_end = -(-start // _QUARTER) * _QUARTER, end // _QUARTER * _QUARTER
    found: list[Any] = []
    only = "" if series is None else f" AND series_id IN ({','.join(map(str, series)) or 'NULL'})"
    at = _slot_of("starts_at", slot, shift)
    sources = 0
    if whole_start < whole_end:
        values = {"start": whole_start // 1_000_000, "end": whole_end // 1_000_000}
        known = ""
        if as_of is not None:
            values["known"] = to_microseconds(as_of) // 1_000_000 // DAY_SECONDS
            known = " AND known_on < :known"
        found += session.execute(
            sa.text(
                f"SELECT {at}, series_id, {_SUMS} FROM usage_quarter "  # noqa: S608 - numbers of ours only
                f"WHERE starts_at >= :start AND starts_at < :end{known}{only} GROUP BY 1, 2"
            ),
            values,
        ).all()
        sources += 1
        if as_of is not None:
            midnight = to_microseconds(as_of) // (DAY_SECONDS * 1_000_000) * DAY_SECONDS * 1_000_000
            for cut in _days_since(session, midnight, within=(whole_start, whole_end)):
                found += _read_events(session, cut, slot=slot, shift=shift, only=only, arrived_from=midnight, arrived_by=to_microseconds(as_of))
            sources += 1
            found += _read_postings(session, (whole_start, whole_end), slot=slot, shift=shift, only=only, made_from=midnight, made_by=to_microseconds(as_of))
    arrived_by = None if as_of is None else to_microseconds(as_of)
    for left, right in ((start, min(whole_start, end)), (max(whole_end, whole_start, start), end)):
        if left < right:
            found += _read_events(session, (left, right), slot=slot, shift=shift, only=only, arrived_from=None, arrived_by=arrived_by)
            found += _read_postings(session, (left, right), slot=slot, shift=shift, only=only, made_from=None, made_by=arrived_by)
            sources += 2
    # PostgreSQL sums bigint to numeric.
    if sources == 1:
        uses: list[Any] = [tuple(map(int, row)) for row in found]
        return sorted(uses, key=_slot_and_series)
    merged: dict[tuple[int, int], list[int]] = {}
    for row in found:
        into = merged.setdefault((int(row[0]), int(row[1])), [0] * 7)
        for index, value in enumerate(row[2:]):
            into[index] += int(value)
    return [(slot_at, series_id, *sums) for (slot_at, series_id), sums in sorted(merged.items())]  # type: ignore[misc]


def _days_since(session: Session, arrived_from: int, *, within: tuple[int, int]) -> list[tuple[int, int]]:
    """Where the events that arrived since lie, as runs of whole days cut to ``within`` (microseconds): the others need not be read."""
    days = session.scalars(
        sa.text("SELECT DISTINCT happened_on FROM usage_arrival WHERE arrived_at >= :since ORDER BY happened_on"), {"since": arrived_from // 1_000_000}
    )
    runs: list[list[int]] = []
    for day in days:
        if runs and runs[-1][1] == day:
            runs[-1][1] = day + 1
        else:
            runs.append([day, day + 1])
    width = DAY_SECONDS * 1_000_000
    cuts = [(max(first * width, within[0]), min(last * width, within[1])) for first, last in runs]
    return [(start, end) for start, end in cuts if start < end]


def _slot_and_series(use: Use) -> tuple[int, int]:
    return use[0], use[1]


def _slot_of(seconds: str, slot: int, shift: int) -> str:
    start = f"{seconds} / {slot} * {slot}"
    return start if not shift else f"{start} + CASE WHEN {seconds} % {slot} >= {shift} THEN {shift} ELSE 0 END"


def _read_events(
    session: Session, cut: tuple[int, int], *, slot: int, shift: int, only: str, arrived_from: int | None, arrived_by: int | None
) -> Sequence[Any]:
    values = {"start": cut[0], "end": cut[1]}
    arrived = ""
    if arrived_from is not None:
        arrived += " AND received_at >= :arrived_from"
        values["arrived_from"] = arrived_from
    if arrived_by is not None:
        arrived += " AND received_at <= :arrived_by"
        values["arrived_by"] = arrived_by
    return session.execute(
        sa.text(
            f"SELECT {_slot_of('(time / 1000000)', slot, shift)}, series_id, {_EVENT_SUMS} FROM usage_event "  # noqa: S608 - numbers of ours only
            f"WHERE time >= :start AND time < :end{arrived}{only} GROUP BY 1, 2"
        ),
        values,
    ).all()


def _read_postings(session: Session, cut: tuple[int, int], *, slot: int, shift: int, only: str, made_from: int | None, made_by: int | None) -> Sequence[Any]:
    """What was taken back of the events of a stretch, as signed sums: beside events read one by one, which know nothing of it."""
    values = {"start": cut[0], "end": cut[1]}
    made = ""
    if made_from is not None:
        made += " AND made_at >= :made_from"
        values["made_from"] = made_from
    if made_by is not None:
        made += " AND made_at <= :made_by"
        values["made_by"] = made_by
    counted = ", ".join(f"SUM(CASE WHEN outcome % 2 = 1 THEN sign * {name} ELSE 0 END)" for name in _POSTED)
    return session.execute(
        sa.text(
            f"SELECT {_slot_of('(time / 1000000)', slot, shift)}, series_id, SUM(sign), {counted}, "  # noqa: S608 - numbers of ours only
            f"SUM(sign * unknown_requests), SUM(sign * estimated_requests) FROM usage_posting WHERE time >= :start AND time < :end{made}{only} GROUP BY 1, 2"
        ),
        values,
    ).all()


_POSTED = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens")
