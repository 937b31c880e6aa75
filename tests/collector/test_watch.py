"""The watch over a real database: what is measured, decided, stored and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import Session, col, select

from collector import rulebook
from collector.rulebook import Author, BudgetBody, RuleBody, SilenceBody
from collector.watch import Watcher
from models import leases
from models.alerts import Alert, AlertRule, AlertState, AuditEntry, Budget, Kind
from models.limits import Counting, LimitSource, set_limit
from models.sources import PULLED_EVERY, PullState, begin, finish
from models.store import Store
from models.usage import Status
from tests import factories

NOW = factories.NOW
BY = Author("tests")


@dataclass
class Outbox:
    """What would have been told, in order: (type, alert)."""

    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, session: Session, *, alert: Mapping[str, Any], type: str, receivers: Sequence[str] | None, now: datetime) -> None:  # noqa: A002
        self.sent.append((type, dict(alert)))

    def take(self) -> list[tuple[str, str, int | None]]:
        """(type, rule, step) of what was told since the last time."""
        found = [(kind, alert["rule"], alert["step"]) for kind, alert in self.sent]
        self.sent.clear()
        return found


@dataclass
class Watched:
    """A database, its watch, and a clock that the test moves."""

    store: Store
    outbox: Outbox
    watcher: Watcher
    now: datetime = NOW
    ticks: float = 0

    def run(self, after: timedelta = timedelta(0)) -> list[tuple[str, str, int | None]]:
        self.now += after
        self.ticks += 1000
        assert self.watcher.run(self.store, now=self.now)
        return self.outbox.take()

    def restart(self) -> None:
        self.watcher = Watcher(self.outbox, clock=lambda: self.ticks)

    def rule(self, **body: Any) -> str:
        with self.store.write() as session:
            return rulebook.create_rule(session, RuleBody(**{"name": "rule"} | body), by=BY, now=self.now).id

    def budget(self, **body: Any) -> str:
        defaults = {"name": "budget", "amount": "100.00", "currency": "USD", "period": "month", "basis": "metered", "steps": [50, 80, 100]}
        with self.store.write() as session:
            return rulebook.create_budget(session, BudgetBody(**defaults | body), by=BY, now=self.now).id

    def use(self, *, tokens: int = 1000, at: datetime | None = None, arrived: datetime | None = None, status: Status = Status.SUCCESS, **of: Any) -> None:
        at = at or self.now
        with self.store.write() as session:
            factories.event(session, factories.series(session, **of), time=at, input_tokens=tokens, output_tokens=0, status=status, received_at=arrived or at)

    def alerts(self) -> list[Alert]:
        with self.store.read() as session:
            found = list(session.exec(select(Alert).order_by(col(Alert.seq))))
            session.expunge_all()
            return found


def watched(store: Store) -> Watched:
    outbox = Outbox()
    made = Watched(store, outbox, Watcher(outbox))
    made.restart()
    with store.write() as session:
        # Only what a test asks for: the built-in rules have tests of their own.
        from collector.watch.judge import ensure_builtins

        ensure_builtins(session, now=NOW)
        for row in rulebook.standing(session, AlertRule):
            rulebook.delete(session, row, by=BY, now=NOW)
    return made


@pytest.fixture
def watch(store: Store) -> Watched:
    return watched(store)


@pytest.fixture
def lite(sqlite_store: Store) -> Watched:
    return watched(sqlite_store)


SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


# -- rates ----------------------------------------------------------------------------------------


def test_a_rate_fires_at_its_threshold_and_resolves_when_the_window_is_empty(watch: Watched) -> None:
    watch.rule(kind="tokens_per_minute", threshold=3000)
    watch.use(tokens=2999, at=NOW - 30 * SECOND)
    assert watch.run() == []
    watch.use(tokens=1, at=NOW + 4 * SECOND)
    assert watch.run(5 * SECOND) == [("alert.firing", "rule", None)]
    (alert,) = watch.alerts()
    assert (alert.state, alert.value, alert.threshold, alert.fired_at) == (AlertState.FIRING, Decimal(3000), Decimal(3000), NOW + 4 * SECOND)
    assert alert.scope == {"workspace": "ws-east", "deployment": "llama-chat"}
    assert alert.why == "3000 tokens a minute, threshold 3000: the threshold is reached; new usage"
    assert watch.run(5 * SECOND) == []
    # The 2,999 leave the window sixty seconds after they came into it.
    assert watch.run(20 * SECOND) == [("alert.resolved", "rule", None)]
    (alert,) = watch.alerts()
    assert (alert.state, alert.resolved_at, alert.open_key) == (AlertState.RESOLVED, NOW + 30 * SECOND, None)
    assert watch.run(MINUTE) == []


def test_for_counts_over_what_was_stored_before_the_rule_was_made(watch: Watched) -> None:
    for second in range(0, 600, 10):
        watch.use(tokens=1000, at=NOW - second * SECOND)
    watch.rule(kind="tokens_per_minute", threshold=5000, for_seconds=60)
    assert watch.run() == [("alert.firing", "rule", None)]
    (alert,) = watch.alerts()
    assert alert.fired_at == alert.pending_at + MINUTE


def test_a_rate_waits_for_its_for(watch: Watched) -> None:
    watch.rule(kind="requests_per_minute", threshold=2, for_seconds=45)
    watch.use(at=NOW)
    watch.use(at=NOW)
    assert watch.run() == []
    assert [alert.state for alert in watch.alerts()] == [AlertState.PENDING]
    assert watch.run(44 * SECOND) == []
    assert watch.run(1 * SECOND) == [("alert.firing", "rule", None)]
    assert [alert.fired_at for alert in watch.alerts()] == [NOW + 45 * SECOND]


def test_what_was_pending_only_leaves_no_row(lite: Watched) -> None:
    lite.rule(kind="requests_per_minute", threshold=1, for_seconds=120)
    lite.use(at=NOW)
    lite.run()
    assert lite.run(2 * MINUTE) == []
    assert lite.alerts() == []


def test_throttles_are_counted_a_minute_and_per_deployment(lite: Watched) -> None:
    lite.rule(kind="throttled_requests", threshold=2)
    lite.use(tokens=0, status=Status.THROTTLED, deployment="one")
    lite.use(tokens=0, status=Status.THROTTLED, deployment="two")
    assert lite.run() == []
    lite.use(tokens=0, status=Status.THROTTLED, deployment="two", at=NOW + SECOND)
    lite.run(2 * SECOND)
    assert [(alert.scope["deployment"], alert.value) for alert in lite.alerts()] == [("two", Decimal(2))]


def test_a_call_of_nine_minutes_ago_pages_and_one_of_eleven_does_not(watch: Watched) -> None:
    watch.rule(kind="tokens_per_minute", threshold=1000)
    watch.run()
    watch.use(tokens=5000, at=NOW - 11 * MINUTE, arrived=NOW)
    assert watch.run(SECOND) == []
    watch.use(tokens=5000, at=NOW - 9 * MINUTE, arrived=NOW)
    assert watch.run(SECOND) == [("alert.firing", "rule", None)]
    assert watch.run(SECOND) == [("alert.resolved", "rule", None)]
    assert watch.run(SECOND) == []
    (alert,) = watch.alerts()
    assert alert.fired_at == NOW - 9 * MINUTE
    assert "late data" in watch.alerts()[0].why or alert.resolved_at == NOW - 8 * MINUTE


def test_late_data_of_a_told_window_tells_nobody_again(lite: Watched) -> None:
    lite.rule(kind="tokens_per_minute", threshold=1000)
    lite.use(tokens=1000, at=NOW)
    assert lite.run() == [("alert.firing", "rule", None)]
    assert lite.run(2 * MINUTE) == [("alert.resolved", "rule", None)]
    lite.use(tokens=1000, at=NOW + 20 * SECOND, arrived=lite.now)
    assert lite.run(SECOND) == []
    assert len(lite.alerts()) == 1


def test_a_backfill_of_a_year_tells_nobody(lite: Watched) -> None:
    lite.rule(kind="tokens_per_minute", threshold=1000)
    lite.budget(amount="0.01", steps=[100])
    with lite.store.write() as session:
        factories.token_prices(session)
    lite.run()
    for day in range(30, 365, 5):
        lite.use(tokens=1_000_000, at=NOW - timedelta(days=day), arrived=NOW)
    assert lite.run(5 * SECOND) == []
    assert lite.alerts() == []


def test_a_percentage_is_of_the_limit_and_clears_at_its_own(lite: Watched) -> None:
    lite.rule(kind="tokens_per_minute", threshold_percent=80, clear_threshold=70)
    lite.use(tokens=281_000, at=NOW)
    lite.use(tokens=39_000, at=NOW - 20 * SECOND)
    assert lite.run() == [("alert.firing", "rule", None)]  # 320,000 of 400,000
    assert lite.alerts()[0].threshold == Decimal(320_000)
    assert lite.run(45 * SECOND) == []  # 281,000 is above 280,000
    assert lite.run(15 * SECOND) == [("alert.resolved", "rule", None)]


def test_a_restart_goes_on_where_it_was_left(lite: Watched) -> None:
    lite.rule(kind="tokens_per_minute", threshold=1000, keep_firing_for_seconds=120)
    lite.use(tokens=1000)
    assert lite.run() == [("alert.firing", "rule", None)]
    lite.restart()
    assert lite.run(5 * SECOND) == []
    lite.restart()
    assert lite.run(MINUTE) == []  # kept
    lite.restart()
    assert lite.run(2 * MINUTE) == [("alert.resolved", "rule", None)]
    assert lite.alerts()[0].resolved_at == NOW + 3 * MINUTE


def test_a_crossing_while_nobody_judged_is_told(watch: Watched) -> None:
    watch.rule(kind="tokens_per_minute", threshold=1000)
    watch.run()
    watch.use(tokens=1000, at=NOW + MINUTE)
    watch.restart()
    assert watch.run(5 * MINUTE) == [("alert.firing", "rule", None)]
    assert watch.run(5 * SECOND) == [("alert.resolved", "rule", None)]


def test_a_deleted_rule_ends_its_alerts(watch: Watched) -> None:
    rule = watch.rule(kind="tokens_per_minute", threshold=1000)
    watch.use(tokens=1000)
    watch.run()
    with watch.store.write() as session:
        rulebook.delete(session, rulebook.found(session, AlertRule, rule, visible=None), by=BY, now=watch.now)
    assert watch.run(SECOND) == [("alert.resolved", "rule", None)]
    assert watch.alerts()[0].why == "the rule was deleted or switched off"


def test_an_edited_rule_is_judged_anew(lite: Watched) -> None:
    rule = lite.rule(kind="tokens_per_minute", threshold=1000)
    lite.use(tokens=1000)
    lite.run()
    with lite.store.write() as session:
        row = rulebook.found(session, AlertRule, rule, visible=None)
        rulebook.replace_rule(session, row, RuleBody(name="rule", kind=Kind.TOKENS_PER_MINUTE, threshold=Decimal(2000)), by=BY, now=lite.now)
    assert lite.run(SECOND) == [("alert.resolved", "rule", None)]


def test_ones_own_instances_have_no_limit_to_be_near(lite: Watched) -> None:
    with lite.store.write() as session:
        factories.managed(session)
    lite.rule(kind="tokens_per_minute", threshold_percent=80)
    lite.use(tokens=900_000, endpoint="llama-online", deployment="blue")
    assert lite.run() == []
    with lite.store.write() as session:
        set_limit(session, workspace="ws-east", deployment="llama-online/blue", measure="tokens_per_minute", value=1_000_000, source=LimitSource.USER, now=NOW)
    assert lite.run(SECOND) == [("alert.firing", "rule", None)]


def test_a_limit_that_counts_what_is_admitted_is_judged_by_that(watch: Watched) -> None:
    with watch.store.write() as session:
        factories.serverless(session)
        set_limit(
            session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=10_000, source=LimitSource.USER,
            counting=Counting.ADMITTED, now=NOW,
        )  # fmt: skip
        # It was answered 10 tokens and was admitted for 1,000 + 2 x 3,500, half a minute ago.
        factories.event(
            session, time=NOW, input_tokens=1_000, output_tokens=10, started_at=NOW - 30 * SECOND, details={"max_tokens": 3_500, "choices": 2}
        )  # fmt: skip
    watch.rule(kind="tokens_per_minute", threshold_percent=80)
    assert watch.run() == [("alert.firing", "rule", None)]
    (alert,) = watch.alerts()
    assert (alert.value, alert.threshold, alert.fired_at, alert.sample["counting"]) == (Decimal(8_000), Decimal(8_000), NOW - 30 * SECOND, "admitted")
    assert watch.run(30 * SECOND) == [("alert.resolved", "rule", None)]


def _before(session: Session, rule_id: str) -> AlertRule:
    """A built-in rule as an earlier version shipped it."""
    row = session.get_one(AlertRule, rule_id)
    row.keep_firing_for_seconds = 60
    session.add(row)
    return row


def test_built_in_rules_that_nobody_touched_become_those_of_this_version(store: Store) -> None:
    outbox = Outbox()
    Watcher(outbox).run(store, now=NOW)
    with store.write() as session:
        for rule_id in ("builtin-tokens-80", "builtin-tokens-95", "builtin-throttled"):
            row = _before(session, rule_id)
            if rule_id == "builtin-tokens-95":
                edited = RuleBody.model_validate({**rulebook.rule_body(row), "severity": "error"}, extra="ignore")
                rulebook.replace_rule(session, row, edited, by=BY, now=NOW)
        rulebook.delete(session, session.get_one(AlertRule, "builtin-throttled"), by=BY, now=NOW)
        factories.event(session, time=NOW + HOUR, input_tokens=320_000, output_tokens=0)
    # A service of this version starts, and another after it.
    for after in (HOUR, HOUR + MINUTE):
        Watcher(outbox).run(store, now=NOW + after)
    with store.read() as session:
        rules = {row.id: (row.keep_firing_for_seconds, row.severity.value, row.deleted_at is None) for row in session.exec(select(AlertRule))}
        trail = [(one.actor, one.action) for one in session.exec(select(AuditEntry).where(AuditEntry.object_id == "builtin-tokens-80"))]
    assert rules["builtin-tokens-80"] == (300, "warning", True)
    assert rules["builtin-tokens-95"] == (60, "error", True)
    assert rules["builtin-throttled"] == (60, "warning", False)
    assert trail == [("meterbridge", "create"), ("meterbridge", "update")]
    assert outbox.take() == [("alert.firing", "Tokens at 80 % of the limit", None)]


def test_the_builtin_rules_watch_every_deployment(sqlite_store: Store) -> None:
    outbox = Outbox()
    watcher = Watcher(outbox)
    with sqlite_store.write() as session:
        factories.event(session, time=NOW, input_tokens=320_000, output_tokens=0)
    watcher.run(sqlite_store, now=NOW)
    assert outbox.take() == [("alert.firing", "Tokens at 80 % of the limit", None)]
    with sqlite_store.write() as session:
        factories.event(session, time=NOW, input_tokens=60_000, output_tokens=0)
        factories.event(session, time=NOW, input_tokens=0, output_tokens=0, status=Status.THROTTLED)
    watcher.run(sqlite_store, now=NOW + SECOND)
    assert sorted(outbox.take()) == [("alert.firing", "Requests are throttled (429)", None), ("alert.firing", "Tokens at 95 % of the limit", None)]


# -- many at once ---------------------------------------------------------------------------------


def test_many_alerts_at_once_are_one_notice_and_one_end(lite: Watched) -> None:
    lite.rule(kind="requests_per_minute", threshold=1)
    for number in range(8):
        lite.use(deployment=f"d{number}", at=NOW - number * SECOND)
    assert lite.run() == [("alert.firing", "rule", None)]
    assert len({alert.group_id for alert in lite.alerts()}) == 1
    assert lite.run(55 * SECOND) == []  # some have ended, not all
    assert {alert.state for alert in lite.alerts()} == {AlertState.FIRING, AlertState.RESOLVED}
    assert lite.run(10 * SECOND) == [("alert.resolved", "rule", None)]


def test_a_rule_that_reaches_its_limit_says_so_once(lite: Watched) -> None:
    lite.rule(kind="requests_per_minute", threshold=1, max_alerts=2)
    for number in range(5):
        lite.use(deployment=f"d{number}")
    assert lite.run() == [("alert.firing", "rule", None)] * 3
    assert [alert.why for alert in lite.alerts() if alert.subject == "limit"] == [
        "the rule has reached its limit of 2 alerts; 3 more would be so: narrow its scope or raise max_alerts"
    ]
    assert lite.run(SECOND) == []
    assert lite.run(2 * MINUTE) == [("alert.resolved", "rule", None)] * 3
    assert lite.run(SECOND) == []


# -- silences -------------------------------------------------------------------------------------


def test_a_silenced_alert_is_told_when_the_silence_ends_and_it_still_fires(watch: Watched) -> None:
    watch.rule(kind="tokens_per_minute", threshold=1000, keep_firing_for_seconds=3600)
    with watch.store.write() as session:
        body = SilenceBody.model_validate(
            {"matchers": [{"name": "deployment", "value": "llama-chat"}], "starts_at": "2026-11-20T00:00:00Z", "ends_at": "2026-11-20T10:10:00Z"}
        )
        rulebook.create_silence(session, body, by=BY, now=NOW)
    watch.use(tokens=1000)
    assert watch.run() == []
    assert watch.alerts()[0].state is AlertState.FIRING
    assert watch.run(9 * MINUTE) == []
    assert watch.run(MINUTE) == [("alert.firing", "rule", None)]


def test_what_was_told_as_firing_is_told_as_resolved_through_a_silence(lite: Watched) -> None:
    lite.rule(kind="tokens_per_minute", threshold=1000)
    lite.use(tokens=1000)
    assert lite.run() == [("alert.firing", "rule", None)]
    with lite.store.write() as session:
        body = SilenceBody.model_validate(
            {"matchers": [{"name": "rule", "value": "rule"}], "starts_at": "2026-11-20T00:00:00Z", "ends_at": "2026-11-21T00:00:00Z"}
        )
        rulebook.create_silence(session, body, by=BY, now=NOW)
    assert lite.run(2 * MINUTE) == [("alert.resolved", "rule", None)]


# -- budgets --------------------------------------------------------------------------------------


def priced(watch: Watched) -> None:
    """A token costs a millionth of a dollar times a million: one token, one dollar."""
    with watch.store.write() as session:
        factories.token_prices(session, "1000000", "1000000")


def test_of_the_steps_crossed_at_once_the_highest_tells_once_a_period(watch: Watched) -> None:
    priced(watch)
    watch.budget()
    watch.use(tokens=85)
    assert watch.run() == [("alert.firing", "budget", 80)]
    watch.use(tokens=10)
    assert watch.run(MINUTE) == []
    watch.use(tokens=5)
    assert watch.run(MINUTE) == [("alert.firing", "budget", 100)]
    watch.restart()
    assert watch.run(MINUTE) == []
    fired = [(alert.step, alert.value, alert.threshold, alert.kind) for alert in watch.alerts()]
    assert fired == [(80, Decimal(85), Decimal(80), Kind.BUDGET), (100, Decimal(100), Decimal(100), Kind.BUDGET)]
    assert watch.alerts()[1].sample["used_percent"] == "100"
    # December: the alerts of November end, and the steps are armed again.
    watch.now = datetime(2026, 12, 1, tzinfo=UTC)
    assert watch.run() == [("alert.resolved", "budget", 80), ("alert.resolved", "budget", 100)]
    watch.use(tokens=50)
    assert watch.run(MINUTE) == [("alert.firing", "budget", 50)]


def test_an_edited_budget_is_armed_again(watch: Watched) -> None:
    priced(watch)
    budget = watch.budget(steps=[80])
    watch.use(tokens=85)
    assert watch.run() == [("alert.firing", "budget", 80)]
    with watch.store.write() as session:
        row = rulebook.found(session, Budget, budget, visible=None)
        body = BudgetBody.model_validate({"name": "budget", "amount": "90.00", "currency": "USD", "period": "month", "basis": "metered", "steps": [80]})
        rulebook.replace_budget(session, row, body, by=BY, now=watch.now)
    assert watch.run(MINUTE) == [("alert.resolved", "budget", 80), ("alert.firing", "budget", 80)]
    assert watch.alerts()[1].why == "85.00 USD spent, at or above 80 % of 90.00 USD: budget edited"


def test_people_read_rounded_money_and_programs_the_exact_figure(lite: Watched) -> None:
    with lite.store.write() as session:
        factories.token_prices(session, "1001234.567891", "1001234.567891")
    lite.budget(steps=[80])
    lite.use(tokens=85)
    assert lite.run() == [("alert.firing", "budget", 80)]
    (alert,) = lite.alerts()
    assert alert.why == "85.10 USD spent, at or above 80 % of 100.00 USD: budget created"
    assert (alert.value, alert.sample["spent"]) == (Decimal("85.104938270735"), "85.104938270735")


def test_a_price_that_falls_ends_the_alert_and_does_not_tell_twice(lite: Watched) -> None:
    priced(lite)
    lite.budget(steps=[80])
    lite.use(tokens=85)
    assert lite.run() == [("alert.firing", "budget", 80)]
    with lite.store.write() as session:
        factories.token_prices(session, "500000", "500000", known_from=lite.now + SECOND)
    assert lite.run(MINUTE) == [("alert.resolved", "budget", 80)]
    assert lite.alerts()[0].why == "42.50 USD spent, below 80 % of 100.00 USD: price change"
    lite.use(tokens=100)
    assert lite.run(MINUTE) == []


def test_usage_of_a_past_period_tells_nobody(lite: Watched) -> None:
    priced(lite)
    lite.budget(steps=[80])
    lite.use(tokens=1000, at=datetime(2026, 10, 31, 23, 59, tzinfo=UTC), arrived=NOW)
    assert lite.run() == []


def test_a_period_begins_at_midnight_of_its_zone(lite: Watched) -> None:
    priced(lite)
    lite.budget(steps=[100], period="day", time_zone="America/New_York")
    lite.now = datetime(2026, 11, 20, 4, 59, tzinfo=UTC)
    lite.use(tokens=100, at=datetime(2026, 11, 20, 4, 59, tzinfo=UTC))  # 23:59 of the day before
    assert lite.run() == [("alert.firing", "budget", 100)]
    lite.now = datetime(2026, 11, 20, 5, 0, tzinfo=UTC)
    assert lite.run() == [("alert.resolved", "budget", 100)]


def test_a_forecast_tells_at_the_second_look(lite: Watched) -> None:
    priced(lite)
    for day in range(1, 11):
        lite.use(tokens=5, at=datetime(2026, 11, day, 12, tzinfo=UTC))
    lite.now = datetime(2026, 11, 11, 0, 30, tzinfo=UTC)
    lite.budget(steps=[100], forecast_steps=[100, 150])  # 5 a day is 150 in November
    assert lite.run() == []
    assert lite.run(2 * MINUTE) == [("alert.firing", "budget", 150)]
    (alert,) = lite.alerts()
    assert (alert.kind, alert.value, alert.sample["spent"]) == (Kind.BUDGET_FORECAST, Decimal(150), "50")
    assert lite.run(2 * MINUTE) == []


# -- the other kinds ------------------------------------------------------------------------------


def test_a_source_that_went_quiet_is_stale_after_its_minutes(lite: Watched) -> None:
    lite.rule(kind="stale_source", threshold=30)
    lite.use(source_name="gateway", at=NOW - 29 * MINUTE)
    assert lite.run() == []
    assert lite.run(MINUTE) == [("alert.firing", "rule", None)]
    assert lite.alerts()[0].scope == {"workspace": "ws-east", "source": "gateway"}
    lite.use(source_name="gateway")
    assert lite.run(SECOND) == [("alert.resolved", "rule", None)]


def pulled(watch: Watched, source: str, at: datetime, state: PullState = PullState.DONE, *, scope: str = "", message: str = "", scheduled: bool = True) -> None:
    with watch.store.write() as session:
        if scheduled:
            every = PULLED_EVERY[source]  # type: ignore[index]  # one of them
            leases.take(session, leases.pull_job(source, scope), every=every, holder="tests", now=at, lasts=HOUR)
        run = begin(session, source, scope, now=at)
        finish(session, run.id or 0, state, now=at, message=message)


def test_a_pull_that_is_due_and_a_bill_that_is_late_are_stale_too(watch: Watched) -> None:
    for source, ago in (("inventory", 90 * MINUTE), ("quotas", 10 * MINUTE), ("prices", 20 * HOUR)):
        pulled(watch, source, NOW - ago)
    pulled(watch, "costs", NOW - 24 * HOUR, scope="subscriptions/s1")
    pulled(watch, "costs", NOW - HOUR, PullState.FAILED, scope="subscriptions/s1", message="403 AuthorizationFailed")
    with watch.store.write() as session:
        factories.bill_part(session, reaches={"foundry": "2026-11-10"}, landed_at=NOW - 7 * DAY)
    watch.use(source_name="gateway")
    watch.rule(kind="stale_source", threshold=30)
    watch.run()
    found = {alert.scope["source"]: (alert.value, alert.why) for alert in watch.alerts()}
    # Inventory comes every hour, quotas every quarter, prices once a day; the last good pull of costs is a day old, due twice a day.
    # Without landings to learn from, a bill may lag by 72 hours; the day after the 10th was due a day after that, on the 16th.
    assert {name: value for name, (value, _) in found.items()} == {
        "inventory": Decimal(30),
        "costs · subscriptions/s1": Decimal(12 * 60),
        f"bill · foundry · {factories.SUBSCRIPTION}": Decimal((4 * 24 + 10) * 60),
    }
    assert "its last run failed: 403 AuthorizationFailed" in found["costs · subscriptions/s1"][1]
    pulled(watch, "inventory", NOW + MINUTE)
    assert watch.run(2 * MINUTE) == [("alert.resolved", "rule", None)]


def test_a_pull_by_hand_is_expected_again_only_if_it_failed(lite: Watched) -> None:
    pulled(lite, "inventory", NOW - 3 * DAY, scheduled=False)
    pulled(lite, "prices", NOW - 2 * HOUR, PullState.FAILED, scheduled=False, message="no route to host")
    pulled(lite, "quotas", NOW - 31 * DAY, PullState.FAILED, scheduled=False)
    lite.rule(kind="stale_source", threshold=60)
    lite.run()
    assert [(alert.scope, alert.value) for alert in lite.alerts()] == [({"source": "prices"}, Decimal(120))]


def test_tokens_without_a_price_are_counted_over_a_day(lite: Watched) -> None:
    lite.rule(kind="unpriced_usage", threshold=1000)
    lite.use(tokens=999, at=NOW - HOUR)
    assert lite.run() == []
    lite.use(tokens=1)
    assert lite.run(MINUTE) == [("alert.firing", "rule", None)]
    assert lite.run(DAY) == [("alert.resolved", "rule", None)]


def test_a_managed_deployment_that_nobody_calls_is_idle_at_its_cost_a_day(lite: Watched) -> None:
    from models.prices import PriceMeter

    with lite.store.write() as session:
        factories.managed(session, "llama-online/blue")
        factories.price(session, PriceMeter.INSTANCE_HOURS, "3.5", sku="Standard_NC24ads_A100_v4")
    lite.rule(kind="idle_deployment", threshold=84)
    assert lite.run() == [("alert.firing", "rule", None)]  # 24 hours at 3.50
    (alert,) = lite.alerts()
    assert (alert.scope, alert.value) == ({"workspace": "ws-east", "deployment": "llama-online/blue"}, Decimal(84))
    lite.use(endpoint="llama-online", deployment="blue")
    assert lite.run(MINUTE) == [("alert.resolved", "rule", None)]


def test_a_model_that_retires_counts_down(lite: Watched) -> None:
    with lite.store.write() as session:
        factories.serverless(session, retires_at=NOW + 48 * HOUR)
    lite.rule(kind="model_retirement", threshold=47)
    assert lite.run() == []
    assert lite.run(HOUR) == [("alert.firing", "rule", None)]
    assert lite.alerts()[0].value == Decimal(47)


def test_cores_are_judged_against_azures_own_limit(lite: Watched) -> None:
    from models.quotas import AzureQuota

    facts: dict[str, Any] = {
        "subscription_id": factories.SUBSCRIPTION,
        "region": "eastus",
        "source": "compute",
        "level": "family",
        "family": "standardNCADSA100v4Family",
    }
    with lite.store.write() as session:
        session.add(AzureQuota(**facts, family_key="ncadsa100v4", quota=96, used=72, unit="Count", known_from=NOW, seen_at=NOW))
    lite.rule(kind="core_quota", threshold_percent=75)
    assert lite.run() == [("alert.firing", "rule", None)]
    (alert,) = lite.alerts()
    assert (alert.value, alert.threshold, alert.scope["family"]) == (Decimal(72), Decimal(72), "standardNCADSA100v4Family")


def test_an_endpoint_on_shared_quota_counts_down_to_its_deletion(lite: Watched) -> None:
    from models.quotas import EndpointFact

    facts: dict[str, Any] = {"workspace": "ws-east", "endpoint": "trial", "subscription_id": factories.SUBSCRIPTION, "traffic": {}, "is_shared_quota": True}
    with lite.store.write() as session:
        session.add(EndpointFact(**facts, created_at=NOW - 143 * HOUR, known_from=NOW, seen_at=NOW))
    lite.rule(kind="shared_quota_deletion", threshold=24)
    assert lite.run() == []
    assert lite.run(HOUR) == [("alert.firing", "rule", None)]  # 168 hours after its creation
    assert (lite.alerts()[0].scope, lite.alerts()[0].value) == ({"workspace": "ws-east", "endpoint": "trial"}, Decimal(24))


def test_calls_past_the_instruments_are_told_in_money(lite: Watched) -> None:
    from datetime import date

    with lite.store.write() as session:
        factories.workspace_fact(session)
        factories.serverless(session)
        factories.token_prices(session)
        factories.event(session, time=datetime(2026, 11, 18, 12, tzinfo=UTC), input_tokens=1_000_000, output_tokens=0)  # 0.71
        part = factories.bill_part(session)
        factories.charge(session, part, factories.charge_item(session), "3.71", charged_on=date(2026, 11, 18))
    lite.rule(kind="unmetered_usage", threshold=3)
    assert lite.run() == [("alert.firing", "rule", None)]
    assert lite.alerts()[0].value == Decimal("3.00")


def test_spend_outside_its_usual_band_is_told_in_percent(lite: Watched) -> None:
    priced(lite)
    for day in range(1, 20):
        lite.use(tokens=10, at=datetime(2026, 11, day, 12, tzinfo=UTC))
    lite.rule(kind="spend_anomaly", threshold=50)
    assert lite.run() == []
    lite.use(tokens=15)
    assert lite.run(MINUTE) == [("alert.firing", "rule", None)]
    assert lite.alerts()[0].value == Decimal(50)


def test_a_heartbeat_beats_at_its_interval(lite: Watched) -> None:
    lite.rule(kind="heartbeat", threshold=5, name="alive")
    assert lite.run() == [("alert.firing", "alive", None)]
    assert lite.run(4 * MINUTE) == []
    assert lite.run(MINUTE) == [("alert.firing", "alive", None)]
    assert len(lite.alerts()) == 1


def test_of_two_processes_one_judges_and_the_other_takes_over(postgresql_url: str) -> None:
    store = Store(postgresql_url)
    first, second = Outbox(), Outbox()
    one, other = Watcher(first), Watcher(second)
    with store.write() as session:
        factories.event(session, time=NOW, input_tokens=320_000, output_tokens=0)
    assert one.run(store, now=NOW)
    assert not other.run(store, now=NOW + SECOND)
    assert first.take() == [("alert.firing", "Tokens at 80 % of the limit", None)]
    assert other.run(store, now=NOW + 30 * SECOND)
    assert second.take() == []
    assert not one.run(store, now=NOW + 31 * SECOND)
    store.close()


def test_what_is_told_is_in_the_outbox_of_its_receivers_in_the_same_transaction(store: Store) -> None:
    from collector.watch import standing_watch
    from models.notices import Delivery, Format, Receiver

    with store.write() as session:
        for name, is_default in (("everybody", True), ("oncall", False), ("finance", False)):
            session.add(
                Receiver(
                    id=name, name=name, url="https://example.com", format=Format.SLACK, workspaces=[], is_default=is_default, created_at=NOW, updated_at=NOW
                )
            )
        body = {"kind": "tokens_per_minute", "threshold": 320_000}
        rulebook.create_rule(session, RuleBody.model_validate(body | {"name": "mine", "receivers": ["oncall"]}), by=BY, now=NOW)
        factories.event(session, time=NOW, input_tokens=320_000, output_tokens=0)
    watcher = standing_watch()
    watcher.run(store, now=NOW)
    watcher.run(store, now=NOW + 10 * MINUTE)
    with store.read() as session:
        found = [(row.receiver_id, row.type, row.alert_id) for row in session.exec(select(Delivery).order_by(col(Delivery.seq)))]
        rules = dict(session.exec(select(Alert.id, Alert.rule)).all())
    assert sorted((receiver, kind, rules[alert]) for receiver, kind, alert in found) == [
        ("everybody", "alert.firing", "Tokens at 80 % of the limit"),
        ("everybody", "alert.resolved", "Tokens at 80 % of the limit"),
        ("oncall", "alert.firing", "mine"),
        ("oncall", "alert.resolved", "mine"),
    ]
