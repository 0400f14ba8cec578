"""The migrations: up, down and up again with rows in the tables, and the same tables as `bot.database.schema`."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from builders import APPROVER, at_once, create, create_pending, execute, present, rows, walk
from databases import migrated

import bot
from bot.audit.signing import Signer
from bot.database.audit_log import AuditLog
from bot.database.checkpoints import Checkpoints
from bot.database.engine import Database
from bot.database.homes import SqlHomes
from bot.database.migration import check_revision, migrate, migrations_folder, newest_revision
from bot.database.schema import metadata, open_states_sql
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.audit import GENESIS_HASH, SYSTEM, Action
from bot.domain.cancel_request import CancelRequest, DecisionKind
from bot.domain.errors import NothingDone, WrongRevision
from bot.domain.event_filter import Filter
from bot.inquiry import Wanted
from bot.workflow import Notice, NoticeKind

TABLES = {
    "alembic_version",
    "cancel_requests",
    "decisions",
    "notices",
    "homes",
    "audit_events",
    "audit_head",
    "checkpoints",
    "exports",
}


@pytest.fixture
def empty(database_url: str) -> Iterator[Database]:
    """A database without tables, once of each kind."""
    opened = Database(database_url)
    yield opened
    opened.close()


def tables_of(database: Database) -> set[str]:
    queries = {
        True: "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
        False: "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()",
    }
    return {row[0] for row in rows(database, queries[database.is_sqlite])}


def fill(database: Database) -> None:
    """A row in every table."""
    store = SqlStore(database)
    made = create_pending(store)
    with store.transaction(made.id) as tx:
        tx.decide(DecisionKind.APPROVE, APPROVER)
        tx.move(Action.REQUEST_APPROVED)
        tx.tell(Notice(kind=NoticeKind.REDRAW, user_id="U", channel_id="C"))
    SqlHomes(database).open_home(person_id="U", team_id="T")
    Checkpoints(database).make(Signer("11" * 32).sign, actor=SYSTEM, is_to_post=True)


def test_up_and_down_and_up_again_with_rows_in_the_tables(empty: Database) -> None:
    """A migration that works only on empty tables fails on the day it is needed."""
    assert migrate(empty) == newest_revision()
    assert tables_of(empty) == TABLES
    fill(empty)
    assert migrate(empty, revision="base") == "base"
    assert tables_of(empty) == {"alembic_version"}
    assert migrate(empty, revision="0001") == "0001"
    assert migrate(empty) == newest_revision()
    fill(empty)
    assert verify(empty).fault is None
    with pytest.raises(NothingDone, match="only grows"):
        execute(empty, "DELETE FROM audit_events")


def made(database: Database) -> list[str]:
    """Everything that is in a database without requests, as its own catalogue tells it."""
    queries = (
        ["SELECT sql FROM sqlite_master ORDER BY name"]
        if database.is_sqlite
        else [
            (
                "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
                " WHERE table_schema = current_schema() ORDER BY table_name, column_name"
            ),
            "SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY indexname",
            (
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE connamespace = current_schema()::regnamespace ORDER BY conname, 1"
            ),
            (
                "SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
                " WHERE c.relnamespace = current_schema()::regnamespace AND NOT t.tgisinternal ORDER BY t.tgname"
            ),
            "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = current_schema()::regnamespace ORDER BY proname",
        ]
    )
    queries += ["SELECT * FROM alembic_version", "SELECT * FROM audit_head"]
    return [str(row).replace(str(database.url.username), "") for query in queries for row in rows(database, query)]


def test_the_copies_that_tests_work_on_are_what_the_migrations_make(
    empty: Database, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Nearly every test works on a copy: one that lacked a trigger would let through what the trigger stops."""
    migrate(empty)
    for number in range(2):  # the first one on PostgreSQL is the model of the others
        is_file = empty.is_sqlite
        url = f"sqlite:///{tmp_path / str(number)}.db" if is_file else request.getfixturevalue("postgresql").create()
        with closing(Database(url)) as copy:
            migrated(copy)
            assert made(copy) == made(empty)


