"""Pulls from Azure, run by run."""

import sqlalchemy as sa
from alembic import op

from models.columns import BigInt

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "source_pull",
        sa.Column("id", BigInt, autoincrement=True, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("month", sa.Date(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("rows", BigInt, nullable=True),
        sa.Column("calls", BigInt, nullable=False),
        sa.Column("throttles", BigInt, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data_until", sa.BigInteger(), nullable=True),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_source_pull_source", "source_pull", ["source", "scope", "month"], unique=False)
