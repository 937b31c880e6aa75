"""Bills from Azure: one scope's month is pulled whole and then replaces what stood, or nothing changes.

The cost details report is ordered, asked for until it is ready, fetched to files and validated before anything is
landed. Its place is written down as soon as it is ordered: a run that was killed, throttled or cut off is taken up there
by the next one. Where commitments are in it, amortized cost is a second report. Subscriptions that have no such report
(pay-as-you-go) are read from the newest complete run of an export, else through the query API, day by day.
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlmodel import col, select

from collector import billing
from collector.azure.client import Azure, Expired, Queried, Refusal, Rescheduled
from models import money, sources
from models.charges import BillPart
from models.errors import DomainError, Forbidden, InvalidInput, NotFound, UpstreamError
from models.periods import DAY, BillingPeriod, day_start, month_start, next_month, same_day_next_month, settles_at, utc_day
from models.sources import PullState
from models.store import Store

SOURCE = "costs"
AUTHOR = "azure"
_SUBSCRIPTION_VERSION = "2022-12-01"
# The only one that has them; it knows subscriptions bought at the portal and no others (Microsoft, Billing Periods, read 2026-11).
_BILLS_VERSION = "2018-03-01-preview"
# Starts of subscriptionPolicies.quotaId; those of agreements are billed by the calendar.
_AT_THE_PORTAL = ("payasyougo", "msdn", "freetrial", "monetarycredit", "mpn", "sponsored")
_A_SUBSCRIPTION = re.compile(r"subscriptions/[^/]+", re.IGNORECASE)
# azure-mgmt-costmanagement 5.0 speaks this version; the shapes read here are of it.
API_VERSION = "2025-03-01"
# A report that was ordered is kept for half a day; one that old is ordered anew.
_OPERATION_LIVES = timedelta(hours=6)
_LONGEST_REPORT = timedelta(minutes=40)
_SHORTEST_POLL, _LONGEST_POLL = 1.0, 30.0
_MOST_ORDERS = 3
_MOST_LINKS = 4
_MOST_RUNS = 3
_MOST_READS = 3
_HOUR = timedelta(hours=1)
# A tenant has 600 units of the query API in an hour (manage-automation in the Cost Management documentation), ten times
# what a run may ask; every call is taken for one.
_RUNS_AN_HOUR = 10
_UNSUPPORTED = (400, 422)
# Kinds of exports, best first: FOCUS tells actual and amortized cost in one.
_EXPORTS = ("focuscost", "actualcost", "usage")
_OF_QUERY = "-query.csv"
# Azure keeps thirteen months of details.
MOST_MONTHS_BACK = 13

Say = Callable[[str], None]
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull of one scope's bill did; ``rows`` None where there is no data for it."""

    scope: str
    billed: BillingPeriod
    rows: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Bills:
    """How a scope's days are cut into bills: by the calendar, or by the bills that Azure names (``told``, in order of time)."""

    told: tuple[BillingPeriod, ...] = ()

    def of(self, day: date) -> BillingPeriod:
        """The bill that a day is on; before and after what Azure named, bills go on month by month."""
        if not self.told:
            return BillingPeriod.of_month(day)
        found = next((one for one in self.told if one.start <= day < one.end), None)
        if found is not None:
            return found
        if day < self.told[0].start:
            end = self.told[0].start
            while day < (start := _same_day_last_month(end)):
                end = start
            return BillingPeriod(start, end)
        start = self.told[-1].end
        while day >= (end := same_day_next_month(start)):
            start = end
        return BillingPeriod(start, end)

    def touching(self, month: date, *, until: date) -> list[BillingPeriod]:
        """The bills that hold days of a month, as far as they have begun."""
        found = [self.of(month)]
        while found[-1].end < next_month(month) and found[-1].end <= until:
            found.append(self.of(found[-1].end))
        return found


def _same_day_last_month(day: date) -> date:
    last = month_start(day) - DAY
    return last.replace(day=min(day.day, last.day))


