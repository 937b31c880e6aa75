"""One process owns a SQLite database; commands given meanwhile find it and go through it.

The lock is the operating system's, on a file beside the database: it goes with the process, however that ends. Its
owner writes into the file where it listens and a token that only readers of the file know.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from models.errors import Conflict, InvalidInput


@dataclass(frozen=True, slots=True)
class Running:
    """A service that owns the database: where its control route is, and the token for it."""

    pid: int
    url: str
    token: str


class DatabaseLock:
    """The ownership of a SQLite file. ``acquire`` it once per process."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".lock")
        self._handle: int | None = None
        self.token = secrets.token_urlsafe(32)

    def acquire(self) -> bool:
        """Take the lock if it is free."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not through a link, and for no other eyes: what is written here lets its reader command the service.
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.fchmod(handle, 0o600)
        except OSError as fault:
            raise InvalidInput(f"the database's lock {self.path} cannot be made: {fault.strerror}; choose another place with --database-url") from fault
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        self._handle = handle
        return True

    def announce(self, url: str) -> None:
        """Say where commands can reach this process."""
        if self._handle is not None:
            text = json.dumps({"pid": os.getpid(), "url": url, "token": self.token}).encode()
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, text, 0)

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def running(self) -> Running | None:
        """The service that holds the lock, as far as it has announced itself."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if self.path.is_symlink() or self.path.stat().st_uid not in {0, os.getuid()}:
                return None  # somebody else's word is not to be followed
            said = json.loads(self.path.read_text(encoding="utf-8"))
            return Running(int(said["pid"]), str(said["url"]), str(said["token"]))
        return None

    def acquire_or_find(self, *, wait_seconds: float = 10.0) -> Running | None:
        """None once the lock is ours, else the running service; waits a little for a command that is about to end."""
        deadline = time.monotonic() + wait_seconds
        while True:
            if self.acquire():
                return None
            found = self.running()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise Conflict(f"another meterbridge command is using the database (lock {self.path}); wait for it to end, then try again")
            time.sleep(0.05)