def test_what_waited_before_the_second_migration_is_refreshed_at_once(empty: Database) -> None:
    """An upgrade with open requests must not leave their orders unseen; and the way back keeps them."""
    migrate(empty)
    made = create_pending(SqlStore(empty))
    migrate(empty, revision="0001")
    assert rows(empty, "SELECT state FROM cancel_requests") == [("pending",)]
    migrate(empty)
    (watched,) = SqlStore(empty).take_refresh(limit=10, again_in_s=30)
    assert watched.request_id == made.id
    assert SqlStore(empty).take_refresh(limit=10, again_in_s=30) == ()


def request_after_step_back(empty: Database, *, to: str, keeps: str) -> CancelRequest:
    """Fill the database, go back and forth again, and keep what the query reads; the request of its first row."""
    migrate(empty)
    fill(empty)
    assert migrate(empty, revision=to) == to
    kept = rows(empty, keeps)
    assert migrate(empty) == newest_revision()
    assert rows(empty, keeps) == kept
    return present(SqlStore(empty).read(kept[0][0]))


def test_the_columns_for_approvals_come_and_go_under_rows_of_the_version_before(empty: Database) -> None:
    """An upgrade meets open requests: they need what they needed, and a step back loses no request."""
    request = request_after_step_back(
        empty, to="0001", keeps="SELECT id, state, approvals_required, approvers FROM cancel_requests"
    )
    assert (request.approval_rule, request.not_counted, len(request.counted())) == (None, (), 1)
    assert verify(empty).fault is None
    fill(empty)


def test_the_channel_of_a_card_and_the_quote_come_and_go_under_rows_of_the_version_before(empty: Database) -> None:
    """A request from before the upgrade has its card where it was typed, and its buttons go on working."""
    request = request_after_step_back(empty, to="0003", keeps="SELECT id, state, channel_id FROM cancel_requests")
    assert (request.card_goes_to, request.is_card_elsewhere, request.quote) == (request.channel_id, False, None)
    assert verify(empty).fault is None


def test_reasons_come_and_go_under_decisions_of_the_version_before(empty: Database) -> None:
    """An upgrade meets decisions that gave none, and a step back keeps who decided what."""
    request = request_after_step_back(empty, to="0004", keeps="SELECT request_id, kind, actor_id FROM decisions")
    assert [each.reason for each in request.decisions] == [""]
    assert (request.order_approved, request.reminded_at) == (None, None)
    fill(empty)


def test_what_was_asked_before_it_was_noted_where_counts_as_asked_in_private(empty: Database) -> None:
    """Also what a process of the version before adds while the new one is rolled out: it does not tell."""
    migrate(empty)
    create(SqlStore(empty), in_private=False)
    assert not present(SqlStore(empty).read(1)).in_private
    migrate(empty, revision="0005")
    migrate(empty)
    assert present(SqlStore(empty).read(1)).in_private
    assert rows(empty, "SELECT state FROM cancel_requests") == [("requested",)]


def test_what_was_opened_before_requests_knew_their_market_is_found_by_it(empty: Database) -> None:
    """A year of history must not begin on the day of the upgrade."""
    migrate(empty)
    store = SqlStore(empty)
    create_pending(store)
    create(store)
    migrate(empty, revision="0005")
    migrate(empty)
    assert rows(empty, "SELECT market FROM cancel_requests ORDER BY id") == [("KRW-BTC",), (None,)]
    assert [each.id for each in store.list_requests(Wanted(market="KRW-BTC"), limit=10)] == [1]


