"""Sums of usage as counters and metrics tell them: a second witness of what was counted, never events themselves.

A point is the value of one series at one time. Which points of which series are increments of what is decided where
they are read (``models.ledger.witnesses``); here stands only what was said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collector.capture import values
from collector.capture.event import MAX_COUNT, Defaults, Ignored, Refusal
from models.columns import canonical_json
from models.witnesses import Measure, Temporality, WitnessKind

_Named = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point(Ignored):
    """One value of a series; ``digest`` is the identity of the series, times are microseconds since 1970 (start None = not said)."""

    kind: WitnessKind
    name: str
    measure: Measure
    temporality: Temporality
    service: str
    digest: bytes
    time: int
    value: int
    started_at: int | None = None
    workspace: str | None = None
    endpoint: str | None = None
    deployment: str | None = None
    model: str | None = None
    application: str | None = None


REASON = "a metric is a sum of calls, not a call; it is kept as a witness"


def digest_of(*identity: Any) -> bytes:
    """The identity of a series as a short digest: its attributes could hold anything, and are not kept."""
    return hashlib.blake2b(canonical_json(list(identity)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def whole(value: Any, what: str) -> int | Refusal:
    """A count of tokens or requests; the sum of a histogram comes as a float."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        return Refusal("invalid_value", f"{what} is not a count: expected a whole number from 0 to {MAX_COUNT}")
    return value


# --- Application Insights, from API Management's llm-emit-token-metric policy --------------------------------------

# Names as the policy writes them (remembered, so compared without case); "Total Tokens" is their sum.
_APIM: Mapping[str, Measure] = {
    "prompt tokens": "input",
    "completion tokens": "output",
    "cached tokens": "cached_input",
    "reasoning tokens": "reasoning_output",
}


def of_app_insights(row: _Named, defaults: Defaults) -> Point | Ignored | Refusal:
    """The point of a pre-aggregated custom metric (columns in lower case): a sum over the minute at which it stands."""
    said = row.get("name")
    measure = _APIM.get(said.lower()) if isinstance(said, str) else None
    if measure is None or not isinstance(said, str):
        return Ignored("a metric that is no count of tokens, or the sum of others")
    dimensions = row.get("customdimensions") or row.get("properties")
    if isinstance(dimensions, str):
        dimensions = values.loaded(dimensions)
    named = {name.lower(): found for name, found in dimensions.items()} if isinstance(dimensions, dict) else {}
    value = whole(next((row[name] for name in ("valuesum", "sum", "total") if row.get(name) is not None), None), "valueSum")
    if isinstance(value, Refusal):
        return value
    time = values.instant(row.get("timestamp") or row.get("timegenerated") or row.get("time"), "timestamp")
    if time is None:
        return Refusal("invalid_time", "timestamp is missing; a metric without its time witnesses nothing")
    api = values.word(named.get("api id")) or ""
    return Point(
        REASON,
        kind="appinsights",
        name=said[:256],
        measure=measure,
        temporality="delta",
        service=f"API Management {api}".strip(),
        digest=digest_of(
            "appinsights",
            defaults.workspace,
            said,
            row.get("_resourceid") or row.get("resourceid") or row.get("appid"),
            sorted((str(k), str(v)) for k, v in named.items()),
        ),
        time=time,
        started_at=None,
        value=value,
        workspace=defaults.workspace,
        deployment=values.word(named.get("deployment")) or values.word(named.get("backend id")) or defaults.deployment,
        model=values.word(named.get("model")) or defaults.model,
    )


__all__ = ["REASON", "Point", "digest_of", "of_app_insights", "whole"]
