"""The commands that write: imports and keys, as plain data in and plain lines out.

The same function serves the command line on its own, and a running service that owns the database and is asked
through its control route. ``say`` takes lines for a person, ``progress`` takes (done, of how many).
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from collector import applying, auth, billing, closing, focus, mappings, pricereview, pricing, registry, reports, usagefiles, witnessing
from collector.azure import sync as azure_sync
from collector.capture.event import Defaults
from collector.ingest import Ingest
from collector.webhooks.setup import Telling
from models import ledger, money
from models.columns import to_microseconds
from models.errors import InvalidInput
from models.periods import Period, to_the_second
from models.store import Store

Kind = Literal["usage", "charges", "prices", "inventory", "owners", "meters"]
KINDS: tuple[Kind, ...] = ("usage", "charges", "prices", "inventory", "owners", "meters")
# Registry and price files are read whole; this is far above any real one.
_MAX_FILE = 256 * 1024 * 1024
_USAGE_SLICE = 1024 * 1024
# Events of one commit: beside an import a service has requests to answer.
_MOST_TOGETHER = 5_000
_MOST_SHOWN = 20
_PREVIEWED = timedelta(days=92)

Say = Callable[[str], None]
Progress = Callable[[int, int | None], None]


class Import(msgspec.Struct, tag="import", forbid_unknown_fields=True):
    """``meterbridge import KIND FILE…``; the files are paths on this machine."""

    kind: Kind
    files: list[str]
    replace: bool = False
    # Of usage: its format where the content does not say it, and what is said for events that do not say it themselves.
    format: str | None = None
    workspace: str | None = None
    deployment: str | None = None
    source: str | None = None
    # Of prices: show what the file would change and import nothing.
    dry_run: bool = False


class ReviewPrices(msgspec.Struct, tag="review_prices", forbid_unknown_fields=True):
    """``meterbridge prices waiting|accept|reject``."""

    action: Literal["waiting", "accept", "reject"]
    ids: list[int] = msgspec.field(default_factory=list)


class CreateKey(msgspec.Struct, tag="create_key", forbid_unknown_fields=True):
    """``meterbridge keys create``."""

    name: str
    scope: auth.Scope
    workspaces: list[str] = msgspec.field(default_factory=list)


class RevokeKey(msgspec.Struct, tag="revoke_key", forbid_unknown_fields=True):
    """``meterbridge keys revoke ID``."""

    key_id: str


Command = (
    Import
    | ReviewPrices
    | CreateKey
    | RevokeKey
    | reports.CostReport
    | reports.CloseReport
    | closing.CloseMonth
    | closing.ReopenMonth
    | applying.Apply
    | azure_sync.Sync
    | focus.ExportFocus
)


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with."""

    store: Store
    ingest: Ingest
    now: Callable[[], datetime]
    say: Say
    progress: Progress
    telling: Telling = field(default_factory=Telling)


def run(command: Command, desk: Desk) -> int:
    """Do it; gives the exit code (1 where some of the usage was refused). Raises ``DomainError`` where nothing was done."""
    match command:
        case Import(kind="usage", dry_run=False):
            return _import_usage(command, desk)
        case Import(kind="charges", dry_run=False):
            return _import_charges(command, desk)
        case Import(kind="prices", dry_run=True):
            return _preview_prices(command, desk)
        case Import(dry_run=True):
            raise InvalidInput("--dry-run is for prices: it shows what they would change")
        case focus.ExportFocus():
            return focus.run(desk.store, command, places=desk.telling.places, now=desk.now(), say=desk.say, progress=desk.progress)
        case azure_sync.Sync():
            return azure_sync.run(desk.store, command, now=desk.now, say=desk.say, progress=desk.progress)
        case ReviewPrices():
            return _review_prices(command, desk)
        case Import():
            return _import_registry(command, desk)
        case closing.CloseMonth():
            return closing.close(desk.store, command, now=desk.now(), say=desk.say)
        case closing.ReopenMonth():
            return closing.reopen(desk.store, command, now=desk.now(), say=desk.say)
        case reports.CostReport():
            return reports.write_cost(desk.store, command, now=desk.now(), say=desk.say)
        case reports.CloseReport():
            return reports.write_close(desk.store, command, now=desk.now(), say=desk.say)
        case CreateKey(name=name, scope=scope, workspaces=workspaces):
            with desk.store.write() as session:
                info, secret = auth.create_key(session, name=name, scope=scope, workspaces=workspaces, now=desk.now())
            where = f" for {', '.join(info.workspaces)}" if info.workspaces else ""
            desk.say(f"key {info.id} ({info.scope}{where}), shown this once:")
            desk.say(secret)
            return 0
        case applying.Apply():
            return applying.apply(
                desk.store,
                Path(command.file),
                now=desk.now(),
                author=author(),
                say=desk.say,
                dry_run=command.dry_run,
                prune=command.prune,
                secrets=command.secrets,
                telling=desk.telling,
            )
        case RevokeKey(key_id=key_id):
            with desk.store.write() as session:
                info = auth.revoke_key(session, key_id, now=desk.now())
            desk.say(f"key {info.id} ({info.name}) is revoked since {to_the_second(info.revoked_at or desk.now())}")
            return 0


def author() -> str:
    """Who gives the command, as the machine knows them."""
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
            raise InvalidInput(f"{path} may not be read by {author() or 'this user'}; change its permissions")
    return paths


