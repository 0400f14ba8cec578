"""Reads the audit: the events that somebody asks for."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, select

from bot.database.engine import Database
from bot.database.schema import audit_events
from bot.database.verification import columns_of
from bot.domain.audit import Json

LISTED: Final = tuple(column.name for column in audit_events.columns if column.name != "entry")
"""What is told of each event, in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which events to list; None stands for all."""

    order_uuid: str | None = None
    request_id: int | None = None
    actor: str | None = None
    market: str | None = None
    action: str | None = None
    outcome: str | None = None
    details_reason: str | None = None  #: a word of Reason, as `details.reason` holds it
    since: datetime | None = None
    until: datetime | None = None
    before_seq: int | None = None  #: only events that come before this one

    def narrow(self, query: Select[Any]) -> Select[Any]:
        for name in ("order_uuid", "request_id", "actor", "market", "action", "outcome"):
            wanted = getattr(self, name)
            if wanted is not None:
                query = query.where(audit_events.c[name] == wanted)
        if self.details_reason is not None:
            # Canonical JSON writes it in one way, and inside of texts quotes are escaped.
            written = f'"reason":"{self.details_reason}"'
            query = query.where(audit_events.c.details.contains(written, autoescape=True))
        if self.before_seq is not None:
            query = query.where(audit_events.c.seq < self.before_seq)
        if self.since is not None:
            query = query.where(audit_events.c.occurred_at >= self.since)
        if self.until is not None:
            query = query.where(audit_events.c.occurred_at < self.until)
        return query


class AuditLog:
    """Reads the audit; writes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, wanted: Filter, *, limit: int, newest_first: bool = True) -> list[dict[str, Json]]:
        """The events that fit, as their columns in JSON's types, without the canonical text."""
        order = audit_events.c.seq.desc() if newest_first else audit_events.c.seq
        query = wanted.narrow(select(audit_events)).order_by(order).limit(limit)
        with self._database.read() as connection:
            return [_to_json(row) for row in connection.execute(query).mappings()]


def _to_json(row: Any) -> dict[str, Json]:
    return {**columns_of(row), "prev_hash": row["prev_hash"], "hash": row["hash"]}
