"""The events between two moments, as a stream, and what had happened before to the requests in them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, func, select

from bot.database.engine import Database
from bot.database.schema import audit_events
from bot.database.stored_events import as_stored, streamed
from bot.domain.audit import Action
from bot.domain.stored_event import StoredEvent

MAX_EVENTS_OF_REQUEST: Final = 10_000
MAX_UNRESOLVED: Final = 10_000
SEARCHED_AT_ONCE: Final = 20_000
"""Events that one statement looks through; it ends well within its time-out, with or without an index."""

_COLUMNS: Final = as_stored(StoredEvent._fields)


class Span:
    """One look at the audit, all of it from the same moment: `begins_at` <= time < `ends_at`, up to event `last_seq`.

    Where a stored time cannot be read, which happens only to what was tampered with, `unreadable` counts the event.
    """

    def __init__(self, connection: Connection, *, begins_at: datetime, ends_at: datetime, last_seq: int | None) -> None:
        self._connection = connection
        self.unreadable = 0
        self._from_seq = self._first_since(begins_at)
        until_seq = self._first_since(ends_at)
        self._until_seq = until_seq if last_seq is None else min(until_seq, last_seq + 1)

    def events(self) -> Iterator[StoredEvent]:
        """In the order of their numbers; a few at a time are in memory."""
        seq = audit_events.c.seq
        query = select(*_COLUMNS).where(seq >= self._from_seq, seq < self._until_seq).order_by(seq)
        with streamed(self._connection, query) as found:
            yield from self._read(found)

    def before(self, request_id: int) -> tuple[StoredEvent, ...]:
        """What had happened to this request, oldest first."""
        seq = audit_events.c.seq
        query = select(*_COLUMNS).where(audit_events.c.request_id == request_id, seq < self._from_seq).order_by(seq)
        return tuple(self._read(self._connection.execute(query.limit(MAX_EVENTS_OF_REQUEST)).all()))

    def unresolved_before(self) -> tuple[int, ...]:
        """The requests that had been unresolved at some time before; whether they still were, their events tell."""
        seq, found = audit_events.c.seq, set[int]()
        lowest = self._connection.execute(select(func.min(seq))).scalar_one() or self._from_seq
        for start in range(lowest, self._from_seq, SEARCHED_AT_ONCE):
            found |= self._unresolved_in(start, min(start + SEARCHED_AT_ONCE, self._from_seq))
            if len(found) >= MAX_UNRESOLVED:
                break
        return tuple(sorted(found)[:MAX_UNRESOLVED])

    def _unresolved_in(self, from_seq: int, until_seq: int) -> set[int]:
        table = audit_events.c
        query: Select[Any] = select(table.request_id).where(
            table.seq >= from_seq,
            table.seq < until_seq,
            table.action == Action.OUTCOME_UNRESOLVED.value,
            table.request_id.is_not(None),
        )
        return set(self._connection.execute(query).scalars())

    def _first_since(self, moment: datetime) -> int:
        """The number of the first event at or after this moment, or the one that the next event will have.

        Time never runs backwards along the numbers, so it is found by halving, without an index on the times.
        """
        seq = audit_events.c.seq
        bounds = self._connection.execute(select(func.min(seq), func.max(seq))).one()
        if bounds[0] is None:
            return 1
        low, high = bounds[0], bounds[1] + 1
        while low < high:
            middle = (low + high) // 2
            is_since = (audit_events.c.occurred_at >= moment).label("is_since")
            row = self._connection.execute(select(seq, is_since).where(seq >= middle).order_by(seq).limit(1)).one()
            low, high = (low, middle) if row.is_since else (row.seq + 1, high)
        return int(low)

    def _read(self, rows: Any) -> Iterator[StoredEvent]:
        for row in rows:
            occurred_at = row.occurred_at
            if isinstance(occurred_at, str):
                occurred_at = _moment(occurred_at)
            if occurred_at is None:
                self.unreadable += 1
                continue
            yield StoredEvent(row[0], occurred_at, *row[2:])


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


@contextmanager
def span(database: Database, *, begins_at: datetime, ends_at: datetime, last_seq: int | None = None) -> Iterator[Span]:
    """Raises NothingDone if the database cannot be asked."""
    with database.read() as connection:
        yield Span(connection, begins_at=begins_at, ends_at=ends_at, last_seq=last_seq)
