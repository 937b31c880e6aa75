"""The API Management policies are XML, ask the routes that exist and do with the answers what their documentation says.

No compiler of C# is at hand, and no instance: ``Gateway`` walks a policy's elements as API Management documents them, against
the running service, with each expression stood in for by its twin here. A twin is found by the expression's own text, so
that whoever changes an expression has to look at its twin as well.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
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

FOLDER = Path(__file__).parents[1] / "deploy" / "policies"
POLICIES = sorted(FOLDER.glob("*.xml"))
VALUES = {"meterbridge-url", "meterbridge-key", "meterbridge-workspace", "meterbridge-mode"}


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


# -- a policy, walked -----------------------------------------------------------------------------


@dataclass
class Gateway:
    """One API with the policy: what it keeps between calls, and what it asked."""

    policy: str
    values: Mapping[str, str]
    clock: float = 0.0
    cache: dict[str, tuple[float, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def call(self, deployment: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, str]] | None:
        """(status, headers) that the policy answers with; None where the call goes on."""
        inbound = ET.parse(FOLDER / self.policy).getroot().find("inbound")
        assert inbound is not None
        variables: dict[str, Any] = {"request.deployment": deployment, "request.body": "" if body is None else json.dumps(body)}
        return self._steps(inbound, variables)

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
        variables[step.attrib["response-variable-name"]] = answer

    def _said(self, text: str, variables: dict[str, Any]) -> Any:
        """A value of the policy: as it stands, or what its expression's twin makes of it."""
        if not text.startswith("@"):
            return self._named(text)
        # An attribute has no line ends (XML makes them spaces): a comment to the end of the line would be one to the end of all.
        source = re.sub(r"\s+", " ", re.sub(r"/\*.*?\*/", "", text)).strip()
        assert source in TWINS, f"there is no twin of {source}"
        return TWINS[source](variables, self.values)

    def _named(self, text: str) -> str:
        return re.sub(r"\{\{([a-z-]+)\}\}", lambda found: self.values[found[1]], text)


_Twin = Callable[[dict[str, Any], Mapping[str, str]], Any]


def _tokens(variables: dict[str, Any], _: Mapping[str, str]) -> int:
    text = variables["request.body"]
    most, candidates = 16, 1
    try:
        body = json.loads(text)
        most = next((body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None), 16)
        candidates = max(body.get("n") or 1, body.get("best_of") or 1)
    except ValueError:
        pass
    return len(text) // 4 + int(most) * int(candidates)


def _verdict(variables: dict[str, Any], _: Mapping[str, str]) -> str:
    answer = variables.get("mbAdmission")
    if answer is None or answer.status_code != 200:
        return "unknown"
    said = answer.json()
    return "allow" if said["allow"] else str(said["retry_after_seconds"] if said["retry_after_seconds"] is not None else 60)


def _denied(variables: dict[str, Any], _: Mapping[str, str]) -> str:
    answer = variables.get("mbList")
    return '{"items":[]}' if answer is None or answer.status_code != 200 else answer.text


def _wait(variables: dict[str, Any], values: Mapping[str, str]) -> str:
    for item in json.loads(variables["mbDenied"])["items"]:
        workspace, deployment = item["workspace"], item["deployment"]
        is_here = workspace is None or workspace.casefold() == values["meterbridge-workspace"].casefold()
        if is_here and (deployment is None or deployment.casefold() == variables["mbDeployment"].casefold()):
            return str(item["retry_after_seconds"] if item["retry_after_seconds"] is not None else 60)
    return ""


def _question(variables: dict[str, Any], values: Mapping[str, str]) -> str:
    return json.dumps({"workspace": values["meterbridge-workspace"], "deployment": variables["mbDeployment"], "tokens": variables["mbTokens"]})


