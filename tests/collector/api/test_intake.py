"""What came in at the door: counts by sender and hour, and samples of what was refused that hold nothing of what was sent."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import sqlalchemy as sa

from tests.collector.api.serving import Service, bearer

SECRET = "canaryofaprompt8c1f4e7a92b35d60"


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"call-{number}", "time": "2026-11-20T09:59:00Z", "workspace": "ws-a", "deployment": "chat", "source": "gateway", **more}


def asked(service: Service, key: str | None = None) -> dict[str, Any]:
    answer = service.client.get("/v1/intake?from=2026-11-20&to=2026-11-21", headers=bearer(key) if key else {})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_what_arrived_is_counted_by_sender_and_hour_with_the_share_of_missing_tokens(service_on_both: Service) -> None:
    service = service_on_both
    counted = {"input_tokens": 10, "output_tokens": 2}
    service.client.post("/v1/usage", json=[event(1, **counted), event(2, **counted), event(3), event(4, status="throttled")])
    service.client.post("/v1/usage", json=[event(1, **counted), event(2, input_tokens=11, output_tokens=2), event(5, prompt="x"), event(6, input_tokens=-1)])
    service.later(hours=1)
    service.client.post("/v1/usage", json=event(7, **counted))
    found = asked(service)
    assert found["hours"] == [
        {"period_start": "2026-11-20T10:00:00Z", "accepted": 4, "duplicates": 1, "conflicts": 1, "rejected": 2},
        {"period_start": "2026-11-20T11:00:00Z", "accepted": 1, "duplicates": 0, "conflicts": 0, "rejected": 0},
    ]
    (line,) = found["senders"]
    # A call that was throttled has no tokens to say: one of five is missing.
    assert line == {
        "key_id": None, "key": None, "source": "gateway", "format": "native", "accepted": 5, "duplicates": 1, "conflicts": 1, "rejected": 2,
        "ignored": 0, "missing_tokens": 1, "estimated_tokens": 0, "missing_token_share": "0.2",
    }  # fmt: skip


def test_a_batch_taken_by_columns_counts_its_missing_tokens_too(service: Service) -> None:
    events = [event(number, **({} if number < 50 else {"input_tokens": 1, "output_tokens": 1})) for number in range(200)]
    service.client.post("/v1/usage", json=events)
    (line,) = asked(service)["senders"]
    assert (line["source"], line["accepted"], line["missing_tokens"], line["missing_token_share"]) == ("gateway", 200, 50, "0.25")


def test_a_refusal_is_kept_as_its_shape_with_index_message_and_fix(service_on_both: Service) -> None:
    service = service_on_both
    refused = event(2, prompt=SECRET, input_tokens=3, tags={"cost": "a"}, **{SECRET: 1, "what was asked": [1, 2]})
    service.client.post("/v1/usage", json=[event(1), refused])
    (one,) = asked(service)["refused"]
    assert (one["error"], one["events"], one["format"], one["source"]) == ("schema_invalid", 1, "native", "gateway")
    assert one["fix"].startswith("Rename, add or leave out the field that the message names")
    (sample,) = one["samples"]
    assert (sample["index"], sample["seen_at"]) == (1, "2026-11-20T10:00:00Z")
    assert sample["detail"].startswith("unknown field 'prompt'")
    text = "string"
    assert sample["shape"] == {
        "id": text, "time": text, "workspace": text, "deployment": text, "source": text, "prompt": text, "input_tokens": "integer",
        "tags": {"cost": text}, "…": "array of 2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "headers", "body", "said"),
    [
        ("/v1/usage", {"content-type": "text/csv"}, b"id", ("unsupported_media_type", None)),
        ("/v1/usage", {"content-encoding": "br"}, b"{}", ("unsupported_encoding", None)),
        ("/v1/usage", {"content-encoding": "gzip"}, gzip.compress(b" " * (17 * 1024 * 1024)), ("too_large", None)),
        ("/v1/usage", {}, b'{"id": ', ("malformed", None)),
        ("/v1/usage", {}, json.dumps([event(1, time="yesterday " + SECRET)]).encode(), ("invalid_time", 0)),
        ("/v1/usage", {}, json.dumps([event(1, input_tokens=2**63)]).encode(), ("invalid_value", 0)),
        ("/v1/usage/litellm", {}, json.dumps([{"usage": "Usage(completion_tokens=21)", "model": SECRET, "startTime": "x"}]).encode(), (None, 0)),
        ("/v1/usage/openai", {}, json.dumps([{"request": {"messages": [SECRET]}, "response": {SECRET: SECRET}}]).encode(), ("schema_invalid", 0)),
        ("/v1/usage/azure", {}, json.dumps({"records": [{"category": SECRET}, {SECRET: SECRET}]}).encode(), (None, None)),
        ("/api/v1/events", {}, json.dumps([{"specversion": "0.3", "id": SECRET, "type": "t", "source": "s"}]).encode(), ("unsupported_version", 0)),
        ("/otlp/v1/traces", {"content-type": "application/json"}, b"[" + json.dumps(SECRET).encode() + b"]", ("malformed", None)),
    ],
)
def test_every_class_of_refusal_has_a_sample_without_what_was_sent(
    service: Service, path: str, headers: dict[str, str], body: bytes, said: tuple[str | None, int | None]
) -> None:
    service.client.post(path, content=body, headers={"content-type": "application/json", **headers})
    found = asked(service)
    assert found["refused"], found
    one = found["refused"][0]
    assert one["events"] >= 1
    assert one["samples"][0]["detail"]
    assert one["fix"]
    if said[0] is not None:
        assert (one["error"], one["samples"][0]["index"]) == said
    with service.store.read() as session:
        kept = repr([list(session.execute(sa.text(f"SELECT * FROM {table}"))) for table in ("intake_hour", "intake_sample")])
    assert SECRET not in kept
    assert SECRET not in json.dumps(found)
    assert SECRET not in service.client.get("/metrics").text


def test_who_has_no_key_or_the_wrong_one_is_counted_at_the_door(service: Service) -> None:
    admin, reader, sender = service.key(), service.key("read"), service.key("ingest", "ws-a")
    service.client.post("/v1/usage", json=event(1), headers=bearer("mb_nobody_" + SECRET))
    service.client.post("/v1/usage", json=event(1), headers=bearer(reader))
    service.client.post("/v1/usage", json=event(1, workspace="ws-b"), headers=bearer(sender))
    service.client.post("/v1/costs", headers=bearer(sender))
    refused = {one["error"]: (one["key"], one["events"], one["samples"][0]["index"]) for one in asked(service, admin)["refused"]}
    assert refused == {"unauthorized": (None, 1, None), "forbidden": ("a read key", 1, None), "forbidden_workspace": ("a ingest key", 1, 0)}


def test_a_reader_of_some_workspaces_sees_the_keys_of_no_others(service: Service) -> None:
    service.key()
    reader = service.key("read", "ws-a", "ws-c")
    for key in (service.key("ingest", "ws-a"), service.key("ingest", "ws-a", "ws-b"), service.key("ingest")):
        service.client.post("/v1/usage", json=event(1), headers=bearer(key))
    found = asked(service, reader)
    assert [(one["key"], one["accepted"]) for one in found["senders"]] == [("a ingest key", 1)]
    assert [hour["duplicates"] for hour in found["hours"]] == [0]


def test_metrics_count_by_format_and_outcome(service: Service) -> None:
    service.client.post("/v1/usage", json=[event(1), event(2, prompt="x")])
    service.client.post("/v1/usage/litellm", content=b"not json", headers={"content-type": "application/json"})
    lines = [line for line in service.client.get("/metrics").text.splitlines() if line.startswith("meterbridge_intake_events_total")]
    assert lines == [
        'meterbridge_intake_events_total{format="litellm",outcome="malformed"} 1',
        'meterbridge_intake_events_total{format="native",outcome="accepted"} 1',
        'meterbridge_intake_events_total{format="native",outcome="missing"} 1',
        'meterbridge_intake_events_total{format="native",outcome="schema_invalid"} 1',
    ]
