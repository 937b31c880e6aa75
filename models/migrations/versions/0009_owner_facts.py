"""What owners say of their deployments."""

import sqlalchemy as sa
from alembic import op

from models.columns import BigInt

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deployment_setting",
        sa.Column("id", BigInt, autoincrement=True, nullable=False),
        sa.Column("workspace", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("capacity_tokens_per_minute", BigInt, nullable=True),
        sa.Column("authoritative_source", sa.Text(), nullable=True),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("known_from", sa.BigInteger(), nullable=False),
        sa.Column("known_to", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_deployment_setting_name", "deployment_setting", ["workspace", "name"], unique=False)
