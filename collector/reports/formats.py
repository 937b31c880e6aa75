"""A snapshot in a format: JSON, CSV, HTML or PDF, with the control total and hash that go beside the file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, get_args

from collector.reports import closepack, page, words
from models import money
from models.cells import plain

Format = Literal["json", "csv", "html", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: Mapping[Format, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "pdf": "application/pdf",
}
_NAMES = ("workspace", "deployment", "model", "mode")
_COLUMNS = ("currency", *_NAMES, "input_tokens", "output_tokens", "requests", "core_hours", "status", "estimate", "last_{unit}_cost", "cost", "billed_cost")


@dataclass(frozen=True, slots=True)
class Written:
    """A file: its bytes, its rows where it has rows, and its control total per currency."""

    content: bytes
    media_type: str
    control_total: Mapping[str, str]
    rows: int | None

    @property
    def control_header(self) -> str:
        """The control total as a header has it: ``USD 12.5; EUR 3``."""
        return "; ".join(f"{currency} {total}" for currency, total in self.control_total.items())

    def meta(self, body: Mapping[str, Any]) -> bytes:
        """What stands beside the file, as JSON."""
        about = {
            "control_total": dict(self.control_total),
            "rows": self.rows,
            "sha256": hashlib.sha256(self.content).hexdigest(),
            "snapshot": body.get("snapshot"),
            (unit := words.UNITS.get(body["kind"], "month")): body[unit],
        }
        return (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()


def written(body: Mapping[str, Any], form: Format) -> Written:
    """The snapshot in that format."""
    control = {total["currency"] or "none": total["cost"] or "unknown" for total in body["totals"]}
    rows: int | None = None
    match form:
        case "json":
            content = (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()
        case "csv":
            content, rows, control = closepack.journal_csv(body) if body["kind"] == "close" else _csv(body)
        case "html":
            content = page.html_page(body).encode()
        case "pdf":
            # What writes PDF takes half a second to load: not for those who want none.
            from collector.reports import paper  # noqa: PLC0415

            content = paper.pdf(body)
    return Written(content, MEDIA_TYPES[form], control, rows)


def _csv(body: Mapping[str, Any]) -> tuple[bytes, int, dict[str, str]]:
    """Rows per currency and deployment that add up to the totals; the control total is the sum of what was written."""
    into = io.StringIO()
    writer = csv.writer(into, lineterminator="\r\n")
    heads = [name.format(unit=words.unit(body)) for name in _COLUMNS]
    writer.writerow(heads)
    sums: dict[str, Decimal] = {}
    rows = 0
    for one in body["currencies"]:
        for line in one["deployments"]:
            cells = {**line, "currency": one["currency"]}
            writer.writerow([plain(cells[name] or "") if name in _NAMES or name == "currency" else _plain(cells[name]) for name in heads])
            key = one["currency"] or "none"
            sums[key] = money.plus(sums.get(key, money.ZERO), Decimal(line["cost"] or 0))
            rows += 1
    return into.getvalue().encode(), rows, {currency: money.text(total) for currency, total in sums.items()}


def _plain(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
