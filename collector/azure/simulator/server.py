"""The simulator as a server: two loopback listeners, one for ARM and prices, one (another host to any client) for blobs.

It is no ASGI application: half of its purpose is to break connections in ways that a web framework takes care to prevent.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from collector.azure.simulator.arm import ResourceManager
from collector.azure.simulator.costs import CostManagement, Export
from collector.azure.simulator.estate import Estate
from collector.azure.simulator.faults import THROTTLE_HEADERS, Fault, Faults, Kind
from collector.azure.simulator.retail import prices
from collector.azure.simulator.storage import BlobStorage
from collector.azure.simulator.wire import Answer, Refused, Request, error, json_answer

# Documented budget of the query API, for the whole tenant: QPU in how many seconds (cost-management-billing, manage-automation, 2026).
QPU_BUDGET = ((12, 10), (60, 60), (600, 3600))
_COST = re.compile(r"(?P<scope>.*?)/providers/microsoft\.costmanagement/(?P<rest>.+)\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Call:
    """A request that came in, and what became of it."""

    at: float  # on the simulator's clock
    kind: Kind
    method: str
    path: str
    status: int  # 0: the connection was broken
    qpu: int = 0
    fault: Fault | None = None


@dataclass(slots=True)
class Simulator:
    """An Azure of its own: ``with Simulator(estate, now=…) as azure`` serves it until the block ends.

    ``now`` is the virtual time, ``clock`` the seconds by which throttling is measured. Nothing is stored, but for files put into containers: every answer
    is a function of the estate and the virtual time, so it may be set back and forth between two calls.
    """

    estate: Estate
    now: Callable[[], datetime]
    port: int = 0
    clock: Callable[[], float] = time.monotonic
    enforces_budget: bool = False
    page_rows: int = 1000
    page_objects: int = 100
    page_items: int = 1000
    report_blobs: int = 2
    exports: tuple[Export, ...] = ()
    seed: object = 0
    token: str | None = None  # the only bearer token that is let in; None: any
    faults: Faults = field(default_factory=Faults)
    calls: list[Call] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)  # requests that carried the token where it does not belong
    costs: CostManagement = field(init=False)
    manager: ResourceManager = field(init=False)
    storage: BlobStorage = field(init=False)
    _servers: list[_Server] = field(default_factory=list)
    _spent: deque[tuple[float, int]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.costs = CostManagement(
            self.estate,
            self.now,
            lambda: self.blob_url,
            page_rows=self.page_rows,
            report_blobs=self.report_blobs,
            exports=self.exports,
            seed=self.seed,
        )
        self.storage = BlobStorage()
        self.manager = ResourceManager(self.estate, self.now, page_objects=self.page_objects)

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen on 127.0.0.1."""
        for role, port in (("arm", self.port), ("blob", 0)):
            server = _Server(self, "arm" if role == "arm" else "blob", port)
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name=f"simulator-{role}", daemon=True).start()
        return self

    def stop(self) -> None:
        """End every connection and stop listening."""
        self.stopping.set()
        for server in self._servers:
            server.shutdown()
            server.end_connections()
            server.server_close()
        self._servers.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def arm_url(self) -> str:
        """What METERBRIDGE_AZURE_ARM_URL is set to."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def retail_prices_url(self) -> str:
        """What METERBRIDGE_AZURE_RETAIL_PRICES_URL is set to."""
        return f"{self.arm_url}/api/retail/prices"

    @property
    def blob_url(self) -> str:
        """Where reports and exports lie."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def environment(self) -> dict[str, str]:
        """The settings that point a meterbridge at this Azure."""
        return {
            "METERBRIDGE_AZURE_ARM_URL": self.arm_url,
            "METERBRIDGE_AZURE_RETAIL_PRICES_URL": self.retail_prices_url,
            # Exports are fetched with a token for storage alone, as with Azure's own.
            "METERBRIDGE_AZURE_CREDENTIAL": f"static:{self.token or 'simulated'}{';for-storage' if self.costs.exports else ''}",
            "METERBRIDGE_AZURE_SUBSCRIPTIONS": ",".join(each.id for each in self.estate.subscriptions()),
            "METERBRIDGE_AZURE_SCOPES": ",".join(f"/subscriptions/{each.id}" for each in self.estate.subscriptions()),
        }

    def counted(self) -> Counter[Kind]:
        """How many calls came in, by what they were for."""
        return Counter(call.kind for call in self.calls)

    # -- answering ------------------------------------------------------------------------------

    def kind(self, role: Literal["arm", "blob"], path: str) -> Kind:
        """What a request is for."""
        if role == "blob":
            return "blob"
        if path == "api/retail/prices":
            return "prices"
        if (found := _COST.match(path)) is not None:
            rest = found["rest"].casefold()
            if rest == "query":
                return "query"
            if rest == "generatecostdetailsreport":
                return "report"
            return "poll" if rest.startswith("costdetailsoperationresults/") else "exports"
        return "metrics" if path.casefold().endswith("/microsoft.insights/metrics") else "list"

    def answer(self, request: Request, kind: Kind) -> tuple[Answer, int]:
        """The answer and the QPU it took; faults that break the connection are not its business."""
        if kind in {"blob", "prices"} and "authorization" in request.headers and kind == "prices":
            self.leaks.append(f"{request.method} {request.path}")
        if kind == "blob" and "sig" in request.query and "authorization" in request.headers:
            self.leaks.append(f"{request.method} {request.path}")
        fault = request.fault
        if fault in THROTTLE_HEADERS and fault is not None:
            return self._throttled(fault), 0
        match fault:
            case Fault.ERROR_500:
                return error(500, "InternalServerError", "Unexpected error."), 0
            case Fault.ERROR_502:
                return Answer(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", {"Content-Type": "text/html"}), 0
            case Fault.ERROR_503:
                wait = str(self.faults.retry_after_seconds)
                return error(503, "ServiceUnavailable", "Service is temporarily unavailable.", {"Retry-After": wait}), 0
            case Fault.UNAUTHORIZED_ONCE:
                return _unauthorized("The access token expiry UTC time is earlier than current UTC time."), 0
            case _:
                pass
        try:
            if kind == "prices":
                return prices(request, self.estate.retail_prices(), page_items=self.page_items), 0
            if kind == "blob":
                return (self.storage.put(request) if request.method == "PUT" else self.costs.blob(request)), 0
            said = request.headers.get("authorization", "")
            if not said.startswith("Bearer ") or (self.token is not None and said != f"Bearer {self.token}"):
                return _unauthorized("The access token is invalid."), 0
            if (account := self.costs.storage_account(request)) is not None:
                return account, 0
            if kind in {"list", "metrics"}:
                return (self.manager.answer(request) if request.method == "GET" else error(405, "MethodNotAllowed", "Only reads are simulated.")), 0
            return self._cost_management(request, kind)
        except Refused as refused:
            return refused.answer, 0

    def _cost_management(self, request: Request, kind: Kind) -> tuple[Answer, int]:
        found = _COST.match(request.path)
        if found is None:
            return error(404, "NotFound", "No such operation."), 0
        scope, rest = found["scope"], found["rest"]
        match kind:
            case "query":
                units = _months(request.body)
                if (refused := self._over_budget(units)) is not None:
                    return refused, 0
                return self.costs.query(request, scope).with_headers(**self._budget_headers(units)), units
            case "report":
                return self.costs.begin_report(request, scope), 0
            case "poll":
                return self.costs.report(request, rest.rpartition("/")[2]), 0
            case _:
                parts = rest.split("/")
                if request.method == "POST" and len(parts) == 3:
                    return Answer(200), 0
                if len(parts) == 1:
                    return self.costs.list_exports(scope), 0
                if len(parts) == 3 and parts[2].casefold() == "runhistory":
                    return self.costs.export_runs(scope, parts[1]), 0
                return error(404, "NotFound", "No such operation."), 0

    def _throttled(self, fault: Fault) -> Answer:
        longest = self.faults.retry_after_seconds
        names = THROTTLE_HEADERS[fault]
        # The longest is not always the first.
        headers = {name: str(max(1, longest - abs(place - 1)) if len(names) > 1 else longest) for place, name in enumerate(names)}
        return error(429, "429", "Too many requests. Please retry.", headers)

    def _over_budget(self, units: int) -> Answer | None:
        with self._lock:
            now = self.clock()
            while self._spent and self._spent[0][0] <= now - QPU_BUDGET[-1][1]:
                self._spent.popleft()
            waits = []
            for limit, seconds in QPU_BUDGET if self.enforces_budget else ():
                recent = [(at, spent) for at, spent in self._spent if at > now - seconds]
                if sum(spent for _, spent in recent) + units > limit:
                    waits.append(int(recent[0][0] + seconds - now) + 1 if recent else seconds)
            if not waits:
                self._spent.append((now, units))
                return None
        headers = {"x-ms-ratelimit-microsoft.costmanagement-qpu-retry-after": str(max(waits))}
        return error(429, "429", "Too many requests. Please retry.", headers)

    def _budget_headers(self, units: int) -> dict[str, str]:
        now = self.clock()
        left = [limit - sum(spent for at, spent in list(self._spent) if at > now - seconds) for limit, seconds in QPU_BUDGET]
        prefix = "x-ms-ratelimit-microsoft.costmanagement-qpu-"
        return {f"{prefix}consumed": str(units), f"{prefix}remaining": ",".join(f"QueryService:{each}" for each in left)}


def _unauthorized(message: str) -> Answer:
    challenge = f'Bearer authorization_uri="https://login.microsoftonline.com/common", error="invalid_token", error_description="{message}"'
    return error(401, "ExpiredAuthenticationToken", message, {"WWW-Authenticate": challenge})


def _months(body: Any) -> int:
    """QPU of a query: one for each month of data."""
    period = body.get("timePeriod") if isinstance(body, dict) else None
    if not period:
        return 1
    first, last = date.fromisoformat(period["from"][:10]), date.fromisoformat(period["to"][:10])
    return max(1, (last.year - first.year) * 12 + last.month - first.month + 1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, azure: Simulator, role: Literal["arm", "blob"], port: int) -> None:
        self.azure, self.role = azure, role
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def end_connections(self) -> None:
        for connection in list(self.connections):
            with _quietly():
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to talk of."""


class _quietly:  # noqa: N801 (reads as a statement)
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> bool:
        return isinstance(fault, OSError)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with _quietly():
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the parent's name)
        """The calls are kept in ``Simulator.calls``; nothing is printed."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        azure = self.server.azure
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/") if self.server.role == "arm" else parts.path.strip("/")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers: Mapping[str, str] = {name.lower(): value for name, value in self.headers.items()}
        kind = azure.kind(self.server.role, path)
        fault = azure.faults.next(kind)
        if fault in {Fault.HANG, Fault.RESET}:
            azure.calls.append(Call(azure.clock(), kind, self.command, path, 0, fault=fault))
            self._break(fault)
            return
        try:
            body = json.loads(content) if content else None
        except ValueError:
            body = None
        base = f"http://127.0.0.1:{self.server.server_port}"
        # A plus is itself in OData filters and skip tokens; urllib would read a space.
        query = dict(parse_qsl(parts.query.replace("+", "%2B") if "$skiptoken" in parts.query else parts.query, keep_blank_values=True))
        request = Request(self.command, path, query, headers, body, base, fault, content)
        try:
            answer, qpu = azure.answer(request, kind)
        except Exception as mistake:  # noqa: BLE001 (a mistake of the simulator must be seen by its client, not kill a thread)
            answer, qpu = json_answer({"error": {"code": "SimulatorMistake", "message": repr(mistake)}}, 599), 0
        azure.calls.append(Call(azure.clock(), kind, self.command, path, answer.status, qpu, fault))
        self._send(answer, cut=fault is Fault.TRUNCATED)

    def _send(self, answer: Answer, *, cut: bool) -> None:
        body = answer.body
        with _quietly():
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if cut and body and "json" in answer.headers.get("Content-Type", ""):
                # Whole for HTTP, half for JSON.
                body = body[: len(body) // 2]
                self.send_header("Content-Length", str(len(body)))
            elif cut and body:
                # Whole as announced, half as sent.
                self.send_header("Content-Length", str(len(body)))
                body = body[: len(body) // 2]
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def _break(self, fault: Fault) -> None:
        self.close_connection = True
        if fault is Fault.HANG:
            self.server.azure.stopping.wait(self.server.azure.faults.hang_seconds)
        with _quietly():
            # A reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
