"""Utilisation of managed compute."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    exact = sa.Text() if op.get_bind().dialect.name == "sqlite" else sa.Numeric()
    op.create_table(
        "gpu_hour",
        sa.Column("workspace", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("busy_percent", exact, nullable=True),
        sa.Column("memory_percent", exact, nullable=True),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "deployment", "time"),
    )
