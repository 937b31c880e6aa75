"""``python -m collector.azure.simulator``: an Azure to try ``meterbridge sync`` against, without an account."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from collector.azure.simulator import Export, Fault, InventedWorld, Simulator
from collector.azure.simulator.faults import RESTATEMENTS
from collector.ending import Ending


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; prints the settings that point a meterbridge here."""
    parser = argparse.ArgumentParser(prog="python -m collector.azure.simulator", description="A simulated Azure on this machine.")
    parser.add_argument("--port", type=int, default=0, help="port of the ARM and price listener (default: a free one)")
    parser.add_argument("--seed", default="7", help="which world (default 7)")
    parser.add_argument("--today", type=date.fromisoformat, default=None, metavar="YYYY-MM-DD", help="the virtual date (default: today, and moving)")
    parser.add_argument("--days", type=int, default=60, help="days of past (default 60)")
    parser.add_argument("--faults", default="", help="comma-separated faults that befall a tenth of the requests, or 'all'")
    options = parser.parse_args(arguments)
    try:
        faults = list(Fault) if options.faults == "all" else [Fault(name) for name in options.faults.split(",") if name]
    except ValueError as fault:
        parser.error(f"{fault}; there are: {', '.join(Fault)}")

    def now() -> datetime:
        real = datetime.now(UTC)
        return real if options.today is None else datetime.combine(options.today, real.timetz())

    today = now().date()
    world = InventedWorld(options.seed, today - timedelta(days=options.days), today + timedelta(days=366), restatements=RESTATEMENTS)
    exports = tuple(Export("focus-daily", f"/subscriptions/{each.id}") for each in world.subscriptions())
    azure = Simulator(world, now, port=options.port, enforces_budget=True, exports=exports, seed=options.seed)
    if faults:
        azure.faults.storm(options.seed, faults, rate=0.1)
    with Ending() as ending, azure:
        ending.remember()
        for name, value in azure.environment().items():
            # Quoted: the credential holds a semicolon, which a shell would end the command at.
            print(f"export {name}={shlex.quote(value)}", flush=True)  # noqa: T201 (what it is for)
        ending.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
