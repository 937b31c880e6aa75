"""The days that a bill is for, where they are no calendar month."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("bill_part", sa.Column("billed_from", sa.Date(), nullable=True))
    op.add_column("bill_part", sa.Column("billed_to", sa.Date(), nullable=True))
