"""The event that a summary is witness of, and an index of the starts. Only adds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
STARTED = sa.text("action = 'bot.started'")


def upgrade() -> None:
    op.add_column("cancel_requests", sa.Column("witness_seq", ID))
    op.add_column("cancel_requests", sa.Column("witness_hash", sa.String(64)))
    op.create_index("ix_audit_events_started", "audit_events", ["seq"], sqlite_where=STARTED, postgresql_where=STARTED)


def downgrade() -> None:
    op.drop_index("ix_audit_events_started", "audit_events")
    op.drop_column("cancel_requests", "witness_hash")
    op.drop_column("cancel_requests", "witness_seq")
