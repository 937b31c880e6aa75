"""Azure's own logs and gateway records: each sample with the events that it must become, and no secret or message of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.capture import aggregates, azure
from collector.capture.aggregates import Point
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from models.errors import InvalidInput
from models.usage import Flag, Operation, Quality, Status
from models.witnesses import Measure

DATA = Path(__file__).parents[2] / "data" / "azure_usage"
# 2026-11-20T10:00:00Z
TEN_O_CLOCK = 1_795_168_800_000_000
# 2026-11-19T08:20:00Z
EIGHT_TWENTY = 1_795_076_400_000_000
SERVICE = "/subscriptions/00000000-0000-0000-0000-000000000001/resourcegroups/rg-ai/providers/microsoft.apimanagement/service/apim-dev"


# The request says no max_tokens, and the answer is not longer than what Azure then grants.
DEFAULT_LIMIT: dict[str, str | int | bool | None] = {"max_tokens": 16, "max_tokens_source": "default"}


def capture(body: Any, *, media_type: str | None = None, defaults: Defaults | None = None) -> list[Item]:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return azure.capture(raw, media_type=media_type, headers={}, defaults=defaults or Defaults(), received_at=TEN_O_CLOCK)


def one(body: Any, **said: Any) -> CapturedEvent:
    (item,) = capture(body, **said)
    assert isinstance(item, CapturedEvent), item
    return item


def refusal(body: Any) -> Refusal:
    (item,) = capture(body)
    assert isinstance(item, Refusal), item
    return item


def without(record: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (record | changes).items() if value != "absent"}


def llm_row(**changes: Any) -> dict[str, Any]:
    """A row of ApiManagementGatewayLlmLog as a query gives it."""
    said = {
        "TimeGenerated": "2026-11-19T08:20:00Z",
        "CorrelationId": "c-1",
        "DeploymentName": "llama-70b",
        "ModelName": "llama",
        "PromptTokens": 820,
        "CompletionTokens": 64,
        "TotalTokens": 884,
        "IsStreamCompletion": False,
        "SequenceNumber": 0,
        "RequestId": "chatcmpl-1",
        "_ResourceId": "/s/apim",
        "Type": "ApiManagementGatewayLlmLog",
    }
    return without(said, changes)


def message_row(**changes: Any) -> dict[str, Any]:
    nothing = {"DeploymentName": "", "ModelName": "", "RequestId": "", "PromptTokens": None, "CompletionTokens": None, "TotalTokens": None}
    return llm_row(**nothing | {"SequenceNumber": 1, "RequestMessages": "[]"} | changes)


def traffic(**changes: Any) -> dict[str, Any]:
    said = {
        "TimeGenerated": "2026-11-19T08:20:00Z",
        "Method": "POST",
        "Path": "/v1/chat/completions",
        "ResponseCode": "200",
        "XRequestId": "x-1",
        "TotalDurationMs": 1830,
        "AzureMLWorkspaceId": "w-1",
        "AzureMLWorkspaceName": "ws-retail",
        "EndpointName": "llama-mc",
        "DeploymentName": "blue",
    }
    return without(said, changes)


def hub(**changes: Any) -> dict[str, Any]:
    said = {
        "id": "line-1",
        "timestamp": "5/24/2026 2:45:56 PM",
        "targetService": "chat.completion",
        "deploymentName": "chat",
        "model": "llama",
        "promptTokens": 15,
        "responseTokens": 5,
        "totalTokens": 20,
    }
    return without(said, changes)


def chargeback(**changes: Any) -> dict[str, Any]:
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "model": "llama", "choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3}}
    said = {"eventTime": "2026-11-19T08:20:00.1234567Z", "apiOperation": "ChatCompletions_Create", "request": "{}", "response": json.dumps(answer)}
    return without(said, changes)


def witness(name: str, measure: Measure, value: int) -> Point:
    """What the policy's metric tells of the minute of the sample."""
    digest = aggregates.digest_of(
        "appinsights", None, name, None, [("api id", "llama-api"), ("backend id", "llama-31-70b"), ("subscription id", "team-invoices")]
    )
    return Point(
        aggregates.REASON,
        kind="appinsights",
        name=name,
        measure=measure,
        temporality="delta",
        service="API Management llama-api",
        digest=digest,
        time=1_795_078_860_000_000,
        value=value,
        deployment="llama-31-70b",
    )


