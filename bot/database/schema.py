"""The tables. What the database itself refuses stands here and in the migrations: a test compares the two."""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

from bot.database.event_words import EventKind, OwnMark
from bot.domain.audit import GENESIS_HASH, timestamp
from bot.domain.cancel_request import ENDED_STATES, OPEN_STATES, State

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id: Final = BigInteger().with_variant(Integer, "sqlite")


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC: `timestamptz` on PostgreSQL, sortable text with microseconds on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        return timestamp(value) if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = datetime.fromisoformat(value) if dialect.name == "sqlite" else value
        return moment.astimezone(UTC)


def open_states_sql() -> str:
    """The condition of the index that keeps an order to one open request."""
    return "state IN ({})".format(", ".join(f"'{state}'" for state in sorted(OPEN_STATES)))


def not_over_sql() -> str:
    """The condition of the index of the requests that are not over, the unresolved ones included."""
    return "state IN ({})".format(", ".join(f"'{state}'" for state in sorted(set(State) - ENDED_STATES)))


cancel_requests = Table(
    "cancel_requests",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("order_uuid", String(36), nullable=False),
    Column("state", String(20), nullable=False),
    Column("requester_id", Text, nullable=False),
    Column("requester_name", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("team_id", Text, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("trigger_id", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("order", Text),
    Column("approvals_required", Integer, nullable=False, server_default="1"),
    Column("approvers", Text, nullable=False, server_default=""),
    Column("opened_at", UtcTime),
    Column("expires_at", UtcTime),
    Column("approved_at", UtcTime),
    Column("send_before", UtcTime),
    Column("order_now", Text),
    Column("looked_at", UtcTime),
    Column("unseen_since", UtcTime),
    Column("sends", Integer, nullable=False, server_default="0"),
    Column("unanswered", Integer, nullable=False, server_default="0"),
    Column("sent_at", UtcTime),
    Column("accepted_at", UtcTime),
    Column("doubt", Text),
    Column("cause", Text),
    Column("said", Text),
    Column("canceled_by", String(20)),
    Column("settled_verdict", String(20)),
    Column("settled_by", Text),
    Column("settled_reason", Text),
    Column("ended_at", UtcTime),
    Column("revision", Integer, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", UtcTime),
    Column("leased_until", UtcTime),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("card_channel_id", Text),
    Column("card_ts", Text),
    Column("card_shown_revision", Integer, nullable=False, server_default="-1"),
    Column("card_attempts", Integer, nullable=False, server_default="0"),
    Column("card_next_attempt_at", UtcTime),
    Column("card_leased_until", UtcTime),
    Column("card_fence", Integer, nullable=False, server_default="0"),
    Column("said_state", String(20)),
    Column("response_url", Text),
    Column("refresh_at", UtcTime, nullable=False, server_default=text("'1970-01-01T00:00:00.000000Z'")),
    Column("approval_rule", Text),
    Column("not_counted", Text, nullable=False, server_default=""),
    Column("approvals_channel_id", Text),
    Column("quote", Text),
    Column("order_approved", Text),
    Column("reminded_at", UtcTime),
    Column("in_private", Boolean, nullable=False, server_default=text("true")),
    Column("market", Text),
    Column("witness_seq", Id),
    Column("witness_hash", String(64)),
    UniqueConstraint("trigger_id"),
    Index(
        "uq_cancel_requests_open_order",
        "order_uuid",
        unique=True,
        sqlite_where=text(open_states_sql()),
        postgresql_where=text(open_states_sql()),
    ),
    Index(
        "ix_cancel_requests_next_attempt_at",
        "next_attempt_at",
        sqlite_where=text("next_attempt_at IS NOT NULL"),
        postgresql_where=text("next_attempt_at IS NOT NULL"),
    ),
    Index(
        "ix_cancel_requests_card_next_attempt_at",
        "card_next_attempt_at",
        sqlite_where=text("card_next_attempt_at IS NOT NULL"),
        postgresql_where=text("card_next_attempt_at IS NOT NULL"),
    ),
    Index(
        "ix_cancel_requests_open_requester",
        "requester_id",
        sqlite_where=text(open_states_sql()),
        postgresql_where=text(open_states_sql()),
    ),
    Index("ix_cancel_requests_requester_ended", "requester_id", "ended_at"),
    Index(
        "ix_cancel_requests_refresh_at",
        "refresh_at",
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    Index(
        "ix_cancel_requests_not_over",
        "created_at",
        "id",
        sqlite_where=text(not_over_sql()),
        postgresql_where=text(not_over_sql()),
    ),
    Index("ix_cancel_requests_created_at", "created_at", "id"),
    Index("ix_cancel_requests_order_uuid", "order_uuid", "created_at", "id"),
    Index("ix_cancel_requests_requester_id", "requester_id", "created_at", "id"),
    Index("ix_cancel_requests_requester_market", "requester_id", "market", "created_at", "id"),
    Index("ix_cancel_requests_requester_name", "requester_name", "created_at", "id"),
    Index("ix_cancel_requests_market", "market", "created_at", "id"),
    sqlite_autoincrement=True,  # a request's number never comes back
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("request_id", Id, ForeignKey("cancel_requests.id"), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("actor_id", Text, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("actor_team", Text, nullable=False),
    Column("decided_at", UtcTime, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    UniqueConstraint("request_id", "actor_id", "kind"),
    Index("ix_decisions_actor_id", "actor_id", "id"),
)

notices = Table(
    "notices",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("request_id", Id, ForeignKey("cancel_requests.id")),
    Column("kind", Text, nullable=False),
    Column("reason", Text),
    Column("user_id", Text, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("message_ts", Text),
    Column("response_url", Text),
    Column("created_at", UtcTime, nullable=False),
    Column("not_after", UtcTime, nullable=False),
    Column("sent_at", UtcTime),
    Column("given_up", Boolean, nullable=False, server_default=text("false")),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", UtcTime),
    Column("leased_until", UtcTime),
    Column("fence", Integer, nullable=False, server_default="0"),
    Index("ix_notices_request_id", "request_id"),
    Index(
        "ix_notices_next_attempt_at",
        "next_attempt_at",
        sqlite_where=text("next_attempt_at IS NOT NULL"),
        postgresql_where=text("next_attempt_at IS NOT NULL"),
    ),
)

homes = Table(
    "homes",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("user_id", Text, nullable=False),
    Column("team_id", Text, nullable=False),
    Column("kept_up_until", UtcTime, nullable=False),
    Column("due_at", UtcTime),
    Column("drawn_at", UtcTime),
    Column("shown_seq", Id, nullable=False, server_default="-1"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("leased_until", UtcTime),
    Column("fence", Integer, nullable=False, server_default="0"),
    UniqueConstraint("user_id", "team_id"),
)

audit_events = Table(
    "audit_events",
    metadata,
    Column("seq", Id, primary_key=True, autoincrement=False),
    Column("occurred_at", UtcTime, nullable=False),
    Column("action", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("actor_team", Text, nullable=False),
    Column("request_id", Id),
    Column("order_uuid", Text),
    Column("market", Text),
    Column("team_id", Text),
    Column("channel_id", Text),
    Column("reason", Text),
    Column("trigger_id", Text),
    Column("details", Text, nullable=False),
    Column("entry", Text, nullable=False),
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    UniqueConstraint("prev_hash"),
    UniqueConstraint("hash"),
    Index("ix_audit_events_request_id", "request_id"),
    Index("ix_audit_events_order_uuid", "order_uuid"),
    Index("ix_audit_events_trigger_id", "trigger_id"),
    Index(
        "ix_audit_events_started",
        "seq",
        sqlite_where=text("action = 'bot.started'"),
        postgresql_where=text("action = 'bot.started'"),
    ),
    Index("ix_audit_events_kind", EventKind(), "seq"),
    Index("ix_audit_events_actor_kind", "actor", EventKind(), "seq"),
    Index(
        "ix_audit_events_market_kind",
        "market",
        EventKind(),
        "seq",
        sqlite_where=text("market IS NOT NULL"),
        postgresql_where=text("market IS NOT NULL"),
    ),
    Index(
        "ix_audit_events_actor_market",
        "actor",
        "market",
        "seq",
        sqlite_where=text("actor <> 'system' AND market IS NOT NULL"),
        postgresql_where=text("actor <> 'system' AND market IS NOT NULL"),
    ),
    Index(
        "ix_audit_events_own",
        OwnMark(),
        "seq",
        sqlite_where=OwnMark().is_not(None),
        postgresql_where=OwnMark().is_not(None),
    ),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", Id, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("occurred_at", UtcTime, nullable=False),
    Column("base_seq", Id, nullable=False, server_default="0"),
    Column("base_hash", String(64), nullable=False, server_default=GENESIS_HASH),
    CheckConstraint("id = 1", name="one_row"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("seq", Id, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("at", Text, nullable=False),
    Column("key", String(64), nullable=False),
    Column("signature", String(128), nullable=False),
    Column("made_at", UtcTime, nullable=False),
    Column("channel_id", Text),
    Column("message_ts", Text),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", UtcTime),
    Column("fence", Integer, nullable=False, server_default="0"),
    Index("ix_checkpoints_seq", "seq"),
    Index(
        "ix_checkpoints_next_attempt_at",
        "next_attempt_at",
        sqlite_where=text("next_attempt_at IS NOT NULL"),
        postgresql_where=text("next_attempt_at IS NOT NULL"),
    ),
)

exports = Table(
    "exports",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("actor_id", Text, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("actor_team", Text, nullable=False),
    Column("team_id", Text, nullable=False),
    Column("trigger_id", Text, nullable=False),
    Column("form", Text, nullable=False),
    Column("selection", Text, nullable=False),
    Column("up_to_seq", Id, nullable=False),
    Column("asked_at", UtcTime, nullable=False),
    Column("sha256", String(64)),
    Column("fault", Text),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", UtcTime),
    Column("fence", Integer, nullable=False, server_default="0"),
    UniqueConstraint("trigger_id"),
    Index(
        "ix_exports_next_attempt_at",
        "next_attempt_at",
        sqlite_where=text("next_attempt_at IS NOT NULL"),
        postgresql_where=text("next_attempt_at IS NOT NULL"),
    ),
)
