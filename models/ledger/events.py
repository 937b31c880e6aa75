"""Stored events as people see them: the list, and one event explained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.charges import MeterKind
from models.columns import from_microseconds, to_microseconds
from models.errors import Conflict, InvalidInput, NotFound
from models.identities import times_of
from models.ledger.costs import Answer, costs
from models.ledger.taken_back import Standing, standings, witnesses_of
from models.ledger.values import CostQuery, Filters, Receipt, ReceiptLine, UsagePage, UsageRecord
from models.ledger.world import World
from models.money import ZERO
from models.periods import DAY, Period, day_start, utc_day
from models.resources import Mode
from models.usage import QUARTER_SECONDS, STATUS_OF_CODE, Quality, UsageEvent, UsageSeries, UsageSource, flag_names

_QUARTER = QUARTER_SECONDS * 1_000_000
_COUNTED = Standing(True, None, None)


def usage_list(session: Session, *, period: Period, filters: Filters, limit: int, cursor: str | None, now: datetime) -> UsagePage:
    """Stored events of the period, newest first."""
    answer = Answer(session, CostQuery(period, filters=filters), now=now)
    world = answer.world
    statement = select(UsageEvent, UsageSource.name).join(UsageSource, col(UsageSource.id) == col(UsageEvent.source_id))
    statement = statement.where(col(UsageEvent.time) >= period.start, col(UsageEvent.time) < period.end)
    # As in costs, a series is what the filters ask for at the time of the event, not as it is known today.
    whole: list[int] = []
    parts: list[sa.ColumnElement[bool]] = []
    for series in world.series.values():
        stretches = answer.meanings.asked(series)
        if stretches == [(None, None)]:
            whole.append(series.id)
        for begin, end in stretches if stretches != [(None, None)] else ():
            of_series = [col(UsageEvent.series_id) == series.id]
            of_series += [] if begin is None else [col(UsageEvent.time) >= begin]
            of_series += [] if end is None else [col(UsageEvent.time) < end]
            parts.append(sa.and_(*of_series))
    if len(whole) < len(world.series):
        statement = statement.where(sa.or_(col(UsageEvent.series_id).in_(whole), *parts))
    if cursor is not None:
        at, seq = _read_cursor(cursor)
        statement = statement.where(sa.or_(col(UsageEvent.time) < at, sa.and_(col(UsageEvent.time) == at, col(UsageEvent.seq) < seq)))
    found = session.execute(statement.order_by(col(UsageEvent.time).desc(), col(UsageEvent.seq).desc()).limit(limit + 1)).all()
    known = standings(session, [event.seq for event, _ in found[:limit]])
    items = [_record(world, event, source, known.get(event.seq, _COUNTED)) for event, source in found[:limit]]
    last = found[limit - 1][0] if len(found) > limit else None
    return UsagePage(items, None if last is None else f"{to_microseconds(last.time)}-{last.seq}")


def _read_cursor(cursor: str) -> tuple[datetime, int]:
    match = re.fullmatch(r"(\d{1,17})-(\d{1,19})", cursor)
    if match is None:
        raise InvalidInput(f"cursor is not one that a list gave: {cursor[:60]!r}")
    return from_microseconds(int(match.group(1))), int(match.group(2))


def _record(world: World, event: UsageEvent, source: str, standing: Standing) -> UsageRecord:
    series = world.series[event.series_id]
    at = from_microseconds(to_microseconds(event.time) // _QUARTER * _QUARTER)
    identity = world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=at)
    said = {"duration_ms": event.duration_ms, "response_id": event.response_id, "request_id": event.request_id}
    details = {name: value for name, value in said.items() if value is not None} | dict(event.details or {})
    return UsageRecord(
        handle=f"evt_{to_microseconds(event.time)}_{event.seq}",
        id=event.event_id,
        source=source,
        time=event.time,
        workspace=identity.workspace or series.workspace,
        deployment=identity.deployment,
        endpoint=series.endpoint,
        model=identity.model,
        mode=identity.mode,
        operation=series.operation,
        status=STATUS_OF_CODE[event.status].value,
        counted=standing.counted,
        reason=standing.reason,
        fields={
            "input_tokens": event.input_tokens,
            "output_tokens": event.output_tokens,
            "cached_input_tokens": event.cached_input_tokens,
            "reasoning_output_tokens": event.reasoning_output_tokens,
            "billable": event.billable,
            "tokens_quality": Quality(event.quality).name.lower(),
            "flags": flag_names(event.flags),
            "application": series.application,
            "team": series.team,
            "tags": dict(series.tags),
            "started_at": event.started_at,
            "received_at": event.received_at,
            "sent_time": event.sent_time,
            **details,
        },
    )


def receipt(session: Session, event_id: str, *, workspace: str | None, source: str | None, visible: frozenset[str] | None, now: datetime) -> Receipt:
    """One event with what it is expected to cost, which price said so, and its share of that day's bill."""
    world = World(session, now)
    handle = re.fullmatch(r"evt_(\d{1,17})_(\d{1,19})", event_id)
    statement = select(UsageEvent, UsageSource.name).join(UsageSource, col(UsageSource.id) == col(UsageEvent.source_id))
    found: Sequence[Any] = []
    if handle is not None:
        at, seq = from_microseconds(int(handle.group(1))), int(handle.group(2))
        found = session.execute(statement.where(col(UsageEvent.time) == at, col(UsageEvent.seq) == seq)).all()
    if not found:
        instants = _instants(session, event_id)
        found = session.execute(statement.where(col(UsageEvent.time).in_(instants), col(UsageEvent.event_id) == event_id).order_by(col(UsageEvent.seq))).all()
    known = standings(session, [event.seq for event, _ in found])
    records = [(event, _record(world, event, name, known.get(event.seq, _COUNTED))) for event, name in found]
    records = [
        (event, record)
        for event, record in records
        if (visible is None or record.workspace in visible)
        and (workspace is None or workspace in (record.workspace, world.series[event.series_id].workspace))
        and (source is None or record.source == source)
    ]
    if not records:
        raise NotFound(f"there is no usage event {event_id[:80]!r}; ids are the sender's own, or the handle from the list (evt_…)")
    if len(records) > 1:
        places = sorted({f"workspace={record.workspace} source={record.source}" for _, record in records})
        if len(places) == 1:
            places = [record.handle for _, record in records]  # the same call sent with times far apart
        raise Conflict(f"{len(records)} events have the id {event_id[:80]!r}; say which: {'; '.join(places[:5])}, or use the handle from the list")
    event, record = records[0]
    others = witnesses_of(session, event.seq)
    if others:
        record = replace(record, fields={**record.fields, "witnesses": others})
    return _explained(session, world, event, record, now=now)


