"""The database: one moment to read, one transaction to write, one schema, and faults in words."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from models import store as module
from models.errors import InvalidInput, Unavailable
from models.store import Store, head_revision, normalize_url, refuse_network_file_system, unavailable_as_such
from tests.databases import PostgreSQL

PUT = sa.text("INSERT INTO setting (name, value) VALUES (:name, 'x')")
NAMES = sa.text("SELECT name FROM setting ORDER BY name")


def names(store: Store) -> list[str]:
    with store.read() as session:
        return list(session.execute(NAMES).scalars())


# -- URLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///t.db", "sqlite:///t.db"),
        ("sqlite:////tmp/t.db", "sqlite:////tmp/t.db"),
        ("postgresql://u:p@db/mb", "postgresql+psycopg://u:p@db/mb"),
        ("postgresql+psycopg://db/mb", "postgresql+psycopg://db/mb"),
        ("postgresql+asyncpg://db/mb", "postgresql+psycopg://db/mb"),
    ],
)
def test_a_url_is_taken_as_operators_write_it(url: str, expected: str) -> None:
    assert normalize_url(url).render_as_string(hide_password=False) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not one"),
        ("meterbridge.db", "not one"),
        ("postgresql://db:port/mb", "not one"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("mysql://db/mb", "mysql is not a database meterbridge runs on"),
        ("postgres://db/mb", "use sqlite:///path or postgresql://"),
    ],
)
def test_a_url_of_something_else_is_refused_with_the_right_one(url: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        normalize_url(url)


def test_a_password_is_never_shown() -> None:
    store = Store("postgresql://user:canary@db.invalid/mb")
    assert "canary" not in f"{store!r} {store} {store.name}"
    assert store.name == "postgresql+psycopg://user:***@db.invalid/mb"


def test_a_network_file_system_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path}/a\\040b nfs4 rw 0 0\nhalf\n")
    monkeypatch.setattr(module, "_MOUNTS", mounts)
    with pytest.raises(InvalidInput, match=r"network file system \(nfs4\)"):
        refuse_network_file_system(tmp_path / "a b" / "t.db")
    refuse_network_file_system(tmp_path / "t.db")
    refuse_network_file_system(tmp_path / "a bc" / "t.db")


# -- transactions -----------------------------------------------------------------------------------


def test_a_block_is_one_transaction(store: Store) -> None:
    with store.write() as session:
        session.execute(PUT, {"name": "a"})
        session.execute(PUT, {"name": "b"})
    with pytest.raises(exc.IntegrityError), store.write() as session:
        session.execute(PUT, [{"name": "c"}, {"name": "a"}])
    assert names(store) == ["a", "b"]


def test_a_reader_sees_one_moment(store: Store) -> None:
    with store.read() as session:
        assert list(session.execute(NAMES).scalars()) == []
        with store.write() as other:
            other.execute(PUT, {"name": "a"})
        assert list(session.execute(NAMES).scalars()) == []
    assert names(store) == ["a"]


def test_a_reader_leaves_nothing_behind(store: Store) -> None:
    if store.is_sqlite:
        with store.read() as session:
            session.execute(PUT, {"name": "a"})
    else:
        with pytest.raises(Unavailable), store.read() as session:
            session.execute(PUT, {"name": "a"})
    assert names(store) == []


def test_writers_of_one_file_wait_for_each_other(store: Store) -> None:
    def put(number: int) -> None:
        with store.write() as session:
            seen = session.execute(sa.text("SELECT COUNT(*) FROM setting")).scalar()
            session.execute(PUT, {"name": f"{number}-{seen is not None}"})

    threads = [threading.Thread(target=put, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(names(store)) == 12


def test_sqlite_is_on_the_disk_when_it_says_so(sqlite_store: Store) -> None:
    with sqlite_store.read() as session:
        assert [session.execute(sa.text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")] == ["wal", 2, 1]


# -- faults -----------------------------------------------------------------------------------------


def test_a_missing_server_is_unavailable(postgresql: PostgreSQL) -> None:
    store = Store(postgresql.url("no_such_database"))
    with pytest.raises(Unavailable, match=r'the database does not answer: .*"no_such_database" does not exist'), store.read():
        pass
    store.close()


def test_a_locked_file_is_unavailable(sqlite_store: Store) -> None:
    assert sqlite_store.path is not None
    with closing(sqlite3.connect(sqlite_store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        def impatient(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA busy_timeout = 1")

        sa.event.listen(sqlite_store.engine, "connect", impatient)
        with pytest.raises(Unavailable, match="database is locked"), sqlite_store.write():
            pass
    with sqlite_store.write() as session:
        session.execute(PUT, {"name": "a"})


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"words " * 1000)
    store = Store(f"sqlite:///{tmp_path}/t.db")
    with pytest.raises(Unavailable, match="file is not a database"):
        store.migrate()
    store.close()


@pytest.mark.parametrize(
    "fault",
    [
        exc.ProgrammingError("SELECT", {}, Exception("no such column")),
        exc.IntegrityError("INSERT", {}, sqlite3.IntegrityError("twice")),
        exc.InternalError("SELECT", {}, psycopg.errors.InFailedSqlTransaction("aborted")),
        exc.DatabaseError("SELECT", {}, sqlite3.IntegrityError("twice")),
        ValueError("ours"),
    ],
)
def test_faults_of_our_own_are_not_excused(fault: Exception) -> None:
    with pytest.raises(type(fault)), unavailable_as_such():
        raise fault


@pytest.mark.parametrize(
    "fault",
    [
        exc.OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error")),
        exc.InterfaceError("SELECT", {}, Exception("closed")),
        exc.TimeoutError("no connection left"),
        exc.InternalError("INSERT", {}, psycopg.errors.ReadOnlySqlTransaction("read-only")),
        exc.DatabaseError("SELECT", {}, sqlite3.DatabaseError("database disk image is malformed")),
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.DatabaseError("file is not a database"),
    ],
)
def test_a_database_that_is_away_is_said_in_one_line(fault: Exception) -> None:
    with pytest.raises(Unavailable) as found, unavailable_as_such():
        raise fault
    assert found.value.message.startswith("the database does not answer: ")
    assert "\n" not in found.value.message


# -- schema -----------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without a schema."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/made/t.db"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    with server.database(migrated=False) as url:
        yield url


def test_migrating_makes_the_schema_once(empty: str, tmp_path: Path) -> None:
    store = Store(empty)
    assert store.migrate() == (None, head_revision())
    assert store.migrate() == (head_revision(), head_revision())
    assert store.revision() == head_revision()
    store.check_schema()
    store.close()


def test_processes_that_start_together_migrate_once(postgresql: PostgreSQL) -> None:
    with postgresql.database(migrated=False) as url:
        stores, found = [Store(url) for _ in range(3)], []

        def migrate(store: Store) -> None:
            found.append(store.migrate()[0])

        threads = [threading.Thread(target=migrate, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for store in stores:
            store.close()
    assert sorted(found, key=str) == sorted([None, head_revision(), head_revision()], key=str)


def test_an_older_schema_asks_to_be_migrated_and_a_newer_one_is_refused(store: Store) -> None:
    with store.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999_future'"))
    for act in (store.check_schema, store.migrate):
        with pytest.raises(InvalidInput, match="has schema 9999_future, which is newer than this meterbridge"):
            act()
    with store.write() as session:
        session.execute(sa.text("DELETE FROM alembic_version"))
    with pytest.raises(InvalidInput, match=r"is at schema none, this software needs .*; run: meterbridge migrate"):
        store.check_schema()


def test_a_new_sqlite_file_is_for_its_owners_eyes(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/new.db")
    store.migrate()
    with store.write() as session:
        session.execute(sa.text("INSERT INTO setting (name, value) VALUES ('a', 'b')"))
        assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {"new.db": 0o600, "new.db-shm": 0o600, "new.db-wal": 0o600}
    store.close()
