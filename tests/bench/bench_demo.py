"""How fast the sample world is made, and what it holds.

Run with: python -m tests.bench.bench_demo
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal

from collector.demo.world import World


def main() -> None:
    """Print seconds, events, bytes and billed money per month and currency."""
    now = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)
    started = time.perf_counter()
    world = World(7, now)
    built = time.perf_counter()
    counted = world.count(world.starts_at, now)
    after_count = time.perf_counter()
    sizes = [(body.count(b"\n"), len(body)) for body in world.usage(world.starts_at, now)]
    sent = time.perf_counter()
    files = World(7, now).bills(now)
    billed = time.perf_counter()
    events = sum(lines for lines, _ in sizes)
    out = sys.stdout.write
    out(f"build {built - started:.2f} s, count {after_count - built:.2f} s ({counted:,}), bills alone {billed - sent:.2f} s\n")
    out(f"usage {sent - after_count:.2f} s for {events:,} events, {sum(size for _, size in sizes):,} bytes, largest body {max(size for _, size in sizes):,}\n")
    money: Counter[tuple[str, str]] = Counter()
    for name, data in files:
        for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig"))):
            money[name, row["meterCategory"]] += Decimal(row["costInBillingCurrency"])  # type: ignore[assignment]
    for (name, category), amount in sorted(money.items()):
        out(f"{name} {category or '-'}: {amount:.2f}\n")


if __name__ == "__main__":
    main()
