"""Events a second through the real service, over HTTP and durable, beside what HTTP and the disk could do at best."""

from __future__ import annotations

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

BATCHES, EVENTS_A_BATCH, BATCH_CONNECTIONS = 60, 1_000, 8
SINGLES, SINGLE_CONNECTIONS = 6_000, 64

_numbers = count()


def batches(folder: Path, *, rounds: int) -> list[Figure]:
    """NDJSON of 1,000 events over 8 connections."""
    return _measured(folder, rounds=rounds, bodies=BATCHES, events=EVENTS_A_BATCH, connections=BATCH_CONNECTIONS, media_type="application/x-ndjson")


def singles(folder: Path, *, rounds: int) -> list[Figure]:
    """One event a request over 64 connections."""
    return _measured(folder, rounds=rounds, bodies=SINGLES, events=1, connections=SINGLE_CONNECTIONS, media_type="application/json")


def _measured(folder: Path, *, rounds: int, bodies: int, events: int, connections: int, media_type: str) -> list[Figure]:
    shape = f"{connections} connections × {events:,}"
    read_only = Figure(f"reading bodies only, {shape}", "events/s", [])
    rows = Figure(f"SQLite rows without an index, {events:,} a commit", "events/s", [], note="executemany, WAL, synchronous=FULL, one thread, no HTTP")
    syncs = Figure("append 4 KiB + fdatasync", "syncs/s", [])
    stored: dict[str, tuple[Figure, Figure, Figure]] = {}
    services: dict[str, tuple[str, Service]] = {}
    with ExitStack() as running:
        limit = running.enter_context(reading_only())
        for kind, url in _databases(running, folder):
            stored[kind] = (
                Figure(f"{kind}, {shape}", "events/s", [], of=read_only.name, note="durable, deduplicated, both rollups in the same transaction"),
                Figure(f"{kind}, one request, half", "ms", []),
                Figure(f"{kind}, one request, 99 of 100", "ms", []),
            )
            services[kind] = url, running.enter_context(Service(url, folder))
        sent = 0
        for _ in range(rounds):
            syncs.rounds.append(_fdatasyncs(folder))
            rows.rounds.append(_plain_rows(folder, events=min(events, 1_000), total=min(bodies * events, 20_000 if events > 1 else 2_000)))
            made = requests_of([_body(events) for _ in range(bodies)], media_type=media_type)
            read_only.rounds.append(bodies * events / send(limit, made, connections=connections).seconds)
            sent += bodies * events
            for kind, (rate, half, most) in stored.items():
                load = send(services[kind][1].url, made, connections=connections)
                rate.rounds.append(bodies * events / load.seconds)
                half.rounds.append(load.quantile(0.5))
                most.rounds.append(load.quantile(0.99))
        for kind in stored:
            _check(services[kind][0], sent)
    found = [read_only, rows, syncs]
    for kind, (rate, half, most) in stored.items():
        found.append(rate)
        if kind == "SQLite":
            found.append(Figure(f"{kind} beside its rows alone", "events/s", rate.rounds, of=rows.name))
        found += [half, most]
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


def _plain_rows(folder: Path, *, events: int, total: int) -> float:
    """Rows of about the size of an event's, into a table that looks nothing up."""
    path = folder / f"rows-{next(_numbers)}.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("page_size = 8192", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(f"CREATE TABLE event ({', '.join(f'c{column}' for column in range(20))})")
    row = (
        1_790_000_000_000_000,
        1,
        1,
        str(uuid.uuid4()),
        7,
        0,
        True,
        1200,
        250,
        None,
        None,
        0,
        False,
        0,
        1_790_000_000_000_001,
        None,
        None,
        2**60,
        b"0" * 16,
        None,
    )
    rows = [row] * events
    sql = f"INSERT INTO event VALUES ({', '.join('?' * 20)})"
    started = time.perf_counter()
    for _ in range(total // events):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(sql, rows)
        connection.execute("COMMIT")
    rate = total / (time.perf_counter() - started)
    connection.close()
    return rate
