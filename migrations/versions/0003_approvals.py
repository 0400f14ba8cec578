"""The rule that says how many approvals a request needs, and whose approval did not count."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("cancel_requests", sa.Column("approval_rule", sa.Text))
    op.add_column("cancel_requests", sa.Column("not_counted", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("cancel_requests", "not_counted")
    op.drop_column("cancel_requests", "approval_rule")
