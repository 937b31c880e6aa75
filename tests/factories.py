"""Rows with sensible defaults, for tests to stand facts up in a few words.

Each function takes a session and keyword overrides of the table's columns, inserts, and gives the row back with its id
(take what you need of it before the session's block ends: the commit expires it).
What the service commits together is inserted together: an event with its rollups, a charge with its day's sum and its
part's totals. A test that is about *how* such rows come about uses the service's own functions instead.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, select

from models import identities, money
from models.alerts import Alert, AlertState, Budget, Kind, Severity
from models.charges import IN_SCOPE, BillPart, Charge, ChargeClass, ChargeDay, ChargeItem, MeterKind
from models.columns import EPOCH, canonical_json, to_microseconds
from models.corrections import UsagePosting
from models.meters import MappedKind, MeterMapping
from models.notices import Format, Receiver
from models.prices import Price, PriceMeter
from models.resources import DeploymentFact, Mode, Owner, Route, Workspace, WorkspaceFact
from models.usage import (
    MINUTE_SECONDS,
    QUARTER_SECONDS,
    STATUS_CODE,
    Operation,
    Quality,
    Status,
    UsageArrival,
    UsageEvent,
    UsageMinute,
    UsageQuarter,
    UsageSeries,
    UsageSource,
)

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = "Llama-3.3-70B-Instruct"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
GROUP = "rg-ai"

_numbers = count(1)
_Row = TypeVar("_Row", bound=SQLModel)


def _added(session: Session, row: _Row) -> _Row:
    session.add(row)
    session.flush()
    return row


# -- usage --------------------------------------------------------------------------------------


def workspace(session: Session, name: str = "ws-east") -> Workspace:
    """The workspace of that name, made if there is none yet."""
    found = session.exec(select(Workspace).where(Workspace.name == name)).first()
    return found or _added(session, Workspace(name=name, first_seen_at=LONG_AGO))


def source(session: Session, name: str = "default") -> UsageSource:
    """The source of that name, made if there is none yet."""
    found = session.exec(select(UsageSource).where(UsageSource.name == name)).first()
    return found or _added(session, UsageSource(name=name))


def series(
    session: Session, *, workspace_name: str = "ws-east", source_name: str = "default", tags: dict[str, str] | None = None, **overrides: Any
) -> UsageSeries:
    """The series of these facts, made if there is none yet."""
    facts: dict[str, Any] = {
        "workspace_id": workspace(session, workspace_name).id,
        "source_id": source(session, source_name).id,
        "endpoint": "",
        "deployment": "llama-chat",
        "model": MODEL,
        "operation": Operation.CHAT.value,
        "fine_tuned": False,
        "application": "",
        "team": "",
        "tags": canonical_json(tags or {}),
    } | overrides
    digest = hashlib.sha256(canonical_json(facts).encode()).digest()
    found = session.exec(select(UsageSeries).where(UsageSeries.digest == digest)).first()
    return found or _added(session, UsageSeries(**facts, digest=digest))


def event(
    session: Session,
    of: UsageSeries | None = None,
    *,
    time: datetime = NOW,
    input_tokens: int | None = 1000,
    output_tokens: int | None = 200,
    status: Status = Status.SUCCESS,
    **overrides: Any,
) -> UsageEvent:
    """One event (of the default series unless told) and its share of the rollups; received when it happened."""
    of = of or series(session)
    name = f"event-{next(_numbers)}"
    event_id = overrides.get("event_id", name)
    is_missing = input_tokens is None or (output_tokens is None and of.operation != Operation.EMBEDDINGS.value)
    is_answered = status in {Status.SUCCESS, Status.INCOMPLETE, Status.FILTERED}
    facts: dict[str, Any] = {
        "time": time,
        "workspace_id": of.workspace_id,
        "source_id": of.source_id,
        "event_id": event_id,
        "series_id": of.id,
        "status": STATUS_CODE[status],
        "billable": True,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "quality": int(Quality.MISSING if is_missing else Quality.REPORTED),
        "is_unknown": is_missing and is_answered and overrides.get("billable", True),
        "received_at": time,
        "seq": next(_numbers),
    } | overrides
    row = _added(session, UsageEvent(**facts))
    identities.note(session, of.workspace_id, of.source_id, event_id, to_microseconds(row.time))
    _roll_up(session, row)
    return row


def taken_back(session: Session, event: UsageEvent, *, kind: str = "void", made_at: datetime) -> UsagePosting:
    """A posting that an event of success counts no more; its share of the rollups stays as it is."""
    counts: dict[str, Any] = {name: getattr(event, name) or 0 for name in ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens")}
    of: dict[str, Any] = {"time": event.time, "seq": event.seq, "series_id": event.series_id, "outcome": 1, "unknown_requests": 0, "estimated_requests": 0}
    return _added(session, UsagePosting(**of, **counts, sign=-1, kind=kind, made_at=made_at))


def _roll_up(session: Session, row: UsageEvent) -> None:
    sums = {
        "requests": 1,
        "input_tokens": row.input_tokens or 0,
        "output_tokens": row.output_tokens or 0,
        "cached_input_tokens": row.cached_input_tokens or 0,
        "reasoning_output_tokens": row.reasoning_output_tokens or 0,
        "unknown_requests": int(row.is_unknown),
        "estimated_requests": int(row.quality == Quality.ESTIMATED),
    }
    seconds = to_microseconds(row.time) // 1_000_000
    for table, width in ((UsageQuarter, QUARTER_SECONDS), (UsageMinute, MINUTE_SECONDS)):
        key = {
            "starts_at": seconds // width * width,
            "series_id": row.series_id,
            "known_on": (row.received_at - EPOCH) // timedelta(days=1),
            "outcome": row.status * 2 + int(row.billable),
        }
        found = session.get(table, tuple(key.values()))
        if found is None:
            session.add(table(**key, **sums))
        else:
            for name, value in sums.items():
                setattr(found, name, getattr(found, name) + value)
    _note_arrival(session, row)
    session.flush()


def _note_arrival(session: Session, row: UsageEvent) -> None:
    arrived_at = to_microseconds(row.received_at) // 3_600_000_000 * 3600
    key = (arrived_at, (row.time - EPOCH) // timedelta(days=1), 0)
    found = session.get(UsageArrival, key)
    if found is None:
        session.add(UsageArrival(arrived_at=key[0], happened_on=key[1], writer=key[2], events=1, last_seq=row.seq, last_received_at=row.received_at))
    else:
        found.events += 1
        found.last_seq = max(found.last_seq, row.seq)
        found.last_received_at = max(found.last_received_at, row.received_at)


# -- the registry -------------------------------------------------------------------------------


def workspace_fact(session: Session, **overrides: Any) -> WorkspaceFact:
    """An Azure ML workspace as the inventory tells it."""
    facts: dict[str, Any] = {
        "workspace": "ws-east",
        "subscription_id": SUBSCRIPTION,
        "resource_group": GROUP,
        "region": "eastus",
        "source": "inventory",
        "known_from": LONG_AGO,
    }
    return _added(session, WorkspaceFact(**facts | overrides))


def serverless(session: Session, name: str = "llama-chat", **overrides: Any) -> DeploymentFact:
    """A serverless deployment bought through the Marketplace, as the inventory tells it."""
    facts: dict[str, Any] = {
        "mode": Mode.SERVERLESS,
        "route": Route.MARKETPLACE,
        "model": MODEL,
    }
    return deployment_fact(session, name, **facts | overrides)


def foundry(session: Session, name: str = "llama-foundry", **overrides: Any) -> DeploymentFact:
    """A deployment on a Foundry account, as the inventory tells it."""
    facts: dict[str, Any] = {
        "mode": Mode.SERVERLESS,
        "route": Route.FOUNDRY,
        "model": MODEL,
    }
    return deployment_fact(session, name, **facts | overrides)


def managed(session: Session, name: str = "llama-online/blue", **overrides: Any) -> DeploymentFact:
    """A managed online deployment of one instance, as the inventory tells it."""
    facts: dict[str, Any] = {
        "mode": Mode.MANAGED_COMPUTE,
        "route": Route.COMPUTE,
        "model": MODEL,
        "sku": "Standard_NC24ads_A100_v4",
        "instance_count": 1,
    }
    return deployment_fact(session, name, **facts | overrides)


def deployment_fact(session: Session, name: str, **overrides: Any) -> DeploymentFact:
    """What is known of the deployment ``endpoint/deployment`` (one name where both are the same)."""
    endpoint, _, deployment = name.partition("/")
    facts: dict[str, Any] = {
        "workspace": "ws-east",
        "name": name,
        "endpoint": endpoint,
        "deployment": deployment or endpoint,
        "region": "eastus",
        "state": "Online",
        "source": "inventory",
        "known_from": LONG_AGO,
    }
    return _added(session, DeploymentFact(**facts | overrides))


def owner(session: Session, **overrides: Any) -> Owner:
    """A team and cost centre that answer for a deployment, unless told otherwise."""
    facts: dict[str, Any] = {
        "workspace": "ws-east",
        "deployment": "llama-chat",
        "team": "search",
        "cost_center": "cc-100",
        "source": "imported",
        "known_from": LONG_AGO,
    }
    return _added(session, Owner(**facts | overrides))


# -- prices -------------------------------------------------------------------------------------


def price(session: Session, meter: PriceMeter = PriceMeter.INPUT_TOKENS, unit_price: Decimal | str = "0.71", **overrides: Any) -> Price:
    """An imported USD price: per million tokens, or per hour for the hour meters."""
    is_hourly = meter in {PriceMeter.HOSTING_HOURS, PriceMeter.INSTANCE_HOURS}
    facts: dict[str, Any] = {
        "model": "" if meter is PriceMeter.INSTANCE_HOURS else MODEL,
        "meter": meter,
        "unit_price": Decimal(unit_price),
        "currency": "USD",
        "unit": "1 hour" if is_hourly else "1M tokens",
        "origin": "imported",
        "version": "prices-1",
        "known_from": LONG_AGO,
    }
    return _added(session, Price(**facts | overrides))


def token_prices(session: Session, input_price: Decimal | str = "0.71", output_price: Decimal | str = "0.71", **overrides: Any) -> tuple[Price, Price]:
    """Prices of input and output per million tokens."""
    return (
        price(session, PriceMeter.INPUT_TOKENS, input_price, **overrides),
        price(session, PriceMeter.OUTPUT_TOKENS, output_price, **overrides),
    )


# -- bills --------------------------------------------------------------------------------------


def bill_part(session: Session, **overrides: Any) -> BillPart:
    """An empty, landed part of November 2026's bill; ``charge`` fills it and keeps its totals."""
    number = next(_numbers)
    facts: dict[str, Any] = {
        "landing_id": f"landing-{number}",
        "subscription_id": SUBSCRIPTION,
        "period_start": date(2026, 11, 1),
        "source": "cost_details_mca",
        "file_name": "november.csv",
        "file_sha256": hashlib.sha256(str(number).encode()).hexdigest(),
        "rows": 0,
        "totals": {},
        "in_scope_totals": {},
        "exchange_rates": {},
        "reaches": {},
        "problems": [],
        "landed_at": NOW,
    }
    return _added(session, BillPart(**facts | overrides))


