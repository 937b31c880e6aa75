"""What bills and closes of an earlier version say is invoiced, once the database is of this one."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from models import ledger
from models.charges import ChargeDay
from models.store import Store, _alembic_config
from tests import factories as make

NOW = make.NOW
_CHARGE = (
    "INSERT INTO charge (part_id, line, item_id, charged_on, charge_type, billed_cost, currency, invoice_id) "
    "VALUES (:part, :line, 7, :day, :kind, :cost, 'USD', :invoice)"
)
_DAY = (
    "INSERT INTO charge_day (part_id, charged_on, item_id, charge_type, currency, rows, billed_cost, effective_cost) "
    "VALUES (:part, :day, 7, :kind, 'USD', :rows, :cost, :cost)"
)


@pytest.fixture
def old(unmigrated: Store) -> Store:
    """Three bills of the version before: one on an invoice, one on none, and one of which a part is; and a closed month."""
    store = unmigrated
    config: Config = _alembic_config()
    with store.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0023")
        amount = (lambda text: text) if store.is_sqlite else Decimal
        charges = [
            (1, "2026-11-02", "Usage", "1.20", "G1"),
            (1, "2026-11-02", "Usage", "0.05", "G1"),
            (2, "2026-11-03", "Usage", "0.80", None),
            (3, "2026-11-04", "Usage", "0.7", "G1"),
            (3, "2026-11-04", "Usage", "0.3000000001", "G2"),
            (3, "2026-11-04", "Usage", "5", ""),
            (3, "2026-11-04", "Refund", "-0.5", None),
        ]
        for line, (part, day, kind, cost, invoice) in enumerate(charges):
            values = {"part": part, "line": line, "day": date.fromisoformat(day), "kind": kind, "cost": amount(cost), "invoice": invoice}
            connection.execute(sa.text(_CHARGE).bindparams(sa.bindparam("day", type_=sa.Date())), values)
        for number, of_month, meant, rows, total in (
            (1, 2, "Usage", 2, "1.25"),
            (2, 3, "Usage", 1, "0.8"),
            (3, 4, "Usage", 3, "6.0000000001"),
            (3, 4, "Refund", 1, "-0.5"),
        ):
            summed = {"part": number, "day": date(2026, 11, of_month), "kind": meant, "rows": rows, "cost": amount(total)}
            connection.execute(sa.text(_DAY).bindparams(sa.bindparam("day", type_=sa.Date())), summed)
        connection.execute(
            sa.text("INSERT INTO month_close (id, month, closed_at, closed_by, software, versions, reopened_by, reason) VALUES (1, :month, 5, 'ana', '1', :versions, '', '')")
            .bindparams(sa.bindparam("month", type_=sa.Date())),
            {"month": date(2026, 10, 1), "versions": '{"bill_parts":[1],"last_price":null}'},
        )  # fmt: skip
        connection.execute(
            sa.text("INSERT INTO closed_row (close_id, day, meter, currency, expected, billed, metered_units, causes) VALUES (1, :day, 'input', 'USD', :e, :b, :e, '{}')")
            .bindparams(sa.bindparam("day", type_=sa.Date())),
            {"day": date(2026, 10, 5), "e": amount("1"), "b": amount("1.5")},
        )  # fmt: skip
        connection.commit()
    store.migrate()
    return store


def test_days_of_bills_landed_before_know_what_of_them_is_invoiced(old: Store) -> None:
    with old.read() as session:
        days = session.execute(sa.select(ChargeDay).order_by(sa.text("part_id, charge_type"))).scalars().all()
        assert [(one.part_id, one.charge_type, one.invoiced_rows, one.invoiced_cost) for one in days] == [
            (1, "Usage", 2, Decimal("1.25")),
            (2, "Usage", 0, None),
            (3, "Refund", 0, None),
            (3, "Usage", 2, Decimal("1.0000000001")),
        ]


def test_a_month_closed_before_reads_and_says_that_it_does_not_know(old: Store) -> None:
    with old.read() as session:
        (closed,) = ledger.closed_months(session, now=NOW)
    total = closed.totals["USD"]
    assert (total.expected, total.billed, total.invoiced) == (Decimal(1), Decimal("1.5"), None)
    assert total.not_invoiced == "it was closed by a version of this service that did not keep what was on invoices"
