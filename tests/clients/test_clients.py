"""The clients that people use, through the metering proxy and through the wrapped client, into a running service: exact figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError

import meterbridge_client
from models.periods import rfc3339
from tests.clients.upstream import ANSWER, KEY, MODEL, PROMPT, Upstream, upstream
from tests.conftest import cannot_run
from tests.walks.service import ROOT, Service, until

pytestmark = pytest.mark.walk

JAVASCRIPT = Path(__file__).parent / "javascript"
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def deployment() -> Iterator[Upstream]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with Service(f"sqlite:///{folder}/clients.db", folder) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(service: Service, deployment: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The command as an operator starts it."""
    folder = tmp_path_factory.mktemp("proxy")
    words = ["proxy", "--port", "0", "--upstream", deployment.url, "--report-to", service.url, "--workspace", "proj-chat", "--deployment", "llama-70b"]
    with started([*words, "--spool", str(folder / "spool")], folder) as running:
        yield running
        assert running.stop() == 0


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[Service]:
    """A process of the command, until the block ends."""
    running = Service(None, folder, words=words).start(ready=False)
    try:
        yield running
    finally:
        running.kill()


def counted(service: Service, application: str, number: int) -> list[tuple[Any, ...]]:
    """What the service has stored of an application's calls, oldest first, once they are so many."""

    def asked() -> list[dict[str, Any]] | None:
        now = datetime.now(UTC)
        span = {"from": rfc3339(now - timedelta(hours=1)), "to": rfc3339(now + timedelta(hours=1))}
        found: list[dict[str, Any]] = service.client.get("/v1/usage", params={**span, "application": application}).json()["items"]
        return found if len(found) >= number else None

    found = until(asked, within=20, what=f"{number} events of {application}")
    assert {(one["workspace"], one["deployment"]) for one in found} == {("proj-chat", "llama-70b")}
    rows = sorted(found, key=lambda one: one["started_at"])
    return [(one["operation"], one["status"], one["input_tokens"], one["output_tokens"], one.get("throttled_by")) for one in rows]


def test_python_through_the_proxy(proxy: Service, service: Service) -> None:
    headers = {"x-meterbridge-application": "python", "x-meterbridge-team": "support"}
    with openai.DefaultHttpxClient(trust_env=False) as http:
        client = openai.OpenAI(base_url=proxy.url + "/v1", api_key=KEY, max_retries=0, http_client=http, default_headers=headers)
        assert client.chat.completions.create(model="llama", messages=MESSAGES).choices[0].message.content == ANSWER
        assert len(list(client.chat.completions.create(model="llama", messages=MESSAGES, stream=True))) == 5
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="llama", prompt="THROTTLE")
    with ChatCompletionsClient(endpoint=proxy.url, credential=AzureKeyCredential(KEY), retry_total=0, headers=headers) as azure:
        assert azure.complete(messages=MESSAGES, headers=headers).choices[0].message.content == ANSWER
        assert len(list(azure.complete(messages=MESSAGES, stream=True, headers=headers))) == 4
        assert azure.get_model_info().model_name == MODEL
        with pytest.raises(HttpResponseError):
            azure.complete(messages=[{"role": "user", "content": "FILTER-PROMPT"}], headers=headers)

    assert counted(service, "python", 6) == [
        ("chat", "success", 11, 7, None),
        ("chat", "success", 13, 9, None),
        ("text_completion", "throttled", None, None, "azure"),
        ("chat", "success", 11, 7, None),
        ("chat", "success", 13, 9, None),
        ("chat", "filtered", None, None, None),
    ]


def test_python_through_wrapped_clients(deployment: Upstream, service: Service, tmp_path: Path) -> None:
    reporter = meterbridge_client.Reporter(service.url, spool=tmp_path)
    labels: dict[str, Any] = {"url": service.url, "reporter": reporter, "workspace": "proj-chat", "deployment": "llama-70b", "application": "wrapped"}
    with openai.DefaultHttpxClient(trust_env=False) as http:
        client = openai.OpenAI(base_url=deployment.url + "/v1", api_key=KEY, max_retries=0, http_client=http)
        meterbridge_client.wrap(client, **labels)
        client.chat.completions.create(model="llama", messages=MESSAGES)
        list(client.chat.completions.create(model="llama", messages=MESSAGES, stream=True))
        client.embeddings.create(model="llama", input="x")
        assert meterbridge_client.flush(client)
        assert meterbridge_client.stats(client).accepted == 3
    with ChatCompletionsClient(endpoint=deployment.url, credential=AzureKeyCredential(KEY)) as azure:
        meterbridge_client.wrap(azure, **labels)
        azure.complete(messages=MESSAGES)
        list(azure.complete(messages=MESSAGES, stream=True))
    reporter.close()

    assert list(tmp_path.iterdir()) == []
    assert counted(service, "wrapped", 5) == [
        ("chat", "success", 11, 7, None),
        ("chat", "success", 13, 9, None),
        ("embeddings", "success", 4, 0, None),
        ("chat", "success", 11, 7, None),
        ("chat", "success", 13, 9, None),
    ]


