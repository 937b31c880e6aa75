"""What Azure billed, as it was billed.

A landing replaces whole (subscription, billing period) parts: a ``BillPart`` is one such part of one landing, and
stays readable after it was superseded. Charges of a part are never edited. ``ChargeItem`` is the dimension (what was
charged: resource, meter, unit, tags); which deployment it belongs to is decided at read time in
``models/matching.py``, so that inventory learnt later moves every view and no stored row.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Date, Index, LargeBinary, Text
from sqlmodel import Field, SQLModel

from models.columns import BigInt, EnumText, ExactDecimal, Instant, JsonText
from models.periods import BillingPeriod


class ChargeClass(StrEnum):
    """What a charge is for; the first three and ``adjustment`` count as model spend, ``out_of_scope`` never does."""

    MARKETPLACE = "marketplace"  # a Llama offer billed through Azure Marketplace (SaaS resource)
    FOUNDRY = "foundry"  # a first-party Foundry Models meter on a Cognitive Services account
    COMPUTE = "compute"  # VM hours of managed online endpoints
    ADJUSTMENT = "adjustment"  # rounding and the like: counts, unallocated
    OUT_OF_SCOPE = "out_of_scope"  # everything else in the bill: kept and named, never added


IN_SCOPE = frozenset({ChargeClass.MARKETPLACE, ChargeClass.FOUNDRY, ChargeClass.COMPUTE, ChargeClass.ADJUSTMENT})


class MeterKind(StrEnum):
    """What a meter counts."""

    INPUT = "input"
    OUTPUT = "output"
    CACHED_INPUT = "cached_input"
    TRAINING = "training"
    HOSTING = "hosting"
    COMPUTE = "compute"
    COMMITMENT = "commitment"  # reservation or savings plan: bought, or bought and unused
    ADJUSTMENT = "adjustment"
    OTHER = "other"  # in scope, but we cannot say what it counts: its money is kept, its quantity unknown


class BillPart(SQLModel, table=True):
    """One subscription's month of one landing; current when ``landed_at`` is set and ``superseded_at`` is not."""

    __tablename__ = "bill_part"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    landing_id: str = Field(sa_column=Column(Text, nullable=False, index=True))  # one file or pull
    subscription_id: str = Field(sa_column=Column(Text, nullable=False))  # lower case; '' = billing-account level rows
    billing_account: str = Field(default="", sa_column=Column(Text, nullable=False))
    # First day of the month: the billing month; of a bill for other days (pay-as-you-go) the calendar month that its charges are of.
    period_start: date = Field(sa_column=Column(Date, nullable=False))
    # The days [billed_from, billed_to) that the bill is for where they are no calendar month; a part of each month it touches then.
    billed_from: date | None = Field(default=None, sa_column=Column(Date))
    billed_to: date | None = Field(default=None, sa_column=Column(Date))
    source: str = Field(sa_column=Column(Text, nullable=False))  # cost_details_ea | cost_details_mca | focus | query …
    file_name: str = Field(sa_column=Column(Text, nullable=False))
    file_sha256: str = Field(sa_column=Column(Text, nullable=False))
    author: str = Field(default="", sa_column=Column(Text, nullable=False))
    rows: int = Field(sa_column=Column(BigInteger, nullable=False))
    # {"currency": "decimal text"} of everything and of what counts as model spend
    totals: dict[str, str] = Field(sa_column=Column(JsonText, nullable=False))
    in_scope_totals: dict[str, str] = Field(sa_column=Column(JsonText, nullable=False))
    # {"USD>EUR": "0.92"}: the bill's own rate from pricing to billing currency, the latest dated one of the part
    exchange_rates: dict[str, str] = Field(sa_column=Column(JsonText, nullable=False))
    # {"marketplace": "2025-03-05", …}: the last UTC day with a usage row, per route
    reaches: dict[str, str] = Field(sa_column=Column(JsonText, nullable=False))
    # {"marketplace/output": "2025-03-04", …}: the same per route and kind of meter, as its own text says it, and where that says nothing
    # (other) also "marketplace/other/OFFER/METER"; {} of what landed before it was kept
    meter_reaches: dict[str, str] = Field(default_factory=dict, sa_column=Column(JsonText, nullable=False))
    problems: list[dict[str, Any]] = Field(sa_column=Column(JsonText, nullable=False))
    # None while the part is staged: invisible to every reader until the whole landing is flipped in
    landed_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    superseded_at: datetime | None = Field(default=None, sa_column=Column(Instant))

    __table_args__ = (Index("ix_bill_part_scope", "subscription_id", "period_start"),)

    @property
    def billed(self) -> BillingPeriod:
        """The days that its bill is for."""
        return (
            BillingPeriod.of_month(self.period_start) if self.billed_from is None or self.billed_to is None else BillingPeriod(self.billed_from, self.billed_to)
        )


