"""Bill files as rows: Azure cost details (EA, MCA) and FOCUS, as CSV, gzipped CSV or Parquet.

Recognises a file by its columns, reads it row by row in bounded memory, and refuses the first thing it cannot read with
the file, row and column. Numbers stay decimal text until they are Decimals.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from hashlib import sha256
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, TypeVar, cast

from collector.billing.blocks import UnreadableInBlocks, blocks
from collector.billing.classify import Dimensions, Item, charge_type_of, classify
from models import money
from models.errors import InvalidInput
from models.periods import DAY, BillingPeriod, month_start, same_day_next_month

if TYPE_CHECKING:
    import pyarrow as pa

_Read = TypeVar("_Read")
Source = Literal["cost_details_ea", "cost_details_mca", "focus"]

# What a row is made of -> the columns that may hold it, best first, lower case. Azure spells one column in several
# ways between schema versions (cost details EA 2024-08-01, MCA 2023-12-01-preview; FOCUS 1.0 to 1.2 with x_ columns).
_COST_DETAILS: Mapping[str, tuple[str, ...]] = {
    "charged_on": ("date", "usagedate", "usagedatetime"),
    "billed_cost": ("costinbillingcurrency", "cost"),
    "quantity": ("quantity", "usagequantity"),
    "unit_price": ("effectiveprice",),
    "invoice_id": ("invoiceid",),
    "subscription": ("subscriptionid", "subscriptionguid"),
    "billing_account": ("billingaccountid",),
    "period_start": ("billingperiodstartdate",),
    "period_end": ("billingperiodenddate",),
    "resource_id": ("resourceid", "instanceid"),
    "resource_group": ("resourcegroupname", "resourcegroup"),
    "publisher_type": ("publishertype",),
    "publisher_id": ("publisherid",),
    "publisher": ("publishername",),
    "service": ("consumedservice",),
    "category": ("metercategory",),
    "subcategory": ("metersubcategory",),
    "meter": ("metername",),
    "product": ("productname", "product"),
    "offer_name": ("productordername",),
    "plan": ("planname",),
    "unit": ("unitofmeasure",),
    "region": ("resourcelocation", "resourcelocationnormalized", "location"),
    "cost_center": ("costcenter",),
    "details": ("additionalinfo",),
    "tags": ("tags",),
    "charge_type": ("chargetype",),
    "commitment_id": ("reservationid", "benefitid"),
    "commitment_name": ("reservationname", "benefitname"),
    "currency": ("billingcurrency", "billingcurrencycode", "currency"),
    "pricing_currency": ("pricingcurrency", "pricingcurrencycode"),
    "exchange_rate": ("exchangeratepricingtobilling", "exchangerate"),
    "exchange_rate_on": ("exchangeratedate",),
}
_FOCUS: Mapping[str, tuple[str, ...]] = {
    "charged_on": ("chargeperiodstart",),
    "billed_cost": ("billedcost",),
    "effective_cost": ("effectivecost",),
    "quantity": ("pricingquantity",),
    "consumed_quantity": ("consumedquantity",),
    "consumed_unit": ("consumedunit",),
    # Per pricing unit in the pricing currency; ContractedUnitPrice itself is in the billing currency.
    "unit_price": ("pricingcurrencycontractedunitprice", "x_billedunitprice"),
    "invoice_id": ("invoiceid", "x_invoiceid"),
    "subscription": ("subaccountid",),
    "billing_account": ("x_billingaccountid", "billingaccountid"),
    "period_start": ("billingperiodstart",),
    "period_end": ("billingperiodend",),
    "resource_id": ("resourceid",),
    "resource_type": ("x_resourcetype", "resourcetype"),
    "resource_group": ("x_resourcegroupname",),
    "publisher_type": ("x_publishercategory",),
    "publisher_id": ("x_publisherid",),
    "publisher": ("publishername", "serviceprovidername"),
    "service": ("servicename",),
    "category": ("x_skumetercategory", "servicename"),
    "subcategory": ("x_skumetersubcategory",),
    "meter": ("skumeter", "x_skumetername"),
    "product": ("chargedescription", "x_skudescription"),
    "offer_name": ("x_skuordername", "x_modelname"),
    "plan": ("x_skuplanname",),
    "unit": ("pricingunit",),
    "unit_description": ("x_pricingunitdescription",),
    "block_size": ("x_pricingblocksize",),
    "region": ("regionid", "region"),
    "cost_center": ("x_costcenter",),
    "details": ("x_skudetails", "skupricedetails"),
    "tags": ("tags",),
    "charge_type": ("chargecategory",),
    "charge_class": ("chargeclass",),
    "commitment_id": ("commitmentdiscountid",),
    "commitment_name": ("commitmentdiscountname",),
    "commitment_type": ("commitmentdiscounttype",),
    "commitment_status": ("commitmentdiscountstatus",),
    "currency": ("billingcurrency",),
    "pricing_currency": ("pricingcurrency", "x_pricingcurrency"),
    "exchange_rate": ("x_billingexchangerate",),
    "exchange_rate_on": ("x_billingexchangeratedate",),
}
# Without these a charge cannot be told from another; the other columns only say more about it.
_REQUIRED_COST_DETAILS = (
    "date",
    "costInBillingCurrency",
    "billingCurrency",
    "quantity",
    "unitOfMeasure",
    "chargeType",
    "SubscriptionId",
    "ResourceId",
    "meterCategory",
    "meterName",
)
_REQUIRED_FOCUS = ("BilledCost", "BillingCurrency", "ChargeCategory", "ChargePeriodStart", "PricingQuantity", "PricingUnit", "ResourceId")

_AGAIN = "nothing was landed; export the file again from Azure and import it as it came (a spreadsheet rewrites numbers and dates)"
_BATCH_ROWS = 2_000
# Entries kept of what was read before: a bill repeats its texts, and an unlucky one must not fill the memory.
_CACHE_ENTRIES = 50_000
_PIECE = 1024 * 1024
_CACHE_ROWS = 10_000  # the texts of a row take some 3 kB
_LARGE = 4 * 1024 * 1024  # bytes of a file from which reading in blocks is quicker, what that takes to load included
_SEPARATOR = "\x1f"  # stands between the texts of a key; a text that holds it has its file read record by record
_NUMBERS = ("charged_on", "billed_cost", "effective_cost", "quantity", "unit_price", "invoice_id", "consumed_quantity", "consumed_unit")


@dataclass(frozen=True, slots=True, eq=False)
class About:
    """What rows with the same texts share, which is all but their day and their numbers; one object for as long as it is known.

    ``month`` is the first day of the billing month; None where the row's own day says it. Of a bill for days that are no
    calendar month ``billed`` says them.
    """

    subscription_id: str
    billing_account: str
    month: date | None
    billed: BillingPeriod | None
    item: Item
    charge_type: str
    currency: str
    pricing_currency: str | None
    exchange_rate: Decimal | None
    exchange_rate_on: date | None


class BillRow(NamedTuple):
    """One billed row, read; ``line`` counts the header as 1."""

    line: int
    about: About
    charged_on: date
    quantity: Decimal | None
    unit_price: Decimal | None
    billed_cost: Decimal
    effective_cost: Decimal | None
    invoice_id: str | None

    @property
    def period_start(self) -> date:
        """The first day of its billing month, or of its own where the bill is for other days."""
        return self.about.month or month_start(self.charged_on)


@dataclass(frozen=True, slots=True)
class BillFile:
    """A recognised bill: one file, or the files that one export was delivered in."""

    name: str
    source: Source
    sha256: str
    tables: tuple[_Table, ...]
    # The same charges with commitments spread over the days they are for, where the source tells that in a file of its own.
    amortization: BillFile | None = None

    def whole(self, done: int) -> int | None:
        """How many rows there will be, ``done`` of which are read: of a CSV at most, of a packed one as its bytes so far let expect."""
        counts = [table.row_count for table in self.tables]
        if None not in counts:
            return sum(count for count in counts if count is not None)
        read, size = (sum(values) for values in zip(*(table.bytes_read() for table in self.tables), strict=True))
        return done * size // read if read else None

    def rows(self) -> Iterator[BillRow]:
        """The rows in the file's order; raises ``InvalidInput`` at the first that cannot be read."""
        return self._read() if self.amortization is None else _with_differences(self._read(), self.amortization)

    def has_commitments(self) -> bool:
        """Whether any row names a reservation or a savings plan: only then do actual and amortized cost differ."""
        for table in self.tables:
            columns = {name.casefold(): place for place, name in enumerate(table.header)}
            places = [columns[name] for name in _COST_DETAILS["commitment_id"] if name in columns]
            with closing(table.records(places)) as records:
                if places and any(record[place] for _, record in records for place in places):
                    return True
        return False

    def _read(self) -> Iterator[BillRow]:
        before = 0
        for table in self.tables:
            rows = _Rows(table, source=self.source)
            if before:
                yield from (row._replace(line=row.line + before) for row in rows)
            else:
                yield from rows
            before += rows.line


