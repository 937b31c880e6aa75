"""``/metrics`` for Prometheus: the service itself, and what it knows of spend, quotas, alerts and sources.

What is summed by the ledger is asked at most every quarter of a minute, however often it is scraped. Deployments are
bounded: beyond the busiest ones the others stand together under ``other``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

from fastapi import APIRouter, Request
from sqlmodel import Session
from starlette.responses import PlainTextResponse, Response

from collector import watch
from collector.api.deps import Caller, Now, Reading
from collector.ingest import Ingest
from collector.webhooks import dispatch
from models import ledger, money
from models.ledger import CostQuery, Filters
from models.money import ZERO
from models.periods import Period, month_period, utc_day

router = APIRouter(tags=["operations"])
MOST_DEPLOYMENTS = 200
_KEPT = timedelta(seconds=15)
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
def metrics(request: Request, session: Reading, caller: Caller, now: Now) -> Response:
    """Counters of this process; gauges of what the caller may see."""
    ingest: Ingest | None = request.app.state.ingest
    counters = ingest.counters if ingest is not None else dict.fromkeys(("accepted", "duplicates", "rejected", "commits", "failures"), 0)
    lines = _family("meterbridge_usage_events_total", "counter", "Usage events by what became of them.")
    lines += [_sample("meterbridge_usage_events_total", {"outcome": name}, counters[name]) for name in ("accepted", "duplicates", "rejected")]
    if request.app.state.tally is not None:
        # Formats and outcomes are closed sets; senders are at /v1/intake.
        lines += _family(
            "meterbridge_intake_events_total", "counter", "Events that arrived, by format and by what became of them; a body refused whole is one."
        )
        totals = sorted(request.app.state.tally.totals.items())
        lines += [_sample("meterbridge_intake_events_total", {"format": form, "outcome": outcome}, events) for (form, outcome), events in totals]
    lines += [*_family("meterbridge_commits_total", "counter", "Group commits of usage."), f"meterbridge_commits_total {counters['commits']}"]
    lines += [*_family("meterbridge_commit_failures_total", "counter", "Commits that failed."), f"meterbridge_commit_failures_total {counters['failures']}"]
    if caller.visible is None:
        lines += [*dispatch.metric_lines(session), *watch.metrics_lines(session)]
    kept: Kept = request.app.state.metrics
    lines += kept.lines(caller.visible, now, lambda: figures(session, visible=caller.visible, now=now))
    return PlainTextResponse("\n".join([*lines, ""]), media_type="text/plain; version=0.0.4")


class Kept:
    """What was computed last, for each group of workspaces that somebody may see."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[frozenset[str] | None, tuple[datetime, list[str]]] = {}

    def lines(self, visible: frozenset[str] | None, now: datetime, make: Callable[[], list[str]]) -> list[str]:
        """The lines, made anew where they are too old."""
        with self._lock:
            found = self._found.get(visible)
            if found is None or not found[0] <= now < found[0] + _KEPT:
                if len(self._found) > 100:
                    self._found.clear()
                found = self._found[visible] = (now, make())
            return found[1]


