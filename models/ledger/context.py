"""What a report says beside its period's money: budgets, limits that were nearly met, and what became of earlier reports.

None of it is a sum of its own: spend is ``costs``, peaks are those of ``quotas``, earlier reports are their snapshots.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from models import money
from models.alerts import LIMITED_KINDS, Alert, Budget, Kind, Severity
from models.columns import to_microseconds
from models.ledger import rates
from models.ledger.alerts import may_see
from models.ledger.billed import Reading
from models.ledger.budgets import Outlook, Spend, outlook, period_of, scope_filters, spend
from models.ledger.costs import costs_together
from models.ledger.quotas import Peaks, places
from models.ledger.spans import span_of
from models.ledger.values import Basis, CostQuery, Filters
from models.ledger.weekly import Week
from models.ledger.world import World
from models.limits import limits_known
from models.money import ZERO
from models.periods import Period
from models.quotas import AzureQuota
from models.reports import ReportSnapshot
from models.resources import Mode
from models.usage import STATUS_CODE, Status

# A limit is a close call from this share of it on, and wherever calls were refused.
CLOSE = Decimal(80)
MOST = 20
MOST_BUDGETS = 50
# So far back a report looks for what changed since it was told: a week is settled by then.
_LOOKS_BACK = {"day": 7, "week": 6, "month": 3}
_TOLD_KINDS = (*LIMITED_KINDS, Kind.THROTTLED_REQUESTS)
_INSTANT = timedelta(microseconds=1)
_MEASURES: tuple[rates.Measure, ...] = ("tokens_per_minute", "requests_per_minute")


@dataclass(frozen=True, slots=True)
class CloseCall:
    """A limit and the highest that was used of it in the period. ``limit`` None: nobody told it, and calls were refused all the same."""

    measure: str  # tokens_per_minute | requests_per_minute | vcpus
    workspace: str | None
    deployment: str | None
    pool: str | None  # of vCPUs: subscription, region, family
    limit: int | None
    limit_source: str | None
    peak: int | None
    peak_at: datetime | None
    throttled: int

    @property
    def percent(self) -> Decimal | None:
        """The peak in percent of the limit, cut to a digit, so that 100 is reached only there; above it where more was used."""
        if not self.limit or self.peak is None:
            return None
        return money.truncated(money.QUOTIENT.divide(Decimal(self.peak) * 100, Decimal(self.limit)), 1)


@dataclass(frozen=True, slots=True)
class AlertSeen:
    """Alerts of one rule and subject that fired in the period or still did; ``resolved_at`` None: one is still open."""

    rule: str
    kind: str
    subject: str
    severity: str
    times: int
    first_at: datetime
    resolved_at: datetime | None
    why: str


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """A budget in its calendar period that holds the report's end; ``outlook`` None where that period is over."""

    budget: Budget
    period: Period
    spend: Spend
    outlook: Outlook | None

    @property
    def percent(self) -> Decimal | None:
        """What is spent, in percent of the amount."""
        return _percent(self.spend.amount, self.budget.amount)

    @property
    def expected_percent(self) -> Decimal | None:
        """Where the period will likely end, in percent of the amount."""
        return None if self.outlook is None or self.outlook.expected is None else _percent(self.outlook.expected, self.budget.amount)


@dataclass(frozen=True, slots=True)
class TrueUp:
    """An earlier period in one currency: what its first report said, and what it is now. None where that is not known."""

    name: str
    currency: str | None
    told: Decimal | None
    told_at: datetime
    now: Decimal | None

    @property
    def difference(self) -> Decimal | None:
        """What has come to it since it was told."""
        return None if self.told is None or self.now is None else money.minus(self.now, self.told)


@dataclass(frozen=True, slots=True)
class Context:
    """All of it; ``left_out`` counts, by part, what a bound kept out."""

    close_calls: Sequence[CloseCall]
    alerts: Sequence[AlertSeen]
    budgets: Sequence[BudgetLine]
    earlier: Sequence[TrueUp]
    left_out: Mapping[str, int]


_Place = tuple[str, str]


def context(session: Session, week: Week, filters: Filters, *, used: Collection[_Place], told_as: tuple[str, str], reading: Reading, now: datetime) -> Context:
    """What stands beside the report of the period, of which ``reading`` has been read at ``now``.

    ``used`` are its deployments; ``told_as`` are kind and scope of its snapshots.
    """
    seen = Period(week.period.start, min(week.period.end, now))
    calls = _close_calls(session, seen, filters, used=used, world=reading.world, now=now)
    fired = _alerts(session, seen, filters, used=used)
    standing, more = _budgets(session, seen, filters, reading=reading, now=now)
    left_out = {"close_calls": max(0, len(calls) - MOST), "alerts": max(0, len(fired) - MOST), "budgets": more}
    return Context(calls[:MOST], fired[:MOST], standing, _earlier(session, week, filters, told_as=told_as, reading=reading, now=now), left_out)


