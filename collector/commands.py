"""The commands that write: imports and keys, as plain data in and plain lines out.

The same function serves the command line on its own, and a running service that owns the database and is asked
through its control route. ``say`` takes lines for a person, ``progress`` takes (done, of how many).
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from collector import auth, billing, pricing, registry
from collector.capture import native
from collector.capture.event import Defaults, Item
from collector.ingest import Batch, Ingest
from models.errors import InvalidInput
from models.periods import rfc3339
from models.store import Store

Kind = Literal["usage", "charges", "prices", "inventory", "owners"]
KINDS: tuple[Kind, ...] = ("usage", "charges", "prices", "inventory", "owners")
# Registry and price files are read whole; this is far above any real one.
_MAX_FILE = 256 * 1024 * 1024
_USAGE_SLICE = 4 * 1024 * 1024
# Events of one commit: beside an import a service has requests to answer.
_MOST_TOGETHER = 5_000
_MOST_SHOWN = 20

Say = Callable[[str], None]
Progress = Callable[[int, int | None], None]


class Import(msgspec.Struct, tag="import", forbid_unknown_fields=True):
    """``meterbridge import KIND FILE…``; the files are paths on this machine."""

    kind: Kind
    files: list[str]
    replace: bool = False


class CreateKey(msgspec.Struct, tag="create_key", forbid_unknown_fields=True):
    """``meterbridge keys create``."""

    name: str
    scope: auth.Scope
    workspaces: list[str] = msgspec.field(default_factory=list)


class RevokeKey(msgspec.Struct, tag="revoke_key", forbid_unknown_fields=True):
    """``meterbridge keys revoke ID``."""

    key_id: str


Command = Import | CreateKey | RevokeKey


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with."""

    store: Store
    ingest: Ingest
    now: Callable[[], datetime]
    say: Say
    progress: Progress


def run(command: Command, desk: Desk) -> int:
    """Do it; gives the exit code (1 where some of the usage was refused). Raises ``DomainError`` where nothing was done."""
    match command:
        case Import(kind="usage"):
            return _import_usage(command, desk)
        case Import(kind="charges"):
            return _import_charges(command, desk)
        case Import():
            return _import_registry(command, desk)
        case CreateKey(name=name, scope=scope, workspaces=workspaces):
            with desk.store.write() as session:
                info, secret = auth.create_key(session, name=name, scope=scope, workspaces=workspaces, now=desk.now())
            where = f" for {', '.join(info.workspaces)}" if info.workspaces else ""
            desk.say(f"key {info.id} ({info.scope}{where}), shown this once:")
            desk.say(secret)
            return 0
        case RevokeKey(key_id=key_id):
            with desk.store.write() as session:
                info = auth.revoke_key(session, key_id, now=desk.now())
            desk.say(f"key {info.id} ({info.name}) is revoked since {rfc3339(info.revoked_at or desk.now())}")
            return 0


def _author() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def readable(files: Sequence[str]) -> list[Path]:
    """The files as paths; refuses one that is not there, is no file or may not be read."""
    paths = [Path(file) for file in files]
    for path in paths:
        if not path.is_file():
            raise InvalidInput(f"{path} is not a file" if path.exists() else f"there is no file {path}")
        if not os.access(path, os.R_OK):
            raise InvalidInput(f"{path} may not be read by {_author() or 'this user'}; change its permissions")
    return paths


def _import_charges(command: Import, desk: Desk) -> int:
    for delivery in billing.deliveries(readable(command.files)):
        bill = billing.together([billing.read_bill(path, name=path.name) for path in delivery])
        landing = billing.land(desk.store, bill, now=desk.now, author=_author(), replace=command.replace, progress=desk.progress)
        desk.say(landing.summary())
    return 0


def _import_registry(command: Import, desk: Desk) -> int:
    files = [(path.name, _read(path)) for path in readable(command.files)]
    with desk.store.write() as session:
        now = desk.now()
        summaries: list[str] = []
        match command.kind:
            case "inventory":
                summaries.append(registry.import_inventory(session, files, now=now, author=_author(), replace=command.replace).summary())
            case "owners":
                summaries.append(registry.import_owners(session, files, now=now, author=_author(), replace=command.replace).summary())
            case _:
                for index, (name, content) in enumerate(files):
                    # --replace ends what stood before this command, not the file just imported.
                    done = pricing.import_prices(session, content, name=name, now=now, author=_author(), replace=command.replace and index == 0)
                    summaries.append(done.summary())
    for summary in summaries:
        desk.say(summary)
    return 0


def _read(path: Path) -> bytes:
    if path.stat().st_size > _MAX_FILE:
        raise InvalidInput(f"{path.name} is larger than {_MAX_FILE // 1024 // 1024} MiB; split it")
    return path.read_bytes()


def _import_usage(command: Import, desk: Desk) -> int:
    accepted = duplicates = refused = done = 0
    paths = readable(command.files)
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        for first, body in _slices(path):
            items: Sequence[Item] = native.capture(body, media_type="application/x-ndjson" if first is not None else None, defaults=Defaults())
            for start in range(0, len(items), _MOST_TOGETHER):
                verdict = desk.ingest.accept(Batch(items[start : start + _MOST_TOGETHER]))
                accepted += verdict.accepted
                duplicates += verdict.duplicates
                for one in verdict.rejected:
                    refused += 1
                    if refused <= _MOST_SHOWN:
                        index = start + one.index
                        place = f"item {index + 1}" if first is None else f"line {_line_of(body, index, first)}"
                        desk.say(f"{path.name}, {place}: {one.error}: {one.detail}")
            done += len(body)
            desk.progress(done, size)
    if refused > _MOST_SHOWN:
        desk.say(f"and {refused - _MOST_SHOWN} more refused")
    desk.say(f"usage: {accepted} events stored, {duplicates} were there already, {refused} refused")
    return 1 if refused else 0


def _slices(path: Path) -> Iterator[tuple[int | None, bytes]]:
    """The file in bodies: an array whole (line None), lines in slices of a few MiB with the number of their first line."""
    with path.open("rb") as stream:
        start = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        stream.seek(0)
        if start.startswith(b"[") or (path.stat().st_size <= _USAGE_SLICE and _is_one_value(path.read_bytes())):
            yield None, _read(path)
            return
        line = 1
        while lines := stream.readlines(_USAGE_SLICE):
            yield line, b"".join(lines)
            line += len(lines)


def _is_one_value(body: bytes) -> bool:
    """Whether a small file is a single event, written over several lines."""
    try:
        msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"), type=msgspec.Raw)
    except (ValueError, RecursionError):
        return False
    return True


def _line_of(body: bytes, index: int, first: int) -> int:
    """The line of the file that holds the item; blank lines are no items."""
    filled = [number for number, line in enumerate(body.splitlines()) if line.strip()]
    return first + (filled[index] if index < len(filled) else index)


def described(command: Command) -> Mapping[str, Any]:
    """The command as the control route takes it."""
    found: dict[str, Any] = msgspec.to_builtins(command)
    return found


__all__ = ["KINDS", "Command", "CreateKey", "Desk", "Import", "RevokeKey", "described", "run"]
