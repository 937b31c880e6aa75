"""Where events wait until the service has them: a folder of append-only files, or memory where there can be none.

A folder survives the death of its process (every append is on disk when it returns) and may be shared by any number of
processes: each writes a segment of its own under a file lock, and takes over the segments of those that are gone. A
segment holds one event a line, as ``POST /v1/usage`` and ``meterbridge import usage`` read them. After a crash a line
may be delivered once more: the service counts an id once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

try:
    import fcntl
except ImportError:  # pragma: no cover - a system without file locks: such processes keep to memory
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("meterbridge_client")

CAN_LOCK = fcntl is not None
SEGMENT_BYTES = 1024 * 1024
REJECTED_BYTES = 4 * 1024 * 1024
REJECTED = "rejected.log"

_SUFFIX = ".ndjson"


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that the service will never take, by its place in the batch."""

    index: int
    error: str
    detail: str


@dataclass(slots=True)
class Batch:
    """Lines on their way to the service; ``end`` is the place behind them in what they came from."""

    lines: list[bytes]
    end: int
    segment: _Segment | None = None


class Spool(Protocol):
    """What the reporter asks of a place to wait in. Appending and delivering may happen in two threads."""

    @property
    def dropped(self) -> int:
        """How many events were given up for want of room."""

    def append(self, lines: Sequence[bytes]) -> bool:
        """Keep the lines; whether they are on disk when it returns."""

    def batch(self, *, most: int, most_bytes: int) -> Batch | None:
        """The oldest lines that wait, without removing them; None where nothing does."""

    def done(self, batch: Batch, refused: Sequence[Refused] = ()) -> None:
        """Forget the lines: the service has them, but for the refused ones, which are set aside."""

    def waiting(self) -> int:
        """How many lines wait, as far as this process knows."""

    def close(self) -> None:
        """Let go of everything; what a folder holds stays there for the next process."""

    def after_fork(self) -> None:
        """Forget, in a child process, what belongs to its parent."""


class MemorySpool:
    """A bounded queue: the oldest is dropped, and counted, when it is full."""

    def __init__(self, *, max_events: int = 10_000) -> None:
        self._lines: deque[bytes] = deque()
        self._first = 0  # how many have left the queue at its front
        self._max = max_events
        self._lock = threading.Lock()
        self.dropped = 0

    def append(self, lines: Sequence[bytes]) -> bool:
        with self._lock:
            self._lines.extend(lines)
            while len(self._lines) > self._max:
                self._lines.popleft()
                self._first += 1
                self.dropped += 1
        return False

    def batch(self, *, most: int, most_bytes: int) -> Batch | None:
        with self._lock:
            found: list[bytes] = []
            size = 0
            for line in self._lines:
                if len(found) == most or (found and size + len(line) > most_bytes):
                    break
                found.append(line)
                size += len(line)
            return Batch(found, self._first + len(found)) if found else None

    def done(self, batch: Batch, refused: Sequence[Refused] = ()) -> None:
        del refused  # memory has no place to set them aside; the reporter has logged them
        with self._lock:
            while self._lines and self._first < batch.end:
                self._lines.popleft()
                self._first += 1

    def waiting(self) -> int:
        return len(self._lines)

    def close(self) -> None:
        with self._lock:
            self.dropped += len(self._lines)
            self._first += len(self._lines)
            self._lines.clear()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._lines = deque()
        self.dropped = 0


@dataclass(slots=True, eq=False)
class _Segment:
    """One locked file: ``size`` bytes of whole lines are on disk, those before ``read`` are delivered."""

    path: Path
    file: int
    size: int = 0
    read: int = 0


