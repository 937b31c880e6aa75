"""What each kind of rule measures: one function per kind, in a table. Reads, and decides nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from collector.alerting import Piece
from collector.reports.delivery import unreached
from collector.rulebook import number
from collector.webhooks.formats import line
from collector.webhooks.schedule import BREAKS_AFTER
from models import money, quotas
from models.alerts import AlertRule, Kind
from models.columns import from_microseconds, to_microseconds
from models.ledger import budgets, rates, taken_back
from models.ledger.costs import costs
from models.ledger.sources import due
from models.ledger.values import CostQuery, Filters
from models.ledger.world import Lens, World
from models.lifecycle import context_tokens, retires_at
from models.limits import Counting, Limits, limits_known
from models.money import ZERO
from models.notices import BY_HAND, Receiver
from models.periods import DAY, Period, day_start, rfc3339
from models.resources import Mode
from models.usage import QUARTER_SECONDS, Operation

_SECOND = timedelta(seconds=1)
# A source that has sent nothing for this long is gone, not late.
_FORGOTTEN = 30 * DAY
# Bills arrive a day or two late; a charged day older than this is no news.
_BILL_NEWS = 7 * DAY
Scope = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """One subject of a rule with its value now; ``pieces`` are its values over the stored window where they are known.

    ``threshold`` and ``clear`` are in the value's own unit, whatever unit the rule was written in.
    """

    scope: Scope
    value: Decimal | None
    threshold: Decimal
    clear: Decimal | None = None
    sample: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""  # the value in words, for "why"
    pieces: Sequence[Piece] | None = None

    @property
    def subject(self) -> str:
        return subject_of(self.scope)


def subject_of(scope: Mapping[str, Any]) -> str:
    """A scope as one text: the part of an alert's identity that is not its rule."""
    return "|".join(f"{name}={value if isinstance(value, str) or value is None else ','.join(sorted(value))}" for name, value in sorted(scope.items()))


@dataclass(frozen=True, slots=True)
class Place:
    """A deployment with the series that are its usage."""

    workspace: str
    deployment: str | None
    model: str | None
    mode: Mode
    series: tuple[int, ...]

    @property
    def scope(self) -> Scope:
        return {"workspace": self.workspace, "deployment": self.deployment}


