"""The dashboard on made-up facts, mounted as the service mounts it: ``python -m tests.dashboard.serve [--hostile|--empty|--keys]``."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from a2wsgi import WSGIMiddleware
from dash import Dash
from starlette.applications import Starlette
from starlette.routing import Mount

from dashboard.access import Viewer
from dashboard.app import create_dashboard
from tests.dashboard import fakes


def mount(app: Dash) -> Starlette:
    """The dashboard below an ASGI application that takes its prefix off the path."""
    return Starlette(routes=[Mount("/dashboard", app=WSGIMiddleware(app.server))])  # type: ignore[arg-type]  # an ASGI app by another package's types


def mounted(fake: fakes.FakeLedger, access: fakes.FakeAccess) -> Starlette:
    return mount(create_dashboard(open_ledger=fakes.open_ledger(fake), access=access, now=lambda: fakes.NOW, notice="Open: no key has been created."))


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of a real server on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


if __name__ == "__main__":
    made = fakes.FakeLedger(problem_list=fakes.problems())
    if "--hostile" in sys.argv:
        made = fakes.FakeLedger(facts=fakes.hostile_world())
    if "--empty" in sys.argv:
        made = fakes.FakeLedger(facts=[])
    if "--currencies" in sys.argv:
        made = fakes.FakeLedger(facts=fakes.two_currencies())
    doors = fakes.FakeAccess(keyless="--keys" not in sys.argv, viewers={"secret": Viewer("k1", "finance", "read", None)})
    uvicorn.run(mounted(made, doors), host="127.0.0.1", port=8777, log_level="warning")
