"""The answers of the routes, field by field, as the OpenAPI description has them.

They are said here and not made from types of the routes: then every answer would be checked while somebody waits for it.
A test compares each with what a running service answers, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from collector.capture.native import event_schema
from models.charges import MeterKind
from models.ledger import Figures
from models.meters import MappedKind
from models.variance import Cause

Shape = dict[str, Any]
_MONEY = "an exact decimal, as text; null where it is not known"
# The kinds of fields: name of the keyword, the schema, and whether it may be null.
_KINDS: Mapping[str, Shape] = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "flag": {"type": "boolean"},
    "at": {"type": "string", "format": "date-time"},
    "day": {"type": "string", "format": "date"},
    "money": {"type": "string", "description": _MONEY},
    "texts": {"type": "array", "items": {"type": "string"}},
    "words": {"type": "object", "additionalProperties": {"type": "string"}},
    "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
    "figure": {"type": ["string", "integer"], "description": "text where it is money or a share, else a whole number"},
    "data": {"type": "object", "additionalProperties": True},
}


def _kind(name: str) -> Shape:
    """The schema of a kind; ``or_null`` at its end says that null is an answer too."""
    plain, maybe, _ = name.partition("_or_null")
    found = dict(_KINDS[plain])
    if maybe:
        kinds = found["type"]
        found["type"] = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
    return found


def ref(name: str) -> Shape:
    """That component."""
    return {"$ref": f"#/components/schemas/{name}"}


def _many(item: str | Shape) -> Shape:
    return {"type": "array", "items": ref(item) if isinstance(item, str) else item}


def _or_null(item: str | Shape) -> Shape:
    return {"oneOf": [ref(item) if isinstance(item, str) else item, {"type": "null"}]}


def _one_of(*values: str) -> Shape:
    return {"type": "string", "enum": list(values)}


def _shape(said: Mapping[str, str | Shape] | None = None, /, *, optional: str = "", more: bool | Shape | None = None, about: str = "", **kinds: str) -> Shape:
    """An object. Keywords are kinds with the names that have it; ``said`` holds the other fields, ``optional`` those that may be absent."""
    properties: Shape = {name: _kind(kind) for kind, names in kinds.items() for name in names.split()}
    properties |= {name: ref(one) if isinstance(one, str) else one for name, one in (said or {}).items()}
    absent = set(optional.split())
    shape: Shape = {"type": "object", "properties": properties, "required": [name for name in properties if name not in absent]}
    if more is not None:
        shape["additionalProperties"] = more
    if about:
        shape["description"] = about
    return shape


_STANDING = _one_of("provisional", "settling", "settled")
_CHEAPER: Shape = {"type": ["string", "null"], "enum": ["serverless", "managed_compute", None]}
# What a figure adds up from, by cause; only those that are not zero.
_CAUSES: Shape = {
    "type": "object",
    "properties": {cause.value: {"type": "string"} for cause in Cause},
    "additionalProperties": {"type": "string"},
    "description": "amounts by cause, only those that are not zero; they add up to the variance exactly",
}
_CURSOR: Shape = {"type": ["string", "null"], "description": "send it as cursor for the next page; null on the last"}
_BY_TYPE: Mapping[str, str] = {
    "Decimal": "money_or_null",
    "Decimal | None": "money_or_null",
    "int": "count",
    "bool": "flag",
    "str": "text",
    "str | None": "text_or_null",
    "Mapping[str, str]": "words",
}


def _figures() -> Shape:
    """A field more in the ledger's own value is a field more here."""
    said: dict[str, Shape] = {one.name: _STANDING if str(one.type) == "Standing" else _kind(_BY_TYPE[str(one.type)]) for one in fields(Figures)}
    return said | {"unknown_token_share": _kind("money_or_null"), "estimated_token_share": _kind("money_or_null")}


