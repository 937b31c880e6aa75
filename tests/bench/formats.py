"""Other formats than our own: their events a second through the same service, beside native bodies of as many events."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.bench.figures import Figure
from tests.bench.ingest import _body
from tests.bench.load import requests_of, send
from tests.walks.service import Behind, Service

_BODIES, _EVENTS, _CONNECTIONS = 10, 2_000, 8
_numbers = count()


def formats(folder: Path, *, rounds: int) -> list[Figure]:
    """OTLP traces (protobuf) and LiteLLM arrays, 2,000 events a body."""
    native = Figure(f"native, {_EVENTS:,} a body", "events/s", [])
    kinds: list[tuple[Figure, Callable[[], bytes], str, str]] = [(native, lambda: _body(_EVENTS), "application/x-ndjson", "/v1/usage")]
    for name, body, media_type, path in (
        ("OTLP protobuf", _spans, "application/x-protobuf", "/otlp/v1/traces"),
        ("LiteLLM", _payloads, "application/json", "/v1/usage/litellm"),
    ):
        size = f"{len(body()) // _EVENTS:,} bytes an event"
        kinds.append((Figure(f"{name}, {_EVENTS:,} a body", "events/s", [], of=native.name, note=size), body, media_type, path))
    sent = 0
    with Service(f"sqlite:///{folder}/formats.db", folder) as service:
        for _ in range(rounds):
            for figure, body, media_type, path in kinds:
                load = send(
                    service.url, requests_of([body() for _ in range(_BODIES)], media_type=media_type, path=path, workspace="ws"), connections=_CONNECTIONS
                )
                figure.rounds.append(_BODIES * _EVENTS / load.seconds)
                sent += _BODIES * _EVENTS
    found = Behind(f"sqlite:///{folder}/formats.db").number("SELECT COUNT(*) FROM usage_event")
    if found != sent:
        raise RuntimeError(f"{sent:,} events were sent; the database holds {found:,}")
    return [figure for figure, *_ in kinds]


def _spans() -> bytes:
    """Chat spans of an instrumented client, by the current names."""
    asked = ExportTraceServiceRequest()
    of = asked.resource_spans.add()
    for name, value in (("service.name", "invoices"), ("deployment.environment", "prod"), ("telemetry.sdk.language", "python")):
        of.resource.attributes.add(key=name).value.string_value = value
    spans = of.scope_spans.add().spans
    ended = datetime.now(UTC) - timedelta(hours=1)
    for _ in range(_EVENTS):
        number = next(_numbers)
        at = int((ended + timedelta(milliseconds=number * 7 % 1_800_000)).timestamp() * 1e6) * 1000
        span = spans.add(trace_id=os.urandom(16), span_id=os.urandom(8), name="chat Llama-3.3-70B-Instruct", kind=3)
        span.start_time_unix_nano, span.end_time_unix_nano = at - 1_200_000_000, at
        for name, text in (
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "azure.ai.inference"),
            ("gen_ai.request.model", "Llama-3.3-70B-Instruct"),
            ("gen_ai.response.model", "Llama-3.3-70B-Instruct"),
            ("gen_ai.response.id", f"chatcmpl-{uuid.uuid4().hex}"),
            ("server.address", f"llama-{number % 12}.eastus2.models.ai.azure.com"),
        ):
            span.attributes.add(key=name).value.string_value = text
        span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = number * 7919 % 4001
        span.attributes.add(key="gen_ai.usage.output_tokens").value.int_value = number * 31 % 997
    return bytes(asked.SerializeToString())


def _payloads() -> bytes:
    """What LiteLLM's generic callback sends, messages switched off."""
    started = datetime.now(UTC).timestamp() - 3600
    rows: list[dict[str, Any]] = []
    for _ in range(_EVENTS):
        number = next(_numbers)
        at = started + number * 0.007 % 1800
        rows.append(
            {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "litellm_call_id": str(uuid.uuid4()),
                "trace_id": str(uuid.uuid4()),
                "call_type": "acompletion",
                "stream": False,
                "status": "success",
                "custom_llm_provider": "azure_ai",
                "startTime": at,
                "endTime": at + 1.2,
                "model": "Llama-3.3-70B-Instruct",
                "model_group": f"llama-{number % 12}",
                "api_base": f"https://llama-{number % 12}.eastus2.models.ai.azure.com",
                "metadata": {"user_api_key_team_alias": f"team-{number % 5}", "user_api_key_alias": f"app-{number % 20}", "requester_metadata": {}},
                "response_cost": 0.0012,
                "prompt_tokens": number * 7919 % 4001,
                "completion_tokens": number * 31 % 997,
                "total_tokens": number * 7919 % 4001 + number * 31 % 997,
                "request_tags": ["prod"],
                "model_parameters": {"temperature": 0.2, "max_tokens": 1000},
                "hidden_params": {"model_id": "m-1", "additional_headers": {"llm_provider-x-ratelimit-remaining-tokens": "199642"}},
                "messages": "redacted-by-litellm",
                "response": "redacted-by-litellm",
                "error_str": None,
            }
        )
    return json.dumps(rows).encode()
