"""The service that one would write first: FastAPI, a list of Pydantic models, SQLModel objects, one commit a request."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import event
from sqlmodel import Field, Session, SQLModel, create_engine

from tests.bench.figures import Figure
from tests.bench.ingest import _body
from tests.bench.load import requests_of, send
from tests.walks.service import ROOT, Service, environment

_BODIES, _EVENTS, _CONNECTIONS = 6, 10_000, 8


class Usage(BaseModel):
    """The body as Pydantic reads it."""

    id: str
    time: datetime
    workspace: str
    deployment: str
    model: str
    operation: str
    input_tokens: int
    output_tokens: int
    status: str
    duration_ms: int
    application: str
    stream: bool
    http_status: int


class PlainUsage(SQLModel, table=True):
    """The row, with its id unique: the least that counts nothing twice."""

    id: str = Field(primary_key=True)
    time: datetime
    workspace: str
    deployment: str
    model: str
    operation: str
    input_tokens: int
    output_tokens: int
    status: str
    duration_ms: int
    application: str
    stream: bool
    http_status: int


def application(path: str) -> FastAPI:
    """One route, one table, as durable as ours."""
    engine = create_engine(f"sqlite:///{path}")

    def durable(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    event.listen(engine, "connect", durable)
    PlainUsage.__table__.create(engine)  # type: ignore[attr-defined]  # SQLModel's own attribute
    app = FastAPI()

    @app.post("/v1/usage")
    def take(events: list[Usage]) -> dict[str, int]:
        with Session(engine) as session:
            session.add_all([PlainUsage(**one.model_dump()) for one in events])
            session.commit()
        return {"accepted": len(events)}

    return app


@contextmanager
def _running(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.bench.peer", str(folder / "plain.db")]
    with subprocess.Popen(command, cwd=ROOT, env=environment(None), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            for _ in range(100):
                try:
                    httpx.get(f"{url}/docs", trust_env=False)
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def beside(folder: Path, *, rounds: int) -> list[Figure]:
    """The same batches of 10,000 as arrays, taken in turns."""
    shape = f"{_CONNECTIONS} connections × {_EVENTS:,}"
    plain = Figure(
        f"FastAPI, Pydantic, SQLModel, {shape}", "events/s", [], note="a list body, add_all, its id unique, synchronous=FULL; no rollup, no verdicts"
    )
    ours = Figure(f"SQLite, {shape}", "events/s", [], of=plain.name)
    with ExitStack() as running:
        url = running.enter_context(_running(folder))
        service = running.enter_context(Service(f"sqlite:///{folder}/ours.db", folder))
        for _ in range(rounds):
            for figure, where in ((plain, url), (ours, service.url)):
                bodies = [b"[" + b",".join(_body(_EVENTS).splitlines()) + b"]" for _ in range(_BODIES)]
                load = send(where, requests_of(bodies, media_type="application/json"), connections=_CONNECTIONS)
                figure.rounds.append(_BODIES * _EVENTS / load.seconds)
    return [plain, ours]


def main() -> None:
    """Serve the plain one."""
    import socket

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(application(sys.argv[1]), log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
