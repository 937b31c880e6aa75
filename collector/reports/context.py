"""What stands beside a report's money, as JSON and as tables: budgets, limits that were nearly met, earlier reports.

It is part of the snapshot and not of its figures: what becomes of it later restates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from collector.reports import words
from collector.reports.closepack import Table
from models import money
from models.ledger import BudgetLine, CloseCall, Context
from models.periods import rfc3339

# The parts of a body that this module makes; snapshots of before have none of them.
PARTS = ("close_calls", "alerts", "budgets", "earlier", "left_out")
_MEASURES = {"tokens_per_minute": "tokens/min", "requests_per_minute": "requests/min", "vcpus": "vCPUs"}
_SOURCES = {
    "user": "set here",
    "azure": "told by Azure",
    "header": "told in answers to calls",
    "observed": "seen when calls were refused",
    "default": "Azure's default",
}


def parts_of(context: Context) -> dict[str, Any]:
    """The context as JSON: money as text, counts as numbers, unknown as null."""
    return {
        "close_calls": [_call(one) for one in context.close_calls],
        "alerts": [
            {
                "rule": one.rule,
                "kind": one.kind,
                "subject": one.subject,
                "severity": one.severity,
                "times": one.times,
                "first_at": rfc3339(one.first_at),
                "resolved_at": None if one.resolved_at is None else rfc3339(one.resolved_at),
                "why": one.why,
            }
            for one in context.alerts
        ],
        "budgets": [_budget(one) for one in context.budgets],
        "earlier": [
            {
                "period": one.name,
                "currency": one.currency,
                "told": _text(one.told),
                "told_at": rfc3339(one.told_at),
                "now": _text(one.now),
                "difference": _text(one.difference),
            }
            for one in context.earlier
        ],
        "left_out": dict(context.left_out),
    }


def _call(one: CloseCall) -> dict[str, Any]:
    return {
        "measure": one.measure,
        "workspace": one.workspace,
        "deployment": one.deployment,
        "pool": one.pool,
        "limit": one.limit,
        "limit_source": one.limit_source,
        "peak": one.peak,
        "peak_at": None if one.peak_at is None else rfc3339(one.peak_at),
        "percent": _text(one.percent),
        "throttled_requests": one.throttled,
    }


def _budget(one: BudgetLine) -> dict[str, Any]:
    ahead = one.outlook
    return {
        "name": one.budget.name,
        "scope": one.budget.scope,
        "period": one.budget.period,
        "from": rfc3339(one.period.start),
        "to": rfc3339(one.period.end),
        "basis": one.budget.basis,
        "currency": one.budget.currency,
        "amount": money.text(one.budget.amount),
        "spent": money.text(one.spend.amount),
        "percent": _text(one.percent),
        "expected": None if ahead is None else _text(ahead.expected),
        "low": None if ahead is None else _text(ahead.low),
        "high": None if ahead is None else _text(ahead.high),
        "expected_percent": _text(one.expected_percent),
        "reason": "the period is over" if ahead is None else ahead.reason,
    }


def _text(value: Decimal | None) -> str | None:
    return None if value is None else money.text(value)


# -- for people -----------------------------------------------------------------------------------


def sentences(body: Mapping[str, Any]) -> list[str]:
    """What of it a director must know, a line each; empty where all is well."""
    said: list[str] = []
    told = [one for one in body.get("budgets", ()) if one["percent"] is not None]
    over = [one for one in told if Decimal(one["spent"]) > Decimal(one["amount"])]
    soon = [one for one in told if one not in over and one["expected"] is not None and Decimal(one["expected"]) > Decimal(one["amount"])]
    if over:
        said.append(f"Over budget: {_named(over)}.")
    if soon:
        said.append(f"Expected to end over budget: {_named(soon)}.")
    refused = sum(one["throttled_requests"] for one in body.get("close_calls", ()))
    if refused:
        said.append(f"{words.count(refused)} {'call was' if refused == 1 else 'calls were'} refused because a limit was met.")
    moved = [one for one in body.get("earlier", ()) if one["difference"] is not None and Decimal(one["difference"])]
    if moved:
        by_currency: dict[str | None, Decimal] = {}
        for one in moved:
            by_currency[one["currency"]] = money.plus(by_currency.get(one["currency"], money.ZERO), Decimal(one["difference"]))
        sums = ", ".join(words.signed(money.text(total), currency) for currency, total in sorted(by_currency.items(), key=str))
        periods = len({one["period"] for one in moved})
        unit = words.unit(body)
        said.append(f"{periods} earlier {unit if periods == 1 else unit + 's'} changed since first reported: {sums} together.")
    return said


def _named(budgets: list[Any]) -> str:
    return ", ".join(f"{words.name(one['name'])} ({words.plain_percent(one['percent'])} spent)" for one in budgets[:5]) + (
        f" and {len(budgets) - 5} more" if len(budgets) > 5 else ""
    )


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Every table of it, in order; what there is nothing of has none, but for budgets, of which that is said."""
    if "budgets" not in body:
        return []
    return [*_budgets(body), *_calls(body), *_earlier(body)]


