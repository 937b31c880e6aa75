"""Feeds a running service with the sample world, the way a company would: usage over HTTP, bills and inventory from Azure.

Everything is sent again on every start; the ids and times are the same, so what is already there stays counted once.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta

import httpx
import msgspec

from collector.demo.azure import What
from collector.demo.world import World
from models.errors import InvalidInput, Unavailable
from models.periods import rfc3339, utc_day

CONNECTIONS = 3
ATTEMPTS = 10  # per body; together with the longest pause a good two minutes
LONGEST_PAUSE_SECONDS = 15.0
READY_WITHIN_SECONDS = 60.0
RECENT = timedelta(days=7)
_WITNESSED_EVERY = timedelta(hours=1)
# What support has raised the default limit of two deployments to, in tokens a minute.
_RAISED_LIMIT = 600_000

Say = Callable[[str], None]
ImportFile = Callable[[str, str, bytes], None]
Sync = Callable[[What, threading.Event], str]


class _Refusal(msgspec.Struct):
    """One item that the service refused."""

    error: str = ""
    detail: str = ""


class _Answer(msgspec.Struct):
    """What the ingest answers; everything else in the body is left alone."""

    accepted: int = 0
    duplicates: int = 0
    rejected: list[_Refusal] = msgspec.field(default_factory=list)


def feed(
    base_url: str,
    world: World,
    *,
    api_key: str | None,
    say: Say,
    stop: threading.Event,
    import_bill: ImportFile,
    clock: Callable[[], datetime],
    tick_seconds: float = 2.0,
    sync: Sync | None = None,
) -> None:
    """Bring the world into the service at ``base_url``, then keep its calls coming until ``stop`` is set.

    ``import_bill(kind, name, data)`` takes a file of the kind inventory, owners, prices or charges; ``sync(what, stop)``
    pulls from the company's Azure and gives what came of it (without it inventory and bills come as files). The newest week of usage goes first, so that the first charts are soon
    true; the bills follow the usage and come anew each UTC day.
    Raises ``Unavailable`` if the service never gets ready or stops answering before the history is in.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    # The service is on this machine, whatever proxy the shell names; no call may outlive a Ctrl-C by long.
    with httpx.Client(base_url=base_url, headers=headers, limits=limits, timeout=httpx.Timeout(8, connect=3), trust_env=False) as client:
        sender = _Sender(client, say=say, stop=stop)
        sender.wait_until_ready()
        places = ("inventory", "inventory", world.inventory()) if sync is None else ("inventory", "retirements", world.retirements())
        said = sync("inventory", stop) if sync is not None and not stop.is_set() else ""
        for kind, name, data in (places, ("owners", "owners", world.owners()), ("prices", "prices", world.prices())):
            if stop.is_set():
                return
            import_bill(kind, f"{name}.csv", data)
        if sync is not None:
            sync("quotas", stop)
        say(f"inventory{f' from the simulated Azure ({said})' if said else ''}, owners and prices are in")
        reached = world.now
        recent = max(world.starts_at, reached - RECENT)
        sender.total = world.count(world.starts_at, reached)
        sender.send_all(world.usage(recent, reached))
        sender.send_all(world.usage(world.starts_at, recent))
        billed_on = witnessed_at = None
        told_trouble = False
        while not stop.is_set():
            now = clock()
            if billed_on != utc_day(now):
                if sync is not None and billed_on is not None:
                    sync("inventory", stop)
                said = sync("costs", stop) if sync is not None else _import_bills(world, now, import_bill, stop)
                if stop.is_set():
                    return
                billed_on = utc_day(now)
                _watch(client, now)
                say(f"bills: {said} are in; new calls follow until you stop this")
            if sync is not None and (witnessed_at is None or now >= witnessed_at + _WITNESSED_EVERY):
                # What Azure counted itself, beside what was sent.
                sync("metrics", stop)
                witnessed_at = now
            try:
                for body in world.usage(reached, now):
                    sender.post(body)
                reached = max(reached, now)
                told_trouble = False
            except Unavailable as fault:
                # The same calls are tried again at the next tick.
                if not told_trouble and not stop.is_set():
                    say(f"usage: {fault.message}; trying again")
                told_trouble = True
            stop.wait(tick_seconds)


def _watch(client: httpx.Client, now: datetime) -> None:
    """What the company watches: two budgets, a rule, two reports and a weekly maintenance window; made once, known again by their names.

    And the limits that support has raised for it, which Azure's inventory does not tell.
    """
    try:
        for workspace, deployment in (("ws-assist-prod", "llama-4-scout"), ("ws-emea", "llama-4-scout-emea")):
            pools = client.get("/v1/quotas", params={"workspace": workspace, "deployment": deployment}).json()["items"]
            for pool in pools:
                if pool["measure"] == "tokens_per_minute" and pool["limit_source"] == "default":
                    client.put(f"/v1/quotas/{pool['id']}", json={"limit": _RAISED_LIMIT})
    except (httpx.HTTPError, ValueError, KeyError):
        return
    window = {"days": ["sunday"], "from": "02:00", "to": "04:00", "time_zone": "Europe/Stockholm"}
    wanted: dict[str, list[dict[str, object]]] = {
        "/v1/budgets": [
            {"name": "All models", "scope": {}, "amount": "20000.00", "currency": "USD", "period": "month", "steps": [50, 80, 100], "forecast_steps": [100]},
            {"name": "Research", "scope": {"team": "research"}, "amount": "6000.00", "currency": "USD", "period": "month", "steps": [50, 80, 100]},
        ],
        "/v1/alert-rules": [{"name": "Usage without a price", "kind": "unpriced_usage", "threshold": 1_000_000, "severity": "warning"}],
        # On the Reports page there is one to preview and to send.
        "/v1/report-schedules": [
            {"name": "Weekly to finance", "report": "weekly", "folder": "finance"},
            {"name": "Research, every day", "report": "daily", "teams": ["research"], "folder": "research"},
        ],
        "/v1/silences": [
            {
                "matchers": [{"name": "workspace", "value": "ws-emea"}],
                "starts_at": rfc3339(now),
                "ends_at": rfc3339(now + timedelta(days=365)),
                "weekly": window,
                "comment": "Weekly maintenance in Sweden Central",
            }
        ],
    }
    for path, bodies in wanted.items():
        try:
            answer = client.get(path)
            if answer.status_code != 200:
                return
            known = {item.get("name") or item.get("comment") for item in answer.json()["items"]}
            for body in bodies:
                if (body.get("name") or body.get("comment")) not in known:
                    client.post(path, json=body)
        except (httpx.HTTPError, ValueError):
            return  # it is tried again with the next bills


