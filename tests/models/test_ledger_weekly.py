"""The weekly report's figures: they are those of costs, and the steps between two weeks add up."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from sqlmodel import Session

from models import ledger, money
from models.charges import ChargeClass
from models.errors import InvalidInput
from models.ledger import CostQuery
from models.periods import Period
from models.prices import PriceMeter
from models.resources import DeploymentSetting
from models.store import Store
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00, a Friday of W47
W46 = Period(datetime(2026, 11, 9, tzinfo=UTC), datetime(2026, 11, 16, tzinfo=UTC))
MILLION = 1_000_000


def at(day: int, hour: int = 8) -> datetime:
    return datetime(2026, 11, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "zone", "expected", "period"),
    [
        (None, "UTC", "2026-W46", W46),
        ("2026-W46", "UTC", "2026-W46", W46),
        ("2026-W53", "UTC", "2026-W53", Period(datetime(2026, 12, 28, tzinfo=UTC), datetime(2027, 1, 4, tzinfo=UTC))),
        # The clocks of Berlin go back in W43: the week has an hour more.
        ("2026-W43", "Europe/Berlin", "2026-W43", Period(datetime(2026, 10, 18, 22, tzinfo=UTC), datetime(2026, 10, 25, 23, tzinfo=UTC))),
        ("2026-W46", "Pacific/Auckland", "2026-W46", Period(datetime(2026, 11, 8, 11, tzinfo=UTC), datetime(2026, 11, 15, 11, tzinfo=UTC))),
    ],
)
def test_a_week_is_an_iso_week_of_its_zone(name: str | None, zone: str, expected: str, period: Period) -> None:
    week = ledger.week_of(name, now=NOW, time_zone=zone)
    assert (week.name, week.period) == (expected, period)


@pytest.mark.parametrize("name", ["2025-W53", "2026-W00", "2026-46", "W46", "2026-W6", "1999-W01", "२०२६-W46", ""])
def test_a_week_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="week"):
        ledger.week_of(name, now=NOW)


def two_weeks(session: Session) -> None:
    make.serverless(session, "llama-chat")
    make.serverless(session, "second")
    make.managed(session, "llama-online/blue", valid_from=at(2, 0), valid_to=at(16, 0), instance_count=1)
    make.price(session, PriceMeter.INSTANCE_HOURS, "1.00", unit="1 hour", sku="Standard_NC24ads_A100_v4", model="")
    make.price(session, PriceMeter.INPUT_TOKENS, "1.00", valid_to=at(9, 0))
    make.price(session, PriceMeter.INPUT_TOKENS, "2.00", valid_from=at(9, 0))
    make.price(session, PriceMeter.OUTPUT_TOKENS, "5.00")
    chat, second = make.series(session, deployment="llama-chat", team="search"), make.series(session, deployment="second")
    make.event(session, chat, time=at(3), input_tokens=10 * MILLION, output_tokens=0)
    make.event(session, chat, time=at(10), input_tokens=15 * MILLION, output_tokens=0)
    make.event(session, second, time=at(11), input_tokens=5 * MILLION, output_tokens=0)
    part = make.bill_part(session)
    make.charge(session, part, make.charge_item(session, ChargeClass.ADJUSTMENT), "-0.5", charged_on=date(2026, 11, 12), charge_type="RoundingAdjustment")


def test_the_steps_between_two_weeks_add_up(store: Store) -> None:
    with store.write() as session:
        two_weeks(session)
    with store.read() as session:
        report = ledger.weekly(session, ledger.week_of("2026-W46", now=NOW), now=NOW)
        (expected,) = ledger.costs(session, CostQuery(W46, "none"), now=NOW).totals
    (week,) = report.currencies
    # Last week 10 tokens at 1.00 and 168 h; this week 15 and 5 at 2.00, 168 h, and a credit.
    assert (week.cost.now, week.cost.before) == (Decimal("207.5"), Decimal(178))
    assert (week.total, week.billed.now) == (expected, expected.billed_cost)
    assert week.waterfall is not None
    steps = week.waterfall.steps
    # Twice the tokens at the old price; the new deployment has no old price (10 - 5); 15 million at 1.00 more.
    # Nobody knows what the instance could serve: none of it is said to be idle.
    assert steps == {"volume": Decimal(10), "mix": Decimal(5), "price": Decimal(15), "capacity": Decimal(0), "idle": None, "corrections": Decimal("-0.5")}
    assert money.plus(week.waterfall.before, money.add(step or Decimal(0) for step in steps.values())) == week.waterfall.now
    assert week.cost.percent == Decimal("16.57")
    for lines in (week.by_mode, week.by_workspace, week.by_deployment, week.by_team):
        assert money.add(line.figures.cost or Decimal(0) for line in lines) == week.total.cost
    assert [(line.names["deployment"], why) for line, why in week.movers] == [
        ("llama-chat", "tokens +50 %, cost per token +100 %"),
        ("second", "new this week"),
        (None, "new this week"),
    ]
    assert week.reconciliation is not None
    assert week.reconciliation.billed == Decimal("-0.5")
    assert len(report.provisional_days) == 7


def test_a_week_that_is_billed_in_part_is_compared_over_the_same_weekdays_alone(store: Store) -> None:
    # The bill reaches Wednesday the 11th: Monday 3 + Tuesday 0 + Wednesday 4, against 2 + 1 + 0 and a Thursday that does not count.
    with store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        part, item = make.bill_part(session, reaches={"marketplace": "2026-11-11"}), make.charge_item(session)
        for day, amount in ((2, "2.00"), (3, "1.00"), (5, "9.99"), (9, "3.00"), (11, "4.00")):
            make.charge(session, part, item, amount, charged_on=date(2026, 11, day))
        make.event(session, make.series(session, deployment="llama-chat"), time=at(13), input_tokens=50 * MILLION, output_tokens=0)
    with store.read() as session:
        (week,) = ledger.weekly(session, ledger.week_of("2026-W46", now=NOW), now=NOW).currencies
        (before,) = ledger.weekly(session, ledger.week_of("2026-W45", now=NOW), now=NOW).currencies
        (expected,) = ledger.costs(session, CostQuery(W46, "none"), now=NOW).totals
    # Its coverage, too: 7 are billed that no call stands behind.
    assert (week.total, expected.coverage) == (expected, Decimal(0))
    assert week.cost.now == Decimal(57)
    assert week.alike is not None
    assert [day.day for day in week.alike.days] == [9, 10, 11]
    assert [day.day for day in week.alike.days_before] == [2, 3, 4]
    assert (week.alike.cost.now, week.alike.cost.before, week.alike.cost.percent) == (Decimal(7), Decimal(3), Decimal("133.33"))
    # A week that is billed to its last charge has nothing to leave out.
    assert before.alike is None


def test_days_not_billed_are_named_as_the_zone_has_them(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
        make.event(session, time=at(13), input_tokens=MILLION, output_tokens=0)
    with sqlite_store.read() as session:
        report = ledger.weekly(session, ledger.week_of("2026-W46", now=NOW, time_zone="Asia/Tokyo"), now=NOW)
    assert report.provisional_days == [date(2026, 11, 13)]


def test_instances_that_served_less_are_idle_money(store: Store) -> None:
    """One instance of 100 an hour, told to serve 1,000 tokens a minute: 10,080,000 a week. It served half of them, then a quarter."""
    with store.write() as session:
        make.managed(session, "llama-online/blue", valid_from=at(2, 0), valid_to=at(16, 0), instance_count=1)
        make.price(session, PriceMeter.INSTANCE_HOURS, "100.00", unit="1 hour", sku="Standard_NC24ads_A100_v4", model="")
        session.add(DeploymentSetting(workspace="ws-east", name="llama-online/blue", capacity_tokens_per_minute=1000, known_from=make.LONG_AGO))
        series = make.series(session, deployment="llama-online/blue")
        make.event(session, series, time=at(3), input_tokens=5_040_000, output_tokens=0)
        make.event(session, series, time=at(10), input_tokens=2_520_000, output_tokens=0)
    with store.read() as session:
        report = ledger.weekly(session, ledger.week_of("2026-W46", now=NOW), now=NOW)
    (week,) = report.currencies
    assert week.waterfall is not None
    assert (week.cost.now, week.cost.before) == (Decimal(16800), Decimal(16800))
    assert week.waterfall.steps == {
        "volume": Decimal(0),
        "mix": Decimal(0),
        "price": Decimal(0),
        "capacity": Decimal(-4200),
        "idle": Decimal(4200),
        "corrections": Decimal(0),
    }


def test_a_week_without_anything_after_one_with_something(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        make.event(session, time=at(3), input_tokens=MILLION, output_tokens=0)
    with sqlite_store.read() as session:
        report = ledger.weekly(session, ledger.week_of("2026-W46", now=NOW), now=NOW)
        with pytest.raises(InvalidInput, match="not begun"):
            ledger.weekly(session, ledger.week_of("2026-W48", now=NOW), now=NOW)
        empty = ledger.weekly(session, ledger.week_of("2026-W44", now=NOW + timedelta(0)), now=NOW)
    (week,) = report.currencies
    assert (week.cost.now, week.cost.before, week.cost.percent) == (Decimal(0), Decimal(1), Decimal("-100.00"))
    assert empty.currencies == []