class DiskSpool:
    """A folder of segments, bounded in bytes: when it is full the oldest segment is dropped, and its lines counted."""

    def __init__(self, folder: Path, *, max_bytes: int = 64 * 1024 * 1024) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "cannot be written", str(folder))
        self.folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._active: _Segment | None = None
        # Full ones of our own and those taken over, oldest first.
        self._held: list[_Segment] = []
        self._looked_at = 0.0
        self.dropped = 0

    # -- writing ------------------------------------------------------------------------------

    def append(self, lines: Sequence[bytes]) -> bool:
        if not lines:
            return True
        data = b"".join(line + b"\n" for line in lines)
        with self._lock:
            segment = self._active
            if segment is None or segment.size + len(data) > SEGMENT_BYTES:
                if segment is not None and segment.size > 0:
                    self._held.append(segment)
                elif segment is not None:
                    self._remove(segment)
                self._active = None
                self._make_room(len(data))
                segment = self._active = self._new_segment()
            try:
                _write(segment.file, data)
                os.fsync(segment.file)
            except OSError:
                # Half a line must not join the next one.
                with contextlib.suppress(OSError):
                    os.ftruncate(segment.file, segment.size)
                raise
            segment.size += len(data)
        return True

    def _new_segment(self) -> _Segment:
        # Locked before it has its name: a neighbour that finds it must not take it for one that was left behind.
        hidden = self.folder / f".{uuid.uuid4().hex}.tmp"
        file = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
        path = self.folder / f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
        try:
            _lock(file)
            hidden.rename(path)
            _sync_folder(self.folder)
        except OSError:
            os.close(file)
            hidden.unlink(missing_ok=True)
            raise
        return _Segment(path, file)

    def _make_room(self, size: int) -> None:
        """Drop the oldest segments until the folder, with what comes, is within its bound."""
        sizes = {path: _size(path) for path in self._paths()}
        total = sum(sizes.values())
        for path in sorted(sizes):
            if total + size <= self._max_bytes:
                break
            segment = next((one for one in self._held if one.path == path), None) or _take(path)
            if segment is None:
                continue  # a neighbour's, alive
            self.dropped += _left(segment)
            total -= sizes[path]
            if segment in self._held:
                self._held.remove(segment)
            self._remove(segment)

    # -- delivering -----------------------------------------------------------------------------

    def batch(self, *, most: int, most_bytes: int) -> Batch | None:
        with self._lock:
            self._adopt()
            for segment in [*self._held, *([self._active] if self._active is not None else [])]:
                batch = _lines_of(segment, most=most, most_bytes=most_bytes)
                if batch.lines:
                    return batch
                self._forget(segment, batch.end)
        return None

    def done(self, batch: Batch, refused: Sequence[Refused] = ()) -> None:
        if refused:
            self._set_aside(batch, refused)
        with self._lock:
            if batch.segment is not None:
                self._forget(batch.segment, batch.end)

    def _forget(self, segment: _Segment, end: int) -> None:
        segment.read = max(segment.read, end)
        if segment.read < segment.size:
            return
        if segment is self._active:
            if segment.size:
                # Empty again rather than gone: making a file costs more than making one shorter.
                os.ftruncate(segment.file, 0)
                segment.size = segment.read = 0
        elif segment in self._held:
            self._held.remove(segment)
            self._remove(segment)

    def _adopt(self) -> None:
        """Take over the segments that dead processes have left."""
        now = time.monotonic()
        if now - self._looked_at < 1.0:
            return
        self._looked_at = now
        known = {segment.path for segment in self._held} | ({self._active.path} if self._active is not None else set())
        for path in self._paths():
            if path not in known and len(self._held) < 64:
                segment = _take(path)
                if segment is not None:
                    self._held.append(segment)
        self._held.sort(key=lambda segment: segment.path.name)

    def _set_aside(self, batch: Batch, refused: Sequence[Refused]) -> None:
        """Keep what the service refused, with its reason, for a person: sent again it would be refused again."""
        said = b"".join(_refusal(batch.lines[one.index], one) + b"\n" for one in refused if 0 <= one.index < len(batch.lines))
        path = self.folder / REJECTED
        with contextlib.suppress(OSError):
            if _size(path) > REJECTED_BYTES:
                path.replace(path.with_suffix(".1.log"))
            file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            try:
                _write(file, said)
            finally:
                os.close(file)

    # -- all of it -------------------------------------------------------------------------------

    def waiting(self) -> int:
        with self._lock:
            known = [*self._held, *([self._active] if self._active is not None else [])]
            return sum(map(_left, known))

    def close(self) -> None:
        with self._lock:
            for segment in [*self._held, *([self._active] if self._active is not None else [])]:
                if segment.read >= segment.size:
                    self._remove(segment)
                else:
                    os.close(segment.file)
            self._held, self._active = [], None

    def after_fork(self) -> None:
        # Closed, not unlocked: a lock is shared with the parent until the last of both lets go.
        self._lock = threading.RLock()
        for segment in [*self._held, *([self._active] if self._active is not None else [])]:
            with contextlib.suppress(OSError):
                os.close(segment.file)
        self._held, self._active, self.dropped, self._looked_at = [], None, 0, 0.0

    def _remove(self, segment: _Segment) -> None:
        segment.path.unlink(missing_ok=True)
        os.close(segment.file)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"[0-9]*{_SUFFIX}"))


