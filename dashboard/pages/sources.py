"""Where facts come from and whether they still come: how far each source reaches, and its last word."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.pages import start
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile
from models.ledger import Source
from models.periods import Period

PATH = "sources"
NAME = "Sources"
GROUP = "Data"

_KINDS = {"usage": "Usage", "bill": "Bill", "azure": "Azure", "job": "Job"}
_PILLS = {"ok": "settled", "running": "settling"}
_GOOD = frozenset(_PILLS)
_MOST_BARS = 30
# What the chart looks back on: a bill is a few days behind by nature, and a source that stopped long ago must not flatten the rest.
_SHORTEST, _LONGEST = timedelta(days=3), timedelta(days=60)


def layout(view: View) -> list[Component]:
    """Two questions to the ledger: the age of the data, and every source."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div([html.H1(NAME), html.P("Where the figures come from, and whether they still come", className="subtitle")], className="heading"),
        age_line(age, view.now),
    ]
    found = view.ask("the sources", lambda: view.ledger.sources(visible=view.visible, now=view.now))
    if isinstance(found, Failure):
        return [*head, failure_panel(found, view.here)]
    facts = [one for one in found if one.kind != "job"]
    jobs = [one for one in found if one.kind == "job"]
    if not facts:
        return [*head, *start.steps(view), *([_jobs(view, jobs)] if jobs else [])]
    reaching = [one for one in facts if one.data_until is not None]
    return [
        *head,
        _tiles(view, facts, jobs),
        *([_chart(view, reaching)] if reaching else []),
        _table(view, facts),
        *([_jobs(view, jobs)] if jobs else []),
    ]


def _tiles(view: View, facts: Sequence[Source], jobs: Sequence[Source]) -> Component:
    pulls = [one for one in facts if one.kind == "azure"]
    broken = [one for one in (*facts, *jobs) if one.state not in _GOOD]
    oldest = min((one for one in facts if one.data_until is not None), key=lambda one: one.data_until or view.now, default=None)
    return html.Div(
        [
            tile("Not coming", text.count(len(broken)), note=f"of {len(facts) + len(jobs)} sources and jobs", tone="warn" if broken else ""),
            tile(
                "Furthest behind",
                text.ago(oldest.data_until, view.now) if oldest else text.UNKNOWN,
                note=html.Bdi(text.short(text.visible(oldest.name), 48), title=text.visible(oldest.name)) if oldest else "",
            ),
            # Pulls are of whole subscriptions: who sees only some workspaces is not told of them.
            *([_pulls_tile(pulls)] if view.visible is None else []),
        ],
        className="tiles",
    )


def _pulls_tile(pulls: Sequence[Source]) -> Component:
    if not pulls:
        return tile("Pulls from Azure", "none", note="name the subscriptions in METERBRIDGE_AZURE_SUBSCRIPTIONS and restart")
    return tile("Throttled by Azure", text.count(sum(one.throttles or 0 for one in pulls)), note="answers 429 in the last pulls")


def _chart(view: View, reaching: Sequence[Source]) -> Component:
    """What each source covers up to now, and what of it is missing still."""
    ordered = sorted(reaching, key=lambda one: (one.data_until or view.now, one.name))[:_MOST_BARS]
    longest = max(view.now - _reach(one, view.now) for one in ordered)
    period = Period(view.now - min(max(longest * 2, _SHORTEST), _LONGEST), view.now)
    rows: list[tuple[str, datetime, datetime, str, str]] = []
    bars: set[str] = set()
    for one in ordered:
        reach, name = _reach(one, view.now), f"{_KINDS.get(one.kind, one.kind)}: {text.visible(one.name)}"
        # Short, for narrow screens; two that look the same then are still two bars.
        short = text.short(text.visible(one.name), 26)
        bar = short if short not in bars else f"{short} ({len(bars)})"
        bars.add(bar)
        if reach > period.start:
            rows.append((bar, period.start, reach, figures.METERED, f"{name} reaches to {_until(one)}"))
        if reach < view.now:
            tint = figures.QUIET if one.state in _GOOD else figures.BILLED
            rows.append((bar, reach, view.now, tint, f"{name}: nothing since {_until(one)} ({text.ago(reach, view.now)})"))
    said = "; ".join(f"{one.name} reaches to {_until(one)}" for one in ordered)
    more = f" The {_MOST_BARS} furthest behind of {len(reaching)}." if len(reaching) > _MOST_BARS else ""
    return card(
        "How far each source reaches",
        figures.graph(_dated(figures.spans(rows, period=period, revision=view.here)), name="reach", describes=said, height=76 + 30 * len(ordered)),
        note=f"Furthest behind first. Blue is there, grey has not come yet, orange has not come and its last run failed. Days are UTC.{more}",
        name="wide",
    )