def _import_bills(world: World, now: datetime, import_bill: ImportFile, stop: threading.Event) -> str:
    files = world.bills(now)
    for name, data in files:
        if stop.is_set():
            break
        import_bill("charges", name, data)
    return f"{len(files)} files"


class _Sender:
    """Posts bodies over a few connections and tells how far it got."""

    def __init__(self, client: httpx.Client, *, say: Say, stop: threading.Event) -> None:
        self.total = 0
        self._client = client
        self._say = say
        self._stop = stop
        self._sent = 0
        self._refused = 0
        self._started_at = time.monotonic()
        self._told_at = self._started_at

    def wait_until_ready(self) -> None:
        """Return when the service says it is ready; it gets a minute."""
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while not self._stop.is_set():
            try:
                if self._client.get("/readyz").is_success:
                    break
            except httpx.TransportError:
                pass  # not listening yet
            if time.monotonic() > deadline:
                raise Unavailable(f"{self._client.base_url} was not ready within {READY_WITHIN_SECONDS:.0f} s; look at what the service printed")
            self._stop.wait(0.2)
        self._started_at = self._told_at = time.monotonic()

    def send_all(self, bodies: Iterator[bytes]) -> None:
        """Post every body, a few at a time; the next is made while others are under way."""
        waiting: set[Future[_Answer]] = set()
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="demo-usage") as pool:
            try:
                for body in bodies:
                    if self._stop.is_set():
                        break
                    waiting.add(pool.submit(self.post, body))
                    if len(waiting) > CONNECTIONS:
                        waiting = self._note(waiting, until=FIRST_COMPLETED)
                while waiting and not self._stop.is_set():
                    waiting = self._note(waiting, until=FIRST_COMPLETED)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def post(self, body: bytes) -> _Answer:
        """Post one NDJSON body until it is stored, or raise ``Unavailable`` when patience ends or we are to stop."""
        packed = gzip.compress(body, compresslevel=1, mtime=0)
        headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
        trouble = "stopped"
        for attempt in range(ATTEMPTS):
            if self._stop.is_set():
                break
            pause = 0.25 * 2**attempt
            try:
                response = self._client.post("/v1/usage", content=packed, headers=headers)
            except httpx.TransportError as fault:
                trouble = f"no answer from {self._client.base_url} ({type(fault).__name__})"
            else:
                if response.status_code in {200, 422}:
                    return self._answer(response)
                if response.status_code not in {429, 503}:
                    raise InvalidInput(f"the service answered the sample usage with {response.status_code}: {response.text[:200]}")
                trouble = f"the service answered {response.status_code}"
                pause = _retry_after(response, pause)
            self._stop.wait(min(pause, LONGEST_PAUSE_SECONDS))
        raise Unavailable(trouble)

    def _answer(self, response: httpx.Response) -> _Answer:
        """The verdicts; 422 carries them too where every event was refused."""
        try:
            answer = msgspec.json.decode(response.content, type=_Answer)
        except msgspec.MsgspecError as fault:
            raise InvalidInput(f"the service answered the sample usage with {response.status_code} and no verdicts: {response.text[:200]}") from fault
        if response.status_code == 422 and not answer.rejected:
            raise InvalidInput(f"the service refused the sample usage: {response.text[:200]}")
        return answer

    def _note(self, waiting: set[Future[_Answer]], *, until: str) -> set[Future[_Answer]]:
        """Take in what is done and tell the progress about once a second."""
        done, rest = wait(waiting, timeout=1, return_when=until)
        for future in done:
            try:
                answer = future.result()
            except Unavailable:
                if self._stop.is_set():
                    continue
                raise
            self._sent += answer.accepted + answer.duplicates + len(answer.rejected)
            if answer.rejected and not self._refused:
                first = answer.rejected[0]
                self._say(f"usage: some events were refused, the first with {first.error}: {first.detail}; use a fresh database for another seed")
            self._refused += len(answer.rejected)
        now = time.monotonic()
        if done and (now - self._told_at >= 1 or self._sent >= self.total):
            self._told_at = now
            rate = self._sent / max(now - self._started_at, 0.001)
            self._say(f"usage: {self._sent:,} of {self.total:,} events, {rate:,.0f}/s")
        return rest


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """The seconds the service asked for, or our own pause."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else otherwise