def of_gateway(call: str, sent: int, got: int, time: int, **changes: Any) -> CapturedEvent:
    said: dict[str, Any] = {"deployment": "llama-31-70b", "model": "Meta-Llama-3.1-70B-Instruct", "input_tokens": sent, "output_tokens": got}
    return CapturedEvent(id=f"{SERVICE}:{call}", time=time, **said | changes)


PART = Ignored("a part of a call's messages; its counts stand in another row")
FIRST_CALL, SECOND_CALL = "c0ffee00-0000-0000-0000-000000000001", "c0ffee00-0000-0000-0000-000000000002"
FIRST = of_gateway(
    FIRST_CALL,
    820,
    64,
    EIGHT_TWENTY,
    details={"source_format": "apim_llm_log", "response_id": "chatcmpl-dev-apim-1", "request_id": FIRST_CALL, "stream": False},
)
SAMPLES: dict[str, list[Item]] = {
    # The same call by two ways is the same event: the same id, the same content.
    "eventhub-diagnostic-gatewayllmlogs.json": [FIRST, PART, PART],
    "loganalytics-apimanagementgatewayllmlog.json": [
        FIRST,
        of_gateway(
            SECOND_CALL,
            100,
            9,
            EIGHT_TWENTY + 70_000_000,
            quality=Quality.ESTIMATED,
            details={"source_format": "apim_llm_log", "request_id": SECOND_CALL, "stream": True},
        ),
    ],
    "amlonlineendpointtrafficlog.ndjson": [
        CapturedEvent(
            id="22222222-0000-0000-0000-000000000002:11111111-aaaa-4bbb-8ccc-000000000001",
            time=1_795_078_801_830_000,
            started_at=1_795_078_800_000_000,
            workspace="ws-retail",
            endpoint="llama-mc",
            deployment="blue",
            operation=Operation.OTHER,
            quality=Quality.MISSING,
            flags=Flag.USAGE_MISSING,
            details={"source_format": "aml_traffic_log", "request_id": "11111111-aaaa-4bbb-8ccc-000000000001", "http_status": 200, "duration_ms": 1830},
        ),
        CapturedEvent(
            id="22222222-0000-0000-0000-000000000002:11111111-aaaa-4bbb-8ccc-000000000002",
            time=1_795_078_801_830_000,
            started_at=1_795_078_800_000_000,
            workspace="ws-retail",
            endpoint="llama-mc",
            deployment="blue",
            operation=Operation.OTHER,
            status=Status.THROTTLED,
            details={
                "source_format": "aml_traffic_log",
                "request_id": "11111111-aaaa-4bbb-8ccc-000000000002",
                "http_status": 429,
                "throttled_by": "azure",
                "duration_ms": 1830,
            },
        ),
    ],
    "eventhub-ai-hub-gateway-usage-record.json": [
        CapturedEvent(
            id="chatcmpl-9TVtj333ld9WDBiRh9qvLE9ZpA",
            time=1_716_561_956_000_000,
            deployment="chat",
            model="gpt-35-turbo",
            application="AI-Retail",
            input_tokens=15_000,
            output_tokens=5_000,
            flags=Flag.COERCED,
            details={"source_format": "apim_eventhub", "app_id": "11115293-844b-456f-8dbc-0c2d78e3e307", "apim_subscription": "master"},
        )
    ],
    "eventhub-chargeback-record.json": [
        CapturedEvent(
            id="chatcmpl-dev-cb",
            time=1_795_076_130_123_456,
            model="Meta-Llama-3.1-70B-Instruct",
            input_tokens=12,
            output_tokens=3,
            details={"source_format": "apim_eventhub", "response_id": "chatcmpl-dev-cb", "finish_reason": "stop", "choices": 1, **DEFAULT_LIMIT},
        )
    ],
    "appinsights-custommetrics.json": [
        witness("Prompt Tokens", "input", 920),
        witness("Completion Tokens", "output", 73),
        Ignored("a metric that is no count of tokens, or the sum of others"),
    ],
}


