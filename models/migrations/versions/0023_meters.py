"""What meters count, where people say it."""

import sqlalchemy as sa
from alembic import op

from models.columns import BigInt

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "meter_mapping",
        sa.Column("id", BigInt, autoincrement=True, nullable=False),
        sa.Column("meter", sa.Text(), nullable=False),
        sa.Column("offer", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=True),
        sa.Column("valid_to", sa.BigInteger(), nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("known_from", sa.BigInteger(), nullable=False),
        sa.Column("known_to", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
