"""What a notice looks like to each kind of receiver: the body, rendered once and sent unchanged in every attempt.

Names come from outside: each format gets them where it does not interpret them, or escaped, so that a deployment called
``<!here>`` calls nobody. Texts for people say "firing" or "resolved"; a test says that it is one, and opens nothing anywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, assert_never

from models import money
from models.alerts import BUDGET_KINDS
from models.notices import Format
from models.periods import rfc3339

# Adaptive Cards may have 28 KB after Teams has expanded them, which adds a fifth (msteams-docs issue 11274).
TEAMS_BYTES = 18_000
_PAGERDUTY_SUMMARY = 1_024
REPORT = "report.ready"
_NEVER = "0001-01-01T00:00:00Z"  # how Alertmanager writes "no end yet"
_TITLE, _WHY, _FACT, _FACTS = 150, 1_500, 300, 12
_EXAMPLE: Mapping[str, Any] = {
    "rule": "Tokens at 80 % of the limit",
    "kind": "tokens_per_minute",
    "severity": "warning",
    "scope": {"workspace": "ws-example", "deployment": "llama-example"},
    "value": 331_200,
    "threshold": 320_000,
    "why": "331,200 tokens a minute, threshold 320,000: the threshold is reached; new usage",
}
_COLOURS = {"critical": "Attention", "error": "Attention", "warning": "Warning", "info": "Accent"}


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told: ``data`` is the alert as the API shows it, or what a test says."""

    id: str
    type: str
    at: datetime
    data: Mapping[str, Any]

    @property
    def word(self) -> str:
        """How people are told: firing, resolved or test."""
        return self.type.rpartition(".")[2]


def sample(notice_id: str, *, receiver_name: str, now: datetime) -> Notice:
    """The notice that a test sends: nothing in it is an alert, and an example in it says how one reads."""
    said = {
        "id": notice_id,
        "message": "This is a test of the receiver; nothing is wrong and nothing needs to be done.",
        "receiver": receiver_name,
        "example": _EXAMPLE,
    }
    return Notice(id=notice_id, type="webhook.test", at=now, data=said)


def render(form: Format, notice: Notice, *, receiver_name: str, routing_key: str | None) -> str:
    """The body for a receiver; never fails for any alert."""
    match form:
        case Format.STANDARD:
            said: Any = {"type": notice.type, "timestamp": rfc3339(notice.at), "data": notice.data}
        case Format.ALERTMANAGER:
            said = _alertmanager(notice, receiver_name)
        case Format.ALERTMANAGER_API:
            one = _alertmanager_alert(notice)
            # Without an end an Alertmanager ends it itself, unless it hears of it again.
            said = [{name: value for name, value in one.items() if name not in ("status", "fingerprint") and value not in ("", _NEVER)}]
        case Format.SLACK:
            said = _slack(notice)
        case Format.TEAMS:
            said = _teams(notice)
        case Format.PAGERDUTY:
            said = _pagerduty(notice, routing_key or "")
        case Format.EMAIL:
            lines = [_why(notice, _WHY), "", *(f"{name}: {value}" for name, value in [*_facts(notice, _FACT), *_links(notice)]), ""]
            said = {"subject": f"[meterbridge] {_title(notice, 180)}", "text": "\n".join(lines)}
            if notice.type == REPORT:
                # The mail is written when it is sent: what it encloses is no part of the outbox.
                said["report"] = {name: notice.data.get(name) for name in ("snapshot", "attach", "period", "url", "url_until")}
                said["report"]["schedule"] = notice.data.get("rule")
        case other:
            assert_never(other)
    return _json(said)


def _json(value: Any) -> str:
    # A lone surrogate has no UTF-8: it is sent as a question mark.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace").decode()


def line(value: object, limit: int) -> str:
    """One line of visible characters: no control signs, no line ends, nothing that turns the direction of writing."""
    text = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in str(value)[: 4 * limit])
    text = re.sub(" +", " ", text).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


# -- what people read -----------------------------------------------------------------------------


def _title(notice: Notice, limit: int = _TITLE) -> str:
    if notice.type == "webhook.test":
        return line("test: this receiver hears meterbridge", limit)
    data = notice.data
    if notice.type == REPORT:
        return line(data.get("title", "report"), limit)
    return line(f"{notice.word}: {data.get('severity', '')} {data.get('rule') or data.get('kind', '')}", limit)


def _why(notice: Notice, limit: int) -> str:
    return line(notice.data.get("why") or notice.data.get("message") or _title(notice), limit)


