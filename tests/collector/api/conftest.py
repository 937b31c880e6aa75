"""The running services that the tests of the routes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.store import Store
from tests.collector.api.serving import Service, serving


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    """A service in open mode on SQLite."""
    with serving(sqlite_store) as running:
        yield running


@pytest.fixture
def service_on_both(store: Store) -> Iterator[Service]:
    """A service in open mode; the test runs once on each kind of database."""
    with serving(store) as running:
        yield running
