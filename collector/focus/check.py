"""What a row of FOCUS must hold to, row by row and together: also what the official validator is known to let pass.

Rules and reasons: the specification 1.2 to 1.4. ``faults`` looks at one row; ``Together`` at what only rows side by side
show: ids that stand twice, shares that do not add up, a service in two categories.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache, lru_cache
from typing import Literal

from collector.focus.columns import DECIMALS, TIMES, Version, columns
from collector.focus.rows import Row, Value
from models import money
from models.money import ZERO

_ENUMS: Mapping[str, frozenset[str]] = {
    "ChargeCategory": frozenset({"Usage", "Purchase", "Tax", "Credit", "Adjustment"}),
    "ChargeClass": frozenset({"Correction"}),
    "ChargeFrequency": frozenset({"One-Time", "Recurring", "Usage-Based"}),
    "PricingCategory": frozenset({"Standard", "Dynamic", "Committed", "Other"}),
    "CommitmentDiscountCategory": frozenset({"Spend", "Usage"}),
    "CommitmentDiscountStatus": frozenset({"Used", "Unused"}),
    "CapacityReservationStatus": frozenset({"Used", "Unused"}),
    "ServiceCategory": frozenset(
        {
            "AI and Machine Learning",
            "Analytics",
            "Business Applications",
            "Compute",
            "Databases",
            "Developer Tools",
            "Identity",
            "Integration",
            "Internet of Things",
            "Management and Governance",
            "Media",
            "Migration",
            "Mobile",
            "Multicloud",
            "Networking",
            "Other",
            "Security",
            "Storage",
            "Web",
        }
    ),
    "x_CostStatus": frozenset({"Estimated", "Metered", "Reconciled"}),
    "x_CostSource": frozenset({"RequestUsage", "MarketplaceMeter", "ComputeMeter", "CostManagementExport"}),
}
_MANDATORY = (
    "BilledCost",
    "BillingAccountId",
    "BillingCurrency",
    "BillingPeriodStart",
    "BillingPeriodEnd",
    "ChargeCategory",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ServiceCategory",
    "ServiceName",
)
_NOT_NEGATIVE = ("ListUnitPrice", "ContractedUnitPrice", "PricingCurrencyListUnitPrice", "PricingCurrencyContractedUnitPrice")
_PRICED = ("ListUnitPrice", "ContractedUnitPrice", "PricingQuantity", "PricingUnit", "SkuId")
_TOGETHER = (
    ("ConsumedQuantity", "ConsumedUnit"),
    ("PricingQuantity", "PricingUnit"),
    ("RegionId", "RegionName"),
    ("SubAccountId", "SubAccountType"),
    ("ResourceId", "ResourceType"),
    ("CommitmentDiscountQuantity", "CommitmentDiscountUnit"),
)
_COMMITMENT = ("CommitmentDiscountCategory", "CommitmentDiscountQuantity", "CommitmentDiscountType", "CommitmentDiscountUnit")
_UNIT = re.compile(r"(?:(?:1000|1000000) )?Tokens|Hours")
_CURRENCY = re.compile(r"[A-Z]{3}")
_NONE = timedelta(0)
# A ratio in JSON is a number of that format's: sixteen digits.
_RATIO_ROUNDED = Decimal("1e-12")
_JSONS = ("Tags", "SkuPriceDetails", "AllocatedTags", "AllocatedMethodDetails")


def faults(row: Row, *, version: Version) -> list[str]:
    """What is wrong with a row; empty where it conforms."""
    return list(_faults(row, version))


_Kind = Literal["decimal", "time", "enum", "text"]


@cache  # asked for every row
def _kinds(version: Version) -> Mapping[str, _Kind]:
    return {name: "decimal" if name in DECIMALS else "time" if name in TIMES else "enum" if name in _ENUMS else "text" for name in columns(version)}


@cache
def _mandatory(version: Version) -> tuple[str, ...]:
    return (*_MANDATORY, *(("ProviderName", "PublisherName") if version != "1.4" else ()), *(("ServiceProviderName",) if version != "1.2" else ()))


def _is_instant(value: Value) -> bool:
    return isinstance(value, datetime) and value.utcoffset() == _NONE


def _faults(row: Row, version: Version) -> Iterator[str]:
    kinds = _kinds(version)
    for name, value in row.items():
        kind = kinds.get(name)
        if kind is None:
            yield f"{name} is no column of {version}"
        elif value is None or (isinstance(value, str) and (not value or value[0].isspace() or value[-1].isspace())):
            yield f"{name} is blank or has blanks at its ends; it must be null"
        elif kind == "decimal":
            if not isinstance(value, Decimal) or not value.is_finite():
                yield f"{name} is no decimal: {value!r}"
        elif kind == "time":
            if not _is_instant(value):
                yield f"{name} is no instant in UTC: {value!r}"
        elif not isinstance(value, str):
            yield f"{name} is no text: {value!r}"
        elif kind == "enum" and value not in _ENUMS[name]:
            yield f"{name} is {value!r}, none of {', '.join(sorted(_ENUMS[name]))}"
    missing = [name for name in _mandatory(version) if name not in row]
    if missing:
        yield f"{', '.join(missing)} must not be null"
        return
    yield from _of_time(row)
    yield from _of_amounts(row)
    yield from _of_kind(row, version)
    yield from _of_commitment(row)
    yield from _of_texts(row)


def _of_time(row: Row) -> Iterator[str]:
    for what in ("BillingPeriod", "ChargePeriod"):
        start, end = row[f"{what}Start"], row[f"{what}End"]
        if isinstance(start, datetime) and isinstance(end, datetime) and start.tzinfo and end.tzinfo and not start < end:
            yield f"{what}Start is not before {what}End"
    first, last, since = row["BillingPeriodStart"], row["BillingPeriodEnd"], row["ChargePeriodStart"]
    if isinstance(first, datetime) and isinstance(last, datetime) and isinstance(since, datetime) and first.tzinfo and last.tzinfo and since.tzinfo:
        if since < first and row.get("ChargeClass") is None:
            yield "a charge for days before its billing period is a Correction"
        if since >= last:
            yield "ChargePeriodStart is after the billing period"


def _of_amounts(row: Row) -> Iterator[str]:
    for name in _NOT_NEGATIVE:
        if _number(row, name) < 0:
            yield f"{name} is negative"
    for cost, price in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
        if row.get(price) is not None and row.get("PricingQuantity") is not None:
            expected = money.times(_number(row, price), _number(row, "PricingQuantity"))
            if _number(row, cost) != expected:
                yield f"{cost} is not {price} x PricingQuantity: {row[cost]} and {expected}"
    is_priced = row.get("SkuPriceId") is not None
    wrong = [name for name in _PRICED if (row.get(name) is not None) != is_priced]
    if wrong:
        yield f"{', '.join(wrong)} must be {'set' if is_priced else 'null'} where SkuPriceId is {'set' if is_priced else 'null'}"
    for one, other in _TOGETHER:
        if (row.get(one) is None) != (row.get(other) is None):
            yield f"{one} and {other} are set together or not at all"
    if row.get("SkuMeter") is not None and row.get("SkuId") is None:
        yield "SkuMeter needs a SkuId"


def _number(row: Row, name: str) -> Decimal:
    value = row.get(name)
    return value if isinstance(value, Decimal) else ZERO


def _of_kind(row: Row, version: Version) -> Iterator[str]:
    of, status = row["ChargeCategory"], row.get("x_CostStatus")
    billed = _number(row, "BilledCost")
    if status == "Estimated" and billed != 0:
        yield "an estimate is invoiced by nobody: its BilledCost must be 0"
    if of == "Usage" and row.get("PricingCategory") is None:
        yield "PricingCategory must be set on Usage"
    if of in ("Tax", "Credit", "Adjustment"):
        set_though = [name for name in ("PricingCategory", "PricingQuantity", "ConsumedQuantity", "SkuPriceId") if row.get(name) is not None]
        if set_though:
            yield f"{', '.join(set_though)} must be null on {of}"
        if of != "Tax" and len({_number(row, name) for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost")}) > 1:
            yield f"the four costs of {of} must be the same"
    if of == "Purchase" and row.get("ChargeFrequency") == "Usage-Based":
        yield "a Purchase is not Usage-Based"
    if of == "Purchase" and row.get("CommitmentDiscountId") is not None and _number(row, "EffectiveCost"):
        yield "EffectiveCost of a commitment's fee must be 0: what it covers has its cost"
    if of == "Purchase" and row.get("ConsumedQuantity") is not None:
        yield "ConsumedQuantity must be null on Purchase"
    if of == "Usage" and row.get("SkuPriceId") is not None and row.get("ConsumedQuantity") is None and row.get("CommitmentDiscountStatus") != "Unused":
        yield "ConsumedQuantity must be set on Usage"
    if row.get("ProviderName") not in (None, row["InvoiceIssuerName"]) and billed != 0:
        yield "BilledCost must be 0 where ProviderName is not InvoiceIssuerName"
    ratio = row.get("x_AllocatedRatio")
    if (ratio is None) != (row.get("x_OriginChargeId") is None):
        yield "x_AllocatedRatio and x_OriginChargeId are set together or not at all"
    if isinstance(ratio, Decimal) and not 0 <= ratio <= 1:
        yield "x_AllocatedRatio is not from 0 to 1"
    if version != "1.2":
        yield from _of_allocation(row)


def _of_allocation(row: Row) -> Iterator[str]:
    """Split rows say how they were split, of later versions in columns of FOCUS's own."""
    method, details = row.get("AllocatedMethodId"), row.get("AllocatedMethodDetails")
    if (method is None) != (row.get("x_OriginChargeId") is None):
        yield "AllocatedMethodId and x_OriginChargeId are set together or not at all"
    named = [name for name in ("AllocatedMethodDetails", "AllocatedResourceId", "AllocatedResourceName", "AllocatedTags") if row.get(name) is not None]
    if named and method is None:
        yield f"{', '.join(named)} need an AllocatedMethodId"
    if details is not None and not _json_fault(str(details), is_nested=True):
        told = json.loads(str(details), parse_float=Decimal)
        ratios = [Decimal(str(one["AllocatedRatio"])) for one in told.get("Elements", ()) if "AllocatedRatio" in one] if isinstance(told, dict) else []
        if not ratios or abs(money.minus(money.add(ratios), _number(row, "x_AllocatedRatio"))) > _RATIO_ROUNDED:
            yield "AllocatedMethodDetails says another ratio than x_AllocatedRatio"


