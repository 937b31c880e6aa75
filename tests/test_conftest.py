"""The ground the other tests stand on holds."""

import os
import socket
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from models.store import Store, head_revision
from tests.conftest import ReachedOutside
from tests.databases import PostgreSQL


def test_store_is_migrated_and_takes_writes(store: Store) -> None:
    assert store.revision() == head_revision()
    with store.write() as session:
        session.execute(sa.text("INSERT INTO setting (name, value) VALUES ('colour', 'blue')"))
    with store.read() as session:
        assert session.execute(sa.text("SELECT value FROM setting")).scalars().all() == ["blue"]


def test_each_test_has_a_database_of_its_own(store: Store) -> None:
    # The test above, which wrote a setting, must not be seen here in whatever order the two run.
    with store.read() as session:
        assert session.execute(sa.text("SELECT count(*) FROM setting")).scalar_one() == 0


def test_a_lent_database_is_gone_afterwards(postgresql: PostgreSQL) -> None:
    with postgresql.database(migrated=False) as url, psycopg.connect(url) as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_a_stopped_server_leaves_nothing_behind() -> None:
    with PostgreSQL() as server:
        folder = Path(server.url("postgres").partition("host=")[2])
        process = int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize("host", ["203.0.113.7", "10.0.0.1", "169.254.169.254"])
def test_no_test_reaches_another_machine(host: str) -> None:
    with socket.socket() as client, pytest.raises(ReachedOutside, match=host):
        client.connect((host, 443))


def test_no_test_looks_up_a_name() -> None:
    with pytest.raises(ReachedOutside, match="example\\.org"):
        socket.getaddrinfo("example.org", 443)


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5) as client:
        assert client.getpeername() == server.getsockname()


def test_now_is_aware(now: datetime) -> None:
    assert now.isoformat() == "2026-11-20T10:00:00+00:00"
    assert now.utcoffset() == timedelta(0)
