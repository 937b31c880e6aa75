"""What was paid for answers that nobody could use well: figures by hand."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlmodel import Session

from models import ledger
from models.errors import InvalidInput
from models.ledger import Filters, WasteRow
from models.periods import Period
from models.prices import PriceMeter
from models.store import Store
from models.usage import Status
from tests import factories as make

NOW = make.NOW
WEEK = Period(NOW - timedelta(days=7), NOW)
A_MOMENT_AGO = NOW - timedelta(minutes=5)


def call(session: Session, status: Status = Status.SUCCESS, *, sent: int | None = 1000, got: int | None = 100, **said: Any) -> None:
    known = {name: said.pop(name) for name in ("billable", "cached_input_tokens") if name in said}
    of = make.series(session, deployment=said.pop("deployment", "llama-chat"))
    make.event(session, of, time=A_MOMENT_AGO, status=status, input_tokens=sent, output_tokens=got, details=said or None, **known)


def found(session: Session, filters: Filters | None = None) -> dict[str | None, WasteRow]:
    return {row.deployment: row for row in ledger.waste(session, WEEK, filters or Filters(), now=NOW)}


def test_every_kind_of_waste_has_its_calls_tokens_and_cost(store: Store) -> None:
    with store.write() as session:
        make.token_prices(session, "1", "10")  # dollars per million
        call(session, finish_reason="stop")
        call(session, finish_reason=None)
        call(session)
        call(session, finish_reason="length", max_tokens=100)
        call(session, finish_reason="length", sent=500, got=16)
        call(session, Status.FILTERED, finish_reason="content_filter", got=30)
        call(session, Status.FILTERED, sent=None, got=None, http_status=400)
        call(session, Status.FILTERED, finish_reason="content_filter_error", got=7)
        call(session, finish_reason="stop", best_of=4, choices=1, got=1000)
        call(session, finish_reason="stop", best_of=2, choices=2)  # every candidate came back
        call(session, finish_reason="length", ignore_eos=True)
        call(session, Status.ERROR, sent=None, got=None, http_status=500)
        call(session, Status.THROTTLED, sent=None, got=None, http_status=429)
        call(session, finish_reason="length", billable=False)
    with store.read() as session:
        row = found(session)["llama-chat"]
    assert (row.workspace, row.currency, row.requests, row.answered, row.filtered) == ("ws-east", "USD", 14, 12, 3)
    assert row.filtered_share == Decimal("0.2500")
    assert row.finish_reasons == {"stop": 3, "null": 1, "not_said": 2, "length": 4, "content_filter": 1, "content_filter_error": 1}
    told = {kind: (one.requests, one.input_tokens, one.output_tokens, one.cost, one.estimate) for kind, one in row.waste.items()}
    assert told == {
        # 1,000 + 500 + 1,000 in at $1, 100 + 16 + 100 out at $10; the one that was not billed is a call without tokens.
        "length": (4, 2500, 216, Decimal("0.00466"), False),
        "content_filter": (2, 1000, 30, Decimal("0.0013"), False),
        "content_filter_error": (1, 1000, 7, Decimal("0.00107"), False),
        "candidates": (1, 0, 750, Decimal("0.0075"), True),
        "ignore_eos": (1, 1000, 100, Decimal("0.002"), False),
        "error": (1, 0, 0, Decimal(0), False),
        "throttled": (1, 0, 0, Decimal(0), False),
    }


def test_cached_input_costs_its_own_price(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1", "10")
        make.price(session, PriceMeter.CACHED_INPUT_TOKENS, "0.5")
        call(session, finish_reason="length", cached_input_tokens=400)
    with sqlite_store.read() as session:
        assert found(session)["llama-chat"].waste["length"].cost == Decimal("0.0018")


def test_without_a_price_the_cost_is_unknown_not_zero(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        call(session, finish_reason="length")
        call(session, Status.ERROR, sent=None, got=None, deployment="other")
    with sqlite_store.read() as session:
        rows = found(session)
    assert (rows["llama-chat"].waste["length"].cost, rows["llama-chat"].waste["length"].output_tokens) == (None, 100)
    assert (rows["other"].filtered_share, rows["other"].waste["error"].requests) == (None, 1)


def test_filters_and_the_length_of_the_period(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        call(session, finish_reason="length")
        call(session, finish_reason="length", deployment="other")
    with sqlite_store.read() as session:
        assert set(found(session, Filters(deployments=("other",)))) == {"other"}
        assert found(session, Filters(visible=frozenset({"ws-west"}))) == {}
        with pytest.raises(InvalidInput, match="at most 31 days"):
            ledger.waste(session, Period(NOW - timedelta(days=32), NOW), Filters(), now=NOW)
