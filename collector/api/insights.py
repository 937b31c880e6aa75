"""What the calls and their counters say beside costs: waste, and witnesses against the count."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from collector.api.deps import Caller, Now, Reading
from collector.api.reads import amount, documented, filters_of, period_of, refuse_unknown
from models import ledger
from models.errors import InvalidInput
from models.ledger import WasteRow, WitnessRow
from models.periods import DAY, Period, rfc3339

router = APIRouter(tags=["figures"])
_WASTE = ("from", "to", "workspace", "deployment", "model", "application", "team", "mode")
_WITNESSES = ("from", "to", "workspace", "deployment", "granularity")


@router.get("/v1/waste", summary="Calls cut off, filtered, thrown away or failed, by deployment", openapi_extra=documented(*_WASTE))
def waste(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Counts, tokens and their cost by kind; the last 7 days unless said otherwise, at most 31 days."""
    refuse_unknown(request, _WASTE)
    period = _period(request, now, days=7)
    rows = ledger.waste(session, period, filters_of(request, caller), now=now)
    return {"rows": [_waste_body(row) for row in rows], "from": rfc3339(period.start), "to": rfc3339(period.end)}


@router.get("/v1/witnesses", summary="Counters and metrics beside what was counted", openapi_extra=documented(*_WITNESSES))
def witnesses(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Per witness, deployment and hour or day (default) what it saw and what was counted; never added to anything."""
    refuse_unknown(request, _WITNESSES)
    period = _period(request, now, days=7)
    said = request.query_params.get("granularity", "day")
    if said == "hour":
        rows = ledger.witness_rows(session, period, granularity="hour", filters=filters_of(request, caller), now=now)
    elif said == "day":
        rows = ledger.witness_rows(session, period, granularity="day", filters=filters_of(request, caller), now=now)
    else:
        raise InvalidInput("granularity is hour or day here")
    return {"rows": [_witness_body(row) for row in rows], "from": rfc3339(period.start), "to": rfc3339(period.end)}


def _period(request: Request, now: Now, *, days: int) -> Period:
    found = period_of(request, now=now)
    return found if request.query_params.get("from") else Period(found.end - days * DAY, found.end)


def _waste_body(row: WasteRow) -> dict[str, Any]:
    return {
        "workspace": row.workspace,
        "deployment": row.deployment,
        "currency": row.currency,
        "requests": row.requests,
        "answered": row.answered,
        "filtered": row.filtered,
        "filtered_share": amount(row.filtered_share),
        "finish_reasons": dict(sorted(row.finish_reasons.items())),
        "waste": {
            kind: {
                "requests": count.requests,
                "input_tokens": count.input_tokens,
                "output_tokens": count.output_tokens,
                "unknown_token_requests": count.unknown_token_requests,
                "cost": amount(count.cost),
                "reason": "these tokens have no price" if count.cost is None else None,
                "estimate": count.estimate,
            }
            for kind, count in sorted(row.waste.items())
        },
    }


def _witness_body(row: WitnessRow) -> dict[str, Any]:
    return {
        "period_start": rfc3339(row.period.start),
        "workspace": row.workspace,
        "deployment": row.deployment,
        "model": row.model,
        "kind": row.kind,
        "service": row.service,
        "measure": row.measure,
        "scope": row.scope,
        "witnessed": row.witnessed,
        "counted": row.counted,
        "difference": row.difference,
        "share": amount(row.share),
        "disagrees": row.disagrees,
        "note": row.note,
    }
