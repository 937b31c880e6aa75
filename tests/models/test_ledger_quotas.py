"""The highest minute of many deployments is found together, and is the one that reading every minute finds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlmodel import Session

from models.ledger.quotas import Peaks
from models.store import Store
from models.usage import Status
from tests import factories as make

NOW = datetime(2026, 11, 20, 12, 7, tzinfo=UTC)
START = NOW - timedelta(days=7)


@pytest.fixture
def session(store: Store) -> Iterator[Session]:
    with store.write() as session:
        yield session
        session.rollback()


def test_the_highest_minute_is_of_what_counts_together(session: Session) -> None:
    first, second = (make.series(session, application=name) for name in ("a", "b"))
    at = datetime(2026, 11, 19, 8, 30, tzinfo=UTC)
    make.event(session, first, time=at, input_tokens=600, output_tokens=0)
    make.event(session, second, time=at + timedelta(minutes=3), input_tokens=500, output_tokens=0)
    make.event(session, first, time=at + timedelta(minutes=3), input_tokens=300, output_tokens=0)

    peaks = Peaks(session, now=NOW)

    assert first.id is not None
    assert second.id is not None
    assert peaks.of([first.id], "tokens_per_minute") == (600, at)
    assert peaks.of([first.id, second.id], "tokens_per_minute") == (800, at + timedelta(minutes=3))
    assert peaks.of([first.id, second.id], "requests_per_minute") == (2, at + timedelta(minutes=3))
    assert peaks.at_most([first.id, second.id], "tokens_per_minute") == 1400


def test_without_usage_there_is_no_highest_minute(session: Session) -> None:
    assert Peaks(session, now=NOW).of([], "tokens_per_minute") == (None, None)


def test_many_deployments_are_looked_at_in_few_questions(session: Session) -> None:
    # Steady use is the worst there is: every quarter could hold a higher minute than the best so far.
    ids = [make.series(session, deployment=f"llama-{number}").id or 0 for number in range(20)]
    for table, width in (("usage_quarter", 900), ("usage_minute", 300)):
        rows = [
            (at, one, 3 if table == "usage_minute" else 9)
            for one in ids
            for at in range(int(START.timestamp()) // 900 * 900 + 900, int(NOW.timestamp()), width)
        ]
        for index in range(0, len(rows), 5000):
            values = ", ".join(f"({at}, {one}, 20000, 1, {count}, 10, 0, 0, 0, 0, 0)" for at, one, count in rows[index : index + 5000])
            session.connection().exec_driver_sql(f"INSERT INTO {table} VALUES {values}")
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    sa.event.listen(session.get_bind(), "before_cursor_execute", note)
    peaks = Peaks(session, now=NOW)
    peaks.look([([one], measure) for one in ids for measure in ("tokens_per_minute", "requests_per_minute")])
    sa.event.remove(session.get_bind(), "before_cursor_execute", note)

    assert {peaks.of([one], "requests_per_minute")[0] for one in ids} == {3}
    # 20 deployments of 671 quarters: 500 of them a question, and one for the quarters themselves.
    assert 2 <= len(asked) <= 80


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_minute_that_reading_all_of_them_finds(session: Session, seed: int) -> None:
    chance = random.Random(seed)
    series = [make.series(session, application=f"app-{number}").id or 0 for number in range(4)]
    by_minute: dict[tuple[int, datetime], list[int]] = {}
    of = {one.id: one for one in (make.series(session, application=f"app-{number}") for number in range(4))}
    for _ in range(60):
        one = chance.choice(series)
        at = NOW - timedelta(minutes=chance.randrange(1, 300))
        tokens = chance.randrange(1, 50)
        is_answered = chance.random() < 0.8
        make.event(
            session, of[one], time=at, input_tokens=tokens, output_tokens=0, status=Status.SUCCESS if is_answered else Status.ERROR, billable=is_answered
        )
        into = by_minute.setdefault((one, at), [0, 0])
        into[0] += tokens if is_answered else 0
        into[1] += 1
    groups = [series, series[:2], series[2:3], [series[3], series[0]]]
    peaks = Peaks(session, now=NOW)
    peaks.look((group, measure) for group in groups for measure in ("tokens_per_minute", "requests_per_minute"))
    for group in groups:
        for index, measure in enumerate(("tokens_per_minute", "requests_per_minute")):
            plain: dict[datetime, int] = {}
            for (one, at), counts in by_minute.items():
                if one in group:
                    plain[at] = plain.get(at, 0) + counts[index]
            most, when = peaks.of(group, measure)
            assert most == max(plain.values())
            assert when is not None
            assert plain[when] == most
