"""The frame around every page: what it may ask, where it stands, its controls, and its empty and broken states.

``View`` is what a page is given. It asks the ledger through ``ask``, which turns a fault into a ``Failure`` that the page
shows in the place of that part: a page is never blank and never a traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Protocol, TypeVar

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import text
from dashboard.filters import PRESETS, Selection, month_to_date, preset, written_bound
from models.alerts import Alert, AlertRule, Silence
from models.errors import DomainError, Unavailable, told
from models.ledger import (
    BASES,
    FIGURES,
    UNCURRENCIED,
    Adjustment,
    Ask,
    BudgetStanding,
    Choices,
    ClosedMonth,
    ComparisonRow,
    ConflictRecord,
    CostQuery,
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
    TrailEntry,
    UsagePage,
    WhatIf,
    Why,
    WitnessRow,
    WorklistItem,
)
from models.ledger.intake import Intake, SnapshotRecord
from models.periods import Period, utc_day
from models.prices import WaitingPrice
from models.resources import Mode
from models.trials import Trial

log = logging.getLogger(__name__)
_LONG = timedelta(days=1000)
T = TypeVar("T")

# The dropdowns of the filter bar: parameter, heading, field of Selection, field of Choices.
DROPDOWNS = (
    ("workspace", "Workspace", "workspaces"),
    ("deployment", "Deployment", "deployments"),
    ("model", "Model", "models"),
    ("application", "Application", "applications"),
    ("team", "Team", "teams"),
)

_BASIS_WORDS = {
    "metered": "metered: requests × price",
    "billed": "billed: what Azure charged",
    "best": "best: billed, then metered",
    "amortized": "amortized: commitments spread",
}


class Ledger(Protocol):
    """The read side, bound to one moment of the database (the functions of ``models.ledger``)."""

    def costs(self, query: CostQuery, *, now: datetime) -> CostTable: ...

    def data_age(self, *, visible: frozenset[str] | None, now: datetime) -> DataAge: ...

    def forecast(self, filters: Filters, *, now: datetime) -> list[Forecast]: ...

    def problems(self, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]: ...

    def meters(self, *, now: datetime) -> Meters: ...

    def waiting_prices(self) -> list[WaitingPrice]: ...

    def choices(self, *, visible: frozenset[str] | None, now: datetime) -> Choices: ...

    def usage_list(self, *, period: Period, filters: Filters, limit: int, cursor: str | None, now: datetime) -> UsagePage: ...

    def reconciliation(self, period: Period, filters: Filters, *, now: datetime) -> Reconciliation: ...

    def witnesses(self, period: Period, filters: Filters, *, now: datetime) -> list[WitnessRow]: ...

    def comparison(self, period: Period, filters: Filters, *, now: datetime, what_if: WhatIf | None = None) -> list[ComparisonRow]: ...

    def adjustments(self, month: date, filters: Filters, *, now: datetime) -> list[Adjustment]: ...

    def intake(self, period: Period, *, visible: frozenset[str] | None, now: datetime) -> Intake: ...

    def report_snapshots(self, *, visible: frozenset[str] | None) -> list[SnapshotRecord]: ...

    def report_schedules(self) -> list[ScheduleStanding]: ...

    def quotas(self, filters: Filters, *, now: datetime) -> list[Pool]: ...

    def sources(self, *, visible: frozenset[str] | None, now: datetime) -> list[Source]: ...

    def onboarding(self, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]: ...

    def alerts(self, *, since: datetime, visible: frozenset[str] | None) -> list[Alert]: ...

    def alert_rules(self, *, visible: frozenset[str] | None) -> list[AlertRule]: ...

    def budgets(self, *, visible: frozenset[str] | None, now: datetime) -> list[BudgetStanding]: ...

    def receivers(self) -> list[ReceiverStanding]: ...

    def silences(self, *, since: datetime, visible: frozenset[str] | None) -> list[Silence]: ...

    def trail(self, *, kinds: Sequence[str], visible: frozenset[str] | None) -> list[TrailEntry]: ...

    def closed_months(self, *, now: datetime) -> list[ClosedMonth]: ...

    def explain(self, query: CostQuery, *, now: datetime) -> Explanation: ...

    def why(self, ask: Ask, *, now: datetime) -> Why: ...

    def worklist(self, month: date, filters: Filters, *, now: datetime) -> list[WorklistItem]: ...

    def invoices(self, month: date, *, now: datetime) -> list[Invoice]: ...

    def lags(self, *, now: datetime) -> list[Lag]: ...

    def before_last_landing(self, *, now: datetime) -> datetime | None: ...

    def moved_since(self, period: Period, filters: Filters, *, since: datetime, now: datetime) -> list[Moved]: ...

    def conflicts(self, *, visible: frozenset[str] | None) -> list[ConflictRecord]: ...


# (rule or budget, what its form says) -> what it would have done; raises ``DomainError``
Tried = Callable[[str, Mapping[str, str]], Trial]
OpenLedger = Callable[[], AbstractContextManager[Ledger]]


@dataclass(frozen=True, slots=True)
class Failure:
    """A part of a page that could not be had, in words."""

    part: str
    message: str
    passes: bool  # whether trying again may help


@dataclass(frozen=True, slots=True)
class View:
    """One rendering of one page for one viewer."""

    selection: Selection
    ledger: Ledger
    now: datetime
    visible: frozenset[str] | None
    prefix: str
    path: str
    origin: str
    is_open: bool
    may_act: bool = False  # whether buttons that change something are shown
    said: Mapping[str, str] = field(default_factory=dict)  # the address's own words, where a page has no filters
    tried: Tried | None = None  # tries a rule or budget on the past, for whoever may make one

    def ask(self, part: str, call: Callable[[], T]) -> T | Failure:
        """The answer of a ledger call, or why there is none; ``part`` names it to the reader."""
        return attempt(part, call)

    def link(self, path: str, selection: Selection) -> str:
        """The address of a page with a selection."""
        return f"{self.prefix}{path}{selection.search()}"

    def figure(
        self,
        name: str,
        value: Decimal | int | None,
        currency: str | None = None,
        *,
        selection: Selection | None = None,
        reason: str | None = None,
        shown: str | None = None,
        without: Sequence[str] = (),
        **own: str,
    ) -> Component:
        """A figure as a page shows it: its text, every digit in the title, and the way to why it is what it is.

        ``selection`` is the query that it was read with, ``without`` the groups that its row has none of; ``shown`` is
        a shorter way to write it. The address of the drawer is the query of ``/v1/explain``.
        """
        kind = FIGURES[name].kind
        return html.A(
            shown or text.figure(value, kind, currency),
            href=self.why(name, currency, selection=selection, without=without, **own),
            title=text.figure_exactly(value, kind, currency) if value is not None else reason or "not known",
            className="why" if value is not None else "why absent",
        )

    def of_row(self, name: str, figures: Figures, *, selection: Selection | None = None, without: Sequence[str] = ()) -> Component:
        """A figure of one row or total of the ledger's costs."""
        return self.figure(name, getattr(figures, name), figures.currency, selection=selection, reason=figures.reasons.get(name), without=without)

    def why(self, name: str, currency: str | None = None, *, selection: Selection | None = None, without: Sequence[str] = (), **own: str) -> str:
        """The address that opens the drawer on a figure of this screen."""
        chosen = selection or self.selection
        period = chosen.period(self.now)
        lacking = [*without, *(["currency"] if currency is None and name in UNCURRENCIED else [])]
        if lacking:
            own["without"] = ",".join(lacking)
        whole = replace(
            chosen,
            begin=period.start,
            end=period.end,
            granularity="month" if period.end - period.start > _LONG else "day",
            group_by=(),
            currency=currency,
            own=(),
        )
        return f"#why{whole.asking(figure=name, **own).search()}"

    def ways(self, name: str, currency: str | None = None, *, selection: Selection | None = None, without: Sequence[str] = ()) -> Callable[[Period], str]:
        """The same for every stretch of time that a chart draws of a figure: what they have in common is written once."""
        said = self.why(name, currency, selection=selection, without=without).removeprefix("#why?").split("&")
        rest = "&".join(part for part in said if not part.startswith(("from=", "to=", "granularity=")))
        return lambda period: f"#why?from={written_bound(period.start)}&to={written_bound(period.end)}&{rest}"

    @property
    def here(self) -> str:
        """This screen's own address."""
        return self.link(self.path, self.selection)


