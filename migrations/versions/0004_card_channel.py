"""The channel that a request's card goes to, and the best prices when it was opened."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("cancel_requests", sa.Column("approvals_channel_id", sa.Text))
    op.add_column("cancel_requests", sa.Column("quote", sa.Text))


def downgrade() -> None:
    op.drop_column("cancel_requests", "quote")
    op.drop_column("cancel_requests", "approvals_channel_id")
