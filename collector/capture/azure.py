"""What Azure itself logs of ``POST /v1/usage/azure``: resource logs, query results, and records of gateway policies.

Takes Event Hubs batches (``{"records": […]}``), Log Analytics results (``{"tables": […]}``), arrays and lines, in which
each record speaks for itself:

- ``GatewayLlmLogs`` (API Management): the rows of one CorrelationId are one call; the row with the counts stands for it,
  the others (split messages) are ignored. Its time is the start of the call.
- ``AmlOnlineEndpointTrafficLog``: calls of a managed endpoint without token counts, as evidence of requests.
- records that a log-to-eventhub policy writes: counts (ai-hub-gateway), or a whole response (chargeback).
- Application Insights metrics: sums of what the others tell singly, so kept as a witness only.

Names of columns are compared without case: Event Hubs and Log Analytics spell them differently. Subscription keys,
messages, addresses of callers and identities are never taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from collector.capture import aggregates, bodies, openai, values
from collector.capture.event import CapturedEvent, Defaults, Ignored, Item, Refusal
from collector.capture.values import SECOND, Json, Tokens, Unfit
from models.errors import InvalidInput
from models.usage import Flag, Operation, Quality, Status

_LLM_LOG = frozenset({"gatewayllmlogs", "apimanagementgatewayllmlog"})
_TRAFFIC_LOG = "amlonlineendpointtrafficlog"
_COUNT_COLUMNS = frozenset({"prompttokens", "completiontokens", "responsetokens", "totaltokens"})
_LLM_COLUMNS = frozenset({"isstreamcompletion", "sequencenumber", "requestmessages", "responsemessages"})
# What only one row of a call may say: its deployment and model, and what the model called the request.
_NAMES = ("deploymentname", "modelname", "requestid")
_METRIC_COLUMNS = frozenset({"valuesum", "valuecount", "itemcount", "sum", "total"})
# Logs have one of these; what has none is no record of Azure at all.
_LOG_COLUMNS = frozenset({"category", "type", "resourceid", "_resourceid", "operationname", "timegenerated", "tenantid"})

_MAX_RESOURCE_ID = 1024
_NO_CALL_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PROBE_PATH = re.compile(r"(?:^|/)(?:health|healthz|livez|readyz|live|ready|liveness|readiness|ping|metrics|swagger\.json)/?\Z", re.IGNORECASE)
# The kinds of answers that a policy reads off the model's own.
_SERVICES = {
    "chat.completion": Operation.CHAT,
    "chat.completion.chunk": Operation.CHAT,
    "response": Operation.CHAT,
    "text_completion": Operation.TEXT_COMPLETION,
    "list": Operation.EMBEDDINGS,
    "embedding": Operation.EMBEDDINGS,
    "embeddings": Operation.EMBEDDINGS,
}
_EMPTY = frozenset({"", "NA", "N/A"})
# DateTime.ToString() of a gateway: month/day/year or day/month/year, as its culture has it; without a zone, but UTC.
_CULTURE_TIME = re.compile(r"(\d{1,2})[/.](\d{1,2})[/.](\d{4})[ ,]+(\d{1,2}):(\d\d):(\d\d)(?:[ \u00a0\u202f]?([AaPp])\.?[Mm]\.?)?\Z", re.ASCII)
_NAIVE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:\.\d{1,9})?)\Z", re.ASCII)
_MILLISECONDS = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?\Z")

# A record by its columns' names in lower case.
Row = Mapping[str, Any]


def capture(body: bytes, *, media_type: str | None, headers: Mapping[str, str], defaults: Defaults, received_at: int) -> list[Item]:  # noqa: ARG001 - as every format's
    """The calls that the records tell of, one item per record in the body's order."""
    text = bodies.trimmed(body)
    found = [values.loaded(piece) for piece in bodies.pieces(text, media_type=media_type)]
    if len(found) == 1 and text[:1] != b"[" and isinstance(found[0], Refusal):
        raise InvalidInput(found[0].detail, error=found[0].error)
    rows = [row for value in found for row in _rows(value)]
    if len(rows) > bodies.MAX_ITEMS:
        raise InvalidInput(f"the body holds {len(rows)} records and may hold {bodies.MAX_ITEMS}; send it in parts", error="too_large")
    calls = _Calls(rows)
    return [row if isinstance(row, Refusal) else _item(row, calls, defaults, received_at) for row in rows]