def test_every_sample_has_an_expectation() -> None:
    assert {path.name for path in DATA.iterdir()} == set(SAMPLES)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_sample_becomes_its_events(name: str) -> None:
    assert capture((DATA / name).read_bytes()) == SAMPLES[name]


def test_records_are_read_however_they_are_wrapped() -> None:
    row = llm_row()
    found = one(row)
    assert (found.id, found.time, found.started_at, found.deployment, found.input_tokens) == ("/s/apim:c-1", EIGHT_TWENTY, None, "llama-70b", 820)
    line = json.dumps(row)
    table = {"name": "PrimaryResult", "columns": [{"name": name, "type": "string"} for name in row], "rows": [list(row.values())]}
    record = {"time": row.pop("TimeGenerated"), "resourceId": "/S/APIM", "category": "GatewayLlmLogs", "correlationId": "c-1", "properties": row}
    for body in ({"records": [record]}, [{"records": [record]}], {"tables": [table]}, [record | {"properties": json.dumps(row)}], f"{line}\n"):
        assert capture(body) == [found]
    assert capture(f"{line}\n{line}", media_type="application/x-ndjson") == [found, found]
    assert capture({"records": []}) == capture({"tables": []}) == capture([]) == []


def test_the_row_with_the_counts_stands_for_its_call() -> None:
    whole = llm_row(ModelName="", RequestId="")
    other = llm_row(CorrelationId="c-2")
    items = capture([message_row(ModelName="llama", RequestId="chatcmpl-1"), whole, message_row(SequenceNumber=2), other])
    assert items == [PART, one(llm_row()), PART, one(other)]
    # Zeros are what a row of messages may hold, too.
    assert capture([llm_row(), message_row(PromptTokens=0, CompletionTokens=0, TotalTokens=0)]) == [one(llm_row()), PART]
    # A row that comes alone names no deployment and counts nothing.
    assert capture(message_row()) == [PART]
    # Delivered twice: the same event twice, for ingest to see. The other service's call is another one.
    assert capture([llm_row(), llm_row()]) == [one(llm_row())] * 2
    assert len({item.id for item in capture([llm_row(), llm_row(_ResourceId="/s/other")]) if isinstance(item, CapturedEvent)}) == 2


def test_a_call_without_counts_is_unknown_and_stands_once() -> None:
    nothing = {"PromptTokens": None, "CompletionTokens": None, "TotalTokens": None}
    first, second = capture([llm_row(**nothing), llm_row(**nothing)])
    assert isinstance(first, CapturedEvent)
    assert (first.input_tokens, first.output_tokens, first.quality, first.flags) == (None, None, Quality.MISSING, Flag.USAGE_MISSING)
    assert second == PART
    zeros = one(llm_row(PromptTokens=0, CompletionTokens=0, TotalTokens=0))
    assert (zeros.input_tokens, zeros.quality, zeros.flags) == (None, Quality.MISSING, Flag.USAGE_MISSING)
    assert one(llm_row(CompletionTokens=None)).quality is Quality.DERIVED


def test_rows_without_a_call_are_not_taken_together() -> None:
    items = capture([llm_row(CorrelationId=""), llm_row(CorrelationId="absent", PromptTokens=7), message_row(CorrelationId="")])
    assert [item.input_tokens if isinstance(item, CapturedEvent) else None for item in items] == [820, 7, None]
    assert [item.id for item in items if isinstance(item, CapturedEvent)] == [None, None]


@pytest.mark.parametrize(("said", "quality"), [(True, Quality.ESTIMATED), ("True", Quality.ESTIMATED), (False, Quality.REPORTED), (None, Quality.REPORTED)])
def test_the_gateway_estimates_what_it_streams(said: Any, quality: Quality) -> None:
    assert one(llm_row(IsStreamCompletion=said)).quality is quality


def test_a_streamed_call_without_counts_is_not_estimated() -> None:
    assert one(llm_row(IsStreamCompletion=True, PromptTokens=None, CompletionTokens=None, TotalTokens=None)).quality is Quality.MISSING


