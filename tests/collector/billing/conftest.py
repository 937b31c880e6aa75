"""A desk for each test of bills."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.store import Store
from tests.collector.billing.desk import Desk


@pytest.fixture
def desk(tmp_path: Path, store: Store) -> Desk:
    return Desk(tmp_path, store)


@pytest.fixture
def table(tmp_path: Path, sqlite_store: Store) -> Desk:
    """A desk on SQLite only, for what the database does not decide."""
    return Desk(tmp_path, sqlite_store)
