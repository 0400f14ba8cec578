"""What events are found by: one index on what kind of event it is, and one more for each of actor and market."""

from collections.abc import Sequence

from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

KIND = {
    "sqlite": (
        "(action || ' ' || outcome || ' ' || CASE WHEN action = 'outcome.settled' OR "
        "substr(action, 1, 6) = 'audit.' OR NOT json_valid(details) THEN '' ELSE "
        "coalesce(json_extract(details, '$.reason'), '') END || ' ' || CASE WHEN (CASE WHEN "
        "json_valid(details) THEN json_extract(details, '$.value_krw') END) IS NULL THEN '' "
        "WHEN (CASE WHEN json_valid(details) THEN json_extract(details, '$.value_krw') END) = "
        "'unknown' THEN '~' WHEN (instr((CASE WHEN json_valid(details) THEN "
        "json_extract(details, '$.value_krw') END) || '.', '.') - 1) < 7 THEN '0' ELSE "
        "substr('0' || (instr((CASE WHEN json_valid(details) THEN json_extract(details, "
        "'$.value_krw') END) || '.', '.') - 1), -2) || substr((CASE WHEN json_valid(details) "
        "THEN json_extract(details, '$.value_krw') END), 1, 1) END)"
    ),
    "postgresql": (
        "((action || ' ' || outcome || ' ' || CASE WHEN action = 'outcome.settled' OR "
        "substr(action, 1, 6) = 'audit.' THEN '' ELSE split_part(split_part(details, "
        "'\"reason\":\"', 2), '\"', 1) END || ' ' || CASE split_part(split_part(details, "
        "'\"value_krw\":\"', 2), '\"', 1) WHEN '' THEN '' WHEN 'unknown' THEN '~' ELSE CASE WHEN "
        "length(split_part(split_part(split_part(details, '\"value_krw\":\"', 2), '\"', 1), '.', "
        "1)) < 7 THEN '0' ELSE lpad(CAST(length(split_part(split_part(split_part(details, "
        "'\"value_krw\":\"', 2), '\"', 1), '.', 1)) AS text), 2, '0') || "
        "left(split_part(split_part(details, '\"value_krw\":\"', 2), '\"', 1), 1) END END) COLLATE "
        '"C")'
    ),
}
OWN = {
    "sqlite": (
        "(CASE WHEN action IN ('approval.recorded', 'request.approved') AND actor = CASE WHEN "
        "json_valid(details) THEN coalesce(json_extract(details, '$.requester'), actor) ELSE "
        "actor END THEN 1 END)"
    ),
    "postgresql": (
        "(CASE WHEN action IN ('approval.recorded', 'request.approved') AND actor = "
        "coalesce(nullif(split_part(split_part(details, '\"requester\":\"', 2), '\"', 1), ''), "
        "actor) THEN 1 END)"
    ),
}
INDEXES = {
    "kind": "({kind}, seq)",
    "actor_kind": "(actor, {kind}, seq)",
    "market_kind": "(market, {kind}, seq) WHERE market IS NOT NULL",
    "actor_market": "(actor, market, seq) WHERE actor <> 'system' AND market IS NOT NULL",
    "own": "({own}, seq) WHERE {own} IS NOT NULL",
}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    for name, columns in INDEXES.items():
        of = columns.format(kind=KIND[dialect], own=OWN[dialect])
        op.get_bind().exec_driver_sql(f"CREATE INDEX ix_audit_events_{name} ON audit_events {of}")
    op.drop_index("ix_audit_events_actor", "audit_events")


def downgrade() -> None:
    op.create_index("ix_audit_events_actor", "audit_events", ["actor"])
    for name in INDEXES:
        op.drop_index(f"ix_audit_events_{name}", "audit_events")
