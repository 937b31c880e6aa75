"""The API Management policies are XML, ask the routes that exist and do with the answers what their documentation says.

No instance is at hand: ``Gateway`` walks a policy's elements as API Management documents them, against the running service.
The expressions themselves are compiled and run, with small stand-ins for the types that API Management gives them
(``data/apim/Standin.cs``) and the JSON library that it has.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest

from models.alerts import Budget, Severity
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving
from tests.conftest import cannot_run

FOLDER = Path(__file__).parents[1] / "deploy" / "policies"
POLICIES = sorted(FOLDER.glob("*.xml"))
STANDIN = Path(__file__).parent / "data" / "apim" / "Standin.cs"
JSON = Path("/usr/lib/cli/Newtonsoft.Json-5.0/Newtonsoft.Json.dll")
MODES = ("open", "closed")
NAMED = {"meterbridge-url": "http://nowhere", "meterbridge-key": "none", "meterbridge-workspace": "ws-east", "meterbridge-mode": "open"}
VALUES = set(NAMED)


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    with serving(sqlite_store) as running:
        yield running


@pytest.mark.parametrize("policy", POLICIES, ids=lambda path: path.name)
def test_a_policy_has_its_sections_and_known_values(policy: Path) -> None:
    root = ET.parse(policy).getroot()
    assert [section.tag for section in root] == ["inbound", "backend", "outbound", "on-error"]
    assert all(section.find("base") is not None for section in root)
    text = policy.read_text(encoding="utf-8")
    assert set(re.findall(r"\{\{([a-z-]+)\}\}", text)) <= VALUES
    for asked in root.iter("send-request"):
        # We must not become something that production waits for.
        assert (asked.get("timeout"), asked.get("ignore-error")) == ("1", "true")


def test_the_policies_read_what_the_routes_answer(service: Service) -> None:
    said = service.client.post("/v1/admission", json={"workspace": "w", "deployment": "d", "tokens": 5}).json()
    text = (FOLDER / "admission.xml").read_text(encoding="utf-8")
    for name in re.findall(r"said\[&quot;(\w+)&quot;\]", text):
        assert name in said
    assert {"allow", "retry_after_seconds"} <= set(re.findall(r"said\[&quot;(\w+)&quot;\]", text))
    listed = service.client.get("/v1/admission/denied").json()
    text = (FOLDER / "admission-denied-list.xml").read_text(encoding="utf-8")
    assert set(listed) == {"items"}
    assert set(re.findall(r"item\[&quot;(\w+)&quot;\]", text)) == {"workspace", "deployment", "retry_after_seconds"}


def test_the_list_names_its_items_as_the_policy_reads_them(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)
        make.token_prices(session)
        make.event(session, make.series(session, deployment="llama-foundry"), time=make.NOW - timedelta(minutes=5))
        budget = Budget(
            id="budget_1",
            name="none",
            scope={"workspace": "ws-east"},
            amount=Decimal("0.0001"),
            currency="USD",
            period="month",
            steps=[100],
            forecast_steps=[],
            is_hard=True,
            severity=Severity.CRITICAL,
            receivers=[],
            created_at=make.LONG_AGO,
            updated_at=make.LONG_AGO,
        )
        session.add(budget)
    with serving(sqlite_store) as service:
        denied = service.client.post("/v1/admission", json={"workspace": "ws-east", "deployment": "llama-foundry", "tokens": 5}).json()
        assert (denied["allow"], "budget" in denied["reason"]) == (False, True)
        (item,) = service.client.get("/v1/admission/denied").json()["items"]
        assert (item["workspace"], set(item)) == ("ws-east", {"workspace", "deployment", "reason", "retry_after_seconds"})


# -- expressions ----------------------------------------------------------------------------------


def named(text: str, values: Mapping[str, str]) -> str:
    """With the named values, which API Management puts in before anything else."""
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda found: values[found[1]], text)


class Expressions:
    """Every expression of the policies in both modes, compiled as C# and run by a process of its own."""

    def __init__(self, folder: Path) -> None:
        texts = [text for policy in POLICIES for one in ET.parse(policy).iter() for text in (*one.attrib.values(), one.text or "") if text.startswith("@")]
        self._numbers = {
            said: number for number, said in enumerate(sorted({named(text, NAMED | {"meterbridge-mode": mode}) for text in texts for mode in MODES}))
        }
        source = folder / "Expressions.cs"
        source.write_text(self._source(), encoding="utf-8")
        program = folder / "gateway.exe"
        made = subprocess.run(
            ["mcs", "-langversion:7", "-warnaserror", f"-r:{JSON}", f"-out:{program}", str(source), str(STANDIN)], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stdout + made.stderr
        self._process = subprocess.Popen(["mono", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def _source(self) -> str:
        # An expression gives a value; a body of statements says itself what it returns.
        bodies = [said[2:-1] if said[1] == "{" else f"return {said[1:]};" for said in self._numbers]
        methods = "\n".join(f"static object E{number}(IContext context) {{ {body} }}" for number, body in enumerate(bodies))
        every = ", ".join(f"E{number}" for number in range(len(bodies)))
        usings = "using System; using System.Collections.Generic; using System.Linq; using System.Text;"
        return f"{usings}\nstatic class Expressions {{\n{methods}\npublic static readonly Func<IContext, object>[] All = {{ {every} }};\n}}\n"

    def value(self, said: str, request: Mapping[str, Any], variables: Mapping[str, Any]) -> Any:
        """What an expression makes of a request and the variables so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"expression": self._numbers[said], "variables": variables, **request}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "fault" not in answer, answer["fault"]
        return answer["value"]

    def end(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def expressions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Expressions]:
    if shutil.which("mcs") is None or shutil.which("mono") is None or not JSON.exists():
        cannot_run("the expressions of the policies need a compiler of C#; run: apt-get install mono-mcs libnewtonsoft-json5.0-cil")
    made = Expressions(tmp_path_factory.mktemp("apim"))
    yield made
    made.end()


# -- a policy, walked -----------------------------------------------------------------------------


@dataclass
class Gateway:
    """One API with the policy: what it keeps between calls, and what it asked."""

    policy: str
    values: Mapping[str, str]
    expressions: Expressions
    request: Mapping[str, Any] = field(default_factory=dict)
    clock: float = 0.0
    cache: dict[str, tuple[float, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def call(self, deployment: str, body: Mapping[str, Any] | str | None = None, *, is_in_header: bool = False) -> tuple[int, dict[str, str]] | None:
        """(status, headers) that the policy answers with; None where the call goes on."""
        inbound = ET.parse(FOLDER / self.policy).getroot().find("inbound")
        assert inbound is not None
        parameters, headers = ({}, {"x-meterbridge-deployment": deployment}) if is_in_header else ({"deployment-id": deployment}, {})
        self.request = {"parameters": parameters, "headers": headers, "body": body if body is None or isinstance(body, str) else json.dumps(body)}
        return self._steps(inbound, {})

    def _steps(self, steps: ET.Element, variables: dict[str, Any]) -> tuple[int, dict[str, str]] | None:
        for step in steps:
            match step.tag:
                case "base":
                    pass
                case "set-variable":
                    variables[step.attrib["name"]] = self._said(step.attrib["value"], variables)
                case "cache-lookup-value":
                    until, kept = self.cache.get(step.attrib["key"], (0.0, ""))
                    if self.clock < until:
                        variables[step.attrib["variable-name"]] = kept
                case "cache-store-value":
                    self.cache[step.attrib["key"]] = (self.clock + int(step.attrib["duration"]), self._said(step.attrib["value"], variables))
                case "send-request":
                    self._send(step, variables)
                case "choose":
                    branch = next((one for one in step if one.tag == "otherwise" or self._said(one.attrib["condition"], variables)), None)
                    if branch is not None and (answer := self._steps(branch, variables)) is not None:
                        return answer
                case "return-response":
                    status = step.find("set-status")
                    assert status is not None
                    return int(status.attrib["code"]), self._headers(step, variables)
                case other:
                    raise AssertionError(f"nobody has said here what <{other}> does")
        return None

    def _headers(self, step: ET.Element, variables: dict[str, Any]) -> dict[str, str]:
        return {one.attrib["name"]: str(self._said(one.findtext("value") or "", variables)) for one in step.findall("set-header")}

    def _send(self, step: ET.Element, variables: dict[str, Any]) -> None:
        url, body = str(self._said(step.findtext("set-url") or "", variables)), step.findtext("set-body")
        content = None if body is None else str(self._said(body, variables))
        self.asked.append(url.rpartition("/v1/")[2])
        try:
            answer = httpx.request(
                step.findtext("set-method") or "GET", url, content=content, headers=self._headers(step, variables),
                timeout=float(step.attrib["timeout"]), trust_env=False,
            )  # fmt: skip
        except httpx.TransportError:
            assert step.attrib["ignore-error"] == "true"
            return  # the variable is not set
        variables[step.attrib["response-variable-name"]] = {"status": answer.status_code, "body": answer.text}

    def _said(self, text: str, variables: dict[str, Any]) -> Any:
        """A value of the policy: as it stands, or what its expression makes of it."""
        said = named(text, self.values)
        return self.expressions.value(said, self.request, variables) if said.startswith("@") else said


def gateway(expressions: Expressions, policy: str, url: str, *, mode: str = "open") -> Gateway:
    return Gateway(policy, NAMED | {"meterbridge-url": url, "meterbridge-mode": mode}, expressions)


def full(store: Store) -> None:
    """A deployment with 1,000 tokens left of its minute, and one with none."""
    with store.write() as session:
        for name, used in (("llama-chat", 399_000), ("llama-full", 400_000)):
            make.serverless(session, name)
            make.event(session, make.series(session, deployment=name), time=make.NOW - timedelta(seconds=20), input_tokens=used, output_tokens=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_gateway_lets_go_what_fits_and_says_429_with_the_wait_to_the_rest(sqlite_store: Store, expressions: Expressions, mode: str) -> None:
    full(sqlite_store)
    with serving(sqlite_store) as service:
        there = gateway(expressions, "admission.xml", service.url, mode=mode)
        assert there.call("llama-chat", {"messages": [], "max_tokens": 900}) is None
        # Two candidates of 900 tokens each do not fit, nor does a prompt of 4,000 signs, nor a number that is written as text.
        for body in ({"messages": [], "max_tokens": 900, "n": 2}, {"messages": ["x" * 4_000]}, {"max_completion_tokens": "995"}):
            assert there.call("llama-chat", body) == (429, {"Retry-After": "40", "x-meterbridge-denied": "true"}), body
        # What nobody could answer never fits: a count beyond every number of ours is not a small one.
        most = 2**62
        assert there.call("llama-chat", {"max_tokens": most, "n": most}) == (429, {"Retry-After": "60", "x-meterbridge-denied": "true"})
        # What is no JSON, or says nothing, is taken for its length and the 16 tokens that are answered by default.
        assert [there.call("llama-chat", body) for body in (None, "", "no JSON", "[]", {"max_tokens": None, "n": None}, {"max_tokens": -900})] == [None] * 6
    assert there.asked == ["admission"] * 11


@pytest.mark.parametrize(("mode", "answer"), [("open", None), ("closed", (503, {"Retry-After": "5"}))])
def test_a_gateway_that_gets_no_answer_does_as_its_mode_says(
    service: Service, expressions: Expressions, mode: str, answer: tuple[int, dict[str, str]] | None
) -> None:
    service.key("admin")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # One that accepts and never answers, and one whose key is refused.
        slow = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert [gateway(expressions, "admission.xml", url, mode=mode).call("llama-chat", {}) for url in (slow, service.url)] == [answer, answer]
    # Nobody listens any more.
    assert gateway(expressions, "admission.xml", slow, mode=mode).call("llama-chat", {}) == answer


def test_a_gateway_with_the_list_asks_once_in_ten_seconds_and_goes_on_without_an_answer(sqlite_store: Store, expressions: Expressions) -> None:
    full(sqlite_store)
    with serving(sqlite_store) as service:
        there = gateway(expressions, "admission-denied-list.xml", service.url)
        refused = (429, {"Retry-After": "40", "x-meterbridge-denied": "true"})
        assert [there.call(name) for name in ("llama-chat", "llama-full", "LLAMA-FULL", "other")] == [None, refused, refused, None]
        assert there.asked == ["admission/denied"]
        there.clock = 10.0
        assert there.call("llama-full", is_in_header=True) == refused
        assert len(there.asked) == 2
    there.clock = 20.0
    assert there.call("llama-full") is None
