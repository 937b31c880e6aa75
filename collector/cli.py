"""The command line: the one place that reads the environment and the clock, and that knows every part.

Exit codes: 0 done, 1 the check or job found something wrong, 2 bad usage (one line on stderr).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import httpx
import uvicorn
from a2wsgi import WSGIMiddleware
from starlette.types import ASGIApp

from collector import applying, auth, closing, commands, doctor, focus, jobs, pricing, reports, usagefiles, vllm
from collector.api.gate import refuse_foreign
from collector.api.shortcut import connections
from collector.app import Hardened, create_app
from collector.auth import KeyRing, Principal
from collector.azure import schedule as azure_schedule
from collector.azure import sync as azure_sync
from collector.desk import Desk
from collector.ending import Ending
from collector.files import Files
from collector.ingest import Ingest
from collector.locks import DatabaseLock, Running
from collector.proxy import command as proxy_command
from collector.settings import Settings
from collector.webhooks.setup import Telling
from models import audit, ledger, money
from models.errors import Conflict, DomainError, InvalidInput, Unavailable
from models.periods import rfc3339, to_the_second
from models.store import Store

if TYPE_CHECKING:
    from dashboard.access import Viewer

logger = logging.getLogger("meterbridge")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt


def _open_notice(settings: Settings) -> str:
    """What an open service says of itself, with the command that closes this very one."""
    database = "" if settings.database_url == Settings().database_url else f" --database-url {settings.database_url}"
    return (
        "Open: no key has been created, so every program and page of this machine may read and write. "
        f"Close it with: meterbridge keys create --name NAME --scope admin{database}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
    except _Usage as fault:
        print(f"meterbridge: {fault}", file=sys.stderr)
        return 2
    is_service = options.run in (_up, _serve, _work, _dashboard, _demo, _proxy)
    with Ending() if is_service else contextlib.nullcontext() as options.ending:
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    """The command, with what it raises told as one line and an exit code."""
    try:
        settings = Settings.from_environment(
            os.environ,
            database_url=options.database_url,
            host=getattr(options, "host", None),
            port=getattr(options, "port", None),
            log_format=options.log_format,
        )
        _configure_logging(settings)
        code: int = options.run(options, settings)
    except InvalidInput as fault:
        print(f"meterbridge: {fault.message}", file=sys.stderr)
        return 2
    except DomainError as fault:
        print(f"meterbridge: {fault.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if options.ending is not None:
            return 0  # how a service is ended
        print("meterbridge: interrupted; what was not finished can be given again", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as fault:
        print(f"meterbridge: {fault.filename or 'a file'}: {fault.strerror or fault}", file=sys.stderr)
        return 2
    return code


def _now() -> datetime:
    return datetime.now(UTC)


def software_version() -> str:
    """The installed version."""
    try:
        return metadata.version("meterbridge")
    except metadata.PackageNotFoundError:
        return "0+unknown"


# -- the words ------------------------------------------------------------------------------------


class _Usage(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        raise _Usage(f"{message}; see: {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options and help."""
    common = _Parser(add_help=False)
    common.add_argument(
        "--database-url",
        metavar="URL",
        help="sqlite:///path/to/file.db or postgresql://user@host/name (METERBRIDGE_DATABASE_URL; default sqlite:///meterbridge.db)",
    )
    common.add_argument("--log-format", choices=("text", "json"), help="how the service writes its log to stderr (METERBRIDGE_LOG_FORMAT; default text)")
    network = _Parser(add_help=False)
    network.add_argument("--host", help="address to listen on (METERBRIDGE_HOST; default 127.0.0.1; any other needs an admin key first)")
    network.add_argument("--port", help="port to listen on (METERBRIDGE_PORT; default 8000; 0 takes a free one)")

    parser = _Parser(
        prog="meterbridge",
        description="Cost, quota and usage of Meta Llama models on Azure: the bill joined with the requests behind it.",
        epilog="Start with: meterbridge up   (or, with a sample world: meterbridge demo)",
    )
    words = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(
        name: str,
        run: Callable[[argparse.Namespace, Settings], int],
        summary: str,
        *,
        description: str = "",
        parents: Sequence[_Parser] = (common,),
    ) -> argparse.ArgumentParser:
        found = words.add_parser(name, help=summary, description=description or summary[0].upper() + summary[1:] + ".", parents=list(parents))
        found.set_defaults(run=run)
        return found

    command(
        "up",
        _up,
        "run everything in one process: API, dashboard and jobs",
        description="Run the API, the dashboard and the jobs in one process. Starts empty on SQLite in the working folder; needs no Azure account, key or server.",
        parents=(common, network),
    )
    command("serve", _serve, "run the API alone (any number on PostgreSQL)", parents=(common, network))
    command("work", _work, "run the scheduled jobs alone (any number on PostgreSQL)")
    command("dashboard", _dashboard, "run the dashboard alone (any number on PostgreSQL)", parents=(common, network))

    importing = command(
        "import",
        _import,
        "bring in files: usage, charges, prices, inventory, owners or meters",
        description="Bring in files you have; works while the service runs. "
        "usage: events in any accepted format, one a line, an array or an export, also gzip. charges: Azure cost details (EA, MCA) or FOCUS 1.x, CSV or Parquet; replaces the file's months. "
        "prices: a price file. inventory: workspaces and deployments, our CSV/JSON or what az rest lists. owners: deployment, application or tag to team and cost centre. "
        "meters: what meters of the bill count, where their own text does not say it.",
    )
    importing.add_argument("kind", choices=commands.KINDS, help="what the files hold")
    importing.add_argument("files", nargs="+", metavar="FILE", help="files to read; - reads standard input")
    importing.add_argument(
        "--replace",
        action="store_true",
        help="charges: accept a total that falls by more than a fifth; prices, inventory, owners, meters: what the file no longer names ends now",
    )

    importing.add_argument("--dry-run", action="store_true", help="prices: show what the file would change per month and team, and import nothing")
    importing.add_argument("--format", metavar="NAME", help=f"usage: the files' format, where it is not to be recognised: {', '.join(usagefiles.FORMATS)}")
    importing.add_argument("--workspace", metavar="NAME", help="usage: the workspace of events that say none")
    importing.add_argument("--deployment", metavar="NAME", help="usage: the deployment of events that say none")
    importing.add_argument("--source", metavar="NAME", help="usage: the sender's name (default: default); identity is workspace, source and id")

    pulling = command(
        "sync",
        _sync,
        "pull from Azure now: costs, inventory, quotas or prices",
        description="Make one pull from Azure now, through METERBRIDGE_AZURE_SUBSCRIPTIONS and METERBRIDGE_AZURE_SCOPES. A pull lands whole or changes nothing. Exit 1 where something could not be pulled.",
    )
    pulling.add_argument(
        "what",
        choices=azure_sync.WHAT,
        help="costs: the bill. inventory: workspaces and deployments. quotas: vCPUs. prices: the retail list. metrics: Azure's own counts of requests",
    )
    pulling.add_argument("--month", metavar="YYYY-MM", help="costs: which month, as 2026-10 (default: the open one, and the one before until it has settled)")

    reporting = words.add_parser("report", help="write a report into a file", description="Write a report into a file.")
    kinds = reporting.add_subparsers(title="reports", metavar="REPORT", required=True, parser_class=_Parser)
    for name, unit, like in (("daily", "day", "2026-11-19"), ("weekly", "week", "2026-W46"), ("monthly", "month", "2026-10")):
        of = "an ISO week" if unit == "week" else f"a {unit}"
        more = "; provisional until the month is closed" if unit == "month" else ""
        costing = kinds.add_parser(
            name, parents=[common], help=f"the {name} cost report", description=f"Write the cost report of {of}, and its control total beside it{more}."
        )
        costing.add_argument(f"--{unit}", dest="period", metavar=like, help=f"which {unit}, as {like} (default: the last complete one)")
        costing.add_argument("--format", choices=reports.FORMATS, default="html", help="how it is written (default html)")
        costing.add_argument("--time-zone", default="UTC", metavar="ZONE", help=f"the zone whose calendar cuts the {unit}, as Europe/Berlin (default UTC)")
        costing.add_argument("--out", required=True, metavar="FILE", help="the file to write; FILE.meta.json beside it has the control total and the hash")
        costing.set_defaults(run=_report_cost, unit=unit)
    pack = kinds.add_parser(
        "close", parents=[common], help="the month close pack", description="Write a month's journal, accruals and reconciliation for finance."
    )
    pack.add_argument("--month", required=True, metavar="YYYY-MM", help="which month, as 2026-10; provisional until it is closed")
    pack.add_argument("--format", choices=reports.FORMATS, default="html", help="how it is written (default html); csv is the journal")
    pack.add_argument("--out", required=True, metavar="FILE", help="the file to write; FILE.meta.json beside it has the control total and the hash")
    pack.set_defaults(run=_report_close)

    exporting = words.add_parser("export", help="write data for other tools", description="Write data for other tools.")
    kinds = exporting.add_subparsers(title="exports", metavar="EXPORT", required=True, parser_class=_Parser)
    in_focus = kinds.add_parser(
        "focus",
        parents=[common],
        help="a month in the FinOps Open Cost and Usage Specification",
        description="Write a billing month as FOCUS: charges as billed, usage that no bill reaches yet as estimates of no billed cost. Every row is checked; FILE.meta.json beside it has the control totals.",
    )
    in_focus.add_argument("--month", required=True, metavar="YYYY-MM", help="which month, as 2026-10")
    in_focus.add_argument("--version", default="1.2", choices=focus.VERSIONS, help="of FOCUS (default 1.2)")
    in_focus.add_argument("--format", choices=focus.FORMATS, default="csv", help="how it is written (default csv)")
    into = in_focus.add_mutually_exclusive_group(required=True)
    into.add_argument("--out", metavar="FILE", help="the file to write")
    into.add_argument(
        "--to", metavar="URL", help="or a Blob container, as https://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER; signed in as doctor says, or with its SAS"
    )
    in_focus.set_defaults(run=_export_focus)

    for name, run, summary in (
        ("close", _close, "close a month: store its rows as they are"),
        ("reopen", _reopen, "let a closed month move again; the close stays on record"),
    ):
        of_month = command(name, run, summary)
        of_month.add_argument("--month", required=True, metavar="YYYY-MM", help="which month, as 2026-10")
        if name == "reopen":
            of_month.add_argument("--reason", default="", metavar="TEXT", help="why, for the record")

    reviewing = command("prices", _prices, "review price rows that look wrong", description="List price rows that wait for review, accept or reject them.")
    reviewing.add_argument("action", choices=("waiting", "accept", "reject"), help="what to do")
    reviewing.add_argument("ids", nargs="*", type=int, metavar="ID", help="which rows, as prices waiting lists them")

    keys = words.add_parser(
        "keys",
        help="create, list and revoke API keys",
        description="Create, list and revoke API keys. The first key must be an admin key; from then on every request needs one.",
    )
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=_Parser)
    creating = actions.add_parser("create", parents=[common], help="make a key and print its secret once", description="Make a key and print its secret, once.")
    creating.add_argument("--name", required=True, help="what the key is for")
    creating.add_argument(
        "--scope", required=True, choices=auth.SCOPES, help="ingest writes usage and reads nothing; read sees figures; admin may do everything"
    )
    creating.add_argument("--workspace", action="append", default=[], metavar="W", help="limit the key to this workspace (repeatable; not for admin)")
    creating.set_defaults(run=_keys_create)
    listing = actions.add_parser(
        "list", parents=[common], help="one line per key, its id first", description="List the keys, one a line, the id first. Secrets are not kept."
    )
    listing.set_defaults(run=_keys_list)
    revoking = actions.add_parser("revoke", parents=[common], help="end a key", description="End a key; it stops working within five seconds.")
    revoking.add_argument("id", metavar="ID", help="the key's id, as keys list shows it")
    revoking.set_defaults(run=_keys_revoke)

    applied = command(
        "apply",
        _apply,
        "keep rules, budgets, receivers, silences, schedules, owners and meters as a file",
        description="Make rules, budgets, receivers, silences, schedules of reports, owners and what meters count as a YAML file says. Shows each difference, then makes it, all or nothing; a second run changes nothing.",
    )
    applied.add_argument("-f", "--file", required=True, metavar="FILE", help="the YAML file")
    applied.add_argument("--dry-run", action="store_true", help="show the differences and change nothing")
    applied.add_argument("--prune", action="store_true", help="delete what an earlier file made and this one no longer names, in the sections it has")
    command(
        "verify",
        _verify,
        "recompute every view from the raw rows and compare",
        description="Recompute every figure from the raw rows by a second, plain way and compare it with what the ledger answers. Exit 1 and the differences if they disagree.",
    )
    doctored = command(
        "doctor",
        _doctor,
        "look at configuration, database, data age, clock and disk",
        description="Look at everything that must be right; each finding says its fix. Exit 1 on a failure.",
        parents=(common, network),
    )
    doctored.add_argument("--deploy-permissions", action="store_true", help="also ask Azure for the nine permissions that deploying serverless models needs")
    command("migrate", _migrate, "bring the database to this version's schema")
    sample = command(
        "demo",
        _demo,
        "run the service with a sample world",
        description="Run the whole service with a deterministic sample world in its own database (folder .demo), fed through the real ingest and import. Ctrl-C ends it.",
        parents=(common, network),
    )
    sample.add_argument("--seed", type=int, default=7, metavar="N", help="which world (default 7)")
    passing = command("proxy", _proxy, proxy_command.SUMMARY, description=proxy_command.DESCRIPTION)
    proxy_command.add_arguments(passing)
    command("version", _version, "print the version", parents=(common,))
    return parser


