"""How long one evaluation takes: 200 deployments under the built-in rules, quiet and all at once above their limits.

Run: python -m tests.bench.watch   (SQLite in a temporary folder; what the issue allows is one second)
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from collector.watch import Watcher
from models.store import Store
from tests import factories

DEPLOYMENTS = 200
MINUTES = 15
CALLS_A_MINUTE = 4


def measured(tokens: int, *, rounds: int = 5) -> list[float]:
    """Seconds of each evaluation, the first one with what it makes anew."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'bench.db'}")
        store.migrate()
        with store.write() as session:
            for number in range(DEPLOYMENTS):
                factories.serverless(session, f"d{number}")
                of = factories.series(session, deployment=f"d{number}")
                for call in range(MINUTES * CALLS_A_MINUTE):
                    at = factories.NOW - timedelta(seconds=call * 60 / CALLS_A_MINUTE)
                    factories.event(session, of, time=at, input_tokens=tokens, output_tokens=0)
        watcher = Watcher(lambda *_, **__: None)
        found: list[float] = []
        for index in range(rounds):
            start = time.perf_counter()
            watcher.run(store, now=factories.NOW + timedelta(seconds=5 * index))
            found.append(time.perf_counter() - start)
        store.close()
    return found


def main() -> int:
    """Print what was measured; 1 where an evaluation took longer than a second."""
    slowest = 0.0
    for what, tokens in (("quiet", 1_000), ("every deployment above its limit", 100_000)):
        times = measured(tokens)
        slowest = max(slowest, *times)
        print(f"{DEPLOYMENTS} deployments, {what}: " + ", ".join(f"{one * 1000:.0f} ms" for one in times))  # noqa: T201
    return 1 if slowest > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
