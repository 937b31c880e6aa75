"""The fifteen traps of metering model calls, each sprung once at a running service; figures by hand.

What a trap does in one format is tested there, value by value; here stands what it comes to for the count.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest

from tests.collector.api.serving import Service

HERE = {"x-meterbridge-workspace": "ws-east", "x-meterbridge-deployment": "llama-chat"}
NINE = 1_795_165_200  # 2026-11-20T09:00:00Z
CANARY = "canary says: my password is swordfish"


def post(service: Service, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.post(path, content=content, headers={"content-type": "application/json", **HERE, **named})


def events(service: Service) -> list[dict[str, Any]]:
    answer = service.client.get("/v1/usage", params={"from": "2023-01-01", "to": "2030-01-01", "limit": 1000})
    return sorted(answer.json()["items"], key=lambda one: str(one["id"]))


def totals(service: Service) -> tuple[int, int, int, int]:
    """Requests, input and output tokens, requests of unknown tokens: what is counted."""
    query = {"from": "2023-01-01", "to": "2026-11-21", "granularity": "none", "basis": "metered"}
    (found,) = service.client.get("/v1/costs", params=query).json()["totals"]
    return found["requests"], found["input_tokens"], found["output_tokens"], found["unknown_token_requests"]


def answer(response_id: str = "chatcmpl-1", reason: str | None = "stop", **usage: Any) -> dict[str, Any]:
    said = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13} | usage
    choices = [{"index": 0, "finish_reason": reason, "message": {"content": CANARY}}]
    return {"id": response_id, "object": "chat.completion", "created": NINE, "model": "llama", "choices": choices, "usage": said}


def span(attributes: dict[str, Any], *, span_id: str = "b" * 16, ended: int = NINE, name: str = "chat", **more: Any) -> dict[str, Any]:
    pairs = [{"key": key, "value": {"intValue": value} if isinstance(value, int) else {"stringValue": value}} for key, value in attributes.items()]
    return {"traceId": "a" * 32, "spanId": span_id, "name": name, "endTimeUnixNano": f"{ended}000000000", "attributes": pairs, **more}


def traces(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


CALL = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "llama", "gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 2}


def test_1_a_retry_is_another_call_and_a_redelivery_is_not(service: Service) -> None:
    same_caller = {"x-ms-client-request-id": "c-1"}
    for response_id in ("chatcmpl-1", "chatcmpl-2", "chatcmpl-1"):
        assert post(service, "/v1/usage/openai", answer(response_id), **same_caller).status_code == 200
    for span_id in ("b" * 16, "c" * 16, "b" * 16):  # one trace, two attempts
        assert post(service, "/otlp/v1/traces", traces(span(CALL, span_id=span_id))).status_code == 200
    assert totals(service) == (4, 44, 8, 0)


def test_2_every_witness_of_a_call_says_by_what_it_is_linked(service: Service) -> None:
    post(service, "/otlp/v1/traces", traces(span(CALL | {"gen_ai.response.id": "chatcmpl-1"})))
    litellm = {"litellm_call_id": "l-1", "id": "chatcmpl-1", "call_type": "acompletion", "status": "success", "endTime": NINE + 0.5, "prompt_tokens": 11}
    post(service, "/v1/usage/litellm", litellm | {"completion_tokens": 2, "model": "llama"})
    row = {"category": "GatewayLlmLogs", "CorrelationId": "a-1", "TimeGenerated": "2026-11-20T09:00:00Z", "RequestId": "chatcmpl-1", "PromptTokens": 11}
    post(service, "/v1/usage/azure", [row | {"CompletionTokens": 2, "DeploymentName": "llama-chat"}])
    told = {(one["source_format"], one["response_id"]) for one in events(service)}
    assert told == {("otlp_span", "chatcmpl-1"), ("litellm", "chatcmpl-1"), ("apim_llm_log", "chatcmpl-1")}


def test_3_a_stream_without_usage_is_unknown_never_zero(service: Service) -> None:
    chunk = {"id": "s-1", "object": "chat.completion.chunk", "created": NINE, "model": "llama", "choices": [{"index": 0, "finish_reason": "stop", "delta": {}}]}
    post(service, "/v1/usage/openai", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    litellm = {"litellm_call_id": "l-1", "call_type": "acompletion", "status": "success", "endTime": NINE + 0.5, "stream": True, "model": "llama"}
    post(service, "/v1/usage/litellm", litellm | zeros)
    hub = {"id": "h-1", "timestamp": "2026-11-20T09:00:00Z", "deploymentName": "llama-chat", "promptTokens": "1", "responseTokens": "0", "totalTokens": "1"}
    post(service, "/v1/usage/azure", [hub])
    assert totals(service) == (3, 0, 0, 3)
    assert {one["tokens_quality"] for one in events(service)} == {"missing"}


def test_4_totals_that_contradict_stand_alone_or_are_all_there_is(service: Service) -> None:
    post(service, "/v1/usage/openai", answer("a", total_tokens=99))
    post(service, "/v1/usage/openai", answer("b", prompt_tokens=None))
    post(service, "/v1/usage/openai", {"object": "list", "data": [{"object": "embedding"}], "usage": {"prompt_tokens": 7, "total_tokens": 7}}, x_request_id="c")
    post(service, "/v1/usage/openai", answer("d", prompt_tokens=None, completion_tokens=None, total_tokens=50))
    told = [(one["id"], one["input_tokens"], one["output_tokens"], one["tokens_quality"], one["flags"]) for one in events(service)]
    assert told == [
        ("a", 11, 2, "reported", ["total_mismatch"]),
        ("b", 11, 2, "derived", []),
        ("c", 7, 0, "reported", ["time_received"]),
        ("d", None, None, "missing", ["usage_missing"]),
    ]


def test_5_subsets_are_never_added_and_langfuses_kinds_are(service: Service) -> None:
    details: dict[str, Any] = {"prompt_tokens_details": {"cached_tokens": 9}, "completion_tokens_details": {"reasoning_tokens": 1}}
    post(service, "/v1/usage/openai", answer("a", **details))
    usage = {
        "langfuse.observation.type": "generation",
        "langfuse.observation.usage_details": '{"input": 11, "cache_read_input_tokens": 9, "output": 2, "total": 22}',
    }
    post(service, "/otlp/v1/traces", traces(span(usage)))
    assert totals(service) == (2, 11 + 20, 4, 0)


def test_6_candidates_are_in_the_count_already(service: Service) -> None:
    response = answer("a", completion_tokens=90, total_tokens=101)
    response["choices"] = [{"index": index, "finish_reason": reason} for index, reason in ((2, "stop"), (0, "length"), (1, "stop"))]
    post(service, "/v1/usage/openai", {"request": {"messages": [], "n": 3, "best_of": 5}, "response": response})
    assert totals(service) == (1, 11, 90, 0)
    (found,) = events(service)
    assert (found["choices"], found["best_of"], found["finish_reason"], found["finish_reasons"]) == (3, 5, "length", "length,stop,stop")


def test_7_a_filtered_answer_is_billed_and_a_filtered_prompt_has_no_tokens(service: Service) -> None:
    post(service, "/v1/usage/openai", answer("a", "content_filter"))
    refused = {"error": {"code": "content_filter", "param": "prompt", "status": 400, "message": CANARY, "type": None}}
    post(service, "/v1/usage/openai", refused, x_request_id="b", x_meterbridge_status="400")
    assert totals(service) == (2, 11, 2, 0)
    assert [(one["status"], one.get("http_status", None)) for one in events(service)] == [("filtered", None), ("filtered", 400)]


def test_8_what_repeats_the_calls_is_not_counted(service: Service) -> None:
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 2}
    spans = [span(agent, span_id="1" * 16), span(CALL, span_id="2" * 16), span({"http.request.method": "POST"}, span_id="3" * 16)]
    spans.append(span(CALL, span_id="4" * 16, name="raw_gen_ai_request"))
    post(service, "/otlp/v1/traces", traces(*spans))
    name = {"gen_ai.client.token.usage": "histogram", "gen_ai.client.inference.usage.input_tokens": "sum"}
    attributes = [{"key": "gen_ai.token.type", "value": {"stringValue": "input"}}]
    point = {"startTimeUnixNano": f"{NINE - 60}000000000", "timeUnixNano": f"{NINE}000000000", "attributes": attributes}
    kinds: dict[str, dict[str, Any]] = {
        "histogram": {"dataPoints": [{**point, "sum": 11.0, "count": "1"}]},
        "sum": {"isMonotonic": True, "dataPoints": [{**point, "asInt": "11"}]},
    }
    metrics = [{"name": one, kind: {"aggregationTemporality": 2, **kinds[kind]}} for one, kind in name.items()]
    for _ in range(2):
        post(service, "/otlp/v1/metrics", {"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]})
    assert totals(service) == (1, 11, 2, 0)
    (row,) = service.client.get("/v1/witnesses").json()["rows"]
    assert (row["witnessed"], row["counted"], row["disagrees"]) == (11, 11, False)


def test_9_late_and_out_of_order_lands_in_its_own_hour(service: Service) -> None:
    month_ago = NINE - 31 * 86_400
    for number, ended in enumerate((NINE, month_ago, NINE - 7200)):
        post(service, "/otlp/v1/traces", traces(span(CALL, span_id=str(number + 1) * 16, ended=ended)))
    assert totals(service) == (3, 33, 6, 0)
    query = {"from": "2026-10-01", "to": "2026-11-21", "granularity": "hour", "basis": "metered"}
    rows = service.client.get("/v1/costs", params=query).json()["rows"]
    assert [row["period_start"] for row in rows if row["requests"]] == ["2026-10-20T09:00:00Z", "2026-11-20T07:00:00Z", "2026-11-20T09:00:00Z"]


def test_10_clocks_that_are_wrong_cannot_move_usage_into_another_year(service: Service) -> None:
    post(service, "/otlp/v1/traces", traces(span(CALL, span_id="1" * 16, ended=0), span(CALL, span_id="2" * 16, ended=NINE + 7200)))
    post(service, "/otlp/v1/traces", traces(span(CALL, span_id="3" * 16, startTimeUnixNano=f"{NINE + 5}000000000")))
    post(service, "/v1/usage/openai", answer("z") | {"created": 217_877})
    told = [(one["time"], one["started_at"], one["flags"]) for one in events(service)]
    assert sorted(told, key=str) == [
        ("2026-11-20T09:00:00Z", None, []),
        ("2026-11-20T10:00:00Z", None, ["clock_skew"]),
        ("2026-11-20T10:00:00Z", None, ["time_received"]),
        ("2026-11-20T10:00:00Z", None, ["time_received"]),
    ]


@pytest.mark.parametrize("model", ["chat", ""])
def test_11_a_model_that_says_nothing_is_found_by_the_deployment(service: Service, model: str) -> None:
    post(service, "/otlp/v1/traces", traces(span(CALL | {"gen_ai.request.model": model})))
    post(service, "/v1/usage/openai", answer("a") | {"model": ""})
    assert [(one["model"], one["deployment"]) for one in events(service)] == [(None, "llama-chat")] * 2


def test_12_every_sender_hears_success_in_its_own_words(service: Service) -> None:
    event = {"specversion": "1.0", "id": "e", "source": "s", "type": "llm.usage", "data": {"input_tokens": 1, "output_tokens": 1}}
    assert post(service, "/otlp/v1/traces", traces()).status_code == 200
    assert post(service, "/api/v1/events", event).status_code == 204
    assert post(service, "/v1/usage/litellm", [{"what": 1}, None]).status_code == 200
    assert post(service, "/v1/usage/openai", answer()).status_code == 200


def test_13_secrets_and_prompts_stay_at_the_door(service: Service) -> None:
    said = CALL | {"gen_ai.prompt.0.content": CANARY, "gen_ai.input.messages": CANARY, "exception.stacktrace": CANARY}
    post(service, "/otlp/v1/traces", traces(span(said, status={"code": 2, "message": CANARY})))
    chargeback = {
        "eventTime": "2026-11-20T09:00:00Z",
        "appSubscriptionKey": CANARY,
        "request": json.dumps({"messages": [CANARY]}),
        "response": json.dumps(answer()),
    }
    post(service, "/v1/usage/azure", [chargeback])
    post(service, "/v1/usage/openai", {"response": answer("b"), "headers": {"api-key": CANARY}, "request": {"messages": [{"content": CANARY}]}})
    assert len(events(service)) == 3
    with service.store.engine.connect() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
        assert not [table for table in tables if "swordfish" in repr(connection.exec_driver_sql(f'SELECT * FROM "{table}"').all())]


def test_14_what_would_harm_a_parser_is_refused_and_costs_no_neighbour(service: Service) -> None:
    assert post(service, "/otlp/v1/traces", gzip.compress(bytes(17 * 1024 * 1024)), content_encoding="gzip").status_code == 413
    deep = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    assert post(service, "/v1/usage/openai", deep).status_code == 400
    assert post(service, "/otlp/v1/traces", b"{}").status_code == 200
    bad = [answer(str(value), prompt_tokens=value) for value in (True, -1, 2**53, 1.5, "NaN")]
    body = (
        b"\n".join(json.dumps(one).encode() for one in [answer("good-1"), *bad, answer("good-2")])
        + b"\n"
        + deep
        + b'\n{"usage": {"prompt_tokens": NaN}, "choices": []}'
    )
    judged = post(service, "/v1/usage/openai", body, content_type="application/x-ndjson").json()
    assert (judged["accepted"], [one["index"] for one in judged["rejected"]]) == (2, [1, 2, 3, 4, 5, 7, 8])
    based = span(CALL) | {"traceId": "qqqqqqqqqqqqqqqqqqqqqg==", "spanId": "u7u7u7u7u7s="}
    partial = post(service, "/otlp/v1/traces", traces(based, span(CALL))).json()["partialSuccess"]
    assert (partial["rejectedSpans"], totals(service)[0]) == ("1", 3)


def test_15_an_id_of_the_provider_is_unique_within_its_workspace_only(service: Service) -> None:
    for place in ("ws-east", "ws-west"):
        post(service, "/v1/usage/openai", answer("chatcmpl-1"), x_meterbridge_workspace=place)
    assert totals(service) == (2, 22, 4, 0)
