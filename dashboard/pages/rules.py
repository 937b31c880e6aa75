"""What is watched: budgets against what is spent and likely, and rules; an admin makes, changes and deletes them here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import acts, tables, text
from dashboard.shell import Failure, View, age_line, card, failure_panel
from dashboard.trail import changes
from models.alerts import RATE_KINDS, AlertRule, Kind, Severity
from models.ledger import BudgetStanding
from models.periods import zone_from
from models.silences import WEEKDAYS

PATH = "rules"
NAME = "Rules"
GROUP = "Operations"

_MOST_RULES = 60
_PERIODS = ("month", "day", "week", "quarter", "year")
_SEVERITIES = tuple(one.value for one in Severity)
_UNITS = {
    "tokens_per_minute": "tokens a minute",
    "requests_per_minute": "requests a minute",
    "throttled_requests": "429s a minute",
    "core_quota": "vCPUs",
    "shared_quota_deletion": "hours left",
    "model_retirement": "hours left",
    "idle_deployment": "money a day",
    "unmetered_usage": "money a day",
    "stale_source": "minutes",
    "spend_anomaly": "percent outside the usual band",
    "unpriced_usage": "tokens a day",
    "double_source": "percent alike",
    "unreached_receiver": "failures in a row",
    "report_delivery": "faults",
    "heartbeat": "minutes between two",
}
_SCOPE = ("workspace", "deployment", "model", "application", "team")
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
        changes(view, "alert-rule", "budget"),
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
        tables.Column("Likely end", is_number=True, title="P10 to P90, and half of the forecasts missed by at most so much when tried on the past"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(one: BudgetStanding) -> list[tables.Cell]:
        budget, outlook = one.budget, one.outlook

        def figure(name: str, value: Decimal | None, unit: str | None = budget.currency) -> Component:
            return view.figure(name, value, unit, budget=budget.id)

        band: list[str | Component] = []
        if outlook.low is not None and outlook.high is not None:
            band = [figure("budget_low", outlook.low), " –", html.Br(), figure("budget_high", outlook.high)]
            if outlook.error_percent is not None:
                band += [html.Br(), html.Span(f"±{outlook.error_percent:.0f} % in {outlook.trials} tries", className="where-is")]
        return [
            [
                tables.named(budget.name),
                " (hard)" if budget.is_hard else "",
                html.Br(),
                html.Span(f"{_covers(budget.scope)}; tells at {', '.join(f'{step} %' for step in budget.steps)}", className="where-is"),
            ],
            tables.beneath(text.span(one.spend.period, zone_from(budget.time_zone)), "" if budget.time_zone == "UTC" else budget.time_zone),
            tables.beneath(figure("budget_spent", one.spend.amount), _untold(one)),
            figure("budget_amount", budget.amount),
            [_bar(one), " ", figure("budget_share", one.share, None)],
            band or html.Span(outlook.reason or text.UNKNOWN, className="wrap absent"),
            *([html.Span(_budget_acts(view, one), className="acts")] if view.may_act else []),
        ]

    return card("Budgets", tables.table(columns, [cells(one) for one in found], caption="Budgets"), name="wide")


def _untold(one: BudgetStanding) -> str:
    spend = one.spend
    parts = ((spend.unknown_token_share, "unknown"), (spend.estimated_token_share, "estimated"))
    said = ", ".join(f"{text.percent(share)} {words}" for share, words in parts if share)
    return f"tokens of {said}" if said else ""


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
    said = {
        "id": budget.id,
        "name": budget.name,
        "amount": f"{budget.amount:f}",
        "currency": budget.currency,
        "period": budget.period,
        "time_zone": budget.time_zone,
        "basis": budget.basis,
        "week_starts_on": budget.week_starts_on,
        "steps": ", ".join(map(str, budget.steps)),
        "forecast_steps": ", ".join(map(str, budget.forecast_steps)),
        "hard": "yes" if budget.is_hard else "no",
        "severity": budget.severity.value,
        "receivers": "\n".join(budget.receivers),
        "runbook_url": budget.runbook_url,
        **_scope(budget.scope),
    }
    return [acts.popped("Edit", text.short(text.visible(budget.name)), budget_form(view, said)), _delete(view, "delete-budget", budget.id)]


def budget_form(view: View, said: Mapping[str, str], *, fault: tuple[str, str] = ("", "")) -> Component:
    """The form of a budget, new or of the id that it says, filled with what is said."""
    form = _Form(view, said, fault)
    is_new = not said.get("id")
    fields = [
        form.field("Name", "name", needed=True),
        form.field("Amount", "amount", needed=True),
        form.field("Currency", "currency", "USD", needed=True),
        form.choice("Period", "period", _PERIODS),
        *form.scope(),
        form.field("Steps, %", "steps", "50, 80, 100"),
        form.field("Steps of the forecast, %", "forecast_steps", hint="none"),
        form.choice("Stops calls", "hard", ("no", "yes")),
        form.choice("By", "basis", ("best", "metered", "billed")),
        form.field("Time zone", "time_zone", "UTC"),
        form.choice("Week starts on", "week_starts_on", WEEKDAYS),
        form.choice("Severity", "severity", _SEVERITIES, chosen="warning"),
        *form.told(),
        form.choice("Tried by what was known", "known", (("then", "at the time"), ("today", "until today"))),
    ]
    return form.whole("budget", "Make the budget" if is_new else "Save", fields, days=("31", "92", "366"))


def _new_budget(view: View) -> Component:
    return card("A new budget", budget_form(view, {}), note="Somebody is told once per period at each step.", name="wide")


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
        limit = f"{number(rule.threshold_percent)} % of the limit" if rule.threshold_percent is not None else number(rule.threshold)
        return [
            tables.named(rule.name),
            html.Span("on" if rule.is_enabled else "off", className=f"pill {'settled' if rule.is_enabled else 'provisional'}"),
            html.Span(f"{text.words(rule.kind.value)}: {_covers(rule.scope)}", className="wrap"),
            limit,
            f"{rule.for_seconds} s" if rule.for_seconds else "at once",
            rule.severity.value,
            {"builtin": "meterbridge", "apply": "a file"}.get(rule.origin, "hand"),
            *([html.Span(_rule_acts(view, rule), className="acts")] if view.may_act else []),
        ]

    note = f"The first {_MOST_RULES} of {len(found)}." if len(found) > _MOST_RULES else ""
    return card("Rules", tables.table(columns, [cells(rule) for rule in found[:_MOST_RULES]], caption="Rules"), note=note, name="wide")


def _rule_acts(view: View, rule: AlertRule) -> list[Component]:
    said = {
        "id": rule.id,
        "name": rule.name,
        "kind": rule.kind.value,
        "threshold": _plain(rule.threshold),
        "threshold_percent": _plain(rule.threshold_percent),
        "clear_threshold": _plain(rule.clear_threshold),
        "window_seconds": str(rule.window_seconds),
        "for_seconds": str(rule.for_seconds),
        "keep_firing_for_seconds": str(rule.keep_firing_for_seconds),
        "severity": rule.severity.value,
        "no_data": rule.no_data.value,
        "receivers": "\n".join(rule.receivers),
        "runbook_url": rule.runbook_url,
        "enabled": "yes" if rule.is_enabled else "no",
        **_scope(rule.scope),
    }
    return [acts.popped("Edit", text.short(text.visible(rule.name)), rule_form(view, said)), _delete(view, "delete-rule", rule.id)]


def rule_form(view: View, said: Mapping[str, str], *, fault: tuple[str, str] = ("", "")) -> Component:
    """The form of a rule, new or of the id that it says, filled with what is said."""
    form = _Form(view, said, fault)
    is_new = not said.get("id")
    kinds = sorted(kind.value for kind in Kind if kind not in _MADE_ELSEWHERE)
    is_rate = is_new or said.get("kind") in {kind.value for kind in RATE_KINDS}
    fields = [
        form.field("Name", "name", needed=True),
        *([form.choice("Watches", "kind", kinds, chosen=Kind.TOKENS_PER_MINUTE.value)] if is_new else []),
        *form.scope(),
        form.field("Threshold", "threshold", note="" if is_new else _UNITS.get(said.get("kind", ""), "")),
        form.field("or % of the limit", "threshold_percent"),
        form.field("Ends below", "clear_threshold", hint="the threshold", note="in the threshold's own unit; keeps it from flapping"),
        *([form.choice("Window", "window_seconds", (("60", "1 minute"), ("300", "5 minutes")))] if is_rate else []),
        form.field("For, s", "for_seconds", "0"),
        form.field("Keeps firing, s", "keep_firing_for_seconds", "0"),
        form.choice("Severity", "severity", _SEVERITIES, chosen="warning"),
        form.choice("Without data", "no_data", (("ok", "is quiet"), ("keep", "stays as it is"), ("alert", "fires"))),
        *([] if is_new else [form.choice("On", "enabled", ("yes", "no"))]),
        *form.told(),
    ]
    return form.whole("rule", "Make the rule" if is_new else "Save", fields, days=("7", "1", "31", "92"))


def _new_rule(view: View) -> Component:
    note = "Give a threshold, or a percentage of the limit where what is watched has one. Try it on the past before you keep it."
    return card("A new rule", rule_form(view, {}), note=note, name="wide")


# -- forms ----------------------------------------------------------------------------------------


class _Form:
    """A form that is filled with what was said, says what is wrong at its field, and can be tried on the past."""

    def __init__(self, view: View, said: Mapping[str, str], fault: tuple[str, str]) -> None:
        self._view = view
        self._said = said
        self._fault = fault

    def field(self, label: str, name: str, value: str = "", *, hint: str = "", needed: bool = False, note: str = "", wide: bool = False) -> Component:
        """One line of text."""
        return acts.field(label, name, self._said.get(name, value), hint=hint, needed=needed, note=note, wide=wide, fault=self._at(name))

    def choice(self, label: str, name: str, values: Sequence[str | tuple[str, str]], *, chosen: str | None = None) -> Component:
        """One of several."""
        return acts.choice(label, name, values, chosen=self._said.get(name) or chosen, fault=self._at(name))

    def scope(self) -> list[Component]:
        """What it is about."""
        note = "several with commas between them"
        fields = [self.field(name.capitalize(), name, hint="all", note=note if name == "workspace" else "") for name in _SCOPE]
        return [*fields, self.field("Tags", "tags", hint="key=value")]

    def told(self) -> list[Component]:
        """Who is told, and what they are to do."""
        known = self._view.ask("the receivers", self._view.ledger.receivers) if self._view.visible is None else []
        names = [] if isinstance(known, Failure) else [(one.receiver.id, text.short(text.visible(one.receiver.name), 40)) for one in known]
        chosen = [one for one in self._said.get("receivers", "").splitlines() if one]
        gone = [(one, f"{one} (deleted)") for one in chosen if one not in dict(names)]
        return [
            acts.several("Tells", "receivers", [("", "the default receivers"), *names, *gone], chosen=chosen or [""], fault=self._at("receivers")),
            self.field("Runbook", "runbook_url", hint="https://…", wide=True),
        ]

    def _at(self, name: str) -> str:
        return self._fault[1] if self._fault[0] == name else ""

    def whole(self, what: str, label: str, fields: Sequence[Component], *, days: Sequence[str]) -> Component:
        """The form with its two ways out: keep it, or try it."""
        said = {"id": self._said["id"]} if self._said.get("id") else {}
        # What the buttons' addresses say is not in an address that the fields make.
        hidden = [dcc.Input(type="hidden", name=name, value=value) for name, value in (("what", what), *said.items(), *self._kept())]
        last = acts.choice("Try over the last", "days", [(one, "a day" if one == "1" else f"{one} days") for one in days], chosen=self._said.get("days"))
        target = f"{self._view.prefix}backtest"
        trying = html.Button(
            "Try on the past", type="submit", formMethod="get", formAction=target, formNoValidate=True, title="Nothing is kept and nobody is told"
        )
        # The first button is what the enter key presses.
        return acts.form(
            self._view.prefix,
            f"{'replace' if said else 'create'}-{what}",
            label,
            back=PATH,
            fields=[*hidden, *fields, last],
            name="fields",
            more=[trying],
            **said,
        )

    def _kept(self) -> list[tuple[str, str]]:
        # Of what stands already the form does not ask: the trial shows it.
        return [("kind", self._said["kind"])] if self._said.get("id") and self._said.get("kind") else []


def _many(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _covers(scope: Mapping[str, Any]) -> str:
    """A scope in words."""
    return text.visible(", ".join(f"{name} {' or '.join(_many(value))}" for name, value in scope.items()) or "everything")


def _scope(scope: Mapping[str, Any]) -> dict[str, str]:
    """A scope as the form's fields."""
    tags = [f"{name.removeprefix('tag:')}={one}" for name, value in scope.items() if name.startswith("tag:") for one in _many(value)]
    return {**{name: ", ".join(_many(scope[name])) for name in _SCOPE if name in scope}, **({"tags": ", ".join(tags)} if tags else {})}


def _delete(view: View, what: str, object_id: str) -> Component:
    return acts.unfolded("Delete", acts.form(view.prefix, what, "Yes, delete it", back=PATH, id=object_id))


def number(value: Decimal | None) -> str:
    """A threshold or measured value as people read it."""
    return "" if value is None else f"{value:,f}".rstrip("0").rstrip(".") if "." in f"{value:f}" else f"{value:,f}"


def _plain(value: Decimal | None) -> str:
    return number(value).replace(",", "")
