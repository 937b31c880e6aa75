"""What holds in every world: sums add up however they are asked for, order does not matter, and the past stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import Session, select

from models import audit, ledger, money
from models.charges import BillPart, ChargeClass, MeterKind
from models.ledger import CostQuery, CostTable, Figures
from models.ledger.billed import Reading
from models.ledger.costs import costs_together
from models.meters import MappedKind
from models.periods import Period
from models.prices import PriceMeter
from models.resources import Mode
from models.store import Store
from models.usage import Operation
from tests import factories as make

START = datetime(2026, 10, 31, tzinfo=UTC)  # the night in which summer time ends in New York lies inside
END = datetime(2026, 11, 4, tzinfo=UTC)
NOW = datetime(2026, 11, 3, 13, 17, tzinfo=UTC)
ZONES = ("UTC", "Asia/Kolkata", "America/New_York", "Asia/Kathmandu")
ADDITIVE = [one.name for one in fields(Figures) if one.name.endswith(("_tokens", "requests", "cost", "hours"))]
few = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Call:
    minute: int
    workspace: str
    names: tuple[str, str]
    application: str
    tokens: tuple[int, int | None, int]
    operation: Operation


@dataclass(frozen=True)
class World:
    """A small world; the same seed places the same facts and bills around the calls."""

    calls: tuple[Call, ...]
    seed: int


calls = st.builds(
    Call,
    minute=st.integers(0, 3 * 1440 - 1),
    workspace=st.sampled_from(["ws-east", "ws-west"]),
    names=st.sampled_from([("", "one"), ("", "two"), ("ep", "blue"), ("", "blue"), ("", "nobody")]),
    application=st.sampled_from(["", "a", "b"]),
    tokens=st.tuples(st.integers(0, 5000), st.one_of(st.none(), st.integers(0, 900)), st.integers(0, 6000)),
    operation=st.sampled_from([Operation.CHAT, Operation.CHAT, Operation.EMBEDDINGS, Operation.FINE_TUNING]),
)
worlds = st.builds(World, calls=st.lists(calls, min_size=1, max_size=12).map(tuple), seed=st.integers(0, 10_000))


def moment(random: Random, *, is_hourly: bool = False) -> datetime:
    minutes = random.randrange(0, 3 * 1440, 60 if is_hourly else 1)
    return START + timedelta(minutes=minutes)


def add_facts(session: Session, random: Random, known: datetime = make.LONG_AGO) -> None:
    """A registry, owners and prices that change somewhere in the middle."""
    make.workspace_fact(session, known_from=known)
    if random.random() < 0.5:
        make.workspace_fact(session, workspace="ws-west", subscription_id=random.choice([make.SUBSCRIPTION, "other"]), known_from=known)
    for workspace in ("ws-east", "ws-west"):
        for name, made in (("one", make.serverless), ("two", random.choice([make.serverless, make.foundry]))):
            if random.random() < 0.7:
                made(session, name, workspace=workspace, known_from=known, valid_from=random.choice([None, moment(random)]))
        change = moment(random)
        make.managed(session, "ep/blue", workspace=workspace, known_from=known, valid_from=moment(random), valid_to=change)
        make.managed(session, "ep/blue", workspace=workspace, known_from=known, valid_from=change, instance_count=3)
    for meter in (PriceMeter.INPUT_TOKENS, PriceMeter.OUTPUT_TOKENS, PriceMeter.CACHED_INPUT_TOKENS, PriceMeter.TRAINING_TOKENS, PriceMeter.INSTANCE_HOURS):
        for _ in range(random.randrange(3)):
            make.price(
                session,
                meter,
                f"{random.randrange(1, 99_999)}E-{random.randrange(2, 7)}",
                valid_from=random.choice([None, moment(random, is_hourly=True)]),
                currency=random.choice(["USD", "USD", "USD", "EUR"]),
                known_from=known,
            )
    make.owner(session, deployment="one", team="t1", valid_to=moment(random), known_from=known)
    make.owner(session, deployment=None, workspace=None, application="a", team="t2", known_from=known, valid_from=moment(random))
    second = datetime(2026, 11, 2, tzinfo=UTC)
    for _ in range(random.randrange(3)):
        said = {"valid_from": random.choice([None, second]), "unit": random.choice(["", "1K tokens"])}
        make.meter_mapping(session, random.choice(["*", "", "*x"]), random.choice(list(MappedKind)), known_from=known, **said)


def add_bill(session: Session, random: Random, landed: datetime) -> None:
    """November and October of a subscription, restating what stood."""
    currency = random.choice(["USD", "EUR"])
    for month in (date(2026, 10, 1), date(2026, 11, 1)):
        part = make.bill_part(session, period_start=month, landed_at=landed, exchange_rates={"USD>EUR": "0.91"})
        for _ in range(random.randrange(1, 5)):
            kind = random.choice([MeterKind.INPUT, MeterKind.OUTPUT, MeterKind.HOSTING])
            match random.choice(list(ChargeClass)):
                case ChargeClass.COMPUTE:
                    names: dict[str, Any] = random.choice([{"endpoint": "ep", "deployment": "blue"}, {"endpoint": None, "deployment": None}])
                    item = make.charge_item(session, ChargeClass.COMPUTE, **names)
                case ChargeClass.FOUNDRY:
                    item = make.charge_item(session, ChargeClass.FOUNDRY, kind, deployment=random.choice(["TWO", "two", "llama"]))
                case other:
                    item = make.charge_item(session, other, kind)
            on = date(2026, 10, 31) if month.month == 10 else date(2026, 11, random.randrange(1, 3))
            cost = f"{random.randrange(-300, 100_000)}E-{random.randrange(0, 15)}"
            is_usage = item.charge_class != ChargeClass.ADJUSTMENT
            make.charge(session, part, item, cost, charged_on=on, quantity="17", currency=currency, charge_type="Usage" if is_usage else "RoundingAdjustment")


def add_calls(session: Session, made: list[Call], *, arrived: datetime | None = None) -> None:
    for call in made:
        series = make.series(
            session,
            workspace_name=call.workspace,
            endpoint=call.names[0],
            deployment=call.names[1],
            application=call.application,
            operation=call.operation.value,
            tags={"env": call.application} if call.application else None,
        )
        at = START + timedelta(minutes=call.minute)
        inputs, outputs, cached = call.tokens
        more: dict[str, Any] = {} if arrived is None else {"received_at": max(arrived, at)}
        make.event(session, series, time=at, input_tokens=inputs, output_tokens=outputs, cached_input_tokens=min(cached, inputs), **more)


@contextmanager
def writing(store: Store) -> Iterator[Session]:
    """A session whose rows are gone afterwards: one file serves every example."""
    with store.engine.connect() as connection, Session(connection) as session:
        yield session
        session.rollback()


def build(session: Session, world: World) -> None:
    random = Random(world.seed)
    add_facts(session, random)
    add_calls(session, list(world.calls))
    add_bill(session, random, START + timedelta(days=2))


WHOLE = Period(START, END)


def ask(session: Session, period: Period = WHOLE, *, now: datetime = NOW, **asked: Any) -> CostTable:
    query = replace(CostQuery(period, "none"), **asked)
    return ledger.costs(session, query, now=now)


def sums(figures: list[Figures]) -> dict[str | None, dict[str, Decimal]]:
    """Every additive number by currency."""
    found: dict[str | None, dict[str, Decimal]] = {}
    for one in figures:
        into = found.setdefault(one.currency, dict.fromkeys(ADDITIVE, Decimal(0)))
        for name in ADDITIVE:
            into[name] = money.plus(into[name], Decimal(getattr(one, name) or 0))
    return {currency: each for currency, each in found.items() if any(each.values())}


@given(world=worlds, zone=st.sampled_from(ZONES))
@few
def test_sums_add_up_by_every_group_and_every_cut_of_time(sqlite_store: Store, world: World, zone: str) -> None:
    with writing(sqlite_store) as session:
        build(session, world)
        for basis in ledger.BASES:
            whole = sums(ask(session, basis=basis).totals)
            for groups in (
                (),
                ("workspace", "deployment"),
                ("model", "mode"),
                ("application", "team"),
                ("cost_center", "meter"),
                ("subscription",),
                ("tag:env",),
            ):
                by_hour = ask(session, granularity="hour", group_by=groups, basis=basis, time_zone=zone)
                by_day = ask(session, granularity="day", group_by=groups, basis=basis, time_zone=zone)
                assert sums([row.figures for row in by_hour.rows]) == sums(by_hour.totals) == whole
                assert sums(by_day.totals) == whole
                # Each day is the sum of its own hours, group by group.
                for row in by_day.rows:
                    hours = [
                        each.figures
                        for each in by_hour.rows
                        if each.groups == row.groups
                        and row.period.start <= each.period.start < row.period.end
                        and each.figures.currency == row.figures.currency
                    ]
                    assert sums(hours) == sums([row.figures])


def without_coverage(table: CostTable) -> CostTable:
    rows = [replace(row, figures=replace(row.figures, coverage=None)) for row in table.rows]
    return replace(table, rows=rows, totals=[replace(figures, coverage=None) for figures in table.totals])


@given(world=worlds, zone=st.sampled_from(ZONES))
@few
def test_what_is_answered_together_is_what_is_answered_alone(sqlite_store: Store, world: World, zone: str) -> None:
    groupings = ((), ("mode",), ("workspace", "deployment", "meter"), ("model",), ("team",), ("tag:env", "subscription"))
    with writing(sqlite_store) as session:
        build(session, world)
        reading = Reading(session, NOW)
        # The parts first, then the whole: what was read for them is not read again, and is neither lost nor counted twice.
        for period in (Period(START, START + timedelta(hours=30)), Period(START + timedelta(hours=30), END), WHOLE):
            for granularity in ("none", "day"):
                bases = (*ledger.BASES, *ledger.BASES)
                queries = [CostQuery(period, granularity, groups, basis, time_zone=zone) for groups, basis in zip(groupings, bases, strict=False)]
                alone = [ledger.costs(session, query, now=NOW) for query in queries]
                assert costs_together(session, queries, now=NOW, reading=reading) == alone
                plain = costs_together(session, queries, now=NOW, reading=reading, needs_coverage=False)
                assert plain == [without_coverage(table) for table in alone]


@given(world=worlds, minute=st.integers(1, 4 * 1440 - 1), odd=st.integers(0, 59_999_999))
@few
def test_a_period_is_the_sum_of_its_two_parts_wherever_it_is_cut(sqlite_store: Store, world: World, minute: int, odd: int) -> None:
    # Instance-hours are cut at a microsecond here, and shared by the day: what is left over in one part is in the other.
    at = START + timedelta(minutes=minute, microseconds=odd)
    with writing(sqlite_store) as session:
        build(session, world)
        for groups in ((), ("workspace", "deployment"), ("application",)):
            whole = ask(session, group_by=groups)
            halves = [ask(session, period, group_by=groups) for period in (Period(START, at), Period(at, END))]
            assert sums([each for half in halves for each in half.totals]) == sums(whole.totals)
            for row in whole.rows:
                same = [each.figures for half in halves for each in half.rows if each.groups == row.groups and each.figures.currency == row.figures.currency]
                assert sums(same) == sums([row.figures])


@given(world=worlds)
@few
def test_filters_part_the_whole(sqlite_store: Store, world: World) -> None:
    with writing(sqlite_store) as session:
        build(session, world)
        whole = ask(session)
        by_mode = [total for mode in Mode for total in ask(session, filters=ledger.Filters(modes=(mode,))).totals]
        assert sums(by_mode) == sums(whole.totals)
        for name in ("workspace", "application"):
            for row in ask(session, group_by=(name,)).rows:
                value = row.groups[name]
                if value is not None:
                    named = (value,)
                    only = ledger.Filters(workspaces=named) if name == "workspace" else ledger.Filters(applications=named)
                    (found,) = [total for total in ask(session, filters=only).totals if total.currency == row.figures.currency]
                    assert sums([found]) == sums([row.figures])


@given(world=worlds, seed=st.integers(0, 1000))
@few
def test_the_order_of_arrival_changes_nothing(sqlite_store: Store, world: World, seed: int) -> None:
    shuffled = list(world.calls)
    Random(seed).shuffle(shuffled)
    found = []
    for made in (world.calls, tuple(shuffled)):
        with writing(sqlite_store) as session:
            # The series stand in one order (a remainder goes to the first of them), the calls come in any.
            for call in sorted(world.calls, key=repr):
                add_series(session, call)
            build(session, replace(world, calls=made))
            table = ask(session, granularity="day", group_by=("workspace", "deployment", "application"))
            found.append(([(row.period, row.groups, row.figures) for row in table.rows], table.totals))
    assert found[0] == found[1]


def add_series(session: Session, call: Call) -> None:
    make.series(
        session,
        workspace_name=call.workspace,
        endpoint=call.names[0],
        deployment=call.names[1],
        application=call.application,
        operation=call.operation.value,
        tags={"env": call.application} if call.application else None,
    )


@given(world=worlds, hours=st.integers(72, 100))
@few
def test_as_of_gives_what_was_answered_then(sqlite_store: Store, world: World, hours: int) -> None:
    then = START + timedelta(hours=hours, minutes=13)
    later = then + timedelta(hours=30)
    random = Random(world.seed)
    half = len(world.calls) // 2
    with writing(sqlite_store) as session:
        add_facts(session, random)
        add_calls(session, list(world.calls[:half]))
        add_bill(session, random, then - timedelta(hours=1))
        asked: list[dict[str, Any]] = [
            {"granularity": "day", "group_by": groups, "basis": basis} for groups in ((), ("deployment", "team")) for basis in ledger.BASES
        ]
        before = [ask(session, now=then, **one) for one in asked]
        # Then everything changes: late calls (on the same day, and the day after), prices, registry, a restated bill.
        add_calls(session, list(world.calls[half:]), arrived=then + timedelta(minutes=1))
        add_calls(session, list(world.calls[:half]), arrived=later)
        add_facts(session, random, known=then + timedelta(minutes=1))
        session.flush()
        for part in ledger_parts(session):
            make.supersede(session, part, later)
        add_bill(session, random, later)
        after = [ask(session, now=later, as_of=then, **one) for one in asked]
    assert [[(row.period, row.groups, row.figures) for row in one.rows] for one in after] == [
        [(row.period, row.groups, row.figures) for row in one.rows] for one in before
    ]
    assert [one.totals for one in after] == [one.totals for one in before]


def ledger_parts(session: Session) -> list[BillPart]:
    return list(session.exec(select(BillPart)))


@pytest.mark.parametrize("seed", range(2))
def test_the_ledger_agrees_with_the_books_that_verify_keeps(sqlite_store: Store, seed: int) -> None:
    random = Random(seed)
    operations = [Operation.CHAT, Operation.EMBEDDINGS, Operation.FINE_TUNING]
    made = tuple(
        Call(
            random.randrange(3 * 1440),
            random.choice(["ws-east", "ws-west"]),
            random.choice([("", "one"), ("", "two"), ("ep", "blue")]),
            random.choice(["", "a", "b"]),
            (random.randrange(5000), random.randrange(900), random.randrange(500)),
            random.choice(operations),
        )
        for _ in range(40)
    )
    with writing(sqlite_store) as session:
        build(session, World(made, seed))

        def answer(question: audit.Question) -> CostTable:
            return ask(session, question.period, granularity=question.granularity, group_by=question.group_by, basis=question.basis, as_of=question.as_of)

        found = audit.verify(session, now=NOW, ask=answer)
    assert found.lines() == []
    assert found.checked > 5000
