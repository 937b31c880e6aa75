"""What somebody may change from a page: plain forms that post to ``act/<what>`` and come back to the page they were on.

A form works without a script. The guard before everything (``dashboard.access``) has refused other sites by then; here only
an ``admin`` viewer (or open mode) passes. What an act does is the desk's, which is given by the composition root and calls
the very functions of the API's routes: same checks, same audit trail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from urllib.parse import urlencode

from dash import html
from dash.development.base_component import Component
from flask import Flask, Response, make_response, redirect, request

from dashboard import access as doors
from dashboard.access import Viewer
from models.errors import DomainError, told

# (what, its parameters, who asks); raises ``DomainError``
Desk = Callable[[str, Mapping[str, str], Viewer], None]

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
        said = {**request.args.to_dict(), **request.form.to_dict()}
        said.pop("back", None)
        if any(len(value) > _LONGEST or "\0" in value for value in said.values()):
            return _fault(422, "A field is too long or has a character that no text has.", prefix, back)
        try:
            desk(what, {key: value.strip() for key, value in said.items()}, viewer)
        except DomainError as fault:
            return _fault(_STATUS.get(fault.error, 422), told(fault), prefix, back)
        return make_response(redirect(prefix + back, code=303))


def _fault(status: int, message: str, prefix: str, back: str) -> Response:
    """A plain page that says why nothing was changed, with the way back."""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>Nothing was changed · meterbridge</title>
<link rel="icon" href="{prefix}assets/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{prefix}assets/style.css">
<script src="{prefix}assets/theme.js"></script>
</head>
<body class="login">
<main>
<h1>Nothing was changed</h1>
<p class="fault" role="alert">{escape(message)}</p>
<p><a class="button" href="{escape(prefix + back)}">Back</a></p>
</main>
</body>
</html>"""
    return make_response(page, status, {"Content-Type": "text/html; charset=utf-8"})


def form(prefix: str, what: str, label: str, *, back: str, fields: Sequence[Component] = (), title: str = "", name: str = "act", **said: str) -> Component:
    """A form of one button; ``said`` is what it says besides its fields."""
    action = f"{prefix}act/{what}?{urlencode({**said, 'back': back})}"
    return html.Form([*fields, html.Button(label, type="submit", title=title)], method="post", action=action, className=name)
