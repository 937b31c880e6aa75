"""Meters the calls of an OpenAI or azure-ai-inference client and reports them to a meterbridge service.

    client = meterbridge_client.wrap(OpenAI(), url="http://127.0.0.1:8000", workspace="proj-chat", deployment="llama-3-3-70b")

Needs the standard library only. Prompts, completions and keys are never kept, reported or written to disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from meterbridge_client.calls import Labels
from meterbridge_client.reporter import Reporter, Stats
from meterbridge_client.wrapping import install, reporter_of, transport_of

__all__ = ["Reporter", "Stats", "flush", "stats", "wrap"]

_Client = TypeVar("_Client")


def wrap(
    client: _Client,
    *,
    url: str,
    key: str | None = None,
    workspace: str | None = None,
    deployment: str | None = None,
    application: str | None = None,
    team: str | None = None,
    tags: Mapping[str, str] | None = None,
    spool: str | os.PathLike[str] | Literal[False] | None = None,
    source: str = "meterbridge-client",
    reporter: Reporter | None = None,
) -> _Client:
    """The same client, metered: every attempt it makes is reported to the service at ``url``.

    Every name may be left out where the service knows it (a key of one workspace, an address of its inventory). ``spool`` is
    the folder in which events wait: one of this user's own when None, memory only when False. ``reporter`` shares one
    between clients; without it each client has its own.
    """
    transport = transport_of(client)
    labels = Labels(source=source, workspace=workspace, deployment=deployment, application=application, team=team, tags=dict(tags or {}))
    shared = reporter or Reporter(url, key=key, spool=spool, spool_names=(workspace or "", application or ""))
    install(transport, shared, labels)
    return client


def stats(client: Any) -> Stats:
    """What became of the events of a wrapped client."""
    return reporter_of(client).stats()


def flush(client: Any, timeout: float = 10.0) -> bool:
    """Wait until everything that a wrapped client has reported is with the service; whether that came about in time."""
    return reporter_of(client).flush(timeout)
