"""A span or log record as far as it is looked at: what both encodings of OTLP are read into.

Attributes that are not named here are never taken out of the body: prompts, completions, headers and stack traces
have no way past the readers. ``output.value`` and the status message are read for an id and a code, and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

# A tuple is an array; an empty one also stands for what no rule here can use (maps, bytes, a number out of range).
Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...]
Attributes = Mapping[str, Value]

# Far above what 16 MiB of real telemetry holds; what lies beyond is an attack on memory.
MAX_RECORDS: Final = 500_000

# Names of one fact, the one that wins first: the newest OpenTelemetry name, its predecessors, then vendors' own.
INPUT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens", "llm.token_count.prompt")
OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens", "llm.token_count.completion")
TOTAL: Final = ("gen_ai.usage.total_tokens", "llm.usage.total_tokens", "llm.token_count.total")
CACHED: Final = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens", "llm.token_count.prompt_details.cache_read")
CACHE_WRITE: Final = (
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "llm.token_count.prompt_details.cache_write",
)
REASONING: Final = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "llm.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
)
RESPONSE_MODEL: Final = ("gen_ai.response.model",)
REQUEST_MODEL: Final = (
    "gen_ai.request.model",
    "llm.response.model",
    "llm.request.model",
    "llm.model_name",
    "embedding.model_name",
    "langfuse.observation.model.name",
)
WORKSPACE: Final = ("meterbridge.workspace", "azure.ml.workspace.name", "azureml.workspace.name")
ENDPOINT: Final = ("meterbridge.endpoint", "azure.ml.endpoint.name", "azureml.endpoint.name")
DEPLOYMENT: Final = (
    "meterbridge.deployment",
    "azure.ml.deployment.name",
    "azureml.deployment.name",
    "http.response.header.x-ms-deployment-name",
    "http.response.header.azureml-model-deployment",
)
APPLICATION: Final = ("meterbridge.application",)
# LiteLLM's exporter writes the metadata of the caller's key as attributes.
TEAM: Final = ("meterbridge.team", "metadata.user_api_key_team_alias")
REQUEST_ID: Final = ("http.response.header.apim-request-id", "http.response.header.x-request-id", "az.service_request_id", "litellm.call_id")
HTTP_STATUS: Final = ("http.response.status_code", "http.status_code")
FINISH_REASONS: Final = ("gen_ai.response.finish_reasons", "llm.finish_reason", "llm.response.finish_reason", "gen_ai.completion.0.finish_reason")
STREAM: Final = ("gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming")

WANTED: Final = frozenset(
    {
        *INPUT,
        *OUTPUT,
        *TOTAL,
        *CACHED,
        *CACHE_WRITE,
        *REASONING,
        *RESPONSE_MODEL,
        *REQUEST_MODEL,
        *WORKSPACE,
        *ENDPOINT,
        *DEPLOYMENT,
        *APPLICATION,
        *TEAM,
        *REQUEST_ID,
        *HTTP_STATUS,
        *FINISH_REASONS,
        *STREAM,
        "meterbridge.source",
        "meterbridge.user",
        "service.name",
        "service.instance.id",
        "gen_ai.token.type",
        "server.address",
        "error.type",
        "event.name",
        "gen_ai.operation.name",
        "gen_ai.request.choice.count",
        "gen_ai.request.max_tokens",
        "gen_ai.response.id",
        "llm.request.type",
        "traceloop.span.kind",
        "openinference.span.kind",
        "output.value",
        "langfuse.observation.type",
        "langfuse.observation.level",
        "langfuse.observation.usage_details",
    }
)


class Sum(msgspec.Struct, gc=False):
    """One data point of a metric that adds up: a counter's value, or the sum of a histogram; instants as in ``Record``.

    ``identity`` tells its series from others (resource, scope, name, attributes) and is for a digest only.
    """

    resource: Attributes
    identity: list[str]
    name: str = ""
    attributes: dict[str, Value] = msgspec.field(default_factory=dict)
    started: int = 0
    time: int = 0
    value: Scalar | None = None
    is_delta: bool = False
    is_cumulative: bool = False


class Record(msgspec.Struct, gc=False):
    """One span (``started``, ``ended``) or log record (``ended``); instants are nanoseconds since 1970, 0 where unknown.

    Ids are hex of any length, '' where not said: whether they are ids is judged where they are used.
    """

    resource: Attributes
    attributes: dict[str, Value] = msgspec.field(default_factory=dict)
    name: str = ""
    trace_id: str = ""
    span_id: str = ""
    started: int = 0
    ended: int = 0
    is_error: bool = False
    message: str = ""