class Sight:
    """What an evaluation sees: one moment of the database, read once for all rules that need it."""

    def __init__(self, session: Session, now: datetime, *, late: int | None = rates.MAX_LATENESS_SECONDS) -> None:
        self.session = session
        self.now = now
        self._late = late  # None: looking back, usage is what it was, however late it was told
        self._places: dict[str, list[Place]] = {}

    def at(self, now: datetime) -> Sight:
        """The same names and limits, looking from another moment: for what a rule would have seen."""
        other = Sight(self.session, now, late=self._late)
        other.world, other._limits = self.world, self._limits
        other._places = self._places
        return other

    @functools.cached_property
    def world(self) -> World:
        """Names, prices and bills as known now."""
        return World(self.session, self.now)

    def filters(self, rule: AlertRule) -> Filters:
        return budgets.scope_filters(rule.scope)

    def places(self, rule: AlertRule) -> list[Place]:
        """The deployments in the rule's scope that are used, or that inventory has."""
        key = repr(sorted(rule.scope.items()))
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = self._find_places(self.filters(rule))
        return found

    def _find_places(self, filters: Filters) -> list[Place]:
        world, lens = self.world, Lens(self.world, filters)
        series: dict[tuple[str, str | None], list[int]] = {}
        about: dict[tuple[str, str | None], tuple[str | None, Mode]] = {}
        for one in world.series.values():
            identity = world.registry.resolve(workspace=one.workspace, endpoint=one.endpoint, deployment=one.deployment, model=one.model, at=self.now)
            team, _ = world.registry.owner(
                workspace=identity.workspace, deployment=identity.deployment, application=one.application, tags=one.tags, team=one.team, at=self.now
            )
            if identity.workspace is not None and lens.passes(identity, application=one.application, team=team, tags=one.tags):
                key = (identity.workspace, identity.deployment)
                series.setdefault(key, []).append(one.id)
                about.setdefault(key, (identity.model, identity.mode))
        if not (filters.applications or filters.teams or filters.tags):
            for workspace, name in world.registry.deployments():
                identity = world.registry.identity(workspace, name, model=None, at=self.now)
                if identity.workspace is not None and lens.passes(identity, application=None, team=None, tags={}):
                    about.setdefault((identity.workspace, identity.deployment), (identity.model, identity.mode))
        order = sorted(about, key=lambda key: (key[0], key[1] or ""))
        return [Place(key[0], key[1], *about[key], tuple(series.get(key, ()))) for key in order]

    @functools.cached_property
    def _limits(self) -> Limits:
        return limits_known(self.session, self.now)

    def limit(self, place: Place, measure: rates.Measure) -> rates.Limit | None:
        """The limit of a deployment; one's own instances have none but what an owner sets."""
        if place.mode is Mode.MANAGED_COMPUTE and self._limits.of(place.workspace, place.deployment, measure) is None:
            return None
        return rates.limit_of(self._limits, place.workspace, place.deployment, measure)

    # -- rates ----------------------------------------------------------------------------------

    def rate_readings(self, rule: AlertRule, *, start: datetime, keep: frozenset[str] = frozenset()) -> list[Reading]:
        """The rule's rate for each deployment from ``start`` to now; only of those that can be near it, and of ``keep``."""
        measure: rates.Measure = rule.kind.value  # type: ignore[assignment]  # a rate kind
        index = rates.MEASURES.index(measure)
        first, last = to_microseconds(start) // 1_000_000, to_microseconds(self.now) // 1_000_000
        by_minute = self._minutes(first - rule.window_seconds, last)
        per_minute = Decimal(rule.window_seconds) / 60
        hot: list[tuple[Place, Decimal, Decimal | None, rates.Limit | None]] = []
        for place in self.places(rule):
            limit = self.limit(place, measure)
            edges = thresholds(rule, None if limit is None else Decimal(limit.value))
            if edges is None:
                continue
            low = min(edge for edge in edges if edge is not None)
            of_minutes = [by_minute[one] for one in place.series if one in by_minute]
            # The rollup holds billed tokens; calls may be admitted for any number more.
            is_near = bool(of_minutes) if _is_admitted(measure, limit) else rates.bound(of_minutes, index, window=rule.window_seconds) >= low * per_minute
            if is_near or subject_of(place.scope) in keep:
                hot.append((place, *edges, limit))
        if not hot:
            return []
        admitting = [place for place, _, _, limit in hot if _is_admitted(measure, limit)]
        reserves = {one: self._reserve(place, one) for place in admitting for one in place.series if one in by_minute}
        billed = self._seconds(sorted({one for place, *_ in hot for one in place.series if one in by_minute}), first - rule.window_seconds, last)
        admitted = rates.admitted(self.session, series=reserves, start=first - rule.window_seconds, end=last)
        return [
            self._rate_reading(rule, index, place, threshold, clear, limit, admitted if _is_admitted(measure, limit) else billed, first, last)
            for place, threshold, clear, limit in hot
        ]

    def _reserve(self, place: Place, series: int) -> rates.Reserve:
        return rates.Reserve(context_tokens(place.model), self.world.series[series].operation != Operation.EMBEDDINGS)

    def _rate_reading(  # noqa: PLR0917 - one line of rate_readings, taken out
        self,
        rule: AlertRule,
        index: int,
        place: Place,
        threshold: Decimal,
        clear: Decimal | None,
        limit: rates.Limit | None,
        by_second: Mapping[int, Mapping[int, rates.Counts]],
        first: int,
        last: int,
    ) -> Reading:
        window = rule.window_seconds
        line = rates.sliding((by_second[one] for one in place.series if one in by_second), index, window=window, start=first, end=last)
        minutes = Decimal(window) / 60
        pieces = _pieces(line, threshold, clear, minutes, self.now)
        value = Decimal(line[-1][1]) / minutes
        unit = {"tokens_per_minute": "tokens a minute", "requests_per_minute": "requests a minute"}.get(rule.kind.value, "requests throttled (429) a minute")
        sample = {
            "measured": rule.kind.value,
            "window_seconds": window,
            "counting": (Counting.BILLED if limit is None else limit.counting).value,
            "limit": None if limit is None else limit.value,
            "limit_source": None if limit is None else limit.source,
            "from": rfc3339(self.now - timedelta(seconds=window)),
            "to": rfc3339(self.now),
        }
        return Reading(place.scope, value, threshold, clear, sample, unit, pieces)

    def _minutes(self, first: int, last: int) -> dict[int, dict[int, rates.Counts]]:
        key = ("minutes", first, last)
        if key not in self._read:
            self._read[key] = rates.minutes(self.session, start=first, end=last)
        return self._read[key]

    def _seconds(self, series: Sequence[int], first: int, last: int) -> dict[int, dict[int, rates.Counts]]:
        """Seconds of these series; what one rule has read another does not read again."""
        key = ("seconds", first, last)
        known = self._read.setdefault(key, {})
        missing = [one for one in series if one not in known]
        if missing:
            read = rates.seconds(self.session, series=missing, start=first, end=last, late=self._late)
            known.update({one: read.get(one, {}) for one in missing})
        return known

    @functools.cached_property
    def _read(self) -> dict[tuple[str, int, int], dict[int, dict[int, rates.Counts]]]:
        return {}


