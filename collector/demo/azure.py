"""The sample company's Azure, served by the simulator and read through the same client as the real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import date, datetime
from types import TracebackType
from typing import Literal, Self

from collector.azure import sync as azure_sync
from collector.azure.client import Azure, AzureSettings
from collector.azure.simulator import Estate, Simulator
from collector.settings import Settings
from models.errors import UpstreamError
from models.periods import month_start, next_month, utc_day
from models.store import Store

What = Literal["inventory", "quotas", "costs", "prices", "metrics"]
_TOKEN = "sample"  # noqa: S105 (the simulator lets this one in)
# Years of months in one go: the simulator has no tenant whose budget would suffer.
_MOST_CALLS = 10_000


class SampleAzure:
    """An Azure for as long as the block lasts; ``sync`` pulls from it as the command of that name does."""

    def __init__(
        self, estate: Estate, store: Store, *, first_day: date, now: Callable[[], datetime], sleep: Callable[[float], None] = time.sleep, timeout: float = 10.0
    ) -> None:
        self._store, self._first_day, self._now, self._sleep, self._timeout = store, first_day, now, sleep, timeout
        self.simulator = Simulator(estate, now, token=_TOKEN)

    def __enter__(self) -> Self:
        self.simulator.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.simulator.stop()

    @property
    def environment(self) -> Mapping[str, str]:
        """The settings that point another meterbridge at this Azure."""
        return self.simulator.environment()

    def sync(self, what: What, stop: threading.Event) -> str:
        """Pull; gives what came of it in one line. Raises where some of it could not be pulled."""
        said: list[str] = []
        with self.opened() as azure:
            months: list[date] = []
            month = month_start(self._first_day)
            while what == "costs" and month <= utc_day(self._now()):
                months.append(month)
                month = next_month(month)
            # Month by month, so that Ctrl-C does not wait for all of them.
            in_turn: list[list[date] | None] = [[one] for one in months]
            for chosen in in_turn or [None]:
                if stop.is_set():
                    return "stopped"
                failures = azure_sync.pull(self._store, azure, what, months=chosen, now=self._now, say=said.append, progress=lambda _done, _of: None)
                if failures:
                    raise UpstreamError("; ".join(failures), retryable=True)
        if what != "costs":
            return said[-1] if said else ""
        return f"bills of {len(months)} months of {len(azure.asked.scopes)} subscriptions"

    def opened(self) -> Azure:
        """A client of this Azure."""
        settings = AzureSettings.of(Settings.from_environment(self.environment))
        return Azure(settings, now=self._now, sleep=self._sleep, timeout=self._timeout, most_cost_calls=_MOST_CALLS)
