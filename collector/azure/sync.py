"""``meterbridge sync``: one pull from Azure now. The schedule makes the same ones by itself."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

import msgspec

from collector.azure import costs, inventory, metrics, quotas, utilisation
from collector.azure.client import Azure, AzureSettings, Rescheduled
from collector.settings import Settings
from models import sources
from models.errors import DomainError, InvalidInput, UpstreamError
from models.periods import month_start, parse_month, utc_day
from models.sources import PullState
from models.store import Store

What = Literal["costs", "inventory", "quotas", "prices", "metrics"]
WHAT: tuple[What, ...] = ("costs", "inventory", "quotas", "prices", "metrics")
Say = Callable[[str], None]
Progress = Callable[[int, int | None], None]


class Sync(msgspec.Struct, tag="sync", forbid_unknown_fields=True):
    """``meterbridge sync costs|inventory|quotas|prices|metrics``."""

    what: What
    month: str | None = None
    # The settings of whoever gives the command: a running service may have none of its own.
    azure_arm_url: str = ""
    azure_retail_prices_url: str = ""
    azure_credential: str = ""
    azure_scopes: str = ""
    azure_subscriptions: str = ""

    def __repr__(self) -> str:
        """Without the credential."""
        return f"Sync(what={self.what!r}, month={self.month!r})"


def command_of(what: What, month: str | None, settings: Settings) -> Sync:
    """The command of the person who gives it; ``InvalidInput`` where their settings name no Azure."""
    AzureSettings.of(settings)
    return Sync(
        what,
        month,
        settings.azure_arm_url,
        settings.azure_retail_prices_url,
        settings.azure_credential,
        settings.azure_scopes,
        settings.azure_subscriptions,
    )


class Failure(str):
    """Why something could not be pulled, in words; ``passes`` where another try may help."""

    __slots__ = ("passes",)
    passes: bool

    @classmethod
    def of(cls, fault: DomainError, *, where: str = "") -> Failure:
        """The fault's own words, after where it happened; what is refused, missing or misspelt stays so until somebody acts."""
        found = cls(f"{where}: {fault.message}" if where else fault.message)
        found.passes = fault.retryable if isinstance(fault, UpstreamError) else fault.error == "unavailable"
        return found


def run(store: Store, asked: Sync, *, now: Callable[[], datetime], say: Say, progress: Progress) -> int:
    """Pull; 0 where everything came, 1 where some of it did not, with the reason of each. Raises where the settings are wrong."""
    if asked.month is not None and asked.what != "costs":
        raise InvalidInput("--month is for costs")
    settings = AzureSettings.of(
        Settings(
            azure_arm_url=asked.azure_arm_url,
            azure_retail_prices_url=asked.azure_retail_prices_url,
            azure_credential=asked.azure_credential,
            azure_scopes=asked.azure_scopes,
            azure_subscriptions=asked.azure_subscriptions,
        )
    )
    month = None if asked.month is None else parse_month(asked.month, what="the month")
    if month is not None and month > month_start(utc_day(now())):
        raise InvalidInput(f"{month:%Y-%m} has not begun")
    with Azure(settings, now=now) as azure:
        failures = pull(store, azure, asked.what, months=None if month is None else [month], now=now, say=say, progress=progress)
    for failure in failures:
        say(f"failed: {failure}")
    return 1 if failures else 0


def pull(
    store: Store,
    azure: Azure,
    what: What,
    *,
    months: Sequence[date] | None = None,
    besides: Container[date | None] = (),
    now: Callable[[], datetime],
    say: Say,
    progress: Progress,
) -> list[Failure]:
    """Pull one kind of thing from everywhere it is; gives what failed, each with its reason. One scope's fault does not stop the others.

    ``months`` are the calendar months whose bills are asked for (None: those that are due), ``besides`` the first days of
    bills that are there already.
    """
    match what:
        case "costs":
            return _costs(store, azure, months, besides, now=now, say=say, progress=progress)
        case "inventory":
            return _kept(store, azure, what, lambda: _inventory(store, azure, now=now, say=say), now=now, say=say)
        case "quotas":
            return _kept(store, azure, what, lambda: _quotas(store, azure, now=now, say=say), now=now, say=say)
        case "prices":
            return _kept(store, azure, what, lambda: _prices(store, azure, now=now, say=say, progress=progress), now=now, say=say)
        case "metrics":
            return _kept(store, azure, what, lambda: _metrics(store, azure, now=now, progress=progress), now=now, say=say)


