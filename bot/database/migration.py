"""Bring the database to the revision that this program needs, or say that it is not there."""

from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import bot
from bot.database.engine import Database
from bot.domain.errors import WrongRevision

MIGRATION_LOCK: Final = 7_345_120_041
"""PostgreSQL's advisory lock that lets one `bot migrate` run at a time."""


def migrations_folder() -> Path:
    """Inside the installed package, or beside it in a checkout."""
    package = Path(bot.__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def migrate(database: Database, *, revision: str = "head") -> str:
    """Upgrade (or, with a revision that is older, downgrade); returns the revision reached. Raises StoreError."""
    config = _config()
    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = '30s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        current = _current(connection)
        if current is not None and current not in _known_revisions():
            raise _too_new(current)
        if _is_older(revision, current):
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
        return _current(connection) or "base"


def check_revision(database: Database) -> None:
    """Raises WrongRevision unless the database is at this program's revision, NothingDone if it cannot be asked."""
    with database.read() as connection:
        current = _current(connection)
    newest = newest_revision()
    if current == newest:
        return
    if current is None or current in _known_revisions():
        raise WrongRevision(
            f"the database is at revision {current or 'none'}, this bot needs {newest}: run `bot migrate`"
        )
    raise _too_new(current)


@cache
def newest_revision() -> str:
    """The revision that this program needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _too_new(current: str) -> WrongRevision:
    return WrongRevision(
        f"the database is at revision {current}, which is newer than this bot ({newest_revision()}): upgrade the bot"
    )


def _known_revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _is_older(revision: str, current: str | None) -> bool:
    return revision == "base" or (revision != "head" and current is not None and revision < current)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return config