def _dated(figure: figures.Figure) -> figures.Figure:
    """Days below the bars, as many as fit level."""
    figure["layout"]["xaxis"] |= {"tickformat": "%d %b", "nticks": 4, "tickangle": 0}
    figure["layout"]["margin"] = {"l": 12, "r": 24, "t": 8, "b": 28}
    return figure


def _reach(one: Source, now: datetime) -> datetime:
    return min(one.data_until or now, now)


def _until(one: Source) -> str:
    return text.until(one.data_until) if one.kind in ("bill", "azure") else text.instant(one.data_until)


def _table(view: View, facts: Sequence[Source]) -> Component:
    columns = [
        tables.Column("Source"),  # first, as what heads each entry of the list on a telephone
        tables.Column("Kind"),
        tables.Column("State"),
        tables.Column("Last word"),
        tables.Column("Reaches to", title="the last instant that its data covers"),
        tables.Column("Last success"),
        tables.Column("Last attempt"),
        tables.Column("Next run"),
        tables.Column("Rows", is_number=True, title="of its last run"),
        tables.Column("Calls", is_number=True, title="of its last run"),
        tables.Column("Throttles", is_number=True, title="of its last run"),
    ]
    rows: list[list[tables.Cell]] = [
        [
            tables.named(one.name, length=44),
            _KINDS.get(one.kind, one.kind),
            _pill(one),
            html.Span(text.visible(one.message), className="wrap long"),
            html.Span(_until(one) if one.data_until else "", title=text.exact_instant(one.data_until)),
            _when(one.last_success, view.now, absent="never"),
            _when(one.last_attempt, view.now, absent="never"),
            text.instant(one.next_run) if one.next_run else "",
            _number(one.rows),
            _number(one.calls),
            _number(one.throttles),
        ]
        for one in sorted(facts, key=lambda one: (one.state in _GOOD, list(_KINDS).index(one.kind) if one.kind in _KINDS else 9, one.name))
    ]
    return card(
        "Every source",
        tables.table(columns, rows, caption="Sources and their last word"),
        note="What did not go well stands first, with what to do about it.",
        aside=dcc.Link("Add data", href=f"{view.prefix}start", className="button"),
        name="wide",
    )


def _jobs(view: View, jobs: Sequence[Source]) -> Component:
    columns = [tables.Column("Job"), tables.Column("State"), tables.Column("Last run"), tables.Column("Next run"), tables.Column("Last word")]
    rows: list[list[tables.Cell]] = [
        [
            tables.named(text.words(one.name), length=60),
            _pill(one),
            _when(one.last_attempt, view.now, absent="never"),
            text.instant(one.next_run) if one.next_run else "",
            html.Span(text.visible(one.message), className="wrap"),
        ]
        for one in jobs
    ]
    return card("Jobs", tables.table(columns, rows, caption="Jobs and their last run"), note="Each slot is run once, by one of the processes.", name="wide")


def _pill(one: Source) -> Component:
    return html.Span(one.state, className=f"pill {_PILLS.get(one.state, 'provisional')}")


def _when(at: datetime | None, now: datetime, *, absent: str) -> Component:
    return html.Span(text.ago(at, now) if at else absent, title=text.exact_instant(at))


def _number(value: int | None) -> str:
    return "" if value is None else text.count(value)
