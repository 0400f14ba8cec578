"""What the tests share: a database of each kind, real ones, empty for every test."""

import logging
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from databases import migrated
from memory import fast_folder
from postgresql import Postgresql

from bot.database.engine import Database

KINDS = ("sqlite", "postgresql")

if folder := fast_folder():
    # Read by pytest when the first test asks for a folder.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread what waits for real time over the run: one of them waits while others compute."""
    waiting = [item for item in items if item.get_closest_marker("real_time")]
    # Between two files: within one, what its tests share would be built again.
    files = [list(file) for _, file in groupby((item for item in items if item not in waiting), key=lambda i: i.path)]
    apart = (len(items) - len(waiting)) / (len(waiting) + 1)
    spread: list[pytest.Item] = []
    placed = computing = 0
    for file in files:
        if placed < len(waiting) and computing >= apart * (placed + 1):
            spread.append(waiting[placed])
            placed += 1
        spread += file
        computing += len(file)
    items[:] = [*spread, *waiting[placed:]]


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
    migrated(opened)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """A migrated SQLite file, for what does not depend on the kind of database."""
    opened = Database(f"sqlite:///{tmp_path / 'cancels.db'}")
    migrated(opened)
    yield opened
    opened.close()
