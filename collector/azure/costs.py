"""Bills from Azure: one scope's month is pulled whole and then replaces what stood, or nothing changes.

The cost details report is ordered, asked for until it is ready, fetched to files and validated before anything is
landed. Its place is written down as soon as it is ordered: a run that was killed, throttled or cut off is taken up there
by the next one. Subscriptions that have no such report (pay-as-you-go) are read through the query API, day by day.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import col

from collector import billing
from collector.azure.client import Azure, Expired, Refusal, Rescheduled
from models import money, sources
from models.charges import BillPart
from models.errors import DomainError, UpstreamError
from models.periods import DAY, day_start, month_start, next_month, settles_at, utc_day
from models.sources import PullState
from models.store import Store

SOURCE = "costs"
AUTHOR = "azure"
# azure-mgmt-costmanagement 5.0 speaks this version; the shapes read here are of it.
API_VERSION = "2025-03-01"
# A report that was ordered is kept for half a day; one that old is ordered anew.
_OPERATION_LIVES = timedelta(hours=6)
_LONGEST_REPORT = timedelta(minutes=40)
_SHORTEST_POLL, _LONGEST_POLL = 1.0, 30.0
_MOST_ORDERS = 3
_MOST_LINKS = 4
# Azure keeps thirteen months of details.
MOST_MONTHS_BACK = 13

Say = Callable[[str], None]
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull of one scope's month did; ``rows`` None where there is no data for it."""

    scope: str
    month: date
    rows: int | None
    message: str


def months_due(store: Store, scope: str, *, now: datetime) -> list[date]:
    """The months to pull without being told: the open one, and the one before until a pull after it settled has landed."""
    this = month_start(utc_day(now))
    before = month_start(this - DAY)
    with store.read() as session:
        last = sources.last_success(session, SOURCE, scope, month=before)
        is_settled = last is not None and last.started_at >= settles_at(before)
    return [this] if is_settled else [before, this]


def pull(store: Store, azure: Azure, scope: str, month: date, *, now: Callable[[], datetime], say: Say, progress: Progress) -> Pulled:
    """Pull a month of a scope and land it. A fault is written down with its reason and raised; then nothing has changed."""
    begun = now()
    calls, throttles = azure.tally.calls, azure.tally.throttles
    with store.write() as session:
        operation = sources.unfinished_operation(session, SOURCE, scope, month, since=begun - _OPERATION_LIVES)
        run = sources.begin(session, SOURCE, scope, month=month, now=begun).id or 0
        if operation:
            sources.remember_operation(session, run, operation)

    def ended(state: PullState, message: str, **more: Any) -> None:
        with store.write() as session:
            sources.finish(
                session, run, state, now=now(), message=message, calls=azure.tally.calls - calls, throttles=azure.tally.throttles - throttles, **more
            )

    try:
        landing = _Pull(store, azure, scope, month, run, now=now, say=say, progress=progress).landed(operation)
    except Rescheduled as fault:
        ended(PullState.RESCHEDULED, fault.message, next_at=fault.until)
        raise
    except DomainError as fault:
        ended(PullState.FAILED, fault.message)
        raise
    except OSError as fault:
        ended(PullState.FAILED, f"the report could not be kept on disk: {fault.strerror or fault}")
        raise
    if landing is None:
        message = f"{scope} has no charges in {month:%Y-%m}"
        ended(PullState.DONE, message, rows=0)
        return Pulled(scope, month, None, message)
    reaches = [date.fromisoformat(day) for part in landing.parts for day in part.reaches.values()]
    message = landing.summary().splitlines()[0] if landing.unchanged else "\n".join(landing.summary().splitlines())
    ended(PullState.DONE, message.replace("\n", ";"), rows=landing.rows, data_until=day_start(max(reaches) + DAY) if reaches else None)
    return Pulled(scope, month, landing.rows, message)