def attempt(part: str, call: Callable[[], T]) -> T | Failure:
    """The call's result, or the failure in the reader's words; what nobody foresaw goes to the log in full."""
    try:
        return call()
    except DomainError as fault:
        return Failure(part, told(fault), passes=isinstance(fault, Unavailable))
    except Exception:
        log.exception("the dashboard could not show %s", part)
        return Failure(part, "something went wrong that this page has no words for; the service's log has the details", passes=True)


def failure_panel(failure: Failure, retry: str) -> Component:
    """What stands where a part of the page should be."""
    return html.Section(
        [
            html.H2(f"{failure.part[:1].upper()}{failure.part[1:]} cannot be shown"),
            html.P(failure.message),
            html.P(
                [
                    "The rest of the page is not affected. " if failure.passes else "",
                    html.A("Try again", href=retry, className="button"),
                ]
            ),
        ],
        className="card failure",
        role="alert",
    )


def address_panel(message: str, prefix: str, path: str) -> Component:
    """What is shown when the address itself cannot be meant."""
    return html.Section(
        [
            html.H2("This address cannot be shown"),
            html.P(f"{message[:1].upper()}{message[1:]}."),
            html.P(dcc.Link("Start again without filters", href=f"{prefix}{path}", className="button")),
        ],
        className="card failure",
        role="alert",
    )


