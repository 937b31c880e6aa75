"""Pulls from Azure: leases, runs, budgets of calls, quotas as Azure tells them."""

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
