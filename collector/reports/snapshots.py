"""Making and finding snapshots: the figures of a report as JSON, stored once per state of the figures."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from collector.reports import context
from collector.reports.closepack import close_body, close_difference
from models import ledger, money
from models.closing import closes_known
from models.columns import canonical_json
from models.errors import Conflict
from models.ledger import CurrencyWeek, DataAge, Figures, Filters, Line, Unit, WeeklyReport
from models.periods import days, month_start, rfc3339
from models.reports import ReportSnapshot
from models.store import Store

# Far more than a week is ever restated; a bound that is hit says that something writes in circles.
MOST_RESTATEMENTS = 500
KINDS: Mapping[Unit, str] = {"day": "daily", "week": "weekly", "month": "monthly"}


def weekly_snapshot(store: Store, week: ledger.Week, filters: Filters, *, now: datetime) -> dict[str, Any]:
    """The body of the week's report as the figures stand now; kept, unless the week still runs.

    Where the figures are those of the last snapshot, that one is it. Nobody waits while the figures are being made: only
    keeping them takes the place of the one writer.
    """
    with store.read() as session:
        draft = weekly_draft(session, week, filters, now=now)
    return _kept_in(store, draft, now=now)


def close_snapshot(store: Store, month: date, filters: Filters, *, now: datetime) -> dict[str, Any]:
    """The body of the month's close pack; kept, unless the month still runs. It is provisional until the month is closed."""
    with store.read() as session:
        draft = close_draft(session, month, filters, now=now)
    return _kept_in(store, draft, now=now)


def weekly_draft(session: Session, week: ledger.Week, filters: Filters, *, now: datetime) -> Draft:
    """The week's figures, not kept yet; ``filters`` may limit them to a team."""
    reading = ledger.Reading(session, now)
    report = ledger.weekly(session, week, filters, now=now, reading=reading)
    kind, scope = KINDS[week.unit], _scope(filters)
    beside = ledger.context(session, week, filters, used=report.used, told_as=(kind, scope), reading=reading, now=now)
    body = weekly_body(report) | context.parts_of(beside) | _limited(filters)
    if week.unit == "month":
        body["standing"] = _standing(session, week, now=now)
    unkept = f"the {week.unit} is not over yet" if week.period.end > now else ""
    return Draft(body, _Named(kind, week.name, week.time_zone, scope), _difference, unkept)


def _standing(session: Session, month: ledger.Week, *, now: datetime) -> str:
    """A month's report is final once every month of the bill that it touches is closed: of another zone, it touches two."""
    closed = {one.month for one in closes_known(session, now)}
    return "final" if {month_start(day) for day in days(month.period)} <= closed else "provisional"


def close_draft(session: Session, month: date, filters: Filters, *, now: datetime) -> Draft:
    """The month's close pack, not kept yet."""
    pack = ledger.close_pack(session, month, filters, now=now)
    body = close_body(pack) | _limited(filters) | {"data_age": _age(ledger.data_age(session, visible=filters.visible, now=now))}
    return Draft(body, _Named("close", body["month"], "UTC", _scope(filters)), close_difference, "the month is not over yet" if pack.period.end > now else "")


def _kept_in(store: Store, draft: Draft, *, now: datetime) -> dict[str, Any]:
    try:
        with store.write() as session:
            return keep(session, draft, now=now)
    except IntegrityError:  # another request has just taken the number
        with store.write() as session:
            return keep(session, draft, now=now)


@dataclass(frozen=True, slots=True)
class _Named:
    """What snapshots of one report have in common; each state of its figures has a number."""

    kind: str
    period: str
    time_zone: str
    scope: str


@dataclass(frozen=True, slots=True)
class Draft:
    """The figures of a report before they are a snapshot; ``unkept`` says why they are not to be one."""

    body: dict[str, Any]
    named: _Named
    difference: Callable[[dict[str, Any], dict[str, Any]], list[dict[str, Any]]]
    unkept: str = ""

    def is_of(self, kind: str, period: str, time_zone: str, filters: Filters) -> bool:
        """Whether it is what is now asked for; that may have changed since the draft was begun."""
        return self.named == _Named(kind, period, time_zone, _scope(filters))


def _limited(asked: Filters) -> dict[str, Any]:
    """What a report of a part says that it is limited to; nothing where it is of the whole."""
    said = {"teams": sorted(asked.teams), "workspaces": sorted(asked.visible or ())}
    return {"scope": {what: names for what, names in said.items() if names}} if any(said.values()) else {}


