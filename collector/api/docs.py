"""``/docs``: the routes as a page of our own, from the OpenAPI description, with no script and no other host."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse

from collector.api import answers, schemas

_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-family:ui-monospace,monospace}section{border-top:1px solid #8884;padding:.6rem 0}h2{font-size:1.05rem;margin:.3rem 0}"
    "table{border-collapse:collapse}td{padding:.15rem .8rem .15rem 0;vertical-align:top}.m{font-weight:700}"
)
_PREFACE = (
    "<p>Money is decimal text beside a currency, instants are RFC 3339 in UTC, errors are problem documents. Once there are keys, send "
    "<code>Authorization: Bearer mb_…</code>. Routes that take <code>team</code> also take <code>tag:&lt;key&gt;=value</code>. "
    'For programs: <a href="/openapi.json">openapi.json</a>.</p>'
)
# Raw ASGI routes that FastAPI does not know.
_INGEST: dict[str, tuple[str, str]] = {
    "/v1/usage": (
        "Send usage: one event, an array, or one event a line",
        "Content types application/json and application/x-ndjson, gzip too. Answers accepted, duplicates and rejected; 2xx means on disk, counted once.",
    ),
    "/v1/usage/openai": (
        "Send a raw inference response and let meterbridge read its usage",
        "A chat.completion, text_completion or embeddings body, a stream's text, an error body, or envelopes with request, response, status and headers.",
    ),
    "/v1/usage/litellm": (
        "Send LiteLLM's generic_api callback",
        "Arrays, lines and single payloads of its json logger. Answers 200 once the usage is stored, with the verdicts in the body.",
    ),
    "/v1/usage/azure": (
        "Send Azure Monitor, Event Hubs or Log Analytics batches",
        "GatewayLlmLogs (rows of one call merged), AmlOnlineEndpointTrafficLog, API Management event-hub records; Application Insights metrics are ignored.",
    ),
    "/api/v1/events": (
        "Send CloudEvents 1.0",
        "Structured, batch and binary mode, and plain JSON as OpenMeter's clients send it. Answers 204; a refusal is a 400 that lists what was refused.",
    ),
    "/otlp/v1/traces": (
        "Send OpenTelemetry spans (OTLP/HTTP)",
        "Protobuf or JSON; spans of model calls are counted, all others ignored. Answers as OTLP asks.",
    ),
    "/otlp/v1/logs": ("Send OpenTelemetry log records (OTLP/HTTP)", "Protobuf or JSON; records of model calls are counted, all others ignored."),
    "/otlp/v1/metrics": ("Send OpenTelemetry metrics (OTLP/HTTP)", "Protobuf or JSON; taken and not counted, as metrics repeat what spans say."),
}
_EVENT = answers.ref("UsageSent")
_ANYTHING: dict[str, Any] = {}
_OTLP: dict[str, dict[str, Any]] = {"application/json": _ANYTHING, "application/x-protobuf": {"type": "string", "format": "binary"}}
_LINES: dict[str, dict[str, Any]] = {"application/json": _ANYTHING, "application/x-ndjson": {"type": "string"}}
# What their bodies may be, where that is not any JSON or lines of it.
_BODIES: dict[str, dict[str, dict[str, Any]]] = {
    "/v1/usage": {"application/json": {"oneOf": [_EVENT, {"type": "array", "items": _EVENT}]}, "application/x-ndjson": {"type": "string"}},
    "/api/v1/events": dict.fromkeys(("application/json", "application/cloudevents+json", "application/cloudevents-batch+json"), _ANYTHING),
    **dict.fromkeys(("/otlp/v1/traces", "/otlp/v1/logs", "/otlp/v1/metrics"), _OTLP),
}


def install(api: FastAPI) -> None:
    """Add the page, and the ingest routes to the description."""
    describe = api.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        for path, (summary, description) in _INGEST.items():
            schema["paths"].setdefault(path, {})["post"] = {
                "tags": ["ingest"],
                "summary": summary,
                "description": description,
                "requestBody": {"required": True, "content": {form: {"schema": body} for form, body in _BODIES.get(path, _LINES).items()}},
                "responses": {
                    "204" if path == "/api/v1/events" else "200": {"description": "Stored"},
                    "422": {"description": "Every item was refused"},
                    "503": {"description": "Storage is away; send again"},
                },
            }
        schemas.complete(schema)
        return schema

    api.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way to extend the description

    @api.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(_page(api.openapi()), headers={"content-security-policy": _CSP})


def _page(schema: dict[str, Any]) -> str:
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>meterbridge API</title><style>{_STYLE}</style>",
        f"<h1>meterbridge API {escape(schema['info']['version'])}</h1>",
        _PREFACE,
    ]
    for path, methods in sorted(schema["paths"].items()):
        for method, route in sorted(methods.items()):
            parts.append(
                f"<section><h2><code><span class=m>{escape(method.upper())}</span> {escape(path)}</code></h2><p>{_marked(route.get('summary', ''))}. {_marked(route.get('description', ''))}</p>"
            )
            rows = [
                f"<tr><td><code>{escape(one['name'])}</code><td>{_marked(one.get('description', ''))}"
                for one in route.get("parameters", ())
                if one.get("in") == "query"
            ]
            parts.append(f"<table>{''.join(rows)}</table></section>" if rows else "</section>")
    return "".join(parts)


def _marked(text: str) -> str:
    """Plain text as HTML; what stands between backticks is code."""
    return re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", escape(text))
