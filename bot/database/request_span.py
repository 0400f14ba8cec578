"""The stretch of the audit's chain in which one request's events lie, as it is stored."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, func, select

from bot.database.checkpoints import signed_checkpoint
from bot.database.schema import audit_events, checkpoints
from bot.database.stored_events import streamed
from bot.domain.checkpoint import SignedCheckpoint

MAX_CHECKPOINTS: Final = 100
"""So many are looked through for one with a good signature."""


class Link(NamedTuple):
    """An event as a link of the chain: `entry` is the text that was hashed."""

    seq: int
    prev_hash: str
    hash: str
    entry: str


_LINK: Final = tuple(audit_events.c[name] for name in Link._fields)


class RequestSpan:
    """One look at the audit, in the transaction of this connection."""

    def __init__(self, connection: Connection, request_id: int) -> None:
        self._connection = connection
        self._is_of_request = audit_events.c.request_id == request_id

    def bounds(self) -> tuple[int, int] | None:
        """The numbers of the request's first and last events; None where it has none."""
        seq = audit_events.c.seq
        first, last = self._connection.execute(select(func.min(seq), func.max(seq)).where(self._is_of_request)).one()
        return None if first is None else (first, last)

    def of_request(self) -> Iterator[Link]:
        """The request's events, oldest first."""
        return self._streamed(select(*_LINK).where(self._is_of_request))

    def of_all(self, first_seq: int, last_seq: int) -> Iterator[Link]:
        """Every event from the first number to the last, whoever's it is."""
        return self._streamed(select(*_LINK).where(audit_events.c.seq.between(first_seq, last_seq)))

    def checkpoints_since(self, seq: int, *, key: str) -> list[SignedCheckpoint]:
        """The first ones at or after this event that name this public key; whether a signature is good is not known."""
        table = checkpoints.c
        query = select(checkpoints).where(table.seq >= seq, table.key == key).order_by(table.seq, table.id)
        return [signed_checkpoint(row) for row in self._connection.execute(query.limit(MAX_CHECKPOINTS))]

    def _streamed(self, query: Select[Any]) -> Iterator[Link]:
        with streamed(self._connection, query.order_by(audit_events.c.seq)) as found:
            for row in found:
                yield Link._make(row)
