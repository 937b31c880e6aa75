"""The short way of a small body to ``POST /v1/usage`` and ``/v1/admission``: without a task between connection and answer.

A request in one piece, with nothing unusual in its head and a key that is known, is judged, captured and queued by the
connection itself, and its answer is written in one piece after the commit; a question before a call is answered from
memory at once. Everything else, and everything that would
be refused, goes the long way through the application as if it had just come: there is one set of answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from collector.api.gate import Gate, hardened
from collector.api.ingest import SMALL_BODY, IngestRoutes, batch_of
from collector.auth import Principal
from collector.capture import native
from collector.capture.event import Defaults, Item
from collector.ingest import Ingest, Stored, Verdict
from models.errors import Unavailable

PATH: Final = "/v1/usage"
_USAGE: Final = PATH.encode()
_ADMISSION: Final = b"/v1/admission"
_PATHS: Final = {_USAGE: PATH, _ADMISSION: _ADMISSION.decode()}
# A header that is not here may mean something: another encoding, a proxy, a page of another site, names of ours.
_USUAL: Final = frozenset(
    (b"accept", b"accept-encoding", b"authorization", b"connection", b"content-length", b"content-type", b"host", b"traceparent", b"tracestate", b"user-agent")
)
_JSON: Final[dict[bytes, str | None]] = {b"": None, b"application/json": "application/json", b"application/x-ndjson": "application/x-ndjson"}
_MOST_HEADS: Final = 1_000
_NO_DEFAULTS: Final = Defaults()


class Pending:
    """A request that waits for its commit, or a question, as the server's own code sees a request in the making."""

    __slots__ = ("at", "body", "disconnected", "is_question", "items", "keep_alive", "media_type", "principal", "response_complete")

    def __init__(self, principal: Principal, media_type: str | None, *, is_question: bool) -> None:
        self.principal = principal
        self.is_question = is_question
        self.media_type = media_type
        self.body = b""
        self.items: Sequence[Item] = ()
        self.at = 0
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False

    @property
    def message_event(self) -> Pending:
        """Nobody waits for a message of it."""
        return self

    def set(self) -> None:
        """As above."""