def _read_through(stream: BinaryIO) -> tuple[str, int]:
    """The digest of a file and how many lines it has, in one reading."""
    digest, lines, last = sha256(), 0, b""
    while piece := stream.read(_PIECE):
        digest.update(piece)
        lines += piece.count(b"\n")
        last = piece
    return digest.hexdigest(), lines + (not last.endswith(b"\n"))


def read_bill(path: Path, *, name: str) -> BillFile:
    """Recognise a bill file by its columns; ``name`` is what people call it."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            digest, lines = _read_through(stream)
        if not start:
            raise InvalidInput(f"{name} is empty; nothing was landed")
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InvalidInput(f"{name} is UTF-16 text, which Azure does not write; save it as UTF-8, or export it again")
        table: _Table = _ParquetTable(path, name) if start == b"PAR1" else _CsvTable(path, name, is_gzip=start[:2] == b"\x1f\x8b", lines=lines)
        source = _recognise(table)
        with closing(table.records([0])) as records:
            is_empty = next(records, None) is None
        if is_empty:
            raise InvalidInput(f"{name} holds a header and no rows; nothing was landed. Where the month really cost nothing there is nothing to import")
    except OSError as fault:
        raise InvalidInput(f"{name} cannot be read: {fault.strerror or fault}") from fault
    return BillFile(name, source, digest, (table,))


def together(bills: Sequence[BillFile]) -> BillFile:
    """Several files of one delivery as one bill (a partitioned export): they replace a month together, not each other."""
    if not bills:
        raise InvalidInput("there is no bill file to land")
    if len({bill.source for bill in bills}) > 1:
        raise InvalidInput("the files are of different kinds and cannot be parts of one export: " + ", ".join(f"{bill.name} ({bill.source})" for bill in bills))
    if len(bills) == 1:
        return bills[0]
    ordered = sorted(bills, key=lambda bill: bill.name)
    if len({bill.sha256 for bill in bills}) < len(bills):
        raise InvalidInput("the same file is given twice among " + ", ".join(bill.name for bill in ordered) + "; each part of an export counts once")
    digest = sha256("".join(sorted(bill.sha256 for bill in bills)).encode()).hexdigest()
    return BillFile(f"{ordered[0].name} and {len(bills) - 1} more", bills[0].source, digest, tuple(table for bill in ordered for table in bill.tables))


def amortized(actual: BillFile, other: BillFile | None) -> BillFile:
    """The actual bill with the effective cost of the amortized one (None: nothing counts yet): what each item's day differs by is a row more, of no billed cost."""
    if other is None:
        other = BillFile("nothing", actual.source, sha256().hexdigest(), ())
    if actual.source != other.source:
        raise InvalidInput(f"{actual.name} ({actual.source}) and {other.name} ({other.source}) are of different kinds; amortized cost cannot be told from them")
    digest = sha256(f"{actual.sha256} {other.sha256}".encode()).hexdigest()
    return BillFile(actual.name, actual.source, digest, actual.tables, other)


