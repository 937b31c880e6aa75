"""Data age, forecast, problems and choices."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from models import ledger
from models.charges import ChargeClass, MeterKind
from models.ledger import Filters, budgets
from models.periods import month_period
from models.store import Store
from tests import factories as make

NOW = make.NOW  # Friday 2026-11-20 10:00
MILLION = 1_000_000


def at(day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC)


def test_data_age_tells_how_far_usage_and_each_route_of_the_bill_reach(store: Store) -> None:
    with store.write() as session:
        make.event(session, time=at(19, 9, 7))
        make.event(session, make.series(session, workspace_name="ws-b"), time=at(20, 9, 58))
        part = make.bill_part(session, landed_at=at(19))
        make.charge(session, part, make.charge_item(session), "1", charged_on=date(2026, 11, 17))
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "1", charged_on=date(2026, 11, 15))
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "-1", charged_on=date(2026, 11, 30), charge_type="Refund")
    with store.read() as session:
        everything = ledger.data_age(session, visible=None, now=NOW)
        limited = ledger.data_age(session, visible=frozenset({"ws-east"}), now=NOW)
    assert (everything.metered_until, everything.billed_until) == (at(20, 9, 58), at(16))
    assert {one.name.split(" ")[0]: one.reaches for one in everything.sources if one.kind == "bill"} == {"foundry": at(16), "marketplace": at(18)}
    assert limited.metered_until == at(19, 9, 15)


def test_a_forecast_fills_the_month_by_weekday(store: Store) -> None:
    with store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        # Two weeks before today: 1 on each weekday, 3 on each day of the weekend. Today so far: 0.25.
        for number in range(6, 20):
            tokens = 3 * MILLION if at(number).weekday() >= 5 else MILLION
            make.event(session, time=at(number, 9), input_tokens=tokens, output_tokens=0)
        make.event(session, time=at(20, 9), input_tokens=250_000, output_tokens=0)
    with store.read() as session:
        (found,) = ledger.forecast(session, Filters(), now=NOW)
    # So far 10 + 4 x 3 + 0.25; the days to come: Friday 20 to Monday 30 hold 7 weekdays and 4 days of weekend.
    assert (found.currency, found.month_to_date, found.complete_days, found.reason) == ("USD", Decimal("22.25"), 14, None)
    assert found.month_end == Decimal("41.00")


def test_a_forecast_has_a_band_and_says_how_it_did_on_the_past(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        # Ten a day for seven weeks, to the 19th; of the last twenty days every other one 12 and 8.
        for number in range(49):
            day = at(19, 12) - timedelta(days=number)
            tokens = 10 * MILLION if number >= 20 else (12 if number % 2 else 8) * MILLION
            make.event(session, time=day, input_tokens=tokens, output_tokens=0)
    with sqlite_store.read() as session:
        (found,) = ledger.forecast(session, Filters(), now=NOW)
        same = budgets.outlook(session, filters=Filters(), period=month_period(NOW.date()), basis="best", currency="USD", now=NOW)
    assert (found.month_to_date, found.complete_days, found.trials) == (Decimal(190) - 2, 49, 34)
    assert (found.month_end, found.low, found.high, found.error_percent) == (same.expected, same.low, same.high, same.error_percent)
    assert found.low is not None
    assert found.high is not None
    assert found.month_end is not None
    assert Decimal(290) < found.low <= found.month_end <= found.high < Decimal(310)


def test_a_forecast_needs_five_complete_days(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "1.00")
        make.event(session, time=at(17), input_tokens=MILLION, output_tokens=0)
    with sqlite_store.read() as session:
        (found,) = ledger.forecast(session, Filters(), now=NOW)
        assert ledger.forecast(session, Filters(workspaces=("nowhere",)), now=NOW) == []
    assert (found.month_to_date, found.month_end, found.complete_days) == (Decimal(1), None, 3)
    assert found.reason == "a forecast needs five complete days; there are 3"


def test_problems_name_what_is_unpriced_unallocated_unknown_and_unconfirmed(store: Store) -> None:
    with store.write() as session:
        make.event(session, time=at(19), input_tokens=5, output_tokens=None)
        # What the landing found of a meter is not told: somebody may have said since what it counts.
        part = make.bill_part(session, problems=[{"kind": "unmapped_meter", "subject": "m", "detail": "d", "currency": "USD", "amount": "9", "count": 9}])
        make.charge(session, part, make.charge_item(session), "5.5")
        unmapped = make.charge_item(session, meter_kind=MeterKind.OTHER, meter_name="m")
        for cost in ("1", "0.5"):
            make.charge(session, part, unmapped, cost)
    with store.read() as session:
        found = {problem.kind: problem for problem in ledger.problems(session, visible=None, now=NOW)}
        limited = {problem.kind for problem in ledger.problems(session, visible=frozenset({"ws-east"}), now=NOW)}
    assert found.keys() == {"unmapped_meter", "unpriced_model", "unallocated_charge", "unknown_tokens", "unconfirmed_deployment"}
    assert (found["unmapped_meter"].amount, found["unmapped_meter"].count) == (Decimal("1.5"), 2)
    assert (found["unpriced_model"].count, found["unknown_tokens"].count, found["unallocated_charge"].amount) == (5, 1, Decimal(7))
    assert all(problem.remedy for problem in found.values())
    assert limited == {"unpriced_model", "unknown_tokens", "unconfirmed_deployment"}


def test_choices_are_what_is_known_to_the_caller(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session, "registered", model="Llama-3.3-70B-Instruct")
        make.owner(session, deployment="llama-chat", team="search")
        make.event(session, make.series(session, application="app", model="meta-llama-3-3-70b-instruct", tags={"env": "p"}))
        make.event(session, make.series(session, workspace_name="ws-b", deployment="hidden", model="phi"))
    with sqlite_store.read() as session:
        found = ledger.choices(session, visible=frozenset({"ws-east"}), now=NOW)
        everything = ledger.choices(session, visible=None, now=NOW)
    assert (found.workspaces, found.deployments, found.applications, found.teams) == (["ws-east"], ["llama-chat", "registered"], ["app"], ["search"])
    assert (len(found.models), found.tag_keys) == (1, ["env"])
    assert (everything.workspaces, everything.deployments) == (["ws-b", "ws-east"], ["hidden", "llama-chat", "registered"])
