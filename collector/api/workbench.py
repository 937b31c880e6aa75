"""Finance's workbench: the worklist, invoices, how late bills are, the price book and its review, what meters count, the onboarding audit."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import col, select

from collector import mappings, pricereview, pricing
from collector.api.deps import Caller, Now, Reading, Writing
from collector.api.reads import amount, documented, filters_of, instant, period_of, problem, refuse_unknown
from collector.api.reconciliation import month_from
from collector.auth import Principal
from models import ledger, money
from models.errors import Forbidden, InvalidInput
from models.meters import MappedKind
from models.periods import month_period, parse_bound, utc_day
from models.prices import Price, WaitingPrice
from models.worklist import InvoiceStatement, WorklistEntry

router = APIRouter(tags=["workbench"])
_MOST_PRICES = 10_000
_Text = Annotated[str, Field(max_length=2000)]


def _month(request: Request, now: datetime) -> date:
    said = request.query_params.get("month")
    return utc_day((month_from(said) if said else month_period(utc_day(now))).start)


def _sees_all(caller: Principal, what: str) -> None:
    if caller.visible is not None:
        raise Forbidden(f"{what} of all workspaces; ask with a key that sees them all")


# -- the worklist ---------------------------------------------------------------------------------


class Said(BaseModel):
    """What ``PUT /v1/worklist/{id}`` takes; what is left out stays as it is. ``sign`` true signs the line as it is now, false takes it back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    owner: _Text | None = None
    note: _Text | None = None
    sign: bool | None = None


