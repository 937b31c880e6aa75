"""Why a number is what it is, over HTTP: the same query as the number, taken apart."""

from __future__ import annotations

import shlex
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request

from collector.api.deps import Caller, Now, Reading
from collector.api.reads import FILTERS, amount, cost_query, documented, figures_body, instant, refuse_unknown
from collector.auth import Principal
from models import ledger
from models.periods import rfc3339

router = APIRouter(tags=["figures"])
# What /v1/costs takes: any of its queries can be asked here as it is.
_EXPLAIN = (*FILTERS, "granularity", "group_by", "basis", "currency", "as_of", "time_zone", "limit", "cursor", *ledger.OWN)
_MOST_LINES = 2000


@router.get("/v1/explain", summary="Why a number is what it is", openapi_extra=documented(*_EXPLAIN))
def explain(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """The formula, the quantities at their price versions, the charges by landing, and how old all of it is.

    ``figure`` names any figure of any page (``cost`` unless said otherwise); ``rows`` add up to it where ``adds_up``.
    ``counted`` of the lines of a currency adds up to its ``cost``.
    """
    refuse_unknown(request, _EXPLAIN)
    query = cost_query(request, caller, now=now)
    if "figure" in request.query_params:
        own = {name: value for name in ledger.OWN if (value := request.query_params.get(name))}
        return _figure(request, ledger.why(session, ledger.Ask(own.get("figure", "cost"), query, own), now=now), caller)
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
        **_lines(found, caller),
        "curl": f"curl '{request.base_url}v1/costs?{same}'",
    }


def _figure(request: Request, found: ledger.Why, caller: Principal) -> dict[str, Any]:
    return {
        "figure": found.figure,
        "words": found.words,
        "value": _number(found.value),
        "unit": found.unit,
        "reason": found.reason,
        "formula": found.formula,
        "terms": [_term(term) for term in found.terms],
        "rows": [_term(row) for row in found.rows],
        "more_rows": found.more_rows,
        "adds_up": found.adds_up,
        **(_lines(found.evidence, caller) if found.evidence is not None else {}),
        "data_age": {"metered_until": instant(found.age.metered_until), "billed_until": instant(found.age.billed_until)},
        "curl": "curl " + shlex.quote(str(request.base_url).rstrip("/") + found.request),
    }


def _term(term: ledger.Term) -> dict[str, Any]:
    return {"name": term.name, "value": _number(term.value), "unit": term.unit}


def _number(value: Decimal | int | None) -> str | int | None:
    return amount(value) if isinstance(value, Decimal) else value


def _lines(found: ledger.Explanation, caller: Principal) -> dict[str, Any]:
    """The lines behind a figure as JSON has them."""
    return {
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
                "billed_for": str(part.billed),
                "source": part.source,
                "file": part.file_name,
                "landed_at": instant(part.landed_at),
            }
            for part in found.parts
        ]
        if caller.visible is None
        else [],
        "data_age": {"metered_until": instant(found.age.metered_until), "billed_until": instant(found.age.billed_until)},
    }
