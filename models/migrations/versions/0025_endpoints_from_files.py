"""Endpoints that only a file told of: no pull has measured them."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("endpoint_fact") as table:
        table.alter_column("seen_at", existing_type=sa.BigInteger(), nullable=True)