def _scope(asked: Filters) -> str:
    return canonical_json(
        {
            "visible": None if asked.visible is None else sorted(asked.visible),
            "workspaces": sorted(asked.workspaces),
            "deployments": sorted(asked.deployments),
            "teams": sorted(asked.teams),
        }
    )


def keep(session: Session, draft: Draft, *, now: datetime) -> dict[str, Any]:
    """The last snapshot where its figures are these; else a new one, which says what it changes."""
    body, named = draft.body, draft.named
    digest = _digest(body)
    if draft.unkept:
        return unkept(draft, now=now)
    row = ReportSnapshot
    known = session.exec(
        select(row)
        .where(col(row.kind) == named.kind, col(row.period) == named.period, col(row.time_zone) == named.time_zone, col(row.scope) == named.scope)
        .order_by(col(row.number))
    ).all()
    if known and digest in (known[-1].figures_sha256, _digest(known[-1].body)):
        return known[-1].body
    if len(known) >= MOST_RESTATEMENTS:
        raise Conflict(f"the {named.kind} report of {named.period} was restated {MOST_RESTATEMENTS} times; something changes its figures in circles")
    name = f"{named.kind}-{named.period}-{secrets.token_hex(6)}"
    whole = {
        **body,
        "snapshot": {"id": name, "number": len(known), "sha256": digest, "made_at": rfc3339(now)},
        "restatement": draft.difference(known[-1].body, body) if known else None,
    }
    session.add(
        ReportSnapshot(
            id=name,
            kind=named.kind,
            period=named.period,
            time_zone=named.time_zone,
            scope=named.scope,
            number=len(known),
            made_at=now,
            figures_sha256=digest,
            body=whole,
        )
    )
    session.flush()
    return whole


def unkept(draft: Draft, *, now: datetime) -> dict[str, Any]:
    """The body of a draft that is looked at and not kept."""
    reason = draft.unkept or "this is a preview"
    return {**draft.body, "snapshot": {"id": None, "number": None, "sha256": _digest(draft.body), "made_at": rfc3339(now), "reason": reason}}


def weekly_body(report: WeeklyReport) -> dict[str, Any]:
    """The report as JSON: money as text, counts as numbers, unknown as null."""
    unit = report.week.unit
    return {
        "kind": KINDS[unit],
        unit: report.week.name,
        "from": rfc3339(report.week.period.start),
        "to": rfc3339(report.week.period.end),
        "time_zone": report.week.time_zone,
        "basis": "best",
        "totals": [
            {
                "currency": one.currency,
                "cost": _text(one.cost.now),
                "billed_cost": _text(one.billed.now),
                "metered_cost": _text(one.total.metered_cost),
                f"last_{unit}": {"cost": _text(one.cost.before), "billed_cost": _text(one.billed.before)},
                "change": _text(one.cost.difference),
                "change_percent": _text(one.cost.percent),
                "status": one.total.status,
                "coverage": _text(one.total.coverage),
                "requests": one.total.requests,
                "input_tokens": one.total.input_tokens,
                "output_tokens": one.total.output_tokens,
                "core_hours": _text(one.total.core_hours),
                "unpriced_tokens": one.total.unpriced_tokens,
                "unknown_token_requests": one.total.unknown_token_requests,
                "estimated_token_requests": one.total.estimated_token_requests,
                "reasons": dict(one.total.reasons),
            }
            for one in report.currencies
        ],
        "currencies": [_currency(one, unit) for one in report.currencies],
        "provisional_days": [day.isoformat() for day in report.provisional_days],
        "data_age": _age(report.age),
    }