# Cost Management names the blobs of one run part_0_0001.csv, part_1_0001.csv, …
_PART = re.compile(r"(?P<stem>.*)part_\d+_\d+(?P<end>(?:\.csv(?:\.gz)?|(?:\.snappy)?\.parquet))\Z", re.IGNORECASE)


def deliveries(paths: Iterable[Path]) -> list[list[Path]]:
    """The paths grouped by delivery, in order: the numbered parts of one export belong together, other files stand alone."""
    groups: dict[object, list[Path]] = {}
    for path in paths:
        part = _PART.match(path.name)
        groups.setdefault((path.parent, part["stem"], part["end"].casefold()) if part else (path, len(groups)), []).append(path)
    return list(groups.values())


# -- tables ---------------------------------------------------------------------------------------


class _Table:
    """A header and records of text."""

    name: str
    row_count: int | None = None

    def bytes_read(self) -> tuple[int, int]:
        """The bytes that were read so far of all there are."""
        return 0, 0

    @cached_property
    def header(self) -> list[str]:
        raise NotImplementedError

    def records(self, columns: Sequence[int]) -> Generator[tuple[int, list[str]], None, None]:
        """(line, cells) of every record; Parquet fills in only the asked columns."""
        raise NotImplementedError

    def blocks(self, columns: Sequence[int]) -> Generator[dict[int, pa.Array], None, None]:  # noqa: ARG002 -- what there is to read is for the kinds of tables to say
        """Column -> its texts, of many records at a time from the first on; raises ``UnreadableInBlocks`` where it is for ``records`` to go on."""
        raise UnreadableInBlocks