def test_a_chain_from_before_it_had_a_base_begins_at_its_beginning(empty: Database) -> None:
    """Nothing was ever pruned then; and what the new version has written is verified after a step back as well."""
    migrate(empty)
    fill(empty)
    migrate(empty, revision="0007")
    migrate(empty)
    assert rows(empty, "SELECT base_seq, base_hash FROM audit_head") == [(0, GENESIS_HASH)]
    assert verify(empty).fault is None
    fill(empty)
    assert rows(empty, "SELECT count(*) FROM checkpoints") == [(1,)]


def test_a_verdict_from_before_there_were_witnesses_has_none(empty: Database) -> None:
    """Its summary is said without one; what ends after the upgrade has one, and a step back loses no request."""
    request = request_after_step_back(empty, to="0009", keeps="SELECT id, state FROM cancel_requests")
    ended = walk(SqlStore(empty), request.id, Action.REQUEST_LAPSED)
    made = present(ended.witness)
    migrate(empty, revision="0009")
    migrate(empty)
    assert present(SqlStore(empty).read(request.id)).witness is None
    assert verify(empty, [made]).fault is None


def test_events_from_before_they_were_found_by_kind_are_found_by_it(empty: Database) -> None:
    """A year of the audit must not begin on the day of the upgrade; and a step back leaves it as it was."""
    migrate(empty, revision="0010")
    execute(empty, EVENT_OF_BEFORE)
    kept = rows(empty, "SELECT * FROM audit_events")
    migrate(empty)
    found = AuditLog(empty).list(Filter(actor="U0BEN", details_reason="own_request"), limit=9)
    assert [event["seq"] for event in found] == [1]
    migrate(empty, revision="0010")
    assert rows(empty, "SELECT * FROM audit_events") == kept


EVENT_OF_BEFORE = (
    "INSERT INTO audit_events (seq, occurred_at, action, outcome, actor, actor_name, actor_team, details, entry,"
    " prev_hash, hash) VALUES (1, '2026-11-01T09:00:00.000000Z', 'approval.refused', 'refused', 'U0BEN', 'ben', 'T',"
    """ '{"kind":"approve","reason":"own_request"}', '{}', 'a', 'b')"""
)


def test_migrating_twice_changes_nothing(empty: Database) -> None:
    """`bot run` migrates its SQLite file at every start."""
    migrate(empty)
    fill(empty)
    before = verify(empty)
    assert migrate(empty) == newest_revision()
    assert verify(empty) == before


def test_two_migrate_at_once(postgresql: object, empty: Database) -> None:
    """Two replicas are rolled out together: the second finds the work done."""
    if empty.is_sqlite:
        pytest.skip("one `bot run` at a time owns a SQLite file")
    url = empty.url.render_as_string(hide_password=False)

    def migrate_as_a_replica() -> str:
        replica = Database(url)
        try:
            return migrate(replica)
        finally:
            replica.close()

    assert at_once(*[migrate_as_a_replica] * 4) == [newest_revision()] * 4
    assert tables_of(empty) == TABLES


# The schema


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_alembic_finds_no_difference_between_schema_and_migrations(database: Database) -> None:
    """Code that relies on a column which only the tests' tables have fails in production alone."""
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_comparable})
        assert compare_metadata(context, metadata) == []


def is_comparable(_object: object, name: str | None, kind: str, *_: object) -> bool:
    """Alembic does not read expressions in an index; the test after the next compares them as the database does."""
    return kind != "index" or not str(name).endswith(("_kind", "_own"))


SQLITE_SHAPE = """
SELECT type || ' ' || name, sql FROM sqlite_master
WHERE tbl_name NOT IN ('alembic_version', 'sqlite_sequence') AND type IN ('table', 'index')
"""
POSTGRESQL_SHAPE = """
SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()
UNION ALL
SELECT 'constraint ' || conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = current_schema()::regnamespace
UNION ALL
SELECT 'column ' || table_name || '.' || column_name,
    concat_ws(' ', data_type, character_maximum_length, is_nullable, column_default)
FROM information_schema.columns WHERE table_schema = current_schema()
"""


