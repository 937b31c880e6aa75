"""Receivers of a test's own on this machine, well behaved and not."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Heard:
    """What a receiver got: headers by lower-case name, and the body."""

    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[socket.socket, threading.Event], None]


@dataclass
class Listener:
    """One receiver; ``answer`` may be exchanged."""

    answer: Answer
    heard: list[Heard] = field(default_factory=list)
    url: str = ""
    port: int = 0
    arrived: threading.Event = field(default_factory=threading.Event)


def says(status: int, *headers: str) -> Answer:
    """A whole answer."""
    text = "".join(f"{one}\r\n" for one in headers)
    return lambda peer, _: peer.sendall(f"HTTP/1.1 {status} X\r\n{text}Content-Length: 0\r\n\r\n".encode())


def hangs(_peer: socket.socket, stop: threading.Event) -> None:
    """No answer until the end."""
    stop.wait(30)


def drips(peer: socket.socket, stop: threading.Event) -> None:
    """A header a letter at a time, without end."""
    peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not stop.wait(0.05):
        peer.sendall(b"x")


def floods(peer: socket.socket, stop: threading.Event) -> None:
    """A head without end."""
    peer.sendall(b"HTTP/1.1 200 OK\r\n")
    while not stop.is_set():
        peer.sendall(b"X: " + b"y" * 8000 + b"\r\n")


def resets(peer: socket.socket, _stop: threading.Event) -> None:
    """The connection is cut."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def listening(answer: Answer, *, tls: ssl.SSLContext | None = None) -> Iterator[Listener]:
    """A receiver, until the block ends."""
    stop = threading.Event()
    server = socket.create_server(("127.0.0.1", 0), backlog=128)
    found = Listener(answer, port=server.getsockname()[1])
    found.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{found.port}/hook"
    threads: list[threading.Thread] = []

    def serve(peer: socket.socket) -> None:
        try:
            with peer if tls is None else tls.wrap_socket(peer, server_side=True) as talking, talking.makefile("rb") as reader:
                first = reader.readline().decode()
                headers = {}
                while (text := reader.readline().decode().strip()) != "":
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                body = reader.read(int(headers.get("content-length", "0")))
                found.heard.append(Heard(first.split(" ")[1], headers, body))
                found.arrived.set()
                found.answer(talking, stop)
        except (OSError, IndexError):
            pass  # the sender has hung up

    def accept() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(peer,), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield found
    finally:
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        accepting.join(5)
        for thread in threads:
            thread.join(5)
