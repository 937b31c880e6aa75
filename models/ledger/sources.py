"""Where facts come from and whether they still come: senders of usage, bills, pulls from Azure, jobs; each with its last word."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import Session, col, select

from models import sources as pulls
from models.leases import JobLease, pull_job
from models.ledger.insight import data_age
from models.ledger.lags import lags
from models.periods import DAY, day_start
from models.sources import PullState


@dataclass(frozen=True, slots=True)
class Due:
    """A source that is expected to bring something: since when it is late (None: it is not), and what it last brought."""

    name: str
    late_since: datetime | None
    said: str
    last: datetime | None


# A source that has not been asked for this long is given up, not late.
_GIVEN_UP = timedelta(days=30)


def due(session: Session, *, now: datetime) -> list[Due]:
    """Which pulls and bills are late, of all that are expected.

    A pull on the schedule is late once its next run should have brought something; one that was asked for by hand only where it
    failed and nobody asked again. A bill is late by the lag that its route, or one of its meters, usually has (``models.ledger.lags``). Exports are
    read by the pull of costs, and late with it.
    """
    found: list[Due] = []
    scheduled = set(session.exec(select(JobLease.name)))
    for (source, scope), run in _last_pulls(session).items():
        if run.started_at < now - _GIVEN_UP:
            continue
        success = run if run.state == PullState.DONE else pulls.last_success(session, source, scope)
        last = None if success is None else success.finished_at
        every = {str(name): interval for name, interval in pulls.PULLED_EVERY.items()}.get(source)
        if every is not None and pull_job(source, scope) in scheduled:
            # Of a run that is put off until a known time Azure has asked for patience; the data grow old all the same.
            expected = (last if last is not None else run.started_at) + every
        else:
            expected = now if run.state in (PullState.DONE, PullState.RUNNING) else run.started_at
        name = f"{source} · {scope}" if scope else source
        said = f"its last run {run.state.value}" + (f": {run.message[:200]}" if run.message and run.state != PullState.DONE else "")
        found.append(Due(name, expected if expected < now else None, said, last))
    late_routes = set[tuple[str, str]]()
    for lag in lags(session, now=now):
        route = (lag.subscription, lag.route)
        if lag.meter is None and lag.overdue_since is not None:
            late_routes.add(route)
        # A meter is late by itself only while the rest of its bill comes.
        expected_at = None if lag.meter is not None and route in late_routes else lag.overdue_since
        said = f"the bill reaches {lag.reaches:%Y-%m-%d}"
        found.append(
            Due(" · ".join(["bill", lag.route, lag.subscription, *([lag.meter] if lag.meter else [])]), expected_at, said, day_start(lag.reaches + DAY))
        )
    return sorted(found, key=lambda one: one.name)


def _last_pulls(session: Session) -> dict[tuple[str, str], pulls.SourcePull]:
    """The last run of each source and scope, whatever month it was of."""
    last: dict[tuple[str, str], pulls.SourcePull] = {}
    for run in pulls.last_runs(session):
        key = (run.source, run.scope)
        if key not in last or (run.started_at, run.id or 0) > (last[key].started_at, last[key].id or 0):
            last[key] = run
    return last


@dataclass(frozen=True, slots=True)
class Source:
    """One source. ``kind`` is usage, bill, azure or job; times are None where they do not apply or nothing has happened yet."""

    kind: str
    name: str
    state: str  # ok | running | failed | rescheduled | interrupted
    last_success: datetime | None = None
    last_attempt: datetime | None = None
    data_until: datetime | None = None
    rows: int | None = None
    calls: int | None = None
    throttles: int | None = None
    next_run: datetime | None = None
    message: str = ""


# A run that is still marked as running after this was cut off.
_LONGEST_RUN = timedelta(hours=3)


def sources(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[Source]:
    """Every source in order of kind and name; a caller of some workspaces sees the senders and bills of theirs."""
    found = [
        Source(age.kind, age.name, "ok", last_success=age.arrived_at, last_attempt=age.arrived_at, data_until=age.reaches)
        for age in data_age(session, visible=visible, now=now).sources
    ]
    if visible is None:
        found += _pulled(session, now)
        found += _jobs(session, now)
    order = {"azure": 0, "bill": 1, "usage": 2, "job": 3}
    return sorted(found, key=lambda one: (order.get(one.kind, 9), one.name))


def _pulled(session: Session, now: datetime) -> list[Source]:
    """The last run of each source and scope, and how far its data reach, whatever month that run was of: settled months are looked at now and then."""
    last = _last_pulls(session)
    reached = pulls.reached(session)
    leases = {lease.name: lease for lease in session.exec(select(JobLease))}
    found: list[Source] = []
    for (source, scope), run in last.items():
        success = run if run.state == PullState.DONE else pulls.last_success(session, source, scope)
        state = "ok" if run.state == PullState.DONE else run.state.value
        if run.state == PullState.RUNNING and run.started_at < now - _LONGEST_RUN:
            state = "interrupted"
        # A bill that does not begin with a month is one of pay-as-you-go.
        month = "" if run.month is None else f" {run.month:%Y-%m}" if run.month.day == 1 else f" from {run.month}"
        found.append(
            Source(
                "azure",
                f"{source} · {scope}{month}" if scope else source,
                state,
                last_success=None if success is None else success.finished_at,
                last_attempt=run.started_at,
                data_until=reached.get((source, scope)),
                rows=run.rows,
                calls=run.calls,
                throttles=run.throttles,
                next_run=_next_run(run, leases),
                message=run.message,
            )
        )
    return found


def _next_run(run: pulls.SourcePull, leases: dict[str, JobLease]) -> datetime | None:
    """When Azure is asked next: as it said itself, else as the schedule has it."""
    if run.next_at is not None:
        return run.next_at
    lease = leases.get(pull_job(run.source, run.scope))
    return None if lease is None else lease.next_at


def _state(row: JobLease, now: datetime) -> str:
    if row.finished_at is not None:
        return "failed" if row.error else "ok"
    if row.error:
        return "rescheduled"
    return "running" if row.expires_at > now else "interrupted"


def _jobs(session: Session, now: datetime) -> list[Source]:
    found: list[Source] = []
    for row in session.exec(select(JobLease).order_by(col(JobLease.name))):
        state = _state(row, now)
        found.append(
            Source(
                "job",
                row.name,
                state,
                last_success=row.finished_at if state == "ok" else None,
                last_attempt=row.started_at,
                next_run=row.next_at,
                message=row.error,
            )
        )
    return found