def empty_panel(view: View, age: DataAge | Failure) -> Component:
    """Nothing in this selection, though there is data elsewhere."""
    reach = ""
    if isinstance(age, DataAge):
        reach = f"Usage reaches to {text.until(age.metered_until)}, bills to {text.until(age.billed_until)}."
    wider = replace(preset(view.selection, 90, view.now), currency=None)
    whole = Selection(begin=view.selection.begin, end=view.selection.end)
    links: list[str | Component] = [dcc.Link("Show the last 90 days", href=view.link(view.path, wider), className="button")]
    if view.selection.is_narrowed:
        links += [" ", dcc.Link("Clear the filters", href=view.link(view.path, whole), className="button")]
    return html.Section(
        [
            html.H2("Nothing here"),
            html.P(f"There is no usage and no charge from {text.span(view.selection.period(view.now))} for these filters. {reach}"),
            html.P(links),
        ],
        className="card empty",
    )


def age_line(age: DataAge | Failure, now: datetime) -> Component:
    """How old the figures of this page are; on every page."""
    if isinstance(age, Failure):
        return html.P([html.Strong("The age of the data is not known: "), age.message], className="age", role="status")
    return html.P(
        [
            html.Span(["Metered until ", html.Strong(text.instant(age.metered_until) if age.metered_until else "nothing yet"), _ago(age.metered_until, now)]),
            html.Span(["Billed until ", html.Strong(text.until(age.billed_until)), _ago(age.billed_until, now)]),
        ],
        className="age",
    )


def attention(problems: list[Problem] | Failure, prefix: str) -> Component | None:
    """How many things in the data a person should look at, with the way to them."""
    if isinstance(problems, Failure):
        return html.P(["The list of problems cannot be shown: ", problems.message], className="notice warn", role="alert")
    # What lies outside model spend is named on the page, and asks nothing of anybody.
    number = sum(problem.kind != "out_of_scope" for problem in problems)
    if not number:
        return None
    return html.P(
        [
            f"{number} {'thing' if number == 1 else 'things'} in the data to look at. ",
            dcc.Link("See what and what to do", href=f"{prefix}data"),
        ],
        className="notice warn",
    )


def _ago(at: datetime | None, now: datetime) -> str:
    return f" ({text.ago(at, now)})" if at is not None else ""


def tile(label: str, value: str | Component, *, note: str | Component | Sequence[str | Component] = "", title: str = "", tone: str = "") -> Component:
    """One headline figure."""
    return html.Div(
        [html.Div(label, className="tile-label"), html.Div(value, className="tile-value", title=title), html.Div(note, className="tile-note")],
        className=f"tile {tone}".strip(),
    )


def card(heading: str, *children: Component | None, note: str = "", aside: Component | None = None, name: str = "") -> Component:
    """A titled part of a page."""
    head: list[Component] = [html.H2(heading)]
    if note:
        head.append(html.P(note, className="note"))
    if aside is not None:
        head.append(aside)
    return html.Section([html.Header(head), *(child for child in children if child is not None)], className=f"card {name}".strip())


def together(*said: str | Component) -> Component:
    """Below a chart: what its marks come to, each a figure that leads to why."""
    return html.P([*said, "."], className="note")


def switch(label: str, options: Sequence[tuple[str, str, bool]]) -> Component:
    """A choice of addresses: (words, address, whether it is the present one)."""
    return html.Div(
        [html.Span(dcc.Link(words, href=href), className="on" if on else "") for words, href, on in options],
        className="switch",
        role="group",
        **text.spoken(label),
    )


def nav(links: Sequence[tuple[str, str, str, bool]]) -> list[Component]:
    """The pages as links, in groups: (group, words, address, whether it is the present one), in the order of the first of each group."""
    groups: dict[str, list[Component]] = {}
    for group, words, href, on in links:
        groups.setdefault(group, []).append(html.Span(dcc.Link(words, href=href), className="on" if on else ""))
    return [
        html.Div([html.Span(group, className="hidden"), *spans], className="nav-group", role="group", **text.spoken(group)) for group, spans in groups.items()
    ]


# -- the filter bar ---------------------------------------------------------------------------------


