"""How far each bill reaches, by meter."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("bill_part", sa.Column("meter_reaches", sa.Text(), nullable=False, server_default="{}"))
