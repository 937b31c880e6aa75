"""Who is about to hit a limit: headroom now, the highest minute of a week, what was throttled, what ends soon."""

from __future__ import annotations

from decimal import Decimal

from dash import html
from dash.development.base_component import Component

from dashboard import acts, figures, tables, text
from dashboard.pages import start
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile, together
from models.ledger import Filters, Pool, Pressure, pressure

PATH = "quotas"
NAME = "Quotas"
GROUP = "Operations"
_MOST_BARS = 16
_MOST_ROOM = 20
_SOURCES = {"user": "the owner", "header": "an answer's header", "observed": "observed 429s", "azure": "Azure"}
_MEASURES = {"tokens_per_minute": "tokens/min", "requests_per_minute": "requests/min", "vcpus": "vCPUs"}


def layout(view: View) -> list[Component]:
    """One question to the ledger: every pool."""
    age = view.ask("the age of the data", lambda: view.ledger.data_age(visible=view.visible, now=view.now))
    head: list[Component] = [
        html.Div([html.H1(NAME), html.P("Who is about to be throttled or run out of cores", className="subtitle")], className="heading"),
        age_line(age, view.now),
    ]
    pools = view.ask("the quotas", lambda: view.ledger.quotas(Filters(visible=view.visible), now=view.now))
    if isinstance(pools, Failure):
        return [*head, failure_panel(pools, view.here)]
    if not pools:
        return [*head, *start.steps(view)]
    known = sorted((pool for pool in pools if pool.limit), key=lambda pool: (-max(_share(pool.used, pool), _share(pool.peak, pool)), pool.id))
    found = pressure(pools, now=view.now)
    rates = [pool for pool in pools if pool.kind != "cores"]
    cores = [pool for pool in pools if pool.kind == "cores"]
    return [
        *head,
        _tiles(view, found),
        *([_chart(view, known[:_MOST_BARS], found)] if known else []),
        _room(view, found),
        _rates(view, sorted(rates, key=lambda pool: (-max(_share(pool.used, pool), _share(pool.peak, pool)), pool.id))),
        _throttled(view, found),
        *([_cores(view, cores)] if cores else []),
    ]


def _share(used: int | None, pool: Pool) -> Decimal:
    return Decimal(100 * used) / pool.limit if used is not None and pool.limit else Decimal(-1)


def _tiles(view: View, found: Pressure) -> Component:
    full, room = len(found.full), len(found.room)
    return html.Div(
        [
            tile("Pools above 80 %", view.figure("pools_full", full), note=f"of {found.limited} with a known limit", tone="warn" if full else ""),
            tile("Deployments with room", view.figure("deployments_with_room", room), note=f"of {found.deployments}: below 80 % and not throttled"),
            tile("Throttled in the last hour", view.figure("throttled_calls", sum(one.count for _, one in found.throttled)), note="calls answered 429"),
            tile("Ending", view.figure("deployments_ending", len(found.ending)), note="deployments with a deletion or retirement date"),
        ],
        className="tiles",
    )


def _name(pool: Pool) -> str:
    if pool.deployment is not None:
        return f"{pool.deployment} · {pool.workspace} ({_MEASURES.get(pool.measure, pool.measure)})"
    if pool.kind == "foundry":
        return f"{pool.model} · {pool.region}, shared by {len(pool.deployments)} ({_MEASURES.get(pool.measure, pool.measure)})"
    return f"{pool.family} · {pool.region} ({pool.source})"


def _chart(view: View, pools: list[Pool], found: Pressure) -> Component:
    rows = [
        (
            _name(pool),
            max(Decimal(0), _share(pool.used, pool)) if pool.used is not None else None,
            max(Decimal(0), _share(pool.peak, pool)) if pool.peak is not None else None,
            f"{_name(pool)}: {text.count(pool.used)} of {text.count(pool.limit)} now; highest {text.count(pool.peak)}",
        )
        for pool in pools
    ]
    said = "; ".join(words for *_, words in rows)
    return card(
        "How full",
        figures.graph(
            figures.levels(rows, revision=view.here, why=lambda name, row: view.why(f"quota_{name}", pool=pools[row].id)),
            name="levels",
            describes=said,
            height=90 + 34 * len(rows),
        ),
        together(view.figure("pools_full", len(found.full)), f" of {found.limited} pools are above 80 %; each bar is a row below"),
        note="In percent of the limit, fullest first. The dotted line is the limit.",
        name="wide",
    )


