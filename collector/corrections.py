"""Taking usage back: voids by a person, twins by the nightly look. Nothing is deleted; what is taken back is posted."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlmodel import Session, col, select

from collector.witnesses import StoredEvent, post, read_events
from models import ledger, money
from models.columns import from_microseconds, to_microseconds
from models.corrections import UsageTwin
from models.errors import InvalidInput, NotFound
from models.identities import times_of
from models.ledger import CostQuery, Filters
from models.periods import DAY, Period, day_start, utc_day
from models.resources import Workspace
from models.store import Store
from models.usage import UsageEvent, UsageSource

MOST_EVENTS = 10_000
_TWINS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Effect:
    """What a void changes in one currency: usage and its metered cost, as differences."""

    currency: str | None
    metered_cost: Decimal | None
    requests: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Voided:
    """What a void took back, what was taken back before, and which ids nobody knows."""

    batch: str | None
    reversed: Sequence[StoredEvent]
    already: Sequence[StoredEvent]
    not_found: Sequence[str]
    effects: Sequence[Effect]


def void(
    session: Session,
    *,
    workspace: str,
    source: str | None,
    ids: Sequence[str] | None,
    period: Period | None,
    author: str,
    reason: str,
    is_dry_run: bool,
    now: datetime,
) -> Voided:
    """Take back events by id, or everything of a source in a span. A dry run changes nothing and says what it would change."""
    home = session.exec(select(Workspace).where(col(Workspace.name) == workspace)).first()
    if home is None or home.id is None:
        raise NotFound(f"there is no workspace {workspace[:80]!r} with usage")
    sources = {one.id or 0: one.name for one in session.exec(select(UsageSource)) if source is None or one.name == source}
    if source is not None and not sources:
        raise NotFound(f"nobody has sent usage as source {source[:80]!r}")
    places, not_found = (
        _by_ids(session, home.id, sources, ids) if ids is not None else (_by_span(session, home.id, sources, period), []) if period is not None else ([], [])
    )
    if len(places) > MOST_EVENTS:
        raise InvalidInput(f"that is more than {MOST_EVENTS:,} events; void them in several requests, by shorter spans")
    connection = session.connection()
    found = read_events(connection, places)
    fresh = [one for one in found if one.last_kind != "void" or one.is_counted]
    already = [one for one in found if one not in fresh]
    made_at = to_microseconds(now)
    batch = f"void-{secrets.token_hex(8)}"
    span = _span(fresh)
    filters = Filters(workspaces=(workspace,))
    before = _totals(session, span, filters, now=now)
    with session.begin_nested() as nested:
        # A witness that did not count is marked as void, too: it shall not stand in for the one that was taken back.
        marked = [one for one in fresh if not one.is_counted] + [one for one in _other_witnesses(session, fresh) if one.seq not in {two.seq for two in fresh}]
        post(connection, marked, sign=1, kind="void", of=None, made_at=made_at, batch=batch, author=author, reason=reason)
        for_good = [*marked, *(one for one in fresh if one.is_counted)]
        post(connection, for_good, sign=-1, kind="void", of=None, made_at=made_at, batch=batch, author=author, reason=reason)
        effects = _effects(before, _totals(session, span, filters, now=now))
        if is_dry_run:
            nested.rollback()
    return Voided(None if is_dry_run or not fresh else batch, fresh, already, not_found, effects)


def _by_ids(session: Session, workspace_id: int, sources: dict[int, str], ids: Sequence[str]) -> tuple[list[tuple[int, int]], list[str]]:
    asked = [(workspace_id, source_id, one) for one in dict.fromkeys(ids) for source_id in sources]
    times = times_of(session, asked)
    found: list[tuple[int, int]] = []
    known: set[str] = set()
    for identity, instants in times.items():
        rows = session.execute(
            sa.select(sa.type_coerce(col(UsageEvent.time), sa.BigInteger), col(UsageEvent.seq)).where(
                col(UsageEvent.time).in_([from_microseconds(at) for at in instants]),
                col(UsageEvent.workspace_id) == identity[0],
                col(UsageEvent.source_id) == identity[1],
                col(UsageEvent.event_id) == identity[2],
            )
        ).all()
        for time, seq in rows:
            found.append((int(time), int(seq)))
            known.add(identity[2])
    return sorted(found), [one for one in dict.fromkeys(ids) if one not in known]


def _by_span(session: Session, workspace_id: int, sources: dict[int, str], period: Period) -> list[tuple[int, int]]:
    rows = session.execute(
        sa.select(sa.type_coerce(col(UsageEvent.time), sa.BigInteger), col(UsageEvent.seq))
        .where(
            col(UsageEvent.time) >= period.start,
            col(UsageEvent.time) < period.end,
            col(UsageEvent.workspace_id) == workspace_id,
            col(UsageEvent.source_id).in_(list(sources)),
        )
        .limit(MOST_EVENTS + 1)
    ).all()
    return [(int(time), int(seq)) for time, seq in rows]


def _other_witnesses(session: Session, events: Sequence[StoredEvent]) -> list[StoredEvent]:
    """The witnesses that were left out in favour of these."""
    found: list[StoredEvent] = []
    query = sa.text("SELECT DISTINCT time, seq FROM usage_posting WHERE kind = 'witness' AND of_seq = :seq")
    for one in events:
        if one.is_counted:
            places = [(int(time), int(seq)) for time, seq in session.execute(query, {"seq": one.seq})]
            found += [other for other in read_events(session.connection(), places) if not other.is_counted and other.last_kind == "witness"]
    return found


def _span(events: Sequence[StoredEvent]) -> Period | None:
    if not events:
        return None
    days = [utc_day(from_microseconds(one.time)) for one in events]
    return Period(day_start(min(days)), day_start(max(days) + DAY))


def _totals(session: Session, span: Period | None, filters: Filters, *, now: datetime) -> dict[str | None, ledger.Figures]:
    if span is None:
        return {}
    return {total.currency: total for total in ledger.costs(session, CostQuery(span, "none", (), "metered", filters), now=now).totals}


def _effects(before: dict[str | None, ledger.Figures], after: dict[str | None, ledger.Figures]) -> list[Effect]:
    found: list[Effect] = []
    for currency in sorted(before, key=lambda code: code or ""):
        was, now = before[currency], after.get(currency)
        cost = None if was.metered_cost is None else money.minus((now.metered_cost if now is not None else None) or money.ZERO, was.metered_cost)
        effect = Effect(
            currency,
            cost,
            (now.requests if now is not None else 0) - was.requests,
            (now.input_tokens if now is not None else 0) - was.input_tokens,
            (now.output_tokens if now is not None else 0) - was.output_tokens,
        )
        if effect.metered_cost or effect.requests or effect.input_tokens or effect.output_tokens:
            found.append(effect)
    return found


def reverse_twins(store: Store, *, now: datetime) -> int:
    """Take back events that are the same call sent again more than an hour apart; gives how many.

    Ingest notes each event that was stored under an id that stands with the same content at another time. The one that
    arrived later goes; a twin whose fellow was taken back stays.
    """
    done = 0
    while True:
        with store.write() as session:
            twins = session.exec(select(UsageTwin).order_by(col(UsageTwin.seq)).limit(_TWINS_AT_ONCE)).all()
            for twin in twins:
                both = {one.seq: one for one in read_events(session.connection(), [(twin.time, twin.seq), (twin.of_time, twin.of_seq)])}
                later, first = both.get(twin.seq), both.get(twin.of_seq)
                if later is not None and first is not None and later.is_counted and first.is_counted:
                    reason = "the same id and content as an event at another time"
                    post(session.connection(), [later], sign=-1, kind="twin", of=first, made_at=to_microseconds(now), author="nightly look", reason=reason)
                    done += 1
                session.delete(twin)
        if len(twins) < _TWINS_AT_ONCE:
            return done
