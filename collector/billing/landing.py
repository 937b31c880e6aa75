"""Landing: the rows of a bill become the current parts of their (subscription, billing month), all at once.

Rows are staged in short transactions, in parts that nobody sees, so that ingest is never kept waiting; one last short
transaction flips the parts in and supersedes what they replace. Until that moment, and after any failure, readers see
what they saw before. A part that was replaced stays readable as of then.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel

from collector.billing.classify import Item
from collector.billing.formats import About, BillFile, BillRow
from models import money
from models.charges import IN_SCOPE, BillPart, Charge, ChargeClass, ChargeDay, ChargeItem, MeterKind
from models.errors import Conflict, Unavailable
from models.periods import DAY, BillingPeriod
from models.resources import DeploymentFact, Mode, Route, Workspace, WorkspaceFact
from models.store import Store, quick, unavailable_as_such

# Rows per staging transaction: with its fsync some 10 to 15 ms on an ordinary disk, so that a waiting ingest batch
# gets its turn within the 20 ms that DESIGN.md allows. Charges go to SQLite as plain tuples, four times as fast as the rest.
_SLICE_ROWS = 500
_CHARGES_A_SLICE = 2_000
# Kinds of rows whose sums are at hand; a bill of more of them finds the others again.
_MOST_KNOWN = 50_000
# Problems kept per part; a file with more of them has one problem, which its first ones show.
_MOST_PROBLEMS = 200
_FLIP_LOCK = 0x6D62666C6970  # "mbflip": any constant that nobody else on the server uses
_STAGING_LOCK = 0x6D627374  # "mbst", the first half of the lock that each landing holds while it stages

_ROUTES = {ChargeClass.MARKETPLACE: Route.MARKETPLACE, ChargeClass.FOUNDRY: Route.FOUNDRY, ChargeClass.COMPUTE: Route.COMPUTE}

_MEASURED = frozenset(MeterKind) - {MeterKind.ADJUSTMENT, MeterKind.OTHER, MeterKind.COMMITMENT}

Problem = dict[str, Any]
Totals = dict[str, Decimal]
_Thing = TypeVar("_Thing")

# The landings that this process is staging: what they wrote so far is not a leftover. Across processes PostgreSQL's
# locks say it; a SQLite database belongs to one process at a time.
_staging: set[str] = set()


@dataclass(frozen=True, slots=True)
class LandedPart:
    """One subscription's month as landed, beside the totals of what it replaced (None where it is the first)."""

    subscription_id: str
    period_start: date
    billed: BillingPeriod  # the month, or what else the bill is for
    rows: int
    totals: Mapping[str, Decimal]
    in_scope_totals: Mapping[str, Decimal]
    reaches: Mapping[str, str]
    replaced_totals: Mapping[str, Decimal] | None
    problems: Sequence[Problem]