class _Pull:
    """One pull under way."""

    def __init__(self, store: Store, azure: Azure, scope: str, month: date, run: int, *, now: Callable[[], datetime], say: Say, progress: Progress) -> None:
        self._store, self._azure, self._scope, self._month, self._run = store, azure, scope, month, run
        self._now, self._say, self._progress = now, say, progress

    def landed(self, operation: str) -> billing.Landing | None:
        """The landing; None where there is nothing to land."""
        with tempfile.TemporaryDirectory(prefix="meterbridge-pull-") as folder:
            try:
                paths = self._by_report(operation, Path(folder))
            except Refusal as refused:
                if refused.status not in (400, 422):
                    raise
                self._say(f"{self._scope}: cost details are refused ({refused.code}); reading the query API, which knows neither tags nor units")
                paths = self._by_query(Path(folder))
            if not paths:
                return None
            bill = billing.together([billing.read_bill(path, name=path.name) for path in paths])
            return billing.land(self._store, bill, now=self._now, author=AUTHOR, replace=True, progress=self._progress)

    # -- the report -----------------------------------------------------------------------------

    def _by_report(self, operation: str, folder: Path) -> list[Path]:
        for ordered in range(_MOST_ORDERS):
            if not operation:
                operation = self._ordered() or ""
                if not operation:
                    return []
            report = self._asked(operation)
            status = str((report or {}).get("status") or "lost")
            if status == "NoDataFound":
                return []
            if status == "Completed" and report is not None:
                return self._fetched(operation, report, folder)
            said = (report or {}).get("error") or {}
            reason = f"{said.get('code', status)}: {said.get('message', 'no reason given')}"
            self._remember("")
            operation = ""
            if ordered == _MOST_ORDERS - 1:
                raise UpstreamError(f"Cost Management could not make the report of {self._scope} for {self._month:%Y-%m}: {reason}", retryable=True)
        raise AssertionError("the loop ends by itself")

    def _ordered(self) -> str | None:
        """Order the report; its place, or None where there is nothing to report."""
        last = min(next_month(self._month) - DAY, max(utc_day(self._now()), self._month))
        body = {"metric": "ActualCost", "timePeriod": {"start": self._month.isoformat(), "end": last.isoformat()}}
        operation, seconds = self._azure.begin_report(self._scope, body, api_version=API_VERSION)
        if operation is not None:
            self._remember(operation)
            self._azure.wait(min(seconds, _LONGEST_POLL))
        return operation

    def _asked(self, operation: str) -> dict[str, Any] | None:
        """Ask until the report is ready; None where Azure knows it no more."""
        waited, pause = 0.0, _SHORTEST_POLL
        while waited < _LONGEST_REPORT.total_seconds():
            try:
                report, seconds = self._azure.report(operation)
            except DomainError as fault:
                if fault.error == "not_found":
                    return None
                raise
            if report is not None:
                return report
            # What Azure says; where it says next to nothing, longer each time, as every question counts.
            step = seconds if 0 < seconds < _SHORTEST_POLL else max(seconds, pause)
            pause = min(pause * 1.5, _LONGEST_POLL)
            waited += max(step, _SHORTEST_POLL)
            self._azure.wait(step)
        raise UpstreamError(
            f"the report of {self._scope} for {self._month:%Y-%m} was not ready after {_LONGEST_REPORT.seconds // 60} minutes; the next run asks for it again",
            retryable=True,
        )

    def _fetched(self, operation: str, report: Mapping[str, Any], folder: Path) -> list[Path]:
        """Every blob of the report; a link that has expired is asked for anew."""
        for tried in range(_MOST_LINKS):
            manifest = report.get("manifest") or {}
            blobs = manifest.get("blobs") or []
            if len(blobs) != int(manifest.get("blobCount", len(blobs))):
                raise UpstreamError(f"the report names {len(blobs)} blobs and counts {manifest.get('blobCount')}; nothing of it was taken", retryable=True)
            try:
                return [self._blob(blob, number, len(blobs), folder) for number, blob in enumerate(blobs)]
            except Expired:
                if tried == _MOST_LINKS - 1:
                    raise
                fresh = self._asked(operation)
                if fresh is None or fresh.get("status") != "Completed":
                    raise
                report = fresh
        raise AssertionError("the loop ends by itself")

    def _blob(self, blob: Mapping[str, Any], number: int, of: int, folder: Path) -> Path:
        path = folder / f"{self._scope.rpartition('/')[2]}-{self._month:%Y-%m}-part_{number}_0001.csv"
        size = blob.get("byteCount")
        self._azure.download(str(blob["blobLink"]), path, size=None if size is None else int(size), progress=self._progress if of == 1 else None)
        return path

    def _remember(self, operation: str) -> None:
        with self._store.write() as session:
            sources.remember_operation(session, self._run, operation)

    # -- the query API --------------------------------------------------------------------------

    def _by_query(self, folder: Path) -> list[Path]:
        """The month by day, resource and meter, as a file in FOCUS's columns."""
        last = min(next_month(self._month) - DAY, utc_day(self._now()))
        definition = {
            "type": "ActualCost",
            "timeframe": "Custom",
            "timePeriod": {"from": f"{self._month}T00:00:00+00:00", "to": f"{last}T23:59:59+00:00"},
            "dataset": {
                "granularity": "Daily",
                "aggregation": {"totalCost": {"name": "Cost", "function": "Sum"}},
                "grouping": [{"type": "Dimension", "name": "ResourceId"}, {"type": "Dimension", "name": "Meter"}],
            },
        }
        columns, rows = self._azure.query(self._scope, definition, api_version=API_VERSION)
        if not rows:
            return []
        path = folder / f"{self._scope.rpartition('/')[2]}-{self._month:%Y-%m}-query.csv"
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(_FOCUS)
            writer.writerows(self._focus_row(dict(zip(columns, row, strict=True))) for row in rows)
        return [path]

    def _focus_row(self, row: Mapping[str, Any]) -> Sequence[str]:
        day = datetime.strptime(str(row["UsageDate"]), "%Y%m%d").replace(tzinfo=UTC)
        cost = money.text(Decimal(str(row.get("Cost", row.get("PreTaxCost", 0)))))
        resource = str(row.get("ResourceId") or "")
        parts = resource.casefold().split("/")
        subscription = parts[2] if len(parts) > 2 and parts[1] == "subscriptions" else self._scope.rpartition("/")[2]
        said = {
            "BilledCost": cost,
            "EffectiveCost": cost,
            "BillingCurrency": str(row["Currency"]),
            "BillingPeriodStart": f"{self._month}T00:00:00Z",
            "BillingPeriodEnd": f"{next_month(self._month)}T00:00:00Z",
            "ChargePeriodStart": f"{day:%Y-%m-%d}T00:00:00Z",
            "ChargePeriodEnd": f"{day + DAY:%Y-%m-%d}T00:00:00Z",
            "ChargeCategory": "Usage",
            "ResourceId": resource,
            "SubAccountId": f"/subscriptions/{subscription}",
            "x_SkuMeterName": str(row.get("Meter") or ""),
            "x_SkuMeterCategory": _category(resource),
            "PublisherName": "",
        }
        return [said.get(name, "") for name in _FOCUS]


