"""Reports that do not arrive are an alert of the built-in rule, and their arrival ends it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlmodel import select

from collector.notices import post
from collector.reports import delivery
from collector.watch import Watcher
from models.alerts import Alert, AlertState
from models.notices import Delivery, DeliveryStatus, Receiver
from models.schedules import ReportSchedule
from models.store import Store
from tests.collector.reports.test_delivery import NOW, go, places, receiver, schedule, world

MINUTE = timedelta(minutes=1)


def judged(store: Store, minutes: int) -> tuple[AlertState, str] | None:
    """The alert of reports after an evaluation by a new process."""
    Watcher(post).run(store, now=NOW + minutes * MINUTE)
    with store.read() as session:
        found = session.exec(select(Alert).where(Alert.rule_id == "builtin-reports")).first()
        return None if found is None else (found.state, found.why)


def test_a_folder_that_stays_away_is_told_and_its_return_ends_it(store: Store, tmp_path: Path) -> None:
    into = places(tmp_path)
    into.root.rmdir()
    with store.write() as session:
        world(session)
        receiver(session, "pager")
        pager = session.get_one(Receiver, "pager")
        pager.is_default = True
        session.add(pager)
        schedule(session, receivers=[], folder="weekly")
    for attempt in range(delivery.IN_VAIN - 1):
        go(store, NOW + attempt * MINUTE, into)
    assert judged(store, 5) is None
    go(store, NOW + 6 * MINUTE, into)
    found = judged(store, 7)
    assert found is not None
    assert (found[0], "board" in found[1], "folder weekly did not get 2026-W46: there is no folder" in found[1]) == (AlertState.FIRING, True, True)
    with store.read() as session:
        (told,) = session.exec(select(Delivery)).all()
        assert (told.receiver_id, told.type) == ("pager", "alert.firing")
    into.root.mkdir()
    go(store, NOW + 8 * MINUTE, into)
    found = judged(store, 30)
    assert found is not None
    assert found[0] is AlertState.RESOLVED


def test_a_receiver_that_was_deleted_refused_or_never_reached_is_told(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        for name in ("gone", "narrow", "mute", "dead", "well"):
            receiver(session, name)
        schedule(session, receivers=["gone", "narrow", "mute", "dead", "well"])
        session.get_one(Receiver, "gone").deleted_at = NOW
        session.get_one(Receiver, "narrow").workspaces = ["ws-west"]
        session.get_one(Receiver, "mute").is_enabled = False
    delivery.run(sqlite_store, NOW)
    with sqlite_store.write() as session:
        for sent in session.exec(select(Delivery)):
            sent.status, sent.last_error = (DeliveryStatus.FAILED, "answered 500") if sent.receiver_id == "dead" else (DeliveryStatus.DELIVERED, "")
            session.add(sent)
    with sqlite_store.read() as session:
        (found,) = delivery.unreached(session)
    assert sorted(found.faults) == [
        "receiver dead did not get 2026-W46: answered 500",
        "receiver gone did not get 2026-W46: it was deleted",
        "receiver mute did not get 2026-W46: it is disabled",
        "receiver narrow did not get 2026-W46: it may hear of ws-west only; limit the schedule's workspaces to them",
    ]


def test_a_report_that_cannot_be_made_is_told_and_costs_no_other_schedule_its_own(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        schedule(session, id="a", time_zone="Europe/Atlantis")
        schedule(session, id="b")
    delivery.run(sqlite_store, NOW)
    with sqlite_store.read() as session:
        first, second = delivery.unreached(session)
        assert (first.schedule.id, len(first.faults), second.faults) == ("a", 1, [])
        assert "there is no time zone named 'Europe/Atlantis'" in first.faults[0]
    with sqlite_store.write() as session:
        session.get_one(ReportSchedule, "a").time_zone = "UTC"
    delivery.run(sqlite_store, NOW + MINUTE)
    with sqlite_store.read() as session:
        assert [one.faults for one in delivery.unreached(session)] == [[], []]
