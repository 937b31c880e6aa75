"""The metering proxy: every byte as it is, every call reported once, nothing of a prompt or a key kept."""

from __future__ import annotations

import json
import os
import socket
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.cli import main
from collector.proxy.admission import tokens_of
from collector.proxy.app import Limits
from collector.proxy.upstreams import Upstream, choose, parse
from models.errors import InvalidInput
from tests.clients.running import Notebook, Running, proxying
from tests.clients.upstream import ANSWER, KEY, MODEL, PROMPT, listening, upstream
from tests.clients.upstream import Upstream as Deployment
from tests.walks.service import until

SEEDS = int(os.environ.get("METERBRIDGE_TEST_SEEDS", "40"))
AUTH = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with upstream() as running:
        yield running


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    return Notebook(tmp_path / "spool")


@pytest.fixture
def running(deployment: Deployment, notebook: Notebook) -> Iterator[Running]:
    with proxying(f"{deployment.url} workspace=proj-chat deployment=llama-70b", reporter=notebook) as found:
        yield found


def chat(word: str = "", **more: Any) -> dict[str, Any]:
    return {"model": "llama", "messages": [{"role": "user", "content": f"{PROMPT} {word}"}], **more}


def plain(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event without what no test can know."""
    assert {"id", "time", "started_at", "duration_ms"} <= event.keys() or event["status"] == "throttled"
    return {name: value for name, value in event.items() if name not in {"id", "time", "started_at", "duration_ms"}}


WHOLE = {
    "source": "meterbridge-proxy",
    "workspace": "proj-chat",
    "deployment": "llama-70b",
    "model": MODEL,
    "operation": "chat",
    "input_tokens": 11,
    "output_tokens": 7,
    "cached_input_tokens": 2,
    "status": "success",
    "http_status": 200,
    "finish_reason": "stop",
    "choices": 1,
    "response_id": "cmpl-1",
    "request_id": "request-1",
    "ratelimit_remaining_tokens": 399000,
    "ratelimit_remaining_requests": 990,
    "ratelimit_limit_tokens": 400_000,
    "ratelimit_limit_requests": 1000,
}
STREAMED = {name: value for name, value in WHOLE.items() if not name.startswith(("ratelimit", "cached"))} | {
    "stream": True,
    "input_tokens": 13,
    "output_tokens": 9,
}


# -- metering ---------------------------------------------------------------------------------------


def test_a_call_is_passed_on_and_reported(running: Running, deployment: Deployment) -> None:
    sent = {**AUTH, "extra-parameters": "pass-through", "X-Custom": "a b", "x-meterbridge-application": "helpdesk", "x-meterbridge-user": "ada"}
    answer = running.client.post("/v1/chat/completions?api-version=2024-05-01-preview&x=%2F", json=chat(max_tokens=50, best_of=2), headers=sent)

    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, ANSWER)
    (asked,) = deployment.asked
    assert asked.target == "/v1/chat/completions?api-version=2024-05-01-preview&x=%2F"
    assert [asked.header(name) for name in ("authorization", "extra-parameters", "x-custom", "host")] == [
        f"Bearer {KEY}",
        "pass-through",
        "a b",
        deployment.url.removeprefix("http://"),
    ]
    assert not [name for name, _ in asked.headers if name.startswith("x-meterbridge")]
    assert plain(running.event()) == WHOLE | {"max_tokens": 50, "best_of": 2, "application": "helpdesk", "user": "ada"}


@pytest.mark.parametrize("name", ["extra-parameters", "extra-params"])
def test_both_spellings_of_the_extra_parameters_header_are_kept(running: Running, deployment: Deployment, name: str) -> None:
    running.client.post("/chat/completions", json=chat(ignore_eos=True, use_beam_search=True), headers={**AUTH, name: "pass-through"})
    assert deployment.asked[0].header(name) == "pass-through"
    assert deployment.asked[0].json == chat(ignore_eos=True, use_beam_search=True)


@pytest.mark.parametrize(
    ("shape", "asks", "expected"),
    [
        ("with_finish", False, STREAMED),
        ("after_finish", True, STREAMED),
        ("after_finish", False, {name: value for name, value in STREAMED.items() if "_tokens" not in name}),
        ("none", False, {name: value for name, value in STREAMED.items() if "_tokens" not in name}),
        ("cumulative", False, STREAMED),
    ],
)
@pytest.mark.parametrize("word", ["", "ZIPPED"])
def test_the_four_shapes_of_streams(  # noqa: PLR0917 - its table
    running: Running, deployment: Deployment, shape: Any, asks: bool, expected: dict[str, Any], word: str
) -> None:
    deployment.shape = shape
    body = chat(word, stream=True) | ({"stream_options": {"include_usage": True}} if asks else {})
    text = running.client.post("/chat/completions", json=body, headers=AUTH).text
    assert text.endswith("data: [DONE]\n\n")
    assert deployment.asked[0].json == body
    assert plain(running.event()) == expected


def test_usage_is_asked_for_only_when_the_operator_said_so_and_kept_from_the_caller(deployment: Deployment, notebook: Notebook) -> None:
    deployment.shape = "after_finish"
    with proxying(deployment.url + " workspace=proj-chat deployment=llama-70b", reporter=notebook, include_usage=True) as running:
        text = running.client.post("/chat/completions", json=chat(stream=True), headers=AUTH).text
        assert deployment.asked[0].json["stream_options"] == {"include_usage": True}
        assert text.count("data: ") == 6
        assert '"choices": [], "usage"' not in text
        assert plain(running.event()) == STREAMED


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("THROTTLE", {"status": "throttled", "throttled_by": "azure", "http_status": 429, "ratelimit_remaining_tokens": 0, "ratelimit_remaining_requests": 17}),
        ("FILTER-PROMPT", {"status": "filtered", "http_status": 400}),
    ],
)
def test_errors_pass_and_are_told_apart(running: Running, deployment: Deployment, word: str, expected: dict[str, Any]) -> None:
    answer = running.client.post("/chat/completions", json=chat(word), headers=AUTH)
    direct = httpx.post(deployment.url + "/chat/completions", json=chat(word), headers=AUTH, trust_env=False)
    assert (answer.status_code, answer.content) == (direct.status_code, direct.content)
    assert answer.headers.get("retry-after") == direct.headers.get("retry-after")
    reported = plain(running.event())
    assert {name: reported.get(name) for name in expected} == expected
    assert "input_tokens" not in reported


def test_filtered_output_is_billed(running: Running) -> None:
    running.client.post("/completions", json={"prompt": "FILTER-OUTPUT"}, headers=AUTH)
    assert plain(running.event()) == WHOLE | {"operation": "text_completion", "status": "filtered", "finish_reason": "content_filter"}


def test_penalties_as_texts_and_candidates_pass_as_they_were_written(running: Running, deployment: Deployment) -> None:
    said = {"presence_penalty": "0.5", "frequency_penalty": "-1.0", "n": 2, "best_of": 3, "ignore_eos": True, "use_beam_search": True}
    body = json.dumps({"prompt": PROMPT, **said}, indent=2).encode()
    headers = AUTH | {"content-type": "application/json", "extra-params": "pass-through"}
    running.client.post("/v1/completions", content=body, headers=headers)
    assert deployment.asked[0].body == body
    event = plain(running.event())
    assert (event["choices"], event["best_of"], event["output_tokens"]) == (2, 3, 14)


def test_info_teaches_the_model_that_answers_leave_empty(running: Running) -> None:
    running.client.post("/chat/completions", json={**chat("EMPTY-MODEL"), "model": ""}, headers=AUTH)
    assert running.client.get("/info", headers=AUTH).json()["model_name"] == MODEL
    running.client.post("/chat/completions", json={**chat("EMPTY-MODEL"), "model": ""}, headers=AUTH)
    assert [event.get("model") for event in running.events(2)] == [None, MODEL]


def test_embeddings_and_other_paths(running: Running, deployment: Deployment) -> None:
    running.client.post("/v1/embeddings", json={"input": PROMPT}, headers=AUTH)
    assert running.client.put("/v1/files/x", content=b"\0\xff" * 5000).status_code == 404
    assert deployment.asked[1].body == b"\0\xff" * 5000
    event = plain(running.event())
    assert (event["operation"], event["input_tokens"], event["output_tokens"]) == ("embeddings", 4, 0)


def test_a_stream_arrives_as_it_is_made_and_ends_upstream_when_its_caller_leaves(running: Running, deployment: Deployment) -> None:
    with running.client.stream("POST", "/chat/completions", json=chat("SLOW", stream=True), headers=AUTH) as answer:
        pieces = answer.iter_raw()
        text = b""
        while b"the answer of" not in text:  # the upstream waits here until it is told to go on
            text += next(pieces)
    assert deployment.left.wait(10)
    assert deployment.pieces == 3
    event = plain(running.event())
    assert event == {name: value for name, value in STREAMED.items() if name not in {"finish_reason", "input_tokens", "output_tokens"}} | {
        "status": "incomplete"
    }


def test_a_caller_that_leaves_before_the_answer_begins_is_incomplete(notebook: Notebook) -> None:
    with raw_upstream(b"") as silent, proxying(f"{silent.url} workspace=w deployment=d", reporter=notebook) as running:
        with pytest.raises(httpx.ReadTimeout):
            running.client.post("/chat/completions", json=chat(), headers=AUTH, timeout=0.3)
        assert silent.gone.wait(10)
        assert (running.event()["status"], running.event().get("http_status")) == ("error", None)


def test_a_stream_that_breaks_upstream_breaks_for_its_caller(running: Running, deployment: Deployment) -> None:
    deployment.shape = "cumulative"
    with pytest.raises(httpx.RemoteProtocolError):
        running.client.post("/chat/completions", json=chat("BREAK", stream=True), headers=AUTH)
    event = running.event()
    assert (event["status"], event["input_tokens"], event["output_tokens"], event["stream"]) == ("incomplete", 13, 2, True)


def test_prompts_answers_and_keys_are_in_no_report_spool_or_log(deployment: Deployment, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from meterbridge_client.reporter import Reporter

    reporter = Reporter("http://127.0.0.1:9", spool=tmp_path)  # nobody there: everything stays in the spool
    with caplog.at_level("DEBUG"), proxying(f"{deployment.url} workspace=w deployment=d", reporter=reporter) as running:
        for word in ("", "THROTTLE", "FILTER-PROMPT", "FILTER-OUTPUT"):
            for headers in ({"api-key": KEY}, AUTH):
                running.client.post("/chat/completions?api-key=" + KEY, json=chat(word, user=KEY), headers=headers)
        running.client.post("/chat/completions", json=chat(stream=True) | {"model": KEY}, headers=AUTH)
        until(lambda: reporter.stats().spooled == 9, within=10, what="nine reports")
    kept = "".join(path.read_text() for path in tmp_path.iterdir()) + "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "httpx", "asyncio"))
    )
    assert kept.count("cmpl-") >= 4
    assert "canary" not in kept
    assert KEY not in kept


def test_an_answer_too_long_to_hold_is_read_at_its_end(notebook: Notebook) -> None:
    vectors = ",".join('{"object":"embedding","index":0,"embedding":[' + "0.12345678," * 4000 + "0]}" for _ in range(120))
    body = ('{"object":"list","model":"embed-1","data":[' + vectors + '],"usage":{"prompt_tokens":321,"total_tokens":321}}').encode()
    assert len(body) > 5 * 1024 * 1024
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with raw_upstream(answer) as silent, proxying(f"{silent.url} workspace=w deployment=d", reporter=notebook) as running:
        assert running.client.post("/embeddings", json={"input": "x"}, headers=AUTH).content == body
        event = running.event()
        assert (event["model"], event["input_tokens"], event["output_tokens"], event["operation"]) == ("embed-1", 321, 0, "embeddings")


# -- faults and bounds ------------------------------------------------------------------------------


def test_an_upstream_that_cannot_be_reached_is_a_502_in_the_api_s_shape(notebook: Notebook) -> None:
    with proxying("http://127.0.0.1:9 workspace=w deployment=d", reporter=notebook) as running:
        answer = running.client.post("/chat/completions", json=chat(), headers=AUTH)
        assert (answer.status_code, answer.json()["error"]["message"]) == (502, "the upstream cannot be reached")
        assert (running.event()["status"], running.event()["http_status"]) == ("error", 502)


def test_a_silent_upstream_is_a_504(notebook: Notebook) -> None:
    with raw_upstream(b"") as silent, proxying(f"{silent.url} workspace=w deployment=d", reporter=notebook, limits=Limits(read=0.1)) as running:
        assert running.client.post("/chat/completions", json=chat(), headers=AUTH).status_code == 504


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/files"])
def test_a_request_that_is_too_large_is_refused(running: Running, deployment: Deployment, path: str) -> None:
    running.proxy._limits = Limits(body_bytes=1000)
    for body in (b"x" * 1001, iter([b"x" * 600] * 2)):
        assert running.client.post(path, content=body, headers=AUTH).status_code == 413
    assert [asked for asked in deployment.asked if len(asked.body) > 600] == []


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/other", "HTTP://example.org/", "*"])
def test_it_is_no_open_relay(running: Running, deployment: Deployment, target: str) -> None:
    assert raw_request(running.url, f"GET {target} HTTP/1.1\r\nhost: example.org\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert deployment.asked == []


def test_connect_is_refused(running: Running) -> None:
    assert raw_request(running.url, "CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_target_that_looks_like_another_host_stays_with_the_upstream(running: Running, deployment: Deployment) -> None:
    raw_request(running.url, "GET //example.org/info HTTP/1.1\r\nhost: example.org\r\nconnection: close\r\n\r\n")
    assert [asked.target for asked in deployment.asked] == ["//example.org/info"]


def test_its_own_pages_do_not_reach_the_upstream(running: Running, deployment: Deployment) -> None:
    assert running.client.get("/.meterbridge/livez").json() == {"status": "ok"}
    assert running.client.get("/.meterbridge/stats").json()["proxy"]["requests"] == 2
    assert running.client.get("/.meterbridge/other").status_code == 404
    assert deployment.asked == []


# -- admission --------------------------------------------------------------------------------------


@dataclass
class Admitting:
    """A service that admits as the test says."""

    answer: tuple[int, dict[str, Any]] = (200, {"allow": True, "reason": "", "retry_after_seconds": None, "remaining": 1})
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == "/v1/admission"
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        self.asked.append(json.loads((await receive())["body"]))
        status, body = self.answer
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def test_the_service_is_asked_first_and_a_denial_is_a_429(deployment: Deployment, notebook: Notebook) -> None:
    service = Admitting()
    with (
        listening(service) as url,
        proxying(f"{deployment.url} workspace=w deployment=d", reporter=notebook, admission="fail-open", service=url, key="mb_key") as running,
    ):
        body = {"prompt": "x" * 40, "n": 2, "best_of": 3}
        assert running.client.post("/completions", json=body, headers=AUTH).status_code == 200
        # 40 characters and, unsaid, 16 tokens for each of three candidates.
        assert service.asked == [{"workspace": "w", "deployment": "d", "tokens": 10 + 48}]
        assert service.keys == ["Bearer mb_key"]
        service.answer = (200, {"allow": False, "reason": "quota: 400000 tokens a minute", "retry_after_seconds": 7, "remaining": 0})
        denied = running.client.post("/completions", json=body, headers=AUTH)
        service.answer = (200, {"allow": False, "reason": "budget", "retry_after_seconds": None, "remaining": 0})
        spent = running.client.post("/completions", json=body, headers=AUTH)
        events = running.events(3)

    assert (denied.status_code, denied.headers["retry-after"], denied.headers["x-should-retry"]) == (429, "7", "true")
    assert denied.json()["error"] == {
        "message": "refused by meterbridge before it was sent: quota: 400000 tokens a minute",
        "type": "rate_limit_exceeded",
        "param": None,
        "code": "429",
    }
    assert (spent.status_code, spent.headers["retry-after"], spent.headers["x-should-retry"]) == (429, "60", "false")
    assert len(deployment.asked) == 1
    assert [(event["status"], event.get("throttled_by")) for event in events] == [("success", None), ("throttled", "gateway"), ("throttled", "gateway")]
    assert "input_tokens" not in events[1]


@pytest.mark.parametrize("answer", [(500, {}), (401, {}), (200, {"allow": "yes"}), (200, {})])
def test_without_a_decision_the_mode_decides(deployment: Deployment, tmp_path: Path, answer: Any) -> None:
    statuses = {}
    for mode in ("fail-open", "fail-closed"):
        service = Admitting(answer)
        with (
            listening(service) as url,
            proxying(
                f"{deployment.url} workspace=w deployment=d",
                reporter=Notebook(tmp_path / mode),
                admission=mode,
                service=url,
            ) as running,
        ):
            statuses[mode] = [running.client.post("/completions", json={"prompt": "x"}, headers=AUTH).status_code for _ in range(5)]
            assert len(service.asked) == 3  # then it is left alone for a while
    assert statuses == {"fail-open": [200] * 5, "fail-closed": [503] * 5}


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ({"prompt": "abcde"}, 2 + 16),
        ({"prompt": [1, 2, 3], "max_tokens": 100}, 3 + 100),
        ({"prompt": "", "max_tokens": 10, "n": 3}, 30),
        ({"prompt": "", "max_tokens": 10, "n": 2, "best_of": 5}, 50),
        ({"messages": [{"role": "user", "content": "abcdefgh"}], "max_completion_tokens": 5}, 4 + 2 + 5),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "abcd"}, {"type": "image_url", "image_url": {"url": "x" * 9999}}]}],
                "max_tokens": 1,
            },
            4 + 1 + 1024 + 1,
        ),
        ({"input": ["abcd", "abcd"]}, 2),
        ({"max_tokens": True, "prompt": "é"}, 1 + 16),
        ({}, 0),
    ],
)
def test_what_a_request_may_take(request_: dict[str, Any], tokens: int) -> None:
    assert tokens_of(request_) == tokens


# -- several upstreams ------------------------------------------------------------------------------


def test_upstreams_are_chosen_by_host_and_by_the_longest_path() -> None:
    found = [parse(text) for text in ("https://a.example", "/b=https://b.example/base/ workspace=w", "/b/c=https://c.example", "d.local=http://d.example:81")]
    assert [(one.scheme, one.host_header, one.port, one.base_path) for one in found] == [
        ("https", b"a.example", 443, ""),
        ("https", b"b.example", 443, "/base"),
        ("https", b"c.example", 443, ""),
        ("http", b"d.example:81", 81, ""),
    ]

    def goes_to(host: str, target: bytes) -> tuple[str, bytes]:
        one = choose(found, host=host, target=target)
        assert one is not None
        return one.host_name, one.target(target)

    assert goes_to("x", b"/v1/chat?q=1") == ("a.example", b"/v1/chat?q=1")
    assert goes_to("x", b"/b/v1?q=%2f") == ("b.example", b"/base/v1?q=%2f")
    assert goes_to("x", b"/b") == ("b.example", b"/base")
    assert goes_to("x", b"/bc") == ("a.example", b"/bc")
    assert goes_to("x", b"/b/c") == ("c.example", b"/")
    assert goes_to("D.local:8080", b"/b/c") == ("d.example", b"/b/c")
    assert choose(found[1:], host="x", target=b"/other") is None


@pytest.mark.parametrize(
    "text", ["", "ftp://x", "https://", "https://u:secret@x", "https://x?key=1", "https://x workspac=w", "a b=https://x", "https://x:99999"]
)
def test_an_upstream_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(text)
    assert "secret" not in refused.value.message


def test_two_upstreams_for_the_same_requests_are_refused_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["proxy", "--port", "0", "--upstream", "http://127.0.0.1:9", "--upstream", "http://127.0.0.1:10"]) == 2
    assert "two --upstream are for the same requests" in capsys.readouterr().err
    assert main(["proxy"]) == 2
    assert main(["proxy", "--upstream", "http://127.0.0.1:9", "--report-key-file", "/nowhere"]) == 2


def test_places_are_taken_from_what_is_set_then_the_caller_then_the_address() -> None:
    from datetime import UTC, datetime

    from collector.proxy.metering import Exchange
    from models.usage import Operation

    def place(one: Upstream, path: str = "/chat/completions", headers: dict[str, str] | None = None, model: str = "m") -> tuple[Any, Any, Any]:
        exchange = Exchange(
            upstream=one,
            operation=Operation.CHAT,
            path=path,
            headers=headers or {},
            request={"model": model},
            source="s",
            started_at=datetime(2026, 11, 20, tzinfo=UTC),
        )
        event = exchange.refused(ended_at=datetime(2026, 11, 20, tzinfo=UTC), http_status=429, max_tokens=None)
        return event.get("workspace"), event.get("endpoint"), event.get("deployment")

    assert place(parse("https://e.example workspace=w deployment=d"), headers={"x-meterbridge-deployment": "x", "x-meterbridge-workspace": "y"}) == (
        "w",
        None,
        "d",
    )
    assert place(parse("https://e.example"), headers={"x-meterbridge-deployment": "x", "x-meterbridge-workspace": "y"}) == ("y", None, "x")
    assert place(parse("https://llama-x.eastus2.models.ai.azure.com")) == (None, "llama-x", None)
    assert place(parse("https://llama.eastus2.inference.ml.azure.com workspace=w"), headers={"azureml-model-deployment": "blue"}) == ("w", "llama", "blue")
    assert place(parse("https://acct.openai.azure.com"), path="/openai/deployments/four%20o/chat/completions") == ("acct", None, "four o")
    assert place(parse("https://acct.services.ai.azure.com"), model="Llama-4") == ("acct", None, "Llama-4")
    assert place(parse("https://e.example")) == (None, "e.example", None)


# -- byte for byte ----------------------------------------------------------------------------------


@dataclass
class Raw:
    """An upstream that answers with given bytes, whatever it is asked."""

    url: str
    answer: list[bytes]
    asked: list[bytes] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)


@contextmanager
def raw_upstream(*answer: bytes) -> Iterator[Raw]:
    listener = socket.create_server(("127.0.0.1", 0))
    found = Raw(f"http://127.0.0.1:{listener.getsockname()[1]}", list(answer))
    stop = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection:
            asked = b""
            while b"\r\n\r\n" not in asked or len(asked.partition(b"\r\n\r\n")[2]) < _length(asked):
                piece = connection.recv(65536)
                if not piece:
                    return
                asked += piece
            found.asked.append(asked)
            if found.answer == [b""]:
                connection.recv(1)  # says nothing until the other side is gone
                found.gone.set()
                return
            for piece in found.answer:
                connection.sendall(piece)

    def accept() -> None:
        listener.settimeout(0.05)
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(20)
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        listener.close()


def _length(asked: bytes) -> int:
    for line in asked.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def raw_request(url: str, text: str) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(text.encode())
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def seen(url: str, method: str, path: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers (but those between neighbours) and body, as the plainest client sees them."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body, {"authorization": f"Bearer {KEY}", "accept-encoding": "gzip"})
        answer = connection.getresponse()
        own = {"connection", "transfer-encoding", "keep-alive"}
        return answer.status, sorted((name.lower(), value) for name, value in answer.getheaders() if name.lower() not in own), answer.read()
    finally:
        connection.close()


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
NAMES = st.sampled_from(["X-A", "x-ms-region", "Set-Cookie", "APIM-Request-Id", "x-ratelimit-remaining-tokens", "Retry-After", "Server", "Date", "ETag"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bytes], str]:
    """Any answer of an upstream: known shapes and noise, whole or chunked, plain or packed."""
    status = draw(st.sampled_from([200, 200, 200, 201, 202, 206, 301, 400, 401, 404, 408, 413, 422, 429, 500, 502, 503, 504, 529, 599]))
    kind = draw(st.sampled_from(["application/json", "text/event-stream", "text/html", "application/octet-stream", "text/event-stream; charset=utf-8"]))
    body = draw(
        st.one_of(
            st.binary(max_size=3000),
            st.sampled_from([b"", b"{}", b"null", b'{"choices":[],"usage":{"prompt_tokens":-1}}', b"data: {\n\n", b"data: [DONE]\n\n", b"[" * 3000]),
            st.lists(
                st.sampled_from([b"data: {}\n\n", b'data: {"id":3,"choices":7}\r\n\r\n', b": ping\n\n", b"data: [1]\n\n", b"\xff\xfe\n\n"]), max_size=8
            ).map(b"".join),
        )
    )
    headers = draw(st.lists(st.tuples(NAMES, TEXT), max_size=5))
    packing = draw(st.sampled_from(["", "", "gzip", "gzip, but broken", "br"]))
    if packing == "gzip":
        packer = zlib.compressobj(wbits=31)
        body = packer.compress(body) + packer.flush()
    if packing:
        headers.append(("Content-Encoding", "gzip" if packing.startswith("gzip") else packing))
    head = [f"HTTP/1.1 {status} As It Likes", f"Content-Type: {kind}", *(f"{name}: {value}" for name, value in headers), "Connection: close"]
    cuts = sorted({0, len(body), *draw(st.lists(st.integers(0, len(body)), max_size=4))})
    parts = [body[start:end] for start, end in pairwise(cuts)]
    match draw(st.sampled_from(["length", "chunked", "until closed"])):
        case "length":
            head.append(f"Content-Length: {len(body)}")
        case "chunked":
            head.append("Transfer-Encoding: chunked")
            parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]
    return ["\r\n".join([*head, "", ""]).encode(), *parts], draw(st.sampled_from(["/chat/completions", "/v1/completions", "/embeddings", "/anything?x=%20y"]))


def test_every_answer_is_passed_byte_for_byte(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    with raw_upstream(b"") as raw, proxying(f"{raw.url} workspace=w deployment=d", reporter=notebook) as running:

        @settings(max_examples=SEEDS, deadline=None, suppress_health_check=list(HealthCheck))
        @given(answers())
        def compare(made: tuple[list[bytes], str]) -> None:
            raw.answer, path = made
            body = json.dumps(chat()).encode()
            assert seen(running.url, "POST", path, body) == seen(raw.url, "POST", path, body)

        compare()
        through, direct = raw.asked[-2:]
        assert through.partition(b"\r\n\r\n")[2] == direct.partition(b"\r\n\r\n")[2]
    # Every one was a call, whatever it answered; none became a fault.
    assert all(event["status"] in {"success", "error", "throttled", "filtered", "incomplete"} for event in notebook.events)
    assert len(notebook.events) > SEEDS // 4


@pytest.mark.parametrize(("method", "status", "headers"), [("HEAD", 200, b"content-length: 5\r\n"), ("GET", 204, b""), ("GET", 304, b"etag: x\r\n")])
def test_answers_without_a_body(notebook: Notebook, method: str, status: int, headers: bytes) -> None:
    with raw_upstream(b"HTTP/1.1 %d X\r\n%bconnection: close\r\n\r\n" % (status, headers)) as raw, proxying(raw.url, reporter=notebook) as running:
        assert seen(running.url, method, "/x", b"") == seen(raw.url, method, "/x", b"")
