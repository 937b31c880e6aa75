"""The questions and answers of the ledger: plain values, shared by pages, API, reports and alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from models import money
from models.periods import Granularity, Period
from models.resources import Mode

Basis = Literal["metered", "billed", "best", "amortized"]
BASES: tuple[Basis, ...] = ("metered", "billed", "best", "amortized")
Standing = Literal["provisional", "settling", "settled"]
GROUPS = ("workspace", "deployment", "model", "meter", "mode", "application", "team", "cost_center", "subscription")  # and tag:<key>


@dataclass(frozen=True, slots=True)
class Filters:
    """Which part of the world is asked about; an empty tuple means all. ``visible`` is the caller's limit (None = all)."""

    workspaces: tuple[str, ...] = ()
    deployments: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    applications: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    visible: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class CostQuery:
    """A question for ``costs``. ``as_of`` None asks what is known now; ``currency`` keeps rows of that currency only."""

    period: Period
    granularity: Granularity = "day"
    group_by: tuple[str, ...] = ()
    basis: Basis = "best"
    filters: Filters = Filters()
    currency: str | None = None
    as_of: datetime | None = None
    time_zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of one row or total, in one currency (None where neither a bill nor a price names one).

    A cost is None where it is not known; ``reasons`` says why, by field name. Tokens are sums of what is known.
    ``allocation`` says by what amounts of a bill or of instances were given to applications, teams, cost centres or tags:
    tokens, requests, time (nobody called), or several of them; None where nothing was given so.
    """

    currency: str | None
    cost: Decimal | None
    metered_cost: Decimal | None
    billed_cost: Decimal | None
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    reasoning_output_tokens: int
    requests: int
    core_hours: Decimal | None
    status: Standing
    unpriced_tokens: int
    unknown_token_requests: int
    estimated_token_requests: int
    coverage: Decimal | None
    estimate: bool
    reasons: Mapping[str, str] = field(default_factory=dict)
    allocation: str | None = None

    @property
    def unknown_token_share(self) -> Decimal | None:
        """The share of requests whose tokens nobody told; None without requests."""
        return share_of(self.unknown_token_requests, self.requests)

    @property
    def estimated_token_share(self) -> Decimal | None:
        """The share of requests whose tokens are an estimate; None without requests."""
        return share_of(self.estimated_token_requests, self.requests)


def share_of(part: int, whole: int) -> Decimal | None:
    """A share to four digits; None of nothing."""
    return money.QUOTIENT.divide(Decimal(part), Decimal(whole)).quantize(Decimal("0.0001")) if whole > 0 else None


@dataclass(frozen=True, slots=True)
class CostRow:
    """One period and combination of groups; ``groups`` has the asked keys in order, None for unallocated or not said."""

    period: Period
    groups: Mapping[str, str | None]
    figures: Figures


@dataclass(frozen=True, slots=True)
class CostTable:
    """The answer of ``costs``: rows in order of period, groups, currency; one total per currency; what is left out."""

    query: CostQuery
    rows: list[CostRow]
    totals: list[Figures]


@dataclass(frozen=True, slots=True)
class SourceAge:
    """How far one source of facts reaches. ``kind`` is ``usage`` or ``bill``; ``reaches`` is the last instant it covers."""

    kind: str
    name: str
    reaches: datetime | None
    arrived_at: datetime | None


@dataclass(frozen=True, slots=True)
class DataAge:
    """How old the figures are: ``metered_until`` the newest event's time, ``billed_until`` the oldest route's last billed day (exclusive end)."""

    metered_until: datetime | None
    billed_until: datetime | None
    sources: list[SourceAge]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Spend to the end of the calendar month in one currency; None with a reason while there is too little to go by.

    One such forecast in ten ends below ``low`` and one above ``high``; ``error_percent`` is the median miss of the same forecast
    made at ``trials`` earlier days.
    """

    currency: str
    month_to_date: Decimal
    month_end: Decimal | None
    complete_days: int
    reason: str | None
    low: Decimal | None = None
    high: Decimal | None = None
    error_percent: Decimal | None = None
    trials: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the data that a person should look at, with what to do about it."""

    kind: str  # unmapped_meter | unknown_unit | unpriced_model | unallocated_charge | unconfirmed_deployment | conflict | …
    subject: str
    detail: str
    remedy: str
    currency: str | None = None
    amount: Decimal | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """What the filters can be set to, in order of name."""

    workspaces: list[str]
    deployments: list[str]
    models: list[str]
    applications: list[str]
    teams: list[str]
    tag_keys: list[str]


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One stored event as the list and the receipt show it."""

    handle: str
    id: str
    source: str
    time: datetime
    workspace: str
    deployment: str | None
    endpoint: str | None
    model: str | None
    mode: Mode
    operation: str
    status: str
    counted: bool
    reason: str | None
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class UsagePage:
    """A page of events, newest first; ``next_cursor`` is None on the last."""

    items: list[UsageRecord]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """quantity × unit price = amount, exactly; the price row's version and source beside it. Quantity None: nobody told it."""

    meter: str
    quantity: int | None
    unit_price: Decimal | None
    unit: str | None
    currency: str | None
    amount: Decimal | None
    price_version: str | None
    price_source: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """One event explained: its record, what it is expected to cost, and its share of what was billed that day."""

    record: UsageRecord
    lines: list[ReceiptLine]
    expected_cost: Decimal | None
    currency: str | None
    billed_share: Decimal | None
    billed_reason: str | None
    billed_on: date | None
