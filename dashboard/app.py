"""The dashboard as one factory: pages, callbacks, downloads and the guard, mounted by the composition root.

The flow of every screen: address -> ``Selection`` -> ledger -> rows -> figures and tables. Pages are plain functions of a
``View`` and hold no callbacks: the address is the only state, so one callback draws any page, one refreshes what changed
in it, and one writes the address.
``create_dashboard`` can be called any number of times; nothing is registered at import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from types import ModuleType
from typing import IO, Any, Protocol
from urllib.parse import parse_qsl
from zlib import crc32

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from flask import Flask, Response, make_response, request
from plotly.utils import PlotlyJSONEncoder
from sqlmodel import Session

from dashboard import access as doors
from dashboard import acts, figures, shell, tables, text
from dashboard.access import Access
from dashboard.filters import Selection
from dashboard.pages import (
    alerts,
    backtest,
    comparison,
    data,
    deployment,
    explain,
    ingest,
    overview,
    quotas,
    receivers,
    reconciliation,
    reports,
    rules,
    sources,
    start,
)
from dashboard.shell import DROPDOWNS, Failure, Ledger, OpenLedger, Tried, View, address_panel, attempt, failure_panel
from models import ledger
from models.alerts import Alert, AlertRule, Silence
from models.errors import DomainError, InvalidInput, Unavailable, told
from models.ledger import (
    BASES,
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
from models.ledger.intake import Intake, SnapshotRecord, intake, report_snapshots
from models.periods import GRANULARITIES, Period, month_period, parse_bound, utc_day
from models.prices import WaitingPrice
from models.resources import Mode

PAGES: tuple[ModuleType, ...] = (
    overview,
    deployment,
    reconciliation,
    comparison,
    reports,
    quotas,
    alerts,
    rules,
    backtest,
    receivers,
    sources,
    data,
    ingest,
    start,
    explain,
)
# Their period and filters are in the address, and go along from one to the next.
_FILTERED = frozenset({overview, deployment, reconciliation, comparison})
REFRESH_SECONDS = 15
PART = "part"
DRAWER = "#why"
_LARGEST_REQUEST = 1 << 20
_LONGEST_FORM = 16_384


@dataclass(frozen=True, slots=True)
class LedgerReader:
    """The functions of ``models.ledger`` bound to one session: one moment of the database for a whole page."""

    session: Session
    _readings: dict[datetime, ledger.Reading] = field(default_factory=dict)
    _found: dict[tuple[Period, Filters, datetime], Reconciliation] = field(default_factory=dict)

    def _reading(self, now: datetime) -> ledger.Reading:
        """What several questions of a page read of bill and meter, once."""
        if now not in self._readings:
            self._readings[now] = ledger.Reading(self.session, now)
        return self._readings[now]

    def costs(self, query: CostQuery, *, now: datetime) -> CostTable:
        return ledger.costs(self.session, query, now=now, reading=self._reading(now))

    def data_age(self, *, visible: frozenset[str] | None, now: datetime) -> DataAge:
        return ledger.data_age(self.session, visible=visible, now=now, world=self._reading(now).world)

    def forecast(self, filters: Filters, *, now: datetime) -> list[Forecast]:
        return ledger.forecast(self.session, filters, now=now, reading=self._reading(now))

    def problems(self, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
        return ledger.problems(self.session, visible=visible, now=now)

    def meters(self, *, now: datetime) -> Meters:
        return ledger.meters(self.session, now=now)

    def waiting_prices(self) -> list[WaitingPrice]:
        return ledger.waiting_prices(self.session)

    def choices(self, *, visible: frozenset[str] | None, now: datetime) -> Choices:
        return ledger.choices(self.session, visible=visible, now=now)

    def usage_list(self, *, period: Period, filters: Filters, limit: int, cursor: str | None, now: datetime) -> UsagePage:
        return ledger.usage_list(self.session, period=period, filters=filters, limit=limit, cursor=cursor, now=now)

    def reconciliation(self, period: Period, filters: Filters, *, now: datetime) -> Reconciliation:
        key = period, filters, now
        if key not in self._found:
            self._found[key] = ledger.reconciliation(self.session, period, filters, now=now, reading=self._reading(now))
        return self._found[key]

    def witnesses(self, period: Period, filters: Filters, *, now: datetime) -> list[WitnessRow]:
        return ledger.witness_rows(self.session, period, granularity="day", filters=filters, now=now)

    def comparison(self, period: Period, filters: Filters, *, now: datetime, what_if: WhatIf | None = None) -> list[ComparisonRow]:
        return list(ledger.comparison(self.session, period, filters, now=now, what_if=what_if, reading=self._reading(now)))

    def adjustments(self, month: date, filters: Filters, *, now: datetime) -> list[Adjustment]:
        return ledger.adjustments(self.session, month, filters=filters, now=now)

    def intake(self, period: Period, *, visible: frozenset[str] | None, now: datetime) -> Intake:
        return intake(self.session, period, visible=visible, now=now)

    def report_snapshots(self, *, visible: frozenset[str] | None) -> list[SnapshotRecord]:
        return report_snapshots(self.session, visible=visible)

    def report_schedules(self) -> list[ScheduleStanding]:
        return ledger.report_schedules(self.session)

    def quotas(self, filters: Filters, *, now: datetime) -> list[Pool]:
        return ledger.quotas(self.session, filters, now=now)

    def sources(self, *, visible: frozenset[str] | None, now: datetime) -> list[Source]:
        return ledger.sources(self.session, visible=visible, now=now)

    def onboarding(self, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
        return ledger.onboarding(self.session, visible=visible, now=now)

    def alerts(self, *, since: datetime, visible: frozenset[str] | None) -> list[Alert]:
        return ledger.alerts(self.session, since=since, visible=visible)

    def alert_rules(self, *, visible: frozenset[str] | None) -> list[AlertRule]:
        return ledger.alert_rules(self.session, visible=visible)

    def budgets(self, *, visible: frozenset[str] | None, now: datetime) -> list[BudgetStanding]:
        return ledger.budget_standings(self.session, visible=visible, now=now)

    def receivers(self) -> list[ReceiverStanding]:
        return ledger.receivers(self.session)

    def silences(self, *, since: datetime, visible: frozenset[str] | None) -> list[Silence]:
        return ledger.silences(self.session, since=since, visible=visible)

    def trail(self, *, kinds: Sequence[str], visible: frozenset[str] | None) -> list[TrailEntry]:
        return ledger.trail(self.session, kinds=kinds, visible=visible)

    def closed_months(self, *, now: datetime) -> list[ClosedMonth]:
        return ledger.closed_months(self.session, now=now)

    def explain(self, query: CostQuery, *, now: datetime) -> Explanation:
        return ledger.explain(self.session, query, now=now)

    def why(self, ask: Ask, *, now: datetime) -> Why:
        return ledger.why(self.session, ask, now=now)

    def worklist(self, month: date, filters: Filters, *, now: datetime) -> list[WorklistItem]:
        return ledger.worklist(self.session, month, filters, now=now, found=self.reconciliation(month_period(month), filters, now=now))

    def invoices(self, month: date, *, now: datetime) -> list[Invoice]:
        return ledger.invoices(self.session, month, now=now)

    def lags(self, *, now: datetime) -> list[Lag]:
        return ledger.lags(self.session, now=now)

    def before_last_landing(self, *, now: datetime) -> datetime | None:
        return ledger.before_last_landing(self.session, now=now)

    def moved_since(self, period: Period, filters: Filters, *, since: datetime, now: datetime) -> list[Moved]:
        return ledger.moved_since(self.session, period, filters, since=since, now=now, found=self.reconciliation(period, filters, now=now))

    def conflicts(self, *, visible: frozenset[str] | None) -> list[ConflictRecord]:
        return ledger.conflicts(self.session, workspaces=(), visible=visible, limit=50, before=None)[0]


class File(Protocol):
    """A file to send: its bytes from the beginning, how it is called, what it is."""

    @property
    def content(self) -> IO[bytes]: ...

    @property
    def name(self) -> str: ...

    @property
    def media_type(self) -> str: ...

    @property
    def control_total(self) -> str: ...

    @property
    def is_page(self) -> bool: ...


# (kind, parameters, the workspaces that the reader may see) -> the file; raises ``DomainError``
Files = Callable[[str, Mapping[str, str], frozenset[str] | None], File]


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while piece := content.read(1 << 20):
            yield piece


def ledger_over(open_session: Callable[[], AbstractContextManager[Session]]) -> OpenLedger:
    """How a page opens the ledger, from how a reading session is opened (``Store.read``)."""

    @contextmanager
    def opened() -> Iterator[Ledger]:
        with open_session() as session:
            yield LedgerReader(session)

    return opened


def create_dashboard(
    *,
    open_ledger: OpenLedger,
    access: Access,
    url_prefix: str = "/dashboard/",
    now: Callable[[], datetime],
    notice: str | None = None,
    is_behind_tls: bool = False,
    files: Files | None = None,
    desk: acts.Desk | None = None,
    tried: Tried | None = None,
) -> Dash:
    """A Dash app whose WSGI side (``app.server``) expects the mount to have taken ``url_prefix`` off the path.

    ``files`` makes what the Reports page offers; without it the page has nothing to give. ``desk`` does what an admin's
    buttons ask for; without it there are no buttons. ``tried`` tries
    what a form says on the past. ``notice`` is shown on every page that is served without a key; ``is_behind_tls`` says that a proxy speaks https for us.
    """
    server = Flask("meterbridge.dashboard", static_folder=None)
    server.config["MAX_CONTENT_LENGTH"] = _LARGEST_REQUEST
    doors.guard(server, access, prefix=url_prefix, now=now, is_behind_tls=is_behind_tls)
    app = Dash(
        __name__,
        server=server,  # type: ignore[arg-type]  # documented: a Flask server
        assets_folder="assets",
        assets_ignore=r"theme\.js|icon\.svg",
        pages_folder="",
        use_pages=False,
        routes_pathname_prefix="/",
        requests_pathname_prefix=url_prefix,
        serve_locally=True,
        compress=False,
        title="meterbridge",
        update_title="",
        index_string=_index(url_prefix),
        suppress_callback_exceptions=True,
        add_log_handler=False,
        enable_mcp=False,
    )
    screens = _Screens(open_ledger=open_ledger, now=now, prefix=url_prefix, notice=notice, is_behind_tls=is_behind_tls, desk=desk, tried=tried)
    app.layout = screens.frame
    acts.accept(server, desk, prefix=url_prefix)
    _register(app, screens)

    @server.get("/download/costs.csv")
    def download() -> Response:
        return screens.download(request.query_string.decode("ascii", "replace"))

    @server.get("/download/<kind>")
    def take(kind: str) -> Response:
        if files is None:
            return make_response("this dashboard makes no files; ask the service\n", 404, {"Content-Type": "text/plain; charset=utf-8"})
        try:
            made = files(kind, request.args.to_dict(), doors.viewer().workspaces)
        except DomainError as fault:
            status = {"invalid_value": 422, "not_found": 404, "unavailable": 503}.get(fault.error, 500)
            return make_response(f"{told(fault)}\n", status, {"Content-Type": "text/plain; charset=utf-8"})
        headers = {
            "Content-Type": made.media_type,
            "Content-Disposition": f'{"inline" if made.is_page else "attachment"}; filename="{made.name}"',
            "X-Control-Total": made.control_total,
        }
        return Response(_pieces(made.content), 200, headers)

    doors.harden(server, lambda: list(app.csp_hashes()))
    return app


def _register(app: Dash, screens: _Screens) -> None:
    for function, target, source, prop in (
        ("tick", "tick", "clock", "n_intervals"),
        ("title", "titled", "page", "children"),
        ("theme", "themed", "theme", "n_clicks"),
    ):
        app.clientside_callback(  # type: ignore[no-untyped-call]
            ClientsideFunction("meterbridge", function), Output(target, "data"), Input(source, prop), prevent_initial_call=True
        )
    app.callback(Output("page", "children"), Input("url", "pathname"), Input("url", "search"))(screens.page)
    app.callback(Output("drawer", "children"), Output("drawer", "data-of"), Input("url", "hash"))(screens.drawer)
    charts, parts = {"type": figures.CHART, "name": ALL}, {"type": PART, "name": ALL}
    app.callback(
        Output("page", "children", allow_duplicate=True),
        Output(charts, "figure"),
        Output(parts, "children"),
        Output(parts, "data-digest"),
        Input("tick", "data"),
        State("url", "pathname"),
        State("url", "search"),
        State(charts, "id"),
        State(charts, "relayoutData"),
        State(parts, "id"),
        State(parts, "data-digest"),
        prevent_initial_call=True,
    )(screens.refresh)
    app.callback(Output("nav", "children"), Output("filters", "children"), Input("url", "pathname"), Input("url", "search"))(screens.bar)
    app.callback(Output("attention", "children"), Input("url", "pathname"), Input("tick", "data"))(screens.attention)
    app.callback(
        Output("url", "search"),
        *(Input(f"filter-{key}", "value") for key, _, _ in DROPDOWNS),
        Input("filter-mode", "value"),
        Input("filter-basis", "value"),
        Input("filter-granularity", "value"),
        Input("filter-dates", "start_date"),
        Input("filter-dates", "end_date"),
        Input("filter-tag-value", "value"),
        State("filter-tag-key", "value"),
        State("url", "search"),
        prevent_initial_call=True,
    )(screens.navigate)


@dataclass(frozen=True, slots=True)
class _Screens:
    """What the callbacks and routes answer; every one of them asks again who is looking."""

    open_ledger: OpenLedger
    now: Callable[[], datetime]
    prefix: str
    notice: str | None
    is_behind_tls: bool = False
    desk: acts.Desk | None = None
    tried: Tried | None = None

    def _origin(self) -> str:
        """Where a browser sees the service: what the commands on a page name."""
        seen = request.host_url.rstrip("/")
        return seen.replace("http://", "https://", 1) if self.is_behind_tls else seen

    def frame(self) -> Component:
        """The parts of the screen that stay while pages change."""
        who = doors.viewer_if_any()
        if who is None:
            # Dash looks at its layout once at the first request, whoever makes it; the guard lets nobody else ask for it.
            return html.Div()
        is_open = who == doors.OPEN
        leave: list[Component] = []
        if not is_open:
            leave = [
                html.Span(tables.named(who.name, length=24), className="who", title=f"signed in with the {who.scope} key {who.key_id}"),
                html.Form(html.Button("Log out", type="submit"), method="post", action=f"{self.prefix}logout"),
            ]
        return html.Div(
            [
                dcc.Location(id="url", refresh="callback-nav"),
                dcc.Interval(id="clock", interval=REFRESH_SECONDS * 1000),
                dcc.Store(id="tick"),
                dcc.Store(id="titled"),
                dcc.Store(id="themed"),
                html.A("Skip to the figures", href="#page", className="skip"),
                html.Header(
                    [
                        html.Div("meterbridge", className="brand"),
                        html.Nav(self._links("", ""), id="nav", **text.spoken("Pages")),
                        html.Div([html.Button("Theme", id="theme", type="button", title="Light, dark, or as the system says"), *leave], className="tools"),
                    ],
                    className="top",
                ),
                html.P(self.notice, className="notice open", role="note") if is_open and self.notice else None,
                html.Div(id="filters"),
                html.Div(id="attention"),
                html.Aside(id="drawer", role="complementary", **text.spoken("Why this number?")),
                html.Main(html.P("Loading the figures…", className="loading"), id="page", tabIndex="-1"),
            ],
            className="shell",
        )

    def page(self, pathname: str | None, search: str | None) -> list[Component]:
        """The body of the page that the address names, cut into the parts that a refresh replaces one by one."""
        return [_cut(part, str(number)) for number, part in enumerate(self._drawn(pathname, search))]

    def refresh(self, _tick: object, pathname: str | None, search: str | None, *states: Any) -> tuple[Any, list[Any], list[Any], list[Any]]:
        """What changed since the page was drawn.

        Replacing the whole page would take the reader's zoom, focus and selection with it: a chart gets a new figure in
        place, a part is replaced only if it reads differently, and everything only when the page has other parts now.
        """
        chart_ids, zooms, part_ids, digests = states
        page = self.page(pathname, search)
        charts, parts = _named(page, figures.CHART), _named(page, PART)
        if {chart["name"] for chart in chart_ids} != charts.keys() or {part["name"] for part in part_ids} != parts.keys():
            return page, [no_update] * len(chart_ids), [no_update] * len(part_ids), [no_update] * len(part_ids)
        shown = [parts[part["name"]] for part in part_ids]
        changed = [getattr(part, "data-digest") != digest for part, digest in zip(shown, digests, strict=True)]
        return (
            no_update,
            [figures.zoomed(charts[chart["name"]].figure, zoom) for chart, zoom in zip(chart_ids, zooms, strict=True)],
            [part.children if is_new else no_update for part, is_new in zip(shown, changed, strict=True)],
            [getattr(part, "data-digest") if is_new else no_update for part, is_new in zip(shown, changed, strict=True)],
        )

    def drawer(self, fragment: str | None) -> tuple[list[Component], str]:
        """Why the figure that the fragment names is what it is, and the fragment; empty where it names none."""
        doors.viewer()
        said = fragment or ""
        if not said.startswith(f"{DRAWER}?"):
            return [], ""
        return self._drawn(f"{self.prefix}{explain.PATH}", said.removeprefix(DRAWER), inside=explain.drawer), said

    def _drawn(self, pathname: str | None, search: str | None, *, inside: Callable[[View], list[Component]] | None = None) -> list[Component]:
        visible, path = doors.viewer().workspaces, self._path(pathname)
        module = next((page for page in PAGES if path == page.PATH), None)
        if module is None:
            return [address_panel(f"there is no page {path[:60]!r}", self.prefix, "")]
        said: dict[str, str] = {}
        try:
            if module is backtest:
                # The words of a form: a slip in them is shown at its field.
                for name, value in parse_qsl((search or "").removeprefix("?")[:_LONGEST_FORM], max_num_fields=100):
                    said[name] = f"{said[name]}\n{value}" if name in said else value
            selection = Selection.parse(None if module is backtest else search)
            selection.period(self.now())
        except (InvalidInput, ValueError) as fault:
            return [address_panel(fault.message if isinstance(fault, InvalidInput) else "it holds too many parameters", self.prefix, path)]
        may_act = acts.may_act(self.desk, doors.viewer())

        def draw() -> list[Component]:
            with self.open_ledger() as opened:
                view = View(
                    selection=selection,
                    ledger=opened,
                    now=self.now(),
                    visible=visible,
                    prefix=self.prefix,
                    path=path,
                    origin=self._origin(),
                    is_open=doors.viewer() == doors.OPEN,
                    may_act=may_act,
                    said=said,
                    tried=self.tried if may_act else None,
                )
                children: list[Component] = (inside or module.layout)(view)
                return children

        drawn = attempt("this page", draw)
        return [failure_panel(drawn, f"{self.prefix}{path}{selection.search()}")] if isinstance(drawn, Failure) else drawn

    def attention(self, pathname: str | None, _tick: object = None) -> Component | None:
        """The count of problems, apart from the page: it asks for a figure of its own that the page need not wait for."""
        visible = doors.viewer().workspaces
        if self._path(pathname) != overview.PATH:
            return None

        def ask() -> list[Problem]:
            with self.open_ledger() as opened:
                return opened.problems(visible=visible, now=self.now())

        return shell.attention(attempt("the list of problems", ask), self.prefix)

    def bar(self, pathname: str | None, search: str | None) -> tuple[list[Component], Component | None]:
        """The links and the filter bar of the page that the address names."""
        visible, path = doors.viewer().workspaces, self._path(pathname)
        links = self._links(path, search or "")
        if path not in {page.PATH for page in _FILTERED}:
            return links, None
        try:
            selection = Selection.parse(search)
            selection.period(self.now())
        except InvalidInput:
            return links, None

        def ask() -> Choices:
            with self.open_ledger() as opened:
                return opened.choices(visible=visible, now=self.now())

        return links, shell.controls(selection, attempt("the lists of names", ask), now=self.now(), prefix=self.prefix, path=path)

    def navigate(self, *values: Any) -> Any:
        """The address that the controls ask for, or nothing to do where it is the present one."""
        doors.viewer()
        *names, modes, basis, granularity, first_day, last_day, tag_value, tag_key, search = values
        try:
            present = Selection.parse(search)
            chosen = {field: tuple(_texts(value)) for (_, _, field), value in zip(DROPDOWNS, names, strict=True)}
            wanted = replace(
                present,
                workspaces=chosen["workspaces"],
                deployments=chosen["deployments"],
                models=chosen["models"],
                applications=chosen["applications"],
                teams=chosen["teams"],
                modes=tuple(mode for mode in Mode if mode.value in _texts(modes)),
                basis=next((known for known in BASES if known == basis), present.basis),
                granularity=next((known for known in GRANULARITIES if known == granularity), present.granularity),
            )
            wanted = self._dated(wanted, first_day, last_day)
            if isinstance(tag_key, str) and tag_key and isinstance(tag_value, str) and tag_value:
                wanted = replace(wanted, tags=tuple(dict.fromkeys((*wanted.tags, (tag_key, tag_value)))))
        except InvalidInput:
            return no_update
        if replace(wanted, modes=tuple(sorted(wanted.modes))) == replace(present, modes=tuple(sorted(present.modes))):
            return no_update
        return wanted.search()

    def download(self, search: str) -> Response:
        """The rows of one ledger answer as a file, with their control total in a header."""
        visible = doors.viewer().workspaces
        try:
            selection = Selection.parse(search)
            query = selection.query(now=self.now(), visible=visible, granularity=selection.granularity, group_by=selection.group_by)
            with self.open_ledger() as opened:
                answer = opened.costs(query, now=self.now())
        except DomainError as fault:
            status = 503 if isinstance(fault, Unavailable) else 422 if isinstance(fault, InvalidInput) else 500
            return make_response(f"{told(fault)}\n", status, {"Content-Type": "text/plain; charset=utf-8"})
        headers = {
            "Content-Type": "text/csv; charset=utf-8",
            "Content-Disposition": 'attachment; filename="meterbridge-costs.csv"',
            "X-Control-Total": tables.control_total(answer),
        }
        return make_response(tables.costs_csv(answer), 200, headers)

    def _path(self, pathname: str | None) -> str:
        return (pathname or self.prefix).removeprefix(self.prefix.rstrip("/")).strip("/")

    def _links(self, path: str, search: str) -> list[Component]:
        """The pages by group; the period and filters go along to those that know them."""
        return shell.nav(
            [
                (page.GROUP, page.NAME, f"{self.prefix}{page.PATH}{search if page in _FILTERED else ''}", path == page.PATH)
                for page in PAGES
                if page not in {explain, backtest}  # reached from a figure, and from a form
            ]
        )

    def _dated(self, wanted: Selection, first_day: object, last_day: object) -> Selection:
        """The selection with the picked days, if they are not those that the address already means."""
        if not isinstance(first_day, str) or not isinstance(last_day, str):
            return wanted
        period = wanted.period(self.now())
        begin = parse_bound(first_day[:10], what="the first day")
        end = parse_bound(last_day[:10], what="the last day")
        shown = (utc_day(period.start), utc_day(period.end - timedelta(microseconds=1)))
        if (begin.date(), end.date()) == shown or end < begin:
            return wanted
        return replace(wanted, begin=begin, end=end + timedelta(days=1))


def _named(page: Sequence[Component], kind: str) -> dict[str, Any]:
    """The charts or the parts of a page, by name."""
    whole = html.Div(list(page))
    return {name["name"]: whole[name] for name in whole if isinstance(name, dict) and name.get("type") == kind}


def _cut(content: Component, name: str) -> Component:
    """A piece of a page as parts that a refresh replaces when their digests say that they read differently.

    Around a chart, which is to stay where it is, each piece is a part by itself: the words and sums beside it change too.
    """
    if isinstance(content, dcc.Graph):
        return content
    if not _named([content], figures.CHART):
        attributes: dict[str, Any] = {"data-digest": f"{crc32(json.dumps(content, cls=PlotlyJSONEncoder).encode()):08x}"}
        return html.Div(content, id={"type": PART, "name": name}, className="part", **attributes)
    children = content.children if isinstance(content.children, list | tuple) else [content.children]
    content.children = [_cut(child if isinstance(child, Component) else html.Span(child), f"{name}.{place}") for place, child in enumerate(children)]
    return content


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _index(prefix: str) -> str:
    """The page around Dash's own; the theme is set before anything is drawn."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
{{%metas%}}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{%title%}}</title>
<link rel="icon" href="{prefix}assets/icon.svg" type="image/svg+xml">
<script src="{prefix}assets/theme.js"></script>
{{%css%}}
</head>
<body>
{{%app_entry%}}
<footer>
{{%config%}}
{{%scripts%}}
{{%renderer%}}
</footer>
</body>
</html>"""
