"""Limits learnt from answers: what each was learnt from, and when it was last said."""

import sqlalchemy as sa
from alembic import op

from models.columns import BigInt

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("pool_limit", sa.Column("evidence", sa.Text(), nullable=False, server_default=""))
    op.add_column("pool_limit", sa.Column("seen_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "throttle_episode",
        sa.Column("id", BigInt, autoincrement=True, nullable=False),
        sa.Column("workspace", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("used", BigInt, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_throttle_episode_place", "throttle_episode", ["workspace", "deployment", "began_at"], unique=False)