def charge_item(session: Session, charge_class: ChargeClass = ChargeClass.MARKETPLACE, meter_kind: MeterKind = MeterKind.INPUT, **overrides: Any) -> ChargeItem:
    """What was charged, in the shape of its class: a Marketplace offer, a Foundry meter, or a VM of an endpoint."""
    shape: dict[str, Any]
    match charge_class:
        case ChargeClass.MARKETPLACE:
            shape = {"resource_id": _resource("Microsoft.SaaS/resources/llama-offer"), "model": MODEL, "unit": "1K", "unit_size": Decimal(1000)}
        case ChargeClass.FOUNDRY:
            shape = {
                "resource_id": _resource("Microsoft.CognitiveServices/accounts/ws-east"),
                "workspace": "ws-east",
                "deployment": "llama-foundry",
                "model": MODEL,
                "unit": "1M",
                "unit_size": Decimal(1_000_000),
            }
        case ChargeClass.COMPUTE:
            shape = {
                "resource_id": _resource("Microsoft.MachineLearningServices/workspaces/ws-east"),
                "workspace": "ws-east",
                "endpoint": "llama-online",
                "deployment": "blue",
                "sku": "Standard_NC24ads_A100_v4",
                "cores": 24,
                "unit": "1 Hour",
                "unit_size": Decimal(1),
                "meter_kind": MeterKind.COMPUTE if meter_kind is MeterKind.INPUT else meter_kind,
            }
        case ChargeClass.ADJUSTMENT | ChargeClass.OUT_OF_SCOPE:
            shape = {"meter_kind": MeterKind.ADJUSTMENT if charge_class is ChargeClass.ADJUSTMENT else MeterKind.OTHER}
    facts: dict[str, Any] = {
        "charge_class": charge_class,
        "meter_kind": meter_kind,
        "subscription_id": SUBSCRIPTION,
        "resource_group": GROUP,
        "region": "eastus",
        "tags": {},
        "digest": hashlib.sha256(f"item-{next(_numbers)}".encode()).digest(),
    }
    return _added(session, ChargeItem(**facts | shape | overrides))


