"""The real service as its own processes, for tests that go end to end: started, asked over HTTP, killed, read behind.

A ``Service`` is one process of ``python -m collector.cli`` on a port that the system chose. It dies with the tests.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psycopg
import sqlalchemy as sa

from models.store import normalize_url
from tests.databases import PostgreSQL

ROOT = Path(__file__).parents[2]
READY_SECONDS = 30.0
END_SECONDS = 20.0
_ANNOUNCED = re.compile(r"^meterbridge .* on (http://[^\s]+:\d+)", re.MULTILINE)
_Answer = TypeVar("_Answer")


def until(question: Callable[[], _Answer | None], *, within: float, what: str, pause: float = 0.02) -> _Answer:
    """The first answer that is not None or False; fails, by name, when there is none in time."""
    deadline = time.monotonic() + within
    while True:
        answer = question()
        if answer is not None and answer is not False:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come about within {within:g} s"
        time.sleep(pause)


class Service:
    """One process of the service; ``with`` starts it and ends it. After ``kill`` or ``stop`` it can be started again."""

    _numbers = count(1)

    def __init__(self, database_url: str | None, folder: Path, *, words: Sequence[str] = ("serve", "--port", "0")) -> None:
        self._words = words
        self._folder = folder
        self._database_url = database_url
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "never started"
        self._client: httpx.Client | None = None
        self.logs: list[Path] = []
        self.url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, *, ready: bool = True) -> Self:
        """Start the process and wait until it says that it is ready."""
        assert self._process is None, "it is running already"
        self._log = self._folder / f"service-{next(self._numbers)}.log"
        self.logs.append(self._log)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "collector.cli", *self._words],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._database_url),
                preexec_fn=_end_with_the_parent(),  # noqa: PLW1509 - one system call, looked up before the fork
            )
        try:
            self.url = until(self._announced, within=READY_SECONDS, what="the start of the service")
            # Patient: a loaded machine is slow, and a test that waits for a refusal gets it soon anyway.
            self._client = httpx.Client(base_url=self.url, timeout=httpx.Timeout(30), trust_env=False)
            if ready:
                until(self.is_ready, within=READY_SECONDS, what="readiness")
        except BaseException:
            self.kill()
            raise
        return self

    @property
    def client(self) -> httpx.Client:
        """Asks this process."""
        assert self._client is not None, "it is not running"
        return self._client

    @property
    def pid(self) -> int:
        assert self._process is not None, "it is not running"
        return self._process.pid

    def is_ready(self) -> bool:
        """Whether ``/readyz`` says so now."""
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL: no farewell of any kind."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def stop(self, sign: signal.Signals = signal.SIGTERM, *, within: float = END_SECONDS) -> int:
        """Ask it to end, as an operator would; gives the exit code."""
        assert self._process is not None, "it is not running"
        self._process.send_signal(sign)
        try:
            return self._end(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _end(self, within: float = END_SECONDS) -> int:
        assert self._process is not None
        code = self._process.wait(within)
        self._process = None
        if self._client is not None:
            self._client.close()
            self._client = None
        return code

    def _announced(self) -> str | None:
        assert self._process is not None
        assert self._process.poll() is None, f"the service ended with {self._process.returncode}: {self.said()}"
        found = _ANNOUNCED.search(self.said())
        return found[1] if found else None

    def said(self) -> str:
        """What the process printed since its last start."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """No file of the process may grow: what a full disk looks like from inside (Python ignores the signal for it)."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        before = resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, before)


# -- commands -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def begin(database_url: str | None, *words: str, folder: Path) -> subprocess.Popen[str]:
    """A command, started and left alone."""
    return subprocess.Popen(
        [sys.executable, "-m", "collector.cli", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(database_url),
        text=True,
        preexec_fn=_end_with_the_parent(),  # noqa: PLW1509 - one system call, looked up before the fork
    )


def run(database_url: str | None, *words: str, folder: Path, within: float = 120) -> Finished:
    """A command, as a user types it."""
    process = begin(database_url, *words, folder=folder)
    try:
        out, err = process.communicate(timeout=within)
    finally:
        process.kill()
    return Finished(process.returncode, out, err)


def verify(database_url: str | None, *, folder: Path) -> None:
    """The second pair of eyes finds that every figure is the one that the raw rows give."""
    found = run(database_url, "verify", folder=folder)
    said = found.out.strip().splitlines() or [found.err]
    assert (found.code, said[-1].endswith("all agree")) == (0, True), "\n".join([*said[:12], "…", said[-1], found.err[-400:]])


def environment(database_url: str | None) -> dict[str, str]:
    """The environment of a process of ours: this checkout, that database, no setting of the shell."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("METERBRIDGE_", "AZURE_"))}
    own["PYTHONPATH"] = str(ROOT)
    if database_url is not None:
        own["METERBRIDGE_DATABASE_URL"] = database_url
    return own


def _end_with_the_parent() -> Callable[[], object] | None:
    """What a child calls so that the system kills it when the tests are; only Linux knows it."""
    if sys.platform != "linux":
        return None
    set_parent_death_signal = 1
    return partial(ctypes.CDLL(None).prctl, set_parent_death_signal, int(signal.SIGKILL))


# -- behind its back ------------------------------------------------------------------------------


class Behind:
    """Reads the database with nothing of the service in between."""

    def __init__(self, database_url: str) -> None:
        self._engine = sa.create_engine(normalize_url(database_url), poolclass=sa.NullPool)

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """What a plain query answers."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query), values)]

    def number(self, query: str, **values: Any) -> int:
        """The one number that a plain query answers."""
        ((found,),) = self.rows(query, **values)
        return int(found or 0)


class CrashablePostgreSQL(PostgreSQL):
    """A server that can be stopped as a crash would, and started again on what it left.

    It loses nothing committed when its processes die, as any server in use; only the machine's own death is left out
    (no fsync), which no test here brings about.
    """

    def crash(self) -> None:
        """Stop at once, without a checkpoint ("immediate"); the next start recovers from the log."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(END_SECONDS)

    def start_again(self) -> None:
        """Start on the same data and wait until it answers."""
        assert self._process is not None
        command = self._process.args
        assert isinstance(command, list)
        self._process = self._run([str(word) for word in command])
        until(self._answers, within=60, what="the database's recovery")

    @contextmanager
    def durable_database(self) -> Iterator[str]:
        """A database whose commits survive a crash of the server: the test server's own default would lose the last ones."""
        with self.database() as url:
            name = url.partition("?")[0].rpartition("/")[2]
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = on".encode())
            yield url


# -- asking ---------------------------------------------------------------------------------------


def costs(client: httpx.Client, **query: str) -> dict[str, Any]:
    """What ``/v1/costs`` answers; ``from`` is spelled ``since``."""
    asked: Mapping[str, str] = {"from" if name == "since" else name: value for name, value in query.items()}
    answer = client.get("/v1/costs", params=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def totals(client: httpx.Client, **query: str) -> dict[str | None, dict[str, Any]]:
    """The totals by currency."""
    return {total["currency"]: total for total in costs(client, granularity="none", **query)["totals"]}


def amounts(client: httpx.Client, **query: str) -> dict[str | None, Decimal]:
    """The cost by currency; a currency of which nothing is known is left out."""
    return {currency: Decimal(total["cost"]) for currency, total in totals(client, **query).items() if total["cost"] is not None}