class DiskFirst:
    """A folder, and memory for the moments in which it cannot be written (a full disk must lose nothing while the service answers)."""

    def __init__(self, disk: DiskSpool) -> None:
        self._disk = disk
        self._memory = MemorySpool()

    @property
    def dropped(self) -> int:
        return self._disk.dropped + self._memory.dropped

    def append(self, lines: Sequence[bytes]) -> bool:
        try:
            return self._disk.append(lines)
        except OSError as fault:
            logger.warning("meterbridge: the spool %s cannot be written (%s); usage events are kept in memory", self._disk.folder, fault.strerror or fault)
            return self._memory.append(lines)

    def batch(self, *, most: int, most_bytes: int) -> Batch | None:
        return self._memory.batch(most=most, most_bytes=most_bytes) or self._disk.batch(most=most, most_bytes=most_bytes)

    def done(self, batch: Batch, refused: Sequence[Refused] = ()) -> None:
        (self._memory if batch.segment is None else self._disk).done(batch, refused)

    def waiting(self) -> int:
        return self._disk.waiting() + self._memory.waiting()

    def close(self) -> None:
        self._disk.close()
        self._memory.close()

    def after_fork(self) -> None:
        self._disk.after_fork()
        self._memory.after_fork()


def default_folder(*names: str) -> Path:
    """Where this user's programs keep state, one folder for each combination of names."""
    root = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")  # noqa: PTH111, PTH118 - plain texts
    return Path(root) / "meterbridge" / uuid.uuid5(uuid.NAMESPACE_URL, "\0".join(names)).hex


# -- files ------------------------------------------------------------------------------------------


def _left(segment: _Segment) -> int:
    """How many lines of the segment are not delivered yet."""
    return os.pread(segment.file, segment.size - segment.read, segment.read).count(b"\n")


def _lines_of(segment: _Segment, *, most: int, most_bytes: int) -> Batch:
    """The next whole lines of the segment; what a power cut left half-written is passed over."""
    lines: list[bytes] = []
    end = segment.read
    data = os.pread(segment.file, max(0, min(segment.size - end, most_bytes + 65_536)), end)
    start = 0
    while len(lines) < most and start < most_bytes:
        stop = data.find(b"\n", start)
        if stop < 0:
            break
        line = data[start:stop]
        start = stop + 1
        if _is_event(line):
            lines.append(line)
    if start == 0:
        start = len(data)  # no line at all: an end without its line break
    return Batch(lines, end + start, segment)


def _is_event(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _refusal(line: bytes, refused: Refused) -> bytes:
    return json.dumps({"error": refused.error, "detail": refused.detail, "event": json.loads(line)}).encode()


def _take(path: Path) -> _Segment | None:
    """Lock a segment that nobody holds; None where its owner lives or it has just been delivered."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        _lock(file)
        if os.fstat(file).st_ino == path.stat().st_ino:
            return _Segment(path, file, size=os.fstat(file).st_size)
    except OSError:
        pass
    os.close(file)
    return None


def _lock(file: int) -> None:
    assert fcntl is not None
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
