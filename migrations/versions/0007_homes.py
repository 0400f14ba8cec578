"""Who has opened the Home tab, and what a Home is read by. Only adds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "homes",
        sa.Column("id", ID, autoincrement=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("kept_up_until", TIME, nullable=False),
        sa.Column("due_at", TIME),
        sa.Column("drawn_at", TIME),
        sa.Column("shown_seq", ID, nullable=False, server_default="-1"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("leased_until", TIME),
        sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id", name="pk_homes"),
        sa.UniqueConstraint("user_id", "team_id", name="uq_homes_user_id_team_id"),
    )
    op.create_index("ix_cancel_requests_requester_ended", "cancel_requests", ["requester_id", "ended_at"])
    op.create_index("ix_decisions_actor_id", "decisions", ["actor_id", "id"])


def downgrade() -> None:
    op.drop_index("ix_decisions_actor_id", "decisions")
    op.drop_index("ix_cancel_requests_requester_ended", "cancel_requests")
    op.drop_table("homes")
