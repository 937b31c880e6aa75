"""Where reports go: containers beside folders, what a mail encloses, who was not reached and why, who asked."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("report_schedule", sa.Column("container", sa.Text(), nullable=False, server_default=""))
    op.add_column("report_schedule", sa.Column("attach", sa.Text(), nullable=False, server_default='["pdf"]'))
    op.add_column("report_schedule", sa.Column("error", sa.Text(), nullable=False, server_default=""))
    op.add_column("report_delivery", sa.Column("container", sa.Text(), nullable=False, server_default=""))
    op.add_column("report_delivery", sa.Column("container_state", sa.Text(), nullable=False, server_default=""))
    op.add_column("report_delivery", sa.Column("container_error", sa.Text(), nullable=False, server_default=""))
    op.add_column("report_delivery", sa.Column("container_attempts", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("report_delivery", sa.Column("missed", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("report_delivery", sa.Column("asked_by", sa.Text(), nullable=False, server_default=""))
