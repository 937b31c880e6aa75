"""Who is about to hit a limit: headroom now, the highest minute of a week, what was throttled, what ends soon."""

from __future__ import annotations

from decimal import Decimal

from dash import html
from dash.development.base_component import Component

from dashboard import figures, tables, text
from dashboard.pages import start
from dashboard.shell import Failure, View, age_line, card, failure_panel, tile
from models.ledger import Filters, Pool

PATH = "quotas"
NAME = "Quotas"
GROUP = "Operations"
_MOST_BARS = 16
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
    return [*head, _tiles(pools), *([_chart(view, known[:_MOST_BARS])] if known else []), _table(pools)]


def _share(used: int | None, pool: Pool) -> Decimal:
    return Decimal(100 * used) / pool.limit if used is not None and pool.limit else Decimal(-1)


def _tiles(pools: list[Pool]) -> Component:
    limited = [pool for pool in pools if pool.limit]
    tight = [pool for pool in limited if _share(pool.used, pool) >= 80]
    throttled = sum(sum(pool.throttled.values()) for pool in pools if pool.measure == "requests_per_minute")
    ending = [pool for pool in pools if pool.deletes_at is not None or pool.retires_at is not None]
    return html.Div(
        [
            tile("Pools above 80 %", text.count(len(tight)), note=f"of {len(limited)} with a known limit", tone="warn" if tight else ""),
            tile("Throttled in the last hour", text.count(throttled), note="calls answered 429"),
            tile("Ending", text.count(len({(pool.workspace, pool.deployment) for pool in ending})), note="deployments with a deletion or retirement date"),
        ],
        className="tiles",
    )


def _name(pool: Pool) -> str:
    if pool.deployment is not None:
        return f"{pool.deployment} · {pool.workspace} ({_MEASURES.get(pool.measure, pool.measure)})"
    return f"{pool.family} · {pool.region} ({pool.source})"


def _chart(view: View, pools: list[Pool]) -> Component:
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
        figures.graph(figures.levels(rows, revision=view.here), name="levels", describes=said, height=90 + 34 * len(rows)),
        note="Fullest first. The dotted line is the limit.",
        name="wide",
    )


def _table(pools: list[Pool]) -> Component:
    columns = [
        tables.Column("Pool"),
        tables.Column("Limit", is_number=True),
        tables.Column("Says", title="who says the limit: the owner, Azure, an answer's header, what was used when it throttled, or the documented default"),
        tables.Column("Now", is_number=True),
        tables.Column("Left", is_number=True),
        tables.Column("Highest in 7 days", is_number=True),
        tables.Column("Meets the limit"),
        tables.Column("Throttled", title="429s of the last hour, by who threw them"),
        tables.Column("Used by"),
        tables.Column("Ends"),
    ]

    def cells(pool: Pool) -> list[tables.Cell]:
        ends = [f"deleted {text.instant(pool.deletes_at)}"] if pool.deletes_at else []
        ends += [f"model retires {text.instant(pool.retires_at)}"] if pool.retires_at else []
        return [
            tables.named(_name(pool), length=60),
            text.count(pool.limit) if pool.limit is not None else text.UNKNOWN,
            text.words(pool.limit_source or ""),
            text.count(pool.used),
            text.count(pool.headroom) if pool.headroom is not None else text.UNKNOWN,
            html.Span(text.count(pool.peak), title=text.exact_instant(pool.peak_at)),
            text.instant(pool.saturation_at) if pool.saturation_at else "",
            ", ".join(f"{text.visible(who)} {count}" for who, count in pool.throttled.items()),
            html.Span(", ".join(f"{text.visible(who)} {text.tokens(count)}" for who, count in list(pool.users)[:3]), className="wrap"),
            html.Span("; ".join(ends), className="wrap"),
        ]

    note = "Set a limit of your own with PUT /v1/quotas/{id}."
    return card("Every pool", tables.table(columns, [cells(pool) for pool in pools[:80]], caption="Pools and their headroom"), note=note, name="wide")
