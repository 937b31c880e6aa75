"""Decides which data points witness usage, and of what.

The histogram ``gen_ai.client.token.usage`` is being replaced by counters and histograms of their own names, and a
service may send both: which of them speaks for it is decided where they are read. A ``total`` repeats its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from collector.capture import values
from collector.capture.aggregates import REASON, Point, digest_of, whole
from collector.capture.event import Defaults, Ignored, Refusal
from collector.capture.native import EARLIEST
from collector.capture.otlp import records
from collector.capture.otlp.records import Sum
from models.witnesses import Measure, WitnessKind

_OLD_NAME: Final = "gen_ai.client.token.usage"
_TYPES: Mapping[str, Measure] = {"input": "input", "prompt": "input", "output": "output", "completion": "output"}
_NAMES: Mapping[str, Measure] = {
    "gen_ai.client.inference.usage.input_tokens": "input",
    "gen_ai.client.inference.usage.output_tokens": "output",
    "gen_ai.client.inference.usage.cache_read.input_tokens": "cached_input",
    "gen_ai.client.inference.usage.reasoning.output_tokens": "reasoning_output",
    "gen_ai.client.inference.operation.input_tokens": "input",
    "gen_ai.client.inference.operation.output_tokens": "output",
}
# As a collector's Prometheus receiver passes vLLM's own counters on.
_VLLM: Mapping[str, Measure] = {
    "vllm:prompt_tokens": "input",
    "vllm:prompt_tokens_total": "input",
    "vllm:generation_tokens": "output",
    "vllm:generation_tokens_total": "output",
}
_NO_USAGE = Ignored("a metric that is no count of tokens")
_TOTAL = Ignored("a total repeats its parts")
_NO_SUM = Ignored("a metric whose points do not add up")


def witnessed(point: Sum, defaults: Defaults) -> Point | Ignored | Refusal:
    """What the point witnesses, or why it is nothing to compare with."""
    kind: WitnessKind = "otlp"
    measure = _NAMES.get(point.name)
    if point.name == _OLD_NAME:
        said = point.attributes.get("gen_ai.token.type")
        measure = _TYPES.get(said.lower()) if isinstance(said, str) else None
        if measure is None:
            return _TOTAL if said == "total" else _NO_USAGE
    elif measure is None:
        kind, measure = "vllm", _VLLM.get(point.name)
    if measure is None:
        return _NO_USAGE
    if not (point.is_delta or point.is_cumulative) or point.value is None:
        return _NO_SUM
    value = whole(int(point.value) if isinstance(point.value, str) and point.value.isascii() and point.value.isdigit() else point.value, "the value")
    if isinstance(value, Refusal):
        return value
    if point.time // 1000 < EARLIEST:
        return Refusal("invalid_time", "timeUnixNano is missing or before 2023; a sum without its time witnesses nothing")
    service = _first(point, ("service.name",)) or "unknown service"
    endpoint, deployment = values.endpoint_name(_first(point, records.ENDPOINT)), _first(point, records.DEPLOYMENT)
    if endpoint is None and deployment is None:
        endpoint, deployment = defaults.endpoint, defaults.deployment
    return Point(
        REASON,
        kind=kind,
        name=point.name,
        measure=measure,
        temporality="delta" if point.is_delta else "cumulative",
        service=service,
        digest=digest_of(defaults.workspace, defaults.deployment, point.name, sorted(point.identity)),
        time=point.time // 1000,
        started_at=point.started // 1000 if EARLIEST <= point.started // 1000 <= point.time // 1000 else None,
        value=value,
        workspace=_first(point, records.WORKSPACE) or defaults.workspace,
        endpoint=endpoint,
        deployment=deployment,
        model=_first(point, (*records.RESPONSE_MODEL, *records.REQUEST_MODEL, "model_name")) or defaults.model,
        application=_first(point, records.APPLICATION) or defaults.application or service,
    )


def _first(point: Sum, names: tuple[str, ...]) -> str | None:
    said = (attributes.get(name) for name in names for attributes in (point.attributes, point.resource))
    return next((found for value in said if (found := values.label(value))), None)
