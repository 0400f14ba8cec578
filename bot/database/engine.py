"""The only place that knows SQLite from PostgreSQL."""

import fcntl
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    create_engine,
    event,
    func,
    literal_column,
    make_url,
    select,
)
from sqlalchemy.exc import InvalidatePoolError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from bot.database.schema import UtcTime
from bot.domain.errors import BotError, CommitInDoubt, NothingDone

Clock = Callable[[Connection], datetime]
"""Tells the time as the database sees it; asked once in a transaction, after its locks are held."""

POOL_TIMEOUT_S: Final = 0.5
CONNECT_TIMEOUT_S: Final = 1
LOCK_TIMEOUT_MS: Final = 700
STATEMENT_TIMEOUT_MS: Final = 1500
"""Together they keep what a listener waits for the database well inside Slack's three seconds.

A transaction may wait for two locks: the request's row and the audit's head.
"""

TRUSTED_S: Final = 0.5
"""A connection that was idle for longer may have been cut meanwhile, and is asked before it is used."""

POOL_SIZE: Final = 32
"""16 listeners, 13 workers, the loop and a few to spare."""


class DatabaseInUse(BotError):
    """Another `bot run` holds this SQLite file."""


class Database:
    """An engine with the pragmas, time-outs and locks that the store relies on.

    `clock` replaces the database's own clock in tests. `read_only` is for commands that only look.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, read_only: bool = False) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(url, read_only=read_only) if self.is_sqlite else _postgresql_engine(url)
        self._clock = clock
        # SQLite lets one writer in at a time: waiting here is fair, waiting in SQLite is polling.
        self._write_lock = threading.Lock() if self.is_sqlite else None

    def now(self, connection: Connection) -> datetime:
        """The database's time, in UTC."""
        if self._clock is not None:
            return self._clock(connection)
        moment: datetime = connection.execute(_now(is_sqlite=self.is_sqlite)).scalar_one()
        return moment

    def lock(self, connection: Connection, query: Select[Any], **parameters: Any) -> tuple[RowMapping, datetime] | None:
        """The row of a query FOR UPDATE, and the time once it is locked: later than what its last holder did."""
        timed = query if self._clock is not None else _with_time(query, is_sqlite=self.is_sqlite)
        row = connection.execute(timed, parameters).mappings().one_or_none()
        if row is None:
            return None
        return row, row["locked_at"] if self._clock is None else self._clock(connection)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may write; committed at the end of the block.

        Raises NothingDone if it failed before COMMIT, CommitInDoubt if COMMIT itself failed. What the block raises of
        its own rolls back and comes out as it is.
        """
        with self._one_writer() as left_ms, self._begun(**self._writing(left_ms)) as connection:
            try:
                yield connection
            except SQLAlchemyError as error:
                _roll_back(connection)
                raise NothingDone(_cause(error)) from None
            except BaseException:
                _roll_back(connection)
                raise
            try:
                connection.commit()
            except SQLAlchemyError as error:
                with suppress(SQLAlchemyError):
                    connection.invalidate()
                raise CommitInDoubt(_cause(error)) from None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One short transaction that only reads, all of it from the same moment.

        Raises NothingDone if the database cannot be asked.
        """
        with self._begun(**self._reading()) as connection:
            try:
                yield connection
            except SQLAlchemyError as error:
                raise NothingDone(_cause(error)) from None
            finally:
                _roll_back(connection)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _one_writer(self) -> Iterator[int]:
        """Wait for this process's other writers; gives how many milliseconds are left to wait for other processes."""
        if self._write_lock is None:
            yield STATEMENT_TIMEOUT_MS
            return
        waits_until = time.monotonic() + STATEMENT_TIMEOUT_MS / 1000
        if not self._write_lock.acquire(timeout=STATEMENT_TIMEOUT_MS / 1000):
            raise NothingDone("write_lock_timeout")
        try:
            yield max(1, int((waits_until - time.monotonic()) * 1000))
        finally:
            self._write_lock.release()

    def _writing(self, left_ms: int) -> dict[str, Any]:
        return {"sqlite_begin": "IMMEDIATE", "sqlite_busy_ms": left_ms} if self.is_sqlite else {}

    def _reading(self) -> dict[str, Any]:
        return {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}

    @contextmanager
    def _begun(self, **options: Any) -> Iterator[Connection]:
        try:
            connection = self.engine.connect()
        except SQLAlchemyError as error:
            raise NothingDone(_cause(error)) from None
        with connection:
            try:
                connection = connection.execution_options(**options)
                connection.begin()
            except SQLAlchemyError as error:
                raise NothingDone(_cause(error)) from None
            yield connection


