"""Where a receiver may be: checked when it is made, and again, for the very address we connect to, at every attempt.

A URL is a way to make this service talk to what only it can reach. So a name is never trusted: all its addresses must be
allowed, and the connection goes to one of those that were checked (a name that changes its mind in between gains nothing).
``ipaddress.is_global`` alone is no filter: it calls Azure's WireServer and the metadata service behind NAT64 global.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from models.errors import InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*", re.ASCII)
# Not global whatever the library says: WireServer, metadata, and what carries another address inside.
_NEVER_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96",
            "fec0::/10", "5f00::/16",
        ),
    )
)  # fmt: skip
# An allowed network opens these only if it lies within them: 0.0.0.0/0 is not meant to open the metadata service.
_NAMED_ONLY = tuple(
    map(
        ipaddress.ip_network,
        (
            "127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10", "169.254.169.254/32", "168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128",
            "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96",
        ),
    )
)  # fmt: skip


class Refused(InvalidInput):
    """A receiver may not be there."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart: what we connect to and what we ask for there."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.scheme == "https" else 80) else f"{name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows: private networks, and ports beside 443."""

    allow: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset({443})

    @classmethod
    def parse(cls, allow: str, ports: str) -> Policy:
        """From METERBRIDGE_WEBHOOK_ALLOW and METERBRIDGE_WEBHOOK_PORTS, lists with commas."""
        networks: list[Network] = []
        for one in filter(None, (part.strip() for part in allow.split(","))):
            try:
                networks.append(ipaddress.ip_network(one))
            except ValueError as fault:
                raise InvalidInput(f"METERBRIDGE_WEBHOOK_ALLOW lists networks such as 10.0.0.0/8, and {one[:60]!r} is none: {fault}") from fault
        found = {443}
        for one in filter(None, (part.strip() for part in ports.split(","))):
            if not (one.isascii() and one.isdigit() and len(one) <= 5 and 1 <= int(one) <= 65_535):
                raise InvalidInput(f"METERBRIDGE_WEBHOOK_PORTS lists ports such as 443,8443, and {one[:20]!r} is none")
            found.add(int(one))
        return cls(tuple(networks), frozenset(found))

    def check(self, target: Target, addresses: Sequence[str]) -> list[str]:
        """The addresses to connect to; refuses the target if any one of them is not allowed."""
        if not addresses:
            raise Refused(f"{target.host} has no address")
        return [self._checked(target, text) for text in addresses]

    def _checked(self, target: Target, text: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise Refused(f"{target.host} has an address that is none: {text[:60]!r}") from None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if self._is_allowed(address):
            return str(address)
        where = f"{target.host} is at {address}" if target.host != str(address) else str(address)
        if not is_public(address):
            raise Refused(f"{where}, which is not a public address; the operator may allow its network with METERBRIDGE_WEBHOOK_ALLOW")
        if target.scheme != "https":
            raise Refused(f"{where}, a public address: use https; plain http is only for networks of METERBRIDGE_WEBHOOK_ALLOW")
        if target.port not in self.ports:
            raise Refused(
                f"port {target.port} of {target.host}: public receivers are on port {', '.join(map(str, sorted(self.ports)))} (METERBRIDGE_WEBHOOK_PORTS)"
            )
        return str(address)

    def _is_allowed(self, address: Address) -> bool:
        if getattr(address, "scope_id", None) is not None:
            return False
        special = [one for one in _NAMED_ONLY if _is_in(address, one)]
        return any(_is_in(address, network) and all(_is_within(network, one) for one in special) for network in self.allow)


def _is_in(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


def _is_within(network: Network, other: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and network.subnet_of(other)
    return isinstance(other, ipaddress.IPv6Network) and network.subnet_of(other)


def is_public(address: Address) -> bool:
    """Whether an address is of the internet, and nothing of ours or of the cloud's."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.is_site_local or address.scope_id is not None:
            return False
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback or address.is_link_local:
        return False
    return not any(_is_in(address, network) for network in _NEVER_PUBLIC)


def parse(url: str) -> Target:
    """A receiver's URL; whatever two programs could read differently is refused."""
    if not 1 <= len(url) <= 2048:
        raise Refused("the url of a receiver has 1 to 2,048 characters")
    if any(not "!" <= sign <= "~" for sign in url):
        raise Refused("the url has a space, a line end or a character outside ASCII in it; write such a host name in its xn-- form")
    if any(sign in url for sign in '\\"<>^`{|}'):
        raise Refused("the url has a character in it that no url has; write it percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused("the url is not one; it is like https://hooks.example.com/path") from None
    if parts.scheme not in ("https", "http") or not url.lower().startswith(f"{parts.scheme}://"):
        raise Refused("the url must begin with https:// (or http:// in a network of METERBRIDGE_WEBHOOK_ALLOW)")
    if "@" in parts.netloc:
        raise Refused("the url has a user name or password in it; leave it away")
    if "#" in url:
        raise Refused("the url has a fragment (#…), which is never sent; leave it away")
    host = _host(parts)
    if parts.netloc.endswith(":") or port == 0:
        raise Refused("the url has no port after its colon")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port if port is not None else 443 if parts.scheme == "https" else 80, path)


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").lower()
    if "%" in host:
        raise Refused("the host has a percent sign in it; write it out, and without a zone")
    if "[" in parts.netloc:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise Refused(f"{host[:60]!r} is not an IPv6 address") from None
    if host.endswith("."):
        raise Refused("the host ends with a dot; leave it away")
    labels = host.split(".")
    if not host or len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Refused(f"{host[:60]!r} is not a host name")
    if _NUMBER.fullmatch(labels[-1]):
        # Decimal, octal, hex or short forms are addresses to some programs and names to others.
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise Refused(f"{host[:60]!r} is not an address in its usual form of four decimal numbers") from None
    return host


def mailbox(url: str) -> list[str]:
    """The addresses of ``mailto:a@example.com,b@example.com``."""
    scheme, _, rest = url.partition(":")
    found = rest.split(",")
    if scheme.lower() != "mailto" or len(found) > 20 or not all(_MAILBOX.fullmatch(one) for one in found):
        raise Refused("the url of an email receiver is mailto:name@example.com, several addresses with commas, without ?…")
    return found


def look_up(host: str, port: int) -> list[str]:
    """Every address of a name, by the system's resolver."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def literal(host: str) -> bool:
    """Whether the host is an address already."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
