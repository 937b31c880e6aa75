"""A ledger of made-up facts with the callables of ``models.ledger``, and doors whose keys a test sets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from dashboard.access import Viewer
from dashboard.shell import Ledger
from models import money
from models.alerts import Alert, AlertRule, Silence
from models.errors import Forbidden
from models.ledger import (
    FIGURES,
    Adjustment,
    Ask,
    BudgetStanding,
    Choices,
    ClosedMonth,
    ComparisonRow,
    ConflictRecord,
    CostQuery,
    CostRow,
    CostTable,
    DataAge,
    Explanation,
    Figures,
    Filters,
    Forecast,
    Invoice,
    Lag,
    Meters,
    Moved,
    Pool,
    Problem,
    ReceiverStanding,
    Reconciliation,
    ScheduleStanding,
    Source,
    SourceAge,
    Standing,
    TrailEntry,
    UsagePage,
    UsageRecord,
    WhatIf,
    Why,
    WitnessRow,
    WorklistItem,
)
from models.ledger.intake import Intake, SnapshotRecord
from models.periods import DAY, Period, buckets, day_start
from models.prices import WaitingPrice
from models.resources import Mode

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
BILLED_UNTIL = datetime(2026, 11, 18, tzinfo=UTC)

_PLACES = (
    ("ws-contracts-prod", "llama-33-70b-chat", "Llama-3.3-70B-Instruct", Mode.SERVERLESS, "assistant", "legal", 58),
    ("ws-contracts-prod", "llama-31-405b", "Meta-Llama-3.1-405B-Instruct", Mode.SERVERLESS, "drafting", "legal", 91),
    ("ws-contracts-prod", "guard/blue", "Llama-Guard-3-8B", Mode.MANAGED_COMPUTE, "moderation", "platform", 24),
    ("ws-support", "maverick-17b", "Llama-4-Maverick-17B-128E-Instruct-FP8", Mode.SERVERLESS, "helpdesk", "support", 37),
    ("ws-support", "llama-31-8b", "Meta-Llama-3.1-8B-Instruct", Mode.SERVERLESS, "triage", "support", 6),
    ("ws-support", "search-rerank/green", "Llama-3.2-3B-Instruct", Mode.MANAGED_COMPUTE, "search", "support", 31),
    ("ws-research", "scout-17b", "Llama-4-Scout-17B-16E-Instruct", Mode.SERVERLESS, "notebooks", "research", 19),
    ("ws-research", "llama-33-70b-batch", "Llama-3.3-70B-Instruct", Mode.SERVERLESS, "batch", "research", 44),
    ("foundry-emea", "Llama-3.3-70B-Instruct", "Llama-3.3-70B-Instruct", Mode.SERVERLESS, "translations", "emea", 27),
    ("foundry-emea", "experiments", None, Mode.UNKNOWN, "playground", None, 3),
)

HOSTILE = (
    ("<img src=x onerror=window.hacked=1>", "=cmd|' /C calc'!A0"),
    ("\u202egnp.exe\u202c", "<b>bold</b><br>%{x}$x^2$"),
    ("w" * 256, "d" * 256),
    ("-1+1", "&lt;script&gt;"),
)


@dataclass(frozen=True, slots=True)
class Fact:
    """What one deployment did on one day."""

    at: datetime
    workspace: str
    deployment: str | None
    model: str | None
    mode: Mode
    application: str | None
    team: str | None
    currency: str | None
    metered: Decimal | None
    billed: Decimal | None
    input_tokens: int
    output_tokens: int
    requests: int
    unknown: int
    core_hours: Decimal | None


def world(*, days: int = 60, seed: int = 7) -> list[Fact]:
    """Ten deployments of four workspaces over the last days, with weekends, growth and a bill two days behind."""
    chance = random.Random(seed)
    facts: list[Fact] = []
    for back in range(days - 1, -1, -1):
        at = day_start(NOW.date()) - DAY * back
        quiet = 0.45 if at.weekday() >= 5 else 1.0
        for workspace, deployment, model, mode, application, team, size in _PLACES:
            scale = (1.0 if mode is Mode.MANAGED_COMPUTE else quiet) * (1 + (days - back) / days * 0.5)
            cents = int(size * scale * chance.uniform(0.85, 1.15) * 100)
            metered = None if mode is Mode.UNKNOWN else Decimal(cents) / 100 + Decimal("0.0012345")
            billed = None if at >= BILLED_UNTIL else Decimal(cents) * chance.choice((100, 100, 101, 98)) / 10000
            tokens = int(size * scale * 210_000)
            facts.append(
                Fact(
                    at,
                    workspace,
                    deployment,
                    model,
                    mode,
                    application,
                    team,
                    "USD",
                    metered,
                    billed if metered is not None else None,
                    tokens,
                    tokens // 5,
                    tokens // 900,
                    3 if deployment == "scout-17b" else 0,
                    Decimal(144) if mode is Mode.MANAGED_COMPUTE else None,
                )
            )
        if at < BILLED_UNTIL and at.day == 3:
            facts.append(Fact(at, "ws-support", None, None, Mode.UNKNOWN, None, None, "USD", None, Decimal("-12.5"), 0, 0, 0, 0, None))
    return facts


def hostile_world() -> list[Fact]:
    """Names that try to be markup, formulas, templates, or to hide."""
    template = world(days=5)[-10:]
    facts = [replace(template[0], workspace=workspace, deployment=deployment, application=workspace) for workspace, deployment in HOSTILE]
    return [*facts, *(replace(fact, at=fact.at - DAY) for fact in facts)]


def two_currencies() -> list[Fact]:
    """One workspace billed in euro, one in yen, one that nothing names a currency for."""
    start = world(days=4)
    euro = [replace(fact, currency="EUR") for fact in start if fact.workspace == "ws-support"]
    yen = [replace(fact, currency="JPY") for fact in start if fact.workspace == "ws-research"]
    none = [replace(fact, currency=None, metered=None, billed=None) for fact in start if fact.workspace == "foundry-emea"]
    return [*euro, *yen, *none]


@dataclass
class FakeLedger:
    """The ledger's callables over a list of facts; ``broken`` maps a callable's name to the fault it raises."""

    facts: list[Fact] = field(default_factory=world)
    broken: dict[str, Exception] = field(default_factory=dict)
    problem_list: list[Problem] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise self.broken[name]

    def _passing(self, filters: Filters, period: Period) -> list[Fact]:
        def passes(fact: Fact) -> bool:
            wanted: tuple[tuple[tuple[Any, ...], Any], ...] = (
                (filters.workspaces, fact.workspace),
                (filters.deployments, fact.deployment),
                (filters.models, fact.model),
                (filters.applications, fact.application),
                (filters.teams, fact.team),
                (filters.modes, fact.mode),
            )
            return (
                all(not chosen or value in chosen for chosen, value in wanted)
                and (filters.visible is None or fact.workspace in filters.visible)
                and not filters.tags
                and fact.at in period
            )

        return [fact for fact in self.facts if passes(fact)]

    def costs(self, query: CostQuery, *, now: datetime) -> CostTable:
        self._called("costs")
        found = [fact for fact in self._passing(query.filters, query.period) if query.currency in {None, fact.currency}]
        cuts = buckets(query.period, query.granularity)
        cells: dict[tuple[int, tuple[str | None, ...], str | None], list[Fact]] = {}
        for fact in found:
            index = next(number for number, cut in enumerate(cuts) if fact.at in cut)
            group = tuple(_group(fact, key) for key in query.group_by)
            cells.setdefault((index, group, fact.currency), []).append(fact)
        order = sorted(cells, key=lambda key: (key[0], tuple(value or "" for value in key[1]), key[2] or ""))
        rows = [CostRow(cuts[key[0]], dict(zip(query.group_by, key[1], strict=True)), _figures(cells[key], key[2], query)) for key in order]
        currencies = sorted({fact.currency for fact in found}, key=lambda value: value or "")
        totals = [_figures([fact for fact in found if fact.currency == currency], currency, query) for currency in currencies]
        return CostTable(query, rows, totals)

    def data_age(self, *, visible: frozenset[str] | None, now: datetime) -> DataAge:
        self._called("data_age")
        if not self.facts:
            return DataAge(None, None, [])
        metered = now - timedelta(minutes=4)
        return DataAge(
            metered,
            BILLED_UNTIL,
            [
                SourceAge("usage", "default", metered, metered),
                SourceAge("usage", "apim-gateway", now - timedelta(minutes=31), now - timedelta(minutes=30)),
                SourceAge("bill", "marketplace · subscription 5f3a…", BILLED_UNTIL, now - timedelta(hours=9)),
            ],
        )

    def forecast(self, filters: Filters, *, now: datetime) -> list[Forecast]:
        self._called("forecast")
        found = []
        for currency in sorted({fact.currency for fact in self.facts if fact.currency}):
            month = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
            so_far = money.add(_best(fact) or money.ZERO for fact in self._passing(filters, month) if fact.currency == currency)
            few = len({fact.at for fact in self.facts}) < 7
            found.append(
                Forecast(currency, so_far, None, 2, "fewer than 7 complete days") if few else Forecast(currency, so_far, so_far * Decimal("1.5"), 19, None)
            )
        return found

    def witnesses(self, period: Period, filters: Filters, *, now: datetime) -> list[WitnessRow]:
        self._called("witnesses")
        return []

    def problems(self, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
        self._called("problems")
        return self.problem_list

    def choices(self, *, visible: frozenset[str] | None, now: datetime) -> Choices:
        self._called("choices")
        seen = [fact for fact in self.facts if visible is None or fact.workspace in visible]

        def names(key: str) -> list[str]:
            return sorted({str(getattr(fact, key)) for fact in seen if getattr(fact, key) is not None})

        return Choices(names("workspace"), names("deployment"), names("model"), names("application"), names("team"), ["environment", "project"])

    # What only pages over a real ledger are tested with: nothing is there.

    def reconciliation(self, period: Period, filters: Filters, *, now: datetime) -> Reconciliation:
        del filters, now
        self._called("reconciliation")
        return Reconciliation(period, [], [])

    def comparison(self, period: Period, filters: Filters, *, now: datetime, what_if: WhatIf | None = None) -> list[ComparisonRow]:
        del period, filters, now, what_if
        self._called("comparison")
        return []

    def quotas(self, filters: Filters, *, now: datetime) -> list[Pool]:
        del filters, now
        self._called("quotas")
        return []

    def sources(self, *, visible: frozenset[str] | None, now: datetime) -> list[Source]:
        del visible, now
        self._called("sources")
        return []

    def onboarding(self, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
        del visible, now
        self._called("onboarding")
        return []

    def alerts(self, *, since: datetime, visible: frozenset[str] | None) -> list[Alert]:
        del since, visible
        self._called("alerts")
        return []

    def alert_rules(self, *, visible: frozenset[str] | None) -> list[AlertRule]:
        del visible
        self._called("alert_rules")
        return []

    def budgets(self, *, visible: frozenset[str] | None, now: datetime) -> list[BudgetStanding]:
        del visible, now
        self._called("budgets")
        return []

    def silences(self, *, since: datetime, visible: frozenset[str] | None) -> list[Silence]:
        self._called("silences")
        return []

    def trail(self, *, kinds: Sequence[str], visible: frozenset[str] | None) -> list[TrailEntry]:
        self._called("trail")
        return []

    def receivers(self) -> list[ReceiverStanding]:
        self._called("receivers")
        return []

    def closed_months(self, *, now: datetime) -> list[ClosedMonth]:
        del now
        self._called("closed_months")
        return []

    def explain(self, query: CostQuery, *, now: datetime) -> Explanation:
        self._called("explain")
        return Explanation(query, [], [], [], [], [], self.data_age(visible=None, now=now))

    def why(self, ask: Ask, *, now: datetime) -> Why:
        self._called("why")
        known = FIGURES[ask.figure]
        return Why(
            ask.figure,
            known.words,
            None,
            known.kind,
            "USD",
            "made up",
            known.formula,
            [],
            [],
            0,
            False,
            None,
            "/v1/costs",
            [],
            self.data_age(visible=None, now=now),
        )

    def worklist(self, month: date, filters: Filters, *, now: datetime) -> list[WorklistItem]:
        del month, filters, now
        self._called("worklist")
        return []

    def invoices(self, month: date, *, now: datetime) -> list[Invoice]:
        del month, now
        self._called("invoices")
        return []

    def meters(self, *, now: datetime) -> Meters:
        self._called("meters")
        return Meters((), ())

    def waiting_prices(self) -> list[WaitingPrice]:
        self._called("waiting_prices")
        return []

    def lags(self, *, now: datetime) -> list[Lag]:
        del now
        self._called("lags")
        return []

    def before_last_landing(self, *, now: datetime) -> datetime | None:
        del now
        self._called("before_last_landing")
        return None

    def moved_since(self, period: Period, filters: Filters, *, since: datetime, now: datetime) -> list[Moved]:
        del period, filters, since, now
        self._called("moved_since")
        return []

    def adjustments(self, month: date, filters: Filters, *, now: datetime) -> list[Adjustment]:
        del month, filters, now
        self._called("adjustments")
        return []

    def intake(self, period: Period, *, visible: frozenset[str] | None, now: datetime) -> Intake:
        del visible, now
        self._called("intake")
        return Intake(period, None, [], [], [])

    def report_snapshots(self, *, visible: frozenset[str] | None) -> list[SnapshotRecord]:
        del visible
        self._called("report_snapshots")
        return []

    def report_schedules(self) -> list[ScheduleStanding]:
        self._called("report_schedules")
        return []

    def conflicts(self, *, visible: frozenset[str] | None) -> list[ConflictRecord]:
        del visible
        self._called("conflicts")
        return []

    def usage_list(self, *, period: Period, filters: Filters, limit: int, cursor: str | None, now: datetime) -> UsagePage:
        self._called("usage_list")
        facts = self._passing(filters, period)
        if not facts:
            return UsagePage([], None)
        fact = facts[-1]
        items = [
            UsageRecord(
                f"evt_{number}",
                f"chatcmpl-{number:04}-{'a' * 20}",
                "default",
                now - timedelta(seconds=37 * number),
                fact.workspace,
                fact.deployment,
                None,
                fact.model,
                fact.mode,
                "chat",
                "throttled" if number % 7 == 3 else "success",
                number % 9 != 4,
                "another witness of the same call counts" if number % 9 == 4 else None,
                {"input_tokens": 900 + number, "output_tokens": None if number % 7 == 3 else 120, "application": fact.application},
            )
            for number in range(min(limit, 20))
        ]
        return UsagePage(items, "next")


def _group(fact: Fact, key: str) -> str | None:
    return None if key.startswith("tag:") or key in {"meter", "cost_center", "subscription"} else getattr(fact, key)


def _best(fact: Fact) -> Decimal | None:
    return fact.billed if fact.at < BILLED_UNTIL and fact.billed is not None else fact.metered


def _sum(values: Any) -> Decimal | None:
    known = [value for value in values if value is not None]
    return money.add(known) if known else None


def _figures(facts: list[Fact], currency: str | None, query: CostQuery) -> Figures:
    metered, billed = _sum(fact.metered for fact in facts), _sum(fact.billed for fact in facts)
    cost = {"metered": metered, "billed": billed, "best": _sum(_best(fact) for fact in facts), "amortized": billed}[query.basis]
    status: Standing = "provisional" if any(fact.at >= BILLED_UNTIL for fact in facts) else "settling"
    if all(fact.at < datetime(2026, 11, 1, tzinfo=UTC) for fact in facts):
        status = "settled"
    return Figures(
        currency=currency,
        cost=cost,
        metered_cost=metered,
        billed_cost=billed,
        input_tokens=sum(fact.input_tokens for fact in facts),
        output_tokens=sum(fact.output_tokens for fact in facts),
        cached_input_tokens=0,
        reasoning_output_tokens=0,
        requests=sum(fact.requests for fact in facts),
        core_hours=_sum(fact.core_hours for fact in facts),
        status=status,
        unpriced_tokens=sum(fact.input_tokens for fact in facts if fact.metered is None),
        unknown_token_requests=sum(fact.unknown for fact in facts),
        estimated_token_requests=0,
        coverage=Decimal("0.9931") if billed else None,
        estimate=False,
        reasons={} if metered is not None else {"metered_cost": "no price for model experiments"},
    )


def problems() -> list[Problem]:
    """One of each kind that a page has to show."""
    return [
        Problem(
            "unmapped_meter",
            "Llama 4 Maverick cached input (subscription 5f3a…)",
            "billed under a meter that no rule knows",
            "name the meter's kind in the price file",
            "USD",
            Decimal("31.417"),
            9,
        ),
        Problem("unpriced_model", "foundry-emea / experiments", "no price for these tokens", "meterbridge import prices FILE", None, None, 4_200_000),
        Problem("conflict", "default", "the same id arrived with other content", "give every call its own id", None, None, 3),
    ]


@dataclass
class FakeAccess:
    """Keys by secret; ``keyless`` is a service in which no key was ever created."""

    viewers: dict[str, Viewer] = field(default_factory=dict)
    keyless: bool = False
    cookie_secret: bytes = b"a secret of the tests"

    def authenticate(self, secret: str) -> Viewer | None:
        return self.viewers.get(secret)

    def viewer_for(self, key_id: str) -> Viewer | None:
        return next((viewer for viewer in self.viewers.values() if viewer.key_id == key_id), None)

    def is_open(self, environ: Mapping[str, Any]) -> bool:
        if not self.keyless:
            return False
        if str(environ.get("HTTP_HOST", "")).rsplit(":", 1)[0] not in {"127.0.0.1", "localhost"}:
            raise Forbidden("no key has been created, so only this machine may look")
        return True


def open_ledger(fake: FakeLedger):  # type: ignore[no-untyped-def]
    """What ``create_dashboard`` takes."""

    @contextmanager
    def opened() -> Iterator[Ledger]:
        fake._called("open")
        yield fake

    return opened
