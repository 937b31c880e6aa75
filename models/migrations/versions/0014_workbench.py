"""The worklist of reconciliation, price rows that wait for review, invoices."""

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
