"""``meterbridge apply -f FILE``: rules, budgets, silences, receivers, schedules of reports, owners and meters as a file in version control.

The difference is shown before anything is done, everything is done in one transaction, and a file that was applied
changes nothing when it is applied again. What the file does not name stays as it is, unless ``prune`` ends what an
earlier file made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
import yaml
from pydantic import BaseModel
from sqlmodel import Session

from collector import mappings, receivers, registry, rulebook
from collector.receivers import ReceiverBody
from collector.reports import schedules
from collector.reports.places import Places
from collector.reports.schedules import ScheduleBody
from collector.rulebook import Author, BudgetBody, RuleBody, SilenceBody
from collector.webhooks.setup import Telling
from models.alerts import AlertRule, Budget, Silence
from models.columns import canonical_json
from models.errors import InvalidInput
from models.notices import Format, Receiver, place
from models.periods import rfc3339, to_the_second
from models.schedules import ReportSchedule
from models.store import Store

ORIGIN = "apply"
_SECTIONS = ("receivers", "rules", "budgets", "silences", "schedules", "owners", "meters")
_MAX_FILE = 4 * 1024 * 1024
_MOST_ITEMS = 10_000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One difference: the line that shows it, and what makes it so."""

    line: str
    do: Callable[[], object]


@dataclass(slots=True)
class Plan:
    """What a file would change, and what it no longer has: ended where ``is_pruning``, else named."""

    steps: list[Step]
    is_pruning: bool = False
    unchanged: int = 0
    left: list[str] = field(default_factory=list)

    def add(self, line: str, do: Callable[[], object]) -> None:
        self.steps.append(Step(line, do))

    def remove(self, kind: str, name: str, do: Callable[[], object]) -> None:
        if self.is_pruning:
            self.add(f"- {kind} {name}", do)
        else:
            self.left.append(f"  {kind} {name} is no longer in the file; it stays (--prune ends it)")


