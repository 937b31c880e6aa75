"""The factories keep together what the service keeps together."""

from datetime import UTC, date, datetime
from decimal import Decimal

from sqlmodel import select

from models.charges import ChargeClass, ChargeDay, MeterKind
from models.store import Store
from models.usage import Status, UsageMinute, UsageQuarter
from tests import factories


def test_events_of_one_quarter_add_up(store: Store) -> None:
    with store.write() as session:
        factories.event(session, time=datetime(2026, 11, 20, 10, 3, tzinfo=UTC))
        factories.event(session, time=datetime(2026, 11, 20, 10, 14, 59, tzinfo=UTC), output_tokens=None)
        factories.event(session, time=datetime(2026, 11, 20, 10, 4, tzinfo=UTC), status=Status.THROTTLED, input_tokens=None, output_tokens=None)
    with store.read() as session:
        quarters = session.exec(select(UsageQuarter)).all()
        assert sorted((row.outcome, row.requests, row.input_tokens, row.output_tokens, row.unknown_requests) for row in quarters) == [
            (1, 2, 2000, 200, 1),
            (5, 1, 0, 0, 0),
        ]
        assert {row.starts_at for row in quarters} == {1795168800}  # 2026-11-20 10:00 UTC
        assert len(session.exec(select(UsageMinute)).all()) == 3


def test_charges_of_one_day_add_up_and_move_the_part(store: Store) -> None:
    with store.write() as session:
        part = factories.bill_part(session)
        item = factories.charge_item(session)
        item_id = item.id
        factories.charge(session, part, item, "1.10", quantity="1000")
        factories.charge(session, part, item, "2.25", quantity="500.5")
        factories.charge(session, part, factories.charge_item(session, ChargeClass.OUT_OF_SCOPE, MeterKind.OTHER), "7", charged_on=date(2026, 11, 12))
        assert (part.rows, part.totals, part.in_scope_totals, part.reaches) == (3, {"USD": "10.35"}, {"USD": "3.35"}, {"marketplace": "2026-11-10"})
    with store.read() as session:
        day = session.exec(select(ChargeDay).where(ChargeDay.item_id == item_id)).one()
        assert (day.rows, day.quantity, day.billed_cost, day.effective_cost) == (2, Decimal("1500.5"), Decimal("3.35"), Decimal("3.35"))


def test_every_noun_has_defaults(store: Store) -> None:
    with store.write() as session:
        factories.workspace_fact(session)
        assert factories.serverless(session).name == "llama-chat"
        assert factories.foundry(session).deployment == "llama-foundry"
        assert (factories.managed(session).endpoint, factories.managed(session).deployment) == ("llama-online", "blue")
        assert factories.owner(session).team == "search"
        assert [row.unit_price for row in factories.token_prices(session)] == [Decimal("0.71"), Decimal("0.71")]
        part = factories.bill_part(session)
        factories.supersede(session, part, factories.NOW)
        assert part.superseded_at == factories.NOW
