"""Signed checkpoints of the audit's chain, and where a pruned chain begins. Only adds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

GENESIS_HASH = "0" * 64
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", ID, autoincrement=True),
        sa.Column("seq", ID, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("channel_id", sa.Text),
        sa.Column("message_ts", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", TIME),
        sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
    )
    op.create_index("ix_checkpoints_seq", "checkpoints", ["seq"])
    op.create_index(
        "ix_checkpoints_next_attempt_at",
        "checkpoints",
        ["next_attempt_at"],
        sqlite_where=sa.text("next_attempt_at IS NOT NULL"),
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.add_column("audit_head", sa.Column("base_seq", ID, nullable=False, server_default="0"))
    op.add_column("audit_head", sa.Column("base_hash", sa.String(64), nullable=False, server_default=GENESIS_HASH))


def downgrade() -> None:
    op.drop_column("audit_head", "base_hash")
    op.drop_column("audit_head", "base_seq")
    op.drop_index("ix_checkpoints_next_attempt_at", "checkpoints")
    op.drop_index("ix_checkpoints_seq", "checkpoints")
    op.drop_table("checkpoints")