# -- running --------------------------------------------------------------------------------------


class _KeyAccess:
    """What the dashboard may know of keys."""

    def __init__(self, keys: KeyRing, secret: bytes, *, is_loopback: bool) -> None:
        self._keys = keys
        self._is_loopback = is_loopback
        self.cookie_secret = secret

    def authenticate(self, secret: str) -> Viewer | None:
        return _viewer(self._keys.authenticate(secret))

    def viewer_for(self, key_id: str) -> Viewer | None:
        return _viewer(self._keys.principal(key_id))

    def is_open(self, environ: Mapping[str, Any]) -> bool:
        if not self._keys.is_open():
            return False
        headers = {name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items() if name.startswith("HTTP_")}
        refuse_foreign(headers)
        return self._is_loopback


def _viewer(principal: Principal | None) -> Viewer | None:
    # Here and below: Dash and Plotly take longer to load than most commands take to run.
    from dashboard.access import Viewer  # noqa: PLC0415

    if principal is None or principal.key_id is None:
        return None
    return Viewer(principal.key_id, principal.name, principal.scope, principal.visible)


@contextlib.contextmanager
def _owned(settings: Settings) -> Iterator[tuple[Store, DatabaseLock | None]]:
    """The store, owned by this process where it is SQLite, migrated and with the bundled prices."""
    store = Store(settings.database_url)
    lock: DatabaseLock | None = None
    if store.path is not None:
        lock = DatabaseLock(store.path)
        found = lock.acquire_or_find()
        if found is not None:
            raise Conflict(f"meterbridge is already running on {store.name} (process {found.pid}, {found.url})")
    try:
        store.migrate()
        with store.write() as session:
            pricing.ensure_bundled(session, now=_now())
        yield store, lock
    finally:
        store.close()
        if lock is not None:
            lock.release()


