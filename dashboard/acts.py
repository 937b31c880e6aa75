"""What somebody may change from a page: plain forms that post to ``act/<what>`` and come back to the page they were on.

A form works without a script; with one (``live.js``) a fault is shown at its field and what was typed stays. The guard
before everything (``dashboard.access``) has refused other sites by then; here only an ``admin`` viewer (or open mode)
passes. What an act does is the desk's, which is given by the composition root and calls the very functions of the API's
routes: same checks, same audit trail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from urllib.parse import urlencode

from dash import dcc, html
from dash.development.base_component import Component
from flask import Flask, Response, jsonify, make_response, redirect, request

from dashboard import access as doors
from dashboard import text
from dashboard.access import Viewer
from models.errors import DomainError, InvalidInput, told

# (what, its parameters, who asks) -> a label and a secret that is shown this once, if there is one; raises ``DomainError``
Desk = Callable[[str, Mapping[str, str], Viewer], tuple[str, str] | None]

_STATUS = {"forbidden": 403, "not_found": 404, "conflict": 409, "unavailable": 503}
_LONGEST = 4096


def may_act(desk: Desk | None, viewer: Viewer) -> bool:
    """Whether buttons are shown to a viewer, and heard."""
    return desk is not None and viewer.scope == "admin"


def accept(server: Flask, desk: Desk | None, *, prefix: str) -> None:
    """Put the one route that changes something on the dashboard's server."""

    @server.post("/act/<what>")
    def act(what: str) -> Response:
        viewer = doors.viewer()
        back = doors.inside(request.args.get("back", ""))
        if desk is None or not may_act(desk, viewer):
            return _fault(403, "This needs an admin key: the one that you are signed in with may only look.", prefix, back)
        # Of a choice of several each line is one.
        said = {**request.args.to_dict(), **{name: "\n".join(values) for name, values in request.form.to_dict(flat=False).items()}}
        said.pop("back", None)
        if any(len(value) > _LONGEST or "\0" in value for value in said.values()):
            return _fault(422, "A field is too long or has a character that no text has.", prefix, back)
        try:
            shown = desk(what, {key: value.strip() for key, value in said.items()}, viewer)
        except DomainError as fault:
            return _fault(_STATUS.get(fault.error, 422), told(fault), prefix, back, field=fault.field if isinstance(fault, InvalidInput) else "")
        if shown is not None:
            return _once(*shown, prefix, back)
        if _is_script():
            return _answer(200, go=prefix + back)
        return make_response(redirect(prefix + back, code=303))


def _is_script() -> bool:
    return request.headers.get("Accept", "") == "application/json"


def _answer(status: int, **said: str) -> Response:
    return make_response(jsonify(said), status, {"Cache-Control": "no-store"})


def _fault(status: int, message: str, prefix: str, back: str, *, field: str = "") -> Response:
    """Why nothing was changed: for the field it is about, or as a plain page with the way back."""
    if _is_script():
        return _answer(status, message=message, field=field)
    about = f"{escape(text.words(field))}: " if field else ""
    return _page(status, "Nothing was changed", f'<p class="fault" role="alert">{about}{escape(message)}</p>', prefix, back)


def _once(label: str, secret: str, prefix: str, back: str) -> Response:
    """What is shown this once."""
    if _is_script():
        return _answer(200, go=prefix + back, label=label, secret=secret)
    return _page(200, "Shown this once", f"<p>{escape(label)}</p><pre>{escape(secret)}</pre>", prefix, back)


def _page(status: int, title: str, content: str, prefix: str, back: str) -> Response:
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{title} · meterbridge</title>
<link rel="icon" href="{prefix}assets/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{prefix}assets/style.css">
<script src="{prefix}assets/theme.js"></script>
</head>
<body class="login">
<main>
<h1>{title}</h1>
{content}
<p><a class="button" href="{escape(prefix + back)}">Back</a></p>
</main>
</body>
</html>"""
    return make_response(page, status, {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"})


# -- the parts of a form --------------------------------------------------------------------------


def form(
    prefix: str,
    what: str,
    label: str,
    *,
    back: str,
    fields: Sequence[Component] = (),
    title: str = "",
    name: str = "act",
    more: Sequence[Component] = (),
    **said: str,
) -> Component:
    """A form of one button (and ``more`` of them); ``said`` is what it says besides its fields."""
    action = f"{prefix}act/{what}?{urlencode({**said, 'back': back})}"
    buttons = [html.Button(label, type="submit", title=title), *more]
    return html.Form([*fields, html.Span(buttons, className="buttons") if fields else buttons[0]], method="post", action=action, className=name)


def unfolded(summary: str, *content: Component) -> Component:
    """A form that is there when somebody asks for it: two steps, so that no slip of a finger does what somebody relies on at night."""
    return html.Details([html.Summary(summary), *content])


def popped(summary: str, title: str, *content: Component) -> Component:
    """A form of more than a line, over the page rather than inside a row of a table; ``live.js`` closes it."""
    close = html.Button("Close", type="button", className="close")
    return html.Details([html.Summary(summary), html.Div([html.Header([html.H2(title), close]), *content], className="panel")], className="popped")


def field(label: str, name: str, value: str = "", *, hint: str = "", needed: bool = False, note: str = "", wide: bool = False, fault: str = "") -> Component:
    """One line of text."""
    control = dcc.Input(type="text", name=name, value=value, placeholder=hint, required=needed, maxLength=2048, autoComplete="off")
    return _labelled(label, control, note=note, fault=fault, wide=wide)


def choice(label: str, name: str, values: Sequence[str | tuple[str, str]], *, chosen: str | None = None, note: str = "", fault: str = "") -> Component:
    """One of several; each a value, or a value with its words. The first stands, or the one that is ``chosen``."""
    pairs = [(one, text.words(one)) if isinstance(one, str) else one for one in values]
    # A choice begins with its first option: that is the present one.
    ordered = sorted(pairs, key=lambda pair: pair[0] != chosen) if chosen is not None else pairs
    return _labelled(label, html.Select([html.Option(words, value=value) for value, words in ordered], name=name), note=note, fault=fault)


def several(label: str, name: str, values: Sequence[tuple[str, str]], *, chosen: Sequence[str] = (), note: str = "", fault: str = "") -> Component:
    """Any number of several."""
    options = [html.Option(words, value=value, selected="selected" if value in chosen else None) for value, words in values]
    return _labelled(label, html.Select(options, name=name, multiple="multiple", size=str(min(max(len(options), 2), 5))), note=note, fault=fault)


def _labelled(label: str, control: Component, *, note: str, fault: str, wide: bool = False) -> Component:
    said = [html.Span(label), control, *([html.Span(note, className="field-note")] if note else [])]
    said += [html.Span(fault, className="field-fault", role="alert")] if fault else []
    return html.Label(said, className="labelled wide" if wide else "labelled")