def _of_commitment(row: Row) -> Iterator[str]:
    of, status = row["ChargeCategory"], row.get("CommitmentDiscountStatus")
    if row.get("CommitmentDiscountId") is None:
        set_though = [name for name in (*_COMMITMENT, "CommitmentDiscountName", "CommitmentDiscountStatus") if row.get(name) is not None]
        if set_though:
            yield f"{', '.join(set_though)} must be null without a CommitmentDiscountId"
        if row.get("PricingCategory") == "Committed":
            yield "PricingCategory Committed needs a CommitmentDiscountId"
        return
    missing = [name for name in _COMMITMENT if row.get(name) is None]
    if missing:
        yield f"{', '.join(missing)} must be set with a CommitmentDiscountId"
    if (status is not None) != (of == "Usage"):
        yield "CommitmentDiscountStatus is of Usage alone, and of all of it"
    if of == "Usage" and row.get("PricingCategory") != "Committed":
        yield "PricingCategory must be Committed where a commitment paid for the usage"
    if status == "Unused" and row.get("ConsumedQuantity") is not None:
        yield "ConsumedQuantity must be null where a commitment was not used"
    if (status == "Unused" or of == "Purchase") and row.get("ResourceId") != row["CommitmentDiscountId"]:
        yield "ResourceId must be the commitment's where it was bought or not used"


