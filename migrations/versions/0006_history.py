"""What requests are found by: their market, and indexes; and which of them were made in private. Only adds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

NOT_OVER = sa.text("state IN ('accepted', 'approved', 'pending', 'requested', 'sending', 'unresolved')")

INDEXES = {
    "created_at": ["created_at", "id"],
    "order_uuid": ["order_uuid", "created_at", "id"],
    "requester_id": ["requester_id", "created_at", "id"],
    "requester_market": ["requester_id", "market", "created_at", "id"],
    "requester_name": ["requester_name", "created_at", "id"],
    "market": ["market", "created_at", "id"],
}

BACKFILL = {
    "sqlite": "UPDATE cancel_requests SET market = json_extract(order_now, '$.market') WHERE order_now IS NOT NULL",
    "postgresql": "UPDATE cancel_requests SET market = order_now::json ->> 'market' WHERE order_now IS NOT NULL",
}
"""A request that a process of the version before opens and ends later than this is not found by its market."""


def upgrade() -> None:
    # Where it was asked is not known of what is there already, nor told by a process of the version before: private.
    op.add_column(
        "cancel_requests", sa.Column("in_private", sa.Boolean, nullable=False, server_default=sa.text("true"))
    )
    op.add_column("cancel_requests", sa.Column("market", sa.Text))
    op.execute(BACKFILL[op.get_bind().dialect.name])
    op.create_index(
        "ix_cancel_requests_not_over",
        "cancel_requests",
        ["created_at", "id"],
        sqlite_where=NOT_OVER,
        postgresql_where=NOT_OVER,
    )
    for name, columns in INDEXES.items():
        op.create_index(f"ix_cancel_requests_{name}", "cancel_requests", columns)


def downgrade() -> None:
    for name in (*INDEXES, "not_over"):
        op.drop_index(f"ix_cancel_requests_{name}", "cancel_requests")
    op.drop_column("cancel_requests", "market")
    op.drop_column("cancel_requests", "in_private")
