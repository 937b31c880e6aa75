"""Whether storing slows down with what is stored: events a second per million, and bytes an event at the end.

python -m tests.bench.growth day|replay|late [--millions N] [--database-url URL]

day: arrival in order within one busy day; replay: the same number over 90 days; late: the day with 2 % up to a day late.
The default number is METERBRIDGE_BENCH_MILLIONS, else ten. Bodies are decoded and committed in this process, without HTTP; only that is timed. Exit code 1 if the last million ran
at less than 70 % of the first (35 % for late).
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from collector.capture import native
from collector.capture.event import Defaults
from collector.ingest import Batch, Ingest
from models.store import Store

_BATCH = 10_000
_EPOCH, _MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_SPAN = {"day": timedelta(days=1), "late": timedelta(days=1), "replay": timedelta(days=90)}
_FLOOR = {"day": 0.7, "replay": 0.7, "late": 0.35}


def main() -> int:
    """Fill a database and watch."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=sorted(_SPAN))
    parser.add_argument("--millions", type=float, default=float(os.environ.get("METERBRIDGE_BENCH_MILLIONS", "10")))
    parser.add_argument("--database-url")
    options = parser.parse_args()
    count = int(options.millions * 1_000_000)
    now = datetime.now(UTC)
    drawn = random.Random(7)
    with tempfile.TemporaryDirectory(prefix="meterbridge-growth-") as folder:
        path = Path(folder) / "growth.db"
        store = Store(options.database_url or f"sqlite:///{path}")
        store.migrate()
        ingest = Ingest(store, now=lambda: datetime.now(UTC))
        ingest.start()
        rates: list[float] = []
        costs: list[float] = []
        spent, worked, part = 0.0, 0.0, max(_BATCH, min(1_000_000, count // 4) // _BATCH * _BATCH)
        for start in range(0, count, _BATCH):
            body = _body(start, count, drawn, now=now, span=_SPAN[options.kind], is_late=options.kind == "late")
            began, began_work = time.perf_counter(), time.process_time()
            verdict = ingest.accept(Batch(native.capture(body, media_type="application/x-ndjson", defaults=Defaults())))
            spent += time.perf_counter() - began
            worked += time.process_time() - began_work
            if verdict.accepted != _BATCH:
                raise RuntimeError(f"{verdict.accepted} of {_BATCH} were accepted")
            if (start + _BATCH) % part == 0:
                rates.append(part / spent)
                costs.append(worked / part)
                rate = f"{rates[-1]:,.0f} events/s, {costs[-1] * 1e6:.2f} µs of processor an event"
                sys.stdout.write(f"{(start + _BATCH) / 1e6:.2f} million: {rate}, load average {os.getloadavg()[0]:.1f}\n")
                sys.stdout.flush()
                spent = worked = 0.0
        ingest.stop()
        store.close()
        if path.exists():
            sys.stdout.write(f"{path.stat().st_size / count:.1f} bytes an event\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratio = rates[-1] / rates[0]
    sys.stdout.write(f"last part / first part: {ratio:.2f} by the clock, {costs[0] / costs[-1]:.2f} by processor time; {peak:.0f} MiB at most\n")
    return 0 if ratio >= _FLOOR[options.kind] else 1


def _body(start: int, count: int, drawn: random.Random, *, now: datetime, span: timedelta, is_late: bool) -> bytes:
    """Events of 20 workspaces, 60 deployments (few of them busy) and 40 callers, with random ids."""
    lines: list[str] = []
    ids = drawn.randbytes(16 * _BATCH).hex()
    first, length = (now - span - _EPOCH) // _MILLISECOND, span // _MILLISECOND
    for place in range(_BATCH):
        at = first + int(length * ((start + place + drawn.random() * 100) / (count + 100)))
        if is_late and drawn.random() < 0.02:
            at -= int(length * drawn.random())
        deployment = min(59, int(drawn.paretovariate(1.2)) - 1)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at // 1000))
        number = ids[place * 32 : place * 32 + 32]
        lines.append(
            f'{{"id":"{number[:8]}-{number[8:12]}-4{number[13:16]}-a{number[17:20]}-{number[20:]}","time":"{moment}.{at % 1000:03}Z",'
            f'"workspace":"ws-{deployment % 20}","deployment":"llama-{deployment}","model":"Llama-3.3-70B-Instruct","operation":"chat",'
            f'"input_tokens":{int(drawn.random() * 4000)},"output_tokens":{int(drawn.random() * 1000)},"cached_input_tokens":0,"status":"success",'
            f'"duration_ms":{int(drawn.random() * 9000)},"application":"caller-{deployment % 8}","team":"project-{deployment % 5}"}}'
        )
    return "\n".join(lines).encode()


if __name__ == "__main__":
    sys.exit(main())