def _currency(one: CurrencyWeek, unit: Unit) -> dict[str, Any]:
    matched, expected = one.reconciliation, one.forecast
    return {
        "currency": one.currency,
        "waterfall": None
        if one.waterfall is None
        else {
            f"last_{unit}": _text(one.waterfall.before),
            **{name: _text(step) for name, step in one.waterfall.steps.items()},
            f"this_{unit}": _text(one.waterfall.now),
        },
        "like_for_like": None
        if one.alike is None
        else {
            "days": [day.isoformat() for day in one.alike.days],
            f"days_last_{unit}": [day.isoformat() for day in one.alike.days_before],
            "cost": _text(one.alike.cost.now),
            f"last_{unit}_cost": _text(one.alike.cost.before),
            "change": _text(one.alike.cost.difference),
            "change_percent": _text(one.alike.cost.percent),
        },
        "hours" if unit == "day" else "days": [
            {"from": rfc3339(row.period.start), "to": rfc3339(row.period.end), "cost": _text(row.figures.cost), "status": row.figures.status}
            for row in one.by_day
        ],
        "modes": _lines(one.by_mode, unit),
        "workspaces": _lines(one.by_workspace, unit),
        "deployments": _lines(one.by_deployment, unit),
        "teams": _lines(one.by_team, unit),
        "movers": [{**dict(line.names), "change": _text(line.change.difference), "cost": _text(line.change.now), "reason": why} for line, why in one.movers],
        "forecast": None
        if expected is None
        else {"month_to_date": _text(expected.month_to_date), "month_end": _text(expected.month_end), "reason": expected.reason},
        "reconciliation": None
        if matched is None
        else {
            "expected": _text(matched.expected),
            "billed": _text(matched.billed),
            "variance": _text(matched.variance),
            "causes": {cause.value: _text(share) for cause, share in matched.causes.items()},
            "unexplained": _text(matched.unexplained),
            "coverage": _text(matched.coverage),
        },
    }


def _lines(lines: Sequence[Line], unit: Unit) -> list[dict[str, Any]]:
    return [
        {
            **dict(line.names),
            "cost": _text(line.figures.cost),
            "billed_cost": _text(line.figures.billed_cost),
            f"last_{unit}_cost": _text(line.change.before),
            "change": _text(line.change.difference),
            "change_percent": _text(line.change.percent),
            **{name: getattr(line.figures, name) for name in _COUNTS},
            "core_hours": _text(line.figures.core_hours),
            "status": line.figures.status,
            "estimate": line.figures.estimate,
        }
        for line in lines
    ]


_COUNTS = tuple(one.name for one in fields(Figures) if one.name in {"input_tokens", "output_tokens", "requests", "unpriced_tokens", "unknown_token_requests"})


def _difference(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """What a restatement changes, per currency, workspace and deployment: only what differs."""
    found: list[dict[str, Any]] = []
    known = {one["currency"]: one for one in before["currencies"]}
    keys = ("workspace", "deployment", "model", "mode")
    for currency in sorted({*known, *(one["currency"] for one in after["currencies"])}, key=lambda code: (code is None, code or "")):
        nothing: dict[str, Any] = {"deployments": []}
        now = next((one for one in after["currencies"] if one["currency"] == currency), nothing)
        then = known.get(currency, nothing)
        costs = [{tuple(line[key] for key in keys): line["cost"] for line in side["deployments"]} for side in (then, now)]
        for place in sorted(costs[0].keys() | costs[1].keys(), key=lambda names: [name or "" for name in names]):
            was, is_now = (side.get(place) for side in costs)
            if was != is_now:
                delta = None if None in (was, is_now) and place in costs[0] and place in costs[1] else money.minus(_number(is_now), _number(was))
                found.append({"currency": currency, **dict(zip(keys, place, strict=True)), "was": was, "is": is_now, "delta": _text(delta)})
    return found


def _number(text: str | None) -> Decimal:
    return Decimal(text or 0)


# What a body says beside its figures: that may change without anything having been restated. The steps from last time and
# what moved are other ways of saying both times' figures.
_BESIDE = frozenset({"snapshot", "restatement", "data_age", *context.PARTS})
_BESIDE_MONEY = frozenset({"forecast", "waterfall", "movers", "like_for_like"})


def _digest(body: dict[str, Any]) -> str:
    """Of the figures alone."""
    figures = {name: value for name, value in body.items() if name not in _BESIDE}
    if body["kind"] != "close":
        figures["currencies"] = [{name: value for name, value in one.items() if name not in _BESIDE_MONEY} for one in body["currencies"]]
    return hashlib.sha256(json.dumps(figures, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _age(of: DataAge) -> dict[str, str | None]:
    return {"metered_until": _at(of.metered_until), "billed_until": _at(of.billed_until)}


def _text(value: Decimal | None) -> str | None:
    return None if value is None else money.text(value)


def _at(value: datetime | None) -> str | None:
    return None if value is None else rfc3339(value)
