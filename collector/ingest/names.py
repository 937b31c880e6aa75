"""Ids of sources, workspaces and series, and what the first sight of one leaves behind.

Remembered across commits: a busy service asks the database for none of them. What is new is written in the commit
that needs it; two processes may race for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from collector.capture.event import CapturedEvent
from collector.ingest.batch import Refused
from models.columns import canonical_json
from models.matching import full_name

_MAX_REMEMBERED = 200_000
# Distinct combinations of tags that a source of a workspace may group by; tags with a value per call would make every call a series.
MAX_TAG_COMBINATIONS = 10_000


@dataclass(slots=True)
class SeriesRef:
    """A series by its names in the table's order (workspace and source by name); ``id`` None until it is needed."""

    named: tuple[Any, ...]
    id: int | None = None
    is_ungrouped: bool = False  # its tags are kept with each event only


class Names:
    """Ids of sources, workspaces and series, remembered across commits."""

    def __init__(self, *, is_sqlite: bool) -> None:
        self.is_sqlite = is_sqlite
        self.sources: dict[str, int] = {}
        self.workspaces: dict[str, int] = {}
        self.series: dict[tuple[Any, ...], SeriesRef] = {}
        self.bindings: dict[tuple[str, str, str], str] = {}
        self.said_by: dict[int, tuple[Any, ...]] = {}  # a series' names by its id, from the endpoint on
        self.tagged: dict[tuple[int, int], set[int]] = {}  # hashes of the tags that a workspace's source is grouped by
        # What was looked for in vain in this transaction: a thousand events of a new workspace ask once.
        self._nowhere: set[tuple[str, str, str]] = set()
        self._absent: set[tuple[str, str]] = set()
        self._received = 0

    def begin(self, connection: sa.Connection, *, received: int) -> None:
        """A transaction: what is asked and written from here on is within it."""
        self._connection = connection
        self._received = received
        self._nowhere.clear()
        self._absent.clear()

    def look_again(self) -> None:
        """Whoever held a lock may have made what was not there a moment ago."""
        self._absent.clear()

    def forget(self) -> None:
        """A transaction was rolled back: what it named may not exist."""
        self.sources.clear()
        self.workspaces.clear()
        self.series.clear()
        self.bindings.clear()
        self.said_by.clear()
        self.tagged.clear()

    def trim(self) -> None:
        """Keep memory bounded, whatever names are sent."""
        kept: tuple[dict[Any, Any], ...] = (self.sources, self.workspaces, self.series, self.bindings, self.said_by, self.tagged)
        for names in kept:
            if len(names) > _MAX_REMEMBERED:
                names.clear()

    def resolved_workspace(self, event: CapturedEvent, allowed: frozenset[str] | None) -> str:
        """The workspace this (source, endpoint, deployment) was first resolved to, else the only one the registry knows it in."""
        key = (event.source, event.endpoint or "", event.deployment or "")
        found = self.bindings.get(key)
        if found is None and (key[1] or key[2]) and key not in self._nowhere:
            found = self._bound(key)
            if found is None:
                place = self._only_place(key)
                if place is not None:
                    found = self._bind(key, place) if allowed is None or place in allowed else place
        if found is None:
            self._nowhere.add(key)
            raise Refused(
                "schema_invalid",
                "workspace is missing, and the inventory names no single one for this deployment; send the field workspace, "
                "or the header x-meterbridge-workspace",
            )
        if allowed is not None and found not in allowed:
            # Not named: it was not the sender who said it.
            raise Refused("forbidden_workspace", "workspace is missing, and the one that the inventory names for this deployment is not this key's")
        return found

    def _bound(self, key: tuple[str, str, str]) -> str | None:
        source_id = self.known_source(key[0])
        if source_id is None:
            return None
        query = (
            "SELECT w.name FROM shard_binding b JOIN workspace w ON w.id = b.workspace_id "
            "WHERE b.source_id = :source AND b.endpoint = :endpoint AND b.deployment = :deployment"
        )
        found = self._connection.scalar(sa.text(query), {"source": source_id, "endpoint": key[1], "deployment": key[2]})
        if found is None:
            return None
        self.bindings[key] = str(found)
        return str(found)

    def _only_place(self, key: tuple[str, str, str]) -> str | None:
        places = self._connection.scalars(
            sa.text(
                "SELECT DISTINCT workspace FROM deployment_fact WHERE known_to IS NULL AND source <> 'usage' "
                "AND (lower(name) = lower(:name) OR lower(deployment) = lower(:name) OR lower(endpoint) = lower(:name)) LIMIT 2"
            ),
            {"name": full_name(key[1], key[2]) or ""},
        ).all()
        return str(places[0]) if len(places) == 1 else None

    def _bind(self, key: tuple[str, str, str], workspace: str) -> str:
        """Keep for ever where it was first resolved to; another process may have been first."""
        self._connection.execute(
            sa.text(
                "INSERT INTO shard_binding (source_id, endpoint, deployment, workspace_id, bound_at) "
                "VALUES (:source, :endpoint, :deployment, :workspace, :at) ON CONFLICT DO NOTHING"
            ),
            {"source": self.source(key[0]), "endpoint": key[1], "deployment": key[2], "workspace": self.workspace(workspace), "at": self._received},
        )
        return self._bound(key) or workspace

    def only_deployment(self, workspace: str) -> str:
        """Which deployment a native event means that names none: the registry's only one of the workspace."""
        names = self._connection.scalars(
            sa.text("SELECT DISTINCT name FROM deployment_fact WHERE known_to IS NULL AND source <> 'usage' AND workspace = :workspace LIMIT 2"),
            {"workspace": workspace},
        ).all()
        if len(names) != 1:
            raise Refused("schema_invalid", "deployment is missing; send the field deployment or endpoint (or the header x-meterbridge-deployment)")
        return str(names[0])

    def known_source(self, name: str) -> int | None:
        """The number of a source, None where nothing of it was stored yet."""
        return self._find("usage_source", name, self.sources)

    def known_workspace(self, name: str) -> int | None:
        """The number of a workspace, None where nothing of it was stored yet."""
        return self._find("workspace", name, self.workspaces)

    def _find(self, table: str, name: str, known: dict[str, int]) -> int | None:
        """The id of a source or workspace, None where there is none yet."""
        found = known.get(name)
        if found is None and (table, name) not in self._absent:
            found = self._connection.scalar(sa.text(f"SELECT id FROM {table} WHERE name = :name"), {"name": name})  # noqa: S608 - names of ours
            if found is None:
                self._absent.add((table, name))
            else:
                known[name] = found
        return found

    def source(self, name: str) -> int:
        """The number of a source, given now if it has none."""
        found = self.known_source(name)
        if found is None:
            found = self.sources[name] = self._id_of("usage_source", {"name": name}, key="name")
        return found

    def workspace(self, name: str) -> int:
        """The number of a workspace, given now if it has none."""
        found = self.known_workspace(name)
        if found is None:
            found = self.workspaces[name] = self._id_of("workspace", {"name": name, "first_seen_at": self._received}, key="name")
            self._note_workspace(name)
        return found

    def _id_of(self, table: str, values: Mapping[str, Any], *, key: str) -> int:
        """The id of the row with that key, inserted if it is new; two processes may race for it."""
        select = sa.text(f"SELECT id FROM {table} WHERE {key} = :key")  # noqa: S608 - names of ours
        found = self._connection.scalar(select, {"key": values[key]})
        if found is None:
            columns = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            self._connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"), dict(values))  # noqa: S608 - names of ours
            found = self._connection.scalar(select, {"key": values[key]})
        return int(found)

    def names_of(self, series_id: int) -> tuple[Any, ...]:
        """The names of a series, from its endpoint to its tags."""
        found = self.said_by.get(series_id)
        if found is None:
            row = self._connection.execute(
                sa.text("SELECT endpoint, deployment, model, operation, fine_tuned, application, team, tags FROM usage_series WHERE id = :id"),
                {"id": series_id},
            ).one()
            found = self.said_by[series_id] = (*row[:4], bool(row[4]), *row[5:])
        return found

    def series_of(self, key: tuple[Any, ...]) -> SeriesRef:
        """A series by its names; one that is not stored yet has no id, so that a refused event leaves no trace."""
        found = self.series.get(key)
        if found is None:
            found = self.series[key] = SeriesRef(key)
        return found

    def insert(self, series: SeriesRef) -> None:
        """Store a series that is about to have its first event."""
        names = ("workspace_id", "source_id", "endpoint", "deployment", "model", "operation", "fine_tuned", "application", "team", "tags")
        row = [self.workspace(series.named[0]), self.source(series.named[1]), *series.named[2:]]
        if row[-1] != "{}" and not self._may_group(row[0], row[1], row[-1]):
            row[-1], series.is_ungrouped = "{}", True
        digest = hashlib.blake2b(canonical_json(row).encode(), digest_size=16).digest()
        series.id = self._id_of("usage_series", {**dict(zip(names, row, strict=True)), "digest": digest}, key="digest")
        self._note_deployment(series.named)

    def _may_group(self, workspace_id: int, source_id: int, tags: str) -> bool:
        """Whether these tags are among those that this sender of this workspace is grouped by, or there is room for them."""
        known = self.tagged.get((workspace_id, source_id))
        if known is None:
            query = sa.text("SELECT DISTINCT tags FROM usage_series WHERE workspace_id = :workspace AND source_id = :source AND tags <> '{}'")
            found = self._connection.scalars(query, {"workspace": workspace_id, "source": source_id})
            known = self.tagged[workspace_id, source_id] = {hash(one) for one in found}
        if len(known) >= MAX_TAG_COMBINATIONS:
            return hash(tags) in known
        known.add(hash(tags))
        return True

    # -- first sight ----------------------------------------------------------------------------

    def _note_workspace(self, name: str) -> None:
        known = self._connection.scalar(sa.text("SELECT 1 FROM workspace_fact WHERE workspace = :name AND known_to IS NULL LIMIT 1"), {"name": name})
        if known is None:
            self._connection.execute(
                sa.text("INSERT INTO workspace_fact (workspace, kind, source, author, known_from) VALUES (:name, 'workspace', 'usage', '', :at)"),
                {"name": name, "at": self._received},
            )

    def _note_deployment(self, named: Sequence[Any]) -> None:
        """List a deployment that usage shows for the first time, unconfirmed."""
        workspace, endpoint, deployment, model = named[0], named[2], named[3], named[4]
        name = full_name(endpoint, deployment)
        if name is None:
            return
        known = self._connection.scalar(
            sa.text("SELECT 1 FROM deployment_fact WHERE workspace = :workspace AND name = :name AND known_to IS NULL LIMIT 1"),
            {"workspace": workspace, "name": name},
        )
        if known is None:
            self._connection.execute(
                sa.text(
                    "INSERT INTO deployment_fact (workspace, name, endpoint, deployment, mode, model, source, author, known_from) "
                    "VALUES (:workspace, :name, :endpoint, :deployment, 'unknown', :model, 'usage', '', :at)"
                ),
                {
                    "workspace": workspace,
                    "name": name,
                    "endpoint": endpoint or deployment,
                    "deployment": deployment or endpoint,
                    "model": model or None,
                    "at": self._received,
                },
            )