_SCOPE: Shape = {**_kind("data"), "description": "the names of the read filters with what they are limited to; empty is everything"}
_MATCHERS = _many(_shape(text="name value"))
_FINDING = _shape(text="kind subject detail remedy", text_or_null="currency", money_or_null="amount", count_or_null="count")
_AGREEMENT = {"causes": _CAUSES}
_EVENT_TEXTS = "handle id source workspace operation status tokens_quality"
_EVENT_COUNTS = "input_tokens output_tokens cached_input_tokens reasoning_output_tokens"
_SENDER = "key_id key source"
_COUNTED = "input_tokens output_tokens requests unpriced_tokens unknown_token_requests"
# What the lines behind a figure are, in both answers of /v1/explain.
_LINES: Mapping[str, str | Shape] = {"metered": _many("MeteredLine"), "billed": _many("BilledLine"), "bill_parts": _many("BillPart"), "data_age": "Reach"}


def _page(item: str) -> Shape:
    return _shape({"items": _many(item), "next_cursor": _CURSOR})


def _snapshot_parts() -> dict[str, str | Shape]:
    """What every kept report says of itself."""
    changed = _shape(text_or_null="currency was is delta", more={"type": ["string", "null"]}, about="what it is about, what it was and is, and the difference")
    return {
        "snapshot": _shape(
            text_or_null="id", count_or_null="number", text="sha256 reason", at="made_at", optional="reason", about="id is null where it is not kept"
        ),
        "restatement": {**_many(changed), "type": ["array", "null"], "description": "what it changes against the snapshot before it; null of the first"},
        "scope": _shape(texts="teams workspaces", optional="teams workspaces", about="what a report of a part is limited to"),
    }


def _report(unit: str) -> dict[str, Shape]:
    """The cost report of a day, week or month."""
    name, last = f"{unit.capitalize()}Report", f"last_{unit}"
    line = _shape(
        {"status": _STANDING},
        text_or_null="workspace deployment model mode team",
        money_or_null=f"cost billed_cost {last}_cost change change_percent core_hours",
        count=_COUNTED,
        flag="estimate",
        optional="workspace deployment model mode team",
    )
    total = _shape(
        {last: _shape(money_or_null="cost billed_cost"), "status": _STANDING},
        text_or_null="currency",
        money_or_null="cost billed_cost metered_cost change change_percent coverage core_hours",
        count=f"{_COUNTED} estimated_token_requests",
        words="reasons",
    )
    stretch = _shape({"status": _STANDING}, at="from to", money_or_null="cost")
    mover = _shape(text_or_null="workspace deployment model mode", money_or_null="change cost", text="reason", optional="workspace deployment model mode")
    currency = _shape(
        {
            "waterfall": _or_null(_shape(money_or_null=f"{last} volume mix price capacity idle corrections this_{unit}")),
            "hours" if unit == "day" else "days": _many(stretch),
            **{part: _many(f"{name}Line") for part in ("modes", "workspaces", "deployments", "teams")},
            "movers": _many(mover),
            "like_for_like": _or_null(
                _shape(texts=f"days days_last_{unit}", money_or_null=f"cost last_{unit}_cost change change_percent", about="over the billed days alone")
            ),
            "forecast": _or_null(_shape(money_or_null="month_to_date month_end", text_or_null="reason")),
            "reconciliation": _or_null("Agreement"),
        },
        text_or_null="currency",
    )
    whole = _shape(
        {
            "totals": _many(f"{name}Total"),
            "currencies": _many(f"{name}Currency"),
            "data_age": "Reach",
            "close_calls": _many("CloseCall"),
            "alerts": _many("ReportedAlert"),
            "budgets": _many("ReportedBudget"),
            "earlier": _many("EarlierReport"),
            **_snapshot_parts(),
            "standing": _one_of("provisional", "final"),
        },
        text=f"kind {unit} time_zone basis",
        at="from to",
        texts="provisional_days",
        counts="left_out",
        optional="scope restatement standing",
    )
    return {f"{name}Line": line, f"{name}Total": total, f"{name}Currency": currency, name: whole}


