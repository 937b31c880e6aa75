"""The migrations make exactly the tables that the code reads, on both databases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

from models.store import Store, head_revision


def test_a_migrated_database_has_the_tables_of_the_code(store: Store) -> None:
    with store.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
    assert differences == []


def test_migrating_again_does_nothing(store: Store) -> None:
    assert store.migrate() == (head_revision(), head_revision())


def test_rollups_are_stored_by_their_key_on_sqlite(sqlite_store: Store) -> None:
    with sqlite_store.engine.connect() as connection:
        for table in ("usage_quarter", "usage_minute"):
            sql = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table})
            assert "WITHOUT ROWID" in sql