def bills_of(store: Store, azure: Azure, scope: str, *, now: Callable[[], datetime], month: date | None = None) -> Bills:
    """The bills of a scope. A subscription bought at the portal (pay-as-you-go) is billed from the day on which it began, all others by the calendar.

    ``month`` is the one that is asked for, if it is one: a failure is told of that.
    """
    if not _A_SUBSCRIPTION.fullmatch(scope):
        return Bills()
    try:
        return _bills_named(store, azure, scope)
    except DomainError as fault:
        state, until = (PullState.RESCHEDULED, fault.until) if isinstance(fault, Rescheduled) else (PullState.FAILED, None)
        with store.write() as session:
            run = sources.begin(session, SOURCE, scope, month=month, now=now()).id or 0
            sources.finish(session, run, state, now=now(), message=fault.message, next_at=until)
        raise


def _bills_named(store: Store, azure: Azure, scope: str) -> Bills:
    try:
        policies = azure.arm_get(f"/{scope}", api_version=_SUBSCRIPTION_VERSION).get("subscriptionPolicies") or {}
    except (NotFound, Forbidden):
        return Bills()  # the pull itself says what is not allowed
    if not str(policies.get("quotaId") or "").casefold().startswith(_AT_THE_PORTAL):
        return Bills()
    try:
        listed = azure.arm_list(f"/{scope}/providers/Microsoft.Billing/billingPeriods", api_version=_BILLS_VERSION)
    except (NotFound, Forbidden) as fault:
        if _has_bills_of_other_days(store, scope):
            # By the calendar they would count twice.
            raise Forbidden(
                f"{fault.message}; its bills are not of calendar months, and which days they are for must be read: assign the role Cost Management Reader on /{scope}"
            ) from fault
        return Bills()
    told = []
    for one in listed:
        said = one.get("properties") or {}
        try:
            told.append(BillingPeriod(_day(said["billingPeriodStartDate"]), _day(said["billingPeriodEndDate"]) + DAY))
        except (KeyError, ValueError, InvalidInput) as fault:
            raise UpstreamError(f"{scope}: Azure named a bill without its days: {one.get('name')}", retryable=True) from fault
    return Bills(tuple(sorted(told)))


def _day(said: object) -> date:
    return date.fromisoformat(str(said)[:10])


def _has_bills_of_other_days(store: Store, scope: str) -> bool:
    row = BillPart
    asked = sa.select(col(row.id)).where(col(row.subscription_id) == scope.rpartition("/")[2].casefold(), col(row.billed_from).is_not(None))
    with store.read() as session:
        return session.scalar(asked.limit(1)) is not None


def due(store: Store, scope: str, bills: Bills, *, now: datetime) -> list[BillingPeriod]:
    """The bills to pull without being told: the open one, and the one before until a pull after it settled has landed."""
    this = bills.of(utc_day(now))
    before = bills.of(this.start - DAY)
    with store.read() as session:
        last = sources.last_success(session, SOURCE, scope, month=before.start)
        is_settled = last is not None and last.started_at >= before.settles_at
    return [this] if is_settled else [before, this]


def pull(store: Store, azure: Azure, scope: str, billed: BillingPeriod, *, now: Callable[[], datetime], say: Say, progress: Progress) -> Pulled:
    """Pull a bill of a scope and land it. A fault is written down with its reason and raised; then nothing has changed."""
    begun = now()
    calls, throttles = azure.tally.calls, azure.tally.throttles
    with store.write() as session:
        operation = sources.unfinished_operation(session, SOURCE, scope, billed.start, since=begun - _OPERATION_LIVES)
        run = sources.begin(session, SOURCE, scope, month=billed.start, now=begun).id or 0
        if operation:
            sources.remember_operation(session, run, operation)

    def ended(state: PullState, message: str, **more: Any) -> None:
        with store.write() as session:
            sources.finish(
                session, run, state, now=now(), message=message, calls=azure.tally.calls - calls, throttles=azure.tally.throttles - throttles, **more
            )

    try:
        _refuse_beyond_budget(store, azure, now=begun)
        landing = _Pull(store, azure, scope, billed, run=run, operations=_operations(operation), now=now, say=say, progress=progress).landed()
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
        message = f"{scope} has no charges in {billed}"
        if billed.end <= (oldest := _oldest_month(begun)):
            message = (
                f"{scope}: Azure has no details of {billed} any more, which does not say that nothing was charged: they reach {MOST_MONTHS_BACK} months back, "
                f"to {oldest:%Y-%m}. Import that month's bill from a file you kept: meterbridge import charges FILE"
            )
        ended(PullState.DONE, message, rows=0)
        return Pulled(scope, billed, None, message)
    reaches = [date.fromisoformat(day) for part in landing.parts for day in part.reaches.values()]
    message = landing.summary().splitlines()[0] if landing.unchanged else "\n".join(landing.summary().splitlines())
    ended(PullState.DONE, message.replace("\n", ";"), rows=landing.rows, data_until=day_start(max(reaches) + DAY) if reaches else None)
    return Pulled(scope, billed, landing.rows, message)


