"""Blob storage as it takes files: whole blobs and blocks, whose sums it checks, into containers that exist."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from urllib.parse import unquote
from xml.sax.saxutils import escape

from collector.azure.simulator.wire import Answer, Request


class BlobStorage:
    """What was written to it: ``blobs`` by ``container/name``. ``writes`` counts what came to be, also the same anew."""

    def __init__(self) -> None:
        self.containers: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.media_types: dict[str, str] = {}
        self.writes = 0
        self.token: str | None = None  # the only bearer token that is let in; None: any
        self.signature = ""  # the one SAS that is let in
        self._blocks: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()

    def put(self, request: Request) -> Answer:
        """Put Blob, Put Block or Put Block List."""
        path = unquote(request.path)
        container, _, name = path.partition("/")
        if not self._is_signed(request):
            return storage_error(403, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this permission.")
        if container not in self.containers or not name:
            return storage_error(404, "ContainerNotFound", "The specified container does not exist.")
        if "x-ms-version" not in request.headers:
            return storage_error(400, "MissingRequiredHeader", "An HTTP header that's mandatory for this request is not specified.")
        digest = base64.b64encode(hashlib.md5(request.content, usedforsecurity=False).digest()).decode()
        if request.headers.get("content-md5", digest) != digest:
            return storage_error(400, "Md5Mismatch", "The MD5 value specified in the request did not match the MD5 value calculated by the server.")
        with self._lock:
            match request.query.get("comp"):
                case "block":
                    self._blocks[path, request.query["blockid"]] = request.content
                case "blocklist":
                    ids = re.findall(r"<Latest>([^<]+)</Latest>", request.content.decode())
                    if any((path, block) not in self._blocks for block in ids):
                        return storage_error(400, "InvalidBlockList", "The specified block list is invalid.")
                    self._keep(path, b"".join(self._blocks[path, block] for block in ids), request.headers.get("x-ms-blob-content-type", ""))
                    self._blocks = {key: block for key, block in self._blocks.items() if key[0] != path}
                case None:
                    if request.headers.get("x-ms-blob-type") != "BlockBlob":
                        return storage_error(400, "MissingRequiredHeader", "An HTTP header that's mandatory for this request is not specified.")
                    self._keep(path, request.content, request.headers.get("content-type", ""))
                case _:
                    return storage_error(400, "InvalidQueryParameterValue", "Value for one of the query parameters is invalid.")
        return Answer(201, b"")

    def _keep(self, path: str, content: bytes, media_type: str) -> None:
        self.blobs[path], self.media_types[path] = content, media_type
        self.writes += 1

    def _is_signed(self, request: Request) -> bool:
        said, token = request.headers.get("authorization", ""), self.token
        if said:
            return said.startswith("Bearer ") and (token is None or said == f"Bearer {token}")
        return bool(self.signature) and request.query.get("sig") == self.signature


def storage_error(status: int, code: str, message: str) -> Answer:
    """A refusal as storage writes it."""
    text = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>'
    return Answer(status, text.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})