def _instants(session: Session, event_id: str) -> list[datetime]:
    """When events of this id may have happened."""
    pairs = session.execute(sa.select(col(UsageSeries.workspace_id), col(UsageSeries.source_id)).distinct()).all()
    found = times_of(session, [(workspace_id, source_id, event_id) for workspace_id, source_id in pairs])
    return [from_microseconds(at) for at in sorted({at for times in found.values() for at in times})]


def _explained(session: Session, world: World, event: UsageEvent, record: UsageRecord, *, now: datetime) -> Receipt:
    series = world.series[event.series_id]
    at = from_microseconds(to_microseconds(event.time) // _QUARTER * _QUARTER)
    day = Period(day_start(utc_day(event.time)), day_start(utc_day(event.time) + DAY))
    asker = Answer(session, CostQuery(day, "none"), now=now)
    meaning = asker.meanings.meaning_at(series, to_microseconds(at) // 1_000_000)
    terms = asker.meanings.terms(meaning, utc_day(event.time))
    counts = [value if event.billable and value is not None else 0 for value in (event.input_tokens, event.output_tokens, event.cached_input_tokens)]
    inputs, outputs, cached = counts[0], counts[1], min(counts[0], counts[2])
    is_split = len(terms) == 3
    lines: list[ReceiptLine] = []
    for term in terms:
        tokens = {MeterKind.OUTPUT: outputs, MeterKind.CACHED_INPUT: cached, MeterKind.TRAINING: inputs + outputs}.get(term.meter, inputs - cached * is_split)
        reason, is_known = term.reason, True
        if meaning.identity.mode == Mode.MANAGED_COMPUTE:
            reason = "managed compute is billed by instance-hours, not by tokens"
        elif not event.billable:
            reason = "the sender says this call is not billable"
        elif event.is_unknown and _is_untold(event, term.meter):
            reason, is_known = "the sender did not say how many", False
        row = term.price.row if term.price else None
        lines.append(
            ReceiptLine(
                term.meter.value,
                tokens if is_known else None,
                row.unit_price if row else None,
                row.unit if row else None,
                row.currency if row else None,
                None if term.factor is None or not is_known else money.times(term.factor, tokens),
                row.version if row else None,
                row.source if row else None,
                reason,
            )
        )
    # Where the prices of a call are in several currencies, there is no one sum.
    currencies = {term.currency for term, line in zip(terms, lines, strict=True) if line.amount is not None}
    currency = terms[0].currency if len(currencies) != 1 else currencies.pop()
    amounts = [line.amount for line in lines if line.amount is not None]
    expected = money.add(amounts) if amounts and len(currencies) < 2 else None
    share, why = _billed_share(session, record, lines, day, currency, now=now)
    return Receipt(record, lines, expected, currency, share, why, utc_day(event.time) if share is not None else None)


def _is_untold(event: UsageEvent, meter: MeterKind) -> bool:
    """Whether the tokens of the meter are not known."""
    match meter:
        case MeterKind.OUTPUT:
            return event.output_tokens is None
        case MeterKind.TRAINING:
            return event.input_tokens is None or event.output_tokens is None
        case _:
            return event.input_tokens is None


def _billed_share(
    session: Session, record: UsageRecord, lines: Sequence[ReceiptLine], day: Period, currency: str | None, *, now: datetime
) -> tuple[Decimal | None, str | None]:
    if record.deployment is None:
        return None, "no deployment is known for this event"
    filters = Filters(workspaces=(record.workspace,), deployments=(record.deployment,))
    table = costs(session, CostQuery(day, "none", ("meter",), "billed", filters, currency), now=now)
    billed = {row.groups["meter"]: row.figures for row in table.rows if row.figures.billed_cost is not None}
    if not any(figures.billed_cost for figures in billed.values()):
        return None, "the bill has nothing for this deployment on that day yet"
    share = ZERO
    all_tokens = sum(figures.input_tokens + figures.output_tokens for figures in billed.values())
    own = sum(line.quantity or 0 for line in lines)
    for meter, figures in billed.items():
        amount = figures.billed_cost or ZERO
        mine, whole = own, all_tokens
        if meter in ("input", "output", "cached_input"):
            mine = sum(line.quantity or 0 for line in lines if line.meter == meter)
            whole = figures.input_tokens + figures.output_tokens
        if amount and not whole and figures.requests:
            mine, whole = 1, figures.requests  # a day without known tokens is shared by requests, as in costs
        if amount and whole:
            portion = money.ratio(money.times(amount, mine), Decimal(whole)) or ZERO
            share = money.plus(share, money.truncated(portion, 12))
    return share, "its share, by tokens, of what was billed for this deployment on that day"