# -- limits ---------------------------------------------------------------------------------------


def _close_calls(session: Session, seen: Period, filters: Filters, *, used: Collection[_Place], world: World, now: datetime) -> list[CloseCall]:
    """Limits as they are known now against the highest minute of the period."""
    last = seen.end - _INSTANT
    series, about = places(world, Filters(visible=filters.visible), now=last)
    wanted = {place: series[place] for place in sorted(used) if place in series}
    peaks, limits = Peaks(session, since=seen.start, now=last), limits_known(session, now)
    refused = _refused(session, seen, wanted)
    asked: list[tuple[_Place, rates.Measure, rates.Limit | None, int]] = []
    for place, ids in wanted.items():
        for measure in _MEASURES:
            is_limited = about[place].mode != Mode.MANAGED_COMPUTE or limits.of(*place, measure) is not None
            limit = rates.limit_of(limits, *place, measure) if is_limited else None
            # Who refused a call does not say which limit it met: they stand beside the tokens.
            throttled = refused.get(place, 0) if measure == "tokens_per_minute" else 0
            # A minute never holds more than its quarter hour: where that is far from the limit no minute has to be looked at.
            if throttled or (limit is not None and peaks.at_most(ids, measure) * 100 >= limit.value * CLOSE):
                asked.append((place, measure, limit, throttled))
    peaks.look((wanted[place], measure) for place, measure, _, _ in asked)
    found: list[CloseCall] = []
    for (workspace, name), measure, limit, throttled in asked:
        peak, peak_at = peaks.of(wanted[workspace, name], measure)
        value, source = (None, None) if limit is None else (limit.value, limit.source)
        call = CloseCall(measure, workspace, name, None, value, source, peak, peak_at, throttled)
        if throttled or (call.percent or ZERO) >= CLOSE:
            found.append(call)
    if filters.visible is None and not filters.teams:
        found += _cores(session, seen)
    return sorted(
        found, key=lambda call: (-(call.percent or ZERO), -call.throttled, call.workspace or "", call.deployment or "", call.pool or "", call.measure)
    )