def _room(view: View, pressed: Pressure) -> Component:
    columns = [
        tables.Column("Model"),
        tables.Column("Deployment"),
        tables.Column("Region"),
        tables.Column("Tokens left", is_number=True),
        tables.Column("Requests left", is_number=True),
    ]
    found = sorted(pressed.room, key=lambda pair: (pair[0].model or "~", -(pair[0].headroom or 0), pair[0].id))
    rows: list[list[tables.Cell]] = [
        [
            tables.named(tokens.model, absent="unknown"),
            tables.named(f"{tokens.deployment} · {tokens.workspace}", length=60),
            text.visible(tokens.region or ""),
            _figure(view, tokens, "headroom"),
            _figure(view, requests, "headroom"),
        ]
        for tokens, requests in found[:_MOST_ROOM]
    ]
    note = "By model, most tokens left first: where a call can go now. Instances of one's own are not here, as nobody limits them."
    if not rows:
        return card("Room now", html.P("No deployment with a known limit has room now.", className="note"), note=note)
    return card("Room now", tables.table(columns, rows, caption="Deployments with room now"), note=note)


def _rates(view: View, pools: list[Pool]) -> Component:
    columns = [
        tables.Column("Pool"),
        tables.Column(
            "Limit", title="who says it and since when: the owner, Azure, an answer's header, what was used when it throttled, or the documented default"
        ),
        tables.Column(
            "Now", is_number=True, title="of the last 60 seconds, in the reading that counts against the limit; billed: at a call's end, admitted: at its start"
        ),
        tables.Column("5 min", is_number=True, title="a minute's worth of the last five minutes"),
        tables.Column("Left", is_number=True),
        tables.Column("Highest in 7 days", is_number=True, title="the fullest minute: billed at a call's end, and admitted at its start"),
        tables.Column("Meets the limit", title="when the daily peaks, growing as in the last week, reach the limit"),
        tables.Column("Used by"),
        *([tables.Column("What to do")] if view.may_act else []),
    ]

    def cells(pool: Pool) -> list[tables.Cell]:
        ends = [f"deleted {text.instant(pool.deletes_at)}"] if pool.deletes_at else []
        ends += [f"model retires {text.instant(pool.retires_at)}"] if pool.retires_at else []
        other = "admitted" if pool.counting == "billed" else "billed"
        aside = f"{text.count(pool.readings[other]['60s'])} {other}" if pool.measure == "tokens_per_minute" and other in pool.readings else ""
        left = f"{text.count(pool.left_said[0])} says Azure" if pool.left_said else ""
        return [
            _under(html.Span(tables.named(_name(pool), length=60), className="wrap short"), *(html.Div(end, className="warn") for end in ends)),
            _limit(view, pool),
            _under(_figure(view, pool, "used"), html.Div(aside, className="absent") if aside else None),
            _figure(view, pool, "recent") if pool.recent is not None else "",
            _under(
                _figure(view, pool, "headroom") if pool.headroom is not None else "",
                html.Div(left, className="absent", title=text.exact_instant(pool.left_said[1])) if pool.left_said else None,
            ),
            _under(_figure(view, pool, "peak") if pool.peak is not None else "", _admitted_peak(pool)),
            html.Span(text.day(pool.saturation_at.date()), title=text.exact_instant(pool.saturation_at)) if pool.saturation_at else "",
            html.Span(", ".join(f"{text.visible(who)} {text.tokens(count)}" for who, count in list(pool.users)[:3]), className="wrap short")
            if pool.users
            else "",
            *([_set_limit(view, pool)] if view.may_act else []),
        ]

    # What one deployment shares with nobody is its own row already.
    shown = [pool for pool in pools if pool.kind != "foundry" or len(pool.deployments) > 1]
    note = "Fullest first. An admin sets a limit here or with PUT /v1/quotas/{id}; point at a limit's source to see from what it was learnt."
    return card(
        "Tokens and requests a minute",
        tables.table(columns, [cells(pool) for pool in shown[:60]], caption="Pools and their headroom"),
        note=note,
        name="wide",
    )


def _admitted_peak(pool: Pool) -> Component | None:
    """The fullest minute in the other reading."""
    seen = pool.admitted_peak
    if seen is None or seen.value is None:
        return None
    return html.Div(f"{text.count(seen.value)} admitted", className="absent", title=f"{text.instant(seen.at)}; looked at since {text.instant(seen.since)}")


def _figure(view: View, pool: Pool, name: str) -> Component:
    """A figure of a pool, with the way to why it is what it is."""
    return view.figure(f"quota_{name}", getattr(pool, name), reason=pool.reason or "nothing is known of it", pool=pool.id)


def _under(first: str | Component, *others: Component | None) -> Component:
    """A cell of several lines."""
    return html.Div([first, *(other for other in others if other is not None)])


def _limit(view: View, pool: Pool) -> Component:
    """The limit over who says it."""
    if pool.limit is None:
        return html.Span("nobody limits it" if pool.mode == "managed_compute" else text.UNKNOWN, className="absent", title=pool.reason or "")
    return _under(_figure(view, pool, "limit"), _says(pool))