class _CsvTable(_Table):
    def __init__(self, path: Path, name: str, *, is_gzip: bool, lines: int) -> None:
        self._path, self.name, self._is_gzip = path, name, is_gzip
        self._tell: Callable[[], int] = int
        # For a person who waits: a line break inside of a cell is a line too, so there are so many rows at most. Packed ones cannot be counted.
        self.row_count = None if is_gzip or lines < 2 else lines - 1

    @cached_property
    def header(self) -> list[str]:
        with closing(self._cells()) as records:
            found = next(records, None)
        if found is None:
            raise InvalidInput(f"{self.name} is empty; nothing was landed")
        return [cell.strip() for cell in found[1]]

    def records(self, columns: Sequence[int]) -> Generator[tuple[int, list[str]], None, None]:  # noqa: ARG002 -- a CSV record comes whole
        width = len(self.header)
        for line, record in self._cells():
            if len(record) != width:
                if not record:
                    continue
                raise InvalidInput(f"{self.name} row {line} has {len(record)} cells where the header has {width} (cut off, or an unquoted comma?); {_AGAIN}")
            if line > 1:
                yield line, record

    def blocks(self, columns: Sequence[int]) -> Generator[dict[int, pa.Array], None, None]:
        if self._path.stat().st_size < _LARGE:
            raise UnreadableInBlocks
        with self._opened() as unpacked:
            yield from blocks(unpacked, width=len(self.header), places=columns)

    def bytes_read(self) -> tuple[int, int]:
        return self._tell(), self._path.stat().st_size

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO | gzip.GzipFile]:
        with self._path.open("rb") as raw:
            self._tell = raw.tell
            try:
                yield gzip.GzipFile(fileobj=raw) if self._is_gzip else raw
            except BaseException:
                self._tell = int  # whoever looked on has to begin again
                raise
        self._tell = lambda: self._path.stat().st_size

    def _cells(self) -> Generator[tuple[int, list[str]], None, None]:
        line = 0
        with self._opened() as unpacked:
            try:
                with io.TextIOWrapper(cast("BinaryIO", unpacked), encoding="utf-8-sig", newline="") as text:
                    for line, record in enumerate(csv.reader(text, strict=True), start=1):
                        yield line, record
            except UnicodeDecodeError as fault:
                raise InvalidInput(f"{self.name} is not UTF-8 text after row {line}; {_AGAIN}") from fault
            except csv.Error as fault:
                raise InvalidInput(f"{self.name} is not a well-formed CSV after row {line} ({fault}); {_AGAIN}") from fault
            except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
                raise InvalidInput(f"{self.name} is a damaged gzip file after row {line}; copy it again") from fault