def _facts(notice: Notice, limit: int) -> list[tuple[str, str]]:
    data = notice.data
    if notice.type == "webhook.test":
        example = data.get("example", {})
        shown = f"{example.get('severity')} {example.get('rule')}, ws-example/llama-example: {example.get('why')}"
        return [("Receiver", line(data.get("receiver", ""), limit)), ("An alert would read", line(shown, limit))]
    if notice.type == REPORT:
        said = [("Schedule", data.get("rule")), ("Open it", _web(data.get("url"))), ("until", data.get("url_until")), ("Snapshot", data.get("snapshot"))]
        return [(name, line(value, 600 if name == "Open it" else limit)) for name, value in said if value]
    facts = [("State", notice.word), ("Severity", data.get("severity")), ("Kind", data.get("kind"))]
    scope = data.get("scope")
    if isinstance(scope, Mapping):
        facts += [(str(name).capitalize(), _joined(value)) for name, value in sorted(scope.items(), key=str)]
    facts += [("Value", _figure(data, "value")), ("Threshold", _figure(data, "threshold")), ("Step", None if data.get("step") is None else f"{data['step']} %")]
    group = data.get("group")
    if isinstance(group, Mapping):
        facts.append(("Alerts in this group", group.get("size")))
    facts = facts[:_FACTS]
    facts += [
        ("Fired at", data.get("fired_at")),
        ("Resolved at", data.get("resolved_at")),
        ("Runbook", _web(data.get("runbook_url"))),
        ("Alert", data.get("id")),
    ]
    return [(line(name, 40), line(value, limit)) for name, value in facts if value not in (None, "")]


def _links(notice: Notice) -> list[tuple[str, str]]:
    """Pages that a person may open next; none where it is not known how people come here."""
    said = (("Open the alerts", notice.data.get("url")), ("Explain", notice.data.get("explain_page_url")))
    return [(name, url) for name, url in ((name, _web(url)) for name, url in said) if url and notice.type != REPORT]


def _figure(data: Mapping[str, Any], name: str) -> object:
    """A budget's figures are money, and rounded for people; the exact ones are in the formats that programs read."""
    value, sample = data.get(name), data.get("sample")
    if data.get("kind") not in BUDGET_KINDS or not isinstance(value, str) or not isinstance(sample, Mapping):
        return value
    return money.said(Decimal(value), sample.get("currency"))


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _web(value: object) -> str:
    """A link that opens a web page, or nothing: no ``javascript:``."""
    return value if isinstance(value, str) and re.fullmatch(r"https?://[!-~]{1,1000}", value) else ""


def _slack(notice: Notice) -> dict[str, Any]:
    def plain(text: str) -> dict[str, Any]:
        return {"type": "plain_text", "text": _slack_text(text), "emoji": False}

    facts = [plain(f"{name}: {value}") for name, value in _facts(notice, _FACT)]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": plain(_title(notice, 30 if len(_slack_text(_title(notice, 100))) > 150 else 100))},
        {"type": "section", "text": plain(_why(notice, 500))},
    ]
    # A section has ten fields at most.
    blocks += [{"type": "section", "fields": facts[at : at + 10]} for at in range(0, len(facts), 10)]
    if links := " · ".join(f"<{url.translate(_SLACK_URL)}|{name}>" for name, url in _links(notice)):
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": links, "verbatim": True}})
    return {"text": _slack_text(f"{_title(notice)} - {_why(notice, 500)}"), "mrkdwn": False, "unfurl_links": False, "unfurl_media": False, "blocks": blocks}


# A link is the only text that Slack may interpret: what could end it early is written as a URL may write it.
_SLACK_URL = str.maketrans({"&": "&amp;", "<": "%3C", ">": "%3E", "|": "%7C"})