def _import_charges(command: Import, desk: Desk) -> int:
    for delivery in billing.deliveries(readable(command.files)):
        bill = billing.together([billing.read_bill(path, name=path.name) for path in delivery])
        landing = billing.land(desk.store, bill, now=desk.now, author=author(), replace=command.replace, progress=desk.progress)
        desk.say(landing.summary())
    return 0


def _import_registry(command: Import, desk: Desk) -> int:
    files = [(path.name, _read(path)) for path in readable(command.files)]
    summaries: list[str] = []
    waits = 0
    with desk.store.write() as session:
        now = desk.now()
        match command.kind:
            case "inventory":
                summaries.append(registry.import_inventory(session, files, now=now, author=author(), replace=command.replace).summary())
            case "owners":
                summaries.append(registry.import_owners(session, files, now=now, author=author(), replace=command.replace).summary())
            case "meters":
                for index, (name, content) in enumerate(files):
                    summaries.append(
                        mappings.import_mappings(session, content, name=name, now=now, author=author(), replace=command.replace and index == 0).summary()
                    )
            case _:
                for index, (name, content) in enumerate(files):
                    # --replace ends what stood before this command, not the file just imported.
                    done = pricing.import_prices(session, content, name=name, now=now, author=author(), replace=command.replace and index == 0)
                    summaries += done.summary().splitlines()
                    waits += len(done.waiting)
    for summary in summaries:
        desk.say(summary)
    return 1 if waits else 0


def _preview_prices(command: Import, desk: Desk) -> int:
    now = desk.now()
    period = Period(now - _PREVIEWED, now)
    with desk.store.read() as session:
        for path in readable(command.files):
            found = pricing.previewed(session, _read(path), name=path.name, period=period, now=now, replace=command.replace)
            what = f"would change the metered cost of {len(found.rows)} months and teams of the last {_PREVIEWED.days} days"
            desk.say(f"{path.name} {what}; nothing was imported")
            _say_rerates(found.rows, desk)
            if found.waiting:
                desk.say(f"{len(found.waiting)} of its rows would wait for review and change nothing until accepted:")
                for line in found.waiting[:_MOST_SHOWN]:
                    desk.say(f"  {line}")
                desk.say("accepted, it would come to:")
                _say_rerates(found.accepted, desk)
    return 0


def _say_rerates(rows: Sequence[ledger.Rerate], desk: Desk) -> None:
    for row in rows:
        closed = "; the month is closed: its rows stay, this would be an adjustment" if row.is_closed else ""
        costs = f"{money.text(row.cost_now)} -> {money.text(row.cost_then)} ({'+' if row.difference > 0 else ''}{money.text(row.difference)})"
        desk.say(f"  {row.month:%Y-%m} {row.team or '(no team)'} {row.currency or 'no currency'}: {costs}{closed}")


def _review_prices(command: ReviewPrices, desk: Desk) -> int:
    if command.action == "waiting":
        with desk.store.read() as session:
            rows = ledger.waiting_prices(session)
            desk.say(f"{len(rows)} price {'row waits' if len(rows) == 1 else 'rows wait'} for review")
            for row in rows:
                desk.say(pricereview.waiting_line(row))
        return 0
    with desk.store.write() as session:
        for waiting_id in command.ids:
            decided = pricereview.decide(session, waiting_id, accept=command.action == "accept", author=author(), now=desk.now())
            desk.say(f"price row {decided.id} is {decided.decision}")
    return 0


def _read(path: Path) -> bytes:
    if path.stat().st_size > _MAX_FILE:
        raise InvalidInput(f"{path.name} is larger than {_MAX_FILE // 1024 // 1024} MiB; split it")
    return path.read_bytes()


def _import_usage(command: Import, desk: Desk) -> int:
    paths = readable(command.files)
    size = sum(path.stat().st_size for path in paths)
    defaults = Defaults(source=command.source or "default", workspace=command.workspace, deployment=command.deployment)
    reader = usagefiles.Reader(
        desk.ingest,
        received_at=lambda: to_microseconds(desk.now()),
        keep=lambda points: witnessing.keep(desk.store, points, now=desk.now()),
        defaults=defaults,
        format=command.format,
        most_shown=_MOST_SHOWN,
        most_together=_MOST_TOGETHER,
        slice_size=_USAGE_SLICE,
    )
    outcomes: list[usagefiles.Outcome] = []
    done = shown = 0
    for path in paths:
        before = done
        outcome = usagefiles.load(path, reader, lambda here, before=before: desk.progress(before + here, size))  # type: ignore[misc]  # bound now
        done += path.stat().st_size
        for reason in outcome.reasons[: max(0, _MOST_SHOWN - shown)]:
            desk.say(reason)
            shown += 1
        if set(outcome.formats) - {"native"}:
            desk.say(outcome.summary())
        outcomes.append(outcome)
    accepted, duplicates, refused = (sum(found) for found in zip(*((one.accepted, one.duplicates, one.refused) for one in outcomes), strict=True))
    if refused > shown:
        desk.say(f"and {refused - shown} more refused")
    desk.say(f"usage: {accepted} events stored, {duplicates} were there already, {refused} refused")
    return 1 if refused else 0


def described(command: Command) -> Mapping[str, Any]:
    """The command as the control route takes it."""
    found: dict[str, Any] = msgspec.to_builtins(command)
    return found


__all__ = ["KINDS", "Command", "CreateKey", "Desk", "Import", "ReviewPrices", "RevokeKey", "described", "run"]
