"""The HTTP application: the gate, the raw ingest routes, the FastAPI routes and whatever is mounted beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from collector.admission import Admission
from collector.api import (
    alerts,
    control,
    corrections,
    deployments,
    docs,
    explaining,
    insights,
    metrics,
    problems,
    quotas,
    reads,
    receivers,
    reconciliation,
    reports,
    sources,
    workbench,
)
from collector.api.gate import Gate, hardened
from collector.api.ingest import IngestRoutes
from collector.api.shortcut import Shortcut
from collector.auth import KeyRing
from collector.ingest import Ingest
from collector.tally import Tally
from collector.webhooks.setup import Telling
from collector.witnessing import witnessing
from models.columns import to_microseconds
from models.errors import DomainError, Unavailable
from models.store import Store, head_revision

logger = logging.getLogger(__name__)


def create_app(
    *,
    store: Store,
    ingest: Ingest | None,
    keys: KeyRing,
    now: Callable[[], datetime],
    version: str,
    is_loopback: bool,
    control_token: str = "",
    mounts: Mapping[str, ASGIApp] | None = None,
    telling: Telling | None = None,
) -> Hardened:
    """Everything the service answers; without ``ingest`` it only reads. ``mounts`` are ASGI apps under their own path, such as ``/dashboard``."""
    api = FastAPI(
        title="meterbridge",
        version=version,
        description="Cost, quota and usage of Meta Llama models on Azure: the bill joined with the requests behind it.",
        docs_url=None,  # its page would load scripts from another host; ours is below
        redoc_url=None,
    )
    api.state.store, api.state.ingest, api.state.keys, api.state.now, api.state.control_token = store, ingest, keys, now, control_token
    # Asked by gateways before a call: answered from memory, read again when it is too old.
    api.state.admission = desk = None if ingest is None else Admission(store, now=now)
    api.state.telling = telling or Telling()
    api.state.metrics = metrics.Kept()
    api.state.tally = None if ingest is None else Tally(store)
    problems.install(api)
    for part in (corrections, reads, explaining, insights, deployments, reconciliation, reports, quotas, alerts, receivers, sources, workbench, metrics):
        api.include_router(part.router)
    if ingest is not None:
        api.include_router(control.router)
    docs.install(api)
    _operations(api, version, has_dashboard="/dashboard" in (mounts or {}))
    for path, mounted in (mounts or {}).items():
        api.mount(path, mounted)
    if ingest is None:
        return Hardened(Gate(api, keys=keys, is_loopback=is_loopback))
    tally: Tally = api.state.tally
    ingest.when_stopped(tally.end)
    if desk is not None:
        ingest.when_stopped(desk.end)
    clock = _microseconds(now)
    app = IngestRoutes(api, ingest=witnessing(ingest, store, now=now), tally=tally, clock=clock)

    def refused(fault: DomainError, path: str, key_id: str | None) -> None:
        tally.refused(fault, key_id=key_id, path=path, at=clock())

    gate = Gate(app, keys=keys, is_loopback=is_loopback, refused=refused)
    return Hardened(gate, Shortcut(app, gate, ingest, asked=None if desk is None else quotas.questions(desk)))


def _microseconds(now: Callable[[], datetime]) -> Callable[[], int]:
    return lambda: to_microseconds(now())


def _operations(api: FastAPI, version: str, *, has_dashboard: bool) -> None:
    @api.get("/", include_in_schema=False)
    def home() -> RedirectResponse:
        return RedirectResponse("/dashboard/" if has_dashboard else "/docs", 307)

    if has_dashboard:

        @api.get("/dashboard", include_in_schema=False)
        def dashboard() -> RedirectResponse:
            return RedirectResponse("/dashboard/", 307)

    @api.get("/livez", tags=["operations"], summary="The process is alive")
    def livez() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @api.get("/readyz", tags=["operations"], summary="The database answers and has this version's schema")
    def readyz(request: Request) -> PlainTextResponse:
        store: Store = request.app.state.store
        if store.revision() != head_revision():
            raise Unavailable("the database's schema is not this version's; run: meterbridge migrate")
        return PlainTextResponse("ready\n")

    @api.get("/version", tags=["operations"], summary="This software's version")
    def show_version() -> dict[str, str]:
        return {"version": version, "schema": head_revision()}

    @api.exception_handler(Exception)
    def _fault(_request: Request, _fault: Exception) -> Response:
        return problems.problem(500, problems.INTERNAL, error="internal")


class Hardened:
    """ASGI: the headers that every answer carries, unless its route said otherwise; and a problem where a route failed."""

    def __init__(self, app: ASGIApp, shortcut: Shortcut | None = None) -> None:
        """``shortcut`` is the way of small usage bodies and of admission past it, for the server's connections."""
        self._app = app
        self.shortcut = shortcut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_begun = is_whole = False
        is_head = scope["method"] == "HEAD"
        if is_head:
            # What GET would answer, without its body: routes know GET only.
            scope = {**scope, "method": "GET"}

        async def passed_on(message: Message) -> None:
            nonlocal is_begun, is_whole
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                is_begun = True
                message = {**message, "headers": hardened(message.get("headers", ()))}
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, passed_on)
        except Exception:
            if is_begun and not is_whole:
                raise  # the server cuts the answer off: half of one must not look whole
            logger.exception("a request failed: %s %r", scope["method"], scope["path"])
            if is_whole:
                return  # the route's own handler has answered already
            await problems.problem(500, problems.INTERNAL, error="internal")(scope, receive, passed_on)