def is_mine(value: Json) -> bool:
    """Whether the object is a record of Azure or of a gateway's policy, or wraps some."""
    if isinstance(value.get("records"), list) or isinstance(value.get("tables"), list):
        return True
    row = _row(value)
    if isinstance(row, Refusal):
        return False
    if _is_llm_row(row) or _category(row) == _TRAFFIC_LOG or "xrequestid" in row or (isinstance(row.get("name"), str) and bool(row.keys() & _METRIC_COLUMNS)):
        return True
    if "response" in row:
        return bool(row.keys() & {"eventtime", "apioperation", "appsubscriptionkey"})
    return bool(row.keys() & _COUNT_COLUMNS) or bool(row.keys() & {"category", "resourceid", "_resourceid", "timegenerated"})


def call_of(value: Json) -> tuple[tuple[str, str], bool] | None:
    """The call that a single row of the gateway's log is of, and whether it has the counts; None for anything else."""
    row = _row(value)
    if isinstance(row, Refusal) or "records" in row or "tables" in row or not _is_llm_row(row) or not _call_key(row)[1]:
        return None
    return _call_key(row), _has_counts(row)


# --- records -----------------------------------------------------------------------------------------------------


def _rows(value: Any) -> Iterator[Row | Refusal]:
    """The records inside a value, whichever way they are wrapped."""
    if isinstance(value, Refusal):
        yield value
    elif not isinstance(value, dict):
        yield Refusal("schema_invalid", "not a record: expected an object")
    elif isinstance(value.get("records"), list):
        for record in value["records"]:
            yield _row(record)
    elif isinstance(value.get("tables"), list):
        for table in value["tables"]:
            yield from _table(table)
    else:
        yield _row(value)


def _row(record: Any) -> Row | Refusal:
    """A record with its properties beside its own columns, which win."""
    if not isinstance(record, dict):
        return Refusal("schema_invalid", "not a record: expected an object")
    own = {name.lower(): value for name, value in record.items()}
    properties = own.get("properties")
    if isinstance(properties, str):
        properties = values.loaded(properties)
    if isinstance(properties, dict):
        for name, value in properties.items():
            own.setdefault(name.lower(), value)
    return own