def controls(selection: Selection, choices: Choices | Failure, *, now: datetime, prefix: str, path: str) -> Component:
    """The period and filters of a page as controls; each of them changes the address and nothing else."""

    def to(changed: Selection) -> str:
        return f"{prefix}{path}{changed.search()}"

    month = month_to_date(selection, now)
    presets = [(f"{days} days", to(preset(selection, days, now)), preset(selection, days, now) == selection) for days in PRESETS]
    presets.append(("Month to date", to(month), month == selection))
    period = selection.period(now)
    known = choices if isinstance(choices, Choices) else Choices([], [], [], [], [], [])
    first = [_dropdown(key, heading, getattr(selection, field), getattr(known, field)) for key, heading, field in DROPDOWNS[:3]]
    more = [_dropdown(key, heading, getattr(selection, field), getattr(known, field)) for key, heading, field in DROPDOWNS[3:]]
    more.append(_dropdown("mode", "Mode", tuple(mode.value for mode in selection.modes), [mode.value for mode in Mode], written=text.words))
    more.append(_choice("basis", "Basis", selection.basis, list(BASES), written=_BASIS_WORDS.__getitem__))
    more.append(_choice("granularity", "Bars by", selection.granularity, ["hour", "day", "week", "month"]))
    more.append(
        _field(
            "Tag",
            html.Div(
                [
                    dcc.Dropdown(id="filter-tag-key", options=_options(known.tag_keys, ()), placeholder="key", clearable=True, maxHeight=260),
                    dcc.Input(id="filter-tag-value", type="text", debounce=True, placeholder="value", maxLength=256, autoComplete="off"),
                ],
                className="pair",
            ),
            "filter-tag-key",
        )
    )
    hidden_filters = bool(selection.applications or selection.teams or selection.modes or selection.tags or selection.basis != "best")
    return html.Div(
        [
            html.Div(
                [
                    switch("Period", presets),
                    dcc.DatePickerRange(
                        id="filter-dates",
                        start_date=utc_day(period.start).isoformat(),
                        end_date=utc_day(period.end - timedelta(microseconds=1)).isoformat(),
                        display_format="YYYY-MM-DD",
                        updatemode="bothdates",
                        first_day_of_week=1,
                        minimum_nights=0,
                        number_of_months_shown=1,
                    ),
                ],
                className="bar-row period",
            ),
            html.Div(first, className="bar-row"),
            html.Details([html.Summary("More filters"), html.Div(more, className="bar-row")], open=hidden_filters, className="more"),
            _chips(selection, to),
            html.P(f"The lists of names cannot be shown: {choices.message}", className="note", role="alert") if isinstance(choices, Failure) else None,
            html.P(f"Not a filter, ignored: {', '.join(text.short(text.visible(key)) for key in selection.ignored[:5])}", className="note", role="alert")
            if selection.ignored
            else None,
        ],
        className="bar",
    )


def _chips(selection: Selection, to: Callable[[Selection], str]) -> Component | None:
    chips = selection.chips()
    if not chips:
        return None
    items: list[Component] = []
    for key, value, without in chips:
        whole = text.name(value, absent="")
        said = text.words(whole) if key == "mode" else whole
        items.append(
            html.Li(
                [
                    html.Span(f"{text.short(text.visible(key), 24)}: ", className="key"),
                    html.Bdi(text.short(said, 40), title=whole),
                    dcc.Link("×", href=to(without), title=f"Remove this filter ({text.visible(key)})", className="remove"),
                ],
            )
        )
    if len(chips) > 1:
        items.append(html.Li(dcc.Link("Clear all", href=to(replace(Selection(), begin=selection.begin, end=selection.end))), className="plain"))
    return html.Ul(items, className="chips")


def _field(heading: str, control: Component, name: str) -> Component:
    return html.Div([html.Label(heading, htmlFor=name), control], className="field")


def _options(known: Sequence[str], chosen: Sequence[str], written: Callable[[str], str] = text.name) -> list[dict[str, str]]:
    # A chosen name that the lists do not hold (yet) stays an option: a dropdown drops values that it does not know.
    values = [*known, *(value for value in chosen if value not in known)]
    return [{"label": text.short(written(value), 48), "value": value, "title": written(value)} for value in values]


def _dropdown(key: str, heading: str, chosen: Sequence[str], known: Sequence[str], written: Callable[[str], str] = text.name) -> Component:
    name = f"filter-{key}"
    return _field(
        heading,
        dcc.Dropdown(
            id=name,
            options=_options(known, chosen, written),
            value=list(chosen),
            multi=True,
            debounce=True,
            closeOnSelect=False,
            placeholder="all",
            maxHeight=320,
        ),
        name,
    )


def _choice(key: str, heading: str, chosen: str, known: Sequence[str], written: Callable[[str], str] = text.name) -> Component:
    name = f"filter-{key}"
    return _field(heading, dcc.Dropdown(id=name, options=_options(known, (), written), value=chosen, clearable=False, searchable=False), name)