def _resource(name: str) -> str:
    return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/{name}"


def meter_mapping(session: Session, meter: str, kind: MappedKind, **overrides: Any) -> MeterMapping:
    """What somebody said long ago that a meter counts."""
    facts: dict[str, Any] = {"meter": meter, "kind": kind, "author": "finance", "known_from": LONG_AGO}
    return _added(session, MeterMapping(**facts | overrides))


def charge(
    session: Session,
    part: BillPart,
    item: ChargeItem,
    billed_cost: Decimal | str,
    *,
    charged_on: date = date(2026, 11, 10),
    quantity: Decimal | str | None = "1",
    **overrides: Any,
) -> Charge:
    """One billed row of the part, its day's sum, and the part's totals and reach."""
    facts: dict[str, Any] = {
        "part_id": part.id,
        "line": part.rows + 2,  # the header is line 1
        "item_id": item.id,
        "charged_on": charged_on,
        "charge_type": "Usage",
        "quantity": None if quantity is None else Decimal(quantity),
        "billed_cost": Decimal(billed_cost),
        "currency": "USD",
        "pricing_currency": "USD",
    }
    row = _added(session, Charge(**facts | overrides))
    _sum_day(session, row)
    part.rows += 1
    part.totals = _increased(part.totals, row)
    if item.charge_class in IN_SCOPE:
        part.in_scope_totals = _increased(part.in_scope_totals, row)
        if row.charge_type == "Usage":
            route = item.charge_class.value
            part.reaches = part.reaches | {route: max(part.reaches.get(route, ""), row.charged_on.isoformat())}
    session.add(part)
    session.flush()
    return row


