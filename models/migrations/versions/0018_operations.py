"""What a receiver hears, and whether a file keeps it."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, before in (("severities", "[]"), ("matchers", "[]"), ("origin", "")):
        op.add_column("receiver", sa.Column(name, sa.Text(), nullable=False, server_default=before))