def _of_texts(row: Row) -> Iterator[str]:
    for name in ("BillingCurrency", "PricingCurrency"):
        value = row.get(name)
        if value is not None and not (isinstance(value, str) and _CURRENCY.fullmatch(value)):
            yield f"{name} is no currency code: {value!r}"
    unit = row.get("CommitmentDiscountUnit")
    if unit is not None and unit not in ("Hours", row["BillingCurrency"]):
        yield f"CommitmentDiscountUnit is {unit!r}; it is Hours of a reservation, the billing currency of a savings plan"
    for name in ("ConsumedUnit", "PricingUnit"):
        value = row.get(name)
        if value is not None and not (isinstance(value, str) and _UNIT.fullmatch(value)):
            yield f"{name} is {value!r}; it is written Tokens, 1000 Tokens, 1000000 Tokens or Hours"
    if str(row["BillingAccountId"]).isdigit():
        yield "BillingAccountId of digits alone is read as a number"
    for name in _JSONS:
        value = row.get(name)
        if value is not None and (fault := _json_fault(str(value), is_nested=name == "AllocatedMethodDetails")):
            yield f"{name} is {fault}"


@lru_cache(maxsize=4096)  # rows of one item say the same
def _json_fault(text: str, *, is_nested: bool) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return "no JSON"
    is_flat = isinstance(found, dict) and not any(isinstance(one, (dict, list)) for one in found.values())
    return "" if is_flat or is_nested else "no flat object"


@dataclass(slots=True)
class Commitment:
    """One commitment's month: what was paid for it, and what its used and unused parts cost."""

    purchased: Decimal = ZERO
    used: Decimal = ZERO
    unused: Decimal = ZERO