def _table(table: Any) -> Iterator[Row | Refusal]:
    columns, rows = (table.get("columns"), table.get("rows")) if isinstance(table, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(rows, list):
        yield Refusal("schema_invalid", "a table of a query result has columns and rows")
        return
    names = [name.lower() if isinstance(column, dict) and isinstance(name := column.get("name"), str) else "" for column in columns]
    for row in rows:
        if isinstance(row, list) and len(row) == len(names):
            yield dict(zip(names, row, strict=True))
        else:
            yield Refusal("schema_invalid", "a row of a query result has a value for every column")


def _item(row: Row, calls: _Calls, defaults: Defaults, received_at: int) -> Item:
    try:
        return _judged(row, calls, defaults, received_at)
    except Unfit as fault:
        return fault.refusal


def _judged(row: Row, calls: _Calls, defaults: Defaults, received_at: int) -> Item:
    category = _category(row)
    if _is_llm_row(row):
        return calls.item(row, defaults)
    if category == _TRAFFIC_LOG or (not category and "xrequestid" in row and "endpointname" in row):
        return _of_traffic(row, defaults)
    if row.get("category"):
        return Ignored("a log of another category")
    if isinstance(row.get("name"), str) and row.keys() & _METRIC_COLUMNS:
        return aggregates.of_app_insights(row, defaults)
    if "response" in row:
        return _of_chargeback(row, defaults, received_at)
    if row.keys() & _COUNT_COLUMNS:
        return _of_policy(row, defaults)
    if row.keys() & _LOG_COLUMNS:
        return Ignored("a log of another category")
    return Refusal("schema_invalid", "not a record that is known here: neither an Azure log nor a gateway's usage record")


def _category(row: Row) -> str:
    said = next((found for name in ("category", "type", "tablename") if isinstance(found := row.get(name), str) and found), "")
    return "" if said == "PrimaryResult" else said.lower()


def _is_llm_row(row: Row) -> bool:
    category = _category(row)
    if category or "correlationid" not in row:
        return category in _LLM_LOG
    return bool(row.keys() & _LLM_COLUMNS) or {"timegenerated", "prompttokens"} <= row.keys()


# --- API Management's log of model calls -------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    """The rows of one call: which of them stands for it, and what only one of them may say."""

    has_counts: bool = False
    first_named: Row | None = None
    named: Json = field(default_factory=dict)


class _Calls:
    """The calls of a body whose log may take several rows."""

    def __init__(self, rows: list[Row | Refusal]) -> None:
        self._calls: dict[tuple[str, str], _Call] = {}
        for row in rows:
            if not isinstance(row, Refusal) and _is_llm_row(row):
                self._add(self._calls.setdefault(_call_key(row), _Call()), row)

    @staticmethod
    def _add(call: _Call, row: Row) -> None:
        call.has_counts = call.has_counts or _has_counts(row)
        if call.first_named is None and not _is_empty(row.get("deploymentname")):
            call.first_named = row
        for name in _NAMES:
            if not _is_empty(row.get(name)):
                call.named.setdefault(name, row[name])

    def item(self, row: Row, defaults: Defaults) -> Item:
        """The call, at the row that stands for it."""
        key = _call_key(row)
        call = self._calls[key]
        if not key[1]:
            call = _Call()
            self._add(call, row)
        # A second row with counts is the first one delivered twice, or a contradiction that must not go unseen.
        if not (_has_counts(row) if call.has_counts else call.first_named is row):
            return Ignored("a part of a call's messages; its counts stand in another row")
        return _of_llm_log({**row, **call.named, **{name: row[name] for name in _NAMES if not _is_empty(row.get(name))}}, defaults)


def _call_key(row: Row) -> tuple[str, str]:
    resource, call = row.get("_resourceid") or row.get("resourceid"), row.get("correlationid")
    return (resource.lower() if isinstance(resource, str) else "", call if isinstance(call, str) else "")


def _has_counts(row: Row) -> bool:
    # Rows of messages hold nothing or zeros where the counts would be.
    return any(row.get(name) not in (None, "", 0) for name in ("prompttokens", "completiontokens", "totaltokens"))


def _of_llm_log(row: Row, defaults: Defaults) -> Item:
    tokens = _tokens(row, Operation.CHAT)
    http_status = values.http_status(row.get("responsecode"), "ResponseCode")
    status = _status(http_status) if http_status is not None else Status.SUCCESS
    is_stream = _truth(row.get("isstreamcompletion"))
    if is_stream and tokens.input is not None and tokens.output is not None:
        # "Token counts are estimated when stream is true" (llm-emit-token-metric policy reference, 2026-05-27).
        tokens.quality = Quality.ESTIMATED
    tokens.judge(status, http_status)
    started_at, time = _span(row, "DurationMs")
    resource_id, call_id = _call_key(row)
    values.text(resource_id, "resourceId", limit=_MAX_RESOURCE_ID)
    if call_id:
        # Event Hubs shouts the resource id, Log Analytics whispers it: one id for both.
        call_id = f"{resource_id}:{values.text(call_id, 'CorrelationId')}" if resource_id else values.text(call_id, "CorrelationId") or ""
    deployment = _name(row, "DeploymentName")
    return CapturedEvent(
        id=call_id or None,
        time=time,
        source=defaults.source,
        workspace=defaults.workspace,
        endpoint=None if deployment else defaults.endpoint,
        deployment=deployment or defaults.deployment,
        model=_name(row, "ModelName") or defaults.model,
        operation=Operation.CHAT,
        application=defaults.application,
        team=defaults.team,
        status=status,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        quality=tokens.quality,
        flags=tokens.flags,
        started_at=started_at,
        details=values.said(
            {
                "source_format": "apim_llm_log",
                "response_id": _name(row, "RequestId"),
                "request_id": values.label(row.get("correlationid")),
                "stream": is_stream,
                "http_status": http_status,
                "duration_ms": _milliseconds(row.get("durationms")),
                "total_tokens_reported": tokens.total_reported,
                "user": defaults.user,
            }
        ),
    )


# --- traffic of managed endpoints --------------------------------------------------------------------------------


def _of_traffic(row: Row, defaults: Defaults) -> Item:
    method, path = row.get("method"), row.get("path")
    if (isinstance(method, str) and method.upper() in _NO_CALL_METHODS) or (isinstance(path, str) and _PROBE_PATH.search(path.partition("?")[0])):
        return Ignored("a probe or a read, not a call of the model")
    http_status = values.http_status(row.get("responsecode"), "ResponseCode")
    of_model = values.http_status(row.get("modelstatuscode"), "ModelStatusCode")
    # 424 is the endpoint's word for "the model answered with an error".
    said = of_model if http_status == 424 and of_model else http_status
    status = _status(said) if said else Status.INCOMPLETE
    tokens = Tokens()
    tokens.judge(status, said)
    started_at, time = _span(row, "TotalDurationMs")
    request_id, workspace_id = _name(row, "XRequestId"), _name(row, "AzureMLWorkspaceId")
    endpoint, deployment = _name(row, "EndpointName"), _name(row, "DeploymentName")
    if endpoint is None and deployment is None:
        endpoint, deployment = defaults.endpoint, defaults.deployment
    return CapturedEvent(
        id=None if request_id is None else f"{workspace_id}:{request_id}" if workspace_id else request_id,
        time=time,
        source=defaults.source,
        workspace=_name(row, "AzureMLWorkspaceName") or defaults.workspace,
        endpoint=endpoint,
        deployment=deployment,
        model=defaults.model,
        operation=Operation.OTHER,
        application=defaults.application,
        team=defaults.team,
        status=status,
        quality=tokens.quality,
        flags=tokens.flags,
        started_at=started_at,
        details=values.said(
            {
                "source_format": "aml_traffic_log",
                "request_id": request_id,
                "http_status": http_status,
                "throttled_by": "azure" if status is Status.THROTTLED else None,
                "duration_ms": _milliseconds(row.get("totaldurationms")),
                "user": defaults.user,
            }
        ),
    )


# --- records of gateway policies ---------------------------------------------------------------------------------


def _of_policy(row: Row, defaults: Defaults) -> Item:
    """Counts that a log-to-eventhub policy wrote, often as texts; its id is the line's own, not the model's."""
    service = _label(row, "targetservice")
    operation = _SERVICES.get(service.lower(), Operation.OTHER) if service else Operation.CHAT
    tokens = _tokens(row, operation)
    if (tokens.input, tokens.output, tokens.total) == (1, 0, 1):
        # What the ai-hub-gateway policy writes where it found no usage (frag-ai-usage.xml).
        tokens = Tokens(flags=Flag.DEFAULT_VALUES)
    tokens.judge(Status.SUCCESS, None)
    deployment = _name(row, "deploymentName")
    return CapturedEvent(
        id=_name(row, "id"),
        time=_policy_time(row, "timestamp", "eventtime"),
        source=defaults.source,
        workspace=defaults.workspace,
        endpoint=None if deployment else defaults.endpoint,
        deployment=deployment or defaults.deployment,
        model=_name(row, "model") or defaults.model,
        operation=operation,
        application=_name(row, "productName") or defaults.application,
        team=defaults.team,
        input_tokens=tokens.input,
        output_tokens=tokens.output,
        quality=tokens.quality,
        flags=tokens.flags,
        details=values.said(
            {
                "source_format": "apim_eventhub",
                "user": _label(row, "enduserid") or defaults.user,
                "app_id": _label(row, "appid"),
                "apim_subscription": _label(row, "subscriptionid"),
                "total_tokens_reported": tokens.total_reported,
            }
        ),
    )


def _of_chargeback(row: Row, defaults: Defaults, received_at: int) -> Item:
    """A record that holds the whole request and response: read as the raw format is. Its subscription key is a secret."""
    time = _policy_time(row, "eventtime", "timestamp")
    deployment = _name(row, "deploymentName")
    if deployment:
        defaults = replace(defaults, endpoint=None, deployment=deployment)
    if time is not None:
        defaults = replace(defaults, ended_at=time)
    # A policy may also write a phrase there; the response says better how the call ended.
    status = next((found for name in ("status", "statuscode", "responsecode") if (found := values.remaining(row.get(name))) is not None), None)
    call = openai.of_envelope({"request": row.get("request"), "response": row["response"], "status": status}, defaults=defaults, received_at=received_at)
    if isinstance(call, CapturedEvent):
        return structs.replace(call, details={**call.details, "source_format": "apim_eventhub"})
    return call


def _policy_time(row: Row, *names: str) -> int | None:
    """When the policy ran, else when its line was queued; None where neither can be read without a guess."""
    for name in (*names, "eventenqueuedutctime"):
        found = _lenient_time(row.get(name))
        if found is not None:
            return values.believed(found)
    return None


def _lenient_time(said: Any) -> int | None:
    if not isinstance(said, str) or len(said) > 64:
        return None
    text = said.strip()
    naive = _NAIVE_TIME.match(text)
    culture = _CULTURE_TIME.match(text)
    if culture:
        return _culture_time(culture)
    try:
        return values.instant(f"{naive[1]}T{naive[2]}Z" if naive else text, "the time")
    except Unfit:
        return None


def _culture_time(match: re.Match[str]) -> int | None:
    """The one reading of a time in a culture's order; None where month and day could be either."""
    first, second, year, hour, minute, second_of = (int(match[group]) for group in range(1, 7))
    if match[7]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if match[7].lower() == "p" else 0)
    readings = set()
    for month, day in ((first, second), (second, first)):
        try:
            readings.add(datetime(year, month, day, hour, minute, second_of, tzinfo=UTC))
        except ValueError:
            continue
    return int(readings.pop().timestamp()) * SECOND if len(readings) == 1 else None


