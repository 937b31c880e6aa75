"""What answers and errors look like, for programs that are generated from the OpenAPI description.

The figures are described from the ledger's own value, so that a field more is a field more here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from collector.api.problems import MEDIA_TYPE
from models.ledger import Figures

_TEXT: Mapping[str, Any] = {"type": "string"}
_MONEY: Mapping[str, Any] = {"type": ["string", "null"], "description": "an exact decimal, as text; null where it is not known"}
_INSTANT: Mapping[str, Any] = {"type": "string", "format": "date-time"}
_BY_TYPE: Mapping[str, Mapping[str, Any]] = {
    "Decimal": _MONEY,
    "Decimal | None": _MONEY,
    "int": {"type": "integer"},
    "bool": {"type": "boolean"},
    "str": _TEXT,
    "str | None": {"type": ["string", "null"]},
    "Standing": {"type": "string", "enum": ["provisional", "settling", "settled"]},
}
_FILES: Mapping[str, tuple[str, ...]] = {
    "/v1/costs": ("text/csv", "application/vnd.apache.parquet"),
    "/v1/usage": ("text/csv", "application/vnd.apache.parquet"),
    "/v1/export/focus": ("text/csv", "application/vnd.apache.parquet"),
    "/v1/reports/daily": ("text/csv", "text/html", "application/pdf"),
    "/v1/reports/weekly": ("text/csv", "text/html", "application/pdf"),
    "/v1/reports/monthly": ("text/csv", "text/html", "application/pdf"),
    "/v1/reports/close": ("text/csv", "text/html", "application/pdf"),
}


def _figures() -> dict[str, Any]:
    return {one.name: _BY_TYPE.get(str(one.type), {"type": "object", "additionalProperties": _TEXT}) for one in fields(Figures)}


def _object(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties), **more}


def components() -> dict[str, Any]:
    """The schemas that routes refer to."""
    figures = _figures()
    row = {"period_start": _INSTANT, "period_end": _INSTANT, **figures}
    return {
        "Problem": _object(
            {
                "type": _TEXT,
                "title": _TEXT,
                "status": {"type": "integer"},
                "detail": {"type": "string", "description": "what happened, to what, and what to do"},
                "error": {"type": "string", "description": "the class of the error, for programs"},
            },
            example={"type": "about:blank", "title": "Unprocessable Entity", "status": 422, "detail": "basis must be one of …", "error": "invalid_input"},
        ),
        "Figures": _object(figures),
        "CostRow": _object(row, additionalProperties={"type": ["string", "null"]}, description="a row; beside its figures, one text for each name in group_by"),
        "Costs": _object(
            {
                "rows": {"type": "array", "items": {"$ref": "#/components/schemas/CostRow"}},
                "totals": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/Figures"},
                    "description": "one per currency, over all rows and not those of the page",
                },
                "next_cursor": {"type": ["string", "null"], "description": "send it as cursor for the next page; null on the last"},
                "from": _INSTANT,
                "to": _INSTANT,
                "granularity": _TEXT,
                "group_by": {"type": "array", "items": _TEXT},
                "basis": _TEXT,
                "as_of": {"type": ["string", "null"], "format": "date-time"},
                "time_zone": _TEXT,
            }
        ),
    }


def complete(schema: dict[str, Any]) -> None:
    """Give every operation a name of its own, its error, and the forms its answer has."""
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components())
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            operation["operationId"] = re.sub(r"[^a-z0-9]+", "_", f"{method}{path}".casefold()).strip("_")
            answers = operation.setdefault("responses", {})
            answers.setdefault(
                "default",
                {"description": "What is wrong, as a problem document", "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}},
            )
            if method == "get" and "200" in answers:
                content = answers["200"].setdefault("content", {})
                if path == "/v1/costs":
                    content["application/json"] = {"schema": {"$ref": "#/components/schemas/Costs"}}
                for media_type in _FILES.get(path, ()):
                    content[media_type] = {"schema": {"type": "string", "format": "binary"}}
                if path in _FILES:
                    said = "the sum of the file's amounts by currency, as `USD 12.5; EUR 3`; of usage, its rows"
                    answers["200"].setdefault("headers", {})["X-Control-Total"] = {"description": said, "schema": _TEXT}