@router.get("/v1/worklist", summary="Differences of a month that a person should look at", openapi_extra=documented("month", "workspace"))
def worklist(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Lines above 1 % and 1.00, the largest first, with their owner, note and signature, and what changed since it."""
    refuse_unknown(request, ("month", "workspace"))
    found = ledger.worklist(session, _month(request, now), filters_of(request, caller), now=now)
    return {"items": [_item(item) for item in found], "next_cursor": None}


@router.put("/v1/worklist/{item_id}", summary="Say who looks at a difference, what it is, and sign it")
def put_worklist(session: Writing, caller: Caller, now: Now, *, item_id: str, said: Said) -> dict[str, Any]:
    """Keeps the words before this one on record."""
    item = ledger.worklist_item(session, item_id, visible=caller.visible, now=now)
    before = item.entry
    entry = WorklistEntry(
        month=item.month,
        workspace=item.workspace,
        deployment=item.deployment,
        meter=item.meter,
        currency=item.currency,
        owner=said.owner if said.owner is not None else before.owner if before is not None else "",
        note=said.note if said.note is not None else before.note if before is not None else "",
        author=caller.name,
        known_from=now,
    )
    if said.sign:
        entry.signed_by, entry.signed_at, entry.signed = caller.name, now, item.figures()
    elif said.sign is None and before is not None:
        entry.signed_by, entry.signed_at, entry.signed = before.signed_by, before.signed_at, before.signed
    if before is not None:
        before.known_to = now
        session.add(before)
    session.add(entry)
    session.flush()
    # Its figures are those just looked at; what is signed now has not moved since.
    return _item(replace(item, entry=entry, changed=item.changed if said.sign is None else {}))


def _item(item: ledger.WorklistItem) -> dict[str, Any]:
    entry = item.entry
    return {
        "id": item.id,
        "month": f"{item.month:%Y-%m}",
        "workspace": item.workspace,
        "deployment": item.deployment,
        "meter": item.meter,
        "currency": item.currency,
        "expected": amount(item.expected),
        "billed": amount(item.billed),
        "variance": amount(item.variance),
        "left": amount(item.left),
        "causes": {cause.value: amount(share) for cause, share in item.causes.items()},
        "state": item.state,
        "days": item.days,
        "is_material": item.is_material,
        "owner": entry.owner if entry is not None else "",
        "note": entry.note if entry is not None else "",
        "signed_by": entry.signed_by or None if entry is not None else None,
        "signed_at": instant(entry.signed_at) if entry is not None else None,
        "changed_since_signed": {name: amount(moved) for name, moved in item.changed.items()},
    }


# -- invoices and lags ----------------------------------------------------------------------------


class Stated(BaseModel):
    """What an invoice prints: the amount due and the tax in it, as decimal strings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    amount: Annotated[str, Field(max_length=40)]
    tax: Annotated[str, Field(max_length=40)] = "0"


@router.get("/v1/invoices", summary="Invoices tied out against the charges they are made of", openapi_extra=documented("month"))
def invoices(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """In scope + out of scope + credits + tax = total; ``difference`` is the stated amount less that."""
    refuse_unknown(request, ("month",))
    _sees_all(caller, "invoices are")
    return {"items": [_invoice(one) for one in ledger.invoices(session, _month(request, now), now=now)], "next_cursor": None}


@router.put("/v1/invoices/{invoice_id}", summary="Say what an invoice prints")
def put_invoice(session: Writing, caller: Caller, now: Now, *, invoice_id: str, said: Stated) -> dict[str, Any]:
    """Replaces what was said of it before, which stays on record."""
    row = InvoiceStatement
    for standing in session.exec(select(row).where(col(row.invoice_id) == invoice_id, col(row.currency) == said.currency, col(row.known_to).is_(None))):
        standing.known_to = now
    due, tax = (money.decimal_from(text, what=what) for text, what in ((said.amount, "amount"), (said.tax, "tax")))
    session.add(row(invoice_id=invoice_id, currency=said.currency, amount=due, tax=tax, author=caller.name, known_from=now))
    session.flush()
    return {"invoice_id": invoice_id, "currency": said.currency, "stated": amount(due), "tax": amount(tax)}


def _invoice(one: ledger.Invoice) -> dict[str, Any]:
    return {
        "invoice_id": one.invoice_id,
        "currency": one.currency,
        **{name: amount(getattr(one, name)) for name in ("in_scope", "out_of_scope", "credits", "tax", "total", "stated", "difference")},
        "rows": one.rows,
        "subscriptions": list(one.subscriptions),
        "reason": "no invoice has been made for these charges yet"
        if one.invoice_id is None
        else "nobody has said what it prints"
        if one.stated is None
        else None,
    }


@router.get("/v1/lags", summary="How late the bill of each route and meter usually is, and whether it is overdue")
def lags(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Learnt from the landings of the last 90 days; a lag never closes a day."""
    refuse_unknown(request, ())
    _sees_all(caller, "bills are")
    return {
        "items": [
            {
                "subscription": one.subscription,
                "route": one.route,
                "meter": one.meter,
                "billed_until": one.reaches.isoformat(),
                "usual_lag_seconds": int(one.usual.total_seconds()),
                "landings": one.landings,
                "overdue_since": instant(one.overdue_since),
            }
            for one in ledger.lags(session, now=now)
        ],
        "next_cursor": None,
    }


# -- prices ---------------------------------------------------------------------------------------


@router.get("/v1/prices", summary="The price book: every row in use, with where it came from")
def prices(request: Request, session: Reading, now: Now) -> dict[str, Any]:
    """Imported goes before synced before bundled; within one, the more specific row, then the later."""
    refuse_unknown(request, ())
    rows = [row for row in pricing.price_rows(session) if row.known_from <= now]
    return {"items": [_price(row) for row in rows[:_MOST_PRICES]], "next_cursor": None}


@router.get("/v1/prices/waiting", summary="Price rows that look wrong and wait for review")
def waiting(request: Request, session: Reading) -> dict[str, Any]:
    """Each with what looks wrong; none of them counts yet."""
    refuse_unknown(request, ())
    return {"items": [_waiting(row) for row in ledger.waiting_prices(session)], "next_cursor": None}


@router.post("/v1/prices/waiting/{waiting_id}/{decision}", summary="Accept or reject a price row that waits")
def decide(session: Writing, caller: Caller, now: Now, *, waiting_id: str, decision: str) -> dict[str, Any]:
    """``accept`` lets it count from now on; ``reject`` puts it away. Both stay on record."""
    if decision not in ("accept", "reject"):
        raise InvalidInput("say accept or reject")
    return _waiting(pricereview.decide(session, _number(waiting_id), accept=decision == "accept", author=caller.name, now=now))


@router.post("/v1/prices/preview", summary="What a price file would change, without importing it", openapi_extra=documented("from", "to"))
async def preview(request: Request, session: Reading, now: Now) -> dict[str, Any]:
    """The body is a price file, CSV or JSON; rows per month, team and currency whose metered cost would change, and what would wait for review."""
    refuse_unknown(request, ("from", "to"))
    content = await request.body()
    name = "prices.json" if content.lstrip()[:1] in (b"[", b"{") else "prices.csv"
    found = pricing.previewed(session, content, name=name, period=period_of(request, now=now), now=now)
    return {
        "rows": [rerate(row) for row in found.rows],
        "waiting": list(found.waiting),
        "rows_if_accepted": [rerate(row) for row in found.accepted],
    }


def rerate(row: ledger.Rerate) -> dict[str, Any]:
    """One row of a preview."""
    return {
        "month": f"{row.month:%Y-%m}",
        "team": row.team,
        "currency": row.currency,
        "metered_cost_now": amount(row.cost_now),
        "metered_cost_then": amount(row.cost_then),
        "difference": amount(row.difference),
        "unpriced_tokens_now": row.unpriced_now,
        "unpriced_tokens_then": row.unpriced_then,
        "is_closed": row.is_closed,
    }


def _price(row: Price | WaitingPrice) -> dict[str, Any]:
    return {
        "model": row.model or None,
        "meter": row.meter.value,
        "unit_price": amount(Decimal(row.unit_price)),
        "currency": row.currency,
        "unit": row.unit,
        "workspace": row.workspace or None,
        "sku": row.sku or None,
        "region": row.region or None,
        "valid_from": instant(row.valid_from),
        "valid_to": instant(row.valid_to),
        "source": row.source,
        "version": row.version,
        "author": row.author,
        **({"origin": row.origin, "known_from": instant(row.known_from)} if isinstance(row, Price) else {}),
    }


def _waiting(row: WaitingPrice) -> dict[str, Any]:
    return {
        "id": str(row.id),
        **_price(row),
        "reason": row.reason,
        "arrived_at": instant(row.arrived_at),
        "decision": row.decision,
        "decided_at": instant(row.decided_at),
        "decided_by": row.decided_by or None,
    }


# -- meters ---------------------------------------------------------------------------------------


class Mapped(BaseModel):
    """What ``POST /v1/meters/mappings`` takes: ``meter`` as the bill writes it (``*`` stands for any text), its kind, and the days it is of."""

    model_config = ConfigDict(extra="forbid", strict=True)

    meter: Annotated[str, Field(min_length=1, max_length=256)]
    kind: Annotated[MappedKind, Field(strict=False)]
    offer: Annotated[str, Field(max_length=256)] | None = None
    unit: Literal["1K tokens", "1M tokens", "1 hour"] | None = None
    valid_from: Annotated[str, Field(max_length=40)] | None = None
    valid_to: Annotated[str, Field(max_length=40)] | None = None
    note: _Text = ""

    def row(self) -> mappings.MappingRow:
        """The mapping as it is kept."""
        begin, end = (parse_bound(at, what=what) if at else None for at, what in ((self.valid_from, "valid_from"), (self.valid_to, "valid_to")))
        return mappings.MappingRow(self.meter.strip(), self.kind, (self.offer or "").strip(), self.unit or "", begin, end, self.note)


@router.get("/v1/meters", summary="The meters of the bill: what each counts, who says so, and its money")
def meters(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Those of which nobody can tell what they count first, of all time; the others of the last 60 days."""
    refuse_unknown(request, ())
    _sees_all(caller, "meters are")
    return {"items": [_meter(one) for one in ledger.meters(session, now=now).uses[:_MOST_PRICES]], "next_cursor": None}


@router.get("/v1/meters/mappings", summary="What people say that meters count: the mappings in use")
def meter_mappings(request: Request, session: Reading) -> dict[str, Any]:
    """A mapping goes before the meter's own text; one that spells the meter out before a pattern, then one with an offer, then the later."""
    refuse_unknown(request, ())
    return {"items": [mappings.shown(row) for row in ledger.meter_mappings(session)], "next_cursor": None}


@router.post("/v1/meters/mappings", status_code=201, summary="Say what a meter counts")
def map_meter(session: Writing, caller: Caller, now: Now, *, said: Mapped) -> dict[str, Any]:
    """Counts from now on for every charge of its days, landed ones too; closed months keep their rows and show it as an adjustment."""
    return mappings.shown(mappings.put_mapping(session, said.row(), now=now, author=caller.name))


@router.delete("/v1/meters/mappings/{mapping_id}", status_code=204, summary="Take back what was said of a meter")
def unmap_meter(session: Writing, caller: Caller, now: Now, *, mapping_id: str) -> Response:
    """The meter's own text, or a less specific mapping, counts again."""
    mappings.end_mapping(session, _number(mapping_id), now=now, author=caller.name)
    return Response(status_code=204)


def _number(row_id: str) -> int:
    """The number of a row; of an id that is none, one that no row has."""
    return int(row_id) if row_id.isascii() and row_id.isdigit() and len(row_id) < 19 else 0


def _meter(one: ledger.MeterUse) -> dict[str, Any]:
    return {
        "meter": one.meter,
        "offer": one.offer,
        "route": one.route.value,
        "kind": one.kind.value,
        "is_fine_tuned": one.is_fine_tuned,
        "unit": one.unit,
        "is_unit_known": one.is_unit_known,
        "mapping_id": None if one.mapping is None else str(one.mapping),
        "model": one.model,
        "currency": one.currency,
        "billed_cost": amount(one.amount),
        "rows": one.rows,
        "first_on": one.first_on.isoformat(),
        "last_on": one.last_on.isoformat(),
        "problem": None if one.problem is None else one.problem.kind,
    }


# -- onboarding -----------------------------------------------------------------------------------


@router.get("/v1/onboarding", summary="What is not set up right yet")
def onboarding(request: Request, session: Reading, caller: Caller, now: Now) -> dict[str, Any]:
    """Where bill, inventory, prices and usage do not fit together, each with its fix."""
    refuse_unknown(request, ())
    return {
        "items": [problem(one) for one in ledger.onboarding(session, visible=caller.visible, now=now)],
        "next_cursor": None,
    }