_Place = tuple[Value, ...]  # workspace, deployment, kind of token, day


@dataclass(slots=True)
class Together:
    """What rows of one file must hold to together; memory grows with the deployments, days and shares of a file, not with its rows."""

    ratios: dict[str, Decimal] = field(default_factory=dict)
    services: dict[Value, tuple[Value, Value]] = field(default_factory=dict)
    prices: dict[Value, Value] = field(default_factory=dict)
    has_invoice: bool | None = None
    invoices: dict[tuple[str, str], Decimal] = field(default_factory=dict)  # (invoice, currency) -> billed
    commitments: dict[tuple[str, str], Commitment] = field(default_factory=dict)  # (commitment, currency)
    wrong: list[str] = field(default_factory=list)
    _billed: set[_Place] = field(default_factory=set)
    _estimated: set[_Place] = field(default_factory=set)
    _last_line: tuple[int, int] = (-1, -1)
    _ids: set[str] = field(default_factory=set)

    def see(self, row: Row) -> None:
        """One more row."""
        origin, ratio = row.get("x_OriginChargeId"), row.get("x_AllocatedRatio")
        if isinstance(origin, str) and isinstance(ratio, Decimal):
            self.ratios[origin] = money.plus(self.ratios.get(origin, ZERO), ratio)
        service = row["ServiceName"]
        kind = (row["ServiceCategory"], row.get("ServiceSubcategory"))
        if self.services.setdefault(service, kind) != kind:
            self._note(f"{service} is in two categories")
        price = row.get("SkuPriceId")
        if price is not None and self.prices.setdefault(price, row.get("SkuId")) != row.get("SkuId"):
            self._note(f"{price} is of two SkuIds")
        invoice = row.get("InvoiceId")
        if self.has_invoice is None:
            self.has_invoice = invoice is not None
        elif self.has_invoice != (invoice is not None):
            self._note("some rows name an invoice and some do not")
        currency = str(row["BillingCurrency"])
        if invoice is not None:
            key = (str(invoice), currency)
            self.invoices[key] = money.plus(self.invoices.get(key, ZERO), _number(row, "BilledCost"))
        if row.get("CommitmentDiscountId") is not None:
            self._commit(row, currency)
        self._see_id(row.get("x_ChargeId"))
        self._see_place(row)

    def _commit(self, row: Row, currency: str) -> None:
        of = self.commitments.setdefault((str(row["CommitmentDiscountId"]), currency), Commitment())
        match row["ChargeCategory"], row.get("CommitmentDiscountStatus"):
            case "Purchase", _:
                of.purchased = money.plus(of.purchased, _number(row, "BilledCost"))
            case _, "Unused":
                of.unused = money.plus(of.unused, _number(row, "EffectiveCost"))
            case _:
                of.used = money.plus(of.used, _number(row, "EffectiveCost"))

    def _see_id(self, charge: Value) -> None:
        """Rows as billed come in the order of their lines, so that most ids need not be kept to know that none stands twice."""
        if not isinstance(charge, str):
            return
        part, _, line = charge.partition("-")
        if part.isdigit() and line.isdigit():
            at = (int(part), int(line))
            if at <= self._last_line:
                self._note(f"{charge} stands twice, or out of order")
            self._last_line = max(at, self._last_line)
        elif charge in self._ids:
            self._note(f"{charge} stands twice")
        else:
            self._ids.add(charge)

    def _see_place(self, row: Row) -> None:
        """A token is billed or estimated, never both: rows of usage by deployment, meter and day."""
        if row["ChargeCategory"] != "Usage" or row.get("x_TokenType") is None or row.get("ChargeClass") is not None:
            return
        place = (row.get("x_WorkspaceName"), row.get("x_DeploymentName"), row.get("x_TokenType"), row["ChargePeriodStart"])
        mine, other = (self._estimated, self._billed) if row.get("x_CostStatus") == "Estimated" else (self._billed, self._estimated)
        mine.add(place)
        if place in other:
            self._note(f"{place[1]} has an estimate and a meter row of {place[2]} tokens for {place[3]:%Y-%m-%d}")

    def _note(self, fault: str) -> None:
        if fault not in self.wrong and len(self.wrong) < 20:
            self.wrong.append(fault)

    def faults(self, *, is_whole: bool) -> list[str]:
        """What is wrong; ``is_whole`` where no share was left out for a reader who may not see it."""
        unequal = [f"the shares of {origin} add up to {total}, not to 1" for origin, total in self.ratios.items() if is_whole and total != 1]
        return [*self.wrong, *unequal[:20]]
