"""Layout of usage: nothing changes; what was slow was how rows are bound, not where they lie."""

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
