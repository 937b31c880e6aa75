"""Schedules of reports that a file made."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("report_schedule", sa.Column("origin", sa.Text(), nullable=False, server_default=""))