def _sum_day(session: Session, row: Charge) -> None:
    effective = row.billed_cost if row.effective_cost is None else row.effective_cost
    found = session.get(ChargeDay, (row.part_id, row.charged_on, row.item_id, row.charge_type, row.currency))
    if found is None:
        session.add(
            ChargeDay(
                part_id=row.part_id,
                charged_on=row.charged_on,
                item_id=row.item_id,
                charge_type=row.charge_type,
                currency=row.currency,
                rows=1,
                quantity=row.quantity,
                billed_cost=row.billed_cost,
                effective_cost=effective,
                invoiced_rows=1 if row.invoice_id else 0,
                invoiced_cost=row.billed_cost if row.invoice_id else None,
            )
        )
        return
    found.rows += 1
    found.quantity = None if found.quantity is None or row.quantity is None else money.plus(found.quantity, row.quantity)
    found.billed_cost = money.plus(found.billed_cost, row.billed_cost)
    if row.invoice_id:
        found.invoiced_rows += 1
        found.invoiced_cost = money.plus(found.invoiced_cost or money.ZERO, row.billed_cost)
    found.effective_cost = money.plus(found.effective_cost, effective)


def _increased(totals: dict[str, str], row: Charge) -> dict[str, str]:
    return totals | {row.currency: money.text(money.plus(Decimal(totals.get(row.currency, "0")), row.billed_cost))}


def supersede(session: Session, part: BillPart, at: datetime) -> None:
    """A later landing took the part's place at that instant."""
    session.execute(sa.update(BillPart).where(sa.column("id") == part.id).values(superseded_at=at))
    session.refresh(part)


def receiver(session: Session, receiver_id: str, **columns: Any) -> Receiver:
    """Somebody who is told, in Slack's words unless said otherwise."""
    facts: dict[str, Any] = {
        "name": receiver_id,
        "url": "https://hooks.example.com/x",
        "format": Format.SLACK,
        "workspaces": [],
        "created_at": NOW,
        "updated_at": NOW,
    }
    row = Receiver(id=receiver_id, **facts | columns)
    session.add(row)
    session.flush()
    return row


def budget(session: Session, *, now: datetime, amount: str = "2000", **overrides: Any) -> Budget:
    """A month's budget of everything in USD."""
    said: dict[str, Any] = {"id": "budget_1", "name": "All of it", "scope": {}, "currency": "USD", "period": "month", "steps": [50, 80], "forecast_steps": []}
    made = Budget(**said | {"severity": Severity.WARNING, "receivers": [], "created_at": now, "updated_at": now} | overrides, amount=Decimal(amount))
    session.add(made)
    return made


def alert(session: Session, *, now: datetime, **overrides: Any) -> Alert:
    """An alert that has fired for an hour: 410,000 tokens in a minute of a deployment that may use 400,000."""
    said: dict[str, Any] = {
        "id": "alert_1",
        "seq": 1,
        "rule_id": "rule_1",
        "rule": "Tokens",
        "kind": Kind.TOKENS_PER_MINUTE,
        "state": AlertState.FIRING,
        "severity": Severity.CRITICAL,
        "scope": {"workspace": "ws-east", "deployment": "llama-foundry"},
        "subject": "s",
        "value": Decimal(410_000),
        "threshold": Decimal(400_000),
        "why": "410000 tokens in a minute",
        "sample": {},
        "receivers": [],
        "pending_at": now - timedelta(hours=2),
        "fired_at": now - timedelta(hours=1),
    }
    made = Alert(**said | overrides)
    session.add(made)
    return made
