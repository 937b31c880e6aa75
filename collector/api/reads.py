"""The read routes: costs, usage, receipts, problems, data age. Parse, ask the ledger, shape."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from fastapi import APIRouter, Request
from sqlmodel import Session
from starlette.responses import Response, StreamingResponse

from collector import extracts
from collector.api.deps import Caller, Now, Reading
from collector.auth import Principal
from models import ledger, money
from models.errors import InvalidInput, NotFound
from models.ledger import BASES, CostQuery, CostRow, Figures, Filters, UsageRecord
from models.periods import DAY, GRANULARITIES, Period, floor, parse_bound, rfc3339
from models.resources import Mode

router = APIRouter(tags=["figures"])
FILTERS = ("from", "to", "workspace", "deployment", "model", "application", "team", "mode")
_MAX_PERIOD = timedelta(days=3700)
_MAX_BUCKETS = 20_000
# Far around everything that can be metered or billed, and away from the ends of the calendar.
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)

_DOCUMENTED: Mapping[str, tuple[str, bool]] = {
    "from": ("RFC 3339 instant or date, included; by default 30 days before `to`", False),
    "to": ("RFC 3339 instant or date, excluded; by default now", False),
    "workspace": ("only this workspace; repeatable", True),
    "deployment": ("only this deployment (endpoint/deployment, or the short name where it is unique); repeatable", True),
    "model": ("only this model, without regard to case; repeatable", True),
    "application": ("only this application; repeatable", True),
    "team": ("only this team; repeatable", True),
    "mode": ("serverless, managed_compute or unknown; repeatable", True),
    "granularity": ("hour, day (default), week, month or none", False),
    "group_by": ("workspace, deployment, model, meter, mode, application, team, cost_center, subscription, tag:<key>; comma-separated", True),
    "basis": ("metered, billed, best (default) or amortized", False),
    "currency": ("only rows of this currency", False),
    "as_of": ("answer with what was known at this instant", False),
    "time_zone": ("IANA time zone of days, weeks and months; UTC by default", False),
    "limit": ("rows a page", False),
    "cursor": ("the next_cursor of the page before", False),
    "source": ("only events of this sender", False),
    "figure": ("which figure, as `cost`, `input_tokens`, `variance`, `break_even_tokens_per_day`; cost unless said", False),
    "without": ("groups that the row has none of: the unallocated row's `deployment`, say; comma-separated", False),
    "meter": ("of a reconciliation: only this meter", False),
    "cause": ("of a variance or an adjustment: this cause", False),
    "side": ("of an adjustment: expected or billed", False),
    "pool": ("the id of a quota's pool", False),
    "budget": ("the id of a budget", False),
    "alert": ("the id of an alert", False),
    "problem": ("the kind of a finding", False),
    "subject": ("what a finding is about", False),
    "invoice": ("the id of an invoice; - for what is not invoiced yet", False),
    "since": ("of a page: compare with before the newest bill", False),
    "sender": ("the source of events", False),
    "line": ("the key's id, the format and the source of what arrived, as key|format|source", False),
    "event": ("the handle of an event, as the list of usage gives it", False),
    "witness": ("the kind of a witness, as /v1/witnesses names it", False),
    "sku": ("what if: the VM size of the instances", False),
    "instances": ("what if: how many of them", False),
    "hours_per_day": ("what if: how many hours a day they run", False),
    "day": ("a UTC day, as 2026-11-19", False),
    "week": ("an ISO week, as 2026-W46; by default the last complete one", False),
    "format": ("json, csv, html, pdf or parquet, as the route has them", False),
    "version": ("of FOCUS: 1.2 (default), 1.3 or 1.4", False),
    "period": ("a day, week or month that is over, as the schedule's report has them; by default the last complete one", False),
    "month": ("a calendar month in UTC, as 2026-11", False),
}


def documented(*names: str) -> dict[str, Any]:
    """The query parameters as OpenAPI shows them; they are parsed below, so that every fault names its parameter."""
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": _DOCUMENTED[name][0],
            "schema": {"type": "array", "items": {"type": "string"}} if _DOCUMENTED[name][1] else {"type": "string"},
        }
        for name in names
    ]
    return {"parameters": parameters}


_COSTS = (*FILTERS, "granularity", "group_by", "basis", "currency", "as_of", "time_zone", "limit", "cursor", "format")
_USAGE = (*FILTERS, "limit", "cursor", "format")
_CHUNK = 1024 * 1024
_EVENTS_AT_ONCE, _MOST_EVENTS = 5000, 1_000_000


@router.get("/v1/costs", summary="Costs and usage by period and group", openapi_extra=documented(*_COSTS), response_model=None)
def costs(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any] | Response:
    """Rows per period, group and currency, and totals over all of them (never by page). As CSV or Parquet: every row, in one file."""
    refuse_unknown(request, _COSTS)
    form = file_asked(request)
    query = cost_query(request, caller, now=now)
    table = ledger.costs(session, query, now=now)
    if form is not None:
        return file_of(extracts.of_costs(table, form), f"costs.{form}")
    size = whole_number(request, "limit", default=1000, low=1, high=10_000)
    cursor = request.query_params.get("cursor")
    start = _after(table.rows, cursor, groups=len(query.group_by)) if cursor else 0
    page = table.rows[start : start + size]
    return {
        "rows": [row_body(row) for row in page],
        "totals": [figures_body(figures) for figures in table.totals],
        "next_cursor": _cursor(page[-1]) if page and start + size < len(table.rows) else None,
        "from": rfc3339(query.period.start),
        "to": rfc3339(query.period.end),
        "granularity": query.granularity,
        "group_by": list(query.group_by),
        "basis": query.basis,
        "as_of": None if query.as_of is None else rfc3339(query.as_of),
        "time_zone": query.time_zone,
    }


@router.get("/v1/usage", summary="Stored usage events, newest first", openapi_extra=documented(*_USAGE), response_model=None)
def usage(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any] | Response:
    """A page of events; ``next_cursor`` asks for the next. As CSV or Parquet: every event, up to a million in one file."""
    refuse_unknown(request, _USAGE)
    form = file_asked(request)
    if form is not None:
        return file_of(extracts.of_usage(_every_event(request, session, caller, now=now), form), f"usage.{form}")
    size = whole_number(request, "limit", default=100, low=1, high=1000)
    cursor = request.query_params.get("cursor") or None
    page = ledger.usage_list(session, period=period_of(request, now=now), filters=filters_of(request, caller), limit=size, cursor=cursor, now=now)
    return {"items": [record_body(record) for record in page.items], "next_cursor": page.next_cursor}


@router.get("/v1/usage/{event_id:path}", summary="One usage event, explained", openapi_extra=documented("workspace", "source"))
def receipt(request: Request, session: Reading, caller: Caller, now: Now, *, event_id: str) -> dict[str, Any]:
    """The event's quantities, the prices that applied, what it is expected to cost and its share of the bill."""
    refuse_unknown(request, ("workspace", "source"))
    if "\0" in event_id:
        raise NotFound("no usage event has a NUL in its id")
    said = request.query_params
    found = ledger.receipt(session, event_id, workspace=said.get("workspace"), source=said.get("source"), visible=caller.visible, now=now)
    return {
        **record_body(found.record),
        "currency": found.currency,
        "expected_cost": amount(found.expected_cost),
        "lines": [
            {
                "meter": line.meter,
                "quantity": line.quantity,
                "unit_price": amount(line.unit_price),
                "unit": line.unit,
                "price_currency": line.currency,
                "amount": amount(line.amount),
                "price_version": line.price_version,
                "price_source": line.price_source,
                "reason": line.reason,
            }
            for line in found.lines
        ],
        "billed_share": amount(found.billed_share),
        "billed_share_reason": found.billed_reason,
        "billed_on": None if found.billed_on is None else found.billed_on.isoformat(),
        "estimate": found.billed_share is not None,
    }


