"""``meterbridge report``: a report into a file, with its control total beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from collector.reports.formats import Format, written
from collector.reports.snapshots import weekly_snapshot
from models import ledger
from models.errors import InvalidInput
from models.store import Store


class WeeklyReport(msgspec.Struct, tag="report_weekly", forbid_unknown_fields=True):
    """``meterbridge report weekly``; ``out`` is a path on this machine."""

    out: str
    format: Format = "html"
    week: str | None = None
    time_zone: str = "UTC"


def write_weekly(store: Store, asked: WeeklyReport, *, now: datetime, say: Callable[[str], None]) -> int:
    """Make the snapshot, write the file and ``FILE.meta.json``; gives the exit code."""
    week = ledger.week_of(asked.week, now=now, time_zone=asked.time_zone)
    out = Path(asked.out)
    if not out.parent.is_dir():
        raise InvalidInput(f"there is no folder {out.parent} to write the report into")
    with store.write() as session:
        body = weekly_snapshot(session, week, visible=None, now=now)
    made = written(body, asked.format)
    _replace(out, made.content)
    _replace(out.with_name(f"{out.name}.meta.json"), made.meta(body))
    snapshot = body["snapshot"]
    kept = f"snapshot {snapshot['id']}" if snapshot["id"] else f"not kept: {snapshot['reason']}"
    say(f"{out}: week {week.name}, {made.control_header or 'nothing spent'} ({kept})")
    return 0


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all: a reader never meets half a report."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        Path(file.name).chmod(0o666 & ~mask)
        Path(file.name).replace(path)
    except OSError as fault:
        raise InvalidInput(f"{path} cannot be written: {fault.strerror or fault}") from fault
