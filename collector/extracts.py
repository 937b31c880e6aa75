"""Rows of the read API as files for Power BI, Excel and the like: CSV or Parquet, with the control total they add up to.

A file holds every row of its question, page or no page. It is spooled before the first byte goes out: the control total
stands in a header, and half a file must not look whole. Memory holds one group of rows, never the file.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import IO, Any, Literal, get_args

from models import money
from models.cells import cell
from models.errors import InvalidInput
from models.ledger import CostTable, ReconciliationRow, ReconciliationTotal, UsageRecord
from models.variance import Cause

Form = Literal["csv", "parquet"]
FORMS: tuple[Form, ...] = get_args(Form)
MEDIA_TYPES: Mapping[Form, str] = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
_GROUP_ROWS = 10_000
_PRECISION, _SCALE = 38, 18

Kind = Literal["text", "whole", "decimal", "time", "truth"]
Cell = str | int | Decimal | datetime | bool | None
_FIGURES: Mapping[str, Kind] = {
    "currency": "text",
    "cost": "decimal",
    "metered_cost": "decimal",
    "billed_cost": "decimal",
    "input_tokens": "whole",
    "output_tokens": "whole",
    "cached_input_tokens": "whole",
    "reasoning_output_tokens": "whole",
    "requests": "whole",
    "core_hours": "decimal",
    "status": "text",
    "unpriced_tokens": "whole",
    "unknown_token_requests": "whole",
    "estimated_token_requests": "whole",
    "coverage": "decimal",
    "estimate": "truth",
    "allocation": "text",
}
_EVENTS: Mapping[str, Kind] = {
    "handle": "text",
    "id": "text",
    "source": "text",
    "time": "time",
    "workspace": "text",
    "deployment": "text",
    "endpoint": "text",
    "model": "text",
    "mode": "text",
    "operation": "text",
    "status": "text",
    "counted": "truth",
    "reason": "text",
    "input_tokens": "whole",
    "output_tokens": "whole",
    "cached_input_tokens": "whole",
    "reasoning_output_tokens": "whole",
    "billable": "truth",
    "tokens_quality": "text",
    "application": "text",
    "team": "text",
    "tags": "text",
    "duration_ms": "decimal",
    "received_at": "time",
}
_MATCH: Mapping[str, Kind] = {
    "day": "text",
    "workspace": "text",
    "deployment": "text",
    "meter": "text",
    "currency": "text",
    "expected": "decimal",
    "billed": "decimal",
    "invoiced": "decimal",
    "not_invoiced": "text",
    "variance": "decimal",
    "state": "text",
    "estimate": "truth",
    "metered_quantity": "decimal",
    "billed_quantity": "decimal",
    "unknown_token_requests": "whole",
    "overdue_since": "time",
}


@dataclass(frozen=True, slots=True)
class Extract:
    """A file on its way out; ``content`` stands at its beginning and is closed by whoever sends it. ``control_total`` is what its rows add up to."""

    content: IO[bytes]
    size: int
    rows: int
    media_type: str
    control_total: str


def form_asked(said: str | None) -> Form | None:
    """The format by its name; None where JSON is meant."""
    if not said or said == "json":
        return None
    form = next((one for one in FORMS if one == said), None)
    if form is None:
        raise InvalidInput(f"format must be json, {' or '.join(FORMS)}, not {said[:20]!r}")
    return form


def of_costs(table: CostTable, form: Form) -> Extract:
    """Every row of the answer: its period, its groups, its figures."""
    kinds: dict[str, Kind] = {"period_start": "time", "period_end": "time"}
    kinds |= dict.fromkeys(table.query.group_by, "text")
    kinds |= _FIGURES

    def rows() -> Iterable[Sequence[Cell]]:
        for row in table.rows:
            yield (row.period.start, row.period.end, *row.groups.values(), *(getattr(row.figures, name) for name in _FIGURES))

    # The cost of the answer by currency.
    total = "; ".join(f"{one.currency or 'none'} {'unknown' if one.cost is None else money.text(one.cost)}" for one in table.totals)
    return _spooled(kinds, rows(), form, lambda: total)


def of_reconciliation(rows: Sequence[ReconciliationRow], totals: Sequence[ReconciliationTotal], form: Form) -> Extract:
    """Every row of the three-way match, with a column for each cause; a cause that takes nothing of a row is 0 in it."""
    kinds: dict[str, Kind] = {**_MATCH, **dict.fromkeys((f"cause_{cause}" for cause in Cause), "decimal")}

    def said() -> Iterable[Sequence[Cell]]:
        for row in rows:
            yield (
                *(row.day.isoformat(), row.workspace, row.deployment, row.meter, row.currency),
                *(row.expected, row.billed, row.invoiced, row.not_invoiced, row.variance, row.state, row.estimate),
                *(row.metered_units, row.billed_units, row.unknown_token_requests, row.overdue_since),
                *(row.causes.get(cause, money.ZERO) for cause in Cause),
            )

    return _spooled(kinds, said(), form, lambda: "; ".join(f"{one.currency or 'none'} {money.text(one.billed)}" for one in totals))


def of_usage(records: Iterable[UsageRecord], form: Form) -> Extract:
    """Every event, in the order it is handed in.

    An event carries no money, so its file adds up to what ``/v1/costs`` counts of the same question: the requests that
    count, and of those that are billable the tokens by type. Cached tokens are part of the input, never more than it.
    """
    counts = dict.fromkeys(("requests", "input_tokens", "output_tokens", "cached_input_tokens", "reasoning_output_tokens"), 0)

    def rows() -> Iterable[Sequence[Cell]]:
        for record in records:
            if record.counted:
                counts["requests"] += 1
                if record.fields["billable"]:
                    fields: Mapping[str, Any] = record.fields
                    said: dict[str, int] = {name: fields[name] or 0 for name in counts if name != "requests"}
                    said["cached_input_tokens"] = min(said["cached_input_tokens"], said["input_tokens"])
                    for name, count in said.items():
                        counts[name] += count
            yield _event(record)

    return _spooled(_EVENTS, rows(), form, lambda: "; ".join(f"{name} {count}" for name, count in counts.items()))


def _event(record: UsageRecord) -> list[Cell]:
    cells: list[Cell] = []
    for name, kind in _EVENTS.items():
        value: Any = record.fields[name] if name in record.fields else getattr(record, name, None)
        if name == "tags":
            value = json.dumps(value, ensure_ascii=False, sort_keys=True) if value else None
        elif name == "mode":
            value = record.mode.value
        elif kind == "decimal" and value is not None:
            value = Decimal(str(value))
        cells.append(value)
    return cells


def _spooled(kinds: Mapping[str, Kind], rows: Iterable[Sequence[Cell]], form: Form, control_total: Callable[[], str]) -> Extract:
    """Write the rows; ``control_total`` is asked for once all of them are written."""
    content = tempfile.TemporaryFile(prefix="meterbridge-extract-")  # noqa: SIM115 - closed by whoever sends it
    try:
        count = (_csv if form == "csv" else _parquet)(kinds, rows, content)
        size = content.tell()
        content.seek(0)
    except BaseException:
        content.close()
        raise
    return Extract(content, size, count, MEDIA_TYPES[form], control_total())


def _csv(kinds: Mapping[str, Kind], rows: Iterable[Sequence[Cell]], stream: IO[bytes]) -> int:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([cell(name) for name in kinds])
    count = 0
    for row in rows:
        writer.writerow([cell(value) for value in row])
        count += 1
    text.flush()
    text.detach()
    return count


def _parquet(kinds: Mapping[str, Kind], rows: Iterable[Sequence[Cell]], stream: IO[bytes]) -> int:
    import pyarrow as pa  # noqa: PLC0415 - it takes longer to load than most answers take to give
    import pyarrow.parquet as pq  # noqa: PLC0415

    types = {
        "text": pa.string(),
        "whole": pa.int64(),
        "decimal": pa.decimal128(_PRECISION, _SCALE),
        "time": pa.timestamp("us", tz="UTC"),
        "truth": pa.bool_(),
    }
    schema = pa.schema([pa.field(name, types[kind]) for name, kind in kinds.items()])
    count = 0
    with pq.ParquetWriter(stream, schema, compression="snappy") as writer:
        group: list[Sequence[Cell]] = []

        def flush() -> None:
            columns: Any = list(zip(*group, strict=True)) if group else [[] for _ in kinds]
            arrays = [pa.array([_exact(value) for value in column], field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            group.clear()

        for row in rows:
            group.append(row)
            count += 1
            if len(group) == _GROUP_ROWS:
                flush()
        if group or not count:
            flush()
    return count


def _exact(value: Cell) -> Cell:
    """Amounts to the digits that the column holds: the bill and the ledger have no more than twelve of their own."""
    return money.truncated(value, _SCALE) if isinstance(value, Decimal) else value
