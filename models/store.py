"""The database: engines, transactions and the schema's version, on SQLite and PostgreSQL alike.

``Store.read`` gives a session that sees one moment and never writes; ``Store.write`` one transaction that is durable
when it returns. Sessions are opened at the edge (request, job, command), never inside.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, exc
from sqlmodel import Session

# The tables must be known to the metadata before anything asks for it.
from models import (  # noqa: F401
    alerts,
    charges,
    closing,
    corrections,
    identities,
    intake,
    leases,
    limits,
    meters,
    notices,
    prices,
    quotas,
    reports,
    resources,
    schedules,
    sources,
    usage,
    utilisation,
    witnesses,
    worklist,
)
from models.errors import InvalidInput, Unavailable

_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.rclone", "glusterfs", "ceph", "lustre", "afs"})
_MOUNTS = Path("/proc/self/mounts")
_READ_ONLY = "25006"  # PostgreSQL: the server is a standby, or its disk made it read-only
_ROWS_A_STEP = 256  # SQLite takes 32,766 marks in a statement; a row has 22 at most
_WRITER_CACHE = -65536  # KiB, as SQLite counts them: the pages being written stay in memory
_MIGRATION_LOCK = 0x6D627269646765  # "mbridge": any constant that nobody else on the server uses


def normalize_url(url: str) -> sa.URL:
    """``sqlite:///path`` or ``postgresql://…`` as an engine takes it; anything else is refused by name."""
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError) as fault:
        raise InvalidInput("the database URL is not one; use sqlite:///path/to/file.db or postgresql://user@host/name") from fault
    match parsed.get_backend_name():
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise InvalidInput("SQLite needs a file: sqlite:///path/to/file.db")
            return parsed.set(drivername="sqlite")
        case "postgresql":
            return parsed.set(drivername="postgresql+psycopg")
        case other:
            raise InvalidInput(f"{other} is not a database meterbridge runs on; use sqlite:///path or postgresql://user@host/name")


