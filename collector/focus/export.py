"""A month written as a FOCUS file: streamed, every row checked, with what was written stated beside it.

The file stands under its name only when it is whole. ``FILE.meta.json`` has the control totals per currency, the schema
and how final the month is.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import msgspec
from sqlmodel import Session

from collector.azure.storage import Storage
from collector.focus.check import Commitment, Together, faults
from collector.focus.columns import DECIMALS, TIMES, VERSIONS, Version, columns
from collector.focus.rows import Row, Rows
from collector.reports.places import Places
from models import ledger, money
from models.cells import plain
from models.errors import InvalidInput, InvariantBroken
from models.money import ZERO
from models.periods import month_start, parse_month, rfc3339, utc_day
from models.store import Store

Form = Literal["csv", "parquet"]
FORMATS: tuple[Form, ...] = get_args(Form)
MEDIA_TYPES: Mapping[Form, str] = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
_GROUP_ROWS = 20_000
# decimal(38, 18): exact for anything a bill says, and what readers of Parquet agree on.
_PRECISION, _SCALE = 38, 18

Say = Callable[[str], None]
Progress = Callable[[int, int | None], None]


class ExportFocus(msgspec.Struct, tag="export_focus", forbid_unknown_fields=True):
    """``meterbridge export focus``; ``out`` is a path on this machine, ``to`` the address of a container instead."""

    month: str
    out: str
    version: str = "1.2"
    format: str = "csv"
    to: str = ""


@dataclass(slots=True)
class Written:
    """What was written: rows, and the sums of billed and effective cost per currency.

    ``outside`` is the part of ``billed`` that was charged for days outside the month (corrections of earlier ones): the rest
    is what ``costs`` says was billed for the month's days.
    """

    rows: int = 0
    billed: dict[str, Decimal] = field(default_factory=dict)
    effective: dict[str, Decimal] = field(default_factory=dict)
    outside: dict[str, Decimal] = field(default_factory=dict)
    invoices: dict[tuple[str, str], Decimal] = field(default_factory=dict)
    commitments: dict[tuple[str, str], Commitment] = field(default_factory=dict)
    sha256: str = ""
    name: str = ""  # of the file
    size: int = 0

    def add(self, row: Row) -> None:
        """One more row."""
        currency = str(row["BillingCurrency"])
        for sums, name in ((self.billed, "BilledCost"), (self.effective, "EffectiveCost")):
            amount = row[name]
            assert isinstance(amount, Decimal)
            sums[currency] = money.plus(sums.get(currency, ZERO), amount)
        billed, start, end, charged = (row[name] for name in ("BilledCost", "BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart"))
        assert isinstance(billed, Decimal)
        assert isinstance(start, datetime)
        assert isinstance(end, datetime)
        assert isinstance(charged, datetime)
        if billed and not start <= charged < end:
            self.outside[currency] = money.plus(self.outside.get(currency, ZERO), billed)
        self.rows += 1

    @property
    def control_header(self) -> str:
        """The billed cost per currency, as a header says it."""
        return "; ".join(f"{currency} {money.text(total)}" for currency, total in sorted(self.billed.items()))


def run(store: Store, asked: ExportFocus, *, places: Places, now: datetime, say: Say, progress: Progress) -> int:
    """Write the file of the command and say what is in it; into a container, the file goes first and what stands beside it last."""
    if not asked.to:
        return _run(store, asked, Path(asked.out), now=now, say=say, progress=progress)
    container = places.target(asked.to)
    version, form = checked(asked.version, asked.format)
    name = f"meterbridge-focus-{month_asked(asked.month, now=now):%Y-%m}-v{version}.{form}"
    with tempfile.TemporaryDirectory(prefix="meterbridge-focus-") as folder:
        out = Path(folder) / name
        code = _run(store, asked, out, now=now, say=say, progress=progress)
        with Storage(places.azure, now=now) as storage:
            for path, media_type in ((out, MEDIA_TYPES[form]), (out.with_name(f"{name}.meta.json"), "application/json")):
                with path.open("rb") as stream:
                    storage.put(container, path.name, stream, size=path.stat().st_size, media_type=media_type, progress=progress)
                say(f"{container.blob(path.name)}: {path.stat().st_size:,} bytes")
    return code


def _run(store: Store, asked: ExportFocus, out: Path, *, now: datetime, say: Say, progress: Progress) -> int:
    version, form = checked(asked.version, asked.format)
    month = month_asked(asked.month, now=now)
    if not out.parent.is_dir():
        raise InvalidInput(f"there is no folder {out.parent}")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with store.read() as session, part.open("wb") as stream:
            about = ledger.focus_month(session, month, now=now)
            written = export(session, about, stream, version=version, form=form, visible=None, now=now, progress=progress)
            stream.flush()
            os.fsync(stream.fileno())
        written.sha256, written.name, written.size = _digest(part), out.name, part.stat().st_size
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    out.with_name(out.name + ".meta.json").write_bytes(meta(about, written, version=version, form=form, now=now))
    say(f"{out.name}: {written.rows} rows of FOCUS {version} for {month:%Y-%m}, {'closed' if about.is_closed else 'open'}")
    for currency in sorted(written.effective):
        elsewhere = f"; of the billed, {money.text(written.outside[currency])} is for days of other months" if currency in written.outside else ""
        say(f"{currency}: billed {money.text(written.billed[currency])}, effective {money.text(written.effective[currency])}{elsewhere}")
    if not written.rows:
        say("nothing is billed or metered in that month")
    return 0


def checked(version: str, form: str) -> tuple[Version, Form]:
    """The version and format by their names."""
    known = next((one for one in VERSIONS if one == version), None)
    if known is None:
        raise InvalidInput(f"version must be one of {', '.join(VERSIONS)}, not {version[:20]!r}")
    written = next((one for one in FORMATS if one == form), None)
    if written is None:
        raise InvalidInput(f"format must be one of {', '.join(FORMATS)}, not {form[:20]!r}")
    return known, written


def month_asked(text: str, *, now: datetime) -> date:
    """The month, which must have begun."""
    month = parse_month(text, what="the month")
    if month > month_start(utc_day(now)):
        raise InvalidInput(f"{text} has not begun")
    return month


def export(
    session: Session,
    about: ledger.FocusMonth,
    stream: BinaryIO,
    *,
    version: Version,
    form: Form,
    visible: frozenset[str] | None,
    now: datetime,
    progress: Progress = lambda _done, _of: None,
) -> Written:
    """Write the month into the stream. A row that breaks a rule stops it: nobody is to book a wrong file."""
    names, written, together, made = columns(version), Written(), Together(), Rows(about.month, version)

    def rows() -> Iterator[Row]:
        for line in ledger.focus_lines(session, about, visible=visible, now=now):
            row = made.of(line)
            wrong = faults(row, version=version)
            if wrong:
                raise InvariantBroken(f"row {row.get('x_ChargeId')} would break FOCUS {version}: {'; '.join(wrong[:3])}; nothing was written")
            together.see(row)
            written.add(row)
            if written.rows % 5000 == 0:
                progress(written.rows, about.rows or None)
            yield row

    if form == "csv":
        _csv(rows(), names, stream)
    else:
        _parquet(rows(), names, stream)
    written.invoices, written.commitments = together.invoices, together.commitments
    wrong = together.faults(is_whole=visible is None)
    if wrong:
        raise InvariantBroken(f"the file would break FOCUS {version}: {'; '.join(wrong[:3])}; nothing was written")
    progress(written.rows, written.rows)
    return written


def _csv(rows: Iterator[Row], names: Sequence[str], stream: BinaryIO) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=False)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    cells: list[tuple[str, Callable[[Any], str]]] = [(name, _decimal_cell if name in DECIMALS else _time_cell if name in TIMES else plain) for name in names]
    for row in rows:
        get = row.get
        writer.writerow(["" if (value := get(name)) is None else cell(value) for name, cell in cells])
    text.flush()
    text.detach()


def _decimal_cell(value: Any) -> str:
    told = money.text(value)
    return told if "." in told else told + ".0"  # without a point some readers take a column for whole numbers


@lru_cache(maxsize=4096)  # a month has few days
def _time_cell(value: Any) -> str:
    return rfc3339(value)


def _parquet(rows: Iterator[Row], names: Sequence[str], stream: BinaryIO) -> None:
    import pyarrow as pa  # noqa: PLC0415 - it takes longer to load than most commands take to run
    import pyarrow.parquet as pq  # noqa: PLC0415

    kinds = {name: pa.decimal128(_PRECISION, _SCALE) if name in DECIMALS else pa.timestamp("us", tz="UTC") if name in TIMES else pa.string() for name in names}
    schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items()])
    rounded = Decimal(1).scaleb(-_SCALE)
    with pq.ParquetWriter(stream, schema, compression="snappy") as writer:
        group: dict[str, list[Any]] = {name: [] for name in names}
        count = 0

        def flush() -> None:
            writer.write_table(pa.table({name: pa.array(values, kinds[name]) for name, values in group.items()}, schema=schema))
            for values in group.values():
                values.clear()

        for row in rows:
            for name, values in group.items():
                value = row.get(name)
                values.append(
                    money.truncated(value, _SCALE) if isinstance(value, Decimal) and value != value.quantize(rounded, context=money.QUOTIENT) else value
                )
            count += 1
            if count % _GROUP_ROWS == 0:
                flush()
        if count % _GROUP_ROWS or not count:
            flush()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def meta(about: ledger.FocusMonth, written: Written, *, version: Version, form: Form, now: datetime) -> bytes:
    """What stands beside the file, as JSON: the metadata that FOCUS asks for, and our control totals."""
    said = {
        "DataGenerator": "meterbridge",
        "FocusVersion": version,
        "CreationDate": rfc3339(now),
        "Month": f"{about.month:%Y-%m}",
        "IsComplete": about.is_closed,
        "AsOf": None if about.as_of is None else rfc3339(about.as_of),
        "Format": form,
        "Rows": written.rows,
        "control_total": {currency: money.text(total) for currency, total in sorted(written.billed.items())},
        "control_total_of_other_months_days": {currency: money.text(total) for currency, total in sorted(written.outside.items())},
        "effective_total": {currency: money.text(total) for currency, total in sorted(written.effective.items())},
        # For whoever holds the invoices beside the file.
        "invoices": [{"InvoiceId": name, "currency": code, "billed": money.text(total)} for (name, code), total in sorted(written.invoices.items())],
        "commitments": [
            {
                "CommitmentDiscountId": name,
                "currency": code,
                "purchased": money.text(of.purchased),
                "used": money.text(of.used),
                "unused": money.text(of.unused),
            }
            for (name, code), of in sorted(written.commitments.items())
        ],
        "scope": "model spend: serverless charges, managed compute of online endpoints, fine-tuning, hosting; other Azure charges are left out",
        "File": written.name or None,
        "Bytes": written.size or None,
        "sha256": written.sha256 or None,
        "Columns": [
            {"ColumnName": name, "DataType": "Decimal" if name in DECIMALS else "DateTime" if name in TIMES else "String"} for name in columns(version)
        ],
    }
    return (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