def _is_admitted(measure: rates.Measure, limit: rates.Limit | None) -> bool:
    return measure == "tokens_per_minute" and limit is not None and limit.counting is Counting.ADMITTED


def _pieces(line: Sequence[tuple[int, int]], threshold: Decimal, clear: Decimal | None, minutes: Decimal, now: datetime) -> list[Piece]:
    """The line in as few pieces as decide alike: at or above the threshold, between it and ``clear``, below. Each has its highest value."""
    upper = threshold * minutes
    lower = upper if clear is None else clear * minutes
    found: list[tuple[int, int, int]] = []  # level, first second, highest
    for second, held in line:
        level = 2 if held >= upper else 1 if held >= lower else 0
        if found and found[-1][0] == level:
            if held > found[-1][2]:
                found[-1] = (level, found[-1][1], held)
        else:
            found.append((level, second, held))
    ends = [from_microseconds(first * 1_000_000) for _, first, _ in found[1:]]
    # Up to now itself: what is due by now happens now.
    ends.append(now + _SECOND)
    return [
        Piece(from_microseconds(first * 1_000_000), end, Decimal(highest) / minutes)
        for (_, first, highest), end in zip(found, ends, strict=True)
        if end > from_microseconds(first * 1_000_000)
    ]


def thresholds(rule: AlertRule, limit: Decimal | None) -> tuple[Decimal, Decimal | None] | None:
    """(threshold, clear) in the value's own unit; None where they are shares of a limit that is not known."""
    if rule.threshold is not None:
        return rule.threshold, rule.clear_threshold
    if rule.threshold_percent is None or limit is None:
        return None
    share = limit / 100
    return money.times(share, rule.threshold_percent), None if rule.clear_threshold is None else money.times(share, rule.clear_threshold)


def _edge(rule: AlertRule) -> Decimal:
    return rule.threshold if rule.threshold is not None else ZERO


def _reading(rule: AlertRule, scope: Scope, value: Decimal | None, said: str, **sample: Any) -> Reading:
    return Reading(scope, value, _edge(rule), rule.clear_threshold, {"measured": rule.kind.value, **sample}, said)


# -- rates, at now --------------------------------------------------------------------------------


def _rates(sight: Sight, rule: AlertRule) -> list[Reading]:
    return sight.rate_readings(rule, start=sight.now - timedelta(seconds=rates.MAX_LATENESS_SECONDS))


# -- money ----------------------------------------------------------------------------------------


def _daily_span(now: datetime) -> Period:
    return Period(now - DAY, now)


def _unpriced_usage(sight: Sight, rule: AlertRule) -> list[Reading]:
    """Tokens of the last 24 hours that no price applies to."""
    period = _daily_span(sight.now)
    table = costs(sight.session, CostQuery(period, "none", (), "metered", sight.filters(rule)), now=sight.now)
    tokens = sum(figures.unpriced_tokens for figures in table.totals)
    reason = next((figures.reasons[name] for figures in table.totals for name in ("unpriced_tokens", "metered_cost") if name in figures.reasons), "")
    sample = {"from": rfc3339(period.start), "to": rfc3339(period.end), "basis": "metered", "reason": reason}
    return [_reading(rule, rule.scope, Decimal(tokens), "tokens without a price in the last 24 hours", **sample)]


def _idle_deployment(sight: Sight, rule: AlertRule) -> list[Reading]:
    """What a managed deployment that nobody called in the last 24 hours has cost in them."""
    filters = sight.filters(rule)
    if filters.modes and Mode.MANAGED_COMPUTE not in filters.modes:
        return []
    period = _daily_span(sight.now)
    asked = Filters(**{**{name: getattr(filters, name) for name in filters.__slots__}, "modes": (Mode.MANAGED_COMPUTE,)})
    by_deployment = CostQuery(period, "none", ("workspace", "deployment"), "metered", asked)
    found: list[Reading] = []
    for row in costs(sight.session, by_deployment, now=sight.now).rows:
        figures, scope = row.figures, dict(row.groups)
        sample = {"from": rfc3339(period.start), "to": rfc3339(period.end), "basis": "metered", "currency": figures.currency, "requests": figures.requests}
        if figures.requests:
            # How much of its cost is idle needs its capacity; a deployment in use is none that nobody needs.
            found.append(_reading(rule, scope, ZERO, "idle cost a day: it was called", **sample))
        else:
            cost = figures.cost if figures.cost is not None else figures.billed_cost
            found.append(_reading(rule, scope, cost, f"{figures.currency or 'of no currency'} a day without a single call", **sample))
    return found


