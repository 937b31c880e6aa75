"""Why a number is what it is, over HTTP: the same query as the number, taken apart."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request

from collector.api.deps import Caller, Now, Reading
from collector.api.reads import FILTERS, amount, cost_query, documented, figures_body, instant, refuse_unknown
from models import ledger
from models.periods import rfc3339

router = APIRouter(tags=["figures"])
# What /v1/costs takes: any of its queries can be asked here as it is.
_EXPLAIN = (*FILTERS, "granularity", "group_by", "basis", "currency", "as_of", "time_zone", "limit", "cursor")
_MOST_LINES = 2000


@router.get("/v1/explain", summary="Why a number is what it is", openapi_extra=documented(*_EXPLAIN))
def explain(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """The formula, the quantities at their price versions, the charges by landing, and how old all of it is.

    ``counted`` of the lines of a currency adds up to its ``cost``.
    """
    refuse_unknown(request, _EXPLAIN)
    query = cost_query(request, caller, now=now)
    found = ledger.explain(session, query, now=now)
    same = urlencode(
        [
            *((name, value) for name, value in request.query_params.multi_items() if name not in ("from", "to")),
            ("from", rfc3339(query.period.start)),
            ("to", rfc3339(query.period.end)),
        ]
    )
    return {
        "basis": query.basis,
        "formula": ledger.FORMULA[query.basis],
        "from": rfc3339(query.period.start),
        "to": rfc3339(query.period.end),
        "as_of": instant(query.as_of),
        "totals": [{**figures_body(figures), "counted": amount(ledger.counted_in(found, figures.currency))} for figures in found.totals],
        "metered": [
            {
                "workspace": line.workspace,
                "deployment": line.deployment,
                "meter": line.meter,
                "quantity": amount(line.quantity),
                "unit_price": amount(line.unit_price),
                "unit": line.unit,
                "price_currency": line.price_currency,
                "price_version": line.price_version,
                "price_source": line.price_source,
                "exchange_rate": amount(line.exchange_rate),
                "currency": line.currency,
                "amount": amount(line.amount),
                "counted": amount(line.counted),
                "reason": line.reason,
            }
            for line in found.metered[:_MOST_LINES]
        ],
        "billed": [
            {
                "workspace": line.workspace,
                "deployment": line.deployment,
                "meter": line.meter,
                "currency": line.currency,
                "amount": amount(line.amount),
                "counted": amount(line.counted),
                "rows": line.rows,
                "bill_part": str(line.part_id),
                "first_day": line.first_day.isoformat(),
                "last_day": line.last_day.isoformat(),
                "estimate": line.estimate,
            }
            for line in found.billed[:_MOST_LINES]
        ],
        "more_lines": max(0, len(found.metered) - _MOST_LINES) + max(0, len(found.billed) - _MOST_LINES),
        "bill_parts": [
            {
                "id": str(part.id),
                "subscription": part.subscription_id or None,
                "month": f"{part.period_start:%Y-%m}",
                "source": part.source,
                "file": part.file_name,
                "landed_at": instant(part.landed_at),
            }
            for part in found.parts
        ]
        if caller.visible is None
        else [],
        "data_age": {"metered_until": instant(found.age.metered_until), "billed_until": instant(found.age.billed_until)},
        "curl": f"curl '{request.base_url}v1/costs?{same}'",
    }