# --- values ------------------------------------------------------------------------------------------------------


def _tokens(row: Row, operation: Operation) -> Tokens:
    """The counts under Azure's names, "NA" being none."""
    output = "completiontokens" if row.get("completiontokens") is not None else "responsetokens"
    named = (("prompt_tokens", "prompttokens"), ("completion_tokens", output), ("total_tokens", "totaltokens"))
    usage = {name: value for name, column in named if not _is_empty(value := row.get(column))}
    tokens = values.tokens_of(usage, operation)
    # No call has a prompt of nothing: zeros are what a gateway writes where it found no usage.
    return Tokens(flags=tokens.flags & Flag.COERCED) if tokens.is_zero and not tokens.total else tokens


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in _EMPTY)


def _name(row: Row, column: str) -> str | None:
    value = row.get(column.lower())
    return None if _is_empty(value) else values.identifier(value, column)


def _label(row: Row, column: str) -> str | None:
    value = row.get(column)
    return None if _is_empty(value) else values.label(value)


def _truth(value: Any) -> bool | None:
    # Query results keep booleans, exports of logs write them as texts or numbers.
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.lower())
    return bool(value) if isinstance(value, int) else None


def _status(http_status: int) -> Status:
    if http_status == 429:
        return Status.THROTTLED
    return Status.SUCCESS if 200 <= http_status < 300 else Status.ERROR


def _milliseconds(value: Any) -> int | None:
    if isinstance(value, str) and _MILLISECONDS.match(value):
        value = float(value)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def _span(row: Row, duration: str) -> tuple[int | None, int | None]:
    """Start and end of the call: Azure's time is its start; without a duration it stands for the end."""
    said = row.get("timegenerated") or row.get("time")
    at = values.believed(values.instant(said, "TimeGenerated"))
    lasted = _milliseconds(row.get(duration.lower()))
    if at is None or lasted is None:
        return None, at
    return at, at + lasted * 1000