def components() -> dict[str, Shape]:
    """Every shape that an answer is made of, by its name."""
    figures = _figures()
    row = {"period_start": _kind("at"), "period_end": _kind("at"), **figures}
    shapes: dict[str, Shape] = {
        "Problem": {
            **_shape(
                {
                    "detail": {"type": "string", "description": "what happened, to what, and what to do"},
                    "error": {"type": "string", "description": "the class of the error, for programs"},
                },
                text="type title",
                count="status",
            ),
            "example": {"type": "about:blank", "title": "Unprocessable Entity", "status": 422, "detail": "basis must be one of …", "error": "invalid_input"},
        },
        "Figures": _shape(figures),
        "CostRow": _shape(row, more={"type": ["string", "null"]}, about="a row; beside its figures, one text for each name in group_by"),
        "Costs": _shape(
            {
                "rows": _many("CostRow"),
                "totals": {**_many("Figures"), "description": "one per currency, over all rows and not those of the page"},
                "next_cursor": _CURSOR,
            },
            at="from to",
            text="granularity basis time_zone",
            texts="group_by",
            at_or_null="as_of",
        ),
        # -- usage
        "UsageSent": event_schema(),
        "Stored": _shape(count="index", flag="duplicate", texts="flags", text="tokens_quality"),
        "Refused": _shape(count="index", text="error detail"),
        "Taken": _shape({"events": _many("Stored"), "rejected": _many("Refused")}, count="accepted duplicates ignored", optional="ignored"),
        "UsageEvent": _shape(
            text=_EVENT_TEXTS,
            text_or_null="deployment endpoint model mode reason application team",
            at="time received_at",
            at_or_null="started_at sent_time",
            flag="counted billable",
            count_or_null=_EVENT_COUNTS,
            texts="flags",
            words="tags",
            more=True,
            about="an event; beside these, whatever else its sender said of it",
        ),
        "ReceiptLine": _shape(
            text="meter", count_or_null="quantity", money_or_null="unit_price amount", text_or_null="unit price_currency price_version price_source reason"
        ),
        "Receipt": _shape(
            {"lines": _many("ReceiptLine"), "witnesses": _many(_kind("data"))},
            text=_EVENT_TEXTS,
            text_or_null="deployment endpoint model mode reason application team currency billed_share_reason",
            at="time received_at",
            at_or_null="started_at sent_time",
            day_or_null="billed_on",
            flag="counted billable estimate",
            count_or_null=_EVENT_COUNTS,
            money_or_null="expected_cost billed_share",
            texts="flags",
            words="tags",
            optional="witnesses",
            more=True,
        ),
        "Conflict": _shape({"differs": _many(_shape({"stands": {}, "sent": {}}, text="field"))}, text="workspace source id stands", at="received_at"),
        "Posting": _shape(text="event workspace kind", count="sign", text_or_null="instead batch author reason", at="made_at"),
        # -- what is looked at
        "Finding": _FINDING,
        "Reach": _shape(at_or_null="metered_until billed_until"),
        "DataAge": _shape({"sources": _many(_shape(text="kind name", at_or_null="reaches arrived_at"))}, at_or_null="metered_until billed_until"),
        "Source": _shape(
            text="kind name state message",
            at_or_null="last_success last_attempt data_until next_run",
            count_or_null="age_seconds rows calls throttles",
        ),
        "IntakeHour": _shape(at="period_start", count="accepted duplicates conflicts rejected"),
        "IntakeSender": _shape(
            text_or_null=_SENDER,
            text="format",
            count="accepted duplicates conflicts rejected ignored missing_tokens estimated_tokens",
            money_or_null="missing_token_share",
        ),
        "IntakeRefusal": _shape(
            {"samples": _many(_shape({"shape": {}}, at="seen_at", count_or_null="index", text="detail"))},
            text_or_null=_SENDER,
            text="format error fix",
            count="events",
        ),
        "Intake": _shape(
            {"hours": _many("IntakeHour"), "senders": _many("IntakeSender"), "refused": _many("IntakeRefusal")}, at="from to", count_or_null="arrived"
        ),
        "Deployment": _shape(
            {"mode": _one_of("serverless", "managed_compute", "unknown")},
            text="id workspace deployment",
            text_or_null="model sku region state authoritative_source",
            count_or_null="instance_count capacity_tokens_per_minute",
            at_or_null="retires_at",
            flag="confirmed",
        ),
        "WasteKind": _shape(count="requests input_tokens output_tokens unknown_token_requests", money_or_null="cost", text_or_null="reason", flag="estimate"),
        "WasteRow": _shape(
            {"waste": {"type": "object", "additionalProperties": ref("WasteKind")}},
            text_or_null="workspace deployment currency",
            count="requests answered filtered",
            money_or_null="filtered_share",
            counts="finish_reasons",
        ),
        "Waste": _shape({"rows": _many("WasteRow")}, at="from to"),
        "WitnessRow": _shape(
            at="period_start",
            text="kind measure service",
            text_or_null="workspace deployment model scope note",
            count="witnessed counted difference",
            money_or_null="share",
            flag="disagrees",
        ),
        "Witnesses": _shape({"rows": _many("WitnessRow")}, at="from to"),
        # -- why
        "MeteredLine": _shape(
            text="meter",
            text_or_null="workspace deployment unit price_currency price_version price_source currency reason",
            money="quantity counted",
            money_or_null="unit_price exchange_rate amount",
        ),
        "BilledLine": _shape(
            text="meter bill_part",
            text_or_null="workspace deployment currency",
            money="amount counted",
            count="rows",
            day="first_day last_day",
            flag="estimate",
        ),
        "BillPart": _shape(text="id month source", text_or_null="subscription file billed_for", at="landed_at"),
        "Explanation": _shape(
            {**_LINES, "totals": _many(_shape({**figures, "counted": _kind("money_or_null")}))},
            text="basis formula curl",
            at="from to",
            at_or_null="as_of",
            count="more_lines",
        ),
        "Term": _shape(text="name", figure_or_null="value", text_or_null="unit"),
        "FigureExplained": _shape(
            {**_LINES, "terms": _many("Term"), "rows": _many("Term")},
            text="figure words formula curl",
            text_or_null="unit reason",
            figure_or_null="value",
            count="more_rows more_lines",
            flag="adds_up",
            optional="metered billed bill_parts more_lines",
        ),
        # -- the bill against metering
        "ReconciliationRow": _shape(
            {"causes": _CAUSES},
            text="meter state",
            text_or_null="workspace deployment currency",
            day="day",
            money_or_null="expected billed invoiced variance metered_quantity billed_quantity",
            count="unknown_token_requests",
            flag="estimate",
            at_or_null="overdue_since",
            words="reasons",
        ),
        "ReconciliationTotal": _shape(
            {"causes": _CAUSES},
            text_or_null="currency",
            money_or_null="expected billed invoiced variance unexplained coverage unknown_token_share",
            count="rows requests unknown_token_requests",
            words="reasons",
        ),
        "Reconciliation": _shape({"rows": _many("ReconciliationRow"), "totals": _many("ReconciliationTotal"), "next_cursor": _CURSOR}, at="from to"),
        "MonthClose": _shape(
            {"totals": _many(_shape(text_or_null="currency", money_or_null="expected billed invoiced", words="reasons"))},
            text="month closed_by software",
            at="closed_at",
            data="versions",
        ),
        "Adjustment": _shape(day="day", text_or_null="workspace deployment currency", text="meter side cause", money="amount"),
        "WorklistItem": _shape(
            {"causes": _CAUSES},
            text="id month meter state owner note",
            text_or_null="workspace deployment currency signed_by",
            money_or_null="expected billed variance left",
            count="days",
            flag="is_material",
            at_or_null="signed_at",
            words="changed_since_signed",
        ),
        "Invoice": _shape(
            text_or_null="invoice_id reason",
            text="currency",
            money="in_scope out_of_scope credits tax total",
            money_or_null="stated difference",
            count="rows",
            texts="subscriptions",
        ),
        "InvoiceStated": _shape(text="invoice_id currency", money="stated tax"),
        "Meter": _shape(
            {"route": _one_of("marketplace", "foundry", "compute"), "kind": _one_of(*MeterKind)},
            text="meter unit currency",
            text_or_null="offer mapping_id model problem",
            flag="is_fine_tuned is_unit_known",
            money="billed_cost",
            count="rows",
            day="first_on last_on",
        ),
        "MeterMapping": _shape(
            {"kind": _one_of(*MappedKind)}, text="id meter note author", text_or_null="offer unit", at_or_null="valid_from valid_to", at="known_from"
        ),
        "Lag": _shape(text="subscription route", text_or_null="meter", day="billed_until", count="usual_lag_seconds landings", at_or_null="overdue_since"),
        # -- serverless against managed compute
        "ServerlessSide": _shape(
            {"list_price_per_1m": _shape(money_or_null="input output at_mix")},
            money_or_null="effective_cost_per_1m unknown_token_share estimated_token_share cost",
            count="tokens",
            count_or_null="tokens_per_minute_limit",
            flag_or_null="feasible",
            text_or_null="reason limit_source",
            at_or_null="retires_at",
        ),
        "ManagedSide": _shape(
            {"effective_cost_per_1m": _shape(money_or_null="allocation usage")},
            money_or_null="unknown_token_share estimated_token_share capacity_cost allocated_cost idle_cost idle_cost_per_day utilisation gpu_utilisation "
            "gpu_memory_utilisation core_hours",
            count="tokens",
            count_or_null="capacity_tokens_per_day instances instances_needed vcpus_needed vcpus_left gpu_hours_told",
            flag_or_null="feasible",
            text_or_null="utilisation_method gpu_reason reason feasible_reason vcpu_quota",
        ),
        "WhatIf": _shape(
            {
                "serverless": _shape(flag_or_null="feasible", text_or_null="reason"),
                "managed_compute": _shape(
                    flag_or_null="feasible",
                    text_or_null="reason vcpu_quota",
                    count_or_null="capacity_tokens_per_day instances_needed vcpus_needed vcpus_left",
                ),
                "cheaper": _CHEAPER,
            },
            money_or_null="capacity_cost_per_day saving_per_day",
            count_or_null="break_even_tokens_per_day",
            flag_or_null="break_even_reachable",
            text_or_null="reason",
        ),
        "ComparisonRow": _shape(
            {
                "serverless": "ServerlessSide",
                "managed_compute": "ManagedSide",
                "cheaper": _CHEAPER,
                "days": {"type": "number", "description": "a length of time"},
                "standing": _STANDING,
                "what_if": _or_null("WhatIf"),
            },
            text_or_null="model currency reason",
            count_or_null="break_even_tokens_per_day tokens_per_day peak_minute_tokens peak_hour_tokens",
            flag_or_null="break_even_reachable",
            money_or_null="mix_input_share saving_per_day",
        ),
        "Comparison": _shape({"rows": _many("ComparisonRow"), "next_cursor": _CURSOR}, at="from to"),
        # -- prices
        "Price": _shape(
            text="meter currency unit source version author origin",
            text_or_null="model workspace sku region",
            money="unit_price",
            at_or_null="valid_from valid_to",
            at="known_from",
        ),
        "WaitingPrice": _shape(
            text="id meter currency unit source version author reason",
            text_or_null="model workspace sku region decision decided_by",
            money="unit_price",
            at="arrived_at",
            at_or_null="valid_from valid_to decided_at",
        ),
        # -- quotas and admission
        "LimitSaid": _shape(text="source", text_or_null="evidence author", flag="counts", count_or_null="limit", at="known_from", at_or_null="seen_at"),
        "Pool": _shape(
            {
                "limits_said": _many("LimitSaid"),
                "readings": {
                    "type": ["object", "null"],
                    "additionalProperties": _kind("counts"),
                    "description": "a minute's worth by what counts and by window",
                },
                "left_said": _or_null(_shape(count="left", at="at")),
                "admitted_peak": _or_null(_shape(count_or_null="value", at_or_null="at since")),
                "deployments": {**_kind("texts"), "type": ["array", "null"]},
                "throttled_callers": _many(_shape(text="by caller", count="requests")),
                "users": _many(_shape(text="name", count="used")),
            },
            text="id kind measure",
            text_or_null="workspace deployment model mode subscription region family source level limit_source limit_note reason counting",
            count_or_null="limit used headroom upgrade_reserved peak",
            flag_or_null="has_room",
            counts="throttled_last_hour",
            at_or_null="peak_at saturation_at deletes_at retires_at seen_at",
        ),
        "Verdict": _shape(flag="allow", text_or_null="reason", count_or_null="retry_after_seconds remaining", at="as_of", text="overshoot"),
        "Denied": _shape({"items": _many(_shape(text_or_null="workspace deployment", text="reason", count_or_null="retry_after_seconds"))}),
        # -- rules, budgets, silences, alerts
        "Rule": _shape(
            {"scope": _SCOPE},
            text="id name kind severity no_data origin runbook_url",
            figure_or_null="threshold threshold_percent clear_threshold",
            count="for_seconds keep_firing_for_seconds max_alerts revision",
            count_or_null="window_seconds",
            texts="receivers",
            flag="enabled",
            at="created_at updated_at",
        ),
        "Firing": _shape({"scope": _SCOPE}, at="fired_at", at_or_null="resolved_at", figure_or_null="peak", text="why", figure="step", optional="step"),
        "Trial": _shape(
            {
                "firings": _many("Firing"),
                "lines": _many(_shape({"scope": _SCOPE, "points": _many({"type": "array", "items": _kind("figure_or_null")})}, figure_or_null="threshold")),
            },
            at="from to",
            text="unit",
            texts="notes",
        ),
        "Silence": _shape(
            {"matchers": _MATCHERS, "weekly": {**_kind("data"), "type": ["object", "null"]}},
            text="id comment author origin state",
            at="starts_at ends_at created_at",
        ),
        "Alert": _shape(
            {"scope": _SCOPE, "sample": _kind("data_or_null")},
            text="id kind state severity why",
            text_or_null="rule_id rule acknowledged_by group_id runbook_url explain_url silenced_by",
            figure_or_null="value threshold",
            count_or_null="step",
            flag="silenced",
            at="pending_at",
            at_or_null="fired_at resolved_at told_at acknowledged_at expires_at",
        ),
        "ExternalTaken": _shape(count="accepted ignored duplicates", text="id reason", optional="ignored duplicates id reason"),
        "AuditEntry": _shape(text="id actor action kind object_id", at="at", data_or_null="before after"),
        # -- receivers and schedules
        "Receiver": _shape(
            {"matchers": _MATCHERS},
            text="id name url format origin",
            texts="workspaces severities",
            flag="default enabled",
            text_or_null="disabled_reason",
            count="failures",
            at_or_null="rests_until previous_secret_until",
            at="created_at updated_at",
        ),
        "Delivery": _shape(
            {
                "status": _one_of("pending", "delivered", "failed"),
                "attempt_list": _many(_shape(at="at", count_or_null="status duration_ms", text_or_null="error")),
            },
            text="id webhook_id type",
            text_or_null="alert_id last_error",
            count="attempts",
            count_or_null="last_status",
            at="created_at",
            at_or_null="next_attempt_at delivered_at",
        ),
        "Schedule": _shape(
            {"report": _one_of("daily", "weekly", "monthly", "close")},
            text="id name time_zone folder container error origin",
            count="hours_after",
            texts="workspaces teams receivers attach",
            flag="enabled",
            at="created_at updated_at",
        ),
        "ReportPlace": _shape(text="path state", text_or_null="error"),
        "ReportDelivery": _shape(
            {
                "notices": _many(_shape(text="id receiver status error", count="attempts")),
                "folder": _or_null("ReportPlace"),
                "container": _or_null("ReportPlace"),
            },
            text="id period",
            texts="missed",
            text_or_null="slot snapshot asked_by",
            at="made_at",
        ),
        "SchedulePreview": _shape(
            {"receivers": _many(_shape(text="id name format reason"))},
            text="schedule period subject summary",
            texts="attach",
            text_or_null="folder container",
        ),
        # -- reports
        "Agreement": _shape(_AGREEMENT, money_or_null="expected billed variance unexplained coverage"),
        # Of packs that were kept before rows knew their invoices it is not known.
        "CloseAgreement": _shape(
            _AGREEMENT, money_or_null="expected billed invoiced variance unexplained coverage", words="reasons", optional="invoiced reasons"
        ),
        "CloseCall": _shape(
            text="measure",
            text_or_null="workspace deployment pool limit_source",
            count_or_null="limit peak",
            at_or_null="peak_at",
            money_or_null="percent",
            count="throttled_requests",
        ),
        "ReportedAlert": _shape(text="rule kind subject severity why", count="times", at="first_at", at_or_null="resolved_at"),
        "ReportedBudget": _shape(
            {"scope": _SCOPE},
            text="name period basis currency",
            at="from to",
            money="amount spent",
            money_or_null="percent expected low high expected_percent",
            text_or_null="reason",
        ),
        "EarlierReport": _shape(text="period", text_or_null="currency", money_or_null="told now difference", at="told_at"),
        "JournalEntry": _shape(
            {"lines": _many(_shape(text_or_null="cost_center", text="account", money="debit credit exact"))},
            text="entry",
            day_or_null="date",
            money="debits credits",
        ),
        "ClosePack": _shape(
            {
                "standing": _one_of("provisional", "final"),
                "totals": _many(_shape({"status": _STANDING}, text_or_null="currency", money_or_null="cost billed_cost booked rounding")),
                "currencies": _many(_shape({"entries": _many("JournalEntry"), "reconciliation": _or_null("CloseAgreement")}, text_or_null="currency")),
                "adjustments": _many("Adjustment"),
                "data_age": "Reach",
                **_snapshot_parts(),
            },
            text="kind month time_zone basis",
            text_or_null="closed_by",
            at="from to settles_at",
            at_or_null="known_at",
            count="unpriced_tokens unknown_token_requests",
            money_or_null="unknown_token_share",
            optional="scope restatement data_age",
        ),
        "Rerate": _shape(
            text="month",
            text_or_null="team currency",
            money="metered_cost_now metered_cost_then difference",
            count="unpriced_tokens_now unpriced_tokens_then",
            flag="is_closed",
        ),
        "Rerates": _shape({"rows": _many("Rerate"), "rows_if_accepted": _many("Rerate")}, texts="waiting"),
        "VoidedEvent": _shape(text="handle id source", text_or_null="deployment", at="time", flag="counted", count_or_null="input_tokens output_tokens"),
        "Voided": _shape(
            {
                "reversed": _many("VoidedEvent"),
                "already_void": _many("VoidedEvent"),
                "totals": _many(_shape(text_or_null="currency", money_or_null="metered_cost", count="requests input_tokens output_tokens")),
            },
            flag="dry_run",
            text_or_null="batch",
            texts="not_found",
        ),
        "Version": _shape(text="version schema"),
    }
    for unit in ("day", "week", "month"):
        shapes |= _report(unit)
    spent = _shape(
        text="period_start period_end status",
        money="spent used_percent remaining",
        money_or_null="unknown_token_share estimated_token_share",
        count="unpriced_tokens unknown_token_requests",
        words="reasons",
    )
    budget = _shape(
        {"scope": _SCOPE, "steps": _many(_kind("count")), "forecast_steps": _many(_kind("count"))},
        text="id name currency period time_zone week_starts_on basis severity origin runbook_url",
        money="amount",
        flag="hard",
        texts="receivers",
        count="revision",
        at="created_at updated_at",
    )
    ahead = _shape(money_or_null="expected low high error_percent", count="complete_days trials", text_or_null="reason")
    shapes["Budget"] = {**budget, "properties": budget["properties"] | spent["properties"], "required": [*budget["required"], *spent["required"]]}
    forecast = {**shapes["Budget"], "properties": shapes["Budget"]["properties"] | {"forecast": ahead}}
    shapes["BudgetAhead"] = {**forecast, "required": [*forecast["required"], "forecast"]}
    secret = {"secret": _kind("text"), "routing_key": _kind("text_or_null")}
    shapes["ReceiverMade"] = {
        **shapes["Receiver"],
        "properties": shapes["Receiver"]["properties"] | secret,
        "required": [*shapes["Receiver"]["required"], "secret"],
    }
    return shapes | {f"{name}Page": _page(name) for name in sorted(set(_PAGES.values()))}


