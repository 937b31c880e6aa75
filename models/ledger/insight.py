"""What people ask beside costs: how old the data is, where the month will end, what is wrong, what can be chosen."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session

from models import money
from models.columns import EPOCH, from_microseconds, to_microseconds
from models.ledger.billed import Reading
from models.ledger.budgets import LOOKS_BACK, days_of, look_ahead
from models.ledger.costs import costs, costs_together
from models.ledger.meters import untold_meters
from models.ledger.values import Choices, CostQuery, DataAge, Figures, Filters, Forecast, Problem, SourceAge
from models.ledger.world import World
from models.periods import DAY, Period, day_start, month_period, utc_day
from models.prices import model_key, model_name
from models.resources import Mode
from models.usage import QUARTER_SECONDS, UsageConflict


def data_age(session: Session, *, visible: frozenset[str] | None, now: datetime, world: World | None = None) -> DataAge:
    """How old the figures are, per source of usage and per billed subscription and route; ``world`` is what somebody has read at ``now`` already."""
    world = World(session, now) if world is None else world
    sources = _usage_ages(session, visible=visible, now=now)
    metered = max((source.reaches for source in sources if source.reaches is not None), default=None)
    if metered is not None and visible is None:
        # The newest event itself, rather than the end of its quarter hour.
        metered = min(from_microseconds(int(session.execute(sa.text("SELECT MAX(time) FROM usage_event")).scalar_one())), now)
    seen = None if visible is None else {world.registry.subscription(workspace, now) for workspace in visible}
    latest: dict[tuple[str, str], tuple[date, datetime]] = {}
    for part in world.parts:
        if part.landed_at is None or (seen is not None and part.subscription_id not in seen):
            continue
        for route, day in part.reaches.items():
            reach, landed = date.fromisoformat(day), part.landed_at
            before = latest.get((part.subscription_id, route), (reach, landed))
            latest[part.subscription_id, route] = max(reach, before[0]), max(landed, before[1])
    billed: datetime | None = None
    for (subscription, route), (reached_on, landed) in sorted(latest.items()):
        end = day_start(reached_on + DAY)
        billed = end if billed is None else min(billed, end)
        sources.append(SourceAge("bill", f"{route} · subscription {subscription or '(none)'}", end, landed))
    return DataAge(metered, billed, sources)


def _usage_ages(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[SourceAge]:
    """How far each sender's usage reaches in each workspace; looks at the newest days first, as that is mostly enough."""
    senders = {
        (str(workspace), str(source))
        for workspace, source in session.execute(
            sa.text("SELECT DISTINCT w.name, s.name FROM usage_series u JOIN usage_source s ON s.id = u.source_id JOIN workspace w ON w.id = u.workspace_id")
        )
        if visible is None or workspace in visible
    }
    found: dict[tuple[str, str], datetime] = {}
    for since in (now - 2 * DAY, now - 60 * DAY, EPOCH):
        rows = session.execute(
            sa.text(
                "SELECT w.name, s.name, MAX(q.starts_at) FROM usage_quarter q JOIN usage_series u ON u.id = q.series_id "
                "JOIN usage_source s ON s.id = u.source_id JOIN workspace w ON w.id = u.workspace_id WHERE q.starts_at >= :since GROUP BY w.name, s.name"
            ),
            {"since": to_microseconds(since) // 1_000_000},
        )
        for workspace, source, quarter in rows:
            found.setdefault((workspace, source), min(from_microseconds((int(quarter) + QUARTER_SECONDS) * 1_000_000), now))
        if senders <= found.keys():
            break
    return [SourceAge("usage", f"{workspace} · {source}", found.get((workspace, source)), None) for workspace, source in sorted(senders)]


def forecast(session: Session, filters: Filters, *, now: datetime, reading: Reading | None = None) -> list[Forecast]:
    """Spend of the running UTC month and its likely end, per currency, as a budget of that month would have it (``budgets.look_ahead``)."""
    month, today = month_period(utc_day(now)), utc_day(now)
    asked = CostQuery(Period(day_start(today) - LOOKS_BACK, now), "day", filters=filters)
    (table,) = costs_together(session, [asked], now=now, reading=reading, needs_coverage=False)
    by_currency: dict[str, dict[date, Figures]] = {}
    for row in table.rows:
        if row.figures.currency is not None and row.figures.cost is not None:
            by_currency.setdefault(row.figures.currency, {})[utc_day(row.period.start)] = row.figures
    found: list[Forecast] = []
    for currency, per_day in sorted(by_currency.items()):
        so_far = money.add(figures.cost for day, figures in per_day.items() if day >= utc_day(month.start) and figures.cost is not None)
        known = days_of(per_day, today=today, until=today, basis="best")
        seen = look_ahead(known, period=month, basis="best", currency=currency, so_far=so_far)
        found.append(Forecast(currency, so_far, seen.expected, seen.complete_days, seen.reason, seen.low, seen.high, seen.error_percent, seen.trials))
    return found


def choices(session: Session, *, visible: frozenset[str] | None, now: datetime) -> Choices:
    """The names that filters can be set to."""
    world = World(session, now)
    names: dict[str, set[str]] = {key: set() for key in ("workspaces", "deployments", "models", "applications", "teams", "tag_keys")}
    models: dict[str, str] = {}
    for series in world.series.values():
        identity = world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=now)
        if visible is not None and identity.workspace not in visible:
            continue
        team, _ = world.registry.owner(
            workspace=identity.workspace, deployment=identity.deployment, application=series.application, tags=series.tags, team=series.team, at=now
        )
        for key, value in (("workspaces", identity.workspace), ("deployments", identity.deployment), ("applications", series.application), ("teams", team)):
            if value:
                names[key].add(value)
        names["tag_keys"].update(series.tags)
        if identity.model:
            models.setdefault(model_key(identity.model), model_name(identity.model))
    for workspace, name in world.registry.deployments():
        if visible is None or workspace in visible:
            names["workspaces"].add(workspace)
            names["deployments"].add(name)
            identity = world.registry.identity(workspace, name, model=None, at=now)
            if identity.model:
                models.setdefault(model_key(identity.model), model_name(identity.model))
    names["models"] = set(models.values())
    return Choices(**{key: sorted(values) for key, values in names.items()})


