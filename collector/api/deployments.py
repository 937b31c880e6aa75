"""Deployments as they are known, and what their owners say of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select

from collector.api.deps import Caller, Now, Reading, Writing
from collector.api.reads import documented, instant, refuse_unknown
from models import ledger
from models.resources import DeploymentSetting

router = APIRouter(tags=["deployments"])
_MOST_TOKENS = 10**12


class OwnerFacts(BaseModel):
    """What ``PUT /v1/deployments/{id}`` takes; null says that it is not known."""

    model_config = ConfigDict(extra="forbid", strict=True)

    capacity_tokens_per_minute: Annotated[int, Field(gt=0, le=_MOST_TOKENS)] | None = None
    authoritative_source: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    workspace: Annotated[str, Field(max_length=256)] | None = None


@router.get("/v1/deployments", summary="Deployments as they are known", openapi_extra=documented("workspace"))
def deployments(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Every deployment that inventory, a bill or usage names."""
    refuse_unknown(request, ("workspace",))
    asked = request.query_params.getlist("workspace")
    found = ledger.deployments(session, visible=caller.visible, now=now)
    return {"items": [body_of(one) for one in found if not asked or one.workspace in asked], "next_cursor": None}


@router.put("/v1/deployments/{deployment_id:path}", summary="Say what Azure does not of a deployment")
def put_deployment(session: Writing, caller: Caller, now: Now, *, deployment_id: str, said: OwnerFacts) -> dict[str, Any]:
    """Replaces the owner's facts of the deployment; its id, its full name, or its short name where that is unique."""
    found = ledger.deployment(session, deployment_id, workspace=said.workspace, visible=caller.visible, now=now)
    _settle(session, found, said, author=caller.name, now=now)
    session.flush()
    return body_of(ledger.deployment(session, found.id, workspace=found.workspace, visible=caller.visible, now=now))


def _settle(session: Session, of: ledger.Deployment, said: OwnerFacts, *, author: str, now: Any) -> None:
    row = DeploymentSetting
    query = select(row).where(col(row.known_to).is_(None), col(row.workspace) == of.workspace, col(row.name) == of.name)
    for standing in session.exec(query):
        standing.known_to = now
    session.add(
        row(
            workspace=of.workspace,
            name=of.name,
            capacity_tokens_per_minute=said.capacity_tokens_per_minute,
            authoritative_source=said.authoritative_source,
            author=author,
            known_from=now,
        )
    )


def body_of(one: ledger.Deployment) -> dict[str, Any]:
    """A deployment as JSON."""
    return {
        "id": one.id,
        "workspace": one.workspace,
        "deployment": one.name,
        "model": one.model,
        "mode": one.mode.value,
        "sku": one.sku,
        "instance_count": one.instance_count,
        "region": one.region,
        "state": one.state,
        "retires_at": instant(one.retires_at),
        "confirmed": one.is_confirmed,
        "capacity_tokens_per_minute": one.capacity_tokens_per_minute,
        "authoritative_source": one.authoritative_source,
    }