def _refuse_beyond_budget(store: Store, azure: Azure, *, now: datetime) -> None:
    """The calls of all processes in the last hour count, as the budget is the tenant's and the runs are written down."""
    with store.read() as session:
        calls, first = sources.calls_since(session, SOURCE, now - _HOUR)
    if calls + azure.most_cost_calls > _RUNS_AN_HOUR * azure.most_cost_calls and first is not None:
        raise Rescheduled(first + _HOUR, seconds=(first + _HOUR - now).total_seconds())


def _operations(written: str) -> dict[str, str]:
    """Where each report is asked for, as ``_written`` keeps it: a metric and an address a line."""
    return {metric: address for metric, _, address in (line.partition(" ") for line in written.splitlines())}


def _written(operations: Mapping[str, str]) -> str:
    return "\n".join(f"{metric} {address}" for metric, address in operations.items() if address)


def _read(paths: Sequence[Path]) -> billing.BillFile:
    return billing.together([billing.read_bill(path, name=path.name) for path in paths])


def _ending(blob: str) -> str:
    """The end of a blob's name by which its parts are known: .csv, .csv.gz, .parquet."""
    name = blob.rpartition("/")[2].casefold()
    return next((end for end in (".csv.gz", ".snappy.parquet", ".parquet") if name.endswith(end)), ".csv")


