"""What a report says beside its money: budgets, limits that were nearly met, what earlier reports said and what is so now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlmodel import Session

from models import ledger
from models.alerts import Alert, AlertState, Budget, Kind, Severity
from models.ledger import Context, Filters
from models.limits import Counting, LimitSource, set_limit
from models.quotas import AzureQuota
from models.reports import ReportSnapshot
from models.store import Store
from models.usage import Status
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00, a Friday of W47
MILLION = 1_000_000
PLACE = ("ws-east", "llama-chat")


def at(day: int, hour: int = 8, minute: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC)


def context(session: Session, filters: Filters = Filters(), *, week: str = "2026-W46", now: datetime = NOW) -> Context:  # noqa: B008 - a frozen value
    of, reading = ledger.week_of(week, now=now), ledger.Reading(session, now)
    return ledger.context(session, of, filters, used={PLACE, ("ws-east", "other")}, told_as=("weekly", "{}"), reading=reading, now=now)


def budget(session: Session, name: str, amount: str, **overrides: Any) -> None:
    facts: dict[str, Any] = {
        "id": f"bud-{name}",
        "name": name,
        "scope": {},
        "amount": Decimal(amount),
        "currency": "USD",
        "period": "month",
        "steps": [100],
        "forecast_steps": [],
        "severity": Severity.WARNING,
        "receivers": [],
        "created_at": at(1),
        "updated_at": at(1),
    }
    session.add(Budget(**facts | overrides))


def test_the_highest_minute_of_the_week_against_its_limit(store: Store) -> None:
    with store.write() as session:
        make.serverless(session)
        make.serverless(session, "other")
        for day, tokens in ((8, 99_000), (10, 85_000), (16, 98_000)):
            make.event(session, time=at(day), input_tokens=tokens, output_tokens=0)
        # Two calls of one minute count together; those of the next one do not.
        make.event(session, time=at(10, 8) + timedelta(seconds=30), input_tokens=4_000, output_tokens=1_000)
        make.event(session, time=at(10, 8, 1), input_tokens=9_000, output_tokens=0)
        make.event(session, make.series(session, deployment="other"), time=at(11), input_tokens=79_999, output_tokens=0)
        for minute in range(3):
            make.event(session, time=at(12, 9, minute), input_tokens=None, output_tokens=None, status=Status.THROTTLED, billable=False)
        for name in ("llama-chat", "other"):
            said: dict[str, Any] = {"value": 100_000, "source": LimitSource.AZURE, "counting": Counting.BILLED, "author": "", "now": at(1)}
            set_limit(session, workspace="ws-east", deployment=name, measure="tokens_per_minute", **said)
        found = context(session)
    (call,) = found.close_calls
    assert (call.workspace, call.deployment, call.measure, call.limit, call.limit_source) == (*PLACE, "tokens_per_minute", 100_000, "azure")
    assert (call.peak, call.peak_at, call.percent, call.throttled) == (90_000, at(10), Decimal(90), 3)


def test_the_fullest_word_of_a_core_quota_is_not_for_a_team(store: Store) -> None:
    with store.write() as session:
        common: dict[str, Any] = {
            "subscription_id": "s-1",
            "region": "eastus2",
            "source": "compute",
            "level": "family",
            "family": "NCADSA100v4",
            "family_key": "ncadsa100v4",
            "quota": 96,
            "unit": "Count",
        }
        for used, known_from, known_to in ((96, at(1), at(8)), (72, at(8), at(10)), (84, at(10), at(12)), (24, at(12), None)):
            session.add(AzureQuota(**common, used=used, known_from=known_from, known_to=known_to, seen_at=known_from))
        session.flush()
        (call,) = context(session).close_calls
        assert [context(session, filters).close_calls for filters in (Filters(teams=("search",)), Filters(visible=frozenset({"ws-east"})))] == [[], []]
    assert (call.measure, call.peak, call.limit, call.percent, call.peak_at) == ("vcpus", 84, 96, Decimal("87.5"), at(10))
    assert call.pool == "NCADSA100v4 (compute), eastus2, subscription s-1"


def test_alerts_of_limits_that_fired_in_the_week(store: Store) -> None:
    with store.write() as session:
        for seq, (kind, fired, resolved, severity) in enumerate(
            (
                (Kind.TOKENS_PER_MINUTE, at(6), at(7), Severity.CRITICAL),  # over before the week began
                (Kind.TOKENS_PER_MINUTE, at(10), at(11), Severity.WARNING),
                (Kind.TOKENS_PER_MINUTE, at(12), None, Severity.ERROR),
                (Kind.TOKENS_PER_MINUTE, at(17), None, Severity.ERROR),  # after it
                (Kind.STALE_SOURCE, at(12), None, Severity.ERROR),  # of no limit
            )
        ):
            facts: dict[str, Any] = {"rule_id": "r", "rule": "near the limit", "scope": {"workspace": "ws-east", "deployment": "llama-chat"}}
            facts |= {"subject": "llama-chat", "why": "", "sample": {}, "receivers": [], "pending_at": fired, "fired_at": fired, "resolved_at": resolved}
            state = AlertState.FIRING if resolved is None else AlertState.RESOLVED
            session.add(Alert(id=f"a{seq}", seq=seq, kind=kind, state=state, severity=severity, **facts))
        session.flush()
        (seen,) = context(session).alerts
        assert context(session, Filters(visible=frozenset({"ws-west"}))).alerts == []
    assert (seen.rule, seen.subject, seen.severity, seen.times, seen.first_at, seen.resolved_at) == ("near the limit", "llama-chat", "error", 2, at(10), None)


def test_budgets_of_the_period_that_holds_the_weeks_end(store: Store) -> None:
    with store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        for day in range(1, 20):
            make.event(session, make.series(session, team="search"), time=at(day), input_tokens=MILLION, output_tokens=0)
        make.event(session, make.series(session, team="other"), time=at(19), input_tokens=5 * MILLION, output_tokens=0)
        budget(session, "all", "20.00")
        budget(session, "search", "40.00", scope={"team": "search"})
        budget(session, "weekly", "7.00", period="week")
        budget(session, "gone", "1.00", deleted_at=at(2))
    with store.read() as session:
        found = context(session).budgets
        own = context(session, Filters(teams=("search",))).budgets
        # 19 days of 1.00 and 5.00 more; the week of the report is over, that of the month is not.
        assert [(one.budget.name, one.spend.amount, one.percent) for one in found] == [
            ("all", Decimal(24), Decimal("120.0")),
            ("weekly", Decimal(7), Decimal("100.0")),
            ("search", Decimal(19), Decimal("47.5")),
        ]
        assert [one.outlook is None for one in found] == [False, True, False]
        # Ten days are left, today among them, at a mean of 1.00.
        assert (found[2].outlook.expected if found[2].outlook else None, found[2].expected_percent) == (Decimal("30.00"), Decimal("75.0"))
        assert [one.budget.name for one in own] == ["search"]


def test_what_earlier_reports_said_and_what_is_so_now(store: Store) -> None:
    with store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        make.event(session, time=at(3), input_tokens=3 * MILLION, output_tokens=0)  # in W45
        for number, (period, cost) in enumerate((("2026-W45", "2.5"), ("2026-W44", "1"), ("2026-W46", "9"))):
            body = {"totals": [{"currency": "USD", "cost": cost}]}
            facts: dict[str, Any] = {"kind": "weekly", "time_zone": "UTC", "scope": "{}", "made_at": at(16), "figures_sha256": "", "body": body}
            session.add(ReportSnapshot(id=f"s{number}", period=period, number=0, **facts))
            session.add(ReportSnapshot(id=f"r{number}", period=period, number=1, **facts | {"body": {"totals": []}}))
        session.flush()
        found = context(session).earlier
        assert context(session, week="2026-W40").earlier == []
    assert [(one.name, one.currency, one.told, one.now, one.difference) for one in found] == [
        ("2026-W45", "USD", Decimal("2.5"), Decimal(3), Decimal("0.5")),
        ("2026-W44", "USD", Decimal(1), Decimal(0), Decimal(-1)),
    ]