class _ParquetTable(_Table):
    def __init__(self, path: Path, name: str) -> None:
        # Here and below: it takes longer to load than most commands take to run.
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._path, self.name = path, name
        try:
            metadata = pq.read_metadata(path)
        except pa.ArrowException as fault:
            raise InvalidInput(f"{name} is a damaged Parquet file; copy it again") from fault
        self.row_count = metadata.num_rows
        self._names: list[str] = list(metadata.schema.to_arrow_schema().names)

    @cached_property
    def header(self) -> list[str]:
        return [name.strip() for name in self._names]

    def records(self, columns: Sequence[int]) -> Generator[tuple[int, list[str]], None, None]:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        line = 1
        width = len(self._names)
        try:
            with pq.ParquetFile(self._path) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[self._names[column] for column in columns]):
                    texts = {self._names.index(name): [_cell(value) for value in batch.column(name).to_pylist()] for name in batch.schema.names}
                    for index in range(batch.num_rows):
                        line += 1
                        record = [""] * width
                        for column, cells in texts.items():
                            record[column] = cells[index]
                        yield line, record
        except (pa.ArrowException, OSError) as fault:
            raise InvalidInput(f"{self.name} is a damaged Parquet file after row {line}; copy it again") from fault


def _cell(value: object) -> str:
    """A Parquet value as the text that a CSV would hold; a float gives its shortest text, which is what was written."""
    match value:
        case None:
            return ""
        case str():
            return value
        case Decimal():
            return format(value, "f") if value.is_finite() else str(value)
        case float():
            return repr(value) if not math.isfinite(value) else repr(value).removesuffix(".0")
        case datetime():
            return value.isoformat() if value.tzinfo else value.replace(tzinfo=UTC).isoformat()
        case date():
            return value.isoformat()
        case dict():
            return json.dumps(value, default=str)
        case list():  # a map column comes as pairs
            return json.dumps(dict(value) if all(isinstance(pair, tuple) for pair in value) else value, default=str)
        case _:
            return str(value)


def _recognise(table: _Table) -> Source:
    there = {name.casefold() for name in table.header}
    focus = {"billedcost", "effectivecost", "chargecategory", "chargeperiodstart", "pricingquantity", "pricingunit"} & there
    details = {"costinbillingcurrency", "chargetype", "metercategory", "metername", "unitofmeasure", "consumedservice", "metersubcategory"} & there
    if max(len(focus), len(details)) < 3:
        hint = " Its columns seem to be parted by semicolons: export it with commas." if len(there) == 1 and ";" in table.header[0] else ""
        raise InvalidInput(
            f"{table.name} is not a bill that meterbridge knows.{hint} Looked for the columns of Azure cost details ({', '.join(_REQUIRED_COST_DETAILS)}) "
            f"or of FOCUS ({', '.join(_REQUIRED_FOCUS)}); found {', '.join(table.header[:8]) or 'none'}{' …' if len(table.header) > 8 else ''}"
        )
    if len(focus) >= len(details):
        _require(table, _REQUIRED_FOCUS, _FOCUS, there)
        return "focus"
    _require(table, _REQUIRED_COST_DETAILS, _COST_DETAILS, there)
    return "cost_details_ea" if there & {"billingcurrencycode", "partnumber", "accountownerid"} else "cost_details_mca"


def _require(table: _Table, required: Sequence[str], schema: Mapping[str, tuple[str, ...]], there: set[str]) -> None:
    missing = [name for name in required if not any(name.casefold() in aliases and there.intersection(aliases) for aliases in schema.values())]
    if missing:
        raise InvalidInput(
            f"{table.name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; export it with all columns. Nothing was landed"
        )
    folded = [name.casefold() for name in table.header]
    twice = sorted({name for name in folded if folded.count(name) > 1 and any(name in aliases for aliases in schema.values())})
    if twice:
        raise InvalidInput(f"{table.name} has the column {twice[0]} twice; which one counts cannot be told. Nothing was landed")


# -- amortized cost --------------------------------------------------------------------------------


class _Difference:
    """What an item's day costs more or less when commitments are spread."""

    __slots__ = ("cost", "is_billed", "quantity", "row")

    def __init__(self, row: BillRow) -> None:
        self.row = row
        self.cost = money.ZERO
        self.quantity: Decimal | None = money.ZERO
        self.is_billed = False