def test_azures_time_is_the_start() -> None:
    found = one(llm_row(DurationMs=1500, ResponseCode="200"))
    assert (found.started_at, found.time, found.details["duration_ms"], found.details["http_status"]) == (EIGHT_TWENTY, EIGHT_TWENTY + 1_500_000, 1500, 200)
    assert one(llm_row(TimeGenerated="absent")).time is None
    assert one(llm_row(TimeGenerated="1970-01-01T00:00:00Z", DurationMs=5)).time is None
    assert one(traffic(TotalDurationMs="1830.5")).time == EIGHT_TWENTY + 1_830_000
    assert one(traffic(TotalDurationMs=None)).started_at is None


@pytest.mark.parametrize(
    ("code", "of_model", "status"),
    [
        (200, 200, Status.SUCCESS),
        ("200", None, Status.SUCCESS),
        (429, 0, Status.THROTTLED),
        (424, 429, Status.THROTTLED),
        (424, 500, Status.ERROR),
        (503, None, Status.ERROR),
        (None, None, Status.INCOMPLETE),
        (0, None, Status.INCOMPLETE),
    ],
)
def test_traffic_of_an_endpoint_has_an_outcome_and_no_tokens(code: Any, of_model: Any, status: Status) -> None:
    found = one(traffic(ResponseCode=code, ModelStatusCode=of_model))
    is_unknown = status in {Status.SUCCESS, Status.INCOMPLETE}
    assert (found.status, found.operation, found.input_tokens, found.output_tokens) == (status, Operation.OTHER, None, None)
    assert (found.quality, found.flags) == ((Quality.MISSING, Flag.USAGE_MISSING) if is_unknown else (Quality.REPORTED, Flag.NONE))


@pytest.mark.parametrize("changes", [{"Method": "GET"}, {"Method": "head"}, {"Path": "/health"}, {"Path": "/v1/healthz?full=1"}, {"Path": "/swagger.json"}])
def test_probes_are_no_calls(changes: dict[str, Any]) -> None:
    assert isinstance(capture(traffic(**changes))[0], Ignored)


def test_traffic_comes_as_a_resource_log_too() -> None:
    row = traffic()
    record = {"time": row.pop("TimeGenerated"), "category": "AmlOnlineEndpointTrafficLog", "resourceId": "/s/w", "properties": row}
    assert capture({"records": [record]}) == [one(traffic())]
    assert one(traffic(AzureMLWorkspaceId="", AzureMLWorkspaceName=""), defaults=Defaults(workspace="finance")).workspace == "finance"
    assert one(traffic(AzureMLWorkspaceId="")).id == "x-1"
    assert one(traffic(XRequestId="")).id is None


@pytest.mark.parametrize(
    ("said", "enqueued", "time"),
    [
        ("5/24/2026 2:45:56 PM", None, 1_779_633_956_000_000),
        ("24/05/2026 14:45:56", None, 1_779_633_956_000_000),
        ("24.05.2026 14:45:56", None, 1_779_633_956_000_000),
        ("5/24/2026 12:45:56 AM", None, 1_779_583_556_000_000),
        ("5/5/2026 12:00:00 PM", None, 1_777_982_400_000_000),
        ("2026-11-19T08:20:00", None, EIGHT_TWENTY),
        ("2026-11-19 08:20:00.5", None, EIGHT_TWENTY + 500_000),
        ("2026-11-19T10:20:00+02:00", None, EIGHT_TWENTY),
        # May the 4th or April the 5th: the hub's clock decides.
        ("5/4/2026 2:45:56 PM", "2026-05-04T14:46:04.1720000Z", 1_777_905_964_172_000),
        ("5/4/2026 2:45:56 PM", None, None),
        ("5/24/2026 13:45:56 PM", None, None),
        ("31/31/2026 10:00:00", None, None),
        ("soon", "2026-11-19T08:20:00Z", EIGHT_TWENTY),
        (None, None, None),
        ("5/24/1999 2:45:56 PM", None, None),
    ],
)
def test_a_time_in_a_culture_is_read_where_it_can_be_read_in_one_way(said: Any, enqueued: str | None, time: int | None) -> None:
    assert one(hub(timestamp=said, EventEnqueuedUtcTime=enqueued)).time == time