_FOCUS = (
    "BilledCost",
    "EffectiveCost",
    "BillingCurrency",
    "BillingPeriodStart",
    "BillingPeriodEnd",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ChargeCategory",
    "ConsumedQuantity",
    "ConsumedUnit",
    "PricingQuantity",
    "PricingUnit",
    "ResourceId",
    "SubAccountId",
    "PublisherName",
    "x_SkuMeterName",
    "x_SkuMeterCategory",
)


def _category(resource: str) -> str:
    """The meter category that a resource's kind implies: the query groups by two things, and these are the resource and the meter."""
    key = resource.casefold()
    if "/microsoft.saas/" in key:
        return "SaaS"
    if "/microsoft.cognitiveservices/" in key:
        return "Foundry Models"
    return "Virtual Machines" if "/microsoft.machinelearningservices/" in key else ""


def watched_months(store: Store, *, now: datetime) -> list[date]:
    """The settled months that have a bill, newest first: they are looked at now and then, as Azure may still change its mind."""
    row = BillPart
    with store.read() as session:
        found: list[date] = list(session.scalars(sa.select(col(row.period_start)).where(col(row.landed_at).is_not(None)).distinct()))
    oldest = month_start(utc_day(now) - timedelta(days=30 * MOST_MONTHS_BACK))
    return sorted((month for month in found if settles_at(month) <= now and month >= oldest), reverse=True)
