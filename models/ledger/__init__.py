"""Every number that anyone sees: costs, usage, receipts, forecasts, data age. Reads, never writes.

Page, API, report, export and alert call these functions; two places that sum money would be a defect. The one other
pair of eyes is ``models.audit``, which shares no code with this package.
"""

from models.ledger.comparison import ComparisonRow, WhatIf, comparison
from models.ledger.costs import costs
from models.ledger.deployments import Deployment, deployment, deployments, settings_known
from models.ledger.events import receipt, usage_list
from models.ledger.hours import instance_hours
from models.ledger.insight import choices, data_age, forecast, problems
from models.ledger.reconciliation import Reconciliation, ReconciliationRow, ReconciliationTotal, reconciliation
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
from models.ledger.weekly import Change, CurrencyWeek, Line, Waterfall, Week, WeeklyReport, week_of, weekly

__all__ = [
    "BASES",
    "GROUPS",
    "Basis",
    "Change",
    "Choices",
    "ComparisonRow",
    "CostQuery",
    "CostRow",
    "CostTable",
    "CurrencyWeek",
    "DataAge",
    "Deployment",
    "Figures",
    "Filters",
    "Forecast",
    "Line",
    "Problem",
    "Receipt",
    "ReceiptLine",
    "Reconciliation",
    "ReconciliationRow",
    "ReconciliationTotal",
    "SourceAge",
    "Standing",
    "UsagePage",
    "UsageRecord",
    "Waterfall",
    "Week",
    "WeeklyReport",
    "WhatIf",
    "choices",
    "comparison",
    "costs",
    "data_age",
    "deployment",
    "deployments",
    "forecast",
    "instance_hours",
    "problems",
    "receipt",
    "reconciliation",
    "settings_known",
    "usage_list",
    "week_of",
    "weekly",
]
