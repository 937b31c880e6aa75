"""Reports usage events to a meterbridge service in the background: never slows the caller, never raises, loses as little as it can.

``report`` puts an event into a short queue. One thread writes the queue to the spool (on disk when it is counted as
``spooled``), another delivers what is spooled in batches and forgets it only when the service has answered that it is
stored. An event's id and time are the caller's and never change, so that whatever is sent twice counts once.
"""

from __future__ import annotations

import atexit
import contextlib
import email.utils
import gzip
import json
import logging
import os
import random
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from meterbridge_client.spool import CAN_LOCK, DiskFirst, DiskSpool, MemorySpool, Refused, Spool, default_folder

logger = logging.getLogger("meterbridge_client")

MAX_QUEUE = 10_000
_MOST = 1_000
_MOST_BYTES = 1024 * 1024
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_ASKED = 0.5, 60.0, 300.0
# Collecting for a moment makes one request of many calls; far below what an alert waits for.
_COLLECT_SECONDS = 1.0
_GATHER_SECONDS = 0.05
_ANSWER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of the events of this process (and, for those delivered, of dead ones whose segments it took over)."""

    reported: int
    spooled: int  # on disk
    accepted: int
    duplicates: int
    rejected: int
    dropped: int
    waiting: int
    failed_attempts: int
    last_error: str | None


@dataclass(slots=True)
class _Counts:
    reported: int = 0
    spooled: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    dropped: int = 0
    failed_attempts: int = 0
    last_error: str | None = None


class _Fault(Exception):
    """An attempt that stored nothing: try again, not before ``pause`` seconds where one was asked for."""

    def __init__(self, message: str, *, pause: float | None = None, is_ours: bool = False) -> None:
        super().__init__(message)
        self.pause = pause
        self.is_ours = is_ours  # the body itself is at fault


class Reporter:
    """Delivers events to ``POST {url}/v1/usage`` with ``key``.

    ``spool`` is a folder (None: one of this user's own, by URL, workspace and application; False: memory only).
    ``timeout`` bounds one attempt, ``close_timeout`` the wait at the end of the program, in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        spool: str | os.PathLike[str] | Literal[False] | None = None,
        spool_names: tuple[str, ...] = (),
        max_spool_bytes: int = 64 * 1024 * 1024,
        timeout: float = 10.0,
        close_timeout: float = 5.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the service's URL must be http:// or https:// with a host, such as http://127.0.0.1:8000, not {url[:80]!r}")
        self._url = f"{url.rstrip('/')}/v1/usage"
        self._key = key
        self._timeout = timeout
        self._close_timeout = close_timeout
        self._counts = _Counts()
        self._spool = _open_spool(url, spool, spool_names, max_spool_bytes)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._queue: deque[Mapping[str, Any]] = deque()
        self._begin()
        _watch(self)

    def _begin(self) -> None:
        self._condition = threading.Condition()
        self._writing = 0
        self._threads: list[threading.Thread] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._warned: set[str] = set()

    # -- the caller's side ------------------------------------------------------------------------

    def report(self, event: Mapping[str, Any]) -> None:
        """Take one native usage event with its ``id`` and ``time``; returns at once and raises nothing."""
        with self._condition:
            self._counts.reported += 1
            if len(self._queue) >= MAX_QUEUE:
                self._counts.dropped += 1
                return
            self._queue.append(event)
            if not self._threads and not self._stopping.is_set():
                self._start()
            self._condition.notify_all()

    def wake(self) -> None:
        """Start delivering what an earlier process left, though nothing is reported yet."""
        with self._condition:
            if not self._threads and not self._stopping.is_set():
                self._start()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until nothing waits any more; whether that came about within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        self._hurry.set()
        self._wake.set()
        try:
            with self._condition:
                while self._queue or self._writing or self._spool.waiting():
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._threads:
                        return False
                    self._condition.wait(min(left, 0.05))
            return True
        finally:
            self._hurry.clear()

    def spooled(self, timeout: float = 10.0) -> bool:
        """Wait until everything reported so far is in the spool: from then on a folder keeps it whatever happens to this process."""
        deadline = time.monotonic() + timeout
        self._hurry.set()
        try:
            with self._condition:
                while self._queue or self._writing:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self._condition.wait(min(left, 0.05))
            return True
        finally:
            self._hurry.clear()

    def close(self, timeout: float | None = None) -> None:
        """Deliver what can be delivered in time, and stop; what a folder holds is delivered by the next process."""
        if self._stopping.is_set():
            return
        if self._threads:
            self.flush(self._close_timeout if timeout is None else timeout)
        self._stopping.set()
        self._hurry.set()
        self._wake.set()
        with self._condition:
            self._condition.notify_all()
        for thread in self._threads:
            thread.join(1.0)
        left = self._spool.waiting()
        if left and isinstance(self._spool, MemorySpool):
            logger.warning("meterbridge: %d usage events were not delivered to %s and are lost; a spool folder would have kept them", left, self._url)
        if not any(thread.is_alive() for thread in self._threads):
            self._spool.close()
        _living.discard(self)

    def stats(self) -> Stats:
        """What became of the events so far."""
        counts = self._counts
        with self._condition:
            waiting = len(self._queue) + self._writing
        return Stats(
            reported=counts.reported,
            spooled=counts.spooled,
            accepted=counts.accepted,
            duplicates=counts.duplicates,
            rejected=counts.rejected,
            dropped=counts.dropped + self._spool.dropped,
            waiting=waiting + self._spool.waiting(),
            failed_attempts=counts.failed_attempts,
            last_error=counts.last_error,
        )

    def _after_fork(self) -> None:
        """A child process begins with nothing: its parent's queue, threads and segments are the parent's."""
        self._queue.clear()
        self._counts = _Counts()
        self._spool.after_fork()
        self._begin()

    # -- the threads' side ------------------------------------------------------------------------

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._write, name="meterbridge-spool", daemon=True),
            threading.Thread(target=self._deliver, name="meterbridge-report", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        """Queue to spool, for as long as the reporter lives."""
        while True:
            with self._condition:
                while not self._queue:
                    if self._stopping.is_set():
                        return
                    self._condition.wait(1.0)
            # A moment later there may be more of them, for one write to the disk.
            self._hurry.wait(_GATHER_SECONDS)
            with self._condition:
                events = list(self._queue)
                self._queue.clear()
                self._writing = len(events)
            lines = [line for event in events if (line := _line(event)) is not None]
            self._counts.dropped += len(events) - len(lines)
            is_on_disk = self._spool.append(lines)
            with self._condition:
                self._writing = 0
                self._counts.spooled += len(lines) * is_on_disk
                self._condition.notify_all()
            self._wake.set()

    def _deliver(self) -> None:
        """Spool to service, for as long as the reporter lives."""
        pause = 0.0
        most = _MOST
        while not self._stopping.is_set():
            if pause:
                # A flush tries again at once, then keeps the pace.
                self._wait(pause)
            batch = None
            try:
                batch = self._spool.batch(most=most, most_bytes=_MOST_BYTES)
                if batch is None:
                    pause = 0.0
                    # Now and then without being asked: a neighbour may have died and left something.
                    self._wake.wait(10.0)
                    self._wake.clear()
                    self._hurry.wait(_COLLECT_SECONDS)
                    continue
                refused = self._send(batch.lines)
                self._spool.done(batch, refused)
                pause, most = 0.0, _MOST
            except _Fault as fault:
                if fault.is_ours and batch is not None:
                    if len(batch.lines) > 1:
                        most = max(1, len(batch.lines) // 2)  # one of them spoils it for the others: find it
                        continue
                    self._refuse([Refused(0, "malformed", str(fault))])
                    self._spool.done(batch, [Refused(0, "malformed", str(fault))])
                    continue
                pause = self._next_pause(fault, pause)
            except OSError as fault:
                pause = self._next_pause(_Fault(f"the spool cannot be read: {fault.strerror or fault}"), pause)
            except Exception as fault:  # noqa: BLE001 - a thread that ends would stop reporting for good
                pause = self._next_pause(_Fault(f"{type(fault).__name__} while reporting"), pause)
            with self._condition:
                self._condition.notify_all()

    def _wait(self, pause: float) -> None:
        deadline = time.monotonic() + pause
        while not self._stopping.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._hurry.is_set() and pause > _FIRST_PAUSE:
                self._stopping.wait(min(left, _FIRST_PAUSE))
                return
            self._stopping.wait(min(left, 0.25))

    def _next_pause(self, fault: _Fault, pause: float) -> float:
        self._counts.failed_attempts += 1
        self._counts.last_error = str(fault)
        self._warn(str(fault), f"{fault}; the events are kept and sent again")
        if fault.pause is not None:
            # Everybody was told the same second.
            return min(fault.pause, _LONGEST_ASKED) * random.uniform(1.0, 1.1) + random.uniform(0.0, 0.2)  # noqa: S311 - spread, no secret
        longest = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, pause * 2))
        return random.uniform(longest / 2, longest)  # noqa: S311

    def _warn(self, about: str, message: str) -> None:
        """Say it once, until it has been different in between."""
        if about not in self._warned:
            if len(self._warned) > 100:
                self._warned.clear()
            self._warned.add(about)
            logger.warning("meterbridge: %s", message)

    def _send(self, lines: list[bytes]) -> list[Refused]:
        """One attempt: those that the service will never take; ``_Fault`` where it stored nothing."""
        body = gzip.compress(b"\n".join(lines) + b"\n", compresslevel=1)
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip", "User-Agent": "meterbridge-client"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        status, said, asked = self._exchange(urllib.request.Request(self._url, body, headers, method="POST"))  # noqa: S310 - the scheme was looked at
        verdict = _verdict(said)
        if status in (200, 422) and verdict is not None:
            refused = [Refused(index, error, detail) for index, error, detail in verdict.refused if index < len(lines)]
            self._counts.accepted += verdict.accepted
            self._counts.duplicates += verdict.duplicates
            self._refuse(refused)
            self._warned.clear()
            self._counts.last_error = None
            return refused
        where = self._url.removesuffix("/v1/usage")
        if status in (400, 413, 422):
            raise _Fault(f"the service at {where} cannot read the report (status {status})", is_ours=True)
        if status in (401, 403):
            raise _Fault(f"the service at {where} refuses the key (status {status}); give one with the scope ingest", pause=30.0)
        if status < 500 and status not in (408, 425, 429):
            raise _Fault(f"there is no meterbridge service at {where} (status {status})", pause=30.0)
        raise _Fault(f"the service at {where} is busy or away (status {status})", pause=asked)

    def _exchange(self, request: urllib.request.Request) -> tuple[int, bytes, float | None]:
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return answer.status, answer.read(_ANSWER_BYTES), _seconds(answer.headers.get("retry-after"))
        except urllib.error.HTTPError as answer:
            with answer:
                said = b""
                with contextlib.suppress(OSError, ValueError):
                    said = answer.read(_ANSWER_BYTES)
                return answer.code, said, _seconds(answer.headers.get("retry-after"))
        except (OSError, ValueError, EOFError) as fault:
            raise _Fault(
                f"the service at {self._url.removesuffix('/v1/usage')} does not answer ({getattr(fault, 'reason', None) or type(fault).__name__})"
            ) from fault
        except Exception as fault:  # http.client has a tree of its own
            raise _Fault(f"the service at {self._url.removesuffix('/v1/usage')} does not answer as agreed ({type(fault).__name__})") from fault

    def _refuse(self, refused: list[Refused]) -> None:
        self._counts.rejected += len(refused)
        for one in refused[:100]:
            self._warn(f"{one.error} {one.detail}", f"a usage event was refused and is set aside: {one.error}: {one.detail}")


