"""Quotas and admission: what is left, and whether a call may go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from collector.admission import Admission, Asked
from collector.api.deps import Caller, Now, Reading, Writing
from collector.api.reads import documented, filters_of, instant, refuse_unknown
from collector.auth import OPEN, Principal
from models import ledger
from models.columns import canonical_json
from models.errors import Forbidden, InvalidInput, NotFound
from models.ledger import Pool
from models.limits import Counting, LimitSource, set_limit
from models.periods import rfc3339

router = APIRouter(tags=["quotas"])
_QUOTAS = ("workspace", "deployment", "model", "mode")
_MOST = 10**12


class LimitSaid(BaseModel):
    """What ``PUT /v1/quotas/{id}`` takes: the limit a minute (null takes it back), and what counts against it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    limit: Annotated[int, Field(gt=0, le=_MOST)] | None
    counting: Annotated[Counting, Field(strict=False)] = Counting.BILLED


@router.get("/v1/quotas", summary="What is left of every limit", openapi_extra=documented(*_QUOTAS))
def quotas(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """One row per pool: tokens and requests a minute of each deployment, and vCPUs as Azure counts them."""
    refuse_unknown(request, _QUOTAS)
    return {"items": [_pool(one, now) for one in ledger.quotas(session, filters_of(request, caller), now=now)], "next_cursor": None}


@router.put("/v1/quotas/{pool_id:path}", summary="Set a limit")
def put_quota(session: Writing, caller: Caller, now: Now, *, pool_id: str, said: LimitSaid) -> dict[str, Any]:
    """Sets the limit of a deployment's tokens or requests a minute; it wins over every other source until it is taken back with null."""
    place = ledger.pool_place(pool_id)
    if place is None:
        raise NotFound(f"there is no pool {pool_id[:120]!r} whose limit can be set; GET /v1/quotas lists them (vCPU limits are Azure's own)")
    workspace, name, measure = place
    found = ledger.deployment(session, f"{workspace}/{name}", workspace=workspace, visible=caller.visible, now=now)
    set_limit(
        session,
        workspace=found.workspace,
        deployment=found.name,
        measure=measure,
        value=said.limit,
        source=LimitSource.USER,
        counting=said.counting,
        author=caller.name,
        now=now,
    )
    session.flush()
    pools = ledger.quotas(session, ledger.Filters(workspaces=(found.workspace,), deployments=(found.name,)), now=now)
    return _pool(next(one for one in pools if one.id == f"{found.workspace}/{found.name}:{measure}"), now)


class AdmissionAsked(BaseModel):
    """What ``POST /v1/admission`` takes; ``tokens`` is what the call may use: prompt + max_tokens x max(n, best_of)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workspace: Annotated[str, Field(min_length=1, max_length=256)]
    deployment: Annotated[str, Field(min_length=1, max_length=512)]
    tokens: Annotated[int, Field(ge=0, le=_MOST)] = 0
    application: Annotated[str, Field(max_length=256)] | None = None
    team: Annotated[str, Field(max_length=256)] | None = None


# Asked before every call of a gateway: parsed and answered by hand, as FastAPI's parameters would cost more than the judgement.
@router.post(
    "/v1/admission",
    summary="May this call go?",
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": AdmissionAsked.model_json_schema()}}}},
)
async def admission(request: Request) -> Response:
    """Judged from quotas and hard budgets as they were a moment ago; nothing is reserved, so what runs at the same time may overshoot."""
    caller: Principal = getattr(request.state, "principal", OPEN)
    try:
        said = AdmissionAsked.model_validate_json(await request.body())
    except ValidationError as fault:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in fault.errors()]) from None
    if caller.workspaces is not None and said.workspace not in caller.workspaces:
        raise Forbidden(f"this key is not for workspace {said.workspace[:80]!r}")
    desk = _desk(request)
    if desk.must_wait():
        await run_in_threadpool(desk.refresh)
    return Response(_answer(desk, said), media_type="application/json")


def questions(desk: Admission) -> Callable[[bytes, Principal], bytes | None]:
    """What answers a question at the connection itself; None where it takes the long way, to wait or to be refused."""

    def answered(body: bytes, caller: Principal) -> bytes | None:
        try:
            said = AdmissionAsked.model_validate_json(body)
        except ValidationError:
            return None
        if (caller.workspaces is not None and said.workspace not in caller.workspaces) or desk.must_wait():
            return None
        return _answer(desk, said)

    return answered


def _answer(desk: Admission, said: AdmissionAsked) -> bytes:
    verdict = desk.judge(Asked(said.workspace, said.deployment, said.tokens, said.application, said.team))
    answer = {
        "allow": verdict.allow,
        "reason": verdict.reason,
        "retry_after_seconds": verdict.retry_after_seconds,
        "remaining": verdict.remaining,
        "as_of": rfc3339(verdict.as_of),
        "overshoot": _OVERSHOOT,
    }
    return json.dumps(answer).encode()


_OVERSHOOT = "nothing is reserved: calls that are under way, and what was used since as_of, are not counted"


@router.get("/v1/admission/denied", summary="What may not be called now, to be kept by a gateway")
async def denied(request: Request) -> Response:
    """Deployments whose calls are denied, with until when; ask again with If-None-Match and get 304 while nothing changed."""
    refuse_unknown(request, ())
    caller: Principal = getattr(request.state, "principal", OPEN)
    desk = _desk(request)
    if desk.must_wait():
        await run_in_threadpool(desk.refresh)
    items = [
        {"workspace": one.workspace, "deployment": one.deployment, "reason": one.reason, "retry_after_seconds": one.retry_after_seconds}
        for one in desk.denied()
        if caller.workspaces is None or one.workspace is None or one.workspace in caller.workspaces
    ]
    # How long still is another figure every second; the tag is of what is denied and why.
    steady = [{**item, "retry_after_seconds": None} for item in items]
    tag = f'"{hashlib.sha256(canonical_json({"items": steady}).encode()).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if tag in [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(canonical_json({"items": items}), headers=headers, media_type="application/json")


def _desk(request: Request) -> Admission:
    desk: Admission | None = getattr(request.app.state, "admission", None)
    if desk is None:
        raise InvalidInput("this process does not answer admission; ask one that serves the API")
    return desk


def _pool(pool: Pool, now: datetime) -> dict[str, Any]:
    return {
        "id": pool.id,
        "kind": pool.kind,
        "measure": pool.measure,
        "workspace": pool.workspace,
        "deployment": pool.deployment,
        "model": pool.model,
        "mode": pool.mode,
        "subscription": pool.subscription,
        "region": pool.region,
        "family": pool.family,
        "source": pool.source,
        "level": pool.level,
        "limit": pool.limit,
        "limit_source": pool.limit_source,
        "limits_said": [
            {
                "source": one.source,
                "limit": one.value,
                "counts": one.counts,
                "known_from": instant(one.known_from),
                "seen_at": instant(one.seen_at),
                "evidence": one.evidence or None,
                "author": one.author or None,
            }
            for one in pool.limits_said
        ],
        "limit_note": pool.limit_note,
        "reason": pool.reason,
        "used": pool.used,
        "headroom": pool.headroom,
        "readings": {counting: dict(windows) for counting, windows in pool.readings.items()} or None,
        "left_said": None if pool.left_said is None else {"left": pool.left_said[0], "at": instant(pool.left_said[1])},
        "has_room": pool.has_room(now),
        "upgrade_reserved": pool.upgrade_reserved,
        "deployments": list(pool.deployments) or None,
        "peak": pool.peak,
        "peak_at": instant(pool.peak_at),
        "admitted_peak": None
        if pool.admitted_peak is None
        else {"value": pool.admitted_peak.value, "at": instant(pool.admitted_peak.at), "since": instant(pool.admitted_peak.since)},
        "counting": pool.counting,
        "throttled_last_hour": dict(pool.throttled),
        "throttled_callers": [{"by": one.by, "caller": one.caller, "requests": one.count} for one in pool.throttled_callers],
        "users": [{"name": name, "used": used} for name, used in pool.users],
        "saturation_at": instant(pool.saturation_at),
        "deletes_at": instant(pool.deletes_at),
        "retires_at": instant(pool.retires_at),
        "seen_at": instant(pool.seen_at),
    }