@pytest.mark.parametrize(
    ("counts", "tokens", "quality", "flags"),
    [
        (("1", "0", "1"), (None, None), Quality.MISSING, Flag.DEFAULT_VALUES | Flag.USAGE_MISSING),
        ((1, 0, 1), (None, None), Quality.MISSING, Flag.DEFAULT_VALUES | Flag.USAGE_MISSING),
        ((0, 0, 0), (None, None), Quality.MISSING, Flag.USAGE_MISSING),
        (("NA", "NA", ""), (None, None), Quality.MISSING, Flag.USAGE_MISSING),
        (("15", 5, 20), (15, 5), Quality.REPORTED, Flag.COERCED),
        ((15, 5, 21), (15, 5), Quality.REPORTED, Flag.TOTAL_MISMATCH),
        ((15, "NA", 20), (15, 5), Quality.DERIVED, Flag.NONE),
    ],
)
def test_what_a_policy_writes_where_it_found_nothing_is_unknown(counts: Any, tokens: tuple[int | None, int | None], quality: Quality, flags: Flag) -> None:
    found = one(hub(promptTokens=counts[0], responseTokens=counts[1], totalTokens=counts[2]))
    assert ((found.input_tokens, found.output_tokens), found.quality, found.flags) == (tokens, quality, flags)


def test_a_policys_record_says_na_for_nothing() -> None:
    found = one(
        hub(id="", model="NA", deploymentName="NA", productName="NA", endUserId="NA", subscriptionId="NA"),
        defaults=Defaults(workspace="w", endpoint="e", model="llama", application="app", user="u-1", source="hub"),
    )
    assert (found.id, found.model, found.endpoint, found.deployment, found.application) == (None, "llama", "e", None, "app")
    assert (found.workspace, found.source, found.details) == ("w", "hub", {"source_format": "apim_eventhub", "user": "u-1"})
    simple = {"timestamp": "2026-11-19T08:20:00Z", "appSubscriptionKey": "k", "promptTokens": "3", "completionTokens": "4", "totalTokens": "7"}
    assert (one(simple).input_tokens, one(simple).output_tokens, one(simple).time) == (3, 4, EIGHT_TWENTY)


@pytest.mark.parametrize(
    ("service", "operation"),
    [("list", Operation.EMBEDDINGS), ("text_completion", Operation.TEXT_COMPLETION), ("NA", Operation.CHAT), ("search", Operation.OTHER)],
)
def test_what_a_policy_says_was_called(service: str, operation: Operation) -> None:
    assert one(hub(targetService=service)).operation is operation


def test_a_record_with_the_whole_response_is_read_as_the_raw_format() -> None:
    found = one(chargeback(), defaults=Defaults(workspace="w", deployment="d"))
    assert (found.id, found.time, found.workspace, found.deployment, found.input_tokens) == ("chatcmpl-1", EIGHT_TWENTY + 123_456, "w", "d", 12)
    assert one(chargeback(deploymentName="chat"), defaults=Defaults(endpoint="e")).deployment == "chat"
    assert one(chargeback(response=json.loads(chargeback()["response"]))) == one(chargeback())
    chunks = [
        {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "llama", "choices": [{"index": 0, "finish_reason": "stop"}]},
        {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3}},
    ]
    streamed = one(chargeback(response="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"))
    assert (streamed.input_tokens, streamed.output_tokens, streamed.details["stream"]) == (12, 3, True)
    failed = one(chargeback(response="", status="429"))
    assert (failed.status, failed.input_tokens) == (Status.THROTTLED, None)
    assert refusal(chargeback(response="not json")).error == "malformed"
    capitals = {name[0].upper() + name[1:]: value for name, value in chargeback().items()}
    assert one(capitals) == one(chargeback())


