"""Names, errors and forms of every route, for programs that are generated from the OpenAPI description."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from collector.api.answers import answer_of, components, ref
from collector.api.problems import MEDIA_TYPE

_FILES: Mapping[str, tuple[str, ...]] = {
    "/v1/costs": ("text/csv", "application/vnd.apache.parquet"),
    "/v1/usage": ("text/csv", "application/vnd.apache.parquet"),
    "/v1/export/focus": ("text/csv", "application/vnd.apache.parquet"),
    "/v1/reports/daily": ("text/csv", "text/html", "application/pdf"),
    "/v1/reports/weekly": ("text/csv", "text/html", "application/pdf"),
    "/v1/reports/monthly": ("text/csv", "text/html", "application/pdf"),
    "/v1/reports/shared/{token}": ("text/csv", "text/html", "application/pdf"),
    "/v1/reports/close": ("text/csv", "text/html", "application/pdf"),
    "/livez": ("text/plain",),
    "/readyz": ("text/plain",),
    "/metrics": ("text/plain",),
}
_BYTES: Mapping[str, Any] = {"type": "string", "format": "binary"}


def complete(schema: dict[str, Any]) -> None:
    """Give every operation a name of its own, its error, and the forms its answer has."""
    parts = schema.setdefault("components", {})
    parts.setdefault("schemas", {}).update(components())
    # Needed once there are keys; without any, a service on this machine's own address asks for none.
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}, {}]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            operation["operationId"] = re.sub(r"[^a-z0-9]+", "_", f"{method}{path}".casefold()).strip("_")
            answers = operation.setdefault("responses", {})
            answers.setdefault(
                "default",
                {"description": "What is wrong, as a problem document", "content": {MEDIA_TYPE: {"schema": ref("Problem")}}},
            )
            said = answer_of(method, path)
            for status, answer in answers.items():
                if said is not None and status.startswith("2"):
                    answer.setdefault("content", {})["application/json"] = {"schema": said}
            if method == "get" and "200" in answers:
                content = answers["200"].setdefault("content", {})
                if content.get("application/json") == {"schema": {}}:
                    del content["application/json"]  # what FastAPI says of any answer that it is not told of
                for media_type in _FILES.get(path, ()):
                    content[media_type] = {"schema": {"type": "string"} if media_type == "text/plain" else dict(_BYTES)}
                if path.startswith("/v1/") and path in _FILES:
                    about = "the sum of the file's amounts by currency, as `USD 12.5; EUR 3`; of usage, what counts of it, as `requests 2; input_tokens 500; …`"
                    answers["200"].setdefault("headers", {})["X-Control-Total"] = {"description": about, "schema": {"type": "string"}}
