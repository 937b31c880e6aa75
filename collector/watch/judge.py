"""The watch: look, decide, and store what changed together with the notices of it.

Holds always: of a rule, subject and step at most one alert is open; a firing that was told is told as resolved; a notice
exists if and only if the transition it tells of is stored. What a process knew in memory only decides how soon it looks.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol

import sqlalchemy as sa
from sqlmodel import Session, col, select

from collector import rulebook
from collector.alerting import INACTIVE, Episode, Phase, Policy, Reason, Sample, State, decide, follow, is_crossed, steps_crossed
from collector.watch.measures import MEASURES, SLOW_KINDS, Reading, Sight
from collector.webhooks.schedule import BREAKS_AFTER
from models import money
from models.alerts import (
    BUDGET_KINDS,
    COUNTDOWN_KINDS,
    RATE_KINDS,
    Alert,
    AlertRule,
    AlertState,
    AuditEntry,
    Budget,
    BudgetStep,
    Kind,
    Severity,
    Silence,
    WatchLease,
    WatchMark,
)
from models.charges import BillPart
from models.columns import EPOCH, from_microseconds
from models.errors import DomainError
from models.ledger import budgets, rates
from models.periods import rfc3339, utc_day
from models.prices import Price
from models.silences import Quiet, labels_of, silenced_by
from models.store import Store

logger = logging.getLogger(__name__)

# More alerts of one rule than this, firing in one evaluation, are told by one notice.
GROUP_FROM = 6
# The longest stretch of the past that a rule is judged over when it is new.
_LONGEST_LOOK = timedelta(hours=24)
_LATENESS = timedelta(seconds=rates.MAX_LATENESS_SECONDS)
# How often it is written down how far a rule was judged, and how often everything is looked at though nothing changed.
_MARK_EVERY = timedelta(seconds=60)
# Shorter than an evaluation may be late (15 s), longer than two are apart.
_LEASE_FOR = timedelta(seconds=12)
_LEASE = "watch"
_BEAT = timedelta(minutes=1)
# PostgreSQL's advisory lock under which alerts are written; any number of ours.
_WRITE_LOCK = 0x6D62616C
# Sums over days may take this share of the time at most.
_SLOW_SHARE = 3.0
_OPEN = (AlertState.PENDING, AlertState.FIRING)
_SUBJECT_OF_LIMIT = "limit"

NoticeType = Literal["alert.firing", "alert.resolved"]
Step = Literal["begin", "fire", "resolve", "drop", "quiet", "beat"]


class Post(Protocol):
    """Puts a notice and its deliveries into the outbox, in the caller's transaction."""

    def __call__(self, session: Session, *, alert: Mapping[str, Any], type: NoticeType, receivers: Sequence[str] | None, now: datetime) -> object: ...  # noqa: A002


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one alert. ``alert_id`` None: a new one."""

    step: Step
    rule: AlertRule | Budget | None
    state: State
    why: str
    reading: Reading | None = None
    alert_id: str | None = None
    kind: Kind | None = None
    subject: str = ""
    budget_step: int | None = None
    crossed: tuple[int, ...] = ()
    period_start: datetime | None = None


@dataclass(slots=True)
class Picture:
    """What an evaluation decided, to be stored if it still stands then."""

    changes: list[Change] = field(default_factory=list)
    judged: dict[str, int] = field(default_factory=dict)  # rate rules by revision
    needs_mark: bool = False
    untold: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.changes and not self.needs_mark and not self.untold


class Watcher:
    """Evaluates everything of one database; ``clock`` counts seconds, for pacing only."""

    def __init__(self, post: Post, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._post = post
        self._clock = clock
        self._holder = secrets.token_hex(8)
        self._has_builtins = False
        self._tide: tuple[object, ...] | None = None
        self._slow_at: datetime | None = None
        self._slow_after = float("-inf")
        self._next_period: datetime | None = None

    def run(self, store: Store, *, now: datetime) -> bool:
        """One evaluation; False where another process is the one that judges."""
        if not store.is_sqlite and not self._lease(store, now):
            return False
        if not self._has_builtins:
            with store.write() as session:
                ensure_builtins(session, now=now)
            self._has_builtins = True
        with store.read() as session:
            picture = self._look(session, now)
            session.expunge_all()  # what was read stays readable when the session is over
        if picture.is_empty:
            return True
        with store.write() as session:
            return self._store(session, picture, is_sqlite=store.is_sqlite, now=now)

    def _lease(self, store: Store, now: datetime) -> bool:
        """Whether this process is the one that judges, for the next seconds; the SQLite file has one process anyway."""
        with store.write() as session:
            session.execute(
                sa.text("INSERT INTO watch_lease (name, holder, epoch, expires_at, judged_at) VALUES (:name, :holder, 0, 0, 0) ON CONFLICT DO NOTHING"),
                {"name": _LEASE, "holder": ""},
            )
            row = session.exec(select(WatchLease).where(WatchLease.name == _LEASE).with_for_update()).one()
            if row.holder != self._holder:
                if row.expires_at > now:
                    return False
                row.holder, row.epoch = self._holder, row.epoch + 1
                logger.info("this process judges alerts from now on")
            row.expires_at = now + _LEASE_FOR
            session.add(row)
        return True

    # -- look -----------------------------------------------------------------------------------

    def _look(self, session: Session, now: datetime) -> Picture:
        picture = Picture()
        rules = {rule.id: rule for rule in rulebook.standing(session, AlertRule) if rule.is_enabled}
        every_budget = {budget.id: budget for budget in rulebook.standing(session, Budget)}
        alerts = _open_alerts(session)
        marks = {mark.rule_id: mark for mark in session.exec(select(WatchMark))}
        picture.untold = any(one.state is AlertState.FIRING and one.told_at is None for one in alerts)
        by_rule: dict[str, list[Alert]] = {}
        for one in alerts:
            by_rule.setdefault(one.rule_id, []).append(one)
        for one in alerts:
            picture.changes += _without_rule(one, rules, every_budget, now)
        sight = Sight(session, now)
        is_slow_due, tide = self._is_slow_due(session, now)
        started = self._clock()
        for rule in rules.values():
            own = by_rule.get(rule.id, [])
            if rule.kind in SLOW_KINDS and not is_slow_due:
                continue
            try:
                if rule.kind in RATE_KINDS:
                    picture.changes += _judge_rate(session, sight, rule, marks.get(rule.id), own)
                    mark = marks.get(rule.id)
                    picture.judged[rule.id] = rule.revision
                    picture.needs_mark |= mark is None or mark.revision != rule.revision or now - mark.judged_at >= _MARK_EVERY
                else:
                    picture.changes += _judge_now(sight, rule, own, now)
            except DomainError as fault:
                # One rule that cannot be measured must not keep the others from being judged.
                logger.warning("rule %s (%s) could not be measured: %s", rule.name, rule.id, fault.message)
        if is_slow_due:
            for budget in every_budget.values():
                try:
                    picture.changes += _judge_budget(session, budget, by_rule.get(budget.id, []), now)
                except DomainError as fault:
                    logger.warning("budget %s (%s) could not be measured: %s", budget.name, budget.id, fault.message)
            self._tide, self._slow_at = tide, now
            self._next_period = min((budgets.period_of(budget, now).end for budget in every_budget.values()), default=None)
            self._slow_after = self._clock() + _SLOW_SHARE * (self._clock() - started)
        return picture

    def _is_slow_due(self, session: Session, now: datetime) -> tuple[bool, tuple[object, ...]]:
        """Whether sums over days are to be made again: something changed or a minute went by, and they do not take all the time."""
        tide = tide_of(session)
        has_changed = tide != self._tide or self._slow_at is None or now - self._slow_at >= _MARK_EVERY
        has_changed |= self._next_period is not None and now >= self._next_period
        return has_changed and self._clock() >= self._slow_after, tide

    # -- store ----------------------------------------------------------------------------------

    def _store(self, session: Session, picture: Picture, *, is_sqlite: bool, now: datetime) -> bool:
        if not is_sqlite:
            lock_alerts(session, is_sqlite=is_sqlite)
            lease = session.get(WatchLease, _LEASE)
            if lease is None or lease.holder != self._holder:
                return False  # another process took over meanwhile, and has judged this itself
        ledger = _Ledger(session, now=now)
        for change in picture.changes:
            ledger.apply(change)
        ledger.report_limits()
        ledger.tell(self._post)
        if picture.needs_mark:
            for rule_id, revision in picture.judged.items():
                session.merge(WatchMark(rule_id=rule_id, revision=revision, judged_at=now))
        session.flush()
        return True


def lock_alerts(session: Session, *, is_sqlite: bool) -> None:
    """Alerts are written by one transaction at a time; on SQLite every write is."""
    if not is_sqlite:
        session.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITE_LOCK})


def tide_of(session: Session) -> tuple[object, ...]:
    """What changes when any figure may have: the newest of everything that figures are made of."""
    row = session.execute(
        sa.text(
            "SELECT (SELECT MAX(last_received_at) FROM usage_arrival WHERE arrived_at = (SELECT MAX(arrived_at) FROM usage_arrival)), "
            "(SELECT SUM(events) FROM usage_arrival WHERE arrived_at = (SELECT MAX(arrived_at) FROM usage_arrival)), (SELECT MAX(id) FROM bill_part), (SELECT MAX(landed_at) FROM bill_part), (SELECT MAX(id) FROM price), "
            "(SELECT MAX(known_to) FROM price), (SELECT MAX(id) FROM deployment_fact), (SELECT MAX(known_to) FROM deployment_fact), "
            "(SELECT MAX(id) FROM workspace_fact), (SELECT MAX(id) FROM owner), (SELECT MAX(updated_at) FROM alert_rule), (SELECT MAX(updated_at) FROM budget), "
            "(SELECT COUNT(*) FROM alert_rule WHERE deleted_at IS NULL), (SELECT COUNT(*) FROM budget WHERE deleted_at IS NULL)"
        )
    ).one()
    return tuple(row)


def _open_alerts(session: Session) -> list[Alert]:
    return list(session.exec(select(Alert).where(col(Alert.open_key).is_not(None)).order_by(col(Alert.seq))))


def state_of(alert: Alert) -> State:
    """The state that a row tells of."""
    return State(Phase(alert.state.value), alert.pending_at, alert.fired_at, alert.quiet_since, alert.resolved_at)


def policy_of(rule: AlertRule, reading: Reading) -> Policy:
    """How a rule judges a reading."""
    return Policy(
        reading.threshold,
        reading.clear,
        rule.kind in COUNTDOWN_KINDS,
        timedelta(seconds=rule.for_seconds),
        timedelta(seconds=rule.keep_firing_for_seconds),
        rule.no_data,
    )


def _without_rule(alert: Alert, rules: Mapping[str, AlertRule], every_budget: Mapping[str, Budget], now: datetime) -> list[Change]:
    """The end of an alert whose rule or budget is gone, or that nobody has confirmed in time."""
    if alert.kind is Kind.EXTERNAL:
        is_over = alert.expires_at is not None and alert.expires_at <= now
        return [_end(alert, None, now, "nobody said again that it still holds; it expired")] if is_over else []
    if alert.kind in BUDGET_KINDS:
        return [] if alert.rule_id in every_budget else [_end(alert, None, now, "the budget was deleted")]
    return [] if alert.rule_id in rules else [_end(alert, None, now, "the rule was deleted or switched off")]


def _end(alert: Alert, rule: AlertRule | Budget | None, at: datetime, why: str, reading: Reading | None = None) -> Change:
    if alert.state is AlertState.PENDING:
        return Change("drop", rule, INACTIVE, why, reading, alert.id)
    return Change("resolve", rule, replace(state_of(alert), phase=Phase.RESOLVED, resolved_at=at), why, reading, alert.id)


# -- rules ----------------------------------------------------------------------------------------


def _judge_now(sight: Sight, rule: AlertRule, own: Sequence[Alert], now: datetime) -> list[Change]:
    """A kind whose value is known for this moment only."""
    readings = {reading.subject: reading for reading in MEASURES[rule.kind](sight, rule)}
    alerts = {alert.subject: alert for alert in own if alert.subject != _SUBJECT_OF_LIMIT}
    changes: list[Change] = []
    # The worst first: of more than the rule's limit the others are left out.
    ordered = sorted(readings.values(), key=lambda reading: (_badness(rule, reading), reading.subject))
    for reading in ordered:
        alert = alerts.get(reading.subject)
        done = decide(policy_of(rule, reading), state_of(alert) if alert else INACTIVE, Sample(now, reading.value))
        changes += _changed(rule, alert, done.state, done.reason, reading)
    for subject, alert in alerts.items():
        if subject not in readings:
            gone = Reading(dict(alert.scope), None, alert.threshold or Decimal(0))
            done = decide(policy_of(rule, gone), state_of(alert), Sample(now, None))
            changes += _changed(rule, alert, done.state, done.reason, gone)
    if rule.kind is Kind.HEARTBEAT:
        every = timedelta(minutes=max(1, int(rule.threshold))) if rule.threshold is not None else _BEAT
        changes += [
            Change("beat", rule, state_of(alert), alert.why, None, alert.id)
            for alert in own
            if alert.state is AlertState.FIRING and alert.told_at is not None and alert.told_at + every <= now
        ]
    return changes


def _badness(rule: AlertRule, reading: Reading) -> Decimal:
    if reading.value is None:
        return Decimal("Infinity")
    return reading.value if rule.kind in COUNTDOWN_KINDS else -reading.value


def _judge_rate(session: Session, sight: Sight, rule: AlertRule, mark: WatchMark | None, own: Sequence[Alert]) -> list[Change]:
    """A rate, judged over the whole window that arrivals may still change: what was missed there is told, what is older is not."""
    now = sight.now
    holding = timedelta(seconds=rule.for_seconds + rule.keep_firing_for_seconds)
    start = now - _LATENESS
    if mark is None or mark.revision != rule.revision or mark.judged_at < start:
        # New, edited, or nobody has judged for a while: "for" counts over what is stored.
        start -= min(holding, _LONGEST_LOOK)
    is_known = mark is not None and mark.revision == rule.revision and mark.judged_at >= start
    alerts = {alert.subject: alert for alert in own if alert.subject != _SUBJECT_OF_LIMIT}
    readings = {reading.subject: reading for reading in sight.rate_readings(rule, start=start, keep=frozenset(alerts))}
    changes: list[Change] = []
    for reading in sorted(readings.values(), key=lambda reading: (_badness(rule, reading), reading.subject)):
        alert = alerts.get(reading.subject)
        state, episodes = follow(policy_of(rule, reading), _seed(alert, start, is_known=is_known), reading.pieces or ())
        last = episodes[-1] if episodes else None
        if alert is None and state.phase is not Phase.FIRING:
            missed = [one for one in episodes if one.resolved_at is not None and one.resolved_at > now - _LATENESS]
            if missed and (missed := _untold(session, rule, reading.subject, missed, now)):
                # It is over already: told as firing now, and as resolved the next time.
                begun = State(Phase.FIRING, missed[0].pending_at, missed[0].fired_at)
                peak = replace(reading, value=max(one.peak or Decimal(0) for one in missed))
                changes.append(Change("begin", rule, begun, f"{_said(peak)}, on {rfc3339(missed[0].fired_at)}; late data", peak))
                continue
        shown = reading if last is None or last.peak is None or state.phase is not Phase.FIRING else replace(reading, value=last.peak)
        if alert is None and last is not None and state.phase is Phase.FIRING and not _untold(session, rule, reading.subject, [last], now):
            continue  # late data moved the end of an alert that has been told and resolved
        reason = {Phase.FIRING: Reason.LASTED if rule.for_seconds else Reason.REACHED, Phase.PENDING: Reason.WAITING}.get(state.phase, Reason.ENDED)
        if alert is not None and alert.state is AlertState.FIRING and state.phase is Phase.RESOLVED and last is not None and last.resolved_at is not None:
            state = replace(state, resolved_at=max(last.resolved_at, alert.fired_at or last.resolved_at))
        changes += _changed(rule, alert, state, reason, shown)
    for subject, alert in alerts.items():
        if subject not in readings:
            changes.append(_end(alert, rule, now, "the deployment is no longer in the rule's scope, or has no limit"))
    return changes


def _seed(alert: Alert | None, start: datetime, *, is_known: bool) -> State:
    """The state at the start of the window, as far as a row tells it; what began later the window shows itself."""
    if alert is None:
        return INACTIVE
    if alert.fired_at is not None and alert.fired_at <= start:
        quiet = alert.quiet_since if alert.quiet_since is not None and alert.quiet_since <= start else None
        return State(Phase.FIRING, alert.pending_at, alert.fired_at, quiet)
    return State(Phase.PENDING, alert.pending_at) if alert.pending_at <= start and is_known else INACTIVE


def _untold(session: Session, rule: AlertRule, subject: str, episodes: Sequence[Episode], now: datetime) -> list[Episode]:
    """Of these episodes those that no alert of the rule and subject has been about.

    One that is over, and began while the rule was at its limit of alerts, was left out then and is no news now.
    """
    subjects = [subject, _SUBJECT_OF_LIMIT] if all(one.resolved_at is not None for one in episodes) else [subject]
    known = [
        (alert.pending_at, alert.resolved_at or now)
        for alert in session.exec(
            select(Alert)
            .where(Alert.rule_id == rule.id, col(Alert.subject).in_(subjects), col(Alert.fired_at).is_not(None))
            .order_by(col(Alert.seq).desc())
            .limit(50)
        )
    ]
    return [one for one in episodes if not any(begun <= (one.resolved_at or now) and one.pending_at <= ended for begun, ended in known)]


def _changed(rule: AlertRule, alert: Alert | None, state: State, reason: Reason, reading: Reading) -> list[Change]:
    """What a judgement changes about the row, if anything."""
    # A heartbeat has nothing that could be above or below.
    why = (
        reading.said
        if rule.kind is Kind.HEARTBEAT
        else f"{_said(reading)}: {reason.value}" + ("" if reason is Reason.NO_DATA else "; new usage" if rule.kind in RATE_KINDS and state.is_open else "")
    )
    if alert is None:
        return [Change("begin", rule, state, why, reading)] if state.is_open else []
    match state.phase:
        case Phase.PENDING:
            # A firing one that would only be pending now (its rule was edited) has ended; it begins anew the next time.
            return [] if alert.state is AlertState.PENDING else [_end(alert, rule, state.pending_at or alert.pending_at, why, reading)]
        case Phase.FIRING:
            if alert.state is AlertState.PENDING:
                return [Change("fire", rule, state, why, reading, alert.id)]
            return [] if alert.quiet_since == state.quiet_since else [Change("quiet", rule, state, why, None, alert.id)]
        case Phase.RESOLVED:
            return (
                [Change("drop", rule, INACTIVE, why, reading, alert.id)]
                if alert.state is AlertState.PENDING
                else [Change("resolve", rule, state, why, reading, alert.id)]
            )
        case Phase.INACTIVE:
            return [_end(alert, rule, reading_at(reading, alert), why, reading)]


def reading_at(reading: Reading, alert: Alert) -> datetime:
    """When a reading ends an alert that its window knows nothing of any more."""
    return reading.pieces[-1].start if reading.pieces else alert.pending_at


def _said(reading: Reading) -> str:
    if reading.value is None:
        return f"no data{' (' + reading.said + ')' if reading.said else ''}"
    return f"{rulebook.number(_short(reading.value))} {reading.said}, threshold {rulebook.number(_short(reading.threshold))}"


def _short(value: Decimal) -> Decimal:
    return value if value == value.to_integral_value() else value.quantize(Decimal("0.01"))


# -- budgets --------------------------------------------------------------------------------------


def _judge_budget(session: Session, budget: Budget, own: Sequence[Alert], now: datetime) -> list[Change]:
    """The steps of a budget in the period that is running; what happened to past periods tells nobody."""
    said = budgets.spend_of(session, budget, now=now)
    subject = f"{rfc3339(said.period.start)} #{budget.revision}"
    percent = money.ratio(money.times(said.amount, 100), budget.amount) or Decimal(0)
    sample: dict[str, Any] = {
        "measured": "spend",
        "spent": money.text(said.amount),
        "amount": money.text(budget.amount),
        "used_percent": money.text(percent.quantize(Decimal("0.1"))),
        "remaining": money.text(money.minus(budget.amount, said.amount)),
        "currency": budget.currency,
        "basis": budget.basis,
        "period": budget.period,
        "time_zone": budget.time_zone,
        "from": rfc3339(said.period.start),
        "to": rfc3339(said.period.end),
        "status": said.status,
        "unpriced_tokens": said.unpriced_tokens,
        "unknown_token_requests": said.unknown_token_requests,
    }
    changes: list[Change] = []
    for alert in own:
        if alert.subject != subject:
            is_edited = alert.subject.rpartition("#")[2] != str(budget.revision)
            changes.append(_end(alert, budget, now, "the budget was edited; its steps are armed again" if is_edited else "the period ended"))
        elif alert.kind is Kind.BUDGET and alert.step is not None and not is_crossed(spent=said.amount, amount=budget.amount, step=alert.step):
            cause = cause_of(session, budget)
            fallen = f"{money.said(said.amount, budget.currency)} spent, below {alert.step} % of {money.said(budget.amount, budget.currency)}: {cause}"
            changes.append(_end(alert, budget, now, fallen))
    current = [alert for alert in own if alert.subject == subject]
    changes += _steps(session, budget, Kind.BUDGET, budget.steps, said.amount, said, subject, sample, current, now, "spent")
    if budget.forecast_steps:
        filters = budgets.scope_filters(budget.scope)
        basis: Any = budget.basis
        seen = budgets.outlook(
            session, filters=filters, period=said.period, basis=basis, currency=budget.currency, now=now, time_zone=budget.time_zone, spent=said.amount
        )
        if seen.expected is not None:
            more = {
                "expected": money.text(seen.expected),
                "low": None if seen.low is None else money.text(seen.low),
                "high": None if seen.high is None else money.text(seen.high),
                "error_percent": None if seen.error_percent is None else money.text(seen.error_percent),
            }
            changes += _steps(
                session,
                budget,
                Kind.BUDGET_FORECAST,
                budget.forecast_steps,
                seen.expected,
                said,
                subject,
                sample | more,
                current,
                now,
                "expected at the period's end",
            )
    return changes


def _steps(  # noqa: PLR0917 - twice the same of two figures
    session: Session,
    budget: Budget,
    kind: Kind,
    steps: Sequence[int],
    amount: Decimal,
    said: budgets.Spend,
    subject: str,
    sample: Mapping[str, Any],
    current: Sequence[Alert],
    now: datetime,
    what: str,
) -> list[Change]:
    claims = session.exec(
        select(BudgetStep.step).where(
            BudgetStep.budget_id == budget.id, BudgetStep.revision == budget.revision, BudgetStep.period_start == said.period.start, BudgetStep.kind == kind
        )
    )
    found = steps_crossed(spent=amount, amount=budget.amount, steps=steps, claimed=claims)
    pending = {alert.step: alert for alert in current if alert.kind is kind and alert.state is AlertState.PENDING}
    changes = [_end(alert, budget, now, "it is no longer expected") for step, alert in pending.items() if step != found.telling]
    if found.telling is None:
        return changes
    step = found.telling
    edge = money.times(budget.amount, Decimal(step) / 100)
    why = f"{money.said(amount, budget.currency)} {what}, at or above {step} % of {money.said(budget.amount, budget.currency)}: {cause_of(session, budget)}"
    reading = Reading(dict(budget.scope), amount, edge, None, dict(sample))
    alert = pending.get(step)
    common = {"kind": kind, "subject": subject, "budget_step": step, "crossed": found.crossed, "period_start": said.period.start}
    if kind is Kind.BUDGET_FORECAST and alert is None:
        # One look may catch a burst; the second one in a row tells.
        return [*changes, Change("begin", budget, State(Phase.PENDING, now), why, reading, **(common | {"crossed": ()}))]  # type: ignore[arg-type]
    begun = alert.pending_at if alert is not None else now
    state = State(Phase.FIRING, begun, now)
    return [*changes, Change("fire" if alert else "begin", budget, state, why, reading, alert.id if alert else None, **common)]  # type: ignore[arg-type]


def cause_of(session: Session, budget: Budget) -> str:
    """What moved the figure last: usage, a bill, a price or the budget itself."""
    newest = session.execute(
        sa.text(
            "SELECT last_received_at, happened_on FROM usage_arrival WHERE arrived_at = (SELECT MAX(arrived_at) FROM usage_arrival) "
            "ORDER BY last_received_at DESC, happened_on DESC LIMIT 1"
        )
    ).first()
    arrived = None if newest is None else from_microseconds(int(newest[0]))
    # The day's end and a day more: what arrives after midnight is not late yet.
    is_late = arrived is not None and newest is not None and utc_day(arrived) - (EPOCH.date() + timedelta(days=int(newest[1]))) > timedelta(days=1)
    landed = session.exec(select(BillPart.landed_at).order_by(col(BillPart.landed_at).desc()).limit(1)).first()
    priced = session.exec(select(Price.known_from).where(col(Price.origin) != "bundled").order_by(col(Price.known_from).desc()).limit(1)).first()
    # Of a tie the later one here: a budget made in the same instant is why it is judged.
    causes = [
        (arrived, "late data" if is_late else "new usage"),
        (landed, "a bill arrived"),
        (priced, "price change"),
        (budget.updated_at, "budget edited" if budget.revision > 1 else "budget created"),
    ]
    return max(((at, index, name) for index, (at, name) in enumerate(causes) if at is not None), default=(None, 0, "new usage"))[2]


# -- storing and telling --------------------------------------------------------------------------


class _Ledger:
    """The alerts of one writing transaction."""

    def __init__(self, session: Session, *, now: datetime) -> None:
        self._session = session
        self._now = now
        self._alerts = {alert.id: alert for alert in _open_alerts(session)}
        self._keys = {alert.open_key for alert in self._alerts.values()}
        self._seq = int(session.scalar(sa.select(sa.func.coalesce(sa.func.max(col(Alert.seq)), 0))) or 0)
        self._per_rule: dict[str, int] = {}
        for alert in self._alerts.values():
            if alert.subject != _SUBJECT_OF_LIMIT:
                self._per_rule[alert.rule_id] = self._per_rule.get(alert.rule_id, 0) + 1
        self._left_out: dict[str, tuple[AlertRule, int]] = {}
        self._resolved: list[Alert] = []
        self._beats: list[Alert] = []
        self._ended_groups: set[str] = set()

    def apply(self, change: Change) -> None:
        """Store one change, if what it was decided on still stands."""
        rule = change.rule
        if rule is not None:
            fresh = self._fresh(rule)
            if fresh is None or fresh.deleted_at is not None or fresh.revision != rule.revision:
                return  # edited meanwhile: judged anew the next time
            rule = fresh
        if change.alert_id is None:
            if rule is not None:
                self._begin(change, rule)
            return
        alert = self._alerts.get(change.alert_id)
        if alert is None or alert.open_key is None:
            return
        match change.step:
            case "fire":
                alert.state, alert.fired_at, alert.why = AlertState.FIRING, change.state.fired_at, change.why
                self._measured(alert, change)
                self._claim(change, alert)
            case "quiet":
                alert.quiet_since = change.state.quiet_since
            case "resolve":
                alert.state, alert.open_key, alert.why = AlertState.RESOLVED, None, change.why
                alert.resolved_at = max(change.state.resolved_at or self._now, alert.fired_at or alert.pending_at)
                alert.quiet_since = change.state.quiet_since
                if change.reading is not None and change.reading.value is not None:
                    alert.sample = {**alert.sample, "resolved_value": rulebook.number(_short(change.reading.value))}
                self._over(alert)
                self._resolved.append(alert)
            case "drop":
                self._over(alert)
                self._session.delete(alert)
                del self._alerts[alert.id]
                self._session.flush()
                return
            case "beat":
                self._beats.append(alert)
            case "begin":
                return
        self._session.add(alert)
        self._session.flush()

    def _fresh(self, rule: AlertRule | Budget) -> AlertRule | Budget | None:
        return self._session.get(AlertRule, rule.id) if isinstance(rule, AlertRule) else self._session.get(Budget, rule.id)

    def _over(self, alert: Alert) -> None:
        if alert.subject != _SUBJECT_OF_LIMIT:
            self._per_rule[alert.rule_id] = self._per_rule.get(alert.rule_id, 1) - 1

    def _begin(self, change: Change, rule: AlertRule | Budget) -> None:
        reading = change.reading
        assert reading is not None  # a new alert is about something measured
        subject = change.subject or reading.subject
        key = open_key(rule.id, subject, change.budget_step, change.kind)
        if key in self._keys:
            return
        if isinstance(rule, AlertRule) and subject != _SUBJECT_OF_LIMIT:
            if self._per_rule.get(rule.id, 0) >= rule.max_alerts:
                _, count = self._left_out.get(rule.id, (rule, 0))
                self._left_out[rule.id] = (rule, count + 1)
                return
            self._per_rule[rule.id] = self._per_rule.get(rule.id, 0) + 1
        self._seq += 1
        alert = Alert(
            id=rulebook.new_id("alert"),
            seq=self._seq,
            rule_id=rule.id,
            rule=rule.name,
            kind=change.kind or (rule.kind if isinstance(rule, AlertRule) else Kind.BUDGET),
            state=AlertState(change.state.phase.value),
            severity=rule.severity,
            scope=dict(reading.scope),
            open_key=key,
            subject=subject,
            value=reading.value,
            threshold=reading.threshold,
            step=change.budget_step,
            why=change.why,
            sample=dict(reading.sample),
            receivers=list(rule.receivers),
            runbook_url=rule.runbook_url,
            pending_at=change.state.pending_at or self._now,
            fired_at=change.state.fired_at,
            quiet_since=change.state.quiet_since,
        )
        self._session.add(alert)
        self._session.flush()
        self._alerts[alert.id] = alert
        self._keys.add(key)
        if alert.state is AlertState.FIRING:
            self._claim(change, alert)

    def _measured(self, alert: Alert, change: Change) -> None:
        if change.reading is not None:
            alert.value, alert.threshold, alert.sample = change.reading.value, change.reading.threshold, dict(change.reading.sample)

    def _claim(self, change: Change, alert: Alert) -> None:
        if change.period_start is None or not isinstance(change.rule, Budget):
            return
        for step in change.crossed:
            self._session.add(
                BudgetStep(
                    budget_id=change.rule.id,
                    revision=change.rule.revision,
                    period_start=change.period_start,
                    kind=alert.kind,
                    step=step,
                    crossed_at=self._now,
                    alert_id=alert.id if step == change.budget_step else None,
                )
            )
        self._session.flush()

    # -- limits ---------------------------------------------------------------------------------

    def report_limits(self) -> None:
        """One alert of its own says that a rule has reached its limit of alerts; it ends when the rule has room again."""
        for full, count in self._left_out.values():
            scope = dict(full.scope)
            why = f"the rule has reached its limit of {full.max_alerts} alerts; {count} more would be so: narrow its scope or raise max_alerts"
            reading = Reading(scope, Decimal(self._per_rule.get(full.id, 0) + count), Decimal(full.max_alerts), None, {"measured": "alerts", "left_out": count})
            self._begin(Change("begin", full, State(Phase.FIRING, self._now, self._now), why, reading, subject=_SUBJECT_OF_LIMIT), full)
        for alert in list(self._alerts.values()):
            if alert.subject != _SUBJECT_OF_LIMIT or alert.open_key is None or alert.rule_id in self._left_out:
                continue
            rule = self._session.get(AlertRule, alert.rule_id)
            if rule is None or self._per_rule.get(alert.rule_id, 0) < rule.max_alerts:
                alert.state, alert.open_key, alert.resolved_at = AlertState.RESOLVED, None, self._now
                alert.why = "the rule has room for alerts again"
                self._session.add(alert)
                self._resolved.append(alert)
        self._session.flush()

    # -- telling --------------------------------------------------------------------------------

    def tell(self, post: Post) -> None:
        """Notices of what fires and nobody was told of, of what ended and somebody was told of, and the heartbeats that are due."""
        quiets = read_quiets(self._session)
        for alert in self._resolved:
            # Whoever was told that it fires is told that it ended, silence or not: an incident elsewhere would stay open.
            if alert.told_at is None:
                continue
            if alert.group_id is None:
                self._post(post, alert, "alert.resolved")
            elif not self._is_group_open(alert.group_id):
                self._tell_group_end(post, alert.group_id)
        firing: dict[str, list[Alert]] = {}
        for alert in self._alerts.values():
            if alert.state is AlertState.FIRING and alert.told_at is None and silenced_by(quiets, labels_of(alert), self._now) is None:
                firing.setdefault(alert.rule_id, []).append(alert)
        for alerts in firing.values():
            if len(alerts) >= GROUP_FROM:
                self._tell_group(post, alerts)
            else:
                for alert in alerts:
                    self._post(post, alert, "alert.firing")
        for alert in self._beats:
            if silenced_by(quiets, labels_of(alert), self._now) is None:
                self._post(post, alert, "alert.firing")
        self._session.flush()

    def _tell_group(self, post: Post, alerts: Sequence[Alert]) -> None:
        lead = max(alerts, key=lambda alert: (alert.value is not None, alert.value or Decimal(0), -alert.seq))
        for alert in alerts:
            alert.group_id, alert.told_at = lead.id, self._now
            self._session.add(alert)
        self._session.flush()
        self._post(post, lead, "alert.firing", group=alerts)

    def _is_group_open(self, group_id: str) -> bool:
        self._session.flush()
        found = self._session.exec(select(Alert.id).where(Alert.group_id == group_id, col(Alert.open_key).is_not(None)).limit(1)).first()
        return found is not None

    def _tell_group_end(self, post: Post, group_id: str) -> None:
        members = list(self._session.exec(select(Alert).where(Alert.group_id == group_id).order_by(col(Alert.seq))))
        lead = next((one for one in members if one.id == group_id), members[0])
        if lead.id in self._ended_groups:
            return
        self._ended_groups.add(lead.id)
        self._post(post, lead, "alert.resolved", group=members)

    def _post(self, post: Post, alert: Alert, kind: NoticeType, *, group: Sequence[Alert] = ()) -> None:
        body = rulebook.alert_body(alert, silenced=False)
        if group:
            body["group"] = {
                "id": alert.group_id,
                "size": len(group),
                # A notice has to fit everywhere; the rest is a question to /v1/alerts.
                "alerts": [{"id": one.id, "scope": one.scope, "value": rulebook.alert_body(one, silenced=False)["value"]} for one in group[:20]],
            }
        post(self._session, alert=body, type=kind, receivers=list(alert.receivers) or None, now=self._now)
        if kind == "alert.firing":
            alert.told_at = self._now
            self._session.add(alert)


def open_key(rule_id: str, subject: str, step: int | None, kind: Kind | None = None) -> str:
    """What there is one open alert of."""
    return f"{rule_id}|{subject}|{'' if kind is None else kind.value}|{'' if step is None else step}"


def read_quiets(session: Session) -> list[Quiet]:
    """The silences that were not deleted."""
    return [Quiet.of(row) for row in rulebook.standing(session, Silence)]


# -- the rules that are there by themselves -------------------------------------------------------


def _builtin(name: str, kind: Kind, severity: Severity, *, percent: int | None = None, clear: int | None = None) -> rulebook.RuleBody:
    return rulebook.RuleBody(
        name=name,
        kind=kind,
        threshold=Decimal(1) if percent is None else None,
        threshold_percent=None if percent is None else Decimal(percent),
        clear_threshold=None if clear is None else Decimal(clear),
        severity=severity,
        # One burst after another is one alert, not as many notices.
        keep_firing_for_seconds=300,
    )


_UNREACHED = rulebook.RuleBody(
    name="A receiver is not reached", kind=Kind.UNREACHED_RECEIVER, threshold=Decimal(BREAKS_AFTER), clear_threshold=Decimal(1), severity=Severity.ERROR
)
_BUILTINS: Mapping[str, rulebook.RuleBody] = {
    "builtin-tokens-80": _builtin("Tokens at 80 % of the limit", Kind.TOKENS_PER_MINUTE, Severity.WARNING, percent=80, clear=70),
    "builtin-tokens-95": _builtin("Tokens at 95 % of the limit", Kind.TOKENS_PER_MINUTE, Severity.CRITICAL, percent=95, clear=85),
    "builtin-requests-80": _builtin("Requests at 80 % of the limit", Kind.REQUESTS_PER_MINUTE, Severity.WARNING, percent=80, clear=70),
    "builtin-requests-95": _builtin("Requests at 95 % of the limit", Kind.REQUESTS_PER_MINUTE, Severity.CRITICAL, percent=95, clear=85),
    "builtin-throttled": _builtin("Requests are throttled (429)", Kind.THROTTLED_REQUESTS, Severity.WARNING),
    "builtin-receivers": _UNREACHED,
    "builtin-reports": rulebook.RuleBody(name="A report was not delivered", kind=Kind.REPORT_DELIVERY, threshold=Decimal(1), severity=Severity.ERROR),
}


def ensure_builtins(session: Session, *, now: datetime) -> None:
    """The rules that every deployment has by default, as this version ships them; one that somebody edited or deleted stays so.

    An update of this software's own is in the audit trail under its name, so what nobody else touched is told by the trail.
    """
    standing = {row.id: row for row in session.exec(select(AlertRule).where(col(AlertRule.id).in_(list(_BUILTINS))))}
    by = rulebook.Author("meterbridge", "builtin")
    touched = set(
        session.exec(
            select(AuditEntry.object_id).where(AuditEntry.kind == "alert-rule", col(AuditEntry.object_id).in_(list(standing)), AuditEntry.actor != by.name)
        )
    )
    for rule_id, body in _BUILTINS.items():
        if rule_id not in standing:
            rulebook.create_rule(session, body, by=by, now=now, rule_id=rule_id)
        elif rule_id not in touched:
            rulebook.replace_rule(session, standing[rule_id], body, by=by, now=now)


def metrics_lines(session: Session) -> list[str]:
    """Open alerts for ``/metrics``, so that whoever alerts with Prometheus sees what we see."""
    counts: dict[tuple[str, str, str, str], int] = {}
    for alert in _open_alerts(session):
        key = (alert.rule_id, alert.kind.value, alert.severity.value, alert.state.value)
        counts[key] = counts.get(key, 0) + 1
    lines = ["# HELP meterbridge_alerts Open alerts by rule, kind, severity and state.", "# TYPE meterbridge_alerts gauge"]
    for (rule_id, kind, severity, state), number in sorted(counts.items()):
        # Ids and closed sets only: nothing here needs escaping.
        lines.append(f'meterbridge_alerts{{rule_id="{rule_id}",kind="{kind}",severity="{severity}",state="{state}"}} {number}')
    return lines
