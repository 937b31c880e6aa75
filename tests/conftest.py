"""What every test stands on: databases, a frozen instant, a browser, and no network but this machine's own.

A test that needs a tool the machine lacks says so through ``cannot_run``: on a developer's machine it is left out and
named in the summary; under ``CI=true`` that is a failure, so that a green run has run everything.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

from models.store import Store
from tests.databases import NoPostgreSQL, PostgreSQL

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# The same examples on every run; look for new ones with: pytest --hypothesis-profile=explore
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000, database=None)
hypothesis.settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    """Tests know no setting of the shell they are started from: not its database, its Azure, or its proxy."""
    for name in list(os.environ):
        if name.startswith(("METERBRIDGE_", "AZURE_")) and name != "METERBRIDGE_TEST_SEEDS":
            del os.environ[name]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What opens a browser takes seconds each: it goes with the long ones."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.walk)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in plain words what this run left out, and why."""
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("not run on this machine")
        for reason, number in sorted(reasons.items()):
            terminalreporter.line(f"{number} test{'s' if number > 1 else ''}: {reason}")


def cannot_run(reason: str) -> NoReturn:
    """Leave the test out for want of a tool, or fail it where everything has to run."""
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"CI runs every test, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command sets up logging for its process; what it wrote to is gone when the next test says something."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


# -- the network --------------------------------------------------------------------------------


class ReachedOutside(BaseException):
    """A test tried to talk to another machine. Not an Exception: code that forgives faults must not swallow it."""


def _is_local(host: object) -> bool:
    if not isinstance(host, str):
        return False
    if host in {"", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def only_this_machine() -> Iterator[None]:
    """Connections go to the loopback interface or to Unix sockets, and names are not looked up elsewhere."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse_outside(found: socket.socket, address: Any) -> None:
        if found.family in {socket.AF_INET, socket.AF_INET6} and not _is_local(address[0]):
            raise ReachedOutside(f"a test tried to connect to {address[0]}:{address[1]}; replay a recorded answer instead")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse_outside(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse_outside(self, address)
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not _is_local(name) and not _is_number(name):
            raise ReachedOutside(f"a test tried to look up {name}; hand it a resolver instead")
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


# -- databases ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL, one for each test process, started when the first test asks."""
    with ExitStack() as running:
        try:
            server = running.enter_context(PostgreSQL())
        except NoPostgreSQL as fault:
            reason = str(fault)
        else:
            reason = ""
        if reason:
            cannot_run(reason)
        yield server


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file of the current schema, to copy: a migration for each test would take most of its time."""
    path = tmp_path_factory.mktemp("schema") / "migrated.db"
    store = Store(f"sqlite:///{path}")
    store.migrate()
    store.close()
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_file: Path) -> str:
    """The URL of a migrated SQLite file of the test's own."""
    path = tmp_path / "meterbridge.db"
    shutil.copyfile(migrated_file, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of a migrated PostgreSQL database of the test's own."""
    with postgresql.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database; the test runs once on each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A migrated store; the test runs once on each kind of database."""
    yield from _opened(database_url)


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    """A migrated store on SQLite only, for tests in which the database does not matter."""
    yield from _opened(sqlite_url)


def _opened(url: str) -> Iterator[Store]:
    opened = Store(url)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def unmigrated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty database of each kind, for what an upgrade makes of an earlier version."""
    with ExitStack() as open_ones:
        url = f"sqlite:///{tmp_path}/old.db"
        if request.param == "postgresql":
            server: PostgreSQL = request.getfixturevalue("postgresql")
            url = open_ones.enter_context(server.database(migrated=False))
        opened = Store(url)
        open_ones.callback(opened.close)
        yield opened


# -- time and browser ---------------------------------------------------------------------------


@pytest.fixture
def now() -> datetime:
    """The instant at which tests happen."""
    return datetime(2026, 11, 20, 10, tzinfo=UTC)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium for Playwright's ``executable_path``."""
    for name in _BROWSERS:
        found = shutil.which(name)
        if found is not None:
            return found
    cannot_run("no Chromium found for the browser tests; run: apt-get install chromium")