class _Pull:
    """One pull under way."""

    def __init__(
        self,
        store: Store,
        azure: Azure,
        scope: str,
        billed: BillingPeriod,
        *,
        run: int,
        operations: dict[str, str],
        now: Callable[[], datetime],
        say: Say,
        progress: Progress,
    ) -> None:
        self._store, self._azure, self._scope, self._billed, self._run = store, azure, scope, billed, run
        self._now, self._say, self._progress = now, say, progress
        self._operations = operations
        self._name = f"{scope.rpartition('/')[2]}-{str(billed).replace(' ', '-')}"

    def landed(self) -> billing.Landing | None:
        """The landing; None where there is nothing to land."""
        with tempfile.TemporaryDirectory(prefix="meterbridge-pull-") as folder:
            bill = self._bill(Path(folder))
            if bill is None:
                return None
            return billing.land(self._store, bill, now=self._now, author=AUTHOR, replace=True, progress=self._progress)

    def _bill(self, folder: Path) -> billing.BillFile | None:
        """The month from the best source that has it: the report, else an export, else the query API."""
        why = "cost details have nothing"
        try:
            if (bill := self._by_report(folder)) is not None:
                return bill
        except Refusal as refused:
            if refused.status not in _UNSUPPORTED:
                raise
            why = f"cost details are refused ({refused.code})"
        if (bill := self._by_export(folder, why)) is not None:
            return bill
        return self._by_query(folder, why)

    # -- the report -----------------------------------------------------------------------------

    def _by_report(self, folder: Path) -> billing.BillFile | None:
        paths = self._report("ActualCost", folder)
        if not paths:
            return None
        actual = _read(paths)
        # Only commitments make a difference between the two, and each report counts against the tenant's calls.
        if not actual.has_commitments():
            return actual
        try:
            paths = self._report("AmortizedCost", folder)
        except Refusal as refused:
            if refused.status not in _UNSUPPORTED:
                raise
            is_told = False
        else:
            # A commitment that was bought and does not count for any day yet leaves the report without data; usage would be in both.
            is_told = bool(paths) or not any(row.billed_cost and row.about.charge_type.casefold() == "usage" for row in actual.rows())
        if not is_told:
            self._say(f"{self._scope}: no amortized cost is to be had for {self._billed}; it is taken to be the actual one")
            return actual
        return billing.amortized(actual, _read(paths) if paths else None)

    def _report(self, metric: str, folder: Path) -> list[Path]:
        """The files of a report; none where there is nothing to report."""
        operation = self._operations.get(metric, "")
        for ordered in range(_MOST_ORDERS):
            if not operation:
                operation = self._ordered(metric) or ""
                if not operation:
                    return []
            report = self._asked(operation)
            status = str((report or {}).get("status") or "lost")
            if status == "NoDataFound":
                return []
            if status == "Completed" and report is not None:
                return self._fetched(operation, report, folder, metric)
            said = (report or {}).get("error") or {}
            reason = f"{said.get('code', status)}: {said.get('message', 'no reason given')}"
            self._remember(metric, "")
            operation = ""
            if ordered == _MOST_ORDERS - 1:
                raise UpstreamError(f"Cost Management could not make the report of {self._scope} for {self._billed}: {reason}", retryable=True)
        raise AssertionError("the loop ends by itself")

    def _ordered(self, metric: str) -> str | None:
        """Order the report; its place, or None where there is nothing to report."""
        last = min(self._billed.end - DAY, max(utc_day(self._now()), self._billed.start))
        body = {"metric": metric, "timePeriod": {"start": self._billed.start.isoformat(), "end": last.isoformat()}}
        operation, seconds = self._azure.begin_report(self._scope, body, api_version=API_VERSION)
        if operation is not None:
            self._remember(metric, operation)
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
            f"the report of {self._scope} for {self._billed} was not ready after {_LONGEST_REPORT.seconds // 60} minutes; the next run asks for it again",
            retryable=True,
        )

    def _fetched(self, operation: str, report: Mapping[str, Any], folder: Path, metric: str) -> list[Path]:
        """Every blob of the report; a link that has expired is asked for anew."""
        for tried in range(_MOST_LINKS):
            manifest = report.get("manifest") or {}
            blobs = manifest.get("blobs") or []
            if len(blobs) != int(manifest.get("blobCount", len(blobs))):
                raise UpstreamError(f"the report names {len(blobs)} blobs and counts {manifest.get('blobCount')}; nothing of it was taken", retryable=True)
            try:
                return [self._blob(blob, number, len(blobs), folder, metric) for number, blob in enumerate(blobs)]
            except Expired:
                if tried == _MOST_LINKS - 1:
                    raise
                fresh = self._asked(operation)
                if fresh is None or fresh.get("status") != "Completed":
                    raise
                report = fresh
        raise AssertionError("the loop ends by itself")

    def _blob(self, blob: Mapping[str, Any], number: int, of: int, folder: Path, metric: str) -> Path:
        spread = "" if metric == "ActualCost" else "amortized-"
        path = folder / f"{self._name}-{spread}part_{number}_0001.csv"
        size = blob.get("byteCount")
        self._azure.download(str(blob["blobLink"]), path, size=None if size is None else int(size), progress=self._progress if of == 1 else None)
        return path

    def _remember(self, metric: str, operation: str) -> None:
        self._operations[metric] = operation
        with self._store.write() as session:
            sources.remember_operation(session, self._run, _written(self._operations))

    # -- exports --------------------------------------------------------------------------------

    def _by_export(self, folder: Path, why: str) -> billing.BillFile | None:
        """The newest complete run of an export that holds this month, FOCUS before the others; None where there is none."""
        found = self._exports()
        for export in found:
            destination = export["properties"]["deliveryInfo"]["destination"]
            name = str(export["name"])
            folders = [manifest for _, manifest in sorted(self._runs(name), reverse=True)]
            if not folders:
                continue
            self._say(f"{self._scope}: {why}; reading the export {name}")
            container = f"{self._azure.blob_endpoint(str(destination['resourceId']))}/{quote(str(destination['container']))}"
            for number, manifest in enumerate(folders[:_MOST_RUNS]):
                try:
                    return self._exported(container, manifest, folder / f"run_{number}")
                except Expired:
                    # Retention may have taken the newest already, or somebody tidied up.
                    if number == min(len(folders), _MOST_RUNS) - 1:
                        raise
        return None

    def _exports(self) -> list[dict[str, Any]]:
        ranked = {kind: rank for rank, kind in enumerate(_EXPORTS)}
        try:
            exports = self._azure.exports(self._scope, api_version=API_VERSION)
        except (Refusal, NotFound):
            return []
        told = [(ranked.get(str(((one.get("properties") or {}).get("definition") or {}).get("type")).casefold(), -1), one) for one in exports]
        return [one for _, one in sorted((each for each in told if each[0] >= 0), key=lambda each: (each[0], str(each[1].get("name"))))]

    def _runs(self, name: str) -> Iterator[tuple[str, str]]:
        """(when, manifest) of the complete runs of this month; the folder names the days that a run is for."""
        for run in self._azure.export_runs(self._scope, name, api_version=API_VERSION):
            said = run.get("properties") or {}
            manifest = str(said.get("manifestFile") or "")
            if said.get("status") == "Completed" and f"/{self._billed.start:%Y%m%d}-" in manifest:
                yield str(said.get("processingEndTime") or said.get("submittedTime") or ""), manifest

    def _exported(self, container: str, manifest: str, folder: Path) -> billing.BillFile:
        folder.mkdir()
        path = folder / "manifest.json"
        self._azure.download_stored(f"{container}/{quote(manifest)}", path)
        try:
            told = json.loads(path.read_bytes())
            starts = str(told["runInfo"]["startDate"])[:10]
            blobs = [(str(blob["blobName"]), int(blob["byteCount"]), int(blob["dataRowCount"])) for blob in told["blobs"]]
        except (ValueError, KeyError, TypeError) as fault:
            raise UpstreamError(f"the manifest {manifest} of the export is not one; nothing of it was taken", retryable=True) from fault
        if starts != self._billed.start.isoformat() or len(blobs) != int(told.get("blobCount", len(blobs))) or not blobs:
            raise UpstreamError(f"the manifest {manifest} names {len(blobs)} blobs from {starts}, which is not what it counts or was asked for", retryable=True)
        paths: list[Path] = []
        for number, (name, size, _) in enumerate(blobs):
            paths.append(folder / f"{self._name}-export-part_{number}_0001{_ending(name)}")
            self._azure.download_stored(f"{container}/{quote(name)}", paths[-1], size=size, progress=self._progress if len(blobs) == 1 else None)
        # A part of an export may be a header without rows.
        return _read([path for path, (_, _, rows) in zip(paths, blobs, strict=True) if rows])

    # -- the query API --------------------------------------------------------------------------

    def _by_query(self, folder: Path, why: str) -> billing.BillFile | None:
        """The month by day, resource and meter, as a file in FOCUS's columns."""
        self._refuse_to_know_less(why)
        last = min(self._billed.end - DAY, utc_day(self._now()))
        definition = {
            "type": "ActualCost",
            "timeframe": "Custom",
            "timePeriod": {"from": f"{self._billed.start}T00:00:00+00:00", "to": f"{last}T23:59:59+00:00"},
            "dataset": {
                "granularity": "Daily",
                "aggregation": {"totalCost": {"name": "Cost", "function": "Sum"}},
                "grouping": [{"type": "Dimension", "name": "ResourceId"}, {"type": "Dimension", "name": "Meter"}],
            },
        }
        told = self._queried(definition)
        if not told.rows:
            return None
        self._say(f"{self._scope}: {why}, and there is no export; reading the query API, which knows neither tags nor units")
        path = folder / f"{self._name}{_OF_QUERY}"
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(_FOCUS)
            writer.writerows(self._focus_row(dict(zip(told.columns, row, strict=True))) for row in told.rows)
        return _read([path])

    def _queried(self, definition: Mapping[str, Any]) -> Queried:
        """Its rows, of one moment: pages of an answer that changed in between repeat rows and leave others out."""
        why = ""
        for _ in range(_MOST_READS):
            told = self._azure.query(self._scope, definition, api_version=API_VERSION)
            why = "rows came twice" if _repeats(told) else self._torn(told, definition)
            if not why:
                return told
        raise UpstreamError(
            f"{self._scope}: the bill of {self._billed} changed while its pages were read, {_MOST_READS} times ({why}); nothing of it was taken",
            retryable=True,
        )

    def _torn(self, told: Queried, definition: Mapping[str, Any]) -> str:
        """What is wrong with rows of several pages: they must add up to the total that Azure tells in one."""
        if told.pages == 1:
            return ""
        whole = {"granularity": "None", "aggregation": definition["dataset"]["aggregation"]}
        total = self._azure.query(self._scope, {**definition, "dataset": whole}, api_version=API_VERSION)
        pages, one = _by_currency(told), _by_currency(total)
        return "" if pages == one else f"the pages add up to {_shown(pages)}, the total is {_shown(one)}"

    def _refuse_to_know_less(self, why: str) -> None:
        """What a report or an export told is not replaced by an answer that says less."""
        row = BillPart
        asked = select(row).where(
            col(row.subscription_id) == self._scope.rpartition("/")[2].casefold(), col(row.landed_at).is_not(None), col(row.superseded_at).is_(None)
        )
        with self._store.read() as session:
            names = [part.file_name for part in session.exec(asked) if part.billed.overlaps(self._billed)]
        if any(not name.endswith(_OF_QUERY) for name in names):
            raise UpstreamError(
                f"{self._scope}: {why} for {self._billed}, which has a bill with tags and units ({names[0]}); it stays as it is", retryable=True
            )

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
            "BillingPeriodStart": f"{self._billed.start}T00:00:00Z",
            "BillingPeriodEnd": f"{self._billed.end}T00:00:00Z",
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