class Apply(msgspec.Struct, tag="apply", forbid_unknown_fields=True):
    """``meterbridge apply -f FILE``; the file is a path on this machine, ``secrets`` is what it refers to (see ``referred``)."""

    file: str
    dry_run: bool = False
    prune: bool = False
    secrets: dict[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Apply({self.file!r})"


def apply(
    store: Store,
    file: Path,
    *,
    now: datetime,
    author: str,
    say: Say,
    dry_run: bool = False,
    prune: bool = False,
    secrets: Mapping[str, str] = MappingProxyType({}),
    telling: Telling | None = None,
) -> int:
    """Show what the file changes, then change it (not with ``dry_run``); gives the exit code."""
    said = read_file(file)
    by = Author(author or "apply", ORIGIN)
    told = [_receiver(item, secrets, where=f"{file.name}: receivers[{index}]") for index, item in enumerate(said.get("receivers", ()))]
    for body, where in told:
        # Names are looked up: that is no work for a transaction.
        try:
            receivers.check(telling or Telling(), body)
        except InvalidInput as fault:
            raise InvalidInput(f"{where}.{fault.field or 'url'}: {fault.message}") from fault
    with store.write() as session:
        plan = Plan([], is_pruning=prune)
        _plan(session, said, [body for body, _ in told], plan, by=by, now=now, where=file.name, places=(telling or Telling()).places)
        for step in plan.steps:
            say(step.line)
        for line in plan.left:
            say(line)
        if not plan.steps:
            say(f"nothing to change ({plan.unchanged} as the file says)")
            return 0
        if dry_run:
            session.rollback()
            say(f"{len(plan.steps)} to change, {plan.unchanged} unchanged; nothing was done (--dry-run)")
            return 0
        for step in plan.steps:
            step.do()
    say(f"{len(plan.steps)} changed, {plan.unchanged} unchanged")
    return 0


# -- receivers ------------------------------------------------------------------------------------

# What a file may refer to instead of saying it: the name of an environment variable, or of a file beside this one.
_REFERRED = ("url", "secret", "routing_key")
_MAX_SECRET = 4096


def referred(said: Mapping[str, list[Any]], *, folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """What the receivers of a file refer to, as whoever applies it sees it: ``NAME_env`` and ``NAME_file`` with their values."""
    found: dict[str, str] = {}
    for index, item in enumerate(said.get("receivers", ())):
        if not isinstance(item, dict):
            continue
        for name in (one for one in _REFERRED if one not in item):
            if isinstance(variable := item.get(f"{name}_env"), str):
                if not environ.get(variable, "").strip():
                    raise InvalidInput(f"receivers[{index}].{name}_env: there is no environment variable {variable[:60]!r} here; set it for this command")
                found[f"env:{variable}"] = environ[variable].strip()
            if isinstance(path := item.get(f"{name}_file"), str):
                try:
                    with (folder / path).open(encoding="utf-8") as opened:
                        found[f"file:{path}"] = opened.read(_MAX_SECRET + 1).strip()
                except (OSError, UnicodeDecodeError, ValueError) as fault:
                    raise InvalidInput(
                        f"receivers[{index}].{name}_file: {path[:200]} cannot be read: {getattr(fault, 'strerror', None) or 'no text'}"
                    ) from fault
                if not 0 < len(found[f"file:{path}"]) <= _MAX_SECRET:
                    raise InvalidInput(f"receivers[{index}].{name}_file: {path[:200]} must hold one secret of up to {_MAX_SECRET:,} characters")
    return found


def _receiver(item: object, secrets: Mapping[str, str], *, where: str) -> tuple[ReceiverBody, str]:
    """A receiver of the file with what it refers to; ``enabled`` is said only where the file says it."""
    if not isinstance(item, dict):
        raise InvalidInput(f"{where}: a receiver has a name, a format and a url")
    body = {name: value for name, value in item.items() if not (name.endswith(("_env", "_file")) and name.rpartition("_")[0] in _REFERRED)}
    for name in _REFERRED:
        ways = [way for way in (name, f"{name}_env", f"{name}_file") if way in item]
        if len(ways) > 1:
            raise InvalidInput(f"{where}: give either {ways[0]} or {ways[1]}")
        if ways == [name] and name != "url":
            raise InvalidInput(f"{where}.{name}: it belongs into no file; say {name}_env: VARIABLE or {name}_file: PATH")
        if ways and ways != [name]:
            way = ways[0].rpartition("_")[2]
            key = f"{way}:{item[ways[0]]}"
            if key not in secrets:
                raise InvalidInput(f"{where}.{ways[0]}: {str(item[ways[0]])[:60]!r} is not known here")
            body[name] = secrets[key]
    parsed = rulebook.parsed(ReceiverBody, body, where=where)
    if parsed.format is Format.STANDARD and parsed.secret is None:
        raise InvalidInput(f"{where}: the format standard needs secret_env or secret_file: one that is made here would be shown to nobody")
    return parsed, where


def _receivers(session: Session, bodies: Sequence[ReceiverBody], plan: Plan, *, by: Author, now: datetime, is_said: bool) -> None:
    """Receivers are found again by their names; of what is secret a line says only that it changes."""
    standing: dict[str, list[Receiver]] = {}
    for row in receivers.standing(session):
        standing.setdefault(row.name, []).append(row)
    seen: set[str] = set()
    for body in bodies:
        if body.name in seen:
            raise InvalidInput(f"receiver {body.name!r} is in the file twice; a receiver is known by its name")
        seen.add(body.name)
        kept = _only("receiver", body.name, standing.get(body.name, []))
        if kept is None:
            plan.add(
                f"+ receiver {body.name}: {body.format.value} {place(body.url, body.format)}",
                partial(receivers.create, session, body, by=by, now=now),
            )
            continue
        if "enabled" not in body.model_fields_set:
            # One that was switched off stays so: a file that is applied every night must not wake what answered 410.
            body = body.model_copy(update={"enabled": kept.is_enabled})  # noqa: PLW2901 - the body as it is meant
        changed = [f"format {kept.format.value} → {body.format.value}"] if kept.format is not body.format else _receiver_changes(kept, body, now=now)
        if changed:
            plan.add(f"~ receiver {body.name}: {'; '.join(changed)}", partial(receivers.replace, session, kept, body, by=by, now=now))
        else:
            plan.unchanged += 1
    for row in (one for rows in standing.values() for one in rows) if is_said else ():
        if row.origin == ORIGIN and row.name not in seen:
            plan.remove("receiver", row.name, partial(receivers.delete, session, row, by=by, now=now))


def _receiver_changes(row: Receiver, body: ReceiverBody, *, now: datetime) -> list[str]:
    before = receivers.shown(row, whole_url=True)
    after = body.model_dump(mode="json", exclude={"url", "secret", "routing_key", "format"})
    changed = [f"{name} {_brief(before[name])} → {_brief(value)}" for name, value in after.items() if before[name] != value]
    if row.url != body.url:
        changed.insert(0, f"url {place(row.url, row.format)} → {place(body.url, body.format)}")
    if body.secret is not None and body.secret != row.secret:
        changed.append(f"secret changes; the one before signs too until {to_the_second(now + receivers.OVERLAP)}")
    if body.routing_key is not None and body.routing_key != row.routing_key:
        changed.append("routing_key changes")
    return changed


# -- the file -------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML whose numbers with a point and times stay the text that was written: an amount of 100.10 is no float."""


def _as_text(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(node.value)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise InvalidInput(f"line {key_node.start_mark.line + 1}: a key must be text, not {str(key)[:40]!r}")
        if key in found:
            raise InvalidInput(f"line {key_node.start_mark.line + 1}: {key[:60]!r} is said twice")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:float", _as_text)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _as_text)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_file(file: Path) -> dict[str, list[Any]]:
    """The sections of the file; a fault says its line."""
    if not file.is_file():
        raise InvalidInput(f"{file} is not a file" if file.exists() else f"there is no file {file}")
    if file.stat().st_size > _MAX_FILE:
        raise InvalidInput(f"{file.name} is larger than {_MAX_FILE // 1024 // 1024} MiB; split it")
    try:
        said = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe loader of our own
    except UnicodeDecodeError as fault:
        raise InvalidInput(f"{file.name} is not UTF-8 text") from fault
    except yaml.MarkedYAMLError as fault:
        line = f"line {fault.problem_mark.line + 1}" if fault.problem_mark is not None else "somewhere"
        raise InvalidInput(f"{file.name}, {line}: {fault.problem or 'it is not YAML'}") from fault
    except yaml.YAMLError as fault:
        raise InvalidInput(f"{file.name} is not YAML: {str(fault).splitlines()[0]}") from fault
    except InvalidInput as fault:
        raise InvalidInput(f"{file.name}, {fault.message}") from fault
    except RecursionError as fault:
        raise InvalidInput(f"{file.name} is nested too deeply") from fault
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise InvalidInput(f"{file.name} must have the sections {', '.join(_SECTIONS)}")
    unknown = [name for name in said if name not in _SECTIONS]
    if unknown:
        raise InvalidInput(f"{file.name} does not know the section {unknown[0][:60]!r}; it takes {', '.join(_SECTIONS)}")
    for name, items in said.items():
        if items is not None and (not isinstance(items, list) or len(items) > _MOST_ITEMS):
            raise InvalidInput(f"{file.name}, {name}: a list of at most {_MOST_ITEMS:,} is needed")
    return {name: items or [] for name, items in said.items()}


# -- the plan -------------------------------------------------------------------------------------


def _plan(
    session: Session, said: Mapping[str, list[Any]], told: Sequence[ReceiverBody], plan: Plan, *, by: Author, now: datetime, where: str, places: Places
) -> None:
    _receivers(session, told, plan, by=by, now=now, is_said="receivers" in said)
    made_here = {body.name for body in told}

    def known() -> dict[str, str]:
        # Asked again when a step is done: what the file itself makes has an id only then.
        return {row.name: row.id for row in reversed(receivers.standing(session))}

    def ids(wanted: Sequence[str]) -> list[str]:
        names = known()
        return [names.get(one, one) for one in wanted]

    for section in ("rules", "budgets", "schedules"):
        names = known()
        for index, item in enumerate(said.get(section, ())):
            for one in (item.get("receivers") or ()) if isinstance(item, dict) else ():
                if isinstance(one, str) and one not in made_here and one not in names and one not in names.values():
                    raise InvalidInput(f"{where}: {section}[{index}].receivers: there is no receiver {one[:60]!r}, here or in the file")
    rules = [rulebook.parsed(RuleBody, item, where=f"{where}: rules[{index}]") for index, item in enumerate(said.get("rules", ()))]
    _named(
        rulebook.standing(session, AlertRule),
        "rule",
        rules,
        plan,
        shown=lambda row: _comparable(rulebook.rule_body(row), RuleBody),
        wanted=lambda body: _wanted(body, ids(body.receivers)),
        create=lambda body: rulebook.create_rule(session, _resolved(body, ids(body.receivers)), by=by, now=now),
        replace=lambda row, body: rulebook.replace_rule(session, row, _resolved(body, ids(body.receivers)), by=by, now=now),
        delete=lambda row: rulebook.delete(session, row, by=by, now=now),
        is_said="rules" in said,
    )
    every = [rulebook.parsed(BudgetBody, item, where=f"{where}: budgets[{index}]") for index, item in enumerate(said.get("budgets", ()))]
    _named(
        rulebook.standing(session, Budget),
        "budget",
        every,
        plan,
        shown=lambda row: _comparable(rulebook.budget_body(row), BudgetBody),
        wanted=lambda body: _wanted(body, ids(body.receivers)),
        create=lambda body: rulebook.create_budget(session, _resolved(body, ids(body.receivers)), by=by, now=now),
        replace=lambda row, body: rulebook.replace_budget(session, row, _resolved(body, ids(body.receivers)), by=by, now=now),
        delete=lambda row: rulebook.delete(session, row, by=by, now=now),
        is_said="budgets" in said,
    )
    reports = [_scheduled(item, places, where=f"{where}: schedules[{index}]") for index, item in enumerate(said.get("schedules", ()))]
    _named(
        schedules.standing(session),
        "schedule",
        reports,
        plan,
        shown=lambda row: _comparable(schedules.shown(row), ScheduleBody),
        wanted=lambda body: _wanted(body, ids(body.receivers)),
        create=lambda body: schedules.create(session, _resolved(body, ids(body.receivers)), places, by=by, now=now),
        replace=lambda row, body: schedules.replace(session, row, _resolved(body, ids(body.receivers)), places, by=by, now=now),
        delete=lambda row: schedules.delete(session, row, by=by, now=now),
        is_said="schedules" in said,
    )
    quiet = [rulebook.parsed(SilenceBody, item, where=f"{where}: silences[{index}]") for index, item in enumerate(said.get("silences", ()))]
    _silences(session, quiet, plan, by=by, now=now, is_said="silences" in said)
    if said.get("owners"):
        _owners(session, said["owners"], plan, by=by, now=now, where=where, prune=plan.is_pruning)
    if "meters" in said:
        _meters(session, said["meters"], plan, by=by, now=now, where=f"{where}: meters")


_Body = TypeVar("_Body", RuleBody, BudgetBody, ScheduleBody)
_Kept = TypeVar("_Kept", AlertRule, Budget, ReportSchedule)


def _scheduled(item: object, places: Places, *, where: str) -> ScheduleBody:
    try:
        return schedules.checked(rulebook.parsed(ScheduleBody, item, where=where), places)
    except InvalidInput as fault:
        raise fault if where in fault.message else InvalidInput(f"{where}: {fault.message}") from fault


def _named(
    rows: Sequence[_Kept],
    kind: str,
    bodies: Sequence[_Body],
    plan: Plan,
    *,
    shown: Callable[[_Kept], dict[str, Any]],
    wanted: Callable[[_Body], dict[str, Any]],
    create: Callable[[_Body], object],
    replace: Callable[[_Kept, _Body], object],
    delete: Callable[[_Kept], object],
    is_said: bool,
) -> None:
    """Rules, budgets and schedules are found again by their names."""
    standing: dict[str, list[_Kept]] = {}
    for row in rows:
        standing.setdefault(row.name, []).append(row)
    seen: set[str] = set()
    for body in bodies:
        if body.name in seen:
            raise InvalidInput(f"{kind} {body.name!r} is in the file twice; a {kind} is known by its name")
        seen.add(body.name)
        standing_one = _only(kind, body.name, standing.get(body.name, []))
        after = wanted(body)
        if standing_one is None:
            plan.add(f"+ {kind} {body.name}: {_brief(after)}", partial(create, body))
            continue
        before = shown(standing_one)
        changed = [f"{name} {_brief(before[name])} → {_brief(after[name])}" for name in after if before[name] != after[name]]
        if changed:
            plan.add(f"~ {kind} {body.name}: {'; '.join(changed)}", partial(replace, standing_one, body))
        else:
            plan.unchanged += 1
    for row in rows if is_said else ():
        if row.origin == ORIGIN and row.name not in seen:
            plan.remove(kind, row.name, partial(delete, row))


_Found = TypeVar("_Found", AlertRule, Budget, ReportSchedule, Receiver)


def _only(kind: str, name: str, rows: Sequence[_Found]) -> _Found | None:
    own = [row for row in rows if row.origin == ORIGIN] or list(rows)
    if len(own) > 1:
        raise InvalidInput(f"there are {len(own)} {kind}s named {name!r}; rename or delete all but one, so that the file's can be found again")
    return own[0] if own else None


def _comparable(body: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    return {name: body[name] for name in model.model_fields}


def _wanted(body: RuleBody | BudgetBody | ScheduleBody, receivers: list[str]) -> dict[str, Any]:
    """What a body will look like once it is kept, in the words of the API."""
    said = body.model_dump(mode="python")
    said["receivers"] = receivers
    for name, value in said.items():
        if isinstance(value, Decimal):
            said[name] = rulebook.amount_text(value, body.currency) if isinstance(body, BudgetBody) else rulebook.number(value)
        elif hasattr(value, "value"):
            said[name] = value.value
    return said


def _resolved(body: _Body, receivers: list[str]) -> _Body:
    return body.model_copy(update={"receivers": receivers})


_BRIEF = (
    "kind",
    "scope",
    "threshold",
    "threshold_percent",
    "amount",
    "currency",
    "period",
    "steps",
    "report",
    "teams",
    "workspaces",
    "folder",
    "container",
)


def _brief(value: object) -> str:
    if isinstance(value, dict) and "name" in value:
        value = {name: one for name, one in value.items() if name in _BRIEF and one}
    text = canonical_json(value) if isinstance(value, dict | list) else "none" if value is None else str(value)
    return text if len(text) <= 200 else text[:197] + "…"


def _silences(session: Session, bodies: Sequence[SilenceBody], plan: Plan, *, by: Author, now: datetime, is_said: bool) -> None:
    """A silence has no name; it is found again by what it matches and when it begins."""
    standing = {_silence_key(rulebook.silence_body(row, now=now)): row for row in rulebook.standing(session, Silence)}
    seen: set[str] = set()
    for body in bodies:
        weekly = None if body.weekly is None else body.weekly.model_dump(by_alias=True)
        wanted = {"matchers": [one.model_dump() for one in body.matchers], "starts_at": rfc3339(body.starts_at), "weekly": weekly}
        key = _silence_key(wanted)
        if key in seen:
            raise InvalidInput(f"the silence of {canonical_json(wanted['matchers'])} from {rfc3339(body.starts_at)} is in the file twice")  # type: ignore[arg-type]
        seen.add(key)
        name = f"silence {' '.join(f'{one.name}={one.value}' for one in body.matchers)}"
        row = standing.get(key)
        if row is None:
            plan.add(f"+ {name}: until {rfc3339(body.ends_at)}", partial(rulebook.create_silence, session, body, by=by, now=now))
        elif (row.ends_at, row.comment) != (body.ends_at, body.comment):
            changed = [f"until {rfc3339(row.ends_at)} → {rfc3339(body.ends_at)}"] if row.ends_at != body.ends_at else []
            changed += [f"comment {_brief(row.comment)!r} → {_brief(body.comment)!r}"] if row.comment != body.comment else []
            plan.add(f"~ {name}: {'; '.join(changed)}", partial(rulebook.replace_silence, session, row, body, by=by, now=now))
        else:
            plan.unchanged += 1
    for key, row in standing.items() if is_said else ():
        if row.origin == ORIGIN and key not in seen:
            name = " ".join(f"{one['name']}={one['value']}" for one in row.matchers)
            plan.remove("silence", name, partial(rulebook.delete, session, row, by=by, now=now))


def _silence_key(body: Mapping[str, Any]) -> str:
    return canonical_json({name: body[name] for name in ("matchers", "starts_at", "weekly")})


def _owners(session: Session, said: Sequence[Mapping[str, object]], plan: Plan, *, by: Author, now: datetime, where: str, prune: bool) -> None:
    """Owners are kept over time by the registry; it says how many it would touch."""
    try_out = session.begin_nested()
    done = registry.set_owners(session, said, name=where, now=now, author=by.name, replace=prune)
    try_out.rollback()
    touched = done.owners.added + done.owners.changed + done.owners.ended
    if touched:
        line = f"~ owners: {done.owners.summary()}"
        plan.add(line, lambda: registry.set_owners(session, said, name=where, now=now, author=by.name, replace=prune))
    plan.unchanged += done.owners.unchanged


def _meters(session: Session, said: Sequence[Mapping[str, object]], plan: Plan, *, by: Author, now: datetime, where: str) -> None:
    """What meters count, a line for each difference. As of owners the file is the whole truth when it prunes: who made a mapping does not matter."""

    def put(*, replace: bool) -> mappings.MappingImport:
        return mappings.set_mappings(session, said, name=where, now=now, author=by.name, replace=replace)

    try_out = session.begin_nested()
    done, whole = put(replace=False), put(replace=True)
    try_out.rollback()
    lines = []
    for row in done.added:
        before = [one for one in done.ended if _meter_name(one) == _meter_name(row)]
        changed = [f"{name} {_brief(before[-1][name])} → {_brief(row[name])}" for name in mappings.COLUMNS if before and before[-1][name] != row[name]]
        says = "; ".join(changed) or ", ".join(str(row[name]) for name in ("kind", "unit") if row[name])
        lines.append(f"{'~' if before else '+'} meter {_meter_name(row)}: {says}")
    gone = [_meter_name(row) for row in whole.ended]
    if plan.is_pruning:
        lines += [f"- meter {name}" for name in gone]
    else:
        plan.left += [f"  meter {name} is not in the file; it stays (--prune ends it)" for name in gone]
    for line in lines[:-1]:
        plan.add(line, lambda: None)
    for line in lines[-1:]:
        # One go for all of them: each would read anew what stands.
        plan.add(line, partial(put, replace=plan.is_pruning))
    plan.unchanged += done.unchanged


def _meter_name(row: Mapping[str, Any]) -> str:
    return f"{row['meter']} of {row['offer']}" if row["offer"] else str(row["meter"])