class ChargeItem(SQLModel, table=True):
    """What was charged: one combination of resource, meter, unit and the tags that matter."""

    __tablename__ = "charge_item"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    charge_class: ChargeClass = Field(sa_column=Column(EnumText(ChargeClass), nullable=False))
    meter_kind: MeterKind = Field(sa_column=Column(EnumText(MeterKind), nullable=False))
    is_fine_tuned: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))
    subscription_id: str = Field(default="", sa_column=Column(Text, nullable=False))  # lower case
    resource_group: str = Field(default="", sa_column=Column(Text, nullable=False))  # lower case
    resource_id: str = Field(default="", sa_column=Column(Text, nullable=False))  # as billed
    workspace: str | None = Field(default=None, sa_column=Column(Text))  # from the resource id, as billed
    endpoint: str | None = Field(default=None, sa_column=Column(Text))  # from the tags
    deployment: str | None = Field(default=None, sa_column=Column(Text))  # from the tags
    model: str | None = Field(default=None, sa_column=Column(Text))  # from offer, product or meter text
    # The Marketplace offer and plan; of managed compute, the id and name of the reservation or savings plan that pays for it.
    offer_id: str | None = Field(default=None, sa_column=Column(Text))
    plan_id: str | None = Field(default=None, sa_column=Column(Text))
    publisher: str | None = Field(default=None, sa_column=Column(Text))
    sku: str | None = Field(default=None, sa_column=Column(Text))  # VM size
    cores: int | None = Field(default=None, sa_column=Column(BigInt))  # vCPUs of one instance
    region: str | None = Field(default=None, sa_column=Column(Text))
    meter_category: str = Field(default="", sa_column=Column(Text, nullable=False))
    meter_name: str = Field(default="", sa_column=Column(Text, nullable=False))
    unit: str = Field(default="", sa_column=Column(Text, nullable=False))  # as billed
    # tokens (or hours) in one billed unit: 1000 for "1K"; None where the unit is unknown
    unit_size: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
    cost_center: str | None = Field(default=None, sa_column=Column(Text))
    tags: dict[str, str] = Field(sa_column=Column(JsonText, nullable=False))
    digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))

    @property
    def commitment_id(self) -> str | None:
        """The reservation or savings plan that pays for it; None where it is paid as it goes."""
        return self.offer_id if self.charge_class == ChargeClass.COMPUTE else None


class Charge(SQLModel, table=True):
    """One billed row. ``effective_cost`` (amortized) is None where the source does not say it."""

    __tablename__ = "charge"

    id: int | None = Field(default=None, sa_column=Column(BigInt, primary_key=True, autoincrement=True))
    part_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    line: int = Field(sa_column=Column(BigInteger, nullable=False))  # row of the file, the header is line 1
    item_id: int = Field(sa_column=Column(BigInteger, nullable=False))
    charged_on: date = Field(sa_column=Column(Date, nullable=False))  # UTC day that holds the charge period's start
    charge_type: str = Field(sa_column=Column(Text, nullable=False))  # Usage, Purchase, Refund, … as billed
    quantity: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))  # in billed units
    unit_price: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))  # pricing currency per unit
    billed_cost: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    effective_cost: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
    currency: str = Field(sa_column=Column(Text, nullable=False))
    pricing_currency: str | None = Field(default=None, sa_column=Column(Text))
    invoice_id: str | None = Field(default=None, sa_column=Column(Text))

    __table_args__ = (Index("ix_charge_part", "part_id", "line"),)


class ChargeDay(SQLModel, table=True):
    """The charges of a part summed per item, UTC day, kind of charge and currency; written with the part, for reading."""

    __tablename__ = "charge_day"

    part_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    charged_on: date = Field(sa_column=Column(Date, primary_key=True))
    item_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    charge_type: str = Field(sa_column=Column(Text, primary_key=True))
    currency: str = Field(sa_column=Column(Text, primary_key=True))
    rows: int = Field(sa_column=Column(BigInteger, nullable=False))
    quantity: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))  # None if any row's is unknown
    billed_cost: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    # amortized where the row says it, else the billed cost
    effective_cost: Decimal = Field(sa_column=Column(ExactDecimal, nullable=False))
    # what of it names an invoice; the cost is None where no row does
    invoiced_rows: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))
    invoiced_cost: Decimal | None = Field(default=None, sa_column=Column(ExactDecimal))
