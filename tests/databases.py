"""Databases as `bot migrate` leaves them, in less time: migrated once, and made like that one from then on."""

import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import event

from bot.database.engine import Database, sqlite_path
from bot.database.migration import migrate


def migrated(database: Database) -> Database:
    """The database, which was empty or is one of these, at the newest revision."""
    path = sqlite_path(database.url.render_as_string(hide_password=False))
    if path is not None:
        if not path.exists():
            path.write_bytes(_sqlite_file())
    elif _on_postgresql:
        with database.write() as connection:
            if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar_one() is None:
                for statement, values in _on_postgresql:
                    connection.exec_driver_sql(statement, values)
    else:
        event.listen(database.engine, "before_cursor_execute", _note)
        migrate(database)
        event.remove(database.engine, "before_cursor_execute", _note)
    return database


@cache
def _sqlite_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.db"
        database = Database(f"sqlite:///{path}")
        migrate(database)
        database.close()
        with closing(sqlite3.connect(path)) as connection:
            return connection.serialize()


_on_postgresql: Final[list[tuple[str, Any]]] = []
"""The statements of all migrations with their values, once they are known."""


def _note(_connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
    if not statement.lstrip().startswith("SELECT"):
        _on_postgresql.append((statement, values))
