"""Where facts come from: senders, bills, pulls from Azure and jobs, and whether they still come."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from collector.api.deps import Caller, Now, Reading
from collector.api.reads import instant, refuse_unknown
from models import ledger

router = APIRouter(tags=["sources"])


@router.get("/v1/sources", summary="Where facts come from, and whether they still come")
def sources(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Per source its last success and attempt, how far its data reaches, calls and throttles, the next run, the last word."""
    refuse_unknown(request, ())
    return {
        "items": [
            {
                "kind": one.kind,
                "name": one.name,
                "state": one.state,
                "last_success": instant(one.last_success),
                "last_attempt": instant(one.last_attempt),
                "data_until": instant(one.data_until),
                "age_seconds": None if one.data_until is None else max(0, int((now - one.data_until).total_seconds())),
                "rows": one.rows,
                "calls": one.calls,
                "throttles": one.throttles,
                "next_run": instant(one.next_run),
                "message": one.message,
            }
            for one in ledger.sources(session, visible=caller.visible, now=now)
        ],
        "next_cursor": None,
    }
