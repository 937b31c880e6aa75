"""Bill against metering, and what is cheaper: the routes of the correlation. Parse, ask the ledger, shape."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import date
from typing import Any

from fastapi import APIRouter, Request

from collector.api.deps import Caller, Now, Reading
from collector.api.reads import amount, documented, filters_of, instant_of, period_of, refuse_unknown, whole_number
from models import ledger
from models.errors import InvalidInput
from models.ledger import ReconciliationRow, ReconciliationTotal
from models.periods import Period, month_period, rfc3339, utc_day

router = APIRouter(tags=["correlation"])
_RECONCILIATION = ("month", "from", "to", "workspace", "deployment", "currency", "as_of", "limit", "cursor")
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)


@router.get("/v1/reconciliation", summary="Bill against metering, day by day, in causes", openapi_extra=documented(*_RECONCILIATION))
def reconciliation(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Rows per workspace, deployment, meter and day; ``causes`` add up to ``variance`` exactly; totals never by page."""
    refuse_unknown(request, _RECONCILIATION)
    said = request.query_params
    if said.get("month") and (said.get("from") or said.get("to")):
        raise InvalidInput("say month, or from and to, not both")
    period = month_from(said["month"]) if said.get("month") else period_of(request, now=now) if said.get("from") else month_period(utc_day(now))
    as_of = instant_of(said["as_of"], what="as_of") if said.get("as_of") else None
    found = ledger.reconciliation(session, period, filters_of(request, caller), now=now, as_of=as_of)
    rows = [row for row in found.rows if said.get("currency") in (None, "", row.currency)]
    size = whole_number(request, "limit", default=1000, low=1, high=10_000)
    start = _start_of(said.get("cursor"), len(rows))
    page = rows[start : start + size]
    return {
        "rows": [_row(row) for row in page],
        "totals": [_total(total) for total in found.totals if said.get("currency") in (None, "", total.currency)],
        "next_cursor": base64.urlsafe_b64encode(str(start + size).encode()).decode().rstrip("=") if start + size < len(rows) else None,
        "from": rfc3339(period.start),
        "to": rfc3339(period.end),
    }


def month_from(text: str) -> Period:
    """A calendar month in UTC, written ``2026-11``."""
    found = _MONTH.fullmatch(text)
    if found is None or not 2000 <= int(found[1]) < 2200:
        raise InvalidInput(f"month must be written like 2026-11, not {text[:20]!r}")
    return month_period(date(int(found[1]), int(found[2]), 1))


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
        "estimate": row.estimate,
        "metered_quantity": amount(row.metered_units),
        "billed_quantity": amount(row.billed_units),
        "unknown_token_requests": row.unknown_token_requests,
        "reasons": dict(row.reasons),
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
    }