@dataclass(frozen=True, slots=True)
class Landing:
    """What became of a bill file."""

    id: str
    file_name: str
    source: str
    unchanged: bool  # these very bytes are current already; nothing was written
    parts: tuple[LandedPart, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def totals(self) -> Totals:
        return _added(part.totals for part in self.parts)

    @property
    def in_scope_totals(self) -> Totals:
        return _added(part.in_scope_totals for part in self.parts)

    @property
    def replaced(self) -> tuple[LandedPart, ...]:
        """The parts that replaced an older one."""
        return tuple(part for part in self.parts if part.replaced_totals is not None)

    @property
    def problems(self) -> list[Problem]:
        """What a person may want to look at, of all parts."""
        return [problem for part in self.parts for problem in part.problems]

    def summary(self) -> str:
        """A few plain lines for the command line."""
        if self.unchanged:
            return f"{self.file_name}: unchanged, these {self.rows} rows are already the current bill; nothing was written"
        periods = sorted({part.billed for part in self.parts})
        when = str(periods[0]) if len(periods) == 1 else f"{periods[0].start:%Y-%m} to {periods[-1].end - DAY:%Y-%m}"
        subscriptions = len({part.subscription_id for part in self.parts})
        lines = [
            f"{self.file_name}: landed {self.rows} rows of {subscriptions} subscription{'' if subscriptions == 1 else 's'} for {when} ({self.source})",
            f"  billed {_shown(self.totals)}; of it model spend {_shown(self.in_scope_totals)}",
        ]
        if self.replaced:
            lines.append(f"  replaces {len(self.replaced)} earlier part{'' if len(self.replaced) == 1 else 's'}, which stay readable as of then")
        told: dict[str, int] = {}
        for problem in self.problems:
            told[problem["kind"]] = told.get(problem["kind"], 0) + int(problem["count"])
        lines.extend(f"  {_IN_WORDS.get(kind, kind)}: {count}" for kind, count in sorted(told.items()))
        return "\n".join(lines)


_IN_WORDS = {
    "unknown_unit": "rows in a unit that is not known (their money counts, their quantity is unknown)",
    "unmapped_meter": "rows of a meter whose text does not say what it counts (their money counts, their quantity once somebody says it)",
    "out_of_scope": "rows that are not model spend (kept, never added)",
    "several_rates": "exchange rates besides the one in use",
}


def land(
    store: Store,
    bill: BillFile,
    *,
    now: Callable[[], datetime] | datetime,
    author: str,
    replace: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Landing:
    """Make the bill the current one for every (subscription, billing month) it contains.

    Raises ``InvalidInput`` where a row cannot be read, and ``Conflict`` where the total of a part falls by more than a
    fifth and ``replace`` does not allow it; both leave everything as it was. ``progress`` hears (rows staged, rows in
    all: of a CSV at most, of a packed one as its bytes so far let expect). The instant of landing is asked of ``now`` when the parts are flipped in.
    """
    with store.read() as session:
        current = _same_bytes(session.connection(), bill)
    if current:
        return _unchanged(bill, current)
    landing_id = uuid.uuid4().hex
    with unavailable_as_such(), store.connection() as connection, _staged_by(landing_id, connection):
        _remove_leftovers(connection)
        try:
            staging = _Staging(connection, bill, landing_id=landing_id, author=author)
            with _unhurried(connection):
                staging.run(progress)
            with connection.begin():
                _lock_flips(connection)
                current = _same_bytes(connection, bill)
                if not current:
                    return _flip(connection, bill, staging, now=now() if callable(now) else now, author=author, replace=replace)
        except BaseException:
            # Also on an interrupt. What was staged is invisible; where it cannot be removed now, the next landing does it.
            with suppress(sa.exc.SQLAlchemyError):
                _remove(connection, _parts_of(connection, landing_id))
            raise
        # The same file was landed by someone else meanwhile.
        _remove(connection, _parts_of(connection, landing_id))
        return _unchanged(bill, current)


# -- staging --------------------------------------------------------------------------------------


@contextmanager
def _unhurried(connection: sa.Connection) -> Iterator[None]:
    """What is staged need not be on the disk before anybody can see it: SQLite waits for the disk once, when it is flipped in, and not a hundred times.

    The log is written in order, so a flip that stands has all of its rows before it; what a crash takes with it before that was invisible.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    quick(connection, "PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        quick(connection, "PRAGMA synchronous = FULL")


class _DayKey(NamedTuple):
    charged_on: date
    item: bytes
    charge_type: str
    currency: str


class _Sum:
    """What a day's charges of one item add up to."""

    __slots__ = ("beyond_billed", "billed_cost", "invoiced_cost", "invoiced_rows", "quantity", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.quantity: Decimal | None = money.ZERO
        self.billed_cost = money.ZERO
        self.beyond_billed = money.ZERO  # what the effective cost is more than the billed one, where the source says it
        self.invoiced_rows = 0
        self.invoiced_cost = money.ZERO


class _Counted(NamedTuple):
    """What rows of one kind and day count into, beside the values of theirs that are the same."""

    total: _Sum
    part_id: int
    item_id: int
    day: date | str
    charge_type: str
    currency: str
    pricing_currency: str | None


@dataclass(slots=True)
class _Part:
    """A part being staged. Days are held in memory: items × days, a few thousand in a month of model spend."""

    id: int
    subscription_id: str
    billing_account: str
    period_start: date
    billed: BillingPeriod
    days: dict[_DayKey, _Sum] = field(default_factory=dict)
    rates: dict[str, set[tuple[date, Decimal]]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.days.values())


class _Staging:
    """Writes the rows of one bill into invisible parts."""

    def __init__(self, connection: sa.Connection, bill: BillFile, *, landing_id: str, author: str) -> None:
        self._connection, self._bill, self._author = connection, bill, author
        self.landing_id = landing_id
        self.parts: dict[_PartKey, _Part] = {}
        self.items: dict[bytes, Item] = {}
        self._ids: dict[bytes, int] = {}
        self._part_of: dict[tuple[About, date], _Part] = {}
        # Values as the column types (Date, ExactDecimal) write them on SQLite; '' becomes NULL there, as None takes longer to bind than a text.
        self._as_text = connection.dialect.name == "sqlite"
        # What rows say of themselves, and their day -> what they count into.
        self._sums: dict[About, dict[date, _Counted]] = {}

    def run(self, progress: Callable[[int, int | None], None] | None) -> None:
        done, rows = 0, self._bill.rows()
        # Reading a slice happens outside the transaction: that is the gap in which ingest gets its turn.
        while batch := list(islice(rows, _CHARGES_A_SLICE)):
            self._stage(batch)
            done += len(batch)
            if progress is not None:
                whole = self._bill.whole(done)
                progress(done, None if whole is None else max(done, whole))
        for part in self.parts.values():
            for days in _slices(part.days.items(), _SLICE_ROWS):
                with self._connection.begin():
                    self._connection.execute(sa.insert(_table(ChargeDay)), [self._day(part, key, total) for key, total in days])

    def _stage(self, batch: list[BillRow]) -> None:
        # Made before the transaction begins: ingest waits for what happens inside of it.
        charges = self._charges(batch, self._counted(batch))
        with self._connection.begin():
            _insert_charges(self._connection, charges)

    def _counted(self, batch: list[BillRow]) -> list[_Counted]:
        """What each row counts into."""
        sums = self._sums
        if len(sums) > _MOST_KNOWN:
            sums.clear()
            self._part_of.clear()
        try:
            return [sums[row[1]][row[2]] for row in batch]
        except KeyError:
            self._learn([row for row in batch if row.about not in sums or row.charged_on not in sums[row.about]])
            return [sums[row[1]][row[2]] for row in batch]

    def _learn(self, rows: list[BillRow]) -> None:
        """Make the parts, items and sums that these rows are the first of."""
        new = {key: row for row in rows if (key := (row.about, row.period_start)) not in self._part_of}
        fresh = {row.about.item.digest: row.about.item for row in new.values() if row.about.item.digest not in self._ids}
        places = {key: _part_key(row) for key, row in new.items()}
        unseen = {places[key]: row for key, row in new.items() if places[key] not in self.parts}
        if fresh or unseen:
            with self._connection.begin():
                self.parts.update({key: self._new_part(row) for key, row in unseen.items()})
                if fresh:
                    self._ids.update(_item_ids(self._connection, fresh))
                    self.items.update(fresh)
        for (about, month), place in places.items():
            part = self._part_of[about, month] = self.parts[place]
            if about.exchange_rate is not None and about.pricing_currency is not None and about.pricing_currency != about.currency:
                dated = (about.exchange_rate_on or part.period_start, about.exchange_rate)
                part.rates.setdefault(f"{about.pricing_currency}>{about.currency}", set()).add(dated)
        for row in rows:
            about, day = row.about, row.charged_on
            counted = self._sums.setdefault(about, {})
            if day not in counted:
                part = self._part_of[about, row.period_start]
                total = part.days.setdefault(_DayKey(day, about.item.digest, about.charge_type, about.currency), _Sum())
                said: tuple[Any, str | None] = (day.isoformat(), about.pricing_currency or "") if self._as_text else (day, about.pricing_currency)
                counted[day] = _Counted(total, part.id, self._ids[about.item.digest], said[0], about.charge_type, about.currency, said[1])

    def _charges(self, batch: list[BillRow], counted: list[_Counted]) -> list[tuple[Any, ...]]:
        """The rows as they are inserted, counted into their days. This is what a landing takes its time for: column by column, and no call that can be spared."""
        lines, _, _, quantities, prices, billed, effective, invoices = zip(*batch, strict=True)
        for (total, *_), quantity, cost, spread, invoice in zip(counted, quantities, billed, effective, invoices, strict=True):
            total.rows += 1
            total.quantity = None if quantity is None or total.quantity is None else money.plus(total.quantity, quantity)
            total.billed_cost = money.plus(total.billed_cost, cost)
            if spread is not None:
                total.beyond_billed = money.plus(total.beyond_billed, money.minus(spread, cost))
            if invoice:
                total.invoiced_rows += 1
                total.invoiced_cost = money.plus(total.invoiced_cost, cost)
        values: Iterable[Sequence[Any]] = (quantities, prices, billed, effective, invoices)
        if self._as_text:
            values = (*map(_number_texts, (quantities, prices, billed, effective)), [invoice or "" for invoice in invoices])
        return [
            (part_id, line, item_id, day, charge_type, quantity, price, cost, spread, currency, pricing_currency, invoice)
            for (_, part_id, item_id, day, charge_type, currency, pricing_currency), line, quantity, price, cost, spread, invoice in zip(
                counted, lines, *values, strict=True
            )
        ]

    def _new_part(self, row: BillRow) -> _Part:
        about = row.about
        written = self._connection.execute(
            sa.insert(_table(BillPart)),
            {
                "landing_id": self.landing_id,
                "subscription_id": about.subscription_id,
                "billing_account": about.billing_account,
                "period_start": row.period_start,
                "billed_from": None if about.billed is None else about.billed.start,
                "billed_to": None if about.billed is None else about.billed.end,
                "source": self._bill.source,
                "file_name": self._bill.name,
                "file_sha256": self._bill.sha256,
                "author": self._author,
                "rows": 0,
                "totals": {},
                "in_scope_totals": {},
                "exchange_rates": {},
                "reaches": {},
                "meter_reaches": {},
                "problems": [],
            },
        )
        (part_id,) = written.inserted_primary_key or (0,)
        billed = about.billed or BillingPeriod.of_month(row.period_start)
        return _Part(int(part_id), about.subscription_id, about.billing_account, row.period_start, billed)

    def _day(self, part: _Part, key: _DayKey, total: _Sum) -> dict[str, Any]:
        return {
            "part_id": part.id,
            "charged_on": key.charged_on,
            "item_id": self._ids[key.item],
            "charge_type": key.charge_type,
            "currency": key.currency,
            "rows": total.rows,
            "quantity": total.quantity,
            "billed_cost": total.billed_cost,
            "effective_cost": money.plus(total.billed_cost, total.beyond_billed),
            "invoiced_rows": total.invoiced_rows,
            "invoiced_cost": total.invoiced_cost if total.invoiced_rows else None,
        }


_PartKey = tuple[str, date, str, BillingPeriod]


def _part_key(row: BillRow) -> _PartKey:
    # Charges of no subscription belong to their billing account; elsewhere the account does not matter.
    about = row.about
    account = "" if about.subscription_id else _account_key(about.billing_account)
    return about.subscription_id, row.period_start, account, about.billed or BillingPeriod.of_month(row.period_start)


# The columns of a charge in the order of ``_Staging._charges``.
_CHARGE = (
    "part_id",
    "line",
    "item_id",
    "charged_on",
    "charge_type",
    "quantity",
    "unit_price",
    "billed_cost",
    "effective_cost",
    "currency",
    "pricing_currency",
    "invoice_id",
)
_OPTIONAL = frozenset({"quantity", "unit_price", "effective_cost", "pricing_currency", "invoice_id"})
# Rows to a statement on SQLite: half the time of one each, as most of it is spent on beginning and ending a statement.
_TOGETHER = 80
_VALUES = ", ".join("NULLIF(?, '')" if name in _OPTIONAL else "?" for name in _CHARGE)
_INSERT_CHARGES = f"INSERT INTO charge ({', '.join(_CHARGE)}) VALUES "  # noqa: S608 (names of ours)


def _insert_charges(connection: sa.Connection, charges: list[tuple[Any, ...]]) -> None:
    """Write the rows: on SQLite past SQLAlchemy's conversion of each value, which takes longer than all the rest of a landing."""
    if connection.dialect.name != "sqlite":
        connection.execute(sa.insert(_table(Charge)), [dict(zip(_CHARGE, charge, strict=True)) for charge in charges])
        return
    whole = len(charges) - len(charges) % _TOGETHER
    for rows, first, last in ((_TOGETHER, 0, whole), (1, whole, len(charges))):
        if first < last:
            many = [tuple(chain.from_iterable(charges[at : at + rows])) for at in range(first, last, rows)]
            connection.exec_driver_sql(_INSERT_CHARGES + ", ".join([f"({_VALUES})"] * rows), many)


def _number_texts(values: Iterable[Decimal | None]) -> list[str]:
    """Of each ``money.text``, at once where the plain text is it already; '' of None."""
    return ["" if value is None else text if (text := str(value))[-1] != "0" and "E" not in text else money.text(value) for value in values]


def _item_ids(connection: sa.Connection, items: Mapping[bytes, Item]) -> dict[bytes, int]:
    """The ids of these items, inserting the ones that are new; in one order, so that two landings cannot block each other."""
    table = _table(ChargeItem)
    values = [items[digest].values() for digest in sorted(items)]
    insert: Any = sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
    connection.execute(insert.on_conflict_do_nothing(index_elements=["digest"]), values)
    found: dict[bytes, int] = {}
    for digests in _slices(sorted(items), 500):
        for item_id, digest in connection.execute(sa.select(table.c.id, table.c.digest).where(table.c.digest.in_(digests))):
            found[bytes(digest)] = item_id
    return found


# -- the flip -------------------------------------------------------------------------------------


def _flip(connection: sa.Connection, bill: BillFile, staging: _Staging, *, now: datetime, author: str, replace: bool) -> Landing:
    table = _table(BillPart)
    there = connection.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.landing_id == staging.landing_id))
    if there != len(staging.parts):
        raise Unavailable(f"{bill.name}: what was staged is gone (another process cleaned it up); import the file again")
    replaced = _replaced(connection, bill, staging.parts, replace=replace)
    # Never before what it replaces, even if a clock was set back: a reader's "as of" must see one of the two.
    landed_at = max([now, *(old.landed_at for olds in replaced.values() for old in olds)])
    landed: list[LandedPart] = []
    for key, part in sorted(staging.parts.items(), key=lambda entry: entry[0]):
        facts = _Facts(part, staging.items)
        old_totals = _added(old.totals for old in replaced[key]) if replaced[key] else None
        if old_totals is not None and not replace:
            _refuse_fall(bill, part, old=old_totals, new=facts.totals)
        connection.execute(
            sa.update(table)
            .where(table.c.id == part.id)
            .values(
                rows=part.rows,
                totals=_texts(facts.totals),
                in_scope_totals=_texts(facts.in_scope_totals),
                exchange_rates=facts.exchange_rates,
                reaches=facts.reaches,
                meter_reaches=facts.meter_reaches,
                problems=facts.problems,
                landed_at=landed_at,
            )
        )
        if replaced[key]:
            connection.execute(sa.update(table).where(table.c.id.in_([old.id for old in replaced[key]])).values(superseded_at=landed_at))
        landed.append(
            LandedPart(
                part.subscription_id,
                part.period_start,
                part.billed,
                part.rows,
                facts.totals,
                facts.in_scope_totals,
                facts.reaches,
                old_totals,
                tuple(facts.problems),
            )
        )
    _add_first_sights(connection, staging.items.values(), now=landed_at, author=author)
    return Landing(staging.landing_id, bill.name, bill.source, unchanged=False, parts=tuple(landed))


class _Old(NamedTuple):
    id: int
    landed_at: datetime
    period_start: date
    billed: BillingPeriod
    file_name: str
    totals: Totals


def _replaced(connection: sa.Connection, bill: BillFile, parts: Mapping[_PartKey, _Part], *, replace: bool) -> dict[_PartKey, list[_Old]]:
    """The parts that each new one takes the place of: those of the same bill, a month of it that has no row any more included."""
    found: dict[_PartKey, list[_Old]] = {key: [] for key in parts}
    taken: set[int] = set()
    left: list[tuple[_PartKey, _Old]] = []
    for key, part in sorted(parts.items(), key=lambda entry: entry[0]):
        for old in _current(connection, part):
            if old.billed != part.billed and not replace:
                first, last = max(part.billed.start, old.billed.start), min(part.billed.end, old.billed.end) - DAY
                raise Conflict(
                    f"{bill.name}: subscription {part.subscription_id}: its bill for {part.billed} and the one for {old.billed} ({old.file_name}) "
                    f"both hold {first} to {last}, which would count twice. Nothing was changed; to take it instead of the other, import it with --replace"
                )
            if (old.billed, old.period_start) == (part.billed, part.period_start):
                taken.add(old.id)
                found[key].append(old)
            else:
                left.append((key, old))
    for key, old in left:
        if old.id not in taken:
            taken.add(old.id)
            found[key].append(old)
    return found


def _current(connection: sa.Connection, part: _Part) -> list[_Old]:
    """The parts that count now and are of a bill for some of the same days."""
    table = _table(BillPart)
    asked = sa.select(
        table.c.id, table.c.landed_at, table.c.totals, table.c.billing_account, table.c.period_start, table.c.billed_from, table.c.billed_to, table.c.file_name
    )
    rows = connection.execute(
        asked.where(table.c.subscription_id == part.subscription_id, table.c.landed_at.is_not(None), table.c.superseded_at.is_(None))
        # A bill for other days has parts of the months beside, and late charges of earlier ones.
        .where(sa.or_(table.c.period_start == part.period_start, table.c.billed_from.is_not(None), sa.literal(not part.billed.is_month)))
    ).all()
    mine = _account_key(part.billing_account)
    found: list[_Old] = []
    for row in rows:
        billed = BillingPeriod.of_month(row.period_start) if row.billed_from is None else BillingPeriod(row.billed_from, row.billed_to)
        if billed.overlaps(part.billed) and (part.subscription_id or not mine or _account_key(row.billing_account) in {"", mine}):
            totals = {currency: Decimal(amount) for currency, amount in row.totals.items()}
            found.append(_Old(row.id, row.landed_at, row.period_start, billed, row.file_name, totals))
    return found


def _refuse_fall(bill: BillFile, part: _Part, *, old: Totals, new: Totals) -> None:
    for currency, before in sorted(old.items()):
        after = new.get(currency, money.ZERO)
        if before > 0 and money.times(after, 5) < money.times(before, 4):
            whose = f"subscription {part.subscription_id}" if part.subscription_id else "the billing account's own charges"
            raise Conflict(
                f"{bill.name}: {whose}, {part.period_start:%Y-%m}: the total falls from {money.text(before)} to {money.text(after)} {currency}, "
                f"by more than a fifth, so the file may be incomplete. Nothing was changed; to take it all the same, import it with --replace"
            )


class _Facts:
    """What a whole part amounts to, from its days."""

    def __init__(self, part: _Part, items: Mapping[bytes, Item]) -> None:
        self.totals: Totals = {}
        self.in_scope_totals: Totals = {}
        self.reaches: dict[str, str] = {}
        self.meter_reaches: dict[str, str] = {}
        self.exchange_rates: dict[str, str] = {}
        self._problems: dict[tuple[str, str, str, str], Problem] = {}
        for key, total in part.days.items():
            self._add(key, total, items[key.item])
        for pair, dated in sorted(part.rates.items()):
            # The latest dated rate; of several of one day the higher, so that the answer does not hang on the rows' order.
            _, rate = max(dated)
            self.exchange_rates[pair] = money.text(rate)
            others = sorted({other for _, other in dated} - {rate})
            if others:
                detail = f"uses {money.text(rate)}, the latest; the bill also says {', '.join(money.text(other) for other in others[:5])}"
                self._problem("several_rates", pair, detail, currency=pair.partition(">")[2], amount=money.ZERO, count=len(others))

    @property
    def problems(self) -> list[Problem]:
        """The problems, those of most rows first where there are too many to keep."""
        kept = sorted(self._problems.values(), key=lambda problem: (-problem["count"], problem["kind"], problem["subject"]))[:_MOST_PROBLEMS]
        texts = [problem | {"amount": money.text(problem["amount"])} for problem in kept]
        return sorted(texts, key=lambda problem: (problem["kind"], problem["subject"], problem["detail"], problem["currency"]))

    def _add(self, key: _DayKey, total: _Sum, item: Item) -> None:
        self.totals[key.currency] = money.plus(self.totals.get(key.currency, money.ZERO), total.billed_cost)
        if item.charge_class not in IN_SCOPE:
            self._problem(
                "out_of_scope",
                item.meter_category,
                "not model spend: kept with the bill, never added",
                currency=key.currency,
                amount=total.billed_cost,
                count=total.rows,
            )
            return
        self.in_scope_totals[key.currency] = money.plus(self.in_scope_totals.get(key.currency, money.ZERO), total.billed_cost)
        route = _ROUTES.get(item.charge_class)
        if route is not None and key.charge_type.casefold() == "usage":
            of_meter = f"{route.value}/{item.meter_kind.value}"
            reached = [(self.reaches, route.value), (self.meter_reaches, of_meter)]
            if item.meter_kind is MeterKind.OTHER:
                # By its name too: what it counts may be said later.
                reached.append((self.meter_reaches, f"{of_meter}/{item.offer_id or ''}/{item.meter_name or item.plan_id or item.meter_category}"))
            for reaches, what in reached:
                reaches[what] = max(reaches.get(what, ""), key.charged_on.isoformat())
        if item.meter_kind in _MEASURED and item.unit_size is None:
            detail = f"{item.meter_name or 'a meter without a name'}: what one unit holds is not known, so neither is the quantity"
            self._problem("unknown_unit", item.unit or "no unit", detail, currency=key.currency, amount=total.billed_cost, count=total.rows)
        # A plan is subscribed to by a purchase of nothing at no cost; that is no meter to be missed.
        if item.meter_kind is MeterKind.OTHER and not (key.charge_type.casefold() == "purchase" and total.billed_cost == 0):
            named = item.model or item.resource_id.rsplit("/", 1)[-1] or "no resource"
            detail = f"{named}: the meter does not say what it counts, so its quantity is unknown"
            self._problem("unmapped_meter", item.meter_name or "no meter name", detail, currency=key.currency, amount=total.billed_cost, count=total.rows)

    def _problem(self, kind: str, subject: str, detail: str, *, currency: str, amount: Decimal, count: int) -> None:
        known = self._problems.setdefault(
            (kind, subject, detail, currency),
            {"kind": kind, "subject": subject, "detail": detail, "currency": currency, "amount": money.ZERO, "count": 0},
        )
        known["amount"] = money.plus(known["amount"], amount)
        known["count"] += count


# -- first sights ---------------------------------------------------------------------------------


def _add_first_sights(connection: sa.Connection, items: Iterable[Item], *, now: datetime, author: str) -> None:
    """Tell the registry of workspaces and deployments that only the bill knows of; what is known already stays as it is."""
    seen = [item for item in items if item.charge_class in {ChargeClass.COMPUTE, ChargeClass.FOUNDRY} and item.workspace]
    if not seen:
        return
    # One order whatever the file's: several items may speak of one deployment.
    seen.sort(key=lambda item: (item.workspace or "", item.endpoint or "", item.deployment or "", item.digest))
    registry = _Registry(connection)
    identities: dict[str, dict[str, Any]] = {}
    workspaces: dict[str, dict[str, Any]] = {}
    deployments: dict[tuple[str, str], dict[str, Any]] = {}
    for item in seen:
        name = registry.spelling(item.workspace or "")
        is_foundry = item.charge_class is ChargeClass.FOUNDRY
        if name not in registry.identities:
            identities[name] = {"name": name, "first_seen_at": now}
        if name.casefold() not in registry.placed:
            workspaces.setdefault(
                name.casefold(),
                {
                    "workspace": name,
                    "kind": "foundry_account" if is_foundry else "workspace",
                    "subscription_id": item.subscription_id or None,
                    "resource_group": item.resource_group or None,
                    "region": item.region,
                    "source": "bill",
                    "author": author,
                    "known_from": now,
                },
            )
        fact = _deployment_fact(item, workspace=name, now=now, author=author)
        if fact is not None:
            key = (name.casefold(), fact["name"].casefold())
            if key in registry.confirmed:
                continue
            known = deployments.setdefault(key, registry.spelled(fact))
            for column in ("model", "sku", "region"):
                known[column] = known[column] or fact[column]
    for table, rows in ((Workspace, identities.values()), (WorkspaceFact, workspaces.values()), (DeploymentFact, deployments.values())):
        if rows:
            connection.execute(sa.insert(_table(table)), list(rows))


def _deployment_fact(item: Item, *, workspace: str, now: datetime, author: str) -> dict[str, Any] | None:
    if item.deployment is None or (item.charge_class is ChargeClass.COMPUTE and item.endpoint is None):
        return None
    endpoint = item.endpoint or item.deployment
    is_compute = item.charge_class is ChargeClass.COMPUTE
    return {
        "workspace": workspace,
        "name": item.deployment if endpoint == item.deployment else f"{endpoint}/{item.deployment}",
        "endpoint": endpoint,
        "deployment": item.deployment,
        "mode": Mode.MANAGED_COMPUTE if is_compute else Mode.SERVERLESS,
        "route": Route.COMPUTE if is_compute else Route.FOUNDRY,
        "model": item.model,
        "sku": item.sku,
        "region": item.region,
        "source": "bill",
        "author": author,
        "known_from": now,
    }


class _Registry:
    """What is known now, by names without case: bills write names in lower case where the registry has their spelling."""

    def __init__(self, connection: sa.Connection) -> None:
        workspace, fact, deployment = _table(Workspace), _table(WorkspaceFact), _table(DeploymentFact)
        facts = connection.execute(sa.select(fact.c.workspace, fact.c.subscription_id, fact.c.source).where(fact.c.known_to.is_(None))).all()
        self.identities = set(connection.scalars(sa.select(workspace.c.name)))
        # The identity's spelling wins over a fact's: it is the one that usage is counted under.
        self._spellings = {name.casefold(): name for name in [*sorted(row.workspace for row in facts), *sorted(self.identities)]}
        # A workspace that only usage knows has no subscription yet; the bill says it.
        self.placed = {row.workspace.casefold() for row in facts if row.source != "usage" and row.subscription_id}
        self._deployments: dict[tuple[str, str], str] = {}
        self.confirmed: set[tuple[str, str]] = set()
        columns = (deployment.c.workspace, deployment.c.name, deployment.c.endpoint, deployment.c.deployment, deployment.c.source)
        for row in connection.execute(sa.select(*columns).where(deployment.c.known_to.is_(None))):
            key = (row.workspace.casefold(), row.name.casefold())
            self._deployments[key] = row.name
            if row.source != "usage":
                self.confirmed.add(key)

    def spelling(self, workspace: str) -> str:
        return workspace if workspace in self.identities else self._spellings.get(workspace.casefold(), workspace)

    def spelled(self, fact: dict[str, Any]) -> dict[str, Any]:
        """The fact under the name that usage already goes by."""
        known = self._deployments.get((fact["workspace"].casefold(), fact["name"].casefold()))
        if known is None:
            return fact
        endpoint, _, deployment = known.partition("/")
        return fact | {"name": known, "endpoint": endpoint, "deployment": deployment or endpoint}


# -- what is current, and what was left over ------------------------------------------------------


def _same_bytes(connection: sa.Connection, bill: BillFile) -> Sequence[sa.Row[Any]]:
    """The parts of an earlier landing of these very bytes, if all of them still count; else nothing."""
    table = _table(BillPart)
    landed = connection.execute(sa.select(table).where(table.c.file_sha256 == bill.sha256, table.c.landed_at.is_not(None))).all()
    by_landing: dict[str, list[sa.Row[Any]]] = {}
    for row in landed:
        by_landing.setdefault(row.landing_id, []).append(row)
    return next((rows for rows in by_landing.values() if all(row.superseded_at is None for row in rows)), [])


def _unchanged(bill: BillFile, current: Sequence[sa.Row[Any]]) -> Landing:
    parts = tuple(
        LandedPart(
            row.subscription_id,
            row.period_start,
            BillingPeriod.of_month(row.period_start) if row.billed_from is None else BillingPeriod(row.billed_from, row.billed_to),
            row.rows,
            {currency: Decimal(amount) for currency, amount in row.totals.items()},
            {currency: Decimal(amount) for currency, amount in row.in_scope_totals.items()},
            row.reaches,
            None,
            row.problems,
        )
        for row in sorted(current, key=lambda row: (row.subscription_id, row.period_start))
    )
    return Landing(current[0].landing_id, bill.name, bill.source, unchanged=True, parts=parts)


@contextmanager
def _staged_by(landing_id: str, connection: sa.Connection) -> Iterator[None]:
    """Mark the landing as alive for as long as it runs: by name here, by a lock that dies with its owner on PostgreSQL."""
    _staging.add(landing_id)
    try:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_lock(_STAGING_LOCK, _lock_number(landing_id))))
            connection.commit()
        yield
    finally:
        _staging.discard(landing_id)
        if connection.dialect.name == "postgresql" and not connection.closed and not connection.invalidated:
            connection.rollback()
            connection.execute(sa.select(sa.func.pg_advisory_unlock(_STAGING_LOCK, _lock_number(landing_id))))
            connection.commit()