def shape_of(database: Database) -> dict[str, list[str]]:
    """Every table, column, constraint and index in the database's own words, with the order of lines left out."""
    found = rows(database, SQLITE_SHAPE if database.is_sqlite else POSTGRESQL_SHAPE)
    return {name: sorted(_parts(definition or "")) for name, definition in found if "alembic_version" not in name}


def _parts(definition: str) -> list[str]:
    """A table's columns and constraints; all of anything else. SQLite writes an added column behind the last line."""
    whole = " ".join(definition.replace("'::character varying", "'").split())
    if not whole.startswith("CREATE TABLE"):
        return [whole]
    name, _, columns = whole.removesuffix(")").partition("(")
    return [part.strip() for part in (name, *re.split(r",(?![^(]*\))", columns))]


def test_the_database_says_the_same_of_both(empty: Database) -> None:
    """Alembic looks past conditions of indexes, names of constraints and AUTOINCREMENT; the database does not."""
    migrate(empty)
    migrated = shape_of(empty)
    migrate(empty, revision="base")
    with empty.write() as connection:
        metadata.create_all(connection)
    assert shape_of(empty) == migrated
    assert any(name.endswith("uq_cancel_requests_open_order") for name in migrated)


def test_the_index_of_open_requests_names_the_open_states(empty: Database) -> None:
    """A state that is open in the code and not in the index would let a second request in."""
    migrate(empty)
    (definition,) = shape_of(empty)["index uq_cancel_requests_open_order"]
    assert re.findall("'([a-z]+)'", definition) == re.findall("'([a-z]+)'", open_states_sql())


def test_a_requests_number_never_comes_back(database: Database) -> None:
    """#42 in an old thread must not come to mean another request, even after somebody deleted rows."""
    store = SqlStore(database)
    made = create(store)
    execute(database, "DELETE FROM cancel_requests")
    assert create(store).id > made.id


# Which revision it is


def test_a_database_at_the_newest_revision_is_fine(database: Database) -> None:
    """The bot starts."""
    check_revision(database)


def test_a_database_without_tables_asks_for_a_migration(empty: Database) -> None:
    """The message says what to do."""
    with pytest.raises(WrongRevision, match=r"at revision none, this bot needs .*: run `bot migrate`"):
        check_revision(empty)


def test_a_database_that_was_migrated_down_asks_for_a_migration(database: Database) -> None:
    """The same as for one that was never migrated."""
    migrate(database, revision="base")
    with pytest.raises(WrongRevision, match="run `bot migrate`"):
        check_revision(database)


def test_a_newer_database_is_left_alone(database: Database) -> None:
    """An old program on a new database would write rows that mean something else: it neither runs nor migrates."""
    execute(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(WrongRevision, match=r"9999, which is newer than this bot .*: upgrade the bot"):
        check_revision(database)
    with pytest.raises(WrongRevision, match="upgrade the bot"):
        migrate(database)
    assert rows(database, "SELECT version_num FROM alembic_version") == [("9999",)]


# The files


def test_the_migrations_are_found_beside_the_package() -> None:
    """In a checkout; in the wheel they lie inside the package."""
    package = Path(bot.__file__).parent
    assert migrations_folder() in {package / "migrations", package.parent / "migrations"}
    assert (migrations_folder() / "env.py").is_file()
    assert newest_revision()


def test_the_template_of_a_migration_states_the_rule() -> None:
    """Whoever writes the next one reads it there."""
    template = (migrations_folder() / "script.py.mako").read_text(encoding="utf-8")
    for words in ("never changes once it has landed", "SQLite and PostgreSQL", "up and down and up again", "rows in"):
        assert words in template


def test_a_migration_imports_nothing_of_the_bot() -> None:
    """The tables go on changing after it; what it did must not."""
    for migration in (migrations_folder() / "versions").glob("*.py"):
        assert not re.search(r"^\s*(from|import) bot\b", migration.read_text(encoding="utf-8"), flags=re.MULTILINE)
