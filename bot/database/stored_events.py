"""Events as they are stored, read a few at a time, however many there are."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Result, Select, Text, type_coerce

from bot.database.schema import UtcTime, audit_events

READ_ROWS: Final = 1000
"""Rows held in memory at a time."""


def as_stored(names: Iterable[str]) -> tuple[ColumnElement[Any], ...]:
    """These columns of events; on SQLite a time stays the text that it is: tampered with, it may be no time at all."""
    return tuple(
        type_coerce(column, Text).label(column.name) if isinstance(column.type, UtcTime) else column
        for column in (audit_events.c[name] for name in names)
    )


@contextmanager
def streamed(connection: Connection, query: Select[Any]) -> Iterator[Result[Any]]:
    """The rows that the query finds, READ_ROWS of them in memory."""
    # For this query only: what follows in the transaction may write.
    with connection.execute(query, execution_options={"yield_per": READ_ROWS}) as result:
        yield result