class Store:
    """One database. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self.url = normalize_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.path: Path | None = None
        self.closings = 0
        if self.is_sqlite:
            self.path = Path(str(self.url.database)).absolute()
            refuse_network_file_system(self.path)
            self.engine = sa.create_engine(self.url, connect_args={"timeout": 10, "check_same_thread": False}, pool_size=12, max_overflow=12, pool_timeout=10)
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            self.engine = sa.create_engine(
                self.url,
                pool_size=10,
                max_overflow=10,
                pool_timeout=10,
                pool_pre_ping=True,
                connect_args={
                    "connect_timeout": 5,
                    "application_name": "meterbridge",
                    "options": "-c timezone=UTC -c statement_timeout=60000 -c lock_timeout=10000",
                },
            )
            event.listen(self.engine, "connect", _prepare_postgresql)
        # SQLite's deferred transaction already sees one moment only.
        self._reader = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._writer = self.engine.execution_options(meterbridge_writes=True)

    def __repr__(self) -> str:
        return f"Store({self.url.render_as_string(hide_password=True)})"

    @property
    def name(self) -> str:
        """The URL without its password, for messages."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent moment and is rolled back at the end."""
        with unavailable_as_such(), self._reader.connect() as connection, Session(connection) as session:
            yield session
            session.rollback()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction, committed (to the disk) at the end of the block, rolled back on any error."""
        with (
            unavailable_as_such(),
            self._writer.connect() as connection,
            connection.begin(),
            Session(connection, join_transaction_mode="control_fully") as session,
        ):
            yield session
            session.commit()

    @contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """``writer`` for a block."""
        with self.writer() as connection:
            yield connection

    def writer(self) -> sa.Connection:
        """A bare writing connection for the hot path; the caller begins, commits and closes."""
        connection = self._writer.connect()
        if self.is_sqlite:
            quick(connection, f"PRAGMA cache_size = {_WRITER_CACHE}")
        return connection

    def close(self) -> None:
        """Give every connection back; whoever keeps one looks at ``closings`` before using it again."""
        self.closings += 1
        self.engine.dispose()

    # -- schema ---------------------------------------------------------------------------------

    def migrate(self) -> tuple[str | None, str]:
        """Bring the schema to this software's version; gives the revisions before and after."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                # Nobody else's eyes: it holds what signs the dashboard's sessions. SQLite gives its companions the same mode.
                self.path.touch(mode=0o600)
        with unavailable_as_such(), self.engine.connect() as connection:
            if not self.is_sqlite:
                # Several processes may start at once: one migrates, the others wait for it.
                _wait_for_migration_lock(connection)
            try:
                before = self._revision(connection)
                self._refuse_newer(before)
                config = _alembic_config()
                config.attributes["connection"] = connection
                if not self.is_sqlite:
                    # A migration of a large table may take longer than any question.
                    connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
                    connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
                command.upgrade(config, "head")
                connection.commit()
                return before, head_revision()
            finally:
                if not self.is_sqlite:
                    connection.rollback()
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(_MIGRATION_LOCK)))
                    connection.commit()

    def revision(self) -> str | None:
        """The schema's revision in the database, None where there is none yet."""
        with unavailable_as_such(), self.engine.connect() as connection:
            return self._revision(connection)

    def check_schema(self) -> None:
        """Refuse a database that is newer than this software, or not migrated yet."""
        found = self.revision()
        self._refuse_newer(found)
        if found != head_revision():
            raise InvalidInput(f"the database {self.name} is at schema {found or 'none'}, this software needs {head_revision()}; run: meterbridge migrate")

    def _refuse_newer(self, found: str | None) -> None:
        known = {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}
        if found is not None and found not in known:
            raise InvalidInput(
                f"the database {self.name} has schema {found}, which is newer than this meterbridge; install the newer version, or restore a backup"
            )

    @staticmethod
    def _revision(connection: sa.Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()


def quick(connection: sa.Connection, statement: str, values: Sequence[Any] = ()) -> Any:
    """A statement given to the driver as it is, inside the connection's transaction: a tenth of the cost, for the hot path only."""
    driver: Any = connection.connection.driver_connection
    return driver.execute(statement, values)


def in_few_steps(connection: sa.Connection, statement: str, one: str, rows: Sequence[Sequence[Any]], end: str = "") -> None:
    """Store rows in SQLite, many a step: the driver lets other threads run during each step, and waits for them after it.

    ``one`` is a row's marks, as it stands behind VALUES at the end of ``statement``.
    """
    driver: Any = connection.connection.driver_connection
    start = 0
    while start < len(rows):
        # Powers of two: the driver keeps the statements that it prepared, and there are few.
        size = min(_ROWS_A_STEP, 1 << (len(rows) - start).bit_length() - 1)
        driver.execute(f"{statement}{', '.join([one] * size)}{end}", list(chain.from_iterable(rows[start : start + size])))
        start += size


def together(connection: sa.Connection) -> AbstractContextManager[Any]:
    """Within, PostgreSQL is sent what ``quick`` says without waiting for each answer; it does one after the other all the same."""
    driver: Any = connection.connection.driver_connection
    return driver.pipeline() if isinstance(driver, psycopg.Connection) else nullcontext()


@contextmanager
def unavailable_as_such() -> Iterator[None]:
    """Turn a database that is away, full, locked or read-only into ``Unavailable``; other faults pass."""
    try:
        yield
    except (exc.DBAPIError, exc.TimeoutError, sqlite3.DatabaseError, psycopg.Error) as fault:
        if not _is_away(fault):
            raise
        raise Unavailable(f"the database does not answer: {_first_line(fault)}") from fault


def _is_away(fault: BaseException) -> bool:
    match fault:
        case exc.OperationalError() | exc.InterfaceError() | exc.TimeoutError() | sqlite3.OperationalError():
            return True
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return True
        case psycopg.InternalError():
            return fault.sqlstate == _READ_ONLY
        case exc.InternalError():
            return getattr(fault.orig, "sqlstate", None) == _READ_ONLY
        case _:
            # SQLite says "malformed" and "not a database" with the base class of its errors, ours with one of the others.
            return type(getattr(fault, "orig", fault)) is sqlite3.DatabaseError


def _first_line(fault: BaseException) -> str:
    original = getattr(fault, "orig", None) or fault
    return str(original).strip().splitlines()[0][:200] if str(original).strip() else type(original).__name__


@functools.cache
def head_revision() -> str:
    """The schema revision this software is written for."""
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    if head is None:
        raise InvalidInput("the installed meterbridge has no migrations; reinstall it")
    return head


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _wait_for_migration_lock(connection: sa.Connection, *, timeout_seconds: float = 120) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_MIGRATION_LOCK))):
        connection.rollback()
        if time.monotonic() > deadline:
            raise Unavailable("another process has been migrating the database for two minutes; look at it, then try again")
        time.sleep(0.2)
    connection.commit()


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    # With "off" a commit returns before it is on the disk, and what was acknowledged last is lost in a crash. Any other
    # setting is at least as strong as "on" here or the operator's own choice about standbys.
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
    connection.commit()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling is off: it would begin late and commit before DDL.
    connection.isolation_level = None
    for pragma in (
        "page_size = 8192",
        "journal_mode = WAL",
        # FULL: a commit is on the disk before it is acknowledged; NORMAL loses the last ones with the power.
        "synchronous = FULL",
        "busy_timeout = 10000",
        "foreign_keys = ON",
        # The writer asks for more (Store.connection); a pool of readers with as much each would be a gigabyte.
        "cache_size = -8192",
        # Pages: the log is folded in after 160 MB, which saves writing a page that is written again at once.
        "wal_autocheckpoint = 20000",
        "journal_size_limit = 67108864",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once: a read that turns into a write could fail half way.
    writes = connection.get_execution_options().get("meterbridge_writes", False)
    quick(connection, "BEGIN IMMEDIATE" if writes else "BEGIN")


def refuse_network_file_system(path: Path) -> None:
    """SQLite's locks do not hold on a network file system; two machines would corrupt the ledger."""
    if not _MOUNTS.exists():
        return
    where, best, kind = os.path.realpath(path.parent), "", ""
    for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if (where == point or where.startswith(point.rstrip("/") + "/")) and len(point) > len(best):
            best, kind = point, fields[2]
    if kind in _NETWORK_FILE_SYSTEMS:
        raise InvalidInput(f"{path} is on a network file system ({kind}), where SQLite cannot keep it whole; use a local disk or a postgresql:// database")
