"""Months that were closed, with their rows."""

import sqlalchemy as sa
from alembic import op

from models.columns import BigInt, ExactDecimal

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "month_close",
        sa.Column("id", BigInt, autoincrement=True, nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_by", sa.Text(), nullable=False),
        sa.Column("software", sa.Text(), nullable=False),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("reopened_at", sa.BigInteger(), nullable=True),
        sa.Column("reopened_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_month_close_month", "month_close", ["month"], unique=False)
    op.create_table(
        "closed_row",
        sa.Column("id", BigInt, autoincrement=True, nullable=False),
        sa.Column("close_id", BigInt, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("workspace", sa.Text(), nullable=True),
        sa.Column("deployment", sa.Text(), nullable=True),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("expected", ExactDecimal(), nullable=False),
        sa.Column("billed", ExactDecimal(), nullable=False),
        sa.Column("metered_units", ExactDecimal(), nullable=False),
        sa.Column("billed_units", ExactDecimal(), nullable=True),
        sa.Column("causes", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_closed_row_close_id"), "closed_row", ["close_id"], unique=False)