def _repeats(told: Queried) -> bool:
    """Whether a row came twice: what is asked for is grouped, so only its amount tells it from none other."""
    key = [place for place, name in enumerate(told.columns) if name not in _AMOUNTS]
    return len({tuple(row[place] for place in key) for row in told.rows}) < len(told.rows)


def _by_currency(told: Queried) -> dict[str, Decimal]:
    sums: dict[str, Decimal] = {}
    for row in told.rows:
        said = dict(zip(told.columns, row, strict=True))
        currency, cost = str(said["Currency"]), Decimal(str(said.get("Cost", said.get("PreTaxCost", 0))))
        sums[currency] = money.plus(sums.get(currency, money.ZERO), cost)
    return {currency: cost for currency, cost in sums.items() if cost}


def _shown(sums: Mapping[str, Decimal]) -> str:
    return ", ".join(f"{money.text(cost)} {currency}" for currency, cost in sorted(sums.items())) or "nothing"


_AMOUNTS = frozenset({"Cost", "PreTaxCost"})
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
    """The settled calendar months that have a bill, newest first: they are looked at now and then, as Azure may still change its mind."""
    row = BillPart
    with store.read() as session:
        found: list[date] = list(session.scalars(sa.select(col(row.period_start)).where(col(row.landed_at).is_not(None)).distinct()))
    return sorted((month for month in found if settles_at(month) <= now and month >= _oldest_month(now)), reverse=True)


def _oldest_month(now: datetime) -> date:
    """The first month of which Azure still has details: reports and exports reach no farther back."""
    this = utc_day(now)
    months = this.year * 12 + this.month - 1 - MOST_MONTHS_BACK
    return date(months // 12, months % 12 + 1, 1)