@pytest.mark.parametrize(
    "record",
    [
        {"category": "GatewayLogs", "time": "2026-11-19T08:20:00Z", "resourceId": "/s", "properties": {"correlationId": "c-1", "responseCode": 200}},
        {"Type": "ApiManagementGatewayLogs", "TimeGenerated": "2026-11-19T08:20:00Z", "CorrelationId": "c-1", "_ResourceId": "/s"},
        {"count": 1, "total": 7, "metricName": "Requests", "resourceId": "/s", "time": "2026-11-19T08:20:00Z", "timeGrain": "PT1M"},
        {"Type": "AppMetrics", "Name": "Prompt Tokens", "Sum": 920, "ItemCount": 2, "TimeGenerated": "2026-11-19T08:20:00Z"},
    ],
)
def test_other_logs_and_metrics_are_ignored(record: dict[str, Any]) -> None:
    assert isinstance(capture({"records": [record]})[0], Ignored)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([7], "schema_invalid"),
        ({"records": [7]}, "schema_invalid"),
        ({"hello": 1}, "schema_invalid"),
        ({"tables": [7]}, "schema_invalid"),
        ({"tables": [{"columns": [{"name": "a"}], "rows": [[1, 2]]}]}, "schema_invalid"),
        (llm_row(PromptTokens=-1), "invalid_value"),
        (llm_row(PromptTokens=True), "invalid_value"),
        (llm_row(TimeGenerated="2026-11-19T08:20:00"), "invalid_time"),
        (llm_row(TimeGenerated=7), "invalid_time"),
        (llm_row(CorrelationId="a\0"), "invalid_value"),
        (llm_row(_ResourceId="r" * 1025), "invalid_value"),
        (llm_row(DeploymentName="d" * 257), "invalid_value"),
        (llm_row(ResponseCode="fine"), "invalid_value"),
        (traffic(ResponseCode="fine"), "invalid_value"),
        (traffic(TimeGenerated="soon"), "invalid_time"),
        (hub(promptTokens="many"), "invalid_value"),
        (hub(model="m\ud800"), "invalid_value"),
        (chargeback(response=7), "schema_invalid"),
    ],
)
def test_a_fault_is_refused_by_its_class(body: Any, error: str) -> None:
    assert refusal(body).error == error


@pytest.mark.parametrize("body", [b"", b"hello", b"{", b"\xff{}", b"[1", b'{"a":' * 20_000 + b"1" + b"}" * 20_000])
def test_a_body_that_cannot_be_read_is_malformed(body: bytes) -> None:
    with pytest.raises(InvalidInput) as fault:
        capture(body)
    assert fault.value.error == "malformed"


def test_a_bad_record_costs_no_neighbour() -> None:
    good = json.dumps(traffic())
    for bad in ("{oops}", '{"a":' * 20_000 + "1" + "}" * 20_000):
        for body in (f"[{good}, {bad}, {good}]", f"{good}\n{bad}\n{good}"):
            first, second, third = capture(body)
            assert isinstance(first, CapturedEvent)
            assert isinstance(second, Refusal)
            assert first == third


def test_a_call_of_very_many_rows_is_read_in_one_pass() -> None:
    rows = [message_row(SequenceNumber=number) for number in range(20_000)]
    items = capture([*rows, llm_row()])
    assert items[-1] == one(llm_row())
    assert items[:-1] == [PART] * 20_000


CANARY = "canary says: my password is swordfish"
KEPT = {
    "id",
    "time",
    "timestamp",
    "timegenerated",
    "eventtime",
    "eventenqueuedutctime",
    "resourceid",
    "_resourceid",
    "category",
    "correlationid",
    "modelname",
    "model",
    "deploymentname",
    "requestid",
    "endpointname",
    "xrequestid",
    "azuremlworkspaceid",
    "azuremlworkspacename",
    "prompttokens",
    "responsetokens",
    "totaltokens",
    "appid",
    "subscriptionid",
    "productname",
    "enduserid",
    "targetservice",
    "method",
    "name",
    "object",
    "finish_reason",
}
COLUMNS = {
    "SourceSystem": CANARY,
    "RequestMessages": CANARY,
    "ResponseMessages": [{"content": CANARY}],
    "appSubscriptionKey": CANARY,
    CANARY: {"deep": [CANARY]},
}


