"""When a delivery is tried."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from collector.webhooks.schedule import next_attempt, rest, retry_after

START = datetime(2026, 11, 20, 10, tzinfo=UTC)


def walk(delivery_id: str) -> list[timedelta]:
    """When the attempts of a receiver that refuses at once are, since the first."""
    at, found = START, [timedelta(0)]
    while (following := next_attempt(delivery_id, step=len(found) - 1, started_at=START, now=at)) is not None:
        at = following
        found.append(at - START)
    return found


def test_attempts_go_on_for_75_hours_and_stop() -> None:
    found = walk("dlv_1")
    least = [0, 5, 30, 120, 600, 3600, 10800, 25200, 54000, 86400, 129600, 172800, 219600, 270000]
    assert len(found) == 14
    for at, seconds in zip(found, least, strict=True):
        assert seconds <= at.total_seconds() <= seconds * 1.1
    assert found[-1] == timedelta(hours=75)


def test_deliveries_are_spread_and_each_is_always_the_same() -> None:
    assert walk("dlv_1") == walk("dlv_1") != walk("dlv_2")


def test_retry_after_is_waited_for_up_to_six_hours() -> None:
    def following(asked: timedelta) -> datetime | None:
        return next_attempt("dlv_1", step=0, started_at=START, now=START, retry_after=asked)

    assert following(timedelta(minutes=7)) == START + timedelta(minutes=7)
    assert following(timedelta(days=9)) == START + timedelta(hours=6)
    soon = following(timedelta(seconds=1))
    assert soon is not None
    assert soon >= START + timedelta(seconds=5)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("120", 120), ("Fri, 20 Nov 2026 10:01:00 GMT", 60), ("Fri, 20 Nov 2026 09:00:00 GMT", 0), ("soon", None), ("-1", None), ("١", None)],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: int | None) -> None:
    assert retry_after(value, now=START) == (None if seconds is None else timedelta(seconds=seconds))


def test_a_receiver_rests_after_five_failures_and_never_for_long() -> None:
    assert [rest(failures) for failures in (0, 4)] == [None, None]
    assert [rest(failures) for failures in (5, 6, 10, 1000)] == [timedelta(seconds=30), timedelta(seconds=60), timedelta(minutes=10), timedelta(minutes=10)]
