"""Which upstream a request goes to: the only addresses that the proxy ever connects to are those it was started with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from models.errors import InvalidInput

_NAMES = ("workspace", "endpoint", "deployment", "application", "team")
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::\d{1,5})?\Z|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One place that calls are passed on to, which requests are meant for it, and what is known of it.

    ``prefix`` is the start of the path that chooses it and is taken off ('' takes every path); ``host`` the Host header
    that chooses it, without its port, in lower case.
    """

    scheme: str
    host_header: bytes
    host_name: str
    port: int
    base_path: str
    prefix: str = ""
    host: str | None = None
    workspace: str | None = None
    endpoint: str | None = None
    deployment: str | None = None
    application: str | None = None
    team: str | None = None

    @property
    def url(self) -> str:
        """Its address, as it was given."""
        return f"{self.scheme}://{self.host_header.decode()}{self.base_path}"

    def target(self, asked: bytes) -> bytes:
        """The request target at the upstream for the one that was asked here; queries and escapes stay as they are."""
        rest = asked[len(self.prefix) :]
        if not rest.startswith(b"/"):
            rest = b"/" + rest if rest else b"/" * (not self.base_path)
        return self.base_path.encode() + rest or b"/"


def parse(text: str) -> Upstream:
    """An ``--upstream``: ``[PREFIX=|HOST=]URL [workspace=W] [deployment=D] …``."""
    words = text.split()
    if not words:
        raise InvalidInput("--upstream is empty; give the address of a deployment, such as https://NAME.eastus2.models.ai.azure.com")
    where, separator, address = words[0].partition("=")
    if not separator or "://" in where:
        where, address = "", words[0]
    known: dict[str, str] = {}
    for word in words[1:]:
        name, separator, value = word.partition("=")
        if name not in _NAMES or not separator or not value:
            raise InvalidInput(f"--upstream: {word[:60]!r} is none of {', '.join(f'{one}=…' for one in _NAMES)}")
        known[name] = value
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as fault:
        raise InvalidInput(f"--upstream: {address[:80]!r} is no address: {fault}") from fault
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InvalidInput(f"--upstream must be http:// or https:// with a host and perhaps a path, not {_shown(address)!r}")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("--upstream must not hold a name and password; callers send their own credentials")
    is_path = where.startswith("/")
    if where and not is_path and not _HOST.match(where):
        raise InvalidInput(f"--upstream: {where[:60]!r} is neither a path such as /llama nor a host name")
    return Upstream(
        scheme=parts.scheme,
        host_header=parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii"),
        host_name=parts.hostname,
        port=port,
        base_path=parts.path.rstrip("/"),
        prefix=where.rstrip("/") if is_path else "",
        host=where.lower().rpartition("]")[0] or where.lower().partition(":")[0] if where and not is_path else None,
        workspace=known.get("workspace"),
        endpoint=known.get("endpoint"),
        deployment=known.get("deployment"),
        application=known.get("application"),
        team=known.get("team"),
    )


def _shown(address: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", address)[:80]


def choose(upstreams: Sequence[Upstream], *, host: str, target: bytes) -> Upstream | None:
    """The upstream that the request is meant for: by its host, then by the longest prefix of its path; None where none is."""
    name = host.lower().rpartition("]")[0] or host.lower().partition(":")[0]
    path = target.partition(b"?")[0]
    fitting = [one for one in upstreams if (one.host is None or one.host == name) and _starts_with(path, one.prefix.encode())]
    return max(fitting, key=lambda one: (one.host is not None, len(one.prefix)), default=None)


def _starts_with(path: bytes, prefix: bytes) -> bool:
    return path == prefix or path.startswith(prefix + b"/") or not prefix
