"""The audit as it was at one moment, oldest event first, for who copies it out or compares it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, select, text

from bot.database.audit_log import LISTED
from bot.database.engine import Database
from bot.database.event_search import narrow
from bot.database.schema import audit_events, audit_head
from bot.database.stored_events import as_stored, streamed
from bot.domain.audit import GENESIS_HASH
from bot.domain.event_filter import Filter

_LISTED: Final = as_stored(LISTED)
"""`occurred_at` is text on SQLite, as it is stored, and a time on PostgreSQL."""


class Snapshot:
    """One transaction that sees nothing of what is written meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        head = connection.execute(select(audit_head)).one_or_none()
        self.last_seq: int = head.seq if head else 0
        self.base_seq: int = head.base_seq if head else 0  #: up to here events were pruned
        self.base_hash: str = head.base_hash if head else GENESIS_HASH

    def events(self, wanted: Filter, *, up_to_seq: int) -> Iterator[Sequence[Row[Any]]]:
        """The events that fit, a thousand at a time, as the columns of LISTED."""
        return self._streamed(narrow(select(*_LISTED), wanted).where(audit_events.c.seq <= up_to_seq))

    def hashes(self, *, up_to_seq: int) -> Iterator[tuple[int, str]]:
        """Number and hash of each event behind the base."""
        query = select(audit_events.c.seq, audit_events.c.hash).where(audit_events.c.seq <= up_to_seq)
        for part in self._streamed(query):
            yield from ((row.seq, row.hash) for row in part)

    def last_before(self, moment: datetime) -> int | None:
        """The last event from before this time."""
        query = select(func.max(audit_events.c.seq)).where(audit_events.c.occurred_at < moment)
        seq: int | None = self._connection.execute(query).scalar_one()
        return seq

    def _streamed(self, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
        with streamed(self._connection, query.order_by(audit_events.c.seq)) as result:
            yield from result.partitions()


@contextmanager
def snapshot(database: Database) -> Iterator[Snapshot]:
    """Raises NothingDone if the database cannot be asked."""
    with database.read() as connection:
        if not database.is_sqlite:
            # The limits are for listeners. Here the first row of a narrow filter may be far away, and the next row is
            # asked for when what is compared with it has been read.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield Snapshot(connection)
