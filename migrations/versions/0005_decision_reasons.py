"""Reasons of decisions, the order as it was seen when it was approved, and when approvers were reminded."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    op.add_column("decisions", sa.Column("reason", sa.Text, nullable=False, server_default=""))
    op.add_column("cancel_requests", sa.Column("order_approved", sa.Text))
    op.add_column("cancel_requests", sa.Column("reminded_at", TIME))


def downgrade() -> None:
    op.drop_column("cancel_requests", "reminded_at")
    op.drop_column("cancel_requests", "order_approved")
    op.drop_column("decisions", "reason")
