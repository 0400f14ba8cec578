"""The channel that a request's card goes to, where that is not the one in which the command was typed."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("cancel_requests", sa.Column("approvals_channel_id", sa.Text))


def downgrade() -> None:
    op.drop_column("cancel_requests", "approvals_channel_id")