def _set_limit(view: View, pool: Pool) -> Component | str:
    """The form by which an owner says a deployment's limit, or takes it back."""
    if pool.kind != "deployment":
        return ""
    own = next((one.value for one in pool.limits_said if one.source == "user"), None)
    field = acts.field(
        "Limit a minute", "limit", "" if own is None else str(own), hint="as Azure says", note="wins over every other source; empty takes it back"
    )
    chosen = pool.counting if own is not None else None
    note = "what a call used, at its end; or what it may use, at its start"
    counting = acts.choice("Counts", "counting", ("billed", "admitted"), chosen=chosen, note=note)
    fields = [field, counting] if pool.measure == "tokens_per_minute" else [field]
    form = acts.form(view.prefix, "set-limit", "Set the limit", back=PATH, fields=fields, name="fields", id=pool.id)
    return html.Span(acts.popped("Limit", text.short(text.visible(_name(pool)), 60), form), className="acts")


def _says(pool: Pool) -> Component:
    """Who says the limit and since when; what others say differently is written out, for a limit is not overruled in silence."""
    first = next((one for one in pool.limits_said if one.counts), None)
    if first is None:
        words = {"default": "documented default", "deployments": "sum of its deployments'"}.get(pool.limit_source or "", pool.limit_source or "")
        return html.Div(words, className="absent")
    title = "; ".join(part for part in (first.evidence, f"set by {first.author}" if first.author else "") if part)
    title = "; ".join(part for part in (text.instant(first.said_at), title) if part)
    day = text.day(first.said_at.date())
    parts: list[str | Component] = [html.Div(f"{_SOURCES.get(first.source, first.source)}, {day}", className="absent", title=title)]
    others = [one for one in pool.limits_said if not one.counts and one.value != first.value]
    parts += [
        html.Div(f"{_SOURCES.get(one.source, one.source)} says {text.count(one.value)}, {text.instant(one.said_at)}", className="warn wrap", title=one.evidence)
        for one in others
    ]
    return html.Div(parts)


def _throttled(view: View, found: Pressure) -> Component:
    columns = [
        tables.Column("Deployment"),
        tables.Column("Thrown by"),
        tables.Column("Caller", title="the application, else the team, else the workspace"),
        tables.Column("Calls", is_number=True),
    ]
    rows: list[list[tables.Cell]] = [
        [
            tables.named(f"{pool.deployment} · {pool.workspace}", length=60),
            text.visible(one.by),
            tables.named(one.caller),
            view.figure("throttled_calls", one.count, pool=pool.id, side=one.by, subject=one.caller),
        ]
        for pool, one in found.throttled
    ]
    note = "429s of the last hour. Azure's mean that the limit is met; a gateway's or the client's own are rules of yours."
    if not rows:
        return card("Throttled in the last hour", html.P("No call was answered 429 in the last hour.", className="note"), note=note)
    return card("Throttled in the last hour", tables.table(columns, rows[:40], caption="Throttled calls by who threw and who called"), note=note)


def _cores(view: View, pools: list[Pool]) -> Component:
    columns = [
        tables.Column("Family"),
        tables.Column("Region"),
        tables.Column("Counted by", title="Compute and Machine Learning count the same cores apart; they are never added"),
        tables.Column("Limit", is_number=True),
        tables.Column("Used", is_number=True),
        tables.Column("Left", is_number=True),
        tables.Column("For upgrades", is_number=True, title="a fifth of the instances of each deployment, rounded up, on sizes that Azure does not exempt"),
        tables.Column("Left after upgrades", is_number=True),
        tables.Column("Seen"),
    ]

    def cells(pool: Pool) -> list[tables.Cell]:
        left = pool.upgrade_left
        return [
            html.Span(tables.named(pool.family, length=60), className="wrap short"),
            text.visible(pool.region or ""),
            {"ml": "Machine Learning", "compute": "Compute"}.get(pool.source or "", pool.source or ""),
            _figure(view, pool, "limit") if pool.limit is not None else "no limit",
            _figure(view, pool, "used"),
            _figure(view, pool, "headroom"),
            _figure(view, pool, "upgrade_reserved") if pool.upgrade_reserved is not None else "",
            html.Span(_figure(view, pool, "upgrade_left"), className="warn" if left < 0 else "") if left is not None else "",
            text.instant(pool.seen_at) if pool.seen_at else "",
        ]

    fullest = sorted(pools, key=lambda pool: (-_share(pool.used, pool), pool.id))
    return card("vCPUs", tables.table(columns, [cells(pool) for pool in fullest[:40]], caption="vCPU quotas by family"), name="wide")