def _with_differences(rows: Iterator[BillRow], amortization: BillFile) -> Iterator[BillRow]:
    """The rows, then the differences. By item and day and not row by row: rows of the two reports have no key in common."""
    differences: dict[tuple[object, ...], _Difference] = {}
    line = 0
    for row in rows:
        line = row.line
        found = _difference(differences, row)
        found.cost = money.minus(found.cost, row.billed_cost)
        found.is_billed = True
        yield row
    for row in amortization.rows():
        found = _difference(differences, row)
        found.cost = money.plus(found.cost, row.billed_cost)
        found.quantity = None if found.quantity is None or row.quantity is None else money.plus(found.quantity, row.quantity)
    for one in differences.values():
        if one.cost or not one.is_billed:
            line += 1
            # The hours of what was billed are counted by its own rows.
            quantity = money.ZERO if one.is_billed else one.quantity
            yield one.row._replace(line=line, quantity=quantity, billed_cost=money.ZERO, effective_cost=one.cost, invoice_id=None)


def _difference(differences: dict[tuple[object, ...], _Difference], row: BillRow) -> _Difference:
    about = row.about
    key = (about.subscription_id, row.period_start, about.billed, about.billing_account, about.item.digest, row.charged_on, about.charge_type, about.currency)
    found = differences.get(key)
    if found is None:
        found = differences[key] = _Difference(row)
    return found


# -- rows -----------------------------------------------------------------------------------------