# Lists, by their route.
_PAGES: Mapping[str, str] = {
    "/v1/adjustments": "Adjustment",
    "/v1/alert-rules": "Rule",
    "/v1/alerts": "Alert",
    "/v1/audit-trail": "AuditEntry",
    "/v1/budgets": "Budget",
    "/v1/closes": "MonthClose",
    "/v1/deployments": "Deployment",
    "/v1/invoices": "Invoice",
    "/v1/lags": "Lag",
    "/v1/meters": "Meter",
    "/v1/meters/mappings": "MeterMapping",
    "/v1/onboarding": "Finding",
    "/v1/prices": "Price",
    "/v1/prices/waiting": "WaitingPrice",
    "/v1/problems": "Finding",
    "/v1/quotas": "Pool",
    "/v1/report-schedules": "Schedule",
    "/v1/report-schedules/{schedule_id}/deliveries": "ReportDelivery",
    "/v1/silences": "Silence",
    "/v1/sources": "Source",
    "/v1/usage": "UsageEvent",
    "/v1/usage/conflicts": "Conflict",
    "/v1/usage/postings": "Posting",
    "/v1/webhooks": "Receiver",
    "/v1/webhooks/{receiver_id}/deliveries": "Delivery",
    "/v1/worklist": "WorklistItem",
}
# All else that answers in JSON, by method and route.
_ANSWERS: Mapping[str, str] = {
    "get /version": "Version",
    "get /v1/admission/denied": "Denied",
    "post /v1/admission": "Verdict",
    "get /v1/alert-rules/{rule_id}": "Rule",
    "post /v1/alert-rules": "Rule",
    "put /v1/alert-rules/{rule_id}": "Rule",
    "post /v1/alert-rules/backtest": "Trial",
    "get /v1/alerts/{alert_id}": "Alert",
    "post /v1/alerts/litellm": "ExternalTaken",
    "post /v1/usage": "Taken",
    "post /v1/usage/openai": "Taken",
    "post /v1/usage/litellm": "Taken",
    "post /v1/usage/azure": "Taken",
    "post /v1/alerts/{alert_id}/acknowledge": "Alert",
    "get /v1/budgets/{budget_id}": "BudgetAhead",
    "post /v1/budgets": "Budget",
    "put /v1/budgets/{budget_id}": "Budget",
    "post /v1/budgets/backtest": "Trial",
    "get /v1/comparison": "Comparison",
    "get /v1/costs": "Costs",
    "get /v1/data-age": "DataAge",
    "put /v1/deployments/{deployment_id}": "Deployment",
    "get /v1/intake": "Intake",
    "put /v1/invoices/{invoice_id}": "InvoiceStated",
    "post /v1/meters/mappings": "MeterMapping",
    "post /v1/prices/preview": "Rerates",
    "post /v1/usage/void": "Voided",
    "post /v1/prices/waiting/{waiting_id}/{decision}": "WaitingPrice",
    "put /v1/quotas/{pool_id}": "Pool",
    "get /v1/reconciliation": "Reconciliation",
    "post /v1/report-schedules": "Schedule",
    "put /v1/report-schedules/{schedule_id}": "Schedule",
    "get /v1/report-schedules/{schedule_id}/preview": "SchedulePreview",
    "post /v1/report-schedules/{schedule_id}/send": "ReportDelivery",
    "get /v1/reports/close": "ClosePack",
    "get /v1/reports/daily": "DayReport",
    "get /v1/reports/monthly": "MonthReport",
    "get /v1/reports/weekly": "WeekReport",
    "get /v1/silences/{silence_id}": "Silence",
    "post /v1/silences": "Silence",
    "put /v1/silences/{silence_id}": "Silence",
    "post /v1/silences/{silence_id}/expire": "Silence",
    "get /v1/usage/{event_id}": "Receipt",
    "get /v1/waste": "Waste",
    "post /v1/webhooks": "ReceiverMade",
    "get /v1/webhooks/{receiver_id}": "Receiver",
    "put /v1/webhooks/{receiver_id}": "Receiver",
    "post /v1/webhooks/{receiver_id}/rotate": "ReceiverMade",
    "post /v1/webhooks/{receiver_id}/test": "Delivery",
    "post /v1/webhooks/{receiver_id}/deliveries/{delivery_id}/replay": "Delivery",
    "get /v1/witnesses": "Witnesses",
    "put /v1/worklist/{item_id}": "WorklistItem",
}

_EITHER: Mapping[str, tuple[str, ...]] = {
    "get /v1/explain": ("Explanation", "FigureExplained"),
    "get /v1/reports/shared/{token}": ("DayReport", "WeekReport", "MonthReport", "ClosePack"),
}


def answer_of(method: str, path: str) -> Shape | None:
    """What a route answers with when all goes well; None where that is no JSON."""
    either = _EITHER.get(f"{method} {path}")
    if either is not None:
        return {"oneOf": [ref(one) for one in either]}
    if method == "get" and path in _PAGES:
        return ref(f"{_PAGES[path]}Page")
    name = _ANSWERS.get(f"{method} {path}")
    return None if name is None else ref(name)
