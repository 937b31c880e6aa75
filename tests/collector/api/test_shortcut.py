"""The short way of a small body: the same answers as the long one, whatever the sender does to the connection."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from collector.api.shortcut import Shortcut
from collector.capture import native
from models.store import Store
from tests.collector.api.serving import Service, bearer, serving


class Line:
    """One connection, byte by byte."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.host = f"{address.hostname}:{address.port}"
        self._socket = socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=20)
        self._file = self._socket.makefile("rb")

    def send(self, *pieces: bytes) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            self._socket.sendall(piece)

    def answer(self) -> tuple[bytes, dict[str, str], bytes]:
        """First line, headers, body of the next answer."""
        first = self._file.readline()
        headers: dict[str, str] = {}
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name] = value.strip()
        return first, headers, self._file.read(int(headers.get("content-length", "0")))

    def is_ended(self) -> bool:
        return self._file.read(1) == b""

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextmanager
def line_to(service: Service) -> Iterator[Line]:
    line = Line(service.url)
    try:
        yield line
    finally:
        line.close()


def event(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "time": "2026-11-20T09:59:00Z", "workspace": "ws", "deployment": "llama", "input_tokens": 3, "output_tokens": 4, **more}


def request(line: Line, body: bytes, *headers: str, kind: str = "application/json", path: str = "/v1/usage") -> bytes:
    head = [f"POST {path} HTTP/1.1", f"host: {line.host}", f"content-type: {kind}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def encoded(*events: object) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in events)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies that went the short way."""
    found: list[bytes] = []
    whole = Shortcut.take

    def take(self: Shortcut, connection: Any, pending: Any, body: bytes) -> bool:
        is_taken = whole(self, connection, pending, body)
        if is_taken:
            found.append(body)
        return is_taken

    monkeypatch.setattr(Shortcut, "take", take)
    return found


CASES = [
    pytest.param(encoded(event("a")), "application/json", id="an event"),
    pytest.param(encoded([event("a"), event("b")]), "application/json", id="an array"),
    pytest.param(encoded(event("a"), event("a"), event("a", output_tokens=5)), "application/x-ndjson", id="a duplicate and a conflict"),
    pytest.param(encoded(event("a", time="2026-11-20T10:10:00Z")), "application/json", id="a clock ahead"),
    pytest.param(encoded(event("a", time="2027-11-20T10:10:00Z")), "application/json", id="a time far ahead"),
    pytest.param(encoded(event("a", input_tokens=None)), "application/json", id="unknown tokens"),
    pytest.param(encoded(event("a", input_tokens=-1)), "application/json", id="an invalid value"),
    pytest.param(encoded([]), "application/json", id="nothing"),
    pytest.param(b'{"id":', "application/json", id="no JSON"),
    pytest.param(b"", "application/json", id="no body"),
    pytest.param(encoded(event("a")), "text/csv", id="another type"),
]


def test_a_fault_of_our_own_is_answered_and_the_connection_goes_on(service: Service, monkeypatch: pytest.MonkeyPatch, taken: list[bytes]) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("secret words")

    with line_to(service) as line:
        with monkeypatch.context() as patched:
            patched.setattr(native, "capture", broken)
            line.send(request(line, encoded(event("a"))))
            first, headers, said = line.answer()
        assert (first.split()[1], headers["content-type"], b"secret words" in said) == (b"500", "application/problem+json", False)
        line.send(request(line, encoded(event("a"))))
        assert line.answer()[0].split()[1] == b"200"
    assert len(taken) == 1


@pytest.mark.parametrize(("body", "kind"), CASES)
def test_both_ways_give_the_same_answer_to_the_byte(sqlite_store: Store, body: bytes, kind: str) -> None:
    answers = []
    # A header that the short way does not know sends the second down the long one; its ids are its own.
    for number, header in enumerate(("accept: */*", "x-other: 1")):
        with serving(sqlite_store) as service, line_to(service) as line:
            line.send(request(line, re.sub(rb'"id": "(\w)"', rb'"id": "\g<1>%d"' % number, body), header, kind=kind))
            first, headers, answered = line.answer()
            headers.pop("date")
            answers.append((first, headers, answered))
    assert answers[0] == answers[1]
    assert answers[0][1]["x-content-type-options"] == "nosniff"


def test_a_small_plain_body_goes_the_short_way(service: Service, taken: list[bytes]) -> None:
    with line_to(service) as line:
        for number in range(3):
            line.send(request(line, encoded(event(f"e{number}"))))
            assert line.answer()[0] == b"HTTP/1.1 200 OK\r\n"
    assert taken == [encoded(event("e0")), encoded(event("e1")), encoded(event("e2"))]


QUESTIONS = [
    pytest.param(b'{"workspace": "ws", "deployment": "llama", "tokens": 5}', id="goes"),
    pytest.param(b'{"workspace": "ws", "deployment": "llama", "tokens": 400001}', id="does not go"),
    pytest.param(b'{"workspace": "ws"}', id="says too little"),
    pytest.param(b'{"workspace": "ws", "deployment": "llama", "tokens": "5"}', id="says no number"),
    pytest.param(b"{", id="no JSON"),
    pytest.param(b"", id="nothing"),
]


@pytest.mark.parametrize("body", QUESTIONS)
def test_a_question_before_a_call_is_answered_alike_on_both_ways(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    short: list[bytes | None] = []
    whole = Shortcut.answer_to

    def answer_to(self: Shortcut, pending: Any, body: bytes) -> tuple[bytes, bytes] | None:
        answer = whole(self, pending, body)
        short.append(None if answer is None else body)
        return answer

    monkeypatch.setattr(Shortcut, "answer_to", answer_to)
    answers = []
    with serving(sqlite_store) as service, line_to(service) as line:
        # The first question of all waits for a look, on the long way; a header that the short way does not know leads down it as well.
        for header in ("accept: */*", "accept: */*", "x-other: 1"):
            line.send(request(line, body, header, path="/v1/admission"))
            first, headers, answered = line.answer()
            headers.pop("date")
            answers.append((first, headers, answered))
    assert answers[1] == answers[2]
    assert short[-1] == (body if answers[1][0] == b"HTTP/1.1 200 OK\r\n" else None)


def test_questions_sent_ahead_are_answered_in_their_order(service: Service) -> None:
    bodies = [b'{"workspace": "ws", "deployment": "llama", "tokens": %d}' % tokens for tokens in (5, 400001, 6)]
    with line_to(service) as line:
        line.send(request(line, bodies[0], path="/v1/admission"))
        line.answer()
        line.send(
            b"".join([request(line, bodies[1], path="/v1/admission"), request(line, encoded(event("a"))), request(line, bodies[2], path="/v1/admission")])
        )
        found = [json.loads(line.answer()[2]) for _ in range(3)]
    assert [found[0]["allow"], found[1]["accepted"], found[2]["allow"]] == [False, 1, True]


def test_a_key_of_another_workspace_gets_no_answer_on_the_short_way(service: Service) -> None:
    secret = service.key("ingest", "mine")
    with line_to(service) as line:
        told = []
        for workspace in ("mine", "mine", "other"):
            said = json.dumps({"workspace": workspace, "deployment": "llama", "tokens": 1}).encode()
            line.send(request(line, said, f"authorization: Bearer {secret}", path="/v1/admission"))
            told.append(line.answer()[0])
    assert told == [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 403 Forbidden\r\n"]


@pytest.mark.parametrize(
    "header", ["x-meterbridge-source: gateway", "content-encoding: identity", "expect: 100-continue", "accept: a\r\naccept: b", "connection: close"]
)
def test_whatever_is_unusual_goes_the_long_way(service: Service, taken: list[bytes], header: str) -> None:
    with line_to(service) as line:
        line.send(request(line, encoded(event("first"))))
        line.answer()
        line.send(request(line, encoded(event("second")), header))
        first, _, body = line.answer()
        if b"100" in first:
            first, _, body = line.answer()
    assert (first, json.loads(body)["accepted"], taken) == (b"HTTP/1.1 200 OK\r\n", 1, [encoded(event("first"))])


def test_a_body_in_pieces_is_stored_once(service: Service, taken: list[bytes]) -> None:
    with line_to(service) as line:
        line.send(request(line, encoded(event("warm"))))
        line.answer()
        whole = request(line, encoded(event("slow")))
        head, _, body = whole.partition(b"\r\n\r\n")
        line.send(head + b"\r\n\r\n" + body[:10])
        # Answered on another connection meanwhile, so that the first piece was read before the rest comes.
        with line_to(service) as other:
            other.send(request(other, encoded(event("other"))))
            assert json.loads(other.answer()[2])["accepted"] == 1
        line.send(body[10:])
        assert json.loads(line.answer()[2])["accepted"] == 1
    assert taken == [encoded(event("warm")), encoded(event("other"))]


def test_requests_sent_ahead_are_answered_in_their_order(service: Service) -> None:
    with line_to(service) as line:
        line.send(request(line, encoded(event("warm"))))
        line.answer()
        line.send(
            request(line, encoded(event("a"), event("b")), kind="application/x-ndjson")
            + request(line, encoded(event("c")))
            + b"GET /livez HTTP/1.1\r\nhost: "
            + line.host.encode()
            + b"\r\n\r\n"
        )
        assert [json.loads(line.answer()[2])["accepted"] for _ in range(2)] == [2, 1]
        assert line.answer()[2] == b"ok\n"


def test_who_leaves_before_the_answer_has_been_counted(service: Service) -> None:
    with line_to(service) as line:
        line.send(request(line, encoded(event("warm"))))
        line.answer()
        line.send(request(line, encoded(event("gone"))))
    with line_to(service) as line:
        # The queue keeps its order: what came before is stored once this is.
        line.send(request(line, encoded(event("gone"))))
        answered = json.loads(line.answer()[2])
        assert answered["accepted"] + answered["duplicates"] == 1
        line.send(request(line, encoded(event("gone"))))
        assert json.loads(line.answer()[2])["duplicates"] == 1


def test_the_first_key_ends_the_open_mode_on_a_connection_that_stands(service: Service, taken: list[bytes]) -> None:
    with line_to(service) as line:
        for number in range(2):
            line.send(request(line, encoded(event(f"e{number}"))))
            line.answer()
        service.key()
        secret = service.key("ingest", "ws")
        reading = service.key("read")
        line.send(request(line, encoded(event("late"))))
        assert line.answer()[0].startswith(b"HTTP/1.1 401")
        line.send(request(line, encoded(event("late")), f"authorization: {bearer(reading)['authorization']}"))
        assert line.answer()[0].startswith(b"HTTP/1.1 403")
        line.send(request(line, encoded(event("mine", workspace=None)), f"authorization: {bearer(secret)['authorization']}"))
        assert json.loads(line.answer()[2])["accepted"] == 1
        line.send(request(line, encoded(event("theirs", workspace="other")), f"authorization: {bearer(secret)['authorization']}"))
        assert json.loads(line.answer()[2])["rejected"][0]["error"] == "forbidden_workspace"
    assert len(taken) == 4


def test_a_foreign_host_is_refused_on_every_request(service: Service, taken: list[bytes]) -> None:
    with line_to(service) as line:
        line.send(request(line, encoded(event("warm"))))
        line.answer()
        line.host = "evil.example"
        line.send(request(line, encoded(event("a"))))
        assert line.answer()[0].startswith(b"HTTP/1.1 403")
    assert taken == [encoded(event("warm"))]


def test_what_went_the_short_way_is_counted_by_sender(service: Service, taken: list[bytes]) -> None:
    with line_to(service) as line:
        for number in range(3):
            line.send(request(line, encoded(event(f"e{number}", source="gw"))))
            line.answer()
        line.send(request(line, encoded(event("e1", source="gw", output_tokens=9))))
        assert json.loads(line.answer()[2])["rejected"][0]["error"] == "conflict"
    assert len(taken) == 4
    app = service.client.get("/metrics").text
    assert re.search(r'meterbridge_\w*\{[^}]*format="native"[^}]*outcome="accepted"[^}]*\} 3', app)