class Shortcut:
    """What the connections of a service share."""

    def __init__(self, routes: IngestRoutes, gate: Gate, ingest: Ingest, *, asked: Callable[[bytes, Principal], bytes | None] | None = None) -> None:
        """``asked`` answers a question before a call, or gives None where it has to take the long way."""
        self._routes = routes
        self._asked = asked
        self._gate = gate
        self._ingest = ingest
        # Of the writer's thread alone.
        self._done: dict[asyncio.AbstractEventLoop, list[_Answered]] = {}
        # Heads are alike: what was found of one holds until the keys are read again. They hold secrets, and are kept no longer.
        self._heads: dict[tuple[bytes, tuple[tuple[bytes, bytes], ...]], tuple[Principal, str | None]] = {}
        self._heads_of = -1
        self._usual = _written(routes.answered(PATH, Verdict(accepted=1, stored=[Stored(0, is_duplicate=False, flags=0, quality=0)]), 1, None))
        ingest.when_answered(self._wake)

    def pending(self, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Pending | None:
        """What a head asks for, where it may go the short way."""
        path = _PATHS.get(url)
        if path is None or (url == _ADMISSION and self._asked is None):
            return None
        # Whoever finds them too old takes the long way, and so would everybody who comes while they are read.
        self._gate.renew()
        if self._gate.reads != self._heads_of or len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
            self._heads_of = self._gate.reads
        head = (url, tuple(headers))
        found = self._heads.get(head)
        if found is None:
            found = self._head(path, dict(headers), len(headers))
            if found is None:
                return None
            self._heads[head] = found
        elif self._gate.is_stale:
            return None
        return Pending(*found, is_question=url == _ADMISSION)

    def _head(self, path: str, said: Mapping[bytes, bytes], count: int) -> tuple[Principal, str | None] | None:
        if len(said) != count or not said.keys() <= _USUAL or said.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        length, kind = said.get(b"content-length", b""), said.get(b"content-type", b"")
        if not length.isdigit() or len(length) > 6 or int(length) > SMALL_BODY or kind not in _JSON:
            return None
        principal = self._gate.known(path, {name.decode("latin-1"): value.decode("latin-1") for name, value in said.items()})
        return None if principal is None else (principal, _JSON[kind])

    def answer_to(self, pending: Pending, body: bytes) -> tuple[bytes, bytes] | None:
        """The answer to a question, as it goes over the wire; None where it had better go the long way."""
        answer = None if self._asked is None else self._asked(body, pending.principal)
        return None if answer is None else (STATUS_LINE[200], b"%bcontent-length: %d\r\n\r\n%b" % (_ANSWER_HEAD, len(answer), answer))

    def take(self, connection: Connection, pending: Pending, body: bytes) -> bool:
        """Queue a body; False, and nothing done, where it had better go the long way."""
        try:
            items = native.capture(body, media_type=pending.media_type, defaults=_NO_DEFAULTS)
            self._routes.held.take(len(body))
        except Exception:  # noqa: BLE001 - refused or a fault of our own: the long way meets it again, and answers
            return False
        pending.body, pending.items, pending.at = body, items, self._routes.clock()
        try:
            self._ingest.enqueue(batch_of(items, pending.principal), lambda found: self._told(connection, pending, found))
        except Unavailable:
            self._routes.held.give(len(body))
            return False
        return True

    def _told(self, connection: Connection, pending: Pending, found: Verdict | Unavailable) -> None:
        self._done.setdefault(connection.loop, []).append((connection, pending, found))

    def _wake(self) -> None:
        done, self._done = self._done, {}
        for loop, answered in done.items():
            # A loop that has ended has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._answer, answered)

    def _answer(self, answered: Sequence[_Answered]) -> None:
        usual: dict[tuple[str | None, str], list[Pending]] = {}
        for connection, pending, found in answered:
            self._routes.held.give(len(pending.body))
            if isinstance(found, Unavailable):
                connection.answer(pending, *_written(self._routes.refused(PATH, found, pending.principal.key_id, pending.media_type)))
                continue
            stored, items = found.stored, pending.items
            if len(items) == found.accepted == len(stored) == 1 and not stored[0].flags and not stored[0].quality:
                usual.setdefault((pending.principal.key_id, items[0].source), []).append(pending)  # type: ignore[union-attr]  # it was accepted
                connection.answer(pending, *self._usual)
            else:
                self._count(pending, found)
                connection.answer(pending, *_written(self._routes.answered(PATH, found, len(items), pending.media_type)))
        for (key_id, _), alike in usual.items():
            # Whole hours are counted; a commit has them of one, or of two at the turn.
            self._routes.tally.judged(Verdict(accepted=len(alike)), alike[0].items, key_id=key_id, path=PATH, at=alike[0].at)

    def _count(self, pending: Pending, found: Verdict) -> None:
        tally = self._routes.tally
        sender = tally.judged(found, pending.items, key_id=pending.principal.key_id, path=PATH, at=pending.at)
        if found.rejected and tally.wants(sender, found):
            tally.sample(sender, found, pending.body, pending.media_type, pending.at)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which looks for the short way first."""

    shortcut: Shortcut

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._pending: Pending | None = None
        self._pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """What arrived; a request that is not whole by then takes its time on the long way."""
        super().data_received(data)
        if self._pending is not None and not self.transport.is_closing():
            self._go_long()

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._is_free() and self.url in _PATHS and self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1":
            self._pending = self.shortcut.pending(self.url, self.headers)
            if self._pending is not None:
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._pending is not None:
            self._pieces.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        pending = self._pending
        if pending is None:
            super().on_message_complete()
            return
        body = b"".join(self._pieces)
        answer = self.shortcut.answer_to(pending, body) if pending.is_question else None
        if answer is not None or (not pending.is_question and self.shortcut.take(self, pending, body)):
            self._pending = None
            self._pieces.clear()
            # What is asked before the answer is written waits for it, as behind any other request.
            self.cycle = pending  # type: ignore[assignment]
            if answer is not None:
                self.answer(pending, *answer)
        else:
            self._go_long()
            super().on_message_complete()

    def answer(self, pending: Pending, status: bytes, rest: bytes) -> None:
        """Write an answer in one piece."""
        pending.response_complete = True
        if not pending.disconnected:
            head = [status, *(b"%b: %b\r\n" % header for header in self.server_state.default_headers)]
            if not pending.keep_alive:
                head.append(b"connection: close\r\n")
            self.transport.write(b"".join((*head, rest)))
            if not pending.keep_alive:
                self.transport.close()
        self.on_response_complete()

    def _is_free(self) -> bool:
        """Whether nothing is being answered and the server is not full."""
        is_full = self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency
        return not is_full and (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def _go_long(self) -> None:
        self._pending = None
        pieces, self._pieces = self._pieces, []
        super().on_headers_complete()
        for piece in pieces:
            super().on_body(piece)


_ANSWER_HEAD: Final = b"".join(b"%b: %b\r\n" % header for header in hardened([(b"content-type", b"application/json")]))
_Answered = tuple[Connection, Pending, Verdict | Unavailable]


def connections(shortcut: Shortcut) -> type[Connection]:
    """The connections of a server with that short way, for uvicorn's ``http``."""
    return type("Connection", (Connection,), {"shortcut": shortcut})


def _written(response: Response) -> tuple[bytes, bytes]:
    """An answer as it goes over the wire: its first line, and all that follows the server's own headers."""
    headers = hardened(response.raw_headers)
    return STATUS_LINE[response.status_code], b"".join((*(b"%b: %b\r\n" % header for header in headers), b"\r\n", bytes(response.body)))
