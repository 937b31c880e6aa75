"""How a service is asked to end: SIGINT and SIGTERM, from its first line to its last."""

from __future__ import annotations

import signal
import socket
import time
from types import FrameType, TracebackType
from typing import Protocol, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_SECONDS = 0.1


class _Server(Protocol):
    should_exit: bool

    def run(self, sockets: list[socket.socket] | None = None) -> None: ...


class Ending:
    """Hears the signals of one service while it is entered; for the main thread alone.

    A service that still prepares is interrupted, as a long migration should be. Once it has threads a signal is only
    remembered, until someone looks: an exception between any two instructions can leave a lock taken, and one that is
    raised in a finalizer or while garbage is collected reaches nobody, so that the service would never end.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._only_remembers = False
        self._server: _Server | None = None
        self._before = [signal.SIG_DFL, signal.SIG_DFL]

    def __enter__(self) -> Self:
        self._before = [signal.signal(one, self._hear) for one in _SIGNALS]  # type: ignore[misc]  # a handler or its number
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        for one, before in zip(_SIGNALS, self._before, strict=True):
            signal.signal(one, before)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self.is_asked = True
        if self._server is not None:
            self._server.should_exit = True
        if not self._only_remembers:
            raise KeyboardInterrupt

    def remember(self) -> None:
        """From here on a signal interrupts nothing; raises ``KeyboardInterrupt`` if one was heard before."""
        self._only_remembers = True
        if self.is_asked:
            raise KeyboardInterrupt

    def serve(self, server: _Server, listener: socket.socket) -> None:
        """Answer on the listener until a signal, also one that was heard before the server listens to signals itself."""
        self._only_remembers = True
        self._server = server
        try:
            if not self.is_asked:
                server.run(sockets=[listener])
        finally:
            listener.close()

    def wait(self) -> None:
        """Do nothing until a signal."""
        self._only_remembers = True
        while not self.is_asked:
            # Not an event: its lock is not for a handler that may interrupt the thread that holds it.
            time.sleep(_LOOK_EVERY_SECONDS)
