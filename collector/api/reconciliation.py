"""Bill against metering, and what is cheaper: the routes of the correlation. Parse, ask the ledger, shape."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from fastapi import APIRouter, Request, Response

from collector import extracts
from collector.api.deps import Caller, Now, Reading
from collector.api.reads import FILTERS, amount, documented, file_asked, file_of, filters_of, instant, instant_of, period_of, refuse_unknown, whole_number
from models import ledger
from models.errors import Forbidden, InvalidInput
from models.ledger import ClosedTotal, ComparisonRow, ReconciliationRow, ReconciliationTotal, WhatIfAnswer
from models.periods import Period, month_period, parse_month, rfc3339, utc_day

router = APIRouter(tags=["correlation"])
_RECONCILIATION = ("month", "from", "to", "workspace", "deployment", "currency", "as_of", "limit", "cursor", "format")


@router.get("/v1/reconciliation", summary="Bill against metering, day by day, in causes", openapi_extra=documented(*_RECONCILIATION), response_model=None)
def reconciliation(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any] | Response:
    """Rows per workspace, deployment, meter and day: expected, billed, and what of billed is on an invoice.

    ``causes`` add up to ``variance`` exactly; totals never by page. As CSV or Parquet: every row, in one file.
    """
    refuse_unknown(request, _RECONCILIATION)
    form = file_asked(request)
    said = request.query_params
    if said.get("month") and (said.get("from") or said.get("to")):
        raise InvalidInput("say month, or from and to, not both")
    period = month_from(said["month"]) if said.get("month") else period_of(request, now=now) if said.get("from") else month_period(utc_day(now))
    as_of = instant_of(said["as_of"], what="as_of") if said.get("as_of") else None
    found = ledger.reconciliation(session, period, filters_of(request, caller), now=now, as_of=as_of)
    rows = [row for row in found.rows if said.get("currency") in (None, "", row.currency)]
    totals = [total for total in found.totals if said.get("currency") in (None, "", total.currency)]
    if form is not None:
        return file_of(extracts.of_reconciliation(rows, totals, form), f"reconciliation.{form}")
    size = whole_number(request, "limit", default=1000, low=1, high=10_000)
    start = _start_of(said.get("cursor"), len(rows))
    page = rows[start : start + size]
    return {
        "rows": [_row(row) for row in page],
        "totals": [_total(total) for total in totals],
        "next_cursor": base64.urlsafe_b64encode(str(start + size).encode()).decode().rstrip("=") if start + size < len(rows) else None,
        "from": rfc3339(period.start),
        "to": rfc3339(period.end),
    }


@router.get("/v1/closes", summary="Closed months with their stored totals")
def closes(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Every close that stands, with who closed it and from what."""
    refuse_unknown(request, ())
    if caller.visible is not None:
        raise Forbidden("closes are of all workspaces; ask with a key that sees them all")
    return {
        "items": [
            {
                "month": f"{one.close.month:%Y-%m}",
                "closed_at": rfc3339(one.close.closed_at),
                "closed_by": one.close.closed_by,
                "software": one.close.software,
                "versions": one.close.versions,
                "totals": [
                    {
                        "currency": currency,
                        "expected": amount(total.expected),
                        "billed": amount(total.billed),
                        "invoiced": amount(total.invoiced),
                        "reasons": _reasons(total),
                    }
                    for currency, total in one.totals.items()
                ],
            }
            for one in ledger.closed_months(session, now=now)
        ],
        "next_cursor": None,
    }