@router.get("/v1/problems", summary="What in the data a person should look at")
def problems(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Unknown units and meters, models without a price, charges without a deployment, conflicts; each with its remedy."""
    refuse_unknown(request, ())
    return {
        "items": [problem(one) for one in ledger.problems(session, visible=caller.visible, now=now)],
        "next_cursor": None,
    }


@router.get("/v1/data-age", summary="How old the figures are, by source")
def data_age(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Metered until, billed until, and every source with how far it reaches."""
    refuse_unknown(request, ())
    age = ledger.data_age(session, visible=caller.visible, now=now)
    return {
        "metered_until": instant(age.metered_until),
        "billed_until": instant(age.billed_until),
        "sources": [{"kind": one.kind, "name": one.name, "reaches": instant(one.reaches), "arrived_at": instant(one.arrived_at)} for one in age.sources],
    }


# -- parsing --------------------------------------------------------------------------------------


def refuse_unknown(request: Request, known: Sequence[str]) -> None:
    """A misspelt filter that is silently left out would answer another question."""
    for name in request.query_params:
        if name not in known and not (name.startswith("tag:") and len(name) > 4 and "from" in known):
            raise InvalidInput(f"there is no parameter {name[:60]!r} here; it takes {', '.join(known) or 'none'}{' and tag:<key>' if 'from' in known else ''}")
        if len(request.query_params.getlist(name)) > 1 and name in _DOCUMENTED and not _DOCUMENTED[name][1]:
            raise InvalidInput(f"{name} may be said once, and is here {len(request.query_params.getlist(name))} times")
    for name, value in request.query_params.multi_items():
        if len(value) > 1024 or "\0" in value:
            raise InvalidInput(f"the parameter {name[:60]!r} is longer than 1,024 characters or has a NUL in it")


def period_of(request: Request, *, now: datetime) -> Period:
    """``from`` and ``to``; by default the last 30 days (from a UTC midnight) up to now."""
    said_to, said_from = request.query_params.get("to"), request.query_params.get("from")
    end = instant_of(said_to, what="to") if said_to else now
    start = instant_of(said_from, what="from") if said_from else floor(max(end, _EARLIEST + 30 * DAY) - 30 * DAY, "day")
    if end < start:
        raise InvalidInput(f"to ({rfc3339(end)}) is before from ({rfc3339(start)})")
    if end - start > _MAX_PERIOD:
        raise InvalidInput("the period is longer than ten years; ask for less")
    return Period(start, end)


def filters_of(request: Request, caller: Principal) -> Filters:
    """The filters that every read takes, under the caller's own limit."""
    many = request.query_params.getlist
    modes: list[Mode] = []
    for said in many("mode"):
        try:
            modes.append(Mode(said))
        except ValueError as fault:
            raise InvalidInput(f"mode must be serverless, managed_compute or unknown, not {said[:40]!r}") from fault
    tags = tuple((name[4:], value) for name, value in request.query_params.multi_items() if name.startswith("tag:"))
    return Filters(
        workspaces=tuple(many("workspace")),
        deployments=tuple(many("deployment")),
        models=tuple(many("model")),
        applications=tuple(many("application")),
        teams=tuple(many("team")),
        modes=tuple(modes),
        tags=tags,
        visible=caller.visible,
    )


def cost_query(request: Request, caller: Principal, *, now: datetime) -> CostQuery:
    """The question of ``/v1/costs``."""
    said = request.query_params
    granularity = said.get("granularity") or "day"
    if granularity not in GRANULARITIES:
        raise InvalidInput(f"granularity must be one of {', '.join(GRANULARITIES)}, not {granularity[:40]!r}")
    basis = said.get("basis") or "best"
    if basis not in BASES:
        raise InvalidInput(f"basis must be one of {', '.join(BASES)}, not {basis[:40]!r}")
    groups = tuple(dict.fromkeys(name.strip() for part in said.getlist("group_by") for name in part.split(",") if name.strip()))
    if len(groups) > 8:
        raise InvalidInput("group_by takes at most eight groups")
    currency = said.get("currency")
    period = period_of(request, now=now)
    if granularity == "hour" and (period.end - period.start) / timedelta(hours=1) > _MAX_BUCKETS:
        raise InvalidInput(f"that is more than {_MAX_BUCKETS:,} hours; ask for a shorter period, or by day")
    return CostQuery(
        period=period,
        granularity=granularity,
        group_by=groups,
        basis=basis,
        filters=filters_of(request, caller),
        currency=money.currency_from(currency, what="currency") if currency else None,
        as_of=instant_of(said["as_of"], what="as_of") if said.get("as_of") else None,
        time_zone=said.get("time_zone") or "UTC",
    )


def instant_of(text: str, *, what: str) -> datetime:
    """An instant or date among the parameters, within the years that can hold anything."""
    at = parse_bound(text, what=what)
    if not _EARLIEST <= at <= _LATEST:
        raise InvalidInput(f"{what} must lie between {rfc3339(_EARLIEST)} and {rfc3339(_LATEST)}")
    return at


def whole_number(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    """A bounded whole number among the parameters."""
    said = request.query_params.get(name)
    if said is None or said == "":
        return default
    if not (said.isascii() and said.isdigit() and len(said) <= 9 and low <= int(said) <= high):
        raise InvalidInput(f"{name} must be a whole number from {low} to {high:,}, not {said[:40]!r}")
    return int(said)


def file_asked(request: Request) -> extracts.Form | None:
    """The file format that is asked for; a file has no pages."""
    form = extracts.form_asked(request.query_params.get("format"))
    if form is not None and (request.query_params.get("limit") or request.query_params.get("cursor")):
        raise InvalidInput(f"a {form} file has every row: leave out limit and cursor")
    return form


def _every_event(request: Request, session: Session, caller: Principal, *, now: datetime) -> Iterator[UsageRecord]:
    """Every event of the question, some at a time."""
    period, filters = period_of(request, now=now), filters_of(request, caller)
    cursor: str | None = None
    for _ in range(_MOST_EVENTS // _EVENTS_AT_ONCE):
        page = ledger.usage_list(session, period=period, filters=filters, limit=_EVENTS_AT_ONCE, cursor=cursor, now=now)
        yield from page.items
        session.expunge_all()  # what is written need not be remembered
        cursor = page.next_cursor
        if cursor is None:
            return
    raise InvalidInput(f"that is more than {_MOST_EVENTS:,} events, the most that one file holds; ask for a shorter period")


# -- shaping --------------------------------------------------------------------------------------


def problem(one: ledger.Problem) -> dict[str, Any]:
    """Something to look at, as the routes say it."""
    return {
        "kind": one.kind,
        "subject": one.subject,
        "detail": one.detail,
        "remedy": one.remedy,
        "currency": one.currency,
        "amount": amount(one.amount),
        "count": one.count,
    }


def amount(value: Decimal | None) -> str | None:
    """A decimal as text, never a float."""
    return None if value is None else money.text(value)


def instant(value: datetime | None) -> str | None:
    """An instant as RFC 3339 in UTC."""
    return None if value is None else rfc3339(value)


def figures_body(figures: Figures) -> dict[str, Any]:
    """Figures as JSON has them: money and hours as text, counts as integers."""
    body: dict[str, Any] = {}
    for one in fields(figures):
        value = getattr(figures, one.name)
        body[one.name] = money.text(value) if isinstance(value, Decimal) else dict(value) if isinstance(value, Mapping) else value
    body["unknown_token_share"], body["estimated_token_share"] = amount(figures.unknown_token_share), amount(figures.estimated_token_share)
    return body


def row_body(row: CostRow) -> dict[str, Any]:
    """One row: its period, its groups by name, its figures."""
    return {"period_start": rfc3339(row.period.start), "period_end": rfc3339(row.period.end), **row.groups, **figures_body(row.figures)}


def record_body(record: UsageRecord) -> dict[str, Any]:
    """An event as JSON."""
    body: dict[str, Any] = {
        "handle": record.handle,
        "id": record.id,
        "source": record.source,
        "time": rfc3339(record.time),
        "workspace": record.workspace,
        "deployment": record.deployment,
        "endpoint": record.endpoint,
        "model": record.model,
        "mode": record.mode.value,
        "operation": record.operation,
        "status": record.status,
        "counted": record.counted,
        "reason": record.reason,
    }
    body.update({name: rfc3339(value) if isinstance(value, datetime) else value for name, value in record.fields.items() if name not in body})
    return body


def _key(row: CostRow) -> list[Any]:
    return [rfc3339(row.period.start), *row.groups.values(), row.figures.currency]


def _cursor(row: CostRow) -> str:
    return base64.urlsafe_b64encode(json.dumps(_key(row)).encode()).decode().rstrip("=")


def _after(rows: Sequence[CostRow], cursor: str, *, groups: int) -> int:
    """The index after the row that the cursor names, by order: a row that went meanwhile does not matter."""
    wrong = InvalidInput("cursor is not one that an answer to this question gave; ask again without it")
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError) as fault:
        raise wrong from fault
    if not isinstance(key, list) or len(key) != groups + 2 or not all(value is None or isinstance(value, str) for value in key):
        raise wrong
    try:
        at = parse_bound(str(key[0]), what="cursor")
    except InvalidInput as fault:
        raise wrong from fault
    wanted = (at, [(value is None, value or "") for value in key[1:]])
    for index, row in enumerate(rows):
        values = [*row.groups.values(), row.figures.currency]
        if (row.period.start, [(value is None, value or "") for value in values]) > wanted:
            return index
    return len(rows)


def file_of(made: extracts.Extract, name: str) -> Response:
    """An extract as an answer, sent in pieces."""
    about = {
        "X-Control-Total": made.control_total,
        "X-Rows": str(made.rows),
        "Content-Length": str(made.size),
        "Content-Disposition": f'attachment; filename="meterbridge-{name}"',
    }

    def pieces() -> Iterator[bytes]:
        with made.content as content:
            while piece := content.read(_CHUNK):
                yield piece

    return StreamingResponse(pieces(), headers=about, media_type=made.media_type)
