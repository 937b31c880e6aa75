"""How fast it is, measured through the real service beside the limits of the same machine in the same minutes.

python -m tests.bench [ingest] [gzip] [thousand] [single] [serial] [formats] [peer] [query] [proxy] [admission] [bills] [focus] [month] [--rounds N] [--json FILE]

ingest: batches of 10,000 events over 8 connections; gzip: the same packed, beside themselves plain; thousand: batches of 1,000; single: one event
a request over 64 connections; serial: over one; formats: OTLP and LiteLLM bodies beside native ones; peer: what a plain service stores; query: the ledger over 60 days of
the sample world; proxy: what the metering proxy adds to a call; admission: a question before a call, 500 a second; bills: a cost details month landed; focus: a month exported;
month: reconciled, and a weekly report. Growth to ten million is a run of its own (``python -m tests.bench.growth``). Every figure is the median of its rounds, which take turns; no figure passes or fails anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from tests import databases
from tests.bench import admission, bills, focus, formats, ingest, month, peer, proxy, query
from tests.bench.figures import Figure, table

PARTS: Mapping[str, Callable[..., list[Figure]]] = {
    "ingest": ingest.batches,
    "gzip": ingest.packed,
    "thousand": ingest.smaller,
    "single": ingest.singles,
    "serial": ingest.serial,
    "formats": formats.formats,
    "peer": peer.beside,
    "query": query.queries,
    "proxy": proxy.added,
    "admission": admission.asking,
    "bills": bills.landing,
    "focus": focus.exporting,
    "month": month.closing,
}


def main() -> int:
    """Run the parts that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them when none is named")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements of each figure (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - PARTS.keys())
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    # A server for tests forgets on purpose; one that is measured must keep what it answers for.
    databases._TUNING.update(fsync="on", full_page_writes="on", synchronous_commit="on", shared_buffers="256MB")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load average before": os.getloadavg()[0]}
    found: dict[str, list[Figure]] = {}
    for part in options.parts or PARTS:
        sys.stderr.write(f"{part} …\n")
        with tempfile.TemporaryDirectory(prefix="meterbridge-bench-") as folder:
            found[part] = PARTS[part](Path(folder), rounds=options.rounds)
    machine["load average after"] = os.getloadavg()[0]
    sys.stdout.write(", ".join(f"{name} {value}" for name, value in machine.items()) + "; clients, service and database share the cores\n")
    for part, figures in found.items():
        sys.stdout.write(f"\n{part}\n{table(figures)}\n")
    if options.json is not None:
        body = {"machine": machine, **{part: [asdict(figure) for figure in figures] for part, figures in found.items()}}
        options.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