def planted(value: Any, name: str = "") -> Any:
    """The value with the canary in every text that could carry content or a secret, and in columns that nobody knows."""
    if isinstance(value, dict):
        if isinstance(value.get("rows"), list):
            columns = [*value["columns"], *({"name": column, "type": "string"} for column in COLUMNS)]
            return value | {"columns": columns, "rows": [[*row, *COLUMNS.values()] for row in value["rows"]]}
        return {key: planted(inner, key.lower()) for key, inner in value.items()} | (COLUMNS if name != "records" else {})
    if isinstance(value, list):
        return [planted(inner, "") for inner in value]
    if name == "response":
        return json.dumps(planted(json.loads(value)))
    return CANARY if isinstance(value, str) and name not in KEPT else value


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_nothing_that_was_said_and_no_secret_is_kept(name: str) -> None:
    text = (DATA / name).read_text()
    body = "\n".join(json.dumps(planted(json.loads(line))) for line in text.splitlines()) if name.endswith("ndjson") else json.dumps(planted(json.loads(text)))
    assert body.count(CANARY) > 5
    # A request that is all canary says nothing of its limit.
    assert [kept(item) for item in capture(body)] == [kept(item) for item in SAMPLES[name]]


def kept(item: Item) -> Item:
    if isinstance(item, Point):
        # Its identity is a digest of all it said; its names were all canary, and are left out.
        return dataclasses.replace(item, digest=b"", service="", deployment=None)
    if not isinstance(item, CapturedEvent):
        return item
    return msgspec.structs.replace(item, details={name: value for name, value in item.details.items() if name not in DEFAULT_LIMIT})


@pytest.mark.parametrize(
    "body",
    [
        CANARY,
        [CANARY],
        {CANARY: CANARY},
        {"records": [CANARY]},
        {"tables": [CANARY]},
        llm_row(TimeGenerated=CANARY),
        llm_row(PromptTokens=CANARY),
        llm_row(ResponseCode=CANARY),
        traffic(ResponseCode=CANARY),
        hub(promptTokens=CANARY),
        hub(timestamp=CANARY),
        chargeback(response=CANARY),
        chargeback(status=CANARY),
        chargeback(appSubscriptionKey=CANARY),
        {"category": CANARY},
    ],
)
def test_no_verdict_repeats_what_was_sent(body: Any) -> None:
    assert "swordfish" not in "\n".join(verdicts(json.dumps(body).encode()))


def verdicts(body: bytes, media_type: str | None = None) -> list[str]:
    """Each item's verdict in words, or that on the body."""
    try:
        items = capture(body, media_type=media_type)
    except InvalidInput as fault:
        return [f"{fault.error}: {fault.message}"]
    return [repr(item) for item in items]


FIELDS = [*llm_row(), *traffic(), *hub(), *chargeback(), "records", "tables", "rows", "columns", "properties", "category", "name", "valueSum", "DurationMs"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["GatewayLlmLogs", "1/2/2026 3:04:05 PM", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200) | st.text(alphabet='[]{}",:\\nul \n1', max_size=60).map(str.encode),
    st.sampled_from([None, "application/json", "application/x-ndjson"]),
)
def test_any_bytes_are_judged(body: bytes, media_type: str | None) -> None:
    assert all(verdicts(body, media_type))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON_VALUES, st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=4))
def test_anything_damaged_is_judged_and_its_neighbour_kept(value: Any, damage: dict[str, Any]) -> None:
    damage = {name: inner for name, inner in damage.items() if name not in {"records", "tables"}}
    records = [record | damage for record in (llm_row(), traffic(), hub(), chargeback())]
    found = verdicts(json.dumps({"records": [*records, value, traffic(XRequestId="neighbour")]}).encode())
    assert len(found) == 6
    assert found[-1] == repr(one(traffic(XRequestId="neighbour")))
    assert all(verdicts(json.dumps([value]).encode()))
    assert all(verdicts(json.dumps({"tables": value}).encode()))
    assert all(verdicts(json.dumps({"tables": [{"columns": value, "rows": value}]}).encode()))
