"""How late each meter of a bill usually is, learnt from landings made by hand, and when it is later than that."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from sqlmodel import Session

from models import ledger
from models.charges import ChargeClass, MeterKind
from models.ledger.sources import due
from models.meters import MappedKind, MeterMapping
from models.periods import HOUR, Period
from models.store import Store
from models.usage import Operation
from tests import factories as make

NOW = make.NOW  # 2026-11-20 10:00
SHORT, LONG, SPARE = timedelta(hours=10), timedelta(hours=34), timedelta(days=1)


def end(day: int) -> datetime:
    return datetime(2026, 11, day, tzinfo=UTC) + timedelta(days=1)


def landed(session: Session, day: int, **meters: int) -> None:
    """A bill that came ten hours after the end of the day, with the last day of each meter in it."""
    reaches = {f"foundry/{meter}": f"2026-11-{last:02d}" for meter, last in meters.items()}
    make.bill_part(session, landed_at=end(day) + SHORT, reaches={"foundry": f"2026-11-{max(meters.values()):02d}"}, meter_reaches=reaches)


def called(session: Session, *days: int, operation: Operation = Operation.CHAT, **tokens: int) -> None:
    of = make.series(session, deployment="llama-foundry", operation=operation.value)
    for day in days:
        make.event(session, of, time=datetime(2026, 11, day, 8, tzinfo=UTC), **({"input_tokens": 100, "output_tokens": 0} | tokens))  # type: ignore[arg-type]


def known(session: Session) -> None:
    make.foundry(session)
    make.workspace_fact(session)


def told(session: Session, *, now: datetime = NOW) -> dict[str | None, tuple[date, timedelta, int, datetime | None]]:
    return {lag.meter: (lag.reaches, lag.usual, lag.landings, lag.overdue_since) for lag in ledger.lags(session, now=now)}


def late_sources(session: Session, *, now: datetime = NOW) -> dict[str, datetime]:
    return {one.name.replace(make.SUBSCRIPTION, "s"): one.late_since for one in due(session, now=now) if one.late_since is not None}


def test_each_meter_has_a_lag_of_its_own_and_is_overdue_by_it(store: Store) -> None:
    with store.write() as session:
        known(session)
        called(session, *range(4, 20), output_tokens=50)
        # Output is a day later than input, and from the 16th on it does not come at all.
        for day in range(5, 12):
            landed(session, day, input=day, output=day - 1)
        for day in range(12, 20):
            landed(session, day, input=day, output=10)
    waited_for = end(11) + LONG + SPARE
    with store.read() as session:
        assert told(session) == {
            None: (date(2026, 11, 19), SHORT, 15, None),
            "input": (date(2026, 11, 19), SHORT, 15, None),
            "output": (date(2026, 11, 10), LONG, 7, waited_for),
        }
        assert told(session, now=waited_for - timedelta(seconds=1))["output"][3] is None
        assert told(session, now=waited_for)["output"][3] == waited_for
        assert late_sources(session) == {"bill · foundry · s · output": waited_for}


def test_a_meter_that_somebody_mapped_has_a_lag_of_its_own(store: Store) -> None:
    with store.write() as session:
        known(session)
        called(session, *range(4, 20), output_tokens=50)
        make.charge_item(session, ChargeClass.FOUNDRY, meter_kind=MeterKind.OTHER, meter_name="Llama / mystery", offer_id="llama-offer")
        for day in range(5, 20):
            # The mystery comes a day later, and from the 16th on not at all.
            late = min(day, 12) - 1
            reaches = {"foundry/input": f"2026-11-{day:02d}", "foundry/other": f"2026-11-{late:02d}"}
            reaches["foundry/other/llama-offer/Llama / mystery"] = f"2026-11-{late:02d}"
            make.bill_part(session, landed_at=end(day) + SHORT, reaches={"foundry": f"2026-11-{day:02d}"}, meter_reaches=reaches)
    with store.read() as session:
        assert set(told(session)) == {None, "input"}
    with store.write() as session:
        session.add(MeterMapping(meter="llama / *", kind=MappedKind.OUTPUT, known_from=NOW))
    with store.read() as session:
        found = told(session)
        assert found["output"] == (date(2026, 11, 11), LONG, 8, end(12) + LONG + SPARE)
        assert found["input"] == (date(2026, 11, 19), SHORT, 15, None)
        assert found[None] == found["input"]


def test_a_meter_of_few_landings_goes_by_its_route(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        known(session)
        called(session, *range(4, 20), output_tokens=50)
        for day in range(5, 10):
            landed(session, day, input=day)
        for day in range(10, 14):
            landed(session, day, input=day, output=day - 3)
    with sqlite_store.read() as session:
        found = told(session)
    assert found["output"] == (date(2026, 11, 10), SHORT, 4, end(11) + SHORT + SPARE)
    assert found[None][1:3] == (SHORT, 9)


def test_a_meter_that_nobody_uses_any_more_is_not_missed(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        known(session)
        called(session, *range(4, 20))
        called(session, 4, 5, output_tokens=50, cached_input_tokens=10)
        for day in range(5, 20):
            landed(session, day, input=day, output=min(day, 5), cached_input=min(day, 5), training=min(day, 5))
    with sqlite_store.read() as session:
        assert [meter for meter, (*_, since) in told(session).items() if since is not None] == []
    # It is waited for from the first day on which it is used again: that of the 12th since the end of the 13th and the lag.
    with sqlite_store.write() as session:
        called(session, 12, 13, output_tokens=50)
        called(session, 14, cached_input_tokens=10)
        called(session, 15, operation=Operation.FINE_TUNING)
    with sqlite_store.read() as session:
        late = {meter: since for meter, (*_, since) in told(session).items() if since is not None}
    assert late == {meter: end(day) + SHORT + SPARE for meter, day in (("output", 12), ("cached_input", 14), ("training", 15))}


def test_calls_of_an_unknown_subscription_wait_for_no_meter(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.foundry(session)  # of a workspace whose subscription nobody has told
        called(session, *range(4, 20), output_tokens=50)
        for day in range(5, 20):
            landed(session, day, input=day, output=min(day, 5))
    with sqlite_store.read() as session:
        assert told(session)["output"][3] is None


def test_where_the_whole_route_is_late_its_meters_are_no_news(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        known(session)
        called(session, *range(4, 20), output_tokens=50)
        for day in range(5, 11):
            landed(session, day, input=day, output=day)
        landed(session, 11, hosting=10)  # hours have no calls: nobody waits for them but with their route
    with sqlite_store.read() as session:
        assert {meter: since for meter, (*_, since) in told(session).items()} == dict.fromkeys((None, "input", "output"), end(11) + SHORT + SPARE)
        assert late_sources(session) == {"bill · foundry · s": end(11) + SHORT + SPARE}
        assert late_sources(session, now=end(11) + SHORT + SPARE - HOUR) == {}


def test_a_row_that_is_metered_and_not_billed_is_overdue_by_the_lag_of_its_meter(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        known(session)
        make.token_prices(session, "1.00", "2.00")
        called(session, *range(14, 20), input_tokens=1_000_000, output_tokens=1_000_000)
        for day in range(5, 15):
            landed(session, day, input=day, output=day - 1)
        part = make.bill_part(session, landed_at=NOW)
        make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY), "1.00", charged_on=date(2026, 11, 14))
    with sqlite_store.read() as session:
        period = Period(datetime(2026, 11, 14, tzinfo=UTC), datetime(2026, 11, 20, tzinfo=UTC))
        rows = ledger.reconciliation(session, period, now=NOW).rows
        earlier = ledger.reconciliation(session, period, now=NOW, as_of=end(15) + SHORT + SPARE - HOUR).rows
    # Input comes within 10 hours, output within 34; a day is spared. What was billed is not waited for.
    assert {(row.meter, row.day.day): row.overdue_since for row in rows if row.overdue_since is not None} == {
        **{("input", day): end(day) + SHORT + SPARE for day in (15, 16, 17, 18)},
        **{("output", day): end(day) + LONG + SPARE for day in (14, 15, 16, 17)},
    }
    assert [row.day.day for row in earlier if row.overdue_since is not None and row.meter == "output"] == []
