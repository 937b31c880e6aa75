"""Jobs under leases: each slot once among any number of processes, a dead one's slot again, a stalled one's word not at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from threading import Barrier

import pytest
from sqlmodel import select

from collector import jobs
from collector.azure import schedule
from collector.jobs import Job, run_slot
from collector.settings import Settings
from models import leases, sources
from models.errors import UpstreamError
from models.leases import JobLease
from models.sources import PullState
from models.store import Store

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)


def counting(name: str = "count", *, every: timedelta = HOUR) -> tuple[Job, list[datetime]]:
    runs: list[datetime] = []
    return Job(name, every, lambda _store, now: runs.append(now), timedelta(minutes=10)), runs


def test_a_slot_is_run_once_whoever_comes(store: Store) -> None:
    job, runs = counting()
    clock = [NOW]
    for minutes in (0, 1, 59, 60, 61, 180):
        clock[0] = NOW + timedelta(minutes=minutes)
        for holder in ("a", "b", "c"):
            run_slot(job, store, lambda: clock[0], holder=holder)
    assert runs == [NOW, NOW + HOUR, NOW + 3 * HOUR]


def test_processes_that_come_at_the_same_moment_share_the_slots(store: Store) -> None:
    job, runs = counting()
    together = Barrier(4)

    def process(holder: str) -> int:
        done = 0
        for hour in range(12):
            together.wait()
            done += run_slot(job, store, lambda hour=hour: NOW + hour * HOUR, holder=holder)  # type: ignore[misc]
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(process, "abcd")) == 12
    assert sorted(runs) == [NOW + hour * HOUR for hour in range(12)]


def test_a_dead_process_leaves_its_slot_and_a_stalled_one_has_no_word(store: Store) -> None:
    def take(holder: str, at: datetime) -> int | None:
        with store.write() as session:
            return leases.take(session, "j", every=HOUR, holder=holder, now=at, lasts=timedelta(minutes=10))

    assert take("a", NOW) == 1
    assert take("b", NOW + timedelta(minutes=9)) is None
    assert take("b", NOW + timedelta(minutes=10)) == 2
    with store.write() as session:
        assert not leases.finish(session, "j", 1, now=NOW + timedelta(minutes=11), error="late")
        assert leases.finish(session, "j", 2, now=NOW + timedelta(minutes=12))
    assert take("a", NOW + timedelta(minutes=30)) is None
    # One that runs past its slot is waited for, up to the end of its lease.
    assert take("a", NOW + timedelta(minutes=59)) is None
    assert take("a", NOW + HOUR) == 3
    with store.read() as session:
        row = session.get_one(JobLease, "j")
        assert (row.holder, row.finished_at, row.error) == ("a", None, "")


def test_what_went_wrong_is_kept_and_the_next_slot_runs(store: Store) -> None:
    def fails(_store: Store, _now: datetime) -> None:
        raise UpstreamError("Azure is away", retryable=True)

    def breaks(_store: Store, _now: datetime) -> None:
        raise ZeroDivisionError

    assert run_slot(Job("f", HOUR, fails), store, lambda: NOW, holder="a")
    assert run_slot(Job("b", HOUR, breaks), store, lambda: NOW, holder="a")
    with store.read() as session:
        assert [(row.name, row.error) for row in (session.get_one(JobLease, "b"), session.get_one(JobLease, "f"))] == [
            ("b", "ZeroDivisionError; see the log"),
            ("f", "Azure is away"),
        ]
    job, runs = counting("f")
    assert run_slot(job, store, lambda: NOW + HOUR, holder="a")
    assert len(runs) == 1


def test_on_sqlite_what_runs_every_few_seconds_writes_no_lease(sqlite_store: Store) -> None:
    job, runs = counting(every=timedelta(seconds=5))
    for _ in range(3):
        assert run_slot(job, sqlite_store, lambda: NOW, holder="a")
    with sqlite_store.read() as session:
        assert (len(runs), session.get(JobLease, "count")) == (3, None)


def test_every_job_has_a_name_of_its_own_and_pulls_need_settings(store: Store) -> None:
    pulls = schedule.jobs(Settings.from_environment({"METERBRIDGE_AZURE_SUBSCRIPTIONS": "s1"}))
    assert [job.name for job in pulls] == [
        "azure_inventory",
        "azure_quotas",
        "azure_prices",
        "azure_metrics",
        "azure_costs:subscriptions/s1",
        "azure_settled_months:subscriptions/s1",
    ]
    assert schedule.jobs(Settings()) == []
    scheduler = jobs.create_scheduler(store, now=lambda: NOW, more=pulls)
    names = [job.id for job in scheduler.get_jobs()]
    assert len(names) == len(set(names)) >= 9
    # The library's own default of one second would skip a run after any stall.
    assert scheduler._job_defaults == {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}


def test_a_throttled_pull_is_taken_up_when_azure_allows_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.write() as session:
        run = sources.begin(session, "costs", "subscriptions/s1", now=NOW)
        sources.finish(session, run.id or 0, PullState.RESCHEDULED, now=NOW, next_at=NOW + HOUR)
    asked: list[str] = []
    monkeypatch.setattr(schedule, "_pull", lambda *said, **_more: asked.append(said[2]))
    (pull,) = [job for job in schedule.jobs(Settings.from_environment({"METERBRIDGE_AZURE_SUBSCRIPTIONS": "s1"})) if job.name.startswith("azure_costs")]
    assert run_slot(pull, store, lambda: NOW + HOUR / 2, holder="a")
    with store.read() as session:
        lease = session.get_one(JobLease, pull.name)
        assert (lease.finished_at, lease.next_at, lease.error) == (None, NOW + HOUR, "Azure asked to be left alone until 11:00 UTC")
    assert not run_slot(pull, store, lambda: NOW + HOUR - timedelta(seconds=1), holder="b")
    assert asked == []
    # Its slot is not lost: it runs as soon as it may, not twelve hours later, and then once.
    assert run_slot(pull, store, lambda: NOW + HOUR, holder="b")
    assert not run_slot(pull, store, lambda: NOW + 1.5 * HOUR, holder="a")
    assert asked == ["costs"]


def test_slots_begin_at_their_offset(store: Store) -> None:
    runs: list[datetime] = []
    job = Job("aside", HOUR, lambda _store, now: runs.append(now), timedelta(minutes=10), timedelta(minutes=20))
    for minutes in (0, 19, 20, 40, 79, 80):
        run_slot(job, store, lambda minutes=minutes: NOW + timedelta(minutes=minutes), holder="a")  # type: ignore[misc]
    assert runs == [NOW, NOW + timedelta(minutes=20), NOW + timedelta(minutes=80)]
    with store.read() as session:
        assert session.get_one(JobLease, "aside").next_at == NOW + timedelta(minutes=140)


@pytest.mark.parametrize(
    ("day", "units"),
    [
        (date(2026, 11, 3), 20 * 2 * 2),  # two months twice: October has not settled
        (date(2026, 11, 20), 20 * 2),  # the running month twice
    ],
)
def test_a_day_of_twenty_scopes_stays_within_the_tenants_budget(day: date, units: int) -> None:
    scopes = [f"subscriptions/{number}" for number in range(20)]
    plan = schedule.day_plan(scopes, day)
    running = [one for one in plan if one.month is not None]
    assert len(running) == units
    # Settled months: twenty scopes once in seven days.
    assert len(plan) - units in (2, 3)
    for window, most in ((timedelta(seconds=10), 12), (timedelta(minutes=1), 60), (HOUR, 600)):
        assert max(sum(one.at <= other.at < one.at + window for other in plan) for one in plan) <= most
    # And with room: never more than the months of one scope at once.
    assert max(sum(other.at == one.at for other in plan) for one in plan) <= 2


def test_a_week_of_the_plan_looks_at_a_settled_month_of_every_scope_once() -> None:
    scopes = [f"subscriptions/{number}" for number in range(20)]
    days = [date(2026, 11, 16) + timedelta(days=number) for number in range(7)]
    settled = [one.scope for day in days for one in schedule.day_plan(scopes, day) if one.month is None]
    assert sorted(settled) == sorted(scopes)


_PROCESS = """
import sys
from datetime import UTC, datetime, timedelta
from collector.jobs import Job, run_slot
from models.store import Store

