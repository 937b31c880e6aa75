"""What of a day's charges stands on an invoice, for the days that were landed before too."""

from datetime import date
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from alembic import op

from models import money
from models.columns import ExactDecimal

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_OF = ("part_id", "charged_on", "item_id", "charge_type", "currency")


def _key() -> list[sa.ColumnClause[Any]]:
    return [sa.column(name, sa.Date() if name == "charged_on" else None) for name in _OF]


_CHARGE = sa.table("charge", *_key(), sa.column("billed_cost", ExactDecimal()), sa.column("invoice_id"))
_DAY = sa.table(
    "charge_day",
    *_key(),
    sa.column("rows"),
    sa.column("billed_cost", ExactDecimal()),
    sa.column("invoiced_rows"),
    sa.column("invoiced_cost", ExactDecimal()),
)


def upgrade() -> None:
    op.add_column("charge_day", sa.Column("invoiced_rows", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("charge_day", sa.Column("invoiced_cost", ExactDecimal(), nullable=True))
    op.add_column("closed_row", sa.Column("invoiced", ExactDecimal(), nullable=True))
    connection, charge, day = op.get_bind(), _CHARGE.c, _DAY.c
    # Nearly every bill names invoices in all of its rows or in none; rows are added up only of the others.
    named = sa.func.count(sa.func.nullif(charge.invoice_id, ""))
    for part_id, rows, invoiced in connection.execute(sa.select(charge.part_id, sa.func.count(), named).group_by(charge.part_id)).all():
        if rows == invoiced:
            connection.execute(sa.update(_DAY).where(day.part_id == part_id).values(invoiced_rows=day.rows, invoiced_cost=day.billed_cost))
        elif invoiced:
            sums = _sums(connection, part_id)
            of_day = sa.and_(*(day[name] == sa.bindparam(f"of_{name}", type_=day[name].type) for name in _OF))
            connection.execute(
                sa.update(_DAY).where(of_day).values(invoiced_rows=sa.bindparam("many"), invoiced_cost=sa.bindparam("cost", type_=ExactDecimal())),
                [{**{f"of_{name}": value for name, value in zip(_OF, key, strict=True)}, "many": many, "cost": cost} for key, (many, cost) in sums.items()],
            )


def _sums(connection: sa.Connection, part_id: int) -> dict[tuple[int, date, int, str, str], tuple[int, Decimal]]:
    """The invoiced charges of a part, counted and added up as its days are."""
    found: dict[tuple[int, date, int, str, str], tuple[int, Decimal]] = {}
    charge = _CHARGE.c
    asked = sa.select(*(charge[name] for name in _OF), charge.billed_cost).where(charge.part_id == part_id, charge.invoice_id != "")
    for *key, cost in connection.execute(asked.execution_options(yield_per=5000)):
        part, on, item, kind, currency = key
        many, total = found.get((part, on, item, kind, currency), (0, money.ZERO))
        found[part, on, item, kind, currency] = many + 1, money.plus(total, cost)
    return found
