"""The audit trail as a part of a page: who changed the things that it shows, when, and from what to what."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dash import html
from dash.development.base_component import Component

from dashboard import tables, text
from dashboard.shell import Failure, View, card, failure_panel
from models.columns import canonical_json
from models.ledger import TrailEntry
from models.periods import parse_instant

_MOST_PARTS = 12
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", re.ASCII)


def changes(view: View, *kinds: str) -> Component:
    """The latest changes of such things."""
    found = view.ask("the latest changes", lambda: view.ledger.trail(kinds=kinds, visible=view.visible))
    if isinstance(found, Failure):
        return failure_panel(found, view.here)
    if not found:
        return card("Changes", html.P("Nobody has changed anything yet. Every change will stand here, with who made it and when."), name="wide")
    columns = [tables.Column("When"), tables.Column("Who"), tables.Column("Did"), tables.Column("To"), tables.Column("What changed")]
    rows: list[list[tables.Cell]] = [
        [
            html.Span(text.ago(one.at, view.now), title=text.exact_instant(one.at)),
            tables.named(one.actor),
            text.words(one.action),
            html.Span([f"{text.words(one.kind.replace('-', '_'))} ", tables.named(one.name)]),
            html.Span("; ".join(_differences(one)) or "", className="wrap"),
        ]
        for one in found
    ]
    note = "The newest first; all of them: GET /v1/audit-trail"
    return card("Changes", tables.table(columns, rows, caption="Changes"), note=note, name="wide")


def _differences(entry: TrailEntry) -> Sequence[str]:
    shown = [
        f"{text.words(name)} {_said(after)}" if before is None else f"{text.words(name)} {_said(before)} → {_said(after)}"
        for name, before, after in entry.parts
    ]
    return shown[:_MOST_PARTS]


def _said(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(one, dict) and {"name", "value"} <= set(one) for one in value):
        value = ", ".join(f"{one['name']}={one['value']}" for one in value)
    elif isinstance(value, list) and all(isinstance(one, str | int) for one in value):
        value = ", ".join(map(str, value)) or "none"
    elif isinstance(value, str) and _INSTANT.fullmatch(value):
        return text.instant(parse_instant(value, what="it"))
    return text.visible(text.short(canonical_json(value) if isinstance(value, dict | list) else str(value), 60))
