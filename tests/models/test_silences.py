"""Which alerts a silence covers, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from models.silences import Quiet, agrees, silenced_by

START = datetime(2026, 11, 20, 10, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def test_a_silence_matches_when_every_matcher_does() -> None:
    quiet = Quiet("s1", (("workspace", "ws-east"), ("severity", "warning")), at(0), at(60))
    labels = {"workspace": "ws-east", "severity": "warning", "kind": "idle_deployment"}
    assert silenced_by([quiet], labels, at(0)) is quiet
    assert silenced_by([quiet], labels | {"severity": "critical"}, at(0)) is None
    assert silenced_by([quiet], labels, at(60)) is None


def test_a_maintenance_window_comes_every_week_in_its_zone_and_over_midnight() -> None:
    weekly = {"days": ["saturday"], "from": "22:00", "to": "02:00", "time_zone": "Europe/Berlin"}
    quiet = Quiet("s1", (), datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), weekly)
    # Saturday 2026-11-21 22:00 in Berlin is 21:00 UTC; in summer it is 20:00.
    for instant, covered in [
        (datetime(2026, 11, 21, 20, 59, tzinfo=UTC), False),
        (datetime(2026, 11, 21, 21, 0, tzinfo=UTC), True),
        (datetime(2026, 11, 22, 0, 59, tzinfo=UTC), True),
        (datetime(2026, 11, 22, 1, 0, tzinfo=UTC), False),
        (datetime(2026, 7, 4, 20, 0, tzinfo=UTC), True),
        (datetime(2026, 7, 5, 20, 0, tzinfo=UTC), False),
    ]:
        assert (silenced_by([quiet], {}, instant) is not None) == covered


def test_a_name_that_is_matched_several_times_takes_any_of_its_values() -> None:
    wanted = (("deployment", "chat"), ("deployment", "search"), ("severity", "critical"))
    assert agrees(wanted, {"deployment": "chat", "severity": "critical"})
    assert agrees(wanted, {"deployment": "search", "severity": "critical"})
    assert not agrees(wanted, {"deployment": "other", "severity": "critical"})
    assert not agrees(wanted, {"deployment": "chat", "severity": "warning"})
    assert not agrees(wanted, {"severity": "critical"})
    assert agrees((), {})