def _up(options: argparse.Namespace, settings: Settings) -> int:
    with _owned(settings) as (store, lock):
        return _run_service(store, lock, settings, options.ending, has_dashboard=True, has_jobs=True)


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    with _owned(settings) as (store, lock):
        return _run_service(store, lock, settings, options.ending, has_dashboard=False, has_jobs=False)


def _run_service(
    store: Store,
    lock: DatabaseLock | None,
    settings: Settings,
    ending: Ending,
    *,
    has_dashboard: bool,
    has_jobs: bool,
    beside: Callable[[str, threading.Event], None] | None = None,
) -> int:
    """Serve until a signal; ``beside`` runs in a thread with the service's URL and an event that ends it."""
    if settings.admin_key_file is not None:
        done = auth.ensure_admin_key(store, settings.admin_key_file, now=_now())
        if done is not None:
            _tell(done)
    keys = KeyRing(store)
    is_loopback = settings.host in _LOOPBACK
    _refuse_open_bind(keys, settings, is_loopback=is_loopback)
    listener = _listen(settings)
    url = _url(settings.host, listener)
    ingest = Ingest(store, now=_now)
    mounts: dict[str, ASGIApp] = {}
    if has_dashboard:
        mounts["/dashboard"] = _dashboard_app(store, keys, settings, is_loopback=is_loopback)
    token = lock.token if lock is not None else ""
    telling = Telling.of(settings)
    app = create_app(
        store=store,
        ingest=ingest,
        keys=keys,
        now=_now,
        version=software_version(),
        is_loopback=is_loopback,
        control_token=token,
        mounts=mounts,
        telling=telling,
    )
    scheduler = (
        jobs.create_scheduler(
            store, now=_now, more=[*vllm.jobs(settings), *azure_schedule.jobs(settings), *jobs.reporting(telling)], public_url=settings.public_url
        )
        if has_jobs
        else None
    )
    dispatcher = telling.dispatcher(store, now=_now) if has_jobs else None
    stop = threading.Event()
    companion = threading.Thread(target=beside, args=(url, stop), name="companion", daemon=True) if beside is not None else None
    ending.remember()
    ingest.start()
    if scheduler is not None:
        scheduler.start()
    if dispatcher is not None:
        dispatcher.start()
    if lock is not None:
        lock.announce(url)
    _tell(
        f"meterbridge {software_version()} on {url}  (dashboard {url}/dashboard/, API {url}/docs)"
        if has_dashboard
        else f"meterbridge {software_version()} API on {url}"
    )
    _tell(f"database {store.name}")
    if keys.is_open():
        _tell(_open_notice(settings))
    if companion is not None:
        companion.start()
    try:
        _serve_until_signal(app, listener, ending)
    finally:
        stop.set()
        if scheduler is not None:
            scheduler.shutdown(wait=False)
        if dispatcher is not None:
            dispatcher.stop()
        ingest.stop()
        if companion is not None:
            companion.join(timeout=2)
    return 0


