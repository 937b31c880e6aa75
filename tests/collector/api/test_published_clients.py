"""Clients as they are published, against a running service: their bytes, their idea of success, exact figures read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openmeter
import pytest
from cloudevents.conversion import to_binary, to_json, to_structured
from cloudevents.http import CloudEvent
from openmeter.models import Event
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from tests.collector.api.serving import Service, bearer

pytestmark = pytest.mark.walk

DATA = Path(__file__).resolve().parents[2] / "data"
HERE = {"x-meterbridge-workspace": "ws-east", "x-meterbridge-deployment": "llama-chat"}
TEN = datetime(2026, 11, 20, 9, tzinfo=UTC)


def stored(service: Service, key: str | None = None) -> list[tuple[Any, ...]]:
    """(id, input, output) of every event that the service gives back, by id."""
    answer = service.client.get("/v1/usage", params={"from": "2023-01-01", "to": "2030-01-01", "limit": 1000}, headers=bearer(key) if key else {})
    return sorted((one["id"], one["input_tokens"], one["output_tokens"]) for one in answer.json()["items"])


# --- CloudEvents -------------------------------------------------------------------------------------------------


def test_the_openmeter_client_takes_its_204(service: Service) -> None:
    client = openmeter.Client(endpoint=service.url, token="unused")
    data = {"model": "llama", "prompt_tokens": 12, "completion_tokens": 3}
    events = [Event(id=f"o-{number}", source="app", specversion="1.0", type="tokens", subject="team-a", time=TEN, data=data) for number in range(3)]
    for _ in range(2):
        client.events.ingest_event(events[0], headers=HERE)
        client.events.ingest_events(events[1:], headers=HERE)
        client.events.ingest_events_json(events, headers=HERE)
    assert stored(service) == [("o-0", 12, 3), ("o-1", 12, 3), ("o-2", 12, 3)]
    client.close()


def test_the_cloudevents_sdk_in_its_three_modes(service: Service) -> None:
    def event(number: int) -> CloudEvent:
        said = {"id": f"c-{number}", "source": "/app", "type": "llm.usage", "time": "2026-11-20T09:00:00Z"}
        return CloudEvent(said, {"model": "llama", "input_tokens": 10 + number, "output_tokens": 4})

    structured, binary = to_structured(event(1)), to_binary(event(2))
    batch = b"[" + b",".join(to_json(event(number)) for number in (1, 2, 3)) + b"]"
    sent = [structured, binary, ({"content-type": "application/cloudevents-batch+json"}, batch)]
    for headers, body in sent * 2:
        answer = service.client.post("/api/v1/events", content=body, headers={**headers, **HERE})
        assert (answer.status_code, answer.content) == (204, b"")
    assert stored(service) == [("c-1", 11, 4), ("c-2", 12, 4), ("c-3", 13, 4)]


@pytest.mark.parametrize("name", ["captured-029-js-cloudevents-structured", "captured-030-js-cloudevents-binary"])
def test_the_javascript_cloudevents_sdk_by_its_recorded_bytes(service: Service, name: str) -> None:
    folder = DATA / "cloudevents"
    recorded = json.loads((folder / f"{name}.meta.json").read_bytes())["headers"]
    headers = {key.lower(): value for key, value in recorded if key.lower().startswith(("ce-", "content-type"))}
    answer = service.client.post("/api/v1/events", content=(folder / f"{name}.body").read_bytes(), headers={**headers, **HERE})
    assert answer.status_code == 204
    assert [one[1:] for one in stored(service)] == [(20, 7) if "binary" in name else (10, 5)]


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/xml", "application/cloudevents+xml", "multipart/form-data; boundary=x", "application/x-protobuf"]
)
def test_events_in_another_content_type_are_415(service: Service, media_type: str) -> None:
    event = {"specversion": "1.0", "id": "a", "source": "s", "type": "llm.usage", "data": {"input_tokens": 1, "output_tokens": 1}}
    answer = service.client.post("/api/v1/events", content=json.dumps(event), headers={**HERE, "content-type": media_type})
    assert (answer.status_code, answer.headers["content-type"], answer.json()["error"]) == (415, "application/problem+json", "unsupported_media_type")
    assert stored(service) == []


def test_an_array_on_one_line_is_events_also_as_ndjson(service: Service) -> None:
    event = {"specversion": "1.0", "source": "s", "type": "llm.usage", "data": {"input_tokens": 1, "output_tokens": 1}}
    body = json.dumps([{**event, "id": "a"}, {**event, "id": "b"}])
    answer = service.client.post("/api/v1/events", content=body, headers={**HERE, "content-type": "application/x-ndjson"})
    assert (answer.status_code, len(stored(service))) == (204, 2)


# --- OpenTelemetry -----------------------------------------------------------------------------------------------


def resource() -> Resource:
    return Resource.create({"service.name": "invoice-rag", "meterbridge.workspace": "ws-east", "meterbridge.deployment": "llama-chat"})


@pytest.mark.parametrize("compression", [Compression.Gzip, Compression.NoCompression])
def test_spans_of_the_sdk_count_once_each(service: Service, compression: Compression) -> None:
    exporter = OTLPSpanExporter(endpoint=f"{service.url}/otlp/v1/traces", compression=compression)
    provider = TracerProvider(resource=resource())
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 99}):
        for number in range(3):
            said: dict[str, Any] = {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "azure.ai.inference",
                "gen_ai.request.model": "llama",
                "gen_ai.response.id": f"chatcmpl-{number}",
                "gen_ai.usage.input_tokens": 20 + number,
                "gen_ai.usage.output_tokens": 5,
                "gen_ai.response.finish_reasons": ["stop"],
            }
            with tracer.start_as_current_span("chat llama", kind=SpanKind.CLIENT, attributes=said), tracer.start_as_current_span("POST"):
                pass
    assert provider.force_flush()
    provider.shutdown()
    assert sorted(one[1:] for one in stored(service)) == [(20, 5), (21, 5), (22, 5)]
    items = service.client.get("/v1/usage", params={"from": "2023-01-01", "to": "2030-01-01"}).json()["items"]
    assert {(one["source_format"], one["finish_reason"], len(one["trace_id"]), len(one["span_id"])) for one in items} == {("otlp_span", "stop", 32, 16)}


def test_log_records_of_the_sdk_count_once(service: Service) -> None:
    provider = LoggerProvider(resource=resource())
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=f"{service.url}/otlp/v1/logs", compression=Compression.Gzip)))
    said: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.response.id": "chatcmpl-9",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
    }
    at = 1_795_164_600_000_000_000
    provider.get_logger("test").emit(LogRecord(timestamp=at, event_name="gen_ai.client.inference.operation.details", attributes=said))
    assert provider.force_flush()
    provider.shutdown()
    assert stored(service) == [("chatcmpl-9", 7, 2)]


def test_metrics_of_the_sdk_are_a_witness_told_twice_counted_once(service: Service) -> None:
    """The SDK sends its last values on a flush and again at the end; and a service in transition has two names for them."""
    service.at = datetime.now(UTC)  # the SDK has a clock of its own
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{service.url}/otlp/v1/metrics", compression=Compression.Gzip))
    provider = MeterProvider(metric_readers=[reader], resource=resource())
    meter = provider.get_meter("test")
    old = meter.create_histogram("gen_ai.client.token.usage", unit="{token}")
    new = meter.create_counter("gen_ai.client.inference.usage.input_tokens", unit="{token}")
    for tokens in (100, 150):
        old.record(tokens, {"gen_ai.token.type": "input", "gen_ai.response.model": "llama"})
        old.record(tokens, {"gen_ai.token.type": "total", "gen_ai.response.model": "llama"})
        new.add(tokens, {"gen_ai.response.model": "llama"})
    assert reader.force_flush()
    provider.shutdown()
    service.at = datetime.now(UTC)
    assert stored(service) == []
    day = service.at.date().isoformat()
    rows = service.client.get("/v1/witnesses", params={"from": day}).json()["rows"]
    assert [(one["deployment"], one["service"], one["measure"], one["witnessed"], one["counted"]) for one in rows] == [
        ("llama-chat", "invoice-rag", "input", 250, 0)
    ]
    service.later(hours=1)  # problems look at whole hours
    (problem,) = [one for one in service.client.get("/v1/problems").json()["items"] if one["kind"] == "witness_disagrees"]
    assert problem["subject"] == "ws-east / llama-chat: otlp invoice-rag"


def test_the_javascript_exporter_by_its_recorded_bytes(service: Service) -> None:
    """64-bit integers as numbers (``"intValue":640``), and counters as doubles."""
    for path, name in (("traces", "captured-026-js-otlp-json"), ("metrics", "captured-027-js-otlp-json"), ("logs", "captured-028-js-otlp-json")):
        body = (DATA / "otlp" / f"{name}.body").read_bytes()
        for _ in range(2):
            answer = service.client.post(f"/otlp/v1/{path}", content=body, headers={**HERE, "content-type": "application/json"})
            assert (answer.status_code, answer.json()) == (200, {})
    assert {one[1:] for one in stored(service)} == {(640, 512)}
    rows = service.client.get("/v1/witnesses", params={"from": "2026-11-01", "to": "2026-12-31"}).json()["rows"]
    assert {one["deployment"] for one in rows} <= {"llama-chat"}


def test_metrics_of_another_workspace_are_refused(service: Service) -> None:
    admin = service.key()
    secret = service.key("ingest", "ws-west")
    body = (DATA / "otlp" / "captured-027-js-otlp-json.body").read_bytes()
    headers = {**bearer(secret), "content-type": "application/json", "x-meterbridge-workspace": "ws-east"}
    answer = service.client.post("/otlp/v1/metrics", content=body, headers=headers)
    assert answer.status_code == 200
    assert int(answer.json()["partialSuccess"]["rejectedDataPoints"]) > 0
    with service.store.read() as session:
        assert session.connection().exec_driver_sql("SELECT COUNT(*) FROM witness_point").scalar() == 0
    assert stored(service, admin) == []


# --- LiteLLM -----------------------------------------------------------------------------------------------------

_LITELLM = """
import asyncio, os, sys
url, key = sys.argv[1:]
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENMETER_API_KEY": key, "OPENMETER_API_ENDPOINT": url}
import litellm
from litellm.integrations.generic_api.generic_api_callback import GenericAPILogger
from litellm.integrations.openmeter import OpenMeterLogger