class _Rows:
    """Reads the records of one table; what repeats is read once. ``line`` is the last one read."""

    def __init__(self, table: _Table, *, source: Source) -> None:
        self._table = table
        self.line = 1
        self._schema = _FOCUS if source == "focus" else _COST_DETAILS
        self._columns = {name.casefold(): index for index, name in enumerate(table.header)}
        self._at = {name: self._place(name) for name in (*Dimensions._fields, *_NUMBERS)}
        self._spares = self._fallbacks()
        self._known: dict[object, About] = {}
        self._prices: dict[str, Decimal] = {}  # amounts hardly repeat, prices do
        self._days: dict[str, date] = {}

    def __iter__(self) -> Iterator[BillRow]:
        read = sorted({place for place in self._at.values() if place >= 0} | {spare for _, spare in self._spares})
        try:
            with closing(self._table.blocks(read)) as blocks_of_texts:
                for columns in blocks_of_texts:
                    yield from self._of_block(columns)
        except UnreadableInBlocks:
            with closing(self._table.records(read)) as records:
                yield from self._of_records(records, after=self.line)

    def _of_block(self, columns: dict[int, pa.Array]) -> Iterator[BillRow]:
        """The rows of a block, the same as of its records; what takes time is done for a column at once."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.compute as pc  # noqa: PLC0415

        at, count = self._at, len(columns[self._at["billed_cost"]])
        columns[-1] = pa.repeat("", count)  # absent columns
        for place, spare in self._spares:
            columns[place] = pc.if_else(pc.equal(columns[place], ""), columns[spare], columns[place])
        amount, unit, cost = columns[at["quantity"]], columns[-1], columns[at["billed_cost"]]
        if at["consumed_quantity"] >= 0:
            consumed = columns[at["consumed_quantity"]]
            is_consumed = pc.and_(pc.equal(amount, ""), pc.not_equal(consumed, ""))
            amount, unit = pc.if_else(is_consumed, consumed, amount), pc.if_else(is_consumed, columns[at["consumed_unit"]], unit)
        sign = pc.if_else(pc.starts_with(pc.utf8_ltrim_whitespace(cost), pattern="-"), "-", "")
        keys = pc.binary_join_element_wise(*(columns[at[name]] for name in Dimensions._fields), unit, sign, _SEPARATOR)
        first = self.line + 1
        try:
            values = zip(
                range(first, first + count),
                _each(keys, self._joined),
                _each(columns[at["charged_on"]], self._dated),
                self._numbers(amount, "quantity"),
                _each(columns[at["unit_price"]], self._price),
                self._numbers(cost, "billed_cost"),
                self._numbers(columns[at["effective_cost"]], "effective_cost"),
                _each(columns[at["invoice_id"]], lambda text: text or None),
                strict=True,
            )
        except InvalidInput as fault:
            # Which row is the first that cannot be read is found row by row.
            raise UnreadableInBlocks from fault
        yield from map(_new_row, repeat(BillRow), values)
        self.line += count

    def _of_records(self, records: Iterator[tuple[int, list[str]]], *, after: int) -> Iterator[BillRow]:
        at, spares, known_rows = self._at, self._spares, self._known
        dimensions_of = itemgetter(*(at[name] for name in Dimensions._fields))
        charged_on, billed, effective, invoice = at["charged_on"], at["billed_cost"], at["effective_cost"], at["invoice_id"]
        quantity, unit_price, consumed, consumed_unit = at["quantity"], at["unit_price"], at["consumed_quantity"], at["consumed_unit"]
        for line, record in records:
            if line <= after:
                continue
            self.line = line
            # Absent columns are at place -1, which is always this empty cell.
            record.append("")
            for place, spare in spares:
                if not record[place]:
                    record[place] = record[spare]
            texts: tuple[str, ...] = dimensions_of(record)
            amount, unit = record[quantity], ""
            if not amount and record[consumed]:
                # Some providers fill only the consumed side; it is a plain count in its own unit.
                amount, unit = record[consumed], record[consumed_unit]
            cost = record[billed]
            key = (texts, unit, cost.lstrip().startswith("-"))
            yield BillRow(
                line,
                known_rows.get(key) or self._about(key, *key),
                self._dated(record[charged_on]),
                self._number(amount, "quantity") if amount else None,
                self._price(record[unit_price]),
                self._number(cost, "billed_cost"),
                self._number(record[effective], "effective_cost") if record[effective] else None,
                record[invoice] or None,
            )

    def _joined(self, key: str) -> About:
        """What rows with these texts share, given joined with their unit and sign."""
        known = self._known.get(key)
        if known is None:
            *texts, unit, sign = key.split(_SEPARATOR)
            if len(texts) != len(Dimensions._fields):
                raise UnreadableInBlocks
            known = self._about(key, tuple(texts), unit, sign == "-")
        return known

    def _about(self, key: object, texts: tuple[str, ...], unit: str, is_negative: bool) -> About:  # noqa: FBT001 -- one of the parts of a key
        if len(self._known) >= _CACHE_ROWS:
            self._known.clear()
        found = self._known[key] = self._read(texts, unit=unit, is_negative=is_negative)
        return found

    def _dated(self, text: str) -> date:
        return self._days.get(text) or self._day(text, "charged_on")

    def _price(self, text: str) -> Decimal | None:
        if not text:
            return None
        price = self._prices.get(text)
        if price is None:
            price = self._number(text, "unit_price")
            if len(self._prices) < _CACHE_ENTRIES:
                self._prices[text] = price
        return price

    def _numbers(self, column: pa.Array, name: str) -> Iterable[Decimal | None]:
        import pyarrow.compute as pc  # noqa: PLC0415

        texts = column.to_pylist()
        if pc.all(pc.match_substring_regex(column, _PLAIN)).as_py():
            return map(Decimal, texts)
        return [self._number(text, name) if text or name == "billed_cost" else None for text in texts]

    def _place(self, name: str) -> int:
        return next((self._columns[alias] for alias in self._schema.get(name, ()) if alias in self._columns), -1)

    def _fallbacks(self) -> list[tuple[int, int]]:
        """(column, the next best column for its empty cells) where a file has both: Azure fills now one, now the other."""
        found: list[tuple[int, int]] = []
        for name in (
            "category",
            "meter",
            "product",
            "offer_name",
            "region",
            "resource_type",
            "pricing_currency",
            "details",
            "commitment_id",
            "commitment_name",
            "unit_price",
        ):
            there = [self._columns[alias] for alias in self._schema.get(name, ()) if alias in self._columns]
            found.extend((there[0], spare) for spare in there[1:])
        return found

    def _read(self, texts: tuple[str, ...], *, unit: str, is_negative: bool) -> About:
        row = Dimensions._make(text.strip() for text in texts)
        if unit:
            row = row._replace(unit=unit.strip(), unit_description="", block_size="")
        if not row.charge_type:
            raise self._refusal("charge_type", "is empty")
        currency = self._currency(row.currency, "currency")
        pricing = self._currency(row.pricing_currency, "pricing_currency") if row.pricing_currency else None
        rate = self._number(row.exchange_rate, "exchange_rate") if row.exchange_rate else None
        charge_type = charge_type_of(row, is_negative=is_negative)
        month, billed = self._billed(row)
        item = classify(row, charge_type=charge_type)
        return About(
            item.subscription_id,
            row.billing_account,
            month,
            billed,
            item,
            charge_type,
            currency,
            pricing,
            rate if rate is not None and rate > 0 else None,
            self._day(row.exchange_rate_on, "exchange_rate_on") if row.exchange_rate_on else None,
        )

    def _billed(self, row: Dimensions) -> tuple[date | None, BillingPeriod | None]:
        """The row's billing month, or the days that are none: those that do not begin with a month, as Azure says of pay-as-you-go."""
        if not row.period_start:
            return None, None
        start = self._day(row.period_start, "period_start")
        if start.day == 1:
            return start, None
        if not row.period_end:
            return None, BillingPeriod(start, same_day_next_month(start))
        end = self._day(row.period_end, "period_end")
        # FOCUS says the day after the last one, cost details the last.
        end = end if self._schema is _FOCUS else end + DAY
        try:
            return None, BillingPeriod(start, end)
        except InvalidInput as fault:
            raise self._refusal("period_end", f"and its start do not fit together: {fault.message}") from fault

    def _number(self, text: str, name: str) -> Decimal:
        # A plain number needs no closer look.
        if _is_plain(text):
            return Decimal(text)
        try:
            return money.decimal_from(text, what=self._where(name))
        except InvalidInput as fault:
            raise InvalidInput(f"{fault.message}; {_AGAIN}") from fault

    def _currency(self, text: str, name: str) -> str:
        try:
            return money.currency_from(text, what=self._where(name))
        except InvalidInput as fault:
            raise InvalidInput(f"{fault.message}; {_AGAIN}") from fault

    def _day(self, text: str, name: str) -> date:
        day = day_from(text)
        if day is None:
            raise self._refusal(name, f"is not a date: {text[:40]!r}")
        if len(self._days) < _CACHE_ENTRIES:
            self._days[text] = day
        return day

    def _refusal(self, name: str, fault: str) -> InvalidInput:
        return InvalidInput(f"{self._where(name)} {fault}; {_AGAIN}")

    def _where(self, name: str) -> str:
        return f"{self._table.name} row {self.line}, column {self._table.header[self._place(name)]}"