def problems(session: Session, *, visible: frozenset[str] | None, now: datetime) -> list[Problem]:
    """What a person should look at: in the bills, the prices, the registry and the stream of events."""
    world = World(session, now)
    found: list[Problem] = []
    if visible is None:
        for part in world.parts:
            for problem in part.problems:
                kind = str(problem.get("kind", "bill"))
                if kind in ("unmapped_meter", "unknown_unit"):
                    continue  # the landing's word; what was said of the meter since is below
                amount = problem.get("amount")
                found.append(
                    Problem(
                        kind,
                        f"{problem.get('subject', '')} ({part.period_start:%Y-%m}, subscription {part.subscription_id or 'none'})",
                        str(problem.get("detail", "")),
                        _REMEDY.get(kind, "look at the rows of the bill"),
                        problem.get("currency"),
                        None if amount is None else Decimal(str(amount)),
                        problem.get("count"),
                    )
                )
        found += untold_meters(session, world)
    recent = CostQuery(Period(now - 30 * DAY, now), "none", ("workspace", "deployment", "model", "mode"), "best", Filters(visible=visible))
    untold: dict[str, int] = {}
    for row in costs(session, recent, now=now).rows:
        groups, figures = row.groups, row.figures
        name = f"{groups['workspace'] or '(no workspace)'} / {groups['deployment'] or '(no deployment)'}"
        if figures.unpriced_tokens:
            detail = figures.reasons.get("metered_cost") or figures.reasons.get("unpriced_tokens") or ""
            found.append(
                Problem("unpriced_model", f"{name}: {groups['model'] or 'no model'}", detail, _REMEDY["unpriced_model"], count=figures.unpriced_tokens)
            )
        # A rounding adjustment (mode unknown) belongs to nobody for good; nothing can be done about it.
        if groups["deployment"] is None and figures.billed_cost and groups["mode"] != Mode.UNKNOWN:
            subject = f"{name}: {groups['model'] or groups['mode']}"
            detail = "billed in the last 30 days, and no deployment is known for it"
            found.append(Problem("unallocated_charge", subject, detail, _REMEDY["unallocated_charge"], figures.currency, figures.billed_cost))
        if figures.unknown_token_requests:
            untold[name] = untold.get(name, 0) + figures.unknown_token_requests
    if untold:
        most = sorted(untold, key=lambda name: (-untold[name], name))
        subject = f"{len(untold)} deployments" if len(untold) > 1 else most[0]
        detail = "calls of the last 30 days whose tokens were not reported (often streams without include_usage)"
        if len(untold) > 1:
            detail += "; most of them: " + ", ".join(f"{name} ({untold[name]})" for name in most[:3])
        found.append(Problem("unknown_tokens", subject, detail, _REMEDY["unknown_tokens"], count=sum(untold.values())))
    confirmed = set(world.registry.deployments())
    unseen: dict[tuple[str, str], None] = {}
    for series in world.series.values():
        identity = world.registry.resolve(workspace=series.workspace, endpoint=series.endpoint, deployment=series.deployment, model=series.model, at=now)
        if (
            identity.workspace
            and identity.deployment
            and (visible is None or identity.workspace in visible)
            and (identity.workspace, identity.deployment) not in confirmed
        ):
            unseen[identity.workspace, identity.deployment] = None
    found += [
        Problem(
            "unconfirmed_deployment",
            f"{workspace} / {name}",
            "seen in usage, not in the inventory or a bill: its mode and route are not known",
            _REMEDY["unconfirmed_deployment"],
        )
        for workspace, name in sorted(unseen)[:_MOST_UNCONFIRMED]
    ]
    if len(unseen) > _MOST_UNCONFIRMED:
        rest = f"{len(unseen) - _MOST_UNCONFIRMED} more deployments"
        detail = "like those named above, which are the first by name"
        found.append(Problem("unconfirmed_deployment", rest, detail, _REMEDY["unconfirmed_deployment"], count=len(unseen) - _MOST_UNCONFIRMED))
    if visible is None:
        conflicts = session.scalar(sa.select(sa.func.count()).select_from(UsageConflict)) or 0
        if conflicts:
            found.append(
                Problem(
                    "conflict",
                    "usage events",
                    "events were sent again under an id that stands with other content; the first one counts",
                    _REMEDY["conflict"],
                    count=conflicts,
                )
            )
    order = {"info": 1}
    return sorted(found, key=lambda problem: (order.get(problem.kind, 0), problem.kind == "out_of_scope", problem.kind, problem.subject))


_MOST_UNCONFIRMED = 100
_REMEDY = {
    "out_of_scope": "nothing to do: other Azure charges are kept with the bill and never added",
    "several_rates": "the latest dated rate of the month is used for metered amounts",
    "unpriced_model": "add a price: meterbridge import prices FILE",
    "unallocated_charge": "import the inventory, so that charges find their deployment: meterbridge import inventory FILE",
    "unknown_tokens": "send stream_options.include_usage, or let the gateway report usage",
    "unconfirmed_deployment": "import the inventory: meterbridge import inventory FILE",
    "conflict": "make the sender keep one id per call, and the same content on every retry",
}