async def called(model):
    await litellm.acompletion(model="azure_ai/" + model, api_key="k", api_base="https://llama-9.eastus2.models.ai.azure.com", user="u-7",
                              messages=[{"role": "user", "content": "canary prompt"}], mock_response="canary answer", max_tokens=64)

async def main():
    os.environ["GENERIC_LOGGER_ENDPOINT"] = url + "/v1/usage/litellm"
    for form in ("json_array", "ndjson", "single"):
        os.environ["GENERIC_LOGGER_HEADERS"] = f"Authorization=Bearer {key},x-meterbridge-source={form}"
        logger = GenericAPILogger(log_format=form)
        litellm.callbacks = [logger]
        for number in range(2):
            await called(f"llama-{number}")
        for _ in range(400):
            if len(logger.log_queue) == 2:
                break
            await asyncio.sleep(0.02)
        await logger.async_send_batch()
        assert not logger.log_queue
    done = asyncio.Event()

    class Told(OpenMeterLogger):
        async def async_log_success_event(self, *told, **named):
            await super().async_log_success_event(*told, **named)
            done.set()

    litellm.callbacks = [Told()]
    await called("llama-9")
    await asyncio.wait_for(done.wait(), 30)

asyncio.run(main())
"""


def test_litellm_with_its_callbacks(service: Service, tmp_path: Path) -> None:
    admin, secret = service.key(), service.key("ingest", "ws-east")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | {"HOME": str(tmp_path), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LITELLM, service.url, secret],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    items = service.client.get("/v1/usage", params={"from": "2023-01-01", "to": "2030-01-01"}, headers=bearer(admin)).json()["items"]
    told = sorted((one["source"], one["source_format"], one["model"], one["input_tokens"], one["output_tokens"]) for one in items)
    # 10 and 20 are what LiteLLM says of every mocked answer.
    assert told == [
        *((form, "litellm", f"llama-{number}", 10, 20) for form in ("json_array",) for number in range(2)),
        ("litellm-proxy", "cloudevents", "llama-9", 10, 20),
        *((form, "litellm", f"llama-{number}", 10, 20) for form in ("ndjson", "single") for number in range(2)),
    ]
    assert {one["max_tokens"] for one in items if one["source_format"] == "litellm"} == {64}
    assert "canary" not in json.dumps(items)


def test_a_client_that_is_not_there_yet_can_be_told_by_its_bytes(service: Service) -> None:
    """What every other format's own sender would do with the answer: a success without a body that surprises."""
    body = (DATA / "litellm" / "captured-012-litellm-ndjson.body").read_bytes()
    answer: httpx.Response = service.client.post("/v1/usage/litellm", content=body, headers={**HERE, "content-type": "application/json"})
    assert (answer.status_code, answer.json()["rejected"]) == (200, [])
