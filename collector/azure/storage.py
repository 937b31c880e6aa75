"""Files into a container of Azure Blob storage: each whole or not at all, under a name that the same file has again when it is sent twice.

Signed in as whoever we are to Azure, with a token for storage and nothing else; or by the shared access signature (SAS) of
the address, which is kept apart from it and shown nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import httpx

from collector.azure.client import LOOPBACK, STORAGE_HOSTS, AzureSettings, retry_seconds, storage_token_source, without_query
from models.errors import Forbidden, InvalidInput, NotFound, Unauthorized, UpstreamError

_VERSION = "2023-11-03"
# A blob of at most this size is one request; a larger one is blocks of it, of which storage takes 50,000.
BLOCK_BYTES = 8 * 1024 * 1024
_MOST_BLOCKS = 50_000
_MOST_TRIES = 5
_LONGEST_WAIT = 30.0
_TIMEOUT = 60.0
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_LIKE = "https://ACCOUNT.blob.core.windows.net/CONTAINER/FOLDER"

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Container:
    """A container, with the folder in it: ``url`` has no query; ``sas`` is what signs instead of a token."""

    url: str
    sas: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str, *, is_simulated: bool = False) -> Container:
        """The container of an address; ``InvalidInput`` where it is none of Azure. ``is_simulated`` lets this machine be one."""
        try:
            where = urlsplit(text)
            host, _ = where.hostname or "", where.port
        except ValueError as fault:
            raise InvalidInput(f"a container is written like {_LIKE}") from fault
        is_azure = where.scheme == "https" and host.endswith(STORAGE_HOSTS) and where.port in (None, 443)
        if (not is_azure and not (is_simulated and host in LOOPBACK)) or where.username or where.fragment:
            raise InvalidInput(f"a container is written like {_LIKE}; {host[:100] or 'this'} is no storage of Azure")
        names = [unquote(name) for name in where.path.strip("/").split("/") if name]
        if not names or any(name in (".", "..") or not name.isprintable() or "\\" in name for name in names):
            raise InvalidInput(f"a container is written like {_LIKE}")
        if where.query and "sig" not in parse_qs(where.query):
            raise InvalidInput("the address of a container has a query that is no shared access signature; leave it out")
        return cls(f"{where.scheme}://{where.netloc}/{'/'.join(quote(name, safe='') for name in names)}", where.query)

    @property
    def host(self) -> str:
        """The account, as a message may name it."""
        return urlsplit(self.url).hostname or ""

    def blob(self, name: str) -> str:
        """The address of a file in it, without what signs."""
        return f"{self.url}/{quote(name)}"


class Storage:
    """An open way to storage; a block that ends closes it."""

    def __init__(self, asked: AzureSettings, *, now: datetime, sleep: Callable[[float], None] = time.sleep, timeout: float = _TIMEOUT) -> None:
        self._token = storage_token_source(asked)
        self._now = now
        self._sleep = sleep
        # It logs the address of every request at level info, and this one's may hold a signature.
        logging.getLogger("httpx").addFilter(without_query)
        self._client = httpx.Client(trust_env=False, timeout=timeout, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def put(self, container: Container, name: str, content: BinaryIO, *, size: int, media_type: str, progress: Progress = lambda _done, _of: None) -> None:
        """Write ``size`` bytes as that blob; what was under the name before is there until the last byte has come."""
        if size <= BLOCK_BYTES:
            headers = {"x-ms-blob-type": "BlockBlob", "content-type": media_type}
            self._put(container, name, content.read(BLOCK_BYTES + 1), headers=headers)
            progress(size, size)
            return
        block_bytes = max(BLOCK_BYTES, -(-size // _MOST_BLOCKS))
        blocks: list[str] = []
        done = 0
        while piece := content.read(block_bytes):
            # Ids of one length; they mean the place and nothing more, so that a second try writes the same ones.
            blocks.append(base64.b64encode(f"{len(blocks):08}".encode()).decode())
            self._put(container, name, piece, query=f"comp=block&blockid={quote(blocks[-1], safe='')}")
            done += len(piece)
            progress(done, size)
        listed = "".join(f"<Latest>{block}</Latest>" for block in blocks)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        self._put(container, name, body, query="comp=blocklist", headers={"x-ms-blob-content-type": media_type, "content-type": "application/xml"})

    def probe(self, container: Container) -> None:
        """Whether a blob may be written there: a block that no list of blocks ever names, which nobody sees and Azure drops after a week."""
        self._put(container, "meterbridge-doctor", b"-", query=f"comp=block&blockid={quote(base64.b64encode(b'doctor').decode(), safe='')}")

    def _put(self, container: Container, name: str, content: bytes, *, query: str = "", headers: Mapping[str, str] | None = None) -> None:
        said = "&".join(part for part in (query, container.sas) if part)
        address = f"{container.blob(name)}?{said}" if said else container.blob(name)
        digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        wrong = ""
        for tried in range(_MOST_TRIES):
            wait = min(0.5 * 2**tried, _LONGEST_WAIT)
            try:
                # A token lives for an hour: each request asks for the one that is good now.
                answer = self._client.put(
                    address, content=content, headers={"content-md5": digest, "x-ms-version": _VERSION, **(headers or {}), **self._signed(container)}
                )
            except httpx.HTTPError as fault:
                wrong = type(fault).__name__  # its words may hold the address
            else:
                if answer.status_code == 201:
                    return
                wrong = f"{answer.status_code} {answer.headers.get('x-ms-error-code', '')}".strip()
                if answer.status_code not in _RETRIED:
                    raise _refusal(answer, container, name)
                wait = min(max(wait, retry_seconds(answer.headers, now=self._now) or 0.0), _LONGEST_WAIT)
            if tried < _MOST_TRIES - 1:
                self._sleep(wait)
        raise UpstreamError(f"{name} could not be written to {container.host}: {wrong}", retryable=True)

    def _signed(self, container: Container) -> dict[str, str]:
        if container.sas:
            return {}
        if self._token is None:
            raise Forbidden(
                "a static token is for Resource Manager alone and is not sent to storage; write to containers with METERBRIDGE_AZURE_CREDENTIAL=default"
            )
        from azure.core.exceptions import ClientAuthenticationError  # noqa: PLC0415 - takes long to load

        try:
            return {"authorization": f"Bearer {self._token()}"}
        except ClientAuthenticationError as fault:
            first = (str(fault).splitlines() or [""])[0][:200]
            raise Unauthorized(f"no token for Azure storage could be had: {first}; sign in with: az login, or give the service a managed identity") from None


def _refusal(answer: httpx.Response, container: Container, name: str) -> UpstreamError | Forbidden | NotFound:
    code = answer.headers.get("x-ms-error-code", "")
    said = f"{container.host} answered {answer.status_code} {code} to {name}".replace("  ", " ")
    match answer.status_code:
        case 401 | 403:
            how = "its signature has ended or may not write" if container.sas else "the identity needs Storage Blob Data Contributor on the container"
            return Forbidden(f"{said}: {how}")
        case 404:
            return NotFound(f"{said}: make the container first; only folders in it come by themselves")
        case _:
            return UpstreamError(said, retryable=False)
