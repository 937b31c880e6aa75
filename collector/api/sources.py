"""Where facts come from: senders, bills, pulls from Azure and jobs, and whether they still come."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from collector.api.deps import Caller, Now, Reading
from collector.api.reads import documented, instant, period_of, refuse_unknown
from models import ledger, money
from models.ledger.intake import Intake, intake
from models.periods import rfc3339

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


@router.get("/v1/intake", summary="What arrived at the ingest routes, from whom, and what was refused", openapi_extra=documented("from", "to"))
def received(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """By hour of arrival and by sender (key, source, format) how events came out, and samples of what was refused, as names of fields and kinds of values.

    Each refusal says what to do. A reader of some workspaces sees the keys of no others.
    """
    refuse_unknown(request, ("from", "to"))
    if request.app.state.tally is not None:
        # What was refused a moment ago is what somebody who asks wants to see.
        request.app.state.tally.flush()
    return _intake(intake(session, period_of(request, now=now), visible=caller.visible, now=now))


def _intake(found: Intake) -> dict[str, Any]:
    return {
        "from": rfc3339(found.period.start),
        "to": rfc3339(found.period.end),
        # Stored events by when they came, whichever way (files too); null for a key of some workspaces.
        "arrived": found.arrived,
        "hours": [
            {
                "period_start": rfc3339(one.starts_at),
                "accepted": one.accepted,
                "duplicates": one.duplicates,
                "conflicts": one.conflicts,
                "rejected": one.rejected,
            }
            for one in found.hours
        ],
        "senders": [
            {
                **_sender(one.key_id, one.key, one.source, one.format),
                "accepted": one.accepted,
                "duplicates": one.duplicates,
                "conflicts": one.conflicts,
                "rejected": one.rejected,
                "ignored": one.ignored,
                "missing_tokens": one.missing,
                "estimated_tokens": one.estimated,
                "missing_token_share": None if one.missing_share is None else money.text(one.missing_share),
            }
            for one in found.lines
        ],
        "refused": [
            {
                **_sender(one.key_id, one.key, one.source, one.format),
                "error": one.error,
                "events": one.events,
                "fix": one.fix,
                "samples": [{"seen_at": rfc3339(each.seen_at), "index": each.index, "detail": each.detail, "shape": each.shape} for each in one.samples],
            }
            for one in found.refused
        ],
    }


def _sender(key_id: str, key: str | None, source: str, form: str) -> dict[str, Any]:
    return {"key_id": key_id or None, "key": key, "source": source or None, "format": form}
