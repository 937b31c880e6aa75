"""Rules, budgets, silences and the alerts they made: each row tells when and why it changed.

A rule or budget says what to watch; an ``Alert`` is one time that it was so, from ``pending`` over ``firing`` to
``resolved``, with the sample it was judged by. Rules, budgets and silences that were deleted stay as rows, so that an
alert of last year can still say what it was about. How states follow from samples is ``collector/alerting.py``.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, Text
from sqlmodel import Field, SQLModel

from models.columns import BigInt, EnumText, ExactDecimal, Instant, JsonText


class Kind(StrEnum):
    """What a rule watches; units are those of CONTRACT.md."""

    TOKENS_PER_MINUTE = "tokens_per_minute"
    REQUESTS_PER_MINUTE = "requests_per_minute"
    THROTTLED_REQUESTS = "throttled_requests"
    CORE_QUOTA = "core_quota"
    SHARED_QUOTA_DELETION = "shared_quota_deletion"
    SPEND_ANOMALY = "spend_anomaly"
    UNMETERED_USAGE = "unmetered_usage"
    IDLE_DEPLOYMENT = "idle_deployment"
    UNPRICED_USAGE = "unpriced_usage"
    STALE_SOURCE = "stale_source"
    MODEL_RETIREMENT = "model_retirement"
    DOUBLE_SOURCE = "double_source"
    UNREACHED_RECEIVER = "unreached_receiver"
    REPORT_DELIVERY = "report_delivery"
    HEARTBEAT = "heartbeat"
    # A budget's own alerts, and those that other systems send us; no rule has these kinds.
    BUDGET = "budget"
    BUDGET_FORECAST = "budget_forecast"
    EXTERNAL = "external"


BUDGET_KINDS = frozenset({Kind.BUDGET, Kind.BUDGET_FORECAST})
RULE_KINDS = frozenset(Kind) - BUDGET_KINDS - {Kind.EXTERNAL}
RATE_KINDS = frozenset({Kind.TOKENS_PER_MINUTE, Kind.REQUESTS_PER_MINUTE, Kind.THROTTLED_REQUESTS})
# These fire when few hours are left: at or below their threshold.
COUNTDOWN_KINDS = frozenset({Kind.SHARED_QUOTA_DELETION, Kind.MODEL_RETIREMENT})
# Of these there is a limit, so that a threshold may be a share of it.
LIMITED_KINDS = frozenset({Kind.TOKENS_PER_MINUTE, Kind.REQUESTS_PER_MINUTE, Kind.CORE_QUOTA})


class Severity(StrEnum):
    """How urgent an alert is, worst first (the words of PagerDuty's Events API)."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class AlertState(StrEnum):
    """Where an alert is; one that was never more than pending leaves no row."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class NoData(StrEnum):
    """What a rule makes of a subject that it has no sample of."""

    OK = "ok"  # as if it were below the threshold
    KEEP = "keep"  # the state stays as it is
    ALERT = "alert"  # as if it were above


class AlertRule(SQLModel, table=True):
    """What is watched, from which value on, for how long, and who is told."""

    __tablename__ = "alert_rule"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False))
    kind: Kind = Field(sa_column=Column(EnumText(Kind), nullable=False))
    scope: dict[str, Any] = Field(sa_column=Column(JsonText, nullable=False))
    threshold: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
    threshold_percent: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))  # of the limit
    clear_threshold: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))  # hysteresis, in the threshold's own unit
    window_seconds: int = Field(default=60, sa_column=Column(Integer, nullable=False))
    for_seconds: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    keep_firing_for_seconds: int = Field(default=0, sa_column=Column(Integer, nullable=False))
    severity: Severity = Field(sa_column=Column(EnumText(Severity), nullable=False))
    no_data: NoData = Field(default=NoData.OK, sa_column=Column(EnumText(NoData), nullable=False))
    receivers: list[str] = Field(sa_column=Column(JsonText, nullable=False))  # ids; [] is the default receivers
    max_alerts: int = Field(default=100, sa_column=Column(Integer, nullable=False))
    runbook_url: str = Field(default="", sa_column=Column(Text, nullable=False))
    is_enabled: bool = Field(default=True, sa_column=Column(Boolean, nullable=False))
    # Why the row exists: "" by hand, "builtin" of this software, "apply" from a file in version control.
    origin: str = Field(default="", sa_column=Column(Text, nullable=False))
    # Grows with every edit that changes what is judged.
    revision: int = Field(default=1, sa_column=Column(Integer, nullable=False))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    updated_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    deleted_at: datetime | None = Field(default=None, sa_column=Column(Instant))


class Budget(SQLModel, table=True):
    """An amount for each calendar period of a zone; its steps are percents of it."""

    __tablename__ = "budget"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False))
    scope: dict[str, Any] = Field(sa_column=Column(JsonText, nullable=False))
    amount: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    currency: str = Field(sa_column=Column(Text, nullable=False))
    period: str = Field(sa_column=Column(Text, nullable=False))  # day | week | month | quarter | year
    time_zone: str = Field(default="UTC", sa_column=Column(Text, nullable=False))
    week_starts_on: str = Field(default="monday", sa_column=Column(Text, nullable=False))
    basis: str = Field(default="best", sa_column=Column(Text, nullable=False))  # metered | billed | best
    steps: list[int] = Field(sa_column=Column(JsonText, nullable=False))
    forecast_steps: list[int] = Field(sa_column=Column(JsonText, nullable=False))
    is_hard: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))
    severity: Severity = Field(sa_column=Column(EnumText(Severity), nullable=False))
    receivers: list[str] = Field(sa_column=Column(JsonText, nullable=False))
    runbook_url: str = Field(default="", sa_column=Column(Text, nullable=False))
    origin: str = Field(default="", sa_column=Column(Text, nullable=False))
    # Grows with every edit that re-arms the steps.
    revision: int = Field(default=1, sa_column=Column(Integer, nullable=False))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    updated_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    deleted_at: datetime | None = Field(default=None, sa_column=Column(Instant))


class BudgetStep(SQLModel, table=True):
    """A step that a budget has crossed in a period: the claim that makes it tell once."""

    __tablename__ = "budget_step"

    budget_id: str = Field(sa_column=Column(Text, primary_key=True))
    revision: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    period_start: datetime = Field(sa_column=Column(Instant, primary_key=True, autoincrement=False))
    kind: Kind = Field(sa_column=Column(EnumText(Kind), primary_key=True))
    step: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    crossed_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    alert_id: str | None = Field(default=None, sa_column=Column(Text))  # None: a higher step spoke for it


class Alert(SQLModel, table=True):
    """One time that a rule or budget step was so for one subject, with every transition and the sample behind it."""

    __tablename__ = "alert"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    # The order of appearance, for pages of a list.
    seq: int = Field(sa_column=Column(BigInteger, nullable=False, unique=True))
    rule_id: str = Field(sa_column=Column(Text, nullable=False))  # of the rule or budget; the system's name for external ones
    rule: str = Field(sa_column=Column(Text, nullable=False))
    kind: Kind = Field(sa_column=Column(EnumText(Kind), nullable=False))
    state: AlertState = Field(sa_column=Column(EnumText(AlertState), nullable=False))
    severity: Severity = Field(sa_column=Column(EnumText(Severity), nullable=False))
    scope: dict[str, Any] = Field(sa_column=Column(JsonText, nullable=False))
    # (rule, subject, step) while the alert is open, None afterwards: there is one open alert of each.
    open_key: str | None = Field(default=None, sa_column=Column(Text, unique=True))
    subject: str = Field(sa_column=Column(Text, nullable=False))
    value: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
    threshold: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
    step: int | None = Field(default=None, sa_column=Column(Integer))
    why: str = Field(sa_column=Column(Text, nullable=False))
    sample: dict[str, Any] = Field(sa_column=Column(JsonText, nullable=False))
    receivers: list[str] = Field(sa_column=Column(JsonText, nullable=False))
    runbook_url: str = Field(default="", sa_column=Column(Text, nullable=False))
    pending_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    fired_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    # The first time at which the condition of a firing alert no longer held; None while it holds.
    quiet_since: datetime | None = Field(default=None, sa_column=Column(Instant))
    resolved_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    # When its firing was told to somebody; None while a silence covers it.
    told_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    acknowledged_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    acknowledged_by: str = Field(default="", sa_column=Column(Text, nullable=False))
    # The alert whose notice speaks for this one too, where many fired at once.
    group_id: str | None = Field(default=None, sa_column=Column(Text))
    # External alerts end by themselves where nobody resolves them.
    expires_at: datetime | None = Field(default=None, sa_column=Column(Instant))

    __table_args__ = (Index("ix_alert_rule", "rule_id", "seq"), Index("ix_alert_group", "group_id"))


class Silence(SQLModel, table=True):
    """Alerts that match every matcher tell nobody meanwhile; with ``weekly`` a maintenance window that comes again."""

    __tablename__ = "silence"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    matchers: list[dict[str, str]] = Field(sa_column=Column(JsonText, nullable=False))
    starts_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    ends_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    # {"days": ["saturday"], "from": "22:00", "to": "04:00", "time_zone": "Europe/Berlin"}; within starts_at and ends_at.
    weekly: dict[str, Any] | None = Field(default=None, sa_column=Column(JsonText))
    comment: str = Field(default="", sa_column=Column(Text, nullable=False))
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    origin: str = Field(default="", sa_column=Column(Text, nullable=False))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    deleted_at: datetime | None = Field(default=None, sa_column=Column(Instant))


class WatchMark(SQLModel, table=True):
    """How far a rule has been judged without a gap; of another revision it is judged anew from what is stored."""

    __tablename__ = "watch_mark"

    rule_id: str = Field(sa_column=Column(Text, primary_key=True))
    revision: int = Field(sa_column=Column(Integer, nullable=False))
    judged_at: datetime = Field(sa_column=Column(Instant, nullable=False))


class WatchLease(SQLModel, table=True):
    """Which process judges; another may take over once the lease has run out."""

    __tablename__ = "watch_lease"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    holder: str = Field(sa_column=Column(Text, nullable=False))
    epoch: int = Field(sa_column=Column(BigInteger, nullable=False))
    expires_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    # The latest evaluation that was stored; an older one must not overwrite it.
    judged_at: datetime = Field(sa_column=Column(Instant, nullable=False))


class AuditEntry(SQLModel, table=True):
    """Who changed what, as it was before and after; rows are only ever added."""

    __tablename__ = "audit_entry"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    at: datetime = Field(sa_column=Column(Instant, nullable=False))
    actor: str = Field(sa_column=Column(Text, nullable=False))
    action: str = Field(sa_column=Column(Text, nullable=False))  # create | update | delete | acknowledge | …
    kind: str = Field(sa_column=Column(Text, nullable=False))  # alert-rule | budget | silence | alert | …
    object_id: str = Field(sa_column=Column(Text, nullable=False))
    before: dict[str, Any] | None = Field(default=None, sa_column=Column(JsonText))
    after: dict[str, Any] | None = Field(default=None, sa_column=Column(JsonText))