def _lock_flips(connection: sa.Connection) -> None:
    # SQLite's write transaction is the lock already.
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_FLIP_LOCK)))


def _remove_leftovers(connection: sa.Connection) -> None:
    """Remove what landings staged that did not live to flip it in."""
    table = _table(BillPart)
    with connection.begin():
        staged = connection.execute(sa.select(table.c.id, table.c.landing_id).where(table.c.landed_at.is_(None))).all()
        dead = {landing_id for _, landing_id in staged if landing_id not in _staging and not _is_alive(connection, landing_id)}
    _remove(connection, [part_id for part_id, landing_id in staged if landing_id in dead])


def _is_alive(connection: sa.Connection, landing_id: str) -> bool:
    if connection.dialect.name != "postgresql":
        return False
    return not connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(_STAGING_LOCK, _lock_number(landing_id))))


def _lock_number(landing_id: str) -> int:
    return int.from_bytes(hashlib.sha256(landing_id.encode()).digest()[:4], signed=True)


def _parts_of(connection: sa.Connection, landing_id: str) -> list[int]:
    table = _table(BillPart)
    with connection.begin():
        return list(connection.scalars(sa.select(table.c.id).where(table.c.landing_id == landing_id, table.c.landed_at.is_(None))))


def _remove(connection: sa.Connection, part_ids: Iterable[int]) -> None:
    """Delete staged parts in slices, the part itself last: a removal that is cut short is found again."""
    charge, day, part = _table(Charge), _table(ChargeDay), _table(BillPart)
    for part_id in part_ids:
        rows = _SLICE_ROWS
        while rows == _SLICE_ROWS:
            with connection.begin():
                some = sa.select(charge.c.id).where(charge.c.part_id == part_id).limit(_SLICE_ROWS)
                rows = connection.execute(sa.delete(charge).where(charge.c.id.in_(some.scalar_subquery()))).rowcount
        days = True
        while days:
            with connection.begin():
                # By day: the primary key has no single column to cut by.
                first = connection.scalar(sa.select(sa.func.min(day.c.charged_on)).where(day.c.part_id == part_id))
                days = first is not None
                connection.execute(sa.delete(day).where(day.c.part_id == part_id, day.c.charged_on == first))
        with connection.begin():
            connection.execute(sa.delete(part).where(part.c.id == part_id, part.c.landed_at.is_(None)))


# -- small things ---------------------------------------------------------------------------------


def _account_key(billing_account: str) -> str:
    """What two spellings of one billing account share: EA files give the number, FOCUS files the resource id around it."""
    folded = billing_account.casefold().strip("/")
    return folded.partition("billingaccounts/")[2].partition("/")[0] or folded


def _table(model: type[SQLModel]) -> sa.Table:
    table: sa.Table = SQLModel.metadata.tables[str(model.__tablename__)]
    return table


def _slices(things: Iterable[_Thing], size: int) -> Iterator[list[_Thing]]:
    iterator = iter(things)
    while some := list(islice(iterator, size)):
        yield some


def _added(totals: Iterable[Mapping[str, Decimal]]) -> Totals:
    found: Totals = {}
    for one in totals:
        for currency, amount in one.items():
            found[currency] = money.plus(found.get(currency, money.ZERO), amount)
    return found


def _texts(totals: Totals) -> dict[str, str]:
    return {currency: money.text(amount) for currency, amount in sorted(totals.items())}


def _shown(totals: Totals) -> str:
    return ", ".join(f"{money.text(amount)} {currency}" for currency, amount in sorted(totals.items())) or "nothing"
