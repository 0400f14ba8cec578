"""What the commands of the terminal share: settings, an opened database, progress, and how they speak and fail."""

import os
import pwd
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from rich.console import Console

from bot.settings import (
    AuditSettings,
    DatabaseSettings,
    Settings,
    SettingsError,
    load_audit_settings,
    load_database_settings,
    load_settings,
)

ENV_FILE: Final = Path(".env")
FOUND_SOMETHING_WRONG: Final = 1

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def fail(fault: str) -> NoReturn:
    click.echo(fault, err=True)
    sys.exit(FOUND_SOMETHING_WRONG)


Loaded = TypeVar("Loaded", bound=DatabaseSettings)


def bot_settings() -> Settings:
    return _load(load_settings)


def database_settings() -> DatabaseSettings:
    return _load(load_database_settings)


def audit_settings() -> AuditSettings:
    return _load(load_audit_settings)


def _load(load: Callable[[Mapping[str, str], Path | None], Loaded]) -> Loaded:
    try:
        settings = load(os.environ, ENV_FILE if ENV_FILE.is_file() else None)
    except SettingsError as error:
        fail("\n".join(error.faults))
    for warning in settings.warnings:
        click.echo(f"warning: {warning}", err=True)
    return settings


@contextmanager
def opened(url: str, *, read_only: bool = False) -> Iterator[Any]:
    from bot.database.engine import Database  # noqa: PLC0415

    database = Database(url, read_only=read_only)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def ready_database(*, read_only: bool = True) -> Iterator[Any]:
    """The database, which must be there at the right revision."""
    from bot.database.migration import check_revision  # noqa: PLC0415
    from bot.domain.errors import StoreError  # noqa: PLC0415

    url = database_settings().database_url.get_secret_value()
    require_database(url)
    try:
        with opened(url, read_only=read_only) as database:
            check_revision(database)
            yield database
    except StoreError as error:
        fail(str(error))


def require_database(url: str) -> None:
    from bot.database.engine import sqlite_path  # noqa: PLC0415

    path = sqlite_path(url)
    if path is not None and not path.is_file():
        raise click.ClickException(f"there is no database at {path}: `bot migrate` creates it")


def login() -> str:
    # Not what LOGNAME or USER say, which anybody can set.
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@contextmanager
def progress_shown(done: str) -> Iterator[Callable[[int], None]]:
    """Shows how many events have been read, where somebody looks on."""
    from rich.progress import Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.completed} events " + done), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda events: progress.update(task, completed=events)
