"""Files of usage: every format recognised by what it says, read in slices, stored once however often they come."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from collector import commands, usagefiles
from collector.capture.event import Defaults
from collector.commands import Desk, Import
from collector.ingest import Ingest, Verdict
from models.errors import InvalidInput
from models.store import Store

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def desk(sqlite_store: Store) -> Iterator[tuple[Desk, list[str]]]:
    said: list[str] = []
    ingest = Ingest(sqlite_store, now=lambda: NOW)
    ingest.start()
    yield Desk(sqlite_store, ingest, lambda: NOW, said.append, lambda _done, _whole: None), said
    ingest.stop()


def brought_in(desk: tuple[Desk, list[str]], *files: str | Path, **options: Any) -> tuple[int, list[str]]:
    """The exit code and what was said."""
    desk[1].clear()
    options = {"workspace": "ws-east", "deployment": "llama-chat"} | options
    return commands.run(Import("usage", [str(file) for file in files], **options), desk[0]), list(desk[1])


def counted(store: Store) -> tuple[int, int, int]:
    """Events, input tokens, output tokens."""
    with store.read() as session:
        found = session.execute(sa.text("SELECT COUNT(*), COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0) FROM usage_event")).one()
    return int(found[0]), int(found[1]), int(found[2])


def event(number: int, **overrides: Any) -> dict[str, Any]:
    return {
        "id": f"call-{number}",
        "time": "2026-11-20T09:00:00Z",
        "workspace": "ws-east",
        "deployment": "d",
        "input_tokens": 5,
        "output_tokens": 6,
    } | overrides


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


# The format that is recognised, and what is counted: events, input and output tokens. Figures are those of the fixtures.
SAMPLES: dict[str, tuple[str, int, int, int]] = {
    "openai/azure-openai-chat.json": ("openai", 1, 15, 24),
    "openai/azure-openai-stream-no-usage.sse": ("openai", 1, 0, 0),
    "openai/mslearn-serverless-stream.sse": ("openai", 1, 19, 72),
    "openai/mslearn-content-filter-400.json": ("openai", 1, 0, 0),
    "openai/synthetic-429.json": ("openai", 1, 0, 0),
    "openai/synthetic-n3-cached.json": ("openai", 1, 1500, 96),
    "litellm/captured-010-litellm-json_array.body": ("litellm", 2, 4119, 216),
    "litellm/captured-017-litellm-webhook-budget_crossed.body": ("litellm", 0, 0, 0),
    "otlp/captured-001-otel-openllmetry.body": ("otlp-traces", 9, 4184, 504),
    "otlp/captured-022-langfuse-py.body": ("otlp-traces", 1, 47, 21),
    "otlp/captured-026-js-otlp-json.body": ("otlp-traces", 1, 640, 512),
    "otlp/rendered-001-otel-openllmetry.json": ("otlp-traces", 9, 4184, 504),
    "otlp/captured-008-otel-contribv2-default.body": ("otlp-logs", 0, 0, 0),
    "otlp/captured-028-js-otlp-json.body": ("otlp-logs", 1, 640, 512),
    "otlp/captured-002-otel-openllmetry.body": ("otlp-metrics", 0, 0, 0),
    "otlp/captured-027-js-otlp-json.body": ("otlp-metrics", 0, 0, 0),
    "cloudevents/captured-013-litellm-openmeter.body": ("cloudevents", 1, 19, 72),
    "cloudevents/captured-024-openmeter-py-events.body": ("cloudevents", 2, 107, 50),
    "azure_usage/eventhub-ai-hub-gateway-usage-record.json": ("azure", 1, 15000, 5000),
    "azure_usage/eventhub-chargeback-record.json": ("azure", 1, 12, 3),
    "azure_usage/eventhub-diagnostic-gatewayllmlogs.json": ("azure", 1, 820, 64),
    "azure_usage/loganalytics-apimanagementgatewayllmlog.json": ("azure", 2, 920, 73),
    "azure_usage/amlonlineendpointtrafficlog.ndjson": ("azure", 2, 0, 0),
    "azure_usage/appinsights-custommetrics.json": ("azure", 0, 0, 0),
    "other/helicone-webhook.json": ("helicone", 1, 812, 45),
    "other/portkey-export.jsonl": ("portkey", 1, 210, 33),
    "other/envoy-ai-gateway-access.ndjson": ("envoy", 1, 210, 33),
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_sample_is_recognised_and_stored_once(desk: tuple[Desk, list[str]], name: str) -> None:
    kind, events, sent, got = SAMPLES[name]
    code, said = brought_in(desk, DATA / name)
    assert code == 0, said
    if events or kind in {"otlp-metrics", "azure"}:
        assert any(f"({kind})" in text for text in said), said
    assert counted(desk[0].store) == (events, sent, got)
    assert brought_in(desk, DATA / name)[0] == 0
    assert counted(desk[0].store) == (events, sent, got)


@pytest.mark.parametrize("name", ["otlp/captured-002-otel-openllmetry.body", "azure_usage/appinsights-custommetrics.json"])
def test_metrics_are_kept_as_witnesses_and_never_counted(desk: tuple[Desk, list[str]], name: str) -> None:
    for _ in range(2):
        assert brought_in(desk, DATA / name)[0] == 0
    assert counted(desk[0].store) == (0, 0, 0)
    with desk[0].store.read() as session:
        assert session.scalar(sa.text("SELECT COUNT(*) FROM witness_point")) == {"otlp": 7, "azur": 2}[name[:4]]


def test_a_packed_file_is_unpacked_and_a_cut_one_is_named(desk: tuple[Desk, list[str]], tmp_path: Path) -> None:
    whole, cut = tmp_path / "usage.ndjson.gz", tmp_path / "cut.gz"
    whole.write_bytes(gzip.compress(lines(*(event(number) for number in range(30)))))
    cut.write_bytes(whole.read_bytes()[:60])
    assert brought_in(desk, whole)[1] == ["usage: 30 events stored, 0 were there already, 0 refused"]
    with pytest.raises(InvalidInput, match=r"cut\.gz is no whole gzip file"):
        brought_in(desk, cut)


def test_lines_of_several_formats_stand_in_one_file(desk: tuple[Desk, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_USAGE_SLICE", 300)
    helicone = json.loads((DATA / "other" / "helicone-webhook.json").read_bytes())
    chat = json.loads((DATA / "openai" / "azure-openai-chat.json").read_bytes())
    portkey = json.loads((DATA / "other" / "portkey-export.jsonl").read_bytes())
    file = tmp_path / "mixed.ndjson"
    file.write_bytes(lines(event(1), helicone, event(2), chat) + b'{"id": "broken"\n\n' + lines(portkey, event(3, input_tokens=-1)))
    code, said = brought_in(desk, file)
    assert code == 1
    assert [text.split(": ")[:2] for text in said[:2]] == [["mixed.ndjson, line 5", "malformed"], ["mixed.ndjson, line 8", "invalid_value"]]
    assert said[2] == "mixed.ndjson (helicone, native, openai, portkey): 5 events stored, 0 were there already, 2 refused"
    assert counted(desk[0].store) == (5, 5 + 812 + 5 + 15 + 210, 6 + 45 + 6 + 24 + 33)


def test_slices_change_nothing(desk: tuple[Desk, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that are made from the content are the same whichever slice an item is in."""
    portkey = json.loads((DATA / "other" / "portkey-export.jsonl").read_bytes())
    file = tmp_path / "no-ids.ndjson"
    file.write_bytes(lines(*({**portkey, "id": None, "req_units": number, "total_units": None} for number in range(40))))
    assert brought_in(desk, file)[1][-1] == "usage: 40 events stored, 0 were there already, 0 refused"
    for size in (100, 1_000, 7_777):
        monkeypatch.setattr(commands, "_USAGE_SLICE", size)
        assert brought_in(desk, file)[1][-1] == "usage: 0 events stored, 40 were there already, 0 refused"


