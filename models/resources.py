"""Workspaces, deployments and who owns them: the registry, kept bitemporally.

A row says what was so over ``[valid_from, valid_to)`` and since when we knew, ``[known_from, known_to)``.
Rows are never edited but for closing ``known_to``; a correction is a new row. ``None`` in ``valid_from``
means "since always", in ``valid_to`` or ``known_to`` "still". What a name on an event or a bill means is
decided in ``models/matching.py`` from these rows.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Column, Index, Text
from sqlmodel import Field, SQLModel

from models.columns import BigInt, EnumText, Instant


class Mode(StrEnum):
    """How a deployment is paid for."""

    SERVERLESS = "serverless"
    MANAGED_COMPUTE = "managed_compute"
    UNKNOWN = "unknown"


class Route(StrEnum):
    """The way a charge reaches the bill."""

    MARKETPLACE = "marketplace"
    FOUNDRY = "foundry"
    COMPUTE = "compute"


class Workspace(SQLModel, table=True):
    """The identity of a workspace: the shard of everything that is counted in it. Names byte for byte."""

    __tablename__ = "workspace"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    name: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    first_seen_at: datetime = Field(sa_column=Column(Instant, nullable=False))


class WorkspaceFact(SQLModel, table=True):
    """What Azure or a user says of a workspace (an Azure ML workspace, project, or Foundry account)."""

    __tablename__ = "workspace_fact"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    workspace: str = Field(sa_column=Column(Text, nullable=False, index=True))
    kind: str = Field(default="workspace", sa_column=Column(Text, nullable=False))  # workspace | foundry_account
    subscription_id: str | None = Field(default=None, sa_column=Column(Text))  # lower case
    resource_group: str | None = Field(default=None, sa_column=Column(Text))  # lower case
    region: str | None = Field(default=None, sa_column=Column(Text))
    source: str = Field(sa_column=Column(Text, nullable=False))  # usage | bill | inventory
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    valid_from: datetime | None = Field(default=None, sa_column=Column(Instant))
    valid_to: datetime | None = Field(default=None, sa_column=Column(Instant))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))


class DeploymentFact(SQLModel, table=True):
    """What is known of a deployment over a time; ``name`` is ``endpoint/deployment``, one name where both are the same.

    ``source`` ranks ``inventory`` over ``bill`` over ``usage``; only inventory is confirmed.
    """

    __tablename__ = "deployment_fact"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    workspace: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    endpoint: str = Field(sa_column=Column(Text, nullable=False))
    deployment: str = Field(sa_column=Column(Text, nullable=False))
    mode: Mode = Field(default=Mode.UNKNOWN, sa_column=Column(EnumText(Mode), nullable=False))
    route: Route | None = Field(default=None, sa_column=Column(EnumText(Route)))
    model: str | None = Field(default=None, sa_column=Column(Text))
    sku: str | None = Field(default=None, sa_column=Column(Text))  # VM size of managed compute
    instance_count: int | None = Field(default=None, sa_column=Column(BigInt))
    region: str | None = Field(default=None, sa_column=Column(Text))
    offer_id: str | None = Field(default=None, sa_column=Column(Text))
    plan_id: str | None = Field(default=None, sa_column=Column(Text))
    saas_resource_id: str | None = Field(default=None, sa_column=Column(Text))
    resource_id: str | None = Field(default=None, sa_column=Column(Text))
    state: str | None = Field(default=None, sa_column=Column(Text))  # as Azure says: Online, Succeeded, …
    retires_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    source: str = Field(sa_column=Column(Text, nullable=False))  # usage | bill | inventory
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    valid_from: datetime | None = Field(default=None, sa_column=Column(Instant))
    valid_to: datetime | None = Field(default=None, sa_column=Column(Instant))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))

    __table_args__ = (Index("ix_deployment_fact_name", "workspace", "name"),)


class Owner(SQLModel, table=True):
    """Who answers for spend: a deployment, application or tag belongs to a team and cost centre over a time."""

    __tablename__ = "owner"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    workspace: str | None = Field(default=None, sa_column=Column(Text))
    deployment: str | None = Field(default=None, sa_column=Column(Text))
    application: str | None = Field(default=None, sa_column=Column(Text))
    tag_key: str | None = Field(default=None, sa_column=Column(Text))
    tag_value: str | None = Field(default=None, sa_column=Column(Text))
    team: str | None = Field(default=None, sa_column=Column(Text))
    cost_center: str | None = Field(default=None, sa_column=Column(Text))
    source: str = Field(sa_column=Column(Text, nullable=False))
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    valid_from: datetime | None = Field(default=None, sa_column=Column(Instant))
    valid_to: datetime | None = Field(default=None, sa_column=Column(Instant))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))


class DeploymentSetting(SQLModel, table=True):
    """What an owner says of a deployment that Azure does not; bitemporal in knowledge, the open row is the current one."""

    __tablename__ = "deployment_setting"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    workspace: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))  # the full name, as shown
    # What all its instances together can serve; None: not measured.
    capacity_tokens_per_minute: int | None = Field(default=None, sa_column=Column(BigInt))
    # The one source whose events count where several witness the same calls; None: the best-informed one.
    authoritative_source: str | None = Field(default=None, sa_column=Column(Text))
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    known_from: datetime = Field(sa_column=Column(Instant, nullable=False))
    known_to: datetime | None = Field(default=None, sa_column=Column(Instant))

    __table_args__ = (Index("ix_deployment_setting_name", "workspace", "name"),)


class ShardBinding(SQLModel, table=True):
    """The workspace that a (source, endpoint, deployment) without one was first resolved to; it never moves."""

    __tablename__ = "shard_binding"

    source_id: int = Field(sa_column=Column(BigInt, primary_key=True, autoincrement=False))
    endpoint: str = Field(sa_column=Column(Text, primary_key=True))
    deployment: str = Field(sa_column=Column(Text, primary_key=True))
    workspace_id: int = Field(sa_column=Column(BigInt, nullable=False))
    bound_at: datetime = Field(sa_column=Column(Instant, nullable=False))


class ApiKey(SQLModel, table=True):
    """A key: its id is public, of its secret only the SHA-256 is kept."""

    __tablename__ = "api_key"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False))
    scope: str = Field(sa_column=Column(Text, nullable=False))  # ingest | read | admin
    workspaces: str = Field(default="[]", sa_column=Column(Text, nullable=False))  # JSON list; [] is all
    secret_hash: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    revoked_at: datetime | None = Field(default=None, sa_column=Column(Instant))


class Setting(SQLModel, table=True):
    """A value the service made for itself and must find again, such as the dashboard's cookie secret."""

    __tablename__ = "setting"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    value: str = Field(sa_column=Column(Text, nullable=False))
