"""The close pack as a snapshot's body, and the tables in which every format shows it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from collector.reports import words
from models import money
from models.cells import plain
from models.ledger import CAUSES
from models.ledger.closepack import ClosePack, CurrencyClose, Entry
from models.periods import rfc3339

SUM = "Together"  # begins the last row of a table whose last row is the sum of the others
_SHORT = 14
_JOURNAL = ("entry", "date", "currency", "cost_center", "account", "debit", "credit")
_ACCOUNTS = {
    "serverless": "serverless",
    "managed_allocated": "managed compute, used",
    "managed_idle": "managed compute, idle",
    "managed_undetermined": "managed compute, capacity not known",
    "unknown_mode": "deployment of unknown mode",
    "unallocated": "not of a known deployment",
    "payable": "accounts payable",
    "accrued": "accrued expenses",
}
_ENTRIES = {
    "invoice": "What is billed",
    "accrual": "Accrual of what is not billed yet",
    "reversal": "Reversal of the accrual",
    "adjustment": "What has changed since the close, to be booked in the open month",
}


def close_body(pack: ClosePack) -> dict[str, Any]:
    """The pack as JSON: money as text, unknown as null."""
    return {
        "kind": "close",
        "month": f"{pack.month:%Y-%m}",
        "from": rfc3339(pack.period.start),
        "to": rfc3339(pack.period.end),
        "time_zone": "UTC",
        "basis": "best",
        "standing": pack.standing,
        "known_at": None if pack.known_at is None else rfc3339(pack.known_at),
        "closed_by": None if pack.close is None else pack.close.closed_by,
        "settles_at": rfc3339(pack.settles_at),
        "unpriced_tokens": pack.unpriced_tokens,
        "unknown_token_requests": pack.unknown_token_requests,
        "unknown_token_share": None if pack.unknown_token_share is None else money.text(pack.unknown_token_share),
        "totals": [
            {
                "currency": one.currency,
                "cost": money.text(one.cost),
                "billed_cost": None if one.total.billed_cost is None else money.text(one.total.billed_cost),
                "booked": _minor(one.booked, one.currency),
                "rounding": money.text(one.rounding),
                "status": one.total.status,
            }
            for one in pack.currencies
        ],
        "currencies": [_currency(one) for one in pack.currencies],
        "adjustments": [
            {
                "day": line.day.isoformat(),
                "workspace": line.workspace,
                "deployment": line.deployment,
                "meter": line.meter,
                "currency": line.currency,
                "side": line.side,
                "cause": line.cause,
                "amount": money.text(line.amount),
            }
            for line in pack.adjustments
        ],
    }


def _currency(one: CurrencyClose) -> dict[str, Any]:
    matched = one.reconciliation
    return {
        "currency": one.currency,
        "entries": [_entry(entry, one.currency) for entry in one.entries],
        "reconciliation": None
        if matched is None
        else {
            "expected": money.text(matched.expected),
            "billed": money.text(matched.billed),
            "variance": money.text(matched.variance),
            "causes": {cause.value: money.text(share) for cause, share in matched.causes.items()},
            "unexplained": money.text(matched.unexplained),
            "coverage": None if matched.coverage is None else money.text(matched.coverage),
            "invoiced": None if matched.invoiced is None else money.text(matched.invoiced),
            "reasons": {} if matched.not_invoiced is None else {"invoiced": matched.not_invoiced},
        },
    }


def _entry(entry: Entry, currency: str) -> dict[str, Any]:
    return {
        "entry": entry.kind,
        "date": None if entry.on is None else entry.on.isoformat(),
        "debits": _minor(entry.debits, currency),
        "credits": _minor(entry.credits, currency),
        "lines": [
            {
                "cost_center": line.cost_center,
                "account": line.account,
                "debit": _minor(line.debit, currency),
                "credit": _minor(line.credit, currency),
                "exact": money.text(line.exact),
            }
            for line in entry.lines
        ],
    }


def _minor(amount: Decimal, currency: str) -> str:
    """In minor units, all of their digits written."""
    return f"{money.shown(amount, currency) + 0:f}"


def close_difference(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """The journal lines that a restatement changes: what is debited less what is credited."""
    sides = [
        {
            (one["currency"], entry["entry"], line["cost_center"], line["account"]): money.minus(Decimal(line["debit"]), Decimal(line["credit"]))
            for one in body["currencies"]
            for entry in one["entries"]
            for line in entry["lines"]
        }
        for body in (before, after)
    ]
    found: list[dict[str, Any]] = []
    for place in sorted(sides[0].keys() | sides[1].keys(), key=lambda key: [one or "" for one in key]):
        was, is_now = (side.get(place, money.ZERO) for side in sides)
        if was != is_now:
            named = dict(zip(("currency", "entry", "cost_center", "account"), place, strict=True))
            found.append({**named, "was": money.text(was), "is": money.text(is_now), "delta": money.text(money.minus(is_now, was))})
    return found


def journal_csv(body: Mapping[str, Any]) -> tuple[bytes, int, dict[str, str]]:
    """The journal, a line each; the control total per currency is what invoice and accrual debit to accounts of cost."""
    into = io.StringIO()
    writer = csv.writer(into, lineterminator="\r\n")
    writer.writerow(_JOURNAL)
    rows = 0
    control: dict[str, str] = {}
    for one in body["currencies"]:
        total = money.ZERO
        for entry in one["entries"]:
            for line in entry["lines"]:
                cells = {**entry, **line, "currency": one["currency"]}
                writer.writerow(["" if cells[name] is None else plain(cells[name]) if name == "cost_center" else cells[name] for name in _JOURNAL])
                rows += 1
                if entry["entry"] in {"invoice", "accrual"} and line["account"] not in {"payable", "accrued"}:
                    total = money.add((total, Decimal(line["debit"]), Decimal(line["credit"]).copy_negate()))
        control[one["currency"]] = _minor(total, one["currency"])
    return into.getvalue().encode(), rows, control


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts; heads that begin with # are of numbers. ``note`` stands below it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def is_short(self) -> bool:
        """Whether it stands on one page."""
        return len(self.rows) <= _SHORT


def title_of(body: Mapping[str, Any]) -> str:
    """What the pack is called."""
    return f"Month close pack {body['month']} ({'final' if body['standing'] == 'final' else 'provisional'}){words.limits(body)}"


def leads(body: Mapping[str, Any]) -> list[str]:
    """The sentences at the top."""
    said: list[str] = []
    if body["standing"] == "final":
        said.append(f"Closed {words.instant(body['known_at'], 'UTC')} by {words.name(body['closed_by'], 'nobody named')}. The figures are those of the close.")
    else:
        is_settled = body["settles_at"] <= body["snapshot"]["made_at"]  # written alike, they compare as texts
        when = words.instant(body["settles_at"], "UTC")
        said.append(f"Provisional: the month is not closed. {f'It can be closed since {when}' if is_settled else f'Its figures settle {when}'}.")
    said += [
        f"{words.amount(total['booked'], total['currency'])} {'is' if body['standing'] == 'final' else 'is to be'} booked"
        + (
            f"; the exact cost is {Decimal(total['cost']):,f} {total['currency']}, and {Decimal(total['rounding']):,f} is rounding."
            if Decimal(total["rounding"])
            else ", which is the exact cost."
        )
        for total in body["totals"]
    ]
    if "data_age" in body:
        said.append(words.age(body))
    if not body["totals"]:
        said.append("Nothing with a price was used and nothing was billed in this month.")
    if body["unpriced_tokens"]:
        said.append(f"{words.lacking('unpriced_tokens', body)}: metering cannot say what they cost, the bill does.")
    if body["unknown_token_requests"]:
        # A pack that was kept before the share was says the number alone.
        share = f" ({words.plain_percent(money.text(Decimal(body['unknown_token_share']) * 100))})" if body.get("unknown_token_share") else ""
        said.append(f"{words.lacking('unknown_token_requests', body, share)}: metering cannot say what they cost, the bill does.")
    return said


def tables(body: Mapping[str, Any]) -> list[Table]:
    """Every table of the pack, in order."""
    found: list[Table] = []
    if body.get("restatement"):
        rows = [
            [
                line["entry"],
                words.name(line["cost_center"], "no cost centre"),
                _ACCOUNTS.get(line["account"], line["account"]),
                *(words.signed(line[key], line["currency"]) for key in ("was", "is", "delta")),
            ]
            for line in body["restatement"]
        ]
        found.append(Table("What this restatement changes", ["Entry", "Cost centre", "Account", "#Was", "#Is", "#Difference"], rows))
    for one in body["currencies"]:
        found += _tables_of(one)
    sums: dict[tuple[str, str, str | None], Decimal] = {}
    for line in body["adjustments"]:
        key = (line["side"], line["cause"], line["currency"])
        sums[key] = money.plus(sums.get(key, money.ZERO), Decimal(line["amount"]))
    rows = [[side, cause.replace("_", " "), words.signed(money.text(amount), currency)] for (side, cause, currency), amount in sorted(sums.items(), key=str)]
    if rows:
        found.append(Table("What has changed since the close, by cause", ["Side", "Cause", "#Amount"], rows))
    return found


def _invoiced(matched: Mapping[str, Any], code: str) -> str:
    """What of the billed amount is on an invoice; a pack that was kept before this was known says nothing."""
    if "invoiced" not in matched:
        return ""
    reason = matched["reasons"].get("invoiced")
    if matched["invoiced"] is None:
        return f" Nothing is known to be invoiced: {reason}."
    return f" Of what is billed {words.amount(matched['invoiced'], code)} is on an invoice{f': {reason}' if reason else ''}."


def causes_of(title: str, matched: Mapping[str, Any], code: str, note: str) -> Table:
    """The gap between bill and metering in its causes, the largest first, each with how it comes about."""
    known = {cause.value: how for cause, how in CAUSES.items()}
    causes = sorted(matched["causes"].items(), key=lambda pair: -abs(Decimal(pair[1])))
    rows = [[cause.replace("_", " "), known.get(cause, ""), words.signed(share, code)] for cause, share in causes]
    return Table(title, ("Cause", "How it comes about", "#Amount"), [*rows, [SUM, "", words.signed(matched["variance"], code)]] if rows else [], note)


def _tables_of(one: Mapping[str, Any]) -> list[Table]:
    code = one["currency"]
    found: list[Table] = []
    for entry in one["entries"]:
        rows = [
            [
                words.name(line["cost_center"], "–" if line["account"] in {"payable", "accrued"} else "no cost centre"),
                _ACCOUNTS.get(line["account"], line["account"]),
                *(words.amount(line[side], code) if Decimal(line[side]) else "" for side in ("debit", "credit")),
            ]
            for line in entry["lines"]
        ]
        rows.append([SUM, "", words.amount(entry["debits"], code), words.amount(entry["credits"], code)])
        title = f"{_ENTRIES[entry['entry']]} ({code}{', ' + entry['date'] if entry['date'] else ''})"
        found.append(Table(title, ["Cost centre", "Account", "#Debit", "#Credit"], rows))
    matched = one["reconciliation"]
    if matched is not None:
        note = (
            f"Expected {words.amount(matched['expected'], code)}, billed {words.amount(matched['billed'], code)}; "
            f"{words.amount(matched['unexplained'], code)} is unexplained.{_invoiced(matched, code)}"
        )
        found.append(causes_of(f"Bill against metering ({code})", matched, code, note))
    return found
