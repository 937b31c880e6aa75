"""What is watched: budgets against what is spent and likely, and rules; an admin makes, changes and deletes them here."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import acts, tables, text
from dashboard.shell import Failure, View, age_line, card, failure_panel
from models.alerts import AlertRule, Kind, Severity
from models.ledger import BudgetStanding

PATH = "rules"
NAME = "Rules"
GROUP = "Operations"

_MOST_RULES = 60
_PERIODS = ("month", "day", "week", "quarter", "year")
_MADE_ELSEWHERE = frozenset({Kind.BUDGET, Kind.BUDGET_FORECAST, Kind.EXTERNAL})  # by budgets and other systems


def layout(view: View) -> list[Component]:
    """Two questions to the ledger: budgets and rules."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div([html.H1("Rules and budgets"), html.P("What is watched, and from where on somebody is told", className="subtitle")], className="heading"),
        age_line(age, view.now),
    ]
    budgets = view.ask("the budgets", lambda: view.ledger.budgets(visible=view.visible, now=view.now))
    rules = view.ask("the rules", lambda: view.ledger.alert_rules(visible=view.visible))
    return [
        *head,
        failure_panel(budgets, view.here) if isinstance(budgets, Failure) else _budgets(view, budgets),
        *([_new_budget(view)] if view.may_act else []),
        failure_panel(rules, view.here) if isinstance(rules, Failure) else _rules(view, rules),
        *([_new_rule(view)] if view.may_act else []),
    ]


# -- budgets --------------------------------------------------------------------------------------


