"""What can go wrong with Azure, as switches: each does to one request, or to the bill itself, what Azure has been seen to do.

A switch is armed for a number of requests after some that go well; a seed makes the pattern. The same seed always gives
the same faults for the same sequence of requests.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

# What a request is for; the faults of a bill's pages mean nothing to a list of workspaces.
Kind = Literal["query", "report", "poll", "blob", "exports", "list", "metrics", "prices"]


class Fault(StrEnum):
    """One way in which Azure fails or changes its mind."""

    THROTTLE_RETRY_AFTER = "throttle_retry_after"
    THROTTLE_QPU = "throttle_qpu"
    THROTTLE_ENTITY = "throttle_entity"
    THROTTLE_TENANT = "throttle_tenant"
    THROTTLE_CLIENT_TYPE = "throttle_client_type"
    THROTTLE_ALL = "throttle_all"  # several headers at once: the longest counts
    ERROR_500 = "error_500"
    ERROR_502 = "error_502"
    ERROR_503 = "error_503"
    HANG = "hang"
    TRUNCATED = "truncated"
    RESET = "reset"
    UNAUTHORIZED_ONCE = "unauthorized_once"
    NEXT_LINK_LOOP = "next_link_loop"
    PAGE_CHANGED = "page_changed"
    COLUMN_ORDER = "column_order"
    REPORT_FAILED = "report_failed"
    EXPIRED_SAS = "expired_sas"
    # From here on nothing breaks: the bill itself changes between two pulls.
    RERATED_DAY = "rerated_day"
    VANISHED_ROW = "vanished_row"
    REFUND = "refund"
    LATE_ROW = "late_row"


RESTATEMENTS = frozenset({Fault.RERATED_DAY, Fault.VANISHED_ROW, Fault.REFUND, Fault.LATE_ROW})
_COST_MANAGEMENT: frozenset[Kind] = frozenset({"query", "report", "poll", "exports"})
_ANY: frozenset[Kind] = frozenset({"query", "report", "poll", "blob", "exports", "list", "metrics", "prices"})
_ARM = _ANY - {"blob", "prices"}
_MEETS: Mapping[Fault, frozenset[Kind]] = {
    Fault.THROTTLE_RETRY_AFTER: _ANY - {"blob"},
    Fault.THROTTLE_QPU: _COST_MANAGEMENT,
    Fault.THROTTLE_ENTITY: _COST_MANAGEMENT,
    Fault.THROTTLE_TENANT: _COST_MANAGEMENT,
    Fault.THROTTLE_CLIENT_TYPE: _COST_MANAGEMENT,
    Fault.THROTTLE_ALL: _COST_MANAGEMENT,
    Fault.UNAUTHORIZED_ONCE: _ARM,
    Fault.NEXT_LINK_LOOP: frozenset({"query", "list", "prices"}),
    Fault.PAGE_CHANGED: frozenset({"query"}),
    Fault.COLUMN_ORDER: frozenset({"query", "blob"}),
    Fault.REPORT_FAILED: frozenset({"poll"}),
    Fault.EXPIRED_SAS: frozenset({"blob"}),
}
THROTTLE_HEADERS: Mapping[Fault, tuple[str, ...]] = {
    Fault.THROTTLE_RETRY_AFTER: ("Retry-After",),
    Fault.THROTTLE_QPU: ("x-ms-ratelimit-microsoft.costmanagement-qpu-retry-after",),
    Fault.THROTTLE_ENTITY: ("x-ms-ratelimit-microsoft.costmanagement-entity-retry-after",),
    Fault.THROTTLE_TENANT: ("x-ms-ratelimit-microsoft.costmanagement-tenant-retry-after",),
    Fault.THROTTLE_CLIENT_TYPE: ("x-ms-ratelimit-microsoft.costmanagement-clienttype-retry-after",),
    Fault.THROTTLE_ALL: (
        "x-ms-ratelimit-microsoft.costmanagement-tenant-retry-after",
        "x-ms-ratelimit-microsoft.costmanagement-entity-retry-after",
        "x-ms-ratelimit-microsoft.costmanagement-qpu-retry-after",
    ),
}


def meets(fault: Fault, kind: Kind) -> bool:
    """Whether the fault can befall such a request."""
    return fault not in RESTATEMENTS and kind in _MEETS.get(fault, _ANY)


@dataclass(slots=True)
class _Armed:
    fault: Fault
    skip: int
    times: int
    kinds: frozenset[Kind] | None


class Faults:
    """The switches of one simulator."""

    def __init__(self) -> None:
        self.retry_after_seconds = 1
        self.hang_seconds = 2.0
        self.happened: Counter[Fault] = Counter()
        self._armed: list[_Armed] = []
        self._storm: tuple[random.Random, tuple[Fault, ...], float, int] | None = None
        self._in_a_row: Counter[Kind] = Counter()
        self._lock = threading.Lock()

    def arm(self, fault: Fault, *, times: int = 1, skip: int = 0, kinds: Iterable[Kind] | None = None) -> None:
        """Let the fault befall ``times`` requests that it can befall, after ``skip`` of them went well."""
        with self._lock:
            self._armed.append(_Armed(fault, skip, times, None if kinds is None else frozenset(kinds)))

    def storm(self, seed: object, faults: Iterable[Fault], *, rate: float, most_in_a_row: int = 2) -> None:
        """Let any of the faults befall a share of all requests, but never more than so many of a kind in a row."""
        with self._lock:
            self._storm = (random.Random(f"storm/{seed}"), tuple(faults), rate, most_in_a_row)  # noqa: S311 (a sample)

    def clear(self) -> None:
        """Switch everything off."""
        with self._lock:
            self._armed.clear()
            self._storm = None
            self._in_a_row.clear()

    def next(self, kind: Kind) -> Fault | None:
        """What befalls the next request of the kind."""
        with self._lock:
            found = self._of_armed(kind) or self._of_storm(kind)
            if found is not None:
                self.happened[found] += 1
            return found

    def _of_armed(self, kind: Kind) -> Fault | None:
        for armed in self._armed:
            if not meets(armed.fault, kind) or (armed.kinds is not None and kind not in armed.kinds) or not armed.times:
                continue
            if armed.skip:
                armed.skip -= 1
                continue
            armed.times -= 1
            return armed.fault
        return None

    def _of_storm(self, kind: Kind) -> Fault | None:
        if self._storm is None:
            return None
        generator, faults, rate, most = self._storm
        possible = [fault for fault in faults if meets(fault, kind)]
        if possible and self._in_a_row[kind] < most and generator.random() < rate:
            self._in_a_row[kind] += 1
            return generator.choice(possible)
        self._in_a_row[kind] = 0
        return None
