"""Reads the audit: the events that somebody asks for."""

from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, select

from bot.database.engine import Database
from bot.database.event_search import MOST_AT_ONCE, narrow, newest
from bot.database.schema import audit_events
from bot.database.verification import columns_of
from bot.domain.audit import Json
from bot.domain.event_filter import Filter

LISTED: Final = tuple(column.name for column in audit_events.columns if column.name != "entry")
"""What is told of each event, in this order."""


class AuditLog:
    """Reads the audit; writes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, wanted: Filter, *, limit: int, newest_first: bool = True) -> list[dict[str, Json]]:
        """The events that fit, as their columns in JSON's types, without the canonical text."""
        with self._database.read() as connection:
            if newest_first:
                return _newest_first(connection, wanted, limit)
            query = narrow(select(audit_events), wanted).order_by(audit_events.c.seq).limit(limit)
            return [_to_json(row) for row in connection.execute(query).mappings()]


def _newest_first(connection: Connection, wanted: Filter, limit: int) -> list[dict[str, Json]]:
    found: list[dict[str, Json]] = []
    while len(found) < limit:
        numbers = newest(connection, wanted, limit=limit - len(found))
        query = select(audit_events).where(audit_events.c.seq.in_(numbers)).order_by(audit_events.c.seq.desc())
        found += [_to_json(row) for row in connection.execute(query).mappings()]
        if len(numbers) < MOST_AT_ONCE:
            break
        wanted = replace(wanted, before_seq=numbers[-1])
    return found


def _to_json(row: Any) -> dict[str, Json]:
    return {**columns_of(row), "prev_hash": row["prev_hash"], "hash": row["hash"]}