def _budgets(view: View, found: Sequence[BudgetStanding]) -> Component:
    if not found:
        step = "Make the first one below" if view.may_act else "An admin makes one on this page"
        return card("Budgets", html.P(f"None yet. {step}, or keep them in a file: meterbridge apply -f alerts.yaml"), name="wide")
    columns = [
        tables.Column("Budget"),
        tables.Column("Period"),
        tables.Column("Spent", is_number=True),
        tables.Column("Amount", is_number=True),
        tables.Column("Used", title="spent, the likely end (P10 to P90) as a band, the amount as a mark"),
        tables.Column("Likely end", is_number=True, title="P10 to P90"),
        tables.Column("Accuracy", title="mean error of the forecast when tried on the past"),
        tables.Column("Steps"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(one: BudgetStanding) -> list[tables.Cell]:
        budget, outlook = one.budget, one.outlook

        def figure(name: str, value: Decimal | None, unit: str | None = budget.currency) -> Component:
            return view.figure(name, value, unit, budget=budget.id)

        band: list[str | Component] = []
        if outlook.low is not None and outlook.high is not None:
            band = [figure("budget_low", outlook.low), " – ", figure("budget_high", outlook.high)]
        return [
            html.Span([tables.named(budget.name), " (hard)" if budget.is_hard else ""]),
            text.span(one.spend.period),
            figure("budget_spent", one.spend.amount),
            figure("budget_amount", budget.amount),
            [_bar(one), " ", figure("budget_share", one.share, None)],
            band or (outlook.reason or text.UNKNOWN),
            f"±{outlook.error_percent:.0f} % in {outlook.trials} tries" if outlook.error_percent is not None else "",
            ", ".join(f"{step} %" for step in budget.steps),
            *([html.Span(_budget_acts(view, one), className="acts")] if view.may_act else []),
        ]

    return card("Budgets", tables.table(columns, [cells(one) for one in found], caption="Budgets"), name="wide")


def _bar(one: BudgetStanding) -> Component:
    """Spent against the amount; the band of the likely end, and the amount as a mark, to one scale."""
    low, high, spent, amount = one.outlook.low, one.outlook.high, one.spend.amount, one.budget.amount
    whole = max(amount, high or Decimal(0), spent, Decimal(1))

    def at(value: Decimal) -> str:
        return f"{max(value, Decimal(0)) / whole * 100:.1f}%"

    parts: list[Component] = [html.Div(className="bar-spent over" if spent > amount else "bar-spent", style={"width": at(spent)})]
    if low is not None and high is not None:
        parts.append(html.Div(className="bar-band", style={"left": at(low), "width": at(high - low)}))
    parts.append(html.Div(className="bar-mark", style={"left": at(amount)}))
    return html.Div(
        parts, className="budget-bar", title=f"{text.percent(one.share)} of the amount", **text.spoken(f"{text.percent(one.share)} of the amount is spent")
    )


def _budget_acts(view: View, one: BudgetStanding) -> list[Component]:
    budget = one.budget
    fields = [
        _text("Name", "name", budget.name),
        _text("Amount", "amount", f"{budget.amount:f}"),
        _text("Steps, %", "steps", ", ".join(map(str, budget.steps))),
    ]
    return [
        html.Details([html.Summary("Edit"), acts.form(view.prefix, "replace-budget", "Save", back=PATH, fields=fields, name="fields", id=budget.id)]),
        _delete(view, "delete-budget", budget.id),
    ]


def _new_budget(view: View) -> Component:
    fields = [
        _text("Name", "name", needed=True),
        _text("Amount", "amount", needed=True),
        _text("Currency", "currency", "USD", needed=True),
        _one_of("Period", "period", _PERIODS),
        _text("Workspace", "workspace", hint="all"),
        _text("Team", "team", hint="all"),
        _text("Steps, %", "steps", "50, 80, 100"),
        _one_of("Stops calls", "hard", ("no", "yes")),
    ]
    return card(
        "A new budget",
        acts.form(view.prefix, "create-budget", "Make the budget", back=PATH, fields=fields, name="fields"),
        note="Somebody is told once per period at each step.",
        name="wide",
    )


# -- rules ----------------------------------------------------------------------------------------


def _rules(view: View, found: Sequence[AlertRule]) -> Component:
    if not found:
        return card("Rules", html.P("None yet. Rules for a deployment are made by themselves once usage of it arrives."), name="wide")
    columns = [
        tables.Column("Rule"),
        tables.Column("State"),
        tables.Column("Watches"),
        tables.Column("From"),
        tables.Column("For"),
        tables.Column("Severity"),
        tables.Column("Made by"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(rule: AlertRule) -> list[tables.Cell]:
        limit = f"{_number(rule.threshold_percent)} % of the limit" if rule.threshold_percent is not None else _number(rule.threshold)
        scope = ", ".join(f"{key} {value}" for key, value in rule.scope.items()) or "everything"
        return [
            tables.named(rule.name),
            html.Span("on" if rule.is_enabled else "off", className=f"pill {'settled' if rule.is_enabled else 'provisional'}"),
            html.Span(f"{text.words(rule.kind.value)}: {text.visible(scope)}", className="wrap"),
            limit,
            f"{rule.for_seconds} s" if rule.for_seconds else "at once",
            rule.severity.value,
            {"builtin": "meterbridge", "apply": "a file"}.get(rule.origin, "hand"),
            *([html.Span(_rule_acts(view, rule), className="acts")] if view.may_act else []),
        ]

    note = (
        f"The first {_MOST_RULES} of {len(found)}." if len(found) > _MOST_RULES else "Try a rule on the past before saving it: POST /v1/alert-rules/backtest."
    )
    return card("Rules", tables.table(columns, [cells(rule) for rule in found[:_MOST_RULES]], caption="Rules"), note=note, name="wide")


def _rule_acts(view: View, rule: AlertRule) -> list[Component]:
    fields = [
        _text("Name", "name", rule.name),
        _text("Threshold", "threshold", _plain(rule.threshold)),
        _text("or % of the limit", "threshold_percent", _plain(rule.threshold_percent)),
        _text("For, s", "for_seconds", str(rule.for_seconds)),
        _one_of("Severity", "severity", _first(rule.severity.value, [one.value for one in Severity])),
        _one_of("On", "enabled", ("yes", "no") if rule.is_enabled else ("no", "yes")),
    ]
    return [
        html.Details([html.Summary("Edit"), acts.form(view.prefix, "replace-rule", "Save", back=PATH, fields=fields, name="fields", id=rule.id)]),
        _delete(view, "delete-rule", rule.id),
    ]


def _new_rule(view: View) -> Component:
    fields = [
        _text("Name", "name", needed=True),
        _one_of("Watches", "kind", sorted(kind.value for kind in Kind if kind not in _MADE_ELSEWHERE)),
        _text("Workspace", "workspace", hint="all"),
        _text("Deployment", "deployment", hint="all"),
        _text("Threshold", "threshold"),
        _text("or % of the limit", "threshold_percent"),
        _text("For, s", "for_seconds", "0"),
        _one_of("Severity", "severity", _first("warning", [one.value for one in Severity])),
    ]
    return card(
        "A new rule",
        acts.form(view.prefix, "create-rule", "Make the rule", back=PATH, fields=fields, name="fields"),
        note="Give a threshold, or a percentage of the limit where what is watched has one.",
        name="wide",
    )


# -- the parts of a form --------------------------------------------------------------------------


def _delete(view: View, what: str, object_id: str) -> Component:
    # Two steps, so that no slip of a finger deletes what somebody relies on at night.
    return html.Details([html.Summary("Delete"), acts.form(view.prefix, what, "Yes, delete it", back=PATH, id=object_id)])


def _text(label: str, name: str, value: str = "", *, hint: str = "", needed: bool = False) -> Component:
    field = dcc.Input(type="text", name=name, value=value, placeholder=hint, required=needed, maxLength=256, autoComplete="off")
    return html.Label([html.Span(label), field], className="labelled")


def _one_of(label: str, name: str, values: Sequence[str]) -> Component:
    """A choice; the first value is the present one."""
    return html.Label([html.Span(label), html.Select([html.Option(text.words(value), value=value) for value in values], name=name)], className="labelled")


def _first(value: str, values: Sequence[str]) -> list[str]:
    return [value, *(one for one in values if one != value)]


def _number(value: Decimal | None) -> str:
    return "" if value is None else f"{value:,f}".rstrip("0").rstrip(".") if "." in f"{value:f}" else f"{value:,f}"


def _plain(value: Decimal | None) -> str:
    return _number(value).replace(",", "")