def _each(column: pa.Array, read: Callable[[str], _Read]) -> Iterator[_Read]:
    """What each text of a column reads as, every text once."""
    distinct = column.dictionary_encode()
    found = [read(text) for text in distinct.dictionary.to_pylist()]
    return map(found.__getitem__, distinct.indices.to_numpy().tolist())


_PLAIN = r"\A-?[0-9]{1,20}(?:\.[0-9]{1,30})?\z"
_is_plain = re.compile(_PLAIN.replace(r"\z", r"\Z")).match
_new_row = tuple.__new__
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?\s?(Z|[+-]\d\d:?\d\d)?)?\Z", re.ASCII | re.IGNORECASE)
_US = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})(?: \d{1,2}:\d\d(?::\d\d)?(?: ?[AP]M)?)?\Z", re.ASCII | re.IGNORECASE)
_COMPACT = re.compile(r"(\d{4})(\d\d)(\d\d)\Z", re.ASCII)


def day_from(text: str) -> date | None:
    """The UTC day of ``03/31/2025``, ``2025-03-31``, ``20250331`` or a timestamp (UTC unless it says an offset); else None."""
    said = text.strip()
    try:
        if (us := _US.match(said)) is not None:
            found = date(int(us[3]), int(us[1]), int(us[2]))
        elif (iso := _ISO.match(said)) is not None:
            found = date(int(iso[1]), int(iso[2]), int(iso[3]))
            if iso[4] is not None:
                at = datetime.combine(found, time(int(iso[4]), int(iso[5]), int(iso[6] or 0)), _zone(iso[7]))
                found = at.astimezone(UTC).date()
        elif (compact := _COMPACT.match(said)) is not None:
            found = date(int(compact[1]), int(compact[2]), int(compact[3]))
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return found if 2000 <= found.year < 2200 else None


def _zone(text: str | None) -> timezone:
    if text is None or text in "Zz":
        return UTC
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    return timezone(-offset if text[0] == "-" else offset)
