"""Which requests were made in private. Only adds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # Where it was asked is not known of what is there already, nor told by a process of the version before: private.
    op.add_column(
        "cancel_requests", sa.Column("in_private", sa.Boolean, nullable=False, server_default=sa.text("true"))
    )


def downgrade() -> None:
    op.drop_column("cancel_requests", "in_private")