def _unmetered_usage(sight: Sight, rule: AlertRule) -> list[Reading]:
    """Billed above metered on instrumented deployments, on the latest day that the bill has reached: calls past the instruments."""
    until = sight.world.billed_until()
    if until is None or until < sight.now - _BILL_NEWS:
        return [_reading(rule, rule.scope, None, "no bill of the last days")]
    day = Period(until - DAY, until)
    query = CostQuery(day, "none", ("workspace", "deployment"), "billed", sight.filters(rule))
    by_currency: dict[str, Decimal] = {}
    for row in costs(sight.session, query, now=sight.now).rows:
        figures = row.figures
        is_instrumented = row.groups["deployment"] is not None and figures.input_tokens + figures.output_tokens > 0
        if is_instrumented and figures.currency is not None and figures.billed_cost is not None and figures.metered_cost is not None:
            over = money.minus(figures.billed_cost, figures.metered_cost)
            by_currency[figures.currency] = money.plus(by_currency.get(figures.currency, ZERO), max(over, ZERO))
    currency, most = max(by_currency.items(), key=lambda pair: pair[1], default=("", ZERO))
    sample = {"from": rfc3339(day.start), "to": rfc3339(day.end), "basis": "billed", "currency": currency or None}
    return [_reading(rule, rule.scope, most, f"{currency} billed on {day.start:%Y-%m-%d} beyond what was metered".strip(), **sample)]


def _spend_anomaly(sight: Sight, rule: AlertRule) -> list[Reading]:
    """How far the last complete day, or today already, lies outside what its weekday usually costs."""
    filters = sight.filters(rule)
    currencies = [
        figures.currency for figures in costs(sight.session, CostQuery(Period(sight.now - 14 * DAY, sight.now), "none", filters=filters), now=sight.now).totals
    ]
    found: list[budgets.Unusual] = []
    for currency in currencies:
        if currency is not None:
            one = budgets.unusual(budgets.daily(sight.session, filters=filters, basis="best", currency=currency, now=sight.now), currency=currency)
            if one is not None:
                found.append(one)
    most = max(found, key=lambda one: one.percent, default=None)
    if most is None:
        return [_reading(rule, rule.scope, None, "fewer than seven complete days to compare with")]
    sample = {
        "from": rfc3339(day_start(most.day)),
        "to": rfc3339(day_start(most.day + DAY)),
        "basis": "best",
        "currency": most.currency,
        "spent": money.text(most.spent),
        "usually_from": money.text(most.low.quantize(Decimal("0.01"))),
        "usually_to": money.text(most.high.quantize(Decimal("0.01"))),
    }
    return [_reading(rule, rule.scope, most.percent, f"percent outside the usual band on {most.day:%Y-%m-%d}", **sample)]


# -- sources and models ---------------------------------------------------------------------------