def test_rows_of_one_call_meet_across_slices(desk: tuple[Desk, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_USAGE_SLICE", 100)

    def row(call: str, number: int, **counts: Any) -> dict[str, Any]:
        said = {"TimeGenerated": "2026-11-19T08:20:00Z", "CorrelationId": call, "DeploymentName": "llama-70b", "SequenceNumber": number}
        return said | {"_ResourceId": "/s/apim", "Type": "ApiManagementGatewayLlmLog", "RequestMessages": "[1]"} | counts

    counts = {"PromptTokens": 820, "CompletionTokens": 64, "TotalTokens": 884}
    file = tmp_path / "apim.ndjson"
    file.write_bytes(lines(row("a", 1), row("b", 1), row("b", 0, **counts), row("b", 2), row("a", 0, **counts), row("c", 1)))
    code, said = brought_in(desk, file)
    assert (code, said[-1]) == (0, "usage: 3 events stored, 0 were there already, 0 refused")
    assert "3 were no usage" in said[0]
    assert counted(desk[0].store) == (3, 1640, 128)  # "c" has no counts anywhere: it is unknown, not zero


def test_the_chunks_of_a_stream_one_a_line_are_one_call(desk: tuple[Desk, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_USAGE_SLICE", 150)

    def chunk(call: str, **more: Any) -> dict[str, Any]:
        return {"id": call, "object": "chat.completion.chunk", "model": "llama", "created": 1_795_168_000, "choices": [{"index": 0, "delta": {}}]} | more

    ended = {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    file = tmp_path / "chunks.ndjson"
    file.write_bytes(lines(chunk("a"), chunk("a"), chunk("a", **ended), chunk("b"), chunk("b", **ended), chunk("b")))
    assert brought_in(desk, file)[1][-1] == "usage: 2 events stored, 0 were there already, 0 refused"
    assert counted(desk[0].store) == (2, 14, 4)


@pytest.mark.parametrize("content", [b"words\nand more words\n", b'{"what": 1}\n{"what": 2}\n', b"[1, 2]", b'{"what": 1}'])
def test_a_file_of_no_format_is_refused_with_the_formats(desk: tuple[Desk, list[str]], tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"notes\.txt is in none of the formats that are read \(native, openai, litellm, .*say which with --format"):
        brought_in(desk, file)


def test_the_format_can_be_said(desk: tuple[Desk, list[str]], tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(lines({"input_tokens": 5, "start_time": "2026-11-19T09:10:00Z", "llm_input_token": "5", "x-request-id": "r"}, {"what": 1}))
    code, said = brought_in(desk, file, format="envoy")
    assert (code, said[0].split(": ")[:2]) == (1, ["log.txt, line 2", "schema_invalid"])
    with pytest.raises(InvalidInput, match=r"there is no usage format 'csv'; it is one of native, openai"):
        brought_in(desk, file, format="csv")


def test_what_no_event_says_is_said_once_for_all(desk: tuple[Desk, list[str]]) -> None:
    file = DATA / "other" / "helicone-webhook.json"
    code, said = brought_in(desk, file, workspace=None)
    assert (code, "workspace is missing" in said[0]) == (1, True)
    assert brought_in(desk, file, source="helicone")[0] == 0
    with desk[0].store.read() as session:
        asked = "SELECT w.name, u.deployment, s.name FROM usage_series u JOIN workspace w ON w.id = u.workspace_id JOIN usage_source s ON s.id = u.source_id"
        assert [tuple(row) for row in session.execute(sa.text(asked))] == [("ws-east", "llama-chat", "helicone")]


def test_an_empty_file_is_nothing(desk: tuple[Desk, list[str]], tmp_path: Path) -> None:
    file = tmp_path / "empty.ndjson"
    file.write_bytes(b"\n \n")
    assert brought_in(desk, file) == (0, ["usage: 0 events stored, 0 were there already, 0 refused"])


def test_memory_is_bounded_by_the_slice_not_by_the_file(tmp_path: Path) -> None:
    """Twenty times the lines take no more memory: they are read and let go slice by slice."""

    class Store:
        def accept(self, batch: Any) -> Any:
            return Verdict(accepted=len(batch.items))

    def peak(count: int) -> int:
        file = tmp_path / f"{count}.ndjson.gz"
        with gzip.open(file, "wb") as stream:
            for number in range(count):
                stream.write(lines(event(number, tags={"note": "x" * 200})))
        reader = usagefiles.Reader(Store(), received_at=lambda: 0, keep=lambda _points: None, defaults=Defaults(), slice_size=64 * 1024)  # type: ignore[arg-type]
        tracemalloc.start()
        outcome = usagefiles.load(file, reader, lambda _done: None)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert outcome.accepted == count
        return found

    few, many = peak(500), peak(10_000)
    assert many < few * 2 + 1_000_000
