"""A service on a free port of this machine, as its clients meet it: the real server, the real gate, a clock of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import uvicorn

from collector import auth
from collector.api.shortcut import connections
from collector.app import create_app
from collector.auth import KeyRing
from collector.ingest import Ingest
from collector.webhooks.setup import Telling
from models.store import Store

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)


@dataclass
class Service:
    """A running service: its URL, what it stands on, and clocks that the test moves."""

    url: str
    store: Store
    ingest: Ingest
    keys: KeyRing
    client: httpx.Client
    at: datetime = NOW
    seconds: float = 0.0  # what the keys' own clock says

    def key(self, scope: auth.Scope = "admin", *workspaces: str) -> str:
        """The secret of a new key, known to the service at once."""
        with self.store.write() as session:
            if scope != "admin" and not auth.list_keys(session):
                auth.create_key(session, name="first", scope="admin", workspaces=(), now=self.at)
            _, secret = auth.create_key(session, name=f"a {scope} key", scope=scope, workspaces=workspaces, now=self.at)
        self.keys.refresh()
        return secret

    def later(self, **delta: float) -> None:
        """Time passes, for everything."""
        self.at += timedelta(**delta)
        self.seconds += timedelta(**delta).total_seconds()


def bearer(secret: str) -> dict[str, str]:
    """The header that says whose request it is."""
    return {"authorization": f"Bearer {secret}"}


@contextmanager
def serving(
    store: Store, *, is_loopback: bool = True, control_token: str = "", mounts: Sequence[str] = (), telling: Telling | None = None
) -> Iterator[Service]:
    """The service on that store, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    service: Service
    keys = KeyRing(store, clock=lambda: service.seconds)
    ingest = Ingest(store, now=lambda: service.at)
    app = create_app(
        store=store, ingest=ingest, keys=keys, now=lambda: service.at, version="1.2.3", is_loopback=is_loopback, control_token=control_token, telling=telling
    )
    assert app.shortcut is not None
    http = connections(app.shortcut)
    config = uvicorn.Config(app, http=http, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        service = Service(url, store, ingest, keys, client)
        # As when it has run for a while: whether the first request finds the keys read would be a matter of luck.
        keys.refresh()
        ingest.start()
        thread.start()
        try:
            yield service
        finally:
            server.should_exit = True
            ingest.stop()
            thread.join(20)
            listener.close()