@dataclass(frozen=True, slots=True)
class _Verdict:
    accepted: int
    duplicates: int
    refused: list[tuple[int, str, str]]


def _verdict(said: bytes) -> _Verdict | None:
    """The service's answer, None where it is none."""
    try:
        body = json.loads(said)
        return _Verdict(
            int(body["accepted"]), int(body["duplicates"]), [(int(one["index"]), str(one["error"]), str(one["detail"])[:500]) for one in body["rejected"]]
        )
    except (ValueError, KeyError, TypeError):
        return None


def _line(event: Mapping[str, Any]) -> bytes | None:
    try:
        return json.dumps({name: value for name, value in event.items() if value is not None}, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        logger.exception("meterbridge: a usage event cannot be written as JSON and is dropped")
        return None


def _seconds(said: str | None) -> float | None:
    """What ``Retry-After`` says, as seconds from now; it comes as a number or as a date."""
    if said is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(said)) if float(said) < 1e9 else None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key and the events go to the host that was named, or nowhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _open_spool(url: str, spool: str | os.PathLike[str] | Literal[False] | None, names: tuple[str, ...], max_bytes: int) -> Spool:
    if spool is False:
        return MemorySpool()
    if not CAN_LOCK:
        logger.warning("meterbridge: this system has no file locks; usage events wait in memory and end with the process")
        return MemorySpool()
    try:
        return DiskFirst(DiskSpool(Path(spool) if spool is not None else default_folder(url, *names), max_bytes=max_bytes))
    except OSError as fault:
        if spool is not None:
            raise
        logger.warning("meterbridge: no folder to keep usage events in (%s); they wait in memory and end with the process", fault.strerror or fault)
        return MemorySpool()


# -- the end of the program, and forks ----------------------------------------------------------------

_living: weakref.WeakSet[Reporter] = weakref.WeakSet()
_watched: set[str] = set()


def _watch(reporter: Reporter) -> None:
    """From the first reporter on, the end of the program and forks are watched."""
    _living.add(reporter)
    if not _watched:
        _watched.add("exit and fork")
        atexit.register(_close_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)


def _close_all() -> None:
    for reporter in list(_living):
        reporter.close()


def _after_fork() -> None:
    for reporter in list(_living):
        reporter._after_fork()  # noqa: SLF001 - of this module
