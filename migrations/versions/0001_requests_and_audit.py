"""Requests, decisions, notices, and the audit that can only grow."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

OPEN = sa.text("state IN ('accepted', 'approved', 'pending', 'requested', 'sending')")
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    create_requests()
    create_decisions()
    create_notices()
    create_audit()
    if op.get_bind().dialect.name == "sqlite":
        guard_audit_on_sqlite()
    else:
        guard_audit_on_postgresql()


def create_requests() -> None:
    op.create_table(
        "cancel_requests",
        sa.Column("id", ID, primary_key=True, autoincrement=True),
        sa.Column("order_uuid", sa.String(36), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("requester_id", sa.Text, nullable=False),
        sa.Column("requester_name", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("channel_id", sa.Text, nullable=False),
        sa.Column("trigger_id", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("order", sa.Text),
        sa.Column("approvals_required", sa.Integer, nullable=False, server_default="1"),
        sa.Column("approvers", sa.Text, nullable=False, server_default=""),
        sa.Column("opened_at", TIME),
        sa.Column("expires_at", TIME),
        sa.Column("approved_at", TIME),
        sa.Column("send_before", TIME),
        sa.Column("order_now", sa.Text),
        sa.Column("looked_at", TIME),
        sa.Column("sends", sa.Integer, nullable=False, server_default="0"),
        sa.Column("unanswered", sa.Integer, nullable=False, server_default="0"),
        sa.Column("sent_at", TIME),
        sa.Column("accepted_at", TIME),
        sa.Column("doubt", sa.Text),
        sa.Column("cause", sa.Text),
        sa.Column("said", sa.Text),
        sa.Column("canceled_by", sa.String(20)),
        sa.Column("settled_verdict", sa.String(20)),
        sa.Column("settled_by", sa.Text),
        sa.Column("settled_reason", sa.Text),
        sa.Column("ended_at", TIME),
        sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", TIME),
        sa.Column("leased_until", TIME),
        sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("card_channel_id", sa.Text),
        sa.Column("card_ts", sa.Text),
        sa.Column("card_shown_revision", sa.Integer, nullable=False, server_default="-1"),
        sa.Column("card_attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("card_next_attempt_at", TIME),
        sa.Column("card_leased_until", TIME),
        sa.Column("card_fence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("said_state", sa.String(20)),
        sa.Column("response_url", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_cancel_requests"),
        sa.UniqueConstraint("trigger_id", name="uq_cancel_requests_trigger_id"),
        sqlite_autoincrement=True,
    )
    create_partial_index("uq_cancel_requests_open_order", "cancel_requests", "order_uuid", OPEN, unique=True)
    create_partial_index("ix_cancel_requests_open_requester", "cancel_requests", "requester_id", OPEN)
    for column in ("next_attempt_at", "card_next_attempt_at"):
        create_partial_index(
            f"ix_cancel_requests_{column}", "cancel_requests", column, sa.text(f"{column} IS NOT NULL")
        )


def create_partial_index(name: str, table: str, column: str, where: sa.TextClause, *, unique: bool = False) -> None:
    op.create_index(name, table, [column], unique=unique, sqlite_where=where, postgresql_where=where)


def create_decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", ID, autoincrement=True),
        sa.Column("request_id", ID, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("actor_id", sa.Text, nullable=False),
        sa.Column("actor_name", sa.Text, nullable=False),
        sa.Column("actor_team", sa.Text, nullable=False),
        sa.Column("decided_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
        sa.ForeignKeyConstraint(["request_id"], ["cancel_requests.id"], name="fk_decisions_request_id"),
        sa.UniqueConstraint("request_id", "actor_id", "kind", name="uq_decisions_request_id_actor_id_kind"),
    )


def create_notices() -> None:
    op.create_table(
        "notices",
        sa.Column("id", ID, autoincrement=True),
        sa.Column("request_id", ID),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("channel_id", sa.Text, nullable=False),
        sa.Column("message_ts", sa.Text),
        sa.Column("response_url", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("sent_at", TIME),
        sa.Column("given_up", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", TIME),
        sa.Column("leased_until", TIME),
        sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
        sa.ForeignKeyConstraint(["request_id"], ["cancel_requests.id"], name="fk_notices_request_id"),
    )
    op.create_index("ix_notices_request_id", "notices", ["request_id"])
    create_partial_index(
        "ix_notices_next_attempt_at", "notices", "next_attempt_at", sa.text("next_attempt_at IS NOT NULL")
    )


def create_audit() -> None:
    op.create_table(
        "audit_events",
        sa.Column("seq", ID, autoincrement=False),
        sa.Column("occurred_at", TIME, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("actor_name", sa.Text, nullable=False),
        sa.Column("actor_team", sa.Text, nullable=False),
        sa.Column("request_id", ID),
        sa.Column("order_uuid", sa.Text),
        sa.Column("market", sa.Text),
        sa.Column("team_id", sa.Text),
        sa.Column("channel_id", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("trigger_id", sa.Text),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
        sa.Column("prev_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_events"),
        sa.UniqueConstraint("prev_hash", name="uq_audit_events_prev_hash"),
        sa.UniqueConstraint("hash", name="uq_audit_events_hash"),
    )
    for column in ("request_id", "order_uuid", "actor", "trigger_id"):
        op.create_index(f"ix_audit_events_{column}", "audit_events", [column])
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, autoincrement=False),
        sa.Column("seq", ID, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("occurred_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_head_one_row")),
    )
    op.execute(head.insert().values(id=1, seq=0, hash="0" * 64, occurred_at=sa.text("'1970-01-01T00:00:00.000000Z'")))


def guard_audit_on_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_events_no_{verb.lower()} BEFORE {verb} ON audit_events "
            "BEGIN SELECT RAISE(ABORT, 'audit_events only grows'); END"
        )
    # INSERT OR REPLACE deletes without firing the trigger above: refuse it before it starts.
    op.execute(
        "CREATE TRIGGER audit_events_no_replace BEFORE INSERT ON audit_events "
        "WHEN EXISTS (SELECT 1 FROM audit_events WHERE seq = NEW.seq) "
        "OR EXISTS (SELECT 1 FROM audit_events WHERE prev_hash = NEW.prev_hash) "
        "OR EXISTS (SELECT 1 FROM audit_events WHERE hash = NEW.hash) "
        "BEGIN SELECT RAISE(ABORT, 'audit_events only grows'); END"
    )


def guard_audit_on_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION audit_events_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'audit_events only grows'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE ON audit_events "
        "FOR EACH ROW EXECUTE FUNCTION audit_events_refuse()"
    )
    op.execute(
        "CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON audit_events "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_events_refuse()"
    )


def downgrade() -> None:
    for table in ("audit_head", "audit_events", "notices", "decisions", "cancel_requests"):
        op.drop_table(table)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION audit_events_refuse()")