def _give_back_memory() -> None:
    """Blocks of a mebibyte and more go back to the system at once: glibc keeps freed bodies in a heap for every thread."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own ways
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)


def _serve_until_signal(app: Hardened, listener: socket.socket, ending: Ending) -> None:
    config = uvicorn.Config(
        app,
        http="auto" if app.shortcut is None else connections(app.shortcut),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
        backlog=1024,
        # A proxy's headers are never believed: who asks decides the key alone.
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    _give_back_memory()
    # What was loaded so far stays; to look for garbage among it and among the rows of every commit takes a third of the ingest's time.
    # Questions before a call are answered in a millisecond: a thread that computes is not to hold the others up for five.
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    ending.serve(server, listener)


def _dashboard_app(store: Store, keys: KeyRing, settings: Settings, *, is_loopback: bool) -> ASGIApp:
    from dashboard.app import create_dashboard, ledger_over  # noqa: PLC0415

    desk = Desk(store, now=_now, telling=Telling.of(settings), public_url=settings.public_url)
    access = _KeyAccess(keys, auth.cookie_secret(store), is_loopback=is_loopback)
    page = create_dashboard(
        open_ledger=ledger_over(store.read),
        access=access,
        now=_now,
        notice=_open_notice(settings),
        is_behind_tls=settings.secure_cookies,
        files=Files(store, now=_now),
        desk=desk,
        tried=desk.tried,
    )
    return WSGIMiddleware(page.server, workers=10)  # type: ignore[return-value]  # an ASGI app by another spelling


def _refuse_open_bind(keys: KeyRing, settings: Settings, *, is_loopback: bool) -> None:
    if not is_loopback and keys.is_open():
        raise InvalidInput(
            f"listening on {settings.host} needs a key first: meterbridge keys create --name NAME --scope admin (or METERBRIDGE_ADMIN_KEY_FILE); without keys only 127.0.0.1 is served"
        )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as fault:
        listener.close()
        raise InvalidInput(f"cannot listen on {settings.host} port {settings.port}: {fault.strerror}; choose another with --port") from fault
    listener.listen(1024)
    return listener


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    shown = "127.0.0.1" if host in ("0.0.0.0", "localhost") else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host  # noqa: S104 - compared, not bound
    return f"http://{shown}:{port}"


def _work(options: argparse.Namespace, settings: Settings) -> int:
    with _owned(settings) as (store, _):
        telling = Telling.of(settings)
        scheduler = jobs.create_scheduler(
            store, now=_now, more=[*vllm.jobs(settings), *azure_schedule.jobs(settings), *jobs.reporting(telling)], public_url=settings.public_url
        )
        dispatcher = telling.dispatcher(store, now=_now)
        ending: Ending = options.ending
        ending.remember()
        scheduler.start()
        dispatcher.start()
        _tell(f"meterbridge {software_version()} jobs on {store.name}")
        ending.wait()
        scheduler.shutdown(wait=False)
        dispatcher.stop()
    return 0


def _proxy(options: argparse.Namespace, _settings: Settings) -> int:
    return proxy_command.run(options, options.ending, now=_now, tell=_tell)


def _dashboard(options: argparse.Namespace, settings: Settings) -> int:
    store = Store(settings.database_url)
    _refuse_missing(store)
    store.check_schema()
    keys = KeyRing(store)
    is_loopback = settings.host in _LOOPBACK
    _refuse_open_bind(keys, settings, is_loopback=is_loopback)
    listener = _listen(settings)
    url = _url(settings.host, listener)
    app = create_app(
        store=store,
        ingest=None,  # this process writes nothing
        keys=keys,
        now=_now,
        version=software_version(),
        is_loopback=is_loopback,
        mounts={"/dashboard": _dashboard_app(store, keys, settings, is_loopback=is_loopback)},
    )
    _tell(f"meterbridge {software_version()} dashboard on {url}/dashboard/")
    if keys.is_open():
        _tell(_open_notice(settings))
    _serve_until_signal(app, listener, options.ending)
    store.close()
    return 0


# -- commands that write --------------------------------------------------------------------------


def _import(options: argparse.Namespace, settings: Settings) -> int:
    with contextlib.ExitStack() as stack:
        # Looked at before anything else is done: a misspelt name must not make a database.
        commands.readable([file for file in options.files if file != "-"])
        files = [stack.enter_context(_spooled_input()) if file == "-" else str(Path(file).absolute()) for file in options.files]
        more = {name: getattr(options, name) for name in ("format", "workspace", "deployment", "source", "dry_run")}
        return _write(settings, commands.Import(options.kind, files, options.replace, **more))


@contextlib.contextmanager
def _spooled_input() -> Iterator[str]:
    with tempfile.NamedTemporaryFile(prefix="meterbridge-", suffix=".stdin") as file:
        while chunk := sys.stdin.buffer.read(1024 * 1024):
            file.write(chunk)
        file.flush()
        yield file.name


def _sync(options: argparse.Namespace, settings: Settings) -> int:
    return _write(settings, azure_sync.command_of(options.what, options.month, settings))


def _prices(options: argparse.Namespace, settings: Settings) -> int:
    if (options.action == "waiting") == bool(options.ids):
        raise InvalidInput("prices accept and reject take the ids that prices waiting lists; prices waiting takes none")
    return _write(settings, commands.ReviewPrices(options.action, options.ids))


def _report_cost(options: argparse.Namespace, settings: Settings) -> int:
    out = str(Path(options.out).absolute())
    return _write(settings, reports.CostReport(out=out, unit=options.unit, format=options.format, period=options.period, time_zone=options.time_zone))


def _report_close(options: argparse.Namespace, settings: Settings) -> int:
    return _write(settings, reports.CloseReport(out=str(Path(options.out).absolute()), format=options.format, month=options.month))


def _export_focus(options: argparse.Namespace, settings: Settings) -> int:
    out = str(Path(options.out).absolute()) if options.out else ""
    return _write(settings, focus.ExportFocus(options.month, out, options.version, options.format, options.to or ""))


def _close(options: argparse.Namespace, settings: Settings) -> int:
    return _write(settings, closing.CloseMonth(options.month, commands.author(), software_version()))


def _reopen(options: argparse.Namespace, settings: Settings) -> int:
    return _write(settings, closing.ReopenMonth(options.month, commands.author(), options.reason))


def _keys_create(options: argparse.Namespace, settings: Settings) -> int:
    return _write(settings, commands.CreateKey(options.name, options.scope, options.workspace))


def _keys_revoke(options: argparse.Namespace, settings: Settings) -> int:
    return _write(settings, commands.RevokeKey(options.id))


def _apply(options: argparse.Namespace, settings: Settings) -> int:
    file = Path(options.file).absolute()
    # A misspelt name or line must not make a database; what it refers to is that of whoever applies it, not of a running service.
    secrets = applying.referred(applying.read_file(file), folder=file.parent, environ=os.environ)
    return _write(settings, applying.Apply(str(file), options.dry_run, options.prune, secrets))


def _keys_list(_options: argparse.Namespace, settings: Settings) -> int:
    store = Store(settings.database_url)
    _refuse_missing(store)
    store.check_schema()
    with store.read() as session:
        for key in auth.list_keys(session):
            state = f"revoked {to_the_second(key.revoked_at)}" if key.revoked_at is not None else "active"
            print(f"{key.id}  {key.scope:<6}  {state}  created {to_the_second(key.created_at)}  {','.join(key.workspaces) or 'all workspaces'}  {key.name}")
    store.close()
    return 0


def _write(settings: Settings, command: commands.Command) -> int:
    """Run a command here, or through the service that owns the SQLite database."""
    store = Store(settings.database_url)
    lock = DatabaseLock(store.path) if store.path is not None else None
    running = lock.acquire_or_find() if lock is not None else None
    if running is not None:
        return _through_service(running, command)
    try:
        store.migrate()
        with store.write() as session:
            pricing.ensure_bundled(session, now=_now())
        ingest = Ingest(store, now=_now)
        ingest.start()
        progress = _Progress()
        try:
            return commands.run(command, commands.Desk(store, ingest, _now, say=progress.say, progress=progress, telling=Telling.of(settings)))
        finally:
            progress.end()
            ingest.stop()
    finally:
        store.close()
        if lock is not None:
            lock.release()


def _through_service(running: Running, command: commands.Command) -> int:
    progress = _Progress()
    code: int | None = None
    try:
        with (
            httpx.Client(trust_env=False, timeout=httpx.Timeout(10.0, read=600.0)) as client,
            client.stream(
                "POST", f"{running.url}/v1/control", json=commands.described(command), headers={"Authorization": f"Bearer {running.token}"}
            ) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise Conflict(f"the running service (process {running.pid}) refused the command: {_detail(answer)}")
            for line in answer.iter_lines():
                said = json.loads(line)
                if "say" in said:
                    progress.say(said["say"])
                elif "progress" in said:
                    progress(*said["progress"])
                elif "error" in said:
                    progress.end()
                    fault = InvalidInput if said["kind"] == "InvalidInput" else DomainError
                    raise fault(said["error"])
                else:
                    code = int(said["exit"])
    except httpx.HTTPError as fault:
        raise Unavailable(f"the running service (process {running.pid}, {running.url}) does not answer: {fault}; look at its log") from fault
    finally:
        progress.end()
    if code is None:
        raise Unavailable(f"the running service (process {running.pid}) ended before the command was done; give it again")
    return code


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"


class _Progress:
    """Progress on a terminal's last line (or every few seconds in a log), other lines above it."""

    def __init__(self) -> None:
        self._shown = False
        self._last = time.monotonic()

    def __call__(self, done: int, whole: int | None) -> None:
        now = time.monotonic()
        pause = 0.2 if sys.stderr.isatty() else 5.0
        if now - self._last < pause:
            return
        self._last = now
        text = f"{done:,} of {whole:,} ({100 * done // whole} %)" if whole else f"{done:,}"
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._shown = True
        else:
            print(text, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        self.end()
        print(text, flush=True)

    def end(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._shown = False


# -- commands that look ---------------------------------------------------------------------------


def _refuse_missing(store: Store) -> None:
    if store.path is not None and not store.path.exists():
        raise InvalidInput(f"there is no database at {store.path}; start one with: meterbridge up")


def _verify(_options: argparse.Namespace, settings: Settings) -> int:
    store = Store(settings.database_url)
    _refuse_missing(store)
    store.check_schema()
    now = _now()
    with store.read() as session:

        def ask(question: audit.Question) -> ledger.CostTable:
            basis = next(one for one in ledger.BASES if one == question.basis)
            query = ledger.CostQuery(question.period, question.granularity, question.group_by, basis, as_of=question.as_of)
            return ledger.costs(session, query, now=now)

        def export(month: date) -> dict[str, Decimal]:
            sums: dict[str, Decimal] = {}
            for line in ledger.focus_lines(session, ledger.focus_month(session, month, now=now), visible=None, now=now):
                if line.kind in ("charge", "share"):
                    sums[line.currency] = money.plus(sums.get(line.currency, money.ZERO), line.billed)
            return sums

        answers = audit.Answers(
            reconcile=lambda period: ledger.reconciliation(session, period, now=now).rows,
            adjust=lambda month: ledger.adjustments(session, month, now=now),
            export=export,
            tie_out=lambda month: ledger.invoices(session, month, now=now),
        )
        found = audit.verify(session, now=now, ask=ask, answers=answers, progress=_tell)
    for line in found.lines():
        print(line)
    print(
        f"{found.checked:,} figures recomputed from the raw rows: " + (f"{len(found.differences) + found.more:,} differ" if found.differences else "all agree")
    )
    store.close()
    return 1 if found.differences else 0


def _doctor(options: argparse.Namespace, settings: Settings) -> int:
    store = Store(settings.database_url)
    _refuse_missing(store)
    lock = DatabaseLock(store.path) if store.path is not None else None
    running = False
    if lock is not None:
        running = not lock.acquire()
        lock.release()
    failures = 0
    for finding in doctor.examine(store, settings, now=_now(), is_service_running=running, deploy_permissions=options.deploy_permissions):
        print(finding.line())
        failures += finding.level == "failure"
    store.close()
    return 1 if failures else 0


def _migrate(_options: argparse.Namespace, settings: Settings) -> int:
    store = Store(settings.database_url)
    lock = DatabaseLock(store.path) if store.path is not None else None
    if lock is not None and (running := lock.acquire_or_find()) is not None:
        raise Conflict(f"the service is running on it (process {running.pid}) and has migrated it already; stop it first if you mean to change versions")
    try:
        before, after = store.migrate()
    finally:
        store.close()
        if lock is not None:
            lock.release()
    print(f"database {store.name}: schema {after}" + (" (nothing to do)" if before == after else f", was {before or 'none'}"))
    return 0


def _version(_options: argparse.Namespace, _settings: Settings) -> int:
    print(f"meterbridge {software_version()}")
    return 0


# -- the sample world -----------------------------------------------------------------------------


def _demo(options: argparse.Namespace, settings: Settings) -> int:
    # Only here: the sample world is no part of a service.
    from collector import demo  # noqa: PLC0415

    if options.database_url is None:
        folder = Path(".demo")
        folder.mkdir(exist_ok=True)
        settings = Settings.from_environment(
            {**os.environ, "METERBRIDGE_DATABASE_URL": f"sqlite:///{folder / f'demo-{options.seed}.db'}"},
            host=options.host,
            port=options.port,
            log_format=options.log_format,
        )
    with _owned(settings) as (store, lock):
        opened_on = _demo_opened_on(store)
        world = demo.World(options.seed, _now(), opened_on=opened_on)

        def feed(url: str, stop: threading.Event) -> None:
            try:
                first_day = world.story.first_day
                with (
                    tempfile.TemporaryDirectory(prefix="meterbridge-demo-") as folder,
                    demo.SampleAzure(world.estate(), store, first_day=first_day, now=_now) as azure,
                ):
                    _tell(
                        "a simulated Azure serves its bills; to pull from it yourself: "
                        + " ".join(f"{name}={value}" for name, value in azure.environment.items())
                    )
                    demo.feed(url, world, api_key=None, say=_tell, stop=stop, import_bill=_importer(settings, Path(folder)), sync=azure.sync, clock=_now)
            except DomainError as fault:
                _tell(f"the sample world could not be fed: {fault.message}")
            except Exception:
                logger.exception("the sample world could not be fed")

        return _run_service(store, lock, settings, options.ending, has_dashboard=True, has_jobs=True, beside=feed)


def _importer(settings: Settings, folder: Path) -> Callable[[str, str, bytes], None]:
    """Imports a file through the import command, as a user would beside the running service."""

    def bring_in(kind: str, name: str, data: bytes) -> None:
        file = folder / name
        file.write_bytes(data)
        command = commands.Import(next(one for one in commands.KINDS if one == kind), [str(file)], replace=kind == "charges")
        _write(settings, command)

    return bring_in


def _demo_opened_on(store: Store) -> Any:
    """The day the sample world was first opened: its story is told relative to it, for ever."""
    from datetime import date  # noqa: PLC0415

    from models.resources import Setting  # noqa: PLC0415

    with store.write() as session:
        found = session.get(Setting, "demo_opened_on")
        if found is None:
            found = Setting(name="demo_opened_on", value=_now().date().isoformat())
            session.add(found)
        return date.fromisoformat(found.value)


# -- output ---------------------------------------------------------------------------------------


def _tell(text: str) -> None:
    """Say something to the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # Names from outside may hold line breaks or terminal escapes; a log line is one line of plain signs.
        text = super().format(record)
        return text if record.exc_info else "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if settings.log_format == "json" else _TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for quiet in ("apscheduler", "httpx", "httpcore", "alembic", "uvicorn.error", "azure", "fontTools", "fpdf"):
        logging.getLogger(quiet).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