def figures(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[str]:
    """Spend and usage of the running UTC month, headroom of quotas, ages of sources."""
    return [*_spend(session, visible, now), *_quotas(session, visible, now), *_sources(session, visible, now)]


def _spend(session: Session, visible: frozenset[str] | None, now: datetime) -> list[str]:
    month = month_period(utc_day(now))
    query = CostQuery(Period(month.start, now), "none", ("workspace", "deployment"), "best", Filters(visible=visible))
    if not month.start < now:
        return []
    rows = ledger.costs(session, query, now=now).rows
    busiest = sorted(rows, key=lambda row: (-(row.figures.cost or ZERO), row.groups["workspace"] or "", row.groups["deployment"] or ""))
    spend: dict[tuple[str, str, str, str], Decimal] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for place, row in enumerate(busiest):
        is_named = place < MOST_DEPLOYMENTS
        where = (row.groups["workspace"] or "", row.groups["deployment"] or "") if is_named else ("other", "other")
        values = row.figures
        for basis, amount in (("best", values.cost), ("billed", values.billed_cost), ("metered", values.metered_cost)):
            if amount is not None and values.currency is not None:
                key = (*where, values.currency, basis)
                spend[key] = money.plus(spend.get(key, ZERO), amount)
        for kind, count in (("input", values.input_tokens), ("output", values.output_tokens), ("requests", values.requests)):
            counts[(*where, kind)] = counts.get((*where, kind), 0) + count
    lines = _family("meterbridge_month_cost", "gauge", "Spend of the running UTC month so far, by basis.")
    for (workspace, deployment, currency, basis), amount in spend.items():
        labels = {"workspace": workspace, "deployment": deployment, "currency": currency, "basis": basis}
        lines.append(_sample("meterbridge_month_cost", labels, amount))
    untold: dict[tuple[str, str, str], int] = {}
    for place, row in enumerate(busiest):
        where = (row.groups["workspace"] or "", row.groups["deployment"] or "") if place < MOST_DEPLOYMENTS else ("other", "other")
        for kind, count in (("unknown", row.figures.unknown_token_requests), ("estimated", row.figures.estimated_token_requests)):
            untold[(*where, kind)] = untold.get((*where, kind), 0) + count
    lines += _family("meterbridge_month_requests_without_tokens", "gauge", "Requests of the running UTC month whose tokens are unknown, or an estimate.")
    lines += [
        _sample("meterbridge_month_requests_without_tokens", {"workspace": workspace, "deployment": deployment, "tokens": kind}, count)
        for (workspace, deployment, kind), count in untold.items()
    ]
    lines += _family("meterbridge_month_deployments_in_other", "gauge", "Deployments that have no series of their own: they stand together under other.")
    lines.append(f"meterbridge_month_deployments_in_other {max(0, len(busiest) - MOST_DEPLOYMENTS)}")
    lines += _family("meterbridge_month_standing", "gauge", "How firm the spend of the running UTC month is: provisional, settling or settled.")
    for row in busiest[:MOST_DEPLOYMENTS]:
        if row.figures.currency is not None:
            labels = {"workspace": row.groups["workspace"] or "", "deployment": row.groups["deployment"] or "", "currency": row.figures.currency}
            lines.append(_sample("meterbridge_month_standing", {**labels, "standing": row.figures.status}, 1))
    lines += _family("meterbridge_month_tokens", "gauge", "Tokens of the running UTC month so far.")
    lines += [
        _sample("meterbridge_month_tokens", {"workspace": workspace, "deployment": deployment, "kind": kind}, count)
        for (workspace, deployment, kind), count in counts.items()
        if kind != "requests"
    ]
    lines += _family("meterbridge_month_requests", "gauge", "Requests of the running UTC month so far.")
    lines += [
        _sample("meterbridge_month_requests", {"workspace": workspace, "deployment": deployment}, count)
        for (workspace, deployment, kind), count in counts.items()
        if kind == "requests"
    ]
    return lines


def _quotas(session: Session, visible: frozenset[str] | None, now: datetime) -> list[str]:
    pools = ledger.quotas(session, Filters(visible=visible), now=now, is_brief=True)[: MOST_DEPLOYMENTS * 4]
    lines: list[str] = []
    gauges: tuple[tuple[str, str, Callable[[ledger.Pool], int | None]], ...] = (
        ("meterbridge_quota_limit", "The limit of a pool.", lambda pool: pool.limit),
        ("meterbridge_quota_used", "What is used of it now.", lambda pool: pool.used),
        ("meterbridge_quota_headroom", "What is left of it now.", lambda pool: pool.headroom),
    )
    for name, says, value in gauges:
        lines += _family(name, "gauge", says)
        for pool in pools:
            amount = value(pool)
            if amount is not None:
                labels = {"pool": pool.id, "kind": pool.kind, "measure": pool.measure, "workspace": pool.workspace or "", "deployment": pool.deployment or ""}
                lines.append(_sample(name, labels, amount))
    return lines


def _sources(session: Session, visible: frozenset[str] | None, now: datetime) -> list[str]:
    found = ledger.sources(session, visible=visible, now=now)
    gauges: tuple[tuple[str, str, Callable[[ledger.Source], int | None]], ...] = (
        ("meterbridge_source_up", "1 where the last run went well.", lambda one: int(one.state in ("ok", "running"))),
        ("meterbridge_source_last_success_timestamp_seconds", "When it last went well.", lambda one: _stamp(one.last_success)),
        ("meterbridge_source_data_until_timestamp_seconds", "The last instant that its data covers.", lambda one: _stamp(one.data_until)),
        ("meterbridge_source_next_run_timestamp_seconds", "When it is asked or run next.", lambda one: _stamp(one.next_run)),
        ("meterbridge_source_calls", "Calls of its last run.", lambda one: one.calls),
        ("meterbridge_source_throttles", "Throttles of its last run.", lambda one: one.throttles),
    )
    lines: list[str] = []
    for name, says, value in gauges:
        lines += _family(name, "gauge", says)
        lines += [_sample(name, {"kind": one.kind, "source": one.name}, amount) for one in found if (amount := value(one)) is not None]
    return lines


def _stamp(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def _family(name: str, kind: str, says: str) -> list[str]:
    return [f"# HELP {name} {says}", f"# TYPE {name} {kind}"]


def _sample(name: str, labels: Mapping[str, str], value: Decimal | int) -> str:
    told = ",".join(f'{label}="{text.translate(_ESCAPED)}"' for label, text in labels.items())
    return f"{name}{{{told}}} {money.text(value) if isinstance(value, Decimal) else value}"
