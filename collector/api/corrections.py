"""Taking usage back, and what was sent against what stands."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from collector.api.deps import Caller, Now, Reading, Writing
from collector.api.reads import amount, documented, instant_of, refuse_unknown, whole_number
from collector.corrections import MOST_EVENTS, void
from collector.witnesses import StoredEvent
from models import ledger
from models.columns import from_microseconds
from models.errors import InvalidInput
from models.periods import Period, rfc3339

router = APIRouter(tags=["usage"])


class VoidAsked(BaseModel):
    """What ``POST /v1/usage/void`` takes: ids, or a source and a span."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    workspace: Annotated[str, Field(min_length=1, max_length=256)]
    source: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    ids: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=MOST_EVENTS)] | None = None
    start: Annotated[str | None, Field(alias="from")] = None
    end: Annotated[str | None, Field(alias="to")] = None
    dry_run: bool = False
    reason: Annotated[str, Field(max_length=1000)] = ""


@router.post("/v1/usage/void", summary="Take usage back")
def void_usage(session: Writing, caller: Caller, now: Now, said: VoidAsked) -> dict[str, Any]:
    """Posts signed reversals of events, by id or of a source in a span; with ``dry_run`` says what it would do. Nothing is deleted."""
    period = _span(said, now)
    done = void(
        session,
        workspace=said.workspace,
        source=said.source,
        ids=said.ids,
        period=period,
        author=caller.name,
        reason=said.reason,
        is_dry_run=said.dry_run,
        now=now,
    )
    return {
        "dry_run": said.dry_run,
        "batch": done.batch,
        "reversed": [_event(one) for one in done.reversed],
        "already_void": [_event(one) for one in done.already],
        "not_found": list(done.not_found),
        "totals": [
            {
                "currency": one.currency,
                "metered_cost": amount(one.metered_cost),
                "requests": one.requests,
                "input_tokens": one.input_tokens,
                "output_tokens": one.output_tokens,
            }
            for one in done.effects
        ],
    }


def _span(said: VoidAsked, now: datetime) -> Period | None:
    if said.ids is not None:
        if said.start is not None or said.end is not None:
            raise InvalidInput("say ids, or from and to with a source, not both")
        return None
    if said.source is None or said.start is None or said.end is None:
        raise InvalidInput("say which events: ids, or source, from and to")
    start, end = instant_of(said.start, what="from"), instant_of(said.end, what="to")
    if end <= start:
        raise InvalidInput(f"to ({rfc3339(end)}) must be after from ({rfc3339(start)})")
    return Period(start, min(end, max(start, now)) if end > now else end)


def _event(one: StoredEvent) -> dict[str, Any]:
    return {
        "handle": f"evt_{one.time}_{one.seq}",
        "id": one.event_id,
        "source": one.source,
        "time": rfc3339(from_microseconds(one.time)),
        "deployment": one.deployment,
        "counted": one.is_counted,
        "input_tokens": one.counts[0],
        "output_tokens": one.counts[1],
    }


@router.get("/v1/usage/conflicts", summary="What was sent under an id that stands with other content", openapi_extra=documented("workspace", "limit", "cursor"))
def conflicts(request: Request, session: Reading, caller: Caller) -> dict[str, Any]:
    """Newest first: the event that stands, and the fields in which the other one differs."""
    refuse_unknown(request, ("workspace", "limit", "cursor"))
    size = whole_number(request, "limit", default=100, low=1, high=1000)
    after = whole_number(request, "cursor", default=0, low=1, high=999_999_999) or None
    found, more = ledger.conflicts(session, workspaces=tuple(request.query_params.getlist("workspace")), visible=caller.visible, limit=size, before=after)
    return {"items": [_conflict(session, one) for one in found], "next_cursor": str(more) if more is not None else None}


def _conflict(_session: Session, one: ledger.ConflictRecord) -> dict[str, Any]:
    return {
        "workspace": one.workspace,
        "source": one.source,
        "id": one.event_id,
        "stands": one.handle,
        "received_at": rfc3339(one.received_at),
        "differs": [{"field": name, "stands": was, "sent": sent} for name, was, sent in one.differs],
    }


@router.get("/v1/usage/postings", summary="What was taken back, by whom and why", openapi_extra=documented("workspace", "limit", "cursor"))
def postings(request: Request, session: Reading, caller: Caller) -> dict[str, Any]:
    """The record of voids, witnesses left out and twins, newest first."""
    refuse_unknown(request, ("workspace", "limit", "cursor"))
    size = whole_number(request, "limit", default=100, low=1, high=1000)
    before = whole_number(request, "cursor", default=0, low=1, high=999_999_999) or None
    found, more = ledger.postings(session, workspaces=tuple(request.query_params.getlist("workspace")), visible=caller.visible, limit=size, before=before)
    return {
        "items": [
            {
                "event": one.handle,
                "workspace": one.workspace,
                "sign": one.sign,
                "kind": one.kind,
                "instead": one.instead,
                "batch": one.batch or None,
                "author": one.author or None,
                "reason": one.reason or None,
                "made_at": rfc3339(one.made_at),
            }
            for one in found
        ],
        "next_cursor": str(more) if more is not None else None,
    }