LITELLM = """
import sys
import litellm, openai
import meterbridge_client
proxy, deployment, service, spool, key = sys.argv[1:]
litellm.suppress_debug_info = True
message = [{"role": "user", "content": "hello"}]
through = {"model": "openai/llama", "api_base": proxy + "/v1", "api_key": key, "extra_headers": {"x-meterbridge-application": "litellm"}, "num_retries": 0}
print(litellm.completion(messages=message, **through).choices[0].message.content)
print(len(list(litellm.completion(messages=message, stream=True, stream_options={"include_usage": True}, **through))) > 3)
azure = {"model": "azure_ai/llama", "api_base": proxy, "api_key": key, "extra_headers": {"x-meterbridge-application": "litellm"}, "num_retries": 0}
print(litellm.completion(messages=message, **azure).choices[0].message.content)
client = openai.OpenAI(base_url=deployment + "/v1", api_key=key, max_retries=0)
meterbridge_client.wrap(client, url=service, spool=spool, workspace="proj-chat", deployment="llama-70b", application="litellm")
print(litellm.completion(model="openai/llama", messages=message, client=client).choices[0].message.content)
"""


def test_litellm_through_the_proxy_and_a_wrapped_client(proxy: Service, deployment: Upstream, service: Service, tmp_path: Path) -> None:
    words = [sys.executable, "-c", LITELLM, proxy.url, deployment.url, service.url, str(tmp_path), KEY]
    own = {"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(words, env={**os.environ, **own}, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-4:] == [ANSWER, "True", ANSWER, ANSWER], done.stderr[-2000:]
    assert counted(service, "litellm", 4) == [
        ("chat", "success", 11, 7, None),
        ("chat", "success", 13, 9, None),
        ("chat", "success", 11, 7, None),
        ("chat", "success", 11, 7, None),
    ]


def test_curl_through_the_proxy(proxy: Service, service: Service) -> None:
    curl = shutil.which("curl")
    if curl is None:
        cannot_run("no curl found; run: apt-get install curl")
    body = json.dumps({"messages": MESSAGES})
    headers = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json", "-H", "x-meterbridge-application: curl"]
    base = [curl, "-sS", "--noproxy", "*", *headers]
    whole = subprocess.run([*base, f"{proxy.url}/v1/chat/completions", "-d", body], capture_output=True, check=True, timeout=30)
    stream = json.dumps({"messages": MESSAGES, "stream": True})
    text = subprocess.run([*base, "-N", f"{proxy.url}/v1/chat/completions", "-d", stream], capture_output=True, check=True, timeout=30).stdout
    expect = subprocess.run(
        [*base, "-H", "Expect: 100-continue", f"{proxy.url}/completions", "-d", '{"prompt":"x"}'], capture_output=True, check=True, timeout=30
    )

    assert json.loads(whole.stdout)["usage"]["total_tokens"] == 18
    assert text.endswith(b"data: [DONE]\n\n")
    assert json.loads(expect.stdout)["object"] == "text_completion"
    assert counted(service, "curl", 3) == [
        ("chat", "success", 11, 7, None),
        ("chat", "success", 13, 9, None),
        ("text_completion", "success", 11, 7, None),
    ]


def test_javascript_through_the_proxy(service: Service, deployment: Upstream, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        cannot_run("no node and npm found for @azure-rest/ai-inference; run: apt-get install nodejs npm")
    for name in ("package.json", "package-lock.json", "walk.mjs"):
        shutil.copy(JAVASCRIPT / name, tmp_path / name)
    installed = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    if installed.returncode != 0:
        cannot_run(f"npm could not fetch @azure-rest/ai-inference: {(installed.stderr.strip().splitlines() or ['it said nothing'])[-1][:200]}")
    words = ["proxy", "--port", "0", "--upstream", deployment.url, "--report-to", service.url, "--workspace", "proj-chat", "--deployment", "llama-70b"]
    with started([*words, "--application", "javascript", "--spool", str(tmp_path / "spool")], tmp_path) as proxy:
        done = subprocess.run([node, "walk.mjs", proxy.url, KEY], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"whole": ANSWER, "text": ANSWER, "refused": "429", "info": MODEL}
        assert [asked.header("extra-parameters") for asked in deployment.asked[-4:-1]] == ["pass-through"] * 3
        assert counted(service, "javascript", 3) == [
            ("chat", "success", 11, 7, None),
            ("chat", "success", 13, 9, None),
            ("chat", "throttled", None, None, "azure"),
        ]
        assert proxy.stop() == 0


def test_a_killed_proxy_loses_nothing_that_its_spool_had(service: Service, deployment: Upstream, tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    words = ["proxy", "--port", "0", "--upstream", deployment.url, "--workspace", "proj-chat", "--deployment", "llama-70b", "--application", "killed"]
    words += ["--spool", str(tmp_path / "spool"), "--report-to"]
    with started([*words, nobody], tmp_path) as away:
        for _ in range(5):
            assert away.client.post("/chat/completions", json={"messages": MESSAGES}, headers={"api-key": KEY}).status_code == 200
        until(lambda: away.client.get("/.meterbridge/stats").json()["reporting"]["spooled"] == 5, within=10, what="five reports in the spool")
        away.kill()
    with started([*words, service.url], tmp_path) as again:
        assert counted(service, "killed", 5) == [("chat", "success", 11, 7, None)] * 5
        assert again.stop() == 0
    assert list((tmp_path / "spool").iterdir()) == []