def _budgets(body: Mapping[str, Any]) -> list[Table]:
    if not body["budgets"]:
        return [Table("Budgets", [], [], "No budget is set for what this report covers.")]
    rows = [
        [
            words.name(one["name"]),
            f"{one['period']} from {words.day(one['from'], body['time_zone'])}",
            words.amount(one["spent"], one["currency"]),
            words.amount(one["amount"], one["currency"]),
            words.plain_percent(one["percent"]),
            words.amount(one["expected"], one["currency"]) if one["expected"] is not None else "–",
            words.plain_percent(one["expected_percent"]),
        ]
        for one in body["budgets"]
    ]
    reasons = sorted({one["reason"] for one in body["budgets"] if one["reason"]})
    note = "Spent so far in the budget's own period, when this report was made." + (f" No forecast: {'; '.join(reasons)}." if reasons else "")
    return [Table("Budgets", ["Budget", "Period", "#Spent", "#Budget", "#Used", "#Expected", "#Expected use"], rows, note + _more(body, "budgets"))]


def _calls(body: Mapping[str, Any]) -> list[Table]:
    found: list[Table] = []
    if body["close_calls"]:
        rows = [
            [
                words.name(one["workspace"], "–"),
                words.name(one["deployment"] or one["pool"]),
                _MEASURES.get(one["measure"], one["measure"]),
                words.count(one["peak"]),
                words.count(one["limit"]),
                words.plain_percent(one["percent"]),
                words.count(one["throttled_requests"]) if one["measure"] != "vcpus" else "–",
                words.instant(one["peak_at"], body["time_zone"]) if one["peak_at"] else "–",
            ]
            for one in body["close_calls"]
        ]
        sources = sorted({_SOURCES.get(one["limit_source"], one["limit_source"]) for one in body["close_calls"] if one["limit_source"]})
        note = f"From 80 % of a limit on, or wherever calls were refused. Limits: {', '.join(sources)}." if sources else "Where calls were refused."
        heads = ["Workspace", "Deployment or pool", "Limit of", "#Highest", "#Limit", "#Used", "#Refused calls", "When"]
        found.append(Table("Limits that were close", heads, rows, note + _more(body, "close_calls")))
    if body["alerts"]:
        rows = [
            [
                words.name(one["rule"]),
                words.name(_subject(one["subject"])),
                one["severity"],
                words.count(one["times"]),
                words.instant(one["first_at"], body["time_zone"]),
                words.instant(one["resolved_at"], body["time_zone"]) if one["resolved_at"] else "still open",
            ]
            for one in body["alerts"]
        ]
        found.append(Table("Alerts about limits", ["Rule", "About", "Severity", "#Times", "First", "Ended"], rows, _more(body, "alerts").strip()))
    return found


def _subject(subject: str) -> str:
    """What an alert is about, as people say it: ``deployment chat, workspace ws-east``."""
    return ", ".join(part.replace("=", " ", 1) for part in subject.split("|"))


def _earlier(body: Mapping[str, Any]) -> list[Table]:
    moved = [one for one in body["earlier"] if one["difference"] is None or Decimal(one["difference"])]
    same = len({one["period"] for one in body["earlier"]} - {one["period"] for one in moved})
    if not body["earlier"]:
        return []
    unit = words.unit(body)
    note = f"{same} earlier {unit if same == 1 else unit + 's'} {'is' if same == 1 else 'are'} as first reported." if same else ""
    rows = [
        [
            one["period"],
            words.amount(one["told"], one["currency"]),
            words.day(one["told_at"], body["time_zone"]),
            words.amount(one["now"], one["currency"]),
            words.signed(one["difference"], one["currency"]),
        ]
        for one in moved
    ]
    heads = [f"{unit.capitalize()}", "#First reported", "On", "#Now", "#Difference"]
    return [Table(f"True-up of earlier {unit}s", heads if rows else [], rows, note)]


def _more(body: Mapping[str, Any], part: str) -> str:
    left_out = body["left_out"].get(part, 0)
    return f" {words.count(left_out)} more {'is' if left_out == 1 else 'are'} not shown." if left_out else ""