_DEPLOYMENT = 'context.Request.MatchedParameters.GetValueOrDefault("deployment-id", context.Request.Headers.GetValueOrDefault("x-meterbridge-deployment", ""))'
TWINS: Mapping[str, _Twin] = {
    f"@({_DEPLOYMENT})": lambda variables, _: variables["request.deployment"],
    '@{ string text = context.Request.Body == null ? "" : context.Request.Body.As<string>(preserveContent: true); int most = 16, candidates = 1; '
    'try { var body = Newtonsoft.Json.Linq.JObject.Parse(text); most = (int?)body["max_tokens"] ?? (int?)body["max_completion_tokens"] ?? 16; '
    'candidates = Math.Max((int?)body["n"] ?? 1, (int?)body["best_of"] ?? 1); } catch (Exception) { } '
    "return text.Length / 4 + most * candidates; }": _tokens,
    '@(new Newtonsoft.Json.Linq.JObject( new Newtonsoft.Json.Linq.JProperty("workspace", "{{meterbridge-workspace}}"), '
    'new Newtonsoft.Json.Linq.JProperty("deployment", (string)context.Variables["mbDeployment"]), '
    'new Newtonsoft.Json.Linq.JProperty("tokens", (int)context.Variables["mbTokens"])).ToString())': _question,
    '@{ var answer = context.Variables.ContainsKey("mbAdmission") ? context.Variables["mbAdmission"] as IResponse : null; '
    'if (answer == null || answer.StatusCode != 200) { return "unknown"; } '
    "var said = answer.Body.As<Newtonsoft.Json.Linq.JObject>(preserveContent: true); "
    'return (bool)said["allow"] ? "allow" : ((string)said["retry_after_seconds"] ?? "60"); }': _verdict,
    '@((string)context.Variables["mbVerdict"] == "allow")': lambda variables, _: variables["mbVerdict"] == "allow",
    '@((string)context.Variables["mbVerdict"] == "unknown" && "{{meterbridge-mode}}" != "closed")': lambda variables, values: (
        variables["mbVerdict"] == "unknown" and values["meterbridge-mode"] != "closed"
    ),
    '@((string)context.Variables["mbVerdict"] == "unknown")': lambda variables, _: variables["mbVerdict"] == "unknown",
    '@((string)context.Variables["mbVerdict"])': lambda variables, _: variables["mbVerdict"],
    '@(!context.Variables.ContainsKey("mbDenied"))': lambda variables, _: "mbDenied" not in variables,
    '@{ var answer = context.Variables.ContainsKey("mbList") ? context.Variables["mbList"] as IResponse : null; '
    'return answer == null || answer.StatusCode != 200 ? "{\\"items\\":[]}" : answer.Body.As<string>(); }': _denied,
    '@((string)context.Variables["mbDenied"])': lambda variables, _: variables["mbDenied"],
    '@{ var items = Newtonsoft.Json.Linq.JObject.Parse((string)context.Variables["mbDenied"])["items"]; foreach (var item in items) { '
    'var workspace = (string)item["workspace"]; var deployment = (string)item["deployment"]; '
    'if ((workspace == null || string.Equals(workspace, "{{meterbridge-workspace}}", StringComparison.OrdinalIgnoreCase)) '
    '&& (deployment == null || string.Equals(deployment, (string)context.Variables["mbDeployment"], StringComparison.OrdinalIgnoreCase))) { '
    'return (string)item["retry_after_seconds"] ?? "60"; } } return ""; }': _wait,
    '@((string)context.Variables["mbWait"] != "")': lambda variables, _: variables["mbWait"] != "",
    '@((string)context.Variables["mbWait"])': lambda variables, _: variables["mbWait"],
}


def gateway(policy: str, url: str, *, mode: str = "open", key: str = "none") -> Gateway:
    return Gateway(policy, {"meterbridge-url": url, "meterbridge-key": key, "meterbridge-workspace": "ws-east", "meterbridge-mode": mode})


def full(store: Store) -> None:
    """A deployment with 1,000 tokens left of its minute, and one with none."""
    with store.write() as session:
        for name, used in (("llama-chat", 399_000), ("llama-full", 400_000)):
            make.serverless(session, name)
            make.event(session, make.series(session, deployment=name), time=make.NOW - timedelta(seconds=20), input_tokens=used, output_tokens=0)


@pytest.mark.parametrize("mode", ["open", "closed"])
def test_a_gateway_lets_go_what_fits_and_says_429_with_the_wait_to_the_rest(sqlite_store: Store, mode: str) -> None:
    full(sqlite_store)
    with serving(sqlite_store) as service:
        there = gateway("admission.xml", service.url, mode=mode)
        assert there.call("llama-chat", {"messages": [], "max_tokens": 900}) is None
        # Two candidates of 900 tokens each do not fit, nor does a prompt of 4,000 signs.
        for body in ({"messages": [], "max_tokens": 900, "n": 2}, {"messages": ["x" * 4_000]}):
            assert there.call("llama-chat", body) == (429, {"Retry-After": "40", "x-meterbridge-denied": "true"})
    assert there.asked == ["admission"] * 3


@pytest.mark.parametrize(("mode", "answer"), [("open", None), ("closed", (503, {"Retry-After": "5"}))])
def test_a_gateway_that_gets_no_answer_does_as_its_mode_says(service: Service, mode: str, answer: tuple[int, dict[str, str]] | None) -> None:
    service.key("admin")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # One that accepts and never answers, and one whose key is refused.
        slow = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert [gateway("admission.xml", url, mode=mode).call("llama-chat", {}) for url in (slow, service.url)] == [answer, answer]
    # Nobody listens any more.
    assert gateway("admission.xml", slow, mode=mode).call("llama-chat", {}) == answer


def test_a_gateway_with_the_list_asks_once_in_ten_seconds_and_goes_on_without_an_answer(sqlite_store: Store) -> None:
    full(sqlite_store)
    with serving(sqlite_store) as service:
        there = gateway("admission-denied-list.xml", service.url)
        refused = (429, {"Retry-After": "40", "x-meterbridge-denied": "true"})
        assert [there.call(name) for name in ("llama-chat", "llama-full", "LLAMA-FULL", "other")] == [None, refused, refused, None]
        assert there.asked == ["admission/denied"]
        there.clock = 10.0
        assert there.call("llama-full") == refused
        assert len(there.asked) == 2
    there.clock = 20.0
    assert there.call("llama-full") is None
