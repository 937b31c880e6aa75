"""The deployments that are known, with what Azure, the bill, usage and their owners say of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models.errors import Conflict, NotFound
from models.ledger.world import World
from models.lifecycle import retires_at
from models.resources import DeploymentSetting, Mode


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment at an instant; ``is_confirmed`` where inventory has it. Capacity is in tokens a minute, of all its instances together."""

    workspace: str
    name: str
    model: str | None
    mode: Mode
    sku: str | None
    instance_count: int | None
    region: str | None
    state: str | None
    retires_at: datetime | None
    is_confirmed: bool
    capacity_tokens_per_minute: int | None
    authoritative_source: str | None

    @property
    def id(self) -> str:
        """How routes name it."""
        return f"{self.workspace}/{self.name}"


def deployments(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[Deployment]:
    """Every deployment that inventory, a bill or usage names, in order of workspace and name."""
    world = World(session, now)
    settings = settings_known(session, now)
    seen = set(world.registry.deployments())
    for series in world.series.values():
        identity = world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=now)
        if identity.workspace and identity.deployment:
            seen.add((identity.workspace, identity.deployment))
    found: list[Deployment] = []
    for workspace, name in sorted(seen):
        if visible is not None and workspace not in visible:
            continue
        identity = world.registry.identity(workspace, name, model=None, at=now)
        fact = world.registry.fact(workspace, name, now)
        said = settings.get((workspace.casefold(), name.casefold()))
        found.append(
            Deployment(
                workspace=workspace,
                name=name,
                model=identity.model,
                mode=identity.mode,
                sku=identity.sku,
                instance_count=fact.instance_count if fact is not None else None,
                region=identity.region,
                state=fact.state if fact is not None else None,
                retires_at=retires_at(fact, identity.route),
                is_confirmed=identity.is_confirmed,
                capacity_tokens_per_minute=said.capacity_tokens_per_minute if said is not None else None,
                authoritative_source=said.authoritative_source if said is not None else None,
            )
        )
    return found


def deployment(session: Session, asked: str, *, workspace: str | None, visible: frozenset[str] | None, now: datetime) -> Deployment:
    """The deployment of an id, a full name, or a short name where it is unique; names are compared without case."""
    key = asked.casefold()
    known = [one for one in deployments(session, visible=visible, now=now) if workspace is None or one.workspace.casefold() == workspace.casefold()]
    for same in (
        [one for one in known if one.id.casefold() == key],
        [one for one in known if one.name.casefold() == key],
        [one for one in known if one.name.rsplit("/", 1)[-1].casefold() == key],
    ):
        if len(same) == 1:
            return same[0]
        if same:
            raise Conflict(f"{len(same)} deployments are called {asked[:80]!r}; say which by its id: {', '.join(one.id for one in same[:5])}")
    raise NotFound(f"there is no deployment {asked[:80]!r}; GET /v1/deployments lists them")


def settings_known(session: Session, at: datetime) -> dict[tuple[str, str], DeploymentSetting]:
    """What owners had said by an instant, by workspace and name without case."""
    row = DeploymentSetting
    query = select(row).where(col(row.known_from) <= at, sa.or_(col(row.known_to).is_(None), col(row.known_to) > at)).order_by(col(row.id))
    return {(one.workspace.casefold(), one.name.casefold()): one for one in session.exec(query)}