def _slack_text(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Where a workspace links bare names, @here would call everybody.
    return escaped.replace("@", "@\N{WORD JOINER}")


def _teams(notice: Notice) -> dict[str, Any]:
    why, fact = _WHY, _FACT
    while True:
        card = _card(notice, why, fact)
        if len(_json(card).encode()) <= TEAMS_BYTES or fact < 20:
            return card
        why, fact = why // 2, fact // 2


def _card(notice: Notice, why: int, fact: int) -> dict[str, Any]:
    # Text runs are shown as they are; a TextBlock would read them as Markdown.
    def runs(*texts: dict[str, Any]) -> dict[str, Any]:
        return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", **text} for text in texts]}

    colour = "Good" if notice.type != "alert.firing" else _COLOURS.get(str(notice.data.get("severity")), "Default")
    body = [
        runs({"text": _title(notice), "size": "Large", "weight": "Bolder", "color": colour}),
        runs({"text": _why(notice, why)}),
        *(runs({"text": f"{name}: ", "weight": "Bolder"}, {"text": value}) for name, value in _facts(notice, fact)),
    ]
    content = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": body,
        "msteams": {"width": "Full"},
    }
    if links := _links(notice):
        content["actions"] = [{"type": "Action.OpenUrl", "title": name, "url": url} for name, url in links]
    return {"type": "message", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": content}]}


# -- what programs read ---------------------------------------------------------------------------


def _labels(notice: Notice) -> dict[str, str]:
    """The same for firing and resolved: by them an Alertmanager knows that they belong together."""
    data = notice.data
    if notice.type == "webhook.test":
        return {"alertname": "MeterbridgeReceiverTest", "severity": "none", "receiver_test": "true"}
    scope = data.get("scope")
    labels = {str(name): _joined(value) for name, value in scope.items()} if isinstance(scope, Mapping) else {}
    labels |= {name: str(data.get(name) or "") for name in ("rule_id", "kind", "severity")}
    labels |= {
        "alertname": line(data.get("rule") or "", 500) or str(data.get("kind") or "meterbridge"),
        "step": "" if data.get("step") is None else str(data["step"]),
    }
    named = {re.sub(r"[^a-zA-Z0-9_]", "_", name): line(value, 500) for name, value in sorted(labels.items())}
    return {(f"_{name}" if not name or name[0].isdigit() else name): value for name, value in named.items() if value}


def _alertmanager_alert(notice: Notice) -> dict[str, Any]:
    labels, data, at = _labels(notice), notice.data, rfc3339(notice.at)
    notes = {"summary": _title(notice), "description": _why(notice, _WHY), "alert_id": data.get("id"), "value": data.get("value")}
    notes |= {"threshold": data.get("threshold"), "runbook_url": _web(data.get("runbook_url"))}
    is_firing = notice.type == "alert.firing"
    return {
        "status": "firing" if is_firing else "resolved",
        "labels": labels,
        "annotations": {name: line(value, _WHY) for name, value in notes.items() if value not in (None, "")},
        "startsAt": data.get("fired_at") or data.get("pending_at") or at,
        "endsAt": _NEVER if is_firing else data.get("resolved_at") or at,
        "generatorURL": _web(data.get("explain_page_url")),
        "fingerprint": hashlib.sha256(_json(labels).encode()).hexdigest()[:16],
    }


def _alertmanager(notice: Notice, receiver_name: str) -> dict[str, Any]:
    alert = _alertmanager_alert(notice)
    group = {"alertname": alert["labels"]["alertname"]}
    return {
        "version": "4",
        "groupKey": f"{{}}:{{alert_id={json.dumps(str(notice.data.get('id', notice.id)))}}}",
        "truncatedAlerts": 0,
        "status": alert["status"],
        "receiver": receiver_name,
        "groupLabels": group,
        "commonLabels": alert["labels"],
        "commonAnnotations": alert["annotations"],
        "externalURL": "",
        "alerts": [alert],
    }


def _pagerduty(notice: Notice, routing_key: str) -> dict[str, Any]:
    data = notice.data
    # Of a test only the key is tried: resolving what never was opens no incident.
    said: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "trigger" if notice.type == "alert.firing" else "resolve",
        "dedup_key": line(data.get("id", notice.id), 255),
        "client": "meterbridge",
    }
    severity = str(data.get("severity"))
    scope = data.get("scope")
    names = [_joined(scope[name]) for name in ("workspace", "deployment") if name in scope] if isinstance(scope, Mapping) else []
    said["payload"] = {
        "summary": line(f"{_title(notice)} - {_why(notice, 800)}", _PAGERDUTY_SUMMARY),
        "source": line("/".join(names) or "meterbridge", 255),
        "severity": severity if severity in _COLOURS else "info",
        "timestamp": rfc3339(notice.at),
        "class": line(data.get("kind") or "test", 255),
        "custom_details": dict(_facts(notice, _FACT)),
    }
    links = [("Runbook", _web(data.get("runbook_url"))), *_links(notice)]
    if any(url for _, url in links):
        said["links"] = [{"href": url, "text": name} for name, url in links if url]
    return said