url, holder, mode = sys.argv[1:]
now = datetime(2026, 11, 20, 10, tzinfo=UTC)
store = Store(url)

def run(_store, _now):
    print("began", flush=True)
    if mode == "hang":
        sys.stdin.read()

print(run_slot(Job("j", timedelta(hours=1), run, timedelta(minutes=10)), store, lambda: now, holder=holder), flush=True)
"""


@pytest.mark.walk
def test_a_killed_process_leaves_its_slot_to_another(store: Store) -> None:
    url = store.url.render_as_string(hide_password=False)
    run = [sys.executable, "-c", _PROCESS, url]
    dying = subprocess.Popen([*run, "a", "hang"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert dying.stdout is not None
        assert dying.stdout.readline() == "began\n"
        # Another process finds the slot taken.
        other = subprocess.run([*run, "b", "run"], capture_output=True, text=True, check=True)
        assert other.stdout == "False\n"
    finally:
        dying.kill()
        dying.communicate()
    job, runs = counting("j")
    assert not run_slot(job, store, lambda: NOW + timedelta(minutes=9), holder="c")
    assert run_slot(job, store, lambda: NOW + timedelta(minutes=10), holder="c")
    assert runs == [NOW + timedelta(minutes=10)]
    with store.read() as session:
        lease = session.get_one(JobLease, "j")
        assert (lease.holder, lease.fence, lease.finished_at) == ("c", 2, NOW + timedelta(minutes=10))


def test_a_process_that_starts_again_ends_what_its_predecessor_held(store: Store) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    holders = {"a": f"{host}/{gone.pid}", "b": f"{host}/{os.getppid()}", "c": "elsewhere/1", "d": f"{host}/{gone.pid}"}
    with store.write() as session:
        for name, holder in holders.items():
            fence = leases.take(session, name, every=HOUR, holder=holder, now=NOW, lasts=2 * HOUR)
            if name == "d":
                leases.put_off(session, name, fence or 0, until=NOW + HOUR / 2, error="Azure asked to be left alone")
    jobs.create_scheduler(store, now=lambda: NOW + timedelta(minutes=1))
    with store.read() as session:
        ends = {lease.name: lease.expires_at for lease in session.exec(select(JobLease))}
    # Not the one that lives, not one of another machine, and nothing that waits for its time.
    assert ends == {"a": NOW + timedelta(minutes=1), "b": NOW + 2 * HOUR, "c": NOW + 2 * HOUR, "d": NOW + HOUR / 2}