def _roll_back(connection: Connection) -> None:
    with suppress(SQLAlchemyError):
        connection.rollback()


def _cause(error: SQLAlchemyError) -> str:
    """The driver's kind of error and its first line: no statement, no parameters."""
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines() or [""]
    return f"{type(original).__name__}: {lines[0]}"


def _sqlite_engine(url: str, *, read_only: bool) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        connect_args={"check_same_thread": False, "timeout": STATEMENT_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        # pysqlite would begin only before the first INSERT; we begin ourselves, below.
        connection.isolation_level = None
        for pragma in (
            "foreign_keys = ON",
            "synchronous = FULL",
            "query_only = ON" if read_only else "journal_mode = WAL",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        busy_ms = options.get("sqlite_busy_ms", STATEMENT_TIMEOUT_MS)
        # Past SQLAlchemy, whose way takes as long as a query; it does not touch the file, so that it cannot fail.
        connection.connection.cursor().execute(f"PRAGMA busy_timeout = {busy_ms}")
        connection.exec_driver_sql(f"BEGIN {options.get('sqlite_begin', 'DEFERRED')}")

    return engine


def _postgresql_engine(url: str) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        isolation_level="READ COMMITTED",
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "tcp_user_timeout": STATEMENT_TIMEOUT_MS,  # the server's own time-outs do not help where it is out of reach
            "application_name": "upbit-cancel-bot",
            "options": f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS}"
            " -c timezone=UTC -c idle_in_transaction_session_timeout=10000",
        },
    )

    @event.listens_for(engine, "checkin")
    def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ask_the_idle(connection: Any, record: ConnectionPoolEntry, _fairy: object) -> None:
        if time.monotonic() - record.info.get("used_at", -math.inf) >= TRUSTED_S:
            try:
                engine.dialect.do_ping(connection)
            except Exception:  # noqa: BLE001 - whatever it is, another one is opened
                raise InvalidatePoolError from None

    return engine


def _time(*, is_sqlite: bool) -> ColumnElement[datetime]:
    if is_sqlite:
        return literal_column("strftime('%Y-%m-%dT%H:%M:%fZ', 'now')", UtcTime())
    return func.clock_timestamp(type_=UtcTime())


@cache
def _now(*, is_sqlite: bool) -> Select[Any]:
    return select(_time(is_sqlite=is_sqlite))


@cache
def _with_time(query: Select[Any], *, is_sqlite: bool) -> Select[Any]:
    """PostgreSQL takes the row's lock within the common table expression, and tells the time of the row that came."""
    locked = query.cte("locked")
    return select(locked, _time(is_sqlite=is_sqlite).label("locked_at"))


def sqlite_path(url: str) -> Path | None:
    """The absolute path of a SQLite file, None for PostgreSQL."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database).absolute()


class RunLock:
    """Lets one `bot run` at a time use a SQLite file. The operating system releases it when the process is gone."""

    def __init__(self, database_path: Path) -> None:
        self._path = database_path.with_name(database_path.name + ".lock")
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises DatabaseInUse."""
        file = self._path.open("a", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise DatabaseInUse(f"another `bot run` (see {self._path}) uses this database") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