def _stale_source(sight: Sight, rule: AlertRule) -> list[Reading]:
    """Minutes since a sender's newest call, for each that sent something in the last 30 days; and those since which a bill or pull is late."""
    since = to_microseconds(sight.now - _FORGOTTEN) // 1_000_000
    passing = {one for place in sight.places(rule) for one in place.series}
    latest: dict[tuple[str, str], int] = {}
    rows = sight.session.execute(
        sa.text(
            "SELECT q.series_id, s.name, MAX(q.starts_at) FROM usage_quarter q JOIN usage_series u ON u.id = q.series_id "
            "JOIN usage_source s ON s.id = u.source_id WHERE q.starts_at >= :since GROUP BY q.series_id, s.name"
        ),
        {"since": since},
    )
    quarters: dict[int, tuple[tuple[str, str], int]] = {}
    for series, source, quarter in rows:
        if int(series) in passing:
            key = (sight.world.series[int(series)].workspace, str(source))
            quarters[int(series)] = (key, int(quarter))
            latest[key] = max(latest.get(key, 0), int(quarter))
    newest: dict[tuple[str, str], int] = {}
    for series, (key, quarter) in quarters.items():
        if quarter == latest[key]:
            # Within the last quarter hour that has any, the minute.
            minute = sight.session.scalar(
                sa.text("SELECT MAX(starts_at) FROM usage_minute WHERE starts_at >= :start AND starts_at < :end AND series_id = :series"),
                {"start": quarter, "end": quarter + QUARTER_SECONDS, "series": series},
            )
            newest[key] = max(newest.get(key, 0), int(minute) if minute is not None else quarter)
    found: list[Reading] = []
    for (workspace, source), second in sorted(newest.items()):
        at = from_microseconds(second * 1_000_000)
        minutes = max(0, int((sight.now - at).total_seconds() // 60))
        found.append(_reading(rule, {"workspace": workspace, "source": source}, Decimal(minutes), "minutes since its newest call", newest=rfc3339(at)))
    if rule.scope:
        return found  # bills and pulls are of subscriptions: of no workspace, deployment or team
    for one in due(sight.session, now=sight.now):
        late = 0 if one.late_since is None else int((sight.now - one.late_since).total_seconds() // 60)
        last = None if one.last is None else rfc3339(one.last)
        found.append(_reading(rule, {"source": one.name}, Decimal(late), f"minutes late; {one.said}", newest=last))
    return found


def _model_retirement(sight: Sight, rule: AlertRule) -> list[Reading]:
    """Hours left until a deployment's model retires, where a date is known."""
    found: list[Reading] = []
    for place in sight.places(rule):
        fact = sight.world.registry.fact(place.workspace, place.deployment, sight.now) if place.deployment else None
        ends = retires_at(fact, sight.world.registry.route(fact)) if fact is not None and fact.source == "inventory" else None
        if ends is not None:
            left = _hours_until(ends, sight.now)
            found.append(_reading(rule, place.scope, left, f"hours until {place.model or 'its model'} retires", retires_at=rfc3339(ends)))
    return found


def _hours_until(at: datetime, now: datetime) -> Decimal:
    return (Decimal(to_microseconds(at) - to_microseconds(now)) / 3_600_000_000).quantize(Decimal("0.01"))


# -- what others measure --------------------------------------------------------------------------


def _core_quota(sight: Sight, rule: AlertRule) -> list[Reading]:
    """How many vCPUs are in use, or their share of the limit, per region and family; nothing until quotas were pulled."""
    filters = sight.filters(rule)
    found: list[Reading] = []
    for row in quotas.azure_quotas(sight.session, known=sight.now):
        edges = thresholds(rule, None if row.quota is None else Decimal(row.quota))
        if row.level not in ("family", "total") or edges is None or not _is_home(sight, filters, row):
            continue
        share = money.ratio(Decimal(row.used) * 100, Decimal(row.quota)) if row.quota else None
        sample = {
            "measured": rule.kind.value,
            "limit": row.quota,
            "limit_source": f"Azure ({row.source})",
            "percent": None if share is None else number(share.quantize(Decimal("0.1"))),
            "seen_at": rfc3339(row.seen_at),
        }
        scope = {"subscription": row.subscription_id, "region": row.region, "source": row.source, "family": row.family}
        limit = "without a limit" if row.quota is None else f"of {row.quota}"
        found.append(Reading(scope, Decimal(row.used), *edges, sample, f"vCPUs in use {limit}"))
    return found


def _is_home(sight: Sight, filters: Filters, row: quotas.AzureQuota) -> bool:
    """Whether a workspace of the scope runs on that subscription's cores in that region."""
    if not filters.workspaces:
        return True
    for workspace in filters.workspaces:
        fact = sight.world.registry.workspace_fact(workspace, sight.now)
        if (
            fact is not None
            and sight.world.registry.subscription(workspace, sight.now) == row.subscription_id
            and (fact.region or "").casefold() == row.region.casefold()
        ):
            return True
    return False


def _shared_quota_deletion(sight: Sight, rule: AlertRule) -> list[Reading]:
    """Hours until Azure deletes an endpoint that runs on shared quota; nothing until inventory was pulled."""
    filters = sight.filters(rule)
    found: list[Reading] = []
    for row in quotas.endpoints(sight.session, known=sight.now):
        at = row.deletes_at
        is_asked = not filters.deployments or any(name.split("/", 1)[0].casefold() == row.endpoint.casefold() for name in filters.deployments)
        if at is None or not is_asked or (filters.workspaces and row.workspace not in filters.workspaces):
            continue
        scope = {"workspace": row.workspace, "endpoint": row.endpoint}
        found.append(_reading(rule, scope, _hours_until(at, sight.now), "hours until Azure deletes the endpoint (shared quota)", deletes_at=rfc3339(at)))
    return found


def _double_source(sight: Sight, rule: AlertRule) -> list[Reading]:
    """Pairs of sources that look like the same traffic: the share of calls that agree, in percent."""
    return [
        _reading(rule, scope, share, "percent of the calls look the same from two sources", sources=list(sources))
        for scope, share, sources in double_sources(sight.session, now=sight.now)
        if _in_scope(sight.filters(rule), scope)
    ]


def _report_delivery(sight: Sight, rule: AlertRule) -> list[Reading]:
    """What of each schedule's newest reports went wrong: not made, not taken by a receiver, not written."""
    return [
        _reading(
            rule,
            {"schedule": one.schedule.id},
            Decimal(len(one.faults)),
            f"parts of the reports of {line(one.schedule.name, 80)} went wrong" + (f": {line('; '.join(one.faults), 600)}" if one.faults else ""),
            schedule=one.schedule.name,
            faults=list(one.faults[:20]),
        )
        for one in unreached(sight.session)
    ]


def _unreached_receiver(sight: Sight, rule: AlertRule) -> list[Reading]:
    """Attempts in a row that a receiver did not take; one that ended itself (410) is as bad as one that is left alone."""
    receivers = sight.session.exec(select(Receiver).where(col(Receiver.deleted_at).is_(None)).order_by(col(Receiver.id)))
    return [
        _reading(
            rule,
            {"receiver": row.id},
            Decimal(row.failures if row.is_enabled else max(row.failures, BREAKS_AFTER)),
            f"attempts in a row did not reach {line(row.name, 80)}"
            if row.is_enabled
            else f"failures are counted for {line(row.name, 80)}, which is switched off: {row.disabled_reason}",
            receiver=row.name,
            disabled_reason=row.disabled_reason or None,
        )
        for row in receivers
        if row.is_enabled or row.disabled_reason != BY_HAND
    ]


def _heartbeat(_sight: Sight, rule: AlertRule) -> list[Reading]:
    """Always so: that it is told says that we live."""
    return [Reading(rule.scope, Decimal(1), Decimal(1), None, {"measured": rule.kind.value}, "meterbridge is alive")]


def _in_scope(filters: Filters, scope: Mapping[str, Any]) -> bool:
    return (not filters.workspaces or scope.get("workspace") in filters.workspaces) and (
        not filters.deployments or scope.get("deployment") in filters.deployments
    )


def double_sources(session: Session, *, now: datetime) -> Iterable[tuple[Scope, Decimal, tuple[str, ...]]]:
    """(scope, percent alike, sources) of pairs that look like the same traffic."""
    for found in taken_back.double_sources(session, now=now):
        yield {"workspace": found.workspace, "deployment": found.deployment}, found.share, found.sources


Measure = Callable[[Sight, AlertRule], list[Reading]]
MEASURES: Mapping[Kind, Measure] = {
    Kind.TOKENS_PER_MINUTE: _rates,
    Kind.REQUESTS_PER_MINUTE: _rates,
    Kind.THROTTLED_REQUESTS: _rates,
    Kind.CORE_QUOTA: _core_quota,
    Kind.SHARED_QUOTA_DELETION: _shared_quota_deletion,
    Kind.SPEND_ANOMALY: _spend_anomaly,
    Kind.UNMETERED_USAGE: _unmetered_usage,
    Kind.IDLE_DEPLOYMENT: _idle_deployment,
    Kind.UNPRICED_USAGE: _unpriced_usage,
    Kind.STALE_SOURCE: _stale_source,
    Kind.MODEL_RETIREMENT: _model_retirement,
    Kind.DOUBLE_SOURCE: _double_source,
    Kind.UNREACHED_RECEIVER: _unreached_receiver,
    Kind.REPORT_DELIVERY: _report_delivery,
    Kind.HEARTBEAT: _heartbeat,
}
# These ask the ledger for sums over days; they are measured when something changed, and not more often than they are quick.
SLOW_KINDS = frozenset(
    {Kind.SPEND_ANOMALY, Kind.UNMETERED_USAGE, Kind.IDLE_DEPLOYMENT, Kind.UNPRICED_USAGE, Kind.DOUBLE_SOURCE, Kind.CORE_QUOTA, Kind.REPORT_DELIVERY}
)
