"""When the order of a pending request is looked at again, and since when it is not seen. Only adds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
PENDING = sa.text("state = 'pending'")


def upgrade() -> None:
    op.add_column("cancel_requests", sa.Column("unseen_since", TIME))
    # Long ago: what waits already, and what a process of the version before adds, is due at once.
    long_ago = sa.text("'1970-01-01T00:00:00.000000Z'")
    op.add_column("cancel_requests", sa.Column("refresh_at", TIME, nullable=False, server_default=long_ago))
    op.create_index(
        "ix_cancel_requests_refresh_at",
        "cancel_requests",
        ["refresh_at"],
        sqlite_where=PENDING,
        postgresql_where=PENDING,
    )


def downgrade() -> None:
    op.drop_index("ix_cancel_requests_refresh_at", "cancel_requests")
    op.drop_column("cancel_requests", "refresh_at")
    op.drop_column("cancel_requests", "unseen_since")
