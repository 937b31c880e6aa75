"""Events a second through the real service, over HTTP and durable, beside what HTTP and the disk could do at best."""

from __future__ import annotations

import gzip
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from models.periods import rfc3339
from tests.bench.figures import Figure
from tests.bench.load import reading_only, requests_of, send
from tests.databases import NoPostgreSQL, PostgreSQL
from tests.walks.service import Behind, Service

BATCHES, EVENTS_A_BATCH, BATCH_CONNECTIONS = 20, 10_000, 8
SINGLES, SINGLE_CONNECTIONS = 6_000, 64

_numbers = count()


def batches(folder: Path, *, rounds: int) -> list[Figure]:
    """NDJSON of 10,000 events over 8 connections."""
    return _measured(folder, rounds=rounds, bodies=BATCHES, events=EVENTS_A_BATCH, connections=BATCH_CONNECTIONS, media_type="application/x-ndjson")


def packed(folder: Path, *, rounds: int) -> list[Figure]:
    """The same batches, gzip, beside themselves as they are."""
    shape = f"{BATCH_CONNECTIONS} connections × {EVENTS_A_BATCH:,}"
    plain = Figure(f"SQLite, {shape}", "events/s", [])
    zipped = Figure(f"SQLite, {shape} gzip", "events/s", [], of=plain.name)
    with ExitStack() as running:
        service = running.enter_context(Service(f"sqlite:///{folder}/packed.db", folder))
        for _ in range(rounds):
            for figure in (plain, zipped):
                bodies = [_body(EVENTS_A_BATCH) for _ in range(BATCHES // 2)]
                is_gzip = figure is zipped
                made = requests_of([gzip.compress(body, 6) for body in bodies] if is_gzip else bodies, media_type="application/x-ndjson", is_gzip=is_gzip)
                figure.rounds.append(len(bodies) * EVENTS_A_BATCH / send(service.url, made, connections=BATCH_CONNECTIONS).seconds)
    return [plain, zipped]


def smaller(folder: Path, *, rounds: int) -> list[Figure]:
    """NDJSON of 1,000 events over 8 connections."""
    return _measured(folder, rounds=rounds, bodies=60, events=1_000, connections=BATCH_CONNECTIONS, media_type="application/x-ndjson")


def serial(folder: Path, *, rounds: int) -> list[Figure]:
    """One event a request over one connection."""
    return _measured(folder, rounds=rounds, bodies=1_500, events=1, connections=1, media_type="application/json")


def singles(folder: Path, *, rounds: int) -> list[Figure]:
    """One event a request over 64 connections."""
    return _measured(folder, rounds=rounds, bodies=SINGLES, events=1, connections=SINGLE_CONNECTIONS, media_type="application/json")


def _measured(folder: Path, *, rounds: int, bodies: int, events: int, connections: int, media_type: str) -> list[Figure]:
    shape = f"{connections} connections × {events:,}"
    read_only = Figure(f"reading bodies only, {shape}", "events/s", [])
    rows = Figure(f"SQLite rows by the same key, {events:,} a commit", "events/s", [], note="executemany, WAL, synchronous=FULL, one thread, no HTTP")
    syncs = Figure("append 4 KiB + fdatasync", "syncs/s", [])
    stored: dict[str, tuple[Figure, Figure, Figure]] = {}
    memory: dict[str, Figure] = {}
    services: dict[str, tuple[str, Service]] = {}
    with ExitStack() as running:
        limit = running.enter_context(reading_only())
        for kind, url in _databases(running, folder):
            stored[kind] = (
                Figure(f"{kind}, {shape}", "events/s", [], of=read_only.name, note="durable, deduplicated, both rollups in the same transaction"),
                Figure(f"{kind}, one request, half", "ms", []),
                Figure(f"{kind}, one request, 99 of 100", "ms", []),
            )
            memory[kind] = Figure(f"{kind}, the service at its largest", "MiB", [])
            services[kind] = url, running.enter_context(Service(url, folder))
        sent = 0
        for _ in range(rounds):
            syncs.rounds.append(_fdatasyncs(folder))
            rows.rounds.append(_plain_rows(folder, events=events, total=min(bodies * events, 100_000 if events > 1 else 2_000)))
            made = requests_of([_body(events) for _ in range(bodies)], media_type=media_type)
            read_only.rounds.append(bodies * events / send(limit, made, connections=connections).seconds)
            sent += bodies * events
            for kind, (rate, half, most) in stored.items():
                load = send(services[kind][1].url, made, connections=connections)
                rate.rounds.append(bodies * events / load.seconds)
                half.rounds.append(load.quantile(0.5))
                most.rounds.append(load.quantile(0.99))
                memory[kind].rounds.append(_peak_mebibytes(services[kind][1].pid))
        for kind in stored:
            _check(services[kind][0], sent)
    found = [read_only, rows, syncs]
    for kind, (rate, half, most) in stored.items():
        found.append(rate)
        if kind == "SQLite":
            found.append(Figure(f"{kind} beside its rows alone", "events/s", rate.rounds, of=rows.name))
        found += [half, most, memory[kind]]
    return found


def _databases(running: ExitStack, folder: Path) -> Iterator[tuple[str, str]]:
    yield "SQLite", f"sqlite:///{folder}/bench.db"
    try:
        server = running.enter_context(PostgreSQL())
    except NoPostgreSQL:
        return
    yield "PostgreSQL", running.enter_context(server.database(migrated=False))


def _check(database_url: str, sent: int) -> None:
    """A figure of events that are not there would be none."""
    behind = Behind(database_url)
    found = behind.number("SELECT COUNT(*) FROM usage_event"), behind.number("SELECT SUM(requests) FROM usage_quarter")
    if found != (sent, sent):
        raise RuntimeError(f"{sent:,} events were acknowledged; the database holds {found[0]:,}, its rollup {found[1]:,}")


def _body(events: int) -> bytes:
    """Calls of one busy hour: random ids, 12 deployments, 20 applications."""
    started = datetime.now(UTC) - timedelta(hours=2)
    lines: list[str] = []
    for _ in range(events):
        number = next(_numbers)
        at = rfc3339(started + timedelta(milliseconds=number * 7 % 3_600_000))
        lines.append(
            f'{{"id":"{uuid.uuid4()}","time":"{at}","workspace":"ws-{number % 4}","deployment":"llama-{number % 12}","model":"Llama-3.3-70B-Instruct",'
            f'"operation":"chat","input_tokens":{number * 7919 % 4001},"output_tokens":{number * 31 % 997},"status":"success","duration_ms":{number % 5000},'
            f'"application":"app-{number % 20}","stream":false,"http_status":200}}'
        )
    return "\n".join(lines).encode()


def _fdatasyncs(folder: Path, number: int = 100) -> float:
    with (folder / "synced").open("wb", buffering=0) as file:
        started = time.perf_counter()
        for _ in range(number):
            file.write(b"\0" * 4096)
            os.fdatasync(file.fileno())
        return number / (time.perf_counter() - started)


def _peak_mebibytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def _plain_rows(folder: Path, *, events: int, total: int) -> float:
    """Rows like an event's by the same key, and nothing else: no index of identities, no rollup, no decision."""
    path = folder / f"rows-{next(_numbers)}.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("page_size = 8192", "journal_mode = WAL", "synchronous = FULL", "cache_size = -65536", "wal_autocheckpoint = 20000"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(
        "CREATE TABLE event (time BIGINT, workspace BIGINT, source BIGINT, id BLOB, "
        f"{', '.join(f'c{column} BIGINT' for column in range(18))}, PRIMARY KEY (time, workspace, source, id)) WITHOUT ROWID"
    )
    rest = (7, 7, 0, True, 1200, 250, None, None, 0, False, 0, 1_790_000_000_000_001, None, None, 1234, None, None, None)
    batches = [[(1_790_000_000_000_000 + (start + place) * 7_000, 1, 1, os.urandom(16), *rest) for place in range(events)] for start in range(0, total, events)]
    sql = f"INSERT INTO event VALUES ({', '.join('?' * 22)})"
    started = time.perf_counter()
    for rows in batches:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(sql, rows)
        connection.execute("COMMIT")
    rate = total / (time.perf_counter() - started)
    connection.close()
    return rate
