"""``meterbridge proxy``: its options, and its life from the first socket to the last report."""

from __future__ import annotations

import argparse
import gc
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from collector.ending import Ending
from collector.proxy.admission import Admission
from collector.proxy.app import Limits, Proxy
from collector.proxy.upstreams import Upstream, parse
from meterbridge_client.reporter import Reporter
from models.errors import InvalidInput

SUMMARY = "pass calls to a deployment through, meter and report them"
DESCRIPTION = (
    "A metering reverse proxy. Point the base URL of any client at it instead of at the deployment: every byte passes as it is, "
    "each call is reported to a meterbridge service, and the service can be asked first whether a call may go."
)
_GRACE_SECONDS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add(
        "--upstream",
        action="append",
        required=True,
        metavar="URL",
        help="where calls go, such as https://NAME.eastus2.models.ai.azure.com; repeatable as 'PATH=URL' or 'HOST=URL' to choose by the start of the path "
        "(taken off) or by the Host header, each with words of its own: '/llama=https://… workspace=W deployment=D endpoint=E application=A team=T'",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1; callers send their own key of the upstream)")
    add("--port", type=int, default=8080, help="port to listen on (default 8080; 0 takes a free one)")
    add("--report-to", default="http://127.0.0.1:8000", metavar="URL", help="the meterbridge service (default http://127.0.0.1:8000)")
    add("--report-key-file", type=Path, metavar="FILE", help="a file with a key of that service, scope ingest; needed once it has keys")
    add("--spool", type=Path, metavar="FOLDER", help="where reports wait until the service has them (default: a folder of this user's own)")
    for name in ("workspace", "deployment", "endpoint", "application", "team"):
        add(
            f"--{name}",
            metavar=name[0].upper(),
            help=f"the {name} of every call, where --upstream says none (else the header x-meterbridge-{name}, else the address)",
        )
    add("--source", default="meterbridge-proxy", metavar="NAME", help="the source that reports name (default meterbridge-proxy)")
    add(
        "--admission",
        choices=("off", "fail-open", "fail-closed"),
        default="off",
        help="ask the service before each call; where it does not answer in time, fail-open lets the call go and fail-closed does not (default off)",
    )
    add("--admission-timeout", type=float, default=0.25, metavar="SECONDS", help="how long to wait for that answer (default 0.25)")
    add("--include-usage", action="store_true", help="ask streams for their usage where the caller has not, and keep the additional chunk from the caller")
    add("--max-body-mib", type=int, default=16, metavar="N", help="the largest request that is passed on (default 16)")
    add("--connect-timeout", type=float, default=10.0, metavar="SECONDS", help="how long to wait for a connection to the upstream (default 10)")
    add("--read-timeout", type=float, default=600.0, metavar="SECONDS", help="the longest silence of the upstream (default 600)")
    add("--max-connections", type=int, default=200, metavar="N", help="connections to upstreams at once (default 200)")


def run(options: argparse.Namespace, ending: Ending, *, now: Callable[[], datetime], tell: Callable[[str], None]) -> int:
    """Serve until a signal; then finish what is under way, and report what is not reported."""
    upstreams = [_completed(parse(text), options) for text in options.upstream]
    _refuse_twins(upstreams)
    limits = _limits(options)
    key = _key(options.report_key_file)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    listener = _listen(options.host, options.port)
    try:
        reporter = Reporter(options.report_to, key=key, spool=options.spool, spool_names=("proxy", options.source))
    except (ValueError, OSError) as fault:
        listener.close()
        raise InvalidInput(f"--report-to or --spool: {fault}") from fault
    pool = httpx.Limits(max_connections=limits.connections, max_keepalive_connections=limits.connections, keepalive_expiry=15.0)
    transport = httpx.AsyncHTTPTransport(limits=pool, trust_env=False)
    asking = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=5.0), trust_env=False)
    admission = None
    if options.admission != "off":
        admission = Admission(asking, url=options.report_to, key=key, mode=options.admission, timeout=options.admission_timeout)
    proxy = Proxy(
        upstreams,
        transport=transport,
        reporter=reporter,
        now=now,
        source=options.source,
        admission=admission,
        include_usage=options.include_usage,
        limits=limits,
    )
    reporter.wake()
    shown = f"[{options.host}]" if ":" in options.host else options.host
    tell(f"meterbridge proxy on http://{shown}:{listener.getsockname()[1]} to {', '.join(one.url for one in upstreams)}")
    tell(f"reports to {options.report_to}; admission {options.admission}")
    try:
        serve(proxy, listener, ending)
    finally:
        reporter.close()
    found = reporter.stats()
    if found.waiting:
        tell(f"{found.waiting} reports wait in the spool for the next start: {found.last_error or 'the service was not reached'}")
    return 0


def serve(proxy: Any, listener: socket.socket, ending: Ending) -> None:
    """Answer on the listener until a signal."""
    # The threads that spool and report would otherwise hold a passing call up for 5 ms at a time.
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()  # what is loaded by now stays: it need not be looked through again while a call waits
    ending.serve(uvicorn.Server(config(proxy)), listener)


def config(proxy: Any) -> uvicorn.Config:
    """How the proxy is served: nothing added to what the upstream says, nothing believed of what a proxy before us says."""
    return uvicorn.Config(
        proxy,
        http=OriginForm,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        limit_concurrency=2_000,
        backlog=1024,
    )


class OriginForm(HttpToolsProtocol):
    """Keeps the request target as it was sent, which the parsed path does not tell: whole addresses and CONNECT are refused by it."""

    def on_headers_complete(self) -> None:
        self.scope.setdefault("state", {})["target"] = self.url
        if not self.url.startswith(b"/"):
            self.url = b"/"  # what it names is no path of ours, and need not be one that can be read
        super().on_headers_complete()


def _completed(upstream: Upstream, options: argparse.Namespace) -> Upstream:
    said = {name: getattr(options, name) for name in ("workspace", "deployment", "endpoint", "application", "team")}
    return replace(upstream, **{name: value for name, value in said.items() if value and getattr(upstream, name) is None})


def _refuse_twins(upstreams: list[Upstream]) -> None:
    seen: set[tuple[str | None, str]] = set()
    for one in upstreams:
        if (one.host, one.prefix) in seen:
            raise InvalidInput("two --upstream are for the same requests; tell them apart by a path (/a=URL) or a host (a.local=URL)")
        seen.add((one.host, one.prefix))


def _limits(options: argparse.Namespace) -> Limits:
    for name in ("admission_timeout", "connect_timeout", "read_timeout", "max_body_mib", "max_connections"):
        if not getattr(options, name) > 0:
            raise InvalidInput(f"--{name.replace('_', '-')} must be more than 0")
    return Limits(
        body_bytes=options.max_body_mib * 1024 * 1024, connect=options.connect_timeout, read=options.read_timeout, connections=options.max_connections
    )


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise InvalidInput(f"--report-key-file {file} cannot be read: {getattr(fault, 'strerror', None) or 'it is not text'}") from fault
    if not key or any(sign.isspace() for sign in key):
        raise InvalidInput(f"--report-key-file {file} must hold one key and nothing else")
    return key


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise InvalidInput(f"--port must be from 0 to 65535, not {port}")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as fault:
        listener.close()
        raise InvalidInput(f"cannot listen on {host} port {port}: {fault.strerror}; choose another with --port") from fault
    listener.listen(1024)
    return listener