def _refused(session: Session, seen: Period, wanted: Mapping[_Place, Sequence[int]]) -> dict[_Place, int]:
    """429s of the period by deployment."""
    of = {one: place for place, ids in wanted.items() for one in ids}
    start, end = (to_microseconds(at) // 1_000_000 for at in (seen.start, seen.end))
    rows = session.execute(
        sa.text(
            "SELECT series_id, SUM(requests) FROM usage_quarter WHERE starts_at >= :start AND starts_at < :end AND outcome / 2 = :throttled GROUP BY series_id"
        ),
        {"start": start, "end": end, "throttled": STATUS_CODE[Status.THROTTLED]},
    )
    found: dict[_Place, int] = {}
    for series, requests in rows:
        if int(series) in of:
            found[of[int(series)]] = found.get(of[int(series)], 0) + int(requests)
    return found


def _cores(session: Session, seen: Period) -> list[CloseCall]:
    """Quotas of vCPUs as Azure told them in the period: of each the fullest word."""
    row = AzureQuota
    asked = select(row).where(
        col(row.known_from) < seen.end,
        sa.or_(col(row.known_to).is_(None), col(row.known_to) > seen.start),
        col(row.level).in_(("family", "total", "low_priority")),
    )
    fullest: dict[str, CloseCall] = {}
    for one in session.exec(asked.order_by(col(row.known_from), col(row.id))):
        pool = f"{one.family} ({one.source}), {one.region}, subscription {one.subscription_id}"
        call = CloseCall("vcpus", None, None, pool, one.quota, "azure", one.used, max(one.known_from, seen.start), 0)
        before = fullest.get(pool)
        if (call.percent or ZERO) >= CLOSE and (before is None or (call.percent or ZERO) > (before.percent or ZERO)):
            fullest[pool] = call
    return list(fullest.values())


def _alerts(session: Session, seen: Period, filters: Filters, *, used: Collection[_Place]) -> list[AlertSeen]:
    """Alerts about limits that were firing at some time of the period, the worst first."""
    row = Alert
    asked = (
        select(row)
        .where(col(row.kind).in_(_TOLD_KINDS), col(row.fired_at) < seen.end, sa.or_(col(row.resolved_at).is_(None), col(row.resolved_at) >= seen.start))
        .order_by(col(row.seq))
    )
    own = {deployment for _, deployment in used}
    found: dict[tuple[str, str], AlertSeen] = {}
    for one in session.exec(asked):
        if not may_see(one.scope, filters.visible) or (filters.teams and one.scope.get("deployment") not in own) or one.fired_at is None:
            continue
        key = (one.rule, one.subject)
        before = found.get(key)
        found[key] = AlertSeen(
            one.rule,
            one.kind.value,
            one.subject,
            one.severity.value if before is None or _rank(one.severity.value) < _rank(before.severity) else before.severity,
            1 if before is None else before.times + 1,
            one.fired_at if before is None else before.first_at,
            one.resolved_at if before is None or before.resolved_at is not None else None,
            one.why,
        )
    return sorted(found.values(), key=lambda one: (_rank(one.severity), -one.times, one.rule, one.subject))


def _rank(severity: str) -> int:
    return [one.value for one in Severity].index(severity)


# -- budgets --------------------------------------------------------------------------------------


def _budgets(session: Session, seen: Period, filters: Filters, *, reading: Reading, now: datetime) -> tuple[list[BudgetLine], int]:
    """The budgets that a reader of this scope may see, the fullest first, and how many there are beside them."""
    row = Budget
    budgets = [
        one
        for one in session.exec(select(row).where(col(row.deleted_at).is_(None)).order_by(col(row.name), col(row.id)))
        if may_see(one.scope, filters.visible) and _is_of(one.scope, filters.teams)
    ]
    found: list[BudgetLine] = []
    for budget in budgets[:MOST_BUDGETS]:
        period = period_of(budget, seen.end - _INSTANT)
        scope = scope_filters(budget.scope, visible=filters.visible)
        basis: Basis = budget.basis  # type: ignore[assignment]  # checked when it was written
        until = max(period.start + _INSTANT, min(period.end, now))
        spent = spend(session, filters=scope, period=Period(period.start, until), basis=basis, currency=budget.currency, now=now, reading=reading)
        ahead = None
        if period.end > now:
            ahead = outlook(
                session,
                filters=scope,
                period=period,
                basis=basis,
                currency=budget.currency,
                now=now,
                time_zone=budget.time_zone,
                spent=spent.amount,
                reading=reading,
            )
        found.append(BudgetLine(budget, period, spent, ahead))
    return sorted(found, key=lambda one: (-(one.percent or ZERO), one.budget.name)), max(0, len(budgets) - MOST_BUDGETS)


def _is_of(scope: Mapping[str, Any], teams: Sequence[str]) -> bool:
    """Whether a budget is one of the teams' own."""
    said = scope.get("team")
    named = [said] if isinstance(said, str) else list(said or ())
    return not teams or (bool(named) and set(named) <= set(teams))


def _percent(part: Decimal, whole: Decimal) -> Decimal | None:
    return money.QUOTIENT.divide(part * 100, whole).quantize(Decimal("0.1")) if whole else None


# -- earlier reports ------------------------------------------------------------------------------


def _earlier(session: Session, week: Week, filters: Filters, *, told_as: tuple[str, str], reading: Reading, now: datetime) -> list[TrueUp]:
    """What the first reports of earlier periods said beside what those periods are now, the latest first."""
    row, (kind, scope) = ReportSnapshot, told_as
    told = session.exec(
        select(row)
        .where(col(row.kind) == kind, col(row.time_zone) == week.time_zone, col(row.scope) == scope, col(row.number) == 0, col(row.period) < week.name)
        .order_by(col(row.period).desc())
        .limit(_LOOKS_BACK[week.unit])
    ).all()
    if not told:
        return []
    spans = {one.period: span_of(week.unit, one.period, now=now, time_zone=week.time_zone).period for one in told}
    query = CostQuery(Period(min(span.start for span in spans.values()), week.period.start), week.unit, (), "best", filters, time_zone=week.time_zone)
    (table,) = costs_together(session, [query], now=now, reading=reading)
    costed = {(one.period.start, one.figures.currency): one.figures.cost for one in table.rows}
    found: list[TrueUp] = []
    for one in told:
        said = {total["currency"]: None if total["cost"] is None else Decimal(total["cost"]) for total in one.body["totals"]}
        start = spans[one.period].start
        codes = sorted(said.keys() | {code for at, code in costed if at == start}, key=lambda code: (code is None, code or ""))
        found += [TrueUp(one.period, code, said.get(code, ZERO), one.made_at, costed.get((start, code), ZERO)) for code in codes]
    return found
