"""The gate in front of every route: who asks, from where, and whether their key covers it.

Judged before a byte of the body is read. With no key ever created the service is open, but only to programs and
pages of this machine: a foreign ``Host`` (DNS rebinding), a proxy's headers or a cross-site request are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from collector import auth
from collector.api.problems import problem_of
from collector.auth import KeyRing, Principal
from models.errors import DomainError, Forbidden, Unauthorized

_LOCAL_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?", re.ASCII)
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-prefix", "x-real-ip", "via")
_ALWAYS = frozenset({"/livez", "/readyz", "/version"})
# A gateway asks before a call, with the ingest key it reports the call with.
_ANY_SCOPE = frozenset({"/v1/admission", "/v1/admission/denied", "/v1/alerts/litellm"})
_PUBLIC = frozenset({"/", "/docs", "/openapi.json", "/docs/oauth2-redirect", "/favicon.ico"})


def headers_of(scope: Scope) -> dict[str, str]:
    """The request's headers by lower-case name; the first of a repeated one."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found


def refuse_foreign(headers: Mapping[str, str]) -> None:
    """Refuse what the open mode must not answer: another host name, a proxy in between, a page of another site."""
    if not _LOCAL_HOST.fullmatch(headers.get("host", "").lower()):
        raise Forbidden("without keys only this machine is answered, as 127.0.0.1, localhost or [::1]; create an admin key to serve others")
    found = next((header for header in headers if header in _PROXY_HEADERS or header.startswith("x-forwarded-")), None)
    if found is not None:
        raise Forbidden(f"without keys no proxied request is answered (it has the header {found}); create an admin key to serve behind a proxy")
    refuse_cross_site(headers)


def refuse_cross_site(headers: Mapping[str, str]) -> None:
    """Refuse a request that a page of another site caused."""
    site = headers.get("sec-fetch-site", "none")
    origin = headers.get("origin")
    if site not in ("none", "same-origin"):
        raise Forbidden("a page of another site caused this request; it is not answered")
    if origin is not None and _host_of(origin) != headers.get("host", "").lower():
        raise Forbidden("the request comes from a page of another origin; it is not answered")


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""  # no browser writes such a one


_HARDENED = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"), (b"x-frame-options", b"DENY"))


def hardened(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer and those that every answer carries, unless its route said otherwise."""
    found = list(headers)
    said = {name.lower() for name, _ in found}
    return found + [(name, value) for name, value in _HARDENED if name not in said]


class Gate:
    """ASGI middleware that finds the principal and puts it into ``scope["state"]["principal"]``."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing, is_loopback: bool, refused: Callable[[DomainError, str, str | None], None] = lambda *_: None) -> None:
        """``refused`` is told of every POST that is turned away: why, its path and the key's id, None where no key works."""
        self._app = app
        self._refused = refused
        self._keys = keys
        self._is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path in _ALWAYS:
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        principal = None
        try:
            principal = await self.principal(path, headers)
            if principal is not None:
                scope.setdefault("state", {})["principal"] = principal
                needed = _needed(path, scope["method"])
                if needed is not None and not principal.may(needed):
                    raise Forbidden(f"this key has the scope {principal.scope}; {scope['method']} {path[:80]} needs {needed}")
        except DomainError as fault:
            if scope["method"] == "POST":
                self._refused(fault, path, principal.key_id if principal is not None else None)
            await problem_of(fault)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def principal(self, path: str, headers: Mapping[str, str]) -> Principal | None:
        """Who asks; None where the route decides for itself (public pages, the dashboard's own login, control)."""
        # Asked on every request: the database is only read (off the loop) when what is remembered is too old.
        return await run_in_threadpool(self._principal, path, headers) if self._keys.is_stale else self._principal(path, headers)

    def renew(self) -> None:
        """Have the keys read again before they are too old, beside whoever asks."""
        self._keys.renew()

    @property
    def is_stale(self) -> bool:
        """Whether the next question reads the keys again."""
        return self._keys.is_stale

    @property
    def reads(self) -> int:
        """How often the keys were read: what ``known`` said holds until the next time."""
        return self._keys.reads

    def known(self, path: str, headers: Mapping[str, str]) -> Principal | None:
        """Who posts this, where that is known without reading anything and nothing stands against it."""
        if self._keys.is_stale:
            return None
        try:
            found = self._principal(path, headers)
        except DomainError:
            return None
        needed = _needed(path, "POST")
        return found if found is not None and (needed is None or found.may(needed)) else None

    def _principal(self, path: str, headers: Mapping[str, str]) -> Principal | None:
        if self._keys.is_open():
            if not self._is_loopback:
                raise Unauthorized("no key exists yet; create an admin key on the machine itself: meterbridge keys create --name NAME --scope admin")
            refuse_foreign(headers)
            return auth.OPEN
        if path in _PUBLIC or path == "/dashboard" or path.startswith(("/dashboard/", "/v1/control", "/v1/reports/shared/")):
            return None
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise Unauthorized("a key is needed: send the header Authorization: Bearer mb_…")
        found = self._keys.authenticate(secret.strip())
        if found is None:
            raise Unauthorized("this key is not known, or was revoked")
        return found


def _needed(path: str, method: str) -> auth.Scope | None:
    if path in _PUBLIC or path == "/dashboard" or path.startswith(("/dashboard/", "/v1/control", "/v1/reports/shared/")):
        return None
    if method == "POST" and path.startswith(("/v1/usage", "/otlp/", "/api/v1/events")):
        return "admin" if path == "/v1/usage/void" else "ingest"
    if path in _ANY_SCOPE:
        return None  # the route itself looks at the workspace
    if method in ("GET", "HEAD", "OPTIONS"):
        return "read"
    return "admin"