@router.get("/v1/adjustments", summary="What today would say differently of a closed month", openapi_extra=documented("month", "workspace"))
def adjustments(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Rows by day, deployment, meter, side and cause; stored + adjustments = what is so today, exactly."""
    refuse_unknown(request, ("month", "workspace"))
    said = request.query_params.get("month")
    if not said:
        raise InvalidInput("say which month, as month=2026-10")
    month = utc_day(month_from(said).start)
    found = ledger.adjustments(session, month, filters=filters_of(request, caller), now=now)
    return {
        "items": [
            {
                "day": one.day.isoformat(),
                "workspace": one.workspace,
                "deployment": one.deployment,
                "meter": one.meter,
                "currency": one.currency,
                "side": one.side,
                "cause": one.cause,
                "amount": amount(one.amount),
            }
            for one in found
        ],
        "next_cursor": None,
    }


_COMPARISON = (*FILTERS, "currency", "sku", "instances", "hours_per_day")


@router.get("/v1/comparison", summary="Serverless beside managed compute, per model", openapi_extra=documented(*_COMPARISON))
def comparison(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """What a million tokens costs each way, idle time included, where they break even, and which is cheaper.

    ``sku``, ``instances`` and ``hours_per_day`` together ask what another size or schedule would do.
    """
    refuse_unknown(request, _COMPARISON)
    said = request.query_params
    period = period_of(request, now=now)
    rows = ledger.comparison(session, period, filters_of(request, caller), now=now, what_if=ledger.what_if_from(said))
    return {
        "rows": [_comparison_row(row) for row in rows if said.get("currency") in (None, "", row.currency)],
        "next_cursor": None,
        "from": rfc3339(period.start),
        "to": rfc3339(min(period.end, now)),
    }


def _comparison_row(row: ComparisonRow) -> dict[str, Any]:
    serverless, managed = row.serverless, row.managed
    days = row.days
    return {
        "model": row.model,
        "currency": row.currency,
        "serverless": {
            "effective_cost_per_1m": amount(serverless.effective_cost_per_1m),
            "unknown_token_share": amount(serverless.unknown_token_share),
            "estimated_token_share": amount(serverless.estimated_token_share),
            "list_price_per_1m": {
                "input": amount(serverless.list_input_per_1m),
                "output": amount(serverless.list_output_per_1m),
                "at_mix": amount(serverless.list_per_1m),
            },
            "tokens": serverless.tokens,
            "cost": amount(serverless.cost),
            "feasible": serverless.feasible,
            "reason": serverless.reason,
            "tokens_per_minute_limit": serverless.tokens_per_minute_limit,
            "limit_source": serverless.limit_source,
            "retires_at": instant(serverless.retires_at),
        },
        "managed_compute": {
            "effective_cost_per_1m": {"allocation": amount(managed.per_1m_allocation), "usage": amount(managed.per_1m_usage)},
            "unknown_token_share": amount(managed.unknown_token_share),
            "estimated_token_share": amount(managed.estimated_token_share),
            "tokens": managed.tokens,
            "capacity_cost": amount(managed.capacity_cost),
            "allocated_cost": amount(managed.allocated_cost),
            "idle_cost": amount(managed.idle_cost),
            "idle_cost_per_day": amount(row.idle_cost_per_day),
            "utilisation": amount(managed.utilisation),
            "utilisation_method": managed.utilisation_method,
            "gpu_utilisation": amount(managed.gpu.busy),
            "gpu_memory_utilisation": amount(managed.gpu.memory),
            "gpu_hours_told": managed.gpu.hours,
            "gpu_reason": managed.gpu.reason,
            "core_hours": amount(managed.core_hours),
            "capacity_tokens_per_day": managed.capacity_tokens_per_day,
            "instances": managed.instances,
            "instances_needed": managed.instances_needed,
            "vcpus_needed": managed.room.vcpus_needed,
            "vcpus_left": managed.room.vcpus_left,
            "vcpu_quota": managed.room.quota,
            "reason": managed.reason,
            "feasible": managed.feasible,
            "feasible_reason": managed.feasible_reason,
        },
        "break_even_tokens_per_day": row.break_even_tokens_per_day,
        "break_even_reachable": row.break_even_reachable,
        "mix_input_share": amount(row.mix_input_share),
        "tokens_per_day": row.tokens_per_day,
        "peak_minute_tokens": row.peak_minute_tokens,
        "peak_hour_tokens": row.peak_hour_tokens,
        "cheaper": row.advice.cheaper,
        "saving_per_day": amount(row.advice.saving_per_day),
        # A length of time, not money: a number, whole where it is.
        "days": int(days) if days == int(days) else round(float(days), 4),
        "standing": row.standing,
        "reason": row.advice.reason,
        "what_if": None if row.what_if is None else _what_if(row.what_if),
    }


def _what_if(found: WhatIfAnswer) -> dict[str, Any]:
    return {
        "serverless": {"feasible": found.serverless_feasible, "reason": found.serverless_reason},
        "managed_compute": {
            "feasible": found.managed_feasible,
            "reason": found.managed_reason,
            "capacity_tokens_per_day": found.capacity_tokens_per_day,
            "instances_needed": found.instances_needed,
            "vcpus_needed": found.room.vcpus_needed,
            "vcpus_left": found.room.vcpus_left,
            "vcpu_quota": found.room.quota,
        },
        "capacity_cost_per_day": amount(found.capacity_cost_per_day),
        "break_even_tokens_per_day": found.break_even_tokens_per_day,
        "break_even_reachable": found.break_even_reachable,
        "cheaper": found.cheaper,
        "saving_per_day": amount(found.saving_per_day),
        "reason": found.reason,
    }


def month_from(text: str) -> Period:
    """A calendar month in UTC, written ``2026-11``."""
    return month_period(parse_month(text, what="month"))


def _start_of(cursor: str | None, rows: int) -> int:
    if not cursor:
        return 0
    try:
        start = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii"))
    except (ValueError, binascii.Error) as fault:
        raise InvalidInput("cursor is not one that an answer to this question gave; ask again without it") from fault
    return min(max(start, 0), rows)


def _row(row: ReconciliationRow) -> dict[str, Any]:
    return {
        "workspace": row.workspace,
        "deployment": row.deployment,
        "meter": row.meter,
        "day": row.day.isoformat(),
        "currency": row.currency,
        "expected": amount(row.expected),
        "billed": amount(row.billed),
        "variance": amount(row.variance),
        "causes": {cause.value: amount(share) for cause, share in row.causes.items()},
        "state": row.state,
        "overdue_since": instant(row.overdue_since),
        "estimate": row.estimate,
        "invoiced": amount(row.invoiced),
        "metered_quantity": amount(row.metered_units),
        "billed_quantity": amount(row.billed_units),
        "unknown_token_requests": row.unknown_token_requests,
        "reasons": {**row.reasons, **_reasons(row)},
    }


def _total(total: ReconciliationTotal) -> dict[str, Any]:
    return {
        "currency": total.currency,
        "expected": amount(total.expected),
        "billed": amount(total.billed),
        "variance": amount(total.variance),
        "causes": {cause.value: amount(share) for cause, share in total.causes.items()},
        "unexplained": amount(total.unexplained),
        "coverage": amount(total.coverage),
        "rows": total.rows,
        "requests": total.requests,
        "unknown_token_requests": total.unknown_token_requests,
        "unknown_token_share": amount(total.unknown_token_share),
        "invoiced": amount(total.invoiced),
        "reasons": _reasons(total),
    }


def _reasons(of: ReconciliationRow | ReconciliationTotal | ClosedTotal) -> dict[str, str]:
    """Why nothing of billed, or only a part of it, is invoiced."""
    return {} if of.not_invoiced is None else {"invoiced": of.not_invoiced}
