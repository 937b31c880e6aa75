"""Wrapped clients of the published libraries against a deployment: what is reported of a call, and that the call stays what it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from azure.ai.inference import ChatCompletionsClient, EmbeddingsClient
from azure.ai.inference.aio import ChatCompletionsClient as AsyncChatCompletionsClient
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError

import meterbridge_client
from tests.clients.running import Notebook
from tests.clients.upstream import ANSWER, KEY, MODEL, PROMPT, Upstream, upstream

LABELS: dict[str, Any] = {"workspace": "proj-chat", "deployment": "llama-70b", "application": "helpdesk", "team": "support", "tags": {"env": "test"}}
SAID = {
    "source": "meterbridge-client",
    "workspace": "proj-chat",
    "deployment": "llama-70b",
    "application": "helpdesk",
    "team": "support",
    "tags": {"env": "test"},
}


@pytest.fixture
def deployment() -> Iterator[Upstream]:
    with upstream() as running:
        yield running


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    found = Notebook(tmp_path / "spool")
    yield found
    found.close(0)


@pytest.fixture
def http() -> Iterator[openai.DefaultHttpxClient]:
    # The HTTP library is the client's choice: httpx, or httpx2 in newer ones.
    with openai.DefaultHttpxClient(trust_env=False) as client:
        yield client


@pytest.fixture
def client(deployment: Upstream, notebook: Notebook, http: openai.DefaultHttpxClient) -> openai.OpenAI:
    plain = openai.OpenAI(base_url=deployment.url + "/v1", api_key=KEY, max_retries=0, http_client=http)
    return meterbridge_client.wrap(plain, url="http://127.0.0.1:9", reporter=notebook, **LABELS)


def azure_client(deployment: Upstream, notebook: Notebook) -> ChatCompletionsClient:
    client = ChatCompletionsClient(endpoint=deployment.url, credential=AzureKeyCredential(KEY), retry_total=0)
    return meterbridge_client.wrap(client, url="http://127.0.0.1:9", reporter=notebook, **LABELS)


def messages(word: str = "") -> Any:
    return [{"role": "user", "content": f"{PROMPT} {word}"}]


def fields(event: dict[str, Any], *left_out: str) -> dict[str, Any]:
    """The event without what no test can know."""
    for name in ("id", "time", "started_at", "duration_ms"):
        assert name in event
    return {name: value for name, value in event.items() if name not in {"id", "time", "started_at", "duration_ms", *SAID, *left_out}}


WHOLE = {
    "model": MODEL,
    "operation": "chat",
    "status": "success",
    "http_status": 200,
    "finish_reason": "stop",
    "input_tokens": 11,
    "output_tokens": 7,
    "cached_input_tokens": 2,
    "choices": 1,
    "response_id": "cmpl-1",
    "request_id": "request-1",
    "ratelimit_remaining_tokens": 399000,
    "ratelimit_remaining_requests": 990,
    "ratelimit_limit_tokens": 400_000,
    "ratelimit_limit_requests": 1000,
}
STREAMED = {
    "model": MODEL,
    "operation": "chat",
    "status": "success",
    "http_status": 200,
    "stream": True,
    "finish_reason": "stop",
    "input_tokens": 13,
    "output_tokens": 9,
    "choices": 1,
    "response_id": "cmpl-1",
    "request_id": "request-1",
}


def test_an_openai_call_is_reported_with_its_labels(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    answer = client.chat.completions.create(model="llama", messages=messages(), max_tokens=100, user="ada")

    assert answer.choices[0].message.content == ANSWER
    (event,) = notebook.events
    assert {name: event[name] for name in SAID} == SAID
    assert fields(event) == WHOLE | {"max_tokens": 100, "user": "ada"}
    assert event["started_at"] < event["time"]


@pytest.mark.parametrize(("shape", "chunks"), [("with_finish", 5), ("after_finish", 5), ("cumulative", 5)])
def test_an_openai_stream_is_counted_whatever_its_shape_and_shows_no_chunk_that_was_not_asked_for(
    client: openai.OpenAI, deployment: Upstream, notebook: Notebook, shape: Any, chunks: int
) -> None:
    deployment.shape = shape
    seen = list(client.chat.completions.create(model="llama", messages=messages(), stream=True))

    assert len(seen) == chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in seen if chunk.choices) == ANSWER
    assert deployment.asked[0].json["stream_options"] == {"include_usage": True}
    assert [fields(event) for event in notebook.events] == [STREAMED]


def test_a_caller_who_asked_for_the_usage_chunk_gets_it(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    deployment.shape = "after_finish"
    seen = list(client.chat.completions.create(model="llama", messages=messages(), stream=True, stream_options={"include_usage": True}))

    assert len(seen) == 6
    assert seen[-1].usage is not None
    assert seen[-1].usage.total_tokens == 22
    assert [fields(event) for event in notebook.events] == [STREAMED]


def test_a_caller_who_refused_the_usage_is_obeyed_and_the_tokens_are_unknown(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    deployment.shape = "after_finish"
    list(client.chat.completions.create(model="llama", messages=messages(), stream=True, stream_options={"include_usage": False}))

    assert deployment.asked[0].json["stream_options"] == {"include_usage": False}
    assert [fields(event) for event in notebook.events] == [{name: value for name, value in STREAMED.items() if "_tokens" not in name}]


def test_a_deployment_that_refuses_the_option_is_asked_without_it_and_remembered(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    for _ in range(2):
        assert len(list(client.chat.completions.create(model="llama", messages=messages("REFUSE-OPTIONS"), stream=True))) == 5

    assert ["stream_options" in asked.json for asked in deployment.asked] == [True, False, False]
    assert [(event["status"], event["input_tokens"], event["output_tokens"]) for event in notebook.events] == [("success", 13, 9)] * 2


def test_raw_and_streamed_raw_answers_are_metered(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    raw = client.chat.completions.with_raw_response.create(model="llama", messages=messages())
    with client.chat.completions.with_streaming_response.create(model="llama", messages=messages("ZIPPED")) as streamed:
        body = json.loads(streamed.read())

    assert raw.headers["x-request-id"] == "request-1"
    assert body["choices"][0]["message"]["content"] == ANSWER
    assert [(event["response_id"], event["input_tokens"], event["output_tokens"], event["status"]) for event in notebook.events] == [
        ("cmpl-1", 11, 7, "success"),
        ("cmpl-2", 11, 7, "success"),
    ]


def test_completions_and_embeddings_are_metered(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    client.completions.create(model="llama", prompt=PROMPT, n=2, best_of=3)
    assert len(list(client.completions.create(model="llama", prompt=PROMPT, stream=True))) == 5
    client.embeddings.create(model="llama", input=PROMPT)

    assert [(event["operation"], event["input_tokens"], event["output_tokens"], event.get("choices"), event.get("best_of")) for event in notebook.events] == [
        ("text_completion", 11, 14, 2, 3),
        ("text_completion", 13, 9, 1, None),
        ("embeddings", 4, 0, None, None),
    ]


@pytest.mark.parametrize(
    ("word", "fault", "expected"),
    [
        (
            "THROTTLE",
            openai.RateLimitError,
            {"status": "throttled", "throttled_by": "azure", "http_status": 429, "ratelimit_remaining_tokens": 0, "ratelimit_remaining_requests": 17},
        ),
        ("FILTER-PROMPT", openai.BadRequestError, {"status": "filtered", "http_status": 400}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_reported_and_raised_unchanged(  # noqa: PLR0917 - its table
    client: openai.OpenAI, deployment: Upstream, notebook: Notebook, word: str, fault: type[openai.APIStatusError], expected: dict[str, Any], stream: bool
) -> None:
    with openai.OpenAI(base_url=deployment.url + "/v1", api_key=KEY, max_retries=0) as plain, pytest.raises(fault) as unmetered:
        plain.chat.completions.create(model="llama", messages=messages(word))
    with pytest.raises(fault) as metered:
        client.chat.completions.create(model="llama", messages=messages(word), stream=stream)

    assert (metered.value.body, metered.value.status_code, str(metered.value)) == (unmetered.value.body, unmetered.value.status_code, str(unmetered.value))
    assert [fields(event, "model") for event in notebook.events] == [{"operation": "chat", **expected}]


def test_every_attempt_of_the_library_s_own_retries_is_an_event(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    client = client.with_options(max_retries=2)
    # The deployment says not to retry; a caller that does anyway is seen each time.
    inner = client._client
    inner.event_hooks = {"response": [lambda response: response.headers.update({"x-should-retry": "true", "retry-after": "0.001"})]}

    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="llama", messages=messages("THROTTLE"))

    assert [event["status"] for event in notebook.events] == ["throttled"] * 3
    assert len({event["id"] for event in notebook.events}) == 3


def test_a_stream_that_breaks_is_incomplete_with_what_is_known(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    deployment.shape = "cumulative"
    with pytest.raises(Exception) as broken:
        list(client.chat.completions.create(model="llama", messages=messages("BREAK"), stream=True))
    assert type(broken.value).__name__ in ("RemoteProtocolError", "APIConnectionError")

    assert [fields(event) for event in notebook.events] == [
        {name: value for name, value in STREAMED.items() if name != "finish_reason"} | {"status": "incomplete", "output_tokens": 2}
    ]


def test_a_stream_that_its_caller_leaves_is_incomplete(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    with client.chat.completions.create(model="llama", messages=messages("SLOW"), stream=True) as stream:
        assert [len(next(iter(stream)).choices) for _ in range(2)] == [0, 1]
    deployment.may_go_on.set()

    assert [fields(event) for event in notebook.events] == [
        {name: value for name, value in STREAMED.items() if name not in {"finish_reason", "input_tokens", "output_tokens"}} | {"status": "incomplete"}
    ]


def test_a_deployment_that_cannot_be_reached_is_an_error(notebook: Notebook, http: openai.DefaultHttpxClient) -> None:
    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0, http_client=http)
    meterbridge_client.wrap(client, url="http://127.0.0.1:9", reporter=notebook, workspace="proj-chat")

    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="llama", messages=messages())

    (event,) = notebook.events
    assert (event["status"], event["model"], event.get("http_status")) == ("error", "llama", None)


def test_an_async_openai_client(deployment: Upstream, notebook: Notebook) -> None:
    deployment.shape = "after_finish"

    async def walk() -> tuple[str | None, int]:
        async with openai.AsyncOpenAI(
            base_url=deployment.url + "/v1", api_key=KEY, max_retries=0, http_client=openai.DefaultAsyncHttpxClient(trust_env=False)
        ) as client:
            meterbridge_client.wrap(client, url="http://127.0.0.1:9", reporter=notebook, **LABELS)
            answer = await client.chat.completions.create(model="llama", messages=messages())
            stream = await client.chat.completions.create(model="llama", messages=messages(), stream=True)
            seen = [chunk async for chunk in stream]
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(model="llama", messages=messages("THROTTLE"), stream=True)
            async with await client.chat.completions.create(model="llama", messages=messages("SLOW"), stream=True) as left:
                await anext(aiter(left))
            return answer.choices[0].message.content, len(seen)

    assert asyncio.run(walk()) == (ANSWER, 5)
    deployment.may_go_on.set()
    assert [(event["status"], event.get("input_tokens"), event.get("output_tokens")) for event in notebook.events] == [
        ("success", 11, 7),
        ("success", 13, 9),
        ("throttled", None, None),
        ("incomplete", None, None),
    ]


def test_an_azure_openai_client_names_its_deployment_by_the_address(deployment: Upstream, notebook: Notebook, http: openai.DefaultHttpxClient) -> None:
    client = openai.AzureOpenAI(azure_endpoint=deployment.url, api_key=KEY, api_version="2024-10-21", max_retries=0, http_client=http)
    meterbridge_client.wrap(client, url="http://127.0.0.1:9", reporter=notebook, workspace="account")

    client.chat.completions.create(model="llama-4 scout", messages=messages())

    assert deployment.asked[0].target == "/openai/deployments/llama-4%20scout/chat/completions?api-version=2024-10-21"
    assert (notebook.events[0]["workspace"], notebook.events[0]["deployment"]) == ("account", "llama-4 scout")


def test_azure_ai_inference(deployment: Upstream, notebook: Notebook) -> None:
    with azure_client(deployment, notebook) as client:
        answer = client.complete(messages=messages())
        stream = list(client.complete(messages=messages(), stream=True))
        info = client.get_model_info()
        empty = client.complete(messages=messages("EMPTY-MODEL"))
        with pytest.raises(HttpResponseError) as throttled:
            client.complete(messages=messages("THROTTLE"))
        with pytest.raises(HttpResponseError) as filtered:
            client.complete(messages=messages("FILTER-PROMPT"), stream=True)

    assert (answer.choices[0].message.content, info.model_name, empty.model) == (ANSWER, MODEL, "")
    assert "".join(update.choices[0].delta.content or "" for update in stream if update.choices) == ANSWER
    assert (throttled.value.status_code, filtered.value.status_code) == (429, 400)
    assert fields(notebook.events[0]) == WHOLE
    assert fields(notebook.events[1]) == STREAMED | {"response_id": "cmpl-2", "request_id": "request-2"}
    # The answer named no model; /info had.
    assert [(event["status"], event.get("model"), event.get("input_tokens"), event.get("output_tokens")) for event in notebook.events[2:]] == [
        ("success", MODEL, 11, 7),
        ("throttled", MODEL, None, None),
        ("filtered", MODEL, None, None),
    ]


def test_azure_ai_inference_streams_that_are_left_or_break(deployment: Upstream, notebook: Notebook) -> None:
    with azure_client(deployment, notebook) as client:
        stream: Any = client.complete(messages=messages("SLOW"), stream=True)
        with stream:
            next(iter(stream))
        deployment.may_go_on.set()
        with pytest.raises(HttpResponseError):
            list(client.complete(messages=messages("BREAK"), stream=True))

    assert [(event["status"], event["stream"], event.get("output_tokens")) for event in notebook.events] == [("incomplete", True, None)] * 2


def test_azure_ai_inference_embeddings(deployment: Upstream, notebook: Notebook) -> None:
    with EmbeddingsClient(endpoint=deployment.url, credential=AzureKeyCredential(KEY)) as client:
        meterbridge_client.wrap(client, url="http://127.0.0.1:9", reporter=notebook, **LABELS)
        client.embed(input=[PROMPT])

    assert [(event["operation"], event["input_tokens"], event["output_tokens"]) for event in notebook.events] == [("embeddings", 4, 0)]


def test_azure_ai_inference_async(deployment: Upstream, notebook: Notebook) -> None:
    async def walk() -> int:
        async with AsyncChatCompletionsClient(endpoint=deployment.url, credential=AzureKeyCredential(KEY), retry_total=0) as client:
            meterbridge_client.wrap(client, url="http://127.0.0.1:9", reporter=notebook, **LABELS)
            await client.complete(messages=messages())
            seen = [update async for update in await client.complete(messages=messages(), stream=True)]
            with pytest.raises(HttpResponseError):
                await client.complete(messages=messages("THROTTLE"), stream=True)
            return len(seen)

    assert asyncio.run(walk()) == 4  # the library leaves out chunks without choices
    assert [(event["status"], event.get("input_tokens"), event.get("output_tokens")) for event in notebook.events] == [
        ("success", 11, 7),
        ("success", 13, 9),
        ("throttled", None, None),
    ]


def test_no_prompt_answer_or_key_is_in_any_report(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    client.chat.completions.create(model=KEY, messages=messages(), user=KEY)  # whatever a caller puts where
    list(client.chat.completions.create(model="llama", messages=messages(), stream=True))
    for word in ("THROTTLE", "FILTER-PROMPT"):
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(model="llama", messages=messages(word))

    told = json.dumps(notebook.events)
    assert len(notebook.events) == 4
    assert "canary" not in told
    assert KEY not in told


def test_a_fault_of_the_meter_leaves_the_call_alone(client: openai.OpenAI, deployment: Upstream, notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterbridge_client.wrapping.Watch.feed", lambda *_: 1 / 0)

    assert client.chat.completions.create(model="llama", messages=messages()).choices[0].message.content == ANSWER
    assert len(list(client.chat.completions.create(model="llama", messages=messages(), stream=True))) == 5


def test_other_clients_and_wrapping_twice_are_refused(client: openai.OpenAI, deployment: Upstream, notebook: Notebook) -> None:
    with pytest.raises(ValueError, match="metered already"):
        meterbridge_client.wrap(client, url="http://127.0.0.1:9", reporter=notebook)
    with pytest.raises(TypeError, match="object cannot be wrapped"):
        meterbridge_client.wrap(object(), url="http://127.0.0.1:9", reporter=notebook)
    with openai.DefaultHttpxClient(trust_env=False) as other, pytest.raises(ValueError, match="URL must be http"):
        meterbridge_client.wrap(openai.OpenAI(api_key=KEY, http_client=other), url="file:///etc", spool=False)
