"""Who may look: the login page, the session cookie, and the guard before everything under the mount.

The cookie holds a key's id and an end, signed; what that key may see is asked again for every request, so a revoked key
is out at once. Every state-changing request must come from this site. Pages carry a strict content security policy: no
other host, no inline script but Dash's own by its hash, no frame around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from flask import Flask, Response, g, jsonify, make_response, redirect, request
from itsdangerous import BadSignature, URLSafeSerializer

from models.errors import DomainError, Forbidden, told

COOKIE = "meterbridge_session"
SESSION_LASTS = timedelta(hours=12)
_LONGEST_KEY = 512
# Needed before anyone is signed in; neither says anything about the data.
_PUBLIC_ASSETS = frozenset({"/assets/style.css", "/assets/theme.js", "/assets/icon.svg"})
_SCOPES = frozenset({"read", "admin"})


@dataclass(frozen=True, slots=True)
class Viewer:
    """The key that somebody signed in with; ``workspaces`` None is all of them."""

    key_id: str
    name: str
    scope: str
    workspaces: frozenset[str] | None


class Access(Protocol):
    """What the service knows of keys, given by the composition root."""

    @property
    def cookie_secret(self) -> bytes:
        """The same in every process of the service, and for ever."""

    def authenticate(self, secret: str) -> Viewer | None:
        """The key with this secret; takes as long for one that does not exist."""

    def viewer_for(self, key_id: str) -> Viewer | None:
        """The key of a session as it is now; None once it is revoked."""

    def is_open(self, environ: Mapping[str, Any]) -> bool:
        """No key was ever created and this WSGI request may be served without one; ``Forbidden`` where none exists but it may not."""


OPEN = Viewer("", "open", "admin", None)


def viewer_if_any() -> Viewer | None:
    """Whom this request is served for; only the guard sets it."""
    found = g.get("meterbridge_viewer")
    return found if isinstance(found, Viewer) else None


def viewer() -> Viewer:
    """Whom this request is served for; nothing is shown to nobody."""
    found = viewer_if_any()
    if found is None:
        raise Forbidden("nobody is signed in")
    return found


def guard(server: Flask, access: Access, *, prefix: str, now: Callable[[], datetime], is_behind_tls: bool = False) -> None:
    """Put the guard and the login routes before everything that ``server`` serves; ``prefix`` is where a browser sees it."""
    signer = URLSafeSerializer(access.cookie_secret, salt="meterbridge.dashboard.session")
    cookie_path = prefix.rstrip("/") or "/"

    def session_viewer() -> Viewer | None:
        try:
            content = signer.loads(request.cookies.get(COOKIE, ""))
            key_id, ends = content["key"], datetime.fromisoformat(content["ends"])
        except (BadSignature, KeyError, TypeError, ValueError):
            return None
        if not isinstance(key_id, str) or now() >= ends:
            return None
        found = access.viewer_for(key_id)
        return found if found is not None and found.scope in _SCOPES else None

    @server.before_request
    def check() -> Response | None:
        if request.method not in {"GET", "HEAD", "OPTIONS"} and not is_same_site():
            return _refused(403, "this request comes from another site")
        if request.path in _PUBLIC_ASSETS:
            return None
        try:
            if access.is_open(request.environ):
                g.meterbridge_viewer = OPEN
                return None
            found = session_viewer()
        except Forbidden as fault:
            return _refused(403, fault.message)
        except DomainError as fault:
            return _refused(503, told(fault))
        if found is not None:
            g.meterbridge_viewer = found
            return None
        if request.path in {"/login", "/logout"}:
            return None
        if request.method == "GET" and _is_page(request.path):
            back = request.full_path.rstrip("?").lstrip("/")
            return _as_response(redirect(f"{prefix}login" + (f"?next={quote(back)}" if back else ""), code=303))
        return _refused(401, "sign in first")

    @server.get("/login")
    def login_page() -> Response:
        if viewer_if_any() is not None:
            return _as_response(redirect(prefix, code=303))
        return login_form(prefix, back=request.args.get("next", ""), fault=None)

    @server.post("/login")
    def login() -> Response:
        secret, back = request.form.get("key", "").strip(), request.form.get("next", "")
        try:
            found = access.authenticate(secret[:_LONGEST_KEY])
        except DomainError as fault:
            return login_form(prefix, back=back, fault=told(fault), status=503)
        if found is None:
            return login_form(prefix, back=back, fault="This key does not work: it is unknown or was revoked.", status=401)
        if found.scope not in _SCOPES:
            return login_form(prefix, back=back, fault="This is an ingest key: it may send usage and see nothing. Use a read or admin key.", status=403)
        answer = redirect(prefix + inside(back), code=303)
        answer.set_cookie(
            COOKIE,
            str(signer.dumps({"key": found.key_id, "ends": (now() + SESSION_LASTS).isoformat()})),
            max_age=int(SESSION_LASTS.total_seconds()),
            path=cookie_path,
            secure=request.is_secure or is_behind_tls,
            httponly=True,
            samesite="Lax",
        )
        return _as_response(answer)

    @server.post("/logout")
    def logout() -> Response:
        answer = redirect(f"{prefix}login", code=303)
        answer.delete_cookie(COOKIE, path=cookie_path, secure=request.is_secure or is_behind_tls, httponly=True, samesite="Lax")
        return _as_response(answer)


def harden(server: Flask, script_hashes: Callable[[], list[str]]) -> None:
    """Security headers on every answer; ``script_hashes`` names the inline scripts that a page may run."""
    hashes = " ".join(script_hashes())
    # Styles stay 'unsafe-inline': Dash's components and Plotly write style elements of their own. Both draw without eval.
    policy = (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'"
    )

    @server.after_request
    def headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "same-origin"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=()"
        # Only Dash's fingerprinted bundles may be kept; figures and pages belong to the one who is signed in.
        if response.cache_control.max_age and response.cache_control.max_age > 86400 and request.path.startswith("/_dash-component-suites/"):
            response.cache_control.private = True
        elif not request.path.startswith("/assets/"):
            response.headers["Cache-Control"] = "no-store"
        return response


def is_same_site() -> bool:
    """Whether a browser says that this request comes from our own pages; a program that says nothing has no cookie to abuse."""
    fetch_site = request.headers.get("Sec-Fetch-Site")
    if fetch_site is not None:
        return fetch_site in {"same-origin", "none"}
    origin = request.headers.get("Origin")
    return origin is None or (origin != "null" and urlsplit(origin).netloc.lower() == request.host.lower())


def inside(back: str) -> str:
    """Where to go after signing in: a path below the dashboard, nothing that could lead elsewhere."""
    path = back.lstrip("/")
    if len(back) > 4096 or "\\" in path or any(ord(letter) < 32 for letter in path):
        return ""
    parts = urlsplit(path)
    if parts.scheme or parts.netloc or ".." in parts.path or not _is_page(f"/{parts.path}") or parts.path in {"login", "logout"}:
        return ""
    query = f"?{parts.query}" if parts.query else ""
    return quote(parts.path) + query


def login_form(prefix: str, *, back: str, fault: str | None, status: int = 200) -> Response:
    """A plain page: it works before any script may be loaded."""
    said = f'<p class="fault" role="alert" id="fault">{escape(fault)}</p>' if fault else ""
    described = ' aria-describedby="fault" aria-invalid="true"' if fault else ""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>Sign in · meterbridge</title>
<link rel="icon" href="{prefix}assets/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{prefix}assets/style.css">
<script src="{prefix}assets/theme.js"></script>
</head>
<body class="login">
<main>
<h1>meterbridge</h1>
<form method="post" action="{prefix}login">
<p>Sign in with a <strong>read</strong> or <strong>admin</strong> key.</p>
<label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus maxlength="{_LONGEST_KEY}" spellcheck="false"{described}>
<input type="hidden" name="next" value="{escape(back[:4096])}">
{said}
<button type="submit">Sign in</button>
<p class="note">An administrator makes one with <code>meterbridge keys create --name NAME --scope read</code>.</p>
</form>
</main>
</body>
</html>"""
    return make_response(page, status, {"Content-Type": "text/html; charset=utf-8"})


def _is_page(path: str) -> bool:
    return not path.startswith(("/_", "/assets/", "/download/"))


def _refused(status: int, detail: str) -> Response:
    titles = {401: "Unauthorized", 403: "Forbidden", 503: "Service Unavailable"}
    answer = jsonify({"type": "about:blank", "title": titles[status], "status": status, "detail": detail})
    answer.status_code = status
    answer.headers["Content-Type"] = "application/problem+json"
    return answer


def _as_response(answer: Any) -> Response:
    """Werkzeug's redirect as the Flask response that it is at run time."""
    return make_response(answer)
