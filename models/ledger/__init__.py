"""Every number that anyone sees: costs, usage, receipts, forecasts, data age. Reads, never writes.

Page, API, report, export and alert call these functions; two places that sum money would be a defect. The one other
pair of eyes is ``models.audit``, which shares no code with this package.
"""

from models.ledger.alerts import BudgetStanding, ReceiverStanding, TrailEntry, alert_rules, alerts, budget_standings, explain_query, receivers, silences, trail
from models.ledger.billed import Reading
from models.ledger.closepack import ClosePack, close_pack
from models.ledger.closing import Adjustment, ClosedMonth, ClosedTotal, adjustments, close_month, closed_months, reopen_month
from models.ledger.comparison import ComparisonRow, WhatIf, WhatIfAnswer, comparison, what_if_from
from models.ledger.context import AlertSeen, BudgetLine, CloseCall, Context, TrueUp, context
from models.ledger.costs import costs
from models.ledger.deployments import Deployment, deployment, deployments, settings_known
from models.ledger.events import receipt, usage_list
from models.ledger.explain import FORMULA, BilledLine, Explanation, MeteredLine, counted_in, explain
from models.ledger.focus import FocusLine, FocusMonth, focus_lines, focus_month
from models.ledger.hours import instance_hours
from models.ledger.insight import choices, data_age, forecast
from models.ledger.invoices import Invoice, invoices
from models.ledger.lags import Lag, lags
from models.ledger.meters import Meters, MeterUse, meter_mappings, meters
from models.ledger.onboarding import onboarding
from models.ledger.quotas import Pool, Pressure, pool_place, pressure, quotas
from models.ledger.reconciliation import Reconciliation, ReconciliationRow, ReconciliationTotal, invoiced_of, reconciliation
from models.ledger.reporting import ScheduleStanding, Sent, periods_of, report_schedules
from models.ledger.rerating import Rerate, rerated, waiting_prices
from models.ledger.since import Moved, before_last_landing, moved_since
from models.ledger.sources import Source, sources
from models.ledger.spans import span_of
from models.ledger.taken_back import ConflictRecord, DoubleSource, PostingRecord, conflicts, double_sources, postings
from models.ledger.values import (
    BASES,
    GROUPS,
    Basis,
    Choices,
    CostQuery,
    CostRow,
    CostTable,
    DataAge,
    Figures,
    Filters,
    Forecast,
    Problem,
    Receipt,
    ReceiptLine,
    SourceAge,
    Standing,
    UsagePage,
    UsageRecord,
)
from models.ledger.waste import WasteRow, waste
from models.ledger.weekly import Change, CurrencyWeek, Line, Unit, Waterfall, Week, WeeklyReport, week_of, weekly
from models.ledger.why import CAUSES, FIGURES, OWN, UNCURRENCIED, Ask, Kind, Term, Why, query_parameters, why
from models.ledger.witnesses import WitnessRow, problems, witness_rows
from models.ledger.worklist import WorklistItem, worklist, worklist_item

__all__ = [
    "BASES",
    "CAUSES",
    "FIGURES",
    "FORMULA",
    "GROUPS",
    "OWN",
    "UNCURRENCIED",
    "Adjustment",
    "AlertSeen",
    "Ask",
    "Basis",
    "BilledLine",
    "BudgetLine",
    "BudgetStanding",
    "Change",
    "Choices",
    "CloseCall",
    "ClosePack",
    "ClosedMonth",
    "ClosedTotal",
    "ComparisonRow",
    "ConflictRecord",
    "Context",
    "CostQuery",
    "CostRow",
    "CostTable",
    "CurrencyWeek",
    "DataAge",
    "Deployment",
    "DoubleSource",
    "Explanation",
    "Figures",
    "Filters",
    "FocusLine",
    "FocusMonth",
    "Forecast",
    "Invoice",
    "Kind",
    "Lag",
    "Line",
    "MeterUse",
    "MeteredLine",
    "Meters",
    "Moved",
    "Pool",
    "PostingRecord",
    "Pressure",
    "Problem",
    "Reading",
    "Receipt",
    "ReceiptLine",
    "ReceiverStanding",
    "Reconciliation",
    "ReconciliationRow",
    "ReconciliationTotal",
    "Rerate",
    "ScheduleStanding",
    "Sent",
    "Source",
    "SourceAge",
    "Standing",
    "Term",
    "TrailEntry",
    "TrueUp",
    "Unit",
    "UsagePage",
    "UsageRecord",
    "WasteRow",
    "Waterfall",
    "Week",
    "WeeklyReport",
    "WhatIf",
    "WhatIfAnswer",
    "Why",
    "WitnessRow",
    "WorklistItem",
    "adjustments",
    "alert_rules",
    "alerts",
    "before_last_landing",
    "budget_standings",
    "choices",
    "close_month",
    "close_pack",
    "closed_months",
    "comparison",
    "conflicts",
    "context",
    "costs",
    "counted_in",
    "data_age",
    "deployment",
    "deployments",
    "double_sources",
    "explain",
    "explain_query",
    "focus_lines",
    "focus_month",
    "forecast",
    "instance_hours",
    "invoiced_of",
    "invoices",
    "lags",
    "meter_mappings",
    "meters",
    "moved_since",
    "onboarding",
    "periods_of",
    "pool_place",
    "postings",
    "pressure",
    "problems",
    "query_parameters",
    "quotas",
    "receipt",
    "receivers",
    "reconciliation",
    "reopen_month",
    "report_schedules",
    "rerated",
    "settings_known",
    "silences",
    "sources",
    "span_of",
    "trail",
    "usage_list",
    "waiting_prices",
    "waste",
    "week_of",
    "weekly",
    "what_if_from",
    "why",
    "witness_rows",
    "worklist",
    "worklist_item",
]