def _costs(
    store: Store, azure: Azure, months: Sequence[date] | None, besides: Container[date | None], *, now: Callable[[], datetime], say: Say, progress: Progress
) -> list[Failure]:
    failures: list[Failure] = []
    today = utc_day(now())
    for scope in azure.asked.scopes:
        try:
            bills = costs.bills_of(store, azure, scope, now=now, month=months[0] if months else None)
        except Rescheduled as fault:
            return [*failures, Failure.of(fault, where=scope)]
        except DomainError as fault:
            failures.append(Failure.of(fault, where=scope))
            continue
        asked = costs.due(store, scope, bills, now=now()) if months is None else [one for month in months for one in bills.touching(month, until=today)]
        for billed in sorted(set(asked)):
            if billed.start in besides:
                continue
            say(f"{scope}: asking for {billed}")
            try:
                done = costs.pull(store, azure, scope, billed, now=now, say=say, progress=progress)
            except Rescheduled as fault:
                # It is the tenant that is throttled: the other scopes would only make it worse.
                return [*failures, Failure.of(fault, where=f"{scope} {billed}")]
            except DomainError as fault:
                failures.append(Failure.of(fault, where=f"{scope} {billed}"))
                continue
            for line in done.message.splitlines():
                say(line)
    return failures


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of a pull that ran to its end; ``until`` None: what it brought is as of its end."""

    summary: str
    rows: int | None
    failures: Sequence[str]
    until: datetime | None = None


def _kept(store: Store, azure: Azure, what: What, work: Callable[[], _Done], *, now: Callable[[], datetime], say: Say) -> list[Failure]:
    """Do it with a row that tells of it."""
    calls, throttles = azure.tally.calls, azure.tally.throttles
    with store.write() as session:
        pull_id = sources.begin(session, what, "", now=now()).id or 0

    def ended(state: PullState, message: str, **more: Any) -> None:
        with store.write() as session:
            sources.finish(
                session, pull_id, state, now=now(), message=message, calls=azure.tally.calls - calls, throttles=azure.tally.throttles - throttles, **more
            )

    try:
        done = work()
    except Rescheduled as fault:
        ended(PullState.RESCHEDULED, fault.message, next_at=fault.until)
        return [Failure.of(fault)]
    except DomainError as fault:
        ended(PullState.FAILED, fault.message)
        return [Failure.of(fault)]
    if done.failures:
        ended(PullState.FAILED, "; ".join(done.failures), rows=done.rows)
    else:
        ended(PullState.DONE, done.summary, rows=done.rows, data_until=done.until or now())
    say(done.summary)
    return [_passing(each) for each in done.failures]


def _passing(message: str) -> Failure:
    """Of several places one failed: the others came, so another try is cheap and may help."""
    return Failure.of(UpstreamError(message, retryable=True))


def _inventory(store: Store, azure: Azure, *, now: Callable[[], datetime], say: Say) -> _Done:
    done = inventory.sync(store, azure, _subscriptions(azure), now=now, say=say)
    count = sum(each.deployments.added + each.deployments.changed + each.deployments.unchanged for each in done.imported)
    return _Done(f"inventory: {count} deployments of {len(done.imported)} subscriptions", count, done.failures)


def _quotas(store: Store, azure: Azure, *, now: Callable[[], datetime], say: Say) -> _Done:
    done = quotas.sync(store, azure, _subscriptions(azure), now=now, say=say)
    return _Done(done.summary(), done.rows, done.failures)


def _metrics(store: Store, azure: Azure, *, now: Callable[[], datetime], progress: Progress) -> _Done:
    done = metrics.sync(store, azure, _subscriptions(azure), now=now, progress=progress)
    gpus = utilisation.sync(store, azure, _subscriptions(azure), now=now)
    said = f"; GPU use of {gpus.deployments} deployments" if gpus.deployments else ""
    return _Done(f"{done.summary()}{said}", done.hours, (*done.failures, *gpus.failures), done.until)


def _prices(store: Store, azure: Azure, *, now: Callable[[], datetime], say: Say, progress: Progress) -> _Done:
    from collector.azure import retail  # noqa: PLC0415

    return _Done(retail.sync(store, base_url=azure.asked.retail_prices_url, now=now, say=say, progress=progress), None, ())


def _subscriptions(azure: Azure) -> Sequence[str]:
    if not azure.asked.subscriptions:
        raise UpstreamError("say which subscriptions to read: METERBRIDGE_AZURE_SUBSCRIPTIONS", retryable=False)
    return azure.asked.subscriptions
