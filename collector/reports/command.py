"""``meterbridge report``: a report into a file, with its control total beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from collector.reports.formats import Format, written
from collector.reports.snapshots import close_snapshot, weekly_snapshot
from models import ledger
from models.errors import InvalidInput
from models.ledger import Filters
from models.periods import parse_month
from models.store import Store


class CostReport(msgspec.Struct, tag="report_cost", forbid_unknown_fields=True):
    """``meterbridge report daily``, ``weekly`` or ``monthly``; ``out`` is a path on this machine."""

    out: str
    unit: ledger.Unit
    format: Format = "html"
    period: str | None = None
    time_zone: str = "UTC"


class CloseReport(msgspec.Struct, tag="report_close", forbid_unknown_fields=True):
    """``meterbridge report close``; ``out`` is a path on this machine."""

    out: str
    month: str
    format: Format = "html"


def write_cost(store: Store, asked: CostReport, *, now: datetime, say: Callable[[str], None]) -> int:
    """Make the snapshot, write the file and ``FILE.meta.json``; gives the exit code."""
    span = ledger.span_of(asked.unit, asked.period, now=now, time_zone=asked.time_zone)
    out = _out(asked.out)
    body = weekly_snapshot(store, span, Filters(), now=now)
    standing = f", {body['standing']}" if "standing" in body else ""
    return _write(out, body, asked.format, f"{span.unit} {span.name}{standing}", say)


def write_close(store: Store, asked: CloseReport, *, now: datetime, say: Callable[[str], None]) -> int:
    """The close pack of a month, likewise."""
    month = parse_month(asked.month, what="the month")
    out = _out(asked.out)
    body = close_snapshot(store, month, Filters(), now=now)
    return _write(out, body, asked.format, f"month {asked.month}, {body['standing']}", say)


def _out(text: str) -> Path:
    out = Path(text)
    if not out.parent.is_dir():
        raise InvalidInput(f"there is no folder {out.parent} to write the report into")
    return out


def _write(out: Path, body: Mapping[str, Any], form: Format, what: str, say: Callable[[str], None]) -> int:
    made = written(body, form)
    replace_file(out, made.content)
    replace_file(out.with_name(f"{out.name}.meta.json"), made.meta(body))
    snapshot = body["snapshot"]
    kept = f"snapshot {snapshot['id']}" if snapshot["id"] else f"not kept: {snapshot['reason']}"
    say(f"{out}: {what}, {made.control_header or 'nothing spent'} ({kept})")
    return 0


def replace_file(path: Path, content: bytes) -> None:
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
